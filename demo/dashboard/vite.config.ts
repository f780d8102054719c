import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vite';

// An application installs pg-changefeed from npm. Here its sources are at hand, so nothing has to be built before.
const client = fileURLToPath(new URL('../../client/src/', import.meta.url));

export default defineConfig({
  resolve: {
    alias: [
      { find: /^pg-changefeed$/, replacement: `${client}index.ts` },
      { find: /^pg-changefeed\/react$/, replacement: `${client}react.tsx` },
      { find: /^pg-changefeed\/(\w+)$/, replacement: `${client}$1.ts` },
    ],
    dedupe: ['react'],
  },
  esbuild: { jsx: 'automatic' },
  build: {
    target: 'es2022',
    // "use client" says something to servers that render, and nothing to a bundle.
    rollupOptions: { onwarn: (warning, warn) => void (/^(MODULE_LEVEL_DIRECTIVE|SOURCEMAP_ERROR)$/.test(warning.code ?? '') || warn(warning)) },
  },
  // `npm run dev` beside a running demo, which hands out the tokens.
  server: { proxy: { '/login': { target: process.env.DASHBOARD_URL ?? 'http://127.0.0.1:8042', changeOrigin: true } } },
});
