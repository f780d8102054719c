// Many identities are judged in one transaction, with plans that are begun once:
// each gets what SELECT shows to it, whatever the plan keeps for the one before.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { assertSame, Client, until, within } from './lib/client.mjs';
import { number } from './lib/json.mjs';
import { reload, Session } from './lib/psql.mjs';

const CLAIMS = "current_setting('request.jwt.claims', true)::json";
const UID = `(${CLAIMS}->>'uid')::int`;
const MINE = `SELECT room FROM batch.members WHERE usr = ${UID}`;

// "t" is the table of the policy. What the executor could keep from one row or
// identity to the next: results of InitPlans, hash tables, sorted rows, groups.
const POLICIES = {
  in: `room IN (${MINE})`,
  not_in: `room NOT IN (${MINE} AND room IS NOT NULL)`,
  exists: `EXISTS (SELECT FROM batch.members m WHERE m.room = t.room AND m.usr = ${UID})`,
  not_exists: `NOT EXISTS (SELECT FROM batch.members m WHERE m.room = t.room AND m.usr = ${UID})`,
  either: `owner = ${UID} OR room IN (${MINE}) AND id % 2 = 0`,
  null_in: `room IN (SELECT nullif(room, 2) FROM batch.members WHERE usr = ${UID}) OR owner IS NULL`,
  uid_function: 'room IN (SELECT room FROM batch.members WHERE usr = (SELECT batch.uid()))',
  scalar: `(SELECT count(*) FROM batch.members m WHERE m.room = t.room) > (SELECT count(*) FROM batch.members m WHERE m.usr = ${UID}) - 1`,
  array: `room = ANY (ARRAY(${MINE}))`,
  of_claims: `room IN (SELECT r::int FROM json_array_elements_text(${CLAIMS}->'rooms') r)`,
  joined: `EXISTS (SELECT FROM batch.members m JOIN batch.rooms r ON r.id = m.room WHERE m.usr = ${UID} AND r.kind = 'open' AND r.id = t.room)`,
  joined_in: `room IN (SELECT r.id FROM batch.rooms r JOIN batch.members m ON r.id = m.room WHERE m.usr = ${UID} OR r.kind = 'open' AND m.usr = ${UID} + 1)`,
  sorted: `room = (SELECT m.room FROM batch.members m WHERE m.usr = ${UID} ORDER BY m.room DESC LIMIT 1)`,
  grouped: `room IN (SELECT m.room FROM batch.members m WHERE m.usr <= ${UID} GROUP BY m.room HAVING count(*) > 1)`,
  distinct: `(room, 1) IN (SELECT DISTINCT m.room, 1 FROM batch.members m WHERE m.usr = ${UID})`,
  united: `room IN (${MINE} UNION SELECT id FROM batch.rooms WHERE kind = ${CLAIMS}->>'kind')`,
  gated: `EXISTS (SELECT FROM batch.rooms r WHERE r.id = t.room AND ${CLAIMS}->>'kind' = 'open') OR ${CLAIMS}->>'state' = 'new' AND room > 2`,
  of_the_row: 'room IN (SELECT m.room FROM batch.members m WHERE m.usr = (SELECT max(usr) FROM batch.members x WHERE x.room = t.room AND x.usr <= batch.uid()))',
  deep: `EXISTS (SELECT FROM batch.rooms r WHERE r.id = t.room AND EXISTS (SELECT FROM batch.members m WHERE m.room = r.id AND m.usr = ${UID} AND m.usr IN (SELECT usr FROM batch.members WHERE room <> t.room)))`,
  recursive: `room IN (WITH RECURSIVE up(r) AS (${MINE} UNION SELECT r + 1 FROM up WHERE r < 3) SELECT r FROM up)`,
  partitioned: `room IN (SELECT room FROM batch.parts WHERE usr = ${UID})`,
  halves: `EXISTS (SELECT FROM batch.split h WHERE h.room = t.room AND (h.open OR h.room + 0 IN (${MINE})))`,
  guarded_table: 'room IN (SELECT room FROM batch.own_members)',
  view: 'room IN (SELECT room FROM batch.mine)',
  enumerated: `EXISTS (SELECT FROM batch.rooms r WHERE r.id = t.room AND r.state = (${CLAIMS}->>'state')::batch.state)`,
  plpgsql: 'batch.is_member(room)',
  definer: 'batch.is_member_definer(room)',
  domain: `room = (${CLAIMS}->>'uid')::int::batch.small`,
};
// With these the planner takes other ways to the same rows.
const WAYS = {
  'as planned': {},
  'hash joins of seq scans': { enable_nestloop: 'off', enable_mergejoin: 'off', enable_indexscan: 'off', enable_indexonlyscan: 'off', enable_bitmapscan: 'off' },
  'merge joins of sorted rows': { enable_nestloop: 'off', enable_hashjoin: 'off', enable_indexonlyscan: 'off', enable_indexscan: 'off', enable_hashagg: 'off' },
  'nested loops of bitmap scans': { enable_hashjoin: 'off', enable_mergejoin: 'off', enable_indexonlyscan: 'off', enable_indexscan: 'off', enable_seqscan: 'off' },
};
const PEOPLE = 10;
const NAMES = Object.keys(POLICIES);
const claims = (uid) => ({
  role: uid === PEOPLE ? 'batch_staff' : 'batch_web', uid, rooms: [uid % 4, 3], kind: uid % 2 ? 'open' : 'closed', state: uid % 3 ? 'old' : 'new',
});

describe('identities judged together', () => {
  const clients = [];
  let db;

  before(async () => {
    db = new Session();
    // It shall not take the workers' ways.
    await db.exec(`SET jit = off; ${[...new Set(Object.values(WAYS).flatMap(Object.keys))].map((name) => `SET ${name} = on`).join(';')}`);
    await db.exec(`CREATE SCHEMA batch; CREATE ROLE batch_web; CREATE ROLE batch_staff IN ROLE batch_web; GRANT USAGE ON SCHEMA batch TO batch_web;
      CREATE TYPE batch.state AS ENUM ('new', 'old'); CREATE DOMAIN batch.small AS int CHECK (VALUE < 1000);
      CREATE TABLE batch.members (room int, usr int, PRIMARY KEY (room, usr)); CREATE INDEX ON batch.members (usr);
      CREATE TABLE batch.rooms (id int PRIMARY KEY, kind text, state batch.state);
      CREATE TABLE batch.parts (room int, usr int, PRIMARY KEY (usr, room)) PARTITION BY RANGE (usr);
      CREATE TABLE batch.parts1 PARTITION OF batch.parts FOR VALUES FROM (0) TO (4);
      CREATE TABLE batch.parts2 PARTITION OF batch.parts FOR VALUES FROM (4) TO (1000);
      CREATE TABLE batch.split (room int, open bool, half int) PARTITION BY LIST (half);
      CREATE INDEX ON batch.split (room); CREATE TABLE batch.split1 PARTITION OF batch.split FOR VALUES IN (0);
      CREATE TABLE batch.split2 PARTITION OF batch.split FOR VALUES IN (1);
      CREATE TABLE batch.own_members (room int, usr int, PRIMARY KEY (room, usr));
      CREATE VIEW batch.mine AS ${MINE};
      INSERT INTO batch.rooms SELECT r, CASE WHEN r % 2 = 0 THEN 'open' ELSE 'closed' END, CASE WHEN r < 2 THEN 'old' ELSE 'new' END::batch.state FROM generate_series(0, 5) r;
      INSERT INTO batch.members SELECT DISTINCT r, u FROM generate_series(1, ${PEOPLE}) u, generate_series(0, 5) r WHERE (u * 7 + r * 5) % 4 = 0 OR r = u;
      INSERT INTO batch.split SELECT id, false, id / 3 FROM batch.rooms;
      INSERT INTO batch.parts TABLE batch.members; INSERT INTO batch.own_members TABLE batch.members;
      GRANT SELECT ON ALL TABLES IN SCHEMA batch TO batch_web;
      ALTER TABLE batch.own_members ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON batch.own_members USING (usr = ${UID});
      CREATE FUNCTION batch.uid() RETURNS int LANGUAGE sql STABLE AS $$ SELECT ${UID} $$;
      CREATE FUNCTION batch.is_member(r int) RETURNS bool LANGUAGE plpgsql STABLE AS $$ BEGIN RETURN r IN (${MINE}); END $$;
      CREATE FUNCTION batch.is_member_definer(r int) RETURNS bool LANGUAGE sql STABLE SECURITY DEFINER AS $$ SELECT r IN (${MINE}) $$;
      SELECT changefeed.declare_dependency('batch.is_member(int)', 'batch.members'); SELECT changefeed.declare_dependency('batch.is_member_definer(int)', 'batch.members');
      ANALYZE batch.members; ANALYZE batch.rooms;
      SELECT changefeed.allow_role('batch_web'); SELECT changefeed.allow_role('batch_staff')`);
    for (const name of NAMES) {
      await db.exec(`CREATE TABLE batch.${name} (id int PRIMARY KEY, room int, owner int, note text);
        ALTER TABLE batch.${name} ENABLE ROW LEVEL SECURITY; GRANT SELECT ON batch.${name} TO batch_web;
        CREATE POLICY p ON batch.${name} USING (${POLICIES[name].replaceAll(/\bt\./g, `${name}.`)});
        SELECT changefeed.create_channel('batch_${name}', 'batch.${name}')`);
    }
    for (let uid = 1; uid <= PEOPLE; uid += 1) clients.push(await Client.connectSoon({ token: await db.token(claims(uid)) }));
    await Promise.all(clients.map((client) => Promise.all(NAMES.map((name) => client.openSoon(`batch_${name}`)))));
  });

  after(async () => {
    for (const client of clients) await client.cut();
    await db?.close();
  });

  async function compare(what) {
    let seen = 0;
    for (const [i, client] of clients.entries()) {
      await client.settle();
      client.check();
      const all = await db.rowsAs(claims(i + 1), NAMES.map((name) => `SELECT '${name}' AS t, x.* FROM batch.${name} x`).join(' UNION ALL '));
      for (const name of NAMES) {
        const rows = all.filter(({ t }) => t === name).map(({ t, ...row }) => row);
        assertSame(client.subscriptions.get(`batch_${name}`).rows(), rows, `${what}: ${i + 1}, policy "${name}"`);
        seen += rows.length;
      }
    }
    return seen;
  }

  async function everywhere(sql) {
    await db.exec(`BEGIN; ${NAMES.map((name) => sql.replaceAll('@', `batch.${name}`)).join(';\n')}; COMMIT`);
  }

  let next = 1;
  for (const [way, settings] of Object.entries(WAYS)) {
    test(`everybody sees what SELECT shows, ${way}`, async (t) => {
      const nothing = Object.fromEntries(Object.keys(settings).map((name) => [name, null]));
      t.after(() => reload(db, nothing));
      await reload(db, settings);
      // What was planned is planned anew.
      await db.exec('ANALYZE batch.members; ANALYZE batch.rooms; ANALYZE batch.parts; ANALYZE batch.own_members');
      const first = next;
      next += 100;
      await everywhere(`INSERT INTO @ VALUES (${first}, 3, 1, 'one')`);
      await compare('one row');
      await everywhere(`INSERT INTO @ SELECT ${first} + i, CASE WHEN i % 7 < 6 THEN i % 7 END, nullif(i % ${PEOPLE + 1}, 0), 'n' || i FROM generate_series(1, 40) i`);
      const seen = await compare('many rows');
      assert.ok(seen > 1000, `${seen} rows are seen`);
      await everywhere(`UPDATE @ SET room = (room + 1) % 6 WHERE id > ${first}`);
      await compare('from room to room');
      await everywhere(`UPDATE @ SET note = note || '!' WHERE id % 3 = 0; DELETE FROM @ WHERE id > ${first} + 20`);
      await compare('within view and deleted');
      for (const client of clients) for (const s of client.subscriptions.values()) assert.deepEqual(s.resyncs.filter((reason) => reason !== 'dependency_changed'), []);
    });
  }

  test('who joins and leaves between two rows', async () => {
    await db.exec('INSERT INTO batch.members VALUES (4, 9), (0, 3); INSERT INTO batch.parts VALUES (4, 9), (0, 3); DELETE FROM batch.members WHERE usr = 2; DELETE FROM batch.own_members WHERE usr = 5');
    await everywhere(`INSERT INTO @ SELECT ${next} + i, i % 6, 1, 'late' FROM generate_series(1, 12) i`);
    await compare('after it');
  });
});

describe('one among many', () => {
  let db;
  let count = 0;

  before(async () => {
    db = new Session();
    await db.exec(`CREATE SCHEMA among; CREATE ROLE among_web; GRANT USAGE ON SCHEMA among TO among_web; SELECT changefeed.allow_role('among_web');
      CREATE TABLE among.members (room int, usr int, PRIMARY KEY (room, usr)); GRANT SELECT ON among.members TO among_web;
      INSERT INTO among.members SELECT 1, u FROM generate_series(1, 100) u`);
  });

  after(async () => {
    await db?.close();
  });

  const SECRET = 'current_setting(\'among.secret\', true)';

  /** Ten clients at a table with that policy; number 5 and what is special about it. */
  async function stage(t, policy, special = {}, options = {}) {
    const name = `t${++count}`;
    await db.exec(`CREATE TABLE among.${name} (id int PRIMARY KEY, room int, v text); GRANT SELECT ON among.${name} TO among_web;
      ALTER TABLE among.${name} ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON among.${name} USING (${policy});
      SELECT changefeed.create_channel('${name}', 'among.${name}')`);
    const clients = [];
    t.after(() => Promise.all(clients.map((client) => client.cut())));
    for (let uid = 1; uid <= 10; uid += 1) {
      clients.push(await Client.connectSoon({ token: await db.token({ role: 'among_web', uid, n: '1', ...(uid === 5 && special) }) }));
    }
    const opened = [];
    for (const client of clients) opened.push(await client.openSoon(name, options));
    return { name, clients, opened };
  }

  async function others(clients, opened, expected, what) {
    for (const [i, client] of clients.entries()) {
      if (i === 4) continue;
      await client.settle();
      client.check();
      assertSame(opened[i].rows(), expected, `${what}: ${i + 1}`);
      assert.deepEqual(opened[i].resyncs, []);
    }
  }

  const member = 'EXISTS (SELECT FROM among.members m WHERE m.room = # AND m.usr = (current_setting(\'request.jwt.claims\', true)::json->>\'uid\')::int)';

  test('an error ends the subscription of its identity alone', async (t) => {
    const { name, clients, opened } = await stage(t, `${member.replace('#', 'room')} AND (v <> 'divide' OR 1 / (current_setting('request.jwt.claims', true)::json->>'n')::int > 0)`, { n: '0' });
    for (let i = 0; i < 3; i += 1) {
      await db.exec(`INSERT INTO among.${name} VALUES (${i * 2}, 1, 'a'), (${i * 2 + 1}, 1, ${i === 1 ? "'divide'" : "'b'"})`);
      await others(clients, opened, await db.rows(`SELECT * FROM among.${name}`), `insert ${i}`);
    }
    await until(() => opened[4].state === 'ended', 'its end');
    assert.equal(opened[4].revoked.code, '22012');
  });

  test('whoever takes too long is told so, and the others do not wait', async (t) => {
    t.after(() => reload(db, { 'changefeed.policy_timeout': '60s' }));
    await reload(db, { 'changefeed.policy_timeout': '5s' });
    const { name, clients, opened } = await stage(t, `${member.replace('#', 'room')} AND
      (v <> 'count' OR (current_setting('request.jwt.claims', true)::json->>'n')::int = 1 OR
       (SELECT count(*) FROM generate_series(1, (current_setting('request.jwt.claims', true)::json->>'n')::int) a, generate_series(1, 1000000) b) > 0)`, { n: '1000000' });
    await db.exec(`INSERT INTO among.${name} VALUES (1, 1, 'a')`);
    await others(clients, opened, await db.rows(`SELECT * FROM among.${name}`), 'before');
    await db.exec(`INSERT INTO among.${name} VALUES (2, 1, 'count')`);
    await others(clients, opened, await db.rows(`SELECT * FROM among.${name}`), 'while it counts');
    assert.notEqual(opened[4].state, 'ended', 'it is still being judged');
    await within(40000, until(() => opened[4].state === 'ended', 'its end', 40000), 'its end');
    assert.equal(opened[4].revoked.code, '57014');
    await db.exec(`INSERT INTO among.${name} VALUES (3, 1, 'b')`);
    await others(clients, opened, await db.rows(`SELECT * FROM among.${name}`), 'behind it');
  });

  test('for a few rows, memberships are looked up and not listed', async (t) => {
    await db.exec(`CREATE TABLE among.many (room int, usr int, PRIMARY KEY (room, usr)); GRANT SELECT ON among.many TO among_web;
      INSERT INTO among.many SELECT r, u FROM generate_series(1, 500) r, generate_series(1, 20) u; ANALYZE among.many`);
    const { name, clients, opened } = await stage(t, "room IN (SELECT room FROM among.many WHERE usr = (current_setting('request.jwt.claims', true)::json->>'uid')::int)", {}, { snapshot: false });
    for (let id = 1; id <= 3; id += 1) {
      await db.exec(`INSERT INTO among.${name} VALUES (${id}, ${id}, 'a')`);
      await others(clients, opened, await db.rows(`SELECT * FROM among.${name}`), `row ${id}`);
    }
    const read = () => db.rows(`SELECT t.seq_scan + t.idx_scan AS scans, t.seq_tup_read + i.idx_tup_read AS tuples
      FROM pg_stat_user_tables t JOIN pg_stat_user_indexes i USING (relid) WHERE relid = 'among.many'::regclass`);
    await until(async () => number((await read())[0].scans) >= 30, 'each has looked three times');
    // The first one is judged with the plan that lists a user's memberships.
    const tuples = number((await read())[0].tuples);
    assert.ok(tuples < 50000, `${tuples} were read, of 10000`);
  });

  for (const how of ['set_config', 'a function', 'a function with EXCEPTION']) {
    test(`what ${how} sets is not there for the next`, async (t) => {
      const uid = "(current_setting('request.jwt.claims', true)::json->>'uid')";
      const sets = `set_config('among.secret', ${uid}, false)`;
      count += 1;
      await db.exec(`CREATE FUNCTION among.f${count}() RETURNS text LANGUAGE plpgsql AS $$
          BEGIN ${how === 'a function with EXCEPTION' ? 'BEGIN PERFORM 1 / 0; EXCEPTION WHEN division_by_zero THEN NULL; END;' : ''} RETURN ${sets}; END $$`);
      // A row is seen if nobody has set it before, and is set then.
      const first = `coalesce(${SECRET}, '') = ''`;
      const { name, clients, opened } = await stage(t, `${member.replace('#', 'room')} AND CASE WHEN ${first} THEN ${how === 'set_config' ? sets : `among.f${count}()`} = ${uid} ELSE false END`);
      for (let i = 0; i < 3; i += 1) {
        await db.exec(`TRUNCATE among.members; INSERT INTO among.members SELECT 1, u FROM generate_series(1, 100) u`);
        await Promise.all(clients.map((client) => client.settle()));
        await db.exec(`INSERT INTO among.${name} VALUES (${i}, 1, 'a')`);
        await db.exec(`DELETE FROM among.${name} WHERE id < ${i}`);
        for (const [k, client] of clients.entries()) {
          await client.settle();
          client.check();
          assertSame(opened[k].rows(), [{ id: i, room: 1, v: 'a' }], `${k + 1}`);
        }
      }
    });
  }
});
