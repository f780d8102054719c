// doc/compatibility.md lists every difference between server versions: what src/compat.h defines
// under a version of the server, and no more; and no other source asks for the version.
//
//   node test/docs/compatibility.mjs

import { readFileSync, readdirSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
const read = (name) => readFileSync(path.join(ROOT, name), 'utf8');
const problems = [];

// Names by the version whose condition they stand under
const inSource = new Set();
const conditions = [];
for (const line of read('src/compat.h').replace(/\\\n/g, ' ').split('\n')) {
  const condition = line.match(/^#\s*if(?:def|ndef)?\b(.*)/);
  if (condition) conditions.push(condition[1].match(/PG_VERSION_NUM\s*(?:>=|<)\s*(\d\d)0000$/)?.[1]);
  else if (/^#\s*endif/.test(line)) conditions.pop();
  else {
    const name = line.match(/^#\s*define\s+(\w+)/);
    const version = conditions.filter((each) => each !== undefined).at(-1);
    if (name && version) inSource.add(`${version} ${name[1]}`);
  }
}

const [, table = ''] = read('doc/compatibility.md').split('<!-- compat.h -->');
const inPage = new Set();
for (const [, version, cell] of table.matchAll(/^\| (\d\d) \| ([^|]*) \|/gm)) {
  for (const [, name] of cell.matchAll(/`([^`]+)`/g)) inPage.add(`${version} ${name}`);
}
if (inSource.size === 0) problems.push('src/compat.h has no differences, so this test is wrong');
for (const each of inSource) if (!inPage.has(each)) problems.push(`does not list what changes with ${each} of src/compat.h`);
for (const each of inPage) if (!inSource.has(each)) problems.push(`lists ${each}, which src/compat.h does not have`);

for (const directory of ['src', 'src/gateway']) {
  for (const name of readdirSync(path.join(ROOT, directory)).filter((file) => /\.[ch]$/.test(file) && file !== 'compat.h')) {
    if (/^#.*PG_(VERSION_NUM|MAJORVERSION_NUM)/m.test(read(`${directory}/${name}`))) problems.push(`${directory}/${name} compares versions of the server; only src/compat.h does`);
  }
}

for (const problem of problems) console.log(`not ok - doc/compatibility.md: ${problem}`);
if (problems.length === 0) console.log('ok - doc/compatibility.md lists the differences between servers');
process.exit(problems.length === 0 ? 0 : 1);
