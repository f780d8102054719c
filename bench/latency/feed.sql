-- This project: a role that may read the table, and a channel.
CREATE ROLE bench_reader;
GRANT SELECT ON orders TO bench_reader;
SELECT changefeed.allow_role('bench_reader');
SELECT changefeed.create_channel('orders:{customer_id}', 'orders');
