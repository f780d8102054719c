// changefeed.worker_memory: what is refused when it is used up, and that it
// is taken again afterwards.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { Client, until } from './lib/client.mjs';
import { Session } from './lib/psql.mjs';

describe('memory of the feed worker', () => {
  let db;
  let token;

  before(async () => {
    db = new Session();
    await db.exec(`CREATE SCHEMA memory; CREATE ROLE memory_web; GRANT USAGE ON SCHEMA memory TO memory_web;
      CREATE TABLE memory.t (id int PRIMARY KEY, room int); GRANT SELECT ON memory.t TO memory_web;
      SELECT changefeed.allow_role('memory_web'); SELECT changefeed.create_channel('memory:{room}', 'memory.t')`);
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
});
