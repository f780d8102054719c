// Somebody sets the server's clock back: nothing is put off by as much.

import { execFile } from 'node:child_process';
import { after, before, describe, test } from 'node:test';
import { promisify } from 'node:util';

import { clockOf, preload } from './lib/clock.mjs';
import { until } from './lib/client.mjs';
import { Follower } from './lib/follower.mjs';
import { number } from './lib/json.mjs';
import { logged } from './lib/log.mjs';
import { Session } from './lib/psql.mjs';

const run = promisify(execFile);

describe('a clock that is set back', () => {
  let db;
  let clock;
  let follower;
  const stat = async (column) => db.value(`SELECT ${column} FROM changefeed.stat_feed`);

  before(async () => {
    clock = await clockOf(`${process.env.CLUSTER_DATA}/..`);
    await run(process.env.CLUSTER_SCRIPT, ['restart', '--no-build', '--data', process.env.CLUSTER_DATA], { env: { ...process.env, ...preload(clock) } });
    db = new Session();
    await db.exec(`CREATE ROLE clock_web; SELECT changefeed.allow_role('clock_web');
      CREATE TABLE ticks (id int PRIMARY KEY, n int NOT NULL);
      INSERT INTO ticks VALUES (1, 0);
      GRANT SELECT ON ticks TO clock_web;
      SELECT changefeed.create_channel('ticks', 'ticks', min_interval => '1 s')`);
    follower = new Follower({ token: await db.token({ role: 'clock_web' }, '2 days'), channels: ['ticks'] });
    await until(() => follower.start().then(() => true, (error) => {
      if (!['42501', '42704'].includes(error.code)) throw error;
    }), 'subscribed');
    await follower.settle();
  });

  after(async () => {
    await follower?.stop();
    await db?.close();
  });

  const held = () => {
    const [row] = follower.subscription()?.rows() ?? [];
    return row ? number(row.n) : null;
  };

  test('clients get what was put off for them', async () => {
    clock.set(0);
    const log = logged();
    // The first one goes out at once, the second one an interval later.
    await db.exec('UPDATE ticks SET n = 1');
    await until(() => held() === 1, 'the first change');
    await db.exec('UPDATE ticks SET n = 2');
    clock.set(-3600);
    await until(() => held() === 2, 'the second change', 30000);
    await db.exec('UPDATE ticks SET n = 3');
    await until(() => held() === 3, 'and another one', 30000);
    await log.wait(/begins anew because the clock was set back/);
    await follower.settle();
  });

  test('a feed that waits for its next start is started', async () => {
    clock.set(0);
    await until(async () => await stat('state') === 'running', 'running');
    // A feed that ends soon waits longer each time.
    const log = logged();
    await until(async () => {
      await db.exec('SELECT pg_terminate_backend(decoder_pid) FROM changefeed.stat_feed');
      return /starting it again in [48]000 ms/.test(log.text());
    }, 'a pause', 60000);
    clock.set(-7200);
    await until(async () => await stat('state') === 'running', 'running again', 30000);
    await db.exec('UPDATE ticks SET n = 4');
    await until(() => held() === 4, 'a change');
  });

  test('set forward by hours, it goes on', async () => {
    clock.set(7200);
    await db.exec('UPDATE ticks SET n = 5');
    await until(() => held() === 5, 'a change');
    clock.set(0);
    await db.exec('UPDATE ticks SET n = 6');
    await until(() => held() === 6, 'and behind that, too', 30000);
    await follower.settle();
  });
});
