// What changed while a client was away is not overlooked because the feed was
// restarted in between: its log is decoded anew, and catalogs are those of now.
// And what changed nothing that it can see does not cost a snapshot.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { assertSame, Client, until } from './lib/client.mjs';
import { Session } from './lib/psql.mjs';

const CLAIMS = { role: 'away_web', sub: 'ada' };

// Each has a schema (@) and a channel of its own, so that all share a restart.
const WRITE = "INSERT INTO @.t SELECT max(id) + 1, 'ada', 'new' FROM @.t";
const harmless = [
  ['nothing', []],
  ['ANALYZE', 'ANALYZE @.t'],
  ['VACUUM', 'VACUUM @.t'],
  ['VACUUM FULL', 'VACUUM FULL @.t'],
  ['CLUSTER', 'CLUSTER @.t USING t_pkey'],
  ['all of these several times', ['VACUUM ANALYZE @.t', WRITE, 'VACUUM FULL @.t', WRITE, 'CLUSTER @.t USING t_pkey', 'ANALYZE @.t', 'VACUUM FULL @.t']],
  ['a new index', 'CREATE INDEX ON @.t (owner)'],
  ['an index made concurrently', 'CREATE INDEX CONCURRENTLY ON @.t (note)'],
  ['REINDEX', ['REINDEX TABLE @.t', 'REINDEX TABLE CONCURRENTLY @.t']],
  ['a comment', "COMMENT ON TABLE @.t IS 'x'"],
  ['a grant to others', 'GRANT SELECT ON @.u TO away_other'],
  ['statistics', ['ALTER TABLE @.t ALTER owner SET STATISTICS 50', 'CREATE STATISTICS @.s ON owner, note FROM @.t']],
  ['a default', "ALTER TABLE @.t ALTER note SET DEFAULT 'x'"],
  ['a constraint', 'ALTER TABLE @.t ADD CHECK (id > 0)'],
  ['a storage parameter', 'ALTER TABLE @.t SET (autovacuum_enabled = off)'],
  ['a trigger', 'CREATE TRIGGER g BEFORE UPDATE ON @.t FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()'],
  ['a publication', 'CREATE PUBLICATION away_publication FOR TABLE @.t'],
  ['a table', 'CREATE TABLE @.w (id int PRIMARY KEY, t int REFERENCES @.t); INSERT INTO @.w VALUES (1)'],
  ['a policy and row security of another table', 'ALTER TABLE @.u ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON @.u USING (true)'],
  ['dropping another table', 'DROP TABLE @.u'],
  ['a temporary table', 'CREATE TEMP TABLE w AS SELECT * FROM @.t; DROP TABLE w'],
  ['a view', 'CREATE VIEW @.x AS SELECT * FROM @.t'],
  ['a function', 'CREATE FUNCTION @.f() RETURNS int LANGUAGE sql AS $$SELECT 1$$; DROP FUNCTION @.f'],
  ['a type', "CREATE TYPE @.e AS ENUM ('a'); ALTER TYPE @.e RENAME VALUE 'a' TO 'b'; DROP TYPE @.e"],
  ['another schema', 'CREATE SCHEMA @_b; CREATE TABLE @_b.t (id int); GRANT USAGE ON SCHEMA @_b TO away_web; DROP SCHEMA @_b CASCADE'],
  ['a role', "CREATE ROLE @_role; SELECT changefeed.allow_role('@_role')"],
  ['other channels', "SELECT changefeed.create_channel('@_b', '@.u'); SELECT changefeed.add_source('@_b', '@.v', 'v'); SELECT changefeed.drop_source('@_b', '@.v'); SELECT changefeed.drop_channel('@_b'); SELECT changefeed.create_channel('@_c', '@.v')"],
  ['what a transaction takes back', 'BEGIN; REVOKE SELECT ON @.t FROM away_web; GRANT SELECT ON @.t TO away_web; COMMIT'],
  ['what was rolled back', 'BEGIN; SAVEPOINT a; ALTER TABLE @.t DROP note; ROLLBACK TO a; ANALYZE @.t; COMMIT'],
  ['a new partition', 'CREATE TABLE @.t2 PARTITION OF @.t FOR VALUES FROM (1000) TO (2000)', { partitioned: true, noticed: 'schema_changed' }],
  ['work on a partition', ['ANALYZE @.t', 'VACUUM FULL @.t1', 'CREATE INDEX ON @.t (owner)'], { partitioned: true }],
];
const harmful = [
  ['revoking all but some columns', 'REVOKE SELECT ON @.t FROM away_web; GRANT SELECT (id, owner) ON @.t TO away_web', { columns: 'id, owner' }],
  ['revoking and granting', ['REVOKE SELECT ON @.t FROM away_web', 'GRANT SELECT ON @.t TO away_web']],
  ['a policy', "ALTER POLICY p ON @.t USING (owner = 'ada')"],
  ['a policy, behind others', ['ANALYZE @.t', "ALTER POLICY p ON @.t USING (owner = 'ada')", 'VACUUM FULL @.t', 'ANALYZE @.t']],
  ['a restrictive policy', "CREATE POLICY q ON @.t AS RESTRICTIVE USING (owner = 'ada')"],
  ['row security', 'ALTER TABLE @.t DISABLE ROW LEVEL SECURITY'],
  ['values rewritten', "ALTER TABLE @.t ALTER note TYPE text USING note || '!'"],
  ['values rewritten, behind others', ['VACUUM FULL @.t', "ALTER TABLE @.t ALTER note TYPE text USING note || '!'", 'VACUUM FULL @.t']],
  ['values rewritten in partitions', "ALTER TABLE @.t ALTER note TYPE text USING note || '!'", { partitioned: true }],
  ['a partition with rows', "CREATE TABLE @.t2 (LIKE @.t); INSERT INTO @.t2 VALUES (1500, 'ada', 'x'); ALTER TABLE @.t ATTACH PARTITION @.t2 FOR VALUES FROM (1000) TO (2000)", { partitioned: true }],
  ['a column renamed', 'ALTER TABLE @.t RENAME note TO text'],
  ['a column renamed and back', ['ALTER TABLE @.t RENAME note TO n', 'ALTER TABLE @.t RENAME n TO note']],
  ['a new column', 'ALTER TABLE @.t ADD extra int DEFAULT 7'],
  ['a dropped column', 'ALTER TABLE @.t DROP note'],
  ['another owner', 'ALTER TABLE @.t OWNER TO away_other'],
  ['its schema', ['REVOKE USAGE ON SCHEMA @ FROM away_web', 'GRANT USAGE ON SCHEMA @ TO away_web']],
  ['an enum', "ALTER TYPE @.kind RENAME VALUE 'a' TO 'b'", { enumeration: true }],
  ['the channel', "SELECT changefeed.drop_channel('@'); SELECT changefeed.create_channel('@', '@.t')", { reason: 'channel_changed' }],
  ['a source of the channel', ["SELECT changefeed.add_source('@', '@.u', 'u')", "SELECT changefeed.drop_source('@', '@.u')"], { reason: 'channel_changed' }],
];

describe('resuming behind a restart of the feed', () => {
  let db;
  let token;

  const connect = () => until(() => Client.connect({ token }).catch((error) => {
    if (error.code !== 'ECONNREFUSED') throw error;
  }), 'connected', 60000);

  /** A client's position, and what it has. */
  async function leave(channel, write) {
    const client = await Client.connectSoon({ token });
    const held = await client.openSoon(channel);
    if (write) await db.exec(write);
    await client.settle();
    const { position } = held;
    await client.cut();
    return { channel, held, position };
  }

  async function restart() {
    const old = await db.value('SELECT feed_worker_pid FROM changefeed.stat_feed');
    await db.exec(`SELECT pg_terminate_backend(${old})`);
    await until(async () => !['', old].includes(await db.value("SELECT feed_worker_pid FROM changefeed.stat_feed WHERE state = 'running'")), 'feed worker again', 60000);
  }

  async function comeBack({ channel, held, position }, select) {
    const again = await connect();
    const s = await again.subscribe(channel, { from: position, cache: held });
    await s.ready();
    await again.settle();
    const rows = await db.rowsAs(CLAIMS, select);
    assertSame(s.rows(), rows, channel);
    assert.ok(rows.length > 0);
    await again.close();
    return { recovered: s.recovered, reason: s.resyncs.join(' ') };
  }

  const schemaOf = (i, kind) => `away_${kind}${i}`;

  async function setUp(schema, { partitioned, enumeration } = {}) {
    await db.exec(`CREATE SCHEMA ${schema}; GRANT USAGE ON SCHEMA ${schema} TO away_web;
      CREATE TYPE ${schema}.kind AS ENUM ('a');
      CREATE TABLE ${schema}.t (id int PRIMARY KEY, owner text, note text${enumeration ? `, kind ${schema}.kind DEFAULT 'a'` : ''})${partitioned ? ' PARTITION BY RANGE (id)' : ''};
      ${partitioned ? `CREATE TABLE ${schema}.t1 PARTITION OF ${schema}.t FOR VALUES FROM (0) TO (1000);` : ''}
      CREATE TABLE ${schema}.u (id int PRIMARY KEY); CREATE TABLE ${schema}.v (id int PRIMARY KEY);
      ALTER TABLE ${schema}.t ENABLE ROW LEVEL SECURITY;
      CREATE POLICY p ON ${schema}.t USING (true);
      GRANT SELECT ON ${schema}.t, ${schema}.u TO away_web;
      INSERT INTO ${schema}.t VALUES (1, 'ada', 'a'), (2, 'bob', 'b');
      SELECT changefeed.create_channel('${schema}', '${schema}.t')`);
  }

  before(async () => {
    db = new Session();
    await db.exec("CREATE ROLE away_web; CREATE ROLE away_other; SELECT changefeed.allow_role('away_web')");
    token = await db.token(CLAIMS);
  });
  after(async () => {
    await db?.exec('DROP PUBLICATION IF EXISTS away_publication');
    await db?.close();
  });

  for (const [kind, cases] of [['a', harmless], ['b', harmful]]) {
    describe(kind === 'a' ? 'what no client sees' : 'what clients see', () => {
      const left = [];

      before(async () => {
        for (const [i, [, , options]] of cases.entries()) await setUp(schemaOf(i, kind), options);
        for (const i of cases.keys()) left.push(await leave(schemaOf(i, kind)));
        for (const [i, [, sql]] of cases.entries()) {
          for (const part of [WRITE, sql].flat()) await db.exec(part.replaceAll('@', schemaOf(i, kind)));
          if (kind === 'a') await db.exec(WRITE.replaceAll('@', schemaOf(i, kind)));
        }
        await restart();
      });

      for (const [i, [what, , { columns = '*', reason = 'schema_changed', noticed } = {}]] of cases.entries()) {
        test(what, async () => {
          const told = await comeBack(left[i], `SELECT ${columns} FROM ${schemaOf(i, kind)}.t`);
          if (kind === 'a' && !noticed) assert.deepEqual(told, { recovered: true, reason: '' });
          else assert.deepEqual(told, { recovered: false, reason: noticed ?? reason });
        });
      }
    });
  }

  // A transaction sees the catalogs of its first change until it has its own.
  for (const [i, [what, forget]] of [['before', false], ['before decoding began', true]].entries()) {
    test(`a transaction that puts back what was changed behind its begin, ${what}`, async () => {
      const schema = schemaOf(i, 'c');
      const other = new Session();
      await setUp(schema);
      try {
        await other.exec(`BEGIN; INSERT INTO ${schema}.u VALUES (100)`);
        await db.exec(`BEGIN; REVOKE SELECT ON ${schema}.t FROM away_web; GRANT SELECT (id, owner) ON ${schema}.t TO away_web; COMMIT`);
        const lsn = await db.value('SELECT pg_current_wal_insert_lsn()');
        if (forget) await db.exec("ALTER SYSTEM SET changefeed.history_age = '1s'; SELECT pg_reload_conf()");
        const left = await leave(schema, WRITE.replaceAll('@', schema));
        if (forget) {
          await until(async () => await db.value(`SELECT confirmed_flush_lsn > '${lsn}' FROM pg_replication_slots
            WHERE slot_name = (SELECT slot_name FROM changefeed.stat_feed)`) === 't', 'the slot is further', 60000);
        }
        await other.exec(`REVOKE SELECT ON ${schema}.t FROM away_web; REVOKE SELECT (id, owner) ON ${schema}.t FROM away_web; GRANT SELECT ON ${schema}.t TO away_web; COMMIT`);
        await restart();
        assert.deepEqual(await comeBack(left, `SELECT * FROM ${schema}.t`), { recovered: false, reason: 'schema_changed' });
      } finally {
        await other.close();
        if (forget) await db.exec('ALTER SYSTEM RESET changefeed.history_age; SELECT pg_reload_conf()');
      }
    });
  }
});
