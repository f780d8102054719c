-- Which functions clients may call, and who says so.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_changefeed;
DROP ROLE IF EXISTS regress_alice, regress_bob, regress_web, regress_owner;
RESET client_min_messages;
CREATE ROLE regress_alice;
CREATE ROLE regress_bob;
CREATE ROLE regress_web;
CREATE SCHEMA shop;
GRANT USAGE, CREATE ON SCHEMA shop TO regress_alice, regress_bob;
SELECT changefeed.allow_role('regress_web');

SET ROLE regress_alice;
CREATE FUNCTION shop.place_order(sku text, n int DEFAULT 1, VARIADIC notes text[] DEFAULT '{}') RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint';
CREATE FUNCTION shop.place_order(sku text, price numeric) RETURNS TABLE (id bigint, total numeric) LANGUAGE sql SECURITY DEFINER AS 'SELECT 1::bigint, 2.0';
CREATE FUNCTION shop.nothing() RETURNS void LANGUAGE sql AS '';
SELECT changefeed.expose_function('shop.place_order(text,int,text[])');
SELECT changefeed.expose_function('shop.place_order(text,numeric)', 'shop.place_order_at');
SELECT changefeed.expose_function('shop.nothing()', name => 'nothing');
SELECT * FROM changefeed.functions ORDER BY name;
RESET ROLE;
GRANT USAGE ON SCHEMA shop TO regress_web;
REVOKE EXECUTE ON FUNCTION shop.nothing() FROM PUBLIC;
SELECT name, roles FROM changefeed.functions ORDER BY name;

--
-- One name, one function
--
SELECT changefeed.expose_function('shop.place_order(text,numeric)', 'again');
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.expose_function('pg_catalog.now()', 'nothing');
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.expose_function('pg_catalog.now()', '');
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.expose_function('pg_catalog.now()', repeat('x', 64));
SELECT changefeed.expose_function('pg_catalog.now()', 'a/b');
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.expose_function(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.expose_function(1::oid::regprocedure);
\echo :LAST_ERROR_SQLSTATE

--
-- What cannot be called
--
CREATE PROCEDURE shop.a_procedure() LANGUAGE sql AS '';
CREATE FUNCTION shop.unnamed(int) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION shop.half_named(a int, int) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION shop.polymorphic(a anyelement) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION shop.a_trigger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
SELECT changefeed.expose_function('shop.a_procedure()');
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.expose_function('pg_catalog.max(int)');
SELECT changefeed.expose_function('pg_catalog.row_number()');
SELECT changefeed.expose_function('shop.unnamed(int)');
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.expose_function('shop.half_named(int,int)');
SELECT changefeed.expose_function('shop.polymorphic(anyelement)');
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.expose_function('shop.a_trigger()');
-- OUT arguments need no names.
CREATE FUNCTION shop.outs(a int, OUT int, OUT b text) LANGUAGE sql AS 'SELECT 1, ''b''';
SELECT changefeed.expose_function('shop.outs(int)');
SELECT changefeed.unexpose_function('shop.outs(int)'::regprocedure);

--
-- Functions are exposed by their owners, and by the owner of the database.
--
SET ROLE regress_bob;
SELECT changefeed.expose_function('shop.outs(int)');
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.unexpose_function('nothing');
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.unexpose_function('shop.nothing()'::regprocedure);
SELECT * FROM changefeed.functions;
SELECT * FROM changefeed.function;
SELECT * FROM changefeed.call_result;
INSERT INTO changefeed.function VALUES ('x', 'pg_catalog.now()');
SET ROLE regress_web;
SELECT * FROM changefeed.call_result;
SET ROLE regress_alice;
SELECT changefeed.unexpose_function('nothing');
SELECT changefeed.unexpose_function('nothing');
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.unexpose_function('shop.nothing()'::regprocedure);
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.unexpose_function('shop.place_order(text,int,text[])');
SELECT changefeed.unexpose_function(NULL::text);
SELECT name, function FROM changefeed.functions;
RESET ROLE;
BEGIN READ ONLY;
SELECT changefeed.expose_function('shop.nothing()');
ROLLBACK;

-- A function that is gone is not shown, and its name is free.
SET ROLE regress_alice;
DROP FUNCTION shop.place_order(text, numeric);
SELECT count(*) FROM changefeed.functions;
SELECT changefeed.expose_function('shop.nothing()', 'shop.place_order_at');
SELECT name, function FROM changefeed.functions;
RESET ROLE;

--
-- What was said of a function follows it under another name, and ends with it:
-- one that gets its name later is another one.
--
CREATE SCHEMA "Odd.one";
CREATE TYPE shop."a (type" AS ENUM ('x');
CREATE TABLE shop.read (id int PRIMARY KEY);
CREATE FUNCTION shop.renamed(a shop."a (type", b shop.read) RETURNS int LANGUAGE sql AS 'SELECT 1';
SELECT changefeed.expose_function('shop.renamed(shop."a (type",shop.read)', 'renamed');
SELECT changefeed.declare_dependency('shop.renamed(shop."a (type",shop.read)', 'shop.read');
SELECT function FROM changefeed.function WHERE name = 'renamed';
ALTER FUNCTION shop.renamed RENAME TO "Re ""named""";
ALTER TYPE shop."a (type" RENAME TO b_type;
ALTER TABLE shop.read RENAME TO read_now;
ALTER TABLE shop.read_now SET SCHEMA "Odd.one";
ALTER SCHEMA "Odd.one" RENAME TO odder;
ALTER FUNCTION shop."Re ""named""" SET SCHEMA odder;
SELECT function FROM changefeed.function WHERE name = 'renamed';
SELECT name, function FROM changefeed.functions WHERE name = 'renamed';
SELECT * FROM changefeed.dependencies;
BEGIN;
ALTER FUNCTION odder."Re ""named""" RENAME TO never;
ROLLBACK;
SELECT name, function FROM changefeed.functions WHERE name = 'renamed';
DO 'BEGIN ALTER FUNCTION odder."Re ""named""" RENAME TO done; END';
SELECT name, function FROM changefeed.functions WHERE name = 'renamed';
ALTER INDEX odder.read_now RENAME TO "table";
CREATE AGGREGATE shop.total(int) (SFUNC = int4pl, STYPE = int);
SELECT changefeed.declare_dependency('shop.total(int)', 'odder.table');
ALTER AGGREGATE shop.total(int) RENAME TO sum_of;
-- Somebody else's event trigger renames as well
CREATE FUNCTION shop.also() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_proc WHERE proname = 'more') THEN
        ALTER FUNCTION shop.more RENAME TO others;
    END IF;
END $$;
CREATE FUNCTION shop.more() RETURNS int LANGUAGE sql AS 'SELECT 1';
SELECT changefeed.expose_function('shop.more()');
CREATE EVENT TRIGGER regress_also ON ddl_command_end WHEN TAG IN ('ALTER FUNCTION') EXECUTE FUNCTION shop.also();
ALTER FUNCTION odder.done RENAME TO finished;
DROP EVENT TRIGGER regress_also;
SELECT name, function FROM changefeed.function WHERE name IN ('renamed', 'more');
SELECT * FROM changefeed.dependencies ORDER BY function::text COLLATE "C";
SELECT changefeed.unexpose_function('shop.others()');
DROP AGGREGATE shop.sum_of(int);
DROP SCHEMA odder CASCADE;
SELECT name, function FROM changefeed.function;
SELECT * FROM changefeed.dependency;
-- What is no signature
SELECT s, changefeed._function(s) FROM unnest('{"",.,(,pg_catalog.now,now(),pg_catalog.now(),pg_catalog.now(integer),"\"pg_catalog\".now()","\"pg_catalog.now()",pg_catalog.(),nowhere.now()}'::text[]) s;

SET client_min_messages = warning;
SELECT changefeed.disallow_role('regress_web');
DROP SCHEMA shop CASCADE;
DROP EXTENSION pg_changefeed;
DROP ROLE regress_alice, regress_bob, regress_web;
