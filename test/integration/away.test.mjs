// What changed while a client was away is not overlooked because the feed was
// restarted in between: its log is decoded anew, and catalogs are those of now.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { assertSame, Client, until } from './lib/client.mjs';
import { Session } from './lib/psql.mjs';

const CLAIMS = { role: 'away_web', sub: 'ada' };

describe('resuming behind a restart of the feed', () => {
  let db;
  let token;

  before(async () => {
    db = new Session();
    await db.exec(`CREATE SCHEMA away; CREATE ROLE away_web; GRANT USAGE ON SCHEMA away TO away_web;
      SELECT changefeed.allow_role('away_web');
      CREATE TABLE away.t (id int PRIMARY KEY, owner text, note text);
      ALTER TABLE away.t ENABLE ROW LEVEL SECURITY;
      CREATE POLICY p ON away.t USING (true);
      GRANT SELECT ON away.t TO away_web;
      INSERT INTO away.t VALUES (1, 'ada', 'a'), (2, 'bob', 'b');
      SELECT changefeed.create_channel('away', 'away.t')`);
    token = await db.token(CLAIMS);
  });
  after(() => db?.close());

  const changes = [
    ['a policy', "ALTER POLICY p ON away.t USING (owner = 'ada')", '*'],
    ['a privilege', 'REVOKE SELECT ON away.t FROM away_web; GRANT SELECT (id, owner) ON away.t TO away_web', 'id, owner'],
    ['row security', 'ALTER TABLE away.t DISABLE ROW LEVEL SECURITY', 'id, owner'],
    ['a column', 'ALTER TABLE away.t DROP note; GRANT SELECT ON away.t TO away_web', 'id, owner'],
  ];
  for (const [what, sql, columns] of changes) {
    test(`${what} that changed meanwhile`, async () => {
      const client = await Client.connectSoon({ token });
      const held = await client.openSoon('away');
      await client.settle();
      const { position } = held;
      await client.cut();

      await db.exec(sql);
      const old = await db.value('SELECT feed_worker_pid FROM changefeed.stat_feed');
      await db.exec(`SELECT pg_terminate_backend(${old})`);
      await until(async () => !['', old].includes(await db.value("SELECT feed_worker_pid FROM changefeed.stat_feed WHERE state = 'running'")), 'feed worker again');

      const again = await until(() => Client.connect({ token }).catch((error) => {
        if (error.code !== 'ECONNREFUSED') throw error;
      }), 'connected');
      const s = await again.subscribe('away', { from: position, cache: held });
      await s.ready();
      await again.settle();
      const rows = await db.rowsAs(CLAIMS, `SELECT ${columns} FROM away.t`);
      assertSame(s.rows(), rows, what);
      assert.ok(rows.length > 0);
      await again.close();
    });
  }
});
