// Whether the demo works: connects as each identity, waits until each has its rows and has
// received something live, and looks at whose rows they are. Used by `demo/run --check`.
//
//   WS_URL=ws://… PANES='[{"title","token","channels"}]' node demo/check.mjs

import { createRequire } from 'node:module';

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
const isDone = ({ client, seen }) => client.state === 'live' && seen.live > 0
  && [...client.subscriptions.keys()].some((channel) => rowsOf(client, channel).length > 0);

const end = Date.now() + SECONDS * 1000;
while (!clients.every(isDone) && Date.now() < end) {
  await new Promise((resolve) => setTimeout(resolve, 100));
}

const problems = [];
for (const each of clients) {
  const { client, seen } = each;
  const counts = [...client.subscriptions.keys()].map((channel) => `${channel} ${rowsOf(client, channel).length}`);
  console.error(`${seen.title}: ${client.state}, rows: ${counts.join(', ')}; ${seen.live} live transactions`);
  if (!isDone(each)) problems.push(`${seen.title}: not live, or nothing received within ${SECONDS} s`);
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
