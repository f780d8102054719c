/*-------------------------------------------------------------------------
 *
 * postponed.c
 *		Messages that have to wait until we know what was committed before
 *		them.
 *
 * A client may name a channel, or come with a role, whose CREATE or GRANT has
 * just committed, while the stream has not brought it here yet.  Before such a
 * name is refused, the message waits until everything that was committed when
 * it came has been published, and is handled once more.  What the connection
 * says in the meantime waits behind it, so nothing is overtaken.
 *
 * Process: feed worker.  Memory: the messages, in feed_context.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "feed.h"
#include "gateways.h"

/* Of one connection; one more is handled at once, in disorder or refused. */
#define MAX_POSTPONED 1000

typedef struct Postponed
{
	dlist_node node;
	uint64 connection;
	XLogRecPtr lsn;
	Size length;
	char data[FLEXIBLE_ARRAY_MEMBER];
} Postponed;

static dlist_head postponed = DLIST_STATIC_INIT(postponed);
static bool last_chance; /* what is handled now does not wait again */

static void
Add(Connection *connection, const char *data, Size length)
{
	Postponed *p = MemoryContextAlloc(feed_context, offsetof(Postponed, data) + length);

	p->connection = connection->id;
	p->lsn = SharedInsertLsn();
	p->length = length;
	memcpy(p->data, data, length);
	dlist_push_tail(&postponed, &p->node);
	connection->npostponed++;
}

bool
Postpone(Connection *connection, const char *data, Size length)
{
	if (last_chance || connection->npostponed >= MAX_POSTPONED)
		return false;
	if (connection->identity == NULL)
		GatewayWaiting(connection);
	Add(connection, data, length);
	return true;
}

bool
PostponeBehind(Connection *connection, const char *data, Size length)
{
	if (connection->npostponed == 0 || last_chance || connection->npostponed >= MAX_POSTPONED)
		return false;

	Add(connection, data, length);
	return true;
}

void
PostponedAdvance(void)
{
	bool waiting = false;
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &postponed)
	{
		Postponed *p = dlist_container(Postponed, node, iter.cur);
		Connection *connection = ConnectionById(p->connection);

		if (connection != NULL)
		{
			if (connection->postponed_waits || !LogReached(p->lsn))
			{
				connection->postponed_waits = true;
				waiting = true;
				continue;
			}
			connection->npostponed--;
			last_chance = true;
			if (!connection->closing)
				ProtocolHandle(connection, p->data, p->length);
			last_chance = false;
		}
		dlist_delete(&p->node);
		pfree(p);
	}
	if (waiting)
	{
		dlist_foreach_modify(iter, &postponed)
		{
			Connection *connection = ConnectionById(
				dlist_container(Postponed, node, iter.cur)->connection);

			if (connection != NULL)
				connection->postponed_waits = false;
		}
	}
}
