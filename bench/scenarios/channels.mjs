// Ten thousand channels of one template with one subscriber each, updated at random: what does a message cost
// when it is for one client only?
//
// Here nothing is shared between clients: per message all of WAL, decoder, feed worker and gateway are paid for one
// delivery. With this project each message is a committed transaction, and the writer's backend is not counted;
// what the peers publish is in no table.
//
// --set channels=N messages=N repeats=N systems=NAME,...

import { generatorFigures } from '../lib/load.mjs';
import { sleep } from '../lib/programs.mjs';
import { Fleet, MESSAGING } from '../lib/systems.mjs';

export const profiles = 'load';
export const title = 'many channels with one subscriber each, random updates';
export const unit = 'CPU time (user and system) in microseconds for each message that was published, and received by one client; server: who holds the connections; system: with this project also feed worker, decoder and query workers';
export const metrics = {
  server_cpu_us: 'µs', system_cpu_us: 'µs', messages_per_s: '/s', latency_p50_us: 'µs', latency_p99_us: 'µs',
  generator_share: 'cores', generator_lag_p99_us: 'µs',
};
const SYSTEMS = ['pg_changefeed', 'bare', ...MESSAGING];
const WINDOW = 32; // messages on their way at a time

export function cases({ tiny, quick, arguments: given = {} }) {
  const [channels, messages, repeats] = tiny ? [20, 100, 2] : quick ? [1000, 1000, 1] : [10000, 4000, 5];
  const count = Number(given.channels ?? channels);
  return [{
    name: `${count.toLocaleString('en')} channels`, channels: count, messages: Number(given.messages ?? messages), window: WINDOW,
    repeats: Number(given.repeats ?? repeats), systems: given.systems?.split(',') ?? SYSTEMS,
  }];
}

export const ratios = MESSAGING.concat('bare').flatMap((peer) => [
  { name: `gateway / ${peer}`, metric: 'server_cpu_us', of: 'pg_changefeed', to: peer },
  { name: `messages per second, this project / ${peer}`, metric: 'messages_per_s', of: 'pg_changefeed', to: peer },
]);

export async function setup({ keep, note }) {
  note('changefeed.max_handshake_rate = 0 and changefeed.max_connections = 60000: all clients come from one machine, at once');
  note('commits with synchronous_commit = off');
  keep.versions = {};
  keep.fleet = new Fleet(keep.versions);
}

export async function measure(context, { channels, messages, window }, name) {
  const up = await context.keep.fleet.bring(name, { channels, size: 340 }, { connections: channels, channels });
  up.seed ??= 1;
  const { system, load } = up;
  const publish = { ...system.publish, channels, order: 'random', window };
  await load.publish({ ...publish, messages: Math.ceil(messages / 10), seed: up.seed += 1 });
  const before = system.cpu();
  const result = await load.publish({ ...publish, messages, seed: up.seed += 1 });
  await sleep(5); // what is still to do behind the last send()
  const after = system.cpu();
  const per = (kind) => (after[kind] - before[kind]) / result.deliveries;
  return {
    server_cpu_us: per('server'), system_cpu_us: per('system'),
    ...name === 'pg_changefeed' ? { feed_cpu_us: per('feed'), decoder_cpu_us: per('decoder') } : {},
    messages_per_s: result.deliveries / (result.us / 1e6),
    latency_p50_us: result.latency_us.p50, latency_p99_us: result.latency_us.p99,
    deliveries: result.deliveries, expected: result.expected,
    ...generatorFigures(result, context, name),
  };
}

export async function teardown({ keep }) {
  await keep.fleet?.closeAll();
}

export function line({ cases: [each] }) {
  const ours = each.systems.pg_changefeed?.metrics;
  if (ours === undefined) return 'channels: not measured';
  return `channels: ${each.name}: ${Math.round(ours.messages_per_s.median)} messages/s, p50 ${(ours.latency_p50_us.median / 1000).toFixed(2)} ms, gateway ${ours.server_cpu_us.median.toFixed(1)} µs and all ${ours.system_cpu_us.median.toFixed(1)} µs of CPU per message`;
}
