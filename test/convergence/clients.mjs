// Clients: connections that come and go, subscribe, resume, read slowly and
// change who they are, at random. Each tells the checker what it receives.

import { setTimeout as sleep } from 'node:timers/promises';

import { Client, Subscription, until, within } from '../integration/lib/client.mjs';
import { canonical } from '../integration/lib/json.mjs';
import { cacheTexts, Checker, describeTrack, Difference, readPosition, Track } from './checker.mjs';
import { Random } from './values.mjs';
import { ask } from './processes.mjs';
import { quote } from '../integration/lib/psql.mjs';

export const PATIENCE_MS = Number(process.env.PATIENCE ?? 120) * 1000;
export const LOST = /connection (is )?closed|connection ended|open: not within|answer to "connect": not within|ECONNREFUSED|ECONNRESET|socket hang up|WebSocket was closed|Unexpected server response: 503/;
// Nobody's fault: a policy or a lock that took too long on a busy machine.
export const TEMPORARY = new Set(['55P03', '57014', '53200']);

const CONNECT_MS = 10000;
const RAW = 80; // messages that are kept for reports

// What a client does now and then, and how long it waits and does not read, in ms.
const HABITS = {
  actions: { cut: 4, unsubscribe: 3, subscribe: 6, slow: 3, refresh: 2, identity: 1, sync: 3, again: 1, revoke: 0.5 },
  rest: [100, 2000],
  slow: [200, 2500],
};

/** Somebody who receives; the checker is told of it. */
export class Listener {
  client = null;
  busy = false;
  settled = true;
  doing = null; // the last action

  constructor(fleet, index, identity) {
    this.fleet = fleet;
    this.index = index;
    this.identity = identity;
    this.random = new Random(fleet.seed, `client ${index}`);
  }

  get who() {
    return `client ${this.index}`;
  }

  /** Before anything has come. */
  watch(client) {
    const tamper = this.fleet.tamper?.(this) ?? ((text) => [text]);
    const raw = []; // what came last, for reports
    client.raw = raw;
    client.tamper = (text) => {
      raw.push(text);
      if (raw.length > RAW) raw.shift();
      return tamper(text);
    };
    client.onTransaction = (frame) => this.#takeFrame(client, frame);
    client.onMessage = (message) => this.#takeMessage(client, message);
    client.socket.on('close', () => {
      try {
        client.check();
      } catch (error) {
        this.fleet.fail(error instanceof Difference ? error : this.#protocolError(client, error));
      }
    });
  }

  /** What the strict client does not accept, with what it had seen. */
  #protocolError(client, error) {
    const [, name] = error.message.match(/^channel "(.*?)": /) ?? [];
    const [, xid] = error.message.match(/\(txid (\d+)\)/) ?? [];
    const [, key] = error.message.match(/ of (\{.*?\})[, ]/) ?? [];
    const s = client.subscriptions.get(name);
    const id = () => [...(s.track.view.history.keys())].find((candidate) => key && candidate.endsWith(` ${key}`));
    return new Difference('protocol', `${this.who}, identity ${this.identity.name} ${JSON.stringify(this.identity.claims)}: ${error.stack}`,
      async () => (s ? describeTrack(this.fleet.model, s.track, this.fleet.model.recent.find((t) => t.xid === Number(xid))?.lsn ?? this.fleet.model.known, id()) : ''));
  }

  #readyTracks(client) {
    return [...client.subscriptions.values()].filter(({ state }) => state === 'ready').map(({ track }) => track);
  }

  #brief(message) {
    const lsn = message.position ? ` LSN ${readPosition(message.position).lsn}` : '';
    const { type, recovered, reason, snapshot, rows } = message;
    return `${type}${lsn} ${JSON.stringify({ recovered, reason, snapshot, rows: rows?.length })}`;
  }

  #takeFrame(client, frame) {
    const { lsn } = readPosition(frame.position);
    for (const s of client.subscriptions.values()) {
      const own = frame.changes.filter(({ channel }) => channel === s.name);
      if (own.length > 0) s.track.note(`transaction ${frame.txid} LSN ${lsn} ${JSON.stringify(own.map(({ op, key }) => [op, canonical(key)]))}`);
    }
    const channels = Checker.changes(frame, (name) => client.subscriptions.get(name).track);
    const catchingUp = frame.channel !== undefined;
    const full = [];
    for (const name of new Set(frame.changes.map(({ channel }) => channel))) {
      const s = client.subscriptions.get(name);
      // What is replayed counts: it can be resumed from there.
      if (catchingUp && s.recovered && s.resyncs.length === 0) s.position = frame.position;
      if (Checker.wantsFull(this.random)) full.push([s.track, cacheTexts(s)]);
    }
    this.fleet.checker.add(this, { kind: 'frame', lsn, xid: frame.txid, channels, tracks: catchingUp ? [] : this.#readyTracks(client).filter(({ paced }) => !paced), full });
    if (catchingUp) this.fleet.report.catchUpFrames += 1;
  }

  #takeMessage(client, message) {
    const { checker, report } = this.fleet;
    const s = client.subscriptions.get(message.channel);
    if (s) s.track.note(this.#brief(message));
    switch (message.type) {
      case 'subscribed':
        s.track.paced = message.min_interval_ms !== undefined;
        checker.add(this, { kind: 'shape', track: s.track, shape: Checker.shape(message.entities), lsn: 0 });
        if (s.resumedFrom) report.count('resumes', message.recovered ? 'recovered' : 'snapshot');
        if (message.recovered) checker.add(this, { kind: 'start', track: s.track, lsn: readPosition(s.resumedFrom).lsn });
        break;
      case 'snapshot': {
        const { key } = s.entities.get(message.entity);
        checker.addRows(s.track, s.track.since, message.rows.map((row) => [
          `${message.entity} ${canonical(Object.fromEntries(key.map((name) => [name, row[name]])))}`, canonical(row)]));
        report.snapshotPages += 1;
        break;
      }
      case 'columns':
        checker.add(this, { kind: s.state === 'ready' ? 'columns' : 'shape', track: s.track, shape: Checker.shape(message.entities), lsn: 0 });
        break;
      case 'ready':
        if (message.entities) {
          s.track.paced = s.paced;
          checker.add(this, { kind: 'shape', track: s.track, shape: Checker.shape(message.entities), lsn: 0 });
        }
        checker.add(this, { kind: 'ready', track: s.track, lsn: readPosition(message.position).lsn, texts: cacheTexts(s) });
        break;
      case 'resync':
        if (s.position !== null) s.track.since = Math.min(readPosition(s.position).lsn, this.fleet.model.visible);
        checker.add(this, { kind: 'stop', track: s.track, lsn: 0 });
        report.count('resyncs', message.reason);
        break;
      case 'revoked': {
        const { track } = client.subscriptionsEnded[client.subscriptionsEnded.length - 1];
        report.count('revoked', message.reason);
        if (message.reason === 'revoked' && client.isRevoked) {
          checker.add(this, { kind: 'stop', track, lsn: 0 });
          break;
        }
        if (TEMPORARY.has(message.code)) checker.add(this, { kind: 'stop', track, lsn: 0 });
        else checker.add(this, { kind: 'refused', track, since: track.since, message });
        this.dropped(message.channel);
        break;
      }
      case 'ping':
      case 'synced':
        if (message.position === undefined) break;
        checker.add(this, { kind: 'position', lsn: readPosition(message.position).lsn, tracks: this.#readyTracks(client) });
        break;
      default:
        this.taken(client, message);
    }
  }

  /** The subscription has been ended by the server. */
  dropped() {}

  /** Any other message. */
  taken() {}
}

/** A client over WebSocket. */
export class Member extends Listener {
  #held = new Map(); // by channel: what to resume from
  #wanted = new Set();
  #stopped = false;
  #switch = null; // a token with another identity is on its way
  #requests = 0;
  #running = null;
  #habits;

  constructor(fleet, index, identity) {
    super(fleet, index, identity);
    this.#habits = { ...HABITS, ...fleet.habits?.(index) };
    for (const name of this.random.sample([...fleet.channels.keys()], this.random.between(2, 5))) this.#wanted.add(name);
  }

  start() {
    this.#running = this.#run().catch((error) => this.fleet.fail(error));
  }

  async #run() {
    while (!this.#stopped) {
      if (!this.client || this.client.closed) {
        await this.#connect();
        continue;
      }
      await Promise.race([sleep(this.random.between(...this.#habits.rest)), this.client.ended]);
      if (this.client.closed) continue;
      if (this.#stopped || this.fleet.isQuiet) continue;
      this.busy = true;
      try {
        await this.#act();
      } catch (error) {
        // A violation is reported where its connection ends.
        if (!this.client.violation && (error instanceof Difference || !LOST.test(error.message))) throw error;
      } finally {
        this.busy = false;
      }
    }
  }

  async #connect() {
    const { report } = this.fleet;
    let client;
    try {
      client = await Client.connect({ token: this.fleet.token(this.identity, this.random), ms: CONNECT_MS, ...this.fleet.connection?.(this) });
    } catch (error) {
      if (TEMPORARY.has(error.code)) report.count('connections refused', error.code);
      else if (error.code || !(LOST.test(error.message) || error.code === 'ECONNREFUSED' || error.name === 'AggregateError')) {
        if (!['ECONNREFUSED', 'ECONNRESET'].includes(error.code)) throw error;
      }
      await sleep(this.random.between(50, 250));
      return;
    }
    report.connections += 1;
    this.watch(client);
    client.socket.on('close', () => {
      this.#switch = null;
      for (const [name, s] of client.subscriptions) {
        if (s.position !== null && s.exact) this.#held.set(name, { entities: s.entities, position: s.position });
      }
    });
    this.client = client;
    for (const name of this.#wanted) {
      await this.#subscribe(name).catch((error) => {
        if (!client.violation && !LOST.test(error.message)) throw error;
      });
    }
  }

  async #subscribe(name) {
    const { client } = this;
    const { model, checker, report } = this.fleet;
    const held = this.#held.get(name);
    const exact = held !== undefined || this.random.chance(0.95);
    const resume = held && this.random.chance(0.9);
    const channel = this.fleet.channels.get(name);
    const window = Boolean(channel.selection?.window);
    const track = new Track(model.view(this.identity, channel), { since: model.visible, exact: exact && !window, partial: exact && window, who: this.who });
    const since = model.visible;
    this.#wanted.add(name);
    if (client.closed || client.subscriptions.has(name)) return;
    this.#held.delete(name);
    const answered = client.subscribe(name, {
      ms: PATIENCE_MS, ...(resume ? { from: held.position, cache: held } : {}), ...(!exact && { snapshot: false }),
    });
    const subscription = client.subscriptions.get(name);
    if (subscription) {
      subscription.track = track;
      if (window) subscription.exact = false;
      track.raw = client.raw;
      track.note(`subscribe ${resume ? `from LSN ${readPosition(held.position).lsn}` : exact ? '' : 'without snapshot'}`);
      subscription.resumedFrom = resume ? held.position : null;
      subscription.end = (message) => {
        if (message.type === 'unsubscribed' && subscription.position !== null && subscription.exact) {
          this.#held.set(name, { entities: subscription.entities, position: subscription.position });
        }
        Subscription.prototype.end.call(subscription, message);
      };
    }
    try {
      await answered;
    } catch (error) {
      // What was held is still good.
      if (held && client.closed) this.#held.set(name, held);
      if (!error.code) throw error;
      if (['42501', '42704'].includes(error.code)) {
        checker.add(this, { kind: 'refused', track, since, message: error.reply });
        this.#wanted.delete(name);
      } else if (!TEMPORARY.has(error.code)) {
        throw new Difference('error', `${this.who}: subscription to ${name}: ${error.message}`);
      }
      report.count('subscriptions refused', error.code);
    }
  }

  dropped(name) {
    this.#wanted.delete(name);
  }

  taken(client, { type, id }) {
    if (type === 'ok' && this.#switch && id === this.#switch.id) this.#switched(client);
  }

  /** From here on everything is for the new identity. */
  #switched(client) {
    const { model } = this.fleet;
    this.identity = this.#switch.identity;
    for (const s of client.subscriptions.values()) {
      const { shape, who, exact, partial, paced } = s.track;
      s.track = new Track(model.view(this.identity, s.track.view.channel), { since: this.#switch.since, who, exact, partial });
      s.track.shape = shape;
      s.track.paced = paced;
      s.track.raw = client.raw;
      s.track.note('switched to another identity');
      s.position = null;
    }
    this.#held.clear();
    this.#switch = null;
  }

  async #act() {
    const { client } = this;
    const { fleet } = this;
    const { random } = this;
    const name = random.pick([...fleet.channels.keys()]);
    const own = random.pick([...client.subscriptions.keys()]);
    const action = random.weighted(Object.entries(this.#habits.actions).map(([what, weight]) => [weight, what]));
    fleet.report.count('actions', action);
    this.doing = action;
    switch (action) {
      case 'cut':
        await client.cut();
        if (random.chance(0.3)) await sleep(random.int(1500));
        break;
      case 'again': // comes back as somebody else, with positions that are not his
        await client.cut();
        this.identity = random.pick(fleet.identities);
        break;
      case 'revoke':
        client.isRevoked = true;
        // The server may be away.
        if (await ask(`SELECT changefeed.revoke(session => ${quote(client.connected.session)})`) === null) break;
        await within(PATIENCE_MS, client.ended, `${this.who}: end of a session that was revoked`);
        break;
      case 'unsubscribe':
        if (own === undefined || client.subscriptions.get(own).state === 'new') break;
        this.#wanted.delete(own);
        await client.unsubscribe(own).catch((error) => {
          if (error.code !== '42704') throw error; // it was revoked at the same time
        });
        break;
      case 'subscribe':
        if (client.subscriptions.size < 7) await this.#subscribe(name);
        break;
      case 'slow':
        client.socket.pause();
        for (const end = Date.now() + random.between(...this.#habits.slow); Date.now() < end && !client.closed && !fleet.isQuiet;) await sleep(20);
        client.socket.resume();
        break;
      case 'refresh':
        if (this.identity.claims) await client.request('token', { token: fleet.token(this.identity, random) }, { ms: PATIENCE_MS });
        break;
      case 'identity': {
        const identity = random.pick(fleet.identities.filter(({ claims }) => claims));
        // Two may have the same claims, and are one to the server.
        if (JSON.stringify(identity.claims) === JSON.stringify(this.identity.claims)) break;
        this.#requests += 1;
        this.#switch = { id: `switch ${this.#requests}`, identity, since: fleet.model.visible };
        await client.request('token', { token: fleet.token(identity, random) }, { id: this.#switch.id, ms: PATIENCE_MS });
        break;
      }
      case 'sync':
        await client.sync(PATIENCE_MS);
        break;
      default:
    }
  }

  /** For reports: one that does not get on. */
  describe() {
    if (this.settled) return '';
    const lines = [...(this.client?.subscriptions.values() ?? [])].map((s) => `    ${s.name}: ${s.state}, ${s.resyncs.length} resyncs\n      ${s.track?.log.slice(-6).join('\n      ')}`);
    return `  ${this.who}, ${this.identity.name}, ${this.doing}, ${this.client?.closed ? 'closed' : `bytes read ${this.client?.socket._socket?.bytesRead}, paused ${this.client?.socket.isPaused}`}\n${lines.join('\n')}`;
  }

  /** Positions from which it may come back. */
  heldPositions(forget) {
    if (forget) this.#held.clear();
    return [...this.#held.values(), ...(this.client?.subscriptions.values() ?? [])].map(({ position }) => position).filter((position) => position !== null);
  }

  /** Connected, everything delivered, all ready. */
  async settle() {
    this.settled = false;
    await this.#settle();
    this.settled = true;
  }

  async #settle() {
    await until(async () => {
      this.fleet.check();
      if (this.busy || !this.client || this.client.closed) return false;
      const { client } = this;
      try {
        await client.settle(PATIENCE_MS);
        return !client.closed;
      } catch (error) {
        if (!client.violation && !LOST.test(error.message) && !client.closed) throw error;
        return false;
      }
    }, () => `${this.who} settles`, PATIENCE_MS);
  }

  async stop() {
    this.#stopped = true;
    if (this.client) await this.client.cut();
    await this.#running;
  }
}

export class Fleet {
  members = [];
  isQuiet = false;
  failure = null;
  tamper = null;

  /**
   * What not all tests want: `habits(index)` of a client, `connection(member)`: options of its connections,
   * `member(fleet, index, identity)`: somebody else than a Member, or nothing.
   */
  constructor({ seed, model, checker, report, identities, channels, tokens, count, habits, connection, member }) {
    Object.assign(this, { seed, model, checker, report, identities, channels, tokens, habits, connection });
    for (let i = 0; i < count; i += 1) {
      const identity = identities[i % identities.length];
      this.members.push(member?.(this, i, identity) ?? new Member(this, i, identity));
    }
  }

  start() {
    for (const member of this.members) member.start();
  }

  /** undefined for the anonymous. */
  token(identity, random) {
    return identity.claims ? random.pick(this.tokens.get(identity)) : undefined;
  }

  fail(error) {
    this.failure ??= error;
  }

  check() {
    if (this.failure) throw this.failure;
  }

  /** Nobody does anything; all are connected and have everything. */
  async quiet() {
    this.isQuiet = true;
    await Promise.all(this.members.map((member) => member.settle()));
    this.check();
  }

  describe() {
    return this.members.map((member) => member.describe()).filter(Boolean).join('\n');
  }

  resume() {
    this.isQuiet = false;
  }

  async stop() {
    await Promise.all(this.members.map((member) => member.stop()));
  }
}
