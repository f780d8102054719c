// Messages: published by clients, by changefeed.publish, and as events of rows.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { assertSame, Client, until } from './lib/client.mjs';
import { Session } from './lib/psql.mjs';

/** Gathers the messages of a connection, as text where bytes count. */
function listen(client) {
  const heard = [];
  client.onMessage = (message) => { if (message.type === 'message') heard.push(message); };
  return heard;
}

describe('messages', () => {
  let db;
  const clients = [];
  const connect = async (sub, options = {}) => {
    const client = await Client.connectSoon({ token: await db.token({ role: 'msg_web', ...(sub && { sub }) }), ...options });
    clients.push(client);
    return client;
  };

  before(async () => {
    db = new Session();
    await db.exec(`CREATE SCHEMA ms; CREATE ROLE msg_web; GRANT USAGE ON SCHEMA ms TO msg_web;
      SELECT changefeed.allow_role('msg_web');
      CREATE TABLE ms.members (room int, uid text, writes boolean, PRIMARY KEY (room, uid)); GRANT SELECT ON ms.members TO msg_web;
      CREATE TABLE ms.posts (id int PRIMARY KEY, room_id int, body text); GRANT SELECT ON ms.posts TO msg_web;
      CREATE FUNCTION ms.me() RETURNS text LANGUAGE sql STABLE RETURN current_setting('request.jwt.claims')::jsonb->>'sub';
      INSERT INTO ms.members VALUES (1, 'ada', true), (1, 'bob', true), (1, 'carl', false);
      SELECT changefeed.create_channel('ms_room:{room_id}', 'ms.posts',
        join_check => $$EXISTS (SELECT FROM ms.members m WHERE m.room = room_id AND m.uid = ms.me())$$,
        publish_check => $$EXISTS (SELECT FROM ms.members m WHERE m.room = room_id AND m.uid = ms.me() AND m.writes)$$);
      SELECT changefeed.create_channel('ms_lobby', publish_check => 'true');
      SELECT changefeed.create_channel('ms_quiet:{name}', publish_check => $$name <> 'x'$$);
      SELECT changefeed.create_channel('ms_closed:{name}', join_check => $$name = ms.me()$$, publish_check => 'true');
      SELECT changefeed.create_channel('ms_broken:{n}', publish_check => '1 / n::int = 1')`);
  });
  after(async () => {
    for (const client of clients) await client.cut();
    await db?.close();
  });

  describe('of clients', () => {
    let ada, bob, carl;

    test('reach all subscriptions of the instance, byte for byte', async () => {
      ada = await connect('ada');
      bob = await connect('bob');
      await ada.openSoon('ms_room:1');
      await bob.open('ms_room:1');
      await bob.open('ms_room:1?id=gt.100');
      const texts = [];
      bob.tamper = (text) => { if (text.includes('"message"')) texts.push(text); return [text]; };
      const heard = listen(bob);
      const own = listen(ada);
      await ada.request('publish', {}, { id: 'p1', text: '{"type":"publish","id":"p1","channel":"ms_room:1","event":"typing","payload": {"n":1.10,  "é":"\\u00e9\\n", "n":[ ]} }' });
      await until(() => heard.length === 2 && own.length === 1, 'three messages');
      assert.deepEqual(texts.map((text) => text.slice(text.indexOf(',"event"'))),
        Array(2).fill(',"event":"typing","payload":{"n":1.10,  "é":"\\u00e9\\n", "n":[ ]},"from":"ada"}'));
      assert.deepEqual(heard.map(({ channel }) => channel).sort(), ['ms_room:1', 'ms_room:1?id=gt.100']);
      await ada.request('publish', { channel: 'ms_room:1', event: 'typing', payload: '', echo: false });
      await until(() => heard.length === 4, 'two more');
      assert.equal(own.length, 1, 'echo is false');
      assert.equal(heard[3].payload, '');
      await ada.request('publish', { channel: 'ms_room:1', event: 'x' });
      await until(() => own.length === 2, 'echo');
      assert.equal(own[1].payload, null);
      bob.tamper = null;
      await bob.unsubscribe('ms_room:1?id=gt.100');
    });

    test('order of one sender is kept, and rights cost no query each', async () => {
      const heard = listen(bob);
      const seen = () => db.value(`SELECT coalesce(seq_scan, 0) + coalesce(idx_scan, 0) FROM pg_stat_user_tables WHERE relid = 'ms.members'::regclass`);
      await ada.request('publish', { channel: 'ms_room:1', event: 'warm' });
      await db.exec('SELECT pg_stat_clear_snapshot()');
      const before = Number(await seen());
      const all = [];
      for (let i = 0; i < 200; i += 1) all.push(ada.request('publish', { channel: 'ms_room:1', event: 'n', payload: i, echo: false }));
      await Promise.all(all);
      await until(() => heard.length >= 201, 'all messages');
      assert.deepEqual(heard.filter(({ event }) => event === 'n').map(({ payload }) => Number(payload.slice(1))), [...Array(200).keys()]);
      await new Promise((resolve) => setTimeout(resolve, 50));
      assert.ok(Number(await seen()) - before < 5, 'a few scans at most');
    });

    test('publish_check and join_check decide, and go on deciding', async () => {
      carl = await connect('carl');
      await carl.open('ms_room:1');
      const refused = { code: '42501', message: '42501: permission denied to publish to channel' };
      await assert.rejects(carl.request('publish', { channel: 'ms_room:1', event: 'x' }), refused);
      await db.exec("UPDATE ms.members SET writes = true WHERE uid = 'carl'");
      await carl.request('publish', { channel: 'ms_room:1', event: 'x' });
      await db.exec("UPDATE ms.members SET writes = false WHERE uid = 'carl'");
      const start = performance.now();
      await until(() => carl.request('publish', { channel: 'ms_room:1', event: 'x' }).then(() => false, (error) => error.code === '42501'), 'refused', 1000);
      assert.ok(performance.now() - start < 1000);
      // Nobody has to be subscribed, but may only write where it may read.
      await assert.rejects(ada.request('publish', { channel: 'ms_closed:bob', event: 'x' }), refused);
      await ada.request('publish', { channel: 'ms_closed:ada', event: 'x' });
      await db.exec('REVOKE SELECT ON ms.members FROM msg_web');
      await until(() => ada.request('publish', { channel: 'ms_room:1', event: 'x' }).then(() => false, (error) => error.code === '42501'), 'refused', 1000);
      await db.exec('GRANT SELECT ON ms.members TO msg_web');
      await ada.request('publish', { channel: 'ms_room:1', event: 'x' });
      for (const client of [ada, bob, carl]) {
        await until(() => client.open('ms_room:1').catch((error) => error.code === '42710'), 'subscribed again');
      }
    });

    test('channels without sources', async () => {
      const s = await ada.open('ms_lobby');
      assert.equal(s.entities.size, 0);
      assert.equal(s.rows().length, 0);
      const heard = listen(ada);
      const nobody = await connect(null);
      await nobody.request('publish', { channel: 'ms_lobby', event: 'hello', payload: [1] });
      await until(() => heard.length === 1, 'message');
      assert.equal(heard[0].from, null);
      await assert.rejects(ada.subscribe('ms_lobby?id=eq.1'), { code: '55000' });
      await assert.rejects(ada.subscribe('ms_closed:bob'), { code: '42501' });
      await ada.open('ms_closed:ada');
      await ada.sync();
      const from = s.position;
      const again = await connect('ada');
      assert.equal((await again.open('ms_lobby', { from, cache: s })).recovered, true);
      await nobody.cut();
    });

    test('"*" names the instance', async () => {
      const star = await connect('eve');
      await star.open('ms_quiet:*');
      const heard = listen(star);
      await ada.request('publish', { channel: 'ms_quiet:a%20b', event: 'x', payload: 1 });
      await until(() => heard.length === 1, 'message');
      assert.equal(heard[0].channel, 'ms_quiet:*');
      assert.equal(heard[0].instance, 'ms_quiet:a%20b');
      await assert.rejects(ada.request('publish', { channel: 'ms_quiet:x', event: 'x' }), { code: '42501' });
    });

    test('wrong messages cost an error', async () => {
      await db.exec("SELECT changefeed.create_channel('ms_readonly')");
      const refused = (fields, code, text) => assert.rejects(ada.request('publish', fields), (error) => {
        assert.equal(error.code, code, JSON.stringify(error.reply));
        assert.match(error.reply.message, text);
        return true;
      });
      await refused({ channel: 'ms_readonly', event: 'x' }, '42501', /may not publish/);
      await refused({ channel: 'nope', event: 'x' }, '42704', /does not exist/);
      await refused({ channel: 'ms_room:*', event: 'x' }, '22023', /one channel/);
      await refused({ channel: 'ms_lobby?a=eq.1', event: 'x' }, '22023', /conditions/);
      await refused({ channel: 'ms_lobby' }, '08P01', /"event"/);
      await refused({ channel: 'ms_lobby', event: '' }, '22023', /empty/);
      await refused({ channel: 'ms_lobby', event: 'a\nb' }, '22023', /control/);
      await refused({ channel: 'ms_lobby', event: 'é'.repeat(65) }, '22023', /128/);
      await refused({ channel: 'ms_lobby', event: 'x', echo: 1 }, '08P01', /"echo"/);
      await refused({ event: 'x' }, '08P01', /"channel"/);
      await refused({ channel: 'ms_broken:0', event: 'x' }, '22012', /division/);
      await refused({ channel: 'ms_broken:x', event: 'x' }, '22P02', /integer/);
      await refused({ channel: 'ms_lobby', event: 'x', payload: 'x'.repeat(9000) }, '54000', /8 kB/);
      await ada.request('publish', { channel: 'ms_lobby', event: 'x', payload: 'x'.repeat(8190) });
      await ada.settle();
      ada.check();
    });

    test('who does not read loses messages, not the connection', async () => {
      const slow = await connect('slow', { receive: {} });
      await slow.open('ms_lobby');
      slow.socket._socket.pause();
      const payload = 'x'.repeat(8000);
      for (let i = 0; i < 20; i += 1) {
        await Promise.all(Array.from({ length: 100 }, () => ada.request('publish', { channel: 'ms_lobby', event: 'x', payload, echo: false })));
      }
      let n = 0;
      slow.onMessage = (message) => { if (message.type === 'message') n += 1; };
      slow.socket._socket.resume();
      await slow.sync();
      assert.ok(n > 0 && n < 2000, `${n} of 2000`);
      slow.check();
    });
  });
});
