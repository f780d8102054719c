// join_check decides who may subscribe, and goes on deciding.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { assertSame, Client, until } from './lib/client.mjs';
import { reload, Session } from './lib/psql.mjs';

describe('join_check', () => {
  let db;
  const clients = {};

  const connect = async (sub) => {
    clients[sub] ??= await Client.connectSoon({ token: await db.token({ role: 'join_web', sub }) });
    return clients[sub];
  };

  before(async () => {
    db = new Session();
    await db.exec(`CREATE SCHEMA jc; CREATE ROLE join_web; GRANT USAGE ON SCHEMA jc TO join_web;
      SELECT changefeed.allow_role('join_web');
      CREATE TABLE jc.members (room int, uid text, PRIMARY KEY (room, uid)); GRANT SELECT ON jc.members TO join_web;
      CREATE TABLE jc.messages (id int PRIMARY KEY, room_id int, body text); GRANT SELECT ON jc.messages TO join_web;
      INSERT INTO jc.messages SELECT i, 1 + i % 2, 'm' || i FROM generate_series(1, 10) i;
      INSERT INTO jc.members VALUES (1, 'ada'), (2, 'bob');
      SELECT changefeed.create_channel('jc_room:{room_id}', 'jc.messages', join_check => $$
        EXISTS (SELECT FROM jc.members m WHERE m.room = room_id AND m.uid = current_setting('request.jwt.claims')::jsonb->>'sub')$$)`);
  });
  after(async () => {
    for (const client of Object.values(clients)) await client.cut();
    await db?.close();
  });

  test('admits and refuses', async () => {
    const ada = await connect('ada');
    const s = await ada.openSoon('jc_room:1');
    assertSame(s.rows(), await db.rows('SELECT * FROM jc.messages WHERE room_id = 1'), 'rows');
    await assert.rejects(ada.subscribe('jc_room:2'), (error) => {
      assert.equal(error.code, '42501');
      assert.equal(error.reply.message, 'permission denied for channel');
      return true;
    });
    await assert.rejects(ada.subscribe('jc_room:*'), { code: '42501' }); // the parameter is null
    await assert.rejects(ada.subscribe('jc_room:1x'), { code: '22P02' });
    await ada.unsubscribe('jc_room:1');
  });

  test('a member that leaves loses the channel within 1 s, and what follows', async (t) => {
    const ada = await connect('ada');
    const s = await ada.open('jc_room:1');
    const seen = [];
    s.onChange = (change) => seen.push(change);
    await db.exec("BEGIN; DELETE FROM jc.members WHERE uid = 'ada'; UPDATE jc.messages SET body = 'secret'; COMMIT");
    const start = performance.now();
    await until(() => s.state === 'ended', 'revoked', 1000);
    t.diagnostic(`lost after ${Math.round(performance.now() - start)} ms`);
    assert.equal(s.revoked.reason, 'permission_denied');
    assert.equal(s.revoked.code, '42501');
    assert.equal(seen.length, 0);
    await assert.rejects(ada.subscribe('jc_room:1'), { code: '42501' });
    await db.exec("INSERT INTO jc.members VALUES (1, 'ada')");
    await until(() => ada.open('jc_room:1').catch((error) => { if (error.code !== '42501') throw error; }), 'admitted', 1000);
    ada.check();
  });

  test('a change that keeps it true is a resync', async () => {
    const ada = await connect('ada');
    const s = ada.subscriptions.get('jc_room:1');
    const before = s.resyncs.length;
    await db.exec("INSERT INTO jc.members VALUES (2, 'carl')");
    await ada.settle();
    await until(() => s.state === 'ready', 'ready');
    assert.deepEqual(s.resyncs.slice(before), ['dependency_changed']);
    assertSame(s.rows(), await db.rows('SELECT * FROM jc.messages WHERE room_id = 1'), 'rows');
  });

  test('it holds for whoever resumes, and without a snapshot', async () => {
    const token = await db.token({ role: 'join_web', sub: 'dora' });
    await db.exec("INSERT INTO jc.members VALUES (1, 'dora')");
    const dora = await Client.connect({ token });
    let s = await until(() => dora.open('jc_room:1').catch(() => null), 'admitted');
    await dora.sync();
    const from = s.position;
    await dora.cut();
    let again = await Client.connect({ token });
    const resumed = await again.open('jc_room:1', { from, cache: s });
    assert.equal(resumed.recovered, true);
    await again.cut();
    await db.exec("DELETE FROM jc.members WHERE uid = 'dora'");
    again = await Client.connect({ token });
    await assert.rejects(again.subscribe('jc_room:1', { from, cache: s }), { code: '42501' });
    await assert.rejects(again.subscribe('jc_room:1', { snapshot: false }), { code: '42501' });
    await again.cut();
  });

  test('REVOKE on what it reads', async () => {
    const ada = await connect('ada');
    const s = ada.subscriptions.get('jc_room:1');
    await db.exec('REVOKE SELECT ON jc.members FROM join_web');
    await until(() => s.state === 'ended', 'revoked', 1000);
    assert.equal(s.revoked.reason, 'permission_denied');
    await db.exec('GRANT SELECT ON jc.members TO join_web');
    await until(() => ada.open('jc_room:1').catch(() => null), 'admitted', 1000);
  });

  test('an error or a time-out refuses that subscription only', async (t) => {
    t.after(() => reload(db, { 'changefeed.policy_timeout': null }));
    await reload(db, { 'changefeed.policy_timeout': '1s' });
    const ada = await connect('ada');
    await db.exec(`SELECT changefeed.create_channel('fails:{room_id}', 'jc.messages', join_check => '1 / (room_id - 1) = 1');
      SELECT changefeed.create_channel('slow:{room_id}', 'jc.messages', join_check => 'pg_sleep(60) IS NOT NULL');
      SELECT changefeed.create_channel('null:{room_id}', 'jc.messages', join_check => 'NULL')`);
    await assert.rejects(ada.openSoon('fails:1'), { code: '22012' });
    await ada.open('fails:2');
    const start = performance.now();
    await assert.rejects(ada.openSoon('slow:1'), { code: '57014' });
    assert.ok(performance.now() - start < 20000, 'limited to policy_timeout, not to the time of a snapshot');
    await assert.rejects(ada.openSoon('null:1'), { code: '42501' });
    await ada.settle();
    ada.check();
  });

  test('another definition moves the subscriptions', async () => {
    const ada = await connect('ada');
    await db.exec("SELECT changefeed.create_channel('open:{room_id}', 'jc.messages')");
    const s = await ada.openSoon('open:1');
    await db.exec("UPDATE changefeed.channel SET join_check = 'false' WHERE name = 'open:{room_id}'");
    await until(() => s.state === 'ended', 'revoked', 1000);
    assert.equal(s.revoked.reason, 'permission_denied');
  });

  test('a function that it calls is replaced', async () => {
    const ada = await connect('ada');
    const may = (value) => `CREATE OR REPLACE FUNCTION jc.may() RETURNS bool LANGUAGE sql STABLE AS 'SELECT ${value}'`;
    await db.exec(`${may(true)}; SELECT changefeed.create_channel('called:{room_id}', 'jc.messages', join_check => 'jc.may()')`);
    const s = await ada.openSoon('called:1');
    await db.exec(may(false));
    await until(() => s.state === 'ended', 'revoked', 1000);
  });
});
