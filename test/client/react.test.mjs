// The React entry of client/ in a page of happy-dom, against the real server. Whatever React says to the console fails a test.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { text } from 'node:stream/consumers';
import { after, afterEach, before, describe, test } from 'node:test';

import { act, cleanup, complaints, h, hydrateRoot, memo, React, render, StrictMode, Suspense, useEffect } from './lib/dom.mjs';
import * as hooks from '../../client/dist/react.js';
import { loadInitial } from '../../client/dist/server.js';
import { until } from '../integration/lib/client.mjs';
import { Session } from '../integration/lib/psql.mjs';
import { pageOf } from './lib/list.mjs';
import { SERVER, start } from './lib/page.mjs';
import { Proxy } from './lib/proxy.mjs';

const { RealtimeProvider, useCall, useConnection, useLock, useMetrics, useOptimisticRows, usePresence, usePublish, useRows, useTyping } = hooks;

let db;
let token;

before(async () => {
  db = new Session();
  await db.exec(`CREATE ROLE web;
    CREATE TABLE orders (id int PRIMARY KEY, customer_id int NOT NULL, note text, tags jsonb DEFAULT '{"a": [1, 2]}');
    CREATE TABLE items (id int PRIMARY KEY, customer_id int NOT NULL, name text);
    CREATE TABLE private (id int PRIMARY KEY, owner text NOT NULL, body text);
    ALTER TABLE private ENABLE ROW LEVEL SECURITY;
    CREATE POLICY own ON private TO web USING (owner = current_setting('request.jwt.claims')::jsonb->>'sub');
    GRANT SELECT, INSERT, UPDATE, DELETE ON orders, items, private TO web;
    INSERT INTO orders SELECT i, 42 + i % 2, 'n' || i FROM generate_series(1, 10) i;
    INSERT INTO items VALUES (1, 42, 'a'), (2, 43, 'b');
    INSERT INTO private VALUES (1, 'ada', 'of ada'), (2, 'bob', 'of bob');
    SELECT changefeed.allow_role('web');
    SELECT changefeed.create_channel('orders:{customer_id}', 'orders');
    SELECT changefeed.create_channel('shop:{customer_id}', 'orders');
    SELECT changefeed.add_source('shop:{customer_id}', 'items');
    SELECT changefeed.create_channel('private', 'private');
    SELECT changefeed.create_channel('room:{customer_id}', 'orders', presence => '{"interval": "20 ms", "grace": "1s"}', publish_check => 'true');
    CREATE FUNCTION note(id int, note text) RETURNS int LANGUAGE sql AS 'UPDATE orders SET note = note.note WHERE orders.id = note.id RETURNING id';
    CREATE FUNCTION refuse() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not today' USING ERRCODE = 'P0001'; END $$;
    SELECT changefeed.expose_function('note(int, text)');
    SELECT changefeed.expose_function('refuse()');`);
  token = await db.token({ role: 'web', sub: 'ada' });
});
after(() => db.close());
afterEach(() => {
  cleanup();
  assert.deepEqual(complaints(), []);
});

const truth = async (customer) => JSON.parse(await db.value(`SELECT coalesce(jsonb_agg(to_jsonb(r) ORDER BY id), '[]') FROM orders r WHERE customer_id = ${customer}`));
const byId = (rows) => [...rows].sort((a, b) => a.id - b.id);
const settled = async (client, shown, customer, what) => {
  await client.sync();
  assert.deepEqual(byId(shown().rows), await truth(customer), what);
};
const sent = (client, type) => client.log.filter(([event, data]) => event === 'send' && data.type === type).map(([, data]) => data);

const within = (client, ...children) => h(StrictMode, null, h(RealtimeProvider, { client }, ...children));
const show = (client, ...children) => {
  const page = render(within(client, ...children));
  return { ...page, again: (...others) => page.rerender(within(client, ...others)) };
};

/** A component that keeps what a hook has given at each commit. */
const spy = (hook) => {
  const seen = [];
  const Spy = (properties) => {
    const value = hook(properties);
    useEffect(() => {
      if (seen.at(-1) !== value) seen.push(value);
    });
    return null;
  };
  return [Spy, seen, () => seen.at(-1)];
};

describe('rows', () => {
  test('are live, one subscription in StrictMode, states in order; nothing is drawn that has not changed', async (t) => {
    const client = start(t, { auth: token });
    const [Spy, seen, last] = spy(() => useRows('shop:42', { entity: 'orders' }));
    const drawn = {};
    const Row = memo(({ row }) => {
      useEffect(() => {
        drawn[row.id] = (drawn[row.id] ?? 0) + 1;
      });
      return h('li', null, `${row.id} ${row.note}`);
    });
    let commits = 0;
    const List = () => {
      const { rows } = useRows('shop:42', { entity: 'orders' });
      return h('ul', null, rows.map((row) => h(Row, { key: row.id, row })));
    };
    const { container, unmount } = show(client, h(Spy), h(React.Profiler, { id: 'list', onRender: () => { commits += 1; } }, h(List)));
    await until(() => last()?.state === 'live', 'live');
    await settled(client, last, 42, 'a snapshot');
    assert.deepEqual([...new Set(seen.map(({ state }) => state))], ['subscribing', 'live']);
    assert.equal(sent(client, 'subscribe').length, 1);

    const kept = last().rows.find(({ id }) => id === 4);
    Object.keys(drawn).forEach((id) => delete drawn[id]);
    await db.exec(`UPDATE orders SET note = 'changed' WHERE id = 2`);
    await client.sync();
    await until(() => container.textContent.includes('2 changed'), 'a change');
    assert.equal(last().rows.find(({ id }) => id === 4), kept);
    assert.deepEqual(drawn, { 2: 1 });

    // Another entity of the channel, and a change that is none.
    const [before, view] = [commits, last()];
    await db.exec(`UPDATE items SET name = 'other' WHERE id = 1`);
    await client.sync();
    assert.equal(last().channel.rows('items')[0].name, 'other');
    await new Promise((resolve) => { setTimeout(resolve); });
    assert.equal(commits, before);
    assert.equal(last(), view);

    // All rows come again: those that are as they were keep their identity, and the list is never empty.
    const from = seen.length;
    last().channel.refresh();
    await until(() => client.log.filter(([, data]) => data?.type === 'ready').length === 2, 'another snapshot');
    await until(() => last().state === 'live', 'live again');
    assert.equal(last().rows.find(({ id }) => id === 4), kept);
    for (const row of last().rows) assert.ok(view.rows.includes(row));
    assert.ok(seen.slice(from).every(({ rows }) => rows.length === view.rows.length));
    assert.deepEqual(drawn, { 2: 1 });

    unmount();
    await until(() => client.channels().length === 0, 'the end of the subscription');
    assert.equal(sent(client, 'unsubscribe').length, 2, 'for the refresh and for the end');
  });

  test('a second component has them at once; so has one that comes back in time', async (t) => {
    const client = start(t, { auth: token });
    const [One, , one] = spy(() => useRows('orders:42'));
    const page = show(client, h(One));
    await until(() => one()?.state === 'live', 'live');
    const [Two, two] = spy(() => useRows('orders:42'));
    page.again(h(One), h(Two));
    assert.equal(two[0], one());
    page.again(h('p'));
    const [Three, three] = spy(() => useRows('orders:42'));
    page.again(h(Three));
    assert.equal(three[0], one());
    assert.equal(sent(client, 'subscribe').length, 1);
    assert.equal(sent(client, 'unsubscribe').length, 0);
  });

  test('another channel, none, and the first again: never rows of another one', async (t) => {
    const client = start(t, { auth: token });
    const [Spy, seen, last] = spy(({ customer }) => {
      const name = customer && `orders:${customer}`;
      const result = useRows(name, { initial: customer === 42 ? { rows: { orders: [{ id: 0, customer_id: 42, note: 'old' }] } } : undefined });
      return { ...result, customer };
    });
    const page = show(client, h(Spy, { customer: 42 }));
    assert.deepEqual(last().rows.map(({ note }) => note), ['old']);
    for (const customer of [42, 43, null, 42]) {
      page.again(h(Spy, { customer }));
      if (customer === null) assert.deepEqual([last().rows, last().channel], [[], null]);
      else {
        await until(() => last().state === 'live', 'live');
        await settled(client, last, customer, `customer ${customer}`);
      }
    }
    for (const { rows, customer } of seen) assert.ok(rows.every((row) => row.customer_id === customer));
    await until(() => client.channels().length === 1, 'the end of the other one');
  });

  test('an error takes the rows away and says why', async (t) => {
    const client = start(t, { auth: token });
    const [Spy, , last] = spy(() => useRows('nope:1'));
    const [Items, , items] = spy(() => useRows('shop:43', { entity: 'items' }));
    show(client, h(Spy), h(Items));
    await until(() => last()?.state === 'error', 'an error');
    assert.equal(last().error.type, 'request');
    assert.deepEqual(last().rows, []);
    await until(() => items()?.state === 'live' && items().rows.length === 1, 'rows');
    await db.exec('REVOKE SELECT ON items FROM web');
    try {
      await until(() => items().state === 'error', 'revoked');
      assert.equal(items().error.code, '42501');
      assert.deepEqual(items().rows, []);
    } finally {
      await db.exec('GRANT SELECT ON items TO web');
    }
    // The application may ask again.
    items().channel.refresh();
    await until(() => items().state === 'live' && items().rows.length === 1, 'granted');
  });

  test('sign-out and another identity: rows go at once, those of the first page as well', async (t) => {
    const client = start(t, { auth: token });
    const initial = await loadInitial('private', { url: SERVER, token });
    assert.deepEqual(initial.rows, { private: [{ id: 1, owner: 'ada', body: 'of ada' }] });
    const [Spy, seen, last] = spy(() => useRows('private', { initial }));
    const page = show(client, h(Spy));
    await until(() => last()?.state === 'live', 'live');
    assert.equal(last().rows.length, 1);
    client.setAuth(await db.token({ role: 'web', sub: 'bob' }));
    await until(() => last().state === 'live' && last().rows[0]?.owner === 'bob', 'the rows of the other one');
    const from = seen.length;
    client.setAuth(null);
    await until(() => last().rows.length === 0, 'nothing');
    page.again(h('p'));
    await until(() => client.channels().length === 0, 'the end of the channel');
    page.again(h(Spy));
    assert.deepEqual(last().rows, []);
    await until(() => client.connection.current.status === 'unauthorized', 'nobody is let in');
    assert.ok(seen.slice(from).every(({ rows }) => rows.every(({ owner }) => owner !== 'ada')));
  });

  test('a lost connection: stale rows stay, what was missed comes, and nothing is loaded again', async (t) => {
    const proxy = await Proxy.start(SERVER);
    t.after(() => proxy.close());
    const client = start(t, { auth: token, url: proxy.url });
    const [Spy, seen, last] = spy(() => useRows('orders:42'));
    const [Connection, connections, connection] = spy(useConnection);
    show(client, h(Spy), h(Connection));
    await until(() => last()?.state === 'live', 'live');
    const { length } = last().rows;
    const kept = last().rows.find(({ id }) => id === 4);
    proxy.refuse = true;
    proxy.cut();
    await until(() => connection().status === 'reconnecting' && last().state === 'stale', 'stale');
    assert.equal(last().rows.length, length);
    await db.exec(`UPDATE orders SET note = 'missed' WHERE id = 6`);
    proxy.refuse = false;
    await until(() => last().state === 'live', 'live again');
    await settled(client, last, 42, 'what was missed');
    assert.equal(last().rows.find(({ id }) => id === 4), kept);
    assert.ok(seen.slice(seen.findIndex(({ state }) => state === 'live')).every(({ rows }) => rows.length === length));
    assert.equal(client.log.filter(([event, data]) => event === 'receive' && data.type === 'snapshot').length, 1);
    assert.deepEqual([...new Set(connections.map((state) => state.status))].slice(-3), ['connecting', 'connected', 'reconnecting']);
    assert.equal(connection().status, 'connected');
  });

  test('a component that never came to be leaves nothing behind', async (t) => {
    const client = start(t, { auth: token });
    const Never = () => {
      useRows('orders:42');
      throw forever;
    };
    const forever = new Promise(() => {});
    let page;
    await act(async () => { page = show(client, h(Suspense, { fallback: 'wait' }, h(Never))); });
    assert.equal(page.container.textContent, 'wait');
    page.unmount();
    assert.equal(client.channels().length, 0);
    assert.equal(client.connection.current.status, 'idle');
  });
});

describe('server rendering', () => {
  const page = pageOf(React, hooks);
  const draw = async (initial, way = 'renderToString') => {
    const server = spawn(process.execPath, [new URL('lib/draw.mjs', import.meta.url).pathname, way], {
      env: { ...process.env, SERVER }, stdio: ['pipe', 'pipe', 'inherit'],
    });
    server.stdin.end(JSON.stringify({ initial }));
    const [html, code] = await Promise.all([text(server.stdout), new Promise((resolve) => { server.on('close', resolve); })]);
    assert.equal(code, 0);
    return html;
  };
  /** What becomes of the elements while a test runs. */
  const watch = (t, container) => {
    const removed = [];
    const observer = new MutationObserver((records) => removed.push(...records.flatMap((record) => [...record.removedNodes].map((node) => node.id ?? node.nodeName))));
    observer.observe(container, { childList: true, subtree: true });
    t.after(() => observer.disconnect());
    return removed;
  };

  for (const way of ['renderToString', 'renderToPipeableStream']) {
    test(`${way}: no socket on the server; hydrated rows stay, and go on from their position`, async (t) => {
      await db.exec(`UPDATE orders SET note = 'n8' WHERE id = 8; DELETE FROM orders WHERE id >= 11`);
      const initial = await loadInitial('orders:42', { url: SERVER, token });
      assert.deepEqual(byId(initial.rows.orders), await truth(42));
      const html = await draw(initial, way);
      assert.match(html, /<li id="o2">/);

      // Between the server's look and the browser's arrival.
      await db.exec(`UPDATE orders SET note = 'later' WHERE id = 8; INSERT INTO orders VALUES (11, 41, 'x')`);
      const client = start(t, { auth: token });
      const container = document.createElement('div');
      container.innerHTML = html;
      const removed = watch(t, container);
      const problems = [];
      let root;
      // As JSON, as it comes to a browser.
      const given = JSON.parse(JSON.stringify(initial));
      await act(async () => {
        root = hydrateRoot(container, page({ client, initial: given }), { onRecoverableError: (error) => problems.push(error) });
      });
      t.after(() => act(async () => root.unmount()));
      await until(() => container.querySelector('ul').className === 'live' && container.querySelector('#o8').textContent === 'later', 'what came meanwhile');
      await db.exec(`INSERT INTO orders VALUES (12, 42, 'new'); UPDATE orders SET note = 'n2 live' WHERE id = 2`);
      await until(() => container.querySelector('#o12') && container.querySelector('#o2').textContent === 'n2 live', 'live rows');
      await until(() => container.querySelector('p').textContent === 'connected10', 'the connection');
      assert.deepEqual(problems, []);
      assert.deepEqual(removed, [], 'nothing was taken away on the way');
      const [{ from }] = sent(client, 'subscribe').filter(({ channel }) => channel === 'orders:42');
      assert.equal(from, initial.position);
      assert.ok(client.log.some(([event, data]) => event === 'receive' && data.type === 'subscribed' && data.channel === 'orders:42' && data.recovered));
      assert.ok(!client.log.some(([event, data]) => event === 'receive' && data.type === 'snapshot'), 'nothing is loaded twice');
    });
  }

  test('a position that is of no use any more: the rows stay until the others are there', async (t) => {
    const initial = await loadInitial('orders:42', { url: SERVER, token });
    const client = start(t, { auth: await db.token({ role: 'web', sub: 'bob' }) });
    const container = document.createElement('div');
    container.innerHTML = await draw(initial);
    const removed = watch(t, container);
    // No identity: a position of nowhere.
    const given = { rows: initial.rows, position: null };
    let root;
    await act(async () => { root = hydrateRoot(container, page({ client, initial: given })); });
    t.after(() => act(async () => root.unmount()));
    await until(() => container.querySelector('ul').className === 'live', 'live');
    assert.deepEqual(removed, []);
  });

  test('rows on a channel that others had asked for without', async (t) => {
    const initial = await loadInitial('room:42', { url: SERVER, token });
    const client = start(t, { auth: token });
    const [Members, , members] = spy(() => usePresence('room:42', { at: 1 }));
    const [Rows, rows, last] = spy(() => useRows('room:42', { initial }));
    // Presence asks first, without rows.
    show(client, h(Members), h(Rows));
    await until(() => last()?.state === 'live' && members().count === 1, 'rows and members');
    assert.ok(rows.every((view) => view.rows.length === initial.rows.orders.length));
    const [Late, late, lateLast] = spy(() => useRows('room:43'));
    const page = show(client, h(spy(() => usePresence('room:43', { at: 1 }))[0]));
    await until(() => client.log.some(([event, data]) => event === 'receive' && data.type === 'ready' && data.channel === 'room:43'), 'presence');
    page.again(h(Late));
    await until(() => lateLast()?.state === 'live', 'rows behind presence');
    assert.ok(late.every(({ rows: some, state }) => state !== 'live' || some.length > 0));
    await settled(client, lateLast, 43, 'all rows');
  });

  test('loadInitial says what is wrong', async () => {
    await assert.rejects(loadInitial('nope:1', { url: SERVER, token }), { name: 'ChangefeedError', channel: 'nope:1' });
    await assert.rejects(loadInitial('orders:42', { url: SERVER, token: 'no.such.token' }), { type: 'auth' });
    await assert.rejects(loadInitial('orders:42', { url: 'http://127.0.0.1:9' }), { code: 'no_connection' });
  });
});

describe('presence', () => {
  const two = async (t) => {
    const ada = start(t, { auth: token });
    const bob = start(t, { auth: await db.token({ role: 'web', sub: 'bob' }) });
    return [ada, bob];
  };

  test('members, one state of all components, gone with the component', async (t) => {
    const [ada, bob] = await two(t);
    const [Name] = spy(() => usePresence('room:42', { name: 'Ada' }));
    const [Cursor, , cursor] = spy(({ x }) => usePresence('room:42', { x }, { kind: 'editor' }));
    const page = show(ada, h(Name), h(Cursor, { x: 1 }));
    const [Bob, , members] = spy(() => usePresence('room:42'));
    show(bob, h(Bob));
    const states = () => members()?.members.get('ada')?.states;
    await until(() => states()?.[0].x === 1, 'Ada');
    assert.deepEqual(states(), [{ name: 'Ada', x: 1 }]);
    assert.deepEqual(members().kinds, { editor: 1 });
    assert.deepEqual(sent(ada, 'track').map(({ state }) => state), [{ name: 'Ada', x: 1 }], 'all of a page at once');
    page.again(h(Name), h(Cursor, { x: 2 }));
    await until(() => states()?.[0].x === 2, 'a change');
    assert.equal(cursor().error, null);
    page.again(h(Name));
    await until(() => states() && !('x' in states()[0]), 'without the cursor');
    assert.deepEqual(members().kinds, {});

    // Who comes later to a channel that is there already sees the others as well.
    const [Late, , late] = spy(() => usePresence('room:42'));
    await until(() => cursor().count === 1, 'itself');
    page.again(h(Name), h(Late));
    assert.equal(late().members.get('ada').states[0].name, 'Ada');

    page.again(h('p'));
    await until(() => members().count === 0, 'nobody');
    assert.equal(sent(ada, 'untrack').length, 1);
  });

  test('a channel without presence says so', async (t) => {
    const client = start(t, { auth: token });
    const [Spy, , last] = spy(() => usePresence('orders:42', {}));
    show(client, h(Spy));
    await until(() => last()?.error, 'an error');
    assert.equal(last().error.type, 'request');
  });

  test('members for a component that comes when the list has been told already', async (t) => {
    const [ada, bob] = await two(t);
    const [Ada, , there] = spy(() => usePresence('room:42', { name: 'Ada' }, { kind: 'editor' }));
    show(ada, h(Ada));
    await until(() => there()?.count === 1, 'Ada');
    const [Rows, , rows] = spy(() => useRows('room:42'));
    const page = show(bob, h(Rows));
    await until(() => rows()?.state === 'live', 'rows');
    const [Late, , late] = spy(() => usePresence('room:42'));
    page.again(h(Rows), h(Late));
    await until(() => late()?.count === 1, 'the list');
    assert.deepEqual([late().kinds, late().members.get('ada').states], [{ editor: 1 }, [{ name: 'Ada' }]]);
    assert.equal(sent(bob, 'subscribe').length, 1);
  });

  test('typing: shown to others, for a while, ended by stop', async (t) => {
    const [ada, bob] = await two(t);
    const [Ada, , mine] = spy(() => useTyping('room:42', { ms: 1000, me: 'ada' }));
    const [Bob, , seen] = spy(() => useTyping('room:42', { ms: 1000, me: 'bob' }));
    show(ada, h(Ada), h(spy(() => usePresence('room:42', { name: 'Ada' }))[0]));
    show(bob, h(Bob));
    await until(() => ada.connection.current.status === 'connected' && mine(), 'connected');
    for (let i = 0; i < 5; i += 1) mine()[1]();
    await until(() => seen()?.[0].includes('ada'), 'typing');
    assert.equal(sent(ada, 'track').filter(({ state }) => state.typing).length, 1);
    assert.deepEqual(mine()[0], [], 'not told to oneself');
    await until(() => seen()[0].length === 0, 'over by itself');
    mine()[1]();
    await until(() => seen()[0].includes('ada'), 'typing again');
    mine()[2]();
    const stopped = Date.now();
    await until(() => seen()[0].length === 0, 'stopped');
    assert.ok(stopped > 0);
    assert.ok(sent(ada, 'track').at(-1).state.name === 'Ada' && !sent(ada, 'track').at(-1).expires_in);
  });

  test('a lock is one user\'s at a time, and free behind the component', async (t) => {
    const [ada, bob] = await two(t);
    const [Ada, , mine] = spy(() => useLock('room:42', 'title', 'ada'));
    const [Bob, , his] = spy(() => useLock('room:42', 'title'));
    const page = show(ada, h(Ada), h(spy(() => usePresence('room:42', { name: 'Ada' }))[0]));
    show(bob, h(Bob));
    assert.equal(await mine().acquire(), true);
    await until(() => mine().held && his().holder === 'ada', 'held');
    assert.equal(await his().acquire(), false);
    assert.equal(his().held, false);
    page.again(h('p'));
    await until(() => his().holder === null, 'free');
    assert.equal(await his().acquire(), true);
    await until(() => his().held && his().holder === 'bob', 'his');
    his().release();
    await until(() => !his().held && his().holder === null, 'let go of');
  });

  test('a lock that somebody took while the connection was away is lost, the rest is said again', async (t) => {
    const proxy = await Proxy.start(SERVER);
    t.after(() => proxy.close());
    const ada = start(t, { auth: token, url: proxy.url });
    const bob = start(t, { auth: await db.token({ role: 'web', sub: 'bob' }) });
    const [Ada, , mine] = spy(() => useLock('room:42', 'title'));
    const [Name, , name] = spy(() => usePresence('room:42', { name: 'Ada' }));
    const [Bob, , his] = spy(() => useLock('room:42', 'title'));
    const [Members, , members] = spy(() => usePresence('room:42'));
    show(ada, h(Ada), h(Name));
    show(bob, h(Bob), h(Members));
    await until(() => mine(), 'a page');
    assert.equal(await mine().acquire(), true);
    await until(() => his().holder === 'ada', 'held');
    proxy.refuse = true;
    proxy.cut();
    await until(() => his().holder === null, 'free behind the grace period');
    assert.equal(await his().acquire(), true);
    proxy.refuse = false;
    await until(() => members().members.get('ada')?.states[0].name === 'Ada', 'said again');
    assert.equal(mine().held, false);
    assert.equal(his().held, true);
    // Others may have heard of her before she has of them.
    await until(() => mine().holder === 'bob', 'who has it');
    assert.equal(mine().held, false);
    await until(() => name().error === null, 'the rest is in order');
  });
});

describe('messages, calls, figures', () => {
  test('publish and its listener; one function for all renders', async (t) => {
    const client = start(t, { auth: token });
    const got = [];
    const [Spy, seen, last] = spy(({ prefix }) => usePublish('room:42', 'hello', (payload) => got.push(prefix + payload.text)));
    const [Silent, , silent] = spy(() => usePublish('room:42', 'hello'));
    const page = show(client, h(Spy, { prefix: 'a' }), h(Silent));
    await until(() => client.log.some(([event, data]) => event === 'receive' && data.type === 'ready'), 'subscribed');
    await silent()({ text: 'one' });
    await until(() => got.length === 1, 'a message');
    page.again(h(Spy, { prefix: 'b' }), h(Silent));
    await last()({ text: 'two' });
    await until(() => got.length === 2, 'another message');
    assert.deepEqual(got, ['aone', 'btwo']);
    assert.equal(seen.length, 1);
    assert.ok(!client.log.some(([event, data]) => event === 'receive' && data.type === 'snapshot'), 'no rows for who wants messages');
  });

  test('calls: pending, result, error; of the last one', async (t) => {
    const client = start(t, { auth: token });
    const [Spy, seen, last] = spy(() => useCall('note'));
    const [Refused, , refused] = spy(() => useCall('refuse'));
    show(client, h(Spy), h(Refused));
    const { txid, result } = await last()[0]({ id: 3, note: 'called' });
    assert.equal(result, 3);
    assert.match(txid, /^\d+$/);
    await until(() => last()[1].result === 3 && !last()[1].pending, 'the result');
    assert.ok(seen.some(([, { pending }]) => pending));
    assert.equal(await db.value('SELECT note FROM orders WHERE id = 3'), 'called');
    await assert.rejects(refused()[0]({}), { code: 'P0001' });
    await until(() => refused()[1].error?.message === 'not today', 'the error');
    assert.equal(last()[0], seen[0][0], 'one function');
  });

  test('figures', async (t) => {
    const client = start(t, { auth: token });
    const [Spy, seen, last] = spy(() => useMetrics(20));
    show(client, h(Spy), h(spy(() => useRows('orders:42'))[0]));
    await until(() => last()?.connects === 1 && last().rows === client.metrics().rows && last().rows > 0, 'figures');
    assert.equal(seen[0].uptimeMs, 0, 'the first ones are those of the server');
    assert.ok(last().latencyMs.last >= 0 && last().received > 0 && last().sent > 0);
  });

  test('without a provider there is a clear error', () => {
    assert.throws(() => render(h(spy(() => useRows('orders:42'))[0])), /RealtimeProvider/);
    complaints();
  });

  test('hooks of a schema are the same hooks', () => {
    assert.equal(hooks.createHooks().useRows, useRows);
  });
});

describe('optimistic rows', () => {
  test('shown at once, confirmed without a flicker, rolled back when refused', async (t) => {
    const client = start(t, { auth: token });
    const [Spy, seen, last] = spy(() => useOptimisticRows('orders:42'));
    const [Plain, , plain] = spy(() => useRows('orders:42'));
    show(client, h(Plain), h(Spy));
    await until(() => last()?.state === 'live', 'live');
    const note = (view, id) => view.rows.find((row) => row.id === id)?.note;
    const from = seen.length;
    const done = last().mutate({ key: { id: 4 }, set: { note: 'mine' }, call: ({ note: text }) => ['note', { id: 4, note: text }] });
    await done;
    assert.ok(seen.slice(from).some((view) => note(view, 4) === 'mine' && view.pending === 1 && view.status === 'syncing'), 'at once');
    await until(() => last().pending === 0 && last().status === 'synced', 'confirmed');
    const notes = seen.slice(from).map((view) => note(view, 4));
    assert.ok(notes.every((text) => text === 'mine'), notes.join());
    assert.equal(note(plain(), 4), 'mine');
    assert.ok(last().channel.version({ id: 4 }), 'versions, though another component had asked without');

    await assert.rejects(last().mutate({ key: { id: 4 }, set: { note: 'no' }, call: () => ['refuse', {}] }), { code: 'P0001' });
    await until(() => note(last(), 4) === 'mine' && last().pending === 0, 'rolled back');
  });
});
