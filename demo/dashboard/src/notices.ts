/**
 * Notices: a list of the latest, and a toast for those that matter now. At most one toast in two seconds, so that neither a
 * screen nor a screen reader is flooded; what comes too fast, or from the time of an interruption, is in the list alone.
 */
import { toast } from 'sonner';

import { createStore } from './store';

export type Tone = 'good' | 'bad' | 'info';

export interface Notice {
  readonly id: number;
  readonly at: number;
  readonly tone: Tone;
  readonly text: string;
  readonly detail?: string;
}

const KEPT = 40;
const QUIET_MS = 2000;

export const notices = createStore<readonly Notice[]>([]);

let lastToast = 0;
let nextId = 1;

export interface NoticeOptions {
  detail?: string;
  tone?: Tone;
  /** `answer`: what the user has just asked for, and always shown; `news`: if there is room; `quiet`: in the list alone. */
  as?: 'answer' | 'news' | 'quiet';
}

export const notify = (text: string, { detail, tone = 'info', as = 'news' }: NoticeOptions = {}) => {
  const at = Date.now();
  notices.set([{ id: nextId++, at, tone, text, detail }, ...notices.current].slice(0, KEPT));
  if (as === 'quiet' || (as === 'news' && at - lastToast < QUIET_MS)) return;
  lastToast = at;
  (tone === 'good' ? toast.success : tone === 'bad' ? toast.error : toast)(text, { description: detail });
};
