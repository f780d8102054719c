// Runs the examples of the documentation.
//
//   node test/docs/examples.mjs FILE.md ...
//
// Every fenced block of conf, sql, sh, js or json has to say in its info string what becomes of it:
//
//   ```sql test=NAME             psql runs it; an error fails
//   ```sh test=NAME              bash runs it, in the project's directory; an error fails
//   ```conf test=NAME            settings of the cluster; before anything else of NAME
//   ```js test=NAME              a module that runs on in the background until NAME's next one;
//                                it has WebSocket and, as a page has, IndexedDB, and may import
//                                pg-changefeed as it was built last, and what that is tested with
//   ```json test=NAME send       sends each line as a message on NAME's WebSocket
//   ```json test=NAME send new   the same on a new connection, in place of the old one
//   ```json test=NAME receive    waits for these messages, in this order
//   ```json test=NAME receive any    the same, in whatever order they come
//   ```text test=NAME output     waits until these lines are in the output of the js that runs, or
//                                else of the last block of sql or sh, in this order; any white space
//                                is as good as another
//   ```… from=FILE               is not run, but has to stand in that file like this, indentation and ends of lines aside
//   ```… notest="why not"        is not run
//
// Blocks of the same NAME run one after the other on a cluster of their own, made when the first
// one comes. In expected text and JSON strings, "…" stands for anything. localhost:8040 is replaced
// by where the cluster listens, <JWT> by the last token that sql has printed, <position> by the last
// one in a message that was waited for, or in what sh has printed; prompt() of js gives the token, too. Pings are answered and
// not shown.

import { execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

const ROOT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
const WS = createRequire(path.join(ROOT, 'test/package.json')).resolve('ws');
const { default: WebSocket } = await import(WS);

const PATIENCE = 15000; // ms for anything that is waited for
const CHECKED = new Set(['conf', 'sql', 'sh', 'js', 'json']);
const POSITION = /"position":"([^"]+)"/g;
const TOKEN = /\beyJ[\w-]+\.[\w-]+\.[\w-]+/g;

// ---- reading ----

function blocksOf(file) {
  const blocks = [];
  let block = null;
  for (const [i, line] of readFileSync(file, 'utf8').split('\n').entries()) {
    if (block === null && line.startsWith('```')) {
      const [language = '', ...words] = line.slice(3).match(/\w+="[^"]*"|\S+/g) ?? [];
      block = { file, line: i + 1, language, words, lines: [] };
      for (const word of words) {
        if (word.startsWith('test=')) block.test = word.slice(5);
        if (word.startsWith('from=')) block.from = word.slice(5);
        if (word.startsWith('notest=')) block.notest = true;
      }
    } else if (block !== null && line.startsWith('```')) {
      blocks.push(block);
      block = null;
    } else if (block !== null) block.lines.push(line);
  }
  if (block !== null) throw new Error(`${file}:${block.line}: block without an end`);
  return blocks;
}

// ---- comparing ----

const pattern = (text) => new RegExp(`^${text.split('…').map((part) => part.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&')).join('.*')}$`, 's');

function matches(expected, actual) {
  if (typeof expected === 'string') return typeof actual === 'string' && pattern(expected).test(actual);
  if (typeof expected !== 'object' || expected === null || typeof actual !== 'object' || actual === null) return expected === actual;
  const keys = Object.keys(expected);
  return Array.isArray(expected) === Array.isArray(actual) && keys.length === Object.keys(actual).length
    && keys.every((key) => key in actual && matches(expected[key], actual[key]));
}

// ---- running ----

const scratch = mkdtempSync(path.join(os.tmpdir(), 'changefeed-docs.'));
const packages = path.join(scratch, 'node_modules');
mkdirSync(packages);
symlinkSync(path.join(ROOT, 'client'), path.join(packages, 'pg-changefeed'));
const installed = path.join(ROOT, 'client/node_modules');
if (existsSync(installed)) for (const name of readdirSync(installed)) if (!name.startsWith('.')) symlinkSync(path.join(installed, name), path.join(packages, name));

class Runner {
  constructor(name) {
    this.name = name;
    this.data = `/var/tmp/pg_changefeed-docs-${process.pid}-${name}`;
    this.settings = [];
    this.output = '';
    this.messages = [];
  }

  cluster(...args) {
    return execFileSync(path.join(ROOT, 'scripts/cluster'), [...args, '--data', this.data], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] });
  }

  start() {
    if (this.env !== undefined) return;
    // The examples make the extension themselves
    const printed = this.cluster('start', '--no-build', '--no-extension', '--database', 'docs', ...this.settings.flatMap((each) => ['--set', each]));
    const variables = Object.fromEntries([...printed.matchAll(/^(\w+)='?(.*?)'?$/gm)].map(([, name, value]) => [name, value]));
    this.env = { ...process.env, ...variables };
    this.host = new URL(variables.HTTP_URL).host;
  }

  // The port may have been taken since it was chosen, but that is rare.
  async serving() {
    const end = Date.now() + PATIENCE;
    for (;;) {
      try {
        await fetch(this.env.HTTP_URL);
        return;
      } catch (error) {
        if (Date.now() > end) throw new Error(`nothing answers at ${this.env.HTTP_URL}`, { cause: error });
        await sleep(50);
      }
    }
  }

  fill(text) {
    return text.replaceAll('localhost:8040', this.host).replaceAll('<JWT>', this.token ?? '<no token was made>')
      .replaceAll('<position>', this.position ?? '<no position was received>');
  }

  run(command, args, input) {
    try {
      this.output = execFileSync(command, args, { encoding: 'utf8', input, env: this.env, cwd: ROOT, stdio: ['pipe', 'pipe', 'pipe'] });
    } catch (error) {
      throw new Error(`${command} failed:\n${error.stdout}${error.stderr}`);
    }
    this.token = this.output.match(TOKEN)?.at(-1) ?? this.token;
    this.position = [...this.output.matchAll(POSITION)].at(-1)?.[1] ?? this.position;
  }

  async conf(block) {
    if (this.env !== undefined) throw new Error('settings come first');
    for (const line of block.lines) {
      const [, name, value] = line.match(/^([\w.]+) = '?([^'#]*?)'?(?: *#.*)?$/) ?? [];
      if (name !== undefined) this.settings.push(`${name}=${value}`);
      else if (line.trim() !== '' && !line.startsWith('#')) throw new Error(`not a setting: ${line}`);
    }
  }

  async sql(block) {
    this.start();
    this.run('psql', ['-X', '-v', 'ON_ERROR_STOP=1'], this.fill(block.lines.join('\n')));
  }

  async sh(block) {
    this.start();
    await this.serving();
    this.run('bash', ['-euo', 'pipefail'], this.fill(block.lines.join('\n')));
  }

  async js(block) {
    this.start();
    await this.serving();
    const file = path.join(scratch, `${this.name}-${block.line}.mjs`);
    const text = block.lines.join('\n');
    const prelude = `import WebSocket from ${JSON.stringify(WS)};\nglobalThis.prompt = () => ${JSON.stringify(this.token)};\nglobalThis.WebSocket ??= WebSocket;\n`
      + (text.includes('pg-changefeed/offline') ? "import 'fake-indexeddb/auto';\n" : '');
    writeFileSync(file, prelude + this.fill(text));
    this.child?.kill();
    this.child = spawn(process.execPath, [file], { env: this.env, stdio: ['ignore', 'pipe', 'inherit'] });
    this.child.on('exit', (code) => { this.failed = code !== null && code !== 0; });
    this.logged = '';
    this.child.stdout.on('data', (data) => { this.logged += data; });
    // What follows is meant to be seen by it.
    const end = Date.now() + PATIENCE;
    let before;
    do {
      before = this.logged;
      await sleep(500);
    } while (Date.now() < end && (this.logged === '' || this.logged !== before));
  }

  async text(block) {
    if (!block.words.includes('output')) throw new Error('text is only tested as output');
    const tidy = (line) => line.replace(/\s+/g, ' ').trim();
    const expected = block.lines.map(tidy).filter(Boolean);
    const end = Date.now() + PATIENCE;
    for (;;) {
      const output = this.logged ?? this.output;
      let next = 0;
      for (const line of output.split('\n')) if (next < expected.length && pattern(expected[next]).test(tidy(line))) next += 1;
      if (next === expected.length) return;
      if (this.failed || Date.now() > end) throw new Error(`missing line: ${expected[next]}\nthe output was:\n${output}`);
      await sleep(50);
    }
  }

  async connect() {
    this.start();
    await this.serving();
    this.socket?.terminate();
    const messages = [];
    const socket = new WebSocket(this.env.WS_URL, 'changefeed.v1');
    socket.on('message', (data) => {
      const message = JSON.parse(data);
      if (message.type === 'ping') socket.send('{"type":"pong"}');
      else messages.push(message);
    });
    socket.on('close', (code) => messages.push({ closed: code }));
    await new Promise((resolve, reject) => {
      socket.on('open', resolve);
      socket.on('error', reject);
    });
    Object.assign(this, { socket, messages });
  }

  async json(block) {
    if (this.socket === undefined || block.words.includes('new')) await this.connect();
    const lines = block.lines.filter((line) => line.trim() !== '');
    if (block.words.includes('send')) {
      for (const line of lines) {
        JSON.parse(line);
        this.socket.send(this.fill(line));
      }
      return;
    }
    if (!block.words.includes('receive')) throw new Error('json is either sent or received');
    const any = block.words.includes('any');
    for (const line of lines) {
      const expected = JSON.parse(line);
      const end = Date.now() + PATIENCE;
      for (;;) {
        const at = any ? this.messages.findIndex((message) => matches(expected, message)) : 0;
        if (at >= 0 && this.messages.length > 0) {
          if (!any && !matches(expected, this.messages[0])) throw new Error(`expected ${line}\nreceived ${JSON.stringify(this.messages[0])}`);
          const [message] = this.messages.splice(at, 1);
          this.position = message.position ?? this.position;
          break;
        }
        if (Date.now() > end) throw new Error(`expected ${line}\nreceived ${JSON.stringify(this.messages)}`);
        await sleep(20);
      }
    }
    if (any && this.messages.length > 0) throw new Error(`not expected: ${JSON.stringify(this.messages)}`);
  }

  stop() {
    this.child?.kill();
    this.socket?.terminate();
    this.cluster('stop', '--mode', 'immediate', '--remove');
  }
}

// ---- all of it ----

const runners = new Map();
let failures = 0;
let run = 0;

function cleanUp() {
  for (const runner of runners.values()) runner.stop();
  runners.clear();
  rmSync(scratch, { recursive: true, force: true });
}
for (const signal of ['SIGINT', 'SIGTERM']) {
  process.on(signal, () => {
    cleanUp();
    process.exit(1);
  });
}

const compact = (text) => text.split('\n').map((line) => line.trim()).filter((line) => line !== '').join('\n');

const broken = new Set();
try {
  for (const block of process.argv.slice(2).flatMap(blocksOf)) {
    const where = `${path.relative(ROOT, path.resolve(block.file))}:${block.line}`;
    if (block.from !== undefined) {
      run += 1;
      const found = existsSync(path.join(ROOT, block.from)) && compact(readFileSync(path.join(ROOT, block.from), 'utf8')).includes(compact(block.lines.join('\n')));
      console.log(`${found ? 'ok' : 'not ok'} - ${where}: excerpt of ${block.from}`);
      if (!found) failures += 1;
      continue;
    }
    if (block.test === undefined) {
      if (CHECKED.has(block.language) && !block.notest) {
        console.log(`not ok - ${where}: the block says none of test=, from= and notest=`);
        failures += 1;
      }
      continue;
    }
    // What follows a failure in the same group would only fail as well.
    if (broken.has(block.test)) continue;
    if (!runners.has(block.test)) runners.set(block.test, new Runner(block.test));
    run += 1;
    try {
      await runners.get(block.test)[block.language](block);
      console.log(`ok - ${where} (${block.test})`);
    } catch (error) {
      console.log(`not ok - ${where} (${block.test})\n${error.message.replace(/^/gm, '#   ')}`);
      failures += 1;
      broken.add(block.test);
    }
  }
} finally {
  cleanUp();
}
console.log(`${run} examples run, ${failures} failed`);
process.exit(failures === 0 && run > 0 ? 0 : 1);
