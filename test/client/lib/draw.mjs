// A server's part of server rendering, in a process of its own: reads { initial } and writes the page. With a connection, or
// anything else that stays, it would not end.
//
//   node draw.mjs renderToString | renderToPipeableStream

import assert from 'node:assert/strict';
import { text } from 'node:stream/consumers';
import { PassThrough } from 'node:stream';

import { load } from './libraries.mjs';
import { createClient } from '../../../client/dist/index.js';
import * as hooks from '../../../client/dist/react.js';
import { pageOf } from './list.mjs';

const React = await load('react');
const { renderToString, renderToPipeableStream } = await load('react-dom/server');
console.error = (...values) => assert.fail(values.join(' '));

const { initial } = JSON.parse(await text(process.stdin));
const client = createClient({ url: process.env.SERVER, WebSocket: class { constructor() { assert.fail('a socket on the server'); } } });
const page = pageOf(React, hooks)({ client, initial });
let html;
if (process.argv[2] === 'renderToString') html = renderToString(page);
else {
  const out = new PassThrough();
  const { pipe } = renderToPipeableStream(page, { onAllReady: () => pipe(out), onError: (error) => { throw error; } });
  html = await text(out);
}
assert.equal(client.connection.current.status, 'idle');
process.stdout.write(html);
