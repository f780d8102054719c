// A subscription that becomes ready on a connection that is behind: what was
// done to its table as a whole between the connection and the end of the log
// was published before it was ready, and still counts.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { assertSame, Client, until } from './lib/client.mjs';
import { Session } from './lib/psql.mjs';

const IDENTITY = { role: 'behind_web', sub: 'ada' };
const COLUMNS = '(id int PRIMARY KEY, v int NOT NULL DEFAULT 1, note text)';
const ROWS = "INSERT INTO @t SELECT i, 1, 'n' || i FROM generate_series(1, 9) i; GRANT SELECT ON @t TO behind_web";
const TABLE = `CREATE TABLE @t ${COLUMNS}; ${ROWS}`;
const PARTITIONED = `CREATE TABLE @t ${COLUMNS} PARTITION BY RANGE (id);
  CREATE TABLE @low PARTITION OF @t FOR VALUES FROM (0) TO (5); CREATE TABLE @high PARTITION OF @t FOR VALUES FROM (5) TO (10);
  CREATE TABLE @more ${COLUMNS}; ALTER TABLE @more REPLICA IDENTITY FULL; INSERT INTO @more VALUES (10, 1, 'n10'); ${ROWS}`;
const JUDGED = `${TABLE}; CREATE TABLE @m (id int PRIMARY KEY); INSERT INTO @m SELECT generate_series(1, 5); GRANT SELECT ON @m TO behind_web;
  ALTER TABLE @t ENABLE ROW LEVEL SECURITY;
  CREATE POLICY p ON @t USING (id IN (SELECT m.id FROM @m m))`;

// What happens, and why the subscription is resynced (null: it is not).
const CASES = [
  ['a change of rows', TABLE, "UPDATE @t SET note = 'x' WHERE id = 3; DELETE FROM @t WHERE id = 4", null],
  ['what changes nothing', TABLE, 'CREATE INDEX ON @t (v); ANALYZE @t', null],
  ['VACUUM FULL', TABLE, "VACUUM FULL @t; UPDATE @t SET note = 'x' WHERE id = 3", null],
  ['TRUNCATE', TABLE, 'TRUNCATE @t', 'truncated'],
  ['TRUNCATE between others', TABLE, "UPDATE @t SET note = 'x'; BEGIN; INSERT INTO @t VALUES (20); TRUNCATE @t; INSERT INTO @t VALUES (21); COMMIT; INSERT INTO @t VALUES (22)", 'truncated'],
  ['TRUNCATE of a partition', PARTITIONED, 'TRUNCATE @low', 'truncated'],
  ['DROP of a partition', PARTITIONED, 'DROP TABLE @low', 'partitions_changed'],
  ['ATTACH of a partition', PARTITIONED, 'ALTER TABLE @t ATTACH PARTITION @more FOR VALUES FROM (10) TO (20)', 'partitions_changed'],
  ['ALTER TABLE that rewrites', TABLE, 'ALTER TABLE @t ALTER v TYPE text', 'table_rewritten'],
  ['a transaction that is too large', TABLE, "INSERT INTO @t SELECT i, 1, repeat('x', 500) FROM generate_series(100, 8000) i", 'transaction_too_large'],
  ['a row that is too large', TABLE, "INSERT INTO @t VALUES (20, 1, (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 100000) i)); DELETE FROM @t WHERE id = 20", 'change_not_readable'],
  ['a row on which the filter fails', TABLE, 'BEGIN; DELETE FROM @t WHERE id = 1; INSERT INTO @t VALUES (20, 0); COMMIT; DELETE FROM @t WHERE id = 20', 'change_not_readable', { filter: '10 / v > 0' }],
  ['REVOKE of a column', TABLE, "REVOKE SELECT ON @t FROM behind_web; GRANT SELECT (id, v) ON @t TO behind_web; INSERT INTO @t VALUES (20, 1, 'secret')", 'privileges_changed', { columns: 'id, v' }],
  ['ALTER POLICY', JUDGED, 'ALTER POLICY p ON @t USING (id < 3)', 'policy_changed'],
  ['a change of what the policy reads', JUDGED, 'DELETE FROM @m WHERE id = 2', 'dependency_changed'],
  ['TRUNCATE of what the policy reads', JUDGED, 'TRUNCATE @m', 'dependency_changed'],
];

describe('a subscription that becomes ready on a connection that is behind', () => {
  let db;
  let gates; // holds them shut
  let count = 0;

  before(async () => {
    db = new Session();
    gates = new Session();
    // Judging a row of `gate` takes until its gate is open.
    await db.exec(`CREATE ROLE behind_web; SELECT changefeed.allow_role('behind_web');
      CREATE SCHEMA behind; GRANT USAGE ON SCHEMA behind TO behind_web;
      CREATE FUNCTION behind.is_open(int) RETURNS bool LANGUAGE plpgsql STABLE AS $$
        BEGIN WHILE NOT pg_try_advisory_xact_lock_shared(4712, $1) LOOP PERFORM pg_sleep(0.005); END LOOP; RETURN true; END $$;
      CREATE TABLE behind.gate (id int PRIMARY KEY); GRANT SELECT ON behind.gate TO behind_web;
      ALTER TABLE behind.gate ENABLE ROW LEVEL SECURITY;
      CREATE POLICY p ON behind.gate USING (behind.is_open(id));
      SELECT changefeed.create_channel('gate', 'behind.gate')`);
  });

  after(async () => {
    await gates.close();
    await db.close();
  });

  async function run(t, [, setup, event, reason, { filter, columns = '*' } = {}], resumes) {
    const name = `b${++count}`;
    const sql = (text) => text.replaceAll('@', `behind.${name}_`);
    const [first, second] = [2 * count, 2 * count + 1];
    const token = await db.token(IDENTITY);
    await db.exec(sql(`${setup}; SELECT changefeed.create_channel('${name}', '@t'${filter ? `, filter => '${filter}'` : ''})`));
    const other = await Client.connectSoon({ token });
    const client = await Client.connect({ token });
    t.after(async () => {
      await Promise.all([client.cut(), other.cut()]);
      await gates.exec('SELECT pg_advisory_unlock_all()');
    });
    const held = await other.openSoon(name);
    const gate = await client.openSoon('gate');
    await gates.exec(`SELECT pg_advisory_lock(4712, ${first}), pg_advisory_lock(4712, ${second})`);

    // The connection stays in front of the first row, the subscription is behind it.
    await db.exec(`INSERT INTO behind.gate VALUES (${first})`);
    await other.settle();
    const s = await client.subscribe(name, resumes ? { from: held.position, cache: held } : {});
    assert.equal(s.recovered, resumes);
    assert.equal(s.readies, 0, 'it waits for its connection');

    // What happens now is published before the connection gets there.
    await db.exec(`INSERT INTO behind.gate VALUES (${second})`);
    for (const statement of sql(event).split('; ')) await db.exec(statement);
    await other.settle();
    assert.equal(gate.changes, 0);
    assert.equal(s.readies, 0, 'it still does');

    // Now it is where the subscription can become ready, and no further.
    await gates.exec(`SELECT pg_advisory_unlock(4712, ${first})`);
    await until(() => gate.changes === 1 && (s.readies > 0 || s.resyncs.length > 0), 'the subscription goes on at once');
    assert.equal(gate.changes, 1, 'the second gate is shut');
    await gates.exec(`SELECT pg_advisory_unlock(4712, ${second})`);
    for (const what of ['after it', 'after a change']) {
      await client.settle();
      client.check();
      assert.equal(gate.changes, 2);
      assertSame(s.rows(), await db.rowsAs(IDENTITY, sql(`SELECT ${columns} FROM @t`)), what);
      await db.exec(sql("UPDATE @t SET note = note || '.'; DELETE FROM @t WHERE id = 7"));
    }
    assert.deepEqual([...new Set(s.resyncs)], reason === null ? [] : [reason]);
    await db.exec(sql(`SELECT changefeed.drop_channel('${name}')`));
  }

  for (const about of CASES) {
    for (const resumes of [false, true]) {
      test(`${about[0]}, ${resumes ? 'resumed' : 'with a snapshot'}`, (t) => run(t, about, resumes));
    }
  }
});
