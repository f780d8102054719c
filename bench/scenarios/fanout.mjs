// One channel, many subscribers: what does a message cost for each of them?
//
// "single": CPU is that of messages which are published at the same pace with every system. Who is faster would otherwise
// find clients that are still awake, and a send() that need not wake its receiver costs the sender a third less. Messages
// per second and latency are of a second measurement, in which each message has reached everybody before the next one is
// published. "eight waiting": the process
// that holds the connections is stopped (SIGSTOP) until eight messages lie in front of it, and then continued,
// so that each client has eight messages waiting, in the same way with every system. With this project a message is a
// transaction that updates a row, and takes the way through WAL, decoder and feed worker.
//
// The bare loop sends the same number of bytes with one send() for each message and client; bare_together has one
// send() for all that is waiting. All systems and their connections are up during all of a case, and are measured
// in turns; every client's sequence is verified.

import { Load, generatorFigures } from '../lib/load.mjs';
import { sleep } from '../lib/programs.mjs';
import { Changefeed, Fleet, MESSAGING } from '../lib/systems.mjs';

export const profiles = 'load';
export const title = 'fan-out of one channel: CPU per message and client, messages per second';
export const unit = 'CPU time (user and system) in microseconds for each message that a client received; server: who holds the connections, the gateway or the peer; system: with this project also feed worker, decoder and query workers';
export const metrics = {
  server_cpu_us: 'µs', system_cpu_us: 'µs', messages_per_s: '/s', latency_p50_us: 'µs', latency_p99_us: 'µs',
  bytes_per_message: 'B', generator_share: 'cores', generator_lag_p99_us: 'µs',
};
/** Deliveries per second while CPU is measured: what all systems can do. */
const PACE = 25000;
const SYSTEMS = ['pg_changefeed', 'bare', 'bare_together', ...MESSAGING];

// messages: in one measurement, of which there are many short ones, as this machine may have others' load.
// --set connections=N,... messages=N repeats=N burst=1,8 systems=NAME,...
export function cases({ tiny, quick, arguments: given = {} }) {
  const list = (text) => text?.split(',').map(Number);
  const messages = { 10: 16, 100: 320, 1000: 48, 10000: 8 };
  const sizes = list(given.connections) ?? (tiny ? [10] : quick ? [100, 1000] : [100, 1000, 10000]);
  const systems = given.systems?.split(',') ?? SYSTEMS;
  return sizes.flatMap((connections) => (list(given.burst) ?? [1, 8]).map((burst) => ({
    name: `${connections.toLocaleString('en')} clients, ${burst === 1 ? 'single' : burst === 8 ? 'eight waiting' : `${burst} waiting`}`,
    connections,
    messages: Math.ceil(Number(given.messages ?? (messages[connections] ?? 80000 / connections) / (quick && !tiny ? 2.5 : 1)) / burst) * burst,
    burst,
    repeats: Number(given.repeats ?? (quick ? 1 : connections >= 10000 ? 3 : 7)),
    systems,
  })));
}

const isSingle = (each) => each.burst === 1;
export const ratios = [
  { name: 'gateway / bare send loop', metric: 'server_cpu_us', of: 'pg_changefeed', to: (each) => (isSingle(each) ? 'bare' : 'bare_together') },
  ...MESSAGING.flatMap((peer) => [
    { name: `gateway / ${peer}`, metric: 'server_cpu_us', of: 'pg_changefeed', to: peer },
    { name: `gateway, feed worker and decoder / ${peer}`, metric: 'system_cpu_us', of: 'pg_changefeed', to: peer },
  ]),
];
export const targets = [
  { name: 'CPU per message, gateway / one send() for each', ratio: 'gateway / bare send loop', case: isSingle, limit: 1.15 },
  { name: 'CPU per message, gateway / eight frames in one send()', ratio: 'gateway / bare send loop', case: (each) => !isSingle(each), limit: 1.3 },
  ...MESSAGING.map((peer) => ({ name: `CPU per message, gateway / ${peer}`, ratio: `gateway / ${peer}`, case: isSingle, limit: 1 })),
];

export async function setup({ keep, note }) {
  note('changefeed.max_handshake_rate = 0 and changefeed.max_connections = 60000: all clients come from one machine, at once');
  note('commits with synchronous_commit = off: what is measured comes behind the commit');
  keep.changefeed = await Changefeed.start();
  const { cluster } = keep.changefeed;
  keep.versions = (await cluster.query(`SELECT version() AS postgres,
    (SELECT extversion FROM pg_extension WHERE extname = 'pg_changefeed') AS pg_changefeed`))[0];
  // As large as ours are, all messages of the others are.
  const load = new Load();
  await load.open({ ...keep.changefeed.open });
  await load.publish({ ...keep.changefeed.publish, messages: 100 });
  const { bytes, deliveries } = await load.publish({ ...keep.changefeed.publish, messages: 20 });
  await load.quit();
  keep.size = Math.round(bytes / deliveries);
  note(`all messages have ${keep.size} bytes`);
  keep.fleet = new Fleet(keep.versions);
  keep.connections = 0;
}

export async function begin({ keep }, { connections }) {
  if (keep.connections === connections) return;
  await keep.fleet.closeAll();
  keep.connections = connections;
}

export async function measure(context, { connections, messages, burst }, name) {
  const { keep } = context;
  const options = name === 'pg_changefeed' ? { system: keep.changefeed } : { size: keep.size };
  const { system, load } = await keep.fleet.bring(name, options, { connections });
  const publish = { ...system.publish, burst, ...burst > 1 ? { hold: system.held() } : {} };
  await load.publish({ ...publish, messages: 2 * burst });
  const fast = burst > 1 ? null : await load.publish({ ...publish, messages });
  if (burst === 1) publish.rate = PACE / connections;
  const before = system.cpu();
  const result = await load.publish({ ...publish, messages });
  await sleep(5); // what is still to do behind the last send()
  const after = system.cpu();
  const per = (kind) => (after[kind] - before[kind]) / result.deliveries;
  return {
    server_cpu_us: per('server'), system_cpu_us: per('system'),
    ...name === 'pg_changefeed' ? { feed_cpu_us: per('feed'), decoder_cpu_us: per('decoder') } : {},
    // Bursts spend most of their time being held.
    ...fast === null ? {} : {
      messages_per_s: fast.deliveries / (fast.us / 1e6),
      latency_p50_us: fast.latency_us.p50, latency_p99_us: fast.latency_us.p99,
    },
    bytes_per_message: result.bytes / result.deliveries, deliveries: result.deliveries, expected: result.expected,
    ...generatorFigures(result, context, `${connections} clients, ${name}`),
  };
}

export async function teardown({ keep }) {
  await keep.fleet?.closeAll();
  await keep.changefeed?.stop();
}

export function line({ cases: all }) {
  const parts = all.map((each) => {
    const us = each.systems.pg_changefeed?.metrics?.server_cpu_us.median;
    const ratio = each.ratios.find(({ name }) => name === 'gateway / bare send loop');
    return us === undefined || ratio === undefined ? `${each.name}: not measured` : `${each.name}: gateway ${us.toFixed(2)} µs per message, ${ratio.of_medians.toFixed(2)} x the bare loop`;
  });
  return `fanout: ${parts.join('; ')}`;
}
