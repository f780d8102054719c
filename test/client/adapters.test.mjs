// client/: TanStack Query, SWR and TanStack DB with the real libraries against the real server.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { changefeedCollectionOptions } from '../../client/dist/db.js';
import { bindQueryClient } from '../../client/dist/query.js';
import { bindSWR, createFetcher, invalidate } from '../../client/dist/swr.js';
import { until } from '../integration/lib/client.mjs';
import { Session } from '../integration/lib/psql.mjs';
import { load } from './lib/libraries.mjs';
import { start } from './lib/page.mjs';

let db;
let token;

before(async () => {
  db = new Session();
  await db.exec(`CREATE ROLE web;
    CREATE TABLE orders (id int PRIMARY KEY, customer_id int NOT NULL, note text);
    GRANT SELECT, INSERT, UPDATE, DELETE ON orders TO web;
    INSERT INTO orders SELECT i, 42 + i % 2, 'n' || i FROM generate_series(1, 10) i;
    SELECT changefeed.allow_role('web');
    SELECT changefeed.create_channel('orders:{customer_id}', 'orders');
    SELECT changefeed.create_channel('all', 'orders');
    CREATE FUNCTION note(id int, note text) RETURNS int LANGUAGE sql AS 'UPDATE orders SET note = note.note WHERE orders.id = note.id RETURNING id';
    CREATE FUNCTION place(id int, customer_id int, note text) RETURNS void LANGUAGE sql AS 'INSERT INTO orders VALUES (id, customer_id, note)';
    CREATE FUNCTION drop_order(id int) RETURNS void LANGUAGE sql AS 'DELETE FROM orders WHERE orders.id = drop_order.id';
    SELECT changefeed.expose_function('note(int, text)');
    SELECT changefeed.expose_function('place(int, int, text)');
    SELECT changefeed.expose_function('drop_order(int)');`);
  token = await db.token({ role: 'web', sub: 'ada' });
});
after(() => db.close());

const truth = async () => JSON.parse(await db.value(`SELECT coalesce(jsonb_agg(to_jsonb(r) ORDER BY id), '[]') FROM orders r`));
// Without what TanStack DB adds to rows.
const sorted = (rows) => [...rows]
  .map((row) => Object.fromEntries(Object.entries(row).filter(([name]) => !name.startsWith('$'))))
  .sort((a, b) => a.id - b.id);
const same = (rows, wanted) => JSON.stringify(sorted(rows).map((row) => Object.entries(row).sort())) === JSON.stringify(wanted.map((row) => Object.entries(row).sort()));

describe('TanStack Query', () => {
  test('a query keeps up with the channel; it does not look fresh; a load in flight does not overwrite', async (t) => {
    const { QueryClient, QueryObserver } = await load('@tanstack/query-core');
    const client = start(t, { auth: token });
    const queryClient = new QueryClient({ defaultOptions: { queries: { staleTime: Infinity, gcTime: Infinity, retry: false } } });
    t.after(() => queryClient.clear());
    const channel = client.channel('all');
    await channel.ready;
    let loads = 0;
    let slow = null;
    const observer = new QueryObserver(queryClient, {
      queryKey: ['orders'],
      queryFn: async () => {
        loads += 1;
        const rows = await truth();
        if (slow) await slow;
        return rows;
      },
    });
    t.after(observer.subscribe(() => {}));
    await until(() => observer.getCurrentResult().isSuccess, 'the first load');
    t.after(bindQueryClient(queryClient, [{ channel, entity: 'orders', updateType: 'merge', queryKey: ['orders'] }]));
    await until(() => loads === 2 && observer.getCurrentResult().fetchStatus === 'idle', 'what was loaded before the binding, again');
    const { dataUpdatedAt } = observer.getCurrentResult();
    const untouched = observer.getCurrentResult().data.find(({ id }) => id === 1);
    await db.exec(`UPDATE orders SET note = 'q' WHERE id = 2; DELETE FROM orders WHERE id = 3; INSERT INTO orders VALUES (30, 42, 'new')`);
    const wanted = await truth();
    await until(() => same(observer.getCurrentResult().data, wanted), 'the changes');
    assert.equal(loads, 2);
    assert.equal(observer.getCurrentResult().dataUpdatedAt, dataUpdatedAt);
    assert.equal(observer.getCurrentResult().data.find(({ id }) => id === 1), untouched);

    // A load that read before the change and answers behind it.
    let release;
    slow = new Promise((resolve) => { release = resolve; });
    void observer.refetch().catch(() => {});
    await until(() => loads === 3, 'the second load');
    await client.sync();
    await db.exec(`UPDATE orders SET note = 'raced' WHERE id = 4`);
    await until(() => observer.getCurrentResult().data.find(({ id }) => id === 4).note === 'raced', 'the pushed change');
    slow = null;
    release();
    await until(() => loads === 4 && observer.getCurrentResult().fetchStatus === 'idle', 'the load behind it');
    assert.ok(same(observer.getCurrentResult().data, await truth()));
  });

  test('append, remove, replace, transform, keys of a function, infinite queries, invalidate, resync', async (t) => {
    const { QueryClient } = await load('@tanstack/query-core');
    const client = start(t, { auth: token });
    const queryClient = new QueryClient({ defaultOptions: { queries: { gcTime: Infinity } } });
    t.after(() => queryClient.clear());
    const channel = client.channel('all');
    await channel.ready;
    const list = [{ id: 5, note: 'x', extra: 1 }, { id: 6, note: 'y', extra: 2 }];
    t.after(bindQueryClient(queryClient, [
      ...['append', 'remove', 'replace', 'merge'].map((updateType) => ({ channel, updateType, queryKey: [updateType] })),
      { channel, updateType: 'replace', queryKey: ['short'], transform: ({ id, note }) => (note === 'hide' ? null : { id, note: note.toUpperCase() }) },
      { channel, updateType: 'merge', queryKey: ['pages'] },
      { channel, updateType: 'merge', queryKey: ({ key }) => ['one', key.id] },
      { channel, updateType: 'invalidate', queryKey: ['again'] },
    ]));
    for (const key of ['append', 'remove', 'replace', 'merge', 'short']) queryClient.setQueryData([key], list);
    queryClient.setQueryData(['pages'], { pages: [[list[0]], [list[1]]], pageParams: [0, 1] });
    queryClient.setQueryData(['one', 5], list[0]);
    queryClient.setQueryData(['again'], 1);
    await client.sync();
    await db.exec(`UPDATE orders SET note = 'z' WHERE id = 5; DELETE FROM orders WHERE id = 6; INSERT INTO orders VALUES (31, 42, 'new')`);
    const data = (...key) => queryClient.getQueryData(key);
    await until(() => data('append').length === 3 && data('pages').pages[1].some(({ id }) => id === 31), 'the changes');
    assert.deepEqual(data('append'), [...list, { id: 31, customer_id: 42, note: 'new' }]);
    assert.deepEqual(data('remove'), [list[0]]);
    assert.deepEqual(data('replace')[0], { id: 5, customer_id: 43, note: 'z' });
    assert.deepEqual(data('merge'), [{ id: 5, customer_id: 43, note: 'z', extra: 1 }, { id: 31, customer_id: 42, note: 'new' }]);
    assert.deepEqual(data('short'), [{ id: 5, note: 'Z' }, { id: 31, note: 'NEW' }]);
    assert.deepEqual(data('pages').pages, [[{ id: 5, customer_id: 43, note: 'z', extra: 1 }], [{ id: 31, customer_id: 42, note: 'new' }]]);
    assert.equal(data('one', 5).note, 'z');
    assert.equal(data('one', 31), undefined, 'no query is made up');
    assert.equal(queryClient.getQueryState(['again']).isInvalidated, true);
    assert.equal(queryClient.getQueryState(['merge']).isInvalidated, false);
    await db.exec(`UPDATE orders SET note = 'hide' WHERE id = 31`);
    await until(() => data('short').length === 1, 'taken out');
    channel.refresh();
    await until(() => queryClient.getQueryState(['merge']).isInvalidated, 'a resync makes it load again');
  });

  test('a load that somebody waits for is not cancelled; lists inside of objects; a transform that fails', async (t) => {
    const { QueryClient } = await load('@tanstack/query-core');
    const client = start(t, { auth: token });
    const queryClient = new QueryClient({ defaultOptions: { queries: { gcTime: Infinity } } });
    t.after(() => queryClient.clear());
    const channel = client.channel('all');
    await channel.ready;
    let broken = false;
    t.after(bindQueryClient(queryClient, [
      { channel, updateType: 'merge', queryKey: ['loader'] },
      { channel, updateType: 'merge', queryKey: ['object'], path: 'items' },
      { channel, updateType: 'merge', queryKey: ['pages'], path: 'items' },
      { channel, updateType: 'merge', queryKey: ['broken'], transform: (row) => { if (broken) throw new Error('transform'); return row; } },
    ]));
    queryClient.setQueryData(['object'], { items: [{ id: 5, note: 'x' }], total: 1 });
    queryClient.setQueryData(['pages'], { pages: [{ items: [{ id: 5, note: 'x' }], next: 1 }, { items: [], next: null }], pageParams: [0, 1] });
    queryClient.setQueryData(['broken'], [{ id: 5, note: 'x' }]);
    // A router's loader, with a component to come.
    let answer;
    const loaded = queryClient.fetchQuery({ queryKey: ['loader'], queryFn: () => new Promise((resolve) => { answer = resolve; }) });
    await until(() => answer, 'the load');
    await db.exec(`UPDATE orders SET note = 'while loading' WHERE id = 5; INSERT INTO orders VALUES (32, 42, 'new')`);
    const data = (...key) => queryClient.getQueryData(key);
    await until(() => data('object').items.length === 2 && data('pages').pages[1].items.length === 1, 'the changes');
    assert.deepEqual(data('object'), { items: [{ id: 5, note: 'while loading', customer_id: 43 }, { id: 32, customer_id: 42, note: 'new' }], total: 1 });
    assert.deepEqual(data('pages').pages, [
      { items: [{ id: 5, note: 'while loading', customer_id: 43 }], next: 1 }, { items: [{ id: 32, customer_id: 42, note: 'new' }], next: null }]);
    answer([{ id: 5, note: 'older' }]);
    assert.deepEqual(await loaded, [{ id: 5, note: 'older' }]);
    await until(() => data('loader')[0].note === 'while loading' && queryClient.getQueryState(['loader']).isInvalidated, 'the change behind it');

    broken = true;
    const listeners = process.listeners('uncaughtException');
    process.removeAllListeners('uncaughtException');
    const told = new Promise((resolve) => { process.once('uncaughtException', resolve); });
    await db.exec(`UPDATE orders SET note = 'again' WHERE id = 5`);
    assert.equal((await told).message, 'transform');
    for (const listener of listeners) process.on('uncaughtException', listener);
    assert.equal(queryClient.getQueryState(['broken']).isInvalidated, true);
  });
});

test('SWR: pushes go in, the first load is not lost, an optimistic mutation keeps its way back', async (t) => {
  const swr = await load('swr');
  const { SWRConfig, useSWRConfig } = swr;
  const useSWR = swr.default.default ?? swr.default;
  const { GlobalRegistrator } = await load('@happy-dom/global-registrator');
  const { fetch, WebSocket, AbortSignal, AbortController } = globalThis;
  GlobalRegistrator.register({ url: 'http://localhost/' });
  Object.assign(globalThis, { fetch, WebSocket, AbortSignal, AbortController, IS_REACT_ACT_ENVIRONMENT: false });
  const { createElement } = await load('react');
  const { createRoot } = await load('react-dom/client');
  const client = start(t, { auth: token });
  const channel = client.channel('all');
  await channel.ready;
  let config;
  let shown;
  let loads = 0;
  let slow = null;
  const fetcher = async () => {
    loads += 1;
    const rows = await truth();
    if (slow) await slow;
    return rows;
  };
  let release;
  slow = new Promise((resolve) => { release = resolve; });
  const Page = () => {
    config = useSWRConfig();
    shown = useSWR('/orders', fetcher, { revalidateOnFocus: false }).data;
    return null;
  };
  const root = createRoot(document.createElement('div'));
  root.render(createElement(SWRConfig, { value: { provider: () => new Map(), dedupingInterval: 0 } }, createElement(Page)));
  await until(() => config && loads === 1, 'the first load');
  t.after(bindSWR(config, [{ channel, updateType: 'merge', key: '/orders' }]));
  await db.exec(`UPDATE orders SET note = 'early' WHERE id = 7`);
  await client.sync();
  slow = null;
  release();
  const first = await truth();
  await until(() => shown && same(shown, first), 'the first load with what was pushed meanwhile');
  const before = loads;
  await db.exec(`UPDATE orders SET note = 'pushed' WHERE id = 7; INSERT INTO orders VALUES (40, 42, 'swr')`);
  const second = await truth();
  await until(() => same(shown, second), 'a push');
  assert.equal(loads, before, 'without a load');

  let fail;
  const mutation = config.mutate('/orders', () => new Promise((_, reject) => { fail = reject; }), {
    optimisticData: (rows) => rows.map((row) => (row.id === 8 ? { ...row, note: 'mine' } : row)), rollbackOnError: true, revalidate: false,
  });
  await until(() => shown.find(({ id }) => id === 8).note === 'mine', 'the optimistic row');
  await db.exec(`UPDATE orders SET note = 'theirs' WHERE id = 9`);
  await client.sync();
  fail(new Error('refused'));
  await assert.rejects(mutation);
  const third = await truth();
  await until(() => same(shown, third), 'rolled back, and the push is in');
  slow = null;
  await invalidate(config.mutate, /^\/ord/);
  root.unmount();

  const answers = [{ etag: '"1"', body: '[1]' }, { status: 304 }];
  const fetched = createFetcher({
    fetch: async (_, { headers }) => {
      const { status = 200, etag, body = null } = answers.shift();
      if (status === 304) assert.equal(headers.get('if-none-match'), '"1"');
      return new Response(body, { status, headers: etag ? { etag } : {} });
    },
  });
  assert.equal(await fetched('/x'), await fetched('/x'), 'the very object');
});

for (const name of ['@tanstack/db', 'tanstack-db-oldest']) {
  describe(name, () => {
    test('transactions as one, optimistic writes until the own txid, resync as one step', async (t) => {
      const { createCollection } = await load(name);
      await db.exec('DELETE FROM orders WHERE id > 40');
      const client = start(t, { auth: token });
      const collection = createCollection({ gcTime: 10, ...changefeedCollectionOptions({
        client, channel: 'all', getKey: (row) => row.id,
        onUpdate: async ({ transaction }) => Promise.all(transaction.mutations.map(({ key, changes }) => client.call('note', { id: key, note: changes.note }))),
        onInsert: async ({ transaction }) => Promise.all(transaction.mutations.map(({ modified }) => client.call('place', modified))),
        onDelete: async ({ transaction }) => Promise.all(transaction.mutations.map(({ key }) => client.call('drop_order', { id: key }))),
      }) });
      await collection.preload();
      assert.deepEqual(sorted(collection.state.values()), await truth());
      const batches = [];
      const subscription = collection.subscribeChanges((changes) => batches.push(changes.length));
      t.after(() => subscription.unsubscribe());
      await db.exec(`BEGIN; UPDATE orders SET note = 'tx ${name}' WHERE id IN (1, 2); INSERT INTO orders VALUES (50, 42, 'tx'); COMMIT`);
      const one = await truth();
      await until(() => same([...collection.state.values()], one), 'a transaction');
      assert.deepEqual(batches, [3], 'at once');

      const states = [];
      const watch = collection.subscribeChanges(() => states.push(collection.get(2)?.note));
      const update = collection.update(2, (draft) => { draft.note = `optimistic ${name}`; });
      assert.equal(collection.get(2).note, `optimistic ${name}`);
      await update.isPersisted.promise;
      assert.equal(collection.get(2).note, `optimistic ${name}`);
      watch.unsubscribe();
      assert.deepEqual([...new Set(states)], [`optimistic ${name}`], 'it never flickers');
      await collection.insert({ id: 51, customer_id: 42, note: 'mine' }).isPersisted.promise;
      await collection.delete(50).isPersisted.promise;
      assert.ok(same([...collection.state.values()], await truth()));

      // One that the database refuses.
      const refused = collection.insert({ id: 52, customer_id: null, note: 'bad' });
      assert.equal(collection.get(52).note, 'bad');
      await assert.rejects(refused.isPersisted.promise);
      await until(() => !collection.has(52), 'rolled back');

      const sizes = [];
      const reset = collection.subscribeChanges(() => sizes.push(collection.size));
      await db.exec(`BEGIN; CREATE TEMP TABLE keep ON COMMIT DROP AS SELECT * FROM orders; TRUNCATE orders; INSERT INTO orders SELECT * FROM keep WHERE id <> 10; COMMIT`);
      const two = await truth();
      await until(() => same([...collection.state.values()], two), 'TRUNCATE');
      reset.unsubscribe();
      assert.ok(!sizes.includes(0), `never empty in between: ${sizes}`);
      await db.exec(`INSERT INTO orders VALUES (10, 42, 'n10')`);
      await collection.cleanup();
    });
  });
}
