// One version everywhere, and META.json as the PGXN Meta Spec wants it.
//
//   node test/docs/versions.mjs

import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
const read = (name) => readFileSync(path.join(ROOT, name), 'utf8');
const problems = [];

const meta = JSON.parse(read('META.json'));
const version = read('pg_changefeed.control').match(/^default_version *= *'(.*)'/m)?.[1];
const extension = meta.provides?.pg_changefeed ?? {};
const said = {
  'META.json, version': meta.version,
  'META.json, provides': extension.version,
  'debian/changelog': read('debian/changelog').match(/^pg-changefeed \((.*?)\)/)?.[1].replace(/-[^-]*$/, ''),
  'client/package.json': JSON.parse(read('client/package.json')).version,
  'CHANGELOG.md': read('CHANGELOG.md').match(/^## (\S+)/m)?.[1],
  'src/pg_changefeed.h, CHANGEFEED_VERSION': read('src/pg_changefeed.h').match(/CHANGEFEED_VERSION\s+"(.*)"/)?.[1],
};
for (const [where, what] of Object.entries(said)) {
  if (what !== version) problems.push(`${where}: ${what}, but pg_changefeed.control says ${version}`);
}
if (!existsSync(path.join(ROOT, `sql/pg_changefeed--${version}.sql`))) problems.push(`there is no script of version ${version} in sql/`);

// https://pgxn.org/spec/ 1.0: the fields that it requires, and the values of those that are in use
const text = (value) => typeof value === 'string' && value !== '';
const term = (value) => text(value) && value.length >= 2 && !/[\s/\\\p{Cc}]/u.test(value);
const semver = (value) => text(value) && /^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)([a-z][a-z0-9-]*|-[0-9A-Za-z.-]+)?$/i.test(value);
const must = (fine, what) => { if (!fine) problems.push(`META.json: ${what}`); };
const known = ['abstract', 'description', 'generated_by', 'license', 'maintainer', 'meta-spec', 'name', 'no_index', 'prereqs', 'provides', 'release_status', 'resources', 'tags', 'version'];
for (const field of Object.keys(meta)) must(known.includes(field) || /^x_/i.test(field), `"${field}" is not in the specification`);
must(term(meta.name), 'name is no term');
must(semver(meta.version), 'version is no semantic version');
for (const field of ['abstract', 'description', 'generated_by']) must(text(meta[field]), `${field} is empty`);
must([meta.maintainer].flat().every(text), 'maintainer is empty');
must(['agpl_3', 'apache_1_1', 'apache_2_0', 'artistic_1', 'artistic_2', 'bsd', 'freebsd', 'gfdl_1_2', 'gfdl_1_3', 'gpl_1', 'gpl_2', 'gpl_3', 'lgpl_2_1', 'lgpl_3_0',
  'mit', 'mozilla_1_0', 'mozilla_1_1', 'openssl', 'perl_5', 'postgresql', 'qpl_1_0', 'ssleay', 'sun', 'zlib', 'open_source', 'restricted', 'unrestricted', 'unknown'].includes(meta.license), 'license is not one of the known ones');
must(['stable', 'testing', 'unstable'].includes(meta.release_status), 'release_status is not one of the known ones');
must(meta['meta-spec']?.version === '1.0.0', 'meta-spec is not 1.0.0');
must(Array.isArray(meta.tags) && meta.tags.every((tag) => text(tag) && tag.length <= 255 && !/[/\\\p{Cc}]/u.test(tag)) && new Set(meta.tags).size === meta.tags.length, 'tags are not as they should be');
must(Object.keys(meta.provides ?? {}).join() === 'pg_changefeed', 'provides is not the extension');
for (const field of ['file', 'docfile']) must(text(extension[field]) && existsSync(path.join(ROOT, extension[field])), `${field} does not exist`);
must(extension.file === `sql/pg_changefeed--${version}.sql`, 'file is not the script of this version');
for (const [phase, relations] of Object.entries(meta.prereqs ?? {})) {
  must(['configure', 'build', 'test', 'runtime', 'develop'].includes(phase), `prereqs: there is no phase "${phase}"`);
  for (const [relation, wanted] of Object.entries(relations)) {
    must(['requires', 'recommends', 'suggests', 'conflicts'].includes(relation), `prereqs: there is no relation "${relation}"`);
    for (const [name, range] of Object.entries(wanted)) {
      must(term(name) && (range === 0 || String(range).split(/\s*,\s*/).every((part) => semver(part.replace(/^(<=|<|==|>=|>|!=)\s*/, '')))), `prereqs: "${name}": "${range}" is no range of versions`);
    }
  }
}

for (const problem of problems) console.log(`not ok - ${problem}`);
if (problems.length === 0) console.log(`ok - version ${version} everywhere, and META.json`);
process.exit(problems.length === 0 ? 0 : 1);
