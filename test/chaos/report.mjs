// What the campaign went through: lines as it goes, then JSON and Markdown.

import { mkdirSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

import { Report } from '../convergence/report.mjs';

export const DIRECTORY = process.env.CHAOS_REPORT ?? fileURLToPath(new URL('../results/', import.meta.url));

export const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted.length === 0 ? null : sorted[Math.floor(sorted.length / 2)];
};
export const seconds = (ms) => (ms === null ? '' : (ms / 1000).toFixed(2));

export class Campaign {
  convergence = new Report();
  rounds = [];
  problems = [];
  failed = []; // faults that did not come about
  current = 'the start';
  skipped = {};

  constructor(seed) {
    this.seed = seed;
  }

  problem(text) {
    this.problems.push(`${this.current}: ${text}`);
    console.log(`PROBLEM: ${this.problems.at(-1)}`);
  }

  notApplied(name, error) {
    this.failed.push(`${this.current}: ${name}: ${error.message.trim().split('\n').at(-1)}`);
    console.log(`NOT APPLIED: ${this.failed.at(-1)}`);
    if (this.failed.length > 5) this.problem(`${this.failed.length} faults did not come about`);
  }

  round({ phases, number, applied, from, accepted, times, sample }) {
    const kinds = applied.map(({ name }) => name);
    const worst = Math.max(...times);
    // Of two at a time nobody can say which one it was.
    const recovery = {
      kinds, at: from, total: times.map((time) => time - from),
      behind: accepted ? times.map((time) => time - accepted) : null,
    };
    this.rounds.push(recovery);
    const { kinds: processes, segments } = sample;
    console.log(`${new Date().toISOString().slice(11, 19)} round ${number}: ${kinds.join(' + ')} (${applied.map(({ took }) => seconds(took))} s): all probes have recovered after ${seconds(worst - from)} s`
      + `${accepted ? `, ${seconds(worst - accepted)} s after the server accepted connections` : ''}; feed worker ${Math.round(processes['feed worker'].rss / 1024)} MB, gateway ${processes.gateway.descriptors} descriptors, ${segments} segments; took ${phases.map(seconds).join(' ')}`);
  }

  finish({ stage, witnesses, seconds: duration, error }) {
    const byKind = {};
    for (const { kinds, total, behind } of this.rounds) {
      for (const kind of kinds) {
        byKind[kind] ??= { faults: 0, alone: 0, total: [], behind: [] };
        byKind[kind].faults += 1;
        if (kinds.length > 1) continue;
        byKind[kind].alone += 1;
        byKind[kind].total.push(...total);
        byKind[kind].behind.push(...(behind ?? []));
      }
    }
    const { convergence } = this;
    const result = {
      seed: this.seed, date: new Date().toISOString(), seconds: Math.round(duration), clients: this.clients, rounds: this.rounds.length,
      faults: Object.values(byKind).reduce((sum, { faults }) => sum + faults, 0),
      transactions: stage.model?.transactions ?? 0, beats: witnesses.beat.last, changes: stage.model?.changes ?? 0, ddl: stage.model?.events ?? 0,
      frames: convergence.frames, cachesCompared: convergence.caches, selects: convergence.selects,
      connections: convergence.connections, resumes: convergence.kinds.resumes ?? {}, resyncs: convergence.kinds.resyncs ?? {},
      transports: convergence.kinds.transports ?? {}, refused: { ...convergence.kinds['connections refused'], ...convergence.kinds['requests refused'], ...convergence.kinds['subscriptions refused'] },
      calls: witnesses.calls, wrongCaches: error?.constructor.name === 'Difference' ? 1 : 0, error: error?.message.split('\n')[0] ?? null,
      problems: this.problems, notApplied: this.failed, skipped: this.skipped,
      kinds: Object.fromEntries(Object.entries(byKind).map(([kind, { faults, alone, total, behind }]) => [kind, {
        faults, alone, recovery: { median: median(total), worst: total.length > 0 ? Math.max(...total) : null },
        ...(behind.length > 0 && { afterAccepting: { median: median(behind), worst: Math.max(...behind) } }),
      }])),
    };
    mkdirSync(DIRECTORY, { recursive: true });
    writeFileSync(`${DIRECTORY}/chaos.json`, `${JSON.stringify(result, null, 2)}\n`);
    const text = markdown(result);
    writeFileSync(`${DIRECTORY}/chaos.md`, text);
    console.log(text);
  }
}

/** As doc/reliability.md has it. */
export function markdown(result) {
  const sum = (counts) => Object.values(counts).reduce((a, b) => a + b, 0);
  const list = (counts) => Object.entries(counts).sort(([, a], [, b]) => b - a).map(([name, n]) => `${name} ${n}`).join(', ');
  const lines = [
    '| | |', '|---|---|',
    `| duration, seed | ${result.seconds} s, ${result.seed} |`,
    `| clients | ${result.clients} |`,
    `| rounds, faults | ${result.rounds}, ${result.faults}${result.notApplied.length > 0 ? `, of which ${result.notApplied.length} did not come about` : ''} |`,
    `| transactions | ${result.transactions + result.beats}, of which ${result.ddl} changed policies, rights, columns, partitions or channels |`,
    `| frames checked | ${result.frames} |`,
    `| caches compared in full | ${result.cachesCompared}, and ${result.selects} times the oracle with \`SELECT\` |`,
    `| connections | ${result.connections} WebSockets, ${list(result.transports)} |`,
    `| resumed | ${list(result.resumes)} |`,
    `| resyncs | ${sum(result.resyncs)}: ${list(result.resyncs)} |`,
    `| calls | ${result.calls.answered} answered, ${result.calls.repeated} of them by a repetition |`,
    `| **wrong caches** | **${result.wrongCaches}** |`,
    `| other problems | ${result.problems.length} |`,
    '', '| fault | how often | alone | recovered, median (s) | worst (s) | after the server accepted connections, median (s) | worst (s) |', '|---|---|---|---|---|---|---|',
    ...Object.entries(result.kinds).sort(([a], [b]) => a.localeCompare(b)).map(([kind, { faults, alone, recovery, afterAccepting }]) => `| ${kind} | ${faults} | ${alone} `
      + `| ${seconds(recovery.median)} | ${seconds(recovery.worst)} | ${afterAccepting ? seconds(afterAccepting.median) : ''} | ${afterAccepting ? seconds(afterAccepting.worst) : ''} |`),
    ...Object.entries(result.skipped).map(([kind, reason]) => `| ${kind} | left out: ${reason} | | | | | |`),
    '',
  ];
  return lines.join('\n');
}
