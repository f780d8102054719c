// Many identities with policies, conditions and both, found by the values in a
// row: every cache is what SELECT shows, with the index and without it.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { Client } from './lib/client.mjs';
import { canonical, parseExact } from './lib/json.mjs';
import { quote, reload, Session } from './lib/psql.mjs';
import { randomOf } from './lib/random.mjs';

const claim = (name) => `current_setting('request.jwt.claims', true)::jsonb ->> '${name}'`;
const encode = encodeURIComponent;

/** Numbers that are the same in each run; SEED=... for others. */
const { random, pick: pickOf } = randomOf(Number(process.env.SEED ?? 20261122));
const pick = (list) => pickOf(...list);

const OWNER = `owner = ${claim('sub')}`;
const TEAM = `team = (${claim('team')})::int`;
const TEAMS = `team = ANY (string_to_array(${claim('teams')}, ',')::int[])`;

/** With demands and without, on several columns, and some that only query workers can evaluate. */
const POLICIES = [
  OWNER,
  TEAM,
  TEAMS,
  `${OWNER} OR ${TEAMS}`,
  `${OWNER} OR (${TEAM} AND NOT hidden)`,
  `${TEAM} AND tag IN ('a', 'b')`,
  `hidden IS FALSE AND ${TEAMS}`,
  `level <= (${claim('level')})::int`,
  `NOT hidden OR ${OWNER}`,
  'tag IN (\'a\', \'c\')',
  'true',
  'false',
  `EXISTS (SELECT FROM idx.members m WHERE m.team = t.team AND m.usr = ${claim('sub')})`,
  `${OWNER} OR EXISTS (SELECT FROM idx.members m WHERE m.team = t.team AND m.usr = ${claim('sub')})`,
  // Its evaluation may fail, for nobody of these.
  `100 / (level + 1) > 0 AND ${TEAMS}`,
];

const CONDITIONS = [
  () => [[], 'true'],
  () => [[], 'true'],
  () => { const v = `u${random(40)}`; return [[['owner', `eq.${v}`]], `owner = ${quote(v)}`]; },
  () => { const v = random(10); return [[['team', `eq.${v}`]], `team = ${v}`]; },
  () => { const v = [random(10), random(10), random(10)]; return [[['team', `in.(${v})`]], `team IN (${v})`]; },
  () => { const v = random(100); return [[['level', `gt.${v}`]], `level > ${v}`]; },
  () => { const v = random(10); return [[['team', `eq.${v}`], ['hidden', 'is.false']], `team = ${v} AND hidden IS FALSE`]; },
  () => { const v = pick(['a', 'b', 'c']); return [[['tag', `eq.${v}`]], `tag = ${quote(v)}`]; },
  () => { const v = pick(['a', 'b', 'c']); return [[['tag', `eq.${v}`], ['select', 'id,tag']], `tag = ${quote(v)}`, 'id, tag']; },
  () => [[['owner', 'is.null']], 'owner IS NULL'],
];

describe('who is concerned by a row', () => {
  let db;
  const clients = [];

  const claimsOf = (i) => ({
    role: i % 7 === 0 ? 'idx_staff' : 'idx_web',
    sub: `u${i % 40}`,
    team: i % 10,
    teams: [i % 10, (i * 3) % 10, 11].join(','),
    level: (i * 7) % 100,
  });

  before(async () => {
    db = new Session();
    await db.exec(`CREATE SCHEMA idx; CREATE ROLE idx_web; CREATE ROLE idx_staff;
      GRANT USAGE ON SCHEMA idx TO idx_web, idx_staff;
      CREATE TABLE idx.members (team int, usr text, PRIMARY KEY (team, usr));
      CREATE TABLE idx.t (id int PRIMARY KEY, team int, owner text, level int NOT NULL, hidden bool, tag varchar(5), note text);
      GRANT SELECT ON idx.members, idx.t TO idx_web;
      GRANT SELECT ON idx.members TO idx_staff; GRANT SELECT (id, team, owner, level, hidden, tag) ON idx.t TO idx_staff;
      ALTER TABLE idx.t ENABLE ROW LEVEL SECURITY;
      CREATE POLICY p ON idx.t FOR SELECT TO idx_web USING (${OWNER});
      CREATE POLICY s ON idx.t FOR SELECT TO idx_staff USING (${TEAM});
      INSERT INTO idx.members SELECT i % 10, 'u' || i FROM generate_series(0, 39) i;
      SELECT changefeed.allow_role('idx_web'), changefeed.allow_role('idx_staff');
      SELECT changefeed.create_channel('all', 'idx.t');
      SELECT changefeed.create_channel('team:{team}', 'idx.t');
      -- What SELECT shows to each: one answer for all of them.
      CREATE FUNCTION idx.selected(asked json) RETURNS json LANGUAGE plpgsql AS $$
      DECLARE
        one json; result json[] := '{}'; rows json;
      BEGIN
        FOR one IN SELECT json_array_elements(asked) LOOP
          PERFORM set_config('request.jwt.claims', one ->> 'claims', true);
          EXECUTE format('SET LOCAL ROLE %I', one -> 'claims' ->> 'role');
          EXECUTE format('SELECT coalesce(json_agg(x), ''[]'') FROM (SELECT %s FROM idx.t WHERE %s) x',
                         one ->> 'columns', one ->> 'where') INTO rows;
          SET LOCAL ROLE NONE;
          result := result || rows;
        END LOOP;
        RETURN to_json(result);
      END $$`);
  });

  after(async () => {
    for (const { client } of clients) client.cut();
    await db?.close();
  });

  async function tokens(list) {
    return parseExact(await db.value(`SELECT json_agg(changefeed.make_token(c) ORDER BY o)
      FROM jsonb_array_elements(${quote(JSON.stringify(list))}::jsonb) WITH ORDINALITY x (c, o)`));
  }

  /** Clients with a few subscriptions each. */
  async function connect(from, to) {
    const claims = [];
    for (let i = from; i < to; i++) claims.push(claimsOf(i));
    const list = await tokens(claims);
    for (let i = 0; i < claims.length; i += 50) {
      await Promise.all(claims.slice(i, i + 50).map(async (c, k) => {
        const one = { claims: c, client: await Client.connectSoon({ token: list[i + k] }), watched: [] };
        clients.push(one);
        await watch(one);
      }));
    }
  }

  async function watch(one) {
    const names = new Map();
    for (let k = 0; k < 2; k++) {
      const [conditions, where, select] = pick(CONDITIONS)();
      const team = random(10);
      const base = random(3) === 0 ? `team:${team}` : 'all';
      const query = conditions.map(([key, value]) => `${key}=${encode(value)}`).join('&');
      const columns = select ?? (one.claims.role === 'idx_staff' ? 'id, team, owner, level, hidden, tag' : '*');
      names.set(query ? `${base}?${query}` : base, { where: base === 'all' ? where : `team = ${team} AND ${where}`, columns });
    }
    await Promise.all([...names].map(async ([name, about]) => {
      await one.client.openSoon(name);
      one.watched.push({ name, ...about });
    }));
  }

  async function compare(what) {
    await Promise.all(clients.map(({ client }) => client.settle(60000)));
    const asked = clients.flatMap(({ claims, watched }) => watched.map(({ where, columns }) => ({ claims, where, columns })));
    const selected = parseExact(await db.value(`SELECT idx.selected(${quote(JSON.stringify(asked))})`));
    let i = 0;
    let rows = 0;
    for (const { client, claims, watched } of clients) {
      client.check();
      for (const { name, where } of watched) {
        const s = client.subscriptions.get(name);
        const expected = selected[i++];
        assert.ok(s, `${what}: "${name}" of ${JSON.stringify(claims)} has ended: ${JSON.stringify(client.subscriptionsEnded.find((e) => e.name === name)?.revoked)}`);
        assert.deepEqual(s.rows().map(canonical).sort(), expected.map(canonical).sort(), `${what}: "${name}" (${where}) of ${JSON.stringify(claims)}`);
        rows += expected.length;
      }
    }
    return rows;
  }

  const value = {
    team: () => pick(['NULL', ...Array.from({ length: 11 }, (_, i) => String(i))]),
    owner: () => pick(['NULL', ...Array.from({ length: 40 }, (_, i) => `'u${i}'`)]),
    level: () => String(random(100)),
    hidden: () => pick(['NULL', 'true', 'false', 'false']),
    tag: () => pick(['NULL', '\'a\'', '\'b\'', '\'c\'']),
    note: () => `'n${random(1000)}'`,
  };

  function change() {
    const id = random(60);
    switch (random(6)) {
      case 0:
      case 1:
        return `INSERT INTO idx.t (id, ${Object.keys(value)}) VALUES (${id}, ${Object.values(value).map((v) => v())}) ON CONFLICT DO NOTHING`;
      case 2:
        return `DELETE FROM idx.t WHERE id = ${id}`;
      case 3: // another key
        return `UPDATE idx.t SET id = id + 100, team = ${value.team()} WHERE id = ${id} AND NOT EXISTS (SELECT FROM idx.t WHERE id = ${id + 100})`;
      default: {
        const columns = Object.keys(value).filter(() => random(3) === 0);
        if (columns.length === 0) columns.push('team');
        return `UPDATE idx.t SET ${columns.map((c) => `${c} = ${value[c]()}`)} WHERE id % 20 = ${id % 20}`;
      }
    }
  }

  async function write(n) {
    const statements = [];
    for (let i = 0; i < n; i++) {
      const several = random(4) === 0;
      statements.push(several ? `BEGIN; ${change()}; ${change()}; ${change()}; COMMIT` : change());
    }
    await db.exec(statements.join(';\n'));
  }

  test('random policies, conditions and rows, with the index and without it', { timeout: 120000 }, async () => {
    await write(60);
    await connect(0, 120);
    assert.ok(await compare('at first') > 0);
    let rows = 0;
    for (let round = 0; round < 10; round++) {
      const policies = [pick(POLICIES), pick(POLICIES)];
      const index = random(3) > 0 ? 'on' : 'off';
      await reload(db, { 'changefeed.audience_index': index });
      await db.exec(`BEGIN; DROP POLICY p ON idx.t; DROP POLICY s ON idx.t;
        CREATE POLICY p ON idx.t FOR SELECT TO idx_web USING (${policies[0]});
        CREATE POLICY s ON idx.t FOR SELECT TO idx_staff USING (${policies[1]}); COMMIT`);
      // What a snapshot has nobody would miss.
      await Promise.all(clients.map(({ client }) => client.settle(60000)));
      await write(40);
      rows += await compare(`index ${index}, policies ${policies}`);
    }
    assert.ok(rows > 0);
    await reload(db, { 'changefeed.audience_index': null });
  });

  test('with another token a client is another reader', { timeout: 60000 }, async () => {
    await db.exec(`ALTER POLICY p ON idx.t USING (${OWNER} OR ${TEAMS}); ALTER POLICY s ON idx.t USING (level <= (${claim('level')})::int)`);
    for (let round = 0; round < 3; round++) {
      const some = clients.filter(() => random(3) === 0);
      for (const one of some) one.claims = { ...claimsOf(random(1000)), role: one.claims.role };
      const list = await tokens(some.map(({ claims }) => claims));
      const writing = write(30);
      await Promise.all(some.map(({ client }, i) => client.request('token', { token: list[i] })));
      await writing;
      await compare(`round ${round}`);
    }
  });

  test('one of a thousand readers costs one evaluation', { timeout: 120000 }, async () => {
    for (const { client } of clients.splice(0)) client.cut();
    await db.exec(`DELETE FROM idx.t; ALTER POLICY p ON idx.t USING (${OWNER}); ALTER POLICY s ON idx.t USING (${OWNER})`);
    const url = process.env.HTTP_URL;
    const inline = async () => Number((await (await fetch(`${url}/metrics`)).text())
      .match(/verdicts_total\{[^}]*source="inline"[^}]*\} (\d+)/)[1]);
    const claims = Array.from({ length: 1000 }, (_, i) => ({ role: 'idx_web', sub: `r${i}` }));
    const list = await tokens(claims);
    for (let i = 0; i < claims.length; i += 100) {
      await Promise.all(claims.slice(i, i + 100).map(async (c, k) => {
        const client = await Client.connectSoon({ token: list[i + k] });
        clients.push({ claims: c, client, watched: [{ name: 'all', where: 'true', columns: '*' }] });
        await client.openSoon('all');
      }));
    }
    for (const [index, least, most] of [['on', 20, 20], ['off', 20 * 1000, 20 * 1000]]) {
      await reload(db, { 'changefeed.audience_index': index });
      const start = await inline();
      await db.exec(Array.from({ length: 20 }, (_, i) => `INSERT INTO idx.t (id, owner, level) VALUES (${random(1e9)}, 'r${i * 7}', 1)`).join(';'));
      await compare(`index ${index}`);
      const evaluated = await inline() - start;
      assert.ok(evaluated >= least && evaluated <= most, `index ${index}: ${evaluated} for 20 rows`);
    }
    await reload(db, { 'changefeed.audience_index': null });
  });
});
