// The peer: a trigger calls pg_notify with the row as JSON, this program listens and fans out
// through WebSockets. It does what such bridges do and no more: one LISTEN connection, a map
// from channel to sockets, the payload sent on as it came.
//
//   node bench/latency/bridge.mjs            prints its port; ends when stdin ends
//
// Connects with the PG* variables. A client sends {"subscribe":"<channel>"} and is answered
// {"type":"ready"}; then it gets {"channel":…,"op":…,"row":{…}} for every change.

import pg from 'pg';
import { WebSocketServer } from 'ws';

const channels = new Map();

const db = new pg.Client();
await db.connect();
db.on('notification', ({ payload }) => {
  const sockets = channels.get(JSON.parse(payload).channel);
  if (sockets === undefined) return;
  for (const socket of sockets) socket.send(payload);
});
await db.query('LISTEN bridge');

const server = new WebSocketServer({ host: '127.0.0.1', port: 0, perMessageDeflate: false });
server.on('connection', (socket) => {
  socket.on('message', (data) => {
    const { subscribe } = JSON.parse(data);
    if (!channels.has(subscribe)) channels.set(subscribe, new Set());
    channels.get(subscribe).add(socket);
    socket.send('{"type":"ready"}');
  });
  socket.on('close', () => {
    for (const sockets of channels.values()) sockets.delete(socket);
  });
});
server.on('listening', () => console.log(server.address().port));

process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
