/**
 * One channel of a client: its state, its rows, and its handles.
 *
 * Everybody who asks for the same name shares one `Feed`; each gets a handle of its own, so that `unsubscribe` ends only what
 * belongs to it. The client (client.ts) gives the feed what the server says of its channel, in the order in which it came.
 */
import { createCache } from './cache.js';
import { ChangefeedError } from './error.js';
import type { AnyRow, Change, Channel, ChannelOptions, ChannelState, Message, Transaction, WaitOptions } from './types.js';
import { createEmitter } from './util.js';
import type { Core } from './client.js';

export interface Snapshot {
  xmin: string;
  xmax: string;
  xip: string[];
}

export type Feed = ReturnType<typeof createFeed>;

/** Is the transaction one of those that the snapshot contains? */
const contains = (snapshot: Snapshot, txid: string): boolean => {
  const id = BigInt(txid);
  return id < BigInt(snapshot.xmin) || (id < BigInt(snapshot.xmax) && !snapshot.xip.includes(txid));
};

export const createFeed = (core: Core, name: string, first: ChannelOptions) => {
  const options = { ...first };
  const cache = createCache(name, core.codec);
  const events = createEmitter();
  const pending = new Map<string, Change>();
  let state: ChannelState = 'subscribing';
  let error: ChangefeedError | null = null;
  let position: string | null = null;
  let initial = options.initial;
  let raw: Readonly<Record<string, readonly AnyRow[]>> | null = null;
  let reset = false;
  let touched = false;
  let resolve!: () => void;
  let reject!: (error: Error) => void;
  let ready!: Promise<void>;
  let snapshot: Snapshot | null = null;
  let seen: string[] = [];
  let handles = 0;
  let members: AnyRow | null = null;

  const renewReady = () => {
    ready = new Promise((yes, no) => {
      resolve = yes;
      reject = no;
    });
    ready.catch(() => {});
  };
  renewReady();

  const touch = () => {
    touched = true;
    core.flush();
  };
  const setState = (next: ChannelState) => {
    if (state === next) return;
    state = next;
    if (next === 'live') resolve();
    events.emit('state', next);
    touch();
  };
  const drop = () => {
    cache.clear();
    cache.renew();
    pending.clear();
    raw = null;
    initial = undefined;
    position = null;
    snapshot = null;
    members = null;
    reset = true;
    touch();
  };

  const self = {
    name,
    cache,
    events,
    /** Does the connection know it, and is it exact? Then positions of the connection are its own, unless it is paced. */
    live: false,
    paced: false,
    asked: false,
    attempts: 0,
    state: () => state,
    position: () => position,
    /** What is collected aside has no position to come back with. */
    setPosition(next: string | null | undefined) {
      if (next && !cache.staging()) position = next;
    },
    handles: () => handles,
    /** Somebody else asks for it, and may want more than those before. True if it has to be asked for again. */
    extend({ snapshot: wanted, versions, initial: given }: ChannelOptions): boolean {
      const rows = options.snapshot === false && wanted !== false;
      const more = rows || (versions === true && !options.versions);
      if (rows) {
        delete options.snapshot;
        drop();
      }
      if (versions) options.versions = true;
      if (state === 'error' || state === 'closed') return false;
      if (given && !raw && !cache.filled) {
        if (rows || !self.asked) initial = given;
        raw = given.rows as unknown as typeof raw;
        setState('stale');
        touch();
      }
      return more && self.asked;
    },
    /** What `subscribe` has beside the name. */
    request(): AnyRow {
      if (initial && !position) position = initial.position ?? null;
      if (initial) raw = initial.rows as typeof raw;
      return {
        channel: name,
        ...(position ? { from: position } : options.snapshot === false ? { snapshot: false } : {}),
        ...(options.versions && { versions: true }),
      };
    },
    lost() {
      self.live = self.asked = false;
      members = null;
      if (state === 'live') setState('stale');
    },
    fail(failure: ChangefeedError) {
      self.live = self.asked = false;
      drop();
      error = failure;
      reject(failure);
      setState('error');
      events.emit('error', failure);
    },
    purge() {
      self.live = false;
      drop();
      if (state !== 'closed' && state !== 'error') setState('subscribing');
    },
    /** Who was refused may try again. */
    revive() {
      if (state !== 'error') return;
      renewReady();
      error = null;
      self.attempts = 0;
      setState('subscribing');
    },

    subscribed(message: AnyRow) {
      cache.entities = message.entities ?? {};
      self.paced = message.min_interval_ms !== undefined;
      self.attempts = 0;
      // Rows that came another way can be put in place now that their keys are known.
      if (raw && message.recovered) {
        for (const [entity, rows] of Object.entries(raw)) cache.add(entity, rows as AnyRow[]);
        cache.swap();
      }
      if (message.recovered || options.snapshot === false) cache.filled = true;
      else cache.stage();
      initial = undefined;
    },
    rows(message: AnyRow) {
      cache.add(message.entity, message.rows, message.versions);
    },
    /** Applies what a transaction did to this channel. */
    change(changes: AnyRow[], txid: string | null): Change[] {
      const done = cache.apply(changes, txid);
      // Nobody sees them before `ready`.
      if (cache.staging()) return [];
      for (const change of done) {
        const at = core.codec.stringify([change.entity, change.key]);
        const before = pending.get(at);
        let next: Change = change;
        if (before && change.op === 'append' && before.op === 'remove') next = { ...change, op: 'replace' };
        else if (before && change.op === 'merge' && before.op !== 'remove') {
          next = before.op === 'merge'
            ? { ...change, set: { ...before.set, ...change.set } }
            : { ...before, row: change.row };
        }
        pending.set(at, next);
      }
      if (done.length) touch();
      return done;
    },
    transaction(message: AnyRow, changes: Change[]) {
      if (message.txid) seen = [...seen.slice(-99), message.txid];
      if (changes.length) {
        events.emit('transaction', {
          phase: self.live ? 'live' : 'replay', txid: message.txid ?? null, position: message.position ?? null,
          committedAt: message.committed_at ?? null, changes,
        } satisfies Transaction);
      }
    },
    ready(message: AnyRow) {
      if (message.entities) cache.entities = message.entities;
      if (message.snapshot) {
        snapshot = message.snapshot;
        seen = [];
        raw = null;
        cache.swap();
        pending.clear();
        reset = true;
      }
      self.live = true;
      self.setPosition(message.position);
      setState('live');
      touch();
      if (message.snapshot) events.emit('snapshot');
    },
    resync(reason: string) {
      self.live = false;
      position = null;
      // Another identity's rows are not shown any longer than they have to be.
      if (reason === 'identity_changed') drop();
      if (options.snapshot !== false) cache.stage();
      else {
        // What has changed meanwhile is not told.
        drop();
        cache.filled = true;
      }
      setState(cache.filled || raw ? 'stale' : 'subscribing');
      events.emit('resync', reason);
    },
    message(message: AnyRow) {
      const told: Message = {
        channel: message.instance ?? message.channel, event: message.event, payload: message.payload, from: message.from ?? null,
        txid: message.txid ?? null, committedAt: message.committed_at ?? null,
      };
      events.emit('message', told);
      events.emit(`message ${message.event}`, told.payload, told);
    },
    /** The server says the whole list only once; who asks later gets it from here. */
    presence(message: AnyRow) {
      if (message.full || message.count !== undefined || !members) members = { ...message, joined: {}, meta: {}, full: true };
      for (const user in message.left) delete members.joined[user];
      for (const user in message.joined) delete members.meta[user];
      Object.assign(members.joined, message.joined);
      Object.assign(members.meta, message.meta);
      members.more = message.more;
      events.emit('presence', message);
    },
    /** Is it known that the transaction is in the rows, or has no part in them? */
    knows: (txid: string, settled: bigint): boolean =>
      self.live && (seen.includes(txid) || BigInt(txid) < settled || (snapshot !== null && contains(snapshot, txid))),

    flush() {
      if (!touched) return;
      touched = false;
      cache.renew();
      const changes = [...pending.values()];
      const all = reset;
      pending.clear();
      reset = false;
      if (all || changes.length) events.emit('change', { reset: all, changes: all ? [] : changes });
      events.emit('flush');
    },
    close() {
      drop();
      setState('closed');
      reject(new ChangefeedError('closed', `channel "${name}" was closed`, { channel: name }));
      self.flush();
    },

    handle(): Channel {
      const own: (() => void)[] = [];
      let open = true;
      const on = (event: string, listener: (...values: never[]) => void) => {
        const off = events.on(event, listener as () => void);
        own.push(off);
        const list = event === 'presence' && members && { ...members, left: {} };
        if (list) (listener as (message: AnyRow) => void)(list);
        return off;
      };
      handles += 1;
      const timer = options.refreshMs ? setInterval(() => core.refresh(self), options.refreshMs) : undefined;
      return {
        name,
        get state() {
          return open ? state : 'closed';
        },
        get error() {
          return error;
        },
        get position() {
          return position;
        },
        get entities() {
          return cache.entities;
        },
        get ready() {
          return ready;
        },
        rows: (entity?: string) => (raw && !cache.filled ? raw[entity ?? Object.keys(raw)[0] ?? ''] ?? [] : cache.rows(entity)) as never,
        get(key: AnyRow, entity?: string) {
          const found = cache.find(key, entity);
          core.counted(found !== undefined);
          return found?.row as never;
        },
        version: (key: AnyRow, entity?: string) => cache.find(key, entity)?.version ?? undefined,
        subscribe: (listener) => on('flush', listener),
        on: on as Channel['on'],
        message: (event, listener) => on(`message ${event}`, listener as () => void),
        publish: (event, payload, how) => core.publish(name.split('?', 1)[0]!, event, payload, how),
        seen: (txid: string, how?: WaitOptions) => core.wait(() => self.knows(txid, core.settled()), `transaction ${txid} did not come`, how),
        refresh: () => core.refresh(self),
        dump: () => ({
          rows: cache.filled ? Object.fromEntries(Object.keys(cache.entities).map((entity) => [entity, cache.rows(entity)])) : raw ?? {},
          position,
        }),
        unsubscribe() {
          if (!open) return;
          open = false;
          clearInterval(timer);
          own.forEach((off) => off());
          handles -= 1;
          if (handles === 0) core.unused(self);
        },
      } as Channel;
    },
  };
  if (initial) {
    raw = initial.rows as Readonly<Record<string, readonly AnyRow[]>>;
    position = initial.position ?? null;
    state = 'stale';
  }
  return self;
};
