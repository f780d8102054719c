/**
 * SWR: pushes what changes in a channel into keys that were loaded some other way; a fetcher that knows ETags; presets.
 */
import type { Cache, ScopedMutator, State } from 'swr';

import { applyChanges, type UpdateType } from './query.js';
import type { AnyRow, Change, Channel, ChannelTypes } from './types.js';

export interface SWRBinding<C extends ChannelTypes = ChannelTypes, Row extends object = AnyRow> {
  channel: Channel<C>;
  entity?: keyof C['entities'] & string;
  /** As for TanStack Query: `pg-changefeed/query`. */
  updateType: UpdateType;
  /**
   * The key, or which one a change belongs to; null: none. Of `useSWRInfinite` and for keys that are no strings: what
   * `unstable_serialize` makes of them.
   */
  key: string | ((change: Change<C>) => string | null);
  transform?(row: Row, change: Change<C>): object | null;
  /** Where the list is in what the key holds, or in each of its pages. */
  path?: string;
  getKey?(item: AnyRow): object;
}

interface Config {
  cache: Cache;
  mutate: ScopedMutator;
}

/** What keys of `useSWRInfinite` begin with. */
const INFINITE = '$inf$';
/** How long a change waits for a local mutation that is under way. */
const LOOK_MS = 20;

/**
 * Binds keys to channels, until the function that it returns is called. `config` is what `useSWRConfig()` gives.
 */
export const bindSWR = ({ cache, mutate }: Config, bindings: readonly SWRBinding<never, never>[] | readonly SWRBinding[]): (() => void) => {
  const offs: (() => void)[] = [];
  const waiting = new Map<string, { binding: SWRBinding; changes: Change[] }[]>();
  let over = false;

  const push = (key: string) => {
    const work = waiting.get(key);
    if (!work || over) return;
    const state = cache.get(key) as (State & { _c?: unknown }) | undefined;
    // An optimistic mutation shows its own data and would lose it, and its way back, by a push.
    if (state?._c !== undefined) return void setTimeout(push, LOOK_MS, key);
    waiting.delete(key);
    if (state?.data === undefined) {
      // A push would make SWR throw away the load that is on its way; it is made again instead.
      if (state) void mutate(key);
      return;
    }
    const loading = state.isValidating;
    const apply = (data: unknown) => work.reduce((now, { binding, changes }) => {
      if (!key.startsWith(INFINITE) || !Array.isArray(now)) return applyChanges(now, changes, binding);
      return (applyChanges({ pages: now }, changes, binding) as { pages: unknown }).pages;
    }, data);
    mutate(key, apply, {
      // The load that was on its way is discarded by this; another one has to take its place.
      revalidate: loading ?? false,
      populateCache: true,
    }).catch((error: unknown) => {
      // A `transform` that fails must not leave what was before without a word.
      void mutate(key);
      throw error;
    });
  };

  for (const binding of bindings as readonly SWRBinding[]) {
    const { channel, entity, updateType, key: keyOf } = binding;
    const used = new Set<string>();
    // What was loaded before may be from before the channel's rows.
    if (channel.state === 'live' && typeof keyOf === 'string' && cache.get(keyOf)) void mutate(keyOf);
    offs.push(channel.on('change', ({ reset, changes }) => {
      if (reset) {
        for (const key of typeof keyOf === 'function' ? used : [keyOf]) void mutate(key);
        return;
      }
      const groups = new Map<string, Change[]>();
      for (const change of changes) {
        if (entity !== undefined && change.entity !== entity) continue;
        const key = typeof keyOf === 'function' ? keyOf(change) : keyOf;
        if (key === null) continue;
        used.add(key);
        groups.set(key, [...(groups.get(key) ?? []), change]);
      }
      for (const [key, own] of groups) {
        if (updateType === 'invalidate') {
          void mutate(key);
          continue;
        }
        const list = waiting.get(key);
        if (list) list.push({ binding, changes: own });
        else {
          waiting.set(key, [{ binding, changes: own }]);
          push(key);
        }
      }
    }));
  }
  return () => {
    over = true;
    offs.forEach((off) => off());
  };
};

/** Loads a key again, or all keys that match. */
export const invalidate = (mutate: ScopedMutator, which: string | RegExp | ((key: string) => boolean)): Promise<unknown> =>
  typeof which === 'string'
    ? mutate(which)
    : mutate((key) => typeof key === 'string' && (typeof which === 'function' ? which(key) : which.test(key)));

/**
 * A fetcher that sends `If-None-Match`, and for 304 gives the very object of before, so that nothing is drawn again.
 * It keeps the last answers of `size` addresses.
 */
export const createFetcher = ({ fetch: get = globalThis.fetch, size = 500, init }: {
  fetch?: typeof fetch; size?: number; init?: () => RequestInit | Promise<RequestInit>;
} = {}) => {
  const kept = new Map<string, { etag: string; data: unknown }>();
  return async <T = unknown>(url: string): Promise<T> => {
    const before = kept.get(url);
    const options = (await init?.()) ?? {};
    const headers = new Headers(options.headers);
    if (before) headers.set('If-None-Match', before.etag);
    const response = await get(url, { ...options, headers });
    if (response.status === 304 && before) return before.data as T;
    if (!response.ok) throw Object.assign(new Error(`${response.status} ${response.statusText} for ${url}`), { status: response.status });
    const data: unknown = await response.json();
    const etag = response.headers.get('etag');
    kept.delete(url);
    if (etag) kept.set(url, { etag, data });
    if (kept.size > size) kept.delete(kept.keys().next().value!);
    return data as T;
  };
};

/** Configurations by how fast what they show may change. With `realtime` a channel says what changes. */
export const presets = {
  fast: { refreshInterval: 5_000, dedupingInterval: 1_000, revalidateOnFocus: true },
  standard: { refreshInterval: 60_000, dedupingInterval: 5_000, revalidateOnFocus: true },
  slow: { refreshInterval: 600_000, dedupingInterval: 60_000, revalidateOnFocus: false },
  realtime: { refreshInterval: 0, dedupingInterval: 2_000, revalidateOnFocus: false, revalidateIfStale: false, revalidateOnReconnect: false },
} as const;
