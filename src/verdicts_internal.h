/*-------------------------------------------------------------------------
 *
 * verdicts_internal.h
 *		What verdicts.c and verdicts_accept.c share: questions and batches of them.
 *
 * Process: feed worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_VERDICTS_INTERNAL_H
#define CHANGEFEED_VERDICTS_INTERNAL_H

#include "verdicts.h"

/* What is known of one identity's verdicts on the images. */
typedef struct VerdictSet
{
	struct
	{
		uint64 identity; /* serial */
		uint64 relid;
		const CastList *casts;
	} key;
	uint8 **states;		/* Verdict of each image, in pieces; NULL: all unknown */
	const char **texts; /* of each visible image, what the casts gave */
} VerdictSet;

/* One identity's question about one row. */
typedef struct Question
{
	uint64 number; /* transaction: PaceNumber */
	int image;
	Identity *identity; /* referenced */
	Oid relid;
	uint32 version; /* of the row's description */
	uint64 fingerprint;
	const CastList *casts;
	uint64 map; /* serial number of the map, of which is: */
	VerdictSet *set;
} Question;

/* The answer for one identity. */
typedef struct Part
{
	bool answered;
	bool accepted;
	XLogRecPtr lsn; /* noted after the last snapshot used */
	char *answer;	/* QUERY_VERDICT's body from the status on */
	Size length;
} Part;

typedef struct Batch
{
	MemoryContext context;
	Oid relid;
	int nquestions;
	Question *questions; /* sorted by identity */
	int nidentities;
	int *first;	 /* index of each identity's first question */
	Part *parts; /* of each identity */
	int waiting; /* parts not answered */
	int open;	 /* parts not accepted */
	bool costly;
	TimestampTz submitted;
} Batch;

/* verdicts.c: the verdicts that a question belongs to, if its map is still there. */
extern VerdictSet *VerdictSetOf(const Question *question);

/* verdicts.c: and the one on its image, or NULL. */
extern uint8 *VerdictStateOf(const Question *question);

/* verdicts_accept.c: takes over what can be.  True: the batch is through. */
extern bool VerdictsAccept(Batch *batch);

/* verdicts_accept.c: connections of that identity may be able to move. */
extern void VerdictsWake(Identity *identity);

#endif /* CHANGEFEED_VERDICTS_INTERNAL_H */
