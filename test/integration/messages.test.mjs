// Messages: published by clients, by changefeed.publish, and as events of rows.

import assert from 'node:assert/strict';
import { chmodSync, readFileSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';

import { assertSame, Client, until } from './lib/client.mjs';
import { canonical, isNumber } from './lib/json.mjs';
import { LOG, logged } from './lib/log.mjs';
import { reload, Session } from './lib/psql.mjs';

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
      CREATE FUNCTION ms.watched() RETURNS bool LANGUAGE plpgsql STABLE AS $$ BEGIN RAISE LOG 'ms_watched checks %', ms.me(); RETURN true; END $$;
      SELECT changefeed.declare_dependency('ms.watched()');
      SELECT changefeed.create_channel('ms_watched:{n}', publish_check => 'ms.watched()');
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
      const log = logged();
      await bob.open('ms_watched:1');
      await ada.open('ms_watched:1');
      // More may not wait for the check; the others come when it is known.
      for (const first of [0, 100]) {
        await Promise.all(Array.from({ length: 100 }, (_, i) => ada.request('publish', { channel: 'ms_watched:1', event: 'n', payload: first + i, echo: false })));
      }
      await until(() => heard.length >= 200, 'all messages');
      assert.deepEqual(heard.filter(({ event }) => event === 'n').map(({ payload }) => Number(payload.slice(1))), [...Array(200).keys()]);
      assert.equal(log.text().match(/LOG: {2}ms_watched checks ada/g).length, 1, 'one check for all');
      await Promise.all([ada, bob].map((client) => client.unsubscribe('ms_watched:1')));
    });

    test('publish_check and join_check decide, and go on deciding', async () => {
      carl = await connect('carl');
      await carl.open('ms_room:1');
      const refused = { code: '42501', message: '42501: permission denied to publish to channel' };
      await assert.rejects(carl.request('publish', { channel: 'ms_room:1', event: 'x' }), refused);
      await db.exec("UPDATE ms.members SET writes = true WHERE uid = 'carl'");
      await carl.request('publish', { channel: 'ms_room:1', event: 'x' });
      await db.exec("UPDATE ms.members SET writes = false WHERE uid = 'carl'");
      await until(() => carl.request('publish', { channel: 'ms_room:1', event: 'x' }).then(() => false, (error) => error.code === '42501'), 'refused', 1000);
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

    test('a message that comes while a check runs is not judged by what the check has read before', async () => {
      await db.exec(`CREATE TABLE ms.gate (); GRANT SELECT ON ms.gate TO msg_web; INSERT INTO ms.members VALUES (2, 'gil', true);
        CREATE FUNCTION ms.slow() RETURNS boolean LANGUAGE plpgsql STABLE AS $$ DECLARE writes boolean = (SELECT m.writes FROM ms.members m WHERE m.room = 2 AND m.uid = ms.me()); BEGIN
          WHILE NOT pg_try_advisory_xact_lock_shared(4718) LOOP PERFORM pg_sleep(0.005); END LOOP; RETURN writes; END $$;
        SELECT changefeed.declare_dependency('ms.slow()', 'ms.members');
        SELECT changefeed.create_channel('ms_slow', publish_check => 'ms.slow()')`);
      await reload(db, { 'changefeed.policy_timeout': '60s' });
      const gil = await connect('gil');
      const heard = listen(ada);
      await ada.open('ms_slow');
      await db.exec('SELECT pg_advisory_lock(4718)');
      const first = gil.request('publish', { channel: 'ms_slow', event: 'first' });
      await until(() => db.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND backend_type LIKE 'changefeed query%'").then((n) => n === '1'), 'the check runs');
      await db.exec("UPDATE ms.members SET writes = false WHERE uid = 'gil'");
      // By then the feed has taken in that transaction.
      await ada.sync();
      const second = gil.request('publish', { channel: 'ms_slow', event: 'second' }).then(() => 'sent', (error) => error.code);
      await gil.sync();
      await db.exec('SELECT pg_advisory_unlock(4718)');
      await first;
      assert.equal(await second, '42501');
      await ada.sync();
      assert.deepEqual(heard.map(({ event }) => event), ['first']);
      await reload(db, { 'changefeed.policy_timeout': null });
      await ada.unsubscribe('ms_slow');
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

    test('a channel without sources is lost with the right to it, within 1 s', async () => {
      await db.exec(`SELECT changefeed.create_channel('ms_club:{club}', publish_check => 'true',
        join_check => $$EXISTS (SELECT FROM ms.members m WHERE m.room = room::int AND m.uid = ms.me())$$); INSERT INTO ms.members VALUES (9, 'guest'), (9, 'bob')`);
      const guest = await connect('guest');
      const s = await until(() => guest.openSoon('ms_club:9').catch(() => null), 'admitted');
      const heard = listen(guest);
      await db.exec(`BEGIN; DELETE FROM ms.members WHERE uid = 'guest'; SELECT changefeed.publish('ms_club:9', 'secret'); COMMIT`);
      await until(() => s.state === 'ended', 'revoked', 1000);
      assert.equal(s.revoked.reason, 'permission_denied');
      await bob.request('publish', { channel: 'ms_club:9', event: 'secret' });
      await guest.sync();
      assert.deepEqual(heard, []);
      await assert.rejects(guest.request('publish', { channel: 'ms_club:9', event: 'x' }), { code: '42501' });
      guest.check();
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

    test('over HTTP', async () => {
      const url = process.env.WS_URL.replace(/^ws/, 'http').replace('/v1/socket', '/v1/publish');
      const post = async (token, body) => {
        const response = await fetch(url, { method: 'POST', headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' }, body: JSON.stringify(body) });
        return { status: response.status, ...await response.json() };
      };
      const heard = listen(ada);
      assert.equal((await post(bob.token, { channel: 'ms_lobby', event: 'post', payload: { a: 1 } })).status, 200);
      await until(() => heard.length === 1, 'message');
      assert.equal(heard[0].from, 'bob');
      const refused = await post(bob.token, { channel: 'ms_readonly', event: 'x' });
      assert.equal(refused.code, '42501');
      assert.equal(refused.status, 403);
    });

    test('who does not read loses messages, not the connection', async (t) => {
      // So much that it would be a flood.
      await reload(db, { 'changefeed.max_message_rate': '0', 'changefeed.max_receive_rate': '0' });
      t.after(() => reload(db, { 'changefeed.max_message_rate': null, 'changefeed.max_receive_rate': null }));
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

  describe('in WAL', () => {
    let eve, heard, s;
    const room = 'ms_room:1';
    const log = (client) => {
      const seen = [];
      client.onMessage = (m) => {
        if (m.type === 'transaction') seen.push({ position: m.position, text: `rows ${m.changes.map(({ op, key }) => `${op} ${key.id.slice(1)}`)}` });
        if (m.type === 'message') seen.push({ position: m.position, text: `${m.event} ${typeof m.payload === 'string' && !isNumber(m.payload) ? m.payload : canonical(m.payload)}` });
      };
      return seen;
    };
    const publish = (event, payload = null, rest = '') => `SELECT changefeed.publish('${room}', '${event}', ${payload === null ? 'NULL' : `'${payload}'`}${rest})`;
    const texts = (seen) => seen.map(({ text }) => text);

    before(async () => {
      await db.exec("INSERT INTO ms.members VALUES (1, 'eve', true)");
      eve = await connect('eve');
      s = await until(() => eve.open(room).catch(() => null), 'admitted');
      heard = log(eve);
    });

    test('come with the rows of their transaction, in the order of commits', async () => {
      const other = new Session();
      await other.exec(`BEGIN; INSERT INTO ms.posts VALUES (2, 1, 'b'); ${publish('second', 2)}`);
      await db.exec(`BEGIN; ${publish('a', '{"x": [1, "é"]}')}; INSERT INTO ms.posts VALUES (1, 1, 'a'); ${publish('b')}; COMMIT`);
      await other.exec('COMMIT');
      await db.exec(publish('alone', '"x"'));
      await eve.settle();
      assert.deepEqual(texts(heard), ['rows append 1', 'a {"x":[1,"é"]}', 'b null', 'rows append 2', 'second 2', 'alone x']);
      assert.deepEqual(heard.map(({ position }) => position.slice(40)), ['.0', '.1', '', '.0', '', '']);
      assert.equal(new Set(heard.slice(0, 3).map(({ position }) => position.slice(0, 40))).size, 1);
      assert.equal(s.position, heard[5].position.slice(0, 40));
      await other.close();
    });

    test('are sent if and only if the transaction commits, or at once', async () => {
      heard.length = 0;
      await db.exec(`BEGIN; ${publish('no')}; ROLLBACK;
        BEGIN; ${publish('one')}; SAVEPOINT a; ${publish('no')}; SAVEPOINT b; ${publish('no')}; RELEASE b; ROLLBACK TO a; ${publish('two')};
        SAVEPOINT c; ${publish('three')}; RELEASE c; COMMIT`);
      await eve.settle();
      assert.deepEqual(texts(heard), ['one null', 'two null', 'three null']);
      heard.length = 0;
      await db.exec(`BEGIN; INSERT INTO ms.posts VALUES (50, 1, 'never'); SAVEPOINT a; ${publish('now', 1, ', false')}; ${publish('no')}; ROLLBACK TO a; ${publish('now', 2, ', false')}`);
      await until(() => heard.length === 2, 'immediate messages', 2000);
      await db.exec('ROLLBACK');
      await db.exec(`BEGIN; ${publish('prepared', 1)}; INSERT INTO ms.posts VALUES (3, 1, 'c'); PREPARE TRANSACTION 'ms'`);
      await db.exec(publish('between'));
      await db.exec("COMMIT PREPARED 'ms'");
      await eve.settle();
      assert.deepEqual(texts(heard), ['now 1', 'now 2', 'between null', 'rows append 3', 'prepared 1']);
    });

    test('a client that comes back at any place gets each exactly once', async () => {
      heard.length = 0;
      await eve.sync();
      const start = s.position;
      await db.exec(`BEGIN; ${publish('k', 1)}; ${publish('k', 2)}; INSERT INTO ms.posts VALUES (4, 1, 'd'), (5, 1, 'e'); ${publish('k', 3)}; COMMIT;
        BEGIN; ${publish('k', 4)}; ${publish('k', 5)}; COMMIT; ${publish('k', 6, ', false')}; UPDATE ms.posts SET body = 'x' WHERE id = 4`);
      await eve.settle();
      const all = texts(heard);
      assert.deepEqual(all, ['rows append 4,append 5', 'k 1', 'k 2', 'k 3', 'k 4', 'k 5', 'k 6', 'rows merge 4']);
      const places = [start, ...heard.map(({ position }) => position)];
      for (const [i, from] of places.entries()) {
        const client = new Client({ token: eve.token });
        await client.opened;
        const seen = log(client);
        await client.request('connect', { token: eve.token });
        client.send({ type: 'subscribe', id: 99, channel: room, from });
        // Its cache is of no interest here: only what is sent.
        client.tamper = (text) => { const m = JSON.parse(text); if (m.type === 'subscribed') got.push(m.recovered); else if (m.type === 'ready') got.push('ready'); else if (m.type === 'transaction') got.push(`rows ${m.changes.map(({ op, key }) => `${op} ${key.id}`)}`); else if (m.type === 'message') got.push(`${m.event} ${m.payload}`); else if (m.type !== 'ping') got.push(m.type); return []; };
        const got = [];
        await until(() => got.includes('ready'), () => `ready at ${from}: ${got}`);
        assert.deepEqual(got, [true, ...all.slice(i), 'ready'], `from ${i}: ${from}`);
        await client.cut();
        assert.equal(seen.length, 0);
      }
      for (const bad of ['.', '.x', '.1.2', '.01', '.0.1.2', '.1.2.3.4', '.99999999999', ' ']) {
        await assert.rejects(eve.request('subscribe', { channel: 'ms_lobby', from: start.slice(0, 40) + bad }), { code: '22023' }, bad);
      }
    });

    test('a resync does not lose what its own transaction says, nor what comes with others', async () => {
      heard.length = 0;
      const resyncs = s.resyncs.length;
      await db.exec(`BEGIN; INSERT INTO ms.members VALUES (1, 'fay', true); ${publish('joined', '"fay"')}; COMMIT; ${publish('next')}`);
      await eve.settle();
      await until(() => s.state === 'ready', 'ready');
      assert.equal(s.resyncs.length, resyncs + 1);
      assert.deepEqual(texts(heard), ['joined fay', 'next null']);
      assert.equal(heard[0].position, undefined, 'no position before the rows are complete');
      // Nothing of the time when it was none.
      heard.length = 0;
      await db.exec(`BEGIN; DELETE FROM ms.members WHERE uid = 'eve'; COMMIT; ${publish('secret')};
        BEGIN; INSERT INTO ms.members VALUES (1, 'eve', true); ${publish('back')}; COMMIT`);
      await eve.sync();
      if (s.state === 'ended') s = await until(() => eve.open(room).catch(() => null), 'admitted');
      await eve.settle();
      assert.ok(!texts(heard).includes('secret null'), texts(heard).join());
      assert.equal(await eve.openSoon('ms_lobby').then(({ state }) => state), 'ready');
    });

    for (const asked of ['when the right is there again', 'when it is lost']) {
      test(`nothing of the time when it was none, if a snapshot is asked for ${asked}`, async () => {
        heard.length = 0;
        const jobs = async () => Number((await (await fetch(`${process.env.HTTP_URL}/metrics`)).text()).match(/^changefeed_query_jobs(?:{.*})? (\d+)$/m)[1]);
        const workers = (await db.exec("SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'changefeed query%'")).split('\n').map(Number);
        for (const pid of workers) process.kill(pid, 'SIGSTOP');
        try {
          await db.exec("DELETE FROM ms.members WHERE uid = 'eve'");
          if (asked === 'when it is lost') await until(async () => await jobs() > 0, 'the question');
          await db.exec(`${publish('secret')}; BEGIN; INSERT INTO ms.members VALUES (1, 'eve', true); ${publish('back')}; COMMIT; ${publish('behind')}`);
          await eve.sync();
        } finally {
          for (const pid of workers) process.kill(pid, 'SIGCONT');
        }
        await eve.settle();
        assert.deepEqual(texts(heard), ['back null', 'behind null']);
      });
    }

    test('who is behind gets all of them, in order, with the rows', async () => {
      // Who does not read does not answer.
      await reload(db, { 'changefeed.heartbeat': '300s' });
      const slow = await connect('eve');
      const view = await slow.open(room);
      const seen = log(slow);
      slow.socket._socket.pause();
      await db.exec(`DO $$ BEGIN FOR i IN 1..600 LOOP INSERT INTO ms.posts VALUES (1000 + i, 1, repeat('x', 3000));
        PERFORM changefeed.publish('${room}', 'n', to_jsonb(repeat('y', 3000) || i)); PERFORM changefeed.publish('${room}', 'm', to_jsonb(i)); COMMIT; END LOOP; END $$`);
      await eve.settle();
      slow.socket._socket.resume();
      await slow.settle();
      assert.deepEqual(view.resyncs, []);
      assert.deepEqual(texts(seen).map((text) => text.replace(/y+/, '')), Array.from({ length: 600 }, (_, i) => [`rows append ${1001 + i}`, `n ${1 + i}`, `m ${1 + i}`]).flat());
      slow.check();
      await slow.cut();
      await reload(db, { 'changefeed.heartbeat': null });
    });

    test('cannot be forged or repeated', async () => {
      heard.length = 0;
      const refused = async () => Number(await db.value('SELECT messages_refused FROM changefeed.stat_feed'));
      const before = await refused();
      await db.exec(`CREATE ROLE msg_forger LOGIN; SET ROLE msg_forger;
        SELECT pg_logical_emit_message(true, 'pg_changefeed', 'x'); SELECT pg_logical_emit_message(false, 'pg_changefeed', repeat('x', 200));
        SELECT pg_logical_emit_message(true, 'other', 'x'); RESET ROLE`);
      // The bytes of a genuine one, from another slot.
      await db.exec("SELECT pg_create_logical_replication_slot('ms_spy', 'test_decoding')");
      const spy = (sql) => db.exec(`${sql}`);
      await spy(publish('genuine', 1));
      await spy(publish('genuine', 2, ', false'));
      await db.exec(`CREATE TABLE ms.stolen AS SELECT substring(data FROM 'content:(.*)$') AS content, data FROM pg_logical_slot_get_binary_changes('ms_spy', NULL, NULL) g(lsn, xid, raw), LATERAL (SELECT encode(raw, 'escape')) e(data) WHERE encode(raw, 'escape') LIKE 'message:%pg_changefeed%'`);
      assert.equal(await db.value('SELECT count(*) FROM ms.stolen'), '2');
      await db.exec("SELECT pg_drop_replication_slot('ms_spy')");
      await db.exec('SELECT pg_logical_emit_message(t, \'pg_changefeed\', decode(content, \'escape\')) FROM ms.stolen, (VALUES (true), (false)) v(t)');
      await eve.settle();
      await until(async () => await refused() === before + 6, 'counted');
      // A key that cannot be used is said once, not for whatever somebody writes.
      const said = () => readFileSync(LOG, 'utf8').split('could not check a message in the WAL').length - 1;
      chmodSync(`${process.env.CLUSTER_DATA}/pg_changefeed_message.key`, 0o644);
      try {
        await until(async () => {
          await db.exec("SELECT pg_logical_emit_message(true, 'pg_changefeed', set_byte(b, length(b) - 1, 0)) FROM (SELECT decode(content, 'escape') FROM ms.stolen) s(b), generate_series(1, 20)");
          await eve.settle();
          return said() > 0;
        }, 'the key is looked at again');
        assert.equal(said(), 1);
      } finally {
        chmodSync(`${process.env.CLUSTER_DATA}/pg_changefeed_message.key`, 0o600);
      }
      assert.ok(await refused() >= before + 46);
      assert.deepEqual(texts(heard), ['genuine 1', 'genuine 2']);
    });

    test('are kept over a kill of each process', async () => {
      const pids = async () => db.value('SELECT decoder_pid, feed_worker_pid, gateway_pid FROM changefeed.stat_feed').then((text) => text.split('|'));
      let n = 0;
      let client = eve;
      let cache = s;
      let seen = log(client);
      const got = [];
      for (const victim of [2, 1, 0]) {
        await db.exec(`BEGIN; ${publish('kill', ++n)}; INSERT INTO ms.posts VALUES (${5000 + n}, 1, 'k'); ${publish('kill', ++n)}; COMMIT`);
        const pid = (await pids())[victim];
        process.kill(Number(pid), victim === 2 ? 'SIGKILL' : 'SIGTERM');
        await db.exec(publish('kill', ++n));
        await client.ended;
        got.push(...texts(seen));
        const from = cache.position;
        const again = await until(() => Client.connect({ token: eve.token }).catch(() => null), 'connected');
        clients.push(again);
        seen = log(again);
        cache = await again.open(room, { from, cache });
        assert.equal(cache.recovered, true, `after the end of ${victim}: ${cache.resyncs}`);
        client = again;
      }
      await client.settle();
      got.push(...texts(seen));
      assert.deepEqual(got.filter((text) => text.startsWith('kill')), Array.from({ length: n }, (_, i) => `kill ${i + 1}`));
      client.check();
      assertSame(cache.rows(), await db.rows('SELECT * FROM ms.posts WHERE room_id = 1'), 'rows');
    });
  });

  describe('events of rows', () => {
    let ada, bob, plain;
    const log = (client) => {
      const seen = [];
      client.onMessage = (m) => {
        if (m.type === 'transaction') seen.push({ position: m.position, text: m.changes.map(({ op, key }) => `${op} ${key.id.slice(1)}`).join() });
        if (m.type === 'message') seen.push({ position: m.position, text: `${m.channel} ${m.event} ${canonical(m.payload)}` });
      };
      return seen;
    };
    const texts = (seen) => seen.splice(0).map(({ text }) => text);

    before(async () => {
      await db.exec(`CREATE TYPE ms.state AS ENUM ('new', 'paid', 'shipped'); CREATE DOMAIN ms.label AS text;
        CREATE TABLE ms.orders (id int PRIMARY KEY, shop int NOT NULL, owner text, state ms.state NOT NULL DEFAULT 'new', note ms.label, secret int DEFAULT 7, tags text[], at timestamptz DEFAULT '2026-01-02 03:04:05+00');
        GRANT SELECT (id, shop, owner, state, note, tags, at) ON ms.orders TO msg_web;
        ALTER TABLE ms.orders ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON ms.orders USING (owner = ms.me());
        SELECT changefeed.create_channel('ms_orders:{shop}', 'ms.orders');
        SELECT changefeed.add_event('ms_orders:{shop}', 'ms.orders', 'created', on_change => '{insert}');
        SELECT changefeed.add_event('ms_orders:{shop}', 'ms.orders', 'state', 'old.state IS DISTINCT FROM new.state',
          $$jsonb_build_object('id', new.id, 'was', old.state, 'is', new.state, 'note', new.note, 'tags', new.tags, 'at', new.at)$$, '{update}');
        SELECT changefeed.add_event('ms_orders:{shop}', 'ms.orders', 'paid', $$new.state = 'paid'$$, 'json_build_array(new.id, new.note)', '{insert,update}');
        SELECT changefeed.add_event('ms_orders:{shop}', 'ms.orders', 'gone', NULL, 'old.state', '{delete}');
        SELECT changefeed.add_event('ms_orders:{shop}', 'ms.orders', 'audit', NULL, 'new.secret', '{insert,update}');
        SELECT changefeed.add_event('ms_orders:{shop}', 'ms.orders', 'ratio', '100 / (new.id - 13) > 0', '100 / (new.id - 13)', '{insert}');
        SELECT changefeed.create_channel('ms_bell', 'ms.orders', on_insert => 'ignore', on_update => 'ignore', on_delete => 'ignore');
        SELECT changefeed.add_event('ms_bell', 'ms.orders', 'ring', 'new.shop > 0')`);
      ada = await connect('ada');
      bob = await connect('bob');
      plain = await connect('ada');
      for (const client of [ada, bob]) await client.openSoon('ms_orders:1');
      await plain.openSoon('ms_bell');
    });

    test('follow the operations, by the net effect, with values as in JSON', async () => {
      const heard = log(ada);
      const bell = log(plain);
      await db.exec(`BEGIN; INSERT INTO ms.orders (id, shop, owner, note) VALUES (1, 1, 'ada', 'a "b"'), (2, 1, 'bob', NULL);
        UPDATE ms.orders SET state = 'paid' WHERE id = 1; INSERT INTO ms.orders (id, shop, owner) VALUES (3, 1, 'ada'); DELETE FROM ms.orders WHERE id = 3; COMMIT`);
      await ada.settle();
      await plain.settle();
      const at = heard.map(({ position }) => position.slice(40));
      assert.deepEqual(texts(heard), ['append 1', 'ms_orders:1 created {"id":1}', 'ms_orders:1 paid [1,"a \\"b\\""]']);
      assert.equal(at[0], '.0');
      assert.match(at[1], /^\.\d+\.6\.\d+$/); // the new row of its last change, the third one of the table
      assert.equal(at[2], '');
      assert.deepEqual(texts(bell), ['ms_bell ring {"id":1}']);
      await db.exec("UPDATE ms.orders SET state = 'shipped', tags = '{a,b}' WHERE id = 1; UPDATE ms.orders SET note = 'x' WHERE id = 1; BEGIN; UPDATE ms.orders SET state = 'new' WHERE id = 1; UPDATE ms.orders SET state = 'shipped' WHERE id = 1; COMMIT; DELETE FROM ms.orders WHERE id = 1");
      await ada.settle();
      assert.deepEqual(texts(heard), ['merge 1', 'ms_orders:1 state {"at":"2026-01-02T03:04:05+00:00","id":1,"is":"shipped","note":"a \\"b\\"","tags":["a","b"],"was":"paid"}',
        'merge 1', 'remove 1', 'ms_orders:1 gone "shipped"']);
    });

    test('go to those who see the rows and columns', async () => {
      await db.exec('GRANT SELECT (secret) ON ms.orders TO msg_web; REVOKE SELECT (secret) ON ms.orders FROM msg_web');
      for (const client of [ada, bob]) await client.settle();
      const a = log(ada);
      const b = log(bob);
      await db.exec("INSERT INTO ms.orders (id, shop, owner) VALUES (20, 1, 'ada'), (21, 2, 'bob')");
      // From one to the other: who has not seen what it was is told nothing of it.
      await db.exec("UPDATE ms.orders SET owner = 'bob', state = 'paid' WHERE id = 20");
      await db.exec("UPDATE ms.orders SET shop = 1, state = 'shipped' WHERE id = 21; DELETE FROM ms.orders WHERE id = 20");
      for (const client of [ada, bob]) await client.settle();
      assert.deepEqual(texts(a), ['append 20', 'ms_orders:1 created {"id":20}', 'ms_orders:1 ratio 14', 'remove 20']);
      assert.deepEqual(texts(b), ['append 20', 'ms_orders:1 paid [20,null]', 'append 21', 'remove 20', 'ms_orders:1 gone "paid"']);
      await db.exec('GRANT SELECT (secret) ON ms.orders TO msg_web');
      await ada.settle();
      a.length = 0;
      await until(async () => {
        await db.exec("INSERT INTO ms.orders (id, shop, owner) VALUES ((SELECT max(id) + 1 FROM ms.orders), 1, 'ada')");
        await ada.settle();
        return texts(a).includes('ms_orders:1 audit 7');
      }, 'the column may be read');
      await db.exec('REVOKE SELECT (secret) ON ms.orders FROM msg_web');
      await ada.settle();
    });

    test('conditions of the client apply, and columns that it leaves out', async () => {
      const client = await connect('ada');
      await client.open('ms_orders:1?id=gte.100');
      await client.open('ms_orders:1?select=owner');
      const heard = log(client);
      await db.exec("INSERT INTO ms.orders (id, shop, owner, state) VALUES (90, 1, 'ada', 'paid')");
      await db.exec("INSERT INTO ms.orders (id, shop, owner, state) VALUES (100, 1, 'ada', 'paid')");
      await client.settle();
      assert.deepEqual(texts(heard).filter((text) => text.startsWith('ms')).sort(), ['ms_orders:1?id=gte.100 created {"id":100}', 'ms_orders:1?id=gte.100 paid [100,null]', 'ms_orders:1?id=gte.100 ratio 1',
        'ms_orders:1?select=owner created {"id":100}', 'ms_orders:1?select=owner created {"id":90}', 'ms_orders:1?select=owner ratio 1', 'ms_orders:1?select=owner ratio 1'].sort());
      await client.cut();
    });

    test('an error costs that event only', async () => {
      const heard = log(ada);
      const errors = () => db.value('SELECT event_errors FROM changefeed.stat_feed').then(Number);
      const before = await errors();
      await db.exec("INSERT INTO ms.orders (id, shop, owner) VALUES (13, 1, 'ada')");
      await ada.settle();
      assert.deepEqual(texts(heard), ['append 13', 'ms_orders:1 created {"id":13}']);
      assert.equal(await errors(), before + 1);
      await db.exec(`INSERT INTO ms.orders (id, shop, owner, state, note) VALUES (14, 1, 'ada', 'paid', repeat('x', 9000))`);
      await ada.settle();
      assert.deepEqual(texts(heard), ['append 14', 'ms_orders:1 created {"id":14}', 'ms_orders:1 ratio 100']);
      assert.equal(await errors(), before + 2);
    });

    test('resumed at each place, with messages of SQL between, exactly once', async () => {
      await ada.sync();
      const s = ada.subscriptions.get('ms_orders:1');
      const heard = log(ada);
      const start = s.position;
      await db.exec(`BEGIN; SELECT changefeed.publish('ms_orders:1', 'sql', '1'); INSERT INTO ms.orders (id, shop, owner, state) VALUES (200, 1, 'ada', 'paid'), (201, 1, 'ada', 'paid');
        SELECT changefeed.publish('ms_orders:1', 'sql', '2'); COMMIT; UPDATE ms.orders SET state = 'new' WHERE id = 201`);
      await ada.settle();
      const places = [start, ...heard.map(({ position }) => position)];
      const all = texts(heard);
      assert.equal(all.length, 9, all.join('; '));
      for (const [i, from] of places.entries()) {
        const client = new Client({ token: ada.token });
        await client.opened;
        await client.request('connect', { token: ada.token });
        const got = [];
        client.tamper = (text) => {
          const m = JSON.parse(text);
          if (m.type === 'transaction') got.push(m.changes.map(({ op, key }) => `${op} ${key.id}`).join());
          else if (m.type === 'message') got.push(`${m.channel} ${m.event} ${canonical(m.payload)}`);
          else if (m.type !== 'ping') got.push(m.type);
          return [];
        };
        client.send({ type: 'subscribe', id: 99, channel: 'ms_orders:1', from });
        await until(() => got.includes('ready'), () => `ready at ${from}: ${got}`);
        assert.deepEqual(got, ['subscribed', ...all.slice(i), 'ready'], `from ${i}: ${from}`);
        await client.cut();
      }
      ada.check();
    });

    test('a changed key is one row that goes and one that comes, each with a place of its own', async () => {
      await db.exec(`CREATE TABLE ms.keys (id int PRIMARY KEY); INSERT INTO ms.keys VALUES (1); GRANT SELECT ON ms.keys TO msg_web;
        SELECT changefeed.create_channel('ms_keys', 'ms.keys');
        SELECT changefeed.add_event('ms_keys', 'ms.keys', 'any', on_change => '{insert,delete}')`);
      const client = await connect('ada');
      const s = await client.openSoon('ms_keys');
      const seen = log(client);
      await db.exec('UPDATE ms.keys SET id = 2');
      await client.settle();
      const [, { position: from }] = seen;
      assert.deepEqual(texts(seen), ['remove 1,append 2', 'ms_keys any {"id":1}', 'ms_keys any {"id":2}']);
      await client.cut();
      const again = await connect('ada');
      const rest = log(again);
      await (await again.subscribe('ms_keys', { from, cache: s })).ready();
      assert.deepEqual(texts(rest), ['ms_keys any {"id":2}']);
    });

    test('definitions come and go, with their tables', async () => {
      const count = () => db.value("SELECT count(*) FROM changefeed.events");
      const before = Number(await count());
      await db.exec(`CREATE TABLE ms.brief (id int PRIMARY KEY, v int); GRANT SELECT ON ms.brief TO msg_web; SELECT changefeed.create_channel('ms_brief', 'ms.brief')`);
      const s = await ada.openSoon('ms_brief');
      const heard = log(ada);
      await db.exec("SELECT changefeed.add_event('ms_brief', 'ms.brief', 'e', 'new.v > 1'); INSERT INTO ms.brief VALUES (1, 1), (2, 2)");
      await ada.settle();
      await until(() => s.state === 'ready', 'ready');
      await db.exec('UPDATE ms.brief SET v = 3; ALTER TABLE ms.brief RENAME v TO w');
      await ada.settle();
      assert.deepEqual(texts(heard).filter((text) => text.startsWith('ms')).slice(-2), ['ms_brief e {"id":1}', 'ms_brief e {"id":2}']);
      await db.exec('UPDATE ms.brief SET w = 4');
      await ada.settle();
      assert.ok(!texts(heard).some((text) => text.startsWith('ms')), 'its column is gone');
      assert.equal(Number(await count()), before + 1);
      await db.exec('DROP TABLE ms.brief');
      assert.equal(Number(await count()), before);
      ada.check();
    });
  });
});
