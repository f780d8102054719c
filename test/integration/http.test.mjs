// Event streams, polls and requests: the same objects and positions as on a
// WebSocket, and nothing lost or repeated wherever a client goes on.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { connect } from 'node:net';
import { after, before, describe, test } from 'node:test';

import { assertSame, Client, until, within } from './lib/client.mjs';
import { address, bearer, Events, poll } from './lib/http.mjs';
import { LOG } from './lib/log.mjs';
import { Session } from './lib/psql.mjs';

const { HTTP_URL } = process.env;

/** An answer by a client that shows everything; `send` is the whole request. */
async function raw(send) {
  const { hostname, port } = new URL(HTTP_URL);
  const socket = connect(Number(port), hostname);
  let text = '';
  socket.setEncoding('utf8').on('data', (chunk) => { text += chunk; });
  socket.on('error', () => {});
  socket.write(send);
  await within(10000, once(socket, 'close'), 'end of the answer');
  return text;
}

const post = (path, body, headers = {}) => fetch(new URL(path, HTTP_URL), {
  method: 'POST', headers: { 'Content-Type': 'application/json', ...headers }, body: typeof body === 'string' ? body : JSON.stringify(body),
});

async function set(db, name, value) {
  await db.exec(`ALTER SYSTEM ${value === null ? `RESET ${name}` : `SET ${name} = '${value}'`}`);
  await db.exec('SELECT pg_reload_conf()');
}

describe('http', () => {
  let db;
  let token;

  before(async () => {
    db = new Session();
    await db.exec(`CREATE SCHEMA http;
      CREATE ROLE http_web;
      DO $$ BEGIN CREATE ROLE anonymous; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
      GRANT USAGE ON SCHEMA http TO http_web, anonymous;
      SELECT changefeed.allow_role('http_web');
      SELECT changefeed.allow_role('anonymous');
      CREATE TABLE http.orders (id int PRIMARY KEY, customer int NOT NULL, note text);
      CREATE TABLE http.rooms (id int PRIMARY KEY, body text);
      INSERT INTO http.orders SELECT i, i % 3, 'n' || i FROM generate_series(1, 30) i;
      INSERT INTO http.rooms SELECT i, 'room ' || i FROM generate_series(1, 5) i;
      GRANT SELECT ON http.orders, http.rooms TO http_web;
      GRANT SELECT ON http.rooms TO anonymous;
      SELECT changefeed.create_channel('http_orders:{customer}', 'http.orders', entity => 'orders');
      SELECT changefeed.create_channel('http_rooms', 'http.rooms', entity => 'rooms')`);
    token = await db.token({ role: 'http_web', sub: 'u1' });
    // Whoever opens one has seen the grants and channels above.
    const client = await Client.connectSoon({ token });
    await client.openSoon('http_orders:1');
    await client.close();
  });
  after(() => db?.close());

  const orders = (customer) => db.rows(`SELECT * FROM http.orders WHERE customer = ${customer}`);
  const rooms = () => db.rows('SELECT * FROM http.rooms');
  const same = async (read, select, what) => {
    let failure;
    await until(async () => {
      try {
        assertSame(read(), await select(), what);
        return true;
      } catch (error) {
        failure = error;
        return false;
      }
    }, () => failure?.message ?? what, 10000);
  };

  describe('polls', () => {
    test('the first one has the rows, the next ones what came, or 304', async () => {
      const first = await poll(['http_orders:1'], { token });
      assert.equal(first.status, 200);
      assert.deepEqual(first.messages.map(({ type }) => type), ['subscribed', 'snapshot', 'ready']);
      assertSame(first.rows(), await orders(1), 'the first answer');
      assert.equal(first.response.headers.get('etag'), `"${first.position}"`);
      assert.equal(first.response.headers.get('changefeed-position'), first.position);
      assert.equal(first.response.headers.get('cache-control'), 'private, no-store');
      assert.match(first.response.headers.get('vary'), /Authorization/);

      const begin = performance.now();
      const none = await poll(['http_orders:1'], { token, ...first, wait: 1 });
      assert.equal(none.status, 304);
      assert.ok(performance.now() - begin > 900, 'it has waited');
      assert.equal(none.response.headers.get('etag'), `"${first.position}"`);

      await db.exec('UPDATE http.orders SET note = note || \'!\' WHERE id IN (1, 2)');
      const second = await poll(['http_orders:1'], { token, ...first });
      assert.equal(second.status, 200);
      assert.equal(second.changes, 1);
      assertSame(second.rows(), await orders(1), 'the second answer');

      // What does not concern it moves its position all the same.
      await db.exec('UPDATE http.orders SET note = note || \'!\' WHERE id = 2');
      const moved = await poll(['http_orders:1'], { token, ...second, wait: 0 });
      assert.equal(moved.status, 304);
      assert.notEqual(moved.position, second.position);

      const waiting = poll(['http_orders:1'], { token, ...moved, wait: 30 });
      await until(async () => (await db.value('SELECT connections FROM changefeed.stat_feed')) !== '0', 'the poll waits');
      await db.exec('DELETE FROM http.orders WHERE id = 4');
      const third = await waiting;
      assert.equal(third.status, 200);
      assertSame(third.rows(), await orders(1), 'the third answer');
      assert.equal((await poll(['http_orders:1'], { token, ...third, wait: 0 })).status, 304);
    });

    test('without from, If-None-Match asks whether the state is another', async () => {
      const first = await poll(['http_rooms'], { token });
      const etag = first.response.headers.get('etag');
      assert.equal((await poll(['http_rooms'], { token, headers: { 'If-None-Match': etag } })).status, 304);
      assert.equal((await poll(['http_rooms'], { token, wait: 1, headers: { 'If-None-Match': etag } })).status, 304);
      const waiting = poll(['http_rooms'], { token, wait: 30, headers: { 'If-None-Match': etag } });
      await db.exec("UPDATE http.rooms SET body = 'other' WHERE id = 1");
      const second = await waiting;
      assert.equal(second.status, 200);
      assert.deepEqual(second.messages.map(({ type }) => type), ['subscribed', 'snapshot', 'ready']);
      assertSame(second.rows(), await rooms(), 'the state');
    });

    test('several channels, one of which needs its rows', async () => {
      const a = await poll(['http_orders:2'], { token });
      await db.exec("UPDATE http.orders SET note = 'both' WHERE id = 2; UPDATE http.rooms SET body = 'both' WHERE id = 2");
      const both = await poll(['http_orders:2', 'http_rooms'], { token, position: `${a.position},-`, held: a.held });
      assert.equal(both.status, 200);
      assertSame(both.rows('http_orders:2'), await orders(2), 'the one');
      assertSame(both.rows('http_rooms'), await rooms(), 'the other');
      assert.doesNotMatch(both.position, /,/, 'they are at the same position');
    });

    test('what cannot be gone on from is a resync with rows', async () => {
      const first = await poll(['http_rooms'], { token });
      await db.exec("BEGIN; TRUNCATE http.rooms; INSERT INTO http.rooms VALUES (1, 'again'); COMMIT");
      const second = await poll(['http_rooms'], { token, ...first });
      assert.equal(second.status, 200);
      assert.deepEqual(second.resyncs, ['truncated']);
      assertSame(second.rows(), await rooms(), 'behind the truncation');

      const foreign = await poll(['http_rooms'], { token, position: 'A'.repeat(40), held: first.held });
      assert.deepEqual(foreign.resyncs, ['unknown_epoch']);
      assertSame(foreign.rows(), await rooms(), 'from a foreign position');
    });

    test('an answer for everybody may be shared, and is true whenever it is used', async () => {
      const first = await poll(['http_rooms'], {});
      assert.match(first.response.headers.get('cache-control'), /^public, max-age=\d+$/);
      await db.exec("INSERT INTO http.rooms VALUES (10, 'ten')");
      const stored = await poll(['http_rooms'], { ...first });
      assert.match(stored.response.headers.get('cache-control'), /^public/);
      await db.exec("UPDATE http.rooms SET body = 'eleven' WHERE id = 10; INSERT INTO http.rooms VALUES (12, 'twelve')");
      // Who is given the stored answer now goes on from where it leads.
      const next = await poll(['http_rooms'], { ...stored });
      assertSame(next.rows(), await rooms(), 'behind a stored answer');
      assert.equal(next.changes, 2);
    });

    test('an answer that would be too large says what to do instead', async () => {
      await set(db, 'changefeed.max_response', '64kB');
      await db.exec("INSERT INTO http.orders SELECT i, 7, repeat('x', 100) FROM generate_series(1000, 2000) i");
      const refused = await until(async () => {
        const answer = await poll(['http_orders:7'], { token });
        return answer.status !== 200 && answer;
      }, 'the limit counts');
      assert.equal(refused.status, 422);
      assert.equal(refused.error.code, '54000');
      assert.match(refused.error.hint, /v1\/events/);
      await set(db, 'changefeed.max_response', null);
      await until(async () => (await poll(['http_orders:7'], { token })).status === 200, 'the limit is gone');
    });
  });

  describe('event streams', () => {
    const selects = { 'http_orders:1': () => orders(1), 'http_orders:2': () => orders(2), http_rooms: rooms };

    /** Each of the states leads to what is there now. */
    async function goOnFrom(channels, states) {
      for (const state of states) {
        const again = await Events.open(channels, { token, ...state });
        try {
          for (const channel of channels) {
            await again.subscription(channel).ready();
            again.client.check();
            assertSame(again.subscription(channel).rows(), await selects[channel](), `${channel} from ${state.position}`);
          }
        } finally {
          await again.cut();
        }
      }
    }

    test('have the objects of a WebSocket, with ids to go on from', async (t) => {
      const events = await Events.open(['http_orders:1', 'http_rooms'], { token });
      t.after(() => events.cut());
      await events.subscription('http_orders:1').ready();
      await events.subscription('http_rooms').ready();
      assert.equal(events.response.headers.get('cache-control'), 'no-store');
      assert.ok(events.retry >= 500 && events.retry <= 3000, `retry: ${events.retry}`);
      assert.equal(JSON.parse(events.events[0].data).type, 'connected');
      const parts = events.events.map(({ id }) => id?.split(',')).filter((id) => id?.length === 2);
      assert.ok(parts.some((part) => part.includes('-') && part.some((p) => p !== '-')), 'one channel was ready before the other');

      await db.exec("UPDATE http.orders SET note = 'sse' WHERE id = 1; UPDATE http.rooms SET body = 'sse' WHERE id = 1");
      await same(() => events.subscription('http_orders:1').rows(), () => orders(1), 'orders');
      await same(() => events.subscription('http_rooms').rows(), rooms, 'rooms');
      await until(() => JSON.parse(events.events.at(-1).data).type === 'ping', 'a ping');
      const { data, id } = events.events.at(-1);
      assert.equal(id, JSON.parse(data).position, 'all are at the position of the ping');
    });

    test('can be gone on from behind every single event', async () => {
      const channels = ['http_orders:1', 'http_orders:2', 'http_rooms'];
      const states = [];
      const record = (events) => { events.onEvent = () => states.push(events.state()); };
      let events = new Events(channels, { token });
      record(events);
      await events.start();
      for (const channel of channels) await events.subscription(channel).ready();
      for (let i = 0; i < 5; i++) {
        await db.exec(`UPDATE http.orders SET note = 'walk ${i}' WHERE id IN (1, 2);
          INSERT INTO http.orders VALUES (${100 + i}, 1, 'new');
          UPDATE http.orders SET customer = 3 - customer WHERE id = ${100 + (i >> 1)} AND customer IN (1, 2);
          INSERT INTO http.rooms VALUES (${100 + i}, 'new'); DELETE FROM http.rooms WHERE id = ${99 + i}`);
      }
      await same(() => events.subscription('http_rooms').rows(), rooms, 'rooms');
      // One that comes back late catches up; a channel that is resynced needs its rows.
      const early = states[states.length >> 1];
      await events.cut();
      events = new Events(channels, { token, ...early });
      record(events);
      await events.start();
      for (const channel of channels) await events.subscription(channel).ready();
      await db.exec('TRUNCATE http.rooms');
      await db.exec("INSERT INTO http.rooms VALUES (1, 'one')");
      await until(() => events.subscription('http_rooms').state === 'ready' && events.subscription('http_rooms').rows().length === 1, 'resynced');
      await events.cut();
      events.client.check();

      assert.ok(new Set(states.map(({ position }) => position)).size > 15, 'there are many places');
      await goOnFrom(channels, states);
    });

    test('can be gone on from while one channel catches up and another one is live', async () => {
      const channels = ['http_orders:1', 'http_rooms'];
      const old = await poll(['http_rooms'], { token });
      for (let i = 0; i < 30; i++) await db.exec(`INSERT INTO http.rooms VALUES (${300 + i}, repeat('r', 20000))`);
      const fresh = await poll(['http_orders:1'], { token });
      const states = [];
      const events = new Events(channels, { token, position: `${fresh.position},${old.position}`, held: new Map([...fresh.held, ...old.held]) });
      events.onEvent = () => states.push(events.state());
      // It reads slowly, so that live frames come between those of the other channel.
      const slow = setInterval(() => { events.pause = events.pause ? null : new Promise((resolve) => { setTimeout(resolve, 30); }); }, 15);
      const writer = new Session();
      let writing = true;
      const writes = (async () => {
        for (let i = 0; writing; i++) await writer.exec(`UPDATE http.orders SET note = 'live ${i}' WHERE id = 1`);
      })();
      try {
        await events.start();
        await until(() => (events.client.check(), events.subscription('http_rooms')?.state === 'ready'), 'caught up');
        await until(() => events.events.length > 60, 'some live frames');
      } finally {
        writing = false;
        clearInterval(slow);
        await writes;
        await writer.close();
      }
      await events.cut();
      const lists = states.filter(({ position }) => position.includes(','));
      assert.ok(lists.length > 10, `${lists.length} places with a list`);
      await goOnFrom(channels, states.filter((_, i) => i % 3 === 0));
      await db.exec('DELETE FROM http.rooms WHERE id >= 300');
    });

    test('messages of transactions come once, wherever a client goes on', async () => {
      await db.exec(`CREATE TABLE http.chat (id int PRIMARY KEY); GRANT SELECT ON http.chat TO http_web;
        SELECT changefeed.create_channel('http_chat', 'http.chat', publish_check => 'true')`);
      const heardBy = (source) => source.events.map(({ data }) => JSON.parse(data)).filter(({ type }) => type === 'message').map(({ event }) => event);
      const events = await until(() => Events.open(['http_chat'], { token }).catch(() => null), 'the channel');
      const states = [];
      events.onEvent = () => states.push({ ...events.state(), heard: heardBy(events) });
      await events.subscription().ready();
      for (let i = 0; i < 4; i++) {
        await db.exec(`BEGIN; SELECT changefeed.publish('http_chat', 'a${i}'); INSERT INTO http.chat VALUES (${i});
          SELECT changefeed.publish('http_chat', 'b${i}'), changefeed.publish('http_chat', 'c${i}'); COMMIT`);
      }
      const all = ['a0', 'b0', 'c0', 'a1', 'b1', 'c1', 'a2', 'b2', 'c2', 'a3', 'b3', 'c3'];
      await until(() => heardBy(events).length === all.length, 'all messages');
      const answer = await post('/v1/publish', { channel: 'http_chat', event: 'said', payload: { n: 1 } }, bearer(token));
      assert.deepEqual([answer.status, await answer.json()], [200, { type: 'ok' }]);
      await until(() => heardBy(events).includes('said'), 'what was posted');
      await events.cut();
      assert.ok(states.some(({ position }) => position?.includes('.')), 'places within transactions');
      for (const state of states.filter(({ position }) => position !== null && position !== '-')) {
        const again = await Events.open(['http_chat'], { token, ...state });
        await again.subscription().ready();
        again.client.check();
        await again.cut();
        const had = state.heard.filter((event) => event !== 'said');
        assert.deepEqual([...had, ...heardBy(again)], all, `from ${state.position} by a stream`);
        const polled = await poll(['http_chat'], { token, position: state.position, held: state.held, wait: 0 });
        const heard = polled.messages.filter(({ type }) => type === 'message').map(({ event }) => event);
        assert.deepEqual([...had, ...heard], all, `from ${state.position} by a poll`);
        assertSame([...[...polled.held.get('http_chat').entities.values()][0].rows.values()], await db.rows('SELECT * FROM http.chat'), 'the rows');
      }
    });

    test('a frame in parts moves the id with its last part only', async () => {
      const events = await Events.open(['http_orders:5'], { token });
      await events.subscription().ready();
      const before = events.state();
      const n = events.events.length;
      await db.exec("INSERT INTO http.orders SELECT i, 5, repeat('y', 1000) FROM generate_series(5000, 5300) i");
      await same(() => events.subscription().rows(), () => orders(5), 'all parts');
      const frames = events.events.slice(n).map(({ data, id }) => ({ ...JSON.parse(data), changes: null, id })).filter(({ type }) => type === 'transaction');
      assert.ok(frames.length > 3, `${frames.length} parts`);
      for (const frame of frames) assert.equal(frame.id, frame.last ? frame.position : before.position, `part ${frame.part}`);
      await events.cut();
      // Cut off between parts, the transaction comes again, whole.
      const again = new Events(['http_orders:5'], { token, ...before });
      again.cutAfter = 4;
      await again.start();
      await until(() => again.events.length === 4, 'some parts');
      const state = await again.cut();
      assert.equal(state.position, before.position);
      const last = await Events.open(['http_orders:5'], { token, ...state });
      await last.subscription().ready();
      assertSame(last.subscription().rows(), await orders(5), 'at last');
      await last.cut();
    });

    test('a slow reader falls behind and catches up; it is not noticed by others', async () => {
      const events = new Events(['http_orders:6'], { token });
      let go;
      events.pause = new Promise((resolve) => { go = resolve; });
      events.pause.then(() => { events.pause = null; });
      await events.start();
      await db.exec(`DO $$ BEGIN FOR i IN 1..120 LOOP
          INSERT INTO http.orders SELECT 10000 + i * 100 + j, 6, repeat('z', 1000) FROM generate_series(1, 60) j; COMMIT; END LOOP; END $$`);
      const other = await poll(['http_orders:1'], { token });
      assert.equal(other.status, 200);
      go();
      await same(() => events.subscription().rows(), () => orders(6), 'after the stall');
      events.client.check();
      await events.cut();

      // By now the rows are more than fits into memory: they come from a file.
      const large = await Events.open(['http_orders:6'], { token });
      await large.subscription().ready();
      assertSame(large.subscription().rows(), await orders(6), 'a large snapshot');
      await large.cut();
      const answer = await poll(['http_orders:6'], { token });
      assertSame(answer.rows(), await orders(6), 'the same in an answer');
    });

    test('the end of a right, of a token, and a client that leaves', async () => {
      await db.exec('CREATE ROLE http_late; GRANT USAGE ON SCHEMA http TO http_late; GRANT SELECT ON http.rooms TO http_late; SELECT changefeed.allow_role(\'http_late\')');
      const late = await db.token({ role: 'http_late' }, '3 seconds');
      const other = await db.token({ role: 'http_late', sub: 'x' });
      const events = await until(() => Events.open(['http_rooms'], { token: other }).catch(() => null), 'allowed');
      await events.subscription().ready();
      const expiring = await Events.open(['http_rooms'], { token: late });
      await expiring.subscription().ready();
      const first = await poll(['http_rooms'], { token: other });
      const waiting = poll(['http_rooms'], { token: other, ...first, wait: 30 });
      await within(15000, expiring.done, 'the end of the expired one');
      const types = expiring.events.map(({ data }) => JSON.parse(data));
      assert.equal(types.find(({ type }) => type === 'revoked').reason, 'token_expired');
      assert.equal(expiring.id, '-', 'there is nothing to go on from');

      await db.exec('REVOKE SELECT ON http.rooms FROM http_late');
      await until(() => events.client.subscriptionsEnded.length === 1, 'revoked');
      assert.equal(events.client.subscriptionsEnded[0].revoked.reason, 'permission_denied');
      const told = await waiting;
      assert.deepEqual(told.messages.map(({ type }) => type).slice(-1), ['revoked']);
      assert.equal((await poll(['http_rooms'], { token: other })).status, 403);
      await events.cut();
      await until(async () => (await db.value('SELECT connections FROM changefeed.stat_feed')) === '0', 'nobody is connected');
    });

    test('go on after the gateway was killed', async () => {
      const events = await Events.open(['http_orders:1'], { token });
      await events.subscription().ready();
      const pid = await db.value('SELECT gateway_pid FROM changefeed.stat_feed').catch(() => '');
      assert.match(pid, /^\d+$/);
      process.kill(Number(pid), 'SIGKILL');
      await within(5000, events.done, 'the end');
      await db.exec("INSERT INTO http.orders VALUES (200, 1, 'meanwhile')");
      const again = await until(() => Events.open(['http_orders:1'], { token, ...events.state() }).catch(() => null), 'another gateway');
      await again.subscription().ready();
      assert.equal(again.subscription().recovered, true);
      assertSame(again.subscription().rows(), await orders(1), 'after the gateway');
      await again.cut();
    });
  });

  describe('requests', () => {
    const get = (path, headers = {}) => fetch(new URL(path, HTTP_URL), { headers });

    test('that are refused say why, with the status that fits', async () => {
      const cases = [
        ['/v1/poll', {}, 400, '08P01'],
        ['/v1/events', {}, 400, '08P01'],
        ['/v1/poll?channel=nope', {}, 404, '42704', 1],
        ['/v1/events?channel=nope', {}, 404, '42704', 1],
        ['/v1/poll?channel=http_orders:1', {}, 403, '42501', 1],
        ['/v1/events?channel=http_orders:1', {}, 403, '42501', 1],
        ['/v1/events?channel=http_rooms&channel=http_orders:1', {}, 403, '42501', 2],
        ['/v1/poll?channel=http_rooms', bearer('x.y.z'), 401, '28000'],
        ['/v1/poll?channel=http_rooms&token=x.y.z', {}, 401, '28000'],
        ['/v1/poll?channel=http_rooms&from=yesterday', {}, 400, '22023'],
        ['/v1/poll?channel=http_rooms&from=a,b', {}, 400, '22023'],
        ['/v1/poll?channel=http_rooms&wait=long', {}, 400, '22023'],
        ['/v1/events?channel=http_rooms', { 'Last-Event-ID': 'nonsense' }, 400, '22023'],
        ['/v1/poll?channel=http_rooms&channel=http_rooms', {}, 400, '42710'],
        ['/v1/poll?channel=http_rooms%3Foffset%3D1', {}, 501, '0A000'],
        ['/v1/poll?channel=http_rooms%3Fbody%3Dx', {}, 400, '42601'],
        ['/v1/poll?channel=%FF', {}, 400, '22021'],
        ['/v1/nothing', {}, 404, 'not_found'],
        ['/v1/poll?channel=http_rooms', { Origin: 'https://elsewhere.example' }, 403, 'forbidden_origin'],
      ];
      for (const [path, headers, status, code, id] of cases) {
        const answer = await get(path, headers);
        const body = await answer.json();
        assert.deepEqual([path, answer.status, body.type, body.code], [path, status, 'error', code], JSON.stringify(body));
        assert.ok(body.message);
        if (id !== undefined) assert.equal(body.id, id, path);
        assert.equal(answer.headers.get('cache-control'), 'no-store');
        if (status === 401) assert.equal(answer.headers.get('www-authenticate'), 'Bearer');
      }
      for (const [path, method, allow] of [['/v1/poll', 'POST', 'GET, HEAD, OPTIONS'], ['/v1/publish', 'GET', 'POST, OPTIONS'], ['/v1/events', 'DELETE', 'GET, HEAD, OPTIONS']]) {
        const answer = await fetch(new URL(path, HTTP_URL), { method });
        assert.deepEqual([answer.status, answer.headers.get('allow')], [405, allow]);
      }
    });

    test('HEAD has the head of the answer', async () => {
      const poll = await raw(`HEAD /v1/poll?channel=http_rooms HTTP/1.1\r\nHost: localhost\r\n\r\n`);
      assert.match(poll, /^HTTP\/1\.1 200 .*\r\nETag: "[\w-]{40}"\r\n.*\r\n\r\n$/s);
      const events = await raw(`HEAD /v1/events?channel=http_rooms HTTP/1.1\r\nHost: localhost\r\n\r\n`);
      assert.match(events, /^HTTP\/1\.1 200 .*text\/event-stream.*\r\n\r\n$/s);
    });

    test('POST: type, size, token and body are checked before anything is done', async () => {
      assert.equal((await post('/v1/publish', '{}', { 'Content-Type': 'text/plain' })).status, 415);
      assert.equal((await post('/v1/publish', JSON.stringify({ a: 'x'.repeat(70000) }))).status, 413);
      assert.equal((await post('/v1/call/none', '[1]')).status, 400);
      assert.equal((await post('/v1/call/none', '{"a":')).status, 400);
      const refused = await post('/v1/call/none', {}, bearer('x.y.z'));
      assert.deepEqual([refused.status, (await refused.json()).code], [401, '28000']);
      // What the body says of type and id does not count.
      const disguised = await (await post('/v1/publish', { type: 'subscribe', id: 7, channel: 'http_rooms' }, bearer(token))).json();
      assert.equal(disguised.id, undefined);
      assert.equal(disguised.type, 'error');
    });

    test('a body cannot make another message of its request', async () => {
      const body = { type: 'subscribe', id: 'request', channel: 'http_rooms' };
      for (let i = 0; i < 30; i++) {
        const response = await post('/v1/publish', body, bearer(token));
        const answer = await response.json();
        assert.equal(response.status, 400, `${Object.keys(body).length} members: ${JSON.stringify(answer)}`);
        body[`more${i}`] = i;
      }
    });

    test('pages of other origins: by the list, with credentials only if named', async (t) => {
      t.after(() => set(db, 'changefeed.allowed_origins', null));
      await set(db, 'changefeed.allowed_origins', 'https://app.example.com, *');
      const path = '/v1/poll?channel=http_rooms';
      const listed = await until(async () => {
        const answer = await get(path, { Origin: 'https://app.example.com' });
        return answer.status === 200 && answer;
      }, 'the list counts');
      assert.equal(listed.headers.get('access-control-allow-origin'), 'https://app.example.com');
      assert.equal(listed.headers.get('access-control-allow-credentials'), 'true');
      assert.match(listed.headers.get('access-control-expose-headers'), /ETag/);
      const any = await get(path, { Origin: 'https://elsewhere.example' });
      assert.equal(any.headers.get('access-control-allow-origin'), '*');
      assert.equal(any.headers.get('access-control-allow-credentials'), null);
      // What an address alone may read is not for pages that its browser shows.
      assert.equal((await get('/metrics')).status, 200);
      for (const page of ['https://app.example.com', 'https://elsewhere.example']) assert.equal((await get('/metrics', { Origin: page })).status, 403, page);
      const preflight = await fetch(new URL('/v1/publish', HTTP_URL), {
        method: 'OPTIONS', headers: { Origin: 'https://app.example.com', 'Access-Control-Request-Method': 'POST', 'Access-Control-Request-Headers': 'authorization' },
      });
      assert.equal(preflight.status, 204);
      assert.match(preflight.headers.get('access-control-allow-headers'), /Authorization.*Idempotency-Key/);
    });

    test('a cookie is a token, but not for foreign pages', async (t) => {
      t.after(async () => {
        await set(db, 'changefeed.token_cookie', null);
        await set(db, 'changefeed.allowed_origins', null);
      });
      await set(db, 'changefeed.allowed_origins', 'https://app.example.com, *');
      await set(db, 'changefeed.token_cookie', '__Host-feed');
      const Cookie = `other=1; __Host-feed=${token}; more="2"`;
      const path = '/v1/poll?channel=http_orders:1';
      await until(async () => (await get(path, { Cookie })).status === 200, 'the cookie counts');
      assert.equal((await get(path, { Cookie: `x__Host-feed=${token}` })).status, 403, 'another cookie does not');
      assert.equal((await get(path, { Cookie, Origin: 'https://app.example.com' })).status, 200);
      assert.equal((await get(path, { Cookie, Origin: new URL(HTTP_URL).origin })).status, 200);
      for (const headers of [{ Origin: 'https://elsewhere.example' }, { 'Sec-Fetch-Site': 'cross-site' }, { 'Sec-Fetch-Site': 'same-site' }]) {
        const refused = await get(path, { Cookie, ...headers });
        assert.deepEqual([refused.status, (await refused.json()).code], [403, 'forbidden_origin'], JSON.stringify(headers));
      }
      assert.equal((await get(path, { Cookie, 'Sec-Fetch-Site': 'same-origin' })).status, 200);
      assert.equal((await get(path, { Cookie, Origin: 'https://elsewhere.example', ...bearer(token) })).status, 200, 'a token of its own needs no cookie');
      assert.match((await get(path, { Cookie })).headers.get('vary'), /Cookie/);

      const client = await Client.connect({ headers: { Cookie } });
      await client.open('http_orders:1');
      await client.close();
      const foreign = new Client({ headers: { Cookie, Origin: 'https://elsewhere.example' } });
      await assert.rejects(foreign.opened, /403/);
    });

    test('a token in the address is not logged', async () => {
      const bad = 'c2VjcmV0.c2VjcmV0.c2VjcmV0';
      assert.equal((await poll(['http_rooms'], { more: { token: bad } })).status, 401);
      await poll(['http_rooms'], { more: { token } });
      const log = readFileSync(LOG, 'utf8');
      assert.match(log, /changefeed/);
      assert.ok(!log.includes(bad) && !log.includes(token));
    });
  });

  describe('a paced channel', () => {
    const selects = { http_paced: () => db.rows('SELECT * FROM http.paced'), http_plain: () => db.rows('SELECT * FROM http.plain') };

    before(async () => {
      await db.exec(`CREATE TABLE http.paced (id int PRIMARY KEY, v int);
        CREATE TABLE http.plain (id int PRIMARY KEY, v int);
        INSERT INTO http.paced VALUES (1, 0);
        INSERT INTO http.plain VALUES (1, 0);
        GRANT SELECT ON http.paced, http.plain TO http_web;
        SELECT changefeed.create_channel('http_paced', 'http.paced', min_interval => '3s');
        SELECT changefeed.create_channel('http_plain', 'http.plain')`);
      const client = await Client.connectSoon({ token });
      await client.openSoon('http_plain');
      await client.close();
    });

    test('loses nothing wherever an event stream is cut off', async () => {
      const channels = ['http_paced', 'http_plain'];
      const events = await Events.open(channels, { token });
      for (const channel of channels) await events.subscription(channel).ready();
      const states = [];
      events.onEvent = () => states.push({ ...events.state(), data: JSON.parse(events.events.at(-1).data) });

      await db.exec('UPDATE http.paced SET v = 1');
      await until(() => states.some(({ data }) => data.channel === 'http_paced'), 'the first change comes at once');
      await db.exec('UPDATE http.paced SET v = 2');
      await db.exec('UPDATE http.plain SET v = 1');
      await until(() => states.filter(({ data }) => data.channel === 'http_paced').length === 2, 'what was put off');
      await events.cut();
      const kinds = states.filter(({ data }) => data.type === 'transaction').map(({ data }) => data.channel ?? 'all');
      assert.deepEqual(kinds, ['http_paced', 'all', 'http_paced']);

      const rest = { http_paced: [1, 1, 0], http_plain: [1, 0, 0] };
      const sent = states.filter(({ data }) => data.type === 'transaction');
      for (const [i, state] of sent.entries()) {
        const again = await Events.open(channels, { token, ...state });
        for (const channel of channels) {
          const subscription = again.subscription(channel);
          await subscription.ready();
          again.client.check();
          assertSame(subscription.rows(), await selects[channel](), `${channel} from ${state.position}`);
          assert.equal(subscription.changes, rest[channel][i], `${channel}: changes behind frame ${i + 1}`);
        }
        await again.cut();
      }

      // Others have made it wait before this one got any of its frames.
      const late = await Events.open(channels, { token });
      for (const channel of channels) await late.subscription(channel).ready();
      let state = null;
      late.onEvent = () => {
        const { type, channel } = JSON.parse(late.events.at(-1).data);
        if (type === 'transaction' && channel === undefined) state ??= late.state();
      };
      await db.exec('UPDATE http.paced SET v = 3');
      await db.exec('UPDATE http.paced SET v = 4');
      await db.exec('UPDATE http.plain SET v = 2');
      await until(() => state !== null, 'the frame of the other channel');
      await late.cut();
      const again = await Events.open(channels, { token, ...state });
      for (const channel of channels) {
        await again.subscription(channel).ready();
        assertSame(again.subscription(channel).rows(), await selects[channel](), `${channel} from ${state.position}`);
      }
      await again.cut();
    });

    test('is given once by polls, and nothing while it is put off', async () => {
      const first = await poll(['http_paced'], { token });
      const waiting = poll(['http_paced'], { token, ...first, wait: 30 });
      await until(async () => (await db.value("SELECT count(*) FROM changefeed.stat_connections WHERE transport = 'poll'")) === '1', 'the poll waits');
      await db.exec('UPDATE http.paced SET v = 10');
      const second = await waiting;
      assert.equal(second.changes, 1);
      assert.notEqual(second.position, first.position);

      // Something is put off as long as somebody is there whom it was sent.
      const other = await Events.open(['http_paced'], { token });
      await other.subscription().ready();
      await db.exec('UPDATE http.paced SET v = 11');
      const third = await poll(['http_paced'], { token, ...second, wait: 0 });
      assert.equal(third.status, 200, 'who comes back gets it at once');
      assert.equal(third.changes, 1);
      await db.exec('UPDATE http.paced SET v = 12');
      const fourth = await poll(['http_paced'], { token, ...third, wait: 0 });
      await db.exec('UPDATE http.paced SET v = 13');
      await other.cut();
      const fifth = await poll(['http_paced'], { token, ...fourth, wait: 10 });
      assertSame(fifth.rows(), await selects.http_paced(), 'the last answer');
      assert.deepEqual([second, third, fourth, fifth].map(({ changes }) => changes), [1, 1, 1, 1]);
      assert.equal((await poll(['http_paced'], { token, ...fifth, wait: 0 })).status, 304);
    });
  });

  test('a client of pgbench that changes its transport has every row, and saw every update once', async (t) => {
    const pgbench = (args) => spawn('pgbench', [...args, process.env.PGDATABASE], { stdio: 'ignore' });
    const CHANNEL = 'http_branch:2';
    assert.deepEqual(await once(pgbench(['-i', '-q', '-s', '2']), 'close'), [0, null]);
    await db.exec(`GRANT SELECT ON pgbench_accounts TO http_web;
      SELECT changefeed.create_channel('http_branch:{bid}', 'public.pgbench_accounts', entity => 'accounts')`);
    const client = await Client.connect({ token });
    const first = await client.openSoon(CHANNEL);
    const load = pgbench(['-n', '-c', '3', '-j', '2', '-T', '600']);
    t.after(() => load.kill());
    const over = once(load, 'close');
    await until(() => first.changes > 50, 'changes over the socket');
    await client.cut();
    client.check();
    let { changes } = first;
    const counts = { socket: changes };
    let state = { position: first.position, held: new Map([[CHANNEL, first]]) };
    const resyncs = [...first.resyncs];

    const stream = async (n) => {
      const events = await Events.open([CHANNEL], { token, ...state });
      assert.equal((await until(() => events.subscription()?.recovered !== null && events.subscription(), 'recovered')).recovered, true);
      await until(() => (events.client.check(), events.subscription().changes > n), 'changes over the stream');
      state = await events.cut();
      events.client.check();
      resyncs.push(...events.subscription().resyncs);
      changes += events.subscription().changes;
      counts.events = (counts.events ?? 0) + events.subscription().changes;
    };
    const polls = async (enough) => {
      let answer;
      do {
        answer = await poll([CHANNEL], { token, ...state, wait: 2 });
        assert.ok([200, 304].includes(answer.status), JSON.stringify(answer.error));
        resyncs.push(...(answer.resyncs ?? []));
        state = { position: answer.position, held: answer.held };
        changes += answer.changes;
        counts.polls = (counts.polls ?? 0) + answer.changes;
      } while (!enough(answer));
    };
    await stream(100);
    await stream(1); // cut off early
    await stream(100);
    const end = Date.now() + 1500;
    await polls(() => Date.now() > end);
    const socket = await Client.connect({ token });
    const back = await socket.subscribe(CHANNEL, { from: state.position, cache: state.held.get(CHANNEL) });
    assert.equal(back.recovered, true);
    await back.ready();
    await until(() => back.changes > 30, 'changes over the socket again');
    await socket.cut();
    socket.check();
    changes += back.changes;
    counts.socket += back.changes;
    state = { position: back.position, held: new Map([[CHANNEL, back]]) };
    // What it had under way may have been committed or not, which the table says.
    load.kill();
    assert.deepEqual(await over, [null, 'SIGTERM']);
    await until(async () => await db.value("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'") === '0', 'its sessions end');
    await polls(({ status }) => status === 304);
    assert.deepEqual(resyncs, []);
    const rows = [...state.held.get(CHANNEL).entities.values()][0].rows;
    assertSame([...rows.values()], await db.rows('SELECT * FROM pgbench_accounts WHERE bid = 2'), 'after the load');
    const updates = Number(await db.value(`SELECT count(*) FROM pgbench_history h JOIN pgbench_accounts a USING (aid)
      WHERE a.bid = 2 AND h.delta <> 0`));
    t.diagnostic(`${JSON.stringify(counts)}, ${updates} updates`);
    assert.equal(changes, updates);
  });
});
