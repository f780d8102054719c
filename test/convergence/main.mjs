// The convergence test: random everything against an oracle. See README.md.
//
// Environment: SEED, SECONDS (60), CLIENTS (30), WRITERS (3), PAUSE (ms, 60),
// KILLS (1), DDL (1), INJECT (see inject.mjs).
// Exit status: 0 all equal; 1 the test itself failed; 3 a difference was found.

import { Checker, cacheTexts, Difference, LEAK_BOUND_MS, readPosition } from './checker.mjs';
import { Fleet } from './clients.mjs';
import { DdlWriter } from './ddl.mjs';
import { injector } from './inject.mjs';
import { Killer } from './killer.mjs';
import { Model } from './model.mjs';
import { compareWithSelect, compareTables } from './select.mjs';
import { Report } from './report.mjs';
import { randomSelection, selectionUrl } from './selections.mjs';
import { RandomWriter } from './workload.mjs';
import { Random } from './values.mjs';
import { ANONYMOUS, channelName, parametersOf, randomWorld, RESET, ROLES, selectableColumns, SUBJECTS, worldSql } from './world.mjs';
import { until } from '../integration/lib/client.mjs';
import { canonical } from '../integration/lib/json.mjs';
import { reload, Session } from '../integration/lib/psql.mjs';

const env = (name, value) => Number(process.env[name] ?? value);
const SEED = env('SEED', Date.now() % 1000000007);
const SECONDS = env('SECONDS', 60);
const CLIENTS = env('CLIENTS', 30);
const WRITERS = env('WRITERS', 3);
const PAUSE = env('PAUSE', 60);
const QUIET_EVERY_MS = 8000;

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

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
async function describeServer() {
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

async function main() {
  const random = new Random(SEED, 'world');
  const report = new Report();
  const world = randomWorld(random);
  const identities = randomIdentities(random);
  const channels = randomNames(random, world);
  const started = Date.now();
  // Who evaluates policies that only compare columns with claims
  const inline = process.env.CHANGEFEED_INLINE_POLICIES ?? (new Random(SEED, 'inline').chance(0.75) ? 'on' : 'off');

  console.log(`SEED=${SEED} SECONDS=${SECONDS} CLIENTS=${CLIENTS} WRITERS=${WRITERS}: ${Object.keys(world.channels).length} channels, ${channels.size} names, ${identities.length} identities, inline policies ${inline}`);
  const db = new Session();
  // The session of a run before this one may not have noticed yet that it is over.
  await until(() => db.exec(RESET).then(() => true, (error) => {
    if (!/is active|being accessed/.test(error.message)) throw error;
  }), 'what a run before left is removed');
  await db.exec(worldSql(world));
  // Of its own, so that the rest of a seed's world stays what it is.
  await reload(db, {
    'changefeed.audience_index': new Random(SEED, 'index').chance(0.7) ? 'on' : 'off',
    'changefeed.inline_policies': inline,
  });
  const model = new Model(structuredClone(world));
  await model.start();
  const checker = new Checker(model, report);
  const tokens = await makeTokens(db, identities);
  await db.close();
  for (const identity of identities) for (const channel of channels.values()) model.view(identity, channel);

  const fleet = new Fleet({ seed: SEED, model, checker, report, identities, channels, tokens, count: CLIENTS });
  fleet.tamper = injector(process.env.INJECT);
  const writers = Array.from({ length: WRITERS }, (_, i) => new RandomWriter(SEED, i, world, report));
  const ddl = env('DDL', 1) ? new DdlWriter(SEED, world, report) : null;
  const killer = env('KILLS', 1) ? new Killer(SEED, report) : null;
  let stopped = false;
  let paused = false;
  let following = true;

  const guard = (promise) => promise.catch((error) => fleet.fail(error));
  const running = [
    ...writers.map((writer) => guard(writer.run(() => stopped, () => paused, () => writer.turn(PAUSE)))),
    ...(ddl ? [guard(ddl.run(() => stopped, () => paused, () => ddl.turn(1500)))] : []),
    ...(killer ? [guard(killer.run(() => stopped, () => paused))] : []),
  ];
  const follower = guard(model.follow(() => !following || fleet.failure));
  fleet.start();

  async function quietPoint() {
    paused = true;
    while (!fleet.failure && [...writers, ddl, killer].some((who) => who && !who.idle)) await sleep(20);
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
        for (const s of member.client.subscriptions.values()) {
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
    fleet.resume();
    paused = false;
  }

  try {
    let quietAt = Date.now() + QUIET_EVERY_MS;
    while (Date.now() - started < SECONDS * 1000) {
      fleet.check();
      checker.run();
      if (Date.now() > quietAt) {
        await quietPoint();
        quietAt = Date.now() + QUIET_EVERY_MS;
      }
      await sleep(50);
    }
    await quietPoint();
    stopped = true;
    await Promise.all(running);
    await fleet.stop();
    fleet.check();
  } catch (error) {
    if (error.more) error.message += `\n${await error.more().catch((e) => e.message)}`;
    console.log(fleet.describe());
    await describeServer().catch((e) => console.log(`the server cannot be asked: ${e.message}`));
    throw error;
  } finally {
    stopped = true;
    following = false;
    report.print({ model, writers: ddl ? [...writers, ddl] : writers, seconds: (Date.now() - started) / 1000 });
  }
  await follower;
  await model.close();
}

await main().then(() => {
  console.log(`ok - convergence, SEED=${SEED}: no difference`);
  process.exit(0);
}, (error) => {
  console.log(`not ok - convergence, SEED=${SEED}: ${error instanceof Difference ? `DIFFERENCE ${error.message}` : `failed: ${error.stack}`}`);
  console.log(`again with: SEED=${SEED} SECONDS=${SECONDS} test/convergence/run`);
  process.exit(error instanceof Difference ? 3 : 1);
});
