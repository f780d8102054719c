/*-------------------------------------------------------------------------
 *
 * jwt_keys.h
 *		The keys that tokens are verified with, read from files.
 *
 * Internal to jwt.c and jwt_keys.c.  See jwt_keys.c for the rules.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_JWT_KEYS_H
#define CHANGEFEED_JWT_KEYS_H

#include "pg_changefeed.h"

#include <cjose/cjose.h>
#include <jansson.h>

/*
 * The server exports an SQL function json_object, which takes precedence over
 * jansson's function of that name in every library that the server loads: a
 * call crashes.  jansson itself is linked so that it finds its own (it is the
 * default of its build, -Bsymbolic-functions), but we and cjose do not.  Of
 * cjose these two use it, and its JWE part, which we have no use for.
 */
#pragma GCC poison json_object cjose_header_new cjose_jwk_to_json

/* Longest key id ("kid") that we compare. */
#define JWT_MAX_KID 255

/* The only algorithms; each goes with exactly one type of key. */
typedef enum JwtAlgorithm
{
	JWT_HS256, /* kty oct */
	JWT_RS256, /* kty RSA */
	JWT_ES256  /* kty EC, curve P-256 */
} JwtAlgorithm;

typedef struct JwtKey
{
	JwtAlgorithm algorithm;
	cjose_jwk_t *jwk;
	bool signs; /* the secret of jwt_secret_file */
	bool has_kid;
	char kid[JWT_MAX_KID + 1];
} JwtKey;

/*
 * Makes the keys current: reads the files if that was not done yet, if a
 * setting names another file or if a file changed.  Files are looked at every
 * 10 seconds; `eager`, for a token that no known key fits, makes it one.
 * Returns a number that is another one after keys were read.
 */
extern uint64 JwtKeysRefresh(bool eager);

/* The keys: valid until the next JwtKeysRefresh or JwtKeysForget. */
extern const JwtKey *JwtKeys(int *count);

extern void JwtKeysForget(void);

#endif /* CHANGEFEED_JWT_KEYS_H */
