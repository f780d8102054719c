// All clients come back within a second: how long until all are ready, and what do those feel who were not gone?
//
// The storm's clients close their connections (as a proxy or network that fails does it for them) and come back, with the
// position that they have seen, or without one, for a snapshot. One change is committed while they are away. 100 other
// subscribers of another channel get a message every 10 ms, before the storm and during it; they have a load generator of their
// own, and that of the storm runs with a lower priority (nice 4), since its clients would not be on the server. In the third case
// the gateway is killed, and everybody comes back as soon as he notices.
//
// Every client's sequence is verified, through the storm and after it.
//
// --set clients=N repeats=N kinds=position,snapshot,killed systems=NAME,... users=1 (all have the same token)

import { readFileSync } from 'node:fs';
import path from 'node:path';

import { Load, generatorFigures } from '../lib/load.mjs';
import { cpuOf } from '../lib/proc.mjs';
import { scratch, sleep } from '../lib/programs.mjs';
import { Unavailable, WrongResult } from '../lib/runner.mjs';
import { quantile } from '../lib/stats.mjs';
import { MESSAGING, startSystem } from '../lib/systems.mjs';

export const profiles = 'load';
export const title = 'reconnect storm: time until all clients are ready, and latency of others meanwhile';
export const unit = 'seconds from the moment at which the storm begins; CPU time of the server (who holds the connections) and the system (with feed worker and query workers) during it';
export const metrics = {
  ready_s: 's', live_p99_before_us: 'µs', live_p99_during_us: 'µs', live_p99_times: 'times', server_cpu_s: 's', system_cpu_s: 's',
  generator_share: 'cores',
};
const SPREAD_MS = 1000;
const LIVE = { connections: 100, rate: 100 };
const [STORM_CHANNEL, LIVE_CHANNEL] = [1, 2];

export function cases({ tiny, quick, arguments: given = {} }) {
  const [otherwise, repeats] = tiny ? [50, 1] : quick ? [2000, 1] : [10000, 3];
  const clients = Number(given.clients ?? otherwise);
  const titles = { position: 'from a position', snapshot: 'with snapshots', killed: 'gateway killed' };
  return (given.kinds?.split(',') ?? (quick && !tiny ? ['position'] : Object.keys(titles))).map((kind) => ({
    name: `${clients.toLocaleString('en')} clients, ${titles[kind]}`, kind, clients, users: Number(given.users ?? clients), repeats: Number(given.repeats ?? repeats),
    systems: kind === 'position' ? given.systems?.split(',') ?? ['pg_changefeed', 'bare', ...MESSAGING] : ['pg_changefeed'],
  }));
}

const isPosition = (each) => each.kind === 'position';
export const ratios = MESSAGING.map((peer) => ({ name: `time until all are ready, this project / ${peer}`, metric: 'ready_s', of: 'pg_changefeed', to: peer, cases: isPosition }));
export const targets = [
  { name: 'seconds until all are ready', system: 'pg_changefeed', metric: 'ready_s', case: isPosition, limit: 10 },
  { name: 'p99 of others during it / before', system: 'pg_changefeed', metric: 'live_p99_times', case: isPosition, limit: 5 },
];

export async function setup({ keep, note }) {
  note('changefeed.max_handshake_rate = 0 (its default would let 10000 come at once, and then 1000 per second) and changefeed.max_connections = 60000');
  note('peers have no position to come back from: they subscribe anew, and what was published meanwhile is lost to their clients');
  keep.versions = {};
}

// What the live subscribers saw of messages that were sent within a time
function samplesOf(file, from, to) {
  return readFileSync(file, 'utf8').trim().split('\n').map((line) => line.split(' ').map(Number))
    .filter(([sent]) => sent >= from && sent < to).map(([, latency]) => latency);
}

const nowUs = () => (performance.timeOrigin + performance.now()) * 1000;

export async function measure(context, { kind, clients, users }, name) {
  const system = await startSystem(name, { channels: 2 });
  const ours = name === 'pg_changefeed';
  const { tiny } = context.options;
  if (system.version !== undefined) context.keep.versions[name] = system.version;
  const storm = new Load({ nice: 4 });
  const live = new Load();
  const publisher = new Load();
  try {
    const tokens = ours ? { tokens: await system.tokens(users) } : {};
    await storm.open({ ...system.open, ...tokens, connections: clients, first: STORM_CHANNEL, positions: ours && kind !== 'snapshot' });
    const toStorm = { ...system.publish, first: STORM_CHANNEL };
    const toLive = { ...system.publish, first: LIVE_CHANNEL, rate: LIVE.rate };
    await storm.publish({ ...toStorm, messages: 3 });

    const figures = {};
    const file = path.join(scratch, `live-${process.pid}`);
    let publishing = null;
    let began;
    const hasLive = kind !== 'killed';
    if (hasLive) {
      await live.open({ ...system.open, connections: LIVE.connections, first: LIVE_CHANNEL });
      await live.publish({ ...toLive, messages: tiny ? 5 : LIVE.rate }); // to warm up
      await live.samples();
      began = nowUs();
      publishing = live.publish({ ...toLive, messages: 1e6 });
      await sleep(tiny ? 200 : 3000);
    }

    const gateways = ours ? system.cluster.processes().gateway : [];
    const before = system.cpu();
    const stormCpu = cpuOf(storm.pid);
    const from = nowUs();
    const back = storm.reopen({ how: kind === 'killed' ? 'lost' : 'drop', from: ours && kind !== 'snapshot', spread_ms: kind === 'killed' ? 0 : tiny ? 50 : SPREAD_MS });
    back.catch(() => {});
    if (kind === 'killed') for (const pid of gateways) process.kill(pid, 'SIGKILL');
    // Numbers of peers are the publishers' own: only ours are in the server, and go on from anywhere.
    if (ours) await publisher.publish({ ...toStorm, messages: 1, await: false });
    const opened = await back;
    const to = nowUs();
    const after = system.cpu();
    figures.ready_s = (to - from) / 1e6;
    figures.generator_share = (cpuOf(storm.pid) - stormCpu) / (to - from);
    // With a killed gateway its CPU time is that of the new one.
    const killed = kind === 'killed' ? before.server : 0;
    figures.server_cpu_s = (after.server - before.server + killed) / 1e6;
    figures.system_cpu_s = (after.system - before.system + killed) / 1e6;
    Object.assign(figures, { retries: opened.retries, recovered: opened.recovered, resyncs: opened.resyncs, snapshots: opened.snapshots });
    if (hasLive) {
      live.finish();
      const published = await publishing;
      await live.samples(file);
      const [quiet, loud] = [samplesOf(file, began, from), samplesOf(file, from, to)];
      figures.live_p99_before_us = quantile(quiet, 0.99);
      figures.live_p99_during_us = quantile(loud, 0.99);
      figures.live_p99_times = figures.live_p99_during_us / figures.live_p99_before_us;
      figures.live_samples = loud.length;
      figures.live_generator = generatorFigures(published, context, `${name}, live subscribers`);
    }
    if (ours && kind !== 'snapshot' && opened.recovered !== clients) {
      throw new WrongResult(`${clients} clients came back with a position, ${opened.recovered} could go on from it`);
    }
    const { deliveries, expected } = await storm.publish({ ...toStorm, messages: 3 });
    await Promise.all([storm, live, publisher].map((load) => load.quit()));
    return { ...figures, deliveries, expected };
  } catch (error) {
    await Promise.all([storm, live, publisher].map((load) => load.quit().catch(() => {}))); // it was thrown already
    if (ours || error instanceof Unavailable) throw error;
    throw new Unavailable(`${clients} clients cannot come back: ${error.message}`);
  } finally {
    await system.stop();
  }
}

export function line({ cases: all }) {
  return `storm: ${all.map((each) => {
    const ours = each.systems.pg_changefeed?.metrics;
    if (ours === undefined) return `${each.name}: not measured`;
    const times = ours.live_p99_times === undefined ? '' : `, p99 of others ${ours.live_p99_times.median.toFixed(1)} x`;
    return `${each.name}: ready within ${ours.ready_s.median.toFixed(2)} s${times}`;
  }).join('; ')}`;
}
