/*-------------------------------------------------------------------------
 *
 * verdicts_accept.c
 *		Accepting what query workers say of judged rows.
 *
 * A verdict that read tables (the policy's dependencies) was given on a
 * snapshot later than the row's commit.  It is accepted once everything up to
 * that snapshot has been decoded and no transaction behind the row's has done
 * something to a dependency that can make a difference (dependencies.c);
 * otherwise the subscriptions concerned are resynced.  The same holds for what
 * policies find by name, in functions and as labels, of which the fingerprint
 * knows nothing.
 *
 * Process: feed worker.  Memory: what casts gave goes with the transaction's map.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "verdicts_internal.h"

#include "utils/memutils.h"

void
VerdictsWake(Identity *identity)
{
	dlist_iter iter;

	dlist_foreach(iter, &identity->connections)
		dlist_container(Connection, identity_node, iter.cur)->waits_verdict = false;
	PaceWake();
}

static List *
SubscriptionsOf(Identity *identity, Oid relid)
{
	List *result = NIL;
	dlist_iter iter;
	dlist_iter iter2;

	dlist_foreach(iter, &identity->connections)
	{
		Connection *connection = dlist_container(Connection, identity_node, iter.cur);

		dlist_foreach(iter2, &connection->subscriptions)
		{
			Subscription *s = dlist_container(Subscription, connection_node, iter2.cur);

			if (EventsHasSource(s, relid))
				result = lappend(result, s);
		}
	}
	return result;
}

/* Forget that the questions were asked, so that they are asked again. */
static void
PutBack(Question *from, int n)
{
	int i;

	for (i = 0; i < n; i++)
	{
		uint8 *state = VerdictStateOf(&from[i]);

		if (state != NULL && *state == VERDICT_ASKED)
			*state = VERDICT_UNKNOWN;
	}
}

static void
ResyncAll(Identity *identity, Oid relid, const char *reason)
{
	ListCell *lc;

	foreach(lc, SubscriptionsOf(identity, relid))
		SubscribeResync(lfirst(lc), reason);
}

/*
 * Takes over what casts gave for a visible image; `set` is NULL when nobody
 * needs it any more.  False: malformed.
 */
static bool
TakeTexts(VerdictSet *set, const Question *q, WireReader *r)
{
	int k;

	for (k = 0; q->casts != NULL && k < q->casts->n; k++)
	{
		WireBytes text = WireGetBytes(r);
		char *copy;

		if (r->failed || text.length == 0)
			return false;
		if (set == NULL)
			continue;
		copy = MemoryContextAlloc(PaceTransaction(q->number)->map->context, text.length + 1);
		memcpy(copy, text.data, text.length);
		copy[text.length] = '\0';
		set->texts[q->image * q->casts->n + k] = copy;
	}
	return true;
}

/* Has something happened since the row's commit that may change the verdict? */
static bool
IsOutdated(const Question *q, const Oid *dependencies, int ndependencies, uint64 until)
{
	LogTransaction *transaction = PaceTransaction(q->number);

	return ndependencies > 0 && transaction != NULL && transaction->map != NULL &&
		   DependencyOutdates(q->identity, q->relid, q->fingerprint, dependencies, ndependencies,
							  transaction, q->image, until);
}

/* May that transaction have given another meaning to what policies find by name? */
static bool
ChangesNames(Subscription *s, uint64 number)
{
	LogTransaction *transaction = LogGet(number);
	int i;

	if (transaction == NULL)
		return true;
	if (transaction->nbarriers == 0)
		return false;
	if (number <= LogPublished())
		return EventConcerns(s, transaction, true) != NULL;
	for (i = 0; i < transaction->nbarriers; i++)
		switch (transaction->barriers[i].kind)
		{
			case BARRIER_TYPES:
			case BARRIER_FUNCTIONS:
			case BARRIER_SCHEMA:
			case BARRIER_ALL:
				return true;
			default:
				break;
		}
	return false;
}

/*
 * The worker may have found by name what nobody has been told of yet.  Who is
 * ready has been told of what is published.  False: it concerns nobody.
 */
static bool
ResyncNamed(Identity *identity, Oid relid, uint64 from, uint64 until)
{
	List *concerned = NIL;
	ListCell *lc;
	bool any = false;
	uint64 number;

	/* Nearly always there is no barrier at all. */
	for (number = from + 1; number <= until && !any; number++)
		any = LogGet(number) == NULL || LogGet(number)->nbarriers > 0;
	if (!any)
		return false;

	foreach(lc, SubscriptionsOf(identity, relid))
	{
		Subscription *s = lfirst(lc);

		if (s->state != SUB_READY && s->state != SUB_CATCHUP)
			continue;
		number = Max(from, s->state == SUB_READY ? LogPublished() : s->cursor);
		while (++number <= until)
			if (ChangesNames(s, number))
			{
				concerned = lappend(concerned, s);
				break;
			}
	}
	foreach(lc, concerned)
		SubscribeResync(lfirst(lc), "policy_changed");
	return concerned != NIL;
}

/* There is no verdict; a snapshot shows what they may see. */
static void
Resync(Question *from, int n, const char *reason)
{
	PutBack(from, n);
	ResyncAll(from->identity, from->relid, reason);
	VerdictsWake(from->identity);
}

/* Takes over what the answer says about one identity. */
static void
AcceptIdentity(Batch *batch, int index, WireReader *r)
{
	Question *from = &batch->questions[batch->first[index]];
	int n = batch->first[index + 1] - batch->first[index];
	Identity *identity = from->identity;
	uint64 until = LogNumberAt(batch->parts[index].lsn);
	uint8 status = WireGetU8(r);
	ListCell *lc;
	int i;

	if (status < lengthof(counters.verdict_answers))
		counters.verdict_answers[status]++;
	switch (status)
	{
		case QUERY_VERDICT_OK:
		{
			uint32 ndependencies;
			Oid *dependencies;
			WireBytes bits;
			bool outdated = false;
			bool named;

			(void) WireGetU64(r);
			named = WireGetU8(r) != 0;
			ndependencies = WireGetU32(r);
			if (r->failed || ndependencies > r->length)
				break;
			dependencies = palloc(sizeof(Oid) * Max(ndependencies, 1));
			for (i = 0; i < (int) ndependencies; i++)
				dependencies[i] = WireGetU32(r);
			bits = WireGetBytes(r);
			if (r->failed || bits.length * 8 < (size_t) n)
				break;

			for (i = 0; i < n && !outdated; i++)
				outdated = IsOutdated(&from[i], dependencies, ndependencies, until);
			if (outdated)
			{
				LogTransaction *transaction = PaceTransaction(from->number);

				PutBack(from, n);
				if (transaction == NULL ||
					!DependencyResync(identity, batch->relid, transaction->number, until))
					ResyncAll(identity, batch->relid, "dependency_changed");
				VerdictsWake(identity);
				return;
			}
			if (named)
			{
				uint64 first = until;

				for (i = 0; i < n; i++)
				{
					LogTransaction *transaction = PaceTransaction(from[i].number);

					if (transaction != NULL)
						first = Min(first, transaction->number);
				}
				if (ResyncNamed(identity, batch->relid, first, until))
				{
					PutBack(from, n);
					VerdictsWake(identity);
					return;
				}
			}
			for (i = 0; i < n; i++)
			{
				VerdictSet *set = VerdictSetOf(&from[i]);
				bool visible = ((uint8) bits.data[i / 8] & (1 << (i % 8))) != 0;

				if (visible && !TakeTexts(set, &from[i], r))
					break;
				if (set != NULL)
					*VerdictStateOf(&from[i]) = visible ? VERDICT_VISIBLE : VERDICT_HIDDEN;
			}
			if (i < n)
				break;
			VerdictsWake(identity);
			return;
		}
		case QUERY_VERDICT_ERROR:
		{
			WireBytes sqlstate = WireGetBytes(r);
			WireBytes message = WireGetBytes(r);

			if (r->failed)
				break;
			PutBack(from, n);
			foreach(lc, SubscriptionsOf(identity, batch->relid))
				SubscribeEnd(lfirst(lc), "policy_error", pnstrdup(sqlstate.data, sqlstate.length),
							 pnstrdup(message.data, message.length), NULL);
			VerdictsWake(identity);
			return;
		}
		case QUERY_VERDICT_OUTDATED:
			Resync(from, n, "policy_changed");
			return;
		case QUERY_VERDICT_LOCKED:

			/*
			 * Somebody holds the table.  A snapshot has to wait for it just as
			 * well, but then it is this subscription alone that waits, not its
			 * whole connection.
			 */
			Resync(from, n, "locked");
			return;
		case QUERY_VERDICT_UNDECIDED:
			Resync(from, n, "policy_undecided");
			return;
		default:
			break;
	}
	ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
					errmsg("malformed verdicts from a query worker")));
}

/* Did the verdict read tables, or names?  Others need not wait for the stream. */
static bool
WaitsForStream(const Part *part)
{
	WireReader r = WireReaderInit(part->answer, part->length);

	if (WireGetU8(&r) != QUERY_VERDICT_OK)
		return false;
	(void) WireGetU64(&r);
	if (WireGetU8(&r) != 0)
		return true;
	return WireGetU32(&r) > 0 || r.failed;
}

bool
VerdictsAccept(Batch *batch)
{
	int i;

	for (i = 0; i < batch->nidentities; i++)
	{
		Part *part = &batch->parts[i];
		WireReader r = WireReaderInit(part->answer, part->length);

		if (!part->answered || part->accepted ||
			(WaitsForStream(part) && !LogReceivedUpTo(part->lsn)))
			continue;
		part->accepted = true;
		batch->open--;
		AcceptIdentity(batch, i, &r);
		pfree(part->answer);
		part->answer = NULL;
	}
	return batch->open == 0;
}
