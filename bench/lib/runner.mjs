// Runs one scenario, its systems in turns, and makes its results.
//
// A scenario is a module of bench/scenarios with these exports:
//
//   title       a line that says what is measured
//   unit        what the figures are, in a sentence
//   metrics     { name: unit }: those of measure() that are summarized; others are kept in the repeats only
//   cases(options)          [{ name, repeats, systems: [names], ...parameters }]
//   async setup(context)    optional, once: starts what all cases need
//   async measure(context, case, system, repeat)
//               { metric: number, ... }; throws WrongResult if what was received is not what was sent,
//               and Unavailable if the system is not there
//   async begin(context, case), async end(context, case)
//               optional: before and after the repeats of a case
//   ratios      optional: [{ name, metric, of: system or function of the case, to: the same, cases?: name or
//               function of the case }]
//   targets     optional: [{ name, ratio (a name of the above) or metric and system, case?: as cases above,
//               limit: number or function of the case, above?: true if it is a lower limit }]
//   async teardown(context) optional
//   profiles    optional: 'load' if bench/profile is to look only while the load generator publishes or reconnects,
//               and not at the whole of measure()
//   line(result)            optional: the line that is printed at the end
//
// context is { options, note(text), keep: {} }; a scenario keeps in keep what it likes. What it has to say
// about its settings it says with note(): the results have it.
//
// In each repeat the systems of a case are measured one after the other, in every second repeat in the opposite
// order. A ratio is of medians over the repeats, with the least and most within one repeat.
//
// The results: see doc/performance.md, section "The results as JSON".

import { execFileSync } from 'node:child_process';
import os from 'node:os';

import { profiled } from './profile.mjs';
import { ratio, spread } from './stats.mjs';
import { ROOT } from './programs.mjs';

export class Unavailable extends Error {}
export class WrongResult extends Error {}

export const machine = () => ({
  cpus: os.cpus().length, model: os.cpus()[0].model, memory_bytes: os.totalmem(), kernel: os.release(),
});

const matches = (pattern, each) => pattern === undefined || (typeof pattern === 'function' ? pattern(each) : pattern === each.name);
const nameOf = (system, each) => (typeof system === 'function' ? system(each) : system);

function summarize(scenario, each, repeats, failures) {
  const systems = {};
  for (const name of each.systems) {
    const rows = repeats.map((repeat) => repeat[name]).filter((row) => row !== undefined);
    if (failures[name] !== undefined) {
      systems[name] = failures[name];
      continue;
    }
    const metrics = {};
    for (const metric of Object.keys(scenario.metrics)) {
      const values = rows.map((row) => row[metric]).filter((value) => Number.isFinite(value));
      if (values.length === rows.length && values.length > 0) metrics[metric] = spread(values);
    }
    systems[name] = { metrics };
  }
  return systems;
}

function ratiosOf(scenario, each, repeats, failures) {
  const found = [];
  for (const { name, metric, of, to, cases } of scenario.ratios ?? []) {
    const [a, b] = [nameOf(of, each), nameOf(to, each)];
    if (!matches(cases, each) || !each.systems.includes(a) || !each.systems.includes(b)
      || failures[a] !== undefined || failures[b] !== undefined) continue;
    const values = [a, b].map((system) => repeats.map((repeat) => repeat[system][metric]));
    if (values.flat().every((value) => Number.isFinite(value)) && values[1].every((value) => value !== 0)) found.push({ name, metric, of: a, to: b, ...ratio(...values) });
  }
  return found;
}

// met is null where nothing could be measured, so that a missing peer never looks like a success
function targetsOf(scenario, each, systems, ratios) {
  const found = [];
  for (const target of scenario.targets ?? []) {
    if (!matches(target.case, each)) continue;
    const limit = typeof target.limit === 'function' ? target.limit(each) : target.limit;
    let measured = null;
    if (target.ratio !== undefined) measured = ratios.find(({ name }) => name === target.ratio)?.of_medians ?? null;
    else measured = systems[target.system]?.metrics?.[target.metric]?.median ?? null;
    const above = target.above === true;
    found.push({
      name: target.name, [above ? 'at_least' : 'at_most']: limit, measured,
      met: measured === null ? null : above ? measured >= limit : measured <= limit,
      ratio: target.ratio, system: target.system, metric: target.metric,
    });
  }
  return found;
}

export async function runScenario(name, scenario, options) {
  const notes = [];
  const context = { options, keep: {}, note: (text) => { if (!notes.includes(text)) notes.push(text); } };
  const result = {
    format: 1, scenario: name, title: scenario.title, unit: scenario.unit, quick: options.quick,
    started: new Date().toISOString(), commit: commitNow(), machine: { ...machine(), load_before: os.loadavg()[0] },
    metrics: scenario.metrics, cases: [], notes, wrong: [],
  };
  const began = performance.now();
  try {
    await scenario.setup?.(context);
    for (const each of scenario.cases(options)) {
      const repeats = [];
      const failures = {};
      await scenario.begin?.(context, each);
      for (let i = 0; i < each.repeats; i += 1) {
        const row = {};
        for (const system of i % 2 === 0 ? each.systems : [...each.systems].reverse()) {
          if (failures[system] !== undefined) continue;
          try {
            const measure = () => scenario.measure(context, each, system, i);
            row[system] = await (scenario.profiles === 'load' ? measure() : profiled(measure));
            const figures = Object.keys(scenario.metrics).filter((metric) => Number.isFinite(row[system][metric]))
              .map((metric) => `${metric} ${Number(row[system][metric].toPrecision(4))}`).join(', ');
            console.error(`bench: ${name}: ${each.name}, repeat ${i + 1}, ${system}: ${figures}`);
          } catch (error) {
            if (error instanceof Unavailable) failures[system] = { unavailable: error.message };
            else if (error instanceof WrongResult) {
              failures[system] = { wrong: error.message };
              result.wrong.push({ case: each.name, system, message: error.message });
            } else throw error;
            console.error(`bench: ${name}: ${each.name}, ${system}: ${error.message}`);
          }
        }
        repeats.push(row);
      }
      await scenario.end?.(context, each);
      const systems = summarize(scenario, each, repeats, failures);
      const ratios = ratiosOf(scenario, each, repeats, failures);
      const { name: caseName, repeats: count, systems: order, ...parameters } = each;
      result.cases.push({
        name: caseName, parameters, repeats: count, systems, ratios,
        targets: targetsOf(scenario, each, systems, ratios), measurements: repeats,
      });
    }
  } finally {
    await scenario.teardown?.(context);
  }
  result.versions = context.keep.versions ?? {};
  result.seconds = Math.round((performance.now() - began) / 100) / 10;
  result.machine.load_after = os.loadavg()[0];
  return result;
}

function commitNow() {
  try {
    return execFileSync('git', ['-C', ROOT, 'rev-parse', '--short', 'HEAD'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();
  } catch {
    return null; // no repository
  }
}
