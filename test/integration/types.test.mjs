// Every type a column can have: what is sent is to_jsonb(row), byte for byte,
// whatever the settings of databases, roles and sessions are.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { Client, until } from './lib/client.mjs';
import { quote, Session } from './lib/psql.mjs';
import { slice } from './lib/slices.mjs';

const PINNED = {
  TimeZone: 'UTC', DateStyle: 'ISO, MDY', IntervalStyle: 'postgres', bytea_output: 'hex', extra_float_digits: '1',
  lc_monetary: 'C', xmlbinary: 'base64', quote_all_identifiers: 'off', search_path: 'pg_catalog, pg_temp',
};

const HOSTILE = {
  TimeZone: 'Asia/Kolkata', DateStyle: 'SQL, DMY', IntervalStyle: 'sql_standard', bytea_output: 'escape', extra_float_digits: '-15',
  lc_monetary: 'C.utf8', lc_numeric: 'C.utf8', lc_time: 'C.utf8', xmlbinary: 'hex', xmloption: 'document', quote_all_identifiers: 'on',
  search_path: 'types, public', array_nulls: 'off', default_text_search_config: 'pg_catalog.german',
  standard_conforming_strings: 'off', escape_string_warning: 'off', 'request.jwt.claims': '{}', row_security: 'off',
};

const texts = (type, ...values) => values.map((value) => `${quote(value)}::${type}`);
const NO_VALUES = ['NULL']; // the server accepts none

const LONG = "(SELECT string_agg(md5(i::text) || 'é\"' || chr(92) || chr(i % 31 + 1), '') FROM generate_series(1, 2000) i)";
const CONTROL = "(SELECT string_agg(chr(i), '') FROM generate_series(1, 160) i)";
const RANGES = {
  int4: ['empty', '(,)', '[1,2)', '[-2147483648,2147483647)', '[5,5]'],
  int8: ['empty', '(,)', '[-9223372036854775808,9223372036854775807)', '(3,)'],
  num: ['empty', '(,)', '[1.10,1.100]', '(-Infinity,Infinity)', '[NaN,NaN]', '(0.000000001,1e20]'],
  ts: ['empty', '(,)', '[-infinity,infinity]', '["4713-01-01 00:00:00 BC","294276-12-31 23:59:59.999999")', '["2024-02-29 12:00:00",)'],
  tstz: ['empty', '(,)', '["2024-06-30 23:59:59.999999+02",infinity)', '("4713-01-01 00:00:00+00 BC",]'],
  date: ['empty', '(,)', '[4713-01-01 BC,5874897-12-31)', '[infinity,]', '[2024-02-29,2024-02-29]'],
};
const multi = (values) => ['{}', ...values.map((value) => `{${value}}`), `{${values.slice(2, 4).join(',')}}`];

// A list of SQL expressions for every built-in type. A new major may bring
// types: they are missed here by the first test.
const BUILT_IN = {
  boolean: ['true', 'false'],
  bytea: ["''::bytea", String.raw`'\x00ff5c22'::bytea`, "convert_to('é\\', 'UTF8')", "decode(repeat('ab00', 5000), 'hex')"],
  '"char"': ["''::\"char\"", "'a'::\"char\"", "'\"'::\"char\"", String.raw`'\\'::"char"`, "(-1)::\"char\"", "7::\"char\""],
  name: texts('name', '', 'a', 'Ä "x"\\', 'n'.repeat(63)),
  bigint: ['0::bigint', "'-9223372036854775808'::bigint", '9223372036854775807::bigint', '9007199254740993::bigint'],
  smallint: ['0::smallint', "'-32768'::smallint", '32767::smallint'],
  int2vector: texts('int2vector', '', '1', '1 -2 32767'),
  integer: ['0', "'-2147483648'::int", '2147483647'],
  regproc: texts('regproc', '-', '0', 'now', 'types.odd_function', '4294967295'),
  text: [...texts('text', '', 'a', '"', '\\', '/', '</script>', ' \t\n\r\b\f', 'null', '{"a":1}', '😀 𝒳 é ü 漢', '\u2028\u2029\u007f\u0080\ufeff\uffff'), CONTROL, LONG, "'\\u0041'"],
  oid: ['0::oid', '4294967295::oid'],
  tid: texts('tid', '(0,0)', '(4294967295,65535)'),
  xid: texts('xid', '0', '4294967295'),
  cid: texts('cid', '0', '4294967295'),
  xid8: texts('xid8', '0', '18446744073709551615'),
  oidvector: texts('oidvector', '', '0', '1 4294967295'),
  json: [...texts('json', 'null', 'true', ' [ 1 , 2,{"b" : 1,"a":2, "b":3} ] ', '"\\u0041\\n\\/\\ud83d\\ude00"', '{"":"","longer":1,"z":2,"aa":{}}', '1e2', '-0', '-0.0', '1.10', '1E-7', '123456789012345678901234567890.123', '[]', '{ }', '"a\\"b\\\\"'), "(repeat('[', 500) || repeat(']', 500))::json"],
  jsonb: [...texts('jsonb', 'null', 'false', '[1,{"b":1,"a":2,"b":3}]', '"\\u0041\\n\\/\\ud83d\\ude00\\u0001"', '{"bb":1,"a":[],"":{"x":{}}}', '1e1000', '-0.0', '1.10', '1E-7', '123456789012345678901234567890.12300'), "(SELECT jsonb_object_agg('k' || i, i) FROM generate_series(1, 300) i)"],
  jsonpath: texts('jsonpath', '$', 'strict $."a b"[*] ? (@.x > 1.10 && @ like_regex "a\\"b" flag "i")', '$.a.type()', 'lax $[0 to last]'),
  xml: texts('xml', '<a/>', '<?xml version="1.0" encoding="UTF-8"?><a b="&lt;\'">é"</a>', 'content <b/> &amp;', ''),
  pg_node_tree: ["(SELECT conbin FROM pg_constraint WHERE conbin IS NOT NULL ORDER BY oid LIMIT 1)", "(SELECT adbin FROM pg_attrdef ORDER BY oid LIMIT 1)"],
  pg_ndistinct: ["(SELECT stxdndistinct FROM pg_statistic_ext_data WHERE stxdndistinct IS NOT NULL LIMIT 1)"],
  pg_dependencies: ["(SELECT stxddependencies FROM pg_statistic_ext_data WHERE stxddependencies IS NOT NULL LIMIT 1)"],
  pg_mcv_list: ["(SELECT stxdmcv FROM pg_statistic_ext_data WHERE stxdmcv IS NOT NULL LIMIT 1)"],
  pg_brin_bloom_summary: NO_VALUES,
  pg_brin_minmax_multi_summary: NO_VALUES,
  point: texts('point', '(0,0)', '(-0,1e300)', '(NaN,Infinity)', '(0.1,-1e-300)'),
  lseg: texts('lseg', '[(0,0),(1,1)]', '[(-Infinity,0.1),(1,NaN)]'),
  path: texts('path', '[(0,0),(1,1)]', '((0,0),(1,1),(0.3,1e20))', '[(1,2)]'),
  box: texts('box', '(1,1),(0,0)', '(0.1,Infinity),(-1e-10,0)'),
  polygon: texts('polygon', '((0,0))', '((0,0),(1,1),(1,0.1))'),
  line: texts('line', '{1,2,3}', '{-0.1,1e-20,Infinity}'),
  circle: texts('circle', '<(0,0),0>', '<(0.1,-1),Infinity>'),
  real: texts('real', '0', '-0', 'NaN', 'Infinity', '-Infinity', '0.1', '1e-45', '3.4028235e38', '16777217', '1.17549435e-38', '123456.79'),
  'double precision': texts('float8', '0', '-0', 'NaN', 'Infinity', '-Infinity', '0.1', '5e-324', '1.7976931348623157e308', '2.2250738585072014e-308', '9007199254740993', '1e20', '1e-7', '0.30000000000000004'),
  money: texts('money', '0', '-92233720368547758.08', '92233720368547758.07', '1234.5', '-0.01'),
  macaddr: texts('macaddr', '00:00:00:00:00:00', 'ff:FF:ff:0a:0b:0c'),
  macaddr8: texts('macaddr8', '00:00:00:00:00:00:00:00', '08:00:2b:01:02:03:04:ff'),
  inet: texts('inet', '0.0.0.0', '10.1.2.3/8', '::1', '::ffff:1.2.3.4/100', 'fe80::1:0:0/64', '255.255.255.255/0'),
  cidr: texts('cidr', '0.0.0.0/0', '10.1.0.0/16', '::/0', '2001:db8::/32', '1.2.3.4'),
  aclitem: ["makeaclitem(10, 10, 'SELECT', false)", "makeaclitem((SELECT oid FROM pg_roles WHERE rolname = 'types \"web'), 10, 'UPDATE', true)", "makeaclitem(0, 10, 'EXECUTE', false)"],
  character: texts('bpchar', '', ' ', 'a  ', '"é\\'),
  'character varying': texts('varchar', '', ' ', 'a  ', '"é\\\u0001'),
  date: texts('date', '4713-01-01 BC', '0001-12-31 BC', '2024-02-29', '5874897-12-31', 'infinity', '-infinity', '1582-10-15'),
  'time without time zone': texts('time', '00:00', '24:00:00', '23:59:59.999999', '12:00:00.1'),
  'time with time zone': texts('timetz', '00:00+00', '24:00:00-15:59:59', '23:59:59.999999+15:59', '12:00:00.1+05:30'),
  'timestamp without time zone': texts('timestamp', '4713-01-01 00:00:00 BC', '294276-12-31 23:59:59.999999', 'infinity', '-infinity', '0001-01-01 BC', '2024-06-30 12:00:00.1', '2000-01-01'),
  'timestamp with time zone': texts('timestamptz', '4713-01-01 00:00:00+00 BC', '294276-12-31 23:59:59.999999+00', 'infinity', '-infinity', '0001-01-01 00:00:00+00 BC', '2024-06-30 12:00:00.1+05:45', '1883-11-18 12:00:00+00'),
  interval: texts('interval', '0', '1 year -2 mons 3 days -04:05:06.789', '-178000000 years', '178000000 years', '1 mon', '-1 day +25:00:00', '00:00:00.000001', '-00:00:01', '2562047788:00:54.775807'),
  bit: texts('bit', '0', '1'),
  'bit varying': texts('varbit', '', '0', '1', '10110000111100001'),
  numeric: [...texts('numeric', '0', '-0', '0.00', 'NaN', 'Infinity', '-Infinity', '1.10', '-0.000', '1e100', '1e-100', '99999999999999999999999999999999999999.99999999999999999999'), '10::numeric ^ 16000', '1::numeric / 10::numeric ^ 300'],
  refcursor: texts('refcursor', '', 'a "b"'),
  regprocedure: texts('regprocedure', '-', 'abs(integer)', 'types.odd_function(types.mood,"types"."Odd Name"[])', '4294967295'),
  regoper: texts('regoper', '0', '||/', '4294967295'),
  regoperator: texts('regoperator', '0', '+(integer,integer)', '-(none,bigint)', '4294967295'),
  regclass: texts('regclass', '-', 'pg_class', 'types."Odd ""Table"', '4294967295'),
  regcollation: texts('regcollation', '-', '"C"', '4294967295'),
  regtype: texts('regtype', '-', 'int', 'types.mood[]', 'types."Odd Name"', 'timestamptz', '4294967295'),
  regrole: ['10::regrole', '0::regrole', "(SELECT oid FROM pg_roles WHERE rolname = 'types \"web')::regrole", '4294967295::regrole'],
  regnamespace: texts('regnamespace', '-', 'types', 'pg_catalog', '4294967295'),
  regconfig: texts('regconfig', '-', 'english', '4294967295'),
  regdictionary: texts('regdictionary', '-', 'simple', '4294967295'),
  uuid: texts('uuid', '00000000-0000-0000-0000-000000000000', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'),
  pg_lsn: texts('pg_lsn', '0/0', 'FFFFFFFF/FFFFFFFF', '16/B374D848'),
  tsvector: texts('tsvector', '', 'a b c', "'it''s':1A,2B 'q\"\\\\':3 é:16383"),
  gtsvector: NO_VALUES,
  tsquery: texts('tsquery', '', 'a & !b | c <-> d', "'it''s':*AB <3> 'q\"'"),
  txid_snapshot: texts('txid_snapshot', '1:1:', '10:20:10,14,15'),
  pg_snapshot: texts('pg_snapshot', '1:1:', '10:20:10,14,15'),
  int4range: texts('int4range', ...RANGES.int4),
  int8range: texts('int8range', ...RANGES.int8),
  numrange: texts('numrange', ...RANGES.num),
  tsrange: texts('tsrange', ...RANGES.ts),
  tstzrange: texts('tstzrange', ...RANGES.tstz),
  daterange: texts('daterange', ...RANGES.date),
  int4multirange: texts('int4multirange', ...multi(RANGES.int4)),
  int8multirange: texts('int8multirange', ...multi(RANGES.int8)),
  nummultirange: texts('nummultirange', ...multi(RANGES.num)),
  tsmultirange: texts('tsmultirange', ...multi(RANGES.ts)),
  tstzmultirange: texts('tstzmultirange', ...multi(RANGES.tstz)),
  datemultirange: texts('datemultirange', ...multi(RANGES.date)),
};

// Types with modifiers, of extensions, and of users.
const OTHERS = {
  'numeric(20,5)': texts('numeric(20,5)', '0', '1.1', '-99999.99999', 'NaN'),
  'numeric(3,-2)': texts('numeric(3,-2)', '0', '12345', '-99900'),
  'char(5)': texts('char(5)', '', 'a', 'ab"  '),
  'varchar(3)': texts('varchar(3)', '', 'a  '),
  'bit(5)': texts('bit(5)', '00000', '10101'),
  'timestamptz(3)': texts('timestamptz(3)', '2024-06-30 12:00:00.1239+00', 'infinity'),
  'interval(2)': texts('interval(2)', '1.239 s', '-1 year'),
  'types.mood': texts('types.mood', 'sad', 'so "so"', 'ok\\', '😀', ''),
  'types.textrange': texts('types.textrange', 'empty', '[a,"b ,\\"")', '(,)'),
  'types.textmultirange': texts('types.textmultirange', '{}', '{[a,b),[c,"d)"]}'),
  'types.moodrange': texts('types.moodrange', '[sad,"so \\"so\\""]', 'empty'),
  'types."Odd Name"': ["ROW(1, 'a', NULL, NULL)::types.\"Odd Name\"", "ROW(NULL, '\"', ARRAY[1.10, 'NaN'], '{\"b\": 1, \"a\": [1.0]}')::types.\"Odd Name\"", 'ROW(NULL, NULL, NULL, NULL)::types."Odd Name"'],
  'types.deep': ["ROW('ok\\', ARRAY[ROW(1, 'x', '{2}', '[]')::types.\"Odd Name\", NULL], ROW(-0.0, '1 day', 'infinity')::types.pair, ARRAY[['sad'],['so \"so\"']]::types.mood[])::types.deep", 'ROW(NULL, NULL, NULL, NULL)::types.deep', "ROW('sad', '{}', NULL, '{}')::types.deep"],
  'types.pairdomain': ["ROW(1e20, '1 year', '2024-01-01 00:00+00')::types.pair::types.pairdomain"],
  'types.arraydomain': ["'{sad,NULL}'::types.mood[]::types.arraydomain", "'{}'::types.arraydomain"],
  'types.nothing': ['ROW()::types.nothing'],
  'types."Odd ""Table"': ["ROW(1, '{sad}')::types.\"Odd \"\"Table\""],
  'types.citext': texts('types.citext', '', 'MiXed "é"'),
  'types.ltree': texts('types.ltree', '', 'Top.Science_1.x'),
  'types.lquery': texts('types.lquery', '*.foo@*{1,2}.!a|b'),
  'types.cube': texts('types.cube', '(0)', '(0.1,-1e300),(2,3)'),
  'types.seg': texts('types.seg', '1.10 .. 2', '~5', '<0.1'),
  'types.ean13': texts('types.ean13', '9780140449136'),
  'types.query_int': texts('types.query_int', '1&(2|!3)'),
  'types.hstore': texts('types.hstore', '', '"a b"=>"c\\"", "x"=>NULL, num=>1.10', 'é=>"😀"'),
  'types.inout': texts('types.inout', '1', '{}'),
  'types.counted': texts('types.counted', 'one', 'two'),
};
const CASTS = new Set(['types.hstore', 'types.counted']);

const SETUP = `
  CREATE SCHEMA types;
  CREATE ROLE "types ""web"; CREATE ROLE types_web; GRANT USAGE ON SCHEMA types TO types_web;
  CREATE EXTENSION hstore SCHEMA types; CREATE EXTENSION citext SCHEMA types; CREATE EXTENSION ltree SCHEMA types;
  CREATE EXTENSION cube SCHEMA types; CREATE EXTENSION seg SCHEMA types; CREATE EXTENSION isn SCHEMA types; CREATE EXTENSION intarray SCHEMA types;
  CREATE TYPE types.mood AS ENUM ('sad', 'so "so"', 'ok\\', '😀', '');
  CREATE TYPE types.textrange AS RANGE (subtype = text, multirange_type_name = types.textmultirange);
  CREATE TYPE types.moodrange AS RANGE (subtype = types.mood);
  CREATE TYPE types."Odd Name" AS (zz int, "a ""b" text, "Ä" numeric[], j jsonb);
  CREATE TYPE types.pair AS (f float8, i interval, tz timestamptz);
  CREATE TYPE types.deep AS (m types.mood, "list of" types."Odd Name"[], p types.pair, mm types.mood[]);
  CREATE TYPE types.nothing AS ();
  CREATE DOMAIN types.pairdomain AS types.pair; CREATE DOMAIN types.arraydomain AS types.mood[];
  CREATE TABLE types."Odd ""Table" (a int, gone text, b types.mood[]); ALTER TABLE types."Odd ""Table" DROP COLUMN gone;
  CREATE FUNCTION types.odd_function() RETURNS int LANGUAGE sql AS 'SELECT 1';
  ALTER FUNCTION types.odd_function() RENAME TO odd_function_0;
  CREATE FUNCTION types.odd_function(types.mood, types."Odd Name"[]) RETURNS int LANGUAGE sql AS 'SELECT 1';
  CREATE TYPE types.counted AS ENUM ('one', 'two');
  CREATE FUNCTION types.counted_to_json(types.counted) RETURNS json LANGUAGE plpgsql IMMUTABLE AS $$
    BEGIN
      -- What it does to settings is its own affair.
      PERFORM set_config('TimeZone', 'Asia/Tokyo', false), set_config('bytea_output', 'escape', true), set_config('extra_float_digits', '-10', true);
      RETURN '{ "b" : 1.10, "a":[ ' || to_json($1::text) || ', "\\u0041" ] }';
    END $$;
  CREATE CAST (types.counted AS json) WITH FUNCTION types.counted_to_json(types.counted);
  -- Only a function makes something else of it than a string.
  CREATE TYPE types.inout AS ENUM ('1', '{}'); CREATE CAST (types.inout AS json) WITH INOUT;
  -- Casts of rows and arrays are not looked for.
  CREATE FUNCTION types.pair_to_json(types.pair) RETURNS json LANGUAGE sql AS $$ SELECT json_build_array(1/0) $$;
  CREATE CAST (types.pair AS json) WITH FUNCTION types.pair_to_json(types.pair);
  CREATE TABLE types.analyzed (a int, b int, CHECK (a > 0)); CREATE STATISTICS types.st (ndistinct, dependencies, mcv) ON a, b FROM types.analyzed;
  CREATE TABLE types.defaults (a int DEFAULT 1);
  INSERT INTO types.analyzed SELECT i % 7 + 1, i % 7 FROM generate_series(1, 1000) i; ANALYZE types.analyzed;`;

describe('types', () => {
  const all = Object.entries({ ...BUILT_IN, ...OTHERS }).map(([type, values], i) => ({ type: type === 'character' ? 'bpchar' : type, values, number: i, name: `types.t${i}` }));
  let db; // pinned
  let writer; // hostile
  let client;
  const raw = []; // messages as they came

  before(async () => {
    db = new Session();
    await pin();
    if (Number(await db.value('SHOW server_version_num')) >= 170000) BUILT_IN.interval.push(...texts('interval', 'infinity', '-infinity'));
    await db.exec(SETUP);
    await db.exec("SELECT changefeed.allow_role('types_web')");
    for (const t of all) {
      const array = await db.value(`SELECT typarray <> 0 AND typtype <> 'd' FROM pg_type WHERE oid = ${quote(t.type)}::regtype`) === 't';
      await db.exec(`CREATE DOMAIN types.d${t.number} AS ${t.type}; CREATE DOMAIN types.dd${t.number} AS types.d${t.number};
        CREATE TYPE types.c${t.number} AS (v ${t.type}, d types.dd${t.number}${array ? `, a ${t.type}[]` : ''});
        CREATE TABLE types.s${t.number} (i int PRIMARY KEY, v ${t.type});
        CREATE TABLE ${t.name} (id int PRIMARY KEY, v ${t.type}, d types.dd${t.number}, c types.c${t.number}, ca types.c${t.number}[], da types.dd${t.number}[]${array ? `, a ${t.type}[], aa ${t.type}[], e ${t.type}[]` : ''});
        ALTER TABLE ${t.name} REPLICA IDENTITY FULL;
        GRANT SELECT ON ${t.name} TO types_web;`);
      await db.exec([...t.values, 'NULL'].map((value, i) => `INSERT INTO types.s${t.number} VALUES (${i}, ${value})`).join('; '));
      t.count = t.values.length + 1;
      t.forms = (id, other) => `SELECT ${id}, s.v, o.v, ROW(s.v, s.v${array ? ', ARRAY[o.v, NULL]' : ''})::types.c${t.number}, ARRAY[ROW(o.v, s.v${array ? ', NULL' : ''})::types.c${t.number}, NULL], ${t.type === 'types.arraydomain' ? 'NULL' : 'ARRAY[s.v, NULL, o.v]'}::types.dd${t.number}[]
        ${array ? `, ARRAY[s.v, NULL, o.v]::${t.type}[], ARRAY[ARRAY[s.v, s.v], ARRAY[NULL, o.v]]::${t.type}[], CASE WHEN s.i % 2 = 0 THEN '{}' ELSE array_fill(NULL::${t.type}, ARRAY[1], ARRAY[-3]) END` : ''}
        FROM types.s${t.number} s JOIN types.s${t.number} o ON o.i = (s.i + ${other}) % ${t.count}`;
      await db.exec(`INSERT INTO ${t.name} ${t.forms('s.i', 1)}`);
      t.keyed = await db.exec(`CREATE TABLE types.k${t.number} (v ${t.type} PRIMARY KEY, x int)`).then(() => true, (error) => {
        t.unkeyed = String(error);
        return false;
      });
      if (CASTS.has(t.type)) {
        t.keyed = false;
        await assert.rejects(db.exec(`SELECT changefeed.create_channel('keys${t.number}', 'types.k${t.number}')`), (error) => {
          t.unkeyed = String(error);
          return true;
        });
      }
      if (t.keyed) {
        await db.exec(`GRANT SELECT ON types.k${t.number} TO types_web;
          INSERT INTO types.k${t.number} SELECT v, i FROM types.s${t.number} WHERE v IS NOT NULL AND pg_column_size(v) < 1000 ON CONFLICT DO NOTHING`);
      }
    }
    // Hostile settings for everybody, our own processes included.
    await db.exec(`DO $$ DECLARE who text; BEGIN
      FOREACH who IN ARRAY ARRAY['DATABASE ' || quote_ident(current_database()), 'ROLE types_web', 'ROLE ' || quote_ident((SELECT rolname FROM pg_roles WHERE oid = 10)), 'ROLE types_web IN DATABASE ' || quote_ident(current_database())] LOOP
        ${Object.entries(HOSTILE).map(([name, value]) => `EXECUTE 'ALTER ' || who || ' SET ${name.replace(/(.*)\.(.*)/, '"$1"."$2"')} = ${name === 'search_path' || name === 'DateStyle' ? value : quote(value).replaceAll("'", "''")}';`).join('\n')}
      END LOOP; END $$`);
    const generation = await db.value('SELECT generation FROM changefeed.stat_feed');
    await db.exec('SELECT pg_terminate_backend(feed_worker_pid) FROM changefeed.stat_feed');
    await until(async () => await db.value(`SELECT generation <> ${generation} AND state = 'running' FROM changefeed.stat_feed`) === 't', 'the feed again', 20000);
    writer = new Session();
    for (const [name, value] of Object.entries(HOSTILE)) await writer.exec(`SET ${name} = ${['search_path', 'DateStyle'].includes(name) ? value : quote(value)}`);

    await db.exec(`SELECT ${all.flatMap((t) => [`changefeed.create_channel('types${t.number}', '${t.name}')`, ...(t.keyed ? [`changefeed.create_channel('keys${t.number}', 'types.k${t.number}')`] : [])]).join(', ')}`);
    const token = await db.token({ role: 'types_web', sub: 'x' });
    client = await until(() => Client.connectSoon({ token }).catch((error) => {
      if (error.code !== 'ECONNREFUSED') throw error;
    }), 'connected', 20000);
    client.socket.on('message', (data) => raw.push(String(data)));
  });

  after(async () => {
    await db.exec(`DO $$ DECLARE who text; BEGIN
      FOREACH who IN ARRAY ARRAY['DATABASE ' || quote_ident(current_database()), 'ROLE ' || quote_ident((SELECT rolname FROM pg_roles WHERE oid = 10))] LOOP
        EXECUTE 'ALTER ' || who || ' RESET ALL'; END LOOP; END $$`);
    await db.exec('SELECT pg_terminate_backend(feed_worker_pid) FROM changefeed.stat_feed');
    await client?.cut();
    await db.close();
    await writer?.close();
  });

  const pin = () => db.exec(Object.entries(PINNED).map(([name, value]) => `SET ${name} = ${name === 'search_path' ? value : quote(value)}`).join('; '));

  /** The rows of a query, each column as to_jsonb writes it. */
  async function expected(sql) {
    await pin(); // a cast may have changed something
    const out = await db.exec(`SELECT q.n || ' ' || e.ordinality || ' ' || e.key || ' ' || e.value::text FROM (SELECT row_number() OVER () AS n, to_jsonb(t) AS j FROM (${sql}) t) q, jsonb_each(q.j) WITH ORDINALITY e ORDER BY q.n`);
    const rows = new Map();
    for (const line of out.split('\n').filter(Boolean)) {
      const [, n, , key, value] = /^(\d+) (\d+) (\S+) (.*)$/su.exec(line);
      if (!rows.has(n)) rows.set(n, new Map());
      rows.get(n).set(key, value);
    }
    return [...rows.values()];
  }

  const members = (node) => new Map([...node.members].map(([name, { raw: text }]) => [name, text]));
  const byId = (rows, key = 'id') => new Map(rows.map((row) => [row.get(key), row]));

  function compare(got, wanted, what) {
    assert.deepEqual([...got.keys()].sort(), [...wanted.keys()].sort(), `${what}: rows`);
    for (const [id, row] of wanted) {
      for (const [name, text] of got.get(id)) assert.equal(text, row.get(name), `${what}, row ${id}, column ${name}`);
      assert.deepEqual([...got.get(id).keys()].sort(), [...row.keys()].sort(), `${what}, row ${id}: columns`);
    }
  }

  function take(channel, kind) {
    const found = [];
    for (const text of raw.splice(0)) {
      const message = slice(text);
      if (message.members.get('type').value === 'snapshot' && kind === 'snapshot' && message.members.get('channel').value === channel) found.push(...message.members.get('rows').items);
      if (message.members.get('type').value !== 'transaction' || kind === 'snapshot') continue;
      for (const change of message.members.get('changes').items) {
        if (change.members.get('channel').value === channel && change.members.get('op').value === kind) found.push(change);
      }
    }
    return found;
  }

  test('every built-in type has values in this file', async () => {
    const types = (await db.value(`SELECT format_type(oid, NULL) FROM pg_type t WHERE typtype IN ('b', 'r', 'm') AND typnamespace = 'pg_catalog'::regnamespace
      AND NOT EXISTS (SELECT FROM pg_type e WHERE e.typarray = t.oid) ORDER BY 1`)).split('\n');
    assert.deepEqual(types.filter((type) => !BUILT_IN[type]), []);
  });

  for (const t of all) {
    test(t.type, async () => {
      const channel = `types${t.number}`;
      raw.length = 0;
      const subscription = await client.open(channel);
      const query = (from) => `SELECT * FROM ${t.name} WHERE id >= ${from} AND id < ${from + 1000}`;
      compare(byId(take(channel, 'snapshot').map(members)), byId(await expected(query(0))), 'snapshot');

      await writer.exec(`INSERT INTO ${t.name} ${t.forms('s.i + 1000', 1)}`);
      await client.settle();
      compare(byId(take(channel, 'append').map((change) => members(change.members.get('row')))), byId(await expected(query(1000))), 'append');

      // Every column another value; whatever looks the same must not come.
      const before = byId(await expected(query(1000)));
      await writer.exec(`CREATE TEMP TABLE n AS SELECT * FROM ${t.name} WHERE false; INSERT INTO n ${t.forms('s.i + 999', 1)};
        UPDATE n SET id = ${999 + t.count} WHERE id = 999;
        UPDATE ${t.name} t SET v = n.v, d = n.d, c = n.c, ca = n.ca, da = n.da FROM n WHERE n.id = t.id; DROP TABLE n`);
      await client.settle();
      const now = byId(await expected(query(1000)));
      const wanted = new Map();
      for (const [id, row] of now) {
        const changed = new Map([...row].filter(([name, text]) => text !== before.get(id).get(name)));
        if (changed.size > 0) wanted.set(id, changed);
      }
      compare(new Map(take(channel, 'merge').map((change) => [change.members.get('key').members.get('id').raw, members(change.members.get('set'))])), wanted, 'merge');
      assert.deepEqual(subscription.resyncs, []);
      client.check();
      await client.unsubscribe(channel);
    });
  }

  test('a value of 1 MB, and a row that is too large for the feed', async () => {
    await db.exec(`CREATE TABLE types.large (id int PRIMARY KEY, v text); ALTER TABLE types.large REPLICA IDENTITY FULL; GRANT SELECT ON types.large TO types_web;
      INSERT INTO types.large VALUES (1, repeat(${quote('é"\\😀\u0001')}, 104858)); SELECT changefeed.create_channel('large', 'types.large')`);
    raw.length = 0;
    const subscription = await client.openSoon('large');
    const query = (id) => expected(`SELECT * FROM types.large WHERE id = ${id}`).then((rows) => byId(rows));
    compare(byId(take('large', 'snapshot').map(members)), await query(1), 'snapshot');
    await writer.exec('INSERT INTO types.large SELECT 2, v FROM types.large');
    await client.settle();
    compare(byId(take('large', 'append').map((change) => members(change.members.get('row')))), await query(2), 'append');
    assert.deepEqual(subscription.resyncs, []);

    await writer.exec("INSERT INTO types.large SELECT 3, string_agg(md5(i::text), '') FROM generate_series(1, 150000) i");
    await client.settle();
    assert.deepEqual(subscription.resyncs, ['change_not_readable']);
    compare(byId(take('large', 'snapshot').map(members)), new Map([...await query(1), ...await query(2), ...await query(3)]), 'snapshot');
    client.check();
    await client.unsubscribe('large');
  });

  test('a type that is gone before its values are written', async () => {
    await db.exec(`CREATE TYPE types.shortlived AS ENUM ('a'); CREATE TYPE types.shortlived_row AS (a types.shortlived);
      CREATE TABLE types.vanishing (id int PRIMARY KEY, v types.shortlived, r types.shortlived_row, w text); ALTER TABLE types.vanishing REPLICA IDENTITY FULL; GRANT SELECT ON types.vanishing TO types_web;
      SELECT changefeed.create_channel('vanishing', 'types.vanishing')`);
    const subscription = await client.openSoon('vanishing');
    const pid = Number(await db.value('SELECT feed_worker_pid FROM changefeed.stat_feed'));
    process.kill(pid, 'SIGSTOP');
    try {
      await db.exec("INSERT INTO types.vanishing VALUES (1, 'a', ROW('a'), 'x')");
      await db.exec("ALTER TABLE types.vanishing DROP COLUMN v, DROP COLUMN r; DROP TYPE types.shortlived_row, types.shortlived; INSERT INTO types.vanishing VALUES (2, 'y')");
    } finally {
      process.kill(pid, 'SIGCONT');
    }
    await client.settle();
    client.check();
    assert.equal(Number(await db.value('SELECT feed_worker_pid FROM changefeed.stat_feed')), pid);
    assert.notDeepEqual(subscription.resyncs, []);
    assert.deepEqual(subscription.rows().map((row) => row.w).sort(), ['x', 'y']);
    await client.unsubscribe('vanishing');
  });

  for (const t of all) {
    test(`${t.type} as a key`, async () => {
      if (!t.keyed) return assert.match(t.unkeyed, CASTS.has(t.type) ? /column "v" of table ".*" cannot be a key column/ : /has no default operator class for access method "btree"/);
      const channel = `keys${t.number}`;
      raw.length = 0;
      const subscription = await client.open(channel);
      const wanted = byId(await expected(`SELECT * FROM types.k${t.number}`), 'x');
      compare(byId(take(channel, 'snapshot').map(members), 'x'), wanted, 'snapshot');
      await writer.exec(`UPDATE types.k${t.number} SET x = x + 1000; DELETE FROM types.k${t.number}`);
      await client.settle();
      const changes = [];
      for (const text of raw.splice(0)) {
        const message = slice(text);
        if (message.members.get('type').value === 'transaction') changes.push(...message.members.get('changes').items);
      }
      for (const op of ['merge', 'remove']) {
        const keys = changes.filter((change) => change.members.get('op').value === op).map((change) => change.members.get('key').members.get('v').raw).sort();
        assert.deepEqual(keys, [...wanted.values()].map((row) => row.get('v')).sort(), op);
      }
      assert.deepEqual(subscription.resyncs, []);
      client.check();
      await client.unsubscribe(channel);
    });
  }
});
