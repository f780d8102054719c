'use client';
/**
 * React: rows, presence, calls and the connection as hooks.
 *
 * Everything is an external store, so that a render sees one state of all rows. On the server nothing connects: hooks give what
 * was passed as `initial`. Channels are counted and end a while behind the last component, so that a second mount costs nothing.
 */
import {
  createContext, createElement, useCallback, useContext, useEffect, useMemo, useRef, useState, useSyncExternalStore, type ReactNode,
} from 'react';

import { ChangefeedError } from './error.js';
import { metrics as metricsOf } from './extras.js';
import { lock, presence, type Presence, type PresenceState, type TrackOptions } from './presence.js';
import type {
  AnyRow, AnySchema, CallOptions, CallResult, Channel, ChannelName, ChannelOf, ChannelOptions, ChannelState, ChannelTypes, Client, ConnectionState,
  Message, Metrics, Schema,
} from './types.js';

const Context = createContext<Client<never> | null>(null);

/** Gives a client to everything below. The client stays the application's: it is not closed here. */
export const RealtimeProvider = ({ client, children }: { client: Client<never> | Client; children?: ReactNode }) =>
  createElement(Context.Provider, { value: client as Client<never> }, children);

export const useClient = <S extends Schema = AnySchema>(): Client<S> => {
  const client = useContext(Context);
  if (!client) throw new Error('there is no RealtimeProvider above this component');
  return client as unknown as Client<S>;
};

const NOTHING: readonly never[] = Object.freeze([]);
const never = () => () => {};

/**
 * A channel while the component is there; null on the server, before the first effect, and for a name that is null.
 */
export const useChannel = <S extends Schema = AnySchema, N extends ChannelName<S> = ChannelName<S>>(
  name: N | null, options?: ChannelOptions,
): Channel<ChannelOf<S, N>> | null => {
  const client = useClient<S>();
  const [channel, setChannel] = useState<Channel<ChannelOf<S, N>> | null>(null);
  const latest = useRef(options);
  latest.current = options;
  useEffect(() => {
    if (name === null) return undefined;
    const opened = client.channel(name, latest.current);
    setChannel(opened);
    return () => {
      opened.unsubscribe();
      setChannel(null);
    };
  }, [client, name]);
  // Of a name that was asked for before, nothing is shown.
  return channel?.name === name ? channel : null;
};

export interface Rows<R> {
  readonly rows: readonly R[];
  readonly state: ChannelState;
  readonly error: ChangefeedError | null;
  readonly channel: Channel | null;
}

type RowOf<C extends ChannelTypes, K> = K extends keyof C['entities'] ? C['entities'][K]['Row'] : C['entities'][keyof C['entities']]['Row'];

/** The rows of a channel. `initial` is shown until there are others, on the server as well. */
export const useRows = <S extends Schema = AnySchema, N extends ChannelName<S> = ChannelName<S>, K extends string = string>(
  name: N | null, options?: ChannelOptions & { entity?: K },
): Rows<RowOf<ChannelOf<S, N>, K>> => {
  const channel = useChannel<S, N>(name, options) as unknown as Channel | null;
  const entity = options?.entity;
  const first = (options?.initial ? options.initial.rows[entity ?? Object.keys(options.initial.rows)[0] ?? ''] : undefined) ?? NOTHING;
  const initial = useRef(first);
  const cached = useRef<Rows<AnyRow> | null>(null);
  const read = () => {
    const rows = channel ? channel.rows(entity) : (initial.current as readonly AnyRow[]);
    const state = channel?.state ?? (initial.current.length ? 'stale' : 'subscribing');
    const error = channel?.error ?? null;
    const before = cached.current;
    if (before && before.rows === rows && before.state === state && before.error === error && before.channel === channel) return before;
    return (cached.current = { rows, state, error, channel });
  };
  const subscribe = useCallback((listener: () => void) => channel?.subscribe(listener) ?? (() => {}), [channel]);
  return useSyncExternalStore(subscribe, read, read) as Rows<never>;
};

export const useConnection = (): ConnectionState => {
  const { connection } = useClient();
  return useSyncExternalStore(connection.subscribe, () => connection.current, () => connection.current);
};

/** Figures of the client, looked at every so often. */
export const useMetrics = (everyMs = 1000): Metrics => {
  const client = useClient();
  const [metrics, setMetrics] = useState(() => metricsOf(client)());
  useEffect(() => {
    const timer = setInterval(() => setMetrics(metricsOf(client)()), everyMs);
    return () => clearInterval(timer);
  }, [client, everyMs]);
  return metrics;
};

const NOBODY: PresenceState<never> = { members: new Map(), count: 0, kinds: {} };

/** Who is in the channel. With `state`, this client is, too, for as long as the component is there. */
export const usePresence = <P = AnyRow>(name: string | null, state?: P, options?: TrackOptions): PresenceState<P> & { readonly presence: Presence<P> | null } => {
  const client = useClient();
  const channel = useChannel(name);
  const room = useMemo(() => (channel ? (presence(client, channel as never) as unknown as Presence<P>) : null), [client, channel]);
  useEffect(() => () => room?.close(), [room]);
  const text = state === undefined ? undefined : JSON.stringify([state, options]);
  useEffect(() => {
    if (!room || text === undefined) return;
    const [mine, how] = JSON.parse(text) as [P, TrackOptions | undefined];
    room.track(mine, how ?? undefined).catch(() => {});
  }, [room, text]);
  const current = useSyncExternalStore(room?.subscribe ?? never, () => room?.current ?? NOBODY, () => NOBODY);
  return useMemo(() => ({ ...current, presence: room }), [current, room]);
};

/**
 * Who is typing, and a function to call at each key. What is said lasts for `ms` and is repeated at most twice in that time.
 */
export const useTyping = (name: string | null, { ms = 3000, state }: { ms?: number; state?: AnyRow } = {}): readonly [readonly string[], () => void] => {
  const { members, presence: room } = usePresence<AnyRow>(name, state ?? {});
  const told = useRef(0);
  const latest = useRef(state);
  latest.current = state;
  const typing = useMemo(
    () => [...members.values()].filter((member) => member.states.some((said) => said?.typing === true)).map(({ user }) => user), [members]);
  const onType = useCallback(() => {
    const now = Date.now();
    if (!room || now - told.current < ms / 2) return;
    told.current = now;
    room.track({ ...latest.current, typing: true }, { expiresIn: Math.ceil(ms / 1000) }).catch(() => {});
  }, [room, ms]);
  return [typing, onType];
};

/** A key of the channel that one user holds at a time; let go of with the component. */
export const useLock = (name: string, key: string, me: string) => {
  const { presence: room } = usePresence(name);
  const own = useMemo(() => (room ? lock(room as never, key, me) : null), [room, key, me]);
  useEffect(() => () => void own?.release().catch(() => {}), [own]);
  const current = useSyncExternalStore(own?.subscribe ?? never, () => own?.current ?? null, () => null);
  return {
    held: current?.held ?? false,
    holder: current?.holder ?? null,
    acquire: useCallback(async () => (await own?.acquire()) ?? false, [own]),
    release: useCallback(async () => own?.release(), [own]),
  };
};

/** Sends messages to a channel; with `onMessage`, gets them as well. */
export const usePublish = <T = unknown>(name: string, event: string, onMessage?: (payload: T, message: Message<T>) => void) => {
  const client = useClient();
  const channel = useChannel(onMessage ? name : null);
  const latest = useRef(onMessage);
  latest.current = onMessage;
  useEffect(() => channel?.message(event as never, ((payload: T, message: Message<T>) => latest.current?.(payload, message)) as never), [channel, event]);
  return useCallback((payload: T, options?: { echo?: boolean }) => client.publish(name, event, payload, options), [client, name, event]);
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
