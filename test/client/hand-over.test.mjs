// Tabs in one process, with a scripted server: what they have to go on from when their leader goes, or something is lost between them.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { createClient } from '../../client/dist/index.js';
import { shareTabs } from '../../client/dist/tabs.js';
import { until } from '../integration/lib/client.mjs';
import { locks } from './lib/locks.mjs';

Object.defineProperty(globalThis, 'navigator', { value: { locks }, configurable: true });
// What a tab hears of the leader is lost if the test says so; the tabs in the order in which they came.
const ears = [];
let loses = () => false;
globalThis.BroadcastChannel = class extends BroadcastChannel {
  set onmessage(listener) {
    if (/^pg-changefeed \[/.test(this.name)) ears.push(this);
    super.onmessage = (event) => loses(event.data, this) || listener(event);
  }
};

const ENTITIES = { t: { key: ['id'], columns: ['id', 'a'] } };
let names = 0;

/** A server with a history, and tabs that share a connection to it. */
function world(t) {
  const name = `world ${names += 1}`;
  const server = { history: [], links: [], tabs: [] };
  const at = () => `p${server.history.length}`;
  const frame = (i, more) => {
    const { a, id = 1, channel = 't' } = server.history[i - 1];
    return { type: 'transaction', txid: String(700 + i), position: `p${i}`, committed_at: new Date().toISOString(), changes: [{ channel, entity: 't', op: 'merge', key: { id }, set: { a } }], ...more };
  };
  const say = (message) => server.links.at(-1)?.say(message);
  server.write = (count = 1) => {
    for (let i = 0; i < count; i += 1) {
      server.history.push({ a: String(server.history.length + 1) });
      const link = server.links.at(-1);
      if (link?.on.has('t')) say(frame(server.history.length, { seq: link.seq += 1 }));
    }
  };
  /** A message in a channel, which is in the history like a transaction. */
  server.publish = (channel) => {
    server.history.push({ message: channel });
    if (server.links.at(-1)?.on.has(channel)) say({ type: 'message', channel, event: 'told', payload: at(), position: at() });
  };
  const transport = (context) => {
    const link = { on: new Set(), seq: 0, open: true, say: (message) => link.open && context.message(message) };
    server.links.push(link);
    const answer = {
      connect: ({ id }) => link.say({ type: 'connected', id, session: 's', heartbeat_ms: 25000 }),
      async subscribe({ id, channel, from }) {
        link.say({ type: 'subscribed', id, channel, recovered: from !== undefined, entities: ENTITIES });
        if (from === undefined) link.say({ type: 'snapshot', channel, entity: 't', rows: [{ id: 1, a: server.history.at(-1)?.a ?? '0' }] });
        else {
          for (let i = Number(from.slice(1)) + 1; i <= server.history.length; i += 1) {
            const { message } = server.history[i - 1];
            if (message === undefined && channel === 't') link.say(frame(i, { channel, seq: link.seq += 1 }));
            else if (message === channel) link.say({ type: 'message', channel, event: 'told', payload: `p${i}`, position: `p${i}` });
          }
        }
        await server.ready;
        link.on.add(channel);
        link.say({ type: 'ready', channel, position: at(), ...(from === undefined && { snapshot: { xmin: '10', xmax: '10', xip: [] } }) });
      },
      unsubscribe({ id, channel }) {
        link.on.delete(channel);
        link.say({ type: 'ok', id });
      },
      sync: ({ id }) => link.say({ type: 'synced', id, position: at() }),
    };
    return {
      name: 'scripted',
      send: (message) => void setTimeout(() => answer[message.type]?.(message), 0),
      close() { link.open = false; },
    };
  };
  server.tab = async (...channels) => {
    const tab = { told: [], resyncs: [], errors: [], channels: {}, tokenMs: 0 };
    tab.transport = shareTabs({ name, transport, backoff: { minMs: 1, maxMs: 2 }, lostMs: 600 });
    tab.client = createClient({
      url: 'http://server', transport: tab.transport, backoff: { minMs: 1, maxMs: 2 }, lingerMs: 10,
      auth: () => new Promise((resolve) => { setTimeout(resolve, tab.tokenMs, null); }),
    });
    tab.client.on('error', ({ code }) => tab.errors.push(code));
    t.after(() => tab.client.close());
    for (const channel of channels) {
      const handle = tab.channels[channel] = tab.client.channel(channel);
      handle.on('transaction', ({ txid }) => tab.told.push(Number(txid) - 700));
      handle.on('resync', (reason) => tab.resyncs.push(`${channel} ${reason}`));
    }
    server.tabs.push(tab);
    await Promise.all(Object.values(tab.channels).map(({ ready }) => ready));
    return tab;
  };
  return server;
}
const all = (server, count, tab) => until(() => tab.channels.t.state === 'live' && tab.told.length >= count, `${count} transactions, not ${tab.told.length}`).then(() => {
  assert.deepEqual(tab.told, Array.from({ length: count }, (_, i) => i + 1), 'each once, in order');
  assert.equal(tab.channels.t.rows()[0].a, String(count));
  assert.deepEqual([tab.resyncs, tab.errors], [[], []]);
});

/** The tab that leads and another one; both have three changes. */
async function pair(server) {
  const tabs = [await server.tab('t'), await server.tab('t')];
  server.write(3);
  for (const tab of tabs) await all(server, 3, tab);
  return tabs;
}

test('a new leader has much to catch up with: the tabs catch up with it, from where they are', async (t) => {
  const server = world(t);
  const first = await server.tab('t');
  const rest = [await server.tab('t'), await server.tab('t')];
  server.write(3);
  for (const tab of rest) await all(server, 3, tab);
  // It has gone, and much is written before another one is there.
  server.links.at(-1).open = false;
  server.write(4000);
  let go;
  server.ready = new Promise((resolve) => { go = resolve; });
  first.client.close();
  await until(() => rest.every(({ told }) => told.length === 4003), 'told before it is live');
  assert.deepEqual(rest.map(({ channels: { t: { state } } }) => state), ['stale', 'stale']);
  go();
  for (const tab of rest) await all(server, 4003, tab);
});

test('a tab has lost something and notices it late: what has come meanwhile is still there for it', async (t) => {
  const server = world(t);
  const [leader, tab] = await pair(server);
  // First a transaction, and then what it gets when it comes back.
  const [, ear] = ears.slice(-2);
  const lost = [];
  loses = (heard, by) => {
    const { all: said, messages } = heard;
    const what = by === ear && said?.type === 'transaction' ? said.type : messages?.find(({ type }) => type === 'subscribed')?.type;
    return what && !lost.includes(what) && lost.push(what);
  };
  t.after(() => { loses = () => false; });
  server.write(2);
  await until(() => lost.length === 2, 'lost');
  server.write(4000);
  for (const each of [leader, tab]) await all(server, 4005, each);
  assert.deepEqual(lost, ['transaction', 'subscribed']);
});

test('the tab of the leader has lost something, and gets its next token late: it leads on', async (t) => {
  const server = world(t);
  const [leader, tab] = await pair(server);
  const [ear] = ears.slice(-2);
  let lost = 0;
  loses = ({ all: said }, by) => by === ear && said?.type === 'transaction' && !lost && (lost += 1);
  t.after(() => { loses = () => false; });
  leader.tokenMs = 1500;
  server.write(5);
  for (const each of [leader, tab]) await all(server, 8, each);
  assert.deepEqual([lost, leader.transport.leads, server.links.length], [1, true, 1]);
});

test('messages in a channel that one tab has: the others are where it is, also for the next leader', async (t) => {
  const server = world(t);
  const first = await server.tab('t', 'chat');
  const rest = [await server.tab('t', 'chat'), await server.tab('t')];
  server.write(3);
  for (const tab of rest) await all(server, 3, tab);
  server.publish('chat');
  await until(() => rest[0].channels.chat.position === 'p4', 'told');
  first.client.close();
  await until(() => rest.some(({ transport }) => transport.leads), 'another leader');
  await until(() => rest.every(({ client }) => client.channels().every(({ state }) => state === 'live')), 'live');
  for (const tab of rest) {
    assert.equal(tab.channels.t.position, 'p4');
    assert.deepEqual([tab.resyncs, tab.errors], [[], []]);
  }
});
