// Gives the libraries of REACT_LIBRARIES to whoever imports React.

import { createRequire, register } from 'node:module';
import { pathToFileURL } from 'node:url';

const library = createRequire(process.env.REACT_LIBRARIES);
const places = Object.fromEntries(['react', 'react-dom', 'react-dom/client', 'react-dom/server'].map((name) => [name, pathToFileURL(library.resolve(name)).href]));
const hooks = `
  const places = ${JSON.stringify(places)};
  export const resolve = (name, context, next) => (places[name] ? { url: places[name], format: 'commonjs', shortCircuit: true } : next(name, context));
`;
register(`data:text/javascript,${encodeURIComponent(hooks)}`);
