// TypeScript types of the database: that they are true of every value that a client gets, that an application can use them,
// and the command that writes them.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { ChangefeedError } from '../../client/dist/index.js';
import { lossless } from '../../client/dist/lossless.js';
import { Session, quote } from '../integration/lib/psql.mjs';
import { start } from './lib/page.mjs';

const CLIENT = fileURLToPath(new URL('../../client/', import.meta.url));
const ts = createRequire(path.join(CLIENT, 'package.json'))('typescript');
// Where "react" and the like are found from
const DIRECTORY = path.join(CLIENT, `node_modules/.types-test-${process.pid}`);

let db;
let token;

before(async () => {
  mkdirSync(DIRECTORY);
  db = new Session();
  await db.exec("CREATE ROLE web; SELECT changefeed.allow_role('web')");
  token = await db.token({ role: 'web' });
});
after(async () => {
  rmSync(DIRECTORY, { recursive: true, force: true });
  await db.close();
});

// The library is read once.
const parsed = new Map();
const DOM = ['lib.dom.d.ts', 'lib.dom.iterable.d.ts'];

/** Compiles the files with --strict; gives the errors. */
function compile(names, libraries = [], more = {}) {
  const options = {
    ...more,
    strict: true, noEmit: true, noUncheckedIndexedAccess: true, noUnusedLocals: true, skipLibCheck: true,
    target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.NodeNext, moduleResolution: ts.ModuleResolutionKind.NodeNext,
    lib: ['lib.es2023.d.ts', ...libraries], types: [],
    paths: { 'pg-changefeed': [path.join(CLIENT, 'dist/index.d.ts')], 'pg-changefeed/*': [path.join(CLIENT, 'dist/*.d.ts'), path.join(CLIENT, 'src/*.tsx')] },
    jsx: ts.JsxEmit.ReactJSX,
  };
  const host = ts.createCompilerHost(options);
  const read = host.getSourceFile;
  host.getSourceFile = (file, ...rest) => {
    if (!path.basename(file).startsWith('lib.')) return read.call(host, file, ...rest);
    if (!parsed.has(file)) parsed.set(file, read.call(host, file, ...rest));
    return parsed.get(file);
  };
  const program = ts.createProgram(names.map((name) => path.join(DIRECTORY, name)), options, host);
  return ts.getPreEmitDiagnostics(program).map(({ file, start: at, messageText }) => {
    const text = ts.flattenDiagnosticMessageText(messageText, '\n');
    if (!file) return text;
    const { line } = file.getLineAndCharacterOfPosition(at);
    return `${path.basename(file.fileName)}:${line + 1}: ${text}\n    ${file.text.split('\n')[line].slice(0, 300)}`;
  });
}

const write = (name, text) => {
  mkdirSync(path.dirname(path.join(DIRECTORY, name)), { recursive: true });
  writeFileSync(path.join(DIRECTORY, name), text);
};

/** The command, as a user would run it. */
const command = (args, env = {}) => new Promise((resolve) => {
  execFile(process.execPath, [path.join(CLIENT, 'bin/pg-changefeed.js'), ...args], { env: { ...process.env, ...env } }, (error, stdout, stderr) => {
    resolve({ status: error ? error.code : 0, stdout, stderr });
  });
});

/** A value as an expression of TypeScript. */
const literal = (value) => {
  if (typeof value === 'bigint') return `${value}n`;
  if (Array.isArray(value)) return `[${value.map(literal).join(', ')}]`;
  if (typeof value === 'object' && value !== null) return `{ ${Object.entries(value).map(([name, inner]) => `${JSON.stringify(name)}: ${literal(inner)}`).join(', ')} }`;
  return JSON.stringify(value);
};

// A few values of each type that can be the type of a column.
const VALUES = {
  aclitem: ['postgres=arwdDxt/postgres'], bit: ['1'], bool: ['t', 'f'], box: ['((0,0),(1,1))'], bpchar: ['a'], bytea: ['\\x', '\\x00ff'], char: ['x', '"'],
  cid: ['1'], cidr: ['10.0.0.0/8'], circle: ['<(0,0),1>'], date: ['2024-02-29', 'infinity', '0044-03-15 BC'], datemultirange: ['{[2024-01-01,2024-01-02)}'],
  daterange: ['empty', '[2024-01-01,)'], float4: ['1.5', '0.1', '3e38', '1e-30'], float8: ['0.1', '1e300', '5e-324', '-0', '9007199254740993'],
  inet: ['::1', '10.0.0.1/8'], int2: ['-32768', '0'], int2vector: ['1 2', ''], int4: ['2147483647', '0'], int4multirange: ['{[1,2)}'], int4range: ['[1,5)'],
  int8: ['0', '9223372036854775807', '-9007199254740993', '9007199254740992'], int8multirange: ['{}'], int8range: ['(,)'], interval: ['1 year 2 days', '-1 s'], json: ['{"a": [1, null, 1.10]}', 'null', '12345678901234567890'],
  jsonb: ['[{"a": 9007199254740993}]', '"x"', 'null', 'true', '1.10'], jsonpath: ['$.a'], line: ['{1,2,3}'], lseg: ['[(0,0),(1,1)]'], macaddr: ['08:00:2b:01:02:03'],
  macaddr8: ['08:00:2b:01:02:03:04:05'], money: ['1.50', '-1000'], name: ['n'], numeric: ['0', '1.10', '12345678901234567890.123456789', '1e30', '-5', '0.00000001'],
  nummultirange: ['{[1.1,2)}'], numrange: ['[1.10,2)'], oid: ['26'], oidvector: ['26 27'], path: ['[(0,0),(1,1)]'], pg_lsn: ['0/16B3748'], pg_snapshot: ['10:20:10,14'],
  point: ['(1,2)'], polygon: ['((0,0),(1,1))'], refcursor: ['c'], regclass: ['pg_class'], regcollation: ['"C"'], regconfig: ['simple'], regdictionary: ['simple'],
  regnamespace: ['pg_catalog'], regoper: ['||/'], regoperator: ['+(int4,int4)'], regproc: ['pg_backend_pid'], regprocedure: ['abs(int4)'], regrole: ['web'], regtype: ['int4', 'text[]'],
  text: ['', 'ü "\\ \n', '*/'], tid: ['(0,1)'], time: ['12:00:00.5', '24:00'], timestamp: ['2024-02-29 12:00:00.123456', '-infinity'], timestamptz: ['2024-02-29 12:00+02', 'infinity'], timetz: ['12:00+02'],
  tsmultirange: ['{}'], tsquery: ['a & b'], tsrange: ['[2024-01-01,)'], tstzmultirange: ['{}'], tstzrange: ['[2024-01-01 00:00+00,)'], tsvector: ["a:1 b"], txid_snapshot: ['10:20:10'],
  uuid: ['a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'], varbit: ['101'], varchar: ['v'], xid: ['3'], xid8: ['3'], xml: ['<a>1</a>'],
  oid8: ['26'], regdatabase: ['postgres'],
};
const JSONS = new Set(['json', 'jsonb', 'warm']);

describe('every type', () => {
  /** Name of the column, its type, and values as SQL. */
  const columns = [];
  let snapshot;

  before(async () => {
    // Those that cannot be read from text have no values that anybody could store.
    const types = (await db.value(`SELECT typname FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype IN ('b', 'r', 'm') AND typrelid = 0
      AND typname !~ '^_' AND typname NOT IN ('gtsvector', 'pg_brin_bloom_summary', 'pg_brin_minmax_multi_summary', 'pg_dependencies', 'pg_mcv_list', 'pg_ndistinct', 'pg_node_tree')
      ORDER BY 1`)).split('\n');
    for (const type of types) {
      assert.ok(VALUES[type], `type ${type} has values here`);
      const sql = `pg_catalog."${type}"`;
      columns.push([type, sql, VALUES[type].map((text) => `${quote(text)}::${sql}`)]);
      columns.push([`${type}[]`, `${sql}[]`, [`ARRAY[${VALUES[type].map((text) => `${quote(text)}::${sql}`)}, NULL]`, `'{}'`]]);
    }
    await db.exec(`SET search_path = public;
      CREATE TYPE mood AS ENUM ('happy', 'it''s \\ "odd"');
      CREATE DOMAIN score AS numeric(4, 1) CHECK (VALUE <> 13);
      CREATE DOMAIN must AS text NOT NULL;
      CREATE DOMAIN moods AS mood[];
      CREATE TYPE place AS (x int, m mood, names text[], "s p" score, must must);
      CREATE TYPE route AS (stops place[], "end" place);
      CREATE DOMAIN spot AS place;
      CREATE TABLE part (a int NOT NULL, b bigint);
      CREATE TYPE span AS RANGE (subtype = int4);
      CREATE TYPE warm AS ENUM ('cold', 'hot');
      CREATE FUNCTION warm_json(warm) RETURNS json LANGUAGE sql IMMUTABLE AS $$ SELECT json_build_object('warm', $1 = 'hot'::public.warm) $$;
      CREATE CAST (warm AS json) WITH FUNCTION warm_json;`);
    columns.push(
      ['mood', 'mood', [`'happy'`, `'it''s \\ "odd"'`]], ['mood[]', 'mood[]', [`'{happy,NULL}'`, `'{}'`]], ['matrix', 'int[][]', [`'{{1,2},{3,NULL}}'`, `'{}'`]], ['moods', 'moods', [`'{happy}'`]],
      ['score', 'score', ['1.5', '-2']], ['score[]', 'score[]', [`'{1,NULL}'`]], ['musts', 'must[]', [`'{a,b}'`]],
      ['place', 'place', [`ROW(1, 'happy', '{a,NULL}', 1.5, 'm')`, `ROW(NULL, NULL, NULL, NULL, 'm')`]], ['spot', 'spot', [`ROW(1, NULL, '{}', 2, 'm')::place`]],
      ['route', 'route', [`ROW(ARRAY[ROW(1, 'happy', '{}', 1, 'm')::place, NULL], ROW(2, NULL, NULL, NULL, 'n')::place)`]],
      ['part', 'part', ['ROW(1, 9007199254740993)', 'ROW(NULL, NULL)']], ['span', 'span', [`'[1,2)'`]], ['span[]', 'span[]', [`'{"[1,2)"}'`]],
      ['warm', 'warm', [`'hot'`]], ['warm[]', 'warm[]', [`'{hot,NULL}'`]], ['varying', 'varchar(7)', [`'abc'`]], ['price', 'numeric(8, 2)', ['1.10', '5']],
    );
    await db.exec(`CREATE TABLE everything (id int PRIMARY KEY, ${columns.map(([name, type]) => `"${name}" ${type}`).join(', ')},
        twice bigint GENERATED ALWAYS AS (id * 2::bigint) STORED NOT NULL, sure text NOT NULL DEFAULT 'yes', hidden int);
      GRANT SELECT ON everything TO web;
      SELECT changefeed.create_channel('everything', 'everything', columns => ARRAY(SELECT attname FROM pg_attribute
        WHERE attrelid = 'everything'::regclass AND attnum > 0 AND attname <> 'hidden'))`);
    snapshot = Math.max(...columns.map(([, , values]) => values.length));
    for (let i = 0; i < snapshot; i += 1) await insert(i + 1, i);
    await db.exec('INSERT INTO everything (id) VALUES (100)');
  });

  const insert = (id, n) => db.exec(`INSERT INTO everything (id, ${columns.map(([name]) => `"${name}"`).join(', ')})
    VALUES (${id}, ${columns.map(([, type, values]) => `${values[n % values.length]}::${type}`).join(', ')})`);

  /** The rows of a snapshot, and the same values as they come live. */
  async function received(t, id, options) {
    const client = start(t, { auth: token, ...options });
    const channel = client.channel('everything');
    await channel.ready;
    assert.equal(channel.entities.everything.columns.length, columns.length + 3);
    for (let i = 0; i < snapshot; i += 1) await insert(id + i, i);
    await client.sync();
    const rows = channel.rows();
    assert.deepEqual(client.errors, []);
    for (let i = 0; i < snapshot; i += 1) {
      const { id: _, twice: __, ...row } = channel.get({ id: id + i });
      assert.deepEqual(row, (({ id: ___, twice: ____, ...same }) => same)(channel.get({ id: i + 1 })), 'live as in the snapshot');
    }
    client.close();
    return rows;
  }

  const source = (module, rows) => [
    `import type { Database } from './${module}.js';`, `type Row = Database['tables']['everything'];`,
    ...rows.flatMap((row) => Object.entries(row).map(([name, value], i) => `export const v${row.id}_${i}: Row[${JSON.stringify(name)}] = ${literal(value)};`)),
    // No column is missing, and none is too much.
    `export const whole: Row = ${literal(rows[0])};`,
    `// @ts-expect-error: it is not sent`, `export type Hidden = Row['hidden'];`,
    ...['id', 'sure', 'twice'].map((name) => `// @ts-expect-error: it is never null\nexport const not_null_${name}: Row['${name}'] = null;`),
    ...columns.flatMap(([name], i) => [
      `// @ts-expect-error: ${name.replaceAll('\n', ' ')} is none of these`,
      `export const wrong${i}: Row[${JSON.stringify(name)}] = ${JSONS.has(name) ? 'undefined' : name === 'bool' ? '1' : 'true'};`,
    ]),
  ].join('\n');

  test('the values that clients get have the declared types', async (t) => {
    write('double.ts', await db.value('SELECT changefeed.typescript_types()'));
    write('finite.ts', await db.value("SELECT changefeed.typescript_types(numbers => 'finite')"));
    write('lossless.ts', await db.value("SELECT changefeed.typescript_types(numbers => 'lossless')"));
    const rows = await received(t, 1000);
    assert.equal(rows.length, 2 * snapshot + 1);
    write('values-double.ts', source('double', rows));
    write('values-finite.ts', source('finite', rows));
    const exact = await received(t, 2000, { codec: lossless() });
    assert.equal(exact.find(({ id }) => id === 2).int8, 9223372036854775807n);
    assert.equal(exact.find(({ id }) => id === 2).numeric, '1.10');
    assert.equal(exact.find(({ id }) => id === 3).float8, 5e-324, 'a double is a number, however small');
    assert.equal(exact.find(({ id }) => id === 4).float4, 1e-30);
    assert.equal(exact.find(({ id }) => id === 6).numeric, 1e-8);
    assert.equal(exact.find(({ id }) => id === 3).numeric, '12345678901234567890.123456789');
    write('values-lossless.ts', source('lossless', exact));
    assert.deepEqual(compile(['values-double.ts', 'values-finite.ts', 'values-lossless.ts']), []);
  });

  test('numbers that are none', async (t) => {
    await db.exec(`CREATE TABLE odd (id int PRIMARY KEY, f4 float4, f8 float8, n numeric NOT NULL, ns numeric[]);
      INSERT INTO odd VALUES (1, 'NaN', 'Infinity', '-Infinity', '{NaN,1}'), (2, '-Infinity', 'NaN', 'NaN', '{}');
      GRANT SELECT ON odd TO web; SELECT changefeed.create_channel('odd', 'odd')`);
    const client = start(t, { auth: token });
    const channel = client.channel('odd');
    await channel.ready;
    const rows = channel.rows();
    assert.equal(rows.length, 2);
    for (const kind of ['double', 'finite', 'lossless']) {
      write(`odd-${kind}.ts`, await db.value(`SELECT changefeed.typescript_types(numbers => '${kind}')`));
      write(`odd-values-${kind}.ts`, `import type { Database } from './odd-${kind}.js';\nexport const rows: Database['tables']['odd'][] = [\n${rows.map(literal).join(',\n')}];`);
    }
    assert.deepEqual(compile(['odd-values-double.ts', 'odd-values-lossless.ts']), []);
    assert.match(compile(['odd-values-finite.ts']).join('\n'), /not assignable to type 'number/);
  });

  test('arguments and results of functions', async (t) => {
    await db.exec(`SET search_path = public;
      CREATE FUNCTION f_scalar(a int, b numeric DEFAULT 1, c mood DEFAULT NULL) RETURNS numeric LANGUAGE sql AS 'SELECT a + b';
      CREATE FUNCTION f_null(a must) RETURNS text LANGUAGE sql AS 'SELECT NULL';
      CREATE FUNCTION f_void() RETURNS void LANGUAGE sql AS '';
      CREATE FUNCTION f_row(id int) RETURNS everything LANGUAGE sql SECURITY DEFINER AS 'SELECT * FROM public.everything e WHERE e.id = f_row.id';
      CREATE FUNCTION f_rows() RETURNS SETOF odd LANGUAGE sql SECURITY DEFINER AS 'SELECT * FROM public.odd';
      CREATE FUNCTION f_scalars(VARIADIC v bigint[]) RETURNS SETOF bigint LANGUAGE sql AS 'SELECT unnest(v)';
      CREATE FUNCTION f_table(p place[]) RETURNS TABLE (n int, p place) LANGUAGE sql AS 'SELECT x, q FROM unnest(p) q';
      CREATE FUNCTION f_out(a int, OUT b int, OUT c text) LANGUAGE sql AS 'SELECT a, NULL';
      CREATE FUNCTION f_inout(INOUT a timestamptz) LANGUAGE sql AS 'SELECT a';
      CREATE FUNCTION f_record() RETURNS record LANGUAGE sql AS 'SELECT 1, ''x''::text';
      CREATE FUNCTION f_json(j jsonb, d bytea, w warm DEFAULT 'hot') RETURNS jsonb LANGUAGE sql AS 'SELECT j';
      CREATE FUNCTION f_composite(r route) RETURNS route LANGUAGE sql AS 'SELECT r';
      CREATE FUNCTION "f odd"("a b" int) RETURNS must LANGUAGE sql AS 'SELECT ''x''';
      SELECT changefeed.expose_function(oid) FROM pg_proc WHERE proname LIKE 'f\\_%' AND pronamespace = 'public'::regnamespace;
      SELECT changefeed.expose_function('"f odd"(int)');`);
    const client = start(t, { auth: token });
    const place = { x: 1, m: 'happy', names: ['a', null], 's p': '1.5', must: 'm' };
    const calls = [
      ['f_scalar', { a: 1 }], ['f_scalar', { a: 1, b: '1.10', c: 'happy' }], ['f_scalar', { a: null, b: 2.5 }], ['f_null', { a: 'x' }], ['f_void', {}], ['f_row', { id: 2 }], ['f_row', { id: 100 }],
      ['f_row', { id: -1 }], ['f_rows', {}], ['f_scalars', { v: [1, '9223372036854775807', null] }], ['f_table', { p: [place, { must: 'n' }] }], ['f_out', { a: 1 }],
      ['f_inout', { a: '2024-02-29T12:00:00Z' }], ['f_record', {}], ['f_json', { j: { a: [1, null] }, d: '\\x00' }], ['f_composite', { r: { stops: [place, null], end: null } }], ['f odd', { 'a b': 1 }],
    ];
    const lines = [];
    for (const [name, args] of calls) {
      const { result } = await client.call(name, args);
      const type = `Database['functions'][${JSON.stringify(name)}]`;
      lines.push(`export const a${lines.length}: ${type}['Args'] = ${literal(args)};`, `export const r${lines.length}: ${type}['Result'] = ${literal(result)};`);
    }
    const wrong = [
      ['f_scalar', {}], ['f_scalar', { a: 'x' }], ['f_scalar', { a: 1, c: 'sad' }], ['f_null', { a: null }], ['f_void', { a: 1 }], ['f_scalars', { v: 1 }], ['f_table', { p: [{ x: 1 }] }],
      ['f odd', { a: 1 }],
    ];
    for (const [name, args] of wrong) {
      await assert.rejects(client.call(name, args), undefined, `${name} ${JSON.stringify(args)}`);
      lines.push('// @ts-expect-error', `export const a${lines.length}: Database['functions'][${JSON.stringify(name)}]['Args'] = ${literal(args)};`);
    }
    write('functions.ts', await db.value('SELECT changefeed.typescript_types()'));
    write('functions-values.ts', [`import type { Database } from './functions.js';`, ...lines].join('\n'));
    assert.deepEqual(compile(['functions-values.ts']), []);
  });
});

test('payloads of events, and names of channels', async (t) => {
  await db.exec(`CREATE TYPE level AS ENUM ('low', 'high');
    CREATE TABLE alarms (id int PRIMARY KEY, level level NOT NULL, open boolean NOT NULL, text text, value numeric NOT NULL, doc jsonb);
    ALTER TABLE alarms REPLICA IDENTITY FULL;
    GRANT SELECT ON alarms TO web;
    SELECT changefeed.create_channel('alarms', 'alarms');
    SELECT changefeed.create_channel('alarms:{level}', 'alarms');
    SELECT changefeed.create_channel('alarms:{level}:{open}', 'alarms');
    SELECT changefeed.add_event('alarms', 'alarms', event, NULL, payload, on_change) FROM (VALUES
      ('level', 'new.level', '{insert,update}'::text[]), ('text', 'new.text', '{insert,update,delete}'), ('doc', 'new.doc', '{insert,update,delete}'),
      ('moved', 'jsonb_build_object(''id'', new.id, ''from'', old.level, ''to'', new.level, ''kind'', ''moved'', ''value'', new.value, ''open'', new.open OR old.open)', '{update}'),
      ('list', 'json_build_array(new.value, old.value, NULL, ''x'', 1.5, new.doc)', '{insert,update,delete}'), ('none', 'NULL', '{insert}')) e (event, payload, on_change)`);
  const client = start(t, { auth: token });
  const channel = client.channel('alarms');
  await channel.ready;
  const lines = [];
  channel.on('message', ({ event, payload }) => lines.push(`export const e${lines.length}: Events['${event}'] = ${literal(payload)};`));
  await db.exec(`INSERT INTO alarms VALUES (1, 'low', true, 'x', 1.5, '{"a": [1]}'), (2, 'high', false, NULL, 'NaN', 'null')`);
  await db.exec(`UPDATE alarms SET level = 'high', value = 2`);
  await db.exec('DELETE FROM alarms WHERE id = 2');
  await client.sync();
  for (const event of ['level', 'text', 'doc', 'moved', 'list', 'none']) assert.ok(lines.some((line) => line.includes(`['${event}']`)), event);
  for (const wrong of ["Events['level'] = 'middle'", "Events['level'] = null", "Events['text'] = 1", `Events['moved']['from'] = null`, `Events['moved']['kind'] = 'x'`, `Events['moved']['other'] = 1`,
    "Events['list'] = []", "Events['none'] = 1"]) lines.push('// @ts-expect-error', `export const e${lines.length}: ${wrong};`);
  // What the server takes is what compiles.
  const names = ['alarms:low', 'alarms:high', 'alarms:*', 'alarms:low:t', 'alarms:high:f', 'alarms:*:t', 'alarms:low:*'];
  for (const name of names) {
    await client.channel(name).ready;
    lines.push(`client.channel('${name}');`);
  }
  for (const name of ['alarms:middle', 'alarms:low:true', 'alarms:low:yes', 'alarms:low:']) {
    await assert.rejects(client.channel(name).ready, ChangefeedError, name);
    lines.push('// @ts-expect-error', `client.channel('${name}');`);
  }
  lines.push('export const by = (level: Level, open: boolean) => [client.channel(`alarms:${level}`), client.channel(`alarms:${level}:${open ? \'t\' : \'f\'}`)];');
  write('alarms.ts', await db.value('SELECT changefeed.typescript_types()'));
  write('alarms-values.ts', [`import { createClient } from 'pg-changefeed';`, `import type { Database } from './alarms.js';`,
    `type Events = Database['channels']['alarms']['events'];`, `type Level = Database['types']['level'];`, `const client = createClient<Database>({ url: '/' });`, ...lines].join('\n'));
  assert.deepEqual(compile(['alarms-values.ts'], DOM), []);
});

describe('an application', () => {
  before(async () => {
    await db.exec(`CREATE DATABASE app`);
    const app = new Session({ database: 'app' });
    await app.exec(`CREATE EXTENSION pg_changefeed; SELECT changefeed.allow_role('web');
      CREATE TYPE order_status AS ENUM ('new', 'paid', 'shipped');
      CREATE TYPE item AS (name text, n int);
      CREATE TABLE orders (id bigint PRIMARY KEY, customer_id int NOT NULL, status order_status NOT NULL, total numeric(8, 2), note text, doc jsonb NOT NULL,
        photo bytea, tags text[] NOT NULL, secret text);
      CREATE TABLE items (id int PRIMARY KEY, name text NOT NULL);
      CREATE TABLE rooms (id int PRIMARY KEY, room text NOT NULL);
      CREATE SCHEMA other;
      CREATE TABLE other.rooms (id int PRIMARY KEY, room text NOT NULL, other boolean);
      SELECT changefeed.create_channel('orders:{customer_id}', 'orders', columns => '{id,customer_id,status,total,note,doc,photo,tags}');
      SELECT changefeed.add_event('orders:{customer_id}', 'orders', 'shipped');
      SELECT changefeed.create_channel('both', 'orders', columns => '{id,status}');
      SELECT changefeed.add_source('both', 'items');
      SELECT changefeed.create_channel('room:{room}', 'rooms');
      SELECT changefeed.create_channel('room:{room}:notes', 'other.rooms');
      SELECT changefeed.create_channel('lobby:{room}', presence => '{}', publish_check => 'true');
      CREATE FUNCTION place_order(customer bigint, items item[], note text DEFAULT NULL) RETURNS orders LANGUAGE sql AS 'SELECT * FROM orders';
      CREATE FUNCTION nothing() RETURNS void LANGUAGE sql AS '';
      SELECT changefeed.expose_function(oid) FROM pg_proc WHERE proname IN ('place_order', 'nothing') AND pronamespace = 'public'::regnamespace;`);
    await app.close();
  });

  test('uses them, and mistakes do not compile', async () => {
    const { status, stderr } = await command(['types', '--dbname', 'app', '--out', path.join(DIRECTORY, 'database.ts')]);
    assert.deepEqual({ status, stderr }, { status: 0, stderr: '' });
    for (const name of ['usage.ts', 'hooks.ts']) copyFileSync(fileURLToPath(new URL(`./lib/${name}`, import.meta.url)), path.join(DIRECTORY, name));
    assert.deepEqual(compile(['usage.ts'], DOM), []);
    assert.deepEqual(compile(['hooks.ts'], DOM, { declaration: true }), [], 'also as declarations');
  });

  test('the examples of doc/client-types.md compile', async () => {
    const blocks = [...readFileSync(fileURLToPath(new URL('../../doc/client-types.md', import.meta.url)), 'utf8').matchAll(/^```(sql|ts)\b.*\n([^]*?)^```$/gm)];
    const text = (language) => blocks.filter(([, of]) => of === language).map(([, , code]) => code);
    assert.ok(text('ts').length > 1);
    await db.exec('CREATE DATABASE doc');
    const doc = new Session({ database: 'doc' });
    // Only what makes the schema: the role exists.
    await doc.exec(text('sql')[0].replace('CREATE ROLE web NOLOGIN;', ''));
    write('doc/database.ts', await doc.value('SELECT changefeed.typescript_types()'));
    await doc.close();
    write('doc/example.ts', text('ts').join('\n'));
    assert.deepEqual(compile(['doc/example.ts'], DOM), []);
  });

  test('the command: a file, whether it is up to date, and what may go wrong', async () => {
    const file = path.join(DIRECTORY, 'written.ts');
    const app = new Session({ database: 'app' });
    const check = ['types', '--out', file, '--check'];
    const env = { PGDATABASE: 'app' };
    let done = await command(check, env);
    assert.equal(done.status, 1);
    assert.match(done.stderr, /written\.ts is missing/);
    done = await command(['types'], env);
    assert.deepEqual({ status: done.status, stderr: done.stderr }, { status: 0, stderr: '' });
    assert.equal(done.stdout, `${await app.value('SELECT changefeed.typescript_types()')}\n`);
    assert.equal((await command(['types', '--out', file], env)).status, 0);
    assert.equal(readFileSync(file, 'utf8'), done.stdout);
    assert.deepEqual(await command(check, env), { status: 0, stdout: '', stderr: '' });
    writeFileSync(file, done.stdout.replaceAll('\n', '\r\n'));
    assert.equal((await command(check, env)).status, 0, 'ends of lines do not matter');
    await app.exec('ALTER TABLE items ADD COLUMN price int');
    done = await command(check, env);
    assert.equal(done.status, 1);
    assert.match(done.stderr, /out of date/);
    assert.equal((await command(['types', '--out', file], env)).status, 0);
    assert.equal((await command(check, env)).status, 0);
    done = await command(['types', '--numbers', 'lossless', '--role', 'web'], env);
    assert.match(done.stdout, /^\/\/ .*role => 'web', numbers => 'lossless'/);
    assert.match(done.stdout, /Int8 = number \| bigint;/);
    done = await command(['--help']);
    assert.equal(done.status, 0);
    assert.match(done.stdout, /^Usage: pg-changefeed types/);

    await Promise.all([
      [[], 2, /what is to be done/], [['type'], 2, /no command "type"/], [['types', 'x'], 2, /"x" is too much/], [['types', '--check'], 2, /needs --out/], [['types', '--oout', 'x'], 2, /--oout/],
      [['types', '--dbname', 'postgres'], 3, /CREATE EXTENSION pg_changefeed/], [['types', '--dbname', 'none'], 3, /"none" does not exist/], [['types', '--role', "we'b"], 3, /role "we'b" does not exist/],
      [['types', '--role', 'postgres'], 3, /clients cannot have role postgres/], [['types', '--numbers', 'x'], 3, /unknown kind of numbers "x"/],
      [['types', '--out', path.join(DIRECTORY, 'no/file.ts')], 3, /ENOENT/], [['types'], 3, /psql was not found/, { PATH: '/nowhere' }],
    ].map(async ([args, status, message, more]) => {
      const failed = await command(args, { ...env, ...more });
      assert.equal(failed.status, status, `${args}: ${failed.stderr}`);
      assert.match(failed.stderr, message);
      assert.equal(failed.stdout, '');
    }));
    await app.close();
  });
});
