// changefeed.worker_memory: what is refused when it is used up, and that it
// is taken again afterwards.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { Client, until } from './lib/client.mjs';
import { memoryOf } from './lib/log.mjs';
import { megabytes, watching } from './lib/memory.mjs';
import { reload, Session } from './lib/psql.mjs';

describe('memory of the feed worker', () => {
  let db;
  let token;

  before(async () => {
    db = new Session();
    await db.exec(`CREATE SCHEMA memory; CREATE ROLE memory_web; GRANT USAGE ON SCHEMA memory TO memory_web;
      CREATE TABLE memory.t (id int PRIMARY KEY, room int); GRANT SELECT ON memory.t TO memory_web;
      SELECT changefeed.allow_role('memory_web'); SELECT changefeed.create_channel('memory:{room}', 'memory.t');
      CREATE TABLE memory.u (id int PRIMARY KEY, name text); GRANT SELECT ON memory.u TO memory_web;
      SELECT changefeed.create_channel('memory_name:{name}', 'memory.u')`);
    token = await db.token({ role: 'memory_web' });
  });

  after(async () => {
    for (const client of [first, ...clients]) client?.socket.terminate();
    await db.exec('ALTER SYSTEM RESET changefeed.worker_memory');
    await db.exec('SELECT pg_reload_conf()');
    await db.close();
  });

  const clients = [];
  let first;

  // First: what others have left behind would count
  test('questions for which there is no room wait until there is', async () => {
    await reload(db, { 'changefeed.worker_memory': '16MB' });
    await db.exec(`CREATE FUNCTION memory.gate() RETURNS bool LANGUAGE plpgsql AS $$
        BEGIN WHILE NOT pg_try_advisory_xact_lock_shared(4720) LOOP PERFORM pg_sleep(0.01); END LOOP; RETURN true; END $$;
      CREATE TABLE memory.gated (id int PRIMARY KEY, room int); GRANT SELECT ON memory.gated TO memory_web;
      ALTER TABLE memory.gated ENABLE ROW LEVEL SECURITY;
      CREATE POLICY p ON memory.gated USING (id % 10 = substr(current_setting('request.jwt.claims')::json->>'sub', 2)::int % 10 AND memory.gate());
      SELECT changefeed.create_channel('memory_gated:{room}', 'memory.gated')`);
    const subs = [];
    for (let i = 0; i < 31; i += 1) {
      const client = await Client.connectSoon({ token: await db.token({ role: 'memory_web', sub: `g${i}` }) });
      clients.push(client);
      subs.push(await client.openSoon(`memory_gated:${Math.floor(i / 10)}`));
    }
    const blocker = new Session();
    try {
      await blocker.exec('SELECT pg_advisory_lock(4720)');
      // Some 29000 have room; for the last room nothing can be asked at all.
      for (let room = 0; room < 3; room += 1) await db.exec(`INSERT INTO memory.gated SELECT ${room * 2000} + i, ${room} FROM generate_series(1, 1300) i`);
      await db.exec('INSERT INTO memory.gated VALUES (10000, 3)');
      const lsn = await db.value('SELECT pg_current_wal_lsn()');
      await until(async () => await db.value(`SELECT published_lsn >= '${lsn}'::pg_lsn - 64 FROM changefeed.stat_feed`) === 't', 'all of it is published');
    } finally {
      await blocker.close();
    }
    for (const s of subs) await s.client.settle(60000);
    for (const [i, s] of subs.entries()) {
      s.client.check();
      assert.equal(s.rows().length, i < 30 ? 130 : 1);
      assert.deepEqual(s.resyncs, []);
    }
    for (const client of clients.splice(0)) await client.cut();
    await reload(db, { 'changefeed.worker_memory': null });
  });

  test('what a subscription took is given back', async () => {
    const client = await Client.connectSoon({ token });
    const used = () => memoryOf(db, 'changefeed registry');
    const many = async () => {
      for (let i = 0; i < 200; i += 1) {
        const name = `memory_name:${String(i).padStart(400, 'x')}`;
        await client.subscribe(name);
        await client.unsubscribe(name);
      }
    };
    await many();
    const before = await used();
    await many();
    const grown = await used() - before;
    assert.ok(grown < 10000, `${grown} bytes`);
    await client.close();
  });

  test('what was found out for a subscription is given back while another one is loading', async (t) => {
    t.after(() => reload(db, { 'changefeed.heartbeat': null }));
    await reload(db, { 'changefeed.heartbeat': '120s' }); // who does not read does not answer
    await db.exec(`CREATE TABLE memory.big (id int PRIMARY KEY, pad text); INSERT INTO memory.big SELECT i, repeat('x', 1000) FROM generate_series(1, 30000) i;
      CREATE TABLE memory.own (id int PRIMARY KEY, name text); ALTER TABLE memory.own ENABLE ROW LEVEL SECURITY;
      CREATE POLICY p ON memory.own USING (name = current_setting('request.jwt.claims', true)::json->>'role');
      GRANT SELECT ON memory.big, memory.own TO memory_web;
      SELECT changefeed.create_channel('memory_big', 'memory.big'); SELECT changefeed.create_channel('memory_own', 'memory.own')`);
    const client = await Client.connect({ token });
    await client.openSoon('memory_own');
    await client.unsubscribe('memory_own');
    const slow = await Client.connect({ token });
    await slow.subscribe('memory_big');
    slow.socket.pause();
    const many = async () => {
      for (let i = 0; i < 200; i += 1) {
        await client.open('memory_own');
        await client.unsubscribe('memory_own');
      }
    };
    await many();
    const before = await memoryOf(db, 'changefeed answers');
    await many();
    const grown = await memoryOf(db, 'changefeed answers') - before;
    assert.ok(grown < 10000, `${grown} bytes`);
    await slow.cut();
    await client.close();
  });

  test('connections that end while their syncs wait leave nothing behind', async () => {
    const many = async () => {
      for (let i = 0; i < 50; i += 1) {
        const client = await Client.connect({ token });
        for (let k = 0; k < 50; k += 1) client.send({ type: 'sync', id: String(k).padStart(240, 'x') });
        await client.cut();
      }
      await until(async () => Number(await db.value('SELECT count(*) FROM changefeed.stat_connections')) === 0, 'all are gone');
    };
    await many();
    const before = await memoryOf(db, 'changefeed feed worker');
    await many();
    const grown = await memoryOf(db, 'changefeed feed worker') - before;
    assert.ok(grown < 10000, `${grown} bytes`);
  });

  test('a client with one subscription takes less than 1 kB, and gives it back', async () => {
    const used = () => memoryOf(db, 'Grand total');
    const open = (n) => Promise.all(Array.from({ length: n }, async () => {
      const client = await Client.connect({ token });
      await client.open('memory:0');
      return client;
    }));
    const some = await open(100);
    const before = await used();
    const many = await open(1000);
    const each = (await used() - before) / many.length;
    assert.ok(each < 1024, `${each} bytes`);
    await Promise.all(many.map((client) => client.close()));
    const left = await until(async () => {
      const bytes = await used() - before;
      return bytes < 150 * many.length ? { bytes } : null; // tables with places for as many stay
    }, 'given back');
    assert.ok(left.bytes < 150 * many.length);
    await Promise.all(some.map((client) => client.close()));
  });

  describe('with policies', () => {

    test('what was made of a policy is given back with its last reader', async (t) => {
      await db.exec(`CREATE TABLE memory.listed (id int PRIMARY KEY); GRANT SELECT ON memory.listed TO memory_web;
        ALTER TABLE memory.listed ENABLE ROW LEVEL SECURITY;
        CREATE POLICY p ON memory.listed USING (id IN (${Array.from({ length: 1000 }, (_, i) => i)}));
        SELECT changefeed.create_channel('memory_listed', 'memory.listed')`);
      const client = await Client.connectSoon({ token });
      t.after(() => client.cut());
      let row = 0;
      const cycles = async (n) => {
        for (let i = 0; i < n; i += 1) {
          const s = await client.openSoon('memory_listed');
          await db.exec(`INSERT INTO memory.listed VALUES (${row++})`);
          await client.settle();
          assert.equal(s.rows().length, row);
          await client.unsubscribe('memory_listed');
        }
      };
      await cycles(10);
      const before = await memoryOf(db, 'TopMemoryContext');
      await cycles(30);
      const grown = await memoryOf(db, 'TopMemoryContext') - before;
      t.diagnostic(`${grown} bytes`);
      assert.ok(grown < 100000, `${grown} bytes`);
    });

    test('an instance with one reader takes little', async (t) => {
      await db.exec(`CREATE TABLE memory.owned (id int PRIMARY KEY, owner text); GRANT SELECT ON memory.owned TO memory_web;
        ALTER TABLE memory.owned ENABLE ROW LEVEL SECURITY; ALTER TABLE memory.owned REPLICA IDENTITY FULL;
        CREATE POLICY p ON memory.owned USING (owner = current_setting('request.jwt.claims', true)::jsonb->>'sub');
        SELECT changefeed.create_channel('memory_owned:{owner}', 'memory.owned')`);
      const client = await Client.connectSoon({ token: await db.token({ role: 'memory_web', sub: 'ada' }) });
      t.after(() => client.cut());
      await client.openSoon('memory_owned:ada');
      const before = await memoryOf(db, 'Grand total');
      for (let i = 0; i < 800; i += 100) await Promise.all(Array.from({ length: 100 }, (_, k) => client.openSoon(`memory_owned:${i + k}`)));
      await client.settle();
      const each = (await memoryOf(db, 'Grand total') - before) / 800;
      t.diagnostic(`${each} bytes`);
      assert.ok(each < 2500, `${each} bytes`);
    });
  });

  test('beyond it subscriptions are refused, those that are there go on, and later there is room again', async () => {
    first = await Client.connect({ token });
    const kept = await first.open('memory:0');

    await db.exec("ALTER SYSTEM SET changefeed.worker_memory = '16MB'");
    await db.exec('SELECT pg_reload_conf()');
    let refused = null;
    for (let room = 1; refused === null && room < 40000; room += 500) {
      let client;
      try {
        client = await Client.connect({ token });
      } catch (error) {
        refused = error; // no new connections either
        break;
      }
      clients.push(client);
      await Promise.all(Array.from({ length: 500 }, (_, i) => client.open(`memory:${room + i}`).catch((error) => { refused ??= error; })));
    }
    assert.match(refused.message, /memory/);

    await db.exec('INSERT INTO memory.t VALUES (1, 0)');
    await first.sync();
    assert.equal(kept.entities.get('t').rows.size, 1);

    await Promise.all(clients.map((client) => client.close()));
    await db.exec("ALTER SYSTEM SET changefeed.worker_memory = '256MB'");
    await db.exec('SELECT pg_reload_conf()');
    const again = await until(async () => {
      try {
        return await first.open('memory:70000');
      } catch (error) {
        assert.equal(error.code, '53200');
        return null;
      }
    }, 'a subscription is accepted again');
    assert.ok(again);
    first.check();
  });

  test('a transaction of many rows that query workers judge for many', async (t) => {
    await reload(db, { 'changefeed.worker_memory': '64MB' });
    await db.exec(`CREATE TABLE memory.staff (uid text PRIMARY KEY, name text); GRANT SELECT ON memory.staff TO memory_web;
      INSERT INTO memory.staff SELECT 'u' || i, 'n' || i FROM generate_series(1, 60) i;
      CREATE TABLE memory.judged (id int PRIMARY KEY, name text); GRANT SELECT ON memory.judged TO memory_web;
      ALTER TABLE memory.judged ENABLE ROW LEVEL SECURITY;
      CREATE POLICY p ON memory.judged USING (name IN (SELECT s.name FROM memory.staff s WHERE uid = current_setting('request.jwt.claims')::json->>'sub'));
      SELECT changefeed.create_channel('judged', 'memory.judged'); SELECT changefeed.create_channel('memory_judged:{id}', 'memory.judged')`);
    const subs = [];
    for (let i = 1; i <= 60; i += 1) {
      const client = await Client.connectSoon({ token: await db.token({ role: 'memory_web', sub: `u${i}` }) });
      clients.push(client);
      subs.push(await client.openSoon('judged'));
    }
    const few = await clients.at(-1).openSoon('memory_judged:60');
    const { most } = await watching(db, async () => {
      await db.exec("INSERT INTO memory.judged SELECT i, 'n' || i FROM generate_series(1, 30000) i");
      for (const s of subs) await s.client.settle(120000);
    });
    for (const [i, s] of subs.entries()) {
      s.client.check();
      assert.deepEqual(s.rows().map(({ name }) => name), [`n${i + 1}`]);
    }
    assert.equal(few.rows().length, 1);
    assert.deepEqual([...new Set(subs.flatMap((s) => s.resyncs))], ['transaction_too_large']);
    t.diagnostic(megabytes(most));
    assert.ok(most.feed < 80 * 1048576, megabytes(most));
  });
});
