# A standby that has a copy of the slot (PostgreSQL 17 and newer) is promoted: the
# epoch is that of before, and exactly what both have done is honoured.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use ChangefeedTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Old transactions are let go soon, so that the slot moves.
my $a = new_node('primary', conf => q(
changefeed.history_age = 1
hot_standby_feedback = on
));
my $major = $a->pg_version =~ /^(\d+)/ ? $1 : die 'no version';

if ($major < 17)
{
    $a->start;
    is( sql_error($a, 'postgres', 'LOAD $$pg_changefeed$$; SET changefeed.failover_slot = on'),
        qq(ERROR:  0A000: invalid value for parameter "changefeed.failover_slot": 1\n)
          . q(DETAIL:  Standbys can keep copies of logical replication slots from PostgreSQL 17 on.),
        'before 17 it is refused');
    $a->stop;
    note("not tested: failover slots, which PostgreSQL $major does not have");
    done_testing();
    exit(0);
}

sub slot
{
    my ($node) = @_;
    return row($node, 'postgres', 'SELECT slot_name, failover, synced, temporary, invalidation_reason FROM pg_replication_slots WHERE slot_type = $$logical$$');
}

$a->start;
$a->safe_psql('postgres', 'CREATE ROLE web; CREATE EXTENSION pg_changefeed');
is(wait_running($a) && slot($a)->{failover} ? 1 : 0, 0, 'by default no standby copies the slot');
conf($a, 'changefeed.failover_slot' => 'on');
$a->restart;
my $epoch = wait_running($a)->{epoch};
ok(slot($a)->{failover}, 'with changefeed.failover_slot they may');
make_items($a);
$a->safe_psql('postgres', q(SELECT pg_create_physical_replication_slot('standby', true)));

$a->backup('base');
my $b = PostgreSQL::Test::Cluster->new('standby');
$b->init_from_backup($a, 'base', has_streaming => 1);
$b->{changefeed_port} = free_port();
conf(
    $b,
    'changefeed.port' => $b->{changefeed_port},
    primary_slot_name => "'standby'",
    sync_replication_slots => 'on',
    primary_conninfo => "'" . $a->connstr('postgres') =~ s/'//gr . " application_name=standby'");
$b->start;
ok( poll_until(
        sub {
            change_item($a);
            $a->safe_psql('postgres', 'SELECT pg_log_standby_snapshot()');
            my $slot = slot($b);
            return $slot && $slot->{synced} && !$slot->{temporary};
        },
        'the copy of the slot'),
    'the standby has a copy of the slot');
is(join(' ', sort keys %{ processes($b) }), '', 'and runs nothing of ours');

# What both have, and what only the primary has done.
my $both = visitor($a);
$a->wait_for_catchup($b, 'replay');
$b->stop;
my $lost = visitor($a);
$a->stop('immediate');
$b->start;
$b->promote;
is(wait_running($b)->{epoch}, $epoch, 'promoted: the same epoch');
is_one_set($b, 'promoted');
comes_back($b, $lost, 'refused timeline_lost', 'promoted: a position that only the primary had');
comes_back($b, $both, 'recovered', 'promoted: a position of both');
my $own = visitor($b);
$b->restart;
wait_running($b);
comes_back($b, $own, 'recovered', 'promoted: its own positions survive a restart');
conf($b, 'changefeed.failover_slot' => 'off');
$b->restart;
ok(wait_running($b) && !slot($b)->{failover}, 'turned off, no standby copies the slot any more');
$b->stop;
unlike(log_since($_), qr/PANIC|TRAP|was terminated by signal/, 'nothing crashed') foreach $a, $b;
done_testing();
