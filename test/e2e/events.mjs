// EventSource and fetch in a real browser, against a real server: what a page
// gets, how it goes on by itself, and what pages of other origins may.
//
//   set -a; eval "$(scripts/cluster start --set changefeed.anon_role=events_anon ...)"; set +a
//   node --test test/e2e/events.mjs
//
// Environment: HTTP_URL and libpq's (a superuser). CHROMIUM and PSQL name other programs.

import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';

import { chromium } from 'playwright-core';

import { until } from '../integration/lib/client.mjs';

const { HTTP_URL, CHROMIUM = '/usr/bin/chromium', PSQL = 'psql' } = process.env;
const skip = HTTP_URL ? false : 'HTTP_URL is not set';
const query = async (text) => (await promisify(execFile)(PSQL, ['-X', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1', '-c', text])).stdout.trim();

let browser;
let foreign; // a web server of another origin
let token;

before(async () => {
  if (skip) return;
  await query(`DO $$ BEGIN CREATE ROLE events_web; EXCEPTION WHEN duplicate_object THEN NULL; END $$`);
  await query(`DROP TABLE IF EXISTS events_items; CREATE TABLE events_items (id int PRIMARY KEY, body text);
    INSERT INTO events_items SELECT i, 'item ' || i FROM generate_series(1, 10) i; GRANT SELECT ON events_items TO events_web;
    SELECT changefeed.allow_role('events_web');
    SELECT changefeed.create_channel('events_items', 'events_items', entity => 'items')`);
  token = await query(`SELECT changefeed.make_token('{"role": "events_web", "sub": "browser"}')`);
  foreign = createServer((request, response) => response.setHeader('Content-Type', 'text/html').end('<p>elsewhere'));
  await new Promise((resolve) => { foreign.listen(0, '127.0.0.1', resolve); });
  browser = await chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox', '--disable-gpu', '--disable-quic'] });
});
after(async () => {
  await browser?.close();
  foreign?.close();
});

/** In the page: keeps rows as an application would, and complains of what does not fit. */
function follow({ url, token: secret }) {
  const state = { rows: {}, types: [], ids: [], opens: 0, problems: [], filling: null };
  window.feed = state;
  const source = new EventSource(`${url}/v1/events?channel=events_items&token=${encodeURIComponent(secret)}`);
  window.source = source;
  source.onopen = () => { state.opens += 1; };
  source.onmessage = ({ data, lastEventId }) => {
    const message = JSON.parse(data);
    state.types.push(message.type);
    state.ids.push(lastEventId);
    const problem = (text) => state.problems.push(`${text}: ${data}`);
    if (message.type === 'subscribed' && !message.recovered) state.filling = {};
    if (message.type === 'resync') state.filling = {};
    if (message.type === 'snapshot') for (const row of message.rows) state.filling[row.id] = row;
    if (message.type === 'ready' && state.filling) {
      state.rows = state.filling;
      state.filling = null;
    }
    if (message.type !== 'transaction') return;
    const rows = state.filling ?? state.rows;
    for (const { op, key, row, set } of message.changes) {
      if (op === 'append' && key.id in rows) problem('append of a row that is held');
      if (op !== 'append' && !(key.id in rows)) problem(`${op} of a row that is not held`);
      if (op === 'append') rows[key.id] = row;
      else if (op === 'merge') Object.assign(rows[key.id], set);
      else delete rows[key.id];
    }
  };
}

const held = (page) => page.evaluate(() => JSON.stringify(Object.values(window.feed.rows).sort((a, b) => a.id - b.id)));
const selected = () => query("SELECT coalesce(json_agg(json_build_object('id', id, 'body', body) ORDER BY id)::text, '[]') FROM events_items");
const same = (page, what) => until(async () => JSON.stringify(JSON.parse(await held(page))) === JSON.stringify(JSON.parse(await selected())), what);

test('an EventSource goes on by itself when the gateway is killed', { skip }, async () => {
  const page = await browser.newPage();
  await page.goto(HTTP_URL);
  await page.evaluate(follow, { url: '', token });
  await same(page, 'the rows');
  await query("UPDATE events_items SET body = 'changed' WHERE id = 1; INSERT INTO events_items VALUES (11, 'new')");
  await same(page, 'changes');

  for (let turn = 0; turn < 3; turn++) {
    const opens = await page.evaluate(() => window.feed.opens);
    process.kill(Number(await query('SELECT gateway_pid FROM changefeed.stat_feed')), 'SIGKILL');
    await query(`UPDATE events_items SET body = 'turn ${turn}' WHERE id = 2; DELETE FROM events_items WHERE id = ${11 + turn};
      INSERT INTO events_items VALUES (${12 + turn}, 'while it was away')`);
    await until(() => page.evaluate((n) => window.feed.opens > n, opens), 'connected again');
    await same(page, `what it missed in turn ${turn}`);
  }
  const state = await page.evaluate(() => window.feed);
  assert.deepEqual(state.problems, []);
  assert.equal(state.types.filter((type) => type === 'snapshot').length, 1, 'it never needed its rows again');
  assert.equal(state.types.filter((type) => type === 'subscribed').length, 4);
  assert.equal(state.types.filter((type) => type === 'transaction').length, 1 + 3);
  await page.close();
});

/** In the page: one client with three transports, as an application might have them. */
function branch({ token: secret }) {
  const channel = 'events_branch:1';
  const address = (path, more = '') => `${path}?channel=${encodeURIComponent(channel)}&token=${encodeURIComponent(secret)}${more}`;
  const state = { rows: new Map(), position: null, changes: 0, streamed: 0, polled: 0, opens: 0, problems: [], resyncs: 0 };
  let filling = null;
  const take = (message) => {
    if (message.type === 'resync') state.resyncs += 1;
    if (message.type === 'resync' || (message.type === 'subscribed' && !message.recovered)) filling = new Map();
    if (message.type === 'snapshot') for (const row of message.rows) filling.set(row.aid, row);
    if (message.type === 'ready' && filling) {
      state.rows = filling;
      filling = null;
    }
    const rows = filling ?? state.rows;
    for (const { op, key, row, set } of message.changes ?? []) {
      state.changes += 1;
      const held = rows.get(key.aid);
      if ((held === undefined) !== (op === 'append')) state.problems.push(`${op} of ${key.aid}`);
      rows.set(key.aid, { ...held, ...row, ...set });
    }
  };
  window.branch = {
    state,
    events() {
      const source = new EventSource(address('/v1/events'));
      source.onopen = () => { state.opens += 1; };
      source.onmessage = ({ data, lastEventId }) => {
        take(JSON.parse(data));
        state.position = lastEventId;
      };
      this.stop = () => source.close();
    },
    async poll() {
      const answer = await fetch(address('/v1/poll', `&wait=2&from=${state.position}`));
      if (answer.status === 200) for (const message of (await answer.json()).messages) take(message);
      else if (answer.status !== 304) state.problems.push(`status ${answer.status}`);
      state.position = answer.headers.get('Changefeed-Position');
      return answer.status;
    },
    socket() {
      const socket = new WebSocket(address('/v1/socket').replace(/^/, location.origin.replace('http', 'ws')), 'changefeed.v1');
      const closed = new Promise((resolve) => { socket.onclose = resolve; });
      socket.onopen = () => socket.send(JSON.stringify({ type: 'subscribe', id: 1, channel, from: state.position }));
      socket.onmessage = ({ data }) => {
        const message = JSON.parse(data);
        if (message.type === 'error') state.problems.push(message.message);
        take(message);
        if (message.type === 'ping') socket.send('{"type":"pong"}');
        else if (message.position) state.position = message.position;
      };
      this.stop = () => { socket.close(); return closed; };
    },
  };
}

test('a page under pgbench: EventSource, cut off, then fetch, then its WebSocket', { skip }, async (t) => {
  const pgbench = async (args) => { await promisify(execFile)('pgbench', [...args, process.env.PGDATABASE]); };
  await pgbench(['-i', '-q', '-s', '1']);
  await query(`GRANT SELECT ON pgbench_accounts TO events_web;
    SELECT changefeed.create_channel('events_branch:{bid}', 'public.pgbench_accounts', entity => 'accounts')`);
  const page = await browser.newPage();
  await page.goto(HTTP_URL);
  await page.evaluate(branch, { token });
  const state = (name) => page.evaluate((what) => window.branch.state[what], name);
  const more = async (n) => {
    const before = await state('changes');
    await until(async () => (await state('changes')) >= before + n, `${n} more changes`);
  };
  await until(() => page.evaluate(async () => {
    window.branch.stop?.();
    window.branch.events();
    return new Promise((resolve) => { setTimeout(() => resolve(window.branch.state.opens > 0), 300); });
  }), 'the channel is known');
  const load = spawn('pgbench', ['-n', '-c', '3', '-j', '2', '-T', '120', process.env.PGDATABASE], { stdio: 'ignore' });
  const closed = once(load, 'close');
  t.after(() => load.kill('SIGINT'));
  await more(50);
  process.kill(Number(await query('SELECT gateway_pid FROM changefeed.stat_feed')), 'SIGKILL');
  const opens = await state('opens');
  await until(async () => (await state('opens')) > opens, 'connected again');
  await more(50);
  await page.evaluate(() => window.branch.stop());
  const streamed = await state('changes');
  for (let i = 0; i < 3; i++) await page.evaluate(() => window.branch.poll());
  const polled = await state('changes');
  await page.evaluate(() => window.branch.socket());
  await more(50);
  await page.evaluate(() => window.branch.stop());
  const sent = await state('changes');
  await page.evaluate(() => window.branch.poll());
  load.kill('SIGINT'); // between two transactions, or one is rolled back
  await closed;
  while (await page.evaluate(() => window.branch.poll()) !== 304);
  const all = await state('changes');
  const [updates, expected] = (await query(`SELECT (SELECT count(*) FROM pgbench_history WHERE delta <> 0),
    md5(string_agg(aid || '=' || abalance, ',' ORDER BY aid)) FROM pgbench_accounts`)).split('|');
  t.diagnostic(`EventSource ${streamed}, fetch ${polled - streamed + all - sent}, WebSocket ${sent - polled}; ${updates} updates`);
  assert.deepEqual([await state('problems'), await state('resyncs')], [[], 0]);
  const rows = await page.evaluate(() => [...window.branch.state.rows.values()].sort((a, b) => a.aid - b.aid).map(({ aid, abalance }) => `${aid}=${abalance}`).join(','));
  assert.equal(createHash('md5').update(rows).digest('hex'), expected);
  assert.equal(all, Number(updates));
  await page.close();
});

test('pages of other origins are refused unless they are listed', { skip }, async () => {
  const page = await browser.newPage();
  const origin = `http://127.0.0.1:${foreign.address().port}`;
  await page.goto(origin);
  const attempt = () => page.evaluate(async ({ url, secret }) => {
    try {
      const answer = await fetch(`${url}/v1/poll?channel=events_items`, { headers: { Authorization: `Bearer ${secret}` }, credentials: 'include' });
      return [answer.status, answer.headers.get('ETag') !== null];
    } catch (error) {
      return error.name;
    }
  }, { url: HTTP_URL, secret: token });
  assert.equal(await attempt(), 'TypeError', 'a foreign page');
  await query(`ALTER SYSTEM SET changefeed.allowed_origins = '${origin}'`);
  await query('SELECT pg_reload_conf()');
  try {
    assert.deepEqual(await until(async () => {
      const result = await attempt();
      return result !== 'TypeError' && result;
    }, 'a listed page'), [200, true]);
    await page.evaluate(follow, { url: HTTP_URL, token });
    await same(page, 'the rows in a listed page');
  } finally {
    await query('ALTER SYSTEM RESET changefeed.allowed_origins');
    await query('SELECT pg_reload_conf()');
  }
  await page.close();
});
