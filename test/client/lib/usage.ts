// How an application uses the types of its database: what compiles, and what must not. `types.test.mjs` makes ./database.js
// from a schema and compiles this with --strict; a line below @ts-expect-error that compiles is an error, too.

import { createClient, type AnyRow, type Channel, type ChannelOf, type Client } from 'pg-changefeed';
import { changefeedCollectionOptions } from 'pg-changefeed/db';
import { optimistic } from 'pg-changefeed/optimistic';
import { presence } from 'pg-changefeed/presence';
import { useCall, useRows } from 'pg-changefeed/react';
import type { Bytea, Database, Int8, Json } from './database.js';

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends (<T>() => T extends B ? 1 : 2) ? true : false;
/** Compiles if the types are the same. */
const same = <A, B>(_: Same<A, B>) => {};

type Order = Database['channels']['orders:{customer_id}']['entities']['orders']['Row'];
const client = createClient<Database>({ url: '/' });
const customer = 42;

// ---- names ----

const orders = client.channel(`orders:${customer}`);
client.channel('orders:*');
client.channel('orders:42?status=eq.new&order=id.desc');
client.channel('lobby:any%20thing');
// @ts-expect-error: no such channel
client.channel('order:42');
// @ts-expect-error: the parameter is a number
client.channel('orders:all');
// @ts-expect-error: what is undefined does not slip in
client.channel(`orders:${undefined}`);
// @ts-expect-error: and no string that is not known
client.channel(String(customer));

// ---- rows ----

same<ReturnType<typeof orders.rows>, readonly Order[]>(true);
same<Order['id'], Int8>(true);
same<Order['status'], 'new' | 'paid' | 'shipped'>(true);
same<Order['note'], string | null>(true);
same<Order['total'], number | 'NaN' | 'Infinity' | '-Infinity' | null>(true);
same<Order['doc'], Json>(true);
same<Order['photo'], Bytea | null>(true);
same<Order['tags'], (string | null)[]>(true);
const order = orders.get({ id: 1 });
// @ts-expect-error: it may not be there
order.id;
order?.status;
// @ts-expect-error: no such column
order?.state;
// @ts-expect-error: not published
order?.secret;
// @ts-expect-error: no column of the key
orders.get({ status: 'new' });
// @ts-expect-error: it may be null
order?.note.length;
// @ts-expect-error: a value that the enum does not have
if (order) order.status = 'sent';

const both = client.channel('both');
same<ReturnType<typeof both.rows<'items'>>[number]['name'], string>(true);
both.rows('orders');
// @ts-expect-error: no such entity
both.rows('customers');

orders.on('transaction', ({ changes }) => {
  for (const change of changes) {
    if (change.op === 'append') change.row.status satisfies 'new' | 'paid' | 'shipped';
    if (change.op === 'merge') change.set.total;
    // @ts-expect-error: the row is gone
    if (change.op === 'remove') change.row.id;
  }
});

// Two tables of one name in different schemas, and a channel whose names another one's could be taken for
same<ReturnType<Channel<ChannelOf<Database, 'room:7'>>['rows']>[number], Database['tables']['rooms']>(true);
same<ReturnType<Channel<ChannelOf<Database, 'room:7:notes'>>['rows']>[number], Database['tables']['other.rooms']>(true);

// ---- columns that are selected ----

const few = client.channel('orders:42?status=eq.new&select=status,total').rows()[0]!;
few.status;
few.id;
// @ts-expect-error: not selected
few.note;
const everything = client.channel('orders:42?select=*&limit=10').rows()[0]!;
everything.note;
const perhaps = client.channel(`orders:42?select=${String(customer)}`).rows()[0]!;
perhaps.id satisfies Int8;
same<typeof perhaps.status, Order['status'] | undefined>(true);

// ---- calls ----

void client.call('place_order', { customer: 42, items: [{ name: 'a1', n: 2 }] }).then(({ result }) => {
  same<typeof result, Database['tables']['orders'] | null>(true);
});
void client.call('place_order', { customer: '9007199254740993', items: null, note: 'soon' });
void client.call('nothing', {});
// @ts-expect-error: an argument is missing
void client.call('place_order', { customer: 42 });
// @ts-expect-error: there is no such argument
void client.call('place_order', { customer: 42, items: [], count: 1 });
// @ts-expect-error: of another type
void client.call('place_order', { customer: true, items: [] });
// @ts-expect-error: a member of a composite argument that it does not have
void client.call('place_order', { customer: 42, items: [{ sku: 'a1' }] });
// @ts-expect-error: it takes none
void client.call('nothing', { a: 1 });
// @ts-expect-error: no such function
void client.call('place', {});

// ---- messages and presence ----

orders.message('shipped', (payload) => same<typeof payload, Pick<Order, 'id'>>(true));
orders.message('undeclared', (payload) => same<typeof payload, unknown>(true));
void orders.publish('undeclared', { x: 1 });
// @ts-expect-error: declared otherwise
void orders.publish('shipped', { x: 1 });

const lobby = presence(client, client.channel('lobby:1'));
void lobby.track({ anything: true });
// @ts-expect-error: the channel has no presence
void presence(client, orders).track({ name: 'Ada' });

// The application says more than the database can.
interface App extends Database {
  channels: Database['channels'] & {
    'lobby:{room}': { presence: { name: string }; events: { typing: { on: boolean } } };
  };
}
const app = createClient<App>({ url: '/' });
const room = app.channel('lobby:1');
room.message('typing', ({ on }) => same<typeof on, boolean>(true));
void room.publish('typing', { on: true });
void presence(app, room).track({ name: 'Ada' });
// @ts-expect-error: not what members say
void presence(app, room).track({ nick: 'Ada' });
same<ReturnType<typeof app.channel<'orders:1'>>['name'], string>(true);

// ---- other entries ----

void (() => {
  const { rows } = useRows<Database, 'orders:42'>('orders:42');
  rows[0]?.status satisfies Order['status'] | undefined;
  // @ts-expect-error: no such column
  rows[0]?.state;
  const [call] = useCall<Database, 'place_order'>('place_order');
  // @ts-expect-error: an argument is missing
  void call({ customer: 1 });
});
changefeedCollectionOptions({ client, channel: 'orders:42?select=status', getKey: (row: Order) => Number(row.id) });
// @ts-expect-error: no such channel
changefeedCollectionOptions({ client, channel: 'order:42', getKey: (row: Order) => Number(row.id) });
optimistic<Order, ChannelOf<Database, 'orders:42'>>(client, orders).current[0]?.status satisfies Order['status'] | undefined;

// ---- without types everything is allowed ----

const loose = createClient({ url: '/' });
const any = loose.channel('whatever:1?x=eq.2&select=a');
same<ReturnType<typeof any.rows>[number], AnyRow>(true);
any.get({ a: 1 })?.['b'].c;
void loose.call('whatever', { a: 1 }).then(({ result }) => result.x);
any.message('m', (payload) => payload);
void (loose satisfies Client);

// Types that were written by hand, with the names themselves in place of `name`
interface Mine {
  channels: {
    lobby: { entities: { users: { Row: { id: number; name: string }; Key: { id: number } } }; events: Record<string, unknown>; presence: never };
    [room: `room:${number}`]: { entities: {}; events: { said: string }; presence: { name: string } };
  };
  functions: Record<string, { Args: object; Result: unknown }>;
}
const mine = createClient<Mine>({ url: '/' });
same<ReturnType<ReturnType<typeof mine.channel<'lobby'>>['rows']>[number]['name'], string>(true);
mine.channel('room:7').message('said', (text) => text.length);
// @ts-expect-error: no such channel
mine.channel('hall');
