/**
 * A second desk: the other dispatcher, with a token and a connection of her or his own, in the same window. Both can reach for
 * the same order.
 */
import { useEffect, useState } from 'react';
import { RealtimeProvider } from 'pg-changefeed/react';

import { notify } from './notices';
import { OrderList, tell, useOrders } from './Orders';
import { act, openSession, type Session } from './session';

const Other = ({ session, other, onClose }: { session: Session; other: Session; onClose(): void }) => {
  const orders = useOrders(other).filter(({ job }) => job.status === 'new');
  const next = orders.find(({ job }) => !job.claimed_by);
  const race = async () => {
    const { id } = next!.job;
    const desks = [session, other];
    // Both calls are on their way before either has an answer.
    const outcomes = await Promise.all(desks.map((desk) => act(desk, 'claim_order', { id })));
    outcomes.forEach((outcome, i) => tell(desks[i]!, 'claim_order', id, outcome));
  };
  return (
    <section className="colleague" aria-label={`Desk of ${other.person.name}`}>
      <header>
        <h3>Desk of {other.person.name}</h3>
        <button type="button" disabled={!next} onClick={race}>{next ? `Both claim ${next.job.id}` : 'Nothing to claim'}</button>
        <button type="button" className="quiet" onClick={onClose}>Close</button>
      </header>
      <div className="scroll" tabIndex={0} role="region" aria-label={`Waiting orders, as ${other.person.name} sees them`}>
        <OrderList session={other} orders={orders} label={`Waiting, for ${other.person.name}`} />
      </div>
    </section>
  );
};

export const Colleague = ({ session, onClose }: { session: Session; onClose(): void }) => {
  const [other, setOther] = useState<Session | null>(null);
  useEffect(() => {
    const sub = session.people.find(({ role, sub: each }) => role === session.person.role && each !== session.person.sub)?.sub;
    let open = true;
    let opened: Session | null = null;
    if (sub) {
      openSession(sub).then((next) => {
        opened = next;
        if (open) setOther(next);
        else next.close();
      }, (error) => notify('The second desk does not open', { tone: 'bad', detail: String(error), as: 'answer' }));
    }
    return () => {
      open = false;
      opened?.close();
    };
  }, [session]);
  return other ? <RealtimeProvider client={other.client as never}><Other session={session} other={other} onClose={onClose} /></RealtimeProvider>
    : <section className="colleague"><p className="empty">Opening…</p></section>;
};
