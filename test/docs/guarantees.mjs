// doc/guarantees.md names a test for each promise, and doc/security.md for each attack: every file that they
// name has to exist, every section but those on what is not promised has to name one, and so has every
// line of a table with a column for it.
//
//   node test/docs/guarantees.mjs

import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
const pages = [
  { page: 'doc/guarantees.md', without: ['What is not guaranteed'] },
  { page: 'doc/security.md', without: ['How rights are kept', 'What is not defended'] },
];
const places = [
  [/`([a-z_]+\.test\.mjs)`/g, 'test/integration/'],
  [/`(\d+_[a-z]+\.pl)`/g, 'test/t/'],
  [/`((?:test|sql)\/[\w./]+)`/g, ''],
];
const testsIn = (text) => places.flatMap(([pattern, directory]) => [...text.matchAll(pattern)].map(([, name]) => directory + name));
let failed = false;
for (const { page, without } of pages) {
  const problems = [];
  const [, ...sections] = readFileSync(path.join(ROOT, page), 'utf8').split(/^## /m);
  for (const section of sections) {
    const title = section.split('\n')[0];
    for (const file of testsIn(section)) if (!existsSync(path.join(ROOT, file))) problems.push(`"${title}": there is no ${file}`);
    if (testsIn(section).length === 0 && !without.includes(title)) problems.push(`"${title}" names no test`);
    for (const [, rows] of section.matchAll(/^\|.*\| test \|\n\|[-|]+\|\n((?:\|.*\n)+)/gm)) {
      for (const row of rows.trim().split('\n')) if (testsIn(row.split('|').at(-2)).length === 0) problems.push(`"${title}": no test for ${row}`);
    }
  }
  for (const title of without) if (!sections.some((section) => section.startsWith(`${title}\n`))) problems.push(`there is no section "${title}"`);
  for (const problem of problems) console.log(`not ok - ${page}: ${problem}`);
  if (problems.length === 0) console.log(`ok - the tests that ${page} names exist`);
  failed ||= problems.length > 0;
}
process.exit(failed ? 1 : 0);
