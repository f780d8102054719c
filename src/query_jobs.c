/*-------------------------------------------------------------------------
 *
 * query_jobs.c
 *		Jobs for query workers: waiting, delivered, and what becomes of those
 *		whose worker died.
 *
 * A job whose worker died is tried once more.  A job of verdicts is then given
 * out again identity by identity: the one that kills workers gets an error, and
 * the others their verdicts.  Which worker runs what is query_pool.c's.
 *
 * Process: feed worker.  Locks: none.  Memory: jobs in pool_context, freed one
 * by one.
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

typedef struct JobEntry
{
	uint64 id; /* hash key */
	PoolJob *job;
} JobEntry;

MemoryContext pool_context;
dlist_head job_waiting[QUERY_SLOW + 1];

static HTAB *job_table;
static uint64 last_job;

void
JobsInit(void)
{
	HASHCTL ctl = {0};
	int i;

	pool_context = AllocSetContextCreate(TopMemoryContext, "changefeed query pool",
										 ALLOCSET_DEFAULT_SIZES);
	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(JobEntry);
	ctl.hcxt = pool_context;
	job_table = hash_create("changefeed query jobs", 256, &ctl,
							HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	for (i = 0; i <= QUERY_SLOW; i++)
		dlist_init(&job_waiting[i]);
}

PoolJob *
JobFind(uint64 id)
{
	JobEntry *entry = hash_search(job_table, &id, HASH_FIND, NULL);

	return entry != NULL ? entry->job : NULL;
}

void
JobFree(PoolJob *job)
{
	(void) hash_search(job_table, &job->id, HASH_REMOVE, NULL);
	if (job->merged.data != NULL)
		pfree(job->merged.data);
	pfree(job->body);
	pfree(job);
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

uint64
QuerySubmit(QueryKind kind, const char *body, Size length, QueryPriority priority,
			QueryCallback callback, void *arg)
{
	PoolJob *job = MemoryContextAllocZero(pool_context, sizeof(PoolJob));
	JobEntry *entry;
	bool found;

	job->id = ++last_job;
	job->kind = kind;
	job->priority = priority;
	job->submitted = GetCurrentTimestamp();
	job->callback = callback;
	job->arg = arg;
	job->length = length;
	job->body = MemoryContextAllocHuge(pool_context, Max(length, 1));
	memcpy(job->body, body, length);
	if (kind == QUERY_SUBSCRIBE)
	{
		WireReader reader = WireReaderInit(body, length);

		(void) WireGetU32(&reader);
		(void) WireGetBytes(&reader);
		job->takes_rows = (WireGetU8(&reader) & QUERY_WITH_ROWS) != 0;
	}

	entry = hash_search(job_table, &job->id, HASH_ENTER, &found);
	entry->job = job;
	JobEnqueue(job, false);
	return job->id;
}

int
QueryPoolBacklog(void)
{
	return job_table != NULL ? (int) hash_get_num_entries(job_table) : 0;
}

/* ---- Verdicts, identity by identity ---- */

static void
MergeError(PoolJob *job, const char *sqlstate, Size sqlstate_length, const char *message,
		   Size length)
{
	WirePutU8(&job->merged, 1);
	WirePutBytes(&job->merged, sqlstate, sqlstate_length);
	WirePutBytes(&job->merged, message, length);
	job->part_done = true;
}

/* The part is through: on to the next one, or done.  The job is at no worker. */
static void
NextPart(PoolJob *job)
{
	StringInfoData list;

	if (job->callback == NULL)
	{
		JobFree(job);
		return;
	}
	job->part++;
	job->part_done = false;
	job->deaths = 0;
	if (job->part < job->nparts)
	{
		JobEnqueue(job, true);
		return;
	}

	initStringInfo(&list);
	WirePutU64(&list, job->lsn);
	appendBinaryStringInfo(&list, job->merged.data, job->merged.len);
	JobDeliver(job, QUERY_VERDICT_LIST, list.data, list.len);
	pfree(list.data);
	JobDeliver(job, QUERY_DONE, "", 0);
}

void
JobPartResult(PoolJob *job, QueryKind kind, WireReader *body)
{
	if (kind == QUERY_VERDICT_LIST && !job->part_done)
	{
		XLogRecPtr lsn = WireGetU64(body);

		job->lsn = Max(job->lsn, lsn);
		appendBinaryStringInfo(&job->merged, body->data + body->offset,
							   (int) (body->length - body->offset));
		job->part_done = true;
	}
	else if (kind == QUERY_ERROR || kind == QUERY_DONE)
	{
		if (!job->part_done)
		{
			WireBytes sqlstate = WireGetBytes(body);
			WireBytes message = WireGetBytes(body);

			if (kind == QUERY_DONE || body->failed)
				MergeError(job, "XX000", 5, "no verdict", 10);
			else
				MergeError(job, sqlstate.data, sqlstate.length, message.data, message.length);
		}
		NextPart(job);
	}
}

/* The identities of a job of verdicts are tried one by one from now on. */
static bool
SplitJob(PoolJob *job)
{
	MemoryContext old;

	if (!QuerySplitVerdicts(job->body, job->length, 0, NULL, &job->nparts) || job->nparts == 0)
		return false;
	job->split = true;
	old = MemoryContextSwitchTo(pool_context);
	initStringInfo(&job->merged);
	MemoryContextSwitchTo(old);
	return true;
}

static void
VerdictsLostWorker(PoolJob *job, bool timed_out)
{
	if (job->split && job->part_done)
	{
		NextPart(job);
		return;
	}
	if (job->delivered)
	{
		JobDeliver(job, QUERY_DONE, "", 0);
		return;
	}
	if (!job->split)
	{
		if (!SplitJob(job))
		{
			JobDeliverError(job, ERRCODE_DATA_CORRUPTED, "malformed job for a query worker", "");
			return;
		}
		/* Among several it is not known who it was. */
		if (job->nparts > 1)
		{
			job->deaths = 0;
			timed_out = false;
		}
	}

	if (timed_out)
	{
		char *message = psprintf(
			"policies took longer than changefeed.policy_timeout (%d ms) and went on when cancelled",
			setting_policy_timeout);

		MergeError(job, unpack_sql_state(ERRCODE_QUERY_CANCELED), 5, message, strlen(message));
		pfree(message);
		NextPart(job);
	}
	else if (job->deaths >= 2)
	{
		const char *message = "two query workers ended while judging changes for this identity";

		MergeError(job, unpack_sql_state(ERRCODE_ADMIN_SHUTDOWN), 5, message, strlen(message));
		NextPart(job);
	}
	else
		JobEnqueue(job, true);
}

/* What becomes of the job of a worker that died. */
void
JobLostWorker(PoolJob *job, bool timed_out)
{
	job->deaths++;
	if (job->callback == NULL)
		JobFree(job);
	else if (job->kind == QUERY_VERDICTS)
		VerdictsLostWorker(job, timed_out);
	else if (timed_out || job->preempted)
		JobDeliverError(
			job, ERRCODE_QUERY_CANCELED, "the query took too long and went on when cancelled",
			"Look for exception handlers with WHEN query_canceled in functions that policies call.");
	else if (job->deaths >= 2 || job->delivered)
		JobDeliverError(job, ERRCODE_ADMIN_SHUTDOWN, "the query worker has ended", "Try again.");
	else
		JobEnqueue(job, true);
}
