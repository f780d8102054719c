// Policies that misbehave for one identity: only that one loses.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { assertSame, Client, until, within } from './lib/client.mjs';
import { Session } from './lib/psql.mjs';

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
  'a loop': 'LOOP NULL; END LOOP; RETURN true;',
  'endless recursion': 'RETURN hostile.recurse(1);',
  'much memory': "RETURN length(repeat('x', 1000000000)) > 0;",
  'an advisory lock': 'PERFORM pg_advisory_lock(4711); RETURN true;',
  'ending the process': 'PERFORM pg_terminate_backend(pg_backend_pid()); RETURN true;',
};

describe('policies that misbehave', () => {
  let db;
  let number = 0;

  before(async () => {
    db = new Session();
    await db.exec(`CREATE SCHEMA hostile; CREATE ROLE hostile_web; GRANT USAGE ON SCHEMA hostile TO hostile_web;
      CREATE TABLE hostile.victims (id int); GRANT ALL ON hostile.victims TO hostile_web;
      CREATE FUNCTION hostile.recurse(n int) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RETURN hostile.recurse(n + 1); END $$;
      SELECT changefeed.allow_role('hostile_web')`);
    // A snapshot may take 60 times as long: a limit that can be waited for.
    await db.exec("ALTER SYSTEM SET changefeed.policy_timeout = '200ms'");
    await db.exec('SELECT pg_reload_conf()');
    await (await Client.connectSoon({ token: await db.token({ role: 'hostile_web', sub: 'probe' }) })).close();
  });

  after(async () => {
    await db.exec('ALTER SYSTEM RESET changefeed.policy_timeout');
    await db.exec('SELECT pg_reload_conf()');
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
        assert.ok(slowest < 1500, `others waited for ${slowest} ms`);
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

  for (const what of ['sleep', 'sleep that catches cancels']) {
    test(`${what}: whoever leaves during his snapshot leaves nothing behind`, async (t) => {
      const channel = await trap(DEEDS[what]);
      const mallory = await connect('mallory');
      const ada = await connect('ada');
      t.after(() => ada.cut());
      mallory.subscribe(channel).catch(() => {});
      await until(async () => await db.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND backend_type = 'changefeed query worker'") === '1', 'he sleeps');
      await mallory.cut();
      await until(async () => await db.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND backend_type = 'changefeed query worker'") === '0', 'he has been stopped', 3000);
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
      assert.ok(ms < 3000, `${ms} ms`);
    });
  }
});
