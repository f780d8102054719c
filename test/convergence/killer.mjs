// Kills what the feed consists of, at random: the gateway, decoder, feed worker
// and query workers, and the whole server. Some are only stopped for a second.

import { execFile } from 'node:child_process';
import { promisify } from 'node:util';

import { until } from '../integration/lib/client.mjs';
import { Session } from '../integration/lib/psql.mjs';
import { Random } from './values.mjs';

const run = promisify(execFile);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const PATIENCE_MS = 120000;

export class Killer {
  idle = false;

  #random;
  #report;

  constructor(seed, report) {
    this.#random = new Random(seed, 'killer');
    this.#report = report;
  }

  async run(stopped, paused) {
    let next = Date.now() + 2000;
    while (!stopped()) {
      if (paused() || Date.now() < next) {
        this.idle = true;
        await sleep(20);
        continue;
      }
      this.idle = false;
      await this.#kill();
      next = Date.now() + this.#random.between(1000, 5000);
    }
    this.idle = true;
  }

  async #kill() {
    const kind = this.#random.weighted([
      [4, 'gateway'], [3, 'decoder'], [3, 'feed worker'], [3, 'query worker'], [1, 'launcher'], [2, 'gateway stopped'], [2, 'feed worker stopped'],
      [2, 'decoder stopped'], [1, 'query worker stopped'], [1, 'query cancelled'], [1, 'feed worker killed'], [1.5, 'restart'], [1.5, 'postmaster'],
    ]);
    if (kind === 'restart') await this.#cluster(['restart', '--mode', 'immediate']);
    else if (kind === 'postmaster') await this.#killPostmaster();
    else if (!await this.#signal(kind)) return;
    this.#report.count('kills', kind);
  }

  /** The server's processes are found through a session of its own: others may be cut off at any time. */
  async #ask(sql) {
    const session = new Session();
    try {
      return await session.value(sql);
    } catch (error) {
      if (/psql ended|connection|starting up|terminating|recovery/i.test(error.message)) return '';
      throw error;
    } finally {
      await session.close();
    }
  }

  async #signal(kind) {
    const what = kind.replace(/ (stopped|killed|cancelled)$/, '');
    const pid = await this.#pid(what === 'query' ? 'query worker' : what);
    if (!pid) return false;
    if (kind === 'gateway') return this.#send(pid, 'SIGKILL');
    if (kind === 'feed worker killed') return this.#send(pid, 'SIGKILL');
    if (kind.endsWith('stopped')) {
      if (!this.#send(pid, 'SIGSTOP')) return false;
      await sleep(1000);
      this.#send(pid, 'SIGCONT');
      return true;
    }
    return (await this.#ask(`SELECT pg_${kind === 'query cancelled' ? 'cancel' : 'terminate'}_backend(${pid})`)) === 't';
  }

  #send(pid, signal) {
    try {
      process.kill(pid, signal);
      return true;
    } catch (error) {
      if (error.code === 'ESRCH') return false;
      throw error;
    }
  }

  async #pid(what) {
    const sql = {
      gateway: 'SELECT gateway_pid FROM changefeed.stat_feed',
      decoder: 'SELECT decoder_pid FROM changefeed.stat_feed',
      'feed worker': 'SELECT feed_worker_pid FROM changefeed.stat_feed',
      'query worker': "SELECT pid FROM pg_stat_activity WHERE backend_type = 'changefeed query worker' ORDER BY random() LIMIT 1",
      launcher: "SELECT pid FROM pg_stat_activity WHERE backend_type = 'changefeed launcher'",
    }[what];
    return Number(await this.#ask(sql)) || null;
  }

  /** As scripts/cluster prints them. Ports are the same if they are free. */
  async #cluster([command, ...options]) {
    const { stdout } = await run(process.env.CLUSTER_SCRIPT, [command, '--no-build', '--data', process.env.CLUSTER_DATA, ...options]);
    for (const line of stdout.split('\n')) {
      const [, name, value] = line.match(/^(\w+)=(.*)$/) ?? [];
      if (name) process.env[name] = value.replace(/^'(.*)'$/, '$1');
    }
  }

  async #killPostmaster() {
    const pid = Number((await run('head', ['-1', `${process.env.CLUSTER_DATA}/postmaster.pid`])).stdout);
    this.#send(pid, 'SIGKILL');
    // Its processes notice by themselves; until then their shared memory is in use.
    let failure;
    await until(() => this.#cluster(['start']).then(() => true, (error) => { failure = error; return sleep(300); }),
      () => `server starts again (${failure?.stderr?.slice(-500)})`, PATIENCE_MS);
  }
}
