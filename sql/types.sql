-- TypeScript types of what clients get.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_changefeed;
DROP ROLE IF EXISTS regress_types_app, regress_types_web, regress_types_anon, regress_types_other;
CREATE ROLE regress_types_app;
CREATE ROLE regress_types_web;
CREATE ROLE regress_types_anon;
CREATE ROLE regress_types_other;
SELECT changefeed.allow_role('regress_types_web');
SELECT changefeed.allow_role('regress_types_anon');
GRANT CREATE ON SCHEMA public TO regress_types_app;
-- Tests of before may have left something.
SELECT changefeed.drop_channel(name) FROM changefeed.channels;
SELECT changefeed.unexpose_function(name) FROM changefeed.functions;
\pset format unaligned
\pset tuples_only on
\set SHOW_CONTEXT never

-- Nothing yet
SELECT changefeed.typescript_types();

-- An ordinary schema. Its owner need not own the database.
SET ROLE regress_types_app;
CREATE TYPE order_status AS ENUM ('new', 'it''s shipped', 'back\slash "quoted"');
CREATE DOMAIN email AS text CHECK (VALUE LIKE '%@%');
CREATE DOMAIN label AS text NOT NULL;
CREATE TYPE address AS (street text, zip label, at point);
CREATE TABLE customers (
    id bigint PRIMARY KEY,
    email email NOT NULL,
    home address,
    tags text[] NOT NULL DEFAULT '{}',
    labels label[],
    secret text
);
COMMENT ON TABLE customers IS 'Who buys.';
COMMENT ON TYPE address IS 'Where somebody lives';
COMMENT ON COLUMN customers.email IS E'  Where to write */ to\r\n\r\nsecond line  ';
CREATE TABLE orders (
    id int PRIMARY KEY,
    customer_id bigint NOT NULL REFERENCES customers,
    status order_status NOT NULL,
    total numeric(8, 2),
    twice numeric GENERATED ALWAYS AS (total * 2) STORED,
    dropped int
);
ALTER TABLE orders DROP COLUMN dropped;
SELECT changefeed.create_channel('orders:{customer_id}', 'orders', publish_check => 'true', presence => '{"count_only": true}', min_interval => '1 s');
SELECT changefeed.create_channel('order:{id}.{customer_id}', 'orders', columns => '{id,status}');
SELECT changefeed.create_channel('customers', 'customers', entity => 'customer', columns => '{id,email,home,tags,labels}', presence => '{}');
SELECT changefeed.add_source('customers', 'orders');
SELECT changefeed.add_event('customers', 'orders', 'shipped', 'new.status = ''it''''s shipped''');
SELECT changefeed.add_event('customers', 'customers', 'shipped', 'old.id = 1');
SELECT changefeed.add_event('customers', 'orders', 'any', payload => 'new.total');
CREATE FUNCTION place_order(customer bigint, items address[], email email, note label DEFAULT 'x', VARIADIC marks numeric[] DEFAULT '{}')
    RETURNS orders LANGUAGE sql AS 'SELECT * FROM orders';
COMMENT ON FUNCTION place_order IS 'Orders something.';
CREATE FUNCTION totals(from_day date, OUT day date, OUT total float8, OUT label label) RETURNS SETOF record LANGUAGE sql AS 'SELECT $1, 1.5, ''x''';
CREATE FUNCTION one(INOUT n int) LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION nothing() RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION anything() RETURNS record LANGUAGE sql AS 'SELECT 1, 2';
CREATE FUNCTION numbers() RETURNS SETOF bigint LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION rows_of() RETURNS TABLE (id int, doc jsonb) LANGUAGE sql AS 'SELECT 1, ''{}''::jsonb';
CREATE FUNCTION a_label() RETURNS label LANGUAGE sql AS 'SELECT ''x''';
CREATE FUNCTION an_address() RETURNS address LANGUAGE sql AS 'SELECT NULL::address';
SELECT changefeed.expose_function(oid) FROM pg_proc
 WHERE proname IN ('place_order', 'totals', 'one', 'nothing', 'anything', 'numbers', 'rows_of', 'a_label', 'an_address') AND pronamespace = 'public'::regnamespace;
SELECT changefeed.typescript_types();
RESET ROLE;

-- The same for the owner of the database, whatever the session's settings are. (Not with variables of psql: strings
-- that they make do not mean the same with standard_conforming_strings off.)
CREATE TEMP TABLE types AS SELECT changefeed.typescript_types() AS of_all, changefeed.typescript_types('regress_types_web') AS of_web;
GRANT SELECT ON types TO regress_types_app;
SET ROLE regress_types_app;
SET search_path = pg_catalog;
SET standard_conforming_strings = off;
SET quote_all_identifiers = on;
SET intervalstyle = iso_8601;
SELECT of_all = changefeed.typescript_types() AS same, of_web = changefeed.typescript_types('regress_types_web') AS same_web FROM pg_temp.types;
RESET standard_conforming_strings;
RESET quote_all_identifiers;
RESET intervalstyle;
RESET search_path;
RESET ROLE;

-- One role of clients gets what it may read and execute, and some columns are not for all.
GRANT SELECT ON customers TO regress_types_web;
GRANT SELECT (id, tags) ON customers TO regress_types_anon;
GRANT SELECT ON orders TO regress_types_web;
REVOKE EXECUTE ON FUNCTION nothing() FROM PUBLIC;
SELECT line FROM regexp_split_to_table(changefeed.typescript_types(), '\n') line WHERE line ~ '^ +customer: ';
SELECT changefeed.drop_source('customers', 'orders');
SELECT changefeed.typescript_types(role => 'regress_types_anon');
SELECT line FROM regexp_split_to_table(changefeed.typescript_types('regress_types_web'), '\n') line WHERE line ~ '^ +(customer|nothing|one): ';
-- A key that a role may not read is an error for its subscriptions.
REVOKE SELECT (id) ON customers FROM regress_types_anon;
SELECT changefeed.typescript_types('regress_types_anon') LIKE '%channels: {};%' AS none;

-- Numbers
SELECT left(changefeed.typescript_types(numbers => 'finite'), 720);
SELECT left(changefeed.typescript_types(numbers => 'lossless'), 840);
SELECT line FROM regexp_split_to_table(changefeed.typescript_types(numbers => 'lossless'), '\n') line WHERE line ~ 'name:';

-- Who sees what: the same as in the views.
SET ROLE regress_types_other;
SELECT changefeed.typescript_types() LIKE '%tables: {};%types: {};%channels: {};%functions: {};%' AS nothing;
RESET ROLE;

-- What a filter reads, its subscribers have to read.
SET ROLE regress_types_app;
CREATE TABLE notes (id int PRIMARY KEY, body text, hidden boolean, level int);
GRANT SELECT ON notes TO regress_types_web;
GRANT SELECT (id, body) ON notes TO regress_types_anon;
SELECT changefeed.create_channel('notes', 'notes', columns => '{id,body}', filter => 'NOT hidden AND (level > 1 OR level IS NULL)');
RESET ROLE;
SELECT role, changefeed.typescript_types(role::regrole) ~ E'\n    notes: {\n      name' AS has, changefeed.typescript_types(role::regrole) LIKE '%body: string%' AS sees
  FROM unnest('{regress_types_web,regress_types_anon}'::text[]) role;
GRANT SELECT (hidden, level) ON notes TO regress_types_anon;
SELECT changefeed.typescript_types('regress_types_anon') LIKE '%notes: { Row: %' AS has;

-- Payloads of events, and channels of enums and booleans
CREATE SCHEMA regress_types_own AUTHORIZATION regress_types_app;
SET ROLE regress_types_app;
CREATE TYPE regress_types_own.mood AS ENUM ('happy', 'sad');
CREATE TYPE plain AS ENUM ('a', 'b.c', 'd-e');
CREATE DOMAIN plain_domain AS plain;
CREATE TABLE things (id int PRIMARY KEY, kind plain_domain NOT NULL, odd order_status, live boolean NOT NULL, mood regress_types_own.mood NOT NULL,
    name text, price numeric NOT NULL, tags text[], doc jsonb NOT NULL, "it's" int, place regress_types_own.mood[]);
ALTER TABLE things REPLICA IDENTITY FULL;
SELECT changefeed.create_channel('things:{kind}', 'things');
SELECT changefeed.create_channel('things:{live}:{odd}:{name}', 'things');
SELECT changefeed.create_channel('changes', 'things', columns => '{id,kind,live,mood,name,price,tags,doc,"it''s"}');
CREATE FUNCTION pg_temp.event(event text, payload text, on_change text[] DEFAULT '{insert,update,delete}') RETURNS void
    LANGUAGE sql AS $$ SELECT changefeed.add_event('changes', 'things', $1, NULL, $2, $3) $$;
SELECT count(pg_temp.event(name, payload)) FROM (VALUES
    ('a column', 'new.name'), ('not null', 'new.price'), ('enum', 'new.mood'), ('domain', 'new.kind'), ('doc', 'new.doc'), ('array', 'new.tags'),
    ('constant', '''it''''s'''), ('number', '1'), ('null', 'NULL'), ('computed', 'new.price * 2'), ('case', 'CASE WHEN new.live THEN new.name ELSE ''x'' END'),
    ('objects', 'json_build_object(''id'', new.id, ''it''''s'', new."it''s", ''x'', old.mood, ''x'', jsonb_build_array(), ''in'', jsonb_build_object(''doc'', to_jsonb(new.doc), ''name'', to_json(new.name)), ''e'', jsonb_build_object())'),
    ('arrays', 'jsonb_build_array(1, ''x'', NULL, new.live, true, 1.5, new.id > 5)'),
    ('keys', 'jsonb_build_object(new.name, 1)'), ('variadic', 'jsonb_build_object(VARIADIC new.tags)')) e (name, payload);
SELECT pg_temp.event('inserted', 'jsonb_build_object(''new'', new.price, ''old'', old.price, ''name'', new.name)', '{insert}');
SELECT pg_temp.event('changed', 'jsonb_build_object(''new'', new.price, ''old'', old.price)', '{update}');
SELECT pg_temp.event('deleted', 'jsonb_build_object(''new'', new.price, ''old'', old.price)', '{delete}');
SELECT substring(changefeed.typescript_types() FROM E'\n    changes: {.*?\n    };');
SELECT line FROM regexp_split_to_table(changefeed.typescript_types(), '\n') line WHERE line ~ '^      name: .*things|mood'': ';
-- Too many names to compare, and an event that is broken
ALTER TABLE things DROP COLUMN price;
DO $$ BEGIN EXECUTE (SELECT format('CREATE TYPE many AS ENUM (%s)', string_agg(quote_literal(i), ', ')) FROM generate_series(1, 40) i); END $$;
CREATE TABLE lots (id int PRIMARY KEY, a many, b many);
SELECT changefeed.create_channel('lots:{a}:{b}', 'lots');
SELECT line FROM regexp_split_to_table(changefeed.typescript_types(), '\n') line WHERE line ~ '^ +(name: .lots|''not null''|computed|inserted|objects)';
RESET ROLE;
-- Whoever may not look into the schema of a type gets what is known without; nothing fails.
GRANT pg_monitor TO regress_types_other;
SET ROLE regress_types_app;
SELECT changefeed.add_event('changes', 'things', 'cast', NULL, 'CASE new.mood WHEN ''happy''::regress_types_own.mood THEN 1 END');
SELECT line FROM regexp_split_to_table(changefeed.typescript_types(), '\n') line WHERE line ~ '^ +(enum|cast): ';
SET ROLE regress_types_other;
SELECT line FROM regexp_split_to_table(changefeed.typescript_types(), '\n') line WHERE line ~ '^ +(enum|cast): ';
RESET ROLE;
REVOKE pg_monitor FROM regress_types_other;
SELECT changefeed.drop_channel(name) FROM changefeed.channels WHERE name ~ '^(notes|changes|things|lots)';
DROP TABLE notes, things, lots;
DROP SCHEMA regress_types_own CASCADE;

-- Names that are none in TypeScript, and some that are
CREATE SCHEMA "Odd Schema";
CREATE SCHEMA "a.b";
CREATE TYPE "Odd Schema"."type" AS ENUM ();
CREATE TABLE "Odd Schema"."Order Item" ("order id" int, "class" "Odd Schema"."type", "it's" int[][] NOT NULL, "ünï" int, "${x}`\" int,
    "__proto__" bool, "a""b" int, U&"a\0009b" int, PRIMARY KEY ("order id"));
COMMENT ON TABLE "Odd Schema"."Order Item" IS '*/ export const x = 1; /*';
COMMENT ON COLUMN "Odd Schema"."Order Item"."class" IS ' ';
CREATE TABLE "a.b"."c" (id int PRIMARY KEY);
CREATE TABLE "a.b.c" (id int PRIMARY KEY);
SELECT changefeed.create_channel('o`d\d$:{order id}', '"Odd Schema"."Order Item"', entity => 'odd "entity"');
SELECT changefeed.create_channel('a', '"a.b"."c"');
SELECT changefeed.create_channel('b', '"a.b.c"');
SELECT changefeed.create_channel('lobby:{room}', presence => '{}');
SELECT changefeed.typescript_types();

-- Wrong arguments
SELECT changefeed.typescript_types(numbers => 'single');
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.typescript_types(numbers => NULL);
SELECT changefeed.typescript_types(role => 'regress_types_other');
\echo :LAST_ERROR_SQLSTATE

SELECT changefeed.drop_channel(name) FROM changefeed.channels;
SELECT changefeed.unexpose_function(name) FROM changefeed.functions;
SELECT changefeed.disallow_role('regress_types_web');
SELECT changefeed.disallow_role('regress_types_anon');
DROP SCHEMA "Odd Schema", "a.b" CASCADE;
DROP TABLE "a.b.c";
DROP OWNED BY regress_types_app, regress_types_web, regress_types_anon, regress_types_other CASCADE;
DROP ROLE regress_types_app, regress_types_web, regress_types_anon, regress_types_other;
