// What clients write behind "?": conditions, columns and windows, each as URL
// for the server, as SQL for the comparison with SELECT, and as JavaScript for
// the oracle, which sees neither.
//
// A condition is plain data: { op, column, type, value } or { op, of }, with `negated`.
// Its value is true, false or null (unknown), as in SQL.

import { and, evaluate as evaluateExpression, not, or } from './policies.mjs';
import { arrayElements } from './values.mjs';
import { quote } from '../integration/lib/psql.mjs';

const isNumeric = (type) => type === 'int' || type === 'bigint';
const literalSql = ({ type }, value) => (isNumeric(type) ? value : quote(value));

const compare = (test) => ({
  sql: (c, sign) => `${c.column} ${sign} ${literalSql(c, c.value)}`,
  value: (c, x) => (x === null ? null : isNumeric(c.type) ? test(BigInt(x), BigInt(c.value)) : test(x, c.value)),
});

const OPERATORS = {
  eq: { sign: '=', ...compare((a, b) => a === b) },
  neq: { sign: '<>', ...compare((a, b) => a !== b) },
  gt: { sign: '>', ...compare((a, b) => a > b) },
  gte: { sign: '>=', ...compare((a, b) => a >= b) },
  lt: { sign: '<', ...compare((a, b) => a < b) },
  lte: { sign: '<=', ...compare((a, b) => a <= b) },
  in: {
    sql: (c) => `${c.column} IN (${c.value.map((v) => literalSql(c, v)).join(', ')})`,
    value: (c, x) => (x === null ? null : c.value.includes(x)),
  },
  is: {
    sql: (c) => `${c.column} IS ${c.value === 'not_null' ? 'NOT NULL' : c.value.toUpperCase()}`,
    value: (c, x) => ({ null: x === null, not_null: x !== null, true: x === 't', false: x === 'f', unknown: x === null })[c.value],
  },
  isdistinct: {
    sql: (c) => `${c.column} IS DISTINCT FROM ${literalSql(c, c.value)}`,
    value: (c, x) => x !== c.value,
  },
  like: { // a prefix
    sql: (c) => `${c.column} LIKE ${quote(c.value.replace('*', '%'))}`,
    value: (c, x) => (x === null ? null : x.startsWith(c.value.slice(0, -1))),
  },
  cs: { // one element
    sql: (c) => `${c.column} @> ${quote(c.value)}`,
    value: (c, x) => (x === null ? null : arrayElements(x).includes(c.value.slice(1, -1))),
  },
  path: { // ->>k, equal
    sql: (c) => `${c.column}->>'k' = ${quote(c.value)}`,
    value: (c, x) => evaluateExpression({ kind: 'attribute', is: c.value }, { attrs: x }),
  },
};

export function evaluate(c, row) {
  const value = c.of ? (c.op === 'and' ? and : or)(c.of.map((x) => evaluate(x, row))) : OPERATORS[c.op].value(c, row[c.column]);
  return c.negated ? not(value) : value;
}

export function conditionSql(c) {
  const sql = c.of ? `(${c.of.map(conditionSql).join(c.op === 'and' ? ' AND ' : ' OR ')})` : `(${OPERATORS[c.op].sql(c, OPERATORS[c.op].sign)})`;
  return c.negated ? `NOT ${sql}` : sql;
}

const columnsOf = (c) => (c.of ? c.of.flatMap(columnsOf) : [c.column]);

const quoted = (text) => `"${text.replaceAll('\\', '\\\\').replaceAll('"', '\\"')}"`;

/** [what precedes the operator, operator and value]; a value in a list is quoted. */
function leafParts(c, nested) {
  const negation = c.negated ? 'not.' : '';
  if (c.op === 'path') return [`${c.column}->>k`, `${negation}eq.${nested ? quoted(c.value) : c.value}`];
  if (c.op === 'in') return [c.column, `${negation}in.(${c.value.map((v) => (isNumeric(c.type) ? v : quoted(v))).join(',')})`];
  const plain = isNumeric(c.type) || ['is', 'like'].includes(c.op);
  return [c.column, `${negation}${c.op}.${nested && !plain ? quoted(c.value) : c.value}`];
}

function nestedUrl(c) {
  if (c.of) return `${c.negated ? 'not.' : ''}${c.op}(${c.of.map(nestedUrl).join(',')})`;
  return leafParts(c, true).join('.');
}

function topUrl(c) {
  if (c.of) return `${c.negated ? 'not.' : ''}${c.op}=${encodeURIComponent(`(${c.of.map(nestedUrl).join(',')})`)}`;
  const [before, behind] = leafParts(c, false);
  return `${before}=${encodeURIComponent(behind)}`;
}

/** What is appended to a channel's name. */
export function selectionUrl({ conditions, select, window }) {
  return `?${[
    ...conditions.map(topUrl),
    ...(select ? [`select=${select.join(',')}`] : []),
    ...(window ? [`order=${window.order}`, `limit=${window.limit}`] : []),
  ].join('&')}`;
}

/** The columns that it names. */
export const namedColumns = ({ conditions, select, window }) => [
  ...conditions.flatMap(columnsOf), ...(select ?? []), ...(window ? window.columns : [])];

export const selects = ({ conditions }, row) => conditions.every((c) => evaluate(c, row) === true);

function randomLeaf(random, columns, subjects) {
  const { name: column, type } = random.pick(columns);
  const leaf = (op, value) => ({ op, column, type, value });
  const isNull = () => leaf('is', random.pick(['null', 'not_null']));
  const text = () => (column === 'owner' ? random.pick(subjects) : random.pick(['new', 'a', '"q"', 'a\\b', "it's", 'A:B/c', 'copied', 'leaf', 'line\nbreak', '日本']));
  const integer = () => String(column === 'id' ? random.int(40) : random.int(7));
  if (isNumeric(type)) {
    return random.weighted([
      [3, () => leaf('eq', integer())], [1, () => leaf('neq', integer())], [3, () => leaf(random.pick(['gt', 'gte', 'lt', 'lte']), integer())],
      [2, () => leaf('in', [...new Set([integer(), integer(), integer()])])], [1, isNull],
    ])();
  }
  switch (type) {
    case 'text': return random.weighted([
      [4, () => leaf('eq', text())], [1, () => leaf('neq', text())], [2, () => leaf('in', [...new Set([text(), text()])])],
      [1, () => leaf('isdistinct', text())], [2, () => leaf('like', column === 'owner' ? 'u*' : random.pick(['n*', 'n1*', 'ddl*']))], [1, isNull],
    ])();
    case 'bool': return leaf('is', random.pick(['true', 'false', 'false', 'unknown', 'not_null']));
    case 'text[]': return random.chance(0.7) ? leaf('cs', `{${random.pick(subjects)}}`) : isNull();
    case 'jsonb': return random.chance(0.7) ? leaf('path', random.pick(['a', 'b'])) : isNull();
    case 'large': return random.chance(0.5) ? leaf('like', random.pick(['s*', 's1*'])) : isNull();
    default: return isNull();
  }
}

function randomCondition(random, columns, subjects, depth = 2) {
  const c = depth > 0 && random.chance(0.3)
    ? { op: random.pick(['or', 'or', 'and']), of: Array.from({ length: random.between(2, 3) }, () => randomCondition(random, columns, subjects, depth - 1)) }
    : randomLeaf(random, columns, subjects);
  if (random.chance(0.15)) c.negated = true;
  return c;
}

/** A selection over these columns ({ name, type }), which all tables of the channel have. */
export function randomSelection(random, columns, subjects) {
  const selection = { conditions: [], select: null, window: null };
  const kind = random.weighted([[6, 'conditions'], [2, 'select'], [2, 'both'], [2, 'window']]);
  if (kind !== 'select' && !(kind === 'window' && random.chance(0.5))) {
    selection.conditions = Array.from({ length: random.weighted([[4, 1], [1, 2]]) }, () => randomCondition(random, columns, subjects));
  }
  if (kind === 'select' || kind === 'both') selection.select = random.sample(columns, random.between(1, 3)).map(({ name }) => name);
  if (kind === 'window') {
    const by = random.pick(columns.filter(({ name }) => ['id', 'level', 'note', 'team'].includes(name))).name;
    selection.window = { order: `${by}${random.pick(['', '.desc', '.desc.nullslast'])}`, columns: [by], limit: random.between(1, 12) };
  }
  return selection;
}
