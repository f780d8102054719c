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
import { hasExpired } from './token.js';
import type {
  AnyRow, CallOptions, Change, ChannelOptions, Client, ClientOptions, Codec, ConnectionState, Link, Metrics, Schema, AnySchema, Status,
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
const noToken = (why: unknown) => new ChangefeedError('28000', `no token: ${String(why)}`);
const asError = (error: unknown) => (error instanceof ChangefeedError ? error : new ChangefeedError('no_connection', String(error)));
/** Not by the wall's clock, which may be set. */
const now = () => performance.now();

/** Whose token it is, as far as can be read here; the server looks at more. */
const who = (token: string | null | undefined): unknown => {
  try {
    const { role, sub } = JSON.parse(atob(token!.split('.')[1]!.replace(/-/g, '+').replace(/_/g, '/'))) as AnyRow;
    return `${role} ${sub}`;
  } catch {
    return token;
  }
};

export const createClient = <S extends Schema = AnySchema>(options: ClientOptions): Client<S> => {
  const codec: Codec = options.codec ?? JSON;
  const { minMs = 500, maxMs = 20_000 } = options.backoff ?? {};
  const { on, emit } = createEmitter();
  const feeds = new Map<string, Feed>();
  const requests = new Map<number, Request>();
  const lingers = new Map<Feed, ReturnType<typeof createTimer>>();
  const retryTimer = createTimer();
  const tickTimer = createTimer();
  const tokenTimer = createTimer();
  const hiddenTimer = createTimer();
  const ending = new AbortController();
  const debug = (event: string, data?: unknown) =>
    options.debug === true ? console.debug('changefeed', event, data) : options.debug && options.debug(event, data);

  let auth = options.auth;
  let live = options.live !== false;
  let connection: ConnectionState = { status: 'idle', transport: null, attempt: 0, retryAt: null, since: Date.now(), error: null };
  let link: Link | null = null;
  let epoch = 0;
  let open = false;
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
  let recent: string[] = [];

  const counts = { connects: 0, received: 0, sent: 0, errors: 0, resyncs: 0, hits: 0, misses: 0 };
  let lagMs = 0;
  let latencies: number[] = [];

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
    counts.errors += 1;
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
      counts.sent += 1;
      debug('send', message.token ? { ...message, token: '…' } : message);
      link!.send({ ...message, id });
    } catch (error) {
      // There is no JSON for it.
      request?._failed(new ChangefeedError('22023', String(error)));
    }
  };
  const ask = (message: AnyRow, { signal, timeoutMs = 30_000, resend, _check, _hello }: How = {}): Promise<AnyRow> =>
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
      const aborted = () => request._failed(noAnswer(`${message.type}: aborted`));
      if (signal?.aborted) return aborted();
      if (connection.status === 'closed') return request._failed(new ChangefeedError('closed', 'the client is closed'));
      signal?.addEventListener('abort', aborted);
      timer(() => request._failed(noAnswer(`${message.type}: no answer within ${timeoutMs} ms`)), timeoutMs);
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
    if (!open || !asked) return;
    if (link!.changed) link!.changed();
    else ask({ type: 'unsubscribe', channel: feed._name }).catch(() => {});
  };
  const subscribe = (feed: Feed) => {
    if (!open || feed._asked || feed._waits || feed._state() === 'error') return;
    const id = (feed._asked = nextId);
    if (link!.changed) return link!.changed();
    ask({ type: 'subscribe', ...feed._request() }, { timeoutMs: MAX_TIMER_MS }).catch((error) => feed._asked === id && notSubscribed(feed, error));
  };
  const notSubscribed = (feed: Feed, error: ChangefeedError) => {
    feed._asked = 0;
    if (error.code === '22023' && feed._position()) {
      // A position that the server does not take: begin again.
      feed._resync('position_refused');
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
    feed._resync(reason);
    // What goes wrong again and again must not do so without a pause.
    if (error) later(feed, error);
    else if (open) subscribe(feed);
    else begin();
  };

  // ---- Receiving ----

  /** Where all channels are that are ready, or the one that is named. */
  const moved = (position: string | undefined, only?: Feed) => {
    for (const feed of only ? [only] : feeds.values()) if (only || (feed._live && !feed._paced)) feed._setPosition(position);
  };

  const apply = (frames: AnyRow[]) => {
    const frame = frames.at(-1)!;
    const only = feeds.get(frame.channel);
    const byFeed = new Map<Feed, AnyRow[]>();
    const done: [Feed, Change[]][] = [];
    for (const { changes } of frames) {
      for (const change of changes) {
        const feed = feeds.get(change.channel);
        if (!feed?._on) continue;
        const list = byFeed.get(feed);
        if (list) list.push(change);
        else byFeed.set(feed, [change]);
      }
    }
    for (const [feed, changes] of byFeed) {
      try {
        done.push([feed, feed._change(changes, frame.txid)]);
      } catch (error) {
        misfit(feed, error);
      }
    }
    // A frame with a channel of its own counts for that channel only.
    if (frame.channel === undefined) {
      moved(frame.position);
      recent = [...recent.slice(-99), frame.txid];
      if (frame.committed_at) lagMs = Date.now() - Date.parse(frame.committed_at);
    } else if (only?._on) {
      moved(frame.position, only);
      if (!byFeed.has(only)) done.push([only, []]);
    }
    const phase = frame.channel === undefined || only?._paced ? 'live' : 'replay';
    for (const [feed, changes] of done) feed._transaction(frame, changes);
    const changes = done.flatMap(([, each]) => each);
    if (changes.length) {
      emit('transaction', {
        phase, txid: frame.txid ?? null, position: frame.position ?? null, committedAt: frame.committed_at ?? null, changes,
      });
    }
    check();
  };

  /** Never wrong without a word: the rows are asked for again, or given up. */
  const misfit = (feed: Feed, error: unknown) => {
    if (!(error instanceof ChangefeedError)) throw error;
    report(error);
    if (error.code === 'inconsistent') return refresh(feed, error.code, error);
    leave(feed);
    feed._fail(error);
  };

  const answer = (message: AnyRow): boolean => {
    const request = requests.get(message.id);
    if (!request) return false;
    // Of a call the time says more about the function.
    if (request._message.type !== 'call') latencies = [...latencies.slice(-99), now() - request._sentAt];
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
    check();
    answer(message);
  };

  const handlers: Record<string, (message: AnyRow, feed: Feed | undefined) => void> = {
    connected(message) {
      open = true;
      openedAt = now();
      refused = undefined;
      counts.connects += 1;
      heartbeatMs = message.heartbeat_ms ?? heartbeatMs;
      accept(message);
      for (const feed of feeds.values()) subscribe(feed);
      setConnection(link!.name === 'poll' ? 'polling' : 'connected', { error: null });
      for (const [id, request] of [...requests]) if (!request._sentAt && !request._check) transmit(id, request._message, request);
    },
    ok: accept,
    result: accept,
    subscribed(message) {
      const feed = feeds.get(message.channel);
      answer(message);
      // Of one that was ended before it was answered nothing counts.
      if (feed?._asked && (link!.changed || feed._asked === message.id)) feed._subscribed(message);
    },
    snapshot: (message, feed) => feed?._rows(message),
    ready(message, feed) {
      feed?._ready(message);
      check();
    },
    transaction(message) {
      const { seq, part = 1, last } = message;
      if ((seq ?? nextSeq) !== nextSeq || part !== parts.length + 1) {
        throw new ChangefeedError('inconsistent', `part ${parts.length + 1} of frame ${nextSeq} is missing: ${part} of ${seq} came`);
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
      feed?._message(message);
    },
    presence(message, feed) {
      if (!answer(message)) feed?._emit('presence', message);
    },
    columns(message, feed) {
      if (feed) feed._cache._entities = message.entities;
    },
    resync(message, feed) {
      counts.resyncs += 1;
      recent = [];
      feed?._resync(message.reason);
    },
    revoked(message, feed) {
      const error = errorOf({ code: message.reason.startsWith('perm') ? '42501' : '28000', ...message });
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
      const feed = feeds.get(message.channel);
      const error = errorOf(message);
      if (answer(message)) return;
      // A minute before the token expires.
      if (message.expires_at && typeof auth === 'function') renewToken();
      else if (feed && link!.changed) notSubscribed(feed, error);
      else report(error);
    },
    closing(message) {
      floorMs = message.retry_after_ms ?? 0;
    },
  };

  const take = (message: AnyRow) => {
    const feed = feeds.get(message.channel);
    counts.received += 1;
    heardAt = now();
    debug('receive', message);
    // Nobody is called in the middle of a transaction.
    taking = true;
    try {
      // What is not subscribed to any more gets nothing, whatever is still on its way.
      handlers[message.type]?.(message, feed?._on ? feed : undefined);
    } catch (error) {
      try {
        if (!feed) throw error;
        misfit(feed, error);
      } catch {
        // What cannot be followed here is asked for again over another connection.
        report(asError(error));
        lost(1006, asError(error));
      }
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
      else request._failed(new ChangefeedError('no_connection', `${request._message.type}: the connection was lost before the answer`));
    }
    schedule();
  };

  /** The end of a connection that nobody asked for. */
  const lost = (code: number, error = new ChangefeedError('no_connection', `the connection was lost (${code})`), again?: boolean) => {
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
    const delay = again ? 0 : Math.max(floorMs, error.retryAfterMs ?? 0, slow ? maxMs / 2 + jitter(0, maxMs / 2, maxMs) : jitter(attempt, minMs, maxMs));
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
      if (request._generation <= tokenGeneration) request._failed(new ChangefeedError('28000', `${request._message.type}: the identity has changed`));
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

  const start = async (given?: string) => {
    if (!wanted || hidden) return;
    stop();
    const from = epoch;
    heardAt = now();
    tickedAt = Date.now();
    tickTimer(tick, TICK_MS);
    setConnection(counts.connects ? 'reconnecting' : 'connecting');
    try {
      let next = given ?? (typeof auth === 'function' ? await auth(refused === undefined ? 'connect' : 'refresh') : auth) ?? null;
      // One that is kept may be old.
      if (given === undefined && typeof auth === 'function' && epoch === from && hasExpired(next)) next = (await auth('refresh')) ?? null;
      if (epoch !== from) return;
      if (next === refused) return unauthorized(connection.error!);
      setToken(next);
      if (given !== undefined || refused !== undefined) for (const feed of feeds.values()) feed._revive();
      const address = new URL(typeof options.url === 'function' ? options.url() : options.url, globalThis.location?.href);
      link = (options.transport ?? webSocket)({
        base: address.href.replace(/^ws/, 'http').replace(/\/+$/, ''),
        token: next,
        codec,
        WebSocket: options.WebSocket ?? globalThis.WebSocket,
        fetch: options.fetch ?? ((...args) => globalThis.fetch(...args)),
        wanted: () => [...feeds.values()].filter((feed) => !feed._waits && feed._state() !== 'error').map((feed) => {
          feed._asked ||= 1;
          return feed._request();
        }),
        dump: (name) => feeds.get(name)?._dump(),
        purge,
        message: (message) => epoch === from && take(message),
        closed: (code, error, again) => epoch === from && lost(code, error, again),
      });
      if (!link.changed) {
        ask({ type: 'connect', client: 'pg-changefeed-js', ...(next && { token: next }) }, { timeoutMs: MAX_TIMER_MS, _hello: true }).catch(
          (error: ChangefeedError) => epoch === from && lost(error.type === 'auth' ? 4003 : 1006, error));
      }
    } catch (error) {
      if (epoch === from) lost(0, asError(error));
    }
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
    // Over HTTP each answer has its own limit.
    if (!link?.changed && now() - heardAt > (open ? heartbeatMs + GRACE_MS : CONNECT_MS)) lost(4000, noAnswer('nothing was heard of the server'));
    // No event tells everywhere that the machine has slept; a timer that comes far too late does.
    else if (Math.abs(wall - since - TICK_MS) > TICK_MS) wake();
  };
  /** Something says that the connection may be dead, or could be made now. */
  const wake = () => {
    if (globalThis.document?.visibilityState === 'hidden') return;
    if (connection.retryAt) {
      attempt = 0;
      void start();
    } else if (open && link!.changed) link!.changed();
    else if (open) {
      const from = epoch;
      const heard = heardAt;
      ask({ type: 'sync' }, { timeoutMs: 5000 }).catch((error) => epoch === from && heardAt === heard && lost(4000, error));
    }
  };
  const pause = (status: Status) => {
    hidden = true;
    if (!wanted || connection.status === 'unauthorized') return;
    stop();
    setConnection(status);
  };
  const resume = () => {
    hiddenTimer();
    if (!hidden) return wake();
    hidden = false;
    if (connection.status !== 'unauthorized') void start();
  };
  const listen = (target: EventTarget | undefined, event: string, listener: () => void) =>
    target?.addEventListener?.(event, listener, { signal: ending.signal });
  const page = globalThis as unknown as EventTarget;
  const { pauseWhenHiddenMs } = options;
  listen(page, 'online', wake);
  // The page may come back out of the browser's cache.
  listen(page, 'pagehide', () => pause('reconnecting'));
  listen(page, 'pageshow', resume);
  listen(globalThis.document, 'visibilitychange', () => {
    if (document.visibilityState === 'visible') resume();
    else if (pauseWhenHiddenMs !== undefined) hiddenTimer(() => pause('disconnected'), pauseWhenHiddenMs);
  });

  // ---- Tokens ----

  /** A token for the connection: in place if it is the same user's, else with another connection. */
  const use = async (next: string) => {
    if (!open || link!.changed || who(next) !== who(token)) return start(next);
    setToken(next);
    await ask({ type: 'token', token: next });
    for (const feed of feeds.values()) {
      feed._revive();
      subscribe(feed);
    }
  };
  const expires = (at: string) => {
    const left = Date.parse(at) - Date.now();
    // With a clock that is wrong the server's warning has to do.
    if (left > 0 && typeof auth === 'function') tokenTimer(renewToken, Math.min(MAX_TIMER_MS, Math.max(1000, left > 2 * REFRESH_MS ? left - REFRESH_MS : left / 2)));
  };
  const renewToken = async () => {
    const from = epoch;
    try {
      const next = await (auth as () => unknown as (why: string) => Promise<string | null>)('refresh');
      if (epoch === from && next) await use(next);
    } catch (error) {
      // The connection goes on with the old one; when that expires the server says so.
      if (epoch === from) report(error instanceof ChangefeedError ? error : noToken(error));
    }
  };

  // ---- What the application has ----

  const core: Core = {
    _codec: codec,
    _flush: () => taking || schedule(),
    _counted: (found) => (counts[found ? 'hits' : 'misses'] += 1),
    _passed: (txid, paced) => BigInt(txid) < settled || (!paced && recent.includes(txid)),
    _publish: (...args) => self.publish(...args),
    _wait: (_check, type, how) => ask({ type }, { timeoutMs: 5000, ...how, _check }),
    _refresh: refresh,
    _unused(feed) {
      if (connection.status === 'closed') return;
      const timer = createTimer();
      lingers.set(feed, timer);
      timer(() => {
        lingers.delete(feed);
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
    metrics(): Metrics {
      const sorted = [...latencies].sort((a, b) => a - b);
      return {
        ...counts, uptimeMs: open ? now() - openedAt : 0, lagMs, channels: feeds.size,
        rows: [...feeds.values()].reduce((sum, feed) => sum + feed._cache._size(), 0),
        latencyMs: {
          last: latencies.at(-1) ?? 0, p95: sorted[Math.floor(sorted.length * 0.95)] ?? 0,
          avg: sorted.reduce((sum, value) => sum + value, 0) / (sorted.length || 1),
        },
      };
    },
    connect() {
      const { status } = connection;
      if (status === 'closed' || !live || (wanted && status !== 'unauthorized')) return;
      wanted = true;
      refused = undefined;
      for (const feed of feeds.values()) feed._revive();
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
      if (value) self.connect();
      else self.disconnect();
    },
    setAuth(next) {
      auth = next;
      refused = undefined;
      generation += 1;
      if (typeof next === 'function' || (next && open)) {
        for (const feed of feeds.values()) feed._revive();
        if (typeof next === 'function') void start();
        else use(next!).catch((error) => lost(4003, error));
      } else {
        setToken(next ?? null);
        for (const feed of feeds.values()) feed._revive();
        void start();
      }
    },
    close() {
      if (connection.status === 'closed') return;
      self.disconnect();
      setConnection('closed');
      ending.abort();
      hiddenTimer();
      for (const timer of lingers.values()) timer();
      for (const request of [...requests.values()]) request._failed(new ChangefeedError('closed', 'the client is closed'));
      for (const feed of feeds.values()) feed._close();
      feeds.clear();
    },
    channel(name, how: ChannelOptions = {}) {
      let feed = feeds.get(name);
      if (feed) {
        lingers.get(feed)?.();
        lingers.delete(feed);
        if (feed._needs(how)) refresh(feed);
      } else {
        feed = createFeed(core, name, how);
        if (connection.status === 'closed') feed._close();
        else {
          feeds.set(name, feed);
          if (open) subscribe(feed);
          else begin();
        }
      }
      return feed._handle(how) as never;
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
