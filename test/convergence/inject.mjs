// Faults put into what a client receives, so that it is proven that the test
// would find them. One kind for each run, into the first message of each
// connection that fits: a client that is cut off right behind it gets the truth
// when it comes back, and nothing was wrong.

import { canonical, isNumber, numberText, parseExact } from '../integration/lib/json.mjs';

// What each is to be found as: kinds of Difference.
export const FAULTS = {
  gap: ['gap', 'protocol'], // a transaction is not delivered
  change: ['gap', 'protocol'], // one change of a transaction is not
  dup: ['protocol'], // a transaction comes twice
  order: ['protocol', 'order', 'gap'], // two come in the wrong order
  value: ['differs', 'leak', 'protocol'], // a column has another value
  leak: ['leak'], // a row of which the identity may not know
  column: ['protocol', 'differs'], // a column that it may not see
  page: ['leak', 'gap', 'differs', 'protocol'], // a row of a snapshot that is somebody else's
  row: ['gap', 'protocol'], // a row of a snapshot that is missing
  resync: ['columns', 'gap', 'differs', 'leak', 'protocol'], // a resync with its snapshot that is not told
};

/** JSON of what parseExact gives: numbers as they were. */
const stringify = (value) => canonical(value).replaceAll(/"\\u0000(-?[\d.eE+-]+)"/g, '$1');

/** Returns what a Client wants as `tamper`, or null. */
export function injector(fault) {
  if (!fault) return null;
  if (!(fault in FAULTS)) throw new Error(`INJECT: ${Object.keys(FAULTS).join(', ')}`);
  return (member) => {
    let done = false;
    let shift = 0; // of "seq"
    let held = null;
    let swallowed = null; // channel
    let seen = 0;
    return (text) => {
      const message = parseExact(text);
      const plain = message.type === 'transaction' && message.part === undefined && message.channel === undefined;
      const renumbered = () => {
        if (message.type !== 'transaction') return text;
        return stringify({ ...message, seq: `\u0000${Number(numberText(message.seq)) + shift}` });
      };
      const inject = (texts) => {
        done = true;
        console.log(`injected "${fault}" into ${member.who}: ${text.slice(0, 300)}`);
        return texts;
      };
      if (held) {
        if (!plain) return [text];
        const texts = [stringify({ ...message, seq: held.seq }), stringify({ ...held, seq: message.seq })];
        held = null;
        return inject(texts);
      }
      if (swallowed && message.channel === swallowed && message.type === 'snapshot') return [];
      if (swallowed && message.channel === swallowed && message.type === 'ready') {
        swallowed = null;
        return [];
      }
      if (done) return [renumbered()];
      seen += plain ? 1 : 0;
      const snapshotOfSome = message.type === 'snapshot' && message.rows.length > 1;
      const first = plain ? message.changes.find(({ row }) => row) : null;
      const replaceChange = (change, other) => inject([stringify({ ...message, changes: message.changes.map((c) => (c === change ? other : c)) })]);
      const foreign = (row) => {
        const name = Object.keys(row).find((n) => n === 'note') ?? 'owner';
        return { ...row, [name]: 'never written' };
      };
      switch (fault) {
        case 'gap':
          if (!plain || seen < 2) break;
          shift = -1;
          return inject([]);
        case 'change':
          if (!plain || message.changes.length < 2) break;
          return inject([stringify({ ...message, changes: message.changes.slice(0, -1) })]);
        case 'dup':
          if (!plain) break;
          shift = 1;
          return inject([text, stringify({ ...message, seq: `\u0000${Number(numberText(message.seq)) + 1}` })]);
        case 'order':
          if (!plain) break;
          held = message;
          return [];
        case 'value':
          if (!first || typeof first.row.note !== 'string') break;
          return replaceChange(first, { ...first, row: foreign(first.row) });
        case 'leak': {
          if (!first) break;
          const name = Object.keys(first.key).find((n) => isNumber(first.key[n]));
          if (!name) break;
          const key = { ...first.key, [name]: '\u00004711' };
          return inject([stringify({ ...message, changes: [...message.changes, { ...first, op: 'append', key, row: { ...first.row, ...key } }] })]);
        }
        case 'column':
          if (!first) break;
          return replaceChange(first, { ...first, row: { ...first.row, salary: '\u00001' } });
        case 'page':
          if (!snapshotOfSome || typeof message.rows[0].note !== 'string') break;
          return inject([stringify({ ...message, rows: [foreign(message.rows[0]), ...message.rows.slice(1)] })]);
        case 'row':
          if (!snapshotOfSome) break;
          return inject([stringify({ ...message, rows: message.rows.slice(1) })]);
        case 'resync':
          if (message.type !== 'resync' || message.reason === 'identity_changed') break;
          swallowed = message.channel;
          return inject([]);
        default:
      }
      return [renumbered()];
    };
  };
}
