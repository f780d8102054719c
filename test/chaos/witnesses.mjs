// Who writes and reads something simple all the time, so that it is known when
// the feed lives again, and that nothing is lost of what a caller was told.
//
//   beat      commits numbered rows and messages, as fast as a pulse
//   probes    follow them: they have recovered when they hold a row that was
//             committed behind the fault
//   callers   call a function, with a key until it is answered, and without

import { setTimeout as sleep } from 'node:timers/promises';

import { AWAY } from '../convergence/processes.mjs';
import { assertSame, until } from '../integration/lib/client.mjs';
import { Follower } from '../integration/lib/follower.mjs';
import { bearer } from '../integration/lib/http.mjs';
import { number } from '../integration/lib/json.mjs';
import { Session } from '../integration/lib/psql.mjs';

const BEAT_MS = 50;

// `beat` is plain; policies of `heard` are for query workers.
const WITNESS_SQL = `
  DO $$ BEGIN
    IF to_regprocedure('chaos.note(text)') IS NOT NULL THEN PERFORM changefeed.unexpose_function('chaos.note(text)'); END IF;
    IF to_regrole('chaos_web') IS NULL THEN CREATE ROLE chaos_web NOLOGIN; PERFORM changefeed.allow_role('chaos_web'); END IF;
  END $$;
  DROP SCHEMA IF EXISTS chaos CASCADE;
  CREATE SCHEMA chaos;
  GRANT USAGE ON SCHEMA chaos TO chaos_web;
  CREATE TABLE chaos.beat (n int PRIMARY KEY);
  CREATE TABLE chaos.heard (n int PRIMARY KEY);
  CREATE TABLE chaos.ears (usr text PRIMARY KEY);
  INSERT INTO chaos.ears VALUES ('probe');
  ALTER TABLE chaos.heard ENABLE ROW LEVEL SECURITY;
  CREATE POLICY p ON chaos.heard USING (EXISTS (SELECT FROM chaos.ears WHERE usr = current_setting('request.jwt.claims', true)::json->>'sub'));
  CREATE TABLE chaos.calls (key text NOT NULL);
  CREATE TABLE chaos.spill (t text);
  CREATE TABLE chaos.filler (id serial PRIMARY KEY, t text);
  GRANT SELECT ON chaos.beat, chaos.heard, chaos.ears TO chaos_web;
  GRANT INSERT ON chaos.calls TO chaos_web;
  CREATE FUNCTION chaos.note(key text) RETURNS void LANGUAGE sql AS 'INSERT INTO chaos.calls VALUES (key)';
  DO $$ BEGIN
    PERFORM changefeed.create_channel('chaos_beat', 'chaos.beat');
    PERFORM changefeed.create_channel('chaos_heard', 'chaos.heard');
    PERFORM changefeed.create_channel('chaos_filler', 'chaos.filler');
    PERFORM changefeed.expose_function('chaos.note(text)');
  END $$`;

/** Commits a row each 50 ms, and remembers when the server said so. */
class Beat {
  name = 'beat';
  last = 0; // the last that was acknowledged
  lost = 0; // sessions
  refused = {}; // errors of a server that is there
  acknowledged = []; // { n, at }: since the last round
  idle = false;

  #n = 0;
  #session = null;
  #since = 0; // of the session

  async run(stopped, paused) {
    while (!stopped()) {
      if (paused()) {
        this.idle = true;
        await sleep(10);
        continue;
      }
      this.idle = false;
      await this.#beat();
    }
    await this.#session?.close().catch(() => {});
  }

  async #beat() {
    this.#n += 1;
    const n = this.#n;
    try {
      if (!this.#session) {
        this.#session = new Session();
        this.#since = Date.now();
      }
      await this.#session.exec(`BEGIN; INSERT INTO chaos.beat VALUES (${n}); INSERT INTO chaos.heard VALUES (${n});
        DO $$ BEGIN PERFORM changefeed.publish('chaos_beat', 'beat', '${n}'); END $$; COMMIT`);
      this.last = n;
      this.acknowledged.push({ n, at: Date.now(), since: this.#since });
      await sleep(BEAT_MS);
    } catch (error) {
      if (AWAY.test(error.message) || this.#session === null) {
        this.lost += 1;
        void this.#session?.close().catch(() => {});
        this.#session = null;
      } else {
        const [line] = error.message.split('\n');
        this.refused[line] = (this.refused[line] ?? 0) + 1;
        await this.#session.exec('ROLLBACK').catch(() => {});
      }
      await sleep(20);
    }
  }
}

class Probe extends Follower {
  #messages = new Set(); // numbers, of connections that have ended
  #fresh = new Set(); // and of this one
  #repeated = [];
  #starts = 0; // from a snapshot, until the last round

  onConnect = (client) => {
    const fresh = new Set();
    this.#fresh = fresh;
    client.onMessage = (message) => {
      if (message.type !== 'message') return;
      const n = number(message.payload);
      if (fresh.has(n) || this.#messages.has(n)) this.#repeated.push(n);
      fresh.add(n);
    };
    client.ended.then(() => {
      // Who was cut off before it was ready goes on from where it was before, and gets them again.
      if (client.subscriptions.get(this.channels[0])?.state === 'ready') for (const n of fresh) this.#messages.add(n);
    });
  };

  has(n) {
    const s = this.client?.subscriptions.get(this.channels[0]);
    return s?.state === 'ready' && !this.client.closed && [...s.entities.values()][0].rows.has(`{"n":${n}}`);
  }

  /** What is wrong with the messages since it was asked last: each comes once, unless it had to start again. */
  missing(numbers) {
    const starts = this.recovered.filter((value) => !value).length + this.resyncs.length + this.subscription().resyncs.length;
    const missing = numbers.filter((n) => !this.#messages.has(n) && !this.#fresh.has(n));
    const wrong = starts === this.#starts && this.channels[0] === 'chaos_beat' && (missing.length > 0 || this.#repeated.length > 0);
    const text = wrong ? `messages ${missing.slice(0, 5)} are missing, ${this.#repeated.slice(0, 5)} came twice` : null;
    this.#starts = starts;
    this.#repeated = [];
    this.#messages.clear();
    this.#fresh.clear();
    return text;
  }
}

export class Witnesses {
  beat = new Beat();
  probes = [];
  calls = { answered: 0, refused: 0, lost: 0, repeated: 0 };
  problems = [];

  token = null;
  #run = Date.now().toString(36); // the server remembers the keys of another run
  #keyed = []; // keys of calls that were answered
  #unkeyed = new Map(); // what was called without one → answered?
  #callers = [];

  /** `url(i)`: where a probe connects to. */
  async prepare(url, probes = 20) {
    const db = new Session();
    await db.exec(WITNESS_SQL);
    this.token = await db.token({ role: 'chaos_web', sub: 'probe' }, '2 days');
    await db.close();
    for (let i = 0; i < probes; i += 1) {
      this.probes.push(new Probe({ token: this.token, channels: [i % 2 === 0 ? 'chaos_beat' : 'chaos_heard'], url: url(i), ms: 40000 }));
    }
    for (const probe of this.probes) {
      await until(() => probe.start().then(() => true, (error) => {
        if (!['42501', '42704'].includes(error.code)) throw error;
      }), 'a probe subscribes');
    }
    this.#callers = [this.#caller(0, true), this.#caller(1, false)];
  }

  /** Those that run like writers. */
  get writers() {
    return [this.beat, ...this.#callers];
  }

  #caller(index, keyed) {
    let n = 0;
    const caller = {
      name: `caller ${index}`,
      idle: false,
      run: async (stopped, paused) => {
        while (!stopped()) {
          if (paused()) {
            caller.idle = true;
            await sleep(20);
            continue;
          }
          caller.idle = false;
          n += 1;
          await this.#call(`${this.#run}-${index}-${n}`, keyed, stopped);
          await sleep(100);
        }
      },
    };
    return caller;
  }

  /** With a key it asks until it is told something. */
  async #call(key, keyed, stopped) {
    let attempts = 0;
    do {
      attempts += 1;
      let response;
      try {
        response = await fetch(new URL('/v1/call/note', process.env.HTTP_URL), {
          method: 'POST', body: JSON.stringify({ key }), signal: AbortSignal.timeout(15000),
          headers: { ...bearer(this.token), 'Content-Type': 'application/json', ...(keyed && { 'Idempotency-Key': key }) },
        });
        await response.text();
      } catch {
        this.calls.lost += 1;
        if (!keyed) this.#unkeyed.set(key, false);
        await sleep(50);
        continue;
      }
      if (response.status === 200) {
        this.calls.answered += 1;
        if (attempts > 1) this.calls.repeated += 1;
        if (keyed) this.#keyed.push(key);
        else this.#unkeyed.set(key, true);
        return;
      }
      this.calls.refused += 1;
      if (!keyed) this.#unkeyed.set(key, false);
      await sleep(50);
    } while (keyed && !stopped());
  }

  /**
   * When each probe has what was committed behind `from`, in a session that
   * began behind `away`.
   */
  async recovered(from, away, ms) {
    const end = Date.now() + ms;
    const beat = await until(() => this.beat.acknowledged.find(({ at, since }) => at >= from && since > away), 'the beat goes on', ms);
    const times = new Map();
    while (times.size < this.probes.length) {
      for (const probe of this.probes) {
        if (!times.has(probe) && probe.has(beat.n)) times.set(probe, Date.now());
      }
      if (Date.now() > end) throw new Error(`${this.probes.length - times.size} of ${this.probes.length} probes have not recovered within ${ms} ms`);
      await sleep(5);
    }
    return [...times.values()];
  }

  /** At a quiet point. Throws what is wrong. */
  async check() {
    const db = new Session();
    try {
      const there = new Set((await db.value('SELECT n FROM chaos.beat')).split('\n').map(Number));
      const lost = this.beat.acknowledged.filter(({ n }) => !there.has(n));
      if (lost.length > 0) throw new Error(`${lost.length} acknowledged commits are lost: ${lost.slice(0, 5).map(({ n }) => n)}`);
      const rows = { chaos_beat: await db.rows('SELECT * FROM chaos.beat'), chaos_heard: await db.rows('SELECT * FROM chaos.heard') };
      for (const [i, probe] of this.probes.entries()) {
        await probe.settle(60000);
        assertSame(probe.subscription().rows(), rows[probe.channels[0]], `probe ${i}`);
        const wrong = probe.missing(this.beat.acknowledged.map(({ n }) => n));
        if (wrong) throw new Error(`probe ${i}: ${wrong}`);
      }
      const counts = new Map((await db.value("SELECT key || ' ' || count(*) FROM chaos.calls GROUP BY key")).split('\n').filter(Boolean).map((line) => line.split(' ')));
      for (const key of this.#keyed) if (counts.get(key) !== '1') throw new Error(`the call with key ${key} was answered, and was made ${counts.get(key) ?? 0} times`);
      for (const [key, answered] of this.#unkeyed) {
        const n = Number(counts.get(key) ?? 0);
        if (n > 1 || (answered && n === 0)) throw new Error(`the call ${key} without a key, ${answered ? 'answered' : 'not answered'}, was made ${n} times`);
      }
      this.#keyed = [];
      this.#unkeyed.clear();
      this.beat.acknowledged = [];
      await db.exec('DELETE FROM chaos.beat; DELETE FROM chaos.heard; DELETE FROM chaos.calls');
    } finally {
      await db.close();
    }
  }

  async stop() {
    for (const probe of this.probes) await probe.stop();
  }
}
