// The tests of the React entry again, with the oldest React that it works with.

import assert from 'node:assert/strict';
import { test } from 'node:test';

process.env.REACT_LIBRARIES = new URL('react18/package.json', import.meta.url).pathname;
const hooks = new URL('lib/other-react.mjs', import.meta.url).href;
// For the server's part, too.
process.env.NODE_OPTIONS = `${process.env.NODE_OPTIONS ?? ''} --import ${hooks}`;
await import(hooks);
await import('./react.test.mjs');
const { version } = await import('react');

test('this was React 18', () => assert.match(version, /^18\./));
