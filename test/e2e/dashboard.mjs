// The dashboard demo in a real browser: every panel and every switch, in a window and on a phone, as each of those who may
// sign in. What the page shows is compared with what SELECT returns, as soon as there is no traffic.
//
//   set -a; eval "$(scripts/cluster start --database shop)"; set +a
//   (cd demo/dashboard && npm run build) && node --test test/e2e/dashboard.mjs
//
// Environment: HTTP_URL and libpq's (a superuser; demo/dashboard/courier.sql is loaded if the couriers are not there). CHROMIUM
// and PSQL name other programs. Screenshots go to test/results; with UPDATE_IMAGES=1 others to doc/images.

import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir } from 'node:fs/promises';
import { after, afterEach, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

import { chromium } from 'playwright-core';

import { serve } from '../../demo/dashboard/server.mjs';
import { until } from '../integration/lib/client.mjs';

const { HTTP_URL, CHROMIUM = '/usr/bin/chromium', PSQL = 'psql', UPDATE_IMAGES } = process.env;
const root = new URL('../../', import.meta.url);
const pathOf = (path) => fileURLToPath(new URL(path, root));
const axe = pathOf('demo/dashboard/node_modules/axe-core/axe.min.js');
const skip = HTTP_URL ? false : 'HTTP_URL is not set';

const WINDOW = { viewport: { width: 1280, height: 800 } };
const PHONE = { viewport: { width: 390, height: 844 }, isMobile: true, hasTouch: true };
const PATIENCE = 40_000;
const PANELS = { Map: 'city', Orders: 'orders', Finance: 'finance', Connection: 'link', Activity: 'activity' };

async function sql(...args) {
  const { stdout } = await promisify(execFile)(PSQL, ['-X', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1', ...args]);
  return stdout.trim();
}
const query = (text) => sql('-c', text);
const json = async (text) => JSON.parse(await query(text));

let browser;
let server;
let url;
let writer;
const problems = []; // what a browser complained of

before(async () => {
  if (skip) return;
  await mkdir(pathOf('test/results'), { recursive: true });
  if ((await query("SELECT to_regclass('courier.orders') IS NULL")) === 't') {
    await sql('-c', 'SET client_min_messages = warning', '-f', pathOf('demo/dashboard/courier.sql'), '-f', pathOf('demo/dashboard/writer.sql'));
  }
  await query('UPDATE courier.traffic SET running = true');
  ({ server, url } = await serve({ feedUrl: HTTP_URL, port: 0 }));
  await query(`ALTER SYSTEM SET changefeed.allowed_origins = '${url}'`);
  await query('SELECT pg_reload_conf()');
  writer = spawn(PSQL, ['-X', '-q', '-v', 'ON_ERROR_STOP=1'], { stdio: ['pipe', 'ignore', 'inherit'] });
  writer.stdin.end('CALL courier.tick() \\watch 0.1\n');
  browser = await chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox', '--disable-gpu', '--disable-background-networking'] });
});

after(async () => {
  await browser?.close();
  writer?.kill();
  server?.close();
  server?.closeAllConnections();
  if (!skip) {
    await query('ALTER SYSTEM RESET changefeed.allowed_origins');
    await query('SELECT pg_reload_conf()');
  }
});

afterEach(async () => {
  for (const context of browser?.contexts() ?? []) await context.close();
});

/** No traffic from here on: what is under way has been committed. */
async function quiet() {
  await query('UPDATE courier.traffic SET running = false');
  await until(async () => (await query("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CALL courier.tick%' AND state = 'active' AND pid <> pg_backend_pid()")) === '0', 'no traffic');
}
const busy = () => query('UPDATE courier.traffic SET running = true');

/** What `look` finds in the page becomes what `expected` finds in the database. */
async function becomes(look, expected, what) {
  let found;
  let wanted;
  for (const end = Date.now() + PATIENCE; Date.now() < end;) {
    [found, wanted] = [await look(), await expected()];
    if (JSON.stringify(found) === JSON.stringify(wanted)) return;
  }
  assert.deepEqual(found, wanted, what);
}

async function signIn(sub, options) {
  // Motion costs time where there is no graphics card.
  const context = await browser.newContext({ reducedMotion: 'reduce', ...options });
  // Past the page's content security policy.
  await context.addInitScript({ path: axe });
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE);
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type())) problems.push(`${sub}: ${message.text()}`);
  });
  page.on('pageerror', (error) => problems.push(`${sub}: ${error.message}`));
  await page.goto(`${url}/#${sub}`);
  await connected(page);
  return page;
}

const connected = (page) => page.locator('.badge[data-status="connected"]').waitFor();
const isPhone = (page) => page.viewportSize().width < 700;
const show = async (page, panel) => {
  if (isPhone(page)) await page.getByRole('navigation', { name: 'Panels' }).getByRole('button', { name: panel }).click();
  await page.locator(`#${PANELS[panel]}`).waitFor();
};
const button = (page, name) => page.getByRole('button', { name, exact: true });
const row = (page, id) => page.locator(`#orders > .panel-body > .scroll li[data-id="${id}"]`);
const toast = (page, text) => page.locator('[data-sonner-toast]').filter({ hasText: text }).first().waitFor();
const option = (page, name) => page.getByRole('switch', { name });
const shot = (page, name) => page.screenshot({ path: pathOf(`doc/images/${name}.png`) });

/** A toast that fades in has no contrast yet. */
const settled = (page) => page.evaluate(() => Promise.allSettled(
  [...document.querySelectorAll('[data-sonner-toast]')].flatMap((each) => each.getAnimations({ subtree: true })).map(({ finished }) => finished)));

/** Nothing is wider than the page, and axe finds nothing to complain of. */
async function isAccessible(page, what) {
  assert.equal(await page.evaluate(() => document.documentElement.scrollWidth > window.innerWidth), false, `${what}: wider than the page`);
  await settled(page);
  const violations = await page.evaluate(async () => (await globalThis.axe.run(document, { resultTypes: ['violations'] })).violations
    .map(({ id, help, nodes }) => ({ id, help, where: nodes.slice(0, 3).map(({ html }) => html) })));
  assert.deepEqual(violations, [], what);
}

async function close(...pages) {
  await Promise.all(pages.map((page) => page.context().close()));
  assert.deepEqual(problems.splice(0), []);
}

/** The lists of orders, as the page shows them and as the database has them. */
async function shownOrders(page) {
  const result = {};
  for (const view of ['Waiting', 'Under way', 'Delivered']) {
    await page.locator('.views button').filter({ hasText: view }).click();
    result[view] = await page.locator('#orders > .panel-body > .scroll li').evaluateAll((items) => items.map((item) =>
      [Number(item.dataset.id), item.dataset.status, item.dataset.claimed, item.querySelector('strong').textContent, item.querySelector('.price').textContent]));
  }
  await page.locator('.views button').filter({ hasText: 'Waiting' }).click();
  return result;
}
// What a role cannot read it cannot sort by.
const savedOrders = ({ where = 'true', claimed = "coalesce(claimed_by, '')", urgent = 'urgent' } = {}) => json(`
  WITH o AS (SELECT status, json_build_array(id, status, ${claimed}, customer, '€' || price) AS shown, row_number() OVER (ORDER BY ${urgent} DESC, id) AS n
             FROM courier.orders WHERE ${where})
  SELECT json_object_agg(view, (SELECT coalesce(json_agg(shown ORDER BY n), '[]') FROM o WHERE status = ANY (statuses)))
  FROM (VALUES ('Waiting', ARRAY['new']), ('Under way', ARRAY['assigned', 'on the way']), ('Delivered', ARRAY['delivered'])) AS v (view, statuses)`);

const shownDrivers = (page) => page.locator('#city tbody tr').evaluateAll((rows) => rows.map(({ children }) => [...children].map(({ textContent }) => textContent)));
const savedDrivers = (where = 'true') => json(`SELECT coalesce(json_agg(json_build_array(name, vehicle, state, coalesce(order_id::text, '–'), x || ', ' || y) ORDER BY id), '[]')
  FROM courier.drivers WHERE ${where}`);

const shownFigures = (page) => page.locator('[data-figure]').evaluateAll((cells) => Object.fromEntries(cells.map((cell) => [cell.dataset.figure, cell.textContent])));
const savedFigures = () => json(`SELECT json_build_object('revenue', to_char(revenue, 'FM"€"999,990.00'), 'margin', to_char(margin, 'FM"€"999,990.00'),
  'deliveries', to_char(deliveries, 'FM999,990'), 'average', to_char(average, 'FM"€"999,990.00')) FROM courier.totals`);

const claimedBy = (id) => query(`SELECT coalesce(claimed_by, '') FROM courier.orders WHERE id = ${id}`);

/** New orders that nobody has claimed, as they stand in the list. Without traffic they stay. */
async function free(count) {
  await query(`DO $$ BEGIN WHILE (SELECT count(*) < ${count} FROM courier.orders WHERE status = 'new' AND claimed_by IS NULL) LOOP CALL courier.place(); END LOOP; END $$`);
  return json(`SELECT json_agg(id) FROM (SELECT id FROM courier.orders WHERE status = 'new' AND claimed_by IS NULL ORDER BY urgent DESC, id LIMIT ${count}) o`);
}

/** Does something while nobody can write to the order. */
async function whileLocked(id, work) {
  const blocker = spawn(PSQL, ['-X', '-q', '-A', '-t'], { stdio: ['pipe', 'pipe', 'inherit'] });
  blocker.stdin.write(`BEGIN; SELECT 'locked' FROM courier.orders WHERE id = ${id} FOR UPDATE;\n`);
  await once(blocker.stdout, 'data');
  await work();
  blocker.stdin.end('COMMIT;\n');
  await once(blocker, 'close');
}

for (const [size, options] of Object.entries({ window: WINDOW, phone: PHONE })) {
  test(`${size}: panels, and what is in them`, { skip }, async () => {
    await busy();
    const dana = await signIn('dana', { ...options, reducedMotion: 'no-preference' });
    await show(dana, 'Map');
    assert.equal(await dana.locator('.map .driver').first().evaluate((mark) => getComputedStyle(mark).transitionDuration), '0.8s');
    await until(async () => parseInt(await dana.getByTestId('rate').innerText(), 10) >= 10, 'at least ten updates per second');
    await dana.getByText('Drivers as a table').click();
    const before = await shownDrivers(dana);
    assert.equal(before.length, 24);
    await until(async () => JSON.stringify(await shownDrivers(dana)) !== JSON.stringify(before), 'drivers that move');
    await show(dana, 'Finance');
    await dana.locator('#finance').getByText('permission denied for table minutes').waitFor();
    await show(dana, 'Connection');
    for (const chart of await dana.locator('#link .chart').all()) {
      await until(async () => Number(await chart.getAttribute('data-points')) >= 2, 'points in the charts');
      assert.match(await chart.getAttribute('aria-label'), /over the last minute, (\d+|unknown) now/);
      assert.ok((await chart.locator('canvas').boundingBox()).width > 100);
    }

    // All of it is what SELECT returns.
    await quiet();
    await show(dana, 'Map');
    await becomes(() => shownDrivers(dana), savedDrivers, 'drivers');
    await show(dana, 'Orders');
    await becomes(() => shownOrders(dana), savedOrders, 'orders');
    await dana.getByTestId('desk').getByText('At the desk: Dana').waitFor();

    // Dark, and a phone shows one panel at a time. (Light is what all that follows is.)
    await dana.emulateMedia({ colorScheme: 'dark' });
    for (const panel of isPhone(dana) ? Object.keys(PANELS) : ['Map']) {
      await show(dana, panel);
      await isAccessible(dana, `${size}: ${panel}, dark`);
    }
    if (isPhone(dana)) {
      await dana.setViewportSize({ width: 360, height: 740 });
      for (const panel of Object.keys(PANELS)) {
        await show(dana, panel);
        assert.equal(await dana.evaluate(() => document.documentElement.scrollWidth), 360, panel);
      }
    }
    await close(dana);
  });

  test(`${size}: dispatching, and two who want the same`, { skip }, async () => {
    await quiet();
    const [one, two, three, four, five] = await free(6);
    await query("UPDATE courier.orders SET note = '' WHERE note <> ''"); // of an earlier run
    const [dana, emil] = await Promise.all([signIn('dana', options), signIn('emil', options)]);
    await Promise.all([show(dana, 'Orders'), show(emil, 'Orders')]);
    for (const page of [dana, emil]) await page.getByTestId('desk').getByText(/Dana, Emil|Emil, Dana/).waitFor();

    // At once on the own screen, before the database has done it; then on both.
    await whileLocked(one, async () => {
      await button(dana, `Claim order ${one}`).click();
      await row(dana, one).and(dana.locator('.pending[data-claimed="dana"]')).waitFor();
      assert.equal(await claimedBy(one), '');
      assert.equal(await row(emil, one).getAttribute('data-claimed'), '');
    });
    await toast(dana, `Dana has order ${one}`);
    await row(emil, one).and(emil.locator('[data-claimed="dana"]')).waitFor();
    assert.equal(await claimedBy(one), 'dana');
    await button(dana, `Release order ${one}`).click();
    await button(emil, `Claim order ${one}`).waitFor();
    assert.equal(await claimedBy(one), '');

    // Both reach for one, and both see it as theirs until the database has decided.
    await whileLocked(two, async () => {
      await button(dana, `Claim order ${two}`).click();
      await button(emil, `Claim order ${two}`).click();
      await row(dana, two).and(dana.locator('.pending[data-claimed="dana"]')).waitFor();
      await row(emil, two).and(emil.locator('.pending[data-claimed="emil"]')).waitFor();
    });
    await until(async () => (await claimedBy(two)) !== '', 'a winner');
    const winner = await claimedBy(two);
    const [first, second] = winner === 'dana' ? [dana, emil] : [emil, dana];
    const nameOf = (page) => (page === dana ? 'Dana' : 'Emil');
    await toast(first, `${nameOf(first)} has order ${two}`);
    await toast(second, `Conflict: order ${two} was not ${nameOf(second)}’s to take`);
    await toast(second, `${nameOf(first)} was faster.`);
    for (const page of [dana, emil]) await row(page, two).and(page.locator(`[data-claimed="${winner}"]:not(.pending)`)).waitFor();

    // To a driver: order, driver and map in one transaction.
    await button(first, `Send driver for order ${two}`).click();
    await toast(first, `Order ${two} goes with a driver`);
    assert.equal(await query(`SELECT o.status || ' ' || d.state || ' ' || (d.order_id = o.id) FROM courier.orders o JOIN courier.drivers d ON d.id = o.driver_id WHERE o.id = ${two}`),
      'assigned collecting true');
    await row(second, two).waitFor({ state: 'detached' });

    // A second desk in the same window.
    await button(dana, 'Second desk').click();
    const race = dana.getByRole('button', { name: 'Both claim' });
    const wanted = Number((await race.innerText()).match(/\d+/)[0]);
    await race.click();
    await toast(dana, `has order ${wanted}`);
    await toast(dana, `Conflict: order ${wanted}`);
    assert.match(await claimedBy(wanted), /^(dana|emil)$/);
    await isAccessible(dana, `${size}: two desks`);
    await dana.screenshot({ path: pathOf(`test/results/dashboard-${size}.png`) });
    await button(dana, 'Close').click();

    // Editing takes time: who saves second is shown what the first one wrote, and decides.
    const edit = async (page, id, text) => {
      await button(page, `Note of order ${id}`).click();
      await page.getByRole('dialog').getByLabel('For the driver').fill(text);
    };
    const noteOf = (id) => query(`SELECT note FROM courier.orders WHERE id = ${id}`);
    for (const [id, answer, result] of [[four, 'Keep theirs', 'From Dana'], [five, 'Save mine all the same', 'From Emil']]) {
      await Promise.all([edit(dana, id, 'From Dana'), edit(emil, id, 'From Emil')]);
      await button(dana, 'Save').click();
      await dana.getByRole('dialog').waitFor({ state: 'detached' });
      await row(emil, id).getByText('From Dana').waitFor({ state: 'attached' });
      await button(emil, 'Save').click();
      await emil.getByRole('dialog').getByRole('alert').getByText('From Dana').waitFor();
      await isAccessible(emil, `${size}: two notes`);
      await button(emil, answer).click();
      await emil.getByRole('dialog').waitFor({ state: 'detached' });
      await row(dana, id).getByText(result).waitFor({ state: 'attached' });
      assert.equal(await noteOf(id), result);
    }
    // Somebody else has changed something else: no conflict.
    await edit(dana, three, 'Beside the claim');
    await query(`UPDATE courier.orders SET claimed_by = 'emil' WHERE id = ${three}`);
    await button(dana, 'Save').click();
    await toast(dana, `Note of order ${three} saved`);
    assert.equal(`${await noteOf(three)}, ${await claimedBy(three)}`, 'Beside the claim, emil');

    for (const page of [dana, emil]) await becomes(() => shownOrders(page), savedOrders, 'orders');
    await close(dana, emil);
  });

  test(`${size}: cut, offline and back`, { skip }, async () => {
    await quiet();
    const dana = await signIn('dana', options);
    const status = (name) => dana.locator(`.badge[data-status="${name}"]`).waitFor();

    // The socket is gone, the city goes on; what was missed comes, and nothing is loaded again.
    await show(dana, 'Connection');
    await option(dana, 'Cut the connection').click();
    await status('reconnecting');
    await show(dana, 'Map');
    await dana.locator('.map.stale').waitFor();
    await isAccessible(dana, `${size}: cut`);
    for (let i = 0; i < 20; i += 1) await query('CALL courier.move_drivers()');
    await show(dana, 'Connection');
    await option(dana, 'Cut the connection').click();
    await status('connected');
    const trips = dana.getByRole('list', { name: 'Interruptions' }).locator('li[data-over="true"]');
    await trips.first().waitFor();
    assert.ok(Number(await trips.first().getAttribute('data-replayed')) >= 20);
    assert.equal(await trips.first().getAttribute('data-reloaded'), '0');
    await toast(dana, 'nothing loaded again');
    await show(dana, 'Map');
    if (!(await dana.locator('.as-table').getAttribute('open'))) await dana.getByText('Drivers as a table').click();
    await becomes(() => shownDrivers(dana), savedDrivers, 'drivers, after the cut');

    // Offline: what is done waits, and is done once. What somebody else has done meanwhile is a conflict, and holds nothing up.
    const [one, two, three] = await free(4);
    await show(dana, 'Orders');
    for (const id of [one, two, three]) await button(dana, `Claim order ${id}`).waitFor();
    await show(dana, 'Connection');
    await option(dana, 'Work offline').click();
    await status('disconnected');
    await show(dana, 'Orders');
    for (const id of [one, two]) {
      await button(dana, `Claim order ${id}`).click();
      await row(dana, id).and(dana.locator('.queued[data-claimed="dana"]')).waitFor();
    }
    await button(dana, `Note of order ${three}`).click();
    await dana.getByRole('dialog').getByLabel('For the driver').fill('Written offline');
    await button(dana, 'Save').click();
    await row(dana, three).and(dana.locator('.queued')).waitFor();
    assert.equal(await claimedBy(one), '');
    await query(`UPDATE courier.orders SET claimed_by = 'emil' WHERE id = ${one}`);
    await show(dana, 'Connection');
    const queue = dana.getByRole('list', { name: 'Queue' }).locator('li');
    assert.deepEqual(await queue.evaluateAll((items) => items.map(({ dataset }) => dataset.state)), ['waiting', 'waiting', 'waiting']);
    await isAccessible(dana, `${size}: offline`);
    await option(dana, 'Work offline').click();
    await status('connected');
    await queue.and(dana.locator('[data-state="failed"]')).waitFor();
    await toast(dana, `order ${one} is already claimed by Emil`);
    await until(async () => (await queue.count()) === 1, 'the rest is done');
    assert.deepEqual(await Promise.all([one, two].map(claimedBy)), ['emil', 'dana']);
    assert.equal(await query(`SELECT note FROM courier.orders WHERE id = ${three}`), 'Written offline');
    await isAccessible(dana, `${size}: set aside`);
    // Emil lets go of it; then it can be sent again.
    await query(`UPDATE courier.orders SET claimed_by = NULL WHERE id = ${one}`);
    await button(dana, `Again: Claim order ${one}`).click();
    await until(async () => (await claimedBy(one)) === 'dana', 'the second attempt');
    await queue.first().waitFor({ state: 'detached' });

    // Refused again, and thrown away. This time the page is loaded anew before it comes back.
    await option(dana, 'Work offline').click();
    await status('disconnected');
    await show(dana, 'Orders');
    const [four] = await free(1);
    await button(dana, `Claim order ${four}`).click();
    await row(dana, four).and(dana.locator('.queued')).waitFor();
    await query(`UPDATE courier.orders SET claimed_by = 'emil' WHERE id = ${four}`);
    await dana.reload();
    await connected(dana);
    await show(dana, 'Connection');
    await queue.and(dana.locator('[data-state="failed"]')).waitFor();
    await button(dana, `Discard: Claim order ${four}`).click();
    await queue.first().waitFor({ state: 'detached' });
    assert.equal(await claimedBy(four), 'emil');
    await show(dana, 'Orders');
    await becomes(() => shownOrders(dana), savedOrders, 'orders');
    await close(dana);
  });

  test(`${size}: the finance department and a customer`, { skip }, async () => {
    await busy();
    const page = await signIn('fiona', { ...options, colorScheme: 'dark' });
    await show(page, 'Finance');
    const before = await shownFigures(page);
    await until(async () => (await shownFigures(page)).revenue !== before.revenue, 'figures that move');
    await quiet();
    await becomes(() => shownFigures(page), savedFigures, 'figures');
    assert.equal(await page.locator('#finance .chart').getAttribute('data-points'), await query('SELECT count(*) FROM courier.minutes'));
    await isAccessible(page, `${size}: finance`);
    await show(page, 'Map');
    await page.locator('#city').getByText('permission denied for table drivers').waitFor();
    await show(page, 'Orders');
    assert.equal(await page.getByRole('button', { name: /Claim|Note|Second/ }).count(), 0);
    await becomes(() => shownOrders(page), () => savedOrders({ claimed: "''", urgent: 'true' }), 'orders');

    // Somebody else signs in: nothing of before is left, not even in the page's source.
    await page.getByLabel('Signed in as').selectOption('bakery');
    await connected(page);
    await show(page, 'Orders');
    await becomes(() => shownOrders(page), () => savedOrders({ where: 'customer_id = 1', claimed: "''" }), 'orders of the bakery');
    assert.doesNotMatch(await page.content(), /cost €|Fiona(?!, finance)/);
    await show(page, 'Map');
    await page.getByText('Drivers as a table').click();
    await becomes(() => shownDrivers(page), () => savedDrivers('customer_id = 1'), 'drivers of the bakery');
    await show(page, 'Orders');
    const latest = () => query('SELECT max(id) FROM courier.orders WHERE customer_id = 1');
    const last = await latest();
    await page.getByLabel('urgent').check();
    await button(page, 'Order a delivery').click();
    await until(async () => (await latest()) !== last, 'an order');
    const placed = await latest();
    await toast(page, `Order ${placed} is placed`);
    await row(page, placed).getByText('urgent').waitFor();
    await isAccessible(page, `${size}: customer`);
    // Without a connection it waits.
    await show(page, 'Connection');
    await option(page, 'Work offline').click();
    await page.locator('.badge[data-status="disconnected"]').waitFor();
    await show(page, 'Orders');
    await button(page, 'Order a delivery').click();
    await toast(page, 'Kept for later: a new order');
    assert.equal(await latest(), placed);
    await show(page, 'Connection');
    await option(page, 'Work offline').click();
    await until(async () => (await latest()) !== placed, 'the order that waited');
    await becomes(() => query('SELECT count(*) FROM courier.orders WHERE customer_id = 1 AND urgent AND id >= ' + placed), () => '2', 'each order once');
    // A driver takes it: the customer is told.
    await query(`UPDATE courier.orders SET status = 'assigned', driver_id = 1 WHERE id = ${placed}`);
    await query(`UPDATE courier.orders SET status = 'on the way' WHERE id = ${placed}`);
    await toast(page, `Order ${placed} is on the way`);
    await show(page, 'Activity');
    await page.locator('#activity').getByText(`Order ${placed} is on the way`).waitFor();
    await isAccessible(page, `${size}: activity`);
    await close(page);
  });
}

test('keyboard and little motion', { skip }, async () => {
  await quiet();
  const [id] = await free(2);
  const dana = await signIn('dana', WINDOW);
  await row(dana, id).waitFor();
  assert.equal(await dana.locator('.map .driver').first().evaluate((mark) => getComputedStyle(mark).transitionDuration), '0s');
  // Everything by Tab, Space, Enter and Escape alone.
  const focused = () => dana.evaluate(() => document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent);
  const tabTo = async (name) => {
    for (let i = 0; i < 200; i += 1) {
      if ((await focused()) === name) return;
      await dana.keyboard.press('Tab');
    }
    assert.fail(`Tab does not lead to ${name}`);
  };
  await tabTo(`Claim order ${id}`);
  assert.notEqual(await dana.evaluate(() => getComputedStyle(document.activeElement).outlineStyle), 'none');
  await dana.keyboard.press('Enter');
  await until(async () => (await claimedBy(id)) === 'dana', 'claimed by keyboard');
  await tabTo(`Note of order ${id}`);
  await dana.keyboard.press('Enter');
  await dana.getByRole('dialog').waitFor();
  await dana.keyboard.press('Escape');
  await dana.getByRole('dialog').waitFor({ state: 'detached' });
  // Of what changes all the time, nothing is announced.
  assert.deepEqual(await dana.evaluate(() => [...document.querySelectorAll('[aria-live], [role="status"], [role="alert"], [role="log"]')]
    .map((region) => region.closest('section[aria-label^="Notifications"], .badge') !== null)), [true, true]);
  await close(dana);
});

// For the documentation. A cluster of its own makes them look as they do at the start of the demo.
test('screenshots', { skip: skip || (UPDATE_IMAGES ? false : 'UPDATE_IMAGES is not set') }, async () => {
  await busy();
  await query('CALL courier.tidy()');
  const [dana, fiona, phone] = await Promise.all([
    signIn('dana', WINDOW), signIn('fiona', { ...WINDOW, colorScheme: 'dark' }), signIn('emil', { ...PHONE, colorScheme: 'dark' }),
  ]);
  await until(async () => Number(await dana.locator('#link .chart').first().getAttribute('data-points')) >= 12, 'charts');
  await option(dana, 'Cut the connection').click();
  await dana.locator('.badge[data-status="reconnecting"]').waitFor();
  const before = await shownFigures(fiona);
  await until(async () => (await shownFigures(fiona)).deliveries !== before.deliveries, 'a delivery');
  await option(dana, 'Cut the connection').click();
  await dana.getByRole('list', { name: 'Interruptions' }).locator('li[data-over="true"]').waitFor();
  await dana.locator('[data-sonner-toast]').first().waitFor({ state: 'detached' });
  await button(dana, 'Second desk').click();
  await dana.getByRole('button', { name: 'Both claim' }).click();
  await toast(dana, 'was faster');
  await settled(dana);
  await shot(dana, 'dashboard');
  await shot(fiona, 'dashboard-finance');
  await show(phone, 'Orders');
  await shot(phone, 'dashboard-phone');
  await quiet();
  await close(dana, fiona, phone);
});
