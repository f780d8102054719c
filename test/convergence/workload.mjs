// Writers: transactions of every kind, from a stream of random numbers that
// each has of its own. What comes of them is not known here and does not
// matter: the oracle reads the WAL.

import { setTimeout as sleep } from 'node:timers/promises';

import { feedTables, SUBJECTS } from './world.mjs';
import { literal, Random } from './values.mjs';
import { Session, quote } from '../integration/lib/psql.mjs';

// What may become of a transaction among others.
// TRUNCATE and GRANT at the same time: the latter takes no lock on the table.
const EXPECTED = /tuple concurrently updated|moved to another partition due to concurrent update|duplicate key|deadlock detected|could not serialize|current transaction is aborted|no partition of relation|violates partition constraint|column "x\d" .*does not exist|lock timeout|prepared transaction with identifier|cannot affect row a second time|violates not-null|integer out of range|canceling statement|pending trigger events/;
const LOST = /psql ended|connection|server closed|terminating|starting up|shutting down|recovery/i;
const IDS = 40;

/** A session that comes back when the server does. */
export class Writer {
  committed = 0;
  failed = 0;
  lost = 0;

  #session = null;
  #stopped = false;
  #busy = null;

  constructor(name, report) {
    this.name = name;
    this.report = report;
  }

  /** Runs a transaction; false if it failed in a way that may be. */
  async exec(sql) {
    try {
      this.#session ??= await this.connect();
      await this.#session.exec(sql);
      this.committed += 1;
      return true;
    } catch (error) {
      if (LOST.test(error.message)) {
        this.lost += 1;
        await this.#session?.close().catch(() => {});
        this.#session = null;
        await sleep(100);
        return false;
      }
      const lines = error.message.split('\n').filter((line) => /^(psql:[^ ]* )?(ERROR|FATAL)/.test(line));
      // What follows the first one follows from it.
      if (!EXPECTED.test(lines[0])) throw error;
      this.failed += 1;
      await this.#session.exec('ROLLBACK').catch(() => {});
      return false;
    }
  }

  async rows(sql) {
    this.#session ??= await this.connect();
    return this.#session.rows(sql);
  }

  async connect() {
    return new Session();
  }

  run(stopped, paused, turn) {
    this.#busy = (async () => {
      while (!stopped()) {
        if (paused()) {
          this.idle = true;
          await sleep(20);
          continue;
        }
        this.idle = false;
        await turn();
      }
      await this.#session?.close().catch(() => {});
    })();
    return this.#busy;
  }
}

/** A session finishes what a lost one left prepared: nobody else would. */
export async function finishPrepared(session, prefix, outcome) {
  const gids = (await session.value(`SELECT gid FROM pg_prepared_xacts WHERE gid LIKE ${quote(`${prefix}%`)}`)).split('\n').filter(Boolean);
  for (const gid of gids) await session.exec(`${outcome} PREPARED ${quote(gid)}`);
}

export class RandomWriter extends Writer {
  #random;
  #n = 0;

  constructor(seed, index, world, report) {
    super(`writer ${index}`, report);
    this.#random = new Random(seed, this.name);
    this.tables = structuredClone(feedTables(world));
    this.index = index;
  }

  async connect() {
    const session = new Session();
    await finishPrepared(session, `cv_${this.index}_`, 'COMMIT');
    return session;
  }

  #value(column) {
    const r = this.#random;
    switch (column.name) {
      case 'owner': return r.chance(0.1) ? 'NULL' : quote(r.pick(SUBJECTS));
      case 'team': return r.chance(0.1) ? 'NULL' : String(r.int(4));
      case 'hidden': return r.chance(0.05) ? 'NULL' : r.pick(['true', 'false', 'false']);
      case 'level': return r.chance(0.1) ? 'NULL' : String(r.int(7));
      case 'id': return String(r.int(IDS));
      case 'region': return String(r.int(4));
      case 'tenant': return quote(r.pick(['x', 'y/z', 'ü "q"']));
      default: return r.chance(0.1) ? 'NULL' : literal(r, column.type);
    }
  }

  #row(table, id) {
    return `(${table.columns.map((column) => (column.name === 'id' && id !== undefined ? id : this.#value(column))).join(', ')})`;
  }

  #names(table) {
    return table.columns.map(({ name }) => name).join(', ');
  }

  #where(table) {
    const r = this.#random;
    return r.weighted([
      [8, () => `id = ${r.int(IDS)}`],
      [3, () => `id IN (${r.int(IDS)}, ${r.int(IDS)}, ${r.int(IDS)})`],
      [2, () => `id % 7 = ${r.int(7)}`],
      [2, () => `team = ${r.int(4)} AND id % 3 = ${r.int(3)}`],
      [1, () => `owner = ${quote(r.pick(SUBJECTS))}`],
    ])() + (table.key.includes('tenant') && r.chance(0.5) ? " AND tenant = 'x'" : '');
  }

  #set(table) {
    const r = this.#random;
    const free = table.columns.filter(({ name }) => !table.key.includes(name));
    const columns = r.chance(0.4) ? [r.pick(free.filter(({ name }) => ['owner', 'team', 'hidden', 'level'].includes(name)))] : r.sample(free, r.between(1, 3));
    return columns.map((column) => `${column.name} = ${this.#value(column)}`).join(', ');
  }

  #statement() {
    const r = this.#random;
    const table = r.pick(this.tables);
    const name = `cv.${table.name}`;
    const kind = r.weighted([
      [10, 'insert'], [14, 'update'], [5, 'delete'], [4, 'key'], [3, 'upsert'], [2, 'merge'], [2, 'members'], [1, 'bans'], [1, 'swap'],
      [1, 'nothing'], [1, 'copy'], [1, 'bulk'], [0.5, 'region'], [0.5, 'leaf'], [0.3, 'added'], [0.25, 'truncate'], [0.1, 'huge'],
    ]);
    switch (kind) {
      case 'insert': {
        const rows = Array.from({ length: r.weighted([[4, 1], [1, 5]]) }, () => this.#row(table));
        return `INSERT INTO ${name} (${this.#names(table)}) VALUES ${rows.join(', ')}${!table.deferrable && r.chance(0.5) ? ' ON CONFLICT DO NOTHING' : ''}`;
      }
      case 'update': return `UPDATE ${name} SET ${this.#set(table)} WHERE ${this.#where(table)}`;
      case 'delete': return `DELETE FROM ${name} WHERE ${this.#where(table)}`;
      case 'key': return `UPDATE ${name} SET id = ${r.int(IDS)}${r.chance(0.5) ? `, ${this.#set(table)}` : ''} WHERE id = ${r.int(IDS)}`;
      case 'upsert':
        if (table.deferrable) return `UPDATE ${name} SET ${this.#set(table)} WHERE ${this.#where(table)}`;
        return `INSERT INTO ${name} (${this.#names(table)}) VALUES ${this.#row(table)} ON CONFLICT (${table.key.join(', ')}) DO UPDATE SET ${this.#set(table)}`;
      case 'merge':
        return `MERGE INTO ${name} t USING (SELECT ${r.int(IDS)} AS n) s ON t.id = s.n WHEN MATCHED AND t.level < 2 THEN DELETE `
          + `WHEN MATCHED THEN UPDATE SET ${this.#set(table)} WHEN NOT MATCHED THEN INSERT (${this.#names(table)}) VALUES ${this.#row(table)}`;
      case 'members':
        return r.chance(0.5)
          ? `INSERT INTO cv.members VALUES (${r.int(4)}, ${quote(r.pick(SUBJECTS))}) ON CONFLICT DO NOTHING`
          : r.chance(0.7)
            ? `DELETE FROM cv.members WHERE team = ${r.int(4)} AND usr = ${quote(r.pick(SUBJECTS))}`
            : `UPDATE cv.members SET team = (team + 1) % 4 WHERE usr = ${quote(r.pick(SUBJECTS))}`;
      case 'bans':
        return r.chance(0.4) ? `INSERT INTO cv.bans VALUES (${quote(r.pick(SUBJECTS))}) ON CONFLICT DO NOTHING` : `DELETE FROM cv.bans WHERE usr = ${quote(r.pick(SUBJECTS))}`;
      case 'swap': {
        const [a, b] = [r.int(IDS), r.int(IDS)];
        if (!table.deferrable) return `UPDATE ${name} SET note = note || '!' WHERE id IN (${a}, ${b})`;
        return r.chance(0.7) ? `UPDATE ${name} SET id = CASE id WHEN ${a} THEN ${b} ELSE ${a} END WHERE id IN (${a}, ${b})` : `UPDATE ${name} SET id = id + 1 WHERE id < 30`;
      }
      case 'nothing': return `UPDATE ${name} SET note = note WHERE ${this.#where(table)}`;
      case 'copy': {
        const from = 1000 + 20 * r.int(10);
        const lines = Array.from({ length: r.between(2, 15) }, (_, i) => `${from + i}\t${r.pick(SUBJECTS)}\t${r.int(4)}\tcopied`);
        const others = table.key.filter((key) => key !== 'id');
        const values = others.map((key) => (key === 'region' ? r.int(3) : 'x'));
        const text = lines.map((line) => [line, ...values].join('\t')).join('\n');
        return `COPY ${name} (id, owner, team, note${others.map((key) => `, ${key}`).join('')}) FROM PROGRAM ${quote(`printf '${text}\n'`)}`;
      }
      case 'bulk':
        return r.pick([
          `UPDATE ${name} SET level = (level + 1) % 7`,
          `UPDATE ${name} SET team = CASE team WHEN 0 THEN 1 WHEN 1 THEN NULL WHEN 2 THEN 3 ELSE 0 END WHERE id % 2 = 0`,
          `DELETE FROM ${name} WHERE id >= 1000`,
          `UPDATE ${name} SET hidden = NOT hidden`,
        ]);
      case 'region':
        return table.leaves ? `UPDATE ${name} SET region = ${r.int(4)} WHERE ${this.#where(table)}` : `DELETE FROM ${name} WHERE id >= 1000`;
      case 'leaf': {
        if (!table.leaves) return `UPDATE ${name} SET note = 'leaf' WHERE ${this.#where(table)}`;
        return `INSERT INTO cv.${table.name}_3 (id, region, owner, team, note) VALUES (${r.int(IDS)}, 3, ${quote(r.pick(SUBJECTS))}, ${r.int(4)}, 'in a leaf')`;
      }
      case 'added': return `UPDATE ${name} SET x${r.int(2)} = ${r.pick(["'new'", 'NULL', "'7'"])} WHERE ${this.#where(table)}`;
      case 'truncate': return `TRUNCATE ${name}`;
      case 'huge': return `UPDATE ${name} SET note = repeat(md5(random()::text), 900)`;
      default: throw new Error(kind);
    }
  }

  transaction() {
    const r = this.#random;
    const level = r.weighted([[6, 'READ COMMITTED'], [2, 'REPEATABLE READ'], [1, 'SERIALIZABLE']]);
    const parts = [`BEGIN ISOLATION LEVEL ${level}`, "SET LOCAL lock_timeout = '20s'"];
    if (r.chance(0.3)) parts.push('SET LOCAL synchronous_commit = off');
    for (let n = r.weighted([[5, 1], [3, 2], [2, 4], [1, 8]]); n > 0; n -= 1) {
      if (r.chance(0.1)) {
        parts.push('SAVEPOINT s', this.#statement());
        parts.push(r.chance(0.6) ? 'ROLLBACK TO s' : 'RELEASE s');
      }
      parts.push(this.#statement());
    }
    this.#n += 1;
    const gid = quote(`cv_${this.index}_${this.#n}`);
    parts.push(...r.weighted([
      [16, ['COMMIT']], [2, ['ROLLBACK']],
      [1, [`PREPARE TRANSACTION ${gid}`, 'SELECT pg_sleep(0.01)', `COMMIT PREPARED ${gid}`]],
      [0.5, [`PREPARE TRANSACTION ${gid}`, `ROLLBACK PREPARED ${gid}`]],
    ]));
    return `${parts.join(';\n')};`;
  }

  async turn(pause) {
    await this.exec(this.transaction());
    await sleep(this.#random.int(pause));
  }
}
