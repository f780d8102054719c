// The recipe of doc/client-offline.md for service workers, in Chromium: calls of a page that has gone are made by its worker.

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { after, before, test } from 'node:test';

import { until } from '../integration/lib/client.mjs';
import { Session } from '../integration/lib/psql.mjs';
import { Browser, SERVER, get } from './lib/browser.mjs';

/** The example called so in the documentation. */
async function example(name) {
  const text = await readFile(new URL('../../doc/client-offline.md', import.meta.url), 'utf8');
  const [, code] = text.match(new RegExp(`\`\`\`js notest="${name}[^\n]*\n([\\s\\S]*?)\n\`\`\``)) ?? [];
  assert.ok(code, `the example ${name}`);
  // The package's names are those of its files here.
  return code.replace(/'pg-changefeed\/(\w+)'/g, "'/dist/$1.js'").replace(/'pg-changefeed'/g, "'/dist/index.js'").replaceAll('https://example.com', SERVER);
}

let db;
let browser;

before(async () => {
  db = new Session();
  await db.exec(`CREATE ROLE web;
    CREATE TABLE done (call text PRIMARY KEY, n int NOT NULL DEFAULT 1);
    GRANT SELECT, INSERT, UPDATE ON done TO web;
    SELECT changefeed.allow_role('web');
    CREATE FUNCTION work(call text) RETURNS void LANGUAGE sql AS
        'INSERT INTO done VALUES (call) ON CONFLICT ON CONSTRAINT done_pkey DO UPDATE SET n = done.n + 1';
    SELECT changefeed.expose_function('work(text)');`);
  const worker = await example('the service worker');
  const registration = await example('in the page');
  const serve = (text) => (_, response) => response.setHeader('Content-Type', 'text/javascript').end(text);
  browser = await Browser.start(db, {
    '/sw.js': serve(worker),
    '/register.js': serve(registration),
    '/token': async (_, response) => response.end(await db.token({ role: 'web', sub: 'ada' })),
  });
});
after(async () => {
  await browser?.close();
  await db.close();
});

test('a service worker makes the calls that wait when there is a network again, without a page', async (t) => {
  const context = await browser.context(t);
  // No socket gets through here.
  const page = await browser.page(context, { channels: {}, queue: 'ada', url: 'http://127.0.0.1:9' });
  await get(page, async () => {
    window.queue = window.app.queue;
    const { enqueue } = await import('/register.js');
    for (let i = 0; i < 10; i += 1) await enqueue('work', { call: `worker ${i}` });
  });
  assert.equal(await get(page, () => window.app.queue.current.waiting.length), 10);
  const elsewhere = await context.newPage();
  const devtools = await context.newCDPSession(elsewhere);
  let registration;
  devtools.on('ServiceWorker.workerRegistrationUpdated', ({ registrations }) => { registration = registrations[0] ?? registration; });
  await devtools.send('ServiceWorker.enable');
  await elsewhere.goto(`${browser.origin}/empty`);
  await until(() => registration, 'the worker');
  assert.equal(await db.value('SELECT count(*) FROM done'), '0');
  await page.close();
  // The browser does it by itself when it believes that there is a network; here it is told.
  await devtools.send('ServiceWorker.dispatchSyncEvent', { origin: browser.origin, registrationId: registration.registrationId, tag: 'changefeed', lastChance: false });
  await until(async () => await db.value('SELECT count(*) FROM done') === '10', 'done');
  const again = await browser.page(context, { channels: {}, queue: 'ada' });
  await until(() => get(again, () => window.app.queue.current.waiting.length === 0), 'nothing waits');
  assert.equal(await db.value(`SELECT string_agg(n::text, '') FROM done`), '1'.repeat(10));
  assert.deepEqual(again.problems, []);
});
