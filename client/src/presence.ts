/**
 * Who is in a channel: members and their states, what this client says of itself, and keys that one user holds at a time.
 *
 * What is tracked is said again on each new connection. The list of members is void while there is no connection.
 */
import { ChangefeedError } from './error.js';
import type { AnyRow, Channel, ChannelTypes, Readable } from './types.js';
import { createEmitter, createScheduler } from './util.js';

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
  /** Members page by page, for channels that are only counted. */
  page(options?: { limit?: number; after?: string }): Promise<{ members: Record<string, P[]>; next?: string; count: number }>;
  /** What was tracked is refused on a new connection: another user was faster. It is not tracked any more. */
  onRefused(listener: (error: ChangefeedError) => void): () => void;
  close(): void;
}

export interface Lock extends Readable<{ readonly held: boolean; readonly holder: string | null }> {
  /** True if this user holds it now. */
  acquire(): Promise<boolean>;
  release(): Promise<void>;
}

/** What presence needs of a client. */
interface Requests {
  request(message: AnyRow): Promise<AnyRow>;
  readonly connection: Readable<{ readonly status: string }>;
}

interface Own<P> extends Omit<TrackOptions, 'expiresIn'> {
  state: P;
}

const NOBODY: PresenceState<never> = { members: new Map(), count: 0, kinds: {} };

/** The presence of a channel, which has to stay subscribed. */
export const presence = <C extends ChannelTypes>(client: Requests, channel: Channel<C>): Presence<C['presence']> => {
  type P = C['presence'];
  const { on, emit } = createEmitter();
  const schedule = createScheduler('microtask', () => emit('change'));
  let current: PresenceState<P> = NOBODY;
  let next: Map<string, Member<P>> | null = null;
  let own: Own<P> | null = null;
  let told = false;
  let asking = 0;

  const set = (state: PresenceState<P>) => {
    current = state;
    schedule();
  };
  const say = async (message: AnyRow) => {
    await client.request({ ...message, channel: channel.name });
  };
  const track = ({ state, kind, exclusive }: Own<P>, expiresIn?: number) =>
    say({ type: 'track', state, ...(kind && { kind }), ...(exclusive?.length && { exclusive }), ...(expiresIn && { expires_in: expiresIn }) });
  const connected = () => ['connected', 'polling'].includes(client.connection.current.status);
  const look = () => {
    if (!connected() || channel.state === 'error' || channel.state === 'closed') {
      told = false;
      next = null;
      if (current !== NOBODY) set(NOBODY);
    } else if (own && !told && !asking) {
      told = true;
      const mine = own;
      track(mine).catch((error: unknown) => {
        // Another user was faster while this one was away.
        if (own === mine && error instanceof ChangefeedError && !error.retryable) own = null;
        emit('refused', error);
      });
    }
  };
  const offs = [
    client.connection.subscribe(look),
    channel.on('state', look),
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
      const before = own;
      // What lies over it for a while is not said again.
      if (expiresIn === undefined) own = { state, ...options };
      asking += 1;
      try {
        await track({ state, ...options }, expiresIn);
        if (expiresIn === undefined) told = connected();
      } catch (error) {
        if (expiresIn === undefined) own = before;
        throw error;
      } finally {
        asking -= 1;
      }
    },
    async untrack() {
      own = null;
      if (connected()) await say({ type: 'untrack' });
    },
    async page(options = {}) {
      const { members, next: after, count } = await client.request({ type: 'presence', channel: channel.name, ...options });
      return { members, next: after, count };
    },
    onRefused: (listener) => on('refused', listener),
    close() {
      offs.forEach((off) => off());
      if (own && connected()) say({ type: 'untrack' }).catch(() => {});
      own = null;
    },
  };
};

/** A key of the channel that one user holds at a time, such as the paragraph that somebody edits. */
export const lock = <C extends ChannelTypes>(room: Presence<C['presence']>, key: string, me: string, state?: C['presence']): Lock => {
  const { on, emit } = createEmitter();
  let current: { held: boolean; holder: string | null } = { held: false, holder: null };
  const look = () => {
    let holder: string | null = null;
    for (const member of room.current.members.values()) if (member.holds.includes(key)) holder = member.user;
    if (holder === current.holder) return;
    current = { held: holder === me, holder };
    emit('change');
  };
  room.subscribe(look);
  look();
  return {
    get current() {
      return current;
    },
    subscribe: (listener) => on('change', listener),
    async acquire() {
      try {
        await room.track(state as C['presence'], { exclusive: [key] });
        return true;
      } catch (error) {
        if (error instanceof ChangefeedError && error.code === '55P03') return false;
        throw error;
      }
    },
    release: () => room.untrack(),
  };
};
