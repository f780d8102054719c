/*-------------------------------------------------------------------------
 *
 * deliver.c
 *		From a published transaction to frames.
 *
 * For every row that a transaction changed (map.c) it is decided who gets it
 * (decide.c).  Those that get the same bytes share one fragment; the gateway joins
 * the fragments of a transaction into one frame per connection.
 *
 * A connection takes part at once while it is live.  When a verdict is missing
 * (verdicts.c), the gateway is choked, or a subscription that catches up wants
 * it to wait, it stays behind with a cursor of its own and is moved later,
 * together with all that are at the same transaction: the order of commits
 * within a connection is never broken.
 *
 * Process: feed worker.  Memory: everything made here lives in the turn.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "deliver.h"
#include "extend.h"
#include "gateways.h"
#include "publish.h"
#include "receivers.h"

/* Runs are numbered so that marks need not be cleared. */
static uint64 last_run;

uint64 deliver_done;

uint64
DeliverNewRun(void)
{
	return ++last_run;
}

bool
DeliverTakesPart(Delivery *d, Subscription *s)
{
	Connection *connection = s->connection;

	if (d->only != NULL)
		return s == d->only;
	if (d->paced != NIL)
		return s->pace_missing != d->run || d->asking;
	if (s->state != SUB_READY || s->since >= d->transaction->number || connection->closing ||
		s->paced)
		return false;
	return d->group == 0 ? connection->live : connection->group == d->group;
}

/* ---- what they get ---- */

static void
Unreadable(Delivery *d, MapEntry *entry, Subscription *s, const void *arg)
{
	(void) DeliverOut(d, s, *(const OutReason *) arg);
}

static void
NoteEvents(Delivery *d, MapEntry *entry, Subscription *s, const void *arg)
{
	const Decision *decision = arg;

	EventsConsider(d, entry, s, s->views[entry->source->index], decision->before, decision->after);
}

static void
NoteRecheck(Delivery *d, MapEntry *entry, Subscription *s, const void *arg)
{
	const Decision *decision = arg;

	if (s->recheck != NULL)
		RecheckNote(s, d->map, entry, s->views[entry->source->index], decision->before,
					decision->after);
}

void
DeliverSend(Delivery *d, const Decision *decision)
{
	MapEntry *entry = decision->entry;
	Source *source = entry->source;
	Subscription *s = decision->one;
	Receivers *r = decision->receivers;
	View *view = s != NULL ? s->views[source->index] : r->sources[source->index].view;
	bool replaces = s != NULL ? s->no_snapshot || s->window : r->replaces;
	SourceAction action;
	OutReason reason = OUT_UNREADABLE;
	bool complete = false;

	if (s != NULL ? !DeliverTakesPart(d, s) : r->nlive == 0)
		return;
	if (source->nevents > 0 && d->transaction->step == NULL)
		DeliverForEach(d, entry, r, s, NoteEvents, decision);
	if (d->messages_only)
		return;
	if (view->recheck != 0)
		DeliverForEach(d, entry, r, s, NoteRecheck, decision);
	if (decision->before && decision->after)
		action = source->on_update;
	else if (decision->after)
		action = source->on_insert;
	else
		action = source->on_delete;
	if (action == ACTION_IGNORE)
		return;
	if (d->full)
	{
		if (r != NULL && r->out == d->run)
			return;
		if (r != NULL)
			r->out = d->run;
		reason = OUT_TOO_MANY;
		DeliverForEach(d, entry, r, s, Unreadable, &reason);
		return;
	}

	if (action == ACTION_MERGE && !decision->before)
		complete = true;
	if (replaces && action != ACTION_REMOVE)
		action = ACTION_REPLACE;
	if (action != ACTION_REMOVE && !FragmentRowFits(entry, d->map, view))
	{
		reason = OUT_STALE;
		DeliverForEach(d, entry, r, s, Unreadable, &reason);
		return;
	}
	if (action != ACTION_REMOVE && (action != ACTION_MERGE || complete) &&
		!FragmentRowIsKnown(entry, d->map, view))
	{
		DeliverForEach(d, entry, r, s, Unreadable, &reason);
		return;
	}
	if (!FragmentAdd(d, entry, s, r, action, decision->before && decision->after, complete))
	{
		reason = OUT_STALE;
		DeliverForEach(d, entry, r, s, Unreadable, &reason);
	}
}

/* ---- all of it ---- */

static void
BeginEntry(Delivery *d)
{
	static uint64 last_visit = 0;

	FragmentsClose(d);
	d->visit = ++last_visit;
	d->current = NIL;
	d->current_events = NULL;
}

static void
SendAll(Delivery *d)
{
	MapEntry *entry = NULL;
	int i;

	for (i = 0; i < d->ndecisions; i++)
	{
		if (d->decisions[i].entry != entry)
			BeginEntry(d);
		entry = d->decisions[i].entry;
		DeliverSend(d, &d->decisions[i]);
	}
	for (i = d->undecided; i < d->map->nentries; i++)
	{
		BeginEntry(d);
		DecideEntry(d, &d->map->entries[i]);
	}
	FragmentsClose(d);

	/* A turn has many runs. */
	if (d->decisions != NULL)
		pfree(d->decisions);
	d->decisions = NULL;
	d->ndecisions = d->maxdecisions = 0;
}

static void
End(const OutSubscription *out)
{
	SubscribeEnd(out->subscription, "error", out->sqlstate, out->message,
				 "The conditions behind \"?\" cannot be evaluated on a row.");
}

static const char *
OutText(OutReason reason)
{
	switch (reason)
	{
		case OUT_TOO_MANY:
			return "transaction_too_large";
		case OUT_AHEAD:
			return "type_changed";
		case OUT_STALE:
			return "schema_changed";
		default:
			return "value_not_in_wal";
	}
}

typedef struct Ahead
{
	Delivery *d;
	Oid relid;
} Ahead;

static void
OutIfAhead(Subscription *s, void *arg)
{
	Ahead *ahead = arg;

	if (EventsHasSource(s, ahead->relid) && DeliverTakesPart(ahead->d, s))
		(void) DeliverOut(ahead->d, s, OUT_AHEAD);
}

/*
 * What was written just now may have labels of a later transaction: catalogs
 * were looked at, and that is when changes of them are heard of.
 */
static void
OutAhead(Delivery *d)
{
	ListCell *lc;
	ListCell *lc2;

	foreach(lc, EventsLabelsAhead())
	{
		Ahead ahead = {d, lfirst_oid(lc)};

		if (d->only != NULL)
			OutIfAhead(d->only, &ahead);
		else if (d->paced != NIL)
			foreach(lc2, d->paced)
				OutIfAhead(lfirst(lc2), &ahead);
		else
			SubscriptionForEach(NULL, OutIfAhead, &ahead);
	}
}

/*
 * Subscriptions that cannot get all their changes get none, and are told so
 * before the frame: its position is one for all that are ready then, and a
 * client that is cut off between the two would come back with it.
 */
static void
TakeOut(Delivery *d)
{
	List *subscriptions = NIL;
	ListCell *lc;

	foreach(lc, d->out)
	{
		OutSubscription *out = lfirst(lc);

		/* Those who wait for a verdict come to it again. */
		if (DeliverTakesPart(d, out->subscription))
			subscriptions = lappend(subscriptions, out->subscription);
	}
	if (subscriptions != NIL)
		FragmentsTake(d, subscriptions);
	foreach(lc, d->out)
	{
		OutSubscription *out = lfirst(lc);

		if (out->reason != OUT_TOO_MANY && !DeliverTakesPart(d, out->subscription))
			continue;
		if (out->reason == OUT_FAILED)
			End(out);
		else
			SubscribeResync(out->subscription, OutText(out->reason));
	}
}

void
DeliverRun(Delivery *d, uint8 flags)
{
	d->run = DeliverNewRun();
	ExtensionsBegin(d);
	DecideAll(d);
	SendAll(d);
	OutAhead(d);
	MessagesCollect(d);
	TakeOut(d);
	ExtensionsAdd(d);
	FragmentsSend(d, flags);
	ExtensionsEnd(d);
}

void
DeliverPaced(List *subscriptions, LogTransaction *transaction)
{
	Delivery d = {0};
	List *connections = NIL;
	ListCell *lc;

	d.transaction = transaction;
	d.map = MapGet(transaction);
	d.paced = subscriptions;
	d.run = DeliverNewRun();
	DecideAll(&d);
	SendAll(&d);
	OutAhead(&d);

	/* Before some of them are resynced, or end. */
	foreach(lc, subscriptions)
	{
		Subscription *s = lfirst(lc);

		if (s->pace_missing == d.run)
			continue;
		connections = lappend(connections, s->connection);
		PaceSent(s);
	}
	TakeOut(&d);
	FragmentsSend(&d, LINK_TX_STREAM);
	foreach(lc, connections)
		DeliverCount(lfirst(lc), d.bytes / list_length(subscriptions));
}

static void
HoldBack(Connection *connection)
{
	if (connection->live && connection->held > 0)
		ConnectionSetBehind(connection, LogPublished() - 1);
}

/*
 * What was committed before this feed worker began, which it may see again, says
 * nothing of how fast it is.
 */
static void
NotePublished(const LogTransaction *transaction)
{
	if (transaction->nchanges > 0 && transaction->commit.time >= feed_started)
		HistogramAdd(&counters.publish_lag, GetCurrentTimestamp() - transaction->commit.time);
}

/* Is anybody subscribed to a channel of a table that it changes? */
static bool
HasSubscribers(const LogTransaction *transaction)
{
	Oid relid = InvalidOid;
	ListCell *lc;
	int i;

	for (i = 0; i < transaction->nchanges; i++)
	{
		if (transaction->changes[i].desc->relid == relid)
			continue;
		relid = transaction->changes[i].desc->relid;
		foreach(lc, ChannelsSourcesOf(relid))
			if (((Source *) lfirst(lc))->channel->counters->instances > 0)
				return true;
	}
	return false;
}

static void
Publish(LogTransaction *transaction)
{
	Delivery d = {0};

	EventsCheckLabels();

	/* What it does to subscriptions as a whole comes first. */
	PublishApply(transaction);
	EventsApply(transaction);

	/* Connections that wait for one of their subscriptions stay behind. */
	SubscriptionsCatchingUp(HoldBack);

	pg_atomic_fetch_add_u64(&feed_shared->feed_messages, transaction->nmessages);
	if (SubscriptionCount() > 0 && (transaction->nmessages > 0 || HasSubscribers(transaction)))
	{
		d.transaction = transaction;
		d.map = MapGet(transaction);
		EventsMapFailed(d.map);
		if (d.map->nentries > 0 || transaction->nmessages > 0)
			DeliverRun(&d, 0);
	}
	deliver_done = transaction->number;
}

void
DeliverPublish(LogTransaction *transaction)
{
	Publish(transaction);
	NotePublished(transaction);
}

bool
DeliverMapFailed(Subscription *s, TransactionMap *map)
{
	int i;

	for (i = 0; i < s->instance->channel->nsources; i++)
	{
		if (list_member_oid(map->failed, s->instance->channel->sources[i]->relid))
		{
			SubscribeResync(s, "change_not_readable");
			return true;
		}
	}
	return false;
}

static bool
HasEvents(const Channel *channel)
{
	int i;

	for (i = 0; i < channel->nsources; i++)
		if (channel->sources[i]->nevents > 0)
			return true;
	return false;
}

Delivered
DeliverTo(Subscription *s, LogTransaction *transaction, bool rows, Size *sent)
{
	Delivery d = {0};
	OutSubscription *out;

	/* Without changes that matter no map has to be made. */
	if (transaction->nmessages == 0 &&
		(transaction->nchanges == 0 || (!rows && !HasEvents(s->instance->channel))))
		return DELIVERED;
	d.transaction = transaction;
	d.map = MapGet(transaction);
	if (rows && DeliverMapFailed(s, d.map))
		return DELIVER_RESYNCED;
	d.only = s;
	d.messages_only = !rows;
	d.run = DeliverNewRun();
	DecideAll(&d);
	if (d.missing && !d.too_many)
		return DELIVER_WAITS;
	SendAll(&d);
	OutAhead(&d);
	out = d.out != NIL ? linitial(d.out) : NULL;
	if (out != NULL && (rows || out->reason == OUT_AHEAD))
	{
		if (out->reason == OUT_FAILED)
		{
			End(out);
			return DELIVER_ENDED;
		}
		SubscribeResync(s, OutText(out->reason));
		return DELIVER_RESYNCED;
	}
	MessagesCollect(&d);
	FragmentsSend(&d, LINK_TX_STREAM);
	*sent += d.bytes;
	return DELIVERED;
}
