/*-------------------------------------------------------------------------
 *
 * subscribe_messages.c
 *		What a client is told of its subscription: subscribed, the pages of the
 *		snapshot, ready.
 *
 * Process: feed worker.  Memory: the turn's.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "subscribe.h"
#include "gateways.h"
#include "http.h"
#include "presence.h"

#include <fcntl.h>

#include "storage/fd.h"
#include "utils/memutils.h"

/* `"entities":{...}` from the views and the catalog of now, and the channel's pace. */
static void
AppendEntities(Subscription *s, StringInfo m)
{
	Channel *channel = s->instance->channel;
	int i;
	int k;

	if (channel->min_interval > 0)
		appendStringInfo(m, "\"min_interval_ms\":%d,", channel->min_interval);
	appendStringInfoString(m, "\"entities\":{");
	for (i = 0; i < channel->nsources; i++)
	{
		Source *source = channel->sources[i];
		View *view = s->views[i];
		const char *name = view->names->data;

		if (i > 0)
			appendStringInfoChar(m, ',');
		EncodeString(m, source->entity, strlen(source->entity));
		appendStringInfoString(m, ":{\"key\":[");
		for (k = 0; k < source->nkey; k++)
		{
			if (k > 0)
				appendStringInfoChar(m, ',');
			EncodeString(m, source->key[k], strlen(source->key[k]));
		}
		appendStringInfoString(m, "],\"columns\":[");
		for (k = 0; k < view->ncolumns; k++)
		{
			if (k > 0)
				appendStringInfoChar(m, ',');
			EncodeString(m, name, strlen(name));
			name += strlen(name) + 1;
		}
		appendStringInfoString(m, "]}");
	}
	appendStringInfoChar(m, '}');
}

void
SubscribeTellSubscribed(Subscription *s, bool recovered)
{
	StringInfoData m;

	initStringInfo(&m);
	appendStringInfo(&m, "{\"type\":\"subscribed\",\"id\":%s,\"channel\":", s->load->request_id);
	appendBinaryStringInfo(&m, s->name->json, s->name->length);
	appendStringInfo(&m, ",\"recovered\":%s,", recovered ? "true" : "false");
	AppendEntities(s, &m);
	appendStringInfoChar(&m, '}');
	HttpMoves(s, recovered ? LINK_PART_SAME : LINK_PART_NONE, NULL, recovered);
	ProtocolSend(s->connection, m.data, m.len);
	HttpAnnounced(s);
	s->announced = true;
	s->announced_entities = true;
	pfree(s->load->request_id);
	s->load->request_id = NULL;
	PresenceSubscribed(s);
}

static void
PagePrefix(Subscription *s, int source, StringInfo out)
{
	const char *entity = s->instance->channel->sources[source]->entity;

	initStringInfo(out);
	appendStringInfoString(out, "{\"type\":\"snapshot\",\"channel\":");
	appendBinaryStringInfo(out, s->name->json, s->name->length);
	appendStringInfoString(out, ",\"entity\":");
	EncodeString(out, entity, strlen(entity));
	appendStringInfoString(out, ",\"rows\":");
}

void
SubscribeTellPages(Subscription *s)
{
	Channel *channel = s->instance->channel;
	SubscribeAnswer *answer = s->load->answer;
	StringInfo prefixes = palloc(sizeof(StringInfoData) * Max(channel->nsources, 1));
	int i;

	for (i = 0; i < channel->nsources; i++)
		PagePrefix(s, i, &prefixes[i]);

	if (answer->file != NULL)
	{
		int fd = OpenTransientFile(answer->file, O_RDONLY | PG_BINARY);

		if (fd < 0)
		{
			ereport(LOG, (errcode_for_file_access(),
						  errmsg("could not open snapshot file \"%s\": %m", answer->file)));
			SubscribeForget(s);
			SubscriptionSetState(s, SUB_QUERYING);
			SubscribeDelay(s);
			return;
		}
		SubscribePagesBegin(s);
		SubscribeAnswerRead(s);
		SubscriptionRenumber(s);
		GatewaySnapshot(s->connection, s->id, channel->nsources, prefixes, fd);
		CloseTransientFile(fd);
		SubscriptionSetState(s, SUB_LOADING);
		return;
	}

	if (answer->pages.data != NULL)
	{
		WireReader r = WireReaderInit(answer->pages.data, answer->pages.len);

		while (!WireAtEnd(&r))
		{
			uint32 source = WireGetU32(&r);
			WireBytes rows = WireGetBytes(&r);
			StringInfoData m;

			if (r.failed || source >= (uint32) channel->nsources)
				elog(ERROR, "malformed pages");
			initStringInfo(&m);
			appendBinaryStringInfo(&m, prefixes[source].data, prefixes[source].len);
			appendBinaryStringInfo(&m, rows.data, (int) rows.length);
			appendStringInfoChar(&m, '}');
			ProtocolSend(s->connection, m.data, m.len);
			pfree(m.data);
		}
		SubscribePagesSent(s, answer->pages.len);
	}
	SubscribeAnswerRead(s);
	SubscriptionSetState(s, SUB_CATCHUP);
}

void
SubscribeTellColumns(Subscription *s)
{
	StringInfoData m;

	initStringInfo(&m);
	appendStringInfoString(&m, "{\"type\":\"columns\",\"channel\":");
	appendBinaryStringInfo(&m, s->name->json, s->name->length);
	appendStringInfoChar(&m, ',');
	AppendEntities(s, &m);
	appendStringInfoChar(&m, '}');
	ProtocolSend(s->connection, m.data, m.len);
	pfree(m.data);
}

void
SubscribeTellReady(Subscription *s)
{
	StringInfoData m;
	char position[POSITION_LENGTH + 1];
	uint64 number = Max(s->cursor, s->since);
	int i;

	LogPosition(number, position);
	memcpy(position + POSITION_COMMON, s->connection->identity->tag, POSITION_TAG);
	position[POSITION_LENGTH] = '\0';
	initStringInfo(&m);
	appendStringInfoString(&m, "{\"type\":\"ready\",\"channel\":");
	appendBinaryStringInfo(&m, s->name->json, s->name->length);
	appendStringInfo(&m, ",\"position\":\"%s\"", position);
	if (s->load->has_snapshot)
	{
		const SubscribeSnapshot *snapshot = &s->load->answer->snapshot;

		appendStringInfo(&m,
						 ",\"snapshot\":{\"xmin\":\"" UINT64_FORMAT "\",\"xmax\":\"" UINT64_FORMAT
						 "\",\"xip\":[",
						 LogFullXid(snapshot->xmin), LogFullXid(snapshot->xmax));
		for (i = 0; i < snapshot->nxip; i++)
			appendStringInfo(&m, "%s\"" UINT64_FORMAT "\"", i > 0 ? "," : "",
							 LogFullXid(snapshot->xip[i]));
		appendStringInfoString(&m, "]}");
	}

	/* After a resync there may be other columns than `subscribed` told. */
	if (!s->announced_entities)
	{
		appendStringInfoChar(&m, ',');
		AppendEntities(s, &m);
		s->announced_entities = true;
	}
	appendStringInfoChar(&m, '}');
	HttpMoves(s, s->instance->channel->min_interval > 0 ? LINK_PART_PACED : LINK_PART_READY,
			  position, true);
	ProtocolSend(s->connection, m.data, m.len);
	pfree(m.data);
}
