// At quiet points: the oracle against the database. Its tables against the
// tables, and its views against a SELECT under the identity. This is what makes
// the oracle trustworthy.

import { canonical } from '../integration/lib/json.mjs';
import { quote } from '../integration/lib/psql.mjs';
import { Difference } from './checker.mjs';
import { expressionSql } from './policies.mjs';
import { conditionSql } from './selections.mjs';
import { ANONYMOUS, parametersOf } from './world.mjs';

function compareSets(expected, got, what) {
  const a = new Set(expected);
  const b = new Set(got);
  const surplus = [...b].filter((text) => !a.has(text));
  const missing = [...a].filter((text) => !b.has(text));
  if (surplus.length === 0 && missing.length === 0 && expected.length === got.length) return;
  throw new Difference('oracle', `${what}: the oracle is not what the database says\n  only in the oracle: ${missing.slice(0, 3).join('\n    ')}\n  only in the database: ${surplus.slice(0, 3).join('\n    ')}`);
}

export async function compareTables(session, model) {
  for (const table of Object.values(model.world.tables)) {
    const names = table.columns.map(({ name }) => name);
    const rows = await session.rows(`SELECT ${names.join(', ')} FROM cv.${table.name}`);
    compareSets(model.rowTexts(table.name), rows.map(canonical), `table ${table.name}`);
  }
}

function viewSql(model, view, shape) {
  const { template, values, selection } = view.channel;
  return shape.split(' ').map((part) => {
    const [, entity, columns] = part.match(/^(\w+)\((.*)\)$/);
    const source = model.world.channels[template].sources.find((s) => s.entity === entity);
    const conditions = parametersOf(template).map((name, i) => (values[i] === '*' ? `${name} IS NOT NULL` : `${name} = ${quote(values[i].text)}`));
    if (source.filter) conditions.push(expressionSql(source.filter, source.table));
    for (const c of selection?.conditions ?? []) conditions.push(conditionSql(c));
    return [entity, `SELECT ${columns} FROM cv.${source.table} ${conditions.length > 0 ? `WHERE ${conditions.join(' AND ')}` : ''}`];
  });
}

/** Returns the number of views compared. */
export async function compareWithSelect(session, model, views) {
  let n = 0;
  for (const view of views) {
    const shape = view.shapeAt(model.known);
    if (shape === null) continue;
    const got = [];
    for (const [entity, sql] of viewSql(model, view, shape)) {
      const rows = await session.rowsAs(view.identity.claims ?? { role: ANONYMOUS }, sql);
      got.push(...rows.map((row) => `${entity} ${canonical(row)}`));
    }
    compareSets([...view.rows].map(([id, { text }]) => `${id.slice(0, id.indexOf(' '))} ${text}`), got, `identity ${view.identity.name}, channel ${view.channel.name}`);
    n += 1;
  }
  return n;
}

