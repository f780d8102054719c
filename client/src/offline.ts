/**
 * Offline: calls that wait in IndexedDB until they can be made, and rows that are there at once after a reload.
 *
 * Calls are made in the order in which they came, one after the other, by one tab of the browser; each has an idempotency key, so
 * that it is done once whatever happens to its answer. What the database refuses for good is set aside with the reason, and the next
 * one goes on.
 */
import { ChangefeedError } from './error.js';
import type { AnyRow, CallResult, Channel, ChannelOptions, Initial, Readable } from './types.js';
import { createEmitter, createScheduler, jitter } from './util.js';

export interface QueuedCall {
  readonly id: number;
  readonly name: string;
  readonly args: object;
  readonly key: string;
  readonly queuedAt: number;
  readonly attempts: number;
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
  call(name: string, args: object, options?: { key?: string }): Promise<{ id: number; done: Promise<CallResult<unknown>> }>;
  /** Puts one that was set aside at the end of the queue, with other arguments if there are any. A new key, as it is another call then. */
  retry(id: number, args?: object): Promise<void>;
  discard(id: number): Promise<void>;
  /** Resolves when nothing waits any more. */
  drained(): Promise<void>;
  close(): void;
}

interface Calls {
  call(name: string, args: never, options?: { key?: string; timeoutMs?: number }): Promise<CallResult<unknown>>;
  on(event: 'purge', listener: () => void): () => void;
}

export interface OfflineOptions {
  /** Another queue for another user: calls are made with whatever token the client has. */
  name?: string;
  indexedDB?: IDBFactory;
  /** How long one call may take: 30 seconds if it is left out. */
  timeoutMs?: number;
  backoff?: { minMs?: number; maxMs?: number };
}

const CALLS = 'calls';
const ROWS = 'rows';

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
  const { name = 'default', timeoutMs = 30_000 } = options;
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

  const read = async () => {
    const all = (await promised(db.transaction(CALLS).objectStore(CALLS).getAll())) as QueuedCall[];
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
      const timer = setTimeout(resolve, ms);
      wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  /** What the leader does. */
  const work = async () => {
    let attempt = 0;
    while (!closed) {
      // The store says what is next, not what this tab remembers: another one may have thrown it away.
      await read();
      const next = current.waiting[0];
      if (!next) {
        await pause(2 ** 31 - 1);
        continue;
      }
      try {
        const answer = await client.call(next.name, next.args as never, { key: next.key, timeoutMs });
        attempt = 0;
        await written(db, CALLS, (objects) => objects.delete(next.id));
        settle({ id: next.id, answer });
        await tell({ id: next.id, answer });
      } catch (failure) {
        if (closed) return;
        const error = failure instanceof ChangefeedError ? failure : new ChangefeedError('XX000', String(failure));
        // The token is not the call's fault either: it waits for another one.
        if (error.type === 'network' || error.code === '28000' || (error.retryable && next.attempts < 10)) {
          if (error.type !== 'network') await written(db, CALLS, (objects) => objects.put({ ...next, attempts: next.attempts + 1 }));
          await pause(Math.max(error.retryAfterMs ?? 0, minMs / 2 + jitter(attempt++, minMs, maxMs)));
          continue;
        }
        attempt = 0;
        const { code, message, hint, conflict } = error;
        const failed = { code, message, ...(hint && { hint }), ...(conflict && { conflict }) };
        await written(db, CALLS, (objects) => objects.put({ ...next, failed }));
        settle({ id: next.id, error: failed });
        await tell({ id: next.id, error: failed });
      }
    }
  };
  // One tab at a time, and another one when it has gone.
  const { locks } = globalThis.navigator ?? {};
  if (locks) {
    const ending = new AbortController();
    leave = () => ending.abort();
    locks.request(`pg-changefeed ${name}`, { signal: ending.signal }, work).catch(() => {});
  } else void work();
  const online = () => wake?.();
  globalThis.addEventListener?.('online', online);

  await read();
  return {
    get current() {
      return current;
    },
    subscribe: (listener) => on('change', listener),
    async call(called, args, { key = crypto.randomUUID() } = {}) {
      const call = { name: called, args, key, queuedAt: Date.now(), attempts: 0 };
      const id = Number(await written(db, CALLS, (objects) => objects.add(call)));
      const done = new Promise<CallResult<unknown>>((resolve, reject) => waiters.set(id, { resolve, reject }));
      done.catch(() => {});
      await tell();
      return { id, done };
    },
    async retry(id, args) {
      const call = current.failed.find((each) => each.id === id);
      if (!call) throw new Error(`no call ${id} was set aside`);
      const { id: _, failed: __, ...rest } = call;
      const transaction = db.transaction(CALLS, 'readwrite', { durability: 'strict' });
      transaction.objectStore(CALLS).delete(id);
      transaction.objectStore(CALLS).add({ ...rest, args: args ?? call.args, key: crypto.randomUUID(), attempts: 0, queuedAt: Date.now() });
      await new Promise<void>((resolve, reject) => {
        transaction.oncomplete = () => resolve();
        transaction.onabort = () => reject(transaction.error);
      });
      await tell();
    },
    async discard(id) {
      await written(db, CALLS, (objects) => objects.delete(id));
      await tell();
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
    close() {
      closed = true;
      globalThis.removeEventListener?.('online', online);
      wake?.();
      leave?.();
      others?.close();
      db.close();
    },
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
  const off = client.on('purge', () => void clear().catch(() => {}));
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
      const offs = [channel.subscribe(mark)];
      mark();
      return () => offs.forEach((each) => each());
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
