// Everybody receives exactly what a SELECT under the same identity shows.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { assertSame, Client } from './lib/client.mjs';
import { number } from './lib/json.mjs';
import { Session } from './lib/psql.mjs';
import { randomOf } from './lib/random.mjs';

const SUB = "current_setting('request.jwt.claims', true)::json->>'sub'";

const IDENTITIES = {
  ada: { role: 'rls_web', sub: 'ada' },
  bob: { role: 'rls_web', sub: 'bob' },
  carl: { role: 'rls_staff', sub: 'carl' },
};

// What each policy means, for rows received on the way, which no SELECT at a
// quiet point would show. `teams`: those that the identity has ever been in.
const TABLES = {
  owned: {
    policies: [
      `CREATE POLICY p ON rls.owned FOR SELECT TO rls_web USING (owner = ${SUB})`,
      'CREATE POLICY s ON rls.owned FOR SELECT TO rls_staff USING (true)',
    ],
    maySee: (row, { role, sub }) => role === 'rls_staff' || row.owner === sub,
  },
  shared: {
    policies: [
      `CREATE POLICY p ON rls.shared FOR SELECT TO rls_web USING (EXISTS (
         SELECT FROM rls.members m WHERE m.team = shared.team AND m.usr = ${SUB}))`,
    ],
    maySee: (row, { sub }, teams) => row.team !== null && teams(sub).has(number(row.team)),
  },
  guarded: {
    policies: [
      'CREATE POLICY p ON rls.guarded FOR SELECT TO PUBLIC USING (team IS NOT NULL)',
      `CREATE POLICY r ON rls.guarded AS RESTRICTIVE FOR SELECT TO PUBLIC USING (NOT hidden OR owner = ${SUB})`,
    ],
    maySee: (row, { sub }) => row.team !== null && (row.hidden === false || row.owner === sub),
  },
};
const NAMES = Object.keys(TABLES);

describe('row level security', () => {
  const clients = {}; // by name of identity
  const everInTeam = new Map();
  let db;

  const teams = (sub) => everInTeam.get(sub) ?? new Set();

  async function noteTeams() {
    for (const { usr, team } of await db.rows('SELECT usr, team FROM rls.members')) {
      if (!everInTeam.has(usr)) everInTeam.set(usr, new Set());
      everInTeam.get(usr).add(number(team));
    }
  }

  /** Every cache is what SELECT shows, now that everything has been delivered. */
  async function compare(what) {
    for (const [name, client] of Object.entries(clients)) {
      await client.settle();
      client.check();
      for (const subscription of client.subscriptions.values()) {
        const { table, where } = subscription.about;
        const columns = subscription.columns ?? '*';
        const rows = await db.rowsAs(IDENTITIES[name], `SELECT ${columns} FROM ${table} WHERE ${where}`);
        assertSame(subscription.rows(), rows, `${what}: ${name}, "${subscription.name}"`);
      }
    }
  }

  async function watch(name, channel, table, where = 'true', maySee = () => true) {
    const subscription = await clients[name].openSoon(channel);
    subscription.about = { table, where };
    subscription.onChange = (change, frame, row) => {
      if (row === undefined) return;
      assert.notEqual(row.note, 'in between', 'a state that was never committed');
      assert.ok(maySee(row, IDENTITIES[name], teams), `${name} received ${JSON.stringify(row)} of ${table}`);
    };
    return subscription;
  }

  before(async () => {
    db = new Session();
    await db.exec(`CREATE SCHEMA rls;
      CREATE ROLE rls_web; CREATE ROLE rls_staff IN ROLE rls_web; CREATE ROLE rls_extra;
      GRANT USAGE ON SCHEMA rls TO rls_web, rls_extra;
      CREATE TABLE rls.members (team int, usr text, PRIMARY KEY (team, usr));
      GRANT SELECT ON rls.members TO rls_web;
      SELECT changefeed.allow_role('rls_web'); SELECT changefeed.allow_role('rls_staff')`);
    for (const [table, { policies }] of Object.entries(TABLES)) {
      await db.exec(`CREATE TABLE rls.${table} (
          id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED,
          owner text, team int, hidden bool NOT NULL DEFAULT false, note text);
        ALTER TABLE rls.${table} ENABLE ROW LEVEL SECURITY;
        GRANT SELECT ON rls.${table} TO rls_web;
        ${policies.join(';')};
        SELECT changefeed.create_channel('rls_${table}', 'rls.${table}');
        SELECT changefeed.create_channel('rls_${table}_team:{team}', 'rls.${table}')`);
    }
    for (const [name, claims] of Object.entries(IDENTITIES)) {
      clients[name] = await Client.connectSoon({ token: await db.token(claims) });
      for (const table of NAMES) {
        await watch(name, `rls_${table}`, `rls.${table}`, 'true', TABLES[table].maySee);
        await watch(name, `rls_${table}_team:1`, `rls.${table}`, 'team = 1', TABLES[table].maySee);
      }
    }
  });

  after(async () => {
    for (const client of Object.values(clients)) await client.cut();
    await db?.close();
  });

  async function step(what, sql) {
    await db.exec(sql);
    await noteTeams();
    await compare(what);
  }

  /** In each table; @ stands for its name. */
  const everywhere = (sql) => NAMES.map((name) => sql.replaceAll('@', `rls.${name}`)).join(';\n');

  const shared = [
    ['insert, before there are members', `INSERT INTO @ (id, owner, team, hidden, note) VALUES
      (1, 'ada', 1, false, 'a'), (2, 'bob', 1, false, 'b'), (3, 'carl', 2, true, 'c'),
      (4, 'ada', 2, true, 'd'), (5, NULL, NULL, false, 'e'), (6, 'bob', 2, true, NULL)`],
    ['update within view', "UPDATE @ SET note = note || '!' WHERE id IN (1, 3)"],
    ['update that changes nothing', 'UPDATE @ SET note = note'],
    ['update into and out of view by owner', "UPDATE @ SET owner = CASE owner WHEN 'ada' THEN 'bob' WHEN 'bob' THEN 'carl' ELSE 'ada' END"],
    ['update into and out of view by team', 'UPDATE @ SET team = CASE team WHEN 1 THEN 2 WHEN 2 THEN NULL ELSE 1 END'],
    ['update into and out of view by the restrictive policy', 'UPDATE @ SET hidden = NOT hidden'],
    ['delete', 'DELETE FROM @ WHERE id IN (2, 3)'],
    ['a chain of keys', 'UPDATE @ SET id = id + 1'],
    ['a chain of keys downwards', 'UPDATE @ SET id = id - 1'],
    ['two keys swapped', 'UPDATE @ SET id = CASE id WHEN 1 THEN 4 WHEN 4 THEN 1 ELSE id END'],
    ['a new key and an old value', "UPDATE @ SET id = id + 100, note = 'moved' WHERE id = 5"],
    ['states in between in a transaction', `BEGIN;
      UPDATE @ SET note = 'in between', owner = 'ada'; UPDATE @ SET note = 'in between', owner = 'bob', team = 1;
      UPDATE @ SET note = 'final ' || id, owner = CASE WHEN id % 2 = 0 THEN 'ada' ELSE 'bob' END, team = 1 + id % 2; COMMIT`],
    ['changed and changed back', `BEGIN;
      UPDATE @ SET note = 'in between'; UPDATE @ SET note = 'final ' || id; COMMIT`],
    ['into view and out again', `BEGIN;
      UPDATE @ SET owner = 'ada', team = 1, hidden = false, note = 'in between' WHERE owner = 'bob';
      UPDATE @ SET owner = 'bob', team = 1 + id % 2, note = 'final ' || id WHERE owner = 'ada' AND note = 'in between'; COMMIT`],
    ['inserted and deleted', `BEGIN; INSERT INTO @ VALUES (50, 'ada', 1, false, 'in between'); DELETE FROM @ WHERE id = 50; COMMIT`],
    ['deleted and inserted', `BEGIN; DELETE FROM @ WHERE id = 1; INSERT INTO @ VALUES (1, 'ada', 1, false, 'again'); COMMIT`],
    ['a key that goes to another row', `BEGIN; DELETE FROM @ WHERE id = 4; UPDATE @ SET id = 4 WHERE id = 1; COMMIT`],
    ['rolled back', "BEGIN; UPDATE @ SET note = 'in between'; ROLLBACK"],
    ['rolled back to a savepoint', `BEGIN; UPDATE @ SET note = 'kept'; SAVEPOINT s; UPDATE @ SET note = 'in between'; ROLLBACK TO s; COMMIT`],
  ];
  for (const [what, sql] of shared) {
    test(`${what}`, async () => {
      await step(what, everywhere(sql));
    });
  }

  test('several tables in one transaction come in one frame', async () => {
    const frames = [];
    clients.carl.onTransaction = (frame) => frames.push(frame);
    await step('several tables', `BEGIN; ${everywhere("INSERT INTO @ VALUES (70, 'carl', 1, false, 'joint')")}; COMMIT`);
    clients.carl.onTransaction = null;
    const txids = new Set(frames.map(({ txid }) => txid));
    assert.equal(txids.size, 1);
    assert.equal(frames.length, 1);
    const entities = new Set(frames[0].changes.map(({ entity }) => entity));
    assert.ok(entities.has('owned') && entities.has('guarded'), [...entities].join());
  });

  describe('membership, a table that a policy reads', () => {
    test('granted', async () => {
      await step('ada joins 1, bob joins 1 and 2', "INSERT INTO rls.members VALUES (1, 'ada'), (1, 'bob'), (2, 'bob')");
      assert.ok(clients.ada.subscriptions.get('rls_shared').rows().length > 0);
    });
    test('revoked', () => step('bob leaves 1', "DELETE FROM rls.members WHERE usr = 'bob' AND team = 1"));
    test('moved', () => step('ada moves to 2', "UPDATE rls.members SET team = 2 WHERE usr = 'ada'"));
    test('with the rows it is about in one transaction', () => step('new team with rows', `BEGIN;
      INSERT INTO rls.members VALUES (3, 'carl'), (3, 'ada');
      INSERT INTO rls.shared VALUES (80, 'x', 3, false, 'team 3'); UPDATE rls.shared SET team = 3 WHERE id = 4;
      DELETE FROM rls.members WHERE usr = 'ada' AND team = 3; COMMIT`));
    test('rows go on after it', async () => {
      for (const [what, sql] of shared.slice(0, 7)) {
        await step(what, everywhere(sql.replace(/\((\d), /g, (_, id) => `(${Number(id) + 200}, `)));
      }
    });
    test('a membership that concerns nobody', () => step('dora joins', "INSERT INTO rls.members VALUES (1, 'dora')"));
  });

  describe('definitions that change under living subscriptions', () => {
    test('ALTER POLICY', () => step('turned round', `ALTER POLICY p ON rls.owned USING (owner <> ${SUB})`));
    test('ALTER POLICY back', () => step('and back', `ALTER POLICY p ON rls.owned USING (owner = ${SUB})`));
    test('rows in the transaction that changes the policy', () => step('both', `BEGIN;
      INSERT INTO rls.guarded VALUES (90, 'ada', 1, true, 'x'), (91, 'bob', 1, false, 'y');
      ALTER POLICY p ON rls.guarded USING (id <> 91);
      UPDATE rls.guarded SET note = 'z' WHERE id >= 90; COMMIT`));
    test('a further policy', () => step('created', "CREATE POLICY q ON rls.guarded AS RESTRICTIVE FOR SELECT USING (note <> 'z')"));
    test('a policy dropped', async () => {
      await step('dropped', 'DROP POLICY q ON rls.guarded');
      await step('as it was', 'ALTER POLICY p ON rls.guarded USING (team IS NOT NULL)');
    });
    test('row security off and on, many times', async () => {
      const { maySee } = TABLES.owned;
      for (const client of Object.values(clients)) {
        for (const s of client.subscriptions.values()) if (s.about.table === 'rls.owned') s.onChange = null;
      }
      try {
        for (let i = 0; i < 40; i += 1) {
          await step(`off ${i}`, 'ALTER TABLE rls.owned DISABLE ROW LEVEL SECURITY');
          await step(`changes while off ${i}`, `UPDATE rls.owned SET note = 'open ${i}'`);
          await step(`on ${i}`, 'ALTER TABLE rls.owned ENABLE ROW LEVEL SECURITY');
          await step(`changes while on ${i}`, `UPDATE rls.owned SET note = 'closed ${i}'`);
        }
      } finally {
        await db.exec('ALTER TABLE rls.owned ENABLE ROW LEVEL SECURITY');
        await Promise.all(Object.values(clients).map((client) => client.settle()));
        for (const [name, client] of Object.entries(clients)) {
          for (const s of client.subscriptions.values()) {
            if (s.about.table === 'rls.owned') s.onChange = (change, frame, row) => assert.ok(!row || maySee(row, IDENTITIES[name]));
          }
        }
      }
    });
    test('role membership revoked and granted', async () => {
      await db.exec('GRANT SELECT ON rls.owned, rls.shared, rls.guarded, rls.members TO rls_staff; GRANT USAGE ON SCHEMA rls TO rls_staff');
      await step('before', "UPDATE rls.shared SET note = 'before'");
      await step('carl is not web any more', 'REVOKE rls_web FROM rls_staff');
      await step('changes', everywhere("UPDATE @ SET note = 'not web'"));
      await step('carl is web again', 'GRANT rls_web TO rls_staff');
      await step('changes again', everywhere("UPDATE @ SET note = 'web'"));
    });
    test('a role membership that gives more', async () => {
      await db.exec("CREATE POLICY x ON rls.shared FOR SELECT TO rls_extra USING (true)");
      for (const client of Object.values(clients)) {
        for (const s of client.subscriptions.values()) if (s.about.table === 'rls.shared') s.onChange = null;
      }
      await compare('before');
      await step('everybody is extra', 'GRANT rls_extra TO rls_web');
      await step('changes', "UPDATE rls.shared SET note = 'extra'");
      await step('nobody is extra', 'REVOKE rls_extra FROM rls_web');
      await step('changes', "UPDATE rls.shared SET note = 'not extra'");
      for (const [name, client] of Object.entries(clients)) {
        for (const s of client.subscriptions.values()) {
          if (s.about.table === 'rls.shared') s.onChange = (change, frame, row) => assert.ok(!row || TABLES.shared.maySee(row, IDENTITIES[name], teams));
        }
      }
    });
  });

  describe('privileges on columns', () => {
    const people = {};

    before(async () => {
      await db.exec(`CREATE TABLE rls.people (id int PRIMARY KEY, name text, email text, salary numeric(10,2));
        GRANT SELECT (id, name) ON rls.people TO rls_web;
        GRANT SELECT ON rls.people TO rls_staff;
        INSERT INTO rls.people SELECT i, 'n' || i, 'e' || i, i * 10.5 FROM generate_series(1, 5) i;
        SELECT changefeed.create_channel('rls_people', 'rls.people')`);
      for (const name of Object.keys(IDENTITIES)) {
        people[name] = await watch(name, 'rls_people', 'rls.people');
        people[name].columns = name === 'carl' ? 'id, name, email, salary' : 'id, name';
      }
    });

    test('the snapshot has the columns that may be read', () => compare('snapshot'));
    test('changes have them', async () => {
      const { changes } = people.ada;
      await step('of hidden columns only', "UPDATE rls.people SET salary = salary + 1, email = 'x'");
      assert.equal(people.ada.changes, changes, 'a change that shows nothing is not sent');
      await step('of both', "UPDATE rls.people SET salary = salary + 1, name = name || '!'");
      await step('insert and delete', "BEGIN; DELETE FROM rls.people WHERE id = 1; INSERT INTO rls.people VALUES (9, 'n', 'e', 1); COMMIT");
    });
    test('GRANT of a column', async () => {
      people.ada.columns = 'id, name, email';
      people.bob.columns = 'id, name, email';
      await step('grant', 'GRANT SELECT (email) ON rls.people TO rls_web');
      await step('change', "UPDATE rls.people SET email = 'new ' || id");
    });
    test('REVOKE of a column', async () => {
      people.ada.columns = 'id, email';
      people.bob.columns = 'id, email';
      await step('revoke', 'REVOKE SELECT (name) ON rls.people FROM rls_web');
      await step('change', "UPDATE rls.people SET name = 'hidden', email = 'shown ' || id");
    });
    test('REVOKE in the transaction that changes the column', async () => {
      people.ada.columns = 'id';
      people.bob.columns = 'id';
      people.ada.onChange = (change) => assert.ok(!JSON.stringify(change).includes('topsecret'));
      await step('both', "BEGIN; UPDATE rls.people SET email = 'topsecret'; REVOKE SELECT (email) ON rls.people FROM rls_web; COMMIT");
    });
    test('REVOKE of the key ends the subscription', async () => {
      await step('revoke', 'REVOKE SELECT (id) ON rls.people FROM rls_web');
      for (const name of ['ada', 'bob']) {
        assert.equal(people[name].state, 'ended');
        assert.equal(people[name].revoked.reason, 'permission_denied');
      }
      assert.equal(people.carl.state, 'ready');
    });
    test('REVOKE of the table ends it', async () => {
      await step('revoke', 'REVOKE SELECT ON rls.people FROM rls_staff');
      assert.equal(people.carl.revoked?.reason, 'permission_denied');
    });
    test('without privileges there is no subscription', async () => {
      await assert.rejects(clients.ada.subscribe('rls_people'), { code: '42501', message: /people/ });
    });
    test('REVOKE of the schema ends subscriptions', async () => {
      await db.exec('REVOKE USAGE ON SCHEMA rls FROM rls_staff');
      await compare('still a member of rls_web');
      await db.exec(`CREATE SCHEMA rls2; GRANT USAGE ON SCHEMA rls2 TO rls_web; CREATE TABLE rls2.t (id int PRIMARY KEY);
        GRANT SELECT ON rls2.t TO rls_web; SELECT changefeed.create_channel('rls2_t', 'rls2.t')`);
      const s = await watch('ada', 'rls2_t', 'rls2.t');
      await step('insert', 'INSERT INTO rls2.t VALUES (1)');
      await db.exec('REVOKE USAGE ON SCHEMA rls2 FROM rls_web');
      await db.exec('INSERT INTO rls2.t VALUES (2)');
      await clients.ada.settle();
      assert.equal(s.revoked?.reason, 'permission_denied');
    });
  });

  const seed = Number(process.env.RLS_SEED ?? Date.now() % 1000000);

  test(`random transactions of three writers (RLS_SEED=${seed})`, async (t) => {
    const rounds = Number(process.env.RLS_ROUNDS ?? 8);
    const { random, pick } = randomOf(seed);
    const person = () => pick("'ada'", "'bob'", "'carl'", 'NULL');
    const team = () => pick('1', '2', '3', 'NULL');
    const table = () => `rls.${pick(...NAMES)}`;
    const id = () => random(40);
    const statement = () => {
      switch (random(12)) {
        case 0:
        case 1:
        case 2: return `INSERT INTO ${table()} VALUES (${id()}, ${person()}, ${team()}, ${pick('true', 'false')}, 'n${random(100)}') ON CONFLICT DO NOTHING`
          .replace(' ON CONFLICT DO NOTHING', ''); // a deferrable key cannot arbitrate
        case 3: return `DELETE FROM ${table()} WHERE id = ${id()}`;
        case 4: return `UPDATE ${table()} SET owner = ${person()} WHERE id % 7 = ${random(7)}`;
        case 5: return `UPDATE ${table()} SET team = ${team()}, note = 'm${random(100)}' WHERE id = ${id()}`;
        case 6: return `UPDATE ${table()} SET hidden = NOT hidden WHERE id % 5 = ${random(5)}`;
        case 7: return `UPDATE ${table()} SET id = ${id()} WHERE id = ${id()}`;
        case 8: return `UPDATE ${table()} SET note = 'x${random(10)}' WHERE id = ${id()}`;
        case 9: return `SAVEPOINT s; UPDATE ${table()} SET note = 'in between'; ROLLBACK TO s`;
        case 10: return `UPDATE ${table()} SET note = note`;
        default:
          return random(4) > 0
            ? `UPDATE ${table()} SET note = 'y${random(1000)}'`
            : pick(
              `INSERT INTO rls.members VALUES (${1 + random(3)}, ${pick("'ada'", "'bob'", "'carl'")}) ON CONFLICT DO NOTHING`,
              `DELETE FROM rls.members WHERE team = ${1 + random(3)} AND usr = ${pick("'ada'", "'bob'", "'carl'")}`,
            );
      }
    };
    // Whoever may join will, so no row of a team is wrong in `shared`.
    for (const { sub } of Object.values(IDENTITIES)) everInTeam.set(sub, new Set([1, 2, 3]));
    for (const [name, client] of Object.entries(clients)) {
      for (const s of client.subscriptions.values()) {
        const known = TABLES[s.about.table.slice(4)];
        s.onChange = (change, frame, row) => {
          if (row === undefined) return;
          assert.notEqual(row.note, 'in between');
          if (known && s.about.table !== 'rls.guarded') assert.ok(known.maySee(row, IDENTITIES[name], teams), `${name}: ${JSON.stringify(row)}`);
          if (s.about.table === 'rls.guarded') assert.ok(row.hidden === false || row.owner === IDENTITIES[name].sub);
        };
      }
    }
    const writers = [new Session(), new Session(), new Session()];
    t.after(() => Promise.all(writers.map((writer) => writer.close())));
    let committed = 0;
    for (let round = 0; round < rounds; round += 1) {
      await Promise.all(writers.map(async (writer) => {
        for (let i = 0; i < 17; i += 1) {
          const statements = Array.from({ length: 1 + random(5) }, statement);
          await writer.exec(`BEGIN;\n${statements.join(';\n')};\nCOMMIT`).then(() => { committed += 1; }, async (error) => {
            if (!/duplicate key|deadlock|aborted/.test(error.message)) throw error;
            await writer.exec('ROLLBACK');
          });
        }
      }));
      await compare(`seed ${seed}, round ${round}`);
    }
    t.diagnostic(`${committed} transactions committed`);
    for (const [name, client] of Object.entries(clients)) {
      const resyncs = {};
      for (const s of client.subscriptions.values()) for (const reason of s.resyncs) resyncs[reason] = (resyncs[reason] ?? 0) + 1;
      t.diagnostic(`${name}: ${client.transactions} transactions, resyncs ${JSON.stringify(resyncs)}`);
    }
  });
});
