// TanStack Query and SWR inside React, kept right by channels of the real server.

import assert from 'node:assert/strict';
import { after, afterEach, before, describe, test } from 'node:test';

import { cleanup, complaints, h, render, StrictMode, useEffect } from './lib/dom.mjs';
import { load } from './lib/libraries.mjs';
import { bindQueryClient } from '../../client/dist/query.js';
import { RealtimeProvider, useChannel, useClient } from '../../client/dist/react.js';
import { bindSWR, createFetcher, invalidate, presets } from '../../client/dist/swr.js';
import { until } from '../integration/lib/client.mjs';
import { Session } from '../integration/lib/psql.mjs';
import { SERVER, start } from './lib/page.mjs';

const { QueryClient, QueryClientProvider, useInfiniteQuery, useMutation, useQuery, useQueryClient } = await load('@tanstack/react-query');
const { default: useSWR, SWRConfig, useSWRConfig } = await load('swr');
const { default: useSWRInfinite, unstable_serialize } = await load('swr/infinite');

let db;
let token;

before(async () => {
  db = new Session();
  await db.exec(`CREATE ROLE web;
    CREATE TABLE orders (id int PRIMARY KEY, customer_id int NOT NULL, note text);
    GRANT SELECT, INSERT, UPDATE, DELETE ON orders TO web;
    INSERT INTO orders SELECT i, 42, 'n' || i FROM generate_series(1, 6) i;
    SELECT changefeed.allow_role('web');
    SELECT changefeed.create_channel('orders:{customer_id}', 'orders');
    CREATE FUNCTION note(id int, note text) RETURNS int LANGUAGE sql AS 'UPDATE orders SET note = note.note WHERE orders.id = note.id RETURNING id';
    SELECT changefeed.expose_function('note(int, text)');`);
  token = await db.token({ role: 'web', sub: 'ada' });
});
after(() => db.close());
afterEach(() => {
  cleanup();
  assert.deepEqual(complaints(), []);
});

const truth = async (where = 'true') =>
  JSON.parse(await db.value(`SELECT coalesce(jsonb_agg(to_jsonb(r) ORDER BY id), '[]') FROM orders r WHERE ${where}`));
const byId = (rows) => [...rows].sort((a, b) => a.id - b.id);
const shows = (view, rows) => JSON.stringify(byId(view ?? [])) === JSON.stringify(rows.map(({ id, customer_id, note }) => ({ id, customer_id, note })));
const inOrder = (rows) => rows?.map(({ id, customer_id, note }) => ({ id, customer_id, note }));

/** An application's own API, with what a test does to its answers. */
const api = () => {
  const self = {
    loads: 0,
    hold: null,
    async rows(where) {
      // From then on the query is ahead of what a test asks the same session for.
      self.loads += 1;
      const rows = await truth(where);
      // Read before, answered behind.
      if (self.hold) await self.hold;
      return rows;
    },
    pause() {
      let go;
      self.hold = new Promise((resolve) => { go = resolve; });
      return () => {
        self.hold = null;
        go();
      };
    },
  };
  return self;
};

describe('TanStack Query', () => {
  const page = (t, ...children) => {
    const client = start(t, { auth: token });
    const queryClient = new QueryClient({ defaultOptions: { queries: { staleTime: Infinity, gcTime: Infinity, retry: false }, mutations: { gcTime: Infinity } } });
    t.after(() => queryClient.clear());
    render(h(StrictMode, null, h(RealtimeProvider, { client }, h(QueryClientProvider, { client: queryClient }, ...children))));
    return { client, queryClient };
  };
  const useOrders = (backend) => {
    const queryClient = useQueryClient();
    const channel = useChannel('orders:42');
    useEffect(() => (channel ? bindQueryClient(queryClient, [{ channel, entity: 'orders', updateType: 'merge', queryKey: ['orders'] }]) : undefined),
      [channel, queryClient]);
    return [useQuery({ queryKey: ['orders'], queryFn: () => backend.rows() }), channel];
  };

  test('useQuery is live, also when a load reads before a change and answers behind it', async (t) => {
    const backend = api();
    const seen = [];
    const Orders = () => {
      const [{ data }] = useOrders(backend);
      useEffect(() => void seen.push(data));
      return null;
    };
    const first = backend.pause();
    const { client, queryClient } = page(t, h(Orders));
    await until(() => backend.loads === 1, 'the first load');
    await db.exec(`UPDATE orders SET note = 'before the first answer' WHERE id = 1`);
    await until(() => client.log.some(([event, data]) => event === 'receive' && data.type === 'ready'), 'the channel');
    await client.sync();
    first();
    const one = await truth();
    await until(() => shows(inOrder(seen.at(-1)), one), 'the first rows');
    await until(() => queryClient.isFetching() === 0, 'quiet');

    const { loads } = backend;
    await db.exec(`UPDATE orders SET note = 'pushed' WHERE id = 2; INSERT INTO orders VALUES (10, 42, 'new'); DELETE FROM orders WHERE id = 6`);
    const two = await truth();
    await until(() => shows(inOrder(seen.at(-1)), two), 'a push');
    assert.equal(backend.loads, loads, 'nothing was loaded for it');

    const second = backend.pause();
    void queryClient.refetchQueries({ queryKey: ['orders'] });
    await until(() => backend.loads === loads + 1, 'a load on its way');
    await db.exec(`UPDATE orders SET note = 'raced' WHERE id = 3`);
    await until(() => seen.at(-1).find(({ id }) => id === 3).note === 'raced', 'the newer push');
    const from = seen.length;
    second();
    await until(() => queryClient.isFetching() === 0, 'quiet');
    const three = await truth();
    await until(() => shows(inOrder(seen.at(-1)), three), 'what is');
    assert.ok(seen.slice(from).every((rows) => rows.find(({ id }) => id === 3).note === 'raced'), 'the older load was never shown');
  });

  test('useMutation waits for its own transaction: no flicker, no load', async (t) => {
    const backend = api();
    const seen = [];
    let mutate;
    const Orders = () => {
      const [{ data }, channel] = useOrders(backend);
      const client = useClient();
      const queryClient = useQueryClient();
      mutate = useMutation({
        mutationFn: ({ id, note }) => client.call('note', { id, note }),
        onMutate: async ({ id, note }) => {
          const rows = queryClient.getQueryData(['orders']);
          queryClient.setQueryData(['orders'], rows.map((row) => (row.id === id ? { ...row, note } : row)));
          return rows;
        },
        onError: (_, __, rows) => queryClient.setQueryData(['orders'], rows),
        onSuccess: ({ txid }) => channel.seen(txid),
      }).mutateAsync;
      useEffect(() => void seen.push(data?.find(({ id }) => id === 4)?.note));
      return null;
    };
    const { client, queryClient } = page(t, h(Orders));
    await until(() => seen.at(-1) === 'n4' && client.metrics().rows > 0 && queryClient.isFetching() === 0, 'rows');
    const [from, { loads }] = [seen.length, backend];
    await mutate({ id: 4, note: 'mine' });
    assert.deepEqual([...new Set(seen.slice(from))].filter((note) => note !== 'n4'), ['mine']);
    assert.equal(seen.at(-1), 'mine');
    assert.equal(backend.loads, loads);
    assert.equal(await db.value('SELECT note FROM orders WHERE id = 4'), 'mine');
  });

  test('useInfiniteQuery: changes find their page, what is new goes to the last', async (t) => {
    let pages;
    let more;
    const Orders = () => {
      const queryClient = useQueryClient();
      const channel = useChannel('orders:42');
      useEffect(() => (channel ? bindQueryClient(queryClient, [{ channel, updateType: 'merge', queryKey: ['pages'], path: 'items' }]) : undefined),
        [channel, queryClient]);
      const query = useInfiniteQuery({
        queryKey: ['pages'], initialPageParam: 0, getNextPageParam: ({ next }) => next,
        queryFn: async ({ pageParam }) => ({ items: await truth(`id > ${pageParam} AND id <= ${pageParam + 3}`), next: pageParam + 3 }),
      });
      pages = query.data?.pages;
      more = query.fetchNextPage;
      return null;
    };
    const { queryClient, client } = page(t, h(Orders));
    await until(() => pages?.length === 1 && client.metrics().rows > 0 && queryClient.isFetching() === 0, 'a page');
    await more();
    await db.exec(`UPDATE orders SET note = 'on the first' WHERE id = 1; UPDATE orders SET note = 'on the second' WHERE id = 5; INSERT INTO orders VALUES (20, 42, 'added')`);
    await until(() => pages[0].items.find(({ id }) => id === 1).note === 'on the first'
      && pages[1].items.find(({ id }) => id === 5).note === 'on the second' && pages[1].items.at(-1).id === 20, 'changes');
    assert.equal(pages[0].items.length, 3);
  });
});

describe('SWR', () => {
  const page = (t, options, ...children) => {
    const client = start(t, { auth: token });
    const value = { provider: () => new Map(), ...presets.realtime, dedupingInterval: 0, ...options };
    render(h(StrictMode, null, h(RealtimeProvider, { client }, h(SWRConfig, { value }, ...children))));
    return client;
  };
  const useBinding = (key, more) => {
    const { cache, mutate } = useSWRConfig();
    const channel = useChannel('orders:42');
    useEffect(() => (channel ? bindSWR({ cache, mutate }, [{ channel, updateType: 'merge', key, ...more }]) : undefined), [channel, cache, mutate, key]);
    return mutate;
  };

  test('useSWR is live; a load that answers behind a push does not overwrite it; keys and patterns load again', async (t) => {
    const backend = api();
    const seen = [];
    let mutate;
    const Orders = () => {
      mutate = useBinding('/orders');
      const { data } = useSWR('/orders', () => backend.rows());
      useEffect(() => void seen.push(data));
      return null;
    };
    const client = page(t, {}, h(Orders));
    const wanted = async (what) => {
      const rows = await truth();
      await until(() => shows(inOrder(seen.at(-1)), rows), what);
    };
    await wanted('the first rows');
    await until(() => client.log.some(([event, data]) => event === 'receive' && data.type === 'ready'), 'the channel');
    await client.sync();
    await db.exec(`UPDATE orders SET note = 'swr' WHERE id = 2`);
    await wanted('a push');

    await until(() => seen.at(-1), 'rows');
    const go = backend.pause();
    const { loads } = backend;
    void invalidate(mutate, '/orders');
    await until(() => backend.loads === loads + 1, 'a load on its way');
    await db.exec(`UPDATE orders SET note = 'swr raced' WHERE id = 3`);
    await until(() => seen.at(-1).find(({ id }) => id === 3).note === 'swr raced', 'the newer push');
    const from = seen.length;
    go();
    await until(() => backend.loads >= loads + 2, 'a load behind it');
    await wanted('what is');
    assert.ok(seen.slice(from).every((rows) => rows.find(({ id }) => id === 3).note === 'swr raced'), 'the older load was never shown');

    for (const which of ['/orders', /^\/ord/, (key) => key.endsWith('s')]) {
      const before = backend.loads;
      await invalidate(mutate, which);
      assert.equal(backend.loads, before + 1, String(which));
    }
    await invalidate(mutate, /^\/other/);
  });

  test('useSWRInfinite: changes find their page', async (t) => {
    let pages;
    let size;
    const getKey = (index) => `/orders?page=${index}`;
    const Orders = () => {
      useBinding(unstable_serialize(getKey));
      const { data, setSize } = useSWRInfinite(getKey, async (key) => {
        const index = Number(key.split('=')[1]);
        return truth(`id > ${index * 3} AND id <= ${index * 3 + 3}`);
      }, { revalidateFirstPage: false });
      [pages, size] = [data, setSize];
      return null;
    };
    const client = page(t, {}, h(Orders));
    await until(() => pages?.length === 1 && client.log.some(([event, data]) => event === 'receive' && data.type === 'ready'), 'a page');
    await size(2);
    await until(() => pages.length === 2, 'two pages');
    await db.exec(`UPDATE orders SET note = 'first of swr' WHERE id = 1; UPDATE orders SET note = 'second of swr' WHERE id = 5; INSERT INTO orders VALUES (21, 42, 'added')`);
    await until(() => pages[0].find(({ id }) => id === 1).note === 'first of swr' && pages[1].find(({ id }) => id === 5).note === 'second of swr'
      && pages[1].at(-1).id === 21, 'changes');
    assert.equal(pages[0].length, 3);
  });

  test('the fetcher asks with the ETag, here of the server\'s own polls, and gives the very object of before', async (t) => {
    const asked = [];
    const fetcher = createFetcher({
      init: () => ({ headers: { Authorization: `Bearer ${token}` } }),
      fetch: async (...args) => {
        const response = await fetch(...args);
        asked.push(response.status);
        return response;
      },
    });
    let drawn = 0;
    let shown;
    let mutate;
    const url = `${SERVER.replace(/^ws/, 'http')}/v1/poll?channel=${encodeURIComponent('orders:42')}&wait=0`;
    const Poll = () => {
      ({ mutate } = useSWRConfig());
      shown = useSWR(url, fetcher).data;
      useEffect(() => { drawn += 1; }, [shown]);
      return null;
    };
    page(t, { ...presets.slow, dedupingInterval: 0 }, h(Poll));
    await until(() => shown, 'an answer');
    const [one, count] = [shown, drawn];
    await mutate(url);
    assert.equal(asked.at(-1), 304);
    assert.equal(shown, one);
    assert.equal(drawn, count);
    await db.exec(`UPDATE orders SET note = 'etag' WHERE id = 1`);
    await until(async () => {
      await mutate(url);
      return asked.at(-1) === 200 && shown !== one;
    }, 'other rows');
  });

  test('presets go from fast to none at all', () => {
    const { fast, standard, slow, realtime } = presets;
    assert.ok(fast.refreshInterval < standard.refreshInterval && standard.refreshInterval < slow.refreshInterval);
    assert.equal(realtime.refreshInterval, 0);
  });
});
