// Processes that die, and a server that restarts, under load.

import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { once } from 'node:events';
import { after, before, describe, test } from 'node:test';
import { promisify } from 'node:util';

import { assertSame, Client, until } from './lib/client.mjs';
import { Follower } from './lib/follower.mjs';
import { number } from './lib/json.mjs';
import { Session } from './lib/psql.mjs';

const run = promisify(execFile);
const RATE = 200;
const CLIENTS = 20;
const CHANNELS = 10;

describe('faults', () => {
  let db;
  let token;
  let followers = [];
  const everybody = []; // for those that a failed test leaves
  const script = `${process.env.CLUSTER_DATA}/../faults.sql`;

  before(async () => {
    db = new Session();
    await db.exec(`CREATE SCHEMA faults; CREATE ROLE faults_web; GRANT USAGE ON SCHEMA faults TO faults_web;
      SELECT changefeed.allow_role('faults_web');
      CREATE TABLE faults.plain (id int PRIMARY KEY, ch int NOT NULL, n int NOT NULL DEFAULT 0);
      CREATE TABLE faults.judged (id int PRIMARY KEY, ch int NOT NULL, n int NOT NULL DEFAULT 0);
      CREATE TABLE faults.members (usr text PRIMARY KEY);
      INSERT INTO faults.plain SELECT i, i % ${CHANNELS} FROM generate_series(0, 999) i;
      INSERT INTO faults.judged SELECT * FROM faults.plain;
      INSERT INTO faults.members VALUES ('ada');
      ALTER TABLE faults.judged ENABLE ROW LEVEL SECURITY;
      CREATE POLICY p ON faults.judged USING (EXISTS (SELECT FROM faults.members WHERE usr = current_setting('request.jwt.claims', true)::json->>'sub'));
      GRANT SELECT ON ALL TABLES IN SCHEMA faults TO faults_web;
      SELECT changefeed.create_channel('plain:{ch}', 'faults.plain');
      SELECT changefeed.create_channel('judged:{ch}', 'faults.judged')`);
    writeFileSync(script, `\\set id random(0, 999)
UPDATE faults.plain SET n = n + 1 WHERE id = :id;
UPDATE faults.judged SET n = n + 1 WHERE id = :id;
`);
    token = await db.token({ role: 'faults_web', sub: 'ada' });
    await (await Client.connectSoon({ token })).close();
  });

  after(async () => {
    await Promise.allSettled(everybody.map((follower) => follower.stop()));
    await db?.close();
  });

  const stat = async (column) => db.value(`SELECT ${column} FROM changefeed.stat_feed`);

  async function follow() {
    await db.exec('UPDATE faults.plain SET n = 0; UPDATE faults.judged SET n = 0');
    followers = [];
    for (let i = 0; i < CLIENTS; i += 1) {
      followers.push(await new Follower({ token, channels: [`plain:${i % CHANNELS}`, `judged:${i % CHANNELS}`] }).start());
    }
    everybody.push(...followers);
    await Promise.all(followers.map((follower) => follower.settle()));
  }

  /** Writers, at a rate, for some seconds. They do not notice anything. */
  function load(seconds) {
    const child = spawn('pgbench', ['-n', '-f', script, '-R', String(RATE), '-c', '2', '-T', String(seconds), process.env.PGDATABASE], { stdio: ['ignore', 'pipe', 'pipe'] });
    let output = '';
    child.stdout.on('data', (chunk) => { output += chunk; });
    child.stderr.on('data', (chunk) => { output += chunk; });
    return once(child, 'close').then(([code]) => {
      assert.equal(code, 0, output);
      assert.match(output, /number of failed transactions: 0 /);
      assert.doesNotMatch(output, /abort|terminat|server closed/i);
    });
  }

  const flows = async () => {
    const n = followers[0].changes + followers[0].client.subscriptions.get(followers[0].channels[0]).changes;
    await until(() => followers[0].client.subscriptions.get(followers[0].channels[0])?.changes > n, 'changes flow');
  };

  async function compare(t, { recovered = true, exact = true } = {}) {
    await Promise.all(followers.map((follower) => follower.settle()));
    const all = {};
    for (const table of ['plain', 'judged']) {
      for (let ch = 0; ch < CHANNELS; ch += 1) all[`${table}:${ch}`] = await db.rows(`SELECT * FROM faults.${table} WHERE ch = ${ch}`);
    }
    const recoveries = followers.flatMap((follower) => follower.recovered);
    const resyncs = followers.flatMap((follower) => [...follower.resyncs, ...follower.channels.flatMap((channel) => follower.subscription(channel).resyncs)]);
    t.diagnostic(`${followers[0].losses.length} losses, ${recoveries.filter(Boolean).length} of ${recoveries.length} recovered, ${resyncs.length} resyncs ${[...new Set(resyncs)]}`);
    for (const follower of followers) {
      for (const channel of follower.channels) assertSame(follower.subscription(channel).rows(), all[channel], channel);
    }
    if (recovered) {
      assert.ok(recoveries.every(Boolean), 'every resumption recovered');
      assert.deepEqual(resyncs, []);
    }
    if (exact) {
      for (const follower of followers) {
        const seen = follower.channels.reduce((sum, channel) => sum + follower.subscription(channel).changes, follower.changes);
        const written = follower.channels.reduce((sum, channel) => sum + all[channel].reduce((n, row) => n + number(row.n), 0), 0);
        assert.equal(seen, written, `${follower.channels}: changes seen and written`);
      }
    }
    for (const follower of followers) await follower.stop();
  }

  /** Its PID. While there is none it must not be taken for 0, which is all of us. */
  const gateway = () => until(async () => Number(await stat('gateway_pid')), 'a gateway', 30000);

  test('kill -9 of the gateway under load: no session notices, clients resume', async (t) => {
    await follow();
    const bystander = new Session();
    const start = await bystander.exec("BEGIN; SELECT pg_backend_pid() || ' ' || pg_postmaster_start_time()");
    const writing = load(8);
    await flows();
    for (let i = 0; i < 2; i += 1) {
      const pid = await gateway();
      const killed = Date.now();
      process.kill(pid, 'SIGKILL');
      await until(() => Client.connect({ token }).then((client) => client.close().then(() => true), () => false), 'a gateway answers');
      t.diagnostic(`a new gateway answered after ${Date.now() - killed} ms`);
      await until(() => followers.every((follower) => follower.losses.length > i), 'everybody was cut off');
      await Promise.all(followers.map((follower) => follower.settle()));
    }
    await writing;
    assert.equal(await bystander.exec("SELECT pg_backend_pid() || ' ' || pg_postmaster_start_time(); COMMIT"), start);
    await bystander.close();
    await compare(t);
  });

  for (const [what, pid] of [
    ['the decoder', 'SELECT decoder_pid FROM changefeed.stat_feed'],
    ['the feed worker', 'SELECT feed_worker_pid FROM changefeed.stat_feed'],
  ]) {
    test(`${what} terminated under load: clients resume`, async (t) => {
      await follow();
      const writing = load(8);
      await flows();
      const generation = await stat('generation');
      await db.exec(`SELECT pg_terminate_backend((${pid}))`);
      await until(async () => await stat('generation') !== generation && await stat('state') === 'running', 'a new generation', 45000);
      await until(() => followers.every((follower) => follower.losses.length > 0), 'everybody was cut off');
      await Promise.all(followers.map((follower) => follower.settle()));
      await writing;
      await compare(t);
    });
  }

  test('query workers terminated under load: nobody is cut off', async (t) => {
    await follow();
    const writing = load(6);
    await flows();
    for (let i = 0; i < 5; i += 1) {
      const before = await db.value("SELECT max(backend_start) FROM pg_stat_activity WHERE backend_type = 'changefeed query worker'");
      await db.exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'changefeed query worker'");
      await until(async () => await db.value(`SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'changefeed query worker' AND backend_start > '${before}'`) !== '0', 'a new query worker');
      await Promise.all(followers.map((follower) => follower.settle()));
    }
    await writing;
    assert.ok(followers.every((follower) => follower.losses.length === 0), 'nobody was cut off');
    await compare(t, { recovered: false, exact: false });
  });

  test('kill -9 of the gateway when nothing else happens', async () => {
    await until(async () => await db.value("SELECT query FROM pg_stat_activity WHERE backend_type = 'changefeed feed worker'") === 'waiting for changes', 'the feed is idle');
    process.kill(await gateway(), 'SIGKILL');
    await (await Client.connect({ token })).close();
  });

  test('a slot that somebody drops: clients start again', async (t) => {
    await follow();
    const slot = await stat('slot_name');
    const epoch = await stat('epoch');
    await db.exec(`SELECT pg_terminate_backend((SELECT decoder_pid FROM changefeed.stat_feed))`);
    await until(() => db.exec(`SELECT pg_drop_replication_slot('${slot}')`).then(() => true, (error) => {
      if (/does not exist/.test(error.message)) return true;
      return db.exec('SELECT pg_terminate_backend((SELECT decoder_pid FROM changefeed.stat_feed))').then(() => false);
    }), 'dropped');
    await until(async () => await stat('state') === 'running' && await stat('epoch') !== epoch, 'a new epoch', 45000);
    await db.exec('UPDATE faults.plain SET n = n + 1');
    await Promise.all(followers.map((follower) => follower.settle()));
    assert.ok(followers.every((follower) => follower.recovered.length > 0 && follower.recovered.every((value) => value === false)));
    await compare(t, { recovered: false, exact: false });
  });

  for (const mode of ['fast', 'immediate']) {
    test(`server restart, ${mode}: clients resume`, async (t) => {
      await follow();
      await db.exec(`UPDATE faults.plain SET n = n + 1; UPDATE faults.judged SET n = n + 1 WHERE id % 2 = 0`);
      await Promise.all(followers.slice(0, 10).map((follower) => follower.settle()));
      await db.exec('UPDATE faults.plain SET n = n + 1');
      const begun = Date.now();
      const restarted = run(process.env.CLUSTER_SCRIPT, ['restart', '--no-build', '--mode', mode, '--data', process.env.CLUSTER_DATA]);
      await until(() => followers.every((follower) => follower.losses.length > 0), 'everybody was closed', 45000);
      t.diagnostic(`all closed after ${Date.now() - begun} ms`);
      const { stdout } = await restarted;
      assert.match(stdout, new RegExp(`PGPORT='${process.env.PGPORT}'`));
      assert.ok(stdout.includes(process.env.WS_URL), stdout);
      await db.close();
      db = new Session();
      await db.exec('UPDATE faults.plain SET n = n + 1; UPDATE faults.judged SET n = n + 1');
      if (mode === 'fast') {
        const delays = followers.map((follower) => follower.losses[0].retryAfter && number(follower.losses[0].retryAfter));
        t.diagnostic(`retry_after_ms ${delays}; codes ${[...new Set(followers.map((follower) => follower.losses[0].code))]}`);
        assert.ok(delays.every((ms) => ms > 0), 'closing was sent to all');
        assert.equal(new Set(delays).size, CLIENTS, 'each has another delay');
      }
      await compare(t);
    });
  }
});
