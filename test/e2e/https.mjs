// The console in a real browser over https, with compression: the page opens its
// WebSocket by wss, the browser inflates what we put together.
//
// Environment: as for console.mjs, and CLUSTER_DATA, the cluster's directory.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { dirname } from 'node:path';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

import { chromium } from 'playwright-core';

import { fragmentOf } from '../../console/client.js';
import { Certificates } from '../integration/lib/certificates.mjs';

const { HTTP_URL, CHROMIUM = '/usr/bin/chromium', PSQL = 'psql' } = process.env;

async function query(text, ...args) {
  const { stdout } = await promisify(execFile)(PSQL, ['-X', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1', ...args, ...(text ? ['-c', text] : [])]);
  return stdout.trim();
}

const set = async (name, value) => query(`ALTER SYSTEM SET changefeed.${name} = '${value}'`);

let browser;
let certificates;

before(async () => {
  certificates = new Certificates(dirname(process.env.CLUSTER_DATA));
  const { cert, key } = certificates.make('localhost');
  if ((await query("SELECT to_regclass('shop.orders') IS NULL")) === 't') {
    await query(null, '-c', 'SET client_min_messages = warning', '-f', fileURLToPath(new URL('../../demo/shop.sql', import.meta.url)));
  }
  await set('tls_cert_file', cert);
  await set('tls_key_file', key);
  await set('compression', 'on');
  await query('SELECT pg_reload_conf()');
  browser = await chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox', '--disable-gpu', '--ignore-certificate-errors'] });
});

after(async () => {
  await browser?.close();
  for (const name of ['tls_cert_file', 'tls_key_file', 'compression']) await query(`ALTER SYSTEM RESET changefeed.${name}`);
  await query('SELECT pg_reload_conf()');
  certificates?.remove();
});

test('the console over https', async () => {
  const token = await query("SELECT changefeed.make_token('{\"role\": \"shop_dispatcher\", \"sub\": \"dispatch\"}')");
  const context = await browser.newContext();
  const page = await context.newPage();
  page.setDefaultTimeout(20_000);
  const handshakes = [];
  const frames = [];
  const network = await context.newCDPSession(page);
  await network.send('Network.enable');
  network.on('Network.webSocketCreated', ({ url }) => handshakes.push({ url }));
  network.on('Network.webSocketHandshakeResponseReceived', ({ response }) => Object.assign(handshakes.at(-1), { status: response.status, extensions: response.headers['Sec-WebSocket-Extensions'] }));
  network.on('Network.webSocketFrameReceived', ({ response }) => frames.push(response.payloadData));

  const url = `${HTTP_URL.replace('http:', 'https:')}/${fragmentOf([{ title: 'Dispatcher', token, channels: ['orders'] }])}`;
  // Until the gateway has been told there is no TLS.
  for (let i = 0; ; i += 1) {
    try {
      await page.goto(url);
      break;
    } catch (error) {
      if (i === 100) throw error;
      await page.waitForTimeout(100);
    }
  }
  await page.locator('.pane .badge[data-state="live"]').first().waitFor();
  assert.equal(await page.evaluate(() => window.isSecureContext), true);
  assert.deepEqual(handshakes, [{
    url: `${HTTP_URL.replace('http:', 'wss:')}/v1/socket`,
    status: 101,
    extensions: 'permessage-deflate; server_no_context_takeover; client_no_context_takeover',
  }]);

  const note = 'compressible '.repeat(40).trim();
  const id = await query(`INSERT INTO shop.orders (customer_id, total, note) VALUES (1, 12.30, '${note}') RETURNING id`);
  const row = page.locator(`.pane tbody tr[data-key="[${id}]"]`);
  await row.waitFor();
  await query(`UPDATE shop.orders SET status = 'packed' WHERE id = ${id}`);
  await row.locator('td').filter({ hasText: 'packed' }).first().waitFor();
  assert.ok(frames.some((text) => text.includes(note)), 'the browser has inflated it');
  await query(`DELETE FROM shop.orders WHERE id = ${id}`);
  await row.waitFor({ state: 'detached' });
});
