// What the statistics say is what clients did.

import assert from 'node:assert/strict';
import { execFile, spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { networkInterfaces } from 'node:os';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';

import { Client, until } from './lib/client.mjs';
import { number } from './lib/json.mjs';
import { LOG } from './lib/log.mjs';
import { Session } from './lib/psql.mjs';

const run = promisify(execFile);
const HTTP = process.env.HTTP_URL;
let db;
let token;

before(async () => {
  db = new Session();
  await db.exec("ALTER SYSTEM SET changefeed.connect_timeout = '1s'; SELECT pg_reload_conf()");
  await db.exec(`CREATE TABLE counted (id int PRIMARY KEY, room int NOT NULL, v text);
    INSERT INTO counted SELECT i, i % 2, 'x' FROM generate_series(1, 10) i;
    CREATE TABLE secret (id int PRIMARY KEY);
    CREATE ROLE stats_web; GRANT SELECT ON counted TO stats_web; SELECT changefeed.allow_role('stats_web');
    CREATE ROLE stats_monitor; GRANT pg_monitor TO stats_monitor; SELECT changefeed.allow_role('stats_monitor');
    SELECT changefeed.create_channel('counted:{room}', 'counted'); SELECT changefeed.create_channel('secret', 'secret')`);
  token = await db.token({ role: 'stats_web', sub: 'alice' });
  await (await Client.connectSoon({ token })).close();
  await until(async () => await db.value('SELECT count(*) FROM changefeed.stat_connections') === '0', 'nobody is connected');
});
after(async () => {
  await db.exec('ALTER SYSTEM RESET changefeed.connect_timeout; SELECT pg_reload_conf()');
  await db.close();
});

/** The samples of /metrics: name with labels, as Prometheus writes them, to number. */
async function metrics(options) {
  const response = await fetch(`${HTTP}/metrics`, options);
  assert.equal(response.status, 200);
  assert.match(response.headers.get('content-type'), /^text\/plain; version=0\.0\.4/);
  return parse(await response.text());
}

const parse = (text) => Object.fromEntries(text.split('\n').filter((line) => line !== '' && !line.startsWith('#'))
  .map((line) => [line.slice(0, line.lastIndexOf(' ')).replace(/^changefeed_/, ''), Number(line.slice(line.lastIndexOf(' ')))]));

/** How much each sample has grown. */
const growth = (from, to) => Object.fromEntries(Object.entries(to).map(([name, value]) => [name, value - (from[name] ?? 0)]));

const exactRows = async (sql) => (await db.rows(sql)).map((row) => Object.fromEntries(Object.entries(row)
  .map(([name, value]) => [name, typeof value === 'string' && value.startsWith('\0') ? number(value) : value])));

test('what a client did is counted', async (t) => {
  const before = await metrics();
  const [channelBefore] = await exactRows("SELECT * FROM changefeed.stat_channels WHERE channel = 'counted:{room}'");
  const client = await Client.connect({ token });
  t.after(() => client.cut());
  const odd = await client.openSoon('counted:1');
  const both = await client.openSoon('counted:*');
  await assert.rejects(client.subscribe('secret'), { code: '42501' });
  await assert.rejects(client.subscribe('nothing'), { code: '42704' });
  const frames = client.transactions;
  for (let i = 0; i < 20; i++) await db.exec(`UPDATE counted SET v = 'y${i}' WHERE id = ${i % 10 + 1}`);
  await client.settle();
  assert.equal(odd.changes + both.changes, 30);
  assert.equal(client.transactions - frames, 20);

  const [connection] = await exactRows('SELECT *, connected_since <= now() AS past, heard_at >= connected_since AS heard FROM changefeed.stat_connections');
  assert.equal(connection.session, client.connected.session);
  assert.deepEqual(
    ['gateway', 'transport', 'address', 'role', 'subject', 'state', 'subscriptions', 'ready', 'lag', 'queued_bytes', 'past', 'heard'].map((name) => connection[name]),
    [0, 'websocket', '127.0.0.1', 'stats_web', 'alice', 'live', 2, 2, 0, 0, true, true]);
  assert.equal(connection.sent_frames, client.received);
  assert.ok(connection.sent_bytes > 2000);

  assert.deepEqual(await exactRows('SELECT connection, channel, name, state, recovered, snapshot_rows, lag, resyncs, resync_reason FROM changefeed.stat_subscriptions ORDER BY name DESC'), [
    { connection: connection.id, channel: 'counted:{room}', name: 'counted:1', state: 'ready', recovered: false, snapshot_rows: 5, lag: 0, resyncs: 0, resync_reason: null },
    { connection: connection.id, channel: 'counted:{room}', name: 'counted:*', state: 'ready', recovered: false, snapshot_rows: 10, lag: 0, resyncs: 0, resync_reason: null },
  ]);

  const [channel] = await exactRows("SELECT * FROM changefeed.stat_channels WHERE channel = 'counted:{room}'");
  assert.deepEqual(['instances', 'subscriptions', 'ready', 'querying', 'loading', 'catching_up'].map((name) => channel[name]), [2, 2, 2, 0, 0, 0]);
  assert.deepEqual(['operations', 'snapshots', 'snapshot_rows', 'denials', 'resyncs'].map((name) => channel[name] - channelBefore[name]), [30, 2, 15, 0, 0]);
  assert.equal(await db.value("SELECT denials FROM changefeed.stat_channels WHERE channel = 'secret'"), '1');

  const grown = growth(before, await metrics());
  const expected = {
    'connections{transport="websocket"}': 1,
    'connections_opened_total{transport="websocket"}': 1,
    'subscriptions{state="ready"}': 2,
    'channel_subscriptions{channel="counted:{room}"}': 2,
    'operations_total': 30,
    'channel_operations_total{channel="counted:{room}"}': 30,
    'transactions_sent_total': 20,
    'publish_lag_seconds_count': 20,
    'publish_lag_seconds_bucket{le="+Inf"}': 20,
    'delivery_lag_seconds_count{gateway="0"}': 20,
    'denials_total': 1,
    'client_errors_total{class="42"}': 2,
    'snapshots_total': 2,
    'snapshot_rows_total': 15,
    'snapshot_duration_seconds_count': 2,
    'gateway_connections{gateway="0"}': 1,
    'gateway_starts_total': 0,
    'connections_closed_total{cause="client"}': 0,
  };
  assert.deepEqual(Object.fromEntries(Object.keys(expected).map((name) => [name, grown[name]])), expected);
  assert.ok(grown['publish_lag_seconds_sum'] > 0 && grown['publish_lag_seconds_sum'] < 20);
  assert.ok(grown['delivery_lag_seconds_sum{gateway="0"}'] >= grown['publish_lag_seconds_sum'] * 0.5);

  await client.cut();
  await until(async () => growth(before, await metrics())['connections_closed_total{cause="client"}'] === 1, 'its end is counted');
  assert.equal((await metrics())['connections{transport="websocket"}'], 0);
});

test('resyncs have reasons, refusals and closings causes', async (t) => {
  const before = await metrics();
  const client = await Client.connect({ token });
  t.after(() => client.cut());
  const subscription = await client.openSoon('counted:1');
  await db.exec("TRUNCATE counted; INSERT INTO counted SELECT i, i % 2, 'x' FROM generate_series(1, 10) i");
  await until(() => subscription.resyncs.length === 1 && subscription.state === 'ready', 'resync');
  assert.deepEqual(await exactRows('SELECT resyncs, resync_reason FROM changefeed.stat_subscriptions'), [{ resyncs: 1, resync_reason: 'truncated' }]);
  assert.deepEqual(await exactRows("SELECT resyncs, resync_reasons FROM changefeed.stat_channels WHERE channel = 'counted:{room}'")
    .then(([row]) => [row.resyncs, number(row.resync_reasons.truncated)]), [1, 1]);

  // The counters survive a new definition of the channel.
  await db.exec("CREATE TABLE counted2 (id int PRIMARY KEY, room int NOT NULL); GRANT SELECT ON counted2 TO stats_web; SELECT changefeed.add_source('counted:{room}', 'counted2')");
  await until(() => subscription.resyncs.length === 2 && subscription.state === 'ready', 'another resync');
  assert.deepEqual(await db.rows("SELECT subscriptions, instances, resync_reasons FROM changefeed.stat_channels WHERE channel = 'counted:{room}'")
    .then(([row]) => [number(row.subscriptions), number(row.instances), Object.keys(row.resync_reasons).sort()]), [1, 1, ['channel_changed', 'truncated']]);

  for (let i = 0; i < 3; i++) await assert.rejects(Client.connect({ token: 'nonsense' }), { code: '28000' });
  const logged = readFileSync(LOG, 'utf8').split('\n').filter((line) => line.includes('has refused a token from address "127.0.0.1"'));
  assert.ok(logged.length >= 1 && logged.length < 3, `${logged.length} lines of 3 refusals`);
  assert.ok(!logged.join().includes('nonsense'));
  const silent = new Client({});
  await silent.ended;
  const long = await Client.connect({ token });
  long.send(`"${'x'.repeat(2 * 1024 * 1024)}"`);
  await long.ended;
  await fetch(`${HTTP}/nothing`);
  await fetch(`${HTTP}/v1/socket`);

  await until(async () => {
    const grown = growth(before, await metrics());
    return [['unauthorized', 3], ['connect_timeout', 1], ['message_too_big', 1]].every(([cause, n]) => grown[`connections_closed_total{cause="${cause}"}`] === n);
  }, 'causes');
  const grown = growth(before, await metrics());
  assert.equal(grown['resyncs_total{reason="truncated"}'], 1);
  assert.equal(grown['resyncs_total{reason="channel_changed"}'], 1);
  assert.equal(grown['gateway_refused_total{gateway="0",code="not_found"}'], 1);
  assert.equal(grown['gateway_refused_total{gateway="0",code="upgrade_required"}'], 1);
  assert.equal(grown['client_errors_total{class="28"}'], 3);
  assert.equal(grown['denials_total'], 3);
});

test('a gateway that dies takes its connections along', async () => {
  const before = await metrics();
  const client = await Client.connect({ token });
  process.kill(Number(await db.value('SELECT pid FROM changefeed.stat_gateways')), 'SIGKILL');
  await client.ended;
  const grown = growth(before, parse(await until(async () => {
    const text = await db.value('SELECT changefeed.metrics()');
    return text.includes('\nchangefeed_gateway_connections{gateway="0"} 0\n') && text;
  }, 'another gateway')));
  assert.equal(grown['connections_closed_total{cause="gateway_lost"}'], 1);
  assert.equal(grown['connections{transport="websocket"}'], 0);
  assert.equal(grown['gateway_starts_total'], 1);
  await until(() => fetch(`${HTTP}/healthz`).then(({ ok }) => ok, () => false), 'it serves again');
});

test('a client that does not read is choked, and its queue is shown', async (t) => {
  const before = await metrics();
  const client = await Client.connect({ token });
  t.after(() => client.cut());
  await client.openSoon('counted:1');
  client.socket.pause();
  await until(async () => {
    await db.exec("UPDATE counted SET v = repeat(md5(random()::text), 10000) WHERE id = 1");
    return await db.value('SELECT state FROM changefeed.stat_connections') === 'choked';
  }, 'choked');
  const [connection] = await exactRows('SELECT lag, ready, queued_bytes FROM changefeed.stat_connections');
  assert.ok(connection.lag > 0 && connection.ready === 1, JSON.stringify(connection));
  const then = await metrics();
  assert.equal(then['connections_choked'], 1);
  assert.equal(then['connections_behind'], 1);
  assert.equal(growth(before, then)['gateway_behind_total{gateway="0"}'], 1);
  client.socket.resume();
  await until(async () => await db.value('SELECT state FROM changefeed.stat_connections') === 'live', 'live again');
  await client.settle();
  assert.equal((await metrics())['connections_behind'], 0);
});

test('event streams are clients, too', async () => {
  const before = await metrics();
  const stop = new AbortController();
  const stream = await fetch(`${HTTP}/v1/events?channel=counted:1`, { headers: { Authorization: `Bearer ${token}` }, signal: stop.signal });
  assert.equal(stream.status, 200);
  // Who does not read what comes is not ready.
  const read = stream.body.pipeTo(new WritableStream(), { signal: stop.signal }).catch(() => {});
  const [row] = await until(async () => {
    const rows = await exactRows('SELECT transport, address, role, ready FROM changefeed.stat_connections');
    return rows.length === 1 && rows[0].ready === 1 && rows;
  }, 'ready');
  assert.deepEqual(row, { transport: 'sse', address: '127.0.0.1', role: 'stats_web', ready: 1 });
  assert.equal((await metrics())['connections{transport="sse"}'], 1);
  stop.abort();
  await read;
  await until(async () => growth(before, await metrics())['connections_closed_total{cause="client"}'] === 1, 'its end');
});

test('who may read /metrics', async () => {
  const forwarded = { 'X-Forwarded-For': '127.0.0.1' };
  const monitor = await db.token({ role: 'stats_monitor' });
  const status = async (headers) => (await fetch(`${HTTP}/metrics`, { headers })).status;
  assert.equal(await status({}), 200);
  for (const name of ['X-Forwarded-For', 'Forwarded', 'X-Real-IP', 'Via']) assert.equal(await status({ [name]: '127.0.0.1' }), 403, name);
  assert.equal(await status({ ...forwarded, Authorization: `Bearer ${monitor}` }), 200);
  assert.equal(await status({ ...forwarded, Authorization: `Bearer ${token}` }), 403);
  assert.equal(await status({ ...forwarded, Authorization: 'Bearer nonsense' }), 401);
  assert.equal((await fetch(`${HTTP}/healthz`, { headers: forwarded })).status, 200);
});

test('changefeed.admin_addresses', async (t) => {
  const address = Object.values(networkInterfaces()).flat().find((it) => !it.internal && it.family === 'IPv4')?.address;
  if (!address) {
    t.skip('this machine has no address but its own');
    return;
  }
  const restart = (addresses) => run(process.env.CLUSTER_SCRIPT, ['restart', '--no-build', '--data', process.env.CLUSTER_DATA,
    '--set', `changefeed.listen_addresses=${addresses}`]);
  await db.close();
  await restart('*');
  t.after(async () => {
    await db.close();
    await restart('localhost');
    db = new Session();
  });
  db = new Session();
  const url = new URL(`${HTTP}/metrics`);
  url.hostname = address;
  const status = async (headers) => (await fetch(url, { headers })).status;
  const list = async (value) => {
    await db.exec(`ALTER SYSTEM SET changefeed.admin_addresses = '${value}'; SELECT pg_reload_conf()`);
  };
  assert.equal(await status(), 403);
  await list(`::1, ${address}/32`);
  await until(async () => await status() === 200, 'listed');
  assert.equal(await status({ 'X-Forwarded-For': address }), 403);
  await list('198.51.100.0/24');
  await until(async () => await status() === 403, 'not listed');
});

test('what /metrics says is well formed', async () => {
  const text = await (await fetch(`${HTTP}/metrics`)).text();
  const checked = spawnSync('promtool', ['check', 'metrics'], { input: text, encoding: 'utf8' });
  assert.equal(checked.error, undefined, 'promtool is in the package prometheus');
  assert.equal(checked.stderr + checked.stdout, '');
  assert.equal(checked.status, 0);
  assert.deepEqual(Object.keys(parse(await db.value('SELECT changefeed.metrics()'))), Object.keys(parse(text)));
});

test('/healthz says when something is wrong', async (t) => {
  const health = async () => {
    const response = await fetch(`${HTTP}/healthz`);
    return { code: response.status, ...await response.json() };
  };
  await db.exec("ALTER SYSTEM SET changefeed.health_max_lag = '500ms'; SELECT pg_reload_conf()");
  t.after(() => db.exec('ALTER SYSTEM RESET changefeed.health_max_lag; SELECT pg_reload_conf()'));
  const fine = await health();
  assert.deepEqual([fine.code, fine.status], [200, 'ok']);

  const decoder = Number(await db.value('SELECT decoder_pid FROM changefeed.stat_feed'));
  process.kill(decoder, 'SIGSTOP');
  try {
    await db.exec("UPDATE counted SET v = 'z' WHERE id = 2");
    const sick = await until(async () => {
      const answer = await health();
      return answer.status !== 'ok' && answer;
    }, 'not healthy');
    assert.deepEqual([sick.code, sick.status, sick.reason], [503, 'failing', 'delivery_is_behind']);
  } finally {
    process.kill(decoder, 'SIGCONT');
  }
  await until(async () => (await health()).status === 'ok', 'healthy again');
});

test('metrics and views under load delay nobody', async (t) => {
  const client = await Client.connect({ token });
  t.after(() => client.cut());
  const subscription = await client.openSoon('counted:1');
  const readers = Array.from({ length: 4 }, () => new Session());
  t.after(() => Promise.all(readers.map((reader) => reader.close())));
  let done = false;
  let asked = 0;
  const reading = readers.map(async (reader, i) => {
    while (!done) {
      if (i === 0) await metrics();
      else await reader.exec('SELECT count(*) FROM changefeed.stat_connections; SELECT count(*) FROM changefeed.stat_subscriptions');
      asked++;
    }
  });
  // How many questions were answered while a change was on its way: on a machine that is slow, both are.
  const meanwhile = [];
  for (let i = 0; i < 50; i++) {
    const { changes } = subscription;
    await db.exec(`UPDATE counted SET v = 'w${i}' WHERE id = 1`);
    const before = asked;
    await until(() => subscription.changes > changes, 'the change');
    meanwhile.push(asked - before);
  }
  done = true;
  await Promise.all(reading);
  meanwhile.sort((a, b) => a - b);
  t.diagnostic(`${asked} questions; during a change ${meanwhile[25]}, at most ${meanwhile[49]}`);
  assert.ok(asked > 50, `${asked} questions`);
  assert.ok(meanwhile[45] < 50, `${meanwhile[45]} questions`);
});
