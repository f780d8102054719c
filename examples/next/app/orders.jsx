'use client';

import { useCall, useConnection, useRows } from 'pg-changefeed/react';

export function Orders({ channel, initial }) {
  const { rows, state, error } = useRows(channel, { initial });
  const { status } = useConnection();
  const [ship, { pending }] = useCall('ship');
  if (error) return <p role="alert">{error.message}</p>;
  const sorted = [...rows].sort((a, b) => a.id - b.id);
  return (
    <>
      <p id="state">{state}, {status}</p>
      <ul>
        {sorted.map((row) => (
          <li key={row.id} id={`order-${row.id}`}>
            {row.id}: {row.status}
            {row.status === 'new' && <button type="button" disabled={pending} onClick={() => ship({ id: row.id })}>Ship</button>}
          </li>
        ))}
      </ul>
    </>
  );
}
