import { defineConfig } from 'tsdown';

export default defineConfig({
  entry: ['index', 'extras', 'http', 'lossless', 'presence', 'query', 'swr', 'db', 'optimistic', 'offline', 'yjs'].map((name) => `src/${name}.ts`),
  format: 'esm',
  platform: 'neutral',
  target: 'es2022',
  dts: true,
  fixedExtension: false,
});
