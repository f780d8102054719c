/**
 * For server rendering: a channel's rows and position in one answer, for `initial` of the same channel in the browser. No
 * connection stays behind.
 */
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
  const rows: Record<string, Map<string, AnyRow>> = {};
  const keys: Record<string, { key: readonly string[] }> = {};
  const at = (entity: string, row: AnyRow) => codec.stringify((keys[entity]?.key ?? Object.keys(row)).map((name) => row[name]));
  for (const message of answer.messages as AnyRow[]) {
    if (message.type === 'subscribed') Object.assign(keys, message.entities);
    if (message.type === 'subscribed' || message.type === 'resync') for (const entity in keys) rows[entity] = new Map();
    else if (message.type === 'snapshot') for (const row of message.rows) rows[message.entity]?.set(at(message.entity, row), row);
    else if (message.type === 'transaction') {
      for (const { entity, op, key, row, set } of message.changes) {
        const text = at(entity, key);
        if (op === 'remove') rows[entity]?.delete(text);
        else rows[entity]?.set(text, op === 'merge' ? { ...rows[entity].get(text) ?? key, ...set } : row);
      }
    } else if (message.type === 'revoked' || message.type === 'error') throw errorOf({ ...message, channel });
  }
  return { rows: Object.fromEntries(Object.entries(rows).map(([entity, map]) => [entity, [...map.values()]])), position: answer.position };
};
