import { defineConfig } from 'tsdown';

export default defineConfig({
  entry: ['index', 'http', 'lossless', 'presence', 'query', 'swr', 'db', 'optimistic', 'offline', 'tabs', 'yjs'].map((name) => `src/${name}.ts`),
  format: 'esm',
  platform: 'neutral',
  target: 'es2022',
  dts: true,
  fixedExtension: false,
});
