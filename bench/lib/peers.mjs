// The messaging servers beside which we are measured. Each is started with the configuration in
// bench/peers/NAME, on ports that nobody has, unprivileged, and in a folder that is removed at the end.
//
// A Peer has: pids() of all its processes, open: what the load generator has to be told to subscribe,
// publish: what it has to be told to publish, version.

import { execFileSync } from 'node:child_process';
import { chownSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import path from 'node:path';

import { family } from './proc.mjs';
import { offer } from './profile.mjs';
import { BIN, ROOT, freePort, scratch, start, stop, until } from './programs.mjs';
import { Unavailable } from './runner.mjs';

const folder = path.join(ROOT, 'bench/peers');
const NOBODY = 65534;

const output = (command, args) => {
  try {
    return execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] }).trim();
  } catch {
    return 'not known';
  }
};
const debian = (name) => output('dpkg-query', ['-W', '-f', '${Version}', name]);
const program = (...files) => {
  const found = files.find((file) => existsSync(file));
  if (found === undefined) throw new Unavailable(`${path.basename(files[0])} is not installed: scripts/setup --for bench installs it`);
  return found;
};

const bare = (...more) => ({
  command: (peer) => [path.join(BIN, 'bare'), '--port', String(peer.port), '--publish-port', String(peer.publishPort), ...more],
  version: () => 'of this benchmark',
  open: { protocol: 'text', path: '/{i}' },
  publish: (peer) => ({ via: 'line', port: peer.publishPort }),
});

const kinds = {
  // One send() for each frame
  bare: bare(),
  // All frames that have come in one send()
  bare_together: bare('--together'),
  nchan: {
    config: 'nginx.conf',
    command: (peer) => [program('/usr/sbin/nginx'), '-p', `${peer.folder}/`, '-e', 'stderr', '-c', peer.config],
    check: () => program('/usr/lib/nginx/modules/ngx_nchan_module.so'),
    version: () => `${debian('libnginx-mod-nchan')} (nginx ${debian('nginx')})`,
    open: { protocol: 'text', path: '/sub/c{i}' },
    publish: (peer) => ({ via: 'http', port: peer.port, path: '/pub/c{i}' }),
    publishPort: (peer) => peer.port,
  },
  nats: {
    config: 'nats.conf',
    command: (peer) => [program('/usr/sbin/nats-server', '/usr/bin/nats-server'), '-c', peer.config],
    version: () => debian('nats-server'),
    open: { protocol: 'nats', channel: 'feed.{i}' },
    publish: (peer) => ({ via: 'nats', port: peer.publishPort, channel: 'feed.{i}' }),
  },
  mosquitto: {
    config: 'mosquitto.conf',
    command: (peer) => [program('/usr/sbin/mosquitto'), '-c', peer.config],
    version: () => debian('mosquitto'),
    open: { protocol: 'mqtt', channel: 'feed/{i}' },
    publish: (peer) => ({ via: 'mqtt', port: peer.publishPort, channel: 'feed/{i}' }),
  },
  ws: {
    command: (peer) => [process.execPath, path.join(folder, 'ws/server.mjs'), String(peer.port), String(peer.publishPort)],
    version: () => `${JSON.parse(readFileSync(path.join(ROOT, 'bench/node_modules/ws/package.json'), 'utf8')).version} (Node ${process.version})`,
    open: { protocol: 'text', path: '/{i}' },
    publish: (peer) => ({ via: 'line', port: peer.publishPort }),
  },
};

export const MESSAGING = ['nchan', 'nats', 'mosquitto', 'ws'];

const accepts = (port) => new Promise((resolve) => {
  const socket = connect({ port, host: '127.0.0.1' });
  socket.on('connect', () => { socket.destroy(); resolve(true); });
  socket.on('error', () => resolve(false));
});

export class Peer {
  static async start(name) {
    const kind = kinds[name];
    const peer = new Peer();
    kind.check?.();
    peer.name = name;
    peer.kind = kind;
    peer.port = await freePort();
    peer.publishPort = kind.publishPort?.(peer) ?? await freePort();
    peer.folder = path.join(scratch, `${name}-${peer.port}`);
    mkdirSync(peer.folder, { mode: 0o755 });
    const isRoot = process.getuid() === 0;
    if (isRoot) chownSync(peer.folder, NOBODY, NOBODY);
    if (kind.config !== undefined) {
      peer.config = path.join(peer.folder, kind.config);
      const descriptors = execFileSync('sh', ['-c', 'ulimit -n'], { encoding: 'utf8' }).trim();
      writeFileSync(peer.config, readFileSync(path.join(folder, name, kind.config), 'utf8')
        .replaceAll('@PORT@', peer.port).replaceAll('@PUBLISH_PORT@', peer.publishPort).replaceAll('@DESCRIPTORS@', descriptors).replaceAll('@FOLDER@', peer.folder));
    }
    const [command, ...args] = kind.command(peer);
    peer.child = start(command, args, {
      cwd: peer.folder, stdio: ['ignore', 'ignore', 'pipe'], ...isRoot ? { uid: NOBODY, gid: NOBODY } : {},
    });
    let hasEnded = false;
    peer.child.ended.then(() => { hasEnded = true; });
    offer((wanted) => (wanted === name && !hasEnded ? peer.pids() : []));
    let said = '';
    peer.child.stderr.on('data', (data) => { said = `${said}${data}`.slice(-2000); });
    try {
      await until(`${name} listens`, async () => {
        if (hasEnded) throw new Error('it ended');
        return await accepts(peer.port) && accepts(peer.publishPort);
      }, 10000);
    } catch (error) {
      await stop(peer.child);
      throw new Unavailable(`it does not start: ${error.message}${said === '' ? '' : `: ${said.trim().split('\n').at(-1)}`}`);
    }
    return peer;
  }

  get version() {
    return this.kind.version();
  }

  pids() {
    return family(this.child.pid);
  }

  get open() {
    return { ...this.kind.open, port: this.port };
  }

  get publish() {
    return this.kind.publish(this);
  }

  async stop() {
    await stop(this.child);
  }
}
