/**
 * The map: drivers as they move, along the streets of a city that only this demo has.
 */
import { memo } from 'react';
import { useRows } from 'pg-changefeed/react';

import { Locked, Panel } from './ui';
import { useReadable } from './store';
import type { Courier, Driver, Job } from './schema';
import type { Session } from './session';

const VIEW = '-3 -3 126 78';
const STREET = 6;
/** Blocks that are green, by column and row. */
const PARKS = [[6, 1], [7, 1], [6, 2], [7, 2], [18, 2], [19, 2], [13, 5], [13, 6], [14, 6], [13, 7], [16, 9], [17, 9], [-4, 4], [23, 7], [9, -3], [3, 14]] as const;

/** The streets go on beyond what drivers serve, so that any window is full of city. */
const Ground = memo(() => (
  <svg viewBox={VIEW} aria-hidden="true">
    <defs>
      <pattern id="blocks" width={STREET} height={STREET} patternUnits="userSpaceOnUse"><rect className="block" x="0.75" y="0.75" width="4.5" height="4.5" rx="0.7" /></pattern>
    </defs>
    <rect fill="url(#blocks)" x="-300" y="-300" width="720" height="672" />
    {PARKS.map(([x, y]) => <rect key={`${x} ${y}`} className="block park" x={x * STREET + 0.75} y={y * STREET + 0.75} width="4.5" height="4.5" rx="0.7" />)}
    <path className="river" d="M-200 51H-4C 14 50, 22 38, 40 39 S 66 55, 84 47 S 106 24, 124 27H320" />
    <path className="bridge" d="M-18 46v10M18 36v12M42 34v12M66 42v12M90 36v12M108 22v12M138 22v10" />
  </svg>
));

/** Form and colour both say what a driver does. */
const Mark = memo(({ driver: { x, y, name, state }, mine }: { driver: Driver; mine: boolean }) => (
  <g className={`driver ${state.replace(' ', '-')}${mine ? ' mine' : ''}`} style={{ transform: `translate(${x}px, ${y}px)` }}>
    <title>{`${name}: ${state}`}</title>
    {state === 'delivering' ? <circle r="1.7" /> : state === 'collecting' ? <path d="M0 -2.3L2.2 1.7H-2.2z" /> : <circle className="ring" r="1.25" />}
  </g>
));

const Stop = memo(({ job: { from_x, from_y, urgent } }: { job: Job }) => (
  <rect className={urgent ? 'stop urgent' : 'stop'} x={from_x! - 1} y={from_y! - 1} width="2" height="2" rx="0.3" />
));

const Legend = () => (
  <ul className="legend">
    <li><svg viewBox="-3 -3 6 6" className="driver delivering" aria-hidden="true"><circle r="2" /></svg>delivering</li>
    <li><svg viewBox="-3 -3 6 6" className="driver collecting" aria-hidden="true"><path d="M0 -2.5L2.5 2H-2.5z" /></svg>collecting</li>
    <li><svg viewBox="-3 -3 6 6" className="driver idle" aria-hidden="true"><circle className="ring" r="1.7" /></svg>idle</li>
    <li><svg viewBox="-3 -3 6 6" aria-hidden="true"><rect className="stop" x="-1.7" y="-1.7" width="3.4" height="3.4" rx="0.5" /></svg>waiting order</li>
  </ul>
);

export const City = ({ session, jobs }: { session: Session; jobs: readonly Job[] }) => {
  const { rows: drivers, state, error } = useRows<Courier, 'fleet', 'drivers'>('fleet', { entity: 'drivers' });
  const { changes } = useReadable(session.rate);
  const isCustomer = session.person.role === 'courier_customer';
  const title = isCustomer ? 'Your couriers' : 'City';
  if (error) {
    return <Panel id="city" title={title}><Locked reason={error.message}>{session.person.name} may not see where drivers are.</Locked></Panel>;
  }
  const last = changes.slice(-5);
  const perSecond = last.length ? Math.round(last.reduce((sum, n) => sum + n, 0) / last.length) : 0;
  return (
    <Panel id="city" title={title} aside={<><Legend /><span className="figure" data-testid="rate">{perSecond} updates/s</span></>}>
      <div className={`map ${state}`}>
        <Ground />
        <svg viewBox={VIEW} role="img" aria-label="Map of the city with all drivers; the table below has the same in words">
          {jobs.filter(({ status, from_x }) => status === 'new' && from_x !== undefined).map((job) => <Stop key={job.id} job={job} />)}
          {drivers.map((driver) => <Mark key={driver.id} driver={driver} mine={isCustomer} />)}
        </svg>
        {isCustomer && drivers.length === 0 && state === 'live' && <p className="empty on-map">Nobody carries anything of yours right now.</p>}
      </div>
      <details className="as-table">
        <summary>Drivers as a table</summary>
        <div className="scroll" tabIndex={0} role="region" aria-label="Drivers">
          <table>
            <thead><tr><th scope="col">Driver</th><th scope="col">Vehicle</th><th scope="col">State</th><th scope="col" className="right">Order</th><th scope="col" className="right">At</th></tr></thead>
            <tbody>
              {[...drivers].sort((a, b) => a.id - b.id).map((driver) => (
                <tr key={driver.id} data-id={driver.id}>
                  <th scope="row">{driver.name}</th><td>{driver.vehicle}</td><td>{driver.state}</td>
                  <td className="right">{driver.order_id ?? '–'}</td><td className="right">{driver.x}, {driver.y}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      </details>
    </Panel>
  );
};
