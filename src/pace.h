/*-------------------------------------------------------------------------
 *
 * pace.h
 *		What pace.c (who is sent what, and when) and pace_map.c (what a step
 *		does, net) share.
 *
 * Process: feed worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_PACE_H
#define CHANGEFEED_PACE_H

#include "feed.h"

/*
 * A frame folds about so many transactions with changes at most: their maps are
 * needed together.
 */
#define STEP_LIMIT 2000

/* An entry of a transaction's map. */
typedef struct Reference
{
	uint64 number;
	int entry;
} Reference;

typedef struct PaceStep
{
	dlist_node node;
	uint64 number;
	Channel *channel;
	Instance *instance; /* while there are subscriptions */
	bool waits;			/* of those that are not blocked each for a verdict */
	uint64 from;		/* the transactions behind it */
	LogTransaction transaction;
	dlist_head subscriptions; /* Subscription.pace_node */
	uint64 generation;		  /* of the channels, for which references are good */
	int nreferences;
	int maxreferences;
	Reference *references; /* ascending */
	MemoryContext context;
} PaceStep;

/* One more change for the step, unless it is the last one already. */
extern void PaceAddReference(PaceStep *step, uint64 number, int entry);

/* Is the entry's row in the instance, before or after? */
extern bool PaceConcerns(const MapEntry *entry, const Instance *instance);

/* Did the transaction do anything to the channel's tables?  Could all of it be read? */
extern bool PaceTouches(const LogTransaction *transaction, const Channel *channel);
extern bool PaceHasFailed(const TransactionMap *map, const Channel *channel);

/* Finds the step's changes in the log.  False: it does not have them, or not as rows. */
extern bool PaceCollect(PaceStep *step);

#endif /* CHANGEFEED_PACE_H */
