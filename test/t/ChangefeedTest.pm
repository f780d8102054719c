# What the tests of this directory share: servers that run change feeds, looks
# at their processes, tokens, and a client that speaks WebSocket by hand.
#
# Nothing here waits for a fixed time: every wait is for a condition, and gives
# up after $timeout seconds, which a test that passes never takes.

package ChangefeedTest;

use strict;
use warnings;

use Digest::SHA qw(hmac_sha256);
use Exporter qw(import);
use JSON::PP ();
use MIME::Base64 qw(encode_base64url);
use Time::HiRes qw(sleep time);

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(
  new_node feed_port free_port conf
  poll_until rows row feed wait_running wait_state wait_off
  processes is_one_set
  is_alive child_processes gateways_of process_status
  port_is_open http_get
  log_position log_since count_in_log wait_in_log
  sql_error
  make_token client
  make_items start_with_items item_rows change_item visitor comes_back
);

our $timeout = $ENV{PG_TEST_TIMEOUT_DEFAULT} || 90;
our $secret = 'the secret of the tests, longer than 32 bytes';

# What a database with a feed has, apart from the launcher, which is one for
# all: with changefeed.query_workers at its default.
our %set_of_database = (
    'changefeed decoder' => 1,
    'changefeed feed worker' => 1,
    'changefeed query worker' => 2);

my $json = JSON::PP->new->utf8->canonical;

# ---------------------------------------------------------------------------
# Servers
# ---------------------------------------------------------------------------

sub free_port
{
    return PostgreSQL::Test::Cluster::get_free_port();
}

# A server that is initialised and configured but not started.  Options:
# wal_segment (MB), conf (lines that come last), install_path (of another
# PostgreSQL).
sub new_node
{
    my ($name, %options) = @_;
    my $node = PostgreSQL::Test::Cluster->new($name,
        defined $options{install_path} ? (install_path => $options{install_path}) : ());
    my $file = PostgreSQL::Test::Utils::tempdir() . '/jwt.secret';
    my $port = free_port();

    $node->init(extra => [ '--encoding', 'UTF8', '--locale', 'C',
        '--wal-segsize', $options{wal_segment} // 16 ]);

    open(my $out, '>', $file) or die "$file: $!";
    print $out "$secret\n";
    close($out);
    chmod(0600, $file);

    $node->append_conf('postgresql.conf', qq(
shared_preload_libraries = 'pg_changefeed'
wal_level = logical
max_wal_senders = 4
max_replication_slots = 8
max_worker_processes = 24
max_connections = 30
restart_after_crash = on
autovacuum = off
changefeed.port = $port
changefeed.listen_addresses = '127.0.0.1'
changefeed.jwt_secret_file = '$file'
));
    $node->append_conf('postgresql.conf', $options{conf}) if defined $options{conf};
    $node->{changefeed_port} = $port;
    return $node;
}

# Where the first database's feed is.
sub feed_port
{
    my ($node) = @_;
    return $node->{changefeed_port};
}

# Sets lines in postgresql.conf, where the last one counts; the server has to be
# restarted or reloaded.
sub conf
{
    my ($node, %settings) = @_;
    $node->append_conf('postgresql.conf', "$_ = $settings{$_}") foreach sort keys %settings;
    return;
}

# ---------------------------------------------------------------------------
# Waiting
# ---------------------------------------------------------------------------

# The first true result of $condition; undef after the time-out, with what was
# waited for in the output of the test.
sub poll_until
{
    my ($condition, $what, $limit) = @_;
    my $end = time() + ($limit // $timeout);

    while (1)
    {
        my $result = $condition->();
        return $result if $result;
        last if time() > $end;
        sleep(0.05);
    }
    diag("timed out waiting for: $what");
    return;
}

# ---------------------------------------------------------------------------
# What the server says of itself
# ---------------------------------------------------------------------------

# Rows of a query as hashes; nothing when the server does not answer now.
sub rows
{
    my ($node, $database, $query) = @_;
    my ($output, $errors) = ('', '');
    my $code = $node->psql($database, "SELECT row_to_json(q) FROM ($query) q",
        stdout => \$output, stderr => \$errors);

    return if $code != 0;
    return map { $json->decode($_) } split(/\n/, $output);
}

sub row
{
    my ($first) = rows(@_);
    return $first;
}

# The row of changefeed.stat_feed; undef when the server does not answer.
sub feed
{
    my ($node, $database) = @_;
    return row($node, $database // 'postgres', 'SELECT * FROM changefeed.stat_feed');
}

# The PIDs of our processes: { type => [ pid, ... ] }.  A launcher has no
# database, so it is there whatever $database is.
sub processes
{
    my ($node, $database) = @_;
    my %found;

    foreach my $process (
        rows($node, 'postgres', q(SELECT backend_type, pid, datname FROM pg_stat_activity
                                   WHERE backend_type LIKE 'changefeed %' ORDER BY pid)))
    {
        next if defined $database && defined $process->{datname}
          && $process->{datname} ne $database;
        push @{ $found{ $process->{backend_type} } }, $process->{pid};
    }
    return \%found;
}

sub describe
{
    my ($found) = @_;
    return join(', ', map { "$_: @{ $found->{$_} }" } sort keys %$found);
}

# Whether exactly the launcher and one set per database are there; the set's
# PIDs if so.
sub one_set
{
    my ($node, @databases) = @_;
    my $all = processes($node);

    return if scalar(@{ $all->{'changefeed launcher'} // [] }) != 1;
    foreach my $type (keys %$all)
    {
        next if $type eq 'changefeed launcher';
        return if scalar(@{ $all->{$type} }) != ($set_of_database{$type} // 0) * @databases;
    }
    foreach my $database (@databases)
    {
        my $found = processes($node, $database);

        foreach my $type (keys %set_of_database)
        {
            return if scalar(@{ $found->{$type} // [] }) != $set_of_database{$type};
        }
    }
    return $all;
}

# Waits until the feed of a database is served; its row, or undef.  `except`: a
# generation that it must not be any more.  `no_port`: it need not listen.
sub wait_running
{
    my ($node, $database, %options) = @_;
    $database //= 'postgres';

    return poll_until(
        sub {
            my $feed = feed($node, $database) or return;

            return if $feed->{state} ne 'running';
            return if defined $options{except} && $feed->{generation} == $options{except};
            return if !$options{no_port} && !(defined $feed->{port} && defined $feed->{gateway_pid});
            return $feed;
        },
        "feed of database \"$database\" to run");
}

# Waits for another state of the feed than "running"; its row, or undef.
sub wait_state
{
    my ($node, $state, $database) = @_;

    return poll_until(
        sub {
            my $feed = feed($node, $database) or return;
            return $feed->{state} eq $state ? $feed : undef;
        },
        "state $state");
}

# Waits until nothing of a database's feed is left.
sub wait_off
{
    my ($node, $database) = @_;

    return poll_until(
        sub {
                my $found = processes($node, $database);

            delete $found->{'changefeed launcher'};
            return if %$found;
            return !rows($node, 'postgres',
                "SELECT FROM pg_replication_slots WHERE database = '$database'");
        },
        "feed of database \"$database\" to end");
}

# A test: what runs is exactly the launcher and one set of workers for each of
# these databases, and one gateway for each feed worker.
sub is_one_set
{
    my ($node, $name, @databases) = @_;
    @databases = ('postgres') if !@databases;
    my $found = poll_until(sub { one_set($node, @databases) }, "one set of workers ($name)");

    if (!$found)
    {
        diag('there are: ' . describe(processes($node)));
        return fail("$name: exactly one set of workers");
    }
    pass("$name: exactly one set of workers");

    my @slots = rows($node, 'postgres',
        q(SELECT slot_name, database FROM pg_replication_slots WHERE slot_name LIKE 'pg_changefeed_%'));
    return is(join(' ', sort map { $_->{database} } @slots), join(' ', sort @databases),
        "$name: one slot for each database");
}

# The error of a statement, in verbose form; '' when there is none.
sub sql_error
{
    my ($node, $database, $sql) = @_;
    my ($code, $output, $errors) =
      $node->psql($database, $sql, extra_params => [ '-v', 'VERBOSITY=verbose' ]);

    return '' if $code == 0;
    $errors =~ s/^psql:<stdin>:\d+: //mg;
    $errors =~ s/^LOCATION: .*\n?//mg;
    chomp($errors);
    return $errors;
}

# ---------------------------------------------------------------------------
# The log
# ---------------------------------------------------------------------------

sub log_position
{
    my ($node) = @_;
    return (-s $node->logfile) // 0;
}

sub log_since
{
    my ($node, $position) = @_;
    return slurp_file($node->logfile, $position // 0);
}

sub count_in_log
{
    my ($node, $pattern, $position) = @_;
    my @found = log_since($node, $position) =~ /($pattern)/g;
    return scalar(@found);
}

sub wait_in_log
{
    my ($node, $pattern, $position) = @_;
    return poll_until(sub { log_since($node, $position) =~ $pattern },
        "$pattern in the server's log");
}

# ---------------------------------------------------------------------------
# Processes as the system shows them
# ---------------------------------------------------------------------------

sub process_status
{
    my ($pid) = @_;
    my %status;

    open(my $file, '<', "/proc/$pid/status") or return;
    while (<$file>)
    {
        $status{$1} = $2 if /^(\w+):\s*(.*)$/;
    }
    close($file);
    return %status ? \%status : undef;
}

# Not so of one that has ended and waits for its parent to look.
sub is_alive
{
    my ($pid) = @_;
    my $status = process_status($pid) or return 0;
    return ($status->{State} // '') !~ /^[ZX]/ ? 1 : 0;
}

sub child_processes
{
    my ($parent) = @_;
    my @children;

    opendir(my $dir, '/proc') or die "/proc: $!";
    foreach my $pid (grep { /^\d+$/ } readdir($dir))
    {
        my $status = process_status($pid) or next;
        push @children, $pid
          if $status->{PPid} == $parent && $status->{State} !~ /^[ZX]/;
    }
    closedir($dir);
    @children = sort { $a <=> $b } @children;
    return @children;
}

# Gateways are the only children that a feed worker has.
sub gateways_of
{
    my ($node, $database) = @_;
    my $feed = feed($node, $database) or return;
    return child_processes($feed->{feed_worker_pid} // return);
}

# The answer to a GET: its status and all of it.  Nothing when nobody answers.
sub http_get
{
    my ($port, $path) = @_;
    my $socket = IO::Socket::INET->new(PeerHost => '127.0.0.1', PeerPort => $port,
        Proto => 'tcp', Timeout => 5) or return;

    print $socket "GET $path HTTP/1.1\r\nHost: localhost:$port\r\nConnection: close\r\n\r\n";
    my $answer = do { local $/ = undef; <$socket> } // '';
    my ($status) = $answer =~ /^HTTP\/1\.[01] (\d+)/;
    return ($status, $answer);
}

sub port_is_open
{
    my ($port) = @_;
    my $socket = IO::Socket::INET->new(PeerHost => '127.0.0.1', PeerPort => $port,
        Proto => 'tcp', Timeout => 5);

    return $socket ? 1 : 0;
}

# ---------------------------------------------------------------------------
# Clients
# ---------------------------------------------------------------------------

sub make_token
{
    my (%claims) = @_;
    my $input = encode_base64url('{"alg":"HS256","typ":"JWT"}') . '.'
      . encode_base64url($json->encode({ role => 'web', exp => int(time()) + 3600, %claims }));

    return "$input." . encode_base64url(hmac_sha256($input, $secret));
}

# A client that is connected, see below; dies when it cannot be.  The feed
# worker learns of changefeed.allow_role from the WAL, so a moment later than the
# session that called it: a refused role is tried again.
sub client
{
    my ($port, %claims) = @_;
    my $token = make_token(%claims);
    my $end = time() + $timeout;

    while (1)
    {
        my $client = ChangefeedTest::Client->new($port, $timeout);

        return $client if eval { $client->connected($token) };
        die $@ if $@ !~ /"code":"42501"/ || time() > $end;
        sleep(0.05);
    }
    return;
}

# ---------------------------------------------------------------------------
# A channel, and clients that come back to it
# ---------------------------------------------------------------------------

# Table "item" with channel "items", for role "web", which has to be there.
sub make_items
{
    my ($node, $database) = @_;

    $node->safe_psql($database // 'postgres', q(
CREATE TABLE item (id int PRIMARY KEY, name text);
GRANT SELECT ON item TO web;
INSERT INTO item VALUES (1, 'one'), (2, 'two'), (3, 'three');
SELECT changefeed.create_channel('items', 'item');
SELECT changefeed.allow_role('web')));
    return;
}

# Starts a server with a feed that has this channel; the row of its feed.
sub start_with_items
{
    my ($node) = @_;

    $node->start;
    $node->safe_psql('postgres', 'CREATE ROLE web; CREATE EXTENSION pg_changefeed');
    my $feed = wait_running($node);
    make_items($node);
    return $feed;
}

# What a client of the channel should have, as its `rows` gives it.
sub item_rows
{
    my ($node, $database) = @_;
    my $rows = $node->safe_psql($database // 'postgres', 'SELECT row_to_json(item) FROM item');
    return join("\n", sort split(/\n/, $rows));
}

my $changes = 0;

# Commits a change of the first item; the id of the transaction.
sub change_item
{
    my ($node, $database) = @_;
    $changes++;
    return $node->safe_psql($database // 'postgres',
        "BEGIN; UPDATE item SET name = 'change $changes' WHERE id = 1; SELECT pg_current_xact_id(); COMMIT");
}

# A client that is ready and has got what $statement does; without one, a change.
# Closed or not, comes_back() takes it as one that was here before.
sub visitor
{
    my ($node, $statement) = @_;
    my $client = client(feed_port($node));

    $client->subscribe('items');
    if (defined $statement) { $node->safe_psql('postgres', $statement); }
    else { change_item($node); }
    $client->sync;
    return $client;
}

# A test: a client comes back with what $old had and is told $expected,
# "recovered" or "refused REASON", has the right rows, and goes on.  Options:
# database (if not postgres), missed (the transactions that come before it is
# abreast, each once and in this order).  The new client.
sub comes_back
{
    my ($node, $old, $expected, $name, %options) = @_;
    my $database = $options{database} // 'postgres';
    my $client = client($database eq 'postgres' ? feed_port($node) : feed($node, $database)->{port});
    my $answer = $client->subscribe('items', $old->position('items'), $old->cache('items'));

    is(join(' ', $answer->{recovered} ? 'recovered' : 'refused', @{ $client->{resyncs} // [] }), $expected, $name);
    $client->sync;
    is(join(' ', $client->txids), join(' ', @{ $options{missed} }), "$name: gets what it has missed, once and in order")
      if $options{missed};
    is($client->rows('items'), item_rows($node, $database), "$name: has the right rows");
    my $txid = change_item($node, $database);
    $client->sync;
    is(($client->txids)[-1], $txid, "$name: goes on");
    is($client->rows('items'), item_rows($node, $database), "$name: with the right rows");
    return $client;
}

# ---------------------------------------------------------------------------

package ChangefeedTest::Client;

# A connection to a feed.  Keeps the cache of each of its channels as a client
# has to, and dies of everything that the protocol rules out: an operation that
# does not suit the cache, a hole in `seq`, a row where none was announced.

use IO::Select;
use IO::Socket::INET;
use MIME::Base64 ();
use Time::HiRes ();

sub new
{
    my ($class, $port, $timeout) = @_;
    my $socket = IO::Socket::INET->new(PeerHost => '127.0.0.1', PeerPort => $port,
        Proto => 'tcp', Timeout => $timeout)
      or die "could not connect to port $port: $!";
    my $self = bless {
        socket => $socket,
        timeout => $timeout,
        buffer => '',
        message => '',
        next_id => 1,
        seq => undef,
        channels => {},
        transactions => [],
    }, $class;
    my $key = MIME::Base64::encode_base64(pack('N4', map { int(rand(2**32)) } 1 .. 4), '');

    binmode($socket);
    $socket->autoflush(1);
    $self->_write("GET /v1/socket HTTP/1.1\r\nHost: localhost:$port\r\n"
          . "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
          . "Sec-WebSocket-Key: $key\r\nSec-WebSocket-Protocol: changefeed.v1\r\n\r\n");
    $self->_read_more(Time::HiRes::time() + $timeout) until $self->{buffer} =~ /\r\n\r\n/;
    my $end = index($self->{buffer}, "\r\n\r\n") + 4;
    my $head = substr($self->{buffer}, 0, $end, '');
    my $accept = Digest::SHA::sha1_base64($key . '258EAFA5-E914-47DA-95CA-C5AB0DC85B11') . '=';

    die "no WebSocket: $head" if $head !~ /^HTTP\/1\.1 101 /;
    die "wrong answer to the handshake: $head" if $head !~ /^sec-websocket-accept:\s*\Q$accept\E\r$/mi;
    die "no subprotocol: $head" if $head !~ /^sec-websocket-protocol:\s*changefeed\.v1\r$/mi;
    return $self;
}

sub _write
{
    my ($self, $bytes) = @_;
    local $SIG{PIPE} = 'IGNORE';

    while (length($bytes) > 0)
    {
        my $n = syswrite($self->{socket}, $bytes);
        die "connection lost: $!\n" if !defined $n;
        substr($bytes, 0, $n, '');
    }
    return;
}

sub _read_more
{
    my ($self, $end) = @_;
    my $left = $end - Time::HiRes::time();

    die "timed out waiting for the server\n"
      if $left <= 0 || !IO::Select->new($self->{socket})->can_read($left);
    my $n = sysread($self->{socket}, $self->{buffer}, 65536, length($self->{buffer}));
    die "connection lost\n" if !$n;
    return;
}

sub _frame
{
    my ($self, $opcode, $payload) = @_;
    my $length = length($payload);
    my $mask = pack('N', int(rand(2**32)));
    my $head = pack('C', 0x80 | $opcode);

    $head .=
        $length < 126 ? pack('C', 0x80 | $length)
      : $length < 65536 ? pack('Cn', 0x80 | 126, $length)
      :                   pack('CQ>', 0x80 | 127, $length);
    my $mask_all = substr($mask x (int($length / 4) + 1), 0, $length);
    $self->_write($head . $mask . ($payload ^ $mask_all));
    return;
}

# The next whole frame: opcode and payload.
sub _next_frame
{
    my ($self, $end) = @_;

    while (1)
    {
        my $have = length($self->{buffer});

        if ($have >= 2)
        {
            my ($first, $length) = unpack('CC', $self->{buffer});
            my $head = 2;

            die "frame of the server is masked\n" if $length & 0x80;
            if ($length == 126 && $have >= 4)
            {
                $length = unpack('x2n', $self->{buffer});
                $head = 4;
            }
            elsif ($length == 127 && $have >= 10)
            {
                $length = unpack('x2Q>', $self->{buffer});
                $head = 10;
            }
            elsif ($length >= 126)
            {
                $length = undef;
            }
            if (defined $length && $have >= $head + $length)
            {
                substr($self->{buffer}, 0, $head, '');
                return ($first, substr($self->{buffer}, 0, $length, ''));
            }
        }
        $self->_read_more($end);
    }
    return;
}

# The next message, after it was applied; dies when the connection ends.
sub next_message
{
    my ($self, $end) = @_;
    $end //= Time::HiRes::time() + $self->{timeout};

    while (1)
    {
        my ($first, $payload) = $self->_next_frame($end);
        my $opcode = $first & 0x0f;

        if ($opcode == 8)
        {
            my ($code, $reason) = unpack('n a*', $payload);
            $self->{closed} = $code // 1005;
            die "connection closed: " . ($code // '') . ' ' . ($reason // '') . "\n";
        }
        if ($opcode == 9) { $self->_frame(10, $payload); next; }
        next if $opcode == 10;
        $self->{message} .= $payload;
        next if !($first & 0x80);

        my $message = $json->decode($self->{message});
        $self->{message} = '';
        if ($message->{type} eq 'ping') { $self->send({ type => 'pong' }); next; }
        $self->_apply($message);
        return $message;
    }
    return;
}

sub send
{
    my ($self, $message) = @_;
    $self->_frame(1, $json->encode($message));
    return;
}

# Sends a request and returns its answer; what comes before is applied.
sub request
{
    my ($self, %message) = @_;
    my $id = $self->{next_id}++;
    my $end = Time::HiRes::time() + $self->{timeout};

    $self->send({ %message, id => $id });
    while (1)
    {
        my $answer = $self->next_message($end);
        return $answer if defined $answer->{id} && $answer->{id} eq $id;
    }
    return;
}

sub connected
{
    my ($self, $token) = @_;
    my $answer = $self->request(type => 'connect', token => $token);

    die 'not connected: ' . $json->encode($answer) . "\n" if $answer->{type} ne 'connected';
    return $answer;
}

# Subscribes and waits until the channel is ready; the answer `subscribed`.
sub subscribe
{
    my ($self, $channel, $from, $cache) = @_;
    my $end = Time::HiRes::time() + $self->{timeout};

    # Rows are kept by who resumes.
    $self->{channels}{$channel} = { rows => { %{ $cache // {} } }, ready => 0 };
    my $answer = $self->request(type => 'subscribe', channel => $channel,
        defined $from ? (from => $from) : ());
    $self->{channels}{$channel}{untold} = 1 if defined $from && !$answer->{recovered};
    die 'not subscribed: ' . $json->encode($answer) . "\n" if $answer->{type} ne 'subscribed';
    $self->next_message($end) until $self->{channels}{$channel}{ready};
    return $answer;
}

# Everything that was committed before this call has been applied after it.
sub sync
{
    my ($self) = @_;
    my $answer = $self->request(type => 'sync');

    die 'not synced: ' . $json->encode($answer) . "\n" if $answer->{type} ne 'synced';
    return $answer;
}

# Reads until the server ends the connection; how it did (a close code, 0 for
# none), or undef when it does not.
sub wait_closed
{
    my ($self) = @_;

    eval { $self->next_message while 1; };
    return $self->{closed} // 0 if $@ =~ /^connection /;
    return undef if $@ =~ /^timed out/;
    die $@;
}

sub close
{
    my ($self) = @_;
    CORE::close($self->{socket});
    return;
}

sub _key
{
    my ($entity, $key) = @_;
    return $entity . ' ' . $json->encode($key);
}

sub _apply
{
    my ($self, $message) = @_;
    my $type = $message->{type};
    my $channel = defined $message->{channel} ? $self->{channels}{ $message->{channel} } : undef;

    if ($type eq 'subscribed')
    {
        $channel->{entities} = $message->{entities};
        $channel->{rows} = {} if !$message->{recovered};
        $channel->{recovered} = $message->{recovered} ? 1 : 0;
    }
    elsif ($type eq 'resync')
    {
        $channel->{rows} = {};
        $channel->{ready} = 0;
        $channel->{untold} = 0;
        push @{ $self->{resyncs} }, $message->{reason};
    }
    elsif ($type eq 'snapshot')
    {
        my $columns = $channel->{entities}{ $message->{entity} }{key};

        die 'a position was refused without a reason' if $channel->{untold};

        foreach my $row (@{ $message->{rows} })
        {
            my $key = _key($message->{entity}, { map { $_ => $row->{$_} } @$columns });
            die "row comes twice in a snapshot: $key" if exists $channel->{rows}{$key};
            $channel->{rows}{$key} = $row;
        }
    }
    elsif ($type eq 'ready')
    {
        $channel->{ready} = 1;
        $channel->{position} = $message->{position};
    }
    elsif ($type eq 'transaction')
    {
        $self->_apply_transaction($message);
    }
    elsif ($type eq 'closing')
    {
        $self->{closing} = $message->{reason};
    }
    return;
}

sub _apply_transaction
{
    my ($self, $message) = @_;
    my $open = $self->{open};

    # A large one comes in parts, which count together.
    if ($open)
    {
        die "part $message->{part} of $message->{seq} after part $open->{part} of $open->{seq}"
          if $message->{seq} != $open->{seq} || $message->{part} != $open->{part} + 1;
        $message->{changes} = [ @{ $open->{changes} }, @{ $message->{changes} } ];
    }
    else
    {
        die "seq $message->{seq} after $self->{seq}"
          if defined $self->{seq} && $message->{seq} != $self->{seq} + 1;
        $self->{seq} = $message->{seq};
    }
    $self->{open} = $message->{part} && !$message->{last} ? $message : undef;
    return if $self->{open};
    push @{ $self->{transactions} }, $message;
    foreach my $change (@{ $message->{changes} })
    {
        my $rows = $self->{channels}{ $change->{channel} }{rows};
        my $key = _key($change->{entity}, $change->{key});
        my $held = exists $rows->{$key};

        die "$change->{op} of $key, which is " . ($held ? '' : 'not ') . "held"
          if $change->{op} eq 'append' ? $held : !$held;
        if ($change->{op} eq 'remove') { delete $rows->{$key}; }
        elsif ($change->{op} eq 'merge')
        {
            $rows->{$key} = { %{ $rows->{$key} }, %{ $change->{set} } };
        }
        else { $rows->{$key} = $change->{row}; }
    }
    foreach my $channel (values %{ $self->{channels} })
    {
        $channel->{position} = $message->{position} if $channel->{ready};
    }
    return;
}

# The ids of all transactions that came, in order.
sub txids
{
    my ($self) = @_;
    return map { $_->{txid} } @{ $self->{transactions} };
}

sub position
{
    my ($self, $channel) = @_;
    return $self->{channels}{$channel}{position};
}

# To resume with: what a client has to keep.
sub cache
{
    my ($self, $channel) = @_;
    return $self->{channels}{$channel}{rows};
}

# The rows as JSON, in the order of their keys.
sub rows
{
    my ($self, $channel) = @_;
    my $rows = $self->{channels}{$channel}{rows};
    return join("\n", sort map { $json->encode($_) } values %$rows);
}

1;
