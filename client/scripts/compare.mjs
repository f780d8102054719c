// The sizes in README.md: the same task with this client and with others.
//
//   node scripts/compare.mjs
//
// Installs the others from npm into a temporary directory. The task: the orders of customer 42, live on the screen, with a token that
// is refreshed. What counts is what size.mjs counts.

import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';

import { sizeOf } from './size.mjs';

const RENDER = 'const render = (rows) => { document.body.textContent = JSON.stringify(rows); };\n'
  + "const getToken = async () => (await fetch('/token')).text();\n"
  + "const load = async () => (await fetch('/orders?customer=42')).json();\n";

const TASKS = {
  'pg-changefeed': `
import { createClient } from 'DIST';
const orders = createClient({ url: '/', auth: getToken }).channel('orders:42');
orders.subscribe(() => render(orders.rows()));
`,
  '@supabase/realtime-js': `
import { RealtimeClient } from '@supabase/realtime-js';
const client = new RealtimeClient('wss://example.com/realtime/v1', { params: { apikey: 'key' }, accessToken: getToken });
const rows = new Map();
client.channel('orders')
  .on('postgres_changes', { event: '*', schema: 'public', table: 'orders', filter: 'customer_id=eq.42' }, (change) => {
    if (change.eventType === 'DELETE') rows.delete(change.old.id);
    else rows.set(change.new.id, change.new);
    render([...rows.values()]);
  })
  .subscribe(async (status) => {
    if (status !== 'SUBSCRIBED') return;
    rows.clear();
    for (const row of await load()) rows.set(row.id, row);
    render([...rows.values()]);
  });
`,
  '@electric-sql/client': `
import { Shape, ShapeStream } from '@electric-sql/client';
const shape = new Shape(new ShapeStream({
  url: 'https://example.com/v1/shape', params: { table: 'orders', where: 'customer_id = 42' },
  headers: { Authorization: async () => 'Bearer ' + await getToken() },
}));
shape.subscribe(({ rows }) => render(rows));
`,
  centrifuge: `
import { Centrifuge } from 'centrifuge';
const client = new Centrifuge('wss://example.com/connection/websocket', { getToken });
const rows = new Map();
const orders = client.newSubscription('orders:42');
orders.on('publication', ({ data: { op, row } }) => {
  if (op === 'delete') rows.delete(row.id);
  else rows.set(row.id, row);
  render([...rows.values()]);
});
orders.on('subscribed', async ({ wasRecovering, recovered }) => {
  if (wasRecovering && recovered) return;
  rows.clear();
  for (const row of await load()) rows.set(row.id, row);
  render([...rows.values()]);
});
orders.subscribe();
client.connect();
`,
  'pusher-js': `
import Pusher from 'pusher-js';
const client = new Pusher('key', { cluster: 'eu', channelAuthorization: {
  transport: 'ajax', endpoint: '/pusher/auth', headersProvider: () => ({}),
} });
const rows = new Map();
const orders = client.subscribe('private-orders-42');
const change = (remove) => (row) => {
  if (remove) rows.delete(row.id);
  else rows.set(row.id, row);
  render([...rows.values()]);
};
orders.bind('insert', change(false));
orders.bind('update', change(false));
orders.bind('delete', change(true));
orders.bind('pusher:subscription_succeeded', async () => {
  rows.clear();
  for (const row of await load()) rows.set(row.id, row);
  render([...rows.values()]);
});
`,
};

const directory = mkdtempSync(path.join(os.tmpdir(), 'pg-changefeed-compare.'));
try {
  writeFileSync(path.join(directory, 'package.json'), '{"private":true}');
  const others = Object.keys(TASKS).slice(1);
  execFileSync('npm', ['install', '--no-audit', '--no-fund', '--ignore-scripts', ...others], { cwd: directory, stdio: ['ignore', 'ignore', 'inherit'] });
  const dist = path.resolve(import.meta.dirname ?? path.dirname(new URL(import.meta.url).pathname), '../dist/index.js');
  const nothing = await sizeOf(RENDER + 'render([getToken, load]);', directory);
  for (const [name, task] of Object.entries(TASKS)) {
    const manifest = name === 'pg-changefeed' ? new URL('../package.json', import.meta.url) : path.join(directory, 'node_modules', name, 'package.json');
    const bytes = await sizeOf(RENDER + task.replace('DIST', dist), directory) - nothing;
    const lines = task.trim().split('\n').length;
    console.log(`${name.padEnd(24)} ${JSON.parse(readFileSync(manifest, 'utf8')).version.padEnd(10)} ${(bytes / 1000).toFixed(1).padStart(5)} kB  ${String(lines).padStart(2)} lines`);
  }
} finally {
  rmSync(directory, { recursive: true, force: true });
}
