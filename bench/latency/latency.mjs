// Commit-to-client latency of this project and of a LISTEN/NOTIFY bridge, in turns.
//
//   node bench/latency/latency.mjs --bin DIR --json FILE [--quick]
//
// Needs two databases on one server, which bench/run makes: FEED_DATABASE with the extension and
// BRIDGE_DATABASE with the trigger, each with the table of setup.sql; PG* variables and WS_URL.
// This project is measured twice: a table without policies, which is comparable with the bridge, and
// one with a row level security policy. All get the same writer (writer.c) and the same client
// (client.c). In each repeat one is measured after the other; in every second repeat in the opposite
// order.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

import pg from 'pg';

const HERE = path.dirname(fileURLToPath(import.meta.url));
const WARM_UP = 0.1; // of the transactions of a repeat, at its start, are not counted

const options = { quick: false, bin: null, json: null };
for (let i = 2; i < process.argv.length; i += 1) {
  const name = process.argv[i].replace(/^--/, '');
  if (name === 'quick') options.quick = true;
  else if (name in options) options[name] = process.argv[i += 1];
  else throw new Error(`unknown argument ${process.argv[i]}`);
}
const { env } = process;

const cases = options.quick
  ? [{ name: '100 commits/s', rate: 100, count: 500, repeats: 3 }]
  : [{ name: '100 commits/s', rate: 100, count: 2000, repeats: 5 },
    { name: '1 commit/s', rate: 1, count: 20, repeats: 5 }];

// ---- programs ----

const children = new Set();

function start(command, args, extra = {}) {
  const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'inherit'], env: { ...env, ...extra } });
  children.add(child);
  child.ended = once(child, 'exit').then(([code]) => {
    children.delete(child);
    return code;
  });
  return child;
}

process.on('exit', () => {
  for (const child of children) child.kill();
});

async function firstLine(child, what) {
  const lines = createInterface({ input: child.stdout });
  const line = await Promise.race([once(lines, 'line').then(([text]) => text), child.ended.then(() => null)]);
  if (line === null) throw new Error(`${what} ended before it was ready`);
  return line;
}

async function finish(child, what) {
  const code = await child.ended;
  if (code !== 0) throw new Error(`${what} failed`);
}

async function query(database, text) {
  const client = new pg.Client({ database });
  await client.connect();
  try {
    return (await client.query(text)).rows;
  } finally {
    await client.end();
  }
}

// ---- the two systems ----

const scratch = mkdtempSync(path.join(os.tmpdir(), 'changefeed-bench.'));
process.on('exit', () => rmSync(scratch, { recursive: true, force: true }));

const bridge = start(process.execPath, [path.join(HERE, 'bridge.mjs')], { PGDATABASE: env.BRIDGE_DATABASE });
const bridgePort = await firstLine(bridge, 'the bridge');
const [{ token }] = await query(
  env.FEED_DATABASE,
  `SELECT changefeed.make_token('{"role": "bench_reader", "sub": "42"}', '1 day') AS token`,
);

const feed = (table) => ({
  database: env.FEED_DATABASE,
  table,
  client: ['--port', new URL(env.WS_URL).port, '--path', '/v1/socket',
    '--send', JSON.stringify({ type: 'connect', id: 1, token }),
    '--send', JSON.stringify({ type: 'subscribe', id: 2, channel: `${table}:42` }),
    '--ready', '{"type":"ready"', '--pong', '{"type":"pong"}'],
});
const systems = {
  pg_changefeed: feed('orders'),
  with_policy: feed('private_orders'),
  bridge: {
    database: env.BRIDGE_DATABASE,
    table: 'orders',
    client: ['--port', bridgePort, '--send', JSON.stringify({ subscribe: 'orders:42' }),
      '--ready', '{"type":"ready"'],
  },
};

// ---- measuring ----

const numbers = (file) => readFileSync(file, 'utf8').trim().split('\n').filter(Boolean)
  .map((line) => line.split(' ').map(Number));
// Nearest rank
const quantile = (values, q) => [...values].sort((a, b) => a - b)[Math.max(0, Math.ceil(q * values.length) - 1)];
const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
};

async function measure(name, { rate, count }) {
  const { database, table, client: clientArguments } = systems[name];
  const received = path.join(scratch, 'received');
  const written = path.join(scratch, 'written');
  const client = start(path.join(options.bin, 'client'), [...clientArguments, '--out', received]);
  await firstLine(client, `the client of ${name}`);
  const writer = start(path.join(options.bin, 'writer'), [
    '--conninfo', `host=${env.PGHOST} port=${env.PGPORT} user=${env.PGUSER} dbname=${database}`,
    '--table', table, '--rate', String(rate), '--count', String(count), '--out', written]);
  await finish(writer, 'the writer');
  client.stdin.end();
  await finish(client, `the client of ${name}`);

  const sent = numbers(written).slice(Math.floor(count * WARM_UP));
  const first = sent[0][0];
  const changes = numbers(received).filter(([at]) => at >= first);
  const latencies = changes.map(([, latency]) => latency);
  if (latencies.length !== sent.length) {
    throw new Error(`${name}: ${sent.length} changes were committed, ${latencies.length} received`);
  }
  const commits = sent.map(([, duration]) => duration);
  const durationOf = new Map(sent);
  // Negative: the client had the change before the writer had the answer to its COMMIT
  const after = changes.map(([at, latency]) => latency - durationOf.get(at));
  return {
    system: name,
    samples: latencies.length,
    p50_us: quantile(latencies, 0.5),
    p99_us: quantile(latencies, 0.99),
    max_us: Math.max(...latencies),
    commit_p50_us: quantile(commits, 0.5),
    commit_p99_us: quantile(commits, 0.99),
    after_commit_p50_us: quantile(after, 0.5),
    after_commit_p99_us: quantile(after, 0.99),
    late_p99_us: quantile(sent.map(([, , late]) => late), 0.99),
  };
}

const spread = (values) => ({ median: median(values), min: Math.min(...values), max: Math.max(...values) });
const NAMES = Object.keys(systems);
const MEASURES = ['p50_us', 'p99_us', 'commit_p50_us', 'commit_p99_us', 'after_commit_p50_us', 'after_commit_p99_us'];

async function run(each) {
  const repeats = [];
  for (let i = 0; i < each.repeats; i += 1) {
    const pair = {};
    for (const name of i % 2 === 0 ? NAMES : [...NAMES].reverse()) {
      pair[name] = await measure(name, each);
      const { p50_us: p50, p99_us: p99 } = pair[name];
      console.error(`${each.name}, repeat ${i + 1}, ${name}: p50 ${ms(p50)}, p99 ${ms(p99)}`);
    }
    repeats.push(pair);
  }
  const summary = {};
  for (const name of NAMES) {
    summary[name] = Object.fromEntries(MEASURES.map((m) => [m, spread(repeats.map((pair) => pair[name][m]))]));
  }
  // How many times the bridge's latency is ours: of the medians, and within each repeat
  const ratio = Object.fromEntries(['p50_us', 'p99_us'].map((m) => {
    const pairs = repeats.map((pair) => pair.bridge[m] / pair.pg_changefeed[m]);
    return [m.replace('_us', ''), {
      of_medians: summary.bridge[m].median / summary.pg_changefeed[m].median,
      min: Math.min(...pairs),
      max: Math.max(...pairs),
    }];
  }));
  return { ...each, subscribers: 1, summary, ratio, repeats: repeats.map((pair) => NAMES.map((n) => pair[n])) };
}

const ms = (us) => `${(us / 1000).toFixed(2)} ms`;
const range = ({ median: m, min, max }) => `${ms(m)} (${ms(min)} .. ${ms(max)})`;

const [about] = await query(env.FEED_DATABASE, `
  SELECT version() AS postgres,
         (SELECT extversion FROM pg_extension WHERE extname = 'pg_changefeed') AS pg_changefeed,
         current_setting('synchronous_commit') AS synchronous_commit, current_setting('fsync') AS fsync`);
const report = {
  benchmark: 'latency',
  started: new Date().toISOString(),
  quick: options.quick,
  unit: 'microseconds from just before the writer sends its one-statement transaction to its receipt by the client',
  machine: {
    cpus: os.cpus().length, model: os.cpus()[0].model, memory_bytes: os.totalmem(), kernel: os.release(), load_before: os.loadavg()[0],
  },
  versions: { ...about, node: process.version },
  cases: [],
};
for (const each of cases) report.cases.push(await run(each));
report.machine.load_after = os.loadavg()[0];
bridge.stdin.end();
await bridge.ended;

mkdirSync(path.dirname(options.json), { recursive: true });
writeFileSync(options.json, `${JSON.stringify(report, null, 2)}\n`);

for (const each of report.cases) {
  console.log(`\n${each.name}, ${each.subscribers} subscriber, ${each.repeats.length} repeats of ${each.repeats[0][0].samples} commits; median of the repeats (least .. most):`);
  console.log(`  ${['', 'latency p50', 'latency p99', 'commit p50', 'after commit p50'].map((title, i) => title.padEnd(i === 0 ? 14 : 33)).join('').trimEnd()}`);
  for (const name of NAMES) {
    const s = each.summary[name];
    console.log(`  ${name.padEnd(14)}${range(s.p50_us).padEnd(33)}${range(s.p99_us).padEnd(33)}${range(s.commit_p50_us).padEnd(33)}${range(s.after_commit_p50_us)}`);
  }
}
const [main] = report.cases;
console.log(`\nlatency: pg_changefeed p50 ${ms(main.summary.pg_changefeed.p50_us.median)}, p99 ${ms(main.summary.pg_changefeed.p99_us.median)}; `
  + `with a policy p50 ${ms(main.summary.with_policy.p50_us.median)}, p99 ${ms(main.summary.with_policy.p99_us.median)}; `
  + `LISTEN/NOTIFY bridge p50 ${ms(main.summary.bridge.p50_us.median)}, p99 ${ms(main.summary.bridge.p99_us.median)}; `
  + `bridge/pg_changefeed p50 ${main.ratio.p50.of_medians.toFixed(2)} (${main.ratio.p50.min.toFixed(2)} .. ${main.ratio.p50.max.toFixed(2)}), `
  + `p99 ${main.ratio.p99.of_medians.toFixed(2)} (${main.ratio.p99.min.toFixed(2)} .. ${main.ratio.p99.max.toFixed(2)}) at ${main.name}`);
