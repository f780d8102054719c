/**
 * Transports for where no WebSocket gets through: event streams and polls, with the same messages and the same positions.
 *
 * `automatic()` begins with a WebSocket, goes on to an event stream and then to polls when connections cannot be made, and looks
 * from time to time whether it can go back. Nothing is loaded twice on the way.
 */
import { ChangefeedError, errorOf } from './error.js';
import { webSocket } from './socket.js';
import type { AnyRow, Link, Transport, TransportContext, Wanted } from './types.js';

/** What the server grants beyond its heartbeat. */
const GRACE_MS = 10_000;
/** An event stream that says nothing for so long is kept back by something on the way. */
const FIRST_MS = 5000;

const address = (context: TransportContext, path: string, wanted: Wanted[], more: Record<string, string> = {}): string => {
  const url = new URL(`${context.base}/v1/${path}`);
  for (const { channel } of wanted) url.searchParams.append('channel', channel);
  if (wanted.some(({ from }) => from)) url.searchParams.set('from', wanted.map(({ from }) => from ?? '-').join(','));
  else if (wanted.every(({ snapshot }) => snapshot === false)) url.searchParams.set('snapshot', 'false');
  for (const [name, value] of Object.entries(more)) url.searchParams.set(name, value);
  return url.href;
};

const headers = (context: TransportContext): Record<string, string> =>
  context.token ? { Authorization: `Bearer ${context.token}` } : {};

/** Requests that a WebSocket would send as messages. */
const request = async (context: TransportContext, { type, id, ...message }: AnyRow, signal: AbortSignal) => {
  const answer = (reply: AnyRow) => signal.aborted || context.message({ ...reply, id });
  const fail = (code: string, text: string) => answer({ type: 'error', code, message: text });
  if (type === 'pong') return;
  if (type === 'unsubscribe') return answer({ type: 'ok' });
  if (type !== 'call' && type !== 'publish') return fail('0A000', `"${type}" needs a WebSocket`);
  if (message.expect) return fail('0A000', '"expect" needs a WebSocket');
  try {
    const response = await context.fetch(
      `${context.base}/v1/${type === 'call' ? `call/${encodeURIComponent(message.function)}` : 'publish'}`, {
        method: 'POST', signal,
        headers: { ...headers(context), 'Content-Type': 'application/json', ...(message.key && { 'Idempotency-Key': message.key }) },
        body: context.codec.stringify(type === 'call' ? message.args ?? {} : message),
      });
    answer(context.codec.parse(await response.text()) as AnyRow);
  } catch (error) {
    fail('no_connection', String(error));
  }
};

/** The answer to a request that has failed as a whole: true if it was a channel's fault, which is told to that channel alone. */
const failed = async (context: TransportContext, response: Response, wanted: Wanted[]): Promise<boolean> => {
  let body: AnyRow = { code: 'XX000', message: `HTTP status ${response.status}` };
  try {
    body = { ...body, ...(context.codec.parse(await response.text()) as AnyRow) };
  } catch {
    // Not the server's, but something's on the way.
  }
  const seconds = Number(response.headers.get('retry-after'));
  if (seconds) body.retry_after_ms = seconds * 1000;
  const channel = body.channel ?? (typeof body.id === 'number' ? wanted[body.id - 1]?.channel : undefined);
  if (response.status !== 401 && channel !== undefined) {
    context.message({ ...body, type: 'error', id: undefined, channel });
    return true;
  }
  context.closed(response.status, errorOf(body));
  return false;
};

interface Stream {
  name: string;
  run(context: TransportContext, wanted: Wanted[], signal: AbortSignal): Promise<void>;
}

/** What both have in common: begin again whenever the channels are others. */
const overHttp = ({ name, run }: Stream): Transport => (context) => {
  let current = new AbortController();
  const whole = new AbortController();
  let asked = false;
  const guarded: TransportContext = {
    ...context,
    closed: (...why) => {
      if (whole.signal.aborted) return;
      whole.abort();
      current.abort();
      context.closed(...why);
    },
  };
  const begin = () => {
    asked = false;
    current.abort();
    if (whole.signal.aborted) return;
    current = new AbortController();
    const { signal } = current;
    const wanted = context.wanted();
    if (wanted.length === 0) return;
    run(guarded, wanted, signal).catch((error: unknown) => {
      if (!signal.aborted) guarded.closed(0, error instanceof ChangefeedError ? error : new ChangefeedError('no_connection', String(error)));
    });
  };
  const link: Link = {
    name,
    changed() {
      if (asked) return;
      asked = true;
      queueMicrotask(begin);
    },
    send: (message) => void request(guarded, message, whole.signal),
    close() {
      whole.abort();
      current.abort();
    },
  };
  // There is nothing to connect before there is a channel.
  queueMicrotask(() => whole.signal.aborted || context.message({ type: 'connected' }));
  return link;
};

/** The events of a stream as they come. */
async function* eventsOf(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const reader = body.pipeThrough(new TextDecoderStream() as unknown as ReadableWritablePair<string, Uint8Array>).getReader();
  let rest = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split('\n');
    rest = lines.pop()!;
    // Each of the server's events is one line of data.
    for (const line of lines) if (line.startsWith('data:')) yield line.slice(5);
    yield '';
  }
}

/** Server-sent events, read with fetch, which unlike EventSource can send a token in a header. */
export const eventStream: Transport = overHttp({
  name: 'sse',
  async run(context, wanted, signal) {
    let limit = FIRST_MS;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const heard = () => {
      clearTimeout(timer);
      timer = setTimeout(() => signal.aborted || context.closed(4000, new ChangefeedError('no_answer', 'nothing was heard of the server')), limit);
    };
    signal.addEventListener('abort', () => clearTimeout(timer));
    heard();
    try {
      const response = await context.fetch(address(context, 'events', wanted), { headers: { ...headers(context), Accept: 'text/event-stream' }, signal });
      if (!response.ok || !response.body) {
        clearTimeout(timer);
        if (await failed(context, response, wanted)) await again(signal, context);
        return;
      }
      for await (const text of eventsOf(response.body)) {
        if (signal.aborted) return;
        heard();
        if (!text) continue;
        const message = context.codec.parse(text) as AnyRow;
        if (message.type === 'connected') {
          limit = (message.heartbeat_ms ?? 25_000) + GRACE_MS;
          context.message({ type: 'ok', expires_at: message.expires_at });
          continue;
        }
        // Each stream begins its own numbers.
        if (message.type === 'transaction') delete message.seq;
        context.message(message);
      }
      context.closed(1006);
    } finally {
      clearTimeout(timer);
    }
  },
});

/** Long polls: one request behind the other. */
export const longPoll: Transport = overHttp({
  name: 'poll',
  async run(context, wanted, signal) {
    for (;;) {
      const response = await context.fetch(address(context, 'poll', wanted, { wait: '20' }), { headers: headers(context), signal });
      if (signal.aborted) return;
      if (response.status !== 304 && !response.ok) {
        if (await failed(context, response, wanted)) await again(signal, context);
        return;
      }
      const places = response.headers.get('changefeed-position')?.split(',') ?? [];
      if (response.ok) {
        const { messages } = context.codec.parse(await response.text()) as { messages: AnyRow[] };
        if (signal.aborted) return;
        for (const message of messages) {
          if (message.type === 'transaction') delete message.seq;
          context.message(message);
        }
      }
      // One for all, or a list in the order of the address; "-": that channel needs its rows.
      wanted = wanted.map(({ channel, snapshot }, i) => {
        const place = places.length === 1 ? places[0] : places[i];
        return place && place !== '-' ? { channel, from: place } : { channel, ...(snapshot === false && { snapshot }) };
      });
      if (response.status === 304) for (const { channel, from } of wanted) if (from) context.message({ type: 'ready', channel, position: from });
    }
  },
});

/** A channel was refused; the others go on, without haste. */
const again = (signal: AbortSignal, context: TransportContext) =>
  new Promise<void>((resolve) => {
    setTimeout(() => {
      resolve();
      if (!signal.aborted) context.closed(1000, undefined, true);
    }, 100);
  });

/** What throws instead of failing later, such as a WebSocket that a page's policy forbids, has failed as well. */
const open = (transport: Transport, context: TransportContext): Link => {
  try {
    return transport(context);
  } catch (error) {
    queueMicrotask(() => context.closed(0, new ChangefeedError('no_connection', String(error))));
    return { name: 'none', send() {}, close() {} };
  }
};

export interface AutomaticOptions {
  /** In the order in which they are tried. */
  transports?: readonly Transport[];
  /** Failures behind which the next one is tried: 2 if it is left out. */
  failures?: number;
  /** How long until the first is tried again, doubled each time up to 10 minutes: 30 seconds if it is left out. */
  probeMs?: number;
}

/** The best transport that gets through. */
export const automatic = ({ transports = [webSocket, eventStream, longPoll], failures: limit = 2, probeMs = 30_000 }: AutomaticOptions = {}): Transport => {
  let index = 0;
  let failures = 0;
  let wait = probeMs;
  return (context) => {
    const mine = index;
    let worked = false;
    let over = false;
    let timer: ReturnType<typeof setTimeout> | undefined;
    let probe: Link | undefined;
    const stop = () => {
      over = true;
      clearTimeout(timer);
      probe?.close();
    };
    /** Does the first one work again? It is closed as soon as it has said so, and made anew with all channels. */
    const look = () => {
      const end = () => {
        probe?.close();
        probe = undefined;
        wait = Math.min(wait * 2, 600_000);
        if (!over) timer = setTimeout(look, wait);
      };
      probe = open(transports[0]!, {
        ...context,
        wanted: () => [],
        message(message) {
          if (over || message.type !== 'connected') return;
          stop();
          index = failures = 0;
          wait = probeMs;
          link.close();
          context.closed(1000, undefined, true);
        },
        closed: end,
      });
      probe.send({ type: 'connect', id: 0, ...(context.token && { token: context.token }) });
      timer = setTimeout(end, GRACE_MS);
    };
    const link = open(transports[mine]!, {
      ...context,
      message(message) {
        // Over HTTP `connected` is made here; what says that it works is a message of the server's.
        if (!worked && (message.type === 'subscribed' || message.session !== undefined)) {
          worked = true;
          failures = 0;
        }
        context.message(message);
      },
      closed(code, error, retry) {
        stop();
        // A refusal of the token is no failure of the transport.
        if (!worked && !retry && code !== 401 && code !== 4003 && code !== 4004) {
          failures += 1;
          if (failures >= limit && mine < transports.length - 1) {
            index = mine + 1;
            failures = 0;
            return context.closed(code, error, true);
          }
          // From the last one there is only the way back to the first.
          if (failures >= limit) {
            index = 0;
            failures = 0;
          }
        }
        context.closed(code, error, retry);
      },
    });
    if (mine > 0) timer = setTimeout(look, wait);
    return {
      ...link,
      close() {
        stop();
        link.close();
      },
    };
  };
};
