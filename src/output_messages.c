/*-------------------------------------------------------------------------
 *
 * output_messages.c
 *		Which messages in the WAL are those of changefeed.publish.
 *
 * Anybody may write a message with our prefix (pg_logical_emit_message).
 * message_wal.c tells whether the bytes are ours; here is found out whether they
 * are where they were written: in their transaction, once, in their order.
 *
 * Process: decoder.  Memory: that of the callback.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "decoder.h"
#include "message_wal.h"
#include "output_plugin.h"

#include "utils/timestamp.h"

/* It is said again after this time (ms) that messages are dropped. */
#define SAID_INTERVAL 60000

/* Running transactions whose messages are known: see KnowsImmediate. */
#define IMMEDIATE_KNOWN 256

static uint32 last_message = 0; /* the counter of the transaction's last one */

void
OutputMessagesBegin(void)
{
	last_message = 0;
}

/*
 * Has a message that did not wait for its transaction come before?  Whoever
 * has its bytes could repeat it as long as the transaction runs.
 */
static bool
KnowsImmediate(uint64 xid, uint32 counter)
{
	static struct
	{
		uint64 xid;
		uint32 counter;
	} known[IMMEDIATE_KNOWN];
	static int next = 0;

	for (int i = 0; i < IMMEDIATE_KNOWN; i++)
	{
		if (known[i].xid != xid)
			continue;
		if (counter <= known[i].counter)
			return true;
		known[i].counter = counter;
		return false;
	}
	known[next].xid = xid;
	known[next].counter = counter;
	next = (next + 1) % IMMEDIATE_KNOWN;
	return false;
}

static bool
ReadMessage(uint64 xid, bool transactional, const char *data, Size size, WalMessage *message)
{
	static TimestampTz said = 0;
	MemoryContext context = CurrentMemoryContext;
	volatile bool good = false;

	PG_TRY();
	{
		good = MessageRead(data, size, message);
	}
	PG_CATCH();
	{
		char *why = PluginCatch(context);

		if (TimestampDifferenceExceeds(said, GetCurrentTimestamp(), SAID_INTERVAL))
		{
			said = GetCurrentTimestamp();
			ereport(LOG, (errmsg("could not check a message in the WAL: %s", why)));
		}
	}
	PG_END_TRY();
	if (!good || message->transactional != transactional || xid == 0 || message->xid != xid)
		return false;
	if (!transactional)
		return !KnowsImmediate(message->xid, message->counter);
	if (message->counter <= last_message)
		return false;
	last_message = message->counter;
	return true;
}

static void
NoteForged(void)
{
	static TimestampTz said = 0;
	static uint64 count = 0;
	TimestampTz now = GetCurrentTimestamp();

	count++;
	pg_atomic_write_u64(&decoder_feed->decoder_forged,
						pg_atomic_read_u64(&decoder_feed->decoder_forged) + 1);
	if (!TimestampDifferenceExceeds(said, now, SAID_INTERVAL))
		return;
	said = now;
	ereport(LOG,
			(errmsg_plural("dropped " UINT64_FORMAT
						   " message in the WAL that changefeed.publish did not write as it is",
						   "dropped " UINT64_FORMAT
						   " messages in the WAL that changefeed.publish did not write as they are",
						   count, count),
			 errdetail("Somebody may have used pg_logical_emit_message with the prefix \"%s\".",
					   MESSAGE_PREFIX)));
	count = 0;
}

bool
OutputReadMessage(uint64 xid, bool transactional, const char *data, Size size, WalMessage *message)
{
	bool good = ReadMessage(xid, transactional, data, size, message);

	if (!good)
		NoteForged();
	return good;
}
