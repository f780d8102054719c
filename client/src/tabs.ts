/**
 * One connection for all tabs of a browser: a transport for `createClient`.
 *
 * Each tab's client speaks the protocol with the leader, and need not know. The leader is the tab that holds a Web Lock; it has a
 * client of its own (leader.ts) with the real connection. When it goes, the next one in the lock's queue leads; when it is silent,
 * because it stands still, another one takes the lock away.
 *
 * What the leader says, it says once for all, numbered, on one BroadcastChannel on which also new leaders announce themselves.
 * So all tabs hear the same things in the same order, and are at the same position when the next one leads: what the old one says
 * behind that counts for nobody. What is for one tab only, such as rows, comes as a parcel in a channel of that tab's own; its
 * place in the order is said on the common one. A number that is missing ends a tab's connection: it comes back with its position.
 *
 * Only tabs with the same identity share: it is part of the names of lock and channel. A tab whose identity changes leaves, without
 * its rows.
 */
import { ChangefeedError } from './error.js';
import { lead, type Leader, type Said } from './leader.js';
import { webSocket } from './socket.js';
import { claimsOf } from './token.js';
import type { AnyRow, ClientOptions, Transport, TransportContext } from './types.js';

export interface TabsOptions {
  /** Tabs with the same name share. Where the identity is not in a token but in a cookie, it has to differ by user. */
  name?: string;
  /** The leader's way to the server: a WebSocket if it is left out. */
  transport?: Transport;
  /** Of the leader's connection. */
  backoff?: ClientOptions['backoff'];
  /** What tells identities apart: all claims but those that change from token to token, if it is left out. */
  identity?: (token: string | null) => string;
  /** A leader that has been silent for so long is replaced: 10 seconds if it is left out. */
  lostMs?: number;
}

export interface TabsTransport extends Transport {
  /** Does this tab have the connection? */
  readonly leads: boolean;
}

/** The default of `changefeed.identity_claims`. */
const VOLATILE = ['exp', 'iat', 'nbf', 'jti', 'session_id'];
/** Silences of a third of `lostMs` each. */
const MISSES = 3;
/** A tab waits so long for the leader's connection before it asks again. */
const WAIT_MS = 10_000;
/** A tab that does not come back within this time leads no more; one whose own hearing has ended its connection may need a token first. */
const LEAVE_MS = 500;
const BACK_MS = 10_000;

const identityOf = (token: string | null): string => {
  const claims = claimsOf(token);
  if (!claims) return token ?? '';
  return JSON.stringify(Object.keys(claims).filter((claim) => !VOLATILE.includes(claim)).sort().map((claim) => [claim, claims[claim]]));
};

/** What is heard on a group's channel. */
interface Heard extends Said {
  /** Somebody asks who leads. */
  who?: true;
  /** Who says it, and the number of what he has said. */
  leader?: string;
  n?: number;
  /** In what tells who leads: it grows from leader to leader, so that one that wakes up is not believed any more. */
  term?: number;
}

/** One connection of this tab. */
interface Member {
  /** Null: something is missing. */
  hear(said: Heard | null): void;
  sleep(): void;
  wake(): void;
}

type Group = ReturnType<typeof createGroup>;

/** This tab's part in a group: it hears what is said, waits for the lock, and leads when it has it. */
const createGroup = (key: string, context: TransportContext, options: TabsOptions) => {
  const { locks } = globalThis.navigator;
  const mouth = new BroadcastChannel(key);
  const members = new Set<Member>();
  const ending = new AbortController();
  // Another one than the mouth, which does not hear itself: what this tab says has its place in the order, too.
  let ear: BroadcastChannel | null = null;
  let leader: Leader | null = null;
  let said = 0;
  let known: { leader: string; n: number } | null = null;
  let term = 0;
  let asleep: Member[] = [];
  let asking = new AbortController();
  let release: (() => void) | null = null;

  const announce = () => leader && mouth.postMessage({ leader: leader.id, term: leader.term, n: said });
  const stop = () => {
    const old = leader;
    old?.stop();
    leader = null;
    release?.();
    release = null;
  };
  const tell = (heard: Heard | null) => {
    for (const member of [...members]) member.hear(heard);
  };
  const hear = (heard: Heard) => {
    const { leader: by = '', n = 0 } = heard;
    if (heard.who) return void announce();
    if (heard.term !== undefined && by !== known?.leader) {
      if (heard.term < term || (heard.term === term && by < (known?.leader ?? ''))) return;
      term = heard.term;
      known = { leader: by, n };
      if (leader && leader.id !== by) stop();
    } else {
      if (!known || by !== known.leader) return;
      const whole = n === known.n + (heard.term === undefined ? 1 : 0);
      known.n = n;
      if (!whole) return tell(null);
    }
    group.heard += 1;
    // Its end: who leads next, will say so.
    if (heard.end && !heard.to) known = null;
    tell(heard);
  };
  const ask = (steal: boolean) => {
    asking.abort();
    const mine = (asking = new AbortController());
    locks.request(key, steal ? { steal } : { signal: mine.signal }, async () => {
      if (group.over || mine.signal.aborted) return;
      await new Promise<void>((resolve) => {
        release = resolve;
        said = 0;
        const made = lead({ ...context, token: group.token }, options.transport ?? webSocket, Math.max(Date.now(), term + 1), options.backoff, (what) => {
          if (leader === made) mouth.postMessage({ ...what, leader: made.id, n: (said += 1) });
        });
        leader = made;
        announce();
      });
    }).catch(() => {
      // It was given up, or taken away: then this tab waits like the others.
      if (mine !== asking) return;
      stop();
      if (!group.over) ask(false);
    });
  };
  const open = () => {
    ear = new BroadcastChannel(key);
    ear.onmessage = ({ data }: MessageEvent<Heard>) => hear(data);
    ask(false);
  };
  const shut = () => {
    asking.abort();
    asking = new AbortController();
    stop();
    ear?.close();
    ear = known = null;
  };

  const group = {
    key,
    token: context.token,
    members,
    over: false,
    /** How often the leader was heard of. */
    heard: 0,
    leaving: undefined as ReturnType<typeof setTimeout> | undefined,
    get leads() {
      return leader !== null;
    },
    get leader() {
      return known?.leader;
    },
    who: () => mouth.postMessage({ who: true }),
    steal: () => ask(true),
    leave() {
      if (group.over) return;
      group.over = true;
      clearTimeout(group.leaving);
      ending.abort();
      shut();
      mouth.close();
    },
  };
  const listen = (target: EventTarget | undefined, event: string, listener: () => void) =>
    target?.addEventListener?.(event, listener, { signal: ending.signal });
  // A page that stands still must not lead, and what it does not hear must not fill its memory.
  listen(globalThis.document, 'freeze', () => {
    if (!ear) return;
    asleep = [...members];
    for (const member of asleep) member.sleep();
    shut();
  });
  listen(globalThis.document, 'resume', () => {
    if (ear) return;
    open();
    for (const member of asleep.splice(0)) member.wake();
  });
  // It may go for good: the next one leads at once. Its client makes another group if it comes back.
  listen(globalThis as unknown as EventTarget, 'pagehide', () => group.leave());
  open();
  return group;
};

/** A transport that shares one connection with the other tabs. Where there are no Web Locks, each tab has its own. */
export const shareTabs = (options: TabsOptions = {}): TabsTransport => {
  const { name = '', transport: real = webSocket, identity = identityOf, lostMs = 10_000 } = options;
  let group: Group | null = null;
  let known: string | null = null;
  /** Channels that were asked for without rows: they come back with a position, but have not all rows. */
  const partial = new Set<string>();

  const transport: Transport = (context) => {
    if (!globalThis.navigator?.locks || typeof BroadcastChannel === 'undefined') return real(context);
    const who = identity(context.token);
    // Nothing of one identity is shown, or taken to be known, under another.
    if (known !== null && known !== who) context.purge();
    known = who;
    const key = `pg-changefeed ${JSON.stringify([context.base, name, who])}`;
    if (group?.key !== key || group.over) {
      group?.leave();
      group = createGroup(key, context, options);
    }
    const mine = group;
    clearTimeout(mine.leaving);
    mine.token = context.token;

    const id = `pg-changefeed tab ${crypto.randomUUID()}`;
    const inbox = new BroadcastChannel(id);
    const parcels = new Map<number, AnyRow[]>();
    /** What was heard and not done yet, because a parcel is still to come. */
    const heard: Heard[] = [];
    let held: Heard | undefined;
    const subs = new Map<string, { id: unknown; plain: boolean; on: boolean }>();
    const waiting: AnyRow[] = [];
    let outbox: BroadcastChannel | null = null;
    let leader: string | undefined;
    let alive: (() => void) | null = null;
    let there = false;
    let over = false;
    let heardOf = mine.heard;
    let misses = 0;
    let connected = false;
    const began = Date.now();

    const post = (said: AnyRow) => outbox?.postMessage({ ...said, from: id, at: Date.now() });
    const sleep = () => {
      over = true;
      clearInterval(timer);
      mine.members.delete(member);
      post({ bye: true });
      alive?.();
      inbox.close();
      outbox?.close();
    };
    const finish = (backMs = LEAVE_MS) => {
      if (over) return;
      sleep();
      mine.leaving = setTimeout(mine.leave, backMs);
    };
    const end = (code: number, error?: ChangefeedError, again?: boolean) => {
      if (over) return;
      finish(code === 1006 && again ? BACK_MS : LEAVE_MS);
      context.closed(code, error, again);
    };
    const begin = () => {
      if (outbox || !leader || !there || over) return;
      outbox = new BroadcastChannel(leader);
      for (const message of waiting.splice(0)) post({ message });
    };

    /** Who has no rows gets changes whole. */
    const fit = (change: AnyRow): AnyRow => {
      if (!subs.get(change.channel)?.plain || change.op === 'remove') return change;
      const { set, ...rest } = change;
      return { ...rest, op: 'replace', row: change.row ?? { ...change.key, ...set } };
    };
    const give = (message: AnyRow, forAll?: boolean, at?: string) => {
      const { type, channel } = message;
      const sub = subs.get(channel as string);
      if (type === 'connected') connected = true;
      if (type === 'subscribed' && sub?.id === message.id) sub!.on = true;
      if (forAll && !connected) return;
      if (type === 'transaction') return context.message({ ...message, changes: (message.changes as AnyRow[]).map(fit) });
      // What is not for this tab may be news of where its channels are.
      if (forAll && channel !== undefined && !sub?.on) return at && context.message({ type: 'ping', position: at });
      if (forAll && type === 'revoked') sub!.on = false;
      if (!sub?.plain) return context.message(message);
      if (type !== 'snapshot') context.message(type === 'ready' ? { ...message, snapshot: undefined } : message);
    };
    const pump = () => {
      while (heard.length && !over) {
        const { all, at, to = id, parcel = 0, want, end: ended } = heard[0]!;
        const messages = parcels.get(parcel) ?? [];
        if (to === id && parcel && !parcels.delete(parcel)) return;
        heard.shift();
        if (all) give(all, true, at);
        if (to !== id) continue;
        for (const message of messages) if (!over) give(message);
        if (want !== undefined) post({ base: { name: want, ...context.dump(want) } });
        if (ended) end(ended.code, ended.error && new ChangefeedError(ended.error.code, ended.error.message, ended.error), ended.again);
      }
    };
    const member: Member = {
      hear(said) {
        // Something is missing, or somebody else leads: it goes on from where it is.
        if (!said || (said.term !== undefined && leader && leader !== said.leader)) return end(1006, undefined, true);
        if (said.term === undefined) {
          if (said.leader !== leader) return;
          heard.push(said);
          return pump();
        }
        leader = said.leader;
        begin();
      },
      sleep,
      wake: () => context.closed(1006, undefined, true),
    };
    mine.members.add(member);
    leader = mine.leader;
    inbox.onmessage = ({ data }: MessageEvent<AnyRow>) => {
      if (over || data.from !== leader) return;
      parcels.set(data.parcel, data.messages);
      pump();
    };
    // A timer that is late, because this tab was asleep itself, says nothing about the leader.
    const timer = setInterval(() => {
      misses = mine.heard === heardOf ? misses + 1 : 0;
      heardOf = mine.heard;
      if (!connected && leader && Date.now() - began > WAIT_MS) return end(1006, undefined, true);
      // A parcel that does not come
      if (heard.length && heard[0] === held) return end(1006, undefined, true);
      held = heard[0];
      if (misses >= MISSES) {
        misses = 0;
        mine.steal();
      } else if (misses > 0) mine.who();
    }, lostMs / MISSES);
    // It says that this tab is there, until it is not, however that comes.
    navigator.locks.request(id, () => new Promise<void>((resolve) => {
      if (over) return resolve();
      alive = resolve;
      there = true;
      begin();
    })).catch(() => {});
    mine.who();

    return {
      name: 'tab',
      send(message) {
        const { type, channel } = message;
        if (over || type === 'pong') return;
        if (type === 'token' && identity(message.token) !== who) {
          // Somebody else: begin again, in another group.
          context.purge();
          return end(1000, undefined, true);
        }
        let said = message;
        if (type === 'subscribe') {
          if (message.from === undefined) partial[message.snapshot === false ? 'add' : 'delete'](channel);
          const plain = partial.has(channel);
          if (plain) said = { ...message, snapshot: false };
          subs.set(channel, { id: message.id, plain, on: false });
        } else if (type === 'unsubscribe') {
          partial.delete(channel);
          subs.delete(channel);
        }
        if (outbox) post({ message: said });
        else waiting.push(said);
      },
      close: () => finish(),
    };
  };
  return Object.defineProperty(transport, 'leads', { get: () => group?.leads ?? false }) as TabsTransport;
};
