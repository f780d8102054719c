/*-------------------------------------------------------------------------
 *
 * presence.h
 *		Who is in a channel: what the rest of the feed worker calls.
 *
 * How it works is described in presence_internal.h.
 *
 * Process: feed worker; PresenceOptionsParse any.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_PRESENCE_H
#define CHANGEFEED_PRESENCE_H

#include "feed.h"
#include "json_message.h"

#include "utils/jsonb.h"

/* Kinds of members that a channel's instance knows at a time. */
#define PRESENCE_KINDS_MAX 32
#define PRESENCE_KIND_MAX  64 /* bytes of its name */

/* The argument `presence` of create_channel. */
typedef struct PresenceLimit
{
	char kind[PRESENCE_KIND_MAX + 1];
	int limit;
} PresenceLimit;

typedef struct PresenceOptions
{
	int grace;	  /* ms that a lost connection keeps its place */
	int interval; /* ms between diffs */
	int max_members;
	int max_state; /* bytes */
	bool count_only;
	int nlimits;
	PresenceLimit limits[PRESENCE_KINDS_MAX];
} PresenceOptions;

/* presence_options.c: what is wrong with them, or NULL; `hint` may be set. */
extern const char *PresenceOptionsParse(Jsonb *value, PresenceOptions *options, const char **hint);

/* ---- presence.c ---- */

/* Messages of clients. */
extern void PresenceMessage(Connection *connection, JsonMessage *message, const char *id,
							const char *data, Size length);

/* The subscription was announced, ends, or has another definition of its channel. */
extern void PresenceSubscribed(Subscription *subscription);
extern void PresenceUnsubscribed(Subscription *subscription);
extern void PresenceMoved(Subscription *subscription);

/* The connection is gone; its members stay for their grace period. */
extern void PresenceConnectionLost(Connection *connection);

/* It is about to have another identity. */
extern void PresenceIdentityChanges(Connection *connection, Identity *identity);

/* Tokens were revoked or roles changed: those who are away are looked at. */
extern void PresenceCheckAway(List *revocations);

/* ---- presence_send.c ---- */

/* Everything up to the last mark of presence went out. */
extern void PresenceFlushed(Connection *connection);

/* Sends what is due; ms until it has to be tried again. */
extern long PresenceAdvance(void);

/* ms until something is due, when all else in a turn has been done. */
extern long PresenceWait(void);

#endif /* CHANGEFEED_PRESENCE_H */
