// The server and its processes end in every way there is, several times in a
// row and under load; clients come back and miss nothing, and get nothing
// twice.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import { promisify } from 'node:util';

import { assertSame, Client, until } from './lib/client.mjs';
import { Follower } from './lib/follower.mjs';
import { number } from './lib/json.mjs';
import { Session } from './lib/psql.mjs';

const run = promisify(execFile);
const ROWS = 500;
const CLIENTS = 6;

describe('restarts', () => {
  let db;
  let token;
  let followers = [];
  let writers = [];

  before(async () => {
    db = new Session();
    await db.exec(`CREATE SCHEMA rst; CREATE ROLE rst_web; GRANT USAGE ON SCHEMA rst TO rst_web;
      SELECT changefeed.allow_role('rst_web');
      CREATE TABLE rst.item (id int PRIMARY KEY, ch int NOT NULL, n int NOT NULL DEFAULT 0);
      CREATE TABLE rst.commits (writer int PRIMARY KEY, n int NOT NULL DEFAULT 0);
      INSERT INTO rst.item SELECT i, i % 3 FROM generate_series(1, ${ROWS}) i;
      GRANT SELECT ON ALL TABLES IN SCHEMA rst TO rst_web;
      SELECT changefeed.create_channel('rst:{ch}', 'rst.item')`);
    token = await db.token({ role: 'rst_web' });
    await (await Client.connectSoon({ token })).close();
  });

  after(async () => {
    for (const writer of writers) writer.stop = true;
    await Promise.allSettled(writers.map(({ ended }) => ended));
    await Promise.allSettled(followers.map((follower) => follower.stop()));
    await db?.close();
  });

  const session = () => until(async () => {
    const s = new Session();
    return s.exec('SELECT 1').then(() => s, () => null);
  }, 'the server answers', 30000);

  /** Writes as fast as it can, through all restarts. Counts what was told to be committed. */
  function write(id) {
    const writer = { stop: false, committed: 0, losses: 0 };
    writer.ended = (async () => {
      let s = null;
      while (!writer.stop) {
        try {
          s ??= await session();
          const k = 1 + Math.floor(Math.random() * ROWS);
          const mode = Math.random() < 0.3 ? 'SET LOCAL synchronous_commit = off; ' : '';
          await s.exec(`BEGIN; ${mode}UPDATE rst.item SET n = n + 1 WHERE id = ${k}; COMMIT`);
          writer.committed += 1;
          // A load, but not so much that the history is too short for the time that a restart takes.
          await new Promise((resolve) => { setTimeout(resolve, 3); });
        } catch {
          writer.losses += 1;
          void s?.close(); // psql may have connected again, and would stay
          s = null;
        }
      }
      await s?.close();
    })();
    return writer;
  }

  async function begin() {
    await db.exec('UPDATE rst.item SET n = 0');
    followers = [];
    for (let i = 0; i < CLIENTS; i += 1) followers.push(await new Follower({ token, channels: [`rst:${i % 3}`] }).start());
    await Promise.all(followers.map((follower) => follower.settle()));
    writers = [write(0), write(1), write(2)];
  }

  const seenBy = (follower) => follower.changes + (follower.subscription()?.changes ?? 0);
  const flows = async () => {
    const was = writers.map(({ committed }) => committed);
    await until(() => writers.every(({ committed }, i) => committed > was[i] + 20), 'writers write', 60000);
  };

  /** Everybody is connected again, and has something new. */
  async function backAgain(losses) {
    await until(() => followers.every((follower) => follower.losses.length >= losses), 'everybody was cut off', 60000);
    await flows();
    await Promise.all(followers.map((follower) => follower.settle(60000)));
  }

  async function compare(t) {
    for (const writer of writers) writer.stop = true;
    await Promise.all(writers.map(({ ended }) => ended));
    await db.close().catch(() => {});
    db = await session();
    await Promise.all(followers.map((follower) => follower.settle(60000)));
    const recoveries = followers.flatMap(({ recovered }) => recovered);
    const resyncs = followers.flatMap((follower) => [...follower.resyncs, ...follower.subscription().resyncs]);
    const sums = [];
    for (let ch = 0; ch < 3; ch += 1) {
      const rows = await db.rows(`SELECT * FROM rst.item WHERE ch = ${ch}`);
      sums.push(rows.reduce((sum, row) => sum + number(row.n), 0));
      for (const follower of followers.filter((_, i) => i % 3 === ch)) assertSame(follower.subscription().rows(), rows, `rst:${ch}`);
    }
    const committed = writers.reduce((sum, writer) => sum + writer.committed, 0);
    t.diagnostic(`${sums.reduce((a, b) => a + b)} changes (${committed} confirmed to writers), ${recoveries.length} resumptions, ${resyncs.length} resyncs ${[...new Set(resyncs)]}`);
    assert.deepEqual(resyncs, []);
    assert.ok(recoveries.length >= CLIENTS && recoveries.every(Boolean), 'every resumption recovered');
    // Each change is one commit that adds one: so many were made, so many have come.
    followers.forEach((follower, i) => assert.equal(seenBy(follower), sums[i % 3], `client ${i}: changes seen and committed`));
    for (const follower of followers) await follower.stop();
    followers = [];
  }

  const cluster = (...args) => run(process.env.CLUSTER_SCRIPT, [args[0], '--data', process.env.CLUSTER_DATA, ...args.slice(1)]);
  const postmaster = () => Number(readFileSync(`${process.env.CLUSTER_DATA}/postmaster.pid`, 'utf8').split('\n')[0]);
  const pidOf = async (column) => {
    const s = await session();
    try {
      return Number(await until(() => s.value(`SELECT ${column} FROM changefeed.stat_feed`), column, 20000));
    } finally {
      await s.close();
    }
  };

  /** Whoever had just ended by itself need not be killed. */
  const kill = async (pid, signal) => {
    try {
      process.kill(await pid, signal);
    } catch (error) {
      if (error.code !== 'ESRCH') throw error;
    }
  };

  const ways = {
    'kill -9 of the gateway': () => kill(pidOf('gateway_pid'), 'SIGKILL'),
    'pg_terminate_backend of the feed worker': () => kill(pidOf('feed_worker_pid'), 'SIGTERM'),
    'pg_terminate_backend of the decoder': () => kill(pidOf('decoder_pid'), 'SIGTERM'),
    'kill -9 of the feed worker': () => kill(pidOf('feed_worker_pid'), 'SIGKILL'),
    'kill -9 of the decoder': () => kill(pidOf('decoder_pid'), 'SIGKILL'),
    'a fast restart': () => cluster('restart', '--no-build', '--mode', 'fast'),
    'an immediate shutdown': () => cluster('restart', '--no-build', '--mode', 'immediate'),
    'kill -9 of the postmaster': async () => {
      process.kill(postmaster(), 'SIGKILL');
      await until(() => cluster('start', '--no-build').then(() => true, () => false), 'the server starts', 60000);
    },
  };

  for (const [name, end] of Object.entries(ways)) {
    test(`${name}, three times under load`, { timeout: 240000 }, async (t) => {
      await begin();
      for (let i = 1; i <= 3; i += 1) {
        await flows();
        await end();
        await backAgain(i);
      }
      await compare(t);
    });
  }

  test('one after the other, without time to recover', { timeout: 240000 }, async (t) => {
    await begin();
    for (const name of ['pg_terminate_backend of the decoder', 'kill -9 of the gateway', 'kill -9 of the feed worker', 'an immediate shutdown', 'a fast restart', 'kill -9 of the postmaster']) {
      await ways[name]();
    }
    await backAgain(1);
    await compare(t);
  });

  test('a position survives an idle time of checkpoints, log switches and restarts', { timeout: 120000 }, async () => {
    const client = await Client.connect({ token });
    const s = await client.open('rst:1');
    await db.exec('UPDATE rst.item SET n = n + 1 WHERE ch = 1');
    await client.settle();
    const positions = [s.position, (await client.sync()).position];
    const { pings } = client;
    await until(() => client.pings > pings, 'ping');
    positions.push(s.position);
    await client.close();
    for (let i = 0; i < 3; i += 1) {
      await db.exec("SELECT pg_logical_emit_message(false, 'x', 'y'); SELECT pg_switch_wal()");
      await db.exec('CHECKPOINT');
      await cluster('restart', '--no-build', '--mode', i % 2 ? 'immediate' : 'fast');
      await db.close().catch(() => {});
      db = await session();
    }
    for (const from of positions) {
      const again = await until(() => Client.connect({ token }).catch(() => null), 'a client', 20000);
      const t = await again.open('rst:1', { from, cache: s });
      assert.equal(t.recovered, true);
      await again.settle();
      assertSame(t.rows(), await db.rows('SELECT * FROM rst.item WHERE ch = 1'), 'rst:1');
      await again.close();
    }
  });

  test('what is revoked is the session of then, not the one that is numbered the same now', { timeout: 120000 }, async () => {
    const restart = async () => {
      await cluster('restart', '--no-build', '--mode', 'fast');
      await db.close().catch(() => {});
      db = await session();
      return until(() => Client.connect({ token }).catch(() => null), 'a client', 20000);
    };
    const client = await restart();
    const old = client.connected.session;
    await client.cut();
    const now = await restart();
    assert.equal(now.connected.session.slice(8), old.slice(8), 'the first connection of a server, twice');
    await db.exec(`SELECT changefeed.revoke(session => '${old}')`);
    await now.sync();
    now.check();
    assert.equal(now.closed, null);
    await now.close();
  });
});
