// The oracle: replays the committed transactions in the order of their commit
// records, and knows for each view (identity and channel) what it showed after
// each of them.
//
// A view has its rows now, and a delta for each transaction that changed them:
// by key the old and the new row. Where its columns changed, or whether it may
// be read at all, the delta has a new shape.

import { Decoder } from './pgoutput.mjs';
import { AWAY } from './processes.mjs';
import { applyEvent, parametersOf, passes, policiesFor, readable } from './world.mjs';
import { columnsOf, evaluate, expressionSql, mayJoin } from './policies.mjs';
import { conditionSql, namedColumns, selects } from './selections.mjs';
import { toJson } from './values.mjs';
import { Session } from '../integration/lib/psql.mjs';

const POLL_MS = 200;
const RECENT = 400; // transactions that are kept for reports

/** One row version of a table: text by column. JSON is made once per set of columns. */
class Row {
  #json = new Map();

  constructor(values) {
    this.values = values;
  }

  /** { text, columns: { name: JSON } } of these columns. */
  json(table, names) {
    const id = names.join();
    let result = this.#json.get(id);
    if (!result) {
      const types = new Map(table.columns.map(({ name, type }) => [name, type]));
      const columns = {};
      for (const name of [...names].sort()) columns[name] = toJson(types.get(name), this.values[name]);
      result = { columns, text: `{${Object.entries(columns).map(([name, json]) => `${JSON.stringify(name)}:${json}`).join(',')}}` };
      this.#json.set(id, result);
    }
    return result;
  }
}

/** Entities with their columns, as text that can be compared. */
export const shapeText = (entities) => entities.map(([entity, columns]) => `${entity}(${[...columns].sort().join()})`).sort().join(' ');

export class View {
  rows = new Map(); // by entity and key: { text, columns }
  shape = null; // text: columns of each entity; null: may not be read, or does not exist
  shapeAtStart = null;
  deltas = []; // { lsn, xid, changes: Map(key → [old, new]), shape? }
  history = new Map(); // by key: [{ lsn, text or null }]
  #forgotten = 0;

  constructor(identity, channel) {
    this.identity = identity;
    this.channel = channel; // { name, template, values, selection }
    this.id = `${identity.name} ${channel.name}`;
  }

  /** The number of deltas up to and including this LSN. */
  indexAfter(lsn) {
    let low = 0;
    let high = this.deltas.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.deltas[middle].lsn <= lsn) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Deltas after one LSN up to and including another. */
  between(after, upTo) {
    return this.deltas.slice(this.indexAfter(after), this.indexAfter(upTo));
  }

  shapeAt(lsn) {
    for (let i = this.indexAfter(lsn) - 1; i >= 0; i -= 1) if (this.deltas[i].shape !== undefined) return this.deltas[i].shape;
    return this.shapeAtStart;
  }

  rowsAt(lsn) {
    const first = this.indexAfter(lsn);
    const rows = new Map(this.rows);
    for (let i = this.deltas.length - 1; i >= first; i -= 1) {
      for (const [key, [old]] of this.deltas[i].changes) {
        if (old) rows.set(key, old);
        else rows.delete(key);
      }
    }
    return rows;
  }

  push(delta) {
    this.deltas.push(delta);
    for (const [key, [old, row]] of delta.changes) {
      if (!this.history.has(key)) this.history.set(key, [{ lsn: this.#forgotten, text: old?.text ?? null }]);
      this.history.get(key).push({ lsn: delta.lsn, text: row?.text ?? null });
    }
  }

  /** Did the key have that row at some state not before this LSN? */
  everShowed(key, text, since) {
    const versions = this.history.get(key);
    if (!versions) return this.rows.get(key)?.text === text;
    for (let i = versions.length - 1; i >= 0; i -= 1) {
      if (versions[i].text === text) return true;
      if (versions[i].lsn <= since) return false;
    }
    return false;
  }

  wasDenied(since, upTo) {
    return this.shapeAt(since) === null || this.between(since, upTo).some(({ shape }) => shape === null);
  }

  forget(before) {
    const n = this.indexAfter(before);
    for (let i = 0; i < n; i += 1) if (this.deltas[i].shape !== undefined) this.shapeAtStart = this.deltas[i].shape;
    this.deltas.splice(0, n);
    this.#forgotten = before;
    this.history.clear();
    for (const delta of this.deltas.splice(0)) this.push(delta);
  }
}

export class Model {
  views = new Map();
  known = 0; // every commit up to this LSN has been replayed
  knownAt = 0; // everything that had been committed at this time
  visible = 0; // every commit up to this LSN is seen by whoever looks from now on
  transactions = 0;
  changes = 0;
  events = 0;
  recent = []; // { lsn, xid, time, what }
  ddl = new Set(); // numbers of events seen

  #relations = new Map(); // by name: Map(key → Row[])
  #decoder = new Decoder();
  #session = null;
  #last = 0;
  #hidden = []; // { lsn, xid } of commits that are in the WAL, but not seen yet: they may wait for a standby
  #read = null; // LSN up to which everything was read, if the slot does not know yet
  #polling = null;

  constructor(world) {
    this.world = world;
  }

  /** Each poll would be several lines in the server's log. */
  static #open() {
    const session = new Session();
    session.exec('SET log_min_messages = fatal').catch(() => {});
    return session;
  }

  /** The slot exists before the first row does. */
  async start() {
    this.#session = Model.#open();
    await this.#session.exec(`CREATE PUBLICATION cv_model FOR TABLES IN SCHEMA cv;
      DO $$ BEGIN PERFORM pg_create_logical_replication_slot('cv_model', 'pgoutput'); END $$`);
    const flushed = Number(await this.#session.value("SELECT pg_current_wal_flush_lsn() - '0/0'"));
    this.known = flushed;
    this.visible = flushed;
    this.#last = flushed;
  }

  view(identity, channel) {
    const id = `${identity.name} ${channel.name}`;
    if (!this.views.has(id)) {
      const view = new View(identity, channel);
      view.shape = this.#shape(view);
      view.shapeAtStart = view.shape;
      this.views.set(id, view);
    }
    return this.views.get(id);
  }

  /** Takes in what has been committed until now. One at a time. */
  poll() {
    this.#polling ??= this.#poll().finally(() => { this.#polling = null; });
    return this.#polling;
  }

  async #poll() {
    const now = Date.now();
    const flushed = Number(await this.#session.value("SELECT pg_current_wal_flush_lsn() - '0/0'"));
    // What was taken is given up one poll later: a session may be cut off between the slot's step and our reading.
    if (this.#read !== null) {
      await this.#session.value(`SELECT pg_replication_slot_advance('cv_model', '0/0'::pg_lsn + ${this.#read}) FROM pg_replication_slots
        WHERE slot_name = 'cv_model' AND confirmed_flush_lsn < '0/0'::pg_lsn + ${this.#read}`);
      this.#read = null;
    }
    const text = await this.#session.value(`SELECT encode(data, 'hex') FROM pg_logical_slot_peek_binary_changes('cv_model', NULL, NULL,
      'proto_version', '1', 'publication_names', 'cv_model')`);
    for (const line of text.split('\n')) {
      if (line === '') continue;
      const transaction = this.#decoder.take(Buffer.from(line, 'hex'));
      // After a crash the slot gives some of them again.
      if (transaction && transaction.lsn > this.#last) {
        this.#replay(transaction);
        this.#hidden.push({ lsn: transaction.lsn, xid: transaction.xid });
      }
    }
    this.#read = flushed;
    // A commit record that begins there is not flushed.
    this.known = Math.max(flushed - 1, this.#last);
    this.knownAt = now;
    if (this.#hidden.length > 0) {
      const [, xmax, ...running] = (await this.#session.value("SELECT replace(pg_current_snapshot()::text, ',', ':')")).split(':').filter((xid) => xid !== '').map(Number);
      this.#hidden = this.#hidden.filter(({ xid }) => xid >= xmax || running.includes(xid));
    }
    this.visible = this.#hidden.length > 0 ? this.#hidden[0].lsn - 1 : this.known;
  }

  /** Polls until it is stopped; a server that is away is waited for. */
  async follow(stopped) {
    while (!stopped()) {
      try {
        await this.poll();
      } catch (error) {
        if (!AWAY.test(error.message) && !/is active|No space left on device/.test(error.message)) throw error;
        await this.#session.close().catch(() => {});
        this.#session = Model.#open();
      }
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
  }

  async close() {
    await this.#polling?.catch(() => {});
    await this.#session?.close();
  }

  /** The rows of a table as objects, for expressions. */
  rows(name) {
    const result = [];
    for (const relation of this.#leaves(name)) for (const rows of relation.values()) for (const row of rows) result.push(row.values);
    return result;
  }

  /** The rows of a table as JSON texts. */
  rowTexts(name) {
    const table = this.world.tables[name];
    const names = table.columns.map((column) => column.name);
    return this.#leaves(name).flatMap((relation) => [...relation.values()].flatMap((rows) => rows.map((row) => row.json(table, names).text)));
  }

  #relation(name) {
    if (!this.#relations.has(name)) this.#relations.set(name, new Map());
    return this.#relations.get(name);
  }

  #leaves(name) {
    const { leaves } = this.world.tables[name];
    if (!leaves) return [this.#relation(name)];
    return Object.keys(leaves).filter((leaf) => leaves[leaf]).map((leaf) => this.#relation(leaf));
  }

  /** The table that a relation is, or is a leaf of, attached or not. */
  #tableOf(relation) {
    return Object.values(this.world.tables).find(({ name, leaves }) => name === relation || (leaves && relation in leaves));
  }

  #key(table, values) {
    return `{${[...table.key].sort().map((name) => `${JSON.stringify(name)}:${toJson(table.columns.find((c) => c.name === name).type, values[name])}`).join(',')}}`;
  }

  #find(table, key) {
    let found = null;
    for (const relation of this.#leaves(table.name)) {
      const rows = relation.get(key) ?? [];
      if (rows.length > 1 || (rows.length === 1 && found)) throw new Error(`oracle: ${table.name} has key ${key} twice`);
      found ??= rows[0] ?? null;
    }
    return found;
  }

  #remove(table, relation, values) {
    const key = this.#key(table, values);
    const rows = relation.get(key) ?? [];
    const same = (row) => table.columns.every(({ name }) => (row.values[name] ?? null) === (values[name] ?? null));
    const i = rows.findIndex(same);
    if (i < 0) throw new Error(`oracle: ${table.name} has no row ${key} as it was before: ${JSON.stringify(values)}, but ${JSON.stringify(rows.map((row) => row.values))}`);
    rows.splice(i, 1);
    if (rows.length === 0) relation.delete(key);
    return key;
  }

  #add(table, relation, values) {
    const key = this.#key(table, values);
    if (!relation.has(key)) relation.set(key, []);
    relation.get(key).push(new Row(values));
    return key;
  }

  #replay(transaction) {
    const touched = new Map(); // by table: keys, or null for all
    const events = [];
    const touch = (name, key) => {
      if (touched.get(name) === null) return;
      if (key === null) touched.set(name, null);
      else if (!touched.has(name)) touched.set(name, new Set([key]));
      else touched.get(name).add(key);
    };
    for (const change of transaction.changes) {
      if (change.relation === 'ddl_log') {
        events.push(this.#event(JSON.parse(change.new.event), Number(change.new.id), touch));
        continue;
      }
      const table = this.#tableOf(change.relation);
      if (!table) throw new Error(`oracle: change of unknown table ${change.relation}`);
      const relation = this.#relation(change.relation);
      this.changes += 1;
      if (change.op === 'truncate') {
        relation.clear();
        touch(table.name, null);
      }
      if (change.old) touch(table.name, this.#remove(table, relation, change.old));
      if (change.new) touch(table.name, this.#add(table, relation, change.new));
    }
    this.transactions += 1;
    this.#last = transaction.lsn;
    this.recent.push({ ...transaction, changes: undefined, what: this.#describe(transaction, events) });
    if (this.recent.length > RECENT) this.recent.shift();
    for (const view of this.views.values()) this.#refresh(view, transaction, touched, events.length > 0);
  }

  #event(event, id, touch) {
    this.events += 1;
    this.ddl.add(id);
    applyEvent(this.world, event);
    const table = this.world.tables[event.table];
    if (event.op === 'add_column' || event.op === 'drop_column') {
      const name = event.column?.name ?? event.name;
      const leaves = table.leaves ? Object.keys(table.leaves).filter((leaf) => table.leaves[leaf]) : [table.name];
      for (const leaf of leaves) {
        const relation = this.#relation(leaf);
        for (const [key, rows] of relation) {
          relation.set(key, rows.map(({ values }) => {
            const changed = { ...values };
            if (event.op === 'drop_column') delete changed[name];
            else changed[name] ??= event.column.fallback?.text ?? null;
            return new Row(changed);
          }));
        }
      }
    }
    if (event.op === 'leaf') touch(event.table, null);
    return event;
  }

  #sources(view) {
    return this.world.channels[view.channel.template]?.sources ?? null;
  }

  /** Does it depend on membership who may subscribe? */
  #joins(view) {
    return this.world.channels[view.channel.template]?.join;
  }

  #columns(view, source) {
    const table = this.world.tables[source.table];
    const may = readable(this.world, table, view.identity.role);
    const { template, selection } = view.channel;
    const needed = [...table.key, ...parametersOf(template), ...(source.filter ? columnsOf(source.filter) : []), ...(selection ? namedColumns(selection) : [])];
    if (!may || !needed.every((name) => may.has(name))) return null;
    const selected = selection?.select && [...table.key, ...selection.select];
    return table.columns.map(({ name }) => name)
      .filter((name) => may.has(name) && (!source.columns || source.columns.includes(name)) && (!selected || selected.includes(name)));
  }

  #shape(view) {
    const sources = this.#sources(view);
    if (!sources || (this.#joins(view) && !mayJoin(view.channel.values[0], view.identity, this))) return null;
    const columns = sources.map((source) => [source.entity, this.#columns(view, source)]);
    return columns.some(([, names]) => names === null) ? null : shapeText(columns);
  }

  /** What the view shows of a row: { text, columns }, or null. */
  #show(view, source, table, columns, policies, row) {
    if (!row) return null;
    const { values } = row;
    const { template, values: wanted, selection } = view.channel;
    const belongs = parametersOf(template).every((name, i) => values[name] !== null && (wanted[i] === '*' || values[name] === wanted[i].text));
    if (!belongs) return null;
    if (source.filter && evaluate(source.filter, values, view.identity, this) !== true) return null;
    if (selection && !selects(selection, values)) return null;
    return passes(policies, values, view.identity, this) ? row.json(table, columns) : null;
  }

  #refresh(view, { lsn, xid }, touched, events) {
    const sources = this.#sources(view);
    const shape = events || (touched.has('members') && this.#joins(view)) ? this.#shape(view) : view.shape;
    const changes = new Map();
    const note = (id, row) => {
      const old = view.rows.get(id) ?? null;
      if (old?.text === row?.text) return;
      changes.set(id, [old, row]);
      if (row) view.rows.set(id, row);
      else view.rows.delete(id);
    };
    if (shape === null) {
      for (const id of [...view.rows.keys()]) note(id, null);
    } else {
      const stay = new Set();
      for (const source of sources) {
        const table = this.world.tables[source.table];
        const policies = policiesFor(this.world, table, view.identity.role);
        const reads = policies && [...policies.reads].some((name) => touched.has(name));
        const keys = touched.get(source.table);
        const whole = events || reads || keys === null || shape !== view.shape;
        if (!whole && !keys) continue;
        const columns = this.#columns(view, source);
        if (!whole) {
          for (const key of keys) note(`${source.entity} ${key}`, this.#show(view, source, table, columns, policies, this.#find(table, key)));
          continue;
        }
        for (const relation of this.#leaves(table.name)) {
          for (const [key, [row]] of relation) {
            const id = `${source.entity} ${key}`;
            stay.add(id);
            note(id, this.#show(view, source, table, columns, policies, row));
          }
        }
        for (const id of [...view.rows.keys()]) if (id.startsWith(`${source.entity} `) && !stay.has(id)) note(id, null);
      }
      for (const id of [...view.rows.keys()]) if (!sources.some(({ entity }) => id.startsWith(`${entity} `))) note(id, null);
    }
    if (changes.size === 0 && shape === view.shape) return;
    const delta = { lsn, xid, changes };
    if (shape !== view.shape) delta.shape = shape;
    view.shape = shape;
    view.push(delta);
  }

  #describe({ changes }, events) {
    const lines = changes.filter(({ relation }) => relation !== 'ddl_log').slice(0, 12).map(({ relation, op, old, new: row }) => {
      const short = (r) => JSON.stringify(r, (k, v) => (typeof v === 'string' && v.length > 60 ? `${v.slice(0, 20)}…(${v.length})` : v));
      return `${op} ${relation}${old ? ` ${short(old)}` : ''}${row ? ` → ${short(row)}` : ''}`;
    });
    if (changes.length > 12) lines.push(`… ${changes.length} changes`);
    return [...events.map((event) => `ddl ${JSON.stringify(event)}`), ...lines];
  }

  /** As SQL, for reports. */
  describePolicies(view) {
    const { selection } = view.channel;
    const selected = selection?.conditions.length > 0 ? [`selected: ${selection.conditions.map(conditionSql).join(' AND ')}`] : [];
    return selected.concat(this.#joins(view) ? ['join_check'] : [], (this.#sources(view) ?? []).map(({ table: name, filter }) => {
      const policies = policiesFor(this.world, this.world.tables[name], view.identity.role);
      const sql = (list) => list.map((e) => expressionSql(e, name)).join(' | ');
      return `${name}${filter ? ` filter ${expressionSql(filter, name)}` : ''}: ${policies ? `any of ${sql(policies.permissive) || 'nothing'}; all of ${sql(policies.restrictive) || 'nothing'}` : 'no row security'}`;
    }));
  }

  /** Transactions around an LSN, for reports. */
  around(lsn, n = 3) {
    let i = this.recent.findIndex((t) => t.lsn >= lsn);
    if (i < 0) i = this.recent.length;
    return this.recent.slice(Math.max(i - n, 0), i + n)
      .map((t) => `${t.lsn === lsn ? '>>' : '  '} LSN ${t.lsn} xid ${t.xid}\n${t.what.map((line) => `        ${line}`).join('\n')}`).join('\n');
  }
}
