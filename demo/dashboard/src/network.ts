/**
 * A network that can be cut: sockets that break and cannot be opened again until it is mended. What the client does then is
 * what it does without any real network.
 */
import { createStore, type Store } from './store';

export interface Network {
  WebSocket: typeof WebSocket;
  readonly cut: Store<boolean>;
  setCut(cut: boolean): void;
}

export const createNetwork = (): Network => {
  const sockets = new Set<WebSocket>();
  const cut = createStore(false);
  class Cuttable extends WebSocket {
    constructor(url: string | URL, protocols?: string | string[]) {
      if (cut.current) throw new Error('the network is cut');
      super(url, protocols);
      sockets.add(this);
      this.addEventListener('close', () => sockets.delete(this));
    }
  }
  return {
    WebSocket: Cuttable,
    cut,
    setCut(next) {
      if (next === cut.current) return;
      cut.set(next);
      if (next) for (const socket of sockets) socket.close();
      // As the browser tells when a network is back.
      else window.dispatchEvent(new Event('online'));
    },
  };
};
