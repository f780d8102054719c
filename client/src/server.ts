/**
 * For server rendering: a channel's rows and position in one answer, for `initial` of the same channel in the browser. No
 * connection stays behind.
 */
import { createCache } from './cache.js';
import { ChangefeedError, errorOf } from './error.js';
import type { AnyRow, Codec, Initial } from './types.js';

export interface LoadOptions {
  /** The server: `https://example.com`, or `http://localhost:8040` from beside it. */
  url: string;
  /** The token of the user for whom the page is made: a position belongs to an identity. */
  token?: string | null;
  codec?: Codec;
  fetch?: typeof fetch;
  signal?: AbortSignal;
}

/** The rows of now, as the user of the token sees them, and where to go on from. */
export const loadInitial = async (channel: string, { url, token, codec = JSON, fetch: get = fetch, signal }: LoadOptions): Promise<Initial> => {
  const address = new URL(`${new URL(url).href.replace(/^ws/, 'http').replace(/\/+$/, '')}/v1/poll`);
  address.searchParams.set('channel', channel);
  let response: Response;
  try {
    // Frameworks that keep answers must not keep this one.
    response = await get(address, { headers: token ? { Authorization: `Bearer ${token}` } : {}, cache: 'no-store', signal });
  } catch (error) {
    throw new ChangefeedError('no_connection', String(error), { channel });
  }
  const answer = codec.parse(await response.text()) as AnyRow;
  if (!response.ok) throw errorOf({ ...answer, channel });
  const cache = createCache(channel, codec);
  for (const message of answer.messages as AnyRow[]) {
    if (message.type === 'subscribed') cache.entities = message.entities;
    if (message.type === 'subscribed' || message.type === 'resync') cache.stage();
    else if (message.type === 'snapshot') cache.add(message.entity, message.rows);
    else if (message.type === 'transaction') cache.apply(message.changes, message.txid);
    else if (message.type === 'ready') cache.swap();
    else if (message.type === 'revoked' || message.type === 'error') throw errorOf({ ...message, channel });
  }
  return { rows: Object.fromEntries(Object.keys(cache.entities).map((entity) => [entity, cache.rows(entity) as AnyRow[]])), position: answer.position };
};
