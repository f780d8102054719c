/*-------------------------------------------------------------------------
 *
 * jwt.c
 *		Verifies and signs tokens: JSON Web Tokens in compact serialisation.
 *
 * All cryptography is that of cjose and OpenSSL.  What cjose is lenient about
 * is checked here before it sees a token: characters that are not base64url
 * (it stops decoding at a "=" and ignores the rest), the length of signatures
 * (it compares before it looks at the length), duplicate members (which of
 * the two counts is anybody's guess) and the algorithms none, PS256 and so on.
 *
 * Results for valid tokens are remembered, as all clients of a server that
 * restarted come back at once with the tokens that they had.  The times in a
 * token are compared with the clock in any case.  Failures are not remembered:
 * whoever sends bad tokens would push the good ones out.
 *
 * Tokens and secrets never get into a message.
 *
 * Process: feed worker, and backends for SQL functions.  No transaction is
 * needed.  Memory: remembered results in a context of their own below
 * TopMemoryContext, at most CACHE_SIZE tokens of at most MAX_TOKEN bytes;
 * objects of cjose and jansson are malloc'ed, and are never alive where an
 * error can be raised.  Locks: none.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>
#include <time.h>

#include <openssl/err.h>
#include <openssl/evp.h>

#include "mb/pg_wchar.h"
#include "utils/memutils.h"

#include "identity.h"
#include "jwt_keys.h"

#define MAX_TOKEN	(16 * 1024)
#define CACHE_SIZE	256
#define DIGEST_SIZE 32

/* Clocks differ: seconds that a token may be used before its "nbf". */
#define NOT_BEFORE_LEEWAY 5

/* First second of the year 10000: what a timestamp of ours can't be beyond. */
#define END_OF_TIME INT64CONST(253402300800)

/* Signatures that have one length only, in characters of base64url. */
#define HS256_SIGNATURE 43
#define ES256_SIGNATURE 86

#define INVALID_AUTHORIZATION "28000"

/* The three parts of a compact JWS; pointers into the token. */
typedef struct TokenParts
{
	const char *header;
	Size header_length;
	const char *payload;
	Size payload_length;
	const char *signature;
	Size signature_length;
} TokenParts;

typedef struct TokenHeader
{
	JwtAlgorithm algorithm;
	bool has_kid;
	char kid[JWT_MAX_KID + 1];
} TokenHeader;

typedef struct TokenTimes
{
	int64 expires;	  /* 0: never */
	int64 not_before; /* 0: always */
} TokenTimes;

typedef struct CacheEntry
{
	uint8 digest[DIGEST_SIZE]; /* SHA-256 of the token */
	char *payload;			   /* NULL: entry is free */
	TokenTimes times;
	uint64 used; /* value of cache_clock at the last use */
} CacheEntry;

typedef enum SignatureResult
{
	SIGNATURE_VALID,
	SIGNATURE_WRONG,
	SIGNATURE_NO_KEY, /* no key for this algorithm and kid */
	SIGNATURE_NO_KEYS /* no key at all */
} SignatureResult;

static MemoryContext cache_context = NULL;
static CacheEntry *cache = NULL;
static uint64 cache_clock = 0;
static uint64 cache_generation = 0; /* of the keys */
static char *cache_audience = NULL;

/* ----------------------------------------------------------------------
 * Results
 * ---------------------------------------------------------------------- */

static void
Refuse(JwtResult *result, const char *message, const char *hint)
{
	memset(result, 0, sizeof(*result));
	result->sqlstate = INVALID_AUTHORIZATION;
	result->message = message;
	result->hint = hint;
}

/* Compares the times of a token with the clock. */
static bool
CheckTimes(const TokenTimes *times, JwtResult *result)
{
	int64 now = (int64) time(NULL);

	if (times->expires != 0 && now >= times->expires)
	{
		Refuse(result, "token has expired", "Send a fresh token.");
		return false;
	}
	if (times->not_before != 0 && now + NOT_BEFORE_LEEWAY < times->not_before)
	{
		Refuse(result, "token is not valid yet", "The claim \"nbf\" is a time in the future.");
		return false;
	}
	return true;
}

/* ----------------------------------------------------------------------
 * Remembered results
 * ---------------------------------------------------------------------- */

static const char *
Audience(void)
{
	return setting_jwt_audience != NULL ? setting_jwt_audience : "";
}

/* Forgets what was found with other keys, or for another audience. */
static void
CacheRefresh(uint64 generation)
{
	if (cache != NULL && cache_generation == generation && strcmp(cache_audience, Audience()) == 0)
		return;

	cache = NULL;
	if (cache_context == NULL)
		cache_context = AllocSetContextCreate(TopMemoryContext, "changefeed tokens",
											  ALLOCSET_DEFAULT_SIZES);
	else
		MemoryContextReset(cache_context);
	cache_audience = MemoryContextStrdup(cache_context, Audience());
	cache_generation = generation;
	cache = MemoryContextAllocZero(cache_context, CACHE_SIZE * sizeof(CacheEntry));
}

static CacheEntry *
CacheFind(const uint8 *digest)
{
	for (int i = 0; i < CACHE_SIZE; i++)
	{
		if (cache[i].payload != NULL && memcmp(cache[i].digest, digest, DIGEST_SIZE) == 0)
		{
			cache[i].used = ++cache_clock;
			return &cache[i];
		}
	}
	return NULL;
}

/* Remembers a valid token in place of the one that was not used the longest. */
static void
CacheStore(const uint8 *digest, const char *payload, const TokenTimes *times)
{
	CacheEntry *entry = &cache[0];
	char *copy = MemoryContextStrdup(cache_context, payload);

	for (int i = 1; i < CACHE_SIZE; i++)
	{
		if (cache[i].used < entry->used)
			entry = &cache[i];
	}
	if (entry->payload != NULL)
		pfree(entry->payload);
	memcpy(entry->digest, digest, DIGEST_SIZE);
	entry->payload = copy;
	entry->times = *times;
	entry->used = ++cache_clock;
}

/* ----------------------------------------------------------------------
 * The token's form
 * ---------------------------------------------------------------------- */

static bool
IsBase64Url(char c)
{
	return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' ||
		   c == '_';
}

/* Exactly three parts that are not empty, of base64url and nothing else. */
static bool
SplitToken(const char *token, Size length, TokenParts *parts)
{
	Size dots[2];
	int n_dots = 0;

	for (Size i = 0; i < length; i++)
	{
		if (token[i] == '.')
		{
			if (n_dots == lengthof(dots))
				return false;
			dots[n_dots++] = i;
		}
		else if (!IsBase64Url(token[i]))
			return false;
	}
	if (n_dots != lengthof(dots))
		return false;

	parts->header = token;
	parts->header_length = dots[0];
	parts->payload = token + dots[0] + 1;
	parts->payload_length = dots[1] - dots[0] - 1;
	parts->signature = token + dots[1] + 1;
	parts->signature_length = length - dots[1] - 1;
	return parts->header_length > 0 && parts->payload_length > 0 && parts->signature_length > 0;
}

/*
 * Reads a header.  Returns NULL or what is wrong with it.  The header is not
 * trusted: it may only choose among what the keys allow.
 */
static const char *
ReadHeaderObject(const json_t *root, TokenHeader *header)
{
	const char *algorithm = json_string_value(json_object_get(root, "alg"));
	const json_t *kid = json_object_get(root, "kid");
	const json_t *b64 = json_object_get(root, "b64");

	if (!json_is_object(root))
		return "token header is not valid";
	if (algorithm != NULL && strcmp(algorithm, "HS256") == 0)
		header->algorithm = JWT_HS256;
	else if (algorithm != NULL && strcmp(algorithm, "RS256") == 0)
		header->algorithm = JWT_RS256;
	else if (algorithm != NULL && strcmp(algorithm, "ES256") == 0)
		header->algorithm = JWT_ES256;
	else
		return "token algorithm is not supported";

	/* We understand no extension, so none can be critical. */
	if (json_object_get(root, "crit") != NULL || (b64 != NULL && !json_is_true(b64)))
		return "token header has an extension that is not supported";

	header->has_kid = kid != NULL;
	header->kid[0] = '\0';
	if (kid != NULL)
	{
		if (!json_is_string(kid) || json_string_length(kid) > JWT_MAX_KID)
			return "token key id is not valid";
		strlcpy(header->kid, json_string_value(kid), sizeof(header->kid));
	}
	return NULL;
}

static const char *
ReadHeader(const TokenParts *parts, TokenHeader *header)
{
	uint8_t *text = NULL;
	size_t length = 0;
	json_t *root = NULL;
	const char *problem;

	if (cjose_base64url_decode(parts->header, parts->header_length, &text, &length, NULL))
	{
		/* Behind a word or a number jansson overlooks it. */
		if (memchr(text, '\0', length) == NULL)
			root = json_loadb((const char *) text, length, JSON_REJECT_DUPLICATES, NULL);
		cjose_get_dealloc()(text);
	}
	problem = ReadHeaderObject(root, header);
	json_decref(root);
	return problem;
}

/* ----------------------------------------------------------------------
 * Signatures
 * ---------------------------------------------------------------------- */

/*
 * A key without a kid, from a PEM file or the secret's, fits every token of
 * its algorithm: issuers like to add a kid that nobody needs.
 */
static bool
KeyFits(const JwtKey *key, const TokenHeader *header)
{
	return key->algorithm == header->algorithm &&
		   (!key->has_kid || !header->has_kid || strcmp(key->kid, header->kid) == 0);
}

/*
 * Verifies the signature with every key that fits.  If it is valid `payload`,
 * which has room for a token, gets the decoded payload.
 */
static SignatureResult
VerifySignature(const char *token, Size length, const TokenParts *parts, const TokenHeader *header,
				char *payload, Size *payload_length)
{
	int n_keys;
	const JwtKey *keys = JwtKeys(&n_keys);
	cjose_jws_t *jws;
	uint8_t *text = NULL;
	size_t text_length = 0;
	SignatureResult result = SIGNATURE_NO_KEY;

	if (n_keys == 0)
		return SIGNATURE_NO_KEYS;

	/* cjose would read behind the end of a shorter one. */
	if ((header->algorithm == JWT_HS256 && parts->signature_length != HS256_SIGNATURE) ||
		(header->algorithm == JWT_ES256 && parts->signature_length != ES256_SIGNATURE))
		return SIGNATURE_WRONG;

	jws = cjose_jws_import(token, length, NULL);
	if (jws == NULL)
		return SIGNATURE_WRONG;
	for (int i = 0; i < n_keys && result != SIGNATURE_VALID; i++)
	{
		if (!KeyFits(&keys[i], header))
			continue;
		result = cjose_jws_verify(jws, keys[i].jwk, NULL) ? SIGNATURE_VALID : SIGNATURE_WRONG;
	}
	if (result == SIGNATURE_VALID)
	{
		/* The text belongs to jws. */
		if (cjose_jws_get_plaintext(jws, &text, &text_length, NULL) && text_length < length)
		{
			memcpy(payload, text, text_length);
			payload[text_length] = '\0';
			*payload_length = text_length;
		}
		else
			result = SIGNATURE_WRONG;
	}
	cjose_jws_release(jws);
	ERR_clear_error(); /* what failed, for whoever uses OpenSSL next */
	return result;
}

/* ----------------------------------------------------------------------
 * Claims
 * ---------------------------------------------------------------------- */

/* Reads a time in seconds since 1970; false if it is not a usable one. */
static bool
ReadTime(const json_t *value, int64 *seconds)
{
	double number;

	*seconds = 0;
	if (value == NULL)
		return true;
	if (!json_is_number(value))
		return false;
	number = json_number_value(value);
	if (!(number < (double) END_OF_TIME))
		return false;

	/* 0 stands for "no time given", and the past is the past. */
	*seconds = number < 1 ? 1 : (int64) floor(number);
	return true;
}

/* Does the claim "aud" name us? */
static bool
AudienceFits(const json_t *claim)
{
	const char *audience = Audience();
	size_t i;
	json_t *element;

	if (audience[0] == '\0')
		return true;
	if (json_is_string(claim))
		return strcmp(json_string_value(claim), audience) == 0;
	json_array_foreach(claim, i, element)
	{
		if (json_is_string(element) && strcmp(json_string_value(element), audience) == 0)
			return true;
	}
	return false;
}

static const char *
ReadClaimsObject(const json_t *root, TokenTimes *times)
{
	if (root == NULL)
		return "token claims are not valid JSON";
	if (!json_is_object(root))
		return "token claims are not a JSON object";
	if (!ReadTime(json_object_get(root, "exp"), &times->expires))
		return "token claim \"exp\" is not a time in seconds";
	if (!ReadTime(json_object_get(root, "nbf"), &times->not_before))
		return "token claim \"nbf\" is not a time in seconds";
	if (!AudienceFits(json_object_get(root, "aud")))
		return "token is for another audience";
	return NULL;
}

/*
 * Checks the claims that are ours to check.  Returns NULL or what is wrong.
 * Beyond JSON's grammar jansson refuses what Postgres would trip over or read
 * in another way: \u0000, halves of surrogate pairs, duplicate members, more
 * than 2048 levels and numbers beyond the range of a double.
 */
static const char *
ReadClaims(const char *payload, Size length, TokenTimes *times)
{
	json_t *root;
	const char *problem;

	if (!pg_verify_mbstr(PG_UTF8, payload, length, true))
		return "token claims are not valid UTF-8";

	/* Integers as real numbers: those above 64 bits are valid claims. */
	root = json_loadb(payload, length, JSON_REJECT_DUPLICATES | JSON_DECODE_INT_AS_REAL, NULL);
	problem = ReadClaimsObject(root, times);
	json_decref(root);
	return problem;
}

/* ----------------------------------------------------------------------
 * Interface
 * ---------------------------------------------------------------------- */

static void
RefuseSignature(SignatureResult signature, JwtResult *result)
{
	switch (signature)
	{
		case SIGNATURE_NO_KEYS:
			Refuse(result, "no key for tokens is configured",
				   "Set changefeed.jwt_secret_file, changefeed.jwt_public_key_file or "
				   "changefeed.jwks_file; the server's log says why a file is not used.");
			break;
		case SIGNATURE_NO_KEY:
			Refuse(result, "no key fits the token",
				   "The server has no key with the token's algorithm and key id.");
			break;
		default:
			Refuse(result, "token signature is not valid", NULL);
			break;
	}
}

void
JwtVerify(const char *token, Size length, JwtResult *result)
{
	TokenParts parts;
	TokenHeader header;
	TokenTimes times = {0};
	uint8 digest[DIGEST_SIZE];
	CacheEntry *known;
	SignatureResult signature;
	char *payload;
	Size payload_length = 0;
	const char *problem;

	memset(result, 0, sizeof(*result));
	if (length > MAX_TOKEN)
	{
		Refuse(result, "token is too long", "A token has at most 16384 bytes.");
		return;
	}
	if (!SplitToken(token, length, &parts))
	{
		Refuse(result, "token is not a JSON Web Token in compact form", NULL);
		return;
	}
	if (EVP_Digest(token, length, digest, NULL, EVP_sha256(), NULL) != 1)
	{
		ERR_clear_error();
		Refuse(result, "token could not be verified", NULL);
		return;
	}

	CacheRefresh(JwtKeysRefresh(false));
	known = CacheFind(digest);
	if (known != NULL)
	{
		if (CheckTimes(&known->times, result))
		{
			result->valid = true;
			result->payload = pstrdup(known->payload);
			result->expires = known->times.expires;
		}
		return;
	}

	problem = ReadHeader(&parts, &header);
	if (problem != NULL)
	{
		Refuse(result, problem, NULL);
		return;
	}

	/* From here on nothing is believed before the signature was verified. */
	payload = palloc(length + 1);
	signature = VerifySignature(token, length, &parts, &header, payload, &payload_length);
	if (signature != SIGNATURE_VALID)
	{
		/* Has a new key come just now? */
		uint64 generation = JwtKeysRefresh(true);

		if (generation != cache_generation)
		{
			CacheRefresh(generation);
			signature = VerifySignature(token, length, &parts, &header, payload, &payload_length);
		}
	}
	if (signature != SIGNATURE_VALID)
		RefuseSignature(signature, result);
	else if ((problem = ReadClaims(payload, payload_length, &times)) != NULL)
		Refuse(result, problem, NULL);
	else if (CheckTimes(&times, result))
	{
		CacheStore(digest, payload, &times);
		result->valid = true;
		result->payload = payload;
		result->expires = times.expires;
		return;
	}
	pfree(payload);
}

void
JwtForgetKeys(void)
{
	/* The results go with the generation of the keys. */
	JwtKeysForget();
}

/* Signs, and copies the token to `token`.  Never raises an error. */
static bool
SignText(const JwtKey *key, const char *text, char *token, Size size)
{
	cjose_header_t *header = json_loads("{\"alg\":\"HS256\",\"typ\":\"JWT\"}", 0, NULL);
	cjose_jws_t *jws = NULL;
	const char *compact = NULL;
	bool done;

	if (header != NULL)
		jws = cjose_jws_sign(key->jwk, header, (const uint8_t *) text, strlen(text), NULL);
	done = jws != NULL && cjose_jws_export(jws, &compact, NULL) && compact != NULL &&
		   strlcpy(token, compact, size) < size;
	cjose_jws_release(jws);
	json_decref(header);
	ERR_clear_error();
	return done;
}

char *
JwtSign(const char *claims)
{
	const JwtKey *keys;
	const JwtKey *secret = NULL;
	int n_keys;
	char *text;
	char *token;
	Size size;

	JwtKeysRefresh(false);
	keys = JwtKeys(&n_keys);
	for (int i = 0; i < n_keys && secret == NULL; i++)
	{
		if (keys[i].signs)
			secret = &keys[i];
	}
	if (secret == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("no secret to sign tokens with is configured"),
				 errhint("Set changefeed.jwt_secret_file to a file with at least 32 random bytes "
						 "and the mode 0600; the server's log says why a file is not used.")));

	text = pg_server_to_any(claims, strlen(claims), PG_UTF8);
	size = strlen(text) / 3 * 4 + 256; /* base64, header and signature */
	token = palloc(size);
	if (!SignText(secret, text, token, size))
		ereport(ERROR,
				(errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION), errmsg("could not sign the token")));
	if (strlen(token) > MAX_TOKEN)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED), errmsg("token is too long"),
						errhint("A token has at most %d bytes.", MAX_TOKEN)));
	return token;
}
