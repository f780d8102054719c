// This project and its peers with one set of verbs, for scenarios in which all of them do the same:
// channels with numbers, subscribers, and messages with a number and a time in them.
//
// A system has: open (what the load generator needs to subscribe), publish (what it needs to publish), held()
// (the processes in front of which a burst waits), cpu() -> { server, system } in microseconds, memory() ->
// { process: {...} }, stop(). server is who holds the connections, the gateway or the peer; system is
// everything that takes part in delivery: with this project the feed worker, decoder and query workers as well.

import { Cluster } from './cluster.mjs';
import { MESSAGING, Peer } from './peers.mjs';
import { cpuOfAll, memoryOfAll } from './proc.mjs';

export { MESSAGING };

export const SCHEMA = (channels) => `
  CREATE ROLE bench_reader;
  CREATE TABLE feed (id int PRIMARY KEY, n bigint NOT NULL DEFAULT 0, sent_us bigint NOT NULL DEFAULT 0,
                     body text NOT NULL DEFAULT '');
  INSERT INTO feed (id) SELECT generate_series(1, ${channels});
  VACUUM ANALYZE feed;
  GRANT SELECT ON feed TO bench_reader;
  SELECT changefeed.allow_role('bench_reader');
  SELECT changefeed.create_channel('feed:{id}', 'feed');`;

export class Changefeed {
  // body: bytes of the column that makes the messages as large as is wanted
  static async start({ settings = {}, channels = 1, body = 64 } = {}) {
    const system = new Changefeed();
    system.cluster = new Cluster({ settings });
    for (const statement of SCHEMA(channels).split(';').filter((text) => text.trim() !== '')) await system.cluster.query(statement);
    system.token = await system.cluster.token({ role: 'bench_reader', sub: '1' });
    system.body = body;
    return system;
  }

  get open() {
    return { protocol: 'changefeed', port: this.cluster.feedPort, channel: 'feed:{i}', token: this.token };
  }

  // Commits are acknowledged before they are on disk: what is measured comes behind the commit.
  get publish() {
    return { via: 'pg', conninfo: `${this.cluster.conninfo} options='-c synchronous_commit=off'`, size: this.body };
  }

  held() {
    return this.cluster.processes().gateway;
  }

  cpu() {
    const cpu = this.cluster.cpu();
    return { server: cpu.gateway, system: cpu.gateway + cpu.feed + cpu.decoder + cpu.query, ...cpu };
  }

  memory() {
    const { gateway, feed } = this.cluster.processes();
    return { gateway: memoryOfAll(gateway), feed: memoryOfAll(feed) };
  }

  async stop() {
    this.cluster.remove();
  }
}

export class Messaging {
  // size: of a message
  static async start(name, { size = 128 } = {}) {
    const system = new Messaging();
    system.peer = await Peer.start(name);
    system.size = size;
    return system;
  }

  get version() {
    return this.peer.version;
  }

  get open() {
    return this.peer.open;
  }

  get publish() {
    return { ...this.peer.publish, size: this.size };
  }

  held() {
    return this.peer.pids();
  }

  cpu() {
    const all = cpuOfAll(this.peer.pids());
    return { server: all, system: all };
  }

  memory() {
    return { server: memoryOfAll(this.peer.pids()) };
  }

  async stop() {
    await this.peer.stop();
  }
}
