/*-------------------------------------------------------------------------
 *
 * launcher.c
 *		The launcher: finds the databases that have the extension, and keeps a
 *		decoder and a feed worker running for each of them, as a pair.
 *
 * A database becomes known by its replication slot, by a request that the
 * commit of CREATE EXTENSION left in shared memory, or by the scan that is
 * made at start (launcher_scan.c).  The launcher itself is connected to none and reads only shared
 * catalogs.
 *
 * Life of a pair (PairPhase):
 *
 *	WAITING --next_try--> RUNNING --one ended, or unwanted--> ENDING
 *	ENDING  --both ended, wanted--> WAITING (with back-off)
 *	ENDING  --both ended, unwanted--> DROPPING --slots dropped--> NONE
 *
 * After a restart of the launcher alone its predecessor's workers still run.
 * Their entries begin in ENDING, without handles: the workers are found by
 * their registered process numbers.
 *
 * Workers are never restarted by the postmaster, which would do so with old
 * arguments, and beside those that a restarted launcher starts.
 *
 * Times are those of a clock that nobody sets (MonotonicTime): whoever sets the
 * time of day back must not put off a start by as much.
 *
 * Process: launcher.
 *
 * Locks: SharedFeeds->lock, briefly.  Nothing here waits for anything but its
 * latch, so that no procedure that needs all processes to answer (DROP
 * DATABASE) waits for us.
 *
 * Memory: LauncherContext lives as long as the process, LoopContext for one
 * turn of the loop.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "launcher.h"
#include "shared.h"

#include <signal.h>

#include "access/xlog.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "replication/slot.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define QUEUE_SIZE (1024 * 1024)

#define RETRY_RAN_MS	   200	 /* the pair ran for a while and ended */
#define RAN_FOR_A_WHILE_MS 10000 /* after this earlier failures are forgotten */
#define RETRY_FIRST_MS	   1000	 /* it ended soon: 1 s, 2 s, 4 s, ... */
#define RETRY_MOST_MS	   30000
#define RETRY_RESOURCES_MS 3000 /* no worker or segment to be had: 3 s, 6 s, ... */
#define RETRY_SLOT_MS	   250	/* the slot is in use: 0.25 s, 0.5 s, ... */
#define REPEAT_SIGNAL_MS   5000 /* to workers of an earlier launcher */

typedef enum PairPhase
{
	PAIR_NONE = 0,
	PAIR_WAITING,
	PAIR_RUNNING,
	PAIR_ENDING,
	PAIR_DROPPING
} PairPhase;

/* What the launcher alone knows of an entry; same index. */
typedef struct Pair
{
	PairPhase phase;
	BackgroundWorkerHandle *decoder;
	BackgroundWorkerHandle *feed;
	dsm_segment *queue;
	TimestampTz started;  /* of this generation, 0: never */
	TimestampTz next_try; /* 0: nothing is due */
	int doublings;		  /* of the time between tries so far */
	bool start_again;	  /* the extension was created anew while the
								 * entry was being cleared */
	bool no_resources;	  /* the start failed for want of them */
	bool complained;	  /* and this has been logged */
} Pair;

static Pair pairs[MAX_DATABASES];

static bool entries_complained = false;

MemoryContext LauncherContext = NULL;
static MemoryContext LoopContext = NULL;

static void EndPair(int index);

/* ---- Entries ---- */

int
LauncherFindEntry(Oid database)
{
	for (int i = 0; i < MAX_DATABASES; i++)
	{
		if (shared_feeds->feeds[i].state != FEED_UNUSED &&
			shared_feeds->feeds[i].database == database)
			return i;
	}
	return -1;
}

bool
LauncherIsWanted(Oid database)
{
	int index = LauncherFindEntry(database);

	return index >= 0 && shared_feeds->feeds[index].state != FEED_STOPPING;
}

static void
AssignEntry(Oid database)
{
	for (int i = 0; i < MAX_DATABASES; i++)
	{
		if (shared_feeds->feeds[i].state != FEED_UNUSED)
			continue;

		LWLockAcquire(shared_feeds->lock, LW_EXCLUSIVE);
		SharedAssign(&shared_feeds->feeds[i], database);
		LWLockRelease(shared_feeds->lock);
		memset(&pairs[i], 0, sizeof(Pair));
		pairs[i].phase = PAIR_WAITING;
		pairs[i].next_try = MonotonicTime();
		return;
	}

	if (!entries_complained)
		ereport(LOG,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("no change feed is started for database \"%s\"", DatabaseName(database)),
				 errdetail("%d databases have one, which is the limit.", MAX_DATABASES)));
	entries_complained = true;
}

/* Everything of it has ended and its slots are dropped. */
static void
FreeEntry(int index)
{
	DatabaseFeed *feed = &shared_feeds->feeds[index];
	Oid database = feed->database;
	bool start_again = pairs[index].start_again;

	/* In one go, so that DROP DATABASE does not slip in between. */
	LWLockAcquire(shared_feeds->lock, LW_EXCLUSIVE);
	SharedFree(feed);
	if (start_again)
		SharedAssign(feed, database);
	LWLockRelease(shared_feeds->lock);

	memset(&pairs[index], 0, sizeof(Pair));
	if (start_again)
	{
		pairs[index].phase = PAIR_WAITING;
		pairs[index].next_try = MonotonicTime();
	}
	entries_complained = false;
	ConditionVariableBroadcast(&shared_feeds->state_changed);
}

static void
StopEntry(int index)
{
	DatabaseFeed *feed = &shared_feeds->feeds[index];

	pairs[index].start_again = false;
	if (feed->state == FEED_STOPPING)
		return;

	LWLockAcquire(shared_feeds->lock, LW_EXCLUSIVE);
	feed->state = FEED_STOPPING;
	LWLockRelease(shared_feeds->lock);
	ConditionVariableBroadcast(&shared_feeds->state_changed);

	if (pairs[index].phase == PAIR_WAITING)
	{
		pairs[index].phase = PAIR_DROPPING;
		pairs[index].next_try = MonotonicTime();
		pairs[index].doublings = 0;
	}
	else if (pairs[index].phase == PAIR_RUNNING)
		EndPair(index);
}

/* ---- Pairs ---- */

/* Each try waits twice as long as the one before. */
static long
BackOff(Pair *pair, long first)
{
	long delay = Min(first << pair->doublings, RETRY_MOST_MS);

	if (delay < RETRY_MOST_MS)
		pair->doublings++;
	return delay;
}

BackgroundWorkerHandle *
LauncherStartWorker(const char *type, const char *function, Datum main_arg, uint32 generation,
					const char *database_name)
{
	BackgroundWorker worker;
	BackgroundWorkerHandle *handle = NULL;
	MemoryContext old_context;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker.bgw_library_name, CHANGEFEED_LIBRARY, sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, function, sizeof(worker.bgw_function_name));
	snprintf(worker.bgw_name, sizeof(worker.bgw_name), "%s for database %s", type, database_name);
	strlcpy(worker.bgw_type, type, sizeof(worker.bgw_type));
	worker.bgw_main_arg = main_arg;
	memcpy(worker.bgw_extra, &generation, sizeof(generation));
	worker.bgw_notify_pid = MyProcPid;

	old_context = MemoryContextSwitchTo(LauncherContext);
	if (!RegisterDynamicBackgroundWorker(&worker, &handle))
		handle = NULL;
	MemoryContextSwitchTo(old_context);
	return handle;
}

bool
LauncherHasEnded(BackgroundWorkerHandle *handle)
{
	pid_t pid;

	return handle == NULL || GetBackgroundWorkerPid(handle, &pid) == BGWH_STOPPED;
}

static bool
IsRegistered(pg_atomic_uint32 *procno)
{
	return pg_atomic_read_u32(procno) != PG_UINT32_MAX;
}

/* The process with that number is a worker of an earlier launcher. */
static void
TerminateRegistered(pg_atomic_uint32 *procno)
{
	uint32 number = pg_atomic_read_u32(procno);
	pid_t pid = 0;

	if (number < ProcGlobal->allProcCount)
		pid = ProcGlobal->allProcs[number].pid;
	/* It clears the number before it ends, so the PID is still its own. */
	if (pid != 0 && IsRegistered(procno))
		kill(pid, SIGTERM);
}

static void
EndPair(int index)
{
	Pair *pair = &pairs[index];
	DatabaseFeed *feed = &shared_feeds->feeds[index];

	if (pair->decoder != NULL)
		TerminateBackgroundWorker(pair->decoder);
	else
		TerminateRegistered(&feed->decoder_proc);
	if (pair->feed != NULL)
		TerminateBackgroundWorker(pair->feed);
	else
		TerminateRegistered(&feed->feed_proc);

	/* Those that we hold a handle of are reported by the postmaster. */
	pair->next_try = 0;
	if (pair->decoder == NULL || pair->feed == NULL)
		pair->next_try = TimestampTzPlusMilliseconds(MonotonicTime(), REPEAT_SIGNAL_MS);
	pair->phase = PAIR_ENDING;
}

/*
 * Since every place is taken when a registration fails, the number that would
 * do is what there is plus what is missing, whoever uses the others.
 */
static void
ComplainOfWorkers(const char *database_name, int missing)
{
	ereport(
		LOG,
		(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
		 errmsg(
			 "could not start the change feed of database \"%s\": all background worker slots are in use",
			 database_name),
		 errhint(
			 "Set max_worker_processes (now %d) to at least %d in postgresql.conf and restart the server. Each database with a change feed needs %d: a decoder, a feed worker, and changefeed.query_workers.",
			 max_worker_processes, max_worker_processes + missing, 2 + setting_query_workers)));
}

int
LauncherMissingWorkers(int started)
{
	int missing = -started;

	for (int i = 0; i < MAX_DATABASES; i++)
	{
		if (pairs[i].phase == PAIR_WAITING || pairs[i].phase == PAIR_ENDING)
			missing += 2 + setting_query_workers;
	}
	return missing;
}

/*
 * While there is no decoder nobody else bounds the WAL that its slot keeps from
 * being removed.  That of a feed which only starts again is left to the decoder,
 * up to twice its bound, as it can tell a burst from a slot that is stuck.
 */
static void
BoundWal(int index)
{
	DatabaseFeed *feed = &shared_feeds->feeds[index];
	Pair *pair = &pairs[index];
	int limit = (int) pg_atomic_read_u32(&feed->wal_limit);
	XLogRecPtr insert = SharedInsertLsn();
	uint64 most = 0;
	ListCell *lc;

	if (pair->doublings == 0 && !pair->no_resources && !pair->complained)
		return;
	if (limit == 0)
		limit = setting_history_wal_size;
	foreach(lc, ListSlots(feed->database))
	{
		XLogRecPtr restart = ((SlotInfo *) lfirst(lc))->restart_lsn;

		if (restart != InvalidXLogRecPtr && restart < insert)
			most = Max(most, insert - restart);
	}
	if (most <= (uint64) limit * 2 * 1024 * 1024 || !DropSlots(feed->database))
		return;
	pg_atomic_fetch_add_u64(&feed->slots_given_up, 1);
	ereport(
		WARNING,
		(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
		 errmsg("change feed of database \"%s\" drops its replication slot, as it does not start",
				DatabaseName(feed->database)),
		 errdetail(
			 "The slot kept %llu MB of WAL from being removed, which is more than twice the %d MB of \"changefeed.history_wal_size\".  When the feed starts, every client gets a fresh snapshot.",
			 (unsigned long long) (most / (1024 * 1024)), limit),
		 errhint("The lines before say why the feed does not start.")));
}

static void
StartPair(int index)
{
	Pair *pair = &pairs[index];
	DatabaseFeed *feed = &shared_feeds->feeds[index];
	DatabaseInfo *info = LookUpDatabase(feed->database);
	TimestampTz now = MonotonicTime();
	MemoryContext old_context;

	if (!CanHaveFeed(info))
	{
		StopEntry(index);
		return;
	}
	BoundWal(index);

	/* Only a restart of the server can change this, so no retry. */
	if (wal_level < WAL_LEVEL_LOGICAL || max_replication_slots == 0)
	{
		ereport(
			LOG,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the change feed of database \"%s\" is not started", info->name),
			 errdetail("It needs wal_level = logical and max_replication_slots > 0."),
			 errhint(
				 "Set both in postgresql.conf and restart the server, or drop extension pg_changefeed.")));
		pair->next_try = 0;
		return;
	}

	old_context = MemoryContextSwitchTo(LauncherContext);
	pair->queue = SharedQueueCreate(QUEUE_SIZE);
	MemoryContextSwitchTo(old_context);
	if (pair->queue == NULL)
	{
		if (!pair->complained)
			ereport(
				LOG,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg(
					 "could not start the change feed of database \"%s\": too many dynamic shared memory segments",
					 info->name)));
		pair->complained = true;
		pair->next_try = TimestampTzPlusMilliseconds(now, BackOff(pair, RETRY_RESOURCES_MS));
		return;
	}

	LWLockAcquire(shared_feeds->lock, LW_EXCLUSIVE);
	SharedNewGeneration(feed, dsm_segment_handle(pair->queue));
	LWLockRelease(shared_feeds->lock);

	pair->started = now;
	pair->next_try = 0;
	pair->decoder = LauncherStartWorker("changefeed decoder", "ChangefeedDecoderMain",
										Int32GetDatum(index), feed->generation, info->name);
	if (pair->decoder != NULL)
		pair->feed = LauncherStartWorker("changefeed feed worker", "ChangefeedFeedMain",
										 Int32GetDatum(index), feed->generation, info->name);
	pair->no_resources = pair->feed == NULL;
	if (pair->no_resources)
	{
		if (!pair->complained)
			ComplainOfWorkers(info->name, LauncherMissingWorkers(pair->decoder != NULL ? 1 : 0));
		pair->complained = true;
		EndPair(index);
		return;
	}
	pair->complained = false;
	pair->phase = PAIR_RUNNING;
}

/* Both have ended. */
static void
AfterPair(int index)
{
	Pair *pair = &pairs[index];
	DatabaseFeed *feed = &shared_feeds->feeds[index];
	TimestampTz now = MonotonicTime();
	long ran = pair->started == 0 ? 0 : TimestampDifferenceMilliseconds(pair->started, now);
	long delay;

	if (pair->decoder != NULL)
		pfree(pair->decoder);
	if (pair->feed != NULL)
		pfree(pair->feed);
	if (pair->queue != NULL)
		dsm_detach(pair->queue);
	pair->decoder = NULL;
	pair->feed = NULL;
	pair->queue = NULL;

	if (feed->state == FEED_STOPPING)
	{
		pair->phase = PAIR_DROPPING;
		pair->next_try = now;
		pair->doublings = 0;
		return;
	}

	pair->phase = PAIR_WAITING;
	if (pair->started == 0)
	{
		/* They were those of an earlier launcher. */
		pair->next_try = now;
		return;
	}
	if (pair->no_resources)
	{
		pair->next_try = TimestampTzPlusMilliseconds(now, BackOff(pair, RETRY_RESOURCES_MS));
		return;
	}

	if (ran >= RAN_FOR_A_WHILE_MS)
		pair->doublings = 0;
	if (pg_atomic_exchange_u32(&feed->restart_wanted, 0) != 0 || ran >= RAN_FOR_A_WHILE_MS)
		delay = RETRY_RAN_MS;
	else
		delay = BackOff(pair, RETRY_FIRST_MS);
	pair->next_try = TimestampTzPlusMilliseconds(now, delay);
	ereport(LOG, (errmsg("change feed of database \"%s\" has ended, starting it again in %ld ms",
						 DatabaseName(feed->database), delay)));
}

/* Does what is to be done for an entry now; true: look again at once. */
static bool
TendPair(int index)
{
	Pair *pair = &pairs[index];
	DatabaseFeed *feed = &shared_feeds->feeds[index];
	bool due = pair->next_try != 0 && MonotonicTime() >= pair->next_try;

	switch (pair->phase)
	{
		case PAIR_NONE:
			return false;

		case PAIR_WAITING:
			if (!due)
				return false;
			StartPair(index);
			return pair->phase != PAIR_WAITING;

		case PAIR_RUNNING:
			if (!LauncherHasEnded(pair->decoder) && !LauncherHasEnded(pair->feed))
				return false;
			EndPair(index);
			return true;

		case PAIR_ENDING:
			if (LauncherHasEnded(pair->decoder) && LauncherHasEnded(pair->feed) &&
				(pair->decoder != NULL || !IsRegistered(&feed->decoder_proc)) &&
				(pair->feed != NULL || !IsRegistered(&feed->feed_proc)))
			{
				AfterPair(index);
				return true;
			}
			if (due)
				EndPair(index);
			return false;

		case PAIR_DROPPING:
			if (!due)
				return false;
			if (DropSlots(feed->database))
			{
				FreeEntry(index);
				return true;
			}
			pair->next_try = TimestampTzPlusMilliseconds(MonotonicTime(),
														 BackOff(pair, RETRY_SLOT_MS));
			return false;
	}
	return false;
}

/* ---- Requests ---- */

static void
Obey(Oid database, FeedRequest what)
{
	int index = LauncherFindEntry(database);

	switch (what)
	{
		case REQUEST_STOP:
			ScanReported(database);
			if (index >= 0)
				StopEntry(index);
			break;

		case REQUEST_START:
			ScanReported(database);
			if (index >= 0)
			{
				if (shared_feeds->feeds[index].state == FEED_STOPPING)
					pairs[index].start_again = true;
			}
			else if (CanHaveFeed(LookUpDatabase(database)))
				AssignEntry(database);
			break;

		case REQUEST_RESTART:
			if (index >= 0)
			{
				StopEntry(index);
				pairs[index].start_again = true;
			}
			else if (CanHaveFeed(LookUpDatabase(database)))
				AssignEntry(database);
			break;

		case REQUEST_LOOK:
			if (!CanHaveFeed(LookUpDatabase(database)))
			{
				if (index >= 0)
					StopEntry(index);
			}
			else if (!LauncherIsWanted(database))
				ScanQueue(database);
			break;

		case REQUEST_AGAIN:
			if (!LauncherIsWanted(database))
			{
				if (CanHaveFeed(LookUpDatabase(database)))
					ScanQueue(database);
			}
			else if (pairs[index].phase == PAIR_RUNNING)
			{
				pg_atomic_write_u32(&shared_feeds->feeds[index].restart_wanted, 1);
				EndPair(index);
			}
			else if (pairs[index].phase == PAIR_WAITING)
				pairs[index].next_try = MonotonicTime();
			break;
	}
}

/*
 * A request is removed only after it has been obeyed, so that there is no
 * moment at which SharedStateOfDatabase finds neither the request nor what
 * became of it.  One that was changed meanwhile is obeyed once more.
 */
void
LauncherTakeRequests(void)
{
	bool rescan;

	for (;;)
	{
		Oid database = InvalidOid;
		FeedRequest what = REQUEST_LOOK;
		uint64 serial = 0;

		CHECK_FOR_INTERRUPTS();

		LWLockAcquire(shared_feeds->lock, LW_SHARED);
		if (shared_feeds->nrequests > 0)
		{
			database = shared_feeds->requests[0].database;
			what = shared_feeds->requests[0].what;
			serial = shared_feeds->requests[0].serial;
		}
		LWLockRelease(shared_feeds->lock);
		if (!OidIsValid(database))
			break;

		Obey(database, what);

		/* Others only add behind. */
		LWLockAcquire(shared_feeds->lock, LW_EXCLUSIVE);
		if (shared_feeds->requests[0].serial == serial)
		{
			shared_feeds->nrequests--;
			memmove(&shared_feeds->requests[0], &shared_feeds->requests[1],
					shared_feeds->nrequests * sizeof(shared_feeds->requests[0]));
		}
		LWLockRelease(shared_feeds->lock);
	}

	LWLockAcquire(shared_feeds->lock, LW_EXCLUSIVE);
	rescan = shared_feeds->rescan;
	shared_feeds->rescan = false;
	LWLockRelease(shared_feeds->lock);
	if (rescan)
		ScanQueueAll();
}

/* ---- Processes ---- */

/*
 * What an earlier launcher has left.  Ending its generations first makes its
 * workers that have not come up yet exit when they do; those that have are
 * registered, and told to end.
 */
static void
TakeOver(void)
{
	ListCell *lc;

	for (int i = 0; i < MAX_DATABASES; i++)
	{
		DatabaseFeed *feed = &shared_feeds->feeds[i];

		if (feed->state == FEED_UNUSED)
			continue;
		LWLockAcquire(shared_feeds->lock, LW_EXCLUSIVE);
		SharedNewGeneration(feed, DSM_HANDLE_INVALID);
		LWLockRelease(shared_feeds->lock);
		EndPair(i);
	}

	foreach(lc, ListSlots(InvalidOid))
	{
		SlotInfo *slot = (SlotInfo *) lfirst(lc);

		if (LauncherFindEntry(slot->database) < 0)
			AssignEntry(slot->database);
	}

	ScanQueueAll();
}

/* Milliseconds until something is due, -1: nothing is. */
static long
TimeToWait(void)
{
	TimestampTz next = 0;
	TimestampTz scan;

	for (int i = 0; i < MAX_DATABASES; i++)
	{
		if (pairs[i].phase != PAIR_NONE && pairs[i].next_try != 0 &&
			(next == 0 || pairs[i].next_try < next))
			next = pairs[i].next_try;
	}
	scan = ScanNextDue();
	if (scan != 0 && (next == 0 || scan < next))
		next = scan;
	if (next == 0)
		return -1;
	return TimestampDifferenceMilliseconds(MonotonicTime(), next);
}

void
ChangefeedLauncherMain(Datum main_arg)
{
	uint32 wait_event;

	/* pg_cancel_backend has no meaning for us and would restart every feed. */
	pqsignal(SIGINT, SIG_IGN);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();

	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	SharedRegisterProcess(&shared_feeds->launcher_proc);

	wait_event = compat_wait_event("ChangefeedLauncherMain");
	LauncherContext = AllocSetContextCreate(TopMemoryContext, "changefeed launcher",
											ALLOCSET_DEFAULT_SIZES);
	LoopContext = AllocSetContextCreate(LauncherContext, "changefeed launcher loop",
										ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(LoopContext);

	TakeOver();

	for (;;)
	{
		long wait;
		bool again;

		MemoryContextSwitchTo(LoopContext);
		MemoryContextReset(LoopContext);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}

		LauncherTakeRequests();
		ScanTend();
		do
		{
			again = false;
			for (int i = 0; i < MAX_DATABASES; i++)
				again |= TendPair(i);
		} while (again);

		wait = TimeToWait();
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | (wait >= 0 ? WL_TIMEOUT : 0),
						 wait, wait_event);
	}
}
