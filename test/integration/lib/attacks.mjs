// Clients that mean no good, in a process of their own:
//
//   node attacks.mjs NAME,NAME... SECONDS PORT TOKEN
//
// Each attack runs for that time and tells how its connections ended: close codes, codes of error
// messages, HTTP statuses, "dropped". All of it goes out as one JSON object of attack to outcome to
// number. Each attack comes from an address of its own, in the order of ATTACKS: 127.0.1.1, ...

import { randomBytes } from 'node:crypto';
import { connect } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { deflateRawSync, gzipSync } from 'node:zlib';

/** A frame of a client; the mask is 0, so the payload is as it is. */
export function frame(first, payload = '', length = undefined) {
  const data = Buffer.from(payload);
  const n = length ?? data.length;
  let head;
  if (n < 126) head = Buffer.from([first, 0x80 | n, 0, 0, 0, 0]);
  else if (n < 65536) head = Buffer.from([first, 0x80 | 126, n >> 8, n & 255, 0, 0, 0, 0]);
  else {
    head = Buffer.alloc(14);
    head[0] = first;
    head[1] = 0x80 | 127;
    head.writeBigUInt64BE(BigInt(n), 2);
  }
  return Buffer.concat([head, data]);
}

const text = (message) => frame(0x81, typeof message === 'string' ? message : JSON.stringify(message));

const UPGRADE = 'GET /v1/socket HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n'
  + 'Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n';

class Attacker {
  status = null; // of the HTTP answer
  errors = new Set(); // codes of error messages
  closed = null; // close code
  over = false;
  #in = Buffer.alloc(0);
  #waiters = [];

  constructor(port, from) {
    this.socket = connect({ port, host: '127.0.0.1', localAddress: from });
    this.socket.on('data', (data) => this.#take(data));
    this.socket.on('error', () => {});
    this.ended = new Promise((resolve) => this.socket.on('close', () => {
      this.over = true;
      this.#wake();
      resolve();
    }));
  }

  #wake() {
    for (const resolve of this.#waiters.splice(0)) resolve();
  }

  /** Until that holds or the connection is over. */
  async until(condition) {
    while (!condition() && !this.over) await new Promise((resolve) => this.#waiters.push(resolve));
  }

  #take(data) {
    this.#in = Buffer.concat([this.#in, data]);
    if (this.status === null) {
      const end = this.#in.indexOf('\r\n\r\n');
      if (end < 0) return;
      this.status = Number(String(this.#in.subarray(9, 12)));
      this.#in = this.status === 101 ? this.#in.subarray(end + 4) : Buffer.alloc(0);
    }
    if (this.status !== 101) this.#in = Buffer.alloc(0);
    for (;;) {
      let n = this.#in.length > 1 ? this.#in[1] : Infinity;
      let head = 2;
      if (n === 126 && this.#in.length >= 4) [n, head] = [this.#in.readUInt16BE(2), 4];
      else if (n === 127 && this.#in.length >= 10) [n, head] = [Number(this.#in.readBigUInt64BE(2)), 10];
      else if (n >= 126) break;
      if (this.#in.length < head + n) break;
      const payload = this.#in.subarray(head, head + n);
      if ((this.#in[0] & 15) === 8) {
        this.closed = payload.length >= 2 ? payload.readUInt16BE(0) : 1005;
        this.socket.end(frame(0x88, payload.subarray(0, 2)));
      } else if ((this.#in[0] & 15) === 1) {
        const code = /^\{"type":"error".*?"code":"(\w+)"/.exec(String(payload))?.[1];
        if (code) this.errors.add(code);
      }
      this.#in = this.#in.subarray(head + n);
    }
    this.#wake();
  }

  async upgrade(token, headers = '') {
    this.write(UPGRADE.replace(/\r\n$/, `${headers}\r\n`));
    await this.until(() => this.status !== null);
    if (this.status === 101 && token) this.write(text({ type: 'connect', id: 0, token }));
    return this.status === 101;
  }

  /** False when the socket does not take more for now. */
  write(data) {
    return !this.over && !this.socket.destroyed && this.socket.write(data);
  }

  async flushed() {
    if (this.socket.writableNeedDrain && !this.over) {
      await pause(20);
    }
  }

  outcome() {
    if (this.closed !== null) return String(this.closed);
    if (this.status !== null && this.status !== 101) return String(this.status);
    return this.over ? 'dropped' : 'open';
  }
}

/** Attacks take (client, end): a function that makes one, and when to stop; and tell outcomes. */
const flood = (connections, make) => async (client, end, tell, token) => {
  await Promise.all(Array.from({ length: connections }, async () => {
    const c = client();
    if (await c.upgrade(token)) {
      for (let i = 0; !c.over && c.closed === null && Date.now() < end; i += 1) {
        c.write(make(i));
        await c.flushed();
        await pause(1);
      }
    }
    for (const code of c.errors) tell(code);
    tell(c.outcome());
    c.socket.destroy();
  }));
};

/** One after the other, each until its answer. */
const repeat = (run, ms = 20) => async (client, end, tell, token) => {
  while (Date.now() < end) {
    const c = client();
    await Promise.race([run(c, token), pause(5000)]);
    for (const code of c.errors) tell(code);
    tell(c.outcome());
    c.socket.destroy();
    await pause(ms);
  }
};

/** A message on an open socket, until there is an error or the end. */
const say = (data, connected = true) => repeat(async (c, token) => {
  if (!await c.upgrade(connected ? token : undefined)) return;
  c.write(data);
  await c.until(() => c.errors.size > 0 || c.closed !== null);
});

/** Many sockets that say this, all at once, and then what comes of them. */
const many = (n, data, drip) => async (client, end, tell) => {
  await Promise.all(Array.from({ length: n }, async () => {
    const c = client();
    c.write(data);
    while (!c.over && Date.now() < end) {
      await Promise.race([c.ended, pause(500)]);
      c.write(drip);
    }
    tell(c.outcome());
    c.socket.destroy();
  }));
};

const request = (data) => repeat(async (c) => {
  c.write(data);
  await c.ended;
});

/** What inflates to a thousand times its size. */
const bomb = deflateRawSync(Buffer.concat([Buffer.from('{"type":"sync","id":1,"x":"'), Buffer.alloc(40_000_000, 'x'), Buffer.from('"}')]));

/** A first part of TLS's handshake, at a byte a time; it is longer than anybody has patience. */
const hello = Buffer.concat([Buffer.from([0x16, 0x03, 0x01, 0x20, 0x00, 0x01, 0x00, 0x1f, 0xfc, 0x03, 0x03]), randomBytes(32), Buffer.from([0])]);

/** Many that say it at a byte a time, and then go on with any; whoever is dropped comes again, in the first half of the time. */
const drip = (n, data) => async (client, end, tell) => {
  const half = (Date.now() + end) / 2;
  await Promise.all(Array.from({ length: n }, async () => {
    do {
      const c = client();
      for (let i = 0; !c.over && Date.now() < end; i += 1) {
        c.write(i < data.length - 1 ? data.subarray(i, i + 1) : Buffer.alloc(1));
        await Promise.race([c.ended, pause(50)]);
      }
      tell(c.outcome());
      c.socket.destroy();
      await pause(50);
    } while (Date.now() < half);
  }));
};

/** Connections that stay open and say something new all the time. */
const chatter = (connections, ms, make) => async (client, end, tell, token) => {
  await Promise.all(Array.from({ length: connections }, async (_, k) => {
    const c = client();
    if (await c.upgrade(token)) {
      for (let i = 0; !c.over && c.closed === null && Date.now() < end; i += 1) {
        c.write(make(i, k));
        await pause(ms);
      }
    }
    for (const code of c.errors) tell(code);
    tell(c.outcome());
    c.socket.destroy();
  }));
};

/** Asks for much and takes nothing, but says that it lives. */
const hoard = (connections, names) => async (client, end, tell, token) => {
  await Promise.all(Array.from({ length: connections }, async (_, k) => {
    const c = client();
    if (await c.upgrade(token)) {
      for (const [i, name] of names(k).entries()) c.write(text({ type: 'subscribe', id: i, channel: name }));
      await pause(500);
      c.socket.pause();
      while (!c.over && Date.now() < end) {
        c.write(text('{"type":"pong"}'));
        await pause(500);
      }
    }
    tell(c.outcome());
    c.socket.destroy();
  }));
};

const times = (n, data) => Buffer.concat(Array.from({ length: n }, () => data));

export const ATTACKS = {
  messages: flood(3, () => times(100, text({ type: 'sync', id: 1 }))),
  pings: flood(2, () => times(200, frame(0x89, 'x'.repeat(125)))),
  fragments: flood(2, (i) => (i === 0 ? frame(0x01, '[') : times(100, frame(0x00, '')))),
  subscriptions: flood(2, () => times(20, Buffer.concat([text({ type: 'subscribe', id: 1, channel: 'hostile_ticks' }),
    text({ type: 'unsubscribe', id: 2, channel: 'hostile_ticks' })]))),
  oversized: say(frame(0x81, 'x'.repeat(1000), 10_000_000)),
  reconnects: repeat(async (c, token) => {
    await c.upgrade(token);
  }, 0),

  half_open: many(150, 'GET /v1/socket HTTP/1.1\r\nHost: localhost\r\nX-A: ', 'a'),
  silent: many(50, '', ''),
  bodies: many(20, 'POST /v1/publish HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{', ' '),
  connections: many(300, UPGRADE, ''),
  reserved_bits: say(frame(0xf1, 'x')),
  opcodes: say(frame(0x83, 'x')),
  continuations: say(frame(0x80, 'x')),
  long_pings: say(frame(0x89, 'x'.repeat(200))),
  binary: say(frame(0x82, 'x')),
  utf8: say(frame(0x81, Buffer.from([0x22, 0xc3, 0x28, 0x22]))),
  nesting: say(text(`{"type":"sync","id":1,"x":${'['.repeat(30000)}`)),
  closed_nesting: say(text(`{"type":"sync","id":1,"x":${'['.repeat(30000)}${']'.repeat(30000)}}`)),
  ids: say(text({ type: 'sync', id: 'x'.repeat(60000) })),
  early: say(text({ type: 'publish', id: 1, channel: 'hostile_ticks', event: 'x' }), false),
  early_calls: say(text({ type: 'call', id: 1, function: 'x' }), false),
  garbage: repeat(async (c) => {
    c.write(Buffer.concat([randomBytes(1000), Buffer.from('\r\n\r\n')]));
    await Promise.race([c.ended, pause(300)]);
  }),
  pipelined: request('GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n'.repeat(200)),
  urls: request(`GET /${'x'.repeat(60000)} HTTP/1.1\r\nHost: localhost\r\n\r\n`),
  bombs: repeat(async (c, token) => {
    if (!await c.upgrade(token, 'Sec-WebSocket-Extensions: permessage-deflate\r\n')) return;
    c.write(frame(0xc1, bomb));
    await c.until(() => c.closed !== null);
  }),
  packed_bodies: request(Buffer.concat([Buffer.from(`POST /v1/publish HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n`
    + `Content-Encoding: gzip\r\nContent-Length: ${gzipSync(Buffer.alloc(1_000_000)).length}\r\n\r\n`), gzipSync(Buffer.alloc(1_000_000))])),
  byte_by_byte: drip(100, Buffer.from(UPGRADE)),
  tls_byte_by_byte: drip(100, hello), // where TLS is spoken; elsewhere it is garbage
  names: chatter(4, 10, (i, k) => text({ type: 'subscribe', id: i, channel: `hostile_names:${k * 1e6 + i}`, snapshot: false })),
  churn: chatter(4, 25, (i, k) => Buffer.concat([text({ type: 'subscribe', id: i, channel: `hostile_names:${k * 1e6 + i}` }),
    text({ type: 'unsubscribe', id: i, channel: `hostile_names:${k * 1e6 + i}` })])),
  bad_connects: repeat(async (c) => {
    if (!await c.upgrade('eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoicG9zdGdyZXMifQ.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA')) return;
    await c.until(() => c.closed !== null);
  }, 0),
  bad_tokens: chatter(8, 10, (i) => text({ type: 'token', id: i, token: `eyJhbGciOiJIUzI1NiJ9.${Buffer.from(JSON.stringify({ role: 'postgres', i })).toString('base64url')}.${randomBytes(32).toString('base64url')}` })),
  regexes: hoard(2, (k) => Array.from({ length: 150 }, (_, i) => `hostile_texts?body=match.${encodeURIComponent('^(.+)(.+)(.+)(.+)\\4\\3\\2\\1$')}&id=gt.-${1000 * k + i}`)),
  hoarders: hoard(20, (k) => Array.from({ length: 100 }, (_, i) => `hostile_large?id=gt.-${k * 1000 + i}`)),
  polls: async (client, end, tell, token) => {
    await Promise.all(Array.from({ length: 200 }, async (_, i) => {
      const c = client();
      c.write(`GET /v1/poll?channel=${encodeURIComponent(`hostile_large?id=gt.${8000 + i}`)}&token=${token} HTTP/1.1\r\nHost: localhost\r\n\r\n`);
      c.socket.pause();
      while (!c.over && Date.now() < end) await pause(200);
      c.socket.resume();
      await Promise.race([c.ended, pause(1000)]);
      tell(c.outcome());
      c.socket.destroy();
    }));
  },
  headers: request(`GET / HTTP/1.1\r\nHost: localhost\r\n${`X-Header: ${'x'.repeat(4000)}\r\n`.repeat(30)}\r\n`),
};

export const addressOf = (name) => `127.0.1.${Object.keys(ATTACKS).indexOf(name) + 1}`;

async function main([names, seconds, port, token]) {
  const end = Date.now() + Number(seconds) * 1000;
  const outcomes = {};
  await Promise.all(names.split(',').map(async (name) => {
    const mine = (outcomes[name] = {});
    await ATTACKS[name](() => new Attacker(Number(port), addressOf(name)), end, (outcome) => {
      mine[outcome] = (mine[outcome] ?? 0) + 1;
    }, token);
  }));
  process.stdout.write(JSON.stringify(outcomes), () => process.exit(0));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main(process.argv.slice(2));
