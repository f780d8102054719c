/**
 * What not every page needs: metrics, a log, loading again from time to time, and disconnecting while the page is hidden.
 */
import type { ChangefeedError } from './error.js';
import type { AnyRow, Channel, ChannelTypes, Readable } from './types.js';

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
interface Source extends Heard {
  channels(): { readonly rows: number }[];
}

/** What is heard of a client. */
interface Heard {
  readonly connection: Readable<{ readonly status: string; readonly since: number }>;
  on(event: 'send' | 'receive', listener: (message: AnyRow) => void): () => void;
  on(event: 'get', listener: (row: object | undefined) => void): () => void;
  on(event: 'error', listener: (error: ChangefeedError) => void): () => void;
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
  client.on('send', ({ type, id }) => {
    counts.sent += 1;
    if (id !== undefined && type !== 'call') sentAt.set(id, performance.now());
  });
  client.on('receive', (message) => {
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
  });
  client.on('error', () => { counts.errors += 1; });
  client.on('get', (row) => { counts[row ? 'hits' : 'misses'] += 1; });
  client.connection.subscribe(() => {
    // What was not answered never will be.
    if (client.connection.current.status === 'reconnecting') sentAt.clear();
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

/**
 * Tells everything that happens, such as to `console.debug`: `send` and `receive` with each message, `error`, and the status with the
 * state of the connection. Tokens are left out. Until the function that it returns is called.
 */
export const debugLog = (client: Heard, log: (event: string, data: unknown) => void): (() => void) => {
  const offs = [
    client.on('send', (message) => log('send', message.token ? { ...message, token: '…' } : message)),
    client.on('receive', (message) => log('receive', message)),
    client.on('error', (error) => log('error', error)),
    client.connection.subscribe(() => log(client.connection.current.status, client.connection.current)),
  ];
  return () => offs.forEach((off) => off());
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
