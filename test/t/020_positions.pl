# Copies of a server, and servers that are set back in time: a position means
# one transaction, and is honoured only where exactly that one has happened.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use ChangefeedTest;
use MIME::Base64 qw(decode_base64url);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# A copy of a server that has a port of its own.
sub copy_of
{
    my ($name, $from, $backup, %options) = @_;
    my $node = PostgreSQL::Test::Cluster->new($name);

    $node->init_from_backup($from, $backup, standby => 0, %options);
    $node->{changefeed_port} = free_port();
    conf($node, 'changefeed.port' => $node->{changefeed_port}, archive_mode => 'off');
    return $node;
}

sub name_of
{
    my ($client) = @_;
    my ($epoch, $lsn, $xid, $time) = unpack('H16 H16 N N', decode_base64url(substr($client->position('items'), 0, 32)));
    return { epoch => $epoch, lsn => $lsn, xid => $xid, time => $time };
}

my $a = new_node('original');
$a->append_conf('postgresql.conf', "wal_keep_size = 512MB\n");
$a->enable_archiving;
my $epoch = start_with_items($a)->{epoch};
my $common = visitor($a, q(INSERT INTO item VALUES (4, 'before')));
comes_back($a, $common, 'recovered', 'the same server');

# ---------------------------------------------------------------------------
# A base backup has no slots, so another epoch
# ---------------------------------------------------------------------------

{
    $a->backup('base');
    my $later = visitor($a, q(UPDATE item SET name = 'later' WHERE id = 1));
    my $c = copy_of('base_backup', $a, 'base');
    $c->start;
    isnt(wait_running($c)->{epoch}, $epoch, 'base backup: another epoch');
    is_one_set($c, 'base backup');
    comes_back($c, $common, 'refused unknown_epoch', 'base backup: a position from before');
    comes_back($c, $later, 'refused unknown_epoch', 'base backup: a position of the original');
    comes_back($a, visitor($c, 'SELECT'), 'refused unknown_epoch', 'base backup: a position of the copy, at the original');
    comes_back($a, $later, 'recovered', 'base backup: the original goes on');
    $c->stop;
}

# ---------------------------------------------------------------------------
# A standby runs nothing; promoted, it has an epoch of its own
# ---------------------------------------------------------------------------

{
    my $e = copy_of('standby', $a, 'base', has_streaming => 1, standby => 1);
    $e->start;
    $a->wait_for_catchup($e, 'replay');
    ok(!port_is_open(feed_port($e)), 'a standby does not listen');
    is(join(' ', sort keys %{ processes($e) }), '', 'a standby runs nothing of ours');
    my $before = visitor($a, q(UPDATE item SET name = 'replicated' WHERE id = 2));
    $a->wait_for_catchup($e, 'replay');
    $e->promote;
    isnt(wait_running($e)->{epoch}, $epoch, 'promoted: another epoch');
    is_one_set($e, 'promoted');
    comes_back($e, $before, 'refused unknown_epoch', 'promoted: a position of the former primary');
    my $own = visitor($e, q(UPDATE item SET name = 'own' WHERE id = 2));
    $e->restart;
    wait_running($e);
    comes_back($e, $own, 'recovered', 'promoted: its own positions survive a restart');
    $e->stop;
}

# ---------------------------------------------------------------------------
# A restore to a point in time
# ---------------------------------------------------------------------------

my $target;
my ($before_target, $after_target);
{
    $before_target = visitor($a, q(UPDATE item SET name = 'kept' WHERE id = 3));
    $target = $a->safe_psql('postgres', 'SELECT pg_current_wal_insert_lsn()');
    $after_target = visitor($a, q(UPDATE item SET name = 'lost' WHERE id = 3));
    $a->safe_psql('postgres', 'SELECT pg_switch_wal()');

    my $d = copy_of('restored', $a, 'base', has_restoring => 1);
    conf($d, recovery_target_lsn => "'$target'", recovery_target_action => 'promote');
    $d->start;
    isnt(wait_running($d)->{epoch}, $epoch, 'restored: another epoch');
    is($d->safe_psql('postgres', 'SELECT name FROM item WHERE id = 3'), 'kept', 'restored: up to the target');
    comes_back($d, $before_target, 'refused unknown_epoch', 'restored: a position from before the target');
    comes_back($d, $after_target, 'refused unknown_epoch', 'restored: a position from behind the target');
    comes_back($a, $after_target, 'recovered', 'restored: the original goes on');
    $d->stop;
}

# ---------------------------------------------------------------------------
# A copy of the files has the slot, and with it the epoch
# ---------------------------------------------------------------------------

{
    my $shared = visitor($a, q(UPDATE item SET name = 'of both' WHERE id = 1));
    my $idle = visitor($a, 'SELECT');

    $a->stop;
    $a->backup_fs_cold('files');
    my $b = copy_of('file_copy', $a, 'files');
    $a->start;
    $b->start;
    is(wait_running($a)->{epoch}, $epoch, 'files: the original has the same epoch');
    is(wait_running($b)->{epoch}, $epoch, 'files: and so has the copy');

    # Both write the same bytes at the same place of their WAL.
    my ($same_lsn, $same_xid) = (0, 0);
    my @pairs;
    foreach my $i (1 .. 8)
    {
        my $of_a = visitor($a, "UPDATE item SET name = 'aaaa$i' WHERE id = 1");
        my $of_b = visitor($b, "UPDATE item SET name = 'bbbb$i' WHERE id = 1");
        my ($x, $y) = (name_of($of_a), name_of($of_b));

        $same_lsn++ if $x->{lsn} eq $y->{lsn};
        $same_xid++ if $x->{lsn} eq $y->{lsn} && $x->{xid} == $y->{xid};
        push @pairs, [ $of_a, $of_b ];
    }
    note("$same_lsn of 8 positions have the same LSN, $same_xid the same xid, too");
    cmp_ok($same_xid, '>', 0, 'files: only the time tells the two apart');
    foreach my $i (0, 3, 7)
    {
        comes_back($b, $pairs[$i][0], 'refused timeline_lost', "files: position $i of the original, at the copy");
        comes_back($a, $pairs[$i][1], 'refused timeline_lost', "files: position $i of the copy, at the original");
        comes_back($a, $pairs[$i][0], 'recovered', "files: position $i of the original, at the original");
        comes_back($b, $pairs[$i][1], 'recovered', "files: position $i of the copy, at the copy");
    }

    # What both have is good at both.
    foreach my $node ($a, $b)
    {
        comes_back($node, $shared, 'recovered', 'files: a position from before the copy');
        comes_back($node, $idle, 'recovered', 'files: another one');
    }

    # What one has and the other has not come to yet.
    my $far = visitor($a, q(INSERT INTO item SELECT i, 'far' FROM generate_series(1000, 1199) i));
    comes_back($b, $far, 'refused timeline_lost', 'files: a position beyond the end of the copy');
    $b->restart;
    wait_running($b);
    comes_back($b, $far, 'refused timeline_lost', 'files: and after a restart');
    comes_back($b, $pairs[7][0], 'refused timeline_lost', 'files: and one that lies within it');
    comes_back($b, $pairs[7][1], 'recovered', 'files: its own survive');
    $b->stop;
    comes_back($a, $far, 'recovered', 'files: the original goes on');
}

# ---------------------------------------------------------------------------
# A copy of the files that is taken to a point in time: same epoch, other timeline
# ---------------------------------------------------------------------------

{
    my $before = visitor($a, q(UPDATE item SET name = 'before the copy' WHERE id = 2));

    $a->stop;
    $a->backup_fs_cold('files2');
    $a->start;
    wait_running($a);
    my $kept = visitor($a, q(UPDATE item SET name = 'kept again' WHERE id = 2));
    my $lsn = $a->safe_psql('postgres', 'SELECT pg_current_wal_insert_lsn()');
    my $lost = visitor($a, q(UPDATE item SET name = 'lost again' WHERE id = 2));
    $a->safe_psql('postgres', 'SELECT pg_switch_wal()');

    my $f = copy_of('set_back', $a, 'files2', has_restoring => 1);
    conf($f, recovery_target_lsn => "'$lsn'", recovery_target_action => 'promote');
    $f->start;
    my $feed = wait_running($f);
    is($f->safe_psql('postgres', 'SELECT name FROM item WHERE id = 2'), 'kept again', 'set back: up to the target');
    is($feed->{epoch}, $epoch, 'set back: the slot is that of the copy');
    visitor($f, q(UPDATE item SET name = 'other again' WHERE id = 2));
    comes_back($f, $lost, 'refused timeline_lost', 'set back: a position from behind the target');
    comes_back($f, $kept, 'recovered', 'set back: a position from before it');
    comes_back($f, $before, 'recovered', 'set back: a position from before the copy');
    $f->stop;
}

# ---------------------------------------------------------------------------
# A database that is copied as a template, renamed and dropped
# ---------------------------------------------------------------------------

{
    my $state = visitor($a, q(UPDATE item SET name = 'template' WHERE id = 1));
    my $port = free_port();

    # Without sessions, so from another database.
    $a->safe_psql('template1', 'ALTER DATABASE postgres ALLOW_CONNECTIONS false');
    ok(poll_until(sub { $a->safe_psql('template1', q(SELECT count(*) FROM pg_stat_activity WHERE datname = 'postgres' AND pid <> pg_backend_pid())) eq '0' },
        'the database to be without sessions'), 'the feed ends');
    is($a->safe_psql('template1', 'SELECT count(*) FROM pg_replication_slots'), '0', 'and its slot with it');
    # Its feed starts at once, so it is to have its port first.
    $a->safe_psql('template1', 'CREATE DATABASE twin TEMPLATE postgres ALLOW_CONNECTIONS false');
    $a->safe_psql('template1', "ALTER DATABASE twin SET changefeed.port = $port");
    $a->safe_psql('template1', 'ALTER DATABASE twin ALLOW_CONNECTIONS true');
    $a->safe_psql('template1', 'ALTER DATABASE postgres ALLOW_CONNECTIONS true');
    my $one = wait_running($a) or die 'the template has no feed';
    my $two = wait_running($a, 'twin') or die 'the twin has no feed';
    is(scalar(() = grep { $_ eq $epoch } $one->{epoch}, $two->{epoch}), 0, 'both have a new epoch');
    isnt($one->{epoch}, $two->{epoch}, 'each its own');
    is_one_set($a, 'a twin', 'postgres', 'twin');
    comes_back($a, $state, 'refused unknown_epoch', 'the template: an old position');
    comes_back($a, $state, 'refused unknown_epoch', 'the twin: an old position', database => 'twin');
    my $of_one = visitor($a, q(UPDATE item SET name = 'one' WHERE id = 1));
    comes_back($a, $of_one, 'refused unknown_epoch', 'the twin: a position of the template', database => 'twin');

    # Renamed: it has to be without its feed, so it begins anew.
    $a->safe_psql('postgres', 'ALTER DATABASE twin ALLOW_CONNECTIONS false');
    wait_off($a, 'twin');
    $a->safe_psql('postgres', 'ALTER DATABASE twin RENAME TO sibling');
    $a->safe_psql('postgres', 'ALTER DATABASE sibling ALLOW_CONNECTIONS true');
    isnt(wait_running($a, 'sibling')->{epoch}, $two->{epoch}, 'renamed: a new epoch');
    comes_back($a, $of_one, 'refused unknown_epoch', 'renamed: a position of another database', database => 'sibling');
    comes_back($a, $of_one, 'recovered', 'renamed: the other database is not concerned');
    $a->safe_psql('sibling', 'DROP EXTENSION pg_changefeed');
    is(sql_error($a, 'postgres', 'DROP DATABASE sibling'), '', 'dropped');
    is_one_set($a, 'dropped');
    comes_back($a, $of_one, 'recovered', 'dropped: the other database is not concerned');
}

$a->stop;
unlike(log_since($a), qr/PANIC|TRAP|was terminated by signal/, 'nothing crashed');
done_testing();
