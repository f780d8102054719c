// What the pages of these tests run: an application with channels, a queue and a store, and an eye on itself.

import { createClient, webSocket } from '/dist/index.js';
import { createOfflineQueue, createStore, withStore } from '/dist/offline.js';
import { presence } from '/dist/presence.js';
import { shareTabs } from '/dist/tabs.js';

/** `window.token(why)` comes from the test. */
export async function start({ url, channels, shared, sub, store: kept, queue: queued, lostMs, queueOptions }) {
  const app = { problems: [], sent: [], transactions: {}, messages: {}, resyncs: [], snapshots: {}, channels: {}, statuses: [], errors: [] };
  window.app = app;
  /** Notes the tokens that are sent, to the server and to the leader of the tabs. */
  const watched = (transport) => (context) => {
    const link = transport(context);
    return {
      ...link,
      send(message) {
        if (message.token) app.sent.push({ token: message.token, at: Date.now() });
        link.send(message);
      },
    };
  };
  app.tabs = shared ? shareTabs({ lostMs, backoff: { minMs: 20, maxMs: 500 }, transport: watched(webSocket) }) : undefined;
  app.client = createClient({
    url, lingerMs: 50, backoff: { minMs: 20, maxMs: 500 }, transport: watched(app.tabs ?? webSocket),
    auth: (why) => window.token(why, app.sub),
  });
  app.sub = sub;
  app.client.on('error', ({ code, message }) => app.errors.push(`${code} ${message}`));
  app.client.connection.subscribe(() => app.statuses.push(app.client.connection.current.status));
  if (kept) app.store = await createStore(app.client, { name: kept });
  for (const [name, options] of Object.entries(channels)) {
    const given = app.store ? await withStore(app.store, name, options) : options;
    const channel = app.client.channel(name, given);
    app.channels[name] = channel;
    app.transactions[name] = [];
    app.messages[name] = [];
    app.snapshots[name] = 0;
    app.before = { ...app.before, [name]: channel.rows().length };
    channel.on('transaction', ({ txid }) => app.transactions[name].push(txid));
    channel.on('message', ({ event, payload }) => app.messages[name].push(`${event} ${JSON.stringify(payload)}`));
    channel.on('snapshot', () => { app.snapshots[name] += 1; });
    channel.on('resync', (reason) => app.resyncs.push(`${name} ${reason}`));
    // Nobody ever sees another's row.
    channel.subscribe(() => {
      for (const row of channel.rows()) if (row.owner && row.owner !== app.sub) app.problems.push(`${app.sub} sees ${JSON.stringify(row)} in ${name}`);
    });
    if (app.store) app.store.keep(channel, 50);
  }
  if (queued) app.queue = await createOfflineQueue(app.client, { name: queued, backoff: { minMs: 50, maxMs: 500 }, ...queueOptions });
  app.presence = (name) => presence(app.client, app.channels[name]);
}

export const ready = (ms) => Promise.race([
  Promise.all(Object.values(window.app.channels).map((channel) => channel.ready)).then(() => {}),
  new Promise((_, reject) => { setTimeout(() => reject(new Error(`not ready: ${JSON.stringify(window.app.client.connection.current)}`)), ms); }),
]);

/** The rows, behind everything that is committed now. */
export async function rows(name) {
  const { client, channels } = window.app;
  for (let i = 0; ; i += 1) {
    try {
      await client.sync({ timeoutMs: 10000 });
      break;
    } catch (error) {
      if (error.type !== 'network' || i === 10) throw error;
      await new Promise((resolve) => { setTimeout(resolve, 50); });
    }
  }
  const channel = channels[name];
  if (channel.state !== 'live') {
    await new Promise((resolve) => {
      const off = channel.subscribe(() => channel.state === 'live' && (off(), resolve()));
      if (channel.state === 'live') resolve();
    });
    return rows(name);
  }
  return channel.rows();
}
