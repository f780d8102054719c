// curl as a client, under pgbench: event streams and polls, cut off in the
// middle and changed; every row is there and every update came once.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { test } from 'node:test';

import { until } from './lib/client.mjs';
import { Session } from './lib/psql.mjs';

const CHANNEL = 'curl_branch:1';

/** Keeps rows as a small script would, and complains of what does not fit. */
class Rows {
  rows = new Map();
  position = null;
  changes = 0;
  resyncs = [];
  /** Of rows that had been updated when the snapshot was taken. */
  updated = new Set();
  /** Changes of each row since then. */
  updates = new Map();
  #filling = null;

  take(message) {
    if (message.type === 'resync') this.resyncs.push(message.reason);
    if (message.type === 'resync' || (message.type === 'subscribed' && !message.recovered)) this.#filling = new Map();
    if (message.type === 'snapshot') {
      for (const row of message.rows) {
        this.#filling.set(row.aid, row);
        if (row.abalance !== 0) this.updated.add(row.aid);
      }
    }
    if (message.type === 'ready' && this.#filling) {
      this.rows = this.#filling;
      this.#filling = null;
    }
    for (const { op, key, row, set } of message.changes ?? []) {
      this.changes += 1;
      const rows = this.#filling ?? this.rows; // behind a snapshot come the changes that it lacks
      const held = rows.get(key.aid);
      assert.equal(held === undefined, op === 'append', `${op} of ${key.aid}`);
      rows.set(key.aid, { ...held, ...row, ...set });
      this.updates.set(key.aid, (this.updates.get(key.aid) ?? 0) + 1);
    }
  }
}

test('curl has every row, and saw every update once', async (t) => {
  const db = new Session();
  t.after(() => db.close());
  const run = async (args) => {
    const [code] = await once(spawn('pgbench', args, { stdio: 'ignore' }), 'close');
    assert.equal(code, 0);
  };
  await run(['-i', '-q', '-s', '1', process.env.PGDATABASE]);
  await db.exec(`CREATE ROLE curl_web; GRANT SELECT ON pgbench_accounts TO curl_web; SELECT changefeed.allow_role('curl_web');
    SELECT changefeed.create_channel('curl_branch:{bid}', 'public.pgbench_accounts', entity => 'accounts')`);
  const token = await db.token({ role: 'curl_web' });
  const address = (path, more = '') => `${process.env.HTTP_URL}${path}?channel=${encodeURIComponent(CHANNEL)}${more}`;
  const curl = (args) => spawn('curl', ['-sN', '-H', `Authorization: Bearer ${token}`, ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
  const state = new Rows();
  const counts = { streams: 0, polls: 0 };

  /** One request to /v1/events, until there was enough. */
  async function stream(enough) {
    const before = state.changes;
    const child = curl([...(state.position === null ? [] : ['-H', `Last-Event-ID: ${state.position}`]), address('/v1/events')]);
    const closed = once(child, 'close');
    let text = '';
    child.stdout.setEncoding('utf8').on('data', (chunk) => {
      if (child.killed) return;
      text += chunk;
      for (let end = text.indexOf('\n\n'); end >= 0; end = text.indexOf('\n\n')) {
        for (const line of text.slice(0, end).split('\n')) {
          if (line.startsWith('data: ')) state.take(JSON.parse(line.slice(6)));
          if (line.startsWith('id: ')) state.position = line.slice(4);
        }
        text = text.slice(end + 2);
      }
      // Before all of the snapshot is there, and what it lacks, there is no position to go on from.
      if (state.position !== null && state.changes - before >= enough) child.kill('SIGKILL');
    });
    await closed;
    counts.streams += state.changes - before;
  }

  async function poll() {
    const before = state.changes;
    const child = curl(['-w', '\n%{http_code} %header{changefeed-position}', address('/v1/poll', `&wait=2&from=${state.position}`)]);
    const closed = once(child, 'close');
    let text = '';
    for await (const chunk of child.stdout.setEncoding('utf8')) text += chunk;
    await closed;
    const end = text.lastIndexOf('\n');
    const [status, position] = text.slice(end + 1).split(' ');
    if (status === '200') for (const message of JSON.parse(text.slice(0, end)).messages) state.take(message);
    else assert.equal(status, '304', `from=${state.position}: ${text}`);
    state.position = position;
    counts.polls += state.changes - before;
    return status;
  }

  // All rows would be more than a poll may bring.
  await until(async () => (await fetch(address('/v1/poll'), { headers: { Authorization: `Bearer ${token}` } })).status === 422, 'the channel is known');
  const load = spawn('pgbench', ['-n', '-c', '3', '-j', '2', '-T', '120', process.env.PGDATABASE], { stdio: 'ignore' });
  const closed = once(load, 'close');
  t.after(() => load.kill('SIGINT'));
  await stream(100);
  await stream(100);
  for (let i = 0; i < 5; i += 1) await poll();
  await stream(100);
  load.kill('SIGINT'); // between two transactions, or one is rolled back
  await closed;
  while (await poll() !== '304');

  assert.deepEqual(state.resyncs, []);
  const selected = new Map((await db.exec('SELECT aid, abalance FROM pgbench_accounts')).split('\n').map((line) => line.split('|').map(Number)));
  assert.equal(state.rows.size, selected.size);
  for (const [aid, balance] of selected) assert.equal(state.rows.get(aid)?.abalance, balance);
  const history = (await db.exec('SELECT aid, count(*) FROM pgbench_history WHERE delta <> 0 GROUP BY aid')).split('\n').map((line) => line.split('|').map(Number));
  let before = 0;
  for (const [aid, updates] of history) {
    const missing = updates - (state.updates.get(aid) ?? 0);
    before += missing;
    // What was in the snapshot does not come again.
    assert.ok(state.updated.has(aid) ? missing >= 1 : missing === 0, `row ${aid}: ${updates} updates, ${missing} did not come`);
  }
  t.diagnostic(`${JSON.stringify(counts)}, ${before} updates were in the snapshot`);
  assert.equal(state.updates.size, history.filter(([aid]) => state.updates.has(aid)).length);
  assert.ok(counts.streams > 0 && counts.polls > 0);
});
