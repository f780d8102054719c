/**
 * Somebody who is signed in: a client with that person's token, what waits for the network, and what is known of interruptions.
 */
import { createClient, ChangefeedError, type Channel, type Client } from 'pg-changefeed';
import { createOfflineQueue, type OfflineQueue } from 'pg-changefeed/offline';
import { optimistic, type Optimistic } from 'pg-changefeed/optimistic';

import { createNetwork, type Network } from './network';
import { createStore, type Store } from './store';
import type { Command, Courier, Job } from './schema';

export interface Person {
  sub: string;
  name: string;
  role: 'courier_dispatcher' | 'courier_finance' | 'courier_customer';
}

/** One time without a connection, and how it ended. */
export interface Trip {
  readonly id: number;
  readonly lostAt: number;
  readonly awayMs: number | null;
  /** Transactions that were missed and came behind the return; and channels whose rows had to be loaded again. */
  readonly replayed: number;
  readonly reloaded: readonly string[];
}

export interface Rate {
  /** Seconds since 1970, and the changed rows and the lag in each of them. */
  readonly at: readonly number[];
  readonly changes: readonly number[];
  readonly lagMs: readonly (number | null)[];
}

export interface Session {
  readonly person: Person;
  readonly people: readonly Person[];
  readonly client: Client<Courier>;
  readonly network: Network;
  readonly queue: OfflineQueue;
  readonly jobs: Channel<Courier['channels']['jobs']>;
  /** The orders with what is pending on them. */
  readonly orders: Optimistic<Job>;
  readonly trips: Store<readonly Trip[]>;
  readonly rate: Store<Rate>;
  close(): void;
}

interface Login {
  person: Person;
  people: Person[];
  token: string;
  url: string;
}

const login = async (sub: string): Promise<Login> => {
  const response = await fetch('/login', { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify({ sub }) });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.message);
  return answer;
};

const SECONDS = 60;
const CHANNELS = ['jobs', 'fleet', 'finance'] as const;

/** What a command will do to an order, as far as can be said before it has run. */
export const predict = (command: Command, args: { note?: string }, me: string): Partial<Job> =>
  command === 'claim_order' ? { claimed_by: me }
    : command === 'release_order' ? { claimed_by: null }
      : command === 'send_driver' ? { status: 'assigned' }
        : command === 'set_note' ? { note: args.note } : {};

export const openSession = async (sub: string): Promise<Session> => {
  let first: Login | null = await login(sub);
  const { person, people, url } = first;
  const network = createNetwork();
  const client = createClient<Courier>({
    url,
    // Tokens last a quarter of an hour: the client asks for another one in time.
    auth: async () => {
      const { token } = first ?? (await login(sub));
      first = null;
      return token;
    },
    WebSocket: network.WebSocket,
    flush: 'frame',
  });
  const queue = await createOfflineQueue(client, { name: `courier ${sub}`, backoff: { minMs: 500, maxMs: 5000 } });
  const jobs = client.channel('jobs', { versions: true });
  const channels = new Map<string, Channel>(CHANNELS.map((name) =>
    [name, (name === 'jobs' ? jobs : client.channel(name)) as unknown as Channel]));

  // ---- Interruptions: when it went, when all rows were right again, and what that took ----

  const trips = createStore<readonly Trip[]>([]);
  let open: Trip | null = null;
  let everConnected = false;
  let replayed = new Set<string | null>();
  const look = () => {
    const connected = client.connection.current.status === 'connected';
    everConnected ||= connected;
    if (!connected && !open && everConnected) {
      open = { id: Date.now(), lostAt: Date.now(), awayMs: null, replayed: 0, reloaded: [] };
      replayed = new Set();
      trips.set([open, ...trips.current].slice(0, 4));
    } else if (connected && open && [...channels.values()].every(({ state }) => state === 'live' || state === 'error')) {
      const done: Trip = { ...open, awayMs: Date.now() - open.lostAt, replayed: replayed.size };
      trips.set(trips.current.map((trip) => (trip.id === done.id ? done : trip)));
      open = null;
    }
  };
  client.connection.subscribe(look);
  for (const [name, channel] of channels) {
    channel.on('state', look);
    channel.on('snapshot', () => {
      if (open && !open.reloaded.includes(name)) open = { ...open, reloaded: [...open.reloaded, name] };
    });
  }

  // ---- Changes per second ----

  const rate = createStore<Rate>({ at: [], changes: [], lagMs: [] });
  let changes = 0;
  let lagMs: number | null = null;
  client.on('transaction', (transaction) => {
    if (open) replayed.add(transaction.txid);
    changes += transaction.changes.length;
    if (transaction.phase === 'live' && transaction.committedAt) lagMs = Math.max(0, Date.now() - Date.parse(transaction.committedAt));
  });
  const timer = setInterval(() => {
    const { current } = rate;
    rate.set({
      at: [...current.at, Math.floor(Date.now() / 1000)].slice(-SECONDS),
      changes: [...current.changes, changes].slice(-SECONDS),
      lagMs: [...current.lagMs, lagMs].slice(-SECONDS),
    });
    changes = 0;
    lagMs = null;
  }, 1000);

  const orders = optimistic<Job, Courier['channels']['jobs']>(client as never, jobs);
  return {
    person, people, client, network, queue, jobs, orders, trips, rate,
    close() {
      clearInterval(timer);
      orders.close();
      queue.close();
      client.close();
    },
  };
};

export const isConnected = (session: Session) => session.client.connection.current.status === 'connected';

/** What came of a command: done, put into the queue, or refused. */
export type Outcome =
  | { kind: 'done'; result: unknown }
  | { kind: 'queued' }
  | { kind: 'conflict'; message: string; theirs: Job | null }
  | { kind: 'refused'; message: string; hint?: string };

export const outcomeOf = (error: unknown): Outcome => {
  if (!(error instanceof ChangefeedError)) return { kind: 'refused', message: String(error) };
  const { conflict, code, message, hint } = error;
  if (conflict) return { kind: 'conflict', message, theirs: (conflict.row as Job | null) ?? null };
  // The functions' own word for it.
  if (code === 'P0409') return { kind: 'conflict', message, theirs: null };
  return { kind: 'refused', message, hint };
};

/**
 * With a connection, the order shows at once what it will be, and the call is made on the condition that nobody has changed the
 * same columns. Without one, the call waits in the queue, which outlives the page.
 */
export const act = async (session: Session, command: Exclude<Command, 'place_delivery'>, args: { id: number; note?: string }): Promise<Outcome> => {
  if (!isConnected(session)) {
    await session.queue.call(command, args);
    return { kind: 'queued' };
  }
  try {
    const { result } = await session.orders.mutate({
      key: { id: args.id },
      set: predict(command, args, session.person.sub),
      call: () => [command, args],
      conflict: 'merge',
    });
    return { kind: 'done', result };
  } catch (error) {
    return outcomeOf(error);
  }
};
