// What the operator's views make of what the server says, without a page: metrics, charts, texts.
// This file runs in Node as well, which is how it is tested.

/** The samples of Prometheus' text format: [{ name, labels, value }]. */
export function parseMetrics(text) {
  const samples = [];
  for (const line of text.split('\n')) {
    const match = /^([a-z_]+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, name, value] of (match[2] ?? '').matchAll(/([a-z_]+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[name] = value.replace(/\\(.)/g, (_, c) => (c === 'n' ? '\n' : c));
    }
    samples.push({ name: match[1].replace(/^changefeed_/, ''), labels, value: Number(match[3]) });
  }
  return samples;
}

/** The sum of the samples of that name and with these labels; null if there is none. */
export function total(samples, name, labels = {}) {
  const found = samples.filter(
    (sample) => sample.name === name && Object.entries(labels).every(([label, value]) => sample.labels[label] === value),
  );
  return found.length === 0 ? null : found.reduce((sum, { value }) => sum + value, 0);
}

/** What a counter grew by; a counter that fell has begun anew. */
export function growth(before, after, name, labels) {
  const from = total(before, name, labels) ?? 0;
  const to = total(after, name, labels) ?? 0;
  return to >= from ? to - from : to;
}

/**
 * What came into a histogram between two scrapes, of all its labels: { count, mean, high }, where
 * `high` is a bound that 99 % are below (null: above the largest bound). Null if nothing came.
 */
export function histogram(before, after, name) {
  const count = growth(before, after, `${name}_count`);
  if (count === 0) return null;
  const bounds = [...new Set(after.filter((s) => s.name === `${name}_bucket`).map(({ labels }) => labels.le))]
    .filter((bound) => bound !== '+Inf')
    .sort((a, b) => a - b);
  const high = bounds.find((le) => growth(before, after, `${name}_bucket`, { le }) >= 0.99 * count);
  return { count, mean: growth(before, after, `${name}_sum`) / count, high: high === undefined ? null : Number(high) };
}

/** The path of a line through `values`, the newest at the right edge; null is a gap. */
export function linePath(values, { width, height, slots, max }) {
  const step = width / (slots - 1);
  const first = slots - values.length;
  let path = '';
  let drawing = false;
  for (const [i, value] of values.entries()) {
    if (value === null) {
      drawing = false;
      continue;
    }
    const x = ((first + i) * step).toFixed(1);
    const y = (height - (Math.min(value, max) / max) * height).toFixed(1);
    // A point of its own is a line of no length, which round caps make a dot.
    path += drawing ? `L${x} ${y}` : `M${x} ${y}l0 0`;
    drawing = true;
  }
  return path;
}

/** The next number of the kind 1, 2 or 5 times a power of ten: the top of a scale. */
export function niceAbove(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  // 0.1 + 0.2 is above 0.3
  return power * ([1, 2, 5, 10].find((factor) => factor * power >= value * (1 - 1e-9)) ?? 10);
}

export function bytes(n) {
  if (n === null || n === undefined) return '–';
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let unit = 0;
  let value = n;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

export function seconds(n) {
  if (n === null || n === undefined) return '–';
  if (n < 0.001) return `${Math.round(n * 1e6)} µs`;
  if (n < 1) return `${n < 0.01 ? (n * 1000).toFixed(1) : Math.round(n * 1000)} ms`;
  return n < 120 ? `${n.toFixed(1)} s` : `${Math.round(n / 60)} min`;
}

export function number(n) {
  return n === null || n === undefined ? '–' : n.toLocaleString('en');
}

/** {"a":2,"b":1} as "a 2, b 1", the most frequent first. */
export function countsText(counts) {
  return Object.entries(counts ?? {})
    .sort(([, a], [, b]) => b - a)
    .map(([name, n]) => `${name.replaceAll('_', ' ')} ${number(n)}`)
    .join(', ');
}

function sqlText(text) {
  const quoted = `'${text.replaceAll("'", "''").replaceAll('\\', '\\\\')}'`;
  return text.includes('\\') ? ` E${quoted}` : quoted;
}

/** The statement that a database's owner can run himself. */
export function explainStatement(channel, claims) {
  return `SELECT * FROM changefeed.explain(${sqlText(channel).trim()}, ${sqlText(JSON.stringify(claims)).trim()});`;
}

/** The members of a channel, as its presence messages tell them. */
export class Members {
  constructor() {
    this.users = new Map(); // user -> its states
    this.count = null; // of a channel that tells no more
    this.kinds = {};
  }

  apply({ full, joined, left, count, kinds }) {
    if (full) this.users.clear();
    for (const user of Object.keys(left ?? {})) this.users.delete(user);
    for (const [user, states] of Object.entries(joined ?? {})) this.users.set(user, states);
    if (count !== undefined) {
      this.count = count;
      this.kinds = kinds ?? {};
    }
  }

  get size() {
    return this.count ?? this.users.size;
  }
}
