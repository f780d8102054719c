// examples/next in Chromium: the shell comes before the rows, the rows are in the page before any script runs, they stay while
// React takes over, and go on from their position over a WebSocket that the server never had.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createServer } from 'node:http';
import { createServer as createSocket } from 'node:net';
import { createRequire } from 'node:module';
import { once } from 'node:events';
import { after, before, test } from 'node:test';

import { until } from '../integration/lib/client.mjs';
import { Session } from '../integration/lib/psql.mjs';

const { chromium } = createRequire(new URL('../package.json', import.meta.url))('playwright-core');
const { WS_URL, CHROMIUM = '/usr/bin/chromium' } = process.env;
const CHANGEFEED = new URL(WS_URL.replace(/^ws/, 'http')).origin;

let db;
let next;
let gate;
let page;
let url;
let browser;
/** What the server that renders waits for. */
let held = null;

before(async () => {
  db = new Session();
  await db.exec(`CREATE ROLE web;
    CREATE TABLE orders (id int PRIMARY KEY, customer_id int NOT NULL, status text NOT NULL DEFAULT 'new');
    GRANT SELECT, UPDATE ON orders TO web;
    INSERT INTO orders VALUES (1, 42), (2, 42), (3, 43);
    SELECT changefeed.allow_role('web');
    SELECT changefeed.create_channel('orders:{customer_id}', 'orders');
    CREATE FUNCTION ship(id int) RETURNS void LANGUAGE sql AS $$ UPDATE orders SET status = 'shipped' WHERE orders.id = ship.id $$;
    SELECT changefeed.expose_function('ship(int)')`);
  // Between Next and the database, to hold an answer back.
  gate = createServer(async (request, response) => {
    await held;
    const answer = await fetch(`${CHANGEFEED}${request.url}`, { headers: { authorization: request.headers.authorization } });
    response.writeHead(answer.status, { 'Content-Type': 'application/json' }).end(await answer.text());
  }).listen(0, '127.0.0.1');
  await once(gate, 'listening');
  const free = createSocket().listen(0, '127.0.0.1');
  await once(free, 'listening');
  const { port } = free.address();
  free.close();
  url = `http://127.0.0.1:${port}`;
  const folder = new URL('../../examples/next/', import.meta.url);
  next = spawn(process.execPath, ['node_modules/next/dist/bin/next', 'start', '--hostname', '127.0.0.1', '--port', port], {
    cwd: folder,
    env: {
      ...process.env, NEXT_TELEMETRY_DISABLED: '1', NODE_ENV: 'production',
      CHANGEFEED_URL: `http://127.0.0.1:${gate.address().port}`, CHANGEFEED_PUBLIC_URL: CHANGEFEED,
      CHANGEFEED_TOKEN: await db.token({ role: 'web', sub: '42' }),
    },
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  await until(() => fetch(`${url}/token`, { method: 'POST' }).then(({ ok }) => ok, () => false), 'Next');
  browser = await chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox', '--disable-gpu', '--disable-background-networking'] });
});
after(async () => {
  await browser?.close();
  next?.kill();
  gate?.close();
  await db.close();
});

const connections = async () => Number(await db.value('SELECT count(*) FROM changefeed.stat_connections'));

test('the shell is sent before the rows are there; then the rows, in HTML; no connection stays', async () => {
  let go;
  held = new Promise((resolve) => { go = resolve; });
  const response = await fetch(url);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let html = '';
  while (!html.includes('Loading')) html += (await reader.read()).value;
  assert.match(html, /<h1>Orders<\/h1>/);
  assert.doesNotMatch(html, /order-1/);
  held = null;
  go();
  for (let part = await reader.read(); !part.done; part = await reader.read()) html += part.value;
  assert.match(html, /<li id="order-1">/);
  assert.doesNotMatch(html, /<li id="order-3">/);
  await until(async () => await connections() === 0, 'no connection of the server');
});

test('without scripts there are rows', async () => {
  const context = await browser.newContext({ javaScriptEnabled: false });
  const plain = await context.newPage();
  await plain.goto(url);
  assert.match(await plain.content(), /<li id="order-1">/);
  await context.close();
});

test('in a browser the rows stay, go on from their position, and are live', async () => {
  const context = await browser.newContext();
  page = await context.newPage();
  const said = [];
  const frames = [];
  page.on('console', (message) => ['error', 'warning'].includes(message.type()) && said.push(message.text()));
  page.on('pageerror', (error) => said.push(String(error)));
  page.on('websocket', (socket) => {
    for (const kind of ['framesent', 'framereceived']) socket.on(kind, ({ payload }) => frames.push(JSON.parse(payload)));
  });
  await page.addInitScript(() => {
    window.counts = [];
    new MutationObserver(() => {
      const count = document.querySelectorAll('main li').length;
      if (count || window.counts.length) window.counts.push(count);
    }).observe(document, { childList: true, subtree: true });
  });
  await page.goto(url);
  await page.getByText('live, connected').waitFor();
  assert.equal(await page.locator('main li').count(), 2);
  assert.equal(await connections(), 1);
  const subscribed = frames.find(({ type }) => type === 'subscribed');
  assert.equal(subscribed.recovered, true);
  assert.ok(frames.find(({ type }) => type === 'subscribe').from);
  assert.ok(!frames.some(({ type }) => type === 'snapshot'), 'nothing is loaded twice');

  await db.exec(`INSERT INTO orders VALUES (4, 42); UPDATE orders SET status = 'packed' WHERE id = 2`);
  await page.locator('#order-4').waitFor();
  await page.getByText('2: packed').waitFor();
  await page.locator('#order-1').getByRole('button', { name: 'Ship' }).click();
  await page.getByText('1: shipped').waitFor();
  assert.equal(await db.value('SELECT status FROM orders WHERE id = 1'), 'shipped');
  const counts = await page.evaluate(() => window.counts);
  assert.ok(counts.every((count) => count >= 2), `never fewer: ${counts}`);
  assert.deepEqual(said, []);
  await context.close();
});
