// A transaction of many rows for many clients: what it takes of the feed worker, and that everybody
// gets what is theirs.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { assertSame, Client, until } from './lib/client.mjs';
import { megabytes, watching } from './lib/memory.mjs';
import { reload, Session } from './lib/psql.mjs';

const ROWS = 15000;

describe('fan-out of large transactions', () => {
  let db;
  const clients = [];
  const readers = []; // { s, level, room }

  // Clients from `low` to `high`; rows are seen by those in between.
  const claims = (i, levels) => ({ role: 'fanout_web', sub: `f${i}`, high: 1 + i % levels, low: i * 7 % levels });
  const connect = async (who) => {
    const client = await Client.connectSoon({ token: await db.token(who) });
    clients.push(client);
    return client;
  };

  // Those who do not read cost the feed worker what the others do.
  const many = async (n, levels, channel) => {
    for (let i = 0; i < n; i += 50) {
      await Promise.all(Array.from({ length: 50 }, async (_, k) => {
        const client = await connect(claims(i + k, levels));
        await client.openSoon(channel);
        client.socket.pause();
      }));
    }
  };

  const read = async (high, low, names, options) => {
    const client = await connect({ ...claims(0, 1), sub: `r${high}`, high, low });
    for (const name of names) readers.push({ s: await client.openSoon(name, options), high, low, room: /(?:eq\.|:)(\d+)/.exec(name)?.[1] });
  };

  const check = async (table) => {
    for (const { s, high, low, room } of readers) {
      s.client.check();
      const seen = await db.rows(`SELECT * FROM ${table} WHERE level <= ${high} AND other >= ${low} ${room === undefined ? '' : `AND room = ${room}`}`);
      assertSame(s.rows(), seen, `${s.name} of ${low} to ${high}`);
    }
  };

  const settle = async () => {
    for (const { s } of readers) await s.client.settle(120000);
  };

  before(async () => {
    db = new Session();
    await reload(db, { 'changefeed.heartbeat': '300s' }); // who does not read does not answer
    await db.exec(`CREATE SCHEMA fanout; CREATE ROLE fanout_web; GRANT USAGE ON SCHEMA fanout TO fanout_web; SELECT changefeed.allow_role('fanout_web')`);
    for (const t of ['few', 'wide']) {
      await db.exec(`CREATE TABLE fanout.${t} (id int PRIMARY KEY, level int, other int, room int); GRANT SELECT ON fanout.${t} TO fanout_web;
        ALTER TABLE fanout.${t} ENABLE ROW LEVEL SECURITY; ALTER TABLE fanout.${t} REPLICA IDENTITY FULL;
        CREATE POLICY p ON fanout.${t} USING (level <= (current_setting('request.jwt.claims')::jsonb->>'high')::int AND other >= (current_setting('request.jwt.claims')::jsonb->>'low')::int);
        SELECT changefeed.create_channel('${t}', 'fanout.${t}'); SELECT changefeed.create_channel('${t}_room:{room}', 'fanout.${t}')`);
    }
  });

  after(async () => {
    for (const client of clients) client.socket.terminate();
    await reload(db, { 'changefeed.heartbeat': null, 'changefeed.worker_memory': null });
    await db.close();
  });

  const cutAll = async () => {
    readers.length = 0;
    await Promise.all(clients.splice(0).map((client) => client.cut()));
    // The others have to have room.
    await until(async () => await db.value('SELECT connections FROM changefeed.stat_feed') === '0', 'nobody is connected');
  };

  test('the same connections are told once, however rows alternate between sets of them', async (t) => {
    await many(500, 60, 'few');
    for (const [high, low] of [[1, 0], [30, 20], [60, 50], [60, 0]]) await read(high, low, ['few', 'few_room:1', 'few?room=eq.2']);
    const { most } = await watching(db, async () => {
      await db.exec(`INSERT INTO fanout.few SELECT i, 1 + i * 7 % 60, 60, i % 3 FROM generate_series(1, ${ROWS}) i`);
      await settle();
    });
    await check('fanout.few');
    // Out of sight, into it, out of and into rooms, and gone, in one transaction
    await db.exec(`BEGIN; UPDATE fanout.few SET level = 61 - level, other = id % 60 WHERE id <= 2000; UPDATE fanout.few SET room = (room + 1) % 3 WHERE id BETWEEN 1000 AND 3000;
      DELETE FROM fanout.few WHERE id % 5 = 0; COMMIT`);
    await settle();
    await check('fanout.few');
    for (const { s } of readers) assert.deepEqual(s.resyncs, []);
    t.diagnostic(megabytes(most));
    assert.ok(most.feed < 48 * 1048576, megabytes(most));
    await cutAll();
  });

  // Hardly any two rows are for the same clients.
  test('who would get more than there is room for gets a snapshot', async (t) => {
    await reload(db, { 'changefeed.worker_memory': '16MB' });
    await many(400, 400, 'wide');
    for (const [high, low] of [[400, 0], [200, 100]]) await read(high, low, ['wide', 'wide_room:1']);
    const { most } = await watching(db, async () => {
      await db.exec(`INSERT INTO fanout.wide SELECT i, 1 + i * 7 % 400, (i / 400 * 23 + i * 13) % 400, (i <= 300)::int FROM generate_series(1, ${ROWS}) i`);
      await settle();
    });
    await check('fanout.wide');
    const reasons = (name) => [...new Set(readers.filter(({ s }) => s.name === name).flatMap(({ s }) => s.resyncs))];
    assert.deepEqual(reasons('wide'), ['transaction_too_large']);
    assert.deepEqual(reasons('wide_room:1'), []);
    t.diagnostic(megabytes(most));
    await db.exec(`UPDATE fanout.wide SET level = level + 1 WHERE id <= 100`);
    await settle();
    await check('fanout.wide');
    assert.ok(most.feed < 40 * 1048576, megabytes(most));
  });

  const NUMBERS = Array.from({ length: 3000 }, (_, i) => i + 1);

  /** Listeners of the channel, among 400 who do not read; and what they heard. */
  const listeners = async (channel, options) => {
    await cutAll();
    await many(400, 400, channel);
    const heard = [];
    for (const high of [1, 2]) {
      await read(high, 0, [channel], options);
      const told = [];
      heard.push(told);
      readers.at(-1).s.client.onMessage = ({ type, event, payload }) => { if (type === 'message') told.push(`${event} ${payload}`); };
    }
    return heard;
  };

  const said = (channel) => `SELECT changefeed.publish('${channel}', 'said', to_jsonb(i::text)) FROM generate_series(1, 3000) i`;

  test('messages of one transaction for more than there is room for: everybody gets each of them once', async (t) => {
    await db.exec(`CREATE TABLE fanout.loud (id int PRIMARY KEY, n int); GRANT SELECT ON fanout.loud TO fanout_web; SELECT changefeed.create_channel('loud', 'fanout.loud');
      SELECT changefeed.add_event('loud', 'fanout.loud', 'made', NULL, 'new.id::text', '{insert}')`);
    const heard = await listeners('loud');
    const { most } = await watching(db, async () => {
      await db.exec(`BEGIN; INSERT INTO fanout.loud SELECT i, 0 FROM generate_series(1, 3000) i; ${said('loud')}; COMMIT`);
      await settle();
    });
    t.diagnostic(megabytes(most));
    for (const [i, { s }] of readers.entries()) {
      s.client.check();
      assertSame(s.rows(), await db.rows('SELECT * FROM fanout.loud'));
      assert.deepEqual(s.resyncs, ['transaction_too_large']);
      assert.deepEqual([...heard[i]].sort(), NUMBERS.flatMap((n) => [`made ${n}`, `said ${n}`]).sort());
    }
    assert.ok(most.feed < 40 * 1048576, megabytes(most));
  });

  test('nor are they lost where there are no rows, or nobody wants them', async () => {
    await db.exec(`SELECT changefeed.create_channel('hall')`);
    for (const [channel, options] of [['hall', {}], ['loud', { snapshot: false }]]) {
      const heard = await listeners(channel, options);
      await db.exec(said(channel));
      await settle();
      for (const [i, { s }] of readers.entries()) {
        s.client.check();
        assert.deepEqual(s.resyncs, ['transaction_too_large'], channel);
        assert.deepEqual(heard[i], NUMBERS.map((n) => `said ${n}`), channel);
      }
    }
  });
});
