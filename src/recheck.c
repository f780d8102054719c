/*-------------------------------------------------------------------------
 *
 * recheck.c
 *		Rights that change without a trace in the WAL.
 *
 * A policy can depend on time, or on what a function reads of which nobody
 * knows.  What such a policy shows is looked at again every
 * changefeed.recheck_interval, and the client gets a `resync` only if it is not
 * what it has.
 *
 * To know what the client has without keeping it, there is a digest: the sum of
 * a keyed hash over the JSON of all rows.  The snapshot comes with one, and each
 * change that is delivered adds the new row's hash and subtracts the old one's.
 * A query worker then computes the digest of the visible rows on a snapshot of
 * its own.  What was delivered and is not in that snapshot is taken off again,
 * decided by xid as ever, so both are of the same set of transactions and have
 * to be equal, but for a collision of 128 bits.
 *
 * Where the digest is lost (the gateway dropped what it was sent, a row was not
 * known in full) the next look is a `resync` in any case; so it is for clients
 * that wanted no snapshot.
 *
 * Process: feed worker.  Memory: feed_context, with the subscription.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "subscribe.h"

#include "common/hashfn.h"
#include "utils/memutils.h"

/* A look that was not possible is tried again after this time (ms). */
#define RECHECK_AGAIN 500

typedef struct RecheckDelta
{
	uint64 number; /* of the transaction */
	TransactionId xid;
	RowDigest digest;
} RecheckDelta;

struct Recheck
{
	dlist_node node; /* in the list of all */
	Subscription *subscription;
	RowDigest digest; /* of the rows that the client has */
	bool exact;		  /* that is known */
	TimestampTz due;

	/* A look that is under way. */
	uint64 job;
	bool answered;
	bool differs; /* in columns, policies, memberships */
	bool again;	  /* it failed for a passing reason */
	RowDigest found;
	SubscribeSnapshot snapshot;
	int ndeltas; /* what was delivered since the question */
	int maxdeltas;
	RecheckDelta *deltas;
};

static dlist_head rechecks = DLIST_STATIC_INIT(rechecks);

/* Jobs; an answer may wait for a slow client, which must not stop the others. */
static int running;

/* Nobody is looked at before that time, unless somebody's answer is there. */
static TimestampTz next_due;
static bool answers;

/* ---- Digests ---- */

/* Nobody who writes rows shall be able to make sums come out right. */
uint64
RecheckSeed(void)
{
	static uint64 seed;

	while (seed == 0)
		if (!pg_strong_random(&seed, sizeof(seed)))
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not generate random numbers")));
	return seed;
}

void
RowDigestAdd(RowDigest *digest, uint64 seed, int source, const char *row, int length, bool add)
{
	uint64 a = hash_bytes_extended((const unsigned char *) row, length, seed + source);
	uint64 b = hash_bytes_extended((const unsigned char *) row, length, ~seed + source);

	digest->a += add ? a : -a;
	digest->b += add ? b : -b;
}

static void
Subtract(RowDigest *from, const RowDigest *digest)
{
	from->a -= digest->a;
	from->b -= digest->b;
}

/* ---- The life of a subscription's digest ---- */

static void
EndLook(Recheck *r)
{
	if (r->job != 0)
	{
		QueryCancel(r->job);
		running--;
	}
	r->job = 0;
	r->answered = false;
	if (r->snapshot.xip != NULL)
		pfree(r->snapshot.xip);
	r->snapshot.xip = NULL;
	r->ndeltas = 0;
}

void
RecheckForget(Subscription *s)
{
	Recheck *r = s->recheck;

	if (r == NULL)
		return;
	EndLook(r);
	dlist_delete(&r->node);
	if (r->deltas != NULL)
		pfree(r->deltas);
	pfree(r);
	s->recheck = NULL;
}

static int
Needs(Subscription *s)
{
	int needs = 0;
	int i;

	for (i = 0; s->views != NULL && i < s->instance->channel->nviews; i++)
		needs |= s->views[i]->recheck;
	return needs;
}

bool
RecheckNeeded(Subscription *s)
{
	return Needs(s) != 0;
}

bool
RecheckNeedsRows(Subscription *s)
{
	return (Needs(s) & RECHECK_ROWS) != 0;
}

static void
Later(Recheck *r)
{
	r->due = TimestampTzPlusMilliseconds(feed_now, (int64) setting_recheck_interval * 1000);
}

void
RecheckBegin(Subscription *s)
{
	Recheck *r;

	RecheckForget(s);
	if (Needs(s) == 0)
		return;
	r = MemoryContextAllocZero(feed_context, sizeof(Recheck));
	r->subscription = s;
	r->digest = s->load->answer->digest;

	/*
	 * A window does not hold every row that changes, and what is put off would
	 * be in the snapshot that we compare with.
	 */
	r->exact = s->load->has_snapshot && !s->window && s->instance->channel->min_interval == 0;
	Later(r);
	dlist_push_tail(&rechecks, &r->node);
	s->recheck = r;
	if (r->due < next_due)
	{
		/* This turn has been asked already how long it may sleep. */
		next_due = r->due;
		subscribe_again = true;
	}
}

void
RecheckLost(Subscription *s)
{
	if (s->recheck != NULL)
		s->recheck->exact = false;
}

void
RecheckLostAll(Connection *connection)
{
	dlist_iter iter;

	dlist_foreach(iter, &connection->subscriptions)
		RecheckLost(dlist_container(Subscription, connection_node, iter.cur));
}

bool
RecheckSoon(Subscription *s)
{
	Recheck *r = s->recheck;

	if (r == NULL || !r->exact || !RecheckNeedsRows(s) || setting_recheck_interval == 0)
		return false;

	/* A look that is under way may have seen what was before. */
	EndLook(r);
	r->again = false;
	r->due = feed_now;
	next_due = Min(next_due, r->due);

	/* In the next turn, which has to come. */
	subscribe_again = true;
	return true;
}

/* Adds or subtracts the row of an image; false: it is not known in full. */
static bool
Count(RowDigest *digest, MapEntry *entry, MapImage *image, View *view, bool add)
{
	StringInfoData row;

	/* Values that casts make are not made here, and it may be older than the columns. */
	if (image->incomplete || image->desc != entry->layout->desc || view->casts != NULL ||
		(view->ncolumns > 0 && view->columns[view->ncolumns - 1] > image->desc->tupdesc->natts))
		return false;
	initStringInfo(&row);
	EncodeRow(entry->layout->encoder, &row, view->columns, view->ncolumns, image->values,
			  image->isnull);
	RowDigestAdd(digest, RecheckSeed(), entry->source->index, row.data, row.len, add);
	pfree(row.data);
	return true;
}

void
RecheckNote(Subscription *s, TransactionMap *map, MapEntry *entry, View *view, bool before,
			bool after)
{
	Recheck *r = s->recheck;
	RowDigest delta = {0};
	RecheckDelta *d;

	if ((view->recheck & RECHECK_ROWS) == 0 || !r->exact)
		return;
	if ((before && !Count(&delta, entry, &map->images[entry->old_image], view, false)) ||
		(after && !Count(&delta, entry, &map->images[entry->new_image], view, true)))
	{
		r->exact = false;
		return;
	}
	r->digest.a += delta.a;
	r->digest.b += delta.b;
	if (r->job == 0 && !r->answered)
		return;

	if (r->ndeltas == r->maxdeltas)
	{
		r->maxdeltas = Max(16, r->maxdeltas * 2);
		if (r->deltas == NULL)
			r->deltas = MemoryContextAlloc(feed_context, sizeof(RecheckDelta) * r->maxdeltas);
		else
			r->deltas = repalloc_huge(r->deltas, sizeof(RecheckDelta) * r->maxdeltas);
	}
	d = &r->deltas[r->ndeltas++];
	d->number = map->transaction->number;
	d->xid = (TransactionId) map->transaction->commit.xid;
	d->digest = delta;
}

/* ---- Looking ---- */

static void
OnLook(void *arg, uint64 job, QueryKind kind, WireReader *body)
{
	Recheck *r = arg;
	Subscription *s = r->subscription;

	switch (kind)
	{
		case QUERY_DESCRIBE:
			if (!SubscribeSameView(s, body))
				r->differs = true;
			break;
		case QUERY_SNAPSHOT:
		{
			MemoryContext old = MemoryContextSwitchTo(feed_context);

			SubscribeReadSnapshot(&r->snapshot, body);
			MemoryContextSwitchTo(old);
		}
		break;
		case QUERY_DIGEST:
			r->found.a = WireGetU64(body);
			r->found.b = WireGetU64(body);
			break;
		case QUERY_ERROR:
		{
			WireBytes sqlstate = WireGetBytes(body);

			/* What is wrong shows when the question is asked in earnest. */
			r->again = SubscribeMayRetry(pnstrdup(sqlstate.data, sqlstate.length));
			r->differs = true;
			r->job = 0;
			running--;
			r->answered = true;
			answers = true;
		}
		break;
		case QUERY_DONE:
			r->job = 0;
			running--;
			r->answered = true;
			answers = true;
			break;
		default:
			break;
	}
}

static void
Look(Recheck *r)
{
	Subscription *s = r->subscription;
	StringInfoData body;

	SubscribeQuestion(s->instance, s->connection->identity, s->selection,
					  QUERY_WITH_ROWS | QUERY_DIGEST_ONLY, &body);
	r->differs = false;
	r->again = false;
	r->found = (RowDigest){0};
	r->snapshot.lsn = InvalidXLogRecPtr;
	r->job = QuerySubmit(QUERY_SUBSCRIBE, body.data, body.len, QUERY_LATER, OnLook, r);
	running++;
	pfree(body.data);
}

/* Does the client have what was found?  False: it has not been sent all of it. */
static bool
Compare(Recheck *r, bool *same)
{
	Subscription *s = r->subscription;
	Connection *connection = s->connection;
	RowDigest digest = r->digest;
	int i;

	*same = false;
	if (r->differs)
		return true;
	if (!LogReached(r->snapshot.lsn))
		return false;
	if (!connection->live && connection->cursor < LogNumberAt(r->snapshot.lsn))
		return false;
	if (!RecheckNeedsRows(s))
	{
		*same = true;
		return true;
	}
	for (i = 0; i < r->ndeltas; i++)
		if (!SubscribeSnapshotContains(&r->snapshot, r->deltas[i].xid))
			Subtract(&digest, &r->deltas[i].digest);
	*same = r->exact && digest.a == r->found.a && digest.b == r->found.b;
	return true;
}

long
RecheckAdvance(void)
{
	dlist_mutable_iter iter;

	if (setting_recheck_interval == 0 || dlist_is_empty(&rechecks))
		return -1;
	if (!answers && next_due > feed_now)
		return Max(TimestampDifferenceMilliseconds(feed_now, next_due), 1);

	answers = false;
	next_due = TimestampTzPlusMilliseconds(feed_now, (int64) setting_recheck_interval * 1000);
	dlist_foreach_modify(iter, &rechecks)
	{
		Recheck *r = dlist_container(Recheck, node, iter.cur);
		Subscription *s = r->subscription;
		bool same;

		if (r->answered && !r->again && s->state == SUB_READY && !s->connection->closing)
		{
			if (!Compare(r, &same))
			{
				answers = true;
				continue;
			}
			EndLook(r);
			Later(r);
			if (!same)
			{
				SubscribeResync(s, "recheck");
				continue;
			}
		}
		else if (r->job == 0 && r->due <= feed_now)
		{
			if (r->again || s->state != SUB_READY || s->connection->closing ||
				running >= setting_query_workers)
			{
				if (r->again)
					EndLook(r);
				r->again = false;
				r->due = TimestampTzPlusMilliseconds(feed_now, RECHECK_AGAIN);
			}
			else if (!r->exact && RecheckNeedsRows(s))
			{
				SubscribeResync(s, "recheck");
				continue;
			}
			else
				Look(r);
		}
		if (r->due > feed_now)
			next_due = Min(next_due, r->due);
	}
	return answers ? RECHECK_AGAIN : Max(TimestampDifferenceMilliseconds(feed_now, next_due), 1);
}
