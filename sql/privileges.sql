-- Who may declare what, who sees what, and that nobody else can.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_changefeed;
DROP ROLE IF EXISTS regress_alice, regress_bob, regress_team, regress_monitor, regress_owner;
RESET client_min_messages;

CREATE ROLE regress_alice;
CREATE ROLE regress_bob;
CREATE ROLE regress_team;
CREATE ROLE regress_monitor IN ROLE pg_monitor;
CREATE ROLE regress_owner;
GRANT regress_team TO regress_alice;
GRANT CREATE ON SCHEMA public TO regress_alice, regress_bob, regress_team;

SET ROLE regress_alice;
CREATE TABLE alices (id int PRIMARY KEY, a int, secret text);
ALTER TABLE alices REPLICA IDENTITY FULL;
CREATE TABLE alices_too (id int PRIMARY KEY);
ALTER TABLE alices_too REPLICA IDENTITY FULL;
SET ROLE regress_bob;
CREATE TABLE bobs (id int PRIMARY KEY);
GRANT ALL ON bobs TO regress_alice;
ALTER TABLE bobs REPLICA IDENTITY FULL;
SET ROLE regress_team;
CREATE TABLE teams (id int PRIMARY KEY);
RESET ROLE;

--
-- Tables are published by their owners, and by members of these.
--
SET ROLE regress_alice;
SELECT changefeed.create_channel('alices', 'alices', filter => 'secret <> ''x''');
SELECT changefeed.add_source('alices', 'alices_too');
SELECT changefeed.create_channel('teams', 'teams');
-- All privileges are not ownership.
SELECT changefeed.create_channel('bobs', 'bobs');
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.add_source('alices', 'bobs');
SELECT changefeed.create_channel('catalog', 'pg_class');
SELECT changefeed.create_channel('nothing');
\echo :LAST_ERROR_SQLSTATE
SELECT current_user;

-- Somebody else's channel cannot be added to, nor taken from, nor dropped.
SET ROLE regress_bob;
SELECT changefeed.create_channel('bobs', 'bobs');
SELECT changefeed.add_source('alices', 'bobs');
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.drop_source('alices', 'alices');
SELECT changefeed.drop_channel('alices');
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.drop_channel('teams');

--
-- The views show everybody his own.
--
SELECT channel, source, filter FROM changefeed.sources ORDER BY channel, source::text;
SELECT * FROM changefeed.channels ORDER BY name;
SET ROLE regress_alice;
SELECT channel, source, filter FROM changefeed.sources ORDER BY channel, source::text;
SELECT * FROM changefeed.channels ORDER BY name;
SELECT * FROM changefeed.roles;
SET ROLE regress_monitor;
SELECT name FROM changefeed.channels ORDER BY name;
SELECT count(*) FROM changefeed.sources;
-- A leaky function is not asked about rows that are hidden.
SET ROLE regress_bob;
CREATE FUNCTION leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS
    $$ BEGIN RAISE NOTICE 'leaked %', $1; RETURN true; END $$;
SELECT count(*) FROM changefeed.sources WHERE leak(channel);
SELECT count(*) FROM changefeed.channels WHERE leak(name);
DROP FUNCTION leak(text);
RESET ROLE;

--
-- A channel with sources of two owners: only the owner of the database can
-- make it, each owner can take out his own source, and neither can drop it.
--
SELECT changefeed.add_source('alices', 'bobs');
SET ROLE regress_alice;
SELECT changefeed.drop_channel('alices');
SELECT changefeed.add_source('alices', 'teams');
SELECT changefeed.drop_source('alices', 'bobs');
SET ROLE regress_bob;
SELECT changefeed.drop_source('alices', 'bobs');
SET ROLE regress_alice;
SELECT changefeed.drop_source('alices', 'alices');
SELECT changefeed.drop_source('alices', 'alices_too');
-- A channel without a source is not hers any more.
SELECT changefeed.add_source('alices', 'alices');
SELECT changefeed.drop_channel('alices');
RESET ROLE;

-- The owner of the database, who is no superuser
SELECT current_database() AS database, current_user AS superuser \gset
ALTER DATABASE :"database" OWNER TO regress_owner;
SET ROLE regress_owner;
SELECT changefeed.create_channel('lobby');
SELECT name FROM changefeed.channels ORDER BY name;
SELECT changefeed.create_channel('mine', 'alices');
SELECT changefeed.drop_source('bobs', 'bobs');
SELECT changefeed.drop_channel('alices');
SELECT changefeed.drop_channel('lobby');
RESET ROLE;
ALTER DATABASE :"database" OWNER TO :"superuser";

--
-- Nothing else is open.
--
SET ROLE regress_alice;
INSERT INTO changefeed.channel (name) VALUES ('x');
DELETE FROM changefeed.source;
SELECT * FROM changefeed.source;
SELECT * FROM changefeed.role;
UPDATE changefeed.sources SET filter = 'true';
DELETE FROM changefeed.roles;
CREATE TABLE changefeed.mine (id int);
SELECT * FROM changefeed.stat_feed;
SELECT changefeed._stat_feed();
SELECT * FROM changefeed.stat_channels;
SELECT * FROM changefeed.stat_connections;
SELECT * FROM changefeed.stat_subscriptions;
SELECT * FROM changefeed.stat_gateways;
SELECT changefeed._stat_connections();
SELECT changefeed.metrics();
SELECT changefeed._check_requirements();
SELECT changefeed._extension_created();
SELECT changefeed._match('a', 'a');
SELECT changefeed._identify('x');
SELECT changefeed.make_token('{"role": "regress_bob"}');
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.allow_role('regress_bob');
CREATE TRIGGER t AFTER INSERT ON alices FOR EACH ROW EXECUTE FUNCTION changefeed._source_changed();
CREATE FUNCTION trick() RETURNS trigger LANGUAGE c AS 'pg_changefeed', 'changefeed_source_changed';
SET ROLE regress_monitor;
SELECT count(*) FROM changefeed.stat_feed;
SELECT count(*) FROM changefeed.stat_connections;
SELECT changefeed.metrics() LIKE '# HELP changefeed_build_info %' AS metrics;
RESET ROLE;

-- So may the owner of the database.
ALTER DATABASE :"database" OWNER TO regress_owner;
SET ROLE regress_owner;
SELECT count(*) FROM changefeed.stat_feed;
SELECT count(*) FROM changefeed.stat_subscriptions;
SELECT changefeed.metrics() <> '' AS metrics;
RESET ROLE;
ALTER DATABASE :"database" OWNER TO :"superuser";

-- Every function has a fixed search path, or is C that looks nothing up, or is SQL
-- whose body was parsed when it was made. Nothing that was made refers to anything
-- outside of the system and the extension.
SELECT p.oid::regprocedure, lanname FROM pg_proc p JOIN pg_language l ON l.oid = prolang
 WHERE pronamespace = 'changefeed'::regnamespace
   AND 'search_path=pg_catalog, pg_temp' = ANY (proconfig) IS NOT TRUE
 ORDER BY p.oid::regprocedure::text COLLATE "C";
SELECT p.oid::regprocedure AS not_pinned FROM pg_proc p JOIN pg_language l ON l.oid = prolang
 WHERE pronamespace = 'changefeed'::regnamespace
   AND 'search_path=pg_catalog, pg_temp' = ANY (proconfig) IS NOT TRUE
   AND NOT (lanname = 'c' OR lanname = 'sql' AND prosqlbody IS NOT NULL);
PREPARE foreign_references AS WITH RECURSIVE ours AS (
    SELECT classid, objid FROM pg_depend
     WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
       AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_changefeed')
    UNION
    SELECT d.classid, d.objid FROM ours o JOIN pg_depend d ON d.refclassid = o.classid AND d.refobjid = o.objid
     WHERE d.deptype IN ('a', 'i') AND o.classid IN ('pg_class'::regclass, 'pg_constraint'::regclass, 'pg_type'::regclass)
)
SELECT pg_describe_object(d.classid, d.objid, d.objsubid) AS ours, pg_describe_object(refclassid, refobjid, refobjsubid) AS refers_to
  FROM ours JOIN pg_depend d USING (classid, objid)
 WHERE refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass, 'pg_class'::regclass, 'pg_type'::regclass)
   AND NOT EXISTS (SELECT FROM ours r WHERE r.classid = refclassid AND r.objid = refobjid)
   AND (pg_identify_object(refclassid, refobjid, refobjsubid)).schema <> 'pg_catalog'
 ORDER BY 1, 2;
EXECUTE foreign_references;
BEGIN;
CREATE FUNCTION public.foreign_function() RETURNS boolean RETURN true;
CREATE OR REPLACE VIEW changefeed.roles AS SELECT role FROM changefeed.role WHERE public.foreign_function();
EXECUTE foreign_references;
ROLLBACK;
DEALLOCATE foreign_references;
-- The script itself is run with nothing but the system's schema in its path.
SELECT extnamespace::regnamespace, extrelocatable FROM pg_extension WHERE extname = 'pg_changefeed';
SELECT p.oid::regprocedure AS public_function FROM pg_proc p
 WHERE pronamespace = 'changefeed'::regnamespace AND has_function_privilege('regress_bob', p.oid, 'EXECUTE')
 ORDER BY 1::text COLLATE "C", p.oid::regprocedure::text COLLATE "C";
-- One runs as its owner: whoever drops a table may not write the catalog that has to
-- forget it. It takes no arguments, and cannot be called but by the event.
SELECT p.oid::regprocedure AS security_definer, prorettype::regtype, proconfig FROM pg_proc p
 WHERE pronamespace = 'changefeed'::regnamespace AND prosecdef;
SELECT pg_describe_object(classid, objid, 0) AS uncommented
  FROM pg_depend d
 WHERE refclassid = 'pg_extension'::regclass
   AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_changefeed')
   AND deptype = 'e'
   AND obj_description(objid, classid::regclass::name) IS NULL
   AND (classid <> 'pg_class'::regclass OR (SELECT relkind FROM pg_class WHERE oid = objid) IN ('r', 'v'))
   AND classid IN ('pg_class'::regclass, 'pg_proc'::regclass, 'pg_event_trigger'::regclass);
SELECT attrelid::regclass, attname AS uncommented
  FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid
 WHERE relnamespace = 'changefeed'::regnamespace AND relkind = 'v' AND attnum > 0
   AND col_description(attrelid, attnum) IS NULL;

-- Dropping a table takes no rights on the catalog, nor does DROP OWNED.
SET ROLE regress_alice;
SELECT changefeed.create_channel('alices_too', 'alices_too');
DROP TABLE alices_too;
SELECT * FROM changefeed.sources WHERE channel = 'alices_too';
RESET ROLE;
DROP OWNED BY regress_bob, regress_alice, regress_team;
SELECT name, sources FROM changefeed.channels ORDER BY name;
SELECT count(changefeed.drop_channel(name)) FROM changefeed.channels;
DROP ROLE regress_alice, regress_bob, regress_team, regress_monitor, regress_owner;
