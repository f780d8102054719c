// How fast WAL is decoded, beside an output plugin that does nothing (bench/noop_plugin).
//
// The decoder is stopped (SIGSTOP) while WAL is written. Then both read the same piece of it, one after the other:
// pg_logical_slot_get_binary_changes() with that plugin in a backend, and the decoder, which goes on (SIGCONT).
// Both read from the system's page cache and run the same reorder buffer. The rate is changes per second of CPU time
// of the process that decodes: the decoder may wait for the feed worker, with which it shares the machine. Seconds by
// the clock and the feed worker's CPU time are beside it.
//
// Parameters (--set): transactions, bulk (rows).

import { chmodSync, copyFileSync, mkdirSync, readFileSync } from 'node:fs';
import path from 'node:path';

import { Cluster } from '../lib/cluster.mjs';
import { cpuOf } from '../lib/proc.mjs';
import { BIN, finish, firstLine, scratch, sleep, start, until } from '../lib/programs.mjs';
import { WrongResult } from '../lib/runner.mjs';

export const title = 'decoding WAL, beside an output plugin that does nothing';
export const unit = 'changes per second of CPU time of the process that decodes';
export const metrics = { changes_per_cpu_s: '/s', changes_per_s: '/s', cpu_us_per_change: 'µs', feed_us_per_change: 'µs' };

export function cases({ quick, tiny, arguments: given = {} }) {
  const transactions = Number(given.transactions ?? (tiny ? 100 : quick ? 10000 : 30000));
  const bulk = Number(given.bulk ?? (tiny ? 1000 : quick ? 200000 : 1000000));
  const repeats = quick ? 1 : 3;
  const systems = ['pg_changefeed', 'noop plugin'];
  return [
    { name: 'nobody subscribed', changes: transactions, kind: 'single', subscribers: 0, repeats, systems },
    { name: 'one subscriber', changes: transactions, kind: 'single', subscribers: 1, repeats, systems },
    { name: 'one bulk transaction', changes: bulk, kind: 'bulk', subscribers: 0, repeats, systems },
  ];
}

export async function setup({ keep, note }) {
  const folder = path.join(scratch, 'plugin');
  mkdirSync(folder);
  copyFileSync(path.join(BIN, 'noop_plugin.so'), path.join(folder, 'noop_plugin.so'));
  chmodSync(folder, 0o755);
  chmodSync(path.join(folder, 'noop_plugin.so'), 0o755);
  const cluster = new Cluster({
    settings: { synchronous_commit: 'off', max_wal_size: '8GB', checkpoint_timeout: '1h', dynamic_library_path: `$libdir:${folder}` },
  });
  keep.cluster = cluster;
  await cluster.query(`
    CREATE ROLE bench_reader;
    SELECT changefeed.allow_role('bench_reader');
    CREATE TABLE rows (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a int NOT NULL, note text NOT NULL, sent_us bigint NOT NULL);
    GRANT SELECT ON rows TO bench_reader;
    SELECT changefeed.create_channel('rows', 'rows');
    CREATE PROCEDURE write_single(n int) LANGUAGE plpgsql AS $$
    BEGIN
        FOR i IN 1 .. n LOOP
            INSERT INTO rows (a, note, sent_us) VALUES (i, repeat('x', 100), 1);
            COMMIT;
        END LOOP;
    END $$;
    CREATE PROCEDURE write_bulk(n int) LANGUAGE sql AS $$
        INSERT INTO rows (a, note, sent_us) SELECT i, repeat('x', 100), 1 FROM generate_series(1, n) i
    $$`);
  keep.db = await cluster.connect();
  await keep.db.query('SET output_plugin_libraries = noop_plugin').catch(() => {}); // older minor versions have no such setting
  await keep.db.query("SELECT pg_create_logical_replication_slot('noop', 'noop_plugin')");
  keep.token = await cluster.token({ role: 'bench_reader' });
  keep.versions = (await cluster.query('SELECT version() AS postgres'))[0];
  note('synchronous_commit is off: nobody waits for what is measured.');
}

const feed = async (keep) => (await keep.db.query('SELECT decoder_pid, feed_worker_pid, decoded_lsn FROM changefeed.stat_feed')).rows[0];

// Until the decoder has read all that was written, and the subscriber, if there is one, has got it
async function caughtUp(keep) {
  const { rows: [{ lsn }] } = await keep.db.query('SELECT pg_current_wal_insert_lsn() AS lsn');
  await until('the decoder reads all', async () => {
    const { rows: [{ done }] } = await keep.db.query('SELECT decoded_lsn >= $1::pg_lsn AS done FROM changefeed.stat_feed', [lsn]);
    return done;
  }, 120000);
}

// The piece of WAL of a repeat. Afterwards the decoder is stopped in front of it, and so is the slot.
async function write(keep, each, repeat) {
  if (keep.written === `${each.name} ${repeat}`) return;
  keep.written = `${each.name} ${repeat}`;
  const { db } = keep;
  // A subscriber that is still behind would not be told what came before.
  if (each.subscribers === 0) await db.query('TRUNCATE rows');
  await db.query('CHECKPOINT');
  await db.query("SELECT pg_replication_slot_advance('noop', pg_current_wal_lsn())");
  await caughtUp(keep);
  const { decoder_pid: decoder } = await feed(keep);
  process.kill(decoder, 'SIGSTOP');
  await db.query(`CALL write_${each.kind}(${each.changes})`);
  await db.query("SELECT pg_switch_wal()"); // flushes
  keep.end = (await db.query('SELECT pg_current_wal_lsn() AS lsn')).rows[0].lsn;
}

async function noop(keep, each) {
  const { db } = keep;
  const { rows: [{ pid }] } = await db.query('SELECT pg_backend_pid() AS pid');
  const cpu = cpuOf(pid);
  const began = performance.now();
  const { rows: [{ n }] } = await db.query("SELECT count(*) AS n FROM pg_logical_slot_get_binary_changes('noop', $1, NULL)", [keep.end]);
  const seconds = (performance.now() - began) / 1000;
  if (Number(n) !== 0) throw new WrongResult('the plugin that does nothing wrote something');
  return figures(each, cpuOf(pid) - cpu, seconds, 0);
}

const figures = ({ changes }, cpu, seconds, feedCpu) => ({
  changes_per_cpu_s: (changes * 1e6) / cpu, changes_per_s: changes / seconds, cpu_us_per_change: cpu / changes, feed_us_per_change: feedCpu / changes,
});

async function ours(keep, each) {
  const { cluster, db } = keep;
  const { decoder_pid: decoder, feed_worker_pid: worker } = await feed(keep);
  const { rows: [{ changes: counted }] } = await db.query('SELECT changes FROM changefeed.stat_feed');
  const cpu = cpuOf(decoder);
  const feedCpu = cpuOf(worker);
  const began = performance.now();
  process.kill(decoder, 'SIGCONT');
  for (;;) {
    const { rows: [{ done }] } = await db.query('SELECT decoded_lsn >= $1::pg_lsn AS done FROM changefeed.stat_feed', [keep.end]);
    if (done) break;
    if (performance.now() - began > 120_000) throw new Error('the decoder did not come to the end within two minutes');
    await sleep(20);
  }
  const seconds = (performance.now() - began) / 1000;
  const result = figures(each, cpuOf(decoder) - cpu, seconds, cpuOf(worker) - feedCpu);
  if (each.kind === 'single') {
    await until('the feed worker has taken all', async () => {
      const { rows: [{ changes: now }] } = await db.query('SELECT changes FROM changefeed.stat_feed');
      return Number(now) - Number(counted) >= each.changes;
    });
  }
  if (cluster.processes().decoder[0] !== decoder) throw new WrongResult('the decoder was started again');
  return result;
}

async function subscribe(keep, each) {
  if (each.subscribers === 0 || keep.client !== undefined) return;
  keep.received = path.join(scratch, 'decode.received');
  keep.client = start(path.join(BIN, 'client'), ['--port', String(keep.cluster.feedPort), '--path', '/v1/socket',
    '--send', JSON.stringify({ type: 'connect', id: 1, token: keep.token }),
    '--send', JSON.stringify({ type: 'subscribe', id: 2, channel: 'rows', snapshot: false }),
    '--ready', '{"type":"ready"', '--pong', '{"type":"pong"}',
    '--expect', String(each.changes * each.repeats), '--drain', '30000', '--out', keep.received]);
  keep.expected = each.changes * each.repeats;
  await firstLine(keep.client, 'the subscriber');
}

async function leave(keep) {
  if (keep.client === undefined) return;
  keep.client.stdin.end();
  await finish(keep.client, 'the subscriber');
  keep.client = undefined;
  const got = readFileSync(keep.received, 'utf8').split('\n').length - 1;
  if (got !== keep.expected) throw new WrongResult(`the subscriber got ${got} changes, not ${keep.expected}`);
}

export async function measure({ keep }, each, system, repeat) {
  if (each.subscribers === 0) await leave(keep);
  await subscribe(keep, each);
  await write(keep, each, repeat);
  return system === 'noop plugin' ? noop(keep, each) : ours(keep, each);
}

export const ratios = [
  { name: 'rate against the noop plugin', metric: 'changes_per_cpu_s', of: 'pg_changefeed', to: 'noop plugin' },
  { name: 'rate against the noop plugin, by the clock', metric: 'changes_per_s', of: 'pg_changefeed', to: 'noop plugin' },
];
export const targets = [
  { name: 'decoding, share of the noop plugin\'s rate', ratio: 'rate against the noop plugin', above: true, limit: 0.7, case: 'nobody subscribed' },
];

export async function teardown({ keep }) {
  if (keep.db !== undefined) {
    const { decoder_pid: decoder } = await feed(keep);
    process.kill(decoder, 'SIGCONT');
    await leave(keep);
    await keep.db.end();
  }
  keep.cluster?.remove();
}

export const line = (result) => `decode: ${result.cases.map((each) => `${each.name} ${Math.round((each.ratios[0]?.of_medians ?? NaN) * 100)} % of the noop plugin's rate`).join(', ')}`;
