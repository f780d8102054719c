-- This project: a role that may read the tables, and channels; and the tables once more with a
-- policy on the claims of the token.
CREATE ROLE bench_reader;
SELECT changefeed.allow_role('bench_reader');
GRANT SELECT ON orders, many TO bench_reader;
CREATE TABLE private_orders (LIKE orders INCLUDING ALL);
INSERT INTO private_orders SELECT * FROM orders;
CREATE TABLE private_many (LIKE orders INCLUDING ALL);
INSERT INTO private_many SELECT * FROM many;
VACUUM ANALYZE private_orders, private_many;
GRANT SELECT ON private_orders, private_many TO bench_reader;
ALTER TABLE private_orders ENABLE ROW LEVEL SECURITY;
ALTER TABLE private_many ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON private_orders FOR SELECT
    USING (customer_id = (current_setting('request.jwt.claims')::jsonb ->> 'sub')::int);
CREATE POLICY own ON private_many FOR SELECT
    USING (customer_id = (current_setting('request.jwt.claims')::jsonb ->> 'sub')::int);
SELECT changefeed.create_channel('orders:{customer_id}', 'orders');
SELECT changefeed.create_channel('many:{customer_id}', 'many');
SELECT changefeed.create_channel('private_orders:{customer_id}', 'private_orders');
SELECT changefeed.create_channel('private_many:{customer_id}', 'private_many');
