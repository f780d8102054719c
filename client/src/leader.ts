/**
 * The leader of a browser's tabs: it has the connection, and hands on to the tabs what the server says.
 *
 * A client of its own (`inner`) keeps the connection and the rows. What the server says goes to that client first, and then as it is
 * to all tabs at once (`say`, see tabs.ts); each takes what it has subscribed to. A tab that comes later gets the client's rows. A
 * tab that comes back with a position gets what came since, if that is still in the channel's log; the first one that comes back to
 * a new leader brings its rows along, and the leader goes on from them. The others do not wait until it has caught up, but catch up with
 * it: how much that is makes no difference then.
 */
import { createClient } from './client.js';
import { ChangefeedError } from './error.js';
import { claimsOf, hasExpired } from './token.js';
import type { AnyRow, Channel, ClientOptions, Initial, Transport, TransportContext } from './types.js';

/** What the leader says: for all tabs, or for the one in `to`. */
export interface Said {
  /** What the server has said. */
  all?: AnyRow;
  /** Where all channels are behind it that are ready, also in tabs that have not the channel of what was said. */
  at?: string;
  to?: string;
  /** Here is the place of the parcel with that number. */
  parcel?: number;
  /** The rows of a channel are asked for. */
  want?: string;
  /** The connection ends. */
  end?: { code: number; again?: boolean; error?: AnyRow };
}

export interface Leader {
  readonly id: string;
  readonly term: number;
  stop(): void;
}

/** What a tab has asked for. */
interface Sub {
  id: unknown;
  from: string | undefined;
  /** Changes without rows: it has those that have changed. */
  plain: boolean;
  versions: boolean;
  /** It has what the client has. */
  told: boolean;
}

interface Tab {
  id: string;
  inbox: BroadcastChannel;
  hello: unknown;
  connected: boolean;
  parcels: number;
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
  /** The tab that was asked for its rows, and all that were. */
  asked: string | null;
  tried: Set<string>;
  /** Until a tab comes that has all rows. */
  waits: boolean;
  /** The id of the last request to subscribe, and whether it was answered: what comes before is of another subscription. */
  request: unknown;
  on: boolean;
  /** What has come, with the position behind it. */
  log: Logged[];
  head: AnyRow;
  snapshot: AnyRow;
  members: Map<string, { states: unknown; meta: AnyRow | undefined }> | null;
  counted: AnyRow | null;
  /** What tabs have said of themselves, the latest last. */
  tracks: Map<string, AnyRow>;
}

interface Logged {
  position: string;
  at: number;
  frame?: AnyRow;
  message?: AnyRow;
}

/** So much of what has come is kept in any case, for tabs that come back; and so much of what is not older than that, however fast it comes. */
const LOG = 2000;
const LOG_MAX = 50_000;
const LOG_MS = 30_000;
/** What goes, goes so much at a time. */
const LOG_STEP = 500;
/** A tab is asked for its rows; if it does not answer within this time, another one is, and then the server. */
const BASE_MS = 3000;
/** Tabs that have not all rows wait so long for one that has. */
const PLAIN_MS = 500;
/** Without tabs the connection ends, and a channel that no tab has. */
const IDLE_MS = 1000;
const LINGER_MS = 1000;
/** Older messages are of before a sleep: their tab has gone on without this leader. */
const OLD_MS = 10_000;
/** A tab has so long to get a token before the others are asked. */
const ASK_MS = 5000;
const LONG_MS = 600_000;
const NOTHING = { xmin: '0', xmax: '0', xip: [] };

export const lead = (
  context: TransportContext, real: Transport, term: number, backoff: ClientOptions['backoff'], say: (said: Said) => void,
): Leader => {
  const id = `pg-changefeed leader ${crypto.randomUUID()}`;
  const inbox = new BroadcastChannel(id);
  const tabs = new Map<string, Tab>();
  const entries = new Map<string, Entry>();
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
    transport: (below) => {
      const link = real({
        ...below,
        message(said) {
          const message = typeof said === 'string' ? (below.codec.parse(said) as AnyRow) : said;
          // Tokens are the tabs' business: one of them is asked for the next one, and then all.
          if (message.type === 'error' && message.code === '28000' && message.expires_at) {
            const old = token;
            const warn = (from: number, to?: number) => [...tabs.values()].filter(({ connected }) => connected).slice(from, to).forEach((tab) => send(tab, message));
            warn(0, 1);
            setTimeout(() => token === old && warn(1), ASK_MS);
            return;
          }
          expiresAt = message.expires_at ?? expiresAt;
          if (message.type === 'connected') session = message.session ?? session;
          saying = message;
          below.message(message);
          saying = null;
          if (isUp()) relay(message);
        },
      });
      for (const entry of entries.values()) entry.on = false;
      return {
        get name() {
          return link.name;
        },
        send(message) {
          const entry = /subscribe$/.test(message.type) && entries.get(message.channel);
          if (entry) Object.assign(entry, { on: false, request: message.type === 'subscribe' ? message.id : undefined });
          link.send(message);
        },
        close: () => link.close(),
      };
    },
  });
  const isUp = () => ['connected', 'polling'].includes(inner.connection.current.status);

  // ---- To the tabs ----

  const send = (tab: Tab, ...messages: AnyRow[]) => {
    tab.inbox.postMessage({ from: id, parcel: (tab.parcels += 1), messages });
    say({ to: tab.id, parcel: tab.parcels });
  };
  const drop = (tab: Tab, end: Said['end']) => {
    say({ to: tab.id, end });
    forget(tab);
  };
  const forget = (tab: Tab) => {
    if (!tabs.delete(tab.id)) return;
    tab.gone.abort();
    tab.inbox.close();
    for (const name of [...tab.subs.keys()]) leave(tab, name);
    if (tabs.size === 0) idle = setTimeout(() => inner.disconnect(), IDLE_MS);
  };
  const subsOf = ({ name }: Entry) => [...tabs.values()].flatMap((tab) => {
    const sub = tab.subs.get(name);
    return sub ? [[tab, sub] as const] : [];
  });

  // ---- What was said ----

  /** Notes what has come for which channels, and where those are now: what the client does with positions is what tabs do. */
  const note = (contentOf: (entry: Entry) => Partial<Logged> | false) => {
    const at = performance.now();
    for (const entry of entries.values()) {
      const { log, channel } = entry;
      const content = contentOf(entry);
      const position = channel?.position;
      if (!entry.on || !position || (!content && log.at(-1)?.position === position)) continue;
      log.push({ position, at, ...content });
      if (log.length >= LOG + LOG_STEP && (at - log[LOG_STEP - 1]!.at > LOG_MS || log.length > LOG_MAX)) log.splice(0, LOG_STEP);
    }
  };

  /** The tab's subscription goes on at once from a position that is known, or begins when the rows are exact. */
  const tell = (tab: Tab, sub: Sub, entry: Entry) => {
    const channel = entry.channel!;
    const { name, log } = entry;
    const found = log.map(({ position }) => position).lastIndexOf(sub.from!);
    const live = channel.state === 'live';
    if (!live && found < 0) return;
    const all: AnyRow[] = [{ ...entry.head, type: 'subscribed', id: sub.id, channel: name, recovered: found >= 0, entities: channel.entities }];
    if (found >= 0) {
      for (const { frame, message } of log.slice(found + 1)) {
        if (frame) all.push({ ...frame, channel: name, changes: (frame.changes as AnyRow[]).filter((change) => change.channel === name).map(whole) });
        if (message) all.push(message);
      }
      if (live) all.push({ type: 'ready', channel: name, position: channel.position });
    } else {
      if (sub.from !== undefined) all.push({ type: 'resync', channel: name, reason: entry.reason });
      if (!sub.plain) {
        for (const [entity, { key }] of Object.entries(channel.entities)) {
          const rows = channel.rows(entity);
          const keyOf = (row: AnyRow) => Object.fromEntries(key.map((column) => [column, row[column]]));
          all.push({ type: 'snapshot', channel: name, entity, rows, ...(sub.versions && { versions: rows.map((row) => channel.version(keyOf(row), entity)) }) });
        }
      }
      all.push({ type: 'ready', channel: name, position: channel.position, entities: channel.entities, ...(!sub.plain && { snapshot: entry.snapshot }) });
      // Which transactions are in the rows: those of the snapshot, those that came since, and all before the settled one.
      for (const { frame } of log.slice(-100)) if (frame?.txid) all.push({ type: 'transaction', channel: name, txid: frame.txid, changes: [] });
      if (settled) all.push({ type: 'ping', settled_txid: settled });
    }
    sub.told = true;
    if (entry.counted) all.push(entry.counted);
    else if (entry.members) {
      const members = [...entry.members];
      all.push({
        type: 'presence', channel: name, full: true, left: {}, joined: Object.fromEntries(members.map(([user, { states }]) => [user, states])),
        meta: Object.fromEntries(members.flatMap(([user, { meta }]) => (meta ? [[user, meta]] : []))),
      });
    }
    send(tab, ...all);
  };
  /** Whoever waits for it gets it, as far as it is known or exact now. */
  const tellAll = (entry: Entry) => {
    for (const [tab, sub] of subsOf(entry)) if (!sub.told) tell(tab, sub, entry);
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
    say({ all: message });
  };

  /** With the whole row, if some tab has none to merge into. */
  const whole = (change: AnyRow): AnyRow => {
    const entry = entries.get(change.channel)!;
    if (change.op !== 'merge' || change.row || !subsOf(entry).some(([, { plain }]) => plain)) return change;
    return { ...change, row: entry.channel?.get(change.key, change.entity) };
  };

  const relay = (message: AnyRow) => {
    const { type, channel: name } = message;
    if (type === 'transaction') {
      parts.push(message);
      if (message.last === false) return;
      const { part: _, last: __, seq: ___, ...frame }: AnyRow = {
        ...message, changes: parts.flatMap(({ changes }) => changes as AnyRow[]).filter((change) => entries.get(change.channel)?.on).map(whole),
      };
      parts = [];
      note((entry) => frame.changes.some((change: AnyRow) => change.channel === entry.name) && { frame });
      // Also without changes: so all tabs are at the same position, and another leader can go on from there with each.
      return say({ all: frame });
    }
    if (type === 'ping' || type === 'synced') {
      if (message.settled_txid) settled = message.settled_txid;
      note(() => false);
      // Whoever has asked: the tabs stay at one position.
      return say({ all: { ...message, type: 'ping', id: undefined } });
    }
    const entry = name === undefined ? undefined : entries.get(name);
    if (!entry?.channel) return;
    if (type === 'subscribed' && message.id === entry.request) {
      entry.on = true;
      entry.head = message.min_interval_ms === undefined ? {} : { min_interval_ms: message.min_interval_ms };
      if (!message.recovered) entry.log = [];
      return tellAll(entry);
    }
    if (!entry.on) return;
    if (type === 'message') {
      note((each) => each === entry && { message });
      say({ all: message, ...(entry.channel.state === 'live' && entry.head.min_interval_ms === undefined && { at: message.position }) });
    } else if (type === 'snapshot' || type === 'columns') say({ all: message });
    else if (type === 'presence' && message.id === undefined) present(entry, message);
    else if (type === 'ready' && entry.channel.state === 'live') {
      if (message.snapshot) {
        entry.snapshot = message.snapshot;
        entry.log = [];
      }
      note(() => false);
      say({ all: message });
      tellAll(entry);
    }
  };

  // ---- Channels ----

  const open = (entry: Entry, initial?: Initial) => {
    entry.asked = null;
    entry.waits = false;
    entry.versions = !initial || initial.versions !== undefined;
    entry.log = initial?.position ? [{ position: initial.position, at: performance.now() }] : [];
    const channel = inner.channel(entry.name, { ...(entry.versions && { versions: true }), ...(entry.plain && { snapshot: false }), ...(initial && { initial }) }) as Channel;
    entry.channel = channel;
    entry.offs = [
      channel.on('resync', (reason) => {
        entry.log = [];
        entry.reason = reason;
        say({ all: { type: 'resync', channel: entry.name, reason } });
      }),
      channel.on('error', (error) => {
        const said = { ...error.info, channel: entry.name, code: error.code, message: error.message };
        for (const [tab, sub] of subsOf(entry)) {
          if (!sub.told) send(tab, { ...said, type: 'error', id: sub.id });
          tab.subs.delete(entry.name);
        }
        say({ all: { reason: error.code, ...said, type: 'revoked', id: undefined } });
        close(entry);
      }),
    ];
  };
  /** Another one begins, if somebody wants it, behind the end of this one: the client would still have its rows. */
  const close = (entry: Entry) => {
    entry.offs.forEach((off) => off());
    entry.channel?.unsubscribe();
    entry.channel = null;
    entry.asked = null;
    entry.on = false;
    entry.members = entry.counted = null;
    entry.tracks.clear();
    entry.waits = false;
    setTimeout(() => {
      if (entries.get(entry.name) !== entry || entry.channel || entry.asked) return;
      if (subsOf(entry).length > 0) open(entry);
      else entries.delete(entry.name);
    }, 0);
  };
  /** From the beginning: with rows, or with their versions, which were not wanted until now. */
  const reopen = (entry: Entry) => {
    close(entry);
    say({ all: { type: 'resync', channel: entry.name, reason: 'tabs' } });
  };
  /** Asks a tab for its rows; rather one that has their versions, if some tab needs them. */
  const ask = (entry: Entry) => {
    const fits = (sub: Sub) => sub.versions || !subsOf(entry).some(([, { versions }]) => versions);
    const able = subsOf(entry).filter(([tab, { from, plain }]) => from !== undefined && !plain && !entry.tried.has(tab.id));
    const [tab] = able.find(([, sub]) => fits(sub)) ?? able[0] ?? [];
    if (!tab && entry.plain) {
      entry.waits = true;
      return void setTimeout(() => entries.get(entry.name) === entry && entry.waits && open(entry), PLAIN_MS);
    }
    entry.waits = false;
    if (!tab) return open(entry);
    entry.asked = tab.id;
    entry.tried.add(tab.id);
    say({ to: tab.id, want: entry.name });
    setTimeout(() => entries.get(entry.name) === entry && entry.asked === tab.id && ask(entry), BASE_MS);
  };
  const given = (tab: Tab, { name, ...initial }: AnyRow) => {
    const entry = entries.get(name);
    if (entry?.asked !== tab.id) return;
    // A tab with versions may have come meanwhile.
    if (!initial.versions && subsOf(entry).some(([{ id: other }, sub]) => sub.versions && !sub.plain && sub.from !== undefined && !entry.tried.has(other))) return ask(entry);
    open(entry, initial.position ? initial as Initial : undefined);
  };
  const subscribe = (tab: Tab, { id: request, channel: name, from, snapshot, versions }: AnyRow) => {
    const sub: Sub = { id: request, from, plain: snapshot === false, versions: versions === true, told: false };
    tab.subs.set(name, sub);
    const entry = entries.get(name);
    if (!entry) {
      const fresh: Entry = {
        name, plain: sub.plain, versions: true, channel: null, offs: [], reason: 'tabs', asked: null, tried: new Set(), waits: false, request: undefined, on: false, log: [],
        head: {}, snapshot: NOTHING, members: null, counted: null, tracks: new Map(),
      };
      entries.set(name, fresh);
      if (from === undefined) open(fresh);
      else ask(fresh);
      return;
    }
    const more = (entry.plain && !sub.plain) || (sub.versions && !entry.versions);
    entry.plain &&= sub.plain;
    if (entry.waits && !sub.plain) return ask(entry);
    if (more && entry.channel) reopen(entry);
    else if (entry.on) tell(tab, sub, entry);
  };
  const leave = (tab: Tab, name: string) => {
    const entry = entries.get(name);
    tab.subs.delete(name);
    if (!entry) return;
    if (entry.tracks.has(tab.id) && isUp()) untrack(entry, tab).catch(() => {});
    if (entry.asked === tab.id) ask(entry);
    sweep();
  };
  /** Ends what nobody has any more, unless everybody is about to come back. */
  const sweep = () => {
    clearTimeout(sweeping);
    sweeping = setTimeout(() => {
      if (!isUp()) return;
      for (const entry of [...entries.values()]) if (entry.channel && subsOf(entry).length === 0) close(entry);
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
    send(tab, { type: 'connected', id: tab.hello, session: session ?? id, heartbeat_ms: 2 ** 30 });
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
    const { position: _, ...answer } = await inner.request(message, { resend: message.type === 'call', timeoutMs: LONG_MS });
    return answer;
  };
  const take = (tab: Tab, message: AnyRow): void => {
    const { type } = message;
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
  const failure = (code: number, { info, code: sqlstate, message }: ChangefeedError, again = false): Said['end'] =>
    ({ code, again, error: { ...info, code: sqlstate, message } });

  inbox.onmessage = ({ data }: MessageEvent<AnyRow>) => {
    let tab = tabs.get(data.from);
    if (data.bye) return void (tab && forget(tab));
    if (data.base && tab) given(tab, data.base as AnyRow);
    if (!data.message) return;
    if (!tab) {
      // The first thing that a tab says is `connect`: it was forgotten, or is not known yet.
      tab = {
        id: data.from, inbox: new BroadcastChannel(data.from), hello: 0, connected: false, parcels: 0, subs: new Map(), gone: new AbortController(),
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
      say({ end: { code: 1006, again: true } });
      for (const tab of tabs.values()) {
        tab.gone.abort();
        tab.inbox.close();
      }
      tabs.clear();
      inbox.close();
    },
  };
};
