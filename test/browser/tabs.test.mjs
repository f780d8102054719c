// One connection for all tabs of a browser, in Chromium: who leads, what happens when he goes, and who must not share.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import { until } from '../integration/lib/client.mjs';
import { Session } from '../integration/lib/psql.mjs';
import { Browser, get, ready, same } from './lib/browser.mjs';

let db;
let browser;

before(async () => {
  db = new Session();
  await db.exec(`CREATE ROLE web;
    CREATE TABLE items (id int PRIMARY KEY, owner text NOT NULL, n int NOT NULL DEFAULT 0, note text);
    CREATE TABLE other (id int PRIMARY KEY, n int);
    ALTER TABLE items ENABLE ROW LEVEL SECURITY;
    CREATE POLICY own ON items USING (owner = current_setting('request.jwt.claims')::jsonb->>'sub');
    GRANT SELECT, UPDATE ON items TO web;
    GRANT SELECT ON other TO web;
    INSERT INTO items SELECT i, CASE i % 2 WHEN 0 THEN 'ada' ELSE 'bob' END FROM generate_series(1, 40) i;
    INSERT INTO other SELECT i, 0 FROM generate_series(1, 5) i;
    SELECT changefeed.allow_role('web');
    SELECT changefeed.create_channel('items', 'items', presence => '{}', publish_check => 'true');
    SELECT changefeed.create_channel('other', 'other');
    CREATE OR REPLACE FUNCTION set_note(id int, note text) RETURNS void LANGUAGE sql AS 'UPDATE items SET note = set_note.note WHERE items.id = set_note.id';
    SELECT changefeed.expose_function('set_note(int, text)');
    -- Counts how often it ran.
    CREATE TABLE done (call text PRIMARY KEY, n int NOT NULL DEFAULT 1);
    GRANT SELECT, INSERT, UPDATE ON done TO web;
    CREATE FUNCTION work(id int, call text) RETURNS void LANGUAGE sql AS $$
        INSERT INTO done VALUES (call) ON CONFLICT ON CONSTRAINT done_pkey DO UPDATE SET n = done.n + 1;
        UPDATE items SET note = call WHERE items.id = work.id $$;
    SELECT changefeed.expose_function('work(int, text)');`);
  browser = await Browser.start(db);
});
after(async () => {
  await browser?.close();
  await db.close();
});

const connections = async () => Number(await db.value('SELECT count(*) FROM changefeed.stat_connections'));
const leads = (page) => get(page, () => window.app.tabs.leads);
const leaderOf = async (pages) => {
  for (const page of pages) if (await leads(page)) return page;
  return undefined;
};
const live = (page) => until(() => get(page, () => window.app.client.connection.current.status === 'connected'
  && Object.values(window.app.channels).every(({ state }) => state === 'live')), 'live');

let tick = 0;
/** Transactions with rows of both channels and a message each, until it is stopped. */
function writing(t) {
  const session = new Session();
  const load = { txids: [], ticks: [] };
  let over = false;
  const done = (async () => {
    for (let i = 0; !over; i += 1) {
      tick += 1;
      load.ticks.push(tick);
      const text = await session.value(`BEGIN; UPDATE items SET n = n + 1 WHERE id IN (2, 3, ${4 + 2 * (i % 15)}); UPDATE other SET n = n + 1 WHERE id = ${1 + (i % 5)};
        SELECT FROM changefeed.publish('items', 'tick', '${tick}'); SELECT pg_current_xact_id(); COMMIT`);
      load.txids.push(text.trim());
    }
    await session.close();
  })();
  load.stop = () => {
    over = true;
    return done;
  };
  t.after(load.stop);
  return load;
}
/** Calls that do not care for who leads; what became of them is in `answers`. */
const calls = (page, name, count) => get(page, ([prefix, n]) => {
  window.calls ??= [];
  for (let i = 0; i < n; i += 1) window.calls.push(window.app.client.call('work', { id: 10 + 2 * i, call: `${prefix} ${i}` }).then(() => null, ({ code }) => code));
}, [name, count]);
const answers = (page) => get(page, () => Promise.all(window.calls));
const once = async (name, count) => assert.equal(
  await db.value(`SELECT count(*) || ' ' || coalesce(max(n), 0) FROM done WHERE starts_with(call, '${name} ')`), `${count} 1`, `each call of ${name} once`);

/** Nothing is missing and nothing came twice. */
async function exactly(page, loads, what, channel = 'items') {
  const txids = loads.flatMap((load) => load.txids);
  const seen = await get(page, (name) => window.app.transactions[name], channel);
  assert.deepEqual(seen.filter((txid) => txids.includes(txid)), txids, `${what}: each transaction once, in order`);
  if (channel !== 'items') return;
  const ticks = loads.flatMap((load) => load.ticks);
  const heard = (await get(page, () => window.app.messages.items)).map((text) => Number(text.split(' ')[1]));
  assert.deepEqual(heard.filter((each) => ticks.includes(each)), ticks, `${what}: each message once, in order`);
}
async function quiet(page) {
  assert.deepEqual(page.problems, []);
  assert.deepEqual(await get(page, () => [window.app.problems, window.app.resyncs, window.app.errors]), [[], [], []]);
}

test('three tabs, one connection, other channels in each; who comes later gets the rows of the leader', async (t) => {
  const context = await browser.context(t);
  const before = await connections();
  const a = await browser.page(context, { channels: { items: {} }, shared: true });
  await ready(a);
  const b = await browser.page(context, { channels: { items: { versions: true }, other: {} }, shared: true });
  const c = await browser.page(context, { channels: { other: { snapshot: false }, 'items?n=gt.0': {} }, shared: true });
  await Promise.all([b, c].map(ready));
  assert.equal(await connections(), before + 1);
  assert.equal(await leads(a), true);
  const load = writing(t);
  await until(() => load.txids.length > 20, 'writes');
  await load.stop();
  await same(a, 'items', db, 'ada', 'SELECT * FROM items', 'a');
  await same(b, 'items', db, 'ada', 'SELECT * FROM items', 'b');
  await same(b, 'other', db, 'ada', 'SELECT * FROM other', 'b');
  await same(c, 'other', db, 'ada', 'SELECT * FROM other', 'changes whole, so all five are there');
  await same(c, 'items?n=gt.0', db, 'ada', 'SELECT * FROM items WHERE n > 0', 'c');
  await exactly(a, [load], 'a');
  await exactly(b, [load], 'b', 'other');
  // A tab that is not the leader writes, knows when its own transaction is there, and that somebody else was faster.
  const outcome = await get(b, async () => {
    const { client, channels: { items } } = window.app;
    const version = items.version({ id: 2 });
    const expect = { channel: 'items', key: { id: 2 }, version };
    const { txid } = await client.call('set_note', { id: 2, note: 'mine' }, { expect });
    await items.seen(txid);
    const note = items.get({ id: 2 }).note;
    const conflict = await client.call('set_note', { id: 2, note: 'again' }, { expect }).catch(({ code, conflict: found }) => [code, found.row.note]);
    return { note, conflict };
  });
  assert.deepEqual(outcome, { note: 'mine', conflict: ['40001', 'mine'] });
  // The leader tab drops a channel that the others still have.
  await get(a, () => window.app.channels.items.unsubscribe());
  await db.exec(`UPDATE items SET note = 'later' WHERE id = 4`);
  await same(b, 'items', db, 'ada', 'SELECT * FROM items', 'still there');
  for (const page of [a, b, c]) assert.deepEqual([page.problems, await get(page, () => window.app.problems)], [[], []]);
});

test('the leader is closed, crashes, or is reloaded: another one goes on, without gap, duplicate or new snapshot', async (t) => {
  const context = await browser.context(t);
  const open = (channels) => browser.page(context, { channels, shared: true });
  const pages = [];
  for (let i = 0; i < 4; i += 1) pages.push(await open(i % 2 ? { items: {}, other: {} } : { items: {} }));
  await Promise.all(pages.map(ready));
  const load = writing(t);
  await until(() => load.txids.length > 5, 'writes');
  for (const way of ['close', 'crash']) {
    const leader = await leaderOf(pages);
    const rest = pages.filter((page) => page !== leader);
    for (const [i, page] of rest.entries()) await calls(page, `${way}${i}`, 5);
    if (way === 'close') await leader.close();
    else {
      const crashed = leader.waitForEvent('crash');
      (await context.newCDPSession(leader)).send('Page.crash').catch(() => {});
      await crashed;
    }
    pages.splice(pages.indexOf(leader), 1);
    await until(() => leaderOf(rest), `another one leads behind ${way}`);
    const { length } = load.txids;
    await until(() => load.txids.length > length + 5, 'writes');
    await Promise.all(rest.map(live));
    for (const [i, page] of rest.entries()) {
      assert.deepEqual([...new Set(await answers(page))], [null]);
      await once(`${way}${i}`, 5);
    }
  }
  await load.stop();
  assert.equal(pages.length, 2);
  for (const page of pages) {
    await same(page, 'items', db, 'ada', 'SELECT * FROM items', 'what is left');
    await quiet(page);
    await exactly(page, [load], 'what is left');
    assert.equal(await get(page, () => window.app.snapshots.items), 1);
    await quiet(page);
  }
  const leader = await leaderOf(pages);
  const follower = pages.find((page) => page !== leader);
  const again = writing(t);
  await leader.begin();
  await until(() => leads(follower), 'the other one leads');
  await Promise.all([ready(leader), live(follower)]);
  await again.stop();
  for (const page of pages) await same(page, 'items', db, 'ada', 'SELECT * FROM items', 'behind a reload');
  await exactly(follower, [load, again], 'behind a reload');
  await quiet(follower);
});

test('tabs without rows to begin with: behind their leader nothing is missing in any tab, and nobody takes their rows for all', async (t) => {
  const context = await browser.context(t);
  const open = (options) => browser.page(context, { channels: { items: options }, shared: true });
  const leader = await open({});
  const plain = [await open({ snapshot: false }), await open({ snapshot: false })];
  const full = await open({});
  await Promise.all([leader, ...plain, full].map(ready));
  const load = writing(t);
  await until(() => load.txids.length > 5, 'writes');
  await leader.close();
  const { length } = load.txids;
  await until(() => load.txids.length > length + 5, 'writes');
  await Promise.all([...plain, full].map(live));
  const late = await open({});
  await ready(late);
  await load.stop();
  for (const page of [full, late]) {
    await same(page, 'items', db, 'ada', 'SELECT * FROM items', 'all rows');
    await quiet(page);
  }
  for (const page of [full, ...plain]) {
    await exactly(page, [load], 'behind the hand-over');
    await quiet(page);
  }
  for (const page of plain) {
    const rows = await page.evaluate(() => window.lib.rows('items'));
    const all = await get(full, () => window.lib.rows('items'));
    assert.ok(rows.length > 0 && rows.length < all.length, `${rows.length} of ${all.length}`);
    for (const row of rows) assert.deepEqual(row, all.find(({ id }) => id === row.id));
  }
});

test('the leader stands still: another one takes over, and the old one follows when it goes on', async (t) => {
  const context = await browser.context(t);
  const pages = [];
  for (let i = 0; i < 3; i += 1) pages.push(await browser.page(context, { channels: { items: {} }, shared: true, lostMs: 2400 }));
  await Promise.all(pages.map(ready));
  const [a, b, c] = pages;
  assert.equal(await leads(a), true);
  const load = writing(t);
  // Its scripts stop, wherever they are, and it says nothing: unlike with a freeze, of which it is told.
  const devtools = await context.newCDPSession(a);
  await devtools.send('Debugger.enable');
  await devtools.send('Debugger.pause');
  await until(() => leaderOf([b, c]), 'another leader');
  await Promise.all([b, c].map(live));
  const { length } = load.txids;
  await until(() => load.txids.length > length + 5, 'writes');
  await devtools.send('Debugger.disable');
  await until(async () => !(await leads(a)), 'the old one knows');
  await live(a);
  await load.stop();
  for (const page of pages) await same(page, 'items', db, 'ada', 'SELECT * FROM items', 'behind the stand-still');
  for (const page of [b, c]) {
    await quiet(page);
    await exactly(page, [load], 'behind the stand-still');
  }
  for (const page of pages) assert.deepEqual([page.problems, await get(page, () => window.app.problems)], [[], []]);
  // It is told that it freezes, as a page that is hidden for long: it hands over at once.
  const next = await leaderOf(pages);
  await get(next, () => document.dispatchEvent(new Event('freeze')));
  const frozen = await context.newCDPSession(next);
  await frozen.send('Debugger.enable');
  await frozen.send('Debugger.pause');
  const others = pages.filter((page) => page !== next);
  const third = await until(() => leaderOf(others), 'a third one leads');
  await Promise.all(others.map(live));
  await db.exec(`UPDATE items SET note = 'while it was frozen' WHERE id = 6`);
  await frozen.send('Debugger.disable');
  await get(next, () => document.dispatchEvent(new Event('resume')));
  await live(next);
  for (const page of pages) await same(page, 'items', db, 'ada', 'SELECT * FROM items', 'behind the freeze');
  assert.deepEqual(await Promise.all(pages.map(leads)), pages.map((page) => page === third));
});

test('what is lost between tabs is noticed: the tab goes on from where it was', async (t) => {
  const context = await browser.context(t);
  // What a page hears goes through its hands.
  await context.addInitScript(() => {
    window.lose = 0;
    window.BroadcastChannel = class extends BroadcastChannel {
      set onmessage(listener) {
        super.onmessage = (event) => {
          if (window.lose > 0 && (event.data.all?.type === 'transaction' || event.data.parcel)) window.lose -= 1;
          else listener(event);
        };
      }
    };
  });
  const pages = [];
  for (let i = 0; i < 3; i += 1) pages.push(await browser.page(context, { channels: { items: {} }, shared: true, lostMs: 3000 }));
  await Promise.all(pages.map(ready));
  const load = writing(t);
  for (const page of pages) {
    for (const lose of [1, 3]) {
      await get(page, (n) => { window.lose = n; }, lose);
      await until(() => get(page, () => window.lose === 0), 'lost');
      await live(page);
    }
  }
  await load.stop();
  for (const page of pages) {
    await same(page, 'items', db, 'ada', 'SELECT * FROM items', 'behind what was lost');
    await quiet(page);
    await exactly(page, [load], 'behind what was lost');
    assert.ok(await get(page, () => window.app.statuses.includes('reconnecting')));
  }
});

test('a tab with a position that the leader does not know any more gets its rows, and is told so', async (t) => {
  const context = await browser.context(t);
  const own = await browser.page(context, { channels: { items: {} } });
  await ready(own);
  const initial = await get(own, () => window.app.channels.items.dump());
  await db.exec(`UPDATE items SET note = 'behind the position' WHERE id IN (2, 8)`);
  const leader = await browser.page(context, { channels: { items: {} }, shared: true });
  await ready(leader);
  const late = await browser.page(context, { channels: { items: { initial } }, shared: true });
  await ready(late);
  await same(late, 'items', db, 'ada', 'SELECT * FROM items', 'late');
  assert.deepEqual(await get(late, () => [window.app.resyncs, window.app.errors]), [['items tabs'], []]);
  await quiet(leader);
});

test('two identities share nothing: neither the connection nor a row, whoever comes, changes or leaves', async (t) => {
  const context = await browser.context(t);
  const before = await connections();
  const a = await browser.page(context, { channels: { items: {} }, shared: true });
  const b = await browser.page(context, { channels: { items: {} }, shared: true });
  const c = await browser.page(context, { channels: { items: {} }, shared: true, sub: 'bob' });
  await Promise.all([a, b, c].map(ready));
  assert.equal(await connections(), before + 2);
  const load = writing(t);
  // The leader signs out and in as bob; its tab goes to the others of bob, the other one takes the lead of ada.
  const become = (page, sub) => get(page, (who) => { window.app.sub = who; window.app.client.setAuth((why) => window.token(why, who)); }, sub);
  assert.equal(await leads(a), true);
  await become(a, 'bob');
  await until(() => leads(b), 'the other one leads');
  await Promise.all([a, b, c].map(live));
  assert.equal(await connections(), before + 2);
  await become(a, 'ada');
  await become(b, 'bob');
  await Promise.all([a, b, c].map(live));
  await load.stop();
  for (const [page, sub] of [[a, 'ada'], [b, 'bob'], [c, 'bob']]) {
    await same(page, 'items', db, sub, 'SELECT * FROM items', sub);
    assert.deepEqual([page.problems, await get(page, () => window.app.problems)], [[], []]);
  }
  // Signed out: no rows, at once, and the others go on.
  assert.equal(await get(c, () => { window.app.client.setAuth(null); return window.app.channels.items.rows().length; }), 0);
  await same(b, 'items', db, 'bob', 'SELECT * FROM items', 'bob goes on');
});

test('presence: the tabs of a browser are one member; their keys are those of all', async (t) => {
  const context = await browser.context(t);
  const a = await browser.page(context, { channels: { items: {} }, shared: true });
  const b = await browser.page(context, { channels: { items: {} }, shared: true });
  const watcher = await browser.page(await browser.context(t), { channels: { items: {} }, sub: 'bob' });
  await Promise.all([a, b, watcher].map(ready));
  for (const page of [a, b, watcher]) await get(page, () => { window.room = window.app.presence('items'); });
  const track = (page, state, exclusive) => get(page, (given) => window.room.track(given.state, { exclusive: given.exclusive }).catch(({ code }) => code), { state, exclusive });
  const members = (page) => get(page, () => [...window.room.current.members.values()].map(({ user, states, holds }) => ({ user, states, holds: [...holds].sort() })));
  const sees = (page, expected, what) => until(async () => JSON.stringify(await members(page)) === JSON.stringify(expected), what);
  await track(a, { tab: 'a' }, ['row:1']);
  await track(b, { tab: 'b' }, ['row:2']);
  for (const page of [a, b, watcher]) await sees(page, [{ user: 'ada', states: [{ tab: 'b' }], holds: ['row:1', 'row:2'] }], 'one member');
  assert.equal(await track(watcher, {}, ['row:1']), '55P03');
  const late = await browser.page(context, { channels: { items: {} }, shared: true });
  await ready(late);
  await get(late, () => { window.room = window.app.presence('items'); });
  await until(() => get(late, () => window.app.channels.items.state === 'live'), 'live');
  await b.close();
  await sees(watcher, [{ user: 'ada', states: [{ tab: 'a' }], holds: ['row:1'] }], 'what is left');
  await get(a, () => window.room.untrack());
  await sees(watcher, [], 'nobody');
});
