/*-------------------------------------------------------------------------
 *
 * pace.c
 *		Channels with min_interval: a row's changes are folded to its latest
 *		state, and sent at most once in that time.
 *
 * A ready subscription to such a channel takes no part in its connection's
 * frames.  It has a cursor of its own and is moved by *steps*: the net effect
 * of all transactions from its cursor up to now on its instance, in a frame
 * that names the channel and the position behind the last of them.  The first
 * change after a quiet time is sent at once.
 *
 * A step is made from the maps of the transactions, which have the net effect
 * of each already: the first old row against the last new row of a key, in a
 * map of its own, on which conditions, verdicts and encoding work as on that of
 * a transaction.  It is kept while a verdict is missing.  Meanwhile others go
 * on; who was not sent a step that others have got, because its verdict is
 * missing or its client is slow, *lags* and gets one of its own later.
 *
 * What concerns subscriptions as a whole (barriers, truncation, tables that
 * policies read) happens to these as to all others when it is published: no
 * step goes across it for those whom it concerns.
 *
 * Process: feed worker.  Memory: a context per step.  Its rows are the log's,
 * so that it does not outlive its first transaction (PaceTrim).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "deliver.h"
#include "pace.h"

#include "storage/latch.h"
#include "miscadmin.h"
#include "utils/memutils.h"

/* Beyond that the gateways have enough to do. */
#define LINK_LIMIT ((Size) 8 * 1024 * 1024)

/* Numbers of steps, as against those of the log's transactions. */
#define STEP_NUMBER (UINT64CONST(1) << 63)

static dlist_head steps = DLIST_STATIC_INIT(steps);
static dlist_head lagging = DLIST_STATIC_INIT(lagging); /* Subscription.pace_node */
static List *pending;									/* Channel with pace_first */
static uint64 last_step;

/* ---- steps ---- */

static void
StepFree(PaceStep *step)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &step->subscriptions)
	{
		Subscription *s = dlist_container(Subscription, pace_node, iter.cur);

		dlist_delete(&s->pace_node);
		s->step = NULL;
	}
	if (step->transaction.map != NULL)
		MapFree(step->transaction.map);
	dlist_delete(&step->node);
	MemoryContextDelete(step->context);
}

static PaceStep *
StepCreate(Instance *instance, uint64 from, uint64 to)
{
	MemoryContext context = AllocSetContextCreate(feed_context, "changefeed step",
												  ALLOCSET_SMALL_SIZES);
	PaceStep *step = MemoryContextAllocZero(context, sizeof(PaceStep));

	step->context = context;
	step->number = STEP_NUMBER | ++last_step;
	step->channel = instance->channel;
	step->instance = instance;
	step->from = from;
	step->generation = channels_generation;
	step->transaction.number = to;
	step->transaction.step = step;
	dlist_init(&step->subscriptions);
	dlist_push_tail(&steps, &step->node);
	return step;
}

LogTransaction *
PaceTransaction(uint64 number)
{
	dlist_iter iter;

	if ((number & STEP_NUMBER) == 0)
		return LogGet(number);
	dlist_foreach(iter, &steps)
	{
		PaceStep *step = dlist_container(PaceStep, node, iter.cur);

		if (step->number == number)
			return &step->transaction;
	}
	return NULL;
}

uint64
PaceNumber(const LogTransaction *transaction)
{
	return transaction->step != NULL ? transaction->step->number : transaction->number;
}

/* ---- subscriptions ---- */

static void
Lag(Subscription *s)
{
	s->lags = true;
	dlist_push_tail(&lagging, &s->pace_node);
}

void
PaceBegin(Subscription *s)
{
	Channel *channel = s->instance->channel;
	uint64 from;

	if (channel->min_interval == 0)
		return;
	s->paced = true;

	/* Its connection is behind what others of the channel have got. */
	if (s->cursor < channel->pace_base)
		Lag(s);

	/* Nobody may have been there when what lies before it was published. */
	from = Max(s->cursor, channel->pace_base);
	if (from < LogPublished())
	{
		PaceNote(channel, from + 1);
		channel->pace_first = Min(channel->pace_first, from + 1);

		/* While the log has it: else everybody of the channel would start again. */
		channel->pace_at = feed_now;
	}
}

static void
LeaveStep(Subscription *s)
{
	if (s->step != NULL || s->lags)
		dlist_delete(&s->pace_node);
	s->step = NULL;
	s->lags = false;
}

void
PaceForget(Subscription *s)
{
	LeaveStep(s);
	s->paced = false;
}

void
PaceSent(Subscription *s)
{
	s->cursor = s->step->transaction.number;
	LeaveStep(s);
	if (s->cursor < s->instance->channel->pace_base)
		Lag(s);
}

static bool
IsBlocked(const Subscription *s)
{
	return s->connection->closing || s->connection->choked || s->connection->mark != 0;
}

static void
JoinStep(PaceStep *step, Subscription *s)
{
	LeaveStep(s);
	s->step = step;
	dlist_push_tail(&step->subscriptions, &s->pace_node);
}

static int
CompareNames(const ListCell *a, const ListCell *b)
{
	uintptr_t x = (uintptr_t) ((Subscription *) lfirst(a))->name;
	uintptr_t y = (uintptr_t) ((Subscription *) lfirst(b))->name;

	return x < y ? -1 : x > y;
}

/* Sends the step to those that can get it; it goes with the last of them. */
static void
Run(PaceStep *step)
{
	List *members = NIL;
	List *same = NIL;
	Spelling *name = NULL;
	dlist_mutable_iter iter;
	ListCell *lc;

	if (dlist_is_empty(&step->subscriptions))
	{
		StepFree(step);
		return;
	}
	if (step->waits)
		return;
	if (MapGet(&step->transaction)->failed != NIL)
	{
		dlist_foreach_modify(iter, &step->subscriptions)
			SubscribeResync(dlist_container(Subscription, pace_node, iter.cur),
							step->from < LogBase() ? "history_truncated" : "change_not_readable");
		StepFree(step);
		return;
	}
	dlist_foreach_modify(iter, &step->subscriptions)
	{
		Subscription *s = dlist_container(Subscription, pace_node, iter.cur);

		if (!IsBlocked(s))
			members = lappend(members, s);
	}
	if (members == NIL)
		return;
	step->waits = true;
	list_sort(members, CompareNames);
	foreach(lc, members)
	{
		Subscription *s = lfirst(lc);

		/* Those of other names may have ended, but nobody else. */
		if (same != NIL && s->name != name)
		{
			DeliverPaced(same, &step->transaction);
			same = NIL;
		}
		name = s->name;
		same = lappend(same, s);
	}
	if (same != NIL)
		DeliverPaced(same, &step->transaction);
	if (dlist_is_empty(&step->subscriptions))
		StepFree(step);
}

/* ---- time ---- */

void
PaceNote(Channel *channel, uint64 number)
{
	MemoryContext old;

	if (channel->pace_last != number)
		channel->pace_count++;
	channel->pace_last = number;
	if (channel->pace_first != 0)
		return;
	channel->pace_first = number;
	old = MemoryContextSwitchTo(feed_context);
	pending = lappend(pending, channel);
	MemoryContextSwitchTo(old);
}

void
PaceForgetChannel(Channel *channel)
{
	dlist_mutable_iter iter;

	/* Its subscriptions start again, or end. */
	pending = list_delete_ptr(pending, channel);
	dlist_foreach_modify(iter, &steps)
	{
		PaceStep *step = dlist_container(PaceStep, node, iter.cur);

		if (step->channel == channel)
			StepFree(step);
	}
}

/* The step of the instance from there, made when it is not there. */
static PaceStep *
StepFor(List **made, Instance *instance, uint64 from, uint64 to, bool *created)
{
	ListCell *lc;
	PaceStep *step;

	*created = false;
	foreach(lc, *made)
	{
		step = lfirst(lc);
		if (step->instance == instance && step->from == from)
			return step;
	}
	*created = true;
	step = StepCreate(instance, from, to);
	*made = lappend(*made, step);
	return step;
}

/* All of the instance that are not on their way already. */
static List *
JoinSteps(Instance *instance, uint64 to)
{
	Channel *channel = instance->channel;
	List *made = NIL;
	dlist_iter iter;

	dlist_foreach(iter, &instance->subscriptions)
	{
		Subscription *s = dlist_container(Subscription, instance_node, iter.cur);
		bool created;

		if (s->state != SUB_READY || s->step != NULL || s->lags)
			continue;
		s->cursor = Max(s->cursor, channel->pace_base);
		if (s->cursor >= to)
			continue;
		if (IsBlocked(s))
			Lag(s);
		else
			JoinStep(StepFor(&made, instance, s->cursor, to, &created), s);
	}
	return made;
}

typedef struct Concerned
{
	Instance *instance; /* hash key */
	List *steps;
} Concerned;

static void
Refer(HTAB *table, Instance *instance, uint64 number, int entry, uint64 to, List **all)
{
	bool found;
	Concerned *concerned = hash_search(table, &instance, HASH_ENTER, &found);
	ListCell *lc;

	if (!found)
	{
		concerned->steps = JoinSteps(instance, to);
		*all = list_concat(*all, concerned->steps);
	}
	foreach(lc, concerned->steps)
		if (((PaceStep *) lfirst(lc))->from < number)
			PaceAddReference(lfirst(lc), number, entry);
}

static void
ResyncPaced(Subscription *s, void *arg)
{
	if (s->state == SUB_READY)
		SubscribeResync(s, arg);
}

/* Everybody gets what was put off since the last time. */
static void
Tick(Channel *channel)
{
	uint64 to = LogPublished();
	HTAB *table;
	HASHCTL ctl;
	List *made = NIL;
	ListCell *lc;
	uint64 number;

	ctl.keysize = sizeof(Instance *);
	ctl.entrysize = sizeof(Concerned);
	ctl.hcxt = CurrentMemoryContext;
	table = hash_create("changefeed pace", 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	for (number = channel->pace_first; number <= to; number++)
	{
		LogTransaction *transaction = LogGet(number);
		TransactionMap *map;
		int i;

		if (transaction == NULL)
		{
			SubscriptionForEach(channel, ResyncPaced, (void *) "history_truncated");
			break;
		}
		if (!PaceTouches(transaction, channel))
			continue;
		map = MapGet(transaction);
		if (PaceHasFailed(map, channel))
			continue; /* those that are ready have been told */
		for (i = 0; i < map->nentries; i++)
		{
			MapEntry *entry = &map->entries[i];
			Instance *before = NULL;
			Instance *after = NULL;
			ListCell *lc2;

			if (entry->source->channel != channel)
				continue;
			if (entry->old_in)
				before = InstanceFind(channel, entry->old_params);
			if (entry->new_in)
				after = InstanceFind(channel, entry->new_params);
			if (before != NULL)
				Refer(table, before, number, i, to, &made);
			if (after != NULL && after != before)
				Refer(table, after, number, i, to, &made);
			foreach(lc2, InstancesStarred(channel))
				if (PaceConcerns(entry, lfirst(lc2)))
					Refer(table, lfirst(lc2), number, i, to, &made);
		}
	}
	channel->pace_first = 0;
	channel->pace_count = 0;
	channel->pace_base = to;
	channel->pace_at = TimestampTzPlusMilliseconds(feed_now, channel->min_interval);
	foreach(lc, made)
	{
		PaceStep *step = lfirst(lc);

		if (step->nreferences > 0)
			step->transaction.commit =
				LogGet(step->references[step->nreferences - 1].number)->commit;
		Run(step);
	}
	hash_destroy(table);
}

static bool
IsDue(const Channel *channel)
{
	return channel->pace_at <= feed_now || channel->pace_count >= STEP_LIMIT;
}

/* Who lags catches up with the others of the channel. */
static void
MoveLagging(long *wait)
{
	List *made = NIL;
	dlist_mutable_iter iter;
	ListCell *lc;

	dlist_foreach_modify(iter, &lagging)
	{
		Subscription *s = dlist_container(Subscription, pace_node, iter.cur);
		Channel *channel = s->instance->channel;
		PaceStep *step;
		bool created;

		if (s->cursor < LogBase())
		{
			SubscribeResync(s, "history_truncated");
			continue;
		}
		if (IsBlocked(s))
			continue; /* what unblocks it wakes us */
		if (channel->pace_at > feed_now)
		{
			long ms = Max(TimestampDifferenceMilliseconds(feed_now, channel->pace_at), 1);

			*wait = *wait < 0 ? ms : Min(*wait, ms);
			continue;
		}
		step = StepFor(&made, s->instance, s->cursor, channel->pace_base, &created);
		JoinStep(step, s);
	}
	foreach(lc, made)
	{
		PaceStep *step = lfirst(lc);

		/* What is not there is found by Run. */
		(void) PaceCollect(step);
		Run(step);
	}
	if (made != NIL && !dlist_is_empty(&lagging))
		*wait = 0;
}

long
PaceAdvance(void)
{
	long wait = -1;
	dlist_mutable_iter iter;
	ListCell *lc;

	if (GatewaysPending() > LINK_LIMIT)
		return -1; /* comes again when they have drained */
	dlist_foreach_modify(iter, &steps)
		Run(dlist_container(PaceStep, node, iter.cur));
	MoveLagging(&wait);
	foreach(lc, pending)
	{
		Channel *channel = lfirst(lc);

		if (IsDue(channel))
		{
			pending = foreach_delete_current(pending, lc);
			Tick(channel);
		}
		else
		{
			long ms = Max(TimestampDifferenceMilliseconds(feed_now, channel->pace_at), 1);

			wait = wait < 0 ? ms : Min(wait, ms);
		}
	}
	return wait;
}

void
PaceWake(void)
{
	dlist_iter iter;

	dlist_foreach(iter, &steps)
		dlist_container(PaceStep, node, iter.cur)->waits = false;
}

/* Its steps may have been run meanwhile, for the others: they wait for no verdict of this one. */
void
PaceUnblocked(Connection *connection)
{
	dlist_iter iter;

	if (dlist_is_empty(&steps))
		return;
	dlist_foreach(iter, &connection->subscriptions)
	{
		Subscription *s = dlist_container(Subscription, connection_node, iter.cur);

		if (s->step != NULL)
			s->step->waits = false;
	}
}

void
PaceTrim(void)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &steps)
	{
		PaceStep *step = dlist_container(PaceStep, node, iter.cur);
		dlist_mutable_iter iter2;

		if (step->from >= LogBase())
			continue;
		dlist_foreach_modify(iter2, &step->subscriptions)
			SubscribeResync(dlist_container(Subscription, pace_node, iter2.cur),
							"history_truncated");
		StepFree(step);
	}
}

bool
PaceIsBusy(void)
{
	return !dlist_is_empty(&steps);
}

/* ---- what a connection is told ---- */

bool
PaceIsPending(Connection *connection)
{
	dlist_iter iter;

	dlist_foreach(iter, &connection->subscriptions)
	{
		Subscription *s = dlist_container(Subscription, connection_node, iter.cur);

		/* What is behind may be so far behind what was sent of this one. */
		if (s->paced && (!connection->live || s->step != NULL || s->lags ||
						 s->instance->channel->pace_first != 0))
			return true;
	}
	return false;
}

bool
PaceSettled(Connection *connection, XLogRecPtr lsn)
{
	uint64 number = LogNumberAt(lsn);
	bool settled = true;
	dlist_iter iter;

	dlist_foreach(iter, &connection->subscriptions)
	{
		Subscription *s = dlist_container(Subscription, connection_node, iter.cur);
		Channel *channel = s->instance->channel;

		if (!s->paced || (s->step == NULL && !s->lags &&
						  (channel->pace_first == 0 || channel->pace_first > number)))
			continue;
		settled = false;
		if (channel->pace_first != 0 && channel->pace_at > feed_now)
		{
			channel->pace_at = feed_now;
			SetLatch(MyLatch);
		}
	}
	return settled;
}
