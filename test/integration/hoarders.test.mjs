// Clients who ask for more than they take: what they can hold of the server's descriptors, disk and
// time is limited, they are let go, and whoever takes what he asks for notices nothing but a pause.

import assert from 'node:assert/strict';
import { readdirSync, readlinkSync, statSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';

import { Client, until } from './lib/client.mjs';
import { Events } from './lib/http.mjs';
import { number } from './lib/json.mjs';
import { reload, Session } from './lib/psql.mjs';

const DESCRIPTORS = 400; // a quarter of them is for files

describe('clients who hoard', () => {
  let db;
  let token;
  const clients = [];

  before(async () => {
    db = new Session();
    await db.exec(`CREATE ROLE hoard_web; SELECT changefeed.allow_role('hoard_web');
      CREATE TABLE hoard (id int PRIMARY KEY, pad text); -- 6 MB as JSON
      INSERT INTO hoard SELECT i, repeat(md5(i::text), 30) FROM generate_series(1, 6000) i;
      CREATE TABLE small (id int PRIMARY KEY, room int, pad text); INSERT INTO small SELECT i, i, repeat(md5(i::text), 900) FROM generate_series(1, 600) i;
      CREATE TABLE texts (id int PRIMARY KEY, body text);
      GRANT SELECT ON hoard, small, texts TO hoard_web;
      SELECT changefeed.create_channel('hoard', 'hoard'); SELECT changefeed.create_channel('small:{room}', 'small');
      SELECT changefeed.create_channel('texts', 'texts')`);
    token = await db.token({ role: 'hoard_web' });
    await (await Client.connectSoon({ token })).close();
  });

  after(async () => {
    for (const client of clients) await client.cut();
    await reload(db, { 'changefeed.heartbeat': null, 'changefeed.snapshot_space': null });
    await db?.close();
  });

  async function connect(options = {}) {
    const client = await until(() => Client.connect({ token, ...options }).catch(() => null), 'a connection');
    clients.push(client);
    return client;
  }

  const gateway = async () => Number(await db.value('SELECT gateway_pid FROM changefeed.stat_feed'));

  /** Files of snapshots that the process has open: number and bytes, each file once. */
  function files(pid) {
    const open = [];
    for (const fd of readdirSync(`/proc/${pid}/fd`)) {
      try {
        if (readlinkSync(`/proc/${pid}/fd/${fd}`).includes('_changefeed.')) open.push(statSync(`/proc/${pid}/fd/${fd}`));
      } catch { /* it is closed by now */ }
    }
    return { number: open.length, bytes: [...new Map(open.map(({ ino, size }) => [ino, size])).values()].reduce((sum, size) => sum + size, 0) };
  }

  /** Subscribes to so many things, reads none of it, and says all the time that it lives. */
  async function hoarder(names) {
    const client = await connect();
    client.socket.pause();
    for (const [id, channel] of names.entries()) client.send({ type: 'subscribe', id, channel });
    const timer = setInterval(() => client.socket.readyState === 1 && client.send('{"type":"pong"}'), 300);
    client.ended.then(() => clearInterval(timer));
    return client;
  }

  test('files of snapshots: at most 16 of a connection, a quarter of the descriptors in all, and not for ever', async (t) => {
    await reload(db, { 'changefeed.heartbeat': '1s' });
    const feed = await db.value('SELECT feed_worker_pid FROM changefeed.stat_feed');
    await db.exec(`COPY (SELECT) TO PROGRAM 'prlimit --pid ${feed} --nofile=${DESCRIPTORS}:${DESCRIPTORS}'`);
    const before = await gateway();
    process.kill(before, 'SIGKILL');
    const pid = await until(async () => { const now = await gateway(); return now > 0 && now !== before ? now : null; }, 'another gateway');
    const good = await connect();

    let most = 0;
    const watch = setInterval(() => { most = Math.max(most, files(pid).number); }, 5);
    t.after(() => clearInterval(watch));
    const first = await hoarder(Array.from({ length: 40 }, (_, i) => `hoard?id=gt.-${i}`));
    await until(() => files(pid).number === 16, () => `16 files, not ${files(pid).number}`);
    const hoarders = [first];
    for (let k = 1; k < 7; k += 1) hoarders.push(await hoarder(Array.from({ length: 40 }, (_, i) => `hoard?id=gt.-${100 * k + i}`)));
    await until(() => files(pid).number === DESCRIPTORS / 4, () => `all places taken, not ${files(pid).number}`);

    // What needs no file is there at once, the rest when the others have been let go.
    await good.open('small:1');
    const waits = good.open('hoard', { ms: 60000 });
    await Promise.all(hoarders.map((client) => client.ended));
    assert.equal((await waits).rows().length, 6000);
    assert.ok(most <= DESCRIPTORS / 4, `${most} files`);
    assert.equal(await gateway(), pid);
    assert.equal(good.closed, null);
    good.check();
    await until(() => files(pid).number === 0, 'no file is left');
    const [{ closed }] = await db.rows(`SELECT (regexp_match(changefeed.metrics(), 'connections_closed_total\\{cause="too_slow"\\} (\\d+)'))[1]::int AS closed`);
    assert.ok(number(closed) >= hoarders.length, `${closed}`);
    await good.close();
  });

  test('disk space: a snapshot that is too large is refused, others wait until there is room', async () => {
    await reload(db, { 'changefeed.snapshot_space': '16MB', 'changefeed.heartbeat': '25s' });
    await db.exec("CREATE TABLE wide AS SELECT i AS id, repeat(md5(i::text), 100) AS pad FROM generate_series(1, 6000) i; ALTER TABLE wide ADD PRIMARY KEY (id); GRANT SELECT ON wide TO hoard_web; SELECT changefeed.create_channel('wide', 'wide')");
    const good = await connect();
    await until(() => good.open('wide').then(() => false, (error) => {
      if (error.code === '42704') return false;
      assert.equal(error.code, '53400');
      assert.match(error.message, /changefeed\.snapshot_space \(16 MB\)/);
      return true;
    }), 'refused');
    const pid = await gateway();
    const bad = await hoarder(Array.from({ length: 16 }, (_, i) => `hoard?id=gt.-${i}`));
    await until(() => files(pid).bytes > 16 * 1048576, () => `more than 16 MB: ${files(pid).bytes}`);
    const waits = good.open('hoard', { ms: 60000 });
    waits.catch(() => {});
    // Those that were on their way when it was reached, one for each query worker, come on top.
    await until(async () => await db.value("SELECT count(*) FROM pg_stat_activity WHERE query = 'reading a snapshot' AND state = 'active'") === '0', 'nothing more is read');
    assert.ok(files(pid).bytes < 40 * 1048576, `${files(pid).bytes}`);
    assert.equal(good.subscriptions.get('hoard').state, 'new');
    bad.socket.resume();
    assert.equal((await waits).rows().length, 6000);
    await bad.cut();
    good.check();
    await good.close();
  });

  test('who subscribes to hundreds of small snapshots at once and reads slowly is not let go', async () => {
    await reload(db, { 'changefeed.snapshot_space': null, 'changefeed.heartbeat': '4s' });
    const client = await connect();
    client.socket.pause();
    const open = Array.from({ length: 600 }, (_, i) => client.open(`small:${i + 1}`, { ms: 60000 }));
    // Gone as if its line were slow, for longer than it takes to ask for all of it
    await until(async () => number((await db.rows("SELECT count(*) AS n FROM changefeed.stat_subscriptions"))[0].n) === 600, 'all are known');
    const pid = await gateway();
    await new Promise((resolve) => { setTimeout(resolve, 1000); });
    client.socket.resume();
    for (const s of await Promise.all(open)) assert.equal(s.rows().length, 1);
    assert.equal(client.closed, null);
    assert.equal(await gateway(), pid);
    client.check();
    await client.close();
  });

  test('an event stream of many channels begins, however large their snapshots are', async (t) => {
    await reload(db, { 'changefeed.snapshot_space': '16MB' });
    for (const [channels, what] of [
      [Array.from({ length: 20 }, (_, i) => `hoard?id=gt.${5800 + i}`), 'in files'],
      [Array.from({ length: 60 }, (_, i) => `small:${i + 1}`), 'in messages'],
      [Array.from({ length: 9 }, (_, i) => `hoard?id=gt.${-900 - i}`), 'in files that have no room together'],
    ]) {
      const events = await Events.open(channels, { token });
      t.after(() => events.cut());
      for (const channel of channels) assert.ok((await events.subscription(channel).ready()).rows().length > 0, `${channel}, ${what}`);
      events.client.check();
    }
  });

  test('conditions that take long share a fifth of the time; the rest is refused, and others are served', async (t) => {
    const mallory = await connect();
    const good = await connect();
    const cheap = await good.open('texts?body=match.^a');
    const plain = await good.open('texts');
    // Back-references cannot be matched in reasonable time: each takes as long as it is let.
    const names = Array.from({ length: 300 }, (_, i) => `texts?body=match.${encodeURIComponent('^(.+)(.+)(.+)(.+)\\4\\3\\2\\1$')}&id=lt.${1000 + i}`);
    const open = await Promise.all(names.map((name) => mallory.open(name)));
    const evaluations = () => db.value('SELECT evaluations FROM changefeed.stat_feed').then(Number);
    const before = await evaluations();
    await db.exec("INSERT INTO texts VALUES (1, (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 20) i)), (2, 'abc')");
    await good.settle(60000);
    assert.equal(plain.rows().length, 2);
    assert.deepEqual(cheap.rows().map(({ body }) => body).filter((body) => body === 'abc'), ['abc']);
    await until(() => open.every((s) => s.state === 'ended'), () => `the end of all: ${open.filter((s) => s.state !== 'ended').length}`);
    const codes = {};
    for (const s of open) codes[s.revoked.code] = (codes[s.revoked.code] ?? 0) + 1;
    const made = await evaluations() - before;
    t.diagnostic(`${made} evaluations, ${JSON.stringify(codes)}`);
    assert.ok(codes['57014'] > 0 && codes['53000'] > 0 && Object.keys(codes).length === 2, JSON.stringify(codes));
    assert.ok(made < 100, `${made} evaluations`);
    await db.exec("UPDATE texts SET body = 'ab' WHERE id = 2");
    await good.settle();
    assert.ok(cheap.rows().some(({ body }) => body === 'ab'));
    assert.deepEqual(cheap.resyncs, []);
    good.check();
    mallory.check();
  });

  test('so do conditions on large values, also when these are short in the WAL or not in it', async () => {
    const mallory = await connect();
    await db.exec("DELETE FROM texts; INSERT INTO texts VALUES (3, 'x')");
    const refused = async (n, prefix, sql) => {
      const open = await Promise.all(Array.from({ length: n }, (_, i) => mallory.open(`texts?body=ilike.*${prefix}${i}*`)));
      await db.exec(sql);
      await mallory.settle(60000);
      return open.filter((s) => s.state === 'ended' && s.revoked.code === '53000').length;
    };
    assert.ok(await refused(120, 'packed', "INSERT INTO texts SELECT 4, repeat('ab', 400000)") > 0);
    await db.exec("ALTER TABLE texts ADD n int; DELETE FROM texts WHERE id = 4; UPDATE texts SET body = (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 20000) i) WHERE id = 3");
    assert.ok(await refused(10, 'elsewhere', 'UPDATE texts SET n = 1 WHERE id = 3') > 0);
    mallory.check();
  });
});
