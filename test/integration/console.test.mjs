// What the console asks for: the rows of the views, and who may.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import { Client, until } from './lib/client.mjs';
import { Session } from './lib/psql.mjs';

const HTTP = process.env.HTTP_URL;
let db;
let token; // of the role that owns the table
let monitor;
let client;

before(async () => {
  db = new Session();
  await db.exec(`CREATE ROLE console_web; CREATE ROLE console_owner; CREATE ROLE console_monitor;
    GRANT pg_monitor TO console_owner, console_monitor; GRANT console_web TO console_owner;
    CREATE TABLE shown (id int PRIMARY KEY, room int NOT NULL, owner text); ALTER TABLE shown OWNER TO console_owner;
    GRANT SELECT ON shown TO console_web; ALTER TABLE shown ENABLE ROW LEVEL SECURITY;
    CREATE POLICY mine ON shown FOR SELECT TO console_web USING (owner = current_setting('request.jwt.claims')::json ->> 'sub');
    INSERT INTO shown SELECT i, i % 2, 'alice' FROM generate_series(1, 10) i;
    SELECT changefeed.allow_role(r::regrole) FROM unnest('{console_web,console_owner,console_monitor}'::text[]) r;
    SELECT changefeed.create_channel('shown:{room}', 'shown')`);
  token = await db.token({ role: 'console_owner', sub: 'operator' });
  monitor = await db.token({ role: 'console_monitor', sub: 'watcher' });
  client = await Client.connectSoon({ token: await db.token({ role: 'console_web', sub: 'alice' }) });
  await client.openSoon('shown:1');
});
after(async () => {
  await client?.close();
  await db.exec('ALTER SYSTEM RESET changefeed.allowed_origins; ALTER SYSTEM RESET changefeed.admin_addresses; SELECT pg_reload_conf()');
  await db.close();
});

const bearer = (text) => ({ Authorization: `Bearer ${text}` });
const get = (path, headers = {}) => fetch(`${HTTP}${path}`, { headers });
async function rows(path, headers) {
  const answer = await get(`/admin/${path}`, headers);
  assert.equal(answer.status, 200);
  assert.equal(answer.headers.get('cache-control'), 'no-store');
  return answer.json();
}
const explain = (body, headers = bearer(token)) => fetch(`${HTTP}/admin/explain`, {
  method: 'POST', headers: { 'Content-Type': 'application/json', ...headers }, body: JSON.stringify(body),
});

for (const list of ['connections', 'subscriptions', 'channels', 'gateways']) {
  test(`${list}: the rows are those of the view`, async () => {
    // What moves by itself is left out of the comparison, but has to be there.
    const moving = ['heard_at', 'cpu_ms', 'memory_bytes', 'accepted', 'frames', 'bytes', 'received_bytes', 'sent_frames', 'sent_bytes', 'queued_bytes', 'connections'];
    const still = (row) => Object.fromEntries(Object.entries(row).filter(([name]) => !moving.includes(name)));
    const { rows: mine, more } = await rows(list);
    const view = JSON.parse(await db.value(`SELECT json_agg(v) FROM changefeed.stat_${list} v`));
    assert.equal(more, false);
    assert.ok(mine.length > 0);
    assert.deepEqual(mine.map((row) => Object.keys(row)), view.map((row) => Object.keys(row)));
    assert.deepEqual(mine.map((row) => Object.entries(row).map(([, value]) => typeof value)), view.map((row) => Object.entries(row).map(([, value]) => typeof value)));
    const times = (row) => Object.fromEntries(Object.entries(row).map(([name, value]) => [name, /(_since|_at)$/.test(name) && value !== null ? Date.parse(value) : value]));
    assert.deepEqual(mine.map(still).map(times), view.map(still).map(times));
  });
}

test('of many connections the newest are listed, and it is said that there are more', async (t) => {
  const others = [];
  t.after(() => Promise.all(others.map((other) => other.close())));
  for (let i = 0; i < 5; i++) {
    others.push(await Client.connect({ token: monitor }));
    await others[i].openSoon('shown:0').catch(() => {});
  }
  await until(async () => (await rows('connections')).rows.length === 6, 'six are connected');
  const all = (await rows('connections')).rows.map(({ session }) => session);
  assert.equal(all[5], client.connected.session, 'the oldest is the last');
  const few = await rows('connections?limit=3');
  assert.deepEqual([few.more, few.rows.map(({ session }) => session)], [true, all.slice(0, 3)]);
  assert.equal((await rows('connections?limit=6')).more, false);
  const { id } = (await rows('connections')).rows[5];
  assert.deepEqual((await rows(`connections?connection=${id}`)).rows.map(({ session }) => session), [client.connected.session]);
  assert.deepEqual((await rows(`subscriptions?connection=${id}`)).rows.map(({ name }) => name), ['shown:1']);
  assert.equal((await rows('connections?limit=nonsense')).rows.length, 1);
});

test('the page and its data follow the rule of /metrics', async () => {
  const proxied = { 'X-Forwarded-For': '192.0.2.1' };
  const web = await db.token({ role: 'console_web', sub: 'alice' });
  for (const path of ['/', '/admin/connections', '/admin/channels', '/admin/subscriptions', '/admin/gateways', '/metrics']) {
    const status = async (headers) => (await get(path, headers)).status;
    assert.deepEqual([path, await status({}), await status(proxied), await status({ ...proxied, ...bearer(web) }), await status({ ...proxied, ...bearer(monitor) }),
      await status({ ...proxied, ...bearer('no.such.token') })], [path, 200, 403, 403, 200, 401]);
  }
  const refused = await (await get('/', proxied)).json();
  assert.equal(refused.code, '42501');
  assert.match(refused.hint, /admin_addresses/);
  assert.equal((await get('/admin/nothing')).status, 404);
  assert.equal((await get('/admin/connections', { Origin: 'http://elsewhere.example' })).status, 403);
  const page = await get('/');
  assert.match(page.headers.get('content-security-policy'), /default-src 'self'.*frame-ancestors 'none'/);
  for (const [, file] of (await page.text()).matchAll(/(?:src|href)="([a-z]+\.[a-z]+)"/g)) {
    assert.equal((await get(`/${file}`, proxied)).status, 200, file);
  }
});

test('that a browser runs on this machine says nothing about whose page it shows', async () => {
  await db.exec("ALTER SYSTEM SET changefeed.allowed_origins = '*'; SELECT pg_reload_conf()");
  const foreign = { Origin: 'http://elsewhere.example' };
  await until(async () => (await get('/healthz', foreign)).status === 200, 'other origins are allowed');
  for (const path of ['/', '/metrics', '/admin/connections']) {
    assert.equal((await get(path, foreign)).status, 403, path);
    assert.equal((await get(path, { ...foreign, ...bearer(monitor) })).status, 200, path);
  }
});

test('explain runs as the role of the token', async () => {
  const answer = await explain({ channel: 'shown:1', claims: { role: 'console_web', sub: 'alice' } });
  assert.equal(answer.status, 200, await answer.clone().text());
  const { rows: said } = await answer.json();
  const view = JSON.parse(await db.value(`SELECT json_agg(json_build_object('source', source::text, 'aspect', aspect, 'name', name, 'detail', detail))
    FROM changefeed.explain('shown:1', '{"role": "console_web", "sub": "alice"}')`));
  assert.deepEqual(said, view);
  assert.ok(said.some(({ aspect, name }) => aspect === 'policy' && name === 'mine'));

  const failure = async (...args) => {
    const response = await explain(...args);
    const { code, message } = await response.json();
    return [response.status, code, message];
  };
  const body = { channel: 'shown:1', claims: { role: 'console_web' } };
  assert.deepEqual((await failure(body, bearer(monitor))).slice(0, 2), [403, '42501'], 'who owns nothing');
  assert.deepEqual((await failure(body, {})).slice(0, 2), [401, '28000'], 'without a token');
  assert.deepEqual((await failure({ ...body, channel: 'nothing' })).slice(0, 2), [404, '42704']);
  assert.deepEqual((await failure({ channel: 'shown:1', claims: [] })).slice(0, 2), [400, '22023']);
  assert.deepEqual((await failure({ channel: 'shown:1', claims: { role: 'console_monitor' } })).slice(0, 2), [403, '42501'], 'a role that it cannot become');

  // The worker is as before: the same again, and it serves subscribers.
  assert.equal((await explain({ channel: 'shown:1', claims: { role: 'console_web', sub: 'alice' } })).status, 200);
  const again = await client.openSoon('shown:0');
  assert.ok(again);
});
