// The chat demo in a real browser: people in windows of their own who see one another.
//
// Environment: HTTP_URL and libpq's PGHOST, PGPORT, PGUSER, PGDATABASE (a superuser; demo/chat/chat.sql is loaded if
// the chat is not there). CHROMIUM and PSQL name other programs. Screenshots go to test/results; with UPDATE_IMAGES=1
// to doc/images.

import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { mkdir } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

import { chromium } from 'playwright-core';

import { Client } from '../../console/client.js';
import { serve } from '../../demo/chat/server.mjs';
import { until } from '../integration/lib/client.mjs';

const { HTTP_URL, CHROMIUM = '/usr/bin/chromium', PSQL = 'psql', UPDATE_IMAGES } = process.env;
const root = new URL('../../', import.meta.url);
const images = fileURLToPath(new URL(UPDATE_IMAGES ? 'doc/images/' : 'test/results/', root));
const skip = HTTP_URL ? false : 'HTTP_URL is not set';
const socketUrl = `${HTTP_URL?.replace(/^http/, 'ws')}/v1/socket`;

async function sql(...args) {
  const { stdout } = await promisify(execFile)(PSQL, ['-X', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1', ...args]);
  return stdout.trim();
}

const query = (text) => sql('-c', text);

let browsers = []; // two processes, which people use in turn
let entered = 0;
let server;
let url;
const problems = []; // what a browser complained of

before(async () => {
  if (skip) return;
  await mkdir(new URL('test/results/', root), { recursive: true });
  if ((await query("SELECT to_regclass('chat.rooms') IS NULL")) === 't') {
    await sql('-c', 'SET client_min_messages = warning', '-f', fileURLToPath(new URL('demo/chat/chat.sql', root)));
  }
  await query('DELETE FROM chat.messages WHERE id > 5'); // of an earlier run
  ({ server, url } = await serve({ socketUrl, port: 0 }));
  await query(`ALTER SYSTEM SET changefeed.allowed_origins = '${url}'`);
  await query('SELECT pg_reload_conf()');
  const launch = () => chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox', '--disable-gpu', '--disable-background-networking'] });
  browsers = await Promise.all([launch(), launch()]);
});

after(async () => {
  for (const browser of browsers) await browser.close();
  server?.close();
  server?.closeAllConnections();
  if (!skip) {
    await query('ALTER SYSTEM RESET changefeed.allowed_origins');
    await query('SELECT pg_reload_conf()');
  }
});

/** A window of a browser of their own, in which `name` has entered. */
async function enter(name, { hash = '', ...options } = {}) {
  const context = await browsers[entered++ % browsers.length].newContext({ viewport: { width: 900, height: 640 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(15_000);
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type())) problems.push(message.text());
  });
  page.on('pageerror', (error) => problems.push(error.message));
  await page.goto(`${url}/${hash}`);
  const button = page.getByRole('button', { name, exact: true });
  if (await button.count()) {
    await button.click();
  } else {
    await page.getByLabel('Somebody else').fill(name);
    await page.getByRole('button', { name: 'Enter' }).click();
  }
  await page.locator('#badge[data-state="live"]').waitFor();
  return page;
}

const leave = (...pages) => Promise.all(pages.map((page) => page.context().close()));
const said = (page) => page.locator('#messages li:not(.waits) p').allInnerTexts();
const saw = (page, text) => page.locator('#messages li:not(.waits) p').getByText(text, { exact: true }).waitFor();
const here = (page, text) => page.locator('#here').getByText(text, { exact: true }).waitFor();

async function say(page, text) {
  await page.getByLabel('Message', { exact: true }).fill(text);
  await page.getByRole('button', { name: 'Send' }).click();
}

const noProblems = () => assert.deepEqual(problems.splice(0), []);

test('two people see what the other says and does; a third one nothing of it', { skip }, async () => {
  const [ada, bruno, chiara] = await Promise.all([
    enter('Ada', { hash: '#kitchen' }), enter('Bruno', { hash: '#kitchen' }), enter('Chiara', { hash: '#kitchen' }),
  ]);
  await Promise.all([here(ada, '2 people here'), here(bruno, '2 people here')]);
  assert.equal(await ada.locator('#title').innerText(), 'Kitchen');

  await say(ada, 'The coffee has come.');
  await Promise.all([saw(ada, 'The coffee has come.'), saw(bruno, 'The coffee has come.')]);
  await say(bruno, '<b>At last</b>');
  await Promise.all([saw(ada, '<b>At last</b>'), saw(bruno, '<b>At last</b>')]);
  assert.equal((await said(ada)).filter((text) => text === 'The coffee has come.').length, 1);

  // Typing shows at the other's, and goes by itself, or with the message; meanwhile:
  const typing = bruno.locator('#typing');
  await ada.getByLabel('Message', { exact: true }).pressSequentially('Who');
  await typing.getByText('Ada is typing…').waitFor();
  assert.equal(await ada.locator('#typing').innerText(), '');

  // Chiara is no member: not by the page, and not by other means.
  assert.equal(await chiara.locator('#title').innerText(), 'Lobby');
  await here(chiara, '1 person here');
  assert.deepEqual(await chiara.locator('#rooms a').allInnerTexts(), ['Lobby']);
  const [window, token] = ['room:kitchen?order=id.desc&limit=50', await query(`SELECT changefeed.make_token('{"role": "chat_user", "sub": "Chiara"}')`)];
  const WebSocket = createRequire(new URL('test/package.json', root))('ws');
  const client = new Client({ url: socketUrl, token, WebSocket });
  client.connect();
  const room = client.subscribe(window);
  const refused = { code: '42501' };
  await assert.rejects(client.call('send', { room: 'kitchen', body: 'Hello?' }, { key: 'chiara-1' }), refused);
  await assert.rejects(client.track(window), (error) => ['42704', '57014'].includes(error.code));
  assert.equal(room.error.code, refused.code);
  assert.equal(room.members, null);
  await assert.rejects(client.sync().then(() => client.call('send', { room: 'kitchen', body: 'Hello?' })), refused);
  client.disconnect();
  assert.equal(await query("SELECT count(*) FROM chat.messages WHERE room_id = 'kitchen' AND author = 'Chiara'"), '0');
  assert.ok(!(await chiara.content()).includes('coffee'));

  await typing.getByText('Ada is typing…').waitFor({ state: 'detached' });
  await say(ada, 'Who makes some?');
  await saw(bruno, 'Who makes some?');

  // Membership decides, from one moment to the other.
  await query("INSERT INTO chat.members VALUES ('kitchen', 'Chiara')");
  await saw(chiara, 'Who makes some?');
  await here(ada, '3 people here');
  await query("DELETE FROM chat.members WHERE person = 'Chiara'");
  await chiara.locator('#title').getByText('Lobby').waitFor();
  assert.ok(!(await chiara.content()).includes('coffee'));

  // Who closes the window is gone after the grace period; meanwhile messages are refused, with words, and not lost.
  await here(ada, '2 people here');
  await leave(bruno);
  await here(ada, '2 people here');
  await say(ada, '   ');
  await ada.getByRole('alert').getByText('Type something first.').waitFor();
  const long = 'x'.repeat(501);
  await say(ada, long);
  await ada.getByRole('alert').getByText('the message is too long: 501 characters').waitFor();
  assert.equal(await ada.getByLabel('Message', { exact: true }).inputValue(), long);
  await say(ada, 'Short.');
  await saw(ada, 'Short.');
  assert.equal(await ada.locator('#error').isVisible(), false);
  await here(ada, '1 person here');
  await leave(ada, chiara);
  noProblems();
});

test('without a network: what was missed comes, what was written goes, each once', { skip }, async () => {
  const [ada, dana] = await Promise.all([enter('Ada'), enter('Dana')]);
  await here(ada, '2 people here');
  await dana.context().setOffline(true);
  await dana.locator('#badge[data-state="reconnecting"]').waitFor();
  assert.match(await dana.locator('#badge').innerText(), /offline, no network/);
  for (const n of [1, 2, 3]) {
    await say(ada, `While you were away ${n}`);
    await say(dana, `Written offline ${n}`);
  }
  await saw(ada, 'While you were away 3');
  assert.equal(await dana.locator('#messages .waits').count(), 3);
  await dana.context().setOffline(false);
  await dana.locator('#badge[data-state="live"]').waitFor();
  await Promise.all([saw(ada, 'Written offline 3'), saw(dana, 'Written offline 3'), saw(dana, 'While you were away 3')]);
  await here(dana, '2 people here');

  // The gateway dies while calls run: their answers are lost, what they did is not.
  const blocker = spawn(PSQL, ['-X', '-q'], { stdio: ['pipe', 'ignore', 'inherit'] });
  blocker.stdin.write('BEGIN; LOCK TABLE chat.messages IN SHARE ROW EXCLUSIVE MODE;\n');
  const granted = (is) => query(`SELECT count(*) FROM pg_locks WHERE relation = 'chat.messages'::regclass AND granted = ${is}
    AND mode IN ('ShareRowExclusiveLock', 'RowExclusiveLock')`);
  await until(async () => (await granted(true)) === '1', 'the lock');
  await Promise.all([say(ada, 'Ada behind a kill'), say(dana, 'Dana behind a kill')]);
  await until(async () => Number(await granted(false)) > 0, 'a call that waits');
  const gateway = () => query('SELECT coalesce(gateway_pid, 0) FROM changefeed.stat_feed');
  const killed = await gateway();
  process.kill(Number(killed), 'SIGKILL');
  await until(async () => !['', '0', killed].includes(await gateway()), 'another gateway');
  blocker.stdin.end('COMMIT;\n');
  for (const page of [ada, dana]) {
    for (const text of ['Ada behind a kill', 'Dana behind a kill']) await saw(page, text);
    await page.locator('#badge[data-state="live"]').waitFor();
    await page.locator('#messages .waits').waitFor({ state: 'detached' });
    assert.equal(await page.locator('#error').isVisible(), false);
  }

  const everything = (await query("SELECT body FROM (SELECT * FROM chat.messages WHERE room_id = 'lobby' ORDER BY id DESC LIMIT 50) m ORDER BY id")).split('\n');
  assert.deepEqual(await said(ada), everything);
  assert.deepEqual(await said(dana), everything);
  await leave(ada, dana);
  // A browser says by itself that it cannot connect.
  assert.deepEqual(problems.splice(0).filter((text) => !/WebSocket connection to/.test(text)), []);
});

test('the window stays at the latest 50', { skip }, async () => {
  const ada = await enter('Ada');
  await query("INSERT INTO chat.messages (room_id, author, body) SELECT 'lobby', 'Bruno', 'Number ' || n FROM generate_series(1, 20) n");
  await saw(ada, 'Number 20');
  await query("DO $$ BEGIN FOR n IN 21..60 LOOP INSERT INTO chat.messages (room_id, author, body) VALUES ('lobby', 'Bruno', 'Number ' || n); COMMIT; END LOOP; END $$");
  await saw(ada, 'Number 60');
  assert.deepEqual(await said(ada), Array.from({ length: 50 }, (_, i) => `Number ${i + 11}`));
  // One behind the window changes: it is not the window's.
  await query("UPDATE chat.messages SET body = 'changed' WHERE body IN ('Number 5', 'Number 30')");
  await saw(ada, 'changed');
  assert.equal((await said(ada)).filter((text) => text === 'changed').length, 1);
  assert.equal((await said(ada)).length, 50);
  await leave(ada);
  noProblems();
});

test('screenshots', { skip }, async () => {
  await query('DELETE FROM chat.messages WHERE id > 5');
  const people = await Promise.all([
    enter('Ada', { viewport: { width: 900, height: 480 } }), enter('Bruno'),
    enter('Chiara', { viewport: { width: 390, height: 700 }, colorScheme: 'dark', isMobile: true, hasTouch: true }),
  ]);
  const [ada, bruno, chiara] = people;
  await Promise.all(people.map((page) => here(page, '3 people here')));
  await say(chiara, 'Lunch at twelve?');
  await say(ada, 'Yes, please. The usual place, or is it full on Fridays?');
  await saw(chiara, 'Yes, please. The usual place, or is it full on Fridays?');
  await bruno.getByLabel('Message', { exact: true }).pressSequentially('The us');
  await Promise.all([ada, chiara].map((page) => page.locator('#typing').getByText('Bruno is typing…').waitFor()));
  await ada.screenshot({ path: `${images}chat.png` });
  await chiara.screenshot({ path: fileURLToPath(new URL('test/results/chat-phone.png', root)) });
  // Nothing is wider than the page.
  for (const page of people) {
    assert.equal(await page.evaluate(() => document.documentElement.scrollWidth > window.innerWidth), false);
  }
  await leave(...people);
  noProblems();
});
