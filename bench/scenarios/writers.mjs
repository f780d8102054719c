// What the feed costs those who write: the same table on a server without this extension, there with REPLICA
// IDENTITY FULL (which create_channel sets, and which has a cost of its own), and with a channel and a subscriber.
//
// "backend": one writer as fast as it can; the CPU time of its backend for a transaction. "1,000 per second": commit
// latency at a fixed rate (pgbench --rate), which leaves the machine room. "pgbench": what four writers reach when
// they do nothing else, on a machine whose cores they share with all that the feed does for each change.
//
// wal_level is logical on both servers. Parameters (--set): transactions, repeats (of the first case), seconds.

import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { Cluster } from '../lib/cluster.mjs';
import { BIN, finish, firstLine, scratch, start } from '../lib/programs.mjs';
import { WrongResult } from '../lib/runner.mjs';
import { quantile } from '../lib/stats.mjs';

export const title = 'what the feed costs writers';
export const unit = 'CPU time of the writing backend for a transaction; latency of pgbench transactions; transactions per second';
export const metrics = { backend_us: 'µs', commit_p50_us: 'µs', commit_p99_us: 'µs', tps: '/s', feed_cpu_us: 'µs' };

const SYSTEMS = ['without', 'without, identity full', 'pg_changefeed'];
const ROWS = 10000;

export function cases({ quick, tiny, arguments: given = {} }) {
  // Many short repeats: what else goes on in a machine changes within seconds, by more than what is looked for.
  const transactions = Number(given.transactions ?? (tiny ? 50 : 500));
  const seconds = Number(given.seconds ?? (tiny ? 1 : quick ? 2 : 3));
  const repeats = Number(given.repeats ?? (tiny ? 1 : quick ? 5 : 31));
  return [
    { name: 'backend', kind: 'backend', transactions, repeats, systems: SYSTEMS },
    { name: '1,000 transactions per second', kind: 'pgbench', rate: tiny ? 100 : 1000, seconds, repeats: quick ? 1 : 3, systems: SYSTEMS },
    { name: 'as many as possible', kind: 'pgbench', rate: 0, seconds, repeats: quick ? 1 : 3, systems: SYSTEMS },
  ];
}

const TABLE = (name, full) => `
  CREATE TABLE ${name} (id bigint PRIMARY KEY, status text NOT NULL, note text NOT NULL, sent_us bigint NOT NULL) WITH (fillfactor = 50);
  INSERT INTO ${name} SELECT i, 'new', repeat('x', 100), 0 FROM generate_series(1, ${ROWS}) i;
  ${full ? `ALTER TABLE ${name} REPLICA IDENTITY FULL;` : ''}`;

export async function setup({ keep, note }) {
  // A checkpoint in the middle of a measurement would be somebody's bad luck.
  const settings = { max_wal_size: '8GB', checkpoint_timeout: '1h', autovacuum: 'off' };
  keep.folder = mkdtempSync(path.join(scratch, 'writers.'));
  keep.feed = new Cluster({ settings });
  await keep.feed.query(`
    CREATE ROLE bench_reader;
    SELECT changefeed.allow_role('bench_reader');
    ${TABLE('items', false)}
    GRANT SELECT ON items TO bench_reader;
    SELECT changefeed.create_channel('items', 'items')`);
  keep.plain = new Cluster({
    extension: false,
    settings: { ...settings, shared_preload_libraries: '', 'changefeed.max_connections': null, 'changefeed.max_handshake_rate': null },
  });
  await keep.plain.query(TABLE('items', false) + TABLE('items_full', true));
  for (const cluster of [keep.feed, keep.plain]) await cluster.query('VACUUM ANALYZE');
  keep.bindir = execFileSync(process.env.PG_CONFIG, ['--bindir'], { encoding: 'utf8' }).trim();
  keep.received = path.join(keep.folder, 'received');
  keep.client = start(path.join(BIN, 'client'), ['--port', String(keep.feed.feedPort), '--path', '/v1/socket',
    '--send', JSON.stringify({ type: 'connect', id: 1, token: await keep.feed.token({ role: 'bench_reader' }) }),
    '--send', JSON.stringify({ type: 'subscribe', id: 2, channel: 'items', snapshot: false }),
    '--ready', '{"type":"ready"', '--pong', '{"type":"pong"}', '--drain', '5000', '--out', keep.received]);
  await firstLine(keep.client, 'the subscriber');
  keep.versions = (await keep.feed.query('SELECT version() AS postgres'))[0];
  note('pg_changefeed: a channel with one subscriber, which gets every change; autovacuum is off on both servers.');
}

async function backend(keep, { transactions }, cluster, table) {
  const written = path.join(keep.folder, 'written');
  const writer = start(path.join(BIN, 'writer'), ['--conninfo', cluster.conninfo, '--table', table,
    '--rate', '0', '--count', String(transactions), '--rows', String(ROWS), '--out', written]);
  const { backend_us: cpu, per_second: perSecond } = JSON.parse(await firstLine(writer, 'the writer'));
  await finish(writer, 'the writer');
  const commits = readFileSync(written, 'utf8').trim().split('\n').map((line) => Number(line.split(' ')[1]));
  return { backend_us: cpu, commit_p50_us: quantile(commits, 0.5), commit_p99_us: quantile(commits, 0.99), tps: perSecond };
}

async function pgbench(keep, { rate, seconds }, cluster, table) {
  const script = path.join(keep.folder, `${table}.sql`);
  writeFileSync(script, `\\set id random(1, ${ROWS})\nUPDATE ${table} SET sent_us = sent_us + 1 WHERE id = :id;\n`);
  const prefix = path.join(keep.folder, 'log');
  const output = execFileSync(path.join(keep.bindir, 'pgbench'), ['-n', '-M', 'prepared', '-c', '4', '-j', '1', '-T', String(seconds),
    ...(rate > 0 ? ['-R', String(rate)] : []), '-f', script, '-l', '--log-prefix', prefix,
    '-h', cluster.host, '-p', String(cluster.port), '-U', cluster.user, cluster.database], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });
  const latencies = [];
  for (const name of readdirSync(keep.folder).filter((file) => file.startsWith('log.'))) {
    for (const line of readFileSync(path.join(keep.folder, name), 'utf8').trim().split('\n')) {
      // client, number, latency, script, seconds, microseconds, and with a rate how late it began
      const fields = line.split(' ').map(Number);
      latencies.push(fields[2] - (fields[6] ?? 0));
    }
    rmSync(path.join(keep.folder, name));
  }
  const tps = Number(/^tps = ([\d.]+)/m.exec(output)[1]);
  return { commit_p50_us: quantile(latencies, 0.5), commit_p99_us: quantile(latencies, 0.99), tps, transactions: latencies.length };
}

export async function measure({ keep }, each, system) {
  const cluster = system === 'pg_changefeed' ? keep.feed : keep.plain;
  const table = system === 'without, identity full' ? 'items_full' : 'items';
  await cluster.query('VACUUM');
  const before = system === 'pg_changefeed' ? cluster.cpu() : null;
  const result = await (each.kind === 'backend' ? backend : pgbench)(keep, each, cluster, table);
  keep.count = (keep.count ?? 0) + (before === null ? 0 : result.transactions ?? each.transactions);
  if (before !== null) {
    const after = cluster.cpu();
    result.feed_cpu_us = Object.keys(after).reduce((sum, kind) => sum + after[kind] - before[kind], 0) / (result.transactions ?? each.transactions);
  }
  return result;
}

export const ratios = [
  { name: 'CPU of the backend against without', metric: 'backend_us', of: 'pg_changefeed', to: 'without' },
  { name: 'CPU of the backend against identity full', metric: 'backend_us', of: 'pg_changefeed', to: 'without, identity full' },
  { name: 'identity full against without', metric: 'backend_us', of: 'without, identity full', to: 'without' },
  { name: 'median commit latency against identity full', metric: 'commit_p50_us', of: 'pg_changefeed', to: 'without, identity full' },
  { name: 'TPS against identity full', metric: 'tps', of: 'pg_changefeed', to: 'without, identity full' },
];
export const targets = [
  { name: 'CPU of the writing backend, against the same replica identity without the feed', ratio: 'CPU of the backend against identity full', limit: 1.03, case: 'backend' },
];

export async function teardown({ keep }) {
  if (keep.client !== undefined) {
    keep.client.stdin.end();
    await finish(keep.client, 'the subscriber');
    const got = readFileSync(keep.received, 'utf8').split('\n').length - 1;
    if (got !== keep.count) throw new WrongResult(`the subscriber got ${got} changes, not ${keep.count}`);
  }
  keep.feed?.remove();
  keep.plain?.remove();
}

const share = (result, name, which) => result.cases.find((each) => each.name === name)?.ratios.find((r) => r.name === which)?.of_medians.toFixed(3);
export const line = (result) => `writers: CPU of the backend ${share(result, 'backend', 'CPU of the backend against identity full')} x (identity full alone ${
  share(result, 'backend', 'identity full against without')} x), median commit latency at 1,000/s ${share(result, '1,000 transactions per second', 'median commit latency against identity full')} x, TPS when nothing is left ${
  share(result, 'as many as possible', 'TPS against identity full')} x`;
