// What the built programs are linked with, as a bill of materials in CycloneDX JSON: each library
// that they need, directly or through another one, with the Debian package it is from.
//
//   node scripts/sbom.mjs [--out FILE] [--pg-config FILE] pg_changefeed.so pg_changefeed_gateway
//
// Taken from the files themselves (NEEDED entries) and from dpkg, so it is about the machine that
// builds. The same files and packages give the same bytes. A library that nothing is known of fails.

import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, realpathSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
// Opened while the gateway runs, so no NEEDED entry names it.
const PLUGINS = { 'libwebsockets.so': ['libwebsockets-evlib_uv.so'] };

const run = (program, ...args) => execFileSync(program, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, LC_ALL: 'C.UTF-8' } });
const attempt = (...args) => { try { return run(...args); } catch { return undefined; } };
const sha256 = (data) => createHash('sha256').update(data).digest('hex');
const hashes = (file) => [{ alg: 'SHA-256', content: sha256(readFileSync(file)) }];
const fail = (message) => { console.error(`sbom: error: ${message}`); process.exit(1); };

const files = [];
let out;
let pgConfig = process.env.PG_CONFIG ?? 'pg_config';
for (let i = 2; i < process.argv.length; i += 1) {
  if (process.argv[i] === '--out') out = process.argv[i += 1];
  else if (process.argv[i] === '--pg-config') pgConfig = process.argv[i += 1];
  else files.push(process.argv[i]);
}
if (files.length === 0) fail('usage: node scripts/sbom.mjs [--out FILE] [--pg-config FILE] BINARY ...');
for (const file of files) if (!existsSync(file)) fail(`${file} is not there: build it first`);
if (attempt('dpkg-query', '--version') === undefined) fail('packages are known from dpkg, which is missing');

// ---- libraries ----

const machine = (file) => run('readelf', '-h', file).match(/Class: +(\S+)[^]*Machine: +(.+)/).slice(1).join(' ');
const wanted = machine(files[0]);
const cache = new Map();
for (const [, name, file] of run('/sbin/ldconfig', '-p').matchAll(/^\t(\S+) \(.*\) => (.+)$/gm)) {
  cache.set(name, [...(cache.get(name) ?? []), file]);
}
function find(name) {
  const file = cache.get(name)?.find((candidate) => machine(candidate) === wanted);
  return file === undefined ? fail(`where ${name} is, ldconfig does not know`) : realpathSync(file);
}
function needs(file) {
  const names = [...run('readelf', '-d', file).matchAll(/\(NEEDED\).*\[(.+)\]/g)].map(([, name]) => name);
  const plugins = Object.entries(PLUGINS).flatMap(([prefix, list]) => (names.some((name) => name.startsWith(prefix)) ? list : []));
  return [...names, ...plugins].map(find);
}

// ---- packages ----

const system = Object.fromEntries([...readFileSync('/etc/os-release', 'utf8').matchAll(/^(\w+)="?([^"\n]*)"?$/gm)].map(([, name, value]) => [name, value]));
const packages = new Map(); // name: { component, libraries, on }

/** What a machine-readable copyright file says of most of the source. */
function license(name) {
  const file = `/usr/share/doc/${name}/copyright`;
  const text = existsSync(file) ? readFileSync(file, 'utf8') : '';
  if (!/^Format: .*copyright-format/m.test(text)) return undefined;
  return text.split(/\n\n+/).find((stanza) => /^Files: *\*$/m.test(stanza))?.match(/^License: *(.+)$/m)?.[1];
}

function packageOf(file) {
  // Of files below /usr some packages still say that they are in /lib.
  const owner = [file, file.replace(/^\/usr/, ''), `/usr${file}`].map((name) => attempt('dpkg-query', '-S', name)).find(Boolean);
  if (owner === undefined) fail(`${file} is of no package`);
  const name = owner.split('\n')[0].split(': ')[0].split(',')[0];
  if (packages.has(name)) return packages.get(name);
  const [plain, version, architecture, source, homepage, maintainer] = run('dpkg-query', '-W', '-f',
    '${Package}\n${Version}\n${Architecture}\n${source:Package}\n${Homepage}\n${Maintainer}', name).split('\n');
  const purl = `pkg:deb/${system.ID}/${plain}@${encodeURIComponent(version)}?arch=${architecture}&distro=${system.ID}-${system.VERSION_ID ?? system.VERSION_CODENAME}`;
  const licenseName = license(plain);
  const component = {
    type: 'library',
    'bom-ref': purl,
    supplier: { name: maintainer },
    name: plain,
    version,
    ...(licenseName && { licenses: [{ license: { name: licenseName } }] }),
    purl,
    ...(homepage && { externalReferences: [{ type: 'website', url: homepage }] }),
    properties: [{ name: 'debian:source', value: source }],
  };
  const entry = { component, libraries: new Set(), on: new Set() };
  packages.set(name, entry);
  return entry;
}

const seen = new Set();
function follow(file) {
  const entry = packageOf(file);
  if (seen.has(file)) return entry;
  seen.add(file);
  entry.libraries.add(file);
  for (const library of needs(file)) {
    const other = follow(library);
    if (other !== entry) entry.on.add(other.component['bom-ref']);
  }
  return entry;
}

// ---- our own files ----

const version = readFileSync(path.join(ROOT, 'pg_changefeed.control'), 'utf8').match(/^default_version *= *'(.*)'/m)[1];
const root = { type: 'application', 'bom-ref': `pg_changefeed@${version}`, name: 'pg_changefeed', version, licenses: [{ license: { id: 'PostgreSQL' } }] };
const own = files.map((file) => {
  const name = path.basename(file);
  const component = { type: name.includes('.so') ? 'library' : 'application', 'bom-ref': `pg_changefeed@${version}#${name}`, name, version, hashes: hashes(file), licenses: root.licenses };
  const on = new Set(needs(file).map((library) => follow(library).component['bom-ref']));
  // A library of the server takes everything else from the program that loads it.
  if (component.type === 'library') {
    const server = path.join(run(pgConfig, '--bindir').trim(), 'postgres');
    if (attempt('dpkg-query', '-S', server) !== undefined) {
      const { component: postgres } = packageOf(server);
      postgres.type = 'application';
      on.add(postgres['bom-ref']);
    } else {
      const number = run(server, '--version').match(/(\d[\w.]*)/)[1];
      const ref = `postgresql@${number}`;
      packages.set(ref, { component: { type: 'application', 'bom-ref': ref, name: 'postgresql', version: number, licenses: [{ license: { id: 'PostgreSQL' } }] }, libraries: new Set(), on: new Set() });
      on.add(ref);
    }
  }
  return { component, on };
});

const order = (a, b) => (a < b ? -1 : Number(a > b));
const listed = [...packages.values()].sort((a, b) => order(a.component['bom-ref'], b.component['bom-ref']));
for (const { component, libraries } of listed) {
  if (libraries.size === 0) continue;
  component.components = [...libraries].sort(order).map((file) => ({ type: 'file', name: file, hashes: hashes(file) }));
}
const epoch = process.env.SOURCE_DATE_EPOCH ?? attempt('git', '-C', ROOT, 'log', '-1', '--format=%ct')?.trim();
const bom = {
  $schema: 'http://cyclonedx.org/schema/bom-1.5.schema.json',
  bomFormat: 'CycloneDX',
  specVersion: '1.5',
  version: 1,
  metadata: {
    ...(epoch && { timestamp: new Date(Number(epoch) * 1000).toISOString() }),
    tools: { components: [{ type: 'application', name: 'scripts/sbom.mjs', version }] },
    component: root,
  },
  components: [...own, ...listed].map(({ component }) => component),
  dependencies: [
    { ref: root['bom-ref'], dependsOn: own.map(({ component }) => component['bom-ref']) },
    ...[...own, ...listed].map(({ component, on }) => ({ ref: component['bom-ref'], dependsOn: [...on].sort(order) })),
  ],
};
const digest = sha256(JSON.stringify(bom));
bom.serialNumber = `urn:uuid:${digest.slice(0, 8)}-${digest.slice(8, 12)}-8${digest.slice(13, 16)}-a${digest.slice(17, 20)}-${digest.slice(20, 32)}`;

const text = `${JSON.stringify(bom, null, 2)}\n`;
if (out === undefined) process.stdout.write(text);
else {
  mkdirSync(path.dirname(path.resolve(out)), { recursive: true });
  writeFileSync(out, text);
  console.error(`sbom: ${own.length} programs, ${listed.length} packages: ${out}`);
}
