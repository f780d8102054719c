// Sessions: each is one psql that stays connected.

import { spawn } from 'node:child_process';

import { parseExact } from './json.mjs';

export const quote = (text) => `'${String(text).replaceAll("'", "''")}'`;

let markers = 0;

export class Session {
  #process;
  #queue = [];
  #out = '';
  #err = '';
  #ended = null;

  constructor({ database = process.env.PGDATABASE } = {}) {
    this.#process = spawn('psql', ['-X', '-q', '-A', '-t', '-d', database], {
      env: { ...process.env, PGOPTIONS: '-c client_min_messages=error -c timezone=UTC -c datestyle=ISO -c lc_monetary=C' },
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    this.#process.stdout.setEncoding('utf8').on('data', (chunk) => { this.#out += chunk; this.#look(); });
    this.#process.stderr.setEncoding('utf8').on('data', (chunk) => { this.#err += chunk; this.#look(); });
    this.#process.stdin.on('error', () => {});
    this.ended = new Promise((resolve) => {
      this.#process.on('close', (code) => {
        this.#ended = new Error(`psql ended with status ${code}: ${this.#err}`);
        for (const { reject } of this.#queue.splice(0)) reject(this.#ended);
        resolve(code);
      });
    });
  }

  /** Runs statements, one after the other. Resolves to what they print; rejects if one fails. */
  exec(sql) {
    if (this.#ended) return Promise.reject(this.#ended);
    const marker = `--end-of-answer-${++markers}--`;
    return new Promise((resolve, reject) => {
      this.#queue.push({ marker, resolve, reject, sql });
      this.#process.stdin.write(`${sql}\n;\n\\echo ${marker}\n\\warn ${marker}\n`);
    });
  }

  #look() {
    for (;;) {
      const first = this.#queue[0];
      if (!first) return;
      const out = this.#out.indexOf(`${first.marker}\n`);
      const err = this.#err.indexOf(`${first.marker}\n`);
      if (out < 0 || err < 0) return;
      const text = this.#out.slice(0, out);
      const errors = this.#err.slice(0, err);
      this.#out = this.#out.slice(out + first.marker.length + 1);
      this.#err = this.#err.slice(err + first.marker.length + 1);
      this.#queue.shift();
      if (/^(ERROR|FATAL|PANIC|psql:|connection|server closed)/m.test(errors)) {
        first.reject(new Error(`${errors.trim()}\nin: ${first.sql.slice(0, 500)}`));
      } else {
        first.resolve(text.replace(/\n$/, ''));
      }
    }
  }

  /** The only value of a query, as text. */
  async value(sql) {
    return this.exec(sql);
  }

  /** The rows of a query, as objects with exact numbers. */
  async rows(sql) {
    const text = await this.exec(`SELECT to_jsonb(q)::text FROM (${sql}) q`);
    return text === '' ? [] : text.split('\n').map(parseExact);
  }

  /** What a client with this role and these claims gets from the query. */
  async rowsAs(claims, sql) {
    const text = await this.exec(`BEGIN READ ONLY;
SET LOCAL ROLE "${claims.role}";
DO $$ BEGIN PERFORM set_config('request.jwt.claims', ${quote(JSON.stringify(claims))}, true); END $$;
SELECT to_jsonb(q)::text FROM (${sql}) q;
COMMIT`).catch(async (error) => {
      await this.exec('ROLLBACK');
      throw error;
    });
    return text === '' ? [] : text.split('\n').map(parseExact);
  }

  token(claims, expires = '1 hour') {
    return this.value(`SELECT changefeed.make_token(${quote(JSON.stringify(claims))}, ${quote(expires)})`);
  }

  async close() {
    this.#process.stdin.end();
    await this.ended;
  }
}

/**
 * Changes settings (null: back to the default). When it has ended, the server
 * has told all its processes; what a process is told later comes behind it.
 */
export async function reload(db, settings) {
  for (const [name, value] of Object.entries(settings)) {
    await db.exec(value === null ? `ALTER SYSTEM RESET ${name}` : `ALTER SYSTEM SET ${name} = ${quote(value)}`);
  }
  const asked = await db.value('SELECT clock_timestamp()');
  await db.exec('SELECT pg_reload_conf()');
  // Of the postmaster, which a new session inherits it from
  for (let loaded = false; !loaded;) {
    const fresh = new Session();
    loaded = await fresh.value(`SELECT pg_conf_load_time() > ${quote(asked)}`) === 't';
    await fresh.close();
  }
}
