-- Settings: names, bounds, and who may change them.
SELECT name, vartype, unit, boot_val, min_val, max_val, context
  FROM pg_settings WHERE name ~ '^changefeed\.' ORDER BY name COLLATE "C";
-- Each is explained.
SELECT name FROM pg_settings
 WHERE name ~ '^changefeed\.' AND (length(short_desc) < 20 OR extra_desc IS NULL OR length(extra_desc) < 20);

-- One below and one above the bounds is refused, the bounds are not.
CREATE FUNCTION accepts(name text, value text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config(name, value, true);
    RETURN true;
EXCEPTION WHEN invalid_parameter_value THEN
    RETURN false;
END $$;
SELECT name,
       accepts(name, min_val) AS min, accepts(name, max_val) AS max,
       accepts(name, (min_val::bigint - 1)::text) AS below, accepts(name, (max_val::bigint + 1)::text) AS above
  FROM pg_settings
 WHERE name ~ '^changefeed\.' AND vartype = 'integer'
 ORDER BY name COLLATE "C";
SET changefeed.port = -1;
SELECT left(value, 25), accepts('changefeed.unix_socket', value)
  FROM unnest(ARRAY['', '/run/changefeed/socket', 'socket', '/' || repeat('x', 107)]) value;
SET changefeed.unix_socket = 'socket';
SET changefeed.unix_socket_mode = '0660';
SHOW changefeed.unix_socket_mode;
RESET changefeed.unix_socket_mode;
SET changefeed.history_age = '10 min';
SHOW changefeed.history_age;
RESET changefeed.history_age;

-- Lists are checked by element.
SELECT value, accepts('changefeed.listen_addresses', value)
  FROM unnest(ARRAY['', '*', 'localhost, 10.0.0.1', '::1', 'a,,b', 'localhost:8040 x', 'a b', 'a/b']) value;
SET changefeed.listen_addresses = 'a/b';
SELECT value, accepts('changefeed.allowed_origins', value)
  FROM unnest(ARRAY['', '*', 'https://app.example.com, http://localhost:3000', 'http://[::1]:8080',
                    'app.example.com', 'https://app.example.com/', 'https://app.example.com:99999',
                    'https://*.example.com', 'https://a,,https://b', '://a']) value;
SET changefeed.allowed_origins = 'https://app.example.com/path';
SELECT value, accepts('changefeed.allowed_hosts', value)
  FROM unnest(ARRAY['', '*', 'feed.example.com, feed.example.com:8040', 'https://feed.example.com', 'a:0', 'a:x']) value;
SET changefeed.allowed_hosts = 'https://feed.example.com';
SELECT value, accepts('changefeed.denied_addresses', value)
  FROM unnest(ARRAY['', '192.0.2.1', '10.0.0.0/8, 2001:db8::/32', '0.0.0.0/0, ::/0', '::ffff:10.0.0.0/104',
                    '10.0.0.1/8', '2001:db8::1/32', '10.0.0.0/33', '::/129', '10.0.0.0/', '10.0.0.0/08', '10.0.0', 'host', 'unix', '10.0.0.0/8,,::1']) value;
SET changefeed.denied_addresses = '10.0.0.1/8';
SET changefeed.allowed_addresses = 'example.com';
SELECT value, accepts('changefeed.trusted_proxies', value)
  FROM unnest(ARRAY['unix', '127.0.0.1, ::1, unix', '10.0.0.0/8 unix', 'local']) value;
SELECT n, accepts('changefeed.denied_addresses', (SELECT string_agg('10.0.0.' || i % 256, ',') FROM generate_series(1, n) i))
  FROM unnest(ARRAY[1000, 1001]) n;
SELECT value, accepts('changefeed.identity_claims', value)
  FROM unnest(ARRAY['', 'exp', 'exp, iat', 'exp,,iat']) value;
SELECT value, accepts('changefeed.token_cookie', value)
  FROM unnest(ARRAY['', '__Host-session', 'a b', 'a=b', 'a;b']) value;

SELECT value, accepts('changefeed.admin_addresses', value)
  FROM unnest(ARRAY['', '10.1.2.3, 10.0.0.0/8, ::1, fd00::/8', '*', 'localhost', '10.0.0.0/33', '10.0.0.0/-1', 'fd00::/129', '10.0.0', '1.2.3.4/', 'a,,b']) value;
SET changefeed.admin_addresses = 'localhost';

-- What names or describes secrets stands in the configuration file only.
SET changefeed.jwt_secret_file = '/tmp/x';
ALTER DATABASE template1 SET changefeed.jwks_file = '/tmp/x';

-- Misspelt names are noticed.
SET changefeed.prot = 1;

-- Only superusers change settings, and only they see where secrets are.
CREATE ROLE regress_plain;
SET ROLE regress_plain;
SET changefeed.port = 8041;
SELECT current_setting('changefeed.port') IS NOT NULL AS shown;
\set VERBOSITY sqlstate
SHOW changefeed.jwt_secret_file;
\set VERBOSITY default
RESET ROLE;
DROP ROLE regress_plain;
DROP FUNCTION accepts(text, text);
