// The examples of doc/client-react.md, in a page of happy-dom against the real server.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { after, afterEach, before, test } from 'node:test';
import { fileURLToPath, pathToFileURL } from 'node:url';

import { cleanup, complaints, h, render, StrictMode } from './lib/dom.mjs';
import { RealtimeProvider } from '../../client/dist/react.js';
import { until } from '../integration/lib/client.mjs';
import { Session } from '../integration/lib/psql.mjs';
import { SERVER, start } from './lib/page.mjs';

const CLIENT = fileURLToPath(new URL('../../client/', import.meta.url));
const { transform } = createRequire(path.join(CLIENT, 'package.json'))('esbuild');
// In the package's folder it may import itself by its name.
const folder = mkdtempSync(path.join(CLIENT, '.docs-'));
const text = readFileSync(new URL('../../doc/client-react.md', import.meta.url), 'utf8');
const blocks = Object.fromEntries([...text.matchAll(/^```(?:jsx|ts) file=(\S+)\n(.*?)^```$/gms)].map(([, file, code]) => [file, code]));

let db;
let token;
const example = {};

before(async () => {
  for (const [file, code] of Object.entries(blocks)) {
    writeFileSync(path.join(folder, file), code);
    const { code: js } = await transform(code, { loader: file.endsWith('.ts') ? 'ts' : 'jsx', jsx: 'automatic', format: 'esm' });
    const module = path.join(folder, `${file}.mjs`);
    writeFileSync(module, js);
    example[file] = await import(pathToFileURL(module));
  }
  db = new Session();
  await db.exec(`CREATE ROLE web;
    CREATE TABLE orders (id int PRIMARY KEY, customer_id int NOT NULL, status text NOT NULL DEFAULT 'new');
    GRANT SELECT, UPDATE ON orders TO web;
    INSERT INTO orders VALUES (1, 42), (2, 43);
    SELECT changefeed.allow_role('web');
    SELECT changefeed.create_channel('orders:{customer_id}', 'orders');
    SELECT changefeed.create_channel('room:{id}', presence => '{"interval": "20 ms"}', publish_check => 'true');
    CREATE FUNCTION ship(id int) RETURNS int LANGUAGE sql AS $$ UPDATE orders SET status = 'shipped' WHERE orders.id = ship.id RETURNING id $$;
    CREATE FUNCTION set_status(id int, status text) RETURNS void LANGUAGE sql AS 'UPDATE orders SET status = set_status.status WHERE orders.id = set_status.id';
    SELECT changefeed.expose_function('ship(int)');
    SELECT changefeed.expose_function('set_status(int, text)');`);
  token = await db.token({ role: 'web', sub: 'ada' });
});
after(async () => {
  rmSync(folder, { recursive: true });
  await db.close();
});
afterEach(async () => {
  cleanup();
  assert.deepEqual(complaints(), []);
  await db.exec(`UPDATE orders SET status = 'new'`);
});

const status = () => db.value('SELECT status FROM orders WHERE id = 1');
const show = (t, ...children) => {
  const client = start(t, { auth: token });
  return render(h(StrictMode, null, h(RealtimeProvider, { client }, ...children))).container;
};

test('provider and rows', async (t) => {
  const { container } = render(h(StrictMode, null, h(example['app.jsx'].App, { client: start(t, { auth: token }) })));
  await until(() => container.textContent === 'connected1: new', 'rows');
  await db.exec(`UPDATE orders SET status = 'seen' WHERE id = 1`);
  await until(() => container.textContent === 'connected1: seen', 'a change');
});

test('writes', async (t) => {
  const { ShipButton, Status } = example['writes.jsx'];
  const container = show(t, h(ShipButton, { id: 1 }), h(Status, { id: 1 }));
  const [ship, pack] = container.querySelectorAll('button');
  await until(() => pack.textContent === 'new', 'rows');
  pack.click();
  await until(() => pack.textContent === 'packed', 'packed');
  assert.equal(await status(), 'packed');
  ship.click();
  await until(() => pack.textContent === 'shipped', 'shipped');
});

test('a room', async (t) => {
  const container = show(t, h(example['room.jsx'].Room, { me: 'ada' }));
  await until(() => container.textContent.includes('Here: ada'), 'presence');
  const button = container.querySelector('button');
  button.click();
  await until(() => button.textContent === 'ada edits the title', 'the lock');
  button.click();
  await until(() => button.textContent === 'nobody edits the title', 'released');
  const input = container.querySelector('input');
  Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(input, 'hello');
  input.dispatchEvent(new Event('input', { bubbles: true }));
  input.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter', bubbles: true }));
  await until(() => container.textContent.includes('hello'), 'a message');
});

test('types', () => {
  writeFileSync(path.join(folder, 'tsconfig.json'), JSON.stringify({ extends: '../tsconfig.json', compilerOptions: { declaration: false }, include: ['hooks.ts'] }));
  execFileSync(path.join(CLIENT, 'node_modules/.bin/tsc'), ['--noEmit', '-p', folder], { cwd: CLIENT, stdio: 'inherit' });
  assert.equal(typeof example['hooks.ts'].useCall, 'function');
});

test('TanStack Query and SWR', async (t) => {
  const { QueryOrders, SWROrders } = example['caches.jsx'];
  const { QueryClient, QueryClientProvider } = await import(pathToFileURL(path.join(CLIENT, 'node_modules/@tanstack/react-query/build/modern/index.js')));
  const client = new QueryClient({ defaultOptions: { queries: { gcTime: Infinity, staleTime: Infinity } } });
  t.after(() => client.clear());
  const load = async () => JSON.parse(await db.value('SELECT jsonb_agg(to_jsonb(o)) FROM orders o WHERE customer_id = 42'));
  const container = show(t, h(QueryClientProvider, { client }, h(QueryOrders, { load })), h(SWROrders, { load }));
  await until(() => container.textContent === 'newnew', 'rows');
  await db.exec(`UPDATE orders SET status = 'both' WHERE id = 1`);
  await until(() => container.textContent === 'bothboth', 'a change');
});

test('server rendering', async (t) => {
  const { load, Page } = example['server.jsx'];
  const initial = await load(SERVER, token);
  const { container } = render(h(Page, { client: start(t, { auth: token }), initial }));
  assert.equal(container.textContent, 'new');
  await db.exec(`UPDATE orders SET status = 'live' WHERE id = 1`);
  await until(() => container.textContent === 'live', 'a change');
});

test('there is no example that is not run', () => assert.equal(Object.keys(blocks).length, 6));
