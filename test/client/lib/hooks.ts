// What an application exports of its hooks, and what is made of them. `types.test.mjs` compiles it with --declaration: each type
// can be written down.

import { createClient } from 'pg-changefeed';
import { createHooks } from 'pg-changefeed/react';
import type { Database } from './database.js';

export const client = createClient<Database>({ url: '/' });
export const hooks = createHooks<Database>();
export const { useClient, useChannel, useRows, useOptimisticRows, usePresence, usePublish, useCall } = createHooks<Database>();
export const useOrders = (customer: number) => useRows(`orders:${customer}`);
export const useStates = (customer: number) => useOptimisticRows(`orders:${customer}?select=status`);
export const usePlaceOrder = () => useCall('place_order');
export const useShipped = (customer: number) => usePublish(`orders:${customer}`, 'shipped', ({ id }) => console.log(id + 1));
export const useLobby = () => [usePresence('lobby:1', { name: 'ada' }), useChannel('lobby:1')] as const;

export const useStatus = (customer: number): 'new' | 'paid' | 'shipped' | undefined => useOrders(customer).rows[0]?.status;
// @ts-expect-error: no such channel
export const useNothing = () => useRows('order:1');
