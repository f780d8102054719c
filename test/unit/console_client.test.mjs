// Unit tests of the console's client: no server, no page, no real time.
//
//   node --test test/unit

import assert from 'node:assert/strict';
import { createHmac, webcrypto } from 'node:crypto';
import { beforeEach, test } from 'node:test';

import { Cache, claimsOf, Client, fragmentOf, panesOf, parse, RequestError, show, signToken, windowOf } from '../../console/client.js';

globalThis.crypto ??= webcrypto; // Node 18

// ---------------------------------------------------------------------------
// Stand-ins
// ---------------------------------------------------------------------------

/** A clock that moves when told to. */
class FakeClock {
  time = Date.parse('2026-01-01T00:00:00Z');
  timers = [];

  now() {
    return this.time;
  }

  set(run, ms) {
    const timer = { run, at: this.time + ms };
    this.timers.push(timer);
    return timer;
  }

  clear(timer) {
    this.timers = this.timers.filter((other) => other !== timer);
  }

  advance(ms) {
    const end = this.time + ms;
    for (;;) {
      const due = this.timers.filter(({ at }) => at <= end).sort((a, b) => a.at - b.at)[0];
      if (!due) break;
      this.clear(due);
      this.time = due.at;
      due.run();
    }
    this.time = end;
  }
}

let sockets;
let clock;
let events;

class FakeSocket {
  constructor(url, protocol) {
    this.url = url;
    this.protocol = protocol;
    this.sent = [];
    this.closed = null;
    sockets.push(this);
  }

  send(text) {
    this.sent.push(JSON.parse(text));
  }

  close(code) {
    this.closed = code;
  }

  // What the server does
  open() {
    this.onopen({});
  }

  receive(...messages) {
    for (const message of messages) this.onmessage({ data: JSON.stringify(message) });
  }

  drop(code = 1006, reason = '') {
    this.onclose({ code, reason });
  }

  /** The newest message of a type that the client sent. */
  last(type) {
    return this.sent.filter((message) => message.type === type).at(-1);
  }
}

const socket = () => sockets.at(-1);
const notes = (kind) => events.filter((event) => event.type === 'note' && event.kind === kind);

function client(options = {}) {
  return new Client({
    url: 'ws://test/v1/socket',
    token: 'a.b.c',
    WebSocket: FakeSocket,
    clock,
    random: () => 1,
    onEvent: (event) => events.push(event),
    ...options,
  });
}

const entities = { orders: { key: ['id'], columns: ['id', 'status'] } };

function connected(it) {
  it.connect();
  socket().open();
  socket().receive({ type: 'connected', id: socket().last('connect').id, session: 's', heartbeat_ms: 25000 });
  return it;
}

/** A client that is live on `channel` with these rows, at position p0. */
function live(rows = [{ id: 1, status: 'new' }], { channel = 'orders:1' } = {}) {
  const it = client();
  it.subscribe(channel);
  connected(it);
  subscribed(channel);
  socket().receive(
    { type: 'snapshot', channel, entity: 'orders', rows },
    { type: 'ready', channel, position: 'p0', snapshot: { xmin: '1', xmax: '1', xip: [] } },
  );
  return it;
}

function subscribed(channel, more = {}) {
  const { id } = socket().sent.filter((m) => m.type === 'subscribe' && m.channel === channel).at(-1);
  socket().receive({ type: 'subscribed', id, channel, recovered: false, entities, ...more });
}

function transaction(seq, changes, more = {}) {
  return {
    type: 'transaction',
    seq,
    txid: String(800 + seq),
    position: `p${seq}`,
    committed_at: new Date(clock.now()).toISOString(),
    changes: changes.map((change) => ({ channel: 'orders:1', entity: 'orders', ...change })),
    ...more,
  };
}

const append = (id, status = 'new') => ({ op: 'append', key: { id }, row: { id, status } });
const merge = (id, set) => ({ op: 'merge', key: { id }, set });
const replace = (id, status) => ({ op: 'replace', key: { id }, row: { id, status } });
const remove = (id) => ({ op: 'remove', key: { id } });

const rowsOf = (it, channel = 'orders:1') => [
  ...(it.subscriptions.get(channel).cache.entities.get('orders')?.rows.values() ?? []),
];

beforeEach(() => {
  sockets = [];
  events = [];
  clock = new FakeClock();
});

// ---------------------------------------------------------------------------
// Rows
// ---------------------------------------------------------------------------

test('operations: append, merge, replace and remove', () => {
  const it = live([{ id: 1, status: 'new' }, { id: 2, status: 'new' }]);
  socket().receive(transaction(1, [remove(2), append(3), merge(1, { status: 'packed' })]));
  assert.deepEqual(rowsOf(it), [{ id: 1, status: 'packed' }, { id: 3, status: 'new' }]);
  socket().receive(transaction(2, [replace(3, 'gone')]));
  assert.deepEqual(rowsOf(it), [{ id: 1, status: 'packed' }, { id: 3, status: 'gone' }]);

  const [first] = events.filter((event) => event.type === 'transaction');
  assert.equal(first.txid, '801');
  assert.equal(first.phase, 'live');
  const merged = first.changes.find(({ op }) => op === 'merge');
  assert.deepEqual(merged.before, { id: 1, status: 'new' });
  assert.deepEqual(merged.after, { id: 1, status: 'packed' });
});

test('rows are replaced, never changed in place', () => {
  const it = live();
  const [before] = rowsOf(it);
  socket().receive(transaction(1, [merge(1, { status: 'packed' })]));
  assert.equal(before.status, 'new');
});

test('keys of several columns, and keys that look alike', () => {
  const cache = new Cache({ items: { key: ['a', 'b'], columns: ['a', 'b', 'n'] } });
  cache.addSnapshot('items', [
    { a: '1', b: 2, n: 0 },
    { a: 1, b: '2', n: 1 },
    { a: '1","2', b: '', n: 2 },
    { a: '1', b: '2","', n: 3 },
  ]);
  const items = cache.entities.get('items');
  assert.equal(items.rows.size, 4);
  cache.apply({ entity: 'items', op: 'remove', key: { b: '2', a: 1 } });
  assert.deepEqual([...items.rows.values()].map(({ n }) => n), [0, 2, 3]);
});

test('a column that was not announced is shown as well', () => {
  const it = live();
  socket().receive(transaction(1, [merge(1, { note: 'by air' })]));
  assert.deepEqual(it.subscriptions.get('orders:1').cache.entities.get('orders').columns, ['id', 'status', 'note']);
});

test('values as text', () => {
  assert.equal(show(null), 'null');
  assert.equal(show('null'), 'null');
  assert.equal(show({ a: [1, true] }), '{"a":[1,true]}');
});

test('numbers keep their text where the engine can', { skip: !JSON.rawJSON && 'needs JSON.rawJSON' }, () => {
  const row = parse('{"id":9007199254740993,"total":12.50,"n":7}');
  assert.equal(show(row.id), '9007199254740993');
  assert.equal(show(row.total), '12.50');
  assert.equal(row.n, 7);
  assert.equal(JSON.stringify(row), '{"id":9007199254740993,"total":12.50,"n":7}');
});

// ---------------------------------------------------------------------------
// Frames
// ---------------------------------------------------------------------------

test('a frame in parts is applied with its last part', () => {
  const it = live();
  socket().receive(transaction(1, [remove(1)], { part: 1, last: false }));
  socket().receive(transaction(1, [append(2)], { part: 2, last: false }));
  assert.deepEqual(rowsOf(it), [{ id: 1, status: 'new' }]);
  assert.equal(it.subscriptions.get('orders:1').position, 'p0');
  socket().receive({ type: 'ping', position: 'p1' });
  assert.equal(it.subscriptions.get('orders:1').position, 'p0', 'not before the frame is applied');

  socket().receive(transaction(1, [append(3)], { part: 3, last: true }));
  assert.deepEqual(rowsOf(it).map(({ id }) => id), [2, 3]);
  assert.equal(it.subscriptions.get('orders:1').position, 'p1');
  assert.equal(events.filter(({ type }) => type === 'transaction').length, 1);

  socket().receive(transaction(2, [remove(2)]));
  assert.deepEqual(rowsOf(it).map(({ id }) => id), [3]);
});

test('a frame in parts counts once', () => {
  live();
  socket().receive(transaction(1, [append(2)], { part: 1, last: false }));
  socket().receive(transaction(1, [append(3)], { part: 2, last: true }));
  socket().receive(transaction(3, [append(4)], { part: 1, last: false }));
  assert.match(notes('protocol')[0].text, /frame 3 came after frame 1/);
});

test('a connection that ends between parts applies none of them', () => {
  const it = live();
  socket().receive(transaction(1, [remove(1)], { part: 1, last: false }));
  socket().drop();
  clock.advance(500);
  assert.deepEqual(rowsOf(it), [{ id: 1, status: 'new' }]);
  connectAgain();
  assert.equal(socket().last('subscribe').from, 'p0');
});

test('parts out of turn: connect again', () => {
  live();
  socket().receive(transaction(1, [remove(1)], { part: 1, last: false }));
  socket().receive(transaction(1, [append(2)], { part: 3, last: true }));
  assert.match(notes('protocol')[0].text, /part 3 of frame 1 came out of turn/);
});

test('a gap in seq: connect again from the last good position, visibly', () => {
  const it = live();
  socket().receive(transaction(1, [append(2)]));
  const first = socket();
  first.receive(transaction(3, [append(4)]));
  assert.match(notes('protocol')[0].text, /gap in the feed: frame 3 came after frame 1/);
  assert.equal(first.closed, 1000);
  assert.equal(it.state, 'reconnecting');
  assert.deepEqual(rowsOf(it).map(({ id }) => id), [1, 2], 'the frame behind the gap is not applied');

  clock.advance(500);
  connectAgain();
  assert.equal(socket().last('subscribe').from, 'p1');
  subscribed('orders:1', { recovered: true });
  // seq begins anew with each connection
  socket().receive(transaction(1, [append(3)], { position: 'p2' }), transaction(2, [append(4)], { position: 'p3' }));
  socket().receive({ type: 'ready', channel: 'orders:1', position: 'p3' });
  assert.deepEqual(rowsOf(it).map(({ id }) => id), [1, 2, 3, 4]);
  assert.equal(it.state, 'live');
});

test('a transaction of an unknown entity is not applied at all, and the channel starts afresh', () => {
  const it = live([{ id: 1, status: 'new' }]);
  socket().receive(transaction(1, [append(2), { ...append(3), entity: 'unheard_of' }]));
  assert.deepEqual(rowsOf(it).map(({ id }) => id), [1]);
  assert.match(notes('protocol')[0].text, /unknown entity "unheard_of"/);
  clock.advance(500);
  connectAgain();
  assert.equal(socket().last('subscribe').from, undefined);
});

test('operations that do not fit are told, once, and never make half a row', () => {
  const it = live([{ id: 1, status: 'new' }]);
  socket().receive(transaction(1, [remove(8), append(1, 'again'), merge(9, { status: 'half' })]));
  assert.deepEqual(rowsOf(it), [{ id: 1, status: 'again' }]);
  assert.equal(notes('misfit').length, 1);
  assert.match(notes('misfit')[0].text, /remove of a row that is not held: orders \{"id":8\}/);
  assert.equal(it.state, 'live');
});

test('a merge of all columns makes a row', () => {
  const it = live([]);
  socket().receive(transaction(1, [merge(9, { id: 9, status: 'whole' })]));
  assert.deepEqual(rowsOf(it), [{ id: 9, status: 'whole' }]);
  assert.equal(notes('misfit').length, 0);
});

test('a window may get removes of rows that it does not hold', () => {
  const channel = 'orders:1?order=id.desc&limit=1';
  const it = live([{ id: 5, status: 'new' }], { channel });
  const change = { channel, entity: 'orders' };
  socket().receive(
    transaction(1, [
      { ...remove(1), ...change },
      { ...merge(2, { status: 'x' }), ...change },
      { ...replace(6, 'new'), ...change },
    ]),
  );
  assert.deepEqual(rowsOf(it, channel).map(({ id }) => id), [6]);
  assert.equal(it.state, 'live');
});

test('messages that are not JSON end the connection, unknown ones are ignored', () => {
  const it = live();
  socket().receive({ type: 'of-a-later-version', x: 1 });
  assert.equal(it.state, 'live');
  socket().onmessage({ data: '{"type":' });
  assert.equal(it.state, 'reconnecting');
});

// ---------------------------------------------------------------------------
// Subscriptions
// ---------------------------------------------------------------------------

test('the connection presents itself and its token', () => {
  connected(client());
  assert.equal(socket().protocol, 'changefeed.v1');
  assert.equal(socket().sent[0].type, 'connect');
  assert.equal(socket().sent[0].token, 'a.b.c');
});

test('without a token none is sent', () => {
  connected(client({ token: '' }));
  assert.equal('token' in socket().sent[0], false);
});

test('rows show at ready, not before', () => {
  const it = client();
  it.subscribe('orders:1');
  connected(it);
  subscribed('orders:1');
  socket().receive({ type: 'snapshot', channel: 'orders:1', entity: 'orders', rows: [{ id: 1, status: 'new' }] });
  socket().receive({ type: 'snapshot', channel: 'orders:1', entity: 'orders', rows: [{ id: 2, status: 'new' }] });
  socket().receive(transaction(1, [merge(1, { status: 'packed' })]));
  assert.deepEqual(rowsOf(it), []);
  assert.equal(it.state, 'catching up');
  assert.equal(it.subscriptions.get('orders:1').position, null, 'no resume before ready');
  socket().receive({ type: 'ready', channel: 'orders:1', position: 'p9' });
  assert.deepEqual(rowsOf(it), [{ id: 1, status: 'packed' }, { id: 2, status: 'new' }]);
  assert.equal(it.state, 'live');
});

test('resync keeps the old rows and swaps at ready', () => {
  const it = live([{ id: 1, status: 'new' }, { id: 2, status: 'new' }]);
  const before = rowsOf(it);
  socket().receive({ type: 'resync', channel: 'orders:1', reason: 'history_truncated' });
  assert.equal(it.state, 'catching up');
  assert.match(notes('resync')[0].text, /history truncated/);
  socket().receive({ type: 'snapshot', channel: 'orders:1', entity: 'orders', rows: [{ id: 7, status: 'new' }] });
  socket().receive(transaction(1, [append(8)]));
  assert.deepEqual(rowsOf(it), before);
  socket().receive({ type: 'ready', channel: 'orders:1', position: 'p5' });
  assert.deepEqual(rowsOf(it).map(({ id }) => id), [7, 8]);
});

test('a resync may bring an entity that ready describes', () => {
  const it = live([{ id: 1, status: 'new' }]);
  socket().receive({ type: 'resync', channel: 'orders:1', reason: 'channel_changed' });
  socket().receive({ type: 'snapshot', channel: 'orders:1', entity: 'notes', rows: [{ no: 7, text: 'a' }] });
  socket().receive({ type: 'snapshot', channel: 'orders:1', entity: 'notes', rows: [{ no: 8, text: 'b' }] });
  socket().receive({
    type: 'ready', channel: 'orders:1', position: 'p9', entities: { notes: { key: ['no'], columns: ['no', 'text'] } },
  });
  assert.deepEqual([...it.subscriptions.get('orders:1').cache.entities.get('notes').rows.values()], [{ no: 7, text: 'a' }, { no: 8, text: 'b' }]);
  assert.equal(it.state, 'live');
});

test('a connection lost during a resync keeps the old rows and asks for a snapshot', () => {
  const it = live();
  socket().receive({ type: 'resync', channel: 'orders:1', reason: 'truncate' });
  socket().receive({ type: 'snapshot', channel: 'orders:1', entity: 'orders', rows: [{ id: 7, status: 'new' }] });
  socket().drop();
  assert.deepEqual(rowsOf(it).map(({ id }) => id), [1]);
  assert.equal(it.subscriptions.get('orders:1').staged, null);
  clock.advance(500);
  connectAgain();
  assert.equal(socket().last('subscribe').from, undefined);
});

test('revoked clears the rows and ends the subscription', () => {
  const it = live();
  socket().receive({
    type: 'revoked',
    channel: 'orders:1',
    reason: 'permission_denied',
    code: '42501',
    message: 'permission denied for table orders',
    hint: 'Ask for it.',
  });
  assert.deepEqual(rowsOf(it), []);
  assert.equal(it.state, 'revoked');
  assert.deepEqual(it.subscriptions.get('orders:1').error, {
    code: '42501',
    message: 'permission denied for table orders',
    hint: 'Ask for it.',
  });
  // What was already under way is ignored
  socket().receive(transaction(1, [append(2)]));
  assert.deepEqual(rowsOf(it), []);
  // Not asked for again by itself, but when the user asks
  socket().drop();
  clock.advance(500);
  connectAgain();
  assert.equal(socket().last('subscribe'), undefined);
  it.subscribe('orders:1');
  assert.equal(socket().last('subscribe').channel, 'orders:1');
  assert.equal(socket().last('subscribe').from, undefined);
});

test('a refused subscription says why, and leaves the others alone', () => {
  const it = live();
  it.subscribe('orders:2');
  const { id } = socket().last('subscribe');
  socket().receive({ type: 'error', id, code: '42501', message: 'permission denied', hint: 'Ask for it.' });
  assert.deepEqual(it.subscriptions.get('orders:2').error, {
    code: '42501',
    message: 'permission denied',
    hint: 'Ask for it.',
  });
  assert.equal(notes('error')[0].channel, 'orders:2');
  assert.equal(it.state, 'live');
});

test('a temporary error of a subscription is tried again', () => {
  const it = live();
  it.subscribe('orders:2');
  const { id } = socket().last('subscribe');
  socket().receive({ type: 'error', id, code: '53200', message: 'out of memory' });
  assert.equal(it.state, 'catching up');
  clock.advance(1_000);
  assert.notEqual(socket().last('subscribe').id, id);
});

test('what belongs to a subscription that was left is ignored', () => {
  const it = live();
  const left = socket().last('subscribe').id;
  it.unsubscribe('orders:1');
  assert.equal(socket().last('unsubscribe').channel, 'orders:1');
  it.subscribe('orders:1');
  socket().receive({ type: 'subscribed', id: left, channel: 'orders:1', recovered: false, entities });
  socket().receive(transaction(1, [append(2)]));
  socket().receive({ type: 'ready', channel: 'orders:1', position: 'old' });
  assert.equal(it.subscriptions.get('orders:1').state, 'subscribing');
  subscribed('orders:1');
  assert.equal(it.subscriptions.get('orders:1').state, 'loading');
});

test('frames of a channel that catches up do not move the others', () => {
  const it = live();
  socket().receive(transaction(1, [append(2)], { position: 'p50' }));
  it.subscribe('orders:2');
  subscribed('orders:2');
  socket().receive({ type: 'snapshot', channel: 'orders:2', entity: 'orders', rows: [] });
  socket().receive(transaction(2, [{ ...append(9), channel: 'orders:2' }], { position: 'p40' }));
  assert.equal(it.subscriptions.get('orders:1').position, 'p50');
  // Nor when it was left meanwhile
  it.unsubscribe('orders:2');
  socket().receive(transaction(3, [{ ...append(10), channel: 'orders:2' }], { position: 'p41' }));
  assert.equal(it.subscriptions.get('orders:1').position, 'p50');
});

// ---------------------------------------------------------------------------
// Connections
// ---------------------------------------------------------------------------

function connectAgain() {
  socket().open();
  socket().receive({ type: 'connected', id: socket().last('connect').id, session: 's', heartbeat_ms: 25000 });
}

test('resume: each channel from its own position', () => {
  const it = live();
  it.subscribe('orders:2');
  subscribed('orders:2');
  socket().receive({ type: 'ready', channel: 'orders:2', position: 'q0' });
  socket().receive(transaction(1, [append(2)]));
  it.subscribe('orders:3'); // never ready
  it.cut(3_000);
  assert.equal(it.state, 'reconnecting');
  assert.equal(it.retryAt, clock.now() + 3_000);
  clock.advance(2_999);
  assert.equal(sockets.length, 1);
  clock.advance(1);
  connectAgain();
  const asked = socket().sent.filter(({ type }) => type === 'subscribe');
  assert.deepEqual(asked.map(({ channel, from }) => [channel, from]), [
    ['orders:1', 'p1'],
    ['orders:2', 'p1'],
    ['orders:3', undefined],
  ]);

  subscribed('orders:1', { recovered: true });
  assert.deepEqual(rowsOf(it).map(({ id }) => id), [1, 2], 'rows stay while catching up');
  socket().receive(transaction(1, [remove(1)], { position: 'p7' }));
  assert.equal(it.subscriptions.get('orders:1').position, 'p7');
  assert.equal(it.subscriptions.get('orders:2').position, 'p1');
  socket().receive({ type: 'ready', channel: 'orders:1', position: 'p8' });
  assert.deepEqual(rowsOf(it).map(({ id }) => id), [2]);
  assert.match(notes('resumed')[0].text, /orders:1: resumed, 1 transaction caught up/);
});

test('resume that the server cannot honour becomes a snapshot, swapped at ready', () => {
  const it = live();
  it.cut(0);
  clock.advance(0);
  connectAgain();
  subscribed('orders:1', { recovered: false });
  assert.equal(notes('not-resumed').length, 1);
  socket().receive({ type: 'snapshot', channel: 'orders:1', entity: 'orders', rows: [{ id: 9, status: 'new' }] });
  assert.deepEqual(rowsOf(it).map(({ id }) => id), [1]);
  socket().receive({ type: 'ready', channel: 'orders:1', position: 'p9' });
  assert.deepEqual(rowsOf(it).map(({ id }) => id), [9]);
});

test('back-off grows, is capped, and starts anew after a good connection', () => {
  const it = client({ random: () => 1 });
  it.connect();
  const waits = [];
  for (let i = 0; i < 8; i += 1) {
    socket().drop();
    waits.push(it.retryAt - clock.now());
    clock.advance(waits.at(-1));
  }
  assert.deepEqual(waits, [500, 1000, 2000, 4000, 8000, 16000, 20000, 20000]);
  connectAgain();
  clock.advance(10_000);
  socket().drop();
  assert.equal(it.retryAt - clock.now(), 500);
});

test('back-off has full jitter', () => {
  const it = client({ random: () => 0.25 });
  it.connect();
  socket().drop();
  assert.equal(it.retryAt - clock.now(), 125);
});

test('closing: comes back when the server says so', () => {
  const it = live();
  socket().receive({ type: 'closing', reason: 'shutdown', retry_after_ms: 1234 });
  socket().drop(1001);
  assert.equal(it.retryAt - clock.now(), 1234);
  clock.advance(1234);
  connectAgain();
  assert.equal(socket().last('subscribe').from, 'p0');
});

test('ping is answered, and its position counts', () => {
  const it = live();
  socket().receive({ type: 'ping', position: 'p33', settled_txid: '900' });
  assert.deepEqual(socket().sent.at(-1), { type: 'pong' });
  assert.equal(it.subscriptions.get('orders:1').position, 'p33');
});

test('a silent server is left', () => {
  const it = live();
  clock.advance(34_000);
  socket().receive({ type: 'ping', position: 'p1' });
  clock.advance(34_999);
  assert.equal(it.status, 'connected');
  clock.advance(1);
  assert.equal(it.state, 'reconnecting');
  assert.equal(notes('silent').length, 1);
});

test('a refused token ends it; a temporary refusal does not', () => {
  const it = client();
  it.connect();
  socket().open();
  socket().receive({ type: 'error', id: socket().last('connect').id, code: '53300', message: 'too many connections' });
  assert.equal(it.state, 'reconnecting');
  clock.advance(500);
  socket().open();
  socket().receive({ type: 'error', id: socket().last('connect').id, code: '28000', message: 'bad token', hint: 'h' });
  assert.equal(it.state, 'error');
  assert.deepEqual(it.error, { code: '28000', message: 'bad token', hint: 'h' });
  clock.advance(60_000);
  assert.equal(sockets.length, 2);
});

test('an expired token ends it, and a fresh one begins anew', () => {
  const it = live();
  socket().receive({ type: 'revoked', channel: 'orders:1', reason: 'token_expired' });
  socket().drop(4004);
  assert.equal(it.state, 'error');
  it.token = 'd.e.f';
  it.connect();
  connectAgain();
  assert.equal(socket().sent[0].token, 'd.e.f');
  assert.equal(socket().last('subscribe').channel, 'orders:1');
});

test('a fresh token in place', () => {
  const it = live();
  it.renew('d.e.f');
  const { id, token } = socket().last('token');
  assert.equal(token, 'd.e.f');
  socket().receive({ type: 'ok', id });
  assert.equal(notes('token').length, 1);
  assert.equal(it.state, 'live');
});

test('disconnect stays disconnected', () => {
  const it = live();
  const old = socket();
  it.disconnect();
  assert.equal(old.closed, 1000);
  old.drop(1000);
  clock.advance(60_000);
  assert.equal(it.state, 'disconnected');
  assert.equal(sockets.length, 1);
});

test('lag, and behind', () => {
  const it = live();
  const at = (ms) => ({ committed_at: new Date(clock.now() - ms).toISOString() });
  socket().receive(transaction(1, [append(2)], at(12)));
  assert.equal(it.lag, 12);
  assert.equal(it.state, 'live');
  socket().receive(transaction(2, [append(3)], at(4_000)));
  assert.equal(it.state, 'behind');
  socket().receive(transaction(3, [append(4)], at(20)));
  assert.equal(it.state, 'live');
});

// ---------------------------------------------------------------------------
// Tokens and the page's address
// ---------------------------------------------------------------------------

test('tokens are signed as HS256', async () => {
  const claims = { role: 'shop_customer', sub: '1', name: 'Zoë' };
  const token = await signToken(claims, 'top secret');
  const [header, payload, signature] = token.split('.');
  assert.deepEqual(JSON.parse(Buffer.from(header, 'base64url')), { alg: 'HS256', typ: 'JWT' });
  assert.equal(signature, createHmac('sha256', 'top secret').update(`${header}.${payload}`).digest('base64url'));
  assert.deepEqual(claimsOf(token), claims);
});

test('claims of what is no token', () => {
  for (const text of ['', 'a', 'a.b.c', '..', 'a.!!.c']) assert.equal(claimsOf(text), null);
});

test('panes in the address', () => {
  const panes = [{ title: 'Ada (customer 1) – é', token: 'x.y.z', channels: ['orders:1', 'a:b%3Ac'] }];
  assert.deepEqual(panesOf(fragmentOf(panes)), panes);
  assert.equal(panesOf(''), null);
  assert.equal(panesOf('#other=1'), null);
  assert.throws(() => panesOf('#panes=%%%'), /cannot be read/);
  assert.throws(() => panesOf(fragmentOf({ a: 1 })), /not a list/);
  assert.throws(() => panesOf(fragmentOf([null])), /not a list/);
  assert.deepEqual(panesOf(fragmentOf([{ title: 7, channels: ['a', 1] }])), [{ title: '', token: '', channels: ['a'] }]);
});

// ---------------------------------------------------------------------------
// Windows
// ---------------------------------------------------------------------------

test('a window stays at its limit, and takes in nothing from behind it', () => {
  const channel = 'orders:1?order=id.desc&limit=3';
  const it = live([{ id: 7 }, { id: 5 }, { id: 4 }], { channel });
  const change = { channel, entity: 'orders' };
  const ids = () => rowsOf(it, channel).map(({ id }) => id).sort((a, b) => b - a);
  socket().receive(transaction(1, [{ ...replace(9, 'new'), ...change }, { ...replace(3, 'changed'), ...change }]));
  assert.deepEqual(ids(), [9, 7, 5]);
  // 4 is known no longer, so nothing may come behind 5, though there is room for it.
  socket().receive(transaction(2, [{ ...remove(9), ...change }, { ...replace(4, 'changed'), ...change }]));
  assert.deepEqual(ids(), [7, 5]);
  socket().receive(transaction(3, [{ ...replace(6, 'new'), ...change }]));
  assert.deepEqual(ids(), [7, 6, 5]);
});

test('a window that the table does not fill takes in everything until it is full', () => {
  const channel = 'orders:1?order=id.desc&limit=3';
  const it = live([{ id: 7 }], { channel });
  const change = { channel, entity: 'orders' };
  const ids = () => rowsOf(it, channel).map(({ id }) => id).sort((a, b) => b - a);
  socket().receive(transaction(1, [{ ...replace(3, 'new'), ...change }, { ...replace(5, 'new'), ...change }]));
  assert.deepEqual(ids(), [7, 5, 3]);
  socket().receive(transaction(2, [{ ...replace(1, 'new'), ...change }, { ...replace(4, 'new'), ...change }]));
  assert.deepEqual(ids(), [7, 5, 4]);
});

test('a row that comes before the rows of a window are complete is no part of the snapshot', () => {
  const channel = 'orders:1?order=id.desc&limit=2';
  const it = client();
  it.subscribe(channel);
  connected(it);
  subscribed(channel);
  const change = { channel, entity: 'orders' };
  socket().receive(
    { type: 'snapshot', channel, entity: 'orders', rows: [{ id: 9 }, { id: 8 }] },
    transaction(1, [{ ...remove(9), ...change }, { ...replace(2, 'changed'), ...change }], { channel }),
    { type: 'ready', channel, position: 'p1' },
  );
  assert.deepEqual(rowsOf(it, channel).map(({ id }) => id), [8]);
});

test('the order of a window', () => {
  const { compare } = windowOf('x?order=a.desc.nullslast,b&limit=5');
  const sorted = (rows) => rows.sort((x, y) => compare(x, y, ['id']));
  assert.deepEqual(sorted([{ a: null, id: 1 }, { a: 1, b: true, id: 2 }, { a: 1, b: false, id: 3 }, { a: 10, id: 4 }, { a: null, id: 0 }]).map(({ id }) => id), [4, 3, 2, 0, 1]);
  const first = windowOf('x?limit=5&order=a.desc').compare;
  assert.ok(first({ a: null }, { a: 3 }, ['id']) < 0, 'nulls come first in descending order');
  assert.ok(windowOf('x?order=a&limit=5').compare({ a: null }, { a: 3 }, ['id']) > 0);
  if (JSON.rawJSON) {
    assert.ok(first({ a: JSON.rawJSON('9007199254740993') }, { a: 9007199254740992 }, ['id']) < 0);
  }
  assert.equal(windowOf('x?order=a'), null);
});

test('a window in the order of texts is left as it comes', () => {
  const channel = 'orders:1?order=status&limit=1';
  const it = live([{ id: 5, status: 'a' }], { channel });
  socket().receive(transaction(1, [{ ...replace(6, 'b'), channel, entity: 'orders' }]));
  assert.equal(rowsOf(it, channel).length, 2);
});

// ---------------------------------------------------------------------------
// Requests
// ---------------------------------------------------------------------------

const calls = () => socket().sent.filter(({ type }) => type === 'call');
const outcome = async (promise) => promise.then((value) => value, (error) => error);

test('a call resolves with its result, or is rejected with the error', async () => {
  const it = live();
  const good = it.call('add', { n: 1 });
  const bad = it.call('add', { n: 2 }, { key: 'k', expect: [{ entity: 'orders', key: { id: 1 }, version: '7' }] });
  const [one, two] = calls();
  assert.deepEqual(one, { type: 'call', id: one.id, function: 'add', args: { n: 1 } });
  assert.deepEqual([two.key, two.expect[0].version], ['k', '7']);
  socket().receive(
    { type: 'error', id: two.id, code: 'P0400', message: 'no', detail: 'why', hint: 'how', conflict: { version: '8' } },
    { type: 'result', id: one.id, result: { id: 4 }, txid: '900' },
  );
  assert.deepEqual((({ result, txid }) => ({ result, txid }))(await good), { result: { id: 4 }, txid: '900' });
  const error = await outcome(bad);
  assert.ok(error instanceof RequestError);
  assert.deepEqual([error.code, error.message, error.detail, error.hint, error.conflict], ['P0400', 'no', 'why', 'how', { version: '8' }]);
  assert.equal(it.calls.length, 0);
  assert.equal(notes('error').length, 0, 'who called is told, nobody else');
});

test('a call with a key outlives the connection and goes again, in order; one without does not', async () => {
  const it = live();
  const first = it.call('add', { n: 1 }, { key: 'a' });
  const lost = outcome(it.call('add', { n: 2 }));
  socket().drop();
  assert.equal((await lost).code, '40003');
  assert.equal((await outcome(it.call('add', { n: 3 }))).code, '08003');
  const second = it.call('add', { n: 4 }, { key: 'b' });
  clock.advance(60_000);
  connected(it);
  assert.deepEqual(calls().map(({ key, args }) => [key, args.n]), [['a', 1], ['b', 4]]);
  for (const { id, args } of calls()) socket().receive({ type: 'result', id, result: args.n, txid: '1' });
  assert.deepEqual([(await first).result, (await second).result], [1, 4]);
});

test('no more calls are on their way than the server takes; disconnecting ends those that wait', async () => {
  const it = live();
  const all = Array.from({ length: 102 }, (_, n) => outcome(it.call('add', { n }, { key: String(n) })));
  assert.equal(calls().length, 100);
  socket().receive({ type: 'result', id: calls()[0].id, result: null, txid: null });
  assert.equal(calls().length, 101);
  it.disconnect();
  assert.ok((await all[101]) instanceof RequestError);
  assert.equal(it.calls.length, 0);
});

test('publish, and sync with what is settled', async () => {
  const it = live();
  const published = it.publish('orders:1', 'hello', { a: 1 }, { echo: false });
  assert.deepEqual(socket().last('publish'), { type: 'publish', id: socket().last('publish').id, channel: 'orders:1', event: 'hello', payload: { a: 1 }, echo: false });
  socket().receive({ type: 'ok', id: socket().last('publish').id });
  await published;
  const synced = it.sync();
  socket().receive({ type: 'synced', id: socket().last('sync').id, position: 'p7', settled_txid: '812' });
  await synced;
  assert.equal(it.settledTxid, 812n);
  assert.equal(it.subscriptions.get('orders:1').position, 'p7');
  assert.equal(events.filter(({ type }) => type === 'settled').length, 1);
  const lost = outcome(it.sync());
  socket().drop();
  assert.equal((await lost).code, '08006');
});

// ---------------------------------------------------------------------------
// Presence, messages, paced channels
// ---------------------------------------------------------------------------

test('members: a list, then what changes, void without a connection', () => {
  const it = live();
  const channel = 'orders:1';
  const subscription = it.subscriptions.get(channel);
  const seen = () => subscription.members && Object.fromEntries([...subscription.members].map(([user, { states, kinds }]) => [user, [states, kinds]]));
  assert.equal(seen(), null);
  socket().receive({ type: 'presence', channel, full: true, more: true, joined: { ada: [{ a: 1 }] }, meta: { ada: { kinds: ['editor'], holds: [] } }, left: {} });
  socket().receive({ type: 'presence', channel, joined: { bob: [{}] }, left: {} });
  assert.deepEqual(seen(), { ada: [[{ a: 1 }], ['editor']], bob: [[{}], []] });
  socket().receive({ type: 'presence', channel, joined: { ada: [{ a: 2 }, {}] }, left: { bob: [{}] } });
  assert.deepEqual(seen(), { ada: [[{ a: 2 }, {}], []] });
  socket().receive({ type: 'presence', channel, full: true, joined: { eve: [{}] }, left: {} });
  assert.deepEqual(Object.keys(seen()), ['eve']);
  assert.equal(events.filter(({ type }) => type === 'presence').length, 4);
  socket().receive({ type: 'presence', channel, count: 12, kinds: { editor: 3 } });
  assert.deepEqual([subscription.count, subscription.kinds], [12, { editor: 3 }]);
  socket().drop();
  assert.deepEqual([subscription.members, subscription.count], [null, null]);
});

test('what is tracked is said again behind the next subscribe, unless it expires or was taken back', async () => {
  const it = live();
  const last = () => socket().last('track');
  const tracked = it.track('orders:1', { state: { a: 1 }, kind: 'editor' });
  socket().receive({ type: 'ok', id: last().id });
  await tracked;
  outcome(it.track('orders:1', { state: { typing: true }, expires_in: 3 }));
  assert.equal(last().expires_in, 3);
  socket().drop();
  clock.advance(60_000);
  connected(it);
  const types = socket().sent.map(({ type }) => type);
  assert.deepEqual(types, ['connect', 'subscribe', 'track']);
  assert.deepEqual(last(), { type: 'track', id: last().id, channel: 'orders:1', state: { a: 1 }, kind: 'editor' });
  outcome(it.untrack('orders:1'));
  socket().drop();
  clock.advance(60_000);
  connected(it);
  assert.equal(last(), undefined);
});

test('a message has a position that counts, but not for a channel behind it', () => {
  const it = live();
  const { position } = it.subscriptions.get('orders:1');
  assert.equal(position, 'p0');
  socket().receive({ type: 'message', channel: 'orders:1', event: 'hello', payload: 1, from: '42' });
  assert.equal(it.subscriptions.get('orders:1').position, 'p0', 'published by a client');
  it.subscribe('orders:2');
  subscribed('orders:2', { recovered: true });
  socket().receive({ type: 'message', channel: 'orders:2', event: 'bell', payload: 1, txid: '5', position: 'p3.1' });
  assert.deepEqual(['orders:1', 'orders:2'].map((name) => it.subscriptions.get(name).position), ['p0', 'p3.1']);
  socket().receive({ type: 'ready', channel: 'orders:2', position: 'p4' });
  socket().receive({ type: 'message', channel: 'orders:1', event: 'bell', payload: 1, txid: '6', position: 'p5.1' });
  assert.deepEqual(['orders:1', 'orders:2'].map((name) => it.subscriptions.get(name).position), ['p5.1', 'p5.1']);
  assert.equal(events.filter(({ type }) => type === 'message').length, 3);
});

test('a paced channel has positions of its own', () => {
  const it = live();
  it.subscribe('orders:2');
  subscribed('orders:2', { min_interval_ms: 1000 });
  socket().receive({ type: 'snapshot', channel: 'orders:2', entity: 'orders', rows: [] }, { type: 'ready', channel: 'orders:2', position: 'q0' });
  const positions = () => ['orders:1', 'orders:2'].map((name) => it.subscriptions.get(name).position);
  socket().receive(transaction(1, [append(8)]));
  assert.deepEqual(positions(), ['p1', 'q0'], 'frames of other channels do not count for it');
  socket().receive(transaction(2, [{ ...append(9), channel: 'orders:2' }], { channel: 'orders:2', position: 'q1' }));
  assert.deepEqual(positions(), ['p1', 'q1'], 'nor its own for others');
  socket().receive({ type: 'ping', position: 'p9' });
  assert.deepEqual(positions(), ['p9', 'p9'], 'a ping says that nothing is put off');
});

test('columns that are added are known without a new snapshot', () => {
  const it = live();
  socket().receive({ type: 'columns', channel: 'orders:1', entities: { orders: { key: ['id'], columns: ['id', 'status', 'note'] } } });
  assert.deepEqual(it.subscriptions.get('orders:1').cache.entities.get('orders').columns, ['id', 'status', 'note']);
  assert.equal(rowsOf(it).length, 1);
  socket().receive(transaction(1, [merge(1, { note: 'x' })]));
  assert.deepEqual(rowsOf(it), [{ id: 1, status: 'new', note: 'x' }]);
});
