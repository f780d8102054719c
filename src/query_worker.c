/*-------------------------------------------------------------------------
 *
 * query_worker.c
 *		The query worker: runs the SQL that is somebody else's.
 *
 * Takes one job at a time from its queue, runs it, answers, and ends when the
 * feed worker detaches.  The process is connected as the bootstrap superuser;
 * whatever is not ours runs only between QueryEnterIdentity and
 * QueryTransactionEnd, that is, as the subscriber's role, with the means to
 * become somebody else disabled, in a transaction that writes nothing, that
 * has a time limit, and that is always rolled back.
 *
 * A call (query_call.c) is the one thing that may write and is committed.  What
 * a commit would run or keep of somebody's code is done, or taken back, before
 * the role is left: deferred triggers, cursors, settings.  What outlives a
 * commit nevertheless, such as temporary tables, is dropped behind it.
 *
 * The time limit has a timer of its own, because statement_timeout can be set
 * by the code that it is to stop.  When it fires, the query is cancelled; code
 * that catches this and goes on is cancelled once more, and the third time the
 * process ends itself and leaves word of it in the segment.
 *
 * Cancels (SIGINT) of the pool are meant for the job that it knows to be
 * running.  The pool sends the next job only after the signal, so one that
 * comes late is forgotten when the next job begins; outside of jobs, cancels
 * are held off.
 *
 * Process: query worker.  Locks: none of ours.  Memory: a job's messages and
 * results live in query_job_context; everything else belongs to transactions,
 * to the policies (query_policy.c) or to the process.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "query_internal.h"

#include "encode.h"

#include "access/xact.h"
#include "commands/prepare.h"
#include "commands/sequence.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "storage/shm_mq.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#define STAT_PAUSE_MS 500

/* Code that ignores the limit of a trial ends the worker with the third. */
#define TRIAL_REPEAT_MS 50

DatabaseFeed *query_feed;
uint32 query_generation;
uint64 query_job;
MemoryContext query_job_context;

static QuerySegment *segment;
static shm_mq_handle *jobs;
static shm_mq_handle *results;

static TimeoutId limit_timeout;
static int limit_ms;
static bool limit_is_trial;
static volatile sig_atomic_t limit_hits;

/* ---- Messages ---- */

char *
QueryCopyBytes(WireBytes bytes)
{
	if (bytes.data == NULL)
		return pstrdup("");
	return pnstrdup(bytes.data, bytes.length);
}

void
QueryMessage(StringInfo out, QueryKind kind)
{
	resetStringInfo(out);
	WirePutU64(out, query_job);
	WirePutU8(out, (uint8) kind);
}

static void
SendMessage(StringInfo message, bool flush)
{
	shm_mq_result result;

	/* A cancel must not leave half a message in the queue. */
	HOLD_CANCEL_INTERRUPTS();
	result = shm_mq_send(results, message->len, message->data, false, flush);
	RESUME_CANCEL_INTERRUPTS();
	if (result != SHM_MQ_SUCCESS)
		proc_exit(0);
}

void
QuerySend(StringInfo message)
{
	SendMessage(message, true);
}

void
QuerySendPart(StringInfo message)
{
	SendMessage(message, false);
}

void
QueryCheckPeer(void)
{
	Size length;
	void *data;

	/* Nobody sends a job before the end of this one: it is empty or gone. */
	if (shm_mq_receive(jobs, &length, &data, true) == SHM_MQ_DETACHED)
		proc_exit(0);
}

uint32
QueryNextIdentity(void)
{
	return pg_atomic_fetch_add_u32(&segment->next, 1);
}

bool
QueryOneByOne(void)
{
	return pg_atomic_read_u32(&segment->one_by_one) != 0;
}

static void
PutText(StringInfo message, const char *text, QueryKind kind)
{
	int limit = kind == QUERY_CALL ? QUERY_CALL_ERROR_LENGTH : QUERY_ERROR_LENGTH;

	if (text == NULL)
		text = "";
	WirePutBytes(message, text, pg_mbcliplen(text, strlen(text), limit));
}

static void
SendError(const ErrorData *error, QueryKind kind)
{
	StringInfoData message;

	initStringInfo(&message);
	QueryMessage(&message, QUERY_ERROR);
	if (error->sqlerrcode == ERRCODE_QUERY_CANCELED && QueryTimedOut())
	{
		WirePutString(&message, unpack_sql_state(error->sqlerrcode));
		if (kind == QUERY_CALL)
		{
			WirePutString(&message, psprintf("the call took longer than %d ms", limit_ms));
			WirePutString(&message,
						  "It was rolled back. The limit is the setting changefeed.call_timeout.");
		}
		else
		{
			WirePutString(&message, psprintf("the query took longer than %d ms", limit_ms));
			WirePutString(
				&message,
				"Simplify the policies of the table or support them by indexes, or raise changefeed.policy_timeout.");
		}
		WirePutString(&message, "");
	}
	else
	{
		WirePutString(&message, unpack_sql_state(error->sqlerrcode));
		PutText(&message, error->message != NULL ? error->message : "missing error text", kind);
		PutText(&message, error->hint, kind);
		PutText(&message, error->detail, kind);
	}
	QuerySend(&message);
}

/* ---- Time limits ---- */

/* In a signal handler. */
static void
LimitReached(void)
{
	if (++limit_hits < 3)
		QueryCancelPending = true;
	else
	{
		if (!limit_is_trial)
			pg_atomic_write_u32(&segment->timed_out, 1);
		ProcDiePending = true;
	}
	InterruptPending = true;
	SetLatch(MyLatch);
}

bool
QueryTimedOut(void)
{
	return limit_hits > 0;
}

/* The memory that LimitReached() writes to goes away before the process does. */
static void
ForgetTimeLimits(int code, Datum arg)
{
	disable_all_timeouts(false);
}

static void
ReportTimeLimit(int code, Datum arg)
{
	if (segment != NULL && pg_atomic_read_u32(&segment->timed_out) != 0)
		ereport(
			LOG,
			(errcode(ERRCODE_QUERY_CANCELED),
			 errmsg(
				 "query worker ends because a policy or a function ignored that its time was up"),
			 errdetail("It was cancelled after %d ms and once more.", limit_ms),
			 errhint("Look for exception handlers with WHEN query_canceled.")));
}

/* ---- Transactions ---- */

void
QueryTimeLimit(int64 time_limit)
{
	/* Whoever has ignored that his time is up gets no more of it. */
	if (limit_hits > 0)
		return;
	limit_is_trial = false;
	limit_ms = (int) Min(time_limit, INT_MAX / 4);
	/* Who goes on is given the time of a verdict to think better of it. */
	enable_timeout_every(limit_timeout,
						 TimestampTzPlusMilliseconds(GetCurrentTimestamp(), limit_ms),
						 Min(limit_ms, setting_policy_timeout));
}

void
QueryTrialLimit(int time_limit)
{
	if (limit_hits > 0)
		return;
	limit_is_trial = true;
	enable_timeout_every(limit_timeout,
						 TimestampTzPlusMilliseconds(GetCurrentTimestamp(), time_limit),
						 Min(TRIAL_REPEAT_MS, setting_policy_timeout));
}

void
QueryTransactionBegin(int lock_timeout, int64 time_limit)
{
	char text[32];

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();

	/* As snapbuild.c says, there is no nicer way to set these. */
	XactIsoLevel = XACT_REPEATABLE_READ;
	XactReadOnly = true;

	snprintf(text, sizeof(text), "%d", lock_timeout);
	QuerySetLocal("lock_timeout", text);
	QueryForgetSearchPath();
	limit_hits = 0;
	QueryTimeLimit(time_limit);
}

void
QueryForgetSession(void)
{
	LockReleaseAll(USER_LOCKMETHOD, true);
	DropAllPreparedStatements();
	ResetSequenceCaches();
}

static void
ForgetSession(void)
{
	QueryForgetSession();
	QueryForgetSearchPath();
	MemoryContextSwitchTo(query_job_context);
}

void
QueryTransactionEnd(void)
{
	disable_timeout(limit_timeout, false);
	QueryCancelPending = false;

	/* Settings, role and cursors end with the transaction. */
	AbortOutOfAnyTransaction();
	ForgetSession();
}

/* ---- Transactions that write ---- */

void
QueryTransactionBeginWriting(Oid role, int64 time_limit)
{
	char *isolation;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	isolation = OidIsValid(role) ? QueryRoleSetting(role, "default_transaction_isolation") : NULL;
	if (isolation != NULL && pg_strcasecmp(isolation, "serializable") == 0)
		XactIsoLevel = XACT_SERIALIZABLE;
	else if (isolation != NULL && pg_strcasecmp(isolation, "repeatable read") == 0)
		XactIsoLevel = XACT_REPEATABLE_READ;
	else if (isolation != NULL)
		XactIsoLevel = XACT_READ_COMMITTED;
	QueryForgetSearchPath();
	limit_hits = 0;
	QueryTimeLimit(time_limit);
}

void
QueryTransactionCommit(void)
{
	disable_timeout(limit_timeout, false);
	HOLD_CANCEL_INTERRUPTS();
	QueryCancelPending = false;
	CommitTransactionCommand();
	RESUME_CANCEL_INTERRUPTS();
	ForgetSession();
}

/* ---- Jobs ---- */

static void
RunJob(char *data, Size length)
{
	WireReader body = WireReaderInit(data, length);
	volatile QueryKind kind;
	StringInfoData done;

	query_job = WireGetU64(&body);
	kind = (QueryKind) WireGetU8(&body);
	limit_hits = 0;
	QueryCancelPending = false;
	RESUME_CANCEL_INTERRUPTS();

	PG_TRY();
	{
		switch ((int) kind)
		{
			case QUERY_SUBSCRIBE:
				QueryRunSubscribe(&body);
				break;
			case QUERY_VERDICTS:
				QueryRunVerdicts(&body);
				break;
			case QUERY_CALL:
				QueryRunCall(&body);
				break;
			case QUERY_EXPIRE:
				QueryRunExpire();
				break;
			case QUERY_EXPLAIN:
				QueryRunExplain(&body);
				break;
			default:
				ereport(ERROR,
						(errcode(ERRCODE_DATA_CORRUPTED),
						 errmsg("query worker received a job of unknown kind %d", (int) kind)));
		}
		initStringInfo(&done);
		QueryMessage(&done, QUERY_DONE);
		QuerySend(&done);
	}
	PG_CATCH();
	{
		ErrorData *error;

		HOLD_CANCEL_INTERRUPTS();
		MemoryContextSwitchTo(query_job_context);
		error = CopyErrorData();
		FlushErrorState();
		QueryTransactionEnd();
		QueryPagesCleanup();
		ereport(DEBUG1, (errmsg_internal("query job failed: %s", error->message)));
		SendError(error, kind);
		RESUME_CANCEL_INTERRUPTS();
	}
	PG_END_TRY();

	HOLD_CANCEL_INTERRUPTS();
	query_job = 0;
}

static void
TakeJobs(void)
{
	uint32 wait_event = compat_wait_event("ChangefeedQueryMain");

	for (;;)
	{
		Size length;
		void *data;
		shm_mq_result result = shm_mq_receive(jobs, &length, &data, true);

		if (result == SHM_MQ_DETACHED)
			break;
		if (result == SHM_MQ_SUCCESS)
		{
			char *copy;

			/* QueryCheckPeer looks into the queue while the job runs. */
			copy = MemoryContextAllocHuge(query_job_context, Max(length, 1));
			memcpy(copy, data, length);
			MemoryContextSwitchTo(query_job_context);
			RunJob(copy, length);
			MemoryContextSwitchTo(TopMemoryContext);
			MemoryContextReset(query_job_context);
			pgstat_report_activity(STATE_IDLE, NULL);
			(void) pgstat_report_stat(false);
		}
		else
		{
			/* More may come soon: what is counted goes out behind a pause. */
			long ms = Min(pgstat_report_stat(false), STAT_PAUSE_MS);

			if (ms <= 0)
				(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH, -1L, wait_event);
			else if ((WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, ms,
								wait_event) &
					  WL_TIMEOUT) != 0)
				pgstat_report_stat(true);
			ResetLatch(MyLatch);
		}

		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
	}
}

static void
AttachQueues(const QueryWorkerExtra *extra)
{
	dsm_segment *seg = dsm_attach(extra->segment);
	char *base;
	shm_mq *mq;

	/* The feed worker has gone in the meantime. */
	if (seg == NULL)
		proc_exit(0);
	dsm_pin_mapping(seg);

	base = dsm_segment_address(seg);
	segment = (QuerySegment *) base;
	if (segment->magic != QUERY_SEGMENT_MAGIC)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED), errmsg("query worker found an unknown segment")));

	mq = (shm_mq *) (base + QUERY_JOBS_OFFSET);
	shm_mq_set_receiver(mq, MyProc);
	jobs = shm_mq_attach(mq, seg, NULL);
	mq = (shm_mq *) (base + QUERY_RESULTS_OFFSET);
	shm_mq_set_sender(mq, MyProc);
	results = shm_mq_attach(mq, seg, NULL);
}

static void
CleanupAtExit(int code, Datum arg)
{
	QueryPagesCleanup();
}

void
ChangefeedQueryMain(Datum main_arg)
{
	QueryWorkerExtra extra;
	StringInfoData hello;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGINT, StatementCancelHandler);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();

	memcpy(&extra, MyBgworkerEntry->bgw_extra, sizeof(extra));
	query_generation = extra.generation;
	query_feed = SharedFeedOfWorker(main_arg);
	BackgroundWorkerInitializeConnectionByOid(query_feed->database, InvalidOid, 0);
	pgstat_report_appname("changefeed query worker");

	MemoryContextSwitchTo(TopMemoryContext);
	query_job_context = AllocSetContextCreate(TopMemoryContext, "changefeed query job",
											  ALLOCSET_DEFAULT_SIZES);
	AttachQueues(&extra);
	before_shmem_exit(ReportTimeLimit, (Datum) 0);
	before_shmem_exit(CleanupAtExit, (Datum) 0);
	before_shmem_exit(ForgetTimeLimits, (Datum) 0);

	QueryIdentityInit();
	EncodePinSettings();
	/* Plans are short, and policies' are run once for each row. */
	SetConfigOption("jit", "off", PGC_SUSET, PGC_S_SESSION);
	/* Time limits are ours, see LimitReached; this one would end the process. */
	if (GetConfigOption("transaction_timeout", true, false) != NULL)
		SetConfigOption("transaction_timeout", "0", PGC_SUSET, PGC_S_SESSION);
	limit_timeout = RegisterTimeout(USER_TIMEOUT, LimitReached);
	PolicyInit();

	HOLD_CANCEL_INTERRUPTS();
	pgstat_report_activity(STATE_IDLE, NULL);
	initStringInfo(&hello);
	query_job = 0;
	QueryMessage(&hello, (QueryKind) QUERY_HELLO);
	QuerySend(&hello);
	pfree(hello.data);

	TakeJobs();
	proc_exit(0);
}
