-- The argument presence of create_channel, and who may call changefeed.presence.
SELECT changefeed.create_channel('pr_room:{id}', presence => '{}');
SELECT changefeed.create_channel('pr_all', presence =>
    '{"grace": "1 min", "interval": "50 ms", "limits": {"editor": 10, "guest": 0}, "max_members": 5, "max_state": 100, "count_only": true}');
SELECT name, presence FROM changefeed.channels WHERE name LIKE 'pr\_%' ORDER BY name;

-- Wrong arguments change nothing.
SELECT changefeed.create_channel('x', presence => '[]');
SELECT changefeed.create_channel('x', presence => '"on"');
SELECT changefeed.create_channel('x', presence => 'true');
SELECT changefeed.create_channel('x', presence => '{"graze": "1 s"}');
SELECT changefeed.create_channel('x', presence => '{"grace": 10}');
SELECT changefeed.create_channel('x', presence => '{"grace": "soon"}');
SELECT changefeed.create_channel('x', presence => '{"grace": "2 h"}');
SELECT changefeed.create_channel('x', presence => '{"grace": null}');
SELECT changefeed.create_channel('x', presence => '{"interval": "9 ms"}');
SELECT changefeed.create_channel('x', presence => '{"max_members": 0}');
SELECT changefeed.create_channel('x', presence => '{"max_members": 1.5}');
SELECT changefeed.create_channel('x', presence => '{"max_members": 1e30}');
SELECT changefeed.create_channel('x', presence => '{"max_state": "4 kB"}');
SELECT changefeed.create_channel('x', presence => '{"max_state": 65537}');
SELECT changefeed.create_channel('x', presence => '{"count_only": 1}');
SELECT changefeed.create_channel('x', presence => '{"limits": ["editor"]}');
SELECT changefeed.create_channel('x', presence => '{"limits": {"editor": -1}}');
SELECT changefeed.create_channel('x', presence => '{"limits": {"editor": {}}}');
SELECT changefeed.create_channel('x', presence => '{"limits": {"": 1}}');
SELECT changefeed.create_channel('x', presence => jsonb_build_object('limits', jsonb_build_object(repeat('é', 33), 1)));
SELECT changefeed.create_channel('x', presence => (SELECT jsonb_build_object('limits', jsonb_object_agg('kind ' || n, n)) FROM generate_series(1, 33) n));
SELECT count(*) FROM changefeed.channels WHERE name = 'x';

-- Who may look
CREATE ROLE pr_nobody;
CREATE ROLE pr_monitor;
GRANT pg_read_all_stats TO pr_monitor;
GRANT USAGE ON SCHEMA changefeed TO pr_nobody, pr_monitor;
SET ROLE pr_nobody;
SELECT count(*) FROM changefeed.presence('pr_room:1');
SET ROLE pr_monitor;
SELECT count(*) FROM changefeed.presence('pr_room:1');
RESET ROLE;
SELECT * FROM changefeed.presence('pr_room:1');
SELECT * FROM changefeed.presence('pr_all');
SELECT * FROM changefeed.presence(NULL);
SELECT * FROM changefeed.presence('pr_room:*');
SELECT * FROM changefeed.presence('nothing');
SELECT * FROM changefeed.presence(repeat('x', 2000));

SELECT changefeed.drop_channel(name) FROM changefeed.channels WHERE name LIKE 'pr\_%';
REVOKE USAGE ON SCHEMA changefeed FROM pr_nobody, pr_monitor;
DROP ROLE pr_nobody, pr_monitor;
