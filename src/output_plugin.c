/*-------------------------------------------------------------------------
 *
 * output_plugin.c
 *		The output plugin: turns decoded changes into change records.
 *
 * The callbacks run inside the transaction that the reorder buffer has
 * started, with the catalogs as of the place in WAL that is being decoded.
 * They run no query and call no user-defined code; they look at the relation,
 * copy tuples into the queue, and that is all.
 *
 * An error in a callback ends the decoder, and after its restart the same
 * transaction comes again: an error that always comes would be a crash loop
 * that holds WAL.  So what may fail because of the data, which is fetching and
 * converting a tuple, is caught, and the source reported as lost (it gets a
 * fresh snapshot).  Only work that takes no lock and pins nothing is wrapped
 * so, since nothing is rolled back.
 *
 * Process: decoder.  Anybody who creates a slot with this plugin is refused.
 *
 * Memory: callback_context, which is reset at the end of each callback that
 * used it.  What is known of relations (output_relations.c) lives longer, and
 * so do the maps between their row types, in the entry of the partition.
 *
 * Locks: none, of our own.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "decoder.h"
#include "message_wal.h"
#include "output_plugin.h"
#include "output_relations.h"
#include "output_state.h"
#include "record.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/transam.h"
#include "access/tupconvert.h"
#include "catalog/pg_class.h"
#include "replication/logical.h"
#include "replication/output_plugin.h"
#include "replication/reorderbuffer.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

/* So much WAL (bytes) cannot have used up 2^30 transaction ids. */
#define NEAR_WAL ((uint64) 1024 * 1024 * 1024)

/* It is said again after this time (ms) that changes of a source are lost. */
#define LOST_INTERVAL 60000

/* A tuple of less (bytes) has no megabyte in it, however well it is packed. */
#define MIN_PACKED (4 * 1024)

/* A transaction (bytes) whose replay takes a while. */
#define LARGE_TRANSACTION (64 * 1024)

static MemoryContext callback_context = NULL;
static RowsReader rows_reader = NULL; /* NULL: those in the WAL */

/* Of the transaction that is being replayed. */
static uint64 transaction = 0; /* counts them */
static uint64 records = 0;	   /* sent for it */
static Size change_bytes = 0;  /* ... of them CHANGE */
static uint64 changes = 0;	   /* CHANGE records of all times */

extern PGDLLEXPORT void _PG_output_plugin_init(OutputPluginCallbacks *cb);

/* ----------------------------------------------------------------------
 * Sending
 * ----------------------------------------------------------------------
 */

void
PluginSend(const char *data, Size length)
{
	shm_mq_iovec iov;

	iov.data = data;
	iov.len = length;
	DecoderSend(&iov, 1);
	records++;
}

static void
SendRecord(StringInfo record)
{
	PluginSend(record->data, record->len);
}

static void
SendTouch(KnownRelation *known, bool told)
{
	char record[RECORD_TOUCH_SIZE];

	/* Once is enough, unless less is told than we said. */
	if (known->touched == transaction && (told || !known->told))
		return;
	known->touched = transaction;
	known->told = told;
	RecordFillTouch(record, known->relid, told);
	PluginSend(record, sizeof(record));
}

static void
SendTruncate(Oid relid)
{
	StringInfoData record;

	initStringInfo(&record);
	RecordWriteTruncate(&record, relid);
	SendRecord(&record);
}

/* Once per transaction and source: it needs a snapshot, however often. */
static void
SendLost(Source *source, const char *why)
{
	StringInfoData record;

	TimestampTz now;

	if (source->lost == transaction)
		return;
	source->lost = transaction;

	/* It may be so for every transaction. */
	now = GetCurrentTimestamp();
	if (TimestampDifferenceExceeds(source->lost_said, now, LOST_INTERVAL))
	{
		source->lost_said = now;
		ereport(
			LOG,
			(errmsg(
				 "could not copy a change of source with OID %u, its subscriptions get a fresh snapshot",
				 source->relid),
			 errdetail_internal("%s", why)));
	}
	initStringInfo(&record);
	RecordWriteLost(&record, source->relid, false, why);
	SendRecord(&record);
}

/*
 * The transaction is larger than the feed worker would keep: what it would only
 * throw away is not sent.
 */
static void
SendTooLarge(Source *source)
{
	StringInfoData record;

	if (source->lost == transaction)
		return;
	source->lost = transaction;
	initStringInfo(&record);
	RecordWriteLost(&record, source->relid, true, "");
	SendRecord(&record);
}

/* ----------------------------------------------------------------------
 * Changes
 * ----------------------------------------------------------------------
 */

/*
 * Large values that are in the WAL hang off the tuple as indirect pointers
 * into the reorder buffer: puts them in.  What is left as an on-disk pointer
 * is a value that did not change; nobody may follow it, since its chunks may
 * be gone.
 */
static HeapTuple
InlineValues(HeapTuple tuple, TupleDesc tupdesc)
{
	Datum *values = palloc(tupdesc->natts * sizeof(Datum));
	bool *isnull = palloc(tupdesc->natts * sizeof(bool));
	bool found = false;

	heap_deform_tuple(tuple, tupdesc, values, isnull);
	for (int i = 0; i < tupdesc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(tupdesc, i);

		if (isnull[i] || att->attisdropped || att->attlen != -1)
			continue;
		if (VARATT_IS_EXTERNAL_INDIRECT(DatumGetPointer(values[i])))
		{
			struct varatt_indirect pointer;

			VARATT_EXTERNAL_GET_POINTER(pointer, DatumGetPointer(values[i]));
			values[i] = PointerGetDatum(pointer.pointer);
			found = true;
		}
	}
	return found ? heap_form_tuple(tupdesc, values, isnull) : tuple;
}

/* Makes of a tuple what a record carries; see PlainTuple for when to call. */
static HeapTuple
MakeTuple(HeapTuple tuple, TupleDesc tupdesc, TupleConversionMap *map, bool whole)
{
	if (tuple == NULL)
		return NULL;
	if (HeapTupleHasExternal(tuple))
		tuple = InlineValues(tuple, tupdesc);
	if (map != NULL)
		return execute_attr_map_tuple(tuple, map);

	/* The columns that a key leaves out are to stay null. */
	if (whole && HeapTupleHeaderGetNatts(tuple->t_data) < tupdesc->natts)
		tuple = heap_expand_tuple(tuple, tupdesc);
	return tuple;
}

/* Nothing has to be done to the tuple: its bytes are sent as they are. */
static inline bool
PlainTuple(HeapTuple tuple, TupleDesc tupdesc)
{
	return tuple == NULL || (!HeapTupleHasExternal(tuple) &&
							 HeapTupleHeaderGetNatts(tuple->t_data) >= tupdesc->natts);
}

/* The map from the relation's row type to that of the target, if needed. */
static void
MakeMap(KnownRelation *known, Target *target, TupleDesc tupdesc)
{
	MemoryContext old_context = MemoryContextSwitchTo(known->context);

	target->map = convert_tuples_by_name(CreateTupleDescCopyConstr(tupdesc),
										 target->source->tupdesc);
	target->map_version = target->source->version;
	MemoryContextSwitchTo(old_context);
}

char *
PluginCatch(MemoryContext context)
{
	ErrorData *error;
	int category;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	FlushErrorState();
	category = ERRCODE_TO_CATEGORY(error->sqlerrcode);
	if (category == ERRCODE_OPERATOR_INTERVENTION || category == ERRCODE_SYSTEM_ERROR)
		ReThrowError(error);
	return error->message ? error->message : pstrdup("unknown error");
}

/*
 * Makes the tuples of a change ready for the target.  Returns NULL, or the
 * reason why that failed.
 */
static char *
MakeTuples(KnownRelation *known, Target *target, TupleDesc tupdesc, HeapTuple *old_tuple,
		   bool old_whole, HeapTuple *new_tuple)
{
	MemoryContext context = CurrentMemoryContext;
	char *volatile why = NULL;

	PG_TRY();
	{
		if (target->is_ancestor && target->map_version != target->source->version)
			MakeMap(known, target, tupdesc);
		*old_tuple = MakeTuple(*old_tuple, tupdesc, target->map, old_whole);
		*new_tuple = MakeTuple(*new_tuple, tupdesc, target->map, true);
	}
	PG_CATCH();
	{
		why = PluginCatch(context);
	}
	PG_END_TRY();
	return why;
}

/* What a tuple takes when its values are unpacked, as the receiver has to do. */
static Size
RawSize(HeapTuple tuple, TupleDesc tupdesc)
{
	Size size;
	Datum *values;
	bool *isnull;

	if (tuple == NULL)
		return 0;
	size = tuple->t_len;
	if (size < MIN_PACKED || !HeapTupleHasVarWidth(tuple))
		return size;
	values = palloc(tupdesc->natts * sizeof(Datum));
	isnull = palloc(tupdesc->natts * sizeof(bool));
	heap_deform_tuple(tuple, tupdesc, values, isnull);
	for (int i = 0; i < tupdesc->natts; i++)
		if (!isnull[i] && TupleDescAttr(tupdesc, i)->attlen == -1 &&
			VARATT_IS_COMPRESSED(DatumGetPointer(values[i])))
			size += toast_raw_datum_size(values[i]);
	return size;
}

/*
 * A change that alone is larger than the largest transaction that is sent as
 * single changes need not be sent either: its source gets a snapshot anyway.
 * (The receiver's buffer would grow to its size, and stay.)
 */
static bool
TooLarge(HeapTuple old_tuple, HeapTuple new_tuple, TupleDesc tupdesc)
{
	Size limit = Max((Size) setting_max_transaction * 1024, (Size) 1024 * 1024);

	return RawSize(old_tuple, tupdesc) + RawSize(new_tuple, tupdesc) > Min(limit, MaxAllocSize / 2);
}

/* Gathers the record from where the tuples lie: they are copied just once. */
static void
SendChange(KnownRelation *known, Target *target, Relation relation, char operation, uint8 has_old,
		   HeapTuple old_tuple, HeapTuple new_tuple, TransactionId subxid)
{
	static const char zeros[8] = {0};
	TupleDesc tupdesc = RelationGetDescr(relation);
	char head[RECORD_CHANGE_HEAD];
	shm_mq_iovec iov[DECODER_MAX_PARTS];
	int n = 0;

	if (change_bytes > (Size) setting_max_transaction * 1024)
	{
		SendTooLarge(target->source);
		return;
	}

	if (unlikely(!target->source->valid))
	{
		StringInfoData record;

		initStringInfo(&record);
		if (SourceDescribe(target->source, target->is_ancestor ? NULL : relation, &record))
			SendRecord(&record);
	}

	if (target->is_ancestor || !PlainTuple(old_tuple, tupdesc) || !PlainTuple(new_tuple, tupdesc))
	{
		char *why = MakeTuples(known, target, tupdesc, &old_tuple, has_old == 1, &new_tuple);

		if (why != NULL)
		{
			SendLost(target->source, why);
			return;
		}
	}
	if (TooLarge(old_tuple, new_tuple, target->is_ancestor ? target->source->tupdesc : tupdesc))
	{
		SendLost(target->source, "the row is larger than \"changefeed.max_transaction\" allows");
		return;
	}

	RecordFillChangeHead(head, target->source->version, operation, has_old, old_tuple, new_tuple,
						 subxid);
	iov[n].data = head;
	iov[n++].len = sizeof(head);
	if (old_tuple != NULL)
	{
		iov[n].data = (char *) old_tuple->t_data;
		iov[n++].len = old_tuple->t_len;
		if (new_tuple != NULL && old_tuple->t_len % 8 != 0)
		{
			iov[n].data = zeros;
			iov[n++].len = 8 - old_tuple->t_len % 8;
		}
	}
	if (new_tuple != NULL)
	{
		iov[n].data = (char *) new_tuple->t_data;
		iov[n++].len = new_tuple->t_len;
	}
	for (int i = 0; i < n; i++)
		change_bytes += iov[i].len;
	DecoderSend(iov, n);
	records++;
	changes++;
}

static bool
IsTarget(KnownRelation *known, Oid relid)
{
	for (int i = 0; i < known->ntargets; i++)
		if (known->targets[i].source->relid == relid)
			return true;
	return false;
}

/*
 * Reports that a table and its ancestors have changed.  `row`: it is the change
 * of a row, which is sent for those that are targets.
 */
static void
TouchRelation(KnownRelation *known, bool row)
{
	SendTouch(known, row && IsTarget(known, known->relid));
	for (int i = 0; i < known->nancestors; i++)
		SendTouch(RelationsFind(known->ancestors[i]), row && IsTarget(known, known->ancestors[i]));
}

/* ----------------------------------------------------------------------
 * Callbacks
 * ----------------------------------------------------------------------
 */

static void
PluginStartup(LogicalDecodingContext *ctx, OutputPluginOptions *options, bool is_init)
{
	if (decoder_feed == NULL)
		ereport(
			ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("output plugin \"%s\" can be used only by the extension's own decoder",
					CHANGEFEED_LIBRARY),
			 errhint(
				 "Subscribe to a channel instead, or use \"pgoutput\" or \"test_decoding\" for a replication slot of your own.")));

	options->output_type = OUTPUT_PLUGIN_BINARY_OUTPUT;
	options->receive_rewrites = false;
	PluginAttach(ctx, NULL);
}

void
PluginAttach(LogicalDecodingContext *ctx, RowsReader reader)
{
	rows_reader = reader;
	callback_context = AllocSetContextCreate(ctx->context, "changefeed callback",
											 ALLOCSET_DEFAULT_SIZES);
	RelationsInitialize();
	StatesBegin();
	changes = pg_atomic_read_u64(&decoder_feed->decoder_changes);
}

static void
PluginShutdown(LogicalDecodingContext *ctx)
{
	/* It goes with the decoding context. */
	callback_context = NULL;
}

static void
PluginBegin(LogicalDecodingContext *ctx, ReorderBufferTXN *txn)
{
	MemoryContext old_context = MemoryContextSwitchTo(callback_context);

	transaction++;
	records = 0;
	change_bytes = 0;
	OutputMessagesBegin();
	memset(&catalog_changes, 0, sizeof(catalog_changes));
	RelationsRefresh();

	BarriersBegin(ctx, txn);
	MemoryContextSwitchTo(old_context);
	MemoryContextReset(callback_context);

	/* The transaction before must not wait for the replay of a large one. */
	if (txn->total_size > LARGE_TRANSACTION || rbtxn_is_serialized(txn))
		DecoderFlush();
}

static void
PluginChange(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, Relation relation,
			 ReorderBufferChange *change)
{
	MemoryContext old_context = MemoryContextSwitchTo(callback_context);
	KnownRelation *known = RelationsLookUp(relation);

	if (known->class == CLASS_CATALOG)
		CatalogNote(known, relation, change);
	else if (known->class == CLASS_USER)
	{
		TouchRelation(known, true);
		if (known->ntargets > 0)
		{
			HeapTuple old_tuple = compat_change_tuple(change->data.tp.oldtuple);
			HeapTuple new_tuple = compat_change_tuple(change->data.tp.newtuple);
			bool full = relation->rd_rel->relreplident == REPLICA_IDENTITY_FULL;
			TransactionId xid = change->txn->xid;
			char operation = 'I';
			char *why = NULL;

			if (change->action == REORDER_BUFFER_CHANGE_UPDATE)
				operation = 'U';
			else if (change->action == REORDER_BUFFER_CHANGE_DELETE)
				operation = 'D';

			if (operation != 'D' && new_tuple == NULL)
				why = "the WAL has no new row";
			else if (rows_reader != NULL)
				why = rows_reader(ctx, txn, relation, change, &old_tuple, &new_tuple);

			for (int i = 0; i < known->ntargets; i++)
			{
				if (why != NULL)
					SendLost(known->targets[i].source, why);
				else
					SendChange(known, &known->targets[i], relation, operation, full ? 1 : 2,
							   old_tuple, new_tuple, xid != txn->xid ? xid : InvalidTransactionId);
			}
		}
	}

	MemoryContextSwitchTo(old_context);
	MemoryContextReset(callback_context);
}

static void
PluginTruncate(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, int nrelations,
			   Relation truncated[], ReorderBufferChange *change)
{
	MemoryContext old_context = MemoryContextSwitchTo(callback_context);
	List *said = NIL;

	for (int i = 0; i < nrelations; i++)
	{
		KnownRelation *known = RelationsLookUp(truncated[i]);

		if (known->class == CLASS_CATALOG)
		{
			catalog_changes.any = true;
			catalog_changes.nchannels = -1;
		}
		if (known->class != CLASS_USER)
			continue;
		TouchRelation(known, false);

		/* Truncating a partitioned table names its partitions, too. */
		for (int j = 0; j < known->ntargets; j++)
		{
			Oid relid = known->targets[j].source->relid;

			if (list_member_oid(said, relid))
				continue;
			said = lappend_oid(said, relid);
			SendTruncate(relid);
		}
	}

	MemoryContextSwitchTo(old_context);
	MemoryContextReset(callback_context);
}

/*
 * Transaction ids in WAL have 32 bits.  One that is looked at alone is not in the
 * future, which is asked for in shared memory; each other one is near the one
 * before.  That is no longer so when much WAL lies between the two: other
 * databases may have used up billions of ids, but each took some bytes of it.
 */
static uint64
WidenXid(TransactionId xid, XLogRecPtr lsn)
{
	static uint64 known = 0;
	static XLogRecPtr known_lsn = InvalidXLogRecPtr;
	bool near = known != 0 && lsn < known_lsn + NEAR_WAL;

	known_lsn = Max(known_lsn, lsn);
	if (!near)
	{
		FullTransactionId next = ReadNextFullTransactionId();
		uint32 epoch = EpochFromFullTransactionId(next);

		if (xid > XidFromFullTransactionId(next))
			epoch--;
		known = ((uint64) epoch << 32) | xid;
	}
	else
		known += (int32) (xid - (uint32) known);
	return known;
}

static void
PluginCommit(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr commit_lsn)
{
	MemoryContext old_context = MemoryContextSwitchTo(callback_context);

	BarriersSend(txn);
	if (records > 0)
	{
		char record[RECORD_COMMIT_SIZE];
		RecordCommit commit;

		commit.xid = WidenXid(txn->xid, commit_lsn);
		commit.lsn = commit_lsn;
		commit.end_lsn = txn->end_lsn;
		commit.time = txn->xact_time.commit_time;
		commit.immediate = false;
		RecordFillCommit(record, &commit);
		PluginSend(record, sizeof(record));

		/* We alone write these. */
		pg_atomic_write_u64(&decoder_feed->decoder_transactions,
							pg_atomic_read_u64(&decoder_feed->decoder_transactions) + 1);
		pg_atomic_write_u64(&decoder_feed->decoder_changes, changes);
	}

	MemoryContextSwitchTo(old_context);
	MemoryContextReset(callback_context);
}

/* ----------------------------------------------------------------------
 * Messages
 * ----------------------------------------------------------------------
 */

static void
PluginMessage(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr message_lsn,
			  bool transactional, const char *prefix, Size size, const char *data)
{
	MemoryContext old_context;
	WalMessage message;
	RecordMessage record;
	StringInfoData out;

	/* Other software has messages of its own. */
	if (strcmp(prefix, MESSAGE_PREFIX) != 0)
		return;
	old_context = MemoryContextSwitchTo(callback_context);
	if (OutputReadMessage(txn != NULL ? WidenXid(compat_toplevel_txn(txn)->xid, message_lsn) : 0,
						  transactional, data, size, &message))
	{
		record.counter = message.counter;
		record.channel = message.channel;
		record.event = message.event;
		record.payload = message.payload;
		initStringInfo(&out);
		RecordWriteMessage(&out, &record);
		SendRecord(&out);
		if (!transactional)
		{
			char end[RECORD_COMMIT_SIZE];
			RecordCommit commit;

			commit.xid = message.xid;
			commit.lsn = message_lsn;
			commit.end_lsn = message_lsn;
			commit.time = message.time;
			commit.immediate = true;
			RecordFillCommit(end, &commit);
			PluginSend(end, sizeof(end));
		}
	}
	MemoryContextSwitchTo(old_context);
	MemoryContextReset(callback_context);
}

/*
 * What is left out on purpose: streaming of transactions that are in progress
 * and two-phase decoding, since nobody may see those changes yet (without them
 * a large transaction is spilled to disk, and a prepared one comes when it is
 * committed); the filter by origin, since every origin is wanted and without
 * a callback nothing is filtered.
 */
void
PluginFillCallbacks(OutputPluginCallbacks *cb)
{
	cb->startup_cb = PluginStartup;
	cb->begin_cb = PluginBegin;
	cb->change_cb = PluginChange;
	cb->truncate_cb = PluginTruncate;
	cb->commit_cb = PluginCommit;
	cb->message_cb = PluginMessage;
	cb->shutdown_cb = PluginShutdown;
}

void
_PG_output_plugin_init(OutputPluginCallbacks *cb)
{
	PluginFillCallbacks(cb);
}
