// The results of a scenario as a table on stdout.

const number = (value) => (Math.abs(value) >= 1000 ? Math.round(value).toLocaleString('en') : String(Number(value.toPrecision(3))));

export function printTable(result) {
  console.log(`\n${result.scenario}: ${result.title}`);
  if (result.failed !== undefined) {
    console.log(`  FAILED: ${result.failed}`);
    return;
  }
  for (const each of result.cases) {
    const columns = Object.keys(result.metrics).filter((metric) => Object.values(each.systems).some(({ metrics }) => metrics?.[metric]));
    const rows = [['', ...columns.map((metric) => `${metric}${result.metrics[metric] ? ` [${result.metrics[metric]}]` : ''}`)]];
    for (const [name, { metrics, unavailable, wrong }] of Object.entries(each.systems)) {
      if (metrics === undefined) rows.push([name, unavailable !== undefined ? `not available: ${unavailable}` : `WRONG: ${wrong}`]);
      else {
        rows.push([name, ...columns.map((metric) => {
          const s = metrics[metric];
          return s === undefined ? '-' : `${number(s.median)} (${number(s.min)} .. ${number(s.max)})`;
        })]);
      }
    }
    const widths = rows[0].map((_, i) => Math.max(...rows.filter((row) => row.length > 2 || i === 0).map((row) => (row[i] ?? '').length)));
    console.log(`  ${each.name}; ${each.repeats} repeats, median (least .. most)`);
    for (const row of rows) console.log(`    ${row.map((text, i) => text.padEnd(widths[i] ?? 0)).join('  ').trimEnd()}`);
    for (const r of each.ratios) console.log(`    ${r.name}: ${r.of} / ${r.to} = ${number(r.of_medians)} (${number(r.min)} .. ${number(r.max)})`);
  }
  for (const note of result.notes) console.log(`  note: ${note}`);
}
