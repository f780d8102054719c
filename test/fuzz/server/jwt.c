/*-------------------------------------------------------------------------
 *
 * jwt.c
 *		Tokens (src/jwt.c, src/identity.c) and the files of their keys
 *		(src/jwt_keys.c).
 *
 * Target jwt, input: a byte, and
 *	r	a token
 *	s	a header and a payload with a line end between them, which are signed
 *		with the server's secret
 *	o	the same, signed with another secret: it must never be accepted
 *
 * Properties: a token is accepted only if its signature is that of its first
 * two parts with a key of ours, computed here by OpenSSL; with an algorithm that
 * is allowed; with a payload that is an object for jsonb; and at a time when it
 * is valid.
 *
 * Target jwks, input: a byte that says which of the three files it is, and the
 * file.  Whatever it holds, a token that is signed with what everybody knows is
 * not accepted.
 *
 *-------------------------------------------------------------------------
 */
#include "fuzz.h"

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include <openssl/bn.h>
#include <openssl/ecdsa.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/pem.h>

#include "identity.h"

#include "jwt_keys.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/guc.h"
#include "utils/numeric.h"

/* Of utils/fmgrprotos.h, which has a json_object, as jansson has. */
extern Datum numeric_float8_no_overflow(PG_FUNCTION_ARGS);

/* As in test/fuzz/keys. */
static char secret[128];
static int secret_length;
static EVP_PKEY *rsa;
static EVP_PKEY *ec;

static const char *
KeyPath(const char *name)
{
	return psprintf("%s/%s", getenv("FUZZ_KEYS"), name);
}

static EVP_PKEY *
ReadPublic(const char *name)
{
	FILE *file = fopen(KeyPath(name), "r");
	EVP_PKEY *key = file != NULL ? PEM_read_PUBKEY(file, NULL, NULL, NULL) : NULL;

	if (key == NULL)
		elog(ERROR, "no key in %s", name);
	fclose(file);
	return key;
}

static void
Start(void)
{
	FILE *file = fopen(KeyPath("secret"), "r");

	secret_length = (int) fread(secret, 1, sizeof(secret), file);
	fclose(file);
	if (secret_length > 0 && secret[secret_length - 1] == '\n')
		secret_length--;
	rsa = ReadPublic("rsa.pub.pem");
	ec = ReadPublic("ec.pub.pem");
}

/* ---- base64url ---- */

static char *
Encode(const unsigned char *data, Size length)
{
	static const char alphabet[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
	StringInfoData out;
	Size i;

	initStringInfo(&out);
	for (i = 0; i < length; i += 3)
	{
		uint32 v = (uint32) data[i] << 16 | (i + 1 < length ? data[i + 1] << 8 : 0) |
				   (i + 2 < length ? data[i + 2] : 0);

		appendStringInfoChar(&out, alphabet[v >> 18]);
		appendStringInfoChar(&out, alphabet[v >> 12 & 63]);
		if (i + 1 < length)
			appendStringInfoChar(&out, alphabet[v >> 6 & 63]);
		if (i + 2 < length)
			appendStringInfoChar(&out, alphabet[v & 63]);
	}
	return out.data;
}

/* -1: it has a character that is none. */
static int
Decode(const char *text, Size length, unsigned char *out)
{
	uint32 bits = 0;
	int n = 0;
	int have = 0;
	Size i;

	for (i = 0; i < length; i++)
	{
		char c = text[i];
		int v = c >= 'A' && c <= 'Z'   ? c - 'A'
				: c >= 'a' && c <= 'z' ? c - 'a' + 26
				: c >= '0' && c <= '9' ? c - '0' + 52
				: c == '-'			   ? 62
				: c == '_'			   ? 63
									   : -1;

		if (v < 0)
			return -1;
		bits = bits << 6 | (uint32) v;
		have += 6;
		if (have >= 8)
		{
			have -= 8;
			out[n++] = (unsigned char) (bits >> have);
		}
	}
	return n;
}

/* ---- what OpenSSL says ---- */

static bool
HmacFits(const char *key, int key_length, const char *text, Size length,
		 const unsigned char *signature, int signature_length)
{
	unsigned char mac[EVP_MAX_MD_SIZE];
	unsigned int n;

	HMAC(EVP_sha256(), key, key_length, (const unsigned char *) text, length, mac, &n);
	return (int) n == signature_length && memcmp(mac, signature, n) == 0;
}

static bool
PublicFits(EVP_PKEY *key, const char *text, Size length, const unsigned char *signature,
		   int signature_length)
{
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	bool fits = EVP_DigestVerifyInit(ctx, NULL, EVP_sha256(), NULL, key) == 1 &&
				EVP_DigestVerify(ctx, signature, signature_length, (const unsigned char *) text,
								 length) == 1;

	EVP_MD_CTX_free(ctx);
	return fits;
}

/* r and s, as JWS has them, in DER. */
static int
ToDer(const unsigned char *raw, unsigned char **der)
{
	ECDSA_SIG *sig = ECDSA_SIG_new();
	int n;

	ECDSA_SIG_set0(sig, BN_bin2bn(raw, 32, NULL), BN_bin2bn(raw + 32, 32, NULL));
	*der = NULL;
	n = i2d_ECDSA_SIG(sig, der);
	ECDSA_SIG_free(sig);
	return n;
}

static bool
SignatureFits(const char *token, Size length)
{
	const char *dot = memchr(token, '.', length);
	const char *second = dot != NULL ? memchr(dot + 1, '.', token + length - dot - 1) : NULL;
	unsigned char *signature = palloc(length + 1);
	int n;
	bool fits;
	unsigned char *der;
	int der_length;

	if (second == NULL)
		return false;
	n = Decode(second + 1, token + length - second - 1, signature);
	if (n < 0)
		return false;
	if (HmacFits(secret, secret_length, token, second - token, signature, n) ||
		PublicFits(rsa, token, second - token, signature, n))
		return true;
	if (n != 64)
		return false;
	der_length = ToDer(signature, &der);
	fits = PublicFits(ec, token, second - token, der, der_length);
	OPENSSL_free(der);
	return fits;
}

/* ---- what jsonb says ---- */

static JsonbValue *
Member(Jsonb *object, const char *name)
{
	JsonbValue key;

	key.type = jbvString;
	key.val.string.val = unconstify(char *, name);
	key.val.string.len = (int) strlen(name);
	return findJsonbValueFromContainer(&object->root, JB_FOBJECT, &key);
}

static bool
StringIs(JsonbValue *value, const char *text)
{
	return value != NULL && value->type == jbvString && value->val.string.len == strlen(text) &&
		   memcmp(value->val.string.val, text, strlen(text)) == 0;
}

static double
NumberOf(JsonbValue *value)
{
	return DatumGetFloat8(
		DirectFunctionCall1(numeric_float8_no_overflow, NumericGetDatum(value->val.numeric)));
}

static void
CheckAccepted(const char *token, Size length, const JwtResult *result)
{
	const char *dot = memchr(token, '.', length);
	unsigned char *header = palloc(length + 1);
	int n = dot != NULL ? Decode(token, dot - token, header) : -1;
	Jsonb *object = n >= 0 ? FuzzJsonb((char *) header, n) : NULL;
	Jsonb *claims = FuzzJsonb(result->payload, strlen(result->payload));
	double now = (double) time(NULL);
	JsonbValue *value;

	if (object == NULL || !JB_ROOT_IS_OBJECT(object))
		Fail("a token is accepted whose header is no object");
	value = Member(object, "alg");
	if (!StringIs(value, "HS256") && !StringIs(value, "RS256") && !StringIs(value, "ES256"))
		Fail("a token is accepted with another algorithm");
	if (Member(object, "crit") != NULL)
		Fail("a token is accepted with what we do not understand");
	if (claims == NULL && FuzzJsonIsValid(result->payload, strlen(result->payload)))
		return; /* with a number that is beyond those of numeric */
	if (claims == NULL || !JB_ROOT_IS_OBJECT(claims))
		Fail("a token is accepted whose claims are no object: %s", result->payload);
	value = Member(claims, "exp");
	if (value != NULL && (value->type != jbvNumeric || NumberOf(value) < now - 2))
		Fail("a token is accepted that has expired");
	if (value == NULL && result->expires != 0)
		Fail("a token expires that says nothing of it");
	value = Member(claims, "nbf");
	if (value != NULL && (value->type != jbvNumeric || NumberOf(value) > now + 8))
		Fail("a token is accepted before its time");
	value = Member(claims, "aud");
	if (!StringIs(value, "fuzz"))
	{
		JsonbValue key;

		key.type = jbvString;
		key.val.string.val = "fuzz";
		key.val.string.len = 4;
		if (value == NULL || value->type != jbvBinary ||
			findJsonbValueFromContainer(value->val.binary.data, JB_FARRAY, &key) == NULL)
			Fail("a token is accepted that is for others: %s", result->payload);
	}
}

/* ---- tokens ---- */

static char *
Signed(const char *data, Size size, const char *key, int key_length)
{
	const char *end = memchr(data, '\n', size);
	Size n = end != NULL ? (Size) (end - data) : size;
	unsigned char mac[EVP_MAX_MD_SIZE];
	unsigned int mac_length;
	char *text = psprintf("%s.%s", Encode((const unsigned char *) data, n),
						  end != NULL ? Encode((const unsigned char *) end + 1, size - n - 1) : "");

	HMAC(EVP_sha256(), key, key_length, (unsigned char *) text, strlen(text), mac, &mac_length);
	return psprintf("%s.%s", text, Encode(mac, mac_length));
}

static bool
Anybody(Oid role)
{
	return true;
}

static void
Check(const char *token, Size length, bool foreign)
{
	JwtResult result;
	IdentityInfo info;

	JwtVerify(token, length, &result);
	if (!result.valid)
	{
		if (result.message == NULL || strlen(result.sqlstate) != 5 || result.payload != NULL)
			Fail("it is not said why a token is refused");
	}
	else
	{
		if (foreign)
			Fail("a token is accepted that somebody else has signed");
		if (!SignatureFits(token, length))
			Fail("a token is accepted that no key of ours has signed");
		CheckAccepted(token, length, &result);
	}
	if (IdentityResolve(token, length, Anybody, &info, &result) && length > 0)
	{
		Jsonb *claims = FuzzJsonb(info.claims, strlen(info.claims));

		if (foreign)
			Fail("somebody is who they are by a token that somebody else has signed");
		if (claims == NULL || !JB_ROOT_IS_OBJECT(claims) ||
			!StringIs(Member(claims, "role"), info.role_name))
			Fail("the claims of an identity are not as they should be: %s", info.claims);
	}
}

static void
Run(const char *data, Size size)
{
	static const char other[] = "this is not the secret of the server, whatever else it is";
	char *token;

	if (size < 1)
		return;
	switch (data[0])
	{
		case 's':
			token = Signed(data + 1, size - 1, secret, secret_length);
			Check(token, strlen(token), false);
			break;
		case 'o':
			token = Signed(data + 1, size - 1, other, sizeof(other) - 1);
			Check(token, strlen(token), true);
			break;
		default:
			/* As JSON has it: with a zero byte it would end there. */
			if (memchr(data, '\0', size) != NULL)
				return;
			Check(pnstrdup(data + 1, size - 1), size - 1, false);
			break;
	}
}

const FuzzTarget target_jwt = {"jwt", Start, Run, NULL};

/* ---- files ---- */

static void
RunFile(const char *data, Size size)
{
	static const char *const files[] = {"fuzz.secret", "fuzz.public", "fuzz.jwks"};
	static const char *const settings[] = {
		"changefeed.jwt_secret_file", "changefeed.jwt_public_key_file", "changefeed.jwks_file"};
	const char *name;
	JwtResult result;
	const JwtKey *keys;
	char *token;
	int n;
	int fd;
	int i;
	int which;

	if (size < 1)
		return;
	which = (unsigned char) data[0] % 3;
	name = files[which];
	fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (fd < 0 || write(fd, data + 1, size - 1) != (ssize_t) size - 1)
		Fail("could not write a file");
	close(fd);
	for (i = 0; i < 3; i++)
		SetConfigOption(settings[i], i == which ? name : "", PGC_SIGHUP, PGC_S_OVERRIDE);
	JwtForgetKeys();
	(void) JwtKeysRefresh(false);
	keys = JwtKeys(&n);
	for (i = 0; i < n; i++)
	{
		if (keys[i].jwk == NULL || (which == 1 && keys[i].algorithm == JWT_HS256) ||
			(which == 0 && keys[i].algorithm != JWT_HS256))
			Fail("a key is for another algorithm than its file");
		if (keys[i].has_kid && memchr(keys[i].kid, '\0', sizeof(keys[i].kid)) == NULL)
			Fail("a kid has no end");
	}

	/* The well-known attack: a public key is what everybody knows. */
	if (which == 1)
	{
		token = Signed("{\"alg\":\"HS256\"}\n{\"aud\":\"fuzz\"}", 31, data + 1, (int) size - 1);
		JwtVerify(token, strlen(token), &result);
		if (result.valid)
			Fail("a token is accepted that is signed with a public key");
	}
	token = Signed("{\"alg\":\"HS256\"}\n{\"aud\":\"fuzz\"}", 31, "", 0);
	JwtVerify(token, strlen(token), &result);
	if (result.valid)
		Fail("a token is accepted that is signed with nothing");
	JwtForgetKeys();
}

const FuzzTarget target_jwks = {"jwks", NULL, RunFile, NULL};
