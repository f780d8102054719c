import { existsSync, readFileSync } from 'node:fs';

import { transform } from 'esbuild';
import { defineConfig } from 'tsdown';

/** What package.json exports: one file of src/ for each entry. */
const { exports } = JSON.parse(readFileSync('package.json', 'utf8')) as { exports: Record<string, string> };
const entries = Object.values(exports).map((path) => /^\.\/dist\/(.*)\.js$/.exec(path)?.[1]).filter((name) => name !== undefined);

export default defineConfig({
  entry: entries.map((name) => [`src/${name}.ts`, `src/${name}.tsx`].find((path) => existsSync(path)) ?? `src/${name}.ts`),
  format: 'esm',
  platform: 'neutral',
  target: 'es2022',
  dts: true,
  // Libraries are the application's own, in types as well.
  deps: { neverBundle: /^[^./]/ },
  sourcemap: true,
  fixedExtension: false,
  logLevel: 'warn',
  // Constants that are imported have names in src/ only.
  inputOptions: { optimization: { inlineConst: true } },
  plugins: [{
    name: 'short names for internal members',
    async renderChunk(code, { fileName, moduleIds }) {
      // Of client.ts and channel.ts, which are in one chunk: nobody else knows them.
      if (!moduleIds.some((id) => id.endsWith('/src/client.ts'))) return null;
      const { code: short, map } = await transform(code, { format: 'esm', target: 'es2022', mangleProps: /^_[a-z]/, sourcemap: 'external', sourcefile: fileName });
      return { code: short, map };
    },
  }],
});
