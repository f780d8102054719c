/*-------------------------------------------------------------------------
 *
 * http.h
 *		What the files that speak HTTP share.
 *
 * http.c takes a request and answers what needs nobody else; assets.c has the
 * static pages, checks.c says who may, request.c hands requests to the feed
 * worker and sends its answers, stream.c those that are made of messages.
 *
 * Process: gateway.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_GATEWAY_HTTP_H
#define CHANGEFEED_GATEWAY_HTTP_H

#include "gateway.h"

/* No longer than lws' own limit for all headers together. */
#define HTTP_MAX_HEADER 16384

typedef struct Reply
{
	int status;
	bool endless;			  /* the end of the connection is that of the body */
	bool page;				  /* a document: with what browsers should know of it */
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

/* Which page a browser sends a request for. */
typedef enum HttpOrigin
{
	ORIGIN_NONE,   /* not told: no browser, or a page of this server */
	ORIGIN_OWN,	   /* this server's */
	ORIGIN_LISTED, /* named in allowed_origins */
	ORIGIN_ANY,	   /* allowed by "*" */
	ORIGIN_FOREIGN /* to be refused */
} HttpOrigin;

/* Filled and used within one request. */
extern char http_header[HTTP_MAX_HEADER + 1];
extern char http_message[HTTP_MAX_HEADER + 256];

/* Where a channel of a stream is. */
typedef struct StreamPart
{
	uint8_t part; /* LinkPart */
	bool common;  /* READY, and at the connection's position */
	char position[LINK_POSITION_MAX + 1];
} StreamPart;

/* What stream.c keeps of an event stream or a poll. */
typedef struct Stream
{
	uint8_t kind;	  /* LinkStreamKind; 0: the answer comes as a whole */
	uint8_t flags;	  /* LINK_STREAM_* */
	bool begun;		  /* an event stream's head was written */
	bool over;		  /* a poll's time is over */
	bool asked;		  /* the feed worker has to say something before the answer */
	bool pinged;	  /* it has */
	bool told;		  /* that something came, which is not wanted itself */
	bool collected;	  /* something came that is an answer */
	bool quiet;		  /* the next message is none */
	bool has_pending; /* `pending` counts with the end of the next message */
	PartItem pending;
	uint32_t limit;	   /* of a poll's answer, in bytes */
	uint32_t retry_ms; /* to be told with the next event */
	uint32_t n;
	StreamPart *parts;
	char position[LINK_POSITION_MAX + 1]; /* of the connection */
	char *unchanged;					  /* the ETag when nothing has come, without quotes */
	char *headers;						  /* lines */
	Buffer id;							  /* the last one that the client was told */
	Buffer body;						  /* of a poll: messages between commas */
	size_t held;						  /* their bytes, until the answer has gone */
} Stream;

/* A request that the feed worker answers. */
struct Exchange
{
	bool head;
	bool said;		  /* LINK_REQUEST was sent */
	bool answered;	  /* the connection ends when the answer has gone */
	Buffer payload;	  /* of LINK_REQUEST */
	size_t missing;	  /* bytes of the body that are still to come */
	char *cors;		  /* header lines of the answer */
	char *none_match; /* If-None-Match */
	ListNode held;	  /* in request.c's list of those that wait for us */
	Connection *conn;
	Stream stream;
};

/* ---- http.c ---- */

extern void HttpAppendReply(Buffer *out, const Reply *reply);
extern void HttpAppendRefusal(Buffer *out, const Refusal *refusal, bool head);
extern int HttpSend(struct lws *wsi, const Reply *reply);
extern int HttpRefuse(struct lws *wsi, const Refusal *refusal, bool head);
extern void HttpMakeRoom(struct lws *wsi, size_t length);
extern bool HttpHasRoom(Refusal *refusal);
extern bool HttpIsPaused(Refusal *refusal);

/* ---- checks.c ---- */

extern bool HttpHeader(struct lws *wsi, enum lws_token_indexes token);
extern bool HttpHeaderContains(const char *text, const char *token, bool ignore_case);
extern bool HttpHostIsAllowed(struct lws *wsi, Refusal *refusal);
extern HttpOrigin HttpCheckOrigin(struct lws *wsi, Refusal *refusal);
extern void HttpAppendCors(struct lws *wsi, HttpOrigin origin, Buffer *out);
extern bool HttpCookieIsSafe(struct lws *wsi, HttpOrigin origin, Refusal *refusal);
extern bool HttpHandshakeIsUsable(struct lws *wsi, Refusal *refusal);

/* ---- assets.c ---- */

extern bool HttpEtagMatches(const char *list, const char *etag);
extern bool HttpIsAsset(const char *path, size_t length);
extern int HttpServeAsset(struct lws *wsi, const char *path, size_t length, bool head);

/* ---- request.c ---- */

extern void RequestAnswer(Connection *conn, const Reply *reply);
extern void RequestEnd(Connection *conn);
extern char *RequestLines(const Exchange *http, const char *more, size_t length);
extern bool HttpServePath(struct lws *wsi, const char *path, size_t length, int *result);

/* ---- stream.c ---- */

extern void StreamDeadline(Connection *conn);
extern void StreamFree(Stream *stream);
extern void StreamEnd(Connection *conn);

#endif /* CHANGEFEED_GATEWAY_HTTP_H */
