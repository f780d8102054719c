/*-------------------------------------------------------------------------
 *
 * stat.c
 *		What the feed of this database is doing, for the views stat_*.
 *
 * Process: any backend.  Memory: CurrentMemoryContext of the call.  Locks: the
 * shared array's lock for what it guards (shared.h); counters are read one by
 * one, so they need not be of exactly the same moment.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "feed_request.h"
#include "pause.h"
#include "shared.h"
#include "stat.h"
#include "version.h"
#include "wire.h"

#include "access/htup_details.h"
#include "access/xlog.h"
#include "access/xlogrecovery.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "replication/slot.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(changefeed_stat_feed);
PG_FUNCTION_INFO_V1(changefeed_stat_connections);
PG_FUNCTION_INFO_V1(changefeed_stat_subscriptions);
PG_FUNCTION_INFO_V1(changefeed_stat_channels);
PG_FUNCTION_INFO_V1(changefeed_stat_gateways);
PG_FUNCTION_INFO_V1(changefeed_metrics);

#define STAT_FEED_COLUMNS 28

/* A row under construction; columns are filled from left to right. */
typedef struct StatRow
{
	int n;
	Datum values[STAT_FEED_COLUMNS];
	bool nulls[STAT_FEED_COLUMNS];
} StatRow;

static void
Add(StatRow *row, Datum value, bool isnull)
{
	Assert(row->n < STAT_FEED_COLUMNS);
	row->values[row->n] = value;
	row->nulls[row->n++] = isnull;
}

static void
AddCount(StatRow *row, pg_atomic_uint64 *counter)
{
	Add(row, Int64GetDatum((int64) pg_atomic_read_u64(counter)), false);
}

static void
AddLsn(StatRow *row, pg_atomic_uint64 *lsn)
{
	XLogRecPtr value = pg_atomic_read_u64(lsn);

	Add(row, LSNGetDatum(value), XLogRecPtrIsInvalid(value));
}

/* A number that is null when it is zero. */
static void
AddNumber(StatRow *row, int number)
{
	Add(row, Int32GetDatum(number), number == 0);
}

/* The process with that number, 0: none. */
int
StatPid(pg_atomic_uint32 *procno)
{
	uint32 number = pg_atomic_read_u32(procno);

	if (number >= ProcGlobal->allProcCount)
		return 0;
	return GetPGProcByNumber(number)->pid;
}

XLogRecPtr
StatWalEnd(void)
{
	return RecoveryInProgress() ? GetXLogReplayRecPtr(NULL) : GetXLogWriteRecPtr();
}

/* WAL that could be recycled if it were not for the slot; -1: no such slot. */
int64
StatWalHeld(const char *slot_name)
{
	XLogRecPtr restart_lsn = InvalidXLogRecPtr;
	XLogRecPtr end = StatWalEnd();
	int i;

	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	for (i = 0; i < max_replication_slots; i++)
	{
		ReplicationSlot *slot = &ReplicationSlotCtl->replication_slots[i];

		if (!slot->in_use || strcmp(NameStr(slot->data.name), slot_name) != 0)
			continue;
		SpinLockAcquire(&slot->mutex);
		restart_lsn = slot->data.restart_lsn;
		SpinLockRelease(&slot->mutex);
		break;
	}
	LWLockRelease(ReplicationSlotControlLock);

	if (XLogRecPtrIsInvalid(restart_lsn))
		return -1;
	return end > restart_lsn ? (int64) (end - restart_lsn) : 0;
}

int
StatWalLimit(void)
{
	return max_slot_wal_keep_size_mb >= 0 ? Min(max_slot_wal_keep_size_mb, setting_history_wal_size)
										  : setting_history_wal_size;
}

static const char *
StateName(FeedState state, int decoder_pid, int feed_pid, uint64 epoch, bool paused)
{
	switch (state)
	{
		case FEED_STOPPING:
			return "stopping";
		case FEED_WANTED:
			if (decoder_pid != 0 && feed_pid != 0 && epoch != 0)
				return paused ? "paused" : "running";
			return VersionMatches(NULL) ? "starting" : "version mismatch";
		default:
			return "off";
	}
}

/*
 * _stat_feed(): one row always.  Without an entry for this database only its
 * state is not null, and says so.
 */
Datum
changefeed_stat_feed(PG_FUNCTION_ARGS)
{
	DatabaseFeed *feed = shared_feeds != NULL ? SharedFeedOfMyDatabase() : NULL;
	TupleDesc tupdesc;
	StatRow row;
	PauseState pause;
	FeedState state;
	uint32 generation;
	NameData slot_name;
	uint64 epoch;
	int decoder_pid;
	int feed_pid;
	int64 wal_held = -1;

	/* That of an older version has the first of our columns. */
	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE ||
		tupdesc->natts > STAT_FEED_COLUMNS)
		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the view changefeed.stat_feed is of a newer version than the loaded library"),
			 errhint("Restart the server, so that it loads the installed library.")));
	tupdesc = BlessTupleDesc(tupdesc);
	(void) PauseRead(&pause);

	if (feed == NULL)
	{
		memset(row.nulls, true, sizeof(row.nulls));
		row.values[0] = CStringGetTextDatum(shared_feeds == NULL ? "not preloaded"
											: pause.paused		 ? "paused"
																 : "off");
		row.nulls[0] = false;
		row.values[STAT_FEED_COLUMNS - 2] = TimestampTzGetDatum(pause.since);
		row.nulls[STAT_FEED_COLUMNS - 2] = !pause.paused;
		PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(tupdesc, row.values, row.nulls)));
	}

	LWLockAcquire(shared_feeds->lock, LW_SHARED);
	state = feed->state;
	generation = feed->generation;
	slot_name = feed->slot_name;
	LWLockRelease(shared_feeds->lock);

	epoch = pg_atomic_read_u64(&feed->epoch);
	decoder_pid = StatPid(&feed->decoder_proc);
	feed_pid = StatPid(&feed->feed_proc);
	if (NameStr(slot_name)[0] != '\0')
		wal_held = StatWalHeld(NameStr(slot_name));

	row.n = 0;
	Add(&row,
		CStringGetTextDatum(
			StateName(state, decoder_pid, feed_pid, epoch, pg_atomic_read_u32(&feed->paused) != 0)),
		false);
	Add(&row, Int64GetDatum((int64) generation), false);
	Add(&row, CStringGetTextDatum(psprintf("%016llx", (unsigned long long) epoch)), epoch == 0);
	Add(&row, CStringGetTextDatum(NameStr(slot_name)), NameStr(slot_name)[0] == '\0');
	AddNumber(&row, decoder_pid);
	AddNumber(&row, feed_pid);
	AddNumber(&row, (int) pg_atomic_read_u32(&feed->feed_gateway_pid));
	AddNumber(&row, (int) pg_atomic_read_u32(&feed->feed_port));
	AddLsn(&row, &feed->decoded_lsn);
	AddLsn(&row, &feed->feed_published);
	AddLsn(&row, &feed->confirm_lsn);
	AddCount(&row, &feed->feed_connections);
	AddCount(&row, &feed->feed_subscriptions);
	AddCount(&row, &feed->decoder_transactions);
	AddCount(&row, &feed->decoder_changes);
	AddCount(&row, &feed->decoder_bytes);
	AddCount(&row, &feed->feed_frames);
	AddCount(&row, &feed->feed_resyncs);
	AddCount(&row, &feed->feed_denials);
	AddCount(&row, &feed->feed_evaluations);
	AddCount(&row, &feed->feed_log_bytes);
	AddCount(&row, &feed->feed_gateway_starts);
	Add(&row, Int64GetDatum(wal_held), wal_held < 0);
	AddCount(&row, &feed->feed_messages);
	AddCount(&row, &feed->decoder_forged);
	AddCount(&row, &feed->feed_event_errors);
	Add(&row, TimestampTzGetDatum(pause.since), !pause.paused);
	Add(&row,
		Int64GetDatum((int64) (pg_atomic_read_u64(&feed->slots_given_up) +
							   pg_atomic_read_u64(&feed->slots_invalidated))),
		false);
	Assert(row.n == STAT_FEED_COLUMNS);

	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(tupdesc, row.values, row.nulls)));
}

/* ---- what only the feed worker knows ---- */

static Datum
ReadNumber(Oid type, uint64 value)
{
	switch (type)
	{
		case BOOLOID:
			return BoolGetDatum(value != 0);
		case INT4OID:
			return Int32GetDatum((int32) value);
		case INT8OID:
			return Int64GetDatum((int64) value);
		case LSNOID:
			return LSNGetDatum((XLogRecPtr) value);
		case TIMESTAMPTZOID:
			return TimestampTzGetDatum((TimestampTz) value);
		default:
			elog(ERROR, "column of a statistics view has type %u", type);
	}
}

/* Asks the feed worker, and returns what it says as the function's rows. */
static void
Rows(FunctionCallInfo fcinfo, FeedRequestKind kind)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	Datum *values;
	bool *nulls;
	Size length;
	char *bytes;
	WireReader r;
	int n;

	compat_materialize(fcinfo);
	n = result->setDesc->natts;
	values = palloc(sizeof(Datum) * n);
	nulls = palloc(sizeof(bool) * n);

	bytes = FeedAsk(kind, NULL, 0, &length);
	r = WireReaderInit(bytes, length);
	while (!WireAtEnd(&r))
	{
		int i;

		CHECK_FOR_INTERRUPTS();
		for (i = 0; i < n; i++)
		{
			Oid type = TupleDescAttr(result->setDesc, i)->atttypid;
			uint8 tag = WireGetU8(&r);

			values[i] = (Datum) 0;
			nulls[i] = tag == STAT_NULL;
			if (tag == STAT_NUMBER && type != TEXTOID)
				values[i] = ReadNumber(type, WireGetU64(&r));
			else if ((tag == STAT_TEXT || tag == STAT_JSON) && type == TEXTOID)
			{
				WireBytes text = WireGetBytes(&r);

				values[i] = PointerGetDatum(
					cstring_to_text_with_len(r.failed ? "" : text.data, (int) text.length));
			}
			else if (tag != STAT_NULL)
				r.failed = true;
		}
		if (r.failed)
			elog(ERROR, "rows of the feed worker are not what the view has");
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	pfree(bytes);
}

Datum
changefeed_stat_connections(PG_FUNCTION_ARGS)
{
	Rows(fcinfo, REQUEST_CONNECTIONS);
	return (Datum) 0;
}

Datum
changefeed_stat_subscriptions(PG_FUNCTION_ARGS)
{
	Rows(fcinfo, REQUEST_SUBSCRIPTIONS);
	return (Datum) 0;
}

Datum
changefeed_stat_channels(PG_FUNCTION_ARGS)
{
	Rows(fcinfo, REQUEST_CHANNELS);
	return (Datum) 0;
}

Datum
changefeed_stat_gateways(PG_FUNCTION_ARGS)
{
	Rows(fcinfo, REQUEST_GATEWAYS);
	return (Datum) 0;
}

Datum
changefeed_metrics(PG_FUNCTION_ARGS)
{
	Size length;
	char *bytes = FeedAsk(REQUEST_METRICS, NULL, 0, &length);

	PG_RETURN_TEXT_P(cstring_to_text_with_len(bytes, (int) length));
}
