// doc/guarantees.md names a test for each promise: every file that it names has to exist, and every
// section but the last has to name one.
//
//   node test/docs/guarantees.mjs

import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
const places = [
  [/`([a-z_]+\.test\.mjs)`/g, 'test/integration/'],
  [/`(\d+_[a-z]+\.pl)`/g, 'test/t/'],
  [/`((?:test|sql)\/[\w./]+)`/g, ''],
];
const problems = [];
const [, ...sections] = readFileSync(path.join(ROOT, 'doc/guarantees.md'), 'utf8').split(/^## /m);
for (const section of sections) {
  const title = section.split('\n')[0];
  const named = places.flatMap(([pattern, directory]) => [...section.matchAll(pattern)].map(([, name]) => directory + name));
  for (const file of named) if (!existsSync(path.join(ROOT, file))) problems.push(`"${title}": there is no ${file}`);
  if (named.length === 0 && title !== 'What is not guaranteed') problems.push(`"${title}" names no test`);
}
for (const problem of problems) console.log(`not ok - doc/guarantees.md: ${problem}`);
if (problems.length === 0) console.log('ok - the tests that doc/guarantees.md names exist');
process.exit(problems.length === 0 ? 0 : 1);
