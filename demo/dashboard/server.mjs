// Serves the dashboard (what `npm run build` has put into dist/) and hands out the tokens of the people in courier.people.
//
//   HTTP_URL=http://… node demo/dashboard/server.mjs [port]       (and PGHOST etc., a superuser)
//
// Prints its address. Without a port it takes 8042, or any other if that one is taken.

import { readdir, readFile } from 'node:fs/promises';
import { extname } from 'node:path';
import { fileURLToPath } from 'node:url';

import { serveSite, sql } from '../site.mjs';

const PORT = 8042;
const DIST = new URL('dist/', import.meta.url);

const TYPES = {
  '.html': 'text/html; charset=utf-8', '.css': 'text/css; charset=utf-8', '.js': 'text/javascript; charset=utf-8', '.svg': 'image/svg+xml',
};

// Short, so that clients have to ask for another one now and then. Nothing if there is nobody of that name.
const LOGIN = `
SELECT json_build_object(
    'person', json_build_object('sub', sub, 'name', name, 'role', role),
    'people', (SELECT json_agg(json_build_object('sub', p.sub, 'name', p.name, 'role', p.role) ORDER BY p.role = 'courier_dispatcher' DESC, p.sub) FROM courier.people p),
    'token', changefeed.make_token(jsonb_strip_nulls(jsonb_build_object('role', role, 'sub', sub, 'customer', customer_id)), interval '15 minutes'))
FROM courier.people WHERE sub = :'sub';
`;

/** Resolves with the server and its address. Pages of it are of the origin `url`. */
export async function serve({ feedUrl, port = PORT }) {
  const files = new Set((await readdir(DIST, { recursive: true })).map((path) => `/${path}`));
  return serveSite({
    port,
    connect: feedUrl.replace(/^http/, 'ws'),
    styles: "'self' 'unsafe-inline'", // sonner brings its style sheet with its code
    async file(pathname) {
      const path = pathname === '/' ? '/index.html' : pathname;
      if (!files.has(path) || !TYPES[extname(path)]) return undefined;
      return { type: TYPES[extname(path)], body: await readFile(new URL(`.${path}`, DIST)) };
    },
    async login({ sub }) {
      const answer = typeof sub === 'string' ? await sql(LOGIN, { sub }) : '';
      return answer ? { ...JSON.parse(answer), url: feedUrl } : undefined;
    },
    refusal: 'There is nobody of that name.',
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { HTTP_URL: feedUrl } = process.env;
  if (!feedUrl) throw new Error('HTTP_URL is not set');
  const port = process.argv[2] === undefined ? PORT : Number(process.argv[2]);
  console.log((await serve({ feedUrl, port })).url);
}
