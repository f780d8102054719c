/*-------------------------------------------------------------------------
 *
 * protocol_time.c
 *		What the client protocol does by time: heartbeats, answers to `sync`,
 *		tokens that expire.
 *
 * Process: feed worker.  Memory: what waits is in feed_context.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "feed.h"
#include "gateways.h"


#include "access/transam.h"
#include "access/xact.h"
#include "storage/procarray.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

/* A warning comes this long before a token expires, or half way if it has less. */
#define EXPIRY_WARNING 60

/* Syncs of one connection that wait. */
#define MAX_SYNCS 100

typedef struct PendingSync
{
	XLogRecPtr lsn;
	uint64 settled;					/* all smaller xids had ended when it came */
	uint32 mark;					/* behind its answer, of which the gateway has not said that
					 * it went out; 0: none was sent */
	char id[FLEXIBLE_ARRAY_MEMBER]; /* JSON; with it, as it goes with its connection */
} PendingSync;

/*
 * All transactions with an xid below `settled_xid` had ended when `lsn` was
 * the end of WAL: once we have come there, they have been delivered or never
 * will be.
 */
static uint64 settled_xid;
static uint64 candidate_xid;
static XLogRecPtr candidate_lsn;

/* Numbers of the connections with `asks_sync`. */
static uint64 *asking;
static int nasking;
static int max_asking;

static uint32 last_mark;
static int64 next_expiry; /* seconds since 1970; 0: nobody's */

static int64
Seconds(TimestampTz time)
{
	return (int64) timestamptz_to_time_t(time);
}

void
ProtocolNoteExpiry(Connection *connection, int64 expires)
{
	int64 now = Seconds(feed_now);
	int64 due;

	connection->expires = expires;
	if (expires == 0)
		return;
	due = expires - EXPIRY_WARNING;
	if (due < now)
		due = now + (expires - now) / 2;
	connection->expiry_warning = due;
	if (next_expiry == 0 || due < next_expiry)
		next_expiry = due;
}

/* The oldest transaction that is still running, with its epoch. */
static uint64
OldestRunning(void)
{
	TransactionId xid = GetOldestActiveTransactionId();

	return TransactionIdIsValid(xid) ? LogFullXid(xid) : 0;
}

/* It has a sync to be answered. */
static void
NoteSync(Connection *connection)
{
	if (connection->asks_sync)
		return;
	if (nasking == max_asking)
	{
		max_asking = Max(max_asking * 2, 64);
		asking = asking == NULL ? MemoryContextAlloc(feed_context, sizeof(uint64) * max_asking)
								: repalloc(asking, sizeof(uint64) * max_asking);
	}
	connection->asks_sync = true;
	asking[nasking++] = connection->id;
}

void
ProtocolSync(Connection *connection, const char *id)
{
	PendingSync *sync;
	MemoryContext old;

	if (list_length(connection->syncs) >= MAX_SYNCS)
	{
		ProtocolError(connection, id, NULL, "53400", "too many syncs are waiting for their answer",
					  "Wait for \"synced\" before sending the next \"sync\".");
		return;
	}
	old = MemoryContextSwitchTo(feed_context);

	sync = palloc0(offsetof(PendingSync, id) + strlen(id) + 1);
	strcpy(sync->id, id);
	sync->settled = OldestRunning(); /* before the LSN */
	sync->lsn = SharedInsertLsn();
	connection->syncs = lappend(connection->syncs, sync);
	MemoryContextSwitchTo(old);
	NoteSync(connection);
}

static void
AdvanceSettled(void)
{
	if (candidate_lsn != InvalidXLogRecPtr && LogReached(candidate_lsn))
	{
		settled_xid = Max(settled_xid, candidate_xid);
		candidate_lsn = InvalidXLogRecPtr;
	}
}

void
ProtocolPing(Gateway *gateway, const uint32 *numbers, uint32 count)
{
	char position[POSITION_COMMON + 1];
	uint32 *live = palloc(sizeof(uint32) * Max(count, 1));
	int nlive = 0;
	char *before;
	char *after;
	uint32 i;

	if (candidate_lsn == InvalidXLogRecPtr)
	{
		candidate_xid = OldestRunning();
		candidate_lsn = SharedInsertLsn();
	}
	AdvanceSettled();
	after = psprintf("\",\"settled_txid\":\"" UINT64_FORMAT "\"}", settled_xid);
	position[POSITION_COMMON] = '\0';
	for (i = 0; i < count; i++)
	{
		Connection *connection = ConnectionFind(gateway, numbers[i]);

		if (connection == NULL || connection->closing)
			continue;

		/* There is no name for a place that the log has left behind. */
		DeliverCheckBase(connection);
		if (PaceIsPending(connection))
		{
			/* No position counts for all, and nothing is settled. */
			GatewayPing(gateway, &numbers[i], 1, "", 0, "{\"type\":\"ping\"}", 15);
			continue;
		}
		if (connection->live)
		{
			live[nlive++] = numbers[i];
			continue;
		}

		/* What it has been sent ends here; nothing is settled for it. */
		LogPosition(connection->cursor, position);
		before = psprintf("{\"type\":\"ping\",\"position\":\"%s", position);
		GatewayPing(gateway, &numbers[i], 1, before, strlen(before), "\"}", 2);
	}
	LogPosition(LogPublished(), position);
	before = psprintf("{\"type\":\"ping\",\"position\":\"%s", position);
	GatewayPing(gateway, live, nlive, before, strlen(before), after, strlen(after));
	pfree(live);
}

/*
 * Answered syncs are kept until the gateway has flushed them: if it drops
 * frames that lie before the answer, it drops the answer, too, and there is
 * another one when the client has got the frames.
 */
static void
AnswerSyncs(Connection *connection)
{
	uint32 mark = 0;
	bool pending;
	ListCell *lc;

	if (!connection->live || connection->identity == NULL || connection->closing)
		return;
	foreach(lc, connection->syncs)
	{
		PendingSync *sync = lfirst(lc);
		char position[POSITION_LENGTH + 1];
		char *m;

		if (sync->mark != 0)
			continue;
		if (!LogReached(sync->lsn) || !PaceSettled(connection, sync->lsn))
			break;
		pending = PaceIsPending(connection);
		LogPosition(LogPublished(), position);
		memcpy(position + POSITION_COMMON, connection->identity->tag, POSITION_TAG);
		position[POSITION_LENGTH] = '\0';

		/* What has come since, and was put off, may lie before it. */
		m = psprintf("{\"type\":\"synced\",\"id\":%s%s%s%s,\"settled_txid\":\"" UINT64_FORMAT "\"}",
					 sync->id, pending ? "" : ",\"position\":\"", pending ? "" : position,
					 pending ? "" : "\"", sync->settled);
		GatewaySynced(connection, m, strlen(m));
		if (mark == 0)
			mark = last_mark = Max(last_mark + 1, MARK_SYNC);
		sync->mark = mark;
	}
	if (mark != 0)
		GatewayMark(connection, mark);
}

void
ProtocolSyncsFlushed(Connection *connection, uint32 mark)
{
	while (connection->syncs != NIL)
	{
		PendingSync *sync = linitial(connection->syncs);

		/* Later ones may still be dropped. */
		if (sync->mark == 0 || (int32) (sync->mark - mark) > 0)
			break;
		connection->syncs = list_delete_first(connection->syncs);
		pfree(sync);
	}
}

void
ProtocolSyncsLost(Connection *connection)
{
	ListCell *lc;

	foreach(lc, connection->syncs)
		((PendingSync *) lfirst(lc))->mark = 0;
	if (connection->syncs != NIL)
		NoteSync(connection);
}

/* They are answered in their order, so the last one tells whether all are. */
static void
AdvanceSyncs(void)
{
	int kept = 0;
	int i;

	for (i = 0; i < nasking; i++)
	{
		Connection *connection = ConnectionById(asking[i]);

		if (connection == NULL)
			continue;
		AnswerSyncs(connection);
		if (connection->syncs != NIL && ((PendingSync *) llast(connection->syncs))->mark == 0)
			asking[kept++] = asking[i];
		else
			connection->asks_sync = false;
	}
	nasking = kept;
}

static int64 expiry_now;
static int64 expiry_next;

static void
CheckExpiry(Connection *connection)
{
	int64 due;

	if (connection->expires == 0 || connection->closing)
		return;
	if (connection->expires <= expiry_now)
	{
		ProtocolRevokeAll(connection, "token_expired");
		ProtocolError(connection, NULL, NULL, "28000", "token has expired",
					  "Connect again with a fresh token.");
		GatewayClose(connection, LINK_CLOSE_TOKEN_EXPIRED, "token expired");
		return;
	}
	if (connection->expiry_warning != 0 && connection->expiry_warning <= expiry_now)
	{
		char *m = psprintf(
			"{\"type\":\"error\",\"code\":\"28000\",\"message\":\"token expires soon\",\"hint\":\"Send a fresh token.\",\"expires_at\":\"%s\"}",
			ProtocolIsoTime(connection->expires));

		ProtocolSend(connection, m, strlen(m));
		connection->expiry_warning = 0;
	}
	due = connection->expiry_warning == 0 ? connection->expires : connection->expiry_warning;
	if (expiry_next == 0 || due < expiry_next)
		expiry_next = due;
}

long
ProtocolAdvance(void)
{
	AdvanceSettled();
	PostponedAdvance();

	AdvanceSyncs();

	if (next_expiry == 0)
		return -1;
	expiry_now = Seconds(feed_now);
	if (next_expiry <= expiry_now)
	{
		expiry_next = 0;
		ConnectionForEach(CheckExpiry);
		next_expiry = expiry_next;
	}
	return next_expiry == 0 ? -1
							: (long) Max((next_expiry - expiry_now) * 1000 -
											 ((feed_now / 1000) % 1000 + 1000) % 1000 + 1,
										 1);
}
