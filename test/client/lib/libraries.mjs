// Libraries that are installed where the package is developed; the tests of another React have their own.

import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const ours = createRequire(new URL('../../../client/package.json', import.meta.url));
const library = process.env.REACT_LIBRARIES ? createRequire(process.env.REACT_LIBRARIES) : ours;

/** The module that `import` would give from there. */
export const load = async (name) => {
  let path;
  try {
    path = library.resolve(name);
  } catch {
    path = ours.resolve(name);
  }
  const module = await import(pathToFileURL(path));
  if (module.default?.__esModule) return module.default;
  return module.default && typeof module.default === 'object' ? { ...module.default, ...module } : module;
};
