# The gateway is the process that strangers talk to: what it has and may do, and
# that it ends when the process that started it does.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use ChangefeedTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('sandbox', conf => q(
changefeed.gateways = 2
));
my $port = feed_port($node);

# Something in the environment and on disk that must not get through.
$ENV{CHANGEFEED_TEST_SECRET} = 'in the environment';
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION pg_changefeed');
my $feed = wait_running($node);
$node->safe_psql(
    'postgres', q(
CREATE ROLE web;
CREATE TABLE item (id int PRIMARY KEY, name text);
GRANT SELECT ON item TO web;
INSERT INTO item SELECT i, repeat('x', 1000) FROM generate_series(1, 1000) i;
SELECT changefeed.create_channel('items', 'item');
SELECT changefeed.allow_role('web');
));

sub all_gateways
{
    my $found = poll_until(
        sub {
            my @gateways = gateways_of($node);
            return @gateways == 2 ? \@gateways : undef;
        },
        'two gateways');
    return @{ $found // [] };
}

# It has come so far that it accepts clients.
sub wait_served
{
    my $client = client($port);
    $client->subscribe('items');
    return $client;
}

my @gateways = all_gateways();
is(scalar(@gateways), 2, 'changefeed.gateways');
wait_in_log($node, qr/changefeed gateway started with PID $_\b/) foreach @gateways;

# ---------------------------------------------------------------------------
# What it has
# ---------------------------------------------------------------------------

# Fields of /proc/PID/stat behind the name: state, parent, group, session
sub stat_of
{
    my ($pid) = @_;
    my ($fields) = slurp_file("/proc/$pid/stat") =~ /.*\) (.*)/s;
    my @fields = split(/ /, $fields);
    return (parent => $fields[1], group => $fields[2]);
}

# Descriptor => what it is
sub descriptors
{
    my ($pid) = @_;
    my %found;

    opendir(my $dir, "/proc/$pid/fd") or return;
    foreach my $fd (grep { /^\d+$/ } readdir($dir))
    {
        my $target = readlink("/proc/$pid/fd/$fd");
        $found{$fd} = $target if defined $target;
    }
    closedir($dir);
    return %found;
}

# Inodes of TCP and Unix sockets: what they are
sub sockets
{
    my %found;

    foreach my $line (split(/\n/, slurp_file('/proc/net/tcp') . slurp_file('/proc/net/tcp6')))
    {
        my (undef, $local, $remote, $state, $inode) = (split(' ', $line))[ 0 .. 3, 9 ];

        next if ($local // '') !~ /:([0-9A-F]{4})$/;
        $found{$inode} = ($state eq '0A' ? 'listening on ' : 'connected at ') . hex($1);
    }
    foreach my $line (split(/\n/, slurp_file('/proc/net/unix')))
    {
        my ($inode, $path) = (split(' ', $line))[ 6, 7 ];

        $found{$inode} = 'unix ' . ($path // 'without name') if ($inode // '') =~ /^\d+$/;
    }
    return %found;
}

my $data = $node->data_dir;
foreach my $pid (@gateways)
{
    my %stat = stat_of($pid);
    my $status = process_status($pid);
    my $link = readlink("/proc/$pid/exe") // '';

    like($link, qr/\/pg_changefeed_gateway( \(deleted\))?$/, 'the gateway is a program of its own');
    is($stat{parent}, $feed->{feed_worker_pid}, '... started by the feed worker');
    is($stat{group}, $pid, '... in a process group of its own');

    my $environment = slurp_file("/proc/$pid/environ");
    is($environment =~ tr/\0//dr, '', '... with an empty environment');
    is(slurp_file("/proc/$pid/cmdline"), "pg_changefeed_gateway\0--link-fd\0003\0", '... and nothing in its arguments');

    is($status->{NoNewPrivs}, 1, 'it can get no privileges (NoNewPrivs)');
    is($status->{Seccomp}, 2, 'a seccomp filter is in force');
    is(slurp_file("/proc/$pid/oom_score_adj") + 0, 500, 'it is the first to go when memory is short');
    is(hex($status->{CapEff} // 0), 0, 'it has no capabilities');

    my %fds = descriptors($pid);
    my %sockets = sockets();
    my @log = grep { defined } @fds{ 1, 2 };
    my @others;

    is($fds{0}, '/dev/null', 'it reads nothing');
    foreach my $fd (sort { $a <=> $b } grep { $_ > 2 } keys %fds)
    {
        push @others, $fds{$fd} =~ /^socket:\[(\d+)\]/ ? ($sockets{$1} // 'socket') : $fds{$fd};
    }
    note("descriptors: @log, ", join(', ', @others));
    is(join(' ', grep { m{^/} && $_ ne $node->logfile } @log), '', 'it writes to the log of the server');
    is(join(' ', grep { $_ eq "listening on $port" } @others), "listening on $port", 'it has the listening socket');
    is(join(' ', grep { /^connected|\.s\.PGSQL/ } @others), '', '... no connection to the server');
    is(join(' ', grep { /^\Q$data\E/ } @others), '', '... no file of the data directory');
    is(join(' ', grep { /io_uring/ } @others), '', '... and no ring that its filter would not see');
    # The random numbers are for libwebsockets.
    is(
        join(' ', grep { !/^(listening on $port|unix without name|socket|anon_inode:\[event(?:fd|poll)\]|pipe:.*|\/dev\/urandom)$/ } @others),
        '', '... and nothing else that has a name');
    cmp_ok(scalar(grep { /^(unix without name|socket)$/ } @others), '<=', 2, '... but the link');
}

# ---------------------------------------------------------------------------
# A snapshot comes to it as a descriptor, and that goes again
# ---------------------------------------------------------------------------

my $client = wait_served();
is(scalar(split(/\n/, $client->rows('items'))), 1000, 'a snapshot of some size');
foreach my $pid (@gateways)
{
    my $open;

    ok( poll_until(
            sub {
                my %fds = descriptors($pid);
                $open = join(' ', sort grep { m{^/} && !m{^/dev/} && $_ ne $node->logfile } values %fds);
                return $open eq '';
            },
            'files to be closed', 10),
        'no file of a snapshot stays open') or diag($open);
}

# ---------------------------------------------------------------------------
# Signals to groups of processes, as the postmaster and backends send them
# ---------------------------------------------------------------------------

kill('HUP', -$feed->{feed_worker_pid});
$node->reload;
$node->safe_psql('postgres', "SELECT pg_cancel_backend($feed->{decoder_pid})");
kill('URG', -$feed->{feed_worker_pid});
$node->safe_psql('postgres', "UPDATE item SET name = 'changed' WHERE id = 1");
ok(eval { $client->sync; 1 }, 'signals to the process group of the feed worker: clients stay') or diag($@);
is(scalar(() = $client->txids), 1, '... and get changes');
is(join(' ', gateways_of($node)), "@gateways", '... and so do the gateways');
is(feed($node)->{generation}, $feed->{generation}, '... and the workers');

# ---------------------------------------------------------------------------
# It ends with the feed worker
# ---------------------------------------------------------------------------

sub are_gone
{
    my ($name, @pids) = @_;

    ok(poll_until(sub { !grep { is_alive($_) } @pids }, 'processes to end'), "$name: no gateway is left")
      or diag("still there: " . join(' ', grep { is_alive($_) } @pids));
    return;
}

kill('KILL', $feed->{feed_worker_pid});
are_gone('kill -9 of the feed worker', @gateways);
$feed = poll_until(
    sub {
        my $now = feed($node);
        return $now && $now->{state} eq 'running' && defined $now->{port}
          && $now->{feed_worker_pid} != $feed->{feed_worker_pid} ? $now : undef;
    },
    'another feed worker');
my @next = all_gateways();
is(scalar(@next), 2, 'others are started');
wait_served()->close;

$node->safe_psql('postgres', "SELECT pg_terminate_backend($feed->{feed_worker_pid})");
are_gone('pg_terminate_backend of the feed worker', @next);
wait_running($node, 'postgres', except => $feed->{generation});
@next = all_gateways();
wait_served()->close;

$node->stop('immediate');
are_gone('immediate shutdown', @next);
ok(!port_is_open($port), 'immediate shutdown: nobody listens');

$node->start;
wait_running($node);
@next = all_gateways();
wait_served()->close;

# With nobody to tell anybody anything.
my $postmaster = $node->{_pid};
my @processes = map { @$_ } values %{ processes($node) };
$node->kill9;
are_gone('kill -9 of the postmaster', @next);
ok(poll_until(sub { !port_is_open($port) }, 'the port to be closed'), 'kill -9 of the postmaster: nobody listens');
ok(poll_until(sub { !grep { is_alive($_) } @processes }, 'workers to end'), 'kill -9 of the postmaster: nor is a worker');

# Its number may be taken until somebody has asked how it ended.
poll_until(sub { !kill(0, $postmaster) }, 'the end of the postmaster', 10)
  or unlink("$data/postmaster.pid");
$node->start;
wait_running($node);
@next = all_gateways();
wait_served()->close;
$node->stop('fast');
are_gone('fast shutdown', @next);

done_testing();
