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

#include "common/hashfn.h"
#include "storage/latch.h"
#include "miscadmin.h"
#include "utils/memutils.h"

/*
 * A frame folds about so many transactions with changes at most: their maps are
 * needed together.
 */
#define STEP_LIMIT 2000

/* Beyond that the gateways have enough to do. */
#define LINK_LIMIT ((Size) 8 * 1024 * 1024)

/* Numbers of steps, as against those of the log's transactions. */
#define STEP_NUMBER (UINT64CONST(1) << 63)

/* An entry of a transaction's map. */
typedef struct Reference
{
	uint64 number;
	int entry;
} Reference;

typedef struct PaceStep
{
	dlist_node node;
	uint64 number;
	Channel *channel;
	Instance *instance; /* while there are subscriptions */
	bool waits;			/* for verdicts */
	uint64 from;		/* the transactions behind it */
	LogTransaction transaction;
	dlist_head subscriptions; /* Subscription.pace_node */
	uint64 generation;		  /* of the channels, for which references are good */
	int nreferences;
	int maxreferences;
	Reference *references; /* ascending */
	MemoryContext context;
} PaceStep;

/* A key while references are folded. */
typedef struct Folded
{
	struct Folded *next; /* with the same hash */
	TransactionMap *old_map;
	MapEntry *old_entry; /* the first */
	TransactionMap *new_map;
	MapEntry *new_entry; /* the last */
	Datum *values;		 /* of its new row, with what earlier ones knew */
	bool *isnull;
} Folded;

typedef struct FoldedEntry
{
	uint64 hash;
	Folded *first;
} FoldedEntry;

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

static void
AddReference(PaceStep *step, uint64 number, int entry)
{
	Reference *last = step->nreferences > 0 ? &step->references[step->nreferences - 1] : NULL;

	if (last != NULL && last->number == number && last->entry == entry)
		return;
	if (step->nreferences == step->maxreferences)
	{
		step->maxreferences = Max(8, step->maxreferences * 2);
		if (step->references == NULL)
			step->references = MemoryContextAlloc(step->context,
												  sizeof(Reference) * step->maxreferences);
		else
			step->references = repalloc_huge(step->references,
											 sizeof(Reference) * step->maxreferences);
	}
	step->references[step->nreferences].number = number;
	step->references[step->nreferences].entry = entry;
	step->nreferences++;
}

static bool
Concerns(const MapEntry *entry, const Instance *instance)
{
	return entry->source->channel == instance->channel &&
		   ((entry->old_in && InstanceMatches(instance, entry->old_params)) ||
			(entry->new_in && InstanceMatches(instance, entry->new_params)));
}

/* Did the transaction do anything to the channel's tables? */
static bool
Touches(const LogTransaction *transaction, const Channel *channel)
{
	int i;
	int k;

	for (i = 0; i < transaction->nchanges; i++)
		for (k = 0; k < channel->nsources; k++)
			if (transaction->changes[i].desc->relid == channel->sources[k]->relid)
				return true;
	return false;
}

static bool
HasFailed(const TransactionMap *map, const Channel *channel)
{
	int i;

	for (i = 0; map->failed != NIL && i < channel->nsources; i++)
		if (list_member_oid(map->failed, channel->sources[i]->relid))
			return true;
	return false;
}

/* Finds the step's changes in the log.  False: it does not have them, or not as rows. */
static bool
CollectReferences(PaceStep *step)
{
	Channel *channel = step->channel;
	int transactions = 0;
	uint64 number;

	step->nreferences = 0;
	step->generation = channels_generation;
	for (number = step->from + 1; number <= step->transaction.number; number++)
	{
		LogTransaction *transaction = LogGet(number);
		TransactionMap *map;
		int i;

		if (transaction == NULL)
			return false;
		if (!Touches(transaction, channel))
			continue;
		map = MapGet(transaction);
		if (HasFailed(map, channel))
			return false;
		for (i = 0; i < map->nentries; i++)
			if (Concerns(&map->entries[i], step->instance))
				AddReference(step, number, i);
		if (++transactions >= STEP_LIMIT)
			step->transaction.number = number;
	}
	if (step->nreferences > 0)
		step->transaction.commit = LogGet(step->references[step->nreferences - 1].number)->commit;
	return true;
}

/* ---- the map of a step ---- */

static Folded *
Find(HTAB *table, const MapEntry *entry, List **order)
{
	uint64 hash = hash_bytes_extended((const unsigned char *) entry->key, entry->key_length,
									  entry->source->id);
	bool found;
	FoldedEntry *slot = hash_search(table, &hash, HASH_ENTER, &found);
	Folded *folded;

	if (!found)
		slot->first = NULL;
	for (folded = slot->first; folded != NULL; folded = folded->next)
		if (folded->new_entry->source == entry->source &&
			folded->new_entry->key_length == entry->key_length &&
			memcmp(folded->new_entry->key, entry->key, entry->key_length) == 0)
			return folded;
	folded = palloc0(sizeof(Folded));
	folded->next = slot->first;
	slot->first = folded;
	*order = lappend(*order, folded);
	return folded;
}

/*
 * A value that a change does not carry because it left it alone is that of the
 * change before; with the first one, it is what the client has.  False: it was
 * left alone while the row was elsewhere, and is not known.
 */
static bool
Resolve(Folded *folded, TransactionMap *from, MapEntry *entry)
{
	MapImage *image;
	Datum *values;
	bool *isnull;
	int natts;
	int i;

	if (entry->new_image < 0)
	{
		folded->values = NULL;
		return true;
	}
	image = &from->images[entry->new_image];
	natts = image->desc->tupdesc->natts;
	values = palloc(sizeof(Datum) * natts);
	isnull = palloc(sizeof(bool) * natts);
	memcpy(values, image->values, sizeof(Datum) * natts);
	memcpy(isnull, image->isnull, sizeof(bool) * natts);
	for (i = 0; image->incomplete && folded->old_entry != NULL && i < natts; i++)
	{
		if (isnull[i] || !RecordValueIsUnchanged(image->desc, i + 1, values[i]))
			continue;
		if (folded->values == NULL || !folded->new_entry->new_in ||
			folded->new_map->images[folded->new_entry->new_image].desc != image->desc)
			return false;
		values[i] = folded->values[i];
		isnull[i] = folded->isnull[i];
	}
	folded->values = values;
	folded->isnull = isnull;
	return true;
}

/* An image of a transaction as one of the step; its values stay where they are. */
static int
CopyImage(TransactionMap *to, int change, TransactionMap *from, int index)
{
	int copy = 2 * change + index % 2;
	MapImage *image = &to->images[copy];
	int natts;

	*image = from->images[index];
	natts = image->desc->tupdesc->natts;
	image->values = palloc(sizeof(Datum) * natts);
	image->isnull = palloc(sizeof(bool) * natts);
	memcpy(image->values, from->images[index].values, sizeof(Datum) * natts);
	memcpy(image->isnull, from->images[index].isnull, sizeof(bool) * natts);
	to->transaction->changes[change] = from->transaction->changes[index / 2];
	return copy;
}

static void
TakeValues(MapImage *image, const Folded *folded)
{
	int i;

	for (i = 0; image->incomplete && i < image->desc->tupdesc->natts; i++)
	{
		if (image->isnull[i] || !RecordValueIsUnchanged(image->desc, i + 1, image->values[i]))
			continue;
		image->values[i] = folded->values[i];
		image->isnull[i] = folded->isnull[i];
		image->filled = true;
	}
}

static char **
CopyParams(char **params, int n)
{
	char **copy = palloc(sizeof(char *) * Max(n, 1));
	int i;

	for (i = 0; i < n; i++)
		copy[i] = pstrdup(params[i]);
	return copy;
}

/*
 * The key's first old row and its last new row.  What happened to it while it
 * was out of the instance is in no reference and makes no difference.
 */
static void
AddEntry(TransactionMap *map, const Folded *folded, int *change, int nparams)
{
	MapEntry *entry = &map->entries[map->nentries];

	*entry = *folded->new_entry;
	entry->key = pnstrdup(folded->new_entry->key, folded->new_entry->key_length);
	entry->old_image = -1;
	entry->new_image = -1;
	entry->old_in = folded->old_entry->old_in;
	if (folded->old_entry->old_image >= 0)
	{
		entry->old_image = CopyImage(map, (*change)++, folded->old_map,
									 folded->old_entry->old_image);
		entry->layout = ChannelsLayout(entry->source, map->images[entry->old_image].desc);
	}
	if (folded->new_entry->new_image >= 0)
	{
		entry->new_image = CopyImage(map, (*change)++, folded->new_map,
									 folded->new_entry->new_image);
		TakeValues(&map->images[entry->new_image], folded);
		entry->layout = ChannelsLayout(entry->source, map->images[entry->new_image].desc);
	}
	if (entry->old_in)
		entry->old_params = CopyParams(folded->old_entry->old_params, nparams);
	if (entry->new_in)
		entry->new_params = CopyParams(folded->new_entry->new_params, nparams);
	if (entry->old_in || entry->new_in)
		map->nentries++;
}

TransactionMap *
PaceMap(LogTransaction *transaction)
{
	PaceStep *step = transaction->step;
	Channel *channel = step->channel;
	bool complete = step->generation == channels_generation || CollectReferences(step);
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "changefeed map",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	TransactionMap *map = palloc0(sizeof(TransactionMap));
	HTAB *table;
	HASHCTL ctl;
	List *order = NIL;
	ListCell *lc;
	int change = 0;
	int i;

	map->context = context;
	map->transaction = transaction;
	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(FoldedEntry);
	ctl.hcxt = context;
	table = hash_create("changefeed step", 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	for (i = 0; complete && i < step->nreferences; i++)
	{
		Reference *reference = &step->references[i];
		TransactionMap *from = MapGet(LogGet(reference->number));
		MapEntry *entry = &from->entries[reference->entry];
		Folded *folded = Find(table, entry, &order);

		complete = Resolve(folded, from, entry);
		if (folded->old_entry == NULL)
		{
			folded->old_map = from;
			folded->old_entry = entry;
		}
		folded->new_map = from;
		folded->new_entry = entry;
	}
	transaction->nchanges = 2 * list_length(order);
	transaction->changes = palloc0(sizeof(LogChange) * Max(transaction->nchanges, 1));
	map->nimages = 2 * transaction->nchanges;
	map->images = palloc0(sizeof(MapImage) * Max(map->nimages, 1));
	map->entries = palloc0(sizeof(MapEntry) * Max(list_length(order), 1));
	foreach(lc, order)
		AddEntry(map, lfirst(lc), &change, channel->template->nparams);
	hash_destroy(table);
	if (!complete)
		for (i = 0; i < channel->nsources; i++)
			map->failed = lappend_oid(map->failed, channel->sources[i]->relid);
	MemoryContextSwitchTo(old);
	return map;
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

	if (channel->min_interval == 0)
		return;
	s->paced = true;

	/* Its connection is behind what others of the channel have got. */
	if (s->cursor < channel->pace_base)
		Lag(s);
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
			AddReference(lfirst(lc), number, entry);
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
		if (!Touches(transaction, channel))
			continue;
		map = MapGet(transaction);
		if (HasFailed(map, channel))
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
				if (Concerns(entry, lfirst(lc2)))
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
		(void) CollectReferences(step);
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
