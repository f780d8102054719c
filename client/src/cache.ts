/**
 * The rows of one channel: what the operations of the protocol make of them.
 *
 * Rows are kept by entity and by the text of their key. Those of a snapshot are collected aside and take the place of
 * the others at `ready`. Row objects are never changed: whoever holds one holds what was, and can compare by identity.
 */
import { ChangefeedError } from './error.js';
import type { AnyRow, Change, Codec, EntityInfo } from './types.js';

interface Kept {
  row: AnyRow;
  version?: string | null;
}

type Rows = Map<string, Map<string, Kept>>;

export interface Cache {
  entities: Record<string, EntityInfo>;
  /** Rows aside, until `swap`. */
  stage(): void;
  add(entity: string, rows: AnyRow[], versions?: (string | null)[]): void;
  swap(): void;
  /** Applies the changes of a transaction, all or none. Throws if they do not fit what is there. */
  apply(changes: AnyRow[], txid: string | null): Change[];
  clear(): void;
  rows(entity?: string): readonly AnyRow[];
  find(key: AnyRow, entity?: string): Kept | undefined;
  size(): number;
  /** The arrays that `rows` gave are not the rows of now any more. */
  renew(): void;
  /** Are there rows, or is it known that there are none? */
  filled: boolean;
  /** Rows are being collected aside. */
  staging(): boolean;
}

const EMPTY: readonly AnyRow[] = Object.freeze([]);

/** Would a parser that makes doubles of numbers have given the same for another key? */
const isExact = (value: unknown): boolean =>
  typeof value === 'number'
    ? Number.isSafeInteger(value) || String(value).replace(/\D|e.*/g, '').length < 16
    : typeof value !== 'object' || value === null || Object.values(value).every(isExact);

export const createCache = (channel: string, codec: Codec): Cache => {
  let rows: Rows = new Map();
  let staged: Rows | null = null;
  let arrays = new Map<string, readonly AnyRow[]>();

  const of = (where: Rows, entity: string): Map<string, Kept> => {
    let map = where.get(entity);
    if (!map) where.set(entity, (map = new Map()));
    return map;
  };

  /** Of a key, or of a row with its key. */
  const text = (entity: string, row: AnyRow): string => {
    const key = self.entities[entity]?.key ?? Object.keys(row);
    return codec.stringify(key.map((name) => {
      if (!isExact(row[name])) {
        throw new ChangefeedError('no_exact_number', `a key of "${channel}" has a number with more digits than a double holds`,
          { channel, hint: 'Use the codec of pg-changefeed/lossless.' });
      }
      return row[name];
    }));
  };

  const name = (entity?: string): string => entity ?? Object.keys(self.entities)[0] ?? '';

  const self: Cache = {
    entities: {},
    filled: false,
    staging: () => staged !== null,
    stage() {
      staged = new Map();
    },
    add(entity, added, versions) {
      const map = of(staged ?? rows, entity);
      added.forEach((row, i) => map.set(text(entity, row), versions ? { row, version: versions[i] } : { row }));
    },
    swap() {
      if (staged) rows = staged;
      staged = null;
      self.filled = true;
    },
    apply(changes, txid) {
      const undo: (() => void)[] = [];
      try {
        return changes.map(({ entity, op, key, row, set, version }) => {
          const map = of(staged ?? rows, entity);
          const at = text(entity, key);
          const old = map.get(at);
          undo.push(() => (old ? map.set(at, old) : map.delete(at)));
          if (op === 'remove') {
            map.delete(at);
            return { channel, entity, op, key };
          }
          if (op === 'merge') {
            // A merge may bring a whole row; half a row would be a wrong one.
            if (!old && self.entities[entity]?.columns.some((column) => !(column in set) && !(column in key))) {
              throw new ChangefeedError('inconsistent', `"${channel}" got a change of a row that it does not have`, { channel });
            }
            row = old ? { ...old.row, ...set } : { ...key, ...set };
          }
          map.set(at, { row, version: version === undefined ? txid : version ?? old?.version });
          return op === 'merge' ? { channel, entity, op, key, row, set } : { channel, entity, op, key, row };
        }) as Change[];
      } catch (error) {
        undo.reverse().forEach((step) => step());
        throw error;
      }
    },
    clear() {
      rows = new Map();
      staged = null;
      self.filled = false;
    },
    rows(entity) {
      const which = name(entity);
      let array = arrays.get(which);
      if (!array) {
        const map = rows.get(which);
        arrays.set(which, (array = map?.size ? [...map.values()].map((kept) => kept.row) : EMPTY));
      }
      return array;
    },
    find: (key, entity) => rows.get(name(entity))?.get(text(name(entity), key)),
    size: () => [...rows.values()].reduce((sum, map) => sum + map.size, 0),
    renew() {
      arrays = new Map();
    },
  };
  return self;
};
