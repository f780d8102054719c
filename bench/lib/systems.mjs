// This project and its peers with one set of verbs, for scenarios in which all of them do the same:
// channels with numbers, subscribers, and messages with a number and a time in them.
//
// A system has: open (what the load generator needs to subscribe), publish (what it needs to publish), held()
// (the processes in front of which a burst waits), cpu() -> { server, system } in microseconds, memory() ->
// { process: {...} }, stop(). server is who holds the connections, the gateway or the peer; system is
// everything that takes part in delivery: with this project the feed worker, decoder and query workers as well.

import { writeFileSync } from 'node:fs';
import path from 'node:path';

import { Cluster } from './cluster.mjs';
import { Load } from './load.mjs';
import { MESSAGING, Peer } from './peers.mjs';
import { cpuOfAll, memoryOfAll } from './proc.mjs';
import { scratch } from './programs.mjs';
import { Unavailable } from './runner.mjs';

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

  // A file with tokens of so many users
  async tokens(count) {
    const rows = await this.cluster.query(`SELECT changefeed.make_token(jsonb_build_object('role', 'bench_reader', 'sub', i::text), '1 day') AS token
      FROM generate_series(1, ${count}) i`);
    const file = path.join(scratch, `tokens-${this.cluster.port}-${count}`);
    writeFileSync(file, rows.map(({ token }) => `${token}\n`).join(''));
    return file;
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

export const startSystem = (name, { settings, channels, body, size } = {}) => (name === 'pg_changefeed'
  ? Changefeed.start({ settings, channels, body }) : Messaging.start(name, { size }));

// Systems that are up with their subscribers, so that they can be measured in turns. Each has a load generator of
// its own.
export class Fleet {
  #up = new Map();

  // versions: where to note them
  constructor(versions) {
    this.versions = versions;
  }

  // options: of startSystem(); open: of Load.open(). { system, load, opened }
  async bring(name, options, open) {
    let up = this.#up.get(name);
    if (up !== undefined) return up;
    const system = options.system ?? await startSystem(name, options);
    if (system.version !== undefined) this.versions[name] = system.version;
    const load = new Load();
    try {
      const opened = await load.open({ ...system.open, ...open });
      up = { system, load, opened, isShared: options.system !== undefined };
    } catch (error) {
      await load.quit().catch(() => {}); // it says the same once more
      if (options.system === undefined) await system.stop();
      if (name === 'pg_changefeed') throw error;
      throw new Unavailable(`${open.connections} clients cannot subscribe: ${error.message}`);
    }
    this.#up.set(name, up);
    return up;
  }

  async close(name) {
    const up = this.#up.get(name);
    if (up === undefined) return;
    this.#up.delete(name);
    await up.load.quit();
    if (!up.isShared) await up.system.stop();
  }

  async closeAll() {
    for (const name of [...this.#up.keys()]) await this.close(name);
  }
}
