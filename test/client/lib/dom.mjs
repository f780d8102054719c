// A page without a browser, React, and what React says to the console.

import { load } from './libraries.mjs';

// Before React looks whether there is a document. What makes connections stays Node's.
const { GlobalRegistrator } = await load('@happy-dom/global-registrator');
const { fetch, Request, Response, Headers, WebSocket, AbortSignal, AbortController, URL: NodeURL, ReadableStream, performance, MessageChannel } = globalThis;
GlobalRegistrator.register({ url: 'http://localhost/' });
Object.assign(globalThis, { fetch, Request, Response, Headers, WebSocket, AbortSignal, AbortController, URL: NodeURL, ReadableStream, performance, MessageChannel });
// Rows come when they come, as in a page: only what testing-library wraps is an act.
globalThis.IS_REACT_ACT_ENVIRONMENT = false;

export const React = await load('react');
export const { createElement: h, StrictMode, Suspense, memo, useEffect } = React;
export const { hydrateRoot } = await load('react-dom/client');
export const { render, cleanup, act } = await load('@testing-library/react');

const said = [];
for (const kind of ['error', 'warn']) {
  const log = console[kind];
  console[kind] = (...values) => {
    said.push(values.map(String).join(' '));
    log(...values);
  };
}
/** What was said to the console since the last time. */
export const complaints = () => said.splice(0);
