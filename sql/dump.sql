-- pg_dump takes channels, sources and roles along, and psql brings them back.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_changefeed;
DROP ROLE IF EXISTS regress_web, regress_gone, "regress Odd";
RESET client_min_messages;

CREATE ROLE regress_web;
CREATE ROLE "regress Odd";
CREATE ROLE regress_gone;
CREATE SCHEMA dumped;
CREATE TABLE dumped.orders (id int PRIMARY KEY, customer_id int, status text);
CREATE TABLE dumped."Order item" ("Line" int, "order" int, PRIMARY KEY ("order", "Line"));
SET client_min_messages = warning;
SELECT changefeed.create_channel('gone');
SELECT changefeed.drop_channel('gone');
SELECT changefeed.create_channel('dumped:{customer_id}', 'dumped.orders',
    filter => 'status <> E''a\\nb\\\\'' OR status IS NULL', columns => '{id,customer_id}', on_insert => 'replace');
SELECT changefeed.create_channel('dumped', 'dumped."Order item"', entity => 'It''s "odd"', key => '{Line,order}');
SELECT changefeed.create_channel('dumped_empty', join_check => 'true', publish_check => 'false');
SELECT changefeed.add_event('dumped:{customer_id}', 'dumped.orders', 'it''s', 'old.id IS NULL', E'to_jsonb(new.id)\n', '{insert}');
CREATE FUNCTION dumped.reads() RETURNS boolean LANGUAGE plpgsql STABLE AS 'BEGIN RETURN true; END';
SELECT changefeed.declare_dependency('dumped.reads()', 'dumped.orders');
SELECT changefeed.declare_dependency('dumped.reads()');
CREATE FUNCTION dumped.writes(a int) RETURNS int LANGUAGE sql AS 'SELECT 1';
SELECT changefeed.expose_function('dumped.writes(int)', 'odd ''name');
RESET client_min_messages;
SELECT changefeed.allow_role('regress_web');
SELECT changefeed.allow_role('"regress Odd"');
SELECT changefeed.allow_role('regress_gone');
SELECT changefeed.revoke(role => 'regress_web'), changefeed.revoke(claim => 'sub', value => 'u''1'),
       changefeed.revoke(role => 'regress_gone'), changefeed.revoke(session => '0000000112');
-- leaves its number
DROP ROLE regress_gone;

CREATE TABLE before_channel AS SELECT * FROM changefeed.channel;
CREATE TABLE before_source AS SELECT *, relid::text AS relname FROM changefeed.source;
CREATE TABLE before_event AS SELECT * FROM changefeed.event;
CREATE TABLE before_role AS SELECT role::text FROM changefeed.role WHERE role::text ~ 'regress';
CREATE TABLE before_revocation AS SELECT *, role::text AS name FROM changefeed.revocation;
SELECT relid, entity, key, filter, columns, on_insert FROM changefeed.source ORDER BY id;

\getenv directory PG_ABS_BUILDDIR
\set file :directory '/results/dump.dumped.sql'
SELECT setting AS bindir FROM pg_config WHERE name = 'BINDIR' \gset
\setenv BINDIR :bindir
\setenv DUMPFILE :file
\setenv PGDATABASE :DBNAME
\setenv PGUSER :USER
\! "$BINDIR/pg_dump" --schema dumped --extension pg_changefeed --file "$DUMPFILE"
SET client_min_messages = warning;
DROP SCHEMA dumped CASCADE;
DROP EXTENSION pg_changefeed;
RESET client_min_messages;
\! "$BINDIR/psql" --no-psqlrc --quiet --set ON_ERROR_STOP=1 --file "$DUMPFILE" >/dev/null

-- Everything as it was, but for the number of a role that is gone
SELECT * FROM changefeed.channel EXCEPT SELECT * FROM before_channel;
SELECT count(*) FROM changefeed.channel;
SELECT name, join_check, publish_check FROM changefeed.channel WHERE join_check IS NOT NULL;
SELECT * FROM changefeed.event EXCEPT SELECT * FROM before_event;
SELECT name, condition, payload, on_change FROM changefeed.event;
SELECT * FROM changefeed.dependency ORDER BY relation;
SELECT name, function FROM changefeed.function;
SELECT r.role, r.claim, r.value, r.session, r.revoked_at = b.revoked_at AND r.expires_at = b.expires_at AS same
  FROM changefeed.revocation r JOIN before_revocation b USING (id) ORDER BY id;
SELECT count(*) FROM changefeed.revocation;
SELECT id, channel, relid::text, entity, key, filter, columns, on_insert, on_update, on_delete FROM changefeed.source
EXCEPT
SELECT id, channel, relname, entity, key, filter, columns, on_insert, on_update, on_delete FROM before_source;
SELECT count(*) FROM changefeed.source;
SELECT role FROM changefeed.role ORDER BY role::text COLLATE "C";
SELECT relname, relreplident FROM pg_class
 WHERE relnamespace = 'dumped'::regnamespace AND relkind = 'r' ORDER BY relname;

-- and numbers go on where they were.
SELECT changefeed.add_source('dumped_empty', 'dumped.orders');
SELECT changefeed.create_channel('dumped_next', 'dumped.orders');
SELECT changefeed.add_event('dumped_next', 'dumped.orders', 'next');
SELECT (SELECT max(id) FROM changefeed.channel) - (SELECT max(id) FROM before_channel) AS channel,
       (SELECT max(id) FROM changefeed.source) - (SELECT max(id) FROM before_source) AS source,
       (SELECT max(id) FROM changefeed.event) - (SELECT max(id) FROM before_event) AS event;

-- The restored sources go with their tables.
SET client_min_messages = warning;
DROP SCHEMA dumped CASCADE;
RESET client_min_messages;
SELECT count(*) FROM changefeed.source;

SELECT changefeed.disallow_role('regress_web');
SELECT changefeed.disallow_role('"regress Odd"');
SELECT count(changefeed.drop_channel(name)) FROM changefeed.channels;
DROP TABLE before_channel, before_source, before_event, before_role, before_revocation;
DROP ROLE regress_web, "regress Odd";

-- A schema that somebody else has prepared is not used.
CREATE ROLE regress_squatter;
DROP EXTENSION pg_changefeed;
CREATE SCHEMA changefeed AUTHORIZATION regress_squatter;
\set SHOW_CONTEXT never
CREATE EXTENSION pg_changefeed;
\echo :LAST_ERROR_SQLSTATE
DROP SCHEMA changefeed;
CREATE EXTENSION pg_changefeed;
DROP ROLE regress_squatter;

-- This is the last test: without the feed the database can be dropped.
DROP EXTENSION pg_changefeed;
SELECT to_regnamespace('changefeed') IS NULL AS nothing_left;
