-- With wal2json as the decoder, tables are refused whose columns have types
-- that its text does not tell exactly.
CREATE TYPE dec_mood AS ENUM ('good', 'bad');
CREATE TYPE dec_pair AS (a int, b text);
CREATE DOMAIN dec_positive AS numeric CHECK (VALUE > 0);
CREATE DOMAIN dec_positives AS numeric[] CHECK (cardinality(VALUE) > 0);
CREATE TYPE dec_guarded AS (a int, b dec_positive);
CREATE TYPE dec_named AS (a int, b regtype);
CREATE FUNCTION accepts(type text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    message text;
    detail text;
BEGIN
    EXECUTE format('CREATE TABLE dec_one (id int PRIMARY KEY, dropped xml, "A b" %s)', type);
    ALTER TABLE dec_one DROP COLUMN dropped;
    PERFORM changefeed.create_channel('dec', 'dec_one');
    RAISE EXCEPTION 'accepted';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
    RETURN CASE WHEN message = 'accepted' THEN message ELSE message || ': ' || detail END;
END $$;
SET client_min_messages = warning;
SET changefeed.decoder = 'wal2json';
-- Every built-in type that a column can have.
SELECT a AS accepted FROM pg_type, format_type(oid, NULL) a
 WHERE oid < 10000 AND typtype IN ('b', 'r', 'm') AND typcategory <> 'A' AND accepts(a) = 'accepted' ORDER BY a COLLATE "C";
SELECT a AS refused FROM pg_type, format_type(oid, NULL) a
 WHERE oid < 10000 AND typtype = 'b' AND typcategory <> 'A' AND accepts(a) LIKE 'column "A b" of table "public.dec_one" cannot be decoded with wal2json:%'
 ORDER BY a COLLATE "C";
-- Types made of others.
SELECT type, accepts(type)
  FROM unnest(ARRAY['int[]', 'float8[][]', 'regclass[]', 'dec_mood', 'dec_mood[]', 'dec_pair', 'dec_pair[]', 'dec_named',
                    'dec_named[]', 'dec_positive', 'dec_positives', 'dec_positive[]', 'dec_guarded', 'int4range', 'datemultirange']) type;
-- Whoever sees the error sees what to do.
CREATE TABLE dec_two (id int PRIMARY KEY, doc xml);
SELECT changefeed.create_channel('dec', 'dec_two');
-- Also of a column that is not published.
SELECT changefeed.create_channel('dec', 'dec_two', columns => '{id}');
SET changefeed.decoder = 'native';
SELECT changefeed.create_channel('dec', 'dec_two');
SET changefeed.decoder = 'wal2json';
SELECT changefeed.add_source('dec', 'dec_two', entity => 'again');
RESET changefeed.decoder;
SELECT changefeed.drop_channel('dec');
SET changefeed.decoder = 'pgoutput';
DROP TABLE dec_two;
DROP TYPE dec_named, dec_guarded, dec_pair, dec_mood;
DROP DOMAIN dec_positives, dec_positive;
DROP FUNCTION accepts(text);
