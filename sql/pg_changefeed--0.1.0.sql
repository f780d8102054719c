-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION pg_changefeed" to load this file. \quit

-- Names of functions that start with an underscore are not for users.

-- Fails when somebody has made the schema already: its owner could put functions
-- of his own in place of ours.
CREATE SCHEMA changefeed;

CREATE FUNCTION changefeed._check_requirements() RETURNS void
    LANGUAGE C STRICT
    AS 'MODULE_PATHNAME', 'changefeed_check_requirements';
REVOKE ALL ON FUNCTION changefeed._check_requirements() FROM PUBLIC;
COMMENT ON FUNCTION changefeed._check_requirements() IS
    'internal: raises an error when this server cannot run change feeds';

-- Before anything else, so that the error is about what has to be done.
SELECT changefeed._check_requirements();

GRANT USAGE ON SCHEMA changefeed TO PUBLIC;
COMMENT ON SCHEMA changefeed IS 'live change feeds of tables (extension pg_changefeed)';

-----------------------------------------------------------------------------
-- Catalog. Only the functions below write it; the decoder reads "source" with
-- the catalogs of the past, hence user_catalog_table. No foreign keys: pg_restore
-- does not know of them when it restores several tables of an extension at a time
-- (--jobs), and would fail.
-----------------------------------------------------------------------------

CREATE TABLE changefeed.channel (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    join_check text,
    min_interval interval,
    publish_check text,
    presence jsonb
);
COMMENT ON TABLE changefeed.channel IS
    'catalog of channels: written by changefeed.create_channel, shown by the view changefeed.channels';

CREATE TABLE changefeed.source (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    channel int NOT NULL,
    relid regclass NOT NULL,
    entity name NOT NULL,
    key name[] NOT NULL,
    filter text,
    columns name[],
    on_insert text NOT NULL DEFAULT 'append'
        CHECK (on_insert IN ('append', 'replace', 'merge', 'ignore')),
    on_update text NOT NULL DEFAULT 'merge'
        CHECK (on_update IN ('merge', 'replace', 'append', 'remove', 'ignore')),
    on_delete text NOT NULL DEFAULT 'remove'
        CHECK (on_delete IN ('remove', 'ignore')),
    UNIQUE (channel, entity),
    UNIQUE (channel, relid)
) WITH (user_catalog_table = true);
CREATE INDEX source_relid_idx ON changefeed.source (relid);
-- The old rows in the WAL have this key: it tells which channel was changed.
ALTER TABLE changefeed.source REPLICA IDENTITY USING INDEX source_channel_entity_key;
COMMENT ON TABLE changefeed.source IS
    'catalog of sources: written by changefeed.add_source, shown by the view changefeed.sources';

CREATE TABLE changefeed.event (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    channel int NOT NULL,
    source int NOT NULL,
    name text NOT NULL,
    condition text,
    payload text,
    on_change text[] NOT NULL,
    UNIQUE (channel, source, name)
);
-- As above: the key in the WAL tells which channel was changed.
ALTER TABLE changefeed.event REPLICA IDENTITY USING INDEX event_channel_source_name_key;
COMMENT ON TABLE changefeed.event IS
    'catalog of events: written by changefeed.add_event, shown by the view changefeed.events';

CREATE TABLE changefeed.role (
    role regrole PRIMARY KEY
);
COMMENT ON TABLE changefeed.role IS
    'catalog of roles that clients may have: written by changefeed.allow_role, shown by the view changefeed.roles';

-- Functions are kept by name and argument types, both with their schemas:
-- pg_upgrade gives them other numbers, and refuses columns of type regprocedure.
-- Who renames one renames it here, see function_names.c.
CREATE FUNCTION changefeed._function(signature text) RETURNS regprocedure
    LANGUAGE C STABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'changefeed_function';
COMMENT ON FUNCTION changefeed._function(text) IS
    'internal: the function of that signature, null if there is none';

CREATE TABLE changefeed.dependency (
    function text NOT NULL,
    relation regclass,
    UNIQUE NULLS NOT DISTINCT (function, relation)
);
COMMENT ON TABLE changefeed.dependency IS
    'tables that functions read, which policies call: written by changefeed.declare_dependency, shown by the view changefeed.dependencies';

-- What tokens are not good any more, and which connections had to end.
CREATE TABLE changefeed.revocation (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    role regrole,
    claim text,
    value text,
    session text,
    revoked_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    CHECK (pg_catalog.num_nonnulls(role, claim, session) OPERATOR(pg_catalog.=) 1),
    CHECK ((claim IS NULL) OPERATOR(pg_catalog.=) (value IS NULL))
);
COMMENT ON TABLE changefeed.revocation IS
    'tokens that are not accepted any more: written by changefeed.revoke, shown by the view changefeed.revocations';

CREATE TABLE changefeed.function (
    name text PRIMARY KEY,
    function text NOT NULL UNIQUE
);
COMMENT ON TABLE changefeed.function IS
    'functions that clients may call: written by changefeed.expose_function, shown by the view changefeed.functions';

-- What calls with a key have given, for those that are repeated. Written by the
-- query workers, in the transaction of the call; nobody else has any business here.
-- Not dumped.
CREATE TABLE changefeed.call_result (
    identity bytea NOT NULL,
    key text NOT NULL,
    call bytea NOT NULL,
    result text,
    txid xid8 NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (identity, key)
) WITH (fillfactor = 70);
CREATE INDEX call_result_created_at_idx ON changefeed.call_result (created_at);
COMMENT ON TABLE changefeed.call_result IS
    'results of calls that clients made with a key, for changefeed.idempotency_age';

-- Has a row while the feed is paused. Not dumped: what is restored runs.
CREATE TABLE changefeed.pause (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    paused_at timestamptz NOT NULL,
    keep_slot boolean NOT NULL
);
COMMENT ON TABLE changefeed.pause IS
    'whether the feed is paused: written by changefeed.pause and changefeed.resume, shown by the view changefeed.stat_feed';

-- Dumped with the database. What is left of dropped tables and roles is only a
-- number, which would mean something else where the dump is restored.
SELECT pg_catalog.pg_extension_config_dump('changefeed.channel', '');
SELECT pg_catalog.pg_extension_config_dump('changefeed.source',
    'WHERE EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = relid::pg_catalog.oid)');
SELECT pg_catalog.pg_extension_config_dump('changefeed.event',
    'WHERE EXISTS (SELECT FROM changefeed.source s JOIN pg_catalog.pg_class c ON c.oid = s.relid::pg_catalog.oid WHERE s.id = source)');
SELECT pg_catalog.pg_extension_config_dump('changefeed.role',
    'WHERE EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.oid = role::pg_catalog.oid)');
SELECT pg_catalog.pg_extension_config_dump('changefeed.dependency',
    'WHERE changefeed._function(function) IS NOT NULL
       AND (relation IS NULL OR EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = relation::pg_catalog.oid))');
SELECT pg_catalog.pg_extension_config_dump('changefeed.function',
    'WHERE changefeed._function(function) IS NOT NULL');
SELECT pg_catalog.pg_extension_config_dump('changefeed.revocation',
    'WHERE session IS NULL
       AND (role IS NULL OR EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.oid = role::pg_catalog.oid))');
SELECT pg_catalog.pg_extension_config_dump('changefeed.revocation_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('changefeed.channel_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('changefeed.source_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('changefeed.event_id_seq', '');

-- Tells decoder and workers which tables became or ceased to be sources; ALWAYS,
-- so that it does even while session_replication_role is replica.
CREATE FUNCTION changefeed._source_changed() RETURNS trigger
    LANGUAGE C
    AS 'MODULE_PATHNAME', 'changefeed_source_changed';
REVOKE ALL ON FUNCTION changefeed._source_changed() FROM PUBLIC;
COMMENT ON FUNCTION changefeed._source_changed() IS
    'internal: trigger that makes a change of changefeed.source known to the workers';
CREATE TRIGGER source_changed AFTER INSERT OR UPDATE OR DELETE ON changefeed.source
    FOR EACH ROW EXECUTE FUNCTION changefeed._source_changed();
ALTER TABLE changefeed.source ENABLE ALWAYS TRIGGER source_changed;

CREATE FUNCTION changefeed._tables_dropped() RETURNS event_trigger
    LANGUAGE C SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'changefeed_tables_dropped';
REVOKE ALL ON FUNCTION changefeed._tables_dropped() FROM PUBLIC;
COMMENT ON FUNCTION changefeed._tables_dropped() IS
    'internal: event trigger that removes the sources of dropped tables';
CREATE EVENT TRIGGER changefeed_tables_dropped ON sql_drop
    EXECUTE FUNCTION changefeed._tables_dropped();
COMMENT ON EVENT TRIGGER changefeed_tables_dropped IS
    'removes the sources of dropped tables from changefeed.source';

-- Not SECURITY DEFINER: partitions are altered by whoever makes them.
CREATE FUNCTION changefeed._tables_altered() RETURNS event_trigger
    LANGUAGE C SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'changefeed_tables_altered';
REVOKE ALL ON FUNCTION changefeed._tables_altered() FROM PUBLIC;
COMMENT ON FUNCTION changefeed._tables_altered() IS
    'internal: event trigger that sets the replica identity of new partitions of sources';
CREATE EVENT TRIGGER changefeed_tables_altered ON ddl_command_end
    WHEN TAG IN ('CREATE TABLE', 'ALTER TABLE')
    EXECUTE FUNCTION changefeed._tables_altered();
COMMENT ON EVENT TRIGGER changefeed_tables_altered IS
    'sets REPLICA IDENTITY FULL for new partitions of tables that feed channels';

-----------------------------------------------------------------------------
-- Channels and sources. Everybody may call these: they check whose table it is.
-----------------------------------------------------------------------------

CREATE FUNCTION changefeed.create_channel(
    name text,
    source regclass DEFAULT NULL,
    entity name DEFAULT NULL,
    key name[] DEFAULT NULL,
    filter text DEFAULT NULL,
    columns name[] DEFAULT NULL,
    on_insert text DEFAULT 'append',
    on_update text DEFAULT 'merge',
    on_delete text DEFAULT 'remove',
    set_replica_identity boolean DEFAULT true,
    join_check text DEFAULT NULL,
    min_interval interval DEFAULT NULL,
    publish_check text DEFAULT NULL,
    presence jsonb DEFAULT NULL
) RETURNS void
    LANGUAGE C SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'changefeed_create_channel';
COMMENT ON FUNCTION changefeed.create_channel(text, regclass, name, name[], text, name[], text, text, text, boolean, text, interval, text, jsonb) IS
    'creates a channel, such as ''orders'' or ''orders:{customer_id}'', and its first source; only the owner of a table may publish it';

CREATE FUNCTION changefeed.add_source(
    channel text,
    source regclass,
    entity name DEFAULT NULL,
    key name[] DEFAULT NULL,
    filter text DEFAULT NULL,
    columns name[] DEFAULT NULL,
    on_insert text DEFAULT 'append',
    on_update text DEFAULT 'merge',
    on_delete text DEFAULT 'remove',
    set_replica_identity boolean DEFAULT true
) RETURNS void
    LANGUAGE C SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'changefeed_add_source';
COMMENT ON FUNCTION changefeed.add_source(text, regclass, name, name[], text, name[], text, text, text, boolean) IS
    'lets one more table feed a channel; takes the owner of the table, who also has to own the channel''s other sources or the database';

CREATE FUNCTION changefeed.drop_source(channel text, source regclass) RETURNS void
    LANGUAGE C SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'changefeed_drop_source';
COMMENT ON FUNCTION changefeed.drop_source(text, regclass) IS
    'ends that a table feeds a channel, which stays; takes the owner of the table or of the database';

CREATE FUNCTION changefeed.drop_channel(name text) RETURNS void
    LANGUAGE C SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'changefeed_drop_channel';
COMMENT ON FUNCTION changefeed.drop_channel(text) IS
    'drops a channel with its sources; takes the owner of all their tables, or of the database';

CREATE FUNCTION changefeed.add_event(
    channel text,
    source regclass,
    event text,
    condition text DEFAULT NULL,
    payload text DEFAULT NULL,
    on_change text[] DEFAULT '{insert,update,delete}'
) RETURNS void
    LANGUAGE C SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'changefeed_add_event';
COMMENT ON FUNCTION changefeed.add_event(text, regclass, text, text, text, text[]) IS
    'lets changes of a source''s rows be told as named messages as well, if a condition on old.* and new.* holds; takes the owner of the table';

CREATE FUNCTION changefeed.drop_event(channel text, source regclass, event text) RETURNS void
    LANGUAGE C SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'changefeed_drop_event';
COMMENT ON FUNCTION changefeed.drop_event(text, regclass, text) IS
    'takes back changefeed.add_event; takes the owner of the table or of the database';

CREATE FUNCTION changefeed.publish(
    channel text,
    event text,
    payload jsonb DEFAULT NULL,
    transactional boolean DEFAULT true
) RETURNS void
    LANGUAGE C SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'changefeed_publish';
REVOKE ALL ON FUNCTION changefeed.publish(text, text, jsonb, boolean) FROM PUBLIC;
COMMENT ON FUNCTION changefeed.publish(text, text, jsonb, boolean) IS
    'sends a message to the subscribers of a channel, such as ''orders:42'', when the transaction commits, or at once; takes EXECUTE, which is granted to nobody at first';

-----------------------------------------------------------------------------
-- Roles and tokens
-----------------------------------------------------------------------------

CREATE FUNCTION changefeed.allow_role(role regrole) RETURNS void
    LANGUAGE C SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'changefeed_allow_role';
COMMENT ON FUNCTION changefeed.allow_role(regrole) IS
    'lets clients have that role when their token names it; superusers only';

CREATE FUNCTION changefeed.disallow_role(role regrole) RETURNS void
    LANGUAGE C SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'changefeed_disallow_role';
COMMENT ON FUNCTION changefeed.disallow_role(regrole) IS
    'takes back changefeed.allow_role; superusers only';

CREATE FUNCTION changefeed.make_token(claims jsonb, expires_in interval DEFAULT '1 hour') RETURNS text
    LANGUAGE C SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'changefeed_make_token';
REVOKE ALL ON FUNCTION changefeed.make_token(jsonb, interval) FROM PUBLIC;
COMMENT ON FUNCTION changefeed.make_token(jsonb, interval) IS
    'a token with these claims, signed with the secret of changefeed.jwt_secret_file, for development and tests; whoever may call it can be every allowed role';

CREATE FUNCTION changefeed._identify(token text) RETURNS jsonb
    LANGUAGE C SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'changefeed_identify';
REVOKE ALL ON FUNCTION changefeed._identify(text) FROM PUBLIC;
COMMENT ON FUNCTION changefeed._identify(text) IS
    'internal: role and claims that a client with this token has, or the error that it gets';

-----------------------------------------------------------------------------
-- Rights that are taken away, and how they are found out
-----------------------------------------------------------------------------

CREATE FUNCTION changefeed.revoke(
    role regrole DEFAULT NULL,
    claim text DEFAULT NULL,
    value text DEFAULT NULL,
    session text DEFAULT NULL,
    keep interval DEFAULT '30 days'
) RETURNS void
    LANGUAGE C SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'changefeed_revoke';
COMMENT ON FUNCTION changefeed.revoke(regrole, text, text, text, interval) IS
    'ends connections and refuses their tokens: those that a role has, those whose claim has a value, or one session; tokens that are issued later are good; takes the owner of the database';

CREATE FUNCTION changefeed.declare_dependency(function regprocedure, relation regclass DEFAULT NULL) RETURNS void
    LANGUAGE C SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'changefeed_declare_dependency';
COMMENT ON FUNCTION changefeed.declare_dependency(regprocedure, regclass) IS
    'says that a function, which policies call and into which nobody can look, reads a table, or with relation => null none; takes the owner of the function and of the table, or of the database';

CREATE FUNCTION changefeed.undeclare_dependency(function regprocedure, relation regclass DEFAULT NULL) RETURNS void
    LANGUAGE C SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'changefeed_undeclare_dependency';
COMMENT ON FUNCTION changefeed.undeclare_dependency(regprocedure, regclass) IS
    'takes back changefeed.declare_dependency';

-----------------------------------------------------------------------------
-- Operating the feed
-----------------------------------------------------------------------------

CREATE FUNCTION changefeed.pause(keep_slot boolean DEFAULT true) RETURNS void
    LANGUAGE C SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'changefeed_pause';
COMMENT ON FUNCTION changefeed.pause(boolean) IS
    'disconnects all clients and lets none in, until changefeed.resume; with keep_slot => false nothing runs and no WAL is kept; takes the owner of the database';

CREATE FUNCTION changefeed.resume() RETURNS void
    LANGUAGE C SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'changefeed_resume';
COMMENT ON FUNCTION changefeed.resume() IS
    'takes back changefeed.pause; takes the owner of the database';

CREATE FUNCTION changefeed.reset() RETURNS void
    LANGUAGE C SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'changefeed_reset';
COMMENT ON FUNCTION changefeed.reset() IS
    'lets the feed begin anew, with another replication slot and epoch: every client gets a fresh snapshot; takes the owner of the database';

-----------------------------------------------------------------------------
-- Functions that clients call
-----------------------------------------------------------------------------

CREATE FUNCTION changefeed.expose_function(function regprocedure, name text DEFAULT NULL) RETURNS void
    LANGUAGE C SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'changefeed_expose_function';
COMMENT ON FUNCTION changefeed.expose_function(regprocedure, text) IS
    'lets clients call a function, under its own name or another one, if their role may execute it; takes the owner of the function or of the database';

CREATE FUNCTION changefeed.unexpose_function(function regprocedure) RETURNS void
    LANGUAGE C SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'changefeed_unexpose_function';
COMMENT ON FUNCTION changefeed.unexpose_function(regprocedure) IS
    'takes back changefeed.expose_function';

CREATE FUNCTION changefeed.unexpose_function(name text) RETURNS void
    LANGUAGE C SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'changefeed_unexpose_name';
COMMENT ON FUNCTION changefeed.unexpose_function(text) IS
    'takes back changefeed.expose_function, by the name that clients use or by the function and its argument types';

CREATE FUNCTION changefeed.explain(
    channel text,
    claims jsonb,
    OUT source regclass,
    OUT aspect text,
    OUT name text,
    OUT detail text
) RETURNS SETOF record
    LANGUAGE C SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'changefeed_explain';
COMMENT ON FUNCTION changefeed.explain(text, jsonb) IS
    'what decides about the rows and columns that a client with these claims sees of a channel; takes whoever may be the client''s role and owns the channel''s sources or the database';

-----------------------------------------------------------------------------
-- Internal functions on names of channels
-----------------------------------------------------------------------------

-- For the view, so callable by everybody.
CREATE FUNCTION changefeed._parameters(template text) RETURNS text[]
    LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'changefeed_template_parameters';
COMMENT ON FUNCTION changefeed._parameters(text) IS
    'internal: the parameters of a channel''s name';

CREATE FUNCTION changefeed._match(template text, name text) RETURNS text[]
    LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'changefeed_template_match';
REVOKE ALL ON FUNCTION changefeed._match(text, text) FROM PUBLIC;
COMMENT ON FUNCTION changefeed._match(text, text) IS
    'internal: the values of a template''s parameters in a name, null when the name does not belong to it';

CREATE FUNCTION changefeed._format(template text, params text[]) RETURNS text
    LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'changefeed_template_format';
REVOKE ALL ON FUNCTION changefeed._format(text, text[]) FROM PUBLIC;
COMMENT ON FUNCTION changefeed._format(text, text[]) IS
    'internal: the name that a template gives with these values';

CREATE FUNCTION changefeed._selection(selection text) RETURNS text
    LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'changefeed_selection';
REVOKE ALL ON FUNCTION changefeed._selection(text) FROM PUBLIC;
COMMENT ON FUNCTION changefeed._selection(text) IS
    'internal: how what follows "?" in a channel''s name is understood';

-----------------------------------------------------------------------------
-- Views. Each shows what its reader has to do with: the sources of tables that
-- he owns, the channels that have such a source; the owner of the database and
-- members of pg_monitor see all.
-----------------------------------------------------------------------------

CREATE FUNCTION changefeed._sees_all() RETURNS boolean
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN pg_catalog.pg_has_role('pg_monitor', 'USAGE') OR
        (SELECT pg_catalog.pg_has_role(d.datdba, 'USAGE')
           FROM pg_catalog.pg_database d
          WHERE d.datname = pg_catalog.current_database());
COMMENT ON FUNCTION changefeed._sees_all() IS
    'internal: whether the current user sees all channels in the views';

CREATE VIEW changefeed.sources WITH (security_barrier = true) AS
SELECT c.name AS channel,
       s.relid AS source,
       s.entity,
       s.key,
       s.filter,
       s.columns,
       s.on_insert,
       s.on_update,
       s.on_delete
  FROM changefeed.source s
  JOIN changefeed.channel c ON c.id = s.channel
  LEFT JOIN pg_catalog.pg_class t ON t.oid = s.relid::oid
 WHERE (SELECT changefeed._sees_all()) OR pg_catalog.pg_has_role(t.relowner, 'USAGE');
COMMENT ON VIEW changefeed.sources IS
    'tables that feed channels: those that you own, or all for the owner of the database and members of pg_monitor';
COMMENT ON COLUMN changefeed.sources.channel IS 'name or template of the channel';
COMMENT ON COLUMN changefeed.sources.source IS 'the table';
COMMENT ON COLUMN changefeed.sources.entity IS 'what clients call the objects that come from the table';
COMMENT ON COLUMN changefeed.sources.key IS 'columns that identify a row for clients';
COMMENT ON COLUMN changefeed.sources.filter IS 'only rows for which this is true belong to the channel; null: all';
COMMENT ON COLUMN changefeed.sources.columns IS 'columns that are sent; null: all';
COMMENT ON COLUMN changefeed.sources.on_insert IS 'effect on clients of a row that comes into the channel';
COMMENT ON COLUMN changefeed.sources.on_update IS 'effect on clients of a row that changes within the channel';
COMMENT ON COLUMN changefeed.sources.on_delete IS 'effect on clients of a row that leaves the channel';

CREATE VIEW changefeed.events WITH (security_barrier = true) AS
SELECT c.name AS channel,
       s.relid AS source,
       e.name AS event,
       e.condition,
       e.payload,
       e.on_change
  FROM changefeed.event e
  JOIN changefeed.source s ON s.id = e.source
  JOIN changefeed.channel c ON c.id = s.channel
  LEFT JOIN pg_catalog.pg_class t ON t.oid = s.relid::oid
 WHERE (SELECT changefeed._sees_all()) OR pg_catalog.pg_has_role(t.relowner, 'USAGE');
COMMENT ON VIEW changefeed.events IS
    'events of tables that feed channels: those that you own, or all for the owner of the database and members of pg_monitor';
COMMENT ON COLUMN changefeed.events.channel IS 'name or template of the channel';
COMMENT ON COLUMN changefeed.events.source IS 'the table';
COMMENT ON COLUMN changefeed.events.event IS 'name of the event in messages';
COMMENT ON COLUMN changefeed.events.condition IS 'it happens only if this is true; null: with every change';
COMMENT ON COLUMN changefeed.events.payload IS 'what the message says; null: the key of the row';
COMMENT ON COLUMN changefeed.events.on_change IS 'with which changes it may happen: insert, update, delete';

CREATE VIEW changefeed.channels WITH (security_barrier = true) AS
SELECT c.name,
       changefeed._parameters(c.name) AS parameters,
       c.join_check,
       c.publish_check,
       c.min_interval,
       c.presence,
       (SELECT pg_catalog.count(*)::int
          FROM changefeed.source s WHERE s.channel = c.id) AS sources
  FROM changefeed.channel c
 WHERE (SELECT changefeed._sees_all())
    OR EXISTS (SELECT
                 FROM changefeed.source s
                 JOIN pg_catalog.pg_class t ON t.oid = s.relid::oid
                WHERE s.channel = c.id AND pg_catalog.pg_has_role(t.relowner, 'USAGE'));
COMMENT ON VIEW changefeed.channels IS
    'channels: those that a table of yours feeds, or all for the owner of the database and members of pg_monitor';
COMMENT ON COLUMN changefeed.channels.name IS 'name or template of the channel';
COMMENT ON COLUMN changefeed.channels.parameters IS 'columns whose values are part of the name';
COMMENT ON COLUMN changefeed.channels.min_interval IS 'the changes of that time come together, each row''s folded to its latest state; null: each transaction at once';
COMMENT ON COLUMN changefeed.channels.join_check IS 'only clients for which this is true may subscribe; $1 is the first of the parameters; null: all';
COMMENT ON COLUMN changefeed.channels.presence IS 'what members of the channel may do and how they are told of one another; null: the channel has no presence';
COMMENT ON COLUMN changefeed.channels.publish_check IS 'only clients for which this is true may publish messages; $1 is the first of the parameters; null: none';
COMMENT ON COLUMN changefeed.channels.sources IS 'number of tables that feed the channel';

CREATE VIEW changefeed.roles AS
SELECT r.role
  FROM changefeed.role r
 WHERE EXISTS (SELECT FROM pg_catalog.pg_roles p WHERE p.oid = r.role::oid);
COMMENT ON VIEW changefeed.roles IS 'roles that clients may have';
COMMENT ON COLUMN changefeed.roles.role IS 'the role, admitted with changefeed.allow_role';

CREATE VIEW changefeed.dependencies WITH (security_barrier = true) AS
SELECT p.oid::regprocedure AS function, d.relation
  FROM changefeed.dependency d
  JOIN pg_catalog.pg_proc p ON p.oid = changefeed._function(d.function)::oid
 WHERE (SELECT changefeed._sees_all()) OR pg_catalog.pg_has_role(p.proowner, 'USAGE');
COMMENT ON VIEW changefeed.dependencies IS
    'tables that functions read: of functions that you own, or all for the owner of the database and members of pg_monitor';
COMMENT ON COLUMN changefeed.dependencies.function IS 'the function, which policies may call';
COMMENT ON COLUMN changefeed.dependencies.relation IS 'a table that it reads; null: it reads none';

CREATE VIEW changefeed.functions WITH (security_barrier = true) AS
SELECT f.name,
       p.oid::regprocedure AS function,
       pg_catalog.pg_get_function_arguments(p.oid) AS arguments,
       pg_catalog.pg_get_function_result(p.oid) AS result,
       p.prosecdef AS security_definer,
       ARRAY(SELECT r.role
               FROM changefeed.role r
               JOIN pg_catalog.pg_roles a ON a.oid = r.role::oid
              WHERE pg_catalog.has_function_privilege(a.oid, p.oid, 'EXECUTE')
                AND pg_catalog.has_schema_privilege(a.oid, p.pronamespace, 'USAGE')
              ORDER BY a.rolname) AS roles
  FROM changefeed.function f
  JOIN pg_catalog.pg_proc p ON p.oid = changefeed._function(f.function)::oid
 WHERE (SELECT changefeed._sees_all()) OR pg_catalog.pg_has_role(p.proowner, 'USAGE');
COMMENT ON VIEW changefeed.functions IS
    'functions that clients may call: those that you own, or all for the owner of the database and members of pg_monitor';
COMMENT ON COLUMN changefeed.functions.name IS 'what clients call it';
COMMENT ON COLUMN changefeed.functions.function IS 'the function';
COMMENT ON COLUMN changefeed.functions.arguments IS 'its arguments; clients give them by name';
COMMENT ON COLUMN changefeed.functions.result IS 'its result, which clients get as JSON';
COMMENT ON COLUMN changefeed.functions.security_definer IS 'whether it runs as its owner instead of the client''s role';
COMMENT ON COLUMN changefeed.functions.roles IS 'roles of clients that may execute it';

CREATE VIEW changefeed.revocations WITH (security_barrier = true) AS
SELECT r.role, r.claim, r.value, r.session, r.revoked_at, r.expires_at
  FROM changefeed.revocation r
 WHERE (SELECT changefeed._sees_all()) AND r.expires_at > pg_catalog.now();
COMMENT ON VIEW changefeed.revocations IS
    'tokens that are not accepted, for the owner of the database and members of pg_monitor';
COMMENT ON COLUMN changefeed.revocations.role IS 'of tokens of this role';
COMMENT ON COLUMN changefeed.revocations.claim IS 'of tokens that have this claim';
COMMENT ON COLUMN changefeed.revocations.value IS 'with this value';
COMMENT ON COLUMN changefeed.revocations.session IS 'of this connection only';
COMMENT ON COLUMN changefeed.revocations.revoked_at IS 'tokens that were issued before this time (claim iat) are refused';
COMMENT ON COLUMN changefeed.revocations.expires_at IS 'until this time; by then they have expired';

GRANT SELECT ON changefeed.sources, changefeed.events, changefeed.channels, changefeed.roles, changefeed.dependencies,
    changefeed.functions, changefeed.revocations TO PUBLIC;

-----------------------------------------------------------------------------
-- Types of what clients get, for TypeScript. All of it reads the catalogs and
-- the views above as the caller, so that it shows what these show. Strings with
-- a backslash are E'', which means the same whatever standard_conforming_strings is.
-----------------------------------------------------------------------------

CREATE FUNCTION changefeed._ts_string(value text) RETURNS text
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
    AS $$ SELECT '''' || replace(replace(substr(j, 2, length(j) - 2), E'\\"', '"'), '''', E'\\''') || ''''
            FROM CAST(to_json(value) AS text) j $$;
COMMENT ON FUNCTION changefeed._ts_string(text) IS 'internal: a string literal of TypeScript';

CREATE FUNCTION changefeed._ts_property(name text) RETURNS text
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
    AS $$ SELECT CASE WHEN name ~ '^[A-Za-z_$][A-Za-z0-9_$]*$' THEN name ELSE changefeed._ts_string(name) END $$;
COMMENT ON FUNCTION changefeed._ts_property(text) IS 'internal: the name of a member, in quotes where TypeScript needs them';

-- A line break would end the line, and "*/" the comment.
CREATE FUNCTION changefeed._ts_comment(text text, indent text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
    AS $$ SELECT CASE WHEN coalesce(text, '') ~ '^[[:space:]]*$' THEN ''
                      WHEN safe ~ E'\n' THEN indent || E'/**\n' || indent || ' * '
                          || regexp_replace(replace(safe, E'\n', E'\n' || indent || ' * '), E' +(?=\n|$)', '', 'g')
                          || E'\n' || indent || E' */\n'
                      ELSE indent || '/** ' || safe || E' */\n' END
            FROM regexp_replace(replace(btrim(text, E' \t\r\n'), '*/', E'*\\/'), E'\r\n?', E'\n', 'g') safe $$;
COMMENT ON FUNCTION changefeed._ts_comment(text, text) IS 'internal: a comment of TypeScript, or nothing';

-- Without its schema in "public"; a part with a point in quotes, so that no two
-- tables or types have the same name.
CREATE FUNCTION changefeed._ts_name(schema oid, name name) RETURNS text
    LANGUAGE sql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
    AS $$ SELECT string_agg(CASE WHEN part ~ '[."]' THEN '"' || replace(part, '"', '""') || '"' ELSE part END, '.' ORDER BY n)
            FROM pg_namespace s, LATERAL (VALUES (1, s.nspname), (2, name)) parts (n, part)
           WHERE s.oid = schema AND NOT (n = 1 AND s.nspname = 'public') $$;
COMMENT ON FUNCTION changefeed._ts_name(oid, name) IS 'internal: what a table or type is called in TypeScript';

CREATE FUNCTION changefeed._ts_not_null(type oid) RETURNS boolean
    LANGUAGE sql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
    AS $$ WITH RECURSIVE chain AS (
              SELECT t.* FROM pg_type t WHERE t.oid = type
              UNION ALL
              SELECT t.* FROM chain c JOIN pg_type t ON t.oid = c.typbasetype WHERE c.typtype = 'd')
          SELECT bool_or(typnotnull) FROM chain $$;
COMMENT ON FUNCTION changefeed._ts_not_null(oid) IS 'internal: whether a type is a domain that is NOT NULL';

CREATE FUNCTION changefeed._ts_nullable(expression text, not_null boolean) RETURNS text
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
    AS $$ SELECT expression || CASE WHEN not_null OR expression IN ('Json', 'null') THEN '' ELSE ' | null' END $$;
COMMENT ON FUNCTION changefeed._ts_nullable(text, boolean) IS 'internal: the type with null, if that may come';

-- The order of the questions is that of to_jsonb. What comes in ("input") may be
-- given as a string wherever a double would lose digits.
CREATE FUNCTION changefeed._ts_type(type oid, dimensions int, input boolean) RETURNS text
    LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    t pg_type;
    element text;
BEGIN
    SELECT * INTO STRICT t FROM pg_type WHERE oid = type;
    IF t.typtype = 'd' AND input THEN
        RETURN changefeed._ts_type(t.typbasetype, t.typndims, input);
    ELSIF t.typtype IN ('d', 'e') AND NOT changefeed._ts_cast(type) THEN
        RETURN format('Database[''types''][%s]', changefeed._ts_string(changefeed._ts_name(t.typnamespace, t.typname)));
    ELSIF t.typelem <> 0 AND t.typsubscript = 'array_subscript_handler'::regproc THEN
        element := changefeed._ts_type(t.typelem, 0, input);
        element := changefeed._ts_nullable(element, changefeed._ts_not_null(t.typelem));
        IF element ~ '[ ]' THEN
            element := format('(%s)', element);
        END IF;
        RETURN element || repeat('[]', greatest(dimensions, 1));
    ELSIF t.typtype = 'c' AND input THEN
        RETURN coalesce((SELECT format('{ %s }', string_agg(
                              changefeed._ts_property(attname)
                              || CASE WHEN changefeed._ts_not_null(atttypid) THEN ': ' ELSE '?: ' END
                              || changefeed._ts_nullable(changefeed._ts_type(atttypid, attndims, true), changefeed._ts_not_null(atttypid)),
                              '; ' ORDER BY attnum))
                           FROM pg_attribute
                          WHERE attrelid = t.typrelid AND attnum > 0 AND NOT attisdropped HAVING count(*) > 0), 'Record<string, never>');
    ELSIF t.typtype = 'c' THEN
        RETURN format('Database[''types''][%s]', changefeed._ts_string(changefeed._ts_name(t.typnamespace, t.typname)));
    ELSIF changefeed._ts_cast(type) THEN
        RETURN 'Json';
    END IF;
    RETURN CASE type
               WHEN 'bool'::regtype THEN 'boolean'
               WHEN 'int2'::regtype THEN 'number'
               WHEN 'int4'::regtype THEN 'number'
               WHEN 'int8'::regtype THEN CASE WHEN input THEN 'Int8 | string' ELSE 'Int8' END
               WHEN 'numeric'::regtype THEN CASE WHEN input THEN 'Numeric | string' ELSE 'Numeric' END
               WHEN 'float4'::regtype THEN 'Float'
               WHEN 'float8'::regtype THEN 'Float'
               WHEN 'json'::regtype THEN 'Json'
               WHEN 'jsonb'::regtype THEN 'Json'
               WHEN 'bytea'::regtype THEN CASE WHEN input THEN 'string' ELSE 'Bytea' END
               WHEN 'void'::regtype THEN 'null'
               WHEN 'record'::regtype THEN '{ [column: string]: Json }'
               ELSE 'string' END;
END $$;
COMMENT ON FUNCTION changefeed._ts_type(oid, int, boolean) IS 'internal: a type as its JSON is in TypeScript';

CREATE FUNCTION changefeed._ts_cast(type oid) RETURNS boolean
    LANGUAGE sql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
    AS $$ WITH RECURSIVE chain AS (
              SELECT t.* FROM pg_type t WHERE t.oid = type
              UNION ALL
              SELECT t.* FROM chain c JOIN pg_type t ON t.oid = c.typbasetype WHERE c.typtype = 'd')
          SELECT EXISTS (SELECT FROM chain t JOIN pg_cast c ON c.castsource = t.oid
                          WHERE t.typtype NOT IN ('d', 'c')
                            -- FirstNormalObjectId
                            AND t.oid >= 16384
                            AND NOT (t.typelem <> 0 AND t.typsubscript = 'array_subscript_handler'::regproc)
                            AND c.casttarget = 'json'::regtype AND c.castfunc <> 0) $$;
COMMENT ON FUNCTION changefeed._ts_cast(oid) IS 'internal: whether a cast makes the JSON of a type''s values';

-- The columns of a table or composite type, as members. That a column of a table
-- is NOT NULL does not hold for values of its row type elsewhere.
CREATE FUNCTION changefeed._ts_columns(relation oid, columns name[], constraints boolean, indent text) RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
    AS $$ SELECT string_agg(
              changefeed._ts_comment(col_description(attrelid, attnum), indent) || indent || changefeed._ts_property(attname) || ': '
              || changefeed._ts_nullable(changefeed._ts_type(atttypid, attndims, false),
                     changefeed._ts_not_null(atttypid)
                     OR constraints AND attnotnull AND NOT EXISTS (
                            SELECT FROM pg_constraint
                             WHERE conrelid = attrelid AND contype = 'n' AND attnum = ANY (conkey) AND NOT convalidated))
              || E';\n', '' ORDER BY attnum)
            FROM pg_attribute
           WHERE attrelid = relation AND attnum > 0 AND NOT attisdropped AND (columns IS NULL OR attname = ANY (columns)) $$;
COMMENT ON FUNCTION changefeed._ts_columns(oid, name[], boolean, text) IS 'internal: the members of a row';

-- Expressions name what their owner could see. Whoever does not, or comes when a
-- column is gone, is told what is known without.
CREATE FUNCTION changefeed._ts_filter(source regclass, filter text) RETURNS name[]
    LANGUAGE C STABLE STRICT SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'changefeed_filter_columns';
COMMENT ON FUNCTION changefeed._ts_filter(regclass, text) IS 'internal: the columns that a filter reads';

CREATE FUNCTION changefeed._ts_filter_columns(source regclass, filter text) RETURNS name[]
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    RETURN coalesce(changefeed._ts_filter(source, filter), '{}');
EXCEPTION WHEN OTHERS THEN
    RETURN '{}';
END $$;
COMMENT ON FUNCTION changefeed._ts_filter_columns(regclass, text) IS 'internal: the same, or none';

CREATE FUNCTION changefeed._ts_payload(source regclass, payload text) RETURNS text
    LANGUAGE C STABLE STRICT SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'changefeed_payload_shape';
COMMENT ON FUNCTION changefeed._ts_payload(regclass, text) IS 'internal: what the payload of an event is like';

CREATE FUNCTION changefeed._ts_payload_shape(source regclass, payload text) RETURNS jsonb
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    RETURN changefeed._ts_payload(source, payload);
EXCEPTION WHEN OTHERS THEN
    RETURN jsonb_build_object('type', 'jsonb'::regtype::oid::int8, 'dimensions', 0);
END $$;
COMMENT ON FUNCTION changefeed._ts_payload_shape(regclass, text) IS 'internal: the same, or any JSON';

-- Without an old or a new row all its columns are null.
CREATE FUNCTION changefeed._ts_shape(shape jsonb, relation oid, changes text[]) RETURNS text
    LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    parts text;
BEGIN
    IF shape ? 'null' THEN
        RETURN 'null';
    ELSIF shape ? 'string' THEN
        RETURN changefeed._ts_string(shape->>'string');
    ELSIF shape ? 'object' THEN
        -- Of two members with one name the last one counts.
        SELECT string_agg(format('%s: %s', changefeed._ts_property(name), changefeed._ts_shape(value, relation, changes)), '; ' ORDER BY n)
          INTO parts
          FROM (SELECT member->>0, member->1, n, row_number() OVER (PARTITION BY member->>0 ORDER BY n DESC)
                  FROM jsonb_array_elements(shape->'object') WITH ORDINALITY u (member, n)) u (name, value, n, k)
         WHERE k = 1;
        RETURN CASE WHEN parts IS NULL THEN 'Record<string, never>' ELSE format('{ %s }', parts) END;
    ELSIF shape ? 'array' THEN
        SELECT string_agg(changefeed._ts_shape(member, relation, changes), ', ' ORDER BY n)
          INTO parts FROM jsonb_array_elements(shape->'array') WITH ORDINALITY u (member, n);
        RETURN format('[%s]', parts);
    END IF;
    RETURN changefeed._ts_nullable(
        changefeed._ts_type((shape->>'type')::oid, (shape->>'dimensions')::int, false),
        shape ? 'known' OR EXISTS (
            SELECT FROM pg_attribute a
             WHERE a.attrelid = relation AND a.attnotnull
               AND a.attname = CASE WHEN shape ? 'new' AND 'delete' <> ALL (changes) THEN shape->>'new'
                                    WHEN shape ? 'old' AND 'insert' <> ALL (changes) THEN shape->>'old' END
               AND NOT EXISTS (SELECT FROM pg_constraint
                                WHERE conrelid = attrelid AND contype = 'n' AND attnum = ANY (conkey) AND NOT convalidated)));
END $$;
COMMENT ON FUNCTION changefeed._ts_shape(jsonb, oid, text[]) IS 'internal: the payload of an event in TypeScript';

-- "optional" are columns that some role gets the table without.
CREATE FUNCTION changefeed._ts_sources(role regrole)
    RETURNS TABLE (channel text, relation oid, entity name, key name[], columns name[], optional name[])
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$ WITH source AS (
              SELECT s.channel, s.source, s.entity, s.key, s.columns,
                     ARRAY(SELECT r.role
                             FROM changefeed.roles r
                            WHERE (_ts_sources.role IS NULL OR r.role = _ts_sources.role)
                              AND has_schema_privilege(r.role, t.relnamespace, 'USAGE')
                              AND NOT EXISTS (
                                      SELECT FROM pg_attribute a
                                       WHERE a.attrelid = t.oid AND a.attname = ANY (s.needed)
                                         AND NOT has_column_privilege(r.role, t.oid, a.attnum, 'SELECT'))) AS readers
                FROM (SELECT s.*, s.key || changefeed._parameters(s.channel)::name[]
                                        || changefeed._ts_filter_columns(s.source, s.filter) AS needed
                        FROM changefeed.sources s) s
                JOIN pg_class t ON t.oid = s.source::oid)
          SELECT s.channel, s.source::oid, s.entity, s.key,
                 array_agg(a.attname ORDER BY a.attnum),
                 coalesce(array_agg(a.attname ORDER BY a.attnum) FILTER (WHERE lacking), '{}')
            FROM source s
            JOIN pg_attribute a ON a.attrelid = s.source::oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> 'v'
                               AND (s.columns IS NULL OR a.attname = ANY (s.columns)),
                 LATERAL (SELECT EXISTS (SELECT FROM unnest(s.readers) reader
                                          WHERE NOT has_column_privilege(reader, a.attrelid, a.attnum, 'SELECT'))) _ (lacking)
           WHERE _ts_sources.role IS NULL OR s.readers <> '{}' AND NOT lacking
           GROUP BY s.channel, s.source, s.entity, s.key $$;
COMMENT ON FUNCTION changefeed._ts_sources(regrole) IS 'internal: sources with the columns that clients of a role, or of any, get';

-- "returned" is the table, view or the like whose whole rows a function returns.
CREATE FUNCTION changefeed._ts_functions(role regrole)
    RETURNS TABLE (name text, function oid, arguments oid[], names text[], defaults int, result oid, is_set boolean,
                   out_names text[], out_types oid[], returned oid)
    LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
    AS $$ SELECT f.name, p.oid, a.types, a.names, p.pronargdefaults, p.prorettype, p.proretset, o.names, o.types,
                 (SELECT c.oid FROM pg_type t JOIN pg_class c ON c.oid = t.typrelid WHERE t.oid = p.prorettype AND c.relkind <> 'c')
            FROM changefeed.functions f
            JOIN pg_proc p ON p.oid = f.function::oid,
                 LATERAL (SELECT coalesce(array_agg(type ORDER BY n) FILTER (WHERE coalesce(mode, 'i') IN ('i', 'b', 'v')), '{}'),
                                 coalesce(array_agg(arg ORDER BY n) FILTER (WHERE coalesce(mode, 'i') IN ('i', 'b', 'v')), '{}')
                            FROM unnest(coalesce(p.proallargtypes, p.proargtypes::oid[]), p.proargmodes, p.proargnames)
                                 WITH ORDINALITY u (type, mode, arg, n) WHERE type IS NOT NULL) a (types, names),
                 LATERAL (SELECT array_agg(type ORDER BY n), array_agg(coalesce(nullif(arg, ''), 'column' || k) ORDER BY n)
                            FROM (SELECT u.*, row_number() OVER (ORDER BY n) k
                                    FROM unnest(p.proallargtypes, p.proargmodes, p.proargnames) WITH ORDINALITY u (type, mode, arg, n)
                                   WHERE mode IN ('o', 'b', 't')) u) o (types, names)
           WHERE _ts_functions.role IS NULL
              OR has_function_privilege(_ts_functions.role, p.oid, 'EXECUTE')
                 AND has_schema_privilege(_ts_functions.role, p.pronamespace, 'USAGE') $$;
COMMENT ON FUNCTION changefeed._ts_functions(regrole) IS 'internal: functions that clients of a role, or of any, may call';

CREATE FUNCTION changefeed._ts_pick(relation oid, columns name[]) RETURNS text
    LANGUAGE sql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
    AS $$ SELECT format('Pick<Database[''tables''][%s], %s>', changefeed._ts_string(changefeed._ts_name(c.relnamespace, c.relname)),
                        (SELECT string_agg(changefeed._ts_string(name), ' | ' ORDER BY n) FROM unnest(columns) WITH ORDINALITY u (name, n)))
            FROM pg_class c WHERE c.oid = relation $$;
COMMENT ON FUNCTION changefeed._ts_pick(oid, name[]) IS 'internal: some columns of a table';

CREATE FUNCTION changefeed._ts_row(relation oid, all_columns name[], columns name[], optional name[]) RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
    AS $$ SELECT CASE WHEN optional = '{}' AND columns = all_columns
                      THEN format('Database[''tables''][%s]', changefeed._ts_string(changefeed._ts_name(c.relnamespace, c.relname)))
                      ELSE changefeed._ts_pick(relation, ARRAY(SELECT name FROM unnest(columns) WITH ORDINALITY u (name, n) WHERE name <> ALL (optional) ORDER BY n))
                          || CASE WHEN optional = '{}' THEN '' ELSE format(' & Partial<%s>', changefeed._ts_pick(relation, optional)) END END
            FROM pg_class c WHERE c.oid = relation $$;
COMMENT ON FUNCTION changefeed._ts_row(oid, name[], name[], name[]) IS 'internal: what a source sends of its table';

-- The name of a channel: what may stand in place of each parameter.
CREATE FUNCTION changefeed._ts_channel(name text, relation oid, lossless boolean) RETURNS text
    LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    result text := '`';
    literals text[] := regexp_split_to_array(name, '[{][^{}]+[}]');
    parameters text[] := changefeed._parameters(name);
    type oid;
    labels text[];
    -- All names of a channel with several parameters are compared, so they must not be too many.
    names int := 1;
BEGIN
    IF parameters = '{}' THEN
        RETURN changefeed._ts_string(name);
    END IF;
    FOR i IN 1 .. cardinality(literals) LOOP
        result := result || replace(replace(literals[i], E'\\', E'\\\\'), '`', E'\\`');
        CONTINUE WHEN i > cardinality(parameters);
        SELECT coalesce((WITH RECURSIVE chain AS (
                             SELECT t.oid, t.typtype, t.typbasetype FROM pg_type t WHERE t.oid = a.atttypid
                             UNION ALL
                             SELECT t.oid, t.typtype, t.typbasetype FROM chain c JOIN pg_type t ON t.oid = c.typbasetype WHERE c.typtype = 'd')
                         SELECT c.oid FROM chain c WHERE c.typtype <> 'd'), 0)
          INTO type
          FROM pg_attribute a WHERE a.attrelid = relation AND a.attname = parameters[i];
        -- A label that would have to be encoded is no string that a program has at hand.
        labels := CASE WHEN type = 'bool'::regtype THEN '{t,f}'::text[]
                       ELSE ARRAY(SELECT enumlabel FROM pg_enum WHERE enumtypid = type ORDER BY enumsortorder) END;
        IF cardinality(labels) * names > 1000 OR EXISTS (SELECT FROM unnest(labels) label WHERE label !~ '^[A-Za-z0-9_.~!()-]+$') THEN
            labels := '{}';
        END IF;
        names := names * (cardinality(labels) + 1);
        result := result || CASE
            WHEN labels <> '{}' THEN '${' || (SELECT string_agg(changefeed._ts_string(label), ' | ' ORDER BY n)
                                                FROM unnest(labels) WITH ORDINALITY u (label, n)) || ' | ''*''}'
            WHEN type IN ('int2'::regtype, 'int4'::regtype) OR type = 'int8'::regtype AND NOT lossless THEN '${number | ''*''}'
            WHEN type = 'int8'::regtype THEN '${number | bigint | ''*''}'
            ELSE '${string}' END;
    END LOOP;
    RETURN result || '`';
END $$;
COMMENT ON FUNCTION changefeed._ts_channel(text, oid, boolean) IS 'internal: the type of the names of a channel';

CREATE FUNCTION changefeed.typescript_types(role regrole DEFAULT NULL, numbers text DEFAULT 'double') RETURNS text
    LANGUAGE plpgsql STABLE
    -- Compiling queries takes longer than running them.
    SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off SET intervalstyle = postgres SET jit = off
    AS $$
DECLARE
    sources jsonb;
    functions jsonb;
    tables jsonb;
    payloads jsonb;
    result text;
    part text;
    r record;
BEGIN
    IF numbers IS NULL OR numbers NOT IN ('double', 'finite', 'lossless') THEN
        RAISE EXCEPTION 'unknown kind of numbers "%"', numbers USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Use "double", "finite" or "lossless".';
    END IF;
    IF role IS NOT NULL AND NOT EXISTS (SELECT FROM changefeed.roles a WHERE a.role = typescript_types.role) THEN
        RAISE EXCEPTION 'clients cannot have role %', role USING ERRCODE = 'undefined_object',
            HINT = 'The view changefeed.roles lists those that were admitted with changefeed.allow_role.';
    END IF;

    result := format(E'// Made by SELECT changefeed.typescript_types(%s). Do not edit: make it again.\n/* eslint-disable */\n\n',
        concat_ws(', ', 'role => ' || quote_literal(regexp_replace(role::text, '[[:cntrl:]]', '?', 'g')),
                  CASE WHEN numbers <> 'double' THEN 'numbers => ' || quote_literal(numbers) END));
    result := result || CASE numbers
        WHEN 'lossless' THEN
            E'/** A whole number: a bigint beyond 2^53. */\nexport type Int8 = number | bigint;\n'
            || E'/** A string where a double would not have the same digits, and for NaN and the infinities. */\n'
            || E'export type Numeric = number | bigint | string;\n'
            || E'/** As Numeric: what a float holds is not always written as JavaScript writes it. */\nexport type Float = number | bigint | string;\n'
            || E'export type Json = string | number | bigint | boolean | null | Json[] | { [name: string]: Json };\n'
        WHEN 'finite' THEN
            E'/** Digits beyond 2^53 are lost. */\nexport type Int8 = number;\n'
            || E'/** Digits that a double does not hold are lost. NaN and the infinities would come as strings. */\nexport type Numeric = number;\n'
            || E'/** NaN and the infinities would come as strings. */\nexport type Float = number;\n'
            || E'export type Json = string | number | boolean | null | Json[] | { [name: string]: Json };\n'
        ELSE
            E'/** Digits beyond 2^53 are lost. */\nexport type Int8 = number;\n'
            || E'/** Digits that a double does not hold are lost. */\nexport type Numeric = number | ''NaN'' | ''Infinity'' | ''-Infinity'';\n'
            || E'export type Float = number | ''NaN'' | ''Infinity'' | ''-Infinity'';\n'
            || E'export type Json = string | number | boolean | null | Json[] | { [name: string]: Json };\n' END
        || E'/** In hexadecimal digits. */\nexport type Bytea = `\\\\x${string}`;\n\nexport interface Database {\n';

    -- What is looked at often, once.
    SELECT coalesce(jsonb_agg(to_jsonb(s)), '[]') INTO sources FROM changefeed._ts_sources(role) s;
    SELECT coalesce(jsonb_agg(to_jsonb(f)), '[]') INTO functions FROM changefeed._ts_functions(role) f;
    SELECT coalesce(jsonb_agg(jsonb_build_object('channel', e.channel, 'event', e.event, 'relation', s.relation, 'changes', e.on_change,
                                                 'shape', changefeed._ts_payload_shape(e.source, e.payload))), '[]')
      INTO payloads
      FROM changefeed.events e
      JOIN jsonb_to_recordset(sources) s (channel text, relation oid) ON s.channel = e.channel AND s.relation = e.source::oid
     WHERE e.payload IS NOT NULL;

    -- Of a table the columns that any channel sends; all where functions return whole rows.
    SELECT coalesce(jsonb_agg(to_jsonb(t)), '[]')
      INTO tables
      FROM (SELECT a.attrelid AS relation, array_agg(a.attname ORDER BY a.attnum) AS columns
              FROM (SELECT s.relation, unnest(s.columns)
                      FROM jsonb_to_recordset(sources) s (relation oid, columns name[])
                    UNION
                    SELECT a.attrelid, a.attname
                      FROM jsonb_to_recordset(functions) f (returned oid)
                      JOIN pg_attribute a ON a.attrelid = f.returned AND a.attnum > 0 AND NOT a.attisdropped) u (relation, name)
              JOIN pg_attribute a ON a.attrelid = u.relation AND a.attname = u.name
             GROUP BY a.attrelid) t;

    part := NULL;
    FOR r IN
        SELECT c.oid, changefeed._ts_name(c.relnamespace, c.relname) AS name, obj_description(c.oid, 'pg_class') AS comment, t.columns
          FROM jsonb_to_recordset(tables) t (relation oid, columns name[])
          JOIN pg_class c ON c.oid = t.relation
         ORDER BY changefeed._ts_name(c.relnamespace, c.relname) COLLATE "C"
    LOOP
        part := concat(part, changefeed._ts_comment(r.comment, '    '), '    ', changefeed._ts_property(r.name), E': {\n',
                       changefeed._ts_columns(r.oid, r.columns, true, '      '), E'    };\n');
    END LOOP;
    result := result || coalesce(E'  tables: {\n' || part || E'  };\n', E'  tables: {};\n');

    -- Types that these, or functions, have.
    part := NULL;
    FOR r IN
        WITH RECURSIVE used (type, input) AS (
            SELECT a.atttypid, false FROM jsonb_to_recordset(tables) t (relation oid, columns name[])
              JOIN pg_attribute a ON a.attrelid = t.relation AND a.attname = ANY (t.columns)
            UNION
            SELECT f.result, false FROM jsonb_to_recordset(functions) f (result oid, returned oid) WHERE f.returned IS NULL
            UNION
            SELECT unnest(f.out_types), false FROM jsonb_to_recordset(functions) f (out_types oid[])
            UNION
            SELECT unnest(f.arguments), true FROM jsonb_to_recordset(functions) f (arguments oid[])
            UNION
            SELECT (type #>> '{}')::oid, false FROM jsonb_path_query(payloads, 'strict $.**.type') type
            UNION
            SELECT next.type, u.input
              FROM used u
              JOIN pg_type t ON t.oid = u.type,
                   LATERAL (SELECT t.typbasetype WHERE t.typtype = 'd'
                            UNION ALL SELECT t.typelem WHERE t.typelem <> 0 AND t.typsubscript = 'array_subscript_handler'::regproc
                            UNION ALL SELECT a.atttypid FROM pg_attribute a
                                       WHERE a.attrelid = t.typrelid AND t.typtype = 'c' AND a.attnum > 0 AND NOT a.attisdropped) next (type)
             WHERE NOT changefeed._ts_cast(u.type)),
        -- Only these are asked for casts, not all types that there are.
        named AS MATERIALIZED (
            SELECT t.*
              FROM (SELECT type, bool_and(input) AS input FROM used GROUP BY type) u
              JOIN pg_type t ON t.oid = u.type
             WHERE t.typtype = 'e' OR t.typtype IN ('d', 'c') AND NOT u.input)
        SELECT t.*, changefeed._ts_name(t.typnamespace, t.typname) AS name,
               coalesce(obj_description(t.oid, 'pg_type'), obj_description(t.typrelid, 'pg_class')) AS comment
          FROM named t
         WHERE NOT changefeed._ts_cast(t.oid)
         ORDER BY changefeed._ts_name(t.typnamespace, t.typname) COLLATE "C"
    LOOP
        part := concat(part, changefeed._ts_comment(r.comment, '    '), '    ', changefeed._ts_property(r.name), ': ',
            CASE r.typtype
                WHEN 'e' THEN coalesce((SELECT string_agg(changefeed._ts_string(enumlabel), ' | ' ORDER BY enumsortorder)
                                          FROM pg_enum WHERE enumtypid = r.oid), 'never')
                WHEN 'd' THEN changefeed._ts_type(r.typbasetype, r.typndims, false)
                ELSE coalesce(E'{\n' || changefeed._ts_columns(r.typrelid, NULL, false, '      ') || '    }', 'Record<string, never>') END,
            E';\n');
    END LOOP;
    result := result || coalesce(E'  types: {\n' || part || E'  };\n', E'  types: {};\n');

    part := NULL;
    FOR r IN
        WITH source AS (
            SELECT s.channel, s.relation, s.entity, changefeed._ts_row(s.relation, t.columns, s.columns, s.optional) AS row,
                   changefeed._ts_pick(s.relation, s.key) AS key
              FROM jsonb_to_recordset(sources) s (channel text, relation oid, entity name, key name[], columns name[], optional name[])
              JOIN jsonb_to_recordset(tables) t (relation oid, columns name[]) ON t.relation = s.relation),
        entities AS (
            SELECT s.channel, count(*) AS n,
                   string_agg(concat(changefeed._ts_comment(obj_description(s.relation, 'pg_class'), '        '), '        ',
                                     changefeed._ts_property(s.entity), ': { Row: ', s.row, '; Key: ', s.key, E' };\n'), ''
                              ORDER BY s.entity COLLATE "C") AS members
              FROM source s
             GROUP BY s.channel),
        event AS (
            SELECT e.channel, e.event,
                   string_agg(DISTINCT CASE WHEN e.payload IS NULL THEN s.key ELSE changefeed._ts_shape(p.shape, p.relation, p.changes) END, ' | ') AS payload
              FROM changefeed.events e
              JOIN source s ON s.channel = e.channel AND s.relation = e.source::oid
              LEFT JOIN jsonb_to_recordset(payloads) p (channel text, event text, relation oid, changes text[], shape jsonb)
                     ON p.channel = e.channel AND p.event = e.event AND p.relation = s.relation
             GROUP BY e.channel, e.event),
        events AS (
            SELECT channel, string_agg(format(E'        %s: %s;\n', changefeed._ts_property(event), payload), '' ORDER BY event COLLATE "C") AS members
              FROM event
             GROUP BY channel)
        SELECT c.name, c.presence, c.publish_check IS NOT NULL AS published, c.min_interval,
               changefeed._ts_channel(c.name, (SELECT s.source FROM changefeed.sources s WHERE s.channel = c.name
                                                ORDER BY s.entity COLLATE "C" LIMIT 1), numbers = 'lossless') AS type,
               entities.members AS entities, events.members AS events
          FROM changefeed.channels c
          LEFT JOIN entities ON entities.channel = c.name
          LEFT JOIN events ON events.channel = c.name
         WHERE role IS NULL OR c.sources = coalesce(entities.n, 0)
         ORDER BY c.name COLLATE "C"
    LOOP
        part := concat(part,
            changefeed._ts_comment(concat_ws(' ',
                CASE WHEN r.published THEN 'Clients may publish messages.' END,
                CASE WHEN (r.presence->>'count_only')::boolean THEN 'Its members are counted.'
                     WHEN r.presence IS NOT NULL THEN 'It has presence.' END,
                'At most one frame in ' || r.min_interval || '.'), '    '),
            '    ', changefeed._ts_property(r.name), E': {\n      name: ', r.type, E';\n',
            coalesce(E'      entities: {\n' || r.entities || E'      };\n', E'      entities: {};\n'),
            E'      events: {\n', r.events, E'        [event: string]: unknown;\n      };\n      presence: ',
            CASE WHEN r.presence IS NULL THEN 'never' ELSE 'unknown' END, E';\n    };\n');
    END LOOP;
    result := result || coalesce(E'  channels: {\n' || part || E'  };\n', E'  channels: {};\n');

    part := NULL;
    FOR r IN
        SELECT f.name, obj_description(f.function, 'pg_proc') AS comment, f.is_set,
               (SELECT format('{ %s }', string_agg(
                           changefeed._ts_property(names[i])
                           || CASE WHEN i > cardinality(arguments) - defaults THEN '?: ' ELSE ': ' END
                           || changefeed._ts_nullable(changefeed._ts_type(arguments[i], 0, true), changefeed._ts_not_null(arguments[i])),
                           '; ' ORDER BY i))
                  FROM generate_series(1, cardinality(arguments)) i HAVING count(*) > 0) AS args,
               f.returned IS NOT NULL OR f.result = 'record'::regtype AS is_row,
               CASE WHEN f.returned IS NOT NULL
                    THEN format('Database[''tables''][%s]', (SELECT changefeed._ts_string(changefeed._ts_name(relnamespace, relname))
                                                               FROM pg_class WHERE oid = f.returned))
                    WHEN f.result = 'record'::regtype AND f.out_types IS NOT NULL
                    THEN (SELECT format('{ %s }', string_agg(
                                    changefeed._ts_property(out_names[i]) || ': '
                                    || changefeed._ts_nullable(changefeed._ts_type(out_types[i], 0, false), changefeed._ts_not_null(out_types[i])),
                                    '; ' ORDER BY i))
                            FROM generate_series(1, cardinality(out_types)) i)
                    ELSE changefeed._ts_type(f.result, 0, false) END AS type,
               changefeed._ts_not_null(f.result) AS not_null
          FROM jsonb_to_recordset(functions) f (name text, function oid, arguments oid[], names text[], defaults int, result oid, is_set boolean,
                                                out_names text[], out_types oid[], returned oid)
         ORDER BY f.name COLLATE "C"
    LOOP
        part := concat(part, changefeed._ts_comment(r.comment, '    '), '    ', changefeed._ts_property(r.name),
            E': {\n      Args: ', coalesce(r.args, 'Record<string, never>'), E';\n      Result: ',
            CASE WHEN NOT r.is_set THEN changefeed._ts_nullable(r.type, r.not_null)
                 ELSE format('Array<%s>', changefeed._ts_nullable(r.type, r.not_null OR r.is_row)) END, E';\n    };\n');
    END LOOP;
    RETURN result || coalesce(E'  functions: {\n' || part || E'  };\n', E'  functions: {};\n') || '}';
END $$;
COMMENT ON FUNCTION changefeed.typescript_types(regrole, text) IS
    'TypeScript types of the rows, channels and functions that the views of this schema show you; those of one role of clients, or of all; with numbers as JSON.parse makes them (''double''), the same without NaN and infinities (''finite''), or as the lossless codec of the JavaScript client does (''lossless'')';

CREATE FUNCTION changefeed._stat_feed(
    OUT state text,
    OUT generation bigint,
    OUT epoch text,
    OUT slot_name text,
    OUT decoder_pid int,
    OUT feed_worker_pid int,
    OUT gateway_pid int,
    OUT port int,
    OUT decoded_lsn pg_lsn,
    OUT published_lsn pg_lsn,
    OUT confirm_lsn pg_lsn,
    OUT connections bigint,
    OUT subscriptions bigint,
    OUT transactions bigint,
    OUT changes bigint,
    OUT bytes bigint,
    OUT frames bigint,
    OUT resyncs bigint,
    OUT denials bigint,
    OUT evaluations bigint,
    OUT log_bytes bigint,
    OUT gateway_starts bigint,
    OUT wal_held_bytes bigint,
    OUT messages bigint,
    OUT messages_refused bigint,
    OUT event_errors bigint,
    OUT paused_since timestamptz,
    OUT slot_losses bigint
) RETURNS record
    LANGUAGE C VOLATILE PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'changefeed_stat_feed';
REVOKE ALL ON FUNCTION changefeed._stat_feed() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION changefeed._stat_feed() TO pg_read_all_stats, pg_database_owner;
COMMENT ON FUNCTION changefeed._stat_feed() IS 'internal: the row of the view changefeed.stat_feed';

CREATE VIEW changefeed.stat_feed AS
SELECT * FROM changefeed._stat_feed();
GRANT SELECT ON changefeed.stat_feed TO pg_read_all_stats, pg_database_owner;
COMMENT ON VIEW changefeed.stat_feed IS 'the feed of this database, one row';
COMMENT ON COLUMN changefeed.stat_feed.state IS 'running, paused, starting, stopping, off, not preloaded, or version mismatch';
COMMENT ON COLUMN changefeed.stat_feed.generation IS 'number of starts of decoder and feed worker since the server started';
COMMENT ON COLUMN changefeed.stat_feed.epoch IS 'a new epoch means that all clients start from a snapshot';
COMMENT ON COLUMN changefeed.stat_feed.slot_name IS 'the replication slot, in pg_replication_slots';
COMMENT ON COLUMN changefeed.stat_feed.decoder_pid IS 'process of the decoder';
COMMENT ON COLUMN changefeed.stat_feed.feed_worker_pid IS 'process of the feed worker';
COMMENT ON COLUMN changefeed.stat_feed.gateway_pid IS 'process of the gateway';
COMMENT ON COLUMN changefeed.stat_feed.port IS 'where clients connect; null while nobody listens';
COMMENT ON COLUMN changefeed.stat_feed.decoded_lsn IS 'the WAL has been decoded up to here';
COMMENT ON COLUMN changefeed.stat_feed.published_lsn IS 'the last transaction that was sent to clients';
COMMENT ON COLUMN changefeed.stat_feed.confirm_lsn IS 'the oldest transaction that clients may still ask for';
COMMENT ON COLUMN changefeed.stat_feed.connections IS 'clients connected now';
COMMENT ON COLUMN changefeed.stat_feed.subscriptions IS 'subscriptions now';
COMMENT ON COLUMN changefeed.stat_feed.transactions IS 'transactions decoded';
COMMENT ON COLUMN changefeed.stat_feed.changes IS 'changes of rows decoded';
COMMENT ON COLUMN changefeed.stat_feed.bytes IS 'bytes that the decoder passed on';
COMMENT ON COLUMN changefeed.stat_feed.frames IS 'transactions sent to the gateway';
COMMENT ON COLUMN changefeed.stat_feed.resyncs IS 'subscriptions that had to start again from a snapshot';
COMMENT ON COLUMN changefeed.stat_feed.denials IS 'tokens and requests that were refused for lack of a right';
COMMENT ON COLUMN changefeed.stat_feed.evaluations IS 'evaluations of clients'' conditions on a row';
COMMENT ON COLUMN changefeed.stat_feed.log_bytes IS 'size of the log that clients resume from';
COMMENT ON COLUMN changefeed.stat_feed.gateway_starts IS 'starts of a gateway';
COMMENT ON COLUMN changefeed.stat_feed.wal_held_bytes IS 'WAL that is kept because of the slot';
COMMENT ON COLUMN changefeed.stat_feed.messages IS 'messages published by clients or by changefeed.publish';
COMMENT ON COLUMN changefeed.stat_feed.messages_refused IS 'messages in the WAL that were damaged or not written by changefeed.publish';
COMMENT ON COLUMN changefeed.stat_feed.event_errors IS 'events that were not sent because their condition or payload could not be evaluated';
COMMENT ON COLUMN changefeed.stat_feed.paused_since IS 'when changefeed.pause was called; null: it is not paused';
COMMENT ON COLUMN changefeed.stat_feed.slot_losses IS 'how often the slot was given up or invalidated because of the WAL that it kept';

-- What follows asks the feed worker, and fails while there is none.
CREATE FUNCTION changefeed._stat_connections(
    OUT id bigint,
    OUT session text,
    OUT gateway int,
    OUT transport text,
    OUT address text,
    OUT role text,
    OUT subject text,
    OUT connected_since timestamptz,
    OUT expires_at timestamptz,
    OUT state text,
    OUT subscriptions int,
    OUT ready int,
    OUT lag bigint,
    OUT queued_bytes bigint,
    OUT sent_frames bigint,
    OUT sent_bytes bigint,
    OUT heard_at timestamptz
) RETURNS SETOF record
    LANGUAGE C VOLATILE PARALLEL RESTRICTED
    AS 'MODULE_PATHNAME', 'changefeed_stat_connections';
REVOKE ALL ON FUNCTION changefeed._stat_connections() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION changefeed._stat_connections() TO pg_read_all_stats, pg_database_owner;
COMMENT ON FUNCTION changefeed._stat_connections() IS 'internal: rows of the view changefeed.stat_connections';

CREATE VIEW changefeed.stat_connections AS
SELECT *
  FROM changefeed._stat_connections();
GRANT SELECT ON changefeed.stat_connections TO pg_read_all_stats, pg_database_owner;
COMMENT ON VIEW changefeed.stat_connections IS 'the clients that are connected, one row each';
COMMENT ON COLUMN changefeed.stat_connections.id IS 'number of the connection, not used again until the feed worker ends';
COMMENT ON COLUMN changefeed.stat_connections.session IS 'what the client was told in `connected`; changefeed.revoke takes it';
COMMENT ON COLUMN changefeed.stat_connections.gateway IS 'number of its gateway, from 0';
COMMENT ON COLUMN changefeed.stat_connections.transport IS 'websocket, sse, poll or other';
COMMENT ON COLUMN changefeed.stat_connections.address IS 'address that it comes from';
COMMENT ON COLUMN changefeed.stat_connections.role IS 'role of its token; null before it has said who it is';
COMMENT ON COLUMN changefeed.stat_connections.subject IS 'claim `sub` of its token';
COMMENT ON COLUMN changefeed.stat_connections.connected_since IS 'when it was opened';
COMMENT ON COLUMN changefeed.stat_connections.expires_at IS 'when its token expires; null: never';
COMMENT ON COLUMN changefeed.stat_connections.state IS 'connecting, live, behind (it gets what it missed), choked (it does not read as fast as it is sent), or closing';
COMMENT ON COLUMN changefeed.stat_connections.subscriptions IS 'how many it has';
COMMENT ON COLUMN changefeed.stat_connections.ready IS 'how many of these are ready';
COMMENT ON COLUMN changefeed.stat_connections.lag IS 'transactions that it has not been sent';
COMMENT ON COLUMN changefeed.stat_connections.queued_bytes IS 'bytes that wait for it to read; with the next three null when its gateway does not answer';
COMMENT ON COLUMN changefeed.stat_connections.sent_frames IS 'messages written to it';
COMMENT ON COLUMN changefeed.stat_connections.sent_bytes IS 'bytes of these';
COMMENT ON COLUMN changefeed.stat_connections.heard_at IS 'when it last sent something, be it the answer to a ping';

CREATE FUNCTION changefeed._stat_subscriptions(
    OUT connection bigint,
    OUT channel text,
    OUT name text,
    OUT state text,
    OUT subscribed_since timestamptz,
    OUT recovered boolean,
    OUT snapshot_rows bigint,
    OUT lag bigint,
    OUT resyncs bigint,
    OUT resync_reason text
) RETURNS SETOF record
    LANGUAGE C VOLATILE PARALLEL RESTRICTED
    AS 'MODULE_PATHNAME', 'changefeed_stat_subscriptions';
REVOKE ALL ON FUNCTION changefeed._stat_subscriptions() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION changefeed._stat_subscriptions() TO pg_read_all_stats, pg_database_owner;
COMMENT ON FUNCTION changefeed._stat_subscriptions() IS 'internal: rows of the view changefeed.stat_subscriptions';

CREATE VIEW changefeed.stat_subscriptions AS
SELECT connection, channel, name::jsonb #>> '{}' AS name, state, subscribed_since, recovered,
       snapshot_rows, lag, resyncs, resync_reason
  FROM changefeed._stat_subscriptions();
GRANT SELECT ON changefeed.stat_subscriptions TO pg_read_all_stats, pg_database_owner;
COMMENT ON VIEW changefeed.stat_subscriptions IS 'the subscriptions of all clients, one row each';
COMMENT ON COLUMN changefeed.stat_subscriptions.connection IS 'id in changefeed.stat_connections';
COMMENT ON COLUMN changefeed.stat_subscriptions.channel IS 'name of the channels definition';
COMMENT ON COLUMN changefeed.stat_subscriptions.name IS 'what the client subscribed to';
COMMENT ON COLUMN changefeed.stat_subscriptions.state IS 'querying, loading (the snapshot), catching_up or ready';
COMMENT ON COLUMN changefeed.stat_subscriptions.subscribed_since IS 'when the client asked for it';
COMMENT ON COLUMN changefeed.stat_subscriptions.recovered IS 'it went on from a position, without a snapshot';
COMMENT ON COLUMN changefeed.stat_subscriptions.snapshot_rows IS 'rows of the last snapshot';
COMMENT ON COLUMN changefeed.stat_subscriptions.lag IS 'transactions that it has not been sent; null before it is catching up';
COMMENT ON COLUMN changefeed.stat_subscriptions.resyncs IS 'how often it had to start again from a snapshot';
COMMENT ON COLUMN changefeed.stat_subscriptions.resync_reason IS 'why the last time';

CREATE FUNCTION changefeed._stat_channels(
    OUT channel text,
    OUT instances bigint,
    OUT subscriptions bigint,
    OUT querying bigint,
    OUT loading bigint,
    OUT catching_up bigint,
    OUT ready bigint,
    OUT operations bigint,
    OUT bytes bigint,
    OUT snapshots bigint,
    OUT snapshot_rows bigint,
    OUT denials bigint,
    OUT resyncs bigint,
    OUT resync_reasons text
) RETURNS SETOF record
    LANGUAGE C VOLATILE PARALLEL RESTRICTED
    AS 'MODULE_PATHNAME', 'changefeed_stat_channels';
REVOKE ALL ON FUNCTION changefeed._stat_channels() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION changefeed._stat_channels() TO pg_read_all_stats, pg_database_owner;
COMMENT ON FUNCTION changefeed._stat_channels() IS 'internal: rows of the view changefeed.stat_channels';

CREATE VIEW changefeed.stat_channels AS
SELECT channel, instances, subscriptions, querying, loading, catching_up, ready, operations, bytes,
       snapshots, snapshot_rows, denials, resyncs, resync_reasons::jsonb AS resync_reasons
  FROM changefeed._stat_channels();
GRANT SELECT ON changefeed.stat_channels TO pg_read_all_stats, pg_database_owner;
COMMENT ON VIEW changefeed.stat_channels IS 'what each channel has to do, since the feed worker started';
COMMENT ON COLUMN changefeed.stat_channels.channel IS 'name of its definition';
COMMENT ON COLUMN changefeed.stat_channels.instances IS 'different names that are subscribed to now';
COMMENT ON COLUMN changefeed.stat_channels.subscriptions IS 'subscriptions now';
COMMENT ON COLUMN changefeed.stat_channels.querying IS 'those of which the rights are looked up, and the snapshot is read';
COMMENT ON COLUMN changefeed.stat_channels.loading IS 'those whose snapshot is sent';
COMMENT ON COLUMN changefeed.stat_channels.catching_up IS 'those that get what came since';
COMMENT ON COLUMN changefeed.stat_channels.ready IS 'those that are live';
COMMENT ON COLUMN changefeed.stat_channels.operations IS 'operations on rows sent, one for each subscription that got it';
COMMENT ON COLUMN changefeed.stat_channels.bytes IS 'bytes of these operations';
COMMENT ON COLUMN changefeed.stat_channels.snapshots IS 'snapshots sent';
COMMENT ON COLUMN changefeed.stat_channels.snapshot_rows IS 'rows in these';
COMMENT ON COLUMN changefeed.stat_channels.denials IS 'subscriptions refused or ended for lack of a right';
COMMENT ON COLUMN changefeed.stat_channels.resyncs IS 'subscriptions that had to start again from a snapshot';
COMMENT ON COLUMN changefeed.stat_channels.resync_reasons IS 'how often for each reason';

CREATE FUNCTION changefeed._stat_gateways(
    OUT gateway int,
    OUT pid int,
    OUT started_at timestamptz,
    OUT connections bigint,
    OUT accepted bigint,
    OUT frames bigint,
    OUT bytes bigint,
    OUT received_bytes bigint,
    OUT queued_bytes bigint,
    OUT behind bigint,
    OUT refused bigint,
    OUT refused_by_code text,
    OUT throttled bigint,
    OUT cpu_ms bigint,
    OUT memory_bytes bigint
) RETURNS SETOF record
    LANGUAGE C VOLATILE PARALLEL RESTRICTED
    AS 'MODULE_PATHNAME', 'changefeed_stat_gateways';
REVOKE ALL ON FUNCTION changefeed._stat_gateways() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION changefeed._stat_gateways() TO pg_read_all_stats, pg_database_owner;
COMMENT ON FUNCTION changefeed._stat_gateways() IS 'internal: rows of the view changefeed.stat_gateways';

CREATE VIEW changefeed.stat_gateways AS
SELECT gateway, pid, started_at, connections, accepted, frames, bytes, received_bytes, queued_bytes,
       behind, refused, refused_by_code::jsonb AS refused_by_code, throttled, cpu_ms, memory_bytes
  FROM changefeed._stat_gateways();
GRANT SELECT ON changefeed.stat_gateways TO pg_read_all_stats, pg_database_owner;
COMMENT ON VIEW changefeed.stat_gateways IS 'the gateways that run, one row each; counters begin with the process';
COMMENT ON COLUMN changefeed.stat_gateways.gateway IS 'its number, from 0';
COMMENT ON COLUMN changefeed.stat_gateways.pid IS 'its process';
COMMENT ON COLUMN changefeed.stat_gateways.started_at IS 'when it was started';
COMMENT ON COLUMN changefeed.stat_gateways.connections IS 'connections now';
COMMENT ON COLUMN changefeed.stat_gateways.accepted IS 'connections opened';
COMMENT ON COLUMN changefeed.stat_gateways.frames IS 'messages written to clients';
COMMENT ON COLUMN changefeed.stat_gateways.bytes IS 'bytes of these';
COMMENT ON COLUMN changefeed.stat_gateways.received_bytes IS 'bytes of clients messages';
COMMENT ON COLUMN changefeed.stat_gateways.queued_bytes IS 'bytes that wait for clients to read';
COMMENT ON COLUMN changefeed.stat_gateways.behind IS 'how often a connection had more to read than changefeed.send_buffer';
COMMENT ON COLUMN changefeed.stat_gateways.refused IS 'requests and handshakes refused';
COMMENT ON COLUMN changefeed.stat_gateways.refused_by_code IS 'how many with each code';
COMMENT ON COLUMN changefeed.stat_gateways.throttled IS 'how often a connection was not read for a moment, as it sent more than it may';
COMMENT ON COLUMN changefeed.stat_gateways.cpu_ms IS 'processor time that it has used, in milliseconds';
COMMENT ON COLUMN changefeed.stat_gateways.memory_bytes IS 'its resident memory';

CREATE FUNCTION changefeed.metrics() RETURNS text
    LANGUAGE C VOLATILE PARALLEL RESTRICTED
    AS 'MODULE_PATHNAME', 'changefeed_metrics';
REVOKE ALL ON FUNCTION changefeed.metrics() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION changefeed.metrics() TO pg_read_all_stats, pg_database_owner;
COMMENT ON FUNCTION changefeed.metrics() IS
    'what /metrics serves: all counters, in the text format of Prometheus';

CREATE FUNCTION changefeed.presence(
    channel text,
    OUT member text,
    OUT kinds text[],
    OUT states json,
    OUT holds text[],
    OUT connections int,
    OUT since timestamptz
) RETURNS SETOF record
    LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'changefeed_presence';
REVOKE ALL ON FUNCTION changefeed.presence(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION changefeed.presence(text) TO pg_read_all_stats, pg_database_owner;
COMMENT ON FUNCTION changefeed.presence(text) IS
    'who is in a channel, such as ''room:7'', in the order of joining; those whose connection was lost a moment ago included';

-----------------------------------------------------------------------------
-- Last, when everything is there: the launcher starts the workers at commit.
-----------------------------------------------------------------------------

CREATE FUNCTION changefeed._extension_created() RETURNS void
    LANGUAGE C STRICT
    AS 'MODULE_PATHNAME', 'changefeed_extension_created';
REVOKE ALL ON FUNCTION changefeed._extension_created() FROM PUBLIC;
COMMENT ON FUNCTION changefeed._extension_created() IS
    'internal: tells the launcher that this database has the extension';
SELECT changefeed._extension_created();
