# Beside other libraries, without being preloaded, and from one server to
# another.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use ChangefeedTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('preload', conf => q(
pg_stat_statements.track = all
));
my $port = feed_port($node);

# ---------------------------------------------------------------------------
# Another library with the same hooks, before and after ours
# ---------------------------------------------------------------------------

foreach my $libraries ('pg_stat_statements, pg_changefeed', 'pg_changefeed, pg_stat_statements')
{
    conf($node, shared_preload_libraries => "'$libraries'");
    $node->start;
    $node->safe_psql(
        'postgres', q(
CREATE DATABASE work;
\c work
CREATE EXTENSION pg_stat_statements;
CREATE EXTENSION pg_changefeed;
));
    ok(wait_running($node, 'work'), "$libraries: the feed runs");
    is_one_set($node, $libraries, 'work');
    $node->safe_psql(
        'work', q(
CREATE ROLE web;
CREATE TABLE item (id int PRIMARY KEY, name text);
GRANT SELECT ON item TO web;
SELECT changefeed.create_channel('items', 'item');
SELECT changefeed.allow_role('web');
SELECT pg_stat_statements_reset();
));
    my $client = client($port);
    $client->subscribe('items');
    $node->safe_psql('work', q(INSERT INTO item VALUES (1, 'one'); UPDATE item SET name = 'two'));
    $client->sync;
    is($client->rows('items'), '{"id":1,"name":"two"}', "$libraries: changes come");
    $client->close;

    # Our utility hook calls the other one, and the other way round.
    $node->safe_psql('work', 'CREATE ROLE other; DROP ROLE other');
    like(sql_error($node, 'postgres', 'ALTER DATABASE work RENAME TO worked'),
        qr/has a running change feed/, "$libraries: our hook is called");
    is( $node->safe_psql(
            'work', q(SELECT string_agg(query, ';' ORDER BY query COLLATE "C") FROM pg_stat_statements
                       WHERE query ~ '^(CREATE|DROP) ROLE|^(INSERT|UPDATE)')),
        q(CREATE ROLE other;DROP ROLE other;INSERT INTO item VALUES ($1, $2);UPDATE item SET name = $1),
        "$libraries: and so is the other one");
    $node->safe_psql('work', 'DROP EXTENSION pg_changefeed; DROP TABLE item; DROP ROLE web');
    $node->safe_psql('postgres', 'DROP DATABASE work');
    $node->stop;
    unlike(log_since($node), qr/PANIC|TRAP|was terminated by signal/, "$libraries: nothing crashed");
    $node->rotate_logfile;
}

# ---------------------------------------------------------------------------
# LOAD without preload
# ---------------------------------------------------------------------------

# First a database that has the extension.
conf($node, shared_preload_libraries => "'pg_changefeed'");
$node->start;
$node->safe_psql('postgres', 'CREATE ROLE web; CREATE EXTENSION pg_changefeed');
wait_running($node);
conf($node, shared_preload_libraries => "''");
$node->restart;

my $position = log_position($node);
is( $node->safe_psql(
        'postgres', q(
LOAD 'pg_changefeed';
BEGIN;
CREATE TABLE item (id int PRIMARY KEY, name text);
SAVEPOINT a;
INSERT INTO item VALUES (1, 'one');
ROLLBACK TO a;
INSERT INTO item VALUES (2, 'two');
COMMIT;
CREATE ROLE other;
ALTER ROLE other RENAME TO another;
DROP ROLE another;
CREATE DATABASE other;
DROP DATABASE other;
SELECT * FROM item;
)),
    '2|two',
    'LOAD without preload is harmless');
is(
    $node->safe_psql('postgres', q(LOAD 'pg_changefeed'; SHOW changefeed.query_workers)),
    2, '... the settings are known to a session that loads it');
is($node->safe_psql('postgres', 'SELECT state FROM changefeed.stat_feed'), 'not preloaded', '... and stat_feed says why nothing runs');
is(join(',', keys %{ processes($node) }), '', '... and nobody runs');
like(
    sql_error($node, 'postgres', q(SELECT changefeed._extension_created())),
    qr/^ERROR:  55000: pg_changefeed was not loaded when the server started\nHINT:  Set this in postgresql\.conf, then restart the server: shared_preload_libraries = 'pg_changefeed'/,
    '... and what needs it refuses');
is(sql_error($node, 'postgres', 'DROP EXTENSION pg_changefeed'), '', 'DROP EXTENSION works without preload');

# The slot outlives that; the launcher sees to it at the next start.
conf($node, shared_preload_libraries => "'pg_changefeed'");
$node->restart;
ok(wait_off($node, 'postgres'), '... and at the next start with it the slot is dropped');
is(count_in_log($node, qr/PANIC|TRAP|was terminated by signal/, $position), 0, 'nothing crashed');

# ---------------------------------------------------------------------------
# Dump and restore
# ---------------------------------------------------------------------------

my $definitions = q(SELECT c.name, s.source::text, s.entity, s.key, s.filter, s.columns, s.on_insert, s.on_update, s.on_delete
                      FROM changefeed.channels c LEFT JOIN changefeed.sources s ON s.channel = c.name);
my $roles = q(SELECT role::text FROM changefeed.roles);
my @more = (
    q(SELECT channel, source::text, event, condition, payload, on_change FROM changefeed.events),
    q(SELECT name, function::text, arguments, result FROM changefeed.functions),
    q(SELECT function::text, relation::text FROM changefeed.dependencies),
    q(SELECT role::text, claim, value FROM changefeed.revocations),
    q(SELECT name, join_check, publish_check, min_interval, presence FROM changefeed.channels),
    q(SELECT polname, pg_get_expr(polqual, polrelid) AS policy FROM pg_policy),
    q(SELECT proname, a.grantee::regrole::text, a.privilege_type FROM pg_proc p, aclexplode(p.proacl) a
       WHERE pronamespace = 'changefeed'::regnamespace AND proname IN ('publish', 'metrics')),
    q(SELECT relname, a.grantee::regrole::text, a.privilege_type FROM pg_class c, aclexplode(c.relacl) a WHERE relnamespace = 'app'::regnamespace));
my $json = JSON::PP->new->canonical;

sub all_of
{
    my ($from, $database) = @_;
    return join("\n", sort map { $json->encode($_) } map { rows($from, $database, $_) } $definitions, $roles, @more);
}

$node->safe_psql('postgres', 'CREATE DATABASE source');
$node->safe_psql(
    'source', q(
CREATE ROLE "Odd role";
CREATE EXTENSION pg_changefeed;
CREATE SCHEMA app;
CREATE TABLE app.room (id int PRIMARY KEY, name text, secret text);
CREATE TABLE app.message (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, room_id int, body text, hidden bool DEFAULT false);
ALTER TABLE app.message ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON app.message USING (body <> 'private');
GRANT USAGE ON SCHEMA app TO web;
GRANT SELECT (id, name) ON app.room TO web;
GRANT SELECT ON app.message TO web;
INSERT INTO app.room VALUES (1, 'one', 'x');
INSERT INTO app.message (room_id, body) VALUES (1, 'hello'), (1, 'private'), (2, 'elsewhere');
SELECT changefeed.create_channel('rooms', 'app.room', columns => '{id,name}');
SELECT changefeed.create_channel('paced', 'app.room', columns => '{id,name}', min_interval => '1 s');
SELECT changefeed.create_channel('room:{room_id}', 'app.message', filter => 'NOT hidden', on_update => 'replace');
SELECT changefeed.create_channel('empty');
CREATE FUNCTION app."Say it"(a int DEFAULT 1) RETURNS int LANGUAGE sql AS 'SELECT a';
SELECT changefeed.create_channel('talk:{room}', publish_check => 'true', join_check => 'room <> $$x$$', presence => '{"grace": "3 s"}');
SELECT changefeed.add_event('rooms', 'app.room', 'renamed', 'new.name <> old.name');
SELECT changefeed.expose_function('app."Say it"(int)', 'say');
SELECT changefeed.declare_dependency('app."Say it"(int)', 'app.room');
SELECT changefeed.revoke(claim => 'sub', value => 'ada');
SELECT changefeed.revoke(role => '"Odd role"');
GRANT EXECUTE ON FUNCTION changefeed.publish TO web;
REVOKE EXECUTE ON FUNCTION changefeed.metrics FROM pg_database_owner;
SELECT changefeed.allow_role('web');
SELECT changefeed.allow_role('"Odd role"');
));
$node->safe_psql('postgres', 'ALTER DATABASE source SET changefeed.history_age = 77');
wait_running($node, 'source');
my $expected = all_of($node, 'source');
is(scalar(() = $expected =~ /^\{.*"filter"/mg), 5, 'five channels');
is(scalar(() = $expected =~ /"value"/g), 2, 'two revocations');
like($expected, qr/^\{"grantee":"web","privilege_type":"EXECUTE","proname":"publish"\}$/m, 'a right that was granted');
unlike($expected, qr/"pg_database_owner","privilege_type":"EXECUTE","proname":"metrics"/, 'and one that was revoked');

# What a client sees there.
sub seen
{
    my ($at) = @_;
    my $client = client($at);

    $client->subscribe('room:1');
    my $rows = $client->rows('room:1');
    $client->close;
    return $rows;
}
my $seen = seen($port);
is($seen, '{"body":"hello","hidden":false,"id":1,"room_id":1}', 'a client sees what the policy allows');

my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump';
$node->run_log([ 'pg_dump', '-Fc', '-f', "$dump.custom", $node->connstr('source') ]) or BAIL_OUT('pg_dump fails');
# Paused, which what is restored is not.
$node->safe_psql('source', 'SELECT changefeed.pause()');
$node->run_log([ 'pg_dumpall', '-f', "$dump.sql", '-d', $node->connstr('postgres') ]) or BAIL_OUT('pg_dumpall fails');
$node->safe_psql('source', 'SELECT changefeed.resume()');
wait_running($node, 'source');

# Neither the secret, nor the key of messages, nor a position
my $text = slurp_file("$dump.sql");
my $key = slurp_file($node->data_dir . '/pg_changefeed_message.key') if -f $node->data_dir . '/pg_changefeed_message.key';
like($text, qr/COPY changefeed\.channel /, 'the dump has the channels');
is(index($text, $ChangefeedTest::secret), -1, '... and no secret');
unlike($text, qr/jwt_secret_file|\Q${\feed($node, 'source')->{epoch}}\E|COPY changefeed\.(pause|call_result) /, '... nor where it is, nor an epoch, nor a pause');
ok(!defined $key || index($text, unpack('H*', $key)) < 0, '... nor the key of messages');

# Into another database of the same server, with several processes at a time.
my $copy_port = free_port();
$node->safe_psql('postgres', "CREATE DATABASE copy; ALTER DATABASE copy SET changefeed.port = $copy_port");
$node->command_ok([ 'pg_restore', '-e', '-j', '3', '-d', $node->connstr('copy'), "$dump.custom" ], 'pg_restore');
wait_running($node, 'copy');
is_one_set($node, 'pg_restore', 'copy', 'source');
is(all_of($node, 'copy'), $expected, 'pg_restore brings channels, sources and roles');
isnt(feed($node, 'copy')->{epoch}, feed($node, 'source')->{epoch}, '... but not the epoch');
is(seen($copy_port), $seen, '... and a client sees the same');
is($node->safe_psql('copy', q(SELECT bool_and(relreplident = 'f') FROM pg_class
                               WHERE oid IN ('app.room'::regclass, 'app.message'::regclass))),
    't', '... of tables with their replica identity');

# It goes on: new channels get numbers of their own.
$node->safe_psql('copy', q(SELECT changefeed.create_channel('more', 'app.room')));
my $client = client($copy_port);
$client->subscribe('room:1');
$node->safe_psql('copy', q(INSERT INTO app.message (room_id, body) VALUES (1, 'again'), (1, 'private')));
$client->sync;
is(scalar($client->txids), 1, '... and changes, as far as the policy allows');
is(scalar(split(/\n/, $client->rows('room:1'))), 2, '... one row of two');
$client->close;
$node->stop;

# Everything into another server, roles first, as pg_dumpall does it.
my $other = new_node('restored', conf => "changefeed.port = $port\n");
$other->start;
$other->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=0', '-d', $other->connstr('postgres'), '-f', "$dump.sql" ],
    'pg_dumpall and psql');
wait_running($other, 'source');
is(all_of($other, 'source'), $expected, 'pg_dumpall brings channels, sources and roles');
is($other->safe_psql('source', 'LOAD $$pg_changefeed$$; SHOW changefeed.history_age'), '77s', '... and settings of the database');
is($other->safe_psql('source', 'SELECT changefeed._function(function) FROM changefeed.function'), 'app."Say it"(integer)', '... and functions as they are here');
is(seen($port), $seen, '... and a client sees the same');
$other->stop;

unlike(log_since($other), qr/PANIC|TRAP|was terminated by signal/, 'nothing crashed');
done_testing();
