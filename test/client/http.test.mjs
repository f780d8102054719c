// client/: event streams, polls, and the way between them and WebSockets; lossless numbers; presence.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { automatic, eventStream, longPoll } from '../../client/dist/http.js';
import { lossless } from '../../client/dist/lossless.js';
import { lock, presence } from '../../client/dist/presence.js';
import { until } from '../integration/lib/client.mjs';
import { Session } from '../integration/lib/psql.mjs';
import { Proxy } from './lib/proxy.mjs';
import WebSocketOf from 'ws';
import { same, start, when } from './lib/page.mjs';

let db;
let token;

before(async () => {
  db = new Session();
  await db.exec(`CREATE ROLE web;
    CREATE TABLE orders (id int PRIMARY KEY, customer_id int NOT NULL, note text);
    CREATE TABLE money (id bigint PRIMARY KEY, n numeric, f float8);
    GRANT SELECT ON orders, money TO web;
    GRANT UPDATE ON orders TO web;
    INSERT INTO orders SELECT i, 42 + i % 2 FROM generate_series(1, 20) i;
    INSERT INTO money VALUES (9007199254740992, 1.10, 0.1), (9007199254740993, 12345678901234567890.123456789, 1e300), (3, 7, 'NaN');
    SELECT changefeed.allow_role('web');
    SELECT changefeed.create_channel('orders:{customer_id}', 'orders');
    SELECT changefeed.create_channel('all', 'orders', publish_check => 'true');
    SELECT changefeed.create_channel('money', 'money');
    SELECT changefeed.create_channel('room:{id}', presence => '{"grace": "1s"}');
    SELECT changefeed.create_channel('hall', presence => '{"count_only": true}');
    CREATE FUNCTION note(id int, note text) RETURNS int LANGUAGE sql AS 'UPDATE orders SET note = note.note WHERE orders.id = note.id RETURNING id';
    SELECT changefeed.expose_function('note(int, text)');`);
  token = await db.token({ role: 'web', sub: 'ada' });
});
after(() => db.close());

/** Without `sync`: waits until the rows are those of SELECT. */
async function settles(channel, select, what) {
  await until(async () => {
    const truth = JSON.parse(await db.value(`SELECT coalesce(jsonb_agg(to_jsonb(r) ORDER BY id), '[]') FROM (${select}) r`));
    const rows = [...channel.rows()].sort((a, b) => a.id - b.id);
    return JSON.stringify(rows.map((row) => Object.entries(row).sort())) === JSON.stringify(truth.map((row) => Object.entries(row).sort()));
  }, `${what}: the rows of SELECT`);
}

for (const [name, transport] of [['sse', eventStream], ['poll', longPoll]]) {
  describe(name, () => {
    test('rows, changes, more channels, fewer channels, calls, messages', async (t) => {
      const client = start(t, { auth: token, transport });
      const all = client.channel('all');
      await all.ready;
      assert.equal(client.connection.current.status, name === 'poll' ? 'polling' : 'connected');
      assert.equal(client.connection.current.transport, name);
      let resyncs = 0;
      all.on('resync', () => { resyncs += 1; });
      await db.exec(`UPDATE orders SET note = 'one' WHERE id = 4`);
      await settles(all, 'SELECT * FROM orders', 'a change');
      const one = client.channel('orders:42');
      await one.ready;
      await db.exec(`UPDATE orders SET customer_id = 42 WHERE id = 5`);
      await settles(one, 'SELECT * FROM orders WHERE customer_id = 42', 'a second channel');
      await settles(all, 'SELECT * FROM orders', 'and the first');
      const { result, txid } = await client.call('note', { id: 4, note: 'called' });
      assert.equal(result, 4);
      await all.seen(txid, { timeoutMs: 20000 });
      assert.equal(all.get({ id: 4 }).note, 'called');
      one.unsubscribe();
      const got = [];
      all.message('hello', (payload) => got.push(payload));
      await until(() => client.metrics().channels === 1, 'the end of the second one');
      await until(async () => {
        if (got.length === 0) await client.publish('all', 'hello', { n: 1 });
        return got.length > 0 || name === 'poll';
      }, 'a message');
      await db.exec(`DELETE FROM orders WHERE id = 20; INSERT INTO orders VALUES (20, 42, 'again')`);
      await settles(all, 'SELECT * FROM orders', 'behind all of that');
      assert.equal(resyncs, 0);
      await assert.rejects(client.sync(), { code: '0A000' });
      await assert.rejects(client.call('nope', {}), { code: '42883' });
    });

    test('a channel that is refused does not end the others', async (t) => {
      const client = start(t, { auth: token, transport });
      const all = client.channel('all');
      const none = client.channel('nope');
      await assert.rejects(none.ready, { code: '42704' });
      await all.ready;
      await db.exec(`UPDATE orders SET note = 'still' WHERE id = 6`);
      await settles(all, 'SELECT * FROM orders', 'the other one');
    });

    test('kill -9 of the gateway and cuts under load', async (t) => {
      const proxy = await Proxy.start(process.env.WS_URL);
      t.after(() => proxy.close());
      const client = start(t, { url: proxy.url, auth: token, transport });
      const all = client.channel('all');
      await all.ready;
      const writer = new Session();
      t.after(() => writer.close());
      let stop = false;
      const load = (async () => {
        for (let i = 0; !stop; i += 1) await writer.exec(`UPDATE orders SET note = repeat('${i} ', 20) WHERE id % 3 = ${i % 3}`);
      })();
      for (let round = 0; round < 6; round += 1) {
        const seen = client.metrics().received;
        if (round === 3) process.kill(Number(await db.value('SELECT gateway_pid FROM changefeed.stat_feed')), 'SIGKILL');
        else proxy.budget = Math.floor(Math.random() * 20000);
        await until(() => client.metrics().received > seen + 20, 'more');
      }
      proxy.budget = Infinity;
      stop = true;
      await load;
      await settles(all, 'SELECT * FROM orders', 'behind the cuts');
    });

    test('requests without a channel and before one; a fresh token in place', async (t) => {
      let tokens = 0;
      const client = start(t, { transport, auth: () => { tokens += 1; return db.token({ role: 'web', sub: 'ada' }, tokens === 1 ? '4 seconds' : '1 hour'); } });
      const first = client.call('note', { id: 8, note: 'first' });
      const all = client.channel('all');
      assert.equal((await first).result, 8, 'answers to channels are none to calls');
      await all.ready;
      if (name === 'sse') {
        await until(() => tokens === 2, 'a refresh');
        await db.exec(`UPDATE orders SET note = 'in place' WHERE id = 8`);
        await settles(all, 'SELECT * FROM orders', 'behind a fresh token');
        assert.equal(client.metrics().connects, 1);
      }
    });

    test('a call whose connection is cut is sent again and done once', async (t) => {
      let cuts = 2;
      const cut = async (url, init) => {
        const response = await fetch(url, init);
        if (init?.method === 'POST' && cuts > 0) {
          cuts -= 1;
          throw new TypeError('cut before the answer');
        }
        return response;
      };
      const client = start(t, { auth: token, transport, fetch: cut });
      await client.channel('all').ready;
      const before = await db.value(`SELECT xmin FROM orders WHERE id = 9`);
      const { txid } = await client.call('note', { id: 9, note: 'once' });
      assert.notEqual(before, txid);
      assert.equal(await db.value('SELECT xmin FROM orders WHERE id = 9'), txid, 'the first one');
      assert.equal(cuts, 0);
    });

    test('a refused token', async (t) => {
      const asked = [];
      const client = start(t, { transport, auth: (why) => { asked.push(why); return why === 'refresh' ? token : 'no.such.token'; } });
      await client.channel('all').ready;
      assert.deepEqual(asked, ['connect', 'refresh']);
    });
  });
}

test('automatic: down to polls where nothing else gets through, and back, with the same rows and no loading again', async (t) => {
  const proxy = await Proxy.start(process.env.WS_URL);
  t.after(() => proxy.close());
  let sockets = false;
  let tried = 0;
  const client = start(t, {
    url: proxy.url,
    auth: token,
    backoff: { minMs: 5, maxMs: 20 },
    transport: automatic({ probeMs: 300 }),
    WebSocket: class {
      constructor(...args) {
        if (!sockets) throw new Error('no WebSockets here');
        return new WebSocketOf(...args);
      }
    },
    // A proxy that keeps event streams back.
    fetch: (url, init) => {
      if (!String(url).includes('/v1/events')) return fetch(url, init);
      tried += 1;
      return new Promise((_, reject) => { setTimeout(() => reject(new Error('kept back')), 50); });
    },
  });
  const used = [];
  client.connection.subscribe(() => used.push(client.connection.current.status));
  const all = client.channel('all');
  await all.ready;
  assert.equal(client.connection.current.transport, 'poll');
  let resyncs = 0;
  all.on('resync', () => { resyncs += 1; });
  await db.exec(`UPDATE orders SET note = 'polled' WHERE id = 7`);
  await settles(all, 'SELECT * FROM orders', 'polled');
  sockets = true;
  await until(() => client.connection.current.transport === 'websocket' && all.state === 'live', 'back to a WebSocket');
  await db.exec(`UPDATE orders SET note = 'pushed' WHERE id = 7`);
  await same(client, all, db, 'SELECT * FROM orders', 'pushed');
  assert.equal(tried, 2);
  assert.deepEqual(used.filter((is) => is === 'connected' || is === 'polling'), ['polling', 'connected'], 'nothing was called connected that was not');
  assert.equal(resyncs, 0);
});

test('lossless: keys and values with all their digits, both ways', async (t) => {
  const client = start(t, { auth: token, codec: lossless() });
  const channel = client.channel('money');
  await channel.ready;
  assert.equal(channel.rows().length, 3);
  assert.equal(channel.get({ id: 9007199254740993n }).n, '12345678901234567890.123456789');
  assert.equal(channel.get({ id: 9007199254740992n }).n, '1.10');
  assert.deepEqual(channel.get({ id: 3 }), { id: 3, n: 7, f: 'NaN' });
  assert.equal(channel.get({ id: 9007199254740992n }).f, 0.1);
  await db.exec('UPDATE money SET f = 2 WHERE id = 9007199254740993; DELETE FROM money WHERE id = 9007199254740992');
  await until(() => channel.rows().length === 2, 'the changes');
  assert.equal(channel.get({ id: 9007199254740993n }).f, 2);
  const codec = lossless({ integers: 'bigint', decimals: 'string' });
  for (const transport of [undefined, eventStream, longPoll]) {
    const all = start(t, { auth: token, codec, transport });
    await all.channel('money').ready;
    assert.equal(all.channel('money').get({ id: 3n }).n, 7n);
    await db.exec('UPDATE money SET f = f WHERE id = 3; UPDATE money SET n = n + 1 WHERE id = 3');
    await until(() => all.channel('money').get({ id: 3n }).n === 8n, 'a change');
    assert.equal((await all.call('note', { id: 1n, note: 'x' })).result, 1n);
    assert.equal(all.metrics().connects, 1);
    await db.exec('UPDATE money SET n = 7 WHERE id = 3');
    all.close();
  }
  assert.deepEqual(codec.parse('{"a":1,"b":1.5,"c":"1.10","d":[-7,1e3]}'), { a: 1n, b: '1.5', c: '1.10', d: [-7n, '1e3'] });
  // A string that looks like what the codec may use inside stays one.
  const odd = { a: '\u00001', b: ['\u0000-7', '"\u00002"'] };
  assert.deepEqual(codec.parse(codec.stringify({ ...odd, n: 5n })), { ...odd, n: 5n });
  assert.equal(codec.stringify({ a: 10n ** 30n, b: ['x', 2n] }), '{"a":1000000000000000000000000000000,"b":["x",2]}');
});

describe('presence', () => {
  test('who is there, on both sides; again behind a reconnect; gone behind the end', async (t) => {
    const proxy = await Proxy.start(process.env.WS_URL);
    t.after(() => proxy.close());
    const ada = start(t, { url: proxy.url, auth: token });
    const bob = start(t, { auth: await db.token({ role: 'web', sub: 'bob' }) });
    const rooms = [ada, bob].map((client) => ({ client, channel: client.channel('room:7') }));
    await Promise.all(rooms.map(({ channel }) => channel.ready));
    const [a, b] = rooms.map(({ client, channel }) => presence(client, channel));
    await a.track({ name: 'Ada' }, { kind: 'editor' });
    await b.track({ name: 'Bob' });
    await when(a, ({ count }) => count === 2, 'both');
    await when(b, ({ count }) => count === 2, 'both');
    assert.deepEqual(b.current.members.get('ada').states, [{ name: 'Ada' }]);
    assert.deepEqual(b.current.kinds, { editor: 1 });
    await a.track({ name: 'Ada', typing: true }, { expiresIn: 1 });
    await when(b, ({ members }) => members.get('ada')?.states[0].typing === true, 'typing');
    await when(b, ({ members }) => members.get('ada')?.states[0].typing === undefined, 'not typing');
    let left = 0;
    b.subscribe(() => { if (!b.current.members.has('ada')) left += 1; });
    proxy.cut();
    await when(a, ({ count }) => count === 0, 'void');
    await when(a, ({ count }) => count === 2, 'there again');
    assert.equal(left, 0, 'nobody was told');
    a.close();
    await when(b, ({ count }) => count === 1, 'Ada has gone');
    ada.close();
  });

  test('a lock has one holder', async (t) => {
    const clients = await Promise.all(['ada', 'bob'].map(async (sub) => start(t, { auth: await db.token({ role: 'web', sub }) })));
    const channels = clients.map((client) => client.channel('room:8'));
    await Promise.all(channels.map(({ ready }) => ready));
    const [a, b] = clients.map((client, i) => lock(presence(client, channels[i]), 'section:3', ['ada', 'bob'][i]));
    assert.equal(await a.acquire(), true);
    assert.equal(await b.acquire(), false);
    await when(b, ({ holder }) => holder === 'ada', 'the holder');
    assert.equal(b.current.held, false);
    await a.release();
    assert.equal(await b.acquire(), true);
    await when(b, ({ held }) => held, 'held');
  });

  test('a channel that is counted', async (t) => {
    const client = start(t, { auth: token });
    const channel = client.channel('hall');
    await channel.ready;
    const room = presence(client, channel);
    await room.track({ name: 'Ada' });
    await when(room, ({ count }) => count === 1, 'a count');
    assert.deepEqual((await room.page({ limit: 10 })).members, { ada: [{ name: 'Ada' }] });
  });
});
