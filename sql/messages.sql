-- Messages and events: what is accepted, and what errors say.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_changefeed;
CREATE TYPE colour AS ENUM ('red', 'green');
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TABLE shops (id int PRIMARY KEY, city text, c colour, n positive, cs colour[], at timestamptz, hidden int);
CREATE TABLE stamps (id int PRIMARY KEY, v int NOT NULL UNIQUE, w int);
ALTER TABLE stamps REPLICA IDENTITY USING INDEX stamps_v_key;
CREATE FUNCTION mine(int) RETURNS int LANGUAGE sql IMMUTABLE RETURN $1;
SELECT changefeed.create_channel('shops:{city}', 'shops', columns => '{id,city,c,n,cs,at}', publish_check => $$city <> 'nowhere'$$);
SELECT changefeed.create_channel('stamps', 'stamps', key => '{v}', set_replica_identity => false);
SELECT changefeed.create_channel('lobby', join_check => 'true', publish_check => 'false');
RESET client_min_messages;

-- publish_check is checked and kept as join_check is.
SELECT name, join_check, publish_check, sources FROM changefeed.channels ORDER BY name COLLATE "C";
SELECT changefeed.create_channel('x1', publish_check => 'true, false');
SELECT changefeed.create_channel('x1', publish_check => '1');
SELECT changefeed.create_channel('x1', publish_check => 'nothing');
SELECT changefeed.create_channel('x1', publish_check => '');

-- publish: whom it may concern, and what it may say.
SELECT changefeed.publish('shops:Oslo', 'opened', '{"at": 9}');
SELECT changefeed.publish('lobby', 'hello');
SELECT changefeed.publish('lobby', 'now', '1', transactional => false);
SELECT changefeed.publish('nope', 'x');
SELECT changefeed.publish('shops:*', 'x');
SELECT changefeed.publish('shops:a?city=eq.b', 'x');
SELECT changefeed.publish(repeat('x', 600), 'x');
SELECT changefeed.publish('lobby', '');
SELECT changefeed.publish('lobby', E'a\nb');
SELECT changefeed.publish('lobby', repeat('x', 129));
SELECT changefeed.publish('lobby', NULL);
SELECT changefeed.publish(NULL, 'x');
SELECT changefeed.publish('lobby', 'x', '1', NULL);
SELECT changefeed.publish('lobby', 'x', to_jsonb(repeat('x', 64 * 1024 - 2)));
SELECT changefeed.publish('lobby', 'x', to_jsonb(repeat('x', 64 * 1024 - 1)));
SELECT count(changefeed.publish('lobby', 'x', to_jsonb(repeat('x', 60000)))) FROM generate_series(1, 300);
BEGIN READ ONLY;
SELECT changefeed.publish('lobby', 'x');
ROLLBACK;

-- Only who was granted it.
CREATE ROLE regress_sender;
SET ROLE regress_sender;
SELECT changefeed.publish('lobby', 'x');
RESET ROLE;
GRANT EXECUTE ON FUNCTION changefeed.publish TO regress_sender;
SET ROLE regress_sender;
SELECT changefeed.publish('lobby', 'x');
-- The key is out of reach, and is nobody's but the server's.
SELECT pg_read_binary_file('pg_changefeed_message.key');
RESET ROLE;
SELECT size FROM pg_stat_file('pg_changefeed_message.key');

-- Events.
SELECT changefeed.add_event('shops:{city}', 'shops', 'created', on_change => '{insert}');
SELECT changefeed.add_event('shops:{city}', 'shops', 'painted', 'old.c IS DISTINCT FROM new.c',
    $$jsonb_build_object('id', new.id, 'c', new.c, 'n', new.n, 'at', new.at) -- as in rows$$, '{delete,update,update}');
SELECT changefeed.add_event('stamps', 'stamps', 'v', 'new.v = 1', 'old.v');
SELECT * FROM changefeed.events;
\set r 'SELECT changefeed.add_event(''shops:{city}'', ''shops'', ''e'', '
:r 'new.nothing = 1');
:r 'id = 1');
:r 'new = old');
:r 'to_jsonb(new) IS NULL');
:r 'other.id = 1');
:r 'new.id');
:r '');
:r 'new.id = 1; DROP TABLE shops');
:r 'new.id = 1, true');
:r 'new.id = 1 FROM shops');
:r 'EXISTS (SELECT FROM shops)');
:r 'count(new.id) > 1');
:r 'new.at < now()');
:r 'new.at < CURRENT_TIMESTAMP');
:r 'public.mine(new.id) = 1');
:r 'new.at::text = ''x''');
:r 'new.id = $1');
:r 'new.hidden = 1');
:r 'new.n = 3::public.positive');
:r 'ROW(new.id, new.city) = ROW(1, ''x'')');
:r NULL, 'to_jsonb(new.cs)');
:r NULL, 'new.cs');
:r NULL, 'row_to_json(new)');
:r NULL, 'jsonb_agg(new.id)');
:r NULL, 'format(''%s'', new.id)');
:r NULL, NULL, '{insert,truncate}');
:r NULL, NULL, '{}');
:r NULL, NULL, NULL);
SELECT changefeed.add_event('shops:{city}', 'shops', '');
SELECT changefeed.add_event('shops:{city}', 'shops', 'created');
SELECT changefeed.add_event('shops:{city}', 'stamps', 'e');
SELECT changefeed.add_event('nope', 'shops', 'e');
-- Not in channels whose transactions come together.
SELECT changefeed.create_channel('paced', 'stamps', set_replica_identity => false, min_interval => '1 s', key => '{v}', publish_check => 'true');
SELECT changefeed.add_event('paced', 'stamps', 'e');
SELECT changefeed.publish('paced', 'e');
SELECT changefeed.drop_channel('paced');
-- Old values have to be in the WAL.
SELECT changefeed.add_event('stamps', 'stamps', 'w', 'old.w = 1');
-- Whose table is it?
SET ROLE regress_sender;
SELECT changefeed.add_event('shops:{city}', 'shops', 'e');
SELECT changefeed.drop_event('shops:{city}', 'shops', 'created');
SELECT * FROM changefeed.events;
RESET ROLE;
SELECT changefeed.drop_event('shops:{city}', 'shops', 'nope');
SELECT changefeed.drop_event('shops:{city}', 'shops', 'created');
SELECT aspect, source, name, detail FROM changefeed.explain('shops:Oslo', '{"role": "regress_sender"}') WHERE aspect IN ('publish_check', 'event');
SELECT changefeed.allow_role('regress_sender');
SELECT aspect, source, name, detail FROM changefeed.explain('shops:Oslo', '{"role": "regress_sender"}') WHERE aspect IN ('publish_check', 'event');
SELECT changefeed.disallow_role('regress_sender');
-- They go with their source.
SELECT changefeed.drop_source('stamps', 'stamps');
SELECT event FROM changefeed.events;
DROP TABLE shops;
SELECT count(*) FROM changefeed.event;
SELECT changefeed.drop_channel(name) FROM changefeed.channels;
DROP TABLE stamps;
DROP FUNCTION mine(int);
DROP DOMAIN positive;
DROP TYPE colour;
REVOKE EXECUTE ON FUNCTION changefeed.publish FROM regress_sender;
DROP ROLE regress_sender;
