// Whether the dashboard works: takes the page and tokens from its server, connects as a page would, lets two dispatchers reach for
// one order, and looks at who is told what. Used by `demo/run --check`.
//
//   DASHBOARD_URL=http://… node demo/dashboard/check.mjs

import assert from 'node:assert/strict';
import { createRequire } from 'node:module';

import { Client } from '../../console/client.js';

const SECONDS = 30;
const { DASHBOARD_URL } = process.env;

// Node has a WebSocket of its own since version 22. What another one sends as its origin has to be said.
const WebSocket = createRequire(new URL('../../test/package.json', import.meta.url))('ws');
class FromPage extends WebSocket {
  constructor(url, protocol) {
    super(url, protocol, { origin: DASHBOARD_URL });
  }
}

async function until(condition, what) {
  const end = Date.now() + SECONDS * 1000;
  while (!condition()) {
    assert.ok(Date.now() < end, `${what}: not within ${SECONDS} s`);
    await new Promise((resolve) => { setTimeout(resolve, 50); });
  }
}

async function signIn(sub) {
  const response = await fetch(`${DASHBOARD_URL}/login`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({ sub }),
  });
  const { token, url, message } = await response.json();
  assert.ok(response.ok, message);
  const seen = { live: 0 };
  const client = new Client({
    url: `${url.replace(/^http/, 'ws')}/v1/socket`,
    token,
    WebSocket: FromPage,
    onEvent: ({ type, phase }) => {
      if (type === 'transaction' && phase === 'live') seen.live += 1;
    },
  });
  const channels = Object.fromEntries(['jobs', 'fleet', 'finance'].map((name) => [name, client.subscribe(name)]));
  client.connect();
  await until(() => Object.values(channels).every(({ ready, ended }) => ready || ended), sub);
  const rows = (channel, entity) => [...(channels[channel].cache.entities.get(entity)?.rows.values() ?? [])];
  return { client, channels, rows, seen };
}

const page = await (await fetch(DASHBOARD_URL)).text();
const parts = [...page.matchAll(/(?:src|href)="(\/[^"]+)"/g)].map(([, path]) => path);
assert.ok(parts.length >= 3, page);
for (const path of parts) assert.equal((await fetch(DASHBOARD_URL + path)).status, 200, path);
assert.equal((await fetch(`${DASHBOARD_URL}/login`, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: '{"sub": "mallory"}' })).status, 400);

const people = await Promise.all(['dana', 'emil', 'fiona', 'bakery'].map(signIn));
const [dana, emil, fiona, bakery] = people;
const refused = '42501';
assert.equal(dana.channels.finance.error?.code, refused);
assert.equal(fiona.channels.fleet.error?.code, refused);
assert.equal(bakery.channels.finance.error?.code, refused);
assert.ok(fiona.rows('finance', 'totals')[0].revenue > 0);
assert.ok(bakery.rows('jobs', 'orders').every(({ customer_id, note, cost }) => customer_id === 1 && note === undefined && cost === undefined));
assert.ok(bakery.rows('fleet', 'drivers').every(({ customer_id, goal_x }) => customer_id === 1 && goal_x === undefined));

// Traffic may hand an order out at any moment: the youngest is the last to go.
const free = dana.rows('jobs', 'orders').filter(({ status, claimed_by }) => status === 'new' && !claimed_by).sort((a, b) => b.id - a.id)[0];
const claims = await Promise.allSettled([dana, emil].map(({ client }) => client.call('claim_order', { id: free.id })));
assert.deepEqual(claims.map(({ status }) => status).sort(), ['fulfilled', 'rejected']);
assert.equal(claims.find(({ reason }) => reason).reason.code, 'P0409');
const winner = claims[0].status === 'fulfilled' ? 'dana' : 'emil';
for (const { rows } of [dana, emil]) await until(() => rows('jobs', 'orders').find(({ id }) => id === free.id)?.claimed_by === winner, 'the claim');
await until(() => dana.seen.live > 10, 'drivers that move');

for (const { client } of people) client.disconnect();
console.error(`dashboard: ${dana.rows('fleet', 'drivers').length} drivers, ${dana.rows('jobs', 'orders').length} orders; ${free.id} is ${winner}'s, and the other one was told`);
