// How long clients are without their feed, with a history that is as long as the
// default settings let it become: everything that is in it is decoded again when
// the feed starts again.
//
//   test/chaos/run --recovery
//
// Nothing else happens, so the times are those of the recovery. Environment:
// CLIENTS (200), TIMES (5) how often each. Nothing here fails because of a time.

import { mkdirSync, writeFileSync } from 'node:fs';

import { FAULTS } from './faults.mjs';
import { acceptsSince, Log, processes } from './health.mjs';
import { Proxy } from './proxy.mjs';
import { DIRECTORY, median, seconds } from './report.mjs';
import { Witnesses } from './witnesses.mjs';
import { ask } from '../convergence/processes.mjs';
import { Random } from '../convergence/values.mjs';
import { until } from '../integration/lib/client.mjs';
import { Session } from '../integration/lib/psql.mjs';

const CLIENTS = Number(process.env.CLIENTS ?? 200);
const TIMES = Number(process.env.TIMES ?? 5);
const SEED = Number(process.env.SEED ?? Date.now() % 1000000007);
const PATIENCE_MS = 120000;
const KINDS = [
  'gateway killed', 'decoder terminated', 'feed worker terminated', 'query worker terminated', 'launcher terminated',
  'decoder killed', 'feed worker killed', 'query worker killed', 'backend killed', 'postmaster killed', 'immediate shutdown', 'fast restart',
];

/** The history is full: nine tenths of changefeed.history_size, as the oldest goes in pieces. */
async function fill() {
  const db = new Session();
  try {
    const full = Number(await db.value("SELECT setting::bigint * 1024 * 9 / 10 FROM pg_settings WHERE name = 'changefeed.history_size'"));
    await until(async () => {
      const bytes = Number(await db.value('SELECT log_bytes FROM changefeed.stat_feed'));
      if (bytes >= full) return true;
      for (let i = 0; i < 5; i += 1) await db.exec("INSERT INTO chaos.filler (t) SELECT repeat('x', 900) FROM generate_series(1, 400)");
      return false;
    }, 'the history is full', 10 * PATIENCE_MS);
    return Number(await db.value('SELECT log_bytes FROM changefeed.stat_feed'));
  } finally {
    await db.close();
  }
}

const proxy = await new Proxy().start(() => null);
const witnesses = new Witnesses();
await witnesses.prepare(() => undefined, CLIENTS);
let stopped = false;
let paused = false;
const running = witnesses.writers.map((writer) => writer.run(() => stopped, () => paused));
const times = {};
let n = 0;
for (let i = 0; i < TIMES; i += 1) {
  for (const kind of KINDS) {
    const bytes = await fill();
    n += 1;
    await witnesses.recovered(Date.now(), 0, PATIENCE_MS);
    // A feed that has just begun is started again later.
    await until(async () => await ask("SELECT bool_and(backend_start < now() - interval '11 s') FROM pg_stat_activity WHERE backend_type LIKE 'changefeed %er' AND backend_type <> 'changefeed query worker'") === 't', 'the feed has run for a while');
    const log = new Log();
    const offset = log.size;
    const at = await FAULTS[kind].apply({ random: new Random(SEED, `${n}`), proxy, log, processes });
    const all = await witnesses.recovered(at, FAULTS[kind].away ? at : 0, PATIENCE_MS);
    const from = FAULTS[kind].away ? acceptsSince(log.since(offset)) : at;
    times[kind] ??= [];
    times[kind].push(all.map((time) => time - from));
    console.log(`${kind}: ${seconds(median(times[kind].at(-1)))} s median, ${seconds(Math.max(...times[kind].at(-1)))} s worst of ${CLIENTS} clients, with a history of ${Math.round(bytes / 2 ** 20)} MB`);
  }
  paused = true;
  await until(() => witnesses.writers.every(({ idle }) => idle), 'writers pause');
  await witnesses.check();
  paused = false;
}
stopped = true;
await Promise.all(running);
await witnesses.stop();
const table = ['| what dies | times | recovered, median (s) | worst (s) | counted from |', '|---|---|---|---|---|',
  ...KINDS.map((kind) => `| ${kind} | ${TIMES} | ${seconds(median(times[kind].flat()))} | ${seconds(Math.max(...times[kind].flat()))} | ${FAULTS[kind].away ? '"ready to accept connections" in the log' : 'the death'} |`), ''].join('\n');
mkdirSync(DIRECTORY, { recursive: true });
writeFileSync(`${DIRECTORY}/chaos-recovery.md`, table);
console.log(table);
process.exit(0);
