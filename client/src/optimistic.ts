/**
 * Optimistic writes: shown at once, confirmed when the own transaction comes back, rolled back when the database refuses.
 *
 * What is pending lies over the channel's rows; the rows themselves are always what the server said. With the row's version
 * (a channel that was asked for with `versions`) somebody else's change is noticed before the call runs, and a policy decides.
 */
import { ChangefeedError } from './error.js';
import type { AnyRow, CallResult, Channel, ChannelTypes, Readable, WaitOptions } from './types.js';
import { createEmitter, createScheduler } from './util.js';

/**
 * - `server`: the call fails, and the row is what the server says
 * - `merge`: columns that only one side has changed are taken from that side, and the call is made again; if both changed one, it fails
 * - `manual`: `resolve` says what to do
 */
export type ConflictPolicy = 'server' | 'merge' | 'manual';

export interface Conflict<R> {
  /**
   * The row as it was when it was changed here (null also if only its version was given, and it is another one now); as it was to be; and
   * as it is on the server, null if it is gone.
   */
  readonly base: R | null;
  readonly mine: R | null;
  readonly theirs: R | null;
}

export interface Mutation<R extends object> {
  key: object;
  /** Columns to change. */
  set?: Partial<R>;
  /** A whole row: a new one. */
  row?: R;
  /** The row goes. */
  remove?: boolean;
  /** The call that does it: a function's name and its arguments, made of what is to be written. */
  call(columns: Partial<R>): readonly [name: string, args: object];
  conflict?: ConflictPolicy;
  /**
   * The row that was looked at when it was changed, for instance when a form was opened (null: there was none), its version, or both:
   * what has come since then is a conflict, also one's own changes. If both are left out, it is the row as it is shown now.
   */
  base?: R | null;
  version?: string;
  /** Columns to write instead, or null to give up. For `manual`. */
  resolve?(conflict: Conflict<R>): Partial<R> | null | Promise<Partial<R> | null>;
  /**
   * How long to wait for the answer, and then for the transaction: 10 seconds each if it is left out. Without an answer it is rolled
   * back, and may be done all the same; behind one it is done, and shown until it is in the rows, however long that takes.
   */
  timeoutMs?: number;
}

export type SyncStatus = 'synced' | 'syncing' | 'waiting';

export interface Optimistic<R extends object> extends Readable<readonly R[]> {
  /** The row with what is pending on it. */
  get(key: object): R | undefined;
  isPending(key: object): boolean;
  /** Mutations under way. */
  readonly pending: number;
  /** `waiting`: there is something to send and no connection. */
  readonly status: SyncStatus;
  /**
   * Resolves when the transaction is in the rows; rejects when it was rolled back. Mutations of one row are made one after the other,
   * so that one's own is not taken for somebody else's.
   */
  mutate(mutation: Mutation<R>): Promise<CallResult<unknown>>;
  close(): void;
}

interface Calls {
  call(name: string, args: never, options?: { expect?: never; timeoutMs?: number }): Promise<CallResult<unknown>>;
  sync(options?: WaitOptions): Promise<void>;
  readonly connection: Readable<{ readonly status: string }>;
}

interface Layer<R> {
  key: AnyRow;
  set?: Partial<R>;
  row?: R;
  remove?: boolean;
}

/** A transaction that has no part in the rows does not come: behind this time the server is asked. */
const ASK_MS = 300;
/** Attempts of one mutation against others who are faster each time. */
const ATTEMPTS = 5;

const text = (value: unknown) => JSON.stringify(value, (_, inner: unknown) => (typeof inner === 'bigint' ? `${inner}n` : inner));
const same = (a: unknown, b: unknown) => a === b || text(a) === text(b);

/** Columns of `mine` that can be written over `theirs`; null if both sides have changed one of them. */
export const mergeColumns = <R extends object>(base: R | null, mine: Partial<R>, theirs: R | null): Partial<R> | null => {
  if (!theirs) return null;
  const result: Partial<R> = {};
  for (const column of Object.keys(mine) as (keyof R)[]) {
    if (same(mine[column], theirs[column])) continue;
    if (base && !same(base[column], theirs[column])) return null;
    result[column] = mine[column] as R[keyof R];
  }
  return result;
};

/** The rows of a channel's entity with pending mutations over them. */
export const optimistic = <R extends object = AnyRow, C extends ChannelTypes = ChannelTypes>(
  client: Calls, source: Channel<C>, entity?: keyof C['entities'] & string,
): Optimistic<R> => {
  const channel = source as unknown as Channel;
  const { on, emit } = createEmitter();
  const layers = new Set<Layer<R>>();
  /** By row, the mutation that came last: it gives the version that it has made. */
  const last = new Map<string, Promise<string | undefined>>();
  let closed = false;
  let shown: readonly R[] | null = null;
  const changed = createScheduler('microtask', () => emit('change'));
  const touch = () => {
    shown = null;
    changed();
  };
  const offs = [channel.subscribe(touch), client.connection.subscribe(changed)];

  const names = (key: object): readonly string[] => channel.entities[entity ?? Object.keys(channel.entities)[0] ?? '']?.key ?? Object.keys(key);
  /** Of a key, or of a row; before the server has said what is the key, that is what keys here have. */
  const textOf = (key: object, columns = names(key)) => columns.map((name) => String((key as AnyRow)[name])).join('\u0000');
  const over = (row: R | undefined, layer: Layer<R>): R | undefined =>
    layer.remove ? undefined : layer.row ?? (row && layer.set ? { ...row, ...layer.set } : row);

  const build = (): readonly R[] => {
    const rows = channel.rows(entity) as readonly R[];
    if (layers.size === 0) return rows;
    const columns = names([...layers][0]!.key);
    const byKey = new Map<string, R | undefined>(rows.map((row) => [textOf(row, columns), row]));
    for (const layer of layers) {
      const at = textOf(layer.key);
      byKey.set(at, over(byKey.get(at), layer));
    }
    return [...byKey.values()].filter((row) => row !== undefined);
  };
  const get = (key: object): R | undefined => {
    const at = textOf(key);
    let row = channel.get(key as never, entity) as R | undefined;
    // Those that came another way cannot be asked for by key before the channel is live.
    if (!row && channel.state !== 'live') row = (channel.rows(entity) as readonly R[]).find((row) => textOf(row, names(key)) === at);
    for (const layer of layers) if (textOf(layer.key) === at) row = over(row, layer);
    return row;
  };

  const drop = (layer: Layer<R>) => {
    layers.delete(layer);
    touch();
  };
  /** Takes the layer away when the rows have what it shows. */
  const settle = async (txid: string, layer: Layer<R>): Promise<void> => {
    for (let timeoutMs = ASK_MS; !closed; timeoutMs = 10_000) {
      try {
        await channel.seen(txid, { timeoutMs });
        break;
      } catch {
        if (channel.state === 'error' || channel.state === 'closed') break;
        await client.sync({ timeoutMs: 10_000 }).catch(() => {});
      }
    }
    // `rows()` are those of the last flush.
    const row = channel.get(layer.key as never, entity) as R | undefined;
    if (!closed && row !== (channel.rows(entity) as readonly R[]).find((each) => textOf(each) === textOf(layer.key))) {
      await new Promise<void>((resolve) => {
        const off = channel.subscribe(() => {
          off();
          resolve();
        });
      });
    }
    drop(layer);
  };
  const sorted = (row: R | null | undefined) => row && Object.entries(row).sort(([a], [b]) => (a < b ? -1 : 1));

  /** Do the rows have versions, as far as can be seen? */
  const hasVersions = () => {
    const [row] = channel.rows(entity) as readonly AnyRow[];
    return row !== undefined && channel.version(Object.fromEntries(names({}).map((name) => [name, row[name]])) as never, entity) !== undefined;
  };
  /**
   * The version of a row that was seen without one; rejects with the row of now if that is another one. Rows that came another way
   * have no versions until the channel is live.
   */
  const lookAt = async (key: object, base: R | null, given: boolean, timeoutMs: number): Promise<string | undefined> => {
    let timer: ReturnType<typeof setTimeout> | undefined;
    await Promise.race([channel.ready.catch(() => {}), new Promise((_, reject) => {
      timer = setTimeout(() => reject(new ChangefeedError('no_answer', 'there are no rows of the server yet')), timeoutMs);
    })]).finally(() => clearTimeout(timer));
    const row = (channel.get(key as never, entity) as R | undefined) ?? null;
    const version = channel.version(key as never, entity);
    if (same(sorted(row), sorted(base))) return version;
    if (!given && !hasVersions()) return undefined;
    const conflict = { channel: channel.name, ...(entity && { entity }), key, row, version };
    throw new ChangefeedError('40001', 'the row has changed since it was looked at', { conflict });
  };

  const mutate = async (mutation: Mutation<R>): Promise<CallResult<unknown>> => {
    const { key, call, conflict: policy = 'server', resolve, timeoutMs = 10_000 } = mutation;
    const given = mutation.base !== undefined || mutation.version !== undefined;
    let { base, version } = mutation;
    if (!given) version = channel.version(key as never, entity);
    // What was looked at when it was changed, with one's own changes that are under way.
    if (base === undefined && (!given || version === channel.version(key as never, entity))) base = get(key) ?? null;
    const at = textOf(key);
    const before = last.get(at);
    let ended!: (version: string | undefined) => void;
    const mine = new Promise<string | undefined>((resolve) => {
      ended = resolve;
    });
    last.set(at, mine);
    let columns: Partial<R> = mutation.row ?? mutation.set ?? {};
    const layer: Layer<R> = {
      key: key as AnyRow, ...(mutation.remove ? { remove: true } : mutation.row ? { row: mutation.row } : { set: columns }),
    };
    layers.add(layer);
    touch();
    let done: string | undefined;
    try {
      // The one before has changed the version.
      const made = await before;
      if (!given) version = made ?? version;
      for (let attempt = 1; ; attempt += 1) {
        try {
          if (attempt === 1 && version === undefined && !mutation.row) version = await lookAt(key, base ?? null, given, timeoutMs);
          const [name, args] = call(columns);
          const expect = version !== undefined && !mutation.row ? { expect: [{ channel: channel.name, ...(entity && { entity }), key, version }] as never } : {};
          const answer = await client.call(name, args as never, { timeoutMs, ...expect });
          if (answer.txid) {
            done = answer.txid;
            const shown = settle(answer.txid, layer);
            let timer: ReturnType<typeof setTimeout> | undefined;
            await Promise.race([shown, new Promise((resolve) => {
              timer = setTimeout(resolve, timeoutMs);
            })]);
            clearTimeout(timer);
          }
          return answer;
        } catch (error) {
          const found = error instanceof ChangefeedError ? error.conflict : undefined;
          if (!found || attempt === ATTEMPTS) throw error;
          const theirs = found.row as R | null;
          // Nothing that can be seen here has changed.
          if (theirs && same(sorted(theirs), sorted(base))) {
            version = found.version ?? undefined;
            continue;
          }
          if (policy === 'server') throw error;
          const own = mutation.remove ? null : { ...(base as R), ...columns };
          let next: Partial<R> | null;
          if (policy === 'manual') next = (await resolve?.({ base: base ?? null, mine: own, theirs })) ?? null;
          else next = mutation.remove || base === undefined ? null : mergeColumns(base, columns, theirs);
          if (next === null) throw error;
          columns = next;
          base = theirs;
          version = found.version ?? undefined;
          if (!mutation.remove) {
            layer.set = columns;
            delete layer.row;
          }
          touch();
        }
      }
    } finally {
      if (last.get(at) === mine) last.delete(at);
      ended(done ?? (before ? await before : undefined));
      if (done === undefined) drop(layer);
    }
  };

  return {
    get current() {
      return (shown ??= build());
    },
    subscribe: (listener) => on('change', listener),
    get,
    isPending(key) {
      const at = textOf(key);
      return [...layers].some((layer) => textOf(layer.key) === at);
    },
    get pending() {
      return layers.size;
    },
    get status() {
      if (layers.size === 0) return 'synced';
      return ['connected', 'polling'].includes(client.connection.current.status) ? 'syncing' : 'waiting';
    },
    mutate,
    close() {
      closed = true;
      offs.forEach((off) => off());
    },
  };
};
