/**
 * TanStack DB: a channel's rows as a collection.
 *
 * A transaction of the server is one transaction of the collection. Nothing of TanStack DB is imported, and only the part of its
 * contract is used that has not changed since 0.6, so that one adapter serves all versions.
 */
import type { AnyRow, Change, Channel, ChannelName, ChannelOf, ChannelTypes, Client, Schema, WaitOptions } from './types.js';

/** What a collection gives to `sync`: the part of it that is used here. */
export interface SyncParams<Row extends object> {
  begin(): void;
  write(message: { type: 'insert' | 'update' | 'delete'; value: Row }): void;
  commit(): unknown;
  markReady(): void;
  truncate(): void;
}

interface MutationParams {
  transaction: { mutations: { key: unknown; original: object; modified: object; changes: object }[] };
}

/** A handler may give the `txid` of what it wrote: then the optimistic rows stay until the transaction is in the collection. */
type Handler = (params: MutationParams) => Promise<{ txid: string | null } | { txid: string | null }[] | void>;

export interface CollectionConfig<S extends Schema, N extends ChannelName<S>, Row extends object> {
  client: Client<S>;
  channel: N;
  /** The only entity of the channel, if it is left out. */
  entity?: string;
  id?: string;
  /** The collection's key of a row. The columns of the channel's key have to be enough for it. */
  getKey(row: Row): string | number;
  onInsert?: Handler;
  onUpdate?: Handler;
  onDelete?: Handler;
  /** How long a handler waits for its transaction: 5 seconds if it is left out. */
  timeoutMs?: number;
}

/** Options for `createCollection`. */
export const changefeedCollectionOptions = <S extends Schema, N extends ChannelName<S>, Row extends object = AnyRow>(
  config: CollectionConfig<S, N, Row>,
) => {
  const { client, getKey, timeoutMs = 5000 } = config;
  let current: Channel<ChannelTypes> | null = null;

  const sync = ({ begin, write, commit, markReady, truncate }: SyncParams<Row>) => {
    const channel = client.channel(config.channel as never) as unknown as Channel<ChannelTypes>;
    const mine = (change: { entity: string }) => config.entity === undefined || change.entity === config.entity;
    current = channel;
    const fill = () => {
      begin();
      truncate();
      for (const row of channel.rows(config.entity as never)) write({ type: 'insert', value: row as Row });
      commit();
      markReady();
    };
    const offs = [
      channel.on('snapshot', fill),
      channel.on('transaction', ({ changes }) => {
        const own = changes.filter(mine) as Change[];
        if (own.length === 0) return;
        begin();
        for (const change of own) {
          // An update of a key that is not there makes the row, and unlike an insert it cannot fail.
          if (change.op === 'remove') write({ type: 'delete', value: change.key as Row });
          else write({ type: 'update', value: change.row as Row });
        }
        commit();
      }),
      // Taken away: refused, revoked, or another identity.
      channel.on('change', ({ reset }) => {
        if (!reset || channel.state === 'live') return;
        begin();
        truncate();
        commit();
      }),
      channel.on('error', () => markReady()),
    ];
    if (channel.state === 'live') fill();
    return () => {
      offs.forEach((off) => off());
      channel.unsubscribe();
      if (current === channel) current = null;
    };
  };

  const awaitTxId = async (txid: string, options?: WaitOptions): Promise<void> => {
    if (!current) throw new Error('the collection is not being synced');
    await current.seen(txid, { timeoutMs, ...options });
  };
  // The optimistic rows go when the handler is done; what it wrote has to be there by then.
  const handler = (own?: Handler) =>
    own && (async (params: MutationParams) => {
      const written = await own(params);
      for (const { txid } of Array.isArray(written) ? written : written ? [written] : []) if (txid) await awaitTxId(txid);
      return written;
    });

  return {
    id: config.id ?? `changefeed:${config.channel}${config.entity === undefined ? '' : `:${config.entity}`}`,
    getKey,
    sync: { sync, rowUpdateMode: 'full' as const },
    onInsert: handler(config.onInsert),
    onUpdate: handler(config.onUpdate),
    onDelete: handler(config.onDelete),
    utils: { awaitTxId },
  };
};

export type { ChannelOf };
