// JSON as it was written: which bytes a member of an object or an element of
// an array consists of.

export class Slice {
  constructor(text, start) {
    this.text = text;
    this.start = start;
    this.end = start;
  }

  /** The bytes. */
  get raw() {
    return this.text.slice(this.start, this.end);
  }

  /** The plain value. */
  get value() {
    return JSON.parse(this.raw);
  }
}

function skipBlanks(text, i) {
  while (' \t\r\n'.includes(text[i])) i += 1;
  return i;
}

function endOfString(text, i) {
  for (i += 1; text[i] !== '"'; i += 1) {
    if (text[i] === '\\') i += 1;
    if (i >= text.length) throw new Error('string without an end');
  }
  return i + 1;
}

/** `members` (a Map) of an object, `items` of an array, down to `depth`. */
export function slice(text, depth = Infinity, start = 0) {
  let i = skipBlanks(text, start);
  const node = new Slice(text, i);
  if (text[i] === '{' || text[i] === '[') {
    const object = text[i] === '{';
    const close = object ? '}' : ']';
    if (object) node.members = new Map();
    else node.items = [];
    i = skipBlanks(text, i + 1);
    while (text[i] !== close) {
      let name;
      if (object) {
        const end = endOfString(text, i);
        name = JSON.parse(text.slice(i, end));
        i = skipBlanks(text, end);
        if (text[i] !== ':') throw new Error(`no colon at ${i}`);
        i += 1;
      }
      const child = slice(text, depth - 1, i);
      if (object) node.members.set(name, child);
      else node.items.push(child);
      i = skipBlanks(text, child.end);
      if (text[i] === ',') i = skipBlanks(text, i + 1);
      else if (text[i] !== close) throw new Error(`neither comma nor end at ${i}`);
    }
    node.end = i + 1;
  } else if (text[i] === '"') {
    node.end = endOfString(text, i);
  } else {
    const end = /[,\]}\s]|$/g;
    end.lastIndex = i;
    node.end = end.exec(text).index;
    if (node.end === i) throw new Error(`no value at ${i}`);
  }
  return node;
}
