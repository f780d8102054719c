/*-------------------------------------------------------------------------
 *
 * subscribe.h
 *		What the parts of a subscription's life share: subscribe.c (states),
 *		subscribe_query.c (question and answer), subscribe_messages.c (what
 *		the client is told).
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
