/**
 * Orders: what waits, what is under way, and what a dispatcher or a customer does with it.
 */
import { useEffect, useMemo, useRef, useState } from 'react';
import { useCall, usePresence } from 'pg-changefeed/react';

import { Colleague } from './Colleague';
import { Note } from './Note';
import { notify } from './notices';
import { act, isConnected, outcomeOf, predict, type Outcome, type Session } from './session';
import { useReadable } from './store';
import { Panel, money, time } from './ui';
import type { Command, Courier, Job } from './schema';

/** An order as it is shown: with what is on its way to the server, and what waits in the queue. */
export interface Shown {
  job: Job;
  pending: boolean;
  queued: boolean;
}

export const useOrders = (session: Session): readonly Shown[] => {
  const rows = useReadable(session.orders);
  const { waiting } = useReadable(session.queue);
  return useMemo(() => {
    const queued = new Map<number, Partial<Job>>();
    for (const { name, args } of waiting) {
      const { id, ...rest } = args as { id?: number; note?: string };
      if (id !== undefined) queued.set(id, { ...queued.get(id), ...predict(name as Command, rest, session.person.sub) });
    }
    return rows.map((row) => ({
      job: queued.has(row.id) ? { ...row, ...queued.get(row.id) } : row,
      pending: session.orders.isPending({ id: row.id }),
      queued: queued.has(row.id),
    })).sort((a, b) => Number(b.job.urgent ?? false) - Number(a.job.urgent ?? false) || a.job.id - b.job.id);
  }, [rows, waiting, session]);
};

/** Tells what came of a command. Who was second is told who was first. */
export const tell = (session: Session, command: Command, id: number, outcome: Outcome) => {
  const desk = session.person.name;
  const done: Partial<Record<Command, string>> = {
    claim_order: `${desk} has order ${id}`, release_order: `Order ${id} is free again`, send_driver: `Order ${id} goes with a driver`, set_note: `Note of order ${id} saved`,
  };
  if (outcome.kind === 'done') {
    notify(done[command]!, { tone: 'good', as: 'answer', detail: command === 'send_driver' ? `${String(outcome.result)} collects it.` : undefined });
  } else if (outcome.kind === 'queued') {
    notify(`Kept for later: order ${id}`, { as: 'answer', detail: 'It is sent as soon as there is a connection.' });
  } else if (outcome.kind === 'conflict') {
    const who = outcome.theirs?.claimed_by;
    notify(`Conflict: order ${id} was not ${desk}’s to take`, {
      tone: 'bad', as: 'answer', detail: who ? `${who[0]!.toUpperCase()}${who.slice(1)} was faster.` : outcome.message,
    });
  } else notify(`Order ${id}: ${outcome.message}`, { tone: 'bad', as: 'answer', detail: outcome.hint });
};

const Actions = ({ session, shown: { job, pending, queued }, onNote }: { session: Session; shown: Shown; onNote?(job: Job): void }) => {
  const me = session.person.sub;
  const run = async (command: 'claim_order' | 'release_order' | 'send_driver') => tell(session, command, job.id, await act(session, command, { id: job.id }));
  if (job.status !== 'new') return <span className="tag">{job.status}</span>;
  const waits = pending || queued;
  return (
    <>
      {onNote && <button type="button" className="quiet" onClick={() => onNote(job)} aria-label={`Note of order ${job.id}`}>Note</button>}
      {job.claimed_by === me ? (
        <>
          <button type="button" className="quiet" disabled={waits} onClick={() => run('release_order')} aria-label={`Release order ${job.id}`}>Release</button>
          <button type="button" className="primary" disabled={pending} onClick={() => run('send_driver')} aria-label={`Send driver for order ${job.id}`}>Send driver</button>
        </>
      ) : job.claimed_by ? <span className="tag">{job.claimed_by[0]!.toUpperCase() + job.claimed_by.slice(1)}</span>
        : <button type="button" disabled={waits} onClick={() => run('claim_order')} aria-label={`Claim order ${job.id}`}>Claim</button>}
    </>
  );
};

export const OrderList = ({ session, orders, label, onNote }: { session: Session; orders: readonly Shown[]; label: string; onNote?(job: Job): void }) => {
  const dispatches = session.person.role === 'courier_dispatcher';
  if (orders.length === 0) return <p className="empty">None.</p>;
  return (
    <ul className="orders" aria-label={label}>
      {orders.map((shown) => {
        const { job, pending, queued } = shown;
        return (
          <li key={job.id} data-id={job.id} data-status={job.status} data-claimed={job.claimed_by ?? ''} className={pending ? 'pending' : queued ? 'queued' : undefined}>
            <div className="what">
              <span className="id">{job.id}</span>
              <strong>{job.customer}</strong>
              {job.urgent && <span className="tag urgent">urgent</span>}
              {queued && <span className="tag wait">queued</span>}
              <span className="price">{money(job.price)}</span>
            </div>
            <div className="where">
              <span className="address">{job.dropoff ? `to ${job.dropoff}` : `placed ${time(job.placed_at)}`}{job.note && <em>{job.note}</em>}{job.cost !== undefined && <em>cost {money(job.cost)}</em>}</span>
              <span className="actions">{dispatches ? <Actions session={session} shown={shown} onNote={onNote} /> : <span className="tag">{job.status}</span>}</span>
            </div>
          </li>
        );
      })}
    </ul>
  );
};

const VIEWS = { new: 'Waiting', 'under way': 'Under way', delivered: 'Delivered' } as const;
type View = keyof typeof VIEWS;
const viewOf = ({ status }: Job): View => (status === 'new' || status === 'delivered' ? status : 'under way');

/** Who is at the desk, in other windows as well. */
const Desk = ({ session }: { session: Session }) => {
  const me = useMemo(() => ({ name: session.person.name }), [session]);
  const { members } = usePresence<{ name: string }>('desk', me);
  const names = [...members.values()].map(({ states }) => states[0]?.name).filter((name) => name !== undefined);
  return <span className="hint" data-testid="desk">{names.length ? `At the desk: ${names.join(', ')}` : 'Nobody is at the desk'}</span>;
};

const Placing = ({ session }: { session: Session }) => {
  const [place, { pending }] = useCall<Courier, 'place_delivery'>('place_delivery');
  const [urgent, setUrgent] = useState(false);
  const order = async () => {
    try {
      if (isConnected(session)) {
        const { result } = await place({ urgent });
        notify(`Order ${result} is placed`, { tone: 'good', as: 'answer', detail: 'A dispatcher will hand it to a driver.' });
      } else {
        await session.queue.call('place_delivery', { urgent });
        notify('Kept for later: a new order', { as: 'answer', detail: 'It is sent as soon as there is a connection.' });
      }
    } catch (error) {
      const outcome = outcomeOf(error);
      notify('The order was not placed', { tone: 'bad', as: 'answer', detail: 'message' in outcome ? outcome.message : undefined });
    }
  };
  return (
    <div className="placing">
      <label><input type="checkbox" checked={urgent} onChange={(event) => setUrgent(event.target.checked)} /> urgent</label>
      <button type="button" className="primary" disabled={pending} onClick={order}>Order a delivery</button>
    </div>
  );
};

export const Orders = ({ session, orders }: { session: Session; orders: readonly Shown[] }) => {
  const { role } = session.person;
  const [view, setView] = useState<View>('new');
  const [note, setNote] = useState<Job | null>(null);
  const [colleague, setColleague] = useState(false);
  const counts = { new: 0, 'under way': 0, delivered: 0 };
  for (const { job } of orders) counts[viewOf(job)] += 1;
  const shown = orders.filter(({ job }) => viewOf(job) === view);

  // What happens to orders is told by the database, to those who see them.
  const latest = useRef(session);
  latest.current = session;
  useEffect(() => {
    const news = () => (latest.current.jobs.state === 'live' && isConnected(latest.current) ? 'news' : 'quiet');
    const mine = session.person.role === 'courier_customer';
    const offs = [
      session.jobs.message('order.urgent', ({ id, customer }) => notify(`Urgent order ${id}`, { detail: customer, as: news() })),
      session.jobs.message('order.on_the_way', ({ id, dropoff }) => notify(`Order ${id} is on the way`, { detail: dropoff, as: mine ? news() : 'quiet' })),
      session.jobs.message('order.delivered', ({ id, price }) => notify(`Order ${id} is delivered`, { tone: 'good', detail: money(price), as: mine ? news() : 'quiet' })),
    ];
    return () => offs.forEach((off) => off());
  }, [session]);

  return (
    <Panel id="orders" title={role === 'courier_customer' ? 'Your orders' : 'Orders'} aside={
      role === 'courier_dispatcher' ? <button type="button" aria-pressed={colleague} onClick={() => setColleague(!colleague)}>Second desk</button>
        : role === 'courier_customer' ? <Placing session={session} /> : undefined
    }>
      <div className="bar">
        <div className="views" role="group" aria-label="Which orders">
          {(Object.keys(VIEWS) as View[]).map((each) => (
            <button key={each} type="button" aria-pressed={each === view} onClick={() => setView(each)}>{VIEWS[each]} <span className="count">{counts[each]}</span></button>
          ))}
        </div>
        {role === 'courier_dispatcher' && <Desk session={session} />}
      </div>
      <div className="scroll" tabIndex={0} role="region" aria-label={`Orders: ${VIEWS[view]}`}>
        <OrderList session={session} orders={shown} label={VIEWS[view]} onNote={setNote} />
      </div>
      {colleague && <Colleague session={session} onClose={() => setColleague(false)} />}
      {note && <Note session={session} id={note.id} onClose={() => setNote(null)} />}
    </Panel>
  );
};
