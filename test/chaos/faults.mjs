// The faults: what is done, and what the server's log has to say about it.
//
// Each gives the time from which recovery counts: that of a death, or that at
// which a condition ended. `away`: the server does not accept connections
// meanwhile, so recovery is counted from when it does again. `expected`: alarming
// lines of the log that are the fault itself. `silent`: why the log has no line.

import { execFile } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';

import { ask, cluster, pidOf, postmasterPid, send, startAgain } from '../convergence/processes.mjs';
import { Client, until } from '../integration/lib/client.mjs';
import { setClock } from '../integration/lib/clock.mjs';
import { reload, Session } from '../integration/lib/psql.mjs';

const run = promisify(execFile);
const quietly = (promise) => promise.catch(() => null);

const NO_WORKER = /all background worker slots are in use|could not start \d+ of \d+ query workers/;
const GIVEN_UP = /drops its replication slot and begins anew/;
const SET_BACK = /begins anew because the clock was set back/;
const OUTAGE = 'an interruption that leaves no trace on the server but that of ordinary disconnections';
const STOPPED = 'a stopped process cannot say anything, and does not know afterwards';

/** A process that is there: it may be about to be started. */
const processOf = (what) => until(() => pidOf(what), `a ${what}`, 60000);

async function kill(what, signal = 'SIGKILL') {
  await until(async () => send(await processOf(what), signal), `${what} killed`, 60000);
  return Date.now();
}

/** The same statement until the server takes it. */
const insist = (sql) => until(async () => await quietly(ask(sql)) !== null, sql, 60000);

async function terminate(what) {
  await until(async () => await ask(`SELECT pg_terminate_backend(${await processOf(what)})`) === 't', `${what} terminated`, 60000);
  return Date.now();
}

async function stop(pid, ms) {
  if (!send(pid, 'SIGSTOP')) return Date.now();
  try {
    await sleep(ms);
  } finally {
    send(pid, 'SIGCONT');
  }
  return Date.now();
}

/** Runs with other settings for some time. */
async function during(settings, action) {
  const change = async (values) => until(async () => {
    const db = new Session();
    try {
      await reload(db, values);
      return true;
    } catch (error) {
      if (!/psql ended|connection|starting up|shutting down|terminating|recovery/i.test(error.message)) throw error;
      return false;
    } finally {
      await db.close();
    }
  }, 'settings are changed', 60000);
  await change(settings);
  try {
    await action();
  } finally {
    await change(Object.fromEntries(Object.keys(settings).map((name) => [name, null])));
  }
  return Date.now();
}

/** A soft limit of a process, as its own user; the hard one stays, so that it can be taken back. */
async function limit(pid, name, value) {
  const { uid, gid } = statSync(`/proc/${pid}`);
  const args = ['--pid', String(pid), `--${name}=${value}:`];
  if (process.getuid() === 0 && uid !== 0) await run('setpriv', [`--reuid=${uid}`, `--regid=${gid}`, '--clear-groups', 'prlimit', ...args]);
  else await run('prlimit', args);
}

async function withLimit(what, name, valueOf, ms) {
  let pid;
  await until(async () => {
    pid = await processOf(what);
    try {
      await limit(pid, name, valueOf({
        descriptors: readdirSync(`/proc/${pid}/fd`).length,
        memory: Number(readFileSync(`/proc/${pid}/statm`, 'utf8').split(' ')[0]) * 4096,
      }));
      return true;
    } catch (error) {
      if (existsSync(`/proc/${pid}`)) throw error;
      return false; // it died meanwhile
    }
  }, `a limit of the ${what}`, 60000);
  try {
    await sleep(ms);
  } finally {
    const hard = readFileSync('/proc/self/limits', 'utf8');
    // Whoever has died meanwhile has no limit any more.
    await quietly(limit(pid, name, name === 'nofile' ? hard.match(/Max open files\s+(\d+)/)[1] : 'unlimited'));
  }
  return Date.now();
}

/** Sessions that hold something until the action is over. */
async function withSessions(n, sql, action) {
  const sessions = Array.from({ length: n }, () => new Session());
  for (const session of sessions) session.exec(sql).catch(() => {});
  try {
    await action();
  } finally {
    await quietly(ask(`SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE '%chaos holds%' AND pid <> pg_backend_pid()`));
    await Promise.all(sessions.map((session) => quietly(session.close())));
  }
  return Date.now();
}

/** Connections with subscriptions that take as much memory as a name may have. */
async function eat(token, connections, subscriptions) {
  const eaters = [];
  for (let c = 0; c < connections; c += 1) {
    const client = await quietly(Client.connect({ token, ms: 20000 }));
    if (!client) break; // there is no memory for it
    const { socket } = client;
    socket.removeAllListeners('message');
    eaters.push(socket);
    for (let i = 0; i < subscriptions; i += 1) {
      const values = Array.from({ length: 490 }, (_, n) => 1000000 + (c * subscriptions + i) * 490 + n);
      socket.send(JSON.stringify({ type: 'subscribe', id: `${i}`, channel: `chaos_beat?n=in.(${values})`, snapshot: false }));
    }
  }
  return eaters;
}

/** It may be killed by another fault before it has stopped; then it is started. */
async function restart(mode) {
  const before = await quietly(postmasterPid());
  await cluster(['restart', '--mode', mode]).catch((error) => {
    if (existsSync(`/proc/${before}`)) throw error; // it does not stop
    return startAgain();
  });
}

/** A file system that was made for it becomes full. */
async function full(mount, room, action) {
  const size = (bytes) => run('mount', ['-o', `remount,size=${bytes}`, mount]);
  // What is written meanwhile may want more than that, and then it is refused.
  await until(async () => {
    const { stdout } = await run('df', ['--output=used', '-B1', mount]);
    const used = Number(stdout.split('\n')[1]);
    return size(Math.ceil((used + room) / 4096) * 4096).then(() => true, () => false);
  }, 'a small file system');
  try {
    await action();
  } finally {
    await size('2g');
  }
  return Date.now();
}

const killed = (what) => [new RegExp(`${what}.*was terminated by signal 9`), /terminated by signal 9: Killed/];
const mounted = () => (process.env.CHAOS_WAL_MOUNT ? null : 'file systems of its own can be mounted by root only');

/** The server's time of day, for some time. */
async function withClock(seconds, ms) {
  setClock(process.env.TEST_CLOCK, seconds);
  try {
    await sleep(ms);
  } finally {
    setClock(process.env.TEST_CLOCK, 0);
  }
  return Date.now();
}

/** Some WAL of no table that anybody watches. */
const writeWal = (session, megabytes) => session.exec(`DO $$ BEGIN FOR i IN 1..${megabytes} LOOP
  PERFORM pg_logical_emit_message(true, 'chaos', repeat('x', 1000000)); COMMIT; END LOOP; END $$`);

/** Before anybody can take it again; `then`: what else is done in that moment. */
async function dropSlot(then = '') {
  await until(() => ask(`DO $$ DECLARE slot name; BEGIN
      SELECT slot_name INTO STRICT slot FROM pg_replication_slots WHERE slot_name LIKE 'pg_changefeed%' LIMIT 1;
      LOOP
        PERFORM pg_terminate_backend(decoder_pid) FROM changefeed.stat_feed;
        BEGIN
          PERFORM pg_drop_replication_slot(slot);
          EXIT;
        EXCEPTION WHEN object_in_use THEN
          PERFORM pg_sleep(0.005);
        END;
      END LOOP;
      ${then}
    END $$`).then((answer) => answer !== null, (error) => {
    if (!/query returned no rows|does not exist/.test(error.message)) throw error;
    return false;
  }), 'the slot is dropped', 60000);
  return Date.now();
}

/** Kinds of faults, by name. `apply({ random, proxy })` resolves to the time of which recovery is counted. */
export const FAULTS = {
  'gateway killed': { weight: 3, says: /changefeed gateway with PID \d+ has ended/, apply: () => kill('gateway') },
  'decoder killed': { away: true, expected: killed('changefeed decoder'), says: /"changefeed decoder.*was terminated by signal 9/, apply: () => kill('decoder') },
  'feed worker killed': { away: true, expected: killed('changefeed feed worker'), says: /"changefeed feed worker.*was terminated by signal 9/, apply: () => kill('feed worker') },
  'query worker killed': { away: true, expected: killed('changefeed query worker'), says: /"changefeed query worker.*was terminated by signal 9/, apply: () => kill('query worker') },
  'backend killed': {
    away: true, expected: killed('server process'), says: /server process \(PID \d+\) was terminated by signal 9/,
    apply: () => until(async () => {
      const pid = Number(await ask("SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1"));
      return pid && send(pid, 'SIGKILL') && Date.now();
    }, 'a backend is killed', 60000),
  },
  'postmaster killed': {
    away: true, says: /database system was interrupted/,
    apply: async () => {
      send(await postmasterPid(), 'SIGKILL');
      const at = Date.now();
      await startAgain();
      return at;
    },
  },
  'immediate shutdown': {
    away: true, says: /received immediate shutdown request/,
    apply: async () => {
      const at = Date.now();
      await restart('immediate');
      return at;
    },
  },
  'fast restart': {
    away: true, says: /received fast shutdown request/,
    apply: async () => {
      const at = Date.now();
      await restart('fast');
      return at;
    },
  },

  'decoder terminated': { weight: 2, says: /terminating background worker "changefeed decoder/, apply: () => terminate('decoder') },
  'feed worker terminated': { weight: 2, says: /change feed of database ".*" has ended, starting it again/, apply: () => terminate('feed worker') },
  'query worker terminated': { weight: 2, says: /terminating background worker "changefeed query worker/, apply: () => terminate('query worker') },
  'launcher terminated': { says: /terminating background worker "changefeed launcher/, apply: () => terminate('launcher') },
  'backends terminated': {
    says: /terminating connection due to administrator command/,
    apply: async () => {
      await insist("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()");
      return Date.now();
    },
  },

  ...Object.fromEntries(['gateway', 'decoder', 'feed worker', 'query worker', 'launcher'].map((what) => [
    `${what} stopped`, { silent: STOPPED, apply: async ({ random }) => stop(await processOf(what), random.between(500, 5000)) }])),
  'backend stopped': {
    silent: STOPPED,
    apply: async ({ random }) => stop(Number(await until(() => ask("SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1"), 'a backend')), random.between(500, 5000)),
  },
  'walwriter and checkpointer stopped': {
    silent: STOPPED,
    apply: async ({ random }) => {
      const ms = random.between(500, 5000);
      const pids = (await until(() => ask("SELECT pid FROM pg_stat_activity WHERE backend_type IN ('walwriter', 'checkpointer')"), 'their PIDs')).split('\n').map(Number);
      await Promise.all(pids.map((pid) => stop(pid, ms)));
      return Date.now();
    },
  },
  'postmaster stopped': { silent: STOPPED, apply: async ({ random }) => stop(await postmasterPid(), random.between(500, 5000)) },
  'server stopped': {
    silent: STOPPED,
    apply: async ({ random, processes }) => {
      const ms = random.between(1000, 5000);
      await Promise.all(processes().map(({ pid }) => stop(pid, ms)));
      return Date.now();
    },
  },

  'network cut': { weight: 2, silent: OUTAGE, apply: ({ proxy }) => { proxy.cut(); return Date.now(); } },
  'network hangs': { silent: OUTAGE, apply: async ({ proxy, random }) => { await proxy.hang(sleep(random.between(1000, 8000))); return Date.now(); } },
  'clients vanish': { silent: OUTAGE, apply: ({ proxy }) => { proxy.abandon(); return Date.now(); } },
  'network slow': { silent: OUTAGE, apply: async ({ proxy, random }) => { await proxy.slow(random.between(20, 200), sleep(random.between(1000, 6000))); return Date.now(); } },

  'disk of WAL full': {
    away: true, alone: true, impossible: mounted,
    expected: [/PANIC: +could not .*No space left on device/, /terminated by signal 6: Aborted/, /PANIC/], says: /No space left on device/,
    apply: () => full(process.env.CHAOS_WAL_MOUNT, 1024 * 1024, async () => {
      // Segments are made ahead and used again: they have to be used up first.
      const end = Date.now() + 60000;
      for (let gone = false; !gone && Date.now() < end;) {
        const db = new Session();
        gone = await writeWal(db, 200).then(() => false, () => true);
        await quietly(db.close());
      }
      await sleep(1000);
    }).then(async (at) => {
      await startAgain();
      return at;
    }),
  },
  'disk of spill files full': {
    alone: true, impossible: mounted, says: /No space left on device/,
    apply: () => full(process.env.CHAOS_SPILL_MOUNT, 64 * 1024, async () => {
      // More than logical_decoding_work_mem
      const db = new Session();
      await quietly(db.exec("BEGIN; INSERT INTO chaos.spill SELECT repeat('x', 1000) FROM generate_series(1, 20000); DELETE FROM chaos.spill; COMMIT"));
      await quietly(db.close());
      await sleep(4000);
    }),
  },

  'slot dropped': { alone: true, says: /created replication slot/, apply: () => dropSlot() },
  'slot invalidated': {
    alone: true, says: /because the server has invalidated it/,
    apply: async () => {
      const value = (sql) => until(() => quietly(ask(sql)), sql, 60000);
      const behind = () => value(`SELECT (SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'cv_model') >= f.start AND (SELECT slot.restart_lsn < f.start FROM pg_replication_slots slot WHERE slot_name LIKE 'pg_changefeed%')
        FROM (SELECT (pg_current_wal_lsn() - '0/0')::numeric AS n) c, LATERAL (SELECT ('0/0'::pg_lsn + floor(n / 16777216) * 16777216) AS start) f`);
      // The oracle's own slot has to be in the segment that stays.
      await value('SELECT pg_switch_wal()');
      await until(async () => {
        await insist('CHECKPOINT');
        await sleep(500);
        return await behind() === 't';
      }, 'only the feed needs old WAL', 60000);
      const slot = await value("SELECT max(slot_name) FROM pg_replication_slots WHERE slot_name LIKE 'pg_changefeed%'");
      return during({ max_slot_wal_keep_size: '1MB' }, async () => {
        await until(async () => {
          await quietly(ask('CHECKPOINT'));
          return await value("SELECT coalesce(max(slot_name), '-') FROM pg_replication_slots WHERE slot_name LIKE 'pg_changefeed%'") !== slot;
        }, 'the slot is invalidated', 60000);
      });
    },
  },
  'slot given up': {
    alone: true, says: GIVEN_UP,
    apply: ({ log }) => during({ 'changefeed.history_wal_size': '64MB' }, async () => {
      // Somebody who has been writing for too long. He may hold up the new slot, too.
      const holder = new Session();
      await holder.exec("BEGIN; INSERT INTO chaos.spill VALUES ('held')");
      const from = log.size;
      const db = new Session();
      try {
        await until(async () => {
          if (GIVEN_UP.test(log.since(from))) return true;
          // As much as the decoder reads: what is merely not read yet is kept for some time, and the file system is small.
          if (await ask('SELECT coalesce(bool_and(pg_current_wal_lsn() - decoded_lsn > 30000000), true) FROM changefeed.stat_feed') === 'f') await writeWal(db, 30);
          return false;
        }, 'the slot is given up', 60000);
      } finally {
        await quietly(holder.close());
        await quietly(db.close());
      }
    }),
  },
  'no replication slot': {
    alone: true, says: /needs a replication slot, and all \d+ are in use/,
    apply: async ({ log }) => {
      const from = log.size;
      const value = (sql) => until(() => quietly(ask(sql)), sql, 60000);
      await dropSlot(`LOOP
          BEGIN
            PERFORM pg_create_physical_replication_slot('chaos_' || used) FROM (SELECT count(*) AS used FROM pg_replication_slots) n;
          EXCEPTION WHEN configuration_limit_exceeded THEN
            EXIT;
          END;
        END LOOP;`);
      await until(() => /needs a replication slot, and all \d+ are in use/.test(log.since(from)), 'the feed finds no slot', 60000);
      await value("SELECT count(pg_drop_replication_slot(slot_name)) FROM pg_replication_slots WHERE slot_name LIKE 'chaos_%'");
      return Date.now();
    },
  },
  'no background worker': {
    alone: true, says: NO_WORKER,
    // Parallel queries, one after the other: whoever ends leaves his place to the next one.
    apply: ({ log }) => withSessions(32, `SELECT set_config(CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'debug_parallel_query' ELSE 'force_parallel_mode' END, 'on', false);
      ${'SELECT pg_sleep(0.3) /* chaos holds */;\n'.repeat(300)}`, async () => {
      const from = log.size;
      await until(async () => Number(await ask("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'parallel worker'")) >= 6, 'parallel queries run', 60000);
      await until(async () => {
        await terminate('decoder');
        await sleep(2000);
        return NO_WORKER.test(log.since(from));
      }, 'no background worker is left', 60000);
    }),
  },

  'gateway out of memory': { says: /changefeed gateway with PID \d+ has ended|out of memory/, apply: ({ random }) => withLimit('gateway', 'as', ({ memory }) => memory + random.between(0, 512) * 1024, 3000).then(() => kill('gateway')) },
  'gateway out of descriptors': { says: /could not accept a connection: Too many open files/, apply: ({ proxy }) => Promise.all([
    withLimit('gateway', 'nofile', ({ descriptors }) => Math.max(descriptors - 10, 10), 3000), sleep(300).then(() => proxy.cut())]).then(() => Date.now()) },
  'feed worker out of descriptors': { silent: 'the server closes files that it can open again', apply: () => withLimit('feed worker', 'nofile', ({ descriptors }) => descriptors, 3000) },
  'query worker out of descriptors': { silent: 'the server closes files that it can open again', apply: () => withLimit('query worker', 'nofile', ({ descriptors }) => descriptors, 3000) },
  'decoder out of descriptors': { silent: 'the server closes files that it can open again', apply: () => withLimit('decoder', 'nofile', ({ descriptors }) => descriptors, 3000) },
  'feed worker out of memory': { silent: 'see doc', apply: () => withLimit('feed worker', 'as', ({ memory }) => memory + 256 * 1024, 3000) },
  'worker_memory used up': {
    alone: true, says: /feed worker refuses new subscriptions/,
    apply: ({ log, token }) => during({ 'changefeed.worker_memory': '16MB' }, async () => {
      const from = log.size;
      const eaters = await eat(token, 6, 250);
      await until(() => /feed worker refuses new subscriptions/.test(log.since(from)), 'memory is used up', 60000).catch(() => {});
      await sleep(1000);
      for (const eater of eaters) eater.terminate();
    }),
  },
  // At the end of each of the two the clock goes back or forward again.
  'clock set back': { says: SET_BACK, apply: ({ random }) => withClock(-random.between(30, 7200), random.between(1000, 5000)) },
  'clock set forward': { says: SET_BACK, apply: ({ random }) => withClock(random.between(30, 7200), random.between(1000, 5000)) },
  'standby missing': { alone: true, silent: 'commits wait, as with any synchronous replication', apply: ({ random }) => during({ synchronous_standby_names: 'chaos' }, () => sleep(random.between(500, 4000))) },
  'tables locked': {
    silent: 'locks are everyday',
    apply: ({ random }) => withSessions(1, `BEGIN; LOCK TABLE cv.t0, cv.members, chaos.ears; SELECT pg_sleep(${random.between(1, 5)}) /* chaos holds */; COMMIT`, () => sleep(5500)),
  },
};
