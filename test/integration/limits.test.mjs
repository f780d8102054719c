// Limits of connections, by user and by address: whoever is above one is told what to do, and
// everybody else is not concerned. Floods are in hostile.test.mjs.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import https from 'node:https';
import net from 'node:net';
import { dirname } from 'node:path';
import { text } from 'node:stream/consumers';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { Certificates } from './lib/certificates.mjs';
import { Client, until } from './lib/client.mjs';
import { reload, Session } from './lib/psql.mjs';

const HTTP = process.env.HTTP_URL;
const SETTINGS = ['max_connections_per_user', 'max_connections_per_address', 'trusted_proxies', 'denied_addresses', 'allowed_addresses',
  'max_handshake_rate', 'max_handshake_rate_per_address', 'handshake_timeout', 'max_subscriptions', 'max_connections', 'tls_cert_file', 'tls_key_file'];
let db;
const tokens = {};
const clients = [];

before(async () => {
  db = new Session();
  await db.exec(`CREATE TABLE limited (id int PRIMARY KEY); INSERT INTO limited VALUES (1);
    CREATE ROLE limits_web; GRANT SELECT ON limited TO limits_web; SELECT changefeed.allow_role('limits_web');
    CREATE ROLE limits_other; SELECT changefeed.allow_role('limits_other');
    DO $$ BEGIN CREATE ROLE anonymous; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
    SELECT changefeed.allow_role('anonymous');
    SELECT changefeed.create_channel('limited:{id}', 'limited')`);
  for (const name of ['alice', 'bob']) tokens[name] = await db.token({ role: 'limits_web', sub: name });
  tokens.alice_elsewhere = await db.token({ role: 'limits_other', sub: 'alice', other: 1 });
  tokens.nobody = await db.token({ role: 'limits_web', x: 1 });
  for (const token of [tokens.alice, tokens.alice_elsewhere, undefined]) await (await Client.connectSoon({ token })).close();
});
after(async () => {
  for (const client of clients) client.cut();
  await reload(db, Object.fromEntries(SETTINGS.map((name) => [`changefeed.${name}`, null])));
  await db.close();
});

async function connect(options) {
  const client = await Client.connect(options);
  clients.push(client);
  return client;
}

async function closeAll() {
  await Promise.all(clients.splice(0).map((client) => client.close()));
  await until(async () => await db.value('SELECT count(*) FROM changefeed.stat_connections') === '0', 'nobody is connected');
}

async function refused(options) {
  const client = new Client(options);
  clients.push(client);
  await client.opened;
  await assert.rejects(client.request('connect', { token: options.token }), (error) => {
    assert.equal(error.code, '53300');
    assert.match(error.hint, /changefeed\.max_connections_per_user/);
    return true;
  });
  assert.equal((await client.ended).code, 4007);
}

const counter = async (name) => Number((await db.value('SELECT changefeed.metrics()')).split('\n')
  .find((line) => line.startsWith(`changefeed_${name} `))?.split(' ').at(-1) ?? 0);

/** The status of a request from that address, through a proxy; and what it says. */
async function from(address, path = '/nowhere') {
  const response = await fetch(`${HTTP}${path}`, { headers: address ? { 'X-Forwarded-For': address } : {} });
  return { status: response.status, retry: response.headers.get('retry-after'), ...JSON.parse(await response.text()) };
}

/** Settings reach the gateway a moment after the server. */
async function settled(settings, look) {
  await reload(db, Object.fromEntries(Object.entries(settings).map(([name, value]) => [`changefeed.${name}`, value])));
  await until(look, JSON.stringify(settings));
}

test('connections of a user', async () => {
  const closed = await counter('connections_closed_total{cause="user_limit"}');
  await reload(db, { 'changefeed.max_connections_per_user': '2' });
  const first = await connect({ token: tokens.alice });
  await connect({ token: tokens.alice });
  // The feed worker has the setting a moment later.
  await until(() => refused({ token: tokens.alice }).then(() => true, () => closeExtra()), 'limit');
  await refused({ token: tokens.alice_elsewhere });

  // Others are others; those without sub are told apart by their claims, those without a token not at all.
  const bob = await connect({ token: tokens.bob });
  for (let i = 0; i < 2; i += 1) await connect({ token: tokens.nobody });
  await refused({ token: tokens.nobody });
  for (let i = 0; i < 4; i += 1) await connect({});

  // Nobody becomes one too many; the connection goes on as it is.
  await assert.rejects(bob.request('token', { token: tokens.alice }), { code: '53300' });
  await (await bob.subscribe('limited:1')).ready();
  await bob.request('token', { token: tokens.bob });

  // Streams count as well.
  const stream = await fetch(`${HTTP}/v1/events?channel=limited:1`, { headers: { Authorization: `Bearer ${tokens.alice}` } });
  assert.equal(stream.status, 429);
  assert.equal((await stream.json()).code, '53300');

  await first.close();
  await until(() => connect({ token: tokens.alice }).catch(() => null), 'a place is free');
  assert.ok(await counter('connections_closed_total{cause="user_limit"}') >= closed + 3);
  await closeAll();
  await reload(db, { 'changefeed.max_connections_per_user': null });
});

async function closeExtra() {
  await clients.pop().close();
  return false;
}

test('addresses of clients behind a proxy', async () => {
  // A header says nothing unless the proxy is trusted.
  const before = await connect({ token: tokens.alice, headers: { 'X-Forwarded-For': '192.0.2.1' } });
  assert.equal(await db.value('SELECT address FROM changefeed.stat_connections'), '127.0.0.1');
  await settled({ trusted_proxies: '127.0.0.1, ::1', denied_addresses: '192.0.2.0/28' }, async () => (await from('192.0.2.1')).status === 403);
  const answer = await from('192.0.2.15');
  assert.equal(answer.code, 'address_not_allowed');
  assert.match(answer.hint, /changefeed\.denied_addresses/);
  assert.equal((await from('192.0.2.16')).status, 404);

  const client = await connect({ token: tokens.alice, headers: { 'X-Forwarded-For': '198.51.100.9, 192.0.2.77' } });
  const other = await connect({ token: tokens.alice, headers: { 'X-Forwarded-For': '2001:db8::7' } });
  assert.deepEqual((await db.rows('SELECT address FROM changefeed.stat_connections ORDER BY address COLLATE "C"')).map((row) => row.address),
    ['127.0.0.1', '192.0.2.77', '2001:db8::7']);

  // Who is denied from now on is told, and closed.
  await settled({ denied_addresses: '192.0.2.77' }, async () => (await from('192.0.2.77')).status === 403);
  assert.equal((await client.ended).code, 4006);
  assert.deepEqual(client.messages.map((message) => message.code), ['42501']);
  await (await other.subscribe('limited:1')).ready();
  await (await before.subscribe('limited:1')).ready();
  assert.equal(await counter('connections_closed_total{cause="address"}'), 1);
  assert.ok(await counter('gateway_refused_total{gateway="0",code="address_not_allowed"}') >= 3);
  await closeAll();

  await settled({ denied_addresses: null, max_connections_per_address: '2' }, async () => {
    const two = await Promise.all([1, 2].map(() => Client.connect({ token: tokens.alice, headers: { 'X-Forwarded-For': '192.0.2.1' } })));
    clients.push(...two);
    const { status, code, retry, hint } = await from('192.0.2.1');
    if (status === 429) {
      assert.equal(code, 'too_many_connections_of_address');
      assert.equal(retry, '5');
      assert.match(hint, /changefeed\.max_connections_per_address/);
      return true;
    }
    return closeAll();
  });
  assert.equal((await from('192.0.2.2')).status, 404);
  await closeAll();
});

test('connections, subscriptions and handshakes in all', async () => {
  await settled({ trusted_proxies: null, max_connections_per_address: null, max_connections: '2', max_subscriptions: '1' }, async () => {
    const one = await connect({ token: tokens.alice });
    await connect({ token: tokens.alice });
    const third = new Client({});
    const error = await third.opened.then(() => null, (reason) => reason);
    if (error === null) return third.close().then(closeAll);
    assert.match(error.message, /503/);
    await (await one.subscribe('limited:1')).ready();
    await assert.rejects(one.subscribe('limited:2'), (reason) => {
      assert.equal(reason.code, '53400');
      assert.match(reason.hint, /changefeed\.max_subscriptions/);
      return true;
    });
    await one.request('unsubscribe', { channel: 'limited:1' });
    await (await one.subscribe('limited:2')).ready();
    return true;
  });
  await closeAll();
  await settled({ max_connections: null, max_handshake_rate: '1' }, async () => {
    const { status, code, retry, hint } = await from();
    if (status === 404) return false;
    assert.equal(status, 503);
    assert.equal(code, 'too_many_handshakes');
    assert.equal(retry, '1');
    assert.match(hint, /changefeed\.max_handshake_rate/);
    return true;
  });
  // In time there is room again.
  await until(async () => (await from()).status === 404, 'room');
});

test('with TLS, handshakes above the rate and slow ones cost nothing', async (t) => {
  const certificates = new Certificates(dirname(process.env.CLUSTER_DATA));
  t.after(() => certificates.remove());
  const { cert, key } = certificates.make('limits');
  const { hostname: host, port } = new URL(HTTP);
  /** A status, or null when the connection ended without an answer. */
  const ask = () => new Promise((resolve) => {
    const request = https.get({ host, port, path: '/nowhere', rejectUnauthorized: false, agent: false }, (answer) => {
      answer.resume();
      resolve(answer.statusCode);
    });
    request.on('error', () => resolve(null));
  });
  await settled({ max_handshake_rate: null, handshake_timeout: '1s', tls_cert_file: cert, tls_key_file: key }, async () => await ask() === 404);

  const start = Date.now();
  const received = await new Promise((resolve) => {
    const socket = net.connect({ host, port });
    let bytes = 0;
    socket.on('data', (data) => { bytes += data.length; });
    socket.on('error', () => {});
    socket.on('close', () => resolve(bytes));
  });
  assert.equal(received, 0);
  assert.ok(Date.now() - start < 5000);

  // A hundred that say a byte now and then: all are gone long before their time is over, and others are let in meanwhile.
  const attackers = spawn(process.execPath, [fileURLToPath(new URL('lib/attacks.mjs', import.meta.url)), 'tls_byte_by_byte', '8', port, ''], { stdio: ['ignore', 'pipe', 'inherit'] });
  const told = text(attackers.stdout);
  let answered = 0;
  while (attackers.exitCode === null) if (await ask() === 404) answered += 1;
  assert.deepEqual(Object.keys(JSON.parse(await told).tls_byte_by_byte), ['dropped']);
  assert.ok(answered > 0);

  const dropped = "SELECT coalesce((refused_by_code ->> 'too_many_handshakes')::int, 0) FROM changefeed.stat_gateways";
  const before = Number(await db.value(dropped));
  await settled({ max_handshake_rate_per_address: '1' }, async () => await ask() === null);
  assert.ok(Number(await db.value(dropped)) > before);
  await until(async () => await ask() === 404, 'room');
});
