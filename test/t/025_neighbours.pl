# Beside other libraries that are preloaded, before ours and behind it: everything
# of ours works, and everything of theirs.  `make neighbours` runs more tests so.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use ChangefeedTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $libdir = `pg_config --pkglibdir`;
chomp($libdir);
my @others = grep { -f "$libdir/$_.so" } 'pg_stat_statements', 'auto_explain', 'pgaudit', 'pg_cron';
my %have = map { $_ => 1 } @others;

note("not tested: $_, which is not installed in $libdir") foreach grep { !$have{$_} } 'pgaudit', 'pg_cron';

my $node = new_node('neighbours', conf => q(
pg_stat_statements.track = all
auto_explain.log_min_duration = 0
auto_explain.log_analyze = on
auto_explain.log_nested_statements = on
pgaudit.log = 'all'
cron.database_name = 'postgres'
));
my $port = feed_port($node);
my $made = 0;

foreach my $libraries (join(', ', @others, 'pg_changefeed'), join(', ', 'pg_changefeed', @others))
{
    my $position;

    conf($node, shared_preload_libraries => "'$libraries'");
    $node->start;
    if (!$made++)
    {
        $node->safe_psql('postgres', "CREATE EXTENSION $_") foreach grep { $_ ne 'auto_explain' } @others;
        $node->safe_psql(
            'postgres', q(
CREATE EXTENSION pg_changefeed;
CREATE ROLE web;
CREATE TABLE member (item int PRIMARY KEY);
CREATE TABLE item (id int PRIMARY KEY, name text);
CREATE FUNCTION is_member(id int) RETURNS bool LANGUAGE plpgsql STABLE AS
    'BEGIN RETURN EXISTS (SELECT FROM member WHERE item = id); END';
CREATE FUNCTION add_item(id int, name text) RETURNS item LANGUAGE sql AS
    'INSERT INTO item VALUES (id, name) RETURNING *';
ALTER TABLE item ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON item USING (is_member(id)) WITH CHECK (true);
GRANT SELECT ON member TO web;
GRANT SELECT, INSERT ON item TO web;
INSERT INTO member VALUES (1), (2), (3);
SELECT changefeed.create_channel('items', 'item');
SELECT changefeed.expose_function('add_item(int,text)');
SELECT changefeed.allow_role('web')));
    }
    ok(wait_running($node), "$libraries: the feed runs");
    is_one_set($node, $libraries);
    $node->safe_psql('postgres', 'TRUNCATE item; INSERT INTO item VALUES (1, $$one$$), (9, $$not mine$$)');
    $node->safe_psql('postgres', 'SELECT pg_stat_statements_reset()');
    $position = log_position($node);

    my $client = client($port);
    $client->subscribe('items');
    is($client->rows('items'), '{"id":1,"name":"one"}', "$libraries: snapshots");
    $node->safe_psql('postgres', q(BEGIN; INSERT INTO item VALUES (2, 'two'), (8, 'nor mine'); UPDATE item SET name = 'uno' WHERE id = 1; COMMIT));
    $client->sync;
    is($client->rows('items'), qq({"id":1,"name":"uno"}\n{"id":2,"name":"two"}), "$libraries: changes, by policies");
    is($client->request(type => 'call', function => 'add_item', args => { id => 3, name => 'called' })->{type}, 'result',
        "$libraries: calls");
    $client->sync;
    is(scalar(split(/\n/, $client->rows('items'))), 3, "$libraries: which clients see");
    $client->close;

    # Theirs
    is($node->safe_psql('postgres', q(SELECT sum(calls) FROM pg_stat_statements WHERE query ~ '^BEGIN|^UPDATE item')), 2,
        "$libraries: pg_stat_statements counts");
    like(log_since($node, $position), qr/LOG:  duration: .*plan:\n.*UPDATE item SET name/, "$libraries: auto_explain explains");
    SKIP:
    {
        skip 'pgaudit is not installed', 1 if !$have{pgaudit};
        like(log_since($node, $position), qr/LOG:  AUDIT: SESSION,.*,WRITE,UPDATE,.*UPDATE item SET name/, "$libraries: pgaudit audits");
    }
    SKIP:
    {
        skip 'pg_cron is not installed', 2 if !$have{pg_cron};
        is($node->safe_psql('postgres', q(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_cron launcher')), 1,
            "$libraries: pg_cron runs");
        like($node->safe_psql('postgres', q(SELECT cron.schedule('0 3 * * *', 'SELECT 1'))), qr/^\d+$/, "$libraries: pg_cron schedules");
    }

    # Commands that our hooks look at, and theirs, too.
    $node->safe_psql('postgres', 'CREATE DATABASE other');
    $node->safe_psql('postgres', 'ALTER DATABASE other SET changefeed.port = 0');
    $node->safe_psql('other', 'CREATE EXTENSION pg_changefeed');
    ok(wait_running($node, 'other', no_port => 1), "$libraries: another database");
    is(sql_error($node, 'postgres', 'DROP DATABASE other'), '', "$libraries: DROP DATABASE");
    $node->safe_psql('postgres', 'SELECT changefeed.pause()');
    ok(wait_state($node, 'paused'), "$libraries: pause");
    $node->safe_psql('postgres', 'SELECT changefeed.resume()');
    $node->safe_psql('postgres', 'ALTER FUNCTION add_item RENAME TO insert_item; ALTER FUNCTION insert_item RENAME TO add_item');
    is($node->safe_psql('postgres', 'SELECT function FROM changefeed.functions'), 'add_item(integer,text)', "$libraries: renamed functions");
    $node->stop;
    unlike(log_since($node), qr/PANIC|TRAP|was terminated by signal/, "$libraries: nothing crashed");
}
done_testing();
