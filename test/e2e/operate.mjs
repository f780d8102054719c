// The console's views for operators in a real browser, against a real server.
//
//   set -a; eval "$(scripts/cluster start --database shop)"; set +a
//   node --test test/e2e/operate.mjs
//
// Environment: HTTP_URL and libpq's (a superuser). CHROMIUM and PSQL name other programs.
// Screenshots go to test/results; with UPDATE_IMAGES=1 that of the connections to doc/images.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdir } from 'node:fs/promises';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

import { chromium } from 'playwright-core';
import WebSocket from 'ws';

import { Client, fragmentOf } from '../../console/client.js';
import { until } from '../integration/lib/client.mjs';

const { HTTP_URL, CHROMIUM = '/usr/bin/chromium', PSQL = 'psql', UPDATE_IMAGES } = process.env;
const results = fileURLToPath(new URL('../results/', import.meta.url));
const images = UPDATE_IMAGES ? fileURLToPath(new URL('../../doc/images/', import.meta.url)) : results;
const skip = HTTP_URL ? false : 'HTTP_URL is not set';
const query = async (text) => (await promisify(execFile)(PSQL, ['-X', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1', '-c', text])).stdout.trim();
const makeToken = (claims) => query(`SELECT changefeed.make_token('${JSON.stringify(claims)}')`);

let browser;
let owner;
let tokens;
const problems = []; // what the browser complained of

before(async () => {
  if (skip) return;
  await mkdir(results, { recursive: true });
  await query(`DO $$ BEGIN CREATE ROLE operate_web; CREATE ROLE operate_owner; EXCEPTION WHEN duplicate_object THEN NULL; END $$`);
  await query(`GRANT pg_monitor, operate_web TO operate_owner;
    DROP TABLE IF EXISTS operate_tasks; CREATE TABLE operate_tasks (id int PRIMARY KEY, team int NOT NULL, owner text, title text);
    ALTER TABLE operate_tasks OWNER TO operate_owner; ALTER TABLE operate_tasks ENABLE ROW LEVEL SECURITY;
    CREATE POLICY own_tasks ON operate_tasks FOR SELECT TO operate_web USING (owner = current_setting('request.jwt.claims')::json ->> 'sub');
    GRANT SELECT ON operate_tasks TO operate_web;
    INSERT INTO operate_tasks SELECT i, i % 3, CASE WHEN i % 2 = 0 THEN 'alice' ELSE 'bob' END, 'task ' || i FROM generate_series(1, 12) i;
    SELECT changefeed.allow_role('operate_web'); SELECT changefeed.allow_role('operate_owner');
    SELECT changefeed.create_channel('tasks:{team}', 'operate_tasks', entity => 'tasks');
    SELECT changefeed.create_channel('desk:{team}', presence => '{}')`);
  owner = await makeToken({ role: 'operate_owner', sub: 'operator' });
  tokens = { alice: await makeToken({ role: 'operate_web', sub: 'alice' }), bob: await makeToken({ role: 'operate_web', sub: 'bob' }) };
  browser = await chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox', '--disable-gpu', '--disable-quic'] });
});
after(() => browser?.close());

async function open(path, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(15_000);
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type())) problems.push(message.text());
  });
  page.on('pageerror', (error) => problems.push(error.message));
  const answer = await page.goto(`${HTTP_URL}/${path}`);
  return { page, answer };
}

const view = (page, name) => page.getByRole('navigation', { name: 'Views' }).getByRole('button', { name });
const tasks = () => fragmentOf([{ title: 'Alice', token: tokens.alice, channels: ['tasks:*'] }]);
const isLive = (page) => page.locator('.pane .badge[data-state="live"]').waitFor();

/** The cell of a row, found by the text of another cell, and the heading of its column. */
async function cell(page, table, rowText, column) {
  const names = await page.locator(`${table} thead th`).allInnerTexts();
  const place = names.indexOf(column);
  assert.notEqual(place, -1, `column ${column} of ${names}`);
  return page.locator(`${table} tbody tr`).filter({ hasText: rowText }).locator('td').nth(place);
}

async function noProblems(page) {
  await page.context().close();
  assert.deepEqual(problems.splice(0), []);
}

test('connections, channels and lag', { skip }, async () => {
  const { page } = await open(tasks());
  await isLive(page);
  const { page: other } = await open(fragmentOf([{ title: 'Bob', token: tokens.bob, channels: ['tasks:1'] }]));
  await isLive(other);

  // It sees itself, and the other one, with what they are subscribed to.
  await view(page, 'Connections').click();
  await page.locator('#ask-state[data-state="live"]').waitFor();
  for (const [who, channel] of [['alice', 'tasks:*'], ['bob', 'tasks:1']]) {
    const state = await cell(page, '#connection-table', who, 'State');
    await state.filter({ hasText: 'live' }).waitFor();
    assert.equal(await (await cell(page, '#connection-table', who, 'Subscriptions')).innerText(), '1');
    assert.equal(await (await cell(page, '#connection-table', who, 'Transport')).innerText(), 'websocket');
    const session = (await cell(page, '#connection-table', who, 'Session')).getByRole('button');
    await session.click();
    await page.locator('#subscription-table tbody tr').filter({ hasText: channel }).waitFor();
    await page.screenshot({ path: `${images}/console-connections.png` });
    await session.click();
    await page.locator('#subscriptions').waitFor({ state: 'hidden' });
  }

  await view(page, 'Channels').click();
  await page.locator('#channel-table tbody tr').filter({ hasText: 'tasks:{team}' }).waitFor();
  assert.equal(await (await cell(page, '#channel-table', 'tasks:{team}', 'Subscriptions')).innerText(), '2');
  await other.context().close();
  await (await cell(page, '#channel-table', 'tasks:{team}', 'Subscriptions')).filter({ hasText: /^1$/ }).waitFor();

  // Changes come while it looks: points in the charts.
  await view(page, 'Lag').click();
  const lag = page.locator('[data-chart="Commit to socket"] svg');
  await page.locator('[data-chart="WAL held"] svg[data-points="1"]').waitFor();
  await query("UPDATE operate_tasks SET title = 'changed' WHERE owner = 'alice'");
  await view(page, 'Lag').click(); // asks at once
  await page.waitForFunction(() => Number(document.querySelector('[data-chart="Commit to socket"] svg').dataset.points) >= 2);
  assert.match(await lag.getAttribute('aria-label'), /^Commit to socket: .*(µs|ms|s)/);
  assert.match(await lag.locator('path').first().getAttribute('d'), /^M[\d.]+ [\d.]+l0 0/);

  // The server cannot be reached: it says so, and goes on by itself.
  await page.context().setOffline(true);
  await page.locator('#ask-state[data-state="reconnecting"]').waitFor();
  assert.match(await page.locator('#ask-detail').innerText(), /cannot be reached; trying again.*What is shown is of/);
  await page.context().setOffline(false);
  await page.locator('#ask-state[data-state="live"]').waitFor();
  assert.equal(await page.locator('#ask-detail').innerText(), '');
  problems.splice(0, problems.length, ...problems.filter((text) => !text.includes('ERR_INTERNET_DISCONNECTED')));
  await noProblems(page);
});

test('the log: raw, filtered and paused', { skip }, async () => {
  const { page } = await open(tasks());
  await isLive(page);
  const log = page.locator('.log');
  await page.getByRole('button', { name: 'Raw' }).click();
  await query("UPDATE operate_tasks SET title = 'raw one' WHERE id = 2");
  await log.locator('.raw-message code').filter({ hasText: '"type":"transaction"' }).filter({ hasText: 'raw one' }).waitFor();
  await page.getByRole('searchbox', { name: 'Filter' }).fill('raw two');
  await log.locator('li', { hasText: 'raw one' }).waitFor({ state: 'hidden' });
  await query("UPDATE operate_tasks SET title = 'raw two' WHERE id = 2");
  await log.locator('li', { hasText: 'raw two' }).waitFor();
  await page.getByRole('button', { name: 'Pause' }).click();
  await query("UPDATE operate_tasks SET title = 'raw two again' WHERE id = 2");
  await page.getByRole('button', { name: /^Paused \([1-9]/ }).waitFor();
  assert.equal(await log.locator('li', { hasText: 'raw two again' }).count(), 0);
  await page.getByRole('button', { name: /^Paused/ }).click();
  await log.locator('li', { hasText: 'raw two again' }).waitFor();
  await noProblems(page);
});

test('who is present', { skip }, async () => {
  const { page } = await open(fragmentOf([{ title: 'Alice', token: tokens.alice, channels: ['desk:1'] }]));
  await isLive(page);
  const present = page.locator('.present');
  await present.locator('.present-count').filter({ hasText: '0' }).waitFor();
  const member = new Client({ url: `${HTTP_URL.replace('http', 'ws')}/v1/socket`, token: tokens.bob, WebSocket });
  member.subscribe('desk:1');
  member.connect();
  await until(() => member.state === 'live', 'a member that is live');
  member.request({ type: 'track', channel: 'desk:1', state: { name: 'Bob' } }, {});
  await present.locator('.present-count').filter({ hasText: '1' }).waitFor();
  await present.locator('summary').click();
  assert.equal(await present.locator('.members li').innerText(), 'bob {"name":"Bob"}');
  member.unsubscribe('desk:1');
  await present.locator('.present-count').filter({ hasText: '0' }).waitFor();
  member.disconnect();
  await noProblems(page);
});

test('explain', { skip }, async () => {
  const { page } = await open(`?token=${owner}#view=explain`);
  assert.ok(!page.url().includes('token'), 'the token does not stay in the address');
  await page.getByRole('textbox', { name: 'Channel' }).fill('tasks:1');
  await page.getByRole('textbox', { name: 'Claims' }).fill('{"role": "operate_web", "sub": "o\'hara"}');
  assert.equal(await page.locator('#explain-sql').innerText(),
    `SELECT * FROM changefeed.explain('tasks:1', '{"role":"operate_web","sub":"o''hara"}');`);
  await page.locator('#explain-form').getByRole('button', { name: 'Explain' }).click();
  const policy = await page.locator('#explain-table tbody tr').filter({ hasText: 'own_tasks' });
  await policy.waitFor();
  assert.match(await policy.innerText(), /permissive: .*request\.jwt\.claims/);
  await page.screenshot({ path: `${results}/console-explain.png` });

  await page.getByRole('textbox', { name: 'Channel' }).fill('nothing');
  await page.getByRole('textbox', { name: 'Channel' }).press('Enter');
  await page.getByRole('alert').filter({ hasText: 'channel "nothing" does not exist (42704)' }).waitFor();
  problems.splice(0, problems.length, ...problems.filter((text) => !text.includes('404')));
  await noProblems(page);
});

test('who may', { skip }, async () => {
  const proxied = { extraHTTPHeaders: { 'X-Forwarded-For': '192.0.2.1' } };
  const refused = await open('', proxied);
  assert.equal(refused.answer.status(), 403);
  assert.match(await refused.page.locator('body').innerText(), /permission denied for the console/);
  await refused.page.context().close();

  const { page, answer } = await open(`?token=${owner}#view=channels`, proxied);
  assert.equal(answer.status(), 200);
  await page.locator('#channel-table tbody tr').filter({ hasText: 'tasks:{team}' }).waitFor();
  problems.length = 0;

  // Without the token it is told what to do.
  await page.locator('#access summary').click();
  await page.getByLabel('Token').last().fill('');
  await page.getByRole('button', { name: 'Use this token' }).click();
  await page.locator('#ask-state[data-state="error"]').waitFor();
  assert.match(await page.locator('#ask-detail').innerText(), /permission denied for the console \(42501\).*admin_addresses/);
  problems.length = 0;
  await noProblems(page);
});

test('a phone, in the dark', { skip }, async () => {
  const { page } = await open('#view=lag', { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true, colorScheme: 'dark' });
  await page.locator('[data-chart="WAL held"] svg[data-points="1"]').waitFor();
  for (const name of ['Connections', 'Channels', 'Explain', 'Lag']) {
    await view(page, name).click();
    assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 390, `${name}: nothing sticks out`);
  }
  await page.screenshot({ path: `${results}/console-lag-phone.png` });
  await noProblems(page);
});
