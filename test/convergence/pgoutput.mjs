// Reads the server's own logical replication protocol (pgoutput, version 1).
// The oracle takes its transactions from here: nothing of ours is involved.

class Reader {
  #buffer;
  #at = 0;

  constructor(buffer) {
    this.#buffer = buffer;
  }

  byte() { return this.#buffer[this.#at++]; }

  char() { return String.fromCharCode(this.byte()); }

  int16() { this.#at += 2; return this.#buffer.readInt16BE(this.#at - 2); }

  int32() { this.#at += 4; return this.#buffer.readUInt32BE(this.#at - 4); }

  int64() { this.#at += 8; return Number(this.#buffer.readBigInt64BE(this.#at - 8)); }

  string() {
    const end = this.#buffer.indexOf(0, this.#at);
    const s = this.#buffer.toString('utf8', this.#at, end);
    this.#at = end + 1;
    return s;
  }

  text(length) { this.#at += length; return this.#buffer.toString('utf8', this.#at - length, this.#at); }
}

const UNCHANGED = Symbol('unchanged large value');

/** Values by column: text, or null. What is UNCHANGED is in the old row. */
function readTuple(reader, relation) {
  const n = reader.int16();
  const row = {};
  for (let i = 0; i < n; i += 1) {
    const name = relation.columns[i];
    switch (reader.char()) {
      case 'n': row[name] = null; break;
      case 'u': row[name] = UNCHANGED; break;
      case 't': row[name] = reader.text(reader.int32()); break;
      default: throw new Error('pgoutput: unknown kind of value');
    }
  }
  return row;
}

/** Turns messages into transactions: { lsn, xid, time, changes: [{ relation, op, old, new }] }. */
export class Decoder {
  #relations = new Map();
  #transaction = null;

  /** Returns a transaction when the message completes one. */
  take(buffer) {
    const reader = new Reader(buffer);
    const kind = reader.char();
    switch (kind) {
      case 'B':
        this.#transaction = { lsn: reader.int64(), time: reader.int64(), xid: reader.int32(), changes: [] };
        return null;
      case 'C': {
        const transaction = this.#transaction;
        this.#transaction = null;
        return transaction;
      }
      case 'R': {
        const id = reader.int32();
        const schema = reader.string();
        const name = reader.string();
        const identity = reader.char();
        if (identity !== 'f' && name !== 'ddl_log') throw new Error(`pgoutput: replica identity of ${name} is not FULL`);
        const columns = Array.from({ length: reader.int16() }, () => {
          reader.byte();
          const column = reader.string();
          reader.int32();
          reader.int32();
          return column;
        });
        this.#relations.set(id, { schema, name, columns });
        return null;
      }
      case 'I': {
        const relation = this.#relations.get(reader.int32());
        reader.char();
        this.#change(relation, 'insert', null, readTuple(reader, relation));
        return null;
      }
      case 'U': {
        const relation = this.#relations.get(reader.int32());
        if (reader.char() !== 'O') throw new Error(`pgoutput: update of ${relation.name} without old row`);
        const old = readTuple(reader, relation);
        reader.char();
        const row = readTuple(reader, relation);
        for (const name of Object.keys(row)) if (row[name] === UNCHANGED) row[name] = old[name];
        this.#change(relation, 'update', old, row);
        return null;
      }
      case 'D': {
        const relation = this.#relations.get(reader.int32());
        if (reader.char() !== 'O') throw new Error(`pgoutput: delete from ${relation.name} without old row`);
        this.#change(relation, 'delete', readTuple(reader, relation), null);
        return null;
      }
      case 'T': {
        const n = reader.int32();
        reader.byte();
        for (let i = 0; i < n; i += 1) this.#change(this.#relations.get(reader.int32()), 'truncate', null, null);
        return null;
      }
      case 'Y':
      case 'O':
        return null;
      default:
        throw new Error(`pgoutput: message of unknown kind ${kind}`);
    }
  }

  #change(relation, op, old, row) {
    for (const r of [old, row]) {
      if (r && Object.values(r).includes(UNCHANGED)) throw new Error(`pgoutput: value missing in ${op} of ${relation.name}`);
    }
    this.#transaction.changes.push({ relation: relation.name, op, old, new: row });
  }
}
