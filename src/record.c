/*-------------------------------------------------------------------------
 *
 * record.c
 *		Writing and reading of change records.
 *
 * Numbers are in host order and unaligned, except that the tuples of a CHANGE
 * begin at multiples of eight: shm_mq hands out messages that begin at a
 * MAXALIGNed address, and so do the records in them, so the tuples can be used
 * where they lie.
 *
 * Process: decoder (writes), feed worker and query workers (read).
 *
 * Memory: writers grow the caller's StringInfo.  Readers allocate nothing but
 * what RecordReadDescription makes, in the context that it is given.  No locks,
 * no catalog access: a record is read with what came with it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "record.h"
#include "wire_write.h"

#include "access/htup_details.h"
#include "wire.h"

/*
 * The StringInfo of a message begins at a palloc'ed, so MAXALIGNed, address.
 * The fixed eight is the contract; on a machine with a smaller MAXALIGN it
 * costs a few bytes.
 */
#define RECORD_ALIGN(n) (((n) + 7) & ~((uint64) 7))

StaticAssertDecl(sizeof(RecordHeader) == 8, "the body of a record is aligned by its header");
StaticAssertDecl(MAXIMUM_ALIGNOF <= 8, "tuples in records are aligned to eight bytes");

/* Zero bytes up to the next multiple of eight. */
static void
PutPadding(StringInfo out)
{
	static const char zeros[8] = {0};

	appendBinaryStringInfo(out, zeros, RECORD_ALIGN(out->len) - out->len);
}

static void
StartRecord(StringInfo out, RecordKind kind)
{
	RecordHeader header = {0};

	header.kind = kind;
	resetStringInfo(out);
	appendBinaryStringInfo(out, (char *) &header, sizeof(header));
}

void
RecordWriteDescription(StringInfo out, uint32 version, Oid relid, char identity, const char *schema,
					   const char *name, TupleDesc tupdesc, const uint8 *flags)
{
	StartRecord(out, RECORD_DESCRIPTION);
	WirePutU32(out, version);
	WirePutU32(out, relid);
	WirePutU8(out, identity);
	WirePutString(out, schema);
	WirePutString(out, name);
	WirePutU16(out, tupdesc->natts);
	for (int i = 0; i < tupdesc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(tupdesc, i);

		WirePutString(out, NameStr(att->attname));
		WirePutU32(out, att->atttypid);
		WirePutU32(out, att->atttypmod);
		WirePutU32(out, att->attcollation);
		WirePutU16(out, att->attlen);
		WirePutU8(out, att->attbyval);
		WirePutU8(out, att->attalign);
		WirePutU8(out, att->attstorage);
		WirePutU8(out, flags[i]);
	}
}

void
RecordFillChangeHead(char *head, uint32 version, char operation, uint8 has_old, HeapTuple old_tuple,
					 HeapTuple new_tuple, TransactionId subxid)
{
	uint32 old_length = old_tuple != NULL ? old_tuple->t_len : 0;
	uint32 new_length = new_tuple != NULL ? new_tuple->t_len : 0;
	RecordHeader header = {0};

	header.kind = RECORD_CHANGE;
	header.subxid = subxid;
	memset(head, 0, RECORD_CHANGE_HEAD);
	memcpy(head, &header, sizeof(header));
	memcpy(head + 8, &version, 4);
	head[12] = operation;
	head[13] = old_tuple != NULL ? has_old : 0;
	head[14] = new_tuple != NULL;
	memcpy(head + 15, &old_length, 4);
	memcpy(head + 19, &new_length, 4);
}

void
RecordWriteChange(StringInfo out, uint32 version, char operation, uint8 has_old,
				  HeapTuple old_tuple, HeapTuple new_tuple)
{
	char head[RECORD_CHANGE_HEAD];

	RecordFillChangeHead(head, version, operation, has_old, old_tuple, new_tuple,
						 InvalidTransactionId);
	resetStringInfo(out);
	appendBinaryStringInfo(out, head, sizeof(head));
	if (old_tuple != NULL)
		appendBinaryStringInfo(out, (char *) old_tuple->t_data, old_tuple->t_len);
	if (new_tuple != NULL)
	{
		PutPadding(out);
		appendBinaryStringInfo(out, (char *) new_tuple->t_data, new_tuple->t_len);
	}
}

void
RecordFillTouch(char *out, Oid relid, bool told)
{
	RecordHeader header = {0};

	header.kind = RECORD_TOUCH;
	memcpy(out, &header, sizeof(header));
	memcpy(out + 8, &relid, 4);
	out[12] = told;
}

void
RecordWriteTruncate(StringInfo out, Oid relid)
{
	StartRecord(out, RECORD_TRUNCATE);
	WirePutU32(out, relid);
}

void
RecordWriteBarrier(StringInfo out, RecordBarrierKind kind, Oid relid, uint64 state)
{
	StartRecord(out, RECORD_BARRIER);
	WirePutU8(out, kind);
	WirePutU32(out, relid);
	WirePutU64(out, state);
}

void
RecordWriteLost(StringInfo out, Oid relid, bool too_large, const char *why)
{
	StartRecord(out, RECORD_LOST);
	WirePutU32(out, relid);
	WirePutU8(out, too_large);
	WirePutString(out, why);
}

void
RecordWriteMessage(StringInfo out, const RecordMessage *message)
{
	StartRecord(out, RECORD_MESSAGE);
	WirePutU32(out, message->counter);
	WirePutBytes(out, message->channel.data, message->channel.length);
	WirePutBytes(out, message->event.data, message->event.length);
	WirePutBytes(out, message->payload.data, message->payload.length);
}

void
RecordFillCommit(char *out, const RecordCommit *commit)
{
	RecordHeader header = {0};
	uint64 body[] = {commit->xid, commit->lsn, commit->end_lsn, (uint64) commit->time};

	header.kind = RECORD_COMMIT;
	memcpy(out, &header, sizeof(header));
	memcpy(out + 8, body, sizeof(body));
	out[40] = commit->immediate;
}

bool
RecordNextOfBatch(const char *batch, Size batch_length, Size *offset, const char **data,
				  Size *length)
{
	Size left = batch_length - *offset;
	uint64 found;

	if (left == 0)
		return false;
	if (left >= RECORD_BATCH_HEAD)
		memcpy(&found, batch + *offset, RECORD_BATCH_HEAD);
	else
		found = 0;
	if (found < sizeof(RecordHeader) || found > left - RECORD_BATCH_HEAD)
		ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
						errmsg_internal("change record of %llu bytes in a batch with %zu left",
										(unsigned long long) found, left)));
	*data = batch + *offset + RECORD_BATCH_HEAD;
	*length = (Size) found;
	*offset += Min(left, RecordBatchSpace(*length));
	return true;
}

/* Positions a reader behind the header of a record of that kind. */
static WireReader
OpenRecord(const char *data, Size length, RecordKind kind)
{
	WireReader in = WireReaderInit(data, length);
	uint8 found = WireGetU8(&in);

	(void) WireTake(&in, sizeof(RecordHeader) - 1);
	if (in.failed || found != kind)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg_internal("unexpected change record: kind %d, %zu bytes, expected kind %d",
								 found, length, kind)));
	return in;
}

static void
CloseRecord(bool complete, RecordKind kind)
{
	if (!complete)
		ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
						errmsg_internal("malformed change record of kind %d", kind)));
}

static char *
CopyBytes(WireBytes bytes, MemoryContext context)
{
	char *copy = MemoryContextAlloc(context, bytes.length + 1);

	if (bytes.length > 0)
		memcpy(copy, bytes.data, bytes.length);
	copy[bytes.length] = '\0';
	return copy;
}

/*
 * The attributes are filled by hand: TupleDescInitEntry would look the types
 * up in the catalog, where they may be gone by now.
 */
RecordDescription *
RecordReadDescription(const char *data, Size length, MemoryContext context)
{
	WireReader in = OpenRecord(data, length, RECORD_DESCRIPTION);
	MemoryContext old_context = MemoryContextSwitchTo(context);
	RecordDescription *desc = palloc0(sizeof(RecordDescription));
	WireBytes schema;
	WireBytes name;
	int natts;

	desc->version = WireGetU32(&in);
	desc->relid = WireGetU32(&in);
	desc->identity = WireGetU8(&in);
	schema = WireGetBytes(&in);
	name = WireGetBytes(&in);
	natts = WireGetU16(&in);
	CloseRecord(!in.failed && natts <= MaxTupleAttributeNumber, RECORD_DESCRIPTION);

	desc->schema = CopyBytes(schema, context);
	desc->name = CopyBytes(name, context);
	desc->tupdesc = CreateTemplateTupleDesc(natts);
	desc->flags = palloc0(Max(natts, 1));
	for (int i = 0; i < natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc->tupdesc, i);
		WireBytes attname = WireGetBytes(&in);

		MemSet(att, 0, ATTRIBUTE_FIXED_PART_SIZE);
		if (attname.length < NAMEDATALEN && attname.length > 0)
			memcpy(NameStr(att->attname), attname.data, attname.length);
		att->attnum = i + 1;
		att->atttypid = WireGetU32(&in);
		att->atttypmod = (int32) WireGetU32(&in);
		att->attcollation = WireGetU32(&in);
		att->attlen = (int16) WireGetU16(&in);
		att->attbyval = WireGetU8(&in) != 0;
		att->attalign = WireGetU8(&in);
		att->attstorage = WireGetU8(&in);
		att->attislocal = true;
		desc->flags[i] = WireGetU8(&in);
		att->attisdropped = (desc->flags[i] & RECORD_ATT_DROPPED) != 0;
		compat_attribute_made(desc->tupdesc, i + 1);
	}
	CloseRecord(WireAtEnd(&in), RECORD_DESCRIPTION);

	desc->bytes = palloc(length);
	memcpy(desc->bytes, data, length);
	desc->length = length;

	MemoryContextSwitchTo(old_context);
	return desc;
}

void
RecordReadChange(const char *data, Size length, RecordChange *change)
{
	WireReader in = OpenRecord(data, length, RECORD_CHANGE);

	memset(change, 0, sizeof(*change));
	memcpy(&change->subxid, data + offsetof(RecordHeader, subxid), sizeof(uint32));
	change->version = WireGetU32(&in);
	change->operation = WireGetU8(&in);
	change->has_old = WireGetU8(&in);
	change->has_new = WireGetU8(&in) != 0;
	change->old_length = WireGetU32(&in);
	change->new_length = WireGetU32(&in);
	(void) WireTake(&in, RECORD_CHANGE_HEAD - in.offset);
	if (change->has_old)
		change->old_data = WireTake(&in, change->old_length);
	if (change->has_new)
	{
		(void) WireTake(&in, RECORD_ALIGN(in.offset) - in.offset);
		change->new_data = WireTake(&in, change->new_length);
	}
	CloseRecord(WireAtEnd(&in), RECORD_CHANGE);
}

void
RecordReadTouch(const char *data, Size length, Oid *relid, bool *told)
{
	WireReader in = OpenRecord(data, length, RECORD_TOUCH);

	*relid = WireGetU32(&in);
	*told = WireGetU8(&in) != 0;
	CloseRecord(WireAtEnd(&in), RECORD_TOUCH);
}

Oid
RecordReadTruncate(const char *data, Size length)
{
	WireReader in = OpenRecord(data, length, RECORD_TRUNCATE);
	Oid relid = WireGetU32(&in);

	CloseRecord(WireAtEnd(&in), RECORD_TRUNCATE);
	return relid;
}

Oid
RecordReadLost(const char *data, Size length, bool *too_large)
{
	WireReader in = OpenRecord(data, length, RECORD_LOST);
	Oid relid = WireGetU32(&in);

	*too_large = WireGetU8(&in) != 0;
	(void) WireGetBytes(&in);
	CloseRecord(WireAtEnd(&in), RECORD_LOST);
	return relid;
}

void
RecordReadBarrier(const char *data, Size length, RecordBarrierKind *kind, Oid *relid, uint64 *state)
{
	WireReader in = OpenRecord(data, length, RECORD_BARRIER);

	*kind = WireGetU8(&in);
	*relid = WireGetU32(&in);
	*state = WireGetU64(&in);
	CloseRecord(WireAtEnd(&in), RECORD_BARRIER);
}

void
RecordReadMessage(const char *data, Size length, RecordMessage *message)
{
	WireReader in = OpenRecord(data, length, RECORD_MESSAGE);

	message->counter = WireGetU32(&in);
	message->channel = WireGetBytes(&in);
	message->event = WireGetBytes(&in);
	message->payload = WireGetBytes(&in);
	CloseRecord(WireAtEnd(&in), RECORD_MESSAGE);
}

void
RecordReadCommit(const char *data, Size length, RecordCommit *commit)
{
	WireReader in = OpenRecord(data, length, RECORD_COMMIT);

	commit->xid = WireGetU64(&in);
	commit->lsn = WireGetU64(&in);
	commit->end_lsn = WireGetU64(&in);
	commit->time = (TimestampTz) WireGetU64(&in);
	commit->immediate = WireGetU8(&in) != 0;
	CloseRecord(WireAtEnd(&in), RECORD_COMMIT);
}

void
RecordForgetRowType(char *data)
{
	memset(&((HeapTupleHeader) data)->t_choice, 0, sizeof(((HeapTupleHeader) data)->t_choice));
}

void
RecordDeform(const RecordDescription *desc, const char *data, uint32 length, Datum *values,
			 bool *isnull)
{
	HeapTupleData tuple;

	Assert(PointerIsAligned(data, uint64));
	CloseRecord(length >= SizeofHeapTupleHeader && ((HeapTupleHeader) data)->t_hoff <= length,
				RECORD_CHANGE);

	tuple.t_len = length;
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = desc->relid;
	tuple.t_data = (HeapTupleHeader) unconstify(char *, data);
	heap_deform_tuple(&tuple, desc->tupdesc, values, isnull);
}

bool
RecordValueIsUnchanged(const RecordDescription *desc, int attno, Datum value)
{
	Form_pg_attribute att = TupleDescAttr(desc->tupdesc, attno - 1);

	return att->attlen == -1 && !att->attisdropped &&
		   VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(value));
}
