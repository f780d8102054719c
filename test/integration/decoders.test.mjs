// The native decoder and wal2json make the same change records of the same WAL.
//
// Random transactions are written to random tables that feed channels. Two
// slots were made before them, one for each output plugin; the test module
// decoder_compare, which links the decoder's own object files, then decodes the
// WAL once from each slot and shows every record as text: kinds, operations,
// the bytes of every value, touches, barriers, commits.

import assert from 'node:assert/strict';
import { chmodSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';

import { assertSame, Client, until } from './lib/client.mjs';
import { Follower } from './lib/follower.mjs';
import { LOG, logged } from './lib/log.mjs';
import { quote, Session } from './lib/psql.mjs';

const SEED = Number(process.env.SEED ?? 20261121);
const TABLES = 14;
const TRANSACTIONS = Number(process.env.TRANSACTIONS ?? 400);

/** Repeatable random numbers (mulberry32). */
function generator(seed) {
  let state = seed >>> 0;
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const below = (n) => Math.floor(next() * n);
  return { next, below, chance: (p) => next() < p, pick: (list) => list[below(list.length)] };
}

const random = generator(SEED);
const { below, chance, pick } = random;

const hex = (n) => Array.from({ length: n }, () => below(16).toString(16)).join('');
const ODD = ['', ' ', 'plain', 'quote " back \\ slash', "it''s", '\t\n\r\b\f', '\x01\x1f\x7f', 'é日本🐘', '{"a":1}', 'null', 'NULL', '\\x00',
  '</script>', '\u2028', '%s', '\\u0000', '$1,0', '(,)', '{,}', '[1,2)'];
const text = () => (chance(0.1) ? `'${hex(8).repeat(1 + below(2000))}'` : chance(0.05) ? big() : `'${pick(ODD)}${chance(0.5) ? hex(4) : ''}'`);
/** Does not compress: is stored out of line. */
const big = () => `(SELECT string_agg(md5(${below(1e9)}::text || i), '') FROM generate_series(1, ${100 + below(400)}) i)`;
const array = (value, type) => pick([
  () => `'{}'::${type}[]`,
  () => `ARRAY[${value()}]::${type}[]`,
  () => `ARRAY[${value()}, NULL, ${value()}]::${type}[]`,
  () => `ARRAY[[${value()}, ${value()}], [${value()}, NULL]]::${type}[]`,
  () => `'[-1:-1]={NULL}'::${type}[]`,
])();
const integer = (low, high) => () => `${pick([low, high, '0', '1', '-1', String(below(1000) - 500)])}`;
const float = (digits) => () => pick(["'NaN'", "'Infinity'", "'-Infinity'", "'-0'", '0', '0.1', '1e-30', '1.17549435e-38', '3.4028234e38',
  (random.next() * 10 ** (below(20) - 10)).toPrecision(digits)]);
const numeric = () => pick(["'NaN'", "'Infinity'", "'-Infinity'", '0', '0.000', '-1.10', '1e-200', '123456789012345678901234567890.1234567890',
  "repeat('9', 3000)::numeric", "('0.' || repeat('7', 3000))::numeric", `${below(1e6)}.${below(1000)}`]);
const timestamp = () => pick(["'infinity'", "'-infinity'", "'4713-11-24 00:00:00 BC'", "'294276-12-31 23:59:59.999999'", "'0001-01-01'",
  "'1999-12-31 23:59:59.5'", `'20${10 + below(80)}-0${1 + below(9)}-1${below(10)} 0${below(10)}:00:00.${below(1e6)}'`]);
const date = () => pick(["'infinity'", "'-infinity'", "'4713-11-24 BC'", "'5874897-12-31'", "'0001-01-01'", `'20${10 + below(80)}-02-0${1 + below(9)}'`]);
const json = () => pick(["'null'", "'{}'", `'{"b": 1,   "a":[1.10, null, {"x": "y\\u0020"}], "big": 12345678901234567890}'`, `'"\\\\u0000 \\n"'`, "'[ ]'", "'-0.0'",
  `'{"k": "${hex(8).repeat(1 + below(600))}"}'`]);
const point = () => `'(${pick(['0', '-0', '1e300', 'NaN', 'Infinity', '0.1', '-2.5'])},${below(100) / 7})'::point`;
const range = (values, type) => () => pick([
  () => `'empty'::${type}`,
  () => `'(,)'::${type}`,
  () => { const [a, b] = values(); return `${type}(${a}, ${b}, '${pick(['[)', '[]', '(]', '()'])}')`; },
  () => `${type}(NULL, ${values()[1]})`,
])();

/** By type: an SQL expression for a random value. */
const TYPES = {
  bool: () => pick(['true', 'false']),
  int2: integer('-32768', '32767'),
  int4: integer('-2147483648', '2147483647'),
  int8: integer('-9223372036854775808', '9223372036854775807'),
  oid: () => pick(['0', '4294967295', '1']),
  float4: float(9),
  float8: float(17),
  numeric,
  'numeric(12,3)': () => `${below(1e6)}.${below(1e4)}`,
  money: () => pick(["'0'::money", "'-92233720368547758.08'::money", "'92233720368547758.07'::money", "'1234.5'::money", "'-0.01'::money"]),
  text,
  varchar: text,
  'varchar(10)': () => `left(${text()}, 10)`,
  'char(7)': () => `left(${text()}, 7)`,
  '"char"': () => pick(["'a'", "''", "' '", "'\"'", "'\\'", '(-56)::"char"', '(-1)::"char"', '(31)::"char"']),
  name: () => `left(${text()}, 20)`,
  bytea: () => pick(["''", "'\\x00ff'", `'\\x${hex(20)}'`, `decode(repeat('${hex(16)}', ${1 + below(900)}), 'hex')`, `convert_to(${big()}, 'UTF8')`]),
  json, jsonb: json,
  uuid: () => `'${hex(32)}'`,
  date, timestamp, timestamptz: timestamp,
  'timestamptz(2)': timestamp,
  time: () => pick(["'00:00'", "'24:00'", "'12:34:56.789012'"]),
  timetz: () => pick(["'00:00+15:59:59'", "'24:00-15:59'", "'12:34:56.789012+05:30'"]),
  interval: () => pick(["'0'", "'1 year -2 mons 3 days -04:05:06.000001'", "'-178000000 years'", "'178000000 years'", "'-1 s'", "'2147483647 days'",
    "'-2147483648 days'", "'1 mon -1 day'"]),
  bit: () => pick(["B'0'", "B'1'"]), 'bit(9)': () => "B'101010101'", 'bit varying': () => pick(["B''", "B'1'", "B'10101010101'"]),
  inet: () => pick(["'10.0.0.1/8'", "'10.0.0.1'", "'::1'", "'2001:db8::/32'", "'::ffff:1.2.3.4/128'"]),
  cidr: () => pick(["'10.0.0.0/8'", "'10.0.0.1/32'", "'2001:db8::/32'"]),
  macaddr: () => "'08:00:2b:01:02:03'", macaddr8: () => "'08:00:2b:01:02:03:04:05'",
  point,
  line: () => pick(["'{1,-1,0.1}'", "'{0,1,-3}'"]), lseg: () => `lseg(${point()}, ${point()})`, box: () => `box(${point()}, ${point()})`,
  path: () => pick(["'[(0,0),(1,0.1)]'", "'((0,0),(1,0.1),(2,2))'"]), polygon: () => "'((0,0),(1,0.1),(2,2))'",
  circle: () => `circle(${point()}, ${below(10) / 3})`,
  tsvector: () => pick(["''", "'a:1A b:2,3B ''q q'''::tsvector", `to_tsvector('simple', '${hex(4)} ${hex(4)} x')`]),
  tsquery: () => pick(["''", "'a & (b | !c:*A) <2> d'::tsquery"]),
  xid: () => "'4294967295'", xid8: () => "'18446744073709551615'", cid: () => "'7'", tid: () => "'(4294967295,65535)'", pg_lsn: () => "'FFFFFFFF/FFFFFFFF'",
  'int4[]': () => array(integer('-2147483648', '2147483647'), 'int4'),
  'text[]': () => array(text, 'text'), 'varchar(5)[]': () => array(() => `left(${text()}, 5)`, 'varchar(5)'),
  'float8[]': () => array(float(17), 'float8'), 'numeric[]': () => array(numeric, 'numeric'), 'bytea[]': () => array(TYPES.bytea, 'bytea'),
  'bool[]': () => array(TYPES.bool, 'bool'), 'timestamptz[]': () => array(timestamp, 'timestamptz'), 'jsonb[]': () => array(json, 'jsonb'),
  'box[]': () => array(TYPES.box, 'box'), 'money[]': () => array(TYPES.money, 'money'),
  int4range: range(() => [below(10), 10 + below(10)], 'int4range'), numrange: range(() => [`0.${below(10)}`, '1.000'], 'numrange'),
  daterange: range(() => ["'2020-01-01'", "'infinity'"], 'daterange'),
  tstzrange: range(() => ["'2020-01-01'", "'2021-01-01 12:00:00.000001'"], 'tstzrange'),
  int8multirange: () => pick(["'{}'", "'{[1,3),[5,9)}'", "'{(,)}'"]),
  'int4range[]': () => array(TYPES.int4range, 'int4range'),
  'cmp.mood': () => pick(["'happy'", "'it''s \"odd\", {}'"]), 'cmp.mood[]': () => array(TYPES['cmp.mood'], 'cmp.mood'),
  'cmp.positive': () => pick(["'NaN'", '1', '0.10']), 'cmp.code': () => `left(${text()}, 5)`, 'cmp.blob': TYPES_BYTEA, 'cmp.list': () => pick(["'{1,2,3}'", "'[0:0]={NULL}'"]),
  'cmp.pair': () => pick(['ROW(NULL, NULL, NULL)', `ROW(1, ${text()}, 'NaN')`, `ROW(2, '', ARRAY[0.1::float8])`]).replace("'NaN')", "'{NaN}')"),
  'cmp.pair[]': () => array(TYPES['cmp.pair'], 'cmp.pair'),
  'cmp.span': range(() => ["''", `'z'`], 'cmp.span'),
};
function TYPES_BYTEA() { return TYPES.bytea(); }
const NAMES = Object.keys(TYPES);

/** What is known of a table while it is written to. */
class Table {
  ids = new Set();
  next = 1;

  constructor(name, columns, identity) {
    Object.assign(this, { name, columns, identity });
  }

  value(column) {
    return chance(0.15) ? 'NULL' : TYPES[column.type]();
  }

  insert() {
    const rows = Array.from({ length: 1 + below(3) }, () => {
      const id = this.next++;
      this.ids.add(id);
      return `(${[id, ...this.columns.map((column) => this.value(column))].join(', ')})`;
    });
    return `INSERT INTO ${this.name} (${['id', ...this.columns.map(({ name }) => name)].join(', ')}) VALUES ${rows.join(', ')}`;
  }

  where() {
    const ids = [...this.ids];
    return chance(0.1) ? 'true' : `id IN (${Array.from({ length: 1 + below(3) }, () => pick(ids)).join(', ')})`;
  }

  update() {
    const sets = this.columns.filter(() => chance(0.3)).map((column) => `${column.name} = ${this.value(column)}`);
    return `UPDATE ${this.name} SET ${(sets.length > 0 ? sets : ['id = id']).join(', ')} WHERE ${this.where()}`;
  }

  key() {
    const [from] = [pick([...this.ids])];
    const to = this.next++;
    this.ids.delete(from);
    this.ids.add(to);
    return `UPDATE ${this.name} SET id = ${to} WHERE id = ${from}`;
  }

  remove() {
    const id = pick([...this.ids]);
    this.ids.delete(id);
    return `DELETE FROM ${this.name} WHERE id = ${id}`;
  }

  upsert() {
    const id = pick([...this.ids]);
    const column = pick(this.columns);
    return `INSERT INTO ${this.name} (id) VALUES (${id}) ON CONFLICT (id) DO UPDATE SET ${column.name} = ${this.value(column)}`;
  }

  truncate() {
    this.ids.clear();
    return `TRUNCATE ${this.name}`;
  }

  alter() {
    const before = [...this.columns];
    const what = below(4);
    if (what === 0 && this.columns.length > 2) {
      const column = pick(this.columns);
      this.columns = before.filter((other) => other !== column);
      return `ALTER TABLE ${this.name} DROP COLUMN ${column.name}`;
    }
    if (what === 1) {
      const column = pick(this.columns);
      const name = `"Re ""named ${hex(3)}"`;
      this.columns = before.map((other) => (other === column ? { ...other, name } : other));
      return `ALTER TABLE ${this.name} RENAME COLUMN ${column.name} TO ${name}`;
    }
    if (what === 2) return `ALTER TABLE ${this.name} REPLICA IDENTITY ${pick(['FULL', 'FULL', 'DEFAULT'])}`;
    const column = { name: `a${hex(6)}`, type: pick(NAMES.filter((type) => !/^cmp/.test(type))) };
    this.columns = [...before, column];
    let value = TYPES[column.type]();
    if (/SELECT/.test(value)) value = 'NULL';
    return `ALTER TABLE ${this.name} ADD COLUMN ${column.name} ${column.type} DEFAULT ${value}`;
  }

  statement() {
    if (this.ids.size < 3 || chance(0.3)) return this.insert();
    const r = random.next();
    if (r < 0.5) return this.update();
    if (r < 0.65) return this.key();
    if (r < 0.8) return this.remove();
    if (r < 0.9) return this.upsert();
    return r < 0.93 ? this.truncate() : this.insert();
  }
}

describe(`two decoders (seed ${SEED})`, () => {
  const tables = [];
  let db;

  before(async () => {
    db = new Session();
    await db.exec(`CREATE SCHEMA cmp;
      CREATE FUNCTION cmp.decode_records(name) RETURNS SETOF text AS 'decoder_compare', 'decode_records' LANGUAGE C;
      CREATE TYPE cmp.mood AS ENUM ('happy', 'it''s "odd", {}'); CREATE DOMAIN cmp.positive AS numeric CHECK (VALUE > 0);
      CREATE DOMAIN cmp.code AS varchar(5) CHECK (VALUE <> 'never'); CREATE DOMAIN cmp.blob AS bytea; CREATE DOMAIN cmp.list AS int[] CHECK (cardinality(VALUE) > 0);
      CREATE TYPE cmp.pair AS (a int, "B b" text, f float8[]); CREATE TYPE cmp.span AS RANGE (subtype = text);
      SET timezone = 'Asia/Tokyo'; SET datestyle = 'German'; SET intervalstyle = 'iso_8601'; SET bytea_output = 'escape'; SET lc_monetary = 'C'`);
    // Settings of the database, which the decoder would have as well.
    await db.exec(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET timezone = ''Asia/Tokyo''', current_database());
      EXECUTE format('ALTER DATABASE %I SET datestyle = ''German''', current_database());
      EXECUTE format('ALTER DATABASE %I SET bytea_output = ''escape''', current_database());
      EXECUTE format('ALTER DATABASE %I SET extra_float_digits = -5', current_database());
      EXECUTE format('ALTER DATABASE %I SET intervalstyle = ''sql_standard''', current_database());
      EXECUTE format('ALTER DATABASE %I SET array_nulls = off', current_database()); END $$`);
    for (const plugin of ['decoder_compare', 'wal2json']) {
      await db.exec('SET output_plugin_libraries = decoder_compare, wal2json').catch(() => {});
      await db.exec(`SELECT pg_create_logical_replication_slot('cmp_${plugin}', '${plugin}')`);
    }
  });

  after(async () => {
    await db?.exec(`SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name LIKE 'cmp\\_%';
      DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET ALL', current_database()); END $$;
      DROP SCHEMA cmp CASCADE`);
    await db?.close();
  });

  async function decode(plugin) {
    const session = new Session();
    try {
      await session.exec('SET output_plugin_libraries = decoder_compare, wal2json').catch(() => {});
      await session.exec("SET logical_decoding_work_mem = '64kB'"); // larger transactions are spilled
      return (await session.exec(`SELECT * FROM cmp.decode_records('cmp_${plugin}')`)).split('\n');
    } finally {
      await session.close();
    }
  }

  /** The records of all that was written since; the slots then move on. */
  async function compare() {
    const [native, text] = await Promise.all([decode('decoder_compare'), decode('wal2json')]);
    for (let i = 0; i < Math.max(native.length, text.length); i++) {
      if (native[i] !== text[i]) assert.fail(`record ${i}:\n  native   ${native[i]}\n  wal2json ${text[i]}`);
    }
    const end = /^commit \S+ \S+ (\S+)/.exec(native.at(-1))[1];
    for (const plugin of ['decoder_compare', 'wal2json']) await db.exec(`SELECT pg_replication_slot_advance('cmp_${plugin}', '${end}')`);
    return native;
  }

  async function createTables() {
    let types = [...NAMES];
    const many = () => Array.from({ length: 5 + below(5) }, (_, i) => {
      if (types.length === 0) types = [...NAMES];
      return { name: pick([`c${i}`, `"C ${i}"`, `"c""${i}"`]), type: types.splice(below(types.length), 1)[0] };
    });
    for (let i = 0; i < TABLES; i++) {
      const identity = ['FULL', 'DEFAULT', 'FULL', 'USING INDEX'][i % 4];
      const t = new Table(pick([`cmp.t${i}`, `cmp."T ""${i}"`]), many(), identity);
      const columns = t.columns.map(({ name, type }) => `${name} ${type}`).join(', ');
      const partitioned = i % 7 === 6;
      await db.exec(`CREATE TABLE ${t.name} (junk1 text, id int PRIMARY KEY, ${columns}, g int GENERATED ALWAYS AS (id * 2) STORED)
        ${partitioned ? 'PARTITION BY HASH (id)' : ''}; ALTER TABLE ${t.name} DROP COLUMN junk1`);
      for (const column of t.columns) {
        const storage = pick(['EXTERNAL', 'EXTENDED', 'MAIN']);
        await db.exec(`ALTER TABLE ${t.name} ALTER COLUMN ${column.name} SET STORAGE ${storage}`).catch(() => {});
      }
      if (partitioned) {
        // Laid out alike, and in another order.
        await db.exec(`CREATE TABLE cmp.part${i}_0 PARTITION OF ${t.name} FOR VALUES WITH (MODULUS 2, REMAINDER 0);
          CREATE TABLE cmp.part${i}_1 (g int GENERATED ALWAYS AS (id * 2) STORED, x xml, ${[...t.columns].reverse().map(({ name, type }) => `${name} ${type}`).join(', ')}, id int NOT NULL);
          ALTER TABLE cmp.part${i}_1 DROP COLUMN x;
          ALTER TABLE ${t.name} ATTACH PARTITION cmp.part${i}_1 FOR VALUES WITH (MODULUS 2, REMAINDER 1)`);
      }
      if (i % 5 !== 4) await db.exec(`SELECT changefeed.create_channel('cmp_${i}', ${quote(t.name)})`); // the others are only touched
      if (identity === 'USING INDEX' && !partitioned) {
        await db.exec(`CREATE UNIQUE INDEX cmp_index_${i} ON ${t.name} (id); ALTER TABLE ${t.name} REPLICA IDENTITY USING INDEX cmp_index_${i}`);
      } else if (!partitioned) {
        await db.exec(`ALTER TABLE ${t.name} REPLICA IDENTITY ${identity}`);
      }
      t.partitioned = partitioned;
      tables.push(t);
    }
  }

  async function transaction() {
    const t = pick(tables);
    const others = [t, t, pick(tables)];
    const parts = ['BEGIN'];
    const state = new Map(tables.map((table) => [table, { ids: new Set(table.ids), columns: table.columns }]));
    const restore = (saved) => { for (const [table, { ids, columns }] of saved) Object.assign(table, { ids: new Set(ids), columns }); };
    const length = chance(0.05) ? 40 : 1 + below(6);
    for (let i = 0; i < length; i++) {
      if (chance(0.1)) {
        const saved = new Map(tables.map((table) => [table, { ids: new Set(table.ids), columns: table.columns }]));
        parts.push('SAVEPOINT s', pick(others).statement(), pick(others).statement());
        if (chance(0.5)) {
          parts.push('ROLLBACK TO s');
          restore(saved);
        } else parts.push('RELEASE s');
      } else if (chance(0.03) && !t.partitioned) parts.push(t.alter());
      else parts.push(pick(others).statement());
    }
    const abort = chance(0.1);
    parts.push(abort ? 'ROLLBACK' : 'COMMIT');
    if (abort) restore(state);
    try {
      await db.exec(parts.join(';\n'));
      return true;
    } catch (error) {
      await db.exec('ROLLBACK');
      restore(state);
      failures.push(error.message.split('\n')[0]);
      return false;
    }
  }
  const failures = [];

  test('random transactions', async () => {
    await createTables();
    let written = 0;
    for (let i = 0; i < TRANSACTIONS; i++) if (await transaction()) written += 1;
    assert.ok(failures.length <= TRANSACTIONS / 10, `${failures.length} transactions failed: ${failures[0]}`);
    const records = await compare();
    const count = (pattern) => records.filter((line) => pattern.test(line)).length;
    const found = {
      transactions: count(/^commit/), inserts: count(/^change I/), updates: count(/^change U/), deletes: count(/^change D/),
      oldWhole: count(/^change . .*\(\d+\) 1/), oldKey: count(/^change . .*\(\d+\) 2/), noOld: count(/^change [UD] .*\(\d+\) 0/),
      unchanged: count(/=unchanged/), truncates: count(/^truncate/), touches: count(/^touch/), barriers: count(/^barrier/), lost: count(/^lost/),
    };
    console.log(`# ${written} transactions written, ${failures.length} failed, ${records.length} records:`, JSON.stringify(found));
    for (const [what, n] of Object.entries(found)) if (what !== 'lost') assert.ok(n > 0, `no ${what} among the records`);
    assert.equal(found.lost, 0);
  });

  test('what wal2json does not tell exactly is lost, not wrong', async () => {
    await db.exec(`SET changefeed.decoder = native; CREATE TABLE cmp.refused (id int PRIMARY KEY, doc xml); CREATE TABLE cmp.blind (id int PRIMARY KEY, v text);
      SELECT changefeed.create_channel('cmp_refused', 'cmp.refused'); SELECT changefeed.create_channel('cmp_blind', 'cmp.blind');
      ALTER TABLE cmp.blind REPLICA IDENTITY NOTHING`);
    await db.exec(`BEGIN; INSERT INTO cmp.refused VALUES (1, '<?xml version="1.0"?><a/>'); INSERT INTO cmp.refused VALUES (2, '<b/>');
      INSERT INTO cmp.blind VALUES (1, 'a'); UPDATE cmp.blind SET v = 'b'; COMMIT`);
    const [native, text] = await Promise.all([decode('decoder_compare'), decode('wal2json')]);
    const tail = (lines) => lines.slice(lines.findLastIndex((line) => /^barrier/.test(line)) + 2)
      .map((line) => line.replace(/^(description|commit|touch) .*/, '$1').replace(/ \(\d+\).*/, '').replace(/lost \d+/, 'lost'));
    assert.deepEqual(tail(native), ['touch', 'description', 'change I refused', 'change I refused',
      'touch', 'description', 'change I blind', 'change U blind', 'commit']);
    assert.deepEqual(tail(text), [
      'touch', 'lost Column "doc" cannot be decoded with wal2json.  A value of type xml cannot be told with certainty from its text.',
      'touch', 'description', 'change I blind', 'lost wal2json does not tell of a change without a replica identity', 'commit']);
  });
});

describe('changefeed.decoder', () => {
  const CLAIMS = { role: 'sw_web', sub: 'ada' };
  const other = { native: 'wal2json', wal2json: 'native' };
  const plugins = { native: 'pg_changefeed', wal2json: 'wal2json' };
  let db;
  let follower;

  const slots = () => db.rows("SELECT slot_name, plugin FROM pg_replication_slots WHERE slot_name LIKE 'pg\\_changefeed\\_%' AND database = current_database()");
  const log = () => readFileSync(LOG, 'utf8');

  async function choose(decoder) {
    await db.exec(`ALTER SYSTEM SET changefeed.decoder = '${decoder}'; SELECT pg_reload_conf()`);
  }

  /** A slot of that decoder alone, and the feed runs. */
  async function chosen(decoder) {
    await until(async () => {
      const found = await slots();
      return found.length === 1 && found[0].plugin === plugins[decoder] &&
        await db.value(`SELECT state = 'running' AND slot_name = ${quote(found[0].slot_name)} FROM changefeed.stat_feed`) === 't';
    }, `slot of ${decoder}`);
  }

  async function same(what) {
    await follower.settle();
    assertSame(follower.subscription().rows(), await db.rowsAs(CLAIMS, 'SELECT * FROM sw.plain'), what);
  }

  before(async () => {
    db = new Session();
    await db.exec(`SET changefeed.decoder = native; CREATE SCHEMA sw; CREATE ROLE sw_web; GRANT USAGE ON SCHEMA sw TO sw_web; SELECT changefeed.allow_role('sw_web');
      CREATE TABLE sw.plain (id int PRIMARY KEY, v numeric); CREATE TABLE sw.docs (id int PRIMARY KEY, doc xml);
      GRANT SELECT ON ALL TABLES IN SCHEMA sw TO sw_web; INSERT INTO sw.plain VALUES (1, 'NaN');
      SELECT changefeed.create_channel('sw_plain', 'sw.plain'); SELECT changefeed.create_channel('sw_docs', 'sw.docs')`);
    const token = await db.token(CLAIMS);
    await choose('native');
    await chosen('native');
    const first = await until(() => Client.connect({ token }).catch(() => null), 'connected');
    await first.openSoon('sw_docs');
    await first.openSoon('sw_plain');
    await first.cut();
    follower = await new Follower({ token, channels: ['sw_plain'] }).start();
  });

  after(async () => {
    await db?.exec('ALTER SYSTEM RESET changefeed.decoder; ALTER SYSTEM RESET dynamic_library_path; SELECT pg_reload_conf()');
    await follower?.stop();
    await chosen(process.env.CHANGEFEED_DECODER ?? 'native');
    await db?.close();
  });

  test('without wal2json the old slot stays, and the log says what to do', async () => {
    await same('native');
    const before = await slots();
    const libraries = mkdtempSync('/tmp/changefeed-libraries.');
    chmodSync(libraries, 0o755);
    symlinkSync(`${await db.value("SELECT setting FROM pg_config WHERE name = 'PKGLIBDIR'")}/pg_changefeed.so`, `${libraries}/pg_changefeed.so`);
    try {
      const said = logged();
      await db.exec(`ALTER SYSTEM SET dynamic_library_path = ${quote(libraries)}`);
      await choose('wal2json');
      await said.wait(/cannot be loaded[^]*starting it again in \d{4,} ms/);
      const text = said.text();
      assert.match(text, /cannot be decoded with wal2json, which cannot be loaded/);
      assert.match(text, /HINT: .*postgresql-\d+-wal2json.*"changefeed.decoder" to "native"/);
      assert.deepEqual(await slots(), before);
      await db.exec('ALTER SYSTEM RESET dynamic_library_path');
      await db.exec('UPDATE sw.plain SET v = 7 WHERE id = 1');
      await choose('native');
      await chosen('native');
      assert.deepEqual(await slots(), before);
      await same('native again');
      assert.equal(follower.recovered.at(-1), true, 'the position of the slot that stayed');
    } finally {
      rmSync(libraries, { recursive: true });
    }
  });

  test('a changed setting makes another slot, and clients get a snapshot', async () => {
    for (const decoder of ['wal2json', 'native', 'wal2json']) {
      const [{ slot_name: old }] = await slots();
      await choose(decoder);
      await db.exec("UPDATE sw.plain SET v = v + 1; INSERT INTO sw.plain SELECT max(id) + 1, 'Infinity' FROM sw.plain");
      await chosen(decoder);
      assert.ok(log().includes(`drops replication slot "${old}" because it is of another decoder`));
      assert.ok(log().includes(`Its output plugin is "${plugins[other[decoder]]}", "changefeed.decoder" asks for "${plugins[decoder]}".  Every client gets a fresh snapshot.`));
      await same(decoder);
      assert.equal(follower.recovered.at(-1), false, 'a position of the other slot was honoured');
      await db.exec("INSERT INTO sw.plain SELECT max(id) + 1, '-Infinity' FROM sw.plain; UPDATE sw.plain SET v = 'NaN' WHERE id = 1");
      await same(`${decoder}, changes`);
    }
  });

  test('nobody can subscribe to what wal2json does not tell exactly', async () => {
    const client = await Client.connect({ token: follower.token });
    await assert.rejects(client.subscribe('sw_docs'), { code: '0A000', message: /column "doc" of table "sw.docs" cannot be decoded with wal2json/, hint: /"native"/ });
    const live = await client.open('sw_plain');
    await db.exec("ALTER TABLE sw.plain ADD COLUMN x xml DEFAULT '<x/>'; UPDATE sw.plain SET v = 5 WHERE id = 1");
    await until(() => live.state === 'ended', 'ended');
    assert.equal(live.revoked.code ?? live.revoked.error?.code, '0A000', JSON.stringify(live.revoked));
    await assert.rejects(client.subscribe('sw_plain'), { code: '0A000' });
    await db.exec('ALTER TABLE sw.plain DROP COLUMN x');
    const again = await until(() => client.open('sw_plain').catch(() => null), 'open again');
    await db.exec('UPDATE sw.plain SET v = 6 WHERE id = 1');
    await client.settle();
    client.check();
    assertSame(again.rows(), await db.rowsAs(CLAIMS, 'SELECT * FROM sw.plain'), 'again');
    await client.cut();
  });
});
