// node test/bench/check.mjs FOLDER SCENARIO...: are the results complete, and is what they say verified?

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import path from 'node:path';

const [folder, ...scenarios] = process.argv.slice(2);
const MUST = ['pg_changefeed', 'bare'];
let figures = 0;
for (const name of scenarios) {
  const result = JSON.parse(readFileSync(path.join(folder, `${name}.json`), 'utf8'));
  assert.equal(result.format, 1);
  assert.equal(result.scenario, name);
  assert.equal(result.failed, undefined, `${name} failed: ${result.failed}`);
  assert.deepEqual(result.wrong, []);
  assert.ok(result.cases.length > 0, `${name} has no case`);
  for (const each of result.cases) {
    const where = `${name}, ${each.name}`;
    assert.equal(each.measurements.length, each.repeats, where);
    for (const [system, { metrics, unavailable }] of Object.entries(each.systems)) {
      if (unavailable !== undefined) {
        assert.ok(!MUST.includes(system), `${where}: ${system} is not available: ${unavailable}`);
        continue;
      }
      assert.ok(Object.keys(metrics).length > 0, `${where}: ${system} has no figures`);
      for (const [metric, { median, min, max }] of Object.entries(metrics)) {
        assert.ok(min <= median && median <= max, `${where}: ${system}, ${metric}`);
        figures += 1;
      }
      for (const measurement of each.measurements) {
        const { deliveries, expected } = measurement[system];
        assert.equal(deliveries, expected, `${where}: ${system}`);
        if (['fanout', 'channels'].includes(name)) assert.ok(deliveries > 0, where);
      }
    }
    for (const target of each.targets) {
      assert.equal(typeof target.name, 'string');
      assert.equal(target.met === null, target.measured === null, `${where}: ${target.name}`);
      if (target.measured !== null && target.at_most !== undefined) assert.equal(target.met, target.measured <= target.at_most);
    }
  }
}
console.log(`bench: ${scenarios.length} scenarios, ${figures} figures, all verified`);
