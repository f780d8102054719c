// node test/bench/stranger.mjs: does the benchmark of authorization find out when a change goes to an identity that
// may not see it? The server is right, so the benchmark is made to expect something else: as many deliveries, to others.

import assert from 'node:assert/strict';

import { Rig, TABLES } from '../../bench/authorization/rig.mjs';
import { WrongResult } from '../../bench/lib/runner.mjs';

const rig = new Rig();
await rig.start();
await rig.connect(10, ['team']);
const { deliveries } = await rig.write('team', 50);
assert.equal(deliveries, 100);

const { sees } = TABLES.team;
TABLES.team.sees = (identity, row) => sees(identity + 1, row);
await assert.rejects(rig.write('team', 50), (error) => error instanceof WrongResult && /identity 0 got/.test(error.message));
TABLES.team.sees = sees;
await rig.write('team', 50);
await rig.end();
console.log('bench: a delivery to a stranger is found out');
