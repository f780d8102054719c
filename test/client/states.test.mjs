// The core of client/ against a scripted server: what a real one does at no moment that a test could wait for.

import assert from 'node:assert/strict';
import { describe, mock, test } from 'node:test';

import { debugLog, metrics, pauseWhenHidden, refreshEvery } from '../../client/dist/extras.js';
import { eventStream } from '../../client/dist/http.js';
import { ChangefeedError, createClient } from '../../client/dist/index.js';
import { until } from '../integration/lib/client.mjs';

const ENTITIES = { t: { key: ['id'], columns: ['id', 'a'] } };
const turn = () => new Promise((resolve) => { setImmediate(resolve); });
const tokenOf = (sub, more) => `x.${Buffer.from(JSON.stringify({ role: 'web', sub, ...more })).toString('base64url')}.x`;

/** A client with a server of a few lines; what it has not been told to do, the test does. */
function scripted(t, options = {}) {
  const server = {
    links: [],
    sent: [],
    rows: [{ id: 1, a: 'one' }],
    silent: new Set(),
    hello: {},
    get link() { return server.links.at(-1); },
    say: (message) => server.link.context.message(message),
    of: (type) => server.sent.filter((message) => message.type === type),
    last: (type) => server.of(type).at(-1),
    frame(seq, changes, more) {
      server.say({ type: 'transaction', seq, txid: String(700 + seq), position: `p${seq}`, committed_at: new Date().toISOString(), changes: changes.map((change) => ({ channel: 't', entity: 't', ...change })), ...more });
    },
    answer: {
      connect: ({ id }) => server.say({ type: 'connected', id, session: 's', heartbeat_ms: 25000, ...server.hello }),
      subscribe({ id, channel, from }) {
        server.say({ type: 'subscribed', id, channel, recovered: from !== undefined, entities: ENTITIES });
        if (from === undefined) server.say({ type: 'snapshot', channel, entity: 't', rows: server.rows });
        server.say({ type: 'ready', channel, position: from ?? 'p0', ...(from === undefined && { snapshot: { xmin: '10', xmax: '10', xip: [] } }) });
      },
      unsubscribe: ({ id }) => server.say({ type: 'ok', id }),
      token: ({ id }) => server.say({ type: 'ok', id }),
      sync: ({ id }) => server.say({ type: 'synced', id, position: 'p9', settled_txid: '1' }),
      call: ({ id }) => server.say({ type: 'result', id, result: 1, txid: null }),
    },
  };
  const transport = (context) => {
    const link = { context, open: true };
    server.links.push(link);
    return {
      name: 'scripted',
      send(message) {
        JSON.stringify(message);
        server.sent.push(message);
        if (message.type === 'token' && server.onToken) return server.onToken();
        if (!server.silent.has(message.type)) queueMicrotask(() => link.open && server.answer[message.type]?.(message));
      },
      close() { link.open = false; },
    };
  };
  const client = createClient({ url: 'http://server', transport, backoff: { minMs: 1, maxMs: 2 }, lingerMs: 10, ...options });
  const errors = [];
  client.on('error', (error) => errors.push(error));
  t.after(() => client.close());
  return { client, server, errors };
}

describe('frames', () => {
  for (const [what, frames] of [
    ['a missing one', [[1, 1], [3, 1]]],
    ['one that comes again', [[1, 1], [1, 1]]],
    ['a missing part', [[1, 1, false], [1, 3, true]]],
    ['a part of another one', [[1, 1, false], [2, 2, true]]],
  ]) {
    test(`${what} ends the connection, and the next one goes on from the last position`, async (t) => {
      const { client, server, errors } = scripted(t);
      const channel = client.channel('t');
      await channel.ready;
      for (const [seq, part, last] of frames) server.frame(seq, [{ op: 'merge', key: { id: 1 }, set: { a: `${seq}.${part}` } }], last === undefined ? {} : { part, last });
      await until(() => server.links.length === 2 && channel.state === 'live', 'another connection');
      assert.equal(errors[0].code, 'inconsistent');
      assert.equal(server.last('subscribe').from, frames[0][2] === false ? 'p0' : 'p1');
      assert.equal(channel.rows()[0].a, frames[0][2] === false ? 'one' : '1.1', 'whole frames only');
    });
  }

  test('what cannot be read ends the connection as well', async (t) => {
    const { client, server } = scripted(t);
    await client.channel('t').ready;
    server.say('{"type":"trans');
    await until(() => server.links.length === 2, 'another connection');
  });

  test('a change that does not fit leaves the rows as they were, and new ones come; again and again with pauses', async (t) => {
    const { client, server, errors } = scripted(t);
    const channel = client.channel('t');
    await channel.ready;
    const seen = [];
    channel.subscribe(() => seen.push(JSON.stringify(channel.rows())));
    server.rows = [{ id: 2, a: 'two' }];
    server.frame(1, [{ op: 'merge', key: { id: 1 }, set: { a: 'half' } }, { op: 'merge', key: { id: 7 }, set: {} }]);
    await until(() => channel.state === 'live' && channel.rows()[0].id === 2, 'new rows');
    assert.deepEqual([...new Set(seen)], ['[{"id":1,"a":"one"}]', '[{"id":2,"a":"two"}]']);
    assert.deepEqual([errors[0].code, errors[0].severity, errors[0].retryable], ['inconsistent', 'warning', true]);
    assert.equal(server.links.length, 1);
  });

  test('what comes for a channel before it is subscribed, or of its former subscription, is not applied', async (t) => {
    const { client, server, errors } = scripted(t);
    const channel = client.channel('t');
    await channel.ready;
    server.silent.add('subscribe');
    channel.refresh();
    await turn();
    // On its way when the client said unsubscribe.
    server.frame(1, [{ op: 'merge', key: { id: 1 }, set: { a: 'late' } }]);
    server.say({ type: 'snapshot', channel: 't', entity: 't', rows: [{ id: 5, a: 'old' }] });
    server.say({ type: 'ready', channel: 't', position: 'px', snapshot: { xmin: '1', xmax: '1', xip: [] } });
    server.say({ type: 'subscribed', id: 'another', channel: 't', recovered: true, entities: ENTITIES });
    assert.equal(channel.state, 'stale');
    server.answer.subscribe(server.last('subscribe'));
    await turn();
    assert.equal(channel.state, 'live');
    assert.deepEqual(channel.rows(), [{ id: 1, a: 'one' }]);
    assert.deepEqual(errors, []);
    channel.unsubscribe();
    await until(() => server.of('unsubscribe').length === 2, 'unsubscribe');
    server.frame(2, [{ op: 'merge', key: { id: 1 }, set: { a: 'gone' } }]);
    assert.equal(client.connection.current.status, 'connected');
  });

  test('a transaction is told when all channels have it, and rows and position belong together at any time', async (t) => {
    for (const flush of ['sync', 'microtask', 1000]) {
      const { client, server } = scripted(t, { flush });
      const [a, b] = ['t', 'u'].map((name) => client.channel(name));
      await Promise.all([a.ready, b.ready]);
      assert.equal(a.rows().length, 1, 'as soon as it is ready');
      const told = [];
      for (const event of ['change', 'transaction']) a.on(event, () => told.push([a.rows()[0]?.a, b.rows()[0]?.a, b.position]));
      client.on('transaction', ({ changes }) => told.push([changes.length, b.rows()[0]?.a, b.position]));
      server.frame(1, [{ op: 'merge', key: { id: 1 }, set: { a: 'x' } }, { channel: 'u', op: 'merge', key: { id: 1 }, set: { a: 'y' } }]);
      assert.deepEqual(a.dump(), { rows: { t: [{ id: 1, a: 'x' }] }, position: 'p1' });
      await turn();
      for (const each of told) assert.deepEqual(each.slice(1), ['y', 'p1']);
      assert.ok(told.length >= 2);
    }
  });

  test('a frame that fits one channel and not another: whoever is told sees no old rows with the new position', async (t) => {
    const { client, server } = scripted(t, { flush: 'sync' });
    const [a, b] = ['t', 'u'].map((name) => client.channel(name));
    await Promise.all([a.ready, b.ready]);
    server.silent.add('subscribe');
    const told = [];
    const look = () => told.push([a.rows()[0].a, a.position, b.state, b.position]);
    a.on('transaction', look);
    client.on('transaction', look);
    const early = [];
    client.on('error', () => early.push([a.rows()[0].a, a.position, b.position]));
    server.frame(1, [{ op: 'merge', key: { id: 1 }, set: { a: 'x' } }, { channel: 'u', op: 'merge', key: { id: 7 }, set: {} }]);
    assert.deepEqual(told, [['x', 'p1', 'stale', null], ['x', 'p1', 'stale', null]]);
    assert.deepEqual(early, [['x', 'p1', 'p0']]);
    assert.deepEqual(b.rows(), [{ id: 1, a: 'one' }], 'those of before, until there are others');
  });

  test('a channel and an entity may have any name', async (t) => {
    const { client, server } = scripted(t);
    server.answer.subscribe = ({ id, channel }) => {
      server.say({ type: 'subscribed', id, channel, recovered: false, entities: { constructor: ENTITIES.t } });
      server.say({ type: 'snapshot', channel, entity: 'constructor', rows: server.rows });
      server.say({ type: 'ready', channel, position: 'p0', snapshot: { xmin: '10', xmax: '10', xip: [] } });
    };
    const channel = client.channel('__proto__', { snapshot: true });
    assert.deepEqual(channel.rows('constructor'), []);
    await channel.ready;
    server.frame(1, [{ channel: '__proto__', entity: 'constructor', op: 'merge', key: { id: 1 }, set: { a: 'x' } }]);
    assert.deepEqual(channel.rows(), [{ id: 1, a: 'x' }]);
    assert.deepEqual(channel.rows('toString'), []);
  });

  test('many rows and changes come in one flush; each row once, with what they are together', async (t) => {
    const { client, server } = scripted(t);
    server.rows = Array.from({ length: 10_000 }, (_, id) => ({ id, a: 'x' }));
    const channel = client.channel('t');
    const flushes = [];
    channel.on('change', (changes) => flushes.push(changes));
    await channel.ready;
    await turn();
    assert.equal(channel.rows().length, 10_000);
    assert.deepEqual(flushes.map(({ reset }) => reset), [true]);
    flushes.length = 0;
    const row = (id, a) => ({ key: { id }, row: { id, a } });
    server.frame(1, [{ op: 'remove', key: { id: 1 } }, { op: 'append', ...row(-1, 'n') }, { op: 'merge', key: { id: 2 }, set: { a: 'm' } }, { op: 'append', ...row(-2, 'n') }]);
    server.frame(2, [{ op: 'append', ...row(1, 'again') }, { op: 'merge', key: { id: -1 }, set: { a: 'nm' } }, { op: 'replace', ...row(2, 'r') }, { op: 'replace', ...row(-2, 'nr') }]);
    server.frame(3, [{ op: 'remove', key: { id: 2 } }]);
    await turn();
    assert.equal(flushes.length, 1);
    assert.deepEqual(flushes[0].changes.map(({ op, key, row: is }) => [op, key.id, is?.a]),
      [['replace', 1, 'again'], ['append', -1, 'nm'], ['remove', 2, undefined], ['append', -2, 'nr']]);
  });
});

describe('time', () => {
  test('a machine that has slept, or whose clock was set, asks at once whether the server is there', async (t) => {
    for (const skew of [3_600_000, -3_600_000]) {
      const { client, server } = scripted(t);
      await client.channel('t').ready;
      const before = server.of('sync').length;
      const real = Date.now;
      mock.method(Date, 'now', () => real() + skew);
      await until(() => server.of('sync').length > before, 'sync', 5000);
      mock.restoreAll();
      assert.equal(client.connection.current.status, 'connected', 'a clock that was set is no lost connection');
      client.close();
    }
  });

  test('a server that says nothing for longer than its heartbeat, a connection and a token that never come', async (t) => {
    const hung = [];
    const cases = [scripted(t), scripted(t), scripted(t, { auth: () => (hung.push(1) === 1 ? new Promise(() => {}) : 'x') })];
    cases[1].server.silent.add('connect');
    const channels = cases.map(({ client }) => client.channel('t'));
    await channels[0].ready;
    const real = performance.now.bind(performance);
    mock.method(performance, 'now', () => real() + 60_000);
    await until(() => cases[0].server.links.length === 2 && cases[1].server.links.length === 2 && hung.length === 2, 'all began again', 8000);
    mock.restoreAll();
    cases[1].server.silent.clear();
    await channels[2].ready;
    assert.equal(channels[0].rows().length, 1);
  });

  test('retry_after_ms is waited for; what sent too much waits', async (t) => {
    const { client, server } = scripted(t);
    await client.channel('t').ready;
    server.say({ type: 'closing', reason: 'shutdown', retry_after_ms: 60_000 });
    server.link.context.closed(1001);
    const { status, retryAt } = client.connection.current;
    assert.equal(status, 'reconnecting');
    assert.ok(retryAt - Date.now() > 59_000);
    const other = scripted(t, { backoff: { minMs: 1, maxMs: 1e9 } });
    await other.client.channel('t').ready;
    other.server.link.context.closed(4005);
    assert.ok(other.client.connection.current.retryAt - Date.now() > 1000);
  });

  test('a page that is seen again asks whether the server is there; one that was in the browser\'s cache connects at once', async (t) => {
    const page = Object.assign(new EventTarget(), { visibilityState: 'hidden' });
    globalThis.document = page;
    globalThis.addEventListener = page.addEventListener.bind(page);
    const { client, server } = scripted(t, { backoff: { minMs: 1e9, maxMs: 1e9 } });
    t.after(() => {
      client.close();
      delete globalThis.document;
      delete globalThis.addEventListener;
    });
    const on = (event) => page.dispatchEvent(new Event(event));
    const channel = client.channel('t');
    await channel.ready;
    on('online');
    assert.equal(server.of('sync').length, 0, 'nobody looks');
    page.visibilityState = 'visible';
    server.silent.add('sync');
    on('visibilitychange');
    await until(() => server.of('sync').length === 1, 'sync');
    assert.equal(client.connection.current.status, 'connected');
    const real = performance.now.bind(performance);
    mock.method(performance, 'now', () => real() + 5001);
    await until(() => client.connection.current.status === 'reconnecting', 'no answer within 5 seconds', 3000);
    mock.restoreAll();
    assert.equal(client.connection.current.error.code, 'no_answer');
    on('online');
    await until(() => channel.state === 'live', 'at once');
    on('pagehide');
    assert.equal(client.connection.current.status, 'reconnecting');
    assert.equal(server.link.open, false, 'a page with a connection is not kept');
    assert.equal(channel.rows().length, 1);
    on('pageshow');
    await until(() => channel.state === 'live', 'at once');
    assert.equal(server.links.length, 3);
    assert.equal(server.last('subscribe').from, 'p0');
  });

  test('a token is refreshed once, whatever the clock says, and when the server warns', async (t) => {
    const asked = [];
    const { client, server } = scripted(t, { auth: (why) => { asked.push(why); return tokenOf('ada'); } });
    server.hello = { expires_at: new Date(Date.now() - 3_600_000).toISOString() };
    await client.channel('t').ready;
    await turn();
    assert.deepEqual(asked, ['connect']);
    server.say({ type: 'error', code: '28000', message: 'expires', expires_at: server.hello.expires_at });
    await until(() => server.of('token').length === 1, 'a token');
    assert.equal(server.links.length, 1);
    const fixed = scripted(t, { auth: tokenOf('ada') });
    await fixed.client.channel('t').ready;
    fixed.server.say({ type: 'error', code: '28000', message: 'expires', expires_at: 'x' });
    assert.deepEqual([fixed.errors[0].severity, fixed.errors[0].type], ['warning', 'auth'], 'the application is told');
  });
});

describe('tokens and identities', () => {
  test('a token function that fails is asked again, with back-off, also for another token', async (t) => {
    let n = 0;
    const { client, server } = scripted(t, { auth: (why) => {
      n += 1;
      if (n === 1) return 'old';
      if (n < 5) throw new Error('offline');
      return why;
    } });
    server.answer.connect = ({ id, token }) => (token === 'old'
      ? server.say({ type: 'error', id, code: '28000', message: 'refused' }) : server.say({ type: 'connected', id, session: 's' }));
    const { subscribe } = server.answer;
    server.answer.subscribe = (message) => server.last('connect').token !== 'old' && subscribe(message);
    await client.channel('t').ready;
    assert.equal(server.last('connect').token, 'refresh');
    assert.equal(n, 5);
  });

  test('another user, connected or not: rows go at once, and what waits is not done in his name', async (t) => {
    for (const away of [false, true]) {
      const { client, server } = scripted(t, { auth: tokenOf('ada') });
      server.silent.add('call');
      const channel = client.channel('t');
      await channel.ready;
      const call = client.call('f', {});
      let purged = 0;
      client.on('purge', () => { purged += 1; });
      if (away) client.disconnect();
      client.setAuth(tokenOf('ada', { exp: 1 }));
      assert.equal(channel.rows().length, 1, 'a fresh token of the same one');
      assert.equal(purged, 0);
      client.setAuth(tokenOf('bob'));
      assert.deepEqual(channel.rows(), []);
      assert.equal(purged, 1);
      await assert.rejects(call, { code: '28000' });
      server.silent.clear();
      const next = client.call('f', {});
      if (away) client.connect();
      assert.equal((await next).result, 1);
      assert.equal(server.links.length, 2, 'over a connection of his own');
      assert.equal(server.last('connect').token, tokenOf('bob'));
      assert.equal(server.last('subscribe').from, undefined);
      client.setAuth(null);
      assert.equal(purged, 2);
    }
  });

  test('another function: nothing of before is shown while its token is on the way, or never comes', async (t) => {
    for (const flush of ['sync', 'microtask']) {
      const { client, server } = scripted(t, { auth: async () => tokenOf('ada'), flush });
      const channel = client.channel('t');
      await channel.ready;
      const call = client.call('never', {});
      server.silent.add('call');
      let me = 'ada';
      const shown = [];
      const look = () => { if (me === 'bob') shown.push(...channel.rows()); };
      channel.subscribe(look);
      channel.on('state', look);
      client.connection.subscribe(look);
      let purged = 0;
      client.on('purge', () => { purged += 1; });
      await call.catch(() => {});
      const waits = client.call('late', {});
      me = 'bob';
      let come;
      const coming = new Promise((resolve) => { come = resolve; });
      const mine = async () => { await coming; return tokenOf('bob'); };
      client.setAuth(mine);
      assert.deepEqual(channel.rows(), []);
      assert.equal(channel.position, null);
      await assert.rejects(waits, { code: '28000' });
      await new Promise((resolve) => { setTimeout(resolve, 10); });
      assert.deepEqual(shown, []);
      const next = client.call('his', {});
      server.silent.clear();
      come();
      await until(() => channel.state === 'live', 'his own');
      assert.equal((await next).result, 1);
      assert.equal(server.last('subscribe').from, undefined);
      assert.equal(purged, 1, 'once');
      // The same function says nothing new.
      client.setAuth(mine);
      assert.equal(channel.rows().length, 1);
      assert.equal(purged, 1);
    }
  });

  test('another user\'s token: his is the next thing that is told', async (t) => {
    const { client } = scripted(t, { auth: tokenOf('ada'), flush: 'sync' });
    const channel = client.channel('t');
    await channel.ready;
    const shown = [];
    channel.on('state', () => shown.push(...channel.rows()));
    channel.subscribe(() => shown.push(...channel.rows()));
    client.connection.subscribe(() => shown.push(...channel.rows()));
    client.setAuth(tokenOf('bob'));
    assert.deepEqual(shown, []);
  });

  test('rows out of a store, and another user before anybody has connected', async (t) => {
    for (const [first, second] of [[async () => new Promise(() => {}), tokenOf('bob')], [tokenOf('ada'), async () => tokenOf('bob')], [tokenOf('ada'), tokenOf('bob')]]) {
      const { client, server } = scripted(t, { auth: first, live: false });
      const channel = client.channel('t', { initial: { rows: { t: [{ id: 9 }] }, position: 'kept' } });
      assert.equal(channel.rows().length, 1);
      client.setAuth(second);
      assert.deepEqual(channel.rows(), []);
      client.setLive(true);
      await channel.ready;
      assert.equal(server.last('subscribe').from, undefined);
    }
    const { client } = scripted(t, { live: false });
    const channel = client.channel('t', { initial: { rows: { t: [{ id: 9 }] }, position: 'kept' } });
    client.setAuth(async () => tokenOf('bob'));
    assert.equal(channel.rows().length, 1, 'they may be his own');
  });

  test('the server sees another identity: the rows go, and whoever keeps them elsewhere is told', async (t) => {
    const { client, server } = scripted(t, { auth: tokenOf('ada') });
    const channel = client.channel('t');
    await channel.ready;
    const purged = [];
    client.on('purge', (why) => purged.push(why));
    server.say({ type: 'resync', channel: 't', reason: 'truncated' });
    assert.deepEqual([purged, channel.rows().length, channel.state], [[], 1, 'stale']);
    server.say({ type: 'resync', channel: 't', reason: 'identity_changed' });
    assert.deepEqual([purged, channel.rows().length, channel.state, channel.position], [['identity_changed'], 0, 'subscribing', null]);
    client.setAuth(null);
    assert.deepEqual(purged, ['identity_changed', undefined]);
  });

  test('signed in by a function: what was asked for since then is done, what was asked for before is not', async (t) => {
    const { client, server } = scripted(t);
    const channel = client.channel('t');
    await channel.ready;
    server.silent.add('call');
    const before = client.call('f', {});
    client.setAuth(async () => tokenOf('ada'));
    const since = client.call('f', {});
    server.silent.clear();
    assert.deepEqual(channel.rows(), []);
    await assert.rejects(before, { code: '28000' });
    assert.equal((await since).result, 1);
    assert.equal(server.last('connect').token, tokenOf('ada'));
  });

  test('signed in without a token, by a function: what was asked for since then is done', async (t) => {
    for (const auth of [undefined, tokenOf('ada')]) {
      const { client, server } = scripted(t, { auth });
      await client.channel('t').ready;
      server.silent.add('call');
      const before = client.call('f', {});
      client.setAuth(async () => null);
      const since = client.call('f', {});
      server.silent.clear();
      await assert.rejects(before, { code: '28000' });
      assert.equal((await since).result, 1);
      assert.equal(server.last('connect').token, undefined);
      // It is his own then.
      server.silent.add('call');
      const late = client.call('f', {});
      client.setAuth(tokenOf('bob'));
      await assert.rejects(late, { code: '28000' });
    }
  });

  test('a transport that ends the connection when it gets the token is asked for another one', async (t) => {
    const { client, server } = scripted(t, { auth: tokenOf('ada', { org: 1 }) });
    await client.channel('t').ready;
    server.onToken = () => {
      server.link.context.purge();
      server.link.context.closed(1000, undefined, true);
    };
    client.setAuth(tokenOf('ada', { org: 2 }));
    await until(() => client.connection.current.status === 'connected', 'connected');
    await turn();
    assert.deepEqual([server.links.length, client.connection.current.status], [2, 'connected']);
  });

  test('a function that fails for now while the connection lives is asked again', async (t) => {
    const asked = [];
    const { client, server, errors } = scripted(t, {
      auth: async (why) => {
        asked.push(why);
        if (asked.length === 2) throw new Error('offline');
        return tokenOf('ada', { n: asked.length });
      },
    });
    await client.channel('t').ready;
    mock.timers.enable({ apis: ['setTimeout'] });
    try {
      server.say({ type: 'error', code: '28000', message: 'soon', expires_at: 'soon' });
      await turn();
      mock.timers.tick(4999);
      await turn();
      assert.deepEqual([asked.length, server.of('token').length, errors.length], [2, 0, 1]);
      mock.timers.tick(1);
      await turn();
    } finally {
      mock.timers.reset();
    }
    assert.deepEqual([asked.length, server.of('token').length, server.links.length], [3, 1, 1]);
  });

  test('a function that gives another user\'s token', async (t) => {
    let who = 'ada';
    const { client, server } = scripted(t, { auth: async () => tokenOf(who) });
    const channel = client.channel('t');
    await channel.ready;
    let purged = 0;
    client.on('purge', () => { purged += 1; });
    server.link.context.closed(1006);
    await until(() => server.links.length === 2 && channel.state === 'live', 'again');
    assert.equal(purged, 0);
    assert.equal(server.last('subscribe').from, 'p0');
    who = 'bob';
    server.link.context.closed(1006);
    await until(() => server.links.length === 3 && channel.state === 'live', 'again');
    assert.equal(purged, 1);
    assert.equal(server.last('subscribe').from, undefined);
  });

  test('tokens are not in what a log gets', async (t) => {
    const lines = [];
    const { client, server } = scripted(t, { auth: tokenOf('ada') });
    const off = debugLog(client, (...what) => lines.push(JSON.stringify(what)));
    await client.channel('t').ready;
    client.setAuth(tokenOf('ada', { exp: 1 }));
    server.say({ type: 'error', code: 'XX000', message: 'odd' });
    for (const what of ['["send",{"type":"connect"', '["receive",{"type":"connected"', '["connected",{"status":"connected"', '["send",{"type":"token","token":"…"', '["error",']) {
      assert.ok(lines.some((line) => line.startsWith(what)), what);
    }
    assert.ok(!lines.some((line) => line.includes(tokenOf('ada')) || line.includes(tokenOf('ada', { exp: 1 }))));
    off();
    const { length } = lines;
    client.disconnect();
    assert.equal(lines.length, length);
  });
});

describe('requests', () => {
  test('what has no JSON fails alone; what is too large is not sent for ever', async (t) => {
    const { client, server } = scripted(t);
    await client.channel('t').ready;
    await assert.rejects(client.call('f', { n: 1n }), { code: '22023' });
    server.silent.add('call');
    const call = client.call('f', {});
    server.link.context.closed(1009);
    await assert.rejects(call, { code: 'no_connection' });
    await until(() => client.connection.current.status === 'connected', 'again');
    assert.equal(server.of('call').length, 1);
    const other = client.call('f', {});
    server.link.context.closed(1006);
    server.silent.clear();
    assert.equal((await other).result, 1);
    assert.equal(server.of('call').at(-1).key, server.of('call').at(-2).key, 'the same call');
  });

  test('nothing connects behind disconnect, and close leaves nothing', async (t) => {
    const { client, server } = scripted(t);
    await client.channel('t').ready;
    client.disconnect();
    const wait = client.call('f', {}, { timeoutMs: 20 });
    client.channel('u');
    client.channel('t').refresh();
    await assert.rejects(wait, { code: 'no_answer' });
    assert.equal(server.links.length, 1);
    assert.equal(client.connection.current.status, 'disconnected');
    client.connect();
    await client.channel('u').ready;
    const pending = [client.channel('t').seen('99'), client.channel('v').ready, client.sync({ timeoutMs: 10_000 })];
    server.silent.add('sync');
    client.close();
    for (const each of pending) await assert.rejects(each, { code: 'closed' });
    await assert.rejects(client.channel('w').ready, { code: 'closed' });
    assert.equal(client.connection.current.status, 'closed');
  });

  test('close while connecting, and unsubscribe before the answer', async (t) => {
    const { client, server } = scripted(t, { auth: async () => 'x' });
    const channel = client.channel('t');
    client.close();
    await assert.rejects(channel.ready, { code: 'closed' });
    await turn();
    assert.equal(server.links.length, 0);
    const other = scripted(t, { lingerMs: 0 });
    other.server.silent.add('subscribe');
    const early = other.client.channel('t');
    await until(() => other.server.of('subscribe').length === 1, 'subscribe');
    early.unsubscribe();
    await until(() => other.client.channels().length === 0, 'the end');
    const again = other.client.channel('t');
    other.server.answer.subscribe(other.server.of('subscribe')[0]);
    assert.equal(again.state, 'subscribing', 'the answer to the first one is not its own');
    other.server.answer.subscribe(other.server.of('subscribe')[1]);
    await again.ready;
    assert.deepEqual(other.server.sent.map(({ type }) => type).filter((type) => type.endsWith('subscribe')), ['subscribe', 'unsubscribe', 'subscribe']);
  });

  test('who needs more of a channel than was asked for gets it', async (t) => {
    const { client, server } = scripted(t);
    const bare = client.channel('t', { snapshot: false });
    await bare.ready;
    assert.equal(server.last('subscribe').snapshot, false);
    const whole = client.channel('t');
    await whole.ready;
    assert.equal(whole.rows().length, 1);
    client.channel('t', { versions: true });
    await until(() => server.last('subscribe').versions === true && whole.state === 'live', 'versions');
    client.channel('t');
    await turn();
    assert.equal(server.of('subscribe').length, 3);
  });

  test('rows of before with keys that are not exact are refused, not asked for again and again', async (t) => {
    const { client, server, errors } = scripted(t);
    const initial = { rows: { t: [{ id: 2 ** 60, a: 'x' }] }, position: 'kept' };
    const channel = client.channel('t', { initial, versions: true });
    assert.deepEqual(channel.dump(), initial, 'as they came: nobody has said that they have versions');
    const plain = client.channel('u', { initial: { rows: { t: [{ id: 2 ** 60, a: 'x' }] }, position: 'kept' } });
    await assert.rejects(plain.ready, { code: 'no_exact_number' });
    assert.deepEqual([plain.state, plain.rows(), errors.length, server.links.length], ['error', [], 1, 1]);
  });

  test('rows of before that come while new ones were on the way, and failed', async (t) => {
    const { client, server } = scripted(t);
    server.silent.add('subscribe');
    const channel = client.channel('t');
    await until(() => server.last('subscribe'), 'subscribe');
    server.say({ type: 'subscribed', id: server.last('subscribe').id, channel: 't', recovered: false, entities: ENTITIES });
    server.frame(1, [{ op: 'merge', key: { id: 9 }, set: {} }], { channel: 't' });
    client.channel('t', { initial: { rows: { t: [{ id: 1, a: 'kept' }] }, position: 'kept' } });
    server.silent.clear();
    await channel.ready;
    assert.equal(server.last('subscribe').from, 'kept');
    assert.deepEqual(channel.rows(), [{ id: 1, a: 'kept' }]);
    server.frame(2, [{ op: 'merge', key: { id: 1 }, set: { a: 'then' } }]);
    assert.deepEqual(channel.rows(), [{ id: 1, a: 'then' }]);
  });

  test('a channel that nobody has any more is not subscribed, by a pause that ends or by a handle of before', async (t) => {
    const { client, server } = scripted(t);
    const { subscribe } = server.answer;
    server.answer.subscribe = ({ id }) => server.say({ type: 'error', id, code: '55P03', message: 'locked', retry_after_ms: 500 });
    const busy = client.channel('t');
    await until(() => server.last('subscribe') && client.connection.current.status === 'connected', 'refused');
    await turn();
    busy.unsubscribe();
    await until(() => client.channels().length === 0, 'the end');
    await new Promise((resolve) => { setTimeout(resolve, 600); });
    assert.equal(server.of('subscribe').length, 1);
    server.answer.subscribe = subscribe;
    const channel = client.channel('t');
    await channel.ready;
    channel.unsubscribe();
    await until(() => client.channels().length === 0, 'the end');
    channel.refresh();
    await turn();
    assert.equal(server.of('subscribe').length, 2);
    assert.equal(channel.state, 'closed');
  });

  test('numbers of transactions that come again are not taken for those of before', async (t) => {
    const { client, server } = scripted(t);
    const channel = client.channel('t');
    await channel.ready;
    server.frame(1, [{ op: 'merge', key: { id: 1 }, set: { a: 'x' } }]);
    await channel.seen('701');
    server.say({ type: 'resync', channel: 't', reason: 'timeline_lost' });
    server.say({ type: 'snapshot', channel: 't', entity: 't', rows: server.rows });
    server.say({ type: 'ready', channel: 't', position: 'q', snapshot: { xmin: '600', xmax: '601', xip: [] } });
    await channel.seen('600');
    const again = channel.seen('701', { timeoutMs: 10_000 });
    let seen = false;
    void again.then(() => { seen = true; });
    await turn();
    assert.equal(seen, false);
    server.frame(2, [{ op: 'merge', key: { id: 1 }, set: { a: 'y' } }], { txid: '701' });
    await again;
  });

  test('a message of a channel that is not subscribed says nothing of where the others are', async (t) => {
    const { client, server } = scripted(t);
    const [channel, other] = ['t', 'u'].map((name) => client.channel(name));
    await Promise.all([channel.ready, other.ready]);
    server.frame(1, [{ op: 'merge', key: { id: 1 }, set: { a: 'x' } }], { position: 'p5' });
    server.silent.add('subscribe');
    other.refresh();
    // On its way when the client said unsubscribe.
    server.say({ type: 'message', channel: 'u', event: 'e', payload: 1, txid: '0', position: 'p2' });
    assert.equal(channel.position, 'p5');
    server.answer.subscribe(server.last('subscribe'));
    server.say({ type: 'message', channel: 'u', event: 'e', payload: 1, txid: '0', position: 'p6' });
    assert.deepEqual([channel.position, other.position], ['p6', 'p6']);
  });

  test('a refused channel says so as well to whoever wants its rows', async (t) => {
    const { client, server } = scripted(t);
    server.answer.subscribe = ({ id }) => server.say({ type: 'error', id, code: '42501', message: 'no' });
    await assert.rejects(client.channel('t', { snapshot: false }).ready, { code: '42501' });
    await assert.rejects(client.channel('t').ready, { code: '42501' });
  });

  test('a refused channel that may be granted later is asked for again', async (t) => {
    const { client, server, errors } = scripted(t);
    const { subscribe } = server.answer;
    let refusals = 0;
    server.answer.subscribe = (message) => (message.channel === 'busy' && refusals++ < 3
      ? server.say({ type: 'error', id: message.id, channel: 'busy', code: '53200', message: 'no memory' }) : subscribe(message));
    await client.channel('busy').ready;
    assert.equal(errors.length, 3);
  });
});

describe('event streams', () => {
  /** Answers each request for a stream with what `answer` says, an object as an error. */
  function streaming(t, answer) {
    let n = 0;
    const fetch = async (url, { signal, method }) => {
      if (method === 'POST') return new Promise(() => {});
      const said = answer(n++, new URL(url));
      if (!Array.isArray(said)) return new Response(JSON.stringify(said), { status: 403 });
      const lines = said.map((message) => `data:${JSON.stringify(message)}\n\n`).join('');
      return new Response(new ReadableStream({
        start(stream) {
          signal.addEventListener('abort', () => { try { stream.error(new Error('aborted')); } catch { /* It has ended. */ } });
          stream.enqueue(new TextEncoder().encode(lines));
        },
      }));
    };
    const client = createClient({ url: 'http://server', transport: eventStream, fetch });
    client.on('error', () => {});
    t.after(() => client.close());
    return client;
  }
  const HELLO = [{ type: 'connected', heartbeat_ms: 25000 }, { type: 'subscribed', id: 1, channel: 't', recovered: false, entities: ENTITIES }];
  const READY = { type: 'ready', channel: 't', position: 'p', snapshot: { xmin: '1', xmax: '1', xip: [] } };

  test('one that begins again in the middle of the rows: those of before do not count', async (t) => {
    const client = streaming(t, (n) => (n === 0
      ? [...HELLO, { type: 'snapshot', channel: 't', entity: 't', rows: [{ id: 1, a: 'gone' }, { id: 2, a: 'one' }] }]
      : [...HELLO, { type: 'snapshot', channel: 't', entity: 't', rows: [{ id: 2, a: 'two' }] }, READY]));
    const got = [];
    client.on('receive', ({ type }) => got.push(type));
    const channel = client.channel('t');
    const reasons = [];
    channel.on('resync', (reason) => reasons.push(reason));
    await until(() => got.includes('snapshot'), 'some rows');
    client.channel('u');
    await channel.ready;
    assert.deepEqual(channel.rows(), [{ id: 2, a: 'two' }]);
    assert.deepEqual(reasons, ['restarted']);
  });

  test('one channel that is refused answers nothing else', async (t) => {
    const client = streaming(t, (n) => (n === 0
      ? [...HELLO, { type: 'snapshot', channel: 't', entity: 't', rows: [{ id: 1, a: 'one' }] }, READY]
      : { type: 'error', id: 1, code: '42501', message: 'permission denied' }));
    // Its id is the first one, as the channel's place in the address is.
    let answer;
    client.call('never', {}).then(({ result }) => { answer = { result }; }, (error) => { answer = error; });
    const channel = client.channel('t');
    await channel.ready;
    client.channel('u');
    await until(() => channel.state === 'error', 'revoked');
    assert.equal(channel.error.code, '42501');
    await turn();
    assert.equal(answer, undefined);
  });
});

test('errors have a type, and say whether it is worth trying again', () => {
  for (const [code, type, retryable] of [
    ['no_connection', 'network', true], ['no_answer', 'network', true], ['no_exact_number', 'request', false], ['28000', 'auth', false],
    ['42501', 'auth', false], ['forbidden_origin', 'auth', false], ['53300', 'limit', true], ['54000', 'limit', false],
    ['too_many_connections', 'limit', true], ['too_large', 'limit', false], ['40001', 'conflict', true], ['40003', 'conflict', false],
    ['23505', 'conflict', false], ['55P03', 'conflict', true], ['42704', 'request', false], ['22023', 'request', false], ['55000', 'request', false],
    ['shutting_down', 'network', true], ['bad_request', 'request', false], ['XX000', 'server', true], ['P0001', 'server', false],
  ]) {
    const error = new ChangefeedError(code, 'text');
    assert.deepEqual([code, error.type, error.retryable, error.message, error.name], [code, type, retryable, 'text', 'ChangefeedError']);
  }
  const error = new ChangefeedError('40001', 'text', { hint: 'try', detail: 'why', conflict: { row: null }, retry_after_ms: 5, type: 'error', id: 3 });
  assert.deepEqual([error.hint, error.detail, error.retryAfterMs, error.retryable, error.type], ['try', 'why', 5, false, 'conflict']);
});

describe('extras', () => {
  test('metrics count from the first call on', async (t) => {
    const { client, server } = scripted(t);
    const read = metrics(client);
    assert.equal(metrics(client), read);
    assert.equal(read().uptimeMs, 0);
    const channel = client.channel('t');
    await channel.ready;
    server.frame(1, [{ op: 'merge', key: { id: 1 }, set: { a: 'x' } }], { committed_at: new Date(Date.now() - 5000).toISOString() });
    channel.get({ id: 1 });
    channel.get({ id: 2 });
    server.say({ type: 'resync', channel: 't', reason: 'x' });
    await assert.rejects(client.call('f', {}, { signal: AbortSignal.abort() }));
    const { connects, received, sent, resyncs, hits, misses, channels, rows, lagMs, latencyMs } = read();
    assert.deepEqual({ connects, received, sent, resyncs, hits, misses, channels, rows }, { connects: 1, received: 6, sent: 2, resyncs: 1, hits: 1, misses: 1, channels: 1, rows: 1 });
    assert.ok(lagMs >= 5000);
    assert.ok(latencyMs.p95 >= 0 && latencyMs.avg <= latencyMs.p95 + latencyMs.last);
  });

  test('rows are loaded again every so often, as long as there is a channel', async (t) => {
    const { client, server } = scripted(t);
    const channel = client.channel('t');
    await channel.ready;
    refreshEvery(channel, 5);
    await until(() => server.of('subscribe').length > 3, 'again');
    client.close();
    const { length } = server.sent;
    await new Promise((resolve) => { setTimeout(resolve, 30); });
    assert.equal(server.sent.length, length);
  });

  test('a page that is hidden disconnects after a while, and comes back', async (t) => {
    const page = Object.assign(new EventTarget(), { visibilityState: 'visible' });
    globalThis.document = page;
    // It bubbles.
    globalThis.addEventListener = page.addEventListener.bind(page);
    const show = (state) => {
      page.visibilityState = state;
      page.dispatchEvent(new Event('visibilitychange'));
    };
    const { client, server } = scripted(t);
    await client.channel('t').ready;
    const off = pauseWhenHidden(client, 20);
    t.after(() => {
      off();
      client.close();
      delete globalThis.document;
      delete globalThis.addEventListener;
    });
    show('hidden');
    show('visible');
    await new Promise((resolve) => { setTimeout(resolve, 40); });
    assert.equal(client.connection.current.status, 'connected');
    assert.ok(server.of('sync').length > 0, 'seen again, it asks whether the server is there');
    show('hidden');
    await until(() => client.connection.current.status === 'disconnected', 'disconnected');
    show('visible');
    await until(() => client.connection.current.status === 'connected', 'connected');
  });
});
