/*-------------------------------------------------------------------------
 *
 * http_stream.c
 *		Subscriptions over HTTP: event streams (/v1/events) and polls
 *		(/v1/poll).
 *
 * A request says what a client would say on a WebSocket: `connect`, and a
 * `subscribe` for each channel of the query string.  What it is sent goes to
 * the gateway like that of a WebSocket, and becomes events or an answer there
 * (gateway/stream.c).  The gateway is told what cannot be read off the frames:
 * where each channel is (HttpMoves).
 *
 * Until the client was told `subscribed` of all channels, an error is the
 * answer to the request; later it is one message among others.
 *
 * Process: feed worker.  Memory: the turn's.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "gateways.h"
#include "http.h"
#include "subscribe.h"

#include "utils/memutils.h"

/* How long a poll waits, in seconds. */
#define POLL_WAIT	  20
#define POLL_WAIT_MAX 50

/*
 * An answer for a position is true for ever: it leads from that position to the
 * one that it names, and its reader goes on from there.  So it may be shared,
 * and the time is only as long as it takes those who wait to ask again.
 */
#define SHARED_CACHE_CONTROL "Cache-Control: public, max-age=2\r\n"

/* How the answer to our `connect` begins. */
#define CONNECTED "{\"type\":\"connected\",\"id\":0"

static char *
NextPosition(char **list)
{
	char *position = *list;
	char *comma = strchr(position, ',');

	if (comma == NULL)
		*list = NULL;
	else
	{
		*comma = '\0';
		*list = comma + 1;
	}
	return position;
}

/*
 * The positions in `text`, one for all channels or one for each: "" for those
 * that need a snapshot.  NULL: the request was refused.
 */
static char **
Positions(Connection *connection, const char *text)
{
	Http *http = connection->http;
	char **positions = palloc0(sizeof(char *) * http->nchannels);
	char *rest = pstrdup(text);
	int n = 0;
	int i;

	while (rest != NULL && n < http->nchannels)
	{
		char *position = NextPosition(&rest);

		positions[n] = strcmp(position, "-") == 0 ? "" : position;
		if (strlen(positions[n]) > LINK_POSITION_MAX)
			positions[n] = "?"; /* refused by `subscribe` */
		n++;
	}
	if (n == 1)
		for (i = 1; i < http->nchannels; i++)
			positions[n++] = positions[0];
	if (rest == NULL && n == http->nchannels)
		return positions;
	HttpFail(
		connection, "22023", "the number of positions is not that of the channels",
		"Send the positions exactly as the server gave them, with the same channels in the same "
		"order.");
	return NULL;
}

/* "position" of an If-None-Match, "" if there is none. */
static const char *
PositionOfEtag(const char *text)
{
	const char *end;

	text += strspn(text, " \t");
	if (strncmp(text, "W/", 2) == 0)
		text += 2;
	if (*text != '"' || (end = strchr(text + 1, '"')) == NULL)
		return "";
	return pnstrdup(text + 1, end - text - 1);
}

/* LINK_STREAM, and what a client would say. */
static void
Start(Connection *connection, char **positions, const char *from, int flags, uint32 wait)
{
	Http *http = connection->http;
	LinkFrame *link = connection->gateway->link;
	const char *headers;
	int i;

	CountChanged(connection->transport,
				 http->kind == LINK_STREAM_EVENTS ? COUNTED_EVENTS : COUNTED_POLL);
	connection->transport = http->kind == LINK_STREAM_EVENTS ? COUNTED_EVENTS : COUNTED_POLL;
	if (http->kind == LINK_STREAM_EVENTS)
		headers = "Cache-Control: no-store\r\nX-Accel-Buffering: no\r\n";
	else
		headers = http->anonymous ? SHARED_CACHE_CONTROL : "Cache-Control: private, no-store\r\n";
	LinkFrameBegin(link, LINK_STREAM);
	LinkFramePutU32(link, connection->number);
	LinkFramePutU8(link, http->kind);
	LinkFramePutU8(link, (uint8) flags);
	LinkFramePutU32(link, wait);
	LinkFramePutU32(link, (uint32) setting_max_response * 1024);
	LinkFramePutBytes(link, from, strlen(from));
	LinkFramePutBytes(link, headers, strlen(headers));
	LinkFramePutU16(link, (uint16) http->nchannels);
	for (i = 0; i < http->nchannels; i++)
		LinkFramePutBytes(link, positions[i], strlen(positions[i]));
	LinkFrameEnd(link);
}

static void
Say(Connection *connection, const char *text, Size length)
{
	if (!connection->closing)
		ProtocolMessage(connection, text, length);
}

static void
Subscribe(Connection *connection, char **positions)
{
	Http *http = connection->http;
	int i;

	for (i = 0; i < http->nchannels; i++)
	{
		StringInfoData m;

		initStringInfo(&m);
		appendStringInfo(&m, "{\"type\":\"subscribe\",\"id\":%d,\"channel\":", i + 1);
		EncodeString(&m, http->channels[i], strlen(http->channels[i]));
		if (positions[i][0] != '\0')
		{
			appendStringInfoString(&m, ",\"from\":");
			EncodeString(&m, positions[i], strlen(positions[i]));
		}
		else if (http->no_snapshot)
			appendStringInfoString(&m, ",\"snapshot\":false");
		appendStringInfoChar(&m, '}');
		Say(connection, m.data, m.len);
		pfree(m.data);
	}
}

static void
Connect(Connection *connection, const HttpRequest *request)
{
	static const char connect[] = "{\"type\":\"connect\",\"id\":0}";

	ProtocolOpen(connection, request->token, strlen(request->token));
	Say(connection, connect, strlen(connect));
}

/* The channels of the query string.  False: the request was refused. */
static bool
TakeChannels(Connection *connection, const HttpRequest *request)
{
	Http *http = connection->http;
	const char *snapshot = HttpArgumentGet(request, "snapshot");
	MemoryContext old = MemoryContextSwitchTo(feed_context);
	int i;

	http->head = request->head;
	http->anonymous = request->token[0] == '\0';
	http->no_snapshot = snapshot != NULL && strcmp(snapshot, "false") == 0;
	http->channels = palloc(sizeof(char *) * Max(request->narguments, 1));
	for (i = 0; i < request->narguments; i++)
		if (strcmp(request->arguments[i].name, "channel") == 0)
			http->channels[http->nchannels++] = pstrdup(request->arguments[i].value);
	MemoryContextSwitchTo(old);
	if (http->nchannels > 0)
		return true;
	HttpFail(connection, "08P01", "the request names no channel",
			 "Add ?channel= and the name, percent-encoded; several times for several channels.");
	return false;
}

/* GET /v1/events */
void
HttpEvents(Connection *connection, const HttpRequest *request)
{
	const char *from = request->last_event_id;
	char **positions;

	if (!TakeChannels(connection, request))
		return;

	/* The browser repeats the address, but knows better how far it came. */
	if (from[0] == '\0')
		from = HttpArgumentGet(request, "from");
	positions = Positions(connection, from != NULL ? from : "");
	if (positions == NULL)
		return;
	connection->http->kind = LINK_STREAM_EVENTS;
	Start(connection, positions, "", 0, 0);
	Connect(connection, request);
	if (!request->head)
		Subscribe(connection, positions);
}

/*
 * GET /v1/poll.  What an address without `from` names is the state of now, so
 * If-None-Match asks whether it is still the same, and gets it whole if not.
 */
void
HttpPoll(Connection *connection, const HttpRequest *request)
{
	const char *from = HttpArgumentGet(request, "from");
	const char *wait_text = HttpArgumentGet(request, "wait");
	bool probe = from == NULL && request->if_none_match[0] != '\0';
	int wait = from != NULL ? POLL_WAIT : 0;
	int flags = 0;
	char **positions;

	if (!TakeChannels(connection, request))
		return;
	if (probe)
		from = PositionOfEtag(request->if_none_match);
	if (wait_text != NULL)
	{
		char *end;
		long seconds = strtol(wait_text, &end, 10);

		if (end == wait_text || *end != '\0' || seconds < 0)
		{
			HttpFail(connection, "22023", "\"wait\" is not a number of seconds", NULL);
			return;
		}
		wait = (int) Min(seconds, POLL_WAIT_MAX);
	}
	positions = Positions(connection, from != NULL ? from : "");
	if (positions == NULL)
		return;
	connection->http->kind = LINK_STREAM_POLL;
	if (wait > 0 && !request->head)
		flags |= LINK_STREAM_WAITS;
	if (probe && from[0] != '\0')
		flags |= LINK_STREAM_PROBE;
	Start(connection, positions, from != NULL ? from : "", flags, (uint32) wait * 1000);
	Connect(connection, request);
	Subscribe(connection, positions);
}

/* LINK_COLLECTED: it is not the same any more. */
void
HttpCollected(Connection *connection)
{
	Http *http = connection->http;
	char **positions;

	if (http == NULL || http->answered || connection->closing)
		return;
	while (!dlist_is_empty(&connection->subscriptions))
		SubscriptionFree(
			dlist_head_element(Subscription, connection_node, &connection->subscriptions));
	connection->mark = 0; /* it was dropped there */
	http->announced = 0;
	positions = Positions(connection, "");
	Start(connection, positions, "", 0, 0);
	Subscribe(connection, positions);
}

/* ---- messages ---- */

void
HttpMoves(Subscription *s, int part, const char *position, bool quiet)
{
	Connection *connection = s->connection;
	LinkFrame *link = connection->gateway->link;

	if (connection->http == NULL || connection->closing || link == NULL)
		return;
	if (position == NULL)
		position = "";
	LinkFrameBegin(link, LINK_EVENT_ID);
	LinkFramePutU32(link, connection->number);
	LinkFramePutU16(link, (uint16) s->http_part);
	LinkFramePutU8(link, (uint8) part);
	LinkFramePutU8(link, quiet);
	LinkFramePutBytes(link, position, strlen(position));
	LinkFrameEnd(link);
}

void
HttpMayBegin(Connection *connection)
{
	Http *http = connection->http;
	LinkFrame *link = connection->gateway->link;

	if (http == NULL || connection->closing || http->begun || http->kind != LINK_STREAM_EVENTS ||
		http->announced + SubscribePagesWaiting(connection) < http->nchannels)
		return;
	http->begun = true;
	LinkFrameBegin(link, LINK_BEGIN);
	LinkFramePutU32(link, connection->number);
	LinkFrameEnd(link);
}

void
HttpAnnounced(Subscription *s)
{
	if (s->connection->http == NULL)
		return;
	s->connection->http->announced++;
	HttpMayBegin(s->connection);
}

void
HttpTakeStreamMessage(Connection *connection, const char *data, Size length)
{
	Http *http = connection->http;
	static const char error[] = "{\"type\":\"error\"";
	static const char connected[] = "{\"type\":\"connected\"";

	if (length > strlen(error) && memcmp(data, error, strlen(error)) == 0)
	{
		/* The answer, as long as nothing else is. */
		if (!http->begun && http->announced < http->nchannels)
		{
			HttpFailWith(connection, data, length);
			return;
		}
	}
	else if (length > strlen(CONNECTED) && memcmp(data, CONNECTED, strlen(CONNECTED)) == 0)
	{
		if (http->head && http->kind == LINK_STREAM_EVENTS)
		{
			HttpRespond(connection, 200, "text/event-stream", "Cache-Control: no-store\r\n", "", 0);
			return;
		}
		if (http->kind == LINK_STREAM_POLL)
			return;

		/* Nobody has asked for it. */
		GatewaySend(connection,
					psprintf("%s%.*s", connected, (int) (length - strlen(CONNECTED)),
							 data + strlen(CONNECTED)),
					length - strlen(CONNECTED) + strlen(connected));
		return;
	}
	GatewaySend(connection, data, length);
}
