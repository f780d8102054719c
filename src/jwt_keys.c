/*-------------------------------------------------------------------------
 *
 * jwt_keys.c
 *		Reads the keys for tokens from the files that the settings name.
 *
 * jwt_secret_file		the secret of HS256: the file's bytes, without one
 *						newline at the end
 * jwt_public_key_file	a public key or certificate in PEM: RS256 or ES256
 * jwks_file			a JSON Web Key Set, for all three
 *
 * A file or key that cannot be used is left out, with a line in the server's
 * log that says why: tokens that need it are then refused.  What a file holds
 * never gets into the log.
 *
 * Each key has one algorithm, fixed here by its type.  A token can therefore
 * not choose how a key is used: the known attack, HMAC with the text of a
 * public key as secret, fails because no such key exists.
 *
 * Files are read again when they change, so that keys can be rotated by
 * replacing a file, without a reload.
 *
 * Process: any.  Memory: keys are malloc'ed by cjose and belong to `keys`.
 * While an object of cjose, jansson or OpenSSL is alive that is not in `keys`
 * nothing may raise an error, as nothing would free it: problems are noted
 * and reported at the end.  Locks: none.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* EVP_PKEY_get0_RSA is how OpenSSL 1.1 and 3 both do it. */
#ifndef OPENSSL_API_COMPAT
#define OPENSSL_API_COMPAT 0x10100000L
#endif
#include <openssl/bn.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>

#include "miscadmin.h"
#include "storage/fd.h"

#include "jwt_keys.h"

#define MAX_KEYS	 64
#define MAX_KEY_FILE (64 * 1024)
#define MAX_SET_FILE (1024 * 1024)
#define MIN_SECRET	 32 /* bytes; RFC 7518, 3.2 */
#define MIN_RSA_BITS 2048
#define P256_BYTES	 32

/* Seconds between two looks at the files. */
#define CHECK_INTERVAL 10.0
#define EAGER_INTERVAL 1.0

/* A file as it was when we read it. */
typedef struct KeyFile
{
	const char *name; /* of the setting */
	char **setting;
	bool secret; /* refuse it if others may read it */
	Size limit;
	char path[MAXPGPATH]; /* empty: not set */
	struct stat state;	  /* all zero: there was none */
	bool exposed;		  /* others may read it */
} KeyFile;

/* A line for the log, kept until it is safe to write it. */
typedef struct KeyNote
{
	char message[MAXPGPATH + 256];
	const char *hint;
} KeyNote;

static KeyFile secret_file = {"changefeed.jwt_secret_file", &setting_jwt_secret_file, true,
							  MAX_KEY_FILE};
static KeyFile public_file = {"changefeed.jwt_public_key_file", &setting_jwt_public_key_file, false,
							  MAX_KEY_FILE};
static KeyFile set_file = {"changefeed.jwks_file", &setting_jwks_file, false, MAX_SET_FILE};
static KeyFile *const key_files[] = {&secret_file, &public_file, &set_file};

static JwtKey keys[MAX_KEYS];
static int n_keys = 0;
static bool loaded = false;
static uint64 generation = 0;
static double last_check = 0;

static KeyNote notes[8];
static int n_notes = 0;
static int n_notes_lost = 0;

static void LoadKeys(void);
static void LoadSecret(void);
static void LoadPublicKey(void);
static void LoadSet(void);

/* ----------------------------------------------------------------------
 * Notes
 * ---------------------------------------------------------------------- */

/* Keeps a line for the log.  Never raises an error. */
static void pg_attribute_printf(2, 3) Note(const char *hint, const char *format, ...)
{
	va_list arguments;

	if (n_notes == lengthof(notes))
	{
		n_notes_lost++;
		return;
	}
	va_start(arguments, format);
	vsnprintf(notes[n_notes].message, sizeof(notes[n_notes].message), format, arguments);
	va_end(arguments);
	notes[n_notes++].hint = hint;
}

static void
ReportNotes(void)
{
	for (int i = 0; i < n_notes; i++)
		ereport(LOG, (errcode(ERRCODE_CONFIG_FILE_ERROR), errmsg_internal("%s", notes[i].message),
					  notes[i].hint != NULL ? errhint("%s", notes[i].hint) : 0));
	if (n_notes_lost > 0)
		ereport(LOG, (errcode(ERRCODE_CONFIG_FILE_ERROR),
					  errmsg("%d more problems with keys for tokens", n_notes_lost)));
}

/* ----------------------------------------------------------------------
 * Files
 * ---------------------------------------------------------------------- */

static double
Seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

/* The path that the setting means now.  Empty: not set. */
static void
CurrentPath(const KeyFile *file, char *path)
{
	const char *value = *file->setting;

	path[0] = '\0';
	if (value == NULL || value[0] == '\0')
		return;
	if (is_absolute_path(value))
		strlcpy(path, value, MAXPGPATH);
	else
		snprintf(path, MAXPGPATH, "%s/%s", DataDir, value);
}

static bool
SameState(const struct stat *a, const struct stat *b)
{
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size &&
		   a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec &&
		   a->st_ctim.tv_sec == b->st_ctim.tv_sec && a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
}

/* Is the file another one than we read? */
static bool
FileChanged(const KeyFile *file)
{
	struct stat state;

	if (file->path[0] == '\0')
		return false;
	if (stat(file->path, &state) != 0)
		memset(&state, 0, sizeof(state));
	return !SameState(&file->state, &state);
}

/*
 * The content of a file with a zero byte behind it, palloc'ed, or NULL with a
 * note.  Owner and mode are checked on the open file.
 */
static char *
ReadKeyFile(KeyFile *file, Size *length)
{
	static const char *const chmod_hint = "Use chmod 0600, and the server's user as its owner.";
	struct stat state;
	char *content = NULL;
	Size filled = 0;
	int fd;

	memset(&file->state, 0, sizeof(file->state));
	file->exposed = false;
	if (file->path[0] == '\0')
		return NULL;

	/* O_NONBLOCK: a named pipe must not make the server wait. */
	fd = OpenTransientFile(file->path, O_RDONLY | O_NONBLOCK | PG_BINARY);
	if (fd < 0)
	{
		int reason = errno;

		/* One that may not be opened has a state too: it can change. */
		if (stat(file->path, &file->state) != 0)
			memset(&file->state, 0, sizeof(file->state));
		errno = reason;
		Note(NULL, "could not open \"%s\" (%s): %m", file->path, file->name);
		return NULL;
	}
	if (fstat(fd, &state) != 0)
	{
		Note(NULL, "could not stat \"%s\" (%s): %m", file->path, file->name);
		CloseTransientFile(fd);
		return NULL;
	}
	file->state = state;

	/*
	 * The same rule as for the server's TLS key: ours and for nobody else, or
	 * root's and readable by one of our groups.
	 */
	file->exposed = !((state.st_uid == geteuid() && (state.st_mode & 077) == 0) ||
					  (state.st_uid == 0 && (state.st_mode & 037) == 0));

	if (!S_ISREG(state.st_mode))
		Note(NULL, "\"%s\" (%s) is not a regular file", file->path, file->name);
	else if (file->secret && state.st_uid != geteuid() && state.st_uid != 0)
		Note(chmod_hint, "\"%s\" (%s) is not used: it belongs to another user", file->path,
			 file->name);
	else if (file->secret && file->exposed)
		Note(chmod_hint, "\"%s\" (%s) is not used: others may read it", file->path, file->name);
	else if ((state.st_mode & S_IWOTH) != 0)
		Note("Use chmod o-w.", "\"%s\" (%s) is not used: everybody may write to it", file->path,
			 file->name);
	else if (state.st_size > file->limit)
		Note(NULL, "\"%s\" (%s) is not used: it is larger than %zu bytes", file->path, file->name,
			 file->limit);
	else
	{
		content = palloc(file->limit + 1);
		while (filled < file->limit)
		{
			ssize_t got = read(fd, content + filled, file->limit - filled);

			if (got < 0 && errno == EINTR)
				continue;
			if (got < 0)
			{
				Note(NULL, "could not read \"%s\" (%s): %m", file->path, file->name);
				explicit_bzero(content, filled);
				pfree(content);
				content = NULL;
			}
			if (got <= 0)
				break;
			filled += got;
		}
	}
	CloseTransientFile(fd);

	if (content != NULL)
		content[filled] = '\0';
	*length = filled;
	return content;
}

/* ----------------------------------------------------------------------
 * Keys
 * ---------------------------------------------------------------------- */

/*
 * Takes the key over, or frees it.  Never raises an error.  rsa_bits is how
 * long an RSA key is at most, or 0: newer versions of cjose make none of a
 * short one.
 */
static JwtKey *
AddKey(const KeyFile *file, JwtAlgorithm algorithm, cjose_jwk_t *jwk, Size rsa_bits)
{
	JwtKey *key;

	if (algorithm == JWT_RS256 && (jwk != NULL ? cjose_jwk_get_keysize(jwk, NULL) < MIN_RSA_BITS
											   : rsa_bits != 0 && rsa_bits < MIN_RSA_BITS))
	{
		Note(NULL, "a key of \"%s\" (%s) is not used: RSA keys need at least %d bits", file->path,
			 file->name, MIN_RSA_BITS);
		if (jwk != NULL)
			cjose_jwk_release(jwk);
		return NULL;
	}
	if (jwk == NULL)
	{
		Note(NULL, "a key of \"%s\" (%s) is not used: it is not valid", file->path, file->name);
		return NULL;
	}
	if (algorithm == JWT_HS256 && cjose_jwk_get_keysize(jwk, NULL) < MIN_SECRET * 8)
	{
		Note("Make one with: openssl rand -base64 48",
			 "a key of \"%s\" (%s) is not used: secrets need at least %d bytes", file->path,
			 file->name, MIN_SECRET);
		cjose_jwk_release(jwk);
		return NULL;
	}
	if (n_keys == MAX_KEYS)
	{
		Note(NULL, "a key of \"%s\" (%s) is not used: there are more than %d", file->path,
			 file->name, MAX_KEYS);
		cjose_jwk_release(jwk);
		return NULL;
	}

	key = &keys[n_keys++];
	memset(key, 0, sizeof(*key));
	key->algorithm = algorithm;
	key->jwk = jwk;
	return key;
}

static void
LoadSecret(void)
{
	Size allocated = secret_file.limit + 1;
	Size length;
	char *content = ReadKeyFile(&secret_file, &length);
	JwtKey *key;

	if (content == NULL)
		return;

	if (length > 0 && content[length - 1] == '\n')
		length--;
	if (length > 0 && content[length - 1] == '\r')
		length--;

	/*
	 * A public key as secret would let everybody sign who knows it, which is
	 * everybody.
	 */
	if (strncmp(content, "-----BEGIN ", 11) == 0)
		Note("A public key belongs into changefeed.jwt_public_key_file.",
			 "\"%s\" (%s) is not used: it holds a PEM block, not a secret", secret_file.path,
			 secret_file.name);
	else
	{
		/* cjose makes no key of nothing; one byte gets the right message. */
		key = AddKey(&secret_file, JWT_HS256,
					 cjose_jwk_create_oct_spec((const uint8_t *) content, Max(length, 1), NULL), 0);
		if (key != NULL)
			key->signs = true;
	}

	explicit_bzero(content, allocated);
	pfree(content);
}

/* Makes a key of an OpenSSL one.  Never raises an error. */
static void
AddPublicKey(EVP_PKEY *pkey)
{
	if (EVP_PKEY_base_id(pkey) == EVP_PKEY_RSA)
	{
		const RSA *rsa = EVP_PKEY_get0_RSA(pkey);
		const BIGNUM *n = NULL;
		const BIGNUM *e = NULL;
		uint8_t n_bytes[OPENSSL_RSA_MAX_MODULUS_BITS / 8];
		uint8_t e_bytes[OPENSSL_RSA_MAX_MODULUS_BITS / 8];
		cjose_jwk_rsa_keyspec spec;

		if (rsa != NULL)
			RSA_get0_key(rsa, &n, &e, NULL);
		if (n != NULL && e != NULL && BN_num_bytes(n) <= sizeof(n_bytes) &&
			BN_num_bytes(e) <= sizeof(e_bytes))
		{
			memset(&spec, 0, sizeof(spec));
			spec.n = n_bytes;
			spec.nlen = BN_bn2bin(n, n_bytes);
			spec.e = e_bytes;
			spec.elen = BN_bn2bin(e, e_bytes);
			AddKey(&public_file, JWT_RS256, cjose_jwk_create_RSA_spec(&spec, NULL), BN_num_bits(n));
			return;
		}
	}
	else if (EVP_PKEY_base_id(pkey) == EVP_PKEY_EC)
	{
		const EC_KEY *ec = EVP_PKEY_get0_EC_KEY(pkey);
		const EC_GROUP *group = ec != NULL ? EC_KEY_get0_group(ec) : NULL;
		const EC_POINT *point = ec != NULL ? EC_KEY_get0_public_key(ec) : NULL;

		if (group != NULL && point != NULL &&
			EC_GROUP_get_curve_name(group) == NID_X9_62_prime256v1)
		{
			BIGNUM *x = BN_new();
			BIGNUM *y = BN_new();
			uint8_t x_bytes[P256_BYTES];
			uint8_t y_bytes[P256_BYTES];
			cjose_jwk_ec_keyspec spec;
			cjose_jwk_t *jwk = NULL;

			memset(&spec, 0, sizeof(spec));
			spec.crv = CJOSE_JWK_EC_P_256;
			spec.x = x_bytes;
			spec.xlen = P256_BYTES;
			spec.y = y_bytes;
			spec.ylen = P256_BYTES;
			if (x != NULL && y != NULL &&
				EC_POINT_get_affine_coordinates(group, point, x, y, NULL) == 1 &&
				BN_bn2binpad(x, x_bytes, P256_BYTES) == P256_BYTES &&
				BN_bn2binpad(y, y_bytes, P256_BYTES) == P256_BYTES)
				jwk = cjose_jwk_create_EC_spec(&spec, NULL);
			BN_free(x);
			BN_free(y);
			AddKey(&public_file, JWT_ES256, jwk, 0);
			return;
		}
	}
	Note(NULL, "the key of \"%s\" (%s) is not used: only RSA keys and EC keys on P-256 are",
		 public_file.path, public_file.name);
}

/* The key of a PEM block, or NULL.  A certificate only carries a key: who
 * issued it and until when does not matter to tokens. */
static EVP_PKEY *
DecodePublicKey(const char *name, const unsigned char *data, long length)
{
	if (strcmp(name, PEM_STRING_PUBLIC) == 0)
		return d2i_PUBKEY(NULL, &data, length);
	if (strcmp(name, PEM_STRING_RSA_PUBLIC) == 0)
		return d2i_PublicKey(EVP_PKEY_RSA, NULL, &data, length);
	if (strcmp(name, PEM_STRING_X509) == 0)
	{
		X509 *certificate = d2i_X509(NULL, &data, length);
		EVP_PKEY *pkey = certificate != NULL ? X509_get_pubkey(certificate) : NULL;

		X509_free(certificate);
		return pkey;
	}
	return NULL;
}

static void
LoadPublicKey(void)
{
	Size length;
	char *content = ReadKeyFile(&public_file, &length);
	BIO *bio;
	EVP_PKEY *pkey = NULL;
	int more = 0;
	char *name;
	char *header;
	unsigned char *data;
	long data_length;

	if (content == NULL)
		return;

	/*
	 * Only the first key counts.  The others of a file with several are most
	 * likely those of the authorities that issued a certificate, and they
	 * must not be able to sign tokens.
	 */
	bio = BIO_new_mem_buf(content, length);
	while (bio != NULL && PEM_read_bio(bio, &name, &header, &data, &data_length) == 1)
	{
		if (pkey == NULL)
			pkey = DecodePublicKey(name, data, data_length);
		else
			more++;
		OPENSSL_free(name);
		OPENSSL_free(header);
		OPENSSL_free(data);
	}
	BIO_free(bio);

	if (pkey == NULL)
		Note("Write it with: openssl pkey -in private.pem -pubout",
			 "\"%s\" (%s) holds no public key or certificate in PEM format", public_file.path,
			 public_file.name);
	else
		AddPublicKey(pkey);
	if (more > 0)
		Note("Several keys belong into changefeed.jwks_file.",
			 "only the first key of \"%s\" (%s) is used", public_file.path, public_file.name);
	EVP_PKEY_free(pkey);
	ERR_clear_error();
	pfree(content);
}

/* ----------------------------------------------------------------------
 * JSON Web Key Sets
 * ---------------------------------------------------------------------- */

static bool
MemberIs(const json_t *object, const char *name, const char *value)
{
	const char *string = json_string_value(json_object_get(object, name));

	return string != NULL && strcmp(string, value) == 0;
}

/* Missing, or this value? */
static bool
MemberAllows(const json_t *object, const char *name, const char *value)
{
	return json_object_get(object, name) == NULL || MemberIs(object, name, value);
}

/* "key_ops" missing, or with "verify" in it? */
static bool
MayVerify(const json_t *entry)
{
	const json_t *operations = json_object_get(entry, "key_ops");
	size_t i;
	json_t *operation;

	if (operations == NULL)
		return true;
	json_array_foreach(operations, i, operation)
	{
		if (json_is_string(operation) && strcmp(json_string_value(operation), "verify") == 0)
			return true;
	}
	return false;
}

/*
 * cjose stops decoding at a "=" wherever it is, and an assertion of its own ends
 * the process if one character of a group is left then.
 */
static bool
IsBase64Url(const char *text, Size length)
{
	Size n = strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_");

	return n % 4 != 1 && n + strspn(text + n, "=") == length;
}

/*
 * Takes the public members only, so that neither private parts nor members
 * that cjose might learn about get in.  NULL if one is missing, or is no text of
 * its kind: those of one letter are numbers, the others are names.
 */
static cjose_jwk_t *
ImportKey(const json_t *entry, const char *const *members)
{
	json_t *copy = json_loads("{}", 0, NULL);
	cjose_jwk_t *jwk = NULL;
	bool complete = copy != NULL;

	for (; complete && *members != NULL; members++)
	{
		json_t *member = json_object_get(entry, *members);

		complete = json_is_string(member) && json_string_length(member) > 0 &&
				   (strlen(*members) > 1 ||
					IsBase64Url(json_string_value(member), json_string_length(member))) &&
				   json_object_set(copy, *members, member) == 0;
	}
	if (complete)
		jwk = cjose_jwk_import_json((cjose_header_t *) copy, NULL);
	json_decref(copy);
	return jwk;
}

static void
AddEntry(const json_t *entry, int number)
{
	static const char *const rsa_members[] = {"kty", "n", "e", NULL};
	static const char *const ec_members[] = {"kty", "crv", "x", "y", NULL};
	static const char *const oct_members[] = {"kty", "k", NULL};
	const json_t *kid = json_object_get(entry, "kid");
	const char *const *members;
	const char *modulus;
	JwtAlgorithm algorithm;
	JwtKey *key;

	if (MemberIs(entry, "kty", "RSA") && MemberAllows(entry, "alg", "RS256"))
	{
		algorithm = JWT_RS256;
		members = rsa_members;
	}
	else if (MemberIs(entry, "kty", "EC") && MemberIs(entry, "crv", "P-256") &&
			 MemberAllows(entry, "alg", "ES256"))
	{
		algorithm = JWT_ES256;
		members = ec_members;
	}
	else if (MemberIs(entry, "kty", "oct") && MemberAllows(entry, "alg", "HS256"))
	{
		algorithm = JWT_HS256;
		members = oct_members;
	}
	else
	{
		Note("Supported are RSA for RS256, EC on P-256 for ES256 and oct for HS256.",
			 "key %d of \"%s\" (%s) is skipped: its type or algorithm is not supported", number,
			 set_file.path, set_file.name);
		return;
	}
	if (!MemberAllows(entry, "use", "sig") || !MayVerify(entry))
	{
		Note(NULL, "key %d of \"%s\" (%s) is skipped: it is not for signatures", number,
			 set_file.path, set_file.name);
		return;
	}
	if (algorithm == JWT_HS256 && set_file.exposed)
	{
		Note("Use chmod 0600, and the server's user as its owner.",
			 "key %d of \"%s\" (%s) is skipped: it is a secret, and others may read the file",
			 number, set_file.path, set_file.name);
		return;
	}
	if (kid != NULL && (!json_is_string(kid) || json_string_length(kid) > JWT_MAX_KID))
	{
		Note(NULL, "key %d of \"%s\" (%s) is skipped: its kid is not valid", number, set_file.path,
			 set_file.name);
		return;
	}

	/* Six bits to a character of base64url */
	modulus = json_string_value(json_object_get(entry, "n"));
	key = AddKey(&set_file, algorithm, ImportKey(entry, members),
				 modulus != NULL ? strlen(modulus) * 6 : 0);
	if (key != NULL && kid != NULL)
	{
		key->has_kid = true;
		strlcpy(key->kid, json_string_value(kid), sizeof(key->kid));
	}
}

static void
LoadSet(void)
{
	Size allocated = set_file.limit + 1;
	Size length;
	char *content = ReadKeyFile(&set_file, &length);
	json_t *root;
	json_t *list;
	json_t *entry;
	size_t i;

	if (content == NULL)
		return;

	root = json_loadb(content, length, JSON_REJECT_DUPLICATES, NULL);
	list = json_object_get(root, "keys");
	if (!json_is_array(list))
		Note(NULL, "\"%s\" (%s) is not a JSON object with an array \"keys\"", set_file.path,
			 set_file.name);
	json_array_foreach(list, i, entry)
	{
		AddEntry(entry, i + 1);
	}
	json_decref(root);
	ERR_clear_error();
	explicit_bzero(content, allocated);
	pfree(content);
}

/* ----------------------------------------------------------------------
 * Interface
 * ---------------------------------------------------------------------- */

static void
LoadKeys(void)
{
	JwtKeysForget();
	n_notes = 0;
	n_notes_lost = 0;
	for (int i = 0; i < lengthof(key_files); i++)
		CurrentPath(key_files[i], key_files[i]->path);

	LoadSecret();
	LoadPublicKey();
	LoadSet();

	/* An error above leaves this false, and the next token tries again. */
	loaded = true;
	last_check = Seconds();
	ReportNotes();
}

uint64
JwtKeysRefresh(bool eager)
{
	bool stale = !loaded;
	char path[MAXPGPATH];
	double now;

	for (int i = 0; i < lengthof(key_files) && !stale; i++)
	{
		CurrentPath(key_files[i], path);
		stale = strcmp(path, key_files[i]->path) != 0;
	}

	now = Seconds();
	if (!stale && now - last_check >= (eager ? EAGER_INTERVAL : CHECK_INTERVAL))
	{
		last_check = now;
		for (int i = 0; i < lengthof(key_files) && !stale; i++)
			stale = FileChanged(key_files[i]);
	}

	if (stale)
		LoadKeys();
	return generation;
}

const JwtKey *
JwtKeys(int *count)
{
	*count = n_keys;
	return keys;
}

void
JwtKeysForget(void)
{
	while (n_keys > 0)
		cjose_jwk_release(keys[--n_keys].jwk);
	loaded = false;
	generation++;
}
