// Random numbers that a seed determines, values of every type that the tables
// use, and what to_jsonb makes of such a value.
//
// The JSON of a value is computed here from its text, by rules of our own, so
// that the oracle does not depend on any code under test.

import { canonical, parseExact } from '../integration/lib/json.mjs';
import { quote } from '../integration/lib/psql.mjs';

/** A generator of its own for each writer, client, ..., so that none disturbs another one. */
export class Random {
  #state;

  constructor(seed, name = '') {
    let h = 2166136261;
    for (const c of `${seed}/${name}`) h = Math.imul(h ^ c.charCodeAt(0), 16777619);
    this.#state = h >>> 0;
  }

  /** mulberry32: 0 <= x < 1 */
  float() {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  int(n) {
    return Math.floor(this.float() * n);
  }

  between(low, high) {
    return low + this.int(high - low + 1);
  }

  chance(p) {
    return this.float() < p;
  }

  pick(list) {
    return list[this.int(list.length)];
  }

  /** One of [weight, value] pairs. */
  weighted(pairs) {
    let x = this.float() * pairs.reduce((sum, [w]) => sum + w, 0);
    for (const [w, value] of pairs) {
      x -= w;
      if (x < 0) return value;
    }
    return pairs[pairs.length - 1][1];
  }

  sample(list, n) {
    const rest = [...list];
    const result = [];
    while (result.length < n && rest.length > 0) result.push(...rest.splice(this.int(rest.length), 1));
    return result;
  }
}

const WORDS = ['a', 'b', 'new', 'Zoë', '', ' ', 'null', '{x}', '"q"', "it's", '%41', 'a\\b', 'tab\there', '日本', '😀', 'line\nbreak', 'A:B/c', '*', 'é'];

const hex = (random, n) => Array.from({ length: n }, () => random.int(16).toString(16)).join('');

/** A large text: incompressible, so that it is stored out of line. */
const large = (random) => {
  const block = Array.from({ length: 70 }, () => Math.floor(random.float() * 2 ** 52).toString(36)).join('');
  return block.repeat(4) + hex(random, 2200);
};

// Literals: SQL expressions of the type, never null.
// On the wire, null of jsonb cannot be told from NULL: a change from one to the other is none.
const LITERALS = {
  int: (r) => String(r.weighted([[6, r.between(0, 9)], [1, r.between(-2147483648, 2147483647)]])),
  bigint: (r) => r.weighted([[4, String(r.between(0, 99))], [1, '9223372036854775807'], [1, '-9007199254740993']]),
  numeric: (r) => r.weighted([[4, `${r.between(-999, 999)}.${r.between(0, 99)}`], [1, '1.10'], [1, '0.000'], [1, "'NaN'"],
    [1, '123456789012345678901234567890.5'], [1, '1e30']]),
  bool: (r) => r.pick(['true', 'false']),
  text: (r) => quote(r.weighted([[3, r.pick(WORDS)], [3, `n${r.int(1000)}`]])),
  large: (r) => (r.chance(0.5) ? quote(large(r)) : quote(`s${r.int(100)}`)),
  timestamptz: (r) => quote(r.weighted([[4, `2026-0${r.between(1, 9)}-1${r.int(10)} 0${r.int(10)}:30:00.${r.int(1000)}+02`], [1, 'infinity'], [1, '1969-12-31 23:59:59.5+00'], [1, '2026-01-01']])),
  date: (r) => quote(r.weighted([[4, `2026-0${r.between(1, 9)}-1${r.int(10)}`], [1, '-infinity']])),
  uuid: (r) => quote(`${hex(r, 8)}-${hex(r, 4)}-4${hex(r, 3)}-8${hex(r, 3)}-${hex(r, 12)}`),
  jsonb: (r) => quote(JSON.stringify(r.weighted([[3, { k: r.pick(['a', 'b', null]), n: r.int(100) }], [1, []], [1, false], [1, null], [1, 'x"y\\'],
    [1, { k: [1, { z: 'ü', a: 1.5 }] }], [1, r.int(10)]]))),
  'text[]': (r) => (r.chance(0.15) ? "'{}'" : `ARRAY[${Array.from({ length: r.between(1, 3) },
    () => r.weighted([[4, quote(`u${r.int(5)}`)], [1, quote(r.pick(WORDS))], [1, 'NULL']])).join(', ')}]::text[]`),
};

/** An SQL expression of the type. */
export const literal = (random, type) => LITERALS[type](random);

/** The type as SQL writes it. */
export const sqlType = (type) => (type === 'large' ? 'text' : type);

/** Elements of an array's text; null for NULL. One dimension. */
export function arrayElements(text) {
  const result = [];
  let i = 1;
  while (text[i] !== '}') {
    if (text[i] === ',') i += 1;
    if (text[i] === '"') {
      let s = '';
      for (i += 1; text[i] !== '"'; i += 1) {
        if (text[i] === '\\') i += 1;
        s += text[i];
      }
      i += 1;
      result.push(s);
    } else {
      const end = i + text.slice(i).search(/[,}]/);
      const s = text.slice(i, end);
      result.push(s === 'NULL' ? null : s);
      i = end;
    }
  }
  return result;
}

/** What to_jsonb gives, as canonical text. */
export function toJson(type, text) {
  if (text === null) return 'null';
  switch (type) {
    case 'int':
    case 'bigint': return text;
    case 'numeric': return /^-?\d/.test(text) ? text : JSON.stringify(text);
    case 'bool': return text === 't' ? 'true' : 'false';
    case 'text':
    case 'large':
    case 'uuid':
    case 'date': return JSON.stringify(text);
    case 'timestamptz': return JSON.stringify(text.replace(' ', 'T').replace(/([+-]\d\d)$/, '$1:00'));
    case 'jsonb': return canonical(parseExact(text));
    case 'text[]': return `[${arrayElements(text).map((s) => JSON.stringify(s)).join(',')}]`;
    default: throw new Error(`no JSON form for type ${type}`);
  }
}
