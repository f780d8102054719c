/*-------------------------------------------------------------------------
 *
 * query_batch.h
 *		A job of verdicts, for those who judge its identities one by one
 *		(query_verdicts.c) and many at once (query_batch.c).
 *
 * Process: query worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_QUERY_BATCH_H
#define CHANGEFEED_QUERY_BATCH_H

#include "query_internal.h"

#include "record.h"

/*
 * Answers wait for each other that long, or for that many bytes: one message
 * for several wakes the feed worker less often.
 */
#define VERDICT_BATCH_US	2000
#define VERDICT_BATCH_BYTES (64 * 1024)

/* Meanwhile the identity at hand has only that long. */
#define VERDICT_TRIAL_MS 10

/* The rows of a job, and the identities that ask about them. */
typedef struct VerdictRow
{
	char *data;
	uint32 length;
	bool identity_only; /* other columns are missing, not null */
} VerdictRow;

typedef struct VerdictIdentity
{
	Oid role;
	char *claims;
	uint64 fingerprint;
	int ncasts;
	int16 *casts; /* columns whose JSON is asked for */
	uint32 nrows;
	uint32 *rows;
} VerdictIdentity;

typedef struct VerdictJob
{
	Oid relid;
	RecordDescription *desc;
	uint32 nrows;
	VerdictRow *rows;
	uint32 nidentities;
	VerdictIdentity *identities;
	XLogRecPtr lsn; /* noted after the last snapshot of the identity at hand */
	int refused;	/* how often several could not be judged at once */
} VerdictJob;

/* ---- query_verdicts.c ---- */

/* Begins the transaction of verdicts; NULL: the table is gone. */
extern Relation VerdictsBegin(const VerdictJob *job);

/*
 * Can rows of the description be given to the table as it is now?  Columns
 * added since have their missing value, dropped ones are not asked for.
 */
extern bool VerdictDescriptionFits(const RecordDescription *desc, TupleDesc now);

/* The row as parameters of the policy; an error if it does not carry one that is needed. */
extern void VerdictRowToParams(const VerdictJob *job, const VerdictRow *row, const Policy *policy,
							   Bitmapset *needed, Relation rel, ParamListInfo params);

/* Runs the policy's plan, begun for each row. */
extern void VerdictJudgeRows(const VerdictJob *job, const VerdictIdentity *identity,
							 const Policy *policy, Relation rel, uint8 *bitmap);

/* Behind the rows of an identity, before its answer is appended. */
extern void VerdictNotePosition(VerdictJob *job, const Policy *policy);

/* The answer of who was judged. */
extern void VerdictPut(StringInfo out, const VerdictIdentity *identity, const Policy *policy,
					   const uint8 *bitmap);

/* Appends an answer to a message. */
extern void VerdictAppend(StringInfo message, uint32 index, TimestampTz since, XLogRecPtr lsn,
						  const StringInfoData *answer);

/* ---- query_batch.c ---- */

/*
 * Judges the identity and others behind it, as many as can be at once, and
 * appends their answers to the message.  Returns the next one; `alone`: which
 * has to be judged alone.
 */
extern uint32 VerdictsBatch(VerdictJob *job, uint32 index, StringInfo message, bool *alone);

#endif /* CHANGEFEED_QUERY_BATCH_H */
