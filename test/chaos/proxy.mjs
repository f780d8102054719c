// A network between clients and the server that can be cut, hang, and be slow.

import net from 'node:net';

export class Proxy {
  url = null;
  zombies = 0; // connections of which the server does not know yet that nobody is there

  #server = null;
  #pairs = new Set();
  #hanging = false;
  #delay = 0; // ms

  /** Where to; the server may have another port when it comes back. */
  async start(target) {
    this.#server = net.createServer((client) => this.#connect(client, target()));
    await new Promise((resolve, reject) => {
      this.#server.on('error', reject);
      this.#server.listen(0, '127.0.0.1', resolve);
    });
    this.url = `ws://127.0.0.1:${this.#server.address().port}/v1/socket`;
    return this;
  }

  #connect(client, { host, port }) {
    const upstream = net.connect({ host, port });
    const pair = { client, upstream, hangs: this.#hanging };
    this.#pairs.add(pair);
    const end = () => {
      this.#pairs.delete(pair);
      client.destroy();
      if (!pair.zombie) upstream.destroy();
    };
    for (const socket of [client, upstream]) {
      socket.setNoDelay(true);
      socket.on('error', () => {});
    }
    client.on('close', end);
    upstream.on('close', () => {
      if (pair.zombie) this.zombies -= 1;
      pair.zombie = false;
      end();
    });
    const pass = (from, to) => {
      const late = []; // what waits, in order
      const write = (data) => {
        // Who hangs loses what was on its way: the connection is not used again.
        if (to.destroyed || pair.hangs || pair.zombie || to.write(data)) return;
        from.pause();
        to.once('drain', () => from.resume());
      };
      const next = () => setTimeout(() => {
        write(late.shift());
        if (late.length > 0) next();
      }, this.#delay);
      from.on('data', (data) => {
        if (this.#delay === 0 && late.length === 0) {
          write(data);
          return;
        }
        late.push(data);
        if (late.length === 1) next();
      });
    };
    pass(client, upstream);
    pass(upstream, client);
  }

  get connections() {
    return this.#pairs.size;
  }

  /** Everybody is cut off at once. */
  cut() {
    for (const { client, upstream } of [...this.#pairs]) {
      client.destroy();
      upstream.destroy();
    }
  }

  /** The clients are gone, and the server is not told: what it sends goes nowhere, and nothing answers. */
  abandon() {
    for (const pair of [...this.#pairs]) {
      if (pair.zombie || pair.upstream.destroyed) continue;
      pair.zombie = true;
      this.zombies += 1;
      pair.client.destroy();
    }
  }

  /** Nothing gets through, in either direction, until it ends; then all of them are cut. */
  async hang(during) {
    this.#hanging = true;
    for (const pair of this.#pairs) pair.hangs = true;
    await during;
    this.#hanging = false;
    for (const pair of [...this.#pairs]) {
      if (!pair.hangs) continue;
      pair.client.destroy();
      pair.upstream.destroy();
    }
  }

  async slow(ms, during) {
    this.#delay = ms;
    await during;
    this.#delay = 0;
  }

  close() {
    this.cut();
    for (const { upstream } of this.#pairs) upstream.destroy();
    this.#server.close();
  }
}
