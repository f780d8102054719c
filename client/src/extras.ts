/**
 * What not every page needs: metrics, loading again from time to time, and disconnecting while the page is hidden.
 */
import type { AnyRow, Channel, ChannelTypes } from './types.js';

export interface Metrics {
  /** How long the connection holds; 0 without one. */
  readonly uptimeMs: number;
  readonly connects: number;
  /** Messages, in both directions. */
  readonly received: number;
  readonly sent: number;
  readonly errors: number;
  readonly resyncs: number;
  /** From a request to its answer, calls left out. */
  readonly latencyMs: { readonly last: number; readonly avg: number; readonly p95: number };
  /** From the commit to this client, by the clocks of both: the last transaction's. */
  readonly lagMs: number;
  readonly channels: number;
  readonly rows: number;
  /** Of `get()`. */
  readonly hits: number;
  readonly misses: number;
}

/** What metrics need of a client, whatever its types. */
interface Source {
  readonly connection: { readonly current: { readonly status: string; readonly since: number } };
  channels(): { readonly rows: number }[];
  on(event: 'debug', listener: (event: string, data?: unknown) => void): () => void;
}

const known = new WeakMap<Source, () => Metrics>();

/** Counts from its first call on, and gives a function that tells. The same one for the same client. */
export const metrics = (client: Source): (() => Metrics) => {
  const before = known.get(client);
  if (before) return before;
  const counts = { connects: 0, received: 0, sent: 0, errors: 0, resyncs: 0, hits: 0, misses: 0 };
  const sentAt = new Map<unknown, number>();
  const latencies: number[] = [];
  let lagMs = 0;
  client.on('debug', (event, data) => {
    const message = (data ?? {}) as AnyRow;
    if (event === 'send') {
      counts.sent += 1;
      if (message.id !== undefined && message.type !== 'call') sentAt.set(message.id, performance.now());
    } else if (event === 'receive') {
      counts.received += 1;
      const at = sentAt.get(message.id);
      if (at !== undefined) {
        sentAt.delete(message.id);
        latencies.push(performance.now() - at);
        if (latencies.length > 100) latencies.shift();
      }
      if (message.type === 'connected') counts.connects += 1;
      if (message.type === 'resync') counts.resyncs += 1;
      // Of what was missed the time says nothing.
      if (message.type === 'transaction' && message.channel === undefined && message.committed_at) lagMs = Date.now() - Date.parse(message.committed_at);
    } else if (event === 'error') counts.errors += 1;
    else if (event === 'hit') counts.hits += 1;
    else if (event === 'miss') counts.misses += 1;
    // What was not answered never will be.
    else if (event === 'reconnecting') sentAt.clear();
  });
  const read = (): Metrics => {
    const { status, since } = client.connection.current;
    const channels = client.channels();
    const sorted = [...latencies].sort((a, b) => a - b);
    return {
      ...counts, lagMs, channels: channels.length, rows: channels.reduce((sum, { rows }) => sum + rows, 0),
      uptimeMs: status === 'connected' || status === 'polling' ? Date.now() - since : 0,
      latencyMs: {
        last: latencies.at(-1) ?? 0, p95: sorted[Math.floor(sorted.length * 0.95)] ?? 0,
        avg: sorted.reduce((sum, value) => sum + value, 0) / (sorted.length || 1),
      },
    };
  };
  known.set(client, read);
  return read;
};

/** Loads the rows of a channel again every so often, until the function that it returns is called or the channel has ended. */
export const refreshEvery = <C extends ChannelTypes>(channel: Channel<C>, everyMs: number): (() => void) => {
  const stop = () => clearInterval(timer);
  const timer = setInterval(() => {
    if (channel.state === 'closed') stop();
    else if (channel.state === 'live') channel.refresh();
  }, everyMs);
  channel.on('state', (state) => state === 'closed' && stop());
  return stop;
};

/** Disconnects when the page has been hidden for so long, and connects when it is seen again. */
export const pauseWhenHidden = (client: { readonly connection: { readonly current: { readonly status: string } }; connect(): void; disconnect(): void }, afterMs: number): (() => void) => {
  let timer: ReturnType<typeof setTimeout> | undefined;
  let paused = false;
  const look = () => {
    clearTimeout(timer);
    if (document.visibilityState === 'visible') {
      if (paused) client.connect();
      paused = false;
    } else {
      timer = setTimeout(() => {
        // Who has disconnected by himself is left alone.
        if (['idle', 'disconnected', 'unauthorized', 'closed'].includes(client.connection.current.status)) return;
        paused = true;
        client.disconnect();
      }, afterMs);
    }
  };
  document.addEventListener('visibilitychange', look);
  look();
  return () => {
    clearTimeout(timer);
    document.removeEventListener('visibilitychange', look);
  };
};
