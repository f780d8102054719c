// The core of client/ against the real server: rows, states, resume, tokens, requests.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { until } from '../integration/lib/client.mjs';
import { Session } from '../integration/lib/psql.mjs';
import { Proxy } from './lib/proxy.mjs';
import { same, start, status, when } from './lib/page.mjs';

let db;
let token;

before(async () => {
  db = new Session();
  await db.exec(`CREATE ROLE web;
    CREATE TABLE orders (id int PRIMARY KEY, customer_id int NOT NULL, status text NOT NULL DEFAULT 'new', note text);
    CREATE TABLE big (id bigint PRIMARY KEY, n numeric);
    CREATE TABLE private (id int PRIMARY KEY, owner text NOT NULL, body text);
    ALTER TABLE private ENABLE ROW LEVEL SECURITY;
    CREATE POLICY own ON private TO web USING (owner = current_setting('request.jwt.claims')::jsonb->>'sub');
    GRANT SELECT ON orders, big, private TO web;
    GRANT INSERT, UPDATE ON orders TO web;
    INSERT INTO orders SELECT i, 42 + i % 2 FROM generate_series(1, 20) i;
    INSERT INTO private SELECT i, CASE i % 2 WHEN 0 THEN 'ada' ELSE 'bob' END, 'x' FROM generate_series(1, 10) i;
    SELECT changefeed.allow_role('web');
    SELECT changefeed.create_channel('orders:{customer_id}', 'orders');
    SELECT changefeed.create_channel('all', 'orders', publish_check => 'true');
    SELECT changefeed.create_channel('big', 'big');
    SELECT changefeed.create_channel('private', 'private');
    CREATE TABLE calls (key text);
    GRANT INSERT ON calls TO web;
    CREATE FUNCTION note(id int, note text) RETURNS int LANGUAGE sql AS $$
        INSERT INTO calls VALUES (note); UPDATE orders SET note = note.note WHERE orders.id = note.id RETURNING id $$;
    SELECT changefeed.expose_function('note(int, text)');`);
  token = await db.token({ role: 'web', sub: 'ada' });
});
after(() => db.close());

const killGateway = async () => process.kill(Number(await db.value('SELECT gateway_pid FROM changefeed.stat_feed')), 'SIGKILL');

describe('rows', () => {
  test('a snapshot, then append, merge, replace and remove; whole transactions; one flush', async (t) => {
    const client = start(t, { auth: token });
    const channel = client.channel('orders:42');
    assert.equal(channel.state, 'subscribing');
    assert.deepEqual(channel.rows(), []);
    await channel.ready;
    assert.equal(channel.state, 'live');
    assert.equal(client.connection.current.status, 'connected');
    assert.equal(client.connection.current.transport, 'websocket');
    await same(client, channel, db, 'SELECT * FROM orders WHERE customer_id = 42', 'snapshot');

    const transactions = [];
    const flushes = [];
    channel.on('transaction', (transaction) => transactions.push(transaction));
    channel.on('change', (changes) => flushes.push(changes));
    const before = channel.rows();
    const untouched = channel.get({ id: 4 });
    await db.exec(`BEGIN; DELETE FROM orders WHERE id = 2; INSERT INTO orders VALUES (100, 42, 'new', NULL);
      UPDATE orders SET status = 'sent' WHERE id = 6; UPDATE orders SET customer_id = 43 WHERE id = 8; COMMIT`);
    await same(client, channel, db, 'SELECT * FROM orders WHERE customer_id = 42', 'transaction');
    assert.equal(transactions.length, 1);
    assert.equal(transactions[0].phase, 'live');
    assert.deepEqual(transactions[0].changes.map(({ op, key }) => [op, key.id]).sort(), [['append', 100], ['merge', 6], ['remove', 2], ['remove', 8]]);
    const merge = transactions[0].changes.find(({ op }) => op === 'merge');
    assert.deepEqual(merge.set, { status: 'sent' });
    assert.deepEqual(merge.row, { id: 6, customer_id: 42, status: 'sent', note: null });
    assert.equal(flushes.length, 1);
    assert.notEqual(channel.rows(), before, 'another array');
    assert.equal(channel.rows(), channel.rows(), 'the same until something changes');
    assert.equal(channel.get({ id: 4 }), untouched, 'rows that have not changed are the same objects');
    assert.equal(before.find(({ id }) => id === 6).status, 'new', 'what was given out stays as it was');
    await db.exec('UPDATE orders SET customer_id = 42 WHERE id = 8; UPDATE orders SET id = 200 WHERE id = 100');
    await same(client, channel, db, 'SELECT * FROM orders WHERE customer_id = 42', 'a changed key');
    assert.equal(client.metrics().rows, channel.rows().length);
    assert.deepEqual(client.errors, []);
  });

  test('a flush has one change for each row, whatever happened to it', async (t) => {
    const client = start(t, { auth: token, flush: 200 });
    const channel = client.channel('all');
    await channel.ready;
    await client.sync();
    await new Promise((resolve) => { channel.subscribe(resolve); db.exec("UPDATE orders SET note = 'a' WHERE id = 1"); });
    const flushes = [];
    channel.on('change', ({ reset, changes }) => flushes.push({ reset, changes }));
    await db.exec(`UPDATE orders SET note = 'b' WHERE id = 1`);
    await db.exec(`UPDATE orders SET status = 'c' WHERE id = 1`);
    await db.exec(`INSERT INTO orders VALUES (300, 1)`);
    await db.exec(`UPDATE orders SET note = 'd' WHERE id = 300`);
    await db.exec(`DELETE FROM orders WHERE id = 3`);
    await db.exec(`INSERT INTO orders VALUES (3, 43)`);
    await db.exec(`INSERT INTO orders VALUES (301, 1)`);
    await db.exec(`DELETE FROM orders WHERE id = 301`);
    await client.sync();
    await until(() => flushes.some(({ changes }) => changes.some(({ op, key }) => op === 'remove' && key.id === 301)), 'the last change');
    // However many flushes it took: each has a row once, and together they say what happened.
    for (const { changes } of flushes) assert.equal(new Set(changes.map(({ key }) => key.id)).size, changes.length);
    const last = new Map(flushes.flatMap(({ changes }) => changes).map((change) => [change.key.id, change]));
    assert.deepEqual(last.get(1).row, { id: 1, customer_id: 43, status: 'c', note: 'b' });
    assert.equal(last.get(300).row.note, 'd');
    assert.equal(last.get(301).op, 'remove');
    assert.notEqual(last.get(3).op, 'remove');
    await same(client, channel, db, 'SELECT * FROM orders', 'behind the flushes');
  });

  test('many clients of a name share it; the last one ends it', async (t) => {
    const client = start(t, { auth: token });
    const a = client.channel('all');
    const b = client.channel('all');
    await Promise.all([a.ready, b.ready]);
    const sent = () => client.log.filter(([event, data]) => event === 'send' && data.type.endsWith('subscribe')).map(([, data]) => data.type);
    assert.deepEqual(sent(), ['subscribe']);
    a.unsubscribe();
    a.unsubscribe();
    assert.equal(a.state, 'closed');
    assert.equal(b.state, 'live');
    b.unsubscribe();
    const again = client.channel('all');
    await again.ready;
    assert.deepEqual(sent(), ['subscribe'], 'taken up again within lingerMs');
    again.unsubscribe();
    await until(() => sent().length === 2, 'unsubscribe');
    assert.deepEqual(sent(), ['subscribe', 'unsubscribe']);
  });

  test('a key with more digits than a double is refused, not mixed up', async (t) => {
    await db.exec('INSERT INTO big VALUES (9007199254740993, 1), (9007199254740992, 2)');
    const client = start(t, { auth: token });
    const channel = client.channel('big');
    await assert.rejects(channel.ready, { code: 'no_exact_number' });
    assert.equal(channel.state, 'error');
    assert.deepEqual(channel.rows(), []);
  });

  test('TRUNCATE, DDL and refresh load the rows again; the old ones stay until then', async (t) => {
    await db.exec('CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t SELECT i FROM generate_series(1, 50) i; GRANT SELECT ON t TO web');
    await db.exec(`SELECT changefeed.create_channel('t', 't')`);
    const client = start(t, { auth: token });
    const channel = client.channel('t');
    await channel.ready;
    const sizes = [];
    channel.subscribe(() => sizes.push(channel.rows().length));
    channel.refresh();
    await when(channel, () => channel.state === 'live', 'live');
    assert.deepEqual([...new Set(sizes)], [50]);
    const reasons = [];
    channel.on('resync', (reason) => reasons.push(reason));
    await db.exec('TRUNCATE t; INSERT INTO t VALUES (7)');
    await same(client, channel, db, 'SELECT * FROM t', 'TRUNCATE');
    assert.deepEqual(reasons, ['truncated']);
    await db.exec(`ALTER TABLE t ADD COLUMN b int DEFAULT 5; UPDATE t SET b = 6 WHERE id = 7`);
    await same(client, channel, db, 'SELECT * FROM t', 'ADD COLUMN');
    assert.deepEqual(channel.entities.t.columns, ['id', 'a', 'b']);
  });
});

describe('connections', () => {
  test('kill -9 of the gateway under load: resumed, nothing lost, the rows are right', async (t) => {
    const client = start(t, { auth: token });
    const channels = ['all', 'orders:42', 'orders:43', 'private'].map((name) => client.channel(name));
    await Promise.all(channels.map(({ ready }) => ready));
    let resyncs = 0;
    for (const channel of channels) channel.on('resync', () => { resyncs += 1; });
    const writer = new Session();
    t.after(() => writer.close());
    let stop = false;
    const load = (async () => {
      for (let i = 0; !stop; i += 1) {
        await writer.exec(`BEGIN; UPDATE orders SET note = '${i}' WHERE id = ${1 + (i % 20)}; UPDATE orders SET customer_id = 85 - customer_id WHERE id = ${1 + (i % 7)}; COMMIT`);
      }
    })();
    for (let round = 0; round < 3; round += 1) {
      const { connects } = client.metrics();
      await killGateway();
      await until(() => client.metrics().connects > connects && client.connection.current.status === 'connected', 'connected again', 30000);
      await until(() => channels.every(({ state }) => state === 'live'), 'live again', 30000);
    }
    stop = true;
    await load;
    await same(client, channels[0], db, 'SELECT * FROM orders', 'all');
    await same(client, channels[1], db, 'SELECT * FROM orders WHERE customer_id = 42', '42');
    await same(client, channels[2], db, 'SELECT * FROM orders WHERE customer_id = 43', '43');
    await same(client, channels[3], db, "SELECT * FROM private WHERE owner = 'ada'", 'private');
    assert.equal(resyncs, 0, 'by position, not by loading again');
  });

  test('cut at any byte, also in the middle of a frame: the rows are right', async (t) => {
    const proxy = await Proxy.start(process.env.WS_URL);
    t.after(() => proxy.close());
    const client = start(t, { url: proxy.url, auth: token });
    const channel = client.channel('all');
    await channel.ready;
    const writer = new Session();
    t.after(() => writer.close());
    let stop = false;
    const load = (async () => {
      for (let i = 0; !stop; i += 1) await writer.exec(`UPDATE orders SET note = repeat('${i} ', 50)`);
    })();
    for (let round = 0; round < 30; round += 1) {
      const { connects } = client.metrics();
      proxy.budget = Math.floor(Math.random() * 20000);
      await until(() => client.metrics().connects > connects, 'connected again');
    }
    stop = true;
    await load;
    await until(() => channel.state === 'live', 'live');
    proxy.budget = Infinity;
    await same(client, channel, db, 'SELECT * FROM orders', 'behind 30 cuts');
  });

  test('a network that has gone is noticed by the missing heartbeat; online tries at once', async (t) => {
    const proxy = await Proxy.start(process.env.WS_URL);
    t.after(() => proxy.close());
    const client = start(t, { url: proxy.url, auth: token });
    const channel = client.channel('all');
    await channel.ready;
    proxy.silent = true;
    await status(client, 'reconnecting', 20000);
    assert.equal(channel.state, 'stale');
    assert.ok(channel.rows().length > 0, 'the rows stay');
    proxy.silent = false;
    proxy.cut();
    await status(client, 'connected');
    await when(channel, () => channel.state === 'live', 'live');
  });

  test('back-off grows with random times, and ends with success', async (t) => {
    const proxy = await Proxy.start(process.env.WS_URL);
    t.after(() => proxy.close());
    proxy.refuse = true;
    const client = start(t, { url: proxy.url, auth: token, backoff: { minMs: 10, maxMs: 200 } });
    const delays = [];
    client.connection.subscribe(() => {
      const { status: is, retryAt } = client.connection.current;
      if (is === 'reconnecting' && retryAt) delays.push(retryAt - Date.now());
    });
    const channel = client.channel('all');
    await until(() => delays.length >= 12, 'attempts');
    assert.ok(Math.max(...delays) <= 200, `${delays}`);
    assert.ok(new Set(delays).size > 3, `not always the same: ${delays}`);
    proxy.refuse = false;
    await channel.ready;
    assert.equal(client.connection.current.attempt > 0, true);
  });

  test('disconnect keeps rows, connect resumes; setLive is the same switch; close is for good', async (t) => {
    const client = start(t, { auth: token });
    const channel = client.channel('all');
    await channel.ready;
    client.setLive(false);
    assert.equal(client.connection.current.status, 'disconnected');
    assert.equal(channel.state, 'stale');
    await db.exec(`UPDATE orders SET note = 'away' WHERE id = 5`);
    assert.ok(channel.rows().length > 0);
    client.connect();
    assert.equal(client.connection.current.status, 'disconnected', 'the switch is off');
    const phases = [];
    channel.on('transaction', ({ phase }) => phases.push(phase));
    client.setLive(true);
    await when(channel, () => channel.state === 'live', 'live');
    assert.deepEqual([...new Set(phases)], ['replay']);
    await same(client, channel, db, 'SELECT * FROM orders', 'resumed');
    client.close();
    assert.equal(channel.state, 'closed');
    assert.deepEqual(channel.rows(), []);
    await assert.rejects(client.sync(), { code: 'closed' });
  });
});

describe('tokens', () => {
  test('a refused token asks once for another one, then waits for the application', async (t) => {
    const asked = [];
    const client = start(t, { auth: (why) => { asked.push(why); return 'no.such.token'; } });
    const channel = client.channel('all');
    await status(client, 'unauthorized');
    await until(() => asked.length === 2, 'a refresh');
    assert.deepEqual(asked, ['connect', 'refresh']);
    client.setAuth(token);
    await channel.ready;
    assert.equal(client.connection.current.status, 'connected');
  });

  test('an expired token is replaced by a fresh one, without loading again', async (t) => {
    const old = await db.token({ role: 'web', sub: 'ada' }, '-1 hour');
    const client = start(t, { auth: (why) => (why === 'connect' ? old : db.token({ role: 'web', sub: 'ada' })) });
    await client.channel('private').ready;
    assert.equal(client.channel('private').rows().length, 5);
  });

  test('a token that expires is refreshed in place before', async (t) => {
    let n = 0;
    const client = start(t, { auth: () => { n += 1; return db.token({ role: 'web', sub: 'ada', n: undefined }, n === 1 ? '4 seconds' : '1 hour'); } });
    const channel = client.channel('private');
    await channel.ready;
    const reasons = [];
    channel.on('resync', (reason) => reasons.push(reason));
    await until(() => n === 2, 'a refresh');
    await new Promise((resolve) => { setTimeout(resolve, 4500); });
    assert.equal(channel.state, 'live');
    assert.equal(client.metrics().connects, 1);
    assert.deepEqual(reasons, []);
  });

  test('another user: rows of the one before are gone at once, and then those of the other come', async (t) => {
    const client = start(t, { auth: token });
    const channel = client.channel('private');
    await channel.ready;
    assert.deepEqual(channel.rows().map(({ owner }) => owner), Array(5).fill('ada'));
    const shown = [];
    channel.subscribe(() => shown.push(...channel.rows().map(({ owner }) => owner)));
    client.setAuth(await db.token({ role: 'web', sub: 'bob' }));
    await until(() => channel.state === 'live' && channel.rows().length === 5 && channel.rows()[0].owner === 'bob', 'rows of bob');
    assert.ok(!shown.includes('ada'), 'none of the one before was shown again');
    let purged = 0;
    client.on('purge', () => { purged += 1; });
    client.setAuth(null);
    assert.deepEqual(channel.rows(), []);
    assert.equal(purged, 1);
  });

  test('revoked: the rows go, the state says why, another token brings them back', async (t) => {
    await db.exec('CREATE ROLE guest; GRANT SELECT ON orders TO guest');
    await db.exec(`SELECT changefeed.allow_role('guest')`);
    const client = start(t, { auth: await db.token({ role: 'guest' }) });
    const channel = client.channel('all');
    await channel.ready;
    await db.exec('REVOKE SELECT ON orders FROM guest');
    await when(channel, () => channel.state === 'error', 'revoked');
    assert.deepEqual(channel.rows(), []);
    assert.equal(channel.error.code, '42501');
    assert.equal(channel.error.type, 'auth');
    client.setAuth(token);
    await when(channel, () => channel.state === 'live', 'live');
    assert.ok(channel.rows().length > 0);
  });
});

describe('requests', () => {
  test('call and seen: the own write is in the rows when seen resolves, in any order', async (t) => {
    const client = start(t, { auth: token });
    const channel = client.channel('all');
    await channel.ready;
    for (let i = 0; i < 20; i += 1) {
      const { result, txid } = await client.call('note', { id: 9, note: `own ${i}` });
      assert.equal(result, 9);
      await channel.seen(txid);
      assert.equal(channel.get({ id: 9 }).note, `own ${i}`);
    }
    // One that has no part in the channel.
    const other = client.channel('private');
    await other.ready;
    const { txid } = await client.call('note', { id: 9, note: 'elsewhere' });
    await other.seen(txid, { timeoutMs: 30000 });
    await assert.rejects(channel.seen('9999999999', { timeoutMs: 50 }), { code: 'no_answer' });
    // One that was there before the rows.
    const late = client.channel('orders:42');
    await late.seen(txid);
  });

  test('calls that lose their connection are sent again and run once', async (t) => {
    const proxy = await Proxy.start(process.env.WS_URL);
    t.after(() => proxy.close());
    await db.exec('DELETE FROM calls');
    const client = start(t, { url: proxy.url, auth: token });
    await client.channel('all').ready;
    const calls = Array.from({ length: 40 }, (_, i) => client.call('note', { id: 1, note: `call ${i}` }));
    for (let i = 0; i < 5; i += 1) {
      const { connects } = client.metrics();
      proxy.budget = 200 + Math.floor(Math.random() * 2000);
      await Promise.race([until(() => client.metrics().connects > connects, 'again'), Promise.all(calls)]);
    }
    proxy.budget = Infinity;
    await Promise.all(calls);
    assert.equal(await db.value('SELECT count(*) || \',\' || count(DISTINCT key) FROM calls'), '40,40');
  });

  test('publish, message, errors with code, type and hint', async (t) => {
    const a = start(t, { auth: token });
    const b = start(t, { auth: token });
    const channel = a.channel('all');
    await channel.ready;
    await b.channel('all').ready;
    const got = [];
    channel.message('typing', (payload, { from }) => got.push([payload, from]));
    await b.channel('all').publish('typing', { on: true });
    await until(() => got.length === 1, 'a message');
    assert.deepEqual(got, [[{ on: true }, 'ada']]);
    await assert.rejects(a.publish('orders:42', 'x'), (error) => error.code === '42501' && error.type === 'auth' && error.hint !== undefined && !error.retryable);
    await assert.rejects(a.call('nope', {}), (error) => error.code === '42883' && error.type === 'request' && error.severity === 'fatal');
    const none = a.channel('nope');
    await assert.rejects(none.ready, { code: '42704' });
    assert.equal(none.state, 'error');
  });

  test('what is asked for without a connection waits for one', async (t) => {
    const proxy = await Proxy.start(process.env.WS_URL);
    t.after(() => proxy.close());
    proxy.refuse = true;
    const client = start(t, { url: proxy.url, auth: token });
    const call = client.call('note', { id: 4, note: 'later' });
    await until(() => client.connection.current.attempt > 2, 'attempts');
    proxy.refuse = false;
    assert.equal((await call).result, 4);
    await assert.rejects(client.call('note', { id: 2, note: 'never' }, { signal: AbortSignal.abort() }), { code: 'no_answer' });
  });
});

test('rows and a position from elsewhere go on from there', async (t) => {
  const first = start(t, { auth: token });
  const channel = first.channel('all');
  await channel.ready;
  const initial = JSON.parse(JSON.stringify(channel.dump()));
  first.close();
  await db.exec(`UPDATE orders SET note = 'meanwhile' WHERE id = 5`);
  const client = start(t, { auth: token });
  const again = client.channel('all', { initial });
  assert.equal(again.state, 'stale');
  assert.equal(again.rows().length, initial.rows.orders.length);
  let snapshots = 0;
  again.on('snapshot', () => { snapshots += 1; });
  await again.ready;
  await same(client, again, db, 'SELECT * FROM orders', 'hydrated');
  assert.equal(snapshots, 0);
});
