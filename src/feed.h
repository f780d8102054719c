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
 * *instance*, where a change finds them by hash; those among them with the same
 * conditions are an *audience*, which is matched once.  An *identity* is shared by
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
#include "compat.h"
#include "counters.h"
#include "identity.h"
#include "json_message.h"
#include "log.h"
#include "query.h"

#include "lib/ilist.h"
#include "nodes/bitmapset.h"
#include "utils/hsearch.h"
#include "utils/timestamp.h"

struct Gateway;
struct TransactionMap;

/* Values of LINK_MARK. */
#define MARK_REPLAY	  1 /* Connection.mark waits for it */
#define MARK_PRESENCE 2 /* Connection.presence_marked bytes of it went out */
#define MARK_SYNC	  3 /* and greater ones: behind `synced` messages */

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
	struct ColumnNames *names;
	int nkey;
	int16 *key;
	int rls; /* 0: every row, 1: to be judged, 2: no row */
	uint64 fingerprint;
	int ndependencies;
	Oid *dependencies;	   /* tables that the policies read */
	const CastList *casts; /* NULL: none; otherwise rows are judged */
	char *narrowing;	   /* which of their changes matter: see QUERY_DESCRIBE */
	int narrowing_length;
	MemoryContext details_context;	   /* of dependencies.c; NULL: none */
	struct DependencyDetails *details; /* of each dependency */
	uint8 recheck;					   /* RECHECK_*: and what leaves no trace in the WAL */
	bool functions;					   /* the policies call functions of users */
	struct PolicyRule *rule;		   /* decides about rows in the place of query workers:
										* policy_rule.h; NULL: they have to be asked */
} View;

/* What columns are called, shared by all views that say so. */
typedef struct ColumnNames
{
	int refcount;
	int length;
	char data[FLEXIBLE_ARRAY_MEMBER]; /* one behind the other, each with its end */
} ColumnNames;

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

/* What a gateway says of a connection when it is asked; gateway_stats.c. */
typedef struct ConnectionStats
{
	uint32 number; /* of the answer */
	uint64 queued_bytes;
	uint64 sent_frames;
	uint64 sent_bytes;
	TimestampTz heard;
} ConnectionStats;

typedef struct Connection
{
	uint64 id;		 /* ours: never reused */
	uint32 number;	 /* the gateway's */
	uint8 transport; /* LinkTransport */
	bool closing;	 /* LINK_CLOSE was sent: ignore it */

	/*
	 * Cursor of the ready subscriptions.  `live`: everything published was
	 * sent.  Otherwise it is behind for one of these reasons.
	 */
	bool live;
	bool waits_verdict;	  /* transaction cursor + 1 has to be judged */
	bool choked;		  /* the gateway said BEHIND */
	bool postponed_waits; /* scratch: the first of its messages has to */
	bool asks_sync;		  /* one of `syncs` has no answer yet */
	uint64 cursor;		  /* only when not live */
	uint64 group;		  /* the group it is moved with */
	uint64 taken_out;	  /* the last run that it could not be part of */
	struct Gateway *gateway;
	Identity *identity;		  /* NULL before connect */
	dlist_head subscriptions; /* Subscription.connection_node */
	dlist_head parked;		  /* SubscriptionLoad.parked_node: subscribe_pages.c */
	Size paged;				  /* bytes of small pages since `mark` was last asked for */
	int nfetches;			  /* questions for rows that are on their way */
	int nsubscriptions;
	int nready;
	int held;				/* subscriptions that keep it from advancing
							 * until they have caught up */
	uint32 mark;			/* a LINK_MARK is on its way (0: none) */
	Size replayed;			/* bytes since it was last waited for */
	dlist_node behind_node; /* in the list of connections not live */

	dlist_node identity_node; /* only while identity is set */
	struct Http *http;		  /* an HTTP request: http.h; NULL for a WebSocket */
	struct CountedUser *user; /* users.c; NULL: nobody's */
	int64 expires;			  /* of the token, seconds since 1970, 0: never */
	int64 expiry_warning;	  /* when the client is told, 0: it was */
	int64 issued;			  /* of the token, as in IdentityInfo */
	char *token_claims;		  /* its claims that are not the identity's, or
							   * NULL */
	char *open_token;		  /* token that came with the handshake, or NULL */
	List *syncs;			  /* of PendingSync */
	Size presence_sent;		  /* bytes, without those that are known to have gone out */
	Size presence_marked;	  /* of them before MARK_PRESENCE; 0: there is none */
	int npostponed;			  /* messages of it that wait: postponed.c */
	int npublishing;		  /* likewise: publish.c */

	/* for the statistics */
	TimestampTz opened;
	char *peer;				/* its address */
	const char *closed;		/* the reason of our LINK_CLOSE, or NULL */
	ConnectionStats *stats; /* NULL: nobody has asked */
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
	struct Spelling *next; /* of the audience */
	int length;
	int refcount;
	struct Fragment *fragments;		  /* scratch of fragment.c: of the entry at hand, */
	uint64 visit;					  /* which this one tells */
	uint64 taken;					  /* scratch: the last run in which some were taken out */
	struct Addressees *addressees;	  /* scratch of addressees.c: the last of the run */
	uint64 addressees_run;			  /* which this one tells */
	char json[FLEXIBLE_ARRAY_MEMBER]; /* the name as the client wrote it, as JSON */
} Spelling;

/* In one piece with its key and the pointers into it. */
typedef struct Instance
{
	struct Instance *next; /* with the same hash */
	uint64 hash;
	Channel *channel;
	int key_length;
	bool starred;
	char *key;				  /* channel's serial, NUL-separated parameters; hash key */
	char **params;			  /* within it; NULL entries: any ("*") */
	dlist_head subscriptions; /* Subscription.instance_node */
	int naudiences;
	struct Audience *everything;	/* those without conditions, or NULL */
	struct InstanceSource *sources; /* by index of source: demand.c; NULL until
									 * somebody can be found */
} Instance;

/* Subscriptions of an instance with the same conditions. */
typedef struct Audience
{
	Instance *instance;
	const char *sql;		  /* conditions as SelectionParse gives them, "" for
							   * none */
	dlist_head subscriptions; /* Subscription.audience_node */
	Spelling *spellings;
	struct AudienceSource *sources; /* by index of source: audience.c; NULL
									 * without conditions */
} Audience;

/*
 * There may be very many: what most of them do not need for most of the time is
 * in objects of its own.
 */
typedef struct Subscription
{
	uint32 id;
	uint8 state;				 /* SubscriptionState */
	bool window : 1;			 /* it has a limit: it need not hold a row that changes */
	bool announced : 1;			 /* "subscribed" was sent */
	bool announced_entities : 1; /* and the client knows the columns of now */
	bool redefined : 1;			 /* it may not even know the entities of now */
	bool no_snapshot : 1;		 /* "snapshot":false */
	bool versions : 1;			 /* "versions":true */
	bool told_rows : 1;			 /* the client has rows or a `ready` of it */
	bool recovered : 1;			 /* by its position, without a snapshot */
	bool paced : 1;				 /* ready, on a channel with min_interval: pace.c */
	bool lags : 1;				 /* what was sent to others it has yet to get */
	uint8 resync_reason;		 /* of the last one, in counter_resync_reasons */
	uint64 since;				 /* ready: gets transactions with a greater number */
	Instance *instance;
	Audience *audience;
	Connection *connection;
	View **views; /* by index of source, NULL before described */
	View *view;	  /* what `views` points to where there is one source */
	dlist_node connection_node;
	dlist_node instance_node;
	dlist_node audience_node;
	Spelling *name;
	char *selection;			   /* what follows "?" in the name, or NULL */
	struct SubscriptionLoad *load; /* NULL when ready: subscribe.h */
	struct Recheck *recheck;	   /* NULL: nothing has to be looked at again */
	uint64 cursor;				   /* catching up, or paced: last transaction sent */

	/* ready: those that get the same, and its place among the live ones, or -1 */
	struct Receivers *receivers;
	int receivers_place;

	/* ready, but the connection is held until a check is over: check.c */
	struct Check *check;
	dlist_node check_node;

	/* ready, and gets new columns with a transaction to come: extend.c */
	struct Extension *extension;
	dlist_node extension_node;
	uint64 extended; /* the last one that brought new columns */

	/* ready, on a channel with min_interval: pace.c */
	struct PaceStep *step; /* what it is about to be sent, or NULL */
	dlist_node pace_node;  /* in the step's list, or that of who lags */
	uint64 pace_missing;   /* scratch: the run that lacks a verdict */

	/* announced, on a channel with presence: presence.c; NULL: it has none */
	struct Viewer *presence;
	List *early; /* messages about its presence that came before */

	uint64 concerned; /* scratch of dependencies.c */

	/* for the statistics */
	uint32 resyncs;
	int http_part; /* which channel of its HTTP request it is, from 0 */
	TimestampTz resynced_at;
	TimestampTz subscribed_at;
	uint64 snapshot_rows; /* of the last one */
} Subscription;

/* feed.c */
extern DatabaseFeed *feed_shared;
extern int feed_index;
extern MemoryContext feed_context; /* as long as the process */

/* Time of this turn, taken once; and of the process's start. */
extern TimestampTz feed_now;
extern TimestampTz feed_started;

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
extern MemoryContext registry_context;
extern void RegistryInit(void);
extern Connection *
ConnectionCreate(struct Gateway *gateway, uint32 number, uint8 transport, const char *peer);
extern Connection *ConnectionFind(struct Gateway *gateway, uint32 number);
extern Connection *ConnectionById(uint64 id);
extern void ConnectionSetPeer(Connection *connection, const char *peer);
extern void ConnectionFree(Connection *connection);
extern void ConnectionSetIdentity(Connection *connection, Identity *identity);
extern void ConnectionSetBehind(Connection *connection, uint64 cursor);
extern void ConnectionSetLive(Connection *connection);

/* It gets nothing any more. */
extern void ConnectionSetClosing(Connection *connection);
extern int ConnectionCount(void);
extern int SubscriptionCount(void);
extern dlist_head all_connections_behind; /* Connection.behind_node */
extern int SubscriptionsNotReady(void);
extern uint64 subscriptions_loaded; /* that have become ready, or ended before */
extern dlist_head all_identities;	/* Identity.node */

/* Walks all connections; `callback` must not free any. */
extern void ConnectionForEach(void (*callback)(Connection *connection));

extern Identity *IdentityIntern(const IdentityInfo *info);
extern void IdentityRelease(Identity *identity);
extern View *ViewIntern(Identity *identity, const View *view);
extern ColumnNames *ColumnNamesIntern(const char *data, int length);
extern void ColumnNamesRelease(ColumnNames *names);

/* One more reference. */
extern void ViewKeep(Identity *identity, View *view);

extern void ViewRelease(Identity *identity, View *view);

/* Parameters: NULL entries for "*". */
extern Instance *InstanceIntern(Channel *channel, char *const *params);
extern Instance *InstanceFind(Channel *channel, char *const *params);

/* Instances of the channel with a "*". */
extern List *InstancesStarred(Channel *channel);
extern bool InstanceMatches(const Instance *instance, char *const *params);

/* `sql`: the conditions, "" for none. */
extern Subscription *SubscriptionCreate(Connection *connection, Instance *instance, const char *sql,
										const char *name, Size length);
extern Subscription *SubscriptionFind(Connection *connection, const char *name, Size length);

/* What the gateway says of pages under its old number is not meant any more. */
extern void SubscriptionRenumber(Subscription *subscription);
extern Subscription *SubscriptionById(Connection *connection, uint32 id);

/* It keeps its connection from advancing, or does not any more. */
extern void SubscriptionHolds(Subscription *subscription, bool holds);
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

/*
 * Moves everything that can be moved; returns ms until something is due.  What
 * has to be asked since it began is not in that, and sets `subscribe_again`.
 */
extern long SubscribeAdvance(void);
extern bool subscribe_again;

/* It is not ready: what that takes, and the list where it belongs. */
extern void SubscribeLoadBegin(Subscription *subscription);
extern void SubscribeLoadEnd(Subscription *subscription);
extern void SubscribePlace(Subscription *subscription);

/* Walks the connections of those that have their rows and go on to `ready`. */
extern void SubscriptionsCatchingUp(void (*callback)(Connection *connection));

/* Is it coming back with a position, and not ready yet? */
extern bool SubscribeResumes(const Subscription *subscription);

/* What it has not got of the transaction is behind that place; NULL: all of it. */
extern const MessagePlace *SubscribeSkips(const Subscription *subscription, uint64 number);

/*
 * May it get messages of that transaction?  It gets rows from where it asked for a
 * snapshot, but may have had no right between then and the snapshot.
 */
extern bool SubscribeIsOwed(const Subscription *subscription, uint64 number);

/* Lets go of views and answers: before a new start or the end. */
extern void SubscribeForget(Subscription *subscription);

/* No page that the gateway still has comes behind what it is sent now. */
extern void SubscribeStopPages(Subscription *subscription);

/*
 * subscribe_pages.c: a question for rows is asked, and the rows have reached the
 * client or never will; the gateway gets the file of an answer, and has closed it.
 */
extern void SubscribeFetchBegin(Subscription *subscription);
extern void SubscribeFetchEnd(Subscription *subscription);
extern void SubscribePagesBegin(Subscription *subscription);
extern void SubscribePagesEnd(Subscription *subscription);

/* For how many files of pages a gateway has descriptors */
extern int SubscribePagesPlaces(void);

/* What was on its way to the client has gone out. */
extern void SubscribePagesFlushed(Connection *connection);

/* check.c: may ready subscriptions go on behind a barrier? */

/*
 * The subscription, which is ready, gets nothing of the transaction and what
 * follows until it is known whether it may go on.  `repeatable`: what changed
 * would leave a trace even if it had been changed back meanwhile.  `functions`:
 * it may be a function that others call.
 */
extern void CheckSubscription(Subscription *subscription, LogTransaction *transaction,
							  const char *reason, bool repeatable, bool functions);

/* It ends or starts again. */
extern void CheckForget(Subscription *subscription);
extern void ChecksAdvance(void);

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

typedef struct TransactionMap
{
	dlist_node node; /* in the list of all maps */
	LogTransaction *transaction;
	uint64 serial; /* no other map has had it */
	MemoryContext context;
	int nimages;
	MapImage *images; /* 2 * change + (new ? 1 : 0) */
	int nentries;
	MapEntry *entries;
	List *failed;	  /* Oid of sources whose rows could not be read */
	Oid working;	  /* scratch: the one that is looked at */
	HTAB *verdicts;	  /* of VerdictSet; NULL until one is asked for */
	uint32 *ordinals; /* of changes: event_deliver.c; NULL until one is needed */
} TransactionMap;

/* The transaction's map, made when it is not there. */
extern TransactionMap *MapGet(LogTransaction *transaction);
extern void MapFree(TransactionMap *map);

/* Frees all of them: channel definitions changed, or nobody needs them. */
extern void MapFreeAll(void);

/* Frees the oldest when there are many; verdicts in them are asked again. */
extern void MapTrim(void);

/* Is this column's value known in the image? */
extern bool MapKnows(TransactionMap *map, int image, int16 attno);

/* The image as a tuple for a query worker: its bytes, completed. */
extern void MapImageTuple(const MapImage *image, const char **data, uint32 *length);

/* pace.c: channels with min_interval */

/* The transaction has changes for the channel. */
extern void PaceNote(Channel *channel, uint64 number);

/* It is ready: what is behind its cursor comes at the channel's pace. */
extern void PaceBegin(Subscription *subscription);

/* It has been sent its step. */
extern void PaceSent(Subscription *subscription);
extern void PaceForget(Subscription *subscription);

/* Another definition comes, or none. */
extern void PaceForgetChannel(Channel *channel);

/* Has the connection been sent all that was committed before that LSN?  If not, it soon is. */
extern bool PaceSettled(Connection *connection, XLogRecPtr lsn);

/* Is anything put off for one of its channels? */
extern bool PaceIsPending(Connection *connection);

/* Sends what is due; ms until something is. */
extern long PaceAdvance(void);

/* Verdicts have come, or were forgotten. */
extern void PaceWake(void);

/* The connection's client takes what it is sent again. */
extern void PaceUnblocked(Connection *connection);

/* Lets go of what the log has dropped. */
extern void PaceTrim(void);

/* Is anybody about to be sent something?  Maps are needed then. */
extern bool PaceIsBusy(void);

/* The transaction of the log, or of a step, with that number; or NULL. */
extern LogTransaction *PaceTransaction(uint64 number);

/* The number by which PaceTransaction finds it. */
extern uint64 PaceNumber(const LogTransaction *transaction);

/* Makes the map of a step's transaction. */
extern struct TransactionMap *PaceMap(LogTransaction *transaction);

/* recheck.c: rights that change without a trace in the WAL */
typedef struct Recheck Recheck;

extern uint64 RecheckSeed(void);
extern bool RecheckNeedsRows(Subscription *subscription);
extern bool RecheckNeeded(Subscription *subscription); /* of anything */

/* The client gets these rows, or loses the subscription's. */
extern void RecheckBegin(Subscription *subscription);
extern void RecheckForget(Subscription *subscription);

/* A change that the client is sent, if the row was or is visible to it. */
extern void RecheckNote(Subscription *subscription, TransactionMap *map, MapEntry *entry,
						View *view, bool before, bool after);

/* What the client has is not known any more. */
extern void RecheckLost(Subscription *subscription);
extern void RecheckLostAll(Connection *connection);

/* Looks at once; false: that would tell nothing. */
extern bool RecheckSoon(Subscription *subscription);

/* Looks, and resyncs whoever has something else; ms until the next is due. */
extern long RecheckAdvance(void);

/* deliver.c: from a published transaction to frames */
extern void DeliverPublish(LogTransaction *transaction);

/* Moves connections that are behind. */
extern void DeliverAdvance(void);

/* If the log no longer reaches back to it, all its subscriptions start again. */
extern void DeliverCheckBase(Connection *connection);

/* Maps, and with them verdicts, were thrown away: nobody waits for them. */
extern void DeliverForgetWaiting(void);

typedef enum Delivered
{
	DELIVERED,
	DELIVER_WAITS, /* a verdict is missing and was asked for */
	DELIVER_RESYNCED,
	DELIVER_ENDED /* the subscription is gone */
} Delivered;

/*
 * Sends what the transaction has for one subscription, changes of rows only if
 * `rows`, as a frame of its own (not counted by the connection's cursor).
 * `sent` grows by the number of bytes.
 */
extern Delivered
DeliverTo(Subscription *subscription, LogTransaction *transaction, bool rows, Size *sent);

/* The last transaction that all live connections have been sent. */
extern uint64 deliver_done;

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

/* The same about who may see what, and not about rows that were lost. */
extern bool EventConcernsRights(Subscription *subscription, LogTransaction *transaction);

/* Roles changed somewhere: identities are looked at again. */
extern void EventsRolesChanged(void);

/* The same if a command in any database changed roles since the last look. */
extern bool EventsCheckRoles(void);

/*
 * Tables with labels of enums, or attributes of composite types, that the catalogs
 * have changed already, and whose barrier is not here yet.  Values are written and
 * conditions are read with the labels of now, so nothing from before that barrier
 * can be delivered any more: the subscriptions start again.  Whoever looks at a
 * catalog may hear of such a change, also in the middle of a delivery.
 */
extern List *EventsLabelsAhead(void);
extern void EventsCheckLabels(void);

extern bool EventsHasSource(const Subscription *subscription, Oid relid);

/* Reads the channel catalog; false: locked, try again. */
extern bool EventsReloadCatalog(void);
extern bool events_catalog_stale; /* nothing is published while true */

/* dependencies.c: which changes of tables that policies read matter to whom */

/* Does any view depend on that table? */
extern bool ViewsDependOn(Oid relid);

/* A view comes, with its narrowing still to be read, or goes. */
extern void DependencyAdd(Identity *identity, View *view);
extern void DependencyRemove(View *view);

/*
 * The ready subscriptions whose policies may give other results because of
 * what the transaction did to the tables that they read.
 */
extern List *DependencyConcerned(LogTransaction *transaction);

/* The same question for one subscription in any state that has views. */
extern bool DependencyConcerns(Subscription *subscription, LogTransaction *transaction);

/*
 * May a verdict on that image (-1: on any row of the table) be another one
 * since a transaction up to `until`, which is behind that of `map`?
 * `dependencies`: the tables that were read for it.
 */
extern bool
DependencyOutdates(Identity *identity, Oid relid, uint64 fingerprint, const Oid *dependencies,
				   int ndependencies, LogTransaction *transaction, int image, uint64 until);

/* Resyncs those of the identity that it concerns; false: there were none. */
extern bool DependencyResync(Identity *identity, Oid relid, uint64 from, uint64 until);

/* Once a turn: tells the decoder which tables' changes are wanted. */
extern void DependencyMaintain(void);

/* protocol.c: client messages */
extern void ProtocolOpen(Connection *connection, const char *token, Size length);
extern void ProtocolMessage(Connection *connection, const char *data, Size length);
extern void ProtocolHandle(Connection *connection, const char *data, Size length);

/* What the gateway says of the `synced` messages: see AnswerSyncs. */
extern void ProtocolSyncsFlushed(Connection *connection, uint32 mark);
extern void ProtocolSyncsLost(Connection *connection);

/* Due: token expiries, pending syncs.  Returns ms until something is due. */
extern long ProtocolAdvance(void);

/* protocol_time.c: its token expires then (seconds since 1970; 0: never) */
extern void ProtocolNoteExpiry(Connection *connection, int64 expires);
extern void ProtocolSync(Connection *connection, const char *id);
extern char *ProtocolIsoTime(int64 seconds);
extern void ProtocolPing(struct Gateway *gateway, const uint32 *numbers, uint32 count);
extern void ProtocolRevokeAll(Connection *connection, const char *reason);
extern void ProtocolChangeIdentity(Connection *connection, Identity *identity);

/* The channel's name in a message, or NULL: the client was told. */
struct JsonMessage;
extern const char *
ProtocolChannel(Connection *connection, const struct JsonMessage *message, const char *id);

/* Writes `{"type":...}` messages. */
extern void ProtocolOk(Connection *connection, const char *type, const char *id);
extern void ProtocolSend(Connection *connection, const char *data, Size length);
/* The other one counts it, too. */
extern void
ProtocolSendError(Connection *connection, const char *request_id, const Spelling *channel,
				  const char *sqlstate, const char *message, const char *hint);
extern void ProtocolError(Connection *connection, const char *request_id, const Spelling *channel,
						  const char *sqlstate, const char *message, const char *hint);

/* call.c: clients call functions */

/* `data` is the whole message, which may have to wait. */
extern void CallMessage(Connection *connection, const JsonMessage *message, const char *id,
						const char *data, Size length);

/*
 * Submits what may run; ms until something is due.  What may run since it began
 * sets `calls_again`.
 */
extern long CallsAdvance(void);
extern bool calls_again;

/* postponed.c: messages that wait for what was committed before them */

/* False: it may not wait (any more). */
extern bool Postpone(Connection *connection, const char *data, Size length);

/* Waits if an earlier message of the connection does. */
extern bool PostponeBehind(Connection *connection, const char *data, Size length);
extern void PostponedAdvance(void);

/*
 * relations.c: what has changed of a table that decides who sees what of it?
 */
#define RELATION_GONE		   0x001 /* dropped */
#define RELATION_UNLOGGED	   0x002 /* its changes are not in the WAL any more */
#define RELATION_REWRITTEN	   0x004 /* values may be others */
#define RELATION_COLUMNS	   0x008 /* renamed, dropped, or of another type */
#define RELATION_COLUMNS_ADDED 0x010
#define RELATION_TYPES		   0x020 /* values are written differently */
#define RELATION_PARTITIONS	   0x040 /* that brought or took rows */
#define RELATION_POLICIES	   0x080
#define RELATION_PRIVILEGES	   0x100

typedef struct RelationChange
{
	uint32 aspects;		/* RELATION_*; 0: nothing that a client could see */
	bool unknown;		/* there may be more: nobody is ready who knew it before */
	Bitmapset *added;	/* attribute numbers */
	Bitmapset *altered; /* those of RELATION_COLUMNS */
	List *names;		/* which they had */
	int before;			/* number of attributes that there were */
	bool labels;		/* columns are of types of users */
	bool touched;		/* scratch */
	List *made;			/* partitions that the transaction has made */
} RelationChange;

/* Remembers the state of now, if none is known. */
extern void RelationNote(Oid relid);

/*
 * Compares what is remembered with the state of now, which is remembered.  Of
 * a table that was not noted everything may have changed.  `barrier`: the one
 * of the transaction because of which we look.
 */
extern void RelationCompare(Oid relid, const LogTransaction *transaction, const LogBarrier *barrier,
							RelationChange *change);

/* Tables noted that this is, or is a partition or type of; all of them. */
extern List *RelationsOf(Oid relid);

/* Do values of a table that was noted consist of that composite type? */
extern bool RelationIsType(Oid relid);
extern List *RelationsAll(void);

/*
 * Views whose owner has other roles than at the last look.  What changed is
 * reckoned with the transaction that NoteRoles is told of next.
 */
extern List *RelationsOwnersChanged(void);
extern void RelationsNoteRoles(uint64 number);
extern bool RelationIsView(Oid relid);

/*
 * Has it changed with that transaction or a later one?  The reason, or NULL.
 * What was before the first look at it may have been changed by what the
 * transaction's barrier names.
 */
extern const char *RelationChangedSince(Oid relid, uint64 number, const LogBarrier *barrier);
extern const char *RelationReason(uint32 aspects);

/* Have labels of its types other names than at the last barrier? */
extern bool RelationLabelsAhead(Oid relid);

/* Did that transaction add the column? */
extern bool RelationColumnIsNew(Oid relid, int16 attno, uint64 number);

/* Some partition with rows of its own, or InvalidOid. */
extern Oid RelationLeaf(Oid relid);

/* The name of a column, "" when there is none. */
extern char *RelationColumnName(Oid relid, int16 attno);

#endif /* CHANGEFEED_FEED_H */
