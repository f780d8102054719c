-- explain: what decides about what an identity sees, and who may ask.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_changefeed;
CREATE ROLE regress_alice;
CREATE ROLE regress_bob;
CREATE ROLE regress_web;
CREATE ROLE regress_staff;
GRANT CREATE ON SCHEMA public TO regress_alice, regress_bob;
SELECT changefeed.allow_role('regress_web'), changefeed.allow_role('regress_staff');
SET ROLE regress_alice;
CREATE TABLE members (room int, uid text, PRIMARY KEY (room, uid));
CREATE TABLE messages (id int PRIMARY KEY, room int NOT NULL, body text, author text, note text, hidden boolean);
ALTER TABLE messages REPLICA IDENTITY FULL;
ALTER TABLE messages ENABLE ROW LEVEL SECURITY;
CREATE FUNCTION sub() RETURNS text LANGUAGE sql STABLE AS $$SELECT current_setting('request.jwt.claims', true)::jsonb->>'sub'$$;
CREATE FUNCTION in_room(room int) RETURNS boolean LANGUAGE sql STABLE AS
    $$SELECT EXISTS (SELECT FROM members m WHERE m.room = $1 AND m.uid = sub())$$;
CREATE FUNCTION secret() RETURNS boolean LANGUAGE plpgsql STABLE AS 'BEGIN RETURN true; END';
CREATE POLICY member ON messages FOR SELECT TO regress_web USING (in_room(room));
CREATE POLICY visible ON messages AS RESTRICTIVE USING (NOT hidden AND secret() AND now() > '2020-01-01');
CREATE POLICY staff ON messages TO regress_staff USING (true);
CREATE POLICY ins ON messages FOR INSERT WITH CHECK (false);
GRANT SELECT ON members TO regress_web;
GRANT SELECT (id, room, body, hidden) ON messages TO regress_web;
SELECT changefeed.create_channel('room:{room}', 'messages', filter => 'NOT hidden', columns => '{id,room,body,author}',
    join_check => $$public.in_room(room)$$);
INSERT INTO members VALUES (1, 'u1');
RESET ROLE;
RESET client_min_messages;

\pset format unaligned
SELECT * FROM changefeed.explain('room:1', '{"role": "regress_web", "sub": "u1", "exp": 1}');
-- Denied; and what would be an error for the client is a row.
SELECT * FROM changefeed.explain('room:2', '{"role": "regress_web", "sub": "u1"}') WHERE aspect IN ('join_check', 'error');
SELECT * FROM changefeed.explain('room:x', '{"role": "regress_web", "sub": "u1"}') WHERE aspect IN ('join_check', 'error');
SELECT * FROM changefeed.explain('room:*', '{"role": "regress_web", "sub": "u1"}') WHERE aspect IN ('parameter', 'filter', 'join_check');
SELECT * FROM changefeed.explain('room:1', '{"role": "regress_staff"}') WHERE aspect IN ('join_check', 'policy', 'error', 'rows');
-- After declarations nothing is left to look at but the time.
SELECT changefeed.declare_dependency('secret()');
SELECT aspect, name, detail FROM changefeed.explain('room:1', '{"role": "regress_web", "sub": "u1"}') WHERE aspect IN ('function', 'recheck');
ALTER POLICY visible ON messages USING (NOT hidden);
SELECT aspect, name, detail FROM changefeed.explain('room:1', '{"role": "regress_web", "sub": "u1"}') WHERE aspect IN ('function', 'recheck', 'policy');
ALTER TABLE messages DISABLE ROW LEVEL SECURITY;
SELECT aspect, name, detail FROM changefeed.explain('room:1', '{"role": "regress_web", "sub": "u1"}') WHERE aspect IN ('rows', 'dependency');
\pset format aligned

-- Nothing of it is left in the session.
SELECT current_user, current_setting('role') AS role, current_setting('search_path') AS path,
       coalesce(current_setting('request.jwt.claims', true), '') AS claims, current_setting('transaction_read_only') AS read_only;
-- Nor what functions of others have set.
CREATE OR REPLACE FUNCTION secret() RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    PERFORM set_config('work_mem', '64kB', false);
    RETURN true;
END$$;
ALTER POLICY visible ON messages USING (secret());
ALTER TABLE messages ENABLE ROW LEVEL SECURITY;
SELECT count(*) > 5 AS explained FROM changefeed.explain('room:1', '{"role": "regress_web", "sub": "u1"}');
SELECT current_setting('work_mem') <> '64kB' AS same;
BEGIN;
SELECT count(*) > 5 AS explained FROM changefeed.explain('room:1', '{"role": "regress_web", "sub": "u1"}');
INSERT INTO members VALUES (9, 'x');
SELECT current_user;
ROLLBACK;

-- Errors
SELECT * FROM changefeed.explain('nothing:1', '{"role": "regress_web"}');
SELECT * FROM changefeed.explain('room:1', '[]');
SELECT * FROM changefeed.explain('room:1', '{"role": "regress_alice"}');
SELECT * FROM changefeed.explain('room:1', NULL);

-- It takes the definition and the role.
SET ROLE regress_bob;
SELECT * FROM changefeed.explain('room:1', '{"role": "regress_web"}');
SET ROLE regress_alice;
SELECT * FROM changefeed.explain('room:1', '{"role": "regress_web"}');
RESET ROLE;
GRANT regress_web TO regress_alice;
SET ROLE regress_alice;
SELECT name, detail FROM changefeed.explain('room:1', '{"role": "regress_web", "sub": "u1"}') WHERE aspect IN ('identity', 'join_check');
SELECT current_user;
RESET ROLE;

SET client_min_messages = warning;
DROP EXTENSION pg_changefeed;
DROP OWNED BY regress_alice, regress_bob, regress_web, regress_staff;
DROP ROLE regress_alice, regress_bob, regress_web, regress_staff;
