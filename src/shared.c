/*-------------------------------------------------------------------------
 *
 * shared.c
 *		Shared memory: allocation, look-up, requests to the launcher, wake-ups.
 *
 * Process: all.
 *
 * Locks: SharedFeeds->lock, for a few loads and stores each time and never
 * while anything is waited for.  Entries are looked up without it: the fields
 * that are compared (database, state) are single words, and a reader that sees
 * an older value at worst misses a wake-up that the launcher's start of the
 * workers makes up for.
 *
 * Memory: nothing is allocated here but queue handles, which live as long as
 * the process (TopMemoryContext).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "pause.h"
#include "shared.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "access/xlogrecovery.h"
#include "commands/extension.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/shm_mq.h"
#include "storage/shmem.h"
#include "utils/memutils.h"

SharedFeeds *shared_feeds = NULL;

static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

/*
 * What a commit wakes the workers of an entry with.  To set their latches takes a
 * signal, which costs the one who commits twice as much as a write to this.
 * Made by the postmaster, from which all have them; with so many databases that
 * there is none (-1) it is the latch.
 */
#define DATABASES_WITH_EVENTS 16

static int events[DATABASES_WITH_EVENTS][SHARED_WORKERS];

static void
SharedRequestHook(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();

	RequestAddinShmemSpace(MAXALIGN(sizeof(SharedFeeds)));
	RequestNamedLWLockTranche(CHANGEFEED_LIBRARY, 2);
}

static void
InitializeFeed(DatabaseFeed *feed)
{
	memset(feed, 0, sizeof(*feed));
	pg_atomic_init_u64(&feed->epoch, 0);
	pg_atomic_init_u64(&feed->start_lsn, 0);
	pg_atomic_init_u32(&feed->decoder_proc, PG_UINT32_MAX);
	pg_atomic_init_u32(&feed->restart_wanted, 0);
	pg_atomic_init_u32(&feed->feed_proc, PG_UINT32_MAX);
	pg_atomic_init_u64(&feed->decoded_lsn, 0);
	pg_atomic_init_u64(&feed->queue_begun, 0);
	pg_atomic_init_u64(&feed->decoded_wanted, 0);
	pg_atomic_init_u64(&feed->flush_wanted, 0);
	pg_atomic_init_u64(&feed->confirm_lsn, 0);
	pg_atomic_init_u64(&feed->wake_at, PG_UINT64_MAX);
	pg_atomic_init_u32(&feed->decoder_sleeps, 0);
	pg_atomic_init_u32(&feed->visibility_wanted, 0);
	pg_atomic_init_u64(&feed->role_changes, 0);
	pg_atomic_init_u32(&feed->wanted_version, 0);
	pg_atomic_init_u64(&feed->decoder_transactions, 0);
	pg_atomic_init_u64(&feed->decoder_changes, 0);
	pg_atomic_init_u64(&feed->decoder_bytes, 0);
	pg_atomic_init_u64(&feed->feed_published, 0);
	pg_atomic_init_u64(&feed->feed_connections, 0);
	pg_atomic_init_u64(&feed->feed_subscriptions, 0);
	pg_atomic_init_u64(&feed->feed_frames, 0);
	pg_atomic_init_u64(&feed->feed_resyncs, 0);
	pg_atomic_init_u64(&feed->feed_denials, 0);
	pg_atomic_init_u64(&feed->feed_evaluations, 0);
	pg_atomic_init_u64(&feed->feed_snapshot_bytes, 0);
	pg_atomic_init_u64(&feed->feed_log_bytes, 0);
	pg_atomic_init_u64(&feed->feed_messages, 0);
	pg_atomic_init_u64(&feed->feed_event_errors, 0);
	pg_atomic_init_u64(&feed->decoder_forged, 0);
	pg_atomic_init_u32(&feed->feed_port, 0);
	pg_atomic_init_u32(&feed->feed_gateway_pid, 0);
	pg_atomic_init_u64(&feed->feed_gateway_starts, 0);
	pg_atomic_init_u64(&feed->feed_starts, 0);
	pg_atomic_init_u64(&feed->slots_given_up, 0);
	pg_atomic_init_u64(&feed->slots_invalidated, 0);
	pg_atomic_init_u32(&feed->paused, 0);
	pg_atomic_init_u32(&feed->wal_limit, 0);
	FeedRequestInit(&feed->requests);
}

/* What belongs to one generation of workers begins anew with it. */
void
SharedNewGeneration(DatabaseFeed *feed, dsm_handle queue_segment)
{
	feed->generation++;
	feed->queue_segment = queue_segment;
	memset(&feed->slot_name, 0, sizeof(feed->slot_name));
	pg_atomic_write_u64(&feed->epoch, 0);
	pg_atomic_write_u64(&feed->start_lsn, 0);
	pg_atomic_write_u64(&feed->decoded_lsn, 0);
	pg_atomic_write_u64(&feed->queue_begun, 0);
	pg_atomic_write_u64(&feed->decoded_wanted, 0);
	pg_atomic_write_u64(&feed->confirm_lsn, 0);
	pg_atomic_write_u64(&feed->wake_at, PG_UINT64_MAX);
	pg_atomic_write_u32(&feed->decoder_sleeps, 0);
	pg_atomic_write_u32(&feed->visibility_wanted, 0);
	feed->nwanted = 0;
	pg_atomic_fetch_add_u32(&feed->wanted_version, 1);
	pg_atomic_write_u64(&feed->feed_connections, 0);
	pg_atomic_write_u64(&feed->feed_subscriptions, 0);
	pg_atomic_write_u64(&feed->feed_log_bytes, 0);
	pg_atomic_write_u32(&feed->paused, 0);
	pg_atomic_write_u64(&feed->feed_snapshot_bytes, 0);
	pg_atomic_write_u32(&feed->feed_port, 0);
	pg_atomic_write_u32(&feed->feed_gateway_pid, 0);
}

/*
 * The generation is never set back: a late worker of the entry's former
 * database has to find that it is not meant.
 */
void
SharedAssign(DatabaseFeed *feed, Oid database)
{
	SharedNewGeneration(feed, DSM_HANDLE_INVALID);
	pg_atomic_write_u64(&feed->flush_wanted, 0);
	pg_atomic_write_u64(&feed->decoder_transactions, 0);
	pg_atomic_write_u64(&feed->decoder_changes, 0);
	pg_atomic_write_u64(&feed->decoder_bytes, 0);
	pg_atomic_write_u64(&feed->feed_published, 0);
	pg_atomic_write_u64(&feed->feed_frames, 0);
	pg_atomic_write_u64(&feed->feed_resyncs, 0);
	pg_atomic_write_u64(&feed->feed_denials, 0);
	pg_atomic_write_u64(&feed->feed_evaluations, 0);
	pg_atomic_write_u64(&feed->feed_messages, 0);
	pg_atomic_write_u64(&feed->feed_event_errors, 0);
	pg_atomic_write_u64(&feed->decoder_forged, 0);
	pg_atomic_write_u64(&feed->feed_gateway_starts, 0);
	pg_atomic_write_u64(&feed->feed_starts, 0);
	pg_atomic_write_u64(&feed->slots_given_up, 0);
	pg_atomic_write_u64(&feed->slots_invalidated, 0);
	pg_atomic_write_u32(&feed->wal_limit, 0);
	feed->database = database;
	feed->state = FEED_WANTED;
	pg_atomic_fetch_add_u32(&shared_feeds->assignments, 1);
}

void
SharedFree(DatabaseFeed *feed)
{
	SharedNewGeneration(feed, DSM_HANDLE_INVALID);
	feed->state = FEED_UNUSED;
	feed->database = InvalidOid;
	pg_atomic_fetch_add_u32(&shared_feeds->assignments, 1);
}

/* Runs in the postmaster at its start, and again after a crash restart. */
static void
SharedStartupHook(void)
{
	bool found;

	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();

	shared_feeds = NULL;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared_feeds = ShmemInitStruct(CHANGEFEED_LIBRARY, sizeof(SharedFeeds), &found);
	if (!found)
	{
		memset(shared_feeds, 0, sizeof(SharedFeeds));
		shared_feeds->lock = &(GetNamedLWLockTranche(CHANGEFEED_LIBRARY))[0].lock;
		shared_feeds->request_lock = &(GetNamedLWLockTranche(CHANGEFEED_LIBRARY))[1].lock;
		pg_atomic_init_u32(&shared_feeds->launcher_proc, PG_UINT32_MAX);
		pg_atomic_init_u32(&shared_feeds->assignments, 1);
		pg_atomic_init_u64(&shared_feeds->wake_at, PG_UINT64_MAX);
		pg_atomic_init_u32(&shared_feeds->roles_prepared, 0);
		ConditionVariableInit(&shared_feeds->state_changed);
		for (int i = 0; i < MAX_DATABASES; i++)
			InitializeFeed(&shared_feeds->feeds[i]);
	}
	LWLockRelease(AddinShmemInitLock);
}

void
SharedMemoryRequest(void)
{
	for (int i = 0; i < DATABASES_WITH_EVENTS; i++)
		for (int k = 0; k < SHARED_WORKERS; k++)
			events[i][k] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = SharedRequestHook;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = SharedStartupHook;
}

/*
 * Called at every commit of the cluster, so it costs one load of a word that
 * hardly ever changes: only after the launcher assigned or freed an entry are
 * the entries looked through again.
 */
DatabaseFeed *
SharedFeedOfMyDatabase(void)
{
	static uint32 known_assignments = 0;
	static DatabaseFeed *known_feed = NULL;
	uint32 assignments;

	if (shared_feeds == NULL || !OidIsValid(MyDatabaseId))
		return NULL;

	assignments = pg_atomic_read_u32(&shared_feeds->assignments);
	if (assignments != known_assignments)
	{
		/* Pairs with the barrier of the launcher's increment. */
		pg_read_barrier();
		known_feed = NULL;
		for (int i = 0; i < MAX_DATABASES; i++)
		{
			DatabaseFeed *feed = &shared_feeds->feeds[i];

			if (feed->database == MyDatabaseId && feed->state != FEED_UNUSED)
			{
				known_feed = feed;
				break;
			}
		}
		known_assignments = assignments;
	}
	return known_feed;
}

/* The generation that the launcher wrote into the registration of a worker. */
static uint32
WorkerGeneration(void)
{
	uint32 generation;

	memcpy(&generation, MyBgworkerEntry->bgw_extra, sizeof(generation));
	return generation;
}

DatabaseFeed *
SharedFeedOfWorker(Datum main_arg)
{
	int index = DatumGetInt32(main_arg);
	DatabaseFeed *feed;
	bool current;

	if (shared_feeds == NULL || MyBgworkerEntry == NULL || index < 0 || index >= MAX_DATABASES)
		elog(ERROR, "not started by the launcher");

	feed = &shared_feeds->feeds[index];
	LWLockAcquire(shared_feeds->lock, LW_SHARED);
	current = feed->state != FEED_UNUSED && feed->generation == WorkerGeneration();
	LWLockRelease(shared_feeds->lock);
	if (!current)
		proc_exit(0);
	return feed;
}

/*
 * Several requests for one database before the launcher comes round: the last
 * one counts, but it has to learn that the extension was gone in between, since
 * a new one begins with an empty channel catalog and a new slot.
 */
static FeedRequest
MergeRequests(FeedRequest old, FeedRequest new)
{
	if (old == REQUEST_LOOK)
		return new;
	if (new == REQUEST_LOOK || (old != REQUEST_AGAIN && new == REQUEST_AGAIN))
		return old;
	if ((old == REQUEST_STOP || old == REQUEST_RESTART) && new == REQUEST_START)
		return REQUEST_RESTART;
	return new;
}

/* The lock is held exclusively. */
static void
AddRequest(Oid database, FeedRequest what)
{
	int i;

	for (i = 0; i < shared_feeds->ndropping && what != REQUEST_STOP; i++)
		if (shared_feeds->dropping[i] == database)
			return;
	for (i = 0; i < shared_feeds->nrequests; i++)
	{
		if (shared_feeds->requests[i].database == database)
		{
			shared_feeds->requests[i].what = MergeRequests(shared_feeds->requests[i].what, what);
			break;
		}
	}
	if (i == MAX_DATABASES)
		shared_feeds->rescan = true;
	else if (i == shared_feeds->nrequests)
	{
		shared_feeds->requests[i].database = database;
		shared_feeds->requests[i].what = what;
		shared_feeds->nrequests++;
	}
	shared_feeds->request_count++;
	if (i < MAX_DATABASES)
		shared_feeds->requests[i].serial = shared_feeds->request_count;
}

void
SharedRequest(Oid database, FeedRequest what)
{
	if (shared_feeds == NULL)
		return;

	LWLockAcquire(shared_feeds->lock, LW_EXCLUSIVE);
	AddRequest(database, what);
	LWLockRelease(shared_feeds->lock);
	SharedWake(&shared_feeds->launcher_proc);
}

bool
SharedBeginDrop(Oid database)
{
	bool room;

	LWLockAcquire(shared_feeds->lock, LW_EXCLUSIVE);
	room = shared_feeds->ndropping < MAX_DATABASES;
	if (room)
	{
		shared_feeds->dropping[shared_feeds->ndropping++] = database;
		AddRequest(database, REQUEST_STOP);
	}
	LWLockRelease(shared_feeds->lock);
	if (room)
		SharedWake(&shared_feeds->launcher_proc);
	return room;
}

void
SharedEndDrop(Oid database, bool failed)
{
	LWLockAcquire(shared_feeds->lock, LW_EXCLUSIVE);
	for (int i = 0; i < shared_feeds->ndropping; i++)
		if (shared_feeds->dropping[i] == database)
		{
			shared_feeds->dropping[i] = shared_feeds->dropping[--shared_feeds->ndropping];
			break;
		}

	/*
	 * Our REQUEST_STOP may not have been obeyed yet.  Behind that it is begun
	 * anew; the feed worker finds out whether the extension is still there.
	 */
	if (failed)
		AddRequest(database, REQUEST_START);
	LWLockRelease(shared_feeds->lock);
	if (failed)
		SharedWake(&shared_feeds->launcher_proc);
}

/*
 * What was seen in a snapshot may be out of date when it is reported: a DROP
 * or CREATE EXTENSION may have committed and reported meanwhile, and must not
 * be overruled.  A commit reports after it has become visible, so one that was
 * reported before request_count was read is in the snapshot, and one that
 * comes later changes request_count (then look again) or comes behind us.
 */
bool
SharedReportExtension(void)
{
	PauseState pause;
	bool present;
	bool reported = false;

	do
	{
		uint64 request_count;

		CHECK_FOR_INTERRUPTS();

		LWLockAcquire(shared_feeds->lock, LW_SHARED);
		request_count = shared_feeds->request_count;
		LWLockRelease(shared_feeds->lock);

		StartTransactionCommand();
		present = OidIsValid(get_extension_oid(CHANGEFEED_EXTENSION, true));

		/* Somebody alters the extension: what he makes of it counts. */
		if (present && !PauseRead(&pause))
		{
			CommitTransactionCommand();
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 100,
							 compat_wait_event("ChangefeedScanMain"));
			ResetLatch(MyLatch);
			if (ShutdownRequestPending)
				proc_exit(0);
			continue;
		}
		present = present && pause.keeps_slot;
		CommitTransactionCommand();

		LWLockAcquire(shared_feeds->lock, LW_EXCLUSIVE);
		if (shared_feeds->request_count == request_count)
		{
			AddRequest(MyDatabaseId, present ? REQUEST_START : REQUEST_STOP);
			reported = true;
		}
		LWLockRelease(shared_feeds->lock);
	} while (!reported);

	SharedWake(&shared_feeds->launcher_proc);
	return present;
}

FeedState
SharedStateOfDatabase(Oid database)
{
	FeedState state = FEED_UNUSED;

	if (shared_feeds == NULL)
		return FEED_UNUSED;

	LWLockAcquire(shared_feeds->lock, LW_SHARED);
	for (int i = 0; i < MAX_DATABASES; i++)
	{
		if (shared_feeds->feeds[i].state != FEED_UNUSED &&
			shared_feeds->feeds[i].database == database)
			state = shared_feeds->feeds[i].state;
	}
	for (int i = 0; i < shared_feeds->nrequests; i++)
	{
		if (shared_feeds->requests[i].database != database)
			continue;
		switch (shared_feeds->requests[i].what)
		{
			case REQUEST_STOP:
				if (state == FEED_WANTED)
					state = FEED_STOPPING;
				break;
			case REQUEST_START:
			case REQUEST_RESTART:
				state = FEED_WANTED;
				break;
			case REQUEST_LOOK:
			case REQUEST_AGAIN:
				break;
		}
	}
	LWLockRelease(shared_feeds->lock);
	return state;
}

void
SharedWake(pg_atomic_uint32 *procno)
{
	uint32 number = pg_atomic_read_u32(procno);

	if (number < ProcGlobal->allProcCount)
		SetLatch(&ProcGlobal->allProcs[number].procLatch);
}

int
SharedEvent(DatabaseFeed *feed, SharedWorker worker)
{
	int i = (int) (feed - shared_feeds->feeds);

	return i < DATABASES_WITH_EVENTS ? events[i][worker] : -1;
}

void
SharedEventTaken(int event)
{
	uint64 count;

	if (read(event, &count, sizeof(count)) < 0 && errno != EAGAIN)
		ereport(ERROR,
				(errcode_for_file_access(), errmsg("could not read the event of a commit: %m")));
}

/* Errors are impossible: called after commit. */
static void
WakeByEvent(DatabaseFeed *feed, SharedWorker worker, pg_atomic_uint32 *procno)
{
	const uint64 one = 1;
	int event = SharedEvent(feed, worker);

	if (event < 0 || write(event, &one, sizeof(one)) != sizeof(one))
		SharedWake(procno);
}

/*
 * The caller has flushed something, or asked for it, with a full barrier behind
 * that.  The decoder says that it sleeps, then looks at the WAL once more: one
 * of us notices.  Who resets the mark wakes it; it is not reset behind the
 * wake-up, when the decoder may have set it again.
 */
void
SharedWakeDecoder(DatabaseFeed *feed)
{
	if (pg_atomic_read_u32(&feed->decoder_sleeps) != 0 &&
		pg_atomic_exchange_u32(&feed->decoder_sleeps, 0) != 0)
		WakeByEvent(feed, SHARED_DECODER, &feed->decoder_proc);
}

void
SharedWakeFeedWorker(DatabaseFeed *feed)
{
	WakeByEvent(feed, SHARED_FEED_WORKER, &feed->feed_proc);
}

/*
 * Runs after the before_shmem_exit callbacks: who finds the number gone can
 * rely on the slot being released.
 */
static void
ForgetProcess(int code, Datum arg)
{
	pg_atomic_uint32 *procno = (pg_atomic_uint32 *) DatumGetPointer(arg);
	uint32 mine = compat_my_procno();

	/* Somebody else's number stays. */
	(void) pg_atomic_compare_exchange_u32(procno, &mine, PG_UINT32_MAX);

	/* A launcher that did not start us is not told of our end otherwise. */
	SharedWake(&shared_feeds->launcher_proc);
}

void
SharedRegisterProcess(pg_atomic_uint32 *procno)
{
	const char *address = (const char *) procno;
	const char *feeds = (const char *) shared_feeds->feeds;
	bool current = true;

	/*
	 * The launcher ends a generation under the exclusive lock and then waits
	 * for the processes that it finds registered.  So either it finds us, or
	 * we find that our generation is over.
	 */
	LWLockAcquire(shared_feeds->lock, LW_SHARED);
	if (address >= feeds && address < feeds + sizeof(shared_feeds->feeds))
	{
		DatabaseFeed *feed = &shared_feeds->feeds[(address - feeds) / sizeof(DatabaseFeed)];

		current = MyBgworkerEntry != NULL && feed->generation == WorkerGeneration();
	}
	if (current)
	{
		on_shmem_exit(ForgetProcess, PointerGetDatum(procno));
		pg_atomic_write_u32(procno, compat_my_procno());
	}
	LWLockRelease(shared_feeds->lock);
	if (!current)
		proc_exit(0);
}

static void
LowerWakeAt(XLogRecPtr lsn)
{
	uint64 now = pg_atomic_read_u64(&shared_feeds->wake_at);

	while (lsn < now)
	{
		if (pg_atomic_compare_exchange_u64(&shared_feeds->wake_at, &now, lsn))
			break;
	}
}

void
SharedSleepUntil(DatabaseFeed *feed, XLogRecPtr lsn)
{
	pg_atomic_write_u64(&feed->wake_at, lsn);
	pg_memory_barrier();
	LowerWakeAt(lsn);
}

/*
 * Who goes to sleep meanwhile either is seen here, or lowers the smallest one
 * after we have raised it.
 */
void
SharedWakeSleepers(XLogRecPtr lsn)
{
	if (pg_atomic_read_u64(&shared_feeds->wake_at) > lsn)
		return;
	pg_atomic_exchange_u64(&shared_feeds->wake_at, PG_UINT64_MAX);
	for (int i = 0; i < MAX_DATABASES; i++)
	{
		DatabaseFeed *feed = &shared_feeds->feeds[i];
		uint64 wake_at = pg_atomic_read_u64(&feed->wake_at);

		if (wake_at <= lsn)
		{
			pg_atomic_write_u64(&feed->wake_at, PG_UINT64_MAX);
			SharedWake(&feed->decoder_proc);
		}
		else if (wake_at != PG_UINT64_MAX)
			LowerWakeAt(wake_at);
	}
}

void
SharedAdvance(pg_atomic_uint64 *lsn, XLogRecPtr to)
{
	uint64 now = pg_atomic_read_u64(lsn);

	/* A failed exchange has read the value again. */
	while (now < to && !pg_atomic_compare_exchange_u64(lsn, &now, to))
		;
}

XLogRecPtr
SharedInsertLsn(void)
{
	XLogRecPtr lsn;

	if (RecoveryInProgress())
		return GetXLogReplayRecPtr(NULL);

	/* The place of the next record: behind the header of a page just begun. */
	lsn = GetXLogInsertRecPtr();
	if (XLogSegmentOffset(lsn, wal_segment_size) == SizeOfXLogLongPHD)
		return lsn - SizeOfXLogLongPHD;
	if (lsn % XLOG_BLCKSZ == SizeOfXLogShortPHD &&
		XLogSegmentOffset(lsn, wal_segment_size) >= XLOG_BLCKSZ)
		return lsn - SizeOfXLogShortPHD;
	return lsn;
}

/* NULL when the server has no segment left; other failures are errors. */
dsm_segment *
SharedQueueCreate(Size size)
{
	dsm_segment *segment;

	size = MAXALIGN(size);
	segment = dsm_create(size, DSM_CREATE_NULL_IF_MAXSEGMENTS);
	if (segment == NULL)
		return NULL;
	dsm_pin_mapping(segment);
	shm_mq_create(dsm_segment_address(segment), size);
	return segment;
}

struct shm_mq_handle *
SharedQueueAttach(DatabaseFeed *feed, bool sender)
{
	dsm_handle handle = DSM_HANDLE_INVALID;
	dsm_segment *segment;
	shm_mq *queue;
	shm_mq_handle *result;
	MemoryContext old_context;

	/* A queue has one sender and one receiver in its life: of its generation. */
	LWLockAcquire(shared_feeds->lock, LW_SHARED);
	if (MyBgworkerEntry != NULL && feed->generation == WorkerGeneration())
		handle = feed->queue_segment;
	LWLockRelease(shared_feeds->lock);
	if (handle == DSM_HANDLE_INVALID)
		proc_exit(0);

	segment = dsm_attach(handle);
	if (segment == NULL)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("the queue between decoder and feed worker is gone")));
	dsm_pin_mapping(segment);

	queue = (shm_mq *) dsm_segment_address(segment);
	if (sender)
		shm_mq_set_sender(queue, MyProc);
	else
		shm_mq_set_receiver(queue, MyProc);

	old_context = MemoryContextSwitchTo(TopMemoryContext);
	result = shm_mq_attach(queue, segment, NULL);
	MemoryContextSwitchTo(old_context);
	return result;
}
