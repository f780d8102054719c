// CPU while nothing happens: subscribers are connected, nobody publishes.
//
// All systems are up at the same time and are looked at over the same minute, since none of them disturbs the others by
// doing nothing. Heartbeats are part of it, each system's as it is configured.
//
// --set connections=N seconds=N systems=NAME,...

import { sleep } from '../lib/programs.mjs';
import { Fleet, MESSAGING } from '../lib/systems.mjs';

export const title = 'CPU while idle';
export const unit = 'CPU time in milliseconds per second; server: who holds the connections; system: with this project also feed worker, decoder, query workers and launcher';
export const metrics = { server_ms_per_s: 'ms/s', system_ms_per_s: 'ms/s' };
const SYSTEMS = ['pg_changefeed', 'bare', ...MESSAGING];

export function cases({ tiny, quick, arguments: given = {} }) {
  const [connections, seconds] = tiny ? [20, 1] : quick ? [1000, 5] : [1000, 60];
  const [count, time] = [Number(given.connections ?? connections), Number(given.seconds ?? seconds)];
  return [{ name: `${count.toLocaleString('en')} connections, ${time} s`, connections: count, seconds: time, repeats: 1, systems: given.systems?.split(',') ?? SYSTEMS }];
}

export const ratios = MESSAGING.map((peer) => ({ name: `all of this project / ${peer}`, metric: 'system_ms_per_s', of: 'pg_changefeed', to: peer }));

export async function setup({ keep, note }) {
  note("heartbeats: this project's every 25 s (changefeed.heartbeat), NATS' every 2 minutes, none of the others by default");
  note('one observation of all systems at the same time, no repeats');
  keep.versions = {};
  keep.fleet = new Fleet(keep.versions);
}

async function observe(context, { connections, seconds, systems }) {
  const { fleet } = context.keep;
  const found = new Map();
  for (const name of systems) {
    try {
      const { system, load } = await fleet.bring(name, {}, { connections });
      await load.publish({ ...system.publish, messages: 10 });
      found.set(name, { system });
    } catch (error) {
      found.set(name, { error });
    }
  }
  await sleep(context.options.tiny ? 100 : 2000);
  const up = [...found.values()].filter(({ system }) => system !== undefined);
  for (const each of up) each.before = each.system.cpu();
  const began = performance.now();
  await sleep(seconds * 1000);
  const elapsed = performance.now() - began;
  for (const each of up) {
    const now = each.system.cpu();
    const per = (kind) => (now[kind] - each.before[kind]) / elapsed;
    each.figures = {
      server_ms_per_s: per('server'), system_ms_per_s: per('system') + (now.launcher === undefined ? 0 : per('launcher')),
      ...now.feed === undefined ? {} : { feed_ms_per_s: per('feed'), decoder_ms_per_s: per('decoder'), query_ms_per_s: per('query'), launcher_ms_per_s: per('launcher') },
    };
  }
  return found;
}

export async function measure(context, each, name) {
  context.keep.observed ??= await observe(context, each);
  const { error, figures } = context.keep.observed.get(name);
  if (error !== undefined) throw error;
  return figures;
}

export async function teardown({ keep }) {
  await keep.fleet?.closeAll();
}

export function line({ cases: [each] }) {
  const ours = each.systems.pg_changefeed?.metrics;
  return ours === undefined ? 'idle: not measured'
    : `idle: ${each.name}: gateway ${ours.server_ms_per_s.median.toFixed(3)} ms/s, all processes ${ours.system_ms_per_s.median.toFixed(3)} ms/s`;
}
