/*-------------------------------------------------------------------------
 *
 * log.c
 *		The log of decoded transactions.  See log.h.
 *
 * Records become transactions in log_open.c.  The log itself is an array of
 * pointers, in which a transaction is found by its number minus the base.
 *
 * Process: feed worker.  Memory: log_context lives as long as the process.
 * Locks: none; shared state is read and written as atomics.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "log.h"
#include "log_open.h"
#include "feed.h"
#include "pause.h"

#include "access/transam.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/procarray.h"
#include "storage/shm_mq.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* One transaction of a full history that nobody else limits. */
#define MIN_CAPACITY 1024

static DatabaseFeed *my_feed;
static shm_mq_handle *queue;
static MemoryContext log_context;

static LogTransaction **transactions; /* [head] has number base + 1 */
static int head;
static int capacity;
static uint64 base;
static uint64 last;
static uint64 published;
static Size log_bytes;

/*
 * The name of the transaction `base`.  When it is not known (a slot that is
 * new, or a server that was restarted), there is no xid, the LSN is where
 * decoding began, and the time is a random number: what stands before that
 * LSN in the history of another copy of this server may be something else.
 */
static bool begun;
static XLogRecPtr base_lsn;
static uint64 base_xid;
static TimestampTz base_time;

/* What the decoder had queued when the queue was last found empty. */
static XLogRecPtr drained_lsn;

/* The smallest LSN that somebody waits for in this turn, and the greatest. */
static XLogRecPtr wanted_least;
static XLogRecPtr wanted_most;
static XLogRecPtr asked; /* the last one for which the decoder was woken */

void
LogInit(DatabaseFeed *feed)
{
	my_feed = feed;
	queue = SharedQueueAttach(feed, false);
	log_context = AllocSetContextCreate(TopMemoryContext, "changefeed log", ALLOCSET_DEFAULT_SIZES);
	LogOpenInit(log_context);

	capacity = MIN_CAPACITY;
	transactions = MemoryContextAlloc(log_context, sizeof(LogTransaction *) * capacity);
}

static void
AppendTransaction(LogTransaction *transaction)
{
	uint64 count = last - base;

	if (head + count == (uint64) capacity)
	{
		/* Moved at most once for each that was dropped. */
		if (head >= capacity / 2)
		{
			memmove(&transactions[0], &transactions[head], sizeof(LogTransaction *) * count);
			head = 0;
		}
		else
		{
			capacity *= 2;
			transactions = repalloc_huge(transactions, sizeof(LogTransaction *) * capacity);
		}
	}
	transaction->number = ++last;
	transactions[head + count] = transaction;
	log_bytes += transaction->size;
}

/*
 * The decoder has its slot: from here on the log is what is decoded.  What is
 * known of the base is of use if nothing was committed between it and the
 * start.  That is so if it lies before the start, because the slot was never
 * confirmed further than the transaction that comes next.
 */
static bool
Begin(void)
{
	uint64 epoch = pg_atomic_read_u64(&my_feed->epoch);
	XLogRecPtr start;

	if (epoch == 0)
		return false;
	pg_read_barrier();
	start = pg_atomic_read_u64(&my_feed->start_lsn);
	if (my_feed->base_epoch == epoch &&
		(my_feed->base_lsn < start || (my_feed->base_lsn == start && my_feed->base_xid == 0)))
	{
		base_lsn = my_feed->base_lsn;
		base_xid = my_feed->base_xid;
		base_time = (TimestampTz) my_feed->base_time;
	}
	else
	{
		uint32 random;

		if (!pg_strong_random(&random, sizeof(random)))
			ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR),
							errmsg("could not generate a random number")));
		base_lsn = start;
		base_xid = 0;
		base_time = (TimestampTz) random;
	}
	begun = true;
	return true;
}

/*
 * To find the queue empty means to tell its sender, which we would wake for
 * nothing, that there is room again.  So that is not tried if the decoder has
 * begun no other message: for a later one it will wake us.
 */
static bool
QueueIsEmpty(uint64 received)
{
	return received == pg_atomic_read_u64(&my_feed->queue_begun);
}

bool
LogReceive(Size budget)
{
	static uint64 received = 0;
	XLogRecPtr decoded;
	Size taken = 0;

	if (!begun && !Begin())
		return false;

	/*
	 * Read before the queue: whatever was decoded up to here is in the queue
	 * by now, so an empty queue means that we have it.
	 */
	decoded = pg_atomic_read_u64(&my_feed->decoded_lsn);
	pg_memory_barrier();

	for (;;)
	{
		Size length;
		Size offset = 0;
		void *batch;
		const char *data;
		Size data_length;
		shm_mq_result result = shm_mq_receive(queue, &length, &batch, true);

		if (result == SHM_MQ_WOULD_BLOCK)
			break;
		if (result == SHM_MQ_DETACHED)
		{
			ereport(LOG, (errmsg("changefeed feed worker ends because its decoder is gone")));
			proc_exit(1);
		}
		while (RecordNextOfBatch(batch, length, &offset, &data, &data_length))
		{
			LogTransaction *complete = LogOpenReceive(data, data_length);

			if (complete != NULL)
				AppendTransaction(complete);
		}
		taken += length;
		received++;
		if (QueueIsEmpty(received))
			break;
		if (taken >= budget)
			return true;
	}
	if (drained_lsn < decoded)
		drained_lsn = decoded;
	return false;
}

/*
 * Others see a commit a moment before its invalidations are sent.  What is
 * done because of changed catalogs needs them, here and in the query workers;
 * the lock of the xid is released behind them.
 */
static bool
CatalogsAreCurrent(TransactionId xid)
{
	if (TransactionIdIsValid(xid) && !compat_xact_lock_is_free(xid))
		return false;
	AcceptInvalidationMessages();
	InvalidateCatalogSnapshot();
	return true;
}

/* Has it changed our own tables? */
static bool
ChangesCatalog(const LogTransaction *transaction)
{
	int i;

	for (i = 0; i < transaction->nbarriers; i++)
		if (transaction->barriers[i].kind == BARRIER_CATALOG)
			return true;
	return false;
}

long
LogPublish(LogPublishCallback publish, int limit)
{
	while (published < last && limit-- > 0)
	{
		LogTransaction *next = LogGet(published + 1);
		TransactionId xid = XidFromFullTransactionId(FullTransactionIdFromU64(next->commit.xid));

		/* What is sent at once does not wait for its transaction. */
		if (!next->commit.immediate && TransactionIdIsInProgress(xid))
		{
			/* Ask to be woken, then look again: it may just have ended. */
			pg_atomic_write_u32(&my_feed->visibility_wanted, xid);
			pg_memory_barrier();
			if (TransactionIdIsInProgress(xid))
				return 1000;
		}
		if (next->nbarriers > 0 && !CatalogsAreCurrent(xid))
			return 1;

		/* Its rows and what follows must not be sent by the old definitions. */
		if (ChangesCatalog(next) && !CatalogLock())
			return 50;
		published++;
		pg_atomic_write_u64(&my_feed->feed_published, next->commit.lsn);
		publish(next);
	}
	if (pg_atomic_read_u32(&my_feed->visibility_wanted) != 0)
		pg_atomic_write_u32(&my_feed->visibility_wanted, 0);
	return -1;
}

bool
LogHasUnpublished(void)
{
	return published < last;
}

uint64
LogBase(void)
{
	return base;
}

uint64
LogPublished(void)
{
	return published;
}

uint64
LogLast(void)
{
	return last;
}

LogTransaction *
LogGet(uint64 number)
{
	if (number <= base || number > last)
		return NULL;
	return transactions[head + (number - base - 1)];
}

void
LogPosition(uint64 number, char *out)
{
	uint64 epoch = pg_atomic_read_u64(&my_feed->epoch);
	LogTransaction *transaction = LogGet(number);

	if (transaction != NULL)
		PositionWrite(out, epoch, transaction->commit.lsn, transaction->commit.xid,
					  transaction->commit.time);
	else if (number != base)
		elog(ERROR, "the log does not know the position of transaction " UINT64_FORMAT, number);
	else
		PositionWrite(out, epoch, base_lsn, base_xid, base_time);
}

uint64
LogFullXid(TransactionId xid)
{
	FullTransactionId next = ReadNextFullTransactionId();
	uint32 epoch = EpochFromFullTransactionId(next);

	if (xid > XidFromFullTransactionId(next))
		epoch--;
	return U64FromFullTransactionId(FullTransactionIdFromEpochAndXid(epoch, xid));
}

uint64
LogNumberAt(XLogRecPtr lsn)
{
	uint64 low = base;
	uint64 high = last;

	/* Invariant: `low` starts before lsn (or is the base), `high` + 1 does not. */
	while (low < high)
	{
		uint64 middle = low + (high - low + 1) / 2;

		if (LogGet(middle)->commit.lsn < lsn)
			low = middle;
		else
			high = middle - 1;
	}
	return low;
}

bool
LogIsForeign(const Position *position)
{
	return position->epoch != pg_atomic_read_u64(&my_feed->epoch);
}

bool
LogHasToReach(const Position *position)
{
	/* What does not exist yet is not waited for. */
	return position->lsn < SharedInsertLsn() && !LogReached(position->lsn + 1);
}

bool
LogFind(const Position *position, uint64 *number, const char **reason)
{
	uint64 found;
	LogTransaction *transaction;

	if (LogIsForeign(position))
	{
		*reason = "unknown_epoch";
		return false;
	}
	if (position->lsn == base_lsn && position->xid == (uint32) base_xid &&
		position->time == PositionTime(base_time))
	{
		*number = base;
		return true;
	}

	/*
	 * At a position before our base nothing can be said about its timeline; it
	 * is too old in any case.  So is one that was the base of another process
	 * and has no transaction to be known by.
	 */
	if (position->xid == 0 || position->lsn < base_lsn)
	{
		*reason = "history_truncated";
		return false;
	}
	found = LogNumberAt(position->lsn + 1);
	transaction = LogGet(found);
	if (transaction == NULL || transaction->commit.lsn != position->lsn ||
		(uint32) transaction->commit.xid != position->xid ||
		PositionTime(transaction->commit.time) != position->time)
	{
		*reason = "timeline_lost";
		return false;
	}
	*number = found;
	return true;
}

bool
LogReceivedUpTo(XLogRecPtr lsn)
{
	if (drained_lsn >= lsn)
		return true;
	if (wanted_least == InvalidXLogRecPtr || lsn < wanted_least)
		wanted_least = lsn;
	if (lsn > wanted_most)
		wanted_most = lsn;
	return false;
}

bool
LogReached(XLogRecPtr lsn)
{
	LogTransaction *next = LogGet(published + 1);

	return LogReceivedUpTo(lsn) && (next == NULL || next->commit.lsn >= lsn);
}

void
LogArm(void)
{
	if (wanted_least == InvalidXLogRecPtr)
		return;

	SharedAdvance(&my_feed->flush_wanted, wanted_most);
	pg_atomic_write_u64(&my_feed->decoded_wanted, wanted_least);
	pg_memory_barrier();

	/*
	 * The decoder looks at decoded_wanted after it has raised decoded_lsn; we
	 * look at decoded_lsn after having set decoded_wanted: one of us notices.
	 */
	if (pg_atomic_read_u64(&my_feed->decoded_lsn) >= wanted_least)
		SetLatch(MyLatch);
	else if (asked < wanted_most)
	{
		asked = wanted_most;
		SharedWake(&my_feed->decoder_proc);
	}
	wanted_least = wanted_most = InvalidXLogRecPtr;
}

static void
Drop(LogTransaction *oldest)
{
	base = oldest->number;
	base_lsn = oldest->commit.lsn;
	base_xid = oldest->commit.xid;
	base_time = oldest->commit.time;
	log_bytes -= oldest->size;
	if (oldest->map != NULL)
		MapFree(oldest->map);
	pfree(oldest->chunk);
}

long
LogTrim(void)
{
	TimestampTz now = GetCurrentTimestamp();
	XLogRecPtr insert = GetXLogWriteRecPtr();
	long wait = -1;

	while (base < published)
	{
		LogTransaction *oldest = transactions[head];

		/* Nobody could come back during a pause, so that time does not count. */
		TimestampTz since = feed_paused ? now : Max(oldest->received, feed_resumed);
		bool too_old = TimestampDifferenceExceeds(since, now, setting_history_age * 1000);
		bool too_much = log_bytes > (Size) setting_history_size * 1024 ||
						feed_memory >= MEMORY_SHORT;
		bool too_far = insert > oldest->commit.lsn &&
					   insert - oldest->commit.lsn >
						   (uint64) setting_history_wal_size * 1024 * 1024 / 3;

		/*
		 * What would hold too much WAL goes in any case, well before the
		 * decoder's bound: the slot's restart position lags behind what is
		 * confirmed.  Otherwise the last one stays, so that clients of a quiet
		 * database can resume after hours and after a restart.
		 */
		if (!too_far && (base + 1 == published || (!too_old && !too_much)))
		{
			if (base + 1 != published)
				wait = setting_history_age * 1000 - TimestampDifferenceMilliseconds(since, now);
			break;
		}
		Drop(oldest);
		head++;
	}
	if (last == base)
		head = 0;
	if (last == base && capacity > MIN_CAPACITY)
	{
		capacity = MIN_CAPACITY;
		transactions = repalloc(transactions, sizeof(LogTransaction *) * capacity);
	}

	/*
	 * After a restart decoding begins with the oldest transaction kept.  With
	 * none, everything that was decoded has been handled.
	 */
	if (begun)
	{
		my_feed->base_epoch = pg_atomic_read_u64(&my_feed->epoch);
		my_feed->base_lsn = base_lsn;
		my_feed->base_xid = base_xid;
		my_feed->base_time = (uint64) base_time;
		pg_write_barrier();
	}
	if (last > base)
		pg_atomic_write_u64(&my_feed->confirm_lsn, transactions[head]->commit.lsn);
	else if (drained_lsn != InvalidXLogRecPtr)
		pg_atomic_write_u64(&my_feed->confirm_lsn, drained_lsn);
	pg_atomic_write_u64(&my_feed->feed_log_bytes, log_bytes);
	return wait < 0 ? wait : Max(wait, 100);
}

Size
LogBytes(void)
{
	return log_bytes;
}

void
LogAccount(LogTransaction *transaction, Size bytes)
{
	transaction->size += bytes;
	log_bytes += bytes;
}
