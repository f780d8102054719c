/*-------------------------------------------------------------------------
 *
 * message_ddl.c
 *		The SQL function changefeed.publish.
 *
 * It writes the message to the WAL, from where it comes to the subscribers in
 * the order of commits, or at once.  A transaction ID is assigned in both
 * cases: the message is bound to it (message_wal.c).
 *
 * Process: any backend.  Memory: CurrentMemoryContext of the call.  Locks:
 * AccessShareLock on the channel catalog.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "ddl.h"
#include "message.h"
#include "message_wal.h"
#include "shared.h"
#include "template.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "replication/message.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(changefeed_publish);

/* What the transaction has sent; of a savepoint that is taken back, too. */
static uint64 sending_xid;
static uint32 sent_count;
static Size sent_bytes;

/* The name has to be that of one channel, which exists. */
static void
CheckChannel(const char *name)
{
	DdlAccess access;
	char *values[CHANNEL_PARAMS_MAX] = {0};
	bool found = false;
	bool starred = false;
	bool paced = false;
	uint64 n;
	uint64 i;
	int k;

	DdlBegin(&access);
	n = DdlRead("SELECT name, min_interval IS NOT NULL FROM changefeed.channel", 0, NULL, NULL);
	for (i = 0; i < n && !found; i++)
	{
		ChannelTemplate *template = TemplateParse(
			SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1));

		found = strlen(name) <= CHANNEL_NAME_MAX &&
				TemplateMatch(template, name, strlen(name), values);
		if (found)
		{
			bool isnull;

			paced = DatumGetBool(
				SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2, &isnull));
		}
		for (k = 0; found && k < template->nparams; k++)
			if (values[k] == NULL)
				starred = true;
	}
	DdlEnd(&access);
	if (!found)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("channel \"%s\" does not exist", name),
				 errhint("Give a name that a client could subscribe to, such as orders:42.")));
	if (starred)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a message is published to one channel"),
				 errhint("Give each parameter of the channel's name a value instead of \"*\".")));

	/* There is no frame of the transaction that it could follow. */
	if (paced)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("channel \"%s\" has a min_interval, so it has no messages of transactions",
						name),
				 errhint("Use a channel of its own for messages.")));
}

/* publish(channel, event, payload, transactional) */
Datum
changefeed_publish(PG_FUNCTION_ARGS)
{
	WalMessage message = {0};
	StringInfoData data;
	char *channel;
	char *event;
	char *payload;
	const char *problem;

	PreventCommandIfReadOnly("publish()");
	PreventCommandDuringRecovery("publish()");
	DdlRequireArgument(fcinfo, 0, "channel");
	DdlRequireArgument(fcinfo, 1, "event");
	DdlRequireArgument(fcinfo, 3, "transactional");
	channel = text_to_cstring(PG_GETARG_TEXT_PP(0));
	event = text_to_cstring(PG_GETARG_TEXT_PP(1));
	problem = MessageEventProblem(event, strlen(event));
	if (problem != NULL)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s", problem)));
	if (PG_ARGISNULL(2))
		payload = pstrdup("null");
	else
	{
		Jsonb *jsonb = PG_GETARG_JSONB_P(2);

		payload = JsonbToCString(NULL, &jsonb->root, VARSIZE(jsonb));
	}
	if (strlen(payload) > (Size) setting_max_payload * 1024)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("payload is longer than %d kB", setting_max_payload),
						errhint("Send less, or raise changefeed.max_payload.")));
	CheckChannel(channel);

	/* The record has the subtransaction's, by which decoding finds ours. */
	message.xid = U64FromFullTransactionId(GetTopFullTransactionId());
	(void) GetCurrentTransactionId();
	if (message.xid != sending_xid)
	{
		sending_xid = message.xid;
		sent_count = 0;
		sent_bytes = 0;
	}
	message.transactional = PG_GETARG_BOOL(3);
	message.counter = ++sent_count;
	message.time = GetCurrentTimestamp();
	message.channel = (WireBytes){channel, strlen(channel)};
	message.event = (WireBytes){event, strlen(event)};
	message.payload = (WireBytes){payload, strlen(payload)};
	initStringInfo(&data);
	MessageWrite(&data, &message);

	/* The feed worker holds all of them at a time. */
	sent_bytes += data.len;
	if (message.transactional && sent_bytes > (Size) setting_max_transaction * 1024)
		ereport(
			ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("messages of the transaction are longer than %d kB", setting_max_transaction),
			 errhint("Publish less in one transaction, or raise changefeed.max_transaction.")));

	compat_log_message(MESSAGE_PREFIX, data.data, data.len, message.transactional);
	if (!message.transactional && shared_feeds != NULL)
	{
		DatabaseFeed *feed = SharedFeedOfMyDatabase();

		if (feed != NULL)
		{
			pg_memory_barrier();
			SharedWakeDecoder(feed);
		}
	}
	PG_RETURN_VOID();
}
