// Drives the load generator (bench/load): commands to its stdin, events from its stdout.

import path from 'node:path';
import { createInterface } from 'node:readline';

import { WrongResult } from './runner.mjs';
import { profiled } from './profile.mjs';
import { BIN, start } from './programs.mjs';

// A share of one core beyond which the generator may have been the bottleneck
const BUSY = 0.9;

export class Load {
  #child;
  #waiting = []; // { event, group, resolve, reject }
  #ended = null;
  wrong = [];

  // nice: gives way to others, for clients that are not those measured
  constructor({ nice = 0 } = {}) {
    const program = path.join(BIN, 'load');
    this.#child = nice === 0 ? start(program, []) : start('nice', ['-n', String(nice), program]);
    createInterface({ input: this.#child.stdout }).on('line', (line) => this.#take(JSON.parse(line)));
    this.#child.ended.then((code) => {
      this.#ended = code;
      for (const { reject } of this.#waiting) reject(new Error(`the load generator ended with status ${code}`));
      this.#waiting = [];
    });
  }

  get pid() {
    return this.#child.pid;
  }

  #take(event) {
    if (event.event === 'wrong') {
      this.wrong.push(event.message);
      console.error(`bench: wrong: ${event.message}`);
      // Nobody has to wait for what will not come.
      for (const { reject } of this.#waiting) reject(new WrongResult(event.message));
      this.#waiting = [];
      return;
    }
    const at = this.#waiting.findIndex((each) => each.event === event.event && (each.group === undefined || each.group === event.group));
    if (at < 0) return;
    const [{ resolve }] = this.#waiting.splice(at, 1);
    resolve(event);
  }

  #expect(event, group) {
    if (this.wrong.length > 0) return Promise.reject(new WrongResult(this.wrong[0]));
    if (this.#ended !== null) return Promise.reject(new Error(`the load generator ended with status ${this.#ended}`));
    const promise = new Promise((resolve, reject) => { this.#waiting.push({ event, group, resolve, reject }); });
    promise.catch(() => {});
    return promise;
  }

  send(command) {
    this.#child.stdin.write(`${JSON.stringify(command)}\n`);
  }

  // Options as in bench/load/conn.c; resolves when all connections are ready
  open(options) {
    const answer = this.#expect('open', options.group ?? 'clients');
    this.send({ do: 'open', group: 'clients', ...options });
    return answer;
  }

  reopen(options) {
    return profiled(() => {
      const answer = this.#expect('open', options.group ?? 'clients');
      this.send({ do: 'reopen', group: 'clients', ...options });
      return answer;
    });
  }

  close(group = 'clients') {
    const answer = this.#expect('closed', group);
    this.send({ do: 'close', group });
    return answer;
  }

  // Options as in bench/load/publish.c; resolves when everybody has everything
  publish(options) {
    return profiled(() => {
      const answer = this.#expect('published');
      this.send({ do: 'publish', ...options });
      return answer;
    });
  }

  // No more of what is being published; publish() resolves when everybody has what was sent
  finish() {
    this.send({ do: 'finish' });
  }

  async stats() {
    const answer = this.#expect('stats');
    this.send({ do: 'stats' });
    return (await answer).stats;
  }

  reset() {
    this.send({ do: 'reset' });
  }

  samples(file) {
    const answer = this.#expect('samples');
    this.send(file === undefined ? { do: 'samples', keep: true } : { do: 'samples', file });
    return answer;
  }

  async quit() {
    const wrong = this.wrong;
    this.send({ do: 'quit' });
    this.#child.stdin.end();
    await this.#child.ended;
    if (wrong.length > 0) throw new WrongResult(wrong[0]);
  }
}

// What the generator says of itself, as metrics; and a note if it may have been the bottleneck
export function generatorFigures({ generator }, context, where) {
  const lag = generator.lag_us?.p99 ?? null;
  const isBusy = generator.share > BUSY;
  if (isBusy) context.note(`${where}: the load generator took ${Math.round(generator.share * 100)} % of a core: throughput and latency are bounded by it, CPU per message is not`);
  return { generator_share: generator.share, generator_lag_p99_us: lag, generator_turn_p99_us: generator.turn_us?.p99 ?? null, generator_was_busy: isBusy };
}
