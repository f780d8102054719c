/**
 * The client: one connection for all channels, which comes back by itself.
 *
 * Everything that the server says arrives in `take`, in order, and has been applied when `take` returns; a transaction counts
 * as a whole. Who listens to changes is called at the next flush. A connection has a number (`epoch`), so that what an old one
 * still says is not taken for the new one's.
 */
import { createFeed, type Core, type Feed } from './channel.js';
import { ChangefeedError, errorOf } from './error.js';
import { webSocket } from './socket.js';
import { claimsOf, hasExpired } from './token.js';
import type {
  AnyRow, CallOptions, Change, ChannelOptions, Client, ClientOptions, Codec, ConnectionState, Link, Schema, AnySchema, Status,
  WaitOptions,
} from './types.js';
import { createEmitter, createScheduler, createTimer, jitter } from './util.js';

/** Something that is waited for: the answer to a message, or that a check comes true. */
interface Request {
  _message: AnyRow;
  _check: (() => boolean) | undefined;
  _sentAt: number;
  /** May it be sent again on another connection? */
  _resend: boolean | undefined;
  /** How often the application had named another token when it was made. */
  _generation: number;
  _done(answer: AnyRow): void;
  _failed(error: ChangefeedError): void;
}

type How = WaitOptions & { resend?: boolean; _check?: () => boolean; _hello?: boolean };

/** A connection that has held for so long was not a failure. */
const STABLE_MS = 5000;
/** What the server grants beyond its heartbeat, we do; and the time for a token and a connection. */
const GRACE_MS = 10_000;
const CONNECT_MS = 20_000;
/** How often is looked whether the server was heard of, and whether the machine has slept. */
const TICK_MS = 2000;
/** Tokens are refreshed so long before they expire. */
const REFRESH_MS = 60_000;
const MAX_TIMER_MS = 2 ** 31 - 1;

const noAnswer = (what: string) => new ChangefeedError('no_answer', what);
const noConnection = (what: unknown) => new ChangefeedError('no_connection', String(what));
const isClosed = () => new ChangefeedError('closed', 'closed');
const asError = (error: unknown) => (error instanceof ChangefeedError ? error : noConnection(error));
/** Not by the wall's clock, which may be set. */
const now = () => performance.now();

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
  const tokenTimer = createTimer();
  const ending = new AbortController();
  /** For the application's log, and for metrics. */
  const debug = (event: string, data?: unknown) => emit('debug', event, data);
  if (options.debug) on('debug', options.debug);

  let auth = options.auth;
  let live = options.live !== false;
  let connection: ConnectionState = { status: 'idle', transport: null, attempt: 0, retryAt: null, since: Date.now(), error: null };
  let link: Link | null = null;
  let epoch = 0;
  let open = false;
  let once = false;
  let wanted = false;
  let hidden = false;
  let taking = false;
  let attempt = 0;
  let floorMs = 0;
  let token: string | null | undefined;
  /** The token that the server did not take, until another one is. */
  let refused: string | null | undefined;
  let generation = 0;
  let tokenGeneration = 0;
  let heartbeatMs = 25_000;
  let heardAt = Infinity;
  let openedAt = 0;
  let tickedAt = 0;
  let nextId = 1;
  let nextSeq = 1;
  let parts: AnyRow[] = [];
  let settled = 0n;
  /** The transactions of frames for all channels. */
  const common = { _seen: [] as string[] };


  // ---- State ----

  const setConnection = (status: Status, more: Partial<ConnectionState> = {}) => {
    connection = {
      status, transport: link?.name ?? null, attempt, retryAt: null, error: connection.error, ...more,
      since: status === connection.status ? connection.since : Date.now(),
    };
    debug(status, connection);
    emit('connection');
  };
  const report = (error: ChangefeedError) => {
    debug('error', error);
    emit('error', error);
  };
  const flushNow = () => {
    for (const feed of feeds.values()) feed._flush();
  };
  const schedule = createScheduler(options.flush ?? 'microtask', flushNow);

  // ---- Sending ----

  const transmit = (id: number | undefined, message: AnyRow, request?: Request) => {
    try {
      if (request) request._sentAt = now();
      debug('send', message.token ? { ...message, token: '…' } : message);
      link!.send({ ...message, id });
    } catch (error) {
      // There is no JSON for it.
      request?._failed(new ChangefeedError('22023', String(error)));
    }
  };
  const ask = (message: AnyRow, { _hello, timeoutMs = _hello ? MAX_TIMER_MS : 30_000, signal, resend, _check }: How = {}): Promise<AnyRow> =>
    new Promise((resolve, reject) => {
      const id = nextId++;
      const timer = createTimer();
      const ended = <T>(act: (value: T) => void) => (value: T) => {
        timer();
        signal?.removeEventListener('abort', aborted);
        requests.delete(id);
        act(value);
      };
      const request: Request = {
        _message: message, _check, _resend: resend, _sentAt: 0, _generation: generation, _done: ended(resolve), _failed: ended(reject),
      };
      const aborted = () => request._failed(noAnswer('aborted'));
      if (signal?.aborted) return aborted();
      if (connection.status === 'closed') return request._failed(isClosed());
      signal?.addEventListener('abort', aborted);
      timer(() => request._failed(noAnswer(`${message.type}: no answer`)), timeoutMs);
      requests.set(id, request);
      if (_check) check();
      else if (open || _hello) transmit(id, message, request);
      else begin();
    });
  /** What was waited for, and has come. */
  const check = () => {
    for (const request of [...requests.values()]) if (request._check?.()) request._done({});
  };

  const leave = (feed: Feed) => {
    const asked = feed._asked;
    feed._lost();
    if (!link || !asked) return;
    // In the order in which they are said, also before the connection is open.
    ask({ type: 'unsubscribe', channel: feed._name }, { _hello: true }).catch(() => {});
  };
  const subscribe = (feed: Feed) => {
    if (!link || feed._asked || feed._waits || feed._state === 'error') return;
    const id = (feed._asked = nextId);
    ask({ type: 'subscribe', ...feed._request() }, { _hello: true }).catch((error) => feed._asked === id && notSubscribed(feed, error));
  };
  const notSubscribed = (feed: Feed, error: ChangefeedError) => {
    feed._asked = 0;
    if (error.code === '22023' && feed._position()) {
      // A position that the server does not take: begin again.
      feed.resync({ reason: 'position_refused' });
      return subscribe(feed);
    }
    report(error);
    if (error.retryable) later(feed, error);
    else {
      feed._fail(error);
      flushNow();
    }
  };
  const later = (feed: Feed, error: ChangefeedError) => {
    const from = epoch;
    feed._waits = true;
    setTimeout(() => {
      if (epoch !== from) return;
      feed._waits = false;
      subscribe(feed);
    }, Math.max(error.retryAfterMs ?? 0, jitter(feed._attempts++, minMs, maxMs)));
  };
  const refresh = (feed: Feed, reason = 'refresh', error?: ChangefeedError) => {
    feed._revive();
    leave(feed);
    feed.resync({ reason });
    // What goes wrong again and again must not do so without a pause.
    if (error) later(feed, error);
    else if (link) subscribe(feed);
    else begin();
  };

  // ---- Receiving ----

  /** Where all channels are that are ready, or the one that is named. */
  const moved = (position: string | null | undefined, only?: Feed) => {
    for (const feed of only ? [only] : feeds.values()) if (only || (feed._live && !feed._paced)) feed._setPosition(position);
  };

  const apply = (frames: AnyRow[]) => {
    const { channel, txid, position = null, committed_at: committedAt = null } = frames.at(-1)!;
    const byFeed = new Map<Feed, AnyRow[]>();
    const done: [Feed, Change[]][] = [];
    for (const change of frames.flatMap(({ changes }) => changes as AnyRow[])) {
      const feed = feeds.get(change.channel);
      if (!feed?._on) continue;
      if (!byFeed.has(feed)) byFeed.set(feed, []);
      byFeed.get(feed)!.push(change);
    }
    for (const [feed, changes] of byFeed) {
      try {
        done.push([feed, feed._change(changes, txid)]);
      } catch (error) {
        if (!(error instanceof ChangefeedError)) throw error;
        misfit(feed, error);
      }
    }
    // A frame with a channel of its own counts for that channel only.
    const only = feeds.get(channel);
    const holder = channel === undefined ? common : only?._on ? only : undefined;
    if (holder) {
      moved(position, channel && only);
      holder._seen = [...holder._seen.slice(-99), txid];
    }
    const changes = done.flatMap(([, each]) => each);
    const told = { phase: channel === undefined || only?._live ? 'live' : 'replay', txid, position, committedAt };
    for (const [feed, own] of done) if (own.length) feed._emit('transaction', { ...told, changes: own });
    if (changes.length) emit('transaction', { ...told, changes });
  };

  /** Never wrong without a word: the rows are asked for again, or given up. */
  const misfit = (feed: Feed, error: ChangefeedError) => {
    report(error);
    if (error.code === 'inconsistent') return refresh(feed, error.code, error);
    leave(feed);
    feed._fail(error);
  };

  const answer = (message: AnyRow): boolean => {
    const request = requests.get(message.id);
    if (!request) return false;
    if (message.type === 'error') request._failed(errorOf(message));
    else request._done(message);
    return true;
  };
  const accept = (message: AnyRow) => {
    if (message.expires_at) expires(message.expires_at);
    answer(message);
  };
  const passed = (message: AnyRow) => {
    moved(message.position);
    if (message.settled_txid) settled = BigInt(message.settled_txid);
    for (const feed of feeds.values()) if (feed._live) feed._attempts = 0;
    answer(message);
  };

  const handlers: Record<string, (message: AnyRow, feed: Feed | undefined) => void> = {
    connected(message) {
      open = true;
      openedAt = now();
      refused = undefined;
      once = true;
      heartbeatMs = message.heartbeat_ms ?? heartbeatMs;
      accept(message);
      setConnection(link!.name === 'poll' ? 'polling' : 'connected', { error: null });
      for (const [id, request] of [...requests]) if (!request._sentAt && !request._check) transmit(id, request._message, request);
    },
    ok: accept,
    result: accept,
    subscribed(message) {
      const feed = feeds.get(message.channel);
      answer(message);
      // Of one that was ended before it was answered nothing counts.
      if (feed?._asked === message.id) feed!._subscribed(message);
    },
    transaction(message) {
      const { seq, part = 1, last } = message;
      if ((seq ?? nextSeq) !== nextSeq || part !== parts.length + 1) {
        return broken(new ChangefeedError('inconsistent', 'a frame is missing'));
      }
      parts.push(message);
      if (last === false) return;
      const frames = parts;
      parts = [];
      if (seq) nextSeq += 1;
      apply(frames);
    },
    message(message, feed) {
      if (message.position) moved(message.position, feed?._live && !feed._paced ? undefined : feed);
      feed?.message(message);
    },
    presence(message, feed) {
      if (!answer(message)) feed?.presence(message);
    },
    resync(message, feed) {
      common._seen = [];
      feed?.resync(message);
    },
    revoked(message, feed) {
      const error = errorOf({ code: /^(tok|rev)/.test(message.reason) ? '28000' : '42501', ...message });
      report(error);
      feed?._fail(error);
      flushNow();
    },
    ping(message) {
      transmit(undefined, { type: 'pong' });
      passed(message);
    },
    synced: passed,
    error(message) {
      if (answer(message)) return;
      // A minute before the token expires.
      if (message.expires_at && typeof auth === 'function') renewToken();
      else report(errorOf(message));
    },
    closing(message) {
      floorMs = message.retry_after_ms ?? 0;
    },
  };

  const take = (said: AnyRow | string) => {
    let feed: Feed | undefined;
    heardAt = now();
    // Nobody is called in the middle of a transaction.
    taking = true;
    try {
      const message = typeof said === 'string' ? (codec.parse(said) as AnyRow) : said;
      debug('receive', message);
      feed = feeds.get(message.channel);
      // What is not subscribed to any more gets nothing, whatever is still on its way.
      const its = feed?._on ? feed : undefined;
      const { type } = message;
      if (/^(snap|read|col)/.test(type)) its?.[type as 'ready'](message);
      else handlers[type]?.(message, its);
      check();
    } catch (error) {
      if (feed && error instanceof ChangefeedError) misfit(feed, error);
      else broken(asError(error));
    }
    taking = false;
    schedule();
  };

  // ---- The connection ----

  const stop = (code = 0) => {
    epoch += 1;
    retryTimer();
    tokenTimer();
    const old = link;
    link = null;
    open = false;
    heardAt = Infinity;
    parts = [];
    nextSeq = 1;
    settled = 0n;
    old?.close();
    for (const feed of feeds.values()) feed._lost();
    for (const request of [...requests.values()]) {
      if (!request._sentAt) continue;
      // What was too large will be again.
      if (request._resend && code !== 1009) request._sentAt = 0;
      else request._failed(noConnection('connection lost'));
    }
    schedule();
  };

  /** What cannot be followed here is asked for again over another connection. */
  const broken = (error: ChangefeedError) => {
    report(error);
    lost(1006, error);
  };

  /** The end of a connection that nobody asked for. */
  const lost = (code: number, error = noConnection(`connection lost (${code})`), again?: boolean) => {
    const held = open && now() - openedAt > STABLE_MS;
    stop(code);
    if (!wanted) return;
    if (code === 4003 || code === 4004 || code === 401) {
      // One other token is asked for; the same one again would be refused again.
      if (typeof auth !== 'function' || refused !== undefined) return unauthorized(error);
      refused = token;
      connection = { ...connection, error };
      return void start();
    }
    if (held || again) attempt = 0;
    // Who has sent or wants too much had better wait.
    const slow = error.type === 'limit' || code === 1013 || (code > 4004 && code < 4008);
    const delay = again ? 0 : Math.max(floorMs, error.retryAfterMs ?? 0, jitter(slow ? 99 : attempt, minMs, maxMs));
    attempt += 1;
    floorMs = 0;
    setConnection('reconnecting', { retryAt: Date.now() + delay, error });
    retryTimer(() => void start(), delay);
  };

  const unauthorized = (error: ChangefeedError) => {
    stop();
    setConnection('unauthorized', { error });
    report(error);
  };

  const purge = () => {
    for (const feed of feeds.values()) feed._purge();
    // What one user has asked for is not done in the name of another.
    for (const request of [...requests.values()]) {
      if (request._generation <= tokenGeneration) request._failed(new ChangefeedError('28000', 'another identity'));
    }
    emit('purge');
    flushNow();
  };
  const setToken = (next: string | null) => {
    // Before there was a token, rows that came another way stay.
    if (token !== undefined ? who(next) !== who(token) : generation && !next) purge();
    token = next;
    tokenGeneration = generation;
  };

  const start = async (given?: string | null) => {
    if (!wanted || hidden) return;
    stop();
    const from = epoch;
    heardAt = now();
    tickedAt = Date.now();
    tickTimer(tick, TICK_MS);
    setConnection(once ? 'reconnecting' : 'connecting');
    try {
      let next = given ?? (typeof auth === 'function' ? await auth(refused === undefined ? 'connect' : 'refresh') : auth) ?? null;
      // One that is kept may be old.
      if (!given && typeof auth === 'function' && hasExpired(next)) next = await auth('refresh') ?? null;
      if (epoch !== from) return;
      if (next === refused) return unauthorized(connection.error!);
      setToken(next);
      // What was refused may be granted now.
      for (const feed of feeds.values()) feed._revive();
      const address = new URL(typeof options.url === 'function' ? options.url() : options.url, globalThis.location?.href);
      link = (options.transport ?? webSocket)({
        ...options,
        base: address.href.replace(/^ws/, 'http').replace(/\/+$/, ''),
        token: next,
        codec,
        dump: (name) => feeds.get(name)?._dump(),
        purge,
        message: (message) => epoch === from && take(message),
        closed: (code, error, again) => epoch === from && lost(code, error, again),
      });
      ask({ type: 'connect', client: 'pg-changefeed-js', ...(next && { token: next }) }, { _hello: true }).catch(notTaken());
      // Right behind it, and not a round trip later.
      for (const feed of feeds.values()) subscribe(feed);
    } catch (error) {
      if (epoch === from) lost(0, asError(error));
    }
  };
  /** What to do if the server does not take the token. */
  const notTaken = () => {
    const from = epoch;
    return (error: ChangefeedError) => {
      if (epoch === from) lost(error.type === 'auth' ? 4003 : 1006, error);
    };
  };
  /** What needs a connection makes one, unless the application has said otherwise. */
  const begin = () => {
    if (connection.status === 'idle') self.connect();
  };

  /** The server pings; who has not heard of it for longer is alone. */
  const tick = () => {
    const since = tickedAt;
    const wall = Date.now();
    tickedAt = wall;
    tickTimer(tick, TICK_MS);
    if (now() - heardAt > (open ? heartbeatMs + GRACE_MS : CONNECT_MS)) lost(4000, noAnswer('no answer'));
    // No event tells everywhere that the machine has slept; a timer that comes far too late does.
    else if (Math.abs(wall - since - TICK_MS) > TICK_MS) wake();
  };
  /** Something says that the connection may be dead, or could be made now. */
  const wake = () => {
    if (globalThis.document?.visibilityState === 'hidden') return;
    if (connection.retryAt) {
      attempt = 0;
      void start();
    } else if (open) {
      const from = epoch;
      const heard = heardAt;
      ask({ type: 'sync' }, { timeoutMs: 5000 }).catch((error) => epoch === from && heardAt === heard && lost(4000, error));
    }
  };
  const listen = (target: EventTarget | undefined, event: string, listener: () => void) =>
    target?.addEventListener?.(event, listener, { signal: ending.signal });
  const page = globalThis as unknown as EventTarget;
  listen(page, 'online', wake);
  // The page may come back out of the browser's cache.
  listen(page, 'pagehide', () => {
    hidden = true;
    if (connection.status === 'unauthorized' || !wanted) return;
    stop();
    setConnection('reconnecting');
  });
  listen(page, 'pageshow', () => {
    if (hidden && connection.status !== 'unauthorized') void start();
    hidden = false;
  });
  listen(globalThis.document, 'visibilitychange', wake);

  // ---- Tokens ----

  /** A token for the connection: in place if it is the same user's, else with another connection. */
  const use = async (next: string | null) => {
    const same = open && next && who(next) === who(token);
    // Before anybody is told that the connection ends.
    setToken(next);
    if (!same) return start(next);
    await ask({ type: 'token', token: next });
    for (const feed of feeds.values()) {
      feed._revive();
      subscribe(feed);
    }
  };
  const expires = (at: string) => {
    const left = Date.parse(at) - Date.now();
    // With a clock that is wrong the server's warning has to do.
    if (left > 0 && typeof auth === 'function') tokenTimer(renewToken, Math.min(MAX_TIMER_MS, Math.max(1000, left - REFRESH_MS, left / 2)));
  };
  const renewToken = async () => {
    const from = epoch;
    try {
      const next = await (auth as () => unknown as (why: string) => Promise<string | null>)('refresh');
      if (epoch === from && next) await use(next);
    } catch (error) {
      // The connection goes on with the old one; when that expires the server says so.
      if (epoch === from) report(asError(error));
    }
  };

  // ---- What the application has ----

  const core: Core = {
    _codec: codec,
    _flush: () => taking || schedule(),
    _debug: debug,
    _passed: (txid, paced) => BigInt(txid) < settled || (!paced && common._seen.includes(txid)),
    _publish: (...args) => self.publish(...args),
    _wait: (_check, type, how) => ask({ type }, { timeoutMs: 5000, ...how, _check }),
    _refresh: refresh,
    _unused(feed) {
      if (connection.status === 'closed') return;
      feed._linger(() => {
        feeds.delete(feed._name);
        leave(feed);
        feed._close();
      }, options.lingerMs ?? 1000);
    },
  };

  const self: Client<S> = {
    connection: {
      get current() {
        return connection;
      },
      subscribe: (listener) => on('connection', listener),
    },
    channels: () => [...feeds.values()].map((feed) => ({ name: feed._name, state: feed._state, rows: feed._cache._size() })),
    connect() {
      const { status } = connection;
      if (status === 'closed' || !live || (wanted && status !== 'unauthorized')) return;
      wanted = true;
      refused = undefined;
      void start();
    },
    disconnect() {
      if (connection.status === 'closed') return;
      wanted = false;
      stop();
      tickTimer();
      setConnection('disconnected', { error: null });
    },
    setLive(value) {
      live = value;
      self[value ? 'connect' : 'disconnect']();
    },
    setAuth(next) {
      // Whose token it will be is not known yet, or whose it would have been: nothing is shown to another user meanwhile.
      if (auth && who(auth) !== who(next) && (token === undefined || typeof next === 'function')) {
        tokenGeneration = generation;
        purge();
        token = undefined;
      }
      auth = next;
      refused = undefined;
      generation += 1;
      if (typeof next === 'function') void start();
      else use(next ?? null).catch(notTaken());
    },
    close() {
      if (connection.status === 'closed') return;
      for (const request of [...requests.values()]) request._failed(isClosed());
      self.disconnect();
      setConnection('closed');
      ending.abort();
      for (const feed of feeds.values()) feed._close();
      feeds.clear();
    },
    channel(name, how: ChannelOptions = {}) {
      let feed = feeds.get(name);
      if (feed) {
        feed._linger();
        if (feed._needs(how)) refresh(feed);
      } else {
        feed = createFeed(core, name, how);
        if (connection.status === 'closed') feed._close();
        else {
          feeds.set(name, feed);
          if (link) subscribe(feed);
          else begin();
        }
      }
      return feed._handle() as never;
    },
    async publish(channel, event, payload = null, how) {
      await ask({ type: 'publish', channel, event, payload, ...how });
    },
    async call(name, args, { key, expect, ...how }: CallOptions = {}) {
      // With its key it is done once, however often it is sent. (Only secure pages have randomUUID.)
      key ??= crypto.getRandomValues(new Uint32Array(4)).join('-');
      const { result, txid } = await ask({ type: 'call', function: name, args, key, ...(expect && { expect }) }, { ...how, resend: true });
      return { result, txid: txid ?? null };
    },
    async sync(how) {
      await ask({ type: 'sync' }, { timeoutMs: 5000, ...how });
    },
    on: (event: string, listener: (...values: never[]) => void) => on(event, listener as () => void),
    request: ask,
  } as Client<S>;
  return self;
};
