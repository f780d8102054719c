// The protocol, message by message.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { assertSame, Client, until, within } from './lib/client.mjs';
import { isNumber, number } from './lib/json.mjs';
import { reload, Session } from './lib/psql.mjs';

const CLAIMS = { role: 'proto_web', sub: 'ada' };

describe('protocol', () => {
  let db;
  let token;
  const clients = [];

  before(async () => {
    db = new Session();
    await db.exec(`CREATE SCHEMA proto; CREATE ROLE proto_web; CREATE ROLE anonymous;
      GRANT USAGE ON SCHEMA proto TO proto_web, anonymous;
      ALTER DEFAULT PRIVILEGES IN SCHEMA proto GRANT SELECT ON TABLES TO proto_web;
      SELECT changefeed.allow_role('proto_web'); SELECT changefeed.allow_role('anonymous');
      CREATE TABLE proto.orders (id int PRIMARY KEY, customer_id int, status text NOT NULL DEFAULT 'new');
      SELECT changefeed.create_channel('orders:{customer_id}', 'proto.orders');
      SELECT changefeed.create_channel('orders', 'proto.orders');
      INSERT INTO proto.orders VALUES (1, 1), (2, 1), (3, 2), (4, NULL)`);
    token = await db.token(CLAIMS);
    await (await Client.connectSoon({ token })).close();
  });

  after(async () => {
    for (const client of clients) await client.cut();
    await db?.close();
  });

  async function connect(options = {}) {
    const client = await Client.connect({ token, ...options });
    clients.push(client);
    return client;
  }

  async function raw(options = {}) {
    const client = new Client(options);
    clients.push(client);
    await client.opened;
    return client;
  }

  /** The cache is what SELECT gives. */
  async function same(subscription, sql, what = subscription.name, claims = CLAIMS) {
    await subscription.client.settle();
    subscription.client.check();
    assertSame(subscription.rows(), await db.rowsAs(claims, sql), what);
  }

  describe('connecting', () => {
    test('connected says session, heartbeat, expiry and server', async () => {
      const client = await connect();
      const { session, heartbeat_ms: heartbeat, expires_at: expires, server } = client.connected;
      assert.equal(typeof session, 'string');
      assert.equal(number(heartbeat), 4000);
      assert.ok(Math.abs(Date.parse(expires) - Date.now() - 3600e3) < 60e3, expires);
      assert.match(server, /^pg_changefeed\/\d+\.\d+\.\d+$/);
      const other = await connect();
      assert.notEqual(other.connected.session, session);
      await client.close();
      await other.close();
    });

    test('without a token it is the anonymous role', async () => {
      const client = await connect({ token: undefined });
      await assert.rejects(client.subscribe('orders'), { code: '42501' });
      await db.exec('CREATE TABLE proto.open (id int PRIMARY KEY); GRANT SELECT ON proto.open TO anonymous');
      await db.exec("SELECT changefeed.create_channel('open', 'proto.open'); INSERT INTO proto.open VALUES (1)");
      await same(await client.openSoon('open'), 'SELECT * FROM proto.open', 'open', { role: 'anonymous' });
      await client.close();
    });

    test('a token in the Authorization header and in the URL', async () => {
      const one = await connect({ token: undefined, headers: { Authorization: `Bearer ${token}` } });
      await (await one.subscribe('orders')).ready();
      await one.close();
      const two = await connect({ token: undefined, url: `${process.env.WS_URL}?token=${token}` });
      await (await two.subscribe('orders')).ready();
      await two.close();
    });

    test('bad and expired tokens are refused and the connection closed', async () => {
      const good = token.split('.');
      const bad = {
        'not a token': 'nonsense',
        'of another key': `${good[0]}.${good[1]}.${good[2].slice(0, -4)}AAAA`,
        'without signature': `${Buffer.from('{"alg":"none"}').toString('base64url')}.${good[1]}.`,
        expired: await db.token(CLAIMS, '-1 minute'),
        'of a role that is not allowed': await db.token({ role: 'postgres' }),
        'of a role that does not exist': await db.token({ role: 'nobody_there' }),
      };
      for (const [what, text] of Object.entries(bad)) {
        const client = await raw();
        await assert.rejects(client.request('connect', { token: text }), (error) => /^(28|42|22)/.test(error.code), what);
        const { code } = await within(30000, client.ended, `${what}: closed`);
        assert.equal(code, 4003, what);
      }
    });

    test('who does not connect is closed', async (t) => {
      t.after(() => reload(db, { 'changefeed.connect_timeout': null }));
      await reload(db, { 'changefeed.connect_timeout': '1s' });
      const client = await raw();
      assert.equal((await within(30000, client.ended, 'closed')).code, 4001);
    });

    test('connecting twice is an error, and the connection goes on', async () => {
      const client = await connect();
      await assert.rejects(client.request('connect', { token }), { code: '08P01' });
      await client.sync();
      await client.close();
    });

    test('before connect, other requests are errors', async () => {
      const client = await raw();
      await assert.rejects(client.request('subscribe', { channel: 'orders' }), { code: '08003' });
      await client.request('connect', { token });
      await client.open('orders');
      await client.close();
    });
  });

  describe('tokens', () => {
    let subscription;
    let client;
    const select = 'SELECT * FROM proto.owned';

    before(async () => {
      await db.exec(`CREATE TABLE proto.owned (id int PRIMARY KEY, owner text);
        ALTER TABLE proto.owned ENABLE ROW LEVEL SECURITY;
        CREATE POLICY p ON proto.owned USING (owner = current_setting('request.jwt.claims', true)::json->>'sub');
        SELECT changefeed.create_channel('owned', 'proto.owned');
        INSERT INTO proto.owned VALUES (1, 'ada'), (2, 'bob')`);
      client = await connect();
      subscription = await client.openSoon('owned');
    });

    test('a fresh token of the same identity goes on without a resync', async () => {
      const answer = await client.request('token', { token: await db.token(CLAIMS, '2 hours') });
      assert.equal(answer.type, 'ok');
      assert.ok(Date.parse(answer.expires_at) > Date.now() + 7000e3);
      await db.exec("INSERT INTO proto.owned VALUES (3, 'ada'), (4, 'bob')");
      await same(subscription, select);
      assert.deepEqual(subscription.resyncs, []);
    });

    test('one of another identity is seen afresh', async () => {
      const bob = { ...CLAIMS, sub: 'bob' };
      await client.request('token', { token: await db.token(bob) });
      await same(subscription, select, 'bob', bob);
      assert.equal(subscription.resyncs.length, 1);
      await db.exec("INSERT INTO proto.owned VALUES (5, 'ada'), (6, 'bob')");
      await same(subscription, select, 'bob', bob);
    });

    test('a bad one changes nothing', async () => {
      await assert.rejects(client.request('token', { token: 'nonsense' }));
      await db.exec("INSERT INTO proto.owned VALUES (7, 'ada'), (8, 'bob')");
      await same(subscription, select, 'bob', { ...CLAIMS, sub: 'bob' });
      await client.close();
    });

    test('a minute before it expires there is a warning', async () => {
      const warned = await connect({ token: await db.token(CLAIMS, '62 seconds') });
      const warning = await until(() => warned.messages[0], 'warning');
      assert.equal(warning.code, '28000');
      assert.ok(Math.abs(Date.parse(warning.expires_at) - Date.now() - 60e3) < 10000);
      await warned.close();
    });

    test('when it expires, channels are revoked and the connection closed', async () => {
      const expiring = await connect({ token: await db.token(CLAIMS, '2 seconds') });
      const s = await expiring.open('owned');
      const { code } = await within(30000, expiring.ended, 'closed');
      expiring.check();
      assert.equal(code, 4004);
      assert.equal(s.revoked?.reason, 'token_expired');
      assert.equal(s.revoked.code, '28000');
      const [warning, last] = expiring.messages.filter((message) => message.code === '28000');
      assert.ok(warning.expires_at, 'also half way, if it had less than a minute');
      assert.equal(last.expires_at, undefined);
    });

    test('refreshed in time it does not expire', async () => {
      const refreshed = await connect({ token: await db.token(CLAIMS, '2 seconds') });
      const s = await refreshed.open('owned');
      await refreshed.request('token', { token });
      const end = Date.now() + 3500;
      await until(() => Date.now() > end, 'time');
      await refreshed.sync();
      assert.equal(s.state, 'ready');
      assert.deepEqual(s.resyncs, []);
      await refreshed.close();
    });
  });

  describe('messages', () => {
    let client;
    before(async () => { client = await connect(); });
    after(() => client.close());

    const complaint = async (message) => {
      const n = client.messages.length;
      client.send(message);
      return until(() => client.messages[n], 'complaint');
    };

    test('malformed JSON costs one error', async () => {
      assert.equal((await complaint('{"type":')).code, '22P02');
      assert.equal((await complaint('')).code, '22P02');
      assert.match((await complaint('[1,2]')).code, /^(22P02|08P01)$/);
      for (const array of ['[[]]', '[{}]', '[[1],2]', '[{"type":"sync","id":1}]', '[1,[[2]]', '[[]}'])
        assert.equal((await complaint(array)).code, '22P02', array);
      assert.match((await complaint('{"type":"sync","id":1} x')).code, /^22P02$/);
      // Of a repeated member the last counts, however many there are.
      assert.equal((await complaint(`{"type":"sync","id":1${',"x":1'.repeat(22)},"type":"none"}`)).code, '08P01');
      await client.sync();
    });
    test('a request without an id', async () => {
      assert.equal((await complaint('{"type":"subscribe","channel":"orders"}')).code, '08P01');
      assert.equal((await complaint('{"type":"sync","id":{}}')).code, '08P01');
      await client.sync();
    });
    test('an unknown type, and one that is no string', async () => {
      await assert.rejects(client.request('dance'), { code: '08P01' });
      const answer = client.request(7);
      await assert.rejects(answer, { code: '08P01' });
    });
    test('string ids, with characters that need escapes', async () => {
      for (const id of ['abc', 'a"b\\c\u0001', 'ünï', '']) {
        const answer = await client.request('sync', {}, { id });
        assert.equal(answer.id, id);
      }
    });
    test('unknown fields are ignored', async () => {
      await client.request('sync', { extra: { deep: [1, { x: null }] } });
    });
    test('sync answers with a position and what is settled', async () => {
      const txid = await db.value('SELECT pg_current_xact_id()');
      const answer = await client.sync();
      assert.ok(BigInt(answer.settled_txid) > BigInt(txid), `${answer.settled_txid} ${txid}`);
      assert.ok(answer.position.length > 10);
    });
    test('settled says nothing of transactions that are still running', async () => {
      const other = new Session();
      const txid = await other.exec('BEGIN; SELECT pg_current_xact_id()');
      const answer = await client.sync();
      assert.ok(BigInt(answer.settled_txid) <= BigInt(txid));
      await other.exec('COMMIT');
      assert.ok(BigInt((await client.sync()).settled_txid) > BigInt(txid));
      await other.close();
    });
    test('what is not there yet is an error', async () => {
      await assert.rejects(client.request('publish', { channel: 'orders', event: 'x', payload: {} }));
      await assert.rejects(client.request('call', { function: 'f', args: {} }));
      await assert.rejects(client.subscribe('v?b=fts.new'), { code: '0A000' });
      await client.sync();
    });
  });

  describe('heartbeat', () => {
    test('the server pings, and closes who does not answer', async () => {
      const answers = await connect();
      const silent = await connect();
      silent.answersPings = false;
      const { code } = await within(30000, silent.ended, 'silent client is closed');
      assert.equal(code, 4000);
      assert.ok(silent.pings >= 2, `${silent.pings} pings`);
      await answers.sync();
      assert.ok(answers.pings >= 2);
      await answers.close();
    });
  });

  describe('subscribing', () => {
    let client;
    before(async () => { client = await connect(); });
    after(() => client.close());

    test('unknown channels, names that match nothing, and no name', async () => {
      for (const name of ['nothing', 'orders:1:2:', 'order', 'ORDERS:1', 'orders/1']) {
        await assert.rejects(client.subscribe(name), (error) => /^(42704|22P02)$/.test(error.code), name);
      }
      await assert.rejects(client.subscribe('nothing'), { code: '42704' });
      await assert.rejects(client.subscribe('orders:'), { code: '22P02' }); // no integer
      await assert.rejects(client.request('subscribe', {}), { code: '08P01' });
      await assert.rejects(client.request('subscribe', { channel: '' }), { code: '08P01' });
      await assert.rejects(client.request('subscribe', { channel: 7 }), { code: '08P01' });
      await assert.rejects(client.request('subscribe', { channel: 'x'.repeat(5000) }), (error) => /^42/.test(error.code));
    });

    test('snapshot, changes, unsubscribe', async () => {
      const s = await client.open('orders:1');
      assert.equal(s.recovered, false);
      assert.deepEqual(s.entities.get('orders').columns, ['id', 'customer_id', 'status']);
      assert.deepEqual(s.entities.get('orders').key, ['id']);
      assert.ok(s.snapshot.xmin && s.snapshot.xmax && Array.isArray(s.snapshot.xip));
      const select = 'SELECT * FROM proto.orders WHERE customer_id = 1';
      await same(s, select);
      await db.exec("UPDATE proto.orders SET status = 'shipped' WHERE id = 1; INSERT INTO proto.orders VALUES (5, 1), (6, 2)");
      await db.exec('UPDATE proto.orders SET customer_id = 2 WHERE id = 2; UPDATE proto.orders SET customer_id = 1 WHERE id = 3');
      await same(s, select);
      await assert.rejects(client.subscribe('orders:1'), { code: '42710' });
      await client.unsubscribe('orders:1');
      await db.exec("UPDATE proto.orders SET status = 'later'");
      await client.sync();
      await assert.rejects(client.unsubscribe('orders:1'), { code: '42704' });
    });

    test("a frame's txid is the writer's", async () => {
      const s = await client.open('orders:1');
      const frames = [];
      client.onTransaction = (frame) => frames.push(frame);
      const txid = await db.exec("BEGIN; UPDATE proto.orders SET status = 'mine' WHERE id = 1; SELECT pg_current_xact_id(); COMMIT");
      await client.sync();
      client.onTransaction = null;
      assert.deepEqual(frames.map((frame) => frame.txid), [txid]);
      assert.ok(Math.abs(Date.parse(frames[0].committed_at) - Date.now()) < 10000);
      assert.equal(s.position, frames[0].position.length ? s.position : '');
      await client.unsubscribe('orders:1');
    });

    test('one frame for all channels of a connection', async () => {
      const all = await client.open('orders');
      const one = await client.open('orders:1');
      const two = await client.open('orders:2');
      const frames = [];
      client.onTransaction = (frame) => frames.push(frame);
      await db.exec('BEGIN; UPDATE proto.orders SET customer_id = 3 - customer_id; COMMIT');
      await same(all, 'SELECT * FROM proto.orders');
      assertSame(one.rows(), await db.rows('SELECT * FROM proto.orders WHERE customer_id = 1'), 'one');
      assertSame(two.rows(), await db.rows('SELECT * FROM proto.orders WHERE customer_id = 2'), 'two');
      client.onTransaction = null;
      assert.equal(frames.length, 1);
      for (const name of ['orders', 'orders:1', 'orders:2']) await client.unsubscribe(name);
    });

    test('a row whose template column is null belongs to no channel', async () => {
      const s = await client.open('orders:1');
      const select = 'SELECT * FROM proto.orders WHERE customer_id = 1';
      await db.exec('UPDATE proto.orders SET customer_id = NULL WHERE id = 5');
      await same(s, select);
      await db.exec('UPDATE proto.orders SET customer_id = 1 WHERE id IN (4, 5)');
      await same(s, select);
      await client.unsubscribe('orders:1');
      await assert.rejects(client.open('orders:null'), (error) => error.code !== undefined || /./.test(error));
      client.subscriptions.delete('orders:null');
    });

    test('a parameter that is no value of the column', async () => {
      // Nothing can be in it: either an error, or an empty channel.
      const s = await client.open('orders:abc').catch((error) => { assert.match(error.code, /^22|^42/); });
      if (s) {
        assert.deepEqual(s.rows(), []);
        await client.unsubscribe('orders:abc');
      }
      const t = await client.open('orders:01').catch((error) => { assert.match(error.code, /^22|^42/); });
      if (t) {
        assert.deepEqual(t.rows(), []);
        await db.exec("UPDATE proto.orders SET status = 'x' WHERE customer_id = 1");
        await client.sync();
        assert.deepEqual(t.rows(), []);
        await client.unsubscribe('orders:01');
      }
    });

    test('any value of a parameter: *', async () => {
      const s = await client.open('orders:*');
      const select = 'SELECT * FROM proto.orders WHERE customer_id IS NOT NULL';
      await same(s, select);
      await db.exec('UPDATE proto.orders SET customer_id = 77 WHERE id = 1; UPDATE proto.orders SET customer_id = NULL WHERE id = 2; INSERT INTO proto.orders VALUES (20, 9), (21, NULL)');
      await same(s, select);
      await client.unsubscribe('orders:*');
    });

    test('percent-encoded parameters, in any spelling', async () => {
      await db.exec(`CREATE TABLE proto.files (id int PRIMARY KEY, owner text, n int);
        SELECT changefeed.create_channel('files:{owner}:{n}', 'proto.files')`);
      const owners = ['a:b', 'a b', 'ü/é', '100%', '*', '?x=1', 'a%3Ab', '日本', '{n}', "o'hara", ''];
      for (const [i, owner] of owners.entries()) {
        const name = `files:${encodeURIComponent(owner)}:1`;
        if (owner === '') continue;
        const s = await client.openSoon(owner === '*' ? 'files:%2A:1' : name);
        assert.deepEqual(s.rows(), [], owner);
        await db.exec(`INSERT INTO proto.files VALUES (${i}, $o$${owner}$o$, 1), (${i + 100}, $o$${owner}$o$, 2)`);
        await same(s, `SELECT * FROM proto.files WHERE owner = $o$${owner}$o$ AND n = 1`);
        assert.equal(s.rows().length, 1, owner);
      }
      const spelled = await client.open('files:%61%3ab:1');
      await same(spelled, "SELECT * FROM proto.files WHERE owner = 'a:b' AND n = 1");
      await db.exec("INSERT INTO proto.files VALUES (200, 'a:b', 1)");
      await same(spelled, "SELECT * FROM proto.files WHERE owner = 'a:b' AND n = 1");
      for (const name of [...client.subscriptions.keys()]) await client.unsubscribe(name);
      for (const name of ['files:%:1', 'files:%4:1', 'files:%zz:1', 'files:%ff:1', 'files:%00:1']) {
        await assert.rejects(client.open(name), (error) => /^(42|22)/.test(error.code ?? ''), name);
        client.subscriptions.delete(name);
      }
    });

    test('several sources on one channel', async () => {
      await db.exec(`CREATE TABLE proto.rooms (id int PRIMARY KEY, title text);
        CREATE TABLE proto.posts (room int, no int, body text, PRIMARY KEY (room, no));
        INSERT INTO proto.rooms VALUES (1, 'one'), (2, 'two'); INSERT INTO proto.posts VALUES (1, 1, 'x'), (2, 1, 'y');
        SELECT changefeed.create_channel('room:{id}', 'proto.rooms');
        CREATE TABLE proto.notes (id int PRIMARY KEY, body text);
        SELECT changefeed.add_source('room:{id}', 'proto.notes', entity => 'note')`);
      const s = await client.openSoon('room:1');
      const frames = [];
      client.onTransaction = (frame) => frames.push(frame);
      await db.exec("BEGIN; INSERT INTO proto.notes VALUES (1, 'n'), (2, 'm'); UPDATE proto.rooms SET title = 'uno' WHERE id = 1; COMMIT");
      await client.settle();
      client.onTransaction = null;
      client.check();
      assertSame(s.rows('rooms'), await db.rows('SELECT * FROM proto.rooms WHERE id = 1'), 'rooms');
      assertSame(s.rows('note'), await db.rows('SELECT * FROM proto.notes WHERE id = 1'), 'notes');
      assert.equal(frames.length, 1);
      await client.unsubscribe('room:1');

      // Other entities are told before their changes, with and without rows.
      for (const options of [{}, { snapshot: false }]) {
        const other = await Client.connect({ token: client.token });
        await other.open('room:1', options);
        const types = [];
        other.onMessage = ({ type }) => types.push(type);
        await db.exec("SELECT changefeed.drop_source('room:{id}', 'proto.notes'); SELECT changefeed.add_source('room:{id}', 'proto.notes', entity => 'remark')");
        await other.settle();
        await other.cut();
        other.check();
        assert.ok(types.includes('columns') && types.indexOf('columns') < types.lastIndexOf('ready'), types.join());
        await db.exec("SELECT changefeed.drop_source('room:{id}', 'proto.notes'); SELECT changefeed.add_source('room:{id}', 'proto.notes', entity => 'note')");
      }
    });

    test('operations of their own: replace, ignore, remove', async () => {
      await db.exec(`CREATE TABLE proto.ops (id int PRIMARY KEY, v int);
        SELECT changefeed.create_channel('ops_replace', 'proto.ops', on_insert => 'replace', on_update => 'replace');
        SELECT changefeed.create_channel('ops_keep', 'proto.ops', on_delete => 'ignore');
        SELECT changefeed.create_channel('ops_once', 'proto.ops', on_update => 'remove');
        SELECT changefeed.create_channel('ops_first', 'proto.ops', on_update => 'ignore');
        SELECT changefeed.create_channel('ops_merge', 'proto.ops', on_insert => 'merge')`);
      const replace = await client.openSoon('ops_replace', { loose: true });
      const keep = await client.open('ops_keep', { loose: true });
      const once = await client.open('ops_once', { loose: true });
      const first = await client.open('ops_first', { loose: true });
      const merge = await client.open('ops_merge', { loose: true });
      const ops = {};
      for (const s of [replace, keep, once, first, merge]) {
        ops[s.name] = [];
        s.onChange = (change) => ops[s.name].push(change.op);
      }
      await db.exec('INSERT INTO proto.ops VALUES (1, 1)');
      await db.exec('UPDATE proto.ops SET v = 2');
      await db.exec('DELETE FROM proto.ops');
      await client.settle();
      client.check();
      assert.deepEqual(ops, {
        ops_replace: ['replace', 'replace', 'remove'],
        ops_keep: ['append', 'merge'],
        ops_once: ['append', 'remove', ...(ops.ops_once.length > 2 ? ['remove'] : [])],
        ops_first: ['append', 'remove'],
        ops_merge: ['merge', 'merge', 'remove'],
      });
      for (const name of Object.keys(ops)) await client.unsubscribe(name);
    });

    test('a filter of the source', async () => {
      await db.exec(`CREATE TABLE proto.filtered (id int PRIMARY KEY, status text, n numeric);
        INSERT INTO proto.filtered VALUES (1, 'open', 1), (2, 'closed', 2), (3, NULL, 3);
        SELECT changefeed.create_channel('filtered', 'proto.filtered', filter => $$status = 'open' AND n < 10$$)`);
      const s = await client.openSoon('filtered');
      const select = "SELECT * FROM proto.filtered WHERE status = 'open' AND n < 10";
      await same(s, select);
      for (const sql of ["UPDATE proto.filtered SET status = 'open'", 'UPDATE proto.filtered SET n = n + 8',
        'UPDATE proto.filtered SET status = NULL WHERE id = 1', 'INSERT INTO proto.filtered VALUES (9, \'open\', 9.99), (10, \'open\', 10)',
        'DELETE FROM proto.filtered WHERE id > 2']) {
        await db.exec(sql);
        await same(s, select, sql);
      }
      await client.unsubscribe('filtered');
    });

    test('chosen columns only', async () => {
      await db.exec(`CREATE TABLE proto.chosen (id int PRIMARY KEY, a int, b int, c int);
        SELECT changefeed.create_channel('chosen', 'proto.chosen', columns => '{id,b}')`);
      const s = await client.openSoon('chosen');
      await db.exec('INSERT INTO proto.chosen VALUES (1, 1, 1, 1), (2, 2, 2, 2)');
      await same(s, 'SELECT id, b FROM proto.chosen');
      const { changes } = s;
      await db.exec('UPDATE proto.chosen SET a = 9, c = 9');
      await same(s, 'SELECT id, b FROM proto.chosen');
      assert.equal(s.changes, changes);
      await client.unsubscribe('chosen');
    });

    test('without a snapshot rows come whole', async () => {
      const s = await client.open('orders', { snapshot: false });
      assert.deepEqual(s.rows(), []);
      const ops = [];
      s.onChange = (change) => ops.push(change.op);
      await db.exec("UPDATE proto.orders SET status = 'whole' WHERE id = 1");
      await db.exec('INSERT INTO proto.orders VALUES (30, 3)');
      await db.exec('DELETE FROM proto.orders WHERE id IN (2, 30)');
      await client.settle();
      client.check();
      assert.deepEqual(ops, ['replace', 'replace', 'remove', 'remove']);
      assertSame(s.rows(), await db.rows('SELECT * FROM proto.orders WHERE id = 1'), 'what changed');
      await client.unsubscribe('orders');
    });

    test('unsubscribing while it loads', async () => {
      for (let i = 0; i < 20; i += 1) {
        const opening = client.subscribe('orders').then(() => 'subscribed', (error) => error.code ?? error);
        const ending = client.request('unsubscribe', { channel: 'orders' });
        await ending;
        // Every request is answered, this one too.
        const outcome = await within(30000, opening, 'answer to "subscribe"');
        assert.match(String(outcome), /^(subscribed|57014)$/);
        client.subscriptions.delete('orders');
      }
      const s = await client.open('orders');
      await same(s, 'SELECT * FROM proto.orders');
      await client.unsubscribe('orders');
    });
  });

  describe('resuming', () => {
    const select = 'SELECT * FROM proto.orders';

    test('from a position, with what was missed', async () => {
      let client = await connect();
      let s = await client.open('orders');
      for (let i = 0; i < 5; i += 1) {
        const held = s;
        await client.cut();
        await db.exec(`INSERT INTO proto.orders VALUES (${100 + i}, 1); UPDATE proto.orders SET status = 'r${i}' WHERE id % 3 = ${i % 3}`);
        client = await connect();
        s = await client.open('orders', { from: held.position, cache: held });
        assert.equal(s.recovered, true);
        await same(s, select);
      }
      await client.close();
    });

    test('from the position of a sync, a ready, a frame and a ping', async () => {
      let client = await connect();
      let s = await client.open('orders');
      const positions = [];
      const note = async (position) => positions.push([position, await db.rows(select), [...s.rows()]]);
      await note(s.position);
      await db.exec("UPDATE proto.orders SET status = 'p1'");
      await client.settle();
      await note(s.position);
      await note((await client.sync()).position);
      const { pings } = client;
      await until(() => client.pings > pings, 'ping');
      await note(s.position);
      await db.exec("UPDATE proto.orders SET status = 'p2' WHERE id > 1; DELETE FROM proto.orders WHERE id = 104");
      await client.close();
      for (const [position, , rows] of positions) {
        client = await connect();
        const cache = { entities: new Map([['orders', { rows: new Map(rows.map((row) => [`{"id":${row.id.slice(1)}}`, row])) }]]) };
        s = await client.open('orders', { from: position, cache });
        assert.equal(s.recovered, true);
        await same(s, select);
        await client.close();
      }
    });

    test('a position of another identity gives a snapshot', async () => {
      const ada = await connect();
      const s = await ada.open('orders');
      const bob = await connect({ token: await db.token({ ...CLAIMS, sub: 'bob' }) });
      const t = await bob.open('orders', { from: s.position, cache: s });
      assert.equal(t.recovered, false);
      await same(t, select);
      await ada.close();
      await bob.close();
    });

    test('positions that were never given are refused or give a snapshot', async () => {
      const client = await connect();
      const s = await client.open('orders');
      const { position } = s;
      await client.unsubscribe('orders');
      for (const garbage of ['', 'x', '!!!', 'A'.repeat(position.length), position.slice(0, -1), `${position}A`, 'ü'.repeat(40), '0/1234']) {
        const outcome = await client.open('orders', { from: garbage, cache: s }).catch((error) => {
          if (error.code === undefined) throw error;
          return error;
        });
        if (outcome instanceof Error) {
          assert.equal(outcome.code, '22023', garbage);
        } else {
          assert.equal(outcome.recovered, false, garbage);
          await same(outcome, select);
          await client.unsubscribe('orders');
        }
      }
      // Each character of a real one, changed
      for (let i = 0; i < position.length; i += 1) {
        const other = `${position.slice(0, i)}${position[i] === 'A' ? 'B' : 'A'}${position.slice(i + 1)}`;
        const outcome = await client.open('orders', { from: other, cache: s }).catch((error) => {
          if (error.code === undefined) throw error;
          return null;
        });
        if (outcome) {
          assert.equal(outcome.recovered, false, `character ${i}`);
          await client.unsubscribe('orders');
        }
      }
      await assert.rejects(client.request('subscribe', { channel: 'orders', from: 17 }), { code: '22023' });
      await client.close();
    });

    test('a channel that was defined anew in the meantime gives a snapshot', async () => {
      await db.exec(`CREATE TABLE proto.anew (id int PRIMARY KEY, hidden bool NOT NULL DEFAULT false);
        SELECT changefeed.create_channel('anew', 'proto.anew'); INSERT INTO proto.anew VALUES (1, false), (2, true)`);
      const client = await connect();
      const s = await client.openSoon('anew');
      const from = s.position;
      await client.close();
      await db.exec(`SELECT changefeed.drop_channel('anew'); SELECT changefeed.create_channel('anew', 'proto.anew', filter => 'NOT hidden')`);
      const later = await connect();
      const again = await later.subscribe('anew', { from });
      await again.ready();
      assert.equal(again.recovered, false);
      assert.equal(again.entities.get('anew').rows.size, 1);
      await later.close();
    });

    test('several channels of one connection, each from its own position', async () => {
      let client = await connect();
      const names = ['orders', 'orders:1', 'orders:*'];
      const held = [];
      for (const name of names) {
        held.push(await client.open(name));
        await db.exec("UPDATE proto.orders SET status = 's' || random()");
      }
      await client.cut();
      await db.exec("UPDATE proto.orders SET status = 't' || random()");
      client = await connect();
      const resumed = await Promise.all(held.map((s) => client.open(s.name, { from: s.position, cache: s })));
      assert.deepEqual(resumed.map(({ recovered }) => recovered), [true, true, true]);
      await db.exec("UPDATE proto.orders SET status = 'u' || random()");
      await same(resumed[0], select);
      await same(resumed[1], `${select} WHERE customer_id = 1`);
      await same(resumed[2], `${select} WHERE customer_id IS NOT NULL`);
      await client.close();
    });
  });

  describe('definitions', () => {
    let client;
    before(async () => { client = await connect(); });
    after(() => client.close());

    test('a channel exists for clients as soon as its creation has committed', async () => {
      for (let i = 0; i < 10; i += 1) {
        await db.exec(`CREATE TABLE proto.fresh_${i} (id int PRIMARY KEY); SELECT changefeed.create_channel('fresh_${i}', 'proto.fresh_${i}')`);
        await client.open(`fresh_${i}`);
      }
    });

    test('a role is allowed as soon as that has committed', async () => {
      for (let i = 0; i < 10; i += 1) {
        await db.exec(`CREATE ROLE proto_fresh_${i}; SELECT changefeed.allow_role('proto_fresh_${i}')`);
        const fresh = await connect({ token: await db.token({ role: `proto_fresh_${i}` }) });
        await fresh.close();
      }
    });

    test('a role that is disallowed is out', async () => {
      await db.exec("CREATE ROLE proto_out IN ROLE proto_web; SELECT changefeed.allow_role('proto_out')");
      const out = await Client.connectSoon({ token: await db.token({ role: 'proto_out' }) });
      const s = await out.open('orders');
      await db.exec("SELECT changefeed.disallow_role('proto_out')");
      await within(30000, out.ended, 'closed');
      assert.equal(s.state, 'ended');
      await assert.rejects(connect({ token: await db.token({ role: 'proto_out' }) }), { code: '42501' });
    });

    async function table(name, columns = 'id int PRIMARY KEY, v text') {
      await db.exec(`CREATE TABLE proto.${name} (${columns}); INSERT INTO proto.${name} VALUES (1, 'a'), (2, 'b'), (3, 'c');
        SELECT changefeed.create_channel('${name}', 'proto.${name}')`);
      return client.openSoon(name);
    }

    test('TRUNCATE', async () => {
      const s = await table('cut');
      await db.exec('TRUNCATE proto.cut');
      await same(s, 'SELECT * FROM proto.cut');
      assert.equal(s.resyncs.length, 1);
      await db.exec("BEGIN; INSERT INTO proto.cut VALUES (1, 'x'); TRUNCATE proto.cut; INSERT INTO proto.cut VALUES (2, 'y'); COMMIT");
      await same(s, 'SELECT * FROM proto.cut');
      await db.exec("INSERT INTO proto.cut VALUES (3, 'z')");
      await same(s, 'SELECT * FROM proto.cut');
    });

    test('ALTER TABLE: columns added, renamed, retyped and dropped', async () => {
      const s = await table('altered');
      const select = 'SELECT * FROM proto.altered';
      for (const sql of [
        "ALTER TABLE proto.altered ADD COLUMN w int NOT NULL DEFAULT 7; UPDATE proto.altered SET v = 'd' WHERE id = 1",
        'ALTER TABLE proto.altered RENAME COLUMN w TO x; UPDATE proto.altered SET x = 8 WHERE id = 2',
        "BEGIN; UPDATE proto.altered SET v = 'e'; ALTER TABLE proto.altered ADD COLUMN y text; UPDATE proto.altered SET y = v; COMMIT",
        'ALTER TABLE proto.altered ALTER COLUMN x TYPE numeric(10,2); UPDATE proto.altered SET x = x + 0.25 WHERE id = 3',
        'ALTER TABLE proto.altered ALTER COLUMN id TYPE bigint; INSERT INTO proto.altered VALUES (5000000000)'.replace('VALUES (5000000000)', "(id, x) VALUES (5000000000, 1)"),
        'ALTER TABLE proto.altered DROP COLUMN v; UPDATE proto.altered SET x = x + 1',
        "INSERT INTO proto.altered (id, x, y) VALUES (9, 9, 'nine'); DELETE FROM proto.altered WHERE id = 1",
        'VACUUM FULL proto.altered; UPDATE proto.altered SET x = x * 2',
        'CLUSTER proto.altered USING altered_pkey; UPDATE proto.altered SET x = x * 2',
      ]) {
        await db.exec(sql);
        await same(s, select, sql);
      }
    });

    test('what changes nothing for clients disturbs nobody', async () => {
      const s = await table('quiet');
      await db.exec('ANALYZE proto.quiet; VACUUM proto.quiet; CREATE INDEX ON proto.quiet (v); REINDEX TABLE proto.quiet; CREATE TABLE proto.unrelated (x int); COMMENT ON TABLE proto.quiet IS \'c\'');
      await db.exec("UPDATE proto.quiet SET v = v || '!'");
      await same(s, 'SELECT * FROM proto.quiet');
      assert.deepEqual(s.resyncs, []);
    });

    test('RENAME and SET SCHEMA of the table', async () => {
      const s = await table('renamed');
      await db.exec("ALTER TABLE proto.renamed RENAME TO renamed2; UPDATE proto.renamed2 SET v = 'after' WHERE id = 1");
      await same(s, 'SELECT * FROM proto.renamed2');
      await db.exec("CREATE SCHEMA proto2; GRANT USAGE ON SCHEMA proto2 TO proto_web; ALTER TABLE proto.renamed2 SET SCHEMA proto2; UPDATE proto2.renamed2 SET v = 'moved' WHERE id = 2");
      await same(s, 'SELECT * FROM proto2.renamed2');
    });

    test('DROP TABLE revokes', async () => {
      const s = await table('dropped');
      await db.exec('DROP TABLE proto.dropped');
      await until(() => s.state === 'ended', () => `revoked, not ${s.state}`);
      assert.ok(s.revoked.reason);
      await client.settle();
    });

    test('drop_channel revokes, and it can be created again', async () => {
      const s = await table('gone');
      await db.exec("SELECT changefeed.drop_channel('gone')");
      await until(() => s.state === 'ended', 'revoked');
      assert.equal(s.revoked.reason, 'channel_dropped');
      await assert.rejects(client.subscribe('gone'), { code: '42704' });
      await db.exec("SELECT changefeed.create_channel('gone', 'proto.gone')");
      await same(await client.openSoon('gone'), 'SELECT * FROM proto.gone');
    });

    test('add_source and drop_source under a subscription', async () => {
      const s = await table('sourced');
      await db.exec("CREATE TABLE proto.second (no int PRIMARY KEY); GRANT SELECT ON proto.second TO proto_web; INSERT INTO proto.second VALUES (1); SELECT changefeed.add_source('sourced', 'proto.second')");
      await until(() => s.resyncs.length === 1, 'resync');
      await client.settle();
      const both = async () => {
        await client.settle();
        client.check();
        for (const name of ['sourced', 'second']) assertSame(s.rows(name), await db.rowsAs(CLAIMS, `SELECT * FROM proto.${name}`), name);
      };
      await both();
      await db.exec("INSERT INTO proto.second VALUES (2); UPDATE proto.sourced SET v = 'both'");
      await both();
      await db.exec("SELECT changefeed.drop_source('sourced', 'proto.sourced'); INSERT INTO proto.second VALUES (3)");
      await client.settle();
      assert.deepEqual([...s.entities.keys()], ['second']);
      assertSame(s.rows('second'), await db.rowsAs(CLAIMS, 'SELECT * FROM proto.second'), 'second');
      assert.deepEqual(s.resyncs, ['channel_changed', 'channel_changed']);
    });

    test('a partitioned table', async () => {
      await db.exec(`CREATE TABLE proto.parts (id int, day int, v text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
        CREATE TABLE proto.parts_1 PARTITION OF proto.parts FOR VALUES FROM (1) TO (10);
        CREATE TABLE proto.parts_2 (v text, junk int, day int NOT NULL, id int NOT NULL); ALTER TABLE proto.parts_2 DROP COLUMN junk;
        ALTER TABLE proto.parts ATTACH PARTITION proto.parts_2 FOR VALUES FROM (10) TO (20);
        INSERT INTO proto.parts VALUES (1, 1, 'a'), (2, 11, 'b');
        SELECT changefeed.create_channel('parts', 'proto.parts')`);
      const s = await client.openSoon('parts');
      const select = 'SELECT * FROM proto.parts';
      await same(s, select);
      for (const sql of [
        "INSERT INTO proto.parts VALUES (3, 2, 'c'), (4, 12, 'd'); UPDATE proto.parts SET v = v || '!'",
        'UPDATE proto.parts SET day = day + 9 WHERE day < 10',
        'DELETE FROM proto.parts WHERE id = 2',
        "CREATE TABLE proto.parts_3 PARTITION OF proto.parts FOR VALUES FROM (20) TO (30); ALTER TABLE proto.parts_3 REPLICA IDENTITY FULL; INSERT INTO proto.parts VALUES (7, 21, 'new')",
        'TRUNCATE proto.parts_2',
        'ALTER TABLE proto.parts DETACH PARTITION proto.parts_3',
        'ALTER TABLE proto.parts ATTACH PARTITION proto.parts_3 FOR VALUES FROM (20) TO (30)',
        'DROP TABLE proto.parts_1',
      ]) {
        await db.exec(sql);
        await same(s, select, sql);
      }
    });
  });

  describe('values', () => {
    const COLUMNS = {
      i2: ['int2', '-32768', '32767'], i8: ['int8', '9223372036854775807', '-9007199254740993'],
      n: ['numeric', '12345678901234567890.123456789012345678900', '-0.00'], n2: ['numeric(10,2)', '1.10', '0'],
      nan: ['numeric', "'NaN'", "'Infinity'"],
      f4: ['float4', '0.1', "'-Infinity'"], f8: ['float8', '0.30000000000000004', '1e-300'],
      b: ['bool', 'true', 'false'],
      t: ['text', "'quote \" back \\ tab \t nl \n ctl \x01 é 日本 🐘 </script>'", "''"],
      c: ['char(5)', "'ab'", "'abcde'"], v: ['varchar(10)', "'x '", "'ünï'"], nm: ['name', "'nm'", "'x'"],
      by: ['bytea', "'\\x00ff10'", "''"],
      d: ['date', "'2026-11-21'", "'infinity'"], ts: ['timestamp', "'2026-11-21 10:00:00.123456'", "'-infinity'"],
      tz: ['timestamptz', "'2026-11-21 10:00:00.5+02'", "'0044-03-15 12:00:00+00 BC'"],
      tm: ['time', "'10:00:00.25'", "'24:00:00'"], iv: ['interval', "'1 year 2 mons -3 days 04:05:06.7'", "'-1 s'"],
      u: ['uuid', "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", "'00000000-0000-0000-0000-000000000000'"],
      j: ['json', `'{"b": 1, "a": [1.10, null, {"x": "y"}], "big": 12345678901234567890}'`, "'null'"],
      jb: ['jsonb', `'{"b": 1, "a": [1.10, null, {"x": "y"}], "big": 12345678901234567890}'`, "'[]'"],
      ai: ['int[]', "'{1,NULL,3}'", "'{{1,2},{3,4}}'"], at: ['text[]', `'{"a b","c\\"d",NULL,""}'`, "'{}'"],
      ao: ['int[]', "'[0:1]={5,6}'", 'NULL'],
      e: ['proto.mood', "'happy'", "'sad'"], dom: ['proto.positive', '1', '20000000000'],
      comp: ['proto.pair', "ROW(1, 'x y')", "ROW(NULL, NULL)"], r: ['int4range', "'[1,5)'", "'empty'"],
      inet: ['inet', "'10.0.0.1/8'", "'::1'"], x: ['xml', "'<a b=\"c\"/>'", "'<x/>'"], bits: ['bit varying', "B'101'", "B''"],
      money: ['money', '12.34', '-0.5'], pt: ['point', "'(1,2.5)'", "'(0,0)'"], tsv: ['tsvector', "'a:1 b:2'::tsvector", "''::tsvector"],
      reg: ['regclass', "'proto.orders'", "'pg_class'"], oid: ['oid', '4294967295', '0'], ch: ['"char"', "'a'", "'b'"],
    };
    if (process.env.CHANGEFEED_DECODER === 'wal2json') {
      // Tables with columns of these types are refused.
      delete COLUMNS.x;
      delete COLUMNS.reg;
    }
    const names = Object.keys(COLUMNS);

    test('are those of to_jsonb, in snapshot and changes', async () => {
      await db.exec(`CREATE TYPE proto.mood AS ENUM ('happy', 'sad'); CREATE DOMAIN proto.positive AS numeric CHECK (VALUE > 0);
        CREATE TYPE proto.pair AS (a int, b text);
        CREATE TABLE proto.vals (id int PRIMARY KEY, ${names.map((name) => `"${name}" ${COLUMNS[name][0]}`).join(', ')},
          gen int GENERATED ALWAYS AS (id * 2) STORED, "Odd ""name" int DEFAULT 1);
        INSERT INTO proto.vals (id, ${names.map((name) => `"${name}"`)}) VALUES (1, ${names.map((name) => COLUMNS[name][1])}), (2, ${names.map((name) => COLUMNS[name][2])});
        INSERT INTO proto.vals (id) VALUES (3);
        SELECT changefeed.create_channel('vals', 'proto.vals')`);
      const client = await connect();
      const s = await client.openSoon('vals');
      const select = 'SELECT * FROM proto.vals';
      await same(s, select, 'snapshot');
      await db.exec(`INSERT INTO proto.vals (id, ${names.map((name) => `"${name}"`)}) VALUES (11, ${names.map((name) => COLUMNS[name][1])}), (12, ${names.map((name) => COLUMNS[name][2])})`);
      await same(s, select, 'insert');
      for (const name of names) {
        await db.exec(`UPDATE proto.vals SET "${name}" = ${COLUMNS[name][2]} WHERE id = 1; UPDATE proto.vals SET "${name}" = ${COLUMNS[name][1]} WHERE id = 3`);
      }
      await same(s, select, 'updates');
      await db.exec('UPDATE proto.vals SET id = id + 100');
      await same(s, select, 'keys');
      await client.close();
    });

    test('settings of the writer do not show', async () => {
      const client = await connect();
      const s = await client.open('vals');
      const other = new Session();
      await other.exec("SET timezone = 'Asia/Tokyo'; SET datestyle = 'German'; SET intervalstyle = 'iso_8601'; SET bytea_output = 'escape'; SET extra_float_digits = -5; SET search_path = proto; UPDATE vals SET tz = tz + interval '1 day', iv = iv * 2, by = by || '\\x01', f8 = f8 * 3, d = d, money = money * 2" + (COLUMNS.reg ? ", reg = 'vals'" : ''));
      await same(s, 'SELECT * FROM proto.vals');
      await other.close();
      await client.close();
    });

    test('values beyond JavaScript numbers as keys', async () => {
      await db.exec(`CREATE TABLE proto.keys (a int8, b numeric, c timestamptz, d text, e uuid, PRIMARY KEY (a, b, c, d, e), n int);
        INSERT INTO proto.keys SELECT 9007199254740993, 1.10, '2026-01-01 00:00:00+02', 'a"b', gen_random_uuid(), 1;
        SELECT changefeed.create_channel('keys', 'proto.keys')`);
      const client = await connect();
      const s = await client.openSoon('keys');
      await db.exec("UPDATE proto.keys SET n = 2; INSERT INTO proto.keys SELECT 9007199254740992, b, c, d, e FROM proto.keys; UPDATE proto.keys SET b = 1.1, n = 5 WHERE a = 9007199254740993");
      await same(s, 'SELECT * FROM proto.keys');
      assert.ok(s.rows().every((row) => isNumber(row.a)));
      await db.exec('DELETE FROM proto.keys');
      await same(s, 'SELECT * FROM proto.keys');
      await client.close();
    });

    test('a large value that did not change is not sent again', async () => {
      await db.exec(`CREATE TABLE proto.big (id int PRIMARY KEY, body text, v int); ALTER TABLE proto.big ALTER body SET STORAGE EXTERNAL;
        INSERT INTO proto.big SELECT i, (SELECT string_agg(md5(i::text || g), '') FROM generate_series(1, 6400) g), 1 FROM generate_series(1, 3) i;
        SELECT changefeed.create_channel('big', 'proto.big')`);
      const client = await connect();
      const s = await client.openSoon('big');
      const select = 'SELECT * FROM proto.big';
      await same(s, select);
      const sets = [];
      s.onChange = (change) => sets.push(change.op === 'merge' ? Object.keys(change.set) : change.op);
      await db.exec('UPDATE proto.big SET v = 2 WHERE id = 1');
      await same(s, select);
      assert.deepEqual(sets, [['v']]);
      await db.exec("UPDATE proto.big SET body = body || 'x' WHERE id = 2");
      await db.exec('UPDATE proto.big SET id = 30, v = 3 WHERE id = 3');
      await db.exec('BEGIN; UPDATE proto.big SET v = 4 WHERE id = 1; UPDATE proto.big SET v = 5 WHERE id = 1; COMMIT');
      await db.exec("BEGIN; UPDATE proto.big SET body = 'short' WHERE id = 1; UPDATE proto.big SET v = 6 WHERE id = 1; COMMIT");
      await db.exec('BEGIN; INSERT INTO proto.big SELECT 50, body, 1 FROM proto.big WHERE id = 2; UPDATE proto.big SET v = 2 WHERE id = 50; COMMIT');
      await same(s, select);
      assert.deepEqual(sets[1], ['body']);
      assert.deepEqual(s.resyncs, []);
      await client.close();
    });
  });

  describe('volume', () => {
    let db2;
    before(async () => {
      db2 = new Session();
      // Who reads nothing for a while is not to be taken for gone.
      await reload(db, { 'changefeed.heartbeat': '60s' });
      await db.exec(`CREATE TABLE proto.many (id int PRIMARY KEY, v text, pad text);
        INSERT INTO proto.many SELECT i, 'v' || i, repeat('x', 60) FROM generate_series(1, 200000) i;
        SELECT changefeed.create_channel('many', 'proto.many')`);
    });
    after(async () => {
      await reload(db, { 'changefeed.heartbeat': null });
      await db2.close();
    });

    test('a snapshot of 200000 rows for a slow reader delays nobody and ends right', async () => {
      const slow = await connect();
      const quick = await connect();
      const q = await quick.open('orders');
      const s = await slow.subscribe('many');
      slow.socket.pause();
      for (let i = 0; i < 20; i += 1) {
        await db.exec(`UPDATE proto.many SET v = 'w${i}' WHERE id % 20000 = ${i}; DELETE FROM proto.many WHERE id = ${1000 + i};
          INSERT INTO proto.many VALUES (${300000 + i}, 'new'); UPDATE proto.orders SET status = 'q${i}' WHERE id = 1`);
        await quick.sync();
      }
      await same(q, 'SELECT * FROM proto.orders');
      assert.equal(s.state, 'filling');
      slow.socket.resume();
      await s.ready();
      await same(s, 'SELECT * FROM proto.many');
      assert.deepEqual(s.resyncs, []);
      await slow.close();
      await quick.close();
    });

    test('two at once, one cut off in its snapshot', async () => {
      const one = await connect();
      const two = await connect();
      const [s, t] = await Promise.all([one.subscribe('many'), two.subscribe('many')]);
      await until(() => s.state !== 'new' && one.received > 5, 'pages');
      await one.cut();
      await t.ready();
      await same(t, 'SELECT * FROM proto.many');
      await two.close();
    });

    test('a transaction larger than a frame comes in parts', async () => {
      const client = await connect();
      const s = await client.open('many');
      await db.exec("UPDATE proto.many SET v = 'part' WHERE id <= 3000");
      await same(s, 'SELECT * FROM proto.many');
      assert.ok(client.parts > 2, `${client.parts} parts`);
      assert.equal(client.transactions, 1);
      assert.deepEqual(s.resyncs, []);
      await client.close();
    });

    test('a transaction larger than max_transaction is a resync', async () => {
      const client = await connect();
      const s = await client.open('many');
      const o = await client.open('orders');
      await db.exec("BEGIN; UPDATE proto.orders SET status = 'with it'; UPDATE proto.many SET v = 'large ' || id; COMMIT");
      await client.settle(60000);
      assert.ok(s.resyncs.length >= 1);
      await same(s, 'SELECT * FROM proto.many');
      await same(o, 'SELECT * FROM proto.orders');
      await db.exec("UPDATE proto.many SET v = 'after' WHERE id = 5");
      await same(s, 'SELECT * FROM proto.many');
      await client.close();
    });

    test('a slow reader falls behind the send buffer and catches up', async () => {
      await db.exec("CREATE TABLE proto.flood (id int PRIMARY KEY, v text); SELECT changefeed.create_channel('flood', 'proto.flood')");
      const slow = await connect();
      const quick = await connect();
      const s = await slow.openSoon('flood');
      const o = await slow.open('orders');
      const q = await quick.open('flood');
      slow.socket.pause();
      for (let i = 0; i < 60; i += 1) {
        await db.exec(`INSERT INTO proto.flood SELECT ${i} * 200 + g, repeat(md5(g::text), 30) FROM generate_series(1, 200) g; UPDATE proto.orders SET status = 'f${i}'`);
      }
      await same(q, 'SELECT * FROM proto.flood');
      slow.socket.resume();
      await same(s, 'SELECT * FROM proto.flood');
      await same(o, 'SELECT * FROM proto.orders');
      assert.deepEqual([s.resyncs, o.resyncs, q.resyncs], [[], [], []]);
      await slow.close();
      await quick.close();
    });

    test('falling behind before the first change costs no snapshot', async () => {
      const slow = await connect();
      const quick = await connect();
      const q = await quick.open('flood');
      await db.exec("INSERT INTO proto.flood VALUES (-1, 'between the connection and its subscription')");
      await quick.settle();
      const s = await slow.open('flood');
      const m = await slow.subscribe('many');
      slow.socket.pause(); // so pages fill its socket
      for (let i = 0; i < 8; i += 1) {
        await db.exec(`INSERT INTO proto.flood SELECT -1000 - ${i} * 100 - g, repeat(md5(g::text), 30) FROM generate_series(1, 100) g`);
      }
      await same(q, 'SELECT * FROM proto.flood');
      slow.socket.resume();
      await same(s, 'SELECT * FROM proto.flood');
      await same(m, 'SELECT * FROM proto.many');
      assert.deepEqual([s.resyncs, m.resyncs, q.resyncs], [[], [], []]);
      await slow.close();
      await quick.close();
    });

    test('one that falls behind the history is resynced', async () => {
      const slow = await connect();
      const quick = await connect();
      const s = await slow.open('flood');
      slow.socket.pause();
      // 1,024 bytes a row are not compressed yet; 24 MB are more than the history of 16 MB.
      for (let i = 0; i < 60; i += 1) {
        const rows = `id BETWEEN ${i * 200} AND ${i * 200 + 199}`;
        for (const n of [1, 2]) await db.exec(`UPDATE proto.flood SET v = repeat(md5(random()::text || ${n}), 32) WHERE ${rows}`);
      }
      await quick.settle(60000); // or the history would still hold what is to come
      slow.socket.resume();
      await same(s, 'SELECT * FROM proto.flood');
      assert.ok(s.resyncs.length > 0, 'resync');
      await slow.close();
      await quick.close();
    });
  });
});
