/*-------------------------------------------------------------------------
 *
 * revocations.h
 *		Tokens that are not accepted any more, and connections that had to end.
 *
 * Process: feed worker; backends for the internal function that identifies
 * tokens.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_REVOCATIONS_H
#define CHANGEFEED_REVOCATIONS_H

#include "feed.h"

typedef struct Revocation
{
	int id;
	Oid role;	 /* one of role, claim, session */
	char *claim; /* with `value` */
	char *value;
	char *session;
	int64 revoked;	  /* in seconds, rounded up: a token has to be as young */
	TimestampTz at;	  /* the same, exactly */
	TimestampTz ends; /* not honoured from then on */
} Revocation;

/*
 * Reads the table; `added` is called for the revocations that were not there
 * before (a list of Revocation).  False: locked, try again later.
 */
extern bool RevocationsReload(void (*added)(List *revocations));

/* Ends the connections that they concern. */
extern void RevocationsApply(List *revocations);

/* Is the token of this identity good?  When not, `error` says so. */
extern bool RevocationsAllow(const IdentityInfo *info, JwtResult *error);

/* The connection uses that token from now on. */
extern void RevocationsNoteToken(Connection *connection, const IdentityInfo *info);

/* What clients and changefeed.revoke call the connection. */
extern char *RevocationsSession(const Connection *connection);

#endif /* CHANGEFEED_REVOCATIONS_H */
