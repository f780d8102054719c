/*-------------------------------------------------------------------------
 *
 * verdicts.c
 *		What identities may see of judged rows: asking query workers in
 *		batches, and accepting their answers.
 *
 * Questions are collected over a turn and submitted together, per table: the
 * rows once, then per identity which of them it asks for.  While all query
 * workers are busy with verdicts, questions go on collecting; batches grow by
 * themselves under load.
 *
 * A verdict that read tables (the policy's dependencies) was given on a
 * snapshot later than the row's commit.  It is accepted once everything up to
 * that snapshot has been decoded and no transaction behind the row's has
 * touched a dependency; otherwise the subscriptions concerned are resynced.
 *
 * Process: feed worker.  Memory: batches in feed_context until answered;
 * verdicts with the transaction's map.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "feed.h"
#include "wire_write.h"

#include "storage/latch.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#define MAX_BATCH_ROWS		2000
#define MAX_BATCH_QUESTIONS 20000

/* One identity's question about one row. */
typedef struct Question
{
	uint64 number; /* transaction */
	int image;
	Identity *identity; /* referenced */
	Oid relid;
	uint32 version; /* of the row's description */
	uint64 fingerprint;
} Question;

typedef struct Batch
{
	MemoryContext context;
	uint64 job;
	Oid relid;
	int nquestions;
	Question *questions; /* sorted by identity */
	int nidentities;
	int *first;		/* index of each identity's first question */
	XLogRecPtr lsn; /* noted after the last snapshot used */
	bool answered;
	bool failed;
	char *answer; /* QUERY_VERDICT_LIST's body behind the LSN */
	Size answer_length;
} Batch;

/* Questions of this turn and those waiting for a free worker. */
static Question *questions;
static int nquestions;
static int maxquestions;
static List *batches; /* in flight, or answered and to be accepted */

static VerdictSet *
FindSet(TransactionMap *map, Identity *identity, Oid relid, bool create)
{
	VerdictSet sought;
	VerdictSet *set;
	bool found;

	if (map->verdicts == NULL)
	{
		HASHCTL ctl;

		if (!create)
			return NULL;
		ctl.keysize = sizeof(sought.key);
		ctl.entrysize = sizeof(VerdictSet);
		ctl.hcxt = map->context;
		map->verdicts = hash_create("changefeed verdicts", 16, &ctl,
									HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	sought.key.identity = identity->serial;
	sought.key.relid = relid;
	set = hash_search(map->verdicts, &sought.key, create ? HASH_ENTER : HASH_FIND, &found);
	if (set != NULL && !found)
		set->states = MemoryContextAllocZero(map->context, Max(map->nimages, 1));
	return set;
}

Verdict
VerdictGet(TransactionMap *map, Identity *identity, Oid relid, int image)
{
	VerdictSet *set = FindSet(map, identity, relid, false);

	return set != NULL ? (Verdict) set->states[image] : VERDICT_UNKNOWN;
}

void
VerdictAsk(TransactionMap *map, Identity *identity, View *view, int image)
{
	VerdictSet *set = FindSet(map, identity, view->relid, true);
	Question *q;

	if (set->states[image] != VERDICT_UNKNOWN)
		return;
	set->states[image] = VERDICT_ASKED;

	if (nquestions == maxquestions)
	{
		maxquestions = Max(256, maxquestions * 2);
		if (questions == NULL)
			questions = MemoryContextAllocHuge(feed_context, sizeof(Question) * maxquestions);
		else
			questions = repalloc_huge(questions, sizeof(Question) * maxquestions);
	}
	q = &questions[nquestions++];
	q->number = map->transaction->number;
	q->image = image;
	q->identity = identity;
	identity->refcount++;
	q->relid = view->relid;
	q->version = map->images[image].desc->version;
	q->fingerprint = view->fingerprint;
}

/* The map's entry for a question, if the transaction is still there. */
static uint8 *
StateOf(const Question *q)
{
	LogTransaction *transaction = LogGet(q->number);
	VerdictSet *set;

	if (transaction == NULL || transaction->map == NULL)
		return NULL;
	set = FindSet(transaction->map, q->identity, q->relid, false);
	return set != NULL ? &set->states[q->image] : NULL;
}

static int
CompareQuestions(const void *a, const void *b)
{
	const Question *x = a;
	const Question *y = b;

	if (x->identity->serial != y->identity->serial)
		return x->identity->serial < y->identity->serial ? -1 : 1;
	if (x->fingerprint != y->fingerprint)
		return x->fingerprint < y->fingerprint ? -1 : 1;
	if (x->number != y->number)
		return x->number < y->number ? -1 : 1;
	return x->image - y->image;
}

/* The rows that the questions of a batch are about, each once. */
typedef struct RowKey
{
	uint64 number;
	uint64 image;
} RowKey;

typedef struct RowEntry
{
	RowKey key;
	uint32 index;
} RowEntry;

static void OnAnswer(void *arg, uint64 job, QueryKind kind, WireReader *body);
static void Wake(Identity *identity);

static void
SubmitBatch(Oid relid, uint32 version)
{
	MemoryContext context = AllocSetContextCreate(feed_context, "changefeed verdicts",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Batch *batch = palloc0(sizeof(Batch));
	const RecordDescription *desc = LogDescription(version);
	StringInfoData body;
	StringInfoData rows;
	HASHCTL ctl;
	HTAB *table;
	uint32 nrows = 0;
	int kept = 0;
	int i;

	batch->context = context;
	batch->relid = relid;
	batch->questions = palloc(sizeof(Question) * Min(nquestions, MAX_BATCH_QUESTIONS));
	ctl.keysize = sizeof(RowKey);
	ctl.entrysize = sizeof(RowEntry);
	ctl.hcxt = context;
	table = hash_create("changefeed batch rows", 256, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	initStringInfo(&rows);

	for (i = 0; i < nquestions; i++)
	{
		Question *q = &questions[i];
		RowKey key = {q->number, (uint64) q->image};
		RowEntry *entry;
		bool found;

		if (q->relid != relid || q->version != version ||
			batch->nquestions >= MAX_BATCH_QUESTIONS || nrows >= MAX_BATCH_ROWS)
		{
			questions[kept++] = *q;
			continue;
		}
		if (StateOf(q) == NULL)
		{
			/* Its map is gone: whoever still needs it asks again. */
			Wake(q->identity);
			IdentityRelease(q->identity);
			continue;
		}
		entry = hash_search(table, &key, HASH_ENTER, &found);
		if (!found)
		{
			const char *data;
			uint32 length;

			entry->index = nrows++;
			MapImageTuple(&LogGet(q->number)->map->images[q->image], &data, &length);
			WirePutBytes(&rows, data, length);
		}
		batch->questions[batch->nquestions++] = *q;
	}
	nquestions = kept;
	if (batch->nquestions == 0)
	{
		MemoryContextSwitchTo(old);
		MemoryContextDelete(context);
		return;
	}

	qsort(batch->questions, batch->nquestions, sizeof(Question), CompareQuestions);
	batch->first = palloc(sizeof(int) * (batch->nquestions + 1));
	for (i = 0; i < batch->nquestions; i++)
		if (i == 0 || batch->questions[i].identity != batch->questions[i - 1].identity ||
			batch->questions[i].fingerprint != batch->questions[i - 1].fingerprint)
			batch->first[batch->nidentities++] = i;
	batch->first[batch->nidentities] = batch->nquestions;

	initStringInfo(&body);
	WirePutU32(&body, relid);
	WirePutBytes(&body, desc->bytes, desc->length);
	WirePutU32(&body, nrows);
	appendBinaryStringInfo(&body, rows.data, rows.len);
	WirePutU32(&body, batch->nidentities);
	for (i = 0; i < batch->nidentities; i++)
	{
		Identity *identity = batch->questions[batch->first[i]].identity;
		int k;

		WirePutU32(&body, identity->info.role);
		WirePutBytes(&body, identity->info.claims, strlen(identity->info.claims));
		appendBinaryStringInfo(&body, (char *) &batch->questions[batch->first[i]].fingerprint,
							   sizeof(uint64));
		WirePutU32(&body, batch->first[i + 1] - batch->first[i]);
		for (k = batch->first[i]; k < batch->first[i + 1]; k++)
		{
			RowKey key = {batch->questions[k].number, (uint64) batch->questions[k].image};
			RowEntry *entry = hash_search(table, &key, HASH_FIND, NULL);

			WirePutU32(&body, entry->index);
		}
	}
	batch->job = QuerySubmit(QUERY_VERDICTS, body.data, body.len, QUERY_FIRST, OnAnswer, batch);
	pfree(body.data);
	pfree(rows.data);
	hash_destroy(table);
	MemoryContextSwitchTo(feed_context);
	batches = lappend(batches, batch);
	MemoryContextSwitchTo(old);
}

static void
OnAnswer(void *arg, uint64 job, QueryKind kind, WireReader *body)
{
	Batch *batch = arg;

	switch (kind)
	{
		case QUERY_VERDICT_LIST:
			batch->lsn = WireGetU64(body);
			batch->answer_length = body->length - body->offset;
			batch->answer = MemoryContextAlloc(batch->context, Max(batch->answer_length, 1));
			memcpy(batch->answer, body->data + body->offset, batch->answer_length);
			break;
		case QUERY_ERROR:
			batch->failed = true;
			batch->answered = true;
			break;
		case QUERY_DONE:
			batch->answered = true;
			break;
		default:
			break;
	}
}

/* Connections of that identity may be able to move. */
static void
Wake(Identity *identity)
{
	dlist_iter iter;

	dlist_foreach(iter, &identity->connections)
		dlist_container(Connection, identity_node, iter.cur)->waits_verdict = false;
}

static List *
SubscriptionsOf(Identity *identity, Oid relid)
{
	List *result = NIL;
	dlist_iter iter;
	dlist_iter iter2;
	int i;

	dlist_foreach(iter, &identity->connections)
	{
		Connection *connection = dlist_container(Connection, identity_node, iter.cur);

		dlist_foreach(iter2, &connection->subscriptions)
		{
			Subscription *s = dlist_container(Subscription, connection_node, iter2.cur);

			for (i = 0; i < s->instance->channel->nsources; i++)
			{
				if (s->instance->channel->sources[i]->relid == relid)
				{
					result = lappend(result, s);
					break;
				}
			}
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
		uint8 *state = StateOf(&from[i]);

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

/* Takes over what the answer says about one identity. */
static void
AcceptIdentity(Batch *batch, int index, WireReader *r)
{
	Question *from = &batch->questions[batch->first[index]];
	int n = batch->first[index + 1] - batch->first[index];
	Identity *identity = from->identity;
	uint8 status = WireGetU8(r);
	ListCell *lc;
	int i;

	switch (status)
	{
		case 0:
		{
			uint32 ndependencies;
			Oid *dependencies;
			WireBytes bits;
			bool outdated = false;

			(void) WireGetU64(r);
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
			{
				LogTransaction *transaction = LogGet(from[i].number);
				int k;

				for (k = 0; transaction != NULL && k < (int) ndependencies; k++)
					if (LogLastTouch(dependencies[k]) > transaction->commit.lsn)
						outdated = true;
			}
			if (outdated)
			{
				PutBack(from, n);
				ResyncAll(identity, batch->relid, "dependency_changed");
				Wake(identity);
				return;
			}
			for (i = 0; i < n; i++)
			{
				uint8 *state = StateOf(&from[i]);
				bool visible = ((uint8) bits.data[i / 8] & (1 << (i % 8))) != 0;

				if (state != NULL)
					*state = visible ? VERDICT_VISIBLE : VERDICT_HIDDEN;
			}
			Wake(identity);
			return;
		}
		case 1:
		{
			WireBytes sqlstate = WireGetBytes(r);
			WireBytes message = WireGetBytes(r);

			if (r->failed)
				break;
			PutBack(from, n);
			foreach(lc, SubscriptionsOf(identity, batch->relid))
				SubscribeEnd(lfirst(lc), "policy_error", pnstrdup(sqlstate.data, sqlstate.length),
							 pnstrdup(message.data, message.length), NULL);
			pg_atomic_fetch_add_u64(&feed_shared->feed_denials, 1);
			Wake(identity);
			return;
		}
		case 2:
			PutBack(from, n);
			ResyncAll(identity, batch->relid, "policy_changed");
			Wake(identity);
			return;
		case 3:

			/*
			 * Somebody holds the table.  A snapshot has to wait for it just as
			 * well, but then it is this subscription alone that waits, not its
			 * whole connection.
			 */
			PutBack(from, n);
			ResyncAll(identity, batch->relid, "locked");
			Wake(identity);
			return;
		default:
			break;
	}
	ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
					errmsg("malformed verdicts from a query worker")));
}

/* Did any verdict read tables?  Others need not wait for the stream. */
static bool
HasDependencies(Batch *batch)
{
	WireReader r = WireReaderInit(batch->answer, batch->answer_length);
	int i;

	for (i = 0; i < batch->nidentities; i++)
	{
		uint8 status = WireGetU8(&r);

		if (status == 0)
		{
			uint32 n;

			(void) WireGetU64(&r);
			n = WireGetU32(&r);
			if (r.failed || n > 0)
				return true;
			(void) WireGetBytes(&r);
		}
		else if (status == 1)
		{
			(void) WireGetBytes(&r);
			(void) WireGetBytes(&r);
		}
	}
	return false;
}

static void
Accept(Batch *batch)
{
	int i;

	if (batch->failed || batch->answer == NULL)
	{
		for (i = 0; i < batch->nidentities; i++)
		{
			Question *from = &batch->questions[batch->first[i]];

			PutBack(from, batch->first[i + 1] - batch->first[i]);
			ResyncAll(from->identity, batch->relid, "policy_undecided");
			Wake(from->identity);
		}
	}
	else
	{
		WireReader r = WireReaderInit(batch->answer, batch->answer_length);

		for (i = 0; i < batch->nidentities; i++)
			AcceptIdentity(batch, i, &r);
	}
	for (i = 0; i < batch->nquestions; i++)
		IdentityRelease(batch->questions[i].identity);
	MemoryContextDelete(batch->context);
}

long
VerdictsAdvance(void)
{
	ListCell *lc;
	int running = 0;

	foreach(lc, batches)
	{
		Batch *batch = lfirst(lc);

		if (!batch->answered)
		{
			running++;
			continue;
		}
		if (batch->answer != NULL && HasDependencies(batch) && !LogReceivedUpTo(batch->lsn))
			continue;
		batches = foreach_delete_current(batches, lc);
		Accept(batch);
	}

	while (nquestions > 0 && running < Max(setting_query_workers, 1))
	{
		SubmitBatch(questions[0].relid, questions[0].version);
		running++;
	}
	return -1;
}
