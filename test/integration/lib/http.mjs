// Clients over HTTP: event streams as browsers read them, polls, and one that
// changes its transport. What they receive goes through the strict client.

import { EventEmitter, once } from 'node:events';
import { Agent, request as httpRequest } from 'node:http';
import { text as textOf } from 'node:stream/consumers';

import { Client, within } from './client.mjs';

export const address = (path, channels, more = {}) => {
  const url = new URL(path, process.env.HTTP_URL);
  for (const channel of channels) url.searchParams.append('channel', channel);
  for (const [name, value] of Object.entries(more)) if (value !== undefined && value !== null) url.searchParams.append(name, value);
  return url;
};

export const bearer = (token) => (token ? { Authorization: `Bearer ${token}` } : {});

/** In place of a WebSocket: what is sent is said by the request already. */
class Stub extends EventEmitter {
  send() {}

  terminate() {
    this.onEnd?.();
    this.end();
  }

  close() {
    this.terminate();
  }

  end() {
    if (this.ended) return;
    this.ended = true;
    this.emit('close', 1006, '');
  }
}

/**
 * Subscriptions as the request asks for them; `held`: of earlier requests, by
 * channel. Positions are a text as the server gives them, or null.
 */
function strict(channels, position, held) {
  const socket = new Stub();
  const client = new Client({ socket });
  socket.emit('open');
  let parts = position === null ? channels.map(() => '-') : position.split(',');
  if (parts.length === 1) parts = channels.map(() => parts[0]);
  channels.forEach((channel, i) => {
    const options = parts[i] === '-' ? {} : { from: parts[i], cache: held.get(channel) };
    client.subscribe(channel, { ...options, ms: 60000 }).catch(() => {});
  });
  return { socket, client };
}

/** The rows as they are now, for whoever goes on from here. */
function keep(client, channels, position, held) {
  const kept = new Map();
  const parts = position.split(',');
  channels.forEach((channel, i) => {
    const part = parts.length === 1 ? parts[0] : parts[i];
    const s = client.subscriptions.get(channel);
    if (part === '-' || !s) return;
    if (s.state === 'new') {
      kept.set(channel, held.get(channel));
      return;
    }
    kept.set(channel, { entities: new Map([...s.entities].map(([name, { key, columns, rows }]) => [name, { key, columns, rows: new Map(rows) }])) });
  });
  return kept;
}

/** One request to /v1/events. Not with fetch: in Node.js 18 a response that is aborted while nobody reads it stays open. */
export class Events {
  id = null; // the last one
  events = []; // { data, id }
  retry = null;
  onEvent = null;
  #request = null;
  #agent = new Agent({ keepAlive: true });

  constructor(channels, { token, position = null, held = new Map(), headers = {}, more = {} } = {}) {
    this.channels = channels;
    this.held = held;
    this.id = position;
    this.request = { headers: { ...bearer(token), ...(position !== null && { 'Last-Event-ID': position }), ...headers } };
    this.more = more;
    Object.assign(this, strict(channels, position, held));
    this.socket.onEnd = () => { this.#request?.destroy(); this.#agent.destroy(); };
    this.done = new Promise((resolve) => { this.client.ended.then(resolve); });
  }

  static async open(channels, options) {
    const events = new Events(channels, options);
    await events.start();
    return events;
  }

  async start() {
    this.#request = httpRequest(address('/v1/events', this.channels, this.more), { agent: this.#agent, headers: this.request.headers });
    this.#request.on('error', () => {}); // whoever waits for it is told
    const [body] = await within(20000, once(this.#request.end(), 'response'), 'head of an event stream').catch((error) => {
      this.#request.destroy();
      throw error;
    });
    this.response = { status: body.statusCode, headers: new Headers(body.headers), body };
    if (this.response.status !== 200) throw Object.assign(new Error(`status ${this.response.status}`), { response: this.response, body: JSON.parse(await textOf(body)) });
    if (this.response.headers.get('content-type') !== 'text/event-stream') throw new Error('no event stream');
    this.#read();
    return this;
  }

  async #read() {
    const decoder = new TextDecoder();
    let text = '';
    try {
      for await (const chunk of this.response.body) {
        text += decoder.decode(chunk, { stream: true });
        for (;;) {
          const end = text.indexOf('\n\n');
          if (end < 0) break;
          const block = text.slice(0, end);
          text = text.slice(end + 2);
          this.#take(block);
          if (this.pause) await this.pause;
        }
      }
    } catch (error) {
      if (this.client.violation === null && error.code !== 'ECONNRESET' && error.code !== 'ERR_STREAM_PREMATURE_CLOSE') this.client.violation = error;
    }
    this.socket.end();
  }

  #take(block) {
    const data = [];
    let { id } = this;
    for (const line of block.split('\n')) {
      const [, name, value] = line.match(/^([^:]*): ?(.*)$/s) ?? [];
      if (name === 'data') data.push(value);
      else if (name === 'id') id = value;
      else if (name === 'retry') this.retry = Number(value);
      else if (name !== '') throw new Error(`line ${JSON.stringify(line)} in an event stream`);
    }
    if (data.length !== 1) throw new Error(`${data.length} lines of data in an event`);
    if (this.cutAfter !== undefined && this.events.length >= this.cutAfter) return;
    this.socket.emit('message', data[0], false);
    this.client.check();
    this.events.push({ data: data[0], id });
    this.id = id;
    this.onEvent?.(this);
  }

  /** What to go on with. */
  state() {
    return { position: this.id, held: this.id === null ? new Map() : keep(this.client, this.channels, this.id, this.held) };
  }

  subscription(channel = this.channels[0]) {
    return this.client.subscriptions.get(channel);
  }

  async cut() {
    this.socket.terminate();
    await this.client.ended;
    return this.state();
  }
}

/** One request to /v1/poll, applied to what is held. `watch` gets the strict client before it gets the messages. */
export async function poll(channels, { token, position = null, held = new Map(), wait, headers = {}, more = {}, watch = () => {} } = {}) {
  const response = await within(70000, fetch(address('/v1/poll', channels, { from: position, wait, ...more }), { headers: { ...bearer(token), ...headers } }), 'poll');
  const { status } = response;
  const next = response.headers.get('changefeed-position');
  if (status === 304) return { response, status, messages: [], position: next, held, changes: 0 };
  const body = await response.text();
  if (status !== 200) return { response, status, error: JSON.parse(body) };
  const { client, socket } = strict(channels, position, held);
  watch(client);
  // As text, so that numbers keep all their digits.
  const messages = JSON.parse(body).messages.length === 0 ? [] : splitMessages(body);
  for (const message of messages) {
    socket.emit('message', message, false);
    client.check();
  }
  const changes = [...client.subscriptions.values()].reduce((sum, s) => sum + s.changes, 0);
  const result = {
    response, status, messages: messages.map((message) => JSON.parse(message)), position: JSON.parse(body).position, client, changes,
    resyncs: [...client.subscriptions.values()].flatMap((s) => s.resyncs),
  };
  result.held = keep(client, channels, result.position, held);
  result.rows = (channel = channels[0]) => client.subscriptions.get(channel).rows();
  return result;
}

/** The elements of "messages", as they were written. */
function splitMessages(body) {
  const parts = [];
  let depth = 0;
  let quoted = false;
  let start = 0;
  const from = body.indexOf('[') + 1;
  for (let i = from; i < body.length; i++) {
    const c = body[i];
    if (quoted) {
      if (c === '\\') i++;
      else if (c === '"') quoted = false;
    } else if (c === '"') quoted = true;
    else if (c === '{' || c === '[') {
      if (depth++ === 0) start = i;
    } else if (c === '}' || c === ']') {
      if (depth-- === 0) break;
      if (depth === 0) parts.push(body.slice(start, i + 1));
    }
  }
  return parts;
}
