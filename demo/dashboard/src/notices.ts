/**
 * Notices: a list of the latest, and a toast for those that matter now. What the user has asked for is answered at once; of news
 * there is at most one toast in two seconds, so that neither a screen nor a screen reader is flooded. News of the time of an
 * interruption is in the list alone.
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
let waiting: Notice[] = [];

export interface NoticeOptions {
  detail?: string;
  tone?: Tone;
  /** `answer`: what the user has just asked for; `news`: in its turn; `quiet`: in the list alone. */
  as?: 'answer' | 'news' | 'quiet';
}

const show = ({ text, detail, tone }: Notice) => {
  lastToast = Date.now();
  (tone === 'good' ? toast.success : tone === 'bad' ? toast.error : toast)(text, { description: detail });
};

/** The latest of what has come since the last toast, and how many there were. */
const showNews = () => {
  const [latest] = waiting;
  if (!latest) return;
  const others = waiting.length - 1;
  waiting = [];
  show(others ? { ...latest, detail: `${latest.detail ? `${latest.detail}, ` : ''}and ${others} more` } : latest);
};

export const notify = (text: string, { detail, tone = 'info', as = 'news' }: NoticeOptions = {}) => {
  const notice: Notice = { id: nextId++, at: Date.now(), tone, text, detail };
  notices.set([notice, ...notices.current].slice(0, KEPT));
  if (as === 'answer') show(notice);
  if (as !== 'news') return;
  waiting = [notice, ...waiting];
  if (waiting.length === 1) setTimeout(showNews, Math.max(0, lastToast + QUIET_MS - Date.now()));
};

/** For somebody else. */
export const forgetNotices = () => {
  waiting = [];
  notices.set([]);
  toast.dismiss();
};
