// Secrets that the server was given or shown: none of them in its log, however much that says, in titles
// of processes, in what pg_stat_activity says of our processes, in a view, or in an answer.

import assert from 'node:assert/strict';
import { readdirSync, readFileSync, statSync } from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import { dirname } from 'node:path';
import { after, before, describe, test } from 'node:test';

import { Certificates } from './lib/certificates.mjs';
import { Client, until } from './lib/client.mjs';
import { LOG } from './lib/log.mjs';
import { reload, Session } from './lib/psql.mjs';

const { hostname: host, port } = new URL(process.env.WS_URL);

describe('secrets', () => {
  let db;
  let certificates;
  let from;
  const clients = [];
  const secrets = new Map(); // text that must not be shown => what it is
  const answers = []; // what HTTP clients were told

  const get = (path, headers = {}, options = {}) => new Promise((resolve) => {
    const request = http.request({ host, port, path, headers, agent: false, ...options }, (answer) => {
      let body = '';
      answer.setEncoding('utf8').on('data', (data) => { body += data; }).on('end', () => { answers.push(body); resolve({ status: answer.statusCode, body }); });
    });
    request.on('error', () => resolve({ status: 0 }));
    request.end(options.body);
  });

  /** Names a token, of which each part is a secret but for the header, which is the same in all. */
  async function token(claims, what, expires) {
    const text = await db.token(claims, expires);
    secrets.set(text.split('.')[1], `${what} (claims)`);
    secrets.set(text.split('.')[2], `${what} (signature)`);
    return text;
  }

  before(async () => {
    db = new Session();
    certificates = new Certificates(dirname(process.env.CLUSTER_DATA));
    await db.exec(`CREATE SCHEMA st; CREATE ROLE st_web; GRANT USAGE ON SCHEMA st TO st_web;
      SELECT changefeed.allow_role('st_web');
      CREATE TABLE st.items (id int PRIMARY KEY, owner text, note text, hidden text);
      ALTER TABLE st.items ENABLE ROW LEVEL SECURITY;
      CREATE FUNCTION st.mine(owner text) RETURNS boolean LANGUAGE plpgsql STABLE AS
        $$ BEGIN IF owner = 'broken' THEN RAISE EXCEPTION 'the policy is broken'; END IF;
           RETURN owner = current_setting('request.jwt.claims')::json->>'sub'; END $$;
      CREATE POLICY mine ON st.items USING (st.mine(owner));
      GRANT SELECT (id, owner, note) ON st.items TO st_web;
      SELECT changefeed.declare_dependency('st.mine(text)');
      SELECT changefeed.create_channel('st_items', 'st.items', publish_check => 'true');
      CREATE FUNCTION st.fails(password text) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
      CREATE FUNCTION st.takes(password text) RETURNS int LANGUAGE sql AS 'SELECT 1';
      SELECT changefeed.expose_function('st.fails(text)'), changefeed.expose_function('st.takes(text)')`);
    secrets.set(readFileSync(process.env.JWT_SECRET_FILE, 'utf8').trim(), 'the secret of tokens');
    await reload(db, { log_min_messages: 'debug5', log_error_verbosity: 'verbose', 'changefeed.token_cookie': 'feed', log_connections: 'on' });
    from = readFileSync(LOG).length;
  });

  after(async () => {
    for (const client of clients) await client.cut();
    await reload(db, { log_min_messages: null, log_error_verbosity: null, 'changefeed.token_cookie': null, log_connections: null });
    await db?.close();
    certificates?.remove();
  });

  async function look(what) {
    const seen = (text, where) => {
      for (const [secret, name] of secrets) {
        const at = text.indexOf(secret);
        assert.ok(at < 0, `${what}: ${name} is in ${where}: ${text.slice(Math.max(at - 200, 0), at + 100)}`);
      }
    };
    await db.exec('SELECT 1');
    seen(readFileSync(LOG).subarray(from).toString('latin1'), 'the log');
    for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
      try {
        const title = readFileSync(`/proc/${pid}/cmdline`, 'utf8');
        if (/postgres|changefeed/.test(title) && !/psql/.test(title)) seen(title, `the title of process ${pid}`);
      } catch { /* it has ended */ }
    }
    seen(await db.value("SELECT string_agg(a::text, e'\\n') FROM pg_stat_activity a WHERE backend_type LIKE 'changefeed%'"), 'pg_stat_activity');
    const views = (await db.value("SELECT string_agg(oid::regclass::text, ',') FROM pg_class WHERE relnamespace = 'changefeed'::regnamespace AND relkind IN ('v', 'r')")).split(',');
    assert.ok(views.length > 15, 'views and tables are looked at');
    for (const view of views) seen(await db.value(`SELECT string_agg(v::text, e'\\n') FROM ${view} v`), view);
    seen(await db.value('SELECT changefeed.metrics()'), 'changefeed.metrics()');
    seen(await db.value("SELECT string_agg(name || '=' || setting, e'\\n') FROM pg_settings"), 'pg_settings');
    for (const path of ['/metrics', '/', '/healthz', '/admin/connections', '/admin/subscriptions', '/admin/channels', '/admin/gateways']) await get(path);
    for (const answer of answers) seen(answer, 'an answer to an HTTP request');
  }

  test('what is looked for would be found', async () => {
    secrets.set('st.mine', 'a name in a view');
    await assert.rejects(look('a view'), /a name in a view is in changefeed\.dependenc/);
    secrets.delete('st.mine');
    secrets.set('changefeed query worker', 'a title');
    await assert.rejects(look('a title'), /a title is in/);
    secrets.delete('changefeed query worker');
    secrets.set('SELECT 1', 'a statement');
    await db.exec("SET log_statement = 'all'; SELECT 1; RESET log_statement");
    await assert.rejects(look('the log'), /a statement is in the log/);
    secrets.delete('SELECT 1');
    from = readFileSync(LOG).length;
  });

  test('tokens, claims, rows, messages and arguments', async () => {
    const api = 'claim-d41d8cd98f00b204';
    secrets.set(api, 'a claim');
    const good = await token({ role: 'st_web', sub: 'ada', api_key: api }, 'a good token');
    const expired = await token({ role: 'st_web', sub: 'ada', api_key: api }, 'a token that has expired', '-1 hour');
    const other = await token({ role: 'nobody_knows', sub: 'ada', api_key: api }, 'a token of another role');
    const forged = `${good.split('.').slice(0, 2).join('.')}.Zm9yZ2Vk-signature-of-nobody`;
    secrets.set('Zm9yZ2Vk-signature-of-nobody', 'a forged signature');
    const junk = 'not-a-token-but-somebodys-password';
    secrets.set(junk, 'what is no token');

    for (const one of [good, expired, other, forged, junk]) {
      await get(`/v1/poll?channel=st_items&token=${one}`);
      await get(`/v1/poll?channel=st_items&token=${one}&channel=%ff`);
      await get('/v1/poll?channel=st_items', { Authorization: `Bearer ${one}` });
      await get('/v1/poll?channel=st_items', { Authorization: `Basic ${one}` });
      await get('/v1/poll?channel=st_items', { Cookie: `feed=${one}` });
      await get('/v1/poll?channel=st_items', { Cookie: `feed=${one}`, Origin: 'https://elsewhere.example' });
      await get(`/nowhere?token=${one}`);
      await get('/metrics', { Authorization: `Bearer ${one}`, 'X-Forwarded-For': '10.1.1.1' });
      await get('/admin/explain', { Authorization: `Bearer ${one}` }, { method: 'POST', body: '{' });
      for (const options of [{ url: `${process.env.WS_URL}?token=${one}` }, { headers: { Authorization: `Bearer ${one}` } }, { headers: { Cookie: `feed=${one}` } }, { token: one }]) {
        const client = new Client(options);
        await client.opened;
        await client.request('connect', options.token ? { token: one } : {}).catch((error) => answers.push(JSON.stringify(error.reply ?? error.message)));
        await client.cut();
      }
      // What libwebsockets itself does not like
      await new Promise((resolve) => {
        const socket = net.connect(port, host, () => socket.end(`GET /v1/socket?token=${one} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ${one}\r\nBroken header ${one}\r\n\r\n`));
        socket.on('error', () => {}).on('close', resolve).resume();
      });
    }

    await db.exec(`INSERT INTO st.items VALUES (1, 'ada', 'note-of-the-row-5f4dcc3b', 'hidden-of-the-row-5f4dcc3b'), (2, 'eve', 'note-of-another-5f4dcc3b', 'hidden-of-another-5f4dcc3b')`);
    for (const value of ['note-of-the-row', 'hidden-of-the-row', 'note-of-another', 'hidden-of-another']) secrets.set(`${value}-5f4dcc3b`, `a value: ${value}`);
    const client = await Client.connectSoon({ token: good });
    clients.push(client);
    await client.openSoon('st_items');
    await db.exec("UPDATE st.items SET note = 'note-that-is-new-5f4dcc3b', hidden = 'hidden-that-is-new-5f4dcc3b'");
    for (const value of ['note-that-is-new', 'hidden-that-is-new']) secrets.set(`${value}-5f4dcc3b`, `a value: ${value}`);
    await client.settle();
    assert.match(JSON.stringify(client.subscriptions.get('st_items').rows()), /note-that-is-new/);
    for (const text of ['payload', 'argument', 'argument-too']) secrets.set(`${text}-e99a18c4`, `what a client sends: ${text}`);
    await client.request('publish', { channel: 'st_items', event: 'hello', payload: { password: 'payload-e99a18c4' } });
    await client.request('call', { function: 'takes', args: { password: 'argument-e99a18c4' } });
    await assert.rejects(client.request('call', { function: 'fails', args: { password: 'argument-e99a18c4' } }), /no/);
    await assert.rejects(client.request('call', { function: 'takes', args: { passwort: 'argument-too-e99a18c4' } }));
    await db.exec("SELECT changefeed.publish('st_items', 'hello', '{\"password\": \"payload-e99a18c4\"}')");
    // Errors of policies, of clients' messages, of a call that is too large
    await db.exec("UPDATE st.items SET owner = 'broken' WHERE id = 2");
    await until(() => client.subscriptions.size === 0 || client.subscriptionsEnded.length > 0 || client.subscriptions.get('st_items').resyncs.length > 0, 'the policy has failed');
    client.send('{"type":"call","args":{"password":"argument-e99a18c4"');
    await client.request('sync').catch(() => {});
    await look('tokens, claims and rows');
  });

  test('keys in files', async () => {
    const message_key = readFileSync(`${process.env.CLUSTER_DATA}/pg_changefeed_message.key`);
    for (const file of [`${process.env.CLUSTER_DATA}/pg_changefeed_message.key`, process.env.JWT_SECRET_FILE, process.env.CLUSTER_DATA]) {
      assert.equal(statSync(file).mode & 0o077, 0, `${file} is its owner's only`);
    }
    secrets.set(message_key.toString('hex'), 'the key of messages (hex)');
    secrets.set(message_key.toString('base64'), 'the key of messages (base64)');
    secrets.set(message_key.toString('latin1'), 'the key of messages');
    const one = certificates.make('secret');
    const lines = readFileSync(one.key, 'utf8').trim().split('\n').slice(1, -1);
    for (const line of lines) if (line.length > 20) secrets.set(line, 'the private key of TLS');
    const set = (cert, key, secret) => reload(db, { 'changefeed.tls_cert_file': cert, 'changefeed.tls_key_file': key, 'changefeed.jwt_secret_file': secret });
    await set(one.cert, one.key, null);
    await until(() => Client.connect({ url: `wss://${host}:${port}/v1/socket`, receive: { rejectUnauthorized: false } }).then((client) => client.cut(), (error) => error.code === '28000' || error.reply), 'TLS');
    // Files that are broken: what is wrong with them is said without their content.
    const broken = `${lines.join('\n')}-broken`;
    await set(one.cert, certificates.write('broken.key', broken), null);
    await set(certificates.write('key-as.crt', readFileSync(one.key)), one.key, certificates.write('short.secret', 'too-short-8c6976e5'));
    secrets.set('too-short-8c6976e5', 'a secret that is too short');
    await assert.rejects(db.token({ role: 'st_web' }), /secret/);
    await set(null, null, null);
    await look('keys');
  });
});
