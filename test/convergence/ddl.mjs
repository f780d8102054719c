// The DDL writer: changes policies, privileges, roles, columns, partitions and
// channels, one transaction after the other. Each writes into cv.ddl_log what it
// did, so that the oracle meets it where it took effect.
//
// It keeps a world of its own, since it has to know what exists.

import { setTimeout as sleep } from 'node:timers/promises';

import { alterPolicySql, policySql, randomExpression } from './policies.mjs';
import { ANONYMOUS, applyEvent, createChannelSql, droppable, feedTables, grantSql, GROUPS, randomGrant, ROLES } from './world.mjs';
import { Random } from './values.mjs';
import { Writer } from './workload.mjs';
import { quote } from '../integration/lib/psql.mjs';

export class DdlWriter extends Writer {
  done = {};

  #random;
  #world;
  #n = 0;
  #unknown = null; // an event of which we do not know whether it was committed

  constructor(seed, world, report) {
    super('ddl', report);
    this.#random = new Random(seed, 'ddl');
    this.#world = structuredClone(world);
    this.channels = structuredClone(world.channels);
  }

  /** [SQL, event], or null if this kind is not possible now. */
  #change() {
    const r = this.#random;
    const table = r.pick(feedTables(this.#world));
    const names = table.columns.map(({ name }) => name);
    const kind = r.weighted([
      [5, 'alter_policy'], [2, 'create_policy'], [2, 'drop_policy'], [2, 'rls'], [4, 'grant'], [2, 'member'], [2, 'add_column'],
      [1, 'drop_column'], [1, 'drop_channel'], [3, 'create_channel'], [1, 'new_channel'], [2, 'leaf'], [2, 'nothing'],
    ]);
    const roles = () => (r.chance(0.3) ? ['public'] : r.sample([...ROLES, ...GROUPS, ANONYMOUS], r.between(1, 3)));
    switch (kind) {
      case 'alter_policy': {
        const old = r.pick(Object.values(table.policies));
        if (!old) return null;
        const policy = { ...old, roles: r.chance(0.3) ? roles() : old.roles, expression: randomExpression(r, names.filter((name) => !/^x/.test(name))) };
        return [alterPolicySql(table.name, policy), { op: 'policy', table: table.name, name: old.name, policy }];
      }
      case 'create_policy': {
        const name = `n${r.int(3)}`;
        if (table.policies[name]) return null;
        const policy = { name, permissive: r.chance(0.7), roles: roles(), expression: randomExpression(r, names.filter((column) => !/^x/.test(column))) };
        return [policySql(table.name, policy), { op: 'policy', table: table.name, name, policy }];
      }
      case 'drop_policy': {
        const old = r.pick(Object.values(table.policies).filter(({ name }) => name.startsWith('n')));
        return old ? [`DROP POLICY ${old.name} ON cv.${table.name}`, { op: 'policy', table: table.name, name: old.name, policy: null }] : null;
      }
      case 'rls': {
        const on = r.chance(0.8);
        return [`ALTER TABLE cv.${table.name} ${on ? 'ENABLE' : 'DISABLE'} ROW LEVEL SECURITY`, { op: 'rls', table: table.name, on }];
      }
      case 'grant': {
        const role = r.pick([...ROLES, ...GROUPS, ANONYMOUS]);
        const value = randomGrant(r, table, 0.2);
        return [grantSql(table.name, role, value), { op: 'grant', table: table.name, role, value }];
      }
      case 'member': {
        const role = r.pick(ROLES.slice(1));
        const group = r.pick([...GROUPS, 'cv_r0']);
        const on = !(this.#world.memberOf[role] ?? []).includes(group);
        return [on ? `GRANT ${group} TO ${role}` : `REVOKE ${group} FROM ${role}`, { op: 'member', role, group, on }];
      }
      case 'add_column': {
        const name = `x${r.int(2)}`;
        if (names.includes(name) || (table.leaves && Object.values(table.leaves).includes(false))) return null;
        const column = { name, type: 'text', ...(r.chance(0.6) && { fallback: { sql: "'d''x'", text: "d'x" } }) };
        return [`ALTER TABLE cv.${table.name} ADD ${name} text${column.fallback ? ` DEFAULT ${column.fallback.sql}` : ''}`, { op: 'add_column', table: table.name, column }];
      }
      case 'drop_column': {
        const name = r.pick(droppable(this.#world, table).filter((column) => column.startsWith('x')));
        if (!name || (table.leaves && Object.values(table.leaves).includes(false))) return null;
        return [`ALTER TABLE cv.${table.name} DROP ${name}`, { op: 'drop_column', table: table.name, name }];
      }
      case 'drop_channel': {
        const name = r.pick(Object.keys(this.#world.channels));
        if (!name) return null;
        return [`DO $do$ BEGIN PERFORM changefeed.drop_channel(${quote(name)}); END $do$`, { op: 'channel', name, channel: null }];
      }
      case 'create_channel': {
        const name = r.pick(Object.keys(this.channels).filter((template) => !this.#world.channels[template]));
        if (!name) return null;
        return [createChannelSql(this.channels[name]), { op: 'channel', name, channel: this.channels[name] }];
      }
      case 'new_channel': { // another definition at once
        const name = r.pick(Object.keys(this.#world.channels));
        if (!name) return null;
        const channel = structuredClone(this.channels[name]);
        const source = r.pick(channel.sources);
        source.filter = source.filter ? null : { kind: 'above', than: r.int(4) };
        this.channels[name] = channel;
        return [`DO $do$ BEGIN PERFORM changefeed.drop_channel(${quote(name)}); END $do$; ${createChannelSql(channel)}`, { op: 'channel', name, channel }];
      }
      case 'leaf': {
        if (!table.leaves) return null;
        const leaf = r.pick(Object.keys(table.leaves).slice(2));
        const attached = !table.leaves[leaf];
        const values = Object.keys(table.leaves).indexOf(leaf);
        return [`ALTER TABLE cv.${table.name} ${attached ? `ATTACH PARTITION cv.${leaf} FOR VALUES IN (${values})` : `DETACH PARTITION cv.${leaf}`}`,
          { op: 'leaf', table: table.name, leaf, attached }];
      }
      case 'nothing':
        return [r.pick([`ANALYZE cv.${table.name}`, `CREATE INDEX ON cv.${table.name} (team)`, `COMMENT ON TABLE cv.${table.name} IS 'x'`]), { op: 'nothing', table: table.name }];
      default: throw new Error(kind);
    }
  }

  async turn(pause) {
    const r = this.#random;
    if (this.#unknown) {
      // The connection was lost: was it committed?
      const rows = await this.rows(`SELECT id FROM cv.ddl_log WHERE id = ${this.#unknown.id}`).catch(() => null);
      if (rows === null) {
        await this.exec('SELECT 1');
        return;
      }
      if (rows.length > 0) applyEvent(this.#world, structuredClone(this.#unknown.event));
      this.#unknown = null;
    }
    const change = this.#change();
    if (!change) return;
    const [sql, event] = change;
    this.#n += 1;
    const { lost } = this;
    const touch = () => `UPDATE cv.${r.pick(feedTables(this.#world)).name} SET note = 'ddl ${this.#n}', owner = 'u${r.int(5)}' WHERE id % 5 = ${r.int(5)}`;
    const before = r.chance(0.2) ? `${touch()};\n` : '';
    const behind = r.chance(0.2) ? `${touch()};\n` : '';
    const committed = await this.exec(`BEGIN; SET LOCAL lock_timeout = '20s';\n${before}${sql};\n`
      + `INSERT INTO cv.ddl_log VALUES (${this.#n}, ${quote(JSON.stringify(event))});\n${behind}COMMIT;`);
    if (committed) {
      applyEvent(this.#world, structuredClone(event));
      this.report.count('ddl', event.op);
    } else if (this.lost > lost) {
      this.#unknown = { id: this.#n, event };
    }
    await sleep(r.int(pause));
  }
}
