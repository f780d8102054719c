/**
 * The connection: what it is doing, switches that take it away, and what coming back took.
 */
import { useEffect, useMemo, useState } from 'react';
import { useConnection, useMetrics } from 'pg-changefeed/react';

import { Chart } from './Chart';
import { useReadable } from './store';
import { Panel, Switch, number, time } from './ui';
import type { QueuedCall } from 'pg-changefeed/offline';
import type { Session, Trip } from './session';

const WORDS: Record<string, string> = {
  idle: 'not connected', connecting: 'connecting', connected: 'live', polling: 'polling', reconnecting: 'reconnecting', disconnected: 'offline', unauthorized: 'signed out', closed: 'closed',
};

/** In the page's head. Screen readers hear of changes of the state, not of each second. */
export const Badge = () => {
  const { status, retryAt } = useConnection();
  const [now, setNow] = useState(Date.now);
  useEffect(() => {
    if (retryAt === null) return undefined;
    setNow(Date.now());
    const timer = setInterval(() => setNow(Date.now()), 500);
    return () => clearInterval(timer);
  }, [retryAt]);
  return (
    <span className="badge" data-status={status}>
      <i aria-hidden="true" />
      <span role="status">{WORDS[status]}</span>
      {retryAt !== null && <span className="hint" aria-hidden="true">again in {Math.max(0, Math.ceil((retryAt - now) / 1000))} s</span>}
    </span>
  );
};

const words = (trip: Trip) =>
  trip.awayMs === null ? 'away; rows are those of before'
    : `${number(trip.replayed)} ${trip.replayed === 1 ? 'transaction' : 'transactions'} replayed, ${trip.reloaded.length ? `${trip.reloaded.join(', ')} loaded again` : 'nothing loaded again'}`;

const COMMANDS: Record<string, string> = {
  claim_order: 'Claim order', release_order: 'Release order', send_driver: 'Driver for order', set_note: 'Note of order', place_delivery: 'A new order',
};
const nameOf = ({ name, args }: QueuedCall) => `${COMMANDS[name] ?? name} ${(args as { id?: number }).id ?? ''}`.trim();

const Queue = ({ session }: { session: Session }) => {
  const { waiting, failed } = useReadable(session.queue);
  if (waiting.length + failed.length === 0) return null;
  return (
    <>
      <h3>Queue</h3>
      <ol className="queue" aria-label="Queue">
        {waiting.map((call) => <li key={call.id} data-state="waiting"><span>{nameOf(call)}</span><span className="tag wait">waits</span></li>)}
        {failed.map((call) => (
          <li key={call.id} data-state="failed">
            <span>{nameOf(call)}<em>{call.failed!.message}</em></span>
            <span className="actions">
              <button type="button" className="quiet" onClick={() => session.queue.retry(call.id)} aria-label={`Again: ${nameOf(call)}`}>Again</button>
              <button type="button" className="quiet" onClick={() => session.queue.discard(call.id)} aria-label={`Discard: ${nameOf(call)}`}>Discard</button>
            </span>
          </li>
        ))}
      </ol>
    </>
  );
};

const Trips = ({ session }: { session: Session }) => {
  const trips = useReadable(session.trips);
  return (
    <>
      <h3>Interruptions</h3>
      {trips.length === 0 ? <p className="empty">None yet.</p> : (
        <ol className="trips" aria-label="Interruptions">
          {trips.map((trip) => (
            <li key={trip.id} data-over={trip.awayMs !== null} data-replayed={trip.replayed} data-reloaded={trip.reloaded.length}>
              <time>{time(trip.lostAt)}</time><span>{trip.awayMs !== null && `${(trip.awayMs / 1000).toFixed(1)} s: `}{words(trip)}</span>
            </li>
          ))}
        </ol>
      )}
    </>
  );
};

export const Link = ({ session }: { session: Session }) => {
  const connection = useConnection();
  const metrics = useMetrics(1000);
  const cut = useReadable(session.network.cut);
  const rate = useReadable(session.rate);
  const [offline, setOffline] = useState(false);
  const toggle = (next: boolean) => {
    setOffline(next);
    session.client.setLive(!next);
  };
  const lag = useMemo(() => rate.lagMs.filter((value) => value !== null).at(-1), [rate]);
  const figures: [string, string][] = [
    ['Transport', connection.transport ?? '–'], ['Lag', lag === undefined ? '–' : `${lag} ms`],
    ['Round trip', `${Math.round(metrics.latencyMs.avg)} ms`], ['Received', number(metrics.received)],
    ['Connections', number(metrics.connects)], ['Rows kept', number(metrics.rows)],
  ];
  return (
    <Panel id="link" title="Connection">
      <div className="columns">
        <div>
          <div className="switches">
            <Switch on={cut} onChange={session.network.setCut} label="Cut the connection" hint="The socket breaks; the client comes back and resumes." />
            <Switch on={offline} onChange={toggle} label="Work offline" hint="What you do waits here, and is sent once you are back." />
          </div>
          <Trips session={session} />
        </div>
        <div className="charts">
          <div><h3>Updates per second</h3><Chart label={`Updates per second over the last minute, ${rate.changes.at(-1) ?? 0} now`} at={rate.at} values={rate.changes} colour="--accent" /></div>
          <div><h3>Commit to screen, ms</h3><Chart label={`Milliseconds from commit to screen over the last minute, ${lag ?? 'unknown'} now`} at={rate.at} values={rate.lagMs} colour="--green" /></div>
        </div>
      </div>
      <Queue session={session} />
      <dl className="figures small">{figures.map(([name, value]) => <div key={name}><dt>{name}</dt><dd>{value}</dd></div>)}</dl>
    </Panel>
  );
};
