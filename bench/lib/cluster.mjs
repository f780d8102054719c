// A private cluster with the extension, made by scripts/cluster and removed at the end of the run.

import { execFileSync } from 'node:child_process';
import path from 'node:path';
import { readFileSync } from 'node:fs';

import pg from 'pg';

import { commandOf, cpuOf, family } from './proc.mjs';
import { offer } from './profile.mjs';
import { ROOT, atEnd } from './programs.mjs';

const script = path.join(ROOT, 'scripts/cluster');
let made = 0;

// What the load of a benchmark needs raised, and no user of the product does: one machine is all its
// clients. Scenarios add their own.
const SETTINGS = {
  'changefeed.max_connections': 60000,
  'changefeed.max_handshake_rate': 0,
};

export class Cluster {
  // settings: names and values. Settings that are null are left at the product's default.
  // pgConfig: of another tree of programs, with everything installed; extension: whether the database gets it.
  constructor({ settings = {}, database = 'bench', pgConfig = null, extension = true } = {}) {
    // Under a profiler it may be another one.
    pgConfig ??= process.env.BENCH_PG_CONFIG ?? null;
    this.settings = Object.fromEntries(Object.entries({ ...SETTINGS, ...settings }).filter(([, value]) => value !== null));
    this.data = `/var/tmp/pg_changefeed-bench-${process.pid}-${made += 1}`;
    this.database = database;
    atEnd(() => this.remove());
    const args = ['start', '--data', this.data, '--database', database];
    for (const [name, value] of Object.entries(this.settings)) args.push('--set', `${name}=${value}`);
    // The first one of a run builds and installs what is not up to date.
    if (pgConfig !== null || made > 1) args.push('--no-build');
    if (!extension) args.push('--no-extension');
    this.programs = pgConfig === null ? process.env : { ...process.env, PG_CONFIG: pgConfig };
    const text = execFileSync(script, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'], env: this.programs });
    const env = Object.fromEntries([...text.matchAll(/^(\w+)='?([^'\n]*)'?$/gm)].map(([, name, value]) => [name, value]));
    this.env = env;
    this.host = env.PGHOST;
    this.port = Number(env.PGPORT);
    this.user = env.PGUSER;
    this.feedPort = Number(new URL(env.WS_URL).port);
    offer((kind) => (this.data === null ? [] : this.processes()[kind] ?? []));
    this.postmaster = Number(readFileSync(path.join(env.PGDATA, 'postmaster.pid'), 'utf8').split('\n')[0]);
  }

  get conninfo() {
    return `host=${this.host} port=${this.port} user=${this.user} dbname=${this.database}`;
  }

  conninfoOf(database) {
    return `host=${this.host} port=${this.port} user=${this.user} dbname=${database}`;
  }

  async connect(database = this.database) {
    const client = new pg.Client({ host: this.host, port: this.port, user: this.user, database });
    await client.connect();
    return client;
  }

  async query(text, values, database = this.database) {
    const client = await this.connect(database);
    try {
      return (await client.query(text, values)).rows;
    } finally {
      await client.end();
    }
  }

  async token(claims) {
    const [{ token }] = await this.query("SELECT changefeed.make_token($1::jsonb, '1 day') AS token", [JSON.stringify(claims)]);
    return token;
  }

  // { feed: [pid], decoder: [pid], gateway: [pid, ...], query: [...], launcher: [...], other: [...] }
  processes() {
    const groups = { gateway: [], feed: [], decoder: [], query: [], launcher: [], other: [] };
    const kinds = [['gateway', /pg_changefeed_gateway --link-fd/], ['feed', /changefeed feed worker/], ['decoder', /changefeed decoder/],
      ['query', /changefeed (query|call|slow)/], ['launcher', /changefeed launcher/]];
    for (const pid of family(this.postmaster)) {
      const command = commandOf(pid);
      const kind = kinds.find(([, pattern]) => pattern.test(command));
      groups[kind === undefined ? 'other' : kind[0]].push(pid);
    }
    return groups;
  }

  // CPU time so far of each kind of process of ours, in microseconds
  cpu() {
    const { other, ...ours } = this.processes();
    return Object.fromEntries(Object.entries(ours).map(([kind, pids]) => [kind, pids.reduce((sum, pid) => sum + cpuOf(pid), 0)]));
  }

  remove() {
    if (this.data === null) return;
    const { data } = this;
    this.data = null;
    execFileSync(script, ['stop', '--data', data, '--mode', 'immediate', '--remove'], { stdio: ['ignore', 'ignore', 'inherit'], env: this.programs });
  }
}
