/*-------------------------------------------------------------------------
 *
 * message.h
 *		Messages to the subscribers of a channel: what they may be like
 *		(message_check.c), who gets them and as what text (message.c).
 *
 * Process: message_check.c any; message.c the feed worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_MESSAGE_H
#define CHANGEFEED_MESSAGE_H

#include "feed.h"

#define MESSAGE_EVENT_MAX 128 /* bytes of an event's name */

/* ---- message_check.c ---- */

/* What is wrong with the name of an event, or NULL. */
extern const char *MessageEventProblem(const char *event, Size length);

/* ---- message.c ---- */

/* Those of one gateway who get the same text. */
typedef struct MessageGroup
{
	struct Gateway *gateway;
	Subscription *one; /* of them */
	int n;
	uint32 *numbers;
} MessageGroup;

/* Has the subscription been admitted, as far as the log is known? */
extern bool MessageMayReceive(const Subscription *subscription);

/* Subscriptions of any state to the instance that the parameters name. */
extern List *MessageSubscriptions(Channel *channel, char *const *params);

/* Groups them; an array of `*ngroups`. */
extern MessageGroup *MessageGroups(List *subscriptions, int *ngroups);

/*
 * `{"type":"message","channel":...` up to and without the payload's end: without a
 * closing brace.
 */
extern void MessageBegin(StringInfo out, const Subscription *subscription, char *const *params,
						 const char *event, const char *payload, Size payload_length);

#endif /* CHANGEFEED_MESSAGE_H */
