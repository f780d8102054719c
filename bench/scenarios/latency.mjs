// Commit-to-client latency of this project and of what a team would write instead (bench/latency/peers.mjs), in
// turns: 1, 100, 1,000 and 5,000 commits per second, one subscriber, and 1,000 subscribers of a channel each.
//
// This project is measured twice: a table without policies, which is comparable with the peers, and one with a
// row level security policy on the owner. All get the same writer (bench/latency/writer.c) and the same client
// (client.c). Ours and the peers have a server each, so that nobody decodes what is written for another.
//
// "commit alone" is the floor: the same writer and table on the peers' server, where nobody wants to know of it.
// Its latency ends with the answer to COMMIT. tail_commit_share says how much of the slowest hundredth's time the
// commit took that the change waited for.
//
// Parameters (--set): rates (list), subscribers (list), repeats.

import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { Cluster } from '../lib/cluster.mjs';
import { BIN, ROOT, finish, firstLine, scratch, start, stop } from '../lib/programs.mjs';
import { Unavailable, WrongResult } from '../lib/runner.mjs';
import { quantile } from '../lib/stats.mjs';

export const title = 'commit-to-client latency';
export const unit = 'microseconds from just before the writer sends its one-statement transaction to its receipt by the client';
export const metrics = {
  p50_us: 'µs', p99_us: 'µs', p999_us: 'µs', p99_times_p50: '×', commit_p50_us: 'µs', commit_p99_us: 'µs',
  after_commit_p50_us: 'µs', after_commit_p99_us: 'µs', tail_commit_share: '', written_per_s: '/s',
};

// For the plot: a latency for each of these shares of the changes
const QUANTILES = [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 1];
const WARM_UP = 0.1; // of the transactions of a repeat, at its start, are not counted
const PATIENCE = 15000; // ms in which all changes have to come after the last commit
const PEERS = ['notify', 'postgres', 'lds'];
const DATABASE = { notify: 'bridge', postgres: 'publication', lds: 'lds', 'commit alone': 'alone' };
const FLOOR = 'commit alone';
const SYSTEMS = ['pg_changefeed', 'with a policy', ...PEERS, FLOOR];

export function cases({ quick, tiny, arguments: given = {} }) {
  const list = (text, otherwise) => text?.split(',').map(Number) ?? otherwise;
  const count = { 1: 5, 100: 300, 1000: 2500, 5000: 8000 };
  const found = [];
  for (const rate of list(given.rates, tiny ? [200] : quick ? [100] : [1, 100, 1000, 5000])) {
    for (const subscribers of list(given.subscribers, tiny ? [1, 5] : quick || rate === 1 ? [1] : [1, 1000])) {
      found.push({
        name: `${rate.toLocaleString('en')} commit${rate === 1 ? '' : 's'}/s, ${subscribers.toLocaleString('en')} subscriber${subscribers === 1 ? '' : 's'}`,
        rate,
        subscribers,
        count: tiny ? 30 : quick ? 150 : count[rate] ?? rate * 3,
        // With a flush to disk for each commit, one does not come to a thousand.
        writers: rate < 1000 ? 1 : rate < 5000 ? 4 : 16,
        repeats: Number(given.repeats ?? (tiny ? 1 : rate === 1 || quick ? 2 : 3)),
        systems: SYSTEMS,
      });
    }
  }
  return found;
}

const sqlFile = (name) => readFileSync(path.join(ROOT, 'bench/latency', name), 'utf8');

export async function setup(context) {
  const { keep } = context;
  keep.folder = mkdtempSync(path.join(scratch, 'latency.'));
  keep.ours = new Cluster();
  await keep.ours.query(sqlFile('setup.sql').replace(/^VACUUM.*$/m, ''));
  await keep.ours.query(sqlFile('feed.sql').replace(/^VACUUM.*$/m, ''));
  await keep.ours.query('VACUUM ANALYZE');
  keep.theirs = new Cluster({ extension: false, settings: { shared_preload_libraries: '', 'changefeed.max_connections': null, 'changefeed.max_handshake_rate': null } });
  for (const peer of [...PEERS, FLOOR]) {
    const database = DATABASE[peer];
    await keep.theirs.query(`CREATE DATABASE ${database}`);
    await keep.theirs.query(sqlFile('setup.sql').replace(/^VACUUM.*$/m, ''), undefined, database);
    if (peer === 'notify') await keep.theirs.query(sqlFile('notify.sql'), undefined, database);
    if (peer === 'postgres') await keep.theirs.query('CREATE PUBLICATION bench FOR ALL TABLES', undefined, database);
    if (peer === 'lds') {
      // Newer minor versions load only the output plugins that are named here; older ones do not know the setting.
      await keep.theirs.query('ALTER DATABASE lds SET output_plugin_libraries = wal2json').catch(() => {});
    }
    await keep.theirs.query('VACUUM ANALYZE', undefined, database);
  }
  const tokens = await keep.ours.query(`
    SELECT changefeed.make_token(jsonb_build_object('role', 'bench_reader', 'sub', i::text), '1 day') AS token
    FROM generate_series(1, 1000) i ORDER BY i`);
  keep.tokens = path.join(keep.folder, 'tokens');
  writeFileSync(keep.tokens, tokens.map(({ token }) => `${token}\n`).join(''));
  keep.versions = (await keep.ours.query('SELECT version() AS postgres'))[0];
  context.note('1,000 commits/s are written on 4 connections, 5,000 on 16: with a flush to disk for each commit, one does not come to that rate.');
  context.note('lds asks for changes again after 1 ms; its default is 125 ms.');
}

async function feed(keep, table) {
  return {
    cluster: keep.ours,
    database: keep.ours.database,
    table,
    client: ['--port', String(keep.ours.feedPort), '--path', '/v1/socket', '--tokens', keep.tokens,
      '--send', '{"type":"connect","id":1,"token":"%t"}',
      '--send', JSON.stringify({ type: 'subscribe', id: 2, channel: `${table}:%n` }),
      '--ready', '{"type":"ready"', '--pong', '{"type":"pong"}'],
    end: async () => {},
  };
}

async function peer(keep, name, table) {
  const database = DATABASE[name];
  const { theirs } = keep;
  const program = start(process.execPath, [path.join(ROOT, 'bench/latency/peers.mjs'), name], {
    env: { ...process.env, PGHOST: theirs.host, PGPORT: String(theirs.port), PGUSER: theirs.user, PGDATABASE: database },
  });
  let port;
  try {
    port = await firstLine(program, name);
  } catch (error) {
    throw new Unavailable(error.message);
  }
  return {
    cluster: theirs,
    database,
    table,
    client: ['--port', port, '--send', JSON.stringify({ subscribe: `${table}:%n` }), '--ready', '{"type":"ready"'],
    end: () => stop(program),
  };
}

const numbers = (file) => readFileSync(file, 'utf8').trim().split('\n').filter(Boolean).map((line) => line.split(' ').map(Number));

async function write({ cluster, database, table }, each, written) {
  const writer = start(path.join(BIN, 'writer'), [
    '--conninfo', cluster.conninfoOf(database), '--connections', String(each.writers), '--table', table,
    '--rate', String(each.rate), '--count', String(each.count), '--rows', String(each.subscribers === 1 ? 100 : each.subscribers),
    '--out', written]);
  const speed = JSON.parse(await firstLine(writer, 'the writer'));
  await finish(writer, 'the writer');
  return speed;
}

async function measureFloor(keep, each, table, written) {
  const speed = await write({ cluster: keep.theirs, database: DATABASE[FLOOR], table }, each, written);
  const commits = numbers(written).slice(Math.floor(each.count * WARM_UP)).map(([, duration]) => duration);
  const [p50, p99] = [quantile(commits, 0.5), quantile(commits, 0.99)];
  return {
    samples: commits.length,
    p50_us: p50,
    p99_us: p99,
    p999_us: commits.length >= 2000 ? quantile(commits, 0.999) : NaN,
    p99_times_p50: p99 / p50,
    commit_p50_us: p50,
    commit_p99_us: p99,
    written_per_s: speed.per_second,
    quantiles_us: QUANTILES.map((q) => quantile(commits, q)),
  };
}

export async function measure({ keep }, each, system) {
  const table = each.subscribers === 1 ? 'orders' : 'many';
  const received = path.join(keep.folder, 'received');
  const written = path.join(keep.folder, 'written');
  if (system === FLOOR) return measureFloor(keep, each, table, written);
  const target = await (system === 'pg_changefeed' ? feed(keep, table)
    : system === 'with a policy' ? feed(keep, `private_${table}`) : peer(keep, system, table));
  let speed;
  try {
    const client = start(path.join(BIN, 'client'), [...target.client, '--connections', String(each.subscribers),
      '--expect', String(each.count), '--drain', String(PATIENCE), '--out', received]);
    await firstLine(client, `the client of ${system}`);
    speed = await write(target, each, written);
    client.stdin.end();
    await finish(client, `the client of ${system}`);
  } finally {
    await target.end();
  }

  const sent = numbers(written);
  const got = numbers(received);
  if (got.length < sent.length) throw new WrongResult(`${sent.length} changes were committed, ${got.length} received within ${PATIENCE / 1000} s`);
  if (got.length > sent.length) throw new WrongResult(`${sent.length} changes were committed, but ${got.length} received`);
  const counted = sent.slice(Math.floor(each.count * WARM_UP));
  const durationOf = new Map(counted.map(([at, duration]) => [at, duration]));
  const changes = got.filter(([at]) => durationOf.has(at));
  const latencies = changes.map(([, latency]) => latency);
  const commits = counted.map(([, duration]) => duration);
  // Negative: the client had the change before the writer had the answer to its COMMIT
  const after = changes.map(([at, latency]) => latency - durationOf.get(at));
  const tail = quantile(latencies, 0.999);
  const p99 = quantile(latencies, 0.99);
  const slowest = changes.filter(([, latency]) => latency >= p99);
  const sum = (list) => list.reduce((a, b) => a + b, 0);
  return {
    samples: latencies.length,
    deliveries: got.length,
    expected: sent.length,
    p50_us: quantile(latencies, 0.5),
    p99_us: p99,
    p99_times_p50: p99 / quantile(latencies, 0.5),
    // Of fewer samples it would be their maximum.
    p999_us: latencies.length >= 2000 ? tail : NaN,
    max_us: Math.max(...latencies),
    commit_p50_us: quantile(commits, 0.5),
    commit_p99_us: quantile(commits, 0.99),
    after_commit_p50_us: quantile(after, 0.5),
    after_commit_p99_us: quantile(after, 0.99),
    tail_commit_share: sum(slowest.map(([at, latency]) => Math.min(durationOf.get(at), latency))) / sum(slowest.map(([, latency]) => latency)),
    late_p99_us: quantile(counted.map(([, , late]) => late), 0.99),
    written_per_s: speed.per_second,
    quantiles_us: QUANTILES.map((q) => quantile(latencies, q)),
  };
}

export const ratios = [
  ...[...PEERS, FLOOR].flatMap((name) => ['p50', 'p99'].map((q) => ({
    name: `${q}, ours / ${name}`, metric: `${q}_us`, of: 'pg_changefeed', to: name,
  }))),
  // What the first ratio could be at best
  ...PEERS.flatMap((name) => ['p50', 'p99'].map((q) => ({
    name: `${q}, ${FLOOR} / ${name}`, metric: `${q}_us`, of: FLOOR, to: name,
  }))),
];

const few = (each) => each.rate === 100 && each.subscribers === 1;
const many = (each) => each.rate === 1000 && each.subscribers === 1000;
export const targets = [
  { name: 'p50 / LISTEN/NOTIFY bridge', ratio: 'p50, ours / notify', limit: 1.2, case: few },
  { name: 'p99 / LISTEN/NOTIFY bridge', ratio: 'p99, ours / notify', limit: 1.5, case: few },
  ...PEERS.slice(1).map((name) => ({ name: `p50 / ${name}`, ratio: `p50, ours / ${name}`, limit: 0.5, case: few })),
  { name: 'p99 / own p50', system: 'pg_changefeed', metric: 'p99_times_p50', limit: 10, case: many },
  ...PEERS.map((name) => ({ name: `p99 / ${name}`, ratio: `p99, ours / ${name}`, limit: 0.3, case: many })),
];

export async function teardown({ keep }) {
  keep.ours?.remove();
  keep.theirs?.remove();
}

const ms = (us) => `${(us / 1000).toFixed(2)} ms`;
export const line = (result) => `latency: ${result.cases.map((each) => `${each.name}: ${
  Object.entries(each.systems).map(([name, { metrics: m }]) => `${name} p50 ${m?.p50_us === undefined ? '-' : ms(m.p50_us.median)}`).join(', ')}`).join('; ')}`;
