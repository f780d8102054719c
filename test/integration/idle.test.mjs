// With nothing to do, nothing is done.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { promisify } from 'node:util';

import { Client, until } from './lib/client.mjs';
import { Session } from './lib/psql.mjs';

const run = promisify(execFile);
const SECONDS = Number(process.env.IDLE_SECONDS ?? 30);
const CLIENTS = 100;
// Per process and second: no more than 100 connections with a heartbeat of 25 s
// make necessary, and far less than whoever looks again and again needs. On a
// busy machine the same work takes several times as long.
const WAKEUPS = 8;
const CPU_MS = 10;

async function heartbeat(value) {
  await run(process.env.CLUSTER_SCRIPT, ['restart', '--no-build', '--data', process.env.CLUSTER_DATA, '--set', `changefeed.heartbeat=${value}`]);
}

/** What a process has used, from /proc. */
function usage(pid) {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').replace(/^.*\) /, '').split(' ');
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  const ticks = Number(fields[11]) + Number(fields[12]);
  return {
    ms: ticks * 10, // a tick is 1/100 s on every Linux that PostgreSQL runs on
    exact: Number(readFileSync(`/proc/${pid}/schedstat`, 'utf8').split(' ')[0]) / 1e6,
    wakeups: Number(/^voluntary_ctxt_switches:\s+(\d+)/m.exec(status)[1]),
  };
}

test(`${CLIENTS} idle connections cost next to nothing`, async (t) => {
  await heartbeat('25s'); // the default
  const db = new Session();
  t.after(() => db.close());
  await db.exec(`CREATE TABLE idle (id int PRIMARY KEY, v text); INSERT INTO idle VALUES (1, 'a');
    CREATE ROLE idle_web; GRANT SELECT ON idle TO idle_web;
    SELECT changefeed.allow_role('idle_web'); SELECT changefeed.create_channel('idle', 'public.idle')`);
  const token = await db.token({ role: 'idle_web' });
  await (await Client.connectSoon({ token })).close();
  const clients = await Promise.all(Array.from({ length: CLIENTS }, () => Client.connect({ token })));
  t.after(() => Promise.all(clients.map((client) => client.cut())));
  for (const client of clients) await client.openSoon('idle');
  await db.exec("UPDATE idle SET v = 'b'; CHECKPOINT");
  await Promise.all(clients.map((client) => client.settle()));

  const processes = Object.fromEntries((await db.exec(`
    SELECT pid || ' ' || replace(backend_type, 'changefeed ', '') || ' ' || pid FROM pg_stat_activity WHERE backend_type LIKE 'changefeed %'
    UNION ALL SELECT gateway_pid || ' gateway ' || gateway_pid FROM changefeed.stat_feed`)).split('\n').map((line) => [line.match(/^\d+ (.*)/)[1], Number(line.match(/^\d+/)[0])]));
  for (const name of ['launcher', 'decoder', 'feed worker', 'query worker', 'gateway']) {
    assert.ok(Object.keys(processes).some((key) => key.startsWith(name)), `there is a ${name} in ${Object.keys(processes)}`);
  }

  // What was begun ends; a heartbeat more or less does not matter.
  const settled = Date.now() + 1000;
  await until(() => Date.now() > settled, 'a moment');
  const before = Object.fromEntries(Object.entries(processes).map(([name, pid]) => [name, usage(pid)]));
  const pings = clients.reduce((sum, client) => sum + client.pings, 0);
  const end = Date.now() + SECONDS * 1000;
  await new Promise((resolve) => { setTimeout(resolve, SECONDS * 1000); });
  assert.ok(Date.now() >= end);
  const used = Object.entries(processes).map(([name, pid]) => {
    const now = usage(pid);
    return [name, now.ms - before[name].ms, now.exact - before[name].exact, now.wakeups - before[name].wakeups];
  });
  const pinged = clients.reduce((sum, client) => sum + client.pings, 0) - pings;

  t.diagnostic(`${SECONDS} s, ${pinged} pings answered`);
  for (const [name, ms, exact, wakeups] of used) t.diagnostic(`${name}: ${ms} ms (${exact.toFixed(1)} ms by the scheduler), ${wakeups} wake-ups`);
  for (const client of clients) {
    client.check();
    assert.equal(client.closed, null);
  }
  if (SECONDS >= 30) assert.ok(pinged >= CLIENTS, `${pinged} pings`);
  for (const [name, , exact, wakeups] of used) {
    assert.ok(wakeups <= SECONDS * WAKEUPS, `${name}: ${wakeups} wake-ups`);
    assert.ok(exact <= SECONDS * CPU_MS, `${name}: ${exact.toFixed(1)} ms`);
  }
});
