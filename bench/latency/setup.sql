-- Two tables of the benchmark: in orders all rows are of one channel, in many each of the 1,000 rows is
-- of a channel of its own. Each system gets them in a database of its own.
CREATE TABLE orders (
    id bigint PRIMARY KEY,
    customer_id int NOT NULL,
    status text NOT NULL,
    note text NOT NULL,
    sent_us bigint NOT NULL
);
INSERT INTO orders SELECT i, 1, 'new', repeat('x', 100), 0 FROM generate_series(1, 100) i;
CREATE TABLE many (LIKE orders INCLUDING ALL);
INSERT INTO many SELECT i, i, 'new', repeat('x', 100), 0 FROM generate_series(1, 1000) i;
VACUUM ANALYZE orders, many;
