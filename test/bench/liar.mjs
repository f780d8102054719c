// node test/bench/liar.mjs: the load generator finds out a server that loses a message, sends one twice, or
// swaps two. The server is Node's ws, with a fault in what it sends to its second client.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createServer } from 'node:net';
import { createRequire } from 'node:module';
import { once } from 'node:events';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
const { WebSocketServer } = createRequire(path.join(root, 'bench/package.json'))('ws');
const MESSAGES = 6;

const faults = {
  none: (lines) => lines,
  'one is lost': (lines) => lines.filter((_, i) => i !== 2),
  'the last is lost': (lines) => lines.slice(0, -1),
  'one comes twice': (lines) => lines.flatMap((line, i) => (i === 2 ? [line, line] : [line])),
  'two are swapped': (lines) => [lines[1], lines[0], ...lines.slice(2)],
};

async function listening(server) {
  if (server.address() === null) await once(server, 'listening');
  return server.address().port;
}

for (const [name, fault] of Object.entries(faults)) {
  const server = new WebSocketServer({ port: 0, host: '127.0.0.1', perMessageDeflate: false });
  const clients = [];
  server.on('connection', (socket) => clients.push(socket));
  const publisher = createServer((socket) => {
    let text = '';
    socket.on('error', () => {});
    socket.on('data', (data) => {
      text += data;
      const lines = text.split('\n').filter(Boolean).map((line) => line.slice(line.indexOf(' ') + 1));
      if (!text.endsWith('\n') || lines.length < MESSAGES) return;
      clients.forEach((client, i) => { for (const line of i === 1 ? fault(lines) : lines) client.send(line); });
    });
  });
  publisher.listen(0, '127.0.0.1');

  const load = spawn(path.join(root, 'build/bench/load'), [], { stdio: ['pipe', 'pipe', 'inherit'] });
  const events = createInterface({ input: load.stdout })[Symbol.asyncIterator]();
  const next = async (...wanted) => {
    for (;;) {
      const { value, done } = await events.next();
      assert.ok(!done, `${name}: the load generator ended before ${wanted}`);
      const event = JSON.parse(value);
      if (wanted.includes(event.event)) return event;
    }
  };
  const send = (command) => load.stdin.write(`${JSON.stringify(command)}\n`);
  send({ do: 'open', protocol: 'text', port: await listening(server), connections: 3 });
  await next('open');
  send({ do: 'publish', via: 'line', port: await listening(publisher), messages: MESSAGES, burst: MESSAGES, timeout_ms: 300 });
  const event = await next('wrong', 'published');
  assert.equal(event.event, name === 'none' ? 'published' : 'wrong', `${name}: ${JSON.stringify(event)}`);
  if (name === 'none') assert.equal(event.deliveries, 3 * MESSAGES);
  const ended = once(load, 'exit');
  load.stdin.end(); // as good as quit
  assert.equal((await ended)[0], name === 'none' ? 0 : 1, `${name}: exit status`);
  for (const client of clients) client.terminate();
  server.close();
  publisher.close();
  console.log(`bench: ${name}: ${name === 'none' ? 'verified' : 'found out'}`);
}
process.exit();
