// A small web server for the demos: files, and a login that hands out tokens. What the web server and the login of an
// application do, with as little of both as will do on one's own machine.

import { execFile } from 'node:child_process';
import { createServer } from 'node:http';
import { promisify } from 'node:util';

const MAX_BODY = 1024;

/** Runs SQL with psql, as PGHOST etc. say. Variables are quoted there (`:'name'`), not put together here. */
export async function sql(text, variables = {}) {
  const set = Object.entries(variables).flatMap(([name, value]) => ['-v', `${name}=${value}`]);
  const running = promisify(execFile)('psql', ['-X', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1', ...set]);
  running.child.stdin.end(text);
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

/**
 * Resolves with the server and its address; pages of it are of the origin `url`. `file(pathname)` gives `{ type, body }` or
 * nothing; `login(body)` what to answer, or nothing if it is refused with `refusal`. If `port` is taken it is another one.
 */
export async function serveSite({ port, connect, styles = "'self'", file, login, refusal }) {
  const headers = {
    'Cache-Control': 'no-cache',
    'Content-Security-Policy': `default-src 'none'; script-src 'self'; style-src ${styles}; img-src 'self'; connect-src 'self' ${connect}; `
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
        const body = request.headers['content-type'] === 'application/json' ? await json(request) : {};
        const answered = await login(body);
        tell(answered ? 200 : 400, answered ?? { message: refusal });
      } else {
        const found = ['GET', 'HEAD'].includes(request.method) ? await file(pathname) : undefined;
        if (found) answer(200, found.type, found.body);
        else tell(404, { message: 'not found' });
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
    if (error.code !== 'EADDRINUSE' || port === 0) throw error;
    return listen(0);
  });
  const url = `http://127.0.0.1:${server.address().port}`;
  return { server, url };
}
