# What the server has to have, and what is said when it has not: everything that
# is missing at once, since each restart of a server counts, and with the lines
# to write.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use ChangefeedTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# A server that lacks workers for as long as this test takes: see the end.
my $starved = new_node('starved', conf => 'max_worker_processes = 3');
$starved->start;
$starved->safe_psql('postgres', 'CREATE EXTENSION pg_changefeed');

my $node = new_node('requirements');
my $preload = q(The library pg_changefeed was not loaded when the server started.);

# Starts the server with these settings; the others are as new_node has them.
my %good = (
    shared_preload_libraries => "'pg_changefeed'",
    wal_level => 'logical',
    max_wal_senders => 4,
    max_replication_slots => 8,
    max_worker_processes => 24);

sub start_with
{
    my (%settings) = @_;

    $node->stop if defined $node->{_pid};
    conf($node, %good, %settings);
    return $node->start;
}

# From 18 on the server adds where in the extension's script it was.
sub creation_error
{
    my ($database) = @_;

    return sql_error($node, $database, 'CREATE EXTENSION pg_changefeed') =~ s/\nCONTEXT:  .*//sr;
}

sub refused_with
{
    my ($expected, $name) = @_;

    is(creation_error('postgres'), $expected, $name);
    is($node->safe_psql('postgres', q(SELECT count(*) FROM pg_namespace WHERE nspname = 'changefeed')),
        0, "$name: nothing is left");
    return;
}

# ---------------------------------------------------------------------------
# CREATE EXTENSION
# ---------------------------------------------------------------------------

my $one = 'ERROR:  55000: pg_changefeed needs a setting of the server that is missing';
my $several = 'ERROR:  55000: pg_changefeed needs settings of the server that are missing';
my $hint = 'HINT:  Set in postgresql.conf, then restart the server:';

start_with(shared_preload_libraries => "''");
refused_with("$one\nDETAIL:  $preload\n$hint\nshared_preload_libraries = 'pg_changefeed'", 'no preload');

start_with(shared_preload_libraries => "'pg_stat_statements'");
refused_with("$one\nDETAIL:  $preload\n$hint\nshared_preload_libraries = 'pg_stat_statements, pg_changefeed'",
    'other libraries are preloaded');

start_with(wal_level => 'replica');
refused_with("$one\nDETAIL:  wal_level is \"replica\".\n$hint\nwal_level = logical", 'wal_level');

start_with(max_replication_slots => 0);
refused_with("$one\nDETAIL:  max_replication_slots is 0.\n$hint\nmax_replication_slots = 10", 'no slots');

start_with(shared_preload_libraries => "''", wal_level => 'replica');
refused_with(
    "$several\nDETAIL:  $preload\nwal_level is \"replica\".\n"
      . "$hint\nshared_preload_libraries = 'pg_changefeed'\nwal_level = logical",
    'no preload and wal_level');

start_with(
    shared_preload_libraries => "''",
    wal_level => 'minimal',
    max_wal_senders => 0,
    max_replication_slots => 0);
refused_with(
    "$several\nDETAIL:  $preload\nwal_level is \"minimal\".\nmax_replication_slots is 0.\n"
      . "$hint\nshared_preload_libraries = 'pg_changefeed'\nwal_level = logical\nmax_replication_slots = 10",
    'everything is missing');

# The first free worker is the launcher's, the second core's own launcher's; the
# third one will do for a decoder, but not for a pair.
start_with(max_worker_processes => 3);
$node->safe_psql('postgres', q(CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0));
is( creation_error('latin'),
    qq(ERROR:  0A000: pg_changefeed needs a database with encoding UTF8\n)
      . qq(DETAIL:  The encoding of database "latin" is LATIN1.\n)
      . q(HINT:  Create a database with ENCODING 'UTF8' TEMPLATE template0 and move the data there.),
    'a database that is not UTF8');
$node->safe_psql('postgres', q(DROP DATABASE latin));

# ---------------------------------------------------------------------------
# max_worker_processes: not even one pair
# ---------------------------------------------------------------------------

# The complaints of a server about workers since $position.
sub complaints
{
    my ($at, $position) = @_;
    return grep { /LOG:  could not (start|look)/ } split(/\n/, log_since($at, $position));
}

sub hint_of_pair
{
    my ($now, $needed) = @_;
    return
        qq(HINT:  Set max_worker_processes (now $now) to at least $needed in postgresql.conf and restart the server. )
      . q(Each database with a change feed needs 4: a decoder, a feed worker, and changefeed.query_workers.);
}

my $position = log_position($node);
$node->safe_psql('postgres', q(
CREATE ROLE web;
CREATE EXTENSION pg_changefeed;
));
ok( wait_in_log($node,
        qr/LOG:  could not start the change feed of database "postgres": all background worker slots are in use\n.*\Q${\hint_of_pair(3, 6)}\E\n/,
        $position),
    'no worker for a pair: said with the number that would do');
is(feed($node)->{state}, 'starting', '... and in stat_feed');

# The workers of a pair that came up in part are gone.
ok(
    poll_until(
        sub { join(',', keys %{ processes($node) }) eq 'changefeed launcher' }, 'the end of half a pair'),
    'no half pair is left');

# With that number, and not with one less, everything runs.
start_with(max_worker_processes => 5);
ok( wait_in_log($node,
        qr/LOG:  could not start 1 of 2 query workers of the change feed\n.*DETAIL:  All slots for background workers are in use\.\n.*HINT:  Raise max_worker_processes from 5 to at least 6, or lower changefeed\.query_workers\./),
    'no place for a query worker: said with the number that would do');
wait_running($node);
is(scalar(@{ processes($node)->{'changefeed query worker'} // [] }), 1, '... and the others run');

$node->rotate_logfile;
start_with(max_worker_processes => 6);
ok(wait_running($node), 'the number of the hint does');
is_one_set($node, 'the number of the hint');
is(join("\n", complaints($node, 0)), '', '... without any complaint');

# ---------------------------------------------------------------------------
# max_worker_processes: not enough for a second database
# ---------------------------------------------------------------------------

# A look into a database, which may be a copy of one with the extension, takes a
# worker for a moment.
$position = log_position($node);
$node->safe_psql('postgres', 'CREATE DATABASE second');
ok( wait_in_log($node,
        qr/LOG:  could not look for change feeds in database "second": all background worker slots are in use\n.*HINT:  Set max_worker_processes \(now 6\) to at least 7 in postgresql\.conf and restart the server\.\n/,
        $position),
    'no worker to look into a new database: said with the number that would do');

$position = log_position($node);
$node->safe_psql('second', 'CREATE EXTENSION pg_changefeed');
ok( wait_in_log($node,
        qr/LOG:  could not start the change feed of database "second": all background worker slots are in use\n.*\Q${\hint_of_pair(6, 10)}\E\n/,
        $position),
    'no workers for a second database: said with the number that would do');
is(feed($node)->{state}, 'running', '... and the first one runs on');

# As soon as there are workers, which it looks for now and then, it starts.
$node->safe_psql('postgres', 'DROP EXTENSION pg_changefeed');
my $second = wait_running($node, 'second', no_port => 1);
is($second->{state}, 'running', 'it starts when workers have become free');
is(scalar(() = complaints($node, $position)), 1, '... and there is one line of complaint');

# It begins a new generation with each try, the first one included.
cmp_ok($second->{generation}, '<=', 4, '... because it did not try all the time');

# ---------------------------------------------------------------------------
# wal_level is lowered while databases have the extension
# ---------------------------------------------------------------------------

# A server with a logical slot would not start at all.
$node->safe_psql('postgres', 'ALTER DATABASE second ALLOW_CONNECTIONS false');
wait_off($node, 'second');
$node->rotate_logfile;
start_with(wal_level => 'replica');
$node->safe_psql('postgres', 'ALTER DATABASE second ALLOW_CONNECTIONS true');
ok( wait_in_log($node,
        qr/LOG:  the change feed of database "second" is not started\n.*DETAIL:  It needs wal_level = logical and max_replication_slots > 0\.\n.*HINT:  Set both in postgresql\.conf and restart the server, or drop extension pg_changefeed\.\n/),
    'wal_level was lowered: said at start');
is(feed($node, 'second')->{state}, 'starting', '... and in stat_feed');
$node->safe_psql('second', 'DROP EXTENSION pg_changefeed');
is(sql_error($node, 'postgres', 'DROP DATABASE second'), '', '... and DROP EXTENSION works as ever');
is(count_in_log($node, qr/is not started/), 1, '... with one line in the log');

# ---------------------------------------------------------------------------
# max_replication_slots: all are in use
# ---------------------------------------------------------------------------

start_with(max_replication_slots => 1);
$node->safe_psql('postgres', q(SELECT pg_create_physical_replication_slot('of_somebody_else')));
$position = log_position($node);
$node->safe_psql('postgres', 'CREATE EXTENSION pg_changefeed');
ok( wait_in_log($node,
        qr/ERROR:  change feed of database "postgres" needs a replication slot, and all 1 are in use\n.*HINT:  Put "max_replication_slots = 2" into postgresql\.conf and restart the server, or drop a slot that is not needed\.\n/,
        $position),
    'no replication slot: said with the number that would do');
ok(wait_in_log($node, qr/change feed of database "postgres" has ended, starting it again in 4000 ms/, $position),
    '... at ever longer intervals');
is(feed($node)->{epoch}, undef, '... and there is no epoch');
$node->safe_psql('postgres', q(SELECT pg_drop_replication_slot('of_somebody_else')));
ok(wait_running($node), 'it starts when a slot has become free');
is_one_set($node, 'a slot has become free');

# ---------------------------------------------------------------------------
# A server that lacks workers for long: it tries again, slowly and quietly
# ---------------------------------------------------------------------------

# Each try is a generation.
my $tries = poll_until(
    sub {
        my $generation = feed($starved)->{generation};
        return $generation >= 3 ? $generation : undef;
    },
    'another try');
is(scalar(() = complaints($starved, 0)), 1, 'a server that lacks workers says so once');
cmp_ok($tries, '<=', 6, '... and does not try all the time');
is(join(',', keys %{ processes($starved) }), 'changefeed launcher', '... and leaves no half pair');
$starved->stop;

$node->stop;
unlike(log_since($_), qr/PANIC|TRAP|was terminated by signal/, 'nothing crashed') foreach $node, $starved;
done_testing();
