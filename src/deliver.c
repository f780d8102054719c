/*-------------------------------------------------------------------------
 *
 * deliver.c
 *		From a published transaction to frames.
 *
 * For every row that a transaction changed (map.c) the subscriptions of the
 * channels concerned are looked up, those with conditions by what they demand
 * (audience.c), and for each the four cases are decided on what its identity
 * may see before and after.  Subscriptions that get the same
 * bytes share one fragment; the gateway joins the fragments of a transaction
 * into one frame per connection.
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

#include "audience.h"
#include "deliver.h"
#include "extend.h"
#include "gateways.h"
#include "publish.h"

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

	/* All verdicts that it lacks are asked for at once. */
	if (d->asking && connection->taken_out == d->run)
		return true;
	return d->group == 0 ? connection->live : connection->group == d->group;
}

/* Is the image visible to the subscription's identity? */
static Verdict
Judge(Delivery *d, Subscription *s, View *view, int image)
{
	Verdict verdict;

	if (view->rls == 0)
		return VERDICT_VISIBLE;
	if (view->rls == 2)
		return VERDICT_HIDDEN;
	verdict = VerdictInline(d->map, view, image);
	if (verdict != VERDICT_UNKNOWN)
	{
		if (d->asking)
			counters.verdicts_inline++;
		return verdict;
	}
	verdict = VerdictGet(d->map, s->connection->identity, view, image);
	if (verdict == VERDICT_UNKNOWN)
		VerdictAsk(d->map, s->connection->identity, view, image);
	else if (d->asking && verdict != VERDICT_ASKED)
		counters.verdicts_cached++;
	return verdict;
}

static void
Fail(Delivery *d, MapEntry *entry, Subscription *s)
{
	FailedSubscription *failed;
	const char *sqlstate;
	const char *message;
	ListCell *lc;

	foreach(lc, d->failed)
		if (((FailedSubscription *) lfirst(lc))->subscription == s)
			return;
	AudienceError(s->audience, entry->source->index, &sqlstate, &message);
	failed = palloc(sizeof(FailedSubscription));
	failed->subscription = s;
	failed->sqlstate = pstrdup(sqlstate);
	failed->message = pstrdup(message);
	d->failed = lappend(d->failed, failed);
}

/*
 * One subscription, one changed row.  `match`: do its conditions hold, for the
 * images that belong to its instance?
 */
static void
Consider(Delivery *d, MapEntry *entry, Subscription *s, const AudienceMatch *match, bool in_before,
		 bool in_after)
{
	Connection *connection = s->connection;
	Source *source = entry->source;
	View *view;
	Verdict before = VERDICT_HIDDEN;
	Verdict after = VERDICT_HIDDEN;
	SourceAction action;
	bool complete = false;

	view = s->views[source->index];

	/* What conditions do not pass need not be judged. */
	in_before = in_before && match->before != MATCH_NO;
	in_after = in_after && match->after != MATCH_NO;
	if ((in_before && match->before == MATCH_STALE) || (in_after && match->after == MATCH_STALE))
	{
		if (!d->asking)
			d->stale = list_append_unique_ptr(d->stale, s);
		return;
	}
	if ((in_before && match->before == MATCH_UNKNOWN) ||
		(in_after && match->after == MATCH_UNKNOWN))
	{
		if (!d->asking)
			d->unreadable = list_append_unique_ptr(d->unreadable, s);
		return;
	}
	if (!in_before && !in_after)
		return;

	/* What is only partly known cannot be judged. */
	if (view->rls == 1 && ((in_before && d->map->images[entry->old_image].incomplete) ||
						   (in_after && d->map->images[entry->new_image].incomplete)))
	{
		if (!d->asking)
			d->unreadable = list_append_unique_ptr(d->unreadable, s);
		return;
	}

	if (in_before)
		before = Judge(d, s, view, entry->old_image);
	if (in_after)
		after = Judge(d, s, view, entry->new_image);
	if (before <= VERDICT_ASKED || after <= VERDICT_ASKED)
	{
		/* Its connection stays where it is until the verdict is there. */
		Assert(d->asking);
		if (d->only != NULL)
			d->missing = true;
		else if (d->paced != NIL)
			s->pace_missing = d->run;
		else
		{
			if (connection->live)
				ConnectionSetBehind(connection, d->transaction->number - 1);
			connection->group = 0;
			connection->taken_out = d->run;
			connection->waits_verdict = true;
		}
		return;
	}
	if (d->asking)
		return;

	in_before = before == VERDICT_VISIBLE;
	in_after = after == VERDICT_VISIBLE;

	/* An error on a row that it may not see would tell that there is one. */
	if ((in_before && match->before == MATCH_ERROR) || (in_after && match->after == MATCH_ERROR))
	{
		Fail(d, entry, s);
		return;
	}
	if (source->nevents > 0 && d->transaction->step == NULL)
		EventsConsider(d, entry, s, view, in_before, in_after);
	if (d->messages_only)
		return;
	if (s->recheck != NULL)
		RecheckNote(s, d->map, entry, view, in_before, in_after);
	if (in_before && in_after)
		action = source->on_update;
	else if (in_after)
		action = source->on_insert;
	else if (in_before)
		action = source->on_delete;
	else
		return;
	if (action == ACTION_IGNORE)
		return;

	if (action == ACTION_MERGE && !in_before)
		complete = true;
	if ((s->no_snapshot || s->window) && action != ACTION_REMOVE)
		action = ACTION_REPLACE;
	if (action != ACTION_REMOVE && (action != ACTION_MERGE || complete) &&
		!FragmentRowIsKnown(entry, d->map, view))
	{
		d->unreadable = list_append_unique_ptr(d->unreadable, s);
		return;
	}
	FragmentAdd(d, entry, s, view, action, in_before && in_after, complete);
}

static bool
Concerns(MapEntry *entry, Instance *instance, bool *before, bool *after)
{
	*before = entry->old_in && InstanceMatches(instance, entry->old_params);
	*after = entry->new_in && InstanceMatches(instance, entry->new_params);
	return *before || *after;
}

static void
VisitSubscription(Delivery *d, MapEntry *entry, Subscription *s, bool before, bool after)
{
	AudienceMatch match;
	int rls;

	if (!DeliverTakesPart(d, s))
		return;

	/* Nothing is asked about rows that need not be judged: match these later. */
	rls = s->views[entry->source->index]->rls;
	if (rls == 2 || (d->asking && rls == 0))
		return;
	match = AudienceMatches(s->audience, d->map, entry, d->run, before, after);
	Consider(d, entry, s, &match, before, after);
}

static void
VisitAudience(Delivery *d, MapEntry *entry, Audience *audience, bool before, bool after)
{
	dlist_iter iter;

	dlist_foreach(iter, &audience->subscriptions)
		VisitSubscription(d, entry, dlist_container(Subscription, audience_node, iter.cur), before,
						  after);
}

static void
VisitInstance(Delivery *d, MapEntry *entry, Instance *instance)
{
	bool before;
	bool after;
	ListCell *lc;

	if (!Concerns(entry, instance, &before, &after))
		return;
	if (instance->everything != NULL)
		VisitAudience(d, entry, instance->everything, before, after);
	foreach(lc, AudienceCandidates(instance, d->map, entry, d->run, before, after))
		VisitAudience(d, entry, lfirst(lc), before, after);
}

static void
VisitConnection(Delivery *d, MapEntry *entry, Connection *connection)
{
	dlist_iter iter;

	dlist_foreach(iter, &connection->subscriptions)
	{
		Subscription *s = dlist_container(Subscription, connection_node, iter.cur);
		bool before;
		bool after;

		if (s->instance->channel == entry->source->channel &&
			Concerns(entry, s->instance, &before, &after))
			VisitSubscription(d, entry, s, before, after);
	}
}

/* All subscriptions that a changed row may concern. */
static void
VisitEntry(Delivery *d, MapEntry *entry)
{
	Channel *channel = entry->source->channel;
	Instance *old_instance = NULL;
	Instance *new_instance = NULL;
	ListCell *lc;

	if (d->only != NULL || d->members != NIL)
	{
		bool before;
		bool after;

		if (d->only != NULL)
		{
			if (d->only->instance->channel == channel &&
				Concerns(entry, d->only->instance, &before, &after))
				VisitSubscription(d, entry, d->only, before, after);
			return;
		}
		foreach(lc, d->members)
			VisitConnection(d, entry, lfirst(lc));
		return;
	}
	if (d->paced != NIL)
	{
		bool before;
		bool after;

		if (Concerns(entry, ((Subscription *) linitial(d->paced))->instance, &before, &after))
			foreach(lc, d->paced)
				VisitSubscription(d, entry, lfirst(lc), before, after);
		return;
	}

	if (entry->old_in)
		old_instance = InstanceFind(channel, entry->old_params);
	if (entry->new_in)
		new_instance = InstanceFind(channel, entry->new_params);
	if (channel->min_interval > 0)
	{
		if (old_instance != NULL || new_instance != NULL || InstancesStarred(channel) != NIL)
			PaceNote(channel, d->transaction->number);
		return;
	}
	if (old_instance != NULL)
		VisitInstance(d, entry, old_instance);
	if (new_instance != NULL && new_instance != old_instance)
		VisitInstance(d, entry, new_instance);
	foreach(lc, InstancesStarred(channel))
		VisitInstance(d, entry, lfirst(lc));
}

static void
Visit(Delivery *d)
{
	int i;

	for (i = 0; i < d->map->nentries; i++)
	{
		if (d->messages_only && d->map->entries[i].source->nevents == 0)
			continue;
		d->current = NIL;
		d->current_events = NULL;
		VisitEntry(d, &d->map->entries[i]);
	}
}

static void
End(const FailedSubscription *failed)
{
	SubscribeEnd(failed->subscription, "error", failed->sqlstate, failed->message,
				 "The conditions behind \"?\" cannot be evaluated on a row.");
}

/*
 * Subscriptions that cannot get all their changes get none, and are told so
 * before the frame: its position is one for all that are ready then, and a
 * client that is cut off between the two would come back with it.
 */
static void
TakeOut(Delivery *d)
{
	ListCell *lc;

	foreach(lc, d->unreadable)
	{
		FragmentsTake(d, lfirst(lc));
		SubscribeResync(lfirst(lc), "value_not_in_wal");
	}
	foreach(lc, d->stale)
	{
		FragmentsTake(d, lfirst(lc));
		SubscribeResync(lfirst(lc), "schema_changed");
	}
	foreach(lc, d->failed)
	{
		FragmentsTake(d, ((FailedSubscription *) lfirst(lc))->subscription);
		End(lfirst(lc));
	}
}

/*
 * Both passes: first everybody whose verdict is missing is taken out, then the
 * others get their frames.
 */
void
DeliverRun(Delivery *d, uint8 flags)
{
	d->run = DeliverNewRun();
	ExtensionsBegin(d);
	d->asking = true;
	Visit(d);
	d->asking = false;
	Visit(d);
	TakeOut(d);
	MessagesCollect(d);
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
	d.asking = true;
	Visit(&d);
	d.asking = false;
	Visit(&d);

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

static void
Publish(LogTransaction *transaction)
{
	Delivery d = {0};
	dlist_iter iter;

	/* What it does to subscriptions as a whole comes first. */
	PublishApply(transaction);
	EventsApply(transaction);

	/* Connections that wait for one of their subscriptions stay behind. */
	dlist_foreach(iter, &all_subscriptions_working)
		HoldBack(dlist_container(Subscription, work_node, iter.cur)->connection);

	pg_atomic_fetch_add_u64(&feed_shared->feed_messages, transaction->nmessages);
	if ((transaction->nchanges > 0 || transaction->nmessages > 0) && SubscriptionCount() > 0)
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
	d.asking = true;
	Visit(&d);
	if (d.missing)
		return DELIVER_WAITS;
	d.asking = false;
	Visit(&d);
	if (rows && (d.unreadable != NIL || d.stale != NIL))
	{
		SubscribeResync(s, d.stale != NIL ? "schema_changed" : "value_not_in_wal");
		return DELIVER_RESYNCED;
	}
	if (rows && d.failed != NIL)
	{
		End(linitial(d.failed));
		return DELIVER_ENDED;
	}
	MessagesCollect(&d);
	FragmentsSend(&d, LINK_TX_STREAM);
	*sent += d.bytes;
	return DELIVERED;
}
