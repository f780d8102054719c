/*-------------------------------------------------------------------------
 *
 * record.h
 *		Change records: what the decoder tells the feed worker.
 *
 * A record is a RecordHeader, then the body of its kind, written with
 * StringInfo in host order and read with wire.h.  A shm_mq message is a batch of
 * records: each behind eight bytes that tell its length, and padded to a
 * multiple of eight (the last one need not be).  All records of
 * a transaction are contiguous, in the order of execution, and end with its
 * COMMIT; transactions come in the order of their commit records.  A reader
 * that finds the queue detached discards the records behind the last COMMIT.
 *
 * Rows travel as heap tuples (the bytes of a HeapTupleHeader) of the row type
 * that the DESCRIPTION names; every value that is in the WAL is inline and
 * fetched, an unchanged TOAST value is left as an on-disk TOAST pointer, which
 * nobody may dereference: RecordValueIsUnchanged tells.  Tuples written before
 * a column was added are already expanded with its missing value.
 *
 * A table that is fed through a partitioned ancestor is described as, and its
 * rows are converted to, that ancestor.
 *
 * Process: decoder (writes), feed worker (reads and keeps in the log), query
 * workers (read rows that the feed worker passes on).
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_RECORD_H
#define CHANGEFEED_RECORD_H

#include "pg_changefeed.h"

#include "access/htup.h"
#include "access/tupdesc.h"
#include "access/xlogdefs.h"
#include "datatype/timestamp.h"
#include "lib/stringinfo.h"
#include "wire.h"

typedef enum RecordKind
{
	/*
	 * The row type of a source, sent before its first use and after each
	 * change.  u32 version (never reused within a generation), u32 relid, u8
	 * replica identity ('d' 'n' 'f' 'i'), bytes schema, bytes name, u16
	 * natts, then per attribute: bytes name, u32 type, u32 typmod, u32
	 * collation, u16 attlen, u8 byval, u8 align, u8 storage, u8 flags
	 * (RECORD_ATT_*)
	 */
	RECORD_DESCRIPTION = 'D',

	/*
	 * u32 version, u8 operation ('I' 'U' 'D'), u8 has old (0: none, 1: whole
	 * row, 2: only the columns of the replica identity, others null), u8 has
	 * new, u32 old length, u32 new length, then padding up to the next
	 * multiple of 8 from the start of the record, the old tuple, padding to
	 * 8, the new tuple.
	 */
	RECORD_CHANGE = 'C',

	/*
	 * A table was changed: once per transaction and table; its partitioned
	 * ancestors likewise.  u32 relid, u8 told: all that was done to it comes as
	 * CHANGE records.  Sent once more when it turns out that not all will be.
	 */
	RECORD_TOUCH = 'T',

	/* A source (or an ancestor that is one) was truncated.  u32 relid */
	RECORD_TRUNCATE = 'X',

	/*
	 * The transaction changed something that plans, policies, privileges or
	 * row types depend on.  u8 RecordBarrierKind, u32 relid (0: none or all),
	 * u64 state: of BARRIER_RELATION and BARRIER_SAME that of the relation at this
	 * place in WAL (RelationRights; 0: not known); of BARRIER_CATALOG without relid the
	 * channel that was changed (0: all may have been), or BARRIER_NO_CHANNEL;
	 * of BARRIER_SCHEMA the hash of the schema's OID
	 */
	RECORD_BARRIER = 'B',

	/*
	 * A change of this source could not be copied (error while doing so), or
	 * the transaction has become larger than is sent: the source has to be
	 * resnapshotted, in the second case like all others that the transaction
	 * has changed.  u32 relid (0: all), u8 too large, bytes why
	 */
	RECORD_LOST = 'L',

	/*
	 * A message of changefeed.publish.  u32 counter within the transaction,
	 * bytes channel, bytes event, bytes payload (JSON)
	 */
	RECORD_MESSAGE = 'M',

	/*
	 * u64 full xid, u64 LSN of the start of the commit record, u64 LSN of its
	 * end, u64 commit time (TimestampTz), u8 immediate: a message that does
	 * not wait for its transaction, which may still be running; the LSNs and
	 * the time are then the message's
	 */
	RECORD_COMMIT = 'E'
} RecordKind;

typedef enum RecordBarrierKind
{
	BARRIER_RELATION = 1,  /* relcache invalidation of relid */
	BARRIER_CATALOG = 2,   /* the channel catalog was changed, or (with its
						   * relid) only the table of revocations */
	BARRIER_ROLES = 3,	   /* roles or memberships */
	BARRIER_ALL = 4,	   /* too much to tell */
	BARRIER_TYPES = 5,	   /* labels of enums, casts */
	BARRIER_FUNCTIONS = 6, /* functions, operators */
	BARRIER_SCHEMA = 7,	   /* a schema */
	BARRIER_SAME = 8	   /* relcache invalidation of relid, which is as it was */
} RecordBarrierKind;

/* No channel has this number. */
#define BARRIER_NO_CHANNEL PG_UINT64_MAX

#define RECORD_ATT_DROPPED	 1
#define RECORD_ATT_GENERATED 2 /* stored */
#define RECORD_ATT_VIRTUAL	 4 /* virtual generated column (18) */
#define RECORD_ATT_IDENTITY	 8 /* in the replica identity index */

typedef struct RecordHeader
{
	uint8 kind;		 /* RecordKind */
	uint8 unused[3]; /* keeps the body aligned */

	/* Of a CHANGE: the subtransaction that made it, 0 for the transaction. */
	uint32 subxid;
} RecordHeader;

/* A description, as the receiver keeps it. */
typedef struct RecordDescription
{
	uint32 version;
	Oid relid;
	char identity;
	char *schema;
	char *name;
	TupleDesc tupdesc; /* with the attributes' names and types; no
								 * constraints, no defaults; reltype RECORD,
								 * blessed is not needed */
	uint8 *flags;	   /* RECORD_ATT_* per attribute */
	char *bytes;	   /* the message itself, to be passed on */
	Size length;
} RecordDescription;

typedef struct RecordChange
{
	uint32 version;
	char operation;
	uint8 has_old;
	bool has_new;
	const char *old_data; /* HeapTupleHeader bytes within the message */
	uint32 old_length;
	const char *new_data;
	uint32 new_length;
	TransactionId subxid; /* the rows' xmin, if it is not the transaction's xid */
} RecordChange;

typedef struct RecordCommit
{
	uint64 xid;		/* FullTransactionId */
	XLogRecPtr lsn; /* start of the commit record: names it */
	XLogRecPtr end_lsn;
	TimestampTz time;
	bool immediate;
} RecordCommit;

typedef struct RecordMessage
{
	uint32 counter;
	WireBytes channel;
	WireBytes event;
	WireBytes payload;
} RecordMessage;

/* Writing (decoder): each fills `out`, which is reset first. */
extern void
RecordWriteDescription(StringInfo out, uint32 version, Oid relid, char identity, const char *schema,
					   const char *name, TupleDesc tupdesc, const uint8 *flags);
extern void RecordWriteChange(StringInfo out, uint32 version, char operation, uint8 has_old,
							  HeapTuple old_tuple, HeapTuple new_tuple);
extern void RecordWriteTruncate(StringInfo out, Oid relid);
extern void RecordWriteBarrier(StringInfo out, RecordBarrierKind kind, Oid relid, uint64 state);
extern void RecordWriteLost(StringInfo out, Oid relid, bool too_large, const char *why);
extern void RecordWriteMessage(StringInfo out, const RecordMessage *message);

/*
 * What precedes the tuples of a CHANGE, its padding included, for a sender
 * that gathers the tuples itself.
 */
#define RECORD_CHANGE_HEAD 24
extern void RecordFillChangeHead(char *head, uint32 version, char operation, uint8 has_old,
								 HeapTuple old_tuple, HeapTuple new_tuple, TransactionId subxid);

/* These are written for each transaction, and have one size. */
#define RECORD_TOUCH_SIZE  13
#define RECORD_COMMIT_SIZE 41
extern void RecordFillTouch(char *out, Oid relid, bool told);
extern void RecordFillCommit(char *out, const RecordCommit *commit);

/* A record within a batch: what precedes it, and the room that it takes. */
#define RECORD_BATCH_HEAD		 8
#define RecordBatchSpace(length) (RECORD_BATCH_HEAD + TYPEALIGN(8, length))

static inline void
RecordFillBatchHead(char *head, uint64 length)
{
	memcpy(head, &length, RECORD_BATCH_HEAD);
}

/*
 * Takes the next record of a batch; `offset` begins at 0.  False: that was the
 * last one.  The record is MAXALIGNed if the batch is.
 */
extern bool RecordNextOfBatch(const char *batch, Size batch_length, Size *offset, const char **data,
							  Size *length);

/*
 * Reading.  `data` is a whole record; a malformed one raises an error
 * (ERRCODE_DATA_CORRUPTED), since both sides are ours.
 */
extern RecordDescription *
RecordReadDescription(const char *data, Size length, MemoryContext context);
extern void RecordReadChange(const char *data, Size length, RecordChange *change);
extern void RecordReadTouch(const char *data, Size length, Oid *relid, bool *told);
extern Oid RecordReadTruncate(const char *data, Size length);
extern Oid RecordReadLost(const char *data, Size length, bool *too_large);
extern void RecordReadBarrier(const char *data, Size length, RecordBarrierKind *kind, Oid *relid,
							  uint64 *state);
extern void RecordReadMessage(const char *data, Size length, RecordMessage *message);
extern void RecordReadCommit(const char *data, Size length, RecordCommit *commit);

/*
 * Makes tuple bytes such as the WAL has.  Those that were put together (with a
 * large value, for an ancestor, from text) name the table's row type, which
 * the server compares with the catalogs of now when it deforms them.
 */
extern void RecordForgetRowType(char *data);

/*
 * Deforms tuple bytes of a record into values and isnull (tupdesc->natts
 * each).  The values point into the bytes, which must stay and be
 * MAXALIGNed.
 */
extern void RecordDeform(const RecordDescription *desc, const char *data, uint32 length,
						 Datum *values, bool *isnull);

/* A non-null value that the change did not carry (unchanged TOAST). */
extern bool RecordValueIsUnchanged(const RecordDescription *desc, int attno, Datum value);

#endif /* CHANGEFEED_RECORD_H */
