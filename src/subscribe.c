/*-------------------------------------------------------------------------
 *
 * subscribe.c
 *		The life of a subscription until it is ready.
 *
 *	QUERYING	a query worker finds out what the identity may see and, unless
 *				the client resumes, takes a snapshot and notes N, the WAL
 *				position behind it
 *	LOADING		the pages go to the client at its own speed
 *	CATCHUP		the transactions that the snapshot does not contain are sent,
 *				until the subscription is where its connection is
 *	READY		it takes part in the connection's frames
 *
 * Whatever shows that what it has is not usable (a barrier, a truncation, a
 * change of a table that its policies read) sends it back to QUERYING; once
 * the client was told anything, by a `resync`.  Whether a transaction is in
 * the snapshot is decided by its xid alone, never by LSN.
 *
 * Process: feed worker.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "subscribe.h"
#include "gateways.h"
#include "http.h"
#include "receivers.h"

#include "access/transam.h"

/* Bytes of catching up before the client has to have taken them. */
#define CATCHUP_WINDOW (64 * 1024)

/* So close to its connection, it makes it wait rather than chase it. */
#define CHASE_LIMIT 1000

/* Transactions between two looks at the clock. */
#define CATCHUP_LOOK 64

/* What is done for those who come may take so long in a turn (us). */
#define SLICE 3000

bool subscribe_again;

static TimestampTz slice_end;

static void
SliceBegin(void)
{
	slice_end = GetCurrentTimestamp() + SLICE;
}

/* The rest comes in the next turn, behind what others are to be sent. */
static bool
SliceIsOver(void)
{
	return GetCurrentTimestamp() >= slice_end;
}

/*
 * A position that cannot be honoured costs the client a snapshot, and it is
 * told why.
 */
void
SubscribeStart(Subscription *s, const Position *from)
{
	subscribe_again = true;
	if (from == NULL)
		return;
	if (LogIsForeign(from))
		s->load->refused = "unknown_epoch";
	else if (memcmp(from->tag, s->connection->identity->tag, POSITION_TAG) != 0)
		s->load->refused = "identity_changed";
	else
	{
		s->load->position = *from;
		s->load->look_up = true;
	}
}

/* Soon after a start of the feed the log may not have come as far yet. */
static bool
LookUp(Subscription *s)
{
	if (!s->load->look_up)
		return true;
	if (LogHasToReach(&s->load->position))
		return false;
	s->load->from_position = LogFind(&s->load->position, &s->load->from, &s->load->refused);
	s->load->look_up = false;
	if (s->load->from_position && s->load->position.partial)
	{
		s->load->skip_number = s->load->from;
		s->load->skip = s->load->position.place;

		/* The rest of it is not there any more. */
		if (LogGet(s->load->from) == NULL)
		{
			s->load->from_position = false;
			s->load->skip_number = 0;
			s->load->refused = "history_truncated";
		}
	}
	return true;
}

/* ---- starting over and ending ---- */

/*
 * Before the client is told that they do not count any more: the gateway sends
 * pages at the client's speed, between messages that came later.
 */
void
SubscribeStopPages(Subscription *s)
{
	if (s->state == SUB_LOADING)
		GatewaySnapshotStop(s->connection, s->id);
	SubscribePagesEnd(s);
}

void
SubscribeForget(Subscription *s)
{
	ReceiversLeave(s);
	RecheckForget(s);
	CheckForget(s);
	PaceForget(s);
	SubscribeStopPages(s);
	SubscribeAnswerLeave(s);
	SubscribeSetViews(s, NULL);
}

static void
TellResync(Subscription *s, const char *reason)
{
	StringInfoData m;

	initStringInfo(&m);
	appendStringInfoString(&m, "{\"type\":\"resync\",\"channel\":");
	appendBinaryStringInfo(&m, s->name->json, s->name->length);
	appendStringInfo(&m, ",\"reason\":\"%s\"}", reason);
	HttpMoves(s, LINK_PART_NONE, NULL, false);
	ProtocolSend(s->connection, m.data, m.len);
	pfree(m.data);
	CountResync(s, reason);
	elog(DEBUG1, "connection " UINT64_FORMAT " starts %.*s again: %s", s->connection->id,
		 (int) s->name->length, s->name->json, reason);
}

/* Up to where does the client have the messages? */
static void
NoteOwed(Subscription *s)
{
	Connection *connection = s->connection;
	uint64 sent = connection->live ? deliver_done : connection->cursor;

	switch (s->state)
	{
		case SUB_READY:
			s->load->owed = Max(sent, s->since);
			break;
		case SUB_CATCHUP:
			s->load->owed = s->load->owes ? Max(s->load->owed, s->cursor) : s->cursor;
			break;
		case SUB_LOADING:
			if (s->load->owes)
				return;
			s->load->owed = s->load->start;
			break;
		default:
			return;
	}
	s->load->owes = true;
}

/*
 * A position that is not honoured for the rows is still good for messages.  That
 * of a transaction in part is that of the one before it.
 */
static void
OweFrom(Subscription *s)
{
	s->load->owes = true;
	s->load->owed = s->load->skip_number != 0 ? s->load->from - 1 : s->load->from;
}

/* Was the channel defined anew? */
static bool
ChangesChannel(const Channel *channel, const LogTransaction *transaction)
{
	int i;

	for (i = 0; i < transaction->nbarriers; i++)
		if (transaction->barriers[i].kind == BARRIER_CATALOG &&
			transaction->barriers[i].relid == InvalidOid &&
			(channel->changed >= transaction->number ||
			 (transaction->number <= channels_unknown_until &&
			  (transaction->barriers[i].state == 0 ||
			   transaction->barriers[i].state == (uint64) channel->id))))
			return true;
	return false;
}

/*
 * Messages that are owed were sent while rights changed.  It is known that the
 * client may have them now; so it may have those behind the last change.
 */
static void
LimitOwed(Subscription *s, uint64 until)
{
	uint64 number;

	if (s->load->owes && RecheckNeeded(s))
		s->load->owes = false;
	if (!s->load->owes)
		return;
	s->load->owed = Max(s->load->owed, LogBase());
	for (number = until; number > s->load->owed; number--)
	{
		LogTransaction *transaction = LogGet(number);

		if (EventConcernsRights(s, transaction) ||
			ChangesChannel(s->instance->channel, transaction))
		{
			s->load->owed = number - 1;
			break;
		}
	}
}

void
SubscribeResync(Subscription *s, const char *reason)
{
	SubscribeStopPages(s);
	SubscribeLoadBegin(s);
	NoteOwed(s);

	/* Told once per episode: until `ready` nothing is promised anyway. */
	if (s->announced && (s->state == SUB_READY || s->told_rows))
		TellResync(s, reason);
	if (s->load->look_up || (s->load->from_position && !s->announced))
		s->load->refused = reason;
	s->load->look_up = false;
	s->told_rows = false;
	s->announced_entities = false;
	SubscribeForget(s);
	SubscriptionSetState(s, SUB_QUERYING);
	s->load->from_position = false;
	subscribe_again = true;

	/*
	 * The first one at once; what keeps happening (a policy that reads a table
	 * which changes all the time) must not keep the query workers busy.
	 */
	if (TimestampDifferenceExceeds(s->resynced_at, feed_now, 5000))
	{
		s->load->retry_delay = 0;
		s->load->retry_at = 0;
	}
	else
		SubscribeDelay(s);
	s->resynced_at = feed_now;
}

void
SubscribeEnd(Subscription *s, const char *reason, const char *sqlstate, const char *message,
			 const char *hint)
{
	StringInfoData m;

	SubscribeStopPages(s);
	if (!s->announced)
		ProtocolSendError(s->connection, s->load->request_id, s->name, sqlstate, message, hint);
	else
	{
		initStringInfo(&m);
		appendStringInfoString(&m, "{\"type\":\"revoked\",\"channel\":");
		appendBinaryStringInfo(&m, s->name->json, s->name->length);
		appendStringInfo(&m, ",\"reason\":\"%s\"",
						 strcmp(sqlstate, "42501") == 0 ? "permission_denied" : reason);
		appendStringInfo(&m, ",\"code\":\"%s\",\"message\":", sqlstate);
		EncodeString(&m, message, strlen(message));
		if (hint != NULL)
		{
			appendStringInfoString(&m, ",\"hint\":");
			EncodeString(&m, hint, strlen(hint));
		}
		appendStringInfoChar(&m, '}');
		HttpMoves(s, LINK_PART_ENDED, NULL, false);
		ProtocolSend(s->connection, m.data, m.len);
		pfree(m.data);
	}
	CountError(s->instance->channel, sqlstate);
	elog(DEBUG1, "connection " UINT64_FORMAT " loses %.*s: %s", s->connection->id,
		 (int) s->name->length, s->name->json, message);
	SubscriptionFree(s);
}

static void
MoveOrEnd(Subscription *s, void *arg)
{
	Channel *old = arg;
	Channel *replacement = old->replacement;
	bool was_ready = s->state == SUB_READY;

	if (replacement == NULL || strcmp(replacement->name, old->name) != 0)
	{
		SubscribeEnd(s, "channel_dropped", "42704",
					 psprintf("channel \"%s\" was dropped", old->name), NULL);
		return;
	}
	if (replacement->nsources == 0 && old->nsources > 0)
	{
		SubscribeEnd(s, "channel_dropped", "55000",
					 psprintf("channel \"%s\" has no source any more", old->name),
					 "Its table was dropped, or changefeed.drop_source was used.");
		return;
	}
	SubscribeResync(s, "channel_changed");
	s->redefined = true;
	if (was_ready)
		s->load->retry_at = 0;
	SubscriptionMove(s, InstanceIntern(replacement, s->instance->params));
}

void
SubscribeChannelChanged(Channel *channel)
{
	PaceForgetChannel(channel);
	SubscriptionForEach(channel, MoveOrEnd, channel);
}

void
SubscribeSnapshotDone(Subscription *s, bool ok)
{
	if (s->state != SUB_LOADING)
		return;
	if (!ok)
	{
		SubscribeResync(s, "snapshot_failed");
		return;
	}
	SubscriptionSetState(s, SUB_CATCHUP);
}

/* ---- moving on ---- */

/* Was the transaction committed for the snapshot? */
bool
SubscribeSnapshotContains(const SubscribeSnapshot *snapshot, TransactionId xid)
{
	int i;

	if (TransactionIdPrecedes(xid, snapshot->xmin))
		return true;
	if (TransactionIdFollowsOrEquals(xid, snapshot->xmax))
		return false;
	for (i = 0; i < snapshot->nxip; i++)
		if (snapshot->xip[i] == xid)
			return false;
	return true;
}

static bool
InSnapshot(Subscription *s, LogTransaction *transaction)
{
	return SubscribeSnapshotContains(&s->load->answer->snapshot,
									 (TransactionId) transaction->commit.xid);
}

/*
 * The answer is complete.  Before the client is told anything: is it still
 * good, given all that has been published since the question?
 */
static void
UseAnswer(Subscription *s)
{
	uint64 number;
	uint64 until;

	if (s->load->from_position)
	{
		/* A resume: nothing since the position may concern it as a whole. */
		for (number = s->load->from + 1; number <= LogPublished(); number++)
		{
			LogTransaction *transaction = LogGet(number);

			/* The client's rows are those of the definition of then. */
			s->load->refused = transaction == NULL ? "history_truncated"
							   : ChangesChannel(s->instance->channel, transaction)
								   ? "channel_changed"
								   : EventConcerns(s, transaction, false);
			if (s->load->refused != NULL)
			{
				SubscribeForget(s);
				OweFrom(s);
				s->load->from_position = false;
				subscribe_again = true;
				return; /* asks for a snapshot in the next turn */
			}
		}

		/* What it has lost by the time would not be noticed. */
		if (RecheckNeedsRows(s))
		{
			s->load->refused = "recheck";
			SubscribeForget(s);
			s->load->from_position = false;
			subscribe_again = true;
			return;
		}
		RecheckBegin(s);
		s->load->rows_from = s->load->from;
		s->cursor = s->load->skip_number != 0 ? s->load->from - 1 : s->load->from;
		s->since = s->cursor;
		s->load->attempts = 0;
		if (!s->announced)
			SubscribeTellSubscribed(s, true);

		/* The rows that it has count: it is told if they do not any more. */
		s->told_rows = true;
		s->recovered = true;
		SubscriptionSetState(s, SUB_CATCHUP);
		return;
	}

	until = LogNumberAt(s->load->answer->snapshot.lsn);
	for (number = s->load->start + 1; number <= until; number++)
	{
		LogTransaction *transaction = LogGet(number);

		if (transaction == NULL ||
			EventConcerns(s, transaction, !s->load->has_snapshot || InSnapshot(s, transaction)) !=
				NULL)
		{
			SubscribeForget(s);
			SubscribeDelay(s);
			return;
		}
	}
	s->since = s->load->has_snapshot ? until : s->load->start;
	RecheckBegin(s);
	LimitOwed(s, until);
	s->load->rows_from = s->load->start;
	s->cursor = s->load->owes ? Min(s->load->owed, s->load->start) : s->load->start;
	s->load->attempts = 0;
	if (!s->announced)
		SubscribeTellSubscribed(s, false);
	if (s->load->refused != NULL)
	{
		TellResync(s, s->load->refused);
		s->load->refused = NULL;
		s->announced_entities = false;
	}
	s->told_rows = true;

	/* Rows of an entity with an unknown key would be of no use. */
	if (s->redefined && !s->announced_entities)
		SubscribeTellColumns(s);
	s->redefined = false;
	if (s->load->has_snapshot)
	{
		s->snapshot_rows = s->load->answer->rows;
		counters.snapshots++;
		counters.snapshot_rows += s->snapshot_rows;
		s->instance->channel->counters->snapshots++;
		s->instance->channel->counters->snapshot_rows += s->snapshot_rows;
		s->recovered = false;
		SubscribeTellPages(s);
	}
	else
		SubscriptionSetState(s, SUB_CATCHUP);
}

/*
 * Does something behind its connection's cursor concern it as a whole?  What
 * was published has been applied to the subscriptions that were ready then.
 * One that becomes ready on a connection that is behind was not.
 */
static const char *
ConcernedAhead(Subscription *s, uint64 cursor)
{
	uint64 number;

	for (number = cursor + 1; number <= LogPublished(); number++)
	{
		LogTransaction *transaction = LogGet(number);
		const char *reason = transaction != NULL ? EventConcerns(s, transaction, false)
												 : "history_truncated";

		if (reason != NULL)
			return reason;
	}
	return NULL;
}

/* False: it has to wait for something. */
static bool
CatchUp(Subscription *s)
{
	Connection *connection = s->connection;
	uint64 target = connection->live ? LogPublished() : connection->cursor;
	const char *concern;
	Size sent = 0;
	bool rows;

	if (target < s->since || target < s->cursor || target < s->load->skip_number)
	{
		/*
		 * The connection is further back, or was thrown back, as its client is
		 * slow: it has to come here first, and must not wait for us.  Ready
		 * before that, positions of its frames would count for us, too.
		 */
		SubscriptionHolds(s, false);
		return false;
	}
	if (connection->mark != 0)
		return false;

	/* Where it is has no name any more that `ready` could give. */
	if (s->cursor < LogBase())
	{
		SubscribeResync(s, "history_truncated");
		return true;
	}

	while (s->cursor < target)
	{
		LogTransaction *transaction = LogGet(s->cursor + 1);

		if (transaction == NULL)
		{
			SubscribeResync(s, "history_truncated");
			return true;
		}
		rows = transaction->number > s->load->rows_from &&
			   !(s->load->has_snapshot && transaction->number <= s->since &&
				 InSnapshot(s, transaction));
		if (rows || s->load->owes || transaction->number == s->load->skip_number)
		{
			const char *reason = rows ? EventConcerns(s, transaction, false) : NULL;

			if (reason != NULL)
			{
				SubscribeResync(s, reason);
				return true;
			}
			switch (DeliverTo(s, transaction, rows, &sent))
			{
				case DELIVERED:
					break;
				case DELIVER_WAITS:
					/* Close behind: the connection waits for it. */
					if (target - s->cursor < CHASE_LIMIT)
						SubscriptionHolds(s, true);
					return false;
				default:
					return true;
			}
		}
		s->cursor++;
		if (s->cursor % CATCHUP_LOOK == 0 && SliceIsOver())
		{
			/* Others, who may have less before them, go on first. */
			SubscribePlace(s);
			return true;
		}
		if (sent > CATCHUP_WINDOW)
		{
			connection->mark = MARK_REPLAY;
			GatewayMark(connection, MARK_REPLAY);
			return true;
		}
	}

	concern = ConcernedAhead(s, target);
	if (concern != NULL)
	{
		SubscribeResync(s, concern);
		return true;
	}

	s->since = Max(s->since, s->cursor);
	SubscribeTellReady(s);
	s->told_rows = true;
	SubscriptionSetState(s, SUB_READY);
	PaceBegin(s);
	return true;
}

static bool
AdvanceWorking(long *wait)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &all_subscriptions_working)
	{
		Subscription *s = dlist_container(SubscriptionLoad, node, iter.cur)->subscription;
		SubscriptionLoad *load = s->load;

		if (s->connection->closing || s->connection->identity == NULL)
			continue;
		if (load->answered)
		{
			/* What may be read was found out at that moment, and counts from there. */
			if (!LogReached(load->answer->snapshot.lsn))
				continue;

			/* Thousands may have the same answer, at the same time. */
			if (load->has_snapshot && GatewayHasEnough(s->connection))
			{
				*wait = 1;
				continue;
			}
			if (!SubscribePagesMaySend(s, wait))
				continue;
			UseAnswer(s);
		}
		else if (!LookUp(s))
			continue;
		else if (load->retry_at <= feed_now)
		{
			if (!SubscribePagesMayAsk(s, wait))
				continue;
			SubscribeAsk(s);
		}
		else
		{
			long ms = Max(TimestampDifferenceMilliseconds(feed_now, load->retry_at), 1);

			*wait = *wait < 0 ? ms : Min(*wait, ms);
			continue;
		}
		if (SliceIsOver())
			return false;
	}
	return true;
}

static bool
AdvanceCatchingUp(long *wait)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &all_subscriptions_catching_up)
	{
		Subscription *s = dlist_container(SubscriptionLoad, node, iter.cur)->subscription;

		if (s->connection->closing || s->connection->identity == NULL)
			continue;

		/* Each may be sent a whole transaction. */
		if (GatewayHasEnough(s->connection))
		{
			*wait = 1;
			continue;
		}
		if (CatchUp(s) && SliceIsOver())
			return false;
	}
	return true;
}

long
SubscribeAdvance(void)
{
	long wait = -1;
	bool done;

	subscribe_again = false;
	SliceBegin();

	/* Those who have come far go first: they become ready, and need nothing more. */
	done = AdvanceCatchingUp(&wait);

	/* Whoever has a long way to go does not keep others from being asked. */
	SliceBegin();
	if (!AdvanceWorking(&wait) || !done || !AdvanceCatchingUp(&wait))
		subscribe_again = true;
	return wait;
}
