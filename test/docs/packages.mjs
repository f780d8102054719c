// The lists of packages agree: what scripts/setup installs is explained in doc/dependencies.md, and
// what a build needs is the same there, in the Debian packages and in the Dockerfile.
//
//   node test/docs/packages.mjs

import { readFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
const read = (name) => readFileSync(path.join(ROOT, name), 'utf8');
const problems = [];

const lists = [...read('scripts/setup').matchAll(/^\s*(?:[a-z]+\) )?(\w+)\+?=\(([^)]*)\)/gm)]
  .map(([, name, text]) => [name, text.replace(/"\$\{[^}]*\}"/g, ' ').split(/\s+/).filter(Boolean)]);
const explained = new Set([...read('doc/dependencies.md').matchAll(/`([^`\s]+)`/g)].map(([, name]) => name));
const installed = lists.filter(([name]) => name !== 'missing').flatMap(([, packages]) => packages);
for (const name of new Set(installed)) {
  if (!explained.has(name)) problems.push(`scripts/setup installs ${name}, of which doc/dependencies.md says nothing`);
}

const development = (text) => [...text.matchAll(/^\s*(lib[a-z0-9.+-]+-dev|zlib[a-z0-9.+-]+-dev)\b/gm)].map(([, name]) => name).sort().join(' ');
const wanted = development(lists.find(([name]) => name === 'build')[1].join('\n'));
for (const [where, text] of [
  ['debian/control.in', read('debian/control.in').match(/^Build-Depends:\n((?: .*\n)+)/m)[1]],
  ['Dockerfile', read('Dockerfile').match(/AS build\n([^]*?)\nFROM/)[1]],
]) {
  const found = development(text);
  if (found !== wanted) problems.push(`${where} builds with ${found}; scripts/setup with ${wanted}`);
}

for (const problem of problems) console.log(`not ok - ${problem}`);
if (problems.length === 0) console.log(`ok - ${new Set(installed).size} packages, the same everywhere`);
process.exit(problems.length === 0 ? 0 : 1);
