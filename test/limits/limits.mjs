// node test/limits/limits.mjs [--quick] [--only NAME,...] [--update]: what `make limits` runs.
//
// Takes the database to its limits, and ours, one after the other, and tells what came of it: what happened, what clients
// got, and how much memory each process had at most (its own, without the shared buffers). Each item has a server of its
// own with default settings but those that it names. It ends with status 1 if something was not as it has to be: a
// process that has ended, a client that was not told, rows that are missing.
//
// Results are kept in build/limits.json; --update puts the table of them into doc/limits.md. --quick has small numbers, and says nothing about limits.

import { existsSync, readFileSync, readdirSync, readlinkSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import assert from 'node:assert/strict';

import { Cluster } from '../../bench/lib/cluster.mjs';
import { Load } from '../../bench/lib/load.mjs';
import { memoryOf } from '../../bench/lib/proc.mjs';
import { BIN, ROOT, finish, firstLine, scratch, sleep, start, until } from '../../bench/lib/programs.mjs';

const WebSocket = createRequire(new URL('../package.json', import.meta.url))('ws');
const quick = process.argv.includes('--quick');
const only = process.argv.includes('--only') ? process.argv[process.argv.indexOf('--only') + 1].split(',') : null;
const n = (value) => Math.round(value).toLocaleString('en');
const seconds = (ms) => `${(ms / 1000).toFixed(ms < 10000 ? 1 : 0)} s`;
const mb = (bytes) => `${n(bytes / 1048576)} MB`;

/** A client that parses nothing it need not, as messages may be large. */
class Client {
  counts = {}; // by type of message
  bytes = 0;
  last = {}; // short messages, by type
  onMessage = null;

  static async connect(cluster, token) {
    const client = new Client();
    client.socket = new WebSocket(`ws://127.0.0.1:${cluster.feedPort}/v1/socket`, { perMessageDeflate: false, maxPayload: 1 << 30 });
    client.socket.on('message', (data) => client.#take(data));
    client.socket.on('error', () => {});
    client.ended = new Promise((resolve) => { client.socket.on('close', (code) => { client.closed = code; resolve(code); }); });
    await new Promise((resolve, reject) => { client.socket.on('open', resolve); client.socket.on('error', reject); });
    client.say({ type: 'connect', id: 'c', token });
    await client.until('connected');
    return client;
  }

  #take(data) {
    const head = data.subarray(0, 60).toString('latin1');
    const type = /^\{"type":"(\w+)"/.exec(head)?.[1];
    this.bytes += data.length;
    this.counts[type] = (this.counts[type] ?? 0) + 1;
    if (data.length < 65536) this.last[type] = JSON.parse(String(data));
    if (type === 'ping') this.say({ type: 'pong' });
    this.onMessage?.(type, data);
  }

  say(message) {
    if (this.socket.readyState === 1) this.socket.send(JSON.stringify(message));
  }

  subscribe(channel, fields = {}) {
    this.say({ type: 'subscribe', id: channel, channel, ...fields });
  }

  until(type, count = 1, patience = quick ? 120000 : 600000) {
    return until(`${count} ${type}; there are ${JSON.stringify(this.counts)}, ${JSON.stringify(this.last.error ?? this.last.revoked ?? null)}`, () => (this.counts[type] ?? 0) >= count, patience);
  }
}

/** A server for one item: a role, its token, and the most memory that each kind of process had. */
class Item {
  most = {};

  static async start(settings = {}, { database } = {}) {
    const item = new Item();
    item.cluster = new Cluster({ settings: { 'changefeed.max_connections': null, 'changefeed.max_handshake_rate': null, ...settings }, ...database ? { database } : {} });
    item.db = await item.cluster.connect();
    item.db.on('error', () => {});
    await item.run("CREATE ROLE reader; SELECT changefeed.allow_role('reader')");
    item.token = await item.cluster.token({ role: 'reader', sub: 'ada' });
    item.pids = item.cluster.processes();
    item.timer = setInterval(() => item.look(), 100);
    return item;
  }

  async run(sql) {
    const result = await this.db.query(sql);
    return (Array.isArray(result) ? result.at(-1) : result).rows;
  }

  async value(sql) {
    return Object.values((await this.run(sql))[0])[0];
  }

  /** Ready to be read: the table and the channel of its name. */
  async publish(table) {
    await this.run(`GRANT SELECT ON ${table} TO reader; SELECT changefeed.create_channel('${table}', '${table}')`);
  }

  look() {
    const now = this.cluster.processes();
    for (const kind of ['decoder', 'feed', 'query', 'gateway']) {
      for (const pid of now[kind]) {
        try {
          this.most[kind] = Math.max(this.most[kind] ?? 0, memoryOf(pid).private_kib * 1024);
        } catch { /* it has ended meanwhile */ }
      }
    }
  }

  forget() {
    this.most = {};
  }

  /** Everybody who was there at the beginning still is. */
  async check() {
    this.look();
    const now = this.cluster.processes();
    for (const kind of ['decoder', 'feed', 'gateway']) assert.deepEqual(now[kind], this.pids[kind], `${kind} has ended`);
  }

  /** When what was committed until now has been delivered to the client. */
  async synced(client) {
    const before = client.counts.synced ?? 0;
    client.say({ type: 'sync', id: before });
    await client.until('synced', before + 1);
  }

  async connect() {
    return until('a client', () => Client.connect(this.cluster, this.token).catch(() => null), 30000).then(() => Client.connect(this.cluster, this.token));
  }

  async stop() {
    clearInterval(this.timer);
    await this.db.end().catch(() => {});
    this.cluster.remove();
  }
}

const rows = [];
function tell(what, limit, outcome, item) {
  const memory = ['decoder', 'feed', 'query', 'gateway'].map((kind) => (item?.most[kind] === undefined ? '' : mb(item.most[kind])));
  rows.push([what, limit, outcome, ...memory]);
  console.log(`  ${what}: ${outcome}; decoder ${memory[0]}, feed worker ${memory[1]}, query worker ${memory[2]}, gateway ${memory[3]}`);
}

/** The files of snapshots that the gateway has open. */
function files(item) {
  let count = 0;
  for (const pid of item.cluster.processes().gateway) {
    for (const fd of readdirSync(`/proc/${pid}/fd`)) {
      try {
        if (readlinkSync(`/proc/${pid}/fd/${fd}`).includes('_changefeed.')) count += 1;
      } catch { /* closed */ }
    }
  }
  return count;
}

const ITEMS = {
  async policies() {
    for (const [what, body] of [['sleeps', 'PERFORM pg_sleep(3600)'], ['loops', 'LOOP END LOOP'],
      ['loops and catches cancels', 'LOOP BEGIN LOOP END LOOP; EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP']]) {
      const item = await Item.start();
      try {
        await item.run(`CREATE TABLE judged (id int PRIMARY KEY, n int); INSERT INTO judged VALUES (1, 0);
          CREATE FUNCTION trap(n int) RETURNS bool LANGUAGE plpgsql STABLE AS $$ BEGIN
            IF current_setting('request.jwt.claims')::json->>'sub' = 'mallory' AND n > 0 THEN ${body}; END IF; RETURN true; END $$;
          ALTER TABLE judged ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON judged USING (trap(n))`);
        await item.publish('judged');
        const good = [];
        for (let i = 0; i < 10; i += 1) {
          const client = await Client.connect(item.cluster, await item.cluster.token({ role: 'reader', sub: `good ${i}` }));
          client.subscribe('judged');
          await client.until('ready');
          good.push(client);
        }
        const mallory = await Client.connect(item.cluster, await item.cluster.token({ role: 'reader', sub: 'mallory' }));
        mallory.subscribe('judged');
        await mallory.until('ready');
        const change = async (sql) => {
          const from = performance.now();
          for (let i = 1; i <= 50; i += 1) await item.run(sql);
          await Promise.all(good.map((client) => item.synced(client)));
          return performance.now() - from;
        };
        const without = await change('UPDATE judged SET n = n - 1');
        const begun = performance.now();
        const served = await change('UPDATE judged SET n = abs(n) + 1');
        for (const client of good) assert.equal(client.counts.transaction, 100);
        await mallory.until('revoked', 1, 120000);
        assert.equal(mallory.last.revoked.code, '57014');
        const told = performance.now() - begun;
        await item.check();
        tell(`a policy that ${what}, for one of 11 clients`, '`policy_timeout` 1 s', `the others had all of 50 changes after ${seconds(served)} (without it: ${seconds(without)}); it is \`revoked\` with 57014 after ${seconds(told)}`, item);
      } finally {
        await item.stop();
      }
    }
  },

  async large_table() {
    const count = quick ? 100000 : 10000000;
    const item = await Item.start({ 'changefeed.policy_timeout': '30s' });
    try {
      await item.run(`CREATE TABLE big (id bigint PRIMARY KEY, customer int NOT NULL, status text NOT NULL, price numeric(10,2) NOT NULL);
        INSERT INTO big SELECT i, i % 1000, 'shipped', i / 7.0 FROM generate_series(1, ${count}) i`);
      await item.publish('big');
      await item.run('VACUUM ANALYZE big');
      item.forget();
      const reader = start(path.join(BIN, 'client'), ['--port', String(item.cluster.feedPort), '--path', '/v1/socket',
        '--send', JSON.stringify({ type: 'connect', id: 1, token: item.token }), '--send', JSON.stringify({ type: 'subscribe', id: 2, channel: 'big' }),
        '--pong', '{"type":"pong"}', '--ready', '{"type":"ready"', '--out', path.join(scratch, 'big')]);
      const [, us, bytes] = (await firstLine(reader, 'the client')).split(' ').map(Number);
      reader.stdin.end();
      await finish(reader, 'the client');
      assert.equal(Number(await item.value('SELECT sum(snapshot_rows) FROM changefeed.stat_channels').catch(() => count)), count);
      tell(`a snapshot of ${n(count)} rows`, '`policy_timeout` x 60', `${mb(bytes)} ready after ${seconds(us / 1000)}, ${n(count / (us / 1e6))} rows/s`, item);

      item.forget();
      for (const when of ['query', 'pages']) {
        const client = await item.connect();
        client.subscribe('big');
        const busy = () => item.value("SELECT count(*)::int FROM pg_stat_activity WHERE query = 'reading a snapshot' AND state = 'active'");
        if (when === 'query') await until('it is read', async () => await busy() === 1);
        else {
          await until('a page', () => client.counts.snapshot > 0, 600000);
          client.socket.pause();
        }
        const begun = performance.now();
        client.socket.terminate();
        await until('the query has ended', async () => await busy() === 0 && files(item) === 0);
        tell(`the same, the client leaves ${when === 'query' ? 'while the table is read' : 'while it is sent'}`, '', `${when === 'query' ? 'the query has ended' : 'the file is gone'} after ${n(performance.now() - begun)} ms`, item);
      }
      await item.check();
    } finally {
      await item.stop();
    }
  },

  async large_transaction() {
    const count = quick ? 600000 : 5000000;
    const item = await Item.start();
    try {
      await item.run('CREATE TABLE big (id int PRIMARY KEY, n int NOT NULL); CREATE TABLE other (id int PRIMARY KEY, n int); INSERT INTO other VALUES (1, 0)');
      await item.publish('big');
      await item.publish('other');
      const client = await item.connect();
      client.subscribe('big?id=lt.1000');
      client.subscribe('other');
      await client.until('ready', 2);
      item.forget();
      const begun = performance.now();
      await item.run(`INSERT INTO big SELECT i, 0 FROM generate_series(1, ${count}) i`);
      const written = performance.now() - begun;
      await item.run('UPDATE other SET n = n + 1');
      await client.until('ready', 3);
      await item.synced(client);
      assert.equal(client.last.resync.reason, 'transaction_too_large');
      assert.equal(client.counts.resync, 1);
      assert.equal(client.last.snapshot.rows.length, 999);
      assert.equal(client.counts.transaction, 1, 'the other table');
      await item.check();
      const spilled = await item.value('SELECT sum(spill_bytes)::bigint FROM pg_stat_replication_slots');
      tell(`a transaction of ${n(count)} rows`, '`max_transaction` 16 MB', `written in ${seconds(written)}, all delivered after ${seconds(performance.now() - begun)}: \`resync\` (transaction_too_large) and a snapshot; ${mb(Number(spilled))} spilled to disk`, item);
    } finally {
      await item.stop();
    }
  },

  async channels() {
    for (const [count, tables] of quick ? [[500, 500], [100, 1]] : [[10000, 10000], [1000, 1]]) {
      const item = await Item.start({ max_locks_per_transaction: 1024 });
      try {
        for (let i = 0; i < tables; i += 1000) {
          await item.run(`DO $$ BEGIN FOR i IN ${i} .. ${Math.min(i + 999, tables - 1)} LOOP
            EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, a int); INSERT INTO t%s VALUES (1, 0); GRANT SELECT ON t%s TO reader', i, i, i); END LOOP; END $$`);
        }
        const client = await item.connect();
        await item.synced(client);
        const feed = () => item.cluster.cpu().feed / 1e6;
        const begun = performance.now();
        for (let i = 0; i < count; i += 100) {
          await item.run(`DO $$ BEGIN FOR i IN ${i} .. ${i + 99} LOOP PERFORM changefeed.create_channel('channel_' || i, ('t' || i % ${tables})::regclass); END LOOP; END $$`);
        }
        await item.synced(client);
        const made = performance.now() - begun;
        const cpu = feed();
        for (let i = 0; i < 10; i += 1) await item.run(`SELECT changefeed.create_channel('more_${i}', 't0')`);
        await item.synced(client);
        const spent = (feed() - cpu) / 10;
        const step = Math.ceil(count / 900);
        for (let i = 0; i < count; i += step) client.subscribe(`channel_${i}`);
        await client.until('ready', Math.ceil(count / step));
        item.forget();
        const before = feed();
        for (let i = 0; i < 20; i += 1) await item.run('UPDATE t0 SET a = a + 1');
        await item.synced(client);
        const each = (feed() - before) / 20;
        await item.check();
        tell(`${n(count)} channels on ${tables === 1 ? 'one table' : 'as many tables'}`, '',
          `made in ${seconds(made)}; one more costs the feed worker ${(spent * 1000).toFixed(1)} ms of CPU, a change of a table ${(each * 1000).toFixed(1)} ms`, item);
      } finally {
        await item.stop();
      }
    }
  },

  async connections() {
    const wished = quick ? 500 : 50000;
    const item = await Item.start({ 'changefeed.max_connections': 60000, 'changefeed.max_handshake_rate': 0, 'changefeed.gateways': quick ? 1 : 2 });
    const loads = [];
    try {
      await item.run("CREATE TABLE feed (id int PRIMARY KEY, n bigint NOT NULL DEFAULT 0, sent_us bigint NOT NULL DEFAULT 0, body text NOT NULL DEFAULT ''); INSERT INTO feed VALUES (1); GRANT SELECT ON feed TO reader; SELECT changefeed.create_channel('feed:{id}', 'feed')");
      const limit = Number(/Max open files +\d+ +(\d+)/.exec(readFileSync(`/proc/${item.pids.gateway[0]}/limits`, 'utf8'))[1]);
      const possible = Math.min(wished, item.pids.gateway.length * (limit - Math.ceil(limit / 4) - 64) - 100);
      const begun = performance.now();
      for (let rest = possible; rest > 0; rest -= 14000) {
        const load = new Load();
        loads.push(load);
        await load.open({ protocol: 'changefeed', port: item.cluster.feedPort, channel: 'feed:{i}', token: item.token, connections: Math.min(rest, 14000), sources: 4 });
      }
      const opened = performance.now() - begun;
      await sleep(3000);
      item.forget();
      item.look();
      const sent = performance.now();
      await item.run('UPDATE feed SET n = 1, sent_us = 1');
      const figures = await Promise.all(loads.map(async (load) => {
        await until('the change at everybody', async () => (await load.stats()).deliveries >= 1, 60000);
        return load;
      }));
      let got = 0;
      await until('the change at all', async () => {
        got = 0;
        for (const load of figures) got += (await load.stats()).deliveries;
        return got === possible;
      }, 60000);
      const delivered = performance.now() - sent;
      await item.check();
      tell(`${n(possible)} connections`, `descriptors: ${n(limit)} for each of ${item.pids.gateway.length} gateways`, `open after ${seconds(opened)}; one change reaches all within ${seconds(delivered)}`, item);
    } finally {
      for (const load of loads) await load.quit().catch(() => {});
      await item.stop();
    }
  },

  async values() {
    const f = quick ? 10 : 1;
    for (const [what, type, value] of [
      [`a text of ${n(500 / f)} MB that is packed well`, 'text', `repeat('x', ${500000000 / f})`],
      [`a text of ${n(500 / f)} MB that cannot be packed`, 'text', `(SELECT string_agg(sha512(i::text::bytea)::text, '') FROM generate_series(1, ${3846153 / f}) i)`],
      [`a jsonb of ${n(200 / f)} MB`, 'jsonb', `(SELECT jsonb_agg(sha512(i::text::bytea)::text) FROM generate_series(1, ${1500000 / f}) i)`],
    ]) {
      const item = await Item.start({ 'changefeed.history_wal_size': '8GB' });
      try {
        await item.run(`CREATE TABLE t (id int PRIMARY KEY, name text, body ${type}); CREATE TABLE other (id int PRIMARY KEY, n int); INSERT INTO other VALUES (1, 0)`);
        await item.publish('t');
        await item.publish('other');
        const client = await item.connect();
        const other = await item.connect();
        client.subscribe('t');
        await client.until('ready');
        other.subscribe('t?select=name');
        other.subscribe('other');
        await other.until('ready', 2);
        item.forget();
        let begun = performance.now();
        await item.run(`INSERT INTO t VALUES (1, 'one', ${value})`);
        const written = performance.now() - begun;
        begun = performance.now();
        await item.run('UPDATE other SET n = n + 1');
        await other.until('transaction');
        const held = performance.now() - begun;
        await client.until('revoked');
        assert.equal(client.last.revoked.code, '54000');
        await other.until('ready', 3);
        assert.equal(other.last.snapshot.rows.length, 1);
        await item.check();
        tell(what, 'a row of 15 MB as JSON', `written in ${seconds(written)}; the next change of another table arrives ${seconds(held)} behind it; \`revoked\` with 54000 for who reads the column, \`resync\` for who does not`, item);
        item.forget();
        let failed = null;
        begun = performance.now();
        await item.run("UPDATE t SET name = 'two'").catch((error) => { failed = error.message; });
        await item.synced(other);
        await item.check();
        tell(`${what}: another column is updated`, '`REPLICA IDENTITY FULL`', failed === null ? `the old row is in the WAL as a whole; delivered after ${seconds(performance.now() - begun)}` : `the server refuses the UPDATE: ${failed}`, item);
      } finally {
        await item.stop();
      }
    }
  },

  async wide_rows() {
    const columns = 1600;
    const item = await Item.start();
    try {
      await item.run(`CREATE TABLE wide (${Array.from({ length: columns }, (_, i) => (i === 0 ? 'c0 int PRIMARY KEY' : `c${i} int`)).join(', ')})`);
      await item.publish('wide');
      const client = await item.connect();
      client.subscribe('wide');
      await client.until('ready');
      await item.run(`INSERT INTO wide SELECT ${Array.from({ length: columns }, (_, i) => (i === 0 ? 'i' : '1')).join(', ')} FROM generate_series(1, 1000) i`);
      await item.run('UPDATE wide SET c1599 = 2 WHERE c0 = 1');
      await item.synced(client);
      assert.deepEqual(client.last.transaction.changes.map(({ set }) => set), [{ c1599: 2 }]);
      const late = await item.connect();
      late.subscribe('wide');
      await late.until('ready');
      assert.ok(late.bytes > 1000 * columns * 9, `${late.bytes}`);
      await item.check();
      tell(`rows of ${n(columns)} columns, 1,000 in a transaction`, '', `sent (${mb(client.bytes)}), an UPDATE of one column as that column, a snapshot of ${mb(late.bytes)}`, item);
    } finally {
      await item.stop();
    }
  },

  async other_databases() {
    const item = await Item.start({ 'changefeed.history_wal_size': '256MB', checkpoint_timeout: '30s', max_wal_size: '1GB' });
    try {
      await item.run('CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 0)');
      await item.publish('t');
      await item.run('CREATE DATABASE busy');
      const busy = await item.cluster.connect('busy');
      await busy.query('CREATE TABLE big (id int, pad text)');
      const client = await item.connect();
      client.subscribe('t');
      await client.until('ready');
      const slot = async () => (await item.run("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint AS held, (SELECT coalesce(sum(spill_bytes), 0)::bigint FROM pg_stat_replication_slots) AS spilled FROM pg_replication_slots"))[0];
      const first = await item.value('SELECT pg_current_wal_lsn()');
      const rounds = quick ? 3 : 10;
      item.forget();
      let most = 0;
      let late = 0;
      for (let i = 0; i < rounds; i += 1) {
        const writing = busy.query("INSERT INTO big SELECT i, repeat('x', 1000) FROM generate_series(1, 200000) i");
        let writes = true;
        writing.finally(() => { writes = false; }).catch(() => {});
        while (writes) {
          const begun = performance.now();
          const before = client.counts.transaction ?? 0;
          await item.run('UPDATE t SET n = n + 1');
          await client.until('transaction', before + 1);
          late = Math.max(late, performance.now() - begun);
          most = Math.max(most, Number((await slot()).held));
          await sleep(100);
        }
        await writing;
        await busy.query('TRUNCATE big');
      }
      const wal = Number(await item.value(`SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '${first}')::bigint`));
      await until('the position has advanced', async () => Number((await slot()).held) < 256 * 1048576, 60000);
      const { spilled } = await slot();
      assert.equal(client.counts.resync, undefined, 'nobody starts again');
      assert.ok(most < 2 * 256 * 1048576, `WAL held: ${most}`);
      await item.check();
      await busy.end();
      tell(`another database writes ${mb(wal)} of WAL in ${rounds} transactions`, '`history_wal_size` 256 MB', `changes arrive after at most ${seconds(late)}; the slot held at most ${mb(most)}; ${mb(Number(spilled))} spilled`, item);
    } finally {
      await item.stop();
    }
  },
};

// What was found out before, so that items can be done one at a time
const store = path.join(ROOT, 'build/limits.json');
const found = existsSync(store) ? JSON.parse(readFileSync(store, 'utf8')) : {};
let failed = false;
for (const [name, run] of Object.entries(ITEMS)) {
  if (only !== null && !only.includes(name)) continue;
  console.log(name);
  try {
    rows.splice(0);
    await run();
    if (!quick) {
      if (existsSync(store)) Object.assign(found, JSON.parse(readFileSync(store, 'utf8')));
      found[name] = [...rows];
      writeFileSync(store, JSON.stringify(found, null, 1));
    }
  } catch (error) {
    failed = true;
    console.log(`FAILED: ${name}: ${error.stack}`);
  }
}
const table = ['| what | bounded by | what happens | decoder | feed worker | query worker | gateway |', '|---|---|---|---|---|---|---|',
  ...Object.keys(ITEMS).flatMap((name) => found[name] ?? []).map((row) => `| ${row.join(' | ')} |`)].join('\n');
console.log(`\n${table}`);
if (process.argv.includes('--update') && !failed) {
  const file = path.join(ROOT, 'doc/limits.md');
  const text = readFileSync(file, 'utf8');
  writeFileSync(file, text.replace(/(<!-- limits -->\n)[\s\S]*?(<!-- \/limits -->)/, `$1${table}\n$2`));
}
process.exitCode = failed ? 1 : 0;
