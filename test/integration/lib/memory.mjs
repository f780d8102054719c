// Memory of processes, as the kernel says: what belongs to one alone, without the shared buffers.

import { readFileSync } from 'node:fs';

import { number } from './json.mjs';

/** Private memory of a process in bytes; 0 if it has ended. */
export function privateOf(pid) {
  let text;
  try {
    text = readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8');
  } catch {
    return 0;
  }
  return [...text.matchAll(/^Private_(?:Clean|Dirty): +(\d+) kB/gm)].reduce((sum, [, kb]) => sum + Number(kb) * 1024, 0);
}

/** The database's processes: { name: [pid] }. */
export async function processesOf(db) {
  const [{ feed, decoder, gateways }] = await db.rows(`SELECT feed_worker_pid AS feed, decoder_pid AS decoder,
    (SELECT array_agg(pid) FROM changefeed.stat_gateways) AS gateways FROM changefeed.stat_feed`);
  const query = await db.rows("SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'changefeed query%'");
  return { feed: [number(feed)], decoder: [number(decoder)], gateway: gateways.map(number), query: query.map(({ pid }) => number(pid)) };
}

/** Looks at them until the function has ended: { result, most: { name: bytes } }. */
export async function watching(db, run, period = 20) {
  const processes = await processesOf(db);
  const most = {};
  const look = () => {
    for (const [name, pids] of Object.entries(processes)) most[name] = Math.max(most[name] ?? 0, ...pids.map(privateOf));
  };
  look();
  const timer = setInterval(look, period);
  try {
    const result = await run();
    look();
    return { result, most };
  } finally {
    clearInterval(timer);
  }
}

export const megabytes = (most) => Object.entries(most).map(([name, bytes]) => `${name} ${(bytes / 1048576).toFixed(0)} MB`).join(', ');
