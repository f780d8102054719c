// The report as one HTML page: everything is in it, nothing is loaded.

import { bars, escape, lines } from './plots.mjs';
import { number, verdict } from './targets.mjs';

const STYLE = `
:root { color-scheme: light dark; --bg: #fff; --fg: #1b1f24; --soft: #5a6570; --line: #d5dae0; --card: #f6f8fa; --good: #116329; --bad: #a40e26;
  --s0: #0969da; --s1: #bc4c00; --s2: #1a7f37; --s3: #8250df; --s4: #cf222e; --s5: #bf3989; --s6: #57606a; }
@media (prefers-color-scheme: dark) { :root { --bg: #0d1117; --fg: #e6edf3; --soft: #9aa5b1; --line: #30363d; --card: #161b22; --good: #4ac26b; --bad: #ff7b72;
  --s0: #58a6ff; --s1: #ffa657; --s2: #56d364; --s3: #d2a8ff; --s4: #ff7b72; --s5: #ff9bce; --s6: #b1bac4; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 24px 16px 64px; background: var(--bg); color: var(--fg); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 36px 0 8px; border-bottom: 1px solid var(--line); padding-bottom: 4px; }
p { margin: 6px 0; max-width: 75em; } .soft, .unit { color: var(--soft); } .unit { font-weight: normal; font-size: 12px; }
a { color: var(--s0); }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 5px 8px; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; } td.n { white-space: nowrap; font-variant-numeric: tabular-nums; }
.met { color: var(--good); font-weight: 600; } .missed, .not { color: var(--bad); font-weight: 600; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(440px, 100%), 1fr)); gap: 16px; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 10px 12px; }
figcaption { font-weight: 600; font-size: 14px; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; margin: 4px 0; font-size: 12px; } .legend svg { margin-right: 5px; }
figure > svg { width: 100%; height: auto; display: block; } svg text { fill: var(--fg); font-size: 12px; font-family: inherit; }
.grid { stroke: var(--line); } .range { stroke: var(--fg); stroke-width: 1.5; } rect.mine { fill: var(--s0); } rect.other { fill: var(--s6); opacity: .65; }
polyline, .legend line { fill: none; stroke-width: 2; } polyline.s0 { stroke-width: 3; }
${[0, 1, 2, 3, 4, 5, 6].map((i) => `.s${i} { stroke: var(--s${i}); } .d${i} { fill: var(--s${i}); }`).join(' ')}
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; font-size: 13px; margin: 8px 0; } dt { color: var(--soft); } dd { margin: 0; }
`;

const find = (results, name) => results.scenarios.find(({ scenario }) => scenario === name);
const QUANTILES = ['p1', 'p10', 'p25', 'p50', 'p75', 'p90', 'p95', 'p99', 'p99.5', 'p99.9', 'max'];
const SHOWN = [0, 3, 5, 7, 9, 10];

function latency(scenario) {
  return scenario.cases.map((each) => {
    const names = Object.keys(each.systems).filter((name) => each.quantiles_us?.[name] !== undefined);
    // Of few samples the outer quantiles say nothing.
    const shown = each.parameters.count < 100 ? [3, 10] : each.parameters.count < 2000 ? [0, 3, 5, 7, 10] : SHOWN;
    return lines({
      title: each.name,
      unit: 'ms',
      labels: shown.map((i) => QUANTILES[i]),
      series: names.map((name) => ({ name, points: shown.map((q, i) => [i, each.quantiles_us[name][q] / 1000]) })),
    });
  });
}

// Not measured in this run: see doc/performance.md, "What is measured"
const CITED = { 500: 61, 3000: 12, 10000: 5 };

function byIdentities(scenario, title, metric, unit, cited) {
  const labels = scenario.cases.map((each) => each.parameters.identities.toLocaleString('en'));
  const names = Object.keys(scenario.cases[0]?.systems ?? {});
  const series = names.map((name) => ({
    name, points: scenario.cases.map((each, i) => [i, each.systems[name]?.metrics?.[metric]?.median ?? NaN]),
  }));
  if (cited !== undefined) {
    const points = scenario.cases.map((each, i) => [i, cited[each.parameters.identities] ?? NaN]).filter(([, value]) => value > 0);
    if (points.length > 0) series.push({ name: 'walrus (cited, not of this run)', points });
  }
  return lines({ title, unit, labels, series });
}

const systemBars = (scenario, each, metric, title) => bars({
  title,
  unit: scenario.metrics[metric],
  rows: Object.entries(each.systems).map(([name, { metrics }]) => ({
    name, value: metrics?.[metric]?.median, low: metrics?.[metric]?.min, high: metrics?.[metric]?.max, mine: name.startsWith('pg_changefeed'),
  })),
});

const PLOTS = {
  latency: (s) => ['From the commit to the client', latency(s)],
  fanout: (s) => ['Fan-out', s.cases.map((each) => systemBars(s, each, 'server_cpu_us', `CPU per message and client: ${each.name}`))],
  authorization: (s) => ['Row level security', [
    byIdentities(s, 'Changes authorized per second, by identities', 'changes_per_s', 'changes per second', CITED),
    byIdentities(s, 'CPU time for a change, by identities', 'cpu_us_per_change', 'µs')]],
  policies: (s) => ['What a policy costs', [byIdentities(s, 'CPU time for a change, by identities', 'cpu_us_per_change', 'µs')]],
  memory: (s) => ['Memory', s.cases.flatMap((each) => [
    systemBars(s, each, 'server_private_kib', `Private memory of who holds the connections, for each: ${each.name}`),
    systemBars(s, each, 'feed_private_kib', `Feed worker, for each connection: ${each.name}`)])],
  decode: (s) => ['Decoding', s.cases.map((each) => systemBars(s, each, 'changes_per_cpu_s', `Changes per second of CPU time: ${each.name}`))],
  writers: (s) => ['Writers', [
    systemBars(s, s.cases[0], 'backend_us', 'CPU time of the writing backend for a transaction'),
    ...(s.cases[1] ? [systemBars(s, s.cases[1], 'commit_p50_us', `Median latency of a commit: ${s.cases[1].name}`)] : [])]],
  snapshot: (s) => ['Snapshots', s.cases.map((each) => systemBars(s, each, 'rows_per_s', `Rows per second: ${each.name}`))],
};

function tableOf(rows) {
  const line = (row) => `<tr><td>${escape(row.scenario)}<br><span class="soft">${escape(row.case)}</span></td><td>${escape(row.name)} <b>${escape(row.target)}</b></td>
<td class="n">${escape(row.ours)}</td><td>${escape(row.reference)}</td><td class="n">${escape(row.ratio)}</td>
<td class="${row.met === true ? 'met' : row.met === null ? 'not' : 'missed'}">${verdict(row.met)}${row.met === true ? '' : row.links.map((link) => ` <a href="${escape(link)}">why</a>`).join('')}</td></tr>`;
  return `<div class="table"><table><thead><tr><th>scenario, case</th><th>target</th><th>this project</th><th>reference in the same run</th><th>ratio</th><th></th></tr></thead>
<tbody>${rows.map(line).join('\n')}</tbody></table></div>`;
}

function facts(results) {
  const { machine } = results;
  const loads = results.scenarios.map((s) => s.machine).filter(Boolean);
  const versions = Object.assign({}, ...results.scenarios.map((s) => s.versions ?? {}));
  const all = {
    processor: `${machine.cpus} cores, ${machine.model.trim()}`,
    memory: `${(machine.memory_bytes / 2 ** 30).toFixed(1)} GiB`,
    kernel: `Linux ${machine.kernel}`,
    'load before a scenario': `${number(Math.min(...loads.map((m) => m.load_before)))} … ${number(Math.max(...loads.map((m) => m.load_before)))} (average of a minute)`,
    ...versions,
  };
  return `<dl>${Object.entries(all).map(([name, value]) => `<dt>${escape(name)}</dt><dd>${escape(value)}</dd>`).join('')}</dl>`;
}

function runs(results) {
  const line = (s) => `<tr><td>${escape(s.scenario)}</td><td class="n">${escape(s.started?.slice(0, 16).replace('T', ' ') ?? '')}</td><td>${escape(s.commit ?? '')}</td><td>${s.quick ? 'short' : 'long'}</td>
<td class="n">${number(s.seconds)} s</td><td class="n">${number(s.machine?.load_before)} … ${number(s.machine?.load_after)}</td></tr>`;
  return `<div class="table"><table><thead><tr><th>scenario</th><th>started (UTC)</th><th>commit</th><th>form</th><th>took</th><th>load of the machine</th></tr></thead>
<tbody>${results.scenarios.map(line).join('\n')}</tbody></table></div>`;
}

export function page(results, rows) {
  const first = results.scenarios[0];
  const met = rows.filter((row) => row.met === true).length;
  const failed = results.scenarios.filter((s) => s.failed !== undefined);
  const wrong = results.scenarios.flatMap((s) => (s.wrong ?? []).map((w) => `${s.scenario}, ${w.case}, ${w.system}: ${w.message}`));
  const missing = results.scenarios.flatMap((s) => s.cases.flatMap((each) => Object.entries(each.systems)
    .filter(([, { unavailable }]) => unavailable !== undefined).map(([name, { unavailable }]) => `${s.scenario}, ${each.name}: ${name}: ${unavailable}`)));
  const sections = Object.entries(PLOTS).map(([name, make]) => {
    const scenario = find(results, name);
    if (scenario === undefined || scenario.failed !== undefined || scenario.cases.length === 0) return '';
    const [title, plots] = make(scenario);
    const notes = [scenario.unit, ...(scenario.notes ?? [])].map((note) => (/[.!?]$/.test(note) ? note : `${note}.`));
    return `<h2 id="${name}">${escape(title)}</h2><p class="soft">${escape(notes.join(' '))}</p><div class="plots">${plots.filter(Boolean).join('\n')}</div>`;
  });
  const list = (title, items) => (items.length === 0 ? '' : `<h2>${title}</h2><ul>${items.map((item) => `<li>${escape(item)}</li>`).join('')}</ul>`);
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>pg_changefeed: benchmark report</title><style>${STYLE}</style></head>
<body><h1>pg_changefeed: benchmark report</h1>
<p class="soft">${escape(new Date(first?.started ?? 0).toISOString().slice(0, 16).replace('T', ' '))} UTC, commit ${escape(first?.commit ?? 'unknown')}${results.scenarios.some((s) => s.quick) ? ', the short form' : ''}.
<a href="results.json">All figures as JSON</a>; what is measured and how: <a href="../../doc/performance.md">doc/performance.md</a>.</p>
<p><b class="${met === rows.length ? 'met' : 'missed'}">${met} of ${rows.length} targets met.</b> Figures are medians, in parentheses the least and most of the repeats. References were measured in turns with ours, on the same machine.</p>
${facts(results)}
${list('Failed', failed.map((s) => `${s.scenario}: ${s.failed}`))}${list('Wrong results', wrong)}
<h2 id="targets">Targets</h2>
${tableOf(rows)}
${sections.join('\n')}
<h2 id="runs">Runs</h2>
${runs(results)}
${list('Not there', missing)}
</body></html>
`;
}
