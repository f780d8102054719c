import { defineConfig } from 'tsdown';

export default defineConfig({
  entry: ['index', 'http', 'lossless', 'presence', 'query', 'swr', 'db', 'optimistic', 'offline', 'yjs', 'server'].map((name) => `src/${name}.ts`).concat('src/react.tsx'),
  format: 'esm',
  platform: 'neutral',
  target: 'es2022',
  dts: true,
  fixedExtension: false,
});
