// Kills what the feed consists of, at random: the gateway, decoder, feed worker
// and query workers, and the whole server. Some are only stopped for a second.

import { setTimeout as sleep } from 'node:timers/promises';

import { ask, cluster, pidOf, postmasterPid, send, startAgain } from './processes.mjs';
import { Random } from './values.mjs';

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
    if (kind === 'restart') {
      await cluster(['restart', '--mode', 'immediate']);
    } else if (kind === 'postmaster') {
      send(await postmasterPid(), 'SIGKILL');
      await startAgain();
    } else if (!await this.#signal(kind)) {
      return;
    }
    this.#report.count('kills', kind);
  }

  async #signal(kind) {
    const what = kind.replace(/ (stopped|killed|cancelled)$/, '');
    const pid = await pidOf(what === 'query' ? 'query worker' : what);
    if (!pid) return false;
    if (kind === 'gateway') return send(pid, 'SIGKILL');
    if (kind === 'feed worker killed') return send(pid, 'SIGKILL');
    if (kind.endsWith('stopped')) {
      if (!send(pid, 'SIGSTOP')) return false;
      await sleep(1000);
      send(pid, 'SIGCONT');
      return true;
    }
    return (await ask(`SELECT pg_${kind === 'query cancelled' ? 'cancel' : 'terminate'}_backend(${pid})`)) === 't';
  }
}
