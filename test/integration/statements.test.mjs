// Every way to write to a table that the WAL knows: afterwards each cache is
// what SELECT shows, whichever decoder made the changes.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { assertSame, Client, until } from './lib/client.mjs';
import { number } from './lib/json.mjs';
import { quote, Session } from './lib/psql.mjs';

const CLAIMS = { role: 'stm_web', sub: 'ada' };

// By channel. "lean" has the replica identity of its primary key, the others FULL.
const TABLES = {
  items: 'CREATE TABLE stm.items (id int PRIMARY KEY, v text, n int DEFAULT 0, twice int GENERATED ALWAYS AS (n * 2) STORED, u int UNIQUE)',
  big: 'CREATE TABLE stm.big (id int PRIMARY KEY, doc text, raw bytea, v int); ALTER TABLE stm.big ALTER doc SET STORAGE EXTERNAL',
  lean: 'CREATE TABLE stm.lean (id int PRIMARY KEY, doc text, v int); ALTER TABLE stm.lean ALTER doc SET STORAGE EXTERNAL',
  child: `CREATE TABLE stm.child (id int PRIMARY KEY, a int REFERENCES stm.items ON DELETE CASCADE ON UPDATE CASCADE,
            b int REFERENCES stm.items ON DELETE SET NULL ON UPDATE SET NULL, c int DEFAULT 1 REFERENCES stm.items ON DELETE SET DEFAULT ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED)`,
  parts: `CREATE TABLE stm.parts (id int, day int, v text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
          CREATE TABLE stm.parts_1 PARTITION OF stm.parts FOR VALUES FROM (0) TO (10);
          CREATE TABLE stm.parts_2 (v text, id int NOT NULL, day int NOT NULL);
          ALTER TABLE stm.parts ATTACH PARTITION stm.parts_2 FOR VALUES FROM (10) TO (20)`,
};

/** Text that does not compress. */
const noise = (bytes, seed = 1) => `(SELECT string_agg(md5(${seed}::text || i), '') FROM generate_series(1, ${Math.ceil(bytes / 32)}) i)`;

describe('statements', () => {
  let db;
  let client;
  const subscriptions = {};

  before(async () => {
    db = new Session();
    await db.exec(`CREATE SCHEMA stm; CREATE ROLE stm_web; GRANT USAGE ON SCHEMA stm TO stm_web;
      ALTER DEFAULT PRIVILEGES IN SCHEMA stm GRANT SELECT ON TABLES TO stm_web; SELECT changefeed.allow_role('stm_web');
      ${Object.values(TABLES).join(';')};
      ${Object.keys(TABLES).map((name) => `SELECT changefeed.create_channel('stm_${name}', 'stm.${name}', set_replica_identity => ${name !== 'lean'})`).join(';')}`);
    client = await Client.connectSoon({ token: await db.token(CLAIMS) });
    for (const name of Object.keys(TABLES)) subscriptions[name] = await client.openSoon(`stm_${name}`, { repeats: name === 'lean' });
  });

  after(async () => {
    await client?.cut();
    await db?.close();
  });

  async function compare(what) {
    await client.settle();
    client.check();
    for (const [name, subscription] of Object.entries(subscriptions)) {
      assertSame(subscription.rows(), await db.rowsAs(CLAIMS, `SELECT * FROM stm.${name}`), `${what}: stm.${name}`);
    }
  }

  const resyncs = () => Object.values(subscriptions).flatMap((subscription) => subscription.resyncs);

  /** Runs the steps and compares after each; no cache is fetched again. */
  async function steps(list) {
    const known = resyncs().length;
    for (const sql of list) {
      await db.exec(sql);
      await compare(sql.slice(0, 200));
    }
    assert.deepEqual(resyncs().slice(known), []);
  }

  test('INSERT, UPDATE, DELETE in all forms', () => steps([
    "INSERT INTO stm.items (id, v) SELECT i, 'v' || i FROM generate_series(1, 20) i",
    "INSERT INTO stm.items (id, v) VALUES (1, 'again') ON CONFLICT DO NOTHING",
    "INSERT INTO stm.items (id, v) VALUES (1, 'again'), (21, 'new') ON CONFLICT (id) DO UPDATE SET v = excluded.v, n = items.n + 1",
    'INSERT INTO stm.items (id) VALUES (2) ON CONFLICT (id) DO UPDATE SET id = 22 WHERE items.id = 2',
    `MERGE INTO stm.items t USING (SELECT i, 'merged' AS v FROM generate_series(19, 24) i) s ON t.id = s.i
       WHEN MATCHED AND s.i = 19 THEN DELETE WHEN MATCHED AND s.i = 20 THEN DO NOTHING
       WHEN MATCHED THEN UPDATE SET v = s.v WHEN NOT MATCHED THEN INSERT (id, v) VALUES (s.i, s.v)`,
    'UPDATE stm.items t SET n = s.n + 1 FROM stm.items s WHERE s.id = t.id + 1',
    'DELETE FROM stm.items t USING stm.items s WHERE s.id = t.id + 1 AND s.id > 22',
    `WITH gone AS (DELETE FROM stm.items WHERE id = 5 RETURNING *), moved AS (UPDATE stm.items SET v = 'cte' WHERE id = 6 RETURNING *)
       INSERT INTO stm.items (id, v) SELECT id + 100, v FROM gone UNION ALL SELECT id + 100, v FROM moved`,
    `BEGIN; DECLARE c CURSOR FOR SELECT * FROM stm.items WHERE id BETWEEN 7 AND 8 FOR UPDATE; FETCH c; UPDATE stm.items SET v = 'current' WHERE CURRENT OF c;
       FETCH c; DELETE FROM stm.items WHERE CURRENT OF c; COMMIT`,
    'SELECT * FROM stm.items FOR UPDATE',
    'BEGIN; UPDATE stm.items SET u = id; UPDATE stm.items SET id = id + 1000; UPDATE stm.items SET id = id - 1000; COMMIT',
    'BEGIN; DELETE FROM stm.items WHERE id = 3; INSERT INTO stm.items (id, v) VALUES (3, \'reborn\'); COMMIT',
    'BEGIN; INSERT INTO stm.items (id) VALUES (500); UPDATE stm.items SET id = 501 WHERE id = 500; DELETE FROM stm.items WHERE id = 501; COMMIT',
  ]));

  test('COPY', () => steps([
    String.raw`COPY stm.items (id, v) FROM PROGRAM $$printf '300\ta\\\\tb\n301\t\\\\N\n302\t\n'$$`,
    String.raw`COPY stm.items (id, v, n) FROM PROGRAM $$printf '303,"quoted ""x""",5\n304,,6\n'$$ (FORMAT csv)`,
    String.raw`BEGIN; COPY stm.parts FROM PROGRAM $$printf '1\t1\ta\n2\t11\tb\n3\t5\tc\n'$$; COMMIT`,
  ]));

  test('foreign keys that cascade', () => steps([
    'INSERT INTO stm.child VALUES (1, 9, 9, 9), (2, 9, 10, 10), (3, 10, 9, 10), (4, 11, 11, 11)',
    'UPDATE stm.items SET id = 109 WHERE id = 9',
    'DELETE FROM stm.items WHERE id = 10',
    'BEGIN; DELETE FROM stm.items WHERE id = 11; INSERT INTO stm.items (id) VALUES (11); COMMIT',
  ]));

  test('savepoints and blocks with exceptions', () => steps([
    `BEGIN; INSERT INTO stm.items (id) VALUES (400); SAVEPOINT a; INSERT INTO stm.items (id) VALUES (401); SAVEPOINT b; UPDATE stm.items SET v = 'b' WHERE id < 5;
       ROLLBACK TO b; INSERT INTO stm.items (id) VALUES (402); RELEASE a; COMMIT`,
    `BEGIN; SAVEPOINT a; UPDATE stm.items SET v = 'never'; DELETE FROM stm.child; ROLLBACK TO a; UPDATE stm.items SET v = 'kept' WHERE id = 400; COMMIT`,
    `DO $$ BEGIN FOR i IN 1..150 LOOP BEGIN INSERT INTO stm.items (id, v) VALUES (600 + i, 'sub');
       IF i % 3 = 0 THEN RAISE EXCEPTION 'undone'; END IF; EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$`,
    "BEGIN; UPDATE stm.items SET v = 'rolled back'; TRUNCATE stm.big; ROLLBACK",
    'BEGIN; SAVEPOINT a; TRUNCATE stm.big; ROLLBACK TO a; INSERT INTO stm.big (id) VALUES (1000); COMMIT',
  ]));

  test('large values', () => steps([
    `INSERT INTO stm.big VALUES (1, ${noise(60000)}, convert_to(${noise(30000, 2)}, 'UTF8'), 1), (2, repeat('compresses ', 5000), '\\x00', 2), (3, NULL, NULL, 3)`,
    'UPDATE stm.big SET v = v + 10',
    `UPDATE stm.big SET doc = ${noise(50000, 3)} WHERE id = 1`,
    'UPDATE stm.big SET id = id + 100',
    'UPDATE stm.big SET doc = doc || doc WHERE id = 102',
    'BEGIN; UPDATE stm.big SET v = 0; UPDATE stm.big SET raw = raw; UPDATE stm.big SET v = 1; COMMIT',
    `BEGIN; UPDATE stm.big SET doc = ${noise(20000, 4)} WHERE id = 101; UPDATE stm.big SET v = 2 WHERE id = 101; COMMIT`,
    'DELETE FROM stm.big WHERE id = 101',
  ]));

  test('large values under the replica identity of a key', async () => {
    for (const sql of [
      `INSERT INTO stm.lean VALUES (1, ${noise(50000)}, 1), (2, ${noise(60000, 2)}, 2)`,
      'UPDATE stm.lean SET v = v + 1',
      'UPDATE stm.lean SET id = id + 100',
      `UPDATE stm.lean SET doc = ${noise(40000, 3)}`,
      'DELETE FROM stm.lean WHERE id = 101',
    ]) {
      await db.exec(sql);
      await compare(sql);
    }
  });

  test('rows that move between partitions, and TRUNCATE of one', async () => {
    await steps([
      'UPDATE stm.parts SET day = day + 9 WHERE day < 10',
      "INSERT INTO stm.parts VALUES (1, 2, 'x') ON CONFLICT (id, day) DO UPDATE SET v = 'y'",
      "INSERT INTO stm.parts VALUES (1, 2, 'x') ON CONFLICT (id, day) DO UPDATE SET v = 'y'",
      'UPDATE stm.parts SET id = id + 1, day = 19 - day',
      'DELETE FROM stm.parts WHERE id = 2',
    ]);
    for (const sql of ["BEGIN; INSERT INTO stm.parts VALUES (50, 1, 'before'); TRUNCATE stm.parts_1; INSERT INTO stm.parts VALUES (51, 1, 'behind'); COMMIT", 'TRUNCATE stm.parts',
      String.raw`BEGIN; TRUNCATE stm.lean; COPY stm.lean FROM PROGRAM $$printf '1\ta\t1\n2\tb\t2\n'$$ (FREEZE); COMMIT`, 'TRUNCATE stm.items CASCADE']) {
      await db.exec(sql);
      await compare(sql);
    }
    await db.exec("INSERT INTO stm.items (id, v) SELECT i, 'v' FROM generate_series(1, 20) i");
    await compare('filled again');
  });

  test('prepared transactions', async () => {
    const known = resyncs().length;
    await db.exec("BEGIN; UPDATE stm.items SET v = 'prepared' WHERE id <= 5; SAVEPOINT a; DELETE FROM stm.items WHERE id = 6; ROLLBACK TO a; INSERT INTO stm.items (id) VALUES (760); PREPARE TRANSACTION 'stm one'");
    await db.exec("BEGIN; UPDATE stm.items SET v = 'never' WHERE id IN (7, 8); PREPARE TRANSACTION 'stm two'");
    await db.exec("UPDATE stm.items SET v = 'meanwhile' WHERE id = 9");
    await compare('prepared: nobody sees them');
    await db.exec("COMMIT PREPARED 'stm one'");
    await compare('committed');
    await db.exec("ROLLBACK PREPARED 'stm two'; UPDATE stm.items SET v = 'after' WHERE id = 7");
    await compare('rolled back');
    assert.deepEqual(resyncs().slice(known), []);
    assert.equal(client.subscriptions.get('stm_items').rows().filter(({ v }) => v === 'never').length, 0);
  });

  test('several sessions at once', async () => {
    const known = resyncs().length;
    const sessions = Array.from({ length: 3 }, () => new Session());
    await Promise.all(sessions.map(async (session, s) => {
      for (let i = 0; i < 60; i++) {
        const id = 800 + (i * 7) % 12;
        await session.exec([
          `INSERT INTO stm.items (id, n) VALUES (${id}, ${s}) ON CONFLICT (id) DO UPDATE SET n = items.n + 1`,
          `DELETE FROM stm.items WHERE id = ${id}`,
          `BEGIN; INSERT INTO stm.items (id) VALUES (${id}) ON CONFLICT DO NOTHING; SAVEPOINT a; UPDATE stm.items SET v = 's${s}' WHERE id = ${id}; ${i % 2 ? 'ROLLBACK TO a;' : ''} COMMIT`,
        ][(i + s) % 3]);
      }
    }));
    await compare('at once');
    assert.deepEqual(resyncs().slice(known), []);
    for (const session of sessions) await session.close();
  });

  test('transactions that are spilled to disk', async () => {
    const known = resyncs().length;
    const spilled = () => db.value(`SELECT coalesce(sum(spill_txns), 0) FROM pg_stat_replication_slots JOIN pg_replication_slots USING (slot_name)
      WHERE slot_name LIKE 'pg\\_changefeed\\_%' AND database = current_database()`).then(Number);
    await db.exec("ALTER SYSTEM SET logical_decoding_work_mem = '64kB'; SELECT pg_reload_conf()");
    try {
      const before = await spilled();
      // The decoder reads the setting when it next looks for WAL.
      for (let i = 0; i < 50 && (await spilled()) === before; i++) {
        await db.exec(`BEGIN; UPDATE stm.items SET v = repeat('spilled ${i} ', 10); INSERT INTO stm.items (id, v) SELECT 10000 + i, repeat('x', 200) FROM generate_series(1, 1500) i;
          SAVEPOINT a; UPDATE stm.items SET v = 'never' WHERE id > 10000; ROLLBACK TO a; UPDATE stm.big SET v = v + 1; DELETE FROM stm.items WHERE id > 10100; COMMIT`);
        await compare('spilled');
        await db.exec(`DELETE FROM stm.items WHERE id > 10000; BEGIN; INSERT INTO stm.big SELECT 2000 + i, ${noise(3000)} FROM generate_series(1, 40) i; PREPARE TRANSACTION 'stm big'; COMMIT PREPARED 'stm big'; DELETE FROM stm.big WHERE id > 2000`);
        await compare('spilled, prepared');
      }
      assert.ok(await spilled() > before, 'no transaction was spilled');
      assert.deepEqual(resyncs().slice(known), []);
    } finally {
      await db.exec('ALTER SYSTEM RESET logical_decoding_work_mem; SELECT pg_reload_conf()');
    }
  });

  test('a row that is too large is fetched again, and nothing ends', async () => {
    const generation = () => db.value('SELECT generation FROM changefeed.stat_feed');
    const before = await generation();
    await db.exec(`INSERT INTO stm.big (id, doc) VALUES (900, ${noise(2500000)})`);
    await compare('too large');
    assert.equal(subscriptions.big.resyncs.at(-1), 'change_not_readable');
    await db.exec('UPDATE stm.big SET v = 1; DELETE FROM stm.big WHERE id = 900');
    await compare('and behind it');
    assert.equal(await generation(), before);
  });

  test('changes that logical replication applies', async () => {
    const known = resyncs().length;
    await db.exec('CREATE DATABASE stm_publisher');
    const publisher = new Session({ database: 'stm_publisher' });
    try {
      await publisher.exec(`CREATE SCHEMA stm; ${TABLES.items}; ${TABLES.big}; CREATE PUBLICATION stm_pub FOR TABLE stm.items (id, v, n, u), stm.big;
        SELECT pg_create_logical_replication_slot('stm_slot', 'pgoutput')`);
      await db.exec(`CREATE SUBSCRIPTION stm_sub CONNECTION ${quote(`host=${process.env.PGHOST} port=${process.env.PGPORT} user=${process.env.PGUSER} dbname=stm_publisher`)}
        PUBLICATION stm_pub WITH (create_slot = false, slot_name = 'stm_slot', copy_data = false)`);
      await publisher.exec(`INSERT INTO stm.items (id, v) SELECT i, 'replicated' FROM generate_series(900, 950) i; INSERT INTO stm.big VALUES (901, ${noise(100000, 9)}, '\\x01', 1);
        UPDATE stm.items SET n = 5 WHERE id < 910; UPDATE stm.big SET v = 7; UPDATE stm.items SET id = id + 50 WHERE id > 940; DELETE FROM stm.items WHERE id BETWEEN 920 AND 930`);
      await until(async () => await db.value("SELECT count(*) FROM stm.items WHERE v = 'replicated'") === '40', 'applied');
      await compare('replicated');
      assert.equal(number(subscriptions.big.rows().find(({ id }) => number(id) === 901).v), 7);
      assert.deepEqual(resyncs().slice(known), []);
    } finally {
      await db.exec("ALTER SUBSCRIPTION stm_sub DISABLE; ALTER SUBSCRIPTION stm_sub SET (slot_name = NONE); DROP SUBSCRIPTION stm_sub").catch(() => {});
      await until(() => publisher.exec("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = 'stm_slot'").then(() => true, () => false), 'slot dropped');
      await publisher.close();
      await db.exec('DROP DATABASE stm_publisher WITH (FORCE)');
    }
  });

  test('changes with an origin', async () => {
    const session = new Session();
    await session.exec("SELECT pg_replication_origin_create('stm_origin'); SELECT pg_replication_origin_session_setup('stm_origin'); UPDATE stm.items SET v = 'from elsewhere' WHERE id < 5");
    await compare('origin');
    await session.exec("SELECT pg_replication_origin_session_reset(); SELECT pg_replication_origin_drop('stm_origin')");
    await session.close();
  });

  test('rewriting commands', async () => {
    for (const sql of ['VACUUM FULL stm.items', 'CLUSTER stm.items USING items_pkey', "BEGIN; UPDATE stm.items SET v = 'then'; ALTER TABLE stm.items DROP COLUMN twice; ALTER TABLE stm.items ALTER n TYPE bigint; UPDATE stm.items SET v = v || ' rewritten'; COMMIT",
      'ALTER TABLE stm.items ADD COLUMN added timestamptz DEFAULT now(); UPDATE stm.items SET n = 1 WHERE id < 3', "ALTER TABLE stm.items ALTER added TYPE text; INSERT INTO stm.items (id) VALUES (1500)"]) {
      await db.exec(sql);
      await compare(sql);
    }
  });
});
