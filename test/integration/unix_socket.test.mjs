// Listening on a Unix socket, beside the port and instead of it.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import { dirname, join } from 'node:path';
import { after, before, describe, test } from 'node:test';

import { giveAway } from './lib/certificates.mjs';
import { assertSame, Client, until } from './lib/client.mjs';
import { logged } from './lib/log.mjs';
import { quote, Session } from './lib/psql.mjs';

const { port } = new URL(process.env.WS_URL);

describe('Unix socket', () => {
  let db;
  let token;
  let directory;
  let path;
  const clients = [];

  before(async () => {
    directory = giveAway(mkdtempSync(join(dirname(process.env.CLUSTER_DATA), 'socket.')), 0o755);
    path = join(directory, 'feed');
    db = new Session();
    await db.exec(`CREATE SCHEMA us; CREATE ROLE us_web; GRANT USAGE ON SCHEMA us TO us_web;
      ALTER DEFAULT PRIVILEGES IN SCHEMA us GRANT SELECT ON TABLES TO us_web;
      SELECT changefeed.allow_role('us_web');
      CREATE TABLE us.items (id int PRIMARY KEY, n int);
      INSERT INTO us.items VALUES (1, 1);
      SELECT changefeed.create_channel('us_items', 'us.items')`);
    token = await db.token({ role: 'us_web' });
  });

  after(async () => {
    for (const client of clients) await client.cut();
    await db?.close();
    rmSync(directory, { recursive: true, force: true });
  });

  /** The feed worker starts again, with these settings of the database. */
  async function restart(settings) {
    const database = process.env.PGDATABASE;
    await db.exec(['port', 'unix_socket', 'unix_socket_mode'].map((name) => `ALTER DATABASE ${database} RESET changefeed.${name}`).join(';'));
    for (const [name, value] of Object.entries(settings)) await db.exec(`ALTER DATABASE ${database} SET changefeed.${name} = ${quote(value)}`);
    const pid = await until(() => db.value('SELECT feed_worker_pid FROM changefeed.stat_feed'), 'a feed worker');
    await db.exec(`SELECT pg_terminate_backend(${pid})`);
    await until(async () => !['', pid].includes(await db.value('SELECT feed_worker_pid FROM changefeed.stat_feed')), 'another feed worker');
  }

  const get = (where, headers = {}) => new Promise((resolve, reject) => {
    http.get({ ...where, path: '/', headers: { host: 'localhost', ...headers }, agent: false }, (answer) => {
      let body = '';
      answer.setEncoding('utf8').on('data', (data) => { body += data; }).on('end', () => resolve({ status: answer.statusCode, body }));
    }).on('error', reject);
  });

  async function converges(what) {
    const client = await until(() => Client.connect({ url: `ws+unix:${path}:/v1/socket`, token, headers: { host: 'localhost' } }).catch(() => {}), 'the socket answers');
    clients.push(client);
    const items = await client.openSoon('us_items');
    await db.exec('UPDATE us.items SET n = n + 1; INSERT INTO us.items SELECT max(id) + 1, 0 FROM us.items');
    await client.settle();
    client.check();
    assertSame(items.rows(), await db.rows('SELECT * FROM us.items'), what);
  }

  test('what is in the way: a server that answers and what is no socket stay, a left-over goes', async () => {
    const server = net.createServer((socket) => socket.on('error', () => {}).end('mine'));
    await new Promise((resolve) => server.listen(path, resolve));
    giveAway(path, 0o777);
    const { wait: said } = logged();
    await restart({ unix_socket: path, unix_socket_mode: '0620' });
    await said(/could not listen on Unix socket ".*feed": Address already in use/);
    assert.equal(await db.value('SELECT port IS NULL FROM changefeed.stat_feed'), 't', 'not only on the port');
    await new Promise((resolve, reject) => net.connect(path).on('data', (data) => (String(data) === 'mine' ? resolve() : reject(new Error(data)))).on('error', reject));
    await new Promise((resolve) => server.close(resolve));

    writeFileSync(path, 'precious');
    await db.exec('SELECT pg_reload_conf()');
    await said(/HINT: .*There is a file of this name that is no socket/);
    assert.equal(readFileSync(path, 'utf8'), 'precious');
    rmSync(path);

    const dead = spawn(process.execPath, ['-e', `require('net').createServer().listen(${JSON.stringify(path)}, () => console.log('up'))`]);
    await new Promise((resolve) => dead.stdout.once('data', resolve));
    dead.kill('SIGKILL');
    await new Promise((resolve) => dead.once('close', resolve));
    giveAway(path, 0o755);
    await db.exec('SELECT pg_reload_conf()');
    await converges('over the new socket');
  });

  test('beside the port', async () => {
    assert.equal(statSync(path).mode & 0o777, 0o620);
    assert.equal((await get({ port })).status, 200);
    assert.equal(await db.value('SELECT port FROM changefeed.stat_feed'), port);
  });

  test('what is for this machine only is not served to whoever may come through a proxy', async () => {
    const refused = async (where, headers) => {
      const { status, body } = await get(where, headers);
      assert.equal(`${status} ${JSON.parse(body).code}`, '403 42501', JSON.stringify(headers));
    };
    await refused({ socketPath: path });
    for (const [name, value] of [
      ['X-Forwarded-For', '192.0.2.1'], ['X-Forwarded-For', '127.0.0.1'], ['Forwarded', 'for=192.0.2.1'], ['X-Real-IP', '127.0.0.1'],
      ['X-Forwarded-Proto', 'https'], ['X-Forwarded-Host', 'localhost'], ['Via', '1.1 proxy'],
    ]) await refused({ port }, { [name]: value });
    await db.exec("ALTER SYSTEM SET changefeed.allowed_hosts = 'feed.example.com'; SELECT pg_reload_conf()");
    await until(() => get({ port }, { host: 'feed.example.com' }).then(({ body }) => !body.includes('forbidden_host')), 'the host is allowed');
    await refused({ port }, { host: 'feed.example.com' });
    await refused({ port }, { host: '192.0.2.1' });
    for (const host of ['127.0.0.1', `127.0.0.1:${port}`, 'LOCALHOST', '[::1]']) assert.equal((await get({ port }, { host })).status, 200, host);
    await db.exec('ALTER SYSTEM RESET changefeed.allowed_hosts; SELECT pg_reload_conf()');
  });

  test('a proxy on it says who its clients are, if it is trusted', async () => {
    const address = async () => {
      const client = await until(() => Client.connect({ url: `ws+unix:${path}:/v1/socket`, token, headers: { host: 'localhost', 'X-Forwarded-For': '192.0.2.1' } }).catch(() => {}), 'the socket answers');
      const seen = await db.value('SELECT address FROM changefeed.stat_connections ORDER BY id DESC LIMIT 1');
      await client.close();
      return seen;
    };
    assert.equal(await address(), 'local');
    await db.exec("ALTER SYSTEM SET changefeed.trusted_proxies = 'unix'; SELECT pg_reload_conf()");
    await until(async () => await address() === '192.0.2.1', 'the proxy is trusted');
    await db.exec('ALTER SYSTEM RESET changefeed.trusted_proxies; SELECT pg_reload_conf()');
  });

  test('instead of the port', async () => {
    await restart({ unix_socket: path, port: 0 });
    await converges('over the socket alone');
    await assert.rejects(get({ port }), { code: 'ECONNREFUSED' });
    assert.equal(await db.value('SELECT port IS NULL FROM changefeed.stat_feed'), 't');
  });

  test('the files are removed at the end', async () => {
    await restart({});
    assert.ok(!existsSync(path) && !existsSync(`${path}.lock`));
  });
});
