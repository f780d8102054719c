/*-------------------------------------------------------------------------
 *
 * gateway_stats.c
 *		What gateways count, and whether messages come through them.
 *
 * Questions go over the link like everything else, and answers come in their
 * order.  Nobody waits here: who asks looks later whether it was answered, and
 * goes on without if that takes too long.
 *
 * Process: feed worker.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "feed.h"
#include "gateways.h"

static uint64 last_probe;

static void
Asked(GatewayQuestion *question, Gateway *gateway)
{
	question->serial[gateway->index] = gateway->serial;
	question->number[gateway->index] = ++gateway->stats_asked;
}

void
GatewaysAskStats(GatewayQuestion *question)
{
	int i;

	memset(question, 0, sizeof(*question));
	for (i = 0; i < gateway_count; i++)
	{
		if (gateways[i].link == NULL)
			continue;
		LinkFrameBegin(gateways[i].link, LINK_STATS_ASK);
		LinkFrameEnd(gateways[i].link);
		Asked(question, &gateways[i]);
	}
}

void
GatewaysAskConnections(GatewayQuestion *question, const uint64 *ids, int n)
{
	uint32 *numbers = palloc(sizeof(uint32) * Max(n, 1));
	int g;

	memset(question, 0, sizeof(*question));
	for (g = 0; g < gateway_count; g++)
	{
		uint32 count = 0;
		int i;

		for (i = 0; i < n; i++)
		{
			Connection *connection = ConnectionById(ids[i]);

			if (connection != NULL && connection->gateway == &gateways[g])
				numbers[count++] = connection->number;
		}
		if (count == 0 || gateways[g].link == NULL)
			continue;
		LinkFrameBegin(gateways[g].link, LINK_CONNECTIONS_ASK);
		LinkFramePutU32(gateways[g].link, count);
		for (i = 0; i < (int) count; i++)
			LinkFramePutU32(gateways[g].link, numbers[i]);
		LinkFrameEnd(gateways[g].link);
		Asked(question, &gateways[g]);
	}
	pfree(numbers);
}

bool
GatewaysAnswered(const GatewayQuestion *question)
{
	int i;

	for (i = 0; i < gateway_count; i++)
		if (question->serial[i] != 0 && question->serial[i] == gateways[i].serial &&
			gateways[i].link != NULL && gateways[i].stats_answered < question->number[i])
			return false;
	return true;
}

bool
GatewayKnows(const GatewayQuestion *question, const Connection *connection)
{
	int g = connection->gateway->index;

	return question->serial[g] != 0 && question->serial[g] == connection->gateway->serial &&
		   connection->stats != NULL && connection->stats->number >= question->number[g];
}

void
GatewaysProbe(GatewayQuestion *question)
{
	int i;

	memset(question, 0, sizeof(*question));
	last_probe++;
	for (i = 0; i < gateway_count; i++)
	{
		if (gateways[i].link == NULL)
			continue;
		LinkFrameBegin(gateways[i].link, LINK_PROBE);
		LinkFramePutU64(gateways[i].link, last_probe);
		LinkFrameEnd(gateways[i].link);
		question->serial[i] = gateways[i].serial;
		question->number[i] = (uint32) last_probe;
	}
}

/* Through one of them is enough: clients come back to another one. */
bool
GatewaysProbed(const GatewayQuestion *question)
{
	int i;

	for (i = 0; i < gateway_count; i++)
		if (question->serial[i] != 0 && question->serial[i] == gateways[i].serial &&
			gateways[i].link != NULL && gateways[i].probed >= question->number[i])
			return true;
	return false;
}

void
GatewayReadStats(Gateway *gateway, WireReader *r)
{
	GatewayStats stats = {0};
	uint32 i;

	stats.accepted = WireGetU64(r);
	stats.open = WireGetU64(r);
	stats.frames = WireGetU64(r);
	stats.bytes = WireGetU64(r);
	stats.queued_bytes = WireGetU64(r);
	stats.behind_events = WireGetU64(r);
	stats.refused = WireGetU64(r);
	stats.received_bytes = WireGetU64(r);
	for (i = 0; i < LINK_LAG_BUCKETS; i++)
		stats.lag.buckets[i] = WireGetU64(r);
	stats.lag.sum_us = WireGetU64(r);
	stats.nrefusals = WireGetU32(r);
	if (stats.nrefusals > MAX_REFUSALS)
		r->failed = true;
	for (i = 0; i < stats.nrefusals && !r->failed; i++)
	{
		WireBytes code = WireGetBytes(r);
		size_t k;

		/* It becomes JSON and labels of metrics as it is. */
		for (k = 0; k < code.length; k++)
			if (!isalnum((unsigned char) code.data[k]) && code.data[k] != '_')
				r->failed = true;
		if (!r->failed)
			snprintf(stats.refusals[i].code, sizeof(stats.refusals[i].code), "%.*s",
					 (int) code.length, code.data);
		stats.refusals[i].n = WireGetU64(r);
	}
	stats.throttled = WireGetU64(r);
	gateway->stats_answered++;
	if (!r->failed)
		gateway->stats = stats;
}

void
GatewayReadConnections(Gateway *gateway, WireReader *r)
{
	uint32 n = WireGetU32(r);
	uint32 i;

	gateway->stats_answered++;
	for (i = 0; i < n && !r->failed; i++)
	{
		Connection *connection = ConnectionFind(gateway, WireGetU32(r));
		uint64 queued = WireGetU64(r);
		uint64 frames = WireGetU64(r);
		uint64 bytes = WireGetU64(r);
		uint64 silent = WireGetU64(r);

		if (connection == NULL || r->failed)
			continue;
		if (connection->stats == NULL)
			connection->stats = MemoryContextAlloc(registry_context, sizeof(ConnectionStats));
		connection->stats->number = gateway->stats_answered;
		connection->stats->queued_bytes = queued;
		connection->stats->sent_frames = frames;
		connection->stats->sent_bytes = bytes;
		silent = Min(silent, (uint64) feed_now / 1000);
		connection->stats->heard = feed_now - (TimestampTz) silent * 1000;
	}
}
