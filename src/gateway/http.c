/*-------------------------------------------------------------------------
 *
 * http.c
 *		Plain HTTP: taking a request, and what is answered without asking.
 *
 * Everything that is refused is answered before the upgrade, with a JSON body
 * that names what was refused and what could be done; a browser shows no
 * reason for an upgrade that merely fails.
 *
 * Only HTTP/1, and one request per connection: with keep-alive a client that
 * sends its next request, or half-closes, and does not read, makes lws 4.1
 * poll without end, and a body would be taken for the next request.
 *
 * Process: gateway.
 *
 *-------------------------------------------------------------------------
 */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "visitor.h"

static const char *
StatusText(int status)
{
	switch (status)
	{
		case 200:
			return "OK";
		case 204:
			return "No Content";
		case 304:
			return "Not Modified";
		case 400:
			return "Bad Request";
		case 401:
			return "Unauthorized";
		case 403:
			return "Forbidden";
		case 404:
			return "Not Found";
		case 405:
			return "Method Not Allowed";
		case 408:
			return "Request Timeout";
		case 409:
			return "Conflict";
		case 411:
			return "Length Required";
		case 413:
			return "Content Too Large";
		case 415:
			return "Unsupported Media Type";
		case 422:
			return "Unprocessable Content";
		case 426:
			return "Upgrade Required";
		case 429:
			return "Too Many Requests";
		case 500:
			return "Internal Server Error";
		case 501:
			return "Not Implemented";
		case 503:
			return "Service Unavailable";
		case 504:
			return "Gateway Timeout";
		default:
			return "Error";
	}
}

/*
 * Lets the kernel take the whole answer, so that lws can close right behind
 * it.  More than the kernel allows (some 400 kB) waits in lws, for five
 * seconds at most.
 */
void
HttpMakeRoom(struct lws *wsi, size_t length)
{
	int fd = lws_get_socket_fd(wsi);
	int size = (int) length + 65536;

	if (length < 32768)
		return;
	setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &size, sizeof(size));
}

/* Appends the whole answer. */
void
HttpAppendReply(Buffer *out, const Reply *reply)
{
	char line[160];

	snprintf(line, sizeof(line), "HTTP/1.1 %d %s\r\n", reply->status, StatusText(reply->status));
	BufferAppendString(out, line);
	if (reply->content_type != NULL)
	{
		BufferAppendString(out, "Content-Type: ");
		BufferAppendString(out, reply->content_type);
		BufferAppendString(out, "\r\n");
		if (!reply->endless)
		{
			snprintf(line, sizeof(line), "Content-Length: %zu\r\n", reply->length);
			BufferAppendString(out, line);
		}
	}
	else if (reply->status != 304 && reply->status != 204)
		BufferAppendString(out, "Content-Length: 0\r\n");
	if (reply->extra != NULL)
		BufferAppendString(out, reply->extra);
	BufferAppendString(out, "Connection: close\r\n"
							"X-Content-Type-Options: nosniff\r\n"
							"Referrer-Policy: no-referrer\r\n"
							"Cross-Origin-Resource-Policy: same-origin\r\n");

	if (reply->page)
		BufferAppendString(out, LINK_PAGE_HEADERS);
	BufferAppendString(out, "\r\n");
	if (!reply->head && reply->length > 0)
		BufferAppend(out, reply->body, reply->length);
}

/*
 * Sends the whole answer in one write.  Returns what the callback has to
 * return, which is always to close.
 */
static int
Write(struct lws *wsi, Buffer *out)
{
	HttpMakeRoom(wsi, out->length);
	lws_write(wsi, (unsigned char *) out->data, out->length, LWS_WRITE_HTTP_HEADERS);
	BufferReset(out, 0);
	return -1;
}

int
HttpSend(struct lws *wsi, const Reply *reply)
{
	Buffer out = {NULL, 0, 0};

	HttpAppendReply(&out, reply);
	return Write(wsi, &out);
}

void
HttpAppendRefusal(Buffer *out, const Refusal *refusal, bool head)
{
	Buffer body = {NULL, 0, 0};
	Buffer extra = {NULL, 0, 0};
	Reply reply;

	BufferAppendString(&body, "{\"type\":\"error\",\"code\":");
	BufferAppendJson(&body, refusal->code);
	BufferAppendString(&body, ",\"message\":");
	BufferAppendJson(&body, refusal->message);
	if (refusal->hint != NULL)
	{
		BufferAppendString(&body, ",\"hint\":");
		BufferAppendJson(&body, refusal->hint);
	}
	BufferAppendString(&body, "}\n");

	BufferAppendString(&extra, "Cache-Control: no-store\r\n");
	if (refusal->extra != NULL)
		BufferAppendString(&extra, refusal->extra);
	BufferAppend(&extra, "", 1);

	memset(&reply, 0, sizeof(reply));
	reply.status = refusal->status;
	reply.content_type = "application/json";
	reply.extra = extra.data;
	reply.body = body.data;
	reply.length = body.length;
	reply.head = head;
	HttpAppendReply(out, &reply);
	BufferReset(&body, 0);
	BufferReset(&extra, 0);
	gateway.refused++;
	StatsNoteRefusal(refusal->code);
}

int
HttpRefuse(struct lws *wsi, const Refusal *refusal, bool head)
{
	Buffer out = {NULL, 0, 0};

	HttpAppendRefusal(&out, refusal, head);
	return Write(wsi, &out);
}

/* Those who are refused come back: one line a minute is enough. */
static void
LogLimit(void)
{
	static uint64_t logged_ms;
	static bool ever;
	uint64_t now = uv_now(&gateway.loop);

	if (ever && now - logged_ms < 60000)
		return;
	ever = true;
	logged_ms = now;
	GatewayLog(LEVEL_WARNING,
			   "new connections are refused, as there are %u already: "
			   "changefeed.max_connections is used up",
			   gateway.max_connections);
}

/* Are clients kept out? */
bool
HttpIsPaused(Refusal *refusal)
{
	if (!gateway.paused || gateway.ending)
		return false;
	memset(refusal, 0, sizeof(*refusal));
	refusal->status = 503;
	refusal->extra = "Retry-After: 5\r\n";
	refusal->code = "paused";
	refusal->message = "the change feed is paused";
	refusal->hint = PAUSE_HINT;
	return true;
}

/* Is there room for one more client? */
bool
HttpHasRoom(Refusal *refusal)
{
	memset(refusal, 0, sizeof(*refusal));
	refusal->status = 503;
	refusal->extra = "Retry-After: 5\r\n";
	if (gateway.ending)
	{
		refusal->code = "shutting_down";
		refusal->message = "the server is shutting down";
		return false;
	}
	if (gateway.open >= gateway.max_connections)
	{
		LogLimit();
		refusal->code = "too_many_connections";
		refusal->message = "the limit of connections is reached";
		refusal->hint = "Try again later; or raise changefeed.max_connections.";
		return false;
	}
	return true;
}

/*
 * lws asks before an upgrade.  0: go on; else the refusal was sent and the
 * connection is to be closed.
 */
int
HttpCheckUpgrade(struct lws *wsi)
{
	Refusal refusal;
	HttpOrigin origin;

	/* lws has answered an unknown kind of upgrade itself and still asks. */
	if (lws_hdr_total_length(wsi, WSI_TOKEN_UPGRADE) <= 0)
		return -1;

	if (!VisitorCheck(wsi, &refusal))
		return HttpRefuse(wsi, &refusal, false);
	memset(&refusal, 0, sizeof(refusal));
	if (!HttpHostIsAllowed(wsi, &refusal))
		return HttpRefuse(wsi, &refusal, false);

	memset(&refusal, 0, sizeof(refusal));
	if (!HttpHeader(wsi, WSI_TOKEN_GET_URI) || strcmp(http_header, GATEWAY_SOCKET_PATH) != 0)
	{
		refusal.status = 404;
		refusal.code = "not_found";
		refusal.message = "WebSockets are served at " GATEWAY_SOCKET_PATH;
		return HttpRefuse(wsi, &refusal, false);
	}
	origin = HttpCheckOrigin(wsi, &refusal);
	if (origin == ORIGIN_FOREIGN || !HttpCookieIsSafe(wsi, origin, &refusal) ||
		!HttpHandshakeIsUsable(wsi, &refusal))
		return HttpRefuse(wsi, &refusal, false);

	if (HttpIsPaused(&refusal) || !HttpHasRoom(&refusal))
		return HttpRefuse(wsi, &refusal, false);
	return 0;
}

/* lws' HTTP callback: a request that is not an upgrade. */
int
HttpRequest(struct lws *wsi, const char *path, size_t length)
{
	bool head = lws_hdr_total_length(wsi, WSI_TOKEN_HEAD_URI) > 0;
	Refusal refusal;
	bool socket;
	int result;

	if (!VisitorCheck(wsi, &refusal))
		return HttpRefuse(wsi, &refusal, head);
	memset(&refusal, 0, sizeof(refusal));
	if (!HttpHostIsAllowed(wsi, &refusal))
		return HttpRefuse(wsi, &refusal, head);
	if (HttpServePath(wsi, path, length, &result))
		return result;

	memset(&refusal, 0, sizeof(refusal));
	socket = length == strlen(GATEWAY_SOCKET_PATH) &&
			 memcmp(path, GATEWAY_SOCKET_PATH, length) == 0;
	if (!socket && !HttpIsAsset(path, length))
	{
		refusal.status = 404;
		refusal.code = "not_found";
		refusal.message = "there is nothing at this path";
		return HttpRefuse(wsi, &refusal, head);
	}
	if (!head && lws_hdr_total_length(wsi, WSI_TOKEN_GET_URI) <= 0)
	{
		refusal.status = 405;
		refusal.code = "method_not_allowed";
		refusal.message = "only GET and HEAD are served here";
		refusal.extra = "Allow: GET, HEAD\r\n";
		return HttpRefuse(wsi, &refusal, false);
	}
	if (lws_hdr_total_length(wsi, WSI_TOKEN_HTTP_TRANSFER_ENCODING) > 0 ||
		(HttpHeader(wsi, WSI_TOKEN_HTTP_CONTENT_LENGTH) && strcmp(http_header, "0") != 0))
	{
		refusal.status = 400;
		refusal.code = "bad_request";
		refusal.message = "a request with a body is not served here";
		return HttpRefuse(wsi, &refusal, head);
	}
	if (!socket)
		return HttpServeAsset(wsi, path, length, head);
	refusal.status = 426;
	refusal.code = "upgrade_required";
	refusal.message = "this path serves WebSockets only";
	refusal.extra = "Upgrade: websocket\r\n";
	return HttpRefuse(wsi, &refusal, head);
}
