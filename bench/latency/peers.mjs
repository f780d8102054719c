// The peers: what a team writes to get changes of a table to browsers, each in a few lines. They do what
// such programs do and no more: a map from channel to sockets, and each change sent as it came.
//
//   node bench/latency/peers.mjs notify|postgres|lds       prints its port; ends when stdin ends
//
//   notify    a trigger calls pg_notify with the row as JSON (notify.sql); one LISTEN connection
//   postgres  the npm package "postgres": subscribe, which reads a publication by pgoutput
//   lds       the npm package "@graphile/lds", which asks a wal2json slot for changes; it may ask again after
//             1 ms instead of its default of 125 ms
//
// Connects with the PG* variables. A client sends {"subscribe":"<channel>"} and is answered {"type":"ready"};
// then it gets {"channel":…,"op":…,"row":{…}} for every change.

import lds from '@graphile/lds';
import pg from 'pg';
import postgres from 'postgres';
import { WebSocketServer } from 'ws';

const { PGHOST: host, PGPORT: port, PGUSER: user, PGDATABASE: database } = process.env;
const channels = new Map();

function fanOut(channel, text) {
  const sockets = channels.get(channel);
  if (sockets === undefined) return;
  for (const socket of sockets) socket.send(text);
}

function changed(op, table, row) {
  const channel = `${table}:${row.customer_id}`;
  if (channels.has(channel)) fanOut(channel, JSON.stringify({ channel, op, row }));
}

const peers = {
  async notify() {
    const db = new pg.Client({ host, port, user, database });
    await db.connect();
    db.on('notification', ({ payload }) => fanOut(JSON.parse(payload).channel, payload));
    await db.query('LISTEN bridge');
  },
  async postgres() {
    const sql = postgres({ host, port: Number(port), user, database, publications: 'bench' });
    await sql.subscribe('*', (row, { command, relation }) => changed(command, relation.table, row));
  },
  async lds() {
    await lds.default(`postgres://${user}@${host}:${port}/${database}`, ({ _: op, table, data }) => {
      if (op === 'updateC' || op === 'insertC') changed(op, table, data);
    }, { slotName: 'bench_lds', tablePattern: 'public.*', sleepDuration: 1, temporary: true });
  },
};
await peers[process.argv[2]]();

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
