/**
 * What there is in the database, for the compiler. `changefeed.typescript_types()` writes such a file; here it is made by hand,
 * because one page serves several roles: columns that a role may not read do not arrive, so they are optional.
 */
export interface Job {
  id: number;
  customer_id: number;
  customer: string;
  status: 'new' | 'assigned' | 'on the way' | 'delivered';
  price: number;
  placed_at: string;
  done_at: string | null;
  dropoff?: string;
  from_x?: number;
  from_y?: number;
  to_x?: number;
  to_y?: number;
  urgent?: boolean;
  driver_id?: number | null;
  claimed_by?: string | null;
  note?: string;
  cost?: number;
}

export interface Driver {
  id: number;
  name: string;
  vehicle: string;
  state: 'idle' | 'collecting' | 'delivering';
  x: number;
  y: number;
  order_id: number | null;
  customer_id: number | null;
}

export interface Minute {
  minute: string;
  deliveries: number;
  revenue: number;
  cost: number;
}

export interface Totals {
  id: string;
  deliveries: number;
  revenue: number;
  cost: number;
  margin: number;
  average: number;
}

type Id = { id: number };
type None = Record<never, never>;

// A type and not an interface: only these fit an index of names.
export type Courier = {
  channels: {
    jobs: {
      entities: { orders: { Row: Job; Key: Id } };
      events: {
        'order.urgent': { id: number; customer: string };
        'order.on_the_way': { id: number; customer_id: number; dropoff: string };
        'order.delivered': { id: number; customer_id: number; price: number };
      };
      presence: unknown;
    };
    fleet: { entities: { drivers: { Row: Driver; Key: Id } }; events: None; presence: unknown };
    finance: {
      entities: { minutes: { Row: Minute; Key: { minute: string } }; totals: { Row: Totals; Key: { id: string } } };
      events: None;
      presence: unknown;
    };
    desk: { entities: None; events: None; presence: { name: string } };
  };
  functions: {
    claim_order: { Args: Id; Result: number };
    release_order: { Args: Id; Result: number };
    send_driver: { Args: Id; Result: string };
    set_note: { Args: { id: number; note: string }; Result: number };
    place_delivery: { Args: { urgent?: boolean }; Result: number };
  };
};

export type Command = keyof Courier['functions'];
