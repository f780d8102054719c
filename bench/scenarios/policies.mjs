// What a change costs with 10, 1,000 and 10,000 identities that are subscribed to its table: without a policy
// (all get it), with one on the owner (one gets it), and with one that reads a table of memberships (one in five).
// CPU time of decoder, feed worker and query workers; deliveries are counted at the link and verified.
//
// Parameters (--set): identities (list), changes.

import { Rig } from '../authorization/rig.mjs';

export const title = 'CPU time of a change by policy and number of identities';
export const unit = 'microseconds of CPU time per change, of decoder, feed worker and query workers';
export const metrics = {
  cpu_us_per_change: 'µs', decoder_us_per_change: 'µs', feed_us_per_change: 'µs', query_us_per_change: 'µs', query_us_per_decision: 'µs', deliveries_per_s: '/s',
};

const SYSTEMS = { 'no policy': 'open', owner: 'owner', membership: 'member' };

export function cases({ quick, tiny, arguments: given = {} }) {
  const identities = given.identities?.split(',').map(Number) ?? (tiny ? [5] : quick ? [1000] : [10, 1000, 10000]);
  return identities.map((n) => ({
    name: `${n.toLocaleString('en')} identities`,
    identities: n,
    changes: Number(given.changes ?? (tiny ? 50 : n <= 1000 ? 4000 : 2000)),
    seconds: quick ? 1 : 2,
    repeats: quick ? 1 : 3,
    systems: Object.keys(SYSTEMS),
  }));
}

export async function setup(context) {
  context.keep.rig = new Rig();
  await context.keep.rig.start();
}

export async function measure({ keep: { rig } }, each, system) {
  await rig.connect(each.identities, Object.values(SYSTEMS));
  const measured = await rig.measure(SYSTEMS[system], each);
  // A decision: may one identity see one row?
  return { ...measured, query_us_per_decision: measured.query_us_per_change / each.identities };
}

export const ratios = [
  { name: 'owner against no policy', metric: 'cpu_us_per_change', of: 'owner', to: 'no policy' },
  { name: 'membership against no policy', metric: 'cpu_us_per_change', of: 'membership', to: 'no policy' },
];

export const targets = [
  {
    name: 'membership policy, query workers\' CPU per decision', system: 'membership', metric: 'query_us_per_decision', limit: 12,
    case: (each) => each.identities >= 1000,
  },
];

/** What a change costs with many identities, beside what it costs with few. */
export function across(result) {
  const few = result.cases.find(({ parameters }) => parameters.identities === 10);
  const many = result.cases.find(({ parameters }) => parameters.identities === 10000);
  const cost = (each) => each?.systems.owner?.metrics?.cpu_us_per_change?.median;
  if (!few || !many) return;
  const measured = cost(few) && cost(many) ? cost(many) / cost(few) : null;
  many.targets.push({
    name: 'owner policy, cost of a change / that with 10 identities', at_most: 2, measured, met: measured === null ? null : measured <= 2,
    system: 'owner', metric: 'cpu_us_per_change',
  });
}

export async function teardown({ keep }) {
  await keep.rig?.end();
}

export const line = (result) => `policies: ${result.cases.map((each) => `${each.parameters.identities} identities: ${
  Object.entries(each.systems).map(([name, { metrics: m }]) => `${name} ${m?.cpu_us_per_change?.median.toFixed(0)} µs`).join(', ')}`).join('; ')}`;
