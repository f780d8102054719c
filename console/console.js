// The console's page: panes, tables and the log of operations. What is behind them, the
// connection and the rows, is in client.js.
//
// Everything that comes from the server or from the address is written as text (textContent,
// attributes), never as HTML. Nothing is stored: with the page, all of it is gone.

import { claimsOf, Client, isNumber, panesOf, show, signToken } from './client.js';
import { Members } from './stats.js';

const LOG_LIMIT = 500;
const TABLE_LIMIT = 1000;
const CHANGES_SHOWN = 50; // of one transaction in the log
const VALUE_LENGTH = 80; // of one value in the log
const RAW_LENGTH = 4000; // of one message in the log
const MEMBERS_SHOWN = 200;
const PENDING_LIMIT = 2000; // above it, a table is drawn anew instead of key by key
const MARK_MS = 1000;
const FADE_MS = 600;
const DRAW_MS = 80; // between two drawings of a pane
const DRAW_HIDDEN_MS = 500;
const RATE_SECONDS = 5;
const TOKEN_SECONDS = 3600;

const socketUrl = new URL('v1/socket', location.href);
socketUrl.protocol = socketUrl.protocol === 'https:' ? 'wss:' : 'ws:';
socketUrl.hash = '';
socketUrl.search = '';

const reducedMotion = matchMedia('(prefers-reduced-motion: reduce)');

// ---------------------------------------------------------------------------
// Small helpers
// ---------------------------------------------------------------------------

/** An element with properties and children; strings become text. */
function el(name, { dataset, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  if (dataset) Object.assign(element.dataset, dataset);
  element.append(...children);
  return element;
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function fromTemplate(id) {
  return document.getElementById(id).content.firstElementChild.cloneNode(true);
}

function clockTime(ms) {
  const date = new Date(ms);
  const two = (n) => String(n).padStart(2, '0');
  const millis = String(date.getMilliseconds()).padStart(3, '0');
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}.${millis}`;
}

function duration(ms) {
  if (ms < 1) return '< 1 ms';
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  return `${Math.round(ms / 60_000)} min`;
}

function shorten(text, length) {
  return text.length > length ? `${text.slice(0, length - 1)}…` : text;
}

/** A long opaque text by its ends. */
function ends(text) {
  return text.length > 21 ? `${text.slice(0, 10)}…${text.slice(-8)}` : text;
}

function count(n, noun) {
  return `${n.toLocaleString('en')} ${noun}${n === 1 ? '' : 's'}`;
}

function sentence(text) {
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}`;
}

/** Strings in quotes, so that "1" and 1 differ. */
function literal(value) {
  return shorten(typeof value === 'string' ? JSON.stringify(value) : show(value), VALUE_LENGTH);
}

async function copyText(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  // Without https there is no clipboard but this.
  const area = el('textarea', { value: text, className: 'hidden' });
  document.body.append(area);
  area.select();
  document.execCommand('copy');
  area.remove();
}

// ---------------------------------------------------------------------------
// A table: the rows of one entity
// ---------------------------------------------------------------------------

function compareValues(a, b) {
  if (a === b) return 0;
  const noA = a === null || a === undefined;
  const noB = b === null || b === undefined;
  if (noA || noB) return noA - noB;
  if (isNumber(a) && isNumber(b)) {
    const difference = Number(show(a)) - Number(show(b));
    if (difference !== 0) return difference;
  }
  const textA = show(a);
  const textB = show(b);
  return textA < textB ? -1 : Number(textA > textB);
}

class Table {
  constructor(channel, name) {
    this.name = name;
    this.element = fromTemplate('table-template');
    this.head = this.element.querySelector('thead tr');
    this.body = this.element.querySelector('tbody');
    this.countText = this.element.querySelector('.count');
    this.shownText = this.element.querySelector('.shown');
    this.noRows = this.element.querySelector('.no-rows');
    setText(this.element.querySelector('.entity-name'), name);
    this.element.querySelector('.scroll').setAttribute('aria-label', `Rows of ${name} in ${channel}`);

    this.entity = null;
    this.columns = [];
    this.numeric = new Set(); // columns that have shown a number: to the right
    this.sortBy = null; // a column; null: the key
    this.descending = true;
    this.rows = new Map(); // key -> row, as sorted
    this.order = []; // keys, sorted
    this.drawn = new Map(); // key -> { tr, cells, row }
    this.pending = new Set(); // keys to look at again; null: all
  }

  touch(key) {
    if (this.pending === null) return;
    this.pending.add(key);
    if (this.pending.size > PENDING_LIMIT) this.pending = null;
  }

  touchAll() {
    this.pending = null;
  }

  draw(entity) {
    const isNew = this.entity === null;
    if (this.entity !== entity) this.pending = null;
    this.entity = entity;
    if (this.columns.join() !== entity.columns.join()) this.drawHead();
    const quiet = this.pending === null;
    if (quiet) this.sortAll();
    else for (const key of this.pending) this.sortOne(key);
    this.drawRows({ quiet, isNew });
    this.pending = new Set();
  }

  drawHead() {
    this.columns = [...this.entity.columns];
    this.numeric.clear();
    this.head.replaceChildren(
      ...this.columns.map((column) => {
        const button = el('button', { type: 'button', textContent: column });
        button.addEventListener('click', () => this.sort(column));
        const isKey = this.entity.key.includes(column);
        if (isKey) button.title = 'part of the key';
        return el('th', { scope: 'col', className: isKey ? 'is-key' : '' }, button);
      }),
    );
    this.body.replaceChildren();
    this.drawn.clear();
    this.pending = null;
    this.markSort();
  }

  sort(column) {
    const current = this.sortBy ?? this.entity.key[0];
    this.descending = current === column ? !this.descending : false;
    this.sortBy = column;
    this.markSort();
    this.touchAll();
    this.draw(this.entity);
  }

  markSort() {
    const current = this.sortBy ?? this.entity.key[0];
    for (const [i, th] of [...this.head.children].entries()) {
      if (this.columns[i] === current) th.setAttribute('aria-sort', this.descending ? 'descending' : 'ascending');
      else th.removeAttribute('aria-sort');
    }
  }

  // ---- The order of all rows, of which the first ones are drawn ----

  compare(a, b) {
    for (const column of this.sortBy ? [this.sortBy, ...this.entity.key] : this.entity.key) {
      const result = compareValues(a[column], b[column]);
      if (result !== 0) return this.descending ? -result : result;
    }
    return 0;
  }

  sortAll() {
    this.rows = new Map(this.entity.rows);
    this.order = [...this.rows.keys()].sort((a, b) => this.compare(this.rows.get(a), this.rows.get(b)));
  }

  /** The first place whose row does not come before `row`. */
  place(row) {
    let low = 0;
    let high = this.order.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.compare(this.rows.get(this.order[middle]), row) < 0) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  sortOne(key) {
    const before = this.rows.get(key);
    const after = this.entity.rows.get(key);
    if (before && after && this.compare(before, after) === 0) {
      this.rows.set(key, after);
      return;
    }
    if (before) {
      this.order.splice(this.place(before), 1);
      this.rows.delete(key);
    }
    if (after) {
      this.order.splice(this.place(after), 0, key);
      this.rows.set(key, after);
    }
  }

  // ---- The drawn rows ----

  drawRows({ quiet, isNew }) {
    const keys = this.order.slice(0, TABLE_LIMIT);
    const wanted = new Set(keys);
    for (const [key, line] of this.drawn) {
      if (wanted.has(key)) continue;
      this.drawn.delete(key);
      this.fade(line.tr, quiet || this.rows.has(key));
    }
    let next = this.body.firstElementChild;
    for (const key of keys) {
      while (next?.classList.contains('gone')) next = next.nextElementSibling;
      let line = this.drawn.get(key);
      const row = this.rows.get(key);
      if (!line) {
        line = this.newLine(key, row, !quiet);
        this.drawn.set(key, line);
      } else if (line.row !== row) {
        this.update(line, row);
      }
      if (line.tr === next) next = next.nextElementSibling;
      else this.body.insertBefore(line.tr, next);
    }
    const total = this.order.length;
    setText(this.countText, count(total, 'row'));
    setText(this.shownText, total > TABLE_LIMIT ? `(first ${TABLE_LIMIT.toLocaleString('en')} shown)` : '');
    this.noRows.hidden = total > 0;
    if (isNew) this.element.querySelector('.scroll').scrollTop = 0;
  }

  newLine(key, row, mark) {
    const cells = this.columns.map((column, i) => {
      const td = el('td');
      this.fill(td, row[column], i);
      return td;
    });
    const tr = el('tr', { dataset: { key } }, ...cells);
    if (mark) this.mark(tr, 'added');
    return { tr, cells, row };
  }

  fill(td, value, i) {
    const text = show(value);
    setText(td, text);
    td.title = text.length > 22 ? text : '';
    td.classList.toggle('is-null', value === null || value === undefined);
    if (isNumber(value) && !this.numeric.has(i)) {
      this.numeric.add(i);
      this.head.children[i].classList.add('is-number');
      for (const { cells } of this.drawn.values()) cells[i].classList.add('is-number');
    }
    td.classList.toggle('is-number', this.numeric.has(i));
  }

  update(line, row) {
    for (const [i, column] of this.columns.entries()) {
      const before = line.row[column];
      const after = row[column];
      if (before === after || (literal(before) === literal(after) && show(before) === show(after))) continue;
      const td = line.cells[i];
      this.fill(td, after, i);
      this.mark(td, 'flash');
    }
    line.row = row;
  }

  mark(element, name) {
    element.classList.add(name);
    clearTimeout(element.markTimer);
    element.markTimer = setTimeout(() => element.classList.remove(name), MARK_MS);
  }

  fade(tr, atOnce) {
    if (atOnce || reducedMotion.matches || document.hidden) {
      tr.remove();
      return;
    }
    tr.classList.add('gone');
    setTimeout(() => tr.remove(), FADE_MS);
  }
}

// ---------------------------------------------------------------------------
// The log of operations
// ---------------------------------------------------------------------------

class Log {
  constructor(pane) {
    this.pane = pane;
    this.list = pane.find('.log');
    this.pauseButton = pane.find('.pause');
    this.waiting = []; // entries that are not drawn yet
    this.paused = false;
    this.scrolled = false;
    this.list.addEventListener('scroll', () => { this.scrolled = this.list.scrollTop > 4; }, { passive: true });
    this.pauseButton.addEventListener('click', () => this.pause(!this.paused));
    pane.find('.clear').addEventListener('click', () => this.clear());
    this.filterInput = pane.find('.filter');
    this.filterInput.addEventListener('input', () => this.filter());
    this.rawButton = pane.find('.raw');
    this.rawButton.addEventListener('click', () => {
      pane.client.raw = !pane.client.raw;
      this.rawButton.setAttribute('aria-pressed', String(pane.client.raw));
      this.clear();
    });
  }

  /** Hides what does not have the text; what comes later is looked at as it is drawn. */
  filter(items = this.list.children) {
    const text = this.filterInput.value.trim().toLowerCase();
    for (const item of items) item.hidden = !item.textContent.toLowerCase().includes(text);
  }

  add(entry) {
    this.waiting.push(entry);
    if (this.waiting.length > LOG_LIMIT) this.waiting.shift();
  }

  pause(paused) {
    this.paused = paused;
    this.pauseButton.setAttribute('aria-pressed', String(paused));
    this.pane.schedule();
  }

  clear() {
    this.waiting = [];
    this.list.replaceChildren();
    this.pane.schedule();
  }

  draw() {
    const { length } = this.waiting;
    const more = length === LOG_LIMIT ? `${length}+` : length;
    setText(this.pauseButton, this.paused ? `Paused (${more})` : 'Pause');
    if (this.paused || length === 0) return;
    const items = this.waiting
      .reverse()
      .map((entry) => this.item(entry));
    this.waiting = [];
    this.filter(items);
    // Newest first. Who has scrolled down to read is not moved away from there; otherwise no
    // measuring, which would make the browser lay out the page at once.
    const { scrollTop, scrollHeight } = this.scrolled ? this.list : {};
    this.list.prepend(...items);
    if (this.scrolled) this.list.scrollTop = scrollTop + this.list.scrollHeight - scrollHeight;
    while (this.list.childElementCount > LOG_LIMIT) this.list.lastElementChild.remove();
  }

  item(entry) {
    if (entry.type === 'transaction') return this.transaction(entry);
    return entry.type === 'raw' ? this.raw(entry) : this.event(entry);
  }

  raw({ at, text }) {
    return el('li', { className: 'raw-message' }, this.time(at), ' ', el('code', { textContent: shorten(text, RAW_LENGTH) }));
  }

  time(ms, title = '') {
    return el('time', { textContent: clockTime(ms), title });
  }

  transaction({ txid, committedAt, receivedAt, lag, phase, changes, seq, several }) {
    const shown = changes.slice(0, CHANGES_SHOWN).map((change) => this.change(change, several));
    if (changes.length > shown.length) {
      shown.push(el('div', { className: 'change', textContent: `… and ${changes.length - shown.length} more` }));
    }
    const size = [...(phase === 'replay' ? ['catch-up'] : []), ...(changes.length > 1 ? [changes.length] : [])];
    const title = `frame ${seq}, committed at ${committedAt}${lag === null ? '' : `, here ${duration(lag)} later`}`;
    const details = el(
      'details',
      { open: true },
      el(
        'summary',
        { title },
        this.time(receivedAt),
        el('span', { className: 'txid', textContent: `tx ${txid}` }),
        el('span', { className: 'size', textContent: size.join(' ') }),
      ),
      el('div', { className: 'changes' }, ...shown),
    );
    return el('li', {}, details);
  }

  change({ op, entity, key, row, set, channel }, several) {
    const keyText = Object.values(key).map((value) => show(value)).join(', ');
    const line = el(
      'div',
      { className: 'change' },
      el('span', { className: `op op-${op}`, textContent: op }),
      ` ${entity} `,
      el('span', { className: 'key', textContent: keyText, title: show(key) }),
    );
    const values = Object.entries(set ?? row ?? {}).filter(([column]) => !(column in key));
    if (values.length > 0) {
      const text = el('span', { className: `values ${set ? '' : 'whole'}` });
      for (const [i, [column, value]] of values.entries()) {
        text.append(`${i ? ', ' : ''}${column} `, el('b', { textContent: literal(value) }));
      }
      line.append(' ', text);
    }
    if (several) line.append(el('small', { textContent: ` in ${channel}` }));
    return line;
  }

  event({ at, level, text, code, hint }) {
    return el(
      'li',
      { className: 'event', dataset: { level } },
      this.time(at),
      ` ${text}`,
      code && level === 'error' ? ` (${code})` : '',
      hint ? el('div', { textContent: hint }) : '',
    );
  }
}

// ---------------------------------------------------------------------------
// A pane: one connection
// ---------------------------------------------------------------------------

// Of a subscription's state, for the chip's title.
const subscriptionWords = {
  waiting: 'not connected',
  subscribing: 'subscribing',
  loading: 'loading',
  replaying: 'catching up',
  resync: 'loading again',
  live: 'live',
  revoked: 'access revoked',
  error: 'refused',
};

// Notes that are more than lines in the log, besides errors.
const NOTICED = ['protocol', 'silent', 'misfit', 'expiring'];

let panesMade = 0;

class Pane {
  constructor({ title = '', token = '', channels = [] } = {}) {
    panesMade += 1;
    this.title = title || `Pane ${panesMade}`;
    this.element = fromTemplate('pane-template');
    this.client = new Client({ url: socketUrl.href, token, onEvent: (event) => this.onEvent(event) });
    this.chosen = null; // the channel on show
    this.tables = new Map(); // of the chosen channel
    this.members = new Map(); // channel -> Members
    this.chips = new Map();
    this.arrivals = []; // when frames arrived, of the last seconds
    this.scheduled = false;
    this.drawnAt = 0;
    this.blank = null;
    this.log = new Log(this);

    setText(this.find('.pane-title'), this.title);
    this.find('.pane-title').title = this.title;
    this.element.setAttribute('aria-label', this.title);
    this.find('.feed').setAttribute('aria-label', `Operations of ${this.title}`);
    this.find('.result').setAttribute('aria-label', `Rows of ${this.title}`);
    this.find('.close').setAttribute('aria-label', `Close ${this.title}`);
    this.find('.token').value = token;
    for (const radio of this.findAll('.mode')) {
      radio.name = `mode-${panesMade}`;
      radio.addEventListener('change', () => this.showMode());
    }
    this.find('.identity').open = !token;
    this.find('.identity').addEventListener('toggle', () => this.schedule());
    this.find('.token-form').addEventListener('submit', (event) => {
      event.preventDefault();
      this.useToken();
    });
    this.find('.connection').addEventListener('click', () => this.toggleConnection());
    this.find('.cut').addEventListener('click', () => this.client.cut());
    this.find('.close').addEventListener('click', () => this.close());
    this.find('.copy').addEventListener('click', () => this.copyPosition());
    this.find('.subscribe').addEventListener('submit', (event) => {
      event.preventDefault();
      this.subscribe(this.find('.channel').value.trim());
      this.find('.channel').value = '';
    });

    for (const channel of channels) this.subscribe(channel);
    if (channels.length > 0) this.choose(channels[0]);
    this.draw();
  }

  find(selector) {
    return this.element.querySelector(selector);
  }

  findAll(selector) {
    return this.element.querySelectorAll(selector);
  }

  // ---- What the user does ----

  get mode() {
    return this.find('.mode:checked').value;
  }

  showMode() {
    this.find('.paste').hidden = this.mode !== 'paste';
    this.find('.sign').hidden = this.mode !== 'sign';
    setText(this.find('.form-error'), '');
  }

  /** The token that the form asks for; null, with the reason shown, if there is none. */
  async tokenOfForm() {
    const complain = (text, selector) => {
      setText(this.find('.form-error'), text);
      this.find('.identity').open = true;
      this.find(selector).focus();
      return null;
    };
    setText(this.find('.form-error'), '');
    if (this.mode === 'paste') return this.find('.token').value.replace(/\s+/g, '');
    let claims;
    try {
      claims = JSON.parse(this.find('.claims').value || '{}');
    } catch (error) {
      return complain(`The claims are not JSON: ${error.message}.`, '.claims');
    }
    if (claims === null || typeof claims !== 'object' || Array.isArray(claims)) {
      return complain('The claims must be a JSON object, such as {"sub": "1"}.', '.claims');
    }
    const role = this.find('.role').value.trim();
    if (!role) return complain('Name the role that the database is to act as.', '.role');
    const secret = this.find('.secret').value;
    if (!secret) return complain('Signing needs the secret that the server knows.', '.secret');
    const now = Math.floor(Date.now() / 1000);
    try {
      return await signToken({ role, ...claims, iat: now, exp: now + TOKEN_SECONDS }, secret);
    } catch (error) {
      return complain(error.message, '.secret');
    }
  }

  async useToken() {
    const token = await this.tokenOfForm();
    if (token === null) return;
    this.find('.identity').open = false;
    this.dismissNotices();
    if (this.client.status === 'connected') {
      this.client.renew(token);
    } else {
      this.client.token = token;
      this.client.connect();
    }
    this.schedule();
  }

  toggleConnection() {
    const { status } = this.client;
    if (status === 'idle' || status === 'failed') this.useToken();
    else this.client.disconnect();
  }

  subscribe(channel) {
    if (!channel) return;
    this.client.subscribe(channel);
    this.choose(channel);
  }

  choose(channel) {
    this.chosen = channel;
    this.tables.clear();
    this.blank = null;
    this.find('.result').replaceChildren();
    this.schedule();
  }

  close() {
    this.client.disconnect();
    const all = [...document.querySelectorAll('.pane')];
    const neighbour = all[all.indexOf(this.element) + 1] ?? all[all.indexOf(this.element) - 1];
    this.element.remove();
    panes.delete(this);
    (neighbour?.querySelector('.close') ?? document.getElementById('add-pane')).focus();
  }

  async copyPosition() {
    const { position } = this.client.subscriptions.get(this.chosen) ?? this.client;
    const text = this.find('.copy-text');
    try {
      await copyText(position);
      setText(text, 'Copied');
    } catch {
      setText(text, 'Not allowed');
    }
    setTimeout(() => setText(text, 'Copy'), 1500);
  }

  // ---- What the client tells ----

  onEvent(event) {
    switch (event.type) {
      case 'transaction': {
        this.arrivals.push(performance.now());
        if (!this.client.raw) this.log.add({ ...event, several: this.client.subscriptions.size > 1 });
        for (const change of event.changes) {
          if (!change.staged && change.channel === this.chosen) this.tables.get(change.entity)?.touch(change.keyText);
        }
        break;
      }
      case 'rows':
        if (event.channel === this.chosen) for (const table of this.tables.values()) table.touchAll();
        break;
      case 'raw':
        this.log.add({ ...event, at: Date.now() });
        break;
      case 'removed':
        this.members.delete(event.channel);
        if (event.channel === this.chosen) this.choose(this.client.subscriptions.keys().next().value ?? null);
        break;
      case 'note':
        this.log.add({ ...event, at: Date.now() });
        // What became of the channel on show is said in the place of its rows.
        if (this.client.subscriptions.get(event.channel)?.ended && event.channel === this.chosen) break;
        if (event.level === 'error' || NOTICED.includes(event.kind)) this.notify(event);
        if (event.kind === 'failed') this.find('.identity').open = true;
        if (event.kind === 'connected') this.dismissNotices();
        // Who is there is known for as long as the connection lives.
        if (event.kind === 'connected') this.members.clear();
        break;
      case 'message': {
        const { channel, event: name, payload, from } = event.message;
        const sender = from ? ` from ${show(from)}` : '';
        this.tell(`${channel}: message ${show(name)}${sender}: ${literal(payload)}`);
        break;
      }
      case 'presence': {
        const { channel, joined = {}, left = {} } = event.message;
        if (!this.members.has(channel)) this.members.set(channel, new Members());
        this.members.get(channel).apply(event.message);
        const names = (who) => shorten(Object.keys(who).join(', ') || 'nobody', VALUE_LENGTH);
        this.tell(`${channel}: joined ${names(joined)}; left ${names(left)}`);
        break;
      }
      default:
    }
    this.schedule();
  }

  /** A line in the log. */
  tell(text) {
    if (!this.client.raw) this.log.add({ type: 'note', at: Date.now(), level: 'info', text });
  }

  /** A box above the content. */
  notify({ level, text, code, hint, channel }) {
    const box = this.find('.notices');
    const dismiss = el('button', { type: 'button', className: 'quiet', title: 'Dismiss', textContent: '✕' });
    dismiss.setAttribute('aria-label', 'Dismiss');
    const words = el('div', {}, el('span', { textContent: channel ? text : sentence(text) }));
    if (code) words.append(' ', el('span', { className: 'code', textContent: `(${code})` }));
    if (hint) words.append(el('div', { className: 'hint', textContent: hint }));
    const notice = el('div', { className: 'notice', dataset: { level } }, words, dismiss);
    notice.setAttribute('role', 'alert');
    dismiss.addEventListener('click', () => notice.remove());
    if (level !== 'error') setTimeout(() => notice.remove(), 8000);
    box.append(notice);
    while (box.childElementCount > 3) box.firstElementChild.remove();
  }

  dismissNotices() {
    this.find('.notices').replaceChildren();
  }

  // ---- Drawing: at once if there was nothing for a while, else in steps ----

  schedule() {
    if (this.scheduled) return;
    this.scheduled = true;
    const draw = () => {
      this.scheduled = false;
      this.drawnAt = performance.now();
      if (this.element.isConnected) this.draw();
    };
    const wait = this.drawnAt + DRAW_MS - performance.now();
    if (document.hidden) setTimeout(draw, DRAW_HIDDEN_MS);
    else if (wait > 0) setTimeout(() => requestAnimationFrame(draw), wait);
    else requestAnimationFrame(draw);
  }

  draw() {
    const { client } = this;
    const { state, status } = client;
    const away = status === 'idle' || status === 'failed';
    const badge = this.find('.badge');
    badge.dataset.state = state;
    setText(this.find('.badge-text'), state);
    setText(this.find('.connection'), away ? 'Connect' : 'Disconnect');
    // While the form is open, its own button connects.
    this.find('.connection').hidden = away && this.find('.identity').open;
    this.find('.connection').classList.toggle('primary', away);
    this.find('.cut').disabled = status !== 'connected';
    setText(this.find('.use-token'), status === 'connected' ? 'Use this token' : 'Connect');
    setText(this.find('.who'), this.whoText());
    this.drawChips();
    this.drawMembers();
    this.drawResult();
    this.log.draw();
    this.drawFigures();
  }

  whoText() {
    const { client } = this;
    if (!client.token) return client.status === 'idle' ? 'Who is asking?' : 'anonymous, no token';
    const claims = claimsOf(client.token);
    if (!claims) return 'a token that cannot be read';
    const { role, exp, iat, nbf, ...rest } = claims;
    const parts = Object.entries(rest).map(([name, value]) => `${name} ${shorten(show(value), 40)}`);
    const expires = client.expiresAt ? Date.parse(client.expiresAt) : exp * 1000;
    const until = Number.isNaN(expires) ? '' : `, until ${clockTime(expires).slice(0, 5)}`;
    return `${[role === undefined ? 'no role' : show(role), ...parts].join(', ')}${until}`;
  }

  drawChips() {
    const { subscriptions } = this.client;
    for (const [channel, chip] of this.chips) {
      if (subscriptions.has(channel)) continue;
      chip.remove();
      this.chips.delete(channel);
    }
    for (const { channel, state } of subscriptions.values()) {
      let chip = this.chips.get(channel);
      if (!chip) {
        const pick = el('button', { type: 'button', className: 'pick', textContent: channel });
        const drop = el('button', { type: 'button', className: 'drop', textContent: '✕' });
        drop.title = `Unsubscribe from ${channel}`;
        drop.setAttribute('aria-label', drop.title);
        pick.addEventListener('click', () => this.choose(channel));
        drop.addEventListener('click', () => {
          this.client.unsubscribe(channel);
          this.find('.channel').focus();
        });
        chip = el('li', { className: 'chip' }, pick, drop);
        this.chips.set(channel, chip);
        this.find('.chips').append(chip);
      }
      chip.dataset.state = state;
      chip.classList.toggle('chosen', channel === this.chosen);
      chip.firstElementChild.setAttribute('aria-pressed', String(channel === this.chosen));
      chip.firstElementChild.title = subscriptionWords[state];
    }
  }

  drawMembers() {
    const members = this.members.get(this.chosen);
    this.find('.present').hidden = !members;
    if (!members) return;
    setText(this.find('.present-count'), members.size.toLocaleString('en'));
    const kinds = Object.entries(members.kinds).map(([kind, n]) => [kind, [n]]);
    const shown = [...(members.count === null ? members.users : kinds)].slice(0, MEMBERS_SHOWN);
    this.find('.members').replaceChildren(
      ...shown.map(([user, states]) => el('li', {}, el('b', { textContent: user }), ` ${states.map(literal).join(', ')}`)),
    );
  }

  drawResult() {
    const subscription = this.client.subscriptions.get(this.chosen);
    const entities = subscription?.ended ? null : subscription?.cache.entities;
    if (!entities || entities.size === 0) {
      this.drawBlank(subscription);
      return;
    }
    if (this.blank !== null) {
      this.blank = null;
      this.find('.result').replaceChildren();
      this.tables.clear();
    }
    for (const [name, table] of this.tables) {
      if (entities.has(name)) continue;
      table.element.remove();
      this.tables.delete(name);
    }
    for (const [name, entity] of entities) {
      let table = this.tables.get(name);
      if (!table) {
        table = new Table(this.chosen, name);
        this.tables.set(name, table);
        this.find('.result').append(table.element);
      }
      table.draw(entity);
    }
  }

  drawBlank(subscription) {
    const [title, text, button] = this.blankWords(subscription);
    const signature = `${title}\n${text}`;
    if (this.blank === signature) return;
    this.blank = signature;
    this.tables.clear();
    const blank = el('div', { className: 'blank' }, el('strong', { textContent: title }), text);
    if (subscription?.ended) {
      blank.classList.add('is-error');
      blank.setAttribute('role', 'alert');
    }
    if (button) {
      const again = el('button', { type: 'button', textContent: button });
      again.addEventListener('click', () => this.client.subscribe(subscription.channel));
      blank.append(el('div', {}, again));
    }
    this.find('.result').replaceChildren(blank);
  }

  blankWords(subscription) {
    if (!subscription) {
      return this.client.status === 'connected'
        ? ['Nothing subscribed yet', 'Name a channel above: its rows appear here, and stay current.']
        : ['Not connected', 'Give a token, connect, and subscribe to a channel.'];
    }
    const { state, error } = subscription;
    if (subscription.ended) {
      const title = `${sentence(error.message)}${error.code ? ` (${error.code})` : ''}`;
      return state === 'revoked'
        ? [title, error.hint ?? 'The rows were taken away.', 'Subscribe again']
        : [title, error.hint ?? '', 'Try again'];
    }
    if (state === 'waiting') return ['Waiting for the connection', ''];
    return ['Loading the snapshot', ''];
  }

  /** What changes with time alone; called every second as well. */
  drawFigures() {
    const { client } = this;
    const now = Date.now();
    const connected = client.status === 'connected';
    const { position } = client.subscriptions.get(this.chosen) ?? client;
    setText(this.find('.position'), position ? ends(position) : '–');
    this.find('.position').title = position ?? '';
    this.find('.copy').hidden = !position;
    // Clocks differ: a transaction that seems to come before its commit came at once.
    const lag = client.lag === null ? null : client.lag - Math.min(0, client.quickest);
    setText(this.find('.lag'), lag === null ? '–' : duration(lag));
    const since = performance.now() - RATE_SECONDS * 1000;
    while (this.arrivals[0] < since) this.arrivals.shift();
    setText(this.find('.rate'), connected ? (this.arrivals.length / RATE_SECONDS).toFixed(1) : '–');
    const age = Math.max(0, Math.floor((now - client.pingAt) / 1000));
    setText(this.find('.heartbeat'), connected && client.pingAt ? `${age} s ago` : '–');
    const wait = client.retryAt === null ? 0 : Math.ceil((client.retryAt - now) / 1000);
    setText(this.find('.countdown'), wait > 0 ? `in ${wait} s` : '');
  }
}

// ---------------------------------------------------------------------------
// The page
// ---------------------------------------------------------------------------

const panes = new Set();

function addPane(options) {
  const pane = new Pane(options);
  panes.add(pane);
  document.getElementById('panes').append(pane.element);
  pane.schedule();
  return pane;
}

/** Opens what the address asks for; without it, one empty pane. */
function openFromAddress() {
  let wanted = null;
  let problem = null;
  try {
    wanted = panesOf(location.hash);
  } catch (error) {
    problem = error.message;
  }
  if (wanted === null && problem === null && panes.size > 0) return;
  for (const pane of panes) {
    pane.client.disconnect();
    pane.element.remove();
  }
  panes.clear();
  panesMade = 0;
  for (const options of wanted ?? [{}]) {
    const pane = addPane(options);
    if (options.token || options.channels?.length) pane.client.connect();
  }
  if (problem) [...panes][0].notify({ level: 'error', text: problem });
}

document.getElementById('add-pane').addEventListener('click', () => {
  const pane = addPane();
  pane.element.scrollIntoView({ block: 'nearest', behavior: reducedMotion.matches ? 'auto' : 'smooth' });
  pane.find('.token').focus({ preventScroll: true });
});
window.addEventListener('hashchange', openFromAddress);
setInterval(() => {
  if (!document.hidden) for (const pane of panes) pane.drawFigures();
}, 1000);
openFromAddress();
