// JSON without loss: numbers keep their text, so that 1.10 is not 1.1 and 2^63
// is not rounded. A number becomes a string that starts with NUMBER, which no
// jsonb value can.

const NUMBER = '\u0000';
const TOKEN = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;

/** Parses with numbers as marked strings. */
export function parseExact(text) {
  return JSON.parse(text.replace(TOKEN, (token) => (token[0] === '"' ? token : `"\\u0000${token}"`)));
}

/** Is it a number of parseExact? */
export const isNumber = (value) => typeof value === 'string' && value.startsWith(NUMBER);

/** Its text. */
export const numberText = (value) => value.slice(1);

/** The value as an ordinary number, where the test knows that it is a small one. */
export const number = (value) => Number(numberText(value));

/** One text for equal values: members sorted, numbers as they were written. */
export function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(',')}]`;
  if (value !== null && typeof value === 'object') {
    return `{${Object.keys(value).sort().map((name) => `${JSON.stringify(name)}:${canonical(value[name])}`).join(',')}}`;
  }
  if (isNumber(value)) return numberText(value);
  return JSON.stringify(value);
}
