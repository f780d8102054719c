// The fault campaign: the world of the convergence test, more clients, and one
// fault after the other. See doc/reliability.md.
//
// Environment: SEED, SECONDS (3600), CLIENTS (200), WRITERS (4), PAUSE (ms between
// the transactions of a writer, 200), FAULTS (names, with commas; otherwise all),
// ROUNDS (as many and no more), INJECT (see test/convergence/inject.mjs).
// Exit status: 0 nothing was wrong; 1 something was; 3 a cache was wrong.

import { setTimeout as sleep } from 'node:timers/promises';

import { PollListener, StreamListener } from './http_clients.mjs';
import { FAULTS } from './faults.mjs';
import { acceptsSince, alarms, Health, Log, processes } from './health.mjs';
import { Proxy } from './proxy.mjs';
import { Campaign } from './report.mjs';
import { Witnesses } from './witnesses.mjs';
import { Difference } from '../convergence/checker.mjs';
import { TEMPORARY } from '../convergence/clients.mjs';
import { injector } from '../convergence/inject.mjs';
import { Stage } from '../convergence/stage.mjs';
import { Random } from '../convergence/values.mjs';
import { until, within } from '../integration/lib/client.mjs';

const env = (name, value) => Number(process.env[name] ?? value);
const SEED = env('SEED', Date.now() % 1000000007);
const SECONDS = Number(process.env.SECONDS_TO_RUN || process.env.SECONDS || 3600);
const CLIENTS = env('CLIENTS', 200);
const WRITERS = env('WRITERS', 4);
const ROUNDS = env('ROUNDS', Infinity);
const PATIENCE_MS = 240000;
const CONNECT_MS = 40000; // a machine that is busy otherwise must not make clients give up all the time

// What clients are like, by number.
const HABITS = [
  { rest: [2000, 10000] }, // fast: reads at once, does little
  { rest: [1000, 5000], actions: { slow: 10, sync: 1, subscribe: 2, unsubscribe: 1 } }, // slow
  { rest: [3000, 15000], slow: [5000, 25000], actions: { slow: 10, sync: 1 } }, // stalls
  { rest: [1000, 8000], actions: { cut: 10, again: 2, revoke: 0.5 } }, // leaves and comes back
  { rest: [2000, 10000] },
];

/** Every kind once, in any order, again and again. */
function* deck(random, names) {
  for (;;) yield* random.sample(names, names.length);
}

function possible() {
  const names = process.env.FAULTS ? process.env.FAULTS.split(',') : Object.keys(FAULTS);
  const skipped = {};
  for (const name of names) {
    if (!FAULTS[name]) throw new Error(`there is no fault "${name}": ${Object.keys(FAULTS).join(', ')}`);
    const reason = FAULTS[name].impossible?.();
    if (reason) skipped[name] = reason;
  }
  return { names: names.filter((name) => !(name in skipped)), skipped };
}

async function main() {
  const random = new Random(SEED, 'chaos');
  const campaign = new Campaign(SEED);
  const { names, skipped } = possible();
  Object.assign(campaign, { skipped, clients: CLIENTS });
  for (const [name, reason] of Object.entries(skipped)) console.log(`left out: ${name}: ${reason}`);

  // Nobody's fault: what a client is told while there is no memory, no disk, no descriptor, no worker.
  for (const code of ['53000', '53100', '53300', '58030', '57P01', '57P02', '57P03', '40001']) TEMPORARY.add(code);

  const proxy = await new Proxy().start(() => {
    const { hostname, port } = new URL(process.env.HTTP_URL);
    return { host: hostname, port: Number(port) };
  });
  const stage = new Stage({
    seed: SEED, report: campaign.convergence, clients: CLIENTS, writers: WRITERS, pause: env('PAUSE', 200), ddlPause: 4000,
    fleet: {
      habits: (i) => HABITS[i % HABITS.length],
      // Half of them behind a network that fails.
      connection: ({ index }) => ({ ms: CONNECT_MS, ...(index % 2 === 0 && { url: proxy.url }) }),
      member: (fleet, i, identity) => (i % 20 === 7 ? new StreamListener(fleet, i, identity) : i % 20 === 13 ? new PollListener(fleet, i, identity) : null),
    },
  });
  const witnesses = new Witnesses();
  const health = new Health();
  const log = new Log();
  console.log(`SEED=${SEED} SECONDS=${SECONDS} CLIENTS=${CLIENTS} WRITERS=${WRITERS}: ${stage.describe()}, ${names.length} kinds of faults`);
  await stage.prepare();
  await witnesses.prepare((i) => (i % 2 === 0 ? proxy.url : undefined));
  stage.fleet.tamper = injector(process.env.INJECT);
  for (const writer of witnesses.writers) stage.add(writer);
  stage.start();

  /** While somebody waits for something, what comes in is judged. Nothing may hang. */
  async function watching(promise, what = 'a pause') {
    let done = false;
    const result = within(2 * PATIENCE_MS, promise, what).finally(() => { done = true; });
    result.catch(() => {});
    while (!done) {
      stage.look();
      await sleep(20);
    }
    return result;
  }

  async function apply(name, number) {
    const fault = FAULTS[name];
    const from = log.size;
    const began = Date.now();
    // One that does not come about, since of another one what it needs is not there, ends nothing: all is checked nonetheless.
    let failed = false;
    const at = await Promise.resolve().then(() => fault.apply({ random: new Random(SEED, `${number} ${name}`), proxy, log, processes, token: witnesses.token })).catch((error) => {
      if (error instanceof Difference) throw error;
      failed = true;
      campaign.notApplied(name, error);
      return Date.now();
    });
    return { name, fault: failed ? { expected: fault.expected } : fault, from, at, took: Date.now() - began };
  }

  async function round(number, kinds) {
    const start = log.size;
    const phases = [Date.now()];
    const phase = () => phases.push(Date.now());
    await watching(sleep(random.between(500, 2000)));
    // Two at a time: the second one somewhere in the middle of the first.
    const applied = await watching(Promise.all(kinds.map(async (name, i) => {
      if (i > 0) await sleep(random.int(1500));
      return apply(name, number);
    })), 'the faults');
    phase();
    const from = Math.max(...applied.map(({ at }) => at));
    const away = Math.max(...applied.filter(({ fault }) => fault.away).map(({ at }) => at), 0);
    const times = await watching(witnesses.recovered(from, away, PATIENCE_MS), 'recovery');
    await watching(sleep(random.between(200, 1000)));
    phase();
    await watching(stage.quietPoint(), 'a quiet point');
    phase();
    await watching(witnesses.check(), 'comparison of the witnesses');
    phase();
    // What is wrong with the server, but with no cache, does not keep the campaign from going on.
    const problems = [];
    const clients = proxy.connections + stage.fleet.members.filter(({ client }) => client && !client.closed).length + witnesses.probes.length;
    await watching(health.check(clients), 'a look at the processes').catch((error) => problems.push(error.message));
    // Of two at a time one may take away what the other one would say.
    const spoken = applied.filter(({ fault }) => fault.says);
    if (spoken.length > 0 && spoken.length === applied.length) {
      await until(() => spoken.some(({ fault, from: offset }) => fault.says.test(log.since(offset))), `the log says something of it: ${spoken.map(({ fault }) => fault.says)}`, 10000)
        .catch((error) => problems.push(error.message));
    }
    const strange = alarms(log.since(start), applied.flatMap(({ fault }) => fault.expected ?? []));
    if (strange.length > 0) problems.push(`the log has what it should not have: ${strange.slice(0, 10).join('; ')}`);
    for (const problem of problems) campaign.problem(problem);
    phase();
    const accepted = away > 0 ? acceptsSince(log.since(start)) : null;
    campaign.round({ phases: phases.slice(1).map((at, i) => at - phases[i]), number, applied, from, accepted, times, sample: health.now });
    stage.resume();
  }

  // Whoever does not want to wait for the end gets the report of what was.
  let stopped = false;
  for (const signal of ['SIGINT', 'SIGTERM']) {
    process.once(signal, () => {
      stopped = true;
      console.log(`${signal}: ends behind ${campaign.current}`);
    });
  }
  let number = 0;
  const cards = deck(random, names);
  let error = null;
  try {
    await witnesses.recovered(Date.now(), 0, PATIENCE_MS);
    while (!stopped && Date.now() - stage.started < SECONDS * 1000 && number < ROUNDS) {
      number += 1;
      const kinds = [cards.next().value];
      if (!FAULTS[kinds[0]].alone && random.chance(0.25)) {
        const other = random.pick(names.filter((name) => name !== kinds[0] && !FAULTS[name].alone));
        if (other) kinds.push(other);
      }
      campaign.current = `round ${number}: ${kinds.join(' + ')}`;
      await round(number, kinds);
    }
    await stage.stop();
    await witnesses.stop();
  } catch (e) {
    console.log(`failed in ${campaign.current}`);
    error = await stage.explain(e);
  } finally {
    stage.finish();
    campaign.finish({ stage, witnesses, seconds: (Date.now() - stage.started) / 1000, error });
  }
  if (error) throw error;
  if (campaign.problems.length > 0) throw new Error(`${campaign.problems.length} problems: ${campaign.problems[0]}`);
  await stage.close();
  proxy.close();
}

await main().then(() => {
  console.log(`ok - chaos, SEED=${SEED}: no cache was wrong, nothing was lost, everything came back`);
  process.exit(0);
}, (error) => {
  console.log(`not ok - chaos, SEED=${SEED}: ${error instanceof Difference ? `DIFFERENCE ${error.message}` : `failed: ${error.stack}`}`);
  console.log(`again with: SEED=${SEED} SECONDS=${SECONDS} CLIENTS=${CLIENTS} test/chaos/run`);
  process.exit(error instanceof Difference ? 3 : 1);
});
