/**
 * The public types. No code: everything here disappears when it is compiled.
 */
import type { ChangefeedError } from './error.js';

export type { Metrics } from './extras.js';

/** A value as `to_jsonb` gives it. */
export type Json = string | number | boolean | null | Json[] | { [name: string]: Json };

/** A row as it arrives. Types for your own tables: `changefeed.typescript_types()`. */
// eslint-disable-next-line @typescript-eslint/no-explicit-any
export type AnyRow = Record<string, any>;

export interface Entity {
  Row: object;
  Key: object;
}

export interface ChannelTypes {
  /** What `channel()` takes; if it is left out, the name that it has in the schema. */
  name?: string;
  entities: Record<string, Entity>;
  events: Record<string, unknown>;
  presence: unknown;
}

export interface FunctionTypes {
  Args: unknown;
  Result: unknown;
}

/** The type parameter of `createClient`: what `changefeed.typescript_types()` writes has it, and more. */
export interface Schema {
  channels: Record<string, ChannelTypes>;
  functions: Record<string, FunctionTypes>;
}

/** Without types of your own: every name is allowed and every row is a record. */
export interface AnySchema {
  channels: Record<string, { entities: Record<string, { Row: AnyRow; Key: AnyRow }>; events: Record<string, unknown>; presence: unknown }>;
  // eslint-disable-next-line @typescript-eslint/no-explicit-any
  functions: Record<string, { Args: any; Result: any }>;
}

/** A channel's name without what follows "?", to find its types by. */
export type Base<N extends string> = N extends `${infer B}?${string}` ? B : N;

/** The names of a channel of the schema. */
type NamesOf<S extends Schema, K extends keyof S['channels']> = S['channels'][K] extends { name: infer N extends string } ? N : K & string;
type Names<S extends Schema> = { [K in keyof S['channels'] & string]: NamesOf<S, K> }[keyof S['channels'] & string];

/** Where channels with that name stand in the schema, and of several the one with the narrowest names: `a:${string}` has `a:1:b:2`, too. */
type Matching<S extends Schema, N extends string> = {
  [K in keyof S['channels'] & string]: N extends NamesOf<S, K> ? K : never;
}[keyof S['channels'] & string];
type Narrower<S extends Schema, K extends keyof S['channels'], Other extends keyof S['channels']> = Other extends unknown
  ? NamesOf<S, Other> extends NamesOf<S, K> ? NamesOf<S, K> extends NamesOf<S, Other> ? never : Other : never
  : never;
type Narrowest<S extends Schema, K extends keyof S['channels'], All extends keyof S['channels'] = K> = K extends unknown
  ? [Narrower<S, K, All>] extends [never] ? K : never
  : never;

/** The columns of `select=` in a channel's name, or never. */
type Selection<N extends string> = N extends `${string}?${infer Q}`
  ? `&${Q}` extends `${string}&select=${infer L}` ? (L extends `${infer C}&${string}` ? C : L) : never
  : never;
type Columns<L extends string> = L extends `${infer C},${infer R}` ? C | Columns<R> : L;
/** A row with these columns and the key; with all, perhaps, where the selection is not known. */
type SelectedRow<E extends Entity, C extends string> = string extends keyof E['Row'] ? E['Row']
  : [C] extends [keyof E['Row']] ? Pick<E['Row'], C | (keyof E['Key'] & keyof E['Row'])>
    : string extends C ? Pick<E['Row'], keyof E['Key'] & keyof E['Row']> & Partial<E['Row']>
      : '*' extends C ? E['Row']
        : Pick<E['Row'], keyof E['Key'] & keyof E['Row']> & Partial<E['Row']>;
type Selected<C extends ChannelTypes, L extends string> = [L] extends [never] ? C : {
  entities: { [K in keyof C['entities']]: { Row: SelectedRow<C['entities'][K], Columns<L>>; Key: C['entities'][K]['Key'] } };
  events: C['events'];
  presence: C['presence'];
};

/** The types of the channel with that name. */
export type ChannelOf<S extends Schema, N extends string> = Selected<S['channels'][Narrowest<S, Matching<S, Base<N>>>], Selection<N>>;

/** A name that `channel()` takes: one of the schema's, with or without conditions. */
export type ChannelName<S extends Schema> = Names<S> | `${Names<S>}?${string}`;

/**
 * - `idle`: nothing was asked for yet
 * - `connecting`: the first attempt
 * - `connected`: over a WebSocket or an event stream
 * - `polling`: over requests, one after the other
 * - `reconnecting`: the connection was lost, or could not be made; `retryAt` says when the next attempt is
 * - `disconnected`: by `disconnect()`, or because live updates are turned off
 * - `unauthorized`: the token was refused; it goes on with another token
 * - `closed`: by `close()`, for good
 */
export type Status =
  | 'idle' | 'connecting' | 'connected' | 'polling' | 'reconnecting' | 'disconnected' | 'unauthorized' | 'closed';

export interface ConnectionState {
  readonly status: Status;
  /** The transport in use, such as `websocket`; null without a connection. */
  readonly transport: string | null;
  /** Attempts since the last connection that held. */
  readonly attempt: number;
  /** When the next attempt is, in milliseconds since 1970. */
  readonly retryAt: number | null;
  /** Since when it is in this status. */
  readonly since: number;
  /** What ended the last connection or attempt. */
  readonly error: ChangefeedError | null;
}

/**
 * - `subscribing`: there are no rows yet
 * - `live`: the rows are what SELECT returns at `position`
 * - `stale`: rows of before, while the connection is away or the server sends new ones
 * - `error`: refused or revoked; there are no rows
 * - `closed`: unsubscribed
 */
export type ChannelState = 'subscribing' | 'live' | 'stale' | 'error' | 'closed';

/** Something with a value that changes; fits `useSyncExternalStore`. */
export interface Readable<T> {
  readonly current: T;
  /** Calls back behind each change, until the function that it returns is called. */
  subscribe(listener: () => void): () => void;
}

export interface EntityInfo {
  readonly key: readonly string[];
  readonly columns: readonly string[];
}

export interface ChangeOf<K, E extends Entity> {
  readonly channel: string;
  readonly entity: K;
  readonly key: E['Key'];
}

/** One operation on one row. `row` is the whole row as it is behind the operation. */
export type Change<C extends ChannelTypes = ChannelTypes> = {
  [K in keyof C['entities'] & string]:
    | (ChangeOf<K, C['entities'][K]> & { readonly op: 'append' | 'replace'; readonly row: C['entities'][K]['Row'] })
    | (ChangeOf<K, C['entities'][K]> & { readonly op: 'merge'; readonly row: C['entities'][K]['Row']; readonly set: Partial<C['entities'][K]['Row']> })
    | (ChangeOf<K, C['entities'][K]> & { readonly op: 'remove'; readonly row?: undefined });
}[keyof C['entities'] & string];

/** One committed transaction; all of it has been applied to the rows of all channels. */
export interface Transaction<C extends ChannelTypes = ChannelTypes> {
  /** `replay`: missed while the client was away, or while its rows were on the way. */
  readonly phase: 'replay' | 'live';
  /** What `pg_current_xact_id()` gave to the writer. */
  readonly txid: string | null;
  readonly position: string | null;
  readonly committedAt: string | null;
  readonly changes: readonly Change<C>[];
}

/** What a flush brought: one change for each row, whatever the number of transactions. */
export interface Changes<C extends ChannelTypes = ChannelTypes> {
  /** All rows were replaced, by a snapshot or because they were taken away; `changes` is empty. */
  readonly reset: boolean;
  readonly changes: readonly Change<C>[];
}

/** A message of a channel. Those of SQL and of events belong to a transaction. */
export interface Message<T = unknown> {
  readonly channel: string;
  readonly event: string;
  readonly payload: T;
  /** The sender's claim `sub`, if a client has sent it. */
  readonly from: string | null;
  readonly txid: string | null;
  readonly committedAt: string | null;
}

/** Rows and a position that came another way: by server rendering, or out of a store. */
export interface Initial {
  readonly rows: Readonly<Record<string, readonly object[]>>;
  readonly position?: string | null;
  /** In the order of the rows, if the channel has them. */
  readonly versions?: Readonly<Record<string, readonly (string | null | undefined)[]>>;
}

export interface ChannelOptions {
  /** Rows to begin with; those since `position` follow. */
  initial?: Initial;
  /** False: changes only, no rows to begin with. */
  snapshot?: boolean;
  /** Also the rows' versions, for `expect` of calls. */
  versions?: boolean;
}

export interface WaitOptions {
  /** 30 seconds if it is left out. */
  timeoutMs?: number;
  signal?: AbortSignal;
}

export interface Channel<C extends ChannelTypes = ChannelTypes> {
  readonly name: string;
  readonly state: ChannelState;
  readonly error: ChangefeedError | null;
  /** What to come back with; null before the first rows. */
  readonly position: string | null;
  /** Keys and columns by entity, as the server has told them. */
  readonly entities: Readonly<Record<string, EntityInfo>>;
  /** Resolves when the rows are there for the first time; rejects if they never will be. */
  readonly ready: Promise<void>;

  /** The rows of an entity (of the only one if there is no name), the same array until they change. */
  rows<K extends keyof C['entities'] & string>(entity?: K): readonly C['entities'][K]['Row'][];
  /** One row by its key. */
  get<K extends keyof C['entities'] & string>(key: C['entities'][K]['Key'], entity?: K): C['entities'][K]['Row'] | undefined;
  /** The version of a row, if the channel was asked for with `versions`. */
  version<K extends keyof C['entities'] & string>(key: C['entities'][K]['Key'], entity?: K): string | undefined;

  /** Behind each flush in which rows or the state have changed. */
  subscribe(listener: () => void): () => void;
  on(event: 'change', listener: (changes: Changes<C>) => void): () => void;
  /** At once, behind each transaction. */
  on(event: 'transaction', listener: (transaction: Transaction<C>) => void): () => void;
  /** New rows for all have come, for the first time as well. */
  on(event: 'snapshot', listener: () => void): () => void;
  on(event: 'resync', listener: (reason: string) => void): () => void;
  on(event: 'message', listener: (message: Message) => void): () => void;
  on(event: 'state', listener: (state: ChannelState) => void): () => void;
  on(event: 'error', listener: (error: ChangefeedError) => void): () => void;
  /** The server's own objects about presence, for `pg-changefeed/presence`. */
  on(event: 'presence', listener: (message: AnyRow) => void): () => void;

  /** Calls back for messages with that name. */
  message<K extends keyof C['events'] & string>(event: K, listener: (payload: C['events'][K], message: Message<C['events'][K]>) => void): () => void;
  /** Sends a message to all subscribers. `echo: false`: not to this client. */
  publish<K extends keyof C['events'] & string>(event: K, payload: C['events'][K], options?: { echo?: boolean }): Promise<void>;
  /**
   * Resolves when the transaction with that `txid` is in the rows, or is known to have no part in them.
   * A write that was not made by `call` has to ask `pg_current_xact_id()` in the same transaction.
   */
  seen(txid: string, options?: WaitOptions): Promise<void>;
  /** Loads all rows again; the old ones stay until the new ones are there. */
  refresh(): void;
  /** What to keep for `initial`. */
  dump(): Initial;
  /** Ends this handle. With the last one of its name the server is told, a second later. */
  unsubscribe(): void;
}

export interface CallOptions {
  /** A key of your own: the call is done once, however often it is sent. One is made if it is left out. */
  key?: string;
  /** Rows that have to be as they were seen. */
  expect?: Expectation | readonly Expectation[];
  /** 30 seconds if it is left out. */
  timeoutMs?: number;
  signal?: AbortSignal;
}

export interface Expectation {
  channel: string;
  entity?: string;
  key: object;
  version: string;
}

export interface CallResult<T> {
  result: T;
  /** Null if nothing was written. */
  txid: string | null;
}

/** Reads and writes JSON; `pg-changefeed/lossless` has one that keeps all digits. */
export interface Codec {
  parse(text: string): unknown;
  stringify(value: unknown): string;
}

export type Token = string | null | undefined;

export interface ClientOptions {
  /** The server: `https://example.com`, `ws://localhost:8040`, or in a page `/`. */
  url: string;
  /** The token, or a function that gives one: `connect` may get one that is kept, `refresh` needs another one. */
  auth?: Token | ((why: 'connect' | 'refresh') => Token | Promise<Token>);
  /** A WebSocket if it is left out; `pg-changefeed/http` has others. */
  transport?: Transport;
  codec?: Codec;
  backoff?: { minMs?: number; maxMs?: number };
  /** When listeners of `change` and `subscribe` are called: `microtask` if it is left out, or every so many milliseconds. */
  flush?: 'sync' | 'microtask' | 'frame' | number;
  /** How long a channel goes on behind its last `unsubscribe()`: 1 second if it is left out. */
  lingerMs?: number;
  /** False: without live updates until `setLive(true)`. */
  live?: boolean;
  WebSocket?: typeof WebSocket;
  fetch?: typeof fetch;
}

export interface Client<S extends Schema = AnySchema> {
  readonly connection: Readable<ConnectionState>;
  /** The channels that are open, with the number of their rows. */
  channels(): { readonly name: string; readonly state: ChannelState; readonly rows: number }[];
  /** Not needed: `channel`, `call` and `publish` connect. Behind `unauthorized` it tries again. */
  connect(): void;
  /** Until `connect()`. Rows stay. */
  disconnect(): void;
  /** The switch for live updates: false disconnects and keeps the rows, true resumes. */
  setLive(on: boolean): void;
  /** Another user, or a fresh token of the same one. Null, another user or another function: all rows are purged at once. */
  setAuth(auth: ClientOptions['auth']): void;
  /** For good: rows are purged, what waits is rejected. */
  close(): void;
  channel<N extends ChannelName<S>>(name: N, options?: ChannelOptions): Channel<ChannelOf<S, N>>;
  publish(channel: string, event: string, payload?: unknown, options?: { echo?: boolean }): Promise<void>;
  call<F extends keyof S['functions'] & string>(name: F, args: S['functions'][F]['Args'], options?: CallOptions):
    Promise<CallResult<S['functions'][F]['Result']>>;
  /** Resolves when everything that was committed before has been delivered. */
  sync(options?: WaitOptions): Promise<void>;
  /** Every channel of one commit, at once. */
  on(event: 'transaction', listener: (transaction: Transaction) => void): () => void;
  on(event: 'error', listener: (error: ChangefeedError) => void): () => void;
  /** Messages of the protocol, as they are, with tokens; `debugLog` of `pg-changefeed/extras` leaves those out. */
  on(event: 'send' | 'receive', listener: (message: AnyRow) => void): () => void;
  /** Somebody has asked for a row by its key. */
  on(event: 'get', listener: (row: object | undefined) => void): () => void;
  /** The rows have to go: at sign-out or for another user, or because of the server's `identity_changed`. */
  on(event: 'purge', listener: (why?: 'identity_changed') => void): () => void;
  /** For extensions: a request of the protocol, without `id`; resolves with its answer. */
  request(message: AnyRow, options?: RequestOptions): Promise<AnyRow>;
}

export interface RequestOptions extends WaitOptions {
  /** May it be sent again when the connection was lost before the answer? */
  resend?: boolean;
}

export interface TransportContext {
  /** The server's address with http or https and without a slash at the end. */
  base: string;
  token: string | null;
  codec: Codec;
  WebSocket?: typeof WebSocket;
  fetch?: typeof fetch;
  /** What is there of a channel. */
  dump(channel: string): Initial | undefined;
  /** Takes all rows away, for another identity. */
  purge(): void;
  /** A message of the server, or its text. */
  message(message: AnyRow | string): void;
  /**
   * The connection has ended, or could not be made. `code` is that of WebSockets, or the HTTP status. `again`: come back
   * at once, without counting it as a failure.
   */
  closed(code: number, error?: ChangefeedError, again?: boolean): void;
}

export interface Link {
  /** `websocket`, `sse`, `poll` ... */
  readonly name: string;
  /** A message of the client: first `connect`, right behind it what it subscribes to. */
  send(message: AnyRow): void;
  close(): void;
}

/** Makes one connection. */
export type Transport = (context: TransportContext) => Link;
