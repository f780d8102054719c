// Who is in a channel: members, their connections and states, limits, keys.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';

import { Client, until } from './lib/client.mjs';
import { canonical, isNumber, number } from './lib/json.mjs';
import { memoryOf } from './lib/log.mjs';
import { quote, reload, Session } from './lib/psql.mjs';

const INTERVAL = 50;

/** Numbers as they are. */
const plain = (value) => (isNumber(value) ? number(value)
  : Array.isArray(value) ? value.map(plain)
    : value !== null && typeof value === 'object' ? Object.fromEntries(Object.entries(value).map(([name, v]) => [name, plain(v)]))
      : value);

describe('presence', () => {
  let db;
  const clients = [];
  const connect = async (sub, claims = {}) => {
    const client = await Client.connectSoon({ token: await db.token({ role: 'pr_web', ...(sub && { sub }), ...claims }) });
    clients.push(client);
    return client;
  };
  const channel = (name, presence, rest = '') => db.exec(`SELECT changefeed.create_channel(${quote(name)}, ${rest} presence => ${quote(JSON.stringify({ interval: `${INTERVAL} ms`, ...presence }))})`);

  /** A client who watches, and one message after the other. */
  const watch = async (name, sub = null) => {
    const client = await connect(sub);
    const heard = [];
    client.onMessage = (message) => { if (message.type === 'presence' && message.id === undefined) heard.push(plain(message)); };
    const s = await client.openSoon(name);
    await until(() => s.members, 'a list');
    return { client, s, heard, members: () => plain(Object.fromEntries(s.members)) };
  };
  const enter = async (name, sub, fields = {}) => {
    const client = await connect(sub);
    await client.openSoon(name);
    await client.request('track', { channel: name, ...fields });
    return client;
  };
  const rows = async (name) => JSON.parse(await db.value(`SELECT coalesce(json_agg(p), '[]') FROM changefeed.presence(${quote(name)}) p`));
  const refused = (promise, code, text, more = {}) => assert.rejects(promise, (error) => {
    assert.equal(error.code, code, error.message);
    assert.match(error.reply.message, text);
    for (const [name, value] of Object.entries(more)) assert.deepEqual(error.reply[name], value);
    return true;
  });

  before(async () => {
    db = new Session();
    await db.exec(`CREATE SCHEMA pr; CREATE ROLE pr_web; GRANT USAGE ON SCHEMA pr TO pr_web;
      SELECT changefeed.allow_role('pr_web'); DO $$ BEGIN CREATE ROLE anonymous; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
      SELECT changefeed.allow_role('anonymous');
      CREATE TABLE pr.posts (id int PRIMARY KEY, room_id int, body text); GRANT SELECT ON pr.posts TO pr_web;
      CREATE TABLE pr.guests (uid text PRIMARY KEY); GRANT SELECT ON pr.guests TO pr_web;
      INSERT INTO pr.guests VALUES ('ada'), ('bob')`);
    await channel('pr_room:{room_id}', { grace: '1 s' }, "source => 'pr.posts',");
    await channel('pr_club', { grace: '1 min' }, "join_check => $$EXISTS (SELECT FROM pr.guests g WHERE g.uid = current_setting('request.jwt.claims')::jsonb->>'sub')$$,");
    await channel('pr_now:{n}', { grace: '0', max_state: 100 });
    await channel('pr_doc:{n}', { grace: '700 ms', limits: { editor: 2, reader: 0 }, max_members: 5 });
    await channel('pr_hall', { count_only: true, max_members: 100000, limits: { boss: 1 }, grace: '300 ms' });
    await channel('pr_big', { max_state: 30000, grace: '0' });
    await db.exec("SELECT changefeed.create_channel('pr_none')");
  });
  after(async () => {
    for (const client of clients) {
      await client.cut();
      client.check();
    }
    await db?.close();
  });

  test('a user with several connections is one member; changes come together', async () => {
    const name = 'pr_room:1';
    const eve = await watch(name);
    assert.deepEqual(eve.heard, [{ type: 'presence', channel: name, full: true, joined: {}, left: {} }]);
    const one = await enter(name, 'ada', { state: { cursor: [3, 9] } });
    await until(() => eve.heard.length === 2, 'ada');
    assert.deepEqual(eve.heard[1], { type: 'presence', channel: name, joined: { ada: [{ cursor: [3, 9] }] }, left: {} });
    const two = await enter(name, 'ada', { state: { n: 2 } });
    await until(() => eve.members().ada?.states.length === 2, 'both');

    // What happens within an interval is one diff; who comes and goes is not in it.
    const before = eve.heard.length;
    const bob = await connect('bob');
    await bob.open(name);
    const all = [];
    for (let i = 0; i < 20; i += 1) all.push(one.request('track', { channel: name, state: { i } }));
    all.push(bob.request('track', { channel: name }), bob.request('untrack', { channel: name }), bob.request('untrack', { channel: name }));
    await Promise.all(all);
    await until(() => eve.members().ada.states[0].i === 19, 'the last state');
    await pause(2 * INTERVAL);
    assert.ok(eve.heard.length - before <= 2, `${eve.heard.length - before} messages`);
    assert.ok(!eve.heard.some(({ joined }) => 'bob' in joined));
    const [row] = await rows(name);
    assert.deepEqual({ ...row, since: undefined }, { member: 'ada', kinds: [], states: [{ i: 19 }, { n: 2 }], holds: [], connections: 2, since: undefined });

    // Unsubscribing is leaving: without grace.
    await two.unsubscribe(name);
    await until(() => eve.members().ada.states.length === 1, 'one less', 900);
    await one.request('untrack', { channel: name });
    await until(() => eve.s.members.size === 0, 'nobody', 900);
    assert.deepEqual(eve.heard.at(-1).left, { ada: [{ i: 19 }] });
    assert.deepEqual(await rows(name), []);
  });

  test('what is said right behind "subscribe" waits for it', async () => {
    const ada = await connect('ada');
    const opened = ada.subscribe('pr_now:1');
    await Promise.all([opened, ada.request('track', { channel: 'pr_now:1', state: { x: 1 } })]);
    assert.equal((await rows('pr_now:1')).length, 1);
    const carl = await connect('carl');
    const results = await Promise.allSettled([carl.subscribe('pr_club'), carl.request('track', { channel: 'pr_club' })]);
    assert.equal(results[0].reason.code, '42501');
    assert.match(results[1].reason.code, /^(57014|42704)$/, 'the subscription has ended meanwhile, or before');
    await ada.request('track', { channel: 'pr_now:1', state: 'x'.repeat(98) });
    await refused(ada.request('track', { channel: 'pr_now:1', state: 'x'.repeat(99) }), '54000', /100 bytes/);
    await refused(ada.request('track', { channel: 'pr_room:1' }), '42704', /not subscribed/);
    await refused(ada.request('track', { channel: 'pr_now:1', kind: 1 }), '22023', /"kind"/);
    await refused(ada.request('track', { channel: 'pr_now:1', expires_in: 0 }), '22023', /"expires_in"/);
    await refused(ada.request('track', { channel: 'pr_now:1', exclusive: ['a', 1] }), '22023', /"exclusive"/);
    await refused(ada.request('track', { channel: 'pr_now:1', exclusive: [['a']] }), '22023', /"exclusive"/);
    await refused(ada.request('presence', { channel: 'pr_now:1', after: 'x' }), '22023', /"after"/);
    await refused(ada.request('presence', { channel: 'pr_now:1', limit: 0 }), '22023', /"limit"/);
    assert.deepEqual((await rows('pr_now:1'))[0].states, ['x'.repeat(98)]);
    await ada.open('pr_none');
    await refused(ada.request('track', { channel: 'pr_none' }), '55000', /no presence/);
    await ada.open('pr_now:*');
    await refused(ada.request('track', { channel: 'pr_now:*' }), '22023', /one channel/);
    await assert.rejects(rows('pr_none'), /no presence/);
    await assert.rejects(rows('pr_nowhere'), /does not exist/);
    await ada.cut();
    await until(async () => (await rows('pr_now:1')).length === 0, 'gone', 1000);
  });

  test('grace hides a reconnect, also over a kill of the gateway', async () => {
    const name = 'pr_room:2';
    let eve = await watch(name);
    const ada = await enter(name, 'ada', { state: { a: 1 } });
    await until(() => eve.s.members.size === 1, 'ada');
    const before = eve.heard.length;
    await ada.cut();
    await enter(name, 'ada', { state: { a: 1 } });
    await pause(1200);
    assert.equal(eve.heard.length, before, 'nobody is told');
    assert.equal((await rows(name))[0].connections, 1);

    await enter(name, 'bob', { state: { b: 1 } });
    await until(() => eve.s.members.size === 2, 'bob');
    process.kill(Number(await db.value('SELECT gateway_pid FROM changefeed.stat_feed')), 'SIGKILL');
    await eve.client.ended;
    const again = () => until(() => Client.connect({ token: eve.client.token }).catch(() => null), 'a gateway');
    const first = await again();
    await first.cut();
    const [{ member }] = await Promise.all([rows(name).then((r) => r[1]), enter(name, 'ada', { state: { a: 1 } })]);
    assert.equal(member, 'bob');
    eve = await watch(name);
    assert.ok(eve.s.members.has('ada'));
    await until(() => !eve.s.members.has('bob'), 'bob does not come back', 3000);
    assert.deepEqual(eve.members(), { ada: { states: [{ a: 1 }] } });
  });

  test('limits: of members, and of each kind', async () => {
    const name = 'pr_doc:1';
    const eve = await watch(name);
    const a = await enter(name, 'a', { kind: 'editor', state: 1 });
    await enter(name, 'a', { kind: 'editor', state: 2 }); // the same user
    await enter(name, 'b', { kind: 'editor' });
    const c = await enter(name, 'c', { kind: 'viewer' });
    await refused(c.request('track', { channel: name, kind: 'editor' }), '53400', /2 members of kind "editor"/);
    await refused(c.request('track', { channel: name, kind: 'reader' }), '53400', /0 members of kind "reader"/);
    await until(() => eve.s.members.size === 3, 'three');
    assert.deepEqual(eve.members(), { a: { states: [1, 2], kinds: ['editor'] }, b: { states: [{}], kinds: ['editor'] }, c: { states: [{}], kinds: ['viewer'] } });
    await a.request('track', { channel: name, kind: 'viewer', state: 1 });
    await until(() => eve.members().a.kinds.length === 2, 'both kinds');
    await refused(c.request('track', { channel: name, kind: 'editor' }), '53400', /editor/);
    await enter(name, 'd');
    await enter(name, 'e');
    await refused(enter(name, 'f'), '53400', /5 members/);
    assert.equal((await rows(name)).length, 5);
  });

  test('a state that expires gives way to the one below, and alone ends the membership', async () => {
    const name = 'pr_room:3';
    const eve = await watch(name);
    const ada = await enter(name, 'ada', { state: { name: 'Ada' }, exclusive: ['desk'] });
    const states = () => canonical(eve.members().ada ?? null);
    await until(() => eve.s.members.has('ada'), 'ada');
    await ada.request('track', { channel: name, state: { name: 'Ada', typing: true }, expires_in: 0.3 });
    await until(() => eve.members().ada.states[0].typing, 'typing');
    assert.deepEqual(eve.members().ada.holds, ['desk']);
    await until(() => !eve.members().ada.states[0].typing, 'not any more', 1000);
    assert.equal(states(), canonical({ states: [{ name: 'Ada' }], holds: ['desk'] }));

    // Said for good, it is over at once.
    await ada.request('track', { channel: name, state: { typing: true }, expires_in: 60 });
    await until(() => eve.members().ada.states[0].typing, 'typing');
    await ada.request('track', { channel: name, state: { name: 'Ada' } });
    await until(() => states() === canonical({ states: [{ name: 'Ada' }] }), 'as before, without the key', 1000);
    const bob = await enter(name, 'bob', { state: 1, expires_in: 0.2, exclusive: ['pen'] });
    await until(() => eve.members().bob?.holds?.[0] === 'pen', 'bob');
    await until(() => !eve.s.members.has('bob'), 'bob is gone', 1000);
    await bob.request('track', { channel: name, state: 1, expires_in: 0.2 });
    await until(() => eve.s.members.has('bob'), 'bob again');
    await until(() => !eve.s.members.has('bob'), 'and gone', 1000);
  });

  describe('exclusive keys', () => {
    test('have one holder, who is named', async () => {
      const name = 'pr_doc:2';
      const eve = await watch(name);
      const a = await enter(name, 'a', { exclusive: ['section:3', 'section:4'], state: 1 });
      const b = await enter(name, 'b', { exclusive: ['section:5'] });
      await refused(b.request('track', { channel: name, exclusive: ['section:6', 'section:3'] }), '55P03', /key "section:3" is held by "a"/, { key: 'section:3', holder: 'a' });
      assert.deepEqual((await rows(name)).map(({ member, holds }) => [member, holds]), [['a', ['section:3', 'section:4']], ['b', ['section:5']]], 'nothing has changed');
      const other = await enter('pr_doc:3', 'b', { exclusive: ['section:3'] }); // another instance
      await enter(name, 'a', { exclusive: ['section:3'] }); // the same user
      await a.request('track', { channel: name, exclusive: ['section:4'], state: 1 });
      await refused(b.request('track', { channel: name, exclusive: ['section:3'] }), '55P03', /"a"/);
      await other.request('untrack', { channel: 'pr_doc:3' });
      await until(() => eve.members().a?.states.length === 2 && eve.members().b, 'a and b');
      assert.deepEqual(eve.members().a.holds, ['section:4', 'section:3']);
    });

    test('are kept by a reconnect, and free behind the grace period', async () => {
      const name = 'pr_doc:4';
      const a = await enter(name, 'a', { exclusive: ['k'], state: 1 });
      const b = await connect('b');
      await b.open(name);
      const take = () => b.request('track', { channel: name, exclusive: ['k'] });
      const cut = Date.now();
      await a.cut();
      await refused(take(), '55P03', /"a"/);
      const again = await enter(name, 'a', { exclusive: ['k'], state: 1 });
      await pause(Math.max(0, cut + 800 - Date.now()));
      await refused(take(), '55P03', /"a"/);
      await again.cut();
      const start = Date.now();
      await until(() => take().then(() => true, () => false), 'the key');
      assert.ok(Date.now() - start > 500, `free after ${Date.now() - start} ms`);
      await b.unsubscribe(name);
      await enter(name, 'c', { exclusive: ['k'] });
    });

    for (const n of [2, 20]) {
      test(`${n} clients: one holder at every moment`, async () => {
        const name = `pr_room:5${n}`;
        const eve = await watch(name);
        const racers = [];
        for (let i = 0; i < n; i += 1) {
          const client = await connect(`u${i}`);
          await client.open(name);
          racers.push(client);
        }
        let holders = 0;
        let taken = 0;
        const winners = new Set();
        await Promise.all(racers.map(async (client, i) => {
          while (taken < 100 + n) {
            try {
              await client.request('track', { channel: name, exclusive: ['k'], state: i });
            } catch (error) {
              assert.equal(error.code, '55P03');
              await pause(Math.random() * 3);
              continue;
            }
            holders += 1;
            taken += 1;
            winners.add(i);
            assert.equal(holders, 1);
            await pause(Math.random() * 3);
            assert.equal(holders, 1);
            holders -= 1;
            await client.request(i % 2 ? 'untrack' : 'track', { channel: name });
          }
        }));
        assert.ok(winners.size > n / 2, `${winners.size} of ${n} have had it`);
        for (const client of racers) client.check();
        await until(() => [...eve.s.members.values()].every(({ holds }) => !holds), 'released');
      });
    }
  });

  test('a large room is counted', async () => {
    const name = 'pr_hall';
    const n = 2000;
    const eve = await connect('eve');
    const s = await eve.openSoon(name);
    await until(() => s.count === 0, 'a count');
    const crowd = [];
    const start = Date.now();
    for (let i = 0; i < n; i += 100) {
      crowd.push(...await Promise.all(Array.from({ length: 100 }, async () => {
        const client = await Client.connect();
        await client.open(name);
        return client;
      })));
    }
    const connected = Date.now();
    await Promise.all(crowd.map((client, i) => client.request('track', { channel: name, kind: i % 10 ? 'viewer' : 'editor' })));
    const ms = Date.now() - connected;
    await until(() => s.count === n, 'all');
    assert.deepEqual(s.kinds, { editor: n / 10, viewer: n - n / 10 });
    console.log(`      ${n} connections in ${connected - start} ms, joined in ${ms} ms, ${s.presences} messages`);
    assert.ok(s.presences < 10 + 2 * (Date.now() - start) / INTERVAL);

    // The list, page by page: each member once.
    const members = new Set();
    let after;
    let pages = 0;
    do {
      const page = plain(await eve.request('presence', { channel: name, limit: 300, ...(after && { after }) }));
      for (const user of Object.keys(page.members)) {
        assert.ok(!members.has(user));
        members.add(user);
      }
      assert.equal(page.count, n);
      assert.equal(Object.keys(page.meta).length, Object.keys(page.members).length);
      after = page.next;
      pages += 1;
    } while (after);
    assert.equal(members.size, n);
    assert.ok(pages >= 7);
    assert.equal(await db.value(`SELECT count(*) FROM changefeed.presence('${name}')`), String(n));
    const boss = await enter(name, 'boss', { kind: 'boss' });
    await refused(eve.request('track', { channel: name, kind: 'boss' }), '53400', /boss/);
    await boss.cut();
    await Promise.all(crowd.map((client) => client.cut()));
    for (const client of crowd) client.check();
    await until(() => s.count === 0, 'nobody');
  });

  test('a resync loses nothing, and says nothing twice', async () => {
    const name = 'pr_room:6';
    const eve = await watch(name);
    const ada = await enter(name, 'ada', { state: 1, exclusive: ['k'] });
    await until(() => eve.s.members.has('ada'), 'ada');
    const sub = ada.subscriptions.get(name);
    for (let i = 0; i < 5; i += 1) {
      await db.exec('TRUNCATE pr.posts');
      await ada.request('track', { channel: name, state: i, exclusive: ['k'] });
      await until(() => sub.resyncs.length > i && eve.s.resyncs.length > i, 'resync');
      await ada.settle();
      await eve.client.settle();
    }
    await until(() => canonical(eve.members()) === canonical({ ada: { states: [4], holds: ['k'] } }), () => canonical(eve.members()));
    assert.ok(!eve.heard.some(({ left }) => 'ada' in left));
    assert.equal((await rows(name)).length, 1);

    // The channel has another definition.
    await db.exec("CREATE TABLE pr.more (id int PRIMARY KEY, room_id int); GRANT SELECT ON pr.more TO pr_web; SELECT changefeed.add_source('pr_room:{room_id}', 'pr.more')");
    await until(() => sub.resyncs.includes('channel_changed'), 'another definition');
    await ada.settle();
    assert.deepEqual((await rows(name))[0].holds, ['k']);
    await ada.request('track', { channel: name, state: 'end' });
    await until(() => eve.members().ada?.states[0] === 'end', 'the end');
  });

  test('a channel that is made anew keeps its members', async () => {
    await channel('pr_anew', { count_only: false });
    const eve = await watch('pr_anew');
    const ada = await enter('pr_anew', 'ada', { state: 1, kind: 'editor' });
    const bob = await enter('pr_anew', 'bob');
    await until(() => eve.s.members.size === 2, 'two');
    const anew = (presence) => db.exec(`BEGIN; SELECT changefeed.drop_channel('pr_anew'); SELECT changefeed.create_channel('pr_anew'${presence}); COMMIT`);
    await bob.cut();
    await anew(`, presence => '{"count_only": true, "interval": "50 ms", "grace": "0"}'`);
    await until(() => eve.s.count === 2, 'a count');
    await ada.request('track', { channel: 'pr_anew', state: 2, kind: 'viewer' });
    await until(() => eve.s.kinds.viewer === 1, 'counted');
    await anew(`, presence => '{"interval": "50 ms"}'`);
    await until(() => canonical(eve.members().ada ?? null) === canonical({ states: [2], kinds: ['viewer'] }), 'the members again');
    await anew('');
    await until(() => ada.subscriptions.get('pr_anew').resyncs.length === 3, 'a channel without');
    await refused(ada.request('track', { channel: 'pr_anew' }), '55000', /no presence/);
    ada.check();
    eve.client.check();
  });

  test('who reads slowly gets the list again', async (t) => {
    const name = 'pr_big';
    // Who does not read does not answer.
    await reload(db, { 'changefeed.heartbeat': '300s' });
    t.after(() => reload(db, { 'changefeed.heartbeat': null }));
    const slow = await watch(name);
    const eve = await watch(name);
    const writers = [];
    for (let i = 0; i < 10; i += 1) writers.push(await enter(name, `w${i}`, { state: '' }));
    await until(() => slow.s.members.size === 10, 'ten');
    slow.client.socket._socket.pause();
    for (let round = 0; round < 60; round += 1) {
      await Promise.all(writers.map((client) => client.request('track', { channel: name, state: `${round} ${'x'.repeat(28000)}` })));
      if (round % 5 === 0) await until(() => eve.members().w9?.states[0].startsWith(`${round} `), 'a diff');
    }
    await writers[3].cut();
    await until(() => eve.s.members.size === 9, 'one less');
    slow.client.socket._socket.resume();
    await until(() => slow.s.members.size === 9 && [...slow.s.members.values()].every(({ states }) => states[0].startsWith('59 ')), 'the end');
    assert.ok(slow.s.listsAgain > 0);
    assert.equal(canonical(slow.members()), canonical(eve.members()));
    slow.client.check();
  });

  test('a list is complete when it ends, though its members change meanwhile', async () => {
    const name = 'pr_large';
    await channel(name, { max_state: 30000, grace: '0', interval: '10 ms' });
    const writers = [];
    for (let i = 0; i < 12; i += 1) writers.push(await enter(name, `w${i}`, { state: 'x'.repeat(28000) }));
    const eve = await watch(name);
    await until(() => eve.s.members.size === 12, 'all are told');
    await eve.client.cut();
    let over = false;
    const changes = (async () => {
      for (let n = 0; !over; n += 1) await writers[n % 12].request('track', { channel: name, state: `${n} ${'x'.repeat(28000)}` });
    })();
    // More than is sent to somebody who has not read it: their lists come in parts.
    try {
      for (let n = 0; n < 40; n += 1) {
        const { client, s } = await watch(name);
        await until(() => s.listed !== undefined, 'a list');
        assert.equal(s.listed, 12);
        client.check();
        await client.cut();
      }
    } finally {
      over = true;
      await changes;
      for (const client of writers) await client.cut();
    }
  });

  test('an event stream sees who is there, a poll does not', async () => {
    const name = 'pr_room:8';
    const ada = await enter(name, 'ada', { state: 1 });
    const headers = { authorization: `Bearer ${ada.token}` };
    const abort = new AbortController();
    const stream = await fetch(`${process.env.HTTP_URL}/v1/events?channel=${name}`, { headers, signal: abort.signal });
    let text = '';
    const reading = (async () => { for await (const chunk of stream.body) text += Buffer.from(chunk).toString(); })().catch(() => {});
    await until(() => text.includes('"joined":{"ada":[1]}'), () => text);
    await ada.request('untrack', { channel: name });
    await until(() => text.includes('"left":{"ada":[1]}'), () => text);
    abort.abort();
    await reading;
    await ada.request('track', { channel: name });
    await until(async () => (await rows(name)).length === 1, 'ada');
    const poll = await (await fetch(`${process.env.HTTP_URL}/v1/poll?channel=${name}`, { headers })).text();
    assert.match(poll, /"ready"/);
    assert.doesNotMatch(poll, /presence/);
  });

  test('what was tracked is given back', async () => {
    const name = 'pr_now:leak';
    const eve = await watch(name);
    const connections = async () => Number(await db.value('SELECT count(*) FROM changefeed.stat_connections'));
    const others = await connections();
    const used = async () => {
      await until(async () => eve.s.members.size === 0 && (await rows(name)).length === 0 && await connections() <= others, 'nobody');
      return memoryOf(db, 'changefeed presence');
    };
    const many = async (offset) => {
      for (let i = offset; i < offset + 8; i += 1) {
        const client = await enter(name, `u${i}`, { kind: `kind ${i}`, state: 'x'.repeat(90), exclusive: [`key ${i}`, 'x'.repeat(200 + i)] });
        const all = [];
        for (let n = 0; n < 100; n += 1) {
          const other = `pr_now:${String(i * 1000 + n).padStart(200, 'x')}`;
          all.push(client.subscribe(other), client.request('track', { channel: other, state: n, ...(n % 2 && { expires_in: 5 }), exclusive: [`${n}`] }));
          all.push(client.request('track', { channel: name, kind: `kind ${i + n % 3}`, state: n, exclusive: n % 2 ? [`key ${i}`, 'a'] : [] }).catch(({ code }) => assert.equal(code, '55P03')));
          if (all.length > 60) await Promise.all(all.splice(0));
        }
        await Promise.all(all);
        if (i % 2) await client.unsubscribe(name);
        await client.cut();
      }
    };
    await many(0);
    const before = await used();
    await many(8);
    let grown;
    await until(async () => { grown = await used() - before; return grown < 4000; }, () => `given back (${grown} bytes)`);
  });

  test('who may not be there any more leaves at once', async () => {
    const name = 'pr_club';
    const eve = await watch(name, 'ada');
    const bob = await enter(name, 'bob', { state: 1 });
    await until(() => eve.s.members.has('bob'), 'bob');
    await db.exec("DELETE FROM pr.guests WHERE uid = 'bob'");
    await until(() => !eve.s.members.has('bob'), 'bob has no right', 3000);
    assert.equal(bob.subscriptions.get(name), undefined);
    await refused(bob.request('track', { channel: name }), '42704', /not subscribed/);
    await db.exec("INSERT INTO pr.guests VALUES ('bob')");

    await bob.openSoon(name);
    await bob.request('track', { channel: name });
    await until(() => eve.s.members.has('bob'), 'bob');
    await db.exec(`SELECT changefeed.revoke(session => ${quote(bob.connected.session)})`);
    await until(() => !eve.s.members.has('bob'), 'bob was revoked', 3000);

    // Also who is away.
    const away = await enter(name, 'bob', { team: 'x' });
    await until(() => eve.s.members.has('bob'), 'bob');
    const connections = async () => Number(await db.value('SELECT count(*) FROM changefeed.stat_connections'));
    const before = await connections();
    await away.cut();
    await until(async () => await connections() < before, 'the lost connection is noticed');
    assert.ok(eve.s.members.has('bob'), 'a minute of grace');
    await db.exec("SELECT changefeed.revoke(claim => 'sub', value => 'bob')");
    await until(() => !eve.s.members.has('bob'), 'bob was revoked', 3000);

    // Another user on the same connection is another member; another token of the same one is not.
    const ada = await enter('pr_room:7', 'ada', { state: 1 });
    const carl = await watch('pr_room:7');
    await until(() => carl.s.members.has('ada'), 'ada');
    await ada.request('token', { token: await db.token({ role: 'pr_web', sub: 'ada', team: 'x' }) });
    await ada.settle();
    assert.equal((await rows('pr_room:7')).length, 1);
    await ada.request('token', { token: await db.token({ role: 'pr_web', sub: 'dora' }) });
    await until(() => !carl.s.members.has('ada'), 'ada is gone', 900);
    await ada.request('track', { channel: 'pr_room:7' });
    await until(() => carl.s.members.has('dora'), 'dora');

    // Where the role may not read the table any more, nobody stays.
    await db.exec('REVOKE SELECT ON pr.posts FROM pr_web');
    await until(async () => (await rows('pr_room:7')).length === 0, 'nobody', 3000);
    await db.exec('GRANT SELECT ON pr.posts TO pr_web');
  });
});
