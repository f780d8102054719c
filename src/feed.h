/*-------------------------------------------------------------------------
 *
 * feed.h
 *		The feed worker's state: connections, identities, subscriptions.
 *
 * A *connection* belongs to one client and one gateway.  Its ready
 * subscriptions share one cursor, the number of the last transaction that the
 * client has been sent (`live`: that is LogPublished()).  A *subscription* is
 * one channel name on one connection; until it is ready it has a cursor of its
 * own.  Subscriptions to the same channel and parameters hang on one
 * *instance*, where a change finds them by hash.  An *identity* is shared by
 * all connections with the same role and reduced claims.  A *view* is what an
 * identity may see of a source: columns, whether rows have to be judged, and
 * by which fingerprint of the catalogs this was found out.
 *
 * Everything here lives in the feed worker alone; no locks.  Memory: one
 * context each for connections, identities and instances, all children of
 * TopMemoryContext, freed piecewise.  CurrentMemoryContext in a turn is the
 * turn's context, reset at its end.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_FEED_H
#define CHANGEFEED_FEED_H

#include "pg_changefeed.h"
#include "channels.h"
#include "identity.h"
#include "log.h"
#include "query.h"

#include "lib/ilist.h"
#include "utils/hsearch.h"
#include "utils/timestamp.h"

struct Gateway;
struct TransactionMap;

/* Values of LINK_MARK. */
#define MARK_REPLAY 1 /* Connection.mark waits for it */
#define MARK_SYNC	2 /* behind `synced` messages */

/* Columns whose JSON is made by user-defined casts; interned (verdicts.c). */
typedef struct CastList
{
	int n;
	int16 attnos[FLEXIBLE_ARRAY_MEMBER]; /* ascending */
} CastList;

typedef struct View
{
	int refcount;
	int source_id;
	Oid relid;
	int ncolumns;
	int16 *columns; /* attribute numbers to send, ascending */
	int nkey;
	int16 *key;
	int rls; /* 0: every row, 1: to be judged, 2: no row */
	uint64 fingerprint;
	int ndependencies;
	Oid *dependencies;	   /* tables that the policies read */
	const CastList *casts; /* NULL: none; otherwise rows are judged */
} View;

typedef struct Identity
{
	dlist_node node;	   /* in the list of all */
	struct Identity *next; /* with the same hash */
	uint64 serial;		   /* never reused, unlike the address */
	int refcount;
	IdentityInfo info;
	char tag[POSITION_TAG];
	List *views;			/* of View, interned */
	dlist_head connections; /* Connection.identity_node */
} Identity;

typedef struct Connection
{
	uint64 id;	   /* ours: never reused */
	uint32 number; /* the gateway's */
	struct Gateway *gateway;
	dlist_node identity_node; /* only while identity is set */
	Identity *identity;		  /* NULL before connect */
	int64 expires;			  /* of the token, seconds since 1970, 0: never */
	bool expiry_warned;
	bool closing;			  /* LINK_CLOSE was sent: ignore it */
	dlist_head subscriptions; /* Subscription.connection_node */
	int nsubscriptions;
	int nready;
	char *open_token; /* token that came with the handshake, or NULL */
	TimestampTz opened;

	/*
	 * Cursor of the ready subscriptions.  `live`: everything published was
	 * sent.  Otherwise it is behind for one of these reasons.
	 */
	bool live;
	uint64 cursor;			/* only when not live */
	bool waits_verdict;		/* transaction cursor + 1 has to be judged */
	bool choked;			/* the gateway said BEHIND */
	uint32 mark;			/* a LINK_MARK is on its way (0: none) */
	dlist_node behind_node; /* in the list of connections not live */
	int held;				/* subscriptions that keep it from advancing
								 * until they have caught up */
	uint64 first;			/* LogPublished() when it was opened */
	Size replayed;			/* bytes since it was last waited for */
	uint64 group;			/* the group it is moved with */
	uint64 taken_out;		/* the last run that it could not be part of */
	List *syncs;			/* of PendingSync */
	int npostponed;			/* messages of it that wait: postponed.c */
	bool postponed_waits;	/* scratch: the first of them has to */
} Connection;

typedef enum SubscriptionState
{
	SUB_QUERYING, /* job submitted (or waiting to be) */
	SUB_LOADING,  /* pages go to the client */
	SUB_CATCHUP,  /* transactions up to the connection's cursor */
	SUB_READY,
	SUB_CLOSED /* only while being freed */
} SubscriptionState;

typedef struct Spelling
{
	char *json; /* the name as the client wrote it, as JSON */
	int length;
	int refcount;
} Spelling;

typedef struct Instance
{
	char *key; /* channel id, NUL-separated parameters; hash key */
	int key_length;
	Channel *channel;
	char **params; /* NULL entries: any ("*") */
	bool starred;
	dlist_head subscriptions; /* Subscription.instance_node */
	List *spellings;
} Instance;

typedef struct Subscription
{
	uint32 id;
	dlist_node connection_node;
	dlist_node instance_node;
	dlist_node work_node; /* in the list of those not ready */
	Connection *connection;
	Instance *instance;
	Spelling *name;
	char *request_id; /* JSON of the id to answer with, until
								 * subscribed was sent */
	SubscriptionState state;
	bool announced;			 /* "subscribed" was sent */
	bool announced_entities; /* and the client knows the columns of now */
	bool no_snapshot;		 /* "snapshot":false */
	View **views;			 /* by index of source, NULL before described */

	/* ready: gets transactions with a greater number */
	uint64 since;

	/* not ready */
	uint64 job;			  /* query job, 0: none */
	TimestampTz retry_at; /* submit the job then (0: at once) */
	int retry_delay;	  /* ms */
	TimestampTz resynced_at;
	int attempts;
	uint64 start;  /* LogPublished() when the job was submitted */
	uint64 cursor; /* catching up: last transaction sent */
	bool has_snapshot;
	TransactionId xmin;
	TransactionId xmax;
	int nxip;
	TransactionId *xip;
	XLogRecPtr snapshot_lsn; /* N */
	bool restart;			 /* what it has is not usable: ask again */
	bool told_rows;			 /* the client has rows or a `ready` of it */
	bool answered;			 /* the job is done, its result not yet used */
	bool look_up;			 /* `position` has to be found in the log */
	Position position;		 /* the client's `from` */
	bool from_position;		 /* `from` is to be honoured if possible */
	uint64 from;			 /* number of the transaction it names */
	const char *refused;	 /* why it is not, until the client is told */
	int npages;				 /* messages in `pages` */
	bool holds;				 /* counted in connection->held */
	char *file;				 /* spooled pages */
	StringInfoData pages;	 /* small snapshot: u32 source, u32 length, rows */
} Subscription;

/* feed.c */
extern DatabaseFeed *feed_shared;
extern int feed_index;
extern MemoryContext feed_context; /* as long as the process */

/* Time of this turn, taken once. */
extern TimestampTz feed_now;

/* How much of changefeed.worker_memory is used: what is refused then. */
typedef enum MemoryState
{
	MEMORY_FINE,
	MEMORY_SHORT, /* the log is shortened */
	MEMORY_FULL,  /* no new subscriptions */
	MEMORY_OVER	  /* no new connections either */
} MemoryState;
extern MemoryState feed_memory;

/* registry.c: connections, identities, instances, subscriptions as objects */
extern void RegistryInit(void);
extern Connection *ConnectionCreate(struct Gateway *gateway, uint32 number);
extern Connection *ConnectionFind(struct Gateway *gateway, uint32 number);
extern Connection *ConnectionById(uint64 id);
extern void ConnectionFree(Connection *connection);
extern void ConnectionSetIdentity(Connection *connection, Identity *identity);
extern void ConnectionSetBehind(Connection *connection, uint64 cursor);
extern void ConnectionSetLive(Connection *connection);
extern int ConnectionCount(void);
extern int SubscriptionCount(void);
extern dlist_head all_connections_behind;	 /* Connection.behind_node */
extern dlist_head all_subscriptions_working; /* Subscription.work_node */
extern dlist_head all_identities;			 /* Identity.node */

/* Walks all connections; `callback` must not free any. */
extern void ConnectionForEach(void (*callback)(Connection *connection));

extern Identity *IdentityIntern(const IdentityInfo *info);
extern void IdentityRelease(Identity *identity);
extern View *ViewIntern(Identity *identity, const View *view);

/* Does any view depend on that table? */
extern bool ViewsDependOn(Oid relid);
extern void ViewRelease(Identity *identity, View *view);

/* Parameters: NULL entries for "*". */
extern Instance *InstanceIntern(Channel *channel, char *const *params);
extern Instance *InstanceFind(Channel *channel, char *const *params);

/* Instances of the channel with a "*". */
extern List *InstancesStarred(Channel *channel);
extern bool InstanceMatches(const Instance *instance, char *const *params);

extern Subscription *
SubscriptionCreate(Connection *connection, Instance *instance, const char *name, Size length);
extern Subscription *SubscriptionFind(Connection *connection, const char *name, Size length);
extern Subscription *SubscriptionById(Connection *connection, uint32 id);
extern void SubscriptionSetState(Subscription *subscription, SubscriptionState state);
extern void SubscriptionMove(Subscription *subscription, Instance *instance);
extern void SubscriptionFree(Subscription *subscription);

/* Walks the subscriptions of a channel (of all, when NULL). */
extern void
SubscriptionForEach(Channel *channel, void (*callback)(Subscription *s, void *arg), void *arg);

/* subscribe.c: the life of a subscription until it is ready */
extern void SubscribeStart(Subscription *subscription, const Position *from);
extern void SubscribeResync(Subscription *subscription, const char *reason);
extern void SubscribeEnd(Subscription *subscription, const char *reason, const char *sqlstate,
						 const char *message, const char *hint);
extern void SubscribeSnapshotDone(Subscription *subscription, bool ok);
extern void SubscribeChannelChanged(Channel *channel);

/* Moves everything that can be moved; returns ms until something is due. */
extern long SubscribeAdvance(void);

/* Lets go of views, pages and files: before a new start or the end. */
extern void SubscribeForget(Subscription *subscription);

/* map.c: which rows of a transaction concern which sources, net */
typedef struct MapImage
{
	bool used;
	const RecordDescription *desc;
	Datum *values; /* deformed; unchanged TOAST filled if possible */
	bool *isnull;
	bool incomplete;  /* some value is not known */
	bool filled;	  /* values differ from the bytes in the log */
	const char *data; /* tuple bytes in the log */
	uint32 length;
} MapImage;

typedef struct MapEntry
{
	Source *source;
	Layout *layout; /* of the new image, else of the old */
	int old_image;	/* index into images, or -1 */
	int new_image;
	bool old_in; /* passes filter, has all parameters */
	bool new_in;
	char **old_params;
	char **new_params;
	char *key; /* JSON object */
	int key_length;
} MapEntry;

/* What is known of one identity's verdicts on the images. */
typedef struct VerdictSet
{
	struct
	{
		uint64 identity; /* serial */
		uint64 relid;
		const CastList *casts;
	} key;
	uint8 *states;		/* Verdict of each image */
	const char **texts; /* of each visible image, what the casts gave */
} VerdictSet;

typedef struct TransactionMap
{
	dlist_node node; /* in the list of all maps */
	LogTransaction *transaction;
	MemoryContext context;
	int nimages;
	MapImage *images; /* 2 * change + (new ? 1 : 0) */
	int nentries;
	MapEntry *entries;
	List *failed;	/* Oid of sources whose rows could not be read */
	HTAB *verdicts; /* of VerdictSet; NULL until one is asked for */
} TransactionMap;

/* The transaction's map, made when it is not there. */
extern TransactionMap *MapGet(LogTransaction *transaction);
extern void MapFree(TransactionMap *map);

/* Frees all of them: channel definitions changed, or nobody needs them. */
extern void MapFreeAll(void);

/* Frees the oldest when there are many; verdicts in them are asked again. */
extern void MapTrim(void);

/* The image as a tuple for a query worker: its bytes, completed. */
extern void MapImageTuple(const MapImage *image, const char **data, uint32 *length);

/* deliver.c: from a published transaction to frames */
extern void DeliverPublish(LogTransaction *transaction);

/* Moves connections that are behind. */
extern void DeliverAdvance(void);

/* If the log no longer reaches back to it, all its subscriptions start again. */
extern void DeliverCheckBase(Connection *connection);

/* Maps, and with them verdicts, were thrown away: nobody waits for them. */
extern void DeliverForgetWaiting(void);

/*
 * Sends the transaction's changes for one subscription as a frame of its own
 * (not counted by the connection's cursor).  False: a verdict is missing and
 * was asked for, or the subscription was resynced.  `sent` grows by the number
 * of bytes.
 */
extern bool DeliverTo(Subscription *subscription, LogTransaction *transaction, Size *sent);

/* The gateway's words about a connection: see link_format.h. */
extern void DeliverChoked(Connection *connection, uint64 last);
extern void DeliverDrained(Connection *connection);
extern void DeliverFlushed(Connection *connection, uint32 mark);

/* events.c: what a transaction does to subscriptions as a whole */

/* Resyncs what it concerns among the ready ones; reloads the catalog. */
extern void EventsApply(LogTransaction *transaction);
extern void EventsMapFailed(TransactionMap *map);

/*
 * Does the transaction forbid to go on with this subscription, which is not
 * ready yet?  The reason, or NULL.  `barriers_only`: the rows are right
 * anyway, but what was found out about privileges may be outdated.
 */
extern const char *
EventConcerns(Subscription *subscription, LogTransaction *transaction, bool barriers_only);

/* Roles changed somewhere: identities are looked at again. */
extern void EventsRolesChanged(void);

/* The same if a command in any database changed roles since the last look. */
extern bool EventsCheckRoles(void);

/* Reads the channel catalog; false: locked, try again. */
extern bool EventsReloadCatalog(void);
extern bool events_catalog_stale; /* nothing is published while true */

/* Resyncs the identity's ready subscriptions that are fed by that table. */
extern void EventsResyncIdentity(Identity *identity, Oid relid, const char *reason);

/* verdicts.c: what identities may see of judged rows */
typedef enum Verdict
{
	VERDICT_UNKNOWN = 0, /* not asked for */
	VERDICT_ASKED,
	VERDICT_HIDDEN,
	VERDICT_VISIBLE
} Verdict;

/* The identity's verdict on an image of the transaction. */
extern Verdict VerdictGet(TransactionMap *map, Identity *identity, const View *view, int image);

/* The JSON of a visible image's columns in view->casts, for this identity. */
extern const char *const *
VerdictTexts(TransactionMap *map, Identity *identity, const View *view, int image);

extern const CastList *CastListIntern(const int16 *attnos, int n);

/* Asks for it (idempotent); VerdictsAdvance submits. */
extern void VerdictAsk(TransactionMap *map, Identity *identity, View *view, int image);

/* Submits what was asked, takes results over; ms until something is due. */
extern long VerdictsAdvance(void);

/* protocol.c: client messages */
extern void ProtocolOpen(Connection *connection, const char *token, Size length);
extern void ProtocolMessage(Connection *connection, const char *data, Size length);
extern void ProtocolHandle(Connection *connection, const char *data, Size length);

/* What the gateway says of the `synced` messages: see AnswerSyncs. */
extern void ProtocolSyncsFlushed(Connection *connection);
extern void ProtocolSyncsLost(Connection *connection);

/* Due: token expiries, pending syncs.  Returns ms until something is due. */
extern long ProtocolAdvance(void);
extern void ProtocolPing(struct Gateway *gateway, const uint32 *numbers, uint32 count);
extern void ProtocolRevokeAll(Connection *connection, const char *reason);
extern void ProtocolChangeIdentity(Connection *connection, Identity *identity);

/* Writes `{"type":...}` messages. */
extern void ProtocolSend(Connection *connection, const char *data, Size length);
extern void ProtocolError(Connection *connection, const char *request_id, const Spelling *channel,
						  const char *sqlstate, const char *message, const char *hint);

/* postponed.c: messages that wait for what was committed before them */

/* False: it may not wait (any more). */
extern bool Postpone(Connection *connection, const char *data, Size length);

/* Waits if an earlier message of the connection does. */
extern bool PostponeBehind(Connection *connection, const char *data, Size length);
extern void PostponedAdvance(void);

/*
 * relations.c: has anything changed that decides who sees what of a table?
 * RelationNote remembers the state of now, if none is known; RelationChanged
 * compares with what is remembered, and remembers the new state.  `lsn` is the
 * commit: before the first look at a relation everything counts as a change.
 */
extern void RelationNote(Oid relid);
extern bool RelationChanged(Oid relid, XLogRecPtr lsn);

/* RelationChanged of all that are remembered. */
extern List *RelationsChanged(XLogRecPtr lsn);

/*
 * relation_types.c: the types' part of a relation's state; and, when `relid` has
 * the attributes of a type in use, RelationsChanged of all.
 */
extern uint64 RelationTypesState(uint64 state, Oid relid);
extern List *RelationTypeChanged(Oid relid, XLogRecPtr lsn);

/* The name of a column, "" when there is none. */
extern char *RelationColumnName(Oid relid, int16 attno);

#endif /* CHANGEFEED_FEED_H */
