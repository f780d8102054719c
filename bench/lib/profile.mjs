// What bench/profile does while something is measured: samples with perf, or instruction counts with callgrind.
//
// BENCH_PROFILE=perf:PROCESS:FILE or callgrind:gateway:FILE, set by bench/profile. PROCESS is gateway, feed, decoder,
// query, other (backends, WAL writer), or the name of a peer. FILE is the beginning of the names of what is written:
// .txt the table; of perf also .folded, the stacks, and .svg, a flame graph.

import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { scratch, sleep } from './programs.mjs';
import { flameGraph } from './flamegraph.mjs';

const [tool, what, file] = (process.env.BENCH_PROFILE ?? '').split(':');
export const profiling = tool !== '' && tool !== undefined;
const FREQUENCY = 1999;
const START_MS = 300; // perf says nothing when it has attached
const SHOWN = 60;

const sources = []; // functions of a process' name: process IDs, or none
export const offer = (source) => sources.push(source);
const pids = () => sources.flatMap((source) => source(what));

let parts = 0;
const stacks = new Map(); // "outer;inner" -> samples

// perf script: a line for the sample, a line for each frame from the inside out, an empty line
function takeSamples(data) {
  const text = execFileSync('perf', ['script', '-i', data, '-F', 'comm,pid,ip,sym,dso', '--no-inline'], {
    encoding: 'utf8', maxBuffer: 2 ** 30, stdio: ['ignore', 'pipe', 'ignore'],
  });
  for (const sample of text.split('\n\n')) {
    const frames = sample.split('\n').slice(1).map((line) => /^\s*[0-9a-f]+ (.*?)(?:\+0x[0-9a-f]+)? \(([^)]*)\)$/.exec(line)).filter(Boolean)
      .map(([, symbol, from]) => (symbol === '[unknown]' ? `[${path.basename(from)}]` : symbol.replaceAll(';', ':')));
    if (frames.length === 0) continue;
    const key = frames.reverse().join(';');
    stacks.set(key, (stacks.get(key) ?? 0) + 1);
  }
}

async function withPerf(task) {
  const found = pids();
  if (found.length === 0) return task();
  const data = path.join(scratch, `perf-${parts += 1}.data`);
  const perf = spawn('perf', ['record', '-q', '-e', 'cpu-clock', '-F', String(FREQUENCY), '-g', '-o', data, '-p', found.join(',')], { stdio: ['ignore', 'ignore', 'inherit'] });
  const ended = once(perf, 'exit');
  await sleep(START_MS);
  try {
    return await task();
  } finally {
    perf.kill('SIGINT');
    await ended;
    if (existsSync(data)) takeSamples(data);
  }
}

let depth = 0;
export async function profiled(task) {
  if (tool !== 'perf' || depth > 0) return task();
  depth += 1;
  try {
    return await withPerf(task);
  } finally {
    depth -= 1;
  }
}

function perfTable() {
  const self = new Map();
  const all = new Map();
  let total = 0;
  for (const [key, count] of stacks) {
    const frames = key.split(';');
    total += count;
    self.set(frames.at(-1), (self.get(frames.at(-1)) ?? 0) + count);
    for (const frame of new Set(frames)) all.set(frame, (all.get(frame) ?? 0) + count);
  }
  const percent = (count) => `${(100 * count / total).toFixed(2)}%`.padStart(8);
  const table = (counts) => [...counts].sort((a, b) => b[1] - a[1]).slice(0, SHOWN).map(([name, count]) => `${percent(count)}  ${name}`).join('\n');
  return `${total} samples of CPU time, ${FREQUENCY} per second, while something was measured\n\nin the function itself:\n${table(self)}\n\nin it and what it calls, as far as stacks are known:\n${table(all)}\n`;
}

export function finishProfile(title) {
  if (!profiling) return;
  if (tool === 'perf' && parts === 0) throw new Error(`nothing was profiled: there was no process "${what}" while something was measured`);
  if (tool === 'perf') {
    writeFileSync(`${file}.txt`, `${title}\n${perfTable()}`);
    writeFileSync(`${file}.folded`, [...stacks].sort().map(([key, count]) => `${key} ${count}\n`).join(''));
    writeFileSync(`${file}.svg`, flameGraph(stacks, title));
    console.log(`\nprofile: ${file}.txt, ${file}.svg`);
    console.log(readFileSync(`${file}.txt`, 'utf8').split('\n').slice(0, 25).join('\n'));
    return;
  }
  // The gateway is killed when its cluster stops, so callgrind writes part by part, of which the last one is missing.
  const folder = path.dirname(process.env.BENCH_CALLGRIND_OUT);
  const counts = new Map();
  let total = 0;
  for (const name of readdirSync(folder).filter((each) => /^callgrind\.out\.\d+\.\d+$/.test(each))) {
    const text = execFileSync('callgrind_annotate', ['--threshold=100', '--auto=no', path.join(folder, name)], { encoding: 'utf8', maxBuffer: 2 ** 28 });
    for (const [, count, where] of text.matchAll(/^ *([\d,]+) \( *[\d.]+%\)  (.*)$/gm)) {
      const n = Number(count.replaceAll(',', ''));
      if (where === 'PROGRAM TOTALS') total += n;
      else {
        const symbol = where.replace(/^.*?:([^/]*?)( \[[^\]]*\/([^/\]]*)\])?$/, '$1 [$3]');
        counts.set(symbol, (counts.get(symbol) ?? 0) + n);
      }
    }
  }
  if (total === 0) throw new Error('callgrind has written nothing');
  const lines = [...counts].sort((a, b) => b[1] - a[1]).slice(0, SHOWN)
    .map(([name, n]) => `${n.toLocaleString('en').padStart(16)} ${(100 * n / total).toFixed(2).padStart(6)}%  ${name}`);
  writeFileSync(`${file}.txt`, `${title}\n${total.toLocaleString('en')} instructions of the gateway in user space, from its start\n\nin the function itself:\n${lines.join('\n')}\n`);
  console.log(`\nprofile: ${file}.txt`);
  console.log(readFileSync(`${file}.txt`, 'utf8').split('\n').slice(0, 40).join('\n'));
}
