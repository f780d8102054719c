/**
 * What components share: one thing for any number of them that ask for the same name of the same client.
 *
 * It is made when the first one is there, never while something is drawn, and ends a while behind the last one. So neither the
 * second mount of StrictMode nor a page that is left and comes back makes it twice, or shows nothing in between.
 */
import { presence, type Presence, type PresenceState } from './presence.js';
import type { AnyRow, Channel, ChannelOptions, Client, Initial } from './types.js';
import type { ChangefeedError } from './error.js';
import { createEmitter, createScheduler } from './util.js';

export interface Made<T, O> {
  readonly value: T;
  /** Somebody else wants it, too. */
  again?(options?: O): void;
  end(): void;
}

interface Held<T, O> extends Made<T, O> {
  users: number;
  timer?: ReturnType<typeof setTimeout>;
}

/** How long something stays behind the last component that used it. */
const HOLD_MS = 1000;

export const createShelf = <T, O = undefined>(make: (client: Client, name: string, options?: O) => Made<T, O>) => {
  const shelves = new WeakMap<Client, Map<string, Held<T, O>>>();
  return {
    /** What is there. */
    peek: (client: Client, name: string): T | null => shelves.get(client)?.get(name)?.value ?? null,
    /** Keeps it there until the function that it returns is called. */
    take(client: Client, name: string, options?: O): () => void {
      let shelf = shelves.get(client);
      if (!shelf) shelves.set(client, (shelf = new Map()));
      let held = shelf.get(name);
      if (held) held.again?.(options);
      else shelf.set(name, (held = { ...make(client, name, options), users: 0 }));
      const { end } = held;
      const mine = held;
      clearTimeout(mine.timer);
      mine.users += 1;
      return () => {
        mine.users -= 1;
        if (mine.users > 0) return;
        mine.timer = setTimeout(() => {
          shelf.delete(name);
          end();
        }, HOLD_MS);
      };
    },
  };
};

export type Shelf<T, O = undefined> = ReturnType<typeof createShelf<T, O>>;

// ---- Rows that came another way ----

interface Ages {
  /** Sign-outs and changes of identity. */
  age: number;
  of: WeakMap<Initial, number>;
}

const ages = new WeakMap<Client, Ages>();

const agesOf = (client: Client): Ages => {
  let own = ages.get(client);
  if (!own) {
    const made: Ages = { age: 0, of: new WeakMap() };
    ages.set(client, (own = made));
    client.on('purge', () => void (made.age += 1));
  }
  return own;
};

/** Rows that were given to one identity are not shown to the next one, though the component's properties still have them. */
export const mayShow = (client: Client, initial: Initial): boolean => {
  const own = ages.get(client);
  return (own?.of.get(initial) ?? own?.age) === own?.age;
};

// ---- Channels ----

export interface View {
  readonly rows: readonly AnyRow[];
  readonly state: Channel['state'];
  readonly error: ChangefeedError | null;
  readonly channel: Channel | null;
}

export interface SharedChannel {
  readonly channel: Channel;
  /** What there is to show, the same object until it is something else. */
  view(entity?: string): View;
  /** All members, as the server would say them. */
  members(): AnyRow | null;
}

const equal = (a: unknown, b: unknown): boolean => {
  if (a === b) return true;
  if (typeof a !== 'object' || typeof b !== 'object' || a === null || b === null || Array.isArray(a) !== Array.isArray(b)) return false;
  const names = Object.keys(a);
  return names.length === Object.keys(b).length && names.every((name) => name in b && equal((a as AnyRow)[name], (b as AnyRow)[name]));
};

const textOf = (row: AnyRow, key: readonly string[]): string => key.map((name) => String(row[name])).join('\u0000');

/** The array of before, if it has the same rows. Behind a new snapshot, rows that say the same are the objects of before. */
export const stable = (before: readonly AnyRow[], now: readonly AnyRow[], key?: readonly string[]): readonly AnyRow[] => {
  let rows = now;
  if (key) {
    const known = new Map(before.map((row) => [textOf(row, key), row]));
    rows = now.map((row) => {
      const old = known.get(textOf(row, key));
      return old && equal(old, row) ? old : row;
    });
  }
  return rows.length === before.length && rows.every((row, i) => row === before[i]) ? before : rows;
};

export const channels = /* @__PURE__ */ createShelf<SharedChannel, ChannelOptions>((client, name, first) => {
  const own = agesOf(client);
  const given: Initial[] = [];
  const open = (options?: ChannelOptions) => {
    let initial = options?.initial;
    if (initial && !own.of.has(initial)) own.of.set(initial, own.age);
    if (initial && !mayShow(client, initial)) initial = undefined;
    if (initial) given.push(initial);
    return client.channel(name, { ...options, initial }) as unknown as Channel;
  };
  const channel = open(first);
  const views = new Map<string, { source: readonly AnyRow[]; view: View; fresh: boolean }>();
  channel.on('change', ({ reset }) => {
    if (reset) for (const kept of views.values()) kept.fresh = true;
  });
  channel.on('error', () => {
    for (const initial of given) own.of.set(initial, -1);
  });
  // The server says the whole list only once; who asks later gets it from here.
  let members: AnyRow | null = null;
  channel.on('presence', (message) => {
    if (message.full || message.count !== undefined || !members) members = { ...message, joined: {}, meta: {}, left: {}, full: true };
    for (const user in message.left) delete members.joined[user];
    for (const user in message.joined) delete members.meta[user];
    Object.assign(members.joined, message.joined);
    Object.assign(members.meta, message.meta);
    members.more = message.more;
  });
  channel.on('state', (state) => {
    if (state !== 'live') members = null;
  });
  return {
    value: {
      channel,
      members: () => members,
      view(entity) {
        const which = entity ?? '';
        const kept = views.get(which);
        const source = channel.rows(entity) as readonly AnyRow[];
        const { state, error } = channel;
        if (kept && kept.source === source && kept.view.state === state && kept.view.error === error) return kept.view;
        const names = Object.keys(channel.entities);
        const key = kept?.fresh ? channel.entities[entity ?? names[0] ?? '']?.key : undefined;
        const rows = kept && kept.source !== source ? stable(kept.view.rows, source, key) : kept?.view.rows ?? source;
        const view = kept && kept.view.rows === rows && kept.view.state === state && kept.view.error === error ? kept.view : { rows, state, error, channel };
        views.set(which, { source, view, fresh: false });
        return view;
      },
    },
    again: (options) => open(options).unsubscribe(),
    end: () => channel.unsubscribe(),
  };
});

/** Channels for their messages only. */
export const messages = /* @__PURE__ */ createShelf<Channel>((client, name) => {
  const channel = client.channel(name, { snapshot: false }) as unknown as Channel;
  return { value: channel, end: () => channel.unsubscribe() };
});

// ---- Rooms ----

/** What one component says of this client. */
export interface Part {
  state?: unknown;
  kind?: string;
  exclusive?: readonly string[];
}

export interface RoomState extends PresenceState<AnyRow> {
  readonly presence: Presence<AnyRow>;
  /** Why what this client says of itself was refused. */
  readonly error: ChangefeedError | null;
}

/** A channel's members, and what all components together say of this client: the protocol knows one state of a connection. */
export interface Room {
  readonly current: RoomState;
  subscribe(listener: () => void): () => void;
  /** From the next microtask on; null takes it back. */
  say(who: object, part: Part | null): void;
  /** At once, for keys that somebody else may hold. */
  claim(who: object, part: Part): Promise<void>;
  has(who: object): boolean;
  /** Over it all, for some seconds, or not any more. */
  over(state: AnyRow | null, seconds: number): Promise<void>;
}

const isRecord = (value: unknown): value is AnyRow => typeof value === 'object' && value !== null && !Array.isArray(value);

export const rooms = /* @__PURE__ */ createShelf<Room>((client, name) => {
  const channel = client.channel(name, { snapshot: false }) as unknown as Channel;
  const on = channel.on as (event: string, listener: (message: AnyRow) => void) => () => void;
  const told = channels.peek(client, name)?.members();
  const members = presence(client, Object.create(channel, {
    on: {
      value(event: string, listener: (message: AnyRow) => void) {
        const off = on(event, listener);
        if (event === 'presence' && told) listener({ ...told });
        return off;
      },
    },
  }) as Channel) as unknown as Presence<AnyRow>;
  const parts = new Map<object, Part>();
  const { on: listen, emit } = createEmitter();
  let error: ChangefeedError | null = null;
  let current: RoomState | null = null;
  /** What the server knows; null: that has to be found out. */
  let known: string | null = 'null';

  const changed = () => {
    current = null;
    emit('change');
  };
  const whole = () => {
    if (parts.size === 0) return null;
    let state: unknown;
    let kind: string | undefined;
    const keys = new Set<string>();
    for (const part of parts.values()) {
      state = isRecord(state) && isRecord(part.state) ? { ...state, ...part.state } : part.state ?? state;
      kind = part.kind ?? kind;
      part.exclusive?.forEach((key) => keys.add(key));
    }
    return { state: (state ?? {}) as AnyRow, options: { kind, exclusive: [...keys] } };
  };
  const tell = async () => {
    const all = whole();
    const text = JSON.stringify(all);
    if (text === known) return;
    known = text;
    try {
      if (all) await members.track(all.state, all.options);
      else await members.untrack();
    } catch (failure) {
      known = null;
      throw failure;
    }
    if (error) {
      error = null;
      changed();
    }
  };
  const failed = (failure: unknown) => {
    error = failure as ChangefeedError;
    changed();
  };
  const tellSoon = createScheduler('microtask', () => void tell().catch(failed));
  const offs = [
    members.subscribe(changed),
    members.onRefused((failure) => {
      // Somebody else has got a key meanwhile; the rest is said without it.
      known = null;
      if (failure.code === '55P03') {
        for (const [who, { exclusive, ...rest }] of parts) {
          if (!exclusive?.includes(failure.info.key)) continue;
          if (rest.state === undefined) parts.delete(who);
          else parts.set(who, rest);
        }
      }
      failed(failure);
      tellSoon();
    }),
    // What was on its way when the connection was lost.
    client.connection.subscribe(() => {
      if (known === null && client.connection.current.status === 'connected') tellSoon();
    }),
  ];
  return {
    value: {
      get current() {
        return (current ??= { ...members.current, presence: members, error });
      },
      subscribe: (listener) => listen('change', listener),
      say(who, part) {
        if (part) parts.set(who, part);
        else parts.delete(who);
        tellSoon();
        changed();
      },
      async claim(who, part) {
        const before = parts.get(who);
        parts.set(who, part);
        try {
          await tell();
        } catch (failure) {
          if (before) parts.set(who, before);
          else parts.delete(who);
          tellSoon();
          throw failure;
        }
        changed();
      },
      has: (who) => parts.has(who),
      async over(state, seconds) {
        const all = whole();
        if (state) await members.track({ ...all?.state, ...state }, { ...all?.options, expiresIn: seconds });
        else if (all) await members.track(all.state, all.options);
        else await members.untrack();
      },
    },
    end() {
      offs.forEach((off) => off());
      members.close();
      channel.unsubscribe();
    },
  };
});
