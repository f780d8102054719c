// The files in monitoring/: Prometheus accepts the rules, their unit tests pass, the dashboard's
// queries can be parsed, and every metric that any of them names is served.
//
//   node test/docs/monitoring.mjs    with HTTP_URL of a feed that runs

import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
const DIRECTORY = path.join(ROOT, 'monitoring');
const problems = [];
const read = (name) => readFileSync(path.join(DIRECTORY, name), 'utf8');

function promtool(...args) {
  const { status, stdout, stderr, error } = spawnSync('promtool', args, { encoding: 'utf8', cwd: DIRECTORY });
  if (error) problems.push(`promtool, of the package prometheus: ${error.message}`);
  else if (status !== 0) problems.push(`promtool ${args.join(' ')}: ${stdout}${stderr}`);
}

promtool('check', 'config', '--syntax-only', 'prometheus.yml');
promtool('check', 'rules', 'alerts.yml');
promtool('test', 'rules', 'alerts.test.yml');

// Each alert has a test.
const alerts = [...read('alerts.yml').matchAll(/- alert: (\w+)/g)].map(([, name]) => name);
for (const name of alerts) if (!read('alerts.test.yml').includes(`alertname: ${name}\n        exp_alerts:`)) problems.push(`alert ${name} has no test`);

// What Grafana puts in for its variables makes rules of the dashboard's queries.
const dashboard = JSON.parse(read('dashboard.json'));
const queries = dashboard.panels.flatMap(({ title, targets = [] }) => targets.map(({ expr }) => ({ title, expr })));
const scratch = mkdtempSync(path.join(os.tmpdir(), 'pg_changefeed_monitoring.'));
const rules = { groups: [{ name: 'dashboard', rules: queries.map(({ expr }, i) => ({
  record: `dashboard:query_${i}`, expr: expr.replaceAll('$__rate_interval', '1m').replaceAll('$instance', '.*'),
})) }] };
writeFileSync(path.join(scratch, 'dashboard.yml'), JSON.stringify(rules));
promtool('check', 'rules', path.join(scratch, 'dashboard.yml'));
rmSync(scratch, { recursive: true });

// Each name is one of a family that is served; of a histogram with a suffix.
const text = await (await fetch(`${process.env.HTTP_URL}/metrics`)).text();
const served = new Set([...text.matchAll(/^# TYPE (\w+) (\w+)$/gm)].flatMap(([, name, type]) =>
  (type === 'histogram' ? [`${name}_bucket`, `${name}_sum`, `${name}_count`] : [name])));
if (served.size < 50) problems.push(`only ${served.size} metrics are served`);
for (const file of readdirSync(DIRECTORY)) {
  const named = file === 'dashboard.json' ? queries.map(({ expr }) => expr).join('\n') : read(file);
  for (const [name] of named.matchAll(/\bchangefeed_[a-z_]+/g)) if (!served.has(name)) problems.push(`${file}: there is no metric ${name}`);
}

for (const problem of problems) console.log(`not ok - monitoring: ${problem}`);
if (problems.length === 0) console.log(`ok - ${alerts.length} alerts and ${queries.length} queries of the dashboard fit the metrics`);
process.exit(problems.length === 0 ? 0 : 1);
