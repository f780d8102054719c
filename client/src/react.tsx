'use client';
/**
 * React: rows, presence, calls and the connection as hooks.
 *
 * Everything is an external store, so that a render sees one state of all rows. On the server nothing connects: hooks give what
 * was passed as `initial`. What several components ask for exists once (shared.ts).
 */
import {
  createContext, createElement, useCallback, useContext, useEffect, useMemo, useRef, useState, useSyncExternalStore, type ReactNode,
} from 'react';

import type { ChangefeedError } from './error.js';
import { metrics, type Metrics } from './extras.js';
import { optimistic, type Mutation, type Optimistic, type SyncStatus } from './optimistic.js';
import type { Presence, PresenceState, TrackOptions } from './presence.js';
import { channels, createShelf, mayShow, messages, rooms, stable, type Room, type RoomState, type Shelf, type View } from './shared.js';
import type {
  AnyRow, AnySchema, CallOptions, CallResult, Channel, ChannelName, ChannelOf, ChannelOptions, ChannelState, ChannelTypes, Client, ConnectionState,
  Message, Schema,
} from './types.js';

const Context = /* @__PURE__ */ createContext<Client | null>(null);

/** Gives a client to everything below. The client stays the application's: it is not closed here. */
export const RealtimeProvider = <S extends Schema>({ client, children }: { client: Client<S>; children?: ReactNode }) =>
  createElement(Context.Provider, { value: client as unknown as Client }, children);

export const useClient = <S extends Schema = AnySchema>(): Client<S> => {
  const client = useContext(Context);
  if (!client) throw new Error('there is no RealtimeProvider above this component');
  return client as unknown as Client<S>;
};

const NOTHING: readonly never[] = /* @__PURE__ */ Object.freeze([]);
const never = () => () => {};
const none = () => null;

/** What is on the shelf under that name, kept there as long as the component is; null before its first effect. */
const useShared = <T, O>(shelf: Shelf<T, O>, name: string | null, options?: O): T | null => {
  const client = useClient();
  // The options are those of the moment when it is asked for.
  // eslint-disable-next-line react-hooks/exhaustive-deps
  const take = useCallback(() => (name === null ? () => {} : shelf.take(client, name, options)), [shelf, client, name]);
  return useSyncExternalStore(take, () => (name === null ? null : shelf.peek(client, name)), none);
};

/**
 * A channel while the component is there; null on the server, for a name that is null, and before the first effect, if no other
 * component has it.
 */
export const useChannel = <S extends Schema = AnySchema, N extends ChannelName<S> = ChannelName<S>>(
  name: N | null, options?: ChannelOptions,
): Channel<ChannelOf<S, N>> | null => (useShared(channels, name, options)?.channel as unknown as Channel<ChannelOf<S, N>> | undefined) ?? null;

export interface Rows<R> {
  readonly rows: readonly R[];
  readonly state: ChannelState;
  readonly error: ChangefeedError | null;
  readonly channel: Channel | null;
}

type RowOf<C extends ChannelTypes, K> = K extends keyof C['entities'] ? C['entities'][K]['Row'] : C['entities'][keyof C['entities']]['Row'];

/** What is shown before there is a channel: `initial`, or nothing. */
const useFirst = (entity?: string, initial?: ChannelOptions['initial']): View => {
  const rows = (initial?.rows[entity ?? Object.keys(initial.rows)[0] ?? ''] ?? NOTHING) as readonly AnyRow[];
  const state = initial ? 'stale' : 'subscribing';
  return useMemo(() => ({ rows, state, error: null, channel: null }), [rows, state]);
};

/**
 * The rows of a channel: the same array until they change, and each row the same object until it does. `initial` is shown until
 * there are others, on the server as well.
 */
export const useRows = <S extends Schema = AnySchema, N extends ChannelName<S> = ChannelName<S>, K extends string = string>(
  name: N | null, options?: ChannelOptions & { entity?: K },
): Rows<RowOf<ChannelOf<S, N>, K>> => {
  const client = useClient();
  const shared = useShared(channels, name, options);
  const { entity, initial } = options ?? {};
  const given = useFirst(entity, initial);
  const blank = useFirst();
  const before = initial && mayShow(client, initial) ? given : blank;
  const subscribe = useCallback((listener: () => void) => shared?.channel.subscribe(listener) ?? (() => {}), [shared]);
  return useSyncExternalStore(subscribe, () => shared?.view(entity) ?? before, () => given) as Rows<never>;
};

const IDLE: ConnectionState = /* @__PURE__ */ Object.freeze({ status: 'idle', transport: null, attempt: 0, retryAt: null, since: 0, error: null });

export const useConnection = (): ConnectionState => {
  const { connection } = useClient();
  return useSyncExternalStore(connection.subscribe, () => connection.current, () => IDLE);
};

const NO_METRICS: Metrics = /* @__PURE__ */ Object.freeze({
  uptimeMs: 0, connects: 0, received: 0, sent: 0, errors: 0, resyncs: 0, latencyMs: { last: 0, avg: 0, p95: 0 }, lagMs: 0,
  channels: 0, rows: 0, hits: 0, misses: 0,
});

/** Figures of the client since they were asked for first, looked at every so often. */
export const useMetrics = (everyMs = 1000): Metrics => {
  const client = useClient();
  const [figures, setFigures] = useState(NO_METRICS);
  useEffect(() => {
    const read = metrics(client);
    const look = () => setFigures(read());
    look();
    const timer = setInterval(look, everyMs);
    return () => clearInterval(timer);
  }, [client, everyMs]);
  return figures;
};

const NOBODY: RoomState | Omit<RoomState, 'presence'> & { presence: null } = /* @__PURE__ */ Object.freeze({
  members: new Map(), count: 0, kinds: {}, presence: null, error: null,
});

const useRoom = (name: string | null): readonly [Room | null, RoomState | typeof NOBODY] => {
  const room = useShared(rooms, name);
  return [room, useSyncExternalStore(room?.subscribe ?? never, () => room?.current ?? NOBODY, () => NOBODY)];
};

/** What this component says of the client: one object for its life. */
const useVoice = (): object => useState(() => ({}))[0];

/**
 * Who is in the channel. With `state`, this client is, too, for as long as the component is there. What several components say
 * is told as one state with the members of all.
 */
export const usePresence = <P = AnyRow>(
  name: string | null, state?: P, options?: Omit<TrackOptions, 'expiresIn'>,
): PresenceState<P> & { readonly presence: Presence<P> | null; readonly error: ChangefeedError | null } => {
  const [room, current] = useRoom(name);
  const voice = useVoice();
  const text = state === undefined ? undefined : JSON.stringify([state, options?.kind, options?.exclusive]);
  useEffect(() => {
    if (!room || text === undefined) return undefined;
    const [mine, kind, exclusive] = JSON.parse(text) as [P, string | null, string[] | null];
    room.say(voice, { state: mine, kind: kind ?? undefined, exclusive: exclusive ?? undefined });
    return () => room.say(voice, null);
  }, [room, voice, text]);
  return current as never;
};

/**
 * Who is typing (but `me`, if that is given), a function to call at each key, and one for the end. What is said lasts for `ms`
 * and is repeated at most twice in that time; `state` is said with it.
 */
export const useTyping = (
  name: string | null, { ms = 3000, state, me }: { ms?: number; state?: AnyRow; me?: string } = {},
): readonly [users: readonly string[], onType: () => void, stop: () => void] => {
  const [room, { members }] = useRoom(name);
  const told = useRef(0);
  const typing = useMemo(
    () => [...members.values()].filter((member) => member.user !== me && member.states.some((said) => said?.typing === true)).map(({ user }) => user),
    [members, me]);
  const text = JSON.stringify(state ?? {});
  const onType = useCallback(() => {
    const now = Date.now();
    if (!room || now - told.current < ms / 2) return;
    told.current = now;
    room.over({ ...(JSON.parse(text) as AnyRow), typing: true }, Math.ceil(ms / 1000)).catch(() => {});
  }, [room, ms, text]);
  const stop = useCallback(() => {
    if (!room || told.current === 0) return;
    told.current = 0;
    room.over(null, 0).catch(() => {});
  }, [room]);
  useEffect(() => stop, [stop]);
  return [typing, onType, stop];
};

/**
 * A key of the channel that one user holds at a time, such as the paragraph that somebody edits; let go of with the component.
 * `held` is also true in this user's other pages if `me` is given, the claim `sub` of the token.
 */
export const useLock = (name: string | null, key: string, me?: string) => {
  const [room, { members }] = useRoom(name);
  const voice = useVoice();
  useEffect(() => () => room?.say(voice, null), [room, voice, key]);
  const acquire = useCallback(async () => {
    try {
      await room?.claim(voice, { exclusive: [key] });
      return room !== null;
    } catch (error) {
      if ((error as ChangefeedError).code === '55P03') return false;
      throw error;
    }
  }, [room, voice, key]);
  const release = useCallback(() => room?.say(voice, null), [room, voice]);
  const holder = useMemo(() => [...members.values()].find(({ holds }) => holds.includes(key))?.user ?? null, [members, key]);
  return { held: (room?.has(voice) ?? false) || (me !== undefined && holder === me), holder, acquire, release };
};

/** Sends messages to a channel; with `onMessage`, gets them as well. */
export const usePublish = <T = unknown>(name: string, event: string, onMessage?: (payload: T, message: Message<T>) => void) => {
  const client = useClient();
  const channel = useShared(messages, onMessage ? name : null);
  const latest = useRef(onMessage);
  useEffect(() => {
    latest.current = onMessage;
  });
  useEffect(() => channel?.message(event as never, ((payload: T, message: Message<T>) => latest.current?.(payload, message)) as never), [channel, event]);
  return useCallback((payload: T, options?: { echo?: boolean }) => client.publish(name.split('?', 1)[0]!, event, payload, options), [client, name, event]);
};

export interface CallState<T> {
  readonly pending: boolean;
  readonly result: T | undefined;
  readonly error: ChangefeedError | null;
}

/** Calls a function of the database. The state is that of the last call. */
export const useCall = <S extends Schema = AnySchema, F extends keyof S['functions'] & string = keyof S['functions'] & string>(name: F) => {
  type Result = S['functions'][F]['Result'];
  const client = useClient<S>();
  const [state, setState] = useState<CallState<Result>>({ pending: false, result: undefined, error: null });
  const last = useRef(0);
  const call = useCallback(async (args: S['functions'][F]['Args'], options?: CallOptions): Promise<CallResult<Result>> => {
    const mine = (last.current += 1);
    setState((before) => ({ ...before, pending: true, error: null }));
    try {
      const answer = await client.call(name, args, options);
      if (last.current === mine) setState({ pending: false, result: answer.result, error: null });
      return answer;
    } catch (error) {
      if (last.current === mine) setState({ pending: false, result: undefined, error: error as ChangefeedError });
      throw error;
    }
  }, [client, name]);
  return [call, state] as const;
};

interface Overlay extends View {
  readonly pending: number;
  readonly status: SyncStatus;
}

/** The rows of a channel's entity with what is pending over them; one for all components. */
const overlays = /* @__PURE__ */ createShelf<{ mutable: Optimistic<AnyRow>; current(): Overlay }, ChannelOptions & { entity?: string }>((client, name, options) => {
  const [address, which] = JSON.parse(name) as [string, string | null];
  const entity = which ?? undefined;
  const leave = channels.take(client, address, { versions: true, ...options });
  const { channel } = channels.peek(client, address)!;
  const mutable = optimistic<AnyRow>(client as never, channel, entity);
  let kept: Overlay | null = null;
  return {
    value: {
      mutable,
      current() {
        const { current: shown, pending, status } = mutable;
        const rows = kept ? stable(kept.rows, shown) : shown;
        const { state, error } = channel;
        if (kept && kept.rows === rows && kept.pending === pending && kept.status === status && kept.state === state && kept.error === error) return kept;
        return (kept = { rows, pending, status, state, error, channel });
      },
    },
    end() {
      mutable.close();
      leave();
    },
  };
});

export interface OptimisticRows<R extends object> extends Rows<R> {
  /** Mutations under way. */
  readonly pending: number;
  readonly status: SyncStatus;
  /** Shown at once; resolves when it has come back from the database, rejects when it was rolled back. */
  mutate(mutation: Mutation<R>): Promise<CallResult<unknown>>;
  isPending(key: object): boolean;
}

/** As `useRows`, with writes that are shown before the database has them. Channels are asked for with `versions`. */
export const useOptimisticRows = <R extends object = AnyRow>(name: string | null, options?: ChannelOptions & { entity?: string }): OptimisticRows<R> => {
  const client = useClient();
  const { entity, initial } = options ?? {};
  const shared = useShared(overlays, name === null ? null : JSON.stringify([name, entity]), options);
  const given = useFirst(entity, initial);
  const blank = useFirst();
  const view = initial && mayShow(client, initial) ? given : blank;
  const [before, first] = useMemo(() => [view, given].map((rows): Overlay => ({ ...rows, pending: 0, status: 'synced' })) as [Overlay, Overlay], [view, given]);
  const current = useSyncExternalStore(shared?.mutable.subscribe ?? never, () => shared?.current() ?? before, () => first);
  return useMemo(() => ({
    ...current,
    mutate: (mutation: Mutation<AnyRow>) =>
      shared?.mutable.mutate(mutation) ?? Promise.reject(new Error('there is no channel yet')),
    isPending: (key: object) => shared?.mutable.isPending(key) ?? false,
  }), [current, shared]) as never;
};

/** Each hook of a schema has a type with a name, so that declarations can be written of what was taken out of `Hooks`. */
export interface UseChannel<S extends Schema> {
  <N extends ChannelName<S>>(name: N | null, options?: ChannelOptions): Channel<ChannelOf<S, N>> | null;
}

export interface UseRows<S extends Schema> {
  <N extends ChannelName<S>, K extends keyof ChannelOf<S, N>['entities'] & string = keyof ChannelOf<S, N>['entities'] & string>(
    name: N | null, options?: ChannelOptions & { entity?: K },
  ): Rows<ChannelOf<S, N>['entities'][K]['Row']>;
}

export interface UseOptimisticRows<S extends Schema> {
  <N extends ChannelName<S>, K extends keyof ChannelOf<S, N>['entities'] & string = keyof ChannelOf<S, N>['entities'] & string>(
    name: N | null, options?: ChannelOptions & { entity?: K },
  ): OptimisticRows<ChannelOf<S, N>['entities'][K]['Row']>;
}

export interface UsePresence<S extends Schema> {
  <N extends ChannelName<S>>(name: N | null, state?: ChannelOf<S, N>['presence'], options?: Omit<TrackOptions, 'expiresIn'>):
    ReturnType<typeof usePresence<ChannelOf<S, N>['presence']>>;
}

export interface UsePublish<S extends Schema> {
  <N extends ChannelName<S>, E extends keyof ChannelOf<S, N>['events'] & string>(
    name: N, event: E, onMessage?: (payload: ChannelOf<S, N>['events'][E], message: Message<ChannelOf<S, N>['events'][E]>) => void,
  ): (payload: ChannelOf<S, N>['events'][E], options?: { echo?: boolean }) => Promise<void>;
}

export interface UseCall<S extends Schema> {
  <F extends keyof S['functions'] & string>(name: F): readonly [
    (args: S['functions'][F]['Args'], options?: CallOptions) => Promise<CallResult<S['functions'][F]['Result']>>, CallState<S['functions'][F]['Result']>];
}

/** The hooks with the types of a schema: `export const { useRows, useCall } = createHooks<Schema>()`. */
export interface Hooks<S extends Schema> {
  readonly useClient: () => Client<S>;
  readonly useChannel: UseChannel<S>;
  readonly useRows: UseRows<S>;
  readonly useOptimisticRows: UseOptimisticRows<S>;
  readonly usePresence: UsePresence<S>;
  readonly usePublish: UsePublish<S>;
  readonly useCall: UseCall<S>;
}

export const createHooks = <S extends Schema>(): Hooks<S> =>
  ({ useClient, useChannel, useRows, useOptimisticRows, usePresence, usePublish, useCall }) as never;
