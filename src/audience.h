/*-------------------------------------------------------------------------
 *
 * audience.h
 *		Subscriptions with the same conditions, and which rows concern them.
 *		See audience.c.
 *
 * Process: feed worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_AUDIENCE_H
#define CHANGEFEED_AUDIENCE_H

#include "demand.h"

typedef enum MatchResult
{
	MATCH_NO,
	MATCH_YES,
	MATCH_UNKNOWN, /* a value that the conditions read is not known */
	MATCH_STALE,   /* the conditions do not fit the table of then */
	MATCH_ERROR	   /* the evaluation failed: AudienceError */
} MatchResult;

typedef struct AudienceMatch
{
	MatchResult before;
	MatchResult after;
} AudienceMatch;

extern void AudienceInit(void);

/* The audience with these conditions ("": none), made if it is not there. */
extern Audience *AudienceIntern(Instance *instance, const char *sql);

/* `name` as the client wrote it, or its JSON text. */
extern void AudienceJoin(Subscription *subscription, Audience *audience, const char *name,
						 Size length, bool json);

/* Frees the audience with its last subscription.  True: the instance has none. */
extern bool AudienceLeave(Subscription *subscription);

/*
 * Reads what a query worker found out about the conditions on a source; without
 * an audience it is only read.
 */
extern void AudienceDescribe(Audience *audience, int source, WireReader *r);

/* Constants of conditions on that table may stand for other values now. */
extern void AudiencesForgetCompiled(Oid relid);

/* What rows of the source have that pass; without a column it is not known. */
extern Demand AudienceDemand(const Audience *audience, int source);

/*
 * Do the images pass the conditions?  Only those that are asked for are looked
 * at.  Within a run an entry is matched once.
 */
extern AudienceMatch AudienceMatches(Audience *audience, TransactionMap *map, MapEntry *entry,
									 uint64 run, bool before, bool after);

/* Of the last MATCH_ERROR. */
extern void
AudienceError(Audience *audience, int source, const char **sqlstate, const char **message);

#endif /* CHANGEFEED_AUDIENCE_H */
