/*-------------------------------------------------------------------------
 *
 * http.c
 *		Plain HTTP: static pages, and who may open a WebSocket.
 *
 * Pages come over the link with their ETag and are kept in memory.  Everything
 * that is refused is answered before the upgrade, with a JSON body that names
 * what was refused and what could be done; a browser shows no reason for an
 * upgrade that merely fails.
 *
 * Two checks protect the user of a browser from other pages in it: the Host
 * header (against DNS rebinding: a foreign name that resolves to this machine)
 * and the Origin header (against foreign pages that open a socket here).
 *
 * Only HTTP/1, and one request per connection: with keep-alive a client that
 * sends its next request, or half-closes, and does not read, makes lws 4.1
 * poll without end, and a body would be taken for the next request.  Requests
 * are few here; what matters are the sockets.
 *
 * Process: gateway.  Memory: assets live until they are replaced.  Header
 * values are copied while lws handles the request; its header block is gone
 * afterwards.
 *
 *-------------------------------------------------------------------------
 */
#include <ctype.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <arpa/inet.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#include "gateway.h"

/* No longer than lws' own limit for all headers together. */
#define MAX_HEADER 16384

typedef struct Asset
{
	struct Asset *next;
	bool loopback_only;
	size_t path_length;
	char *path;
	char *content_type;
	char *etag;
	size_t length;
	char *body;
} Asset;

typedef struct Reply
{
	int status;
	const char *content_type; /* NULL: no body */
	const char *extra;		  /* header lines, each with its line end */
	const char *body;
	size_t length;
	bool head; /* send no body, but say how long it is */
} Reply;

/* Why a request is refused; the strings live as long as the answer is made. */
typedef struct Refusal
{
	int status;
	const char *code;
	const char *message;
	const char *hint;  /* may be NULL */
	const char *extra; /* header lines; may be NULL */
} Refusal;

static Asset *assets;

/* Filled and used within one request. */
static char header_text[MAX_HEADER + 1];
static char message_text[MAX_HEADER + 256];

/* ---- assets ---- */

static char *
CopyBytes(WireBytes bytes)
{
	char *copy = GatewayAlloc(bytes.length + 1);

	memcpy(copy, bytes.data, bytes.length);
	copy[bytes.length] = '\0';
	return copy;
}

static Asset *
FindAsset(const char *path, size_t length)
{
	Asset *asset;

	for (asset = assets; asset != NULL; asset = asset->next)
	{
		if (asset->path_length == length && memcmp(asset->path, path, length) == 0)
			return asset;
	}
	return NULL;
}

/* LINK_ASSET */
void
HttpSetAsset(WireReader *r)
{
	WireBytes path = WireGetBytes(r);
	WireBytes type = WireGetBytes(r);
	WireBytes etag = WireGetBytes(r);
	bool loopback_only = WireGetU8(r) != 0;
	WireBytes body;
	Asset *asset;

	body.length = r->length - r->offset;
	body.data = WireTake(r, body.length);
	if (r->failed)
		return;

	asset = FindAsset(path.data, path.length);
	if (asset == NULL)
	{
		asset = GatewayAllocZero(sizeof(Asset));
		asset->next = assets;
		assets = asset;
	}
	free(asset->path);
	free(asset->content_type);
	free(asset->etag);
	free(asset->body);
	asset->path = CopyBytes(path);
	asset->path_length = path.length;
	asset->content_type = CopyBytes(type);
	asset->etag = CopyBytes(etag);
	asset->body = CopyBytes(body);
	asset->length = body.length;
	asset->loopback_only = loopback_only;
}

/* ---- answers ---- */

static const char *
StatusText(int status)
{
	switch (status)
	{
		case 200:
			return "OK";
		case 304:
			return "Not Modified";
		case 400:
			return "Bad Request";
		case 403:
			return "Forbidden";
		case 404:
			return "Not Found";
		case 405:
			return "Method Not Allowed";
		case 426:
			return "Upgrade Required";
		case 501:
			return "Not Implemented";
		case 503:
			return "Service Unavailable";
		default:
			return "Error";
	}
}

/*
 * Lets the kernel take the whole answer, so that lws can close right behind
 * it.  More than the kernel allows (some 400 kB) waits in lws, for five
 * seconds at most.
 */
static void
MakeRoom(struct lws *wsi, size_t length)
{
	int fd = lws_get_socket_fd(wsi);
	int size = (int) length + 65536;

	if (length < 32768)
		return;
	setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &size, sizeof(size));
}

/*
 * Sends the whole answer in one write.  Returns what the callback has to
 * return, which is always to close.
 */
static int
Send(struct lws *wsi, const Reply *reply)
{
	Buffer out = {NULL, 0, 0};
	char line[160];

	snprintf(line, sizeof(line), "HTTP/1.1 %d %s\r\n", reply->status, StatusText(reply->status));
	BufferAppendString(&out, line);
	if (reply->content_type != NULL)
	{
		BufferAppendString(&out, "Content-Type: ");
		BufferAppendString(&out, reply->content_type);
		snprintf(line, sizeof(line), "\r\nContent-Length: %zu\r\n", reply->length);
		BufferAppendString(&out, line);
	}
	else if (reply->status != 304)
		BufferAppendString(&out, "Content-Length: 0\r\n");
	if (reply->extra != NULL)
		BufferAppendString(&out, reply->extra);

	/*
	 * The console may connect to another server than its own, so any WebSocket
	 * is allowed, but code and data only come from here.
	 */
	BufferAppendString(&out, "Connection: close\r\n"
							 "Cache-Control: no-cache\r\n"
							 "X-Content-Type-Options: nosniff\r\n"
							 "X-Frame-Options: DENY\r\n"
							 "Referrer-Policy: no-referrer\r\n"
							 "Cross-Origin-Resource-Policy: same-origin\r\n"
							 "Content-Security-Policy: default-src 'self'; "
							 "connect-src 'self' ws: wss:; img-src 'self' data:; "
							 "style-src 'self'; object-src 'none'; "
							 "base-uri 'none'; form-action 'none'; "
							 "frame-ancestors 'none'\r\n\r\n");
	if (!reply->head && reply->length > 0)
		BufferAppend(&out, reply->body, reply->length);

	MakeRoom(wsi, out.length);
	lws_write(wsi, (unsigned char *) out.data, out.length, LWS_WRITE_HTTP_HEADERS);
	BufferReset(&out, 0);
	return -1;
}

static int
Refuse(struct lws *wsi, const Refusal *refusal, bool head)
{
	Buffer body = {NULL, 0, 0};
	Reply reply;
	int result;

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

	memset(&reply, 0, sizeof(reply));
	reply.status = refusal->status;
	reply.content_type = "application/json";
	reply.extra = refusal->extra;
	reply.body = body.data;
	reply.length = body.length;
	reply.head = head;
	result = Send(wsi, &reply);
	BufferReset(&body, 0);
	gateway.refused++;
	return result;
}

/* ---- checks ---- */

/* Copies a header; false if it is absent.  One that is too long is absent. */
static bool
Header(struct lws *wsi, enum lws_token_indexes token)
{
	if (lws_hdr_total_length(wsi, token) <= 0)
		return false;
	return lws_hdr_copy(wsi, header_text, (int) sizeof(header_text), token) > 0;
}

static bool
IsListed(const StringList *list, const char *text, size_t length)
{
	uint32_t i;

	for (i = 0; i < list->n; i++)
	{
		const char *entry = list->strings[i];

		if (strcmp(entry, "*") == 0 ||
			(strlen(entry) == length && strncasecmp(entry, text, length) == 0))
			return true;
	}
	return false;
}

/* An address, which no foreign page's name can be made to point to. */
static bool
IsAddress(const char *text, size_t length)
{
	char copy[INET6_ADDRSTRLEN];
	unsigned char address[16];
	bool v6 = length > 2 && text[0] == '[';

	if (v6)
	{
		text++;
		length -= 2;
	}
	if (length >= sizeof(copy))
		return false;
	memcpy(copy, text, length);
	copy[length] = '\0';
	return inet_pton(v6 ? AF_INET6 : AF_INET, copy, address) == 1;
}

/* The Host header must name us by a name that was meant for us. */
static bool
HostIsAllowed(struct lws *wsi, Refusal *refusal)
{
	const char *end;
	size_t length;

	refusal->status = 403;
	refusal->code = "forbidden_host";
	if (!Header(wsi, WSI_TOKEN_HOST))
	{
		refusal->status = 400;
		refusal->code = "bad_request";
		refusal->message = "the request has no usable Host header";
		return false;
	}
	if (header_text[0] == '[' && (end = strchr(header_text, ']')) != NULL)
		end++;
	else if ((end = strchr(header_text, ':')) == NULL)
		end = header_text + strlen(header_text);
	length = (size_t) (end - header_text);

	if ((length == 9 && strncasecmp(header_text, "localhost", 9) == 0) ||
		IsAddress(header_text, length) || IsListed(&gateway.allowed_hosts, header_text, length))
		return true;

	snprintf(message_text, sizeof(message_text), "host \"%.*s\" is not allowed",
			 (int) (length < 200 ? length : 200), header_text);
	refusal->message = message_text;
	refusal->hint = "Add the name to the setting changefeed.allowed_hosts.";
	return false;
}

/*
 * Browsers say which page opens the socket.  Its own page, and those listed,
 * may; programs that are no browsers send no Origin.
 */
static bool
OriginIsAllowed(struct lws *wsi, Refusal *refusal)
{
	static char host[MAX_HEADER + 1];
	const char *authority;

	if (lws_hdr_total_length(wsi, WSI_TOKEN_ORIGIN) <= 0)
		return true;
	if (!Header(wsi, WSI_TOKEN_HOST))
		return false;
	memcpy(host, header_text, strlen(header_text) + 1);
	if (Header(wsi, WSI_TOKEN_ORIGIN))
	{
		authority = strstr(header_text, "://");
		if (authority != NULL && strcasecmp(authority + 3, host) == 0)
			return true;
		if (IsListed(&gateway.allowed_origins, header_text, strlen(header_text)))
			return true;
	}
	snprintf(message_text, sizeof(message_text), "origin \"%.200s\" is not allowed", header_text);
	refusal->status = 403;
	refusal->code = "forbidden_origin";
	refusal->message = message_text;
	refusal->hint = "Add the origin to the setting changefeed.allowed_origins.";
	return false;
}

/* Does a comma-separated header contain the token? */
static bool
HeaderContains(const char *text, const char *token, bool ignore_case)
{
	size_t length = strlen(token);

	while (*text != '\0')
	{
		size_t n;
		size_t trimmed;

		text += strspn(text, " \t,");
		n = strcspn(text, ",");
		for (trimmed = n; trimmed > 0 && isspace((unsigned char) text[trimmed - 1]);)
			trimmed--;
		if (trimmed == length &&
			(ignore_case ? strncasecmp(text, token, length) : strncmp(text, token, length)) == 0)
			return true;
		text += n;
	}
	return false;
}

/* What lws would refuse by merely dropping the connection. */
static bool
HandshakeIsUsable(struct lws *wsi, Refusal *refusal)
{
	refusal->status = 400;
	refusal->code = "bad_request";
	refusal->hint = NULL;

	if (lws_hdr_total_length(wsi, WSI_TOKEN_GET_URI) <= 0 || !Header(wsi, WSI_TOKEN_UPGRADE) ||
		strcasecmp(header_text, "websocket") != 0 ||
		lws_hdr_total_length(wsi, WSI_TOKEN_CONNECTION) > 120 ||
		!Header(wsi, WSI_TOKEN_CONNECTION) || !HeaderContains(header_text, "upgrade", true) ||
		lws_hdr_total_length(wsi, WSI_TOKEN_KEY) <= 0 ||
		lws_hdr_total_length(wsi, WSI_TOKEN_KEY) > 100)
	{
		refusal->message = "this is not a WebSocket handshake";
		return false;
	}
	if (!Header(wsi, WSI_TOKEN_VERSION) || strcmp(header_text, "13") != 0)
	{
		refusal->status = 426;
		refusal->code = "upgrade_required";
		refusal->message = "only version 13 of the WebSocket protocol is spoken";
		refusal->extra = "Sec-WebSocket-Version: 13\r\n";
		return false;
	}
	if (lws_hdr_total_length(wsi, WSI_TOKEN_PROTOCOL) > 0 &&
		(lws_hdr_total_length(wsi, WSI_TOKEN_PROTOCOL) > 120 || !Header(wsi, WSI_TOKEN_PROTOCOL) ||
		 !HeaderContains(header_text, GATEWAY_SUBPROTOCOL, false)))
	{
		refusal->message = "none of the offered subprotocols is spoken";
		refusal->hint = "Offer \"" GATEWAY_SUBPROTOCOL "\" or none.";
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

	/* lws has answered an unknown kind of upgrade itself and still asks. */
	if (lws_hdr_total_length(wsi, WSI_TOKEN_UPGRADE) <= 0)
		return -1;

	memset(&refusal, 0, sizeof(refusal));
	if (!HostIsAllowed(wsi, &refusal))
		return Refuse(wsi, &refusal, false);

	memset(&refusal, 0, sizeof(refusal));
	if (!Header(wsi, WSI_TOKEN_GET_URI) || strcmp(header_text, GATEWAY_SOCKET_PATH) != 0)
	{
		refusal.status = 404;
		refusal.code = "not_found";
		refusal.message = "WebSockets are served at " GATEWAY_SOCKET_PATH;
		return Refuse(wsi, &refusal, false);
	}
	if (!OriginIsAllowed(wsi, &refusal) || !HandshakeIsUsable(wsi, &refusal))
		return Refuse(wsi, &refusal, false);

	memset(&refusal, 0, sizeof(refusal));
	if (gateway.ending)
	{
		refusal.status = 503;
		refusal.code = "shutting_down";
		refusal.message = "the server is shutting down";
		refusal.extra = "Retry-After: 5\r\n";
		return Refuse(wsi, &refusal, false);
	}
	if (gateway.open >= gateway.max_connections)
	{
		refusal.status = 503;
		refusal.code = "too_many_connections";
		refusal.message = "the limit of connections is reached";
		refusal.hint = "The setting is changefeed.max_connections.";
		refusal.extra = "Retry-After: 5\r\n";
		return Refuse(wsi, &refusal, false);
	}
	return 0;
}

/*
 * The token of an upgrade: from "Authorization: Bearer", else from ?token=.
 * The caller wipes it when it has been handed on.
 */
char *
HttpToken(struct lws *wsi, size_t *length)
{
	static const char bearer[] = "Bearer ";
	const char *token = "";

	header_text[0] = '\0';
	if (Header(wsi, WSI_TOKEN_HTTP_AUTHORIZATION) &&
		strncasecmp(header_text, bearer, sizeof(bearer) - 1) == 0)
	{
		token = header_text + sizeof(bearer) - 1;
		token += strspn(token, " ");
	}
	else
	{
		/* lws has decoded the %xx already. */
		token = lws_get_urlarg_by_name(wsi, "token=", header_text, (int) sizeof(header_text));
		if (token == NULL)
			token = "";
	}
	*length = strlen(token);
	memmove(header_text, token, *length + 1);
	return header_text;
}

/* ---- requests ---- */

/* Is one of the ETags of If-None-Match ours?  Weak comparison, as for GET. */
static bool
EtagMatches(struct lws *wsi, const char *etag)
{
	const char *p;
	size_t length = strlen(etag);

	if (length == 0 || !Header(wsi, WSI_TOKEN_HTTP_IF_NONE_MATCH))
		return false;
	for (p = header_text; *p != '\0';)
	{
		size_t n;

		p += strspn(p, " \t,");
		if (*p == '*')
			return true;
		if (strncmp(p, "W/", 2) == 0)
			p += 2;
		n = strcspn(p, ", \t");
		if (n == length && memcmp(p, etag, n) == 0)
			return true;
		p += n;
	}
	return false;
}

static int
SendAsset(struct lws *wsi, const Asset *asset, bool head)
{
	Reply reply;
	char extra[160];

	memset(&reply, 0, sizeof(reply));
	reply.head = head;
	if (strlen(asset->etag) > 0)
	{
		snprintf(extra, sizeof(extra), "ETag: %.140s\r\n", asset->etag);
		reply.extra = extra;
	}
	if (EtagMatches(wsi, asset->etag))
	{
		reply.status = 304;
		return Send(wsi, &reply);
	}
	reply.status = 200;
	reply.content_type = asset->content_type;
	reply.body = asset->body;
	reply.length = asset->length;
	return Send(wsi, &reply);
}

/* lws' HTTP callback: a request that is not an upgrade. */
int
HttpRequest(struct lws *wsi, const char *path, size_t length)
{
	bool head = lws_hdr_total_length(wsi, WSI_TOKEN_HEAD_URI) > 0;
	Refusal refusal;
	Asset *asset;
	char peer[64];

	memset(&refusal, 0, sizeof(refusal));
	if (!HostIsAllowed(wsi, &refusal))
		return Refuse(wsi, &refusal, head);

	memset(&refusal, 0, sizeof(refusal));
	if (!head && lws_hdr_total_length(wsi, WSI_TOKEN_GET_URI) <= 0)
	{
		refusal.status = 405;
		refusal.code = "method_not_allowed";
		refusal.message = "only GET and HEAD are served here";
		refusal.extra = "Allow: GET, HEAD\r\n";
		return Refuse(wsi, &refusal, false);
	}
	if (lws_hdr_total_length(wsi, WSI_TOKEN_HTTP_TRANSFER_ENCODING) > 0 ||
		(Header(wsi, WSI_TOKEN_HTTP_CONTENT_LENGTH) && strcmp(header_text, "0") != 0))
	{
		refusal.status = 400;
		refusal.code = "bad_request";
		refusal.message = "a request with a body is not served here";
		return Refuse(wsi, &refusal, head);
	}

	asset = FindAsset(path, length);
	if (asset != NULL)
	{
		if (!asset->loopback_only || PeerAddress(lws_get_socket_fd(wsi), peer, sizeof(peer)))
			return SendAsset(wsi, asset, head);
		refusal.status = 403;
		refusal.code = "forbidden_address";
		refusal.message = "this page is only served to the server's own machine";
		return Refuse(wsi, &refusal, head);
	}
	if (length == strlen(GATEWAY_SOCKET_PATH) && memcmp(path, GATEWAY_SOCKET_PATH, length) == 0)
	{
		refusal.status = 426;
		refusal.code = "upgrade_required";
		refusal.message = "this path serves WebSockets only";
		refusal.extra = "Upgrade: websocket\r\n";
		return Refuse(wsi, &refusal, head);
	}
	refusal.status = 404;
	refusal.code = "not_found";
	refusal.message = "there is nothing at this path";
	return Refuse(wsi, &refusal, head);
}
