// client/: optimistic writes, the offline queue, kept rows, live text, against the real server.

import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { after, before, describe, test } from 'node:test';
import { pathToFileURL } from 'node:url';

import { ChangefeedError } from '../../client/dist/index.js';
import { createOfflineQueue, createStore, withStore } from '../../client/dist/offline.js';
import { lock, presence } from '../../client/dist/presence.js';
import { mergeColumns, optimistic } from '../../client/dist/optimistic.js';
import { createYjsProvider, fromBytea, toBytea } from '../../client/dist/yjs.js';
import { until } from '../integration/lib/client.mjs';
import { Session } from '../integration/lib/psql.mjs';
import { Proxy } from './lib/proxy.mjs';
import { same, start, when } from './lib/page.mjs';

const library = createRequire(new URL('../../client/package.json', import.meta.url));
const load = (name) => import(pathToFileURL(library.resolve(name)));

let db;
let token;
let indexedDB;

before(async () => {
  ({ indexedDB } = await load('fake-indexeddb'));
  db = new Session();
  await db.exec(`CREATE ROLE web;
    CREATE TABLE tasks (id int PRIMARY KEY, title text NOT NULL CHECK (title <> 'bad'), done boolean NOT NULL DEFAULT false, owner text);
    GRANT SELECT, INSERT, UPDATE, DELETE ON tasks TO web;
    INSERT INTO tasks SELECT i, 'task ' || i FROM generate_series(1, 10) i;
    CREATE TABLE made (n int);
    GRANT INSERT ON made TO web;
    CREATE TABLE doc_updates (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, doc text NOT NULL, update bytea NOT NULL);
    GRANT SELECT, INSERT ON doc_updates TO web;
    SELECT changefeed.allow_role('web');
    SELECT changefeed.create_channel('tasks', 'tasks');
    SELECT changefeed.create_channel('doc:{doc}', 'doc_updates', presence => '{}');
    CREATE FUNCTION change_task(id int, title text DEFAULT NULL, done boolean DEFAULT NULL, owner text DEFAULT NULL) RETURNS void LANGUAGE sql AS $$
        UPDATE tasks t SET title = coalesce(change_task.title, t.title), done = coalesce(change_task.done, t.done), owner = coalesce(change_task.owner, t.owner) WHERE t.id = change_task.id $$;
    CREATE FUNCTION add_task(id int, title text) RETURNS void LANGUAGE sql AS 'INSERT INTO tasks (id, title) VALUES (id, title)';
    CREATE FUNCTION drop_task(id int) RETURNS void LANGUAGE sql AS 'DELETE FROM tasks WHERE tasks.id = drop_task.id';
    CREATE FUNCTION make(n int) RETURNS void LANGUAGE sql AS 'INSERT INTO made VALUES (n)';
    CREATE FUNCTION add_update(doc text, update bytea) RETURNS void LANGUAGE sql AS 'INSERT INTO doc_updates (doc, update) VALUES (doc, update)';
    SELECT changefeed.expose_function(f) FROM unnest('{change_task,add_task,drop_task,make,add_update}'::regproc[]) f;`);
  token = await db.token({ role: 'web', sub: 'ada' });
});
after(() => db.close());

const change = (id) => (columns) => ['change_task', { id, ...columns }];

describe('optimistic writes', () => {
  test('shown at once, confirmed by the own transaction, never flickering', async (t) => {
    const client = start(t, { auth: token });
    const channel = client.channel('tasks', { versions: true });
    await channel.ready;
    const tasks = optimistic(client, channel);
    t.after(() => tasks.close());
    const seen = [];
    tasks.subscribe(() => seen.push(tasks.get({ id: 1 })?.title));
    const writing = tasks.mutate({ key: { id: 1 }, set: { title: 'mine' }, call: change(1) });
    assert.equal(tasks.get({ id: 1 }).title, 'mine');
    assert.equal(tasks.current.find(({ id }) => id === 1).title, 'mine');
    assert.equal(tasks.pending, 1);
    assert.equal(tasks.isPending({ id: 1 }), true);
    assert.equal(tasks.status, 'syncing');
    await writing;
    assert.equal(tasks.pending, 0);
    assert.equal(tasks.status, 'synced');
    assert.deepEqual([...new Set(seen)], ['mine']);
    await tasks.mutate({ key: { id: 20 }, row: { id: 20, title: 'new', done: false, owner: null }, call: ({ id, title }) => ['add_task', { id, title }] });
    const removing = tasks.mutate({ key: { id: 20 }, remove: true, call: () => ['drop_task', { id: 20 }] });
    assert.equal(tasks.get({ id: 20 }), undefined);
    await removing;
    await same(client, channel, db, 'SELECT * FROM tasks', 'behind the writes');
  });

  test('refused: rolled back, with the error', async (t) => {
    const client = start(t, { auth: token });
    const channel = client.channel('tasks', { versions: true });
    await channel.ready;
    const tasks = optimistic(client, channel);
    const before = tasks.get({ id: 2 });
    const writing = tasks.mutate({ key: { id: 2 }, set: { title: 'bad' }, call: change(2) });
    assert.equal(tasks.get({ id: 2 }).title, 'bad');
    await assert.rejects(writing, { code: '23514' });
    assert.deepEqual(tasks.get({ id: 2 }), before);
    assert.equal(tasks.pending, 0);
  });

  test('somebody else was faster: server, merge, manual', async (t) => {
    const proxy = await Proxy.start(process.env.WS_URL);
    t.after(() => proxy.close());
    const client = start(t, { url: proxy.url, auth: token });
    const channel = client.channel('tasks', { versions: true });
    await channel.ready;
    const tasks = optimistic(client, channel);
    /** Writes while another's change is on its way. */
    const race = async (id, theirs, mutation) => {
      client.disconnect();
      await db.exec(`UPDATE tasks SET ${theirs} WHERE id = ${id}`);
      const writing = tasks.mutate({ key: { id }, call: change(id), ...mutation });
      assert.equal(tasks.status, 'waiting');
      client.connect();
      return writing;
    };
    await assert.rejects(race(3, "title = 'theirs'", { set: { title: 'mine' } }), (error) => error.code === '40001' && error.conflict.row.title === 'theirs');
    await race(4, 'done = true', { set: { title: 'mine' }, conflict: 'merge' });
    assert.deepEqual(channel.get({ id: 4 }), { id: 4, title: 'mine', done: true, owner: null });
    await assert.rejects(race(5, "title = 'theirs'", { set: { title: 'mine' }, conflict: 'merge' }), { code: '40001' });
    await race(6, "title = 'theirs'", {
      set: { title: 'mine' }, conflict: 'manual', resolve: ({ base, mine, theirs }) => ({ title: `${base.title}, ${mine.title}, ${theirs.title}` }),
    });
    assert.equal(channel.get({ id: 6 }).title, 'task 6, mine, theirs');
    await same(client, channel, db, 'SELECT * FROM tasks', 'behind the conflicts');
  });

  test('what was seen counts, not what is there when it is written: a row, its version, or both', async (t) => {
    await db.exec(`INSERT INTO tasks VALUES (40, 'task 40')`);
    const client = start(t, { auth: token });
    const channel = client.channel('tasks', { versions: true });
    await channel.ready;
    const tasks = optimistic(client, channel);
    const key = { id: 40 };
    const theirs = async (set) => {
      const seen = { base: channel.get(key), version: channel.version(key) };
      await db.exec(`UPDATE tasks SET ${set} WHERE id = 40`);
      await client.sync();
      assert.notDeepEqual(channel.get(key), seen.base);
      return seen;
    };
    const write = (mutation) => tasks.mutate({ key, call: change(40), ...mutation });
    let seen = await theirs(`title = 'theirs'`);
    for (const given of [{ base: seen.base }, { version: seen.version }, seen]) {
      for (const conflict of ['server', 'merge']) {
        await assert.rejects(write({ set: { title: 'mine' }, conflict, ...given }), (error) => error.code === '40001' && error.conflict.row.title === 'theirs');
      }
    }
    assert.equal(tasks.pending, 0);
    assert.equal(tasks.get(key).title, 'theirs');
    // Without them the row of now is what counts.
    await write({ set: { title: 'seen' } });
    seen = await theirs('done = true');
    await write({ set: { title: 'merged' }, conflict: 'merge', base: seen.base });
    seen = await theirs(`owner = 'them'`);
    await write({ set: { title: 'merged again' }, conflict: 'merge', ...seen });
    assert.deepEqual(channel.get(key), { id: 40, title: 'merged again', done: true, owner: 'them' });
    seen = await theirs('done = false');
    // Nobody knows what was in a row of which there is only the version: nothing is merged, and somebody may decide.
    await assert.rejects(write({ set: { title: 'x' }, conflict: 'merge', version: seen.version }), { code: '40001' });
    let asked;
    await write({ set: { title: 'x' }, conflict: 'manual', version: seen.version, resolve: (all) => { asked = all; return { title: 'decided' }; } });
    assert.deepEqual([asked.base, asked.mine, asked.theirs.done], [null, { title: 'x' }, false]);
    await write({ set: { title: 'still' }, base: channel.get(key) });
    await write({ set: { title: 'and still' }, version: channel.version(key) });
    // One's own change in between is one, too.
    seen = { base: channel.get(key) };
    await Promise.all([write({ set: { title: 'first' } }), assert.rejects(write({ set: { title: 'second' }, ...seen }), { code: '40001' })]);
    // A row that has gone, and one that has come.
    await db.exec(`INSERT INTO tasks VALUES (30, 'goes')`);
    await client.sync();
    const gone = channel.get({ id: 30 });
    await db.exec('DELETE FROM tasks WHERE id = 30');
    await client.sync();
    await assert.rejects(tasks.mutate({ key: { id: 30 }, set: { title: 'x' }, base: gone, conflict: 'merge', call: change(30) }), (error) => error.conflict.row === null);
    await assert.rejects(tasks.mutate({ key, set: { title: 'x' }, base: null, call: change(40) }), (error) => error.conflict.row.title === 'first');
    await same(client, channel, db, 'SELECT * FROM tasks', 'behind what was seen');
  });

  test('rows of a server rendering have no versions: what has changed since is a conflict all the same', async (t) => {
    await db.exec(`INSERT INTO tasks SELECT i, 'task ' || i FROM generate_series(51, 54) i`);
    for (const versions of [true, false]) {
      const rows = JSON.parse(await db.value('SELECT jsonb_agg(t ORDER BY id) FROM tasks t'));
      const client = start(t, { auth: token, live: false });
      const channel = client.channel('tasks', { versions, initial: { rows: { tasks: rows }, position: null } });
      const tasks = optimistic(client, channel);
      const write = (id, set, more) => tasks.mutate({ key: { id }, set, call: change(id), ...more });
      const title = `mine ${versions}`;
      const writing = [write(52, { title }), write(51, { title, done: true }, { conflict: 'merge' }), write(53, { title }), write(54, { title }, { base: rows.find(({ id }) => id === 54) })];
      assert.deepEqual(tasks.current.map(({ id, title: shown }) => [id, shown === title]), rows.map(({ id }) => [id, [51, 52, 53, 54].includes(id)]), 'shown at once');
      await db.exec(`UPDATE tasks SET owner = 'theirs ${versions}' WHERE id IN (51, 52, 54)`);
      client.setLive(true);
      const outcome = (await Promise.allSettled(writing)).map(({ status, reason }) => reason?.conflict?.row.owner ?? reason?.code ?? status);
      // Without versions nothing is looked for, unless it is said what was seen.
      assert.deepEqual(outcome, versions ? ['theirs true', 'fulfilled', 'fulfilled', 'theirs true'] : ['fulfilled', 'fulfilled', 'fulfilled', 'theirs false']);
      assert.deepEqual([channel.get({ id: 51 }).owner, channel.get({ id: 51 }).title, channel.get({ id: 53 }).title], [`theirs ${versions}`, title, title]);
      assert.equal(tasks.pending, 0);
      await same(client, channel, db, 'SELECT * FROM tasks', 'behind what came another way');
      await db.exec('UPDATE tasks SET done = false WHERE id > 50');
    }
    // If the server does not come, it fails.
    const client = start(t, { auth: token, live: false });
    const tasks = optimistic(client, client.channel('tasks', { versions: true, initial: { rows: { tasks: [{ id: 1, title: 'old' }] } } }));
    await assert.rejects(tasks.mutate({ key: { id: 1 }, set: { title: 'x' }, call: change(1), timeoutMs: 50 }), { code: 'no_answer' });
    assert.equal(tasks.get({ id: 1 }).title, 'old');
  });

  test('quick changes of one row are not taken for somebody else\'s; another\'s in between is', async (t) => {
    const client = start(t, { auth: token });
    const channel = client.channel('tasks', { versions: true });
    await channel.ready;
    const tasks = optimistic(client, channel);
    const writing = ['a', 'b', 'c'].map((title) => tasks.mutate({ key: { id: 8 }, set: { title }, call: change(8) }));
    assert.equal(tasks.get({ id: 8 }).title, 'c');
    await Promise.all(writing);
    assert.equal(channel.get({ id: 8 }).title, 'c');
    // Somebody else writes between two changes.
    const slow = optimistic({
      connection: client.connection, sync: client.sync,
      async call(name, args, options) {
        if (args.title === 'mine') await db.exec(`UPDATE tasks SET owner = 'theirs' WHERE id = 8`);
        return client.call(name, args, options);
      },
    }, channel);
    const first = slow.mutate({ key: { id: 8 }, set: { title: 'first' }, call: change(8) });
    const second = slow.mutate({ key: { id: 8 }, set: { title: 'mine' }, call: change(8) });
    await first;
    await assert.rejects(second, (error) => error.code === '40001' && error.conflict.row.owner === 'theirs');
    assert.equal(slow.pending, 0);
    assert.equal(tasks.pending, 0);
    await same(client, channel, db, 'SELECT * FROM tasks', 'behind quick changes');
  });

  test('a call that changes nothing that is seen is confirmed, without waiting for a heartbeat', async (t) => {
    const client = start(t, { auth: token });
    const channel = client.channel('tasks');
    await channel.ready;
    const tasks = optimistic(client, channel);
    const before = Date.now();
    const { txid } = await tasks.mutate({ key: { id: 9 }, set: { title: 'never' }, call: () => ['make', { n: 99 }], timeoutMs: 60_000 });
    assert.ok(txid);
    assert.equal(tasks.pending, 0);
    assert.equal(tasks.get({ id: 9 }).title, 'task 9');
    assert.ok(Date.now() - before < 30_000);
  });

  test('with rare flushes the old row does not come back for a moment', async (t) => {
    const client = start(t, { auth: token, flush: 300 });
    const channel = client.channel('tasks');
    await channel.ready;
    await client.sync();
    const tasks = optimistic(client, channel);
    const titles = [];
    const off = tasks.subscribe(() => titles.push(tasks.current.find(({ id }) => id === 10).title));
    await tasks.mutate({ key: { id: 10 }, set: { title: 'now' }, call: change(10) });
    await until(() => channel.rows().find(({ id }) => id === 10).title === 'now' && tasks.pending === 0, 'the flush');
    off();
    assert.deepEqual([...new Set(titles)], ['now']);
  });

  test('columns of both sides', () => {
    const base = { a: 1, b: 2, c: 3 };
    assert.deepEqual(mergeColumns(base, { a: 9 }, { a: 1, b: 5, c: 3 }), { a: 9 });
    assert.equal(mergeColumns(base, { a: 9 }, { a: 8, b: 2, c: 3 }), null);
    assert.deepEqual(mergeColumns(base, { a: 9, b: 5 }, { a: 9, b: 2, c: 3 }), { b: 5 });
    assert.equal(mergeColumns(base, { a: 9 }, null), null);
  });
});

describe('offline', () => {
  test('50 calls without a network: each runs once, in order, behind cuts; what is refused is set aside', async (t) => {
    await db.exec('TRUNCATE made');
    const proxy = await Proxy.start(process.env.WS_URL);
    t.after(() => proxy.close());
    const client = start(t, { url: proxy.url, auth: token });
    await client.channel('tasks').ready;
    proxy.refuse = true;
    proxy.cut();
    const queue = await createOfflineQueue(client, { name: 'fifty', indexedDB, backoff: { minMs: 20, maxMs: 200 } });
    const done = [];
    for (let i = 0; i < 50; i += 1) {
      if (i === 20) done.push((await queue.call('change_task', { id: 1, title: 'bad' })).done.catch((error) => error));
      else done.push((await queue.call('make', { n: i })).done);
    }
    assert.equal(queue.current.waiting.length, 50);
    // The page is left and comes again.
    queue.close();
    const again = await createOfflineQueue(client, { name: 'fifty', indexedDB, backoff: { minMs: 20, maxMs: 200 } });
    t.after(() => again.close());
    assert.equal(again.current.waiting.length, 50);
    proxy.refuse = false;
    for (let i = 0; i < 6 && again.current.waiting.length; i += 1) {
      proxy.budget = 300 + Math.floor(Math.random() * 1500);
      const { connects } = client.metrics();
      await until(() => client.metrics().connects > connects || again.current.waiting.length === 0, 'again, or done');
    }
    proxy.budget = Infinity;
    await again.drained();
    assert.deepEqual((await db.value('SELECT string_agg(n::text, \',\' ORDER BY ctid) FROM made')).split(',').map(Number), Array.from({ length: 50 }, (_, i) => i).filter((i) => i !== 20));
    assert.equal(again.current.failed.length, 1);
    assert.equal(again.current.failed[0].failed.code, '23514');
    const [{ id }] = again.current.failed;
    await again.retry(id, { id: 1, title: 'good' });
    await again.drained();
    assert.equal(await db.value('SELECT title FROM tasks WHERE id = 1'), 'good');
    assert.deepEqual(again.current, { waiting: [], failed: [] });
  });

  test('conflicts, the order, what is thrown away, a client that ends, a key that the server has forgotten', async (t) => {
    await db.exec('TRUNCATE made');
    const client = start(t, { auth: token });
    const channel = client.channel('tasks', { versions: true });
    await channel.ready;
    const options = { name: 'fates', indexedDB, backoff: { minMs: 20, maxMs: 200 } };
    const queue = await createOfflineQueue(client, options);
    const expect = { channel: 'tasks', key: { id: 3 }, version: channel.version({ id: 3 }) };
    await db.exec(`UPDATE tasks SET title = 'theirs' WHERE id = 3`);
    const conflict = await (await queue.call('change_task', { id: 3, title: 'mine' }, { expect })).done.catch((error) => error);
    assert.deepEqual([conflict.code, conflict.conflict.row.title], ['40001', 'theirs']);
    const [{ id, failed }] = queue.current.failed;
    assert.equal(failed.conflict.row.title, 'theirs');
    await queue.retry(id, { id: 3, title: 'resolved' }, { expect: { ...expect, version: failed.conflict.version } });
    await queue.drained();
    assert.equal(await db.value('SELECT title FROM tasks WHERE id = 3'), 'resolved');
    // The client ends while a call waits for its answer: the call is still there.
    client.close();
    const { done } = await queue.call('make', { n: 1 });
    await assert.rejects(done, { code: 'closed' });
    const other = start(t, { auth: token });
    const again = await createOfflineQueue(other, options);
    await again.drained();
    assert.deepEqual([again.current.failed, await db.value('SELECT count(*) FROM made')], [[], '1']);
    // Sent, and no answer for longer than the server keeps keys.
    other.disconnect();
    again.close();
    const away = await createOfflineQueue({ call: () => Promise.reject(new ChangefeedError('no_connection', 'away')), on: () => () => {} }, options);
    await away.call('make', { n: 2 });
    const thrown = await away.call('make', { n: 3 });
    await until(() => away.current.waiting[0]?.sentAt, 'sent');
    await away.discard(thrown.id);
    await assert.rejects(thrown.done, { code: 'discarded' });
    away.close();
    other.connect();
    const late = await createOfflineQueue(other, { ...options, keyAgeMs: 0 });
    t.after(() => late.close());
    await until(() => late.current.failed.length === 1, 'set aside');
    assert.equal(late.current.failed[0].failed.code, '40003');
    assert.equal(await db.value('SELECT count(*) FROM made'), '1');
    // Signed out: nothing is done in the name of whoever comes next.
    other.setAuth(null);
    await assert.rejects(late.call('make', { n: 4 }), { code: 'closed' });
  });

  test('what is kept is of one moment, whatever has been flushed', async (t) => {
    const client = start(t, { auth: token, flush: 3000 });
    const channel = client.channel('tasks', { versions: true });
    await channel.ready;
    await db.exec(`UPDATE tasks SET title = 'unflushed' WHERE id = 1`);
    await client.sync();
    const { rows, position, versions } = channel.dump();
    assert.equal(position, channel.position);
    assert.equal(rows.tasks.find(({ id }) => id === 1).title, 'unflushed');
    const other = start(t, { auth: token });
    const kept = other.channel('tasks', { versions: true, initial: { rows, position, versions } });
    await kept.ready;
    assert.equal(kept.version({ id: 1 }), channel.version({ id: 1 }));
    assert.ok(kept.version({ id: 2 }));
    await same(other, kept, db, 'SELECT * FROM tasks', 'gone on');
  });

  test('rows and positions are there at once behind a reload, and gone behind a sign-out', async (t) => {
    const first = start(t, { auth: token });
    const store = await createStore(first, { name: 'rows', indexedDB });
    const channel = first.channel('tasks');
    t.after(store.keep(channel, 10));
    await channel.ready;
    await until(async () => (await store.load('tasks'))?.position === channel.position, 'kept');
    const { length } = channel.rows();
    first.disconnect();
    await db.exec(`UPDATE tasks SET owner = 'kept' WHERE id = 7`);
    const second = start(t, { auth: token });
    const other = await createStore(second, { name: 'rows', indexedDB });
    const again = second.channel('tasks', await withStore(other, 'tasks'));
    assert.equal(again.rows().length, length);
    let snapshots = 0;
    again.on('snapshot', () => { snapshots += 1; });
    await again.ready;
    await same(second, again, db, 'SELECT * FROM tasks', 'gone on');
    assert.equal(snapshots, 0);
    second.setAuth(null);
    await until(async () => (await other.load('tasks')) === undefined, 'cleared');
  });

  test('a token with other claims: what is kept and what waits is not the new one\'s', async (t) => {
    const claims = (tenant) => db.token({ role: 'web', sub: 'ada', tenant });
    let who = await claims(1);
    const client = start(t, { auth: () => who });
    const store = await createStore(client, { name: 'claims', indexedDB });
    const queue = await createOfflineQueue(client, { name: 'claims', indexedDB });
    t.after(() => queue.close());
    const channels = ['tasks', 'doc:9'].map((name) => client.channel(name));
    for (const channel of channels) t.after(store.keep(channel, 10));
    await Promise.all(channels.map((channel) => channel.ready));
    await until(async () => (await store.load('tasks'))?.position, 'kept');
    const told = [];
    client.on('purge', () => told.push(channels[0].rows().length));
    channels[0].on('resync', (reason) => told.push(reason));
    who = await claims(2);
    client.disconnect();
    client.connect();
    await until(() => told.length > 1 && channels[0].state === 'live', 'another identity');
    assert.deepEqual(told.slice(0, 2), ['identity_changed', 0]);
    await assert.rejects(queue.call('make', { n: 1 }), { code: 'closed' });
    await until(async () => (await store.load('tasks'))?.position === channels[0].position, 'kept again');
    await same(client, channels[0], db, 'SELECT * FROM tasks', 'another identity');
  });

  test('pages that are not secure have no randomUUID', async (t) => {
    const { crypto } = globalThis;
    Object.defineProperty(globalThis, 'crypto', { configurable: true, value: { getRandomValues: (array) => crypto.getRandomValues(array) } });
    t.after(() => Object.defineProperty(globalThis, 'crypto', { configurable: true, value: crypto }));
    const queue = await createOfflineQueue(start(t, { auth: token }), { name: 'not secure', indexedDB });
    t.after(() => queue.close());
    for (const n of [101, 102]) assert.ok((await (await queue.call('make', { n })).done).txid);
    await (await queue.call('make', { n: 'x' })).done.catch(() => {});
    await queue.retry(queue.current.failed[0].id, { n: 103 });
    await queue.drained();
    assert.equal(await db.value(`SELECT string_agg(n::text, ' ' ORDER BY n) FROM made WHERE n > 100`), '101 102 103');
  });
});

test('Yjs: two people write in one document, one of them offline for a while; cursors', async (t) => {
  const Y = await load('yjs');
  const { Awareness } = await load('y-protocols/awareness');
  const proxy = await Proxy.start(process.env.WS_URL);
  t.after(() => proxy.close());
  const people = await Promise.all(['ada', 'bob'].map(async (sub, i) => {
    const client = start(t, { auth: await db.token({ role: 'web', sub }), ...(i === 0 && { url: proxy.url }) });
    const channel = client.channel('doc:7');
    const doc = new Y.Doc();
    const awareness = new Awareness(doc);
    const provider = createYjsProvider(client, {
      doc, Y, channel, awareness, call: (update) => ['add_update', { doc: '7', update }], collectMs: 10,
    });
    t.after(() => { provider.destroy(); awareness.destroy(); });
    await channel.ready;
    return { client, channel, doc, awareness, provider, text: doc.getText('t') };
  }));
  const [a, b] = people;
  a.text.insert(0, 'Hello world');
  await until(() => b.text.toString() === 'Hello world', 'the text on the other side');
  b.text.insert(5, ' dear');
  await until(() => a.text.toString() === 'Hello dear world', 'and back');
  a.awareness.setLocalState({ name: 'Ada', cursor: 3 });
  await until(() => b.awareness.getStates().get(a.doc.clientID)?.cursor === 3, 'a cursor');
  proxy.refuse = true;
  proxy.cut();
  a.text.insert(0, 'Offline: ');
  b.text.insert(b.text.length, '!');
  proxy.refuse = false;
  await until(() => a.text.toString() === b.text.toString() && a.text.toString() === 'Offline: Hello dear world!' && a.provider.unsaved === 0, 'one text');
  const late = new Y.Doc();
  const client = start(t, { auth: token });
  const channel = client.channel('doc:7');
  const provider = createYjsProvider(client, { doc: late, Y, channel, call: () => ['add_update', {}] });
  t.after(() => provider.destroy());
  await channel.ready;
  await until(() => late.getText('t').toString() === 'Offline: Hello dear world!', 'a third one has it all');
  const bytes = Uint8Array.from([0, 1, 255, 16]);
  assert.equal(toBytea(bytes), '\\x0001ff10');
  assert.deepEqual(fromBytea('\\x0001ff10'), bytes);
});

test('Yjs: what a document brings out of a store of the page gets into the log, once', async (t) => {
  const Y = await load('yjs');
  const client = start(t, { auth: token });
  const doc = new Y.Doc();
  doc.getText('t').insert(0, 'written before');
  doc.getText('t').delete(0, 1);
  const call = (update) => ['add_update', { doc: '8', update }];
  const channel = client.channel('doc:8');
  const provider = createYjsProvider(client, { doc, Y, channel, call, collectMs: 10 });
  await channel.ready;
  await until(async () => await db.value(`SELECT count(*) FROM doc_updates WHERE doc = '8'`) === '1', 'in the log');
  // What is written in the last moment goes out as well.
  doc.getText('t').insert(0, 'R');
  provider.destroy();
  await until(async () => await db.value(`SELECT count(*) FROM doc_updates WHERE doc = '8'`) === '2', 'the last one');
  const copy = new Y.Doc();
  Y.applyUpdate(copy, Y.encodeStateAsUpdate(doc));
  const other = start(t, { auth: token });
  const second = other.channel('doc:8');
  const again = createYjsProvider(other, { doc: copy, Y, channel: second, call, collectMs: 10 });
  t.after(() => again.destroy());
  await second.ready;
  await other.sync();
  assert.equal(copy.getText('t').toString(), 'Rritten before');
  assert.deepEqual([again.unsaved, await db.value(`SELECT count(*) FROM doc_updates WHERE doc = '8'`)], [0, '2']);
});

test('locks: several keys and a state beside them, kept over a reconnect, one of them lost to another', async (t) => {
  const proxy = await Proxy.start(process.env.WS_URL);
  t.after(() => proxy.close());
  const ada = start(t, { url: proxy.url, auth: await db.token({ role: 'web', sub: 'ada' }) });
  const bob = start(t, { auth: await db.token({ role: 'web', sub: 'bob' }) });
  const channels = [ada.channel('doc:9'), bob.channel('doc:9')];
  await Promise.all(channels.map(({ ready }) => ready));
  const [mine, theirs] = [presence(ada, channels[0]), presence(bob, channels[1])];
  // Another part of the page, with its own presence of the same channel.
  const part = presence(ada, channels[0]);
  await mine.track({ name: 'Ada' }, { kind: 'editor' });
  const [one, two] = [lock(part, 'one', 'ada'), lock(part, 'two', 'ada')];
  assert.deepEqual([await one.acquire(), await two.acquire()], [true, true]);
  const seen = () => { const { states, holds, kinds } = theirs.current.members.get('ada') ?? {}; return { states, holds: [...holds ?? []].sort(), kinds }; };
  const sees = (expected, what) => when(theirs, () => JSON.stringify(seen()) === JSON.stringify(expected), what);
  await sees({ states: [{ name: 'Ada' }], holds: ['one', 'two'], kinds: ['editor'] }, 'both keys and the state');
  assert.equal(await lock(theirs, 'one', 'bob').acquire(), false);
  await when(one, ({ held, holder }) => held && holder === 'ada', 'held');
  await one.release();
  await sees({ states: [{ name: 'Ada' }], holds: ['two'], kinds: ['editor'] }, 'one key and the state');
  const { connects } = ada.metrics();
  proxy.cut();
  await until(() => ada.metrics().connects > connects, 'back');
  await one.acquire();
  await sees({ states: [{ name: 'Ada' }], holds: ['one', 'two'], kinds: ['editor'] }, 'said again');
  channels[0].refresh();
  await channels[0].ready;
  await ada.sync();
  await sees({ states: [{ name: 'Ada' }], holds: ['one', 'two'], kinds: ['editor'] }, 'also in another subscription');
  part.close();
  await sees({ states: [{ name: 'Ada' }], holds: [], kinds: ['editor'] }, 'the part has gone');
});
