// Outages in Chromium, with tabs that share a connection and tabs that do not: behind each of them the cache is what SELECT
// returns, and each call has run once.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { until } from '../integration/lib/client.mjs';
import { Session, reload } from '../integration/lib/psql.mjs';
import { Proxy } from '../client/lib/proxy.mjs';
import { Browser, SERVER, get, ready, same } from './lib/browser.mjs';

let db;
let browser;

before(async () => {
  db = new Session();
  await db.exec(`CREATE ROLE web;
    CREATE TABLE items (id int PRIMARY KEY, owner text NOT NULL, n int NOT NULL DEFAULT 0, note text);
    ALTER TABLE items ENABLE ROW LEVEL SECURITY;
    CREATE POLICY own ON items USING (owner = current_setting('request.jwt.claims')::jsonb->>'sub');
    GRANT SELECT, INSERT, UPDATE ON items TO web;
    INSERT INTO items SELECT i, CASE i % 2 WHEN 0 THEN 'ada' ELSE 'bob' END FROM generate_series(1, 400) i;
    CREATE TABLE done (call text PRIMARY KEY, n int NOT NULL DEFAULT 1);
    GRANT SELECT, INSERT, UPDATE ON done TO web;
    SELECT changefeed.allow_role('web');
    SELECT changefeed.create_channel('items', 'items');
    SELECT changefeed.create_channel('some', 'items', filter => 'id < 100');
    -- Counts how often it ran.
    CREATE FUNCTION work(id int, call text) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        IF call = 'refused' THEN RAISE EXCEPTION 'no' USING ERRCODE = 'P0400'; END IF;
        INSERT INTO done VALUES (call) ON CONFLICT ON CONSTRAINT done_pkey DO UPDATE SET n = done.n + 1;
        UPDATE items SET n = items.n + 1, note = call WHERE items.id = work.id;
    END $$;
    SELECT changefeed.expose_function('work(int, text)');`);
  browser = await Browser.start(db);
});
after(async () => {
  await browser?.close();
  await db.close();
});

const SELECTS = { items: 'SELECT * FROM items', some: 'SELECT * FROM items WHERE id < 100' };
const live = (page) => until(() => get(page, () => window.app.client.connection.current.status === 'connected'
  && Object.values(window.app.channels).every(({ state }) => state === 'live')), 'live');
const killGateway = async () => process.kill(Number(await db.value('SELECT gateway_pid FROM changefeed.stat_feed')), 'SIGKILL');

/** Two pages behind a proxy. */
async function two(t, shared, options = {}, how = {}) {
  const proxy = await Proxy.start(process.env.WS_URL);
  const context = await browser.context(t);
  const url = proxy.url.replace('ws', 'http');
  const pages = [];
  for (const channels of [{ items: {} }, { items: {}, some: {} }]) pages.push(await browser.page(context, { channels, shared, url, ...options }, how));
  t.after(() => proxy.close());
  await Promise.all(pages.map(ready));
  return { proxy, context, pages };
}
async function right(pages, what) {
  await Promise.all(pages.map(live));
  for (const page of pages) {
    for (const name of await get(page, () => Object.keys(window.app.channels))) await same(page, name, db, 'ada', SELECTS[name], what);
    assert.deepEqual([page.problems, await get(page, () => window.app.problems)], [[], []], what);
  }
}
/** Until the server does not know any more what came behind the position. */
async function forgotten(position) {
  const headers = { Authorization: `Bearer ${await db.token({ role: 'web', sub: 'ada' })}` };
  await until(async () => {
    await db.exec('UPDATE items SET n = n + 1 WHERE id = 4');
    return (await (await fetch(`${SERVER}/v1/poll?channel=items&wait=0&from=${position}`, { headers })).text()).includes('history_truncated');
  }, 'forgotten');
}
/** Changes, one transaction behind the other, until it is stopped. */
function load(t) {
  const session = new Session();
  let over = false;
  const done = (async () => {
    for (let i = 0; !over; i += 1) {
      await session.exec(`BEGIN; UPDATE items SET n = n + 1 WHERE id IN (${2 + 2 * (i % 150)}, 3, 50); UPDATE items SET owner = CASE owner WHEN 'ada' THEN 'bob' ELSE 'ada' END WHERE id = ${60 + (i % 20)}; COMMIT`);
    }
    await session.close();
  })();
  const stop = () => {
    over = true;
    return done;
  };
  t.after(stop);
  return stop;
}
/** Calls from both pages, which do not care for what happens meanwhile. */
const calls = (page, prefix, count) => get(page, ([name, n]) => {
  window.calls ??= [];
  for (let i = 0; i < n; i += 1) window.calls.push(window.app.client.call('work', { id: 2 + 2 * i, call: `${name} ${i}` }).then(() => null, ({ code }) => code));
}, [prefix, count]);
const answers = (page) => get(page, () => Promise.all(window.calls));
async function once(prefix, count) {
  assert.equal(await db.value(`SELECT count(*) || ' ' || coalesce(max(n), 0) FROM done WHERE starts_with(call, '${prefix} ')`), `${count} 1`, `each call of ${prefix} once`);
}

for (const shared of [false, true]) {
  describe(shared ? 'two tabs that share' : 'two tabs', () => {
    const id = (name) => `${name} ${shared ? 'shared' : 'own'}`;

    test('kill -9 of the gateway under load', async (t) => {
      const { pages } = await two(t, shared);
      const stop = load(t);
      for (let round = 0; round < 2; round += 1) {
        await Promise.all(pages.map((page, i) => calls(page, id(`kill${i}${round}`), 10)));
        await killGateway();
        await until(async () => (await Promise.all(pages.map((page) => get(page, () => window.app.statuses.filter((each) => each === 'connected').length)))).every((n) => n > round + 1), 'connected again');
        await Promise.all(pages.map(live));
      }
      await stop();
      for (const page of pages) assert.deepEqual([...new Set(await answers(page))], [null]);
      await right(pages, 'behind kill -9');
      for (let i = 0; i < 4; i += 1) await once(id(`kill${i % 2}${i >> 1}`), 10);
      for (const page of pages) assert.deepEqual(await get(page, () => window.app.resyncs), [], 'by position');
    });

    test('cut in the middle of a transaction', async (t) => {
      const { proxy, pages } = await two(t, shared);
      // Beyond max_frame it comes in parts; the cut is in each of them at some time, within a frame and between two.
      const sizes = [200, 20_000, 66_000, 70_000, 100_000];
      for (const bytes of sizes) {
        proxy.budget = bytes;
        const cuts = () => Promise.all(pages.map((page) => get(page, () => window.app.statuses.filter((each) => each === 'reconnecting').length)));
        const before = String(await cuts());
        await db.exec(`UPDATE items SET n = n + 1, note = repeat('${bytes} ', 100)`);
        await Promise.all(pages.map((page, i) => calls(page, id(`cut${i} ${bytes}`), 3)));
        await until(async () => String(await cuts()) !== before, 'cut');
        for (const page of pages) assert.deepEqual([...new Set(await answers(page))], [null]);
        await right(pages, `behind a cut at ${bytes}`);
        for (const i of [0, 1]) await once(id(`cut${i} ${bytes}`), 3);
      }
      for (const page of pages) {
        assert.deepEqual(await get(page, () => window.app.resyncs), []);
        const seen = await get(page, () => window.app.transactions.items);
        assert.equal(new Set(seen).size, seen.length, 'no transaction twice');
        assert.equal(seen.length, sizes.length * (1 + 2 * 3));
      }
    });

    test('a token that expired an hour ago: a fresh one is asked for, and none is sent stale', async (t) => {
      // The pages' clock is set forward; the server's cannot be, so its tokens live a little longer than an hour.
      const minted = [];
      const token = async (why, sub) => {
        // As an application that keeps its token, and asks for another one only if it has to.
        const kept = minted.findLast((each) => each.sub === sub);
        if (kept && why === 'connect') return kept.token;
        const fresh = await db.token({ role: 'web', sub }, minted.length === 0 ? '90 seconds' : '3 hours');
        minted.push({ sub, token: fresh });
        return fresh;
      };
      const { proxy, pages } = await two(t, shared, {}, { clock: true, token });
      proxy.refuse = true;
      proxy.cut();
      await until(async () => (await Promise.all(pages.map((page) => get(page, () => window.app.client.connection.current.status)))).every((each) => each !== 'connected'), 'away');
      await db.exec(`UPDATE items SET note = 'meanwhile' WHERE id < 50`);
      const marks = await Promise.all(pages.map((page) => get(page, () => window.app.sent.length)));
      await pages[0].clock.fastForward('01:00:00');
      await Promise.all(pages.map((page, i) => calls(page, id(`hour${i}`), 5)));
      proxy.refuse = false;
      await pages[0].clock.runFor(20_000);
      for (const page of pages) assert.deepEqual([...new Set(await answers(page))], [null]);
      await right(pages, 'behind an hour');
      for (const i of [0, 1]) await once(id(`hour${i}`), 5);
      for (const [i, page] of pages.entries()) {
        const sent = (await get(page, () => window.app.sent)).slice(marks[i]);
        const stale = sent.filter((each) => JSON.parse(Buffer.from(each.token.split('.')[1], 'base64url')).exp * 1000 < each.at);
        assert.deepEqual([sent.length > 0, stale], [true, []]);
        assert.deepEqual((await get(page, () => window.app.errors)).filter((each) => each.startsWith('28000')), []);
      }
    });

    test('ten minutes offline: 100 calls, a reload, a second tab; the history is shorter than that', async (t) => {
      const { proxy, context, pages } = await two(t, shared, { queue: id('ten'), store: id('ten') }, { clock: true });
      await until(() => get(pages[0], async () => (await window.app.store.load('items'))?.position === window.app.channels.items.position), 'kept');
      const held = await get(pages[0], () => window.app.channels.items.rows().length);
      const position = await get(pages[0], () => window.app.channels.items.position);
      proxy.refuse = true;
      proxy.cut();
      await context.setOffline(true);
      const queue = (page, name, count) => get(page, async ([text, n]) => {
        for (let i = 0; i < n; i += 1) await window.app.queue.call('work', { id: 2 + 2 * i, call: `${text} ${i}` });
      }, [name, count]);
      await queue(pages[0], id('first'), 25);
      await get(pages[0], async () => { await window.app.queue.call('work', { id: 2, call: 'refused' }); });
      await queue(pages[1], id('second'), 50);
      // The page is reloaded: its files are there, from a cache, and so are its rows and its calls.
      await context.setOffline(false);
      await pages[0].begin();
      await context.setOffline(true);
      assert.equal(await get(pages[0], () => window.app.before.items), held, 'rows at once');
      assert.equal(await get(pages[0], () => window.app.channels.items.state), 'stale');
      assert.equal(await get(pages[0], () => window.app.queue.current.waiting.length), 76);
      await queue(pages[0], id('third'), 25);
      // Ten minutes; what happened in them is more than the server keeps.
      await reload(db, { 'changefeed.history_age': '1s' });
      await db.exec(`UPDATE items SET note = 'offline ' || id; UPDATE items SET owner = 'bob' WHERE id = 90`);
      await forgotten(position);
      await pages[0].clock.fastForward('10:00');
      proxy.refuse = false;
      await context.setOffline(false);
      await pages[0].clock.runFor(5000);
      await until(async () => (await Promise.all(pages.map((page) => get(page, () => window.app.queue.current.waiting.length)))).every((n) => n === 0), 'all calls');
      await reload(db, { 'changefeed.history_age': null });
      await right(pages, 'behind ten minutes');
      for (const [name, count] of [['first', 25], ['second', 50], ['third', 25]]) await once(id(name), count);
      assert.deepEqual(await get(pages[1], () => window.app.queue.current.failed.map(({ failed }) => [failed.code, failed.message])), [['P0400', 'no']]);
      const resyncs = (await Promise.all(pages.map((page) => get(page, () => window.app.resyncs)))).flat();
      assert.ok(resyncs.some((each) => each.endsWith('history_truncated')), `it is said: ${resyncs}`);
    });

    test('sleep and wake: the connection is dead, and nobody has said so', async (t) => {
      const { proxy, context, pages } = await two(t, shared, {}, { clock: true });
      // A machine that sleeps: all scripts stand still, and the network is not what it was.
      const devtools = await Promise.all(pages.map((page) => context.newCDPSession(page)));
      for (const each of devtools) {
        await each.send('Debugger.enable');
        await each.send('Debugger.pause');
      }
      proxy.silent = true;
      await db.exec(`UPDATE items SET note = 'asleep ' || id WHERE id < 80; DELETE FROM items WHERE id = 200`);
      for (const each of devtools) await each.send('Debugger.disable');
      proxy.stale();
      await pages[0].clock.fastForward('08:00:00');
      for (const page of pages) await get(page, () => document.dispatchEvent(new Event('visibilitychange')));
      for (const page of pages) await calls(page, id(`wake ${pages.indexOf(page)}`), 5);
      for (const page of pages) assert.deepEqual([...new Set(await answers(page))], [null]);
      await right(pages, 'awake');
      for (const i of [0, 1]) await once(id(`wake ${i}`), 5);
      assert.deepEqual(await get(pages[0], () => window.app.resyncs), [], 'by position');
    });

    test('a processor that is six times slower, under load', async (t) => {
      const { context, pages } = await two(t, shared);
      for (const page of pages) await (await context.newCDPSession(page)).send('Emulation.setCPUThrottlingRate', { rate: 6 });
      const stop = load(t);
      await Promise.all(pages.map((page, i) => calls(page, id(`slow${i}`), 20)));
      for (const page of pages) assert.deepEqual([...new Set(await answers(page))], [null]);
      await stop();
      await right(pages, 'slow');
      for (const i of [0, 1]) await once(id(`slow${i}`), 20);
      for (const page of pages) assert.deepEqual(await get(page, () => window.app.resyncs), []);
    });
  });
}
