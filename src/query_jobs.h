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
#define QUERY_SLOW (QUERY_LATER + 1)

typedef struct PoolJob
{
	uint64 id;
	dlist_node node; /* in a list of waiting jobs */
	bool in_list;
	TimestampTz submitted;
	QueryKind kind;
	int priority; /* QueryPriority or QUERY_SLOW */
	bool takes_rows;
	bool preempted;			/* interrupted, to go on in the slow lane */
	QueryCallback callback; /* NULL: cancelled */
	void *arg;
	char *body;
	Size length;
	int deaths;		/* of workers that ran it */
	bool delivered; /* a result went to the callback */

	/* QUERY_VERDICTS, given out identity by identity: */
	bool split;
	uint32 part; /* the identity that is next or running */
	uint32 nparts;
	XLogRecPtr lsn;		   /* highest of the parts */
	bool part_done;		   /* its verdict has come */
	StringInfoData merged; /* the verdicts of the parts before */
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
 * A result of a job that is given out identity by identity; with the last one
 * of a part the job is at no worker any more.
 */
extern void JobPartResult(PoolJob *job, QueryKind kind, WireReader *body);

/* What becomes of the job of a worker that died. */
extern void JobLostWorker(PoolJob *job, bool timed_out);

#endif /* CHANGEFEED_QUERY_JOBS_H */
