// Backends that ask the feed worker.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import { Client, until } from './lib/client.mjs';
import { number } from './lib/json.mjs';
import { Session } from './lib/psql.mjs';

let db;
let token;
const ASK = 'SELECT count(*) FROM changefeed.stat_connections';

before(async () => {
  db = new Session();
  await db.exec(`CREATE TABLE asked (id int PRIMARY KEY, v int); INSERT INTO asked VALUES (1, 0);
    CREATE ROLE ask_web; GRANT SELECT ON asked TO ask_web; SELECT changefeed.allow_role('ask_web');
    SELECT changefeed.create_channel('asked', 'public.asked')`);
  token = await db.token({ role: 'ask_web' });
  await (await Client.connectSoon({ token })).close();
  await until(async () => await db.value(ASK) === '0', 'no connections');
});
after(() => db.close());

const feedWorker = async () => Number(await db.value('SELECT feed_worker_pid FROM changefeed.stat_feed'));

/** All slots and the line are empty: as many questions as there are slots are answered at once. */
async function slotsAreFree(sessions) {
  const begun = Date.now();
  await Promise.all(sessions.map((session) => session.exec(ASK)));
  assert.ok(Date.now() - begun < 4500, `${Date.now() - begun} ms`);
}

async function sessions(t, n) {
  const list = Array.from({ length: n }, () => new Session());
  t.after(() => Promise.all(list.map((session) => session.close())));
  await Promise.all(list.map((session) => session.exec('SELECT 1')));
  return list;
}

test('many backends ask at once while changes flow', async (t) => {
  const client = await Client.connect({ token });
  t.after(() => client.cut());
  await client.openSoon('asked');
  const asking = await sessions(t, 40);
  let done = false;
  const writer = (async () => {
    let n = 0;
    while (!done) {
      await db.exec('UPDATE asked SET v = v + 1');
      n++;
    }
    return n;
  })();
  for (let round = 0; round < 5; round++) {
    for (const answer of await Promise.all(asking.map((session) => session.value(ASK)))) assert.equal(answer, '1');
  }
  done = true;
  const written = await writer;
  assert.ok(written > 0);
  await client.settle();
  assert.equal(number(client.subscriptions.get('asked').rows()[0].v), written);
});

test('who waits can be cancelled or terminated, and leaves nothing behind', async (t) => {
  const asking = await sessions(t, 20); // more than there are slots
  const pid = await feedWorker();
  process.kill(pid, 'SIGSTOP');
  try {
    for (const session of asking) await session.exec("SET statement_timeout = '300ms'");
    const answers = await Promise.allSettled(asking.map((session) => session.exec(ASK)));
    for (const { reason } of answers) assert.match(String(reason), /statement timeout/);

    for (const session of asking) await session.exec('RESET statement_timeout');
    const waiting = asking.map((session) => session.exec(ASK));
    for (const promise of waiting) promise.catch(() => {});
    const pids = await until(async () => {
      const list = await db.value(`SELECT pid FROM pg_stat_activity WHERE query LIKE '${ASK}%' AND wait_event_type = 'Extension'`);
      return list.split('\n').length >= 20 && list.split('\n');
    }, 'all wait');
    await db.exec(`SELECT pg_terminate_backend(pid) FROM unnest('{${pids}}'::int[]) pid`);
    for (const { reason } of await Promise.allSettled(waiting)) assert.match(String(reason), /terminating connection|ended with status/);
  } finally {
    process.kill(pid, 'SIGCONT');
  }
  await slotsAreFree(await sessions(t, 10));
  assert.equal(await feedWorker(), pid);
  assert.equal(await db.value(`SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'ChangefeedRequest'`), '0');
});

test('a feed worker that does not answer, ends, or is not there', async (t) => {
  const starts = async () => Number((await db.value('SELECT changefeed.metrics()')).match(/^changefeed_starts_total (\d+)$/m)[1]);
  const asking = await sessions(t, 12);
  let results;
  let answered;

  // If it was stopped in the middle of a turn, that turn still answers.
  for (let attempt = 0; attempt < 5 && answered !== 0; attempt += 1) {
    const begun = await starts();
    const pid = await feedWorker();
    process.kill(pid, 'SIGSTOP');
    const [late] = await Promise.allSettled([asking[0].exec(ASK)]);
    assert.match(String(late.reason), /has not answered within 5000 ms/);
    const waiting = asking.map((session) => session.exec(ASK));
    for (const promise of waiting) promise.catch(() => {});
    await until(async () => await db.value(`SELECT count(*) FROM pg_stat_activity WHERE query LIKE '${ASK}%' AND wait_event_type = 'Extension'`) === '12', 'all wait');
    process.kill(pid, 'SIGTERM');
    process.kill(pid, 'SIGCONT');
    results = await Promise.allSettled(waiting);
    answered = results.filter(({ status }) => status === 'fulfilled').length;
    await until(async () => await db.value('SELECT state FROM changefeed.stat_feed') === 'running', 'it runs again');
    assert.equal(await db.value(ASK), '0');
    assert.equal(await starts(), begun + 1);
  }
  for (const { reason } of results) assert.match(String(reason), /has ended while it was asked/);
  await slotsAreFree(asking);
});
