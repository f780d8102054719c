// The processes of the server and its feed: who they are, signals to them, and
// the server's end and start, for tests that kill.

import { execFile } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';

import { until } from '../integration/lib/client.mjs';
import { Session } from '../integration/lib/psql.mjs';

const run = promisify(execFile);
const PATIENCE_MS = 120000;

/** Of a server that is not there, or does not let anybody in. */
export const AWAY = /psql ended|connection|starting up|shutting down|terminating|recovery/i;

/** The answer of a session of its own, as others may be cut off at any time; null if the server is away. */
export async function ask(sql) {
  const session = new Session();
  try {
    return await session.value(sql);
  } catch (error) {
    if (AWAY.test(error.message)) return null;
    throw error;
  } finally {
    await session.close();
  }
}

/** false if there is no such process any more. */
export function send(pid, signal) {
  try {
    process.kill(pid, signal);
    return true;
  } catch (error) {
    if (error.code === 'ESRCH') return false;
    throw error;
  }
}

const PIDS = {
  gateway: 'SELECT gateway_pid FROM changefeed.stat_feed',
  decoder: 'SELECT decoder_pid FROM changefeed.stat_feed',
  'feed worker': 'SELECT feed_worker_pid FROM changefeed.stat_feed',
  'query worker': "SELECT pid FROM pg_stat_activity WHERE backend_type = 'changefeed query worker' ORDER BY random() LIMIT 1",
  launcher: "SELECT pid FROM pg_stat_activity WHERE backend_type = 'changefeed launcher'",
};

/** null if there is none. Never 0, which would be all of us. */
export async function pidOf(what) {
  return Number(await ask(PIDS[what])) || null;
}

export async function postmasterPid() {
  return Number((await run('head', ['-1', `${process.env.CLUSTER_DATA}/postmaster.pid`])).stdout);
}

/** scripts/cluster. Takes over what it prints. Ports are the same if they are free. */
export async function cluster([command, ...options]) {
  // What is preloaded into the server, if anything
  const env = process.env.CLUSTER_PRELOAD ? { ...process.env, LD_PRELOAD: process.env.CLUSTER_PRELOAD } : process.env;
  const { stdout } = await run(process.env.CLUSTER_SCRIPT, [command, '--no-build', '--data', process.env.CLUSTER_DATA, ...options], { env });
  for (const line of stdout.split('\n')) {
    const [, name, value] = line.match(/^(\w+)=(.*)$/) ?? [];
    if (name) process.env[name] = value.replace(/^'(.*)'$/, '$1');
  }
}

/** Behind the postmaster's death: its processes notice by themselves; until then their shared memory is in use. */
export async function startAgain() {
  let failure;
  await until(() => cluster(['start']).then(() => true, (error) => { failure = error; return sleep(300); }),
    () => `server starts again (${failure?.stderr?.slice(-500)})`, PATIENCE_MS);
}
