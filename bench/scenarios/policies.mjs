// What a change costs with 10, 1,000 and 10,000 identities that are subscribed to its table: without a policy
// (all get it), with one on the owner (one gets it), and with one that reads a table of memberships (one in five).
// CPU time of decoder, feed worker and query workers; deliveries are counted at the link and verified.
//
// Parameters (--set): identities (list), changes.

import { Rig } from '../authorization/rig.mjs';

export const title = 'CPU time of a change by policy and number of identities';
export const unit = 'microseconds of CPU time per change, of decoder, feed worker and query workers';
export const metrics = {
  cpu_us_per_change: 'µs', decoder_us_per_change: 'µs', feed_us_per_change: 'µs', query_us_per_change: 'µs', deliveries_per_s: '/s',
};

const SYSTEMS = { 'no policy': 'open', owner: 'owner', membership: 'member' };

export function cases({ quick, tiny, arguments: given = {} }) {
  const identities = given.identities?.split(',').map(Number) ?? (tiny ? [5] : quick ? [1000] : [10, 1000, 10000]);
  return identities.map((n) => ({
    name: `${n.toLocaleString('en')} identities`,
    identities: n,
    changes: Number(given.changes ?? (tiny ? 50 : n <= 1000 ? 4000 : 2000)),
    seconds: quick ? 1 : 2,
    repeats: tiny ? 1 : quick ? 2 : 3,
    systems: Object.keys(SYSTEMS),
  }));
}

export async function setup(context) {
  context.keep.rig = new Rig();
  await context.keep.rig.start();
}

export async function measure({ keep: { rig } }, each, system) {
  await rig.connect(each.identities, Object.values(SYSTEMS));
  return rig.measure(SYSTEMS[system], each);
}

export const ratios = [
  { name: 'owner against no policy', metric: 'cpu_us_per_change', of: 'owner', to: 'no policy' },
  { name: 'membership against no policy', metric: 'cpu_us_per_change', of: 'membership', to: 'no policy' },
];

export async function teardown({ keep }) {
  await keep.rig?.end();
}

export const line = (result) => `policies: ${result.cases.map((each) => `${each.parameters.identities} identities: ${
  Object.entries(each.systems).map(([name, { metrics: m }]) => `${name} ${m?.cpu_us_per_change?.median.toFixed(0)} µs`).join(', ')}`).join('; ')}`;
