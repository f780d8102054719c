/**
 * One connection for all tabs of a browser: a transport for `createClient`.
 *
 * Each tab's client speaks the protocol with the leader, over BroadcastChannels, and need not know. The leader is the tab that holds
 * a Web Lock; it has a client of its own (leader.ts) with the real connection. When it goes, the next one in the lock's queue leads;
 * when it is silent, because it is frozen, another one takes the lock away. Positions stay what they were, so everybody goes on.
 *
 * Only tabs with the same identity share: it is part of the lock's name. A tab whose identity changes leaves, without its rows.
 */
import { ChangefeedError } from './error.js';
import { lead, type Leader } from './leader.js';
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
/** A tab that does not come back within this time leads no more. */
const LEAVE_MS = 500;
/** The leader is told whenever so much has arrived. */
const ACK_EVERY = 200;

const identityOf = (token: string | null): string => {
  const claims = claimsOf(token);
  if (!claims) return token ?? '';
  return JSON.stringify(Object.keys(claims).filter((claim) => !VOLATILE.includes(claim)).sort().map((claim) => [claim, claims[claim]]));
};

/** What is said on a group's channel. */
interface Hello {
  /** Somebody asks who leads. */
  who?: true;
  leader?: string;
  /** Grows from leader to leader, so that one that wakes up is not believed any more. */
  term?: number;
}

type Group = ReturnType<typeof createGroup>;

/** This tab's part in a group: it waits for the lock, and leads when it has it. */
const createGroup = (key: string, context: TransportContext, options: TabsOptions) => {
  const { locks } = globalThis.navigator;
  const bus = new BroadcastChannel(key);
  const listeners = new Set<(hello: Hello) => void>();
  let over = false;
  let leader: Leader | null = null;
  let term = 0;
  let asking = new AbortController();
  let release: (() => void) | null = null;

  const say = (hello: Hello) => {
    bus.postMessage(hello);
    hear(hello);
  };
  const hear = (hello: Hello) => {
    if (hello.term !== undefined) term = Math.max(term, hello.term);
    if (hello.who && leader) return say({ leader: leader.id, term: leader.term });
    for (const listener of [...listeners]) listener(hello);
  };
  bus.onmessage = ({ data }: MessageEvent<Hello>) => hear(data);

  const stop = () => {
    leader?.stop();
    leader = null;
    release?.();
    release = null;
  };
  const ask = (steal: boolean) => {
    asking.abort();
    const mine = (asking = new AbortController());
    locks.request(key, steal ? { steal } : { signal: mine.signal }, async () => {
      if (over || mine.signal.aborted) return;
      await new Promise<void>((resolve) => {
        release = resolve;
        leader = lead({ ...context, token: group.token }, options.transport ?? webSocket, Math.max(Date.now(), term + 1), options.backoff);
        say({ leader: leader.id, term: leader.term });
      });
    }).catch(() => {
      // It was given up, or taken away: then this tab waits like the others.
      if (mine !== asking) return;
      stop();
      if (!over) ask(false);
    });
  };
  const onFreeze = () => {
    asking.abort();
    asking = new AbortController();
    stop();
  };
  const onResume = () => ask(false);
  const document = globalThis.document as Document | undefined;
  document?.addEventListener('freeze', onFreeze);
  document?.addEventListener('resume', onResume);

  const group = {
    key,
    token: context.token,
    leaving: undefined as ReturnType<typeof setTimeout> | undefined,
    get leads() {
      return leader !== null;
    },
    listen(listener: (hello: Hello) => void) {
      listeners.add(listener);
      return () => void listeners.delete(listener);
    },
    who: () => say({ who: true }),
    steal: () => ask(true),
    leave() {
      over = true;
      clearTimeout(group.leaving);
      document?.removeEventListener('freeze', onFreeze);
      document?.removeEventListener('resume', onResume);
      asking.abort();
      stop();
      bus.close();
    },
  };
  ask(false);
  return group;
};

/** A transport that shares one connection with the other tabs. Where there are no Web Locks, each tab has its own. */
export const shareTabs = (options: TabsOptions = {}): TabsTransport => {
  const { name = '', transport: real = webSocket, identity = identityOf, lostMs = 10_000 } = options;
  let group: Group | null = null;
  let known: string | null = null;

  const transport: Transport = (context) => {
    if (!globalThis.navigator?.locks || typeof BroadcastChannel === 'undefined') return real(context);
    const who = identity(context.token);
    // Nothing of one identity is shown, or taken to be known, under another.
    if (known !== null && known !== who) context.purge();
    known = who;
    const key = `pg-changefeed ${JSON.stringify([context.base, name, who])}`;
    if (group?.key !== key) {
      group?.leave();
      group = createGroup(key, context, options);
    }
    const mine = group;
    clearTimeout(mine.leaving);
    mine.token = context.token;

    const id = `pg-changefeed tab ${crypto.randomUUID()}`;
    const inbox = new BroadcastChannel(id);
    const waiting: AnyRow[] = [];
    let outbox: BroadcastChannel | null = null;
    let leader: Hello | null = null;
    let alive: (() => void) | null = null;
    let there = false;
    let over = false;
    let heard = false;
    let misses = 0;
    let received = 0;
    let connected = false;
    const began = Date.now();

    const post = (said: AnyRow) => outbox?.postMessage({ ...said, from: id, at: Date.now() });
    const finish = () => {
      over = true;
      clearInterval(timer);
      stopListening();
      post({ bye: true });
      alive?.();
      inbox.close();
      outbox?.close();
      mine.leaving = setTimeout(() => {
        mine.leave();
        if (group === mine) group = null;
      }, LEAVE_MS);
    };
    const end = (code: number, error?: ChangefeedError, again?: boolean) => {
      if (over) return;
      finish();
      context.closed(code, error, again);
    };
    const begin = () => {
      if (outbox || !leader || !there || over) return;
      outbox = new BroadcastChannel(leader.leader!);
      for (const message of waiting.splice(0)) post({ message });
    };
    const stopListening = mine.listen((hello) => {
      if (!hello.leader || (leader && hello.term! < leader.term!)) return;
      heard = true;
      if (leader && leader.leader !== hello.leader) return end(1006, undefined, true);
      leader = hello;
      begin();
    });
    inbox.onmessage = ({ data }: MessageEvent<AnyRow>) => {
      if (over || data.from !== leader?.leader) return;
      heard = true;
      if (++received % ACK_EVERY === 0) post({ ack: true });
      if (data.end) return end(data.end.code, data.end.error && new ChangefeedError(data.end.error.code, data.end.error.message, data.end.error), data.end.again);
      if (data.want !== undefined) return void post({ base: { name: data.want, ...context.dump(data.want) } });
      if (data.message.type === 'connected') connected = true;
      context.message(data.message as AnyRow);
    };
    // A timer that is late, because this tab was asleep itself, says nothing about the leader.
    const timer = setInterval(() => {
      misses = heard ? 0 : misses + 1;
      heard = false;
      if (!connected && leader && Date.now() - began > WAIT_MS) return end(1006, undefined, true);
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
        if (over) return;
        if (message.type === 'token' && identity(message.token) !== who) {
          // Somebody else: begin again, in another group.
          context.purge();
          return end(1000, undefined, true);
        }
        if (outbox) post({ message });
        else waiting.push(message);
      },
      close() {
        if (!over) finish();
      },
    };
  };
  return Object.defineProperty(transport, 'leads', { get: () => group?.leads ?? false }) as TabsTransport;
};
