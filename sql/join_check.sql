-- join_check: what is accepted, in which form it is kept, and what errors say.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_changefeed;
CREATE TABLE members (room int, uid text, PRIMARY KEY (room, uid));
CREATE TABLE messages (id int PRIMARY KEY, room int, room_id int NOT NULL, code varchar(5), day date);
ALTER TABLE messages REPLICA IDENTITY FULL;
RESET client_min_messages;

-- Parameters have the type of the source's column.
SELECT changefeed.create_channel('room:{room_id}', 'messages', join_check =>
    $$EXISTS (SELECT FROM public.members m WHERE m.room = room_id
                 AND m.uid = current_setting('request.jwt.claims')::jsonb->>'sub')$$);
SELECT changefeed.create_channel('typed:{room_id}:{code}:{day}', 'messages', join_check => 'room_id > 0 AND code <> ''x'' AND day > ''2020-01-01''');
SELECT changefeed.create_channel('untyped:{tenant}', join_check => 'tenant = ''a''');
SELECT changefeed.create_channel('all', 'messages', join_check => 'true -- for all');
SELECT name, join_check FROM changefeed.channels ORDER BY name COLLATE "C";

-- The canonical text is good as it is; a null is none.
SELECT changefeed.create_channel('none', 'messages', join_check => NULL);
SELECT join_check IS NULL AS none FROM changefeed.channels WHERE name = 'none';

-- Errors point at the place.
SELECT changefeed.create_channel('bad:{room_id}', 'messages', join_check => 'room_id');
SELECT changefeed.create_channel('bad:{room_id}', 'messages', join_check => 'room_id = 1 AND nothing = 2');
SELECT changefeed.create_channel('bad:{room_id}', 'messages', join_check => 'EXISTS (SELECT FROM members m WHERE m.room = room_id)');
SELECT changefeed.create_channel('bad:{room_id}', 'messages', join_check => 'room_id = $1');
SELECT changefeed.create_channel('bad:{room_id}', 'messages', join_check => 'room_id =');
SELECT changefeed.create_channel('bad:{room_id}', 'messages', join_check => 'true; DROP TABLE members');
SELECT changefeed.create_channel('bad:{room_id}', 'messages', join_check => 'true FROM public.members');
SELECT changefeed.create_channel('bad:{room_id}', 'messages', join_check => 'true, true');
SELECT changefeed.create_channel('bad:{room_id}', 'messages', join_check => '');
SELECT changefeed.create_channel('bad:{room_id}', 'messages', join_check => 'count(*) > 0');
SELECT changefeed.create_channel('bad:{room_id}', 'messages', join_check => 'room_id = ''x''');

-- A name must not be two things, also if one of them is added later.
SELECT changefeed.create_channel('bad:{room_id}', 'messages', join_check =>
    'EXISTS (SELECT FROM public.messages m WHERE m.id = room_id)');
ALTER TABLE members ADD COLUMN room_id int;
SELECT join_check FROM changefeed.channels WHERE name = 'room:{room_id}';
SELECT name, detail FROM changefeed.explain('room:1', '{"role": "regress_nobody"}');

SET client_min_messages = warning;
DROP EXTENSION pg_changefeed;
DROP TABLE members, messages;
