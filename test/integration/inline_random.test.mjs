// Conditions of clients and policies of many kinds together, at random, while rows
// are written and what both depend on changes: every cache is what SELECT gives,
// whoever decides, and whichever way the readers of a row are found.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import { assertSame, Client } from './lib/client.mjs';
import { quote, reload, Session } from './lib/psql.mjs';
import { randomOf } from './lib/random.mjs';

const ADA = '0ada0000-0000-4000-8000-000000000001';
const BOB = '0b0b0000-0000-4000-8000-000000000002';

const seed = Number(process.env.INLINE_SEED ?? Date.now() % 1000000);
const { random, pick } = randomOf(seed);

let db;
let writer;

before(async () => {
  db = new Session();
  writer = new Session();
  await db.exec(`CREATE SCHEMA ra; CREATE ROLE ra_web; CREATE ROLE ra_admin IN ROLE ra_web; CREATE ROLE ra_extra;
    GRANT USAGE ON SCHEMA ra TO ra_web, ra_extra; SELECT changefeed.allow_role('ra_web'); SELECT changefeed.allow_role('ra_admin');
    CREATE FUNCTION ra.jwt() RETURNS jsonb LANGUAGE sql STABLE AS $$ SELECT current_setting('request.jwt.claims', true)::jsonb $$;
    CREATE FUNCTION ra.mine(text) RETURNS bool LANGUAGE sql STABLE AS $$ SELECT $1 = ra.jwt()->>'name' $$;
    CREATE TYPE ra.mood AS ENUM ('ok', 'sad', 'mad'); CREATE DOMAIN ra.short AS text CHECK (length(VALUE) < 9);
    CREATE FUNCTION ra.is_ok(ra.mood) RETURNS bool LANGUAGE sql STABLE AS $$ SELECT $1 = 'ok' $$;
    CREATE COLLATION ra.loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
    CREATE TABLE ra.members (usr text PRIMARY KEY); INSERT INTO ra.members VALUES ('ada'); GRANT SELECT ON ra.members TO ra_web;
    CREATE TABLE ra.t (id serial PRIMARY KEY, g int NOT NULL, t text, v varchar(9), c char(4), nm name, i int, b bigint, n numeric(6,2), f float8, u uuid,
      e ra.mood, dom ra.short, lo text COLLATE ra.loose, bo bool, j jsonb, ia int[], d date, iv interval);
    ALTER TABLE ra.t ENABLE ROW LEVEL SECURITY; GRANT SELECT ON ra.t TO ra_web; GRANT SELECT (id, g, t, i) ON ra.t TO ra_extra;
    CREATE POLICY p ON ra.t USING (true); CREATE POLICY q ON ra.t TO ra_extra USING (g = 1);
    SELECT changefeed.create_channel('all', 'ra.t'); SELECT changefeed.create_channel('group:{g}', 'ra.t');
    SELECT changefeed.create_channel('fine', 'ra.t', filter => 'e = ''ok''')`);
});
after(async () => {
  await writer?.close();
  await db?.close();
});

const IDENTITIES = [
  { role: 'ra_web', sub: ADA, num: 2, name: 'ada', teams: [1, 2], mood: 'ok', flag: true },
  { role: 'ra_web', sub: BOB, num: 3, name: 'Ada', teams: [], mood: 'sad', flag: false },
  { role: 'ra_admin', sub: ADA, num: 0, name: '', teams: [3, null], mood: 'ok' },
  { role: 'ra_web', sub: BOB, num: null, name: null, mood: null, flag: null },
];

// ---- policies ----

const JWT = () => pick('ra.jwt()', '(SELECT ra.jwt())');
const NUM = (type) => pick(`(${JWT()}->>'num')::${type}`, `(${JWT()}->>'num')::${type}`, `${random(4)}::${type}`);
const NAME = () => pick(`${JWT()}->>'name'`, `${JWT()}->>'name'`, `'${pick('ada', 'Ada', 'a')}'::text`);
const OPERATOR = () => pick('=', '=', '=', '<>', '<', '>=');
const atoms = [
  () => `u ${pick('=', '=', '<>')} (${JWT()}->>'sub')::uuid`,
  () => `i ${OPERATOR()} ${NUM('int')}`,
  () => `b = ${NUM(pick('int', 'bigint'))}`,
  () => `n ${OPERATOR()} ${NUM('numeric')}`,
  () => `f ${OPERATOR()} ${NUM('float8')}`,
  () => `t ${OPERATOR()} ${NAME()}`,
  () => `v = ${NAME()}`,
  () => `c = ${pick(NAME(), `(${NAME()})::char(4)`)}`,
  () => `nm = ${NAME()}`,
  () => `dom = ${NAME()}`,
  () => `lo = ${NAME()}`,
  () => `e = ${pick("'ok'", "'sad'", `(${JWT()}->>'mood')::ra.mood`)}`,
  () => `e IN ('ok', ${pick('NULL', "'mad'")})`,
  () => 'ra.is_ok(e)',
  () => `ra.mine(${pick('t', 'v')})`,
  () => `i ${pick('IN', 'IN', 'NOT IN')} (SELECT jsonb_array_elements_text(${JWT()}->'teams')::int)`,
  () => `b = ANY (ARRAY(SELECT jsonb_array_elements_text(${JWT()}->'teams')::bigint))`,
  () => `t IN ('ada', 'a', ${pick('NULL', NAME())})`,
  () => `${NUM('int')} = ANY (ia)`,
  () => `ia && ARRAY[1, ${NUM('int')}]`,
  () => pick('bo', 'NOT bo', 'bo IS TRUE', 'bo IS NOT TRUE'),
  () => `(${JWT()}->>'flag')::bool`,
  () => `j->>'owner' = ${NAME()}`,
  () => `j @> '{"k": 1}'`,
  () => `coalesce(t, v) = ${NAME()}`,
  () => `CASE WHEN bo THEN i = ${NUM('int')} ELSE t = ${NAME()} END`,
  () => `d = date '2024-02-0${1 + random(4)}'`,
  () => `iv = interval '${pick('1 day', '24:00')}'`,
  () => `current_user = 'ra_admin'`,
  () => `g = ${NUM('int')}`,
  // For query workers
  () => `t ~ 'd'`,
  () => 't IN (SELECT usr FROM ra.members)',
];
function expression(depth) {
  const kind = depth === 0 ? 0 : random(6);
  if (kind < 2) return `(${atoms[random(atoms.length)]()})`;
  if (kind === 2) return `(NOT ${expression(depth - 1)})`;
  return `(${Array.from({ length: 2 + random(2) }, () => expression(depth - 1)).join(kind === 3 ? ' AND ' : ' OR ')})`;
}

// ---- channels and conditions ----

const conditions = [
  () => [`t=eq.${pick('ada', 'Ada', 'a')}`, (x) => `t = '${x}'`],
  () => [`v=eq.${pick('ada', 'a')}`, (x) => `v = '${x}'`],
  () => [`c=eq.${pick('ada', 'a')}`, (x) => `c = '${x}'`],
  () => [`lo=eq.${pick('ada', 'A')}`, (x) => `lo = '${x}'`],
  () => [`e=eq.${pick('ok', 'sad')}`, (x) => `e = '${x}'`],
  () => [`e=neq.${pick('ok', 'sad')}`, (x) => `e <> '${x}'`],
  () => [`i=eq.${random(4)}`, (x) => `i = ${x}`],
  () => [`i=gt.${random(4)}`, (x) => `i > ${x}`],
  () => [`n=eq.${pick('1', '1.00', '2.5')}`, (x) => `n = ${x}`],
  () => [`f=eq.${pick('0', 'NaN', '2')}`, (x) => `f = '${x}'`],
  () => [`b=in.(${pick('1,2', '3', '0,2,3')})`, (x) => `b IN ${x}`],
  () => [`t=in.(${pick('ada,a', 'Ada,b')})`, (x) => `t IN (${x.slice(1, -1).split(',').map(quote)})`],
  () => ['bo=is.true', () => 'bo IS TRUE'],
  () => ['u=is.null', () => 'u IS NULL'],
];
function channel() {
  const [name, where] = pick(['all', 'true'], ['all', 'true'], ['group:1', 'g = 1'], ['group:2', 'g = 2'], ['group:*', 'true'], ['fine', "e = 'ok'"]);
  const chosen = Array.from({ length: random(3) }, () => conditions[random(conditions.length)]());
  return {
    name: chosen.length === 0 ? name : `${name}?${chosen.map(([text]) => text).join('&')}`,
    where: [where, ...chosen.map(([text, sql]) => sql(text.slice(text.indexOf('.') + 1)))].join(' AND '),
  };
}

// ---- rows ----

const values = {
  g: () => 1 + random(3),
  t: () => quote(pick('ada', 'Ada', 'a', 'b', '')),
  v: () => quote(pick('ada', 'Ada', 'a', '')),
  c: () => quote(pick('ada', 'a', 'A  ')),
  nm: () => quote(pick('ada', 'Ada')),
  i: () => random(5),
  b: () => random(5),
  n: () => pick('1', '1.00', '2.5', "'NaN'", '3'),
  f: () => quote(pick('0', '-0', 'NaN', '2', '3')),
  u: () => quote(pick(ADA, BOB)),
  e: () => quote(pick('ok', 'sad', 'mad')),
  dom: () => quote(pick('ada', 'Ada')),
  lo: () => quote(pick('ada', 'ADA', 'a')),
  bo: () => pick('true', 'false'),
  j: () => pick(`'{"owner": "ada", "k": 1}'`, `'{"owner": "Ada"}'`, `'[1]'`),
  ia: () => pick("'{}'", "'{1,2}'", "'{2,NULL,3}'"),
  d: () => quote(`2024-02-0${1 + random(5)}`),
  iv: () => quote(pick('1 day', '24:00', '1 mon')),
};
const NAMES = Object.keys(values);
const value = (name) => (name !== 'g' && random(7) === 0 ? 'NULL' : values[name]());
const change = () => pick(
  () => `INSERT INTO ra.t (${NAMES}) VALUES ${Array.from({ length: 1 + random(5) }, () => `(${NAMES.map(value)})`)}`,
  () => `UPDATE ra.t SET ${NAMES.filter((name) => name === 't' || random(4) === 0).map((name) => `${name} = ${value(name)}`)} WHERE id % 5 = ${random(5)}`,
  () => `UPDATE ra.t SET ${pick('i = b, b = i', 'v = left(t, 9), t = v', 'g = g % 3 + 1', 'id = id + 100000')} WHERE id % 7 = ${random(7)}`,
  () => `DELETE FROM ra.t WHERE id % 11 = ${random(11)}`,
)();
const changes = () => {
  const list = Array.from({ length: 1 + random(4) }, change);
  return list.length > 1 ? `BEGIN; ${list.join('; ')}; COMMIT` : list[0];
};

// ---- what all of that depends on ----

let columns = 0;
const definition = () => pick(
  () => `ALTER POLICY p ON ra.t USING (${expression(2)})`,
  () => `ALTER POLICY p ON ra.t USING (${expression(2)})`,
  () => `BEGIN; ${change()}; ALTER POLICY p ON ra.t USING (${expression(2)}); ${change()}; COMMIT`,
  () => `BEGIN; DROP POLICY IF EXISTS r ON ra.t; ${change()}; CREATE POLICY r ON ra.t AS RESTRICTIVE USING (${expression(1)}); COMMIT`,
  () => 'DROP POLICY IF EXISTS r ON ra.t',
  () => "BEGIN; ALTER TYPE ra.mood RENAME VALUE 'ok' TO 'x'; ALTER TYPE ra.mood RENAME VALUE 'sad' TO 'ok'; ALTER TYPE ra.mood RENAME VALUE 'x' TO 'sad'; COMMIT",
  () => `CREATE OR REPLACE FUNCTION ra.mine(text) RETURNS bool LANGUAGE sql STABLE AS $$ SELECT $1 ${pick('=', '<>')} ra.jwt()->>'name' $$`,
  () => `ALTER TABLE ra.t ${pick('DISABLE', 'ENABLE', 'ENABLE')} ROW LEVEL SECURITY`,
  () => pick('GRANT ra_extra TO ra_web', 'REVOKE ra_extra FROM ra_web'),
  () => pick('REVOKE SELECT ON ra.t FROM ra_web; GRANT SELECT (id, g, t, i, b) ON ra.t TO ra_web', 'GRANT SELECT ON ra.t TO ra_web'),
  () => (columns > 99 ? 'SELECT 1' : `BEGIN; ${change()}; ALTER TABLE ra.t ADD COLUMN IF NOT EXISTS x${(columns += 1) % 10} int DEFAULT ${columns}; ${change()}; COMMIT`),
  () => `DO $$ BEGIN ALTER TABLE ra.t ${pick(`DROP COLUMN x${random(10)}`, `RENAME COLUMN x${random(10)} TO x${random(10)}`)}; EXCEPTION WHEN undefined_column OR duplicate_column THEN END $$`,
  () => pick("INSERT INTO ra.members VALUES ('a') ON CONFLICT DO NOTHING", "DELETE FROM ra.members WHERE usr = 'a'"),
)();

test(`INLINE_SEED=${seed}`, async (t) => {
  const end = Date.now() + Number(process.env.INLINE_SECONDS ?? 15) * 1000;
  const clients = [];
  const counts = { compared: 0, definitions: 0, refused: 0, ended: 0 };

  for (const identity of [...IDENTITIES, ...IDENTITIES, IDENTITIES[0]]) {
    const client = await Client.connectSoon({ token: await db.token(identity) });
    t.after(() => client.cut());
    client.identity = identity;
    client.where = new Map();
    clients.push(client);
  }

  const history = [];
  const run = (session, sql) => {
    history.push(sql);
    // Two of them may meet a deadlock, or one and the constraints
    return session.exec(sql).catch((error) => {
      assert.match(error.message.split('\n')[0], /deadlock|duplicate key|serialize|tuple concurrently/);
      return session.exec('ROLLBACK').catch(() => {});
    });
  };
  async function subscribe(client) {
    const { name, where } = channel();
    if (client.subscriptions.has(name)) {
      // It may have ended meanwhile
      return client.unsubscribe(name).catch((error) => assert.equal(error.code, '42704', error.message));
    }
    // What a role may not read it cannot ask for
    const s = await client.openSoon(name).catch((error) => {
      if (!['42501', '42703'].includes(error.code)) client.check();
      counts.refused += 1;
    });
    if (s) client.where.set(name, where);
  }
  async function compare() {
    for (const client of clients) {
      await client.settle();
      client.check();
    }
    for (const client of clients) {
      for (const [name, s] of client.subscriptions) {
        if (s.state !== 'ready') {
          counts.ended += 1;
          client.subscriptions.delete(name);
          continue;
        }
        const [entity] = s.entities.keys();
        const list = s.entities.get(entity).columns.map((column) => `"${column}"`);
        const rows = await db.rowsAs(client.identity, `SELECT ${list} FROM ra.t WHERE ${client.where.get(name)}`);
        const using = await db.rows("SELECT polname, pg_get_expr(polqual, polrelid) AS using FROM pg_policy WHERE polrelid = 'ra.t'::regclass");
        assertSame(s.rows(), rows, `INLINE_SEED=${seed}: ${JSON.stringify(client.identity)} ${name}, ${JSON.stringify(using)}, behind ${history.slice(-8).join('\n  ')}`);
        counts.compared += 1;
      }
    }
  }

  try {
    for (let step = 0; Date.now() < end; step += 1) {
      const settings = step % 40 === 39 && { 'changefeed.audience_index': pick(null, 'off'), 'changefeed.inline_policies': pick(null, null, 'off') };
      if (settings) await reload(db, settings);
      await Promise.all([
        run(writer, changes()),
        random(4) === 0 ? (counts.definitions += 1, run(db, definition())) : run(db, changes()),
        random(2) === 0 ? subscribe(clients[random(clients.length)]) : null,
      ]);
      if (step % 8 === 7) await compare();
      if (step % 60 === 59) await run(db, 'DELETE FROM ra.t WHERE id % 3 > 0');
    }
    await compare();
  } finally {
    await reload(db, { 'changefeed.audience_index': null, 'changefeed.inline_policies': null });
  }
  t.diagnostic(JSON.stringify(counts));
  assert.ok(counts.compared > 0);
});
