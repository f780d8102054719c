/*-------------------------------------------------------------------------
 *
 * query_jobs.h
 *		Jobs for query workers, shared by query_jobs.c and query_pool.c.
 *
 * Process: feed worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_QUERY_JOBS_H
#define CHANGEFEED_QUERY_JOBS_H

#include "query.h"

#include "lib/ilist.h"

/* Internal priority: the lane of slow snapshots. */
#define QUERY_SLOW (QUERY_CALLS + 1)

typedef struct PoolJob
{
	uint64 id;
	dlist_node node; /* in a list of waiting jobs */
	bool in_list;
	TimestampTz submitted;
	QueryKind kind;
	int priority;			/* QueryPriority or QUERY_SLOW */
	bool preempted;			/* interrupted, to go on in the slow lane */
	QueryCallback callback; /* NULL: cancelled */
	void *arg;
	char *body;
	Size length;
	int deaths;		/* of workers that ran it */
	bool delivered; /* a result went to the callback */

	/* QUERY_CALL: */
	bool repeatable; /* may be run again when its worker died */

	/* QUERY_VERDICTS: */
	uint32 part; /* the identity whose verdict comes next */
	uint32 end;	 /* behind the last one that is this job's */
	uint32 cost; /* expected, in microseconds */
} PoolJob;

extern MemoryContext pool_context;
extern dlist_head job_waiting[QUERY_SLOW + 1]; /* by priority */

extern void JobsInit(void);
extern PoolJob *JobFind(uint64 id);
extern void JobFree(PoolJob *job);
extern void JobEnqueue(PoolJob *job, bool first);
extern PoolJob *JobPop(dlist_head *list);

/* With the last result the job is freed; it is in no list and at no worker. */
extern void JobDeliver(PoolJob *job, QueryKind kind, const char *body, Size length);
extern void JobDeliverError(PoolJob *job, int sqlerrcode, const char *message, const char *hint);

/*
 * A result of a job of verdicts.  True: it was the last one, the job is at no
 * worker any more and is gone.
 */
extern bool JobVerdictResult(PoolJob *job, QueryKind kind, WireReader *body);

/* A job that has the verdicts from `part` on, and `job` only those before. */
extern PoolJob *JobTakeApart(PoolJob *job, uint32 part);

/* No verdict is to be expected: the job is gone. */
extern void JobUndecided(PoolJob *job);

/*
 * What becomes of the job of a worker that died.  `begun`: the worker may have
 * begun with it.
 */
extern void JobLostWorker(PoolJob *job, bool timed_out, bool begun);

#endif /* CHANGEFEED_QUERY_JOBS_H */
