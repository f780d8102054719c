/**
 * Offline: calls that wait in IndexedDB until they can be made, and rows that are there at once after a reload.
 *
 * Calls are made in the order in which they came, one after the other, by one tab of the browser; each has an idempotency key, so
 * that it is done once whatever happens to its answer. What the database refuses for good is set aside with the reason, and the next
 * one goes on.
 */
import { ChangefeedError, errorOf } from './error.js';
import type { AnyRow, CallResult, Channel, ChannelOptions, Expectation, Initial, Readable, Token } from './types.js';
import { createEmitter, createScheduler, jitter } from './util.js';

export interface QueuedCall {
  readonly id: number;
  readonly name: string;
  readonly args: object;
  readonly key: string;
  readonly queuedAt: number;
  readonly attempts: number;
  /** Rows that have to be as they were seen. */
  readonly expect?: Expectation | readonly Expectation[];
  /** When it was sent for the first time: since then it may have been done. */
  readonly sentAt?: number;
  /** Set aside: why the database refused it. */
  readonly failed?: { readonly code: string; readonly message: string; readonly hint?: string; readonly conflict?: AnyRow };
}

export interface OfflineState {
  /** In their order. */
  readonly waiting: readonly QueuedCall[];
  /** Set aside until they are sent again or thrown away. */
  readonly failed: readonly QueuedCall[];
}

export interface OfflineQueue extends Readable<OfflineState> {
  /** Resolves when the call is safely in the queue, with a promise of its answer that lasts as long as this page. */
  call(name: string, args: object, options?: { key?: string; expect?: QueuedCall['expect'] }): Promise<{ id: number; done: Promise<CallResult<unknown>> }>;
  /**
   * Puts one that was set aside at the end of the queue, with other arguments if there are any. It is another call then, with a new
   * key, and expects nothing of rows but what is given here.
   */
  retry(id: number, args?: object, options?: { expect?: QueuedCall['expect'] }): Promise<void>;
  discard(id: number): Promise<void>;
  /** Resolves when nothing waits any more. */
  drained(): Promise<void>;
  close(): void;
}

interface Calls {
  call(name: string, args: never, options?: { key?: string; expect?: never; timeoutMs?: number }): Promise<CallResult<unknown>>;
  on(event: 'purge', listener: () => void): () => void;
}

export interface OfflineOptions {
  /** Another queue for another user: calls are made with whatever token the client has. */
  name?: string;
  indexedDB?: IDBFactory;
  /** How long one call may take: 30 seconds if it is left out. */
  timeoutMs?: number;
  backoff?: { minMs?: number; maxMs?: number };
  /**
   * How long the server knows keys, `changefeed.idempotency_age`: a day if it is left out. A call that was sent before and has had
   * no answer for longer is set aside, because it cannot be sent again without being done twice, perhaps.
   */
  keyAgeMs?: number;
}

/** Attempts of a call that the database refuses for now. */
const ATTEMPTS = 10;
/** How long the answer may come behind the call's end. */
const ANSWER_MS = 2000;

const CALLS = 'calls';
const ROWS = 'rows';

/** Pages that are not secure have no randomUUID. */
const newKey = (): string => crypto.getRandomValues(new Uint32Array(4)).join('-');

const promised = <T>(request: IDBRequest<T>): Promise<T> =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

const openStore = async (name: string, factory: IDBFactory): Promise<IDBDatabase> => {
  const request = factory.open(`pg-changefeed ${name}`, 1);
  request.onupgradeneeded = () => {
    request.result.createObjectStore(CALLS, { keyPath: 'id', autoIncrement: true });
    request.result.createObjectStore(ROWS);
  };
  const db = await promised(request);
  // A later version of this page may need the store for itself.
  db.onversionchange = () => db.close();
  return db;
};

/** Written means on disk, so that a call survives the browser, too. */
const written = async <T>(db: IDBDatabase, store: string, work: (objects: IDBObjectStore) => IDBRequest<T>): Promise<T> => {
  const transaction = db.transaction(store, 'readwrite', { durability: 'strict' });
  const result = promised(work(transaction.objectStore(store)));
  await new Promise<void>((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
  return result;
};

/** A queue of calls that outlives connections, reloads and the browser. */
export const createOfflineQueue = async (client: Calls, options: OfflineOptions = {}): Promise<OfflineQueue> => {
  const { name = 'default', timeoutMs = 30_000, keyAgeMs = 86_400_000 } = options;
  const { minMs = 1000, maxMs = 60_000 } = options.backoff ?? {};
  const db = await openStore(name, options.indexedDB ?? globalThis.indexedDB);
  const { on, emit } = createEmitter();
  const changed = createScheduler('microtask', () => emit('change'));
  const others = typeof BroadcastChannel === 'undefined' ? null : new BroadcastChannel(`pg-changefeed ${name}`);
  const waiters = new Map<number, { resolve(answer: CallResult<unknown>): void; reject(error: unknown): void }>();
  let current: OfflineState = { waiting: [], failed: [] };
  let closed = false;
  let wake: (() => void) | null = null;
  let leave: (() => void) | null = null;
  let finish!: () => void;
  const ended = new Promise<void>((resolve) => {
    finish = resolve;
  });

  const read = async () => {
    if (closed) return;
    const all = (await promised(db.transaction(CALLS).objectStore(CALLS).getAll())) as QueuedCall[];
    // Done or thrown away by a tab that has gone before it could tell.
    const there = new Set(all.map(({ id }) => id));
    for (const id of waiters.keys()) {
      if (!there.has(id)) setTimeout(() => settle({ id, error: { code: 'no_answer', message: 'the tab that made the call has gone with its answer' } }), ANSWER_MS);
    }
    current = { waiting: all.filter(({ failed }) => !failed), failed: all.filter(({ failed }) => failed) };
    changed();
  };
  /** Of this tab and of the others. */
  const tell = async (about: AnyRow = {}) => {
    others?.postMessage(about);
    await read();
    wake?.();
  };
  const settle = ({ id, answer, error }: AnyRow) => {
    const waiter = waiters.get(id);
    if (!waiter) return;
    waiters.delete(id);
    if (error) waiter.reject(new ChangefeedError(error.code, error.message, error));
    else waiter.resolve(answer);
  };
  if (others) {
    others.onmessage = ({ data }) => {
      if (closed) return;
      settle(data as AnyRow);
      void read().then(() => wake?.());
    };
  }

  const pause = (ms: number) =>
    new Promise<void>((resolve) => {
      if (closed) return resolve();
      const timer = setTimeout(resolve, ms);
      wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  /** Unless it has gone meanwhile */
  const update = async (id: number, more: Partial<QueuedCall>) => {
    const transaction = db.transaction(CALLS, 'readwrite', { durability: 'strict' });
    const objects = transaction.objectStore(CALLS);
    const found = objects.get(id);
    found.onsuccess = () => found.result && objects.put({ ...(found.result as QueuedCall), ...more });
    await new Promise<void>((resolve, reject) => {
      transaction.oncomplete = () => resolve();
      transaction.onabort = () => reject(transaction.error);
    });
  };
  const setAside = async (id: number, { code, message, hint, conflict }: ChangefeedError) => {
    const failed = { code, message, ...(hint && { hint }), ...(conflict && { conflict }) };
    await update(id, { failed });
    await tell({ id, error: failed });
    settle({ id, error: failed });
  };
  let attempt = 0;
  let turn = 0;
  /** What the leader does, until it cannot: then it is another tab's turn. */
  const work = async (mine: number) => {
    while (!closed && mine === turn) {
      // The store says what is next, not what this tab remembers: another one may have thrown it away.
      await read();
      const next = current.waiting[0];
      if (!next) {
        await pause(2 ** 31 - 1);
        continue;
      }
      if (next.sentAt && Date.now() - next.sentAt > keyAgeMs) {
        await setAside(next.id, new ChangefeedError('40003', 'it is not known whether the call was done: it was sent, and the server has forgotten its key', {
          hint: 'Look at what the call was for before it is sent again.',
        }));
        continue;
      }
      try {
        // Before it is sent, so that nobody is wrong about it afterwards.
        if (!next.sentAt) await update(next.id, { sentAt: Date.now() });
        const answer = await client.call(next.name, next.args as never, { key: next.key, timeoutMs, ...(next.expect && { expect: next.expect as never }) });
        attempt = 0;
        await written(db, CALLS, (objects) => objects.delete(next.id));
        await tell({ id: next.id, answer });
        settle({ id: next.id, answer });
      } catch (failure) {
        if (closed) return;
        const error = failure instanceof ChangefeedError ? failure : new ChangefeedError('XX000', String(failure));
        // This page's client has ended, not the call.
        if (error.code === 'closed') return close();
        // The token is not the call's fault either: it waits for another one.
        if (error.type === 'network' || error.code === '28000' || (error.retryable && next.attempts < ATTEMPTS)) {
          if (error.type !== 'network') await update(next.id, { attempts: next.attempts + 1 });
          await pause(Math.max(error.retryAfterMs ?? 0, minMs / 2 + jitter(attempt++, minMs, maxMs)));
          if (error.type === 'network') return;
          continue;
        }
        attempt = 0;
        await setAside(next.id, error);
      }
    }
  };
  // One tab at a time, and another one when it has gone, or stands still.
  const { locks } = globalThis.navigator ?? {};
  const document = globalThis.document as Document | undefined;
  let frozen = false;
  const take = async () => {
    while (!closed && !frozen) {
      if (!locks) await work(turn);
      else {
        const ending = new AbortController();
        let thaw!: () => void;
        const stopped = new Promise<void>((resolve) => {
          thaw = resolve;
        });
        leave = () => {
          ending.abort();
          thaw();
        };
        await locks.request(`pg-changefeed ${name}`, { signal: ending.signal }, () => Promise.race([work(turn), ended, stopped])).catch(() => {});
      }
    }
  };
  const onFreeze = () => {
    frozen = true;
    turn += 1;
    leave?.();
  };
  const onResume = () => {
    frozen = false;
    void take();
  };
  const online = () => wake?.();
  const close = () => {
    if (closed) return;
    closed = true;
    globalThis.removeEventListener?.('online', online);
    document?.removeEventListener('freeze', onFreeze);
    document?.removeEventListener('resume', onResume);
    off();
    finish();
    wake?.();
    leave?.();
    others?.close();
    db.close();
    // The calls stay where they are; only their answers do not come here.
    for (const id of [...waiters.keys()]) settle({ id, error: { code: 'closed', message: 'the queue is closed' } });
  };
  // Whoever comes next is somebody else, perhaps: these calls are not his.
  const off = client.on('purge', () => close());
  globalThis.addEventListener?.('online', online);
  document?.addEventListener('freeze', onFreeze);
  document?.addEventListener('resume', onResume);
  void take();

  await read();
  return {
    get current() {
      return current;
    },
    subscribe: (listener) => on('change', listener),
    async call(called, args, { key = newKey(), expect } = {}) {
      if (closed) throw new ChangefeedError('closed', 'the queue is closed');
      const call = { name: called, args, key, queuedAt: Date.now(), attempts: 0, ...(expect && { expect }) };
      const id = Number(await written(db, CALLS, (objects) => objects.add(call)));
      const done = new Promise<CallResult<unknown>>((resolve, reject) => waiters.set(id, { resolve, reject }));
      done.catch(() => {});
      await tell();
      return { id, done };
    },
    async retry(id, args, { expect } = {}) {
      const call = current.failed.find((each) => each.id === id);
      if (!call) throw new Error(`no call ${id} was set aside`);
      const fresh = {
        name: call.name, args: args ?? call.args, key: newKey(), attempts: 0, queuedAt: Date.now(), ...(expect && { expect }),
      };
      const transaction = db.transaction(CALLS, 'readwrite', { durability: 'strict' });
      transaction.objectStore(CALLS).delete(id);
      transaction.objectStore(CALLS).add(fresh);
      await new Promise<void>((resolve, reject) => {
        transaction.oncomplete = () => resolve();
        transaction.onabort = () => reject(transaction.error);
      });
      await tell();
    },
    async discard(id) {
      await written(db, CALLS, (objects) => objects.delete(id));
      const error = { code: 'discarded', message: 'the call was thrown away' };
      settle({ id, error });
      await tell({ id, error });
    },
    drained: () =>
      new Promise((resolve) => {
        const look = () => {
          if (current.waiting.length) return;
          off();
          resolve();
        };
        const off = on('change', look);
        look();
      }),
    close,
  };
};

export interface Store {
  /** What was kept of the channel, to pass as `initial`. */
  load(name: string): Promise<Initial | undefined>;
  /** Keeps the channel's rows and position, a moment behind each change. Ends with the function that it returns. */
  keep(channel: Channel, everyMs?: number): () => void;
  /** All rows of all channels: at sign-out. A client's `purge` does it by itself. */
  clear(): Promise<void>;
  close(): void;
}

/** Keeps rows and positions, so that a reload shows them at once and goes on from there. One for each user. */
export const createStore = async (client: Pick<Calls, 'on'>, options: Pick<OfflineOptions, 'name' | 'indexedDB'> = {}): Promise<Store> => {
  const db = await openStore(options.name ?? 'default', options.indexedDB ?? globalThis.indexedDB);
  const put = (name: string, value: Initial) => written(db, ROWS, (objects) => objects.put(value, name)).catch(() => {});
  const clear = async () => {
    await written(db, ROWS, (objects) => objects.clear());
  };
  const keepers = new Set<() => void>();
  // What has come since, of channels that were told before others, is kept again.
  const off = client.on('purge', () => void clear().then(() => keepers.forEach((mark) => mark())).catch(() => {}));
  return {
    load: (name) => promised(db.transaction(ROWS).objectStore(ROWS).get(name)) as Promise<Initial | undefined>,
    keep(channel, everyMs = 1000) {
      let dirty = false;
      const save = createScheduler(everyMs, () => {
        if (!dirty) return;
        dirty = false;
        // Rows without a position are of no use: nobody knows what is missing.
        if (channel.state === 'error') void written(db, ROWS, (objects) => objects.delete(channel.name)).catch(() => {});
        else if (channel.position) void put(channel.name, channel.dump());
      });
      const mark = () => {
        dirty = true;
        save();
      };
      const stop = channel.subscribe(mark);
      keepers.add(mark);
      mark();
      return () => {
        keepers.delete(mark);
        stop();
      };
    },
    clear,
    close() {
      off();
      db.close();
    },
  };
};

/** Options for `client.channel`, with what was kept. */
export const withStore = async (store: Store, name: string, options: ChannelOptions = {}): Promise<ChannelOptions> => {
  const initial = await store.load(name);
  return initial ? { ...options, initial } : options;
};

export interface ReplayOptions extends OfflineOptions {
  /** The server: `https://example.com`. */
  url: string;
  /** A token of the user whose queue it is. */
  auth?: Token | (() => Token | Promise<Token>);
  /** How long it may take: a minute if it is left out. */
  forMs?: number;
  fetch?: typeof fetch;
}

/**
 * For a service worker: makes the calls that wait, over HTTP, without a page. Rejects if some are left, so that the browser tries
 * again. Calls that expect rows stay for a page, which has a WebSocket.
 */
export const replayQueue = async ({ url, auth, forMs = 60_000, fetch = globalThis.fetch, ...options }: ReplayOptions): Promise<void> => {
  const base = url.replace(/^ws/, 'http').replace(/\/+$/, '');
  const client: Calls = {
    on: () => () => {},
    async call(name, args, { key, expect, timeoutMs = 30_000 } = {}) {
      if (expect) throw new ChangefeedError('no_connection', '"expect" needs a WebSocket');
      try {
        const token = typeof auth === 'function' ? await auth() : auth;
        const response = await fetch(`${base}/v1/call/${encodeURIComponent(name)}`, {
          method: 'POST', body: JSON.stringify(args), signal: AbortSignal.timeout(timeoutMs),
          headers: { 'Content-Type': 'application/json', ...(key && { 'Idempotency-Key': key }), ...(token && { Authorization: `Bearer ${token}` }) },
        });
        const answer = (await response.json()) as AnyRow;
        if (answer.type === 'result') return { result: answer.result, txid: answer.txid ?? null };
        throw errorOf({ ...answer, ...(response.status === 401 && { code: '28000' }) });
      } catch (error) {
        throw error instanceof ChangefeedError ? error : new ChangefeedError('no_connection', String(error));
      }
    },
  };
  const queue = await createOfflineQueue(client, options);
  let timer: ReturnType<typeof setTimeout> | undefined;
  await Promise.race([queue.drained(), new Promise((resolve) => {
    timer = setTimeout(resolve, forMs);
  })]);
  clearTimeout(timer);
  const left = queue.current.waiting.length;
  queue.close();
  if (left) throw new ChangefeedError('no_connection', `${left} calls wait`);
};
