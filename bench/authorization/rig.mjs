// A private cluster whose gateway is the counting program (counter.c), and what is done with it: identities
// connect, one backend writes, deliveries are counted and verified.

import { execFileSync } from 'node:child_process';
import path from 'node:path';

import { Cluster } from '../lib/cluster.mjs';
import { BIN, ROOT, scratch, sleep } from '../lib/programs.mjs';
import { WrongResult } from '../lib/runner.mjs';

const ROWS = 1000;

// Each table has ROWS rows, of 5 teams and as many owners as there are identities. What they differ in is
// the policy; sees(identity, row) says the same in JavaScript. Identities are numbered from 0 and have
// claims {"sub": "<number>", "team": <number % 5>}.
const CLAIMS = "current_setting('request.jwt.claims')::jsonb";
export const TABLES = {
  open: { policy: null, sees: () => true },
  // One identity sees a row
  owner: { policy: `owner = (${CLAIMS} ->> 'sub')::int`, sees: (identity, row, identities) => row % identities === identity },
  // One in five sees it: a claim against a column
  team: { policy: `team = (${CLAIMS} ->> 'team')::int`, sees: (identity, row) => row % 5 === identity % 5 },
  // The same people, by what a table says of each of them
  member: {
    policy: `EXISTS (SELECT FROM members m WHERE m.team = member.team AND m.uid = (${CLAIMS} ->> 'sub')::int)`,
    sees: (identity, row) => row % 5 === identity % 5,
  },
};

export class Rig {
  constructor({ settings = {} } = {}) {
    const tree = path.join(scratch, 'counting');
    const pgConfig = execFileSync(path.join(ROOT, 'bench/authorization/tree'),
      [process.env.PG_CONFIG, path.join(BIN, 'counter'), tree], { encoding: 'utf8' }).trim();
    execFileSync('chmod', ['-R', 'a+rX', tree]);
    this.cluster = new Cluster({
      pgConfig,
      // Writing has to be cheaper than what is measured.
      settings: { synchronous_commit: 'off', 'changefeed.worker_memory': '2GB', ...settings },
    });
    this.identities = 0;
    this.serial = 0;
  }

  async start() {
    const { cluster } = this;
    await cluster.query(`
      CREATE ROLE bench_reader;
      SELECT changefeed.allow_role('bench_reader');
      CREATE TABLE members (uid int, team int, PRIMARY KEY (uid, team));
      GRANT SELECT ON members TO bench_reader;`);
    for (const [table, { policy }] of Object.entries(TABLES)) {
      await cluster.query(`
        CREATE TABLE ${table} (id int PRIMARY KEY, team int NOT NULL, owner int NOT NULL, serial bigint NOT NULL, note text NOT NULL);
        INSERT INTO ${table} SELECT i, i % 5, -1, 0, repeat('x', 100) FROM generate_series(0, ${ROWS - 1}) i;
        GRANT SELECT ON ${table} TO bench_reader;
        ${policy === null ? '' : `ALTER TABLE ${table} ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON ${table} FOR SELECT USING (${policy});`}
        SELECT changefeed.create_channel('${table}', '${table}');
        CREATE PROCEDURE write_${table}(first bigint, n int) LANGUAGE plpgsql AS $$
        BEGIN
            FOR i IN first .. first + n - 1 LOOP
                UPDATE ${table} SET serial = i WHERE id = i % ${ROWS};
                COMMIT;
            END LOOP;
        END $$;`);
    }
    await cluster.query('VACUUM ANALYZE');
    this.writer = await cluster.connect();
  }

  async end() {
    await this.writer.end();
    this.cluster.remove();
  }

  async ask(method, what, body) {
    const response = await fetch(`http://127.0.0.1:${this.cluster.feedPort}/${what}`, { method, body, signal: AbortSignal.timeout(300_000) });
    const text = await response.text();
    if (!response.ok) throw new Error(`the counting program refused ${what}: ${text}`);
    return text;
  }

  // As many identities, each on a connection of its own, with these tables as channels
  async connect(identities, tables) {
    const wanted = `${identities} ${tables}`;
    if (this.connected === wanted) return;
    const { cluster } = this;
    await this.ask('POST', 'disconnect');
    this.connected = null;
    this.identities = identities;
    for (const table of Object.keys(TABLES)) await cluster.query(`UPDATE ${table} SET owner = id % ${identities}`);
    await cluster.query(`TRUNCATE members; INSERT INTO members SELECT i, i % 5 FROM generate_series(0, ${identities - 1}) i; ANALYZE members`);
    const rows = await cluster.query(`
      SELECT changefeed.make_token(jsonb_build_object('role', 'bench_reader', 'sub', i::text, 'team', i % 5), '1 day') AS token
      FROM generate_series(0, ${identities - 1}) i ORDER BY i`);
    const body = rows.map(({ token }) => `${token} ${tables.join(' ')}\n`).join('');
    const { us } = JSON.parse(await this.ask('POST', 'connect', body));
    this.connected = wanted;
    this.connect_ms = us / 1000;
  }

  // Some changes, to see how fast it is and to have everything ready, then as many as take that many seconds, at most
  // `changes` of them.
  async measure(table, { changes, seconds }) {
    const few = Math.min(20, changes);
    const { changes_per_s: rate } = await this.write(table, few);
    return this.write(table, Math.max(few, Math.min(changes, Math.round(rate * seconds))));
  }

  // Writes n changes as fast as one backend can, and waits until all that follows from them was delivered.
  async write(table, n) {
    const { cluster, identities } = this;
    const { sees } = TABLES[table];
    const first = this.serial + 1;
    this.serial += n;
    // What each identity is to get: rows come in turn, so whole rounds of ROWS and a rest
    const counts = new Array(identities).fill(0);
    const sums = new Array(identities).fill(0n);
    const seers = new Map(); // by row
    for (let row = 0; row < Math.min(ROWS, n); row += 1) {
      const id = (first + row) % ROWS;
      const list = [];
      for (let i = 0; i < identities; i += 1) if (sees(i, id, identities)) list.push(i);
      let [count, sum] = [0, 0n];
      for (let serial = first + row; serial < first + n; serial += ROWS) { count += 1; sum += BigInt(serial); }
      for (const i of list) { counts[i] += count; sums[i] += sum; }
      seers.set(id, list.length);
    }
    const deliveries = counts.reduce((a, b) => a + b, 0);

    await this.ask('POST', 'reset');
    const before = cluster.cpu();
    const began = Date.now();
    await this.writer.query(`CALL write_${table}(${first}, ${n})`);
    const written = Date.now();
    let got;
    for (let waited = 0; ; waited += 1) {
      got = JSON.parse(await this.ask('GET', 'counts'));
      if (got.deliveries >= deliveries) break;
      if (got.errors + got.closed + got.unknown > 0) break;
      if (Date.now() - written > 120_000) {
        throw new Error(`${table}, ${identities} identities: ${got.deliveries} of ${deliveries} deliveries came within two minutes`);
      }
      await sleep(5);
    }
    const after = cluster.cpu();
    for (const name of ['strays', 'errors', 'closed', 'resyncs', 'unknown']) {
      if (got[name] > 0) throw new WrongResult(`${table}, ${identities} identities: the counting program saw ${got[name]} ${name}`);
    }
    const lines = (await this.ask('GET', 'deliveries')).trim().split('\n');
    lines.forEach((line, i) => {
      const [count, sum] = line.split(' ');
      if (Number(count) !== counts[i] || BigInt(sum) !== sums[i]) {
        throw new WrongResult(`${table}, ${identities} identities: identity ${i} got ${line} (changes, sum of serials), not ${counts[i]} ${sums[i]}`);
      }
    });
    const cpu = Object.fromEntries(Object.keys(after).map((kind) => [kind, (after[kind] - before[kind]) / n]));
    const seconds = (got.last_us / 1000 - began) / 1000;
    return {
      changes_per_s: n / seconds,
      deliveries_per_s: deliveries / seconds,
      cpu_us_per_change: cpu.decoder + cpu.feed + cpu.query,
      decoder_us_per_change: cpu.decoder,
      feed_us_per_change: cpu.feed,
      query_us_per_change: cpu.query,
      written_per_s: n / ((written - began) / 1000),
      changes: n, deliveries: got.deliveries, expected: deliveries, connect_ms: this.connect_ms,
    };
  }

  // The reference: one backend that looks, for each change and identity, whether that identity sees the row.
  // What it would do beside that is left out: no network, no decoding, no delivery. checks of them are made.
  async look(table, identities, checks) {
    await this.writer.query(`
      CREATE OR REPLACE FUNCTION pg_temp.look(checks int, identities int) RETURNS bigint LANGUAGE plpgsql AS $$
      DECLARE
          seen bigint := 0;
          yes boolean;
      BEGIN
          FOR i IN 0 .. checks - 1 LOOP
              PERFORM set_config('role', 'bench_reader', true),
                      set_config('request.jwt.claims', format('{"role": "bench_reader", "sub": "%s", "team": %s}', i % identities, i % identities % 5), true);
              SELECT true INTO yes FROM ${table} WHERE id = i / identities % ${ROWS};
              IF found THEN seen := seen + 1; END IF;
          END LOOP;
          RETURN seen;
      END $$`);
    const began = performance.now();
    await this.writer.query('BEGIN');
    const { rows: [{ look }] } = await this.writer.query(`SELECT pg_temp.look(${checks}, ${identities})`);
    await this.writer.query('COMMIT');
    const seconds = (performance.now() - began) / 1000;
    if (Math.abs(Number(look) / checks - 0.2) > 0.05) throw new WrongResult(`${table}: ${look} of ${checks} looks saw the row, not one in five`);
    return { changes_per_s: checks / identities / seconds, cpu_us_per_change: (seconds * 1e6 * identities) / checks, check_us: (seconds * 1e6) / checks };
  }
}
