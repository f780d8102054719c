// How fast a client gets its first state, beside what the server itself needs to write the same rows as JSON:
// COPY (SELECT to_jsonb(t) FROM t) TO STDOUT, read by psql.
//
// Ours is measured from the client's first message to "ready": token, rights, the query in a query worker, pages,
// the gateway, the WebSocket, and reading all of it. Parameters (--set): rows (list).

import { execFileSync } from 'node:child_process';
import path from 'node:path';

import { Cluster } from '../lib/cluster.mjs';
import { BIN, finish, firstLine, scratch, start } from '../lib/programs.mjs';
import { WrongResult } from '../lib/runner.mjs';

export const title = 'snapshots, beside COPY of the same rows as JSON';
export const unit = 'rows per second';
export const metrics = { rows_per_s: '/s', mb_per_s: 'MB/s', cpu_us_per_row: 'µs' };

const SYSTEMS = ['pg_changefeed', 'copy to_jsonb'];

export function cases({ quick, tiny, arguments: given = {} }) {
  const rows = given.rows?.split(',').map(Number) ?? (tiny ? [500] : quick ? [50000] : [1000, 200000]);
  return rows.map((n) => ({ name: `${n.toLocaleString('en')} rows`, rows: n, repeats: tiny ? 1 : quick ? 2 : 5, systems: SYSTEMS }));
}

export async function setup({ keep }) {
  keep.cluster = new Cluster();
  await keep.cluster.query("CREATE ROLE bench_reader; SELECT changefeed.allow_role('bench_reader')");
  keep.token = await keep.cluster.token({ role: 'bench_reader' });
  keep.made = new Set();
  keep.versions = (await keep.cluster.query('SELECT version() AS postgres'))[0];
  keep.psql = path.join(execFileSync(process.env.PG_CONFIG, ['--bindir'], { encoding: 'utf8' }).trim(), 'psql');
}

async function make(keep, rows) {
  const table = `rows_${rows}`;
  if (keep.made.has(rows)) return table;
  keep.made.add(rows);
  await keep.cluster.query(`
    CREATE TABLE ${table} (id bigint PRIMARY KEY, customer_id int NOT NULL, status text NOT NULL, price numeric(10, 2) NOT NULL,
      paid boolean NOT NULL, created_at timestamptz NOT NULL, note text, tags text[]);
    INSERT INTO ${table} SELECT i, i % 1000, 'shipped', i / 7.0, i % 2 = 0, timestamptz '2026-01-01' + i * interval '1 s',
      CASE WHEN i % 3 > 0 THEN repeat('x', 60) END, ARRAY['a', 'b' || i % 10] FROM generate_series(1, ${rows}) i;
    GRANT SELECT ON ${table} TO bench_reader;
    SELECT changefeed.create_channel('${table}', '${table}')`);
  await keep.cluster.query(`VACUUM ANALYZE ${table}`);
  return table;
}

async function ours(keep, rows, table) {
  const { cluster } = keep;
  const before = cluster.cpu();
  const client = start(path.join(BIN, 'client'), ['--port', String(cluster.feedPort), '--path', '/v1/socket',
    '--send', JSON.stringify({ type: 'connect', id: 1, token: keep.token }),
    '--send', JSON.stringify({ type: 'subscribe', id: 2, channel: table }),
    '--ready', '{"type":"ready"', '--out', path.join(scratch, 'snapshot.received')]);
  const [, us, bytes] = (await firstLine(client, 'the client')).split(' ').map(Number);
  const after = cluster.cpu();
  client.stdin.end();
  await finish(client, 'the client');
  if (bytes < rows * 100) throw new WrongResult(`${rows} rows came as ${bytes} bytes`);
  const cpu = Object.keys(after).reduce((sum, kind) => sum + after[kind] - before[kind], 0);
  return { rows_per_s: (rows * 1e6) / us, mb_per_s: bytes / us, cpu_us_per_row: cpu / rows };
}

// By the clock of the server, so that neither psql's start nor its connection counts
async function copy(keep, rows, table) {
  const { cluster } = keep;
  const text = execFileSync(keep.psql, ['-X', '-q', '-h', cluster.host, '-p', String(cluster.port), '-U', cluster.user, '-d', cluster.database,
    '-c', '\\timing on', '-c', `\\copy (SELECT to_jsonb(t) FROM ${table} t) TO '/dev/null'`], { encoding: 'utf8' });
  const ms = Number(/Time: ([\d.]+) ms/.exec(text)[1]);
  return { rows_per_s: (rows * 1000) / ms };
}

export async function measure({ keep }, each, system) {
  const table = await make(keep, each.rows);
  return system === 'pg_changefeed' ? ours(keep, each.rows, table) : copy(keep, each.rows, table);
}

export const ratios = [{ name: 'rate against COPY', metric: 'rows_per_s', of: 'pg_changefeed', to: 'copy to_jsonb' }];
export const targets = [
  { name: 'snapshot, share of COPY\'s rate', ratio: 'rate against COPY', above: true, limit: 0.7, case: (each) => each.rows >= 50000 },
];

export async function teardown({ keep }) {
  keep.cluster?.remove();
}

export const line = (result) => `snapshot: ${result.cases.map((each) => `${each.name} ${Math.round(each.systems.pg_changefeed.metrics?.rows_per_s?.median ?? NaN)} rows/s, ${
  Math.round((each.ratios[0]?.of_medians ?? NaN) * 100)} % of COPY`).join('; ')}`;
