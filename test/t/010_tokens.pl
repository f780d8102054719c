# Tokens: which are accepted, which are refused and with what error, where keys
# come from, and what an identity consists of.
#
# Tokens are made here, with the openssl program, and not by the code under
# test.  changefeed._identify is what the feed worker does with a client's
# token.

use strict;
use warnings;

use Digest::SHA qw(hmac_sha256);
use MIME::Base64 qw(encode_base64url decode_base64url);

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('tokens');
my $dir = PostgreSQL::Test::Utils::tempdir();
my $secret = 'a secret of more than thirty-two bytes';
my $later = time() + 3600;

# ---------------------------------------------------------------------------
# Keys and tokens
# ---------------------------------------------------------------------------

sub write_file
{
    my ($name, $content, $mode) = @_;
    my $path = "$dir/$name";

    # A file of its own each time, as tools that rotate keys do it.
    open(my $file, '>:raw', "$path.new") or die "$path: $!";
    print $file $content;
    close($file);
    chmod($mode // 0600, "$path.new") or die "$path: $!";
    rename("$path.new", $path) or die "$path: $!";
    return $path;
}

sub openssl
{
    my (@arguments) = @_;
    my ($output, $errors);

    IPC::Run::run([ 'openssl', @arguments ], '>', \$output, '2>', \$errors)
      or die "openssl @arguments: $errors";
    return $output;
}

sub make_rsa
{
    my ($name, $bits) = @_;
    openssl('genpkey', '-algorithm', 'RSA', '-pkeyopt', "rsa_keygen_bits:$bits",
        '-out', "$dir/$name.key");
    write_file("$name.pem", openssl('pkey', '-in', "$dir/$name.key", '-pubout'), 0644);
    return;
}

sub make_ec
{
    my ($name, $curve) = @_;
    openssl('genpkey', '-algorithm', 'EC', '-pkeyopt', "ec_paramgen_curve:$curve",
        '-out', "$dir/$name.key");
    write_file("$name.pem", openssl('pkey', '-in', "$dir/$name.key", '-pubout'), 0644);
    return;
}

sub rsa_jwk
{
    my ($name, $more) = @_;
    my ($modulus) =
      openssl('rsa', '-pubin', '-in', "$dir/$name.pem", '-noout', '-modulus') =~ /=([0-9A-F]+)/;

    return sprintf('{"kty":"RSA","n":"%s","e":"AQAB"%s}',
        encode_base64url(pack('H*', $modulus)), $more);
}

sub ec_jwk
{
    my ($name, $curve, $bytes, $more) = @_;
    my $point = openssl('pkey', '-pubin', '-in', "$dir/$name.pem", '-outform', 'DER');

    # The uncompressed point is the end of the structure.
    return sprintf('{"kty":"EC","crv":"%s","x":"%s","y":"%s"%s}',
        $curve,
        encode_base64url(substr($point, -2 * $bytes, $bytes)),
        encode_base64url(substr($point, -$bytes)), $more);
}

sub dgst
{
    my ($name, $input) = @_;
    my $path = write_file('to_sign', $input);

    return openssl('dgst', '-sha256', '-sign', "$dir/$name.key", $path);
}

# r and s of fixed length, from ECDSA-Sig-Value in DER
sub raw_signature
{
    my ($der, $bytes) = @_;
    my $at = 2;
    my $raw = '';

    for (1 .. 2)
    {
        my $length = ord(substr($der, $at + 1, 1));
        my $number = substr($der, $at + 2, $length);

        $number =~ s/^\0+//;
        $raw .= ("\0" x ($bytes - length($number))) . $number;
        $at += 2 + $length;
    }
    return $raw;
}

sub hs256 { my ($input, $key) = @_; return hmac_sha256($input, $key // $secret); }
sub rs256 { my ($input, $name) = @_; return dgst($name // 'rsa', $input); }
sub es256 { my ($input, $name) = @_; return raw_signature(dgst($name // 'ec', $input), 32); }

my %sign = (HS256 => \&hs256, RS256 => \&rs256, ES256 => \&es256);

# A token of a header and claims in JSON, signed by a function
sub token_of
{
    my ($header, $claims, $sign, @key) = @_;
    my $input = encode_base64url($header) . '.' . encode_base64url($claims);

    return $input . '.' . encode_base64url($sign->($input, @key));
}

# A usual token
sub token
{
    my ($claims, $algorithm, $kid, @key) = @_;
    my $header = '{"alg":"' . ($algorithm // 'HS256') . '","typ":"JWT"'
      . (defined $kid ? ",\"kid\":\"$kid\"}" : '}');

    return token_of($header, $claims, $sign{ $algorithm // 'HS256' }, @key);
}

sub claims
{
    my ($more) = @_;
    return '{"role":"web","sub":"u1","exp":' . $later . ($more // '') . '}';
}

# ---------------------------------------------------------------------------
# Asking the server
# ---------------------------------------------------------------------------

sub query_of
{
    my ($token, $what) = @_;
    $token =~ s/'/''/g;
    return 'SELECT changefeed._identify(' . "'$token')" . ($what // '') . ';';
}

sub identify
{
    my ($token, $what) = @_;
    my ($code, $output, $errors) =
      $node->psql('postgres', "\\set VERBOSITY verbose\n" . query_of($token, $what));

    return $code == 0 ? $output : $errors;
}

sub accepted
{
    my ($token, $name) = @_;
    return is(identify($token, "->>'role'"), 'web', $name);
}

sub refused
{
    my ($token, $error, $name) = @_;
    return like(identify($token), qr/ERROR:  $error/, $name);
}

sub set
{
    my (%settings) = @_;

    while (my ($name, $value) = each %settings)
    {
        $node->safe_psql('postgres', "ALTER SYSTEM SET changefeed.$name = '$value'");
    }
    $node->reload;
    while (my ($name, $value) = each %settings)
    {
        $node->poll_query_until('postgres',
            "SELECT current_setting('changefeed.$name') = '$value'")
          or die "changefeed.$name did not change";
    }
    return;
}

# ---------------------------------------------------------------------------
# Start
# ---------------------------------------------------------------------------

make_rsa('rsa', 2048);
make_rsa('rsa_other', 2048);
make_rsa('rsa_small', 1024);
make_ec('ec', 'P-256');
make_ec('ec_other', 'P-256');
make_ec('ec384', 'P-384');

write_file('secret', "$secret\n");
my $set_secret = 'another secret, that of the key set';
my $oct = sprintf('{"kty":"oct","kid":"o1","alg":"HS256","k":"%s"}', encode_base64url($set_secret));
write_file('jwks.json', '{"keys":['
      . join(',',
        ec_jwk('ec', 'P-256', 32, ',"kid":"e1","use":"sig","alg":"ES256"'),
        rsa_jwk('rsa', ',"kid":"r1","key_ops":["verify"]'),
        $oct,
        rsa_jwk('rsa_other', ',"kid":"ps","alg":"PS256"'),
        rsa_jwk('rsa_other', ',"kid":"enc","use":"enc"'),
        rsa_jwk('rsa_small', ',"kid":"small"'),
        ec_jwk('ec384', 'P-384', 48, ',"kid":"e384"'),
        '{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}',
        '{"kty":"EC","crv":"P-256","kid":"off","x":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE",'
          . '"y":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE"}',
        '7')
      . ']}');

$node->init(extra => [ '--encoding', 'UTF8', '--locale', 'C' ]);
$node->append_conf(
    'postgresql.conf', qq(
shared_preload_libraries = 'pg_changefeed'
wal_level = logical
log_min_messages = debug1
changefeed.listen_addresses = ''
changefeed.jwt_secret_file = '$dir/secret'
changefeed.jwks_file = '$dir/jwks.json'
));
$node->start;
$node->safe_psql(
    'postgres', q(
CREATE ROLE web;
CREATE EXTENSION pg_changefeed;
SELECT changefeed.allow_role('web');
));

# ---------------------------------------------------------------------------
# Signatures
# ---------------------------------------------------------------------------

is( identify(token('{"role":"web","sub":"u1","tenant":7,"iat":1,"jti":"x","exp":' . $later . '}'),
        " - 'hash'"),
    qq({"role": "web", "claims": {"sub": "u1", "role": "web", "tenant": 7}, "expires": $later, )
      . q("subject": "u1"}),
    'an identity is the role and the claims that do not differ per token');

accepted(token(claims(), 'ES256', 'e1'), 'ES256 by kid');
accepted(token(claims(), 'ES256'), 'ES256 without kid');
accepted(token(claims(), 'RS256', 'r1'), 'RS256 by kid');
accepted(token(claims(), 'HS256', 'o1', $set_secret), 'HS256 with a key of the set');
accepted(token(claims(), 'HS256', 'whatever'), 'a kid does not matter to the secret file');
accepted(token_of('{"typ":"at+jwt","b64":true,"x":{},"alg":"HS256"}', claims(), \&hs256),
    'other header members are ignored');

for my $algorithm ('none', 'None', 'NONE', '', 'hs256', 'HS512', 'PS256', 'RS512', 'ES384', 'EdDSA')
{
    my $header = encode_base64url("{\"alg\":\"$algorithm\"}") . '.' . encode_base64url(claims());

    refused(
        "$header." . encode_base64url(hs256($header)),
        '28000: token algorithm is not supported',
        "algorithm \"$algorithm\"");
}
refused(
    encode_base64url('{"alg":"none"}') . '.' . encode_base64url(claims()) . '.',
    '28000: token is not a JSON Web Token',
    'no signature');
for my $header ('{}', '{"alg":null}', '{"alg":["HS256"]}', '{"alg":"HS256\u0000"}', '[]', 'x',
    '{"alg":"HS256","alg":"HS256"}', '{"alg":"none","alg":"HS256"}', '{"alg":"HS256"}x',
    "{\"alg\":\"HS256\",\"x\":\"\xff\"}", '[' x 9000)
{
    refused(token_of($header, claims(), \&hs256), '28000: token (header|algorithm) is not',
        'header ' . substr($header, 0, 30));
}
refused(token_of('{"alg":"HS256","crit":["exp"],"exp":1}', claims(), \&hs256),
    '28000: token header has an extension', 'critical extension');
refused(token_of('{"alg":"HS256","crit":[]}', claims(), \&hs256),
    '28000: token header has an extension', 'empty list of critical extensions');
refused(token_of('{"alg":"HS256","b64":false}', claims(), \&hs256),
    '28000: token header has an extension', 'unencoded payload');
refused(token_of('{"alg":"HS256","kid":7}', claims(), \&hs256),
    '28000: token key id is not valid', 'kid is a number');
refused(token_of('{"alg":"HS256","kid":"' . ('k' x 256) . '"}', claims(), \&hs256),
    '28000: token key id is not valid', 'kid is too long');

refused(token(claims(), 'ES256', 'e2'), '28000: no key fits the token', 'unknown kid');
for my $kid ('ps', 'enc', 'small', 'off')
{
    refused(token(claims(), $kid eq 'off' ? 'ES256' : 'RS256', $kid, $kid eq 'off' ? 'ec' : 'rsa_other'),
        '28000: no key fits the token', "key \"$kid\" is not used");
}
refused(token(claims(), 'HS256', undef, $set_secret . 'x'),
    '28000: token signature is not valid', 'wrong secret');
refused(token(claims(), 'HS256', undef, "$secret\n"),
    '28000: token signature is not valid', 'the newline is no part of the secret');
refused(token(claims(), 'RS256', undef, 'rsa_other'),
    '28000: token signature is not valid', 'wrong RSA key');
refused(token(claims(), 'ES256', 'e1', 'ec_other'),
    '28000: token signature is not valid', 'wrong EC key');
refused(token(claims(), 'ES256', 'r1'), '28000: no key fits the token', 'kid of a key of another type');
refused(token(claims(), 'HS256', 'r1', slurp_file("$dir/rsa.pem")),
    '28000: token signature is not valid', 'public key as secret');
refused(
    token_of('{"alg":"ES256"}', claims(), sub { raw_signature(dgst('ec384', $_[0]), 48) }),
    '28000: token signature is not valid', 'signature on another curve');
refused(token_of('{"alg":"ES256"}', claims(), sub { dgst('ec', $_[0]) }),
    '28000: token signature is not valid', 'signature in DER');
refused(token_of('{"alg":"ES256"}', claims(), sub { "\0" x 64 }),
    '28000: token signature is not valid', 'signature of zeros');
refused(token_of('{"alg":"RS256","jwk":' . rsa_jwk('rsa_other', '') . '}', claims(), \&rs256, 'rsa_other'),
    '28000: token signature is not valid', 'a key in the token is not used');

# ---------------------------------------------------------------------------
# Form
# ---------------------------------------------------------------------------

for my $algorithm ('HS256', 'RS256', 'ES256')
{
    my $good = token(claims(), $algorithm);
    my ($header, $payload, $signature) = split(/\./, $good);
    my $other = encode_base64url(claims(',"admin":true'));

    accepted($good, "$algorithm");
    refused("$header.$other.$signature", '28000: token signature is not valid',
        "$algorithm: other payload");
    refused(substr($good, 0, -1), '28000: token signature is not valid', "$algorithm: one character less");
    refused("$header.$payload." . substr($signature, 0, 2), '28000: token signature is not valid',
        "$algorithm: two characters of a signature");
    refused("${good}AAAA", '28000: token signature is not valid', "$algorithm: longer signature");
    refused("$header.$payload." . ($signature =~ tr/A-Za-z/B-ZAb-za/r),
        '28000: token signature is not valid', "$algorithm: other signature");
}
{
    my $good = token(claims());

    for my $bad ("$good.", ".$good", "$good.$good", "$good=", "$good\n", " $good", "Bearer $good",
        $good =~ s/\./../r, '.', '..', '...', 'x', 'x.y', 'x.y.z=', "\xc3\xa9.y.z", $good =~ tr/.//dr)
    {
        refused($bad, '28000: token is not a JSON Web Token', 'form: ' . substr($bad, 0, 12));
    }
    refused(token(claims(',"x":"' . ('x' x 16384) . '"')), '28000: token is too long', 'huge token');
    accepted(token(claims(',"x":"' . ('x' x 12000) . '"')), 'large token');
}

# ---------------------------------------------------------------------------
# Claims
# ---------------------------------------------------------------------------

refused(token('{"role":"web","exp":' . (time() - 1) . '}'),
    '28000: token has expired.*HINT:  Send a fresh token'
    =~ s/\.\*/.*\\n/r, 'expired');
refused(token('{"role":"web","exp":' . (time() - 0.5) . '}'), '28000: token has expired', 'expired, with a fraction');
for my $past (0, -1, -1e300, '0.0', '1e9')
{
    refused(token("{\"role\":\"web\",\"exp\":$past}"), '28000: token has expired', "exp $past");
}
for my $bad ('"1"', 'null', '[]', '1e18', '1e308', $later * 1000, '253402300800')
{
    refused(token("{\"role\":\"web\",\"exp\":$bad}"), '28000: token claim "exp" is not a time', "exp $bad");
}
is(identify(token("{\"role\":\"web\",\"exp\":$later.75}"), "->>'expires'"), $later, 'fraction of a second');
is(identify(token('{"role":"web","exp":253402300799}'), "->>'expires'"), 253402300799, 'last second');
is(identify(token('{"role":"web"}'), "->>'expires' IS NULL"), 't', 'token without end');
refused(token(claims(',"nbf":' . (time() + 120))), '28000: token is not valid yet', 'nbf in the future');
refused(token(claims(',"nbf":"now"')), '28000: token claim "nbf" is not a time', 'nbf is no number');
accepted(token(claims(',"nbf":' . (time() + 2))), 'nbf of a clock that is a little fast');
accepted(token(claims(',"nbf":' . (time() - 10) . ',"iat":' . (time() + 500))), 'iat is not looked at');

for my $bad ('', 'x', '{', '{"role":"web"}}', '{"role":"web","role":"web"}', '{"a":{"b":1,"b":2},"role":"web"}',
    '{"role":"web","x":"\u0000"}', '{"role":"web","\u0000":1}', '{"role":"web","x":"\ud800"}',
    '{"role":"web","x":1e400}', '{"role":"web","x":01}', "{'role':'web'}", '{"role":"web",}',
    '{"role":"web","x":NaN}', '{"role":"web","x":' . ('[' x 3000) . (']' x 3000) . '}')
{
    refused(token($bad), '28000: token (claims are not valid JSON|is not a JSON Web Token)',
        'claims ' . substr($bad, 0, 40));
}
for my $bad ('[]', '"web"', 'null', '7')
{
    refused(token($bad), '28000: token claims are not (a JSON object|valid JSON)', "claims $bad");
}
for my $bad ("\xff", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\0")
{
    refused(token("{\"role\":\"web\",\"x\":\"$bad\"}"), '28000: token claims are not valid UTF-8',
        'claims with bytes ' . unpack('H*', $bad));
}
refused(token('{"role":"web","x":1e-20000}'), '28000: token claims cannot be represented',
    'number that numeric does not have');
refused(token('{"role":"web","x":[' . join(',', ('1e-16000') x 100) . ']}'),
    '28000: token claims are too long', 'numbers that take long to write');
is(identify(token('{"role":"web","sub":"\u00e9\ud83d\ude00","n":18446744073709551616}'), "->'claims'->>'n'"),
    '18446744073709551616', 'integers are not rounded');
is(identify(token('{"role":"web","sub":12}'), "->>'subject'"), '12', 'subject is a number');
is(identify(token('{"role":"web","sub":{}}'), "->>'subject' IS NULL"), 't', 'subject is an object');

set(jwt_audience => 'feed');
accepted(token(claims(',"aud":"feed"')), 'audience');
accepted(token(claims(',"aud":["x",7,"feed"]')), 'audience in a list');
for my $bad ('', ',"aud":"food"', ',"aud":[]', ',"aud":"fee"', ',"aud":["Feed"]', ',"aud":{"feed":"feed"}',
    ',"aud":null', ',"aud":[["feed"]]')
{
    refused(token(claims($bad)), '28000: token is for another audience', "audience$bad");
}
set(jwt_audience => '');
accepted(token(claims(',"aud":"food"')), 'audience is not looked at');

# ---------------------------------------------------------------------------
# Roles
# ---------------------------------------------------------------------------

$node->safe_psql(
    'postgres', q(
CREATE ROLE outsider;
CREATE ROLE root_role SUPERUSER;
CREATE ROLE bypass BYPASSRLS;
CREATE ROLE replicator REPLICATION;
CREATE ROLE middle NOINHERIT IN ROLE bypass;
CREATE ROLE via_bypass NOINHERIT IN ROLE middle;
CREATE ROLE via_root IN ROLE root_role;
CREATE ROLE via_replicator IN ROLE replicator;
CREATE ROLE reader IN ROLE pg_read_all_data;
CREATE ROLE files IN ROLE pg_read_server_files;
CREATE ROLE programs IN ROLE pg_execute_server_program;
CREATE ROLE "O'Brien";
CREATE ROLE anon;
SELECT changefeed.allow_role('"O''Brien"');
SELECT changefeed.allow_role('anon');
));
# What allow_role refuses may be so only after it was admitted.
$node->safe_psql('postgres',
    q(INSERT INTO changefeed.role (role) SELECT oid FROM pg_roles WHERE rolname IN ('root_role', 'bypass',
    'replicator', 'middle', 'via_bypass', 'via_root', 'via_replicator', 'reader', 'files', 'programs')));

for my $role ('outsider', 'nobody', 'root_role', 'bypass', 'replicator', 'middle', 'via_bypass', 'via_root',
    'via_replicator', 'reader', 'files', 'programs', 'none', 'public', '', 'Web', 'pg_read_all_data')
{
    my $error = identify(token("{\"role\":\"$role\"}"));

    like($error, qr/^psql:.*ERROR:  42501: role "\Q$role\E" is not allowed to subscribe\n/, "role \"$role\" is refused");
    like($error, qr/HINT:  An administrator can admit it: SELECT changefeed\.allow_role\('\Q$role\E'\)/, 'hint');
}
refused(token('{"role":"' . ('w' x 5000) . '"}'), '42501: role "w{63}" is not allowed', 'long name');
is(identify(token('{"role":"O\u0027Brien"}'), "->'claims'"), q({"role": "O'Brien"}), 'name with a quote');
for my $bad ('7', '[]', '["web"]', 'true', '{}')
{
    refused(token("{\"role\":$bad}"), '28000: the token.s claim for the role is not a string', "role $bad");
}

refused('', '28000: a token is required', 'no token');
refused(token('{}'), '28000: the token names no role', 'no role');
refused(token('{"role":null}'), '28000: the token names no role', 'role is null');
set(anon_role => 'anon');
is(identify('', " - 'hash'"),
    '{"role": "anon", "claims": {"role": "anon"}, "expires": null, "subject": null}', 'anonymous');
is(identify(token('{"sub":"u1"}'), "->>'role'"), 'anon', 'a token without role');
set(anon_role => 'nobody');
refused('', '42501: role "nobody" is not allowed', 'anonymous role that is not there');
set(anon_role => '');

set(jwt_role_claim => 'https://example.com/role');
is(identify(token('{"role":"x","https://example.com/role":"web"}'), "->'claims'"),
    '{"role": "web", "https://example.com/role": "web"}', 'other claim for the role');
set(jwt_role_claim => '.app."my.roles"[1].name');
accepted(token('{"app":{"my.roles":[{"name":"x"},{"name":"web"}]}}'), 'path to the role');
for my $none ('{}', '{"app":7}', '{"app":{"my.roles":[]}}', '{"app":{"my.roles":{}}}', '{"app":{"my.roles":["",""]}}')
{
    refused(token($none), '28000: the token names no role', "no role in $none");
}
for my $path ('.', '..a', '.a[', '.a[x]', '.a[-1]', '.a[1]b', '."a', '.a]"', '.a[99999999999999999999]', '.""')
{
    set(jwt_role_claim => $path);
    refused(token('{"a":["web"]}'), '28000: the (claim for the role is not configured|token names no role)', "path $path");
}
set(jwt_role_claim => 'role');

set(identity_claims => ' exp , app,sub');
is(identify(token(claims(',"app":{"x":1},"Sub":2,"iat":5')), "->'claims'"),
    '{"Sub": 2, "iat": 5, "role": "web"}', 'claims that are left out');
is(identify(token(claims()), "->>'subject'"), 'u1', 'subject, though it is left out');
set(identity_claims => 'exp,iat,nbf,jti,session_id');

# ---------------------------------------------------------------------------
# The hash of an identity
# ---------------------------------------------------------------------------

sub hash { my ($claims) = @_; return identify(token($claims), "->>'hash'"); }

my $hash = hash('{"role":"web","a":1,"b":[2],"iat":1}');
like($hash, qr/^[0-9a-f]{16}$/, 'hash');
is(hash('{"b":[2], "role":"web","exp":' . $later . ',"a":1}'), $hash, 'same identity, same hash');
isnt(hash('{"role":"web","a":2,"b":[2]}'), $hash, 'other claims, other hash');
$node->restart;
is(hash('{"role":"web","a":1,"b":[2]}'), $hash, 'same hash after a restart');
$node->safe_psql('postgres', 'CREATE ROLE bystander; GRANT bystander TO outsider; VACUUM (FREEZE) pg_authid');
is(hash('{"role":"web","a":1,"b":[2]}'), $hash, 'same hash when other roles change');
for my $change ('CREATE ROLE grp', 'GRANT grp TO web', 'CREATE ROLE grp2; GRANT grp2 TO grp', 'ALTER ROLE grp2 NOINHERIT',
    'GRANT grp2 TO grp WITH ADMIN OPTION', 'ALTER DATABASE postgres OWNER TO grp2', 'REVOKE grp FROM web',
    'ALTER ROLE web CREATEDB')
{
    my $before = hash('{"role":"web"}');

    $node->safe_psql('postgres', $change);
    if ($change eq 'CREATE ROLE grp') { is(hash('{"role":"web"}'), $before, $change); }
    else { isnt(hash('{"role":"web"}'), $before, $change); }
}

# ---------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------

sub logged
{
    my ($pattern, $name) = @_;
    return like(slurp_file($node->logfile), $pattern, $name);
}

logged(qr/key 4 of ".*jwks\.json" \(changefeed\.jwks_file\) is skipped: its type or algorithm/, 'log of key 4');
logged(qr/key 5 of .* is skipped: it is not for signatures/, 'log of key 5');
logged(qr/a key of .* is not used: RSA keys need at least 2048 bits/, 'log of key 6');
logged(qr/key 7 of .* is skipped/, 'log of key 7');
logged(qr/key 8 of .* is skipped/, 'log of key 8');
logged(qr/a key of .* is not used: it is not valid/, 'log of key 9');
logged(qr/key 10 of .* is skipped/, 'log of key 10');
logged(qr/role "bypass" is refused: it has BYPASSRLS/, 'why a role is refused, for the administrator');

my $web = token(claims());
set(jwks_file => '');
for my $case (
    [ "$secret\n", 0644, 'others may read it', 'readable by all' ],
    [ "$secret\n", 0640, 'others may read it', 'readable by the group' ],
    [ "$secret\n", 0602, 'others may read it', 'writable by all' ],
    [ substr($secret, 0, 31), 0600, 'secrets need at least 32 bytes', 'short secret' ],
    [ substr($secret, 0, 31) . "\r\n", 0600, 'secrets need at least 32 bytes', 'short secret and newline' ],
    [ "\n", 0600, 'secrets need at least 32 bytes', 'only a newline' ],
    [ '', 0600, 'secrets need at least 32 bytes', 'empty file' ],
    [ slurp_file("$dir/rsa.pem"), 0600, 'it holds a PEM block', 'public key as secret' ],
    [ 'x' x 70000, 0600, 'it is larger than', 'large file' ])
{
    my ($content, $mode, $message, $name) = @$case;
    my $log = $node->logfile;
    my $offset = -s $log;

    write_file('secret', $content, $mode);
    refused($web, '28000: no key for tokens is configured', "secret: $name");
    like(slurp_file($log, $offset), qr/LOG:  .*"\Q$dir\E\/secret" \(changefeed\.jwt_secret_file\).*\Q$message\E/,
        "secret: $name: log");
}
unlink("$dir/secret");
refused($web, '28000: no key for tokens is configured', 'secret: no file');
logged(qr/could not open ".*secret" \(changefeed\.jwt_secret_file\): No such file/, 'secret: no file: log');
mkdir("$dir/secret");
refused($web, '28000: no key for tokens is configured', 'secret: a directory');
rmdir("$dir/secret");
system('mkfifo', '-m', '0600', "$dir/secret");
refused($web, '28000: no key for tokens is configured', 'secret: a pipe');
unlink("$dir/secret");
write_file('secret', "$secret\r\n", 0400);
accepted($web, 'secret: other newline, mode 0400');
write_file('secret', "$secret\n");

# relative to the data directory
write_file('secret', 'x' x 40);
rename("$dir/secret", $node->data_dir . '/jwt.secret');
set(jwt_secret_file => 'jwt.secret');
accepted(token(claims(), 'HS256', undef, 'x' x 40), 'relative path');
set(jwt_secret_file => '');
refused($web, '28000: no key for tokens is configured', 'no file at all');

set(jwt_public_key_file => "$dir/key.pem");
my $rs = token(claims(), 'RS256', 'any');
my $es = token(claims(), 'ES256');
write_file('key.pem', slurp_file("$dir/rsa.pem"), 0644);
accepted($rs, 'public key: RSA');
refused($es, '28000: no key fits', 'public key: RSA is not for ES256');
refused(token(claims(), 'HS256', undef, slurp_file("$dir/rsa.pem")), '28000: no key fits', 'public key as secret of HS256');
write_file('key.pem', openssl('rsa', '-pubin', '-in', "$dir/rsa.pem", '-RSAPublicKey_out'), 0644);
accepted($rs, 'public key: PKCS #1');
write_file('key.pem', slurp_file("$dir/ec.pem"), 0644);
accepted($es, 'public key: EC');
openssl('req', '-x509', '-key', "$dir/ec.key", '-subj', '/CN=x', '-days', '1', '-out', "$dir/ec.crt");
openssl('req', '-x509', '-key', "$dir/rsa_other.key", '-subj', '/CN=ca', '-days', '1', '-out', "$dir/ca.crt");
write_file('key.pem', "some text\n" . slurp_file("$dir/ec.crt") . slurp_file("$dir/ca.crt"), 0644);
accepted($es, 'public key: certificate');
refused(token(claims(), 'RS256', undef, 'rsa_other'), '28000: no key fits', 'the certificate of an authority signs no tokens');
logged(qr/only the first key of ".*key\.pem" .* is used/, 'several certificates: log');
for my $case (
    [ slurp_file("$dir/rsa.key"), 0600, 'holds no public key', 'private key' ],
    [ slurp_file("$dir/rsa_small.pem"), 0644, 'RSA keys need at least 2048', 'short RSA key' ],
    [ slurp_file("$dir/ec384.pem"), 0644, 'only RSA keys and EC keys on P-256', 'other curve' ],
    [ "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", 0644, 'holds no public key', 'damaged key' ],
    [ '', 0644, 'holds no public key', 'empty file' ],
    [ slurp_file("$dir/rsa.pem"), 0646, 'everybody may write', 'writable by all' ])
{
    my ($content, $mode, $message, $name) = @$case;
    my $offset = -s $node->logfile;

    write_file('key.pem', $content, $mode);
    refused($rs, '28000: no key for tokens is configured', "public key: $name");
    like(slurp_file($node->logfile, $offset), qr/LOG:  .*key\.pem.*\Q$message\E/, "public key: $name: log");
}

set(jwt_public_key_file => '', jwks_file => "$dir/jwks.json");
for my $case ('', 'x', '[]', '{}', '{"keys":{}}', '{"keys":[],"keys":[]}', '{"keys":[]} x', $oct)
{
    write_file('jwks.json', $case, 0600);
    refused($rs, '28000: no key for tokens is configured', 'key set: ' . substr($case, 0, 20));
}
# What cjose would not survive, beside a key that is good.
for my $damaged ('{"kty":"RSA","n":"AQABA=QAB","e":"AQAB"}', '{"kty":"RSA","n":"AQAB","e":"A==="}',
    '{"kty":"EC","crv":"P-256","x":"AAAAA===","y":"AAAA"}', '{"kty":"oct","k":"A=AA"}', '{"kty":"RSA","n":"A","e":"AQAB"}')
{
    write_file('jwks.json', "{\"keys\":[$damaged," . rsa_jwk('rsa', '') . ']}', 0600);
    accepted($rs, "key set: a good key behind $damaged");
    logged(qr/a key of .*jwks\.json.* is not used: it is not valid/, "key set: log of $damaged");
}
write_file('jwks.json', "{\"keys\":[$oct]}", 0644);
refused(token(claims(), 'HS256', 'o1', $set_secret), '28000: no key for tokens', 'key set: secret that others may read');
logged(qr/key 1 of .*jwks\.json.* is skipped: it is a secret, and others may read/, 'key set: log');
write_file('jwks.json', '{"keys":[' . rsa_jwk('rsa', '') . ',' . ec_jwk('ec', 'P-256', 32, '') . ']}', 0644);
accepted($rs, 'key set: RSA key without kid');
accepted($es, 'key set: EC key without kid');

# ---------------------------------------------------------------------------
# One session: results that are remembered, keys that are rotated
# ---------------------------------------------------------------------------

{
    my $short = token('{"role":"web","exp":' . (time() + 3) . '}', 'RS256');
    my $old = token(claims(), 'RS256', 'r1');
    my $new = token(claims(), 'RS256', 'r2', 'rsa_other');

    write_file('jwks.json', '{"keys":[' . rsa_jwk('rsa', ',"kid":"r1"') . ']}', 0644);
    write_file('next.json', '{"keys":[' . rsa_jwk('rsa_other', ',"kid":"r2"') . ']}', 0644);
    my ($code, $output, $errors) = $node->psql(
        'postgres',
        join("\n",
            '\set VERBOSITY verbose',
            query_of($short, "->>'role'"), query_of($old, "->>'role'"), query_of($new, "->>'role'"),
            'SELECT pg_sleep(3.5);',
            "\\! mv $dir/next.json $dir/jwks.json",
            query_of($short, "->>'role'"), query_of($old, "->>'role'"), query_of($new, "->>'role'"),
            query_of($old, "->>'role'")),
        on_error_stop => 0);

    is($output =~ s/\n+/ /gr, 'web web web web', 'session: a remembered token, and one of a new key');
    my @errors = $errors =~ /ERROR:  (.*)/g;
    is_deeply(
        \@errors,
        [
            '28000: no key fits the token',
            '28000: token has expired',
            '28000: no key fits the token'
        ],
        'session: a key to come, a remembered token that expired, a key that was removed');
}

# ---------------------------------------------------------------------------
# Signing
# ---------------------------------------------------------------------------

write_file('secret', "$secret\n");
set(jwt_secret_file => "$dir/secret");
{
    my $made = $node->safe_psql('postgres', "SELECT changefeed.make_token('{\"role\":\"web\",\"sub\":\"\x{c3}\x{a9}\"}')");
    my ($header, $payload, $signature) = split(/\./, $made);

    my $made_claims = decode_base64url($payload) =~ s/ //gr;
    like($made_claims, qr/^\{("exp":\d+,"iat":\d+,)?"sub":"\xc3\xa9","role":"web"\}$/, 'make_token: claims');
    is($signature, encode_base64url(hs256("$header.$payload")), 'make_token: signature');
    accepted($made, 'make_token: accepted');
}
set(jwt_secret_file => '');
my ($code, $output, $errors) = $node->psql('postgres', "SELECT changefeed.make_token('{}')");
like($errors, qr/ERROR:  no secret to sign tokens with is configured/, 'make_token: no secret');

# ---------------------------------------------------------------------------
# Who may ask, and what was logged
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', 'GRANT USAGE ON SCHEMA changefeed TO web; GRANT EXECUTE ON FUNCTION changefeed._identify(text) TO web');
($code, $output, $errors) = $node->psql('postgres', "SET ROLE web; SELECT changefeed._identify('')");
like($errors, qr/must be superuser/, 'only a superuser may ask');

# Statements are in the log with the tokens that this test put into them.
my $log = join("\n", grep { /LOG:|HINT:|DEBUG:/ && !/statement:|STATEMENT:/ } split(/\n/, slurp_file($node->logfile)));
unlike($log, qr/\Q$secret\E/, 'no secret in the log');
unlike($log, qr/eyJ/, 'no token in the log');

$node->stop;
done_testing();
