/*-------------------------------------------------------------------------
 *
 * query_jobs.c
 *		Jobs for query workers: waiting, delivered, and what becomes of those
 *		whose worker died.
 *
 * A job whose worker died is tried once more.  A job of verdicts is answered
 * identity by identity, in order, so it is known over whom the worker died: if
 * that happens twice, he gets an error, and the others their verdicts.  Which
 * worker runs what is query_pool.c's.
 *
 * Process: feed worker.  Locks: none.  Memory: jobs in a context below
 * pool_context, freed one by one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "query_internal.h"
#include "query_jobs.h"

#include <unistd.h>

#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* After so many at a time their memory is given back. */
#define MANY_JOBS 500

typedef struct JobEntry
{
	uint64 id; /* hash key */
	PoolJob *job;
} JobEntry;

MemoryContext pool_context;
dlist_head job_waiting[QUERY_SLOW + 1];

/* Jobs and their table, given back when there are none; NULL: there are none. */
static MemoryContext job_context;
static HTAB *job_table;
static long job_peak; /* jobs since it was made */
static uint64 last_job;

void
JobsInit(void)
{
	int i;

	pool_context = AllocSetContextCreate(TopMemoryContext, "changefeed query pool",
										 ALLOCSET_DEFAULT_SIZES);
	for (i = 0; i <= QUERY_SLOW; i++)
		dlist_init(&job_waiting[i]);
}

static void
MakeTable(void)
{
	HASHCTL ctl = {0};

	job_context = AllocSetContextCreate(pool_context, "changefeed query jobs",
										ALLOCSET_DEFAULT_SIZES);
	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(JobEntry);
	ctl.hcxt = job_context;
	job_table = hash_create("changefeed query jobs", 256, &ctl,
							HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

PoolJob *
JobFind(uint64 id)
{
	JobEntry *entry = job_table != NULL ? hash_search(job_table, &id, HASH_FIND, NULL) : NULL;

	return entry != NULL ? entry->job : NULL;
}

void
JobFree(PoolJob *job)
{
	(void) hash_search(job_table, &job->id, HASH_REMOVE, NULL);
	pfree(job->body);
	pfree(job);
	job_peak = Max(job_peak, hash_get_num_entries(job_table) + 1);
	if (hash_get_num_entries(job_table) > 0 || job_peak < MANY_JOBS)
		return;

	/* Thousands of clients have come at the same time. */
	MemoryContextDelete(job_context);
	job_table = NULL;
	job_peak = 0;
}

void
JobEnqueue(PoolJob *job, bool first)
{
	job->in_list = true;
	if (first)
		dlist_push_head(&job_waiting[job->priority], &job->node);
	else
		dlist_push_tail(&job_waiting[job->priority], &job->node);
}

/*
 * Hands a result on.  With the last one the job, which must be in no list and
 * at no worker any more, is freed: the callback may submit and cancel jobs.
 */
void
JobDeliver(PoolJob *job, QueryKind kind, const char *body, Size length)
{
	QueryCallback callback = job->callback;
	void *arg = job->arg;
	uint64 id = job->id;
	WireReader reader = WireReaderInit(body, length);

	job->delivered = true;
	if (kind == QUERY_DONE || kind == QUERY_ERROR)
		JobFree(job);
	if (callback != NULL)
		callback(arg, id, kind, &reader);
	else if (kind == QUERY_FILE)
	{
		/* Nobody wants it any more. */
		WireBytes path = WireGetBytes(&reader);

		if (path.data != NULL && path.length < MAXPGPATH)
		{
			char name[MAXPGPATH];

			memcpy(name, path.data, path.length);
			name[path.length] = '\0';
			(void) unlink(name);
		}
	}
}

void
JobDeliverError(PoolJob *job, int sqlerrcode, const char *message, const char *hint)
{
	StringInfoData body;

	initStringInfo(&body);
	WirePutString(&body, unpack_sql_state(sqlerrcode));
	WirePutString(&body, message);
	WirePutString(&body, hint);
	JobDeliver(job, QUERY_ERROR, body.data, body.len);
	pfree(body.data);
}

PoolJob *
JobPop(dlist_head *list)
{
	PoolJob *job = dlist_container(PoolJob, node, dlist_pop_head_node(list));

	job->in_list = false;
	return job;
}

static PoolJob *
JobMake(QueryKind kind, const char *body, Size length, int priority, QueryCallback callback,
		void *arg)
{
	PoolJob *job;
	JobEntry *entry;
	bool found;

	if (job_table == NULL)
		MakeTable();
	job = MemoryContextAllocZero(job_context, sizeof(PoolJob));
	job->id = ++last_job;
	job->kind = kind;
	job->priority = priority;
	job->submitted = GetCurrentTimestamp();
	job->callback = callback;
	job->arg = arg;
	job->length = length;
	job->body = MemoryContextAllocHuge(job_context, Max(length, 1));
	memcpy(job->body, body, length);
	entry = hash_search(job_table, &job->id, HASH_ENTER, &found);
	entry->job = job;
	return job;
}

uint64
QuerySubmit(QueryKind kind, const char *body, Size length, QueryPriority priority,
			QueryCallback callback, void *arg)
{
	PoolJob *job = JobMake(kind, body, length, priority, callback, arg);

	JobEnqueue(job, false);
	return job->id;
}

bool
QueryMayJoin(uint64 id, const char *body, Size length)
{
	PoolJob *job = JobFind(id);

	return job != NULL && job->in_list && !job->delivered && job->length == length &&
		   memcmp(job->body, body, length) == 0;
}

uint64
QuerySubmitVerdicts(const char *body, Size length, uint32 cost, QueryCallback callback, void *arg)
{
	PoolJob *job = JobMake(QUERY_VERDICTS, body, length, cost > 0 ? QUERY_COSTLY : QUERY_FIRST,
						   callback, arg);
	WireReader reader = WireReaderInit(body, length);

	job->end = WireGetU32(&reader);
	job->cost = cost;
	JobEnqueue(job, false);
	return job->id;
}

uint64
QuerySubmitCall(const char *body, Size length, bool repeatable, QueryCallback callback, void *arg)
{
	PoolJob *job = JobMake(QUERY_CALL, body, length, QUERY_CALLS, callback, arg);

	job->repeatable = repeatable;
	JobEnqueue(job, false);
	return job->id;
}

int
QueryPoolBacklog(void)
{
	return job_table != NULL ? (int) hash_get_num_entries(job_table) : 0;
}

/* ---- Verdicts ---- */

/* The answer of the identity whose turn it is. */
static void
DeliverVerdict(PoolJob *job, const char *body, Size length)
{
	WireReader reader = WireReaderInit(body, length);

	job->part++;
	job->deaths = 0;
	if (job->callback != NULL)
		job->callback(job->arg, job->id, QUERY_VERDICT, &reader);
}

/* The same, made here. */
static void
DeliverMade(PoolJob *job, QueryVerdictStatus status, int sqlerrcode, const char *message)
{
	StringInfoData body;

	initStringInfo(&body);
	WirePutU32(&body, job->part);
	WirePutU32(&body, (uint32) setting_policy_timeout * 1000);
	WirePutU64(&body, InvalidXLogRecPtr);
	WirePutU8(&body, (uint8) status);
	if (status == QUERY_VERDICT_ERROR)
	{
		WirePutString(&body, unpack_sql_state(sqlerrcode));
		WirePutString(&body, message);
	}
	DeliverVerdict(job, body.data, body.len);
	pfree(body.data);
}

void
JobUndecided(PoolJob *job)
{
	while (job->part < job->end)
		DeliverMade(job, QUERY_VERDICT_UNDECIDED, 0, NULL);
	JobFree(job);
}

bool
JobVerdictResult(PoolJob *job, QueryKind kind, WireReader *body)
{
	bool expected = kind == QUERY_VERDICT;

	while (expected && body->offset < body->length)
	{
		WireBytes answer = WireGetBytes(body);
		WireReader peek = WireReaderInit(answer.data, answer.length);

		expected = !body->failed && WireGetU32(&peek) == job->part && job->part < job->end;
		if (expected)
			DeliverVerdict(job, answer.data, answer.length);
	}
	if (expected)
		return false;
	if (kind == QUERY_ERROR)
	{
		(void) WireGetBytes(body);
		ereport(LOG,
				(errcode(ERRCODE_INTERNAL_ERROR), errmsg("query worker could not judge changes: %s",
														 QueryCopyBytes(WireGetBytes(body)))));
	}
	if (kind == QUERY_DONE || kind == QUERY_ERROR)
	{
		JobUndecided(job);
		return true;
	}
	ereport(LOG, (errcode(ERRCODE_DATA_CORRUPTED), errmsg("unexpected verdict of a query worker")));
	return false;
}

PoolJob *
JobTakeApart(PoolJob *job, uint32 part)
{
	PoolJob *rest = JobMake(QUERY_VERDICTS, job->body, job->length, job->priority, job->callback,
							job->arg);

	rest->part = part;
	rest->end = job->end;
	rest->cost = job->cost;
	job->end = part;
	return rest;
}

static void
VerdictsLostWorker(PoolJob *job, bool timed_out)
{
	char *message;

	if (job->part < job->end && timed_out)
	{
		message = psprintf(
			"policies and casts took longer than changefeed.policy_timeout (%d ms) and went on when cancelled",
			setting_policy_timeout);
		DeliverMade(job, QUERY_VERDICT_ERROR, ERRCODE_QUERY_CANCELED, message);
		pfree(message);
	}
	else if (job->part < job->end && job->deaths >= 2)
		DeliverMade(job, QUERY_VERDICT_ERROR, ERRCODE_ADMIN_SHUTDOWN,
					"two query workers ended while judging changes for this identity");

	if (job->part < job->end)
		JobEnqueue(job, true);
	else
		JobFree(job);
}

/*
 * A call may have been committed by its worker's end.  One with a key finds that
 * out when it is run again; whoever ignores time limits has not committed.
 */
static void
CallLostWorker(PoolJob *job, bool timed_out, bool begun)
{
	if (job->delivered)
		JobDeliverError(job, ERRCODE_ADMIN_SHUTDOWN, "the query worker has ended", "");
	else if (timed_out)
		JobDeliverError(job, ERRCODE_QUERY_CANCELED,
						"the call took too long and went on when cancelled",
						"Look for exception handlers with WHEN query_canceled in the function.");
	else if (job->deaths < 2 && (job->repeatable || !begun))
		JobEnqueue(job, true);
	else
		JobDeliverError(
			job, ERRCODE_T_R_STATEMENT_COMPLETION_UNKNOWN,
			"the process that ran the call has ended, and it is not known what the call has done",
			job->repeatable
				? "Repeat the call with the same key: nothing is done twice."
				: "Look whether it was done. A call with a \"key\" can be repeated without doing anything twice.");
}

void
JobLostWorker(PoolJob *job, bool timed_out, bool begun)
{
	job->deaths++;
	if (job->callback == NULL)
		JobFree(job);
	else if (job->kind == QUERY_VERDICTS)
		VerdictsLostWorker(job, timed_out);
	else if (job->kind == QUERY_CALL)
		CallLostWorker(job, timed_out, begun);
	else if (timed_out || job->preempted)
		JobDeliverError(
			job, ERRCODE_QUERY_CANCELED, "the query took too long and went on when cancelled",
			"Look for exception handlers with WHEN query_canceled in functions that policies call.");
	else if (job->deaths >= 2 || job->delivered)
		JobDeliverError(job, ERRCODE_ADMIN_SHUTDOWN, "the query worker has ended", "Try again.");
	else
		JobEnqueue(job, true);
}
