// Expressions of policies and filters, each twice: as SQL for the server and as
// JavaScript for the oracle. The oracle never sees the SQL.
//
// An expression is plain data, so that it can be written into cv.ddl_log. Its
// value is true, false or null (unknown), as in SQL.

import { arrayElements } from './values.mjs';

const CLAIMS = "current_setting('request.jwt.claims', true)::json";
const SUB = `(${CLAIMS}->>'sub')`;
const LEVEL = `(${CLAIMS}->>'level')::int`;

export const and = (values) => (values.includes(false) ? false : values.includes(null) ? null : true);
export const or = (values) => (values.includes(true) ? true : values.includes(null) ? null : false);
export const not = (value) => (value === null ? null : !value);
const equal = (a, b) => (a === null || b === null ? null : a === b);
const less = (a, b) => (a === null || b === null ? null : Number(a) < Number(b));
const bool = (text) => (text === null ? null : text === 't');

/** team IN (SELECT ...), which is false for NULL IN (nothing). */
const teamsOf = (state, sub) => (sub === null ? [] : state.rows('members').filter((m) => m.usr === sub).map((m) => m.team));

// `columns` that an expression needs, `reads` tables besides the row's own.
const KINDS = {
  true: { sql: () => 'true', value: () => true },
  owner: {
    columns: ['owner'],
    sql: (e, t) => `${t}.owner = ${SUB}`,
    value: (e, row, { sub }) => equal(row.owner, sub),
  },
  owner_select: { // as one writes it so that it is evaluated once
    columns: ['owner'],
    sql: (e, t) => `(SELECT ${SUB}) = ${t}.owner`,
    value: (e, row, { sub }) => equal(row.owner, sub),
  },
  claim: { // of the claims alone
    sql: (e) => `${LEVEL} > ${e.than}`,
    value: (e, row, { level }) => less(String(e.than), level),
  },
  member: {
    columns: ['team'],
    reads: ['members'],
    sql: (e, t) => `EXISTS (SELECT FROM cv.members m WHERE m.team = ${t}.team AND m.usr = ${SUB})`,
    value: (e, row, { sub }, state) => row.team !== null && teamsOf(state, sub).includes(row.team),
  },
  in_member: {
    columns: ['team'],
    reads: ['members'],
    sql: (e, t) => `${t}.team IN (SELECT m.team FROM cv.members m WHERE m.usr = ${SUB})`,
    value: (e, row, { sub }, state) => {
      const teams = teamsOf(state, sub);
      return row.team === null ? (teams.length > 0 ? null : false) : teams.includes(row.team);
    },
  },
  member_function: { // the same in an SQL function, whose body is read
    columns: ['team'],
    reads: ['members'],
    sql: (e, t) => `cv.is_member(${t}.team)`,
    value: (e, row, identity, state) => KINDS.member.value(e, row, identity, state),
  },
  declared_member: { // and in PL/pgSQL, with what it reads declared
    columns: ['team'],
    reads: ['members'],
    sql: (e, t) => `cv.is_member_slowly(${t}.team)`,
    value: (e, row, identity, state) => KINDS.member.value(e, row, identity, state),
  },
  not_banned: {
    columns: ['owner'],
    reads: ['bans'],
    sql: (e, t) => `NOT EXISTS (SELECT FROM cv.bans b WHERE b.usr = ${t}.owner)`,
    value: (e, row, identity, state) => !state.rows('bans').some((b) => b.usr === row.owner),
  },
  open: {
    columns: ['hidden'],
    sql: (e, t) => `NOT ${t}.hidden`,
    value: (e, row) => not(bool(row.hidden)),
  },
  level: {
    columns: ['level'],
    sql: (e, t) => `${t}.level < ${LEVEL}`,
    value: (e, row, { level }) => less(row.level, level),
  },
  above: {
    columns: ['level'],
    sql: (e, t) => `${t ? `${t}.` : ''}level > ${e.than}`,
    value: (e, row) => less(String(e.than), row.level),
  },
  has_team: {
    columns: ['team'],
    sql: (e, t) => `${t}.team IS NOT NULL`,
    value: (e, row) => row.team !== null,
  },
  fits: { // an IMMUTABLE function in SQL
    columns: ['level'],
    sql: (e, t) => `cv.fits(${t}.level, ${e.by})`,
    value: (e, row) => (row.level === null ? null : Number(row.level) % e.by !== 0),
  },
  listed: { // STABLE, in SQL, which the planner inlines
    columns: ['owner', 'level'],
    sql: (e, t) => `cv.listed(${t}.owner, ${t}.level)`,
    value: (e, row, { sub }) => or([equal(row.owner, sub), less('3', row.level)]),
  },
  fits_slowly: { // the same in PL/pgSQL, which cannot be inlined
    columns: ['level'],
    sql: (e, t) => `cv.fits_slowly(${t}.level, ${e.by})`,
    value: (e, row) => (row.level === null ? null : Number(row.level) % e.by !== 0),
  },
  may: { // STABLE, in PL/pgSQL, of row and claims
    columns: ['owner', 'level'],
    sql: (e, t) => `cv.may(${t}.owner, ${t}.level)`,
    value: (e, row, { sub, level }) => (row.owner !== null && row.owner === sub ? true : less(row.level, level)),
  },
  tagged: {
    columns: ['tags'],
    sql: (e, t) => `${SUB} = ANY (${t}.tags)`,
    value: (e, row, { sub }) => (row.tags === null ? null : or([false, ...arrayElements(row.tags).map((tag) => equal(sub, tag))])),
  },
  attribute: {
    columns: ['attrs'],
    sql: (e, t) => `${t}.attrs->>'k' = '${e.is}'`,
    value: (e, row) => {
      const attrs = row.attrs === null ? null : JSON.parse(row.attrs);
      const k = attrs !== null && typeof attrs === 'object' && !Array.isArray(attrs) ? attrs.k ?? null : null;
      return equal(k === null ? null : typeof k === 'string' ? k : '(not a string)', e.is);
    },
  },
  and: {
    sql: (e, t) => `(${e.of.map((x) => expressionSql(x, t)).join(' AND ')})`,
    value: (e, row, identity, state) => and(e.of.map((x) => evaluate(x, row, identity, state))),
  },
  or: {
    sql: (e, t) => `(${e.of.map((x) => expressionSql(x, t)).join(' OR ')})`,
    value: (e, row, identity, state) => or(e.of.map((x) => evaluate(x, row, identity, state))),
  },
  not: {
    sql: (e, t) => `NOT (${expressionSql(e.of[0], t)})`,
    value: (e, row, identity, state) => not(evaluate(e.of[0], row, identity, state)),
  },
};

export const FUNCTIONS = `
  CREATE FUNCTION cv.fits(n int, m int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT n % m <> 0';
  CREATE FUNCTION cv.fits_slowly(n int, m int) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN n % m <> 0; END';
  CREATE FUNCTION cv.listed(o text, n int) RETURNS bool LANGUAGE sql STABLE AS $$ SELECT o = ${SUB} OR n > 3 $$;
  CREATE FUNCTION cv.is_member(t int) RETURNS bool LANGUAGE sql STABLE AS $$ SELECT EXISTS (SELECT FROM cv.members m WHERE m.team = t AND m.usr = ${SUB}) $$;
  CREATE FUNCTION cv.is_member_slowly(t int) RETURNS bool LANGUAGE plpgsql STABLE AS $$
    BEGIN RETURN EXISTS (SELECT FROM cv.members m WHERE m.team = t AND m.usr = ${SUB}); END $$;
  DO $$ BEGIN PERFORM changefeed.declare_dependency('cv.is_member_slowly(int)', 'cv.members'); END $$;
  CREATE FUNCTION cv.may(o text, n int) RETURNS bool LANGUAGE plpgsql STABLE AS $$
    BEGIN
      IF o = ${SUB} THEN RETURN true; END IF;
      RETURN n < ${LEVEL};
    END $$`;

/** A channel's join_check, of its first parameter, the team. `*` is null there. */
export const JOIN_CHECK = `team IN (SELECT m.team FROM cv.members m WHERE m.usr = ${SUB})`;
export const mayJoin = (team, { sub }, state) => team !== '*' && teamsOf(state, sub).includes(team.text);

export const expressionSql = (e, table) => KINDS[e.kind].sql(e, table);

export const evaluate = (e, row, identity, state) => KINDS[e.kind].value(e, row, identity, state);

export const columnsOf = (e) => [...(KINDS[e.kind].columns ?? []), ...(e.of ?? []).flatMap(columnsOf)];

/** Tables that it reads besides the row. */
export const readsOf = (e) => [...(KINDS[e.kind].reads ?? []), ...(e.of ?? []).flatMap(readsOf)];

function randomLeaf(random, columns) {
  for (;;) {
    const kind = random.weighted([
      [2, 'owner'], [2, 'owner_select'], [1, 'claim'], [3, 'member'], [1, 'in_member'], [1, 'member_function'], [0.5, 'declared_member'], [1, 'not_banned'], [2, 'open'], [2, 'level'], [1, 'above'],
      [1, 'has_team'], [1, 'fits'], [1, 'listed'], [1, 'fits_slowly'], [1, 'may'], [1, 'tagged'], [1, 'attribute'], [1, 'true'],
    ]);
    const e = { kind };
    if (kind === 'above' || kind === 'claim') e.than = random.int(6);
    if (kind === 'fits' || kind === 'fits_slowly') e.by = random.between(2, 4);
    if (kind === 'attribute') e.is = random.pick(['a', 'b']);
    if (columnsOf(e).every((name) => columns.includes(name))) return e;
  }
}

/** An expression over these columns. */
export function randomExpression(random, columns, depth = 2) {
  if (depth === 0 || random.chance(0.6)) return randomLeaf(random, columns);
  const kind = random.weighted([[4, 'and'], [4, 'or'], [1, 'not']]);
  const n = kind === 'not' ? 1 : 2;
  return { kind, of: Array.from({ length: n }, () => randomExpression(random, columns, depth - 1)) };
}

export const policySql = (table, p) => `CREATE POLICY ${p.name} ON cv.${table} AS ${p.permissive ? 'PERMISSIVE' : 'RESTRICTIVE'} FOR SELECT `
  + `TO ${p.roles.join(', ')} USING (${expressionSql(p.expression, table)})`;

export const alterPolicySql = (table, p) => `ALTER POLICY ${p.name} ON cv.${table} TO ${p.roles.join(', ')} USING (${expressionSql(p.expression, table)})`;
