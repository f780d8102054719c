/**
 * TanStack Query: pushes what changes in a channel into queries that were loaded some other way.
 *
 * Changes of a flush go into a query at once. A load that is on its way when a change comes would bring back what was before
 * it, so it is cancelled and made again behind the change; one that no component shows is somebody's to wait for, so it ends
 * first. What was pushed does not make a query look freshly loaded.
 */
import type { QueryClient, QueryKey } from '@tanstack/query-core';

import type { AnyRow, Change, Channel, ChannelTypes } from './types.js';

/**
 * - `merge`: as the change says: rows that come are added, columns that change are changed, rows that go are taken out
 * - `replace`: the same with whole rows, so that what the load had beside the columns is gone
 * - `append`: only rows that come
 * - `remove`: only rows that go
 * - `invalidate`: the query is loaded again. For what is filtered, sorted, paged or summed up: from the row alone nobody
 *   knows whether, and where, it belongs there
 */
export type UpdateType = 'merge' | 'replace' | 'append' | 'remove' | 'invalidate';

export interface Binding<C extends ChannelTypes = ChannelTypes, Row extends object = AnyRow> {
  channel: Channel<C>;
  /** All entities of the channel if it is left out. */
  entity?: keyof C['entities'] & string;
  updateType: UpdateType;
  /** The query, or which one a change belongs to; null: none. */
  queryKey: QueryKey | ((change: Change<C>) => QueryKey | null);
  /** From the row to what the query holds. Null: it does not belong there, and is taken out if it is. */
  transform?(row: Row, change: Change<C>): object | null;
  /** Where the list is in what the query holds, or in each of its pages: `items` in `{ items: [...], total: 3 }`. */
  path?: string;
  /** The key of what the query holds: its members with the names of the key's columns, if it is left out. */
  getKey?(item: AnyRow): object;
}

const keyText = (names: readonly string[], item: AnyRow): string => JSON.stringify(names.map((name) => String(item[name])));

/** The data of a query behind the changes; the same object if they are nothing to it. */
export const applyChanges = (data: unknown, changes: readonly Change[], binding: Pick<Binding, 'updateType' | 'transform' | 'path' | 'getKey' | 'channel'>): unknown => {
  const { updateType, transform, path, getKey, channel } = binding;
  const namesOf = (change: Change) => channel.entities[change.entity]?.key ?? Object.keys(change.key);
  const apply = (list: readonly AnyRow[], add: boolean): readonly AnyRow[] => {
    let result: AnyRow[] | null = null;
    let places: Map<string, number> | null = null;
    const holes = new Set<number>();
    for (const change of changes) {
      const names = namesOf(change);
      places ??= new Map(list.map((item, i) => [keyText(names, (getKey?.(item) ?? item) as AnyRow), i]));
      const text = keyText(names, change.key as AnyRow);
      const at = places.get(text);
      const row = change.op === 'remove' ? null : transform ? transform(change.row as AnyRow, change) : change.row;
      if (row === null) {
        if (updateType === 'append' || at === undefined) continue;
        result ??= [...list];
        holes.add(at);
        places.delete(text);
      } else if (at === undefined) {
        if (updateType === 'remove' || !add) continue;
        result ??= [...list];
        places.set(text, result.push(row) - 1);
      } else if (updateType === 'merge' || updateType === 'replace') {
        result ??= [...list];
        result[at] = updateType === 'replace' ? row : { ...result[at], ...row };
      }
    }
    if (!result) return list;
    return holes.size ? result.filter((_, i) => !holes.has(i)) : result;
  };
  /** A list, or an object with one; undefined if it is neither. */
  const inside = (page: unknown, add: boolean, own = apply): unknown => {
    if (Array.isArray(page)) return own(page as AnyRow[], add);
    const list = path === undefined ? undefined : (page as AnyRow | null)?.[path];
    if (!Array.isArray(list)) return undefined;
    const next = own(list as AnyRow[], add);
    return next === list ? page : { ...(page as AnyRow), [path!]: next };
  };
  const whole = inside(data, true);
  if (whole !== undefined) return whole;
  if (typeof data !== 'object' || data === null) return data;
  // Of an infinite query: what is new goes to the last page.
  if ('pages' in data && Array.isArray(data.pages)) {
    const pages = data.pages as unknown[];
    const known = new Set<string>();
    pages.slice(0, -1).forEach((page) => inside(page, false, (list) => {
      for (const change of changes) {
        const names = namesOf(change);
        for (const item of list) known.add(keyText(names, (getKey?.(item) ?? item) as AnyRow));
      }
      return list;
    }));
    const elsewhere = changes.filter((change) => !known.has(keyText(namesOf(change), change.key as AnyRow)));
    const next = pages.map((page, i) =>
      (i < pages.length - 1 ? inside(page, false) : inside(page, true, (list) => applyChanges(list, elsewhere, binding) as AnyRow[])) ?? page);
    return next.some((page, i) => page !== pages[i]) ? { ...data, pages: next } : data;
  }
  const one = [data as AnyRow];
  const [after = null] = apply(one, false);
  return after;
};

/** Binds queries to channels, until the function that it returns is called. The channels stay the caller's. */
export const bindQueryClient = (queryClient: QueryClient, bindings: readonly Binding<never, never>[] | readonly Binding[]): (() => void) => {
  const offs: (() => void)[] = [];
  // What happens to one query happens in order.
  const queues = new Map<string, Promise<void>>();
  let over = false;

  const enqueue = (queryKey: QueryKey, work: () => Promise<void>) => {
    const hash = JSON.stringify(queryKey);
    const next = (queues.get(hash) ?? Promise.resolve()).then(() => (over ? undefined : work())).catch((error: unknown) => {
      // A `transform` that fails must not leave what was before without a word.
      void queryClient.invalidateQueries({ queryKey });
      queueMicrotask(() => {
        throw error;
      });
    });
    queues.set(hash, next);
    void next.then(() => queues.get(hash) === next && queues.delete(hash));
  };
  /** Those that nobody shows are waited for by whoever has asked for them, and would fail there. */
  const cancel = async (queryKey: QueryKey, exact: boolean) => {
    await queryClient.cancelQueries({ queryKey, exact, type: 'active' });
    await Promise.allSettled(queryClient.getQueryCache().findAll({ queryKey, exact, type: 'inactive', fetchStatus: 'fetching' }).map((query) => query.promise));
  };
  const invalidate = (queryKey: QueryKey) =>
    enqueue(queryKey, async () => {
      await cancel(queryKey, false);
      // What it brings comes later, and changes meanwhile must not wait for it.
      void queryClient.invalidateQueries({ queryKey });
    });

  for (const binding of bindings as readonly Binding[]) {
    const { channel, entity, updateType, queryKey } = binding;
    const used = new Map<string, QueryKey>();
    // What was loaded before may be from before the channel's rows.
    if (channel.state === 'live' && typeof queryKey !== 'function' && queryClient.getQueryCache().findAll({ queryKey }).length) invalidate(queryKey);
    offs.push(channel.on('change', ({ reset, changes }) => {
      if (reset) {
        // All rows may be others: what was loaded may be as wrong as what was pushed.
        for (const key of typeof queryKey === 'function' ? used.values() : [queryKey]) invalidate(key);
        return;
      }
      const groups = new Map<string, { key: QueryKey; changes: Change[] }>();
      for (const change of changes) {
        if (entity !== undefined && change.entity !== entity) continue;
        const key = typeof queryKey === 'function' ? queryKey(change) : queryKey;
        if (key === null) continue;
        const text = JSON.stringify(key);
        used.set(text, key);
        const group = groups.get(text);
        if (group) group.changes.push(change);
        else groups.set(text, { key, changes: [change] });
      }
      for (const { key, changes: own } of groups.values()) {
        if (updateType === 'invalidate') {
          invalidate(key);
          continue;
        }
        enqueue(key, async () => {
          const before = queryClient.getQueryState(key);
          if (!before) return;
          const loading = before.fetchStatus !== 'idle';
          if (loading) await cancel(key, true);
          const state = queryClient.getQueryState(key);
          if (state?.data !== undefined) {
            queryClient.setQueryData(key, (data: unknown) => applyChanges(data, own, binding) as never, { updatedAt: state.dataUpdatedAt });
            if (state.isInvalidated) void queryClient.invalidateQueries({ queryKey: key, exact: true, refetchType: 'none' });
          }
          if (loading) void queryClient.invalidateQueries({ queryKey: key, exact: true });
        });
      }
    }));
  }
  return () => {
    over = true;
    offs.forEach((off) => off());
  };
};
