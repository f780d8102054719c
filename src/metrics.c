/*-------------------------------------------------------------------------
 *
 * metrics.c
 *		Everything that is counted, in Prometheus' text format.
 *
 * Each family has its HELP and TYPE even if it has no sample, so that the list
 * is complete at any time: scripts/reference makes the documentation from it,
 * and tests compare dashboards and alert rules with it.  Labels have few
 * values, none of which a client can choose; per-channel ones are those of
 * definitions, not of the names that clients subscribe to.
 *
 * Process: feed worker.  Memory: the caller's StringInfo, and the turn's.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "feed.h"
#include "gateways.h"
#include "pause.h"
#include "stat.h"

#include "commands/dbcommands.h"
#include "utils/memutils.h"

/* Definitions of channels that get samples of their own. */
#define MAX_CHANNELS 1000

static StringInfo out;
static const char *family;
static char numbers[MAX_GATEWAYS][8]; /* of gateways, as text */

static void
Family(const char *name, const char *type, const char *help)
{
	family = name;
	appendStringInfo(out, "# HELP changefeed_%s %s\n# TYPE changefeed_%s %s\n", name, help, name,
					 type);
}

/* Values of labels may have any character. */
static void
AppendLabel(const char *name, const char *value)
{
	appendStringInfo(out, "%s=\"", name);
	for (; *value != '\0'; value++)
	{
		if (*value == '\n')
			appendStringInfoString(out, "\\n");
		else
		{
			if (*value == '\\' || *value == '"')
				appendStringInfoChar(out, '\\');
			appendStringInfoChar(out, *value);
		}
	}
	appendStringInfoChar(out, '"');
}

/* The name of the family, `suffix`, and up to two labels (NULL: none). */
static void
Sample(const char *suffix, const char *label1, const char *value1, const char *label2,
	   const char *value2)
{
	appendStringInfo(out, "changefeed_%s%s", family, suffix);
	if (label1 != NULL)
	{
		appendStringInfoChar(out, '{');
		AppendLabel(label1, value1);
		if (label2 != NULL)
		{
			appendStringInfoChar(out, ',');
			AppendLabel(label2, value2);
		}
		appendStringInfoChar(out, '}');
	}
	appendStringInfoChar(out, ' ');
}

static void
Number(const char *label, const char *value, uint64 number)
{
	Sample("", label, value, NULL, NULL);
	appendStringInfo(out, UINT64_FORMAT "\n", number);
}

static void
Seconds(const char *label, const char *value, double seconds)
{
	Sample("", label, value, NULL, NULL);
	appendStringInfo(out, "%.6f\n", seconds);
}

static void
One(const char *name, const char *type, const char *help, uint64 number)
{
	Family(name, type, help);
	Number(NULL, NULL, number);
}

static void
Buckets(const Histogram *histogram, const char *label, const char *value)
{
	static const uint64 bounds[] = LINK_LAG_BOUNDS;
	uint64 n = 0;
	int i;

	for (i = 0; i < LINK_LAG_BUCKETS; i++)
	{
		char bound[32] = "+Inf";

		if (i < LINK_LAG_BUCKETS - 1)
			snprintf(bound, sizeof(bound), "%g", (double) bounds[i] / 1e6);
		n += histogram->buckets[i];
		if (label != NULL)
			Sample("_bucket", label, value, "le", bound);
		else
			Sample("_bucket", "le", bound, NULL, NULL);
		appendStringInfo(out, UINT64_FORMAT "\n", n);
	}
	Sample("_sum", label, value, NULL, NULL);
	appendStringInfo(out, "%.6f\n", (double) histogram->sum_us / 1e6);
	Sample("_count", label, value, NULL, NULL);
	appendStringInfo(out, UINT64_FORMAT "\n", n);
}

static uint64
Read(pg_atomic_uint64 *counter)
{
	return pg_atomic_read_u64(counter);
}

/* ---- the parts ---- */

static void
Feed(void)
{
	static const char started[] = "start_time_seconds";
	char *database = get_database_name(feed_shared->database);

	Family("build_info", "gauge", "Always 1; the labels say what runs.");
	Sample("", "version", CHANGEFEED_VERSION, "postgres", PG_VERSION);
	appendStringInfoString(out, "1\n");
	Family("database_info", "gauge", "Always 1; the label is the database that this feed is of.");
	Number("database", database != NULL ? database : "", 1);
	Family(started, "gauge", "When the feed worker started, in seconds since 1970.");
	Seconds(NULL, NULL,
			(double) feed_started / 1e6 +
				(double) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY);
	One("paused", "gauge", "1 while changefeed.pause keeps clients out, 0 otherwise.",
		feed_paused ? 1 : 0);
	One("starts_total", "counter",
		"Starts of the pair of decoder and feed worker since the server started.",
		Read(&feed_shared->feed_starts));
	One("gateway_starts_total", "counter", "Starts of gateways.",
		Read(&feed_shared->feed_gateway_starts));
}

static void
Wal(void)
{
	XLogRecPtr end = StatWalEnd();
	XLogRecPtr decoded = Read(&feed_shared->decoded_lsn);
	XLogRecPtr confirmed = Read(&feed_shared->confirm_lsn);
	int64 held = StatWalHeld(NameStr(feed_shared->slot_name));

	One("decoder_transactions_total", "counter", "Transactions decoded.",
		Read(&feed_shared->decoder_transactions));
	One("decoder_changes_total", "counter", "Changes of rows decoded.",
		Read(&feed_shared->decoder_changes));
	One("decoder_queued_bytes_total", "counter",
		"Bytes that the decoder passed to the feed worker.", Read(&feed_shared->decoder_bytes));
	One("decode_lag_bytes", "gauge",
		"WAL written and not decoded; in a quiet database some may be left until it matters.",
		end > decoded ? end - decoded : 0);
	One("slot_lag_bytes", "gauge",
		"WAL behind the oldest transaction that clients may still ask for.",
		confirmed != InvalidXLogRecPtr && end > confirmed ? end - confirmed : 0);
	One("wal_held_bytes", "gauge", "WAL that is kept because of the replication slot.",
		held > 0 ? (uint64) held : 0);
	One("wal_held_limit_bytes", "gauge",
		"changefeed.history_wal_size, or max_slot_wal_keep_size if that is less: with more WAL held, "
		"all clients start again from snapshots.",
		(uint64) StatWalLimit() * 1024 * 1024);
	Family("slot_losses_total", "counter",
		   "Replication slots lost for the WAL that they kept: given up at "
		   "changefeed.history_wal_size, or invalidated by the server.");
	Number("cause", "given_up", Read(&feed_shared->slots_given_up));
	Number("cause", "invalidated", Read(&feed_shared->slots_invalidated));
	One("log_transactions", "gauge", "Transactions kept for clients that come back.",
		LogPublished() - LogBase());
	One("log_unpublished_transactions", "gauge",
		"Transactions decoded that are not visible to others yet.", LogLast() - LogPublished());
	Family("publish_lag_seconds", "histogram",
		   "From the time in a commit record to the hand-over of the transaction to the gateways; "
		   "transactions with changes of published tables, not those from before the start.");
	Buckets(&counters.publish_lag, NULL, NULL);
}

/* The share of worker_memory that each part has, by the names of contexts. */
static void
Memory(void)
{
	static const struct
	{
		const char *context;
		const char *owner;
	} owners[] = {
		{"changefeed log", "log"},
		{"changefeed map", "log"},
		{"changefeed registry", "registry"},
		{"changefeed feed worker", "registry"},
		{"changefeed query pool", "queries"},
		{"changefeed channel", "channels"},
		{"changefeed sources", "channels"},
		{"changefeed dependencies", "registry"},
	};
	static const char *const names[] = {"log",		"registry", "queries",
										"channels", "links",	"server"};
	uint64 bytes[lengthof(names)] = {0};
	MemoryContext child;
	uint64 children = 0;
	int i;

	for (child = TopMemoryContext->firstchild; child != NULL; child = child->nextchild)
	{
		uint64 size = MemoryContextMemAllocated(child, true);
		const char *owner = "server";

		for (i = 0; i < (int) lengthof(owners); i++)
			if (strcmp(child->name, owners[i].context) == 0)
				owner = owners[i].owner;
		for (i = 0; i < (int) lengthof(names); i++)
			if (strcmp(names[i], owner) == 0)
				bytes[i] += size;
		children += size;
	}
	bytes[lengthof(names) - 1] += MemoryContextMemAllocated(TopMemoryContext, true) - children;
	for (i = 0; i < gateway_count; i++)
		if (gateways[i].link != NULL)
			bytes[lengthof(names) - 2] += LinkFramePending(gateways[i].link);

	Family("memory_bytes", "gauge",
		   "Memory of the feed worker by owner: log, registry (connections, subscriptions), "
		   "queries, channels, links (to the gateways), server (caches of PostgreSQL).");
	for (i = 0; i < (int) lengthof(names); i++)
		Number("owner", names[i], bytes[i]);
	One("memory_limit_bytes", "gauge", "changefeed.worker_memory.",
		(uint64) setting_worker_memory * 1024);
}

static void
Clients(void)
{
	uint64 behind = 0;
	uint64 choked = 0;
	dlist_iter iter;
	int i;

	dlist_foreach(iter, &all_connections_behind)
	{
		behind++;
		if (dlist_container(Connection, behind_node, iter.cur)->choked)
			choked++;
	}
	Family("connections", "gauge", "Connections by transport.");
	for (i = 0; i < TRANSPORTS; i++)
		Number("transport", counter_transports[i], counters.open[i]);
	One("connections_limit", "gauge", "changefeed.max_connections.", setting_max_connections);
	One("connections_behind", "gauge", "Connections that have not been sent everything yet.",
		behind);
	One("connections_choked", "gauge",
		"Those among them that do not read as fast as they are sent.", choked);
	Family("connections_opened_total", "counter", "Connections opened, by transport.");
	for (i = 0; i < TRANSPORTS; i++)
		Number("transport", counter_transports[i], counters.opened[i]);
	Family("connections_closed_total", "counter", "Connections that have ended, by cause.");
	for (i = 0; i < CLOSE_CAUSES; i++)
		Number("cause", counter_close_causes[i], counters.closed[i]);
	One("client_messages_total", "counter", "Messages that clients sent.", counters.messages);
	Family("client_errors_total", "counter",
		   "Errors that clients were told, by class of the SQLSTATE; classes without any are left "
		   "out.");
	for (i = 0; i < (int) lengthof(counters.errors); i++)
	{
		static const char digits[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
		char class[3] = {digits[i / 36], digits[i % 36], '\0'};

		if (counters.errors[i] > 0)
			Number("class", class, counters.errors[i]);
	}
	One("denials_total", "counter", "Tokens and requests that were refused for lack of a right.",
		counters.denials);
}

static void
Subscriptions(void)
{
	uint64 states[SUBSCRIPTION_STATES] = {0};
	ListCell *lc;
	int i;

	foreach(lc, ChannelsAll())
		for (i = 0; i < SUBSCRIPTION_STATES; i++)
			states[i] += ((Channel *) lfirst(lc))->counters->subscriptions[i];
	Family("subscriptions", "gauge", "Subscriptions by state.");
	for (i = 0; i < SUBSCRIPTION_STATES; i++)
		Number("state", counter_states[i], states[i]);
	One("operations_total", "counter",
		"Operations on rows sent, one for each subscription that got it.", counters.operations);
	One("operation_bytes_total", "counter", "Bytes of these operations, as JSON.",
		counters.operation_bytes);
	One("transactions_sent_total", "counter", "Transactions handed to gateways.",
		Read(&feed_shared->feed_frames));
	Family("resyncs_total", "counter",
		   "Subscriptions that had to start again from a snapshot, by reason.");
	for (i = 0; i < RESYNC_REASONS; i++)
		Number("reason", counter_resync_reasons[i], counters.resyncs[i]);
	One("snapshots_total", "counter", "Snapshots sent.", counters.snapshots);
	One("snapshot_rows_total", "counter", "Rows in these snapshots.", counters.snapshot_rows);
	Family(
		"snapshot_duration_seconds", "histogram",
		"From the question for a snapshot to its last row; waiting for a query worker included.");
	Buckets(&counters.snapshot_time, NULL, NULL);
}

static uint64
Sum(const uint64 *numbers, int n)
{
	uint64 sum = 0;

	while (n-- > 0)
		sum += numbers[n];
	return sum;
}

static void
ChannelFamily(const char *name, const char *type, const char *help, Size offset, int n)
{
	int count = 0;
	ListCell *lc;

	Family(name, type, help);
	foreach(lc, ChannelsAll())
	{
		const Channel *channel = lfirst(lc);

		if (count++ == MAX_CHANNELS)
			break;
		Number("channel", channel->name,
			   Sum((const uint64 *) ((const char *) channel->counters + offset), n));
	}
}

static void
Channels(void)
{
	ChannelFamily("channel_instances", "gauge", "Different names that are subscribed to.",
				  offsetof(ChannelCounters, instances), 1);
	ChannelFamily("channel_subscriptions", "gauge", "Subscriptions, in all states.",
				  offsetof(ChannelCounters, subscriptions), SUBSCRIPTION_STATES);
	ChannelFamily("channel_operations_total", "counter", "Operations sent.",
				  offsetof(ChannelCounters, operations), 1);
	ChannelFamily("channel_operation_bytes_total", "counter", "Bytes of these operations.",
				  offsetof(ChannelCounters, bytes), 1);
	ChannelFamily("channel_resyncs_total", "counter", "Subscriptions that had to start again.",
				  offsetof(ChannelCounters, resyncs), RESYNC_REASONS);
	ChannelFamily("channel_denials_total", "counter", "Requests refused for lack of a right.",
				  offsetof(ChannelCounters, denials), 1);
}

static void
Queries(void)
{
	static const char *const statuses[] = {"ok", "error", "outdated", "locked", "undecided"};
	int i;

	Family(
		"verdicts_total", "counter",
		"Decisions on whether somebody may see a row: made in the feed worker (inline), found (cache), or asked of a "
		"query worker.");
	Number("source", "inline", counters.verdicts_inline);
	Number("source", "cache", counters.verdicts_cached);
	Number("source", "query_worker", counters.verdicts_asked);
	Family("verdict_seconds_total", "counter", "Time that query workers took for these.");
	Seconds(NULL, NULL, (double) counters.verdict_us / 1e6);
	Family("verdict_answers_total", "counter",
		   "Answers of query workers, one for each identity and batch of rows, by result.");
	for (i = 0; i < (int) lengthof(statuses); i++)
		Number("result", statuses[i], counters.verdict_answers[i]);
	One("condition_evaluations_total", "counter", "Evaluations of clients' conditions on a row.",
		Read(&feed_shared->feed_evaluations));
	One("query_jobs", "gauge", "Jobs of query workers, waiting and running.",
		(uint64) QueryPoolBacklog());
	One("query_workers", "gauge", "changefeed.query_workers.", (uint64) setting_query_workers);
	One("query_workers_busy", "gauge", "Query workers that have a job.", (uint64) QueryPoolBusy());
}

static void
GatewayFamily(const char *name, const char *type, const char *help, Size offset)
{
	int i;

	Family(name, type, help);
	for (i = 0; i < gateway_count; i++)
		if (gateways[i].link != NULL)
			Number("gateway", numbers[i],
				   *(const uint64 *) ((const char *) &gateways[i].stats + offset));
}

static void
Gateways(void)
{
	int i;
	uint32 k;

	for (i = 0; i < gateway_count; i++)
		snprintf(numbers[i], sizeof(numbers[i]), "%d", i);
	GatewayFamily("gateway_connections", "gauge", "Connections.", offsetof(GatewayStats, open));
	GatewayFamily("gateway_frames_total", "counter", "Messages written to clients.",
				  offsetof(GatewayStats, frames));
	GatewayFamily("gateway_sent_bytes_total", "counter", "Bytes of these.",
				  offsetof(GatewayStats, bytes));
	GatewayFamily("gateway_received_bytes_total", "counter", "Bytes of clients' messages.",
				  offsetof(GatewayStats, received_bytes));
	GatewayFamily("gateway_queue_bytes", "gauge", "Bytes that wait for clients to read.",
				  offsetof(GatewayStats, queued_bytes));
	GatewayFamily("gateway_behind_total", "counter",
				  "How often a connection had more to read than changefeed.send_buffer.",
				  offsetof(GatewayStats, behind_events));
	GatewayFamily("gateway_throttled_total", "counter",
				  "How often a connection was not read for a moment, as it sent more than it may.",
				  offsetof(GatewayStats, throttled));
	Family("gateway_refused_total", "counter",
		   "HTTP requests and handshakes refused, by the code of the answer.");
	for (i = 0; i < gateway_count; i++)
		for (k = 0; gateways[i].link != NULL && k < gateways[i].stats.nrefusals; k++)
		{
			Sample("", "gateway", numbers[i], "code", gateways[i].stats.refusals[k].code);
			appendStringInfo(out, UINT64_FORMAT "\n", gateways[i].stats.refusals[k].n);
		}
	Family("gateway_link_queue_bytes", "gauge",
		   "Bytes that the feed worker has for the gateway and that it has not read.");
	for (i = 0; i < gateway_count; i++)
		if (gateways[i].link != NULL)
			Number("gateway", numbers[i], LinkFramePending(gateways[i].link));
	Family("delivery_lag_seconds", "histogram",
		   "From the time in a commit record to the gateway's write of the frame to the client's "
		   "socket; replays from the log to those who were behind included.");
	for (i = 0; i < gateway_count; i++)
		if (gateways[i].link != NULL)
			Buckets(&gateways[i].stats.lag, "gateway", numbers[i]);
}

static void
Processes(void)
{
	struct
	{
		char name[16];
		int pid;
		ProcessUsage usage;
	} processes[MAX_GATEWAYS + 2];
	int n = 0;
	int i;

	strcpy(processes[n].name, "decoder");
	processes[n++].pid = StatPid(&feed_shared->decoder_proc);
	strcpy(processes[n].name, "feed_worker");
	processes[n++].pid = MyProcPid;
	for (i = 0; i < gateway_count; i++)
	{
		if (gateways[i].link == NULL)
			continue;
		snprintf(processes[n].name, sizeof(processes[n].name), "gateway_%d", i);
		processes[n++].pid = (int) gateways[i].pid;
	}
	for (i = 0; i < n; i++)
		if (!StatProcess(processes[i].pid, &processes[i].usage))
			processes[i].pid = 0;
	Family("process_cpu_seconds_total", "counter", "Processor time of each process.");
	for (i = 0; i < n; i++)
		if (processes[i].pid != 0)
			Seconds("process", processes[i].name, processes[i].usage.cpu_seconds);
	Family("process_resident_memory_bytes", "gauge",
		   "Memory of each process; of the server's with the shared memory that it has touched.");
	for (i = 0; i < n; i++)
		if (processes[i].pid != 0)
			Number("process", processes[i].name, processes[i].usage.memory);
}

void
MetricsWrite(StringInfo to)
{
	out = to;
	Feed();
	Wal();
	Memory();
	Clients();
	Subscriptions();
	Channels();
	Queries();
	Gateways();
	Processes();
}
