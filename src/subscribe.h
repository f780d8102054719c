/*-------------------------------------------------------------------------
 *
 * subscribe.h
 *		What the parts of a subscription's life share: subscribe.c (states),
 *		subscribe_load.c (what it has while it is not ready), subscribe_query.c
 *		(question and answer), subscribe_messages.c (what the client is told).
 *
 * Process: feed worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_SUBSCRIBE_H
#define CHANGEFEED_SUBSCRIBE_H

#include "feed.h"

/* What a snapshot contains, and when it was taken. */
typedef struct SubscribeSnapshot
{
	TransactionId xmin;
	TransactionId xmax;
	int nxip;
	TransactionId *xip;
	XLogRecPtr lsn; /* N */
} SubscribeSnapshot;

/*
 * A question and what came of it.  Subscriptions that ask the same before a
 * worker has begun with it have one answer: it is of a moment behind all of
 * their questions.  It is there as long as one of them needs it.
 */
typedef struct SubscribeAnswer
{
	int refcount;
	uint64 hash;
	Instance *instance;
	Identity *identity;
	uint64 job;				  /* query job, 0: it is done */
	dlist_head subscriptions; /* that wait for it: SubscriptionLoad.answer_node */

	int nviews;
	View **views; /* by index of source, NULL before described */
	SubscribeSnapshot snapshot;
	RowDigest digest; /* of the snapshot's rows */
	uint64 rows;
	int readers;		  /* that have not been told the rows */
	int loading;		  /* whose gateway has the file open */
	StringInfoData pages; /* small snapshot: u32 source, u32 length, rows */
	char *file;			  /* spooled pages */
	uint64 file_size;	  /* as long as somebody may have it open */
} SubscribeAnswer;

/* What a subscription has as long as it is not ready. */
typedef struct SubscriptionLoad
{
	dlist_node node; /* in a list of those that have to be looked at */
	bool listed;
	Subscription *subscription;
	char *request_id; /* JSON of the id to answer with, until subscribed was sent */

	SubscribeAnswer *answer;
	dlist_node answer_node; /* waits for it */
	bool asked;				/* does so; otherwise it is there, or there is none */
	bool answered;			/* the answer is done, and not yet used */
	bool has_snapshot;
	bool reads; /* counted in answer->readers */

	/* subscribe_pages.c */
	bool fetches;			/* counted in connection->nfetches */
	bool parked;			/* in connection->parked: it is not asked yet */
	dlist_node parked_node; /* in it */
	bool lacks_room;		/* its snapshot waits for space, or for a place for its file */
	bool has_pages;			/* a file is on its way to the client: */
	SubscribeAnswer *pages_of;
	dlist_node pages_node; /* in the list of those, oldest first */
	TimestampTz pages_since;

	bool look_up;		  /* `position` has to be found in the log */
	bool from_position;	  /* `from` is to be honoured if possible */
	bool holds;			  /* counted in connection->held */
	bool owes;			  /* see `owed` */
	TimestampTz asked_at; /* the job was submitted */
	TimestampTz retry_at; /* submit the job then (0: at once) */
	int retry_delay;	  /* ms */
	int attempts;
	uint64 start;		 /* LogPublished() when the job was submitted */
	uint64 rows_from;	 /* the rows of those up to it are there already */
	Position position;	 /* the client's `from` */
	uint64 from;		 /* number of the transaction it names */
	const char *refused; /* why it is not, until the client is told */

	/*
	 * Messages have no other repair than to be sent: those of transactions
	 * behind `owed` are, although the rows came with a snapshot.  Of
	 * `skip_number` the client has the rows, and messages up to `skip`.
	 */
	uint64 owed;
	uint64 skip_number;
	MessagePlace skip;
} SubscriptionLoad;

/* subscribe_load.c: subscriptions with something to be asked or used, or to be sent */
extern dlist_head all_subscriptions_working; /* SubscriptionLoad.node */
extern dlist_head all_subscriptions_catching_up;

/* Joins those who ask the same, or submits the job. */
extern void SubscribeAnswerAsk(Subscription *subscription, const StringInfoData *body);

/* It needs no answer any more. */
extern void SubscribeAnswerLeave(Subscription *subscription);

/* It has been told the rows. */
extern void SubscribeAnswerRead(Subscription *subscription);

/* One reference less. */
extern void SubscribeAnswerRelease(SubscribeAnswer *answer);

/* References to them, in place of those that it has; NULL: none. */
extern void SubscribeSetViews(Subscription *subscription, View **views);

/*
 * subscribe_pages.c: may its question be asked, and may its file be sent?  If not,
 * `wait` is when to look again, unless it is parked.
 */
extern bool SubscribePagesMayAsk(Subscription *subscription, long *wait);
extern bool SubscribePagesMaySend(Subscription *subscription, long *wait);

/* How many that the client was not told of yet wait for others' snapshots? */
extern int SubscribePagesWaiting(Connection *connection);

/* Small pages, so many bytes, go to the client. */
extern void SubscribePagesSent(Subscription *subscription, Size bytes);
extern void SubscribePagesLoadEnd(Subscription *subscription);
extern void SubscribePagesFile(SubscribeAnswer *answer, uint64 size);
extern void SubscribePagesFileGone(SubscribeAnswer *answer);

/* subscribe_query.c: reads results of the job. */
extern void SubscribeReadAnswer(SubscribeAnswer *answer, QueryKind kind, WireReader *body);

/* It was refused, for passing reasons or for good. */
extern void SubscribeFailed(Subscription *subscription, const char *sqlstate, const char *message,
							const char *hint);

extern bool SubscribeSnapshotContains(const SubscribeSnapshot *snapshot, TransactionId xid);

/* subscribe_query.c: the body of a QUERY_SUBSCRIBE job, and its results */
extern void SubscribeQuestion(Instance *instance, Identity *identity, const char *selection,
							  uint8 flags, StringInfo body);

/* The beginning of it, with any check of the channel's, up to its sources. */
extern void SubscribeBeginQuestion(Channel *channel, char *const *params, const char *check,
								   Identity *identity, uint8 flags, StringInfo body);

/* The description of a channel without sources: whether its check is true, the
 * tables that it reads, and whether it has to be looked at again. */
extern int SubscribeReadChannel(WireReader *r, bool *allowed, Oid **relids, bool *recheck);
/* Parts of it: join_check, and a source, with the values of the parameters. */
extern void SubscribePutCheck(StringInfo body, Channel *channel, char *const *params);
extern void
SubscribePutSource(StringInfo body, Channel *channel, char *const *params, Source *source);

/* `audience` (may be NULL) is told of its conditions. */
extern void SubscribeReadView(Identity *identity, Channel *channel, Audience *audience,
							  View **views, WireReader *r);
extern void SubscribeReadSnapshot(SubscribeSnapshot *snapshot, WireReader *r);

/* subscribe_query.c: submits the job; the answer sets `answered`. */
extern void SubscribeAsk(Subscription *subscription);

/* The next question later, and later each time. */
extern void SubscribeDelay(Subscription *subscription);

/* subscribe_messages.c */
extern void SubscribeTellSubscribed(Subscription *subscription, bool recovered);

/* Pages; the state is SUB_LOADING then, or SUB_CATCHUP when they are out. */
extern void SubscribeTellPages(Subscription *subscription);

/* What there is now, to somebody who knows something else. */
extern void SubscribeTellColumns(Subscription *subscription);
extern void SubscribeTellReady(Subscription *subscription);

/* For recheck.c: of an answer that is not the subscription's own. */
extern bool SubscribeMayRetry(const char *sqlstate);
extern bool SubscribeSameView(Subscription *subscription, WireReader *body);

#endif /* CHANGEFEED_SUBSCRIBE_H */
