// Channels with min_interval: few frames, and after each of them the client's
// rows are those of the transaction that its position names.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { assertSame, Client, rowTexts, until } from './lib/client.mjs';
import { Events, poll } from './lib/http.mjs';
import { number } from './lib/json.mjs';
import { reload, Session } from './lib/psql.mjs';
import { randomOf } from './lib/random.mjs';

const INTERVAL = 250;
const ADA = { role: 'pace_web', sub: 'ada' };
const EVE = { role: 'pace_web', sub: 'eve' };

describe('pacing', () => {
  let db;
  const clients = [];
  const seed = Number(process.env.PACE_SEED ?? Math.floor(Math.random() * 1e6));

  before(async () => {
    db = new Session();
    await db.exec(`CREATE SCHEMA pace; CREATE ROLE pace_web; GRANT USAGE ON SCHEMA pace TO pace_web;
      ALTER DEFAULT PRIVILEGES IN SCHEMA pace GRANT SELECT ON TABLES TO pace_web;
      SELECT changefeed.allow_role('pace_web');
      CREATE TABLE pace.plain (id int PRIMARY KEY, n int);
      INSERT INTO pace.plain VALUES (1, 1);
      SELECT changefeed.create_channel('plain', 'pace.plain');
      CREATE TABLE pace.items (id int PRIMARY KEY, room int, v int, w text DEFAULT 'w');
      SELECT changefeed.create_channel('items:{room}', 'pace.items', min_interval => '${INTERVAL} ms');
      SELECT changefeed.create_channel('quick:{room}', 'pace.items', min_interval => '20 ms');
      CREATE TABLE pace.members (room int, uid text, PRIMARY KEY (room, uid));
      CREATE TABLE pace.judged (id int PRIMARY KEY, room int, v int);
      ALTER TABLE pace.judged ENABLE ROW LEVEL SECURITY;
      CREATE POLICY p ON pace.judged USING (EXISTS (SELECT FROM pace.members m WHERE m.room = judged.room AND m.uid = current_setting('request.jwt.claims')::jsonb->>'sub'));
      SELECT changefeed.create_channel('judged', 'pace.judged', min_interval => '20 ms')`);
  });

  after(async () => {
    for (const client of clients) await client.cut();
    await db?.close();
  });

  async function connect(claims = ADA) {
    const client = await Client.connectSoon({ token: await db.token(claims) });
    clients.push(client);
    return client;
  }

  /** From now on it does not read, and there is more of that table than it may be sent. */
  async function choke(client, table) {
    client.socket.pause();
    await until(async () => {
      await db.exec(`INSERT INTO ${table} SELECT coalesce((SELECT max(id) FROM ${table}), 0) + i, repeat('x', 1000) FROM generate_series(1, 1000) i`);
      return await db.value("SELECT count(*) FROM changefeed.stat_connections WHERE state = 'choked'") === '1';
    }, 'it is choked');
  }

  /** Transactions of one writer, one after the other, and the rows behind each. */
  class History {
    states = new Map(); // by txid: rows of all of the table
    last = null;

    constructor(table) {
      this.table = table;
    }

    async write(sql) {
      const [txid, ...rows] = (await db.exec(`BEGIN; ${sql}; SELECT pg_current_xact_id(); SELECT to_jsonb(q)::text FROM ${this.table} q; COMMIT`)).split('\n');
      this.last = { txid, rows: rows.filter((row) => row !== '').map((row) => JSON.parse(row)) };
      this.states.set(txid, this.last.rows);
    }
  }

  /** Checks the cache against the history at each frame. */
  function follow(subscription, history, sees) {
    const failures = [];
    const frames = [];
    subscription.client.onTransaction = (frame) => {
      if (frame.changes[0].channel !== subscription.name) return;
      frames.push({ txid: frame.txid, at: Date.now(), rows: rowTexts(subscription.rows()), position: frame.position });
    };
    return {
      frames,
      check() {
        for (const { txid, rows } of frames) {
          const state = history.states.get(txid);
          assert.ok(state, `transaction ${txid} was written`);
          assert.deepEqual(rows.map((row) => JSON.stringify(JSON.parse(row))), rowTexts(state.filter(sees)), `at transaction ${txid}`);
        }
        assert.deepEqual(failures, []);
      },
    };
  }

  const inRoom = (room) => (row) => row.room === room;

  test('says so, and folds', async (t) => {
    const client = await connect();
    const subscription = await client.openSoon('items:1');
    assert.equal(subscription.paced, true);
    const history = new History('pace.items');
    const followed = follow(subscription, history, inRoom(1));
    await history.write('INSERT INTO pace.items SELECT i, 1, 0 FROM generate_series(1, 5) i');
    const begin = Date.now();
    const { random: next } = randomOf(seed);
    let writes = 0;
    while (Date.now() < begin + 8 * INTERVAL) {
      await history.write(`UPDATE pace.items SET v = v + 1 WHERE id = ${1 + next(5)}`);
      writes += 1;
    }
    const took = Date.now() - begin;
    // The last one comes by itself, without a request that would hasten it.
    await until(() => followed.frames.at(-1)?.txid === history.last.txid, 'the last state');
    followed.check();
    client.check();
    t.diagnostic(`${writes} transactions in ${took} ms: ${followed.frames.length} frames`);
    assert.ok(followed.frames.length <= took / INTERVAL + 3, `${followed.frames.length} frames in ${took} ms`);
    assert.ok(followed.frames.length >= 2);
    assertSame(subscription.rows(), await db.rows('SELECT * FROM pace.items WHERE room = 1'), 'items:1');
  });

  test('an answer to sync has no position past what came later and was put off', async (t) => {
    // `at` lies behind the commits before this one, and before its own.
    await db.exec(`CREATE TABLE pace.many (id int PRIMARY KEY, at pg_lsn DEFAULT pg_current_wal_insert_lsn()); CREATE TABLE pace.other (id int);
      SELECT changefeed.create_channel('many', 'pace.many', min_interval => '1 hour');
      CREATE PROCEDURE pace.fill() LANGUAGE plpgsql AS $$ BEGIN FOR i IN 1..400 LOOP INSERT INTO pace.many VALUES (i); COMMIT; INSERT INTO pace.other SELECT generate_series(1, 100); COMMIT; END LOOP; END $$`);
    const client = await connect();
    const many = await client.openSoon('many');
    const seen = [];
    client.onMessage = ({ type, position }) => { if (type === 'synced' && position !== undefined) seen.push({ position, rows: many.rows().length }); };
    const writer = new Session();
    let writing = true;
    const done = writer.exec('CALL pace.fill()').finally(() => { writing = false; });
    let syncs = 0;
    while (writing) {
      await client.sync();
      syncs += 1;
    }
    await done;
    await writer.close();
    await client.settle();
    client.check();
    const begins = (await db.exec("SELECT at - '0/0' FROM pace.many ORDER BY id")).split('\n').map(BigInt);
    t.diagnostic(`${syncs} syncs, ${seen.length} positions`);
    assert.ok(seen.length > 0);
    for (const { position, rows } of seen) {
      const lsn = Buffer.from(position.slice(0, 32), 'base64url').readBigUInt64BE(8);
      assert.ok(rows === begins.length || lsn < begins[rows], `${position} with ${rows} rows`);
    }
    assertSame(many.rows(), await db.rows('SELECT * FROM pace.many'), 'many');
  });

  test('event streams and polls: other channels move its position past nothing', async () => {
    await db.exec(`CREATE TABLE pace.rare (id int PRIMARY KEY, v int); INSERT INTO pace.rare VALUES (1, 1);
      SELECT changefeed.create_channel('rare', 'pace.rare', min_interval => '1 hour')`);
    const channels = ['rare', 'plain'];
    const token = await db.token(ADA);
    const follower = await connect();
    await follower.openSoon('rare');
    await follower.settle();
    const events = await Events.open(channels, { token });
    await Promise.all(channels.map((channel) => events.subscription(channel).ready()));
    const value = (channel, column) => number(events.subscription(channel).rows()[0][column]);
    await db.exec('UPDATE pace.rare SET v = 2');
    await until(() => value('rare', 'v') === 2, 'the first change');
    const first = events.state();
    await db.exec('UPDATE pace.rare SET v = 3');
    await db.exec('UPDATE pace.plain SET n = 77');
    await until(() => value('plain', 'n') === 77, 'the other channel');
    const states = [first, events.state()];
    const waited = await poll(channels, { token, ...states[1], wait: 0 });
    // A ping while something is put off has no position.
    const count = () => events.events.filter(({ data }) => data.startsWith('{"type":"ping"')).length;
    const pings = count();
    await until(() => count() > pings, 'a ping', 10000);
    assert.equal(value('rare', 'v'), 2, 'put off');
    states.push(await events.cut());
    for (const state of states) {
      const again = await Events.open(channels, { token, ...state });
      for (const channel of channels) {
        await again.subscription(channel).ready();
        again.client.check();
        assertSame(again.subscription(channel).rows(), await db.rows(`SELECT * FROM pace.${channel}`), `${channel} from ${state.position}`);
        assert.deepEqual(again.subscription(channel).resyncs, []);
      }
      await again.cut();
    }
    // A poll gets what others wait for. That something is put off for them is no news for the next one.
    assertSame(waited.rows('rare'), await db.rows('SELECT * FROM pace.rare'), 'the poll');
    const none = await poll(channels, { token, ...waited, wait: 0 });
    assert.equal(none.status, 304, JSON.stringify(none.messages));
    await follower.settle();
    await db.exec('UPDATE pace.rare SET v = 4');
    const last = await poll(channels, { token, ...none, wait: 5 });
    assertSame(last.rows('rare'), await db.rows('SELECT * FROM pace.rare'), 'the last poll');
  });

  test('after a quiet time the first change comes at once', async () => {
    await db.exec(`CREATE TABLE pace.seldom (id int PRIMARY KEY, v int); INSERT INTO pace.seldom VALUES (1, 1);
      SELECT changefeed.create_channel('seldom', 'pace.seldom', min_interval => '1 hour')`);
    const client = await connect();
    const subscription = await client.openSoon('seldom');
    await db.exec('UPDATE pace.seldom SET v = 2');
    await until(() => subscription.rows().some(({ v }) => number(v) === 2), 'the first change');
    await db.exec('UPDATE pace.seldom SET v = 3');
    await db.exec('UPDATE pace.seldom SET v = 4');
    // Whoever asks for everything gets it.
    await client.settle();
    assert.equal(number(subscription.rows()[0].v), 4);
    assert.equal(subscription.changes, 2);
    client.check();
  });

  test('what came and went is not told, nor what is as it was', async () => {
    const client = await connect();
    const subscription = await client.openSoon('items:2');
    await client.settle();
    await db.exec("INSERT INTO pace.items VALUES (10, 2, 0), (11, 2, 0), (12, 3, 0)");
    await client.settle();
    const before = subscription.changes;
    const seen = [];
    subscription.onChange = (change) => seen.push(change);
    // A step of the channel has just been sent: all of these are put off.
    await db.exec('INSERT INTO pace.items VALUES (20, 2, 0)');
    await db.exec('UPDATE pace.items SET v = 1 WHERE id = 10');
    await db.exec('UPDATE pace.items SET room = 3 WHERE id = 11');
    await db.exec('UPDATE pace.items SET v = 7 WHERE id = 11');
    await db.exec('DELETE FROM pace.items WHERE id = 20');
    await db.exec('UPDATE pace.items SET v = 0 WHERE id = 10');
    await db.exec('UPDATE pace.items SET room = 2 WHERE id = 12');
    await db.exec('UPDATE pace.items SET id = 13 WHERE id = 12');
    await db.exec('UPDATE pace.items SET room = 2 WHERE id = 11');
    await client.settle();
    client.check();
    assertSame(subscription.rows(), await db.rows('SELECT * FROM pace.items WHERE room = 2'), 'items:2');
    assert.equal(subscription.changes - before, seen.length);
    const final = seen.map(({ op, key, set }) => [op, number(key.id), set === undefined ? undefined : number(set.v)]).sort((a, b) => a[1] - b[1]);
    // How many steps there were depends on the clock; if it was one, this is it.
    if (new Set(seen.map(({ key }) => number(key.id))).size === seen.length) assert.deepEqual(final.filter(([, id]) => id > 10), [['merge', 11, 7], ['append', 13, undefined]]);
  });

  test('random transactions, cut and resumed at any position, beside another channel', async (t) => {
    t.diagnostic(`seed ${seed}`);
    const { random: next } = randomOf(seed + 1);
    const history = new History('pace.items');
    let client = await connect();
    let subscription = await client.openSoon('quick:5');
    const plain = await client.openSoon('plain');
    let cache = subscription;
    let plainCache = plain;
    let recovered = 0;
    let followed = follow(subscription, history, inRoom(5));
    let frames = 0;
    for (let round = 0; round < 400; round += 1) {
      const id = 100 + next(12);
      const sql = [
        `INSERT INTO pace.items VALUES (${id}, ${5 + next(2)}, ${next(5)}) ON CONFLICT (id) DO UPDATE SET v = excluded.v`,
        `UPDATE pace.items SET v = ${next(5)}, w = repeat('x', ${next(3)}) WHERE id BETWEEN ${id} AND ${id + next(4)}`,
        `DELETE FROM pace.items WHERE id = ${id}`,
        `UPDATE pace.items SET room = 11 - room WHERE id = ${id}`,
        `UPDATE pace.items SET id = CASE id WHEN ${id} THEN 99 ELSE ${id} END WHERE id IN (${id}, 99) AND NOT EXISTS (SELECT FROM pace.items WHERE id = 99)`,
        'UPDATE pace.plain SET n = n + 1',
      ][next(6)];
      await history.write(sql);
      if (next(12) === 0) {
        followed.check();
        frames += followed.frames.length;
        const from = subscription.position;
        const plainFrom = client.subscriptions.get('plain').position;
        await client.cut();
        client.check();
        client = await connect();
        subscription = await client.subscribe('quick:5', { from, cache });
        followed = follow(subscription, history, inRoom(5));
        plainCache = await client.open('plain', { from: plainFrom, cache: plainCache });
        await subscription.ready();
        recovered += subscription.recovered ? 1 : 0;
        assert.deepEqual(subscription.resyncs, []);
        cache = subscription;
      }
    }
    await client.settle();
    client.check();
    followed.check();
    frames += followed.frames.length;
    assert.ok(recovered > 3, `${recovered} resumptions`);
    t.diagnostic(`${frames} frames, ${recovered} resumptions`);
    assertSame(subscription.rows(), await db.rows('SELECT * FROM pace.items WHERE room = 5'), 'quick:5');
    assertSame(plainCache.rows(), await db.rows('SELECT * FROM pace.plain'), 'plain');
  });

  test('judged rows, for each what he may see', async () => {
    const { random: next } = randomOf(seed + 2);
    const history = new History('pace.judged');
    await db.exec("INSERT INTO pace.members VALUES (1, 'ada'), (2, 'ada'), (2, 'eve')");
    const ada = await (await connect(ADA)).openSoon('judged');
    const eve = await (await connect(EVE)).openSoon('judged');
    await ada.client.settle();
    await eve.client.settle();
    // The members were written a moment ago, which may have cost a snapshot.
    for (const subscription of [ada, eve]) subscription.resyncs.length = 0;
    const followed = [follow(ada, history, ({ room }) => room === 1 || room === 2), follow(eve, history, ({ room }) => room === 2)];
    for (let round = 0; round < 120; round += 1) {
      const id = next(10);
      await history.write([
        `INSERT INTO pace.judged VALUES (${id}, ${1 + next(3)}, ${next(9)}) ON CONFLICT (id) DO UPDATE SET v = excluded.v`,
        `UPDATE pace.judged SET room = ${1 + next(3)} WHERE id = ${id}`,
        `DELETE FROM pace.judged WHERE id = ${id}`,
        `UPDATE pace.judged SET v = v + 1 WHERE id <= ${id}`,
      ][next(4)]);
    }
    for (const subscription of [ada, eve]) {
      await subscription.client.settle();
      subscription.client.check();
    }
    for (const one of followed) one.check();
    assert.ok(followed[0].frames.length > 0);
    assertSame(ada.rows(), await db.rowsAs(ADA, 'SELECT * FROM pace.judged'), 'ada');
    assertSame(eve.rows(), await db.rowsAs(EVE, 'SELECT * FROM pace.judged'), 'eve');
    assert.deepEqual([...ada.resyncs, ...eve.resyncs], []);

    // A lost membership is at once, whatever is put off.
    await db.exec('INSERT INTO pace.judged VALUES (1, 2, 0) ON CONFLICT (id) DO UPDATE SET room = 2');
    await eve.client.settle();
    assert.notEqual(eve.rows().length, 0, 'she has rows to lose');
    await db.exec('UPDATE pace.judged SET v = v + 1');
    await db.exec("DELETE FROM pace.members WHERE uid = 'eve'");
    await until(() => eve.rows().length === 0 && eve.state === 'ready', 'eve has lost her rows');
    assert.deepEqual(eve.resyncs, ['dependency_changed']);
    await ada.client.settle();
    assertSame(ada.rows(), await db.rowsAs(ADA, 'SELECT * FROM pace.judged'), 'ada');
  });

  test('conditions, every room, no snapshot', async () => {
    const { random: next } = randomOf(seed + 3);
    const client = await connect();
    const all = await client.openSoon('quick:*');
    const some = await client.openSoon('quick:*?v=gt.2&select=v');
    const changes = await client.openSoon('quick:5', { snapshot: false });
    for (let round = 0; round < 60; round += 1) {
      const id = 200 + next(8);
      await db.exec([
        `INSERT INTO pace.items VALUES (${id}, ${5 + next(2)}, ${next(5)}) ON CONFLICT (id) DO UPDATE SET v = excluded.v`,
        `UPDATE pace.items SET v = ${next(5)} WHERE id >= ${id}`,
        `DELETE FROM pace.items WHERE id = ${id}`,
      ][next(3)]);
    }
    await client.settle();
    client.check();
    assertSame(all.rows(), await db.rows('SELECT * FROM pace.items'), 'all');
    assertSame(some.rows(), await db.rows('SELECT id, v FROM pace.items WHERE v > 2'), 'some');
    const held = new Map((await db.rows('SELECT * FROM pace.items WHERE room = 5')).map((row) => [String(row.id), row]));
    for (const row of changes.rows()) assert.deepEqual(rowTexts([row]), rowTexts([held.get(String(row.id))]));
  });

  test('values that the WAL does not repeat', async () => {
    await db.exec(`CREATE TABLE pace.large (id int PRIMARY KEY, n int, big text);
      ALTER TABLE pace.large ALTER big SET STORAGE EXTERNAL;
      SELECT changefeed.create_channel('large', 'pace.large', min_interval => '${INTERVAL} ms');
      ALTER TABLE pace.large REPLICA IDENTITY USING INDEX large_pkey;
      INSERT INTO pace.large VALUES (1, 1, repeat('x', 10000)), (2, 1, repeat('x', 10000))`);
    const client = await connect();
    const large = await client.openSoon('large', { repeats: true });
    await client.settle();
    await db.exec('UPDATE pace.large SET n = 2');
    await client.settle();
    // In one step: the value changes, then a change leaves it alone.
    await db.exec("UPDATE pace.large SET big = repeat('y', 10000) WHERE id = 1");
    await db.exec('UPDATE pace.large SET n = 3');
    await db.exec('UPDATE pace.large SET n = 4 WHERE id = 1');
    await client.settle();
    client.check();
    assertSame(large.rows(), await db.rows('SELECT * FROM pace.large'), 'large');
    assert.deepEqual(large.resyncs, []);
  });

  test('a slow client gets there, and nobody waits for it', async () => {
    await db.exec(`CREATE TABLE pace.bulk (id int PRIMARY KEY, v text); SELECT changefeed.create_channel('bulk', 'pace.bulk', min_interval => '50 ms')`);
    const slow = await connect();
    const fast = await connect();
    const [one, two] = [await slow.openSoon('bulk'), await fast.openSoon('bulk')];
    slow.socket.pause();
    for (let i = 0; i < 40; i += 1) {
      await db.exec(`INSERT INTO pace.bulk SELECT i, repeat('x', 5000) FROM generate_series(${i * 50}, ${i * 50 + 49}) i; UPDATE pace.bulk SET v = v || 'y' WHERE id % 50 = 0`);
      if (i % 10 === 0) await fast.settle();
    }
    await fast.settle();
    assertSame(two.rows(), await db.rows('SELECT * FROM pace.bulk'), 'the fast one');
    slow.socket.resume();
    await slow.settle();
    slow.check();
    fast.check();
    assertSame(one.rows(), await db.rows('SELECT * FROM pace.bulk'), 'the slow one');
  });

  test('who could not take it when the verdict came gets it afterwards, without another one', async (t) => {
    await db.exec(`CREATE FUNCTION pace.is_open(int) RETURNS bool LANGUAGE plpgsql STABLE AS $$
        BEGIN WHILE NOT pg_try_advisory_xact_lock_shared(4719) LOOP PERFORM pg_sleep(0.005); END LOOP; RETURN true; END $$;
      SELECT changefeed.declare_dependency('pace.is_open(int)');
      CREATE TABLE pace.gate (id int PRIMARY KEY); ALTER TABLE pace.gate ENABLE ROW LEVEL SECURITY;
      CREATE POLICY p ON pace.gate USING (pace.is_open(id));
      SELECT changefeed.create_channel('gate', 'pace.gate', min_interval => '20 ms');
      CREATE TABLE pace.flood (id int PRIMARY KEY, v text); SELECT changefeed.create_channel('flood', 'pace.flood')`);
    await reload(db, { 'changefeed.policy_timeout': '60s', 'changefeed.heartbeat': '300s' });
    t.after(() => reload(db, { 'changefeed.policy_timeout': null, 'changefeed.heartbeat': null }));
    const [slow, fast] = [await connect(), await connect()];
    const [one, two] = [await slow.openSoon('gate'), await fast.open('gate')];
    const flood = await slow.openSoon('flood');

    await db.exec('SELECT pg_advisory_lock(4719)');
    await db.exec('INSERT INTO pace.gate VALUES (1)');
    await until(() => db.value("SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'changefeed query%' AND query LIKE 'judging %' AND state = 'active'").then((n) => n !== '0'), 'the row is judged');
    await choke(slow, 'pace.flood');
    await db.exec('SELECT pg_advisory_unlock(4719)');
    await fast.settle();
    assertSame(two.rows(), await db.rows('SELECT * FROM pace.gate'), 'the fast one');
    slow.socket.resume();
    await slow.settle();
    assertSame(one.rows(), await db.rows('SELECT * FROM pace.gate'), 'the slow one');
    assertSame(flood.rows(), await db.rows('SELECT * FROM pace.flood'), 'beside it');
    for (const client of [slow, fast]) client.check();
  });

  test('who comes back on a connection that is behind gets what nobody was there for', async (t) => {
    await db.exec(`CREATE TABLE pace.late (id int PRIMARY KEY); SELECT changefeed.create_channel('late', 'pace.late', min_interval => '20 ms');
      CREATE TABLE pace.much (id int PRIMARY KEY, v text); SELECT changefeed.create_channel('much', 'pace.much')`);
    await reload(db, { 'changefeed.heartbeat': '300s' });
    t.after(() => reload(db, { 'changefeed.heartbeat': null }));
    const [slow, fast] = [await connect(), await connect()];
    const much = await slow.openSoon('much');
    const held = await fast.openSoon('late');
    await db.exec('INSERT INTO pace.late VALUES (1)');
    await fast.settle();
    const { position, entities: [[name, entity]] } = { position: held.position, entities: [...held.entities] };
    const cache = { entities: new Map([[name, { ...entity, rows: new Map(entity.rows) }]]) };
    await fast.unsubscribe('late');
    await choke(slow, 'pace.much');
    await db.exec('INSERT INTO pace.late VALUES (2)');
    await fast.sync();
    const opening = slow.subscribe('late', { from: position, cache });
    await until(() => db.value("SELECT count(*) FROM changefeed.stat_subscriptions WHERE channel = 'late' AND state = 'ready'").then((n) => n === '1'), 'ready on the server');
    slow.socket.resume();
    const late = await opening;
    assert.equal(late.recovered, true);
    await slow.settle();
    assertSame(late.rows(), await db.rows('SELECT * FROM pace.late'), 'late');
    assertSame(much.rows(), await db.rows('SELECT * FROM pace.much'), 'beside it');
    slow.check();
  });

  test('TRUNCATE, GRANT and a new definition, with changes put off', async () => {
    const client = await connect();
    const items = await client.openSoon('items:*');
    await client.settle();
    await db.exec('UPDATE pace.items SET v = v + 1');
    await db.exec('UPDATE pace.items SET v = v + 1; TRUNCATE pace.items');
    await client.settle();
    assert.deepEqual(items.rows(), []);
    await db.exec('INSERT INTO pace.items VALUES (1, 1, 1), (2, 1, 1)');
    await db.exec('INSERT INTO pace.items VALUES (3, 1, 1)');
    await db.exec('REVOKE SELECT ON pace.items FROM pace_web; GRANT SELECT (id, room, v) ON pace.items TO pace_web');
    await client.settle();
    assertSame(items.rows(), await db.rows('SELECT id, room, v FROM pace.items'), 'with fewer columns');
    await db.exec('ALTER TABLE pace.items ADD COLUMN more int DEFAULT 7; GRANT SELECT ON pace.items TO pace_web');
    await db.exec('UPDATE pace.items SET v = 9');
    await client.settle();
    assertSame(items.rows(), await db.rows('SELECT * FROM pace.items'), 'with a new column');
    await db.exec(`UPDATE pace.items SET v = 10;
      BEGIN; SELECT changefeed.drop_channel('items:{room}'); SELECT changefeed.create_channel('items:{room}', 'pace.items'); COMMIT`);
    await until(() => items.resyncs.includes('channel_changed'), 'the new definition');
    await items.ready();
    client.check();
    assert.equal(items.paced, false);
    await db.exec('UPDATE pace.items SET v = 11');
    await client.settle();
    client.check();
    assertSame(items.rows(), await db.rows('SELECT * FROM pace.items'), 'at once');
  });
});
