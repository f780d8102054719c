/*-------------------------------------------------------------------------
 *
 * receivers.h
 *		Ready subscriptions that get the same bytes.  See receivers.c.
 *
 * Process: feed worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_RECEIVERS_H
#define CHANGEFEED_RECEIVERS_H

#include "demand.h"

struct PolicyRule;

/* What they may see of a source. */
typedef struct ReceiversSource
{
	View *view;				 /* as that of each of them; its rule is here: */
	struct PolicyRule *rule; /* NULL: there is none */
	bool judged;			 /* query workers say what is visible, or how it is written */
	DemandMember member;
} ReceiversSource;

/* Those that are live, by gateway. */
typedef struct ReceiversPart
{
	int n;
	int room;
	Subscription **subscriptions;
	uint32 *numbers; /* of their connections, in the same order */
} ReceiversPart;

typedef struct Receivers
{
	uint64 hash;
	struct Receivers *next; /* with the same hash */
	Audience *audience;
	Spelling *name;
	Identity *identity; /* query workers judge rows for it; NULL: nobody has to */
	bool replaces;		/* whole rows whatever the action says */
	int nsubscriptions; /* live or not */
	int nlive;
	uint64 linked; /* scratch of ReceiversDemandsChanged */
	uint64 out;	   /* scratch of delivery: the last run of which they get nothing */
	ReceiversSource *sources;
	ReceiversPart parts[FLEXIBLE_ARRAY_MEMBER];
} Receivers;

/* It is ready, or has other views: it belongs to those that get the same. */
extern void ReceiversJoin(Subscription *subscription);

/* It is not ready any more, or is about to get other views. */
extern void ReceiversLeave(Subscription *subscription);

/* The connection takes part in what is published now, or does not. */
extern void ReceiversEnter(Connection *connection);
extern void ReceiversExit(Connection *connection);

/* The conditions of the audience on a source were described anew. */
extern void ReceiversDemandsChanged(Audience *audience, int source);

#endif /* CHANGEFEED_RECEIVERS_H */
