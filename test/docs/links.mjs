// Every link in README.md, client/README.md and doc/*.md that stays in the project has to lead somewhere: the file
// exists, and so does the heading, if one is named.
//
//   node test/docs/links.mjs

import { existsSync, readFileSync, readdirSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
const pages = ['README.md', 'client/README.md', ...readdirSync(path.join(ROOT, 'doc')).filter((name) => name.endsWith('.md')).map((name) => `doc/${name}`)];

const textOf = (page) => readFileSync(path.join(ROOT, page), 'utf8').replace(/^```[^]*?^```/gm, '');
// As GitHub makes them
const anchors = (page) => new Set([...textOf(page).matchAll(/^#+ (.*)$/gm)]
  .map(([, title]) => title.toLowerCase().replace(/[^\p{L}\p{N} _-]/gu, '').replace(/ /g, '-')));

let failures = 0;
for (const page of pages) {
  for (const [, target] of textOf(page).matchAll(/\]\(([^)\s]+)\)/g)) {
    if (/^[a-z]+:/.test(target)) continue;
    const [file, anchor] = target.split('#');
    const other = file === '' ? page : path.join(path.dirname(page), file);
    const problem = existsSync(path.join(ROOT, other)) ? anchor !== undefined && !anchors(other).has(anchor) && 'no such heading' : 'no such file';
    if (problem) {
      console.log(`not ok - ${page}: link to ${target}: ${problem}`);
      failures += 1;
    }
  }
}
if (failures === 0) console.log('ok - links within the documentation');
process.exit(failures === 0 ? 0 : 1);
