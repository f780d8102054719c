# What happens to the slot behind our back: it is dropped, invalidated, there
# are two, or it has to be given up.  Each time there is a new epoch, a line in
# the log that says why, and every client is told and has the right rows.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use ChangefeedTest;
use PostgreSQL::Test::BackgroundPsql;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('slots', wal_segment => 1, conf => q(
max_wal_size = 16MB
min_wal_size = 2MB
changefeed.history_wal_size = 64MB
max_prepared_transactions = 2
));
my $port = feed_port($node);

start_with_items($node);
$node->safe_psql('postgres', 'CREATE TABLE filler (a text); CREATE DATABASE other');
$node->safe_psql('other', 'CREATE TABLE filler (a text)');

# Some clients that are connected and have what is there.
sub visitors
{
    my @clients = map { visitor($node) } 1 .. 3;

    $_->sync foreach @clients;
    return @clients;
}

# Megabytes of WAL.
sub write_wal
{
    my ($database, $megabytes) = @_;
    $node->safe_psql($database, "INSERT INTO filler SELECT repeat(md5(i::text), 30) FROM generate_series(1, $megabytes * 900) i; TRUNCATE filler");
    return;
}

sub held
{
    my ($database) = @_;
    return feed($node)->{wal_held_bytes} // 0;
}

# What an attentive application sees: its connection ends, it comes back and is
# told why it starts again.
sub are_told
{
    my ($name, $before, $reason, @clients) = @_;
    my $now = wait_running($node, 'postgres', except => $before->{generation});

    isnt($now->{epoch}, $before->{epoch}, "$name: stat_feed shows another epoch");
    isnt($now->{slot_name}, $before->{slot_name}, "$name: and slot");
    is($node->safe_psql('postgres', q(SELECT string_agg(slot_name, ' ') FROM pg_replication_slots)),
        $now->{slot_name}, "$name: the only one");
    is_one_set($node, $name);
    foreach my $i (0 .. $#clients)
    {
        my $old = $clients[$i];

        ok(defined $old->wait_closed, "$name: client $i was disconnected");
        my $client = client($port);
        my $answer = $client->subscribe('items', $old->position('items'), $old->cache('items'));
        ok(!$answer->{recovered}, "$name: client $i begins anew");
        is(join(' ', @{ $client->{resyncs} // [] }), $reason, "$name: client $i is told why");
        change_item($node);
        $client->sync;
        is($client->rows('items'), item_rows($node), "$name: client $i has the right rows");

        # From then on all is as before.
        my $again = client($port);
        $answer = $again->subscribe('items', $client->position('items'), $client->cache('items'));
        ok($answer->{recovered}, "$name: the new positions are good");
        $again->close;
        $client->close;
        $old->close;
    }
    return $now;
}

# Ends the decoder and drops the slot before the next one takes it.
sub drop_slot
{
    my ($feed) = @_;

    $node->safe_psql('postgres', qq(
DO \$\$
BEGIN
    PERFORM pg_terminate_backend($feed->{decoder_pid});
    FOR i IN 1 .. 10000 LOOP
        BEGIN
            PERFORM pg_drop_replication_slot('$feed->{slot_name}');
            RETURN;
        EXCEPTION WHEN object_in_use THEN
            PERFORM pg_sleep(0.001);
        END;
    END LOOP;
    RAISE 'the slot was never free';
END
\$\$));
    return;
}

# ---------------------------------------------------------------------------
# Somebody ends the decoder and drops the slot before the next one takes it
# ---------------------------------------------------------------------------

{
    my @clients = visitors();
    my $before = wait_running($node);
    my $position = log_position($node);

    drop_slot($before);
    change_item($node);
    are_told('dropped behind our back', $before, 'unknown_epoch', @clients);
    my $log = log_since($node, $position);
    like($log, qr/LOG:  change feed of database "postgres" created replication slot "pg_changefeed_\d+_[0-9a-f]{16}"/,
        'dropped behind our back: the log says that there is a new one');
}

# ---------------------------------------------------------------------------
# The server invalidates it while the decoder cannot keep up
# ---------------------------------------------------------------------------

{
    my @clients = visitors();
    my $before = wait_running($node);
    my $position = log_position($node);

    $node->safe_psql('postgres', q(ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'));
    $node->reload;
    kill('STOP', $before->{decoder_pid});
    write_wal('other', 10);
    $node->safe_psql('postgres', 'SELECT pg_switch_wal()');

    # The checkpointer waits until the decoder has let go of it.
    my $checkpoint = $node->background_psql('postgres');
    $checkpoint->query_until(qr/begun/, "\\echo begun\nCHECKPOINT;\n");
    ok(wait_in_log($node, qr/terminating process $before->{decoder_pid} to release replication slot/, $position),
        'invalidated: the server wants the decoder to let go of it');
    kill('CONT', $before->{decoder_pid});
    $checkpoint->quit;
    change_item($node);
    are_told('invalidated', $before, 'unknown_epoch', @clients);
    like(log_since($node, $position),
        qr/LOG:  change feed of database "postgres" drops replication slot "$before->{slot_name}" because the server has invalidated it/,
        'invalidated: the log says so');
    like(log_since($node, $position),
        qr/LOG:  "max_slot_wal_keep_size" is smaller than "changefeed\.history_wal_size" of database "postgres"\n/,
        'invalidated: and which setting is to blame');
    like((http_get($port, '/metrics'))[1], qr/^changefeed_wal_held_limit_bytes 1048576$/m, 'invalidated: the lower bound is in /metrics');
    $node->safe_psql('postgres', 'ALTER SYSTEM RESET max_slot_wal_keep_size');
    $node->reload;
}

# ---------------------------------------------------------------------------
# Two slots of one database: an older one comes back with files of a backup
# ---------------------------------------------------------------------------

{
    my $old = wait_running($node);
    my $directory = $node->data_dir . "/pg_replslot/$old->{slot_name}";
    my $kept = PostgreSQL::Test::Utils::tempdir() . '/slot';

    $node->stop;
    system_or_bail('cp', '-r', $directory, $kept);
    $node->start;
    drop_slot(wait_running($node));
    my $before = wait_running($node, 'postgres', except => 1);
    isnt($before->{slot_name}, $old->{slot_name}, 'left over: there is a new slot');
    my @clients = visitors();
    $node->stop;
    system_or_bail('cp', '-r', $kept, $directory);
    my $position = log_position($node);
    $node->start;
    my $now = wait_running($node);
    is($now->{slot_name}, $before->{slot_name}, 'left over: the one that is ahead is used');
    like(log_since($node, $position),
        qr/LOG:  change feed of database "postgres" drops replication slot "$old->{slot_name}" because another one is further ahead/,
        'left over: the other one is dropped, and the log says so');
    is_one_set($node, 'left over');
    my $client = client($port);
    my $answer = $client->subscribe('items', $clients[0]->position('items'), $clients[0]->cache('items'));
    ok($answer->{recovered}, 'left over: positions are good') or diag(join(' ', @{ $client->{resyncs} }));
    $client->sync;
    is($client->rows('items'), item_rows($node), 'left over: with the right rows');
    $_->close foreach $client, @clients;
}

# ---------------------------------------------------------------------------
# A quiet database while another one writes: the slot follows
# ---------------------------------------------------------------------------

{
    my @clients = visitors();
    my $before = wait_running($node);
    my $most = 0;

    foreach (1 .. 30)
    {
        write_wal('other', 8);
        my $now = held();
        $most = $now if $now > $most;
    }
    cmp_ok($most, '<', 64 * 1024 * 1024, 'quiet: never more than allowed');
    note("$most bytes at most");
    is(feed($node)->{slot_name}, $before->{slot_name}, 'quiet: the slot is the same');
    is($clients[0]->{resyncs}, undef, 'quiet: clients are not concerned');
    my $client = client($port);
    my $answer = $client->subscribe('items', $clients[0]->position('items'), $clients[0]->cache('items'));
    ok($answer->{recovered}, 'quiet: the last position is good');
    $_->close foreach $client, @clients;
}

# The same with everything at its largest: this database writes, too, and a
# client does not read.
{
    my $before = wait_running($node);
    my $stuck = client($port);
    my $most = 0;

    $stuck->subscribe('items');
    foreach my $i (1 .. 30)
    {
        $node->safe_psql('postgres', "INSERT INTO item SELECT 1000 * $i + j, (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 60)) FROM generate_series(1, 900) j;");
        $node->safe_psql('postgres', 'DELETE FROM item WHERE id > 1000');
        my $now = held();
        $most = $now if $now > $most;
    }
    cmp_ok($most, '<', 64 * 1024 * 1024, 'busy: never more than allowed');
    note("$most bytes at most");
    is(feed($node)->{slot_name}, $before->{slot_name}, 'busy: the slot is the same');
    # By now it has been disconnected, or it learns what it has missed.
    my $synced = eval { $stuck->sync; poll_until(sub { $stuck->{channels}{items}{ready} || do { $stuck->sync; 0 } }, 'ready'); 1 };
    ok($synced, 'busy: the client that did not read catches up') or diag($@);
    ok($stuck->rows('items') eq item_rows($node), 'busy: with the right rows');
    note('it was told: ' . join(' ', @{ $stuck->{resyncs} // [] }));
    $stuck->close;
}

# ---------------------------------------------------------------------------
# A transaction that stays open while others write: the slot is given up
# ---------------------------------------------------------------------------

{
    my @clients = visitors();
    my $before = wait_running($node);
    my $position = log_position($node);
    my $open = $node->background_psql('postgres');
    my $most = 0;

    $open->query_safe(q(BEGIN; INSERT INTO item VALUES (50, 'of the open transaction')));
    my $given_up = poll_until(
        sub {
            write_wal('other', 8);
            my $feed = feed($node) or return;
            $most = $feed->{wal_held_bytes} if ($feed->{wal_held_bytes} // 0) > $most;
            return log_since($node, $position) =~ /WARNING:  change feed of database "postgres" drops its replication slot and begins anew/;
        },
        'the slot to be given up');
    ok($given_up, 'given up: because of an open transaction');
    note("$most bytes at most");
    cmp_ok($most, '<', 4 * 64 * 1024 * 1024, 'given up: in time');
    like(log_since($node, $position), qr/HINT:  Look for a transaction that stays open/, 'given up: the log says why');
    like(log_since($node, $position),
        qr/WARNING:  replication slot of the change feed of database "postgres" keeps (4[89]|5\d|6[0-4]) MB of WAL\n.*DETAIL:  At 64 MB \("changefeed\.history_wal_size"\) it is lost, .*\n.*HINT:  Look in pg_stat_activity.*\n(?s:.*)WARNING:  change feed of database "postgres" drops its replication slot/,
        'given up: it was said before that it would be');
    $open->query_safe('COMMIT');
    $open->quit;
    are_told('given up', $before, 'unknown_epoch', @clients);
    cmp_ok(feed($node)->{slot_losses}, '>=', 1, 'given up: stat_feed counts it');
    my $metrics = (http_get($port, '/metrics'))[1];
    like($metrics, qr/^changefeed_slot_losses_total\{cause="given_up"\} [1-9]/m, 'given up: /metrics too');
    like($metrics, qr/^changefeed_slot_losses_total\{cause="invalidated"\} 0/m, 'given up: by its cause');
    like($metrics, qr/^changefeed_wal_held_limit_bytes 67108864$/m, 'given up: /metrics has the bound');
}

# ---------------------------------------------------------------------------
# A feed that does not start at all: nobody confirms its slot, which is bounded
# all the same
# ---------------------------------------------------------------------------

{
    my @clients = visitors();
    my $before = wait_running($node);
    my $position = log_position($node);

    # What the library does not know it does not serve.
    $node->safe_psql('postgres', q(UPDATE pg_extension SET extversion = '99.0' WHERE extname = 'pg_changefeed'));
    $node->safe_psql('postgres', "SELECT pg_terminate_backend($before->{decoder_pid})");
    ok(wait_in_log($node, qr/ERROR:  change feed of database "postgres" does not start: extension and library do not fit\n/, $position),
        'not started: the log says why');
    write_wal('other', 8) foreach 1 .. 20;
    ok(wait_in_log($node,
            qr/WARNING:  change feed of database "postgres" drops its replication slot, as it does not start\n.*DETAIL:  The slot kept \d+ MB of WAL from being removed, which is more than twice the 64 MB/,
            $position),
        'not started: the slot is dropped when it keeps too much WAL');
    $node->safe_psql('postgres', q(UPDATE pg_extension SET extversion = '0.1.0' WHERE extname = 'pg_changefeed'));
    are_told('not started', $before, 'unknown_epoch', @clients);
}

# ---------------------------------------------------------------------------
# A scan for the extension that did not come to its end
# ---------------------------------------------------------------------------

{
    my $other_port = free_port();

    $node->safe_psql('postgres', "ALTER DATABASE other SET changefeed.port = $other_port");
    $node->safe_psql('other', 'CREATE EXTENSION pg_changefeed');
    wait_running($node, 'other');
    $node->safe_psql('postgres', 'ALTER DATABASE other ALLOW_CONNECTIONS false');
    wait_off($node, 'other');

    # Held over the time at which it is scanned.
    $node->safe_psql('postgres', 'ALTER DATABASE other ALLOW_CONNECTIONS true');
    wait_running($node, 'other');
    my $session = $node->background_psql('other');
    $session->query_safe(q(BEGIN; LOCK TABLE pg_extension IN ACCESS EXCLUSIVE MODE));
    $node->safe_psql('postgres', 'ALTER DATABASE other ALLOW_CONNECTIONS false');
    wait_off($node, 'other');
    $node->safe_psql('postgres', 'ALTER DATABASE other ALLOW_CONNECTIONS true');
    my $scan = poll_until(sub { processes($node)->{'changefeed scan'} }, 'a scan that waits for the lock');
    ok($scan, 'a scan waits for a lock');
    $node->safe_psql('postgres', "SELECT pg_terminate_backend($scan->[0])");
    ok(poll_until(sub { !is_alive($scan->[0]) }, 'the scan to end'), 'and is terminated');
    ok(poll_until(sub { processes($node)->{'changefeed scan'} }, 'another scan'), 'it is repeated');
    $session->query_safe('COMMIT');
    $session->quit;
    ok(wait_running($node, 'other'), 'and finds the extension');
    is_one_set($node, 'after the scan', 'postgres', 'other');
}

$node->stop;
unlike(log_since($node), qr/PANIC|TRAP|was terminated by signal/, 'nothing crashed');
done_testing();
