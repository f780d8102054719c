/**
 * The rows of one channel: what the operations of the protocol make of them, and what has changed since the last flush.
 *
 * Rows are kept by entity and by the text of their key. Those of a snapshot are collected aside and take the place of
 * the others at `ready`. Row objects are never changed: whoever holds one holds what was, and can compare by identity.
 *
 * Members that begin with "_" are internal to the core, and have other names when it is built.
 */
import { ChangefeedError } from './error.js';
import type { AnyRow, Change, Codec, EntityInfo } from './types.js';

export interface Kept {
  _row: AnyRow;
  _version?: string | null;
}

type Rows = Map<string, Map<string, Kept>>;

export type Cache = ReturnType<typeof createCache>;

const EMPTY: readonly AnyRow[] = Object.freeze([]);

/** Would a parser that makes doubles of numbers have given the same for another key? */
const isExact = (value: unknown): boolean =>
  typeof value === 'number'
    ? Number.isSafeInteger(value) || (Math.abs(value) < 1e15 && String(value).length < 17)
    : typeof value !== 'object' || value === null || Object.values(value).every(isExact);

/** What two changes of one row are together. */
const together = (before: Change | undefined, change: Change): Change => {
  if (!before || change.op === 'remove') return change;
  if (before.op === 'remove') return { ...change, op: 'replace' } as Change;
  if (before.op === 'merge') return change.op === 'merge' ? { ...change, set: { ...before.set, ...change.set } } : change;
  return before.op === 'append' || change.op === 'merge' ? { ...before, row: change.row } : change;
};

export const createCache = (channel: string, codec: Codec) => {
  let rows: Rows = new Map();
  let staged: Rows | null = null;
  /** What `rows` gave, until something changes. */
  let arrays: Record<string, readonly AnyRow[] | undefined> = {};
  let pending = new Map<string, Change>();

  const of = (entity: string): Map<string, Kept> => {
    const where = staged ?? rows;
    let map = where.get(entity);
    if (!map) where.set(entity, (map = new Map()));
    return map;
  };

  /** Of a key, or of a row with its key. */
  const text = (entity: string, row: AnyRow): string =>
    codec.stringify((self._entities[entity]?.key ?? Object.keys(row)).map((name) => {
      if (!isExact(row[name])) {
        throw new ChangefeedError('no_exact_number', `a key of "${channel}" has too many digits`, { channel, hint: 'Use pg-changefeed/lossless.' });
      }
      return row[name];
    }));

  const name = (entity?: string): string => entity ?? Object.keys(self._entities)[0] ?? '';

  /** All rows are others now. */
  const renew = (next: Rows, filled: boolean) => {
    rows = next;
    staged = null;
    arrays = {};
    pending = new Map();
    self._filled = filled;
  };

  const self = {
    _entities: {} as Record<string, EntityInfo>,
    /** Are there rows, or is it known that there are none? */
    _filled: false,
    /** Rows are being collected aside. */
    _staging: () => staged !== null,
    _stage(on: boolean) {
      staged = on ? new Map() : null;
    },
    _add(entity: string, added: readonly AnyRow[], versions?: (string | null)[]) {
      const map = of(entity);
      added.forEach((row, i) => map.set(text(entity, row), { _row: row, _version: versions?.[i] }));
    },
    /** What was collected is what counts. */
    _swap: () => renew(staged ?? rows, true),
    _clear: () => renew(new Map(), false),
    /** Applies the changes of a transaction, all or none. Throws if they do not fit what is there. */
    _apply(changes: AnyRow[], txid: string | null): Change[] {
      const places = changes.map(({ entity, op, key, set }) => {
        const at = text(entity, key);
        // A merge may bring a whole row; half a row would be a wrong one.
        if (op === 'merge' && !of(entity).has(at) && self._entities[entity]?.columns.some((column) => !(column in set) && !(column in key))) {
          throw new ChangefeedError('inconsistent', `a change of "${channel}" has no row`, { channel });
        }
        return at;
      });
      return changes.map(({ entity, op, key, row, set, version }, i) => {
        const map = of(entity);
        const at = places[i]!;
        const old = map.get(at);
        let change = { channel, entity, op, key } as Change;
        if (op === 'remove') map.delete(at);
        else {
          if (op === 'merge') row = { ...(old?._row ?? key), ...set };
          map.set(at, { _row: row, _version: version === undefined ? txid : version ?? old?._version });
          change = { ...change, row, ...(op === 'merge' && { set }) } as Change;
        }
        // Of what is collected aside nobody is told before it counts.
        if (!staged) {
          arrays[entity] = undefined;
          pending.set(entity + at, together(pending.get(entity + at), change));
        }
        return change;
      });
    },
    /** One change for each row that has changed since the last time. */
    _flush() {
      const changes = [...pending.values()];
      pending = new Map();
      return changes;
    },
    _rows(entity?: string): readonly AnyRow[] {
      const which = name(entity);
      const map = rows.get(which);
      return (arrays[which] ??= map?.size ? Array.from(map.values(), (kept) => kept._row) : EMPTY);
    },
    /** In the order of the rows. */
    _versions: (entity: string) => Array.from(rows.get(entity)?.values() ?? [], (kept) => kept._version),
    _find: (key: AnyRow, entity?: string) => rows.get(name(entity))?.get(text(name(entity), key)),
    _size: () => [...rows.values()].reduce((sum, map) => sum + map.size, 0),
  };
  return self;
};
