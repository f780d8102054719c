/*-------------------------------------------------------------------------
 *
 * decoder.c
 *		The decoder process: owns the replication slot of a database, reads WAL
 *		and has it decoded; what comes of it goes through output_plugin.c into
 *		the queue to the feed worker.
 *
 * Failing is simple here: every ERROR ends the process, which releases the
 * slot, and the launcher starts decoder and feed worker again, with a new
 * queue.  Decoding then begins at the slot's confirmed position, from which
 * the feed worker builds its log anew.
 *
 * The process runs outside any transaction.  The reorder buffer starts and
 * aborts one for each transaction that it replays; whoever would run a query
 * in here would read wrong rows, since VACUUM ignores the xmin of a process
 * that decodes.
 *
 * Process: decoder, one per database.
 *
 * Memory: decoder_context lives as long as the process and is current whenever
 * WAL is read, because the reader allocates its buffers in it when it first
 * needs them; LogicalDecodingProcessRecord leaves another context current.
 *
 * Locks: shared_feeds->lock for the few fields of the entry that it guards,
 * ReplicationSlotControlLock while looking for the slot.  No lock is held
 * while anything is waited for.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "decoder.h"
#include "record.h"
#include "wal2json.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlogreader.h"
#include "access/xlogrecovery.h"
#include "access/xlogutils.h"
#include "commands/dbcommands.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "replication/decode.h"
#include "replication/logical.h"
#include "replication/slot.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "storage/standby.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* A wait that takes longer than this (ms) is shown as the activity ... */
#define SHORT_WAIT 1000

/*
 * ... and then lasts at most this long (ms).  A safety net only: commits,
 * flushes and the queue wake us.  It also paces what has to be done now and
 * then, such as confirming the slot.
 */
#define LONG_WAIT 10000

/* ... and how long the slot may hold too much WAL before it is given up. */
#define OVER_LIMIT_GRACE 20000

/*
 * Waking a process is what a commit pays most for, and where commits come very
 * fast we would fall asleep between them, and so would the feed worker.  When WAL
 * comes more often than this (microseconds) we look for it by ourselves for a
 * while, after naps of so long, and so many of them before we sleep all the same:
 * several commits are then one batch for everybody.  Where they come more slowly
 * that costs more CPU than it saves, and a change comes later.
 */
#define FAST_COMMITS 400
#define NAP			 200
#define MAX_NAPS	 10

/* So many pages of WAL are read while records are held back. */
#define PAGES_PER_FLUSH 16

/*
 * Records are collected up to this size (bytes): every message costs both sides
 * a few barriers, and a copy where it meets the end of the ring.
 */
#define BATCH_SIZE (32 * 1024)

/* So many records are decoded between two looks at the clock. */
#define RECORDS_PER_CHECK 256

DatabaseFeed *decoder_feed = NULL;
MemoryContext decoder_context = NULL;
char *decoder_database = NULL;

static shm_mq_handle *queue = NULL;
static uint32 wait_event;

static XLogRecPtr decoded = InvalidXLogRecPtr;	 /* the end of the last record
												 * that was decoded */
static XLogRecPtr announced = InvalidXLogRecPtr; /* ... as others know it */
static XLogRecPtr confirmed = InvalidXLogRecPtr; /* of the slot */
static TimestampTz over_since = 0;				 /* the slot holds too much WAL; 0: no */
static TimestampTz confirm_time = 0;			 /* when that was last moved */
static TimestampTz check_time = 0;				 /* when Housekeeping last ran */
static XLogRecPtr check_lsn = InvalidXLogRecPtr; /* ... and up to where */
static uint64 bytes_sent = 0;

/* Records that are not in the queue yet; they go into it as one message. */
static char batch[BATCH_SIZE] pg_attribute_aligned(MAXIMUM_ALIGNOF);
static Size batch_length = 0;

/* The slot is being created: we wait for running transactions to end. */
static bool creating = false;

/* What pg_stat_activity shows; compared by address. */
static const char *const activity_creating = "creating slot";
static const char *const activity_decoding = "decoding";
static const char *const activity_waiting = "waiting for WAL";
static const char *const activity_queue = "waiting for the feed worker";
static const char *activity = NULL;

static void
ReportActivity(BackendState state, const char *text)
{
	if (activity == text)
		return;
	activity = text;
	pgstat_report_activity(state, text);
}

void
DecoderHandleInterrupts(void)
{
	CHECK_FOR_INTERRUPTS();

	if (ConfigReloadPending)
	{
		int decoder = setting_decoder;

		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
		if (setting_decoder != decoder)
		{
			ereport(
				LOG,
				(errmsg(
					"decoder of database \"%s\" restarts because \"changefeed.decoder\" was changed",
					decoder_database)));
			pg_atomic_write_u32(&decoder_feed->restart_wanted, 1);
			proc_exit(1);
		}
	}
}

/*
 * Waits for our latch, at most `timeout` ms; true when nothing came.
 */
static bool
WaitForLatch(long timeout)
{
	int events;

	events = WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, timeout,
					   wait_event);
	if (events & WL_LATCH_SET)
		ResetLatch(MyLatch);
	return (events & WL_TIMEOUT) != 0;
}

/* The same, or for a commit. */
static bool
WaitForCommit(long timeout)
{
	static WaitEventSet *set = NULL;
	int event = SharedEvent(decoder_feed, SHARED_DECODER);
	WaitEvent events[3];
	int n;

	if (event < 0)
		return WaitForLatch(timeout);
	if (set == NULL)
	{
		set = compat_create_wait_set(lengthof(events));
		AddWaitEventToSet(set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
		AddWaitEventToSet(set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
		AddWaitEventToSet(set, WL_SOCKET_READABLE, event, NULL, NULL);
	}
	n = WaitEventSetWait(set, timeout, events, lengthof(events), wait_event);
	for (int i = 0; i < n; i++)
	{
		if (events[i].events & WL_LATCH_SET)
			ResetLatch(MyLatch);
		else
			SharedEventTaken(event);
	}
	return n == 0;
}

/* ----------------------------------------------------------------------
 * The slot's bounds
 * ----------------------------------------------------------------------
 */

/* WAL that our slot keeps from being removed. */
static uint64
WalHeld(void)
{
	XLogRecPtr insert = SharedInsertLsn();
	XLogRecPtr restart = MyReplicationSlot->data.restart_lsn;

	return insert > restart ? insert - restart : 0;
}

/* After so much WAL its bound is looked at. */
static uint64
WalStep(void)
{
	return (uint64) setting_history_wal_size * 1024 * 1024 / 32;
}

/*
 * Drops the slot that we hold and ends the process: with the next slot comes
 * another epoch, and every client gets a fresh snapshot.  That is better than
 * a full disk.
 */
static void
GiveSlotUp(uint64 held)
{
	NameData name = MyReplicationSlot->data.name;

	ereport(
		WARNING,
		(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
		 errmsg("change feed of database \"%s\" drops its replication slot and begins anew",
				decoder_database),
		 errdetail(
			 "The slot kept %llu MB of WAL from being removed, \"changefeed.history_wal_size\" allows %d MB.  "
			 "Every client gets a fresh snapshot.",
			 (unsigned long long) (held / (1024 * 1024)), setting_history_wal_size),
		 errhint(
			 "Look for a transaction that stays open and for a synchronous standby that is missing, or increase \"changefeed.history_wal_size\".")));

	/* While it is being created the slot goes with the process. */
	if (!creating)
	{
		LWLockAcquire(shared_feeds->lock, LW_EXCLUSIVE);
		pg_atomic_write_u64(&decoder_feed->epoch, 0);
		LWLockRelease(shared_feeds->lock);

		ReplicationSlotRelease();
		ReplicationSlotDrop(NameStr(name), false);
	}
	pg_atomic_fetch_add_u64(&decoder_feed->slots_given_up, 1);
	proc_exit(1);
}

/*
 * Moves the slot up to where the feed worker no longer needs it.  That is
 * cheap most of the time, but now and then writes the slot's file, so it is
 * not done at each chance.
 */
static void
ConfirmSlot(TimestampTz now, bool force)
{
	XLogRecPtr to = pg_atomic_read_u64(&decoder_feed->confirm_lsn);

	/* What has not been decoded yet cannot be confirmed, whoever asks. */
	to = Min(to, decoded);
	if (to == InvalidXLogRecPtr || to <= confirmed)
		return;
	if (!force && to - confirmed < wal_segment_size &&
		!TimestampDifferenceExceeds(confirm_time, now, LONG_WAIT))
		return;

	LogicalConfirmReceivedLocation(to);
	confirmed = to;
	confirm_time = now;
}

static void
CheckWalHeld(TimestampTz now)
{
	uint64 limit = (uint64) setting_history_wal_size * 1024 * 1024;
	uint64 held = WalHeld();

	DecoderWarnOfWal(held);
	if (setting_history_wal_size <= 0 || held <= limit / 4)
		return;

	/*
	 * In time before the bound: the feed worker may be asleep, and has to let
	 * go of old transactions; and the slot's restart position moves only with
	 * a record of the running transactions.
	 */
	SharedWake(&decoder_feed->feed_proc);
	if (held > limit / 2 && !RecoveryInProgress())
		(void) LogStandbySnapshot();
	if (held <= limit)
	{
		over_since = 0;
		return;
	}

	/* Perhaps what holds it needs only to be confirmed. */
	if (!creating)
		ConfirmSlot(now, true);

	/*
	 * A burst of WAL, of another database perhaps, that only has to be read and
	 * confirmed is no reason to give up at once.
	 */
	held = WalHeld();
	if (held <= limit)
	{
		over_since = 0;
		return;
	}
	if (over_since == 0)
		over_since = now;
	if (creating || (held > 2 * limit && SharedInsertLsn() - decoded < limit) ||
		TimestampDifferenceExceeds(over_since, now, OVER_LIMIT_GRACE))
		GiveSlotUp(held);
}

/* What has to be done now and then; never in a transaction. */
static void
Housekeeping(TimestampTz now, bool idle)
{
	check_time = now;
	check_lsn = decoded;
	if (!creating)
		ConfirmSlot(now, idle);
	CheckWalHeld(now);

	/* The reading of catalogs has left statistics behind. */
	if (idle)
		pgstat_report_stat(true);
}

/* ----------------------------------------------------------------------
 * The queue
 * ----------------------------------------------------------------------
 */

/*
 * The wait is not left to shm_mq, because the WAL that piles up meanwhile has
 * to be watched.
 */
static void
SendNow(shm_mq_iovec *iov, int iovcnt, bool flush)
{
	static uint64 begun = 0;

	for (int i = 0; i < iovcnt; i++)
		bytes_sent += iov[i].len;
	pg_atomic_write_u64(&decoder_feed->queue_begun, ++begun);
	pg_write_barrier();

	for (;;)
	{
		shm_mq_result result = shm_mq_sendv(queue, iov, iovcnt, true, flush);

		if (result == SHM_MQ_SUCCESS)
			break;
		if (result == SHM_MQ_DETACHED)
		{
			ereport(LOG,
					(errmsg("decoder of database \"%s\" ends because its feed worker has ended",
							decoder_database)));
			proc_exit(1);
		}

		/* An error in here leaves half a message, but it ends the process. */
		CHECK_FOR_INTERRUPTS();
		if (WaitForLatch(SHORT_WAIT))
		{
			ReportActivity(STATE_RUNNING, activity_queue);
			CheckWalHeld(GetCurrentTimestamp());
		}
	}

	if (activity == activity_queue)
		ReportActivity(STATE_RUNNING, activity_decoding);
}

static void
SendBatch(bool flush)
{
	shm_mq_iovec iov;

	if (batch_length == 0)
		return;
	iov.data = batch;
	iov.len = batch_length;
	batch_length = 0;
	SendNow(&iov, 1, flush);
	pg_atomic_write_u64(&decoder_feed->decoder_bytes, bytes_sent);
}

void
DecoderSend(shm_mq_iovec *iov, int iovcnt)
{
	Size length = 0;
	char *to;

	for (int i = 0; i < iovcnt; i++)
		length += iov[i].len;
	if (batch_length + RecordBatchSpace(length) > BATCH_SIZE)
		SendBatch(false);

	if (RecordBatchSpace(length) > BATCH_SIZE)
	{
		char head[RECORD_BATCH_HEAD];
		shm_mq_iovec parts[DECODER_MAX_PARTS + 1];

		Assert(iovcnt <= DECODER_MAX_PARTS);
		RecordFillBatchHead(head, length);
		parts[0].data = head;
		parts[0].len = sizeof(head);
		memcpy(&parts[1], iov, iovcnt * sizeof(shm_mq_iovec));
		SendNow(parts, iovcnt + 1, false);
		return;
	}

	to = batch + batch_length;
	RecordFillBatchHead(to, length);
	to += RECORD_BATCH_HEAD;
	for (int i = 0; i < iovcnt; i++)
	{
		memcpy(to, iov[i].data, iov[i].len);
		to += iov[i].len;
	}
	batch_length += RecordBatchSpace(length);
}

void
DecoderFlush(void)
{
	SendBatch(true);
}

/*
 * Lets others know how far we have come, and wakes the feed worker if it waits
 * for that.
 *
 * The feed worker writes decoded_wanted and then reads decoded_lsn, we write
 * and read them in the opposite order, each with a full barrier between the
 * two: so at least one of us sees what the other has written.
 */
static void
AnnounceDecoded(void)
{
	uint64 wanted;

	DecoderFlush();
	if (announced != decoded)
	{
		/* The records come first. */
		pg_write_barrier();
		pg_atomic_write_u64(&decoder_feed->decoded_lsn, decoded);
		announced = decoded;
	}
	pg_memory_barrier();

	/* Exchanged, so that a wish that is written meanwhile is not lost. */
	wanted = pg_atomic_read_u64(&decoder_feed->decoded_wanted);
	while (wanted != 0 && wanted <= decoded)
	{
		if (pg_atomic_compare_exchange_u64(&decoder_feed->decoded_wanted, &wanted, 0))
		{
			SharedWake(&decoder_feed->feed_proc);
			break;
		}
	}
}

/* ----------------------------------------------------------------------
 * Reading WAL
 * ----------------------------------------------------------------------
 */

/* WAL that may be read: flushed here, or on a standby replayed. */
static XLogRecPtr
ReadableLsn(void)
{
	if (RecoveryInProgress())
		return GetXLogReplayRecPtr(NULL);
	return GetFlushRecPtr(NULL);
}

/*
 * Flushes WAL that somebody wants decoded but nobody waits to have flushed:
 * what was committed with synchronous_commit = off would otherwise come only
 * when the WAL writer gets to it.  True if something was flushed.
 */
static bool
FlushWanted(XLogRecPtr readable)
{
	XLogRecPtr wanted;
	XLogRecPtr insert;

	if (RecoveryInProgress())
		return false;

	wanted = Max(pg_atomic_read_u64(&decoder_feed->flush_wanted),
				 pg_atomic_read_u64(&decoder_feed->decoded_wanted));
	if (!creating && wanted <= readable)
		return false;

	/* A position that does not exist yet would be an error. */
	insert = SharedInsertLsn();
	wanted = creating ? insert : Min(wanted, insert);
	if (wanted <= readable)
		return false;
	XLogFlush(wanted);
	return true;
}

/* How many naps to take: all WAL has been read. */
static int
CountNaps(void)
{
	static TimestampTz last = 0;
	static int64 interval = 40 * FAST_COMMITS;
	TimestampTz now = GetCurrentTimestamp();
	int64 elapsed = Min(Max(now - last, 0), 40 * FAST_COMMITS);

	/* A pause ends it at once, a few fast commits alone do not begin it. */
	last = now;
	interval += (elapsed - interval) / 8;
	return interval < FAST_COMMITS ? MAX_NAPS : 0;
}

/*
 * Waits until WAL may be read up to `until`.  Commits wake us from sleep, flushes
 * alone do not: what they show is in progress.  On a standby there are none, so
 * there it is the replay that does.
 */
static void
WaitForWal(XLogRecPtr until)
{
	static XLogRecPtr readable = InvalidXLogRecPtr;
	static int pages = 0;
	long timeout = SHORT_WAIT;
	int naps;

	/* While there is WAL at hand the feed worker is woken now and then. */
	if (until <= readable && ++pages < PAGES_PER_FLUSH)
		return;
	pages = 0;
	AnnounceDecoded();
	if (until <= readable)
		return;
	naps = CountNaps();

	for (;;)
	{
		TimestampTz now;

		DecoderHandleInterrupts();

		/* Have us woken before looking. */
		if (naps == 0)
		{
			pg_atomic_write_u32(&decoder_feed->decoder_sleeps, 1);
			pg_memory_barrier();
			if (RecoveryInProgress())
				compat_wal_wait_join();
		}
		readable = ReadableLsn();
		if (until <= readable)
			break;

		if (FlushWanted(readable))
			continue;

		now = GetCurrentTimestamp();
		if (TimestampDifferenceExceeds(check_time, now, LONG_WAIT))
		{
			/* It may sleep by itself, so look again afterwards. */
			Housekeeping(now, true);
			continue;
		}

		if (naps > 0)
		{
			naps--;
			pg_usleep(NAP);
			continue;
		}

		/* Nobody commits here, but others may fill the disk. */
		SharedSleepUntil(decoder_feed, decoded + WalStep());
		if (WaitForCommit(timeout))
		{
			compat_wal_wait_leave();
			if (creating)
			{
				/* Have the running transactions written down again. */
				CheckWalHeld(now);
				if (!RecoveryInProgress())
					(void) LogStandbySnapshot();
			}
			else
			{
				ReportActivity(STATE_IDLE, activity_waiting);
				Housekeeping(GetCurrentTimestamp(), true);
				timeout = LONG_WAIT;
			}
		}
	}

	compat_wal_wait_leave();
	if (pg_atomic_read_u32(&decoder_feed->decoder_sleeps) != 0)
		pg_atomic_write_u32(&decoder_feed->decoder_sleeps, 0);
	if (activity == activity_waiting)
		ReportActivity(STATE_RUNNING, activity_decoding);
}

int
DecoderReadPage(XLogReaderState *state, XLogRecPtr target_page, int length,
				XLogRecPtr target_record, char *page)
{
	WaitForWal(target_page + length);

	/* It knows about timelines, and has no reason to wait any more. */
	return read_local_xlog_page(state, target_page, length, target_record, page);
}

/* ----------------------------------------------------------------------
 * The process
 * ----------------------------------------------------------------------
 */

/* Acquires or creates the slot, and tells the others about it. */
static void
SetUpSlot(void)
{
	uint64 epoch;

	pg_atomic_write_u32(&decoder_feed->wal_limit, (uint32) setting_history_wal_size);
	epoch = DecoderAcquireSlot();
	if (epoch != 0)
	{
		decoded = confirmed = MyReplicationSlot->data.confirmed_flush;
		CheckWalHeld(GetCurrentTimestamp());
	}
	else
	{
		creating = true;
		ReportActivity(STATE_RUNNING, activity_creating);
		epoch = DecoderCreateSlot();
		creating = false;
	}

	decoded = confirmed = MyReplicationSlot->data.confirmed_flush;
	confirm_time = check_time = GetCurrentTimestamp();

	LWLockAcquire(shared_feeds->lock, LW_EXCLUSIVE);
	decoder_feed->slot_name = MyReplicationSlot->data.name;
	pg_atomic_write_u64(&decoder_feed->decoded_lsn, decoded);
	pg_atomic_write_u64(&decoder_feed->start_lsn, confirmed);
	pg_atomic_write_u64(&decoder_feed->epoch, epoch);
	LWLockRelease(shared_feeds->lock);
	announced = decoded;
	SharedWake(&decoder_feed->feed_proc);
}

static void
DecodeForever(void)
{
	LogicalDecodingContext *ctx;
	uint32 records = 0;
	bool wal2json = setting_decoder == DECODER_WAL2JSON;

	ctx = CreateDecodingContext(InvalidXLogRecPtr, wal2json ? Wal2jsonOptions() : NIL, false,
								DECODER_READER(), NULL, NULL, NULL);
	if (wal2json)
		Wal2jsonAttach(ctx);
	XLogBeginRead(ctx->reader, MyReplicationSlot->data.restart_lsn);
	ReportActivity(STATE_RUNNING, activity_decoding);

	for (;;)
	{
		char *message = NULL;
		XLogRecord *record;
		uint64 wanted;

		/*
		 * The replay of a transaction leaves other ones current: the reader's
		 * buffers must not be allocated there.
		 */
		MemoryContextSwitchTo(decoder_context);
		CurrentResourceOwner = NULL;
		CHECK_FOR_INTERRUPTS();

		record = XLogReadRecord(ctx->reader, &message);
		if (record == NULL)
			ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR),
							errmsg("could not read WAL at %X/%X: %s",
								   LSN_FORMAT_ARGS(ctx->reader->EndRecPtr),
								   message ? message : "end of WAL")));
		LogicalDecodingProcessRecord(ctx, ctx->reader);

		/* What was confirmed before is read again, but gives no records. */
		if (ctx->reader->EndRecPtr > decoded)
			decoded = ctx->reader->EndRecPtr;

		/*
		 * Every backend reads this part of shared memory at its commits, so
		 * it is not written for each WAL record.  A wish that this plain look
		 * misses is seen at the next record or, at the latest, before we
		 * wait for WAL.
		 */
		wanted = pg_atomic_read_u64(&decoder_feed->decoded_wanted);
		if (wanted != 0 && wanted <= decoded)
			AnnounceDecoded();
		if (++records >= RECORDS_PER_CHECK)
		{
			TimestampTz now = GetCurrentTimestamp();

			/*
			 * By the clock, and by the WAL: a burst of it, of another database
			 * perhaps, would reach the bound within one tick.
			 */
			records = 0;
			if (TimestampDifferenceExceeds(check_time, now, SHORT_WAIT) ||
				decoded - check_lsn > WalStep())
				Housekeeping(now, false);
			else
				ConfirmSlot(now, false);
			DecoderHandleInterrupts();
		}
	}
}

/*
 * Behind the end of a transaction, if there is one.  What FindStartpoint waits
 * for may be granted in the moment at which we are told to end, and outside of
 * a transaction nobody else gives that back.
 */
static void
ReleaseLocksAtExit(int code, Datum arg)
{
	LockReleaseAll(DEFAULT_LOCKMETHOD, true);
}

void
ChangefeedDecoderMain(Datum main_arg)
{
	Oid database;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();

	decoder_feed = SharedFeedOfWorker(main_arg);
	SharedRegisterProcess(&decoder_feed->decoder_proc);
	LWLockAcquire(shared_feeds->lock, LW_SHARED);
	database = decoder_feed->database;
	LWLockRelease(shared_feeds->lock);
	before_shmem_exit(ReleaseLocksAtExit, (Datum) 0);
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);

	decoder_context = AllocSetContextCreate(TopMemoryContext, "changefeed decoder",
											ALLOCSET_DEFAULT_SIZES);
	StartTransactionCommand();
	decoder_database = MemoryContextStrdup(decoder_context, get_database_name(database));
	CommitTransactionCommand();
	MemoryContextSwitchTo(decoder_context);

	bytes_sent = pg_atomic_read_u64(&decoder_feed->decoder_bytes);
	wait_event = compat_wait_event("ChangefeedDecoderMain");
	queue = SharedQueueAttach(decoder_feed, true);
	SetUpSlot();

	/*
	 * pg_cancel_backend has no meaning for us and would cost a restart.  Only
	 * now, since the lock time-out of FindStartpoint comes as this signal.
	 */
	pqsignal(SIGINT, SIG_IGN);

	DecodeForever();
}
