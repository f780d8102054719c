/**
 * TanStack Query: pushes what changes in a channel into queries that were loaded some other way.
 *
 * Changes of a flush go into a query at once. A load that is on its way when a change comes would bring back what was before
 * it, so it is cancelled and made again behind the change. What was pushed does not make a query look freshly loaded.
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
  /** The key of what the query holds: its members with the names of the key's columns, if it is left out. */
  getKey?(item: AnyRow): object;
}

const keyText = (names: readonly string[], item: AnyRow): string => JSON.stringify(names.map((name) => String(item[name])));

/** The data of a query behind the changes; the same object if they are nothing to it. */
export const applyChanges = (data: unknown, changes: readonly Change[], binding: Pick<Binding, 'updateType' | 'transform' | 'getKey' | 'channel'>): unknown => {
  const { updateType, transform, getKey, channel } = binding;
  const apply = (list: readonly AnyRow[], add: boolean): readonly AnyRow[] => {
    let result: AnyRow[] | null = null;
    let places: Map<string, number> | null = null;
    const holes = new Set<number>();
    for (const change of changes) {
      const names = channel.entities[change.entity]?.key ?? Object.keys(change.key);
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
  if (Array.isArray(data)) return apply(data as AnyRow[], true);
  if (typeof data !== 'object' || data === null) return data;
  // Of an infinite query: what is new goes to the last page.
  if ('pages' in data && Array.isArray(data.pages)) {
    const pages = data.pages as AnyRow[][];
    const held = (page: AnyRow[]) => apply(page, false);
    const next: (readonly AnyRow[])[] = pages.map(held);
    const last = pages.length - 1;
    if (last >= 0) {
      const elsewhere = changes.filter((change) => {
        const names = channel.entities[change.entity]?.key ?? Object.keys(change.key);
        const text = keyText(names, change.key as AnyRow);
        return !pages.slice(0, last).some((page) => page.some((item) => keyText(names, (getKey?.(item) ?? item) as AnyRow) === text));
      });
      next[last] = applyChanges(pages[last], elsewhere, binding) as readonly AnyRow[];
    }
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
    const next = (queues.get(hash) ?? Promise.resolve()).then(() => (over ? undefined : work())).catch(() => {});
    queues.set(hash, next);
    void next.then(() => queues.get(hash) === next && queues.delete(hash));
  };
  const invalidate = (queryKey: QueryKey) =>
    enqueue(queryKey, async () => {
      await queryClient.cancelQueries({ queryKey });
      // What it brings comes later, and changes meanwhile must not wait for it.
      void queryClient.invalidateQueries({ queryKey });
    });

  for (const binding of bindings as readonly Binding[]) {
    const { channel, entity, updateType, queryKey } = binding;
    const used = new Map<string, QueryKey>();
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
          if (loading) await queryClient.cancelQueries({ queryKey: key, exact: true });
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
