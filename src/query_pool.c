/*-------------------------------------------------------------------------
 *
 * query_pool.c
 *		The feed worker's side of the query workers: who runs what.
 *
 * A fixed number of dynamic background workers, each with a segment of its own
 * that holds two queues.  A dead worker gets a new segment, as a queue cannot
 * change its ends.  A worker has one job at a time, and is given one only when
 * it has said hello, so that a failing start costs no job.
 *
 * Live changes wait for verdicts, so verdicts are handed out first, and of two
 * or more workers one is kept free of snapshots.  A snapshot that has waited
 * for long takes its turn all the same, as verdicts may never end.
 *
 * Verdicts of an identity that is known to be slow are jobs of their own, with
 * a worker of their own that is started when it is first needed; ordinary
 * workers take them only while another one stays free.  The cheapest goes first.
 * When an identity that was not known to be slow keeps the others of its job
 * waiting, these are taken away from the worker and are next in line.
 *
 * A snapshot that takes long while others wait is interrupted and goes on in a
 * lane of its own: one more worker, started when it is first needed, where slow
 * snapshots wait for each other and for nobody else.  An interrupt is repeated,
 * and in the end the worker is terminated: whatever a policy does with cancels,
 * it cannot keep a worker.
 *
 * Calls run for as long as somebody's function takes, and so have workers of
 * their own, changefeed.call_workers at most, which are started when they are
 * needed.  Only if none of them can be started an ordinary one takes them.
 *
 * What becomes of the job of a worker that died is in query_jobs.c.
 *
 * Process: feed worker.  Nothing here blocks.  Locks: none.  Memory: a context
 * of the pool's own below TopMemoryContext; jobs are freed one by one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "query_internal.h"
#include "query_jobs.h"

#include <signal.h>
#include <unistd.h>

#include "lib/ilist.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/fd.h"
#include "storage/proc.h"
#include "storage/shm_mq.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define BACKOFF_MIN_MS	  100
#define BACKOFF_MAX_MS	  10000
#define REGISTER_RETRY_MS 5000	 /* no free slot for a background worker */
#define STABLE_MS		  10000	 /* who lived longer is restarted at once */
#define NO_WORKER_MS	  15000	 /* then waiting jobs get an error */
#define LATER_PATIENCE_MS 500	 /* a snapshot lets verdicts go first */
#define MESSAGES_PER_TURN 32	 /* of one worker */
#define INTERRUPTS		  3		 /* before a worker is terminated */
#define TAKE_APART_MS	  20	 /* an identity keeps others waiting */
#define MILD_US			  100000 /* verdicts that cost less are not that slow */

typedef struct PoolWorker
{
	dsm_segment *segment; /* NULL: not started */
	BackgroundWorkerHandle *handle;
	shm_mq_handle *jobs;
	shm_mq_handle *results;
	bool ready; /* has said hello */
	TimestampTz started;
	TimestampTz retry_at;
	int backoff; /* ms */
	PoolJob *job;
	TimestampTz given;		 /* when it got the job */
	TimestampTz progress;	 /* and when it last answered for an identity */
	bool taken_apart;		 /* others have the rest of it */
	int interrupts;			 /* sent for this job */
	TimestampTz interrupted; /* the last of them */

	/* The message that hands out the job, as long as it is not sent. */
	char *message;
	Size message_length;
} PoolWorker;

static DatabaseFeed *pool_feed;
static int pool_feed_index;
static PoolWorker *workers;
static int nworkers;				/* ordinary ones; those of lanes follow */
static int ncallers;				/* those of calls are the last */
static bool last_was_later;			/* the job given out last */
static bool register_failed;		/* and said so */
static TimestampTz no_worker_since; /* 0: there is one */

/* Behind the ordinary workers. */
#define SNAPSHOT_LANE (&workers[nworkers])
#define VERDICT_LANE  (&workers[nworkers + 1])
#define CALL_LANE	  (&workers[nworkers + 2])
#define ALL_WORKERS	  (nworkers + 2 + ncallers)

/*
 * Ends the job at hand.  Verdicts are short, and have a time limit of their
 * own that cannot be ignored.
 */
static void
InterruptWorker(PoolWorker *worker)
{
	pid_t pid;

	if (worker->job->kind == QUERY_VERDICTS || worker->handle == NULL)
		return;
	worker->interrupted = GetCurrentTimestamp();
	if (worker->interrupts++ >= INTERRUPTS)
		TerminateBackgroundWorker(worker->handle);
	else if (GetBackgroundWorkerPid(worker->handle, &pid) == BGWH_STARTED)
		(void) kill(pid, SIGINT);
}

void
QueryCancel(uint64 id)
{
	PoolJob *job = JobFind(id);
	int i;

	if (job == NULL || job->callback == NULL)
		return;
	if (job->in_list)
	{
		dlist_delete(&job->node);
		JobFree(job);
		return;
	}

	/* It is freed with its last result; see also SendJob. */
	job->callback = NULL;
	for (i = 0; i < ALL_WORKERS; i++)
		if (workers[i].job == job && workers[i].message == NULL)
			InterruptWorker(&workers[i]);
}

/* ---- Workers ---- */

static bool
IsDead(const PoolWorker *worker)
{
	return worker->segment == NULL;
}

static void
ReleaseWorker(PoolWorker *worker)
{
	if (worker->message != NULL)
		pfree(worker->message);
	shm_mq_detach(worker->jobs);
	shm_mq_detach(worker->results);
	dsm_detach(worker->segment);
	if (worker->handle != NULL)
		pfree(worker->handle);
	worker->message = NULL;
	worker->jobs = NULL;
	worker->results = NULL;
	worker->segment = NULL;
	worker->handle = NULL;
	worker->ready = false;
	worker->job = NULL;
}

static bool IsNeeded(const PoolWorker *worker);

static void
ReportRegisterFailure(void)
{
	int missing = 0;
	int needed = 0;
	int i;

	if (register_failed)
		return;
	register_failed = true;
	for (i = 0; i < ALL_WORKERS; i++)
	{
		if (!IsNeeded(&workers[i]))
			continue;
		needed++;
		if (IsDead(&workers[i]))
			missing++;
	}
	ereport(
		LOG,
		(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
		 errmsg("could not start %d of %d query workers of the change feed", missing, needed),
		 errdetail("All slots for background workers are in use."),
		 errhint(
			 "Raise max_worker_processes from %d to at least %d, or lower changefeed.query_workers. Retrying every %d seconds.",
			 max_worker_processes, max_worker_processes + missing, REGISTER_RETRY_MS / 1000)));
}

static void
StartWorker(PoolWorker *worker, TimestampTz now)
{
	int number = (int) (worker - workers);
	MemoryContext old = MemoryContextSwitchTo(pool_context);
	BackgroundWorker bgworker;
	QueryWorkerExtra extra;
	QuerySegment *header;
	char *base;
	shm_mq *mq;

	worker->segment = dsm_create(QUERY_SEGMENT_SIZE, DSM_CREATE_NULL_IF_MAXSEGMENTS);
	if (worker->segment == NULL)
	{
		ReportRegisterFailure();
		worker->retry_at = TimestampTzPlusMilliseconds(now, REGISTER_RETRY_MS);
		MemoryContextSwitchTo(old);
		return;
	}
	dsm_pin_mapping(worker->segment);

	base = dsm_segment_address(worker->segment);
	header = (QuerySegment *) base;
	header->magic = QUERY_SEGMENT_MAGIC;
	pg_atomic_init_u32(&header->timed_out, 0);
	pg_atomic_init_u32(&header->next, QUERY_NO_MORE);
	pg_atomic_init_u32(&header->one_by_one, 0);
	mq = shm_mq_create(base + QUERY_JOBS_OFFSET, QUERY_JOBS_SIZE);
	shm_mq_set_sender(mq, MyProc);
	worker->jobs = shm_mq_attach(mq, worker->segment, NULL);
	mq = shm_mq_create(base + QUERY_RESULTS_OFFSET, QUERY_RESULTS_SIZE);
	shm_mq_set_receiver(mq, MyProc);
	worker->results = shm_mq_attach(mq, worker->segment, NULL);

	memset(&extra, 0, sizeof(extra));
	extra.generation = pool_feed->generation;
	extra.segment = dsm_segment_handle(worker->segment);
	extra.number = number;

	memset(&bgworker, 0, sizeof(bgworker));
	bgworker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	bgworker.bgw_start_time = BgWorkerStart_ConsistentState;
	bgworker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(bgworker.bgw_library_name, CHANGEFEED_LIBRARY, sizeof(bgworker.bgw_library_name));
	strlcpy(bgworker.bgw_function_name, "ChangefeedQueryMain", sizeof(bgworker.bgw_function_name));
	snprintf(bgworker.bgw_name, sizeof(bgworker.bgw_name),
			 "changefeed query worker %d of database %u", number + 1, pool_feed->database);
	strlcpy(bgworker.bgw_type, "changefeed query worker", sizeof(bgworker.bgw_type));
	bgworker.bgw_main_arg = Int32GetDatum(pool_feed_index);
	memcpy(bgworker.bgw_extra, &extra, sizeof(extra));
	bgworker.bgw_notify_pid = MyProcPid;

	if (!RegisterDynamicBackgroundWorker(&bgworker, &worker->handle))
	{
		worker->handle = NULL;
		ReleaseWorker(worker);
		ReportRegisterFailure();
		worker->retry_at = TimestampTzPlusMilliseconds(now, REGISTER_RETRY_MS);
	}
	else
	{
		/* With it the queues notice a worker that dies before it attaches. */
		shm_mq_set_handle(worker->jobs, worker->handle);
		shm_mq_set_handle(worker->results, worker->handle);
		worker->started = now;
	}
	MemoryContextSwitchTo(old);
}

static void
WorkerEnded(PoolWorker *worker, TimestampTz now)
{
	QuerySegment *header = dsm_segment_address(worker->segment);
	bool timed_out = pg_atomic_read_u32(&header->timed_out) != 0;
	bool begun = worker->message == NULL;
	PoolJob *job = worker->job;

	if (timed_out || TimestampDifferenceExceeds(worker->started, now, STABLE_MS))
		worker->backoff = 0;
	else
		worker->backoff = Min(Max(worker->backoff * 2, BACKOFF_MIN_MS), BACKOFF_MAX_MS);
	worker->retry_at = TimestampTzPlusMilliseconds(now, worker->backoff);
	ReleaseWorker(worker);
	if (job != NULL)
		JobLostWorker(job, timed_out, begun);
}

static void
HandleMessage(PoolWorker *worker, const char *data, Size length)
{
	WireReader reader = WireReaderInit(data, length);
	uint64 id = WireGetU64(&reader);
	QueryKind kind = (QueryKind) WireGetU8(&reader);
	PoolJob *job = worker->job;

	if (id == 0 && kind == (QueryKind) QUERY_HELLO)
	{
		worker->ready = true;
		no_worker_since = 0;
		register_failed = false;
		return;
	}
	if (job == NULL || job->id != id || reader.failed)
	{
		ereport(LOG,
				(errcode(ERRCODE_DATA_CORRUPTED), errmsg("unexpected message of a query worker")));
		return;
	}
	if (job->kind == QUERY_VERDICTS)
	{
		worker->progress = GetCurrentTimestamp();
		if (kind == QUERY_DONE || kind == QUERY_ERROR)
			worker->job = NULL;
		(void) JobVerdictResult(job, kind, &reader);
		return;
	}
	if (kind == QUERY_DONE || kind == QUERY_ERROR)
		worker->job = NULL;
	if (job->preempted && kind == QUERY_ERROR && !job->delivered && job->callback != NULL)
	{
		job->preempted = false;
		job->priority = QUERY_SLOW;
		JobEnqueue(job, false);
		return;
	}
	JobDeliver(job, kind, reader.data + reader.offset, reader.length - reader.offset);
}

/* True: there may be more. */
static bool
ReceiveResults(PoolWorker *worker, TimestampTz now)
{
	int i;

	for (i = 0; i < MESSAGES_PER_TURN; i++)
	{
		Size length;
		void *data;
		shm_mq_result result = shm_mq_receive(worker->results, &length, &data, true);

		if (result == SHM_MQ_WOULD_BLOCK)
			return false;
		if (result == SHM_MQ_DETACHED)
		{
			WorkerEnded(worker, now);
			return false;
		}
		HandleMessage(worker, data, length);
	}
	return true;
}

static int
WorkersReady(void)
{
	int n = 0;
	int i;

	for (i = 0; i < nworkers; i++)
		if (workers[i].ready)
			n++;
	return n;
}

/* Ordinary workers that may be kept for long by what they do. */
static int
WorkersTaken(void)
{
	int n = 0;
	int i;

	for (i = 0; i < nworkers; i++)
		if (workers[i].job != NULL && workers[i].job->priority != QUERY_FIRST)
			n++;
	return n;
}

/* May a snapshot be given out? */
static bool
LaterIsPossible(void)
{
	return !dlist_is_empty(&job_waiting[QUERY_LATER]) &&
		   WorkersTaken() < Max(WorkersReady() - 1, 1);
}

/* The costly job that is the least so, or NULL. */
static PoolJob *
Cheapest(void)
{
	PoolJob *best = NULL;
	dlist_iter iter;

	dlist_foreach(iter, &job_waiting[QUERY_COSTLY])
	{
		PoolJob *job = dlist_container(PoolJob, node, iter.cur);

		if (best == NULL || job->cost < best->cost)
			best = job;
	}
	return best;
}

static PoolJob *
PopCheapest(void)
{
	PoolJob *job = Cheapest();

	dlist_delete(&job->node);
	job->in_list = false;
	return job;
}

/*
 * May an ordinary worker take a verdict that takes long?  One worker stays free
 * for other verdicts, and one for snapshots unless these will hardly notice:
 * on a busy machine anybody may seem slow for a moment, who is not to wait
 * for those that are.  Without a lane nobody stays free.
 */
static bool
CostlyIsPossible(void)
{
	PoolJob *job = Cheapest();

	return job != NULL && (WorkersTaken() < WorkersReady() - (job->cost < MILD_US ? 1 : 2) ||
						   (IsDead(VERDICT_LANE) && register_failed));
}

/* May an ordinary worker take a call? */
static bool
CallIsPossible(void)
{
	int i;

	if (dlist_is_empty(&job_waiting[QUERY_CALLS]) || !register_failed ||
		WorkersTaken() >= Max(WorkersReady() - 1, 1))
		return false;
	for (i = 0; i < ncallers; i++)
		if (!IsDead(&CALL_LANE[i]))
			return false;
	return true;
}

/* The list that the next job comes from, or NULL when none may be given out. */
static dlist_head *
NextList(TimestampTz now)
{
	bool later = LaterIsPossible();

	if (later && !last_was_later)
	{
		PoolJob *job = dlist_head_element(PoolJob, node, &job_waiting[QUERY_LATER]);

		if (TimestampDifferenceExceeds(job->submitted, now, LATER_PATIENCE_MS))
			return &job_waiting[QUERY_LATER];
	}
	if (!dlist_is_empty(&job_waiting[QUERY_FIRST]))
		return &job_waiting[QUERY_FIRST];
	if (CostlyIsPossible())
		return &job_waiting[QUERY_COSTLY];
	if (later)
		return &job_waiting[QUERY_LATER];
	return CallIsPossible() ? &job_waiting[QUERY_CALLS] : NULL;
}

/* The message is in the worker's hands, or will be sent on when there is room. */
static void
SendJob(PoolWorker *worker)
{
	if (shm_mq_send(worker->jobs, worker->message_length, worker->message, true, true) ==
		SHM_MQ_WOULD_BLOCK)
		return;
	/* A worker that is gone is noticed where results are received. */
	pfree(worker->message);
	worker->message = NULL;
	if (worker->job->callback == NULL)
		InterruptWorker(worker);
}

static void
GiveJob(PoolWorker *worker, PoolJob *job)
{
	QuerySegment *header = dsm_segment_address(worker->segment);
	Size head = sizeof(uint64) + sizeof(uint8);
	uint8 kind = (uint8) job->kind;

	if (job->kind == QUERY_VERDICTS)
	{
		pg_atomic_write_u32(&header->next, job->part);
		pg_atomic_write_u32(&header->one_by_one, job->deaths > 0 ? 1 : 0);
	}
	worker->message_length = head + job->length;
	worker->message = MemoryContextAllocHuge(pool_context, worker->message_length);
	memcpy(worker->message, &job->id, sizeof(uint64));
	memcpy(worker->message + sizeof(uint64), &kind, sizeof(uint8));
	memcpy(worker->message + head, job->body, job->length);
	worker->job = job;
	worker->given = GetCurrentTimestamp();
	worker->progress = worker->given;
	worker->taken_apart = false;
	worker->interrupts = 0;
	SendJob(worker);
}

/* When the others of the worker's job are to be taken from it. */
static TimestampTz
TakeApartDue(PoolWorker *worker)
{
	PoolJob *job = worker->job;

	if (job == NULL || job->kind != QUERY_VERDICTS || worker->message != NULL ||
		worker->taken_apart || job->end - job->part < 2)
		return DT_NOEND;
	return TimestampTzPlusMilliseconds(worker->progress, TAKE_APART_MS);
}

static void
TakeJobsApart(TimestampTz now)
{
	int i;

	for (i = 0; i < ALL_WORKERS; i++)
	{
		QuerySegment *header;
		uint32 next;

		if (TakeApartDue(&workers[i]) > now)
			continue;
		header = dsm_segment_address(workers[i].segment);
		if (pg_atomic_read_u32(&header->next) == workers[i].job->part)
		{
			/* It is still reading the job: a large one. */
			workers[i].progress = now;
			continue;
		}
		workers[i].taken_apart = true;
		next = pg_atomic_exchange_u32(&header->next, QUERY_NO_MORE);
		if (next < workers[i].job->end)
			JobEnqueue(JobTakeApart(workers[i].job, next), true);
	}
}

/* What waits for a worker that is not an ordinary one. */
static dlist_head *
LaneOf(const PoolWorker *worker)
{
	if (worker >= CALL_LANE)
		return &job_waiting[QUERY_CALLS];
	return &job_waiting[worker == SNAPSHOT_LANE ? QUERY_SLOW : QUERY_COSTLY];
}

static dlist_head *
NextListFor(PoolWorker *worker, TimestampTz now)
{
	dlist_head *list;

	if (worker < SNAPSHOT_LANE)
		return NextList(now);
	list = LaneOf(worker);
	return dlist_is_empty(list) ? NULL : list;
}

/*
 * When the worker's job is to be interrupted (again): nobody wants it any
 * more, or it takes long and others wait.  DT_NOEND: not by now.
 */
static TimestampTz
InterruptDue(PoolWorker *worker)
{
	PoolJob *job = worker->job;

	if (job == NULL || worker->message != NULL || job->kind == QUERY_VERDICTS ||
		job->kind == QUERY_CALL)
		return DT_NOEND;
	if (worker->interrupts > 0)
		return worker->interrupts > INTERRUPTS
				   ? DT_NOEND
				   : TimestampTzPlusMilliseconds(worker->interrupted, setting_policy_timeout);
	if (job->priority == QUERY_LATER && !job->delivered &&
		!dlist_is_empty(&job_waiting[QUERY_LATER]))
		return TimestampTzPlusMilliseconds(worker->given, setting_policy_timeout);
	return DT_NOEND;
}

static void
InterruptJobs(TimestampTz now)
{
	int i;

	for (i = 0; i < ALL_WORKERS; i++)
	{
		if (InterruptDue(&workers[i]) > now)
			continue;
		if (workers[i].job->callback != NULL)
			workers[i].job->preempted = true;
		InterruptWorker(&workers[i]);
	}
}

static void
GiveJobs(TimestampTz now)
{
	int i;

	for (i = 0; i < ALL_WORKERS; i++)
	{
		PoolWorker *worker = &workers[i];
		dlist_head *list;

		if (worker->message != NULL)
			SendJob(worker);
		if (worker->ready && worker->job == NULL && (list = NextListFor(worker, now)) != NULL)
		{
			last_was_later = list == &job_waiting[QUERY_LATER];
			GiveJob(worker, list == &job_waiting[QUERY_COSTLY] ? PopCheapest() : JobPop(list));
		}
	}
}

/* Workers of lanes are started when there is something for them. */
static bool
IsNeeded(const PoolWorker *worker)
{
	PoolWorker *other;

	if (worker < SNAPSHOT_LANE)
		return true;
	/* One more for calls only when those there are have something to do. */
	for (other = CALL_LANE; other < worker; other++)
		if (!IsDead(other) && other->job == NULL)
			return false;
	return !dlist_is_empty(LaneOf(worker));
}

/* Nobody has been there for long: whoever waits learns of it. */
static void
RefuseWaiting(void)
{
	int i;

	for (i = 0; i <= QUERY_SLOW; i++)
	{
		dlist_head list;

		/* Callbacks may submit new jobs, which are for the next turn. */
		dlist_init(&list);
		while (!dlist_is_empty(&job_waiting[i]))
			dlist_push_tail(&list, dlist_pop_head_node(&job_waiting[i]));
		while (!dlist_is_empty(&list))
		{
			PoolJob *job = JobPop(&list);

			if (job->kind == QUERY_VERDICTS)
				JobUndecided(job);
			else
				JobDeliverError(job, ERRCODE_ADMIN_SHUTDOWN, "no query worker could be started",
								"See the server log; max_worker_processes may be too low.");

			/* No message of a worker wakes whoever uses the answer. */
			SetLatch(MyLatch);
		}
	}
}

int
QueryPoolBusy(void)
{
	int n = 0;
	int i;

	for (i = 0; i < ALL_WORKERS; i++)
		if (workers[i].job != NULL)
			n++;
	return n;
}

bool
QueryPoolPoll(void)
{
	TimestampTz now = GetCurrentTimestamp();
	bool more = false;
	int i;

	for (i = 0; i < ALL_WORKERS; i++)
	{
		if (IsDead(&workers[i]))
		{
			if (IsNeeded(&workers[i]) && now >= workers[i].retry_at)
				StartWorker(&workers[i], now);
		}
		else if (ReceiveResults(&workers[i], now))
			more = true;
	}

	if (WorkersReady() > 0)
		no_worker_since = 0;
	else if (no_worker_since == 0)
		no_worker_since = now;
	else if (TimestampDifferenceExceeds(no_worker_since, now, NO_WORKER_MS))
		RefuseWaiting();

	TakeJobsApart(now);
	GiveJobs(now);
	InterruptJobs(now);
	return more;
}

long
QueryPoolTimeout(void)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz next = DT_NOEND;
	int i;

	for (i = 0; i < ALL_WORKERS; i++)
	{
		if (IsDead(&workers[i]))
		{
			if (IsNeeded(&workers[i]))
				next = Min(next, workers[i].retry_at);
			continue;
		}
		/* Submitted after the last poll. */
		if (workers[i].ready && workers[i].job == NULL && NextListFor(&workers[i], now) != NULL)
			return 0;
		next = Min(next, InterruptDue(&workers[i]));
		next = Min(next, TakeApartDue(&workers[i]));
	}
	if (no_worker_since != 0 &&
		!(dlist_is_empty(&job_waiting[QUERY_FIRST]) && dlist_is_empty(&job_waiting[QUERY_LATER])))
		next = Min(next, TimestampTzPlusMilliseconds(no_worker_since, NO_WORKER_MS + 1));
	if (next == DT_NOEND)
		return -1;
	return TimestampDifferenceMilliseconds(now, next);
}

/* Files that a feed worker before us got, or did not get, and left behind. */
static void
RemoveOldSpoolFiles(void)
{
	char prefix[MAXPGPATH];
	DIR *dir = AllocateDir(QUERY_SPOOL_DIRECTORY);
	struct dirent *entry;

	if (dir == NULL)
		return;
	snprintf(prefix, sizeof(prefix), "%s%u.", QUERY_SPOOL_PREFIX, pool_feed->database);
	while ((entry = ReadDirExtended(dir, QUERY_SPOOL_DIRECTORY, LOG)) != NULL)
	{
		char path[MAXPGPATH * 2];

		if (strncmp(entry->d_name, prefix, strlen(prefix)) != 0 ||
			strtoul(entry->d_name + strlen(prefix), NULL, 10) == pool_feed->generation)
			continue;
		snprintf(path, sizeof(path), "%s/%s", QUERY_SPOOL_DIRECTORY, entry->d_name);
		(void) unlink(path);
	}
	FreeDir(dir);
}

void
QueryPoolStart(DatabaseFeed *feed, int feed_index)
{
	TimestampTz now = GetCurrentTimestamp();
	int i;

	pool_feed = feed;
	pool_feed_index = feed_index;
	JobsInit();
	RemoveOldSpoolFiles();

	nworkers = setting_query_workers;
	ncallers = setting_call_workers;
	workers = MemoryContextAllocZero(pool_context, sizeof(PoolWorker) * ALL_WORKERS);
	no_worker_since = now;
	for (i = 0; i < nworkers; i++)
		StartWorker(&workers[i], now);
}
