// How large the entries are in an application, and whether that is within their limits.
//
//   node scripts/size.mjs            fails when one is larger than sizes.json allows, or has no limit
//
// What counts is what a bundler makes of the built package: each entry with all that it exports and needs, minified by esbuild and
// compressed by gzip -9, in bytes; libraries that are the application's own are left out. The entry "." is also an application
// that does nothing but import { createClient }.

import { readFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';

import { build } from 'esbuild';

const ROOT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
const read = (name) => JSON.parse(readFileSync(path.join(ROOT, name), 'utf8'));

/** Bytes of what `source` becomes, with `resolveDir` as the place of its imports. */
export async function sizeOf(source, resolveDir = ROOT, external = []) {
  const { outputFiles } = await build({
    stdin: { contents: source, resolveDir }, bundle: true, minify: true, format: 'esm', target: 'es2022', platform: 'browser', write: false, external,
  });
  return gzipSync(outputFiles[0].contents, { level: 9 }).length;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const limits = read('sizes.json');
  const { exports } = read('package.json');
  const external = ['react', 'react/*', 'react-dom', 'swr', '@tanstack/*', 'yjs', 'y-protocols/*'];
  let failed = false;
  for (const [entry, file] of Object.entries(exports)) {
    if (!file.endsWith('.js')) continue;
    const bytes = await sizeOf(entry === '.' ? `export { createClient } from '${file}'` : `export * from '${file}'`, ROOT, external);
    const limit = limits[entry];
    const verdict = limit === undefined ? 'has no limit in sizes.json' : bytes > limit ? `is larger than ${limit}` : `of ${limit}`;
    failed ||= limit === undefined || bytes > limit;
    console.log(`${entry.padEnd(14)} ${String(bytes).padStart(6)}  ${verdict}`);
  }
  process.exit(failed ? 1 : 0);
}
