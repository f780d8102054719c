# The feed of a database comes with CREATE EXTENSION and goes with DROP
# EXTENSION, without a restart of the server, and only when these commit.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use ChangefeedTest;
use IO::Socket::INET;
use PostgreSQL::Test::BackgroundPsql;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = new_node('lifecycle', conf => "max_prepared_transactions = 2\n");
my $port = feed_port($node);

$node->start;
$node->safe_psql('postgres', 'CREATE ROLE web; CREATE DATABASE second');

# A look at the launcher after it has surely dealt with what was committed
# before: it takes requests in the order in which they come.  Gives a database
# a feed and takes it away again.
sub after_launcher_has_looked
{
    $node->safe_psql('second', 'CREATE EXTENSION pg_changefeed');
    wait_running($node, 'second', no_port => 1) or die 'the feed of the other database does not run';
    $node->safe_psql('second', 'DROP EXTENSION pg_changefeed');
    wait_off($node, 'second') or die 'the feed of the other database does not end';
    return;
}

# What there is of the feed of a database, in one word each.
sub traces
{
    my ($database) = @_;
    my $found = processes($node, $database);

    delete $found->{'changefeed launcher'};
    return join(' ', sort keys %$found,
        map { 'slot' } rows($node, 'postgres',
            "SELECT FROM pg_replication_slots WHERE database = '$database'"));
}

# Gives an ERROR as text, with the seconds that it took.
sub timed_error
{
    my (@statement) = @_;
    my $start = time();
    my $error = sql_error($node, @statement);

    return ($error, time() - $start);
}

# ---------------------------------------------------------------------------
# Nothing yet
# ---------------------------------------------------------------------------

poll_until(sub { processes($node)->{'changefeed launcher'} }, 'the launcher');
is(join(',', keys %{ processes($node) }), 'changefeed launcher', 'only the launcher runs before CREATE EXTENSION');
ok(!port_is_open($port), 'nobody listens before CREATE EXTENSION');

# ---------------------------------------------------------------------------
# CREATE EXTENSION that is rolled back
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', 'BEGIN; CREATE EXTENSION pg_changefeed; ROLLBACK');
$node->safe_psql('postgres', 'BEGIN; SAVEPOINT a; CREATE EXTENSION pg_changefeed; ROLLBACK TO a; COMMIT');
$node->safe_psql('postgres',
    'BEGIN; CREATE EXTENSION pg_changefeed; DROP EXTENSION pg_changefeed; COMMIT');
after_launcher_has_looked();
is(traces('postgres'), '', 'CREATE EXTENSION that is rolled back leaves nothing');
is(count_in_log($node, qr/database "postgres" created replication slot/), 0, '... and never began anything');
ok(!port_is_open($port), '... nor does anybody listen');
like(
    sql_error($node, 'postgres',
        "BEGIN; CREATE EXTENSION pg_changefeed; PREPARE TRANSACTION 'p'"),
    qr/^ERROR:  (0A000: cannot PREPARE a transaction that has started or stopped a change feed\nDETAIL:.*|55000: prepared transactions are disabled)/,
    'CREATE EXTENSION cannot be prepared');

# ---------------------------------------------------------------------------
# CREATE EXTENSION
# ---------------------------------------------------------------------------

my $start = $node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()');
$node->safe_psql('postgres', 'CREATE EXTENSION pg_changefeed');
my $feed = wait_running($node);
is_one_set($node, 'CREATE EXTENSION');
is($node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()'), $start, 'no restart was needed');

my $found = processes($node, 'postgres');
is($feed->{decoder_pid}, $found->{'changefeed decoder'}[0], 'stat_feed names the decoder');
is($feed->{feed_worker_pid}, $found->{'changefeed feed worker'}[0], 'stat_feed names the feed worker');
is($feed->{port}, $port, 'stat_feed names the port');
is(join(' ', gateways_of($node)), $feed->{gateway_pid}, 'the gateway is the one child of the feed worker');
like($feed->{slot_name}, qr/^pg_changefeed_\d+_\Q$feed->{epoch}\E$/, 'the slot carries the epoch');
is_deeply(
    row($node, 'postgres', "SELECT slot_name, plugin, slot_type, database, temporary, active_pid
                              FROM pg_replication_slots"),
    {
        slot_name => $feed->{slot_name}, plugin => 'pg_changefeed', slot_type => 'logical',
        database => 'postgres', temporary => JSON::PP::false, active_pid => $feed->{decoder_pid}
    },
    'the slot is the decoder\'s');
ok( $node->poll_query_until('postgres',
        "SELECT bool_and(wait_event_type IN ('Activity', 'Extension')) FROM pg_stat_activity
          WHERE backend_type LIKE 'changefeed %'"),
    'all of them wait for something to happen');

# ---------------------------------------------------------------------------
# It serves
# ---------------------------------------------------------------------------

$node->safe_psql(
    'postgres', q(
CREATE TABLE item (id int PRIMARY KEY, name text);
GRANT SELECT ON item TO web;
INSERT INTO item VALUES (1, 'one');
SELECT changefeed.create_channel('items', 'item');
SELECT changefeed.allow_role('web');
));
my $client = client($port);
$client->subscribe('items');
is($client->rows('items'), '{"id":1,"name":"one"}', 'a client gets the rows that are there');
$node->safe_psql('postgres', q(INSERT INTO item VALUES (2, 'two'); UPDATE item SET name = 'uno' WHERE id = 1));
$client->sync;
is($client->rows('items'), qq({"id":1,"name":"uno"}\n{"id":2,"name":"two"}), '... and changes');

# ---------------------------------------------------------------------------
# DROP EXTENSION that is rolled back, and what cannot be prepared
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', 'BEGIN; DROP EXTENSION pg_changefeed; ROLLBACK');
$node->safe_psql('postgres', 'BEGIN; SAVEPOINT a; DROP EXTENSION pg_changefeed CASCADE; ROLLBACK TO a; COMMIT');
after_launcher_has_looked();
my $after = feed($node);
is_deeply([ @$after{qw(state generation epoch decoder_pid feed_worker_pid gateway_pid)} ],
    [ @$feed{qw(state generation epoch decoder_pid feed_worker_pid gateway_pid)} ],
    'DROP EXTENSION that is rolled back leaves the feed as it is');
$node->safe_psql('postgres', 'DELETE FROM item WHERE id = 2');
$client->sync;
is($client->rows('items'), '{"id":1,"name":"uno"}', '... and the client connected');

# ---------------------------------------------------------------------------
# DROP EXTENSION
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', 'DROP EXTENSION pg_changefeed');
ok(wait_off($node, 'postgres'), 'DROP EXTENSION ends the workers and drops the slot');
ok(defined $client->wait_closed, '... and the connection of its client');
ok(poll_until(sub { !is_alive($feed->{gateway_pid}) }, 'the end of the gateway'), '... and the gateway');
ok(poll_until(sub { !port_is_open($port) }, 'the port to be closed'), '... and nobody listens any more');
is($node->safe_psql('postgres', 'SELECT count(*) FROM item'), 1, 'the table is as it was');

# ---------------------------------------------------------------------------
# Again, and DROP and CREATE at once
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', 'CREATE EXTENSION pg_changefeed');
my $again = wait_running($node);
is_one_set($node, 'after another CREATE EXTENSION');
isnt($again->{epoch}, $feed->{epoch}, 'a new feed has another epoch');

foreach my $way (
    [ 'in one transaction', 'BEGIN; DROP EXTENSION pg_changefeed; CREATE EXTENSION pg_changefeed; COMMIT' ],
    [ 'one after the other', 'DROP EXTENSION pg_changefeed; CREATE EXTENSION pg_changefeed' ],
    [ 'three times', 'DROP EXTENSION pg_changefeed; CREATE EXTENSION pg_changefeed; ' x 3 ])
{
    my ($name, $statements) = @$way;
    my $before = feed($node);

    # Each statement in a transaction of its own.
    $node->safe_psql('postgres', $statements =~ s/; /;\n/gr);
    my $now = poll_until(
        sub {
            my $now = feed($node);
            return $now && $now->{state} eq 'running' && defined $now->{port}
              && $now->{epoch} ne $before->{epoch} ? $now : undef;
        },
        "a new feed after DROP and CREATE EXTENSION, $name");
    is_one_set($node, "DROP and CREATE EXTENSION, $name");
    is(scalar(rows($node, 'postgres', 'SELECT FROM changefeed.channels')), 0,
        "DROP and CREATE EXTENSION, $name: no channels");
}

# ---------------------------------------------------------------------------
# Channels and roles that are made while the replication slot is being created:
# they are not in the WAL that is decoded later
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', 'DROP EXTENSION pg_changefeed');
wait_off($node, 'postgres');
my $session = $node->background_psql('second');
$session->query_safe(q(BEGIN; SELECT pg_current_xact_id()));
$node->safe_psql('postgres', 'CREATE EXTENSION pg_changefeed');
poll_until(
    sub {
        row($node, 'postgres', q(SELECT FROM pg_stat_activity WHERE backend_type = 'changefeed decoder'
                                    AND query = 'creating slot' AND wait_event IS NOT NULL))
          && row($node, 'postgres', q(SELECT FROM pg_stat_activity WHERE backend_type = 'changefeed feed worker'
                                         AND state = 'idle'));
    },
    'the feed to wait for its slot') or diag('it does not wait');
is(feed($node)->{state}, 'starting', 'a slot waits for transactions that run already');
ok(!port_is_open($port), '... and nobody listens so long');
$node->safe_psql('postgres', q(
SELECT changefeed.create_channel('items', 'item');
SELECT changefeed.allow_role('web');
));
$session->query_safe('COMMIT');
$session->quit;
wait_running($node);
my $early = eval { client($port) };
is($@, '', 'a role that was allowed before there was a slot');
if ($early)
{
    is(eval { $early->subscribe('items')->{type} }, 'subscribed', 'a channel that was made before there was a slot');
    is($early->rows('items'), '{"id":1,"name":"uno"}', '... has its rows');
    $early->close;
}

# ---------------------------------------------------------------------------
# Two databases, each with a port
# ---------------------------------------------------------------------------

my $second_port = free_port();
my $position = log_position($node);

# A foreign program is on the port of a third one.
my $other_port = free_port();
my $stranger = IO::Socket::INET->new(LocalHost => '127.0.0.1', LocalPort => $other_port,
    Proto => 'tcp', Listen => 5, ReuseAddr => 1) or die "could not listen: $!";
$node->safe_psql('postgres', 'CREATE DATABASE third');
$node->safe_psql('postgres', "ALTER DATABASE third SET changefeed.port = $other_port");
$node->safe_psql('third', 'CREATE EXTENSION pg_changefeed');
ok(wait_in_log($node, qr/LOG:  could not listen on "127\.0\.0\.1", port $other_port: /, $position),
    'a foreign program on the port: logged');
is(wait_running($node, 'third', no_port => 1)->{port}, undef, '... and the feed does not listen');
$position = log_position($node);

# The port of the first one is the default of all.
$node->safe_psql('second', 'CREATE EXTENSION pg_changefeed');
ok(wait_in_log($node, qr/LOG:  could not listen on/, $position), 'a second database on the same port: logged');
my $second = wait_running($node, 'second', no_port => 1);
is($second->{port}, undef, '... and it does not listen');
is(feed($node)->{port}, $port, '... while the first one does');
like(
    log_since($node, $position),
    qr/LOG:  could not listen on "127\.0\.0\.1", port $port: Address already in use\n.*HINT:  Another server uses the port\. Set changefeed\.port to a free one, in postgresql\.conf or with ALTER DATABASE "second" SET changefeed\.port = \.\.\., and restart\.\n/,
    '... with a hint');
is_one_set($node, 'several databases', 'postgres', 'second', 'third');

# The port becomes free: no restart of anything is needed.
$node->safe_psql('postgres', 'DROP EXTENSION pg_changefeed');
my $serving = wait_running($node, 'second');
is($serving->{port}, $port, 'it listens when the port has become free');
is($serving->{generation}, $second->{generation}, '... with the same workers');
is(count_in_log($node, qr/could not listen on "127\.0\.0\.1", port $port:/, $position), 1,
    '... and one line of complaint in the log');
ok(wait_off($node, 'postgres'), 'the first feed has ended');

# As the hint says.
$node->safe_psql('postgres', "ALTER DATABASE postgres SET changefeed.port = $second_port");
$node->safe_psql('postgres', q(
CREATE EXTENSION pg_changefeed;
SELECT changefeed.create_channel('items', 'item');
SELECT changefeed.allow_role('web');
));
$node->safe_psql('second', q(
CREATE TABLE item (id int PRIMARY KEY, name text);
GRANT SELECT ON item TO web;
INSERT INTO item VALUES (7, 'of the second database');
SELECT changefeed.create_channel('items', 'item');
SELECT changefeed.allow_role('web');
));
is(wait_running($node)->{port}, $second_port, 'ALTER DATABASE SET gives a database another port');
is_one_set($node, 'databases with a port each', 'postgres', 'second', 'third');
my $first_client = client($second_port);
my $second_client = client($port);
$first_client->subscribe('items');
$second_client->subscribe('items');
is($first_client->rows('items'), '{"id":1,"name":"uno"}', 'one port serves the one database');
is($second_client->rows('items'), '{"id":7,"name":"of the second database"}', '... the other port the other one');
$node->safe_psql('postgres', q(UPDATE item SET name = 'first'));
$node->safe_psql('second', q(UPDATE item SET name = 'second'));
$first_client->sync;
$second_client->sync;
is($first_client->rows('items') . $second_client->rows('items'),
    '{"id":1,"name":"first"}{"id":7,"name":"second"}', 'each gets the changes of its own database');
is(scalar($first_client->txids) + $second_client->txids, 2, '... and no others');

# The stranger goes.  By now it has been tried again in vain, since the second
# database, which failed later, has been served after its next try.
close($stranger);
is(wait_running($node, 'third')->{port}, $other_port, 'a port of a foreign program: the feed listens when it is gone');
is(count_in_log($node, qr/could not listen on "127\.0\.0\.1", port $other_port/), 1,
    '... and one line of complaint in the log');

# ---------------------------------------------------------------------------
# DROP DATABASE
# ---------------------------------------------------------------------------

my $before = feed($node, 'third');
like(sql_error($node, 'postgres', 'ALTER DATABASE third RENAME TO fourth'),
    qr/^ERROR:  55006: database "third" has a running change feed\nHINT:  Stop it with ALTER DATABASE/,
    'ALTER DATABASE RENAME is refused');
like(sql_error($node, 'postgres', 'CREATE DATABASE fourth TEMPLATE third'),
    qr/^ERROR:  55006: database "third" has a running change feed\nHINT:  Stop it with ALTER DATABASE/,
    'CREATE DATABASE TEMPLATE is refused');

# What the server refuses it refuses, and the feed does not notice.
like(sql_error($node, 'postgres', 'BEGIN; DROP DATABASE third'),
    qr/^ERROR:  25001: DROP DATABASE cannot run inside a transaction block/, 'DROP DATABASE in a transaction');
like(sql_error($node, 'postgres', 'SET ROLE web; DROP DATABASE third'),
    qr/^ERROR:  42501: must be owner of database third/, 'DROP DATABASE of somebody else');
my $tenant = $node->background_psql('third');
$tenant->query_safe('SELECT 1');
like(sql_error($node, 'postgres', 'DROP DATABASE third'),
    qr/^ERROR:  55006: database "third" is being accessed by other users\nDETAIL:  There is 1 other session using the database\./,
    'DROP DATABASE while somebody is connected');
is_deeply([ @{ feed($node, 'third') }{qw(state generation epoch gateway_pid)} ],
    [ @$before{qw(state generation epoch gateway_pid)} ], 'refused commands leave the feed alone');

# One that fails later, for a prepared transaction: the feed has ended by then,
# and comes back.
$tenant->query_safe(q(BEGIN; CREATE TABLE prepared (); PREPARE TRANSACTION 'p'));
$tenant->quit;
like(sql_error($node, 'postgres', 'DROP DATABASE third'),
    qr/^ERROR:  55006: database "third" is being accessed by other users\nDETAIL:  There is 1 prepared transaction/,
    'DROP DATABASE with a prepared transaction');
$node->safe_psql('third', q(ROLLBACK PREPARED 'p'));
ok(wait_running($node, 'third'), '... after which the feed comes back');

# One that is cancelled before the launcher has come round to stop anything
my $launcher = processes($node)->{'changefeed launcher'}[0];
kill 'STOP', $launcher;
like(sql_error($node, 'postgres', "SET statement_timeout = '300ms'; DROP DATABASE third"),
    qr/^ERROR:  57014: /, 'DROP DATABASE that is cancelled at once');
kill 'CONT', $launcher;
wait_off($node, 'third') if feed($node, 'third')->{state} ne 'running';
ok(wait_running($node, 'third'), '... after which the feed comes back');
is(sql_error($node, 'postgres', 'DROP DATABASE nowhere'),
    'ERROR:  3D000: database "nowhere" does not exist', 'DROP DATABASE of what does not exist');

# With a client, and at once.
$node->safe_psql('third', q(CREATE TABLE item (id int PRIMARY KEY); GRANT SELECT ON item TO web;
SELECT changefeed.create_channel('items', 'item'); SELECT changefeed.allow_role('web')));
my $last = client($other_port);
$last->subscribe('items');
my ($error, $took) = timed_error('postgres', 'DROP DATABASE third');
is($error, '', 'DROP DATABASE of one with a running feed works');
cmp_ok($took, '<', 15, '... without waiting for a time-out');
ok(defined $last->wait_closed, '... its clients are disconnected');
is($node->safe_psql('postgres', q(SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'pg_changefeed_%')),
    2, '... and it leaves no slot');
is_one_set($node, 'after DROP DATABASE', 'postgres', 'second');

$node->safe_psql('postgres', 'CREATE DATABASE third');
$node->safe_psql('postgres', "ALTER DATABASE third SET changefeed.port = $other_port");
$node->safe_psql('third', 'CREATE EXTENSION pg_changefeed');
wait_running($node, 'third');
$tenant = $node->background_psql('third', on_error_die => 0);
$tenant->query_safe('SELECT 1');
($error, $took) = timed_error('postgres', 'DROP DATABASE third WITH (FORCE)');
is($error, '', 'DROP DATABASE WITH (FORCE), while somebody is connected');
cmp_ok($took, '<', 15, '... without waiting for a time-out');
eval { $tenant->quit };
$node->safe_psql('postgres', 'CREATE DATABASE third');
$node->safe_psql('postgres', "ALTER DATABASE third SET changefeed.port = $other_port");
$node->safe_psql('third', 'CREATE EXTENSION pg_changefeed');
wait_running($node, 'third');

$node->safe_psql('third', 'DROP EXTENSION pg_changefeed');
($error, $took) = timed_error('postgres', 'DROP DATABASE third');
is($error, '', 'DROP DATABASE right after DROP EXTENSION works');
cmp_ok($took, '<', 15, '... without waiting for a time-out');
is($node->safe_psql('postgres', q(SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'pg_changefeed_%')),
    2, '... and leaves no slot');
is_one_set($node, 'after DROP DATABASE', 'postgres', 'second');

# ---------------------------------------------------------------------------
# Databases that cannot have a feed for the time being
# ---------------------------------------------------------------------------

$before = feed($node, 'second');
$node->safe_psql('postgres', 'ALTER DATABASE second ALLOW_CONNECTIONS false');
ok(wait_off($node, 'second'), 'ALLOW_CONNECTIONS false ends the feed');
is(sql_error($node, 'postgres', 'ALTER DATABASE second RENAME TO renamed'), '', '... so that it can be renamed');
is(sql_error($node, 'postgres', 'CREATE DATABASE copy TEMPLATE renamed'), '', '... and copied');
ok(wait_running($node, 'copy'), 'the copy of a database with the extension has a feed');
$node->safe_psql('postgres', 'ALTER DATABASE renamed ALLOW_CONNECTIONS true');
$after = wait_running($node, 'renamed', no_port => 1);
isnt($after->{epoch}, $before->{epoch}, 'ALLOW_CONNECTIONS true starts another feed');
is_one_set($node, 'renamed and copied', 'copy', 'postgres', 'renamed');

$node->safe_psql('postgres', 'ALTER DATABASE copy IS_TEMPLATE true');
ok(wait_off($node, 'copy'), 'a template has no feed');
is(wait_running($node, 'renamed')->{port}, $port, '... and no port');
is_one_set($node, 'after IS_TEMPLATE', 'postgres', 'renamed');

# ---------------------------------------------------------------------------
# The end of a decoder that is being given the lock which it waits for
# ---------------------------------------------------------------------------

my $open = $node->background_psql('renamed');
my $xid = $open->query_safe('BEGIN; SELECT pg_current_xact_id()');
$before = feed($node, 'renamed');
$node->safe_psql('renamed', 'SELECT changefeed.reset()');

my ($waiting, $decoder);
poll_until(
    sub {
        ($waiting) = rows($node, 'renamed', "SELECT pid FROM pg_locks JOIN pg_stat_activity USING (pid)
            WHERE transactionid = '$xid' AND NOT granted AND backend_type = 'changefeed decoder'");
        return $waiting;
    },
    'the decoder to wait for a transaction');
$decoder = $waiting->{pid};
kill('STOP', $decoder);
$open->query_safe('COMMIT');
is($node->safe_psql('renamed', "SELECT granted FROM pg_locks WHERE transactionid = '$xid' AND pid = $decoder"),
    't', 'a decoder has the lock of a transaction, and does not know it yet');
kill('TERM', $decoder);
kill('CONT', $decoder);
wait_running($node, 'renamed', except => $before->{generation}, no_port => 1);
ok(!is_alive($decoder), '... and is told to end');
is($node->safe_psql('renamed', "SELECT count(*) FROM pg_locks WHERE transactionid = '$xid'"),
    0, '... which gives the lock back');
$open->quit;

# ---------------------------------------------------------------------------
# Shutdown
# ---------------------------------------------------------------------------

my @gateways = map { feed($node, $_)->{gateway_pid} } 'postgres', 'renamed';
$position = log_position($node);
$start = time();
$node->stop('fast');
cmp_ok(time() - $start, '<', 30, 'the server shuts down');
is(join(' ', grep { is_alive($_) } @gateways), '', '... without leaving a gateway behind');
unlike(log_since($node), qr/PANIC|TRAP|was terminated by signal|exited with exit code [^01]/,
    'nothing crashed');

done_testing();
