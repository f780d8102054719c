// Whether the demo works: connects as each identity, waits until each has its rows, gives order 7 to
// driver 3 as the demo suggests, waits until each has received that, and looks at whose rows they
// are. Used by `demo/run --check`.
//
//   WS_URL=ws://… PANES='[{"title","token","channels"}]' node demo/check.mjs    (and PGHOST etc.)

import { execFile } from 'node:child_process';
import { createRequire } from 'node:module';
import { promisify } from 'node:util';

import { Client } from '../console/client.js';

const SECONDS = 30;

// Node has a WebSocket of its own since version 22.
const WebSocket = globalThis.WebSocket ?? createRequire(new URL('../test/package.json', import.meta.url))('ws');

const panes = JSON.parse(process.env.PANES);
const clients = panes.map(({ title, token, channels }) => {
  const seen = { title, live: 0 };
  const client = new Client({
    url: process.env.WS_URL,
    token,
    WebSocket,
    onEvent: (event) => {
      if (event.type === 'transaction' && event.phase === 'live') seen.live += 1;
      if (event.type === 'note' && event.level !== 'info') {
        console.error(`${title}: ${event.text}${event.code ? ` (${event.code})` : ''} ${event.hint ?? ''}`);
      }
    },
  });
  for (const channel of channels) client.subscribe(channel);
  client.connect();
  return { client, seen };
});

const rowsOf = (client, channel) => [...(client.subscriptions.get(channel)?.cache.entities.values() ?? [])]
  .flatMap((entity) => [...entity.rows.values()]);
const isLive = ({ client }) => client.state === 'live'
  && [...client.subscriptions.keys()].some((channel) => rowsOf(client, channel).length > 0);
// Each identity's first channel has orders.
const order7 = ({ client }) => rowsOf(client, client.subscriptions.keys().next().value).find(({ id }) => id === 7);
const isDone = (each) => isLive(each) && each.seen.live > 0
  && order7(each)?.status === 'shipped' && order7(each)?.driver_id === 3;

const end = Date.now() + SECONDS * 1000;
async function until(condition) {
  while (!clients.every(condition) && Date.now() < end) await new Promise((resolve) => setTimeout(resolve, 100));
}

await until(isLive);
const update = "UPDATE shop.orders SET status = 'shipped', driver_id = 3 WHERE id = 7";
await promisify(execFile)('psql', ['-X', '-q', '-c', update]);
await until(isDone);

const problems = [];
for (const each of clients) {
  const { client, seen } = each;
  const counts = [...client.subscriptions.keys()].map((channel) => `${channel} ${rowsOf(client, channel).length}`);
  console.error(`${seen.title}: ${client.state}, rows: ${counts.join(', ')}; ${seen.live} live transactions`);
  if (!isDone(each)) problems.push(`${seen.title}: not live, or order 7 did not become driver 3's within ${SECONDS} s`);
}
const customersOf = (rows) => new Set(rows.map((row) => row.customer_id));
const [ada, dispatcher] = clients;
if ([...customersOf(rowsOf(ada.client, 'orders:1'))].some((id) => id !== 1)) {
  problems.push('customer 1 received orders of others');
}
if (customersOf(rowsOf(dispatcher.client, 'orders')).size < 2) {
  problems.push('the dispatcher did not receive the orders of all customers');
}
for (const { client } of clients) client.disconnect();
for (const problem of problems) console.error(`problem: ${problem}`);
process.exitCode = problems.length > 0 ? 1 : 0;
