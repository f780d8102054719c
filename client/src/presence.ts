/**
 * Who is in a channel: members and their states, what this client says of itself, and keys that one user holds at a time.
 *
 * What is tracked is said again on each new connection. The list of members is void while there is no connection.
 */
import { ChangefeedError } from './error.js';
import type { AnyRow, Channel, ChannelTypes, Readable } from './types.js';
import { createEmitter, createScheduler, type Emitter } from './util.js';

export interface Member<P = unknown> {
  /** The claim `sub`, or `session:` and the connection's session. */
  readonly user: string;
  /** Of each of the user's connections. */
  readonly states: readonly P[];
  readonly kinds: readonly string[];
  /** The exclusive keys that the user holds. */
  readonly holds: readonly string[];
}

export interface TrackOptions {
  kind?: string;
  /** Keys that one user holds at a time. */
  exclusive?: readonly string[];
  /** The state goes over what was tracked before, for so many seconds. */
  expiresIn?: number;
}

export interface PresenceState<P = unknown> {
  /** Members by user, in the order of joining; empty in a channel that is only counted. */
  readonly members: ReadonlyMap<string, Member<P>>;
  readonly count: number;
  readonly kinds: Readonly<Record<string, number>>;
}

export interface Presence<P = unknown> extends Readable<PresenceState<P>> {
  /**
   * Says this client's state, now and on each new connection. Rejects with code `55P03` and `info.holder` if another user
   * holds one of the keys; nothing has changed then.
   */
  track(state: P, options?: TrackOptions): Promise<void>;
  untrack(): Promise<void>;
  /** Holds a key beside those of `track`, until `drop`. Rejects like `track`. */
  hold(key: string): Promise<void>;
  drop(key: string): Promise<void>;
  /** Members page by page, for channels that are only counted. */
  page(options?: { limit?: number; after?: string }): Promise<{ members: Record<string, P[]>; next?: string; count: number }>;
  /** What was tracked is refused on a new connection: another user was faster. The rest is, without that key. */
  onRefused(listener: (error: ChangefeedError) => void): () => void;
  close(): void;
}

export interface Lock extends Readable<{ readonly held: boolean; readonly holder: string | null }> {
  /** True if this user holds it now. */
  acquire(): Promise<boolean>;
  release(): Promise<void>;
  /** Looks no more. What is held stays held. */
  close(): void;
}

/** What presence needs of a client. */
interface Requests {
  request(message: AnyRow): Promise<AnyRow>;
  readonly connection: Readable<{ readonly status: string }>;
}

interface Own<P> extends Omit<TrackOptions, 'expiresIn'> {
  state: P;
}

/** What a connection says in a channel: together, whoever in this page says it. */
interface Said extends Emitter {
  /** The latest last. */
  states: Map<object, Own<unknown>>;
  held: Map<string, object>;
  told: boolean;
  /** Requests on their way. */
  asking: number;
  /** Grows when what was said counts no more. */
  round: number;
}

const sayings = new WeakMap<object, Map<string, Said>>();

const saidOf = (client: object, name: string): Said => {
  let byName = sayings.get(client);
  if (!byName) sayings.set(client, (byName = new Map()));
  let said = byName.get(name);
  if (!said) byName.set(name, (said = { ...createEmitter(), states: new Map(), held: new Map(), told: false, asking: 0, round: 0 }));
  return said;
};

const NOBODY: PresenceState<never> = { members: new Map(), count: 0, kinds: {} };

/** The presence of a channel, which has to stay subscribed. */
export const presence = <C extends ChannelTypes>(client: Requests, channel: Channel<C>): Presence<C['presence']> => {
  type P = C['presence'];
  const { on, emit } = createEmitter();
  const schedule = createScheduler('microtask', () => emit('change'));
  let current: PresenceState<P> = NOBODY;
  let next: Map<string, Member<P>> | null = null;
  const said = saidOf(client, channel.name);
  const { states, held } = said;
  const me = {};

  const set = (state: PresenceState<P>) => {
    current = state;
    schedule();
  };
  const say = async (message: AnyRow) => {
    await client.request({ ...message, channel: channel.name });
  };
  const track = ({ state, kind }: Own<P>, keys: readonly string[], expiresIn?: number) =>
    say({ type: 'track', state, ...(kind && { kind }), ...(keys.length && { exclusive: keys }), ...(expiresIn && { expires_in: expiresIn }) });
  const anything = () => states.size > 0 || held.size > 0;
  const connected = () => ['connected', 'polling'].includes(client.connection.current.status);
  /** All that this page says, as it is now: the latest state, and all keys. */
  const again = async () => {
    const { round } = said;
    said.asking += 1;
    try {
      const all = [...states.values()] as Own<P>[];
      await (anything()
        ? track(all.at(-1) ?? { state: {} as P }, [...new Set([...all.flatMap(({ exclusive = [] }) => exclusive), ...held.keys()])])
        : say({ type: 'untrack' }));
      said.told = connected() && said.round === round;
    } finally {
      said.asking -= 1;
    }
    if (!said.told) look();
  };
  const look = () => {
    const gone = !connected() || channel.state === 'error';
    if (gone) said.told = false;
    if (gone || channel.state === 'closed') {
      next = null;
      if (current !== NOBODY) set(NOBODY);
    } else if (anything() && !said.told && !said.asking) {
      again().catch((error: unknown) => {
        if (!(error instanceof ChangefeedError) || error.type === 'network') return;
        const { key } = error.info as { key?: string };
        if (error.code === '55P03' && key !== undefined) {
          // Another user was faster while this one was away: the rest is said without that key.
          held.delete(key);
          for (const [who, own] of states) if (own.exclusive) states.set(who, { ...own, exclusive: own.exclusive.filter((each) => each !== key) });
        } else if (error.retryable) return void setTimeout(look, error.retryAfterMs ?? 1000);
        else {
          held.clear();
          states.clear();
        }
        said.emit('refused', error);
        look();
      });
    }
  };
  const lookSoon = () => queueMicrotask(look);
  const offs = [
    client.connection.subscribe(look),
    // Behind the one who asks for the channel again.
    channel.on('state', lookSoon),
    // It may be another subscription, which nothing was said in.
    channel.on('resync', () => {
      said.told = false;
      said.round += 1;
      lookSoon();
    }),
    channel.on('presence', (message) => {
      if (message.count !== undefined) return set({ members: new Map(), count: message.count, kinds: message.kinds ?? {} });
      next ??= new Map(message.full ? [] : current.members);
      for (const [user, states] of Object.entries(message.joined ?? {})) {
        const { kinds = [], holds = [] } = message.meta?.[user] ?? {};
        next.set(user, { user, states: states as P[], kinds, holds });
      }
      for (const user of Object.keys(message.left ?? {})) next.delete(user);
      if (message.more) return undefined;
      const members = next;
      next = null;
      const kinds: Record<string, number> = {};
      for (const member of members.values()) for (const kind of member.kinds) kinds[kind] = (kinds[kind] ?? 0) + 1;
      return set({ members, count: members.size, kinds });
    }),
  ];

  return {
    get current() {
      return current;
    },
    subscribe: (listener) => on('change', listener),
    async track(state, { expiresIn, ...options } = {}) {
      // What lies over it for a while is not said again.
      if (expiresIn !== undefined) return track({ state, ...options }, options.exclusive ?? [], expiresIn);
      const before = states.get(me);
      const mine = { state, ...options };
      states.delete(me);
      states.set(me, mine);
      try {
        await again();
      } catch (error) {
        if (states.get(me) === mine) {
          if (before) states.set(me, before as Own<P>);
          else states.delete(me);
        }
        throw error;
      }
    },
    async untrack() {
      states.delete(me);
      if (connected()) await again();
    },
    async hold(key) {
      const had = held.get(key);
      held.set(key, me);
      try {
        await again();
      } catch (error) {
        if (!had) held.delete(key);
        throw error;
      }
    },
    async drop(key) {
      if (held.delete(key) && connected()) await again();
    },
    async page(options = {}) {
      const { members, next: after, count } = await client.request({ type: 'presence', channel: channel.name, ...options });
      return { members, next: after, count };
    },
    onRefused(listener) {
      const off = said.on('refused', listener);
      offs.push(off);
      return off;
    },
    close() {
      offs.forEach((off) => off());
      let mine = states.delete(me);
      for (const [key, who] of held) if (who === me) mine = held.delete(key);
      if (mine && connected() && channel.state !== 'closed') again().catch(() => {});
    },
  };
};

/** A key of the channel that one user holds at a time, such as the paragraph that somebody edits. */
export const lock = <C extends ChannelTypes>(room: Presence<C['presence']>, key: string, me: string): Lock => {
  const { on, emit } = createEmitter();
  let current: { held: boolean; holder: string | null } = { held: false, holder: null };
  const look = () => {
    let holder: string | null = null;
    for (const member of room.current.members.values()) if (member.holds.includes(key)) holder = member.user;
    if (holder === current.holder) return;
    current = { held: holder === me, holder };
    emit('change');
  };
  const off = room.subscribe(look);
  look();
  return {
    get current() {
      return current;
    },
    subscribe: (listener) => on('change', listener),
    async acquire() {
      try {
        await room.hold(key);
        return true;
      } catch (error) {
        if (error instanceof ChangefeedError && error.code === '55P03') return false;
        throw error;
      }
    },
    release: () => room.drop(key),
    close: off,
  };
};
