// Many clients who come at the same time: those who ask the same share the
// answer, and those who come back after a lost gateway miss nothing.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { readdirSync, writeFileSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';

import { assertSame, Client, until } from './lib/client.mjs';
import { number } from './lib/json.mjs';
import { logged } from './lib/log.mjs';
import { Session } from './lib/psql.mjs';

const CLIENTS = 1000;
const ROOMS = 50;
const USERS = 40;

describe('many clients at the same time', () => {
  let db;

  before(async () => {
    db = new Session();

    // The policy of `storm.shared` says how often it is asked, and takes its time.
    await db.exec(`CREATE SCHEMA storm; CREATE ROLE storm_web; GRANT USAGE ON SCHEMA storm TO storm_web;
      CREATE FUNCTION storm.me() RETURNS text STABLE LANGUAGE sql
        AS $$ SELECT current_setting('request.jwt.claims', true)::json ->> 'sub' $$;
      CREATE FUNCTION storm.slowly(id int) RETURNS bool STABLE LANGUAGE plpgsql AS
        $$ BEGIN IF id = 0 THEN PERFORM pg_sleep(0.1); RAISE LOG 'storm looks for %', storm.me(); END IF; RETURN true; END $$;
      CREATE TABLE storm.shared (id int PRIMARY KEY, owner text);
      CREATE TABLE storm.large (id int PRIMARY KEY, pad text);
      CREATE TABLE storm.rooms (id int PRIMARY KEY, room int, n int);
      CREATE TABLE storm.own (id int PRIMARY KEY, owner text, n int);
      ALTER TABLE storm.shared ENABLE ROW LEVEL SECURITY; ALTER TABLE storm.own ENABLE ROW LEVEL SECURITY;
      CREATE POLICY p ON storm.shared USING ((owner = storm.me() OR owner = '*') AND storm.slowly(id));
      ALTER TABLE storm.large ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON storm.large USING (storm.slowly(id));
      INSERT INTO storm.large SELECT i, repeat('x', 1000) FROM generate_series(0, 199) i;
      CREATE POLICY p ON storm.own USING (owner = storm.me());
      GRANT SELECT ON ALL TABLES IN SCHEMA storm TO storm_web;
      INSERT INTO storm.shared VALUES (0, '*'), (1, 'a'), (2, 'b');
      INSERT INTO storm.rooms SELECT i, i % ${ROOMS}, 0 FROM generate_series(1, ${ROOMS * 4}) i;
      INSERT INTO storm.own SELECT i, 'u' || i % ${USERS}, 0 FROM generate_series(1, ${USERS * 4}) i;
      SELECT changefeed.allow_role('storm_web');
      SELECT changefeed.create_channel('storm_shared', 'storm.shared');
      SELECT changefeed.create_channel('storm_large', 'storm.large');
      SELECT changefeed.create_channel('storm_room:{room}', 'storm.rooms');
      SELECT changefeed.create_channel('storm_own', 'storm.own')`);
  });

  after(() => db.close());

  const claims = (sub) => ({ role: 'storm_web', sub });

  test('who asks the same at the same time is answered together, and nobody else', async () => {
    const log = logged();
    const users = ['a', 'b'];
    const tokens = await Promise.all(users.map((sub) => db.token(claims(sub))));
    const first = await Client.connectSoon({ token: tokens[0] });
    const clients = [first, ...await Promise.all(Array.from({ length: 79 }, (_, i) => Client.connect({ token: tokens[(i + 1) % 2] })))];
    const subscriptions = await Promise.all(clients.map((client, i) => (i === 0 ? client.openSoon('storm_shared') : client.open('storm_shared'))));

    for (const [i, subscription] of subscriptions.entries())
      assertSame(subscription.rows(), await db.rowsAs(claims(users[i % 2]), 'SELECT * FROM storm.shared WHERE id > 0 UNION SELECT 0, \'*\''), users[i % 2]);

    const looks = log.text().match(/LOG: {2}storm looks for \w/g).length;
    assert.ok(looks >= 2, `${looks} looks`);
    assert.ok(looks < 30, `${looks} looks for ${clients.length} clients`);

    await db.exec('UPDATE storm.shared SET owner = \'b\' WHERE id = 1');
    for (const [i, client] of clients.entries()) {
      await client.settle();
      client.check();
      assert.deepEqual(subscriptions[i].rows().map(({ id }) => number(id)).sort(), i % 2 === 0 ? [0] : [0, 1, 2]);
    }
    await Promise.all(clients.map((client) => client.close()));
  });

  test('an answer that others wait for already has what was committed before the question', async () => {
    const token = await db.token(claims('c'));
    const clients = await Promise.all(Array.from({ length: 12 }, () => Client.connect({ token })));
    const open = [];
    for (const [i, client] of clients.entries()) {
      await db.exec(`INSERT INTO storm.shared VALUES (${100 + i}, 'c')`);
      open.push(client.open('storm_shared').then((subscription) => {
        const ids = new Set(subscription.rows().map(({ id }) => number(id)));
        for (let k = 0; k <= i; k += 1) assert.ok(ids.has(100 + k), `row ${k} when client ${i} is ready`);
      }));
    }
    await Promise.all(open);
    for (const client of clients) client.check();
    await Promise.all(clients.map((client) => client.close()));
  });

  test('a client that goes away while others wait for the same answer', async () => {
    const token = await db.token(claims('d'));
    const clients = await Promise.all(Array.from({ length: 10 }, () => Client.connect({ token })));
    const open = clients.map((client) => client.open('storm_shared'));
    for (const [i, client] of clients.entries()) {
      if (i % 2 === 1) continue;
      open[i].catch(() => {});
      await client.cut();
    }
    for (const [i, client] of clients.entries()) {
      if (i % 2 === 0) continue;
      assert.ok((await open[i]).rows().some(({ id }) => number(id) === 0));
      await client.close();
    }
  });

  test('a snapshot in a file that hundreds wait for takes few descriptors', async () => {
    const token = await db.token(claims('e'));
    const clients = await Promise.all(Array.from({ length: 400 }, () => Client.connect({ token })));
    const pid = await db.value('SELECT feed_worker_pid FROM changefeed.stat_feed');
    const limit = readdirSync(`/proc/${pid}/fd`).length + 70;
    await db.exec(`COPY (SELECT) TO PROGRAM 'prlimit --pid ${pid} --nofile=${limit}:'`); // as the server's user
    const open = await Promise.all(clients.map((client) => client.open('storm_large')));
    for (const subscription of open) assert.equal(subscription.rows().length, 200);
    await Promise.all(clients.map((client) => client.close()));
    assert.equal(await db.value('SELECT feed_worker_pid FROM changefeed.stat_feed'), pid);
  });

  test(`${CLIENTS} clients lose their gateway under load and come back: each has what SELECT says`, async (t) => {
    const tokens = await Promise.all(Array.from({ length: USERS }, (_, i) => db.token(claims(`u${i}`))));
    const channel = (i) => (i % 2 === 0 ? `storm_room:${i % ROOMS}` : 'storm_own');
    const connect = (i, options) => until(() => Client.connect({ token: tokens[i % USERS], ms: 60000 }).catch((error) => {
      if (!/ECONNREFUSED|ECONNRESET|hang up|connection closed|503/.test(`${error.code} ${error.message}`)) throw error;
    }), 'a connection', 60000).then((client) => client.open(channel(i), options));
    let caches = await Promise.all(Array.from({ length: CLIENTS }, (_, i) => connect(i)));
    t.after(() => Promise.all(caches.map((cache) => cache.client.cut())));

    const script = `${process.env.CLUSTER_DATA}/storm.sql`;
    writeFileSync(script, `\\set i random(1, ${ROOMS * 4})
      \\set k random(1, ${USERS * 4})
      UPDATE storm.rooms SET n = n + 1 WHERE id = :i;
      UPDATE storm.own SET n = n + 1 WHERE id = :k;\n`);
    const load = spawn('pgbench', ['-n', '-c', '2', '-R', '200', '-T', '600', '-f', script], { stdio: 'ignore' });
    t.after(() => load.kill());
    await until(() => caches.filter((cache) => cache.changes > 0).length > CLIENTS / 2, 'changes');

    process.kill(Number(await db.value('SELECT gateway_pid FROM changefeed.stat_feed')), 'SIGKILL');
    await Promise.all(caches.map(({ client }) => client.ended));
    for (const cache of caches) cache.client.check();
    const since = Date.now();
    caches = await Promise.all(caches.map((cache, i) => connect(i, { from: cache.position, cache })));
    t.diagnostic(`all were ready again after ${Date.now() - since} ms`);
    assert.ok(caches.every(({ recovered }) => recovered), 'nobody needs a snapshot');
    await until(() => caches.filter((cache) => cache.changes > 0).length > CLIENTS / 2, 'changes again');
    load.kill('SIGINT');
    await new Promise((resolve) => { load.on('close', resolve); });
    // Its last statements may still be under way in the server.
    await until(async () => await db.value("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'") === '0', 'the end of the load');

    const rooms = await db.rows('SELECT * FROM storm.rooms');
    const own = await db.rows('SELECT * FROM storm.own');
    await Promise.all(caches.map((cache) => cache.client.settle()));
    for (const [i, cache] of caches.entries()) {
      cache.client.check();
      const rows = i % 2 === 0 ? rooms.filter(({ room }) => number(room) === i % ROOMS) : own.filter(({ owner }) => owner === `u${i % USERS}`);
      assert.deepEqual(cache.resyncs, []);
      assertSame(cache.rows(), rows, `client ${i}`);
    }
    await Promise.all(caches.map((cache) => cache.client.close()));
  });
});
