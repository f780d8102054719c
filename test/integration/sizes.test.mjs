// Rows that are too large to be sent: whoever would get one is told, others notice nothing, and no
// process unpacks what it cannot pass on.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { assertSame, Client, until } from './lib/client.mjs';
import { megabytes, processesOf, watching } from './lib/memory.mjs';
import { reload, Session } from './lib/psql.mjs';

const MB = 1048576;

describe('rows that are too large', () => {
  let db;
  let token;
  let pids;
  const clients = [];

  before(async () => {
    db = new Session();
    await db.exec(`CREATE SCHEMA sizes; CREATE ROLE sizes_web; GRANT USAGE ON SCHEMA sizes TO sizes_web; SELECT changefeed.allow_role('sizes_web');
      CREATE TABLE sizes.t (id int PRIMARY KEY, name text, body text, doc jsonb, many numeric[]); GRANT SELECT ON sizes.t TO sizes_web;
      CREATE TABLE sizes.other (id int PRIMARY KEY, n int DEFAULT 0); GRANT SELECT ON sizes.other TO sizes_web; INSERT INTO sizes.other VALUES (1);
      INSERT INTO sizes.t VALUES (1, 'one', 'small', '{}');
      SELECT changefeed.create_channel('sizes', 'sizes.t'); SELECT changefeed.create_channel('other', 'sizes.other')`);
    token = await db.token({ role: 'sizes_web' });
    await (await Client.connectSoon({ token })).close();
    await reload(db, { 'changefeed.max_transaction': '16MB' });
    pids = await processesOf(db);
  });

  after(async () => {
    for (const client of clients) await client.cut();
    await reload(db, { 'changefeed.max_transaction': null });
    await db?.close();
  });

  async function connect() {
    const client = await Client.connect({ token });
    clients.push(client);
    return client;
  }

  const gone = (s) => until(() => s.state === 'ended', () => `the end of "${s.name}" (${s.state}, ${s.resyncs})`);

  for (const [what, value] of [
    ['a text of 60 MB that is packed well', "SELECT repeat('x', 60000000) AS body, NULL::jsonb AS doc, NULL::numeric[] AS many"],
    ['a text of 20 MB that cannot be packed', "SELECT string_agg(sha512(i::text::bytea)::text, '') AS body, NULL::jsonb AS doc, NULL::numeric[] AS many FROM generate_series(1, 155000) i"],
    ['a jsonb of 20 MB', "SELECT NULL AS body, jsonb_build_object('a', repeat('{\"x\"}', 2500000)) AS doc, NULL::numeric[] AS many"],
    ['a text of 4 MB that has 24 MB as JSON', "SELECT repeat(chr(1), 4000000) AS body, NULL::jsonb AS doc, NULL::numeric[] AS many"],
    ['numbers with 130,000 digits', "SELECT NULL AS body, NULL::jsonb AS doc, array_agg('1e130000'::numeric) AS many FROM generate_series(1, 300)"],
  ]) {
    test(what, async (t) => {
      const client = await connect();
      const whole = await client.open('sizes');
      const bystander = await connect();
      const part = await bystander.open('sizes?select=name');
      const other = await bystander.open('other');

      // It comes, alone and among others: who reads the column loses the subscription, with the reason.
      const { most } = await watching(db, async () => {
        await db.exec(`BEGIN; UPDATE sizes.other SET n = n + 1; INSERT INTO sizes.t SELECT 2, 'two', v.* FROM (${value}) v; COMMIT`);
        await gone(whole);
        await bystander.settle();
      });
      t.diagnostic(`written: ${megabytes(most)}`);
      assert.equal(whole.revoked.code, '54000');
      assert.match(whole.revoked.message, /"t" has more than 15 MB/);
      assert.match(whole.revoked.hint, /select/);
      assert.equal(other.changes > 0, true);
      assert.deepEqual(other.resyncs, []);
      assertSame(part.rows(), await db.rows('SELECT id, name FROM sizes.t'), 'without the column');
      assert.ok(most.feed < 200 * MB, megabytes(most));

      // It is there: nobody is sent a part of it, and nobody tries for ever.
      const { most: later } = await watching(db, async () => {
        await assert.rejects(client.open('sizes'), { code: '54000' });
        const some = await client.open('sizes?id=eq.1');
        assertSame(some.rows(), await db.rows('SELECT * FROM sizes.t WHERE id = 1'), 'the others');
        const column = await client.open('sizes?select=name');
        await db.exec("UPDATE sizes.t SET name = name || '.'");
        await client.settle();
        await bystander.settle();
        for (const s of [column, part]) assertSame(s.rows(), await db.rows('SELECT id, name FROM sizes.t'), 'without the column');
        assertSame(some.rows(), await db.rows('SELECT * FROM sizes.t WHERE id = 1'), 'the others');
      });
      t.diagnostic(`there: ${megabytes(later)}`);
      for (const process of ['feed', 'gateway', 'query']) assert.ok(later[process] < 200 * MB, megabytes(later));

      await db.exec('DELETE FROM sizes.t WHERE id = 2');
      await bystander.settle();
      assertSame((await client.open('sizes')).rows(), await db.rows('SELECT * FROM sizes.t'), 'when it is gone');
      client.check();
      await client.close();
      await bystander.close();
      const now = await processesOf(db);
      for (const process of ['feed', 'gateway', 'decoder']) assert.deepEqual(now[process], pids[process], 'nobody has ended');
    });
  }

  test('a row of 14 MB is sent, live and in a snapshot', async () => {
    const client = await connect();
    const late = await connect();
    const lengths = [];
    for (const one of [client, late]) {
      one.tamper = (message) => {
        lengths.push(message.length); // the parser of numbers has no room for so long a string
        return [message.split('x'.repeat(1000)).join('')];
      };
    }
    const s = await client.open('sizes');
    await db.exec("INSERT INTO sizes.t SELECT 2, 'two', repeat('x', 14000000)");
    await client.settle();
    assert.deepEqual(s.resyncs, []);
    assert.equal(s.rows().length, 2);
    assert.equal((await late.open('sizes')).rows().length, 2);
    assert.equal(lengths.filter((length) => length > 14000000).length, 2);
    await db.exec('DELETE FROM sizes.t WHERE id = 2');
    await client.settle();
    client.check();
  });
});
