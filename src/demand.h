/*-------------------------------------------------------------------------
 *
 * demand.h
 *		Who may be concerned by a row, by values that its columns have to have.
 *		See demand.c.
 *
 * Process: feed worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_DEMAND_H
#define CHANGEFEED_DEMAND_H

#include "feed.h"

/* A column of which somebody of the instance demands values. */
typedef struct DemandColumn DemandColumn;

/* The column has to have a value with one of these hashes. */
typedef struct Demand
{
	DemandColumn *column;
	int nhashes;
	const uint32 *hashes;
} Demand;

struct DemandIndex;
struct DemandMember;

/* A place in a list of members. */
typedef struct DemandPlace
{
	dlist_node node;
	struct DemandMember *member;
	struct DemandIndex *index; /* NULL: among those that are always tried */
	uint32 hash;			   /* in the index; or the number among those */
} DemandPlace;

/* Somebody who is found; part of the caller's object. */
typedef struct DemandMember
{
	void *owner;
	uint64 visited;
	int nplaces;
	int room;
	DemandPlace *places;
} DemandMember;

/* The column of the instance's source, referenced once more. */
extern DemandColumn *DemandColumnIntern(Instance *instance, int source, int16 attno,
										Oid column_type, Oid type, Oid collation);
extern int16 DemandColumnNumber(const DemandColumn *column);
extern bool
DemandColumnIs(const DemandColumn *column, int16 attno, Oid column_type, Oid type, Oid collation);
extern void DemandColumnRelease(Instance *instance, int source, DemandColumn *column);

/*
 * False: the image cannot meet the demand.  Within a run the value of an entry
 * is hashed once.
 */
extern bool
DemandMayMeet(const Demand *demand, TransactionMap *map, MapEntry *entry, uint64 run, bool is_new);

/*
 * The member is found by rows that may meet both demands; without a column a
 * demand is met by all.  May be called again, for others: then it is found by
 * rows that may meet either pair.
 */
extern void DemandEnter(Instance *instance, int source, DemandMember *member, const Demand *first,
						const Demand *second);
extern void DemandLeave(Instance *instance, int source, DemandMember *member);

/*
 * The owners of those that the entry may concern, each once.  The array is good
 * until the next call.
 */
extern void **DemandCandidates(Instance *instance, TransactionMap *map, MapEntry *entry, uint64 run,
							   bool before, bool after, int *n);

/* With its last audience. */
extern void DemandFree(Instance *instance);

#endif /* CHANGEFEED_DEMAND_H */
