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
#include "stat.h"

/* Rows of one portion: a fraction of a millisecond. */
#define PORTION 200

/* Numbers of connections, being worked through. */
typedef struct IdList
{
	uint64 *ids;
	uint32 n;
	uint32 next;
	uint32 capacity;
} IdList;

static IdList *collecting;

static void
CollectId(Connection *connection)
{
	if (collecting->n < collecting->capacity)
		collecting->ids[collecting->n++] = connection->id;
}

static int
CompareIds(const void *a, const void *b)
{
	uint64 x = *(const uint64 *) a;
	uint64 y = *(const uint64 *) b;

	return x < y ? -1 : x > y;
}

static IdList *
ConnectionIds(FeedAnswer *answer)
{
	IdList *list;

	if (answer->state != NULL)
		return answer->state;
	list = MemoryContextAllocZero(answer->context, sizeof(IdList));
	list->capacity = (uint32) ConnectionCount();
	list->ids = MemoryContextAllocHuge(answer->context, sizeof(uint64) * Max(list->capacity, 1));
	collecting = list;
	ConnectionForEach(CollectId);
	collecting = NULL;
	qsort(list->ids, list->n, sizeof(uint64), CompareIds);
	answer->state = list;
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

static void
PutConnection(StringInfo row, const Connection *connection)
{
	const Identity *identity = connection->identity;

	StatPutNumber(row, connection->id);
	StatPutNumber(row, (uint64) connection->gateway->index);
	StatPutText(row, identity != NULL ? identity->info.role_name : NULL);
	StatPutNumber(row, (uint64) connection->opened);
	StatPutText(row, ConnectionState(connection));
	StatPutNumber(row, (uint64) connection->nsubscriptions);
}

RequestProgress
StatConnections(FeedAnswer *answer)
{
	IdList *list = ConnectionIds(answer);
	int i;

	for (i = 0; i < PORTION && list->next < list->n; i++)
	{
		Connection *connection = ConnectionById(list->ids[list->next++]);

		if (connection != NULL)
			PutConnection(&answer->bytes, connection);
	}
	return list->next < list->n ? REQUEST_MORE : REQUEST_DONE;
}
