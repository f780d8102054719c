// The demo ends when its terminal or its supervisor says so, with all that it has started.

import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { after, test } from 'node:test';

const data = process.env.DEMO_DATA;

const cluster = (...args) => execFileSync('scripts/cluster', [...args, '--data', data], { stdio: 'pipe' }).toString();

after(() => cluster('stop', '--mode', 'immediate', '--remove'));

/** Starts it as a process group, as a terminal does, and sends the signal to all of the group. */
async function ends(signal) {
  const demo = spawn('demo/run', ['--data', data], { detached: true, stdio: ['ignore', 'pipe', 'pipe'] });
  let said = '';
  const exit = once(demo, 'exit');
  await new Promise((resolve, reject) => {
    demo.stderr.on('data', (chunk) => { said += chunk; });
    demo.stdout.on('data', (chunk) => { said += chunk; if (said.includes('Ctrl-C stops')) resolve(); });
    exit.then(() => reject(new Error(`it did not start: ${said}`)));
  });
  const dashboard = /^http:\/\/.*(?=\/$)/m.exec(said.slice(said.indexOf('dashboard, for a')))[0];
  assert.equal((await fetch(dashboard)).status, 200);
  process.kill(-demo.pid, signal);
  const late = setTimeout(() => process.kill(-demo.pid, 'SIGKILL'), 30000);
  const [code] = await exit;
  clearTimeout(late);
  assert.equal(code, { SIGTERM: 143, SIGINT: 130 }[signal], said);
  assert.throws(() => cluster('status'), { status: 3 });
  await assert.rejects(fetch(dashboard), /fetch failed/);
}

// It went wrong about every other time.
for (const signal of ['SIGTERM', 'SIGTERM', 'SIGTERM', 'SIGINT']) {
  test(`${signal} to its process group`, () => ends(signal));
}
