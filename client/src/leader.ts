/**
 * The leader of a browser's tabs: it has the connection, and hands on to each tab what concerns it.
 *
 * A client of its own (`inner`) keeps the connection and the rows. What the server says goes to that client first, and then as it is
 * to the tabs that have the channel. A tab that comes later gets the client's rows. A tab that comes back with a position gets what
 * came since, if that is still in the log; the first one that comes back to a new leader brings its rows along, and the leader
 * goes on from them.
 */
import { createClient } from './client.js';
import { ChangefeedError } from './error.js';
import { claimsOf, hasExpired } from './token.js';
import type { AnyRow, Channel, ClientOptions, Initial, Transport, TransportContext } from './types.js';

export interface Leader {
  readonly id: string;
  readonly term: number;
  stop(): void;
}

/** What a tab has asked for. */
interface Sub {
  id: unknown;
  from: string | undefined;
  /** Changes without rows. */
  plain: boolean;
  versions: boolean;
  /** It has what the client has, and gets what comes. */
  told: boolean;
}

interface Tab {
  id: string;
  inbox: BroadcastChannel;
  hello: unknown;
  connected: boolean;
  seq: number;
  sent: number;
  taken: number;
  subs: Map<string, Sub>;
  gone: AbortController;
}

/** A channel of the inner client. */
interface Entry {
  name: string;
  plain: boolean;
  versions: boolean;
  channel: Channel | null;
  offs: (() => void)[];
  /** Why the rows were loaded anew the last time. */
  reason: string;
  /** The tab that was asked for its rows. */
  asked: string | null;
  /** The log has everything of it from this index on. */
  since: number;
  /** What comes is of a subscription that has ended. */
  paused: boolean;
  head: AnyRow;
  snapshot: AnyRow;
  members: Map<string, { states: unknown; meta: AnyRow | undefined }> | null;
  counted: AnyRow | null;
  /** What tabs have said of themselves, the latest last. */
  tracks: Map<string, AnyRow>;
}

/** One thing that the server said, with the position behind it: of all channels, or of one. */
interface Logged {
  position: string | null;
  channel: string | undefined;
  frame?: AnyRow;
  message?: AnyRow;
}

const LOG = 2000;
/** A tab is asked for its rows; if it does not answer within this time, the server is. */
const BASE_MS = 1000;
/** Without tabs the connection ends, and a channel that no tab has. */
const IDLE_MS = 1000;
const LINGER_MS = 1000;
/** Older messages are of before a sleep: their tab has gone on without this leader. */
const OLD_MS = 10_000;
const LONG_MS = 600_000;
const NOTHING = { xmin: '0', xmax: '0', xip: [] };

export const lead = (context: TransportContext, real: Transport, term: number, backoff?: ClientOptions['backoff']): Leader => {
  const id = `pg-changefeed leader ${crypto.randomUUID()}`;
  const inbox = new BroadcastChannel(id);
  const tabs = new Map<string, Tab>();
  const entries = new Map<string, Entry>();
  let log: Logged[] = [];
  let first = 0;
  let token = context.token;
  let expiresAt: string | undefined;
  let settled: string | undefined;
  let session: string | undefined;
  let parts: AnyRow[] = [];
  let idle: ReturnType<typeof setTimeout> | undefined;
  let sweeping: ReturnType<typeof setTimeout> | undefined;
  let saying: AnyRow | null = null;
  let renewed: (() => void) | undefined;

  const auth = async () => {
    // The tabs get fresh ones, when they come to it.
    if (hasExpired(token)) {
      const asked = new Promise<void>((resolve) => {
        renewed = resolve;
      });
      for (const tab of [...tabs.values()]) drop(tab, { code: 1006, again: true });
      await asked;
    }
    return token;
  };
  const inner = createClient({
    url: context.base, codec: context.codec, WebSocket: context.WebSocket, fetch: context.fetch, flush: 'sync', lingerMs: 0, backoff, auth,
    transport: (below) => real({
      ...below,
      message(said) {
        const message = typeof said === 'string' ? (below.codec.parse(said) as AnyRow) : said;
        // Tokens are the tabs' business.
        if (message.type === 'error' && message.code === '28000' && message.expires_at) {
          for (const tab of tabs.values()) if (tab.connected) send(tab, message);
          return;
        }
        const { expires_at: at, ...rest } = message;
        if (at) expiresAt = at as string;
        if (message.type === 'connected') session = message.session ?? session;
        saying = message;
        below.message(at ? rest : message);
        saying = null;
        relay(message);
        const [tab] = tabs.values();
        if (at && message.type === 'ok' && tab?.connected) send(tab, { type: 'ok', expires_at: at });
      },
    }),
  });
  const isUp = () => ['connected', 'polling'].includes(inner.connection.current.status);

  // ---- To the tabs ----

  const send = (tab: Tab, message: AnyRow) => {
    tab.inbox.postMessage({ from: id, message });
    // One that is frozen takes nothing, and must not fill the memory.
    if (++tab.sent - tab.taken > 4 * LOG) drop(tab, { code: 1013, again: true });
  };
  const drop = (tab: Tab, end: AnyRow) => {
    tab.inbox.postMessage({ from: id, end });
    forget(tab);
  };
  const forget = (tab: Tab) => {
    if (!tabs.delete(tab.id)) return;
    tab.gone.abort();
    tab.inbox.close();
    for (const name of [...tab.subs.keys()]) leave(tab, name);
    if (tabs.size === 0) idle = setTimeout(() => inner.disconnect(), IDLE_MS);
  };
  const eachTold = (entry: Entry, act: (tab: Tab, sub: Sub) => void) => {
    for (const tab of [...tabs.values()]) {
      const sub = tab.subs.get(entry.name);
      if (sub?.told) act(tab, sub);
    }
  };
  /** Who has no rows gets changes whole. */
  const fit = (sub: Sub, entry: Entry, change: AnyRow): AnyRow => {
    if (!sub.plain || change.op === 'remove' || change.op === 'replace') return change;
    const { set: _, ...rest } = change;
    return { ...rest, op: 'replace', row: change.row ?? entry.channel?.get(change.key, change.entity) ?? { ...change.key, ...change.set } };
  };

  // ---- What was said ----

  const record = (logged: Logged) => {
    log.push(logged);
    if (log.length > LOG * 1.25) {
      first += log.length - LOG;
      log = log.slice(-LOG);
    }
  };
  const find = (entry: Entry, position: string): number => {
    for (let i = log.length - 1; i >= 0 && i + first >= entry.since; i -= 1) {
      const { position: at, channel } = log[i]!;
      if (at === position && (channel === undefined || channel === entry.name)) return i;
    }
    return -1;
  };

  /** The tab's subscription begins, or goes on. */
  const tell = (tab: Tab, sub: Sub, entry: Entry) => {
    const channel = entry.channel!;
    const { name } = entry;
    const found = sub.from === undefined ? -1 : find(entry, sub.from);
    send(tab, { ...entry.head, type: 'subscribed', id: sub.id, channel: name, recovered: found >= 0, entities: channel.entities });
    if (found >= 0) {
      for (const { frame, message, channel: only } of log.slice(found + 1)) {
        if (only !== undefined && only !== name) continue;
        const changes = (frame?.changes as AnyRow[] | undefined)?.filter((change) => change.channel === name);
        if (changes?.length) send(tab, { ...frame, seq: (tab.seq += 1), channel: name, changes: changes.map((change) => fit(sub, entry, change)) });
        if (message?.channel === name) send(tab, message);
      }
      send(tab, { type: 'ready', channel: name, position: channel.position });
    } else {
      if (sub.from !== undefined) send(tab, { type: 'resync', channel: name, reason: entry.reason });
      if (!sub.plain) {
        for (const [entity, { key }] of Object.entries(channel.entities)) {
          const rows = channel.rows(entity);
          const keyOf = (row: AnyRow) => Object.fromEntries(key.map((column) => [column, row[column]]));
          send(tab, { type: 'snapshot', channel: name, entity, rows, ...(sub.versions && { versions: rows.map((row) => channel.version(keyOf(row), entity)) }) });
        }
      }
      send(tab, { type: 'ready', channel: name, position: channel.position, entities: channel.entities, ...(!sub.plain && { snapshot: entry.snapshot }) });
      // Which transactions are in the rows: those of the snapshot, those that came since, and all before the settled one.
      for (const { frame } of log.slice(-100)) {
        if (frame?.txid) send(tab, { type: 'transaction', seq: (tab.seq += 1), channel: name, txid: frame.txid, changes: [] });
      }
      if (settled) send(tab, { type: 'ping', settled_txid: settled });
    }
    sub.told = true;
    if (entry.counted) send(tab, entry.counted);
    else if (entry.members) {
      const all = [...entry.members];
      send(tab, {
        type: 'presence', channel: name, full: true, left: {}, joined: Object.fromEntries(all.map(([user, { states }]) => [user, states])),
        meta: Object.fromEntries(all.flatMap(([user, { meta }]) => (meta ? [[user, meta]] : []))),
      });
    }
  };

  const present = (entry: Entry, message: AnyRow) => {
    if (message.count !== undefined) entry.counted = message;
    else {
      if (message.full || !entry.members) entry.members = new Map();
      for (const [user, states] of Object.entries(message.joined ?? {})) {
        entry.members.delete(user);
        entry.members.set(user, { states, meta: message.meta?.[user] });
      }
      for (const user of Object.keys(message.left ?? {})) entry.members.delete(user);
    }
    eachTold(entry, (tab) => send(tab, message));
  };

  const relay = (message: AnyRow) => {
    const { type, channel: name, position = null } = message;
    if (type === 'transaction') {
      parts.push(message);
      if (message.last === false) return;
      const { part: _, last: __, ...frame }: AnyRow = { ...message, changes: parts.flatMap(({ changes }) => changes as AnyRow[]) };
      parts = [];
      record({ position, channel: name, frame });
      for (const tab of [...tabs.values()]) {
        const changes: AnyRow[] = [];
        for (const change of frame.changes) {
          const sub = tab.subs.get(change.channel);
          const entry = entries.get(change.channel);
          if (sub?.told && entry && !entry.paused) changes.push(fit(sub, entry, change));
        }
        // Also without changes: so all tabs are at the same position, and another leader can go on from there with each.
        if (name === undefined ? [...tab.subs.values()].some(({ told }) => told) : tab.subs.get(name)?.told) {
          send(tab, { ...frame, changes, seq: (tab.seq += 1) });
        }
      }
      return;
    }
    if (type === 'ping' || type === 'synced') {
      if (message.settled_txid) settled = message.settled_txid;
      if (position && log.at(-1)?.position !== position) record({ position, channel: undefined });
      if (type === 'ping') for (const tab of [...tabs.values()]) if (tab.connected) send(tab, message);
      return;
    }
    const entry = name === undefined ? undefined : entries.get(name);
    if (!entry?.channel) return;
    if (type === 'subscribed') {
      entry.paused = false;
      entry.head = message.min_interval_ms === undefined ? {} : { min_interval_ms: message.min_interval_ms };
    } else if (type === 'message') {
      if (position) record({ position, channel: entry.channel.state === 'live' ? undefined : name, message });
      eachTold(entry, (tab) => send(tab, message));
    } else if (type === 'snapshot') eachTold(entry, (tab, sub) => sub.plain || send(tab, message));
    else if (type === 'columns') eachTold(entry, (tab) => send(tab, message));
    else if (type === 'presence' && message.id === undefined) present(entry, message);
    else if (type === 'ready' && entry.channel.state === 'live') {
      if (message.snapshot) entry.snapshot = message.snapshot;
      record({ position, channel: name });
      if (entry.since === Infinity || message.snapshot) entry.since = first + log.length - 1;
      for (const tab of [...tabs.values()]) {
        const sub = tab.subs.get(entry.name);
        if (sub?.told) send(tab, sub.plain ? { ...message, snapshot: undefined } : message);
        else if (sub) tell(tab, sub, entry);
      }
    }
  };

  // ---- Channels ----

  const open = (entry: Entry, initial?: Initial) => {
    entry.asked = null;
    entry.versions = !initial || initial.versions !== undefined;
    entry.since = Infinity;
    if (initial?.position) {
      record({ position: initial.position, channel: entry.name });
      entry.since = first + log.length - 1;
    }
    const channel = inner.channel(entry.name, { ...(entry.versions && { versions: true }), ...(entry.plain && { snapshot: false }), ...(initial && { initial }) }) as Channel;
    entry.channel = channel;
    entry.offs = [
      channel.on('resync', (reason) => {
        // If it was not the server who said so, what it still says is not meant for the new subscription.
        entry.paused = saying?.type !== 'resync';
        entry.since = Infinity;
        entry.reason = reason;
        eachTold(entry, (tab) => send(tab, { type: 'resync', channel: entry.name, reason }));
      }),
      channel.on('error', (error) => {
        for (const tab of [...tabs.values()]) {
          const sub = tab.subs.get(entry.name);
          if (!sub) continue;
          const said = { ...error.info, channel: entry.name, code: error.code, message: error.message };
          send(tab, sub.told ? { reason: error.code, ...said, type: 'revoked', id: undefined } : { ...said, type: 'error', id: sub.id });
          tab.subs.delete(entry.name);
        }
        close(entry);
      }),
    ];
  };
  const shut = (entry: Entry) => {
    entry.offs.forEach((off) => off());
    entry.channel?.unsubscribe();
    entry.channel = null;
    entry.asked = null;
    entry.members = entry.counted = null;
    entry.tracks.clear();
  };
  const close = (entry: Entry) => {
    shut(entry);
    if (entries.get(entry.name) === entry) entries.delete(entry.name);
  };
  /** From the beginning: with rows, or with their versions, which were not wanted until now. */
  const reopen = (entry: Entry) => {
    shut(entry);
    entry.paused = true;
    eachTold(entry, (tab) => send(tab, { type: 'resync', channel: entry.name, reason: 'tabs' }));
    // Behind the end of the old one.
    setTimeout(() => entries.get(entry.name) === entry && !entry.channel && open(entry), 0);
  };
  const subscribe = (tab: Tab, { id: request, channel: name, from, snapshot, versions }: AnyRow) => {
    const sub: Sub = { id: request, from, plain: snapshot === false && from === undefined, versions: versions === true, told: false };
    tab.subs.set(name, sub);
    const entry = entries.get(name);
    if (!entry) {
      const fresh: Entry = {
        name, plain: sub.plain, versions: true, channel: null, offs: [], reason: 'tabs', asked: null, since: Infinity, paused: false, head: {}, snapshot: NOTHING,
        members: null, counted: null, tracks: new Map(),
      };
      entries.set(name, fresh);
      if (from === undefined) return open(fresh);
      fresh.asked = tab.id;
      tab.inbox.postMessage({ from: id, want: name });
      setTimeout(() => entries.get(name) === fresh && fresh.asked === tab.id && open(fresh), BASE_MS);
    } else if ((entry.plain && !sub.plain) || (sub.versions && !entry.versions)) {
      entry.plain &&= sub.plain;
      if (entry.channel) reopen(entry);
    } else if (entry.channel?.state === 'live' && !entry.paused) tell(tab, sub, entry);
  };
  const leave = (tab: Tab, name: string) => {
    const entry = entries.get(name);
    tab.subs.delete(name);
    if (!entry) return;
    if (entry.tracks.has(tab.id) && isUp()) untrack(entry, tab).catch(() => {});
    if (entry.asked === tab.id) open(entry);
    sweep();
  };
  /** Ends what nobody has any more, unless everybody is about to come back. */
  const sweep = () => {
    clearTimeout(sweeping);
    sweeping = setTimeout(() => {
      if (!isUp()) return;
      for (const entry of [...entries.values()]) if (![...tabs.values()].some(({ subs }) => subs.has(entry.name))) close(entry);
    }, LINGER_MS);
  };

  // ---- Presence: a browser is one member, with the state of the tab that spoke last and the keys of all ----

  const keysOf = (entry: Entry) => [...new Set([...entry.tracks.values()].flatMap(({ exclusive = [] }) => exclusive as string[]))];
  const track = async (entry: Entry, tab: Tab, message: AnyRow) => {
    // While it is asked for anew
    while (!entry.channel && entries.get(entry.name) === entry) await new Promise((resolve) => { setTimeout(resolve, 10); });
    if (message.expires_in !== undefined) return inner.request(message);
    const before = entry.tracks.get(tab.id);
    entry.tracks.delete(tab.id);
    entry.tracks.set(tab.id, message);
    try {
      return await inner.request({ ...message, exclusive: keysOf(entry) });
    } catch (error) {
      if (entry.tracks.get(tab.id) === message) {
        if (before) entry.tracks.set(tab.id, before);
        else entry.tracks.delete(tab.id);
      }
      throw error;
    }
  };
  const untrack = (entry: Entry, tab: Tab) => {
    entry.tracks.delete(tab.id);
    const last = [...entry.tracks.values()].at(-1);
    return inner.request(last ? { ...last, exclusive: keysOf(entry) } : { type: 'untrack', channel: entry.name });
  };

  // ---- From the tabs ----

  const welcome = (tab: Tab) => {
    tab.connected = true;
    tab.seq = 0;
    send(tab, {
      type: 'connected', id: tab.hello, session: session ?? id, heartbeat_ms: 2 ** 30,
      // One of them sees to the next token; if it does not, the server asks all.
      ...(expiresAt && tab === tabs.values().next().value && { expires_at: expiresAt }),
    });
  };
  const useToken = (next: string | null | undefined) => {
    if (!next || next === token) return;
    const until = (text: string | null) => (claimsOf(text)?.exp as number | undefined) ?? Infinity;
    if (inner.connection.current.status === 'unauthorized' || until(next) >= until(token)) token = next;
  };
  const request = async (tab: Tab, { id: number, ...message }: AnyRow): Promise<AnyRow> => {
    const entry = entries.get(message.channel);
    if (message.type === 'token') {
      useToken(message.token);
      if (isUp()) {
        try {
          await inner.request({ type: 'token', token: message.token });
        } catch (error) {
          // Not over HTTP: there a token is that of a connection.
          if (!(error instanceof ChangefeedError) || error.code !== '0A000') throw error;
          inner.setAuth(auth);
        }
      } else inner.connect();
      return { type: 'ok', expires_at: expiresAt };
    }
    if (entry && message.type === 'track') return track(entry, tab, message);
    if (entry && message.type === 'untrack') return untrack(entry, tab);
    // A call that is repeated is done once: it has a key.
    return inner.request(message, { resend: message.type === 'call', timeoutMs: LONG_MS });
  };
  const take = (tab: Tab, message: AnyRow): void => {
    const { type } = message;
    if (type === 'pong') return;
    if (type === 'connect') {
      tab.hello = message.id;
      useToken(message.token);
      renewed?.();
      if (isUp()) return welcome(tab);
      return inner.connect();
    }
    if (type === 'subscribe') return subscribe(tab, message);
    if (type === 'unsubscribe') {
      leave(tab, message.channel);
      return send(tab, { type: 'ok', id: message.id });
    }
    request(tab, message).then(
      (answer) => tabs.has(tab.id) && send(tab, { ...answer, id: message.id }),
      (error: ChangefeedError) => tabs.has(tab.id) && send(tab, { ...error.info, type: 'error', id: message.id, code: error.code, message: error.message }),
    );
  };
  const failure = (code: number, { info, code: sqlstate, message }: ChangefeedError, again = false) =>
    ({ code, again, error: { ...info, code: sqlstate, message } });

  inbox.onmessage = ({ data }: MessageEvent<AnyRow>) => {
    let tab = tabs.get(data.from);
    if (data.bye) return void (tab && forget(tab));
    if (tab && data.ack) tab.taken = tab.sent;
    if (data.base && tab) {
      const { name, ...initial } = data.base as AnyRow;
      const entry = entries.get(name);
      if (entry?.asked === tab.id) open(entry, initial.position ? initial as Initial : undefined);
    }
    if (!data.message) return;
    if (!tab) {
      // The first thing that a tab says is `connect`: it was forgotten, or is not known yet.
      tab = {
        id: data.from, inbox: new BroadcastChannel(data.from), hello: 0, connected: false, seq: 0, sent: 0, taken: 0, subs: new Map(), gone: new AbortController(),
      };
      tabs.set(data.from, tab);
      if (data.message.type !== 'connect' || Date.now() - data.at > OLD_MS) return drop(tab, { code: 1006, again: true });
      clearTimeout(idle);
      const { gone } = tab;
      const mine = tab;
      navigator.locks.request(data.from, { signal: gone.signal }, () => forget(mine)).catch(() => {});
    } else if (Date.now() - data.at > OLD_MS) return drop(tab, { code: 1006, again: true });
    take(tab, data.message);
  };

  let was = inner.connection.current;
  const off = inner.connection.subscribe(() => {
    const now = inner.connection.current;
    if (now.status === was.status) return;
    was = now;
    if (isUp()) {
      parts = [];
      for (const tab of [...tabs.values()]) welcome(tab);
      sweep();
    } else if (now.status === 'unauthorized') {
      for (const tab of [...tabs.values()]) drop(tab, failure(4003, now.error!));
    } else {
      // They come back at once, and wait for the connection here.
      for (const entry of entries.values()) {
        entry.members = entry.counted = null;
        entry.tracks.clear();
      }
      for (const tab of [...tabs.values()]) if (tab.connected) drop(tab, now.error ? failure(1006, now.error, true) : { code: 1006, again: true });
    }
  });

  return {
    id,
    term,
    stop() {
      off();
      clearTimeout(idle);
      clearTimeout(sweeping);
      inner.close();
      for (const tab of [...tabs.values()]) drop(tab, { code: 1006, again: true });
      inbox.close();
    },
  };
};
