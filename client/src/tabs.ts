/**
 * One connection for all tabs of a browser.
 *
 * One tab, the leader, has the connection; the others speak the same protocol with it over a BroadcastChannel, through a transport
 * of their own, so that their clients need not know. Web Locks say who leads; when that tab goes, another one follows it.
 *
 * The leader serves each channel from its own rows, so a tab that comes later costs the server nothing.
 */
import { createClient } from './client.js';
import type { AnyRow, Channel, Client, ClientOptions, Link, Transport, TransportContext } from './types.js';

export interface TabsOptions extends ClientOptions {
  /** Tabs with the same name share: it has to differ by user. */
  name: string;
}

interface Envelope {
  /** From a tab to the leader, or back. */
  to: string;
  from: string;
  message?: AnyRow;
  hello?: boolean;
  bye?: boolean;
}

/** How long a tab waits for a leader to answer. */
const HELLO_MS = 2000;

/** What the leader keeps of a tab. */
interface Tab {
  channels: Map<string, { channel: Channel; offs: (() => void)[] }>;
  seq: number;
}

const leader = (inner: Client, bus: BroadcastChannel, me: string): (() => void) => {
  const tabs = new Map<string, Tab>();
  const send = (to: string, message: AnyRow) => bus.postMessage({ to, from: me, message } satisfies Envelope);

  const leave = (tab: Tab, name: string) => {
    const held = tab.channels.get(name);
    held?.offs.forEach((off) => off());
    held?.channel.unsubscribe();
    tab.channels.delete(name);
  };
  const forget = (id: string) => {
    const tab = tabs.get(id);
    if (!tab) return;
    for (const name of [...tab.channels.keys()]) leave(tab, name);
    tabs.delete(id);
  };

  const subscribe = (id: string, tab: Tab, message: AnyRow) => {
    const name = String(message.channel);
    const channel = inner.channel(name, { ...(message.snapshot === false && { snapshot: false }), ...(message.versions && { versions: true }) }) as Channel;
    let told = false;
    // All rows, as a snapshot of the server's would bring them.
    const fill = () => {
      const { entities } = channel;
      if (!told) send(id, { type: 'subscribed', id: message.id, channel: name, recovered: false, entities });
      else send(id, { type: 'resync', channel: name, reason: 'tabs' });
      told = true;
      for (const entity of Object.keys(entities)) send(id, { type: 'snapshot', channel: name, entity, rows: channel.rows(entity) });
      send(id, { type: 'ready', channel: name, position: channel.position, snapshot: { xmin: '0', xmax: '0', xip: [] }, entities });
    };
    const offs = [
      channel.on('snapshot', fill),
      channel.on('transaction', ({ txid, position, committedAt, changes }) => {
        if (told) send(id, { type: 'transaction', seq: (tab.seq += 1), channel: name, txid, position, committed_at: committedAt, changes });
      }),
      channel.on('message', ({ event, payload, from, txid, committedAt }) => send(id, { type: 'message', channel: name, event, payload, from, txid, committed_at: committedAt })),
      channel.on('presence', (said) => send(id, { ...said, channel: name })),
      channel.on('resync', (reason) => told && send(id, { type: 'resync', channel: name, reason })),
      channel.on('error', (error) => {
        send(id, told ? { type: 'revoked', channel: name, code: error.code, message: error.message } : { type: 'error', id: message.id, channel: name, code: error.code, message: error.message, hint: error.hint });
        leave(tab, name);
      }),
    ];
    tab.channels.set(name, { channel, offs });
    if (channel.state === 'live') fill();
  };

  const take = (id: string, message: AnyRow) => {
    let tab = tabs.get(id);
    if (!tab) tabs.set(id, (tab = { channels: new Map(), seq: 0 }));
    const { type } = message;
    if (type === 'connect') {
      for (const name of [...tab.channels.keys()]) leave(tab, name);
      tab.seq = 0;
      return send(id, { type: 'connected', id: message.id, session: `tab:${id}`, heartbeat_ms: 2 ** 30 });
    }
    if (type === 'subscribe') return subscribe(id, tab, message);
    if (type === 'unsubscribe') {
      leave(tab, String(message.channel));
      return send(id, { type: 'ok', id: message.id });
    }
    if (type === 'pong') return undefined;
    // The leader's client refreshes its own token, and every tab has the same user.
    if (type === 'token') return send(id, { type: 'ok', id: message.id });
    const { id: request, ...rest } = message;
    return void inner.request(rest, { resend: type === 'call' }).then(
      (answer) => send(id, { ...answer, id: request }),
      (error: AnyRow) => send(id, { ...(error.info as AnyRow), type: 'error', id: request, code: error.code, message: error.message }));
  };

  const listen = ({ data }: MessageEvent<Envelope>) => {
    if (data.to !== 'leader' && data.to !== me) return;
    if (data.bye) forget(data.from);
    else if (data.hello) bus.postMessage({ to: data.from, from: me, hello: true } satisfies Envelope);
    else if (data.message) take(data.from, data.message);
  };
  bus.addEventListener('message', listen);
  // Whoever waits for a leader has one now; who had another one comes again.
  bus.postMessage({ to: 'all', from: me, hello: true } satisfies Envelope);
  return () => {
    bus.removeEventListener('message', listen);
    for (const id of [...tabs.keys()]) forget(id);
  };
};

/** A client that shares one connection with the other tabs of the browser. Without Web Locks it is an ordinary one. */
export const createTabsClient = ({ name, ...options }: TabsOptions): Client & { readonly isLeader: () => boolean } => {
  const { locks } = globalThis.navigator ?? {};
  if (!locks || typeof BroadcastChannel === 'undefined') return Object.assign(createClient(options), { isLeader: () => true });
  const me = crypto.randomUUID();
  const ending = new AbortController();
  const bus = new BroadcastChannel(`pg-changefeed tabs ${name}`);
  // What a page sends itself does not come back over its own BroadcastChannel.
  const own = new BroadcastChannel(`pg-changefeed tabs ${name}`);
  let leads = false;

  const transport: Transport = (context: TransportContext) => {
    let known: string | null = null;
    let over = false;
    const waiting: AnyRow[] = [];
    const post = (message: AnyRow) => own.postMessage({ to: 'leader', from: me, message } satisfies Envelope);
    const end = (code: number, again = false) => {
      if (over) return;
      over = true;
      clearTimeout(timer);
      own.removeEventListener('message', listen);
      context.closed(code, undefined, again);
    };
    const listen = ({ data }: MessageEvent<Envelope>) => {
      if (over || (data.to !== me && data.to !== 'all') || (data.from === me && !data.message && data.to !== 'all' && !data.hello)) return;
      if (data.hello) {
        clearTimeout(timer);
        if (known !== null && known !== data.from) return end(1006, true);
        if (known === null) {
          known = data.from;
          for (const message of waiting.splice(0)) post(message);
        }
      } else if (data.message && data.from === known) context.message(data.message);
    };
    own.addEventListener('message', listen);
    const timer = setTimeout(() => end(1006), HELLO_MS);
    own.postMessage({ to: 'leader', from: me, hello: true } satisfies Envelope);
    const link: Link = {
      name: 'tab',
      send: (message) => (known === null ? void waiting.push(message) : post(message)),
      close() {
        if (!over) own.postMessage({ to: 'leader', from: me, bye: true } satisfies Envelope);
        over = true;
        clearTimeout(timer);
        own.removeEventListener('message', listen);
      },
    };
    return link;
  };

  const outer = createClient({ ...options, auth: null, transport });
  locks.request(`pg-changefeed tabs ${name}`, { signal: ending.signal }, async () => {
    leads = true;
    const inner = createClient({ ...options, flush: 'sync' }) as Client;
    const stop = leader(inner, bus, me);
    await new Promise<void>((resolve) => ending.signal.addEventListener('abort', () => resolve()));
    stop();
    inner.close();
    leads = false;
  }).catch(() => {});
  // A tab that is closed without a word holds channels of the leader for ever.
  const bye = () => own.postMessage({ to: 'leader', from: me, bye: true } satisfies Envelope);
  globalThis.addEventListener?.('pagehide', bye);
  return Object.assign(outer, {
    isLeader: () => leads,
    close: ((close) => () => {
      bye();
      close();
      ending.abort();
      globalThis.removeEventListener?.('pagehide', bye);
      bus.close();
      own.close();
    })(outer.close),
  });
};
