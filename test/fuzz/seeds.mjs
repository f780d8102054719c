// Writes the first inputs of each target, those that a person thought of, to
// DIRECTORY/TARGET/: what test/fuzz/corpus began with.  See README.md for what
// inputs look like.
//
//   node test/fuzz/seeds.mjs DIRECTORY

import { mkdirSync, writeFileSync } from 'node:fs'
import { createHash, createSign, createHmac } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { deflateRawSync, constants } from 'node:zlib'

const directory = process.argv[2]
const here = new URL('.', import.meta.url).pathname

function put(target, ...parts) {
  const data = Buffer.concat(parts.map((p) => (typeof p === 'number' ? Buffer.from([p]) : Buffer.from(p))))
  const name = createHash('sha1').update(data).digest('hex')
  mkdirSync(`${directory}/${target}`, { recursive: true })
  writeFileSync(`${directory}/${target}/${name}`, data)
}

const position = 'AAAAAAAAAAAqAAAAAAAAAAEAAAAAAAAAB'.slice(0, 32) + 'abcdefgh'

// ---- the gateway: http ----

const lines = (...l) => l.join('\r\n') + '\r\n\r\n'
const socket = (...more) =>
  lines('GET /v1/socket HTTP/1.1', 'Host: localhost', 'Upgrade: websocket', 'Connection: Upgrade',
    'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==', 'Sec-WebSocket-Version: 13', ...more)
const requests = [
  [0, lines('GET / HTTP/1.1', 'Host: localhost')],
  [0, lines('HEAD /console.js HTTP/1.1', 'Host: 127.0.0.1:8040', 'If-None-Match: W/"a", "0123"')],
  [0, lines('GET /v1/events?channel=orders%3A42&channel=notes&from=' + position + ' HTTP/1.1', 'Host: db.example', 'Last-Event-ID: ' + position)],
  [0, lines('GET /v1/poll?channel=notes&wait=1&token=a.b.c HTTP/1.1', 'Host: [::1]:8040', 'If-None-Match: "' + position + '"')],
  [0, lines('POST /v1/call/place_order HTTP/1.1', 'Host: localhost', 'Content-Type: application/json; charset=utf-8', 'Idempotency-Key: k1', 'Content-Length: 12') + '{"sku":"a1"}'],
  [0, lines('POST /v1/publish HTTP/1.1', 'Host: localhost', 'Content-Type: application/json', 'Content-Length: 300') + '{"channel"'],
  [0, lines('POST /v1/publish HTTP/1.1', 'Host: localhost', 'Transfer-Encoding: chunked') + '2\r\n{}\r\n0\r\n\r\n'],
  [0, lines('POST /v1/publish HTTP/1.1', 'Host: localhost', 'Content-Length: -1')],
  [0, lines('OPTIONS /v1/poll HTTP/1.1', 'Host: localhost', 'Origin: https://app.example', 'Access-Control-Request-Method: GET')],
  [16, lines('GET /v1/poll?channel=a HTTP/1.1', 'Host: localhost', 'Origin: https://elsewhere.example', 'Authorization: Bearer a.b.c')],
  [8, lines('GET /v1/poll?channel=a HTTP/1.1', 'Host: localhost', 'Origin: http://localhost', 'Cookie: a=b; session="x.y.z"; c')],
  [8, lines('GET /v1/poll?channel=a HTTP/1.1', 'Host: localhost', 'Sec-Fetch-Site: cross-site', 'Cookie: session=x.y.z')],
  [2, lines('GET /healthz HTTP/1.1', 'Host: localhost', 'X-Forwarded-For: 1.2.3.4, 192.0.2.1:99, 10.0.0.1', 'X-Forwarded-For: [2001:db8::1]:443')],
  [6, lines('GET /metrics HTTP/1.1', 'Host: localhost', 'Forwarded: for="[2001:db8::1]:4711";proto=https, for=unknown, for=10.0.0.1;by=_x')],
  [130, lines('GET /admin/stats HTTP/1.1', 'Host: localhost', 'X-Forwarded-For: 192.0.2.66')],
  [0, socket()],
  [1, socket('Sec-WebSocket-Protocol: changefeed.v1, other', 'Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, permessage-deflate', 'Origin: https://app.example')],
  [1, socket('Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_max_window_bits=12')],
  [0, socket('Authorization: Bearer a.b.c', 'Sec-WebSocket-Version: 8')],
  [64, socket('Sec-WebSocket-Protocol: nothing')],
  [0, lines('GET /v1/socket HTTP/1.1', 'Host: elsewhere.example')],
  [0, lines('GET http://localhost/v1/socket HTTP/1.1', 'Host: localhost')],
  [0, lines('CONNECT localhost:1 HTTP/1.1', 'Host: localhost')],
  [0, lines('GET /../%2e%2e/etc/passwd%00 HTTP/1.1', 'Host: localhost')],
  [0, lines('GET / HTTP/1.1', 'Host: localhost', 'Upgrade: h2c', 'HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA', 'Connection: Upgrade, HTTP2-Settings')],
  [0, 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'],
  [0, lines('PUT /v1/publish HTTP/1.0', 'Host: localhost')],
]
for (const [bits, text] of requests) {
  put('http', bits, 0, text)
  put('http', bits, 7, text)
}

// ---- the gateway: websocket ----

const frame = (first, text) => {
  const data = Buffer.from(text)
  return Buffer.concat([data.length < 252 ? Buffer.from([first, data.length]) : Buffer.from([first, 252, data.length >> 8, data.length & 255]), data])
}
const deflated = (text) => deflateRawSync(text, { finishFlush: constants.Z_SYNC_FLUSH }).subarray(0, -4)
const connect = '{"type":"connect","id":1,"token":"a.b.c"}'
for (const bits of [0, 1, 32, 33]) {
  put('websocket', bits, frame(0x81, connect), frame(0x81, '{"type":"pong"}'))
  put('websocket', bits, frame(0x01, connect.slice(0, 9)), frame(0x89, 'ping'), frame(0x00, connect.slice(9, 20)), frame(0x80, connect.slice(20)))
  put('websocket', bits, frame(0x81, 'grüße €😀'), frame(0x88, '\x03\xe8bye'))
  put('websocket', bits, frame(0x81, Buffer.from([0xc3, 0x28])))
  put('websocket', bits, frame(0x82, 'binary'))
  put('websocket', bits, frame(0xc1, deflated(connect + connect)))
  put('websocket', bits, frame(0x41, deflated('a'.repeat(500)).subarray(0, 5)), frame(0x80, deflated('a'.repeat(500)).subarray(5)))
  put('websocket', bits, frame(0x81, 'x'.repeat(400)))
  put('websocket', bits, [0, 254, 1], frame(0x81, connect), frame(0x8a, ''), frame(0x81, ''))
  put('websocket', bits, frame(0x81, connect), [0, 253, 11])
  put('websocket', bits, [0, 255, 4, 0x81, 0x85, 0, 0])
}
put('websocket', 64, ...Array(20).fill(frame(0x81, '{}')))

// ---- the gateway: link ----

const text = (s) => (s.length < 255 ? Buffer.concat([Buffer.from([s.length]), Buffer.from(s)]) : Buffer.concat([Buffer.from([255, s.length >> 8, s.length & 255]), Buffer.from(s)]))
const transaction = (audience, ...fragments) => Buffer.concat([Buffer.from([3, 0]), ...fragments.map((f) => Buffer.concat([Buffer.from([4, audience]), text(f)])), Buffer.from([6])])
const change = '{"channel":"orders:42","action":"merge","row":{"id":7,"status":"shipped"}}'
const stream = (client, kind, ...positions) => Buffer.concat([Buffer.from([16, client, kind, 1, 3, 232, 255, 255, positions.length]), ...positions.map(text)])
for (const bits of [0, 32]) {
  put('link', bits, 2, 0, 2, 1, 0, 0, text('{"type":"connected"}'), 0, 1, text('{"type":"connected"}'), transaction(3, change, change), 11, 0, 9)
  put('link', bits, 2, 0, 2, 1, transaction(1, change), transaction(3, change), transaction(2, change.repeat(30)), 11, 1, 9)
  put('link', bits, 2, 0, 3, 0, 4, 1, text(change), 5, 3, 0, text('.5'), text('{"type":"message","event":"e"'), 5, 1, 1, text(''), text('{"type":"message"'), 6)
  put('link', bits, 8, 3, text('{"type":"message"}'), 9, 3, text('{"type":"presence"}'), 11, 0, 1, 11, 1, 2)
  put('link', bits, 10, 15, text('{"type":"ping","position":"' + position.slice(0, 32)), text('"}'), 25, 130, 25, 130)
  put('link', bits, 12, 0, 1, 2, text('{"type":"snapshot","rows":'), text('{"type":"snapshot","entity":"b","rows":'), 2, 0, text('[{"id":1}]'), 1, text('[]'))
  put('link', bits, 12, 1, 1, 1, text('{"type":"snapshot","rows":'), 9, text('damaged'), 13, 1, 1)
  put('link', bits, stream(2, 1, '', position), 0, 2, text('{"type":"subscribed"}'), 17, 2, 18, 2, 0, 3, 0, text(position), 0, 2, text('{"type":"ready"}'), transaction(4, change, change), 10, 4, text('{"type":"ping","position":"' + position.slice(0, 32)), text('"}'))
  put('link', bits, stream(3, 2, position), 0, 3, text('{"type":"subscribed"}'), 18, 3, 0, 3, 0, text(position), 0, 3, text('{"type":"ready"}'), transaction(8, change), 25, 8)
  put('link', bits, stream(3, 2, position), 18, 3, 0, 5, 1, text(position), 18, 3, 0, 4, 0, text(''), 0, 3, text('{"type":"revoked"}'))
  put('link', bits, 19, 3, 0, 200, text('{"type":"ok"}'), 19, 2, 1, 148, text('{"type":"error"}'))
  put('link', bits, 14, 0, 15, 163, text('unauthorized'), 14, 1, 3, 245, text(''))
  put('link', bits, 20, 1, 0, 20, 0, 15, 21, 1, 1, 1, 21, 0, 0, 5, transaction(3, change))
  put('link', bits, 22, text('-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n'), 1, text('-----BEGIN PRIVATE KEY-----\nAAAA\n'))
  put('link', bits, 23, 2, 0, text('\0\0\0\0\0\0\0\0'))
  put('link', bits, 24, 38, text('\x01\0\0\0\0\0\0\0\0\xff\xff\xff\xff'), 0, 0)
  put('link', bits, 26, 0, text('\x81\x82\0\0\0\0{}'), 27, 1, transaction(3, change), 27, 2, 27, 3)
  put('link', bits, 26, 0, text('\x88\x80\0\0\0\0'), 8, 1, text('{}'), 1, 0, text('{"type":"synced"}'), 15, 1, 0)
  put('link', bits, ...Array(8).fill(transaction(3, change.repeat(10))), 15, 1, 0, 15, 1, 1)
  // LINK_TX_AUDIENCE is 244, LINK_TX_SHARED 245.
  put('link', bits, 2, 0, 2, 1, 3, 0, 244, 3, 245, 0, text(change), 244, 14, 245, 0, text(change), 245, 1, text(change), 4, 3, text(change), 245, 1, text(change), 6)
  put('link', bits, 3, 0, 244, 0, 245, 0, text(change), 245, 1, text(change))
}

// ---- the gateway: frames, network ----

put('frames', [0, 0, 3], 'abc', [2, 0, 0], [4, 1, 0])
put('frames', [1, 0, 3], 'abc', [6, 0, 2], 'de', [2, 0, 0], [4, 0, 5], [4, 1, 0])
put('frames', [3, 0, 10], '\x02\0\0\0\x01\0\0\0ab', [4, 1, 0])
put('frames', [0x88, 0, 10], '\x02\0\0\0\x01\0\x01\0ab', [4, 1, 0])
for (const a of ['127.0.0.1', '::1', '2001:db8::1', '::ffff:1.2.3.4', '1.2.3', '01.2.3.4', 'fe80::1%eth0'])
  put('network', 0, a)
for (const a of ['10.0.0.0/8 10.1.2.3', '::/0 1.2.3.4', '2001:db8::/32 2001:db8::1', '::ffff:0:0/96 1.2.3.4', '1.2.3.4/33', '10.0.0.1/8', '1.2.3.4/ 1.2.3.4'])
  put('network', 1, a)
put('network', 2, 'W/"a", "b",*\n"b"')
put('network', 0x82, 'keep-alive , Upgrade\nupgrade')
for (const u of ['grüße €😀', Buffer.from([0xed, 0xa0, 0x80]), Buffer.from([0xf4, 0x90, 0x80, 0x80]), Buffer.from([0xc0, 0x80])])
  put('network', 3, u)
put('network', 4, 'a"\\\n\x7fé')

// ---- the extension: json ----

const messages = [
  '{"type":"connect","id":1,"token":"a.b.c"}',
  '{"type":"subscribe","id":"s1","channel":"items?name=eq.a&select=id,name","from":"' + position + '","versions":true}',
  '{"type":"publish","id":3,"channel":"room:1","event":"typing","payload":{"a":[1,2.5e3,null,true,"\\u00e9\\ud83d\\ude00"]}}',
  '{"type":"track","id":4,"channel":"room:1","state":{"x":1},"kind":"editor","exclusive":["a","b"],"expires_in":"5 s"}',
  '{"a":1,"a":"twice","id":-0.0,"":{}}',
  '["a"]', '"a"', ' 1e400 ', '{"a":"\\u0000"}', '{"a":"\\ud800"}', '{"a":' + '['.repeat(64) + ']'.repeat(64) + '}',
  '{' + Array.from({ length: 26 }, (_, i) => `"m${i}":${i}`).join(',') + '}',
]
for (const m of messages) put('json', m)

// ---- selection ----

for (const s of [
  'id=eq.1&name=in.(a,"b,c",d)&select=id,name&order=id.desc.nullslast,name&limit=10',
  'or=(id.gt.1,and(name.like.a*,not.b.is.null))&j->k->>l=eq.x',
  'n=gte.1.5&f=lt.2&b=is.true&d=neq.2026-01-01&ts=lte.now',
  'a=cs.{1,2}&a=ov.{3}&r=adj.[5,6)&r=sl.[9,10)&a->0=eq.1',
  'e=eq.ok&u=eq.00000000-0000-0000-0000-000000000001&by=eq.%5Cx00&v=ilike(any).{a*,b*}',
  '"odd ""name"""=isdistinct.a%27%3B--&name=match.%5E(a|b)%2B%24',
  "name=eq.'; DROP TABLE fuzz_items; --", 'name=not.in.()&i=gt.1 day', 'select=*&limit=0', 'c=eq.cc+&name=eq.a%00',
  'not.or=(a.eq."{1}",name.imatch.x)', 'j=eq.{"k": {"l": [1, "x"]}}', 'offset=1', 'id=fts.a',
  'and=(' + 'or=('.repeat(3) + 'id.eq.1' + ')'.repeat(4),
]) put('selection', s)

// ---- names ----

for (const [a, b] of [['orders', 'orders'], ['orders:{id}', 'orders:42'], ['a/{b}/c:{d}', 'a/%2F%C3%A9/c:*'], ['{a}.{b}', 'x.y.z'], ['room:{id}', 'room:%41~-_'], ['x{a}y', 'x y']])
  for (const mode of ['n', 't']) put('names', mode, `${a}\n${b}`)
for (const p of [position, position + '.0', position + '.5', position + '.1.2.3', position + '.01', position.slice(0, 39)]) put('names', 'p', p)

// ---- jwt, jwks ----

const base64url = (s) => Buffer.from(s).toString('base64url')
const key = (name) => readFileSync(`${here}keys/${name}`)
const secret = key('secret').toString().trimEnd()
const claims = { role: 'fuzz_web', sub: 'alice', aud: 'fuzz', exp: 4000000000 }
const input = (header, payload) => `${base64url(JSON.stringify(header))}.${base64url(JSON.stringify(payload))}`
const hs = (header, payload, k = secret) => { const t = input(header, payload); return `${t}.${createHmac('sha256', k).update(t).digest('base64url')}` }
const rs = (header, payload) => { const t = input(header, payload); return `${t}.${createSign('sha256').update(t).sign(key('rsa.pem')).toString('base64url')}` }
const es = (header, payload) => { const t = input(header, payload); return `${t}.${createSign('sha256').update(t).sign({ key: key('ec.pem'), dsaEncoding: 'ieee-p1363' }).toString('base64url')}` }
put('jwt', 'r', hs({ alg: 'HS256' }, claims))
put('jwt', 'r', rs({ alg: 'RS256', kid: 'rsa' }, claims))
put('jwt', 'r', rs({ alg: 'RS256' }, { ...claims, aud: ['a', 'fuzz'] }))
put('jwt', 'r', es({ alg: 'ES256', kid: 'ec' }, claims))
put('jwt', 'r', hs({ alg: 'HS256' }, claims, key('rsa.pub.pem')))
put('jwt', 'r', input({ alg: 'none' }, claims) + '.')
put('jwt', 'r', es({ alg: 'ES256', kid: 'ec' }, claims).slice(0, -1))
for (const mode of ['s', 'o'])
  for (const [h, p] of [
    ['{"alg":"HS256"}', JSON.stringify(claims)],
    ['{"alg":"HS256","typ":"JWT","kid":"x","b64":true}', '{"role":"fuzz_web","aud":["fuzz"],"nbf":1.5,"iat":1,"n":1e-16000}'],
    ['{"alg":"HS256","crit":["exp"]}', '{"aud":"fuzz"}'],
    ['{"alg":"HS256"}', '{"role":"fuzz_web","aud":"fuzz","exp":1}'],
    ['{"alg":"HS256"}', '{"role":["a"],"aud":"fuzz","exp":"1","sub":{"a":"\\u0000"}}'],
    ['{"alg":"HS256"}', '{"role":"fuzz_web","role":"fuzz_admin","aud":"fuzz"}'],
    ['{"alg":"none"}', '{}'],
  ]) put('jwt', mode, `${h}\n${p}`)
put('jwks', 0, key('secret'))
put('jwks', 0, key('rsa.pub.pem'))
put('jwks', 1, key('rsa.pub.pem'))
put('jwks', 1, key('ec.pub.pem'), key('rsa.pub.pem'))
put('jwks', 2, key('jwks.json'))
put('jwks', 2, JSON.stringify({ keys: [{ kty: 'oct', k: base64url(secret), kid: 'o', key_ops: ['verify'] }, { kty: 'oct', k: 'AAAA' }, { kty: 'RSA', n: 'AQAB', e: 'AQAB' }, { kty: 'EC', crv: 'P-256', x: 'AA', y: 'AA', alg: 'ES256', use: 'enc' }, 1] }))

// ---- message, wal2json ----

put('message', 'w', 0, 7, 1, 'room:1\ntyping\n{"a":1}')
put('message', 'w', 0, 40, 255, 'items\n\nnull')
put('message', 'r', [1, 1, 5, 0, 0, 0], Buffer.alloc(60))
const columns = [['id', 1], ['name', 'a'], ['n', 1.5], ['f', 2.5], ['b', true], ['d', '2026-01-01'], ['ts', '2026-01-01 12:00:00+00'], ['j', '{"k": {"l": [1, "x"]}}'], ['a', '{1,2}'], ['r', '[1,5)'], ['e', 'ok'], ['u', '00000000-0000-0000-0000-000000000001'], ['by', '00ff'], ['v', 'vv'], ['c', 'cc   '], ['i', '1 day'], ['odd "name', 'odd']].map(([name, value]) => ({ name, value }))
put('wal2json', JSON.stringify({ action: 'I', schema: 'public', table: 'fuzz_items', columns }))
put('wal2json', JSON.stringify({ action: 'U', table: 'fuzz_items', columns, identity: columns }))
put('wal2json', JSON.stringify({ action: 'U', table: 'fuzz_items', columns: columns.slice(1) }))
put('wal2json', JSON.stringify({ columns: columns.map((c, i) => (i === 2 ? { ...c, value: null } : c)) }))
put('wal2json', '{"action":"D","table":"fuzz_items","identity":[{"name":"id","value":1}]}')

// ---- call ----

for (const c of ['{"a":1}\n{"id":1}', '{"a":"2","b":"x","c":{"d":[1,null]}}\n{"id":"4"}', '{"a":null,"b":null,"c":null}\n{"id":null}', '{"a":1e3,"c":null}', '{"x":1}\n{}', '[]\n[]', '{"b":1}\n{"id":99999999999}', '{"a":1,"b":"\\u00e9","c":"s"}\n{"id":2,"name":"b"}'])
  put('call', c)

// ---- feed ----

const script = (...l) => l.join('\n')
put('feed', script('o01', 'm0{"type":"connect","id":1}', 'm0{"type":"subscribe","id":2,"channel":"items"}', 'q', 's01', 'p', 'f03', 'm0{"type":"sync","id":3}', 'm0{"type":"unsubscribe","id":4,"channel":"items"}', 'c01'))
put('feed', script('o01', 'm0{"type":"connect","id":1}', 'm0{"type":"subscribe","id":2,"channel":"room:1"}', 'q', 'm0{"type":"track","id":3,"channel":"room:1","state":{"x":1},"kind":"editor","exclusive":["a"],"expires_in":5}', 't1', 'm0{"type":"presence","id":4,"channel":"room:1","limit":1}', 'm0{"type":"untrack","id":5,"channel":"room:1"}', 't1', 'f02'))
put('feed', script('o01', 'o12', 'm0{"type":"connect","id":1}', 'm1{"type":"connect","id":1}', 'm0{"type":"subscribe","id":2,"channel":"room:1"}', 'm1{"type":"subscribe","id":2,"channel":"room:*"}', 'q', 'm1{"type":"publish","id":3,"channel":"room:1","event":"e","payload":{"a":[1]},"echo":true}', 'q', 'm1{"type":"track","id":4,"channel":"room:1","state":{}}', 't1', 'c11', 't3'))
put('feed', script('o0', 'm0{"type":"connect","id":1,"token":"no.such.token"}', 'o04', 'm0{"type":"connect","id":1}', 'o03', 'm0{"type":"subscribe","id":1,"channel":"items"}'))
put('feed', script('o01', 'm0{"type":"subscribe","id":2,"channel":"items:a?n=gt.1&select=id&order=id&limit=3","versions":true,"snapshot":false}', 'e', 'q', 't1', 'q', 'm0{"type":"subscribe","id":2,"channel":"items?x"}', 'm0{"type":"subscribe","id":5,"channel":"nope"}', 'm0{"type":"subscribe","id":6,"channel":"items","from":"' + position + '"}', 'q'))
put('feed', script('o01', 'm0{"type":"connect","id":1}', 'm0{"type":"call","id":7,"function":"fuzz_add","args":{"a":1},"key":"k"}', 'q', 'm0{"type":"call","id":8,"function":"fuzz_add","args":{"a":1},"expect":[{"channel":"items","entity":"fuzz_items","key":{"id":1},"version":"1"}]}', 'e', 'm0{"type":"call","id":9,"function":"no","args":[]}', 'm0{"type":"token","id":10,"token":"x"}'))
put('feed', script('o01', 'm0{"type":"subscribe","id":2,"channel":"paced"}', 'q', 's01', 'b0', 'd0', 'n', 'p', 't1', 'f01'))
for (const r of ['G\t/v1/events\t\t\t\tchannel=items&channel=room:1', 'G\t/v1/poll\t\t\t\tchannel=items', 'G\t/v1/poll\t\t\t\tchannel=items&wait=1&from=' + position, 'G\t/v1/poll\t\t"' + position + '"\t\tchannel=items&channel=paced', 'H\t/v1/events\t' + position + '\t\t\tchannel=items',
  'P\t/v1/publish\t\t\t\t\t{"channel":"room:1","event":"e","payload":1}', 'P\t/v1/call/fuzz_add\t\t\tk1\t\t{"a":1}', 'L\t/metrics\t\t\t\t', 'L\t/healthz\t\t\t\t', 'G\t/\t\t\t\t', 'L\t/admin/stats\t\t\t\t', 'L\t/admin/connections\t\t\t\tlimit=5&id=1', 'P\t/admin/explain\t\t\t\t\t{"channel":"items","claims":{"role":"fuzz_web"}}', 'G\t/nothing\t\t\t\t'])
  put('feed', script('r01 ' + r, 'q', 's01', 'k0', 'q', 'p', 't3', 'c01'), script('', 'r15 ' + r, 'e', 't1'))
for (const [t, b] of [[10, Buffer.alloc(400)], [9, Buffer.from([255, 255, 255, 255])], [2, Buffer.from([1, 0, 0, 0, 7, 0, 0, 0, 0])], [19, Buffer.from([1, 0, 0, 0])], [1, Buffer.from([9, 0, 0, 0])], [11, Buffer.from([5, 0, 0, 0, 1, 0])]])
  put('feed', 'x', t, b, '\n', 'o01')
