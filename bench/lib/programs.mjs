// Starting and ending programs of the benchmark. What is still running when the runner ends is killed.

import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

export const ROOT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
export const BIN = path.join(ROOT, 'build/bench');

// Readable for everybody, since peers run as nobody when we are root
export const scratch = mkdtempSync(path.join(os.tmpdir(), 'changefeed-bench.'));
execFileSync('chmod', ['711', scratch]);

const children = new Set();
const cleanups = [];

// To be called at the end of the run, in whatever way it ends; synchronous
export const atEnd = (what) => cleanups.push(what);

process.on('exit', () => {
  for (const child of children) child.kill('SIGKILL');
  for (const what of cleanups.reverse()) {
    try {
      what();
    } catch (error) {
      console.error(`bench: ${error.message}`);
    }
  }
  rmSync(scratch, { recursive: true, force: true });
});
for (const [signal, code] of [['SIGINT', 130], ['SIGTERM', 143], ['SIGHUP', 129]]) {
  process.on(signal, () => process.exit(code));
}

// child.ended resolves with the exit code (null after a signal); options as for child_process.spawn
export function start(command, args, options = {}) {
  const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'inherit'], ...options });
  children.add(child);
  child.ended = new Promise((resolve) => {
    child.on('error', (error) => {
      console.error(`bench: ${error.message}`);
      children.delete(child);
      resolve(127);
    });
    child.on('exit', (code) => {
      children.delete(child);
      resolve(code);
    });
  });
  child.stdin?.on('error', () => {}); // it has ended, which .ended tells
  return child;
}

export async function stop(child, signal = 'SIGTERM', patience = 3000) {
  if (child.exitCode !== null || child.signalCode !== null) return;
  child.kill('SIGCONT');
  child.kill(signal);
  const timer = setTimeout(() => child.kill('SIGKILL'), patience);
  await child.ended;
  clearTimeout(timer);
}

export async function firstLine(child, what) {
  const lines = createInterface({ input: child.stdout });
  const line = await Promise.race([once(lines, 'line').then(([text]) => text), child.ended.then(() => null)]);
  if (line === null) throw new Error(`${what} ended before it was ready`);
  return line;
}

export async function finish(child, what) {
  const code = await child.ended;
  if (code !== 0) throw new Error(`${what} failed`);
}

// A port that nobody has now, below those that the kernel gives to outgoing connections
export async function freePort() {
  for (;;) {
    const port = 18000 + Math.floor(Math.random() * 14000);
    const server = createServer();
    const isFree = await new Promise((resolve) => {
      server.once('error', () => resolve(false));
      server.listen(port, '0.0.0.0', () => resolve(true));
    });
    if (isFree) {
      await new Promise((resolve) => { server.close(resolve); });
      return port;
    }
  }
}

export const sleep = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

export async function until(what, condition, patience = 30000) {
  const end = performance.now() + patience;
  while (!await condition()) {
    if (performance.now() > end) throw new Error(`waited ${patience} ms in vain: ${what}`);
    await sleep(2);
  }
}
