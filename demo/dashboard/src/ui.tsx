/**
 * Small parts of the page: panels, switches, money and times.
 */
import { useId, type ReactNode } from 'react';

const euro = new Intl.NumberFormat('en-IE', { style: 'currency', currency: 'EUR' });
const clock = new Intl.DateTimeFormat('en-GB', { hour: '2-digit', minute: '2-digit', second: '2-digit' });
const count = new Intl.NumberFormat('en-IE');

export const money = (value: number) => euro.format(value);
export const time = (at: number | string) => clock.format(new Date(at));
export const number = (value: number) => count.format(value);

export const Panel = ({ id, title, aside, children }: { id: string; title: string; aside?: ReactNode; children: ReactNode }) => (
  <section className="panel" id={id} aria-labelledby={`${id}-title`}>
    <header className="panel-head">
      <h2 id={`${id}-title`}>{title}</h2>
      {aside}
    </header>
    <div className="panel-body">{children}</div>
  </section>
);

/** What a role may not see. The words are the database's. */
export const Locked = ({ children, reason }: { children: ReactNode; reason: string }) => (
  <div className="locked">
    <svg viewBox="0 0 24 24" aria-hidden="true"><path d="M7 10V8a5 5 0 0 1 10 0v2h1.5v10h-13V10zm2 0h6V8a3 3 0 0 0-6 0z" /></svg>
    <p>{children}</p>
    <code>{reason}</code>
  </div>
);

export const Switch = ({ on, onChange, label, hint }: { on: boolean; onChange(on: boolean): void; label: string; hint: string }) => {
  const id = useId();
  return (
    <div className="switch">
      <button type="button" role="switch" aria-checked={on} aria-labelledby={`${id}-label`} aria-describedby={`${id}-hint`} onClick={() => onChange(!on)}>
        <span />
      </button>
      <div>
        <span id={`${id}-label`} className="switch-label">{label}</span>
        <span id={`${id}-hint`} className="hint">{hint}</span>
      </div>
    </div>
  );
};
