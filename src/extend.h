/*-------------------------------------------------------------------------
 *
 * extend.h
 *		New columns for subscriptions that go on: check.c finds out that there
 *		are some, extend.c makes operations of them.
 *
 * Process: feed worker.  Memory: a Check has a context of its own; an
 * Extension has another one and lives until its transaction was delivered.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_EXTEND_H
#define CHANGEFEED_EXTEND_H

#include "deliver.h"
#include "feed.h"
#include "subscribe.h"

typedef struct Extension Extension;

/* A key as the JSON that operations have. */
typedef struct KeyText
{
	char *json;
	int length;
} KeyText;

/* The question about subscriptions of one identity to one instance. */
typedef struct Check
{
	dlist_node node;
	MemoryContext context;
	Identity *identity; /* referenced */
	Instance *instance;
	char *selection; /* "" without one */
	uint64 number;	 /* the barrier's transaction */
	uint64 last;	 /* and that of the last barrier since */
	bool several;	 /* they differ */
	bool repeatable; /* see CheckSubscription */
	bool functions;	 /* may have changed */
	const char *reason;
	dlist_head subscriptions;
	bool busy;

	uint64 job;
	uint64 asked; /* LogPublished() then */
	bool asked_keys;
	bool answered;
	char *sqlstate; /* of an error */
	char *message;
	char *hint;
	int nviews;
	View **views;
	SubscribeSnapshot snapshot;
	List **keys; /* of KeyText, by source */
	Size key_bytes;
	bool too_large;
	Extension *extension;
} Check;

typedef enum ExtensionState
{
	EXTENSION_WAITS,
	EXTENSION_IMPOSSIBLE,
	EXTENSION_READY
} ExtensionState;

/* May the subscription be told of its new columns by operations? */
extern bool ExtensionPossible(Check *check, Subscription *subscription);

/* Takes a page of keys: a JSON array of objects. */
extern void ExtensionReadKeys(Check *check, int source, const char *data, Size length);

/* Makes check->extension. */
extern ExtensionState ExtensionPrepare(Check *check, uint64 until);
extern void ExtensionGive(Check *check, Subscription *subscription);
extern void ExtensionForget(Subscription *subscription);

/* A transaction for a group of connections: is there anything of ours in it? */
extern bool ExtensionsAt(List *members, uint64 number);
extern void ExtensionsBegin(Delivery *d);
extern void ExtensionsAdd(Delivery *d);
extern void ExtensionsEnd(Delivery *d);

/* The view that the client had before the transaction, if it is extended. */
extern View *ExtensionBefore(Subscription *subscription, uint64 number, int source);

#endif /* CHANGEFEED_EXTEND_H */
