/**
 * JSON that keeps all digits.
 *
 * The server sends numbers with all their digits; `JSON.parse` makes doubles of them. With this codec a number that a double
 * does not hold exactly becomes a `bigint`, if it is whole, or else a string with the digits as they came.
 */
import type { Codec } from './types.js';

const TOKEN = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
/** No text of jsonb has this character. */
const MARK = '\u0000';

/** What JavaScript writes with an exponent PostgreSQL writes without: 1e-7 is 0.0000001. */
const written = (value: number): string =>
  String(value).replace(/^(-?)(\d)\.?(\d*)e-(\d+)$/, (_, sign, first, rest, zeros) => `${sign}0.${'0'.repeat(zeros - 1)}${first}${rest}`);

export interface LosslessOptions {
  /** `auto`: only those beyond 2^53; `bigint`: all whole numbers. */
  integers?: 'auto' | 'bigint';
  /** `auto`: only those that a double changes, such as 1.10; `string`: all with a point or an exponent. */
  decimals?: 'auto' | 'string';
}

/** A codec for `createClient`, that keeps all digits. */
export const lossless = ({ integers = 'auto', decimals = 'auto' }: LosslessOptions = {}): Codec => ({
  parse(text) {
    let marked = false;
    const safe = text.replace(TOKEN, (token) => {
      if (token[0] === '"') return token;
      const whole = /^-?\d+$/.test(token);
      if ((whole ? integers : decimals) === 'auto' && written(Number(token)) === token && (!whole || Number.isSafeInteger(Number(token)))) return token;
      marked = true;
      return `"\\u0000${token}"`;
    });
    return JSON.parse(safe, marked
      ? (_, value: unknown) => {
        if (typeof value !== 'string' || value[0] !== MARK) return value;
        const digits = value.slice(1);
        return /^-?\d+$/.test(digits) ? BigInt(digits) : digits;
      }
      : undefined);
  },
  stringify: (value) =>
    JSON.stringify(value, (_, inner: unknown) => (typeof inner === 'bigint' ? `${MARK}${inner}` : inner))
      .replace(/"\\u0000(-?\d+)"/g, '$1'),
});
