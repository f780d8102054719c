// Chromium, and a web server of the tests' own for its pages.

import { createServer } from 'node:http';
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import { chromium } from 'playwright-core';

import { assertSame } from '../../integration/lib/client.mjs';
import { reload } from '../../integration/lib/psql.mjs';

const ROOT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../../..');
/** Where the gateway is. */
export const SERVER = new URL(process.env.WS_URL).origin.replace('ws', 'http');
const FILES = { '/dist/': path.join(ROOT, 'client/dist'), '/lib/': path.join(ROOT, 'test/browser/lib') };
const TYPES = { '.js': 'text/javascript', '.html': 'text/html', '.json': 'application/json' };

export class Browser {
  /** Pages may connect from the origin of this server. Files beside those of the package: `extra`, by path. */
  static async start(db, extra = {}) {
    const self = new Browser();
    self.db = db;
    self.server = createServer(async (request, response) => {
      const { pathname } = new URL(request.url, 'http://localhost');
      if (extra[pathname]) return extra[pathname](request, response);
      const prefix = Object.keys(FILES).find((each) => pathname.startsWith(each));
      try {
        const body = prefix ? await readFile(path.join(FILES[prefix], path.normalize(`/${pathname.slice(prefix.length)}`))) : '<!doctype html><title>test</title>';
        response.setHeader('Content-Type', prefix ? TYPES[path.extname(pathname)] ?? 'text/plain' : 'text/html');
        response.end(body);
      } catch {
        response.statusCode = 404;
        response.end();
      }
      return undefined;
    });
    await new Promise((resolve) => { self.server.listen(0, '127.0.0.1', resolve); });
    self.origin = `http://127.0.0.1:${self.server.address().port}`;
    await reload(db, { 'changefeed.allowed_origins': self.origin });
    self.chromium = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox', '--disable-gpu', '--disable-quic'] });
    return self;
  }

  async context(t, options) {
    const context = await this.chromium.newContext(options);
    t.after(() => context.close());
    return context;
  }

  /** A page of the application; `token(why, sub)` of the test gives its tokens. */
  async page(context, options, { token = (_, sub) => this.db.token({ role: 'web', sub }), clock = false } = {}) {
    const page = await context.newPage();
    page.problems = [];
    page.on('pageerror', (error) => page.problems.push(String(error)));
    await page.exposeFunction('token', (why, sub) => token(why, sub));
    if (clock) await page.clock.install();
    page.begin = async (more = {}) => {
      await page.goto(`${this.origin}/`);
      await page.evaluate(async (given) => { window.lib = await import('/lib/app.js'); await window.lib.start(given); }, { sub: 'ada', url: SERVER, ...options, ...more });
    };
    await page.begin();
    return page;
  }

  async close() {
    await this.chromium.close();
    this.server.closeAllConnections();
    this.server.close();
  }
}

export const ready = (page) => page.evaluate(() => window.lib.ready(20000));
/** In the page, with `app`. */
export const get = (page, what, arg) => page.evaluate(what, arg);

/** Behind everything that is committed now, the page's rows are what SELECT gives its identity. */
export async function same(page, name, db, sub, select, what) {
  const rows = await page.evaluate((channel) => window.lib.rows(channel), name);
  assertSame(rows, await db.rowsAs({ role: 'web', sub }, select), `${what}: ${name}`);
}
