// Coming back with a position: what is honoured, what is not and why, and how
// far back the history reaches.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { assertSame, Client, until } from './lib/client.mjs';
import { number } from './lib/json.mjs';
import { reload, Session } from './lib/psql.mjs';

const CLAIMS = { role: 'resume_web', sub: 'ada' };

/** Positions are opaque to clients; these tests make some that were never given out. */
const unpack = (position) => {
  const bytes = Buffer.from(position.slice(0, 32), 'base64url');
  return { epoch: bytes.readBigUInt64BE(0), lsn: bytes.readBigUInt64BE(8), xid: bytes.readUInt32BE(16), time: bytes.readUInt32BE(20), tag: position.slice(32) };
};
const pack = ({ epoch, lsn, xid, time, tag }) => {
  const bytes = Buffer.alloc(24);
  bytes.writeBigUInt64BE(epoch, 0);
  bytes.writeBigUInt64BE(lsn, 8);
  bytes.writeUInt32BE(xid, 16);
  bytes.writeUInt32BE(time, 20);
  return bytes.toString('base64url') + tag;
};
const change = (position, fields) => pack({ ...unpack(position), ...fields });

describe('resuming', () => {
  let db;
  let token;
  const clients = [];

  before(async () => {
    db = new Session();
    await db.exec(`CREATE SCHEMA res; CREATE ROLE resume_web; GRANT USAGE ON SCHEMA res TO resume_web;
      ALTER DEFAULT PRIVILEGES IN SCHEMA res GRANT SELECT ON TABLES TO resume_web;
      SELECT changefeed.allow_role('resume_web');
      CREATE TABLE res.item (id int PRIMARY KEY, n int NOT NULL DEFAULT 0, pad text);
      INSERT INTO res.item SELECT i FROM generate_series(1, 20) i;
      SELECT changefeed.create_channel('item', 'res.item')`);
    token = await db.token(CLAIMS);
    const client = await Client.connectSoon({ token });
    await client.openSoon('item');
    await client.close();
  });

  after(async () => {
    for (const client of clients) await client.cut();
    await db?.close();
  });

  async function connect(options = {}) {
    const client = await Client.connect({ token, ...options });
    clients.push(client);
    return client;
  }

  const set = (settings) => reload(db, settings);

  /** Comes back with `from`; what the client was told, and that its rows are right. */
  async function resume(channel, from, cache, select = 'SELECT * FROM res.item') {
    const client = await connect();
    await client.sync(); // what it missed has been published
    const s = await client.open(channel, { from, cache }).catch((error) => { client.check(); throw client.closed ? new Error(`${error.message}: ${client.closed.code} ${client.closed.reason}`) : error; });
    await client.settle();
    assertSame(s.rows(), await db.rowsAs(CLAIMS, select), channel);
    const { recovered, resyncs } = s;
    await client.close();
    return { recovered, reason: resyncs.join(' ') };
  }

  const RECOVERED = { recovered: true, reason: '' };
  const refused = (reason) => ({ recovered: false, reason });

  test('a position that names nothing here is refused, and the reason told', async () => {
    const client = await connect();
    const s = await client.open('item');
    await db.exec('UPDATE res.item SET n = n + 1');
    await client.settle();
    const { position } = s;
    const at = unpack(position);
    await client.close();

    assert.deepEqual(await resume('item', position, s), RECOVERED);
    assert.deepEqual(await resume('item', change(position, { epoch: at.epoch ^ 1n }), s), refused('unknown_epoch'));
    assert.deepEqual(await resume('item', change(position, { xid: (at.xid ^ 1) >>> 0 }), s), refused('timeline_lost'));
    assert.deepEqual(await resume('item', change(position, { time: (at.time ^ 1) >>> 0 }), s), refused('timeline_lost'));
    assert.deepEqual(await resume('item', change(position, { lsn: at.lsn - 1n }), s), refused('timeline_lost'));
    assert.deepEqual(await resume('item', change(position, { lsn: at.lsn + 1n }), s), refused('timeline_lost'));
    for (const lsn of [at.lsn + 0x100000000n, 0xffffffffffffffffn]) {
      assert.deepEqual(await resume('item', change(position, { lsn }), s), refused('timeline_lost'), `LSN ${lsn}`);
    }
    for (const lsn of [0n, 1n]) {
      assert.deepEqual(await resume('item', change(position, { lsn }), s), refused('history_truncated'), `LSN ${lsn}`);
    }
    // As one that another process gave out for the start of its log.
    assert.deepEqual(await resume('item', change(position, { xid: 0 }), s), refused('history_truncated'));
    assert.deepEqual(await resume('item', change(position, { lsn: 0n, xid: 0, time: 0 }), s), refused('history_truncated'));
  });

  test('a position of another identity is refused', async () => {
    const client = await connect();
    const s = await client.open('item');
    await client.close();
    const other = await connect({ token: await db.token({ ...CLAIMS, sub: 'bob' }) });
    const t = await other.open('item', { from: s.position, cache: s });
    assert.equal(t.recovered, false);
    assert.deepEqual(t.resyncs, ['identity_changed']);
    // Of another epoch it is not even known whose it was.
    await other.unsubscribe('item');
    const u = await other.open('item', { from: change(s.position, { epoch: 1n }), cache: s });
    assert.deepEqual(u.resyncs, ['unknown_epoch']);
    await other.close();
  });

  test('an identity that changes while the position is looked at', async () => {
    const client = await connect();
    const s = await client.open('item');
    await client.close();
    const bob = await db.token({ ...CLAIMS, sub: 'bob' });
    for (let i = 0; i < 20; i += 1) {
      const other = await connect();
      const subscribed = other.subscribe('item', { from: s.position, cache: s });
      await other.request('token', { token: bob });
      const t = await subscribed;
      await t.ready();
      await other.settle();
      assert.deepEqual(t.resyncs, ['identity_changed']);
      assertSame(t.rows(), await db.rows('SELECT * FROM res.item'), 'item');
      await other.close();
    }
  });

  // What happens while the client is away, and what it is told.
  for (const [reason, setup, missed] of [
    ['channel_changed', '', "SELECT changefeed.drop_channel('away'); SELECT changefeed.create_channel('away', 'res.away', filter => 'n < 5')"],
    ['policy_changed', 'ALTER TABLE res.away ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON res.away USING (true)', 'ALTER POLICY p ON res.away USING (n < 5)'],
    ['dependency_changed', `CREATE TABLE res.members (usr text); INSERT INTO res.members VALUES ('ada');
      ALTER TABLE res.away ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON res.away USING (n < (SELECT count(*) FROM res.members))`, "INSERT INTO res.members VALUES ('bob')"],
    ['truncated', '', 'TRUNCATE res.away'],
    ['transaction_too_large', '', "UPDATE res.away SET pad = (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 16000))"],
  ]) {
    test(`${reason} while away`, async () => {
      await db.exec(`CREATE TABLE res.away (id int PRIMARY KEY, n int NOT NULL, pad text);
        INSERT INTO res.away SELECT i, i FROM generate_series(0, 9) i; ${setup};
        SELECT changefeed.create_channel('away', 'res.away')`);
      try {
        const client = await connect();
        const s = await client.openSoon('away');
        await client.settle();
        await client.close();
        await db.exec(missed);
        // A truncation is a change of the catalog, too, but this says more.
        const told = await resume('away', s.position, s, `SELECT * FROM res.away ${reason === 'channel_changed' ? 'WHERE n < 5' : ''}`);
        if (reason === 'truncated') assert.match(told.reason, /^truncated$/);
        else assert.equal(told.reason, reason);
        assert.equal(told.recovered, false);
      } finally {
        await db.exec(`SELECT changefeed.drop_channel('away'); DROP TABLE res.away; DROP TABLE IF EXISTS res.members`);
      }
    });
  }

  test('a transaction in many parts while away', async () => {
    const client = await connect();
    const s = await client.open('item');
    await client.close();
    await db.exec("UPDATE res.item SET pad = repeat('x', 300 * 1024) || id, n = n + 1");
    for (let i = 0; i < 3; i += 1) assert.deepEqual(await resume('item', s.position, s), RECOVERED);
    await db.exec('UPDATE res.item SET pad = NULL');
    assert.deepEqual(await resume('item', s.position, s), RECOVERED);
  });

  test('what makes the replay impossible is announced even after "recovered"', async () => {
    await db.exec(`CREATE TABLE res.toast (id int PRIMARY KEY, n int, big text);
      ALTER TABLE res.toast ALTER big SET STORAGE EXTERNAL;
      SELECT changefeed.create_channel('toast', 'res.toast', on_update => 'replace');
      ALTER TABLE res.toast REPLICA IDENTITY USING INDEX toast_pkey;
      INSERT INTO res.toast VALUES (1, 1, repeat('x', 10000))`);
    const client = await connect();
    const s = await client.openSoon('toast', { loose: true });
    await client.settle();
    await client.close();
    await db.exec('UPDATE res.toast SET n = 2');
    const later = await connect();
    const again = await later.open('toast', { from: s.position, cache: s, loose: true });
    await later.settle();
    later.check();
    assertSame(again.rows(), await db.rows('SELECT * FROM res.toast'), 'toast');
    assert.equal(again.recovered, true);
    assert.deepEqual(again.resyncs, ['value_not_in_wal']);
    await later.close();
  });

  test('whoever comes back from far away does not keep others waiting', async () => {
    await set({ 'changefeed.history_size': '128MB' });
    try {
      await db.exec(`CREATE TABLE res.far (id int PRIMARY KEY, room int); SELECT changefeed.create_channel('far:{room}', 'res.far')`);
      const client = await connect();
      const held = await client.openSoon('far:1');
      await client.close();
      await db.exec('SET synchronous_commit = off');
      await db.exec('DO $$ BEGIN FOR i IN 1..50000 LOOP INSERT INTO res.far VALUES (i, 2); COMMIT; END LOOP; END $$');
      const newcomer = await connect();
      await newcomer.sync();
      const far = await (await connect()).subscribe('far:1', { from: held.position, cache: held });
      const order = [];
      await Promise.all([far.ready().then(() => order.push('far')), newcomer.open('item').then(() => order.push('newcomer'))]);
      assert.deepEqual(order, ['newcomer', 'far']);
      assert.ok(far.recovered);
      assert.deepEqual(far.resyncs, []);
    } finally {
      await db.exec('RESET synchronous_commit');
      await set({ 'changefeed.history_size': null });
    }
  });

  test('history_size: positions resume up to an edge, and beyond are told to be too old', async () => {
    await set({ 'changefeed.history_size': '2MB' });
    try {
      const client = await connect();
      const s = await client.open('item');
      const held = [];
      for (let i = 0; i < 40; i += 1) {
        await db.exec(`UPDATE res.item SET n = n + 1, pad = (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 2000)) WHERE id = ${1 + (i % 20)}`);
        await client.settle();
        held.push({ position: s.position, entities: new Map([['item', { rows: new Map(s.entities.get('item').rows) }]]) });
      }
      await client.close();
      const bytes = number((await db.rows('SELECT log_bytes FROM changefeed.stat_feed'))[0].log_bytes);
      assert.ok(bytes <= 2 * 1024 * 1024, `the log has ${bytes} bytes`);
      const told = [];
      for (const { position, ...cache } of held) told.push((await resume('item', position, cache)).reason);
      const edge = told.indexOf('');
      assert.ok(edge > 0 && edge < held.length - 5, told.join());
      assert.deepEqual(told, held.map((_, i) => (i < edge ? 'history_truncated' : '')));
    } finally {
      await set({ 'changefeed.history_size': null });
    }
  });

  test('history_age: what is older is forgotten, but for the last transaction', async () => {
    await set({ 'changefeed.history_age': '1h' });
    try {
      const client = await connect();
      const s = await client.open('item');
      const take = () => ({ position: s.position, entities: new Map([['item', { rows: new Map(s.entities.get('item').rows) }]]) });
      await db.exec('UPDATE res.item SET n = n + 1, pad = NULL');
      await client.settle();
      const old = take();
      const begun = Date.now();
      await db.exec('UPDATE res.item SET n = n + 1');
      await client.settle();
      const young = take();
      assert.deepEqual(await resume('item', old.position, old), RECOVERED);
      // The one behind `old` goes with its age; that behind `young` is the last, so `young` stays.
      await db.exec('UPDATE res.item SET n = n + 1');
      await client.settle();
      const last = take();
      await set({ 'changefeed.history_age': '4s' });
      await until(async () => (await resume('item', old.position, old)).reason === 'history_truncated', 'too old');
      assert.ok(Date.now() - begun > 3900, 'not before its time');
      await until(async () => number((await db.rows('SELECT log_bytes FROM changefeed.stat_feed'))[0].log_bytes) < 20000, 'one transaction is left');
      assert.deepEqual(await resume('item', young.position, young), RECOVERED);
      assert.deepEqual(await resume('item', last.position, last), RECOVERED);
      await client.close();
    } finally {
      await set({ 'changefeed.history_age': null });
    }
  });

  test('history_wal_size: while others write, the slot follows, and the last position stays good', async () => {
    await set({ 'changefeed.history_wal_size': '64MB' });
    const other = new Session({ database: 'postgres' });
    try {
      const client = await connect();
      const s = await client.open('item');
      await db.exec('UPDATE res.item SET n = n + 1');
      await client.settle();
      const { position } = s;
      await client.close();
      const slot = await db.value('SELECT slot_name FROM changefeed.stat_feed');
      const held = async () => Number(await db.value('SELECT wal_held_bytes FROM changefeed.stat_feed'));
      const confirmed = async () => db.value(`SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '${slot}'`);
      const before = await confirmed();
      await other.exec('CREATE TABLE IF NOT EXISTS of_other (a text)');
      for (let i = 0; i < 60; i += 1) {
        await other.exec("INSERT INTO of_other SELECT repeat(md5(i::text), 60) FROM generate_series(1, 2000) i; TRUNCATE of_other");
        // What was written a moment ago may not have been read yet.
        await until(async () => await held() < 64 * 1024 * 1024, 'no more is held');
      }
      await until(async () => await held() < 24 * 1024 * 1024, 'the slot follows', 40000);
      assert.notEqual(await confirmed(), before);
      assert.equal(await db.value('SELECT slot_name FROM changefeed.stat_feed'), slot);
      assert.deepEqual(await resume('item', position, s), RECOVERED);

      // And for workers that start anew, which do not find it in the WAL any more.
      const generation = await db.value('SELECT generation FROM changefeed.stat_feed');
      await db.exec('SELECT pg_terminate_backend((SELECT decoder_pid FROM changefeed.stat_feed))');
      await until(async () => await db.value(`SELECT state = 'running' AND gateway_pid IS NOT NULL AND generation <> ${generation} FROM changefeed.stat_feed`) === 't', 'new workers', 45000);
      assert.equal(await db.value('SELECT slot_name FROM changefeed.stat_feed'), slot);
      const again = await until(() => resume('item', position, s).catch((error) => { if (!/ECONNREFUSED|closed/.test(error.message)) throw error; }), 'a client');
      assert.deepEqual(again, RECOVERED);
    } finally {
      await other.exec('DROP TABLE of_other');
      await other.close();
      await set({ 'changefeed.history_wal_size': null });
    }
  });

  test('the start of a log that was emptied is not taken for that of another', async () => {
    // Found by asking: a worker whose log is empty gives out a position that
    // says "nothing since my start". It means nothing to the next worker.
    await set({ 'changefeed.history_age': '1s', 'changefeed.history_wal_size': '64MB' });
    const other = new Session({ database: 'postgres' });
    const renew = async () => {
      const generation = await db.value('SELECT generation FROM changefeed.stat_feed');
      await db.exec('SELECT pg_terminate_backend((SELECT decoder_pid FROM changefeed.stat_feed))');
      await until(async () => await db.value(`SELECT state = 'running' AND gateway_pid IS NOT NULL AND generation <> ${generation} FROM changefeed.stat_feed`) === 't', 'new workers', 45000);
      return until(() => Client.connect({ token }).catch(() => null), 'a client');
    };
    const writeElsewhere = async () => {
      await other.exec('CREATE TABLE IF NOT EXISTS of_other (a text)');
      for (let i = 0; i < 12; i += 1) await other.exec('INSERT INTO of_other SELECT repeat(md5(i::text), 60) FROM generate_series(1, 2000) i; TRUNCATE of_other');
    };
    try {
      await db.exec('UPDATE res.item SET n = n + 1');
      await writeElsewhere();
      await until(async () => await db.value('SELECT wal_held_bytes < 24 * 1024 * 1024 FROM changefeed.stat_feed') === 't', 'the slot follows', 40000);
      let client = await renew();
      const s = await client.open('item');
      await client.close();
      await db.exec('UPDATE res.item SET n = n + 1');
      await db.exec('UPDATE res.item SET n = n + 10 WHERE id < 10');
      await writeElsewhere();
      await until(async () => await db.value('SELECT wal_held_bytes < 24 * 1024 * 1024 FROM changefeed.stat_feed') === 't', 'the slot follows', 40000);
      client = await renew();
      await client.close();
      await db.exec('UPDATE res.item SET n = n + 100 WHERE id = 1');
      assert.deepEqual(await resume('item', s.position, s), refused('history_truncated'));
    } finally {
      await other.exec('DROP TABLE of_other');
      await other.close();
      await set({ 'changefeed.history_age': null, 'changefeed.history_wal_size': null });
    }
  });
});
