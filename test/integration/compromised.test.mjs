// A gateway that was taken over. It is stopped, and we are on its end of the link: what the feed
// worker takes from it, what it gives, and that nobody at other gateways notices.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createHmac } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';

import { assertSame, Client, until, within } from './lib/client.mjs';
import { logged } from './lib/log.mjs';
import { Session } from './lib/psql.mjs';
import { randomOf } from './lib/random.mjs';

const GATEWAYS = 16;

// src/link_format.h
const [HELLO, OPEN, MESSAGE, CLOSED, BEHIND, DRAINED, SNAPSHOT_DONE, FLUSHED, PING_DUE, STATS, REQUEST, COLLECTED] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
const [CONNECTIONS, PROBED, SEND, TX_BEGIN, RESPONSE] = [19, 20, 35, 38, 51];
const LOOPBACK = 2;

const u8 = (n) => Buffer.from([n]);
const u16 = (n) => { const b = Buffer.alloc(2); b.writeUInt16LE(n); return b; };
const u32 = (n) => { const b = Buffer.alloc(4); b.writeUInt32LE(n); return b; };
const u64 = (n) => { const b = Buffer.alloc(8); b.writeBigUInt64LE(BigInt(n)); return b; };
const bytes = (text) => Buffer.concat([u32(Buffer.byteLength(text)), Buffer.from(text)]);
const json = (value) => Buffer.from(JSON.stringify(value));
const message = (type, ...parts) => {
  const payload = Buffer.concat(parts);
  return Buffer.concat([u32(payload.length), u16(type), u16(0), payload]);
};
const open = (conn, token = '', peer = '127.0.0.1') => message(OPEN, u32(conn), u8(1), bytes(peer), bytes(token));
const say = (conn, value) => message(MESSAGE, u32(conn), json(value));
const request = (conn, path, { flags = 0, token = '', peer = '10.0.0.1', method = 1, args = [], body = '' } = {}) => message(
  REQUEST, u32(conn), u8(method), u8(flags), bytes(path), bytes(peer), bytes(token), bytes(''), bytes(''), bytes(''),
  u32(args.length), ...args.map(bytes), Buffer.from(body),
);

// A copy of its end of the link, as descriptor 3 is: pidfd_open, pidfd_getfd
const TAKE = `
  my $pid = syscall(434, int $ARGV[0], 0); die "pidfd_open: $!\\n" if $pid < 0;
  my $fd = syscall(438, $pid, 3, 0); die "pidfd_getfd: $!\\n" if $fd < 0;
  open(my $link, '+<&=', $fd) or die "$!\\n";
  my ($in, $out) = ('', '');
  vec($in, 0, 1) = 1; vec($in, $fd, 1) = 1;
  binmode($_) for \\*STDIN, \\*STDOUT, $link;
  syswrite(STDOUT, 'taken');
  while (1) {
    my ($r, $w) = ($in, ''); vec($w, $fd, 1) = 1 if $out ne '';
    select($r, $w, undef, undef);
    if (vec($w, $fd, 1)) { my $n = syswrite($link, $out); exit 0 if !defined $n && !$!{EAGAIN}; substr($out, 0, $n, '') if $n; }
    if (vec($r, 0, 1)) { my $n = sysread(STDIN, $out, 1 << 16, length $out); vec($in, 0, 1) = 0 if !$n; exit 0 if !$n && $out eq ''; }
    if (vec($r, $fd, 1)) { my $n = sysread($link, my $got, 1 << 16); exit 0 if !$n; syswrite(STDOUT, $got); }
  }`;

/** The link of a gateway that is stopped. */
class Taken {
  ended = false;
  got = [];
  #in = Buffer.alloc(0);

  static async take(pid) {
    process.kill(pid, 'SIGSTOP');
    await until(() => readFileSync(`/proc/${pid}/stat`, 'utf8').match(/\) T /), 'the gateway stops');
    const taken = new Taken();
    taken.pid = pid;
    taken.process = spawn('perl', ['-MErrno', '-e', TAKE, String(pid)], { stdio: ['pipe', 'pipe', 'pipe'] });
    let errors = '';
    taken.process.stderr.on('data', (data) => { errors += data; });
    taken.process.stdin.on('error', () => {});
    taken.over = new Promise((resolve) => { taken.process.on('close', () => { taken.ended = true; resolve(); }); });
    await new Promise((resolve, reject) => {
      taken.process.stdout.once('data', (data) => {
        assert.equal(String(data.subarray(0, 5)), 'taken');
        taken.process.stdout.on('data', (more) => taken.#receive(more));
        taken.#receive(data.subarray(5));
        resolve();
      });
      taken.over.then(() => reject(Object.assign(new Error(errors), { refused: /Operation not permitted/.test(errors) })));
    });
    return taken;
  }

  #receive(data) {
    this.#in = Buffer.concat([this.#in, data]);
    while (this.#in.length >= 8 && this.#in.length >= 8 + this.#in.readUInt32LE(0)) {
      const end = 8 + this.#in.readUInt32LE(0);
      this.got.push({ type: this.#in.readUInt16LE(4), payload: Buffer.from(this.#in.subarray(8, end)) });
      this.#in = this.#in.subarray(end);
    }
  }

  send(...messages) {
    this.process.stdin.write(Buffer.concat(messages));
  }

  /** JSON messages that connection `conn` was sent. */
  said(conn) {
    return this.got.filter(({ type, payload }) => type === SEND && payload.readUInt32LE(0) === conn).map(({ payload }) => JSON.parse(payload.subarray(4)));
  }

  /** What was sent so far was handled: an answer comes behind it. */
  async handled() {
    const conn = Taken.next++;
    this.send(open(conn), say(conn, { type: 'nothing', id: 1 }));
    await until(() => this.said(conn).length > 0, 'the feed worker has handled what it was sent');
    this.send(message(CLOSED, u32(conn), u8(1)));
  }

  async giveUp() {
    try { process.kill(this.pid, 'SIGKILL'); } catch { /* it was ended */ }
    this.process.stdin.end();
    this.process.kill();
    await this.over;
  }

  static next = 1_000_000;
}

describe('a compromised gateway', () => {
  let db;
  let worker;
  let victim;
  let mallory;
  let tokens;
  let unused; // gateways without clients
  let skip = false;
  const taken = [];

  const feed = () => db.value('SELECT feed_worker_pid FROM changefeed.stat_feed');
  const gatewayOf = (client) => db.value(`SELECT g.pid FROM changefeed.stat_connections c JOIN changefeed.stat_gateways g USING (gateway) WHERE c.session = '${client.connected.session}'`);

  async function take(pid = unused.pop()) {
    const one = await Taken.take(Number(pid));
    taken.push(one);
    return one;
  }

  async function victimIsWell(what) {
    await db.exec("UPDATE cg.items SET n = n + 1 WHERE owner = 'victim'");
    await victim.settle();
    victim.check();
    assert.equal(victim.closed, null, `${what}: the client at another gateway is there`);
    assertSame(victim.subscriptions.get('cg_items').rows(), await db.rowsAs({ role: 'cg_web', sub: 'victim' }, 'SELECT * FROM cg.items'), what);
    assert.equal(await feed(), worker, `${what}: the feed worker is the same`);
  }

  before(async () => {
    db = new Session();
    await db.exec(`CREATE SCHEMA cg; CREATE ROLE cg_web; GRANT USAGE ON SCHEMA cg TO cg_web;
      SELECT changefeed.allow_role('cg_web');
      CREATE TABLE cg.items (id int PRIMARY KEY, owner text, n int);
      ALTER TABLE cg.items ENABLE ROW LEVEL SECURITY;
      CREATE POLICY own ON cg.items USING (owner = current_setting('request.jwt.claims')::json->>'sub');
      GRANT SELECT ON cg.items TO cg_web;
      INSERT INTO cg.items SELECT i, (ARRAY['victim', 'mallory'])[1 + i % 2], 0 FROM generate_series(1, 100) i;
      SELECT changefeed.create_channel('cg_items', 'cg.items');
      ALTER DATABASE ${process.env.PGDATABASE} SET changefeed.gateways = ${GATEWAYS}`);
    tokens = { victim: await db.token({ role: 'cg_web', sub: 'victim' }), mallory: await db.token({ role: 'cg_web', sub: 'mallory' }) };
    const pid = await until(feed, 'a feed worker');
    await db.exec(`SELECT pg_terminate_backend(${pid})`);
    await until(async () => !['', pid].includes(await feed()), 'another feed worker');
    await until(async () => Number(await db.value('SELECT count(*) FROM changefeed.stat_gateways').catch(() => 0)) === GATEWAYS, 'all gateways');
    worker = await feed();
    victim = await Client.connectSoon({ token: tokens.victim });
    await victim.openSoon('cg_items');
    // Which gateway takes whom is a matter of who is first, and of how many each has.
    const others = [];
    const with_clients = [await gatewayOf(victim)];
    mallory = await until(async () => {
      const client = await Client.connectSoon({ token: tokens.mallory });
      with_clients[1] = await gatewayOf(client);
      if (with_clients[1] !== with_clients[0]) return client;
      others.push(client);
      return null;
    }, 'a client at another gateway');
    for (const client of others) await client.cut();
    await mallory.openSoon('cg_items');
    unused = (await db.value('SELECT string_agg(pid::text, \',\') FROM changefeed.stat_gateways')).split(',').filter((one) => !with_clients.includes(one));
    // Only root, or a kernel that lets a user look at all of its processes, can play this.
    await Taken.take(Number(unused[0])).then((one) => one.giveUp()).catch((error) => {
      if (!error.refused) throw error;
      process.kill(Number(unused[0]), 'SIGCONT');
      skip = 'this machine lets nobody but root look into other processes';
    });
    unused.shift();
  });

  after(async () => {
    for (const one of taken) await one.giveUp();
    for (const client of [victim, mallory]) await client?.cut();
    await db?.exec(`ALTER DATABASE ${process.env.PGDATABASE} RESET changefeed.gateways`);
    await db?.close();
  });

  test('it speaks for its own clients, and for nobody else\'s', async (t) => {
    if (skip) return t.skip(skip);
    const link = await take(await gatewayOf(mallory));
    // Numbers of connections are small, and each gateway counts for itself.
    for (let conn = 1; conn < 100; conn++) link.send(say(conn, { type: 'unsubscribe', channel: 'cg_items', id: 'stolen' }), message(BEHIND, u32(conn), u64(0)));
    await link.handled();
    const answers = [...Array(100).keys()].flatMap((conn) => link.said(conn)).filter(({ id }) => id === 'stolen');
    assert.deepEqual(answers, [{ type: 'ok', id: 'stolen' }], 'its own client was unsubscribed');
    await victimIsWell('messages in the name of all numbers');
    // Nothing but what its client may see comes to it.
    await db.exec("UPDATE cg.items SET n = n + 1, owner = owner WHERE owner = 'victim'");
    await victim.settle();
    await link.handled();
    for (const { payload } of link.got) assert.ok(!payload.includes('"victim"'), 'rows of others are not sent to it');
  });

  test('it cannot make an identity', async (t) => {
    if (skip) return t.skip(skip);
    const link = await take();
    const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
    const unsigned = `${part({ alg: 'HS256', typ: 'JWT' })}.${part({ role: 'cg_web', sub: 'victim', exp: Math.floor(Date.now() / 1000) + 3600 })}`;
    const forged = `${unsigned}.${createHmac('sha256', 'a secret of its own, longer than 32 bytes').update(unsigned).digest('base64url')}`;
    const none = `${part({ alg: 'none', typ: 'JWT' })}.${unsigned.split('.')[1]}.`;
    [forged, none, `${tokens.victim}x`, ''].forEach((token, i) => {
      const conn = 500 + i;
      link.send(open(conn, token), say(conn, { type: 'connect', id: 1 }), say(conn, { type: 'subscribe', channel: 'cg_items', id: 2 }));
      link.send(open(conn + 100), say(conn + 100, { type: 'connect', id: 1, token }), say(conn + 100, { type: 'subscribe', channel: 'cg_items', id: 2 }));
      link.send(request(conn + 200, '/v1/poll', { token, args: ['channel=cg_items'] }));
    });
    await link.handled();
    for (let conn = 500; conn < 604; conn++) {
      for (const reply of link.said(conn)) if (reply.id === 2) assert.equal(reply.type, 'error', JSON.stringify(reply));
    }
    assert.equal(await db.value(`SELECT count(*) FROM changefeed.stat_connections c JOIN changefeed.stat_gateways g USING (gateway) WHERE g.pid = ${link.pid} AND role = 'cg_web'`), '0');
    for (const { payload } of link.got) assert.ok(!payload.includes('"victim"'), 'no row came');
    await victimIsWell('forged tokens');
    // A token that a client has shown is another thing: it has that.
    link.send(open(900, tokens.mallory), say(900, { type: 'connect', id: 1 }));
    await until(() => link.said(900).some(({ type }) => type === 'connected'), 'a stolen token is good');
  });

  test('it can say that a request came from this machine, which shows statistics, and no rows', async (t) => {
    if (skip) return t.skip(skip);
    const link = await take();
    const answer = async (conn, path, options) => {
      link.send(request(conn, path, options));
      const { payload } = await until(() => link.got.find((one) => one.type === RESPONSE && one.payload.readUInt32LE(0) === conn), `an answer for ${path}`);
      return { status: payload.readUInt16LE(4), text: String(payload) };
    };
    assert.equal((await answer(1, '/metrics')).status, 403);
    assert.equal((await answer(2, '/metrics', { flags: LOOPBACK })).status, 200);
    const connections = await answer(3, '/admin/connections', { flags: LOOPBACK });
    assert.match(connections.text, /"subject":"victim"/);
    let conn = 10;
    for (const path of ['subscriptions', 'channels', 'gateways']) assert.equal((await answer(conn++, `/admin/${path}`, { flags: LOOPBACK })).status, 200);
    // What runs SQL takes a token, wherever it comes from.
    assert.equal((await answer(40, '/admin/explain', { flags: LOOPBACK, method: 2, body: '{"channel":"cg_items","claims":{}}' })).status, 401);
    await victimIsWell('requests from this machine');
    for (const { payload } of link.got) assert.ok(!payload.includes(tokens.victim), 'no token is shown');
  });

  // One gateway for each, since one that has just been started is not started again at once.
  const violations = {
    'connection 7 was opened twice': () => [open(7), open(7)],
    'connection 8 was opened twice': () => [open(8), request(8, '/metrics')],
    'it said twice who it is': () => [message(HELLO, u32(1), u32(1), bytes('4'))],
    'a message of type 2 is malformed': () => [open(9, '', 'x'.repeat(1000))],
    'a message of type 11 is malformed': () => [message(REQUEST, u32(10), u8(1), u8(0), ...Array(6).fill(bytes('')), u32(2 ** 31), Buffer.alloc(100))],
    'a message of type 9 is malformed': () => [message(PING_DUE, u32(2 ** 30), u32(1))],
    'a message of type 10 is malformed': () => [message(STATS, Buffer.alloc(8 * 25), u32(1), bytes('"},{"'), u64(1), u64(0))],
    'there are no messages of type 54': () => [open(11), message(54, u32(11))],
    'there are more connections than it may have': () => [...Array(3000).keys()].map((i) => open(20000 + i)),
    'has ended': () => [Buffer.concat([u32(100 * 1024 * 1024), u16(MESSAGE), u16(0)])],
  };
  for (const [why, lies] of Object.entries(violations)) {
    test(`what no honest gateway says ends it, and nobody else: ${why}`, async (t) => {
      if (skip) return t.skip(skip);
      const link = await take();
      const log = logged();
      link.send(...lies());
      await within(20000, link.over, 'the link is closed');
      const said = await log.wait(/gateway with PID (\d+) (?:breaks the rules of the link: )?(.*)/);
      assert.deepEqual([Number(said[1]), said[2]], [link.pid, why]);
      await until(() => { try { process.kill(link.pid, 0); return false; } catch { return true; } }, 'its process is gone');
      await victimIsWell(why);
    });
  }

  test('whatever it says that has the right form harms nobody else', async (t) => {
    if (skip) return t.skip(skip);
    const link = await take();
    const seed = Number(process.env.SEED ?? Date.now() % 1e9);
    t.diagnostic(`SEED=${seed}`);
    const { random, pick: choose } = randomOf(seed);
    const pick = (list) => choose(...list);
    const big = () => pick([0, 1, 2, random(100), 2 ** 31, 2 ** 32 - 1]);
    const huge = () => pick([0n, 1n, BigInt(random(1e6)), 2n ** 63n, 2n ** 64n - 1n]);
    const sockets = [...Array(12).keys()].map((i) => 100 + i);
    const requests = [];
    let next = 1000;
    const what = () => pick([
      { type: 'subscribe', channel: 'cg_items', id: big() }, { type: 'subscribe', channel: 'cg_items', from: 'x'.repeat(40), id: 1 }, { type: 'unsubscribe', channel: 'cg_items', id: 2 },
      { type: 'sync', id: 3 }, { type: 'pong' }, { type: 'connect', token: pick([tokens.mallory, 'x', '']), id: 4 }, { type: 'publish', channel: 'cg_items', event: 'x', id: 5 }, 7, null, [],
    ]);
    for (const conn of sockets) link.send(open(conn, tokens.mallory), say(conn, { type: 'connect', id: 0 }));
    for (let i = 0; i < 4000; i++) {
      const conn = random(10) < 7 ? pick(sockets) : pick([...requests, big()]);
      switch (random(13)) {
        case 0: link.send(message(CLOSED, u32(conn), u8(random(256)))); link.send(open(next, tokens.mallory)); sockets[random(12)] = next++; break;
        case 1: link.send(message(BEHIND, u32(conn), u64(huge()))); break;
        case 2: link.send(message(DRAINED, u32(conn))); break;
        case 3: link.send(message(SNAPSHOT_DONE, u32(conn), u32(big()), u8(random(3)))); break;
        case 4: link.send(message(FLUSHED, u32(conn), u32(big()))); break;
        case 5: link.send(message(PING_DUE, u32(3), u32(conn), u32(conn), u32(big()))); break;
        case 6: link.send(message(COLLECTED, u32(conn))); break;
        case 7: link.send(message(CONNECTIONS, u32(1), u32(conn), u64(huge()), u64(huge()), u64(huge()), u64(huge()))); break;
        case 8: link.send(message(PROBED, u64(huge()))); break;
        case 9:
          link.send(request(next, pick(['/v1/poll', '/v1/events', '/v1/publish', '/v1/call/x', '/metrics', '/healthz', '/', '/admin/connections', 'x', '']), {
            flags: random(256), token: pick([tokens.mallory, '', 'x']), peer: pick(['unix', '::1', '10.0.0.1', '']), method: random(256), args: pick([[], ['channel=cg_items'], ['channel=cg_items', 'wait=1', 'from=x'], ['=', '']]), body: pick(['', '{}', '{"channel":"cg_items","event":"x"}', '\0']),
          }));
          requests.push(next++);
          break;
        default: link.send(say(conn, what()));
      }
      if (i % 100 === 99) await db.exec("UPDATE cg.items SET n = n + 1 WHERE owner = 'mallory'");
      if (i % 500 === 499) {
        await link.handled();
        await victimIsWell(`SEED=${seed}, after ${i} messages`);
      }
    }
    assert.ok(link.got.some(({ type }) => type === TX_BEGIN), 'some of it was taken: it was sent changes');
    assert.equal(link.ended, false);
    // Statistics with such numbers in them can still be read.
    for (const view of ['connections', 'subscriptions', 'channels', 'gateways']) await db.exec(`SELECT * FROM changefeed.stat_${view}`);
    assert.match(await db.value('SELECT changefeed.metrics()'), /changefeed_build_info/);
  });
});
