// Policies that the feed worker evaluates itself: which ones these are, that they
// decide as SELECT and as query workers do, and that what they depend on can
// change at any time.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { assertSame, Client, rowTexts, until } from './lib/client.mjs';
import { number } from './lib/json.mjs';
import { quote, reload, Session } from './lib/psql.mjs';
import { randomOf } from './lib/random.mjs';

const ADA = '0ada0000-0000-4000-8000-000000000001';
const BOB = '0b0b0000-0000-4000-8000-000000000002';
const COLUMNS = `id int PRIMARY KEY, i int, b bigint, s smallint, t text, v varchar(20), c char(4), nm name, n numeric(8,2),
  f float8, u uuid, d date, ts timestamp, tz timestamptz, bo bool, j jsonb, ia int[], ta text[], ua uuid[], e inline.mood,
  dom inline.short, by bytea, ip inet, iv interval, g int GENERATED ALWAYS AS (id % 3) STORED`;

let db;

/** What a metric has counted. */
async function verdicts(source) {
  const text = await (await fetch(`${process.env.HTTP_URL}/metrics`)).text();
  return Number(text.match(new RegExp(`^changefeed_verdicts_total\\{source="${source}"\\} (\\d+)`, 'm'))[1]);
}

before(async () => {
  db = new Session();
  await db.exec(`CREATE SCHEMA inline; CREATE SCHEMA auth;
    CREATE ROLE inline_web; CREATE ROLE inline_admin IN ROLE inline_web;
    GRANT USAGE ON SCHEMA inline, auth TO inline_web;
    SELECT changefeed.allow_role('inline_web'); SELECT changefeed.allow_role('inline_admin');
    CREATE FUNCTION auth.jwt() RETURNS jsonb LANGUAGE sql STABLE AS $$
      SELECT coalesce(nullif(current_setting('request.jwt.claim', true), ''), nullif(current_setting('request.jwt.claims', true), ''))::jsonb $$;
    CREATE FUNCTION auth.uid() RETURNS uuid LANGUAGE sql STABLE AS $$
      SELECT coalesce(nullif(current_setting('request.jwt.claim.sub', true), ''),
        (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'))::uuid $$;
    CREATE FUNCTION inline.plain(x int) RETURNS bool LANGUAGE plpgsql STABLE AS 'BEGIN RETURN x > 1; END';
    CREATE FUNCTION inline.liar() RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT ''a''::text';
    CREATE FUNCTION inline.over(x int) RETURNS bool LANGUAGE sql STABLE AS 'SELECT x > 1';
    CREATE FUNCTION inline.told() RETURNS int LANGUAGE sql STABLE AS 'SELECT 1';
    CREATE TYPE inline.mood AS ENUM ('ok', 'sad'); CREATE TYPE inline.weather AS ENUM ('ok');
    CREATE TYPE inline.pair AS (a int, b int); CREATE DOMAIN inline.short AS text CHECK (length(VALUE) < 30);
    CREATE DOMAIN inline.free AS text; CREATE DOMAIN inline.free_int AS int;
    CREATE FUNCTION inline.freed(text) RETURNS inline.free_int LANGUAGE sql STABLE AS 'SELECT $1::int';
    CREATE COLLATION inline.loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
    CREATE TABLE inline.members (usr text PRIMARY KEY); GRANT SELECT ON inline.members TO inline_web;
    SELECT changefeed.declare_dependency('inline.told()', 'inline.members')`);
});
after(() => db?.close());

describe('which policies are inline', () => {
  const claims = { role: 'inline_web', sub: ADA, num: 2, name: 'ada', teams: [1, 2], tags: ['a'], mood: 'ok', bad: 'x' };

  before(() => db.exec(`CREATE TABLE inline.kinds (${COLUMNS}, pt point, pr inline.pair, xl xml, r int4range,
      lt text COLLATE inline.loose, js json, w inline.mood[]);
    ALTER TABLE inline.kinds ENABLE ROW LEVEL SECURITY; GRANT SELECT ON inline.kinds TO inline_web;
    SELECT changefeed.create_channel('kinds', 'inline.kinds')`));

  async function explain(using, identity = claims) {
    await db.exec(`DROP POLICY IF EXISTS p ON inline.kinds; CREATE POLICY p ON inline.kinds USING (${using})`);
    const [row] = await db.rows(`SELECT name, detail FROM changefeed.explain('kinds', ${quote(JSON.stringify(identity))}) WHERE aspect = 'inline'`);
    assert.ok(row, `explain says nothing of ${using}`);
    return row;
  }

  const JWT = 'auth.jwt()';
  const yes = [
    ['u = auth.uid()', '(u = $1)'],
    ['(SELECT auth.uid()) = u', '($1 = u)'],
    ["t = current_setting('request.jwt.claims')::json->>'name'", '(t = $1)'],
    [`u = auth.uid() OR bo AND i = (${JWT}->>'num')::int`, '((u = $1) OR (bo AND (i = $2)))'],
    [`i IN (SELECT jsonb_array_elements_text(${JWT}->'teams')::int)`, '(i = ANY ($1))'],
    [`i = ANY (ARRAY(SELECT jsonb_array_elements_text((SELECT ${JWT})->'teams')::int))`, '(i = ANY ($1))'],
    [`i NOT IN (SELECT jsonb_array_elements_text(${JWT}->'teams')::int)`, '(NOT (i = ANY ($1)))'],
    [`${JWT}->'tags' ? t`, '($1 ? t)'],
    [`j->>'owner' = ${JWT}->>'name' AND j @> '{"k": 1}'`, /->>/],
    [`e = (${JWT}->>'mood')::inline.mood`, '(e = $1)'],
    ["e IN ('ok', 'sad')", /ANY/],
    ['current_user = nm', '($1 = nm)'],
    ['inline.over(i) AND u IS NOT NULL', '((i > 1) AND (u IS NOT NULL))'],
    [`dom = ${JWT}->>'name'`, /dom/],
    [`CASE WHEN bo THEN i = (${JWT}->>'num')::int ELSE t = 'a' END`, /CASE/],
    ['10 / i > 1', '((10 / i) > 1)'],
    ['t LIKE \'a%\' AND lower(v) = upper(c) AND length(t) < 10', /lower/],
    ['d > date \'2024-01-01\' AND ts < timestamp \'2030-01-01\' AND tz IS DISTINCT FROM timestamptz \'2024-01-01 00:00Z\'', /DISTINCT/],
    ['ia && ARRAY[1,2] AND ta[1] = \'x\' AND \'{a}\' <@ ta', /&&/],
    ['(i, t) = (1, \'a\') AND coalesce(bo, false) AND greatest(i, 2) = 2 AND nullif(i, 3) = 1', /NULLIF/],
    ['g = 1', '(g = 1)'],
  ];
  for (const [using, text] of yes) {
    test(`inline: ${using}`, async () => {
      const { name, detail } = await explain(using);
      assert.equal(name, 'yes', detail);
      if (text instanceof RegExp) assert.match(detail, text);
      else assert.equal(detail, text);
    });
  }

  const no = [
    ['EXISTS (SELECT FROM inline.members WHERE usr = t)', /table inline\.members/],
    ['t IN (SELECT usr FROM inline.members)', /table inline\.members/],
    ['i = inline.told()', /table inline\.members/],
    ['inline.plain(i)', /function inline\.plain/],
    ['t = inline.liar()', /IMMUTABLE/],
    ['tz < now()', /function now/],
    ['d < current_date', /time/],
    ['random() < 2', /function random/],
    ["t = current_setting('app.tenant', true)", /function current_setting/],
    ["t ~ 'a'", /textregexeq/],
    ["t = repeat('a', i)", /repeat/],
    ["lpad(t, 3) = 'a'", /lpad/],
    ['tz::text = t', /timestamptz|timestamp with time zone/],
    ['f::text = t', /double precision/],
    [`tz = (${JWT}->>'sub')::timestamptz`, /timestamptz_in|timestamp/],
    ['date_trunc(\'day\', tz) = tz', /date_trunc/],
    ['kinds IS NOT NULL', /row as a whole/],
    ['pt ~= point(1, 1)', /point/],
    ['pr = ROW(1, 2)::inline.pair', /record_eq|pair/],
    ['r @> i', /range/],
    ['lt = t COLLATE inline.loose', /collation/],
    ["e > 'ok'", /enum/],
    ["w[1] = 'ok' OR w < '{ok}'", /enum/],
    ["(auth.jwt()->>'mood')::inline.mood = 'ok' AND i = 1", /mood/],
    ["(auth.jwt()->>'mood')::inline.weather = 'ok' AND i = 1", /weather/],
    ['e::text = t', /mood/],
    ["pg_has_role('inline_admin', 'member') AND i = 1", /pg_has_role/],
    [`i = (${JWT}->>'bad')::int`, /invalid input syntax/],
    [`i = 1 OR i = (${JWT}->>'bad')::int`, /invalid input syntax/],
    [`(t || (${JWT}->>'name'))::inline.short = t`, /domain/],
    // It may get a constraint
    ['(t::inline.free)::int > 5', /domain/],
    ['inline.freed(t) = 5', /domain/],
    ['xl IS DOCUMENT', /kind|xml/],
    ['(SELECT max(x) FROM unnest(ia) x) = 2', /subquery/],
    ['i = 1 OR tableoid = 1', /system column/],
  ];
  for (const [using, reason] of no) {
    test(`not inline: ${using}`, async () => {
      const { name, detail } = await explain(using);
      assert.equal(name, 'no', detail);
      assert.match(detail, reason);
    });
  }

  test('an identity whose claims fail is alone with that', async () => {
    const using = `i = (${JWT}->>'num')::int`;
    assert.equal((await explain(using)).name, 'yes');
    const { name, detail } = await explain(using, { ...claims, num: 'many' });
    assert.equal(name, 'no');
    assert.match(detail, /claims fails: invalid input syntax for type integer: "many"/);
  });

  test('several policies, of several roles', async () => {
    await explain('u = auth.uid()');
    await db.exec(`CREATE POLICY q ON inline.kinds FOR SELECT TO inline_admin USING (i = 1);
      CREATE POLICY r ON inline.kinds AS RESTRICTIVE USING (NOT bo)`);
    const detail = async (role) => (await db.rows(`SELECT detail FROM changefeed.explain('kinds',
      ${quote(JSON.stringify({ ...claims, role }))}) WHERE aspect = 'inline'`))[0].detail;
    assert.equal(await detail('inline_web'), '((NOT bo) AND (u = $1))');
    assert.match(await detail('inline_admin'), /^\(\(NOT bo\) AND \(\((i = 1\) OR \(u = \$1|u = \$1\) OR \(i = 1)\)\)\)$/);
    await db.exec('DROP POLICY q ON inline.kinds; DROP POLICY r ON inline.kinds');
  });

  test('the setting turns it off, and on again, at once', async (t) => {
    await db.exec('DROP POLICY p ON inline.kinds; CREATE POLICY p ON inline.kinds USING (u = auth.uid()); DELETE FROM inline.kinds');
    const client = await Client.connectSoon({ token: await db.token(claims) });
    t.after(() => client.cut());
    const s = await client.openSoon('kinds');
    const counted = async (sql) => {
      const before = [await verdicts('inline'), await verdicts('query_worker')];
      await db.exec(sql);
      await client.settle();
      return [await verdicts('inline') - before[0], await verdicts('query_worker') - before[1]];
    };
    // Rows that others own need not be looked at.
    assert.deepEqual(await counted(`INSERT INTO inline.kinds (id, u) VALUES (1, '${ADA}'), (2, '${BOB}'), (3, NULL)`), [1, 0]);
    assert.deepEqual(await counted('UPDATE inline.kinds SET i = 1'), [2, 0]);
    await reload(db, { 'changefeed.audience_index': 'off' });
    assert.deepEqual(await counted('UPDATE inline.kinds SET i = 1'), [6, 0]);
    await reload(db, { 'changefeed.audience_index': null });
    await reload(db, { 'changefeed.inline_policies': 'off' });
    try {
      assert.match((await db.rows(`SELECT detail FROM changefeed.explain('kinds', ${quote(JSON.stringify(claims))})
        WHERE aspect = 'inline'`))[0].detail, /inline_policies is off/);
      assert.deepEqual(await counted('UPDATE inline.kinds SET i = 2'), [0, 6]);
    } finally {
      await reload(db, { 'changefeed.inline_policies': null });
    }
    assert.deepEqual(await counted('UPDATE inline.kinds SET i = 3'), [2, 0]);
    assert.equal(s.rows().length, 1);
  });
});

describe('inline policies decide as SELECT does, and as query workers do', () => {
  const seed = Number(process.env.INLINE_SEED ?? Date.now() % 1000000);
  const { random, pick } = randomOf(seed);

  const IDENTITIES = [
    { role: 'inline_web', sub: ADA, num: 2, name: 'ada', teams: [1, 2, 4], tags: ['a', 'b'], mood: 'ok', flag: true },
    { role: 'inline_web', sub: BOB, num: '3', name: 'Bob', teams: [], tags: [null, 'b'], mood: 'sad', flag: false },
    { role: 'inline_admin', sub: ADA, num: 0, name: '', teams: [3], tags: [], mood: 'ok' },
    { role: 'inline_web', sub: BOB, num: null, name: null, mood: null, flag: null },
    { role: 'inline_admin', num: 'x', teams: 3, mood: 'odd', flag: 'maybe' },
  ];

  const JWT = () => pick('auth.jwt()', '(SELECT auth.jwt())', "current_setting('request.jwt.claims', true)::jsonb");
  const UID = () => pick('auth.uid()', '(SELECT auth.uid())', `(${JWT()}->>'sub')::uuid`);
  const NUM = (type) => pick(`(${JWT()}->>'num')::${type}`, `(SELECT (${JWT()}->>'num')::${type})`, `${random(4)}::${type}`);
  const NAME = () => pick(`${JWT()}->>'name'`, `(SELECT ${JWT()}->>'name')`, `'${pick('ada', 'Bob', 'a')}'::text`);
  const OPERATOR = () => pick('=', '=', '=', '<>', '<', '>', '<=', '>=');
  const atoms = [
    () => `u ${pick('=', '<>')} ${UID()}`,
    () => `${UID()} = u`,
    () => `${UID()} ${pick('IS NOT NULL', 'IS NULL', '= ANY (ua)')}`,
    () => `i ${OPERATOR()} ${NUM('int')}`,
    () => `b ${OPERATOR()} ${NUM(pick('bigint', 'int'))}`,
    () => `s ${OPERATOR()} ${NUM(pick('smallint', 'int'))}`,
    () => `n ${OPERATOR()} ${NUM('numeric')}`,
    () => `f ${OPERATOR()} ${NUM('float8')}`,
    () => `i + ${NUM('int')} > 2`,
    () => `t ${OPERATOR()} ${NAME()}`,
    () => `v ${OPERATOR()} ${NAME()}`,
    () => `c ${pick('=', '<>')} ${NAME()}`,
    () => `nm = ${NAME()}`,
    () => `dom ${OPERATOR()} ${NAME()}`,
    () => `lower(t) = lower(${NAME()})`,
    () => `t LIKE ${NAME()} || '%'`,
    () => `t || v = ${NAME()}`,
    () => `starts_with(t, ${NAME()}) AND left(t, 2) <> 'xx'`,
    () => `t ${pick('IN', 'NOT IN')} ('ada', 'a', ${pick('NULL', "'b'", NAME())})`,
    () => `i ${pick('IN', 'NOT IN')} (1, 2, 3, 4, 5, 6, 7, 8, 9, ${pick('NULL', '10')})`,
    () => `i BETWEEN ${NUM('int')} AND 3`,
    () => `d ${OPERATOR()} date '2024-02-03'`,
    () => `ts ${OPERATOR()} timestamp '2024-02-03 04:05'`,
    () => `tz ${OPERATOR()} timestamptz '2024-02-03 04:05Z'`,
    () => `d + ${NUM('int')} > date '2024-02-02'`,
    () => `iv ${OPERATOR()} interval '1 day'`,
    () => `by ${OPERATOR()} '\\x01'`,
    () => `ip << inet '10.0.0.0/8'`,
    () => pick('bo', 'NOT bo', 'bo IS TRUE', 'bo IS NOT FALSE', 'bo IS UNKNOWN'),
    () => `${pick('i', 't', 'u', 'j', 'ia')} IS ${pick('NULL', 'NOT NULL')}`,
    () => `i IS DISTINCT FROM ${NUM('int')}`,
    () => `u IS NOT DISTINCT FROM ${UID()}`,
    () => `j->>'owner' = ${NAME()}`,
    () => `j ? (${NAME()})`,
    () => `j @> '{"k": 1}'`,
    () => `(j->>'k')::int = ${NUM('int')}`,
    () => `j->'list'->>0 = 'x'`,
    () => `${JWT()}->'tags' ? t`,
    () => `i = ANY (ia)`,
    () => `${NUM('int')} = ANY (ia)`,
    () => `ia ${pick('&&', '@>', '<@', '=')} ARRAY[1, ${NUM('int')}]`,
    () => `ta[1] = ${NAME()}`,
    () => `cardinality(ia) > ${NUM('int')}`,
    () => `i ${pick('IN', 'NOT IN')} (SELECT jsonb_array_elements_text(${JWT()}->'teams')::int)`,
    () => `b ${pick('IN', 'NOT IN')} (SELECT jsonb_array_elements_text(${JWT()}->'teams')::bigint)`,
    () => `f = ANY (ARRAY(SELECT jsonb_array_elements_text(${JWT()}->'teams')::float8))`,
    () => `t = ANY (ARRAY(SELECT jsonb_array_elements_text(${JWT()}->'tags')))`,
    () => `t <> ALL (ARRAY(SELECT jsonb_array_elements_text(${JWT()}->'tags')))`,
    () => `e = ${pick("'ok'", `(${JWT()}->>'mood')::inline.mood`)}`,
    () => `e IN ('ok', 'sad')`,
    () => `10 / i > 1`,
    () => `t::int = 5`,
    () => `u::text = ${JWT()}->>'sub'`,
    () => `i::text = ${JWT()}->>'num'`,
    () => `CASE WHEN bo THEN i = ${NUM('int')} WHEN i = 1 THEN t = ${NAME()} ELSE ${pick('NULL', 'true', 'u IS NULL')} END`,
    () => `CASE i WHEN 1 THEN 'ada' WHEN ${NUM('int')} THEN t ELSE v END = ${NAME()}`,
    () => `CASE WHEN ${JWT()}->>'name' IS NOT NULL THEN i = ${NUM('int')} ELSE bo END`,
    () => `coalesce(t, v, 'a') = ${NAME()}`,
    () => `coalesce((${JWT()}->>'flag')::bool, bo)`,
    () => `nullif(i, 3) = ${NUM('int')}`,
    () => `greatest(i, 2) > ${NUM('int')}`,
    () => `(i, t) = (${NUM('int')}, ${NAME()})`,
    () => `(${JWT()}->>'flag')::bool`,
    () => `${JWT()}->>'role' = 'inline_admin'`,
    () => `current_user ${pick('=', '<>')} 'inline_admin'`,
    () => `g = ${NUM('int')}`,
    () => `inline.over(i)`,
    () => pick('true', 'false', 'NULL::bool'),
    // For query workers
    () => `t ~ 'a'`,
    () => `EXISTS (SELECT FROM inline.members m WHERE m.usr = t)`,
  ];
  function expression(depth) {
    const kind = depth === 0 ? 0 : random(6);
    if (kind < 2) return `(${atoms[random(atoms.length)]()})`;
    if (kind === 2) return `(NOT ${expression(depth - 1)})`;
    const list = Array.from({ length: 2 + random(2) }, () => expression(depth - 1));
    return `(${list.join(kind === 3 ? ' AND ' : ' OR ')})`;
  }

  const maybe = (text) => (random(6) === 0 ? 'NULL' : text);
  function row(id) {
    return [id, maybe(random(5)), maybe(random(5)), maybe(random(5)), maybe(`'${pick('ada', 'Bob', 'a', 'b', '5', '')}'`),
      maybe(`'${pick('ada', 'Bob', 'a', '')}'`), maybe(`'${pick('ada', 'Bob', 'a', '')}'`), maybe(`'${pick('ada', 'Bob')}'`),
      maybe((random(50) / 10).toFixed(2)), maybe(`'${pick('1.5', '2', 'NaN', '3')}'`), maybe(`'${pick(ADA, BOB)}'`),
      maybe(`'2024-02-0${1 + random(5)}'`), maybe(`'2024-02-03 0${3 + random(3)}:05'`), maybe(`'2024-02-03 0${3 + random(3)}:05Z'`),
      maybe(pick('true', 'false')),
      maybe(pick(`'{"owner": "ada", "k": 1}'`, `'{"owner": "Bob", "k": "x", "a": 1}'`, `'{"list": ["x", 1], "k": 2}'`, `'[1]'`, `'"ada"'`)),
      maybe(pick("'{}'", "'{1,2}'", "'{2,NULL,3}'")), maybe(pick("'{}'", "'{ada,b}'", "'{NULL}'")),
      maybe(pick(`'{${ADA}}'`, "'{}'", `'{${BOB},NULL}'`)), maybe(pick("'ok'", "'sad'")), maybe(pick("'ada'", "'b'")),
      maybe(pick("'\\x01'", "'\\x'")), maybe(pick("'10.1.2.3'", "'192.168.0.1/24'")), maybe(pick("'1 day'", "'24:00'", "'1 mon'"))].join(', ');
  }

  test(`INLINE_SEED=${seed}`, async (t) => {
    const count = Number(process.env.INLINE_POLICIES ?? 36);
    const tables = [];
    const clients = [];

    await db.exec("INSERT INTO inline.members VALUES ('ada')");
    for (let k = 0; k < count; k += 1) {
      const name = `inline.t${k}`;
      const policies = [`CREATE POLICY a ON ${name} USING (${expression(2)})`];
      if (random(3) === 0) policies.push(`CREATE POLICY b ON ${name} FOR SELECT TO inline_admin USING (${expression(1)})`);
      if (random(3) === 0) policies.push(`CREATE POLICY c ON ${name} AS RESTRICTIVE USING (${expression(1)})`);
      const rows = (from) => Array.from({ length: 12 }, (_, id) => `(${row(from + id)})`).join(', ');
      await db.exec(`CREATE TABLE ${name} (${COLUMNS}); ALTER TABLE ${name} ENABLE ROW LEVEL SECURITY;
        GRANT SELECT ON ${name} TO inline_web; ${policies.join(';')}; SELECT changefeed.create_channel('t${k}', '${name}')`);
      tables.push({ name, channel: `t${k}`, policies, steps: [
        `INSERT INTO ${name} VALUES ${rows(1)}`,
        // Each row becomes another one, most of whose columns differ
        `WITH v AS (SELECT (row_number() OVER (ORDER BY id) % 12 + 1)::int AS k, i.* FROM ${name} i) UPDATE ${name} x
          SET i = v.i, b = v.b, s = v.s, t = v.t, v = v.v, c = v.c, nm = v.nm, n = v.n, f = v.f, u = v.u, d = v.d, ts = v.ts, tz = v.tz,
            bo = v.bo, j = v.j, ia = v.ia, ta = v.ta, ua = v.ua, e = v.e, dom = v.dom, by = v.by, ip = v.ip, iv = v.iv FROM v WHERE v.k = x.id`,
        `DELETE FROM ${name} WHERE id % 4 = 0`,
      ] });
    }
    for (const identity of IDENTITIES) {
      const client = await Client.connectSoon({ token: await db.token(identity) });
      t.after(() => client.cut());
      clients.push(client);
    }

    const failures = (text) => text.split('\n')[0];
    /** What each identity ends up with: rows, or that its policies failed. */
    async function run() {
      const result = [];
      const subscriptions = await Promise.all(clients.flatMap((client) => tables.map((table) => client.openSoon(table.channel)
        .catch((error) => ({ state: 'refused', code: error.code })))));
      for (const table of tables) for (const sql of table.steps) await db.exec(sql);
      for (const client of clients) {
        await client.settle();
        client.check();
      }
      for (const [n, s] of subscriptions.entries()) {
        const table = tables[n % tables.length];
        const identity = IDENTITIES[Math.floor(n / tables.length)];
        const what = `${JSON.stringify(identity)}, ${table.policies.join('; ')}`;
        if (s.state === 'ready') {
          const rows = await db.rowsAs(identity, `SELECT * FROM ${table.name}`).catch((error) => failures(error.message));
          // Where AND and OR leave things out, SELECT does it in an order of its own
          if (typeof rows === 'string') assert.match(rows, /ERROR/);
          else assertSame(s.rows(), rows, what);
          result.push({ what, state: s.state, rows: rowTexts(s.rows()) });
        } else {
          if (s.state === 'ended') assert.equal(s.revoked?.reason, 'policy_error', what);
          result.push({ what, state: s.state });
        }
      }
      for (const client of clients) for (const name of [...client.subscriptions.keys()]) await client.unsubscribe(name);
      for (const table of tables) await db.exec(`DELETE FROM ${table.name}`);
      return result;
    }

    const [inline, asked] = [await verdicts('inline'), await verdicts('query_worker')];
    const on = await run();
    const used = [await verdicts('inline') - inline, await verdicts('query_worker') - asked];
    let all;
    let off;
    try {
      await reload(db, { 'changefeed.audience_index': 'off' });
      all = await run();
      const until = await verdicts('inline');
      await reload(db, { 'changefeed.audience_index': null, 'changefeed.inline_policies': 'off' });
      off = await run();
      assert.equal(await verdicts('inline'), until, 'none while it was off');
    } finally {
      await reload(db, { 'changefeed.audience_index': null, 'changefeed.inline_policies': null });
    }
    t.diagnostic(`${used[0]} verdicts inline, ${used[1]} of query workers; ${on.filter(({ state }) => state === 'ready').length} of ${on.length} ready`);
    assert.ok(used[0] > used[1], 'most are inline');
    for (const [n, one] of off.entries()) {
      assert.deepEqual(on[n], one, `INLINE_SEED=${seed}: ${one.what}`);
      assert.deepEqual(all[n], one, `INLINE_SEED=${seed}, not indexed: ${one.what}`);
    }
  });
});

describe('lists of claims', () => {
  // By the width and the alignment of what is in them
  const lists = ['int', 'bigint', 'smallint', 'float8', 'numeric', 'text', 'name', 'bool', 'oid', 'inet'];
  const values = (type) => (type === 'bool' ? ['true', 'false'] : type === 'inet' ? [1, 2, 3, 4, 5, 6].map((i) => `10.0.0.${i}`) : [1, 2, 3, 4, 5, 6]);

  for (const type of lists) {
    test(type, async (t) => {
      const list = `inline.list_${type}`;
      await db.exec(`CREATE TABLE ${list} (id int PRIMARY KEY, v ${type}, n int); ALTER TABLE ${list} REPLICA IDENTITY FULL;
        ALTER TABLE ${list} ENABLE ROW LEVEL SECURITY; GRANT SELECT ON ${list} TO inline_web;
        CREATE POLICY p ON ${list} USING (v = ANY (ARRAY(SELECT jsonb_array_elements_text(auth.jwt()->'list')::${type})));
        SELECT changefeed.create_channel('list_${type}', '${list}')`);
      const all = values(type);
      const claims = { role: 'inline_web', list: all.filter((_, i) => i % 3 !== 1) };
      const client = await Client.connectSoon({ token: await db.token(claims) });
      t.after(() => client.cut());
      const s = await client.openSoon(`list_${type}`);
      const asked = await verdicts('query_worker');
      for (const index of [null, 'off']) {
        await reload(db, { 'changefeed.audience_index': index });
        await db.exec(`DELETE FROM ${list}; INSERT INTO ${list} SELECT i, v::${type} FROM unnest(${quote(`{${all}}`)}::text[]) WITH ORDINALITY x (v, i);
          UPDATE ${list} SET n = id`);
        await client.settle();
        client.check();
        assert.deepEqual(s.resyncs, []);
        assertSame(s.rows(), await db.rowsAs(claims, `SELECT * FROM ${list}`), `${type}, index ${index}`);
        assert.equal(s.rows().length, claims.list.length);
      }
      await reload(db, { 'changefeed.audience_index': null });
      assert.equal(await verdicts('query_worker'), asked, 'all of them inline');
    });
  }
});

test('large values are left to query workers', async (t) => {
  await db.exec(`CREATE TABLE inline.wide (id int PRIMARY KEY, ia int[], other text); ALTER TABLE inline.wide ENABLE ROW LEVEL SECURITY;
    GRANT SELECT ON inline.wide TO inline_web; CREATE POLICY p ON inline.wide USING (ia && ARRAY[(auth.jwt()->>'num')::int, 5]);
    SELECT changefeed.create_channel('wide', 'inline.wide', columns => '{id}')`);
  const claims = { role: 'inline_web', num: 7 };
  const client = await Client.connectSoon({ token: await db.token(claims) });
  t.after(() => client.cut());
  const s = await client.openSoon('wide');
  const counted = async (sql) => {
    const before = [await verdicts('inline'), await verdicts('query_worker')];
    await db.exec(sql);
    await client.settle();
    return [await verdicts('inline') - before[0], await verdicts('query_worker') - before[1]];
  };
  const numbers = (n) => `ARRAY(SELECT i % 10 FROM generate_series(1, ${n}) i)`;
  assert.deepEqual(await counted(`INSERT INTO inline.wide VALUES (1, ${numbers(1000)}, repeat('x', 100000))`), [1, 0]);
  // It has few bytes before it is decompressed
  assert.deepEqual(await counted(`INSERT INTO inline.wide VALUES (2, ${numbers(4000)})`), [0, 1]);
  assertSame(s.rows(), await db.rowsAs(claims, 'SELECT id FROM inline.wide'));
  assert.equal(s.rows().length, 2);

  // Of one value alone it may be more
  await db.exec(`ALTER POLICY p ON inline.wide USING (other = auth.jwt()->>'long' OR length(other) > (auth.jwt()->>'num')::int)`);
  await client.settle();
  assert.deepEqual(await counted(`INSERT INTO inline.wide VALUES (3, NULL, repeat('y', 500000))`), [1, 0]);
  assert.deepEqual(await counted(`INSERT INTO inline.wide VALUES (4, NULL, repeat('y', 1100000))`), [0, 1]);
  assertSame(s.rows(), await db.rowsAs(claims, 'SELECT id FROM inline.wide'));
  assert.equal(s.rows().length, 3);
});

test('what a policy compares is dropped before the feed hears of the policy', async (t) => {
  await db.exec(`CREATE TYPE inline.gone AS ENUM ('a', 'b'); CREATE TABLE inline.late (id int PRIMARY KEY, e inline.gone);
    ALTER TABLE inline.late ENABLE ROW LEVEL SECURITY; GRANT SELECT ON inline.late TO inline_web;
    CREATE POLICY p ON inline.late USING (e = 'a'); CREATE POLICY q ON inline.late USING (id > 10);
    CREATE FUNCTION inline.slowly() RETURNS bool LANGUAGE plpgsql STABLE AS $$
      BEGIN
        LOOP
          EXIT WHEN pg_try_advisory_xact_lock_shared(4711);
          PERFORM pg_sleep(0.01);
        END LOOP;
        RETURN true;
      END $$;
    SELECT changefeed.create_channel('late', 'inline.late', join_check => 'inline.slowly()')`);
  const client = await Client.connectSoon({ token: await db.token({ role: 'inline_web' }) });
  const blocker = new Session();
  t.after(() => { client.cut(); return blocker.close(); });
  const busy = async (n) => Number(await db.value(`SELECT count(*) FROM pg_stat_activity
    WHERE backend_type = 'changefeed query worker' AND datname = current_database() AND state = 'active'`)) === n;
  const pid = Number(await db.value('SELECT feed_worker_pid FROM changefeed.stat_feed'));
  await until(() => busy(0), 'no job');
  await blocker.exec('BEGIN; SELECT pg_advisory_xact_lock(4711)');
  const opened = client.openSoon('late');
  await until(() => busy(1), 'the job has begun');
  process.kill(pid, 'SIGSTOP');
  try {
    await blocker.exec('COMMIT');
    await until(() => busy(0), 'the job is done');
    await db.exec('DROP TYPE inline.gone CASCADE');
  } finally {
    process.kill(pid, 'SIGCONT');
  }
  const s = await opened;
  await db.exec('INSERT INTO inline.late VALUES (1), (11)');
  await client.settle();
  client.check();
  assert.equal(Number(await db.value('SELECT feed_worker_pid FROM changefeed.stat_feed')), pid, 'the feed worker has gone on');
  assert.deepEqual(s.rows().map(({ id }) => number(id)), [11]);
});

test('a join_check that sets claims sets them for itself', async (t) => {
  await db.exec(`CREATE TABLE inline.mine (id int PRIMARY KEY, u uuid); ALTER TABLE inline.mine REPLICA IDENTITY FULL;
    ALTER TABLE inline.mine ENABLE ROW LEVEL SECURITY; GRANT SELECT ON inline.mine TO inline_web;
    CREATE POLICY p ON inline.mine USING (u = auth.uid()); INSERT INTO inline.mine VALUES (1, '${ADA}'), (2, '${BOB}');
    CREATE FUNCTION inline.become() RETURNS bool LANGUAGE plpgsql STABLE AS $$
      BEGIN PERFORM set_config('request.jwt.claims', '{"sub": "${BOB}"}', true); RETURN true; END $$;
    SELECT changefeed.create_channel('mine', 'inline.mine', join_check => 'inline.become()')`);
  const client = await Client.connectSoon({ token: await db.token({ role: 'inline_web', sub: ADA }) });
  t.after(() => client.cut());
  const s = await client.openSoon('mine');
  const ids = () => s.rows().map(({ id }) => number(id)).sort();
  assert.deepEqual(ids(), [1], 'the snapshot');
  await db.exec(`INSERT INTO inline.mine VALUES (3, '${ADA}'), (4, '${BOB}')`);
  await client.settle();
  assert.deepEqual(ids(), [1, 3], 'changes');
});

describe('what inline policies depend on changes', () => {
  const identity = { role: 'inline_web', sub: ADA, name: 'ada' };
  const admin = { role: 'inline_admin', sub: BOB, name: 'bob' };
  const clients = [];
  const JUDGED = 'inline.kept';
  let writer;
  let live; // rows that came as changes: [id, gen]

  before(async () => {
    writer = new Session();
    await db.exec(`CREATE FUNCTION inline.bar() RETURNS int LANGUAGE sql STABLE AS 'SELECT -1';
      CREATE FUNCTION auth.who() RETURNS text LANGUAGE sql STABLE AS $$ SELECT auth.jwt()->>'name' $$;
      CREATE TABLE ${JUDGED} (id serial PRIMARY KEY, owner text, gen int, n int NOT NULL DEFAULT 0);
      CREATE ROLE inline_extra; GRANT USAGE ON SCHEMA inline, auth TO inline_extra;
      ALTER TABLE ${JUDGED} REPLICA IDENTITY FULL; ALTER TABLE ${JUDGED} ENABLE ROW LEVEL SECURITY;
      GRANT SELECT ON ${JUDGED} TO inline_web; SELECT changefeed.create_channel('kept', '${JUDGED}');
      CREATE POLICY p ON ${JUDGED} USING (owner = auth.who() AND gen <> inline.bar())`);
    for (const claims of [identity, admin]) {
      const client = await Client.connectSoon({ token: await db.token(claims) });
      client.claims = claims;
      client.kept = await client.openSoon('kept');
      client.kept.onChange = (change, frame, row) => {
        if (change.op === 'append') live.push([claims.name, row]);
      };
      clients.push(client);
    }
  });
  after(async () => {
    for (const client of clients) client.cut();
    await writer?.close();
  });

  async function compare(what) {
    for (const client of clients) {
      await client.settle();
      client.check();
      assert.equal(client.kept.state, 'ready', `${what}: ${client.claims.name}: ${JSON.stringify(client.kept.revoked)}`);
      assertSame(client.kept.rows(), await db.rowsAs(client.claims, `SELECT * FROM ${JUDGED}`), `${what}: ${client.claims.name}`);
    }
  }

  const CHANGES = {
    policy: (k) => `ALTER POLICY p ON ${JUDGED} USING (owner = auth.who() AND gen <> ${k})`,
    function: (k) => `CREATE OR REPLACE FUNCTION inline.bar() RETURNS int LANGUAGE sql STABLE AS 'SELECT ${k}'`,
    'function of a function': (k) => `CREATE OR REPLACE FUNCTION auth.who() RETURNS text LANGUAGE sql STABLE AS $$ SELECT auth.jwt()->>'${k % 2 === 0 ? 'name' : 'none'}' $$`,
    'restrictive policy': (k) => `BEGIN; DROP POLICY IF EXISTS r ON ${JUDGED}; CREATE POLICY r ON ${JUDGED} AS RESTRICTIVE USING (gen <> ${k}); COMMIT`,
  };
  // What is inserted as generation k is never visible while k is the last one.
  const hidden = { policy: true, function: true, 'restrictive policy': true };

  for (const [what, change] of Object.entries(CHANGES)) {
    test(`${what}, while rows are written`, async () => {
      await db.exec(`ALTER POLICY p ON ${JUDGED} USING (owner = auth.who() AND gen <> inline.bar())`);
      await compare('before');
      const inline = await verdicts('inline');
      live = [];
      for (let k = 1; k <= 25; k += 1) {
        await db.exec(change(k));
        const insert = (gen) => `INSERT INTO ${JUDGED} (owner, gen) SELECT x, ${gen} FROM unnest('{ada,bob,carl}'::text[]) x`;
        await Promise.all([db.exec(insert(k)), writer.exec(`UPDATE ${JUDGED} SET n = n + 1 WHERE id % 3 = ${k % 3}; ${insert(0)}`)]);
        if (k % 5 !== 0) continue;
        await compare(`${what} ${k}`);
        await db.exec(insert(0));
        await compare(`${what} ${k}, and rows`);
      }
      if (hidden[what]) assert.deepEqual(live.filter(([, { gen }]) => number(gen) !== 0), [], 'rows that nobody may see');
      assert.ok(await verdicts('inline') > inline);
      await db.exec(`DROP POLICY IF EXISTS r ON ${JUDGED}; DELETE FROM ${JUDGED};
        CREATE OR REPLACE FUNCTION auth.who() RETURNS text LANGUAGE sql STABLE AS $$ SELECT auth.jwt()->>'name' $$`);
    });
  }

  const STEPS = [
    ['a policy for a role', `CREATE POLICY x ON ${JUDGED} TO inline_extra USING (owner = 'carl')`],
    ['which is granted', 'GRANT inline_extra TO inline_web'],
    ['and revoked', 'REVOKE inline_extra FROM inline_web'],
    ['row security off', `ALTER TABLE ${JUDGED} DISABLE ROW LEVEL SECURITY`],
    ['and on', `ALTER TABLE ${JUDGED} ENABLE ROW LEVEL SECURITY`],
    ['forced', `ALTER TABLE ${JUDGED} FORCE ROW LEVEL SECURITY`],
    ['owned by the subscriber, forced', `ALTER TABLE ${JUDGED} OWNER TO inline_web`],
    ['owned by the subscriber', `ALTER TABLE ${JUDGED} NO FORCE ROW LEVEL SECURITY`],
    ['owned by another one', `BEGIN; ALTER TABLE ${JUDGED} OWNER TO postgres; GRANT SELECT ON ${JUDGED} TO inline_web; COMMIT`],
    ['a function that hides another one', `CREATE SCHEMA inline_hides; GRANT USAGE ON SCHEMA inline_hides TO inline_web;
      CREATE FUNCTION public.picked() RETURNS text LANGUAGE sql STABLE AS $$ SELECT auth.who() $$;
      CREATE FUNCTION inline.found() RETURNS text LANGUAGE sql STABLE AS 'SELECT picked()';
      ALTER POLICY p ON ${JUDGED} USING (owner = inline.found())`],
    ['which the path does not find', "CREATE FUNCTION inline_hides.picked() RETURNS text LANGUAGE sql STABLE AS $$ SELECT 'carl'::text $$"],
    // What a session of the role would have
    ['and then finds', 'ALTER ROLE inline_web SET search_path = inline_hides, public; ALTER ROLE inline_admin SET search_path = inline_hides, public; SET search_path = inline_hides, public'],
    ['and not any more', 'ALTER ROLE inline_web RESET search_path; ALTER ROLE inline_admin RESET search_path; RESET search_path'],
    ['a further column', `ALTER TABLE ${JUDGED} ADD COLUMN more text DEFAULT 'ada'`],
    ['in the policy', `ALTER POLICY p ON ${JUDGED} USING (owner = auth.who() OR more = auth.who())`],
    ['a column goes', `ALTER TABLE ${JUDGED} DROP COLUMN gen`],
    ['only what needs query workers', `ALTER POLICY p ON ${JUDGED} USING (owner ~ auth.who())`],
    ['EXECUTE revoked', `ALTER POLICY p ON ${JUDGED} USING (owner = auth.who());
      BEGIN; REVOKE EXECUTE ON FUNCTION auth.who() FROM PUBLIC; GRANT EXECUTE ON FUNCTION auth.who() TO inline_web; COMMIT`],
  ];
  test('roles, owners, functions, columns, while rows are written', async () => {
    live = [];
    for (const [what, sql] of STEPS) {
      const insert = `INSERT INTO ${JUDGED} (owner) SELECT x FROM unnest('{ada,bob,carl}'::text[]) x`;
      const load = writer.exec(`${insert}; UPDATE ${JUDGED} SET n = n + 1; ${insert}; UPDATE ${JUDGED} SET n = n + 1 WHERE id % 2 = 0`);
      await Promise.all([load, db.exec(sql)]);
      await writer.exec(`${insert}; UPDATE ${JUDGED} SET owner = CASE owner WHEN 'ada' THEN 'bob' WHEN 'bob' THEN 'carl' ELSE 'ada' END`);
      await compare(what);
    }
  });
});
