-- What the targets of the extension find in their database.

CREATE ROLE fuzz_web;
CREATE ROLE fuzz_admin SUPERUSER;

CREATE TYPE fuzz_mood AS ENUM ('sad', 'ok', 'happy');
CREATE TABLE fuzz_items (
    id int PRIMARY KEY,
    name text,
    n numeric,
    f float8,
    b bool,
    d date,
    ts timestamptz,
    j jsonb,
    a int[],
    r int4range,
    e fuzz_mood,
    u uuid,
    by bytea,
    v varchar(10),
    c char(5),
    i interval,
    "odd ""name" text
);
ALTER TABLE fuzz_items REPLICA IDENTITY FULL;
INSERT INTO fuzz_items VALUES
    (1, 'a', 1.5, 2.5, true, '2026-01-01', '2026-01-01 12:00+00', '{"k": {"l": [1, "x"]}}', '{1,2}', '[1,5)', 'ok',
     '00000000-0000-0000-0000-000000000001', '\x00ff', 'vv', 'cc', '1 day', 'odd'),
    (2, '', 'NaN', '-Infinity', false, 'infinity', '-infinity', '[]', '{}', 'empty', 'sad',
     'ffffffff-ffff-ffff-ffff-ffffffffffff', '', '', '', '-1 mon', ''),
    (3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    (4, 'Ä%_\', -0.00, 1e300, true, '0001-01-01 BC', 'epoch', '"s"', '{NULL,3}', '(,3]', 'happy',
     '12345678-9abc-def0-1234-56789abcdef0', '\x41', 'x', 'y', '00:00:01', 'a,b)"');
GRANT SELECT ON fuzz_items TO fuzz_web;

CREATE FUNCTION fuzz_add(a int, b text DEFAULT 'x', c jsonb DEFAULT '{}') RETURNS int
    LANGUAGE sql AS 'SELECT a';
GRANT EXECUTE ON FUNCTION fuzz_add TO fuzz_web;

SELECT changefeed.allow_role('fuzz_web');
SELECT changefeed.create_channel('items', 'fuzz_items');
SELECT changefeed.create_channel('items:{name}', 'fuzz_items');
SELECT changefeed.create_channel('paced', 'fuzz_items', min_interval => '1 s');
SELECT changefeed.create_channel('room:{id}', publish_check => 'true',
    presence => '{"max_members": 3, "grace": "5 s", "limits": {"editor": 1}}');
SELECT changefeed.expose_function('fuzz_add(int,text,jsonb)');

-- This server cannot load the library, as it has no sanitizers; so it is not asked to.
CREATE FUNCTION fuzz(target text, arguments text[]) RETURNS void
    LANGUAGE c STRICT AS '$libdir/pg_changefeed', 'changefeed_identify';
UPDATE pg_proc SET prosrc = 'fuzz' WHERE proname = 'fuzz';
UPDATE pg_proc SET probin = :'library' WHERE probin = '$libdir/pg_changefeed';
