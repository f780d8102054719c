/*-------------------------------------------------------------------------
 *
 * deliver.c
 *		From a published transaction to frames.
 *
 * For every row that a transaction changed (map.c) the receivers of the channels
 * concerned are looked up, by what their conditions and policies demand of it
 * (receivers.c), and for each the four cases are decided on what they may see
 * before and after, once for all of them.  Those that get the same bytes share
 * one fragment; the gateway joins the fragments of a transaction into one frame
 * per connection.
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
#include "policy_rule.h"
#include "publish.h"
#include "receivers.h"

/* More are evaluated a second time, for the sake of memory. */
#define MAX_DECISIONS 200000

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

/* ---- who gets an entry ---- */

/* Some of whom one thing is true, or one of them. */
typedef struct Reader
{
	Receivers *receivers; /* NULL: */
	Subscription *one;
	Audience *audience;
	View *view;
	PolicyRule *rule; /* NULL: there is none */
	bool judged;	  /* receivers: query workers are asked for all of them */
} Reader;

typedef void (*ReaderCallback)(Delivery *d, MapEntry *entry, Subscription *s, const void *arg);

/* All of them; `callback` must not change who is live. */
static void
ForEach(Delivery *d, MapEntry *entry, const Receivers *receivers, Subscription *one,
		ReaderCallback callback, const void *arg)
{
	int g;
	int i;

	if (one != NULL)
		callback(d, entry, one, arg);
	else
		for (g = 0; g < gateway_count; g++)
			for (i = 0; i < receivers->parts[g].n; i++)
				callback(d, entry, receivers->parts[g].subscriptions[i], arg);
}

OutSubscription *
DeliverOut(Delivery *d, Subscription *s, OutReason reason)
{
	OutSubscription *out;
	bool found;

	if (d->out_table == NULL)
	{
		HASHCTL ctl;

		ctl.keysize = sizeof(Subscription *);
		ctl.entrysize = sizeof(OutSubscription);
		ctl.hcxt = CurrentMemoryContext;
		d->out_table = hash_create("changefeed out", 16, &ctl,
								   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	out = hash_search(d->out_table, &s, HASH_ENTER, &found);
	if (!found)
	{
		out->reason = reason;
		out->sqlstate = out->message = NULL;
		d->out = lappend(d->out, out);
	}
	else
		out->reason = Max(out->reason, reason);
	return out;
}

static void
Out(Delivery *d, MapEntry *entry, Subscription *s, const void *arg)
{
	OutReason reason = *(const OutReason *) arg;
	OutSubscription *out = DeliverOut(d, s, reason);
	const char *sqlstate;
	const char *message;

	/* Of this row: the next one to fail may be somebody else's. */
	if (reason == OUT_FAILED && out->message == NULL)
	{
		AudienceError(s->audience, entry->source->index, &sqlstate, &message);
		out->sqlstate = pstrdup(sqlstate);
		out->message = pstrdup(message);
	}
}

static void
OutAll(Delivery *d, MapEntry *entry, const Reader *r, OutReason reason)
{
	ForEach(d, entry, r->receivers, r->one, Out, &reason);
}

/* It stays where it is until the verdict is there. */
static void
Wait(Delivery *d, MapEntry *entry, Subscription *s, const void *arg)
{
	Connection *connection = s->connection;

	Assert(d->asking);
	if (d->only != NULL)
		d->missing = true;
	else if (d->paced != NIL)
		s->pace_missing = d->run;
	else if (connection->taken_out != d->run)
	{
		connection->taken_out = d->run;
		d->waiting = lappend(d->waiting, connection);
	}
}

/* Do query workers say that the image is visible? */
static Verdict
Judge(Delivery *d, Identity *identity, View *view, int image)
{
	Verdict verdict = VerdictGet(d->map, identity, view, image, d->asking);

	if (d->asking && verdict != VERDICT_UNKNOWN && verdict != VERDICT_ASKED)
		counters.verdicts_cached++;
	return verdict;
}

/* What casts make of a visible row comes with a query worker's verdict. */
static Verdict
JudgeByRule(Delivery *d, const Reader *r, int image)
{
	Verdict verdict = PolicyRuleJudge(r->rule, d->map, image);

	if (verdict == VERDICT_VISIBLE && r->view->casts != NULL)
		return VERDICT_UNKNOWN;
	if (d->asking && verdict != VERDICT_UNKNOWN)
		counters.verdicts_inline += r->one != NULL ? 1 : r->receivers->nlive;
	return verdict;
}

static void ConsiderOne(Delivery *d, MapEntry *entry, Subscription *s, const void *arg);
static void Send(Delivery *d, const Decision *decision);

static void
Decide(Delivery *d, MapEntry *entry, const Reader *r, bool before, bool after)
{
	Decision decision = {entry, r->receivers, r->one, before, after};

	if (!d->asking)
		Send(d, &decision);
	else if (entry - d->map->entries < d->undecided)
	{
		if (d->ndecisions == d->maxdecisions)
		{
			d->maxdecisions = Max(64, d->maxdecisions * 2);
			d->decisions = d->decisions == NULL
							   ? palloc(sizeof(Decision) * d->maxdecisions)
							   : repalloc_huge(d->decisions, sizeof(Decision) * d->maxdecisions);
		}
		d->decisions[d->ndecisions++] = decision;
	}
}

typedef struct Sides
{
	bool before;
	bool after;
} Sides;

/*
 * One changed row, for receivers or one subscription.  `in_before`, `in_after`:
 * the images that belong to their instance.
 */
static void
Consider(Delivery *d, MapEntry *entry, const Reader *r, bool in_before, bool in_after)
{
	View *view = r->view;
	Verdict before = view->rls == 0 ? VERDICT_VISIBLE : VERDICT_UNKNOWN;
	Verdict after = before;
	AudienceMatch match;

	if (view->rls == 2)
		return;

	/* A rule costs less than conditions, and what it hides need not be matched. */
	if (view->rls == 1 && r->rule != NULL)
	{
		if (in_before)
			before = JudgeByRule(d, r, entry->old_image);
		if (in_after)
			after = JudgeByRule(d, r, entry->new_image);
		if (r->receivers != NULL && !r->judged &&
			((in_before && before == VERDICT_UNKNOWN) || (in_after && after == VERDICT_UNKNOWN)))
		{
			/* Each identity has to ask query workers. */
			Sides sides = {in_before, in_after};

			ForEach(d, entry, r->receivers, NULL, ConsiderOne, &sides);
			return;
		}
		in_before = in_before && before != VERDICT_HIDDEN;
		in_after = in_after && after != VERDICT_HIDDEN;
		if (!in_before && !in_after)
			return;
	}

	/* What conditions do not pass need not be judged by query workers. */
	match = AudienceMatches(r->audience, d->map, entry, d->run, in_before, in_after);
	in_before = in_before && match.before != MATCH_NO;
	in_after = in_after && match.after != MATCH_NO;
	if (!in_before && !in_after)
		return;
	if ((in_before && match.before == MATCH_STALE) || (in_after && match.after == MATCH_STALE))
	{
		OutAll(d, entry, r, OUT_STALE);
		return;
	}
	if ((in_before && match.before == MATCH_UNKNOWN) || (in_after && match.after == MATCH_UNKNOWN))
	{
		OutAll(d, entry, r, OUT_UNREADABLE);
		return;
	}

	if ((in_before && before == VERDICT_UNKNOWN) || (in_after && after == VERDICT_UNKNOWN))
	{
		Identity *identity = r->one != NULL ? r->one->connection->identity : r->receivers->identity;
		bool asks_before = in_before && before == VERDICT_UNKNOWN;
		bool asks_after = in_after && after == VERDICT_UNKNOWN;

		/* What is only partly known cannot be judged. */
		if ((asks_before && d->map->images[entry->old_image].incomplete) ||
			(asks_after && d->map->images[entry->new_image].incomplete))
		{
			OutAll(d, entry, r, OUT_UNREADABLE);
			return;
		}
		if (asks_before)
			before = Judge(d, identity, view, entry->old_image);
		if (asks_after)
			after = Judge(d, identity, view, entry->new_image);
		if ((asks_before && before <= VERDICT_ASKED) || (asks_after && after <= VERDICT_ASKED))
		{
			/* There was no room to ask. */
			bool refused = (asks_before && before == VERDICT_UNKNOWN) ||
						   (asks_after && after == VERDICT_UNKNOWN);

			if (refused && d->asking && !d->messages_only &&
				VerdictsTooMany(counters.verdicts_asked - d->asked))
				d->too_many = true;
			if (d->too_many && (refused || !d->asking))
				OutAll(d, entry, r, OUT_TOO_MANY);
			else
				ForEach(d, entry, r->receivers, r->one, Wait, NULL);
			return;
		}
	}
	in_before = in_before && before == VERDICT_VISIBLE;
	in_after = in_after && after == VERDICT_VISIBLE;

	/* An error on a row that it may not see would tell that there is one. */
	if ((in_before && match.before == MATCH_ERROR) || (in_after && match.after == MATCH_ERROR))
		OutAll(d, entry, r, OUT_FAILED);
	else if (in_before || in_after)
		Decide(d, entry, r, in_before, in_after);
}

static void
ConsiderOne(Delivery *d, MapEntry *entry, Subscription *s, const void *arg)
{
	const Sides *sides = arg;
	Reader r = {NULL, s, s->audience, NULL, NULL, true};

	if (!DeliverTakesPart(d, s))
		return;
	r.view = s->views[entry->source->index];
	r.rule = r.view->rule;
	Consider(d, entry, &r, sides->before, sides->after);
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

static void
Send(Delivery *d, const Decision *decision)
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
		ForEach(d, entry, r, s, NoteEvents, decision);
	if (d->messages_only)
		return;
	if (view->recheck != 0)
		ForEach(d, entry, r, s, NoteRecheck, decision);
	if (decision->before && decision->after)
		action = source->on_update;
	else if (decision->after)
		action = source->on_insert;
	else
		action = source->on_delete;
	if (action == ACTION_IGNORE)
		return;

	if (action == ACTION_MERGE && !decision->before)
		complete = true;
	if (replaces && action != ACTION_REMOVE)
		action = ACTION_REPLACE;
	if (action != ACTION_REMOVE && !FragmentRowFits(entry, d->map, view))
	{
		reason = OUT_STALE;
		ForEach(d, entry, r, s, Unreadable, &reason);
		return;
	}
	if (action != ACTION_REMOVE && (action != ACTION_MERGE || complete) &&
		!FragmentRowIsKnown(entry, d->map, view))
	{
		ForEach(d, entry, r, s, Unreadable, &reason);
		return;
	}
	if (!FragmentAdd(d, entry, s, r, action, decision->before && decision->after, complete))
	{
		reason = OUT_STALE;
		ForEach(d, entry, r, s, Unreadable, &reason);
	}
}

/* ---- whom an entry may concern ---- */

static bool
Concerns(MapEntry *entry, Instance *instance, Sides *sides)
{
	sides->before = entry->old_in && InstanceMatches(instance, entry->old_params);
	sides->after = entry->new_in && InstanceMatches(instance, entry->new_params);
	return sides->before || sides->after;
}

/* Three cache lines: what was judged last, and the constants. */
static inline void
PrefetchRule(const PolicyRule *rule)
{
	if (rule == NULL)
		return;
	__builtin_prefetch(rule);
	__builtin_prefetch((const char *) rule + 64);
	__builtin_prefetch((const char *) rule + 128);
}

static void
VisitInstance(Delivery *d, MapEntry *entry, Instance *instance)
{
	Sides sides;
	void **found;
	int n;
	int i;

	if (!Concerns(entry, instance, &sides))
		return;
	found = DemandCandidates(instance, d->map, entry, d->run, sides.before, sides.after, &n);
	for (i = 0; i < n; i++)
	{
		Receivers *receivers = found[i];
		ReceiversSource *source = &receivers->sources[entry->source->index];
		Reader r = {receivers,	  NULL,			receivers->audience,
					source->view, source->rule, source->judged};

		/* Thousands that have to be tried are not in the processor's cache. */
		if (i + 12 < n)
			__builtin_prefetch(found[i + 12]);
		if (i + 8 < n)
			__builtin_prefetch(&((Receivers *) found[i + 8])->sources[entry->source->index].view);
		if (i + 4 < n)
			PrefetchRule(((Receivers *) found[i + 4])->sources[entry->source->index].rule);
		if (receivers->nlive > 0)
			Consider(d, entry, &r, sides.before, sides.after);
	}
}

static void
VisitConnection(Delivery *d, MapEntry *entry, Connection *connection)
{
	dlist_iter iter;

	dlist_foreach(iter, &connection->subscriptions)
	{
		Subscription *s = dlist_container(Subscription, connection_node, iter.cur);
		Sides sides;

		if (s->instance->channel == entry->source->channel && Concerns(entry, s->instance, &sides))
			ConsiderOne(d, entry, s, &sides);
	}
}

/* All subscriptions that a changed row may concern. */
static void
VisitEntry(Delivery *d, MapEntry *entry)
{
	Channel *channel = entry->source->channel;
	Instance *old_instance = NULL;
	Instance *new_instance = NULL;
	Sides sides;
	ListCell *lc;

	if (d->only != NULL)
	{
		if (d->only->instance->channel == channel && Concerns(entry, d->only->instance, &sides))
			ConsiderOne(d, entry, d->only, &sides);
		return;
	}
	if (d->members != NIL)
	{
		foreach(lc, d->members)
			VisitConnection(d, entry, lfirst(lc));
		return;
	}
	if (d->paced != NIL)
	{
		if (Concerns(entry, ((Subscription *) linitial(d->paced))->instance, &sides))
			foreach(lc, d->paced)
				ConsiderOne(d, entry, lfirst(lc), &sides);
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

static bool
IsMeant(const Delivery *d, const MapEntry *entry)
{
	return !d->messages_only || entry->source->nevents > 0;
}

/*
 * Who gets which entry.  All verdicts that a connection lacks are asked for at
 * once, and those that lack any are taken out: they are behind now.  What was
 * decided is kept, so that nothing is evaluated twice, but not without limit.
 */
static void
DecideAll(Delivery *d)
{
	ListCell *lc;
	int i;

	d->asking = true;
	d->asked = counters.verdicts_asked;
	d->undecided = d->map->nentries;
	for (i = 0; i < d->map->nentries; i++)
	{
		if (d->ndecisions > MAX_DECISIONS)
			d->undecided = Min(d->undecided, i);
		if (IsMeant(d, &d->map->entries[i]))
			VisitEntry(d, &d->map->entries[i]);
	}
	d->asking = false;
	foreach(lc, d->waiting)
	{
		Connection *connection = lfirst(lc);

		if (connection->live)
			ConnectionSetBehind(connection, d->transaction->number - 1);
		connection->group = 0;
		connection->waits_verdict = true;
	}

	/* Most are theirs who get snapshots now; the others ask again. */
	if (d->too_many)
		VerdictsWithdraw(d->map);
}

static void
BeginEntry(Delivery *d)
{
	static uint64 last_visit = 0;

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
		Send(d, &d->decisions[i]);
	}
	for (i = d->undecided; i < d->map->nentries; i++)
	{
		BeginEntry(d);
		if (IsMeant(d, &d->map->entries[i]))
			VisitEntry(d, &d->map->entries[i]);
	}

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
