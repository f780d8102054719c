-- One table of the benchmark; both systems get one, in databases of their own.
CREATE TABLE orders (
    id bigint PRIMARY KEY,
    customer_id int NOT NULL,
    status text NOT NULL,
    note text NOT NULL,
    sent_us bigint NOT NULL
);
INSERT INTO orders
SELECT i, 42, 'new', repeat('x', 100), 0 FROM generate_series(1, 100) i;
VACUUM ANALYZE orders;
