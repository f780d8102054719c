-- A chat: rooms, who is a member of them, and what was said.
--
--   psql -d chat -f demo/chat/chat.sql        (as superuser, once per database)
--
-- Who may read what is decided by grants and policies, as in any application with row level
-- security; the change feed obeys them. A person is the claim "sub" of a token.

\set ON_ERROR_STOP on

BEGIN;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'chat_user') THEN
        CREATE ROLE chat_user NOLOGIN;
    END IF;
END
$$;

CREATE SCHEMA chat;
GRANT USAGE ON SCHEMA chat TO chat_user;

-- ---------------------------------------------------------------------------
-- Tables
-- ---------------------------------------------------------------------------

CREATE TABLE chat.people (
    name text PRIMARY KEY CHECK (name = btrim(name) AND length(name) BETWEEN 1 AND 30)
);

CREATE TABLE chat.rooms (
    id text PRIMARY KEY,
    title text NOT NULL,
    is_public boolean NOT NULL DEFAULT false
);

CREATE TABLE chat.members (
    room_id text NOT NULL REFERENCES chat.rooms ON DELETE CASCADE,
    person text NOT NULL REFERENCES chat.people ON DELETE CASCADE,
    PRIMARY KEY (room_id, person)
);

CREATE TABLE chat.messages (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    room_id text NOT NULL REFERENCES chat.rooms ON DELETE CASCADE,
    author text NOT NULL REFERENCES chat.people ON DELETE CASCADE,
    body text NOT NULL CHECK (length(body) BETWEEN 1 AND 500),
    sent_at timestamptz(3) NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX ON chat.messages (room_id, id);

-- ---------------------------------------------------------------------------
-- Who may see and say what
-- ---------------------------------------------------------------------------

GRANT SELECT ON chat.rooms, chat.members, chat.messages TO chat_user;
GRANT INSERT (room_id, author, body) ON chat.messages TO chat_user;

ALTER TABLE chat.rooms ENABLE ROW LEVEL SECURITY;
ALTER TABLE chat.members ENABLE ROW LEVEL SECURITY;
ALTER TABLE chat.messages ENABLE ROW LEVEL SECURITY;

CREATE POLICY own ON chat.members FOR SELECT TO chat_user
    USING (person = current_setting('request.jwt.claims')::json ->> 'sub');

-- The subqueries are under the policies of the tables that they read.
CREATE POLICY open_or_member ON chat.rooms FOR SELECT TO chat_user
    USING (is_public OR EXISTS (SELECT FROM chat.members m WHERE m.room_id = id));
CREATE POLICY of_visible_rooms ON chat.messages FOR SELECT TO chat_user
    USING (EXISTS (SELECT FROM chat.rooms r WHERE r.id = room_id));
CREATE POLICY in_own_name ON chat.messages FOR INSERT TO chat_user
    WITH CHECK (author = current_setting('request.jwt.claims')::json ->> 'sub'
        AND EXISTS (SELECT FROM chat.rooms r WHERE r.id = room_id));

-- ---------------------------------------------------------------------------
-- What clients can do
-- ---------------------------------------------------------------------------

-- Runs as the caller: grants and policies decide whether he may post here.
CREATE FUNCTION chat.send(room text, body text) RETURNS chat.messages
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    said text := btrim(body, E' \t\r\n');
    message chat.messages;
BEGIN
    IF said = '' THEN
        RAISE EXCEPTION 'an empty message says nothing'
            USING ERRCODE = 'check_violation', HINT = 'Type something first.';
    END IF;
    IF length(said) > 500 THEN
        RAISE EXCEPTION 'the message is too long: % characters', length(said)
            USING ERRCODE = 'check_violation', HINT = 'A message has at most 500 characters. Send it in parts.';
    END IF;
    INSERT INTO chat.messages (room_id, author, body)
    VALUES (room, current_setting('request.jwt.claims')::json ->> 'sub', said)
    RETURNING * INTO message;
    RETURN message;
END
$$;

-- ---------------------------------------------------------------------------
-- Something to look at
-- ---------------------------------------------------------------------------

INSERT INTO chat.people VALUES ('Ada'), ('Bruno'), ('Chiara');

INSERT INTO chat.rooms VALUES
    ('lobby', 'Lobby', true),
    ('kitchen', 'Kitchen', false);

INSERT INTO chat.members VALUES ('kitchen', 'Ada'), ('kitchen', 'Bruno');

INSERT INTO chat.messages (room_id, author, body, sent_at)
SELECT room, author, body, now() - (10 - n) * interval '4 minutes'
FROM (VALUES
    (1, 'lobby', 'Chiara', 'Good morning! Is anybody here yet?'),
    (2, 'lobby', 'Ada', 'Just arrived. The train was late again.'),
    (3, 'kitchen', 'Bruno', 'We are out of coffee.'),
    (4, 'lobby', 'Bruno', 'Morning, both of you.'),
    (5, 'kitchen', 'Ada', 'Already ordered: five kilos, on Thursday.')) AS said (n, room, author, body)
ORDER BY n;

-- ---------------------------------------------------------------------------
-- Change feed
-- ---------------------------------------------------------------------------

CREATE EXTENSION IF NOT EXISTS pg_changefeed;

SELECT changefeed.allow_role('chat_user') \g /dev/null

SELECT changefeed.create_channel('rooms', 'chat.rooms') \g /dev/null

-- "room:lobby" has the messages of the lobby and who is there. Policies decide about messages;
-- who may see the people in a room is for join_check to say.
SELECT changefeed.create_channel('room:{room_id}', 'chat.messages',
    presence => '{"grace": "3 s"}',
    join_check => $$EXISTS (SELECT FROM chat.rooms r WHERE r.id = room_id)$$) \g /dev/null

SELECT changefeed.expose_function('chat.send(text, text)', 'send') \g /dev/null

COMMIT;
