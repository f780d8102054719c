// Does the test find anything? Runs it with each fault of inject.mjs, and fails
// if one is not found, or is taken for something else.

import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';

import { FAULTS } from './inject.mjs';

// What is run: this test, or another one of which the faults can be put in.
const MAIN = process.env.MAIN ?? fileURLToPath(new URL('main.mjs', import.meta.url));

function run(fault, seed) {
  return new Promise((resolve) => {
    const env = { ...process.env, INJECT: fault, SEED: String(seed), SECONDS: '60', CLIENTS: '6', KILLS: '0', DDL: '0' };
    const child = spawn(process.execPath, [MAIN], { env, stdio: ['ignore', 'pipe', 'inherit'] });
    let output = '';
    child.stdout.setEncoding('utf8').on('data', (text) => { output += text; });
    child.on('close', (status) => resolve({ status, output }));
  });
}

const only = process.argv.slice(2);
const start = Date.now();
let failed = 0;
let seed = Number(process.env.SEED ?? 1);
for (const [fault, kinds] of Object.entries(FAULTS)) {
  if (only.length > 0 && !only.includes(fault)) continue;
  seed += 1;
  const { status, output } = await run(fault, seed);
  const [, kind] = output.match(/DIFFERENCE (\w+):/) ?? [];
  const good = status === 3 && kinds.includes(kind) && output.includes('injected "');
  console.log(`${good ? 'ok' : 'not ok'} - a fault "${fault}" in what a client receives is found${kind ? ` (as ${kind})` : ''}`);
  if (!good) {
    failed += 1;
    console.log(output.slice(0, 8000));
  }
}
console.log(`controls: ${failed} failed, ${((Date.now() - start) / 1000).toFixed(0)} s`);
process.exit(failed > 0 ? 1 : 0);
