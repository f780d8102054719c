/**
 * One channel of a client: its state, its rows, and its handles.
 *
 * Everybody who asks for the same name shares one `Feed`; each gets a handle of its own, so that `unsubscribe` ends only what
 * belongs to it. The client (client.ts) gives the feed what the server says of its channel, in the order in which it came.
 */
import { createCache } from './cache.js';
import { ChangefeedError } from './error.js';
import type {
  AnyRow, Change, Channel, ChannelOptions, ChannelState, Codec, Initial, Message, WaitOptions,
} from './types.js';
import { createEmitter, createTimer } from './util.js';

/** What feeds need of their client. */
export interface Core {
  _codec: Codec;
  _flush(): void;
  _debug(event: string): void;
  /** Has everything up to the transaction come over this connection, or the transaction itself? */
  _passed(txid: string, paced: boolean): boolean;
  _publish(channel: string, event: string, payload: unknown, options?: { echo?: boolean }): Promise<void>;
  _wait(check: () => boolean, what: string, options?: WaitOptions): Promise<unknown>;
  _refresh(feed: Feed): void;
  _unused(feed: Feed): void;
}

export type Feed = ReturnType<typeof createFeed>;

interface Snapshot {
  xmin: string;
  xmax: string;
  xip: string[];
}

export const createFeed = (core: Core, name: string, options: ChannelOptions) => {
  const cache = createCache(name, core._codec);
  const { on, emit } = createEmitter();
  let { snapshot: whole, versions, initial } = options;
  let error: ChangefeedError | null = null;
  /** Rows that came another way, until their keys are known. */
  let raw = initial;
  let position = initial?.position ?? null;
  let snapshot: Snapshot | null = null;
  let reset = false;
  let touched = false;
  let handles = 0;
  let ends!: [resolve: () => void, reject: (error: Error) => void];
  let ready!: Promise<void>;

  const renewReady = () => {
    ready = new Promise((...both) => {
      ends = both;
    });
    ready.catch(() => {});
  };
  renewReady();

  const touch = () => {
    touched = true;
    core._flush();
  };
  const setState = (next: ChannelState) => {
    if (self._state === next) return;
    self._state = next;
    if (next === 'live') ends[0]();
    emit('state', next);
    touch();
  };
  /** No rows any more, and no position. */
  const drop = () => {
    cache._clear();
    raw = undefined;
    position = snapshot = null;
    reset = true;
    touch();
  };
  const end = (next: ChannelState, failure: ChangefeedError) => {
    self._lost();
    drop();
    ends[1](failure);
    setState(next);
  };

  const self = {
    _name: name,
    _cache: cache,
    _emit: emit,
    /** The id of the request to subscribe, once it is made. */
    _asked: 0,
    /** Was it answered? What comes before is of another subscription. */
    _on: false,
    /** Is it exact? Then positions of the connection are its own, unless it is paced. */
    _live: false,
    _paced: false,
    /** A time to wait before it is asked for again. */
    _waits: false,
    _attempts: 0,
    /** The time until it ends, when nobody has a handle any more. */
    _linger: createTimer(),
    /** The transactions of frames that were for this channel only. */
    _seen: [] as string[],
    _state: (initial ? 'stale' : 'subscribing') as ChannelState,
    _position: () => position,
    /** What is collected aside has no position to come back with. */
    _setPosition(next: string | null | undefined) {
      if (next && !cache._staging()) position = next;
    },

    /** What `subscribe` has. */
    _request: () => ({
      channel: name,
      ...(position && !(raw && versions && !raw.versions) ? { from: position } : whole === false && { snapshot: false }),
      ...(versions && { versions: true }),
    }),
    _lost() {
      self._on = self._live = self._waits = false;
      self._asked = 0;
      cache._stage(false);
      if (self._state === 'live') setState('stale');
    },
    _fail(failure: ChangefeedError) {
      error = failure;
      end('error', failure);
      emit('error', failure);
    },
    _purge() {
      self._live = false;
      drop();
      if (self._state === 'stale' || self._state === 'live') setState('subscribing');
    },
    /** Who was refused may try again. */
    _revive() {
      if (self._state !== 'error') return;
      renewReady();
      error = null;
      setState('subscribing');
    },
    /** Does the one who asks with these options need more than was asked for? Rows that he has are shown until there are others. */
    _needs({ snapshot: rows, versions: theirs, initial: given }: ChannelOptions) {
      const more = (whole === false && rows !== false) || (!versions && theirs);
      versions ||= theirs;
      if (whole === false && rows !== false) {
        whole = true;
        renewReady();
        self._purge();
      }
      if (given && !raw && !cache._filled && self._state !== 'error') {
        raw = given;
        if (!self._asked) position = given.position ?? null;
        setState('stale');
      }
      // Before it is asked for there is nothing to ask for again.
      return more && self._asked;
    },

    _subscribed(message: AnyRow) {
      self._on = true;
      self.columns(message);
      self._paced = message.min_interval_ms !== undefined;
      if (raw && message.recovered) {
        for (const entity in raw.rows) cache._add(entity, raw.rows[entity] as AnyRow[], raw.versions?.[entity] as string[]);
        raw = undefined;
        cache._swap();
      } else if (message.recovered || whole === false) cache._filled = true;
      else cache._stage(true);
    },
    snapshot: (message: AnyRow) => cache._add(message.entity, message.rows, message.versions),
    columns({ entities }: AnyRow) {
      cache._entities = entities;
    },
    presence: (message: AnyRow) => emit('presence', message),
    /** Applies what a transaction did to this channel. */
    _change(changes: AnyRow[], txid: string | null): Change[] {
      const done = cache._apply(changes, txid);
      // Nobody sees them before `ready`.
      if (cache._staging()) return [];
      touch();
      return done;
    },
    ready(message: AnyRow) {
      if (message.entities) self.columns(message);
      if (message.snapshot) {
        snapshot = message.snapshot;
        self._seen = [];
        raw = undefined;
        cache._swap();
        reset = true;
      }
      self._live = true;
      self._setPosition(message.position);
      setState('live');
      touch();
      if (message.snapshot) emit('snapshot');
    },
    resync({ reason }: AnyRow) {
      self._live = false;
      position = null;
      // Without rows to come, what has changed meanwhile is not told. Another identity's are not shown any longer than they have to be.
      if (whole === false || reason === 'identity_changed') drop();
      if (whole === false) cache._filled = true;
      else cache._stage(true);
      setState(cache._filled || raw ? 'stale' : 'subscribing');
      emit('resync', reason);
    },
    message({ channel, instance, event, payload, from = null, txid = null, committed_at: committedAt = null }: AnyRow) {
      const told: Message = { channel: instance ?? channel, event, payload, from, txid, committedAt };
      emit('message', told);
      emit(`message ${event}`, payload, told);
    },
    /** Is it known that the transaction is in the rows, or has no part in them? */
    _knows(txid: string) {
      const id = BigInt(txid);
      return self._live && (self._seen.includes(txid) || core._passed(txid, self._paced)
        || (snapshot !== null && (id < BigInt(snapshot.xmin) || (id < BigInt(snapshot.xmax) && !snapshot.xip.includes(txid)))));
    },

    _flush() {
      if (!touched) return;
      const changes = cache._flush();
      const all = reset;
      touched = reset = false;
      if (all || changes.length) emit('change', { reset: all, changes: all ? [] : changes });
      emit('flush');
    },
    _close() {
      self._linger();
      end('closed', new ChangefeedError('closed', 'closed'));
      self._flush();
    },

    _dump(): Initial {
      if (!cache._filled) return { rows: {}, ...raw, position };
      const all = { rows: {} as AnyRow, position, ...(versions && { versions: {} as AnyRow }) };
      for (const entity in cache._entities) {
        all.rows[entity] = cache._rows(entity);
        if (all.versions) all.versions[entity] = cache._versions(entity);
      }
      return all;
    },

    _handle(): Channel {
      const own: (() => void)[] = [];
      let open = true;
      const listen = (event: string, listener: (...values: never[]) => void) => {
        const off = on(event, listener as () => void);
        own.push(off);
        return off;
      };
      handles += 1;
      return {
        name,
        get state() {
          return open ? self._state : 'closed';
        },
        get error() {
          return error;
        },
        get position() {
          return position;
        },
        get entities() {
          return cache._entities;
        },
        get ready() {
          return ready;
        },
        rows: (entity?: string) => (raw && !cache._filled ? raw.rows[entity ?? Object.keys(raw.rows)[0] ?? ''] ?? [] : cache._rows(entity)) as never,
        get(key: AnyRow, entity?: string) {
          const found = cache._find(key, entity);
          core._debug(found ? 'hit' : 'miss');
          return found?._row as never;
        },
        version: (key: AnyRow, entity?: string) => cache._find(key, entity)?._version ?? undefined,
        subscribe: (listener) => listen('flush', listener),
        on: listen as Channel['on'],
        message: (event, listener) => listen(`message ${event}`, listener as () => void),
        publish: (event, payload, how) => core._publish(name.split('?', 1)[0]!, event, payload, how),
        seen: async (txid: string, how?: WaitOptions) => {
          await core._wait(() => self._knows(txid), `transaction ${txid}`, how);
        },
        refresh: () => core._refresh(self),
        dump: self._dump,
        unsubscribe() {
          if (!open) return;
          open = false;
          own.forEach((off) => off());
          handles -= 1;
          if (handles === 0) core._unused(self);
        },
      } as Channel;
    },
  };
  return self;
};
