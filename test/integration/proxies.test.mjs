// Reverse proxies, with the very files that doc/examples has: clients converge
// through them, over wss, and come back when the proxy goes.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import https from 'node:https';
import net from 'node:net';
import { dirname, join } from 'node:path';
import { after, before, describe, test } from 'node:test';

import { Certificates, giveAway } from './lib/certificates.mjs';
import { assertSame, Client, until } from './lib/client.mjs';
import { Follower } from './lib/follower.mjs';
import { quote, Session } from './lib/psql.mjs';

const HOST = 'feed.example.com';
const { uid, gid } = statSync(process.env.CLUSTER_DATA);
const example = (name) => readFileSync(new URL(`../../doc/examples/${name}`, import.meta.url), 'utf8');

/** Each of these has to be in the file, and is replaced. */
function adapt(text, replacements) {
  for (const [from, to] of Object.entries(replacements)) {
    assert.ok(text.includes(from), `the example has "${from}"`);
    text = text.replaceAll(from, to);
  }
  return text;
}

const freePort = () => new Promise((resolve) => {
  const server = net.createServer().listen(0, '127.0.0.1', () => {
    const { port } = server.address();
    server.close(() => resolve(port));
  });
});

describe('proxies', () => {
  let db;
  let token;
  let directory;
  let certificates;
  let pair;
  let socket;
  const running = new Set();
  const followers = [];

  before(async () => {
    directory = giveAway(mkdtempSync(join(dirname(process.env.CLUSTER_DATA), 'proxy.')), 0o755);
    certificates = new Certificates(directory);
    pair = certificates.make(HOST);
    socket = join(directory, 'feed');
    db = new Session();
    const database = process.env.PGDATABASE;
    await db.exec(`CREATE SCHEMA px; CREATE ROLE px_web; GRANT USAGE ON SCHEMA px TO px_web;
      ALTER DEFAULT PRIVILEGES IN SCHEMA px GRANT SELECT ON TABLES TO px_web;
      SELECT changefeed.allow_role('px_web');
      CREATE TABLE px.items (id int PRIMARY KEY, n int, text text);
      INSERT INTO px.items SELECT i, i, repeat('x', 1000) FROM generate_series(1, 500) i;
      SELECT changefeed.create_channel('px_items', 'px.items');
      ALTER SYSTEM SET changefeed.allowed_hosts = '${HOST}'; SELECT pg_reload_conf();
      ALTER DATABASE ${database} SET changefeed.unix_socket = ${quote(socket)}`);
    token = await db.token({ role: 'px_web' });
    await restart();
    await until(() => new Promise((resolve) => net.connect(socket, function connected() { this.destroy(); resolve(true); }).on('error', () => resolve(false))), 'the socket');
  });

  after(async () => {
    await Promise.all([...running].map((proxy) => stop(proxy)));
    await Promise.allSettled(followers.map((follower) => follower.stop()));
    await db?.close();
    rmSync(directory, { recursive: true, force: true });
  });

  async function restart() {
    const pid = await until(() => db.value('SELECT feed_worker_pid FROM changefeed.stat_feed'), 'a feed worker');
    await db.exec(`SELECT pg_terminate_backend(${pid})`);
    await until(async () => !['', pid].includes(await db.value('SELECT feed_worker_pid FROM changefeed.stat_feed')), 'another feed worker');
  }

  function start(command, args) {
    const proxy = spawn(command, args, { uid, gid, cwd: directory, stdio: ['ignore', 'pipe', 'pipe'] });
    proxy.said = '';
    for (const stream of [proxy.stdout, proxy.stderr]) stream.setEncoding('utf8').on('data', (data) => { proxy.said += data; });
    proxy.ended = new Promise((resolve) => proxy.on('close', (code) => {
      running.delete(proxy);
      resolve(code);
    }).on('error', (error) => { proxy.said += error; resolve(-1); }));
    running.add(proxy);
    return proxy;
  }

  async function stop(proxy, signal = 'SIGTERM') {
    proxy.kill(signal);
    await proxy.ended;
  }

  const nginx = {
    command: '/usr/sbin/nginx',
    reload: 'SIGHUP',
    configure(port) {
      const site = certificates.write('nginx-site.conf', adapt(example('nginx.conf'), {
        'unix:/run/postgresql/changefeed': `unix:${socket}`,
        'listen 443 ssl': `listen 127.0.0.1:${port} ssl`,
        '/etc/ssl/feed.example.com.crt': pair.cert,
        '/etc/ssl/private/feed.example.com.key': pair.key,
        '/var/log/nginx/changefeed.log': join(directory, 'access.log'),
      }));
      const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((name) => `${name}_temp_path ${directory}/${name};`).join(' ');
      return ['-e', 'stderr', '-c', certificates.write('nginx.conf', `daemon off; pid ${directory}/nginx.pid; error_log stderr; events {} http { ${temporary} include ${site}; }\n`)];
    },
  };
  const haproxy = {
    command: '/usr/sbin/haproxy',
    reload: 'SIGUSR2',
    configure(port) {
      return ['-W', '-f', certificates.write('haproxy.cfg', adapt(example('haproxy.cfg'), {
        'unix@/run/postgresql/changefeed': `unix@${socket}`,
        'maxconn 20000': 'maxconn 200',
        'bind :443 ssl': `bind 127.0.0.1:${port} ssl`,
        '/etc/haproxy/feed.example.com.pem': certificates.write('haproxy.pem', pair.pem + readFileSync(pair.key, 'utf8')),
      }))];
    },
  };

  for (const [name, kind] of Object.entries({ nginx, haproxy })) {
    test(`${name}: wss converges, goes on over a reload, comes back behind a restart`, async () => {
      const port = await freePort();
      const args = kind.configure(port);
      let proxy = start(kind.command, args);
      const options = {
        url: `wss://127.0.0.1:${port}/v1/socket`,
        headers: { host: HOST, origin: `https://${HOST}` },
        receive: { ca: pair.pem, servername: HOST, checkServerIdentity: () => undefined },
      };
      const answers = () => Client.connect({ ...options, token }).then((client) => client.close().then(() => true), (error) => { proxy.why = error; });
      await until(answers, () => `${name} answers: ${proxy.why} ${proxy.said}`, 10000);

      const follower = await new Follower({ token, channels: ['px_items'], ...options }).start();
      followers.push(follower);
      const converges = async (what) => {
        await db.exec("UPDATE px.items SET n = n + 1 WHERE id % 7 = 0; INSERT INTO px.items SELECT max(id) + 1, 0, repeat('y', 100000) FROM px.items");
        await follower.settle();
        assertSame(follower.subscription().rows(), await db.rows('SELECT * FROM px.items'), what);
      };
      await converges('through the proxy');

      // The cluster's heartbeat is 4 s: it is answered through the proxy.
      const pings = follower.client.pings;

      // What is not for the world is not passed on, nor served if it were.
      const get = (path, headers = {}) => new Promise((resolve, reject) => {
        https.get({ host: '127.0.0.1', port, path, headers: { host: HOST, ...headers }, ca: pair.pem, checkServerIdentity: () => undefined, agent: false }, (answer) => {
          answer.resume().on('end', () => resolve(answer.statusCode));
        }).on('error', reject);
      });
      assert.equal(await get('/'), 404);
      assert.ok([403, 404].includes(await get('/v1/../', { host: 'localhost' })));
      assert.equal(await get('/v1/socket'), 426);
      await assert.rejects(Client.connect({ ...options, token, headers: { host: HOST, origin: 'https://elsewhere.example' } }), /403/);

      // An event stream comes through as it is written, by http/1.1 without an upgrade.
      const events = await new Promise((resolve, reject) => {
        https.get({ host: '127.0.0.1', port, path: '/v1/events?channel=px_items', headers: { host: HOST, authorization: `Bearer ${token}` }, ca: pair.pem, checkServerIdentity: () => undefined, agent: false }, resolve).on('error', reject);
      });
      assert.equal(events.statusCode, 200);
      let stream = '';
      events.setEncoding('utf8').on('data', (data) => { stream += data; }).on('error', () => {});
      await until(() => stream.includes('"type":"ready"'), 'the stream is ready', 5000);
      await db.exec("UPDATE px.items SET text = 'seen in the stream' WHERE id = 2");
      await until(() => stream.includes('seen in the stream'), 'an event', 5000);
      events.destroy();

      proxy.kill(kind.reload);
      const held = follower.client;
      await until(answers, `${name} answers behind the reload`, 10000);
      await converges('behind the reload');
      assert.equal(follower.client, held, 'the connection went on');
      await until(() => follower.client.pings > pings, 'a heartbeat', 10000);

      await stop(proxy, name === 'nginx' ? 'SIGTERM' : 'SIGINT');
      await until(() => follower.losses.length > 0, 'the connection is lost');
      await db.exec("UPDATE px.items SET n = -1 WHERE id = 1");
      proxy = start(kind.command, args);
      await converges('behind the restart');
      assert.deepEqual([follower.recovered, follower.resyncs], [[true], []], 'from where it was');
      await follower.stop();
      await stop(proxy);
    });
  }
});
