/*-------------------------------------------------------------------------
 *
 * message_wal.c
 *		Messages in WAL: their format, and how they are known to be ours.
 *
 * Everybody may write messages to the WAL, with pg_logical_emit_message.  Those
 * of changefeed.publish therefore carry an HMAC-SHA256 under a key that only the
 * server has, over all that they say: database, transaction, a counter within
 * it, time and content.  A copy of a message is of no use in another
 * transaction, and in its own the decoder does not take a counter twice.
 *
 * The key is in a file of the data directory, which the first who needs it
 * makes; a copy of the cluster has it as well, and decodes the same WAL.
 *
 * Process: backends and the decoder.  Memory: results in CurrentMemoryContext;
 * the key is kept in the process.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "message_wal.h"
#include "wire_write.h"

#include <sys/stat.h>
#include <unistd.h>

#include "common/hmac.h"
#include "common/sha2.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#define KEY_FILE   "pg_changefeed_message.key" /* in the data directory */
#define KEY_LENGTH 32
#define VERSION	   1

/* After a failure the file is looked at again, but not more often (ms). */
#define RELOAD_INTERVAL 1000

static uint8 key[KEY_LENGTH];
static bool key_known = false;
static TimestampTz key_read;

/* ---- The key ---- */

/* False: there is no such file. */
static bool
ReadKey(void)
{
	struct stat st;
	uint8 bytes[KEY_LENGTH + 1];
	ssize_t n = -1;
	int save_errno;
	int fd = OpenTransientFile(KEY_FILE, O_RDONLY | PG_BINARY);

	if (fd < 0)
	{
		if (errno == ENOENT)
			return false;
		ereport(ERROR,
				(errcode_for_file_access(), errmsg("could not open file \"%s\": %m", KEY_FILE)));
	}

	/* Closed before any error: the decoder catches them, and goes on. */
	if (fstat(fd, &st) == 0)
		n = read(fd, bytes, sizeof(bytes));
	save_errno = errno;
	CloseTransientFile(fd);
	errno = save_errno;
	if (n < 0)
		ereport(ERROR,
				(errcode_for_file_access(), errmsg("could not read file \"%s\": %m", KEY_FILE)));
	if ((st.st_mode & (S_IRWXG | S_IRWXO)) != 0)
		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("file \"%s\" in the data directory can be read by others", KEY_FILE),
			 errhint(
				 "Remove it, as its key may be known: a new one is made. Then restart the server.")));
	if (n != KEY_LENGTH)
		ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
						errmsg("file \"%s\" in the data directory has no key of %d bytes", KEY_FILE,
							   KEY_LENGTH),
						errhint("Remove it: a new one is made. Then restart the server.")));
	memcpy(key, bytes, KEY_LENGTH);
	key_known = true;
	key_read = GetCurrentTimestamp();
	return true;
}

/* Whoever comes second finds the file of the first. */
static void
MakeKey(void)
{
	char name[MAXPGPATH];
	uint8 bytes[KEY_LENGTH];
	int fd;

	if (!pg_strong_random(bytes, sizeof(bytes)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not generate random numbers")));
	snprintf(name, sizeof(name), "%s.%d.tmp", KEY_FILE, MyProcPid);
	(void) unlink(name);
	fd = OpenTransientFilePerm(name, O_WRONLY | O_CREAT | O_EXCL | PG_BINARY, S_IRUSR | S_IWUSR);
	if (fd < 0)
		ereport(ERROR,
				(errcode_for_file_access(), errmsg("could not create file \"%s\": %m", name)));
	if (write(fd, bytes, sizeof(bytes)) != sizeof(bytes) || pg_fsync(fd) != 0 ||
		CloseTransientFile(fd) != 0 || (link(name, KEY_FILE) != 0 && errno != EEXIST))
	{
		int save_errno = errno;

		(void) unlink(name);
		errno = save_errno;
		ereport(ERROR,
				(errcode_for_file_access(), errmsg("could not write file \"%s\": %m", KEY_FILE)));
	}
	(void) unlink(name);
	fsync_fname(".", true);
}

static void
RequireKey(void)
{
	if (key_known || ReadKey())
		return;
	MakeKey();
	if (!ReadKey())
		ereport(ERROR,
				(errcode_for_file_access(), errmsg("could not open file \"%s\": %m", KEY_FILE)));
}

/* ---- The HMAC ---- */

static void
Sign(const char *head, Size head_length, const char *rest, Size rest_length, uint8 *mac)
{
	static const char label[] = "pg_changefeed message";
	static ResourceOwner owner = NULL;
	ResourceOwner saved = CurrentResourceOwner;
	pg_hmac_ctx *hmac;
	bool good;

	/* The decoder has none between transactions, where it needs this. */
	if (owner == NULL)
		owner = ResourceOwnerCreate(NULL, "changefeed messages");
	CurrentResourceOwner = owner;
	hmac = pg_hmac_create(PG_SHA256);
	CurrentResourceOwner = saved;
	if (hmac == NULL)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	good = pg_hmac_init(hmac, key, KEY_LENGTH) >= 0 &&
		   pg_hmac_update(hmac, (const uint8 *) label, sizeof(label)) >= 0 &&
		   pg_hmac_update(hmac, (const uint8 *) head, head_length) >= 0 &&
		   pg_hmac_update(hmac, (const uint8 *) rest, rest_length) >= 0 &&
		   pg_hmac_final(hmac, mac, PG_SHA256_DIGEST_LENGTH) >= 0;
	pg_hmac_free(hmac);
	if (!good)
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not compute an HMAC")));
}

static bool
IsSigned(const char *head, Size head_length, const char *rest, Size rest_length, const char *mac)
{
	uint8 expected[PG_SHA256_DIGEST_LENGTH];
	uint8 differs = 0;
	int i;

	Sign(head, head_length, rest, rest_length, expected);
	for (i = 0; i < PG_SHA256_DIGEST_LENGTH; i++)
		differs |= expected[i] ^ (uint8) mac[i];
	return differs == 0;
}

/* ---- The format: u8 version, u8 transactional, u32 database, u64 xid, u32
 * counter, u64 time, HMAC, bytes channel, bytes event, bytes payload ---- */

#define HEAD_LENGTH 26

/* No message is longer, whatever the settings. */
#define MESSAGE_WAL_MAX ((Size) MAX_PAYLOAD_KB * 1024 + 4096)

void
MessageWrite(StringInfo out, const WalMessage *message)
{
	uint8 mac[PG_SHA256_DIGEST_LENGTH];
	StringInfoData rest;

	RequireKey();
	initStringInfo(&rest);
	WirePutBytes(&rest, message->channel.data, message->channel.length);
	WirePutBytes(&rest, message->event.data, message->event.length);
	WirePutBytes(&rest, message->payload.data, message->payload.length);
	WirePutU8(out, VERSION);
	WirePutU8(out, message->transactional);
	WirePutU32(out, MyDatabaseId);
	WirePutU64(out, message->xid);
	WirePutU32(out, message->counter);
	WirePutU64(out, (uint64) message->time);
	Assert(out->len == HEAD_LENGTH);
	Sign(out->data, out->len, rest.data, rest.len, mac);
	appendBinaryStringInfo(out, (char *) mac, sizeof(mac));
	appendBinaryStringInfo(out, rest.data, rest.len);
	pfree(rest.data);
}

bool
MessageRead(const char *data, Size size, WalMessage *message)
{
	WireReader in = WireReaderInit(data, size);
	const char *mac;
	const char *rest;
	uint32 database;
	TimestampTz now = GetCurrentTimestamp();

	/* Not worth computing an HMAC over it. */
	if (size > MESSAGE_WAL_MAX)
		return false;
	if (WireGetU8(&in) != VERSION)
		return false;
	message->transactional = WireGetU8(&in) != 0;
	database = WireGetU32(&in);
	message->xid = WireGetU64(&in);
	message->counter = WireGetU32(&in);
	message->time = (TimestampTz) WireGetU64(&in);
	mac = WireTake(&in, PG_SHA256_DIGEST_LENGTH);
	if (in.failed || database != MyDatabaseId)
		return false;
	rest = data + in.offset;
	message->channel = WireGetBytes(&in);
	message->event = WireGetBytes(&in);
	message->payload = WireGetBytes(&in);
	if (in.failed || !WireAtEnd(&in))
		return false;

	/* Nobody has written one if there is no key. */
	if (!key_known && !ReadKey())
		return false;
	if (IsSigned(data, HEAD_LENGTH, rest, data + size - rest, mac))
		return true;

	/* Somebody may have removed the file, so that there is another one now. */
	if (!TimestampDifferenceExceeds(key_read, now, RELOAD_INTERVAL))
		return false;
	key_read = now; /* of a failure, too */
	if (!ReadKey())
		return false;
	return IsSigned(data, HEAD_LENGTH, rest, data + size - rest, mac);
}
