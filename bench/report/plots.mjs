// Plots as SVG. Colours are variables of the page's style sheet (--s0, --s1, ...), so they follow its light or dark
// form; series differ in dashes, too. Every mark has its figure as a tooltip.

import { number } from './targets.mjs';

export const escape = (text) => String(text).replace(/[&<>"]/g, (c) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' }[c]));

const DASHES = ['', '7 3', '2 3', '9 3 2 3', '4 4', '1 2', '12 4'];
const round = (x) => Math.round(x * 10) / 10;

const legend = (names) => `<p class="legend">${names.map((name, i) => `<span><svg width="26" height="10" aria-hidden="true"><line x1="0" y1="5" x2="26" y2="5" class="s${i}" stroke-dasharray="${DASHES[i % DASHES.length]}"/></svg>${escape(name)}</span>`).join('')}</p>`;

// 1, 10, 100 ... around the values, and between them 2 and 5 if there are few
function logTicks(least, most) {
  const ticks = [];
  const steps = Math.log10(most / least) < 1.5 ? [1, 2, 5] : [1];
  for (let power = Math.floor(Math.log10(least)); power <= Math.ceil(Math.log10(most)); power += 1) {
    for (const step of steps) ticks.push(step * 10 ** power);
  }
  let [from, to] = [0, ticks.length - 1];
  while (ticks[from + 1] <= least) from += 1;
  while (ticks[to - 1] >= most) to -= 1;
  return ticks.slice(from, to + 1);
}

// series: [{ name, points: [[x index, value], ...], dots: true for points without a line }]; labels: those of the x axis
export function lines({ title, unit, labels, series, width = 460, height = 250 }) {
  const values = series.flatMap(({ points }) => points.map(([, value]) => value)).filter((value) => value > 0);
  if (values.length === 0) return '';
  const ticks = logTicks(Math.min(...values), Math.max(...values));
  const [left, right, top, bottom] = [68, 12, 12, 28];
  const [low, high] = [ticks[0], ticks.at(-1)].map(Math.log10);
  const x = (i) => round(left + (width - left - right) * (labels.length > 1 ? i / (labels.length - 1) : 0.5));
  const y = (value) => round(top + (height - top - bottom) * (1 - (Math.log10(value) - low) / (high - low)));
  const parts = [];
  for (const tick of ticks) {
    parts.push(`<line class="grid" x1="${left}" y1="${y(tick)}" x2="${width - right}" y2="${y(tick)}"/>`);
    parts.push(`<text x="${left - 6}" y="${y(tick) + 4}" text-anchor="end">${number(tick)}</text>`);
  }
  labels.forEach((label, i) => parts.push(`<text x="${x(i)}" y="${height - 8}" text-anchor="${labels.length === 1 ? 'middle' : i === 0 ? 'start' : i === labels.length - 1 ? 'end' : 'middle'}">${escape(label)}</text>`));
  series.forEach(({ name, points, dots }, s) => {
    const shown = points.filter(([, value]) => value > 0);
    if (!dots && shown.length > 1) {
      parts.push(`<polyline class="s${s}" stroke-dasharray="${DASHES[s % DASHES.length]}" points="${shown.map(([i, value]) => `${x(i)},${y(value)}`).join(' ')}"/>`);
    }
    for (const [i, value] of shown) {
      parts.push(`<circle class="d${s}" cx="${x(i)}" cy="${y(value)}" r="3"><title>${escape(`${name}, ${labels[i]}: ${number(value)} ${unit}`)}</title></circle>`);
    }
  });
  return `<figure><figcaption>${escape(title)} <span class="unit">${escape(unit)}, logarithmic</span></figcaption>${legend(series.map(({ name }) => name))}
<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escape(title)}">${parts.join('')}</svg></figure>`;
}

// rows: [{ name, value, low, high, mine }]
export function bars({ title, unit, rows, width = 460 }) {
  const shown = rows.filter(({ value }) => Number.isFinite(value));
  if (shown.length === 0) return '';
  const [left, right, step] = [150, 80, 24];
  const height = shown.length * step + 6;
  const most = Math.max(...shown.map(({ high, value }) => high ?? value));
  const scale = (value) => round(((width - left - right) * Math.max(value, 0)) / most);
  const parts = shown.map(({ name, value, low, high, mine }, i) => {
    const y = i * step + 4;
    const range = low === undefined ? '' : `<line class="range" x1="${left + scale(low)}" y1="${y + 8}" x2="${left + scale(high)}" y2="${y + 8}"/>`;
    return `<text x="${left - 8}" y="${y + 13}" text-anchor="end">${escape(name)}</text>
<rect class="${mine ? 'mine' : 'other'}" x="${left}" y="${y}" width="${Math.max(scale(value), 1)}" height="16"><title>${escape(`${name}: ${number(value)} ${unit}${low === undefined ? '' : ` (${number(low)} … ${number(high)})`}`)}</title></rect>${range}
<text x="${left + scale(high ?? value) + 6}" y="${y + 13}">${number(value)}</text>`;
  });
  return `<figure><figcaption>${escape(title)} <span class="unit">${escape(unit)}</span></figcaption>
<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escape(title)}">${parts.join('')}</svg></figure>`;
}
