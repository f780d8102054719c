// node test/limits/hostile.mjs [--quick] [--set NAME=VALUE] [--out DIR]: what `make hostile` runs.
//
// A thousand good clients get twenty changes a second, with and without hostile ones, in turns. What hostile clients do
// is in test/integration/lib/attacks.mjs and, for those who do not read, in the load generator. They have a
// lower priority (nice 10), since they would not be on the server, and what they cost the server is what is looked for.
//
// Every good client's sequence is verified; nobody of them may be closed or get a resync. Memory is what belongs to the
// process alone, as the most that was seen within a measurement.
//
// p99 is compared with that of the same thousand clients without hostile ones, some seconds before or after. In between a
// machine that others use may have become several times slower; so a second feed on it, with a thousand clients of
// its own and attacked by nobody, gets changes in the same seconds. What its p99 has grown by is no work of ours; where
// an attack takes processor time of the server, that is in both.
//
// --set cases=NAME,... good=N hostile=N seconds=N repeats=N

import { execFileSync } from 'node:child_process';
import { chownSync, mkdirSync, statSync, writeFileSync } from 'node:fs';
import https from 'node:https';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import { Load } from '../../bench/lib/load.mjs';
import { memoryOfAll } from '../../bench/lib/proc.mjs';
import { ROOT, finish, sleep, start } from '../../bench/lib/programs.mjs';
import { WrongResult, runScenario } from '../../bench/lib/runner.mjs';
import { Changefeed } from '../../bench/lib/systems.mjs';
import { printTable } from '../../bench/lib/table.mjs';

const RATE = 20;
const BULK_BYTES = 32768; // of a change that those who do not read are sent
const [GOOD, BULK] = [1, 2];

// Outcomes of attacks.mjs that say: it was noticed, or it did no harm
const CASES = {
  stalled: 'read nothing, and say that they live',
  stalling: 'the same, from their first change on rather than from when they are behind',
  sipping: 'read 4 kB every two seconds',
  handshakes: ['half_open', 'silent', 'bodies', 'byte_by_byte', 'connections', 'reconnects'],
  tls: ['tls_byte_by_byte', 'silent'],
  floods: ['messages', 'pings', 'fragments', 'oversized'],
  subscriptions: ['subscriptions', 'names', 'churn'],
  tokens: ['bad_connects', 'bad_tokens'],
  bombs: ['bombs', 'packed_bodies', 'nesting', 'urls', 'headers'],
  conditions: ['regexes'],
  snapshots: ['hoarders'],
  polls: ['polls'],
};

const title = 'good clients among hostile ones';
const unit = 'latency of good clients from the commit to the client; memory of our own of each process, the most within the measurement';
const metrics = {
  p50_us: 'µs', p99_us: 'µs', max_us: 'µs', other_p99_us: 'µs', relative_p99: '', gateway_cpu: 'cores', feed_cpu: 'cores', query_cpu: 'cores', gateway_kib: 'KiB', feed_kib: 'KiB', query_kib: 'KiB', generator_share: 'cores',
};
const ratios = [
  { name: 'p99 with hostile clients / without', metric: 'p99_us', of: 'attacked', to: 'quiet' },
  { name: 'median with hostile clients / without', metric: 'p50_us', of: 'attacked', to: 'quiet' },
  { name: 'p99 of the other feed, in the same seconds', metric: 'other_p99_us', of: 'attacked', to: 'quiet' },
  { name: 'p99 relative to the other feed, with / without', metric: 'relative_p99', of: 'attacked', to: 'quiet' },
];
const targets = [
  { name: 'p99 with hostile clients / without', ratio: 'p99 with hostile clients / without', limit: 2 },
  { name: 'p99 relative to the other feed, with / without', ratio: 'p99 relative to the other feed, with / without', limit: 2 },
  { name: 'gateway, KiB', system: 'attacked', metric: 'gateway_kib', limit: 200 * 1024 },
  { name: 'feed worker, KiB', system: 'attacked', metric: 'feed_kib', limit: 256 * 1024 },
];

function cases({ quick, arguments: given = {} }) {
  return (given.cases?.split(',') ?? Object.keys(CASES)).map((name) => ({
    name, good: Number(given.good ?? (quick ? 200 : 1000)), hostile: Number(given.hostile ?? (quick ? 200 : 1000)),
    seconds: Number(given.seconds ?? (quick ? 4 : 10)), repeats: Number(given.repeats ?? (quick ? 1 : 3)), systems: ['quiet', 'attacked'],
  }));
}

async function setup({ keep, note, options }) {
  const settings = {
    'changefeed.max_handshake_rate': 1000, 'changefeed.handshake_timeout': '2s', 'changefeed.compression': 'on', 'changefeed.heartbeat': '5s',
    'changefeed.policy_timeout': '2s', 'changefeed.snapshot_space': '256MB',
  };
  keep.system = await Changefeed.start({ channels: 2, settings });
  keep.other = await Changefeed.start({ channels: 2, settings });
  const { cluster } = keep.system;
  for (const statement of [
    'CREATE TABLE hostile_ticks (id int PRIMARY KEY, n text)', "SELECT changefeed.create_channel('hostile_ticks', 'hostile_ticks')",
    'CREATE TABLE hostile_names (id int PRIMARY KEY)', "SELECT changefeed.create_channel('hostile_names:{id}', 'hostile_names')",
    'CREATE TABLE hostile_texts (id int PRIMARY KEY, body text)', "SELECT changefeed.create_channel('hostile_texts', 'hostile_texts')",
    "CREATE TABLE hostile_large AS SELECT i AS id, repeat('x', 500) AS pad FROM generate_series(1, 20000) i",
    'ALTER TABLE hostile_large ADD PRIMARY KEY (id)', "SELECT changefeed.create_channel('hostile_large', 'hostile_large')",
    'GRANT SELECT ON ALL TABLES IN SCHEMA public TO bench_reader',
  ]) await cluster.query(statement);
  keep.versions = (await cluster.query('SELECT version() AS postgres'))[0];
  note('a heartbeat of 5 s, handshakes within 2 s, policy_timeout 2 s and snapshot_space 256 MB, so that limits are reached within a measurement');
  keep.good = new Load();
  keep.bulk = new Load({ nice: 10 });
  const good = cases(options)[0].good;
  await keep.good.open({ ...keep.system.open, connections: good, first: GOOD });
  keep.others = new Load();
  await keep.others.open({ ...keep.other.open, connections: good, first: GOOD });
  keep.outcomes = {};
}

function attack(keep, names, seconds) {
  const file = fileURLToPath(new URL('../integration/lib/attacks.mjs', import.meta.url));
  const child = start('nice', ['-n', '10', process.execPath, file, names.join(','), String(seconds), String(keep.system.cluster.feedPort), keep.system.token]);
  let out = '';
  child.stdout.on('data', (data) => { out += data; });
  return { child, done: finish(child, 'the attack').then(() => JSON.parse(out)) };
}

const behind = async (cluster) => Number((await cluster.query('SELECT sum(behind) AS n FROM changefeed.stat_gateways'))[0].n);

/** From now on, or no more, new connections have to speak TLS; those that are there stay as they are. */
async function speakTls({ cluster }, on) {
  const [cert, key] = ['crt', 'key'].map((end) => path.join(cluster.data, `hostile.${end}`));
  if (on) {
    execFileSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-keyout', key, '-out', cert, '-subj', '/CN=localhost'], { stdio: 'ignore' });
    const { uid, gid } = statSync(cluster.data);
    for (const file of [cert, key]) chownSync(file, uid, gid);
  }
  for (const [name, value] of [['cert', cert], ['key', key]]) await cluster.query(`ALTER SYSTEM ${on ? 'SET' : 'RESET'} changefeed.tls_${name}_file ${on ? `= '${value}'` : ''}`);
  await cluster.query('SELECT pg_reload_conf()');
  while (await handshake(cluster.feedPort) !== on) await sleep(50);
}

/** Is a request over TLS answered? */
const handshake = (port) => new Promise((resolve) => {
  https.get({ host: '127.0.0.1', port, path: '/nowhere', rejectUnauthorized: false, agent: false, timeout: 5000 }, (answer) => {
    answer.resume();
    resolve(answer.statusCode === 404);
  }).on('timeout', function timeout() { this.destroy(); }).on('error', () => resolve(false));
});

async function measure({ keep }, { name, hostile, seconds }, system) {
  const attacked = system === 'attacked';
  const readers = ['stalled', 'stalling', 'sipping'].includes(name);
  const { cluster } = keep.system;
  const files = () => cluster.processes();
  const most = { gateway: 0, feed: 0, query: 0 };
  let watching = true;
  let attackers = null;
  const wereBehind = readers ? await behind(cluster) : 0;
  if (attacked && readers) {
    await keep.bulk.open({ ...keep.system.open, group: name, connections: hostile, first: BULK, stalls: true, sip: name === 'sipping' ? 4096 : 0, sources: 4 });
  }
  // The same is written without them.
  let bulk = null;
  const writer = readers ? new Load({ nice: 10 }) : null;
  if (readers) bulk = writer.publish({ ...keep.system.publish, size: BULK_BYTES, first: BULK, rate: RATE, messages: RATE * 3600, await: false, timeout_ms: 600_000 });
  if (name === 'tls') await speakTls(keep.system, true);
  if (attacked && !readers) attackers = attack(keep, CASES[name], seconds + 3);
  const changes = name === 'conditions' ? (async () => {
    while (watching) {
      await cluster.query(`INSERT INTO hostile_texts VALUES (1, (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 20) i))
        ON CONFLICT (id) DO UPDATE SET body = hostile_texts.body || 'x'`);
      await sleep(250);
    }
    await cluster.query('TRUNCATE hostile_texts');
  })() : null;
  if (name !== 'stalling') await sleep(1000);
  // Until they are behind they are clients like others, and cost what those cost.
  while (attacked && readers && name !== 'stalling' && await behind(cluster) < wereBehind + hostile) await sleep(100);
  const others = { served: 0, failed: 0 };
  const guest = name === 'tls' ? (async () => {
    while (watching) {
      others[await handshake(cluster.feedPort) ? 'served' : 'failed'] += 1;
      await sleep(50);
    }
  })() : null;
  const watch = (async () => {
    while (watching) {
      const now = files();
      for (const kind of Object.keys(most)) {
        try {
          most[kind] = Math.max(most[kind], memoryOfAll(now[kind]).private_kib ?? 0);
        } catch { /* it has ended meanwhile */ }
      }
      await sleep(250);
    }
  })();
  const gateways = files().gateway.join();
  const began = performance.now();
  const cpu = cluster.cpu();
  const [result, other] = await Promise.all([[keep.good, keep.system], [keep.others, keep.other]]
    .map(([load, system]) => load.publish({ ...system.publish, first: GOOD, rate: RATE, messages: RATE * seconds })));
  const spent = cluster.cpu();
  const cores = (kind) => (spent[kind] - cpu[kind]) / 1000 / (performance.now() - began);
  const [gateway_cpu, feed_cpu, query_cpu] = ['gateway', 'feed', 'query'].map(cores);
  watching = false;
  await watch;
  await changes;
  await guest;
  const outcomes = attackers === null ? null : await attackers.done;
  if (name === 'tls') {
    await speakTls(keep.system, false);
    if (others.served === 0) throw new WrongResult('tls: no handshake of a good client was answered');
  }
  if (name === 'tls' && attacked) {
    // Nobody was let in, and whoever was not done in time is gone long before the end.
    for (const [what, of] of Object.entries(outcomes)) if (Object.keys(of).some((outcome) => !['dropped', '408'].includes(outcome))) throw new WrongResult(`tls: ${what}: ${JSON.stringify(of)}`);
    outcomes.others = others;
  }
  if (bulk !== null) {
    writer.finish();
    await bulk;
    await writer.quit();
  }
  if (attacked && readers) {
    const { lost } = await keep.bulk.close(name);
    keep.outcomes[name] = { lost };
  } else if (attacked) keep.outcomes[name] = outcomes;
  if (files().gateway.join() !== gateways) throw new WrongResult(`${name}: the gateway is another one`);
  return {
    p50_us: result.latency_us.p50, p99_us: result.latency_us.p99, max_us: result.latency_us.max, other_p99_us: other.latency_us.p99, relative_p99: result.latency_us.p99 / other.latency_us.p99, deliveries: result.deliveries, expected: result.expected,
    gateway_cpu, feed_cpu, query_cpu, gateway_kib: most.gateway, feed_kib: most.feed, query_kib: most.query, generator_share: result.generator.share,
    ...attacked ? { outcomes: keep.outcomes[name] } : {},
  };
}

async function teardown({ keep }) {
  await keep.good?.quit();
  await keep.others?.quit();
  await keep.bulk?.quit();
  await keep.system?.stop();
  await keep.other?.stop();
}

async function main() {
  const options = { quick: false, tiny: false, out: path.join(ROOT, 'build'), arguments: {} };
  for (let i = 2; i < process.argv.length; i += 1) {
    if (process.argv[i] === '--quick') options.quick = true;
    else if (process.argv[i] === '--out') options.out = path.resolve(process.argv[i += 1]);
    else if (process.argv[i] === '--set') {
      const [key, ...rest] = process.argv[i += 1].split('=');
      options.arguments[key] = rest.join('=');
    } else throw new Error(`unknown argument ${process.argv[i]}`);
  }
  const result = await runScenario('hostile', { unit, title, metrics, ratios, targets, cases, setup, measure, teardown }, options);
  mkdirSync(options.out, { recursive: true });
  writeFileSync(path.join(options.out, 'hostile.json'), `${JSON.stringify(result, null, 2)}\n`);
  printTable(result);
  for (const each of result.cases) {
    for (const target of each.targets) console.log(`  ${target.met ? 'met   ' : 'MISSED'} ${each.name}: ${target.name}: ${target.measured === null ? '-' : Number(target.measured.toPrecision(3))} (at most ${target.at_most})`);
    const last = each.measurements.at(-1).attacked;
    if (last?.outcomes !== undefined) console.log(`  ${each.name}: ${JSON.stringify(last.outcomes)}`);
  }
  for (const { case: each, message } of result.wrong) console.log(`WRONG: ${each}: ${message}`);
  process.exitCode = result.wrong.length > 0 ? 1 : 0;
}

await main();
