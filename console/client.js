// The client side of the protocol, without a page: connection, subscriptions,
// caches of rows, resume. The console's view is in console.js; this file runs in
// Node as well, which is how it is tested.
//
//   const client = new Client({ url: 'ws://localhost:8040/v1/socket', token, onEvent });
//   client.subscribe('orders:1');
//   client.connect();
//
// One Client is one connection. Everything that happens is told to `onEvent`, in
// order, as { type, ... }:
//
//   state        the connection or a subscription changed; read client.state and
//                client.subscriptions
//   transaction  a committed transaction was applied: { txid, committedAt, lag, phase,
//                changes }; phase is "live", or "replay" before a channel's `ready`
//   rows         a subscription's rows were replaced as a whole: { channel }
//   removed      a subscription was taken out: { channel }
//   note         something worth telling: { kind, level, text, code, hint, channel }
//   raw          before anything is made of it: { text }, if `raw` is set
//   message      as it came: { message }
//   presence     who is in a channel was told; read subscription.members: { channel, message }
//   settled      every transaction below client.settledTxid has arrived, if it arrives at all
//
// Requests that have one answer (call, track, untrack, publish, sync) return a promise of it; it is rejected
// with a RequestError. A call with a key waits for a connection and outlives a lost one; the others do not.

export const SUBPROTOCOL = 'changefeed.v1';
export const CLIENT_NAME = 'pg-changefeed-console/0.1.0';

const BACKOFF_BASE_MS = 500;
const BACKOFF_CAP_MS = 20_000;
// A connection that lived this long was a good one: the next back-off starts anew.
const STABLE_MS = 5_000;
const CONNECT_TIMEOUT_MS = 15_000;
const HEARTBEAT_GRACE_MS = 10_000;
// "Behind" is a live transaction that came this much later than the quickest one did.
const BEHIND_MS = 2_000;

const MAX_CALLS = 100; // that the server lets a connection have unanswered

const CLOSE_UNAUTHORIZED = 4003;
const CLOSE_TOKEN_EXPIRED = 4004;

// ---------------------------------------------------------------------------
// Values
// ---------------------------------------------------------------------------

// The server sends numbers in full precision, JSON.parse makes doubles of them. Where the engine
// gives the reviver the source text, a number that a double would show differently
// (9007199254740993, 12.50) is kept as it was written; JSON.stringify writes such a value back
// unchanged. Elsewhere (Node 20, older browsers) it becomes the nearest double.
const EXACT = typeof JSON.rawJSON === 'function';

function keepExact(_name, value, context) {
  if (typeof value === 'number' && context?.source !== undefined && context.source !== String(value)) {
    return JSON.rawJSON(context.source);
  }
  return value;
}

export function parse(text) {
  return EXACT ? JSON.parse(text, keepExact) : JSON.parse(text);
}

/** A value as text, for people. */
export function show(value) {
  if (value === null || value === undefined) return 'null';
  if (typeof value === 'string') return value;
  return JSON.stringify(value);
}

/** Whether a value is a number, be it kept as text. */
export function isNumber(value) {
  return typeof value === 'number' || (EXACT && JSON.isRawJSON(value));
}

// ---------------------------------------------------------------------------
// Rows
// ---------------------------------------------------------------------------

const OPERATIONS = ['append', 'merge', 'replace', 'remove'];

/** A message that the protocol does not allow. */
export class ProtocolError extends Error {
  constructor(message, channel = null) {
    super(message);
    this.name = 'ProtocolError';
    this.channel = channel;
  }
}

/** The answer to a request was an error, or none will come. */
export class RequestError extends Error {
  constructor({ code = null, message = 'unknown error', detail = null, hint = null, ...more }) {
    super(message);
    Object.assign(this, more, { name: 'RequestError', code, detail, hint });
  }
}

/** The rows of one subscription, by entity and key. Rows are never changed in place. */
export class Cache {
  // `loose` is for subscriptions that hold only some of the rows: a window (see windowOf), or without a snapshot.
  constructor(entities = {}, window = null) {
    this.window = window;
    this.loose = window !== null;
    this.entities = new Map();
    this.unnamed = new Map(); // rows of entities whose key is not known before `ready`
    for (const [name, entity] of Object.entries(entities)) this.define(name, entity);
  }

  define(name, { key, columns = [] }) {
    const known = this.entities.get(name);
    const entity = { key: [...key], columns: [...columns], rows: known?.rows ?? new Map(), last: known?.last ?? null, sortable: known?.sortable ?? true };
    this.entities.set(name, entity);
    for (const row of this.unnamed.get(name) ?? []) this.put(entity, row);
    if (this.unnamed.has(name)) this.closeWindow(entity);
    this.unnamed.delete(name);
    return entity;
  }

  entity(name) {
    const entity = this.entities.get(name);
    if (!entity) throw new ProtocolError(`unknown entity "${name}"`);
    return entity;
  }

  keyText(entity, object) {
    return JSON.stringify(entity.key.map((column) => object[column] ?? null));
  }

  put(entity, row) {
    for (const column of Object.keys(row)) {
      if (!entity.columns.includes(column)) entity.columns.push(column);
    }
    entity.rows.set(this.keyText(entity, row), row);
    if (this.window && entity.sortable) entity.sortable = this.window.sortable(row, entity.key);
  }

  addSnapshot(name, rows) {
    const entity = this.entities.get(name);
    if (!entity) this.unnamed.set(name, [...(this.unnamed.get(name) ?? []), ...rows]);
    else {
      for (const row of rows) this.put(entity, row);
      this.closeWindow(entity);
    }
  }

  worst(entity) {
    return [...entity.rows].reduce((a, b) => (this.window.compare(a[1], b[1], entity.key) > 0 ? a : b));
  }

  /** A snapshot with as many rows as the window may have: where it ends, the client's knowledge ends. */
  closeWindow(entity) {
    if (this.window && entity.sortable && entity.rows.size === this.window.limit) entity.last = this.worst(entity)[1];
  }

  /**
   * Keeps a window at its limit. The server tells later changes of all rows, also of those behind the window:
   * such a row is not taken in, since the rows between are not known. So a window from which rows are removed
   * has fewer until it is subscribed to again, but never wrong ones.
   */
  trim(entity, keyText) {
    const { limit, compare } = this.window;
    if (entity.last && compare(entity.rows.get(keyText), entity.last, entity.key) > 0) {
      entity.rows.delete(keyText);
    } else if (entity.rows.size > limit) {
      entity.rows.delete(this.worst(entity)[0]);
      [, entity.last] = this.worst(entity);
    }
  }

  /** Throws if the operation cannot be applied. */
  check({ entity, op }) {
    this.entity(entity);
    if (!OPERATIONS.includes(op)) throw new ProtocolError(`unknown operation "${op}"`);
  }

  /**
   * Applies one operation; says what became of the row. `misfit`: it does not suit what is held,
   * which happens only where a channel has actions of its own (on_insert and so on).
   */
  apply(change) {
    const { op, key } = change;
    const entity = this.entity(change.entity);
    const keyText = this.keyText(entity, key);
    const before = entity.rows.get(keyText);
    let misfit = null;
    if (op === 'remove') {
      entity.rows.delete(keyText);
    } else if (op === 'merge') {
      const row = { ...before, ...change.set };
      // A merge of every column makes a row; some columns alone do not.
      if (before || entity.columns.every((column) => column in row)) this.put(entity, row);
    } else {
      this.put(entity, change.row);
    }
    if (this.window && entity.sortable && entity.rows.has(keyText)) this.trim(entity, keyText);
    const after = entity.rows.get(keyText);
    if (!this.loose) {
      if (op === 'append' && before) misfit = `append of a row that is held: ${change.entity} ${show(key)}`;
      if (op !== 'append' && !before && !(op === 'replace' || (op === 'merge' && after))) {
        misfit = `${op} of a row that is not held: ${change.entity} ${show(key)}`;
      }
    }
    return { ...change, keyText, before, after, misfit };
  }

  clear() {
    for (const entity of this.entities.values()) {
      entity.rows.clear();
      entity.last = null;
    }
  }
}

/**
 * The window of rows that a channel's name asks for (`?order=…&limit=…`), or null. `compare` orders rows as
 * the server does, as long as their values are numbers, booleans, or null: how a database sorts texts
 * is not known here, and such a window is left as it comes.
 */
export function windowOf(channel) {
  const start = channel.indexOf('?');
  if (start < 0) return null;
  const query = new URLSearchParams(channel.slice(start + 1));
  if (!query.has('limit')) return null;
  const order = (query.get('order') ?? '').split(',').filter(Boolean).map((term) => {
    const [column, ...words] = term.split('.');
    const descending = words.includes('desc');
    return { column, descending, nullsFirst: words.includes('nullsfirst') || (descending && !words.includes('nullslast')) };
  });
  const terms = (key) => [...order, ...key.map((column) => ({ column, descending: false, nullsFirst: false }))];
  return {
    limit: Number(query.get('limit')),
    sortable: (row, key) => terms(key).every(({ column }) => {
      const value = row[column] ?? null;
      return value === null || typeof value === 'boolean' || isNumber(value);
    }),
    compare: (a, b, key) => {
      for (const { column, descending, nullsFirst } of terms(key)) {
        const [left, right] = [a[column] ?? null, b[column] ?? null];
        if (left === null || right === null) {
          if (left !== right) return (left === null) === nullsFirst ? -1 : 1;
        } else {
          const sign = compareValues(left, right);
          if (sign !== 0) return descending ? -sign : sign;
        }
      }
      return 0;
    },
  };
}

function compareValues(a, b) {
  const text = [show(a), show(b)];
  // Beyond 2^53, doubles are alike that are not.
  const [left, right] = text.every((each) => /^-?\d+$/.test(each)) ? text.map(BigInt) : text.map((each) => Number(JSON.parse(each)));
  return left < right ? -1 : left > right ? 1 : 0;
}

// States: waiting, subscribing, loading, replaying, resync, live, revoked, error.
class Subscription {
  constructor(channel) {
    this.channel = channel;
    this.state = 'waiting';
    this.cache = new Cache({}, windowOf(channel));
    this.staged = null; // the next cache, until `ready`
    this.position = null; // where to resume; null: a snapshot is needed
    this.error = null;
    this.replayed = 0;
    this.misfits = 0;
    this.paced = false; // its position moves by its own frames only
    this.members = null; // user -> { states, kinds, holds }; null: not told
    this.count = null; // of members, in a channel that tells numbers only
    this.kinds = {};
    this.tracked = null; // what is said of ourselves, again after each connect
    this.requestId = null; // of the `subscribe` that it waits for
    this.attempt = 0;
    this.retryTimer = null;
  }

  get ended() {
    return this.state === 'revoked' || this.state === 'error';
  }

  get ready() {
    return this.state === 'live';
  }

  /** Whether the server has accepted it and sends for it. */
  get fed() {
    return !this.ended && this.state !== 'waiting' && this.state !== 'subscribing';
  }

  stage(entities) {
    this.staged = new Cache(entities, this.cache.window);
    this.position = null;
  }

  forgetPresence() {
    this.members = null;
    this.count = null;
    this.kinds = {};
  }

  /** The entities as a plain object, to begin another cache with. */
  get shape() {
    return Object.fromEntries(
      [...(this.staged ?? this.cache).entities].map(([name, { key, columns }]) => [name, { key, columns }]),
    );
  }
}

// ---------------------------------------------------------------------------
// The connection
// ---------------------------------------------------------------------------

const systemClock = {
  now: () => Date.now(),
  set: (run, ms) => setTimeout(run, ms),
  clear: (timer) => clearTimeout(timer),
};

export class Client {
  constructor({
    url,
    token = '',
    onEvent = () => {},
    WebSocket = globalThis.WebSocket,
    clock = systemClock,
    random = Math.random,
  }) {
    this.url = url;
    this.token = token;
    this.onEvent = onEvent;
    this.WebSocket = WebSocket;
    this.clock = clock;
    this.random = random;

    this.status = 'idle'; // idle, connecting, connected, waiting, failed
    this.subscriptions = new Map();
    this.error = null; // why it failed
    this.server = null;
    this.expiresAt = null;
    this.retryAt = null;
    this.position = null; // of the newest frame or ping
    this.lag = null; // ms from the commit to its arrival, of the newest live transaction
    this.frames = 0;
    this.connects = 0;
    this.receivedAt = null;
    this.pingAt = null;
    this.raw = false;

    this.socket = null;
    this.connectedAt = null;
    this.attempt = 0;
    this.nextId = 1;
    this.pending = new Map();
    this.calls = []; // without an answer, in order
    this.settledTxid = null;
    this.seq = null;
    this.parts = null;
    this.retryAfter = null;
    this.heartbeatMs = null;
    this.quickest = Infinity;
    this.timers = { retry: null, watch: null };
  }

  // ---- What the user asks for ----

  connect() {
    if (this.status === 'connecting' || this.status === 'connected') return;
    this.error = null;
    this.attempt = 0;
    for (const subscription of this.subscriptions.values()) {
      if (subscription.ended) this.restart(subscription);
    }
    this.open();
  }

  disconnect() {
    this.dropSocket(1000);
    this.status = 'idle';
    this.error = null;
    this.dropCalls('disconnected before the call was answered');
    this.changed();
  }

  /** Drops the connection as a network would, and stays away for a moment. */
  cut(holdMs = 3_000) {
    if (this.status !== 'connected') return;
    this.note('cut', 'info', `connection cut; coming back in ${(holdMs / 1000).toFixed(0)} s`);
    this.lost(holdMs);
  }

  /** A fresh token, in place if connected. */
  renew(token) {
    this.token = token;
    if (this.status === 'connected') this.request({ type: 'token', token }, { kind: 'token' });
  }

  subscribe(channel) {
    let subscription = this.subscriptions.get(channel);
    if (subscription && !subscription.ended) return subscription;
    if (subscription) {
      this.restart(subscription);
    } else {
      subscription = new Subscription(channel);
      this.subscriptions.set(channel, subscription);
    }
    if (this.status === 'connected') this.sendSubscribe(subscription);
    this.changed();
    return subscription;
  }

  unsubscribe(channel) {
    const subscription = this.subscriptions.get(channel);
    if (!subscription) return;
    this.clock.clear(subscription.retryTimer);
    this.subscriptions.delete(channel);
    if (this.status === 'connected' && !subscription.ended && subscription.state !== 'waiting') {
      this.request({ type: 'unsubscribe', channel }, { kind: 'unsubscribe', channel });
    }
    this.emit({ type: 'removed', channel });
    this.changed();
  }

  /**
   * Calls an SQL function; resolves with { result, txid }. With a `key` that is unique to this call it is kept until
   * there is an answer, whatever becomes of connections, and is done once.
   */
  call(name, args = {}, { key = null, expect = null } = {}) {
    return new Promise((resolve, reject) => {
      const message = { type: 'call', function: name, args };
      if (key !== null) message.key = key;
      if (expect !== null) message.expect = expect;
      if (this.status !== 'connected' && key === null) {
        reject(new RequestError({ code: '08003', message: 'not connected' }));
        return;
      }
      this.calls.push({ message, resolve, reject, sent: false });
      this.sendCalls();
    });
  }

  /**
   * Says who is in a channel and in what state: { state, kind, exclusive, expires_in }. It is said again after each
   * connect, unless it expires by itself.
   */
  track(channel, what = {}) {
    const subscription = this.subscriptions.get(channel);
    if (subscription && what.expires_in === undefined) subscription.tracked = what;
    return this.ask({ type: 'track', channel, ...what });
  }

  untrack(channel) {
    const subscription = this.subscriptions.get(channel);
    if (subscription) subscription.tracked = null;
    return this.ask({ type: 'untrack', channel });
  }

  publish(channel, event, payload = null, { echo = true } = {}) {
    return this.ask({ type: 'publish', channel, event, payload, ...(!echo && { echo }) });
  }

  /** Resolves when everything that was committed before has arrived. */
  sync() {
    return this.ask({ type: 'sync' });
  }

  // ---- What it looks like ----

  /** One word for everything: what the console's badge shows. */
  get state() {
    switch (this.status) {
      case 'idle':
        return 'disconnected';
      case 'failed':
        return 'error';
      case 'waiting':
        return 'reconnecting';
      case 'connecting':
        return this.connects > 0 || this.attempt > 0 ? 'reconnecting' : 'connecting';
      default:
    }
    const all = [...this.subscriptions.values()];
    if (all.some((s) => !s.ended && !s.ready)) return 'catching up';
    if (all.length > 0 && all.every((s) => s.ended)) {
      return all.some((s) => s.state === 'error') ? 'error' : 'revoked';
    }
    return this.behind ? 'behind' : 'live';
  }

  get behind() {
    return this.lag !== null && this.lag - this.quickest > BEHIND_MS;
  }

  emit(event) {
    this.onEvent(event);
  }

  changed() {
    this.emit({ type: 'state' });
  }

  note(kind, level, text, more = {}) {
    this.emit({ type: 'note', kind, level, text, ...more });
  }

  // ---- The socket's life ----

  open() {
    this.clock.clear(this.timers.retry);
    this.retryAt = null;
    this.status = 'connecting';
    this.seq = null;
    this.parts = null;
    this.retryAfter = null;
    this.pending.clear();
    let socket;
    try {
      socket = new this.WebSocket(this.url, SUBPROTOCOL);
    } catch (error) {
      this.fail({ message: `cannot open ${this.url}: ${error.message}` });
      return;
    }
    this.socket = socket;
    // Handlers of a socket that we have left do nothing.
    const current = (run) => (event) => {
      if (this.socket === socket) run(event);
    };
    socket.onopen = current(() => {
      const message = { type: 'connect', client: CLIENT_NAME };
      if (this.token) message.token = this.token;
      this.request(message, { kind: 'connect' });
    });
    socket.onmessage = current((event) => this.received(event.data));
    socket.onclose = current((event) => this.closed(event.code, event.reason));
    socket.onerror = () => {}; // a close follows
    this.watch(CONNECT_TIMEOUT_MS, 'the server does not answer');
    this.changed();
  }

  dropSocket(code) {
    this.clock.clear(this.timers.retry);
    this.clock.clear(this.timers.watch);
    const socket = this.socket;
    this.socket = null;
    this.connectedAt = null;
    this.retryAt = null;
    this.lag = null;
    this.parts = null;
    const unanswered = [...this.pending.values()];
    this.pending.clear();
    for (const subscription of this.subscriptions.values()) {
      this.clock.clear(subscription.retryTimer);
      subscription.forgetPresence();
      // Half a snapshot is worth nothing; the old rows stay on show.
      subscription.staged = null;
      if (!subscription.ended) subscription.state = 'waiting';
    }
    try {
      socket?.close(code);
    } catch {
      // It was never open.
    }
    for (const about of unanswered) about.reject?.(new RequestError({ code: '08006', message: 'the connection was lost' }));
    // What had been sent without a key may have been done or not.
    for (const call of this.calls) {
      if (call.sent && call.message.key === undefined) {
        call.reject(new RequestError({ code: '40003', message: 'the connection was lost; it is not known what the call has done' }));
      }
    }
    this.calls = this.calls.filter((call) => !call.sent || call.message.key !== undefined);
    for (const call of this.calls) call.sent = false;
  }

  dropCalls(message) {
    for (const call of this.calls.splice(0)) call.reject(new RequestError({ code: '08003', message }));
  }

  closed(code, reason) {
    if (code === CLOSE_UNAUTHORIZED || code === CLOSE_TOKEN_EXPIRED) {
      this.fail({
        code: '28000',
        message: reason || (code === CLOSE_TOKEN_EXPIRED ? 'the token has expired' : 'the token was refused'),
        hint: 'Give a fresh token and connect again.',
      });
      return;
    }
    if (this.status === 'connecting') {
      const why = reason ? `: ${reason}` : '';
      this.note('unreachable', 'warning', `no connection to ${this.url}${why}`);
    } else if (this.retryAfter === null) {
      this.note('lost', 'warning', `connection lost${reason ? `: ${reason}` : ''} (${code})`, { code: String(code) });
    }
    this.lost(this.retryAfter);
  }

  /** The connection is gone; comes back after `delay`, or after full-jitter back-off. */
  lost(delay = null) {
    if (this.connectedAt !== null && this.clock.now() - this.connectedAt >= STABLE_MS) this.attempt = 0;
    this.dropSocket(1000);
    const wait = delay ?? this.random() * Math.min(BACKOFF_CAP_MS, BACKOFF_BASE_MS * 2 ** this.attempt);
    this.attempt += 1;
    this.status = 'waiting';
    this.retryAt = this.clock.now() + wait;
    this.timers.retry = this.clock.set(() => this.open(), wait);
    this.changed();
  }

  /** No use in trying again without the user. */
  fail({ code = null, message, hint = null }) {
    this.dropSocket(1000);
    this.status = 'failed';
    this.error = { code, message, hint };
    this.dropCalls(message);
    this.note('failed', 'error', message, { code, hint });
    this.changed();
  }

  /** Gives up the connection if nothing arrives for so long. */
  watch(ms, words) {
    this.clock.clear(this.timers.watch);
    this.timers.watch = this.clock.set(() => {
      this.note('silent', 'warning', `${words}; connecting again`);
      this.lost();
    }, ms);
  }

  request(message, about) {
    const id = this.nextId++;
    this.pending.set(id, about);
    const { type, ...rest } = message;
    this.socket.send(JSON.stringify({ type, id, ...rest }));
    return id;
  }

  /** A request whose answer is what the promise becomes. */
  ask(message) {
    return new Promise((resolve, reject) => {
      if (this.status !== 'connected') reject(new RequestError({ code: '08003', message: 'not connected' }));
      else this.request(message, { kind: message.type, channel: message.channel, resolve, reject });
    });
  }

  sendCalls() {
    if (this.status !== 'connected') return;
    let sent = this.calls.filter((call) => call.sent).length;
    for (const call of this.calls) {
      if (sent >= MAX_CALLS) return;
      if (call.sent) continue;
      call.sent = true;
      sent += 1;
      const answered = (run) => (answer) => {
        this.calls = this.calls.filter((other) => other !== call);
        run(answer);
        this.sendCalls();
      };
      // `fail`, not `reject`: with a key it outlives the connection.
      this.request(call.message, { kind: 'call', resolve: answered(call.resolve), fail: answered(call.reject) });
    }
  }

  /** The subscription that a message is about. Null if it is of one that we have left. */
  fed(channel) {
    const subscription = this.subscriptions.get(channel);
    return subscription?.fed ? subscription : null;
  }

  // ---- Messages ----

  received(text) {
    this.receivedAt = this.clock.now();
    if (this.heartbeatMs !== null) {
      this.watch(this.heartbeatMs + HEARTBEAT_GRACE_MS, 'the heartbeat of the server is missing');
    }
    if (this.raw) this.emit({ type: 'raw', text });
    let message;
    try {
      message = parse(text);
    } catch {
      this.broken(new ProtocolError('a message that is not JSON'));
      return;
    }
    const handle = handlers[message.type];
    if (!handle) return; // of a later version of the protocol
    try {
      handle.call(this, message);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.broken(error);
    }
  }

  /** What came cannot be right. Connect again; a channel whose rows are in doubt starts afresh. */
  broken(error) {
    const subscription = error.channel === null ? null : this.subscriptions.get(error.channel);
    if (subscription) subscription.position = null;
    this.note('protocol', 'warning', `${error.message}; connecting again`, { channel: error.channel });
    this.lost();
  }

  sendSubscribe(subscription) {
    const message = { type: 'subscribe', channel: subscription.channel };
    if (subscription.position !== null) message.from = subscription.position;
    subscription.state = 'subscribing';
    subscription.replayed = 0;
    subscription.requestId = this.request(message, { kind: 'subscribe', channel: subscription.channel });
    if (subscription.tracked !== null) {
      this.track(subscription.channel, subscription.tracked).catch(() => {}); // onError tells it
    }
  }

  restart(subscription) {
    subscription.state = 'waiting';
    subscription.error = null;
    subscription.position = null;
    subscription.staged = null;
  }

  onConnected(message) {
    this.pending.delete(message.id);
    this.status = 'connected';
    this.connectedAt = this.clock.now();
    this.connects += 1;
    this.pingAt = this.connectedAt;
    this.server = message.server ?? null;
    this.expiresAt = message.expires_at ?? null;
    this.heartbeatMs = message.heartbeat_ms ?? 25_000;
    this.watch(this.heartbeatMs + HEARTBEAT_GRACE_MS, 'the heartbeat of the server is missing');
    this.note('connected', 'info', `connected${this.server ? ` to ${this.server}` : ''}`);
    for (const subscription of this.subscriptions.values()) {
      if (!subscription.ended) this.sendSubscribe(subscription);
    }
    this.sendCalls();
    this.changed();
  }

  onSubscribed(message) {
    this.pending.delete(message.id);
    const subscription = this.subscriptions.get(message.channel);
    if (subscription?.requestId !== message.id) return;
    const resuming = subscription.position !== null;
    subscription.error = null;
    subscription.attempt = 0;
    subscription.paced = message.min_interval_ms !== undefined;
    if (message.recovered) {
      subscription.state = 'replaying';
      for (const [name, entity] of Object.entries(message.entities ?? {})) subscription.cache.define(name, entity);
    } else {
      subscription.state = 'loading';
      subscription.stage(message.entities);
      if (resuming) {
        this.note('not-resumed', 'info', `${message.channel}: cannot resume, loading a fresh snapshot`, {
          channel: message.channel,
        });
      }
    }
    this.changed();
  }

  onSnapshot(message) {
    const subscription = this.fed(message.channel);
    if (!subscription) return;
    if (!subscription.staged) throw new ProtocolError('a snapshot that was not announced', message.channel);
    this.about(message.channel, () => subscription.staged.addSnapshot(message.entity, message.rows));
  }

  onReady(message) {
    const subscription = this.fed(message.channel);
    if (!subscription) return;
    const { staged, replayed, state } = subscription;
    for (const [name, entity] of Object.entries(message.entities ?? {})) staged?.define(name, entity);
    if (staged) {
      subscription.cache = staged;
      subscription.staged = null;
    }
    subscription.state = 'live';
    subscription.misfits = 0;
    subscription.position = message.position ?? null;
    this.position = subscription.position ?? this.position;
    if (staged) {
      let count = 0;
      for (const entity of staged.entities.values()) count += entity.rows.size;
      const what = state === 'resync' ? 'new snapshot' : 'snapshot';
      this.note('ready', 'info', `${message.channel}: ${what}, ${plural(count, 'row')}`, { channel: message.channel });
      this.emit({ type: 'rows', channel: message.channel });
    } else {
      this.note('resumed', 'info', `${message.channel}: resumed, ${plural(replayed, 'transaction')} caught up`, {
        channel: message.channel,
      });
    }
    this.changed();
  }

  onTransaction(message) {
    this.frames += 1;
    // A frame in parts is one frame: it counts once and is applied with its last part.
    if (message.part !== undefined) {
      const { parts } = this;
      const next = parts ? parts.message.part + 1 : 1;
      if (message.part !== next || (parts && message.seq !== parts.message.seq)) {
        throw new ProtocolError(`part ${message.part} of frame ${message.seq} came out of turn`);
      }
      if (!parts) this.countFrame(message.seq);
      const changes = parts ? [...parts.changes, ...message.changes] : message.changes;
      this.parts = { message, changes };
      if (!message.last) return;
      this.parts = null;
      this.applyTransaction(message, changes);
      return;
    }
    if (this.parts) throw new ProtocolError(`frame ${this.parts.message.seq} was not finished`);
    this.countFrame(message.seq);
    this.applyTransaction(message, message.changes);
  }

  countFrame(seq) {
    if (this.seq !== null && seq !== this.seq + 1) {
      throw new ProtocolError(`gap in the feed: frame ${seq} came after frame ${this.seq}`);
    }
    this.seq = seq;
  }

  applyTransaction(message, changes) {
    const known = changes.filter((change) => this.fed(change.channel));
    if (known.length === 0) return;
    // Look before applying: a transaction is applied as a whole or not at all.
    for (const change of known) {
      const { staged, cache } = this.subscriptions.get(change.channel);
      this.about(change.channel, () => (staged ?? cache).check(change));
    }
    const behindReady = new Set();
    const applied = known.map((change) => {
      const subscription = this.subscriptions.get(change.channel);
      if (!subscription.ready) behindReady.add(subscription);
      const result = (subscription.staged ?? subscription.cache).apply(change);
      if (result.misfit) this.misfit(subscription, result.misfit);
      return { ...result, staged: subscription.staged !== null };
    });
    // A frame of a channel that is not ready yet is about that channel only; any other moves every
    // ready one. (A frame in which we know nothing could be either, and is left out above.)
    if (behindReady.size > 0) {
      for (const subscription of behindReady) {
        subscription.replayed += 1;
        if (!subscription.staged) subscription.position = message.position;
      }
    } else {
      this.movePosition(message.position, message.channel);
    }
    const phase = behindReady.size > 0 ? 'replay' : 'live';
    const committed = Date.parse(message.committed_at);
    const wasBehind = this.behind;
    if (phase === 'live' && !Number.isNaN(committed)) {
      this.lag = this.receivedAt - committed;
      this.quickest = Math.min(this.quickest, this.lag);
    }
    this.emit({
      type: 'transaction',
      seq: message.seq,
      txid: message.txid,
      committedAt: message.committed_at,
      receivedAt: this.receivedAt,
      lag: phase === 'live' ? this.lag : null,
      phase,
      changes: applied,
    });
    if (this.behind !== wasBehind) this.changed();
  }

  /** Said once: a channel of this kind may have many. */
  misfit(subscription, text) {
    subscription.misfits += 1;
    if (subscription.misfits > 1) return;
    this.note('misfit', 'warning', `${subscription.channel}: ${text}`, {
      channel: subscription.channel,
      hint: 'The rows below may differ from what a SELECT shows. Channels with actions of their own do that.',
    });
  }

  /**
   * A position of the connection counts for every channel that is ready; that of a paced channel's frame or message
   * for this channel only, and those of other channels' not for a paced one.
   */
  movePosition(position, channel = null) {
    if (!position || this.parts) return;
    const own = this.subscriptions.get(channel);
    if (own?.paced) {
      own.position = position;
      return;
    }
    this.position = position;
    for (const subscription of this.subscriptions.values()) {
      if (subscription.ready && !subscription.paced) subscription.position = position;
    }
  }

  /** Everything that was put off has been delivered: the position counts for paced channels, too. */
  moveAll(position) {
    if (!position || this.parts) return;
    this.position = position;
    for (const subscription of this.subscriptions.values()) {
      if (subscription.ready) subscription.position = position;
    }
  }

  settle(txid) {
    if (txid === undefined || this.parts) return;
    this.settledTxid = BigInt(txid);
    this.emit({ type: 'settled' });
  }

  onResync(message) {
    const subscription = this.fed(message.channel);
    if (!subscription) return;
    const shape = message.entities ?? subscription.shape;
    subscription.stage(shape);
    subscription.state = 'resync';
    this.note('resync', 'warning', `${message.channel}: loading again (${words(message.reason)})`, {
      channel: message.channel,
    });
    this.changed();
  }

  onRevoked(message) {
    const subscription = this.fed(message.channel);
    if (!subscription) return;
    subscription.state = 'revoked';
    subscription.staged = null;
    subscription.position = null;
    subscription.cache.clear();
    subscription.forgetPresence();
    subscription.tracked = null;
    const { code = null, hint = null } = message;
    subscription.error = { code, hint, message: message.message ?? `access revoked: ${words(message.reason)}` };
    this.note('revoked', 'error', `${message.channel}: ${subscription.error.message}`, {
      channel: message.channel,
      code,
      hint,
    });
    this.emit({ type: 'rows', channel: message.channel });
    this.changed();
  }

  onError(message) {
    const about = this.pending.get(message.id) ?? {};
    this.pending.delete(message.id);
    const { code = null, message: text = 'unknown error', hint = null } = message;
    if (about.kind === 'connect') {
      if (isTemporary(code)) {
        this.note('refused', 'warning', text, { code, hint });
        this.lost();
      } else {
        this.fail({ code, message: text, hint });
      }
      return;
    }
    const answer = about.fail ?? about.reject;
    if (answer) {
      answer(new RequestError(message));
      return;
    }
    const subscription = about.kind === 'subscribe' ? this.subscriptions.get(about.channel) : undefined;
    if (subscription?.requestId === message.id) {
      subscription.error = { code, message: text, hint };
      subscription.staged = null;
      if (isTemporary(code)) {
        subscription.state = 'waiting';
        const wait = this.random() * Math.min(BACKOFF_CAP_MS, BACKOFF_BASE_MS * 2 ** ++subscription.attempt);
        subscription.retryTimer = this.clock.set(() => this.sendSubscribe(subscription), wait);
      } else {
        subscription.state = 'error';
        subscription.cache.clear();
        subscription.position = null;
        this.emit({ type: 'rows', channel: about.channel });
      }
    }
    if (message.expires_at !== undefined) this.expiresAt = message.expires_at;
    // Nothing is wrong yet if the token is only about to expire.
    const [kind, level] = message.expires_at !== undefined ? ['expiring', 'warning'] : ['error', 'error'];
    this.note(kind, level, text, { code, hint, channel: about.channel ?? message.channel });
    this.changed();
  }

  onOk(message) {
    const about = this.pending.get(message.id);
    this.pending.delete(message.id);
    about?.resolve?.(message);
    if (about?.kind !== 'token') return;
    if (message.expires_at !== undefined) this.expiresAt = message.expires_at;
    this.note('token', 'info', 'the server took the new token');
    this.changed();
  }

  onPing(message) {
    this.pingAt = this.receivedAt;
    this.socket.send('{"type":"pong"}');
    this.moveAll(message.position);
    this.settle(message.settled_txid);
    // Everything that was committed is here: what came late has been made good.
    if (this.behind) {
      this.lag = null;
      this.changed();
    }
  }

  onSynced(message) {
    this.moveAll(message.position);
    this.settle(message.settled_txid);
    this.answered(message);
  }

  answered(message) {
    const about = this.pending.get(message.id);
    this.pending.delete(message.id);
    about?.resolve?.(message);
  }

  onColumns(message) {
    const subscription = this.fed(message.channel);
    if (!subscription) return;
    const cache = subscription.staged ?? subscription.cache;
    for (const [name, entity] of Object.entries(message.entities ?? {})) cache.define(name, entity);
    this.changed();
  }

  onMessage(message) {
    const subscription = this.fed(message.channel);
    if (!subscription) return;
    if (message.position !== undefined) {
      if (subscription.ready) this.movePosition(message.position, message.channel);
      else if (!subscription.staged) subscription.position = message.position;
    }
    this.emit({ type: 'message', message });
  }

  onPresence(message) {
    if (message.id !== undefined) {
      this.answered(message);
      return;
    }
    const subscription = this.fed(message.channel);
    if (!subscription) return;
    if (message.count !== undefined) {
      subscription.count = message.count;
      subscription.kinds = message.kinds ?? {};
    } else {
      if (message.full || subscription.members === null) subscription.members = new Map();
      for (const user of Object.keys(message.left ?? {})) subscription.members.delete(user);
      for (const [user, states] of Object.entries(message.joined ?? {})) {
        subscription.members.set(user, { states, kinds: [], holds: [], ...message.meta?.[user] });
      }
    }
    this.emit({ type: 'presence', channel: message.channel, message });
  }

  onClosing(message) {
    this.retryAfter = message.retry_after_ms ?? 0;
    const seconds = (this.retryAfter / 1000).toFixed(1);
    const text = `the server closes the connection (${words(message.reason)}); coming back in ${seconds} s`;
    this.note('closing', 'warning', text);
  }

  /** Runs what concerns one channel; says so in the error. */
  about(channel, run) {
    try {
      run();
    } catch (error) {
      if (error instanceof ProtocolError) error.channel = channel;
      throw error;
    }
  }
}

const handlers = {
  connected: Client.prototype.onConnected,
  subscribed: Client.prototype.onSubscribed,
  snapshot: Client.prototype.onSnapshot,
  ready: Client.prototype.onReady,
  transaction: Client.prototype.onTransaction,
  resync: Client.prototype.onResync,
  revoked: Client.prototype.onRevoked,
  error: Client.prototype.onError,
  ok: Client.prototype.onOk,
  ping: Client.prototype.onPing,
  closing: Client.prototype.onClosing,
  columns: Client.prototype.onColumns,
  message: Client.prototype.onMessage,
  presence: Client.prototype.onPresence,
  result: Client.prototype.answered,
  synced: Client.prototype.onSynced,
};

/** Errors that pass: serialization, resources, operator intervention, system. */
function isTemporary(code) {
  return /^(08006|40|53|55|57|58)/.test(code ?? '');
}

function plural(count, noun) {
  return `${count.toLocaleString('en')} ${noun}${count === 1 ? '' : 's'}`;
}

function words(reason) {
  return String(reason ?? 'no reason given').replaceAll('_', ' ');
}

// ---------------------------------------------------------------------------
// Tokens and the page's address
// ---------------------------------------------------------------------------

function base64url(bytes) {
  let text = '';
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
}

function fromBase64url(text) {
  const bytes = Uint8Array.from(atob(text.replaceAll('-', '+').replaceAll('_', '/')), (c) => c.charCodeAt(0));
  return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
}

/** An HS256 token, signed here. For development: real secrets stay on servers. */
export async function signToken(claims, secret) {
  const subtle = globalThis.crypto?.subtle;
  if (!subtle) {
    throw new Error('This page cannot sign: browsers offer cryptography only over https or on localhost.');
  }
  const encoder = new TextEncoder();
  const part = (object) => base64url(encoder.encode(JSON.stringify(object)));
  const text = `${part({ alg: 'HS256', typ: 'JWT' })}.${part(claims)}`;
  const algorithm = { name: 'HMAC', hash: 'SHA-256' };
  const key = await subtle.importKey('raw', encoder.encode(secret), algorithm, false, ['sign']);
  const signature = await subtle.sign('HMAC', key, encoder.encode(text));
  return `${text}.${base64url(new Uint8Array(signature))}`;
}

/** The claims of a token, unchecked: only to show whose it is. Null if it is none. */
export function claimsOf(token) {
  try {
    const claims = JSON.parse(fromBase64url(token.split('.')[1]));
    return typeof claims === 'object' ? claims : null;
  } catch {
    return null;
  }
}

/**
 * The panes that an address asks for: #panes=<base64url of [{title, token, channels}]>.
 * The part behind # never leaves the browser. Returns null if it asks for none.
 */
export function panesOf(fragment) {
  const text = new URLSearchParams(fragment.replace(/^#/, '')).get('panes');
  if (!text) return null;
  let panes;
  try {
    panes = JSON.parse(fromBase64url(text));
  } catch {
    throw new Error('The panes in the address cannot be read: not base64url of JSON.');
  }
  if (!Array.isArray(panes) || panes.some((pane) => pane === null || typeof pane !== 'object')) {
    throw new Error('The panes in the address cannot be read: not a list of objects.');
  }
  return panes.map(({ title, token, channels }) => ({
    title: typeof title === 'string' ? title : '',
    token: typeof token === 'string' ? token : '',
    channels: Array.isArray(channels) ? channels.filter((channel) => typeof channel === 'string') : [],
  }));
}

/** The reverse of panesOf. */
export function fragmentOf(panes) {
  return `#panes=${base64url(new TextEncoder().encode(JSON.stringify(panes)))}`;
}
