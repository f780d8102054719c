// What the kernel says of processes: CPU time and memory.

import { readFileSync, readdirSync } from 'node:fs';

const read = (file) => {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return null; // it has ended
  }
};

// CPU time of a process so far, in microseconds: utime + stime of all its threads, from schedstat, which
// counts nanoseconds where /proc/PID/stat counts ticks of 10 ms. Time in softirqs that the kernel runs
// within a system call, as loopback traffic is, is part of it.
export function cpuOf(pid) {
  let total = 0;
  let threads;
  try {
    threads = readdirSync(`/proc/${pid}/task`);
  } catch {
    throw new Error(`process ${pid} has ended`);
  }
  for (const thread of threads) {
    const text = read(`/proc/${pid}/task/${thread}/schedstat`);
    if (text !== null) total += Number(text.split(' ')[0]) / 1000;
  }
  return total;
}

export const cpuOfAll = (pids) => pids.reduce((sum, pid) => sum + cpuOf(pid), 0);

// Memory of a process in KiB: its proportional share (PSS), and what belongs to it alone.
export function memoryOf(pid) {
  const text = read(`/proc/${pid}/smaps_rollup`);
  if (text === null) throw new Error(`process ${pid} has ended, or its memory map may not be read`);
  const field = (name) => Number(new RegExp(`^${name}: *(\\d+) kB`, 'm').exec(text)[1]);
  return {
    pss_kib: field('Pss'),
    private_kib: field('Private_Clean') + field('Private_Dirty'),
    rss_kib: field('Rss'),
  };
}

export const memoryOfAll = (pids) => pids.map(memoryOf).reduce((sum, each) => {
  for (const [name, value] of Object.entries(each)) sum[name] = (sum[name] ?? 0) + value;
  return sum;
}, {});

const parentOf = (pid) => {
  const text = read(`/proc/${pid}/stat`);
  return text === null ? null : Number(text.slice(text.lastIndexOf(')') + 2).split(' ')[1]);
};

export const commandOf = (pid) => (read(`/proc/${pid}/cmdline`) ?? '').replace(/\0/g, ' ').trim();

// All processes below (and with) a process, in no order
export function family(root) {
  const parents = new Map(readdirSync('/proc').filter((name) => /^\d+$/.test(name))
    .map((name) => [Number(name), parentOf(Number(name))]));
  const found = new Set([root]);
  for (let before = 0; before !== found.size;) {
    before = found.size;
    for (const [pid, parent] of parents) if (found.has(parent)) found.add(pid);
  }
  return [...found];
}

export const isAlive = (pid) => {
  const text = read(`/proc/${pid}/stat`);
  return text !== null && !/^\d+ \(.*\) Z/s.test(text);
};

// S: it waits; T: it is stopped; R: it runs
export const stateOf = (pid) => {
  const text = read(`/proc/${pid}/stat`);
  return text === null ? null : text.slice(text.lastIndexOf(')') + 2)[0];
};
