/**
 * Yjs: live editing of one document over a channel.
 *
 * Updates are rows of a table that is only ever added to; the server is an ordered log and knows nothing of documents. What others
 * write comes as rows, what is written here goes out by a call. Cursors and names (awareness) are the state of presence.
 */
import type { Awareness } from 'y-protocols/awareness';
import type * as Yjs from 'yjs';

import { presence, type Presence } from './presence.js';
import type { AnyRow, CallResult, Channel, Readable } from './types.js';
import { createEmitter } from './util.js';

export interface YjsOptions {
  doc: Yjs.Doc;
  /** The module yjs: there must be only one copy of it. */
  Y: Pick<typeof Yjs, 'Doc' | 'applyUpdate' | 'mergeUpdates' | 'encodeStateAsUpdate' | 'encodeStateVector' | 'equalSnapshots' | 'snapshot'>;
  /** A channel whose rows are the document's updates. */
  channel: Channel;
  /** The rows' entity, and their column with the update. */
  entity?: string;
  column?: string;
  /** The call that adds an update, as PostgreSQL writes a bytea: `\x…`. */
  call(update: string): readonly [name: string, args: object];
  /** Cursors and names; the channel needs presence. `y-protocols/awareness` gives one. */
  awareness?: Awareness;
  /** How long updates are collected: 50 ms if it is left out. */
  collectMs?: number;
}

export interface YjsProvider {
  /** All rows of the log have been applied. */
  readonly synced: boolean;
  /** Updates that are not yet in the log. */
  readonly unsaved: number;
  on(event: 'status', listener: (status: { status: 'connected' | 'disconnected' }) => void): () => void;
  on(event: 'synced' | 'sync', listener: (synced: boolean) => void): () => void;
  on(event: 'error', listener: (error: unknown) => void): () => void;
  destroy(): void;
}

interface Calls {
  call(name: string, args: never): Promise<CallResult<unknown>>;
  request(message: AnyRow): Promise<AnyRow>;
  readonly connection: Readable<{ readonly status: string }>;
}

export const toBytea = (bytes: Uint8Array): string => `\\x${Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('')}`;

export const fromBytea = (text: string): Uint8Array => {
  const bytes = new Uint8Array((text.length - 2) / 2);
  for (let i = 0; i < bytes.length; i += 1) bytes[i] = parseInt(text.slice(2 + i * 2, 4 + i * 2), 16);
  return bytes;
};

/** How long it waits behind calls that have failed. */
const RETRY_MS = 1000;
const RETRY_MAX_MS = 30_000;

export const createYjsProvider = (client: Calls, options: YjsOptions): YjsProvider => {
  const { doc, Y, channel, entity, column = 'update', call, awareness, collectMs = 50 } = options;
  const { on, emit } = createEmitter();
  const offs: (() => void)[] = [];
  let outgoing: Uint8Array[] = [];
  let sending = false;
  let failures = 0;
  // What the document had before, out of a store of the page, may not be in the log.
  let brought = Y.encodeStateAsUpdate(doc).length > 2;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let synced = false;
  let over = false;
  let room: Presence<AnyRow> | null = null;
  const self = {};

  const take = (rows: readonly AnyRow[]) => {
    if (rows.length) Y.applyUpdate(doc, Y.mergeUpdates(rows.map((row) => fromBytea(row[column] as string))), self);
  };
  const bring = () => {
    brought = false;
    const log = new Y.Doc();
    const rows = channel.rows(entity);
    if (rows.length) Y.applyUpdate(log, Y.mergeUpdates(rows.map((row) => fromBytea((row as AnyRow)[column] as string))));
    if (!Y.equalSnapshots(Y.snapshot(log), Y.snapshot(doc))) onUpdate(Y.encodeStateAsUpdate(doc, Y.encodeStateVector(log)), null);
    log.destroy();
  };
  const setSynced = (now: boolean) => {
    if (now === synced) return;
    synced = now;
    if (now && brought) bring();
    emit('synced', now);
    emit('sync', now);
  };
  const send = async () => {
    timer = undefined;
    if (sending || outgoing.length === 0) return;
    sending = true;
    // One that fails is sent again with what came meanwhile: updates may come twice and in any order.
    const update = outgoing.length === 1 ? outgoing[0]! : Y.mergeUpdates(outgoing);
    const count = outgoing.length;
    try {
      const [name, args] = call(toBytea(update));
      await client.call(name, args as never);
      outgoing = outgoing.slice(count);
      failures = 0;
    } catch (error) {
      outgoing = [update, ...outgoing.slice(count)];
      emit('error', error);
      if (!over) timer = setTimeout(send, Math.min(RETRY_MAX_MS, RETRY_MS * 2 ** failures++));
      else outgoing = [];
    }
    sending = false;
    // What came while it was sent, also if that is the end.
    if (outgoing.length) timer ??= setTimeout(send, over ? 0 : collectMs);
  };
  const onUpdate = (update: Uint8Array, origin: unknown) => {
    if (origin === self) return;
    outgoing.push(update);
    timer ??= setTimeout(send, collectMs);
  };
  doc.on('update', onUpdate);

  offs.push(
    channel.on('snapshot', () => take(channel.rows(entity))),
    channel.on('transaction', ({ changes }) =>
      take(changes.filter((change) => change.op !== 'remove' && (entity === undefined || change.entity === entity)).map((change) => change.row as AnyRow))),
    channel.on('state', (state) => {
      emit('status', { status: state === 'live' ? 'connected' : 'disconnected' });
      setSynced(state === 'live');
    }),
  );
  if (channel.state === 'live') {
    take(channel.rows(entity));
    setSynced(true);
  }

  if (awareness) {
    room = presence(client, channel as never) as unknown as Presence<AnyRow>;
    const said = room;
    // Each client of a user is a state of its own.
    const known = new Map<number, string>();
    let later: ReturnType<typeof setTimeout> | undefined;
    const tell = () => {
      later = undefined;
      const state = awareness.getLocalState();
      (state === null ? said.untrack() : said.track({ client: doc.clientID, awareness: state })).catch((error: unknown) => emit('error', error));
    };
    // A cursor moves more often than others have to know.
    const onLocal = (_: unknown, origin: unknown) => {
      if (origin !== self) later ??= setTimeout(tell, collectMs);
    };
    awareness.on('update', onLocal);
    offs.push(() => awareness.off('update', onLocal), () => clearTimeout(later), said.subscribe(() => {
      const there = new Map<number, AnyRow>();
      for (const { states } of said.current.members.values()) {
        for (const state of states) if (typeof state?.client === 'number' && state.client !== doc.clientID) there.set(state.client, state.awareness);
      }
      const changes = { added: [] as number[], updated: [] as number[], removed: [] as number[] };
      for (const [id, state] of there) {
        const text = JSON.stringify(state);
        if (known.get(id) === text) continue;
        changes[known.has(id) ? 'updated' : 'added'].push(id);
        known.set(id, text);
        awareness.states.set(id, state);
        awareness.meta.set(id, { clock: (awareness.meta.get(id)?.clock ?? 0) + 1, lastUpdated: Date.now() });
      }
      for (const id of [...known.keys()]) {
        if (there.has(id)) continue;
        changes.removed.push(id);
        known.delete(id);
        awareness.states.delete(id);
        awareness.meta.delete(id);
      }
      if (changes.added.length + changes.updated.length + changes.removed.length === 0) return;
      awareness.emit('change', [changes, self]);
      awareness.emit('update', [changes, self]);
    }));
    if (awareness.getLocalState() !== null) tell();
  }

  return {
    get synced() {
      return synced;
    },
    get unsaved() {
      return outgoing.length;
    },
    on: on as YjsProvider['on'],
    destroy() {
      // What is still here goes out, if it can.
      clearTimeout(timer);
      over = true;
      void send();
      doc.off('update', onUpdate);
      offs.forEach((off) => off());
      room?.close();
    },
  };
};
