// The chat's page. All it shows is what the client holds: rows of "rooms" and of the windows
// "room:…?order=id.desc&limit=50", and the members of the room on show. It writes by calling chat.send.

import { Client, show } from './client.js';

const WINDOW = 50;
const TYPING_S = 3; // how long a "typing" lasts that is not said again
const TYPING_AGAIN_MS = 1_500;
const OFFLINE_MS = 10_000; // until the next attempt, if the browser does not say before that it is online

const $ = (id) => document.getElementById(id);

let me = null; // { name, token, socketUrl }
let client = null;
let room = null; // the id of the room on show
let drawn = null; // the room whose messages are in the page
let typedAt = 0;
const pending = new Map(); // key -> { room, body, id, txid, error }
const unread = new Set();

const channelOf = (id) => `room:${encodeURIComponent(id)}?order=id.desc&limit=${WINDOW}`;

function element(name, className, ...children) {
  const it = document.createElement(name);
  if (className) it.className = className;
  it.append(...children);
  return it;
}

// ---------------------------------------------------------------------------
// Who
// ---------------------------------------------------------------------------

async function token(name) {
  const response = await fetch('login', {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({ name: name.trim() }),
  });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.message);
  return answer;
}

async function enter(name) {
  $('login-error').textContent = '';
  try {
    me = await token(name);
  } catch (error) {
    $('login-error').textContent = error.message;
    return;
  }
  sessionStorage.setItem('name', me.name);
  $('login').hidden = true;
  $('chat').hidden = false;
  $('me').textContent = me.name;
  paint($('me-avatar'), me.name);
  client = new Client({ url: me.socketUrl, token: me.token, onEvent: happened });
  client.subscribe('rooms');
  client.connect();
  $('body').focus();
}

function leave() {
  sessionStorage.removeItem('name');
  // Who leaves says so; a lost connection keeps its place for a while.
  if (room !== null) client.untrack(channelOf(room)).catch(() => {});
  client.disconnect();
  window.location.reload();
}

/** A person's letter and colour. */
function paint(avatar, name) {
  let sum = 0;
  for (const character of name) sum = (sum * 7 + character.codePointAt(0)) % 1009;
  avatar.dataset.hue = String(sum % 6);
  avatar.textContent = [...name][0].toUpperCase();
  return avatar;
}

const avatarOf = (name) => {
  const avatar = paint(element('span', 'avatar'), name);
  avatar.setAttribute('aria-hidden', 'true');
  return avatar;
};

// ---------------------------------------------------------------------------
// What happens
// ---------------------------------------------------------------------------

function happened(event) {
  switch (event.type) {
    case 'transaction':
      for (const change of event.changes) {
        if (change.entity === 'messages' && change.row) unread.add(change.row.room_id); // drawRooms takes out the one on show
      }
      break;
    case 'note':
      if (event.kind === 'expiring') token(me.name).then((fresh) => client.renew(fresh.token)).catch(() => {});
      break;
    default:
  }
  schedule();
}

let scheduled = false;

function schedule() {
  if (scheduled) return;
  scheduled = true;
  queueMicrotask(() => {
    scheduled = false;
    if (!client) return;
    followRooms();
    render();
  });
}

const rowsOf = (channel, entity) => [...(client.subscriptions.get(channel)?.cache.entities.get(entity)?.rows.values() ?? [])];
const rooms = () => rowsOf('rooms', 'rooms').sort((a, b) => b.is_public - a.is_public || a.title.localeCompare(b.title));

/** A subscription for each room that we may see, and we ourselves in the one on show. */
function followRooms() {
  if (!client.subscriptions.get('rooms')?.ready) return;
  const visible = new Map(rooms().map(({ id }) => [channelOf(id), id]));
  for (const channel of client.subscriptions.keys()) {
    if (channel !== 'rooms' && !visible.has(channel)) client.unsubscribe(channel);
  }
  for (const channel of visible.keys()) {
    if (!client.subscriptions.has(channel)) client.subscribe(channel);
  }
  const wanted = decodeURIComponent(window.location.hash.slice(1));
  const next = [...visible.values()].includes(wanted) ? wanted : visible.values().next().value ?? null;
  if (next === room) return;
  if (room !== null && client.subscriptions.has(channelOf(room))) client.untrack(channelOf(room)).catch(() => {});
  room = next;
  complain(null);
  if (room !== null) say({});
}

/** Says that we are here. `extra` is for a while. */
function say(state, more = {}) {
  client.track(channelOf(room), { state, ...more }).catch((error) => {
    // Without a connection it is said by the client as soon as there is one.
    if (!error.code.startsWith('08')) complain(error);
  });
}

// ---------------------------------------------------------------------------
// What it looks like
// ---------------------------------------------------------------------------

const BADGES = {
  live: 'live', connecting: 'connecting', 'catching up': 'catching up', behind: 'behind', reconnecting: 'offline', disconnected: 'offline', error: 'refused', revoked: 'refused',
};

function render() {
  const subscription = room === null ? null : client.subscriptions.get(channelOf(room));
  drawBadge();
  drawRooms();
  drawPeople(subscription);
  drawMessages(subscription);
  for (const part of $('composer').elements) part.disabled = room === null || client.status === 'failed';
}

function drawBadge() {
  const { state } = client;
  $('badge').dataset.state = state;
  let text = BADGES[state] ?? state;
  if (state === 'reconnecting') text += navigator.onLine ? ', connecting again' : ', no network';
  if ($('badge').textContent !== text) $('badge').textContent = text;
  $('badge').title = client.error?.message ?? '';
}

function drawRooms() {
  const links = rooms().map(({ id, title, is_public: isPublic }) => {
    const link = element('a', '', title);
    link.href = `#${encodeURIComponent(id)}`;
    if (!isPublic) {
      const lock = element('span', 'lock', 'members');
      link.append(' ', lock);
    }
    if (id === room) {
      unread.delete(id);
      link.setAttribute('aria-current', 'page');
    } else if (unread.has(id)) {
      link.append(' ', element('span', 'unread', 'new'));
    }
    return link;
  });
  const html = links.map((link) => link.outerHTML).join();
  if ($('rooms').dataset.drawn === html) return;
  $('rooms').dataset.drawn = html;
  $('rooms').replaceChildren(...links);
}

function setText(it, text) {
  if (it.textContent !== text) it.textContent = text;
}

function drawPeople(subscription) {
  setText($('title'), rooms().find(({ id }) => id === room)?.title ?? '');
  const members = subscription?.members;
  const names = members ? [...members.keys()].sort((a, b) => a.localeCompare(b)) : [];
  // What we knew is void without a connection.
  setText($('here'), members ? `${names.length} ${names.length === 1 ? 'person' : 'people'} here` : '');
  const shown = names.join('\n');
  if ($('members').dataset.drawn !== shown) {
    $('members').dataset.drawn = shown;
    $('members').replaceChildren(...names.map((name) => {
      const item = element('li', '', avatarOf(name), element('span', 'hidden', name));
      item.title = name;
      return item;
    }));
  }
  const typing = names.filter((name) => name !== me.name && members.get(name).states.some((state) => state?.typing === true));
  const verb = typing.length === 1 ? 'is' : 'are';
  const who = typing.length > 3 ? `${typing.length} people` : typing.join(', ').replace(/, ([^,]*)$/, ' and $1');
  setText($('typing'), typing.length > 0 ? `${who} ${verb} typing…` : '');
}

const clock = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit' });

function itemOf({ author, body, sent_at: sentAt }, className = '') {
  const time = element('time', '', sentAt ? clock.format(new Date(sentAt)) : '');
  if (sentAt) time.dateTime = sentAt;
  const head = element('div', 'said-by', element('b', '', author), ' ', time);
  return element('li', `${author === me.name ? 'own ' : ''}${className}`, avatarOf(author), element('div', 'said', head, element('p', '', body)));
}

function drawMessages(subscription) {
  const rows = room === null ? [] : rowsOf(channelOf(room), 'messages');
  rows.sort((a, b) => (BigInt(show(a.id)) < BigInt(show(b.id)) ? -1 : 1));
  const list = $('messages');
  const scroll = $('scroll');
  const atEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;

  // Only what is new is put in, so that a screen reader reads that and nothing else.
  if (drawn !== room) {
    list.replaceChildren();
    drawn = room;
  }
  const held = new Map([...list.children].map((item) => [item.dataset.key, item]));
  const wanted = rows.map((row) => ({ key: show(row.id), row }));
  for (const [key, it] of pending) {
    const isThere = rows.some((row) => show(row.id) === it.id);
    // It is among the rows, or was and has gone again.
    if (isThere || (it.txid && client.settledTxid > it.txid)) pending.delete(key);
    else if (it.room === room) wanted.push({ key, row: { author: me.name, body: it.body }, waits: true });
  }
  const keys = new Set(wanted.map(({ key }) => key));
  for (const [key, item] of held) if (!keys.has(key)) item.remove();
  let place = list.firstElementChild;
  for (const { key, row, waits } of wanted) {
    let item = held.get(key);
    if (!item || item.row?.body !== row.body) {
      if (item && place === item) place = item.nextElementSibling;
      item?.remove();
      item = itemOf(row, waits ? 'waits' : '');
      item.row = row;
      item.dataset.key = key;
      if (waits) item.querySelector('time').textContent = 'sending…';
    }
    if (item === place) place = place.nextElementSibling;
    else list.insertBefore(item, place);
  }
  const blank = room === null
    ? (client.subscriptions.get('rooms')?.ready ? 'There is no room for you.' : 'Connecting…')
    : subscription?.error?.message ?? (subscription?.ready ? 'Nothing has been said here yet.' : 'Loading…');
  setText($('blank'), wanted.length === 0 ? blank : '');
  if (atEnd) scroll.scrollTop = scroll.scrollHeight;
}

function complain(error) {
  $('error').hidden = error === null;
  $('error').replaceChildren(...(error === null ? [] : [element('b', '', error.message), ...(error.hint ? [' ', error.hint] : [])]));
}

// ---------------------------------------------------------------------------
// What the user does
// ---------------------------------------------------------------------------

async function send() {
  const input = $('body');
  const body = input.value;
  const here = room;
  const key = crypto.randomUUID();
  complain(null);
  input.value = '';
  grow();
  if (typedAt > 0) say({});
  typedAt = 0;
  if (body.trim() !== '') pending.set(key, { room, body: body.trim() });
  schedule();
  try {
    // Kept over lost connections, and said once.
    const { result, txid } = await client.call('send', { room, body }, { key });
    if (pending.has(key)) Object.assign(pending.get(key), { id: show(result.id), txid: BigInt(txid) });
  } catch (error) {
    pending.delete(key);
    if (room === here) {
      complain(error);
      if (input.value === '') input.value = body;
      grow();
    }
  }
  schedule();
}

function typed() {
  grow();
  if (room === null) return;
  if ($('body').value === '') {
    if (typedAt > 0) say({});
    typedAt = 0;
  } else if (Date.now() - typedAt > TYPING_AGAIN_MS) {
    typedAt = Date.now();
    say({ typing: true }, { expires_in: TYPING_S });
  }
}

function grow() {
  const lines = $('body').value.split('\n').length;
  $('body').rows = Math.min(Math.max(lines, 1), 5);
}

for (const button of document.querySelectorAll('.person')) {
  button.addEventListener('click', () => enter(button.textContent));
}
$('login-form').addEventListener('submit', (event) => {
  event.preventDefault();
  enter($('name').value);
});
$('leave').addEventListener('click', leave);
$('composer').addEventListener('submit', (event) => {
  event.preventDefault();
  send();
});
$('body').addEventListener('input', typed);
$('body').addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
window.addEventListener('hashchange', schedule);
// The browser knows before the heartbeat does.
window.addEventListener('offline', () => client?.cut(OFFLINE_MS));
window.addEventListener('online', () => client?.status === 'waiting' && client.connect());

const known = sessionStorage.getItem('name');
if (known) enter(known);
