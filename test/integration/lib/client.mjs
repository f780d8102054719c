// A strict client: keeps a cache per subscription, and takes every deviation
// from the protocol as a failure of the test.

import { createRequire } from 'node:module';
import assert from 'node:assert/strict';

import { canonical, isNumber, number, parseExact } from './json.mjs';

const WebSocket = createRequire(new URL('../../package.json', import.meta.url))('ws');

export class ServerError extends Error {
  constructor(message) {
    super(`${message.code}: ${message.message}`);
    this.code = message.code;
    this.hint = message.hint;
    this.reply = message;
  }
}

class Violation extends Error {}

/** So many times as long may everything take, where the server is slow on purpose (test/sanitize/run). */
export const PATIENCE = Number(process.env.TEST_PATIENCE ?? 1);

/** A promise with its ends outside. Nobody has to wait for it. */
function deferred() {
  const d = {};
  d.promise = new Promise((resolve, reject) => Object.assign(d, { resolve, reject }));
  d.promise.catch(() => {});
  return d;
}

export const within = (ms, promise, what) => {
  let timer;
  return Promise.race([
    promise,
    new Promise((_, reject) => { timer = setTimeout(() => reject(new Error(`${what}: not within ${ms * PATIENCE} ms`)), ms * PATIENCE); }),
  ]).finally(() => clearTimeout(timer));
};

/** Waits until `look` gives something true. */
export async function until(look, what, ms = 30000) {
  const end = Date.now() + ms * PATIENCE;
  for (;;) {
    const result = await look();
    if (result) return result;
    if (Date.now() > end) throw new Error(`${typeof what === 'function' ? what() : what}: not within ${ms * PATIENCE} ms`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

class Entity {
  rows = new Map();

  constructor(key, columns) {
    this.key = key;
    this.columns = columns;
  }

  empty() {
    return new Entity(this.key, this.columns);
  }

  /** Of rows that came before it was known what their key is. */
  describe(key, columns) {
    if (this.key === null) {
      this.rows = new Map([...this.rows.values()].map((row) => [canonical(Object.fromEntries(key.map((name) => [name, row[name]]))), row]));
    }
    this.key = key;
    this.columns = columns;
  }
}

const OPERATIONS = new Set(['append', 'merge', 'replace', 'remove']);

export class Subscription {
  /** new, filling (snapshot or replay), ready, ended */
  state = 'new';
  entities = new Map();
  position = null;
  recovered = null;
  snapshot = null; // of `ready`
  resyncs = [];
  revoked = null;
  changes = 0; // received since subscribed, in all states
  frames = 0;
  readies = 0;
  onChange = null;

  #filling = null; // entities to be swapped in
  #caughtUp = false; // a transaction came since the last page
  #described = false; // the columns are those of `subscribed`
  #refused = false; // its position was, and it was not told why yet
  #txids = new Set();
  #readyWaiters = [];

  constructor(client, name, { snapshot = true, cache = null, loose = false, repeats = false, from = undefined } = {}) {
    this.client = client;
    this.name = name;
    this.from = from;
    this.exact = snapshot && !loose; // operations fit what is held
    this.repeats = repeats; // old values are not in the WAL: what did not change may be sent
    this.loose = loose; // the channel has operations of its own
    this.cache = cache;
  }

  /** The cached rows of an entity, or of the only one. */
  rows(entity = [...this.entities.keys()][0]) {
    return [...(this.entities.get(entity)?.rows.values() ?? [])];
  }

  ready(ms = 30000) {
    if (this.state === 'ready') return Promise.resolve(this);
    if (this.state === 'ended') return Promise.reject(new Error(`"${this.name}" has ended: ${JSON.stringify(this.revoked)}`));
    const d = deferred();
    this.#readyWaiters.push(d);
    return within(ms, d.promise, `"${this.name}" ready`);
  }

  #violation(text) {
    throw new Violation(`channel "${this.name}": ${text}`);
  }

  takeSubscribed(message) {
    if (this.state !== 'new') this.#violation('subscribed twice');
    this.recovered = message.recovered;
    this.paced = message.min_interval_ms !== undefined;
    if (typeof message.recovered !== 'boolean') this.#violation('subscribed without "recovered"');
    for (const [name, { key, columns }] of Object.entries(message.entities)) {
      for (const column of key) if (!columns.includes(column)) this.#violation(`key column "${column}" is not sent`);
      this.entities.set(name, new Entity(key, columns));
    }
    this.#described = true;
    if (this.recovered) {
      if (!this.cache) this.#violation('recovered, but there was nothing to recover');
      for (const [name, entity] of this.cache.entities) this.entities.get(name).rows = new Map(entity.rows);
      this.#filling = null;
    } else {
      this.#begin();
      this.#refused = this.from !== undefined;
    }
    this.state = 'filling';
  }

  /** New columns for somebody who is ready: the next frame brings them. */
  takeColumns(message) {
    if (this.state === 'filling') {
      // Another definition: other entities.
      for (const [name, { key, columns }] of Object.entries(message.entities)) {
        this.entities.set(name, Object.assign(this.entities.get(name) ?? new Entity(), { key, columns }));
      }
      for (const name of [...this.entities.keys()]) if (!(name in message.entities)) this.entities.delete(name);
      this.#begin();
      this.#described = true;
      return;
    }
    if (this.state !== 'ready') this.#violation(`columns in state ${this.state}`);
    for (const [name, { key, columns }] of Object.entries(message.entities)) {
      const entity = this.entities.get(name);
      if (canonical(entity.key) !== canonical(key)) this.#violation(`columns with another key: ${key}`);
      for (const column of entity.columns) if (!columns.includes(column)) this.#violation(`column "${column}" is gone without a resync`);
      entity.columns = columns;
    }
    this.columnMessages = (this.columnMessages ?? 0) + 1;
  }

  #begin() {
    this.#filling = new Map([...this.entities].map(([name, entity]) => [name, entity.empty()]));
    this.#caughtUp = false;
  }

  #target(entity) {
    const entities = this.#filling ?? this.entities;
    // A new source of the channel: `ready` describes it.
    if (!entities.has(entity) && !this.#described && this.#filling) entities.set(entity, new Entity(null, null));
    const target = entities.get(entity);
    if (!target) this.#violation(`entity "${entity}" was not announced`);
    return target;
  }

  #checkRow(entity, row) {
    const names = Object.keys(row);
    if (this.#described && canonical([...names].sort()) !== canonical([...entity.columns].sort())) {
      this.#violation(`columns ${names} instead of ${entity.columns}`);
    }
    for (const name of entity.key ?? []) if (!(name in row)) this.#violation(`row without key column "${name}"`);
  }

  takeSnapshot(message) {
    if (this.state !== 'filling' || !this.#filling) this.#violation(`snapshot in state ${this.state}`);
    if (this.#refused) this.#violation('the position was refused without a reason');
    if (this.#caughtUp) this.#violation('snapshot behind a transaction');
    const entity = this.#target(message.entity);
    for (const row of message.rows) {
      this.#checkRow(entity, row);
      const key = canonical(Object.fromEntries((entity.key ?? Object.keys(row)).map((name) => [name, row[name]])));
      if (entity.rows.has(key)) this.#violation(`snapshot has key ${key} twice`);
      entity.rows.set(key, row);
    }
  }

  takeReady(message) {
    if (this.state !== 'filling') this.#violation(`ready in state ${this.state}`);
    if (typeof message.position !== 'string' || message.position === '') this.#violation('ready without position');
    if (this.#filling) this.entities = this.#filling;
    if (message.entities) {
      this.paced = message.min_interval_ms !== undefined;
      for (const name of this.entities.keys()) if (!(name in message.entities)) this.entities.delete(name);
      for (const [name, { key, columns }] of Object.entries(message.entities)) {
        if (!this.entities.has(name)) this.#violation(`entity "${name}" had no snapshot`);
        this.entities.get(name).describe(key, columns);
      }
      this.#described = true;
    }
    this.#filling = null;
    if (!this.#described && !message.entities) this.#violation('ready behind a resync without entities');
    for (const [name, { key, columns }] of Object.entries(message.entities ?? {})) {
      const entity = this.entities.get(name);
      if (!entity) this.#violation(`entity "${name}" was not announced`);
      Object.assign(entity, { key, columns });
      this.#described = true;
      for (const row of entity.rows.values()) this.#checkRow(entity, row);
    }
    this.position = message.position;
    this.snapshot = message.snapshot ?? null;
    this.state = 'ready';
    this.readies += 1;
    for (const d of this.#readyWaiters.splice(0)) d.resolve(this);
  }

  takeResync(message) {
    if (this.state !== 'ready' && this.state !== 'filling') this.#violation(`resync in state ${this.state}`);
    if (!message.reason) this.#violation('resync without reason');
    this.#refused = false;
    this.resyncs.push(message.reason);
    this.#described = false; // columns may be others: `ready` names them
    this.#begin();
    this.#txids.clear();
    this.state = 'filling';
  }

  /** Who is there: the list first, then what has changed, and nothing twice. */
  takePresence(message) {
    if (this.state === 'new' || this.state === 'ended') this.#violation(`presence in state ${this.state}`);
    this.presences = (this.presences ?? 0) + 1;
    if (message.full) {
      if (this.members?.listing === false) this.listsAgain = (this.listsAgain ?? 0) + 1;
      this.members = Object.assign(new Map(), { listing: true });
    }
    if (!this.members) this.#violation('presence without a list');
    if (message.count !== undefined) {
      const told = canonical([message.count, message.kinds]);
      if (!message.full && told === this.counted) this.#violation('a count that was told before');
      this.counted = told;
      this.count = number(message.count);
      this.kinds = Object.fromEntries(Object.entries(message.kinds).map(([kind, n]) => [kind, number(n)]));
      return;
    }
    for (const user of Object.keys(message.meta ?? {})) if (!(user in message.joined)) this.#violation(`meta of "${user}", who did not change`);
    for (const [user, states] of Object.entries(message.joined)) {
      if (!Array.isArray(states) || states.length === 0) this.#violation(`"${user}" without states`);
      const told = { states, ...message.meta?.[user] };
      if (!this.members.listing && this.members.has(user) && canonical(this.members.get(user)) === canonical(told)) this.#violation(`"${user}" was told before`);
      this.members.set(user, told);
    }
    for (const user of Object.keys(message.left)) {
      if (!this.members.has(user) && !this.members.listing) this.#violation(`"${user}" left without having been there`);
      this.members.delete(user);
    }
    if (!message.more && this.members.listing) {
      this.members.listing = false;
      this.listed = this.members.size;
    }
    const holders = [...this.members.values()].flatMap(({ holds = [] }) => holds);
    if (!message.more && new Set(holders).size !== holders.length) this.#violation(`a key has two holders: ${holders}`);
  }

  end(message) {
    this.state = 'ended';
    this.revoked = message;
    this.entities = new Map();
    for (const d of this.#readyWaiters.splice(0)) d.reject(new Error(`"${this.name}" has ended: ${JSON.stringify(message)}`));
  }

  /** The connection is gone: what was held stays, to resume from. */
  lost() {
    for (const d of this.#readyWaiters.splice(0)) d.reject(new Error('connection closed'));
  }

  takeChange(change, frame) {
    if (this.state !== 'ready' && this.state !== 'filling') this.#violation(`change in state ${this.state}`);
    if (this.state === 'filling') this.#caughtUp = true;
    const entity = this.#target(change.entity);
    if (entity.key === null) entity.describe(Object.keys(change.key), null);
    if (canonical(Object.keys(change.key).sort()) !== canonical([...entity.key].sort())) {
      this.#violation(`key ${canonical(change.key)} does not consist of ${entity.key}`);
    }
    const key = canonical(change.key);
    const held = entity.rows.get(key);
    this.changes += 1;
    switch (change.op) {
      case 'append':
      case 'replace':
        this.#checkRow(entity, change.row);
        for (const name of entity.key) {
          if (canonical(change.row[name]) !== canonical(change.key[name])) this.#violation(`row of key ${key} has another key`);
        }
        if (change.op === 'append' && held && this.exact) this.#violation(`append of ${key}, which is held (txid ${frame.txid})`);
        if (change.op === 'append' && !this.exact && !this.loose) this.#violation('append without snapshot');
        if (held && canonical(held) === canonical(change.row)) this.#violation(`${change.op} of ${key} changes nothing`);
        entity.rows.set(key, change.row);
        break;
      case 'merge': {
        if (!held && !this.loose) this.#violation(`merge of ${key}, which is not held (txid ${frame.txid})`);
        const names = Object.keys(change.set);
        if (names.length === 0) this.#violation(`merge of nothing into ${key}`);
        for (const name of names) {
          if (this.#described && !entity.columns.includes(name)) this.#violation(`merge of column "${name}", which was not announced`);
          if (held && entity.key.includes(name)) this.#violation(`merge of key column "${name}"`);
          if (held && !this.repeats && name in held && canonical(held[name]) === canonical(change.set[name])) {
            this.#violation(`merge of ${key} repeats the value of "${name}" (txid ${frame.txid})`);
          }
        }
        entity.rows.set(key, { ...held, ...change.set });
        break;
      }
      case 'remove':
        if (!held && this.exact) this.#violation(`remove of ${key}, which is not held (txid ${frame.txid})`);
        entity.rows.delete(key);
        break;
      default:
        this.#violation(`unknown operation ${change.op}`);
    }
    this.onChange?.(change, frame, entity.rows.get(key), held);
  }

  /** Once per transaction. */
  takeTransaction(txid) {
    if (this.#txids.has(txid)) this.#violation(`transaction ${txid} came twice`);
    this.#txids.add(txid);
    this.frames += 1;
  }
}

export class Client {
  subscriptions = new Map(); // by name: those that live
  subscriptionsEnded = [];
  violation = null;
  closed = null; // { code, reason }
  closing = null; // the message
  connected = null; // the message
  messages = []; // those without a place of their own: warnings, ...
  received = 0; // messages
  transactions = 0;
  pings = 0;
  parts = 0;
  answersPings = true;
  onTransaction = null;
  onMessage = null; // behind everything else, of each message
  tamper = null; // gives the texts to take in place of one

  #requests = new Map();
  #nextId = 0;
  #seq = 0;
  #open = null; // transaction of which parts are missing
  #settled = 0n;
  #liveTxids = new Set();
  #opened = deferred();
  #ended = deferred();

  /** `socket`: something else that gives messages like one. */
  constructor({ url = process.env.WS_URL, token, headers, protocols = ['changefeed.v1'], receive = {}, socket } = {}) {
    this.token = token;
    this.socket = socket ?? new WebSocket(url, protocols, { headers, perMessageDeflate: false, ...receive });
    this.socket.on('open', () => this.#opened.resolve());
    this.socket.on('message', (data, binary) => {
      for (const text of this.tamper?.(String(data)) ?? [data]) this.#guard(() => this.#take(text, binary));
    });
    this.socket.on('error', (error) => this.#opened.reject(error));
    this.socket.on('close', (code, reason) => {
      this.closed = { code, reason: String(reason) };
      const error = new Error(`connection closed: ${code} ${reason}`);
      this.#opened.reject(error);
      for (const d of this.#requests.values()) d.reject(error);
      this.#requests.clear();
      for (const s of this.subscriptions.values()) s.lost();
      this.#ended.resolve(this.closed);
    });
  }

  get ended() {
    return this.#ended.promise;
  }

  get opened() {
    return this.#opened.promise;
  }

  static async connect({ fields = {}, ms, ...options } = {}) {
    const client = new Client(options);
    try {
      await within(ms ?? 10000, client.opened, 'open');
      client.connected = await client.request('connect', { ...(client.token !== undefined && { token: client.token }), ...fields }, { ms });
    } catch (error) {
      client.socket.terminate(); // nobody else could
      throw error;
    }
    return client;
  }

  /** The same, with a role that may have been allowed a moment ago. */
  static async connectSoon(options) {
    return until(() => Client.connect(options).catch((error) => {
      if (error.code !== '42501') throw error;
    }), 'role allowed', 10000);
  }

  /** Throws what the server did wrong, if anything. */
  check() {
    if (this.violation) throw this.violation;
  }

  #guard(run) {
    if (this.violation) return;
    try {
      run();
    } catch (error) {
      this.violation = error;
      this.socket.terminate();
      for (const d of this.#requests.values()) d.reject(error);
      this.#requests.clear();
    }
  }

  send(message) {
    this.socket.send(typeof message === 'string' ? message : JSON.stringify(message));
  }

  request(type, fields = {}, { id = ++this.#nextId, ms = 30000, onAnswer, text } = {}) {
    const d = deferred();
    d.onAnswer = onAnswer;
    this.#requests.set(JSON.stringify(id), d);
    this.check();
    if (this.closed) throw new Error('connection is closed');
    this.send(text ?? { type, id, ...fields });
    return within(ms, d.promise, `answer to "${type}"`);
  }

  /** Resolves when it is subscribed; `ready()` of the result waits on. */
  async subscribe(channel, { from, snapshot, cache, loose, repeats, ms, ...fields } = {}) {
    const old = this.subscriptions.get(channel);
    const subscription = new Subscription(this, channel, { snapshot: snapshot !== false, cache, loose, repeats, from });
    if (!old) this.subscriptions.set(channel, subscription);
    try {
      const message = await this.request('subscribe', {
        channel, ...fields, ...(from !== undefined && { from }), ...(snapshot !== undefined && { snapshot }),
      }, { ms });
      assert.equal(message.type, 'subscribed');
    } catch (error) {
      if (!old) this.subscriptions.delete(channel);
      if (!this.closed) subscription.end({ type: 'refused' }); // whoever waits for it
      throw error;
    }
    return subscription;
  }

  /** A subscription that has its snapshot. */
  async open(channel, options) {
    return (await this.subscribe(channel, options)).ready();
  }

  /** The same, of a channel that may have been created a moment ago. */
  async openSoon(channel, options) {
    return until(() => this.open(channel, options).catch((error) => {
      if (error.code !== '42704') throw error;
    }), 'channel exists', 10000);
  }

  async unsubscribe(channel) {
    const subscription = this.subscriptions.get(channel);
    // At once: the position of the next message is not this channel's any more.
    const onAnswer = () => {
      subscription?.end({ type: 'unsubscribed' });
      this.subscriptions.delete(channel);
    };
    await this.request('unsubscribe', { channel }, { onAnswer });
  }

  /** Everything committed until now has been delivered. */
  sync(ms) {
    return this.request('sync', {}, { ms });
  }

  /** The same, and all subscriptions are ready. */
  async settle(ms = 30000) {
    const end = Date.now() + ms;
    for (;;) {
      await this.sync(end - Date.now() + 1);
      const waiting = [...this.subscriptions.values()].filter(({ state }) => state !== 'ready');
      if (waiting.length === 0) return this;
      for (const subscription of waiting) await subscription.ready(end - Date.now() + 1).catch((error) => {
        if (subscription.state !== 'ended') throw error;
      });
    }
  }

  /** As a lost network would. */
  cut() {
    this.socket.terminate();
    return this.ended;
  }

  async close() {
    this.socket.close(1000);
    const timer = setTimeout(() => this.socket.terminate(), 2000);
    await this.ended;
    clearTimeout(timer);
    this.check();
  }

  #fail(text) {
    throw new Violation(text);
  }

  #answer(message) {
    const id = isNumber(message.id) ? String(number(message.id)) : JSON.stringify(message.id);
    const d = this.#requests.get(id);
    if (!d) this.#fail(`answer to unknown request ${id}`);
    this.#requests.delete(id);
    if (message.type === 'error') {
      d.reject(new ServerError(message));
    } else {
      d.onAnswer?.(message);
      d.resolve(message);
    }
  }

  #subscription(message) {
    const subscription = this.subscriptions.get(message.channel);
    if (!subscription) this.#fail(`"${message.type}" for channel "${message.channel}", which is not subscribed`);
    return subscription;
  }

  #take(data, binary) {
    if (binary) this.#fail('binary message');
    const message = parseExact(String(data));
    this.received += 1;
    if (this.#open && !['transaction', 'ping', 'closing'].includes(message.type)) this.#fail(`"${message.type}" between the parts of a transaction`);
    switch (message.type) {
      case 'connected':
        if (message.id === undefined) this.connected = message;
        else this.#answer(message);
        break;
      case 'subscribed':
        this.#subscription(message).takeSubscribed(message);
        this.#answer(message);
        break;
      case 'snapshot':
        this.#subscription(message).takeSnapshot(message);
        break;
      case 'columns':
        this.#subscription(message).takeColumns(message);
        break;
      case 'ready':
        this.#subscription(message).takeReady(message);
        break;
      case 'transaction':
        this.#takeTransaction(message);
        break;
      case 'resync':
        this.#subscription(message).takeResync(message);
        break;
      case 'message':
        this.#takeMessage(message);
        break;
      case 'presence':
        if (message.id !== undefined) this.#answer(message);
        else this.#subscription(message).takePresence(message);
        break;
      case 'revoked': {
        const subscription = this.#subscription(message);
        if (!message.reason) this.#fail('revoked without reason');
        this.subscriptions.delete(message.channel);
        this.subscriptionsEnded.push(subscription);
        subscription.end(message);
        break;
      }
      case 'ping':
        this.pings += 1;
        if (message.settled_txid !== undefined) this.#takeSettled(message.settled_txid);
        if (message.position !== undefined || ![...this.subscriptions.values()].some(({ paced }) => paced)) this.#takePosition(message.position);
        if (this.answersPings) this.send({ type: 'pong' });
        break;
      case 'synced':
        this.#takeSettled(message.settled_txid);
        if (message.position !== undefined || ![...this.subscriptions.values()].some(({ paced }) => paced)) this.#takePosition(message.position);
        this.#answer(message);
        break;
      case 'error':
        if (typeof message.code !== 'string' || !message.message) this.#fail(`error without code or message: ${data}`);
        if (message.id === undefined) this.messages.push(message);
        else this.#answer(message);
        break;
      case 'closing':
        this.closing = message;
        break;
      default:
        if (message.id !== undefined) this.#answer(message);
        else this.#fail(`message of unknown type: ${data}`);
    }
    this.onMessage?.(message);
  }

  /** Its position counts as that of a transaction does. */
  #takeMessage(message) {
    const subscription = this.#subscription(message);
    if (message.position === undefined) return;
    if (typeof message.txid !== 'string' || !message.committed_at) this.#fail('incomplete message');
    if (subscription.state === 'ready') this.#takePosition(message.position, ({ paced }) => !paced);
    else if (!subscription.recovered) this.#fail('a position before the rows are complete');
    else subscription.position = message.position;
  }

  #takeSettled(text) {
    const settled = BigInt(text);
    if (settled > this.#settled) this.#settled = settled;
  }

  /** Of the connection: counts for all channels that are ready. */
  #takePosition(position, counts = () => true) {
    if (typeof position !== 'string' || position === '') this.#fail('no position');
    for (const subscription of this.subscriptions.values()) {
      if (subscription.state === 'ready' && counts(subscription)) subscription.position = position;
    }
  }

  #takeTransaction(message) {
    const seq = number(message.seq);
    if (typeof message.txid !== 'string' || !message.committed_at || !message.position) this.#fail(`incomplete transaction ${seq}`);
    if (message.changes.length === 0) this.#fail('transaction without changes');
    if (this.#open) {
      if (seq !== this.#open.seq || message.txid !== this.#open.txid || number(message.part) !== this.#open.part + 1) {
        this.#fail(`part ${message.part && number(message.part)} of transaction ${seq} behind part ${this.#open.part} of ${this.#open.seq}`);
      }
      this.#open.part += 1;
      this.#open.changes.push(...message.changes);
    } else {
      if (seq !== this.#seq + 1) this.#fail(`seq ${seq} behind ${this.#seq}`);
      this.#seq = seq;
      if (message.part !== undefined && number(message.part) !== 1) this.#fail(`transaction begins with part ${number(message.part)}`);
      this.#open = { ...message, seq, part: 1 };
    }
    if (message.part !== undefined) this.parts += 1;
    if (message.last === false) return;
    const frame = this.#open;
    this.#open = null;
    this.#apply(frame);
  }

  #apply(frame) {
    const seen = new Set();
    const channels = new Set(frame.changes.map(({ channel }) => channel));
    const subscriptions = [...channels].map((channel) => this.#subscription({ type: 'change', channel }));
    const live = subscriptions.every(({ state, paced }) => state === 'ready' && !paced);
    let removes = true;

    if (live ? frame.channel !== undefined : frame.channel !== subscriptions[0].name) {
      this.#fail(`transaction ${frame.txid} says channel ${JSON.stringify(frame.channel)}, which is ${live ? 'for catching up only' : 'not that of its changes'}`);
    }
    if (!live && subscriptions.length > 1) this.#fail(`transaction ${frame.txid} joins channels of which not all are ready`);
    for (const { channel, entity, op, key } of frame.changes) {
      const id = canonical([channel, entity, key]);
      if (!OPERATIONS.has(op)) this.#fail(`operation ${op}`);
      if (seen.has(id)) this.#fail(`transaction ${frame.txid} has ${id} twice`);
      seen.add(id);
      if (op === 'remove' && !removes) this.#fail(`transaction ${frame.txid} has a remove behind something else`);
      if (op !== 'remove') removes = false;
    }
    if (live) {
      if (this.#liveTxids.has(frame.txid)) this.#fail(`transaction ${frame.txid} came twice`);
      this.#liveTxids.add(frame.txid);
      if (BigInt(frame.txid) < this.#settled) this.#fail(`transaction ${frame.txid} came though all below ${this.#settled} were settled`);
    }
    for (const subscription of subscriptions) subscription.takeTransaction(frame.txid);
    for (const change of frame.changes) this.subscriptions.get(change.channel).takeChange(change, frame);
    if (live) this.#takePosition(frame.position, ({ paced }) => !paced);
    else if (subscriptions[0].state === 'ready') subscriptions[0].position = frame.position;
    this.transactions += 1;
    this.onTransaction?.(frame);
  }
}

/** The rows as sorted text. */
export const rowTexts = (rows) => rows.map(canonical).sort();

/** The cache is what a query gives. */
export function assertSame(cached, selected, what) {
  const a = rowTexts(cached);
  const b = rowTexts(selected);
  const inA = new Set(a);
  const inB = new Set(b);
  const surplus = a.filter((text) => !inB.has(text));
  const missing = b.filter((text) => !inA.has(text));
  assert.deepEqual(
    { rows: a.length, surplus: surplus.slice(0, 5), missing: missing.slice(0, 5) },
    { rows: b.length, surplus: [], missing: [] },
    `${what}: the cache differs from SELECT:\n  surplus: ${surplus.slice(0, 5).join('\n           ')}\n  missing: ${missing.slice(0, 5).join('\n           ')}`,
  );
}
