/*-------------------------------------------------------------------------
 *
 * log.h
 *		The log: decoded transactions in commit order, and the cursors' ground.
 *
 * The feed worker takes records from the decoder's queue and appends whole
 * transactions.  Each gets a number; numbers are contiguous.  A transaction is
 * *published* when other sessions can see it (visibility gate), in order.
 * Subscriptions are cursors: numbers of the last transaction that a client
 * has.  What is dropped at the old end (size, age, WAL held) can no longer be
 * resumed from; the last dropped one is kept by name as the log's base.
 *
 * Process: feed worker.  Memory: one chunk per transaction in the log's
 * context, plus what deliver.c hangs on it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_LOG_H
#define CHANGEFEED_LOG_H

#include "pg_changefeed.h"
#include "position.h"
#include "record.h"
#include "shared.h"

/* A change of one row, as decoded; the bytes are in the transaction's chunk. */
typedef struct LogChange
{
	const RecordDescription *desc;
	char operation;
	uint8 has_old; /* as in record.h */
	bool has_new;
	const char *old_data;
	const char *new_data;
	uint32 old_length;
	uint32 new_length;
	uint64 xid; /* of the transaction or subtransaction: the new row's xmin */
} LogChange;

typedef struct LogBarrier
{
	RecordBarrierKind kind;
	Oid relid;
	uint64 state; /* see record.h */
} LogBarrier;

/* A message of changefeed.publish; texts end with a zero. */
typedef struct LogMessage
{
	uint32 counter;
	const char *channel;
	const char *event;
	const char *payload;
	uint32 payload_length;
} LogMessage;

typedef struct LogTransaction
{
	uint64 number;
	RecordCommit commit;
	TimestampTz received;
	Size size;	 /* bytes accounted */
	char *chunk; /* holds all the arrays below and the rows */
	int nchanges;
	LogChange *changes;
	int ntouched;
	Oid *touched; /* every user table that was changed */
	int nuntold;
	Oid *untold; /* those of which not all changes are here */
	int nlost;
	Oid *lost; /* sources whose changes are not here: they were
								 * truncated, could not be copied, or were too
								 * many; InvalidOid: all */
	const char *lost_reason;
	int nbarriers;
	LogBarrier *barriers;
	int nmessages;
	LogMessage *messages;
	struct TransactionMap *map; /* map.c's, or NULL */
	struct PaceStep *step;		/* it is none of the log's: pace.c */
} LogTransaction;

/* What the feed worker does with a transaction; see LogPublish. */
typedef void (*LogPublishCallback)(LogTransaction *transaction);

extern void LogInit(DatabaseFeed *feed);

/*
 * Takes records from the queue, at most about `budget` bytes.  Returns false
 * when the queue was found empty, or the decoder has no slot yet.  Ends the
 * process when the decoder is gone.
 */
extern bool LogReceive(Size budget);

/* Descriptions, the log's and those of the open transaction. */
extern const RecordDescription *LogDescription(uint32 version);

/*
 * Calls `publish` for each transaction that others can see by now, in order,
 * at most `limit`.  Returns -1, or when the next one is there but still in
 * progress, or has changed our own tables and they cannot be read, after how
 * many ms to try again if no commit wakes us before.
 */
extern long LogPublish(LogPublishCallback publish, int limit);

extern bool LogHasUnpublished(void);

/* Numbers: base < first kept; published <= last. */
extern uint64 LogBase(void);
extern uint64 LogPublished(void);
extern uint64 LogLast(void);

/* NULL when it is not kept (any more). */
extern LogTransaction *LogGet(uint64 number);

/*
 * The first 32 characters of the position behind transaction `number`, which
 * is the base or one that is kept: of older ones the name is not known.
 */
extern void LogPosition(uint64 number, char *out);

/* Was the position given out under another epoch than ours? */
extern bool LogIsForeign(const Position *position);

/* False: everything that a position of ours can name has been published. */
extern bool LogHasToReach(const Position *position);

/*
 * The number of the transaction that a position names.  False when it is not
 * in the log; `reason` then says why, in the protocol's words.  Only good when
 * LogHasToReach is false.
 */
extern bool LogFind(const Position *position, uint64 *number, const char **reason);

/* A recent xid with its epoch. */
extern uint64 LogFullXid(TransactionId xid);

/* The last transaction whose commit record starts before `lsn`. */
extern uint64 LogNumberAt(XLogRecPtr lsn);

/*
 * Everything that was committed at or before `lsn` has been decoded, received
 * and published.  When not, the decoder is asked to flush and to wake us.
 */
extern bool LogReached(XLogRecPtr lsn);

/* As LogReached, but for being received only. */
extern bool LogReceivedUpTo(XLogRecPtr lsn);

/* Sets what the decoder shall tell us; call once per turn before sleeping. */
extern void LogArm(void);

/* The last commit that changed that table, published or not (0: none known). */
extern XLogRecPtr LogLastTouch(Oid relid);

/*
 * Drops what is too old or too much; tells the decoder what to keep.  Returns
 * milliseconds until the next transaction may become too old, or -1.
 */
extern long LogTrim(void);

extern Size LogBytes(void);

/* Accounts memory that hangs on a transaction (its map). */
extern void LogAccount(LogTransaction *transaction, Size bytes);

#endif /* CHANGEFEED_LOG_H */
