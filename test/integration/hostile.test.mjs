// Clients that mean no good end in the documented error, and a hundred others notice nothing: every
// change reaches every one of them, soon, and nobody is closed.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { after, before, test } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

import { Client, until } from './lib/client.mjs';
import { reload, Session } from './lib/psql.mjs';

const SUBSCRIBERS = 100;
const PERIOD_MS = 50;

// Only that nobody is stalled; how long it takes is printed.
const STALLED_MS = 30000;

const port = new URL(process.env.WS_URL).port;
let db;
let writer;
let token;
const clients = [];
let running = true;
let writing;
let phase = null; // { delays, largest }
let n = 0;
const sent = new Map(); // tick to { at, missing, phase }

before(async () => {
  db = new Session();
  writer = new Session();
  await db.exec(`CREATE TABLE hostile_ticks (id int PRIMARY KEY, n text NOT NULL);
    INSERT INTO hostile_ticks VALUES (1, '');
    CREATE ROLE hostile_web; GRANT SELECT ON hostile_ticks TO hostile_web; SELECT changefeed.allow_role('hostile_web');
    SELECT changefeed.create_channel('hostile_ticks', 'hostile_ticks')`);
  await reload(db, {
    'changefeed.max_connections_per_address': '200',
    'changefeed.max_handshake_rate_per_address': '20',
    'changefeed.handshake_timeout': '2s',
    // So little that a busy machine takes more of somebody in these seconds
    'changefeed.max_receive_rate': '32kB',
    'changefeed.max_message': '256kB',
  });
  token = await db.token({ role: 'hostile_web', sub: 'good' });
  await (await Client.connectSoon({ token })).close();
  for (let i = 0; i < SUBSCRIBERS; i += 1) {
    const client = await Client.connect({ token: await db.token({ role: 'hostile_web', sub: `good ${i % 10}` }) });
    clients.push(client);
    const subscription = await client.subscribe('hostile_ticks');
    subscription.onChange = (change) => {
      const tick = sent.get(change.set.n);
      const delay = performance.now() - tick.at;
      tick.missing -= 1;
      tick.phase.delays.push(delay);
    };
    await subscription.ready();
  }
});
after(async () => {
  running = false;
  await writing;
  for (const client of clients) client.cut();
  await reload(db, {
    'changefeed.max_connections_per_address': null,
    'changefeed.max_handshake_rate_per_address': null,
    'changefeed.handshake_timeout': null,
    'changefeed.max_receive_rate': null,
    'changefeed.max_message': null,
  });
  await writer.close();
  await db.close();
});

async function write() {
  while (running) {
    n += 1;
    sent.set(String(n), { at: performance.now(), missing: SUBSCRIBERS, phase });
    await writer.exec(`UPDATE hostile_ticks SET n = '${n}'`);
    await new Promise((resolve) => setTimeout(resolve, PERIOD_MS));
  }
}

async function attack(names, seconds) {
  const child = spawn(process.execPath, [fileURLToPath(new URL('lib/attacks.mjs', import.meta.url)), names.join(','),
    String(seconds), port, token], { stdio: ['ignore', 'pipe', 'inherit'] });
  let out = '';
  child.stdout.on('data', (data) => { out += data; });
  const [code] = await once(child, 'close');
  assert.equal(code, 0);
  return JSON.parse(out);
}

const memory = async () => Number(await db.value('SELECT sum(memory_bytes) FROM changefeed.stat_gateways'));
const at = (sorted, q) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q))];

/** Runs that, with the delays of the changes that are written meanwhile, and the gateways' largest memory. */
async function during(name, run) {
  const mine = { name, delays: [], largest: 0 };
  phase = mine;
  writing ??= write();
  let watching = true;
  const watch = (async () => {
    while (watching) {
      mine.largest = Math.max(mine.largest, await memory());
      await pause(500);
    }
  })();
  mine.result = await run();
  watching = false;
  await watch;
  return mine;
}

test('attacks end in the documented errors, and others notice nothing', async (t) => {
  const pid = await db.value('SELECT string_agg(pid::text, \',\') FROM changefeed.stat_gateways');
  const start = await memory();
  const quiet = [];
  const hostile = [];
  quiet.push(await during('quiet', () => pause(3000)));
  hostile.push(await during('floods', () => attack(['messages', 'pings', 'fragments', 'subscriptions', 'oversized', 'reconnects'], 13)));
  quiet.push(await during('quiet', () => pause(2000)));
  hostile.push(await during('oddities', () => attack(['half_open', 'silent', 'bodies', 'connections', 'reserved_bits', 'opcodes', 'continuations', 'long_pings',
    'binary', 'utf8', 'nesting', 'closed_nesting', 'ids', 'early', 'early_calls', 'garbage', 'pipelined', 'urls', 'headers'], 6)));
  quiet.push(await during('quiet', () => pause(2000)));
  running = false;
  await writing;
  await until(() => [...sent.values()].every((tick) => tick.missing === 0), () => `changes that did not arrive: ${[...sent.values()].filter((tick) => tick.missing !== 0).length}`, STALLED_MS);

  for (const { name, delays, largest } of [...quiet, ...hostile]) {
    delays.sort((a, b) => a - b);
    t.diagnostic(`${name}: ${delays.length} changes, median ${at(delays, 0.5).toFixed(1)} ms, 99 % ${at(delays, 0.99).toFixed(1)} ms, `
      + `longest ${at(delays, 1).toFixed(1)} ms; gateway ${(largest / 1048576).toFixed(1)} MB (${(start / 1048576).toFixed(1)} MB before)`);
  }
  const outcomes = Object.assign({}, ...hostile.map(({ result }) => result));
  for (const [name, outcome] of Object.entries(outcomes)) t.diagnostic(`${name}: ${JSON.stringify(outcome)}`);

  // Nobody lost anything, nobody was closed, nobody was stalled.
  for (const client of clients) {
    client.check();
    assert.equal(client.closed, null);
    const [subscription] = client.subscriptions.values();
    assert.deepEqual(subscription.resyncs, []);
    assert.deepEqual(subscription.rows().map((row) => row.n), [String(n)]);
  }
  for (const { delays } of [...quiet, ...hostile]) assert.ok(at(delays, 1) < STALLED_MS);
  for (const tick of sent.values()) assert.equal(tick.missing, 0);

  // What attackers get is what is documented, and nothing else.
  const refused = ['429', 'dropped'];
  const expected = {
    messages: { must: ['53400', '4005'], may: [] },
    pings: { must: ['53400', '4005'], may: [] },
    fragments: { must: ['53400', '4005'], may: [] },
    subscriptions: { must: ['53400', '4005'], may: ['57014'] },
    oversized: { must: ['1009'], may: refused },
    reconnects: { must: ['429'], may: ['open', 'dropped'] },
    half_open: { must: ['408'], may: refused },
    silent: { must: ['408'], may: refused },
    bodies: { must: ['408'], may: refused },
    connections: { must: ['429', 'open'], may: ['dropped'] },
    reserved_bits: { must: [], may: ['1002', ...refused] },
    opcodes: { must: [], may: ['1002', ...refused] },
    continuations: { must: [], may: ['1002', ...refused] },
    long_pings: { must: [], may: ['1002', ...refused] },
    binary: { must: ['1003'], may: refused },
    utf8: { must: ['1007'], may: refused },
    nesting: { must: ['22P02'], may: ['open', ...refused] },
    closed_nesting: { must: ['22P02'], may: ['open', ...refused] },
    ids: { must: ['08P01'], may: ['open', ...refused] },
    early: { must: ['08003'], may: ['open', ...refused] },
    early_calls: { must: ['08003'], may: ['open', ...refused] },
    garbage: { must: [], may: ['400', '403', '404', '405', 'open', ...refused] },
    pipelined: { must: ['404'], may: refused },
    urls: { must: [], may: ['414', '431', ...refused] },
    headers: { must: [], may: ['431', ...refused] },
  };
  for (const [name, { must, may }] of Object.entries(expected)) {
    const got = Object.keys(outcomes[name]);
    for (const code of must) assert.ok(got.includes(code), `${name}: no ${code} in ${got}`);
    for (const code of got) assert.ok(must.includes(code) || may.includes(code), `${name}: ${code} is not documented`);
    assert.ok(got.length > 0, name);
  }

  // The gateway is the same one, and has not grown by what it was sent.
  assert.equal(await db.value('SELECT string_agg(pid::text, \',\') FROM changefeed.stat_gateways'), pid);
  const largest = Math.max(...hostile.map((one) => one.largest));
  assert.ok(largest - start < 64 * 1048576, `the gateway has grown from ${start} to ${largest} bytes`);

  const [counted] = await db.rows(`SELECT throttled > 0 AS throttled, refused_by_code ->> 'too_many_handshakes' IS NOT NULL AS handshakes,
      refused_by_code ->> 'too_many_connections_of_address' IS NOT NULL AS connections, refused_by_code ->> 'timeout' IS NOT NULL AS timeouts
    FROM changefeed.stat_gateways`);
  assert.deepEqual(counted, { throttled: true, handshakes: true, connections: true, timeouts: true });
});
