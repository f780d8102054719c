/*-------------------------------------------------------------------------
 *
 * counters.c
 *		What the feed worker counts.  See counters.h.
 *
 * Process: feed worker.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "counters.h"
#include "feed.h"
#include "users.h"

#include "utils/memutils.h"

FeedCounters counters;

const char *const counter_resync_reasons[RESYNC_REASONS] = {"columns_changed",
															"privileges_changed",
															"policy_changed",
															"table_rewritten",
															"type_changed",
															"schema_changed",
															"partitions_changed",
															"table_dropped",
															"table_unlogged",
															"truncated",
															"dependency_changed",
															"channel_changed",
															"identity_changed",
															"transaction_too_large",
															"history_truncated",
															"client_too_slow",
															"value_not_in_wal",
															"change_not_readable",
															"policy_undecided",
															"locked",
															"recheck",
															"snapshot_failed",
															"unknown_epoch",
															"timeline_lost",
															"other"};

const char *const counter_close_causes[CLOSE_CAUSES] = {
	"client",	 "heartbeat",	 "connect_timeout", "message_too_big",
	"protocol",	 "unauthorized", "token_expired",	"revoked",
	"no_memory", "too_slow",	 "gateway_lost",	"server",
	"flood",	 "address",		 "user_limit",		"other"};

/* By LinkTransport. */
const char *const counter_transports[TRANSPORTS] = {"other", "websocket", "sse", "poll", "request"};

const char *const counter_states[SUBSCRIPTION_STATES] = {"querying", "loading", "catching_up",
														 "ready"};

/* The place of a name in a list, whose last one is for all others. */
static int
Find(const char *const *names, int n, const char *name)
{
	int i;

	for (i = 0; i < n - 1; i++)
		if (strcmp(names[i], name) == 0)
			break;
	return i;
}

ChannelCounters *
ChannelCountersMake(void)
{
	ChannelCounters *c = MemoryContextAllocZero(TopMemoryContext, sizeof(ChannelCounters));

	c->refcount = 1;
	return c;
}

void
ChannelCountersRelease(ChannelCounters *c)
{
	if (c != NULL && --c->refcount == 0)
		pfree(c);
}

void
HistogramAdd(Histogram *histogram, int64 us)
{
	if (us < 0)
		us = 0;
	histogram->buckets[LinkLagBucket((uint64) us)]++;
	histogram->sum_us += (uint64) us;
}

void
CountResync(Subscription *s, const char *reason)
{
	int i = Find(counter_resync_reasons, RESYNC_REASONS, reason);

	counters.resyncs[i]++;
	s->instance->channel->counters->resyncs[i]++;
	s->resyncs++;
	s->resync_reason = (uint8) i;
	pg_atomic_fetch_add_u64(&feed_shared->feed_resyncs, 1);
}

static int
Digit(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'Z' ? c - 'A' + 10 : 0;
}

void
CountError(Channel *channel, const char *sqlstate)
{
	counters.errors[Digit(sqlstate[0]) * 36 + Digit(sqlstate[1])]++;
	if (strncmp(sqlstate, "28", 2) != 0 && strcmp(sqlstate, "42501") != 0)
		return;
	counters.denials++;
	if (channel != NULL)
		channel->counters->denials++;
	pg_atomic_fetch_add_u64(&feed_shared->feed_denials, 1);
}

void
CountOpened(uint8 transport)
{
	int i = transport < TRANSPORTS ? transport : 0;

	counters.opened[i]++;
	counters.open[i]++;
}

void
CountChanged(uint8 from, uint8 to)
{
	counters.opened[from]--;
	counters.open[from]--;
	CountOpened(to);
}

void
CountClosed(uint8 transport, uint8 cause, const char *reason)
{
	const char *name = "other";

	counters.open[transport < TRANSPORTS ? transport : 0]--;
	if (transport == COUNTED_REQUEST)
		return;
	switch (cause)
	{
		case LINK_CAUSE_CLIENT:
			name = "client";
			break;
		case LINK_CAUSE_SERVER:
			name = reason == NULL							? "server"
				   : strcmp(reason, "no memory") == 0		? "no_memory"
				   : strcmp(reason, "token expired") == 0	? "token_expired"
				   : strcmp(reason, USER_LIMIT_REASON) == 0 ? "user_limit"
															: reason;
			break;
		case LINK_CAUSE_HEARTBEAT:
			name = "heartbeat";
			break;
		case LINK_CAUSE_CONNECT_TIMEOUT:
			name = "connect_timeout";
			break;
		case LINK_CAUSE_TOO_BIG:
			name = "message_too_big";
			break;
		case LINK_CAUSE_PROTOCOL:
			name = "protocol";
			break;
		case LINK_CAUSE_TOO_SLOW:
			name = "too_slow";
			break;
		case LINK_CAUSE_FLOOD:
			name = "flood";
			break;
		case LINK_CAUSE_ADDRESS:
			name = "address";
			break;
		case 0:
			name = "gateway_lost";
			break;
	}
	counters.closed[Find(counter_close_causes, CLOSE_CAUSES, name)]++;
}
