// Serves the chat's page and hands out tokens: what the web server and the login of an application
// do, with as little of both as will do on one's own machine. Whoever says a name gets its token.
//
//   SOCKET_URL=ws://… node demo/chat/server.mjs [port]       (and PGHOST etc., a superuser)
//
// Prints its address. Without a port it takes 8041, or any other if that one is taken.

import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const PORT = 8041;
const MAX_BODY = 1024;

const FILES = {
  '/': ['index.html', 'text/html; charset=utf-8'],
  '/chat.css': ['chat.css', 'text/css; charset=utf-8'],
  '/chat.js': ['chat.js', 'text/javascript; charset=utf-8'],
  '/client.js': ['../../console/client.js', 'text/javascript; charset=utf-8'],
  '/icon.svg': ['../../console/icon.svg', 'image/svg+xml'],
};

// The name is psql's variable: it is quoted there, not put together here.
const LOGIN = `
INSERT INTO chat.people VALUES (:'name') ON CONFLICT DO NOTHING;
SELECT changefeed.make_token(json_build_object('role', 'chat_user', 'sub', :'name')::text::jsonb, interval '12 hours');
`;

async function login(name) {
  const running = promisify(execFile)('psql', ['-X', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1', '-v', `name=${name}`]);
  running.child.stdin.end(LOGIN);
  return (await running).stdout.trim();
}

async function json(request) {
  let text = '';
  for await (const chunk of request) {
    text += chunk;
    if (text.length > MAX_BODY) return {};
  }
  try {
    return JSON.parse(text) ?? {};
  } catch {
    return {};
  }
}

/** Resolves with the server and its address. Pages of it are of the origin `url`. */
export async function serve({ socketUrl, port = PORT }) {
  const headers = {
    'Cache-Control': 'no-cache',
    'Content-Security-Policy': `default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self' ${socketUrl}; `
      + "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Referrer-Policy': 'no-referrer',
    'X-Content-Type-Options': 'nosniff',
  };
  const server = createServer(async (request, response) => {
    const answer = (status, type, body) => {
      response.writeHead(status, { ...headers, 'Content-Type': type }).end(body);
    };
    const tell = (status, object) => answer(status, 'application/json', JSON.stringify(object));
    try {
      const { pathname } = new URL(request.url, url);
      if (request.headers.host !== new URL(url).host) {
        // A name that leads here from a foreign page.
        tell(403, { message: `this is ${url}` });
      } else if (request.method === 'POST' && pathname === '/login') {
        // Only a page of ours can send this type without being asked first.
        const { name } = request.headers['content-type'] === 'application/json' ? await json(request) : {};
        if (typeof name !== 'string' || name !== name.trim() || !/^[^\p{C}]{1,30}$/u.test(name)) {
          tell(400, { message: 'A name has 1 to 30 characters.' });
        } else {
          tell(200, { name, token: await login(name), socketUrl });
        }
      } else if (['GET', 'HEAD'].includes(request.method) && Object.hasOwn(FILES, pathname)) {
        const [path, type] = FILES[pathname];
        answer(200, type, await readFile(new URL(path, import.meta.url)));
      } else {
        tell(404, { message: 'not found' });
      }
    } catch (error) {
      console.error(error.stderr || error);
      if (!response.headersSent) tell(500, { message: 'The login does not work; the terminal says why.' });
    }
  });
  const listen = (at) => new Promise((resolve, reject) => {
    server.once('error', reject).listen(at, '127.0.0.1', resolve);
  });
  await listen(port).catch((error) => {
    if (error.code !== 'EADDRINUSE' || port !== PORT) throw error;
    return listen(0);
  });
  const url = `http://127.0.0.1:${server.address().port}`;
  return { server, url };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { SOCKET_URL: socketUrl } = process.env;
  if (!socketUrl) throw new Error('SOCKET_URL is not set');
  const port = process.argv[2] === undefined ? PORT : Number(process.argv[2]);
  console.log((await serve({ socketUrl, port })).url);
}
