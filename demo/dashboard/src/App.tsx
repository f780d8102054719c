/**
 * The page: who is signed in, the panels, and on a phone one of them at a time.
 */
import { useCallback, useEffect, useRef, useState } from 'react';
import { RealtimeProvider } from 'pg-changefeed/react';
import { Toaster } from 'sonner';

import { City } from './City';
import { Finance } from './Finance';
import { Badge, Link } from './Link';
import { forgetNotices, notices, notify } from './notices';
import { Orders, useOrders } from './Orders';
import { openSession, type Session } from './session';
import { useReadable } from './store';
import { Panel, number, time } from './ui';

const VIEWS = { city: 'Map', orders: 'Orders', finance: 'Finance', link: 'Connection', activity: 'Activity' } as const;
type View = keyof typeof VIEWS;
const ROLES = { courier_dispatcher: 'dispatcher', courier_finance: 'finance', courier_customer: 'customer' };

const Activity = () => {
  const list = useReadable(notices);
  return (
    <Panel id="activity" title="Activity">
      <div className="scroll" tabIndex={0} role="region" aria-label="Latest notices">
        {list.length === 0 ? <p className="empty">Nothing yet.</p> : (
          <ol className="notices">
            {list.map((notice) => (
              <li key={notice.id} data-tone={notice.tone}><time>{time(notice.at)}</time><span>{notice.text}{notice.detail && <em>{notice.detail}</em>}</span></li>
            ))}
          </ol>
        )}
      </div>
    </Panel>
  );
};

const Board = ({ session }: { session: Session }) => {
  const orders = useOrders(session);
  const [view, setView] = useState<View>('city');
  const trips = useReadable(session.trips);
  const { waiting, failed } = useReadable(session.queue);

  // Back again: one notice, with what it took.
  const told = useRef(0);
  useEffect(() => {
    const [trip] = trips;
    if (!trip || trip.awayMs === null || told.current === trip.id) return;
    told.current = trip.id;
    notify(`Back after ${(trip.awayMs / 1000).toFixed(1)} s`, {
      tone: 'good', as: 'answer', detail: `${number(trip.replayed)} transactions replayed, ${trip.reloaded.length ? 'some rows loaded again' : 'nothing loaded again'}.`,
    });
  }, [trips]);
  const before = useRef(0);
  useEffect(() => {
    if (failed.length > before.current) notify('A queued call was refused', { tone: 'bad', as: 'answer', detail: failed.at(-1)!.failed!.message });
    before.current = failed.length;
  }, [failed]);

  return (
    <>
      <main data-view={view}>
        <City session={session} jobs={orders.map(({ job }) => job)} />
        <Orders session={session} orders={orders} />
        <Finance session={session} />
        <Link session={session} />
        <Activity />
      </main>
      <nav aria-label="Panels">
        {(Object.keys(VIEWS) as View[]).map((each) => (
          <button key={each} type="button" aria-current={each === view ? 'page' : undefined} onClick={() => setView(each)}>
            {VIEWS[each]}{each === 'link' && waiting.length + failed.length > 0 && <span className="count">{waiting.length + failed.length}</span>}
          </button>
        ))}
      </nav>
    </>
  );
};

export const App = () => {
  const [sub, setSub] = useState(() => location.hash.slice(1) || 'dana');
  const [session, setSession] = useState<Session | null>(null);
  const [error, setError] = useState('');
  useEffect(() => {
    let wanted = true;
    let opened: Session | null = null;
    openSession(sub).then((next) => {
      opened = next;
      if (wanted) setSession(next);
      else next.close();
    }, (failure: Error) => wanted && setError(failure.message));
    return () => {
      wanted = false;
      opened?.close();
      setSession(null);
      forgetNotices();
    };
  }, [sub]);
  const choose = useCallback((next: string) => {
    history.replaceState(null, '', `#${next}`);
    setError('');
    setSub(next);
  }, []);

  return (
    <>
      <header className="top">
        <h1><span>City couriers</span></h1>
        {session && (
          <label className="who">
            <span>Signed in as</span>
            <select value={sub} onChange={(event) => choose(event.target.value)}>
              {session.people.map((person) => <option key={person.sub} value={person.sub}>{person.name}, {ROLES[person.role]}</option>)}
            </select>
          </label>
        )}
        {session && <RealtimeProvider client={session.client as never}><Badge /></RealtimeProvider>}
      </header>
      {session ? <RealtimeProvider key={sub} client={session.client as never}><Board session={session} /></RealtimeProvider>
        : <main className="alone"><p role="status">{error || 'Signing in…'}</p></main>}
      <Toaster position="bottom-right" visibleToasts={3} expand theme="system" gap={8} mobileOffset={{ bottom: 64 }} />
    </>
  );
};
