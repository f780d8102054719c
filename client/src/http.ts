/**
 * Transports for where no WebSocket gets through: event streams and polls, with the same messages and the same positions.
 *
 * `automatic()` begins with a WebSocket, goes on to an event stream and then to polls when connections cannot be made, and looks
 * from time to time whether it can go back. Nothing is loaded twice on the way.
 */
import { ChangefeedError, errorOf } from './error.js';
import { webSocket } from './socket.js';
import type { AnyRow, Link, Transport, TransportContext } from './types.js';
import { jitter } from './util.js';

/** What the server grants beyond its heartbeat. */
const GRACE_MS = 10_000;
/** An event stream that says nothing for so long is kept back by something on the way. */
const FIRST_MS = 4000;

/** How long a poll may wait. */
const WAIT_S = 20;

/** A channel, as the client has asked for it. */
interface Sub {
  channel: string;
  /** Of the request to subscribe. */
  id: unknown;
  /** Was the request answered? */
  answered: boolean;
  from: string | undefined;
  snapshot: boolean | undefined;
}

const address = (context: TransportContext, path: string, subs: Sub[], more: Record<string, string>): string => {
  const url = new URL(`${context.base}/v1/${path}`);
  for (const { channel } of subs) url.searchParams.append('channel', channel);
  if (subs.some(({ from }) => from)) url.searchParams.set('from', subs.map(({ from }) => from ?? '-').join(','));
  else if (subs.every(({ snapshot }) => snapshot === false)) url.searchParams.set('snapshot', 'false');
  for (const [name, value] of Object.entries(more)) url.searchParams.set(name, value);
  return url.href;
};

/** Where to go on from: one position for all, or a list in the order of the address; "-": that channel needs its rows. */
const moved = (subs: Sub[], list: string) => {
  const places = list.split(',');
  subs.forEach((sub, i) => {
    const place = places[places.length === 1 ? 0 : i];
    sub.from = place && place !== '-' ? place : undefined;
  });
};

/** What is in the body of an answer that is an error. */
const failure = async (context: TransportContext, response: Response): Promise<AnyRow> => {
  const seconds = Number(response.headers.get('retry-after'));
  let body: AnyRow = { code: 'XX000', message: `HTTP status ${response.status}`, ...(seconds && { retry_after_ms: seconds * 1000 }) };
  try {
    body = { ...body, ...(context.codec.parse(await response.text()) as AnyRow) };
  } catch {
    // Not the server's, but something's on the way.
  }
  return { ...body, type: 'error' };
};

/** One stream, or one poll behind the other. `heard` is called with how long it may take until something is heard again. */
type Run = (stream: {
  subs: Sub[];
  get(path: string, more: Record<string, string>, accept: string): Promise<Response | null>;
  heard(limitMs: number): void;
  take(message: AnyRow): void;
  codec: TransportContext['codec'];
  signal: AbortSignal;
}) => Promise<void>;

/** What both have in common: the messages of a WebSocket, and beginning again whenever the channels are others. */
const overHttp = (name: string, run: Run): Transport => (context) => {
  const subs = new Map<string, Sub>();
  const whole = new AbortController();
  let current = new AbortController();
  let { token } = context;
  let hello: AnyRow | undefined;
  let asked = false;

  const headers = (): Record<string, string> => (token ? { Authorization: `Bearer ${token}` } : {});
  const tell = (message: AnyRow) => whole.signal.aborted || context.message(message);
  const close = () => {
    whole.abort();
    current.abort();
  };
  const closed: TransportContext['closed'] = (...why) => {
    if (whole.signal.aborted) return;
    close();
    context.closed(...why);
  };
  const refuse = ({ id }: AnyRow, code: string, message: string) => tell({ type: 'error', id, code, message });
  /** The server has answered. */
  const connected = (more: AnyRow = {}) => {
    // Here it is known without a heartbeat when nothing comes any more.
    if (hello) tell({ ...more, type: 'connected', id: hello.id, heartbeat_ms: 2 ** 30 });
    hello = undefined;
  };

  /** The answer to a request for streams that has failed: of a channel alone, or of all. */
  const failed = async (response: Response, list: Sub[], signal: AbortSignal) => {
    const error = await failure(context, response);
    if (signal.aborted) return;
    const sub = list.find(({ channel }, i) => (error.channel ?? list[error.id - 1]?.channel) === channel);
    const { retryable } = errorOf(error);
    if (response.status === 401 || !sub || (sub.answered && retryable)) return closed(response.status === 401 ? 4003 : response.status, errorOf(error));
    if (error.code === '22023' && sub.from) {
      // A position that the server does not take.
      sub.from = undefined;
      if (sub.answered) tell({ type: 'resync', channel: sub.channel, reason: 'position_refused' });
    } else {
      subs.delete(sub.channel);
      tell(sub.answered ? { ...error, type: 'revoked', id: undefined, channel: sub.channel, reason: 'error' } : { ...error, id: sub.id });
    }
    // The others go on, without haste.
    setTimeout(() => signal.aborted || changed(), 100);
  };

  const begin = () => {
    asked = false;
    current.abort();
    if (whole.signal.aborted) return;
    current = new AbortController();
    const { signal } = current;
    const list = [...subs.values()];
    if (list.length === 0) return connected();
    let timer: ReturnType<typeof setTimeout>;
    let seq = 1;
    const heard = (limitMs: number) => {
      clearTimeout(timer);
      timer = setTimeout(() => signal.aborted || closed(4000, new ChangefeedError('no_answer', 'nothing was heard of the server')), limitMs);
    };
    signal.addEventListener('abort', () => clearTimeout(timer));
    run({
      subs: list, signal, heard, codec: context.codec,
      async get(path, more, Accept) {
        // Each begins its own numbers.
        seq = 1;
        const response = await (context.fetch ?? fetch)(address(context, path, list, more), { headers: { ...headers(), Accept }, signal });
        if (response.ok || response.status === 304) {
          if (path === 'poll') connected();
          return response;
        }
        clearTimeout(timer);
        await failed(response, list, signal);
        return null;
      },
      take({ id, ...message }) {
        if (signal.aborted) return;
        const sub = subs.get(message.channel);
        if (message.type === 'connected') connected(message);
        else if (message.type === 'subscribed' && sub) {
          tell(sub.answered ? { ...message, type: 'columns' } : { ...message, id: sub.id });
          // All of its rows come again: what has come of them until now does not count.
          if (sub.answered && !message.recovered && !sub.from) tell({ type: 'resync', channel: sub.channel, reason: 'restarted' });
          sub.answered = true;
        } else if (message.type === 'transaction') {
          const { seq: its, ...rest } = message;
          if (its !== seq) return closed(1006, new ChangefeedError('inconsistent', `frame ${seq} is missing: ${its} came`));
          if (message.last !== false) seq += 1;
          tell(rest);
        } else {
          if (message.type === 'revoked') subs.delete(message.channel);
          tell(message);
        }
      },
    }).catch((error: unknown) => {
      if (!signal.aborted) closed(0, error instanceof ChangefeedError ? error : new ChangefeedError('no_connection', String(error)));
    }).finally(() => clearTimeout(timer));
  };
  const changed = () => {
    if (asked) return;
    asked = true;
    queueMicrotask(begin);
  };

  /** What a WebSocket would send as a message. */
  const post = async (message: AnyRow) => {
    const { type, id, function: called, args = {}, key, ...rest } = message;
    for (let attempt = 0; ; attempt += 1) {
      try {
        const response = await (context.fetch ?? fetch)(`${context.base}/v1/${type === 'call' ? `call/${encodeURIComponent(called)}` : 'publish'}`, {
          method: 'POST', signal: whole.signal,
          headers: { ...headers(), 'Content-Type': 'application/json', ...(key && { 'Idempotency-Key': key }) },
          body: context.codec.stringify(type === 'call' ? args : rest),
        });
        return void tell({ ...(response.ok ? (context.codec.parse(await response.text()) as AnyRow) : await failure(context, response)), id });
      } catch (error) {
        if (whole.signal.aborted) return undefined;
        // With its key a call is done once, however often it is sent.
        if (!key || attempt === 3) return void refuse(message, 'no_connection', String(error));
        await new Promise((resolve) => { setTimeout(resolve, 100 + jitter(attempt, 500, 4000)); });
      }
    }
  };

  const requests: Record<string, (message: AnyRow) => unknown> = {
    connect(message) {
      hello = message;
      changed();
    },
    subscribe({ channel, id, from, snapshot }) {
      subs.set(channel, { channel, id, from, snapshot, answered: false });
      changed();
    },
    unsubscribe({ channel, id }) {
      subs.delete(channel);
      tell({ type: 'ok', id });
      changed();
    },
    token(message) {
      token = message.token;
      tell({ type: 'ok', id: message.id });
      changed();
    },
    sync(message) {
      refuse(message, '0A000', '"sync" needs a WebSocket');
      // Who asks may have slept.
      changed();
    },
    call: (message) => (message.expect ? refuse(message, '0A000', '"expect" needs a WebSocket') : post(message)),
    publish: post,
    pong() {},
  };
  return {
    name,
    // As if it had gone over the network: nothing is answered before the caller goes on.
    send: (message) => queueMicrotask(() => {
      (requests[message.type] ?? (() => refuse(message, '0A000', `"${message.type}" needs a WebSocket`)))(message);
    }),
    close,
  };
};

/** Server-sent events, read with fetch, which unlike EventSource can send a token in a header. */
export const eventStream: Transport = overHttp('sse', async ({ subs, get, heard, take, codec, signal }) => {
  let limit = FIRST_MS;
  heard(limit);
  const response = await get('events', {}, 'text/event-stream');
  if (!response?.body) return;
  const reader = response.body.pipeThrough(new TextDecoderStream() as unknown as ReadableWritablePair<string, Uint8Array>).getReader();
  let rest = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (signal.aborted) return;
    if (done) throw new ChangefeedError('no_connection', 'the event stream has ended');
    heard(limit);
    const lines = (rest + value).split('\n');
    rest = lines.pop()!;
    // Each of the server's events is one line of data, and perhaps one with where to go on from behind it.
    for (const line of lines) {
      if (line.startsWith('id:')) moved(subs, line.slice(3).trim());
      else if (line.startsWith('data:')) {
        const message = codec.parse(line.slice(5)) as AnyRow;
        if (message.type === 'connected') heard(limit = (message.heartbeat_ms ?? 25_000) + GRACE_MS);
        take(message);
        if (signal.aborted) return;
      }
    }
  }
});

/** Long polls: one request behind the other. */
export const longPoll: Transport = overHttp('poll', async ({ subs, get, heard, take, codec, signal }) => {
  for (;;) {
    heard(WAIT_S * 1000 + GRACE_MS);
    const response = await get('poll', { wait: String(WAIT_S) }, 'application/json');
    if (!response || signal.aborted) return;
    const { messages } = (response.ok ? codec.parse(await response.text()) : { messages: [] }) as { messages: AnyRow[] };
    if (signal.aborted) return;
    for (const message of messages) take(message);
    moved(subs, response.headers.get('changefeed-position') ?? '');
    if (!response.ok) for (const { channel, from } of subs) if (from) take({ type: 'ready', channel, position: from });
  }
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

/** What cannot be read is left to the client. */
const read = ({ codec }: TransportContext, said: AnyRow | string): AnyRow => {
  try {
    return typeof said === 'string' ? (codec.parse(said) as AnyRow) : said;
  } catch {
    return {};
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
    let { token } = context;
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
        clearTimeout(timer);
        probe?.close();
        probe = undefined;
        wait = Math.min(wait * 2, 600_000);
        if (!over) timer = setTimeout(look, wait);
      };
      probe = open(transports[0]!, {
        ...context,
        message(said) {
          if (over || read(context, said).type !== 'connected') return;
          stop();
          index = failures = 0;
          wait = probeMs;
          link.close();
          context.closed(1000, undefined, true);
        },
        closed: end,
      });
      probe.send({ type: 'connect', id: 0, ...(token && { token }) });
      timer = setTimeout(end, GRACE_MS);
    };
    const link = open(transports[mine]!, {
      ...context,
      message(said) {
        const message: AnyRow = worked ? {} : read(context, said);
        // Without a channel nothing has gone over HTTP yet.
        if (message.type === 'subscribed' || message.session !== undefined) {
          worked = true;
          failures = 0;
        }
        context.message(said);
      },
      closed(code, error, retry) {
        stop();
        // A refusal of the token is no failure of the transport.
        if (!worked && !retry && code !== 4003 && code !== 4004) {
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
      send(message) {
        token = message.token ?? token;
        link.send(message);
      },
      close() {
        stop();
        link.close();
      },
    };
  };
};
