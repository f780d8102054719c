// Clients that call SQL functions, and versions of rows.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { Client, until } from './lib/client.mjs';
import { canonical } from './lib/json.mjs';
import { quote, reload, Session } from './lib/psql.mjs';

const SUB = "(current_setting('request.jwt.claims', true)::json->>'sub')";
const plain = (value) => JSON.parse(canonical(value));

let db;
const clients = [];

async function connect(sub = 'ada', role = 'calls_web') {
  const client = await Client.connectSoon({ token: await db.token({ role, sub }) });
  clients.push(client);
  return client;
}

/** The whole answer, an error as well. */
const call = (client, name, args = {}, rest = {}) => client.request('call', { function: name, args, ...rest }, { ms: 20000 })
  .then(plain, (error) => plain(error.reply ?? { code: 'connection', message: error.message }));

const result = async (client, name, args, rest) => {
  const answer = await call(client, name, args, rest);
  assert.equal(answer.type, 'result', JSON.stringify(answer));
  return answer.result;
};

async function fails(client, code, name, args, rest) {
  const answer = await call(client, name, args, rest);
  assert.equal(answer.type, 'error', JSON.stringify(answer));
  assert.equal(answer.code, code, JSON.stringify(answer));
  return answer;
}

/** Makes functions `calls.<name>` and exposes them. */
async function expose(functions) {
  for (const [signature, rest] of Object.entries(functions)) {
    await db.exec(`CREATE FUNCTION calls.${signature} ${rest}`);
    const name = signature.match(/^\w+/)[0];
    await db.exec(`SELECT changefeed.expose_function(oid) FROM pg_proc WHERE proname = '${name}' AND pronamespace = 'calls'::regnamespace`);
  }
}

const plpgsql = (body, returns = 'int', declare = '') => `RETURNS ${returns} LANGUAGE plpgsql AS $fn$ ${declare} BEGIN ${body} END $fn$`;
const sql = (body, returns) => `RETURNS ${returns} LANGUAGE sql AS $fn$ ${body} $fn$`;

async function setting(name, value) {
  await db.exec(value === null ? `ALTER SYSTEM RESET ${name}` : `ALTER SYSTEM SET ${name} = ${quote(value)}`);
  await db.exec('SELECT pg_reload_conf()');
}

const callers = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'changefeed query worker' AND query LIKE 'calling function %' AND state = 'active'";
// One that has answered may still be tidying up.
const sleepers = `${callers} AND wait_event = 'PgSleep'`;
const held = `${callers} AND wait_event = 'advisory'`;

/** From now on the functions `held` and `waiting` come to their end only when the one that is returned has been called. */
async function hold(t) {
  const session = new Session();
  t.after(() => session.close());
  await session.exec('SELECT pg_advisory_lock(4716)');
  return () => session.exec('SELECT pg_advisory_unlock(4716)');
}

before(async () => {
  db = new Session();
  await db.exec(`DROP SCHEMA IF EXISTS calls CASCADE; CREATE SCHEMA calls; CREATE ROLE calls_web; CREATE ROLE calls_other;
    GRANT USAGE ON SCHEMA calls TO calls_web, calls_other;
    SELECT changefeed.allow_role('calls_web'), changefeed.allow_role('calls_other');
    CREATE TABLE calls.notes (id int PRIMARY KEY, owner text NOT NULL DEFAULT ${SUB}, body text, secret text);
    GRANT SELECT (id, owner, body), INSERT (id, owner, body), UPDATE (body, owner), DELETE ON calls.notes TO calls_web;
    ALTER TABLE calls.notes ENABLE ROW LEVEL SECURITY;
    CREATE POLICY own ON calls.notes USING (owner = ${SUB});
    CREATE TABLE calls.log (n int, what text); GRANT INSERT, SELECT ON calls.log TO calls_web;
    SELECT changefeed.create_channel('calls.notes', 'calls.notes');`);
  await expose({
    'sleep(ms int)': sql('SELECT pg_sleep($1 / 1000.0)', 'void'),
    'write(n int, what text DEFAULT NULL)': sql('INSERT INTO calls.log VALUES ($1, $2) RETURNING n', 'int'),
    'slow_write(n int, ms int)': plpgsql('INSERT INTO calls.log VALUES (n); PERFORM pg_sleep(ms / 1000.0); RETURN n;'),
    'put(id int, body text)': sql('INSERT INTO calls.notes (id, body) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET body = excluded.body RETURNING notes.id', 'int'),
    'nothing()': sql('SELECT 1', 'int'),
    'waiting()': sql('SELECT pg_advisory_xact_lock_shared(4716)', 'void'),
    'held()': plpgsql('PERFORM pg_advisory_xact_lock_shared(4716); INSERT INTO calls.log VALUES (-2); RETURN 1;'),
  });
});

after(async () => {
  await Promise.all(clients.map((client) => client.cut()));
  for (const client of clients) client.check();
  await db.exec('ALTER SYSTEM RESET changefeed.call_timeout');
  await db.exec('ALTER SYSTEM RESET changefeed.idempotency_age');
  await db.exec('SELECT pg_reload_conf()');
  await db.close();
});

describe('values', () => {
  test('results of all kinds', async () => {
    await db.exec(`CREATE TYPE calls.pair AS (a int, b text[]); CREATE TYPE calls.mood AS ENUM ('sad', 'glad');
      CREATE TYPE calls.temperature AS ENUM ('warm');
      CREATE FUNCTION calls.to_json(calls.temperature) RETURNS json LANGUAGE sql AS $$ SELECT json_build_object('t', $1::text, 'u', current_user) $$;
      CREATE CAST (calls.temperature AS json) WITH FUNCTION calls.to_json(calls.temperature)`);
    await expose({
      'r_void()': sql('SELECT', 'void'),
      'r_null()': sql('SELECT NULL::int', 'int'),
      'r_big()': sql('SELECT 12345678901234567890.10', 'numeric'),
      'r_text()': sql(`SELECT E'"q" \\\\ \\n \\u00e4'`, 'text'),
      'r_json()': sql(`SELECT '{"b": 1, "a": [null]}'::json`, 'json'),
      'r_pair()': sql(`SELECT ROW(1, '{x,y}')::calls.pair`, 'calls.pair'),
      'r_out(OUT x int, OUT y text)': sql(`SELECT 1, 'y'`, 'record'),
      'r_table()': sql(`VALUES (1, 'a'), (2, NULL)`, 'TABLE (n int, t text)'),
      'r_set()': sql('SELECT generate_series(1, 3)', 'SETOF int'),
      'r_empty()': sql('SELECT 1 WHERE false', 'SETOF int'),
      'r_array()': sql(`SELECT ARRAY['sad', 'glad']::calls.mood[]`, 'calls.mood[]'),
      'r_time()': sql(`SELECT timestamptz '2026-01-02 03:04:05+02'`, 'timestamptz') + ` SET TimeZone = 'Asia/Tokyo' SET DateStyle = 'German'`,
      'r_cast()': sql(`SELECT 'warm'::calls.temperature`, 'calls.temperature'),
      'r_rows()': plpgsql('RETURN QUERY SELECT i, NULL::text[] FROM generate_series(1, 2) i;', 'SETOF calls.pair'),
    });
    const client = await connect();
    const got = {};
    for (const name of ['void', 'null', 'text', 'json', 'pair', 'out', 'table', 'set', 'empty', 'array', 'time', 'cast', 'rows']) got[name] = await result(client, `r_${name}`);
    assert.deepEqual(got, {
      void: null, null: null, text: '"q" \\ \n ä', json: { b: 1, a: [null] }, pair: { a: 1, b: ['x', 'y'] }, out: { x: 1, y: 'y' },
      table: [{ n: 1, t: 'a' }, { n: 2, t: null }], set: [1, 2, 3], empty: [], array: ['sad', 'glad'], time: '2026-01-02T01:04:05+00:00',
      cast: { t: 'warm', u: 'calls_web' }, rows: [{ a: 1, b: null }, { a: 2, b: null }],
    });
    assert.match(canonical(await client.request('call', { function: 'r_big' })), /"result":12345678901234567890\.10/);
  });

  test('arguments of all kinds, and what is wrong with them', async () => {
    await db.exec(`CREATE DOMAIN calls.even AS int CHECK (VALUE % 2 = 0)`);
    await expose({
      'echo(i int, t text, j jsonb, a int[], p calls.pair, m calls.mood, e calls.even, d date, n numeric DEFAULT 1.50, f bool DEFAULT NULL, OUT result jsonb)':
        sql('SELECT jsonb_build_object($$i$$, i, $$t$$, t, $$j$$, j, $$a$$, a, $$p$$, p, $$m$$, m, $$e$$, e, $$d$$, d, $$n$$, n, $$f$$, f)', 'jsonb'),
      'many(VARIADIC v int[])': sql('SELECT sum(x)::int FROM unnest(v) x', 'int'),
      'strict(i int)': `RETURNS int STRICT LANGUAGE sql AS 'SELECT $1 + 1'`,
    });
    const client = await connect();
    const args = { i: 1, t: 'x', j: { k: [1, null] }, a: [1, null, 3], p: { a: 2, b: ['c'] }, m: 'glad', e: 4, d: '2026-01-02' };
    assert.deepEqual(await result(client, 'echo', args), { ...args, n: 1.5, f: null });
    assert.deepEqual(await result(client, 'echo', { ...args, f: true, i: null, n: '2.25' }), { ...args, i: null, n: 2.25, f: true });
    assert.equal(await result(client, 'many', { v: [1, 2, 3] }), 6);
    assert.equal(await result(client, 'strict', { i: null }), null);
    for (const [code, change, message] of [
      ['22P02', { i: 'one' }, /^argument "i": invalid input syntax for type integer: "one"/],
      ['22003', { i: 99999999999 }, /^argument "i": /],
      ['22P02', { a: 3 }, /^argument "a": expected JSON array/],
      ['22P02', { m: 'angry' }, /^argument "m": invalid input value for enum/],
      ['23514', { e: 3 }, /^argument "e": value for domain calls.even violates/],
      ['22023', { x: 1 }, /^the function has no argument "x"/],
      ['22023', { result: 1 }, /^the function has no argument "result"/],
      ['22023', { t: undefined }, /^argument "t" is missing/],
    ]) assert.match((await fails(client, code, 'echo', { ...args, ...change })).message, message);
    await fails(client, '08P01', 'echo', [1]);
    await fails(client, '08P01', undefined);
    await fails(client, '22023', 'nothing', {}, { key: '' });
  });
});

describe('rights', () => {
  test('role, claims and policies are the caller\'s', async () => {
    await expose({
      'who()': sql(`SELECT ARRAY[current_user, session_user, current_setting('role'), ${SUB}]`, 'text[]'),
      'notes_seen()': sql('SELECT coalesce(array_agg(id ORDER BY id), $${}$$) FROM calls.notes', 'int[]'),
      'give(id int, owner text)': sql('UPDATE calls.notes SET owner = $2 WHERE id = $1', 'void'),
      'steal_secret()': sql('SELECT max(secret) FROM calls.notes', 'text'),
      'as_owner()': sql('SELECT current_user::text', 'text') + ' SECURITY DEFINER',
      'admin_only()': sql('SELECT 1', 'int'),
    });
    await db.exec('REVOKE EXECUTE ON FUNCTION calls.admin_only() FROM PUBLIC; CREATE FUNCTION calls.hidden() RETURNS int LANGUAGE sql RETURN 1');
    const ada = await connect('ada');
    const bob = await connect('bob');
    assert.deepEqual(await result(ada, 'who'), ['calls_web', 'calls_web', 'calls_web', 'ada']);
    await result(ada, 'put', { id: 1, body: 'a' });
    await result(bob, 'put', { id: 2, body: 'b' });
    assert.deepEqual([await result(ada, 'notes_seen'), await result(bob, 'notes_seen')], [[1], [2]]);
    await fails(bob, '42501', 'put', { id: 1, body: 'mine' });
    await fails(ada, '42501', 'give', { id: 1, owner: 'bob' });
    await fails(ada, '42501', 'steal_secret');
    assert.equal(await result(ada, 'as_owner'), await db.value('SELECT current_user'));
    assert.match((await fails(ada, '42501', 'admin_only')).message, /permission denied for function/);
    for (const name of ['hidden', 'calls.hidden', 'calls.hidden()', "x' OR true", 'pg_sleep']) assert.match((await fails(ada, '42883', name)).message, /is not exposed/);
    const stranger = await connect('eve', 'calls_other');
    await fails(stranger, '42501', 'put', { id: 3, body: 'x' });
    await db.exec('REVOKE USAGE ON SCHEMA calls FROM calls_other');
    assert.match((await fails(stranger, '42501', 'nothing')).message, /permission denied for schema calls/);
    await db.exec('GRANT USAGE ON SCHEMA calls TO calls_other');
    await db.exec("SELECT changefeed.unexpose_function('nothing')");
    await fails(ada, '42883', 'nothing');
    await db.exec("SELECT changefeed.expose_function('calls.nothing()')");
    assert.equal(await result(ada, 'nothing'), 1);
    const nobody = new Client({});
    clients.push(nobody);
    await nobody.opened;
    await fails(nobody, '08003', 'nothing');
  });

  test('errors of the function go to the caller', async () => {
    await expose({
      'raise()': plpgsql(`RAISE EXCEPTION 'sold out' USING ERRCODE = 'P0404', DETAIL = '{"sku":"a1"}', HINT = 'try "b2"', COLUMN = 'x';`),
      'raise_long()': plpgsql(`RAISE EXCEPTION '%', repeat('ä', 100000) USING DETAIL = repeat('d', 100000);`),
      'divide(n int)': sql('SELECT 1 / $1', 'int'),
      'commits()': plpgsql('COMMIT; RETURN 1;'),
    });
    const client = await connect();
    assert.deepEqual(await fails(client, 'P0404', 'raise'), { type: 'error', id: 2, code: 'P0404', message: 'sold out', detail: '{"sku":"a1"}', hint: 'try "b2"' });
    const long = await fails(client, 'P0001', 'raise_long');
    assert.ok(long.message.length === 4000 && long.detail.length === 8000, `${long.message.length} ${long.detail.length}`);
    await fails(client, '22012', 'divide', { n: 0 });
    await fails(client, '2D000', 'commits');
    assert.equal(await result(client, 'divide', { n: 1 }), 1);
  });
});

describe('transactions', () => {
  test('txid is that of the frame', async () => {
    const client = await connect('txid');
    const other = await connect('txid');
    const s = await client.openSoon('calls.notes');
    await other.open('calls.notes');
    const frames = [];
    client.onTransaction = ({ txid }) => frames.push(txid);
    for (let i = 0; i < 3; i += 1) {
      const answer = await call(client, 'put', { id: 10, body: `v${i}` });
      await until(() => frames.length === i + 1, 'frame');
      assert.equal(answer.txid, frames[i]);
    }
    assert.equal(s.rows().length, 1);
    assert.equal((await call(client, 'nothing')).txid, null);
    await client.settle();
    await other.settle();
  });

  test('calls of a connection run in their order, those of others meanwhile', async (t) => {
    const [a, b] = [await connect('a'), await connect('b')];
    const order = [];
    const release = await hold(t);
    const slow = call(a, 'waiting').then(() => order.push('slow'));
    const behind = call(a, 'nothing').then(() => order.push('behind'));
    await call(b, 'nothing').then(() => order.push('other'));
    await release();
    await Promise.all([slow, behind]);
    assert.deepEqual(order, ['other', 'slow', 'behind']);
  });

  test('time limit', async () => {
    await setting('changefeed.call_timeout', '200ms');
    try {
      await expose({
        'stubborn()': plpgsql('INSERT INTO calls.log VALUES (-1); LOOP BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP;'),
        'unimpressed()': plpgsql('INSERT INTO calls.log VALUES (-1); BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN NULL; END; RETURN 1;'),
        'loops()': plpgsql('INSERT INTO calls.log VALUES (-1); LOOP NULL; END LOOP;'),
      });
      const client = await connect();
      await until(async () => /200 ms/.test((await call(client, 'sleep', { ms: 5000 })).message), 'limit', 10000);
      for (const name of ['unimpressed', 'loops', 'stubborn']) await fails(client, '57014', name);
      assert.equal(await db.value('SELECT count(*) FROM calls.log WHERE n = -1'), '0');
      assert.equal(await result(client, 'nothing'), 1);
    } finally {
      await setting('changefeed.call_timeout', null);
    }
  });

  test('a deadlock is tried again', async () => {
    await db.exec('CREATE TABLE calls.two (id int PRIMARY KEY, n int NOT NULL DEFAULT 0); INSERT INTO calls.two VALUES (1), (2); GRANT SELECT, UPDATE ON calls.two TO calls_web');
    await expose({ 'both(a int, b int)': plpgsql('UPDATE calls.two SET n = n + 1 WHERE id = a; PERFORM pg_sleep(0.2); UPDATE calls.two SET n = n + 1 WHERE id = b; RETURN 1;') });
    const [a, b] = [await connect('a'), await connect('b')];
    assert.deepEqual(await Promise.all([result(a, 'both', { a: 1, b: 2 }), result(b, 'both', { a: 2, b: 1 })]), [1, 1]);
    assert.equal(await db.value('SELECT string_agg(n::text, $$,$$) FROM calls.two'), '2,2');
  });

  test('the isolation level of the role, and conflicts under it', async () => {
    await db.exec("ALTER ROLE calls_other SET default_transaction_isolation = 'serializable'; CREATE TABLE calls.on_call (who text); GRANT ALL ON calls.on_call TO calls_other; INSERT INTO calls.on_call VALUES ('a'), ('b')");
    await expose({
      'level()': sql("SELECT current_setting('transaction_isolation')", 'text'),
      'leave(who text)': plpgsql('IF (SELECT count(*) FROM calls.on_call) < 2 THEN RETURN 0; END IF; PERFORM pg_sleep(0.2); DELETE FROM calls.on_call c WHERE c.who = leave.who; RETURN 1;'),
    });
    const [a, b] = [await connect('a', 'calls_other'), await connect('b', 'calls_other')];
    assert.equal(await result(a, 'level'), 'serializable');
    assert.deepEqual((await Promise.all([result(a, 'leave', { who: 'a' }), result(b, 'leave', { who: 'b' })])).sort(), [0, 1]);
    assert.equal(await result(await connect(), 'level'), 'read committed');
  });
});

describe('keys', () => {
  const written = (n) => db.value(`SELECT count(*) FROM calls.log WHERE n = ${n}`);

  test('a call with a key is done once', async () => {
    const client = await connect('key');
    const first = await call(client, 'write', { n: 100, what: 'x' }, { key: 'k100' });
    const again = await call(client, 'write', { what: 'x', n: 100.0 }, { key: 'k100' });
    assert.deepEqual({ ...again, id: 0 }, { ...first, id: 0 });
    const elsewhere = await call(await connect('key'), 'write', { n: 100, what: 'x' }, { key: 'k100' });
    assert.equal(elsewhere.txid, first.txid);
    assert.equal(await written(100), '1');
    for (const [name, args] of [['write', { n: 101, what: 'x' }], ['sleep', { ms: 1 }]]) assert.match((await fails(client, '22023', name, args, { key: 'k100' })).message, /was used for another call/);
    // Another identity has keys of its own.
    assert.notEqual((await call(await connect('other'), 'write', { n: 100, what: 'x' }, { key: 'k100' })).txid, first.txid);
    assert.equal(await written(100), '2');
    // An error is not kept.
    await fails(client, '22012', 'divide', { n: 0 }, { key: 'k102' });
    assert.equal(await result(client, 'divide', { n: 1 }, { key: 'k102' }), 1);
    assert.equal(await result(client, 'sleep', { ms: 1 }, { key: 'void' }), null);
    assert.equal(await result(client, 'sleep', { ms: 1 }, { key: 'void' }), null);
  });

  test('several at a time with one key', async () => {
    const others = await Promise.all([1, 2, 3, 4].map(() => connect('key')));
    const answers = await Promise.all(others.flatMap((client) => [1, 2].map(() => call(client, 'slow_write', { n: 110, ms: 100 }, { key: 'k110' }))));
    assert.equal(new Set(answers.map(({ type, txid, result: n }) => `${type} ${txid} ${n}`)).size, 1, JSON.stringify(answers));
    assert.equal(await written(110), '1');
  });

  test('a key that a session of somebody else holds is waited for', async () => {
    // As if another feed worker's process, of before a restart, were still at it.
    const session = new Session();
    const client = await connect('key');
    await call(client, 'write', { n: 120 }, { key: 'k120' });
    await session.exec("BEGIN; DELETE FROM changefeed.call_result WHERE key = 'k120'");
    const waiting = call(client, 'write', { n: 120 }, { key: 'k120' });
    await until(async () => await db.value(`SELECT count(*) FROM pg_locks WHERE NOT granted AND pid IN (${callers})`) === '1', 'it waits');
    await session.exec('COMMIT');
    assert.equal((await waiting).type, 'result');
    assert.equal(await written(120), '2');
    await session.close();
  });

  for (const key of [undefined, 'k130']) {
    test(`the worker is killed during a call ${key ? 'with' : 'without'} a key`, async () => {
      const client = await connect('key');
      const answer = call(client, 'slow_write', { n: 130, ms: 400 }, { key });
      const pid = await until(async () => (await db.value(sleepers)) || null, 'it runs');
      await db.exec(`SELECT pg_terminate_backend(${pid})`);
      if (key) {
        assert.equal((await answer).result, 130);
        assert.equal(await written(130), '1');
      } else {
        assert.equal((await answer).code, '40003');
        assert.match((await answer).hint, /"key"/);
        assert.equal(await written(130), '0');
      }
      assert.equal(await result(client, 'nothing'), 1);
    });
  }

  test('the gateway is killed during a call: the result is there for whoever repeats it', async () => {
    const client = await connect('key');
    client.socket.on('error', () => {});
    const lost = call(client, 'slow_write', { n: 140, ms: 400 }, { key: 'k140' });
    const pid = await until(async () => (await db.value(sleepers)) || null, 'it runs');
    process.kill(Number(await db.value('SELECT gateway_pid FROM changefeed.stat_feed')), 'SIGKILL');
    assert.equal((await lost).code, 'connection');
    const again = await until(() => connect('key').catch(() => {}), 'another gateway');
    assert.equal(await result(again, 'slow_write', { n: 140, ms: 400 }, { key: 'k140' }), 140);
    assert.equal(await written(140), '1');
    assert.ok(Number(pid) > 0);
  });

  test('old results are removed', async () => {
    const client = await connect('key');
    await setting('changefeed.idempotency_age', '1s');
    try {
      // The first call that is kept sets the clock; how long is read then.
      await until(async () => {
        await call(client, 'write', { n: 150 }, { key: `k150-${Date.now()}` });
        return await db.value("SELECT count(*) FROM changefeed.call_result WHERE key = 'k100'") === '0';
      }, 'removed', 70000);
    } finally {
      await setting('changefeed.idempotency_age', null);
    }
  });
});

describe('over HTTP', () => {
  test('a call is a request', async () => {
    await expose({ 'deep(n int)': sql(`SELECT (repeat('[', n) || repeat(']', n))::jsonb`, 'jsonb') });
    const token = await db.token({ role: 'calls_web', sub: 'http' });
    const post = async (path, body, headers = {}) => {
      const response = await fetch(`${process.env.WS_URL.replace(/^ws/, 'http').replace('/v1/socket', '')}/v1/call/${path}`, {
        method: 'POST', body: JSON.stringify(body), headers: { Authorization: `Bearer ${token}`, 'Content-Type': 'application/json', ...headers },
      });
      return { status: response.status, ...(await response.json()) };
    };
    const first = await post('write', { n: 200 }, { 'Idempotency-Key': 'k200' });
    assert.deepEqual({ ...first, txid: 0 }, { status: 200, type: 'result', result: 200, txid: 0 });
    assert.deepEqual(await post('write', { n: 200 }, { 'Idempotency-Key': 'k200' }), first);
    assert.equal(await db.value('SELECT count(*) FROM calls.log WHERE n = 200'), '1');
    assert.equal((await post('write', { n: 201 }, { 'Idempotency-Key': 'k200' })).status, 400);
    assert.deepEqual(await post('raise', {}), { status: 400, type: 'error', code: 'P0404', message: 'sold out', detail: '{"sku":"a1"}', hint: 'try "b2"' });
    assert.equal((await post('hidden', {})).status, 404);
    assert.equal((await post('admin_only', {})).status, 403);
    assert.equal((await post('deep', { n: 10 })).status, 200);
    assert.equal((await post('deep', { n: 1000 })).code, '54000');
    const client = await connect();
    assert.equal(JSON.stringify(await result(client, 'deep', { n: 1000 })).length, 2000);
  });
});

describe('load', () => {
  test('slow calls of many delay neither changes nor snapshots nor verdicts of others', async (t) => {
    await db.exec(`CREATE TABLE calls.busy (id int PRIMARY KEY, room int, n int); CREATE TABLE calls.rooms (room int, who text); GRANT SELECT ON calls.busy, calls.rooms TO calls_other;
      INSERT INTO calls.busy VALUES (1, 1, 0); INSERT INTO calls.rooms VALUES (1, 'bob');
      CREATE FUNCTION calls.may(r int) RETURNS bool LANGUAGE plpgsql STABLE AS $$ BEGIN RETURN EXISTS (SELECT FROM calls.rooms WHERE room = r AND who = ${SUB}); END $$;
      ALTER TABLE calls.busy ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON calls.busy USING (calls.may(room)); SELECT changefeed.create_channel('calls.busy', 'calls.busy')`);
    const bob = await connect('bob', 'calls_other');
    const s = await bob.openSoon('calls.busy');
    const flood = await Promise.all([1, 2, 3, 4, 5, 6].map((i) => connect(`f${i}`)));
    await reload(db, { 'changefeed.call_timeout': '10min' });
    t.after(() => reload(db, { 'changefeed.call_timeout': null }));
    const release = await hold(t);
    const answers = [];
    for (const client of flood) {
      for (let i = 0; i < 105; i += 1) call(client, 'held').then((answer) => answers.push(answer));
    }
    await until(async () => answers.length === 30 && (await db.value(held)) !== '', 'calls run');
    for (const { code, message } of answers) assert.match(`${code} ${message}`, /^53400 .*100 calls without an answer/);
    // None of them ends before the others have what they want.
    let slowest = 0;
    for (let i = 1; i <= 10; i += 1) {
      const start = Date.now();
      await db.exec(`UPDATE calls.busy SET n = ${i}`);
      await until(() => plain(s.rows())[0].n === i, 'change');
      const late = await connect('bob', 'calls_other');
      await late.open('calls.busy');
      await late.close();
      slowest = Math.max(slowest, Date.now() - start);
    }
    t.diagnostic(`change, connect and snapshot took at most ${slowest} ms`);
    assert.equal(answers.length, 30);
    const running = Number(await db.value(`SELECT count(*) FROM (${callers}) c`));
    assert.ok(running <= 2, `${running} calls run`);
    // What has not begun is forgotten with its connection.
    await Promise.all(flood.map((client) => client.cut()));
    await until(async () => await db.value("SELECT count(*) FROM changefeed.stat_connections WHERE subject LIKE 'f_'") === '0', 'they are gone');
    await release();
    assert.equal(await result(bob, 'nothing'), 1);
    await until(async () => await db.value(`SELECT count(*) FROM (${callers}) c`) === '0', 'end');
    assert.equal(await db.value('SELECT count(*) FROM calls.log WHERE n = -2'), String(running));
  });
});

/** Versions as a client keeps them: those of the snapshot, then those of the frames. */
class Versions {
  rows = new Map();
  #filling = null;

  static key({ id, part }) {
    return canonical(part === undefined ? id : [id, part]);
  }

  constructor(client, channel) {
    client.onMessage = (message) => {
      if (message.channel === channel && (message.type === 'subscribed' || message.type === 'resync')) this.#filling = new Map();
      if (message.channel === channel && message.type === 'snapshot') {
        assert.equal(message.versions.length, message.rows.length);
        message.rows.forEach((row, i) => this.#filling.set(Versions.key(row), message.versions[i]));
      }
      if (message.channel === channel && message.type === 'ready') {
        this.rows = this.#filling ?? this.rows;
        this.#filling = null;
      }
      if (message.type === 'transaction') for (const change of message.changes) this.#take(change, message.txid, channel);
    };
  }

  #take(change, txid, channel) {
    const rows = this.#filling ?? this.rows;
    if (change.channel !== channel) return;
    if (change.op === 'remove') rows.delete(Versions.key(change.key));
    else if (change.version !== null) rows.set(Versions.key(change.key), change.version ?? txid);
  }

  sorted() {
    return [...this.rows].sort();
  }
}

describe('versions', () => {
  test('snapshots and frames agree, whatever writes', async () => {
    await db.exec(`CREATE TABLE calls.v (id int, part int, n int, pad text, PRIMARY KEY (id, part)) PARTITION BY LIST (part);
      CREATE TABLE calls.v1 PARTITION OF calls.v FOR VALUES IN (1); CREATE TABLE calls.v2 PARTITION OF calls.v FOR VALUES IN (2);
      GRANT SELECT (id, part, n, pad) ON calls.v TO calls_web;
      INSERT INTO calls.v SELECT i, 1 + i % 2, 0, repeat('x', 1000) FROM generate_series(1, 150) i;
      SELECT changefeed.create_channel('calls.v', 'calls.v', key => '{id,part}')`);
    const client = await connect();
    const held = new Versions(client, 'calls.v');
    await client.openSoon('calls.v', { versions: true });
    assert.equal(held.rows.size, 150);
    assert.equal(new Set(held.rows.values()).size, 1);

    const writers = await Promise.all([1, 2, 3].map(async (w) => {
      const session = new Session();
      let seed = w * 7919;
      const random = (n) => { seed = (seed * 1103515245 + 12345) % 2147483648; return Math.floor(seed / 65536) % n; };
      const statement = () => {
        const id = w * 50 - random(50);
        return [`UPDATE calls.v SET n = n + 1 WHERE id = ${id}`, `UPDATE calls.v SET part = 3 - part WHERE id = ${id}`, `DELETE FROM calls.v WHERE id = ${id}`,
          `INSERT INTO calls.v VALUES (${id}, 1, 0) ON CONFLICT (id, part) DO UPDATE SET n = v.n + 1`][random(4)];
      };
      for (let i = 0; i < 25; i += 1) {
        let text = 'BEGIN;';
        for (let k = 0; k < 1 + random(3); k += 1) {
          text += [`${statement()};`, `SAVEPOINT s; ${statement()}; RELEASE s;`, `SAVEPOINT s; ${statement()}; ROLLBACK TO s;`, `SAVEPOINT s; ${statement()}; SAVEPOINT t; ${statement()}; RELEASE t;`,
            `DO $$ BEGIN ${statement()}; EXCEPTION WHEN division_by_zero THEN NULL; END $$;`][random(5)];
        }
        // A key that is there already costs the transaction.
        await session.exec(`${text} COMMIT`).catch(() => session.exec('ROLLBACK'));
      }
      await session.close();
    }).map((p) => p));
    assert.equal(writers.length, 3);
    await db.exec('VACUUM FREEZE calls.v; VACUUM FULL calls.v1');
    await client.settle();

    const fresh = async () => {
      const other = await connect();
      const versions = new Versions(other, 'calls.v');
      await other.open('calls.v', { versions: true });
      await other.close();
      return versions.sorted();
    };
    assert.deepEqual(held.sorted(), await fresh());
    assert.deepEqual(held.sorted(), (await db.rows('SELECT id, part, xmin::text AS x FROM calls.v')).map((row) => [Versions.key(row), row.x]).sort());

    // New columns do not change rows; what comes after a resync has versions, too.
    await db.exec('GRANT SELECT ON calls.v TO calls_web');
    await db.exec('ALTER TABLE calls.v ADD COLUMN extra int DEFAULT 5');
    await client.settle();
    assert.deepEqual(held.sorted(), await fresh());
    await db.exec('ALTER TABLE calls.v ALTER COLUMN n TYPE bigint');
    await client.settle();
    assert.ok(client.subscriptions.get('calls.v').resyncs.length > 0);
    assert.deepEqual(held.sorted(), await fresh());
    const windowed = await connect();
    const few = new Versions(windowed, 'calls.v?order=id.desc&limit=3&select=n');
    await windowed.open('calls.v?order=id.desc&limit=3&select=n', { versions: true, loose: true });
    assert.deepEqual(few.sorted(), held.sorted().filter(([key]) => few.rows.has(key)));
    assert.equal(few.rows.size, 3);
  });

  test('frames of several transactions', async () => {
    await db.exec(`CREATE TABLE calls.paced (id int PRIMARY KEY, n int); GRANT SELECT ON calls.paced TO calls_web; INSERT INTO calls.paced SELECT i, 0 FROM generate_series(1, 5) i;
      SELECT changefeed.create_channel('calls.paced', 'calls.paced', min_interval => '300 ms')`);
    const client = await connect();
    const held = new Versions(client, 'calls.paced');
    await client.openSoon('calls.paced', { versions: true });
    for (const id of [1, 2, 3, 2, 4, 1]) await db.exec(`UPDATE calls.paced SET n = n + 1 WHERE id = ${id}`);
    await db.exec('BEGIN; UPDATE calls.paced SET n = n + 1 WHERE id = 3; SAVEPOINT s; UPDATE calls.paced SET n = n + 1 WHERE id = 4; COMMIT');
    await db.exec('DELETE FROM calls.paced WHERE id = 5; INSERT INTO calls.paced VALUES (6, 0)');
    await client.settle();
    assert.deepEqual(held.sorted(), (await db.rows('SELECT id, xmin::text AS x FROM calls.paced')).map((row) => [Versions.key(row), row.x]).sort());
    assert.ok(client.transactions < 5, `${client.transactions} frames`);
  });

  test('two editors: whoever has not seen the other is told', async () => {
    await db.exec(`CREATE TABLE calls.doc (id bigint PRIMARY KEY, n int NOT NULL, hidden text); GRANT SELECT (id, n), UPDATE (n) ON calls.doc TO calls_web; INSERT INTO calls.doc VALUES (7, 0, 'h');
      SELECT changefeed.create_channel('calls.doc:{id}', 'calls.doc')`);
    await expose({ 'edit(id bigint, n int)': plpgsql('PERFORM pg_sleep(0.005); UPDATE calls.doc d SET n = edit.n WHERE d.id = edit.id; RETURN n;') });
    let won = 0;
    let lost = 0;
    await Promise.all(['a', 'b', 'c'].map(async (who) => {
      const client = await connect(who);
      const versions = new Versions(client, 'calls.doc:7');
      const s = await client.openSoon('calls.doc:7', { versions: true });
      let [row] = plain(s.rows());
      let [version] = versions.rows.values();
      for (let mine = 0; mine < 8;) {
        const answer = await call(client, 'edit', { id: 7, n: row.n + 1 }, { expect: { channel: 'calls.doc:7', entity: 'doc', key: { id: 7 }, version } });
        if (answer.type === 'result') {
          mine += 1;
          won += 1;
          row = { id: 7, n: row.n + 1 };
          version = answer.txid;
        } else {
          lost += 1;
          assert.equal(answer.code, '40001', JSON.stringify(answer));
          assert.deepEqual({ ...answer.conflict, row: 0, version: 0 }, { channel: 'calls.doc:7', entity: 'doc', key: { id: 7 }, row: 0, version: 0 });
          assert.deepEqual(Object.keys(answer.conflict.row), ['id', 'n']);
          ({ row, version } = answer.conflict);
        }
      }
    }));
    assert.equal(won, 24);
    assert.ok(lost > 0);
    // No edit was lost: each was based on the one before.
    assert.equal(await db.value('SELECT n FROM calls.doc'), '24');
  });

  test('an expected row stays as it is until the call is over, though the caller could not write it', async (t) => {
    await db.exec('CREATE TABLE calls.stock (id int PRIMARY KEY, n int); GRANT SELECT ON calls.stock TO calls_web; INSERT INTO calls.stock VALUES (1, 5), (2, 5); SELECT changefeed.create_channel($$calls.stock$$, $$calls.stock$$)');
    const client = await connect();
    const versions = new Versions(client, 'calls.stock');
    await client.openSoon('calls.stock', { versions: true });
    const version = versions.rows.get('1');
    const key = { channel: 'calls.stock', key: { id: 1 } };
    const release = await hold(t);
    const running = call(client, 'held', {}, { expect: [{ ...key, version }, { ...key, key: { id: 2 }, version: versions.rows.get('2') }] });
    await until(async () => (await db.value(held)) !== '', 'it runs');
    const writers = [1, 2].map((id) => {
      const session = new Session();
      t.after(() => session.close());
      return session.exec(`UPDATE calls.stock SET n = ${id === 1 ? 4 : 'n'} WHERE id = ${id}`);
    });
    await until(async () => await db.value("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'UPDATE calls.stock%' AND wait_event_type = 'Lock'") === '2', 'both rows are locked');
    await release();
    assert.equal((await running).type, 'result');
    await Promise.all(writers);
    const late = await fails(client, '40001', 'sleep', { ms: 1 }, { expect: [{ ...key, version }] });
    assert.deepEqual(late.conflict.row, { id: 1, n: 4 });
    await client.settle();
    assert.equal(late.conflict.version, versions.rows.get('1'));

    // Conditions, rows that are gone, hidden, in no such channel; and what is malformed.
    await fails(client, '40001', 'nothing', {}, { expect: { ...key, channel: 'calls.stock?n=gt.10', version: late.conflict.version } });
    assert.equal(await result(client, 'nothing', {}, { expect: { ...key, channel: 'calls.stock?n=lt.10&select=n', version: late.conflict.version } }), 1);
    await db.exec('DELETE FROM calls.stock WHERE id = 1');
    const gone = await fails(client, '40001', 'nothing', {}, { expect: { ...key, version } });
    assert.deepEqual([gone.conflict.row, gone.conflict.version], [null, null]);
    await db.exec("INSERT INTO calls.notes (id, owner, body) VALUES (900, 'zoe', 'private')");
    const hidden = await fails(client, '40001', 'nothing', {}, { expect: { channel: 'calls.notes', key: { id: 900 }, version: '1' } });
    assert.deepEqual([hidden.conflict.row, hidden.conflict.version], [null, null]);
    for (const [code, expected] of [['42704', { ...key, channel: 'none', version }], ['42704', { ...key, entity: 'none', version }], ['22023', { ...key, version: '1x' }], ['22023', { ...key }],
      ['08P01', { version }], ['08P01', 'x'], ['22023', { ...key, key: {}, version }], ['22P02', { ...key, key: { id: 'x' }, version }], ['42601', { ...key, channel: 'calls.stock?n=1', version }]]) {
      await fails(client, code, 'nothing', {}, { expect: expected });
    }
    await db.exec('REVOKE ALL ON calls.stock FROM calls_web');
    await fails(client, '42501', 'nothing', {}, { expect: { ...key, version } });
  });
});

describe('functions that misbehave', () => {
  const SUPER = '(SELECT rolsuper FROM pg_roles WHERE rolname = current_user)';
  // Each returns something else than 0 if it gets further than it may.
  const deeds = {
    set_role: `EXECUTE 'SET ROLE ' || quote_ident(session_user); RETURN ${SUPER}::int;`,
    reset_role: `EXECUTE 'RESET ROLE'; RETURN ${SUPER}::int;`,
    set_config_role: `PERFORM set_config('role', 'none', false); RETURN ${SUPER}::int;`,
    session_authorization: `EXECUTE 'SET SESSION AUTHORIZATION DEFAULT'; RETURN ${SUPER}::int;`,
    reset_all: `EXECUTE 'RESET ALL'; RETURN ${SUPER}::int;`,
    listen: `EXECUTE 'LISTEN x'; RETURN 1;`,
    copy: `COPY calls.log TO PROGRAM 'cat'; RETURN 1;`,
    read_results: 'RETURN (SELECT count(*) FROM changefeed.call_result);',
    write_results: `INSERT INTO changefeed.call_result VALUES ('', 'k', '', '1', '1', now()); RETURN 1;`,
    read_only_off: `PERFORM set_config('session_replication_role', 'replica', false); RETURN 1;`,
    terminate: 'PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(5); RETURN 1;',
    much: "RETURN length(repeat('x', 2000000000));",
    recursion: 'RETURN calls.recursion();',
  };

  test('nothing of that gets anywhere', async (t) => {
    await db.exec(`CREATE TABLE calls.spied (who text); GRANT INSERT ON calls.spied TO PUBLIC;
      CREATE FUNCTION calls.spy() RETURNS int LANGUAGE plpgsql AS $$ BEGIN INSERT INTO calls.spied VALUES (current_user); RETURN 1; END $$`);
    await expose(Object.fromEntries(Object.entries(deeds).map(([name, body]) => [`${name}()`, plpgsql(body)])));
    const client = await connect('mallory');
    for (const name of Object.keys(deeds)) {
      const start = Date.now();
      const answer = await call(client, name);
      t.diagnostic(`${name}: ${Date.now() - start} ms, ${answer.code} ${answer.message ?? ''}`.slice(0, 100));
      if (!['reset_role', 'reset_all'].includes(name)) assert.equal(answer.type, 'error', `${name}: ${JSON.stringify(answer)}`);
      else assert.ok(answer.type === 'error' || answer.result === 0, `${name}: ${JSON.stringify(answer)}`);
    }
  });

  test('what runs at the commit runs as the caller', async () => {
    await db.exec(`CREATE TABLE calls.deferred (id int); GRANT ALL ON calls.deferred TO calls_web;
      CREATE FUNCTION calls.at_commit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO calls.spied VALUES (current_user);
        PERFORM set_config('calls.leak', 'trigger', false), set_config('DateStyle', 'German', false);
        IF new.id = 13 THEN RAISE EXCEPTION 'unlucky'; END IF;
        IF new.id < 3 THEN EXECUTE 'SET CONSTRAINTS ALL DEFERRED'; INSERT INTO calls.deferred VALUES (new.id + 1); END IF;
        RETURN NULL; END $$;
      CREATE CONSTRAINT TRIGGER t AFTER INSERT ON calls.deferred DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION calls.at_commit()`);
    await expose({
      'defer(id int)': sql('INSERT INTO calls.deferred VALUES ($1)', 'void'),
      'open_cursor()': plpgsql("OPEN c FOR SELECT calls.spy(); RETURN 1;", 'int', "DECLARE c refcursor := 'left';"),
    });
    const client = await connect('mallory');
    await result(client, 'defer', { id: 1 }, { key: 'deferred' });
    await result(client, 'open_cursor');
    assert.equal((await fails(client, 'P0001', 'defer', { id: 13 }, { key: 'unlucky' })).message, 'unlucky');
    assert.equal(await db.value('SELECT string_agg(DISTINCT who, $$,$$) || count(*) FROM calls.spied'), 'calls_web3');
    assert.equal(await db.value("SELECT count(*) FROM changefeed.call_result WHERE key = 'unlucky'"), '0');
  });

  test('nothing of a call is left for the next one', async () => {
    await db.exec('CREATE SEQUENCE calls.numbers; GRANT ALL ON calls.numbers TO calls_web');
    await expose({
      'leave_traces()': plpgsql(`PERFORM set_config('calls.leak', 'secret', false), set_config('search_path', 'pg_temp', false), set_config('TimeZone', 'Asia/Tokyo', false), set_config('statement_timeout', '1', false);
        EXECUTE 'SET SESSION enable_seqscan = off'; EXECUTE 'PREPARE left_over AS SELECT 1'; EXECUTE 'DECLARE left_over CURSOR WITH HOLD FOR SELECT calls.spy()';
        CREATE TEMP TABLE left_over (a int); CREATE TEMP TABLE gone_soon (a int) ON COMMIT DROP; CREATE TEMP TABLE emptied (a int) ON COMMIT DELETE ROWS; INSERT INTO emptied VALUES (1); PERFORM pg_advisory_lock(4712), nextval('calls.numbers'); RETURN 1;`),
      'find_traces()': plpgsql(`BEGIN PERFORM lastval(); RETURN 'lastval'; EXCEPTION WHEN object_not_in_prerequisite_state THEN NULL; END;
        RETURN concat_ws('|', nullif(current_setting('calls.leak', true), ''), current_setting('search_path'), current_setting('TimeZone'), current_setting('statement_timeout'), current_setting('enable_seqscan'),
          (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4712), (SELECT count(*) FROM pg_prepared_statements), (SELECT count(*) FROM pg_cursors), (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()));`, 'text'),
    });
    const client = await connect('mallory');
    const other = await connect('bob');
    const clean = await result(other, 'find_traces');
    assert.equal(clean, '"$user", public|UTC|0|on|0|0|0|0');
    for (let i = 0; i < 6; i += 1) {
      await result(client, 'leave_traces', {}, i % 2 ? { key: `t${i}` } : {});
      assert.equal(await result(i % 3 ? other : client, 'find_traces'), clean);
    }
    // The cursor that would have outlived the transaction was read as well.
    assert.equal(await db.value('SELECT DISTINCT who FROM calls.spied'), 'calls_web');
  });

  test('a large result is refused, and costs nobody else anything', async () => {
    await expose({ 'large(n int)': sql("SELECT repeat('x', 1000) FROM generate_series(1, n)", 'SETOF text') });
    const client = await connect();
    assert.equal((await result(client, 'large', { n: 40 })).length, 40);
    assert.match((await fails(client, '54000', 'large', { n: 100000 })).message, /larger than 64 kB/);
    assert.equal(await result(client, 'nothing'), 1);
  });
});
