# Versions: every update of the extension ends with what a fresh installation has;
# old SQL with a new library, new SQL with an old one; pg_upgrade.
#
# For this there are installations of PostgreSQL beside the one that is tested,
# made of links to its files.  Only its programs are copied, since the server
# looks for its other files beside its own program.  In one of them the version
# in the library is a later one, which nobody has ever released.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use ChangefeedTest;
use File::Basename qw(basename dirname);
use File::Copy qw(copy);
use File::Path qw(make_path);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# ---------------------------------------------------------------------------
# Installations
# ---------------------------------------------------------------------------

my ($bin, $share, $lib) = map { my $dir = `pg_config $_`; chomp $dir; $dir } '--bindir', '--sharedir', '--pkglibdir';
my $base = PostgreSQL::Test::Utils::tempdir();
my $version = slurp_file("$share/extension/pg_changefeed.control") =~ /^default_version *= *'(.*)'/m ? $1 : die 'no version';

# As long, so that it can be put in its place.
my $later = $version =~ s/\d/9/gr;

sub spew
{
    my ($file, $text) = @_;

    unlink($file);
    open(my $out, '>:raw', $file) or die "$file: $!";
    print $out $text;
    close($out);
    return;
}

# Everything in $from as links in $to, but for what is named.
sub link_all
{
    my ($from, $to, @except) = @_;

    make_path($to);
    opendir(my $dir, $from) or die "$from: $!";
    foreach my $name (grep { !/^\.\.?$/ } readdir($dir))
    {
        next if grep { $_ eq $name } @except;
        symlink("$from/$name", "$to/$name") or die "$to/$name: $!";
    }
    closedir($dir);
    return;
}

# Options: library (the text of another one), version (the default one), scripts
# (their names and texts, instead of those of the extension).
sub installation
{
    my ($name, %options) = @_;
    my $root = "$base/$name";
    my $path = dirname("$root$bin/x");

    make_path("$root$bin");
    opendir(my $dir, $bin) or die "$bin: $!";
    foreach my $program (grep { -f "$bin/$_" } readdir($dir))
    {
        copy("$bin/$program", "$root$bin/$program") or die "$program: $!";
        chmod(0755, "$root$bin/$program");
    }
    closedir($dir);
    link_all($lib, "$root$lib", 'pg_changefeed.so');
    spew("$root$lib/pg_changefeed.so", $options{library} // slurp_file("$lib/pg_changefeed.so"));
    link_all($share, "$root$share", 'extension');
    my @own = grep { /^pg_changefeed(--.*\.sql|\.control)$/ } map { basename($_) } glob("$share/extension/pg_changefeed*");
    link_all("$share/extension", "$root$share/extension", $options{scripts} ? @own : 'pg_changefeed.control');
    my $control = slurp_file("$share/extension/pg_changefeed.control");
    my $default = $options{version} // $version;
    $control =~ s/^default_version.*/default_version = '$default'/m;
    spew("$root$share/extension/pg_changefeed.control", $control);
    my $scripts = $options{scripts} // {};
    spew("$root$share/extension/pg_changefeed--$_.sql", $scripts->{$_}) foreach keys %$scripts;
    return dirname($path);
}

# ---------------------------------------------------------------------------
# What an extension consists of, as text: two are the same if this is
# ---------------------------------------------------------------------------

my $objects = q(
WITH member AS (
    SELECT classid, objid FROM pg_depend
     WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
       AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_changefeed')),
relation AS (
    SELECT c.* FROM pg_class c JOIN member m ON m.classid = 'pg_class'::regclass AND m.objid = c.oid),
described (object, what) AS (
    SELECT pg_describe_object(classid, objid, 0), coalesce(obj_description(objid, (SELECT relname FROM pg_class WHERE oid = classid)), '')
      FROM member
    UNION ALL
    SELECT pg_describe_object('pg_proc'::regclass, p.oid, 0), concat_ws(' ', pg_get_functiondef(p.oid), p.proacl, p.proowner::regrole)
      FROM pg_proc p JOIN member m ON m.classid = 'pg_proc'::regclass AND m.objid = p.oid
    UNION ALL
    SELECT pg_describe_object('pg_class'::regclass, oid, 0),
           concat_ws(' ', relkind, relpersistence, relreplident, reloptions, relacl, relowner::regrole, relrowsecurity, relnatts,
                     CASE WHEN relkind = 'v' THEN pg_get_viewdef(oid) END)
      FROM relation
    UNION ALL
    SELECT pg_describe_object('pg_class'::regclass, r.oid, a.attnum),
           concat_ws(' ', a.attnum, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attisdropped, a.attidentity, a.attgenerated,
                     a.attacl, pg_get_expr(d.adbin, d.adrelid), col_description(r.oid, a.attnum))
      FROM relation r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0
      LEFT JOIN pg_attrdef d ON d.adrelid = r.oid AND d.adnum = a.attnum
    UNION ALL
    SELECT pg_describe_object('pg_constraint'::regclass, k.oid, 0), pg_get_constraintdef(k.oid)
      FROM pg_constraint k JOIN relation r ON k.conrelid = r.oid
    UNION ALL
    SELECT pg_describe_object('pg_class'::regclass, i.indexrelid, 0), concat_ws(' ', pg_get_indexdef(i.indexrelid), i.indisreplident)
      FROM pg_index i JOIN relation r ON i.indrelid = r.oid
    UNION ALL
    SELECT pg_describe_object('pg_trigger'::regclass, t.oid, 0), concat_ws(' ', pg_get_triggerdef(t.oid), t.tgenabled)
      FROM pg_trigger t JOIN relation r ON t.tgrelid = r.oid
    UNION ALL
    SELECT pg_describe_object('pg_event_trigger'::regclass, e.oid, 0),
           concat_ws(' ', e.evtevent, e.evtfoid::regprocedure, e.evtenabled, e.evttags, e.evtowner::regrole)
      FROM pg_event_trigger e JOIN member m ON m.classid = 'pg_event_trigger'::regclass AND m.objid = e.oid
    UNION ALL
    SELECT 'schema', concat_ws(' ', nspacl, nspowner::regrole) FROM pg_namespace WHERE nspname = 'changefeed'
    UNION ALL
    SELECT 'initial privileges of ' || pg_describe_object(p.classoid, p.objoid, p.objsubid), concat_ws(' ', p.privtype, p.initprivs)
      FROM pg_init_privs p JOIN member m ON m.classid = p.classoid AND m.objid = p.objoid
    UNION ALL
    SELECT 'dumped: ' || pg_describe_object('pg_class'::regclass, x.oid, 0), x.condition
      FROM pg_extension e, LATERAL ROWS FROM (unnest(e.extconfig), unnest(e.extcondition)) x (oid, condition)
     WHERE e.extname = 'pg_changefeed'
    UNION ALL
    SELECT 'extension', concat_ws(' ', extversion, extrelocatable, extnamespace::regnamespace) FROM pg_extension WHERE extname = 'pg_changefeed')
SELECT object, what FROM described);

sub objects_of
{
    my ($node, $database) = @_;
    my @rows = map { "$_->{object} | " . ($_->{what} // '') } rows($node, $database, $objects);

    die 'there are no objects' if @rows < 100;
    return { map { $_ => 1 } @rows };
}

sub difference
{
    my ($a, $b) = @_;
    return join("\n", (map { "- $_" } grep { !$b->{$_} } sort keys %$a), (map { "+ $_" } grep { !$a->{$_} } sort keys %$b));
}

# The objects of the extension that these statements have made.
sub objects_after
{
    my ($node, $statements) = @_;

    $node->safe_psql('postgres', 'CREATE DATABASE made');
    $node->safe_psql('postgres', 'ALTER DATABASE made SET changefeed.port = 0');
    $node->safe_psql('made', $statements);
    my $made = objects_of($node, 'made');
    $node->safe_psql('postgres', 'DROP DATABASE made');
    return $made;
}

# What an update from that version leaves different from a fresh installation.
my %fresh;

sub update_leaves
{
    my ($node, $from, $to) = @_;

    $fresh{ $node->name . $to } //= objects_after($node, "CREATE EXTENSION pg_changefeed VERSION '$to'");
    return difference($fresh{ $node->name . $to }, objects_after($node,
        "CREATE EXTENSION pg_changefeed VERSION '$from'; ALTER EXTENSION pg_changefeed UPDATE TO '$to'"));
}

# A test for each version from which there is an update to the newest one.
sub updates_are_complete
{
    my ($node, $name, $newest) = @_;
    my @from = map { $_->{source} } rows($node, 'postgres',
        "SELECT p.source FROM pg_extension_update_paths('pg_changefeed') p
           JOIN pg_available_extension_versions v ON v.name = 'pg_changefeed' AND v.version = p.source
          WHERE p.target = '$newest' AND p.path IS NOT NULL ORDER BY 1");

    is(update_leaves($node, $_, $newest), '', "$name: an update from $_ to $newest leaves what $newest installs") foreach @from;
    return scalar(@from);
}

# ---------------------------------------------------------------------------
# The versions that were released
# ---------------------------------------------------------------------------

my $node = new_node('released');
$node->start;
{
    my @available = rows($node, 'postgres', q(SELECT version FROM pg_available_extension_versions WHERE name = 'pg_changefeed'));
    my $n = updates_are_complete($node, 'released', $version);

    is($n, @available - 1, 'released: every older version can be updated');
    note("there are $n older versions");
}

# ---------------------------------------------------------------------------
# A version that comes later
# ---------------------------------------------------------------------------

my $library = slurp_file("$lib/pg_changefeed.so");
ok($library =~ s/\0\K\Q$version\E(?=\0)/$later/g, 'the library has its version');

my $script = slurp_file("$share/extension/pg_changefeed--$version.sql");
my $more = q(
CREATE FUNCTION changefeed.later(a int) RETURNS int LANGUAGE sql RETURN a;
REVOKE ALL ON FUNCTION changefeed.later(int) FROM PUBLIC;
COMMENT ON FUNCTION changefeed.later(int) IS 'something that comes later';
ALTER TABLE changefeed.channel ADD COLUMN later text;
COMMENT ON VIEW changefeed.roles IS 'another text';
);
my $update = "\\echo Use ALTER EXTENSION \\quit\nSELECT changefeed._check_requirements();\n$more";
my %scripts = (
    '0.0.1' => $script,
    "0.0.1--$later" => $update,
    $version => $script,
    "$version--$later" => $update,
    $later => "$script\n$more");
my $new_path = installation('new', library => $library, version => $later, scripts => \%scripts);
my $new = new_node('new', install_path => $new_path);
my $port = feed_port($new);
my $position = 0;

$new->start;
$new->safe_psql('postgres', 'CREATE ROLE web');
is(updates_are_complete($new, 'later', $later), 2, 'later: there are two older versions');

# An update that forgets something is found.
foreach my $forgotten (
    [ qr/^COMMENT ON FUNCTION.*\n/m, qr/^- function changefeed\.later\(integer\) \| something that comes later\n\+ function changefeed\.later\(integer\) \| $/ ],
    [ qr/^REVOKE.*\n/m, qr/\+ function changefeed\.later\(integer\) \| CREATE/ ],
    [ qr/^ALTER TABLE.*\n/m, qr/^- column later of table changefeed\.channel \| 7 text/m ],
    [ qr/^COMMENT ON VIEW.*\n/m, qr/^\+ view changefeed\.roles \| roles that clients may have$/m ])
{
    my ($what, $expected) = @$forgotten;

    spew("$base/new$share/extension/pg_changefeed--$version--$later.sql", $update =~ s/$what//r);
    like(update_leaves($new, $version, $later), $expected, "an update without $what is found");
}
spew("$base/new$share/extension/pg_changefeed--$version--$later.sql", $update);

# The extension of before with the library of now
{
    $new->safe_psql('postgres', "CREATE EXTENSION pg_changefeed VERSION '$version'");
    my $feed = wait_running($new);
    like(log_since($new, $position),
        qr/LOG:  extension pg_changefeed of database "postgres" is of version \Q$version\E, the library of version \Q$later\E\n.*HINT:  Run ALTER EXTENSION pg_changefeed UPDATE in that database\./,
        'new library, old extension: the log says what to do');
    make_items($new);
    my $client = client($port);
    $client->subscribe('items');
    $new->safe_psql('postgres', q(UPDATE item SET name = 'two'));
    $client->sync;
    is($client->rows('items'), item_rows($new), 'new library, old extension: it works');
    foreach my $view ('stat_feed', 'stat_channels', 'stat_connections', 'stat_subscriptions', 'stat_gateways', 'channels', 'sources')
    {
        is(scalar(rows($new, 'postgres', "SELECT * FROM changefeed.$view")), 1, "new library, old extension: $view");
    }

    # Rolled back, or to what it is, it has done nothing.
    $new->safe_psql('postgres', 'BEGIN; ALTER EXTENSION pg_changefeed UPDATE; ROLLBACK');
    $new->safe_psql('postgres', "ALTER EXTENSION pg_changefeed UPDATE TO '$version'");
    $new->safe_psql('postgres', q(UPDATE item SET name = 'three'));
    $client->sync;
    is(feed($new)->{generation}, $feed->{generation}, 'an update that is rolled back, or to what it is, leaves the feed alone');
    $new->safe_psql('postgres', 'ALTER EXTENSION pg_changefeed UPDATE');
    ok(defined $client->wait_closed, 'update: clients are disconnected');
    my $now = wait_running($new, 'postgres', except => $feed->{generation});
    is($now->{epoch}, $feed->{epoch}, 'update: same epoch');
    is($new->safe_psql('postgres', 'SELECT changefeed.later(7)'), 7, 'update: what is new is there');
    comes_back($new, $client, 'recovered', 'update: clients resume')->close;
    $client->close;
}

# One that is too old for it
{
    my $other_port = free_port();

    $position = log_position($new);
    $new->safe_psql('postgres', 'CREATE DATABASE old');
    $new->safe_psql('postgres', "ALTER DATABASE old SET changefeed.port = $other_port");
    $new->safe_psql('old', q(CREATE EXTENSION pg_changefeed VERSION '0.0.1'));
    ok(wait_state($new, 'version mismatch', 'old'), 'too old an extension: stat_feed says so');
    ok(wait_in_log($new,
            qr/ERROR:  change feed of database "old" does not start: extension and library do not fit\n.*DETAIL:  The extension is of version 0\.0\.1, the library of version \Q$later\E\.\n.*HINT:  Run ALTER EXTENSION pg_changefeed UPDATE in that database\./,
            $position),
        'too old an extension: so does the log, with what to do');
    ok(!port_is_open($other_port), 'too old an extension: nobody listens');
    $new->safe_psql('old', 'ALTER EXTENSION pg_changefeed UPDATE');
    is(wait_running($new, 'old')->{port}, $other_port, 'an update is what it takes');
    $new->safe_psql('postgres', 'DROP DATABASE old');
}

# ---------------------------------------------------------------------------
# The extension of now with the library of before
# ---------------------------------------------------------------------------

{
    my $client = client($port);
    $client->subscribe('items');
    my $before = wait_running($new);
    $new->stop;
    spew("$base/new$lib/pg_changefeed.so", slurp_file("$lib/pg_changefeed.so"));
    $position = log_position($new);
    $new->start;
    ok(wait_in_log($new,
            qr/ERROR:  change feed of database "postgres" does not start: extension and library do not fit\n.*DETAIL:  The extension is of version \Q$later\E, the library of version \Q$version\E\.\n.*HINT:  Install pg_changefeed \Q$later\E or newer, and restart the server/,
            $position),
        'old library, new extension: the log says what to do');
    is(feed($new)->{state}, 'version mismatch', 'old library, new extension: stat_feed says so');

    # A server that was not restarted behind the installation of new files.
    my $refused = qr/^ERROR:  55000: extension pg_changefeed \Q$later\E needs a newer library\nDETAIL:  The server has loaded the library of version \Q$version\E\.\nHINT:  Restart the server, so that it loads the installed library\./;
    $new->safe_psql('postgres', 'CREATE DATABASE other');
    like(sql_error($new, 'other', 'CREATE EXTENSION pg_changefeed'), $refused, 'old library: CREATE EXTENSION is refused');
    $new->safe_psql('postgres', 'ALTER DATABASE other SET changefeed.port = 0');
    $new->safe_psql('other', "CREATE EXTENSION pg_changefeed VERSION '$version'");
    like(sql_error($new, 'other', 'ALTER EXTENSION pg_changefeed UPDATE'), $refused, 'old library: ALTER EXTENSION UPDATE is refused');
    ok(wait_running($new, 'other', no_port => 1), '... and the feed runs on');
    $new->safe_psql('postgres', 'DROP DATABASE other');

    spew("$base/new$lib/pg_changefeed.so", $library);
    $new->restart;
    is(wait_running($new)->{epoch}, $before->{epoch}, 'with the library for it, it goes on');
    comes_back($new, $client, 'recovered', 'with the library for it: clients resume')->close;
    $new->stop;
    unlike(log_since($new), qr/PANIC|TRAP|was terminated by signal/, 'nothing crashed');
}

# ---------------------------------------------------------------------------
# pg_upgrade, to another installation of the same version; from an older server,
# that of OLD_PG_CONFIG, if that is set
# ---------------------------------------------------------------------------

sub definitions
{
    my ($at) = @_;
    return join("\n", map { $at->safe_psql('postgres', $_) }
          'SELECT * FROM changefeed.channels ORDER BY name',
        'SELECT * FROM changefeed.sources ORDER BY channel, entity',
        'SELECT * FROM changefeed.events ORDER BY channel, event',
        'SELECT * FROM changefeed.functions ORDER BY name',
        'SELECT * FROM changefeed.dependencies ORDER BY 1',
        'SELECT * FROM changefeed.roles ORDER BY 1',
        'SELECT * FROM changefeed.revocations ORDER BY claim',
        q(SELECT unnest(relacl)::text FROM pg_class WHERE relname = 'item'),
        q(SELECT unnest(proacl)::text FROM pg_proc WHERE proname = 'publish' ORDER BY 1),
        q(SELECT polname, pg_get_expr(polqual, polrelid) FROM pg_policy));
}

{
    my $old_bin = $bin;
    my $new_path = dirname($bin);

    if ($ENV{OLD_PG_CONFIG})
    {
        chomp($old_bin = `$ENV{OLD_PG_CONFIG} --bindir`);
        $node->stop;
        $node = new_node('older', install_path => dirname($old_bin));
        $node->start;
    }
    else
    {
        $new_path = installation('upgraded');
    }
    note('pg_upgrade from ' . $node->safe_psql('postgres', 'SHOW server_version'));
    $node->safe_psql('postgres', q(
CREATE ROLE web;
-- Numbers that the new server will not give to the same functions
CREATE FUNCTION a_first_one() RETURNS int LANGUAGE sql AS 'SELECT 1';
DROP FUNCTION a_first_one();
CREATE EXTENSION pg_changefeed));
    wait_running($node);
    make_items($node);
    $node->safe_psql('postgres', q(
CREATE FUNCTION sees(id int) RETURNS bool LANGUAGE plpgsql STABLE AS 'BEGIN RETURN true; END';
CREATE FUNCTION rename_item(id int, name text) RETURNS item LANGUAGE sql AS
    'UPDATE item SET name = $2 WHERE id = $1 RETURNING *';
ALTER TABLE item ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON item USING (sees(id));
GRANT UPDATE ON item TO web;
GRANT EXECUTE ON FUNCTION changefeed.publish TO web;
SELECT changefeed.declare_dependency('sees(int)');
SELECT changefeed.expose_function('rename_item(int,text)', 'rename');
SELECT changefeed.add_event('items', 'item', 'renamed', 'new.name <> old.name');
SELECT changefeed.create_channel('room:{room}', presence => '{"grace": "3 s"}', join_check => 'true', publish_check => 'true');
SELECT changefeed.revoke(claim => 'sub', value => 'ada')));
    my $client = client(feed_port($node));
    $client->subscribe('items');
    is($client->request(type => 'call', function => 'rename', args => { id => 1, name => 'called' })->{type}, 'result',
        'pg_upgrade: before, a function can be called');
    $client->sync;
    my $before = feed($node);
    my $expected = definitions($node);
    my $upgraded = new_node('upgraded', install_path => $new_path);

    my @command = (
        'pg_upgrade', '-d', $node->data_dir, '-D', $upgraded->data_dir, '-b', $old_bin,
        '-B', $upgraded->install_path . '/bin', '-s', $base, '-p', $node->port, '-P', $upgraded->port);

    # As doc/operations.md says, and why: from 17 on slots have to be read to
    # their end, which ours never is.
    chdir($base) or die "$base: $!";
    if ($node->pg_version >= 17)
    {
        $node->stop;
        command_checks_all([ @command, '--check' ], 1, [qr/logical replication slots that (cannot|can't) be upgraded/], [],
            'pg_upgrade: a slot is in its way');
        $node->start;
        wait_running($node);
    }
    $node->safe_psql('postgres', 'SELECT changefeed.pause(keep_slot => false)');
    wait_off($node, 'postgres');
    $node->stop;
    command_ok(\@command, 'pg_upgrade: it runs');
    chdir('/') or die "/: $!";
    $upgraded->start;
    is(feed($upgraded)->{state}, 'paused', 'pg_upgrade: the pause goes along');
    is(definitions($upgraded), $expected, 'pg_upgrade: so does everything that was defined');
    $upgraded->safe_psql('postgres', 'SELECT changefeed.resume()');
    isnt(wait_running($upgraded)->{epoch}, $before->{epoch}, 'pg_upgrade: another epoch');
    my $again = comes_back($upgraded, $client, 'refused unknown_epoch', 'pg_upgrade: clients are told');
    is($again->request(type => 'call', function => 'rename', args => { id => 1, name => 'again' })->{result}{name}, 'again',
        'pg_upgrade: functions can be called');
    $again->sync;
    is($again->rows('items'), item_rows($upgraded), 'pg_upgrade: which clients see');
    $again->close;
    $upgraded->stop;
    note('pg_upgrade to ' . $upgraded->pg_version);
    unlike(log_since($upgraded), qr/PANIC|TRAP|was terminated by signal/, 'nothing crashed');
}

done_testing();
