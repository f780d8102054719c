// The table of targets from the results of a run.

// Where a scenario's figures are explained: profiles of the paths concerned, if they exist
const EXPLANATIONS = {
  authorization: ['profiles/inline.md', 'profiles/delivery.md', 'profiles/membership.md'],
  policies: ['profiles/inline.md', 'profiles/delivery.md', 'profiles/membership.md'],
  latency: ['profiles/latency.md'],
  decode: ['profiles/decode.md'],
  writers: ['profiles/writers.md'],
  snapshot: ['profiles/snapshot.md'],
  fanout: ['profiles/fanout.md', 'profiles/gateway.md'],
  channels: ['profiles/channels.md', 'profiles/delivery.md', 'profiles/gateway.md'],
  memory: ['profiles/memory.md', 'profiles/gateway.md'],
  storm: ['profiles/storm.md', 'profiles/memory.md'],
  idle: ['profiles/idle.md', 'profiles/gateway.md'],
};

export const number = (value) => {
  if (value === null || value === undefined || !Number.isFinite(value)) return '–';
  if (Math.abs(value) >= 1000) return Math.round(value).toLocaleString('en');
  return String(Number(value.toPrecision(3)));
};

// Of a ratio near 1 the third place behind the point may decide.
const share = (value) => (Math.abs(value) < 10 ? String(Number(value.toFixed(3))) : number(value));

const withUnit = (value, unit) => `${number(value)}${unit === undefined || unit === '' ? '' : unit.startsWith('/') ? unit : ` ${unit}`}`;

// { scenario, what, case, name, ours, reference, ratio, target, met, links }; the texts are for people
export function rowsOf(results, exists) {
  const rows = [];
  for (const scenario of results.scenarios) {
    const links = (EXPLANATIONS[scenario.scenario] ?? []).filter(exists);
    for (const each of scenario.cases) {
      for (const target of each.targets) {
        const ratio = each.ratios.find((r) => r.name === target.ratio)
          ?? each.ratios.find((r) => r.of === target.system && r.metric === target.metric);
        const of = target.system ?? ratio?.of;
        // In some ratios the peer is above the line.
        const [mine, theirs] = ratio === undefined ? [of, null] : ratio.to === 'pg_changefeed' ? [ratio.to, ratio.of] : [ratio.of, ratio.to];
        const metric = target.metric ?? ratio?.metric;
        const unit = scenario.metrics[metric];
        const figure = (system) => each.systems[system]?.metrics?.[metric];
        const range = (s) => (s === undefined ? '–' : `${withUnit(s.median, unit)} (${number(s.min)} … ${number(s.max)})`);
        const isRatio = target.ratio !== undefined;
        rows.push({
          scenario: scenario.scenario,
          what: scenario.title,
          case: each.name,
          name: target.name,
          ours: mine === undefined ? '–' : range(figure(mine)),
          reference: theirs === null || theirs === undefined ? '' : `${theirs}: ${range(figure(theirs))}`,
          ratio: ratio === undefined ? '' : `${share(ratio.of_medians)} (${share(ratio.min)} … ${share(ratio.max)})`,
          target: `${target.at_least !== undefined ? '≥' : '≤'} ${isRatio ? share(target.at_least ?? target.at_most) : withUnit(target.at_least ?? target.at_most, unit)}`,
          met: target.met,
          links,
        });
      }
    }
  }
  return rows;
}

export const verdict = (met) => (met === null ? 'not measured' : met ? 'met' : 'missed');

export function markdownTable(results, rows) {
  const cell = (text) => text.replaceAll('|', '\\|');
  const lines = [
    `Measured on ${new Date(results.scenarios[0]?.started ?? 0).toISOString().slice(0, 10)}, commit \`${results.scenarios[0]?.commit ?? 'unknown'}\`, `
      + `${results.machine.cpus} cores (${results.machine.model.trim()}), Linux ${results.machine.kernel}${results.scenarios.some(({ quick }) => quick) ? ', the short form' : ''}. `
      + `${rows.filter(({ met }) => met === true).length} of ${rows.length} targets were met. Medians, with the least and most of the repeats.`,
    '',
    '| scenario, case | target | this project | reference in the same run | ratio | |',
    '|---|---|---|---|---|---|',
    ...rows.map((row) => `| ${cell(`${row.scenario}, ${row.case}`)} | ${cell(row.name)} ${row.target} | ${cell(row.ours)} | ${cell(row.reference)} | ${row.ratio} | ${
      row.met === true ? 'met' : row.links.length === 0 ? `**${verdict(row.met)}**` : `**${verdict(row.met)}**: ${row.links.map((link) => `[${link.replace(/^.*\/|\.md$/g, '')}](../bench/report/${link})`).join(', ')}`} |`),
    '',
  ];
  return lines.join('\n');
}
