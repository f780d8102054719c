// Whether the chat works: takes the page and two tokens from its server, connects as the page would, sends a message
// to a room of members, and looks at who received it. Used by `demo/run chat --check`.
//
//   CHAT_URL=http://… node demo/chat/check.mjs

import assert from 'node:assert/strict';
import { createRequire } from 'node:module';

import { Client } from '../../console/client.js';

const SECONDS = 30;
const ROOM = 'room:kitchen?order=id.desc&limit=50';
const { CHAT_URL } = process.env;

// Node has a WebSocket of its own since version 22. What another one sends as its origin has to be said.
const WebSocket = createRequire(new URL('../../test/package.json', import.meta.url))('ws');
class FromPage extends WebSocket {
  constructor(url, protocol) {
    super(url, protocol, { origin: CHAT_URL });
  }
}

async function until(condition, what) {
  const end = Date.now() + SECONDS * 1000;
  while (!condition()) {
    assert.ok(Date.now() < end, `${what}: not within ${SECONDS} s`);
    await new Promise((resolve) => { setTimeout(resolve, 50); });
  }
}

async function enter(name) {
  const response = await fetch(`${CHAT_URL}/login`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({ name }),
  });
  const { token, socketUrl, message } = await response.json();
  assert.ok(response.ok, message);
  const client = new Client({ url: socketUrl, token, WebSocket: FromPage });
  const room = client.subscribe(ROOM);
  client.connect();
  await until(() => room.ready || room.ended, `${name} in the kitchen`);
  return { client, room };
}

for (const path of ['/', '/chat.js', '/chat.css', '/client.js', '/icon.svg']) {
  assert.equal((await fetch(CHAT_URL + path)).status, 200, path);
}
const everybody = await Promise.all(['Ada', 'Bruno', 'Chiara'].map(enter));
const [ada, bruno, chiara] = everybody;
await ada.client.track(ROOM);
const { result } = await ada.client.call('send', { room: 'kitchen', body: 'The coffee has come.' });
const rows = () => [...bruno.room.cache.entities.get('messages').rows.values()];
await until(() => rows().some(({ id }) => id === result.id) && bruno.room.members?.has('Ada'), 'what Ada said and that she is there');
assert.equal(chiara.room.error?.code, '42501', 'Chiara may not be in the kitchen');
await assert.rejects(chiara.client.call('send', { room: 'kitchen', body: 'Hello?' }), { code: '42501' });
for (const { client } of everybody) client.disconnect();
console.error(`chat: ${rows().length} messages in the kitchen for Bruno, none for Chiara: ${chiara.room.error.message}`);
