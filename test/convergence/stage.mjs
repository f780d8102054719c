// What the convergence test and the fault campaign (test/chaos) have in common:
// a world with its oracle, writers and clients, and the comparison of everything
// with everything while nobody does anything.

import { setTimeout as sleep } from 'node:timers/promises';

import { Checker, cacheTexts, LEAK_BOUND_MS, readPosition } from './checker.mjs';
import { Fleet } from './clients.mjs';
import { DdlWriter } from './ddl.mjs';
import { Model } from './model.mjs';
import { compareWithSelect, compareTables } from './select.mjs';
import { randomSelection, selectionUrl } from './selections.mjs';
import { finishPrepared, RandomWriter } from './workload.mjs';
import { Random } from './values.mjs';
import { ANONYMOUS, channelName, parametersOf, randomWorld, RESET, ROLES, selectableColumns, SUBJECTS, worldSql } from './world.mjs';
import { until } from '../integration/lib/client.mjs';
import { canonical } from '../integration/lib/json.mjs';
import { reload, Session } from '../integration/lib/psql.mjs';

function randomIdentities(random) {
  const identities = ROLES.map((role, i) => ({ role, sub: SUBJECTS[i], level: random.int(7) }));
  for (let i = 0; i < 4; i += 1) identities.push({ role: random.pick(ROLES), sub: random.pick(SUBJECTS), level: random.int(7) });
  identities.push({ role: ROLES[0], sub: null, level: random.int(7) }, { role: ROLES[2], sub: 'u9', level: null });
  return [
    ...identities.map(({ role, sub, level }, i) => ({
      name: `i${i}`, role, sub, level: level === null ? null : String(level),
      claims: { role, ...(sub !== null && { sub }), ...(level !== null && { level }) },
    })),
    { name: 'anonymous', role: ANONYMOUS, sub: null, level: null, claims: null },
  ];
}

/** The names that clients subscribe to. */
function randomNames(random, world) {
  const channels = new Map();
  const value = (name) => {
    if (random.chance(0.25)) return '*';
    return { text: name === 'team' ? String(random.int(4)) : random.pick(SUBJECTS) };
  };
  for (const template of Object.keys(world.channels)) {
    const parameters = parametersOf(template);
    for (let i = 0; i < (parameters.length > 0 ? 3 : 1); i += 1) {
      const values = parameters.map(value);
      const name = channelName(template, values);
      channels.set(name, { name, template, values, selection: null });
      if (!random.chance(0.6)) continue;
      const selection = randomSelection(random, selectableColumns(world, template), SUBJECTS);
      const selected = name + selectionUrl(selection);
      channels.set(selected, { name: selected, template, values, selection });
    }
  }
  return channels;
}

async function makeTokens(db, identities) {
  const tokens = new Map();
  for (const identity of identities) {
    if (!identity.claims) continue;
    // The same identity: what differs is not part of it.
    tokens.set(identity, [await db.token({ ...identity.claims, jti: 'a' }, '1 day'), await db.token({ ...identity.claims, jti: 'b' }, '2 days')]);
  }
  return tokens;
}

/** For a failure that may be a hang. */
export async function describeServer() {
  const session = new Session();
  try {
    for (const sql of ['SELECT * FROM changefeed.stat_feed',
      `SELECT pid, backend_type, state, wait_event, left(query, 120) AS query, now() - xact_start AS xact, backend_xmin, pg_blocking_pids(pid) AS blocked_by
        FROM pg_stat_activity WHERE backend_type NOT IN ('checkpointer', 'walwriter', 'background writer')`,
      'SELECT * FROM pg_prepared_xacts']) {
      for (const row of await session.rows(sql)) console.log(canonical(row));
    }
  } finally {
    await session.close();
  }
}

export class Stage {
  model = null;
  checker = null;
  fleet = null;
  writers = [];
  ddl = null;
  stopped = false;
  paused = false;
  started = Date.now();

  #random;
  #world;
  #others = []; // whoever has to be idle at a quiet point, too
  #pause;
  #ddlPause;
  #following = true;
  #running = [];
  #follower = null;

  /** `fleet`: further options of the clients. */
  constructor({ seed, report, clients, writers, pause, ddl = true, ddlPause = 1500, fleet = {} }) {
    Object.assign(this, { seed, report, options: { clients, writers, ddl, fleet } });
    this.#random = new Random(seed, 'world');
    this.#world = randomWorld(this.#random);
    this.#pause = pause;
    this.#ddlPause = ddlPause;
    this.identities = randomIdentities(this.#random);
    this.channels = randomNames(this.#random, this.#world);
    // Who evaluates policies that only compare columns with claims
    this.inline = process.env.CHANGEFEED_INLINE_POLICIES ?? (new Random(seed, 'inline').chance(0.75) ? 'on' : 'off');
  }

  describe() {
    return `${Object.keys(this.#world.channels).length} channels, ${this.channels.size} names, ${this.identities.length} identities, inline policies ${this.inline}`;
  }

  /** Makes the world, and whoever will live in it. */
  async prepare() {
    const { seed, report, identities, channels } = this;
    const world = this.#world;
    const db = new Session();
    // The sessions of a run before this one may not have noticed yet that it is over, and
    // prepare a transaction that holds its locks for ever.
    await db.exec(`DO $$ BEGIN PERFORM pg_terminate_backend(pid, 30000) FROM pg_stat_activity
      WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid(); END $$`);
    await finishPrepared(db, 'cv_', 'ROLLBACK');
    await until(() => db.exec(RESET).then(() => true, (error) => {
      if (!/is active|being accessed/.test(error.message)) throw error;
    }), 'what a run before left is removed');
    await db.exec(worldSql(world));
    // Of its own, so that the rest of a seed's world stays what it is.
    await reload(db, {
      'changefeed.audience_index': new Random(seed, 'index').chance(0.7) ? 'on' : 'off',
      'changefeed.inline_policies': this.inline,
    });
    this.model = new Model(structuredClone(world));
    await this.model.start();
    this.checker = new Checker(this.model, report);
    const tokens = await makeTokens(db, identities);
    await db.close();
    for (const identity of identities) for (const channel of channels.values()) this.model.view(identity, channel);

    const { clients, writers, ddl, fleet } = this.options;
    this.fleet = new Fleet({ seed, model: this.model, checker: this.checker, report, identities, channels, tokens, count: clients, ...fleet });
    this.writers = Array.from({ length: writers }, (_, i) => new RandomWriter(seed, i, world, report));
    this.ddl = ddl ? new DdlWriter(seed, world, report) : null;
  }

  /** `who` runs beside the writers: like them, with `run(stopped, paused)` and `idle`. */
  add(who) {
    this.#others.push(who);
  }

  start() {
    const guard = (promise) => promise.catch((error) => this.fleet.fail(error));
    const stopped = () => this.stopped;
    const paused = () => this.paused;
    this.#running = [
      ...this.writers.map((writer) => guard(writer.run(stopped, paused, () => writer.turn(this.#pause)))),
      ...(this.ddl ? [guard(this.ddl.run(stopped, paused, () => this.ddl.turn(this.#ddlPause)))] : []),
      ...this.#others.map((who) => guard(who.run(stopped, paused))),
    ];
    this.#follower = guard(this.model.follow(() => !this.#following || this.fleet.failure));
    this.fleet.start();
  }

  get #active() {
    return [...this.writers, this.ddl, ...this.#others].filter((who) => who && !who.idle);
  }

  /** Nobody writes, everything is delivered: all caches against the oracle, the oracle against the database. */
  async quietPoint() {
    const { fleet, model, checker, report } = this;
    this.paused = true;
    while (!fleet.failure && this.#active.length > 0) await sleep(20);
    fleet.check();
    await fleet.quiet();
    await sleep(LEAK_BOUND_MS);
    await model.poll();
    await checker.drain();
    const session = new Session();
    try {
      await compareTables(session, model);
      const lsn = model.known;
      const views = new Set();
      for (const member of fleet.members) {
        for (const s of member.client?.subscriptions.values() ?? []) {
          if (s.state !== 'ready') continue;
          checker.compare(s.track, lsn, cacheTexts(s), 'quiet');
          views.add(s.track.view);
        }
      }
      report.selects += await compareWithSelect(session, model, views);
      report.quietPoints += 1;
    } finally {
      await session.close();
    }
    // What nobody can come back to any more. Old positions are given up now and then.
    const giveUp = report.quietPoints % 4 === 0;
    const positions = fleet.members.flatMap((member) => member.heldPositions(giveUp)).map((position) => readPosition(position).lsn);
    const oldest = Math.min(model.known, ...positions);
    for (const view of model.views.values()) view.forget(oldest);
  }

  /** Behind a quiet point. */
  resume() {
    this.fleet.resume();
    this.paused = false;
  }

  /** Judges what has come in. */
  look() {
    this.fleet.check();
    this.checker.run();
  }

  async stop() {
    this.stopped = true;
    await Promise.all(this.#running);
    await this.fleet.stop();
    this.fleet.check();
  }

  /** Adds to an error what is known of it. */
  async explain(error) {
    if (error.more) error.message += `\n${await error.more().catch((e) => e.message)}`;
    console.log(this.fleet.describe());
    if (this.paused) console.log(`  still writing: ${this.#active.map(({ name }) => name).join(', ') || 'nobody'}; ${this.checker.waiting} entries to be judged`);
    await describeServer().catch((e) => console.log(`the server cannot be asked: ${e.message}`));
    return error;
  }

  /** The end, whatever came before. */
  finish() {
    this.stopped = true;
    this.#following = false;
    this.report.print({ model: this.model, writers: this.ddl ? [...this.writers, this.ddl] : this.writers, seconds: (Date.now() - this.started) / 1000 });
  }

  async close() {
    await this.#follower;
    await this.model.close();
  }
}
