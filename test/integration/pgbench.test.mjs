// A subscriber under pgbench, cut off in the middle: nothing is lost, nothing
// comes twice.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { test } from 'node:test';

import { assertSame, Client, until } from './lib/client.mjs';
import { Session } from './lib/psql.mjs';

const SECONDS = Number(process.env.PGBENCH_SECONDS ?? 30);
const BRANCH = 3;
const CHANNEL = `branch:${BRANCH}`;

async function run(program, args) {
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  child.stdout.on('data', (chunk) => { output += chunk; });
  child.stderr.on('data', (chunk) => { output += chunk; });
  const [code] = await once(child, 'close');
  assert.equal(code, 0, `${program}: ${output}`);
  return output;
}

test('a subscriber to one branch of pgbench, cut off and resumed, has every row and saw every update', async (t) => {
  const db = new Session();
  t.after(() => db.close());
  await run('pgbench', ['-i', '-q', '-s', '10', process.env.PGDATABASE]);
  await db.exec(`DROP ROLE IF EXISTS bench_web;
    CREATE ROLE bench_web;
    GRANT SELECT ON pgbench_accounts TO bench_web;
    SELECT changefeed.allow_role('bench_web');
    SELECT changefeed.create_channel('branch:{bid}', 'public.pgbench_accounts', entity => 'accounts')`);
  const token = await db.token({ role: 'bench_web' });
  const select = `SELECT * FROM pgbench_accounts WHERE bid = ${BRANCH}`;

  let client = await Client.connectSoon({ token });
  let subscription = await client.openSoon(CHANNEL);
  assertSame(subscription.rows(), await db.rows(select), 'before the load');
  assert.equal(subscription.rows().length, 100000);

  const load = run('pgbench', ['-n', '-c', '4', '-j', '2', '-T', String(SECONDS), process.env.PGDATABASE]);
  const middle = Date.now() + (SECONDS * 1000) / 2;
  await until(() => subscription.changes > 0 && (client.check(), Date.now() > middle), 'changes under load', SECONDS * 1000);
  const before = subscription;
  await client.cut();
  client.check();
  assert.ok(before.changes > 10, `${before.changes} changes before the cut`);

  // While it is away, the load goes on.
  const missed = Number(await db.value('SELECT count(*) FROM pgbench_history'));
  await until(async () => Number(await db.value('SELECT count(*) FROM pgbench_history')) > missed + 200, 'load goes on', SECONDS * 500);

  client = await Client.connect({ token });
  t.after(() => client.cut());
  subscription = await client.subscribe(CHANNEL, { from: before.position, cache: before });
  assert.equal(subscription.recovered, true);
  await subscription.ready();
  const atReady = subscription.changes;
  assert.ok(atReady > 0, 'something had been missed');

  const output = await load;
  t.diagnostic(output.match(/tps = .*/)?.[0] ?? output);
  await client.settle();
  client.check();
  assert.deepEqual([...before.resyncs, ...subscription.resyncs], []);
  assertSame(subscription.rows(), await db.rows(select), 'after the load');

  // Every pgbench transaction updates one account and writes it down. An update
  // by zero changes nothing, and nothing is sent.
  const updates = Number(await db.value(`SELECT count(*) FROM pgbench_history h JOIN pgbench_accounts a USING (aid)
    WHERE a.bid = ${BRANCH} AND h.delta <> 0`));
  t.diagnostic(`${before.changes} changes before the cut, ${atReady} replayed, ${subscription.changes - atReady} live; ${updates} updates`);
  assert.equal(before.changes + subscription.changes, updates);
  await client.close();
});
