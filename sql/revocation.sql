-- revoke, declare_dependency: arguments, privileges, what is kept.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_changefeed;
CREATE ROLE regress_alice;
CREATE ROLE regress_bob;
CREATE ROLE regress_web;
GRANT CREATE ON SCHEMA public TO regress_alice, regress_bob;
SELECT changefeed.allow_role('regress_web');
RESET client_min_messages;

-- One of three, and nothing else.
SELECT changefeed.revoke();
SELECT changefeed.revoke(role => 'regress_web', session => '0000000112');
SELECT changefeed.revoke(claim => 'sub');
SELECT changefeed.revoke(value => 'u1');
SELECT changefeed.revoke(role => 'regress_web', value => 'u1');
SELECT changefeed.revoke(session => 'mine');
SELECT changefeed.revoke(session => '00000001');
SELECT changefeed.revoke(role => 'regress_nobody');
SELECT changefeed.revoke(claim => 'sub', value => 'u1', keep => '-1 second');
SELECT changefeed.revoke(claim => 'sub', value => 'u1', keep => NULL);
SELECT count(*) FROM changefeed.revocations;

-- Tokens from before are refused, and those that do not say when they were issued.
SELECT changefeed.make_token(jsonb_build_object('role', 'regress_web', 'sub', s, 'tenant', 7, 'jti', 'j',
           'iat', extract(epoch FROM now())::bigint + 100)) AS young,
       changefeed.make_token(jsonb_build_object('role', 'regress_web', 'sub', s, 'tenant', 7, 'jti', 'j',
           'iat', extract(epoch FROM now())::bigint - 100)) AS old,
       changefeed.make_token(jsonb_build_object('role', 'regress_web', 'sub', s, 'iat', NULL)) AS undated
  FROM (VALUES ('u1')) v(s) \gset
SELECT changefeed.revoke(claim => 'sub', value => 'u1');
SELECT changefeed._identify(:'young')->>'claims' AS young;
SELECT changefeed._identify(:'old');
SELECT changefeed._identify(:'undated');
SELECT role, claim, value, session, revoked_at <= now() + interval '1 s' AS now, expires_at - revoked_at AS keep FROM changefeed.revocations;

-- Other claims, numbers, and those that are not part of the identity.
BEGIN; DELETE FROM changefeed.revocation; SELECT changefeed.revoke(claim => 'tenant', value => '7'); SELECT changefeed._identify(:'old'); ROLLBACK;
BEGIN; DELETE FROM changefeed.revocation; SELECT changefeed.revoke(claim => 'jti', value => 'j'); SELECT changefeed._identify(:'old'); ROLLBACK;
BEGIN; DELETE FROM changefeed.revocation; SELECT changefeed.revoke(role => 'regress_web'); SELECT changefeed._identify(:'old'); ROLLBACK;
BEGIN; DELETE FROM changefeed.revocation; SELECT changefeed.revoke(claim => 'tenant', value => '8'); SELECT changefeed._identify(:'old')->>'role'; ROLLBACK;

-- What has ended goes with the next one.
UPDATE changefeed.revocation SET expires_at = now() - interval '1 s';
SELECT changefeed._identify(:'old')->>'role' AS accepted;
SELECT changefeed.revoke(claim => 'sub', value => 'u2', keep => '1 hour');
SELECT claim, value, expires_at - revoked_at AS keep FROM changefeed.revocation;

-- Only for the owner of the database.
SET ROLE regress_alice;
SELECT changefeed.revoke(claim => 'sub', value => 'u1');
SELECT * FROM changefeed.revocations;
SELECT * FROM changefeed.revocation;
RESET ROLE;

--
-- Dependencies
--
SET ROLE regress_alice;
CREATE TABLE members (uid text PRIMARY KEY);
CREATE TABLE bobs_too (id int PRIMARY KEY, owner text);
CREATE FUNCTION is_member() RETURNS boolean LANGUAGE plpgsql STABLE SECURITY DEFINER AS
    'BEGIN RETURN EXISTS (SELECT FROM members); END';
CREATE FUNCTION claim_sub() RETURNS text LANGUAGE sql STABLE AS
    $$SELECT current_setting('request.jwt.claims', true)::jsonb->>'sub'$$;
CREATE VIEW members_view AS SELECT * FROM members;
CREATE UNLOGGED TABLE unlogged_members (uid text);
SET ROLE regress_bob;
CREATE TABLE bobs (uid text PRIMARY KEY);
SELECT changefeed.declare_dependency('public.is_member()', 'public.members');
SET ROLE regress_alice;
SELECT changefeed.declare_dependency('public.is_member()', 'public.bobs');
SELECT changefeed.declare_dependency('public.is_member()', 'public.members_view');
SELECT changefeed.declare_dependency('public.is_member()', 'public.unlogged_members');
SELECT changefeed.declare_dependency('public.is_member()', 'pg_class');
SELECT changefeed.declare_dependency(NULL);

-- Policies of which it is not known what they depend on are told at creation.
CREATE TABLE notes (id int PRIMARY KEY, owner text, until timestamptz);
ALTER TABLE notes REPLICA IDENTITY FULL;
ALTER TABLE notes ENABLE ROW LEVEL SECURITY;
CREATE POLICY known ON notes USING (owner = claim_sub());
CREATE POLICY unknown ON notes USING (is_member());
CREATE POLICY timed ON notes USING (now() < until);
CREATE POLICY written ON notes FOR INSERT WITH CHECK (is_member());
SELECT changefeed.create_channel('notes', 'notes');
SELECT changefeed.declare_dependency('public.is_member()', 'public.members');
SELECT changefeed.declare_dependency('public.is_member()', 'public.members');
SELECT changefeed.create_channel('notes2', 'notes');
SELECT * FROM changefeed.dependencies;
SET ROLE regress_bob;
SELECT * FROM changefeed.dependencies;
SELECT changefeed.undeclare_dependency('public.is_member()', 'public.members');
SET ROLE regress_alice;
SELECT changefeed.undeclare_dependency('public.is_member()', 'public.members');
SELECT changefeed.undeclare_dependency('public.is_member()', 'public.members');
-- No table at all.
SELECT changefeed.declare_dependency('public.is_member()');
SELECT changefeed.create_channel('notes3', 'notes');
SELECT changefeed.undeclare_dependency('public.is_member()');

-- What depends on nothing but the row and the claims, and what on more.
DROP POLICY unknown ON notes;
DROP POLICY timed ON notes;
CREATE POLICY steady ON notes USING (
    owner = ANY ((current_setting('request.jwt.claims')::jsonb->>'teams')::text[])
    AND id = ANY ((current_setting('request.jwt.claims')::jsonb->>'ids')::int[])
    AND current_user <> 'nobody' AND concat(owner, id) <> '' AND to_jsonb(id) <> 'null' AND until > '2020-01-01');
SELECT changefeed.create_channel('notes4', 'notes');
CREATE POLICY unsteady ON notes USING (
    until = ANY ((current_setting('request.jwt.claims')::jsonb->>'days')::timestamptz[])
    OR current_setting('app.mode') = 'x' OR until > current_timestamp OR random() > 0.5
    OR until > (current_setting('request.jwt.claims')::jsonb->>'from')::timestamptz
    OR EXISTS (SELECT FROM unlogged_members) OR pg_has_role('pg_monitor', 'USAGE'));
SELECT changefeed.create_channel('notes5', 'notes');
RESET ROLE;

SET client_min_messages = warning;
DROP EXTENSION pg_changefeed;
DROP OWNED BY regress_alice, regress_bob, regress_web;
DROP ROLE regress_alice, regress_bob, regress_web;
