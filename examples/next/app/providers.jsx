'use client';

import { createClient } from 'pg-changefeed';
import { RealtimeProvider } from 'pg-changefeed/react';
import { useState } from 'react';

// One client for the page. Nothing connects before a component asks for a channel, and on the server none does.
export function Providers({ url, children }) {
  const [client] = useState(() => createClient({
    url,
    // The same user as in session.js, or the position would be of no use.
    auth: async () => (await fetch('/token', { method: 'POST' })).text(),
  }));
  return <RealtimeProvider client={client}>{children}</RealtimeProvider>;
}
