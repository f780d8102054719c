/*-------------------------------------------------------------------------
 *
 * users.h
 *		How many connections each user has.
 *
 * Process: feed worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_USERS_H
#define CHANGEFEED_USERS_H

#include "feed.h"

/* Of the close code for it. */
#define USER_LIMIT_REASON "too many connections of this user"

/*
 * Counts the connection for the user of `info`, and no more for the one before;
 * false: that user has as many as allowed, and nothing has changed.
 */
extern bool UsersTake(Connection *connection, const IdentityInfo *info);

/* The connection ends, or is nobody's any more. */
extern void UsersDrop(Connection *connection);

#endif /* CHANGEFEED_USERS_H */
