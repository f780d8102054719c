// Definitions that change under subscriptions: every cache stays what SELECT
// shows, and nobody is disturbed without a reason.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';

import { assertSame, Client, until } from './lib/client.mjs';
import { LOG, memoryOf } from './lib/log.mjs';
import { Session } from './lib/psql.mjs';

const SUB = "current_setting('request.jwt.claims', true)::json->>'sub'";

const ADA = { role: 'st_web', sub: 'ada' };
const BOB = { role: 'st_staff', sub: 'bob' };

describe('structure', () => {
  let db;
  let ada;
  let bob;
  let serial = 0;

  before(async () => {
    db = new Session();
    await db.exec(`CREATE SCHEMA st; CREATE ROLE st_web; CREATE ROLE st_staff; CREATE ROLE st_other; CREATE ROLE st_owner;
      GRANT USAGE ON SCHEMA st TO st_web, st_staff; GRANT CREATE ON SCHEMA st TO st_owner;
      ALTER DEFAULT PRIVILEGES IN SCHEMA st GRANT SELECT ON TABLES TO st_web, st_staff;
      SELECT changefeed.allow_role('st_web'); SELECT changefeed.allow_role('st_staff')`);
    ada = await Client.connectSoon({ token: await db.token(ADA) });
    bob = await Client.connectSoon({ token: await db.token(BOB) });
  });

  after(async () => {
    await ada?.cut();
    await bob?.cut();
    await db?.close();
  });

  /** A table with three rows and its channel; ada's and bob's subscriptions. */
  async function table(name, { columns = 'id int PRIMARY KEY, v text, n int', rows = "(1, 'a', 1), (2, 'b', 2), (3, 'c', 3)", setup = '', channel = name, args = '', open = channel, where = 'true', options } = {}) {
    await db.exec(`CREATE TABLE st.${name} (${columns}); ${rows ? `INSERT INTO st.${name} VALUES ${rows};` : ''} ${setup};
      SELECT changefeed.create_channel('${channel}', 'st.${name}'${args})`);
    if (ada.violation) ada = await Client.connect({ token: ada.token });
    if (bob.violation) bob = await Client.connect({ token: bob.token });
    const t = { select: `SELECT * FROM st.${name} WHERE ${where}`, loose: false };
    t.ada = await ada.openSoon(open, options);
    t.bob = await bob.openSoon(open, options);
    return t;
  }

  /** A change, and names with another meaning: both are committed before the feed worker delivers the change, and it is told of the change only. */
  async function renameBehind(change, rename) {
    const [feed, decoder] = (await db.value("SELECT feed_worker_pid || ' ' || decoder_pid FROM changefeed.stat_feed")).split(' ').map(Number);
    process.kill(feed, 'SIGSTOP');
    try {
      await db.exec(change);
      const lsn = await db.value('SELECT pg_current_wal_lsn()');
      await until(async () => await db.value(`SELECT decoded_lsn >= '${lsn}' FROM changefeed.stat_feed`) === 't', 'decoded');
      process.kill(decoder, 'SIGSTOP');
      await db.exec(rename);
      process.kill(feed, 'SIGCONT');
      await until(async () => await db.value(`SELECT published_lsn >= '${lsn}'::pg_lsn - 64 FROM changefeed.stat_feed`) === 't', 'published');
    } finally {
      process.kill(feed, 'SIGCONT');
      process.kill(decoder, 'SIGCONT');
    }
  }

  const settled = () => Promise.all([ada.settle(), bob.settle()]);

  async function same(t, what) {
    await settled();
    ada.check();
    bob.check();
    if (t.ada.state === 'ready') assertSame(t.ada.rows(), await db.rowsAs(ADA, t.selectAda ?? t.select), `${what}: ada`);
    if (t.bob.state === 'ready') assertSame(t.bob.rows(), await db.rowsAs(BOB, t.selectBob ?? t.select), `${what}: bob`);
  }

  /** Runs `sql`; the caches are right, and these are the reasons of resyncs. */
  async function step(t, sql, reasons = [], reasonsBob = reasons) {
    const from = [t.ada.resyncs.length, t.bob.resyncs.length];
    await db.exec(sql);
    await same(t, sql);
    assert.deepEqual(t.ada.resyncs.slice(from[0]), reasons, `ada: ${sql}`);
    assert.deepEqual(t.bob.resyncs.slice(from[1]), reasonsBob, `bob: ${sql}`);
  }

  /**
   * Runs `body` while two sessions write to the table; their statements may
   * fail. They have written before it begins, and write behind it.
   */
  async function busy(name, body) {
    let stopped = false;
    const write = async (statements) => {
      const session = new Session();
      const state = { count: 0 };
      state.run = (async () => {
        for (let i = 0; !stopped; i += 1) {
          serial += 1;
          await session.exec(statements[i % statements.length].replaceAll('$i', serial)).then(() => { state.count += 1; }, () => session.exec('ROLLBACK').catch(() => {}));
        }
        await session.close();
      })();
      await until(() => state.count > 1, 'written');
      return state;
    };
    const writers = await Promise.all([
      write([`INSERT INTO st.${name} (id, v, n) VALUES (1000 + $i, 'w', 1)`, `UPDATE st.${name} SET v = v || '+', n = n + 1 WHERE id % 5 = $i % 5 AND length(v) < 9`,
        `DELETE FROM st.${name} WHERE id % 3 = $i % 3 AND id > 1000`]),
      write([`UPDATE st.${name} SET id = id + 100000 WHERE id IN (SELECT max(id) FROM st.${name} WHERE id BETWEEN 1000 AND 100000)`, `BEGIN; UPDATE st.${name} SET n = -1 WHERE id = 1; UPDATE st.${name} SET n = $i WHERE id = 1; COMMIT`,
        `INSERT INTO st.${name} (id, v, n) VALUES (500000 + $i, 'x', NULL)`]),
    ]);
    try {
      await body();
      const counts = writers.map(({ count }) => count);
      await until(() => writers.every(({ count }, i) => count > counts[i] + 1), 'written behind it');
    } finally {
      stopped = true;
      await Promise.all(writers.map(({ run }) => run));
    }
  }

  /** The same as `step`, with writers. */
  async function busyStep(t, name, sql, reasons = [], reasonsBob = reasons) {
    const from = [t.ada.resyncs.length, t.bob.resyncs.length];
    await busy(name, () => db.exec(sql));
    await same(t, sql);
    assert.deepEqual(t.ada.resyncs.slice(from[0]), reasons, `ada: ${sql}`);
    assert.deepEqual(t.bob.resyncs.slice(from[1]), reasonsBob, `bob: ${sql}`);
  }

  describe('what no client can see disturbs nobody', () => {
    let t;
    before(async () => {
      t = await table('quiet', { columns: 'id int PRIMARY KEY, v text, n int, g int GENERATED ALWAYS AS (id * 2) STORED', rows: '',
        setup: `INSERT INTO st.quiet (id, v, n) VALUES (1, 'a', 1), (2, 'b', 2); CREATE TABLE st.unrelated (x int)` });
    });

    for (const sql of [
      'ANALYZE st.quiet', 'VACUUM st.quiet', 'VACUUM FULL st.quiet', 'CLUSTER st.quiet USING quiet_pkey', 'REINDEX TABLE st.quiet',
      'CREATE INDEX quiet_v ON st.quiet (v)', 'DROP INDEX st.quiet_v',
      "COMMENT ON TABLE st.quiet IS 'c'", "COMMENT ON COLUMN st.quiet.v IS 'c'",
      'ALTER TABLE st.quiet ALTER COLUMN v SET STATISTICS 10', 'ALTER TABLE st.quiet ALTER COLUMN v SET STORAGE EXTERNAL',
      'ALTER TABLE st.quiet SET (fillfactor = 70)', "ALTER TABLE st.quiet ALTER COLUMN n SET DEFAULT 5", 'ALTER TABLE st.quiet ALTER COLUMN n DROP DEFAULT',
      'ALTER TABLE st.quiet ALTER COLUMN v SET NOT NULL', 'ALTER TABLE st.quiet ALTER COLUMN v DROP NOT NULL',
      'ALTER TABLE st.quiet ADD CONSTRAINT positive CHECK (id > 0)', 'ALTER TABLE st.quiet RENAME CONSTRAINT positive TO above',
      `CREATE FUNCTION st.nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'`,
      'CREATE TRIGGER t BEFORE UPDATE ON st.quiet FOR EACH ROW EXECUTE FUNCTION st.nothing()', 'DROP TRIGGER t ON st.quiet',
      'ALTER TABLE st.quiet ALTER COLUMN g DROP EXPRESSION',
      'GRANT INSERT ON st.quiet TO st_web', 'GRANT SELECT ON st.quiet TO st_other', 'REVOKE SELECT ON st.quiet FROM st_other', 'GRANT SELECT (v) ON st.quiet TO st_web',
      'CREATE POLICY p ON st.quiet TO st_other USING (false)', 'DROP POLICY p ON st.quiet',
      'ALTER TABLE st.quiet OWNER TO st_owner', 'CREATE SCHEMA st_unrelated', 'GRANT USAGE ON SCHEMA st TO st_other',
      "CREATE TYPE st.mood AS ENUM ('sad')", "ALTER TYPE st.mood ADD VALUE 'happy'", 'CREATE TABLE st.unrelated2 (x int)', 'DROP TABLE st.unrelated2',
      'BEGIN; ALTER TABLE st.quiet RENAME TO quiet2; ALTER TABLE st.quiet2 RENAME TO quiet; COMMIT',
    ]) {
      test(sql, async () => {
        await busyStep(t, 'quiet', sql);
      });
    }

    test('another name and another schema', async () => {
      await step(t, 'CREATE SCHEMA st2; GRANT USAGE ON SCHEMA st2 TO st_web, st_staff');
      t.select = 'SELECT * FROM st.renamed';
      await step(t, "ALTER TABLE st.quiet RENAME TO renamed; UPDATE st.renamed SET v = 'q' WHERE id = 2");
      t.select = 'SELECT * FROM st2.renamed';
      await step(t, "ALTER TABLE st.renamed SET SCHEMA st2; UPDATE st2.renamed SET v = 'r' WHERE id = 2");
      t.select = 'SELECT * FROM st3.renamed';
      await step(t, "ALTER SCHEMA st2 RENAME TO st3; UPDATE st3.renamed SET v = 's' WHERE id = 2");
    });
  });

  describe('only those whom it concerns', () => {
    test('GRANT and REVOKE of columns and of the table', async () => {
      const t = await table('granted');
      t.selectBob = 'SELECT id, v FROM st.granted';
      await busyStep(t, 'granted', 'BEGIN; REVOKE SELECT ON st.granted FROM st_staff; GRANT SELECT (id, v) ON st.granted TO st_staff; COMMIT', [], ['privileges_changed']);
      delete t.selectBob;
      await busyStep(t, 'granted', 'GRANT SELECT ON st.granted TO st_staff', [], ['privileges_changed']);
      await step(t, 'REVOKE SELECT ON st.granted FROM st_staff', [], []);
      assert.equal(t.bob.revoked?.reason, 'permission_denied');
      await step(t, 'INSERT INTO st.granted VALUES (7)');
    });

    test('nothing committed behind a REVOKE is sent', async () => {
      const t = await table('secret');
      for (let i = 0; i < 10; i += 1) {
        let leaked = false;
        t.bob.onChange = (change, frame, row) => { if (row?.v === `secret${i}`) leaked = true; };
        await db.exec(`REVOKE SELECT ON st.secret FROM st_staff; UPDATE st.secret SET v = 'secret${i}' WHERE id = 1; UPDATE st.secret SET v = 'open' WHERE id = 1`);
        await until(() => t.bob.state === 'ended', 'revoked');
        assert.equal(leaked, false);
        await db.exec('GRANT SELECT ON st.secret TO st_staff');
        t.bob = await until(() => bob.open('secret').catch((error) => { if (error.code !== '42501') throw error; }), 'granted');
      }
      // When the feed worker gets to see a REVOKE, the GRANT may have been committed, too: then it is not clear whom they concern
      await settled();
      await step(t, "UPDATE st.secret SET v = 'end'");
    });

    test('nothing committed between a REVOKE and a GRANT is sent', async () => {
      const t = await table('between');
      let leaked = null;
      for (let i = 0; i < 5; i += 1) {
        t.bob.onChange = (change, frame, row) => { if (/^secret/.test(row?.v)) leaked = row.v; };
        const quiet = t.ada.resyncs.length;
        // When the feed worker gets to see the first of them, all have happened.
        const pid = Number(await db.value('SELECT feed_worker_pid FROM changefeed.stat_feed'));
        process.kill(pid, 'SIGSTOP');
        try {
          await db.exec(`REVOKE SELECT ON st.between FROM st_staff; UPDATE st.between SET v = 'secret${i}' WHERE id = 1; UPDATE st.between SET v = 'open' WHERE id = 1; GRANT SELECT ON st.between TO st_staff; UPDATE st.between SET v = 'open${i}' WHERE id = 2`);
        } finally {
          process.kill(pid, 'SIGCONT');
        }
        await settled();
        assert.equal(leaked, null);
        for (const reason of t.ada.resyncs.slice(quiet)) assert.equal(reason, 'privileges_changed');
        if (t.bob.state === 'ended') t.bob = await bob.open('between');
        await same(t, i);
      }
      assert.ok(t.bob.resyncs.length > 0 || bob.subscriptionsEnded.length > 0);
    });

    test('policies for one role', async () => {
      const t = await table('ruled', { setup: 'ALTER TABLE st.ruled ENABLE ROW LEVEL SECURITY; CREATE POLICY w ON st.ruled TO st_web USING (n > 1); CREATE POLICY s ON st.ruled TO st_staff USING (n < 3)' });
      await busyStep(t, 'ruled', 'ALTER POLICY s ON st.ruled USING (n < 2)', [], ['policy_changed']);
      await busyStep(t, 'ruled', 'CREATE POLICY o ON st.ruled TO st_other USING (true)');
      await busyStep(t, 'ruled', 'CREATE POLICY u ON st.ruled FOR UPDATE TO st_web USING (true)');
      await step(t, 'ALTER POLICY w ON st.ruled USING (n > 2)', ['policy_changed'], []);
      await step(t, 'DROP POLICY s ON st.ruled', [], ['policy_changed']);
      await step(t, 'ALTER TABLE st.ruled DISABLE ROW LEVEL SECURITY', ['policy_changed']);
      await step(t, 'ALTER TABLE st.ruled ENABLE ROW LEVEL SECURITY', ['policy_changed']);
      await step(t, 'ALTER TABLE st.ruled FORCE ROW LEVEL SECURITY');
    });

    test('functions of policies', async () => {
      await db.exec(`CREATE FUNCTION st.may(n int) RETURNS boolean STABLE LANGUAGE plpgsql AS 'BEGIN RETURN n > 1; END'`);
      const t = await table('functional', { setup: 'ALTER TABLE st.functional ENABLE ROW LEVEL SECURITY; CREATE POLICY w ON st.functional TO st_web USING (st.may(n)); CREATE POLICY s ON st.functional TO st_staff USING (n > 0)' });
      await step(t, `CREATE OR REPLACE FUNCTION st.may(n int) RETURNS boolean STABLE LANGUAGE plpgsql AS 'BEGIN RETURN n < 2; END'`, ['policy_changed'], []);
      for (let i = 0; i < 5; i += 1) {
        await step(t, `CREATE FUNCTION st.other${i}() RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE FUNCTION st.others${i}() RETURNS int LANGUAGE sql AS 'SELECT 1'; UPDATE st.functional SET n = n + 1`);
      }
    });

    test('a resume that crosses the definition of another channel gets no snapshot', async () => {
      const t = await table('resumed');
      await settled();
      const { position } = await bob.sync();
      const cache = { entities: t.bob.entities };
      await bob.unsubscribe('resumed');
      await db.exec("CREATE TABLE st.another (id int PRIMARY KEY); SELECT changefeed.create_channel('another', 'st.another'); CREATE FUNCTION st.f1() RETURNS int LANGUAGE sql AS 'SELECT 1'; UPDATE st.resumed SET v = 'missed'; GRANT SELECT ON st.another TO st_other");
      await ada.settle();
      const s = await bob.open('resumed', { from: position, cache });
      assert.equal(s.recovered, true);
      t.bob = s;
      await same(t, 'resumed');
    });
  });

  describe('ADD COLUMN', () => {
    const cases = {
      'a default': ['ALTER TABLE st.@ ADD COLUMN c int DEFAULT 5'],
      null: ['ALTER TABLE st.@ ADD COLUMN c text'],
      'several, and names to be quoted': [`ALTER TABLE st.@ ADD COLUMN "C ""1""" jsonb DEFAULT '{"a": [1, "}"]}', ADD COLUMN d numeric DEFAULT 1.50, ADD COLUMN e timestamptz DEFAULT now()`],
      'with changes in the same transaction': ["BEGIN; LOCK TABLE st.@ IN ACCESS EXCLUSIVE MODE; UPDATE st.@ SET v = 'before' WHERE id = 1; DELETE FROM st.@ WHERE id = 2; ALTER TABLE st.@ ADD COLUMN c int DEFAULT 5; UPDATE st.@ SET n = n + 1 WHERE id IN (1, 3); INSERT INTO st.@ (id, v, n, c) VALUES (40, 'new', 2, 6); UPDATE st.@ SET id = 50 WHERE id = 4; COMMIT"],
      'filled in the same transaction': ['BEGIN; ALTER TABLE st.@ ADD COLUMN c int; UPDATE st.@ SET c = n; COMMIT'],
      'NOT NULL, with a default': ["ALTER TABLE st.@ ADD COLUMN c text NOT NULL DEFAULT 'x'"],
    };
    const shapes = {
      plain: { columns: 'id int PRIMARY KEY, v text, n int' },
      template: { columns: 'id int PRIMARY KEY, v text, n int, room int DEFAULT 1', channel: '@:{room}', open: '@:1', where: 'room = 1', setup: "INSERT INTO st.@ VALUES (90, 'elsewhere', 2, 2)" },
      filter: { columns: 'id int PRIMARY KEY, v text, n int', args: ", filter => 'n > 1'", where: 'n > 1' },
      policies: { columns: 'id int PRIMARY KEY, v text, n int', setup: 'ALTER TABLE st.@ ENABLE ROW LEVEL SECURITY; CREATE POLICY w ON st.@ TO st_web USING (n > 1); CREATE POLICY s ON st.@ TO st_staff USING (n < 4 AND id IN (SELECT id FROM st.@_members)); ', before: 'CREATE TABLE st.@_members (id int PRIMARY KEY); INSERT INTO st.@_members VALUES (1), (2), (3), (4), (40), (50), (1001)' },
      'key of two texts': { columns: 'id int, v text, n int, k text DEFAULT E\'\\\\\\\\"{},[\', PRIMARY KEY (k, id)', args: ", key => '{id,k}'" },
      partitions: { columns: 'id int PRIMARY KEY, v text, n int) PARTITION BY RANGE (id', before: '', rows: '', setup: 'CREATE TABLE st.@_1 PARTITION OF st.@ FOR VALUES FROM (0) TO (500); CREATE TABLE st.@_2 (n int, junk int, v text, id int NOT NULL); ALTER TABLE st.@_2 DROP COLUMN junk; ALTER TABLE st.@ ATTACH PARTITION st.@_2 FOR VALUES FROM (500) TO (10000000); INSERT INTO st.@ VALUES (1, \'a\', 1), (2, \'b\', 2), (3, \'c\', 3), (4, \'d\', 4)' },
    };
    let number = 0;

    for (const [shape, { before: first = '', ...definition }] of Object.entries(shapes)) {
      for (const [what, [sql]] of Object.entries(cases)) {
        for (const writing of shape === 'plain' ? [false, true] : [true]) {
          test(`${what}; ${shape}${writing ? ', under writers' : ''}`, async () => {
            const name = `added${++number}`;
            const own = (text) => text.replaceAll('@', name);
            if (first) await db.exec(own(first));
            const t = await table(name, { rows: "(1, 'a', 1), (2, 'b', 2), (3, 'c', 3), (4, 'd', 4)",
              ...Object.fromEntries(Object.entries(definition).map(([key, text]) => [key, own(text)])) });
            await (writing ? busyStep(t, name, own(sql)) : step(t, own(sql)));
            assert.equal(t.ada.columnMessages, 1);
            assert.equal(t.bob.columnMessages, 1);
            await step(t, own("UPDATE st.@ SET v = 'end' WHERE id = 3; DELETE FROM st.@ WHERE id = 1; INSERT INTO st.@ (id, v, n) VALUES (1, 'again', 3)"));
            await ada.unsubscribe(t.ada.name);
            await bob.unsubscribe(t.bob.name);
          });
        }
      }
    }

    for (const [what, first] of Object.entries({
      inserted: "INSERT INTO st.@ (id, v, n) VALUES (40, 'new', 2)",
      updated: "UPDATE st.@ SET v = 'before' WHERE id = 1",
      replaced: "DELETE FROM st.@ WHERE id = 2; INSERT INTO st.@ (id, v, n) VALUES (2, 'again', 2)",
    })) {
      test(`rows ${what} before it in the same transaction do not have it`, async () => {
        const name = `earlier_${what}`;
        const t = await table(name);
        await step(t, `BEGIN; ${first.replaceAll('@', name)}; ALTER TABLE st.${name} ADD COLUMN c text DEFAULT 'five', ADD COLUMN d int; COMMIT`, ['schema_changed']);
        await step(t, `UPDATE st.${name} SET d = 1; INSERT INTO st.${name} (id) VALUES (90)`);
      });
    }

    test('rows are followed through a transaction that alters the table', async () => {
      const t = await table('followed');
      let id = 40;
      for (const alter of ['ADD COLUMN c text DEFAULT \'five\'', 'RENAME TO followed_too', 'RENAME TO followed', 'ADD COLUMN d int']) {
        const name = alter === 'RENAME TO followed_too' ? 'followed_too' : 'followed';
        const before = alter === 'RENAME TO followed' ? 'followed_too' : 'followed';
        t.select = `SELECT * FROM st.${name}`;
        await step(t, `BEGIN; INSERT INTO st.${before} (id, v, n) VALUES (${id += 1}, 'gone', 2), (${id += 1}, 'changed', 2), (${id += 1}, 'moved', 2);
          DELETE FROM st.${before} WHERE id = 1; INSERT INTO st.${before} (id, v, n) VALUES (1, 'again', 2); ALTER TABLE st.${before} ${alter};
          DELETE FROM st.${name} WHERE id = ${id - 2}; UPDATE st.${name} SET n = 3 WHERE id IN (1, ${id - 1}); UPDATE st.${name} SET id = id + 100 WHERE id = ${id}; COMMIT`);
      }
    });

    test('one that nobody may read, or that is not published', async () => {
      const t = await table('hidden', { setup: 'REVOKE SELECT ON st.hidden FROM st_staff; GRANT SELECT (id, v) ON st.hidden TO st_staff', args: ", columns => '{id,v,n}'" });
      t.select = 'SELECT id, v, n FROM st.hidden';
      t.selectBob = 'SELECT id, v FROM st.hidden';
      await busyStep(t, 'hidden', 'ALTER TABLE st.hidden ADD COLUMN c int DEFAULT 5; UPDATE st.hidden SET c = 6 WHERE id = 2');
      assert.equal(t.ada.columnMessages, undefined);
      await step(t, 'ALTER TABLE st.hidden DROP COLUMN c; UPDATE st.hidden SET n = 6 WHERE id = 2');
    });

    test('a volatile default rewrites the table', async () => {
      const t = await table('volatile');
      await step(t, 'ALTER TABLE st.volatile ADD COLUMN c float DEFAULT random()', ['table_rewritten']);
      await step(t, 'ALTER TABLE st.volatile ADD COLUMN d int GENERATED ALWAYS AS (n + 1) STORED', ['table_rewritten']);
      await step(t, 'ALTER TABLE st.volatile ADD COLUMN e int GENERATED ALWAYS AS IDENTITY', ['table_rewritten']);
      await step(t, 'UPDATE st.volatile SET n = 9');
    });

    test('many rows, in parts, and more rows than a transaction may have', async () => {
      const t = await table('many', { setup: "INSERT INTO st.many SELECT i, 'row', i FROM generate_series(10, 4000) i" });
      const parts = ada.parts;
      await step(t, 'ALTER TABLE st.many ADD COLUMN c int DEFAULT 5');
      assert.ok(ada.parts > parts, 'in parts');
      await db.exec("INSERT INTO st.many SELECT i, 'row', i FROM generate_series(4001, 9000) i; INSERT INTO st.many SELECT i, 'row', i FROM generate_series(9001, 14000) i;"
        + Array.from({ length: 30 }, (_, i) => `INSERT INTO st.many SELECT i, 'row', i FROM generate_series(${20000 + i * 5000}, ${24999 + i * 5000}) i`).join(';'));
      await same(t, 'filled');
      await step(t, 'ALTER TABLE st.many ADD COLUMN d int DEFAULT 5', ['columns_changed']);
    });

    test('one that a cast of users makes JSON of', async () => {
      await db.exec(`CREATE TYPE st.custom AS ENUM ('one', 'two'); CREATE FUNCTION st.custom_json(st.custom) RETURNS json IMMUTABLE LANGUAGE sql AS 'SELECT json_build_object(''x'', $1::text)';
        CREATE CAST (st.custom AS json) WITH FUNCTION st.custom_json(st.custom); GRANT USAGE ON TYPE st.custom TO PUBLIC`);
      const t = await table('cast');
      await step(t, "ALTER TABLE st.cast ADD COLUMN c st.custom DEFAULT 'one'", ['columns_changed']);
      await step(t, `CREATE OR REPLACE FUNCTION st.custom_json(st.custom) RETURNS json IMMUTABLE LANGUAGE sql AS 'SELECT json_build_object(''y'', $1::text)'`, ['type_changed']);
      await step(t, "INSERT INTO st.cast VALUES (9, 'i', 9, 'two'); UPDATE st.cast SET c = 'two' WHERE id = 1");
    });

    test('several in a row', async () => {
      const t = await table('row');
      await db.exec(Array.from({ length: 6 }, (_, i) => `ALTER TABLE st.row ADD COLUMN c${i} int DEFAULT ${i}; UPDATE st.row SET c${i} = -1 WHERE id = 2`).join(';'));
      await same(t, 'six');
      for (const reason of t.ada.resyncs) assert.equal(reason, 'columns_changed');
    });

    test('without a snapshot', async () => {
      await table('changes', { options: { snapshot: false } }).then(async (t) => {
        await db.exec('ALTER TABLE st.changes ADD COLUMN c int DEFAULT 5; UPDATE st.changes SET n = 8 WHERE id = 2');
        await settled();
        ada.check();
        assert.deepEqual(t.ada.resyncs, []);
        assertSame(t.ada.rows(), await db.rowsAs(ADA, 'SELECT * FROM st.changes WHERE id = 2'), 'changes');
      });
    });
  });

  describe('definitions that change what is shown', () => {
    test('columns renamed, retyped, dropped; values rewritten', async () => {
      const t = await table('altered', { columns: 'id int PRIMARY KEY, v text, n int, x varchar(10), m numeric(10,2) DEFAULT 1' });
      await busyStep(t, 'altered', 'ALTER TABLE st.altered RENAME COLUMN x TO y', ['columns_changed']);
      await busyStep(t, 'altered', 'ALTER TABLE st.altered ALTER COLUMN y TYPE varchar(20)');
      await busyStep(t, 'altered', 'ALTER TABLE st.altered ALTER COLUMN n TYPE bigint', ['table_rewritten']);
      await step(t, 'ALTER TABLE st.altered ALTER COLUMN n TYPE bigint USING n + 1', ['table_rewritten']);
      await step(t, 'ALTER TABLE st.altered ALTER COLUMN m TYPE numeric(10,3)', ['table_rewritten']);
      await busyStep(t, 'altered', 'ALTER TABLE st.altered DROP COLUMN y', ['columns_changed']);
      await busyStep(t, 'altered', 'ALTER TABLE st.altered ADD COLUMN y int DEFAULT 3');
      await step(t, 'ALTER TABLE st.altered SET UNLOGGED', ['table_unlogged']);
      assert.equal(t.ada.revoked?.code, '55000');
    });

    test('a type under a table: labels and attributes', async () => {
      await db.exec("CREATE TYPE st.colour AS ENUM ('red', 'green'); CREATE DOMAIN st.paint AS st.colour; CREATE TYPE st.pair AS (a int, b st.colour); CREATE TYPE st.elsewhere AS ENUM ('x')");
      const t = await table('typed', { columns: 'id int PRIMARY KEY, v text, n int, c st.paint, p st.pair, l st.colour[]', rows: "(1, 'a', 1, 'red', (1, 'red'), '{red}'), (2, 'b', 2, 'green', NULL, NULL)" });
      await busyStep(t, 'typed', "ALTER TYPE st.colour ADD VALUE 'blue'");
      await step(t, "ALTER TYPE st.elsewhere RENAME VALUE 'x' TO 'y'");
      await busyStep(t, 'typed', "ALTER TYPE st.colour RENAME VALUE 'red' TO 'rouge'", ['type_changed']);
      await step(t, "UPDATE st.typed SET c = 'blue', l = '{rouge,blue}' WHERE id = 1");
      await step(t, 'ALTER TYPE st.pair RENAME ATTRIBUTE a TO z', ['type_changed']);
      await step(t, "UPDATE st.typed SET p = (5, 'rouge') WHERE id = 2");
      await step(t, 'ALTER TYPE st.pair ADD ATTRIBUTE d int', ['type_changed']);
      await step(t, "UPDATE st.typed SET p = (5, 'rouge', 8) WHERE id = 2");
    });

    test('what the constants of filters, conditions and policies mean', async () => {
      const swap = "BEGIN; ALTER TYPE st.level RENAME VALUE 'low' TO 'x'; ALTER TYPE st.level RENAME VALUE 'high' TO 'low'; ALTER TYPE st.level RENAME VALUE 'x' TO 'high'; COMMIT";
      await db.exec(`CREATE TYPE st.level AS ENUM ('low', 'mid', 'high');
        CREATE COLLATION st.loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
        CREATE FUNCTION st.is_low(l st.level) RETURNS bool LANGUAGE sql STABLE AS $$ SELECT l = 'low' $$;
        CREATE TABLE st.judged_level (id int PRIMARY KEY, l st.level); ALTER TABLE st.judged_level ENABLE ROW LEVEL SECURITY;
        CREATE POLICY p ON st.judged_level USING (st.is_low(l)); SELECT changefeed.create_channel('judged_level', 'st.judged_level')`);
      const t = await table('constants', { columns: "id int PRIMARY KEY, v text, l st.level DEFAULT 'low'",
        rows: "(1, 'a'), (2, 'A'), (3, 'b')" });
      await db.exec("SELECT changefeed.create_channel('low', 'st.constants', filter => 'l = ''low''')");
      const of = { low: "l = 'low'", 'constants?l=eq.low': "l = 'low'", 'constants?l=neq.low': "l <> 'low'", 'constants?l=in.(mid,low)': "l IN ('mid', 'low')",
        'constants?l=gt.low': "l > 'low'", 'constants?v=eq.a': "v = 'a'", 'constants?v=neq.a': "v <> 'a'" };
      const opened = [];
      for (const [name, where] of Object.entries(of)) opened.push([await ada.openSoon(name), `SELECT * FROM st.constants WHERE ${where}`]);
      opened.push([await ada.openSoon('judged_level'), 'SELECT * FROM st.judged_level']);
      let id = 10;
      for (const sql of ['SELECT 1', swap, 'ALTER TABLE st.constants ALTER v TYPE text COLLATE st.loose', swap, 'ALTER TABLE st.constants ALTER v TYPE text COLLATE "C"']) {
        await db.exec(sql);
        for (const l of ['low', 'mid', 'high']) {
          await db.exec(`INSERT INTO st.constants VALUES (${id += 1}, 'a', '${l}'), (${id += 1}, 'A', '${l}'); INSERT INTO st.judged_level VALUES (${id}, '${l}')`);
        }
        await db.exec("UPDATE st.constants SET l = CASE l WHEN 'low' THEN 'high' WHEN 'mid' THEN 'low' ELSE 'mid' END::st.level WHERE id % 2 = 0");
        await same(t, sql);
        for (const [s, select] of opened) assertSame(s.rows(), await db.rowsAs(ADA, select), `${s.name}: ${sql}`);
      }
      for (const [s] of opened) await ada.unsubscribe(s.name);
    });

    test('columns that the channel needs', async () => {
      for (const [name, definition, sql] of [
        ['key', {}, 'ALTER TABLE st.needs_key RENAME COLUMN id TO id2'],
        ['key2', {}, 'ALTER TABLE st.needs_key2 DROP COLUMN id'],
        ['param', { channel: 'needs_param:{n}', open: 'needs_param:1', where: 'n = 1' }, 'ALTER TABLE st.needs_param RENAME COLUMN n TO n2'],
        ['param2', { channel: 'needs_param2:{n}', open: 'needs_param2:1', where: 'n = 1' }, 'ALTER TABLE st.needs_param2 DROP COLUMN n'],
        ['filter', { args: ", filter => 'n > 1', columns => '{id,v}'", where: 'n > 1' }, 'ALTER TABLE st.needs_filter RENAME COLUMN n TO n2'],
      ]) {
        const t = await table(`needs_${name}`, definition);
        await db.exec(sql);
        await until(() => t.ada.state === 'ended' && t.bob.state === 'ended', `${name}: revoked`);
        assert.equal(t.ada.revoked.code, '42703', name);
        assert.ok(t.ada.revoked.hint, `${name}: ${JSON.stringify(t.ada.revoked)}`);
      }
      await settled();
    });

    test('dropped with CASCADE and with its schema', async () => {
      await db.exec('CREATE SCHEMA st_gone; GRANT USAGE ON SCHEMA st_gone TO st_web, st_staff');
      const t = await table('going', { setup: 'CREATE VIEW st.going_view AS SELECT * FROM st.going' });
      await db.exec('ALTER TABLE st.going SET SCHEMA st_gone; DROP SCHEMA st_gone CASCADE');
      await until(() => t.ada.state === 'ended' && t.bob.state === 'ended', 'revoked');
      await settled();
    });

    test('TRUNCATE with CASCADE, foreign keys with CASCADE, keys swapped behind a deferred constraint', async () => {
      const parent = await table('parent', { columns: 'id int PRIMARY KEY, v text, n int UNIQUE DEFERRABLE INITIALLY DEFERRED' });
      const child = await table('child', { columns: 'id int PRIMARY KEY, v text, n int REFERENCES st.parent ON DELETE CASCADE ON UPDATE CASCADE', rows: "(1, 'x', 1), (2, 'y', 1), (3, 'z', 2)" });
      await step(child, 'DELETE FROM st.parent WHERE id = 2');
      await step(child, 'UPDATE st.parent SET id = 10 WHERE id = 1');
      await same(parent, 'cascaded');
      const t = await table('swap', { args: ", key => '{n}'", columns: 'id int PRIMARY KEY, v text, n int NOT NULL UNIQUE DEFERRABLE INITIALLY DEFERRED' });
      await step(t, 'BEGIN; UPDATE st.swap SET n = 2 WHERE id = 1; UPDATE st.swap SET n = 1 WHERE id = 2; COMMIT');
      await step(t, 'UPDATE st.swap SET n = n + 1');
      const from = child.ada.resyncs.length;
      await step(parent, 'TRUNCATE st.parent CASCADE', ['truncated']);
      await same(child, 'truncated');
      assert.deepEqual(child.ada.resyncs.slice(from), ['truncated']);
    });

    test('the replica identity taken away', async () => {
      const t = await table('unwhole', { channel: 'unwhole:{n}', open: 'unwhole:1', where: 'n = 1' });
      await step(t, 'ALTER TABLE st.unwhole REPLICA IDENTITY DEFAULT');
      for (const identity of ['DEFAULT', 'NOTHING']) {
        await db.exec(`ALTER TABLE st.unwhole REPLICA IDENTITY ${identity}; UPDATE st.unwhole SET n = 1 WHERE id = 2; UPDATE st.unwhole SET n = 3 WHERE id = 1; DELETE FROM st.unwhole WHERE id = 3; INSERT INTO st.unwhole VALUES (3, 'c', 1)`);
        await same(t, identity);
        for (const reason of t.ada.resyncs) assert.equal(reason, 'change_not_readable');
      }
      assert.ok(t.ada.resyncs.length > 0);
      await step(t, 'ALTER TABLE st.unwhole REPLICA IDENTITY FULL');
      await step(t, 'UPDATE st.unwhole SET n = 3 - n; DELETE FROM st.unwhole WHERE id = 3');
    });
  });

  test('inheritance: a child is a source like others, a table that gets one is no source any more', async () => {
    await db.exec('CREATE TABLE st.ancestor (id int PRIMARY KEY, v text)');
    await assert.rejects(db.exec("CREATE TABLE st.heir0 () INHERITS (st.ancestor); SELECT changefeed.create_channel('ancestor', 'st.ancestor')"), /inherit/);
    const t = await table('heir', { columns: 'PRIMARY KEY (id)) INHERITS (st.ancestor', rows: "(1, 'a'), (2, 'b')" });
    await step(t, "UPDATE st.ancestor SET v = v || '!'; INSERT INTO st.ancestor VALUES (1, 'own'); INSERT INTO st.heir0 VALUES (7, 'h')");
    await step(t, 'ALTER TABLE st.ancestor ADD COLUMN c int DEFAULT 5');
    await step(t, 'DELETE FROM st.ancestor WHERE id = 1');
    await step(t, 'TRUNCATE st.ancestor', ['truncated']);
    await step(t, 'INSERT INTO st.heir VALUES (3)');
    await db.exec('CREATE TABLE st.grandchild () INHERITS (st.heir)');
    await until(() => t.ada.state === 'ended' && t.bob.state === 'ended', 'revoked');
    assert.equal(t.ada.revoked.code, '42809');
    await settled();
  });

  describe('partitions', () => {
    const parts = (name, extra = '') => ({ columns: 'id int, v text, n int, PRIMARY KEY (id)) PARTITION BY RANGE (id', rows: '',
      setup: `CREATE TABLE st.${name}_1 PARTITION OF st.${name} FOR VALUES FROM (0) TO (500);
        CREATE TABLE st.${name}_2 (n int, junk int, v text, id int NOT NULL); ALTER TABLE st.${name}_2 DROP COLUMN junk;
        ALTER TABLE st.${name} ATTACH PARTITION st.${name}_2 FOR VALUES FROM (500) TO (100000);
        CREATE TABLE st.${name}_3 PARTITION OF st.${name} FOR VALUES FROM (100000) TO (400000) PARTITION BY LIST (id);
        CREATE TABLE st.${name}_3d PARTITION OF st.${name}_3 DEFAULT;
        CREATE TABLE st.${name}_4 PARTITION OF st.${name} FOR VALUES FROM (500000) TO (10000000);
        INSERT INTO st.${name} VALUES (1, 'a', 1), (2, 'b', 2), (600, 'c', 3), (100001, 'd', 4) ${extra}` });

    test('made, attached, detached, dropped, truncated, of several levels', async () => {
      const t = await table('p', parts('p'));
      await busyStep(t, 'p', 'CREATE TABLE st.p_5 PARTITION OF st.p FOR VALUES FROM (400000) TO (410000)');
      await busyStep(t, 'p', 'BEGIN; CREATE TABLE st.p_6 PARTITION OF st.p FOR VALUES FROM (410000) TO (420000) PARTITION BY RANGE (id); CREATE TABLE st.p_61 PARTITION OF st.p_6 FOR VALUES FROM (410000) TO (415000); COMMIT');
      await busyStep(t, 'p', 'CREATE TABLE st.p_62 PARTITION OF st.p_6 FOR VALUES FROM (415000) TO (420000)');
      await step(t, "INSERT INTO st.p VALUES (400001, 'n', 1), (410001, 'n', 1), (415001, 'n', 1)");
      await step(t, "UPDATE st.p SET v = 'm' WHERE id > 400000 AND id < 500000; DELETE FROM st.p WHERE id = 410001");
      await step(t, 'UPDATE st.p SET id = 402000 WHERE id = 2; UPDATE st.p SET id = 417000 WHERE id = 400001');
      await step(t, 'TRUNCATE st.p_62', ['truncated']);
      await step(t, "CREATE TABLE st.p_7 (LIKE st.p INCLUDING ALL); INSERT INTO st.p_7 VALUES (420001, 'seven', 7)");
      await step(t, 'ALTER TABLE st.p ATTACH PARTITION st.p_7 FOR VALUES FROM (420000) TO (430000)', ['partitions_changed']);
      await step(t, "UPDATE st.p SET v = 'whole' WHERE id = 420001; DELETE FROM st.p_7 WHERE id = 420001; INSERT INTO st.p VALUES (420002, 'x', 1)");
      await step(t, "BEGIN; CREATE TABLE st.p_8 (LIKE st.p INCLUDING ALL); INSERT INTO st.p_8 VALUES (430001, 'eight', 8); ALTER TABLE st.p ATTACH PARTITION st.p_8 FOR VALUES FROM (430000) TO (440000); COMMIT", ['partitions_changed']);
      await step(t, "CREATE TABLE st.p_63 (LIKE st.p INCLUDING ALL); DROP TABLE st.p_62; INSERT INTO st.p_63 VALUES (416000, 'deep', 1)", ['partitions_changed']);
      await step(t, 'ALTER TABLE st.p_6 ATTACH PARTITION st.p_63 FOR VALUES FROM (415000) TO (420000)', ['partitions_changed']);
      await step(t, 'ALTER TABLE st.p DETACH PARTITION st.p_7', ['partitions_changed']);
      await step(t, "UPDATE st.p_7 SET v = 'no longer'");
      await db.exec('ALTER TABLE st.p DETACH PARTITION st.p_8 CONCURRENTLY');
      await same(t, 'detached concurrently');
      await step(t, "UPDATE st.p_8 SET v = 'no longer'");
      await step(t, 'DROP TABLE st.p_1', ['partitions_changed']);
      await step(t, 'CREATE TABLE st.p_d PARTITION OF st.p DEFAULT; INSERT INTO st.p VALUES (3)');
      await step(t, 'VACUUM FULL st.p_d; VACUUM FULL st.p_4');
      await step(t, 'ALTER TABLE st.p ALTER COLUMN n TYPE bigint', ['table_rewritten']);
    });

    test('one that is a source of its own', async () => {
      const whole = await table('q', parts('q'));
      await db.exec("SELECT changefeed.create_channel('q_1', 'st.q_1')");
      const one = { select: 'SELECT * FROM st.q_1', ada: await ada.openSoon('q_1'), bob: await bob.openSoon('q_1') };
      for (const sql of ["UPDATE st.q SET v = 'u'", 'UPDATE st.q SET id = id + 1000 WHERE id = 1', 'UPDATE st.q SET id = 5 WHERE id = 600', 'INSERT INTO st.q_1 VALUES (7)', 'DELETE FROM st.q']) {
        await step(one, sql);
        await step(whole, 'SELECT 1');
      }
      await step(one, 'ALTER TABLE st.q ADD COLUMN c int DEFAULT 5');
      await step(whole, 'SELECT 1');
      await step(one, 'INSERT INTO st.q (id) VALUES (1), (1000)');
      await step(whole, 'SELECT 1');
      assert.deepEqual(whole.ada.resyncs, []);
    });
  });

  describe('large values that do not change', () => {
    const big = (n = 400000) => `(SELECT string_agg(md5(i::text), '') FROM generate_series(1, ${Math.ceil(n / 32)}) i)`;

    for (const [identity, setup] of [['FULL', ''], ['an index', 'CREATE UNIQUE INDEX @_i ON st.@ (id, n); ALTER TABLE st.@ ALTER n SET NOT NULL; ALTER TABLE st.@ REPLICA IDENTITY USING INDEX @_i;']]) {
      for (const [where, definition] of Object.entries({
        'in a column': {},
        'in a policy': { policy: 'length(big) > 10' },
        'in a filter': { args: ", filter => 'length(big) > 10'", where: 'length(big) > 10', full: true },
        'beside a filter': { args: ", filter => 'n > 1'", where: 'n > 1' },
        'beside a policy': { policy: 'n > 1' },
      })) {
        if (definition.full && setup) continue; // such an index is refused by create_channel
        test(`${where}; replica identity ${identity}`, async () => {
          const name = `toast${serial += 1}`;
          const own = (text) => text.replaceAll('@', name);
          const t = await table(name, { columns: 'id int PRIMARY KEY, v text, n int, big text', rows: `(1, 'a', 1, ${big()}), (2, 'b', 2, repeat('x', 100000)), (3, 'c', 3, NULL)`,
            options: { repeats: setup !== '' }, where: definition.where ?? 'true', args: `${definition.args ?? ''}${setup ? ', set_replica_identity => false' : ''}`,
            setup: own(`ALTER TABLE st.@ ALTER COLUMN big SET STORAGE EXTENDED; ${setup} ${definition.policy ? `ALTER TABLE st.@ ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON st.@ USING (${definition.policy});` : ''}`) });
          const reasons = setup ? null : [];
          for (const sql of ["UPDATE st.@ SET v = v || '!'", 'UPDATE st.@ SET n = 4 - n', 'UPDATE st.@ SET n = 4 - n', 'UPDATE st.@ SET id = id + 10', "UPDATE st.@ SET big = big || 'y' WHERE id = 11", "UPDATE st.@ SET v = 'z', big = NULL WHERE id = 12", 'DELETE FROM st.@ WHERE id = 11']) {
            if (reasons) await step(t, own(sql), reasons);
            else {
              await db.exec(own(sql));
              if (t.ada.state === 'ended') break;
              await same(t, own(sql));
            }
          }
          for (const reason of t.ada.resyncs) assert.ok(['value_not_in_wal', 'change_not_readable'].includes(reason), reason);
        });
      }
    }
  });

  describe('what policies call changes while a snapshot is read, behind a transaction', () => {
    const CHANGES = {
      function: "CREATE OR REPLACE FUNCTION st.fits(st.temper) RETURNS bool LANGUAGE sql STABLE AS $$ SELECT $1 = 'sad' $$",
      labels: "BEGIN; ALTER TYPE st.temper RENAME VALUE 'ok' TO 'x'; ALTER TYPE st.temper RENAME VALUE 'sad' TO 'ok'; ALTER TYPE st.temper RENAME VALUE 'x' TO 'sad'; COMMIT",
    };

    // The first table's rows keep the query worker busy; the second's query is planned behind them.
    before(() => db.exec(`CREATE TYPE st.temper AS ENUM ('ok', 'sad');
      CREATE FUNCTION st.gate() RETURNS bool LANGUAGE plpgsql AS $$
        BEGIN WHILE NOT pg_try_advisory_xact_lock_shared(4713) LOOP PERFORM pg_sleep(0.01); END LOOP; RETURN true; END $$;
      CREATE TABLE st.gated (id int PRIMARY KEY); INSERT INTO st.gated VALUES (1);
      CREATE TABLE st.moody (id int PRIMARY KEY, e st.temper);
      ALTER TABLE st.gated ENABLE ROW LEVEL SECURITY; ALTER TABLE st.moody ENABLE ROW LEVEL SECURITY;
      CREATE FUNCTION st.fits(st.temper) RETURNS bool LANGUAGE sql STABLE AS 'SELECT true';
      CREATE POLICY p ON st.gated USING (st.gate()); CREATE POLICY p ON st.moody USING (st.fits(e));
      SELECT changefeed.create_channel('moody', 'st.gated'); SELECT changefeed.add_source('moody', 'st.moody')`));

    for (const [what, sql] of Object.entries(CHANGES)) {
      test(what, async (t) => {
        await db.exec(`CREATE OR REPLACE FUNCTION st.fits(st.temper) RETURNS bool LANGUAGE sql STABLE AS $$ SELECT $1 = 'ok' $$;
          DELETE FROM st.moody; INSERT INTO st.moody VALUES (1, 'sad'), (2, 'ok')`);
        const client = await Client.connectSoon({ token: await db.token(ADA) });
        const blocker = new Session();
        t.after(() => { client.cut(); return blocker.close(); });
        await blocker.exec('SELECT pg_advisory_lock(4713)');
        const opened = client.openSoon('moody').catch((error) => { client.check(); throw error; });
        await until(async () => await db.value(`SELECT count(*) FROM pg_stat_activity
          WHERE backend_type = 'changefeed query worker' AND datname = current_database() AND wait_event = 'PgSleep'`) === '1', 'the snapshot is being read');
        await db.exec("UPDATE st.moody SET e = CASE e WHEN 'ok' THEN 'sad' ELSE 'ok' END::st.temper");
        await db.exec(sql);
        await blocker.exec('SELECT pg_advisory_unlock(4713)');
        const s = await opened;
        await client.settle();
        client.check();
        assertSame(s.rows('moody'), await db.rowsAs(ADA, 'SELECT * FROM st.moody'));
        assert.deepEqual([s.resyncs, s.readies, s.rows('moody').length], [[], 1, 1]);
      });
    }
  });

  test('labels change their meaning while query workers judge what was committed before', async (t) => {
    const claims = { ...ADA, mood: 'ok' };
    // Whoever locks a table hears of what has changed
    await db.exec(`CREATE TYPE st.label AS ENUM ('ok', 'sad');
      CREATE FUNCTION st.entry() RETURNS bool LANGUAGE plpgsql AS $$
        BEGIN
          WHILE NOT pg_try_advisory_xact_lock_shared(4714) LOOP PERFORM pg_sleep(0.01); END LOOP;
          PERFORM pg_relation_size('pg_seclabel');
          RETURN true;
        END $$;
      CREATE TABLE st.labelled (id int PRIMARY KEY, e st.label); INSERT INTO st.labelled VALUES (1, 'sad'), (2, 'ok');
      ALTER TABLE st.labelled ENABLE ROW LEVEL SECURITY;
      CREATE POLICY p ON st.labelled USING (st.entry() AND e = (current_setting('request.jwt.claims', true)::json->>'mood')::st.label);
      SELECT changefeed.create_channel('labelled', 'st.labelled')`);
    const client = await Client.connectSoon({ token: await db.token(claims) });
    const blocker = new Session();
    t.after(() => { client.cut(); return blocker.close(); });
    const s = await client.openSoon('labelled');
    const workers = (condition) => db.value(`SELECT count(*) FROM pg_stat_activity
      WHERE backend_type = 'changefeed query worker' AND datname = current_database() AND ${condition}`);
    const decoder = Number(await db.value('SELECT decoder_pid FROM changefeed.stat_feed'));
    await blocker.exec('SELECT pg_advisory_lock(4714)');
    await db.exec("UPDATE st.labelled SET e = CASE e WHEN 'ok' THEN 'sad' ELSE 'ok' END::st.label");
    await until(async () => await workers("wait_event = 'PgSleep'") === '1', 'the rows are being judged');
    process.kill(decoder, 'SIGSTOP');
    try {
      await db.exec("BEGIN; ALTER TYPE st.label RENAME VALUE 'ok' TO 'x'; ALTER TYPE st.label RENAME VALUE 'sad' TO 'ok'; ALTER TYPE st.label RENAME VALUE 'x' TO 'sad'; COMMIT");
      await blocker.exec('SELECT pg_advisory_unlock(4714)');
      await until(async () => await workers("state = 'active'") === '0', 'they are judged');
    } finally {
      process.kill(decoder, 'SIGCONT');
    }
    await client.settle().catch((error) => { client.check(); throw error; });
    client.check();
    assertSame(s.rows(), await db.rowsAs(claims, 'SELECT * FROM st.labelled'));
    assert.equal(s.resyncs.length, 1, s.resyncs);
  });

  test('labels change their meaning before the feed delivers what was committed before', async (t) => {
    await db.exec(`CREATE TYPE st.tag AS ENUM ('ok', 'sad'); CREATE TABLE st.tagged (id int PRIMARY KEY, e st.tag, n int);
      INSERT INTO st.tagged VALUES (1, 'sad'), (2, 'ok');
      SELECT changefeed.create_channel('tagged', 'st.tagged'), changefeed.create_channel('tagged_ok', 'st.tagged', filter => 'e = ''ok''')`);
    const client = await Client.connectSoon({ token: await db.token(ADA) });
    t.after(() => client.cut());
    const wanted = { 'tagged?e=eq.ok': "e = 'ok'", tagged: 'true', tagged_ok: "e = 'ok'" };
    const subscriptions = {};
    for (const name of Object.keys(wanted)) subscriptions[name] = await client.openSoon(name);
    const told = [];
    client.onTransaction = ({ changes }) => { told.push(...changes); };
    await renameBehind("UPDATE st.tagged SET e = CASE e WHEN 'ok' THEN 'sad' ELSE 'ok' END::st.tag",
      "BEGIN; ALTER TYPE st.tag RENAME VALUE 'ok' TO 'x'; ALTER TYPE st.tag RENAME VALUE 'sad' TO 'ok'; ALTER TYPE st.tag RENAME VALUE 'x' TO 'sad'; COMMIT");
    await client.settle().catch((error) => { client.check(); throw error; });
    client.check();
    assert.deepEqual(told, [], 'nothing of it can be told');
    for (const [name, where] of Object.entries(wanted)) {
      assertSame(subscriptions[name].rows(), await db.rows(`SELECT * FROM st.tagged WHERE ${where}`), name);
      assert.deepEqual(subscriptions[name].resyncs, ['type_changed'], name);
    }
  });

  test('attributes change their meaning before the feed delivers what was committed before', async (t) => {
    await db.exec(`CREATE TYPE st.point AS (a text, b text); CREATE TABLE st.pointed (id int PRIMARY KEY, p st.point, ps st.point[], n int);
      INSERT INTO st.pointed VALUES (1, '(x,y)', '{"(x,y)"}', 0); SELECT changefeed.create_channel('pointed', 'st.pointed')`);
    const client = await Client.connectSoon({ token: await db.token(ADA) });
    t.after(() => client.cut());
    const s = await client.openSoon('pointed');
    const told = [];
    client.onTransaction = ({ changes }) => { told.push(...changes); };
    await renameBehind("UPDATE st.pointed SET p = '(v,w)', ps = '{\"(v,w)\"}'",
      'BEGIN; ALTER TYPE st.point RENAME ATTRIBUTE a TO x; ALTER TYPE st.point RENAME ATTRIBUTE b TO a; ALTER TYPE st.point RENAME ATTRIBUTE x TO b; COMMIT');
    await client.settle().catch((error) => { client.check(); throw error; });
    client.check();
    assert.deepEqual(told, [], 'nothing of it can be told');
    assertSame(s.rows(), await db.rowsAs(ADA, 'SELECT * FROM st.pointed'));
    assert.deepEqual(s.resyncs, ['type_changed']);
  });

  test('a label gets another name while rows are written, and is looked up behind that', async (t) => {
    // The filter takes its time, and nobody has looked the label up before
    await db.exec(`CREATE TYPE st.rare AS ENUM ('ok', 'rare'); CREATE TABLE st.slowly (id int PRIMARY KEY, e st.rare, v text DEFAULT 'x');
      INSERT INTO st.slowly VALUES (0, 'ok'); SELECT changefeed.create_channel('slowly', 'st.slowly', filter => 'md5(repeat(v, 3000000)) <> ''''', columns => '{id,e}')`);
    const client = await Client.connectSoon({ token: await db.token(ADA) });
    t.after(() => client.cut());
    const s = await client.openSoon('slowly');
    const told = new Set();
    client.onTransaction = ({ changes }) => { for (const change of changes) told.add(change.row?.e ?? change.set.e); };
    const feed = Number(await db.value('SELECT feed_worker_pid FROM changefeed.stat_feed'));
    await db.exec("INSERT INTO st.slowly SELECT i, 'rare' FROM generate_series(1, 60) i");
    const lsn = await db.value('SELECT pg_current_wal_lsn()');
    await until(async () => await db.value(`SELECT published_lsn >= '${lsn}'::pg_lsn - 64 FROM changefeed.stat_feed`) === 't', 'being published');
    process.kill(feed, 'SIGSTOP');
    try {
      await db.exec("ALTER TYPE st.rare RENAME VALUE 'rare' TO 'frequent'");
    } finally {
      process.kill(feed, 'SIGCONT');
    }
    await client.settle();
    client.check();
    assert.ok(!told.has('frequent'), 'a label that was not there yet');
    assertSame(s.rows(), await db.rowsAs(ADA, 'SELECT id, e FROM st.slowly'));
    assert.deepEqual(s.resyncs, ['type_changed']);
  });

  describe('columns change between the snapshot and `subscribed`', () => {
    before(() => db.exec(`CREATE FUNCTION st.hold() RETURNS bool LANGUAGE plpgsql AS $$
        BEGIN WHILE NOT pg_try_advisory_xact_lock_shared(4715) LOOP PERFORM pg_sleep(0.01); END LOOP; RETURN true; END $$`));

    for (const [name, sql] of Object.entries({ renamed: 'RENAME COLUMN v TO w', gone: 'DROP COLUMN v' })) {
      test(sql, async (t) => {
        await db.exec(`CREATE TABLE st.${name}_late (id int PRIMARY KEY, v text, n int); INSERT INTO st.${name}_late VALUES (1, 'a', 1), (2, 'b', 2);
          ALTER TABLE st.${name}_late ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON st.${name}_late USING (st.hold());
          SELECT changefeed.create_channel('${name}_late', 'st.${name}_late')`);
        const client = await Client.connectSoon({ token: await db.token(ADA) });
        const blocker = new Session();
        t.after(() => { client.cut(); return blocker.close(); });
        const workers = (condition) => db.value(`SELECT count(*) FROM pg_stat_activity
          WHERE backend_type = 'changefeed query worker' AND datname = current_database() AND ${condition}`);
        const feed = Number(await db.value('SELECT feed_worker_pid FROM changefeed.stat_feed'));
        await blocker.exec('SELECT pg_advisory_lock(4715)');
        const opened = client.openSoon(`${name}_late`).catch((error) => { client.check(); throw error; });
        await until(async () => await workers("wait_event = 'PgSleep'") === '1', 'the snapshot is being read');
        process.kill(feed, 'SIGSTOP');
        try {
          await blocker.exec('SELECT pg_advisory_unlock(4715)');
          await until(async () => await workers("state = 'active'") === '0', 'it was read');
          await db.exec(`ALTER TABLE st.${name}_late ${sql}`);
        } finally {
          process.kill(feed, 'SIGCONT');
        }
        const s = await opened;
        await client.settle();
        client.check();
        assertSame(s.rows(), await db.rowsAs(ADA, `SELECT * FROM st.${name}_late`));
        assert.deepEqual(s.entities.get(`${name}_late`).columns, await db.rows(`SELECT attname FROM pg_attribute
          WHERE attrelid = 'st.${name}_late'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum`).then((rows) => rows.map(({ attname }) => attname)));
      });
    }
  });

  describe('a filter that fails', () => {
    /** A channel with a filter, and one whose table is changed in the same transactions. */
    async function two(t, name, filter) {
      await db.exec(`CREATE TABLE st.${name} (id serial PRIMARY KEY, v int); CREATE TABLE st.${name}_other (id int PRIMARY KEY, n int); INSERT INTO st.${name}_other VALUES (1, 0);
        SELECT changefeed.create_channel('${name}', 'st.${name}', filter => '${filter}'), changefeed.create_channel('${name}_other', 'st.${name}_other')`);
      const client = await Client.connectSoon({ token: await db.token(ADA) });
      t.after(() => client.cut());
      const other = await client.openSoon(`${name}_other`);
      const change = (values, n) => db.exec(`DO $$ BEGIN FOR i IN 1..${n} LOOP
        INSERT INTO st.${name} ${values}; UPDATE st.${name}_other SET n = n + 1; COMMIT; END LOOP; END $$`);
      const same = async () => {
        await client.settle();
        client.check();
        assertSame(other.rows(), await db.rows(`SELECT * FROM st.${name}_other`));
      };
      return { client, other, change, same };
    }
    const log = () => readFileSync(LOG, 'utf8');

    test('on a row: that costs the channel a snapshot, and no other', async (t) => {
      const { client, other, change, same } = await two(t, 'fails', '10 / v > 0');
      await change('(v) VALUES (0), (1)', 1);
      await same();
      assert.deepEqual([other.resyncs, other.changes], [[], 1]);
      await db.exec('DELETE FROM st.fails WHERE v = 0');
      const s = await client.open('fails');
      await change('(v) VALUES (5)', 3);
      await same();
      assertSame(s.rows(), await db.rows('SELECT * FROM st.fails'));
      assert.deepEqual([s.resyncs, s.changes], [[], 3]);
    });

    test('because its column is gone: that is said once and costs nobody anything', async (t) => {
      const { other, change, same } = await two(t, 'gone', 'v > 0');
      await db.exec('ALTER TABLE st.gone DROP COLUMN v');
      const used = async () => {
        await same();
        return memoryOf(db, 'changefeed (?:channel|filter).*');
      };
      await change('DEFAULT VALUES', 1);
      const before = await used();
      await change('DEFAULT VALUES', 100);
      const grown = await used() - before;
      assert.ok(grown < 10000, `${grown} bytes`);
      assert.deepEqual([other.resyncs, other.changes], [[], 101]);
      assert.equal(log().match(/changes of table "st.gone" cannot be sent to channel "gone": column "v" does not exist/g)?.length, 1);
      assert.doesNotMatch(log(), /could not map.*column "v"/);
    });
  });
});
