// Compares doc/architecture.md with the sources: every `Function()` that it names has to exist, and
// its table of files has to have every file of src/ and src/gateway/, and no other.
//
//   node test/docs/sources.mjs

import { readFileSync, readdirSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
const text = readFileSync(path.join(ROOT, 'doc/architecture.md'), 'utf8');
const problems = [];

const files = new Map(['src', 'src/gateway'].map((directory) => [directory,
  readdirSync(path.join(ROOT, directory)).filter((name) => /\.[ch]$/.test(name))]));
const source = [...files].flatMap(([directory, names]) => names.map((name) => readFileSync(path.join(ROOT, directory, name), 'utf8'))).join('\n');

for (const [, name] of text.matchAll(/`(\w+)\(\)`/g)) {
  // Ours are defined at the start of a line, the server's are called.
  if (!new RegExp(`\\b${name}\\(`).test(source)) problems.push(`there is no function ${name}()`);
}
for (const [, name] of text.matchAll(/`([A-Z]+_[A-Z_]+)`/g)) {
  if (!new RegExp(`\\b${name}\\b`).test(source)) problems.push(`there is no ${name} in src/`);
}

const [, ...tables] = text.split('<!-- sources -->')[1].split('<!-- /sources -->')[0].split('| file in ');
for (const table of tables) {
  const directory = table.match(/^`(.*?)\/`/)[1];
  const listed = [...table.matchAll(/^\| (`[^|]*`) \|/gm)].flatMap(([, cell]) => {
    const [first, ...others] = [...cell.matchAll(/`([^`]+)`/g)].map(([, name]) => name);
    return [first, ...others.map((name) => (name.startsWith('.') ? first.replace(/\.\w+$/, name) : name))];
  });
  const actual = files.get(directory);
  for (const name of actual) if (!listed.includes(name)) problems.push(`${directory}/${name} is not listed`);
  for (const name of listed) if (!actual.includes(name)) problems.push(`${directory}/${name} does not exist`);
  for (const name of new Set(listed)) if (listed.indexOf(name) !== listed.lastIndexOf(name)) problems.push(`${name} is listed twice`);
}

for (const problem of problems) console.log(`not ok - doc/architecture.md: ${problem}`);
if (problems.length === 0) console.log('ok - doc/architecture.md names what there is in src/');
process.exit(problems.length === 0 ? 0 : 1);
