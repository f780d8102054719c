// The operator's views: connections, channels, lag and explain. They ask the server every two
// seconds while they are on show, and say so when it does not answer. What they make of the
// answers is in stats.js.
//
// As in console.js, what comes from the server is written as text, never as HTML.

import {
  bytes, countsText, explainStatement, growth, histogram, linePath, niceAbove, number, parseMetrics, seconds, total,
} from './stats.js';

const POLL_MS = 2000;
const RETRY_CAP_MS = 10_000;
const TIMEOUT_MS = 8000;
const SLOTS = 150; // points of a chart: five minutes
const CHART = { width: 400, height: 90, slots: SLOTS };
const SVG = 'http://www.w3.org/2000/svg';

const at = (id) => document.getElementById(id);

function el(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function svg(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [attribute, value] of Object.entries(attributes)) element.setAttribute(attribute, value);
  return element;
}

// ---------------------------------------------------------------------------
// Asking
// ---------------------------------------------------------------------------

/** An answer that is none: { status, code, hint }, status 0 if nobody answered. */
class Refusal extends Error {
  constructor(message, { status = 0, code = null, hint = null } = {}) {
    super(message);
    Object.assign(this, { status, code, hint });
  }
}

const secret = { token: '' };

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (secret.token) headers.Authorization = `Bearer ${secret.token}`;
  let answer;
  let text;
  try {
    answer = await fetch(new URL(path, new URL('.', location.href)), {
      ...options, headers, cache: 'no-store', signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    text = await answer.text();
  } catch (error) {
    throw new Refusal(error.name === 'TimeoutError' ? 'the server does not answer' : 'the server cannot be reached');
  }
  if (answer.ok) return text;
  let said = {};
  try {
    said = JSON.parse(text);
  } catch {
    // A proxy's page
  }
  throw new Refusal(said.message ?? `status ${answer.status}`, { status: answer.status, ...said });
}

const list = async (path) => JSON.parse(await ask(`admin/${path}`));

// ---------------------------------------------------------------------------
// Tables
// ---------------------------------------------------------------------------

/** Draws rows into a table: `columns` are { name, value(row), numeric, fill(td, row) }. */
function drawTable(table, columns, rows, keyOf) {
  if (!table.tHead) {
    table.createTHead().append(
      el('tr', {}, ...columns.map(({ name, numeric }) =>
        el('th', { scope: 'col', textContent: name, className: numeric ? 'is-number' : '' }))),
    );
    table.append(el('tbody'));
  }
  const body = table.tBodies[0];
  const known = new Map([...body.rows].map((tr) => [tr.dataset.key, tr]));
  let next = body.firstElementChild;
  for (const row of rows) {
    const key = String(keyOf(row));
    let tr = known.get(key);
    if (!tr) {
      tr = el('tr', {}, ...columns.map(({ numeric }) => el('td', { className: numeric ? 'is-number' : '' })));
      tr.dataset.key = key;
    }
    known.delete(key);
    for (const [i, { value, fill }] of columns.entries()) {
      const td = tr.cells[i];
      if (fill) fill(td, row);
      else setText(td, value(row));
      td.title = td.textContent.length > 24 ? td.textContent : '';
    }
    if (tr === next) next = next.nextElementSibling;
    else body.insertBefore(tr, next);
  }
  for (const tr of known.values()) tr.remove();
}

const words = (text) => (text ?? '–').replaceAll('_', ' ');

function since(time) {
  return time === null ? '–' : seconds(Math.max(0, (Date.now() - Date.parse(time)) / 1000));
}

function state(td, { state: name }) {
  if (!td.firstElementChild) td.append(el('span', { className: 'badge' }));
  td.firstElementChild.dataset.state = name;
  setText(td.firstElementChild, words(name));
}

// ---------------------------------------------------------------------------
// Connections
// ---------------------------------------------------------------------------

let chosen = null; // the connection whose subscriptions are on show

function pickSession(td, row) {
  if (!td.firstElementChild) {
    const button = el('button', { type: 'button', className: 'quiet mono' });
    button.addEventListener('click', () => {
      chosen = chosen === row.id ? null : row.id;
      at('subscriptions').hidden = chosen === null;
      poller.now();
    });
    td.append(button);
  }
  const button = td.firstElementChild;
  setText(button, row.session ?? `#${row.id}`);
  button.title = 'Its subscriptions';
  button.setAttribute('aria-expanded', String(chosen === row.id));
}

const connectionColumns = [
  { name: 'Session', fill: pickSession },
  { name: 'Role', value: ({ role }) => role ?? '–' },
  { name: 'Subject', value: ({ subject }) => subject ?? '–' },
  { name: 'Transport', value: ({ transport }) => transport },
  { name: 'Address', value: ({ address }) => address },
  { name: 'State', fill: state },
  { name: 'Behind', numeric: true, value: ({ lag }) => number(lag) },
  { name: 'Subscriptions', numeric: true, value: ({ subscriptions, ready }) => (ready === subscriptions ? number(ready) : `${number(ready)} of ${number(subscriptions)}`) },
  { name: 'Queued', numeric: true, value: ({ queued_bytes: n }) => bytes(n) },
  { name: 'Frames', numeric: true, value: ({ sent_frames: n }) => number(n) },
  { name: 'Sent', numeric: true, value: ({ sent_bytes: n }) => bytes(n) },
  { name: 'Connected', numeric: true, value: ({ connected_since: time }) => since(time) },
];

const subscriptionColumns = [
  { name: 'Channel', value: ({ name }) => name },
  { name: 'Definition', value: ({ channel }) => channel },
  { name: 'State', fill: state },
  { name: 'Behind', numeric: true, value: ({ lag }) => number(lag) },
  { name: 'Snapshot rows', numeric: true, value: ({ snapshot_rows: n }) => number(n) },
  { name: 'Resyncs', numeric: true, value: ({ resyncs }) => number(resyncs) },
  { name: 'Last reason', value: ({ resync_reason: reason }) => words(reason) },
];

async function connections() {
  const picked = chosen;
  const [all, gateways, own] = await Promise.all([
    list('connections'), list('gateways'), picked === null ? null : list(`subscriptions?connection=${picked}`),
  ]);
  return () => {
    const open = gateways.rows.reduce((sum, { connections: n }) => sum + n, 0);
    drawTable(at('connection-table'), connectionColumns, all.rows, ({ id }) => id);
    setText(at('connection-count'), all.more ? `the newest ${number(all.rows.length)} of about ${number(open)}` : number(all.rows.length));
    if (own === null || picked !== chosen) return;
    const row = all.rows.find(({ id }) => id === picked);
    setText(at('subscriptions-of'), row ? `Subscriptions of ${row.session ?? `#${picked}`}` : 'The connection has ended');
    drawTable(at('subscription-table'), subscriptionColumns, own.rows, ({ name }) => name);
  };
}

// ---------------------------------------------------------------------------
// Channels
// ---------------------------------------------------------------------------

const channelColumns = [
  { name: 'Channel', value: ({ channel }) => channel },
  { name: 'Subscriptions', numeric: true, value: ({ subscriptions }) => number(subscriptions) },
  { name: 'Ready', numeric: true, value: ({ ready }) => number(ready) },
  { name: 'Catching up', numeric: true, value: (row) => number(row.catching_up) },
  { name: 'Loading', numeric: true, value: ({ loading }) => number(loading) },
  { name: 'Querying', numeric: true, value: ({ querying }) => number(querying) },
  { name: 'Names', numeric: true, value: ({ instances }) => number(instances) },
  { name: 'Operations', numeric: true, value: ({ operations }) => number(operations) },
  { name: 'Sent', numeric: true, value: ({ bytes: n }) => bytes(n) },
  { name: 'Snapshots', numeric: true, value: ({ snapshots }) => number(snapshots) },
  { name: 'Denials', numeric: true, value: ({ denials }) => number(denials) },
  { name: 'Resyncs', numeric: true, value: ({ resyncs }) => number(resyncs) },
  { name: 'By reason', value: ({ resync_reasons: reasons }) => countsText(reasons) || '–' },
];

async function channels() {
  const all = await list('channels?limit=1000');
  return () => {
    drawTable(at('channel-table'), channelColumns, all.rows, ({ channel }) => channel);
    setText(at('channel-count'), all.more ? `the first ${number(all.rows.length)}` : number(all.rows.length));
  };
}

// ---------------------------------------------------------------------------
// Lag
// ---------------------------------------------------------------------------

const charts = [
  {
    title: 'Commit to socket', unit: seconds, hint: 'mean, and what 99 % are below',
    lines: (before, now) => {
      const h = before && histogram(before, now, 'delivery_lag_seconds');
      return h ? [h.mean, h.high] : [null, null];
    },
  },
  {
    title: 'Commit to gateway', unit: seconds, hint: 'mean, and what 99 % are below',
    lines: (before, now) => {
      const h = before && histogram(before, now, 'publish_lag_seconds');
      return h ? [h.mean, h.high] : [null, null];
    },
  },
  { title: 'Slot lag', unit: bytes, hint: 'WAL behind the oldest transaction that clients may ask for', lines: (_, now) => [total(now, 'slot_lag_bytes')] },
  {
    title: 'WAL held', unit: bytes, hint: 'because of the replication slot',
    lines: (_, now) => [total(now, 'wal_held_bytes')],
    limit: (now) => total(now, 'wal_held_limit_bytes'),
  },
  { title: 'Not decoded', unit: bytes, hint: 'WAL that is written and not decoded', lines: (_, now) => [total(now, 'decode_lag_bytes')] },
  {
    title: 'Transactions', unit: (n) => (n === null ? '–' : `${n.toFixed(1)} /s`), hint: 'handed to the gateways',
    lines: (before, now, elapsed) => [before && elapsed > 0 ? growth(before, now, 'transactions_sent_total') / elapsed : null],
  },
];

class Chart {
  constructor({ title, unit, hint, lines, limit }) {
    Object.assign(this, { title, unit, lines, limit });
    this.values = [];
    this.value = el('span', { className: 'chart-value', textContent: '–' });
    this.top = el('span', { className: 'chart-top' });
    this.picture = svg('svg', { viewBox: `0 -4 ${CHART.width + 4} ${CHART.height + 8}`, preserveAspectRatio: 'none', role: 'img' });
    this.paths = [];
    this.element = el('section', { className: 'chart' },
      el('header', {}, el('h3', { textContent: title }), this.value),
      this.picture,
      el('p', { className: 'hint' }, hint, ' ', this.top));
    this.element.dataset.chart = title;
  }

  add(before, now, elapsed) {
    this.values.push(this.lines(before, now, elapsed));
    if (this.values.length > SLOTS) this.values.shift();
  }

  /** A pause: what comes next is not joined to what was. */
  gap() {
    if (this.values.length > 0) this.values.push(this.values[0].map(() => null));
    if (this.values.length > SLOTS) this.values.shift();
  }

  draw(now) {
    const shown = this.values.flat().filter((value) => value !== null);
    const max = niceAbove(Math.max(0, ...shown));
    const { length } = this.values[0] ?? [];
    for (let i = 0; i < length; i++) {
      this.paths[i] ??= this.picture.appendChild(svg('path', { class: `line line-${i}`, 'vector-effect': 'non-scaling-stroke' }));
      this.paths[i].setAttribute('d', linePath(this.values.map((value) => value[i]), { ...CHART, max }));
    }
    const newest = this.values.findLast((value) => value[0] !== null);
    const text = newest ? newest.map((value) => this.unit(value)).join(' · ') : '–';
    const limit = this.limit?.(now);
    setText(this.value, text);
    setText(this.top, shown.length === 0 ? '' : `(scale to ${this.unit(max)}${limit ? `, limit ${this.unit(limit)}` : ''})`);
    this.picture.dataset.points = shown.length;
    this.picture.setAttribute('aria-label', `${this.title}: ${text}, at most ${shown.length ? this.unit(Math.max(...shown)) : '–'} in the last five minutes`);
  }
}

let scrape = null; // the last one: { at, samples }

async function lag() {
  const samples = parseMetrics(await ask('metrics'));
  return () => {
    const now = performance.now();
    const elapsed = scrape ? (now - scrape.at) / 1000 : 0;
    const joined = scrape && elapsed < 3 * (POLL_MS / 1000);
    for (const chart of drawnCharts) {
      if (scrape && !joined) chart.gap();
      chart.add(joined ? scrape.samples : null, samples, elapsed);
      chart.draw(samples);
    }
    scrape = { at: now, samples };
  };
}

const drawnCharts = charts.map((chart) => new Chart(chart));
at('charts').append(...drawnCharts.map(({ element }) => element));

// ---------------------------------------------------------------------------
// Explain
// ---------------------------------------------------------------------------

const explainColumns = [
  { name: 'Source', value: ({ source }) => source ?? '–' },
  { name: 'Aspect', value: ({ aspect }) => words(aspect) },
  { name: 'Name', value: ({ name }) => name ?? '–' },
  { name: 'Detail', fill: (td, { detail }) => { td.className = 'long mono'; setText(td, detail ?? '–'); } },
];

function explainArguments() {
  const channel = at('explain-channel').value.trim();
  let claims;
  try {
    claims = JSON.parse(at('explain-claims').value || '{}');
  } catch (error) {
    throw new Refusal(`the claims are not JSON: ${error.message}`);
  }
  if (claims === null || typeof claims !== 'object' || Array.isArray(claims)) {
    throw new Refusal('the claims must be a JSON object, such as {"role": "web", "sub": "1"}');
  }
  return { channel, claims };
}

function drawStatement() {
  try {
    const { channel, claims } = explainArguments();
    setText(at('explain-sql'), explainStatement(channel || 'orders:1', claims));
  } catch {
    setText(at('explain-sql'), 'SELECT * FROM changefeed.explain(…);');
  }
}

async function explain() {
  const problem = at('explain-problem');
  setText(problem, '');
  at('explain-result').hidden = true;
  try {
    const body = JSON.stringify(explainArguments());
    const said = await ask('admin/explain', { method: 'POST', headers: { 'Content-Type': 'application/json' }, body });
    let i = 0;
    drawTable(at('explain-table'), explainColumns, JSON.parse(said).rows, () => i++);
    at('explain-result').hidden = false;
  } catch (error) {
    const { message, code, hint } = error;
    setText(problem, `${message}${code ? ` (${code})` : ''}. ${hint ?? ''}`);
  }
}

at('explain-form').addEventListener('submit', (event) => {
  event.preventDefault();
  explain();
});
at('explain-form').addEventListener('input', drawStatement);

// ---------------------------------------------------------------------------
// Polling what is on show
// ---------------------------------------------------------------------------

const status = {
  show(text, badge, detail = '') {
    at('ask-state').dataset.state = badge;
    setText(at('ask-state-text'), text);
    setText(at('ask-detail'), detail);
    at('operate').classList.toggle('is-stale', badge !== 'live');
  },
};

const poller = {
  ask: null, // of the view on show
  timer: null,
  failures: 0,
  answeredAt: null,
  turn: 0,

  start(view) {
    this.ask = view;
    this.failures = 0;
    this.answeredAt = null;
    if (view) status.show('asking', 'connecting');
    this.now();
  },

  now() {
    clearTimeout(this.timer);
    this.turn += 1;
    if (this.ask && !document.hidden) this.poll(this.turn);
  },

  async poll(turn) {
    let wait = POLL_MS;
    try {
      const draw = await this.ask();
      if (turn !== this.turn) return;
      draw();
      this.failures = 0;
      this.answeredAt = new Date();
      status.show('live', 'live');
    } catch (error) {
      if (turn !== this.turn) return;
      if (!(error instanceof Refusal)) throw error;
      this.failures += 1;
      wait = Math.min(RETRY_CAP_MS, POLL_MS * this.failures);
      const old = this.answeredAt ? ` What is shown is of ${this.answeredAt.toLocaleTimeString()}.` : '';
      if (error.status === 401 || error.status === 403) {
        at('access').open = true;
        status.show('refused', 'error', `${error.message} (${error.code}). ${error.hint ?? ''}${old}`);
      } else {
        status.show('connection lost', 'reconnecting', `${error.message}; trying again in ${wait / 1000} s.${old}`);
      }
    }
    this.timer = setTimeout(() => this.now(), wait);
  },
};

document.addEventListener('visibilitychange', () => poller.now());
for (const event of ['online', 'offline']) window.addEventListener(event, () => poller.now());

// ---------------------------------------------------------------------------
// Views
// ---------------------------------------------------------------------------

const views = { feeds: null, connections, channels, lag, explain: null };

function show(name) {
  for (const button of document.querySelectorAll('#views button')) {
    if (button.dataset.view === name) button.setAttribute('aria-current', 'page');
    else button.removeAttribute('aria-current');
  }
  for (const section of document.querySelectorAll('[data-part]')) section.hidden = section.dataset.part !== name;
  at('panes').hidden = name !== 'feeds';
  at('add-pane').hidden = name !== 'feeds';
  at('operate').hidden = name === 'feeds';
  at('ask-state').hidden = views[name] === null;
  setText(at('ask-detail'), '');
  at('operate').classList.remove('is-stale');
  poller.start(views[name]);
}

at('views').addEventListener('click', ({ target }) => {
  const { view } = target.closest('button')?.dataset ?? {};
  if (view) show(view);
});

at('access-form').addEventListener('submit', (event) => {
  event.preventDefault();
  secret.token = at('access-token').value.replace(/\s+/g, '');
  setText(at('access-who'), secret.token ? 'Token set' : 'Without a token');
  at('access').open = false;
  poller.now();
});

// A token in the address gets its page from elsewhere; it does not stay there.
const address = new URL(location.href);
if (address.searchParams.has('token')) {
  secret.token = address.searchParams.get('token');
  at('access-token').value = secret.token;
  setText(at('access-who'), 'Token set');
  address.searchParams.delete('token');
  history.replaceState(null, '', address);
}
const wanted = new URLSearchParams(location.hash.slice(1)).get('view');
drawStatement();
show(wanted in views ? wanted : 'feeds');
