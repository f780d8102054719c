import { connection } from 'next/server';
import { loadInitial } from 'pg-changefeed/server';
import { Suspense } from 'react';
import { Orders } from './orders.jsx';
import { token } from './session.js';

const CHANNEL = 'orders:42';

// The heading and the fallback are sent at once; the rows follow when the database has answered.
export default function Page() {
  return (
    <main>
      <h1>Orders</h1>
      <Suspense fallback={<p id="loading">Loading …</p>}>
        <Loaded />
      </Suspense>
    </main>
  );
}

async function Loaded() {
  await connection();
  const initial = await loadInitial(CHANNEL, { url: process.env.CHANGEFEED_URL, token: await token() });
  return <Orders channel={CHANNEL} initial={initial} />;
}
