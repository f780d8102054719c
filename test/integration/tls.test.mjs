// TLS of the gateway: what it speaks, which files it takes, and what a reload
// does to connections that are there.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import net from 'node:net';
import { dirname } from 'node:path';
import { after, before, describe, test } from 'node:test';
import tls from 'node:tls';

import { Certificates } from './lib/certificates.mjs';
import { assertSame, Client, until, within } from './lib/client.mjs';
import { logged } from './lib/log.mjs';
import { quote, Session } from './lib/psql.mjs';

const { hostname: host, port } = new URL(process.env.WS_URL);
const WSS = `wss://${host}:${port}/v1/socket`;

describe('TLS', () => {
  let db;
  let token;
  let certificates;
  let one;
  let two;
  const clients = [];

  before(async () => {
    certificates = new Certificates(dirname(process.env.CLUSTER_DATA));
    one = certificates.make('one');
    two = certificates.make('two', { rsa: 2048 });
    db = new Session();
    await db.exec(`CREATE SCHEMA tl; CREATE ROLE tl_web; GRANT USAGE ON SCHEMA tl TO tl_web;
      ALTER DEFAULT PRIVILEGES IN SCHEMA tl GRANT SELECT ON TABLES TO tl_web;
      SELECT changefeed.allow_role('tl_web');
      CREATE TABLE tl.items (id int PRIMARY KEY, n int, text text);
      INSERT INTO tl.items VALUES (1, 1, 'first');
      SELECT changefeed.create_channel('tl_items', 'tl.items')`);
    token = await db.token({ role: 'tl_web' });
  });

  after(async () => {
    for (const client of clients) await client.cut();
    await db?.close();
    certificates?.remove();
  });

  async function set(cert, key) {
    await db.exec(`ALTER SYSTEM SET changefeed.tls_cert_file = ${quote(cert)}; ALTER SYSTEM SET changefeed.tls_key_file = ${quote(key)}; SELECT pg_reload_conf()`);
  }

  function handshake(options = {}) {
    return new Promise((resolve, reject) => {
      const socket = tls.connect({ host, port, rejectUnauthorized: false, ...options }, () => {
        resolve({ protocol: socket.getProtocol(), cipher: socket.getCipher().name, alpn: socket.alpnProtocol, subject: socket.getPeerCertificate().subject?.CN, resumed: socket.isSessionReused() });
        socket.destroy();
      });
      socket.on('error', reject);
    });
  }

  const subject = () => handshake().then((it) => it.subject, () => null);
  const speaksPlain = () => fetch(process.env.HTTP_URL).then((answer) => answer.status === 200, () => false);

  async function connect(pem) {
    const client = await Client.connectSoon({ url: WSS, token, receive: { ca: pem } });
    clients.push(client);
    return client;
  }

  async function converges(client, what) {
    const items = client.subscriptions.get('tl_items') ?? await client.openSoon('tl_items');
    await db.exec("UPDATE tl.items SET n = n + 1; INSERT INTO tl.items SELECT max(id) + 1, 0, 'more' FROM tl.items");
    await client.settle();
    client.check();
    assertSame(items.rows(), await db.rows('SELECT * FROM tl.items'), what);
    assert.deepEqual(items.resyncs, [], what);
  }

  /** Closed by the server; resolves to the milliseconds it took. */
  function waitsForClose(first) {
    const begin = Date.now();
    return new Promise((resolve) => {
      const socket = net.connect({ host, port }, () => first && socket.write(first));
      socket.on('error', () => {});
      socket.on('close', () => resolve(Date.now() - begin));
      socket.resume();
    });
  }

  /** A request whose body comes in pieces: [status, answer]. */
  async function post(how, body, options = {}) {
    return within(10000, new Promise((resolve, reject) => {
      const request = how.request({ host, port, path: '/v1/publish', method: 'POST', agent: false, headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json', 'content-length': body.length }, ...options }, (answer) => {
        let text = '';
        answer.setEncoding('utf8').on('data', (data) => { text += data; }).on('end', () => resolve([answer.statusCode, text]));
      }).on('error', reject);
      for (let i = 0; i < body.length; i += 20000) request.write(body.slice(i, i + 20000));
      request.end();
    }), 'answer');
  }

  const BODIES = [100, 16384, 60000].map((n) => JSON.stringify({ channel: 'tl_none', payload: 'x'.repeat(n) }));
  let plain;
  let plainAnswers;
  let silent;

  test('is turned on by a reload: connections without it go on, new ones have to use it', async () => {
    plain = await Client.connectSoon({ token });
    clients.push(plain);
    await converges(plain, 'plain');
    plainAnswers = await Promise.all(BODIES.map((body) => post(http, body)));
    await set(one.cert, one.key);
    await until(async () => await subject() === 'one', 'TLS is spoken');
    silent = [waitsForClose(), waitsForClose(Buffer.from('160301', 'hex'))];
    await converges(plain, 'plain, while TLS is on');
    await converges(await connect(one.pem), 'with TLS');
    await assert.rejects(Client.connect({ url: WSS, token }), /self-signed certificate/, 'the client verifies');
  });

  test('nobody keeps the file open in which the key travelled', async () => {
    const pids = (await db.value("SELECT gateway_pid || ' ' || feed_worker_pid FROM changefeed.stat_feed")).split(' ');
    const files = pids.map((pid) => readdirSync(`/proc/${pid}/fd`).map((fd) => readlinkSync(`/proc/${pid}/fd/${fd}`)));
    assert.ok(files.every((names) => names.some((name) => name.startsWith('socket:'))));
    assert.deepEqual(files.flat().filter((name) => /memfd|\.key|\.crt/.test(name)), []);
  });

  test('close codes arrive, and whoever closes is answered', async () => {
    const client = new Client({ url: WSS, receive: { ca: one.pem } });
    await client.opened;
    await assert.rejects(client.request('connect', { token: 'none' }));
    assert.equal((await within(5000, client.ended, 'close')).code, 4003);
    const large = await connect(one.pem);
    large.send('x'.repeat(200000));
    assert.equal((await within(5000, large.ended, 'close')).code, 1009);
    const other = await connect(one.pem);
    other.socket.close(3001, 'mine');
    assert.deepEqual(await within(5000, other.ended, 'answer'), { code: 3001, reason: 'mine' });
  });

  test('versions, ciphers, ALPN', async () => {
    const best = await handshake({ ALPNProtocols: ['h2', 'http/1.1'] });
    assert.deepEqual([best.protocol, best.alpn], ['TLSv1.3', 'http/1.1']);
    const older = await handshake({ maxVersion: 'TLSv1.2' });
    assert.deepEqual([older.protocol, older.cipher], ['TLSv1.2', 'ECDHE-ECDSA-AES256-GCM-SHA384']);
    for (const [why, options] of [
      ['TLS 1.1', { minVersion: 'TLSv1.1', maxVersion: 'TLSv1.1', ciphers: 'DEFAULT@SECLEVEL=0' }],
      ['CBC', { maxVersion: 'TLSv1.2', ciphers: 'ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES128-SHA256' }],
    ]) await assert.rejects(handshake(options), /alert|handshake failure|version/i, why);

    const told = await new Promise((resolve) => {
      const client = spawn('openssl', ['s_client', '-connect', `${host}:${port}`, '-tls1_2', '-legacy_renegotiation']);
      let out = '';
      client.stdout.setEncoding('utf8').on('data', (data) => {
        out += data;
        if (/Verify return code/.test(out) && !client.asked) client.asked = client.stdin.write('R\n');
      });
      client.stderr.setEncoding('utf8').on('data', (data) => { out += data; });
      client.stdin.on('error', () => {});
      client.on('close', () => resolve(out));
    });
    assert.match(told, /Compression: NONE/);
    assert.match(told, /Session-ID: \s*\n/, 'no session that could be resumed');
    assert.doesNotMatch(told, /TLS session ticket:/);
    assert.match(told, /no renegotiation/);
  });

  test('who speaks without TLS is dropped unanswered', async () => {
    const ask = (text) => new Promise((resolve) => {
      let answer = '';
      const socket = net.connect({ host, port }, () => socket.write(text));
      socket.on('error', () => {});
      socket.on('data', (data) => { answer += data.toString('latin1'); }).on('close', () => resolve(answer));
    });
    for (const text of [
      `GET / HTTP/1.1\r\nHost: ${host}:${port}\r\n\r\n`,
      `GET /v1/socket HTTP/1.1\r\nHost: ${host}:${port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n`,
      'x'.repeat(40000),
    ]) assert.doesNotMatch(await within(3000, ask(text), 'close'), /HTTP/);
  });

  test('the console over https, and origins', async () => {
    const page = await new Promise((resolve, reject) => https.get({ host, port, ca: one.pem, path: '/' }, (answer) => {
      let length = 0;
      answer.on('data', (data) => { length += data.length; }).on('end', () => resolve([answer.statusCode, length === Number(answer.headers['content-length'])]));
    }).on('error', reject));
    assert.deepEqual(page, [200, true]);
    const from = (origin) => Client.connect({ url: WSS, token, headers: { origin }, receive: { ca: one.pem } }).then((client) => client.close().then(() => 'accepted'), (error) => error.message);
    assert.equal(await from(`https://${host}:${port}`), 'accepted');
    assert.match(await from(`http://${host}:${port}`), /403/, 'a page that came without TLS');
    assert.match(await from('https://elsewhere.example'), /403/);
  });

  test('requests with bodies get the same answers as without TLS', async () => {
    assert.ok(plainAnswers.every(([, text]) => JSON.parse(text).type));
    assert.deepEqual(await Promise.all(BODIES.map((body) => post(https, body, { ca: one.pem }))), plainAnswers);
  });

  test('many and large messages in one record, both ways', async () => {
    const client = await connect(one.pem);
    await client.openSoon('tl_items');
    const answers = await Promise.allSettled(Array.from({ length: 500 }, (_, i) => client.request('unsubscribe', { channel: `none${i}` }, { ms: 60000 })));
    assert.deepEqual(answers.filter(({ reason }) => reason?.code !== '42704'), []);
    await db.exec("INSERT INTO tl.items SELECT 1000 + i, i, repeat(md5(i::text), 100) FROM generate_series(1, 3000) i");
    await converges(client, 'a transaction of 10 MB');
    const other = await connect(one.pem);
    await converges(other, 'a snapshot of 10 MB');
    // Larger than a record of TLS, and than what lws reads at once.
    await assert.rejects(client.request('subscribe', { channel: 'x'.repeat(40000) }), { code: '42622' });
    await client.sync();
    await db.exec('DELETE FROM tl.items WHERE id > 1000');
    await converges(client, 'behind it');
  });

  test('a client that stops reading catches up', async () => {
    const client = await connect(one.pem);
    const items = await client.openSoon('tl_items');
    client.socket.pause();
    for (let i = 0; i < 30; i += 1) await db.exec(`UPDATE tl.items SET n = n + 1, text = repeat(md5(n::text), ${10000 + i}) WHERE id = 1`);
    client.socket.resume();
    await client.settle();
    client.check();
    assertSame(items.rows(), await db.rows('SELECT * FROM tl.items'), 'rows');
  });

  test('a reload with another certificate: new connections get it, old ones go on', async () => {
    const client = await connect(one.pem);
    await converges(client, 'before');
    await set(two.cert, two.key);
    await until(async () => await subject() === 'two', 'another certificate');
    // Not even those who could do only with the old one's kind of key.
    await assert.rejects(handshake({ maxVersion: 'TLSv1.2', ciphers: 'ECDHE-ECDSA-AES256-GCM-SHA384' }), /handshake failure/);
    await converges(client, 'over the old connection');
    await converges(await connect(two.pem), 'over a new one');

    // The same names, another content.
    const three = certificates.make('three');
    certificates.write('two.crt', three.pem, 0o644);
    certificates.write('two.key', readFileSync(three.key));
    await db.exec('SELECT pg_reload_conf()');
    await until(async () => await subject() === 'three', 'the changed files');
    await converges(client, 'over the oldest connection');
    await set(one.cert, one.key);
    await until(async () => await subject() === 'one', 'the first again');
  });

  test('files that cannot be used: what was there stays, and the log says why', async () => {
    const locked = certificates.make('locked', { passphrase: 'secret' });
    const weak = certificates.make('weak', { rsa: 1024 });
    const open = certificates.write('open.key', readFileSync(one.key), 0o640);
    const chain = certificates.write('chain.crt', `${one.pem}${two.pem.slice(0, 200)}\n-----END CERTIFICATE-----\n`, 0o644);
    const before = await connect(one.pem);
    for (const [cert, key, reason] of [
      [certificates.path('missing.crt'), one.key, /missing\.crt" of changefeed\.tls_cert_file could not be opened: No such file or directory/],
      [one.cert, '', /changefeed\.tls_cert_file is set, and changefeed\.tls_key_file is not/],
      [one.cert, two.key, /two\.key" does not belong to the certificate in file .*one\.crt"/],
      [one.cert, locked.key, /locked\.key" is protected by a passphrase/],
      [one.cert, one.cert, /one\.crt" of changefeed\.tls_key_file can be read by others/],
      [one.cert, open, /open\.key" of changefeed\.tls_key_file can be read by others/],
      [one.key, one.key, /one\.key" holds no certificate in PEM format/],
      [one.cert, certificates.write('no.key', one.pem), /no\.key" holds no private key in PEM format/],
      [chain, one.key, /certificate behind the first one in file .*chain\.crt" is damaged/],
      [weak.cert, weak.key, /OpenSSL refuses the certificate in file .*weak\.crt": ee key too small/],
      [certificates.directory, one.key, /is not a regular file/],
    ]) {
      const { wait: said } = logged();
      await set(cert, key);
      await said(/certificate and key of the change feed were not read again/);
      const [text] = await said(/DETAIL: .*/);
      assert.match(text, reason);
      assert.match(text, /The certificate that was loaded before stays in use/);
      assert.doesNotMatch(text, /BEGIN/);
      assert.equal(await subject(), 'one');
    }
    await converges(before, 'meanwhile');
  });

  test('who says nothing, or begins a handshake and stops, is dropped', async () => {
    for (const ms of await within(20000, Promise.all(silent), 'dropped')) assert.ok(ms > 5000 && ms < 15000, `${ms} ms`);
  });

  test('a gateway that is started again has the pair that was good', async () => {
    const gateway = async () => Number(await db.value('SELECT gateway_pid FROM changefeed.stat_feed'));
    const pid = await until(gateway, 'a gateway');
    await set(one.cert, two.key);
    process.kill(pid, 'SIGKILL');
    await until(async () => ![0, pid].includes(await gateway()), 'another gateway');
    await until(async () => await subject() === 'one', 'TLS as before');
    await set(one.cert, one.key);
  });

  test('an expired certificate is used, with a warning', async () => {
    // Ends in the second in which it begins; newer openssl programs make none that ends before.
    const expired = certificates.make('expired', { days: 0 });
    const made = Date.now();
    await until(() => Date.now() > made + 2000, 'a later second');
    const { wait: said } = logged();
    await set(expired.cert, expired.key);
    await said(/WARNING: .*expired\.crt" of the change feed has expired/);
    await until(async () => await subject() === 'expired', 'the expired one');
    await assert.rejects(Client.connect({ url: WSS, token, receive: { ca: expired.pem } }), /expired/);
  });

  test('files that cannot be used at the start: nothing listens until they can', async () => {
    const { wait: said } = logged();
    await set(one.cert, two.key);
    await said(/were not read again/); // so the next worker finds these settings
    await db.exec('SELECT pg_terminate_backend(feed_worker_pid) FROM changefeed.stat_feed');
    await said(/changefeed does not listen, because it cannot use TLS as it is set/);
    await said(/two\.key" does not belong to the certificate/);
    assert.equal(await db.value('SELECT port IS NULL FROM changefeed.stat_feed'), 't');
    await assert.rejects(handshake(), /ECONNREFUSED/);
    await set(one.cert, one.key);
    await until(async () => await subject() === 'one', 'it listens', 5000);
  });

  test('is turned off by a reload', async () => {
    const client = await connect(one.pem);
    await db.exec('ALTER SYSTEM RESET changefeed.tls_cert_file; ALTER SYSTEM RESET changefeed.tls_key_file; SELECT pg_reload_conf()');
    await until(() => speaksPlain(), 'plain');
    await converges(client, 'over TLS, still');
    const again = await Client.connectSoon({ token });
    clients.push(again);
    await converges(again, 'without TLS');
  });
});
