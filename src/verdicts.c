/*-------------------------------------------------------------------------
 *
 * verdicts.c
 *		What identities may see of judged rows: asking query workers in batches.
 *
 * Questions are collected over a turn and submitted together, per table: the
 * rows once, then per identity which of them it asks for.  While all query
 * workers are busy with verdicts, questions go on collecting; batches grow by
 * themselves under load.  Answers come and are accepted identity by identity
 * (verdicts_accept.c).
 *
 * How long an identity's verdicts on a table take is remembered: those of a
 * slow one are asked for apart from the others, one batch at a time.
 *
 * Questions take memory, for each row and identity.  So there is room for some
 * only; who finds none waits until there is.
 *
 * Process: feed worker.  Memory: batches in feed_context until answered;
 * verdicts with the transaction's map.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "policy_rule.h"
#include "verdicts_internal.h"
#include "wire_write.h"

#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#define MAX_BATCH_ROWS		2000
#define MAX_BATCH_QUESTIONS 20000
#define MAX_BATCH_BYTES		(16 * 1024 * 1024)

/* An identity whose verdicts take longer is slow, and stays so for a while. */
#define SLOW_US 20000
#define SLOW_MS 10000

/* Questions have this part of changefeed.worker_memory. */
#define QUESTIONS_PART 8

/* Room for more of them is given back when there are none. */
#define KEEP_QUESTIONS 4096

/* Images whose verdicts are kept in one piece. */
#define PIECE 128

/* A batch that takes longer does not count among those that workers have. */
#define LATE_MS 100

/* An identity whose verdicts on a table take long. */
typedef struct SlowKey
{
	uint64 identity; /* serial */
	uint64 relid;
} SlowKey;

typedef struct SlowEntry
{
	SlowKey key;
	uint32 cost; /* microseconds */
	TimestampTz until;
	bool asked; /* a batch is in flight */
} SlowEntry;

static HTAB *slow_ones;

/* Lists of columns with casts, for ever: there are few. */
static List *cast_lists;

/* Questions of this turn and those waiting for a free worker. */
static Question *questions;
static int nquestions;
static int maxquestions;
static int noutstanding; /* those, and those of batches */
static bool was_full;	 /* and somebody waits until there is room */
static List *batches;	 /* in flight, or answered and to be accepted */

const CastList *
CastListIntern(const int16 *attnos, int n)
{
	ListCell *lc;
	CastList *list;
	MemoryContext old;

	if (n == 0)
		return NULL;
	foreach(lc, cast_lists)
	{
		list = lfirst(lc);
		if (list->n == n && memcmp(list->attnos, attnos, sizeof(int16) * n) == 0)
			return list;
	}
	old = MemoryContextSwitchTo(feed_context);
	list = palloc(offsetof(CastList, attnos) + sizeof(int16) * n);
	list->n = n;
	memcpy(list->attnos, attnos, sizeof(int16) * n);
	cast_lists = lappend(cast_lists, list);
	MemoryContextSwitchTo(old);
	return list;
}

/* ---- Slow identities ---- */

/* NULL: not known to be slow. */
static SlowEntry *
FindSlow(Identity *identity, Oid relid)
{
	SlowKey key = {identity->serial, relid};
	SlowEntry *entry;

	if (slow_ones == NULL || hash_get_num_entries(slow_ones) == 0)
		return NULL;
	entry = hash_search(slow_ones, &key, HASH_FIND, NULL);
	if (entry == NULL || entry->asked || entry->until > feed_now)
		return entry;
	hash_search(slow_ones, &key, HASH_REMOVE, NULL);
	return NULL;
}

/* Entries of identities that are gone are found here. */
static void
ForgetSlow(void)
{
	HASH_SEQ_STATUS status;
	SlowEntry *entry;

	hash_seq_init(&status, slow_ones);
	while ((entry = hash_seq_search(&status)) != NULL)
		if (!entry->asked && entry->until <= feed_now)
			hash_search(slow_ones, &entry->key, HASH_REMOVE, NULL);
}

static void
NoteCost(Identity *identity, Oid relid, uint32 cost)
{
	SlowKey key = {identity->serial, relid};
	SlowEntry *entry = FindSlow(identity, relid);
	bool found;

	if (entry == NULL)
	{
		if (cost < SLOW_US)
			return;
		if (slow_ones == NULL)
		{
			HASHCTL ctl = {0};

			ctl.keysize = sizeof(SlowKey);
			ctl.entrysize = sizeof(SlowEntry);
			ctl.hcxt = feed_context;
			slow_ones = hash_create("changefeed slow identities", 16, &ctl,
									HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
		}
		ForgetSlow();
		entry = hash_search(slow_ones, &key, HASH_ENTER, &found);
		entry->cost = 0;
		entry->asked = false;
	}
	entry->cost = Max(Max(cost, entry->cost / 2), 1);
	if (cost >= SLOW_US)
		entry->until = TimestampTzPlusMilliseconds(feed_now, SLOW_MS);
}

/* ---- Asking ---- */

static VerdictSet *
FindSet(TransactionMap *map, Identity *identity, Oid relid, const CastList *casts, bool create)
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
	sought.key.casts = casts;
	set = hash_search(map->verdicts, &sought.key, create ? HASH_ENTER : HASH_FIND, &found);
	if (set != NULL && !found)
	{
		set->states = MemoryContextAllocZero(map->context,
											 sizeof(uint8 *) * (map->nimages / PIECE + 1));
		set->texts = NULL;
		if (casts != NULL)
			set->texts = MemoryContextAllocZero(map->context,
												sizeof(char *) * casts->n * Max(map->nimages, 1));
	}
	return set;
}

/* Many identities may be asked about a few of very many rows each. */
static uint8 *
StateAt(TransactionMap *map, VerdictSet *set, int image)
{
	uint8 **piece = &set->states[image / PIECE];

	if (*piece == NULL)
		*piece = MemoryContextAllocZero(map->context, Min(map->nimages, PIECE));
	return *piece + image % PIECE;
}

static Verdict
StateGet(const VerdictSet *set, int image)
{
	const uint8 *piece = set != NULL ? set->states[image / PIECE] : NULL;

	return piece != NULL ? (Verdict) piece[image % PIECE] : VERDICT_UNKNOWN;
}

Verdict
VerdictInline(TransactionMap *map, const View *view, int image)
{
	Verdict verdict;

	if (view->rule == NULL)
		return VERDICT_UNKNOWN;
	verdict = PolicyRuleJudge(view->rule, map, image);

	/* What casts make of a visible row comes with a query worker's verdict. */
	return verdict == VERDICT_VISIBLE && view->casts != NULL ? VERDICT_UNKNOWN : verdict;
}

const char *const *
VerdictTexts(TransactionMap *map, Identity *identity, const View *view, int image)
{
	VerdictSet *set = FindSet(map, identity, view->relid, view->casts, false);

	if (set == NULL || set->texts == NULL || StateGet(set, image) != VERDICT_VISIBLE)
		elog(ERROR, "the JSON of a row is not known");
	return &set->texts[image * view->casts->n];
}

static void
Ask(TransactionMap *map, VerdictSet *set, Identity *identity, const View *view, int image)
{
	Question *q;

	counters.verdicts_asked++;
	noutstanding++;
	*StateAt(map, set, image) = VERDICT_ASKED;

	if (nquestions == maxquestions)
	{
		maxquestions = Max(256, maxquestions * 2);
		if (questions == NULL)
			questions = MemoryContextAllocHuge(feed_context, sizeof(Question) * maxquestions);
		else
			questions = repalloc_huge(questions, sizeof(Question) * maxquestions);
	}
	q = &questions[nquestions++];
	q->number = PaceNumber(map->transaction);
	q->image = image;
	q->identity = identity;
	identity->refcount++;
	q->relid = view->relid;
	q->version = map->images[image].desc->version;
	q->fingerprint = view->fingerprint;
	q->casts = view->casts;
	q->map = map->serial;
	q->set = set;
}

static int
MaxQuestions(void)
{
	return (int) ((Size) setting_worker_memory * 1024 / QUESTIONS_PART / sizeof(Question));
}

Verdict
VerdictGet(TransactionMap *map, Identity *identity, const View *view, int image, bool ask)
{
	bool full = noutstanding >= MaxQuestions();
	VerdictSet *set = FindSet(map, identity, view->relid, view->casts, ask && !full);
	Verdict verdict = StateGet(set, image);

	if (verdict != VERDICT_UNKNOWN || !ask)
		return verdict;
	if (full)
	{
		was_full = true;
		return VERDICT_UNKNOWN;
	}
	Ask(map, set, identity, view, image);
	return VERDICT_ASKED;
}

bool
VerdictsTooMany(uint64 asked)
{
	return asked >= (uint64) MaxQuestions() / 2;
}

VerdictSet *
VerdictSetOf(const Question *q)
{
	LogTransaction *transaction = PaceTransaction(q->number);

	if (transaction == NULL || transaction->map == NULL || transaction->map->serial != q->map)
		return NULL;
	return q->set;
}

uint8 *
VerdictStateOf(const Question *q)
{
	VerdictSet *set = VerdictSetOf(q);

	return set != NULL ? StateAt(PaceTransaction(q->number)->map, set, q->image) : NULL;
}

void
VerdictsWithdraw(TransactionMap *map)
{
	int kept = 0;
	int i;

	for (i = 0; i < nquestions; i++)
	{
		if (questions[i].map != map->serial)
		{
			questions[kept++] = questions[i];
			continue;
		}
		*StateAt(map, questions[i].set, questions[i].image) = VERDICT_UNKNOWN;
		IdentityRelease(questions[i].identity);
	}
	noutstanding -= nquestions - kept;
	nquestions = kept;
	DeliverForgetWaiting();
	SetLatch(MyLatch);
}

static int
CompareQuestions(const void *a, const void *b)
{
	const Question *x = a;
	const Question *y = b;

	/* Workers judge those of a role together. */
	if (x->identity->info.role != y->identity->info.role)
		return x->identity->info.role < y->identity->info.role ? -1 : 1;
	if (x->identity->serial != y->identity->serial)
		return x->identity->serial < y->identity->serial ? -1 : 1;
	if (x->fingerprint != y->fingerprint)
		return x->fingerprint < y->fingerprint ? -1 : 1;
	if (x->casts != y->casts)
		return x->casts < y->casts ? -1 : 1;
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

/* Are the two questions asked by the same part of a batch? */
static bool
SamePart(const Question *a, const Question *b)
{
	return a->identity == b->identity && a->fingerprint == b->fingerprint && a->casts == b->casts;
}

/*
 * The questions about that table which can go with the one given: of all
 * identities that are not slow, or of the slow one.
 */
static void
SubmitBatch(const Question *example, SlowEntry *slow)
{
	Oid relid = example->relid;
	uint32 version = example->version;
	Identity *only = slow != NULL ? example->identity : NULL;

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
			batch->nquestions >= MAX_BATCH_QUESTIONS || nrows >= MAX_BATCH_ROWS ||
			rows.len >= MAX_BATCH_BYTES ||
			(only != NULL ? q->identity != only : FindSlow(q->identity, relid) != NULL))
		{
			questions[kept++] = *q;
			continue;
		}
		if (VerdictStateOf(q) == NULL)
		{
			/* Its map is gone: whoever still needs it asks again. */
			VerdictsWake(q->identity);
			IdentityRelease(q->identity);
			noutstanding--;
			continue;
		}
		entry = hash_search(table, &key, HASH_ENTER, &found);
		if (!found)
		{
			const char *data;
			uint32 length;

			entry->index = nrows++;
			MapImageTuple(&PaceTransaction(q->number)->map->images[q->image], &data, &length);
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
		if (i == 0 || !SamePart(&batch->questions[i], &batch->questions[i - 1]))
			batch->first[batch->nidentities++] = i;
	batch->first[batch->nidentities] = batch->nquestions;

	batch->parts = palloc0(sizeof(Part) * batch->nidentities);
	batch->waiting = batch->open = batch->nidentities;
	batch->costly = slow != NULL;
	batch->submitted = feed_now;

	initStringInfo(&body);
	WirePutU32(&body, batch->nidentities);
	WirePutU32(&body, relid);
	WirePutBytes(&body, desc->bytes, desc->length);
	WirePutU32(&body, nrows);
	appendBinaryStringInfo(&body, rows.data, rows.len);
	for (i = 0; i < batch->nidentities; i++)
	{
		Identity *identity = batch->questions[batch->first[i]].identity;
		const CastList *casts = batch->questions[batch->first[i]].casts;
		int k;

		WirePutU32(&body, identity->info.role);
		WirePutBytes(&body, identity->info.claims, strlen(identity->info.claims));
		appendBinaryStringInfo(&body, (char *) &batch->questions[batch->first[i]].fingerprint,
							   sizeof(uint64));
		WirePutU16(&body, casts != NULL ? casts->n : 0);
		for (k = 0; casts != NULL && k < casts->n; k++)
			WirePutU16(&body, (uint16) casts->attnos[k]);
		WirePutU32(&body, batch->first[i + 1] - batch->first[i]);
		for (k = batch->first[i]; k < batch->first[i + 1]; k++)
		{
			RowKey key = {batch->questions[k].number, (uint64) batch->questions[k].image};
			RowEntry *entry = hash_search(table, &key, HASH_FIND, NULL);

			WirePutU32(&body, entry->index);
		}
	}
	(void) QuerySubmitVerdicts(body.data, body.len, slow != NULL ? slow->cost : 0, OnAnswer, batch);
	if (slow != NULL)
		slow->asked = true;
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
	uint32 index = WireGetU32(body);
	uint32 cost = WireGetU32(body);
	XLogRecPtr lsn = WireGetU64(body);
	Part *part;
	Identity *identity;

	if (kind != QUERY_VERDICT || body->failed || index >= (uint32) batch->nidentities ||
		batch->parts[index].answered)
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
						errmsg("malformed verdicts from a query worker")));
	part = &batch->parts[index];
	part->answered = true;
	part->lsn = lsn;
	part->length = body->length - body->offset;
	part->answer = MemoryContextAllocHuge(batch->context, Max(part->length, 1));
	memcpy(part->answer, body->data + body->offset, part->length);
	batch->waiting--;

	identity = batch->questions[batch->first[index]].identity;
	NoteCost(identity, batch->relid, cost);
	counters.verdict_us += cost;
	if (batch->costly && batch->waiting == 0)
	{
		SlowEntry *slow = FindSlow(identity, batch->relid);

		if (slow != NULL)
			slow->asked = false;
	}
}

/* May it be asked now?  `slow` is set for those that are asked apart. */
static bool
MayAsk(const Question *q, int running, SlowEntry **slow)
{
	*slow = FindSlow(q->identity, q->relid);
	return *slow != NULL ? !(*slow)->asked : running < Max(setting_query_workers, 1);
}

void
VerdictsAdvance(void)
{
	ListCell *lc;
	int running = 0;
	int i = 0;

	foreach(lc, batches)
	{
		Batch *batch = lfirst(lc);

		if (VerdictsAccept(batch))
		{
			batches = foreach_delete_current(batches, lc);
			for (i = 0; i < batch->nquestions; i++)
				IdentityRelease(batch->questions[i].identity);
			noutstanding -= batch->nquestions;
			MemoryContextDelete(batch->context);
		}
		else if (!batch->costly && batch->waiting > 0 &&
				 !TimestampDifferenceExceeds(batch->submitted, feed_now, LATE_MS))
			running++;
	}

	i = 0;
	while (i < nquestions)
	{
		SlowEntry *slow;

		if (!MayAsk(&questions[i], running, &slow))
		{
			i++;
			continue;
		}
		if (slow == NULL)
			running++;
		/* Takes out this question and others, also of those before it. */
		SubmitBatch(&questions[i], slow);
		i = 0;
	}

	/* Whoever found no room has asked for nothing that would wake him. */
	if (was_full && noutstanding < MaxQuestions() / 2)
	{
		was_full = false;
		DeliverForgetWaiting();
		SetLatch(MyLatch);
	}
	if (nquestions == 0 && maxquestions > KEEP_QUESTIONS)
	{
		pfree(questions);
		questions = NULL;
		maxquestions = 0;
	}
}
