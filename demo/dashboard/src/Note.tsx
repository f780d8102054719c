/**
 * Editing a note takes a while, and somebody else may save another one meanwhile. The call is made on the condition that the
 * order is still what it was when the dialog opened; if it is not, the user decides.
 */
import { useEffect, useRef, useState } from 'react';
import { ChangefeedError } from 'pg-changefeed';
import { mergeColumns } from 'pg-changefeed/optimistic';

import { notify } from './notices';
import { tell } from './Orders';
import { act, isConnected, outcomeOf, type Session } from './session';
import type { Job } from './schema';

interface Base {
  row: Job;
  version: string | undefined;
}

export const Note = ({ session, id, onClose }: { session: Session; id: number; onClose(): void }) => {
  const dialog = useRef<HTMLDialogElement>(null);
  // The row as it was when the dialog was opened, not as it is now.
  const [base, setBase] = useState<Base | null>(() => {
    const row = session.jobs.get({ id });
    return row ? { row, version: session.jobs.version({ id }) } : null;
  });
  const [text, setText] = useState(base?.row.note ?? '');
  const [theirs, setTheirs] = useState<Job | null>(null);
  const [busy, setBusy] = useState(false);
  useEffect(() => {
    dialog.current?.showModal();
  }, []);

  const save = async (from: Base) => {
    const mine = { note: text.trim() };
    if (!isConnected(session)) {
      tell(session, 'set_note', id, await act(session, 'set_note', { id, ...mine }));
      return onClose();
    }
    setBusy(true);
    try {
      for (let at = from; ;) {
        try {
          await session.client.call('set_note', { id, ...mine }, at.version === undefined ? {} : { expect: { channel: 'jobs', key: { id }, version: at.version } });
          tell(session, 'set_note', id, { kind: 'done', result: id });
          return onClose();
        } catch (error) {
          const found = error instanceof ChangefeedError ? error.conflict : undefined;
          if (!found?.row) throw error;
          const now: Base = { row: found.row as Job, version: found.version as string };
          if (mergeColumns(at.row, mine, now.row) === null) {
            setBase(now);
            setTheirs(now.row);
            return undefined;
          }
          // Something else of the order has changed: the note can be written all the same.
          at = now;
        }
      }
    } catch (error) {
      const outcome = outcomeOf(error);
      notify(`The note of order ${id} was not saved`, { tone: 'bad', as: 'answer', detail: 'message' in outcome ? outcome.message : undefined });
      onClose();
    } finally {
      setBusy(false);
    }
    return undefined;
  };

  return (
    <dialog ref={dialog} className="note" aria-labelledby="note-title" onClose={onClose}>
      <form method="dialog" onSubmit={(event) => { event.preventDefault(); if (base) void save(base); }}>
        <h2 id="note-title">Note of order {id}</h2>
        <label htmlFor="note-text">{theirs ? 'Your note' : 'For the driver'}</label>
        <textarea id="note-text" rows={3} maxLength={200} value={text} onChange={(event) => setText(event.target.value)} />
        {theirs && (
          <div className="conflict" role="alert">
            <p>Somebody has saved another note meanwhile:</p>
            <blockquote>{theirs.note || '(empty)'}</blockquote>
          </div>
        )}
        <div className="buttons">
          <button type="button" className="quiet" onClick={onClose}>{theirs ? 'Keep theirs' : 'Cancel'}</button>
          <button type="submit" className="primary" disabled={busy || !base}>{theirs ? 'Save mine all the same' : 'Save'}</button>
        </div>
      </form>
    </dialog>
  );
};
