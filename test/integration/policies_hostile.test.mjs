// Policies and casts that misbehave for one identity: only that one loses.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { assertSame, Client, until, within } from './lib/client.mjs';
import { reload, Session } from './lib/psql.mjs';

const SUB = "current_setting('request.jwt.claims', true)::json->>'sub'";

// Bodies of functions, run for `mallory` only; the others see every row.
const DEEDS = {
  'SET ROLE': "EXECUTE 'SET ROLE postgres'; RETURN (SELECT rolsuper FROM pg_roles WHERE rolname = current_user);",
  'RESET ROLE': "EXECUTE 'RESET ROLE'; RETURN (SELECT rolsuper FROM pg_roles WHERE rolname = current_user);",
  'SET SESSION AUTHORIZATION': "EXECUTE 'SET SESSION AUTHORIZATION postgres'; RETURN true;",
  'set_config of the role': "PERFORM set_config('role', 'postgres', false); RETURN (SELECT rolsuper FROM pg_roles WHERE rolname = current_user);",
  'a write': 'INSERT INTO hostile.victims VALUES (1); RETURN true;',
  'a write behind SET transaction_read_only': "PERFORM set_config('transaction_read_only', 'off', true); INSERT INTO hostile.victims VALUES (1); RETURN true;",
  sleep: 'PERFORM pg_sleep(60); RETURN true;',
  'sleep without a time limit': "PERFORM set_config('statement_timeout', '0', false); PERFORM pg_sleep(60); RETURN true;",
  'sleep that catches cancels': 'LOOP BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; RETURN true;',
  'an error': "RAISE EXCEPTION 'no luck' USING ERRCODE = 'P0001'; RETURN true;",
  "an error with the feed's own code": "RAISE EXCEPTION 'no luck' USING ERRCODE = 'CF001'; RETURN true;",
  'a loop': 'LOOP NULL; END LOOP; RETURN true;',
  'endless recursion': 'RETURN hostile.recurse(1);',
  'much memory': "RETURN length(repeat('x', 1000000000)) > 0;",
  'an advisory lock': 'PERFORM pg_advisory_lock(4711); RETURN true;',
  'ending the process': 'PERFORM pg_terminate_backend(pg_backend_pid()); RETURN true;',
};

// How long a snapshot may take here, and what nobody else has to wait for. Less
// than that even on a machine that is busy with something else.
const SNAPSHOT_MS = 12000;
const OTHERS_MS = SNAPSHOT_MS / 2;
const NAP_MS = 1500;

describe('policies that misbehave', () => {
  let db;
  let number = 0;

  before(async () => {
    db = new Session();
    await db.exec(`CREATE SCHEMA hostile; CREATE ROLE hostile_web; GRANT USAGE ON SCHEMA hostile TO hostile_web;
      CREATE TABLE hostile.victims (id int); GRANT ALL ON hostile.victims TO hostile_web;
      CREATE FUNCTION hostile.recurse(n int) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RETURN hostile.recurse(n + 1); END $$;
      CREATE TYPE hostile.plain AS ENUM ('x', 'y', 'z'); CREATE TYPE hostile.deep AS (a hostile.plain, b hostile.plain[]);
      CREATE FUNCTION hostile.plain_to_json(v hostile.plain) RETURNS json LANGUAGE plpgsql AS $$ BEGIN RETURN json_build_object('user', current_user, 'v', v::text); END $$;
      SELECT changefeed.allow_role('hostile_web')`);
    // A snapshot may take 60 times as long: a limit that can be waited for.
    await reload(db, { 'changefeed.policy_timeout': `${SNAPSHOT_MS / 60}ms` });
    await (await Client.connectSoon({ token: await db.token({ role: 'hostile_web', sub: 'probe' }) })).close();
  });

  after(async () => {
    await db.close();
  });

  async function table() {
    number += 1;
    const name = `hostile.t${number}`;
    await db.exec(`CREATE TABLE ${name} (id int PRIMARY KEY, v text, on_purpose bool DEFAULT false);
      GRANT SELECT ON ${name} TO hostile_web;
      INSERT INTO ${name} VALUES (1, 'a');`);
    return name;
  }

  async function connect(sub) {
    return Client.connect({ token: await db.token({ role: 'hostile_web', sub }) });
  }

  for (const [what, body] of Object.entries(DEEDS)) {
    // The deed is done at once, in the snapshot; or only when a change comes.
    for (const when of ['in the snapshot', 'at a change']) {
      test(`${what}, ${when}`, async (t) => {
        const name = await table();
        const condition = when === 'in the snapshot' ? 'true' : 'on_purpose';
        await db.exec(`CREATE FUNCTION hostile.deed${number}(on_purpose bool) RETURNS bool LANGUAGE plpgsql AS $$
            BEGIN IF ${SUB} = 'mallory' AND ${condition} THEN ${body} END IF; RETURN true; END $$;
          ALTER TABLE ${name} ENABLE ROW LEVEL SECURITY;
          CREATE POLICY p ON ${name} USING (hostile.deed${number}(on_purpose));
          SELECT changefeed.create_channel('hostile${number}', '${name}')`);
        const clients = [await connect('ada'), await connect('bob'), await connect('mallory')];
        t.after(() => Promise.all(clients.map((client) => client.cut())));
        const [ada, bob, mallory] = clients;
        const a = await ada.openSoon(`hostile${number}`);
        const b = await bob.open(`hostile${number}`);

        const opening = mallory.subscribe(`hostile${number}`).then(async (s) => {
          await s.ready();
          return s;
        });
        let m = null;
        if (when === 'in the snapshot') {
          opening.catch(() => {});
        } else {
          m = await opening;
        }

        // The others go on, promptly.
        let slowest = 0;
        for (let i = 0; i < 10; i += 1) {
          await db.exec(`UPDATE ${name} SET v = 'v${i}'; INSERT INTO ${name} VALUES (${100 + i}, 'x', ${i === 2})`);
          const start = Date.now();
          await Promise.all([ada.settle(), bob.settle()]);
          slowest = Math.max(slowest, Date.now() - start);
        }
        t.diagnostic(`others waited at most ${slowest} ms`);
        for (const [client, s] of [[ada, a], [bob, b]]) {
          client.check();
          assertSame(s.rows(), await db.rows(`SELECT * FROM ${name}`), 'the others');
          assert.deepEqual(s.resyncs, []);
        }

        // The bad one has ended, with a reason; or was served rightly.
        if (when === 'in the snapshot') {
          const outcome = await within(20000, opening.then((s) => s, (error) => error), 'outcome');
          if (outcome instanceof Error) {
            assert.match(outcome.code ?? outcome.message, /^[0-9A-Z]{5}$|has ended/, outcome.message);
            t.diagnostic(`error ${outcome.message}`);
          } else {
            m = outcome;
          }
        }
        if (m) {
          await until(() => m.state === 'ended' || (m.state === 'ready' && m.rows().length === 11), () => `end of the bad one (${m.state}, ${m.rows().length} rows)`, 20000);
          mallory.check();
          if (m.state === 'ended') t.diagnostic(`revoked: ${m.revoked.reason} ${m.revoked.code} ${m.revoked.message}`);
          else t.diagnostic('served');
          if (!['an advisory lock', 'much memory', 'RESET ROLE'].includes(what)) assert.equal(m.state, 'ended', 'the bad one has ended');
        }
        assert.ok(slowest < OTHERS_MS, `others waited for ${slowest} ms`);
        assert.equal(await db.value('SELECT count(*) FROM hostile.victims'), '0');
        assert.equal(await db.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711"), '0');
        await Promise.all([ada.settle(), bob.settle()]);
      });
    }
  }

  /** A table whose policy does that for mallory alone, in snapshots, too. */
  async function trap(body) {
    const name = await table();
    await db.exec(`CREATE FUNCTION hostile.deed${number}() RETURNS bool LANGUAGE plpgsql AS $$
        BEGIN IF ${SUB} = 'mallory' THEN ${body} END IF; RETURN true; END $$;
      ALTER TABLE ${name} ENABLE ROW LEVEL SECURITY;
      CREATE POLICY p ON ${name} USING (hostile.deed${number}());
      SELECT changefeed.create_channel('hostile${number}', '${name}')`);
    return `hostile${number}`;
  }

  test('who is judged together with somebody who takes long does not wait for him, nor for a heartbeat', async (t) => {
    await reload(db, { 'changefeed.policy_timeout': '60s', 'changefeed.heartbeat': '300s' });
    t.after(() => reload(db, { 'changefeed.policy_timeout': `${SNAPSHOT_MS / 60}ms`, 'changefeed.heartbeat': null }));
    const channel = await trap('WHILE NOT pg_try_advisory_xact_lock_shared(4721) LOOP PERFORM pg_sleep(0.005); END LOOP;');
    await db.exec(`SELECT changefeed.declare_dependency('hostile.deed${number}()')`);
    const [mallory, ada] = [await connect('mallory'), await connect('ada')];
    t.after(() => Promise.all([mallory, ada].map((client) => client.cut())));
    const [m, a] = [await mallory.openSoon(channel), await ada.open(channel)];
    await db.exec('SELECT pg_advisory_lock(4721)');
    await db.exec(`INSERT INTO hostile.${channel.replace('hostile', 't')} VALUES (2, 'b')`);
    await until(() => a.rows().length === 2, 'it comes', 10000);
    assert.equal(m.rows().length, 1);
    await db.exec('SELECT pg_advisory_unlock(4721)');
    await mallory.settle();
    assert.equal(m.rows().length, 2);
    for (const client of [mallory, ada]) client.check();
  });

  for (const what of ['sleep', 'sleep that catches cancels']) {
    test(`${what}: whoever leaves during his snapshot leaves nothing behind`, async (t) => {
      const channel = await trap(DEEDS[what]);
      const mallory = await connect('mallory');
      const ada = await connect('ada');
      t.after(() => ada.cut());
      mallory.subscribe(channel).catch(() => {});
      await until(async () => await db.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND backend_type = 'changefeed query worker'") === '1', 'he sleeps');
      await mallory.cut();
      await until(async () => await db.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND backend_type = 'changefeed query worker'") === '0', 'he has been stopped', OTHERS_MS);
      await ada.openSoon(channel);
    });

    test(`${what}: snapshots of one identity do not keep others from subscribing`, async (t) => {
      const channel = await trap(DEEDS[what]);
      const mallory = await connect('mallory');
      const ada = await connect('ada');
      t.after(() => Promise.all([ada.cut(), mallory.cut()]));
      mallory.subscribe(channel).catch(() => {});
      await until(async () => await db.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND backend_type = 'changefeed query worker'") === '1', 'he sleeps');
      const start = Date.now();
      await within(30000, ada.open(channel), 'ready');
      const ms = Date.now() - start;
      t.diagnostic(`ready after ${ms} ms`);
      assert.ok(ms < OTHERS_MS, `${ms} ms`);
    });
  }

  // ---- casts to json ----

  /** A table with a column of an enum that has a cast to json, and its channel. */
  async function castTable(returns, { rest = '', language = 'plpgsql' } = {}) {
    number += 1;
    const names = { table: `hostile.t${number}`, type: `hostile.e${number}`, cast: `hostile.cast${number}`, channel: `hostile${number}` };
    await db.exec(`CREATE TYPE ${names.type} AS ENUM ('one', 'two', 'three');
      CREATE FUNCTION ${names.cast}(v ${names.type}) RETURNS json LANGUAGE ${language} AS $$ ${returns} $$;
      CREATE CAST (${names.type} AS json) WITH FUNCTION ${names.cast}(${names.type});
      CREATE TABLE ${names.table} (id int PRIMARY KEY, v ${names.type}, vs ${names.type}[], note text ${rest});
      GRANT SELECT ON ${names.table} TO hostile_web;
      INSERT INTO ${names.table} VALUES (1, 'one', '{one,NULL}', 'a');
      SELECT changefeed.create_channel('${names.channel}', '${names.table}')`);
    return names;
  }

  for (const what of ['SET ROLE', 'RESET ROLE', 'a write', 'sleep', 'sleep that catches cancels', 'an error', 'a loop', 'ending the process']) {
    for (const when of ['in the snapshot', 'at a change']) {
      test(`a cast: ${what}, ${when}`, async (t) => {
        const condition = when === 'in the snapshot' ? "v = 'one'" : "v = 'two'";
        await db.exec(`CREATE FUNCTION hostile.deed${number + 1}() RETURNS bool LANGUAGE plpgsql AS $$ BEGIN ${DEEDS[what]} END $$`);
        const { table: name, channel } = await castTable(`BEGIN IF coalesce(${SUB}, '') = 'mallory' AND ${condition} AND hostile.deed${number + 1}() THEN RETURN '"done"'; END IF; RETURN '{ "b":1, "a" : "' || v || '" }'; END`);
        const clients = [await connect('ada'), await connect('bob'), await connect('mallory')];
        t.after(() => Promise.all(clients.map((client) => client.cut())));
        const [ada, bob, mallory] = clients;
        const a = await ada.openSoon(channel);
        const b = await bob.open(channel);
        const opening = mallory.open(channel);
        opening.catch(() => {});
        if (when === 'at a change') await opening;
        let slowest = 0;
        for (let i = 0; i < 10; i += 1) {
          await db.exec(`UPDATE ${name} SET v = CASE WHEN v = 'one' THEN 'two' ELSE 'one' END::hostile.e${number}, note = ${i}`);
          const start = Date.now();
          await Promise.all([ada.settle(), bob.settle()]);
          slowest = Math.max(slowest, Date.now() - start);
        }
        for (const [client, s] of [[ada, a], [bob, b]]) {
          client.check();
          assertSame(s.rows(), await db.rows(`SELECT * FROM ${name}`), 'the others');
          assert.deepEqual(s.resyncs, []);
        }
        const outcome = await within(20000, opening.then((s) => s, (error) => error), 'outcome');
        if (!(outcome instanceof Error)) await until(() => outcome.state === 'ended', 'end of the bad one', 20000);
        t.diagnostic(`others waited at most ${slowest} ms; ${outcome instanceof Error ? outcome.message : `${outcome.revoked?.code} ${outcome.revoked?.message}`}`);
        assert.ok(slowest < OTHERS_MS, `others waited for ${slowest} ms`);
        assert.equal(await db.value('SELECT count(*) FROM hostile.victims'), '0');
      });
    }
  }

  test('a cast gives each identity its own, as its role', async (t) => {
    const { table: name, channel } = await castTable(`BEGIN RETURN json_build_array(v::text, current_user, CASE WHEN v <> 'three' THEN ${SUB} END); END`);
    const subs = ['ada', 'bob', 'ada'];
    const clients = await Promise.all(subs.map(connect));
    t.after(() => Promise.all(clients.map((client) => client.cut())));
    const opened = [];
    for (const client of clients) opened.push(await client.openSoon(channel));
    for (const sql of ['', "INSERT INTO # VALUES (2, 'two', NULL, 'x'), (3, NULL, '{}', 'y')", "UPDATE # SET v = 'three'", "UPDATE # SET note = note || '!'", "UPDATE # SET v = 'two', vs = '{three,one}' WHERE id > 1", 'UPDATE # SET id = id + 10', 'DELETE FROM # WHERE id = 12']) {
      if (sql) await db.exec(sql.replaceAll('#', name));
      await Promise.all(clients.map((client) => client.settle()));
      for (let i = 0; i < subs.length; i += 1) {
        clients[i].check();
        assertSame(opened[i].rows(), await db.rowsAs({ role: 'hostile_web', sub: subs[i] }, `SELECT * FROM ${name}`), `${subs[i]} after ${sql}`);
        assert.deepEqual(opened[i].resyncs, []);
      }
    }
  });

  test('casts that come, change and go', async (t) => {
    const { table: name, type, cast, channel } = await castTable("SELECT json_build_array('first', v::text)", { language: 'sql', rest: ', plain hostile.plain, deep hostile.deep' });
    const client = await connect('ada');
    t.after(() => client.cut());
    const s = await client.openSoon(channel);
    await db.exec(`UPDATE ${name} SET plain = 'x', deep = ROW('y', '{x}')`);
    let resyncs = 0;
    for (const sql of [
      `CREATE OR REPLACE FUNCTION ${cast}(v ${type}) RETURNS json LANGUAGE sql AS $$ SELECT json_build_object('second', v::text, 'u', current_user) $$`,
      `DROP CAST (${type} AS json)`,
      `CREATE CAST (${type} AS json) WITH FUNCTION ${cast}(${type})`,
      `CREATE CAST (hostile.plain AS json) WITH FUNCTION hostile.plain_to_json(hostile.plain)`,
      'DROP CAST (hostile.plain AS json)',
      "ALTER TYPE hostile.plain RENAME VALUE 'x' TO 'renamed'",
      'ALTER TYPE hostile.deep RENAME ATTRIBUTE a TO "other name"',
      'ALTER TYPE hostile.deep ADD ATTRIBUTE more int',
    ]) {
      await db.exec(sql);
      await client.settle();
      client.check();
      assertSame(s.rows(), await db.rowsAs({ role: 'hostile_web', sub: 'ada' }, `SELECT * FROM ${name}`), sql);
      assert.ok(s.resyncs.length > resyncs, `resync after ${sql}`);
      resyncs = s.resyncs.length;
      await db.exec(`UPDATE ${name} SET v = CASE WHEN v = 'one' THEN 'two' ELSE 'one' END::${type}, plain = CASE plain::text WHEN 'z' THEN 'y' ELSE 'z' END::hostile.plain`);
      await client.settle();
      client.check();
      assertSame(s.rows(), await db.rowsAs({ role: 'hostile_web', sub: 'ada' }, `SELECT * FROM ${name}`), `a change after ${sql}`);
      assert.equal(s.resyncs.length, resyncs);
    }
    assert.deepEqual([...new Set(s.resyncs)], ['type_changed']);
  });

  test('a cast of the key, made later, ends the subscription and runs nowhere', async (t) => {
    await db.exec(`CREATE TYPE hostile.keytype AS ENUM ('a', 'b'); CREATE TABLE hostile.keyed (k hostile.keytype PRIMARY KEY, n int); GRANT SELECT ON hostile.keyed TO hostile_web;
      INSERT INTO hostile.keyed VALUES ('a', 1); SELECT changefeed.create_channel('keyed', 'hostile.keyed');
      CREATE FUNCTION hostile.key_to_json(v hostile.keytype) RETURNS json LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN to_json(session_user); END $$`);
    const client = await connect('ada');
    t.after(() => client.cut());
    const s = await client.openSoon('keyed');
    await db.exec(`CREATE CAST (hostile.keytype AS json) WITH FUNCTION hostile.key_to_json(hostile.keytype); UPDATE hostile.keyed SET n = 2; INSERT INTO hostile.keyed VALUES ('b', 1)`);
    await until(() => s.state === 'ended', 'end');
    assert.equal(s.revoked.code, '0A000');
    client.check();
    await within(5000, client.sync(), 'the feed lives');
  });

  // ---- slowness ----

  const percentile = (values, p) => [...values].sort((a, b) => a - b)[Math.min(values.length - 1, Math.floor(values.length * p))];

  for (const how of ['policy', 'cast']) {
    test(`a ${how} that takes ${NAP_MS} ms for one identity, at every change, delays nobody else`, async (t) => {
      t.after(() => reload(db, { 'changefeed.policy_timeout': `${SNAPSHOT_MS / 60}ms` }));
      await reload(db, { 'changefeed.policy_timeout': `${4 * NAP_MS}ms` });
      const sleep = `PERFORM pg_sleep(CASE WHEN ${SUB} = 'mallory' AND n % 1000 <> 0 THEN ${NAP_MS / 1000} ELSE 0 END)`;
      let name;
      let channel;
      if (how === 'policy') {
        name = await table();
        channel = `hostile${number}`;
        await db.exec(`ALTER TABLE ${name} ADD n int DEFAULT 0;
          CREATE FUNCTION hostile.nap${number}(n int) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN ${sleep}; RETURN true; END $$;
          ALTER TABLE ${name} ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON ${name} USING (hostile.nap${number}(n));
          SELECT changefeed.create_channel('${channel}', '${name}')`);
      } else {
        ({ table: name, channel } = await castTable(`DECLARE n int := CASE WHEN v = 'one' THEN 0 ELSE 1 END; BEGIN ${sleep}; RETURN to_json(v::text); END`, { rest: ', n int DEFAULT 0' }));
        await db.exec(`ALTER TABLE ${name} ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON ${name} USING (${SUB} <> '');
          UPDATE ${name} SET vs = NULL`);
      }
      const clients = [];
      t.after(() => Promise.all(clients.map((client) => client.cut())));
      const others = [];
      for (let i = 0; i < 20; i += 1) {
        clients.push(await connect(`other${i}`));
        others.push(await clients[i].openSoon(channel));
      }
      const mallory = await connect('mallory');
      clients.push(mallory);
      const sleeper = await mallory.open(channel);

      let n = 0;
      const sent = new Map();
      let latencies = [];
      for (const s of others) {
        s.onChange = (change) => {
          const value = change.set?.n && Number(change.set.n.slice(1));
          if (sent.has(value)) latencies.push(performance.now() - sent.get(value));
        };
      }
      const phase = async (slow) => {
        latencies = [];
        const begin = performance.now();
        for (let i = 0; i < 200; i += 1) {
          n = slow ? n + 1 : n + 1000;
          if (slow && n % 1000 === 0) n += 1;
          sent.set(n, performance.now());
          const v = how === 'cast' ? `, v = '${slow ? ['two', 'three'][i % 2] : 'one'}'` : '';
          await db.exec(`UPDATE ${name} SET n = ${n}${v}`);
          await new Promise((resolve) => { setTimeout(resolve, Math.max(0, begin + (i + 1) * 20 - performance.now())); });
        }
        await until(() => latencies.length === 200 * others.length, () => `all changes at all others (${latencies.length})`);
        const result = { p50: percentile(latencies, 0.5), p99: percentile(latencies, 0.99), max: Math.max(...latencies) };
        t.diagnostic(`${slow ? 'with' : 'without'} the sleeper: p50 ${result.p50.toFixed(1)}, p99 ${result.p99.toFixed(1)}, max ${result.max.toFixed(1)} ms`);
        return result;
      };
      await phase(false);
      const without = await phase(false);
      assert.equal(sleeper.changes, 400, 'he sees all as long as he does not sleep');
      const before = sleeper.changes;
      const sleeping = phase(true);
      await until(async () => await db.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND backend_type = 'changefeed query worker'") === '1', 'he sleeps');
      const withSleeper = await sleeping;
      t.diagnostic(`p99 ratio ${(withSleeper.p99 / without.p99).toFixed(2)}; the sleeper got ${sleeper.changes - before} of 200 changes meanwhile`);
      assert.ok(withSleeper.max < NAP_MS, `no other waited for the end of his sleep: ${withSleeper.max} ms`);
      for (let i = 0; i < others.length; i += 1) {
        clients[i].check();
        assert.deepEqual(others[i].resyncs, []);
      }
      assert.notEqual(sleeper.state, 'ended');
      mallory.check();
    });
  }

  test('a locked table holds back only those whose policies read it', async (t) => {
    const name = await table();
    const channel = `hostile${number}`;
    await db.exec(`CREATE TABLE hostile.members${number} (sub text); GRANT SELECT ON hostile.members${number} TO hostile_web; INSERT INTO hostile.members${number} VALUES ('reader1'), ('reader2');
      CREATE ROLE hostile_reader${number}; GRANT USAGE ON SCHEMA hostile TO hostile_reader${number}; GRANT SELECT ON ${name}, hostile.members${number} TO hostile_reader${number}; SELECT changefeed.allow_role('hostile_reader${number}');
      ALTER TABLE ${name} ENABLE ROW LEVEL SECURITY;
      CREATE POLICY p ON ${name} TO hostile_web USING (${SUB} <> '');
      CREATE POLICY q ON ${name} TO hostile_reader${number} USING (EXISTS (SELECT FROM hostile.members${number} m WHERE m.sub = ${SUB}));
      SELECT changefeed.create_channel('${channel}', '${name}')`);
    const readers = [];
    const others = [];
    t.after(() => Promise.all([...readers, ...others].map((client) => client.cut())));
    const opened = [];
    for (let i = 0; i < 10; i += 1) {
      readers.push(await Client.connectSoon({ token: await db.token({ role: `hostile_reader${number}`, sub: `reader${i % 2 + 1}`, n: i }) }));
      opened.push(await readers[i].openSoon(channel));
    }
    for (let i = 0; i < 5; i += 1) {
      others.push(await connect(`other${i}`));
      opened.push(await others[i].openSoon(channel));
    }
    const locker = new Session();
    t.after(() => locker.close());
    await locker.exec(`BEGIN; LOCK TABLE hostile.members${number}`);
    let slowest = 0;
    for (let i = 0; i < 20; i += 1) {
      await db.exec(`UPDATE ${name} SET v = 'v${i}'`);
      const start = Date.now();
      await Promise.all(others.map((client) => client.settle()));
      slowest = Math.max(slowest, Date.now() - start);
    }
    const start = Date.now();
    const late = await connect('late');
    others.push(late);
    await late.open(channel);
    const ready = Date.now() - start;
    t.diagnostic(`others waited at most ${slowest} ms, a new one for ${ready} ms`);
    await locker.exec('COMMIT');
    await Promise.all(readers.map((client) => client.settle()));
    const rows = await db.rows(`SELECT * FROM ${name}`);
    for (const s of opened) assertSame(s.rows(), rows, 'all');
    for (const client of [...readers, ...others]) client.check();
  });

  test('a parameter whose domain takes long to check keeps only who gives it', async (t) => {
    number += 1;
    await db.exec(`CREATE FUNCTION hostile.check${number}(v text) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN IF v = 'bad' THEN LOOP BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END IF; RETURN true; END $$;
      CREATE DOMAIN hostile.d${number} AS text CHECK (hostile.check${number}(VALUE));
      CREATE TABLE hostile.t${number} (id int PRIMARY KEY, d hostile.d${number} NOT NULL); GRANT SELECT ON hostile.t${number} TO hostile_web; INSERT INTO hostile.t${number} VALUES (1, 'good');
      SELECT changefeed.create_channel('hostile${number}:{d}', 'hostile.t${number}')`);
    const mallory = await connect('mallory');
    const ada = await connect('ada');
    t.after(() => Promise.all([ada.cut(), mallory.cut()]));
    await ada.openSoon(`hostile${number}:good`);
    await ada.unsubscribe(`hostile${number}:good`);
    for (const options of [{}, { snapshot: false }]) {
      mallory.subscribe(`hostile${number}:bad`, options).catch(() => {});
      await until(async () => await db.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND backend_type = 'changefeed query worker'") !== '0', 'the check runs');
      const start = Date.now();
      await within(30000, ada.open(`hostile${number}:good`), 'ready');
      const ms = Date.now() - start;
      t.diagnostic(`ready after ${ms} ms`);
      assert.ok(ms < OTHERS_MS, `${ms} ms`);
      await ada.unsubscribe(`hostile${number}:good`);
      mallory.send({ type: 'unsubscribe', channel: `hostile${number}:bad` });
    }
  });

  test('session_user is the role, too: no superuser is behind it', async (t) => {
    const name = await table();
    await db.exec(`ALTER TABLE ${name} ENABLE ROW LEVEL SECURITY;
      CREATE POLICY p ON ${name} USING (v = concat_ws('/', session_user, current_user, current_setting('session_authorization'), pg_has_role(session_user, 'pg_monitor', 'member')));
      SELECT changefeed.create_channel('hostile${number}', '${name}')`);
    const ada = await connect('ada');
    t.after(() => ada.cut());
    const s = await ada.openSoon(`hostile${number}`);
    await db.exec(`UPDATE ${name} SET v = 'hostile_web/hostile_web/hostile_web/f'; INSERT INTO ${name} VALUES (2, session_user || '/hostile_web/' || session_user || '/t')`);
    await ada.settle();
    const visible = ['hostile_web/hostile_web/hostile_web/f'];
    assert.deepEqual(s.rows().map((row) => row.v), visible, 'a change');
    await ada.unsubscribe(`hostile${number}`);
    assert.deepEqual((await ada.open(`hostile${number}`)).rows().map((row) => row.v), visible, 'a snapshot');
  });
});
