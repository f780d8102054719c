# Processes that end, are killed, and servers that are restarted: afterwards
# there is exactly one set of workers, and a client that comes back with its
# position gets what it missed, each transaction once.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use ChangefeedTest;
use PostgreSQL::Test::BackgroundPsql;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# Small segments, so that a little WAL is enough to invalidate a slot.
my $node = new_node('restart', wal_segment => 1, conf => q(
max_wal_size = 16MB
min_wal_size = 2MB
));
my $port = feed_port($node);

my $feed = start_with_items($node);
is_one_set($node, 'at first');
my $slot = $feed->{slot_name};

# ---------------------------------------------------------------------------
# Clients that come and go
# ---------------------------------------------------------------------------

my $next = 100;

# Commits some transactions of each kind; their ids, in order.
sub write_some
{
    my ($n) = @_;
    my @txids;

    for my $i (1 .. $n // 3)
    {
        my $id = $next++;

        foreach my $statement (
            "INSERT INTO item VALUES ($id, 'new')",
            "UPDATE item SET name = name || '+' WHERE id IN (1, $id)",
            "UPDATE item SET id = -id WHERE id = $id",
            $i % 2 ? "DELETE FROM item WHERE id = -$id" : "UPDATE item SET name = 'other' WHERE id = -$id")
        {
            push @txids,
              $node->safe_psql('postgres', "BEGIN; $statement; SELECT pg_current_xact_id(); COMMIT");
        }
    }
    return @txids;
}

# A client that comes back with what $old had.  @written were committed since
# something happened to its connection: some of it may have come before that.
sub is_resumed
{
    my ($old, $name, @written) = @_;
    my %got = map { $_ => 1 } $old->txids;
    return goes_on(comes_back($node, $old, 'recovered', $name, missed => [ grep { !$got{$_} } @written ]), $name);
}

sub is_resnapshotted
{
    my ($old, $name) = @_;
    return goes_on(comes_back($node, $old, 'refused unknown_epoch', $name, missed => []), $name);
}

# With changes of each kind.
sub goes_on
{
    my ($client, $name) = @_;
    my @more = write_some(1);

    $client->sync;
    is(join(' ', ($client->txids)[ -@more .. -1 ]), join(' ', @more), "$name: and it goes on, each once and in order");
    is($client->rows('items'), item_rows($node), "$name: with the right rows");
    $client->close;
    return;
}

sub is_same_feed
{
    my ($name) = @_;
    my $now = wait_running($node);

    is($now->{slot_name}, $slot, "$name: same slot");
    is($now->{epoch}, $feed->{epoch}, "$name: same epoch");
    return $now;
}

# ---------------------------------------------------------------------------
# pg_terminate_backend
# ---------------------------------------------------------------------------

my $session = $node->background_psql('postgres');
$session->query_safe(q(BEGIN; CREATE TABLE of_session (a int); INSERT INTO of_session VALUES (1)));

foreach my $type ('changefeed query worker', 'changefeed decoder', 'changefeed feed worker', 'changefeed launcher')
{
    my $client = visitor($node);
    my $before = wait_running($node);
    my $pid = processes($node)->{$type}[0];
    my $name = "pg_terminate_backend of a $type";

    is($node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)"), 't', $name);
    ok(poll_until(sub { !is_alive($pid) }, "$type to end"), "$name: it ends");
    # While there is nobody, or just before.
    my @missed = write_some();

    if ($type eq 'changefeed query worker')
    {
        is_one_set($node, $name);
        is(feed($node)->{generation}, $before->{generation}, "$name: nobody else is concerned");
        $client->sync;
        is($client->rows('items'), item_rows($node), "$name: not even a client");
        is(join(' ', ($client->txids)[ -@missed .. -1 ]), join(' ', @missed), "$name: which misses nothing");
        my $other = client($port);
        $other->subscribe('items');
        is($other->rows('items'), item_rows($node), "$name: a new client gets a snapshot");
        $other->close;
        $client->close;
        next;
    }

    ok(defined $client->wait_closed, "$name: clients are disconnected");
    wait_running($node, 'postgres', except => $before->{generation});
    is_one_set($node, $name);
    is_same_feed($name);
    ok(poll_until(sub { !is_alive($before->{gateway_pid}) }, 'the old gateway to end'),
        "$name: the old gateway is gone");
    is(scalar(() = gateways_of($node)), 1, "$name: there is one new gateway");
    is_resumed($client, $name, @missed);
}

# ---------------------------------------------------------------------------
# pg_cancel_backend means nothing to them
# ---------------------------------------------------------------------------

foreach my $type ('changefeed launcher', 'changefeed decoder', 'changefeed feed worker', 'changefeed query worker')
{
    my $client = visitor($node);
    my $before = processes($node);

    foreach my $pid (@{ $before->{$type} })
    {
        $node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)");
    }
    # Whatever it does at once shows in what follows.
    my @txids = write_some();
    my $synced = eval {
        $client->sync;
        my $other = client($port);
        $other->subscribe('items');
        $other->close;
        1;
    };
    ok($synced, "pg_cancel_backend of a $type: clients stay connected") or diag($@);
    is_deeply(processes($node), $before, "pg_cancel_backend of a $type: nobody ends");
    is(join(' ', grep { defined } ($client->txids)[ -@txids .. -1 ]), join(' ', @txids),
        "pg_cancel_backend of a $type: nothing is missed");
    $client->close;
    wait_running($node);
}
is_one_set($node, 'after pg_cancel_backend');

# ---------------------------------------------------------------------------
# kill -9 of the gateway costs its clients a reconnect, and the database nothing
# ---------------------------------------------------------------------------

$feed = wait_running($node);
foreach my $n (1 .. 2)
{
    my $client = visitor($node);
    my $before = wait_running($node);
    my $position = log_position($node);
    my $name = "kill -9 of the gateway, $n";

    kill('KILL', $before->{gateway_pid});
    ok(defined $client->wait_closed, "$name: clients are disconnected");
    my @missed = write_some();
    my $now = poll_until(
        sub {
            my $now = feed($node);
            return $now && ($now->{gateway_pid} // $before->{gateway_pid}) != $before->{gateway_pid}
              ? $now : undef;
        },
        'another gateway');
    wait_in_log($node, qr/changefeed gateway started with PID $now->{gateway_pid}\b/, $position);
    my $log = log_since($node, $position);
    my ($ended) = $log =~ /^\S+ (\S+) .*LOG:  changefeed gateway with PID $before->{gateway_pid} has ended/m;
    my ($started) = $log =~ /^\S+ (\S+) .*LOG:  changefeed gateway started with PID $now->{gateway_pid}\b/m;
    my ($from, $to) = map { /(\d+):(\d+):([\d.]+)/ ? ($1 * 60 + $2) * 60 + $3 : undef } $ended, $started;

    $to += 24 * 3600 if $to < $from;
    cmp_ok($to - $from, '<=', 2, "$name: it is back within two seconds");
    is($now->{feed_worker_pid}, $before->{feed_worker_pid}, "$name: the feed worker stays");
    is($now->{generation}, $before->{generation}, "$name: and so does everything else");
    is(join(' ', gateways_of($node)), $now->{gateway_pid}, "$name: there is one gateway");
    is_resumed($client, $name, @missed);
}
is_one_set($node, 'after kill -9 of the gateway');
is($session->query_safe(q(SELECT a FROM of_session)), 1, 'a transaction of a session goes on all the while');
$session->query_safe('COMMIT');
$session->quit;
unlike(log_since($node), qr/terminating any other active server processes/, 'the server never restarted');

# ---------------------------------------------------------------------------
# kill -9 of a worker: the server restarts all processes
# ---------------------------------------------------------------------------

foreach my $type ('changefeed query worker', 'changefeed feed worker', 'changefeed decoder', 'changefeed launcher')
{
    my $client = visitor($node);
    my $before = wait_running($node);
    my $pid = processes($node)->{$type}[0];
    my $position = log_position($node);
    my $name = "kill -9 of a $type";

    kill('KILL', $pid);
    ok(wait_in_log($node, qr/LOG:  database system is ready to accept connections/, $position), $name);
    ok(defined $client->wait_closed, "$name: clients are disconnected");
    ok(poll_until(sub { !is_alive($before->{gateway_pid}) }, 'the old gateway to end'),
        "$name: the old gateway is gone");
    my @missed = write_some();
    wait_running($node);
    is_one_set($node, $name);
    is_same_feed($name);
    is(scalar(() = gateways_of($node)), 1, "$name: there is one new gateway");
    is_resumed($client, $name, @missed);
}

# ---------------------------------------------------------------------------
# CREATE and DROP EXTENSION while there is no launcher
# ---------------------------------------------------------------------------

sub without_launcher
{
    my ($database, $statement) = @_;
    my $pid = processes($node)->{'changefeed launcher'}[0];

    $node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
    poll_until(sub { !is_alive($pid) }, 'the launcher to end');
    $node->safe_psql($database, $statement);
    ok(!processes($node)->{'changefeed launcher'}, "$statement while there is no launcher");
    return;
}

my $second_port = free_port();
$node->safe_psql('postgres', 'CREATE DATABASE second');
$node->safe_psql('postgres', "ALTER DATABASE second SET changefeed.port = $second_port");
without_launcher('second', 'CREATE EXTENSION pg_changefeed');
is(wait_running($node, 'second')->{port}, $second_port, '... is obeyed by the next one');
is_one_set($node, 'CREATE EXTENSION while there is no launcher', 'postgres', 'second');
without_launcher('second', 'DROP EXTENSION pg_changefeed');
ok(wait_off($node, 'second'), '... is obeyed by the next one');
is_one_set($node, 'DROP EXTENSION while there is no launcher');

# What it was told is forgotten in a crash: it has to look for itself.
foreach my $what ('CREATE', 'DROP')
{
    my $position;

    without_launcher('second', "$what EXTENSION pg_changefeed");
    $position = log_position($node);
    kill('KILL', processes($node)->{'changefeed decoder'}[0]);
    wait_in_log($node, qr/LOG:  database system is ready to accept connections/, $position);
    wait_running($node);
    if ($what eq 'CREATE')
    {
        is(wait_running($node, 'second')->{port}, $second_port, '... and a crash: found all the same');
        is_one_set($node, "$what EXTENSION and a crash", 'postgres', 'second');
    }
    else
    {
        ok(wait_off($node, 'second'), '... and a crash: found all the same');
        is_one_set($node, "$what EXTENSION and a crash");
    }
}
is(sql_error($node, 'postgres', 'DROP DATABASE second'), '', 'nothing holds the database any more');
is_same_feed('after all that');

# ---------------------------------------------------------------------------
# Restarts of the server
# ---------------------------------------------------------------------------

foreach my $mode ('fast', 'immediate')
{
    my $client = visitor($node);
    my $before = wait_running($node);
    my $name = "shutdown ($mode)";

    # Committed, but perhaps not sent any more.
    my @before = write_some(1);
    $node->stop($mode);
    ok(defined $client->wait_closed, "$name: clients are disconnected");
    ok(poll_until(sub { !is_alive($before->{gateway_pid}) }, 'the old gateway to end'),
        "$name: the gateway is gone");
    my @missed = @before;

    # Without the library, so without the feed.
    if ($mode eq 'immediate')
    {
        conf($node, shared_preload_libraries => "''");
        $node->start;
        push @missed, write_some();
        $node->stop($mode);
        conf($node, shared_preload_libraries => "'pg_changefeed'");
    }
    $node->start;
    push @missed, write_some();
    wait_running($node);
    is_one_set($node, $name);
    is_same_feed($name);
    is_resumed($client, $name, @missed);
}

# ---------------------------------------------------------------------------
# The slot is lost
# ---------------------------------------------------------------------------

sub is_new_feed
{
    my ($name, $old) = @_;
    my $now = wait_running($node);

    isnt($now->{epoch}, $old->{epoch}, "$name: another epoch");
    isnt($now->{slot_name}, $old->{slot_name}, "$name: another slot");
    is_one_set($node, $name);
    return;
}

# While the workers are down.
{
    my $client = visitor($node);
    my $before = wait_running($node);

    conf($node, shared_preload_libraries => "''");
    $node->restart;
    $node->safe_psql('postgres', "SELECT pg_drop_replication_slot('$slot')");
    write_some();
    conf($node, shared_preload_libraries => "'pg_changefeed'");
    $node->restart;
    is_new_feed('the slot was dropped', $before);
    is_resnapshotted($client, 'the slot was dropped');
}

# The server invalidates it, because it holds too much WAL.
{
    my $client = visitor($node);
    my $before = wait_running($node);
    my $position;

    conf($node, shared_preload_libraries => "''", max_slot_wal_keep_size => '1MB');
    $node->restart;
    $node->safe_psql('postgres', 'SELECT pg_logical_emit_message(false, $$t$$, $$x$$); SELECT pg_switch_wal()')
      foreach 1 .. 6;
    $node->safe_psql('postgres', 'CHECKPOINT');
    is($node->safe_psql('postgres', "SELECT wal_status FROM pg_replication_slots WHERE slot_name = '$before->{slot_name}'"),
        'lost', 'the slot was invalidated');
    write_some();
    conf($node, shared_preload_libraries => "'pg_changefeed'", max_slot_wal_keep_size => -1);
    $position = log_position($node);
    $node->restart;
    is_new_feed('the slot was invalidated', $before);
    like(log_since($node, $position),
        qr/LOG:  change feed of database "postgres" drops replication slot "$before->{slot_name}" because the server has invalidated it\n.*DETAIL:  WAL that it needs may have been removed\.  Every client gets a fresh snapshot\.\n.*HINT:  "max_slot_wal_keep_size" should be greater/,
        'the slot was invalidated: the log says so');
    is_resnapshotted($client, 'the slot was invalidated');
}

# A position that never was one of this feed.
{
    my $client = client($port);

    like(JSON::PP->new->encode($client->request(type => 'subscribe', channel => 'items', from => 'x')),
        qr/"code":"22023"/, 'what is not a position is refused');
    $client->close;
}

$node->stop;
unlike(log_since($node), qr/PANIC|TRAP|was terminated by signal (?!9:)/, 'nothing else crashed');
done_testing();
