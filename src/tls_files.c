/*-------------------------------------------------------------------------
 *
 * tls_files.c
 *		Certificate and key of TLS, from the files that the settings name.
 *
 * The gateway may open no file, so the feed worker reads both, finds out
 * whether they can be used (tls_pair.c), and keeps their text for gateways that
 * are started later.  The key travels in an anonymous file of memory: nothing
 * of it stays in the buffers of a link.
 *
 * Where TLS is wanted and cannot be had nothing is bound: clients that cannot
 * connect are noticed, clients whose tokens travel in plain text are not.  A
 * reload that finds bad files changes nothing.
 *
 * Process: feed worker.  Memory: the texts are malloc'ed, wiped and freed when
 * they are replaced.  While objects of OpenSSL are alive nothing raises an
 * error.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "tls_files.h"
#include "tls_pair.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "miscadmin.h"
#include "storage/fd.h"

#include "pg_changefeed.h"

#define MAX_CERTIFICATES (256 * 1024)
#define MAX_KEY			 (64 * 1024) /* tls.c of the gateway has room for this */

typedef struct Text
{
	char *data; /* malloc'ed; NULL: none */
	Size length;
} Text;

/* Why the files cannot be used. */
typedef struct Failure
{
	char detail[2 * MAXPGPATH + 256];
	const char *hint; /* may be NULL */
} Failure;

/* What gateways use; both or none. */
static Text certificates;
static Text private_key;

/* The last reason that was logged. */
static char logged[sizeof(((Failure *) NULL)->detail)];

static void
Wipe(Text *text)
{
	if (text->data != NULL)
		explicit_bzero(text->data, text->length);
	free(text->data);
	text->data = NULL;
	text->length = 0;
}

static void
	pg_attribute_printf(3, 4) Fail(Failure *failure, const char *hint, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(failure->detail, sizeof(failure->detail), format, arguments);
	va_end(arguments);
	failure->hint = hint;
}

static void
Path(const char *setting, char *path)
{
	if (is_absolute_path(setting))
		strlcpy(path, setting, MAXPGPATH);
	else
		snprintf(path, MAXPGPATH, "%s/%s", DataDir, setting);
}

/* Reads at most `limit` bytes of the open file. */
static bool
ReadAll(int fd, Size limit, Text *text)
{
	text->data = malloc(limit + 1);
	text->length = 0;
	if (text->data == NULL)
	{
		errno = ENOMEM;
		return false;
	}
	while (text->length < limit)
	{
		ssize_t n = read(fd, text->data + text->length, limit - text->length);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return false;
		if (n == 0)
			break;
		text->length += n;
	}
	return true;
}

/*
 * The content of a file.  Owner and mode of a key are checked on the open file,
 * by the rule for the server's own: ours and for nobody else, or root's and at
 * most readable by one of our groups.
 */
static bool
ReadFile(const char *setting, const char *path, bool secret, Size limit, Text *text,
		 Failure *failure)
{
	struct stat state;
	bool done = false;

	/* O_NONBLOCK: a named pipe must not make the feed wait. */
	int fd = OpenTransientFile(path, O_RDONLY | O_NONBLOCK | PG_BINARY);

	if (fd < 0)
	{
		Fail(failure, NULL, "File \"%s\" of %s could not be opened: %s.", path, setting,
			 strerror(errno));
		return false;
	}
	if (fstat(fd, &state) != 0 || !S_ISREG(state.st_mode))
		Fail(failure, NULL, "\"%s\" of %s is not a regular file.", path, setting);
	else if (secret && state.st_uid != geteuid() && state.st_uid != 0)
		Fail(failure, "Make the server's user its owner, or root.",
			 "File \"%s\" of %s belongs to another user.", path, setting);
	else if (secret && (state.st_mode & (state.st_uid == geteuid() ? 077 : 037)) != 0)
		Fail(
			failure,
			"Use chmod 0600, or 0640 if root owns it and one of the groups of the server's user may read it.",
			"File \"%s\" of %s can be read by others.", path, setting);
	else if (state.st_size > (off_t) limit)
		Fail(failure, NULL, "File \"%s\" of %s is larger than %zu kB.", path, setting,
			 limit / 1024);
	else if (!ReadAll(fd, limit, text))
		Fail(failure, NULL, "File \"%s\" of %s could not be read: %s.", path, setting,
			 strerror(errno));
	else
		done = true;
	CloseTransientFile(fd);
	return done;
}

static void
Describe(TlsProblem problem, const char *cert, const char *key, const char *reason,
		 Failure *failure)
{
	switch (problem)
	{
		case TLS_FINE:
			break;
		case TLS_NO_CERTIFICATE:
			Fail(failure, NULL, "File \"%s\" holds no certificate in PEM format.", cert);
			break;
		case TLS_BAD_CHAIN:
			Fail(failure, NULL, "A certificate behind the first one in file \"%s\" is damaged.",
				 cert);
			break;
		case TLS_NO_KEY:
			Fail(failure, NULL, "File \"%s\" holds no private key in PEM format.", key);
			break;
		case TLS_KEY_ENCRYPTED:
			Fail(failure, "Store it without one, closed to everybody but the server's user.",
				 "The private key in file \"%s\" is protected by a passphrase.", key);
			break;
		case TLS_MISMATCH:
			Fail(failure,
				 "The server's own certificate comes first in its file, then those of its issuers.",
				 "The private key in file \"%s\" does not belong to the certificate in file "
				 "\"%s\".",
				 key, cert);
			break;
		case TLS_REFUSED:
			Fail(failure, NULL, "OpenSSL refuses the certificate in file \"%s\": %s.", cert,
				 reason);
			break;
		case TLS_NO_MEMORY:
			Fail(failure, NULL, "There is not enough memory.");
			break;
	}
}

/* Tells whose time has not come or is over, and until when it is good. */
static void
ReportPair(const TlsPair *pair, const char *path)
{
	char until[64];
	int age = TlsPairAge(pair);

	TlsPairValidUntil(pair, until, sizeof(until));
	if (age != 0)
		ereport(WARNING,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 age > 0 ? errmsg("certificate \"%s\" of the change feed has expired", path)
						 : errmsg("certificate \"%s\" of the change feed is not valid yet", path),
				 errdetail("It is valid until %s.", until),
				 errhint("It is used all the same, and clients will refuse it.")));
	else
		ereport(LOG, (errmsg("changefeed uses TLS with certificate \"%s\"", path),
					  errdetail("It is valid until %s.", until)));
}

/* Reads what the settings name; false: `failure` says what is wrong. */
static bool
ReadPair(Text *new_certificates, Text *new_key, TlsPair *pair, Failure *failure)
{
	char cert[MAXPGPATH];
	char key[MAXPGPATH];
	char reason[128];
	TlsProblem problem;

	if (setting_tls_cert_file[0] == '\0' || setting_tls_key_file[0] == '\0')
	{
		bool no_key = setting_tls_key_file[0] == '\0';

		Fail(failure, "Set both, or none of them.", "%s is set, and %s is not.",
			 no_key ? "changefeed.tls_cert_file" : "changefeed.tls_key_file",
			 no_key ? "changefeed.tls_key_file" : "changefeed.tls_cert_file");
		return false;
	}
	Path(setting_tls_cert_file, cert);
	Path(setting_tls_key_file, key);
	if (!ReadFile("changefeed.tls_cert_file", cert, false, MAX_CERTIFICATES, new_certificates,
				  failure) ||
		!ReadFile("changefeed.tls_key_file", key, true, MAX_KEY, new_key, failure))
		return false;
	problem = TlsPairRead(pair, new_certificates->data, new_certificates->length, new_key->data,
						  new_key->length, reason, sizeof(reason));
	Describe(problem, cert, key, reason, failure);
	return problem == TLS_FINE;
}

static bool
IsWanted(void)
{
	return setting_tls_cert_file[0] != '\0' || setting_tls_key_file[0] != '\0';
}

static bool
SameText(const Text *a, const Text *b)
{
	return a->length == b->length && a->data != NULL && b->data != NULL &&
		   memcmp(a->data, b->data, a->length) == 0;
}

/* Takes the files as they are now; false: what was in use stays. */
static bool
Load(Failure *failure, bool *changed)
{
	Text new_certificates = {0};
	Text new_key = {0};
	TlsPair pair = {0};
	bool good = ReadPair(&new_certificates, &new_key, &pair, failure);

	*changed = good &&
			   (!SameText(&certificates, &new_certificates) || !SameText(&private_key, &new_key));
	if (*changed)
	{
		Wipe(&certificates);
		Wipe(&private_key);
		certificates = new_certificates;
		private_key = new_key;
		ReportPair(&pair, setting_tls_cert_file);
	}
	else
	{
		Wipe(&new_certificates);
		Wipe(&new_key);
	}
	TlsPairFree(&pair);
	return good;
}

bool
TlsPrepare(bool quiet)
{
	Failure failure;
	bool changed;

	if (!IsWanted())
	{
		Wipe(&certificates);
		Wipe(&private_key);
		return true;
	}
	if (Load(&failure, &changed))
		return true;
	if (!quiet || strcmp(logged, failure.detail) != 0)
		ereport(LOG, (errcode(ERRCODE_CONFIG_FILE_ERROR),
					  errmsg("changefeed does not listen, because it cannot use TLS as it is set"),
					  errdetail_internal("%s", failure.detail),
					  failure.hint != NULL ? errhint("%s", failure.hint) : 0));
	strlcpy(logged, failure.detail, sizeof(logged));
	return false;
}

bool
TlsReload(void)
{
	Failure failure;
	bool changed;

	if (!IsWanted())
	{
		if (certificates.data == NULL)
			return false;
		Wipe(&certificates);
		Wipe(&private_key);
		ereport(LOG, (errmsg("changefeed uses no TLS any more for new connections")));
		return true;
	}
	if (Load(&failure, &changed))
		return changed;
	ereport(LOG, (errcode(ERRCODE_CONFIG_FILE_ERROR),
				  errmsg("certificate and key of the change feed were not read again"),
				  errdetail_internal("%s %s", failure.detail,
									 certificates.data != NULL
										 ? "The certificate that was loaded before stays in use."
										 : "Nothing has changed for clients."),
				  failure.hint != NULL ? errhint("%s", failure.hint) : 0));
	return false;
}

/* The key as a file of memory, or -1. */
static int
KeyFile(void)
{
	int fd = memfd_create("changefeed tls key", MFD_CLOEXEC);
	Size done = 0;

	while (fd >= 0 && done < private_key.length)
	{
		ssize_t n = write(fd, private_key.data + done, private_key.length - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
		{
			close(fd);
			return -1;
		}
		done += n;
	}
	return fd;
}

void
TlsSend(LinkFrame *link)
{
	int fd;

	if (certificates.data == NULL)
	{
		LinkFrameBegin(link, LINK_TLS);
		LinkFramePutBytes(link, "", 0);
		LinkFrameEnd(link);
		return;
	}
	fd = KeyFile();
	if (fd < 0)
		ereport(ERROR, (errcode_for_file_access(),
						errmsg("could not hand the private key of TLS to a gateway: %m")));
	LinkFrameBegin(link, LINK_TLS);
	LinkFramePutBytes(link, certificates.data, certificates.length);
	(void) LinkFrameEndWithDescriptor(link, fd);
	close(fd);
}
