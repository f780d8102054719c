/*-------------------------------------------------------------------------
 *
 * check.c
 *		May ready subscriptions go on behind a barrier?
 *
 * A barrier says that the catalogs have changed in a way that may concern
 * what an identity sees: privileges, policies, functions, new columns.  Rather
 * than send everybody a fresh snapshot, a query worker is asked once more what
 * the identity may see, without rows.  Until the answer is there the
 * connection is held in front of the barrier's transaction.  If the answer is
 * what was known the subscription goes on as if nothing had happened; if there
 * are new columns and nothing else it is extended (extend.c); otherwise it
 * starts again, with the barrier's reason.
 *
 * The answer is of a moment N behind the barrier.  Everything up to N is
 * published before it is used, so that further barriers are known: what was
 * changed and changed back meanwhile must not go unnoticed.
 *
 * Subscriptions of one identity to one instance with the same selection are
 * checked together.
 *
 * Process: feed worker.  Memory: a context for each check below feed_context.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "extend.h"
#include "gateways.h"
#include "receivers.h"
#include "subscribe.h"

#include <unistd.h>

#include "utils/memutils.h"

static dlist_head checks = DLIST_STATIC_INIT(checks);

static void
FreeCheck(Check *check)
{
	int i;

	if (check->job != 0)
		QueryCancel(check->job);
	for (i = 0; i < check->nviews; i++)
		if (check->views != NULL && check->views[i] != NULL)
			ViewRelease(check->identity, check->views[i]);
	dlist_delete(&check->node);
	IdentityRelease(check->identity);
	MemoryContextDelete(check->context);
}

/* Its connection is held no longer. */
static void
Leave(Subscription *s)
{
	dlist_delete(&s->check_node);
	s->check = NULL;
	s->connection->held--;
}

void
CheckForget(Subscription *s)
{
	ExtensionForget(s);
	if (s->check != NULL)
	{
		Check *check = s->check;

		Leave(s);
		if (dlist_is_empty(&check->subscriptions) && !check->busy)
			FreeCheck(check);
	}
}

void
CheckSubscription(Subscription *s, LogTransaction *transaction, const char *reason, bool repeatable,
				  bool functions)
{
	Connection *connection = s->connection;
	Check *check = s->check;
	const char *selection = s->selection != NULL ? s->selection : "";
	dlist_iter iter;

	/* New columns are to come, and now this; or rows that were put off. */
	if (s->extension != NULL || s->paced)
	{
		SubscribeResync(s, reason);
		return;
	}
	if (check != NULL)
	{
		if (check->last < transaction->number)
		{
			check->last = transaction->number;
			check->several = true;
		}
		check->repeatable = check->repeatable && repeatable;
		check->functions = check->functions || functions;
		return;
	}

	dlist_foreach(iter, &checks)
	{
		Check *other = dlist_container(Check, node, iter.cur);

		if (other->identity == connection->identity && other->instance == s->instance &&
			strcmp(other->selection, selection) == 0 && other->number == transaction->number)
			check = other;
	}
	if (check == NULL)
	{
		MemoryContext context = AllocSetContextCreate(feed_context, "changefeed check",
													  ALLOCSET_SMALL_SIZES);

		check = MemoryContextAllocZero(context, sizeof(Check));
		check->context = context;
		check->identity = connection->identity;
		check->identity->refcount++;
		check->instance = s->instance;
		check->selection = MemoryContextStrdup(context, selection);
		check->number = transaction->number;
		check->last = transaction->number;
		check->repeatable = repeatable;
		check->reason = reason;
		dlist_init(&check->subscriptions);
		dlist_push_tail(&checks, &check->node);
	}
	check->repeatable = check->repeatable && repeatable;
	check->functions = check->functions || functions;
	s->check = check;
	dlist_push_tail(&check->subscriptions, &s->check_node);
	if (connection->live)
		ConnectionSetBehind(connection, transaction->number - 1);
	connection->held++;
}

/* ---- asking ---- */

static void
OnResult(void *arg, uint64 job, QueryKind kind, WireReader *body)
{
	Check *check = arg;
	MemoryContext old = MemoryContextSwitchTo(check->context);

	switch (kind)
	{
		case QUERY_DESCRIBE:
			SubscribeReadView(check->identity, check->instance->channel, NULL, check->views, body);
			break;
		case QUERY_SNAPSHOT:
			SubscribeReadSnapshot(&check->snapshot, body);
			break;
		case QUERY_PAGE:
		{
			uint16 index = WireGetU16(body);
			WireBytes rows = WireGetBytes(body);

			if (body->failed || index >= check->nviews)
				ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
								errmsg("malformed page from a query worker")));
			ExtensionReadKeys(check, index, rows.data, rows.length);
		}
		break;
		case QUERY_FILE:
		{
			WireBytes path = WireGetBytes(body);

			(void) unlink(pnstrdup(path.data, path.length));
			check->too_large = true;
		}
		break;
		case QUERY_ERROR:
		{
			WireBytes sqlstate = WireGetBytes(body);
			WireBytes message = WireGetBytes(body);
			WireBytes hint = WireGetBytes(body);

			check->job = 0;
			check->answered = true;
			check->sqlstate = pnstrdup(sqlstate.data, sqlstate.length);
			check->message = pnstrdup(message.data, message.length);
			check->hint = hint.length > 0 ? pnstrdup(hint.data, hint.length) : NULL;
		}
		break;
		case QUERY_DONE:
			check->job = 0;
			check->answered = true;
			break;
		default:
			break;
	}
	MemoryContextSwitchTo(old);
}

static void
Ask(Check *check, bool keys)
{
	MemoryContext old = MemoryContextSwitchTo(check->context);
	StringInfoData body;
	int i;

	for (i = 0; i < check->nviews; i++)
		if (check->views[i] != NULL)
			ViewRelease(check->identity, check->views[i]);
	check->nviews = check->instance->channel->nviews;
	check->views = palloc0(sizeof(View *) * Max(check->nviews, 1));
	check->keys = palloc0(sizeof(List *) * Max(check->nviews, 1));
	check->asked_keys = keys;
	check->asked = LogPublished();
	check->answered = false;
	MemoryContextSwitchTo(old);

	SubscribeQuestion(check->instance, check->identity, check->selection,
					  keys ? QUERY_WITH_ROWS | QUERY_WITH_KEYS : QUERY_WITH_POSITION, &body);

	/* Live changes wait for it, but a scan of a table would keep others. */
	check->job = QuerySubmit(QUERY_SUBSCRIBE, body.data, body.len, keys ? QUERY_LATER : QUERY_FIRST,
							 OnResult, check);
	pfree(body.data);
}

/* ---- using the answer ---- */

typedef enum Outcome
{
	OUTCOME_SAME,
	OUTCOME_ADDED, /* new columns, nothing else */
	OUTCOME_OTHER
} Outcome;

static bool
SameOids(const Oid *a, int na, const Oid *b, int nb)
{
	return na == nb && (na == 0 || memcmp(a, b, sizeof(Oid) * na) == 0);
}

static Outcome
CompareViews(const View *before, const View *now)
{
	if (before->rls != now->rls || before->casts != now->casts || before->recheck != now->recheck ||
		before->nkey != now->nkey || memcmp(before->key, now->key, sizeof(int16) * now->nkey) != 0)
		return OUTCOME_OTHER;

	/* Without policies the fingerprint is about nothing. */
	if (now->rls == 1 && before->fingerprint != now->fingerprint)
		return OUTCOME_OTHER;
	if (before->rule != NULL && now->rule != NULL && before->rule != now->rule)
		return OUTCOME_OTHER;

	/* What happened to others since the answer was nobody's concern (join_check). */
	if (!SameOids(before->dependencies, before->ndependencies, now->dependencies,
				  now->ndependencies))
		return OUTCOME_OTHER;
	if (now->ncolumns < before->ncolumns ||
		memcmp(before->columns, now->columns, sizeof(int16) * before->ncolumns) != 0)
		return OUTCOME_OTHER;
	return now->ncolumns == before->ncolumns ? OUTCOME_SAME : OUTCOME_ADDED;
}

static Outcome
Compare(Check *check, Subscription *s)
{
	Outcome outcome = OUTCOME_SAME;
	int i;

	for (i = 0; i < check->nviews; i++)
	{
		Outcome one;

		if (s->views[i] == NULL || check->views[i] == NULL)
			return OUTCOME_OTHER;
		one = CompareViews(s->views[i], check->views[i]);
		outcome = Max(outcome, one);
	}
	return outcome;
}

/* Do its policies call functions into which nobody can look? */
static bool
IsOpaque(const Check *check)
{
	int i;

	for (i = 0; i < check->nviews; i++)
		if (check->views[i]->narrowing_length > 0 && check->views[i]->narrowing[0] != 0)
			return true;
	return false;
}

/* It goes on with what is known now. */
static void
GoOn(Check *check, Subscription *s)
{
	int i;

	ReceiversLeave(s);
	for (i = 0; i < check->nviews; i++)
	{
		ViewRelease(check->identity, s->views[i]);
		s->views[i] = ViewIntern(check->identity, check->views[i]);
	}
	ReceiversJoin(s);
	Leave(s);

	/* What such a function calls is in no fingerprint: look at the rows. */
	if (check->functions && IsOpaque(check) && !RecheckSoon(s))
		SubscribeResync(s, check->reason);
}

static void
ResyncAll(Check *check, const char *reason)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &check->subscriptions)
		SubscribeResync(dlist_container(Subscription, check_node, iter.cur), reason);
}

/* True: the check is over. */
static bool
UseAnswer(Check *check)
{
	dlist_mutable_iter iter;
	uint64 until;
	bool added = false;

	if (check->sqlstate != NULL)
	{
		/* What others than privileges refuse may be due to the parameters. */
		if (strcmp(check->sqlstate, "42501") != 0)
			ResyncAll(check, check->reason);
		else
			dlist_foreach_modify(iter, &check->subscriptions)
				SubscribeEnd(dlist_container(Subscription, check_node, iter.cur), "error",
							 check->sqlstate, check->message, check->hint);
		return true;
	}
	if (!LogReached(check->snapshot.lsn))
		return false;
	until = LogNumberAt(check->snapshot.lsn);
	if (check->last > check->asked)
	{
		/* Another one behind the answer. */
		Ask(check, false);
		return false;
	}
	if (check->several && !check->repeatable)
	{
		ResyncAll(check, check->reason);
		return true;
	}

	dlist_foreach_modify(iter, &check->subscriptions)
	{
		Subscription *s = dlist_container(Subscription, check_node, iter.cur);

		switch (Compare(check, s))
		{
			case OUTCOME_SAME:
				GoOn(check, s);
				break;
			case OUTCOME_ADDED:
				if (!check->several && !check->too_large &&
					!(check->functions && IsOpaque(check)) && ExtensionPossible(check, s))
					added = true;
				else
					SubscribeResync(s, check->reason);
				break;
			case OUTCOME_OTHER:
				SubscribeResync(s, check->reason);
				break;
		}
	}
	if (!added)
		return true;
	if (!check->asked_keys)
	{
		Ask(check, true);
		return false;
	}

	/* Verdicts may be missing. */
	switch (ExtensionPrepare(check, until))
	{
		case EXTENSION_WAITS:
			return false;
		case EXTENSION_IMPOSSIBLE:
			ResyncAll(check, check->reason);
			return true;
		case EXTENSION_READY:
			dlist_foreach_modify(iter, &check->subscriptions)
			{
				Subscription *s = dlist_container(Subscription, check_node, iter.cur);

				ExtensionGive(check, s);
				Leave(s);
			}
			break;
	}
	return true;
}

void
ChecksAdvance(void)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &checks)
	{
		Check *check = dlist_container(Check, node, iter.cur);
		bool over = false;

		/* Its last subscription must not take it away while it is used. */
		check->busy = true;
		if (check->answered)
			over = UseAnswer(check);
		else if (check->job == 0)
			Ask(check, false);
		check->busy = false;
		if (over || dlist_is_empty(&check->subscriptions))
			FreeCheck(check);
	}
}
