// doc/protocol.md lists everything that a client can be told by a code: SQLSTATEs, reasons of
// resync and revoked, close codes and refusals over HTTP. Both ways: what the source can send is
// documented, and what is documented can be sent.
//
//   node test/docs/codes.mjs

import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
const read = (name) => readFileSync(path.join(ROOT, name), 'utf8');
const sources = (directory) => readdirSync(path.join(ROOT, directory)).filter((name) => /\.[ch]$/.test(name))
  .map((name) => ({ name, text: read(`${directory}/${name}`).replace(/\/\*[^]*?\*\//g, '') }));
const server = sources('src');
const gateway = sources('src/gateway').filter(({ name }) => name !== 'stats.c'); // which only counts them
const protocol = read('doc/protocol.md');
const problems = [];

const found = (files, ...patterns) => new Set(files.flatMap(({ text }) => patterns.flatMap((pattern) => [...text.matchAll(pattern)].map(([, code]) => code))));

/** The codes in the first column of the first table behind a heading; or in another one. */
function documented(heading, column = 1) {
  const start = protocol.indexOf(`\n${heading}\n`);
  if (start < 0) throw new Error(`doc/protocol.md has no "${heading}"`);
  const section = protocol.slice(start + heading.length + 2).split(/^#{1,4} /m)[0].replace(/^[^]*?\n\|---[^\n]*/, '');
  const rows = section.split('\n').filter((line) => /^\| *(`|\d)/.test(line));
  return new Set(rows.flatMap((row) => row.split(/(?<!\\)\|/)[column].split(',').map((code) => code.replaceAll('`', '').trim())));
}

function compare(what, sent, listed) {
  for (const code of sent) if (!listed.has(code)) problems.push(`${what}: "${code}" can be sent, but is not in doc/protocol.md`);
  for (const code of listed) if (!sent.has(code)) problems.push(`${what}: "${code}" is in doc/protocol.md, but is never sent`);
  if (sent.size === 0) problems.push(`${what}: the source has none, so this test is wrong`);
}

// Reasons of resync: where the source names them, in its list of counters, in the documentation.
const NAME = '"([a-z]+(?:_[a-z]+)*)"';
const reasons = found(server,
  new RegExp(`(?:SubscribeResync|ResyncAll|AddLost|DependencyResync|EventsResyncIdentity|TellResync|CheckSubscription)\\([^;]*?, ${NAME}`, 'g'),
  new RegExp(`(?:refused|\\*reason|reason|lost_reason) =[^;"=]*?${NAME}`, 'g'),
  new RegExp(`\\{RELATION_[A-Z_]+, ${NAME}\\}`, 'g'));
for (const name of ['"schema_changed"', '"policy_changed"']) reasons.add(name.slice(1, -1)); // returned by EventConcerns
const counted = new Set([...read('src/counters.c').match(/counter_resync_reasons\[RESYNC_REASONS\] = \{([^}]*)\}/)[1].matchAll(/"([a-z_]+)"/g)].map(([, name]) => name));
counted.delete('other');
compare('reason of resync', counted, documented('### resync'));
const elsewhere = new Set(['gateways_do_not_answer', 'delivery_is_behind', 'unauthorized', 'revoked', 'permission_denied', 'paused']);
for (const reason of reasons) if (!counted.has(reason) && !elsewhere.has(reason)) problems.push(`reason of resync: "${reason}" is not in counter_resync_reasons`);

// Reasons of revoked.
compare('reason of revoked', found(server, new RegExp(`SubscribeEnd\\([^;]*?, ${NAME}`, 'g'),
  new RegExp(`ProtocolRevokeAll\\([^;]*?, ${NAME}`, 'g'), new RegExp(`"42501"\\) == 0 \\? ${NAME}`, 'g')), documented('### revoked'));

// Close codes: 1006 is what a client says when there was none.
const values = new Map([...read('src/link_format.h').matchAll(/#define (LINK_CLOSE_\w+)\s+(\d+)/g)].map(([, name, value]) => [name, value]));
const used = found([...server, ...gateway], /(?:GatewayClose|ConnClose|ConnCloseAfterQueue|ConnBeginClose|ConnRefuse)\([^;]*?,\s*(LINK_CLOSE_\w+|\d{4})\s*,/g);
compare('close code', new Set([...used].map((code) => values.get(code) ?? code)), (() => {
  const listed = documented('### Close codes');
  listed.delete('1006');
  return listed;
})());

// Refusals over HTTP.
compare('code of a refusal', found(gateway, /(?:->|\.)code = "([a-z_]+)"/g, /(?:RefuseRate|StatsNoteRefusal)\([^;]*?"([a-z_]+)"/g), documented('### Refused handshakes', 2));

// SQLSTATEs: those that are written out are documented; those that are documented are written out or
// raised by name somewhere.
const names = new Map(readFileSync(path.join(execFileSync(process.env.PG_CONFIG ?? 'pg_config', ['--sharedir'], { encoding: 'utf8' }).trim(), 'errcodes.txt'), 'utf8')
  .split('\n').map((line) => line.match(/^(\w{5})\s+[EWS]\s+(ERRCODE_\w+)/)).filter(Boolean).map(([, code, name]) => [name, code]));
const literal = found(server, /"([0-9][0-9A-Z]{4})"/g);
const raised = new Set([...found(server, /\b(ERRCODE_\w+)/g)].map((name) => names.get(name)).filter(Boolean));
const listed = documented('## Errors');
// After these it is tried again.
const internal = new Set(['57P01']);
for (const code of literal) if (!listed.has(code) && !internal.has(code)) problems.push(`SQLSTATE ${code} can be sent, but is not in doc/protocol.md`);
for (const code of listed) if (!literal.has(code) && !raised.has(code)) problems.push(`SQLSTATE ${code} is in doc/protocol.md, but is never raised`);

for (const problem of problems) console.log(`not ok - ${problem}`);
if (problems.length === 0) console.log('ok - doc/protocol.md lists the codes that clients can be told, and no others');
process.exit(problems.length === 0 ? 0 : 1);
