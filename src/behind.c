/*-------------------------------------------------------------------------
 *
 * behind.c
 *		Connections that are behind: moved from the log, transaction by
 *		transaction, all that are at the same one together.
 *
 * A connection is behind because a verdict is missing, its client is slow, or
 * one of its subscriptions is about to catch up.  It gets the same frames as
 * if it had been live, in the same order, or a resync when the log no longer
 * has them.
 *
 * Process: feed worker.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "deliver.h"
#include "presence.h"
#include "extend.h"

#include "storage/latch.h"
#include "miscadmin.h"

/* Bytes that a connection which is behind gets before it has to drain. */
#define REPLAY_WINDOW (128 * 1024)

/* Groups are numbered so that marks need not be cleared. */
static uint64 last_group;

static bool
MayMove(Connection *connection)
{
	return !connection->live && !connection->closing && !connection->choked &&
		   !connection->waits_verdict && connection->mark == 0 && connection->held == 0;
}

/* Subscriptions that wait for their connection to move get a turn. */
static void
HasMoved(Connection *connection)
{
	if (connection->nready < connection->nsubscriptions)
		SetLatch(MyLatch);
}

void
DeliverCheckBase(Connection *connection)
{
	dlist_mutable_iter iter;

	if (connection->live || connection->closing || connection->cursor >= LogBase())
		return;
	dlist_foreach_modify(iter, &connection->subscriptions)
	{
		Subscription *s = dlist_container(Subscription, connection_node, iter.cur);

		if (s->state == SUB_READY && !s->paced && s->since < LogPublished())
			SubscribeResync(s, "history_truncated");
	}

	/*
	 * Until it has drained, the gateway drops what it is sent, so it is not
	 * live: it goes on from here then.
	 */
	if (connection->choked)
		ConnectionSetBehind(connection, LogPublished());
	else
		ConnectionSetLive(connection);
	HasMoved(connection);
}

/*
 * Whoever was ready when the transaction was published has been told already;
 * a subscription may have become ready on a connection that was behind it.
 */
static void
ResyncUnmapped(List *members, TransactionMap *map)
{
	ListCell *lc;
	dlist_mutable_iter iter;

	foreach(lc, members)
	{
		dlist_foreach_modify(iter, &((Connection *) lfirst(lc))->subscriptions)
		{
			Subscription *s = dlist_container(Subscription, connection_node, iter.cur);

			if (s->state == SUB_READY && !s->paced && s->since < map->transaction->number)
				(void) DeliverMapFailed(s, map);
		}
	}
}

void
DeliverCount(Connection *connection, Size bytes)
{
	connection->replayed += bytes;
	if (connection->replayed > REPLAY_WINDOW)
	{
		connection->replayed = 0;
		connection->mark = MARK_REPLAY;
		GatewayMark(connection, MARK_REPLAY);
	}
}

/* Sends transaction `number` to those of `members` whose verdicts are there. */
static void
MoveGroup(List *members, uint64 number)
{
	Delivery d = {0};
	LogTransaction *transaction = LogGet(number);
	bool extends;
	ListCell *lc;

	d.group = ++last_group;
	d.members = members;
	d.transaction = transaction;
	foreach(lc, members)
		((Connection *) lfirst(lc))->group = d.group;
	extends = ExtensionsAt(members, number);
	if (transaction->nchanges > 0 || transaction->nmessages > 0 || extends)
	{
		d.map = MapGet(transaction);
		if (d.map->failed != NIL)
			ResyncUnmapped(members, d.map);
		if (d.map->nentries > 0 || transaction->nmessages > 0 || extends)
			DeliverRun(&d, 0);
	}
	foreach(lc, members)
	{
		Connection *connection = lfirst(lc);

		if (connection->group != d.group)
			continue;
		connection->cursor = number;
		HasMoved(connection);
		DeliverCount(connection, d.bytes / Max(list_length(members), 1));
	}
}

static int
CompareCursors(const ListCell *a, const ListCell *b)
{
	uint64 x = ((Connection *) lfirst(a))->cursor;
	uint64 y = ((Connection *) lfirst(b))->cursor;

	return x < y ? -1 : x > y;
}

void
DeliverAdvance(void)
{
	List *ready = NIL;
	dlist_mutable_iter iter;
	int rounds = 0;

	/* A transaction at a time, those at the same one together. */
	for (;;)
	{
		List *group = NIL;
		uint64 cursor = 0;
		ListCell *lc;

		ready = NIL;
		dlist_foreach_modify(iter, &all_connections_behind)
		{
			Connection *connection = dlist_container(Connection, behind_node, iter.cur);

			DeliverCheckBase(connection);
			if (!MayMove(connection))
				continue;
			if (connection->cursor >= LogPublished())
				ConnectionSetLive(connection);
			else
				ready = lappend(ready, connection);
		}
		if (ready == NIL || GatewaysPending() > (Size) 8 * 1024 * 1024)
			return;
		if (rounds++ > 200)
		{
			/* Others want a turn, too. */
			SetLatch(MyLatch);
			return;
		}
		list_sort(ready, CompareCursors);
		foreach(lc, ready)
		{
			Connection *connection = lfirst(lc);

			if (group != NIL && connection->cursor != cursor)
			{
				MoveGroup(group, cursor + 1);
				group = NIL;
			}
			cursor = connection->cursor;
			group = lappend(group, connection);
		}
		MoveGroup(group, cursor + 1);
	}
}

void
DeliverForgetWaiting(void)
{
	dlist_iter iter;

	dlist_foreach(iter, &all_connections_behind)
		dlist_container(Connection, behind_node, iter.cur)->waits_verdict = false;
	PaceWake();
}

void
DeliverChoked(Connection *connection, uint64 last)
{
	uint64 cursor = connection->live ? LogPublished() : connection->cursor;
	dlist_mutable_iter iter;

	/*
	 * The gateway has dropped what came behind `last`, which may be behind
	 * where we had thrown it back to ourselves.
	 */
	connection->choked = true;
	RecheckLostAll(connection);
	ProtocolSyncsLost(connection);
	cursor = Min(cursor, last);
	ConnectionSetBehind(connection, cursor);

	/* New columns that were lost with a frame are not told a second time. */
	dlist_foreach_modify(iter, &connection->subscriptions)
	{
		Subscription *s = dlist_container(Subscription, connection_node, iter.cur);

		if (s->state == SUB_READY && s->extended > cursor)
			SubscribeResync(s, "columns_changed");

		/*
		 * It was told `ready` behind frames that were dropped: when they come
		 * again their positions would count for it.
		 */
		else if (s->state == SUB_READY && !s->paced && s->since > cursor)
			SubscribeResync(s, "client_too_slow");
	}
}

void
DeliverDrained(Connection *connection)
{
	if (!connection->choked)
		return;
	connection->choked = false;
	connection->waits_verdict = false;
	connection->replayed = 0;
	PaceUnblocked(connection);
	GatewayResume(connection);
}

void
DeliverFlushed(Connection *connection, uint32 mark)
{
	/* All that was sent before has gone out. */
	if (mark >= MARK_SYNC)
		ProtocolSyncsFlushed(connection, mark);
	else if (mark == MARK_PRESENCE)
		PresenceFlushed(connection);
	else
	{
		connection->mark = 0;
		PaceUnblocked(connection);
		SubscribePagesFlushed(connection);
	}
}
