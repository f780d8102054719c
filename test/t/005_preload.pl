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
    like(sql_error($node, 'postgres', 'DROP DATABASE work'),
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
my $json = JSON::PP->new->canonical;

sub all_of
{
    my ($from, $database) = @_;
    return join("\n", sort map { $json->encode($_) } map { rows($from, $database, $_) } $definitions, $roles);
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
SELECT changefeed.create_channel('room:{room_id}', 'app.message', filter => 'NOT hidden', on_update => 'replace');
SELECT changefeed.create_channel('empty');
SELECT changefeed.allow_role('web');
SELECT changefeed.allow_role('"Odd role"');
));
wait_running($node, 'source');
my $expected = all_of($node, 'source');
is(scalar(() = $expected =~ /^\{/mg), 5, 'three channels and two roles');

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
$node->run_log([ 'pg_dumpall', '-f', "$dump.sql", '-d', $node->connstr('postgres') ]) or BAIL_OUT('pg_dumpall fails');

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
is(seen($port), $seen, '... and a client sees the same');
$other->stop;

unlike(log_since($other), qr/PANIC|TRAP|was terminated by signal/, 'nothing crashed');
done_testing();
