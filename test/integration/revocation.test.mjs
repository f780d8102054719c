// Whoever loses a right loses what it showed, in time; whoever gains one sees it.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { assertSame, Client, until, within } from './lib/client.mjs';
import { Session } from './lib/psql.mjs';

const BOUND = 1000; // ms after the commit, for what the WAL shows
const PATIENCE = 5000; // for what comes back, which is measured as well
const SUB = "current_setting('request.jwt.claims', true)::jsonb->>'sub'";

describe('rights that are taken and given', () => {
  let db;
  let superuser;

  const ms = (start) => Math.round(performance.now() - start);

  before(async () => {
    db = new Session();
    await db.exec(`CREATE SCHEMA rev; CREATE SCHEMA rev_path;
      CREATE ROLE rev_web; CREATE ROLE rev_group; CREATE ROLE rev_other; CREATE ROLE rev_owner;
      GRANT USAGE ON SCHEMA rev, rev_path TO rev_web, rev_group, rev_owner;
      SELECT changefeed.allow_role('rev_web'); SELECT changefeed.allow_role('rev_other')`);
    superuser = db;
  });
  after(() => db?.close());

  let tables = 0;

  /** A table with a channel, and a client that has it open. */
  async function make(t, { ddl = () => '', claims = {}, grant = true } = {}) {
    const name = `t${++tables}`;
    const table = `rev.${name}`;
    const identity = { role: 'rev_web', sub: 'u1', ...claims };
    await db.exec(`CREATE TABLE ${table} (id int PRIMARY KEY, owner text, secret text);
      INSERT INTO ${table} SELECT i, CASE WHEN i % 2 = 0 THEN 'u1' ELSE 'u2' END, 's' || i FROM generate_series(1, 6) i;
      ${grant ? `GRANT SELECT ON ${table} TO rev_web;` : ''}
      ${ddl(table)};
      SELECT changefeed.create_channel('rev_${name}', '${table}')`);
    const client = await Client.connectSoon({ token: await db.token(identity) });
    t.after(() => client.cut());
    const s = await client.openSoon(`rev_${name}`);
    const seen = [];
    s.onChange = (change) => seen.push(JSON.stringify(change));
    const compare = async (columns = '*') => {
      await client.settle();
      client.check();
      if (s.state === 'ready') assertSame(s.rows(), await db.rowsAs(identity, `SELECT ${columns} FROM ${table}`), table);
    };
    return { name, table, client, s, seen, identity, compare };
  }

  /**
   * Runs `lose`, then changes that may not be seen; `lost` has to become true within the bound. Then
   * `gain`, after which everything is there again.
   */
  async function check(t, made, { lose, gain, lost, columns, gained }) {
    const { table, client, s, seen, compare } = made;
    assert.ok(s.rows().length > 0, 'there is something to lose');
    const had = s.rows().length;
    await db.exec(lose);
    let start = performance.now();
    seen.length = 0;
    await db.exec(`UPDATE ${table} SET secret = 'after the loss ' || id`);
    await until(() => lost(s), 'lost', BOUND);
    const loss = ms(start);
    await client.settle();
    client.check();
    if (s.state === 'ready') await compare(columns?.[0]);
    else assert.equal(s.rows().length, 0);
    assert.ok(lost(s), 'still lost');
    if (gain) {
      await db.exec(gain);
      start = performance.now();
      let again = s;
      if (s.state === 'ended') again = await until(() => client.open(s.name).catch(() => null), 'subscribed again', PATIENCE);
      await until(() => again.state === 'ready' && (gained ?? ((x) => x.rows().length === had))(again), 'gained', PATIENCE);
      t.diagnostic(`lost after ${loss} ms, gained after ${ms(start)} ms`);
      await client.settle();
      client.check();
      assertSame(again.rows(), await db.rowsAs(made.identity, `SELECT ${columns?.[1] ?? '*'} FROM ${table}`), table);
    } else t.diagnostic(`lost after ${loss} ms`);
    assert.ok(!seen.some((text) => text.includes('after the loss')) || columns || lost.partial, `leaked: ${seen}`);
    return s;
  }

  const ended = (s) => s.state === 'ended';
  const empty = (s) => s.state === 'ready' && s.rows().length === 0;
  const owned = (table) => `ALTER TABLE ${table} ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON ${table} USING (owner = ${SUB})`;

  describe('privileges', () => {
    test('REVOKE SELECT', async (t) => {
      const made = await make(t);
      await check(t, made, { lose: `REVOKE SELECT ON ${made.table} FROM rev_web`, gain: `GRANT SELECT ON ${made.table} TO rev_web`, lost: ended });
      assert.equal(made.s.revoked.reason, 'permission_denied');
    });
    test('REVOKE from PUBLIC', async (t) => {
      const made = await make(t, { grant: false, ddl: (table) => `GRANT SELECT ON ${table} TO PUBLIC` });
      await check(t, made, { lose: `REVOKE SELECT ON ${made.table} FROM PUBLIC`, gain: `GRANT SELECT ON ${made.table} TO PUBLIC`, lost: ended });
    });
    test('a privilege by membership', async (t) => {
      const made = await make(t, { grant: false, ddl: (table) => `GRANT SELECT ON ${table} TO rev_group; GRANT rev_group TO rev_web` });
      await check(t, made, { lose: 'REVOKE rev_group FROM rev_web', gain: 'GRANT rev_group TO rev_web', lost: ended });
      await db.exec('REVOKE rev_group FROM rev_web');
    });
    test('NOINHERIT', async (t) => {
      const made = await make(t, { grant: false, ddl: (table) => `GRANT SELECT ON ${table} TO rev_group; GRANT rev_group TO rev_web` });
      const version = Number(await db.value('SHOW server_version_num'));
      if (version < 160000) await check(t, made, { lose: 'ALTER ROLE rev_web NOINHERIT', gain: 'ALTER ROLE rev_web INHERIT', lost: ended });
      else await check(t, made, { lose: 'GRANT rev_group TO rev_web WITH INHERIT FALSE', gain: 'GRANT rev_group TO rev_web WITH INHERIT TRUE', lost: ended });
      await db.exec('REVOKE rev_group FROM rev_web');
    });
    test('a column', async (t) => {
      const made = await make(t, { grant: false, ddl: (table) => `GRANT SELECT (id, owner, secret) ON ${table} TO rev_web` });
      await check(t, made, {
        lose: `REVOKE SELECT (secret) ON ${made.table} FROM rev_web`,
        gain: `GRANT SELECT (secret) ON ${made.table} TO rev_web`,
        lost: (s) => s.state === 'ready' && s.rows().every((row) => !('secret' in row)),
        gained: (s) => s.rows().every((row) => 'secret' in row),
        columns: ['id, owner', '*'],
      });
      assert.ok(!made.seen.some((text) => text.includes('after the loss')), made.seen.join());
    });
    test('a column by membership', async (t) => {
      const made = await make(t, { grant: false, ddl: (table) => `GRANT SELECT (id, owner) ON ${table} TO rev_web;
        GRANT SELECT (secret) ON ${table} TO rev_group; GRANT rev_group TO rev_web` });
      await check(t, made, {
        lose: 'REVOKE rev_group FROM rev_web',
        gain: 'GRANT rev_group TO rev_web',
        lost: (s) => s.state === 'ready' && s.rows().every((row) => !('secret' in row)),
        gained: (s) => s.rows().every((row) => 'secret' in row),
        columns: ['id, owner', '*'],
      });
      assert.ok(!made.seen.some((text) => text.includes('after the loss')), made.seen.join());
      await db.exec('REVOKE rev_group FROM rev_web');
    });
    test('USAGE of the schema', async (t) => {
      await db.exec('CREATE SCHEMA rev_use; GRANT USAGE ON SCHEMA rev_use TO rev_web');
      const made = await make(t, { ddl: (table) => `ALTER TABLE ${table} SET SCHEMA rev_use; ALTER TABLE rev_use.${table.slice(4)} SET SCHEMA rev` });
      await db.exec(`ALTER TABLE ${made.table} SET SCHEMA rev_use`);
      made.table = made.table.replace('rev.', 'rev_use.');
      await made.client.settle();
      await check(t, made, { lose: 'REVOKE USAGE ON SCHEMA rev_use FROM rev_web', gain: 'GRANT USAGE ON SCHEMA rev_use TO rev_web', lost: ended });
    });
    test('DROP OWNED BY the role', async (t) => {
      await db.exec('GRANT USAGE ON SCHEMA rev TO rev_other');
      const made = await make(t, { claims: { role: 'rev_other' }, ddl: (table) => `GRANT SELECT ON ${table} TO rev_other` });
      await check(t, made, { lose: 'DROP OWNED BY rev_other', gain: `GRANT USAGE ON SCHEMA rev TO rev_other; GRANT SELECT ON ${made.table} TO rev_other`, lost: ended });
    });
    test('ALTER DEFAULT PRIVILEGES changes nothing', async (t) => {
      const made = await make(t);
      await db.exec(`ALTER DEFAULT PRIVILEGES IN SCHEMA rev REVOKE SELECT ON TABLES FROM rev_web;
        UPDATE ${made.table} SET secret = 'x'`);
      await made.compare();
      assert.equal(made.s.state, 'ready');
      assert.equal(made.s.rows()[0].secret, 'x');
    });
    test('the owner changes, by REASSIGN OWNED', async (t) => {
      // The owner is not bound by policies; whoever owned it last is.
      const made = await make(t, { ddl: (table) => `${owned(table)}; ALTER TABLE ${table} OWNER TO rev_web` });
      await check(t, made, {
        lose: `BEGIN; REASSIGN OWNED BY rev_web TO rev_owner; GRANT SELECT ON ${made.table} TO rev_web; COMMIT`,
        lost: (s) => s.state === 'ready' && s.rows().length === 3,
        columns: ['*'],
      });
    });
  });

  describe('policies', () => {
    test('ALTER POLICY', async (t) => {
      const made = await make(t, { ddl: owned });
      await check(t, made, { lose: `ALTER POLICY p ON ${made.table} USING (false)`, gain: `ALTER POLICY p ON ${made.table} USING (owner = ${SUB})`, lost: empty });
    });
    test('DROP POLICY', async (t) => {
      const made = await make(t, { ddl: owned });
      await check(t, made, { lose: `DROP POLICY p ON ${made.table}`, gain: `CREATE POLICY p ON ${made.table} USING (owner = ${SUB})`, lost: empty });
    });
    test('a restrictive policy', async (t) => {
      const made = await make(t, { ddl: owned });
      await check(t, made, { lose: `CREATE POLICY r ON ${made.table} AS RESTRICTIVE USING (id < 0)`, gain: `DROP POLICY r ON ${made.table}`, lost: empty });
    });
    test('ENABLE and DISABLE ROW LEVEL SECURITY', async (t) => {
      const made = await make(t);
      await check(t, made, { lose: `ALTER TABLE ${made.table} ENABLE ROW LEVEL SECURITY`, gain: `ALTER TABLE ${made.table} DISABLE ROW LEVEL SECURITY`, lost: empty });
    });
    test('FORCE ROW LEVEL SECURITY on the owner', async (t) => {
      const made = await make(t, { ddl: (table) => `${owned(table)}; ALTER POLICY p ON ${table} USING (id < 0); ALTER TABLE ${table} OWNER TO rev_web` });
      await check(t, made, { lose: `ALTER TABLE ${made.table} FORCE ROW LEVEL SECURITY`, gain: `ALTER TABLE ${made.table} NO FORCE ROW LEVEL SECURITY`, lost: empty });
    });
    test('a policy of a role, by membership', async (t) => {
      const made = await make(t, { ddl: (table) => `ALTER TABLE ${table} ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON ${table} TO rev_group USING (true); GRANT rev_group TO rev_web` });
      await check(t, made, { lose: 'REVOKE rev_group FROM rev_web', gain: 'GRANT rev_group TO rev_web', lost: empty });
      await db.exec('REVOKE rev_group FROM rev_web');
    });
    test('a membership changed in another database', async (t) => {
      const made = await make(t, { ddl: (table) => `ALTER TABLE ${table} ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON ${table} TO rev_group USING (true); GRANT rev_group TO rev_web` });
      const other = new Session({ database: 'postgres' });
      t.after(() => other.close());
      await other.exec('REVOKE rev_group FROM rev_web');
      const start = performance.now();
      await until(() => empty(made.s), 'lost', BOUND);
      const loss = ms(start);
      await db.exec(`UPDATE ${made.table} SET secret = 'after the loss'`);
      await made.compare();
      assert.equal(made.seen.length, 0);
      await other.exec('GRANT rev_group TO rev_web');
      await until(() => made.s.state === 'ready' && made.s.rows().length === 6, 'gained', PATIENCE);
      t.diagnostic(`lost after ${loss} ms`);
      await made.compare();
      await db.exec('REVOKE rev_group FROM rev_web');
    });
    test('a function that a policy calls is replaced', async (t) => {
      const made = await make(t, { ddl: (table) => `CREATE FUNCTION rev.may(text) RETURNS bool LANGUAGE sql STABLE AS 'SELECT $1 = ''u1''';
        ALTER TABLE ${table} ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON ${table} USING (rev.may(owner))` });
      await check(t, made, {
        lose: "CREATE OR REPLACE FUNCTION rev.may(text) RETURNS bool LANGUAGE sql STABLE AS 'SELECT false'",
        gain: "CREATE OR REPLACE FUNCTION rev.may(text) RETURNS bool LANGUAGE sql STABLE AS 'SELECT $1 = ''u1'''", lost: empty });
    });
    test('a function that is inlined to a constant is replaced', async (t) => {
      const constant = (value) => `CREATE OR REPLACE FUNCTION rev.constant() RETURNS bool LANGUAGE sql STABLE AS 'SELECT ${value}'`;
      const made = await make(t, { ddl: (table) => `${constant(true)}; ALTER TABLE ${table} ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON ${table} USING (rev.constant())` });
      await check(t, made, { lose: constant(false), gain: constant(true), lost: empty });
    });
    test('a SECURITY DEFINER function that is called by another is replaced', async (t) => {
      const inner = (value) => `CREATE OR REPLACE FUNCTION rev.inner() RETURNS bool LANGUAGE plpgsql STABLE SECURITY DEFINER AS 'BEGIN RETURN ${value}; END'`;
      const made = await make(t, { ddl: (table) => `${inner(true)};
        CREATE FUNCTION rev.outer() RETURNS bool LANGUAGE plpgsql STABLE AS 'BEGIN RETURN rev.inner(); END';
        ALTER TABLE ${table} ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON ${table} USING (rev.outer())` });
      await check(t, made, { lose: inner(false), gain: inner(true), lost: empty });
    });
    test('EXECUTE of a function that a policy calls', async (t) => {
      const made = await make(t, { ddl: (table) => `CREATE FUNCTION rev.exec() RETURNS bool LANGUAGE plpgsql STABLE AS 'BEGIN RETURN true; END';
        REVOKE EXECUTE ON FUNCTION rev.exec() FROM PUBLIC; GRANT EXECUTE ON FUNCTION rev.exec() TO rev_web;
        ALTER TABLE ${table} ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON ${table} USING (rev.exec())` });
      await check(t, made, { lose: 'REVOKE EXECUTE ON FUNCTION rev.exec() FROM rev_web', gain: 'GRANT EXECUTE ON FUNCTION rev.exec() TO rev_web', lost: ended });
    });
    for (const [what, path] of [['a role', 'ROLE rev_web'], ['the database', 'DATABASE integration']]) {
      test(`the search_path of ${what} decides what a function finds`, async (t) => {
        await db.exec(`CREATE SCHEMA IF NOT EXISTS rev_path; DROP FUNCTION IF EXISTS rev.verdict(), rev_path.verdict(), rev.ask() CASCADE;
          CREATE FUNCTION rev.verdict() RETURNS bool LANGUAGE sql STABLE AS 'SELECT true';
          CREATE FUNCTION rev_path.verdict() RETURNS bool LANGUAGE sql STABLE AS 'SELECT false';
          CREATE FUNCTION rev.ask() RETURNS bool LANGUAGE plpgsql STABLE AS 'BEGIN RETURN verdict(); END';
          ALTER ${path} SET search_path = rev`);
        const made = await make(t, { ddl: (table) => `ALTER TABLE ${table} ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON ${table} USING (rev.ask())` });
        t.after(() => db.exec(`ALTER ${path} RESET search_path`));
        await db.exec(`ALTER ${path} SET search_path = rev_path`);
        const start = performance.now();
        await until(() => empty(made.s), 'lost', BOUND);
        t.diagnostic(`lost after ${ms(start)} ms`);
        await db.exec(`UPDATE ${made.table} SET secret = 'after the loss'`);
        await made.client.settle();
        assert.equal(made.seen.length, 0);
        await db.exec(`ALTER ${path} SET search_path = rev`);
        await until(() => made.s.state === 'ready' && made.s.rows().length === 6, 'gained', PATIENCE);
      });
    }
    test('a table that a policy reads', async (t) => {
      const made = await make(t, { ddl: (table) => `CREATE TABLE rev.members (uid text PRIMARY KEY); GRANT SELECT ON rev.members TO rev_web;
        INSERT INTO rev.members VALUES ('u1');
        ALTER TABLE ${table} ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON ${table} USING (EXISTS (SELECT FROM rev.members m WHERE m.uid = ${SUB}))` });
      await check(t, made, { lose: 'DELETE FROM rev.members', gain: "INSERT INTO rev.members VALUES ('u1')", lost: empty });
      await check(t, made, { lose: 'REVOKE SELECT ON rev.members FROM rev_web', gain: 'GRANT SELECT ON rev.members TO rev_web', lost: ended });
    });
    test('a view that a function reads', async (t) => {
      const view = (where) => `CREATE OR REPLACE VIEW rev.seen AS SELECT uid FROM rev.seen_people WHERE ${where}`;
      const made = await make(t, { ddl: (table) => `CREATE TABLE rev.seen_people (uid text PRIMARY KEY, active bool);
        INSERT INTO rev.seen_people VALUES ('u1', true); ${view('active')}; GRANT SELECT ON rev.seen TO rev_web;
        CREATE FUNCTION rev.is_seen() RETURNS bool LANGUAGE sql STABLE SET enable_sort = on AS 'SELECT EXISTS (SELECT FROM rev.seen m WHERE m.uid = ${SUB.replaceAll("'", "''")})';
        ALTER TABLE ${table} ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON ${table} USING (rev.is_seen())` });
      for (let i = 0; i < 2; i += 1) await check(t, made, { lose: view('NOT active'), gain: view('active'), lost: empty });
    });
    test('a materialized view that a policy reads', async (t) => {
      const made = await make(t, { ddl: (table) => `CREATE TABLE rev.crowd (uid text PRIMARY KEY); INSERT INTO rev.crowd VALUES ('u1');
        CREATE MATERIALIZED VIEW rev.crowded AS SELECT uid FROM rev.crowd; GRANT SELECT ON rev.crowded TO rev_web;
        ALTER TABLE ${table} ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON ${table} USING (EXISTS (SELECT FROM rev.crowded m WHERE m.uid = ${SUB}))` });
      for (let i = 0; i < 2; i += 1) {
        await check(t, made, { lose: 'DELETE FROM rev.crowd; REFRESH MATERIALIZED VIEW rev.crowded',
          gain: "INSERT INTO rev.crowd VALUES ('u1'); REFRESH MATERIALIZED VIEW rev.crowded", lost: empty });
      }
    });
    test('a view that a policy reads, and the rights of its owner', async (t) => {
      const view = (where) => `CREATE OR REPLACE VIEW rev.team AS SELECT uid FROM rev.people WHERE ${where}; ALTER VIEW rev.team OWNER TO rev_owner`;
      const made = await make(t, { ddl: (table) => `CREATE TABLE rev.people (uid text PRIMARY KEY, active bool); GRANT SELECT ON rev.people TO rev_owner;
        INSERT INTO rev.people VALUES ('u1', true); ${view('active')}; GRANT SELECT ON rev.team TO rev_web;
        ALTER TABLE ${table} ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON ${table} USING (EXISTS (SELECT FROM rev.team m WHERE m.uid = ${SUB}))` });
      await check(t, made, { lose: 'UPDATE rev.people SET active = false', gain: 'UPDATE rev.people SET active = true', lost: empty });
      await check(t, made, { lose: view('NOT active'), gain: view('active'), lost: empty });
      const s = await check(t, made, { lose: 'REVOKE SELECT ON rev.people FROM rev_owner', gain: 'GRANT SELECT ON rev.people TO rev_owner', lost: ended });
      assert.equal(s.revoked.code, '42501');
    });
    test('the owner of the database is in pg_database_owner', async (t) => {
      const made = await make(t, { ddl: (table) => `ALTER TABLE ${table} ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON ${table} TO pg_database_owner USING (true);
        ALTER DATABASE integration OWNER TO rev_group; GRANT rev_group TO rev_web` });
      await check(t, made, { lose: 'ALTER DATABASE integration OWNER TO postgres', gain: 'ALTER DATABASE integration OWNER TO rev_group', lost: empty });
      await db.exec('ALTER DATABASE integration OWNER TO postgres; REVOKE rev_group FROM rev_web');
    });
    test('a table that an SQL function reads', async (t) => {
      const made = await make(t, { ddl: (table) => `CREATE TABLE rev.members2 (uid text PRIMARY KEY); GRANT SELECT ON rev.members2 TO rev_web;
        INSERT INTO rev.members2 VALUES ('u1');
        CREATE FUNCTION rev.is_member() RETURNS bool LANGUAGE sql STABLE AS $$ SELECT EXISTS (SELECT FROM rev.members2 WHERE uid = ${SUB}) $$;
        CREATE FUNCTION rev.is_member_too() RETURNS bool LANGUAGE sql STABLE RETURN rev.is_member();
        ALTER TABLE ${table} ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON ${table} USING (rev.is_member_too())` });
      await check(t, made, { lose: 'DELETE FROM rev.members2', gain: "INSERT INTO rev.members2 VALUES ('u1')", lost: empty });
    });
    test('a table that was declared', async (t) => {
      const made = await make(t, { ddl: (table) => `CREATE TABLE rev.members3 (uid text PRIMARY KEY); INSERT INTO rev.members3 VALUES ('u1');
        CREATE FUNCTION rev.declared() RETURNS bool LANGUAGE plpgsql STABLE SECURITY DEFINER AS $$
          BEGIN RETURN EXISTS (SELECT FROM rev.members3 WHERE uid = ${SUB}); END $$;
        ALTER TABLE ${table} ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON ${table} USING (rev.declared())` });
      // It takes effect on subscriptions that are there already.
      await db.exec("SELECT changefeed.declare_dependency('rev.declared()', 'rev.members3')");
      await made.client.settle();
      await check(t, made, { lose: 'DELETE FROM rev.members3', gain: "INSERT INTO rev.members3 VALUES ('u1')", lost: empty });
    });
  });

  describe('roles', () => {
    const gone = async (t, sql, { role = 'rev_gone', undo } = {}) => {
      await db.exec(`CREATE ROLE ${role}; GRANT USAGE ON SCHEMA rev TO ${role}; SELECT changefeed.allow_role('${role}')`);
      const made = await make(t, { claims: { role }, ddl: (table) => `GRANT SELECT ON ${table} TO ${role}` });
      await db.exec(sql(made.table));
      const start = performance.now();
      await db.exec(`UPDATE ${made.table} SET secret = 'after the loss'`);
      const { code } = await within(BOUND, made.client.ended, 'closed');
      t.diagnostic(`closed after ${ms(start)} ms`);
      assert.equal(code, 4003);
      assert.equal(made.s.revoked?.reason, 'permission_denied');
      assert.equal(made.seen.length, 0);
      await assert.rejects(Client.connect({ token: made.client.token }), { code: '42501' });
      if (undo) {
        await db.exec(undo);
        await (await Client.connectSoon({ token: made.client.token })).cut();
      }
      await db.exec(`SELECT changefeed.disallow_role(r.role) FROM changefeed.roles r WHERE r.role::text = '${role}'`);
      if (await db.value(`SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = '${role}')`) === 't') await db.exec(`DROP OWNED BY ${role}; DROP ROLE ${role}`);
    };
    test('disallow_role', (t) => gone(t, () => "SELECT changefeed.disallow_role('rev_gone')", { undo: "SELECT changefeed.allow_role('rev_gone')" }));
    test('DROP ROLE', (t) => gone(t, (table) => 'DROP OWNED BY rev_gone; DROP ROLE rev_gone'));
    test('ALTER ROLE ... SUPERUSER', (t) => gone(t, () => 'ALTER ROLE rev_gone SUPERUSER', { undo: 'ALTER ROLE rev_gone NOSUPERUSER' }));
    test('ALTER ROLE ... BYPASSRLS', (t) => gone(t, () => 'ALTER ROLE rev_gone BYPASSRLS', { undo: 'ALTER ROLE rev_gone NOBYPASSRLS' }));
    test('a member of pg_read_all_data', (t) => gone(t, () => 'GRANT pg_read_all_data TO rev_gone', { undo: 'REVOKE pg_read_all_data FROM rev_gone' }));
    test('ALTER ROLE ... RENAME', (t) => gone(t, () => 'ALTER ROLE rev_gone RENAME TO rev_renamed', { undo: 'ALTER ROLE rev_renamed RENAME TO rev_gone' }));
    test('NOLOGIN concerns nobody: clients do not log in', async (t) => {
      const made = await make(t);
      await db.exec('ALTER ROLE rev_web LOGIN; ALTER ROLE rev_web NOLOGIN');
      await made.compare();
      assert.equal(made.s.state, 'ready');
    });
  });

  describe('while our own tables are locked', () => {
    /** From the commit of `during` until after `then` nobody can read that one. */
    async function locked(t, table, during, then) {
      const [writer, locker] = [new Session(), new Session()];
      t.after(() => Promise.all([writer.close(), locker.close()]));
      await writer.exec(`BEGIN; ${during}`);
      const lock = locker.exec(`BEGIN; LOCK TABLE changefeed.${table} IN ACCESS EXCLUSIVE MODE`);
      await until(async () => await db.value(`SELECT EXISTS (SELECT FROM pg_locks
        WHERE relation = 'changefeed.${table}'::regclass AND mode = 'AccessExclusiveLock')`) === 't', 'wanted');
      await writer.exec('COMMIT');
      await lock;
      await db.exec(then);
      const lsn = await db.value('SELECT pg_current_wal_insert_lsn()');
      await until(async () => await db.value(`SELECT decoded_lsn >= '${lsn}' FROM changefeed.stat_feed`) === 't', 'decoded');
      await locker.exec('COMMIT');
    }

    test('nothing is sent by a definition that has been replaced', async (t) => {
      const { name, table, client, s, seen } = await make(t);
      await locked(t, 'source', `SELECT changefeed.drop_source('rev_${name}', '${table}'), changefeed.add_source('rev_${name}', '${table}', filter => 'id < 100');
        INSERT INTO ${table} VALUES (100, 'u1', 'with it')`, `INSERT INTO ${table} VALUES (101, 'u1', 'behind it')`);
      await client.settle();
      client.check();
      assert.deepEqual(seen, []);
      assertSame(s.rows(), await db.rows(`SELECT * FROM ${table} WHERE id < 100`), table);
    });
    test('who lost its role is not forgotten', async (t) => {
      await db.exec("CREATE ROLE rev_locked; GRANT USAGE ON SCHEMA rev TO rev_locked; SELECT changefeed.allow_role('rev_locked')");
      const { table, client, seen } = await make(t, { claims: { role: 'rev_locked' }, ddl: (table) => `GRANT SELECT ON ${table} TO rev_locked` });
      await locked(t, 'revocation', "SELECT changefeed.disallow_role('rev_locked')", `INSERT INTO ${table} VALUES (100)`);
      assert.equal((await within(BOUND, client.ended, 'closed')).code, 4003);
      assert.deepEqual(seen, []);
    });
  });

  describe('what the WAL does not show', () => {
    const INTERVAL = 1000;

    before(async () => {
      await db.exec(`ALTER SYSTEM SET changefeed.recheck_interval = '${INTERVAL}ms'; SELECT pg_reload_conf()`);
      await until(async () => await db.value('SHOW changefeed.recheck_interval') === '1s', 'reloaded');
    });
    after(() => db.exec('ALTER SYSTEM RESET changefeed.recheck_interval; SELECT pg_reload_conf()'));

    const timed = (table) => `ALTER TABLE ${table} ADD COLUMN until timestamptz NOT NULL DEFAULT 'infinity';
      ALTER TABLE ${table} ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON ${table} USING (now() < until)`;

    test('a policy that depends on time', async (t) => {
      const made = await make(t, { ddl: timed });
      await db.exec(`UPDATE ${made.table} SET until = now() + interval '1500 ms' WHERE id <= 2`);
      await made.compare();
      const end = performance.now() + 1500;
      assert.equal(made.s.rows().length, 6);
      await until(() => made.s.state === 'ready' && made.s.rows().length === 4, 'gone', 1500 + INTERVAL + BOUND);
      t.diagnostic(`gone ${Math.round(performance.now() - end)} ms after the time`);
      assert.deepEqual(made.s.resyncs, ['recheck']);
      await made.compare();
    });

    test('nobody is disturbed while nothing changes by itself, whatever is written', async (t) => {
      const made = await make(t, { ddl: timed });
      const writer = new Session();
      t.after(() => writer.close());
      const stop = performance.now() + 5 * INTERVAL;
      let written = 0;
      for (let i = 0; performance.now() < stop; i += 1) {
        const a = i % 7 + 1;
        await writer.exec(`BEGIN; UPDATE ${made.table} SET secret = 'x${i}', until = CASE WHEN id % 3 = ${i % 3} THEN '-infinity'::timestamptz ELSE 'infinity' END WHERE id % 5 = ${i % 5};
          DELETE FROM ${made.table} WHERE id = ${100 + a}; INSERT INTO ${made.table} (id, owner) VALUES (${100 + a}, 'u${i}'); COMMIT`);
        written += 1;
      }
      await made.compare();
      t.diagnostic(`${written} transactions, ${made.s.changes} changes`);
      assert.ok(made.s.changes > 100);
      assert.deepEqual(made.s.resyncs, []);
    });

    test('a row that was changed while it was hidden', async (t) => {
      // Hidden and visible again by time alone: only the values differ.
      const made = await make(t, { ddl: (table) => `CREATE UNLOGGED TABLE rev.switch (open bool); INSERT INTO rev.switch VALUES (true); GRANT SELECT ON rev.switch TO rev_web;
        ALTER TABLE ${table} ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON ${table} USING ((SELECT open FROM rev.switch))` });
      await db.exec('UPDATE rev.switch SET open = false');
      await db.exec(`UPDATE ${made.table} SET secret = 'hidden change'`);
      await made.client.sync();
      await db.exec('UPDATE rev.switch SET open = true');
      await until(() => made.s.state === 'ready' && made.s.rows().every((row) => row.secret === 'hidden change'), 'seen', INTERVAL + BOUND);
      await made.compare();
      assert.equal(made.seen.filter((text) => text.includes('hidden change')).length, 0);
    });

    test('a function of which nobody knows what it reads', async (t) => {
      const made = await make(t, { ddl: (table) => `CREATE TABLE rev.members4 (uid text PRIMARY KEY); INSERT INTO rev.members4 VALUES ('u1');
        CREATE FUNCTION rev.undeclared() RETURNS bool LANGUAGE plpgsql STABLE SECURITY DEFINER AS $$
          BEGIN RETURN EXISTS (SELECT FROM rev.members4 WHERE uid = ${SUB}); END $$;
        ALTER TABLE ${table} ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON ${table} USING (rev.undeclared())` });
      await db.exec('DELETE FROM rev.members4');
      await until(() => empty(made.s), 'lost', INTERVAL + BOUND);
      await db.exec("INSERT INTO rev.members4 VALUES ('u1')");
      await until(() => made.s.state === 'ready' && made.s.rows().length === 6, 'gained', INTERVAL + PATIENCE);
      assert.deepEqual(made.s.resyncs, ['recheck', 'recheck']);
    });

    test('a join_check that depends on time', async (t) => {
      const made = await make(t);
      const start = performance.now();
      await db.exec(`SELECT changefeed.create_channel('rev_timed', '${made.table}', join_check => format('now() < %L', now() + interval '3 s'))`);
      const s = await made.client.openSoon('rev_timed');
      await until(() => s.state === 'ended', 'ended', 3000 + INTERVAL + BOUND);
      assert.ok(ms(start) >= 2900, 'not before the time');
      assert.equal(s.revoked.reason, 'permission_denied');
      assert.equal(made.s.state, 'ready');
    });

    test('whoever comes back gets a snapshot: time has gone on', async (t) => {
      const made = await make(t, { ddl: timed });
      await made.client.sync();
      const from = made.s.position;
      await made.client.cut();
      const again = await Client.connect({ token: made.client.token });
      t.after(() => again.cut());
      const s = await again.open(made.s.name, { from, cache: made.s });
      assert.equal(s.recovered, false);
      assert.equal(s.rows().length, 6);
    });

    test('a client without snapshot holds a row no longer than that', async (t) => {
      const made = await make(t, { ddl: timed });
      const other = await Client.connect({ token: made.client.token });
      t.after(() => other.cut());
      const s = await other.open(made.s.name, { snapshot: false });
      await db.exec(`UPDATE ${made.table} SET secret = 'x', until = now() + interval '100 ms' WHERE id = 1`);
      await until(() => s.changes > 0, 'changed', PATIENCE);
      await until(() => s.state === 'ready' && s.rows().length === 0, 'gone', 100 + INTERVAL + BOUND);
      await db.exec(`UPDATE ${made.table} SET secret = 'y' WHERE id = 2`);
      await until(() => s.rows().some((row) => row.secret === 'y'), 'goes on', PATIENCE);
      other.check();
    });
    test('nothing is looked at when it is turned off, and everything again when it is on', async (t) => {
      const made = await make(t, { ddl: timed });
      t.after(() => db.exec(`ALTER SYSTEM SET changefeed.recheck_interval = '${INTERVAL}ms'; SELECT pg_reload_conf()`));
      await db.exec('ALTER SYSTEM SET changefeed.recheck_interval = 0; SELECT pg_reload_conf()');
      await until(async () => await db.value('SHOW changefeed.recheck_interval') === '0', 'off');
      await db.exec(`UPDATE ${made.table} SET until = now() + interval '300 ms' WHERE id = 1`);
      await new Promise((resolve) => { setTimeout(resolve, 3 * INTERVAL); });
      assert.equal(made.s.rows().length, 6);
      assert.deepEqual(made.s.resyncs, []);
      await db.exec(`ALTER SYSTEM SET changefeed.recheck_interval = '${INTERVAL}ms'; SELECT pg_reload_conf()`);
      await until(() => made.s.state === 'ready' && made.s.rows().length === 5, 'gone', PATIENCE);
    });
    test('a slow client that was sent things twice', async (t) => {
      const made = await make(t, { ddl: timed });
      made.client.socket.pause();
      for (let i = 0; i < 40; i += 1) await db.exec(`UPDATE ${made.table} SET secret = repeat('${i}-', 20000)`);
      made.client.socket.resume();
      await made.compare();
      await new Promise((resolve) => { setTimeout(resolve, 3 * INTERVAL); });
      await made.compare();
    });
  });

  describe('tokens', () => {
    test('expiry, and a token in time', async (t) => {
      const made = await make(t);
      const token = await db.token(made.identity, '2 seconds');
      const short = await Client.connect({ token });
      const kept = await Client.connect({ token });
      t.after(() => kept.cut());
      const s = await short.open(made.s.name);
      const k = await kept.open(made.s.name);
      await kept.request('token', { token: await db.token(made.identity) });
      const { code } = await within(5000, short.ended, 'closed');
      assert.equal(code, 4004);
      assert.equal(s.revoked.reason, 'token_expired');
      assert.equal(s.revoked.code, '28000');
      assert.equal(short.messages.at(-1).code, '28000');
      await db.exec(`UPDATE ${made.table} SET secret = 'later'`);
      await kept.settle();
      kept.check();
      assert.equal(k.rows()[0].secret, 'later');
      assert.deepEqual(k.resyncs, []);
    });

    const aged = (claims, seconds = 10) => db.token({ ...claims, iat: Math.floor(Date.now() / 1000) - seconds });
    const fresh = (claims) => db.token({ ...claims, iat: Math.floor(Date.now() / 1000) + 2 });

    async function revoked(t, made, client, call) {
      const s = client.subscriptions.get(made.s.name) ?? await client.open(made.s.name);
      const seen = [];
      s.onChange = (change) => seen.push(change);
      // A change in the same transaction, and those behind it, are not sent.
      await db.exec(`BEGIN; UPDATE ${made.table} SET secret = 'with the loss'; SELECT changefeed.revoke(${call}); COMMIT`);
      const start = performance.now();
      await db.exec(`UPDATE ${made.table} SET secret = 'after the loss'`);
      const { code } = await within(BOUND, client.ended, 'closed');
      t.diagnostic(`closed after ${ms(start)} ms`);
      assert.equal(code, 4003);
      assert.equal(s.revoked?.reason, 'revoked');
      assert.equal(client.messages.at(-1).code, '28000');
      assert.equal(seen.length, 0);
      client.check();
    }

    test('revoke(claim), and a younger token', async (t) => {
      const made = await make(t);
      const mine = { ...made.identity, sub: 'revoked' };
      const old = await aged(mine);
      const client = await Client.connect({ token: old });
      const other = await Client.connect({ token: await aged({ ...made.identity, sub: 'other' }) });
      t.after(() => other.cut());
      await other.open(made.s.name);
      await revoked(t, made, client, "claim => 'sub', value => 'revoked'");
      await assert.rejects(Client.connect({ token: old }), { code: '28000', message: /revoked/ });
      await other.settle();
      assert.equal(other.closed, null);

      const again = await Client.connect({ token: await fresh(mine) });
      t.after(() => again.cut());
      const s = await again.open(made.s.name);
      await db.exec(`UPDATE ${made.table} SET secret = 'for all'`);
      await again.settle();
      assert.equal(s.rows()[0].secret, 'for all');
      await assert.rejects(again.request('token', { token: old }), { code: '28000' });
      await again.settle();
      assert.equal(again.closed, null, 'a refused token costs nothing');
    });
    test('revoke(claim) of a number, and one that is not part of the identity', async (t) => {
      const made = await make(t);
      for (const [claims, call] of [
        [{ tenant: 42 }, "claim => 'tenant', value => '42'"],
        [{ session_id: 'login-7' }, "claim => 'session_id', value => 'login-7'"],
        [{ jti: 'j1' }, "claim => 'jti', value => 'j1'"],
      ]) {
        const token = await aged({ ...made.identity, ...claims });
        const other = await Client.connect({ token: await aged(made.identity) });
        await other.open(made.s.name);
        await revoked(t, made, await Client.connect({ token }), call);
        await assert.rejects(Client.connect({ token }), { code: '28000' });
        await other.settle();
        assert.equal(other.closed, null, 'the same identity with another token');
        await other.cut();
      }
    });
    test('revoke(role), and tokens without iat', async (t) => {
      await db.exec("CREATE ROLE rev_role; GRANT USAGE ON SCHEMA rev TO rev_role; SELECT changefeed.allow_role('rev_role')");
      const made = await make(t, { ddl: (table) => `GRANT SELECT ON ${table} TO rev_role` });
      const identity = { role: 'rev_role', sub: 'u1' };
      const eternal = await db.token({ ...identity, iat: null });
      await revoked(t, made, await Client.connectSoon({ token: eternal }), "role => 'rev_role'");
      await assert.rejects(Client.connect({ token: eternal }), { code: '28000' });
      await made.client.settle();
      assert.equal(made.client.closed, null, 'another role');
      await (await Client.connect({ token: await fresh(identity) })).cut();
    });
    test('revoke(session) ends that connection only', async (t) => {
      const made = await make(t);
      const token = await aged(made.identity);
      const client = await Client.connect({ token });
      await revoked(t, made, client, `session => '${client.connected.session}'`);
      const again = await Client.connect({ token });
      t.after(() => again.cut());
      await again.open(made.s.name);
      await made.client.settle();
      assert.equal(made.client.closed, null);
    });
    test('who comes back over a revocation of others resumes', async (t) => {
      const made = await make(t);
      await made.client.sync();
      const from = made.s.position;
      await made.client.cut();
      await db.exec(`SELECT changefeed.revoke(claim => 'sub', value => 'somebody else'); UPDATE ${made.table} SET secret = 'missed'`);
      const again = await Client.connect({ token: made.client.token });
      t.after(() => again.cut());
      const s = await again.open(made.s.name, { from, cache: made.s });
      assert.equal(s.recovered, true);
      await again.settle();
      assert.ok(s.rows().every((row) => row.secret === 'missed'));
    });
    test('what is rolled back revokes nothing', async (t) => {
      const made = await make(t);
      await db.exec(`BEGIN; SELECT changefeed.revoke(claim => 'sub', value => 'u1'); ROLLBACK; UPDATE ${made.table} SET secret = 'x'`);
      await made.compare();
      assert.equal(made.client.closed, null);
    });
    test('a revocation holds over a restart, and ends', async (t) => {
      const made = await make(t);
      const [kept, short] = [await aged({ ...made.identity, sub: 'kept' }), await aged({ ...made.identity, sub: 'short' })];
      await db.exec("SELECT changefeed.revoke(claim => 'sub', value => 'kept'), changefeed.revoke(claim => 'sub', value => 'short', keep => '3 seconds')");
      const generation = await db.value('SELECT generation FROM changefeed.stat_feed');
      await db.exec('SELECT pg_terminate_backend(feed_worker_pid) FROM changefeed.stat_feed');
      await until(async () => await db.value(`SELECT state = 'running' AND port IS NOT NULL AND generation > ${generation} FROM changefeed.stat_feed`) === 't', 'restarted');
      await assert.rejects(until(() => Client.connect({ token: kept }).catch((error) => { if (error.code) throw error; }), 'answer'), { code: '28000' });
      await until(() => Client.connect({ token: short }).then((client) => client.cut(), (error) => {
        assert.equal(error.code, '28000');
      }), 'accepted again', 10000);
      await assert.rejects(Client.connect({ token: kept }), { code: '28000' });
      // The next revocation takes away what has ended.
      await db.exec("SELECT changefeed.revoke(claim => 'sub', value => 'nobody')");
      assert.equal(await db.value("SELECT count(*) FROM changefeed.revocation WHERE value = 'short'"), '0');
    });
  });
});
