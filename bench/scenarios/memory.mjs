// Memory of idle connections and of subscriptions, in the process that holds the connections and, with this
// project, in the feed worker.
//
// Each figure is the growth of a fresh server between no connection and all of them, each with one subscription, once
// they have settled. What a connection takes in the kernel (its socket) is not in it. The proportional share (PSS)
// counts what processes share in parts; private is what belongs to the process alone. For the cost of a
// subscription, connections have eleven in place of one. All connections have the same token, but for the case
// that says otherwise.
//
// --set connections=N,... repeats=N systems=NAME,...

import { execFileSync } from 'node:child_process';

import { Load } from '../lib/load.mjs';
import { sleep } from '../lib/programs.mjs';
import { Unavailable } from '../lib/runner.mjs';
import { MESSAGING, startSystem } from '../lib/systems.mjs';

export const title = 'memory for each idle connection with one subscription, and for each further subscription';
export const unit = 'KiB of growth for each connection, or for each subscription; server: who holds the connections, the gateway or the peer';
export const metrics = {
  server_private_kib: 'KiB', server_pss_kib: 'KiB', feed_private_kib: 'KiB', feed_pss_kib: 'KiB',
  server_subscription_kib: 'KiB', feed_subscription_kib: 'KiB', server_empty_kib: 'KiB',
};
const SYSTEMS = ['pg_changefeed', 'bare', ...MESSAGING];
const WISHED = 50000;
const MORE = 10; // subscriptions
const PER_LOAD = 10000; // connections that a load generator holds

// Looks at memory that does not change. The feed worker gives back what many arrivals have taken for a while, but not
// before two seconds without any; what was made for the first connection shall not be given back before others come.
const QUIET = 12;

// A process has its two ends of a connection in different processes; some descriptors are for other things.
// The gateway keeps some 5,000 for handshakes, files of snapshots, and refusals.
const descriptors = () => Number(execFileSync('sh', ['-c', 'ulimit -n'], { encoding: 'utf8' }).replace('unlimited', '1000000')) - 5300;

export function cases({ tiny, quick, arguments: given = {} }) {
  const sizes = tiny ? [[50, 1]] : quick ? [[1000, 1]] : [[1000, 2], [10000, 2], [Math.min(WISHED, descriptors()), 1]];
  const systems = given.systems?.split(',') ?? SYSTEMS;
  const wished = given.connections?.split(',').map((n) => [Number(n), 1]) ?? sizes;
  const all = wished.map(([connections, repeats]) => ({
    name: `${connections.toLocaleString('en')} connections`, connections, subscriptions: 1, repeats: Number(given.repeats ?? repeats), systems,
  }));
  if (given.connections !== undefined || (quick && !tiny)) return all;
  if (!tiny) all.push({ name: '10,000 connections of as many users', connections: 10000, subscriptions: 1, users: true, repeats: 1, systems: ['pg_changefeed'] });
  const [many, repeats] = tiny ? [20, 1] : [1000, 1];
  // Subscriptions of the other servers have no end that could be compared: a path is one channel.
  all.push({ name: `${many.toLocaleString('en')} connections, ${MORE} more subscriptions`, connections: many, subscriptions: MORE + 1, repeats, systems: systems.filter((name) => ['pg_changefeed', 'nats', 'mosquitto'].includes(name)) });
  return all;
}

export const ratios = MESSAGING.concat('bare').map((peer) => ({ name: `gateway / ${peer}`, metric: 'server_private_kib', of: 'pg_changefeed', to: peer }));
const counts = (each) => each.subscriptions === 1 && each.users === undefined && each.connections >= 1000;
export const targets = [
  { name: 'gateway, KiB per connection', system: 'pg_changefeed', metric: 'server_private_kib', case: counts, limit: 3 },
  { name: 'feed worker, KiB per connection with one subscription', system: 'pg_changefeed', metric: 'feed_private_kib', case: counts, limit: 1 },
];

export async function setup({ keep, note, options }) {
  note('changefeed.max_handshake_rate = 0 and changefeed.max_connections = 60000: all clients come from one machine, at once');
  if (!options.quick && descriptors() < WISHED) note(`${WISHED} connections would take as many descriptors: the hard limit here (ulimit -Hn) allows ${descriptors()}`);
  keep.versions = {};
}

// Until memory has not changed for so many looks in a row
async function settled(system, patience, looks) {
  const own = (memory) => Object.values(memory).map((each) => each.private_kib).join();
  let last = system.memory();
  let quiet = 0;
  for (let i = 0; i < 5 * QUIET && quiet < looks; i += 1) {
    await sleep(patience);
    const now = system.memory();
    quiet = own(now) === own(last) ? quiet + 1 : 0;
    last = now;
  }
  return last;
}

// A first connection that comes and goes, so that what is made once is there
async function grow({ options }, name, connections, subscriptions, users = false) {
  const patience = options.tiny ? 10 : 250;
  const system = await startSystem(name, { channels: subscriptions });
  const who = users ? { tokens: await system.tokens(connections) } : {};
  const loads = [];
  try {
    const first = new Load();
    loads.push(first);
    await first.open({ ...system.open, group: 'first', subscriptions, channels: subscriptions });
    await first.close('first');
    await sleep(patience);
    const before = await settled(system, patience, 1);
    for (let rest = connections; rest > 0; rest -= PER_LOAD) {
      const load = rest === connections ? first : new Load();
      if (load !== first) loads.push(load);
      await load.open({
        ...system.open, ...who, connections: Math.min(rest, PER_LOAD), subscriptions, channels: subscriptions, sources: 4,
      });
    }
    const after = await settled(system, patience, QUIET);
    const growth = (process, kind) => (after[process] === undefined ? undefined : (after[process][kind] - before[process][kind]) / connections);
    const server = name === 'pg_changefeed' ? 'gateway' : 'server';
    return {
      version: system.version,
      server_private_kib: growth(server, 'private_kib'), server_pss_kib: growth(server, 'pss_kib'),
      feed_private_kib: growth('feed', 'private_kib'), feed_pss_kib: growth('feed', 'pss_kib'),
      server_empty_kib: before[server].private_kib,
    };
  } finally {
    for (const load of loads) await load.quit().catch(() => {}); // what it says was thrown already
    await system.stop();
  }
}

export async function measure(context, { connections, subscriptions, users }, name) {
  try {
    const { version, ...figures } = await grow(context, name, connections, subscriptions, users);
    if (version !== undefined) context.keep.versions[name] = version;
    if (subscriptions === 1) return figures;
    const one = await grow(context, name, connections, 1);
    const difference = (metric) => (figures[metric] === undefined ? undefined : (figures[metric] - one[metric]) / (subscriptions - 1));
    return { server_subscription_kib: difference('server_private_kib'), feed_subscription_kib: difference('feed_private_kib') };
  } catch (error) {
    if (name === 'pg_changefeed' || error instanceof Unavailable) throw error;
    throw new Unavailable(`${connections} clients cannot subscribe: ${error.message}`);
  }
}

export function line({ cases: all }) {
  const parts = all.filter((each) => each.parameters.subscriptions === 1 && !each.parameters.users && each.systems.pg_changefeed?.metrics?.server_private_kib).map((each) => {
    const { server_private_kib: gateway, feed_private_kib: feed } = each.systems.pg_changefeed.metrics;
    return `${each.name}: gateway ${gateway.median.toFixed(2)} KiB, feed worker ${feed.median.toFixed(2)} KiB each`;
  });
  return `memory: ${parts.join('; ')}`;
}
