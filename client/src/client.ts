/**
 * The client: one connection for all channels, which comes back by itself.
 *
 * Everything that the server says arrives in `take`, in order, and has been applied when `take` returns; a transaction counts
 * as a whole. Who listens to changes is called at the next flush. A connection has a number (`epoch`), so that what an old one
 * still says is not taken for the new one's.
 *
 * What is neither connection, resume nor rows is in entries of its own. They go by what the client is: `request`, which sends any
 * message of the protocol and waits for its answer, and the events `send`, `receive` and `get`.
 */
import { createFeed, type Feed } from './channel.js';
import { ChangefeedError, errorOf } from './error.js';
import { webSocket } from './socket.js';
import { ASK_MS, CONNECT_MS, GRACE_MS, STABLE_MS, TICK_MS } from './times.js';
import { claimsOf } from './token.js';
import type {
  AnyRow, AnySchema, CallOptions, Change, ChannelOptions, Client, ClientOptions, Codec, ConnectionState, Link, RequestOptions, Schema, Status,
} from './types.js';
import { createEmitter, createScheduler, createTimer } from './util.js';

type How = RequestOptions & { _check?: () => boolean };

/** Something whose answer is waited for. */
interface Request {
  _message: AnyRow;
  _sent: boolean;
  /** Nothing is sent; the answer is that this comes true. */
  _check: (() => boolean) | undefined;
  /** May it be sent again on another connection? */
  _resend: boolean | undefined;
  _done(answer: AnyRow): void;
  _failed(error: ChangefeedError): void;
}

const asError = (error: unknown, code = 'no_connection') => (error instanceof ChangefeedError ? error : new ChangefeedError(code, String(error)));
const ignore = () => {};

/** Whose token it is, as far as can be read here; the server looks at more. */
const who = (token: ClientOptions['auth']): unknown => {
  const claims = claimsOf(token as string);
  return claims ? `${claims.role} ${claims.sub}` : token;
};

export const createClient = <S extends Schema = AnySchema>(options: ClientOptions): Client<S> => {
  const codec: Codec = options.codec ?? JSON;
  const { minMs = 500, maxMs = 20_000 } = options.backoff ?? {};
  const { on, emit } = createEmitter();
  const feeds = new Map<string, Feed>();
  const requests = new Map<number, Request>();
  const retryTimer = createTimer();
  const tickTimer = createTimer();
  const ending = new AbortController();

  let auth = options.auth;
  let live = options.live !== false;
  let connection = { error: null } as ConnectionState;
  let link: Link | null = null;
  let epoch = 0;
  let open = false;
  let wanted = false;
  let attempt = 0;
  let floorMs = 0;
  let token: string | null | undefined;
  /** The token that the server did not take, until another one is. */
  let refused: string | null | undefined;
  /** The application has said whose connection it is since it made the client. */
  let named = false;
  /** Requests from this id on are for the identity that is still to come. */
  let since = Infinity;
  let heartbeatMs = 25_000;
  // Not by the wall's clock, which may be set.
  let heardAt = Infinity;
  let openedAt = 0;
  let tickAt = 0;
  let nextId = 1;
  let nextSeq = 1;
  let parts: AnyRow[] = [];

  /** Work for this connection, and not for the next one. */
  const here = <A extends unknown[]>(work: (...args: A) => unknown) => {
    const from = epoch;
    return (...args: A) => epoch === from && work(...args);
  };
  /** A random time below one that doubles with each attempt, so that many clients do not come back together. */
  const pause = (attempts: number) => Math.random() * Math.min(maxMs, minMs * 2 ** attempts);

  // ---- State ----

  const setConnection = (status: Status, more?: Partial<ConnectionState>) => {
    if (connection.status === 'closed') return;
    connection = {
      status, transport: link?.name ?? null, attempt, retryAt: null, error: connection.error, ...more,
      since: status === connection.status ? connection.since : Date.now(),
    };
    emit('connection');
  };
  const report = (error: ChangefeedError) => emit('error', error);
  const flush = () => feeds.forEach((feed) => feed._flush());
  const schedule = createScheduler(options.flush ?? 'microtask', flush);

  // ---- Sending ----

  const transmit = (request: Pick<Request, '_message'> & Partial<Request>) => {
    try {
      request._sent = true;
      emit('send', request._message);
      link!.send(request._message);
    } catch (error) {
      // There is no JSON for it.
      request._failed!(new ChangefeedError('22023', String(error)));
    }
  };
  const ask = (message: AnyRow, { timeoutMs = 30_000, signal, resend, _check }: How = {}, hello?: boolean): Promise<AnyRow> =>
    new Promise((resolve, reject) => {
      const id = nextId++;
      const ended = <T>(act: (value: T) => void) => (value: T) => {
        clearTimeout(timer);
        signal?.removeEventListener('abort', aborted);
        requests.delete(id);
        act(value);
      };
      const request: Request = { _message: { ...message, id }, _check, _resend: resend, _sent: false, _done: ended(resolve), _failed: ended(reject) };
      const aborted = () => request._failed(new ChangefeedError('no_answer'));
      const timer = hello ? 0 : setTimeout(aborted, timeoutMs);
      if (signal?.aborted) return aborted();
      if (connection.status === 'closed') return request._failed(new ChangefeedError('closed'));
      signal?.addEventListener('abort', aborted);
      requests.set(id, request);
      if (_check) check();
      else if (open || hello) transmit(request);
      else begin();
    });
  /** What was waited for, and has come. */
  const check = () => requests.forEach((request) => request._check?.() && request._done({}));
  /** In the order in which it is said, also before the connection is open. */
  const say = (message: AnyRow) => ask(message, {}, true);

  // ---- Channels ----

  const leave = (feed: Feed) => {
    if (link && feed._asked) say({ type: 'unsubscribe', channel: feed._name }).catch(ignore);
    feed._lost();
  };
  const subscribe = (feed: Feed) => {
    // It has ended while it waited.
    if (feeds.get(feed._name) !== feed) return;
    if (!link) return begin();
    if (feed._asked || feed._waits || feed._state === 'error') return;
    const id = (feed._asked = nextId);
    say({ type: 'subscribe', ...feed._request() }).catch((error) => {
      if (feed._asked !== id) return;
      feed._asked = 0;
      failed(feed, error);
    });
  };
  const refresh = (feed: Feed, reason = 'refresh') => {
    if (feeds.get(feed._name) !== feed) return;
    feed._revive();
    leave(feed);
    feed._resync(reason);
    subscribe(feed);
  };
  /** Never wrong without a word: the rows are asked for again, or given up. */
  const failed = (feed: Feed, why: unknown) => {
    const error = asError(why, 'inconsistent');
    // A position that the server does not take: begin again.
    if (error.code === '22023' && feed._position()) return refresh(feed, 'position_refused');
    report(error);
    leave(feed);
    if (!error.retryable) return feed._fail(error);
    if (error.code === 'inconsistent') feed._resync(error.code);
    // What goes wrong again and again must not do so without a pause.
    feed._waits = true;
    setTimeout(here(() => {
      feed._waits = false;
      subscribe(feed);
    }), Math.max(error.retryAfterMs ?? 0, pause(feed._attempts++)));
  };

  // ---- Receiving ----

  /** Where all channels are that are ready, and what has come for all. */
  const moved = (position: string | null | undefined, txid?: string) =>
    feeds.forEach((feed) => feed._paced || feed._moved(feed._state === 'live' && position, txid));
  /** Of what is not subscribed to any more nothing counts, whatever is still on its way. */
  const its = (channel: string) => {
    const feed = feeds.get(channel);
    return feed?._on ? feed : undefined;
  };

  const apply = (frames: AnyRow[]) => {
    const { channel, txid, position = null, committed_at: committedAt = null } = frames.at(-1)!;
    const only = its(channel);
    const changes = { __proto__: null } as unknown as Record<string, AnyRow[]>;
    const done: [feed: Feed, own: Change[], error?: unknown][] = [];
    for (const frame of frames) for (const change of frame.changes) (changes[change.channel] ??= []).push(change);
    for (const name in changes) {
      const feed = its(name);
      try {
        if (feed) done.push([feed, feed._change(changes[name]!, txid)]);
      } catch (error) {
        // The position is of what it has not.
        feed!._on = false;
        done.push([feed!, [], error]);
      }
    }
    // A frame with a channel of its own counts for that channel only.
    if (channel === undefined) moved(position, txid);
    else only?._moved(position, txid);
    // Nobody who is told of the transaction sees what has a part of it only.
    for (const [feed, , error] of done) if (error) failed(feed, error);
    const all = done.flatMap(([, own]) => own);
    const told = { phase: channel === undefined || only?._state === 'live' ? 'live' : 'replay', txid, position, committedAt };
    for (const [feed, own] of done) if (own.length) feed._emit('transaction', { ...told, changes: own });
    if (all.length) emit('transaction', { ...told, changes: all });
  };

  const passed = ({ position, settled_txid: settled }: AnyRow) => {
    moved(position);
    feeds.forEach((feed) => feed._settled(settled));
  };

  const handlers: Record<string, (message: AnyRow, feed: Feed | undefined, request: Request | undefined) => void> = {
    connected(message) {
      open = true;
      openedAt = performance.now();
      refused = undefined;
      heartbeatMs = message.heartbeat_ms ?? heartbeatMs;
      setConnection(link!.name === 'poll' ? 'polling' : 'connected', { error: null });
      requests.forEach((request) => request._sent || request._check || transmit(request));
    },
    subscribed(message) {
      const feed = feeds.get(message.channel);
      // Of one that was ended before it was answered nothing counts.
      if (feed?._asked === message.id) feed!._subscribed(message);
    },
    transaction(message) {
      const { seq, part = 1, last } = message;
      if ((seq && seq !== nextSeq) || part !== parts.length + 1) {
        return broken(new ChangefeedError('inconsistent'));
      }
      parts.push(message);
      if (last === false) return;
      if (seq) nextSeq += 1;
      apply(parts.splice(0));
    },
    message(message, feed) {
      if (!feed) return;
      (feed._paced || feed._state !== 'live' ? feed._moved : moved)(message.position);
      feed._take.message!(message);
    },
    revoked(message, feed) {
      const error = errorOf(message);
      report(error);
      feed?._fail(error);
    },
    ping(message) {
      transmit({ _message: { type: 'pong' } });
      passed(message);
    },
    synced: passed,
    error(message, _, request) {
      const error = errorOf(message);
      if (request) request._failed(error);
      // Before the token expires.
      else if (message.expires_at && typeof auth === 'function') void renewToken();
      else report(error);
    },
    closing(message) {
      floorMs = message.retry_after_ms ?? 0;
    },
  };

  const take = (said: AnyRow | string) => {
    let feed: Feed | undefined;
    heardAt = performance.now();
    try {
      const message = typeof said === 'string' ? (codec.parse(said) as AnyRow) : said;
      const request = requests.get(message.id);
      emit('receive', message);
      feed = feeds.get(message.channel);
      const own = its(message.channel);
      (handlers[message.type] ?? (request ? ignore : own?._take[message.type]))?.(message, own, request);
      request?._done(message);
      check();
    } catch (error) {
      if (feed) failed(feed, error);
      else broken(asError(error));
    }
    if (options.flush === 'sync') flush();
    else schedule();
  };

  // ---- The connection ----

  const stop = (code = 0) => {
    const old = link;
    epoch += 1;
    retryTimer();
    link = null;
    open = false;
    heardAt = Infinity;
    parts = [];
    nextSeq = 1;
    old?.close();
    feeds.forEach((feed) => feed._lost());
    requests.forEach((request) => {
      if (!request._sent) return;
      // What was too large will be again.
      if (request._resend && code !== 1009) request._sent = false;
      else request._failed(asError('connection lost'));
    });
    schedule();
  };

  /** What cannot be followed here is asked for again over another connection. */
  const broken = (error: ChangefeedError) => {
    report(error);
    lost(1006, error);
  };

  /** The end of a connection that nobody asked for. */
  const lost = (code: number, error = asError('connection lost'), again?: boolean) => {
    const held = again || (open && performance.now() - openedAt > STABLE_MS);
    stop(code);
    if (!wanted) return;
    if (code === 4003 || code === 4004) {
      // One other token is asked for; the same one again would be refused again.
      if (typeof auth !== 'function' || refused !== undefined) return unauthorized(error);
      refused = token;
      connection = { ...connection, error };
      return void start();
    }
    if (held) attempt = 0;
    // Who has sent or wants too much had better wait.
    const slow = error.type === 'limit' || code === 1013 || (code > 4004 && code < 4008);
    const delay = again ? 0 : Math.max(floorMs, error.retryAfterMs ?? 0, pause(slow ? 99 : attempt));
    attempt += 1;
    floorMs = 0;
    setConnection('reconnecting', { retryAt: Date.now() + delay, error });
    retryTimer(start, delay);
  };

  const unauthorized = (error: ChangefeedError) => {
    stop();
    setConnection('unauthorized', { error });
    report(error);
  };

  const purge = (before = Infinity) => {
    feeds.forEach((feed) => feed._purge());
    // What one user has asked for is not done in the name of another.
    requests.forEach((request, id) => id < before && request._failed(new ChangefeedError('28000', 'identity_changed')));
    emit('purge');
    flush();
  };
  const setToken = (next: string | null) => {
    // Before there was a token, rows that came another way stay.
    if (token !== undefined ? who(next) !== who(token) : named && !next) purge(since);
    token = next;
    since = Infinity;
  };

  const tokenFor = async (why: 'connect' | 'refresh'): Promise<string | null> => {
    const next = (typeof auth === 'function' ? await auth(why) : auth) ?? null;
    // One that is kept may be old.
    return why === 'connect' && claimsOf(next)?.exp * 1000 <= Date.now() ? tokenFor('refresh') : next;
  };

  const start = async () => {
    if (!wanted) return;
    stop();
    const from = epoch;
    heardAt = performance.now();
    tickAt = Date.now();
    tick();
    setConnection(openedAt ? 'reconnecting' : 'connecting');
    try {
      const next = await tokenFor(refused === undefined ? 'connect' : 'refresh');
      if (epoch !== from) return;
      if (next === refused) return unauthorized(connection.error!);
      setToken(next);
      // What was refused may be granted now.
      feeds.forEach((feed) => feed._revive());
      const address = new URL(options.url, globalThis.location?.href);
      link = (options.transport ?? webSocket)({
        ...options,
        base: address.href.replace(/^ws/, 'http').replace(/\/+$/, ''),
        token: next,
        codec,
        dump: (name) => feeds.get(name)?._dump(),
        purge,
        message: here(take),
        closed: here(lost),
      });
      say({ type: 'connect', token: next ?? undefined }).catch(notTaken());
      // Right behind it, and not a round trip later.
      feeds.forEach(subscribe);
    } catch (error) {
      if (epoch === from) lost(0, asError(error));
    }
  };
  /** What to do if the server does not take the token. */
  const notTaken = () => here((error: ChangefeedError) => lost(error.type === 'auth' ? 4003 : 1006, error));
  /** What needs a connection makes one, unless the application has said otherwise. */
  const begin = () => {
    if (connection.status === 'idle') self.connect();
  };

  /** The server pings; who has not heard of it for longer is alone. */
  const tick = () => {
    const slept = Math.abs(Date.now() - tickAt) > TICK_MS;
    tickAt = Date.now() + TICK_MS;
    tickTimer(tick, TICK_MS);
    if (performance.now() - heardAt > (open ? heartbeatMs + GRACE_MS : CONNECT_MS)) lost(4000, new ChangefeedError('no_answer'));
    // No event tells everywhere that the machine has slept; a timer that comes far too late does.
    else if (slept) wake();
  };
  /** Something says that the connection may be dead, or could be made now. */
  const wake = () => {
    if (globalThis.document?.visibilityState === 'hidden') return;
    if (connection.retryAt) {
      attempt = 0;
      void start();
    } else if (open) {
      heardAt = Math.min(heardAt, performance.now() - heartbeatMs - GRACE_MS + ASK_MS);
      ask({ type: 'sync' }).catch(ignore);
    }
  };
  const listen = (event: string, listener: () => void) => globalThis.addEventListener?.(event, listener, ending);
  listen('online', wake);
  listen('visibilitychange', wake);
  // The page may come back out of the browser's cache, which takes no page with a connection.
  listen('pageshow', wake);
  listen('pagehide', () => link && lost(1001));

  // ---- Tokens ----

  /** A token for the connection: in place if it is the same user's, else with another connection. */
  const use = async (next: string | null) => {
    const same = open && next && who(next) === who(token);
    // Before anybody is told that the connection ends.
    setToken(next);
    if (!same) return start();
    await ask({ type: 'token', token: next });
    feeds.forEach((feed) => {
      feed._revive();
      subscribe(feed);
    });
  };
  const renewToken = async () => {
    const from = epoch;
    try {
      const next = await tokenFor('refresh');
      if (epoch === from && next) await use(next);
    } catch (error) {
      // The connection goes on with the old one; when that expires the server says so.
      if (epoch !== from) return;
      report(asError(error));
      setTimeout(here(renewToken), ASK_MS);
    }
  };

  setConnection('idle');

  // ---- What the application has ----

  const self = {
    connection: {
      get current() {
        return connection;
      },
      subscribe: (listener: () => void) => on('connection', listener),
    },
    channels: () => [...feeds.values()].map((feed) => ({ name: feed._name, state: feed._state, rows: feed._size() })),
    connect() {
      const { status } = connection;
      if (status === 'closed' || !live || (wanted && status !== 'unauthorized')) return;
      wanted = true;
      refused = undefined;
      void start();
    },
    disconnect() {
      wanted = false;
      stop();
      tickTimer();
      setConnection('disconnected', { error: null });
    },
    setLive(value: boolean) {
      live = value;
      self[value ? 'connect' : 'disconnect']();
    },
    setAuth(next: ClientOptions['auth']) {
      // Whose token it will be is not known yet, or whose it would have been: nothing is shown to another user meanwhile.
      if ((auth ?? token) !== undefined && who(auth) !== who(next) && (token === undefined || typeof next === 'function')) {
        purge();
        token = undefined;
      }
      auth = next;
      refused = undefined;
      named = true;
      since = nextId;
      // Before: the transport may end the connection when it is told.
      const refuse = notTaken();
      if (typeof next === 'function') void start();
      else use(next ?? null).catch(refuse);
    },
    close() {
      requests.forEach((request) => request._failed(new ChangefeedError('closed')));
      self.disconnect();
      setConnection('closed');
      ending.abort();
      feeds.forEach((feed) => feed._close());
      feeds.clear();
    },
    channel(name: string, how: ChannelOptions = {}) {
      let feed = feeds.get(name);
      if (feed) {
        feed._linger();
        if (feed._needs(how)) refresh(feed);
      } else {
        const made: Feed = feed = createFeed(
          name, how, codec, schedule, emit, ask, self.publish, () => refresh(made), () => made._linger(() => {
            feeds.delete(name);
            leave(made);
            made._close();
          }, options.lingerMs ?? 1000));
        if (connection.status === 'closed') feed._close();
        else {
          feeds.set(name, feed);
          subscribe(feed);
        }
      }
      return feed._handle();
    },
    publish: (channel: string, event: string, payload: unknown = null, how?: AnyRow) => ask({ type: 'publish', channel, event, payload, ...how }),
    async call(name: string, args: unknown, { key, expect, ...how }: CallOptions = {}) {
      // With its key it is done once, however often it is sent. (Only secure pages have randomUUID.)
      key ??= crypto.getRandomValues(new Uint32Array(4)).join();
      const { result, txid } = await ask({ type: 'call', function: name, args, key, ...(expect && { expect }) }, { ...how, resend: true });
      return { result, txid: txid ?? null };
    },
    sync: (how?: RequestOptions) => ask({ type: 'sync' }, how),
    on,
    request: ask,
  };
  return self as unknown as Client<S>;
};
