/**
 * Small parts: listeners, when they are called, and timers.
 */

// eslint-disable-next-line @typescript-eslint/no-explicit-any
type Listener = (...values: any[]) => void;

/** Listeners by event. An error in one of them does not keep the others from being called. */
export const createEmitter = () => {
  const all = new Set<[event: string, listener: Listener]>();
  return {
    on(event: string, listener: Listener): () => void {
      // The same function may listen twice.
      const own: [string, Listener] = [event, listener];
      all.add(own);
      return () => void all.delete(own);
    },
    emit(event: string, ...values: unknown[]): void {
      for (const [its, listener] of [...all]) {
        // What is thrown there is a rejection of its own, which nobody handles.
        if (its === event) void new Promise(() => listener(...values));
      }
    },
  };
};

export type Emitter = ReturnType<typeof createEmitter>;

/** Calls `work` once for any number of requests until then. */
export const createScheduler = (when: 'sync' | 'microtask' | 'frame' | number, work: () => void) => {
  let asked = false;
  const run = () => {
    if (!asked) return;
    asked = false;
    work();
  };
  return (): void => {
    if (asked) return;
    asked = true;
    if (when === 'sync' || when === 'microtask') queueMicrotask(run);
    else {
      // In a hidden page there are no frames.
      if (when === 'frame') globalThis.requestAnimationFrame?.(run);
      setTimeout(run, when === 'frame' ? 100 : when);
    }
  };
};

/** A timer that is set anew with each call, and without arguments only ended. */
export const createTimer = () => {
  let timer: ReturnType<typeof setTimeout> | undefined;
  return (work?: () => void, ms?: number): void => {
    clearTimeout(timer);
    if (work) timer = setTimeout(work, ms);
  };
};

/** A random time below one that doubles with each attempt, so that many clients do not come back together. */
export const jitter = (attempt: number, minMs: number, maxMs: number): number =>
  Math.random() * Math.min(maxMs, minMs * 2 ** attempt);
