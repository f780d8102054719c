import { fileURLToPath } from 'node:url';

export default {
  // Without it Next looks for a lock file further up.
  turbopack: { root: fileURLToPath(new URL('.', import.meta.url)) },
};
