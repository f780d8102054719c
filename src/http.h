/*-------------------------------------------------------------------------
 *
 * http.h
 *		HTTP requests in the feed worker.
 *
 * The gateway hands on the requests for the paths that http.c lists.  A
 * request is a Connection, too: it can have an identity, say what a client
 * says, and is answered once.
 *
 * To serve a path: write a handler, declare it here, and add a line to the
 * table in http.c.  A handler calls HttpRespond (or HttpFail), at once or
 * later; without an answer the gateway gives up after a minute.  A handler
 * that answers later must not keep the request (it lives in the turn), and
 * has to find the connection again by its id, as the client may be gone.
 *
 * Process: feed worker.  Memory: requests live in the turn.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_HTTP_H
#define CHANGEFEED_HTTP_H

#include "feed.h"
#include "link_format.h"
#include "linkframe.h"
#include "wire.h"

typedef struct HttpArgument
{
	char *name; /* decoded, valid in the database's encoding (UTF-8) */
	char *value;
} HttpArgument;

typedef struct HttpRequest
{
	uint8 method; /* LINK_METHOD_GET (HEAD as well) or _POST */
	bool head;
	bool loopback;	  /* it came from this machine */
	bool proxied;	  /* on behalf of somebody else: peer is a proxy, or shows another's page */
	const char *path; /* decoded, without the query */
	const char *rest; /* what follows, where the table's path ends with "/" */
	const char *peer; /* address of the client, "local" for a Unix socket */
	const char *token;
	const char *last_event_id;
	const char *if_none_match;
	const char *idempotency_key;
	int narguments;
	HttpArgument *arguments; /* in their order; names may be repeated */
	const char *body;		 /* NUL-terminated */
	Size body_length;
} HttpRequest;

typedef void (*HttpHandler)(Connection *connection, const HttpRequest *request);

/* The state of a request in its connection. */
typedef struct Http
{
	bool answered;
	const char *reply_to; /* JSON of the id whose reply is the answer, or NULL */

	/* http_stream.c: the answer is made of messages */
	uint8 kind; /* LinkStreamKind, 0: it is not */
	bool head;
	bool begun;		  /* LINK_BEGIN was sent */
	bool anonymous;	  /* no token came */
	bool no_snapshot; /* "snapshot":false */
	int announced;	  /* channels that the client was told of */
	uint64 moved;	  /* the run that has moved a paced channel */
	int nchannels;
	char **channels; /* as the client wrote them */
} Http;

/* http.c: for handlers */

/* The first argument of that name, or NULL. */
extern const char *HttpArgumentGet(const HttpRequest *request, const char *name);

/*
 * The answer.  `headers`: further lines, each ending with "\r\n", or NULL; one
 * should be Cache-Control.
 */
extern void HttpRespond(Connection *connection, int status, const char *content_type,
						const char *headers, const char *body, Size length);

/* An error as JSON, with the status that fits the SQLSTATE. */
extern void
HttpFail(Connection *connection, const char *sqlstate, const char *message, const char *hint);

/*
 * Says `message` (which has the id HTTP_REQUEST_ID) as a client with the
 * request's identity; what is answered to it becomes the answer.
 */
#define HTTP_REQUEST_ID "\"request\""
extern void
HttpAsClient(Connection *connection, const HttpRequest *request, const char *message, Size length);

/* http.c: for the rest of the feed worker */
extern void HttpSendPaths(LinkFrame *link);
extern void HttpReceive(Connection *connection, WireReader *r);

/* A message to a connection that is a request. */
extern void HttpTakeMessage(Connection *connection, const char *data, Size length);
extern bool HttpFailWith(Connection *connection, const char *data, Size length);
extern void HttpForget(Connection *connection);

/* http_stream.c: /v1/events and /v1/poll */
extern void HttpEvents(Connection *connection, const HttpRequest *request);
extern void HttpPoll(Connection *connection, const HttpRequest *request);
extern void HttpTakeStreamMessage(Connection *connection, const char *data, Size length);
extern void HttpCollected(Connection *connection);

/*
 * The next message moves the subscription: see LINK_EVENT_ID.  `position` may
 * be NULL.
 */
extern void HttpMoves(Subscription *subscription, int part, const char *position, bool quiet);

/* The client was told `subscribed`. */
extern void HttpAnnounced(Subscription *subscription);

/*
 * An event stream begins when all of its channels are announced, as an error of
 * one is its answer until then.  Those that are parked (subscribe_pages.c) are not
 * waited for: they wait for what only goes out when it has begun.
 */
extern void HttpMayBegin(Connection *connection);

#endif /* CHANGEFEED_HTTP_H */
