-- Names of channels: what is a template, which names belong to it, and which
-- templates exclude each other.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_changefeed;
RESET client_min_messages;

-- Parameters
SELECT template, changefeed._parameters(template)
  FROM unnest(ARRAY['orders', 'orders:{customer_id}', '{tenant}/rooms/{room}.x', '{A b}', 'é{ü}!']) template;

-- Names that belong to a template, with the values of its parameters
SELECT template, name, changefeed._match(template, name)
  FROM (VALUES
    (1, 'orders', 'orders'),
    (2, 'orders', 'order'),
    (3, 'orders', 'orders2'),
    (4, 'orders', '%6frders'),
    (5, 'o:{id}', 'o:42'),
    (6, 'o:{id}', 'o:'),
    (7, 'o:{id}', 'O:42'),
    (8, 'o:{id}', 'o'),
    (9, 'o:{id}', ''),
    -- values that need an escape, and values that do not
    (10, 'o:{id}', 'o:a:b'),
    (11, 'o:{id}', 'o:a%3Ab%3ac'),
    (12, 'o:{id}', 'o:a.b@c/d'),
    (13, 'o:{id}', 'o:a b'),
    (14, 'o:{id}', 'o:a%20b'),
    (15, 'o:{id}', 'o:é-_~'),
    (16, 'o:{id}', 'o:%C3%A9'),
    (17, 'o:{id}', 'o:50%25'),
    (18, 'o:{id}', 'o:{id}'),
    (19, 'o:{id}', 'o:7?status=eq.open'),
    -- broken escapes
    (20, 'o:{id}', 'o:%'),
    (21, 'o:{id}', 'o:%2'),
    (22, 'o:{id}', 'o:%2g'),
    (23, 'o:{id}', 'o:%00'),
    (24, 'o:{id}', 'o:%C3'),
    (25, 'o:{id}', 'o:%FF'),
    -- every value
    (26, 'o:{id}', 'o:*'),
    (27, 'o:{id}', 'o:%2A'),
    (28, 'o:{id}', 'o:**'),
    (29, 'o:{id}', 'o:a*'),
    (30, '{a}:{b}', '*:7'),
    -- several parameters
    (31, '{a}/{b}.x', '1/2.x'),
    (32, '{a}/{b}.x', '/.x'),
    (33, '{a}/{b}.x', '1/2.x.x'),
    (34, '{a}/{b}.x', '1.0/2.x'),
    (35, '{a}/{b}.x', '1%2E0/2.x'),
    (36, '{a}/{b}.x', '1/2'),
    (37, '{a}::{b}', '1::2'),
    (38, '{a}::{b}', '1:2')
  ) AS v (n, template, name)
  ORDER BY n;

-- Longer names than the limit belong to nothing.
SELECT length((changefeed._match('o:{id}', 'o:' || repeat('x', 510)))[1]) AS at_limit,
       changefeed._match('o:{id}', 'o:' || repeat('x', 511)) AS beyond;

-- The name for given values leads back to them.
SELECT changefeed._format(template, params) AS name,
       changefeed._match(template, changefeed._format(template, params)) = params AS same
  FROM (VALUES
    (1, 'orders', ARRAY[]::text[]),
    (2, 'o:{id}', ARRAY['42']),
    (3, 'o:{id}', ARRAY['']),
    (4, 'o:{id}', ARRAY['a:b c%d?e*f{g}' || chr(10)]),
    (5, 'o:{id}', ARRAY['a.b@c/dé']),
    (6, '{a}/{b}.x', ARRAY['1.0', 'a/b']),
    (7, '{a}/{b}.x', ARRAY[NULL, '*'])
  ) AS v (n, template, params)
  ORDER BY n;
SELECT changefeed._format('o:{id}', ARRAY['1', '2']);

-- Templates that are refused, one reason each
SELECT changefeed.create_channel('');
SELECT changefeed.create_channel(repeat('x', 513));
SELECT changefeed.create_channel('a b');
SELECT changefeed.create_channel(E'a\nb');
SELECT changefeed.create_channel('a*');
SELECT changefeed.create_channel('a?b');
SELECT changefeed.create_channel('50%');
SELECT changefeed.create_channel('a{b');
SELECT changefeed.create_channel('a{b{c}');
SELECT changefeed.create_channel('a}');
SELECT changefeed.create_channel('a{}');
SELECT changefeed.create_channel('{a}:{b}:{a}');
SELECT changefeed.create_channel('{a}{b}');
SELECT changefeed.create_channel('{a}b');
SELECT changefeed.create_channel('{a}-{b}');
SELECT changefeed.create_channel('{a}é');
SELECT changefeed.create_channel('{1}:{2}:{3}:{4}:{5}:{6}:{7}:{8}:{9}');
\echo :LAST_ERROR_SQLSTATE

-- Templates that overlap are refused, those that only look alike are not.
SELECT changefeed.create_channel('room:{id}');
SELECT changefeed.create_channel('room:{id}:members');
SELECT changefeed.create_channel('rooms');
SELECT changefeed.create_channel('Room:{id}');
SELECT changefeed.create_channel('room:{id}');
SELECT changefeed.create_channel('room:{name}');
SELECT changefeed.create_channel('room:7');
SELECT changefeed.create_channel('room:');
SELECT changefeed.create_channel('{tenant}');
SELECT changefeed.create_channel('{kind}:{id}');
SELECT changefeed.create_channel('{kind}:members');
SELECT changefeed.create_channel('{a}:{b}:members');
SELECT changefeed.create_channel('room.{id}');
SELECT changefeed.create_channel('roo{x}');
SELECT changefeed.create_channel('roo{x}:y:z');
SELECT name, parameters, sources FROM changefeed.channels ORDER BY name COLLATE "C";

SELECT count(changefeed.drop_channel(name)) FROM changefeed.channels;
