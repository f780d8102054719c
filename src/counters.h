/*-------------------------------------------------------------------------
 *
 * counters.h
 *		What the feed worker counts, for the statistics views and /metrics.
 *
 * Plain numbers that only grow, and begin at 0 with each feed worker; who reads
 * them deals with that, as with any counter.  What has to survive a feed worker
 * is in shared memory (shared.h).  Names that become labels are from fixed
 * lists, so that no client can add to them.
 *
 * Process: feed worker.  Memory: static; a channel's with the channel.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_COUNTERS_H
#define CHANGEFEED_COUNTERS_H

#include "postgres.h"

#include "link_format.h"

struct Channel;
struct Subscription;

/* Reasons of `resync`, in counter_resync_reasons; the last one: any other. */
#define RESYNC_REASONS 25

/* Subscription states, SUB_QUERYING to SUB_READY. */
#define SUBSCRIPTION_STATES 4

/* Why connections ended, in counter_close_causes; the last one: any other. */
#define CLOSE_CAUSES 16

/* By LinkTransport; an HTTP request that is answered is one, too. */
#define TRANSPORTS		5
#define COUNTED_EVENTS	2
#define COUNTED_POLL	3
#define COUNTED_REQUEST 4

typedef struct Histogram
{
	uint64 buckets[LINK_LAG_BUCKETS]; /* not cumulative; the last: above all */
	uint64 sum_us;
} Histogram;

/* By channel definition; shared with the one that takes its place. */
typedef struct ChannelCounters
{
	int refcount;
	uint64 instances; /* now */
	uint64 subscriptions[SUBSCRIPTION_STATES];
	uint64 operations; /* one for each subscription that got it */
	uint64 bytes;	   /* of these, as JSON */
	uint64 snapshots;
	uint64 snapshot_rows;
	uint64 denials;
	uint64 resyncs[RESYNC_REASONS];
} ChannelCounters;

typedef struct FeedCounters
{
	uint64 opened[TRANSPORTS];
	uint64 open[TRANSPORTS]; /* now */
	uint64 closed[CLOSE_CAUSES];
	uint64 messages;		/* of clients */
	uint64 errors[36 * 36]; /* by class of the SQLSTATE */
	uint64 denials;
	uint64 resyncs[RESYNC_REASONS];
	uint64 operations;
	uint64 operation_bytes;
	uint64 snapshots;
	uint64 snapshot_rows;
	Histogram snapshot_time;   /* from the question to the answer */
	Histogram publish_lag;	   /* from the commit to the hand-over */
	uint64 verdicts_inline;	   /* found by rules (policy_rule.h) */
	uint64 verdicts_cached;	   /* found, as another subscription had asked */
	uint64 verdicts_asked;	   /* of query workers */
	uint64 verdict_us;		   /* of query workers */
	uint64 verdict_answers[5]; /* of identities, by QueryVerdictStatus */
} FeedCounters;

extern FeedCounters counters;
extern const char *const counter_resync_reasons[RESYNC_REASONS];
extern const char *const counter_close_causes[CLOSE_CAUSES];
extern const char *const counter_transports[TRANSPORTS];
extern const char *const counter_states[SUBSCRIPTION_STATES];

extern ChannelCounters *ChannelCountersMake(void);
extern void ChannelCountersRelease(ChannelCounters *c);

extern void HistogramAdd(Histogram *histogram, int64 us);

/* The client is told. */
extern void CountResync(struct Subscription *subscription, const char *reason);

/* `sqlstate` of whatever a client is told; authorization counts as a denial. */
extern void CountError(struct Channel *channel, const char *sqlstate);

/* `reason`: of our own closing, or NULL. */
extern void CountClosed(uint8 transport, uint8 cause, const char *reason);
extern void CountOpened(uint8 transport);

/* A request turns out to be a stream of events or a poll. */
extern void CountChanged(uint8 from, uint8 to);

#endif /* CHANGEFEED_COUNTERS_H */
