/**
 * The WebSocket transport.
 */
import type { Transport } from './types.js';

export const webSocket: Transport = (context) => {
  const socket = new (context.WebSocket ?? WebSocket)(`${context.base.replace(/^http/, 'ws')}/v1/socket`, 'changefeed.v1');
  let over = false;
  const opened = new Promise((resolve) => {
    socket.onopen = resolve;
  });
  socket.onmessage = ({ data }) => over || context.message(data as string);
  // What an error is about is not told to pages; a close event follows. Not all implementations take that nobody listens.
  socket.onerror = () => {};
  socket.onclose = ({ code }) => over || context.closed(code);
  return {
    name: 'websocket',
    send(message) {
      const text = context.codec.stringify(message);
      void opened.then(() => over || socket.send(text));
    },
    close() {
      over = true;
      socket.close(1000);
    },
  };
};
