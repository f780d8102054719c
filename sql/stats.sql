-- Statistics views: what they have, and what they say when nobody is connected.
SELECT table_name AS view, column_name, data_type
  FROM information_schema.columns
 WHERE table_schema = 'changefeed' AND table_name LIKE 'stat\_%'
 ORDER BY table_name COLLATE "C", ordinal_position;

-- Nobody is connected.
CREATE TABLE counted (id int PRIMARY KEY, room int NOT NULL);
SET client_min_messages = warning;
SELECT changefeed.create_channel('counted:{room}', 'counted');
RESET client_min_messages;
SELECT count(*) FROM changefeed.stat_connections;
SELECT count(*) FROM changefeed.stat_subscriptions;

-- The feed worker learns of the channel by its commit.
DO $$
BEGIN
    FOR i IN 1 .. 1000 LOOP
        EXIT WHEN EXISTS (SELECT FROM changefeed.stat_channels WHERE channel = 'counted:{room}');
        PERFORM pg_sleep(0.01);
    END LOOP;
END $$;
SELECT * FROM changefeed.stat_channels WHERE channel = 'counted:{room}' \gx
SELECT gateway, pid > 0 AS pid, started_at <= now() AS started, connections, queued_bytes, behind,
       refused, refused_by_code, cpu_ms >= 0 AS cpu, memory_bytes > 0 AS memory
  FROM changefeed.stat_gateways;

-- Each family of /metrics is there once, with its help and type.
CREATE TEMP TABLE line AS SELECT * FROM regexp_split_to_table(changefeed.metrics(), '\n') text;
SELECT count(*) > 50 AS families, count(*) = count(DISTINCT split_part(text, ' ', 3)) AS once
  FROM line WHERE text LIKE '# TYPE %';
SELECT count(*) AS differ
  FROM (SELECT split_part(text, ' ', 3) FROM line WHERE text LIKE '# TYPE %'
        EXCEPT SELECT split_part(text, ' ', 3) FROM line WHERE text LIKE '# HELP %') _;
SELECT text FROM line
 WHERE text <> '' AND text !~ '^(# (HELP|TYPE) changefeed_[a-z_]+ .+|changefeed_[a-z_]+(\{[a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*\})? [0-9.]+)$';


SELECT changefeed.drop_channel('counted:{room}');
DROP TABLE counted;
