// Certificates for tests: in a directory that the server's user may read.

import { execFileSync } from 'node:child_process';
import { chmodSync, chownSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const { uid, gid } = statSync(process.env.CLUSTER_DATA);
const openssl = (...args) => execFileSync('openssl', args, { stdio: ['ignore', 'pipe', 'pipe'] });

/** Belongs to the server's user. */
export function giveAway(path, mode) {
  chownSync(path, uid, gid);
  chmodSync(path, mode);
  return path;
}

export class Certificates {
  constructor(parent) {
    this.directory = giveAway(mkdtempSync(join(parent, 'tls.')), 0o755);
  }

  path(name) {
    return join(this.directory, name);
  }

  /** Signed by itself. */
  make(name, { days = 30, rsa = 0, passphrase } = {}) {
    const [cert, key, request] = [`${name}.crt`, `${name}.key`, `${name}.csr`].map((file) => this.path(file));
    const kind = rsa ? ['-newkey', `rsa:${rsa}`] : ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1'];
    openssl('req', '-new', ...kind, '-nodes', '-keyout', key, '-out', request, '-subj', `/CN=${name}`,
      '-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1');
    openssl('x509', '-req', '-in', request, '-signkey', key, '-days', String(days), '-copy_extensions', 'copyall', '-out', cert);
    if (passphrase) writeFileSync(key, openssl('pkey', '-in', key, '-aes256', '-passout', `pass:${passphrase}`));
    giveAway(cert, 0o644);
    giveAway(key, 0o600);
    return { cert, key, pem: readFileSync(cert, 'utf8') };
  }

  /** Puts a text or the content of another file into a file. */
  write(name, text, mode = 0o600) {
    writeFileSync(this.path(name), text);
    return giveAway(this.path(name), mode);
  }

  remove() {
    rmSync(this.directory, { recursive: true, force: true });
  }
}
