/*-------------------------------------------------------------------------
 *
 * stat_collect.c
 *		The rows of the statistics views, where they are known.
 *
 * A list is made in portions, between which everything goes on: first the
 * numbers of what there is, then rows of a few hundred of them at a time.  What
 * ends meanwhile is left out.
 *
 * Process: feed worker.  Memory: the answer's, as long as the request.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "feed.h"
#include "feed_request.h"
#include "gateways.h"
#include "revocations.h"
#include "stat.h"

#include <unistd.h>

#include "lib/binaryheap.h"
#include "storage/fd.h"

/* Rows of one portion: a fraction of a millisecond. */
#define PORTION 200

/* A gateway that has not answered by then is left out. */
#define PATIENCE_MS 1000

/* Numbers of connections, being worked through. */
typedef struct IdList
{
	uint64 *ids;
	uint32 n;
	uint32 next;
	uint32 capacity;
	binaryheap *newest; /* being collected, if not all are wanted */

	/* The gateways were asked about the next `portion` of them. */
	uint32 portion;
	GatewayQuestion question;
	int64 asked_ms;
} IdList;

static IdList *collecting;

static void
CollectId(Connection *connection)
{
	binaryheap *newest = collecting->newest;

	/* An HTTP request that is being answered is no client that stays. */
	if (connection->transport == COUNTED_REQUEST)
		return;
	if (newest == NULL && collecting->n < collecting->capacity)
		collecting->ids[collecting->n++] = connection->id;
	else if (newest != NULL && newest->bh_size < newest->bh_space)
		binaryheap_add(newest, UInt64GetDatum(connection->id));
	else if (newest != NULL && connection->id > DatumGetUInt64(binaryheap_first(newest)))
		binaryheap_replace_first(newest, UInt64GetDatum(connection->id));
}

/* The oldest comes first. */
static int
CompareNewest(Datum a, Datum b, void *arg)
{
	uint64 x = DatumGetUInt64(a);
	uint64 y = DatumGetUInt64(b);

	return x < y ? 1 : x > y ? -1 : 0;
}

static int
CompareIds(const void *a, const void *b)
{
	uint64 x = *(const uint64 *) a;
	uint64 y = *(const uint64 *) b;

	return x < y ? -1 : x > y;
}

const char *
StatTransport(uint8 transport)
{
	return counter_transports[transport < TRANSPORTS ? transport : 0];
}

static IdList *
ConnectionIds(FeedAnswer *answer)
{
	IdList *list;
	StatRange range = {0};
	MemoryContext old;

	if (answer->state != NULL)
		return answer->state;
	if (answer->length == sizeof(range))
		memcpy(&range, answer->arguments, sizeof(range));
	old = MemoryContextSwitchTo(answer->context);
	list = palloc0(sizeof(IdList));
	answer->state = list;
	if (range.connection != 0)
	{
		list->ids = palloc(sizeof(uint64));
		list->ids[list->n++] = range.connection;
		MemoryContextSwitchTo(old);
		return list;
	}
	list->capacity = (uint32) ConnectionCount();
	if (range.limit > 0)
	{
		list->capacity = Min(list->capacity, range.limit);
		list->newest = binaryheap_allocate((int) Max(list->capacity, 1), CompareNewest, NULL);
	}
	list->ids = MemoryContextAllocHuge(answer->context, sizeof(uint64) * Max(list->capacity, 1));
	collecting = list;
	ConnectionForEach(CollectId);
	collecting = NULL;
	if (list->newest == NULL)
		qsort(list->ids, list->n, sizeof(uint64), CompareIds);
	else
	{
		uint32 i;

		/* The newest first, so that a reader can leave out the rest. */
		list->n = (uint32) list->newest->bh_size;
		for (i = list->n; i > 0; i--)
			list->ids[i - 1] = DatumGetUInt64(binaryheap_remove_first(list->newest));
	}
	MemoryContextSwitchTo(old);
	return list;
}

static const char *
ConnectionState(const Connection *connection)
{
	if (connection->closing)
		return "closing";
	if (connection->identity == NULL)
		return "connecting";
	if (connection->choked)
		return "choked";
	return connection->live ? "live" : "behind";
}

/* Transactions that its ready subscriptions have not been sent. */
static uint64
Lag(const Connection *connection)
{
	return connection->live ? 0 : LogPublished() - connection->cursor;
}

static TimestampTz
FromUnix(int64 seconds)
{
	return (TimestampTz) (seconds -
						  (int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY) *
		   USECS_PER_SEC;
}

static void
PutConnection(StringInfo row, const Connection *connection, bool known)
{
	const Identity *identity = connection->identity;

	StatPutNumber(row, connection->id);
	StatPutText(row, RevocationsSession(connection));
	StatPutNumber(row, (uint64) connection->gateway->index);
	StatPutText(row, StatTransport(connection->transport));
	StatPutText(row, connection->peer);
	StatPutText(row, identity != NULL ? identity->info.role_name : NULL);
	StatPutText(row, identity != NULL ? identity->info.subject : NULL);
	StatPutNumber(row, (uint64) connection->opened);
	if (identity != NULL && connection->expires != 0)
		StatPutNumber(row, (uint64) FromUnix(connection->expires));
	else
		StatPutNull(row);
	StatPutText(row, ConnectionState(connection));
	StatPutNumber(row, (uint64) connection->nsubscriptions);
	StatPutNumber(row, (uint64) connection->nready);
	StatPutNumber(row, Lag(connection));
	if (known)
	{
		StatPutNumber(row, connection->stats->queued_bytes);
		StatPutNumber(row, connection->stats->sent_frames);
		StatPutNumber(row, connection->stats->sent_bytes);
		StatPutNumber(row, (uint64) connection->stats->heard);
		return;
	}
	StatPutNull(row);
	StatPutNull(row);
	StatPutNull(row);
	StatPutNull(row);
}

RequestProgress
StatConnections(FeedAnswer *answer)
{
	IdList *list = ConnectionIds(answer);
	uint32 i;

	if (list->portion > 0)
	{
		if (!GatewaysAnswered(&list->question) && answer->waited_ms - list->asked_ms < PATIENCE_MS)
			return REQUEST_WAITS;
		for (i = 0; i < list->portion; i++)
		{
			Connection *connection = ConnectionById(list->ids[list->next++]);

			if (connection != NULL)
				PutConnection(&answer->bytes, connection,
							  GatewayKnows(&list->question, connection));
		}
	}
	list->portion = Min(PORTION, list->n - list->next);
	if (list->portion == 0)
		return REQUEST_DONE;
	GatewaysAskConnections(&list->question, &list->ids[list->next], (int) list->portion);
	list->asked_ms = answer->waited_ms;
	return REQUEST_WAITS;
}

static void
PutSubscription(StringInfo row, const Subscription *s)
{
	uint64 cursor = s->state == SUB_READY	  ? LogPublished() - Lag(s->connection)
					: s->state == SUB_CATCHUP ? s->cursor
											  : 0;

	StatPutNumber(row, s->connection->id);
	StatPutText(row, s->instance->channel->name);
	StatPutJson(row, pnstrdup(s->name->json, s->name->length));
	StatPutText(row, counter_states[s->state]);
	StatPutNumber(row, (uint64) s->subscribed_at);
	StatPutNumber(row, s->recovered);
	StatPutNumber(row, s->snapshot_rows);
	if (s->state >= SUB_CATCHUP)
		StatPutNumber(row, LogPublished() - Min(cursor, LogPublished()));
	else
		StatPutNull(row);
	StatPutNumber(row, s->resyncs);
	StatPutText(row, s->resyncs > 0 ? counter_resync_reasons[s->resync_reason] : NULL);
}

RequestProgress
StatSubscriptions(FeedAnswer *answer)
{
	IdList *list = ConnectionIds(answer);
	int n = 0;

	/* A connection's are never apart, so a portion may be larger. */
	while (n < PORTION && list->next < list->n)
	{
		Connection *connection = ConnectionById(list->ids[list->next++]);
		dlist_iter iter;

		n++;
		if (connection == NULL)
			continue;
		dlist_foreach(iter, &connection->subscriptions)
		{
			PutSubscription(&answer->bytes,
							dlist_container(Subscription, connection_node, iter.cur));
			n++;
		}
	}
	return list->next < list->n ? REQUEST_MORE : REQUEST_DONE;
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
PutChannel(StringInfo row, const Channel *channel)
{
	const ChannelCounters *c = channel->counters;
	StringInfoData reasons;
	int i;

	StatPutText(row, channel->name);
	StatPutNumber(row, c->instances);
	StatPutNumber(row, Sum(c->subscriptions, SUBSCRIPTION_STATES));
	for (i = 0; i < SUBSCRIPTION_STATES; i++)
		StatPutNumber(row, c->subscriptions[i]);
	StatPutNumber(row, c->operations);
	StatPutNumber(row, c->bytes);
	StatPutNumber(row, c->snapshots);
	StatPutNumber(row, c->snapshot_rows);
	StatPutNumber(row, c->denials);
	StatPutNumber(row, Sum(c->resyncs, RESYNC_REASONS));
	initStringInfo(&reasons);
	for (i = 0; i < RESYNC_REASONS; i++)
		if (c->resyncs[i] > 0)
			appendStringInfo(&reasons, "%c\"%s\":" UINT64_FORMAT, reasons.len > 0 ? ',' : '{',
							 counter_resync_reasons[i], c->resyncs[i]);
	appendStringInfoString(&reasons, reasons.len > 0 ? "}" : "{}");
	StatPutJson(row, reasons.data);
}

RequestProgress
StatChannels(FeedAnswer *answer)
{
	ListCell *lc;

	foreach(lc, ChannelsAll())
		PutChannel(&answer->bytes, lfirst(lc));
	return REQUEST_DONE;
}

/* ---- gateways, and what needs their counters ---- */

/* Asks all at the first call; false: not all have answered yet. */
static bool
GatewaysHaveTold(FeedAnswer *answer)
{
	if (answer->state == NULL)
	{
		answer->state = MemoryContextAlloc(answer->context, sizeof(GatewayQuestion));
		GatewaysAskStats(answer->state);
	}
	return GatewaysAnswered(answer->state) || answer->waited_ms >= PATIENCE_MS;
}

/* From /proc, which only looks like a file: nothing is waited for. */
bool
StatProcess(int pid, ProcessUsage *usage)
{
	char path[64];
	char line[1024];
	FILE *file;
	char *p = NULL;
	unsigned long long user;
	unsigned long long system;
	long long pages;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	file = pid > 0 ? AllocateFile(path, "r") : NULL;
	if (file == NULL)
		return false;
	if (fgets(line, sizeof(line), file) != NULL)
		p = strrchr(line, ')');
	FreeFile(file);

	/* Behind the name: fields 3 and on; 14 and 15 are times, 24 the memory. */
	if (p == NULL ||
		sscanf(p + 1,
			   " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu %*d %*d %*d %*d %*d %*d"
			   " %*u %*u %lld",
			   &user, &system, &pages) != 3)
		return false;
	usage->cpu_seconds = (double) (user + system) / (double) sysconf(_SC_CLK_TCK);
	usage->memory = (uint64) pages * (uint64) sysconf(_SC_PAGESIZE);
	return true;
}

static void
PutGateway(StringInfo row, const Gateway *gateway)
{
	const GatewayStats *stats = &gateway->stats;
	ProcessUsage usage = {0};
	StringInfoData codes;
	uint32 i;

	StatPutNumber(row, (uint64) gateway->index);
	StatPutNumber(row, (uint64) gateway->pid);
	StatPutNumber(row, (uint64) gateway->started);
	StatPutNumber(row, stats->open);
	StatPutNumber(row, stats->accepted);
	StatPutNumber(row, stats->frames);
	StatPutNumber(row, stats->bytes);
	StatPutNumber(row, stats->received_bytes);
	StatPutNumber(row, stats->queued_bytes);
	StatPutNumber(row, stats->behind_events);
	StatPutNumber(row, stats->refused);
	initStringInfo(&codes);
	for (i = 0; i < stats->nrefusals; i++)
		appendStringInfo(&codes, "%c\"%s\":" UINT64_FORMAT, i > 0 ? ',' : '{',
						 stats->refusals[i].code, stats->refusals[i].n);
	appendStringInfoString(&codes, stats->nrefusals > 0 ? "}" : "{}");
	StatPutJson(row, codes.data);
	StatPutNumber(row, stats->throttled);
	if (!StatProcess(gateway->pid, &usage))
	{
		StatPutNull(row);
		StatPutNull(row);
		return;
	}
	StatPutNumber(row, (uint64) (usage.cpu_seconds * 1000));
	StatPutNumber(row, usage.memory);
}

RequestProgress
StatGateways(FeedAnswer *answer)
{
	int i;

	if (!GatewaysHaveTold(answer))
		return REQUEST_WAITS;
	for (i = 0; i < gateway_count; i++)
		if (gateways[i].link != NULL)
			PutGateway(&answer->bytes, &gateways[i]);
	return REQUEST_DONE;
}

RequestProgress
StatMetrics(FeedAnswer *answer)
{
	if (!GatewaysHaveTold(answer))
		return REQUEST_WAITS;
	MetricsWrite(&answer->bytes);
	return REQUEST_DONE;
}
