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

/* subscribe_query.c: submits the job; the answer sets `answered`. */
extern void SubscribeAsk(Subscription *subscription);

/* The next question later, and later each time. */
extern void SubscribeDelay(Subscription *subscription);

/* subscribe_messages.c */
extern void SubscribeTellSubscribed(Subscription *subscription, bool recovered);

/* Pages; the state is SUB_LOADING then, or SUB_CATCHUP when they are out. */
extern void SubscribeTellPages(Subscription *subscription);
extern void SubscribeTellReady(Subscription *subscription);

/* For recheck.c: the question, and reading parts of the answer. */
extern void SubscribePutQuestion(StringInfo body, Subscription *subscription, uint8 flags);
extern bool SubscribeMayRetry(const char *sqlstate);
extern bool SubscribeSameView(Subscription *subscription, WireReader *body);
extern void SubscribeReadSnapshot(WireReader *body, TransactionId *xmin, TransactionId *xmax,
								  int *nxip, TransactionId **xip, XLogRecPtr *lsn);
extern bool SubscribeInSnapshot(TransactionId xid, TransactionId xmin, TransactionId xmax, int nxip,
								const TransactionId *xip);

#endif /* CHANGEFEED_SUBSCRIBE_H */
