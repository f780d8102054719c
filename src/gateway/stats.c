/*-------------------------------------------------------------------------
 *
 * stats.c
 *		What the gateway counts, and telling the feed worker.
 *
 * Counters begin at 0 with the gateway and only grow.  Nothing is sent unless
 * it was asked for.
 *
 * Process: gateway.  Memory: static.
 *
 *-------------------------------------------------------------------------
 */
#include <string.h>
#include <time.h>

#include "gateway.h"

/* Codes are ours, so they are few; should there be more, the last is for them. */
#define MAX_CODES 32

static struct
{
	const char *code; /* a literal */
	uint64_t n;
} refusals[MAX_CODES];

static uint64_t lags[LINK_LAG_BUCKETS];
static uint64_t lag_sum_us;

/* The time, if somebody has asked for it since the last write; else 0. */
static uint64_t clock_us;

/* Of the transaction that begins next. */
static uint64_t commit_us;

/* `code` is a literal. */
void
StatsNoteRefusal(const char *code)
{
	int i;

	for (i = 0; i < MAX_CODES - 1; i++)
	{
		if (refusals[i].code != NULL && strcmp(refusals[i].code, code) == 0)
			break;
		if (refusals[i].code == NULL)
		{
			refusals[i].code = code;
			break;
		}
	}
	if (i == MAX_CODES - 1)
		refusals[i].code = "other";
	refusals[i].n++;
}

void
StatsNoteCommitTime(uint64_t us)
{
	commit_us = us;
}

uint64_t
StatsTakeCommitTime(void)
{
	uint64_t us = commit_us;

	commit_us = 0;
	return us;
}

/* Time goes on: behind each write. */
void
StatsForgetClock(void)
{
	clock_us = 0;
}

/* The last byte of a frame is on its way into the socket. */
void
StatsNoteFrame(const FrameItem *frame)
{
	const Transaction *transaction = frame->body->transaction;
	uint64_t lag;

	if (!frame->item.feed || transaction->committed_us == 0)
		return;
	if (clock_us == 0)
	{
		struct timespec now;

		clock_gettime(CLOCK_REALTIME, &now);
		clock_us = (uint64_t) now.tv_sec * 1000000 + (uint64_t) now.tv_nsec / 1000;
	}
	lag = clock_us > transaction->committed_us ? clock_us - transaction->committed_us : 0;
	lags[LinkLagBucket(lag)]++;
	lag_sum_us += lag;
}

void
StatsSay(void)
{
	uint32_t n = 0;
	uint32_t i;

	LinkFrameBegin(gateway.link, LINK_STATS);
	LinkFramePutU64(gateway.link, gateway.accepted);
	LinkFramePutU64(gateway.link, gateway.open);
	LinkFramePutU64(gateway.link, gateway.frames);
	LinkFramePutU64(gateway.link, gateway.bytes);
	LinkFramePutU64(gateway.link, gateway.queued_bytes);
	LinkFramePutU64(gateway.link, gateway.behind_events);
	LinkFramePutU64(gateway.link, gateway.refused);
	LinkFramePutU64(gateway.link, gateway.received_bytes);
	for (i = 0; i < LINK_LAG_BUCKETS; i++)
		LinkFramePutU64(gateway.link, lags[i]);
	LinkFramePutU64(gateway.link, lag_sum_us);
	for (i = 0; i < MAX_CODES; i++)
		if (refusals[i].code != NULL)
			n++;
	LinkFramePutU32(gateway.link, n);
	for (i = 0; i < MAX_CODES; i++)
	{
		if (refusals[i].code == NULL)
			continue;
		LinkFramePutBytes(gateway.link, refusals[i].code, strlen(refusals[i].code));
		LinkFramePutU64(gateway.link, refusals[i].n);
	}
	LinkFramePutU64(gateway.link, gateway.throttled);
	LinkEndMessage();
}

/* Those that are gone are left out. */
void
StatsSayConnections(WireReader *r)
{
	uint32_t n = WireGetU32(r);
	const char *numbers = WireTake(r, (size_t) n * sizeof(uint32_t));
	uint64_t now = uv_now(&gateway.loop);
	uint32_t found = 0;
	int pass;

	if (r->failed)
		return;
	LinkFrameBegin(gateway.link, LINK_CONNECTIONS);

	/* How many first: the number comes before the list. */
	for (pass = 0; pass < 2; pass++)
	{
		uint32_t i;

		for (i = 0; i < n; i++)
		{
			uint32_t number;
			Connection *conn;

			memcpy(&number, numbers + (size_t) i * sizeof(number), sizeof(number));
			conn = ConnFind(number);
			if (conn == NULL)
				continue;
			if (pass == 0)
			{
				found++;
				continue;
			}
			LinkFramePutU32(gateway.link, number);
			LinkFramePutU64(gateway.link, conn->queued_feed + conn->queued_other);
			LinkFramePutU64(gateway.link, conn->sent_frames);
			LinkFramePutU64(gateway.link, conn->sent_bytes);
			LinkFramePutU64(gateway.link, now > conn->heard_ms ? now - conn->heard_ms : 0);
		}
		if (pass == 0)
			LinkFramePutU32(gateway.link, found);
	}
	LinkEndMessage();
}
