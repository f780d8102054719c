-- This project: a role that may read the table, and a channel; and the same table once more with a
-- policy on the claims of the token.
CREATE ROLE bench_reader;
GRANT SELECT ON orders TO bench_reader;
CREATE TABLE private_orders (LIKE orders INCLUDING ALL);
INSERT INTO private_orders SELECT * FROM orders;
VACUUM ANALYZE private_orders;
GRANT SELECT ON private_orders TO bench_reader;
ALTER TABLE private_orders ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON private_orders FOR SELECT
    USING (customer_id = (current_setting('request.jwt.claims')::jsonb ->> 'sub')::int);
SELECT changefeed.allow_role('bench_reader');
SELECT changefeed.create_channel('orders:{customer_id}', 'orders');
SELECT changefeed.create_channel('private_orders:{customer_id}', 'private_orders');
