-- Roles that clients may have.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pg_changefeed;
DROP ROLE IF EXISTS regress_web, regress_super, regress_bypass, regress_repl, regress_member,
    regress_grandchild, regress_reader, regress_files, regress_admin, "regress Odd";
RESET client_min_messages;

CREATE ROLE regress_web;
CREATE ROLE "regress Odd" LOGIN;
CREATE ROLE regress_super SUPERUSER;
CREATE ROLE regress_bypass BYPASSRLS;
CREATE ROLE regress_repl REPLICATION;
CREATE ROLE regress_member NOINHERIT IN ROLE regress_bypass;
CREATE ROLE regress_grandchild IN ROLE regress_member;
CREATE ROLE regress_reader IN ROLE pg_read_all_data;
CREATE ROLE regress_files IN ROLE pg_execute_server_program;

SELECT changefeed.allow_role('regress_web');
SELECT changefeed.allow_role('"regress Odd"');
-- Once more is no error.
SELECT changefeed.allow_role('regress_web');
SELECT role FROM changefeed.roles WHERE role::text ~ 'regress' ORDER BY role::text COLLATE "C";

-- Refused, with the reason
SELECT changefeed.allow_role('regress_super');
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.allow_role('regress_bypass');
SELECT changefeed.allow_role('regress_repl');
SELECT changefeed.allow_role('regress_member');
SELECT changefeed.allow_role('regress_grandchild');
SELECT changefeed.allow_role('regress_reader');
SELECT changefeed.allow_role('regress_files');
SELECT changefeed.allow_role('pg_write_all_data');
SELECT changefeed.allow_role('regress_nobody');
SELECT changefeed.allow_role(1);
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.allow_role(NULL);
SELECT changefeed.disallow_role(NULL);
SELECT changefeed.disallow_role('regress_member');
\echo :LAST_ERROR_SQLSTATE

-- Only superusers
SET ROLE regress_web;
SELECT changefeed.allow_role('regress_web');
\echo :LAST_ERROR_SQLSTATE
SELECT changefeed.disallow_role('regress_web');
RESET ROLE;

-- The name may change, the role is the same; a dropped role is gone, and its
-- number does not stay.
ALTER ROLE "regress Odd" RENAME TO regress_even;
SELECT role FROM changefeed.roles WHERE role::text ~ 'regress' ORDER BY role::text COLLATE "C";
DROP ROLE regress_even;
SELECT role FROM changefeed.roles WHERE role::text ~ 'regress' ORDER BY role::text COLLATE "C";
SELECT count(*) FROM changefeed.role r WHERE NOT EXISTS (SELECT FROM pg_roles WHERE oid = r.role);
SELECT changefeed.disallow_role('regress_web');
SELECT count(*) FROM changefeed.role r WHERE NOT EXISTS (SELECT FROM pg_roles WHERE oid = r.role);
SELECT role FROM changefeed.roles WHERE role::text ~ 'regress' ORDER BY role::text COLLATE "C";

-- Part of the transaction
BEGIN;
SELECT changefeed.allow_role('regress_web');
ROLLBACK;
SELECT role FROM changefeed.roles WHERE role::text ~ 'regress' ORDER BY role::text COLLATE "C";

-- Tokens: what is wrong with the arguments. (Good ones need a secret.)
SELECT changefeed.make_token(NULL);
SELECT changefeed.make_token('{}', NULL);
SELECT changefeed.make_token('[1]');
SELECT changefeed.make_token('"x"');
SELECT changefeed.make_token('{}', '999999 years');

DROP ROLE regress_web, regress_super, regress_bypass, regress_repl, regress_grandchild, regress_member,
    regress_reader, regress_files;
