// Changes per second that are authorized by row level security for N identities, of which one in five sees
// each row. Deliveries are counted at the link, so that gateways and sockets do not limit it, and each
// identity's are verified (bench/authorization).
//
// Two policies with the same result: a claim against a column, and a look into a table of memberships.
// References, in the same run: what a naive server does, one backend that looks for each change and each identity
// whether the row is visible, with each of the two policies.
//
// Parameters (--set): identities (list), changes.

import { Rig } from '../authorization/rig.mjs';

export const title = 'changes authorized by row level security, one identity in five sees each';
export const unit = 'changes per second from the first commit to the last delivery at the link; CPU time per change of decoder, feed worker and query workers';
export const metrics = {
  changes_per_s: '/s', deliveries_per_s: '/s', cpu_us_per_change: 'µs', decoder_us_per_change: 'µs', feed_us_per_change: 'µs', query_us_per_change: 'µs',
};

const CHANGES = { 500: 20000, 3000: 6000, 10000: 2000 };
// Far above what walrus, of Supabase Realtime, comes to: see doc/performance.md
const TARGET = { 500: 5000, 3000: 1500, 10000: 500 };

export function cases({ quick, tiny, arguments: given = {} }) {
  const identities = given.identities?.split(',').map(Number) ?? (tiny ? [20] : quick ? [500] : [500, 3000, 10000]);
  return identities.map((n) => ({
    name: `${n.toLocaleString('en')} identities`,
    identities: n,
    changes: Number(given.changes ?? (tiny ? 50 : Math.round((CHANGES[n] ?? 5000) / (quick ? 4 : 1)))),
    checks: tiny ? 200 : quick ? 4000 : 10000,
    seconds: quick ? 1 : 3,
    repeats: quick ? 1 : 3,
    systems: ['pg_changefeed', 'pg_changefeed membership', 'select per identity', 'select per identity, membership'],
  }));
}

export async function setup(context) {
  context.keep.rig = new Rig();
  await context.keep.rig.start();
  context.note('synchronous_commit is off, and one backend writes: it has to be faster than what is measured.');
  context.note('select per identity: no network, no decoding and no delivery, which a real server would have beside.');
}

export async function measure({ keep: { rig } }, each, system) {
  switch (system) {
    case 'pg_changefeed':
      await rig.connect(each.identities, ['team', 'member']);
      return rig.measure('team', each);
    case 'pg_changefeed membership':
      await rig.connect(each.identities, ['team', 'member']);
      return rig.measure('member', each);
    case 'select per identity': return rig.look('team', each.identities, each.checks);
    default: return rig.look('member', each.identities, each.checks);
  }
}

export const ratios = [
  { name: 'rate against select per identity', metric: 'changes_per_s', of: 'pg_changefeed', to: 'select per identity' },
  { name: 'rate against select per identity, membership', metric: 'changes_per_s', of: 'pg_changefeed membership', to: 'select per identity, membership' },
];

export const targets = [
  ...Object.entries(TARGET).map(([n, limit]) => ({
    name: 'changes per second, policy on a claim', system: 'pg_changefeed', metric: 'changes_per_s', above: true, limit, case: (each) => each.identities === Number(n),
  })),
  {
    name: 'rate with a policy on memberships, against a SELECT for each identity', ratio: 'rate against select per identity, membership', above: true, limit: 1,
    case: (each) => each.identities >= 500,
  },
];

export async function teardown({ keep }) {
  await keep.rig?.end();
}

export const line = (result) => `authorization: ${result.cases.map((each) => `${each.parameters.identities} identities: ${
  ['pg_changefeed', 'pg_changefeed membership'].map((name) => `${Math.round(each.systems[name].metrics?.changes_per_s?.median ?? NaN)}/s${name === 'pg_changefeed' ? '' : ' by membership'}`).join(', ')}`).join('; ')}`;
