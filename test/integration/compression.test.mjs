// permessage-deflate: the same messages with and without it, from independent
// implementations; what is negotiated; and what clients may send compressed.

import assert from 'node:assert/strict';
import crypto from 'node:crypto';
import { createRequire } from 'node:module';
import net from 'node:net';
import { after, before, describe, test } from 'node:test';
import zlib from 'node:zlib';

import { assertSame, Client, until, within } from './lib/client.mjs';
import { Session } from './lib/psql.mjs';

const WebSocket = createRequire(new URL('../package.json', import.meta.url))('ws');
const { hostname: host, port } = new URL(process.env.WS_URL);
const ANSWER = 'permessage-deflate; server_no_context_takeover; client_no_context_takeover';
const MAX_MESSAGE = 64 * 1024;

/** A connection on which frames are made and looked at by hand. */
class Raw {
  static async open(offer) {
    const raw = new Raw();
    raw.socket = net.connect({ host, port });
    raw.buffer = Buffer.alloc(0);
    raw.socket.on('data', (data) => { raw.buffer = Buffer.concat([raw.buffer, data]); raw.wake?.(); });
    raw.ended = new Promise((resolve) => raw.socket.on('close', () => { raw.over = true; raw.wake?.(); resolve(); }).on('error', () => {}));
    raw.socket.write(`GET /v1/socket HTTP/1.1\r\nHost: ${host}:${port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${crypto.randomBytes(16).toString('base64')}\r\n${offer === undefined ? '' : `Sec-WebSocket-Extensions: ${offer}\r\n`}\r\n`);
    const head = await raw.#until(() => raw.buffer.indexOf('\r\n\r\n') + 1 || null);
    const text = raw.buffer.subarray(0, head - 1).toString('latin1');
    raw.buffer = raw.buffer.subarray(head + 3);
    raw.status = Number(text.split(' ')[1]);
    raw.extensions = /^sec-websocket-extensions: *(.*?)\r?$/im.exec(text)?.[1] ?? null;
    return raw;
  }

  async #until(look) {
    for (;;) {
      const found = look();
      if (found !== null) return found;
      if (this.over) throw new Error('closed');
      await within(10000, new Promise((resolve) => { this.wake = resolve; }), 'data');
    }
  }

  send(payload, { first = 0xc1 } = {}) {
    const data = Buffer.from(payload);
    const mask = crypto.randomBytes(4);
    const header = data.length < 126 ? Buffer.from([first, 0x80 | data.length])
      : data.length < 65536 ? Buffer.from([first, 0x80 | 126, data.length >> 8, data.length & 255])
        : Buffer.concat([Buffer.from([first, 0x80 | 127, 0, 0, 0, 0]), (() => { const b = Buffer.alloc(4); b.writeUInt32BE(data.length); return b; })()]);
    for (let i = 0; i < data.length; i += 1) data[i] ^= mask[i & 3];
    this.socket.write(Buffer.concat([header, mask, data]));
  }

  /** The next frame: { first, payload }. */
  async frame() {
    return this.#until(() => {
      const b = this.buffer;
      if (b.length < 2) return null;
      let [length, at] = [b[1] & 127, 2];
      if (length === 126) [length, at] = [b.length < 4 ? Infinity : b.readUInt16BE(2), 4];
      else if (length === 127) [length, at] = [b.length < 10 ? Infinity : Number(b.readBigUInt64BE(2)), 10];
      if (b.length < at + length) return null;
      this.buffer = b.subarray(at + length);
      return { first: b[0], payload: b.subarray(at, at + length) };
    });
  }

  /** The next message, inflated by itself. */
  async message() {
    for (;;) {
      const { first, payload } = await this.frame();
      if (first === 0x88) return { close: payload.readUInt16BE(0) };
      if (first === 0xc1) return { packed: payload.length, ...JSON.parse(inflate(payload)) };
      assert.equal(first, 0x81);
      return JSON.parse(payload);
    }
  }

  close() {
    this.socket.destroy();
    return this.ended;
  }
}

const inflate = (payload) => zlib.inflateRawSync(Buffer.concat([payload, Buffer.from([0, 0, 255, 255])]), { finishFlush: zlib.constants.Z_SYNC_FLUSH }).toString();
const deflate = (text) => {
  const packed = zlib.deflateRawSync(text, { finishFlush: zlib.constants.Z_SYNC_FLUSH });
  return packed.subarray(0, packed.length - 4);
};

describe('compression', () => {
  let db;
  let token;
  const clients = [];

  before(async () => {
    db = new Session();
    await db.exec(`CREATE SCHEMA zc; CREATE ROLE zc_web; GRANT USAGE ON SCHEMA zc TO zc_web;
      ALTER DEFAULT PRIVILEGES IN SCHEMA zc GRANT SELECT ON TABLES TO zc_web;
      SELECT changefeed.allow_role('zc_web');
      CREATE TABLE zc.items (id int PRIMARY KEY, kind int, text text);
      CREATE TABLE zc.other (id int PRIMARY KEY, text text);
      INSERT INTO zc.items SELECT i, i % 3, repeat(md5(i::text), i % 20) FROM generate_series(1, 2000) i;
      SELECT changefeed.create_channel('zc_items', 'zc.items'), changefeed.create_channel('zc_kind:{kind}', 'zc.items'), changefeed.create_channel('zc_other', 'zc.other')`);
    token = await db.token({ role: 'zc_web' });
    await (await Client.connectSoon({ token })).close();
  });

  after(async () => {
    for (const client of clients) await client.cut();
    await db?.close();
  });

  async function connect(deflated, options = {}) {
    const client = await Client.connect({ token, ...options, receive: { perMessageDeflate: deflated && { threshold: 0 } } });
    assert.equal(client.socket.extensions.includes('permessage-deflate'), deflated);
    clients.push(client);
    return client;
  }

  test('is off unless it is set', async () => {
    const raw = await Raw.open('permessage-deflate');
    assert.deepEqual([raw.status, raw.extensions], [101, null]);
    await raw.close();
    await db.exec('ALTER SYSTEM SET changefeed.compression = on; SELECT pg_reload_conf()');
    await until(async () => {
      const again = await Raw.open('permessage-deflate');
      await again.close();
      return again.extensions !== null;
    }, 'compression is on');
  });

  for (const [offer, answer] of [
    [undefined, null],
    ['permessage-deflate', ANSWER],
    ['permessage-deflate; client_max_window_bits', ANSWER],
    ['permessage-deflate; client_max_window_bits=10; server_no_context_takeover', ANSWER],
    ['x-other; a=b, permessage-deflate; client_no_context_takeover', ANSWER],
    ['permessage-deflate; server_max_window_bits=10', null],
    ['permessage-deflate; server_max_window_bits=10, permessage-deflate', null],
    ['permessage-deflate, permessage-deflate; client_max_window_bits', null],
    ['permessage-deflate; unheard_of', null],
    ['x-webkit-deflate-frame', null],
    ['', null],
  ]) {
    test(`an offer: ${offer}`, async () => {
      const raw = await Raw.open(offer);
      assert.deepEqual([raw.status, raw.extensions], [101, answer]);
      raw.send(`{"type":"connect","id":1,"token":${JSON.stringify(token)}}`, { first: 0x81 });
      assert.equal((await raw.message()).type, 'connected');
      await raw.close();
    });
  }

  test('random frames and pages are equal with and without', async () => {
    const pair = [await connect(true), await connect(false)];
    const seen = pair.map((client) => {
      const texts = [];
      client.onMessage = (message) => { if (message.type === 'transaction' || message.type === 'snapshot') texts.push(JSON.stringify({ ...message, id: undefined })); };
      return texts;
    });
    const channels = ['zc_items', 'zc_kind:0', 'zc_kind:1', 'zc_other'];
    for (const channel of channels) await Promise.all(pair.map((client) => client.open(channel)));
    let seed = 42;
    const random = (n) => { seed = (seed * 1103515245 + 12345) % 2147483648; return Math.floor((seed / 2147483648) * n); };
    for (let i = 0; i < 100; i += 1) {
      // Half a frame, one, several; text that deflates well, a little, with wide characters; few rows or many.
      const size = [0, 3, 40, 400, 5000, 40000, 150000][random(7)];
      const text = [`repeat(md5(random()::text), ${Math.ceil(size / 32)})`, `(SELECT coalesce(string_agg(md5((${i} * 7919 + g)::text), ''), '') FROM generate_series(1, ${Math.ceil(size / 32)}) g)`, `repeat('ü€😀', ${Math.ceil(size / 9)})`][random(3)];
      const rows = Math.min([1, 1, 2, 30, 200][random(5)], Math.ceil(200000 / (size + 100)));
      await db.exec(`BEGIN; UPDATE zc.items SET text = ${text} WHERE id BETWEEN ${random(1800)} AND ${rows} + ${random(1800)} AND id % 10 = 0 AND id < ${10 * rows};
        UPDATE zc.items SET kind = (kind + 1) % 3, text = left(text, ${random(100)}) WHERE id > ${2000 - rows}; INSERT INTO zc.other VALUES (${i}, ${text}); COMMIT`);
      if (i % 5 === 4) for (const client of pair) await client.settle();
    }
    for (const client of pair) await client.settle();
    for (const client of pair) {
      client.check();
      assertSame(client.subscriptions.get('zc_items').rows(), await db.rows('SELECT * FROM zc.items'), 'items');
      assertSame(client.subscriptions.get('zc_other').rows(), await db.rows('SELECT * FROM zc.other'), 'other');
    }
    assert.ok(seen[0].length > 60);
    // Not by deepEqual, which would print megabytes.
    assert.equal(seen[0].findIndex((text, i) => text !== seen[1][i]), -1);
    assert.equal(seen[0].length, seen[1].length);
  });

  test('it pays, and what would not is sent as it is', async () => {
    await db.exec("TRUNCATE zc.other; INSERT INTO zc.other SELECT i, repeat('compressible ', 20) FROM generate_series(1, 200) i");
    const raw = await Raw.open('permessage-deflate');
    raw.send(deflate(JSON.stringify({ type: 'connect', id: 1, token })));
    const connected = await raw.message();
    assert.deepEqual([connected.type, connected.packed], ['connected', undefined], 'short messages are not compressed');
    raw.send(deflate(JSON.stringify({ type: 'subscribe', id: 2, channel: 'zc_other' })));
    let message;
    do message = await raw.message(); while (message.type !== 'snapshot');
    assert.ok(message.packed < JSON.stringify(message.rows).length / 10, `snapshot: ${message.packed} bytes`);
    while (message.type !== 'ready') message = await raw.message();
    await db.exec("UPDATE zc.other SET text = text || 'x' WHERE id <= 100");
    do message = await raw.message(); while (message.type !== 'transaction');
    assert.ok(message.changes.length === 100 && message.packed < JSON.stringify(message.changes).length / 5, `100 changes: ${message.packed} bytes`);
    await db.exec("INSERT INTO zc.other VALUES (1001, 'a')");
    do message = await raw.message(); while (message.type !== 'transaction');
    assert.equal(message.packed, undefined, 'one short row');
    await raw.close();
  });

  describe('what clients send', () => {
    const error = async (raw) => {
      for (;;) {
        const message = await raw.message();
        if (message.close || message.type === 'error') return message.close ?? message.code;
      }
    };
    const long = (n) => JSON.stringify({ type: 'unsubscribe', id: 1, channel: 'x'.repeat(n) });

    for (const [what, send, expected] of [
      ['in frames of a few bytes', (raw) => {
        const packed = deflate(long(300));
        for (let i = 0; i < packed.length; i += 3) raw.send(packed.subarray(i, i + 3), { first: (i === 0 ? 0x41 : 0) | (i + 3 >= packed.length ? 0x80 : 0) });
      }, 'answered'],
      ['not compressed although it could be', (raw) => raw.send(long(10), { first: 0x81 }), 'answered'],
      ['as a stored block', (raw) => {
        const text = Buffer.from(long(5));
        raw.send(Buffer.concat([Buffer.from([0, text.length, 0, ~text.length & 255, 255]), text, Buffer.from([0])]));
      }, 'answered'],
      ['with a last block', (raw) => raw.send(Buffer.concat([zlib.deflateRawSync(long(10)), Buffer.from([0])])), 'answered'],
      ['nothing', (raw) => raw.send(Buffer.from([0])), 'answered'],
      ['as long as may be', (raw) => raw.send(deflate(long(MAX_MESSAGE - long(0).length))), 'answered'],
      ['a byte longer', (raw) => raw.send(deflate(long(MAX_MESSAGE + 1 - long(0).length))), 1009],
      ['a bomb', (raw) => raw.send(deflate(Buffer.alloc(50 * 1024 * 1024, 0x20))), 1009],
      ['a bomb in frames', (raw) => {
        const packed = deflate(Buffer.alloc(50 * 1024 * 1024, 0x20));
        for (let i = 0; i < packed.length; i += 8000) raw.send(packed.subarray(i, i + 8000), { first: (i === 0 ? 0x41 : 0) | (i + 8000 >= packed.length ? 0x80 : 0) });
      }, 1009],
      ['what is no deflate', (raw) => raw.send(Buffer.from('this is not deflated at all')), 1007],
      ['what is not UTF-8', (raw) => raw.send(deflate(Buffer.from([0x22, 0xff, 0x22]))), 1007],
      ['the bit in a continuation', (raw) => { raw.send(deflate(long(10)).subarray(0, 5), { first: 0x41 }); raw.send('x', { first: 0xc0 }); }, 1002],
    ]) {
      test(what, async () => {
        const raw = await Raw.open('permessage-deflate');
        raw.send(deflate(JSON.stringify({ type: 'connect', id: 0, token })));
        assert.equal((await raw.message()).type, 'connected');
        send(raw);
        const got = await error(raw);
        assert.ok(expected === 'answered' ? typeof got === 'string' : got === expected, `${got}`);
        await raw.close();
      });
    }

    test('the bit without the extension', async () => {
      const raw = await Raw.open();
      raw.send(deflate('{}'));
      await within(10000, raw.ended, 'dropped');
    });
  });

  test('a client with a window of its own, and context takeover as the standard has it', async () => {
    const client = new WebSocket(process.env.WS_URL, ['changefeed.v1'], { perMessageDeflate: { threshold: 0, clientMaxWindowBits: 9 } });
    clients.push({ cut: () => client.terminate() });
    const messages = [];
    client.on('message', (data) => messages.push(JSON.parse(data)));
    await new Promise((resolve, reject) => client.on('open', resolve).on('error', reject));
    client.send(JSON.stringify({ type: 'connect', id: 1, token }));
    for (let i = 0; i < 50; i += 1) client.send(JSON.stringify({ type: 'unsubscribe', id: i + 2, channel: `none${'of these '.repeat(i)}` }));
    await until(() => messages.length >= 51, 'answers', 10000);
    assert.equal(messages.filter(({ type }) => type === 'error').length, 50);
  });
});
