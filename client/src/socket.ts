/**
 * The WebSocket transport.
 */
import type { AnyRow, Transport } from './types.js';

export const webSocket: Transport = (context) => {
  const socket = new context.WebSocket(`${context.base.replace(/^http/, 'ws')}/v1/socket`, 'changefeed.v1');
  const waiting: string[] = [];
  let over = false;
  const end = (code: number) => {
    if (over) return;
    over = true;
    context.closed(code);
  };
  socket.onopen = () => {
    for (const text of waiting) socket.send(text);
    waiting.length = 0;
  };
  socket.onmessage = ({ data }) => {
    if (!over) context.message(context.codec.parse(data) as AnyRow);
  };
  // What an error is about is not told to pages; a close event follows. Not all implementations take that nobody listens.
  socket.onerror = () => {};
  socket.onclose = ({ code }) => end(code);
  return {
    name: 'websocket',
    send(message) {
      const text = context.codec.stringify(message);
      if (socket.readyState === 1) socket.send(text);
      else waiting.push(text);
    },
    close() {
      over = true;
      socket.close(1000);
    },
  };
};
