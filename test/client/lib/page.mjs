// A client of client/ in this process, with the WebSocket of npm's ws.

import { debugLog, metrics } from '../../../client/dist/extras.js';
import { createClient } from '../../../client/dist/index.js';
import { assertSame } from '../../integration/lib/client.mjs';
import WebSocketOf from 'ws';

export const SERVER = new URL(process.env.WS_URL).origin;

// One that does not wait half a minute for the other side's close frame when it is not there any more.
class WebSocket extends WebSocketOf {
  close(...args) {
    super.close(...args);
    setTimeout(() => this.terminate(), 500).unref();
  }
}

/** With short delays, so that tests need not wait for them. */
export function start(t, options) {
  const log = [];
  const client = createClient({ url: SERVER, WebSocket, backoff: { minMs: 20, maxMs: 500 }, lingerMs: 50, ...options });
  debugLog(client, (event, data) => log.push([event, data]));
  client.log = log;
  client.metrics = metrics(client);
  client.errors = [];
  client.on('error', (error) => client.errors.push(error));
  t.after(() => client.close());
  return client;
}

/** Resolves when the check is true, looked at whenever the readable has changed. */
export const when = (readable, check, what, ms = 30000) => new Promise((resolve, reject) => {
  const timer = setTimeout(() => reject(new Error(`${what} did not come; it is ${JSON.stringify(readable.current ?? readable.state)}`)), ms);
  const look = () => {
    if (!check(readable.current ?? readable)) return;
    clearTimeout(timer);
    off();
    resolve();
  };
  const off = readable.subscribe(look);
  look();
});

export const status = (client, name, ms) => when(client.connection, (state) => state.status === name, `status ${name}`, ms);

/** Behind everything that is committed now, the client's rows are what SELECT returns. */
export async function same(client, channel, db, select, what) {
  await client.sync({ timeoutMs: 30000 });
  const truth = JSON.parse(await db.value(`SELECT coalesce(jsonb_agg(to_jsonb(r)), '[]') FROM (${select}) r`));
  assertSame(channel.rows(), truth, what);
}
