// client/ as it is published: what is in the package, how large it is, and that it works in a fresh Vite application and in Node.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

import { Session } from '../integration/lib/psql.mjs';

const CLIENT = fileURLToPath(new URL('../../client', import.meta.url));
const WS = fileURLToPath(new URL('../node_modules/ws', import.meta.url));
const run = async (command, args, options = {}) => {
  try {
    const { stdout } = await promisify(execFile)(command, args, { cwd: CLIENT, ...options });
    return stdout;
  } catch (error) {
    throw new Error(`${command} ${args.join(' ')}:\n${error.stdout}${error.stderr}`);
  }
};
const bin = (name, args, options) => run(path.join(CLIENT, 'node_modules/.bin', name), args, options);

let scratch;
let app;
let db;

before(async () => {
  scratch = mkdtempSync(path.join(os.tmpdir(), 'pg-changefeed-package.'));
  const [{ filename }] = JSON.parse(await run('npm', ['pack', '--json', '--pack-destination', scratch]));
  app = path.join(scratch, 'app');
  mkdirSync(app);
  writeFileSync(path.join(app, 'package.json'), JSON.stringify({ name: 'app', private: true, type: 'module' }));
  // It needs nothing else, so nothing is asked of the network.
  await run('npm', ['install', '--offline', '--no-audit', '--no-fund', path.join(scratch, filename)], { cwd: app });
  cpSync(WS, path.join(app, 'node_modules/ws'), { recursive: true });
  db = new Session();
  await db.exec(`CREATE ROLE web; CREATE TABLE orders (id int PRIMARY KEY, status text); GRANT SELECT ON orders TO web;
    INSERT INTO orders VALUES (1, 'new'); SELECT changefeed.allow_role('web'); SELECT changefeed.create_channel('orders', 'orders')`);
});
after(() => {
  db?.close();
  rmSync(scratch, { recursive: true, force: true });
});

test('publint and are-the-types-wrong have nothing to say', async () => {
  await bin('publint', ['--strict']);
  await bin('attw', ['--pack', '.', '--profile', 'esm-only', '--quiet']);
});

test('each entry is within its limit, has types, and is built from src/', async () => {
  await run('node', ['scripts/size.mjs']);
  const { exports, dependencies } = JSON.parse(readFileSync(path.join(CLIENT, 'package.json'), 'utf8'));
  assert.equal(dependencies, undefined);
  for (const file of Object.values(exports)) {
    if (file.endsWith('.js')) readFileSync(path.join(app, 'node_modules/pg-changefeed', file.replace(/\.js$/, '.d.ts')));
  }
});

test('the size of an entry that grows beyond its limit is an error', async () => {
  const copy = path.join(scratch, 'copy');
  cpSync(path.join(CLIENT, 'dist'), path.join(copy, 'dist'), { recursive: true });
  for (const name of ['package.json', 'scripts']) cpSync(path.join(CLIENT, name), path.join(copy, name), { recursive: true });
  symlinkSync(path.join(CLIENT, 'node_modules'), path.join(copy, 'node_modules'));
  const limits = JSON.parse(readFileSync(path.join(CLIENT, 'sizes.json'), 'utf8'));
  writeFileSync(path.join(copy, 'sizes.json'), JSON.stringify({ ...limits, '.': 100 }));
  await assert.rejects(run('node', ['scripts/size.mjs'], { cwd: copy }), /\. +\d+ +is larger than 100/);
  delete limits['./http'];
  writeFileSync(path.join(copy, 'sizes.json'), JSON.stringify(limits));
  await assert.rejects(run('node', ['scripts/size.mjs'], { cwd: copy }), /http +\d+ +has no limit/);
});

test('a fresh Vite application with TypeScript builds', async () => {
  writeFileSync(path.join(app, 'index.html'), '<!doctype html><script type="module" src="/main.ts"></script>');
  writeFileSync(path.join(app, 'main.ts'), `
import { createClient, type Channel } from 'pg-changefeed';
import { metrics } from 'pg-changefeed/extras';
import { automatic } from 'pg-changefeed/http';
import { lossless } from 'pg-changefeed/lossless';
import { presence } from 'pg-changefeed/presence';

interface Order { id: number; status: string }
interface Orders { entities: { orders: { Row: Order; Key: { id: number } } }; events: { bell: { rings: number } }; presence: { name: string } }
interface Schema { channels: { [name: \`orders:\${number}\`]: Orders }; functions: { ship: { Args: { id: number }; Result: boolean } } }

const client = createClient<Schema>({ url: '/', auth: async () => 'token', transport: automatic(), codec: lossless() });
const channel: Channel<Orders> = client.channel('orders:42');
channel.subscribe(() => {
  const orders: readonly Order[] = channel.rows();
  document.body.textContent = orders.map(({ status }) => status).join();
});
channel.message('bell', ({ rings }) => console.log(rings.toFixed()));
void client.call('ship', { id: 1 }).then(({ result }) => result === true);
void presence(client, channel).track({ name: 'Ada' });
console.log(metrics(client)().rows.toFixed());
// @ts-expect-error there is no such channel
client.channel('nope');
// @ts-expect-error there is no such argument
void client.call('ship', { number: 1 });
// @ts-expect-error there is no such column
channel.rows()[0]!.price;
`);
  writeFileSync(path.join(app, 'tsconfig.json'), JSON.stringify({
    compilerOptions: { target: 'es2022', module: 'esnext', moduleResolution: 'bundler', strict: true, noUncheckedIndexedAccess: true, noEmit: true, lib: ['es2023', 'dom'], types: [] }, include: ['main.ts'],
  }));
  await bin('tsc', ['-p', app]);
  await bin('vite', ['build', '--logLevel', 'warn', app], { cwd: app });
  const html = readFileSync(path.join(app, 'dist/index.html'), 'utf8');
  const script = readFileSync(path.join(app, 'dist', /src="([^"]+)"/.exec(html)[1]), 'utf8');
  assert.match(script, /changefeed\.v1/);
});

test('in Node it connects and has rows', async () => {
  writeFileSync(path.join(app, 'rows.mjs'), `
import { createClient } from 'pg-changefeed';
import WebSocket from 'ws';

const client = createClient({ url: process.env.WS_URL, auth: process.env.TOKEN, WebSocket: globalThis.WebSocket ?? WebSocket });
const orders = client.channel('orders');
await orders.ready;
console.log(JSON.stringify(orders.rows()));
client.close();
`);
  const output = await run('node', ['rows.mjs'], { cwd: app, env: { ...process.env, WS_URL: new URL(process.env.WS_URL).origin, TOKEN: await db.token({ role: 'web' }) }, timeout: 20_000 });
  assert.equal(output, '[{"id":1,"status":"new"}]\n', 'and the process ends behind close()');
});
