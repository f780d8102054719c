// Compares what clients received with the oracle.
//
// Clients put what they receive into queues, one per client, in the order in
// which it came. An entry is judged when the oracle has got to its position.
//
// What is checked of a subscription (a *track*, of one identity):
//   - a frame has exactly the changes that its transaction made to the view;
//   - between two positions that count for it there is no transaction that
//     changed the view and did not come as a frame. Together with the rows at
//     `ready`, which are compared in full, the cache equals the oracle at every
//     position;
//   - rows of snapshots, whether `ready` followed or not, were visible at some
//     state between the question and the delivery plus LEAK_BOUND_MS;
//   - who is refused had no right, at some state since it asked.

import { canonical } from '../integration/lib/json.mjs';
import { shapeText } from './model.mjs';

export const LEAK_BOUND_MS = 1000;
const LOGGED = 24; // messages of a track, for reports
const FULL_EVERY = 40; // frames; each such frame has its cache compared in full

export class Difference extends Error {
  /** `more` gives further text, later. */
  constructor(kind, text, more = null) {
    super(`${kind}: ${text}`);
    this.kind = kind;
    this.more = more;
  }
}

/** The commit's LSN and the low half of its xid. The layout is that of src/position.c. */
export function readPosition(text) {
  const bytes = Buffer.from(text.slice(0, 32), 'base64url');
  return { epoch: bytes.readBigUInt64BE(0), lsn: Number(bytes.readBigUInt64BE(8)), xid: bytes.readUInt32BE(16) };
}

/** The cache of a subscription: texts by entity and key. */
export function cacheTexts(subscription) {
  const texts = new Map();
  for (const [name, { rows }] of subscription.entities) for (const [key, row] of rows) texts.set(`${name} ${key}`, canonical(row));
  return texts;
}

/** A subscription under one identity. */
export class Track {
  at = null; // LSN at which the cache is known to be right; null: not ready
  shape = null; // as announced
  paced = false; // a frame is the net effect of several transactions
  coming = []; // shapes that `columns` messages have announced, of which the transaction has not come
  log = []; // what its client saw and did, the last of it

  constructor(view, { since, exact = true, partial = false, who }) {
    this.view = view;
    this.since = since; // LSN: the snapshot is not older than this
    this.exact = exact; // has a snapshot of all rows
    this.partial = partial; // has one of some
    this.who = who;
  }

  note(text) {
    this.log.push(`${new Date().toISOString().slice(14, 23)} ${text.length > 300 ? `${text.slice(0, 300)}…` : text}`);
    if (this.log.length > LOGGED) this.log.shift();
  }
}

/** What is known of a difference, when some more has come in. */
export async function describeTrack(model, track, lsn, id = null) {
  const list = (title, lines) => `  ${title}\n${lines.map((line) => `    ${line}\n`).join('')}`;
  await new Promise((resolve) => setTimeout(resolve, 500));
  await model.poll().catch(() => {});
  const { view } = track;
  const xid = model.recent.find((t) => t.lsn === lsn)?.xid;
  const helpers = model.recent.filter(({ what }) => what.some((line) => /^\w+ (members|bans)/.test(line))).slice(-12);
  const ddl = model.recent.filter(({ what }) => what[0]?.startsWith('ddl')).slice(-8);
  const versions = (id && view.history.get(id)) ?? [];
  return list('its policies now:', model.describePolicies(view))
    + list('the row for this view, by LSN:', versions.slice(-8).map((v) => `${v.lsn}: ${v.text ?? 'nothing'}`))
    + list('what the client saw of the channel:', track.log)
    + list('its last messages on it:', (track.raw ?? []).filter((text) => text.includes(JSON.stringify(view.channel.name))).slice(-6).map((text) => text.slice(0, 2000)))
    + list('and of this transaction:', (track.raw ?? []).filter((text) => text.includes(`"txid":"${xid}"`)).map((text) => text.slice(0, 2000)))
    + list('changes of tables that policies read:', helpers.map((t) => `LSN ${t.lsn} xid ${t.xid} ${t.what.filter((line) => /^\w+ (members|bans)/.test(line))}`))
    + list('the last DDL:', ddl.map((t) => `LSN ${t.lsn} xid ${t.xid} ${t.what.filter((line) => line.startsWith('ddl'))}`))
    + `  transactions around it:\n${model.around(lsn)}`;
}

export class Checker {
  #queues = new Map(); // by client: entries
  #leaks = [];

  constructor(model, report) {
    this.model = model;
    this.report = report;
  }

  add(client, entry) {
    if (!this.#queues.has(client)) this.#queues.set(client, []);
    this.#queues.get(client).push({ time: Date.now(), ...entry });
  }

  /** Rows of a snapshot page. */
  addRows(track, since, rows) {
    this.#leaks.push({ track, since, rows, time: Date.now() });
  }

  get waiting() {
    let n = this.#leaks.length;
    for (const queue of this.#queues.values()) n += queue.length;
    return n;
  }

  /** Judges what can be judged. */
  run() {
    const { model } = this;
    for (const queue of this.#queues.values()) {
      let n = 0;
      for (; n < queue.length; n += 1) {
        const entry = queue[n];
        if (entry.lsn !== undefined ? entry.lsn > model.known : entry.time > model.knownAt) break;
        this.#judge(entry);
      }
      queue.splice(0, n);
    }
    let done = 0;
    for (; done < this.#leaks.length && this.#leaks[done].time + LEAK_BOUND_MS <= model.knownAt; done += 1) this.#judgeRows(this.#leaks[done]);
    this.#leaks.splice(0, done);
  }

  /** Waits until nothing is left. */
  async drain() {
    while (this.waiting > 0) {
      await this.model.poll();
      this.run();
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  #fail(kind, track, lsn, text, id = null) {
    const { view } = track;
    throw new Difference(kind, `${track.who}, channel "${view.channel.name}" (${view.channel.template}), identity ${view.identity.name} `
      + `${JSON.stringify(view.identity.claims)}, at LSN ${lsn}\n  ${text}`, () => describeTrack(this.model, track, lsn, id));
  }

  #judge(entry) {
    const { track } = entry;
    switch (entry.kind) {
      case 'start': track.at = entry.lsn; break;
      case 'stop':
        track.at = null;
        track.coming = [];
        break;
      case 'shape': track.shape = entry.shape; break;
      case 'columns': track.coming.push(entry.shape); break;
      case 'frame': this.#judgeFrame(entry); break;
      case 'position':
        for (const t of entry.tracks) this.#move(t, entry.lsn, 'position');
        this.report.positions += 1;
        break;
      case 'ready':
        this.compare(track, entry.lsn, entry.texts, 'ready');
        if (track.shape !== track.view.shapeAt(entry.lsn)) {
          this.#fail('columns', track, entry.lsn, `announced ${track.shape}, may read ${track.view.shapeAt(entry.lsn)}`);
        }
        if (track.at !== null && track.at > entry.lsn) this.#fail('order', track, entry.lsn, `ready at a position before ${track.at}`);
        track.at = entry.lsn;
        this.report.readies += 1;
        break;
      case 'refused':
        if (!track.view.wasDenied(entry.since, this.model.known)) {
          this.#fail('refused', track, entry.since, `${JSON.stringify(entry.message)}, but it may read the channel`);
        }
        track.at = null;
        this.report.refusals += 1;
        break;
      default: throw new Error(`unknown entry ${entry.kind}`);
    }
  }

  /** The position counts for the track, and no change of it comes with it. */
  #move(track, lsn, what) {
    if (track.at === null) return;
    if (lsn < track.at) this.#fail('order', track, lsn, `${what} is before ${track.at}`);
    this.#nothingBetween(track, track.at, lsn, what);
    track.at = lsn;
  }

  /** Is it the next change of columns that was announced? */
  #extend(track, { shape }) {
    if (track.coming[0] !== shape) return false;
    track.shape = track.coming.shift();
    this.report.extensions += 1;
    return true;
  }

  /** What happens to the view; for one that is paced, net. */
  #deltas(track, after, upTo) {
    const deltas = track.view.between(after, upTo);
    if (!track.paced || deltas.length < 2 || deltas.some(({ shape }) => shape !== undefined)) return deltas;
    const changes = new Map();
    for (const delta of deltas) {
      for (const [id, [old, row]] of delta.changes) changes.set(id, [changes.has(id) ? changes.get(id)[0] : old, row]);
    }
    for (const [id, [old, row]] of [...changes]) if (old?.text === row?.text) changes.delete(id);
    return changes.size > 0 ? [{ lsn: upTo, xid: deltas.at(-1).xid, shape: undefined, changes }] : [];
  }

  #nothingBetween(track, after, upTo, what) {
    // New columns of a view that has no rows, or of a client that has none, come without a frame.
    const missing = this.#deltas(track, after, upTo).find((delta) => !(delta.shape !== undefined && (delta.changes.size === 0 || !track.exact) && this.#extend(track, delta)));
    if (!missing) return;
    const changes = [...missing.changes].slice(0, 3).map(([id, [old, row]]) => `${id}: ${old?.text ?? 'nothing'} → ${row?.text ?? 'nothing'}`);
    if (missing.shape !== undefined) {
      this.#fail('columns', track, missing.lsn, `${what} ${upTo} came without resync behind ${after}, though the columns became ${missing.shape}`);
    }
    this.#fail('gap', track, missing.lsn, `${what} ${upTo} came behind ${after} without the changes of xid ${missing.xid}:\n    ${changes.join('\n    ')}`, [...missing.changes.keys()][0]);
  }

  #judgeFrame({ lsn, xid, channels, tracks, full }) {
    for (const [track, changes] of channels) {
      if (track.at !== null) {
        if (lsn <= track.at) this.#fail('order', track, lsn, `frame of xid ${xid} behind position ${track.at}`);
        if (!track.paced) this.#nothingBetween(track, track.at, lsn - 1, `frame of xid ${xid}`);
      }
      this.#judgeChanges(track, track.paced && track.at !== null ? track.at : lsn - 1, lsn, xid, changes);
      if (track.at !== null) track.at = lsn;
      this.report.frameChannels += 1;
      this.report.rowsChecked += changes.length;
    }
    for (const track of tracks) if (!channels.has(track)) this.#move(track, lsn, `frame of xid ${xid}`);
    for (const [track, texts] of full ?? []) if (track.at !== null) this.compare(track, lsn, texts, `frame of xid ${xid}`);
    this.report.frames += 1;
  }

  #judgeChanges(track, after, lsn, xid, changes) {
    const [delta] = this.#deltas(track, after, lsn);
    if (!delta) this.#fail('surplus', track, lsn, `frame of xid ${xid} with ${JSON.stringify(changes.slice(0, 3))}, but the transaction changes nothing for it`);
    if (!track.paced && delta.xid !== Number(BigInt(xid) & 0xffffffffn)) this.#fail('xid', track, lsn, `frame says xid ${xid}, the commit is that of ${delta.xid}`);
    if (delta.shape !== undefined && !this.#extend(track, delta)) {
      this.#fail('columns', track, lsn, `a frame instead of a resync: the columns became ${delta.shape}, announced were ${track.coming}`);
    }
    const seen = new Set();
    for (const change of changes) {
      const { id, op } = change;
      const [old, row] = delta.changes.get(id) ?? [null, null];
      const expected = `expected ${old?.text ?? 'nothing'} → ${row?.text ?? 'nothing'}, got ${JSON.stringify(change)}`;
      seen.add(id);
      if (!delta.changes.has(id)) {
        const now = track.view.rowsAt(lsn).get(id);
        this.#fail(now && now.text === change.text ? 'surplus' : 'leak', track, lsn, `${id} did not change for it in xid ${xid}; it shows ${now?.text ?? 'nothing'}, got ${JSON.stringify(change)}`, id);
      }
      if (op === 'remove' ? row !== null : row === null) this.#fail(row === null ? 'leak' : 'differs', track, lsn, expected, id);
      if (op === 'append' && (old !== null || change.text !== row.text)) this.#fail('differs', track, lsn, expected, id);
      if (op === 'replace' && change.text !== row.text) this.#fail('differs', track, lsn, expected, id);
      if (op === 'merge') {
        const names = Object.keys(row.columns).filter((name) => old && old.columns[name] !== row.columns[name]).sort();
        const set = names.map((name) => `${JSON.stringify(name)}:${row.columns[name]}`).join(',');
        if (!old || change.text !== `{${set}}`) this.#fail('differs', track, lsn, expected, id);
      }
    }
    if (track.exact || delta.shape === undefined) for (const [id, [old, row]] of delta.changes) {
      if (!seen.has(id)) this.#fail('gap', track, lsn, `the frame of xid ${xid} lacks ${id}: ${old?.text ?? 'nothing'} → ${row?.text ?? 'nothing'}`, id);
    }
  }

  /** A whole cache, or that of a window. */
  compare(track, lsn, texts, what) {
    if (!track.exact && !track.partial) return;
    const expected = track.view.rowsAt(lsn);
    for (const [id, text] of texts) {
      if (expected.get(id)?.text !== text) this.#fail(expected.has(id) ? 'differs' : 'leak', track, lsn, `${what}: ${id}\n    expected ${expected.get(id)?.text ?? 'nothing'}\n    got      ${text}`, id);
    }
    if (track.exact) for (const [id, { text }] of expected) {
      if (!texts.has(id)) this.#fail('gap', track, lsn, `${what}: ${id}\n    expected ${text}\n    got      nothing`, id);
    }
    this.report.caches += 1;
  }

  #judgeRows({ track, since, rows }) {
    for (const [id, text] of rows) {
      if (!track.view.everShowed(id, text, since)) {
        this.#fail('leak', track, since, `a snapshot had ${id} ${text}, which was not visible at any state since the question`, id);
      }
      this.report.snapshotRows += 1;
    }
  }

  /** Of a message with "entities". */
  static shape(entities) {
    return shapeText(Object.entries(entities).map(([name, { columns }]) => [name, columns]));
  }

  /** A frame's changes by track, as plain data. */
  static changes(frame, trackOf) {
    const channels = new Map();
    for (const { channel, entity, op, key, row, set } of frame.changes) {
      const track = trackOf(channel);
      if (!channels.has(track)) channels.set(track, []);
      channels.get(track).push({ id: `${entity} ${canonical(key)}`, op, text: row ? canonical(row) : set ? canonical(set) : null });
    }
    return channels;
  }

  static wantsFull(random) {
    return random.int(FULL_EVERY) === 0;
  }
}
