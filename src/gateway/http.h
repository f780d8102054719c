/*-------------------------------------------------------------------------
 *
 * http.h
 *		What the files that speak HTTP share.
 *
 * http.c takes a request and answers what needs nobody else; assets.c has the
 * static pages, checks.c says who may, request.c hands requests to the feed
 * worker and sends its answers.
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

/* ---- http.c ---- */

extern void HttpAppendReply(Buffer *out, const Reply *reply);
extern void HttpAppendRefusal(Buffer *out, const Refusal *refusal, bool head);
extern int HttpSend(struct lws *wsi, const Reply *reply);
extern int HttpRefuse(struct lws *wsi, const Refusal *refusal, bool head);
extern void HttpMakeRoom(struct lws *wsi, size_t length);
extern bool HttpHasRoom(Refusal *refusal);

/* ---- checks.c ---- */

extern bool HttpHeader(struct lws *wsi, enum lws_token_indexes token);
extern bool HttpHeaderContains(const char *text, const char *token, bool ignore_case);
extern bool HttpHostIsAllowed(struct lws *wsi, Refusal *refusal);
extern HttpOrigin HttpCheckOrigin(struct lws *wsi, Refusal *refusal);
extern void HttpAppendCors(struct lws *wsi, HttpOrigin origin, Buffer *out);
extern bool HttpHandshakeIsUsable(struct lws *wsi, Refusal *refusal);

/* ---- assets.c ---- */

extern bool HttpIsAsset(const char *path, size_t length);
extern int HttpServeAsset(struct lws *wsi, const char *path, size_t length, bool head);

/* ---- request.c ---- */

extern bool HttpServePath(struct lws *wsi, const char *path, size_t length, int *result);

#endif /* CHANGEFEED_GATEWAY_HTTP_H */
