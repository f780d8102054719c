// Prints what the fuzz targets have covered of the files that they are for, from
// the summary that llvm-cov exports.
//
//   node test/fuzz/coverage.mjs coverage.json [TARGET ...]

import { readFileSync } from 'node:fs'

// The files whose parsers a target is for; others are only passed through.
const files = {
  http: ['gateway/http.c', 'gateway/checks.c', 'gateway/request.c', 'gateway/forwarded.c', 'gateway/visitor.c', 'gateway/assets.c', 'gateway/server.c'],
  websocket: ['gateway/conn.c', 'gateway/compress.c', 'gateway/throttle.c'],
  link: ['gateway/link.c', 'gateway/fanout.c', 'gateway/body.c', 'gateway/join.c', 'gateway/queue.c', 'gateway/walk.c', 'gateway/stream.c', 'gateway/snapshot.c', 'gateway/balance.c', 'gateway/tls.c', 'gateway/stats.c', 'wire.h'],
  frames: ['linkframe.c'],
  network: ['network.c', 'gateway/util.c'],
  json: ['json_message.c'],
  selection: ['selection_parse.c', 'selection_decode.c', 'selection_sql.c', 'query_selection.c', 'channel_filter.c', 'filter_compile.c'],
  names: ['template.c', 'position.c'],
  jwt: ['jwt.c', 'identity.c'],
  jwks: ['jwt_keys.c'],
  message: ['message_wal.c'],
  wal2json: ['output_wal2json.c'],
  call: ['query_arguments.c', 'query_expect.c'],
  feed: ['gateways.c', 'gateway_stats.c', 'protocol.c', 'http.c', 'http_stream.c', 'publish.c', 'presence.c', 'presence_room.c', 'presence_send.c', 'call.c', 'subscribe.c', 'subscribe_load.c', 'subscribe_query.c', 'postponed.c', 'registry.c', 'admin.c', 'console.c'],
}

const [path, ...targets] = process.argv.slice(2)
const summary = new Map(JSON.parse(readFileSync(path, 'utf8')).data[0].files
  .map((file) => [file.filename.replace(/^.*\/src\//, ''), file.summary]))
const row = (...cells) => console.log(cells.map((c, i) => (i < 2 ? String(c).padEnd([10, 26][i]) : String(c).padStart(18))).join(' '))
const part = ({ covered, count }) => `${covered} of ${count} (${count === 0 ? 100 : Math.floor((100 * covered) / count)} %)`

row('target', 'file', 'lines', 'branches')
for (const target of targets.length > 0 ? targets : Object.keys(files)) {
  for (const name of files[target]) {
    const file = summary.get(name)
    if (file === undefined) throw new Error(`nothing is known of ${name}`)
    row(target, name, part(file.lines), part(file.branches))
  }
}
