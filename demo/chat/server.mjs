// Serves the chat's page and hands out tokens: whoever says a name gets its token.
//
//   SOCKET_URL=ws://… node demo/chat/server.mjs [port]       (and PGHOST etc., a superuser)
//
// Prints its address. Without a port it takes 8041, or any other if that one is taken.

import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';

import { serveSite, sql } from '../site.mjs';

const PORT = 8041;

const FILES = {
  '/': ['index.html', 'text/html; charset=utf-8'],
  '/chat.css': ['chat.css', 'text/css; charset=utf-8'],
  '/chat.js': ['chat.js', 'text/javascript; charset=utf-8'],
  '/client.js': ['../../console/client.js', 'text/javascript; charset=utf-8'],
  '/icon.svg': ['../../console/icon.svg', 'image/svg+xml'],
};

const LOGIN = `
INSERT INTO chat.people VALUES (:'name') ON CONFLICT DO NOTHING;
SELECT changefeed.make_token(json_build_object('role', 'chat_user', 'sub', :'name')::text::jsonb, interval '12 hours');
`;

/** Resolves with the server and its address. Pages of it are of the origin `url`. */
export const serve = ({ socketUrl, port = PORT }) => serveSite({
  port,
  connect: socketUrl,
  async file(pathname) {
    if (!Object.hasOwn(FILES, pathname)) return undefined;
    const [path, type] = FILES[pathname];
    return { type, body: await readFile(new URL(path, import.meta.url)) };
  },
  async login({ name }) {
    if (typeof name !== 'string' || name !== name.trim() || !/^[^\p{C}]{1,30}$/u.test(name)) return undefined;
    return { name, token: await sql(LOGIN, { name }), socketUrl };
  },
  refusal: 'A name has 1 to 30 characters.',
});

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { SOCKET_URL: socketUrl } = process.env;
  if (!socketUrl) throw new Error('SOCKET_URL is not set');
  const port = process.argv[2] === undefined ? PORT : Number(process.argv[2]);
  console.log((await serve({ socketUrl, port })).url);
}
