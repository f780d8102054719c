/*-------------------------------------------------------------------------
 *
 * identity.h
 *		Who a client is: from a token to a role and reduced claims.
 *
 * An identity is a database role plus the claims without those that differ
 * from token to token (setting identity_claims).  Everything that decides
 * about rows sees the identity, never the connection or the token.
 *
 * Process: feed worker; make_token in a backend.  Memory: results in
 * CurrentMemoryContext.  IdentityResolve needs a transaction.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_IDENTITY_H
#define CHANGEFEED_IDENTITY_H

#include "pg_changefeed.h"

#include "utils/jsonb.h"

typedef struct IdentityInfo
{
	Oid role;
	char *role_name;
	char *claims;		/* JSON text: the reduced claims, with "role", in
								 * jsonb's canonical form */
	char *subject;		/* claim "sub" as text, or NULL */
	int64 expires;		/* claim "exp": seconds since 1970, 0: never */
	int64 issued;		/* claim "iat": seconds since 1970, 0 when missing;
								 * PG_INT64_MAX without a token */
	char *token_claims; /* JSON text of the claims that `claims` lacks, or
								 * NULL */
	uint64 hash;		/* of role, its attributes and memberships (with
								 * their catalog rows' xmin), and claims */
} IdentityInfo;

/* jwt.c: signature, algorithm, exp, nbf, aud. */
typedef struct JwtResult
{
	bool valid;
	char *payload; /* JSON text of the claims, when valid */
	int64 expires;
	const char *sqlstate; /* when not valid: five characters */
	const char *message;
	const char *hint; /* or NULL */
} JwtResult;

/*
 * Verifies a compact JWS.  Never raises an error for a bad token, and never
 * says more in the message than a client may know; takes constant time where
 * secrets are compared.
 */
extern void JwtVerify(const char *token, Size length, JwtResult *result);

/* Reads the key files again at next use (after SIGHUP or a changed setting). */
extern void JwtForgetKeys(void);

/* Signs claims with the secret of jwt_secret_file (HS256); errors if none. */
extern char *JwtSign(const char *claims);

/*
 * The identity of a token, or of the anonymous role when `token` is empty.
 * False: `error` says why (SQLSTATE, message, hint).  Errors that are not the
 * client's fault (catalog trouble) are raised.
 *
 * `role_allowed` tells whether allow_role admitted a role; superusers,
 * BYPASSRLS and REPLICATION roles and members of such are refused in any case.
 */
extern bool IdentityResolve(const char *token, Size length, bool (*role_allowed)(Oid role),
							IdentityInfo *identity, JwtResult *error);

/* The same, of the claims of a token that was verified or never existed. */
extern bool IdentityFromClaims(Jsonb *claims, bool (*role_allowed)(Oid role),
							   IdentityInfo *identity, JwtResult *error);

/* Is the role admitted, for backends: looks into the table. */
extern bool IdentityRoleAllowed(Oid role);

/*
 * The hash again, after roles may have changed.  False: the role is gone or no
 * longer allowed (then `error` says why).
 */
extern bool
IdentityRefresh(IdentityInfo *identity, bool (*role_allowed)(Oid role), JwtResult *error);

#endif /* CHANGEFEED_IDENTITY_H */
