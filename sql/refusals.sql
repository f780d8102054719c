-- What cannot be published, each case with its reason and its SQLSTATE.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_changefeed;
RESET client_min_messages;
CREATE TABLE good (id int PRIMARY KEY, a int, b text);
ALTER TABLE good REPLICA IDENTITY FULL;

--
-- Arguments
--
SELECT changefeed.create_channel(NULL);
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.create_channel('x', 'good', on_insert => NULL);
SELECT changefeed.create_channel('x', 'good', set_replica_identity => NULL);
SELECT changefeed.add_source(NULL, 'good');
SELECT changefeed.drop_source('x', NULL);
SELECT changefeed.drop_channel(NULL);
SELECT changefeed.create_channel('x', 'good', on_insert => 'upsert');
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.create_channel('x', 'good', on_insert => 'remove');
SELECT changefeed.create_channel('x', 'good', on_update => 'upsert');
SELECT changefeed.create_channel('x', 'good', on_delete => 'append');
SELECT changefeed.create_channel('x', 'good', entity => '');
SELECT changefeed.create_channel('x', 'good', key => '{}');
SELECT changefeed.create_channel('x', 'good', key => '{id,NULL}');
SELECT changefeed.create_channel('x', 'good', columns => '{{id},{a}}');
SELECT changefeed.create_channel('x', key => '{id}');
SELECT changefeed.create_channel('x', filter => 'true');
SELECT changefeed.create_channel('x', 0);
\echo :LAST_ERROR_SQLSTATE

--
-- Kinds of tables
--
CREATE VIEW a_view AS SELECT * FROM good;
CREATE MATERIALIZED VIEW a_matview AS SELECT * FROM good;
CREATE FOREIGN DATA WRAPPER nowhere;
CREATE SERVER nowhere FOREIGN DATA WRAPPER nowhere;
CREATE FOREIGN TABLE a_foreign_table (id int) SERVER nowhere;
CREATE TEMPORARY TABLE a_temporary_table (id int PRIMARY KEY);
CREATE UNLOGGED TABLE an_unlogged_table (id int PRIMARY KEY);
CREATE SEQUENCE a_sequence;
CREATE TYPE a_type AS (id int);
CREATE TABLE a_parent (id int PRIMARY KEY);
CREATE TABLE a_child (PRIMARY KEY (id)) INHERITS (a_parent);
SELECT changefeed.create_channel('x', 'a_view');
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.create_channel('x', 'a_matview');
SELECT changefeed.create_channel('x', 'a_foreign_table');
-- (its schema has a number)
DO $$
DECLARE
    detail text;
BEGIN
    PERFORM changefeed.create_channel('x', 'a_temporary_table');
EXCEPTION WHEN wrong_object_type THEN
    GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
    RAISE NOTICE '% (%)', regexp_replace(sqlerrm, 'pg_temp_\d+', 'pg_temp'), detail;
END $$;
SELECT changefeed.create_channel('x', 'an_unlogged_table');
SELECT changefeed.create_channel('x', 'a_sequence');
SELECT changefeed.create_channel('x', 'a_type');
SELECT changefeed.create_channel('x', 'good_pkey');
SELECT changefeed.create_channel('x', 'pg_class');
SELECT changefeed.create_channel('x', 'information_schema.sql_features');
SELECT changefeed.create_channel('x', 'changefeed.source');
SELECT changefeed.create_channel('x', 'a_parent');
-- A child is a table like others; no longer related, the parent is, too
ALTER TABLE a_child NO INHERIT a_parent;
SET client_min_messages = warning;
SELECT changefeed.create_channel('x', 'a_parent');
SELECT changefeed.add_source('x', 'a_child');
RESET client_min_messages;
SELECT changefeed.drop_channel('x');

-- Partitions of such a kind
CREATE TABLE a_root (id int NOT NULL) PARTITION BY LIST (id);
CREATE TABLE a_leaf PARTITION OF a_root FOR VALUES IN (1);
CREATE UNIQUE INDEX a_root_id_idx ON ONLY a_root (id);
-- an index that not all partitions have is not valid
SELECT changefeed.create_channel('x', 'a_root', key => '{id}');
DROP INDEX a_root_id_idx;
CREATE FOREIGN TABLE a_foreign_leaf PARTITION OF a_root FOR VALUES IN (2) SERVER nowhere;
SELECT changefeed.create_channel('x', 'a_root');
DROP FOREIGN TABLE a_foreign_leaf;
CREATE UNLOGGED TABLE an_unlogged_leaf PARTITION OF a_root FOR VALUES IN (3);
SELECT changefeed.create_channel('x', 'a_root');
DROP TABLE a_root;

--
-- Keys
--
CREATE TABLE keys (id int NOT NULL, a int NOT NULL, b int, gone int);
ALTER TABLE keys DROP COLUMN gone;
SELECT changefeed.create_channel('x', 'keys');
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.create_channel('x', 'keys', key => '{id}');
SELECT changefeed.create_channel('x', 'keys', key => '{nothing}');
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.create_channel('x', 'keys', key => '{ctid}');
SELECT changefeed.create_channel('x', 'keys', key => '{........pg.dropped.4........}');
SELECT changefeed.create_channel('x', 'keys', key => '{id,id}');
\echo :LAST_ERROR_SQLSTATE
CREATE UNIQUE INDEX keys_nullable ON keys (id, b);
SELECT changefeed.create_channel('x', 'keys', key => '{b,id}');
CREATE UNIQUE INDEX keys_partial ON keys (id) WHERE a > 0;
CREATE UNIQUE INDEX keys_expression ON keys (id, (a + 1));
CREATE UNIQUE INDEX keys_longer ON keys (id, a);
CREATE INDEX keys_not_unique ON keys (id);
SELECT changefeed.create_channel('x', 'keys', key => '{id}');

--
-- Columns
--
SELECT changefeed.create_channel('x', 'good', columns => '{id,nothing}');
SELECT changefeed.create_channel('x', 'good', columns => '{id,xmin}');
SELECT changefeed.create_channel('x', 'good', columns => '{id,a,id}');
SELECT changefeed.create_channel('x', 'good', columns => '{a}');
\echo :LAST_ERROR_SQLSTATE
CREATE TYPE grade AS ENUM ('good', 'bad');
CREATE FUNCTION grade_to_json(grade) RETURNS json LANGUAGE sql IMMUTABLE AS 'SELECT json_build_array(1)';
CREATE CAST (grade AS json) WITH FUNCTION grade_to_json(grade);
CREATE TYPE pair AS (a int, b grade[]);
CREATE TABLE pairs (id int PRIMARY KEY, g grade NOT NULL UNIQUE, p pair NOT NULL UNIQUE);
ALTER TABLE pairs REPLICA IDENTITY FULL;
SELECT changefeed.create_channel('x', 'pairs', key => '{g}');
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.create_channel('x', 'pairs', key => '{p}');
SELECT changefeed.create_channel('x:{g}', 'pairs');
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.create_channel('x', 'pairs');
SELECT changefeed.drop_channel('x');

--
-- Parameters of the name
--
CREATE DOMAIN tags AS text[];
CREATE TABLE types (id int PRIMARY KEY, a text[], t tags, p point, j json, jb jsonb, r int4range, c good, x xml);
ALTER TABLE types REPLICA IDENTITY FULL;
SELECT changefeed.create_channel('x:{nothing}', 'types');
SELECT changefeed.create_channel('x:{ctid}', 'types');
SELECT changefeed.create_channel('x:{a}', 'types');
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.create_channel('x:{t}', 'types');
SELECT changefeed.create_channel('x:{p}', 'types');
SELECT changefeed.create_channel('x:{j}', 'types');
SELECT changefeed.create_channel('x:{jb}', 'types');
SELECT changefeed.create_channel('x:{r}', 'types');
SELECT changefeed.create_channel('x:{c}', 'types');
SELECT changefeed.create_channel('x:{x}', 'types');
CREATE TYPE color AS ENUM ('red', 'green');
CREATE DOMAIN code AS varchar(5);
CREATE TABLE scalars (id int PRIMARY KEY, c color, d code, u uuid, n numeric, b bytea, t timestamptz, f bool);
ALTER TABLE scalars REPLICA IDENTITY FULL;
SELECT changefeed.create_channel('x:{c}:{d}:{u}:{n}:{b}:{t}:{f}:{id}', 'scalars');
-- Every source has to have them.
SELECT changefeed.add_source('x:{c}:{d}:{u}:{n}:{b}:{t}:{f}:{id}', 'types');
SELECT changefeed.drop_channel('x:{c}:{d}:{u}:{n}:{b}:{t}:{f}:{id}');

--
-- Duplicates
--
CREATE SCHEMA other;
CREATE TABLE other.good (id int PRIMARY KEY);
ALTER TABLE other.good REPLICA IDENTITY FULL;
SELECT changefeed.create_channel('x', 'good');
SELECT changefeed.create_channel('x', 'other.good');
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.add_source('x', 'good', entity => 'better');
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.add_source('x', 'other.good');
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.add_source('x', 'other.good', entity => 'better');
SELECT changefeed.drop_channel('x');

SELECT * FROM changefeed.channels;
DROP SCHEMA other CASCADE;
DROP TABLE scalars, types, pairs, keys, a_child, a_parent, an_unlogged_table, a_temporary_table;
DROP FOREIGN DATA WRAPPER nowhere CASCADE;
DROP TABLE good CASCADE;
DROP TYPE a_type, pair, grade, color CASCADE;
DROP DOMAIN tags, code;
DROP SEQUENCE a_sequence;
