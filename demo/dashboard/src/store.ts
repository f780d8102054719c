/**
 * A value with listeners, in the shape that React reads.
 */
import { useSyncExternalStore } from 'react';
import type { Readable } from 'pg-changefeed';

export interface Store<T> extends Readable<T> {
  set(value: T): void;
}

export const createStore = <T>(initial: T): Store<T> => {
  const listeners = new Set<() => void>();
  let current = initial;
  return {
    get current() {
      return current;
    },
    set(value) {
      if (Object.is(value, current)) return;
      current = value;
      for (const listener of [...listeners]) listener();
    },
    subscribe(listener) {
      listeners.add(listener);
      return () => void listeners.delete(listener);
    },
  };
};

export const useReadable = <T>(store: Readable<T>): T => useSyncExternalStore(store.subscribe, () => store.current);
