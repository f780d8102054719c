-- The demo's traffic: CALL shop.tick() does one thing that happens in a shop, in one short
-- transaction. The number of orders stays at about 60.
--
--   psql -d shop -f demo/writer.sql -c 'CALL shop.tick()'

\set ON_ERROR_STOP on

-- A new order, now and then of customer 1, with one to four items.
CREATE OR REPLACE PROCEDURE shop.place_order()
LANGUAGE plpgsql AS $$
DECLARE
    new_id integer;
BEGIN
    INSERT INTO shop.orders (customer_id, note)
    VALUES (CASE WHEN random() < 0.3 THEN 1 ELSE 1 + floor(random() * 20)::integer END,
            CASE WHEN random() < 0.2 THEN (ARRAY['Please ring twice', 'Leave it with the neighbour',
                                                 'Third floor, no lift'])[1 + floor(random() * 3)::integer] END)
    RETURNING id INTO new_id;

    INSERT INTO shop.order_items (order_id, line, product, quantity, price)
    SELECT new_id, row_number() OVER (), name, 1 + floor(random() * 3)::integer, price
    FROM (SELECT name, price FROM shop.products
          ORDER BY random() LIMIT 1 + floor(random() * 4)::integer) AS basket;

    UPDATE shop.orders
    SET total = (SELECT sum(quantity * price) FROM shop.order_items WHERE order_id = new_id)
    WHERE id = new_id;
END
$$;

-- Everything below takes one order that fits, at random. Order 7 is left to be changed by hand.

-- new -> packed -> shipped, with a driver -> delivered
CREATE OR REPLACE PROCEDURE shop.move_order()
LANGUAGE sql AS $$
    UPDATE shop.orders
    SET status = CASE status WHEN 'new' THEN 'packed' WHEN 'packed' THEN 'shipped' ELSE 'delivered' END,
        driver_id = CASE WHEN status = 'packed' THEN 1 + floor(random() * 8)::integer ELSE driver_id END
    WHERE id = (SELECT id FROM shop.orders
                WHERE status IN ('new', 'packed', 'shipped') AND id <> 7
                ORDER BY random() LIMIT 1);
$$;

-- Another driver takes over.
CREATE OR REPLACE PROCEDURE shop.reassign_order()
LANGUAGE sql AS $$
    UPDATE shop.orders
    SET driver_id = 1 + driver_id % 8
    WHERE id = (SELECT id FROM shop.orders WHERE status = 'shipped' AND id <> 7 ORDER BY random() LIMIT 1);
$$;

-- One more of something; the order's total follows in the same transaction.
CREATE OR REPLACE PROCEDURE shop.add_to_order()
LANGUAGE sql AS $$
    WITH item AS (
        UPDATE shop.order_items
        SET quantity = quantity + 1
        WHERE (order_id, line) = (SELECT order_id, line
                                  FROM shop.order_items JOIN shop.orders ON id = order_id
                                  WHERE status = 'new' AND id <> 7 AND quantity < 6
                                  ORDER BY random() LIMIT 1)
        RETURNING order_id, price)
    UPDATE shop.orders
    SET total = total + item.price
    FROM item
    WHERE id = item.order_id;
$$;

CREATE OR REPLACE PROCEDURE shop.cancel_order()
LANGUAGE sql AS $$
    UPDATE shop.orders
    SET status = 'cancelled'
    WHERE id = (SELECT id FROM shop.orders WHERE status = 'new' AND id <> 7 ORDER BY random() LIMIT 1);
$$;

-- The oldest orders that are done, with their items, until 60 are left.
CREATE OR REPLACE PROCEDURE shop.forget_orders()
LANGUAGE sql AS $$
    DELETE FROM shop.orders
    WHERE id IN (SELECT id FROM shop.orders
                 WHERE status IN ('delivered', 'cancelled') AND id <> 7
                 ORDER BY placed_at, id
                 LIMIT (SELECT least(3, greatest(0, count(*) - 60)) FROM shop.orders));
$$;

CREATE OR REPLACE PROCEDURE shop.tick()
LANGUAGE plpgsql AS $$
DECLARE
    dice float8 := random();
    orders integer := (SELECT count(*) FROM shop.orders);
BEGIN
    IF orders >= 64 THEN
        CALL shop.forget_orders();
    END IF;
    -- An order needs three moves to get through: about one of four ticks places one, so that
    -- there is always something in every state.
    IF orders < 50 OR dice < 0.22 THEN
        CALL shop.place_order();
    ELSIF dice < 0.82 THEN
        CALL shop.move_order();
    ELSIF dice < 0.88 THEN
        CALL shop.reassign_order();
    ELSIF dice < 0.96 THEN
        CALL shop.add_to_order();
    ELSE
        CALL shop.cancel_order();
    END IF;
END
$$;
