// A client as an application has it: connects again whenever it is cut off,
// and resumes each of its channels from where it was.

import { Client, within } from './client.mjs';

export class Follower {
  client = null;
  recovered = []; // of each resumption
  losses = []; // how connections ended
  changes = 0;
  resyncs = [];
  onConnect = null; // before it subscribes

  #held = new Map(); // by channel: the last subscription
  #stopped = false;
  #failure = null;

  #options; // of its connections

  constructor({ token, channels, ...options }) {
    this.#options = options;
    this.token = token;
    this.channels = channels;
  }

  async start() {
    await this.#connect();
    this.#watch();
    return this;
  }

  subscription(channel = this.channels[0]) {
    return this.client.subscriptions.get(channel);
  }

  async #connect() {
    const client = await Client.connect({ ...this.#options, token: this.token });
    this.client = client;
    this.onConnect?.(client);
    await Promise.all(this.channels.map(async (channel) => {
      const held = this.#held.get(channel);
      const from = held?.position ?? undefined;
      const s = await client.subscribe(channel, from === undefined ? {} : { from, cache: held });
      if (from !== undefined) this.recovered.push(s.recovered);
    }));
  }

  /** What is held is the newest that had ever been ready. */
  #keep() {
    const { client } = this;
    client.check();
    for (const channel of this.channels) {
      const s = client.subscriptions.get(channel);
      if (!s) continue;
      this.changes += s.changes;
      this.resyncs.push(...s.resyncs);
      if (s.state === 'ready') {
        this.#held.set(channel, s);
      } else if (s.changes > 0) {
        // Cut off while it caught up: it will get the same once more.
        this.changes -= s.changes;
      }
    }
  }

  async #watch() {
    for (;;) {
      const loss = await this.client.ended;
      try {
        this.#keep();
      } catch (error) {
        this.#failure = error;
      }
      if (this.#stopped || this.#failure) return;
      this.losses.push({ ...loss, retryAfter: this.client.closing?.retry_after_ms });
      for (;;) {
        try {
          await this.#connect();
          if (this.#stopped) await this.client.cut();
          break;
        } catch (error) {
          this.client?.violation && (this.#failure = this.client.violation);
          if (this.#stopped || this.#failure) return;
          this.client?.socket.terminate();
          await new Promise((resolve) => setTimeout(resolve, 30));
        }
      }
    }
  }

  /** Connected, and everything has been delivered. */
  async settle(ms = 30000) {
    const end = Date.now() + ms;
    for (;;) {
      if (this.#failure) throw this.#failure;
      try {
        const { client } = this;
        if (!client.closed && client.subscriptions.size === this.channels.length) {
          await client.settle(Math.max(end - Date.now(), 1));
          client.check();
          return this;
        }
      } catch (error) {
        this.client.check();
        if (Date.now() > end) throw error;
      }
      if (Date.now() > end) throw new Error(`not settled within ${ms} ms (${this.channels})`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  async stop() {
    this.#stopped = true;
    await within(5000, this.client.cut(), 'close');
    if (this.#failure) throw this.#failure;
  }
}
