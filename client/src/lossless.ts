/**
 * JSON that keeps all digits.
 *
 * The server sends numbers with all their digits; `JSON.parse` makes doubles of them. With this codec a number that a double
 * does not hold exactly becomes a `bigint`, if it is whole, or else a string with the digits as they came.
 */
import type { AnyRow, Codec } from './types.js';

const TOKEN = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
/** What a number's digits are marked with while they are a string: nobody else can have it in his strings. */
const MARK = `\u0000${Math.random().toString(36).slice(2)}:`;
const MARKED = new RegExp(`"\\\\u0000${MARK.slice(1)}(-?\\d+)"`, 'g');

/** What JavaScript writes with an exponent PostgreSQL writes without: 1e-7 is 0.0000001. */
const written = (value: number): string =>
  String(value).replace(/^(-?)(\d)\.?(\d*)e-(\d+)$/, (_, sign, first, rest, zeros) => `${sign}0.${'0'.repeat(zeros - 1)}${first}${rest}`);

export interface LosslessOptions {
  /** `auto`: only those beyond 2^53; `bigint`: all whole numbers. */
  integers?: 'auto' | 'bigint';
  /** `auto`: only those that a double changes, such as 1.10; `string`: all with a point or an exponent. */
  decimals?: 'auto' | 'string';
}

/** The protocol's own numbers, which are small, stay numbers. */
const OWN = ['id', 'seq', 'part', 'heartbeat_ms', 'retry_after_ms', 'min_interval_ms', 'count'];
const plain = (message: AnyRow) => {
  if (typeof message?.type === 'string') for (const name of OWN) if (typeof message[name] === 'bigint') message[name] = Number(message[name]);
};

/** A codec for `createClient`, that keeps all digits. */
export const lossless = ({ integers = 'auto', decimals = 'auto' }: LosslessOptions = {}): Codec => ({
  parse(text) {
    let marked = false;
    const safe = text.replace(TOKEN, (token) => {
      if (token[0] === '"') return token;
      const whole = /^-?\d+$/.test(token);
      if ((whole ? integers : decimals) === 'auto' && written(Number(token)) === token && (!whole || Number.isSafeInteger(Number(token)))) return token;
      marked = true;
      return JSON.stringify(MARK + token);
    });
    const value = JSON.parse(safe, marked
      ? (_, inner: unknown) => {
        if (typeof inner !== 'string' || !inner.startsWith(MARK)) return inner;
        const digits = inner.slice(MARK.length);
        return /^-?\d+$/.test(digits) ? BigInt(digits) : digits;
      }
      : undefined) as AnyRow;
    plain(value);
    if (Array.isArray(value?.messages)) value.messages.forEach(plain);
    return value;
  },
  stringify: (value) =>
    JSON.stringify(value, (_, inner: unknown) => (typeof inner === 'bigint' ? `${MARK}${inner}` : inner))
      .replace(MARKED, '$1'),
});
