// Tables, roles, policies, grants and channels: made from the seed, written as
// SQL, and changed by events. An event is what a transaction of the DDL writer
// did, as data; the oracle applies it where it finds it in the stream of commits.

import { FUNCTIONS, JOIN_CHECK, evaluate, policySql, randomExpression, readsOf, columnsOf, expressionSql } from './policies.mjs';
import { sqlType } from './values.mjs';
import { quote } from '../integration/lib/psql.mjs';

export const SUBJECTS = ['u0', 'u1', 'u2', 'u3', 'u4'];
export const ROLES = ['cv_r0', 'cv_r1', 'cv_r2', 'cv_r3'];
export const GROUPS = ['cv_g0', 'cv_g1'];
export const ANONYMOUS = 'cv_anon';
const ALL_ROLES = [...ROLES, ...GROUPS, ANONYMOUS];

const BASE = [
  { name: 'owner', type: 'text' },
  { name: 'team', type: 'int' },
  { name: 'hidden', type: 'bool' },
  { name: 'level', type: 'int' },
  { name: 'note', type: 'text' },
];
const EXTRA = [
  { name: 'big', type: 'large' },
  { name: 'amount', type: 'numeric' },
  { name: 'at', type: 'timestamptz' },
  { name: 'tags', type: 'text[]' },
  { name: 'attrs', type: 'jsonb' },
  { name: 'ref', type: 'uuid' },
  { name: 'day', type: 'date' },
  { name: 'count', type: 'bigint' },
];

/** Roles as which somebody has these privileges, too. */
export function rolesOf(world, role) {
  const result = new Set(['public', role]);
  for (const r of result) for (const group of world.memberOf[r] ?? []) result.add(group);
  return result;
}

function randomPolicies(random, table) {
  const names = table.columns.map(({ name }) => name);
  const policies = {};
  const add = (name, permissive, roles) => {
    policies[name] = { name, permissive, roles, expression: randomExpression(random, names) };
  };
  add('p0', true, ['cv_r0', ANONYMOUS]);
  if (random.chance(0.8)) add('p1', true, random.sample([...ROLES, ...GROUPS], 2));
  if (random.chance(0.5)) add('p2', true, ['public']);
  if (random.chance(0.5)) add('r0', false, random.chance(0.5) ? ['public'] : random.sample([...ROLES, ...GROUPS], 2));
  return policies;
}

function randomTable(random, name, kind) {
  const table = {
    name,
    key: kind === 'composite' ? ['tenant', 'id'] : kind === 'partitioned' ? ['id', 'region'] : ['id'],
    deferrable: kind === 'plain' && random.chance(0.6),
    rls: random.chance(0.85),
    columns: [
      ...(kind === 'composite' ? [{ name: 'tenant', type: 'text' }] : []),
      { name: 'id', type: random.pick(['int', 'bigint']) },
      ...(kind === 'partitioned' ? [{ name: 'region', type: 'int' }] : []),
      ...BASE,
      ...random.sample(EXTRA, random.between(1, 4)),
    ].map((column) => ({ ...column })),
    grants: {},
    policies: {},
    leaves: kind === 'partitioned' ? { [`${name}_0`]: true, [`${name}_1`]: true, [`${name}_2`]: true, [`${name}_3`]: false } : null,
  };
  table.policies = randomPolicies(random, table);
  for (const role of [ROLES[0], ROLES[3], GROUPS[0], ANONYMOUS]) table.grants[role] = randomGrant(random, table);
  return table;
}

/** true, or the list of columns; always enough for the channels, so that most subscriptions live. */
export function randomGrant(random, table, denied = 0) {
  if (random.chance(denied)) return null;
  if (random.chance(0.5)) return true;
  const needed = new Set([...table.key, 'team', 'owner']);
  return table.columns.map(({ name }) => name).filter((name) => needed.has(name) || random.chance(0.7));
}

/** Templates over the tables; each with what clients subscribe to. */
function randomChannels(random, tables) {
  const channels = {};
  const add = (name, sources) => {
    // Faults are made in frames of the connection, of which paced channels leave few.
    channels[name] = { name, sources, join: name.startsWith('mine_') && random.chance(0.5), interval: !process.env.INJECT && random.chance(0.3) ? 20 + random.int(300) : null };
  };
  const source = (table, options = {}) => ({
    table: table.name,
    entity: table.name,
    filter: random.chance(0.3) ? random.pick([{ kind: 'above', than: random.int(5) }]) : null,
    columns: random.chance(0.25)
      ? [...new Set([...table.key, 'team', 'note', ...random.sample(table.columns, 3).map(({ name }) => name)])] : null,
    ...options,
  });
  for (const table of tables) {
    add(`all_${table.name}`, [source(table)]);
    add(`team_${table.name}:{team}`, [source(table)]);
    if (random.chance(0.5)) add(`mine_${table.name}:{team}/{owner}`, [source(table)]);
  }
  const several = random.sample(tables, Math.min(3, tables.length));
  if (several.length > 1) {
    add('several', several.map((table) => source(table)));
    add('both:{team}', several.slice(0, 2).map((table) => source(table)));
  }
  return channels;
}

export function randomWorld(random, { tables = 4 } = {}) {
  const kinds = ['plain', 'composite', 'partitioned', 'plain', 'plain'];
  const list = kinds.slice(0, tables).map((kind, i) => randomTable(random, `t${i}`, kind));
  const helpers = [
    { name: 'members', key: ['team', 'usr'], columns: [{ name: 'team', type: 'int' }, { name: 'usr', type: 'text' }] },
    { name: 'bans', key: ['usr'], columns: [{ name: 'usr', type: 'text' }] },
  ].map((table) => ({ ...table, rls: false, policies: {}, grants: { public: true }, leaves: null }));
  const world = {
    tables: Object.fromEntries([...list, ...helpers].map((table) => [table.name, table])),
    memberOf: { cv_r1: ['cv_r0'], cv_r2: ['cv_r0', 'cv_g0'], cv_r3: random.chance(0.5) ? ['cv_g1'] : [] },
    channels: randomChannels(random, list),
  };
  return world;
}

/** The tables that feed channels. */
export const feedTables = (world) => Object.values(world.tables).filter(({ name }) => name.startsWith('t'));

export const columnSql = ({ name, type, fallback }) => `${name} ${sqlType(type)}${fallback ? ` DEFAULT ${fallback.sql}` : ''}`;

export function grantSql(table, role, value) {
  const statements = [`REVOKE ALL ON cv.${table} FROM ${role}`];
  if (value === true) statements.push(`GRANT SELECT ON cv.${table} TO ${role}`);
  else if (value) statements.push(`GRANT SELECT (${value.join(', ')}) ON cv.${table} TO ${role}`);
  return statements.join('; ');
}

export function createChannelSql(channel) {
  const [first, ...others] = channel.sources;
  const args = (s) => [
    quote(`cv.${s.table}`), `entity => ${quote(s.entity)}`,
    ...(s.filter ? [`filter => ${quote(expressionSql(s.filter, ''))}`] : []),
    ...(s.columns ? [`columns => ${quote(`{${s.columns.join(',')}}`)}`] : []),
  ].join(', ');
  return [
    `DO $do$ BEGIN PERFORM changefeed.create_channel(${quote(channel.name)}, ${args(first)}${channel.join ? `, join_check => ${quote(JOIN_CHECK)}` : ''}${channel.interval ? `, min_interval => '${channel.interval} ms'` : ''}); END $do$`,
    ...others.map((s) => `DO $do$ BEGIN PERFORM changefeed.add_source(${quote(channel.name)}, ${args(s)}); END $do$`),
  ].join('; ');
}

/** Everything that has to be removed before it can be made. */
export const RESET = `
  DO $$ BEGIN
    PERFORM changefeed.drop_channel(name) FROM changefeed.channels;
    PERFORM pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = 'cv_model' AND database = current_database();
  END $$;
  DROP PUBLICATION IF EXISTS cv_model;
  DROP SCHEMA IF EXISTS cv CASCADE;
  ${ALL_ROLES.map((role) => `DO $$ BEGIN IF EXISTS (SELECT FROM pg_roles WHERE rolname = '${role}') THEN
    PERFORM changefeed.disallow_role(role) FROM changefeed.roles WHERE role::text = '${role}';
    DROP OWNED BY ${role}; DROP ROLE ${role}; END IF; END $$`).join(';\n')}`;

export function worldSql(world) {
  const sql = [
    'CREATE SCHEMA cv',
    ...ALL_ROLES.map((role) => `CREATE ROLE ${role} NOLOGIN`),
    ...Object.entries(world.memberOf).flatMap(([role, groups]) => groups.map((group) => `GRANT ${group} TO ${role}`)),
    ...[...ROLES, ANONYMOUS].map((role) => `DO $$ BEGIN PERFORM changefeed.allow_role('${role}'); END $$`),
    `GRANT USAGE ON SCHEMA cv TO ${ALL_ROLES.join(', ')}`,
    'CREATE TABLE cv.ddl_log (id int PRIMARY KEY, event jsonb NOT NULL)',
  ];
  for (const table of Object.values(world.tables)) {
    const columns = table.columns.map(columnSql).join(', ');
    const key = `PRIMARY KEY (${table.key.join(', ')})${table.deferrable ? ' DEFERRABLE INITIALLY DEFERRED' : ''}`;
    sql.push(`CREATE TABLE cv.${table.name} (${columns}, ${key})${table.leaves ? ' PARTITION BY LIST (region)' : ''}`);
    for (const [i, leaf] of Object.keys(table.leaves ?? {}).entries()) {
      if (table.leaves[leaf]) sql.push(`CREATE TABLE cv.${leaf} PARTITION OF cv.${table.name} FOR VALUES IN (${i})`);
      else sql.push(`CREATE TABLE cv.${leaf} (${columns}, ${key})`);
      sql.push(`ALTER TABLE cv.${leaf} REPLICA IDENTITY FULL`);
    }
    sql.push(`ALTER TABLE cv.${table.name} REPLICA IDENTITY FULL`);
    for (const { name, type } of table.columns) if (type === 'large') sql.push(`ALTER TABLE cv.${table.name} ALTER ${name} SET STORAGE EXTERNAL`);
    if (table.rls) sql.push(`ALTER TABLE cv.${table.name} ENABLE ROW LEVEL SECURITY`);
    for (const [role, value] of Object.entries(table.grants)) sql.push(grantSql(table.name, role, value));
  }
  sql.push(FUNCTIONS);
  for (const table of Object.values(world.tables)) for (const policy of Object.values(table.policies)) sql.push(policySql(table.name, policy));
  for (const channel of Object.values(world.channels)) sql.push(createChannelSql(channel));
  return `${sql.join(';\n')};`;
}

/** Changes the world as the transaction did. Rows are the oracle's affair. */
export function applyEvent(world, event) {
  const table = world.tables[event.table];
  switch (event.op) {
    case 'policy':
      if (event.policy) table.policies[event.name] = event.policy;
      else delete table.policies[event.name];
      break;
    case 'rls': table.rls = event.on; break;
    case 'grant':
      if (event.value) table.grants[event.role] = event.value;
      else delete table.grants[event.role];
      break;
    case 'member':
      world.memberOf[event.role] = (world.memberOf[event.role] ?? []).filter((group) => group !== event.group);
      if (event.on) world.memberOf[event.role].push(event.group);
      break;
    case 'add_column': table.columns.push(event.column); break;
    case 'drop_column':
      table.columns = table.columns.filter(({ name }) => name !== event.name);
      // Privileges on a column go with it.
      for (const role of Object.keys(table.grants)) {
        if (table.grants[role] !== true) table.grants[role] = table.grants[role].filter((name) => name !== event.name);
      }
      break;
    case 'channel':
      if (event.channel) world.channels[event.name] = event.channel;
      else delete world.channels[event.name];
      break;
    case 'leaf': table.leaves[event.leaf] = event.attached; break;
    case 'nothing': break;
    default: throw new Error(`unknown event ${event.op}`);
  }
}

/** Columns that a role may read; null if it may read none. */
export function readable(world, table, role) {
  const roles = rolesOf(world, role);
  const names = new Set();
  for (const [grantee, value] of Object.entries(table.grants)) {
    if (!roles.has(grantee)) continue;
    for (const name of value === true ? table.columns.map((c) => c.name) : value) names.add(name);
  }
  return names.size > 0 ? names : null;
}

/** The policies that apply to a role, or null if it sees every row. */
export function policiesFor(world, table, role) {
  if (!table.rls) return null;
  const roles = rolesOf(world, role);
  const all = Object.values(table.policies).filter((policy) => policy.roles.some((r) => roles.has(r)));
  return {
    permissive: all.filter(({ permissive }) => permissive).map(({ expression }) => expression),
    restrictive: all.filter(({ permissive }) => !permissive).map(({ expression }) => expression),
    reads: new Set(all.flatMap(({ expression }) => readsOf(expression))),
  };
}

export function passes(policies, row, identity, state) {
  if (policies === null) return true;
  return policies.permissive.some((e) => evaluate(e, row, identity, state) === true)
    && policies.restrictive.every((e) => evaluate(e, row, identity, state) === true);
}

/** May the column go? Not if a key, a channel, a filter or a policy needs it. */
export function droppable(world, table) {
  const needed = new Set([...table.key, ...BASE.map(({ name }) => name)]);
  for (const { expression } of Object.values(table.policies)) for (const name of columnsOf(expression)) needed.add(name);
  for (const { sources } of Object.values(world.channels)) {
    for (const s of sources) if (s.table === table.name) for (const name of s.columns ?? []) needed.add(name);
  }
  return table.columns.map(({ name }) => name).filter((name) => !needed.has(name));
}

/** Parameters of a template, in order. */
export const parametersOf = (template) => [...template.matchAll(/\{(\w+)\}/g)].map(([, name]) => name);

/** The columns that may be named behind "?": published by all sources of a channel. */
export function selectableColumns(world, template) {
  const [first, ...others] = world.channels[template].sources;
  const published = (source) => world.tables[source.table].columns.filter(({ name }) => !source.columns || source.columns.includes(name));
  return published(first).filter(({ name }) => others.every((source) => published(source).some((column) => column.name === name)));
}

/** The name for these values; '*' stands for every value, a text is escaped. */
export function channelName(template, values) {
  let i = 0;
  return template.replace(/\{\w+\}/g, () => {
    const value = values[i++];
    return value === '*' ? '*' : encodeURIComponent(value.text);
  });
}
