// The server's log, and what a process writes into it when it is asked for its memory.

import { readFileSync, statSync } from 'node:fs';

import { until } from './client.mjs';

const SLAB_BLOCK = 65536; // of connections, subscriptions, and what is loaded for these

export const LOG = `${process.env.CLUSTER_DATA}/log/server.log`;

/** What is logged from now on: text() is all of it, wait(pattern) its first match, when there is one. */
export function logged() {
  const from = statSync(LOG).size;
  const text = () => readFileSync(LOG).subarray(from).toString();
  return { text, wait: (pattern) => until(() => text().match(pattern), `log line ${pattern}`) };
}

/** Bytes that the feed worker uses in all memory contexts of a name (a regular expression). */
export async function memoryOf(db, context) {
  const log = logged();
  await db.exec('SELECT pg_log_backend_memory_contexts(feed_worker_pid) FROM changefeed.stat_feed');
  await log.wait(/Grand total: .* used/);
  const used = [...log.text().matchAll(new RegExp(`(?:; |LOG: +)(?:${context}): .* (\\d+) used`, 'g'))];
  if (used.length === 0) throw new Error(`no memory context ${context}`);
  const sum = used.reduce((bytes, [, more]) => bytes + Number(more), 0);
  if (context !== 'Grand total') return sum;
  // From 16 on a slab keeps ten empty blocks, and counts them as used.
  return [...log.text().matchAll(/blocks; (\d+) empty blocks;/g)].reduce((bytes, [, blocks]) => bytes - Number(blocks) * SLAB_BLOCK, sum);
}
