// node bench/lib/main.mjs: what bench/run runs once the C programs are built; its head has the arguments.

import { mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { machine, runScenario } from './runner.mjs';
import { finishProfile } from './profile.mjs';
import { ROOT } from './programs.mjs';
import { printTable } from './table.mjs';

const folder = path.join(ROOT, 'bench/scenarios');
const known = readdirSync(folder).filter((file) => file.endsWith('.mjs')).map((file) => file.slice(0, -4)).sort();
const options = { quick: false, tiny: false, only: known, out: path.join(ROOT, 'bench/results'), arguments: {} };
for (let i = 2; i < process.argv.length; i += 1) {
  const [, name, given] = /^--([a-z-]+)(?:=(.*))?$/.exec(process.argv[i]) ?? [];
  const value = () => given ?? process.argv[i += 1];
  if (name === 'quick') options.quick = true;
  else if (name === 'tiny') { options.tiny = true; options.quick = true; }
  else if (name === 'only') options.only = value().split(',');
  else if (name === 'out') options.out = path.resolve(value());
  else if (name === 'set') {
    const [key, ...rest] = value().split('=');
    options.arguments[key] = rest.join('=');
  } else throw new Error(`unknown argument ${process.argv[i]}`);
}
const unknown = options.only.filter((name) => !known.includes(name));
if (unknown.length > 0) throw new Error(`there is no scenario ${unknown.join(', ')}; there are ${known.join(', ')}`);

const began = performance.now();
mkdirSync(options.out, { recursive: true });
const results = [];
const lines = [];
let failed = false;
for (const name of options.only) {
  const scenario = await import(path.join(folder, `${name}.mjs`));
  console.error(`bench: ${name}: ${scenario.title}`);
  let result;
  try {
    result = await runScenario(name, scenario, options);
  } catch (error) {
    console.error(error);
    result = { format: 1, scenario: name, title: scenario.title, failed: error.message, cases: [], wrong: [] };
  }
  if (result.failed !== undefined || result.wrong.length > 0) failed = true;
  results.push(result);
  writeFileSync(path.join(options.out, `${name}.json`), `${JSON.stringify(result, null, 2)}\n`);
  printTable(result);
  if (result.failed === undefined && scenario.line !== undefined) lines.push(scenario.line(result));
}
if (options.only.length > 1) {
  writeFileSync(path.join(options.out, 'all.json'), `${JSON.stringify({ format: 1, machine: machine(), scenarios: results }, null, 2)}\n`);
}
const targets = results.flatMap((result) => result.cases.flatMap((each) => each.targets.map((target) => ({ result, each, target }))));
if (targets.length > 0) {
  console.log('\ntargets:');
  for (const { result, each, target } of targets) {
    const met = target.met === null ? 'not measured' : target.met ? 'met' : 'MISSED';
    const measured = target.measured === null ? '-' : Number(target.measured.toPrecision(3));
    console.log(`  ${met.padEnd(13)}${result.scenario}, ${each.name}: ${target.name}: ${measured} (${target.at_most !== undefined ? `at most ${target.at_most}` : `at least ${target.at_least}`})`);
  }
}
for (const result of results) {
  if (result.failed !== undefined) console.log(`FAILED: ${result.scenario}: ${result.failed}`);
  for (const { case: each, system, message } of result.wrong) console.log(`WRONG: ${result.scenario}, ${each}, ${system}: ${message}`);
}
console.log('');
for (const line of lines) console.log(line);
if (!failed) finishProfile(options.only.join(', '));

// The last line, for programs: what the targets are about, with how many were met
const count = (met) => targets.filter(({ target }) => target.met === met).length;
console.log(JSON.stringify({
  benchmark: 'pg_changefeed', form: options.tiny ? 'tiny' : options.quick ? 'quick' : 'long', commit: results[0]?.commit ?? null,
  seconds: Math.round((performance.now() - began) / 1000), met: count(true), missed: count(false), not_measured: count(null),
  failed: results.filter((result) => result.failed !== undefined || result.wrong.length > 0).map(({ scenario }) => scenario),
  targets: Object.fromEntries(targets.map(({ result, each, target }) => [
    `${result.scenario}, ${each.name}: ${target.name}`,
    { measured: target.measured === null ? null : Number(target.measured.toPrecision(3)), at_least: target.at_least, at_most: target.at_most, met: target.met },
  ])),
}));
process.exitCode = failed ? 1 : 0;
