/*-------------------------------------------------------------------------
 *
 * decoder_compare.c
 *		Test module: the change records that a decoder makes of the WAL, as
 *		text, so that those of two decoders can be compared.
 *
 * It links the output plugin's own object files, and stands in for the decoder
 * process and its queue.  It is an output plugin by itself, the native one,
 * since the extension's refuses to work outside of its decoder.
 *
 * A session can decode only once: what the plugin knows of tables belongs to
 * the place in WAL where it has stopped.
 *
 * Process: a backend of the test.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "decoder.h"
#include "record.h"
#include "shared.h"
#include "wal2json.h"

#include "access/xlogutils.h"
#include "common/md5.h"
#include "fmgr.h"
#include "funcapi.h"
#include "replication/decode.h"
#include "replication/logical.h"
#include "replication/slot.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

PG_MODULE_MAGIC;

/* Values (bytes) beyond this are shown by their hash. */
#define LONG_VALUE 64

/* What the process would have. */
DatabaseFeed *decoder_feed;
char *decoder_database = "compared";
MemoryContext decoder_context;
SharedFeeds *shared_feeds;
int setting_decoder = DECODER_WAL2JSON;
int setting_max_transaction = 1024 * 1024;

static ReturnSetInfo *result;
static List *descriptions; /* of RecordDescription */

extern PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	decoder_feed = MemoryContextAllocZero(TopMemoryContext, sizeof(DatabaseFeed));
	decoder_context = TopMemoryContext;
}

DatabaseFeed *
SharedFeedOfMyDatabase(void)
{
	return NULL;
}

/* ---- Records as text ---- */

static void
ShowBytes(StringInfo line, const char *data, Size length)
{
	if (length > LONG_VALUE)
	{
		char hash[33];
		const char *error = NULL;

		if (!pg_md5_hash(data, length, hash, &error))
			elog(ERROR, "could not hash: %s", error);
		appendStringInfo(line, "%zu bytes %s", length, hash);
		return;
	}
	appendStringInfoString(line, "x");
	for (Size i = 0; i < length; i++)
		appendStringInfo(line, "%02x", (unsigned char) data[i]);
}

static void
ShowValue(StringInfo line, const RecordDescription *desc, int attno, Datum value)
{
	Form_pg_attribute att = TupleDescAttr(desc->tupdesc, attno - 1);

	if (RecordValueIsUnchanged(desc, attno, value))
	{
		appendStringInfoString(line, "unchanged ");
		ShowBytes(line, DatumGetPointer(value), VARSIZE_EXTERNAL(DatumGetPointer(value)));
	}
	else if (att->attbyval)
		appendStringInfo(line, "%lld", (long long) value);
	else if (att->attlen == -1)
	{
		struct varlena *plain = PG_DETOAST_DATUM(value);

		ShowBytes(line, VARDATA(plain), VARSIZE(plain) - VARHDRSZ);
	}
	else if (att->attlen == -2)
		ShowBytes(line, DatumGetPointer(value), strlen(DatumGetPointer(value)));
	else
		ShowBytes(line, DatumGetPointer(value), att->attlen);
}

static void
ShowRow(StringInfo line, const RecordDescription *desc, const char *what, const char *data,
		uint32 length)
{
	int natts = desc->tupdesc->natts;
	Datum *values = palloc(Max(natts, 1) * sizeof(Datum));
	bool *isnull = palloc(Max(natts, 1) * sizeof(bool));

	RecordDeform(desc, data, length, values, isnull);
	appendStringInfo(line, " %s:", what);
	for (int i = 0; i < natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc->tupdesc, i);

		/* Nobody looks at what it still holds. */
		if (att->attisdropped)
			continue;
		appendStringInfo(line, " %s=", NameStr(att->attname));
		if (isnull[i])
			appendStringInfoString(line, "null");
		else
			ShowValue(line, desc, i + 1, values[i]);
	}
}

static RecordDescription *
FindDescription(uint32 version)
{
	ListCell *lc;

	foreach(lc, descriptions)
		if (((RecordDescription *) lfirst(lc))->version == version)
			return lfirst(lc);
	elog(ERROR, "no description has version %u", version);
	return NULL;
}

static void
ShowDescription(StringInfo line, const char *data, Size length)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	RecordDescription *desc = RecordReadDescription(data, length, TopMemoryContext);

	descriptions = lcons(desc, descriptions);
	MemoryContextSwitchTo(old);

	appendStringInfo(line, "description %u %u %c %s.%s", desc->version, desc->relid, desc->identity,
					 desc->schema, desc->name);
	for (int i = 0; i < desc->tupdesc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc->tupdesc, i);

		appendStringInfo(line, " %s(%u,%d,%u,%d,%c,%d)", NameStr(att->attname), att->atttypid,
						 att->atttypmod, att->attcollation, att->attlen, att->attstorage,
						 desc->flags[i]);
	}
}

static void
ShowChange(StringInfo line, const char *data, Size length)
{
	RecordChange change;
	RecordDescription *desc;

	RecordReadChange(data, length, &change);
	desc = FindDescription(change.version);
	appendStringInfo(line, "change %c %s (%u) %d", change.operation, desc->name, change.version,
					 change.has_old);
	if (change.has_old)
		ShowRow(line, desc, "old", change.old_data, change.old_length);
	if (change.has_new)
		ShowRow(line, desc, "new", change.new_data, change.new_length);
}

static void
ShowRecord(const char *data, Size length)
{
	StringInfoData line;
	RecordCommit commit;
	RecordBarrierKind kind;
	Oid relid;
	uint64 state;
	bool told;
	Datum value;
	bool isnull = false;

	initStringInfo(&line);
	switch (((const RecordHeader *) data)->kind)
	{
		case RECORD_DESCRIPTION:
			ShowDescription(&line, data, length);
			break;
		case RECORD_CHANGE:
			ShowChange(&line, data, length);
			break;
		case RECORD_TOUCH:
			RecordReadTouch(data, length, &relid, &told);
			appendStringInfo(&line, "touch %u %d", relid, told);
			break;
		case RECORD_TRUNCATE:
			appendStringInfo(&line, "truncate %u", RecordReadTruncate(data, length));
			break;
		case RECORD_LOST:
			appendStringInfo(&line, "lost %u %.*s", RecordReadLost(data, length, &told),
							 (int) (length - sizeof(RecordHeader) - 9),
							 data + sizeof(RecordHeader) + 9);
			break;
		case RECORD_BARRIER:
			RecordReadBarrier(data, length, &kind, &relid, &state);
			appendStringInfo(&line, "barrier %d %u %llx", kind, relid, (unsigned long long) state);
			break;
		case RECORD_COMMIT:
			RecordReadCommit(data, length, &commit);
			appendStringInfo(&line, "commit %llu %X/%X %X/%X %lld", (unsigned long long) commit.xid,
							 LSN_FORMAT_ARGS(commit.lsn), LSN_FORMAT_ARGS(commit.end_lsn),
							 (long long) commit.time);
			break;
		default:
			elog(ERROR, "record of unknown kind %d", ((const RecordHeader *) data)->kind);
	}
	value = CStringGetTextDatum(line.data);
	tuplestore_putvalues(result->setResult, result->setDesc, &value, &isnull);
}

/* ---- The queue ---- */

void
DecoderSend(shm_mq_iovec *iov, int iovcnt)
{
	StringInfoData record;

	/* As in the queue, a message begins at a multiple of 8. */
	initStringInfo(&record);
	for (int i = 0; i < iovcnt; i++)
		appendBinaryStringInfo(&record, iov[i].data, iov[i].len);
	ShowRecord(record.data, record.len);
	pfree(record.data);
}

void
DecoderFlush(void)
{
}

/* ---- Decoding ---- */

PG_FUNCTION_INFO_V1(decode_records);

/*
 * decode_records(slot name) returns setof text: all that is committed now.  By
 * the slot's plugin, wal2json or this module.
 */
Datum
decode_records(PG_FUNCTION_ARGS)
{
	XLogRecPtr end = GetFlushRecPtr(NULL);
	LogicalDecodingContext *ctx;
	ResourceOwner owner = CurrentResourceOwner;
	bool wal2json;

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	result = (ReturnSetInfo *) fcinfo->resultinfo;

	compat_slot_acquire(NameStr(*PG_GETARG_NAME(0)));
	wal2json = strcmp(NameStr(MyReplicationSlot->data.plugin), WAL2JSON_PLUGIN) == 0;
	if (wal2json)
		Wal2jsonPrepare();
	ctx = CreateDecodingContext(InvalidXLogRecPtr, wal2json ? Wal2jsonOptions() : NIL, false,
								XL_ROUTINE(.page_read = read_local_xlog_page,
										   .segment_open = wal_segment_open,
										   .segment_close = wal_segment_close),
								NULL, NULL, NULL);
	if (wal2json)
		Wal2jsonAttach(ctx);
	XLogBeginRead(ctx->reader, MyReplicationSlot->data.restart_lsn);
	InvalidateSystemCaches();

	while (ctx->reader->EndRecPtr < end)
	{
		char *message = NULL;

		if (XLogReadRecord(ctx->reader, &message) == NULL)
			elog(ERROR, "could not read WAL: %s", message ? message : "end");
		LogicalDecodingProcessRecord(ctx, ctx->reader);
		CHECK_FOR_INTERRUPTS();
	}

	CurrentResourceOwner = owner;
	FreeDecodingContext(ctx);
	ReplicationSlotRelease();
	InvalidateSystemCaches();
	return (Datum) 0;
}
