// The console in a real browser, against a real server.
//
//   scripts/setup --for test
//   set -a; eval "$(scripts/cluster start --database shop)"; set +a
//   node --test test/e2e/console.mjs
//
// Environment: HTTP_URL and libpq's PGHOST, PGPORT, PGUSER, PGDATABASE (a superuser; the shop of
// demo/shop.sql is loaded if it is not there). Tokens of customer 1 and of the dispatcher come from
// TOKEN_CUSTOMER and TOKEN_DISPATCHER, else from changefeed.make_token. CHROMIUM and PSQL name
// other programs. Screenshots go to test/results; with UPDATE_IMAGES=1 to doc/images.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdir } from 'node:fs/promises';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

import { chromium } from 'playwright-core';

import { fragmentOf } from '../../console/client.js';

const { HTTP_URL, CHROMIUM = '/usr/bin/chromium', PSQL = 'psql', UPDATE_IMAGES } = process.env;
const root = new URL('../../', import.meta.url);
const images = fileURLToPath(new URL(UPDATE_IMAGES ? 'doc/images/' : 'test/results/', root));
const skip = HTTP_URL ? false : 'HTTP_URL is not set';

// Order 7 is customer 1's; the demo's writer leaves it alone.
const OWN_ORDER = 7;
const CUSTOMER = 0;
const DISPATCHER = 1;

async function sql(...args) {
  const { stdout } = await promisify(execFile)(PSQL, ['-X', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1', ...args]);
  return stdout.trim();
}

const query = (text) => sql('-c', text);

let browser;
let tokens;
const problems = []; // what the browser complained of

before(async () => {
  if (skip) return;
  await mkdir(images, { recursive: true });
  if ((await query("SELECT to_regclass('shop.orders') IS NULL")) === 't') {
    await sql('-c', 'SET client_min_messages = warning', '-f', fileURLToPath(new URL('demo/shop.sql', root)));
  }
  const make = (claims) => query(`SELECT changefeed.make_token('${JSON.stringify(claims)}')`);
  tokens = {
    customer: process.env.TOKEN_CUSTOMER ?? (await make({ role: 'shop_customer', sub: '1' })),
    dispatcher: process.env.TOKEN_DISPATCHER ?? (await make({ role: 'shop_dispatcher', sub: 'dispatch' })),
  };
  browser = await chromium.launch({
    executablePath: CHROMIUM,
    args: [
      '--no-sandbox',
      '--disable-gpu',
      '--disable-quic',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
    ],
  });
});

after(() => browser?.close());

/** A page with the console and these panes. */
async function open(panes, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(20_000);
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type())) problems.push(message.text());
  });
  page.on('pageerror', (error) => problems.push(error.message));
  page.on('request', (request) => {
    const { protocol, host } = new URL(request.url());
    if (protocol !== 'data:' && host !== new URL(HTTP_URL).host) problems.push(`a request to ${request.url()}`);
  });
  await page.goto(`${HTTP_URL}/${panes ? fragmentOf(panes) : ''}`);
  return page;
}

const bothPanes = () => [
  { title: 'Ada, customer 1', token: tokens.customer, channels: ['orders'] },
  { title: 'Dispatcher', token: tokens.dispatcher, channels: ['orders'] },
];

const pane = (page, index) => page.locator('.pane').nth(index);
const row = (page, index, id) => pane(page, index).locator(`tbody tr[data-key="[${id}]"]`);

async function isLive(page, index) {
  await pane(page, index).locator('.badge[data-state="live"]').waitFor();
  await pane(page, index).locator('tbody tr').first().waitFor();
}

/** Waits until the cells of a column, found by its heading, satisfy a condition. */
async function cellBecomes(page, index, id, column, text) {
  const names = await pane(page, index).locator('thead th').allInnerTexts();
  const place = names.findIndex((name) => name.trim() === column);
  assert.notEqual(place, -1, `column ${column} of ${names}`);
  await row(page, index, id).locator('td').nth(place).filter({ hasText: text }).waitFor();
}

const setNote = (id, note) => query(`UPDATE shop.orders SET note = '${note}' WHERE id = ${id}`);

async function noProblems(page) {
  await page.context().close();
  assert.deepEqual(problems.splice(0), []);
}

test('each identity sees its rows, and changes as they happen', { skip }, async () => {
  const page = await open(bothPanes());
  await isLive(page, CUSTOMER);
  await isLive(page, DISPATCHER);

  // The same channel, different rows
  const shown = await pane(page, CUSTOMER).locator('tbody tr:not(.gone) td:nth-child(2)').allInnerTexts();
  assert.deepEqual([...new Set(shown)], ['1']);
  const own = await pane(page, CUSTOMER).locator('tbody tr').count();
  const all = await pane(page, DISPATCHER).locator('tbody tr').count();
  assert.ok(all > own, `${all} rows of the dispatcher, ${own} of customer 1`);

  // First somebody else's order, then her own: when she has the second, the first would be there.
  const foreign = await query(
    'SELECT id FROM shop.orders WHERE customer_id <> 1 ORDER BY id DESC LIMIT 1',
  );
  const mark = `Seen at ${new Date().toISOString()}`;
  await setNote(foreign, `${mark} by others`);
  await setNote(OWN_ORDER, `${mark} by Ada`);
  await cellBecomes(page, DISPATCHER, foreign, 'note', `${mark} by others`);
  await cellBecomes(page, DISPATCHER, OWN_ORDER, 'note', `${mark} by Ada`);
  await cellBecomes(page, CUSTOMER, OWN_ORDER, 'note', `${mark} by Ada`);
  const everything = await pane(page, CUSTOMER).innerText();
  assert.ok(!everything.includes(`${mark} by others`), "customer 1 sees somebody else's order");

  // A row that comes and goes
  const fresh = await query('INSERT INTO shop.orders (customer_id, total) VALUES (1, 9.90) RETURNING id');
  await row(page, CUSTOMER, fresh).waitFor();
  await query(`DELETE FROM shop.orders WHERE id = ${fresh}`);
  await row(page, CUSTOMER, fresh).waitFor({ state: 'detached' });
  await pane(page, CUSTOMER).locator('.op-remove').first().waitFor();

  await noProblems(page);
});

test('a cut connection resumes without a gap', { skip }, async () => {
  const page = await open(bothPanes());
  await isLive(page, CUSTOMER);
  await pane(page, CUSTOMER).getByRole('button', { name: 'Cut' }).click();
  await pane(page, CUSTOMER).locator('.badge[data-state="reconnecting"]').waitFor();
  const mark = `While away, ${new Date().toISOString()}`;
  await setNote(OWN_ORDER, mark);
  await isLive(page, CUSTOMER);
  await cellBecomes(page, CUSTOMER, OWN_ORDER, 'note', mark);
  const log = await pane(page, CUSTOMER).locator('.log').innerText();
  assert.match(log, /orders: resumed, \d+ transactions? caught up/);
  await noProblems(page);
});

test('what comes from the database is text', { skip }, async () => {
  const page = await open(bothPanes());
  await isLive(page, CUSTOMER);
  const evil = '<img src=x onerror="document.title=1"><b>bold</b>';
  await setNote(OWN_ORDER, evil);
  await cellBecomes(page, CUSTOMER, OWN_ORDER, 'note', evil);
  assert.equal(await page.locator('main img, main td b').count(), 0);
  assert.equal(await page.title(), 'pg_changefeed console');
  await setNote(OWN_ORDER, 'Please ring twice');
  await noProblems(page);
});

test('numbers are shown as the database wrote them', { skip }, async () => {
  const page = await open(bothPanes());
  await isLive(page, CUSTOMER);
  const total = await query(`SELECT total FROM shop.orders WHERE id = ${OWN_ORDER}`);
  assert.match(total, /\.\d0$/, 'ends with a zero that a double would lose');
  await cellBecomes(page, CUSTOMER, OWN_ORDER, 'total', total);
  await noProblems(page);
});

test('by hand: connect, subscribe, refused, unsubscribe, disconnect', { skip }, async () => {
  const page = await open(null);
  const only = pane(page, 0);
  await only.getByRole('textbox', { name: 'Token' }).fill(tokens.customer);
  await only.getByRole('button', { name: 'Connect', exact: true }).click();
  await only.locator('.badge[data-state="live"]').waitFor();
  await only.getByLabel('Channel').fill('orders:1');
  await only.getByLabel('Channel').press('Enter');
  await isLive(page, 0);

  await only.getByLabel('Channel').fill('there-is-no-such-channel');
  await only.getByLabel('Channel').press('Enter');
  await only.locator('.blank.is-error').waitFor();
  assert.match(await only.locator('.blank.is-error').innerText(), /there-is-no-such-channel/);
  await only.getByRole('button', { name: 'Unsubscribe from there-is-no-such-channel' }).click();
  await row(page, 0, OWN_ORDER).waitFor();

  await only.getByRole('button', { name: 'Disconnect' }).click();
  await only.locator('.badge[data-state="disconnected"]').waitFor();
  await noProblems(page);
});

test('a token that is none is refused in words', { skip }, async () => {
  const page = await open([{ title: 'Nobody', token: 'not.a.token', channels: ['orders'] }]);
  await pane(page, 0).locator('.badge[data-state="error"]').waitFor();
  const notice = await pane(page, 0).getByRole('alert').filter({ hasText: '(' }).first().innerText();
  assert.match(notice, /\([0-9A-Z]{5}\)/, 'with its code');
  await noProblems(page);
});

test('screenshots', { skip }, async () => {
  const panes = bothPanes();
  panes[CUSTOMER].channels = ['orders:1'];
  const page = await open(panes);
  await isLive(page, CUSTOMER);
  await isLive(page, DISPATCHER);
  // A little traffic, whether or not the demo's writer is at work.
  for (const status of ['packed', 'shipped', 'new']) {
    await query(`UPDATE shop.orders SET status = '${status}' WHERE id = ${OWN_ORDER}`);
    await query(
      `UPDATE shop.orders SET status = '${status}' WHERE id = (SELECT max(id) FROM shop.orders WHERE customer_id = 2)`,
    );
  }
  const fresh = await query(
    "INSERT INTO shop.orders (customer_id, total, note) VALUES (1, 23.40, 'Please ring twice') RETURNING id",
  );
  await row(page, CUSTOMER, fresh).waitFor();
  await query(`UPDATE shop.orders SET status = 'packed' WHERE id = ${fresh}`);
  await cellBecomes(page, CUSTOMER, fresh, 'status', 'packed');
  await cellBecomes(page, DISPATCHER, fresh, 'status', 'packed');
  await page.screenshot({ path: `${images}/console.png` });
  await page.context().close();

  const phone = await open(panes, {
    viewport: { width: 390, height: 844 },
    deviceScaleFactor: 2,
    isMobile: true,
    hasTouch: true,
    colorScheme: 'dark',
  });
  await isLive(phone, CUSTOMER);
  await query(`UPDATE shop.orders SET status = 'shipped', driver_id = 3 WHERE id = ${fresh}`);
  await cellBecomes(phone, CUSTOMER, fresh, 'status', 'shipped');
  assert.equal(await phone.evaluate(() => document.documentElement.scrollWidth), 390, 'nothing sticks out');
  await phone.screenshot({ path: `${images}/console-phone.png` });
  await query(`DELETE FROM shop.orders WHERE id = ${fresh}`);
  await noProblems(phone);
});
