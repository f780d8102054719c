-- The city's traffic: CALL courier.tick() moves some drivers, and now and then something happens to an order. Each of these
-- is a transaction of its own. UPDATE courier.traffic SET running = false stops all of it.
--
--   psql -d shop -f demo/dashboard/writer.sql -c 'CALL courier.tick()'

\set ON_ERROR_STOP on

-- Three drivers, those whose last step is longest ago; ten times a second that is 30 steps.
CREATE OR REPLACE PROCEDURE courier.move_drivers()
LANGUAGE plpgsql AS $$
DECLARE
    d courier.drivers;
    job courier.orders;
    now_minute timestamptz := date_trunc('minute', clock_timestamp());
BEGIN
    FOR d IN SELECT * FROM courier.drivers ORDER BY moved_at LIMIT 3 FOR NO KEY UPDATE SKIP LOCKED LOOP
        IF d.x <> d.goal_x AND d.y % 6 = 0 THEN
            d.x := d.x + sign(d.goal_x - d.x) * least(2, abs(d.goal_x - d.x));
        ELSIF d.y <> d.goal_y THEN
            d.y := d.y + sign(d.goal_y - d.y) * least(2, abs(d.goal_y - d.y));
        ELSIF d.state = 'collecting' THEN
            UPDATE courier.orders SET status = 'on the way' WHERE id = d.order_id RETURNING * INTO job;
            d.state := 'delivering';
            d.goal_x := job.to_x;
            d.goal_y := job.to_y;
        ELSE
            IF d.state = 'delivering' THEN
                -- Order, driver and figures: one transaction, so one frame for everybody who sees several of them.
                UPDATE courier.orders SET status = 'delivered', done_at = now() WHERE id = d.order_id RETURNING * INTO job;
                INSERT INTO courier.minutes VALUES (now_minute, 1, job.price, job.cost)
                ON CONFLICT (minute) DO UPDATE SET deliveries = minutes.deliveries + 1, revenue = minutes.revenue + excluded.revenue, cost = minutes.cost + excluded.cost;
                UPDATE courier.totals
                SET deliveries = deliveries + 1, revenue = revenue + job.price, cost = cost + job.cost,
                    margin = revenue + job.price - cost - job.cost, average = round((revenue + job.price) / (deliveries + 1), 2);
                d.state := 'idle';
                d.order_id := NULL;
                d.customer_id := NULL;
            END IF;
            -- Around the corner, to wait there.
            d.goal_x := least(120, greatest(0, d.x + 6 * (floor(random() * 5) - 2)));
            d.goal_y := least(72, greatest(0, d.y + 6 * (floor(random() * 5) - 2)));
        END IF;
        UPDATE courier.drivers
        SET (x, y, state, goal_x, goal_y, order_id, customer_id, moved_at) = (d.x, d.y, d.state, d.goal_x, d.goal_y, d.order_id, d.customer_id, clock_timestamp())
        WHERE id = d.id;
    END LOOP;
END
$$;

CREATE OR REPLACE PROCEDURE courier.place()
LANGUAGE sql AS $$
    INSERT INTO courier.orders (customer_id, customer, dropoff, from_x, from_y, to_x, to_y, urgent, note, price, cost)
    SELECT c.id, c.name, p.address, c.x, c.y, p.x, p.y, random() < 0.06,
           CASE WHEN random() < 0.25 THEN (ARRAY['Ring twice', 'Third floor, no lift', 'Keep upright', 'Cash on delivery'])[1 + floor(random() * 4)::integer] ELSE '' END,
           p.price, round(p.price * 0.62, 2)
    FROM (SELECT * FROM courier.customers ORDER BY random() LIMIT 1) c, LATERAL courier.somewhere(c.x, c.y) p;
$$;

-- Orders that no dispatcher takes: the oldest goes to a driver when more than eight wait.
CREATE OR REPLACE PROCEDURE courier.hand_out()
LANGUAGE plpgsql AS $$
DECLARE
    job courier.orders;
    driver integer;
BEGIN
    SELECT * INTO job FROM courier.orders WHERE status = 'new' AND claimed_by IS NULL ORDER BY placed_at, id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED;
    IF job.id IS NULL OR (SELECT count(*) <= 8 FROM courier.orders WHERE status = 'new' AND claimed_by IS NULL) THEN
        RETURN;
    END IF;
    SELECT id INTO driver FROM courier.drivers WHERE state = 'idle' ORDER BY abs(x - job.from_x) + abs(y - job.from_y), id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED;
    IF driver IS NOT NULL THEN
        UPDATE courier.drivers SET (state, goal_x, goal_y, order_id, customer_id) = ('collecting', job.from_x, job.from_y, job.id, job.customer_id) WHERE id = driver;
        UPDATE courier.orders SET status = 'assigned', driver_id = driver WHERE id = job.id;
    END IF;
END
$$;

-- What was claimed and forgotten, and the oldest that are done.
CREATE OR REPLACE PROCEDURE courier.tidy()
LANGUAGE sql AS $$
    UPDATE courier.orders SET claimed_by = NULL, claimed_at = NULL WHERE status = 'new' AND claimed_at < now() - interval '3 minutes';
    DELETE FROM courier.orders WHERE id IN (SELECT id FROM courier.orders WHERE status = 'delivered' ORDER BY done_at DESC, id OFFSET 20);
    DELETE FROM courier.minutes WHERE minute < now() - interval '1 hour';
$$;

CREATE OR REPLACE PROCEDURE courier.tick()
LANGUAGE plpgsql AS $$
DECLARE
    dice float8 := random();
BEGIN
    IF NOT (SELECT running FROM courier.traffic) THEN
        RETURN;
    END IF;
    CALL courier.move_drivers();
    COMMIT;
    -- Fewer than the drivers can carry, and never more waiting than can be looked through.
    IF dice < 0.03 AND (SELECT count(*) < 14 FROM courier.orders WHERE status = 'new') THEN
        CALL courier.place();
    ELSIF dice BETWEEN 0.03 AND 0.08 THEN
        CALL courier.hand_out();
    ELSIF dice BETWEEN 0.08 AND 0.09 THEN
        CALL courier.tidy();
    END IF;
END
$$;
