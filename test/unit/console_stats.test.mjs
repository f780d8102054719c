// Unit tests of what the console makes of metrics and presence.
//
//   node --test test/unit

import assert from 'node:assert/strict';
import { test } from 'node:test';

import {
  bytes, countsText, explainStatement, growth, histogram, linePath, Members, niceAbove, parseMetrics, seconds, total,
} from '../../console/stats.js';

const text = (counts, sum) => `# HELP changefeed_lag_seconds Text with {braces} 1
# TYPE changefeed_lag_seconds histogram
${counts.map((n, i) => `changefeed_lag_seconds_bucket{gateway="0",le="${['0.001', '0.01', '0.1', '+Inf'][i]}"} ${n}`).join('\n')}
changefeed_lag_seconds_sum{gateway="0"} ${sum}
changefeed_lag_seconds_count{gateway="0"} ${counts[3]}
changefeed_wal_held_bytes 12345
changefeed_channel{channel="a\\"b\\\\c\\nd{e}"} 7
`;

test('metrics are read with their labels', () => {
  const samples = parseMetrics(text([1, 2, 3, 3], 0.5));
  assert.equal(samples.length, 8);
  assert.deepEqual(samples.at(-1), { name: 'channel', labels: { channel: 'a"b\\c\nd{e}' }, value: 7 });
  assert.equal(total(samples, 'wal_held_bytes'), 12345);
  assert.equal(total(samples, 'lag_seconds_bucket', { le: '0.01' }), 2);
  assert.equal(total(samples, 'lag_seconds_bucket'), 9);
  assert.equal(total(samples, 'no_such_thing'), null);
});

test('a histogram tells what came between two scrapes', () => {
  const before = parseMetrics(text([5, 5, 5, 5], 0.1));
  const after = parseMetrics(text([5, 104, 105, 105], 1.1));
  assert.deepEqual(histogram(before, after, 'lag_seconds'), { count: 100, mean: 0.01, high: 0.01 });
  const slow = parseMetrics(text([5, 103, 104, 105], 1.1));
  assert.equal(histogram(before, slow, 'lag_seconds').high, 0.1);
  assert.equal(histogram(before, parseMetrics(text([5, 5, 5, 105], 99)), 'lag_seconds').high, null, 'above all bounds');
  assert.equal(histogram(before, before, 'lag_seconds'), null, 'nothing came');
});

test('a counter that fell has begun anew', () => {
  const at = (value) => [{ name: 'n', labels: {}, value }];
  assert.equal(growth(at(10), at(15), 'n'), 5);
  assert.equal(growth(at(10), at(3), 'n'), 3);
  assert.equal(growth([], at(3), 'n'), 3);
});

test('a line has its newest point at the right, and gaps', () => {
  const size = { width: 100, height: 50, slots: 5, max: 10 };
  assert.equal(linePath([0, 5, 10], size), 'M50.0 50.0l0 0L75.0 25.0L100.0 0.0');
  assert.equal(linePath([10, null, 5], size), 'M50.0 0.0l0 0M100.0 25.0l0 0');
  assert.equal(linePath([99], size), 'M100.0 0.0l0 0', 'not above the top');
  assert.equal(linePath([null, null], size), '');
});

test('scales end at a round number', () => {
  assert.deepEqual([0, 1, 1.5, 4, 7, 0.03, 0.0011, 12345].map(niceAbove), [1, 1, 2, 5, 10, 0.05, 0.002, 20000]);
});

test('numbers for people', () => {
  assert.deepEqual([0, 999, 1000, 1536, 200 * 1024, 3 * 1024 ** 3, null].map(bytes), ['0 B', '999 B', '1.0 kB', '1.5 kB', '200 kB', '3.0 GB', '–']);
  assert.deepEqual([0.00012, 0.0015, 0.25, 3.21, 600, null].map(seconds), ['120 µs', '1.5 ms', '250 ms', '3.2 s', '10 min', '–']);
  assert.equal(countsText({ truncated: 1, rights_changed: 12 }), 'rights changed 12, truncated 1');
  assert.equal(countsText(null), '');
});

test('the statement of explain is quoted', () => {
  assert.equal(explainStatement("o'hara:1", { role: 'web' }), `SELECT * FROM changefeed.explain('o''hara:1', '{"role":"web"}');`);
  // A backslash, whatever standard_conforming_strings says
  assert.equal(explainStatement('a', { sub: 'x"y' }), `SELECT * FROM changefeed.explain('a', E'{"sub":"x\\\\"y"}');`);
});

test('members come and go', () => {
  const members = new Members();
  members.apply({ full: true, joined: { 1: [{ name: 'Ada' }], 2: [{}] }, left: {} });
  assert.equal(members.size, 2);
  members.apply({ joined: { 1: [{ name: 'Ada' }, { typing: true }] }, left: { 2: [{}] } });
  assert.deepEqual([...members.users], [['1', [{ name: 'Ada' }, { typing: true }]]]);
  members.apply({ joined: { 3: [{}] }, left: { 3: [{}] } });
  assert.equal(members.size, 2, 'who left and came is there');
  members.apply({ full: true, joined: { 9: [{}] }, left: {} });
  assert.deepEqual([...members.users.keys()], ['9'], 'a list that begins anew');
  members.apply({ count: 123, kinds: { editor: 3 } });
  assert.equal(members.size, 123, 'a channel that only counts');
});
