/*-------------------------------------------------------------------------
 *
 * http.c
 *		HTTP requests: which paths there are, and answers.  See http.h.
 *
 * What a client can do by a message it can do by a request: the request
 * becomes that message on a connection of its own, and the reply becomes the
 * answer.  So whoever handles a type of messages need not know HTTP, as long
 * as the reply repeats the id.
 *
 * Process: feed worker.  Memory: the turn's, but for Http, which belongs to
 * its connection.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "admin.h"
#include "console.h"
#include "gateways.h"
#include "http.h"
#include "json_message.h"
#include "pause.h"
#include "link_format.h"

#include "access/xact.h"
#include "common/string.h"
#include "mb/pg_wchar.h"
#include "utils/memutils.h"

static void Publish(Connection *connection, const HttpRequest *request);
static void Call(Connection *connection, const HttpRequest *request);

/* A path that ends with "/" stands for all that begins so; the first that fits counts. */
static const struct
{
	const char *path;
	uint8 methods;
	HttpHandler handler;
} paths[] = {
	{"/v1/events", LINK_METHOD_GET, HttpEvents},
	{"/v1/poll", LINK_METHOD_GET, HttpPoll},
	{"/v1/publish", LINK_METHOD_POST, Publish},
	{"/v1/call/", LINK_METHOD_POST, Call},
	{"/metrics", LINK_METHOD_GET, AdminMetrics},
	{"/healthz", LINK_METHOD_GET, AdminHealth},
	{"/", LINK_METHOD_GET, ConsolePage},
	{"/admin/explain", LINK_METHOD_POST, ConsoleExplain},
	{"/admin/", LINK_METHOD_GET, ConsoleData},
};

void
HttpSendPaths(LinkFrame *link)
{
	int i;

	LinkFrameBegin(link, LINK_PATHS);
	LinkFramePutU32(link, lengthof(paths));
	for (i = 0; i < (int) lengthof(paths); i++)
	{
		LinkFramePutU8(link, paths[i].methods);
		LinkFramePutBytes(link, paths[i].path, strlen(paths[i].path));
	}
	LinkFrameEnd(link);
}

/* ---- answers ---- */

void
HttpRespond(Connection *connection, int status, const char *content_type, const char *headers,
			const char *body, Size length)
{
	LinkFrame *link = connection->gateway->link;

	if (connection->http->answered || connection->closing || link == NULL)
		return;
	if (headers == NULL)
		headers = "";
	connection->http->answered = true;
	ConnectionSetClosing(connection);
	LinkFrameBegin(link, LINK_RESPONSE);
	LinkFramePutU32(link, connection->number);
	LinkFramePutU16(link, (uint16) status);
	LinkFramePutBytes(link, content_type, strlen(content_type));
	LinkFramePutBytes(link, headers, strlen(headers));
	LinkFramePutRaw(link, body, length);
	LinkFrameEnd(link);
}

/* The status for an SQLSTATE; see the table in doc/protocol.md. */
static int
StatusOf(const char *sqlstate)
{
	static const struct
	{
		const char *code; /* SQLSTATE or its class */
		int status;
	} statuses[] = {
		{"08003", 401}, {"28", 401},	{"42501", 403}, {"42704", 404}, {"42P01", 404},
		{"57014", 504}, {"53300", 429}, {"53400", 429}, {"53", 503},	{"55P03", 503},
		{"40003", 500}, {"40", 503},	{"57", 503},	{"23", 409},	{"55", 409},
		{"54", 413},	{"0A", 501},	{"XX", 500},	{"58", 500},
	};
	int i;

	for (i = 0; i < (int) lengthof(statuses); i++)
		if (strncmp(sqlstate, statuses[i].code, strlen(statuses[i].code)) == 0)
			return statuses[i].status;
	return 400;
}

static const char *
HeadersFor(int status)
{
	switch (status)
	{
		case 401:
			return "Cache-Control: no-store\r\nWWW-Authenticate: Bearer\r\n";
		case 429:
		case 503:
			return "Cache-Control: no-store\r\nRetry-After: 5\r\n";
		default:
			return "Cache-Control: no-store\r\n";
	}
}

void
HttpFail(Connection *connection, const char *sqlstate, const char *message, const char *hint)
{
	int status = StatusOf(sqlstate);
	StringInfoData m;

	initStringInfo(&m);
	appendStringInfo(&m, "{\"type\":\"error\",\"code\":\"%s\",\"message\":", sqlstate);
	EncodeString(&m, message, strlen(message));
	if (hint != NULL)
	{
		appendStringInfoString(&m, ",\"hint\":");
		EncodeString(&m, hint, strlen(hint));
	}
	appendStringInfoString(&m, "}\n");
	HttpRespond(connection, status, "application/json", HeadersFor(status), m.data, m.len);
	pfree(m.data);
}

/* ---- requests ---- */

/* Text as the feed worker may use it; false if it is not UTF-8, or not there. */
static bool
TakeText(WireBytes bytes, const char **text)
{
	*text = "";
	if (bytes.data == NULL)
		return false;
	*text = pnstrdup(bytes.data, bytes.length);
	return memchr(bytes.data, '\0', bytes.length) == NULL &&
		   pg_verify_mbstr(PG_UTF8, *text, (int) bytes.length, true);
}

/* An error of a handler is the request's answer, and nobody else's business. */
static void
Handle(Connection *connection, const HttpRequest *request, HttpHandler handler)
{
	MemoryContext context = CurrentMemoryContext;
	ErrorData *volatile error = NULL;

	PG_TRY();
	{
		handler(connection, request);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (error->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN ||
			error->sqlerrcode == ERRCODE_OUT_OF_MEMORY)
			PG_RE_THROW();
		FlushErrorState();
	}
	PG_END_TRY();

	if (error == NULL)
		return;

	/* Whatever the transaction holds goes with it. */
	AbortCurrentTransaction();
	StartTransactionCommand();
	MemoryContextSwitchTo(context);
	HttpFail(connection, unpack_sql_state(error->sqlerrcode), error->message, error->hint);
	ereport(LOG,
			(errcode(error->sqlerrcode), errmsg("a request for \"%s\" could not be handled: %s",
												request->path, error->message)));
}

/* LINK_REQUEST */
void
HttpReceive(Connection *connection, WireReader *r)
{
	HttpRequest *request = palloc0(sizeof(HttpRequest));
	uint8 flags;
	uint32 n;
	uint32 i;
	bool valid;

	connection->http = MemoryContextAllocZero(feed_context, sizeof(Http));
	request->method = WireGetU8(r);
	flags = WireGetU8(r);
	request->head = (flags & LINK_REQUEST_HEAD) != 0;
	request->loopback = (flags & LINK_REQUEST_LOOPBACK) != 0;
	request->proxied = (flags & LINK_REQUEST_PROXIED) != 0;
	valid = TakeText(WireGetBytes(r), &request->path);
	valid = TakeText(WireGetBytes(r), &request->peer) && valid;
	if (r->failed || strlen(request->peer) > GATEWAY_PEER_MAX || !pg_is_ascii(request->peer))
	{
		r->failed = true;
		return;
	}
	ConnectionSetPeer(connection, request->peer);
	valid = TakeText(WireGetBytes(r), &request->token) && valid;
	valid = TakeText(WireGetBytes(r), &request->last_event_id) && valid;
	valid = TakeText(WireGetBytes(r), &request->if_none_match) && valid;
	valid = TakeText(WireGetBytes(r), &request->idempotency_key) && valid;
	n = WireGetU32(r);
	if (r->failed || n > (r->length - r->offset) / sizeof(uint32))
	{
		r->failed = true;
		return;
	}
	request->arguments = palloc(sizeof(HttpArgument) * Max(n, 1));
	for (i = 0; i < n && !r->failed; i++)
	{
		HttpArgument *argument = &request->arguments[i];
		const char *text;
		char *equals;

		valid = TakeText(WireGetBytes(r), &text) && valid;
		if (r->failed)
			return;
		argument->name = pstrdup(text);
		equals = strchr(argument->name, '=');
		argument->value = equals != NULL ? equals + 1 : argument->name + strlen(text);
		if (equals != NULL)
			*equals = '\0';
		request->narguments++;
	}
	if (r->failed)
		return;
	request->body_length = r->length - r->offset;
	request->body = memcpy(palloc0(request->body_length + 1), r->data + r->offset,
						   request->body_length);
	if (!valid)
	{
		HttpFail(connection, "22021", "request is not valid UTF-8", NULL);
		return;
	}

	/* It was on its way when its gateway was told. */
	if (feed_paused && strncmp(request->path, "/v1/", 4) == 0)
	{
		HttpFail(connection, "57P03", "the change feed is paused",
				 "Come back later; changefeed.resume() ends the pause.");
		return;
	}

	for (i = 0; i < lengthof(paths); i++)
	{
		Size length = strlen(paths[i].path);
		bool prefix = paths[i].path[length - 1] == '/' && length > 1;

		if (strncmp(request->path, paths[i].path, length) != 0 ||
			(request->path[length] != '\0') != prefix)
			continue;
		request->rest = request->path + length;
		Handle(connection, request, paths[i].handler);
		return;
	}
	HttpFail(connection, "42704", "there is nothing at this path", NULL);
}

const char *
HttpArgumentGet(const HttpRequest *request, const char *name)
{
	int i;

	for (i = 0; i < request->narguments; i++)
		if (strcmp(request->arguments[i].name, name) == 0)
			return request->arguments[i].value;
	return NULL;
}

void
HttpForget(Connection *connection)
{
	Http *http = connection->http;
	int i;

	if (http == NULL)
		return;
	for (i = 0; i < http->nchannels; i++)
		pfree(http->channels[i]);
	if (http->channels != NULL)
		pfree(http->channels);
	pfree(http);
	connection->http = NULL;
}

/* ---- requests that are messages ---- */

void
HttpAsClient(Connection *connection, const HttpRequest *request, const char *message, Size length)
{
	static const char connect[] = "{\"type\":\"connect\",\"id\":\"connect\"}";

	connection->http->reply_to = HTTP_REQUEST_ID;
	ProtocolOpen(connection, request->token, strlen(request->token));
	ProtocolMessage(connection, connect, strlen(connect));
	if (!connection->closing)
		ProtocolMessage(connection, message, length);
}

/*
 * The message is the answer, without the id if we have chosen that.  Numbers
 * tell which channel of the address an error is about: http_stream.c.
 */
static void
RespondWith(Connection *connection, int status, const JsonMessage *message, const char *data,
			Size length)
{
	const char *type = JsonMessageString(message, "type");
	const char *id = JsonMessageScalar(message, "id");
	StringInfoData body;

	initStringInfo(&body);
	if (id != NULL && id[0] == '"')
	{
		char *mine = psprintf("{\"type\":\"%s\",\"id\":%s", type, id);

		/* It comes right behind the type, so no text can be taken for it. */
		if (strlen(mine) < length && memcmp(data, mine, strlen(mine)) == 0)
		{
			appendStringInfo(&body, "{\"type\":\"%s\"", type);
			data += strlen(mine);
			length -= strlen(mine);
		}
	}
	appendBinaryStringInfo(&body, data, (int) length);
	appendStringInfoChar(&body, '\n');
	HttpRespond(connection, status, "application/json", HeadersFor(status), body.data, body.len);
	pfree(body.data);
}

/*
 * An error is the answer, whichever of our messages it is for: there will be
 * no better one.  Only a warning that the token expires soon is none.
 */
bool
HttpFailWith(Connection *connection, const char *data, Size length)
{
	const char *problem;
	const JsonMessage *message = JsonMessageParse(data, length, &problem);
	const char *code;
	int status;

	if (message == NULL || strcmp(JsonMessageString(message, "type"), "error") != 0)
		return false;
	if (JsonMessageGet(message, "expires_at") != NULL)
		return true;
	code = JsonMessageString(message, "code");

	/* No such function; of a condition it would be no such operator. */
	status = connection->http->reply_to != NULL && strcmp(code, "42883") == 0 ? 404
																			  : StatusOf(code);

	/* Unlike other errors of this class it will come again. */
	if (JsonMessageGet(message, "conflict") != NULL)
		status = 409;
	RespondWith(connection, status, message, data, length);
	return true;
}

/* The answer is the reply with our id, or an error. */
void
HttpTakeMessage(Connection *connection, const char *data, Size length)
{
	const JsonMessage *message;
	const char *problem;
	const char *id;

	if (connection->http->answered)
		return;
	if (connection->http->kind != 0)
	{
		HttpTakeStreamMessage(connection, data, length);
		return;
	}
	if (HttpFailWith(connection, data, length))
		return;
	message = JsonMessageParse(data, length, &problem);
	if (message == NULL)
	{
		/* A function may give what the parser finds too deep. */
		HttpFail(connection, "54000", psprintf("the answer cannot be sent: %s", problem), NULL);
		return;
	}
	id = JsonMessageScalar(message, "id");
	if (id != NULL && connection->http->reply_to != NULL &&
		strcmp(id, connection->http->reply_to) == 0)
		RespondWith(connection, 200, message, data, length);
}

/* The body as an object, "{}" if there is none; NULL: it was refused. */
static JsonMessage *
Body(Connection *connection, const HttpRequest *request, const char **text)
{
	const char *problem;
	JsonMessage *message;

	*text = request->body_length > 0 ? request->body : "{}";
	message = JsonMessageParse(*text, request->body_length > 0 ? request->body_length : 2,
							   &problem);
	if (message == NULL)
		HttpFail(connection, "22P02", psprintf("request's body cannot be used: %s", problem), NULL);
	return message;
}

/*
 * The members of the body are those of the message.  Of a member that comes
 * twice the last counts, so ours follow.
 */
static void
Publish(Connection *connection, const HttpRequest *request)
{
	const char *text;
	JsonMessage *body = Body(connection, request, &text);
	const char *end;
	StringInfoData m;

	if (body == NULL)
		return;
	end = strrchr(text, '}');
	initStringInfo(&m);
	appendBinaryStringInfo(&m, text, (int) (end - text));
	if (body->nfields > 0)
		appendStringInfoChar(&m, ',');
	appendStringInfoString(&m, "\"type\":\"publish\",\"id\":" HTTP_REQUEST_ID "}");
	HttpAsClient(connection, request, m.data, m.len);
}

static void
Call(Connection *connection, const HttpRequest *request)
{
	const char *text;
	StringInfoData m;

	if (Body(connection, request, &text) == NULL)
		return;
	initStringInfo(&m);
	appendStringInfoString(&m, "{\"type\":\"call\",\"id\":" HTTP_REQUEST_ID ",\"function\":");
	EncodeString(&m, request->rest, strlen(request->rest));
	appendStringInfo(&m, ",\"args\":%s", text);
	if (request->idempotency_key[0] != '\0')
	{
		appendStringInfoString(&m, ",\"key\":");
		EncodeString(&m, request->idempotency_key, strlen(request->idempotency_key));
	}
	appendStringInfoChar(&m, '}');
	HttpAsClient(connection, request, m.data, m.len);
}
