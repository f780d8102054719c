-- Filters: what they may contain, and the text that is kept.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_changefeed;
RESET client_min_messages;

CREATE SCHEMA shop;
CREATE TYPE shop.status AS ENUM ('new', 'open', 'done');
CREATE DOMAIN shop.percent AS int CHECK (VALUE BETWEEN 0 AND 100);
CREATE TYPE shop.address AS (city text, street text);
CREATE TABLE shop.orders (
    id int PRIMARY KEY,
    status shop.status,
    history shop.status[],
    discount shop.percent,
    address shop.address,
    note text COLLATE "C",
    total numeric,
    due date,
    created timestamptz,
    age interval,
    info jsonb,
    tags text[],
    "Odd name" boolean,
    twice int GENERATED ALWAYS AS (id * 2) STORED
);
ALTER TABLE shop.orders REPLICA IDENTITY FULL;

-- Creates a channel with the filter, shows what is kept, and drops it again.
CREATE FUNCTION kept(filter text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    result text;
BEGIN
    PERFORM changefeed.create_channel('filtered', 'shop.orders', filter => $1);
    SELECT s.filter INTO result FROM changefeed.sources s WHERE channel = 'filtered';
    PERFORM changefeed.drop_channel('filtered');
    RETURN result;
END $$;
\pset format unaligned
\pset tuples_only on

--
-- What is possible
--
SELECT kept('true');
SELECT kept('"Odd name"');
SELECT kept('shop.orders.id = 1 OR orders.id = 2');
SELECT kept('status = ''open''');
SELECT kept('status >= ''open'' AND status <> ALL (history)');
SELECT kept('status IN (''new'', ''open'')');
SELECT kept('discount > 10');
SELECT kept('total * (1 - discount::numeric / 100) BETWEEN 10 AND 20.5');
SELECT kept('note LIKE ''a%'' AND note COLLATE "POSIX" ~* ''x''');
SELECT kept('note IS NULL OR NOT (coalesce(length(note), 0) > 3 AND upper(note) IS DISTINCT FROM ''A'')');
SELECT kept('info->>''kind'' = ''a'' AND info @> ''{"b": [1]}'' AND ''x'' = ANY (tags) AND tags[1] = ''y''');
SELECT kept('CASE WHEN id > 1 THEN greatest(id, 3) = 3 ELSE (id, twice) = (1, 2) END');
SELECT kept('(id, note) IN ((1, ''a''), (2, ''b''))');
SELECT kept('twice > 4 -- a comment');
SELECT kept('note = ''it''''s \ '' || E''\\''');

-- Literals mean what they mean in this session, and are kept so that they mean
-- the same in every other.
SET TimeZone = 'America/New_York';
SET DateStyle = 'SQL, DMY';
SET IntervalStyle = 'iso_8601';
SELECT kept('due > ''02/01/2026'' AND created < ''02/01/2026 12:00'' AND age > ''P1DT2H''');
RESET TimeZone;
RESET DateStyle;
RESET IntervalStyle;
-- What is in the way in the search path is not used.
CREATE FUNCTION shop.lower(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT $1';
SET search_path = shop, pg_catalog, public;
SELECT kept('lower(note) = ''a'' AND status = ''open''');
RESET search_path;

--
-- What is not
--
\pset tuples_only off
\set SHOW_CONTEXT never
SELECT kept('');
\echo :LAST_ERROR_SQLSTATE
SELECT kept('status =');
SELECT kept('true; DROP TABLE shop.orders');
SELECT kept('true FROM shop.orders');
SELECT kept('true, false');
SELECT kept('true AS x');
SELECT kept('*');
SELECT kept('true LIMIT 1');
SELECT kept('WHERE true');
SELECT kept('id');
\echo :LAST_ERROR_SQLSTATE
SELECT kept('nothing = 1');
\echo :LAST_ERROR_SQLSTATE
SELECT kept('other.id = 1');
SELECT kept('id = ''x''');
SELECT kept('status = ''closed''');
SELECT kept('nothing(id)');
SELECT kept('id = $1');
SELECT kept('id = (SELECT 1)');
\echo :LAST_ERROR_SQLSTATE
SELECT kept('EXISTS (SELECT FROM shop.orders)');
SELECT kept('id IN (SELECT 1)');
SELECT kept('count(*) > 1');
\echo :LAST_ERROR_SQLSTATE
SELECT kept('rank() OVER () = 1');
SELECT kept('generate_series(1, id) = 1');
SELECT kept('ctid = ''(0,1)''');
\echo :LAST_ERROR_SQLSTATE
SELECT kept('tableoid = 1');
SELECT kept('orders IS NOT NULL');
SELECT kept('orders.* IS NOT NULL');
SELECT kept('address IS NOT NULL');
SELECT kept('(address).city = ''x''');
SELECT kept('50::shop.percent = id');
SELECT kept('xmlelement(name a) IS DOCUMENT');

-- Not immutable
SELECT kept('created > now()');
\echo :LAST_ERROR_SQLSTATE
SELECT kept('created > CURRENT_TIMESTAMP');
SELECT kept('created > due');
SELECT kept('created::date = due');
SELECT kept('random() < 0.5');
SELECT kept('note = current_user');
SELECT kept('note = current_setting(''request.jwt.claims'')');
SELECT kept('status::text = ''open''');
SELECT kept('note::shop.status = ''open''');
SELECT kept('created::text = ''x''');

-- Not built in
CREATE FUNCTION shop.mine(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1';
CREATE OPERATOR shop.=== (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq);
CREATE FUNCTION shop.to_int(shop.status) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1';
CREATE CAST (shop.status AS int) WITH FUNCTION shop.to_int(shop.status);
CREATE TYPE shop.numbers AS RANGE (subtype = numeric);
SELECT kept('shop.mine(id) = 1');
\echo :LAST_ERROR_SQLSTATE
SELECT kept('id OPERATOR(shop.===) 1');
SELECT kept('id OPERATOR(shop.===) ANY (ARRAY[1])');
SELECT kept('status::int = 1');
SELECT kept('shop.numbers(1, 2) @> total');
SELECT kept('''[1,2]''::shop.numbers @> total');

-- Positions are those in the filter, also in deeper places.
SELECT kept('id > 0 AND
  (note = ''x'' OR nothing)');

\pset format aligned
SELECT * FROM changefeed.channels;
SET client_min_messages = warning;
DROP SCHEMA shop CASCADE;
DROP FUNCTION kept(text);
