// Clients of the campaign over HTTP: event streams and polls. Like the others
// they tell the checker what they receive; they cannot choose among channels as
// they go, and have no `sync`, so they have settled when they hold what they should.

import { setTimeout as sleep } from 'node:timers/promises';

import { readPosition, cacheTexts, Track, Difference } from '../convergence/checker.mjs';
import { Listener, LOST, PATIENCE_MS, TEMPORARY } from '../convergence/clients.mjs';
import { until } from '../integration/lib/client.mjs';
import { Events, poll } from '../integration/lib/http.mjs';

// Of a server that is not there, or has no room.
const GONE = /fetch failed|terminated|other side closed|aborted|socket hang up|ECONNRE|not within/;

class HttpListener extends Listener {
  names = [];
  position = null; // of the last answer or event: a list with commas
  held = new Map();
  stopped = false;
  outside = false; // was refused last

  #running = null;

  start() {
    this.#running = this.run().catch((error) => this.fleet.fail(error));
  }

  async stop() {
    this.stopped = true;
    this.end();
    await this.#running;
  }

  /** Other channels, from the beginning. Of a window nobody can say here what it should hold. */
  choose() {
    const names = [...this.fleet.channels].filter(([, { selection }]) => !selection?.window).map(([name]) => name);
    this.names = this.random.sample(names, this.random.between(1, 3));
    this.forget();
  }

  forget() {
    this.position = null;
    this.held = new Map();
  }

  /** `tracks`: those of the request before, by channel, which go on. */
  watch(client, tracks = new Map()) {
    super.watch(client);
    const { model } = this.fleet;
    for (const [name, s] of client.subscriptions) {
      s.track = tracks.get(name) ?? new Track(model.view(this.identity, this.fleet.channels.get(name)), { since: this.since, who: this.who });
      s.track.since = this.since;
      s.track.raw = client.raw;
      s.resumedFrom = s.from ?? null;
      s.track.note(`request ${s.from ? `from LSN ${readPosition(s.from).lsn}` : 'without position'}`);
    }
  }

  /** The request was refused as a whole, for one of its channels. */
  refused(status, reply) {
    const { checker, model, report } = this.fleet;
    report.count('requests refused', `${status} ${reply?.code ?? ''}`);
    if ([429, 503, 504].includes(status) || TEMPORARY.has(reply?.code)) return;
    if (!['42501', '42704'].includes(reply?.code)) throw new Difference('error', `${this.who}: ${this.names}: status ${status} ${JSON.stringify(reply)}`);
    const name = this.names[reply.id - 1];
    const track = new Track(model.view(this.identity, this.fleet.channels.get(name)), { since: this.since, who: this.who });
    checker.add(this, { kind: 'refused', track, since: this.since, message: reply });
    this.choose();
    this.client = null;
    this.outside = true;
  }

  /** Runs a request; false if the server was not there. */
  async attempt(request) {
    // Who has settled has nothing to do.
    while (this.settled && this.fleet.isQuiet && !this.stopped) await sleep(50);
    try {
      this.since = this.fleet.model.visible;
      await request();
      return true;
    } catch (error) {
      if (error instanceof Difference || !(GONE.test(error.message) || LOST.test(error.message) || error.code === 'ECONNRESET')) throw error;
      return false;
    }
  }

  /** What it has, compared with what it should. */
  isComplete() {
    if (this.outside) return true;
    if (!this.client || this.position === null || this.client.violation) return false;
    return this.names.every((name) => {
      const s = this.client.subscriptions.get(name);
      if (!s || s.state !== 'ready') return false;
      const texts = cacheTexts(s);
      const rows = s.track.view.rowsAt(this.fleet.model.known);
      return texts.size === rows.size && [...rows].every(([id, { text }]) => texts.get(id) === text);
    });
  }

  async settle() {
    this.settled = false;
    this.outside = false;
    const began = Date.now();
    // Too late is a difference, which is found where caches are compared.
    await until(() => {
      this.fleet.check();
      return this.fleet.model.knownAt >= began && this.isComplete();
    }, `${this.who} settles`, PATIENCE_MS).catch((error) => {
      this.fleet.check();
      if (!this.client?.subscriptions.size) throw error;
    });
    this.settled = true;
  }

  heldPositions(forget) {
    if (forget) this.drop?.();
    return [...(this.position?.split(',') ?? []), ...[...(this.client?.subscriptions.values() ?? [])].map(({ position }) => position)]
      .filter((position) => position && position !== '-');
  }

  describe() {
    if (this.settled) return '';
    const lines = [...(this.client?.subscriptions.values() ?? [])].map((s) => `    ${s.name}: ${s.state}\n      ${s.track?.log.slice(-6).join('\n      ')}`);
    return `  ${this.who} (HTTP), ${this.identity.name}, ${this.names}, ${this.doing}\n${lines.join('\n')}`;
  }
}

/** Reads an event stream, is cut off and comes back. */
export class StreamListener extends HttpListener {
  #events = null;

  async run() {
    this.choose();
    while (!this.stopped) {
      const events = new Events(this.names, { token: this.fleet.token(this.identity, this.random), position: this.position, held: this.held });
      this.#events = events;
      this.doing = 'request';
      const open = await this.attempt(async () => {
        this.watch(events.client);
        this.client = events.client;
        this.outside = false;
        await events.start().catch((error) => {
          if (!error.response) throw error;
          this.refused(error.response.status, error.body);
        });
      });
      if (!open || !events.response || events.response.status !== 200) {
        events.socket.terminate();
        await sleep(this.random.between(50, 400));
        continue;
      }
      this.fleet.report.count('transports', 'event stream');
      events.onEvent = () => { this.position = events.id; };
      this.position = events.id ?? this.position;
      this.doing = 'reading';
      // How long it reads, whether it pauses, and whether it lives until a quiet point.
      const end = Date.now() + this.random.between(1000, 15000);
      const whole = () => events.client.subscriptions.size === this.names.length; // the server has not ended one
      while (!this.stopped && !events.client.closed && whole() && (this.fleet.isQuiet || Date.now() < end)) {
        if (!this.fleet.isQuiet && this.random.chance(0.02)) {
          events.pause = sleep(this.random.between(100, 3000));
          await events.pause;
          events.pause = null;
        }
        await sleep(20);
      }
      const again = !whole();
      await events.cut();
      const state = events.state();
      this.position = state.position;
      this.held = state.held;
      if (this.stopped) break;
      if (again || this.random.chance(0.1) || (this.position !== null && this.held.size === 0)) this.choose();
      else if (this.random.chance(0.2)) await sleep(this.random.between(100, 5000));
    }
  }

  end() {
    this.#events?.socket.terminate();
  }
}

/** Asks again and again what is new. */
export class PollListener extends HttpListener {
  async run() {
    this.choose();
    let tracks = new Map();
    while (!this.stopped) {
      this.doing = 'poll';
      let answer = null;
      let unfit = false; // the server was there, but did not say anything
      const asked = await this.attempt(async () => {
        answer = await poll(this.names, {
          token: this.fleet.token(this.identity, this.random), position: this.position, held: this.held, wait: this.random.int(4),
          watch: (client) => {
            this.watch(client, tracks);
            this.client = client;
            this.outside = false;
          },
        });
        if (answer.error) {
          this.refused(answer.status, answer.error);
          answer = null;
          unfit = true;
        }
      });
      if (answer === null) {
        tracks = new Map();
        await sleep(asked && !unfit ? 20 : this.random.between(50, 400));
        continue;
      }
      this.fleet.report.count('transports', 'poll');
      this.#take(answer);
      tracks = new Map([...(this.client?.subscriptions ?? [])].map(([name, s]) => [name, s.track]));
      if (this.names.some((name) => !tracks.has(name)) || (!this.fleet.isQuiet && this.random.chance(0.03))) {
        this.choose();
        tracks = new Map();
      } else {
        // Where rows have to be looked at again and again (`recheck`), there is always an answer at once.
        await sleep(!this.fleet.isQuiet && this.random.chance(0.3) ? this.random.between(50, 3000) : 200);
      }
    }
  }

  /** An answer leads from its position to another one: everything in between was in it. */
  #take({ position, held }) {
    const { checker } = this.fleet;
    const parts = position.split(',');
    this.names.forEach((name, i) => {
      const part = parts.length === 1 ? parts[0] : parts[i];
      const s = this.client?.subscriptions.get(name);
      if (part === '-' || s?.state !== 'ready' || s.paced) return;
      checker.add(this, { kind: 'position', lsn: readPosition(part).lsn, tracks: [s.track] });
    });
    this.position = position;
    this.held = held;
  }

  end() {}
}
