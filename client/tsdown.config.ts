import { transform } from 'esbuild';
import { defineConfig } from 'tsdown';

/** Entries are the files of src/ that package.json exports. */
const entries = ['index', 'extras', 'http', 'lossless', 'presence', 'query', 'swr', 'db', 'optimistic', 'offline', 'yjs', 'server'];

export default defineConfig({
  entry: [...entries.map((name) => `src/${name}.ts`), 'src/react.tsx'],
  format: 'esm',
  platform: 'neutral',
  target: 'es2022',
  dts: true,
  sourcemap: true,
  fixedExtension: false,
  logLevel: 'warn',
  plugins: [{
    name: 'short names for internal members',
    async renderChunk(code, { fileName, moduleIds }) {
      // Of client.ts, channel.ts and cache.ts, which are in one chunk: nobody else knows them.
      if (!moduleIds.some((id) => id.endsWith('/src/client.ts'))) return null;
      const { code: short, map } = await transform(code, { format: 'esm', target: 'es2022', mangleProps: /^_[a-z]/, sourcemap: 'external', sourcefile: fileName });
      return { code: short, map };
    },
  }],
});
