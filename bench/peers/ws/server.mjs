// Node's ws as a team would use it: who connects to /CHANNEL gets what is published to it. Publishing:
// lines "CHANNEL MESSAGE" over TCP.
//
//   node bench/peers/ws/server.mjs PORT PUBLISH_PORT

import { createServer as createHttpServer } from 'node:http';
import { createServer } from 'node:net';

import { WebSocketServer } from 'ws';

const [port, publishPort] = process.argv.slice(2).map(Number);
const channels = new Map();

const http = createHttpServer();
const server = new WebSocketServer({ server: http, perMessageDeflate: false });
server.on('connection', (socket, request) => {
  const channel = request.url.slice(1);
  let sockets = channels.get(channel);
  if (sockets === undefined) channels.set(channel, sockets = new Set());
  sockets.add(socket);
  socket.on('error', () => {});
  socket.on('close', () => sockets.delete(socket));
});
http.listen({ port, host: '127.0.0.1', backlog: 4096 });

createServer({ noDelay: true }, (socket) => {
  let rest = '';
  socket.setEncoding('utf8');
  socket.on('error', () => {});
  socket.on('data', (text) => {
    const lines = (rest + text).split('\n');
    rest = lines.pop();
    for (const line of lines) {
      const space = line.indexOf(' ');
      const message = Buffer.from(line.slice(space + 1));
      for (const each of channels.get(line.slice(0, space)) ?? []) each.send(message, { binary: false });
    }
  });
}).listen(publishPort, '127.0.0.1');
