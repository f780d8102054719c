/*-------------------------------------------------------------------------
 *
 * decide.c
 *		Who gets which changed rows of a transaction.
 *
 * For every row the receivers of the channels concerned are looked up, by what
 * their conditions and policies demand of it (receivers.c), and for each the four
 * cases are decided on what they may see before and after, once for all of them.
 *
 * Process: feed worker.  Memory: everything made here lives in the turn.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "audience.h"
#include "deliver.h"
#include "gateways.h"
#include "policy_rule.h"
#include "receivers.h"

/* More are evaluated a second time, for the sake of memory. */
#define MAX_DECISIONS 200000

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

void
DeliverForEach(Delivery *d, MapEntry *entry, const Receivers *receivers, Subscription *one,
			   DeliverCallback callback, const void *arg)
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
	DeliverForEach(d, entry, r->receivers, r->one, Out, &reason);
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

static void
Decide(Delivery *d, MapEntry *entry, const Reader *r, bool before, bool after)
{
	Decision decision = {entry, r->receivers, r->one, before, after};

	if (!d->asking)
		DeliverSend(d, &decision);
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

			DeliverForEach(d, entry, r->receivers, NULL, ConsiderOne, &sides);
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
				DeliverForEach(d, entry, r->receivers, r->one, Wait, NULL);
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

void
DecideEntry(Delivery *d, MapEntry *entry)
{
	if (!d->messages_only || entry->source->nevents > 0)
		VisitEntry(d, entry);
}

void
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
		DecideEntry(d, &d->map->entries[i]);
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
