# A feed that is paused, resumed and reset: clients are told, nobody gets in,
# nothing is missed, and it survives whatever ends the processes.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use ChangefeedTest;
use PostgreSQL::Test::BackgroundPsql;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('pause', conf => q(
changefeed.history_age = 1
max_prepared_transactions = 2
));
my $port = feed_port($node);

start_with_items($node);
$node->safe_psql('postgres', 'CREATE ROLE somebody LOGIN');

sub sql
{
    return $node->safe_psql('postgres', shift);
}

sub is_shut
{
    my ($name) = @_;
    my ($status, $answer) = http_get($port, '/v1/poll?channel=items');

    is($status, 503, "$name: polls are refused");
    like($answer, qr/"code":"paused".*changefeed\.resume/s, "$name: with the reason");
    like($answer, qr/^Retry-After: /m, "$name: and a time");
    like((eval { client($port); 'let in' } // $@), qr/^no WebSocket: HTTP\/1\.1 503 .*^Retry-After: /sm,
        "$name: WebSockets are refused");
    ($status, $answer) = http_get($port, '/healthz');
    is($status, 503, "$name: /healthz fails");
    like($answer, qr/"reason":"paused"/, "$name: with the reason");
    like((http_get($port, '/metrics'))[1], qr/^changefeed_paused 1$/m, "$name: /metrics is served and shows it");
    return;
}

# ---------------------------------------------------------------------------
# Pause and resume
# ---------------------------------------------------------------------------

{
    my $client = visitor($node);
    my $stream = IO::Socket::INET->new(PeerHost => '127.0.0.1', PeerPort => $port, Proto => 'tcp', Timeout => 5);
    my $poll = IO::Socket::INET->new(PeerHost => '127.0.0.1', PeerPort => $port, Proto => 'tcp', Timeout => 5);
    my $before = feed($node);
    my $token = make_token();
    my $position = log_position($node);

    print $stream "GET /v1/events?channel=items&token=$token HTTP/1.1\r\nHost: localhost:$port\r\n\r\n";
    print $poll 'GET /v1/poll?channel=items&wait=50&from=' . $client->position('items')
      . "&token=$token HTTP/1.1\r\nHost: localhost:$port\r\n\r\n";
    poll_until(sub { feed($node)->{subscriptions} == 3 }, 'three subscriptions');

    my $early = sql(q(
BEGIN;
SELECT changefeed.pause();
ROLLBACK;
BEGIN;
UPDATE item SET name = 'before' WHERE id = 2;
SELECT pg_current_xact_id();
COMMIT));
    my $late = sql(q(
BEGIN;
UPDATE item SET name = 'with it' WHERE id = 2;
SELECT changefeed.pause();
SELECT pg_current_xact_id();
COMMIT));
    is($client->wait_closed, 1001, 'pause: clients are disconnected');
    is($client->{closing}, 'paused', 'pause: and told why');
    is(($client->txids)[-1], $early =~ s/\s//gr, 'pause: what was committed before is delivered, nothing else');
    my $events = do { local $/ = undef; <$stream> };
    like($events, qr/"type":"closing","reason":"paused"/, 'pause: event streams are told');
    unlike($events, qr/with it/, 'pause: and get nothing else');
    like(do { local $/ = undef; <$poll> }, qr/"txid"|"code":"paused"/, 'pause: a poll that waited is answered');

    my $feed = wait_state($node, 'paused');
    ok($feed, 'pause: stat_feed shows it');
    isnt($feed->{paused_since}, undef, 'pause: since when');
    is($feed->{port}, $port, 'pause: the port is open');
    is_deeply([ @$feed{qw(generation epoch decoder_pid feed_worker_pid gateway_pid)} ],
        [ @$before{qw(generation epoch decoder_pid feed_worker_pid gateway_pid)} ], 'pause: nothing was restarted');
    ok(wait_in_log($node, qr/LOG:  change feed of database "postgres" is paused\n/, $position), 'pause: the log says so');
    is_shut('paused');

    # Once more
    my ($code, $output, $errors) = $node->psql('postgres', 'SELECT changefeed.pause()');
    is($code, 0, 'pause: twice is no error');
    like($errors, qr/NOTICE:  the change feed is paused already/, 'pause: but noticed');
    is(feed($node)->{paused_since}, $feed->{paused_since}, 'pause: and changes nothing');

    # It survives, and nothing that happens meanwhile is missed.  The history is
    # kept for one second only: a pause does not count.
    my @missed = ($late =~ /(\d+)/, change_item($node));
    $node->restart;
    wait_state($node, 'paused');
    is_shut('paused, after a restart');
    is(feed($node)->{paused_since}, $feed->{paused_since}, 'paused, after a restart: since the same time');
    push @missed, change_item($node);
    $node->stop('immediate');
    $node->start;
    $feed = wait_state($node, 'paused');
    poll_until(sub { $feed = feed($node); $feed->{gateway_pid} }, 'a gateway');
    kill('KILL', $feed->{gateway_pid});
    poll_until(sub { (feed($node)->{gateway_pid} // 0) != $feed->{gateway_pid} && port_is_open($port) }, 'another gateway');
    poll_until(sub { (http_get($port, '/healthz'))[0] }, 'an answer');
    is_shut('paused, with another gateway');
    push @missed, change_item($node);
    sleep(2);    # twice changefeed.history_age: this is the time that must not count

    sql('SELECT changefeed.resume()');
    my $now = wait_running($node);
    is($now->{epoch}, $before->{epoch}, 'resume: same epoch');
    is($now->{paused_since}, undef, 'resume: stat_feed shows it');
    comes_back($node, $client, 'recovered', 'resume', missed => \@missed);
    like((http_get($port, '/metrics'))[1], qr/^changefeed_paused 0$/m, 'resume: so does /metrics');
    is((http_get($port, '/healthz'))[0], 200, 'resume: /healthz is fine');
    ($code, $output, $errors) = $node->psql('postgres', 'SELECT changefeed.resume()');
    like($errors, qr/NOTICE:  the change feed is not paused/, 'resume: twice is no error, but noticed');
}

# ---------------------------------------------------------------------------
# Without its slot
# ---------------------------------------------------------------------------

{
    my $client = visitor($node);
    my $before = wait_running($node);

    like(sql_error($node, 'postgres', q(BEGIN; SELECT changefeed.pause(keep_slot => false); PREPARE TRANSACTION 'p')),
        qr/^ERROR:  0A000: cannot PREPARE a transaction that has started or stopped a change feed/, 'without a slot: not in a prepared transaction');
    sql('SELECT changefeed.pause(); SELECT changefeed.pause(keep_slot => false)');
    ok(wait_off($node, 'postgres'), 'without a slot: nothing runs, and there is no slot');
    ok(defined $client->wait_closed, 'without a slot: clients are disconnected');
    ok(!port_is_open($port), 'without a slot: nobody listens');
    my $feed = feed($node);
    is($feed->{state}, 'paused', 'without a slot: stat_feed shows it');
    isnt($feed->{paused_since}, undef, 'without a slot: since when');
    like(sql_error($node, 'postgres', 'SELECT changefeed.reset()'),
        qr/^ERROR:  55000: this database has no change feed that could be reset\nHINT:  It is paused without its slot: SELECT changefeed\.resume\(\) begins anew\./,
        'without a slot: there is nothing to reset');
    sql('SELECT changefeed.pause()');
    change_item($node);
    $node->restart;
    # The launcher has looked when another database's feed runs and ends.
    $node->safe_psql('postgres', 'CREATE DATABASE other');
    my $other_port = free_port();
    $node->safe_psql('postgres', "ALTER DATABASE other SET changefeed.port = $other_port");
    $node->safe_psql('other', 'CREATE EXTENSION pg_changefeed');
    wait_running($node, 'other');
    is(feed($node)->{state}, 'paused', 'without a slot: also after a restart');
    is($node->safe_psql('postgres', q(SELECT count(*) FROM pg_replication_slots WHERE database = 'postgres')), 0,
        'without a slot: also after a restart there is none');

    # The other one has a feed of its own.
    $node->safe_psql('other', 'SELECT changefeed.pause()');
    ok(wait_state($node, 'paused', 'other'), 'another database is paused by itself');
    sql('SELECT changefeed.resume()');
    my $now = wait_running($node);
    is(feed($node, 'other')->{state}, 'paused', '... and stays so');
    isnt($now->{epoch}, $before->{epoch}, 'resume without a slot: another epoch');
    comes_back($node, $client, 'refused unknown_epoch', 'resume without a slot', missed => []);
    is(sql_error($node, 'postgres', 'DROP DATABASE other'), '', 'a paused database can be dropped');
    sql('BEGIN; SELECT changefeed.pause(false); SELECT changefeed.resume(); COMMIT');
    isnt(wait_running($node, 'postgres', except => $now->{generation})->{epoch}, $now->{epoch},
        'both in one transaction: begins anew');
}

# ---------------------------------------------------------------------------
# Reset
# ---------------------------------------------------------------------------

{
    my $client = visitor($node);
    my $before = wait_running($node);

    sql('BEGIN; SELECT changefeed.reset(); ROLLBACK');
    change_item($node);
    $client->sync;
    is(feed($node)->{generation}, $before->{generation}, 'reset: not if it is rolled back');
    sql('SELECT changefeed.reset()');
    ok(defined $client->wait_closed, 'reset: clients are disconnected');
    my $now = wait_running($node, 'postgres', except => $before->{generation});
    isnt($now->{epoch}, $before->{epoch}, 'reset: another epoch');
    is($node->safe_psql('postgres', q(SELECT string_agg(slot_name, ' ') FROM pg_replication_slots)), $now->{slot_name},
        'reset: and another slot');
    is_one_set($node, 'reset');
    comes_back($node, $client, 'refused unknown_epoch', 'reset', missed => []);

    # A feed that does not start, as the library does not know the extension.
    $client = visitor($node);
    sql(q(UPDATE pg_extension SET extversion = '99.0' WHERE extname = 'pg_changefeed'));
    $node->restart;
    ok(wait_state($node, 'version mismatch'), 'a feed that does not start');
    my $slot = sql('SELECT slot_name FROM pg_replication_slots');
    is($slot, $now->{slot_name}, '... keeps its slot');
    sql('SELECT changefeed.reset()');
    ok(poll_until(sub { my ($row) = rows($node, 'postgres', 'SELECT slot_name FROM pg_replication_slots');
                $row && $row->{slot_name} ne $slot }, 'another slot'), '... can be reset');
    sql(q(UPDATE pg_extension SET extversion = '0.1.0' WHERE extname = 'pg_changefeed'));
    isnt(wait_running($node)->{epoch}, $now->{epoch}, '... and has another epoch when it starts');
    comes_back($node, $client, 'refused unknown_epoch', 'reset of a feed that does not start', missed => []);
}

# ---------------------------------------------------------------------------
# Rights
# ---------------------------------------------------------------------------

foreach my $call ('pause()', 'pause(false)', 'resume()', 'reset()')
{
    my $name = $call =~ s/\(.*/()/r;

    like(sql_error($node, 'postgres', "SET ROLE somebody; SELECT changefeed.$call"),
        qr/^ERROR:  42501: must be owner of the database to use changefeed\.\Q$name\E/, "$call takes the owner");
    like(sql_error($node, 'postgres', "BEGIN READ ONLY; SELECT changefeed.$call"),
        qr/^ERROR:  25006: cannot execute \Q$name\E in a read-only transaction/, "$call writes");
}
like(sql_error($node, 'postgres', 'SELECT changefeed.pause(NULL)'),
    qr/^ERROR:  22004: argument "keep_slot" must not be null/, 'pause(NULL)');
is(feed($node)->{state}, 'running', 'what was refused has changed nothing');
sql('ALTER DATABASE postgres OWNER TO somebody');
sql('SET ROLE somebody; SELECT changefeed.pause()');
ok(wait_state($node, 'paused'), 'the owner of the database may');
sql('SET ROLE somebody; SELECT changefeed.resume()');
ok(wait_running($node), 'and again');

# ---------------------------------------------------------------------------
# Without the library
# ---------------------------------------------------------------------------

conf($node, shared_preload_libraries => "''");
$node->restart;
like(sql_error($node, 'postgres', 'SELECT changefeed.reset()'),
    qr/^ERROR:  55000: pg_changefeed was not loaded when the server started\nHINT:/, 'without the library: said');
$node->stop;
unlike(log_since($node), qr/PANIC|TRAP|was terminated by signal (?!9:)/, 'nothing crashed');
done_testing();
