/*-------------------------------------------------------------------------
 *
 * request.c
 *		HTTP requests that the feed worker answers.
 *
 * What a request says is gathered as the payload of LINK_REQUEST while lws
 * still has its headers, and sent when its body is complete; the answer comes
 * back as a whole.  A request is a Connection, so that it has a number, a
 * deadline and an end like a WebSocket.
 *
 * lws does not see a body as we do (it hands on more than Content-Length, or
 * waits for ever without one), so the length is parsed and counted here.  And
 * lws 4.1 polls without end when a client leaves before its answer, or sends
 * more than its request: reading is off while a request is held, and a timer
 * looks which clients have gone.  Reading goes on when lws has to be asked for
 * writing, because it serves neither when reading is off.
 *
 * Process: gateway.  Memory: an Exchange belongs to its connection; what holds
 * a token is wiped.
 *
 *-------------------------------------------------------------------------
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#include "http.h"

/* How long a client may take to send a body, and to take its answer. */
#define ANSWER_MS 30000

/* How long the feed worker may take. */
#define HELD_MS 60000

/* How often we look who has gone. */
#define SWEEP_MS 1000

typedef struct Path
{
	uint8_t methods;
	size_t length;
	char *text; /* ends with "/": all that begins so */
} Path;

static Path *paths;
static uint32_t n_paths;

/* Requests that wait for us, or we for them, oldest first. */
static ListNode held_list;
static size_t n_held;
static uv_timer_t sweep_timer;

/* ---- paths ---- */

/* LINK_PATHS */
void
RequestSetPaths(WireReader *r)
{
	uint32_t n = WireGetU32(r);
	uint32_t i;

	for (i = 0; i < n_paths; i++)
		free(paths[i].text);
	n_paths = 0;
	for (i = 0; i < n && !r->failed; i++)
	{
		uint8_t methods = WireGetU8(r);
		WireBytes text = WireGetBytes(r);
		Path *path;

		if (r->failed)
			return;
		paths = GatewayRealloc(paths, (n_paths + 1) * sizeof(Path));
		path = &paths[n_paths++];
		path->methods = methods;
		path->length = text.length;
		path->text = GatewayAlloc(text.length + 1);
		memcpy(path->text, text.data, text.length);
		path->text[text.length] = '\0';
	}
	if (!WireAtEnd(r))
		r->failed = true;
}

static const Path *
FindPath(const char *text, size_t length)
{
	uint32_t i;

	for (i = 0; i < n_paths; i++)
	{
		const Path *path = &paths[i];
		bool prefix = path->length > 1 && path->text[path->length - 1] == '/';

		if ((prefix ? length > path->length : length == path->length) &&
			memcmp(path->text, text, path->length) == 0)
			return path;
	}
	return NULL;
}

/* ---- requests that are held ---- */

/* From now on we look after it, and lws has no time-out of its own for it. */
static void
Watch(Exchange *http)
{
	if (!http->conn->killed)
		lws_set_timeout(http->conn->wsi, NO_PENDING_TIMEOUT, 0);
	if (ListContains(&http->held))
		return;
	if (n_held++ == 0)
		uv_timer_again(&sweep_timer);
	ListAppend(&held_list, &http->held);
}

/* Its request is whole: what else it sends is not read. */
static void
Hold(Exchange *http)
{
	lws_rx_flow_control(http->conn->wsi, 0);
	Watch(http);
}

static void
Release(Exchange *http)
{
	if (!ListContains(&http->held))
		return;
	ListRemove(&http->held);
	if (--n_held == 0)
		uv_timer_stop(&sweep_timer);
}

/* Whose client has closed, or shut its half, is not answered any more. */
static void
OnSweep(uv_timer_t *handle)
{
	struct pollfd *fds = GatewayAlloc(n_held * sizeof(struct pollfd));
	Connection **conns = GatewayAlloc(n_held * sizeof(Connection *));
	ListNode *node;
	size_t n = 0;
	size_t i;

	(void) handle;
	for (node = held_list.next; node != &held_list; node = node->next)
	{
		Exchange *http = ListElement(node, Exchange, held);

		/* The time-out of such a one is its end. */
		if (http->conn->killed)
			continue;

		/* lws sets its time-out again after some callbacks. */
		lws_set_timeout(http->conn->wsi, NO_PENDING_TIMEOUT, 0);
		fds[n].fd = lws_get_socket_fd(http->conn->wsi);
		fds[n].events = POLLRDHUP;
		fds[n].revents = 0;
		conns[n++] = http->conn;
	}
	if (poll(fds, n, 0) > 0)
	{
		for (i = 0; i < n; i++)
		{
			if ((fds[i].revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0)
				ConnKill(conns[i], LINK_CAUSE_CLIENT);
		}
	}
	free(fds);
	free(conns);
}

void
RequestStart(void)
{
	ListInit(&held_list);
	uv_timer_init(&gateway.loop, &sweep_timer);
	uv_timer_start(&sweep_timer, OnSweep, SWEEP_MS, SWEEP_MS);
	uv_timer_stop(&sweep_timer);
}

static void
WipeBuffer(Buffer *buffer)
{
	if (buffer->data != NULL)
		explicit_bzero(buffer->data, buffer->capacity);
	BufferReset(buffer, 0);
}

/* The connection ends. */
void
RequestFree(Connection *conn)
{
	Exchange *http = conn->http;

	Release(http);
	WipeBuffer(&http->payload);
	StreamFree(&http->stream);
	free(http->cors);
	free(http->none_match);
	free(http);
	conn->http = NULL;
}

/* ---- answers ---- */

/*
 * The client has all that it gets.  Closing with something unread would make
 * the kernel reset the connection, and the client could lose its answer.
 */
void
RequestEnd(Connection *conn)
{
	char rest[4096];
	int i;

	for (i = 0; i < 16; i++)
	{
		if (recv(lws_get_socket_fd(conn->wsi), rest, sizeof(rest), MSG_DONTWAIT) <= 0)
			break;
	}
	ConnKill(conn, LINK_CAUSE_SERVER);
}

/* lws has sent all that it had. */
void
RequestWriteable(Connection *conn)
{
	Exchange *http = conn->http;

	if (conn->killed || lws_partial_buffered(conn->wsi))
		return;
	if (http->answered)
	{
		RequestEnd(conn);
		return;
	}
	ConnHeard(conn);
	Hold(http);
	QueueFlush(conn);
}

/*
 * lws keeps a part of what was written: it has to be able to go on, and while
 * it may not read it does not write either.
 */
void
RequestChoked(Connection *conn)
{
	Release(conn->http);
	lws_rx_flow_control(conn->wsi, 1);
}

/* Writes the whole answer, which is followed by the end. */
static void
Answer(Connection *conn, Buffer *out)
{
	QueueDropAll(conn);
	SnapshotStopAll(conn);
	conn->http->answered = true;
	conn->close_queued = true;
	conn->cause = LINK_CAUSE_SERVER;
	HttpMakeRoom(conn->wsi, out->length);
	gateway.bytes += out->length;
	if (lws_write(conn->wsi, (unsigned char *) out->data, out->length, LWS_WRITE_HTTP) < 0)
		ConnKill(conn, LINK_CAUSE_CLIENT);
	else if (lws_partial_buffered(conn->wsi))
	{
		RequestChoked(conn);
		HeartbeatSetDeadline(conn, ANSWER_MS);
	}
	else
		RequestEnd(conn);
	BufferReset(out, 0);
}

void
RequestAnswer(Connection *conn, const Reply *reply)
{
	Buffer out = {NULL, 0, 0};

	if (conn->http->answered || conn->killed)
		return;

	/* The answer has begun already: there is no other way to say it. */
	if (conn->http->stream.begun)
	{
		ConnKill(conn, LINK_CAUSE_SERVER);
		return;
	}
	HttpAppendReply(&out, reply);
	Answer(conn, &out);
}

/* The header lines of every answer to a request, and more; to be freed. */
char *
RequestLines(const Exchange *http, const char *more, size_t length)
{
	size_t cors = strlen(http->cors);
	char *lines = GatewayAlloc(cors + length + 1);

	memcpy(lines, http->cors, cors);
	if (length > 0)
		memcpy(lines + cors, more, length);
	lines[cors + length] = '\0';
	return lines;
}

/* LINK_RESPONSE */
void
RequestRespond(Connection *conn, WireReader *r)
{
	Reply reply;
	WireBytes type;
	WireBytes extra;
	char *lines;
	char *content_type;

	memset(&reply, 0, sizeof(reply));
	reply.status = WireGetU16(r);
	type = WireGetBytes(r);
	extra = WireGetBytes(r);
	if (r->failed)
		return;
	content_type = GatewayAlloc(type.length + 1);
	memcpy(content_type, type.data, type.length);
	content_type[type.length] = '\0';
	lines = RequestLines(conn->http, extra.data, extra.length);
	reply.content_type = type.length > 0 ? content_type : NULL;
	reply.extra = lines;
	reply.body = r->data + r->offset;
	reply.length = r->length - r->offset;
	reply.head = conn->http->head;
	RequestAnswer(conn, &reply);
	free(lines);
	free(content_type);
}

/* An answer of our own. */
void
RequestFail(Connection *conn, int status, const char *code, const char *message, const char *hint)
{
	Exchange *http = conn->http;
	const char *retry = status == 503 ? "Retry-After: 5\r\n" : "";
	Buffer out = {NULL, 0, 0};
	Refusal refusal;
	char *lines;

	if (http->answered || conn->killed)
		return;
	memset(&refusal, 0, sizeof(refusal));
	refusal.status = status;
	refusal.code = code;
	refusal.message = message;
	refusal.hint = hint;
	lines = RequestLines(http, retry, strlen(retry));
	refusal.extra = lines;
	HttpAppendRefusal(&out, &refusal, http->head);
	free(lines);
	Answer(conn, &out);
}

/* It has taken too long, whoever is to blame. */
void
RequestDeadline(Connection *conn)
{
	if (conn->http->answered)
		ConnKill(conn, LINK_CAUSE_CLIENT);
	else if (conn->http->stream.kind != 0)
		StreamDeadline(conn);
	else if (conn->http->said)
		RequestFail(conn, 504, "timeout", "the feed did not answer in time", NULL);
	else
		RequestFail(conn, 408, "timeout", "the request's body did not come in time", NULL);
}

/* ---- requests ---- */

static void
PutU8(Buffer *payload, uint8_t v)
{
	BufferAppend(payload, &v, sizeof(v));
}

static void
PutU32(Buffer *payload, uint32_t v)
{
	BufferAppend(payload, &v, sizeof(v));
}

static void
PutBytes(Buffer *payload, const void *data, size_t length)
{
	PutU32(payload, (uint32_t) length);
	BufferAppend(payload, data, length);
}

/* A header that lws does not know. */
static void
PutHeader(Buffer *payload, struct lws *wsi, const char *name)
{
	int length = (int) strlen(name);
	char *value = http_header;

	if (lws_hdr_custom_length(wsi, name, length) <= 0 ||
		lws_hdr_custom_copy(wsi, http_header, sizeof(http_header), name, length) <= 0)
		http_header[0] = '\0';
	value += strspn(value, " \t");
	PutBytes(payload, value, strlen(value));
}

/* The arguments of the query, but for the token. */
static void
PutArguments(Buffer *payload, struct lws *wsi)
{
	size_t place = payload->length;
	uint32_t n = 0;
	int i;
	int length;

	PutU32(payload, 0);
	for (i = 0; (length = lws_hdr_copy_fragment(wsi, http_header, sizeof(http_header),
												WSI_TOKEN_HTTP_URI_ARGS, i)) >= 0;
		 i++)
	{
		if (strncmp(http_header, "token=", 6) != 0)
		{
			PutBytes(payload, http_header, (size_t) length);
			n++;
		}
		explicit_bzero(http_header, (size_t) length);
	}
	memcpy(payload->data + place, &n, sizeof(n));
}

/*
 * A page of another origin asks on behalf of whoever wrote it: where its
 * visitor's browser runs says nothing, either.
 */
static void
Describe(Exchange *http, struct lws *wsi, uint8_t method, const char *path, size_t length,
		 HttpOrigin origin)
{
	Buffer *payload = &http->payload;
	char peer[64];
	/* A browser's address says nothing of the page that it shows. */
	bool forwarded = origin == ORIGIN_LISTED || origin == ORIGIN_ANY || PeerWasForwarded(wsi);
	bool loopback = !forwarded && PeerIsThisMachine(wsi);
	size_t token_length;
	bool is_cookie;
	char *token;

	PutU8(payload, method);
	PutU8(payload,
		  (uint8_t) ((http->head ? LINK_REQUEST_HEAD : 0) | (loopback ? LINK_REQUEST_LOOPBACK : 0) |
					 (forwarded ? LINK_REQUEST_PROXIED : 0)));
	PutBytes(payload, path, length);
	VisitorText(wsi, peer, sizeof(peer));
	PutBytes(payload, peer, strlen(peer));
	token = HttpToken(wsi, &token_length, &is_cookie);
	PutBytes(payload, token, token_length);
	explicit_bzero(token, token_length);
	PutHeader(payload, wsi, "last-event-id:");
	if (!HttpHeader(wsi, WSI_TOKEN_HTTP_IF_NONE_MATCH))
		http_header[0] = '\0';
	PutBytes(payload, http_header, strlen(http_header));
	http->none_match = GatewayAlloc(strlen(http_header) + 1);
	strcpy(http->none_match, http_header);
	PutHeader(payload, wsi, "idempotency-key:");
	PutArguments(payload, wsi);
}

/* The length of the body, which has to be told and not too much. */
static bool
BodyLength(struct lws *wsi, size_t *length, Refusal *refusal)
{
	const char *p = http_header;
	size_t n = 0;

	*length = 0;
	if (lws_hdr_total_length(wsi, WSI_TOKEN_HTTP_TRANSFER_ENCODING) > 0)
	{
		refusal->status = 411;
		refusal->code = "length_required";
		refusal->message = "the request needs a Content-Length";
		return false;
	}
	if (!HttpHeader(wsi, WSI_TOKEN_HTTP_CONTENT_LENGTH))
		return true; /* that is, 0 */
	for (; *p >= '0' && *p <= '9' && n <= gateway.max_message; p++)
		n = n * 10 + (size_t) (*p - '0');
	if (n > gateway.max_message)
	{
		refusal->status = 413;
		refusal->code = "too_large";
		refusal->message = "the request's body is too large";
		refusal->hint = "The setting is changefeed.max_message.";
		return false;
	}
	if (*p != '\0' || p == http_header)
	{
		refusal->status = 400;
		refusal->code = "bad_request";
		refusal->message = "the Content-Length is not a number";
		return false;
	}
	*length = n;
	return true;
}

static bool
BodyIsJson(struct lws *wsi, Refusal *refusal)
{
	static const char json[] = "application/json";

	if (HttpHeader(wsi, WSI_TOKEN_HTTP_CONTENT_TYPE) &&
		strncasecmp(http_header, json, sizeof(json) - 1) == 0 &&
		strchr("; \t", http_header[sizeof(json) - 1]) != NULL)
		return true;
	refusal->status = 415;
	refusal->code = "unsupported_media_type";
	refusal->message = "the request's body has to be application/json";
	refusal->hint = "Send the header Content-Type: application/json.";
	return false;
}

static const char *
AllowLine(uint8_t methods)
{
	switch (methods)
	{
		case LINK_METHOD_GET:
			return "Allow: GET, HEAD, OPTIONS\r\n";
		case LINK_METHOD_POST:
			return "Allow: POST, OPTIONS\r\n";
		default:
			return "Allow: GET, HEAD, POST, OPTIONS\r\n";
	}
}

/* A browser asks whether a page of another origin may send its request. */
static int
Preflight(struct lws *wsi, const Path *path, HttpOrigin origin, const Buffer *cors)
{
	Buffer extra = {NULL, 0, 0};
	Reply reply;
	int result;

	BufferAppend(&extra, cors->data, cors->length);
	BufferAppendString(&extra, AllowLine(path->methods));
	if (origin != ORIGIN_NONE)
	{
		BufferAppendString(&extra, "Access-Control-Allow-Methods: GET, HEAD, POST\r\n"
								   "Access-Control-Allow-Headers: Authorization, Content-Type, "
								   "Idempotency-Key, If-None-Match, Last-Event-ID\r\n"
								   "Access-Control-Max-Age: 600\r\n");
	}
	BufferAppend(&extra, "", 1);
	memset(&reply, 0, sizeof(reply));
	reply.status = 204;
	reply.extra = extra.data;
	result = HttpSend(wsi, &reply);
	BufferReset(&extra, 0);
	return result;
}

/* The whole request is here. */
static void
Say(Connection *conn)
{
	Exchange *http = conn->http;

	http->said = true;
	LinkSayRequest(conn, http->payload.data, http->payload.length);
	WipeBuffer(&http->payload);
	Hold(http);
	HeartbeatSetDeadline(conn, HELD_MS);
}

static int
Refuse(struct lws *wsi, Refusal *refusal, bool head, const Buffer *cors)
{
	Buffer extra = {NULL, 0, 0};
	int result;

	BufferAppend(&extra, cors->data, cors->length);
	if (refusal->extra != NULL)
		BufferAppendString(&extra, refusal->extra);
	BufferAppend(&extra, "", 1);
	refusal->extra = extra.data;
	result = HttpRefuse(wsi, refusal, head);
	BufferReset(&extra, 0);
	return result;
}

/* Takes a request for one of the paths, `cors` being lines of its answer. */
static int
Serve(struct lws *wsi, const Path *path, const char *text, size_t length, HttpOrigin origin,
	  Buffer *cors)
{
	bool head = lws_hdr_total_length(wsi, WSI_TOKEN_HEAD_URI) > 0;
	uint8_t method = 0;
	size_t body = 0;
	Refusal refusal;
	Connection *conn;
	Exchange *http;

	if (lws_hdr_total_length(wsi, WSI_TOKEN_OPTIONS_URI) > 0)
		return Preflight(wsi, path, origin, cors);
	if (head || lws_hdr_total_length(wsi, WSI_TOKEN_GET_URI) > 0)
		method = LINK_METHOD_GET;
	else if (lws_hdr_total_length(wsi, WSI_TOKEN_POST_URI) > 0)
		method = LINK_METHOD_POST;

	memset(&refusal, 0, sizeof(refusal));
	if (!HttpCookieIsSafe(wsi, origin, &refusal))
		return Refuse(wsi, &refusal, head, cors);
	if ((method & path->methods) == 0)
	{
		refusal.status = 405;
		refusal.code = "method_not_allowed";
		refusal.message = "this path does not serve that method";
		refusal.extra = AllowLine(path->methods);
		return Refuse(wsi, &refusal, head, cors);
	}
	if (method == LINK_METHOD_POST)
	{
		if (!BodyLength(wsi, &body, &refusal) || (body > 0 && !BodyIsJson(wsi, &refusal)))
			return Refuse(wsi, &refusal, head, cors);
	}
	else if (lws_hdr_total_length(wsi, WSI_TOKEN_HTTP_TRANSFER_ENCODING) > 0 ||
			 (HttpHeader(wsi, WSI_TOKEN_HTTP_CONTENT_LENGTH) && strcmp(http_header, "0") != 0))
	{
		refusal.status = 400;
		refusal.code = "bad_request";
		refusal.message = "a request with a body is not served here";
		return Refuse(wsi, &refusal, head, cors);
	}
	if ((strncmp(path->text, GATEWAY_CLIENT_PATHS, strlen(GATEWAY_CLIENT_PATHS)) == 0 &&
		 HttpIsPaused(&refusal)) ||
		!HttpHasRoom(&refusal))
		return Refuse(wsi, &refusal, head, cors);

	conn = ConnCreate(wsi);
	http = GatewayAllocZero(sizeof(Exchange));
	http->conn = conn;
	http->head = head;
	http->missing = body;
	BufferAppend(cors, "", 1);
	http->cors = cors->data;
	memset(cors, 0, sizeof(*cors));
	conn->http = http;
	lws_set_opaque_user_data(wsi, conn);
	Describe(http, wsi, method, text, length, origin);

	/* lws' tables of headers are few and large, and `text` is in one. */
	lws_http_headers_detach(wsi);
	if (body == 0)
		Say(conn);
	else
	{
		Watch(http);
		HeartbeatSetDeadline(conn, gateway.handshake_timeout_ms);
	}
	return 0;
}

/* lws' HTTP callback; false: not one of the feed worker's paths. */
bool
HttpServePath(struct lws *wsi, const char *path, size_t length, int *result)
{
	const Path *found = FindPath(path, length);
	Buffer cors = {NULL, 0, 0};
	Refusal refusal;
	HttpOrigin origin;

	if (found == NULL)
		return false;
	memset(&refusal, 0, sizeof(refusal));
	origin = HttpCheckOrigin(wsi, &refusal);
	if (origin == ORIGIN_FOREIGN)
	{
		*result = HttpRefuse(wsi, &refusal, lws_hdr_total_length(wsi, WSI_TOKEN_HEAD_URI) > 0);
		return true;
	}
	BufferAppendString(&cors, gateway.token_cookie[0] == '\0'
								  ? "Vary: Origin, Authorization\r\n"
								  : "Vary: Origin, Authorization, Cookie\r\n");
	HttpAppendCors(wsi, origin, &cors);
	*result = Serve(wsi, found, path, length, origin, &cors);
	BufferReset(&cors, 0);
	return true;
}

/* A piece of the body; what is more than Content-Length is ignored. */
int
RequestBody(Connection *conn, const void *data, size_t length)
{
	Exchange *http = conn->http;

	if (http->said || http->answered)
		return 0;
	if (length > http->missing)
		length = http->missing;
	BufferAppend(&http->payload, data, length);
	http->missing -= length;
	if (http->missing == 0)
		Say(conn);
	return 0;
}
