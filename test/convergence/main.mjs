// The convergence test: random everything against an oracle. See README.md.
//
// Environment: SEED, SECONDS (60), CLIENTS (30), WRITERS (3), PAUSE (ms, 60),
// KILLS (1), DDL (1), INJECT (see inject.mjs).
// Exit status: 0 all equal; 1 the test itself failed; 3 a difference was found.

import { setTimeout as sleep } from 'node:timers/promises';

import { Difference } from './checker.mjs';
import { injector } from './inject.mjs';
import { Killer } from './killer.mjs';
import { Report } from './report.mjs';
import { Stage } from './stage.mjs';

const env = (name, value) => Number(process.env[name] ?? value);
const SEED = env('SEED', Date.now() % 1000000007);
const SECONDS = env('SECONDS', 60);
const CLIENTS = env('CLIENTS', 30);
const WRITERS = env('WRITERS', 3);
const QUIET_EVERY_MS = 8000;

async function main() {
  const report = new Report();
  const stage = new Stage({ seed: SEED, report, clients: CLIENTS, writers: WRITERS, pause: env('PAUSE', 60), ddl: Boolean(env('DDL', 1)) });
  console.log(`SEED=${SEED} SECONDS=${SECONDS} CLIENTS=${CLIENTS} WRITERS=${WRITERS}: ${stage.describe()}`);
  await stage.prepare();
  stage.fleet.tamper = injector(process.env.INJECT);
  if (env('KILLS', 1)) stage.add(new Killer(SEED, report));
  stage.start();
  try {
    let quietAt = Date.now() + QUIET_EVERY_MS;
    while (Date.now() - stage.started < SECONDS * 1000) {
      stage.look();
      if (Date.now() > quietAt) {
        await stage.quietPoint();
        stage.resume();
        quietAt = Date.now() + QUIET_EVERY_MS;
      }
      await sleep(50);
    }
    await stage.quietPoint();
    stage.resume();
    await stage.stop();
  } catch (error) {
    throw await stage.explain(error);
  } finally {
    stage.finish();
  }
  await stage.close();
}

await main().then(() => {
  console.log(`ok - convergence, SEED=${SEED}: no difference`);
  process.exit(0);
}, (error) => {
  console.log(`not ok - convergence, SEED=${SEED}: ${error instanceof Difference ? `DIFFERENCE ${error.message}` : `failed: ${error.stack}`}`);
  console.log(`again with: SEED=${SEED} SECONDS=${SECONDS} test/convergence/run`);
  process.exit(error instanceof Difference ? 3 : 1);
});
