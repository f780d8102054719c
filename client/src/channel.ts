/**
 * One channel of a client: its state, its rows, and its handles.
 *
 * Everybody who asks for the same name shares one `Feed`; each gets a handle of its own, so that `unsubscribe` ends only what
 * belongs to it. The client (client.ts) gives the feed what the server says of its channel, in the order in which it came.
 *
 * Rows are kept by entity and by the text of their key. Those of a snapshot are collected aside and take the place of
 * the others at `ready`. Row objects are never changed: whoever holds one holds what was, and can compare by identity.
 *
 * Members that begin with "_" are internal to the core, and have other names when it is built.
 */
import { ChangefeedError } from './error.js';
import type { AnyRow, Change, Channel, ChannelOptions, ChannelState, Client, Codec, EntityInfo, Initial, Message, WaitOptions } from './types.js';
import { createEmitter, createTimer } from './util.js';

export type Feed = ReturnType<typeof createFeed>;

/** A row, the entity that it is of, and its version. */
type Kept = [row: AnyRow, entity: string, version: string | null | undefined];

/** Would a parser that makes doubles of numbers have given the same for another key? */
const isExact = (value: unknown): boolean =>
  typeof value === 'number'
    ? Number.isSafeInteger(value) || (Math.abs(value) < 1e15 && String(value).length < 17)
    : typeof value !== 'object' || Object.values(value ?? 0).every(isExact);

/** Without what every object has. */
const own = (values?: Initial['rows']) => ({ __proto__: null, ...values } as unknown as Record<string, readonly object[] | undefined>);

/** What two changes of one row are together. */
const together = (before: Change | undefined, change: Change): Change => {
  const op = before?.op;
  if (!op || change.op === 'remove') return change;
  if (op === 'merge') return change.op === op ? { ...change, set: { ...before.set, ...change.set } } : change;
  return { ...change, op: op === 'remove' ? 'replace' : op } as Change;
};

export const createFeed = (
  channel: string,
  options: ChannelOptions,
  codec: Codec,
  /** Rows or the state have changed. */
  changed: () => void,
  /** To the client's listeners. */
  tell: (event: string, what?: unknown) => void,
  /** Resolves when the check comes true. */
  wait: (nothing: AnyRow, how: WaitOptions & { _check(): boolean }) => Promise<unknown>,
  publish: (...args: Parameters<Client['publish']>) => Promise<unknown>,
  refresh: () => void,
  /** Nobody has a handle any more. */
  unused: () => void,
) => {
  const { on, emit } = createEmitter();
  let { versions } = options;
  /** Changes only, without rows to begin with. */
  let bare = options.snapshot === false;
  /** Rows that came another way, until their keys are known. */
  let raw = options.initial;
  let position = raw?.position ?? null;
  let error: ChangefeedError | null = null;
  let entities: Record<string, EntityInfo> = {};
  let rows = new Map<string, Kept>();
  /** Those that are being collected aside. */
  let staged: typeof rows | null = null;
  /** Are there rows, or is it known that there are none? */
  let filled = false;
  /** What `rows()` gave, until something changes. */
  let arrays = own(raw?.rows);
  let pending = new Map<string, Change>();
  let reset = false;
  let touched = false;
  let handles = 0;
  /** The last transactions that have come; what was visible to the snapshot; and before which one all have come. */
  let seen: string[] = [];
  let visible: AnyRow = { xmax: 0, xip: [] };
  let settled: AnyRow[string] = 0;
  let ends!: [resolve: () => void, reject: (error: Error) => void];
  let ready!: Promise<void>;

  // ---- Rows ----

  /** Of a key, or of a row with its key. */
  const text = (entity: string, row: AnyRow): string =>
    entity + codec.stringify(entities[entity]!.key.map((name) => {
      if (!isExact(row[name])) {
        throw new ChangefeedError('no_exact_number', 'use pg-changefeed/lossless', { channel });
      }
      return row[name];
    }));
  const add = (entity: string, added: readonly object[], its?: Initial['versions'] extends infer V | undefined ? V[keyof V] : never) =>
    added.forEach((row, i) => (staged ?? rows).set(text(entity, row), [row, entity, its?.[i]]));
  /** All rows are others now. */
  const renew = (next: typeof rows, has: boolean) => {
    rows = next;
    raw = undefined;
    staged = null;
    arrays = own();
    pending = new Map();
    filled = has;
    reset = true;
    touch();
  };
  /** What comes is collected aside, unless it is known to be the rest of what is there. */
  const collect = (rest: boolean) => {
    staged = rest ? null : new Map();
    filled ||= rest;
  };
  const list = <I extends 0 | 2>(which: string, part: I) => {
    const found: Kept[I][] = [];
    for (const kept of rows.values()) if (kept[1] === which) found.push(kept[part]);
    return found;
  };
  const main = () => Object.keys(raw?.rows ?? entities)[0]!;
  const rowsOf = (entity?: string): readonly object[] => (arrays[(entity ??= main())] ??= list(entity, 0));
  const find = (key: AnyRow, entity?: string) => (entities[(entity ??= main())] && rows.get(text(entity, key))) as Kept | undefined;

  // ---- State ----

  const renewReady = () => {
    ready = new Promise((...both) => {
      ends = both;
    });
    ready.catch(() => {});
  };
  const touch = () => {
    touched = true;
    changed();
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
    position = null;
    renew(new Map(), false);
  };
  const end = (next: ChannelState, failure: ChangefeedError) => {
    self._lost();
    drop();
    ends[1](failure);
    setState(next);
    self._flush();
  };
  const learn = (message: AnyRow) => {
    entities = message.entities ?? entities;
  };

  const self = {
    _name: channel,
    _emit: emit,
    /** The id of the request to subscribe, once it is made. */
    _asked: 0,
    /** Was it answered? What comes before is of another subscription. */
    _on: false,
    /** Positions of the connection are not its own. */
    _paced: false,
    /** A time to wait before it is asked for again. */
    _waits: false,
    _attempts: 0,
    /** The time until it ends, when nobody has a handle any more. */
    _linger: createTimer(),
    _state: (raw ? 'stale' : 'subscribing') as ChannelState,
    _size: () => rows.size,
    _position: () => position,
    /** What is collected aside has no position to come back with. */
    _moved(next: string | false | null | undefined, txid?: string | null) {
      if (next && self._on && !staged) position = next;
      if (txid && seen.push(txid) > 99) seen.shift();
    },
    /** All transactions before that one have come, or never will. */
    _settled(txid: string | undefined) {
      settled = txid ?? settled;
      if (self._state === 'live') self._attempts = 0;
    },

    /** What `subscribe` has. */
    _request: () => ({
      channel,
      ...(position && !(raw && versions && !raw.versions) ? { from: position } : bare && { snapshot: false }),
      versions,
    }),
    _lost() {
      self._on = self._waits = false;
      self._asked = 0;
      staged = null;
      settled = 0;
      if (self._state === 'live') setState('stale');
    },
    _fail(failure: ChangefeedError) {
      error = failure;
      end('error', failure);
      emit('error', failure);
    },
    _purge() {
      drop();
      if (self._state !== 'error') setState('subscribing');
    },
    /** Who was refused may try again. */
    _revive() {
      if (self._state !== 'error') return;
      renewReady();
      error = null;
      setState('subscribing');
    },
    /** Does the one who asks with these options need more than was asked for? Rows that he has are shown until there are others. */
    _needs({ snapshot, versions: theirs, initial }: ChannelOptions) {
      const whole = bare && snapshot !== false;
      const more = whole || (!versions && theirs);
      versions ||= theirs;
      if (whole) {
        bare = false;
        if (self._state !== 'error') renewReady();
        self._purge();
      }
      if (initial && !raw && !filled && self._state !== 'error') {
        raw = initial;
        arrays = own(initial.rows);
        if (!self._asked) position = initial.position ?? null;
        setState('stale');
      }
      // Before it is asked for there is nothing to ask for again.
      return more && self._asked;
    },

    _subscribed(message: AnyRow) {
      self._on = true;
      learn(message);
      self._paced = message.min_interval_ms !== undefined;
      collect(message.recovered || bare);
      if (raw && message.recovered) {
        for (const entity in raw.rows) add(entity, raw.rows[entity]!, raw.versions?.[entity]);
        raw = undefined;
        arrays = own();
      }
    },
    _resync(reason: string) {
      const another = reason === 'identity_changed';
      // Without rows to come, what has changed meanwhile is not told. Another identity's are not shown any longer than they have to be.
      if (bare || another) drop();
      position = null;
      // Elsewhere, or behind a restore, numbers of transactions may come again.
      seen = [];
      collect(bare);
      setState(filled || raw ? 'stale' : 'subscribing');
      emit('resync', reason);
      // Who keeps rows elsewhere has to let go of them as well.
      if (another) tell('purge', reason);
    },
    /** By the type of the message. */
    _take: {
      snapshot: ({ entity, rows: added, versions: its }: AnyRow) => add(entity, added, its),
      columns: learn,
      presence: (message: AnyRow) => emit('presence', message),
      ready(message: AnyRow) {
        learn(message);
        if (message.snapshot) {
          visible = message.snapshot;
          renew(staged ?? rows, true);
        }
        self._moved(message.position);
        setState('live');
        touch();
        if (message.snapshot) emit('snapshot');
      },
      resync: ({ reason }: AnyRow) => self._resync(reason),
      message({ channel: name, instance, event, payload, from = null, txid = null, committed_at: committedAt = null }: AnyRow) {
        const told: Message = { channel: instance ?? name, event, payload, from, txid, committedAt };
        emit('message', told);
        emit(`message ${event}`, payload, told);
      },
    } as Record<string, (message: AnyRow) => void>,
    /** Applies what a transaction did to this channel, all or nothing. Throws if it does not fit what is there. */
    _change(changes: AnyRow[], txid: string | null): Change[] {
      const map = staged ?? rows;
      const places = changes.map(({ entity, op, key, set }) => {
        const at = text(entity, key);
        // A merge may bring a whole row; half a row would be a wrong one.
        if (op === 'merge' && !map.has(at) && entities[entity]!.columns.some((column) => !(column in set) && !(column in key))) {
          throw new ChangefeedError('inconsistent', channel, { channel });
        }
        return at;
      });
      const done = changes.map((said, i) => {
        let change = said;
        const { entity, op, version } = change;
        const at = places[i]!;
        const [row, , was] = map.get(at) ?? [];
        if (op === 'merge') change = { ...change, row: { ...row ?? change.key, ...change.set } };
        if (op === 'remove') map.delete(at);
        else map.set(at, [change.row, entity, version === undefined ? txid : version ?? was]);
        // Of what is collected aside nobody is told before it counts.
        if (!staged) {
          arrays[entity] = undefined;
          pending.set(at, together(pending.get(at), change as Change));
        }
        return change as Change;
      });
      // Nobody sees them before `ready`.
      if (staged) return [];
      touch();
      return done;
    },

    _flush() {
      if (!touched) return;
      const all = reset;
      const changes = all ? [] : [...pending.values()];
      touched = reset = false;
      pending = new Map();
      if (all || changes.length) emit('change', { reset: all, changes });
      emit('flush');
    },
    _close() {
      self._linger();
      end('closed', new ChangefeedError('closed'));
    },

    _dump(): Initial {
      const all: AnyRow = { rows: {}, ...(filled && versions && { versions: {} }), ...raw, position };
      for (const entity in filled ? entities : {}) {
        all.rows[entity] = rowsOf(entity);
        if (all.versions) all.versions[entity] = list(entity, 2);
      }
      return all as Initial;
    },

    _handle(): Channel {
      const offs: (() => void)[] = [];
      let open = true;
      const listen = (event: string, listener: (...values: never[]) => void) => {
        const off = on(event, listener as () => void);
        offs.push(off);
        return off;
      };
      handles += 1;
      return {
        name: channel,
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
          return entities;
        },
        get ready() {
          return ready;
        },
        rows: rowsOf as Channel['rows'],
        get(key: AnyRow, entity?: string) {
          const row = find(key, entity)?.[0];
          tell('get', row);
          return row as never;
        },
        version: (key: AnyRow, entity?: string) => find(key, entity)?.[2] ?? undefined,
        subscribe: (listener) => listen('flush', listener),
        on: listen as Channel['on'],
        message: (event, listener) => listen(`message ${event}`, listener as () => void),
        publish: (event, payload, how) => publish(channel.split('?', 1)[0]!, event, payload, how),
        seen: async (txid: string, how?: WaitOptions) => {
          const id = BigInt(txid);
          return wait({}, {
            ...how,
            // A bigint and the text of one are compared as numbers.
            _check: () => self._state === 'live' && (seen.includes(txid) || id < settled || (id < visible.xmax && !visible.xip.includes(txid))),
          });
        },
        refresh,
        dump: self._dump,
        unsubscribe() {
          if (!open) return;
          open = false;
          offs.forEach((off) => off());
          if (!--handles) unused();
        },
      } as Channel;
    },
  };
  renewReady();
  return self;
};
