// What only some versions of the server have (doc/compatibility.md): generated
// columns that are not stored, options of memberships, names of wait events.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { assertSame, Client, ServerError } from './lib/client.mjs';
import { number } from './lib/json.mjs';
import { Session } from './lib/psql.mjs';

const SUB = "current_setting('request.jwt.claims', true)::json->>'sub'";
const ADA = { role: 'vs_web', sub: 'ada' };

describe('versions', () => {
  let db;
  let ada;
  let version;

  before(async () => {
    db = new Session();
    version = Math.trunc(Number(await db.value('SHOW server_version_num')) / 10000);
    await db.exec(`CREATE SCHEMA vs; CREATE ROLE vs_web; GRANT USAGE ON SCHEMA vs TO vs_web;
      ALTER DEFAULT PRIVILEGES IN SCHEMA vs GRANT SELECT ON TABLES TO vs_web; SELECT changefeed.allow_role('vs_web')`);
    ada = await Client.connectSoon({ token: await db.token(ADA) });
  });

  after(async () => {
    await ada?.cut();
    await db?.close();
  });

  const from = (first, t) => {
    if (version < first) t.skip(`from PostgreSQL ${first} on`);
    return version >= first;
  };

  // The same table with the column stored or not; `columns`: what is sent of it.
  for (const [kind, first, columns] of [['STORED', 15, 'id, owner, n, shown'], ['VIRTUAL', 18, 'id, owner, n']]) {
    describe(`a generated column that is ${kind.toLowerCase()}`, () => {
      const name = `gen_${kind.toLowerCase()}`;
      let s;

      async function same(what) {
        await ada.settle();
        ada.check();
        assertSame(s.rows(), await db.rowsAs(ADA, `SELECT ${columns} FROM vs.${name}`), what);
      }

      // Policies in the feed worker, and with a table that only a query worker reads
      for (const [place, using] of [['of constants', 'shown'], ['of a table', `shown AND EXISTS (SELECT FROM vs.${name}_who w WHERE w.usr = owner AND w.usr = ${SUB})`]]) {
        test(`decides in policies ${place}`, async (t) => {
          if (!from(first, t)) return;
          await db.exec(`CREATE TABLE vs.${name} (id int PRIMARY KEY, owner text, n int, shown bool GENERATED ALWAYS AS (n > 10) ${kind});
            CREATE TABLE vs.${name}_who (usr text PRIMARY KEY); INSERT INTO vs.${name}_who VALUES ('ada');
            ALTER TABLE vs.${name} ENABLE ROW LEVEL SECURITY;
            CREATE POLICY p ON vs.${name} FOR SELECT TO vs_web USING (${using});
            INSERT INTO vs.${name} VALUES (1, 'ada', 11), (2, 'ada', 1), (3, 'bob', 12);
            SELECT changefeed.create_channel('${name}', 'vs.${name}', columns => '{${columns}}')`);
          s = await ada.openSoon(name);
          s.onChange = (change, frame, row) => assert.ok(row === undefined || number(row.n) > 10, `a row that is hidden: ${JSON.stringify(row)}`);
          assert.ok(s.rows().length > 0);
          await same('snapshot');
          await db.exec(`INSERT INTO vs.${name} VALUES (4, 'ada', 5), (5, 'ada', 50)`);
          await same('INSERT');
          await db.exec(`UPDATE vs.${name} SET n = CASE WHEN n > 10 THEN 1 ELSE 20 END`);
          await same('UPDATE into and out of view');
          await db.exec(`DELETE FROM vs.${name} WHERE id IN (1, 2, 3)`);
          await same('DELETE');
          if (version >= 17) {
            s.onChange = undefined;
            await db.exec(`ALTER TABLE vs.${name} ALTER shown SET EXPRESSION AS (n < 10)`);
            await same('another expression');
            assert.ok(s.resyncs.length > 0, 'whoever sees other rows is told');
            await db.exec(`INSERT INTO vs.${name} VALUES (6, 'ada', 5), (7, 'ada', 50); UPDATE vs.${name} SET n = 100 - n`);
            await same('changes behind it');
          }
          await ada.unsubscribe(name);
          await db.exec(`SELECT changefeed.drop_channel('${name}'); DROP TABLE vs.${name}, vs.${name}_who`);
        });
      }
    });
  }

  test('a generated column that is virtual cannot be asked for', async (t) => {
    if (!from(18, t)) return;
    await db.exec(`CREATE TABLE vs.ask (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) VIRTUAL);
      INSERT INTO vs.ask VALUES (1, 1)`);
    await assert.rejects(db.exec("SELECT changefeed.create_channel('ask', 'vs.ask')"), /column "twice" of table "vs.ask" cannot be sent/);
    await db.exec("SELECT changefeed.create_channel('ask', 'vs.ask', columns => '{id, n}')");
    // As any column that is not published
    await assert.rejects(ada.open('ask?select=id,twice'), (error) => error instanceof ServerError && error.code === '42501');
    await assert.rejects(db.exec("SELECT changefeed.create_channel('ask:{twice}', 'vs.ask', columns => '{id, n}')"), /virtual generated column/);
    assertSame((await ada.openSoon('ask')).rows(), await db.rowsAs(ADA, 'SELECT id, n FROM vs.ask'), 'the others');
    assert.equal(await db.value("SELECT string_agg(detail, '') FROM changefeed.explain('ask', '{\"role\": \"vs_web\"}') WHERE name = 'twice' OR detail LIKE '%virtual%'"), 'not sent: a virtual generated column');
    await db.exec("SELECT changefeed.drop_channel('ask')");
  });

  test('a virtual generated column that is added is not sent', async (t) => {
    if (!from(18, t)) return;
    await db.exec(`CREATE TABLE vs.added (id int PRIMARY KEY, n int); INSERT INTO vs.added VALUES (1, 1);
      SELECT changefeed.create_channel('added', 'vs.added')`);
    const s = await ada.openSoon('added');
    await db.exec(`ALTER TABLE vs.added ADD COLUMN twice int GENERATED ALWAYS AS (n * 2) VIRTUAL, ADD COLUMN o int DEFAULT 5;
      UPDATE vs.added SET n = 2; INSERT INTO vs.added VALUES (2, 7)`);
    await ada.settle();
    ada.check();
    assertSame(s.rows(), await db.rowsAs(ADA, 'SELECT id, n, o FROM vs.added'), 'behind it');
    for (const channel of ['added?select=id,twice', 'added?twice=eq.2', 'added?order=twice&limit=1']) {
      await assert.rejects(ada.open(channel), (error) => error instanceof ServerError && error.code === '0A000' && /virtual generated column/.test(error.message), channel);
    }
    await db.exec('ALTER TABLE vs.added DROP COLUMN twice; UPDATE vs.added SET n = n + 1');
    await ada.settle();
    ada.check();
    assertSame(s.rows(), await db.rowsAs(ADA, 'SELECT * FROM vs.added'), 'and without it');
    await db.exec("SELECT changefeed.drop_channel('added')");
  });

  test('a policy of the whole row does not guess at a virtual column', async (t) => {
    if (!from(18, t)) return;
    await db.exec(`CREATE TABLE vs.whole (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) VIRTUAL);
      CREATE FUNCTION vs.fine(vs.whole) RETURNS bool LANGUAGE plpgsql STABLE AS $$ BEGIN RETURN $1.twice > 10; END $$;
      ALTER TABLE vs.whole ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON vs.whole FOR SELECT TO vs_web USING (vs.fine(whole));
      INSERT INTO vs.whole VALUES (1, 1); SELECT changefeed.create_channel('whole', 'vs.whole', columns => '{id, n}')`);
    await assert.rejects(ada.open('whole'), (error) => error instanceof ServerError && error.code === '0A000' && /whole row/.test(error.message));
    await db.exec("SELECT changefeed.drop_channel('whole')");
  });

  test('explain asks for the right to SET ROLE', async (t) => {
    if (!from(16, t)) return;
    await db.exec(`CREATE TABLE vs.own (id int PRIMARY KEY); SELECT changefeed.create_channel('own', 'vs.own');
      CREATE ROLE vs_owner; ALTER TABLE vs.own OWNER TO vs_owner; GRANT USAGE ON SCHEMA vs TO vs_owner; GRANT vs_web TO vs_owner WITH SET FALSE`);
    const ask = "SET ROLE vs_owner; SELECT count(*) FROM changefeed.explain('own', '{\"role\": \"vs_web\"}')";
    const other = new Session();
    t.after(() => other.close());
    await assert.rejects(other.exec(ask), /permission denied|must be able to SET ROLE|member/);
    await db.exec('GRANT vs_web TO vs_owner WITH SET TRUE');
    await other.exec(ask);
  });

  test('what processes wait for has a name', async (t) => {
    if (!from(17, t)) return;
    const names = await db.rows("SELECT DISTINCT wait_event FROM pg_stat_activity WHERE backend_type LIKE 'changefeed %' AND wait_event IS NOT NULL");
    assert.ok(names.some(({ wait_event: name }) => /^Changefeed/.test(name)), JSON.stringify(names));
    assert.ok(!names.some(({ wait_event: name }) => name === 'Extension'), JSON.stringify(names));
  });

  test('the library says its version', async (t) => {
    if (!from(18, t)) return;
    assert.equal(await db.value("SELECT version FROM pg_get_loaded_modules() WHERE module_name = 'pg_changefeed'"),
      await db.value("SELECT extversion FROM pg_extension WHERE extname = 'pg_changefeed'"));
  });
});
