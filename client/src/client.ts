/**
 * The client: one connection for all channels, which comes back by itself.
 *
 * Everything that the server says arrives in `take`, in order, and has been applied when `take` returns; a transaction counts
 * as a whole. Who listens to changes is called at the next flush. A connection has a number (`epoch`), so that what an old one
 * still says is not taken for the new one's.
 */
import { createFeed, type Feed } from './channel.js';
import { ChangefeedError, errorOf } from './error.js';
import { webSocket } from './socket.js';
import type {
  AnyRow, CallOptions, Change, ChannelOptions, Client, ClientOptions, Codec, ConnectionState, Link, Metrics, Schema, AnySchema, Status,
  WaitOptions,
} from './types.js';
import { createEmitter, createScheduler, jitter } from './util.js';

/** What feeds need of their client. */
export interface Core {
  codec: Codec;
  flush(): void;
  counted(found: boolean): void;
  settled(): bigint;
  publish(channel: string, event: string, payload: unknown, options?: { echo?: boolean }): Promise<void>;
  wait(check: () => boolean, what: string, options?: WaitOptions): Promise<void>;
  refresh(feed: Feed): void;
  unused(feed: Feed): void;
}

interface Request {
  message: AnyRow;
  sentAt: number;
  /** May it be sent again on another connection? */
  resend: boolean;
  done(answer: AnyRow): void;
  failed(error: ChangefeedError): void;
}

interface Waiter {
  check(): boolean;
  done(): void;
}

/** A connection that has held for so long was not a failure. */
const STABLE_MS = 5000;
/** What the server grants beyond its heartbeat, we do. */
const GRACE_MS = 10_000;
/** Tokens are refreshed so long before they expire. */
const REFRESH_MS = 60_000;
const MAX_TIMER_MS = 2 ** 31 - 1;

const noAnswer = (what: string) => new ChangefeedError('no_answer', what);

export const createClient = <S extends Schema = AnySchema>(options: ClientOptions): Client<S> => {
  const codec: Codec = options.codec ?? JSON;
  const { minMs = 500, maxMs = 20_000 } = options.backoff ?? {};
  const events = createEmitter();
  const feeds = new Map<string, Feed>();
  const requests = new Map<number, Request>();
  const waiters = new Set<Waiter>();
  const unusedSince = new Map<Feed, ReturnType<typeof setTimeout>>();
  const document = globalThis.document as Document | undefined;
  const page = document && (globalThis as unknown as EventTarget);
  const debug = (event: string, data?: unknown) =>
    options.debug === true ? console.debug('changefeed', event, data ?? '') : options.debug && options.debug(event, data);

  let auth = options.auth;
  let connection: ConnectionState = { status: 'idle', transport: null, attempt: 0, retryAt: null, since: Date.now(), error: null };
  let link: Link | null = null;
  let epoch = 0;
  let open = false;
  let live = true;
  let wanted = false;
  let hidden = false;
  let attempt = 0;
  let floorMs = 0;
  let refused: unknown;
  let token: string | null = null;
  let heartbeatMs = 25_000;
  let heardAt = 0;
  let openedAt = 0;
  let nextId = 1;
  let nextSeq = 1;
  let parts: AnyRow[] = [];
  let settled = 0n;
  let retryTimer: ReturnType<typeof setTimeout> | undefined;
  let aliveTimer: ReturnType<typeof setTimeout> | undefined;
  let tokenTimer: ReturnType<typeof setTimeout> | undefined;
  let hiddenTimer: ReturnType<typeof setTimeout> | undefined;

  const startedAt = Date.now();
  const counts = { connects: 0, received: 0, sent: 0, errors: 0, resyncs: 0, hits: 0, misses: 0 };
  let lagMs = 0;
  const latencies: number[] = [];

  // ---- State ----

  const setConnection = (status: Status, more: Partial<ConnectionState> = {}) => {
    connection = {
      status, transport: link?.name ?? null, attempt, retryAt: null, error: connection.error, ...more,
      since: status === connection.status ? connection.since : Date.now(),
    };
    debug(status, connection);
    events.emit('connection');
  };
  const report = (error: ChangefeedError) => {
    counts.errors += 1;
    debug('error', error);
    events.emit('error', error);
  };
  const flushNow = () => {
    for (const feed of feeds.values()) feed.flush();
  };
  const schedule = createScheduler(options.flush ?? 'microtask', flushNow);
  const checkWaiters = () => {
    for (const waiter of [...waiters]) if (waiter.check()) waiter.done();
  };

  // ---- Sending ----

  const post = (message: AnyRow) => {
    counts.sent += 1;
    debug('send', message);
    link?.send(message);
  };
  const transmit = (id: number, request: Request) => {
    request.sentAt = Date.now();
    post({ ...request.message, id });
  };
  const ask = (message: AnyRow, how: WaitOptions & { resend?: boolean; hello?: boolean } = {}): Promise<AnyRow> =>
    new Promise((resolve, reject) => {
      const id = nextId++;
      const { signal, timeoutMs = 30_000 } = how;
      const over = () => {
        clearTimeout(timer);
        signal?.removeEventListener('abort', onAbort);
        requests.delete(id);
      };
      const request: Request = {
        message, sentAt: 0, resend: how.resend ?? false,
        done(answer) {
          over();
          resolve(answer);
        },
        failed(error) {
          over();
          reject(error);
        },
      };
      const onAbort = () => request.failed(noAnswer('the request was aborted'));
      const timer = setTimeout(() => request.failed(noAnswer(`no answer to "${message.type}" within ${timeoutMs} ms`)), timeoutMs);
      if (signal?.aborted) onAbort();
      else if (connection.status === 'closed') request.failed(new ChangefeedError('closed', 'the client is closed'));
      else {
        signal?.addEventListener('abort', onAbort);
        requests.set(id, request);
        if (open || how.hello) transmit(id, request);
        else self.connect();
      }
    });

  const wait = (check: () => boolean, what: string, { timeoutMs = 5000, signal }: WaitOptions = {}): Promise<void> =>
    new Promise((resolve, reject) => {
      if (check()) return resolve();
      const over = (act: () => void) => () => {
        clearTimeout(timer);
        signal?.removeEventListener('abort', aborted);
        waiters.delete(waiter);
        act();
      };
      const waiter: Waiter = { check, done: over(resolve) };
      const timer = setTimeout(over(() => reject(noAnswer(`${what} within ${timeoutMs} ms`))), timeoutMs);
      const aborted = over(() => reject(noAnswer('the wait was aborted')));
      signal?.addEventListener('abort', aborted);
      waiters.add(waiter);
      if (signal?.aborted) aborted();
    });

  const leave = (feed: Feed) => {
    if (!open || !feed.asked) return;
    feed.asked = false;
    if (link?.changed) link.changed();
    else ask({ type: 'unsubscribe', channel: feed.name }).catch(() => {});
  };
  const subscribe = (feed: Feed) => {
    if (!open || feed.asked || feed.state() === 'error') return;
    feed.asked = true;
    if (link?.changed) return link.changed();
    const from = epoch;
    ask({ type: 'subscribe', ...feed.request() }, { timeoutMs: MAX_TIMER_MS }).catch((error: ChangefeedError) => {
      // With the connection goes the request; it is made again with the next one.
      if (epoch !== from || !open || feeds.get(feed.name) !== feed) return;
      notSubscribed(feed, error);
    });
  };
  const notSubscribed = (feed: Feed, error: ChangefeedError) => {
    feed.asked = false;
    if (error.code === '22023' && feed.position()) {
      // A position that the server does not take: begin again.
      feed.resync('position_refused');
      subscribe(feed);
    } else if (error.retryable) {
      report(error);
      const from = epoch;
      setTimeout(() => epoch === from && subscribe(feed), Math.max(error.retryAfterMs ?? 0, 500 + jitter(feed.attempts++, 1000, 30_000)));
    } else {
      report(error);
      feed.fail(error);
      flushNow();
    }
  };

  // ---- Receiving ----

  /** Where all channels are that are ready, or the one that is named. */
  const moved = (position: string | undefined, channel?: string) => {
    if (channel !== undefined && !feeds.get(channel)?.live) feeds.get(channel)?.setPosition(position);
    else if (channel !== undefined && feeds.get(channel)?.paced) feeds.get(channel)?.setPosition(position);
    else for (const feed of feeds.values()) if (feed.live && !feed.paced) feed.setPosition(position);
  };

  const apply = (frames: AnyRow[]) => {
    const frame = frames[frames.length - 1]!;
    const byFeed = new Map<Feed, AnyRow[]>();
    const done = new Map<Feed, Change[]>();
    for (const { changes } of frames) {
      for (const change of changes) {
        const feed = feeds.get(change.channel);
        if (!feed || feed.state() === 'error') continue;
        const list = byFeed.get(feed);
        if (list) list.push(change);
        else byFeed.set(feed, [change]);
      }
    }
    for (const [feed, changes] of byFeed) {
      try {
        done.set(feed, feed.change(changes, frame.txid));
      } catch (error) {
        // Never wrong without a word: the rows are asked for again, whatever the reason.
        report(error as ChangefeedError);
        if ((error as ChangefeedError).code === 'no_exact_number') giveUp(feed, error as ChangefeedError);
        else refresh(feed, 'inconsistent');
      }
    }
    // A frame with a channel of its own counts for that channel only.
    if (frame.channel !== undefined) feeds.get(frame.channel)?.setPosition(frame.position);
    else moved(frame.position);
    if (frame.committed_at && frame.channel === undefined) lagMs = Date.now() - Date.parse(frame.committed_at);
    const all: Change[] = [];
    for (const feed of feeds.values()) {
      const changes = done.get(feed) ?? [];
      all.push(...changes);
      if (frame.channel === undefined ? feed.live : feed.name === frame.channel) feed.transaction(frame, changes);
    }
    if (all.length) {
      events.emit('transaction', {
        phase: frame.channel === undefined || feeds.get(frame.channel)?.paced ? 'live' : 'replay', txid: frame.txid ?? null,
        position: frame.position ?? null, committedAt: frame.committed_at ?? null, changes: all,
      });
    }
    checkWaiters();
  };

  const giveUp = (feed: Feed, error: ChangefeedError) => {
    leave(feed);
    feed.fail(error);
  };

  const answer = (message: AnyRow): boolean => {
    const request = requests.get(message.id);
    if (!request) return false;
    if (request.sentAt && request.message.type !== 'call') {
      latencies.push(Date.now() - request.sentAt);
      if (latencies.length > 100) latencies.shift();
    }
    if (message.type === 'error') request.failed(errorOf(message));
    else request.done(message);
    return true;
  };

  const handlers: Record<string, (message: AnyRow, feed: Feed | undefined) => void> = {
    connected(message) {
      open = true;
      openedAt = Date.now();
      if (message.session) refused = undefined;
      counts.connects += 1;
      heartbeatMs = message.heartbeat_ms ?? heartbeatMs;
      expires(message.expires_at);
      alive();
      answer(message);
      for (const feed of feeds.values()) subscribe(feed);
      setConnection(link?.name === 'poll' ? 'polling' : 'connected', { error: null });
      for (const [id, request] of [...requests]) {
        if (request.message.type !== 'connect' && request.message.type !== 'subscribe' && !request.sentAt) transmit(id, request);
      }
    },
    subscribed(message, feed) {
      refused = undefined;
      answer(message);
      feed?.subscribed(message);
    },
    snapshot: (message, feed) => feed?.rows(message),
    ready(message, feed) {
      feed?.ready(message);
      checkWaiters();
    },
    transaction(message) {
      if (message.seq !== undefined && (message.part ?? 1) === 1) {
        if (message.seq !== nextSeq) return broken(new ChangefeedError('inconsistent', `frame ${nextSeq} is missing: ${message.seq} came`));
        nextSeq += 1;
      }
      parts.push(message);
      if (message.last === false) return;
      const frames = parts;
      parts = [];
      apply(frames);
    },
    message(message, feed) {
      if (message.position) moved(message.position, feed?.live ? undefined : message.channel);
      feed?.message(message);
    },
    presence(message, feed) {
      if (!answer(message)) feed?.presence(message);
    },
    columns(message, feed) {
      if (feed) feed.cache.entities = message.entities;
    },
    resync(message, feed) {
      counts.resyncs += 1;
      feed?.resync(message.reason);
    },
    revoked(message, feed) {
      const error = errorOf({ code: message.reason === 'token_expired' || message.reason === 'revoked' ? '28000' : '42501', ...message });
      report(error);
      feed?.fail(error);
      flushNow();
    },
    ping(message) {
      post({ type: 'pong' });
      passed(message);
    },
    synced(message) {
      passed(message);
      answer(message);
    },
    error(message) {
      const about = message.channel !== undefined ? feeds.get(message.channel) : undefined;
      const error = errorOf(message);
      // A minute before the token expires.
      if (error.code === '28000' && message.expires_at && !requests.has(message.id)) return void renewToken();
      if (answer(message)) return;
      if (about && link?.changed) notSubscribed(about, error);
      else report(error);
    },
    closing(message) {
      floorMs = message.retry_after_ms ?? 0;
    },
  };
  handlers.ok = handlers.result = (message) => {
    if (message.expires_at) expires(message.expires_at);
    answer(message);
  };

  const passed = (message: AnyRow) => {
    moved(message.position);
    if (message.settled_txid) settled = BigInt(message.settled_txid);
    checkWaiters();
  };

  const take = (message: AnyRow) => {
    counts.received += 1;
    heardAt = Date.now();
    debug('receive', message);
    const feed = message.channel === undefined ? undefined : feeds.get(message.channel);
    try {
      // What was refused gets nothing more, whatever is still on its way.
      handlers[message.type]?.(message, feed?.state() === 'error' ? undefined : feed);
    } catch (error) {
      if (!(error instanceof ChangefeedError)) throw error;
      report(error);
      if (feed) giveUp(feed, error);
    }
    schedule();
  };

  // ---- The connection ----

  const stop = () => {
    epoch += 1;
    clearTimeout(retryTimer);
    clearTimeout(aliveTimer);
    clearTimeout(tokenTimer);
    const old = link;
    link = null;
    open = false;
    parts = [];
    nextSeq = 1;
    old?.close();
    for (const feed of feeds.values()) feed.lost();
    for (const request of [...requests.values()]) {
      if (request.message.type === 'connect' || request.message.type === 'subscribe') request.failed(new ChangefeedError('no_connection', 'the connection was lost'));
      else if (!request.sentAt) continue;
      else if (request.resend) request.sentAt = 0;
      else request.failed(new ChangefeedError('no_connection', `the connection was lost before the answer to "${request.message.type}"`));
    }
    schedule();
  };

  const broken = (error: ChangefeedError) => {
    report(error);
    lost(1006, error);
  };

  /** The end of a connection that nobody asked for. */
  const lost = (code: number, cause?: ChangefeedError, again?: boolean) => {
    const held = open && Date.now() - openedAt > STABLE_MS;
    const error = cause ?? new ChangefeedError('no_connection', `the connection was lost (${code})`);
    stop();
    if (!wanted) return;
    if (code === 4003 || code === 4004 || code === 401) return void unauthorized(error);
    if (held || again) attempt = 0;
    // Before the first retry there is no waiting, unless the connection could not be made at all.
    const delay = again ? 0 : Math.max(floorMs, code === 4005 || code === 4007 ? maxMs / 2 : 0, jitter(attempt, minMs, maxMs));
    attempt += 1;
    floorMs = 0;
    setConnection('reconnecting', { retryAt: Date.now() + delay, error });
    retryTimer = setTimeout(() => void start(), delay);
  };

  const unauthorized = async (error: ChangefeedError) => {
    // One other token is asked for; the same one again would be refused again.
    const before = token;
    const from = epoch;
    setConnection('unauthorized', { error });
    if (typeof auth !== 'function' || refused !== undefined) return report(error);
    refused = before;
    let next: string | null;
    try {
      next = (await auth('refresh')) ?? null;
    } catch (failure) {
      return report(new ChangefeedError('28000', `no token: ${String(failure)}`));
    }
    if (epoch !== from || !wanted) return;
    if (next === before || next === null) return report(error);
    token = next;
    void start(next);
  };

  const start = async (fresh?: string | null) => {
    if (!wanted || hidden) return;
    stop();
    const from = epoch;
    setConnection(counts.connects ? 'reconnecting' : 'connecting');
    try {
      if (fresh === undefined) token = (typeof auth === 'function' ? await auth('connect') : auth) ?? null;
      if (epoch !== from) return;
      const address = new URL(typeof options.url === 'function' ? options.url() : options.url, globalThis.location?.href);
      heardAt = Date.now();
      link = (options.transport ?? webSocket)({
        base: address.href.replace(/^ws/, 'http').replace(/\/+$/, ''),
        token,
        codec,
        WebSocket: options.WebSocket ?? globalThis.WebSocket,
        fetch: options.fetch ?? ((...args) => globalThis.fetch(...args)),
        wanted: () => [...feeds.values()].filter((feed) => feed.state() !== 'error').map((feed) => {
          feed.asked = true;
          return feed.request() as never;
        }),
        message: (message) => epoch === from && take(message),
        closed: (code, error, again) => epoch === from && lost(code, error, again),
      });
    } catch (error) {
      return lost(0, error instanceof ChangefeedError ? error : new ChangefeedError('no_connection', String(error)));
    }
    if (!link.changed) {
      ask({ type: 'connect', client: 'pg-changefeed-js', ...(token && { token }) }, { hello: true, timeoutMs: GRACE_MS + 5000 }).catch(
        (error: ChangefeedError) => epoch === from && (error.type === 'auth' ? lost(4003, error) : lost(1006, error)));
    }
    alive();
  };

  /** The server pings; who has not heard of it for longer is alone. Behind a sleep the timer is late, and the answer the same. */
  const alive = () => {
    clearTimeout(aliveTimer);
    // Over HTTP each answer has its own limit.
    if (link?.changed) return;
    const left = heardAt + heartbeatMs + GRACE_MS - Date.now();
    if (left <= 0) return lost(4000, noAnswer('nothing was heard of the server'));
    aliveTimer = setTimeout(alive, left);
  };
  /** Something says that the connection may be dead, or could be made now. */
  const wake = () => {
    if (connection.status === 'reconnecting' && retryTimer && wanted) {
      attempt = 0;
      void start();
    } else if (open && !link?.changed) {
      const from = epoch;
      const heard = heardAt;
      ask({ type: 'sync' }, { timeoutMs: 5000 }).catch(() => epoch === from && heardAt === heard && lost(4000, noAnswer('nothing was heard of the server')));
    }
  };

  const expires = (at?: string) => {
    clearTimeout(tokenTimer);
    if (!at || typeof auth !== 'function') return;
    const left = Date.parse(at) - Date.now();
    tokenTimer = setTimeout(renewToken, Math.min(MAX_TIMER_MS, Math.max(0, left > 2 * REFRESH_MS ? left - REFRESH_MS : left / 2)));
  };
  const renewToken = async () => {
    if (typeof auth !== 'function' || !open) return;
    const from = epoch;
    try {
      const next = await auth('refresh');
      if (epoch !== from || !next) return;
      token = next;
      if (link?.changed) lost(0, undefined, true);
      else await ask({ type: 'token', token: next });
    } catch (error) {
      // The connection goes on with the old one; when that expires the server says so.
      if (epoch === from) report(error instanceof ChangefeedError ? error : new ChangefeedError('28000', `no token: ${String(error)}`));
    }
  };

  const pageEvents: [EventTarget | undefined, string, () => void][] = [
    [page, 'online', wake],
    // The page may come back out of the browser's cache.
    [page, 'pagehide', () => wanted && (stop(), setConnection('reconnecting'))],
    [page, 'pageshow', () => wanted && !link && void start()],
    [document, 'visibilitychange', () => {
      clearTimeout(hiddenTimer);
      if (document!.visibilityState === 'visible') {
        if (hidden) {
          hidden = false;
          if (wanted) void start();
        } else wake();
      } else if (options.pauseWhenHiddenMs !== undefined) {
        hiddenTimer = setTimeout(() => {
          hidden = true;
          if (!wanted) return;
          stop();
          setConnection('disconnected');
        }, options.pauseWhenHiddenMs);
      }
    }],
  ];
  for (const [target, event, listener] of pageEvents) target?.addEventListener(event, listener);

  // ---- Channels ----

  const refresh = (feed: Feed, reason = 'refresh') => {
    if (feed.state() === 'error') feed.revive();
    leave(feed);
    feed.resync(reason);
    if (open) subscribe(feed);
    else self.connect();
  };

  const core: Core = {
    codec,
    flush: schedule,
    counted: (found) => (counts[found ? 'hits' : 'misses'] += 1),
    settled: () => settled,
    publish: (...args) => self.publish(...args),
    wait,
    refresh,
    unused(feed) {
      unusedSince.set(feed, setTimeout(() => {
        unusedSince.delete(feed);
        feeds.delete(feed.name);
        leave(feed);
        feed.close();
      }, options.lingerMs ?? 1000));
    },
  };

  const purge = () => {
    for (const feed of feeds.values()) feed.purge();
    events.emit('purge');
    flushNow();
  };

  const self: Client<S> = {
    connection: {
      get current() {
        return connection;
      },
      subscribe: (listener) => events.on('connection', listener),
    },
    metrics(): Metrics {
      const sorted = [...latencies].sort((a, b) => a - b);
      return {
        ...counts, uptimeMs: Date.now() - startedAt, lagMs, channels: feeds.size,
        rows: [...feeds.values()].reduce((sum, feed) => sum + feed.cache.size(), 0),
        latencyMs: {
          last: latencies.at(-1) ?? 0, p95: sorted[Math.floor(sorted.length * 0.95)] ?? 0,
          avg: sorted.reduce((sum, value) => sum + value, 0) / (sorted.length || 1),
        },
      };
    },
    connect() {
      if (connection.status === 'closed' || !live) return;
      const again = connection.status === 'unauthorized' || connection.status === 'disconnected';
      if (wanted && !again) return;
      wanted = true;
      refused = undefined;
      if (again) for (const feed of feeds.values()) feed.revive();
      void start();
    },
    disconnect() {
      if (connection.status === 'closed') return;
      wanted = false;
      stop();
      setConnection('disconnected', { error: null });
    },
    setLive(on) {
      live = on;
      if (on) self.connect();
      else self.disconnect();
    },
    setAuth(next) {
      auth = next;
      refused = undefined;
      if (!next) purge();
      if (!wanted) return;
      for (const feed of feeds.values()) feed.revive();
      // In place where it can be: with the same identity nothing is loaded again.
      if (open && next && !link?.changed) {
        const from = epoch;
        Promise.resolve(typeof next === 'function' ? next('refresh') : next)
          .then(async (value) => {
            if (epoch !== from || !value) return;
            await ask({ type: 'token', token: (token = value) });
            for (const feed of feeds.values()) subscribe(feed);
          })
          .catch((error) => epoch === from && lost(4003, error instanceof ChangefeedError ? error : new ChangefeedError('28000', String(error))));
      } else void start();
    },
    close() {
      if (connection.status === 'closed') return;
      wanted = false;
      stop();
      setConnection('closed', { error: null });
      for (const [target, event, listener] of pageEvents) target?.removeEventListener(event, listener);
      clearTimeout(hiddenTimer);
      for (const timer of unusedSince.values()) clearTimeout(timer);
      for (const request of [...requests.values()]) request.failed(new ChangefeedError('closed', 'the client is closed'));
      for (const feed of feeds.values()) feed.close();
      feeds.clear();
    },
    channel(name, how: ChannelOptions = {}) {
      let feed = feeds.get(name);
      if (feed) {
        clearTimeout(unusedSince.get(feed));
        unusedSince.delete(feed);
        if (feed.extend(how)) refresh(feed, 'options');
      } else {
        feeds.set(name, (feed = createFeed(core, name, how)));
        if (connection.status === 'closed') feed.close();
        else if (open) subscribe(feed);
        else self.connect();
      }
      return feed.handle() as never;
    },
    async publish(channel, event, payload = null, how) {
      await ask({ type: 'publish', channel, event, payload, ...how });
    },
    async call(name, args, { key = crypto.randomUUID(), expect, ...how }: CallOptions = {}) {
      // With its key it is done once, however often it is sent.
      const { result, txid } = await ask({ type: 'call', function: name, args, key, ...(expect && { expect }) }, { ...how, resend: true });
      return { result, txid: txid ?? null };
    },
    async sync(how) {
      await ask({ type: 'sync' }, { timeoutMs: 5000, ...how });
    },
    on: (event: string, listener: (...values: never[]) => void) => events.on(event, listener as () => void),
    request: ask,
  } as Client<S>;
  return self;
};
