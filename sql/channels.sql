-- Channels and sources: what can be declared, and what the views show of it.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_changefeed;
RESET client_min_messages;

CREATE TABLE orders (
    id int PRIMARY KEY,
    customer_id int NOT NULL,
    status text,
    note text
);

-- The short form: entity and key come from the table, the replica identity is
-- set, with a notice that says so.
SELECT changefeed.create_channel('orders:{customer_id}', 'orders');
SELECT relreplident FROM pg_class WHERE oid = 'orders'::regclass;
\x on
SELECT * FROM changefeed.channels;
SELECT * FROM changefeed.sources;
\x off

-- The same table in another channel; now there is nothing to be set, and
-- nothing to be told.
SELECT changefeed.create_channel('open_orders', 'orders',
    entity => 'order',
    filter => $$ status = 'open' AND customer_id > 0 $$,
    columns => '{id,status}',
    on_insert => 'replace',
    on_update => 'replace',
    on_delete => 'ignore');

-- Several sources. The order of the key is the user's.
CREATE SCHEMA "Odd Schema";
CREATE TABLE "Odd Schema"."Order Item" (
    "order id" int NOT NULL,
    "Line" int NOT NULL,
    customer_id bigint NOT NULL,
    UNIQUE ("order id", "Line")
);
SELECT changefeed.add_source('orders:{customer_id}', '"Odd Schema"."Order Item"',
    entity => 'item', key => '{Line,"order id"}');
SELECT changefeed.create_channel('items:{order id}', '"Odd Schema"."Order Item"',
    key => ARRAY['order id', 'Line'],
    filter => '"Line" > 0 AND "Order Item".customer_id = customer_id::int');
SELECT channel, source, entity, key, filter, columns, on_insert, on_update, on_delete
  FROM changefeed.sources ORDER BY channel COLLATE "C", entity COLLATE "C";

-- A channel without a source, for messages and presence
SELECT changefeed.create_channel('lobby');
SELECT changefeed.add_source('lobby', 'orders', on_insert => 'merge', on_update => 'remove');
SELECT changefeed.drop_source('lobby', 'orders');
SELECT * FROM changefeed.channels ORDER BY name COLLATE "C";

-- At most one frame in that time
SELECT changefeed.create_channel('paced', min_interval => '1.5 s');
SELECT name, min_interval FROM changefeed.channels WHERE min_interval IS NOT NULL;
SELECT changefeed.create_channel('paced_2', min_interval => '9 ms');
SELECT changefeed.create_channel('paced_2', min_interval => '1 hour 1 s');
SELECT changefeed.create_channel('paced_2', min_interval => '1 day -23 hours');
SELECT changefeed.create_channel('paced_2', min_interval => '-1 s');
SELECT changefeed.create_channel('paced_2', min_interval => '1 mon');
SELECT changefeed.drop_channel('paced');

-- A deferrable key, and a primary key of several columns with INCLUDE
CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE covering (b int, a int, c text, PRIMARY KEY (b, a) INCLUDE (c));
SET client_min_messages = warning;
SELECT changefeed.create_channel('deferred', 'deferred');
SELECT changefeed.create_channel('covering', 'covering');
RESET client_min_messages;
SELECT channel, key FROM changefeed.sources
 WHERE channel IN ('deferred', 'covering') ORDER BY channel COLLATE "C";

-- Replica identity: left alone when it is enough
CREATE TABLE keyed (id int PRIMARY KEY, room int NOT NULL, body text);
CREATE UNIQUE INDEX keyed_room_id ON keyed (room, id);
ALTER TABLE keyed REPLICA IDENTITY USING INDEX keyed_room_id;
SELECT changefeed.create_channel('keyed:{room}', 'keyed', set_replica_identity => false);
SELECT relreplident FROM pg_class WHERE oid = 'keyed'::regclass;
ALTER TABLE keyed REPLICA IDENTITY DEFAULT;
SELECT changefeed.create_channel('keyed_all', 'keyed', set_replica_identity => false);
-- ... and refused when it is not
SELECT changefeed.create_channel('keyed_room:{room}', 'keyed', set_replica_identity => false);
SELECT changefeed.create_channel('keyed_body', 'keyed', filter => 'body IS NULL OR id > 3 AND room = 1',
    set_replica_identity => false);
ALTER TABLE keyed REPLICA IDENTITY NOTHING;
SELECT changefeed.create_channel('keyed_nothing', 'keyed', set_replica_identity => false);
SELECT changefeed.create_channel('deferred2', 'deferred', set_replica_identity => false);
ALTER TABLE deferred REPLICA IDENTITY DEFAULT;
SELECT changefeed.create_channel('deferred3', 'deferred', set_replica_identity => false);

-- Partitioned tables: declared by their root, or by a partition
CREATE TABLE events (id int, day date, kind text, PRIMARY KEY (day, id)) PARTITION BY RANGE (day);
CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
-- (with other attribute numbers than the root)
CREATE TABLE events_2 (dropped int, kind text, id int NOT NULL, day date NOT NULL);
ALTER TABLE events_2 DROP COLUMN dropped;
ALTER TABLE events ATTACH PARTITION events_2 FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
SELECT changefeed.create_channel('events:{kind}', 'events', set_replica_identity => false);
SELECT changefeed.create_channel('events', 'events', set_replica_identity => false);
SELECT changefeed.drop_channel('events');
SELECT changefeed.create_channel('events:{kind}', 'events');
SELECT changefeed.create_channel('january', 'events_1');
SELECT relname, relreplident FROM pg_class WHERE relkind <> 'v' AND relname ~ '^events(_\d)?$' ORDER BY relname COLLATE "C";


-- Partitions that come later have what create_channel sets, unless it was told not to.
CREATE TABLE events_3 PARTITION OF events FOR VALUES FROM ('2026-03-01') TO ('2026-04-01') PARTITION BY LIST (id);
CREATE TABLE events_3d PARTITION OF events_3 DEFAULT;
CREATE TABLE events_4 (LIKE events INCLUDING ALL);
ALTER TABLE events ATTACH PARTITION events_4 FOR VALUES FROM ('2026-04-01') TO ('2026-05-01');
ALTER TABLE events_4 REPLICA IDENTITY DEFAULT;
SELECT relname, relreplident FROM pg_class WHERE relname ~ '^events_[34]d?$' ORDER BY relname COLLATE "C";
DROP TABLE events_3, events_4;
CREATE TABLE bare (id int PRIMARY KEY) PARTITION BY LIST (id);
CREATE TABLE bare_1 PARTITION OF bare FOR VALUES IN (1);
SELECT changefeed.create_channel('bare', 'bare', set_replica_identity => false);
CREATE TABLE bare_2 PARTITION OF bare FOR VALUES IN (2);
SELECT relname, relreplident FROM pg_class WHERE relname ~ '^bare(_\d)?$' ORDER BY relname COLLATE "C";
SELECT changefeed.drop_channel('bare');
DROP TABLE bare;

-- Everything is part of the transaction.
BEGIN;
CREATE TABLE temporary_thing (id int PRIMARY KEY);
SELECT changefeed.create_channel('thing', 'temporary_thing');
SELECT changefeed.drop_channel('january');
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT changefeed.create_channel('rolled_back', 'orders');
SELECT changefeed.create_channel('rolled_back', 'orders');
ROLLBACK TO s;
SELECT current_user = session_user AS same_user;
SELECT changefeed.create_channel('committed', 'orders');
COMMIT;
SELECT name FROM changefeed.channels ORDER BY name COLLATE "C";

-- Rules hold in transactions with an old snapshot, too.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM changefeed.channels;
SELECT changefeed.create_channel('first', 'orders');
SELECT changefeed.create_channel('{status}', 'orders');
ROLLBACK;
BEGIN READ ONLY;
SELECT changefeed.create_channel('first', 'orders');
ROLLBACK;

-- Sources go with their tables, also by CASCADE and DROP OWNED; channels stay.
DROP TABLE events_1;
DROP SCHEMA "Odd Schema" CASCADE;
BEGIN;
DROP TABLE orders;
SELECT channel, source FROM changefeed.sources ORDER BY channel COLLATE "C", source;
ROLLBACK;
SELECT channel, source FROM changefeed.sources ORDER BY channel COLLATE "C", source::text COLLATE "C";
SELECT * FROM changefeed.channels ORDER BY name COLLATE "C";

-- A table is the same one with another name.
ALTER TABLE orders RENAME TO purchases;
SELECT channel, source, entity FROM changefeed.sources
 WHERE source = 'purchases'::regclass ORDER BY channel COLLATE "C";

-- Dropping
SELECT changefeed.drop_source('open_orders', 'purchases');
SELECT changefeed.drop_source('open_orders', 'purchases');
SELECT changefeed.drop_source('nowhere', 'purchases');
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.drop_channel('nowhere');
SELECT changefeed.add_source('nowhere', 'purchases');
SELECT count(changefeed.drop_channel(name)) FROM changefeed.channels;
SELECT count(*) FROM changefeed.channel;
SELECT count(*) FROM changefeed.source;

DROP TABLE purchases, deferred, covering, keyed, events;
