// Who is woken by a commit, and what is shown when: by the commit of this database, once, and not
// before others can see it.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import { promisify } from 'node:util';

import { Client, until } from './lib/client.mjs';
import { number } from './lib/json.mjs';
import { reload, Session } from './lib/psql.mjs';

const run = promisify(execFile);

describe('wake-ups', () => {
  let db;
  let client;
  let s;
  let decoder;

  before(async () => {
    await run(process.env.CLUSTER_SCRIPT, ['restart', '--no-build', '--data', process.env.CLUSTER_DATA, '--set', 'max_prepared_transactions=2']);
    db = new Session();
    await db.exec(`CREATE SCHEMA wakes; CREATE ROLE wakes_web; GRANT USAGE ON SCHEMA wakes TO wakes_web;
      SELECT changefeed.allow_role('wakes_web');
      CREATE TABLE wakes.bystander (n int);
      CREATE TABLE wakes.item (id int PRIMARY KEY, n int NOT NULL DEFAULT 0);
      GRANT SELECT ON wakes.item TO wakes_web;
      INSERT INTO wakes.item VALUES (1);
      SELECT changefeed.create_channel('wakes', 'wakes.item');
      CREATE DATABASE wakes_other`);
    client = await Client.connectSoon({ token: await db.token({ role: 'wakes_web' }) });
    s = await client.openSoon('wakes');
    decoder = Number(await db.value('SELECT decoder_pid FROM changefeed.stat_feed'));
  });

  after(async () => {
    await client?.cut();
    await db?.exec('ALTER SYSTEM RESET synchronous_standby_names; SELECT pg_reload_conf()').catch(() => {});
    await db?.close();
  });

  const wakeups = () => Number(/^voluntary_ctxt_switches:\s+(\d+)/m.exec(readFileSync(`/proc/${decoder}/status`, 'utf8'))[1]);

  const shown = () => number(s.rows()[0].n);

  test('a commit wakes the decoder once', async () => {
    const COMMITS = 100;
    await client.settle();
    const before = wakeups();
    for (let i = 1; i <= COMMITS; i += 1) {
      await db.exec(`UPDATE wakes.item SET n = ${i}`);
      await until(() => shown() === i, 'the change');
    }
    // It sleeps behind each commit; the queue that the feed worker has emptied is no reason to wake it.
    const count = wakeups() - before;
    assert.ok(count >= COMMITS / 10 && count <= COMMITS * 1.5, `${count} wake-ups`);
  });

  test('commits of another database do not', async () => {
    const other = new Session({ database: 'wakes_other' });
    await other.exec('CREATE TABLE t (n int)');
    await client.settle();
    const before = wakeups();
    for (let i = 0; i < 300; i += 1) await other.exec(`INSERT INTO t VALUES (${i})`);
    const count = wakeups() - before;
    await other.close();
    assert.ok(count <= 60, `${count} wake-ups`);
    client.check();
  });

  const waiting = (count) => until(async () => await db.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") === String(count), 'they wait');

  /** Sets the standby that there is not, and returns a commit that waits for it. */
  async function standbyMissing(session) {
    await reload(db, { synchronous_standby_names: 'nobody' });
    await db.exec('SET synchronous_commit = local');
    for (;;) {
      let ended = false;
      const done = session.exec('INSERT INTO wakes.bystander VALUES (1)').then(() => { ended = true; });
      await until(async () => ended || await db.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") === '1', 'it waits or ends');
      if (!ended) return { done };
    }
  }

  for (const [what, value, begin, end] of [
    ['COMMIT', 1001, '', 'UPDATE wakes.item SET n = 1001'],
    ['COMMIT PREPARED', 1002, "BEGIN; UPDATE wakes.item SET n = 1002; PREPARE TRANSACTION 'w'", "COMMIT PREPARED 'w'"],
  ]) {
    test(`${what} without its synchronous standby is shown when others see it`, async () => {
      const writer = new Session();
      const bystander = new Session();
      if (begin) await writer.exec(begin);
      const { done: first } = await standbyMissing(bystander);
      const second = writer.exec(end);
      await waiting(2);

      // Decoded, but not visible: neither there nor here.
      const lsn = await db.value('SELECT pg_current_wal_flush_lsn()');
      await until(async () => await db.value(`SELECT decoded_lsn >= '${lsn}' FROM changefeed.stat_feed`) === 't', 'it is decoded');
      assert.notEqual(await db.value('SELECT n FROM wakes.item'), String(value));
      assert.notEqual(shown(), value);

      await db.exec('ALTER SYSTEM RESET synchronous_standby_names; SELECT pg_reload_conf()');
      await Promise.all([first, second]);
      await client.settle();
      assert.equal(shown(), value);
      client.check();
      await writer.close();
      await bystander.close();
    });
  }
});
