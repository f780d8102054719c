// A TCP proxy that can cut: at once, in the middle of what it passes on, or by passing nothing on any more.

import net from 'node:net';

export class Proxy {
  #sockets = new Set();
  #server;
  /** Pass on so many bytes of the server's, then cut; Infinity: never. */
  budget = Infinity;
  /** Take everything and pass nothing on, as a network does that has gone. */
  silent = false;
  /** Refuse connections. */
  refuse = false;

  static async start(target) {
    const proxy = new Proxy();
    const { hostname, port } = new URL(target);
    proxy.#server = net.createServer((near) => {
      if (proxy.refuse) return near.destroy();
      const far = net.connect(Number(port), hostname);
      const end = () => {
        near.destroy();
        far.destroy();
        proxy.#sockets.delete(end);
      };
      proxy.#sockets.add(end);
      for (const socket of [near, far]) socket.on('error', end).on('close', end);
      end.silent = false;
      near.on('data', (data) => proxy.silent || end.silent || far.write(data));
      far.on('data', (data) => {
        if (proxy.silent || end.silent) return;
        if (data.length <= proxy.budget) {
          proxy.budget -= data.length;
          near.write(data);
        } else {
          near.write(data.subarray(0, proxy.budget), end);
          proxy.budget = Infinity;
        }
      });
    });
    await new Promise((resolve) => { proxy.#server.listen(0, '127.0.0.1', resolve); });
    proxy.url = `ws://127.0.0.1:${proxy.#server.address().port}`;
    return proxy;
  }

  get connections() {
    return this.#sockets.size;
  }

  /** The connections of now stay silent for ever; new ones are good. */
  stale() {
    for (const end of this.#sockets) end.silent = true;
    this.silent = false;
  }

  cut() {
    for (const end of [...this.#sockets]) end();
  }

  async close() {
    this.cut();
    await new Promise((resolve) => { this.#server.close(resolve); });
  }
}
