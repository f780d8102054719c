// Is everything back as it was before the fault: processes, descriptors, memory,
// WAL, files? And what does the log say?

import { readdirSync, readFileSync, readlinkSync, statSync, openSync, readSync, closeSync } from 'node:fs';
import { join } from 'node:path';

import { postmasterPid } from '../convergence/processes.mjs';
import { until } from '../integration/lib/client.mjs';
import { Session } from '../integration/lib/psql.mjs';

const PATIENCE_MS = 60000;
const MORE_DESCRIPTORS = 40; // than at the first round, beside those of connections
const MORE_MEMORY_KB = 96 * 1024;
const MORE_SEGMENTS = 8; // of dynamic shared memory
const TRANSIENT = 10; // connections of requests
const SLOT_LAG_MS = 6 * 60000; // history_age is 5 min, which begin anew with the feed worker

/**
 * Descriptors, without the files of tables: the server keeps up to
 * max_files_per_process of those open, in every process that reads tables.
 */
function descriptors(pid) {
  return readdirSync(`/proc/${pid}/fd`).filter((fd) => {
    try {
      return !/\/(base|global|pg_tblspc)\/[^p]/.test(readlinkSync(`/proc/${pid}/fd/${fd}`));
    } catch {
      return false; // closed meanwhile
    }
  }).length;
}

/** What a process is, or null if it has ended. */
function describe(pid) {
  try {
    const status = readFileSync(`/proc/${pid}/status`, 'utf8');
    const value = (name) => status.match(new RegExp(`^${name}:\\s+(\\S+)`, 'm'))?.[1];
    return {
      pid, ppid: Number(value('PPid')), state: value('State'), rss: Number(value('RssAnon') ?? 0),
      descriptors: descriptors(pid),
      command: readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ').trim(),
    };
  } catch (error) {
    if (['ENOENT', 'ESRCH'].includes(error.code)) return null;
    throw error;
  }
}

/** Everything that runs in the data directory: the server with all its children, and gateways. */
export function processes() {
  const result = [];
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    let cwd;
    try {
      cwd = readlinkSync(`/proc/${name}/cwd`);
    } catch {
      continue;
    }
    const process = cwd === global.process.env.CLUSTER_DATA && describe(Number(name));
    if (process && !process.state.startsWith('Z')) result.push(process);
  }
  return result;
}

const KINDS = [
  [/pg_changefeed_gateway/, 'gateway'], [/changefeed launcher/, 'launcher'], [/changefeed decoder/, 'decoder'],
  [/changefeed feed worker/, 'feed worker'], [/changefeed query worker/, 'query worker'], [/-D /, 'postmaster'],
];
const kindOf = ({ command }) => KINDS.find(([pattern]) => pattern.test(command))?.[1] ?? 'other';

const files = (directory, pattern) => {
  try {
    return readdirSync(directory).filter((name) => pattern.test(name));
  } catch (error) {
    if (error.code === 'ENOENT') return [];
    throw error;
  }
};

/** The server's log from some place on. */
export class Log {
  #path = join(process.env.CLUSTER_DATA, 'log', 'server.log');

  get size() {
    return statSync(this.#path).size;
  }

  since(offset) {
    const length = this.size - offset;
    const buffer = Buffer.alloc(length);
    const fd = openSync(this.#path);
    try {
      let read = 0;
      while (read < length) {
        const n = readSync(fd, buffer, read, length - read, offset + read);
        if (n === 0) break;
        read += n;
      }
    } finally {
      closeSync(fd);
    }
    return buffer.toString('utf8');
  }
}

/** When the server last said that it accepts connections; null if it has not. */
export function acceptsSince(text) {
  const line = text.match(/^.*database system is ready to accept connections$/gm)?.at(-1);
  return line ? Date.parse(`${line.slice(0, 23).replace(' ', 'T')}Z`) : null;
}

// What nobody may ever find, unless the campaign has done it.
const ALARMING = /PANIC|TRAP:|terminated by signal|stack smashing|double free|malloc\(\)|corrupted|AddressSanitizer|Segmentation/;

/** Lines of the log that the faults do not explain. */
export function alarms(text, expected) {
  // Behind a recovery that had no room: the server guesses why it was not over.
  const guess = /HINT:  This probably means that some data is corrupted/;
  return text.split('\n').filter((line) => ALARMING.test(line) && !guess.test(line) && !expected.some((pattern) => pattern.test(line)));
}

export class Health {
  first = null; // of the first round
  now = null;

  #data = process.env.CLUSTER_DATA;
  #samples = []; // { at, lsn }: where the WAL ended

  /** Waits until everything is there, then measures. Throws what is wrong. `clients`: connections that there may be. */
  async check(clients) {
    let missing = '';
    await until(async () => {
      missing = await this.#missing();
      return missing === '';
    }, () => `every process is back: ${missing}`, PATIENCE_MS);
    const now = await this.#measure();
    this.now = now;
    this.first ??= now;
    const { first } = this;
    const problems = [];
    for (const [kind, { descriptors, rss }] of Object.entries(now.kinds)) {
      const before = first.kinds[kind] ?? { descriptors: 0, rss: 0 };
      if (descriptors > before.descriptors + MORE_DESCRIPTORS) problems.push(`${kind} has ${descriptors} descriptors, ${before.descriptors} at first`);
      if (rss > before.rss + MORE_MEMORY_KB) problems.push(`${kind} has ${rss} kB of memory of its own, ${before.rss} at first`);
    }
    if (now.connections > clients + TRANSIENT) problems.push(`the feed knows ${now.connections} connections, there are ${clients}`);
    if (now.segments > first.segments + MORE_SEGMENTS) problems.push(`${now.segments} segments of dynamic shared memory, ${first.segments} at first`);
    this.#samples.push({ at: Date.now(), lsn: now.lsn, worker: now.worker });
    const old = this.#samples.findLast(({ at }) => at < Date.now() - SLOT_LAG_MS);
    if (now.lsn - now.restart > now.most) problems.push(`the slot holds ${now.lsn - now.restart} bytes of WAL, more than changefeed.history_wal_size`);
    if (old && old.worker === now.worker && (now.restart < old.lsn || now.confirmed < old.lsn)) {
      problems.push(`the slot is at ${now.restart} and ${now.confirmed}, the WAL was at ${old.lsn} ${(Date.now() - old.at) / 1000} s ago`);
    }
    if (problems.length > 0) throw new Error(`leak: ${problems.join('; ')}`);
    return now;
  }

  /** What is not there, or should not be. */
  async #missing() {
    const db = new Session();
    try {
      const [row] = await db.rows(`SELECT state, decoder_pid, feed_worker_pid, gateway_pid, slot_name,
          (SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'pg_changefeed%') AS slots,
          (SELECT bool_or(active) FROM pg_replication_slots s WHERE s.slot_name = f.slot_name) AS active,
          (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'changefeed query worker') AS workers,
          (SELECT setting FROM pg_settings WHERE name = 'changefeed.query_workers') AS wanted
        FROM changefeed.stat_feed f`);
      const value = (x) => Number(String(x).replace('\0', ''));
      if (row.state !== 'running') return `the feed is ${row.state}`;
      if (value(row.slots) !== 1 || row.active !== true) return `${value(row.slots)} slots, active ${row.active}`;
      if (value(row.workers) < value(row.wanted)) return `${value(row.workers)} query workers`;
      const postmaster = await postmasterPid();
      const all = processes();
      const ours = new Set([postmaster]);
      for (let n = 0; n < ours.size;) {
        n = ours.size;
        for (const { pid, ppid } of all) if (ours.has(ppid)) ours.add(pid);
      }
      const orphans = all.filter(({ pid }) => !ours.has(pid));
      if (orphans.length > 0) return `orphans: ${orphans.map(({ pid, command }) => `${pid} ${command}`)}`;
      const stopped = all.filter(({ state }) => state.startsWith('T'));
      if (stopped.length > 0) return `stopped: ${stopped.map(({ pid, command }) => `${pid} ${command}`)}`;
      for (const [kind, n] of [['gateway', 1], ['launcher', 1], ['decoder', 1], ['feed worker', 1]]) {
        const there = all.filter((process) => kindOf(process) === kind).length;
        if (there !== n) return `${there} processes are a ${kind}`;
      }
      const spilled = files(join(this.#data, 'pg_replslot'), /^pg_changefeed/).flatMap((slot) => files(join(this.#data, 'pg_replslot', slot), /spill$/));
      if (spilled.length > 0) return `files in the slot's directory: ${spilled.slice(0, 5)}`;
      const pages = files(join(this.#data, 'base', 'pgsql_tmp'), /./);
      if (pages.length > 0) return `temporary files: ${pages.slice(0, 5)}`;
      return '';
    } catch (error) {
      if (/57P03|55000|no change feed|psql ended|connection/i.test(error.message)) return error.message;
      throw error;
    } finally {
      await db.close();
    }
  }

  async #measure() {
    const db = new Session();
    try {
      const number = async (sql) => Number(await db.value(sql));
      const connections = await number('SELECT connections FROM changefeed.stat_feed');
      const kinds = {};
      for (const process of processes()) {
        const kind = kindOf(process);
        kinds[kind] ??= { n: 0, descriptors: 0, rss: 0 };
        kinds[kind].n += 1;
        kinds[kind].descriptors = Math.max(kinds[kind].descriptors, process.descriptors - (kind === 'gateway' ? connections : 0));
        kinds[kind].rss = Math.max(kinds[kind].rss, process.rss);
      }
      return {
        kinds, connections,
        segments: files(join(this.#data, 'pg_dynshmem'), /./).length,
        worker: await number('SELECT feed_worker_pid FROM changefeed.stat_feed'),
        most: await number("SELECT pg_size_bytes(current_setting('changefeed.history_wal_size'))"),
        lsn: await number("SELECT pg_current_wal_lsn() - '0/0'"),
        restart: await number("SELECT restart_lsn - '0/0' FROM pg_replication_slots WHERE slot_name LIKE 'pg_changefeed%'"),
        confirmed: await number("SELECT confirmed_flush_lsn - '0/0' FROM pg_replication_slots WHERE slot_name LIKE 'pg_changefeed%'"),
      };
    } finally {
      await db.close();
    }
  }
}
