// Transactions that are larger than what one bound or another allows.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { assertSame, Client } from './lib/client.mjs';
import { reload, Session } from './lib/psql.mjs';

const ROWS = 200000;

describe('large transactions', () => {
  let db;
  let token;
  const clients = [];

  before(async () => {
    db = new Session();
    await db.exec(`CREATE SCHEMA large; CREATE ROLE large_web; GRANT USAGE ON SCHEMA large TO large_web;
      SELECT changefeed.allow_role('large_web');
      CREATE TABLE large.item (id int PRIMARY KEY, ch int NOT NULL, n int NOT NULL DEFAULT 0);
      CREATE TABLE large.other (id int PRIMARY KEY, n int NOT NULL DEFAULT 0);
      GRANT SELECT ON ALL TABLES IN SCHEMA large TO large_web;
      INSERT INTO large.item SELECT i, i % 2 FROM generate_series(1, ${ROWS}) i;
      INSERT INTO large.other VALUES (1);
      SELECT changefeed.create_channel('large:{ch}', 'large.item');
      SELECT changefeed.create_channel('other', 'large.other');
      ALTER SYSTEM SET logical_decoding_work_mem = '64kB'`);
    token = await db.token({ role: 'large_web' });
    await (await Client.connectSoon({ token })).close();
  });

  after(async () => {
    for (const client of clients) await client.cut();
    await db.exec('ALTER SYSTEM RESET ALL; SELECT pg_reload_conf()').catch(() => {});
    await db?.close();
  });

  async function connect() {
    const client = await Client.connect({ token });
    clients.push(client);
    return client;
  }

  const set = (settings) => reload(db, settings);

  const same = async (s, ch) => assertSame(s.rows(), await db.rows(`SELECT * FROM large.item WHERE ch = ${ch}`), s.name);

  test('above max_transaction: a snapshot for those concerned, and nothing for others', async () => {
    await set({ 'changefeed.max_transaction': '2MB' });
    const client = await connect();
    const s = await client.open('large:1');
    const other = await client.open('other');
    const sent = () => db.value('SELECT bytes FROM changefeed.stat_feed').then(Number);
    const before = await sent();
    await db.exec('BEGIN; UPDATE large.item SET n = n + 1; UPDATE large.other SET n = n + 1; COMMIT');
    await client.settle(60000);
    client.check();
    assert.deepEqual(s.resyncs, ['transaction_too_large']);
    await same(s, 1);
    // What would only be thrown away is not sent: the rows alone are 20 MB.
    const bytes = await sent() - before;
    assert.ok(bytes > 2e6 && bytes < 3e6, `${bytes} bytes`);
    // It is a part of the same transaction, and its rows are right, whichever way they came.
    assertSame(other.rows(), await db.rows('SELECT * FROM large.other'), 'other');
    await db.exec('UPDATE large.item SET n = n + 1 WHERE id = 1; UPDATE large.other SET n = n + 1');
    await client.settle();
    await same(s, 1);
    assert.equal(s.resyncs.length, 1);
    await client.close();
  });

  test(`within it: ${ROWS} rows in one transaction, live, while away, and for one who does not read`, { timeout: 300000 }, async (t) => {
    // The one who does not read cannot answer pings.
    await set({ 'changefeed.heartbeat': '120s', 'changefeed.max_transaction': '256MB', 'changefeed.history_size': '512MB', 'changefeed.worker_memory': '2GB' });
    const live = await connect();
    const s = await live.open('large:1');
    const slow = await connect();
    const u = await slow.open('large:0');
    const away = await connect();
    const held = await away.open('large:0');
    await away.close();
    slow.socket.pause();
    const begun = Date.now();
    await db.exec('UPDATE large.item SET n = n + 1');
    await live.settle(120000);
    t.diagnostic(`live after ${Date.now() - begun} ms, in ${live.parts} parts`);
    assert.ok(live.parts > 10, `${live.parts} parts`);
    assert.equal(live.transactions, 1);
    assert.equal(s.changes, ROWS / 2);
    assert.deepEqual(s.resyncs, []);
    await same(s, 1);

    const back = await connect();
    const b = await back.open('large:0', { from: held.position, cache: held });
    await back.settle(120000);
    assert.equal(b.recovered, true);
    assert.equal(b.changes, ROWS / 2);
    assert.deepEqual(b.resyncs, []);
    await same(b, 0);

    // More, behind what it has not read yet.
    await db.exec('UPDATE large.item SET n = n + 1 WHERE id < 1000');
    slow.socket.resume();
    await slow.settle(120000);
    slow.check();
    t.diagnostic(`the slow one: ${u.changes} changes, resyncs ${u.resyncs}`);
    assert.deepEqual(u.resyncs, []);
    await same(u, 0);
    const spilled = Number(await db.value("SELECT sum(spill_txns) FROM pg_stat_replication_slots WHERE slot_name LIKE 'pg_changefeed_%'"));
    t.diagnostic(`${spilled} transactions were spilled to disk`);
    for (const client of [live, back, slow]) await client.close();
  });
});
