/**
 * Figures for those who may see them. All sums are the database's: they are exact there.
 */
import { useEffect, useMemo, useRef } from 'react';
import { useRows } from 'pg-changefeed/react';

import { Chart } from './Chart';
import { notify } from './notices';
import { Locked, Panel, money, number } from './ui';
import type { Courier } from './schema';
import type { Session } from './session';

const MILESTONE = 100;
const inEuro = (value: number) => `€${value}`;

export const Finance = ({ session }: { session: Session }) => {
  const { rows: minutes, error, state } = useRows<Courier, 'finance', 'minutes'>('finance', { entity: 'minutes' });
  const { rows: [totals] } = useRows<Courier, 'finance', 'totals'>('finance', { entity: 'totals' });
  const sorted = useMemo(() => [...minutes].sort((a, b) => a.minute.localeCompare(b.minute)), [minutes]);
  const at = useMemo(() => sorted.map(({ minute }) => Date.parse(minute) / 1000), [sorted]);
  const revenue = useMemo(() => sorted.map((minute) => minute.revenue), [sorted]);

  const passed = useRef<number | null>(null);
  useEffect(() => {
    if (!totals) return;
    const now = Math.floor(totals.revenue / MILESTONE);
    if (passed.current !== null && now > passed.current) {
      notify(`Revenue has passed ${money(now * MILESTONE)}`, { tone: 'good', detail: `${number(totals.deliveries)} deliveries`, as: state === 'live' ? 'news' : 'quiet' });
    }
    passed.current = now;
  }, [totals, state]);

  if (error) return <Panel id="finance" title="Finance"><Locked reason={error.message}>Figures are for the finance department. {session.person.name} does not receive any.</Locked></Panel>;
  const figures: [string, string | undefined][] = [
    ['Revenue', totals && money(totals.revenue)], ['Margin', totals && money(totals.margin)],
    ['Deliveries', totals && number(totals.deliveries)], ['Average', totals && money(totals.average)],
  ];
  const last = sorted.at(-1);
  return (
    <Panel id="finance" title="Finance">
      <dl className="figures">
        {figures.map(([name, value]) => <div key={name}><dt>{name}</dt><dd data-figure={name.toLowerCase()}>{value ?? '–'}</dd></div>)}
      </dl>
      <h3>Revenue per minute</h3>
      <Chart label={last ? `Revenue per minute over ${sorted.length} minutes, ${money(last.revenue)} in the last one` : 'Revenue per minute, no figures yet'}
        at={at} values={revenue} colour="--accent" bars format={inEuro} />
    </Panel>
  );
};
