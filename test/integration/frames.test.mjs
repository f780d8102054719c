// Frames and what is told around them: a position never counts for a
// subscription that lacks something before it.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { assertSame, Client, until } from './lib/client.mjs';
import { Session } from './lib/psql.mjs';

const ADA = { role: 'bh_web', sub: 'ada' };
const LOCK = 4712;

describe('frames', () => {
  let db;
  let token;
  const clients = [];

  before(async () => {
    db = new Session();
    await db.exec(`CREATE SCHEMA bh; CREATE ROLE bh_web; GRANT USAGE ON SCHEMA bh TO bh_web;
      ALTER DEFAULT PRIVILEGES IN SCHEMA bh GRANT SELECT ON TABLES TO bh_web;
      SELECT changefeed.allow_role('bh_web');
      CREATE TABLE bh.plain (id int PRIMARY KEY, n int);
      INSERT INTO bh.plain VALUES (1, 1);
      SELECT changefeed.create_channel('plain', 'bh.plain')`);
    token = await db.token(ADA);
  });

  after(async () => {
    for (const client of clients) await client.cut();
    await db?.close();
  });

  async function connect() {
    const client = await Client.connectSoon({ token });
    clients.push(client);
    return client;
  }

  test('who cannot get all changes of a transaction gets none, and is told before the frame', async () => {
    await db.exec(`CREATE TABLE bh.large (id int PRIMARY KEY, n int, big text);
      ALTER TABLE bh.large ALTER big SET STORAGE EXTERNAL;
      SELECT changefeed.create_channel('large', 'bh.large', on_update => 'replace');
      ALTER TABLE bh.large REPLICA IDENTITY USING INDEX large_pkey;
      INSERT INTO bh.large VALUES (1, 1, 'small'), (2, 1, repeat('x', 10000)), (3, 1, 'small')`);
    const client = await connect();
    const plain = await client.openSoon('plain');
    const large = await client.openSoon('large', { loose: true });
    await client.settle();
    const seen = [];
    client.onMessage = (message) => seen.push(message);
    await db.exec('BEGIN; UPDATE bh.large SET n = n + 1; UPDATE bh.plain SET n = n + 1; COMMIT');
    await client.settle();
    client.check();
    assertSame(plain.rows(), await db.rows('SELECT * FROM bh.plain'), 'plain');
    assertSame(large.rows(), await db.rows('SELECT * FROM bh.large'), 'large');
    assert.deepEqual(plain.resyncs, []);
    assert.deepEqual(large.resyncs, ['value_not_in_wal']);
    assert.deepEqual(seen.slice(0, 2).map(({ type, changes }) => [type, changes?.map(({ channel }) => channel)]),
      [['resync', undefined], ['transaction', ['plain']]]);
  });

  test('of many who get a change, those who cannot start again, and the others go on', async () => {
    await db.exec(`CREATE TABLE bh.mixed (id int PRIMARY KEY, n int, big text);
      ALTER TABLE bh.mixed ALTER big SET STORAGE EXTERNAL;
      SELECT changefeed.create_channel('mixed', 'bh.mixed', on_update => 'replace');
      ALTER TABLE bh.mixed REPLICA IDENTITY USING INDEX mixed_pkey;
      INSERT INTO bh.mixed VALUES (1, 1, 'small'), (2, 1, repeat('x', 10000)), (3, 1, 'small')`);
    const names = [['mixed'], ['mixed?select=id,n'], ['mixed?select=id,n', 'mixed'], ['plain'], ['plain', 'mixed']];
    const watched = [];
    for (let i = 0; i < 15; i += 1) {
      const client = await connect();
      for (const name of names[i % names.length]) watched.push({ client, name, s: await client.openSoon(name, { loose: name !== 'plain' }) });
    }
    for (const { client } of watched) await client.settle();
    await db.exec('BEGIN; UPDATE bh.mixed SET n = n + 1; UPDATE bh.plain SET n = n + 1; COMMIT');
    for (const { client, name, s } of watched) {
      await client.settle();
      client.check();
      const [table, columns] = name === 'plain' ? ['bh.plain', '*'] : ['bh.mixed', name === 'mixed' ? '*' : 'id, n'];
      assertSame(s.rows(), await db.rows(`SELECT ${columns} FROM ${table}`), name);
      assert.deepEqual(s.resyncs, name === 'mixed' ? ['value_not_in_wal'] : [], name);
    }
  });

  // wal2json does not at all, which is known before the map is made.
  test('a change that cannot be read, for whom it is still to come when he becomes ready', { skip: process.env.CHANGEFEED_DECODER === 'wal2json' && 'wal2json does not give such a change' }, async () => {
    await db.exec(`CREATE TABLE bh.slow (id int PRIMARY KEY);
      CREATE FUNCTION bh.wait() RETURNS bool LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock_shared(${LOCK}); RETURN true; END';
      ALTER TABLE bh.slow ENABLE ROW LEVEL SECURITY;
      CREATE POLICY p ON bh.slow USING (bh.wait());
      SELECT changefeed.create_channel('slow', 'bh.slow');
      CREATE TABLE bh.other (id int PRIMARY KEY);
      INSERT INTO bh.other VALUES (1), (2);
      SELECT changefeed.create_channel('other', 'bh.other');
      ALTER TABLE bh.other REPLICA IDENTITY NOTHING`);
    const blocker = new Session();
    try {
      const client = await connect();
      const watcher = await connect();
      const first = await client.openSoon('other');
      await client.openSoon('slow');
      await client.settle();
      const held = { entities: first.entities, position: first.position };
      await client.unsubscribe('other');

      // The connection waits for a verdict, in front of what cannot be read.
      await blocker.exec(`BEGIN; SELECT pg_advisory_xact_lock(${LOCK})`);
      await db.exec('INSERT INTO bh.slow VALUES (1)');
      await until(async () => await db.value(`SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = ${LOCK} AND NOT granted`) === '1', 'the policy waits');
      await db.exec('DELETE FROM bh.other WHERE id = 1');
      await watcher.sync();
      const other = await (await client.subscribe('other', { from: held.position, cache: held })).ready();
      assert.equal(other.recovered, true);
      assert.equal(other.rows().length, 2, 'it is in front of the change, too');

      await blocker.exec('COMMIT');
      await client.settle();
      client.check();
      assertSame(other.rows(), await db.rows('SELECT * FROM bh.other'), 'other');
      assert.deepEqual(other.resyncs, ['change_not_readable']);
    } finally {
      await blocker.close();
    }
  });

  test('rows that were put together from pieces are read behind a change of their table', async () => {
    await db.exec(`CREATE TABLE bh.pieces (id int PRIMARY KEY, gone int, big text) PARTITION BY HASH (id);
      CREATE TABLE bh.pieces0 PARTITION OF bh.pieces FOR VALUES WITH (MODULUS 1, REMAINDER 0);
      ALTER TABLE bh.pieces0 ALTER big SET STORAGE EXTERNAL;
      ALTER TABLE bh.pieces ENABLE ROW LEVEL SECURITY;
      CREATE POLICY p ON bh.pieces USING (id > 0);
      CREATE TABLE bh.piece (LIKE bh.pieces0 INCLUDING ALL);
      ALTER TABLE bh.piece ENABLE ROW LEVEL SECURITY;
      CREATE POLICY p ON bh.piece USING (id > 0);
      SELECT changefeed.create_channel('pieces', 'bh.pieces', columns => '{id,big}'), changefeed.create_channel('piece', 'bh.piece', columns => '{id,big}')`);
    const client = await connect();
    const watched = { pieces: await client.openSoon('pieces'), piece: await client.openSoon('piece') };
    await client.settle();
    const pid = Number(await db.value('SELECT feed_worker_pid FROM changefeed.stat_feed'));
    process.kill(pid, 'SIGSTOP');
    try {
      for (const name of Object.keys(watched)) await db.exec(`INSERT INTO bh.${name} VALUES (1, 1, repeat('x', 10000)); ALTER TABLE bh.${name} DROP COLUMN gone`);
    } finally {
      process.kill(pid, 'SIGCONT');
    }
    await client.settle();
    client.check();
    for (const [name, s] of Object.entries(watched)) {
      assert.deepEqual([s.state, ...s.resyncs], ['ready'], name);
      assertSame(s.rows(), await db.rows(`SELECT * FROM bh.${name}`), name);
    }
  });
});
