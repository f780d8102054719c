/*-------------------------------------------------------------------------
 *
 * link_format.h
 *		The link: what feed worker and gateway say to each other.
 *
 * A stream socket pair (AF_UNIX).  Every message is a LinkHeader followed by
 * `length` bytes of payload, whose fields are given beside each type in the
 * notation of wire.h: u8 u16 u32 u64 (host order, unaligned), bytes (u32
 * length + data), rest (all that is left of the payload).  Descriptors travel
 * by SCM_RIGHTS with the first byte of the message that announces them.
 *
 * The gateway knows no JSON and no SQL: it forwards what clients say, sends
 * bytes to connections, and joins the fragments of a transaction into one
 * frame per connection.  It numbers connections itself (never reusing a number
 * during its life); the feed worker uses these numbers as opaque.
 *
 * Process: feed worker and gateway.  No Postgres headers here.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_LINK_FORMAT_H
#define CHANGEFEED_LINK_FORMAT_H

#include <stdint.h>

#define LINK_VERSION 1

/* Larger messages are a protocol error, so that a length can be trusted. */
#define LINK_MAX_PAYLOAD (1024u * 1024u * 1024u)

/*
 * The longest that a gateway says is a client's message or request, of at most
 * 16 MB, or what it knows of each of its connections.
 */
#define LINK_MAX_SAID (64u * 1024u * 1024u)

typedef struct LinkHeader
{
	uint32_t length;	  /* of the payload */
	uint16_t type;		  /* LinkType */
	uint16_t descriptors; /* how many come by SCM_RIGHTS: 0 or 1 */
} LinkHeader;

/*
 * A page of a snapshot is not longer than that, so that the gateway can read it
 * into its memory; what is asked of a row follows from it.
 */
#define LINK_MAX_PAGE (16u * 1024u * 1024u)

/* A position is 40 characters: 32 of the transaction and 8 of the identity. */
#define LINK_TAG_LENGTH 8

/* With so many characters of a position ends what precedes a tag. */
#define LINK_TX_POSITION 32

typedef enum LinkType
{
	/* ---- gateway to feed worker ---- */

	/* u32 LINK_VERSION, u32 pid, bytes libwebsockets version: first message */
	LINK_HELLO = 1,

	/*
	 * A client opened a WebSocket on /v1/socket.  u32 conn, u8 transport
	 * (LinkTransport), bytes peer address, bytes token (of the Authorization
	 * header or ?token=; empty when there was none)
	 */
	LINK_OPEN = 2,

	/* A whole text message of a client.  u32 conn, rest */
	LINK_MESSAGE = 3,

	/* The connection is gone, from whichever side.  u32 conn, u8 LinkCause */
	LINK_CLOSED = 4,

	/*
	 * The connection's queue passed send_buffer; its queued transactions (of
	 * LINK_TX_BEGIN without LINK_TX_STREAM) were dropped.  u32 conn, u64
	 * number of a transaction up to which nothing was dropped: what it was
	 * sent of them was written whole or is partly in the socket.  Until
	 * LINK_RESUME the gateway drops further such transactions for this
	 * connection.
	 */
	LINK_BEHIND = 5,

	/* A connection that was behind has drained.  u32 conn */
	LINK_DRAINED = 6,

	/*
	 * All pages of a snapshot were handed to the socket.  u32 conn, u32 sub,
	 * u8 ok (0: the file could not be read)
	 */
	LINK_SNAPSHOT_DONE = 7,

	/* Everything that was queued before LINK_MARK went out. u32 conn, u32 mark */
	LINK_FLUSHED = 8,

	/* Heartbeats are due.  u32 n, n x u32 conn */
	LINK_PING_DUE = 9,

	/*
	 * Cumulative counters of the gateway, sent when asked by LINK_STATS_ASK:
	 * u64 accepted, u64 open, u64 frames, u64 bytes, u64 queued bytes, u64
	 * behind events, u64 refused, u64 bytes of messages received,
	 * LINK_LAG_BUCKETS x u64 frames by their lag (LINK_TX_TIME), u64 sum of these
	 * lags in microseconds, u32 n + n x (bytes code, u64 refusals with it), u64
	 * times that a connection was not read because of its rate
	 */
	LINK_STATS = 10,

	/*
	 * A client sent an HTTP request for one of LINK_PATHS, body included.  It
	 * is a connection of its own, which ends with the answer.  u32 conn, u8
	 * method (LINK_METHOD_*), u8 flags (LINK_REQUEST_*), bytes path (decoded,
	 * without the query), bytes peer address, bytes token (as in LINK_OPEN),
	 * bytes Last-Event-ID, bytes If-None-Match, bytes Idempotency-Key, u32 n +
	 * n x bytes argument of the query ("name=value", decoded), rest: the body
	 */
	LINK_REQUEST = 11,

	/*
	 * Something came for a poll that is LINK_STREAM_PROBE; nothing is answered
	 * yet.  u32 conn
	 */
	LINK_COLLECTED = 12,

	/*
	 * The answer to LINK_CONNECTIONS_ASK.  u32 n, n x (u32 conn, u64 queued
	 * bytes, u64 frames sent, u64 bytes sent, u64 ms since it was heard)
	 */
	LINK_CONNECTIONS = 19,

	/* The answer to LINK_PROBE.  u64 its number */
	LINK_PROBED = 20,

	/* ---- feed worker to gateway ---- */

	/*
	 * u32 max_connections, u32 send_buffer (bytes), u32 heartbeat_ms, u32
	 * connect_timeout_ms, u32 max_message (bytes of one client message), u32
	 * max_frame (bytes), u16 port, u32 n + n x bytes allowed origins, u32 n +
	 * n x bytes allowed hosts (names without port, lower case), bytes name of
	 * the cookie that has a token (empty: none), u8 compression, u32
	 * max_connections_per_address, u32 max_handshake_rate, u32
	 * max_handshake_rate_per_address, u32 max_message_rate (these three per
	 * second), u64 max_receive_rate (bytes per second), u32
	 * handshake_timeout_ms (all of them: 0 for no limit), u8 the client's
	 * address is in Forwarded instead of X-Forwarded-For, then three lists, each
	 * u32 n + n x bytes (networks as in network.h): trusted proxies, where
	 * "unix" stands for Unix sockets, allowed addresses, denied addresses; u8
	 * paused: clients are told and closed, and none are let in
	 */
	LINK_CONFIG = 32,

	/* One listening socket comes with it.  u8 flags (LINK_LISTEN_*) */
	LINK_LISTEN = 33,

	/*
	 * A static file, replacing an earlier one of that path, for everybody.
	 * bytes path, bytes content type, bytes etag (with quotes), rest
	 */
	LINK_ASSET = 34,

	/*
	 * One JSON message for one connection, in order with everything else.
	 * u32 conn, rest
	 */
	LINK_SEND = 35,

	/*
	 * The connection has its identity: the connect time-out ends, heartbeats
	 * begin, positions of its frames end with this tag.  Repeated after a
	 * change of identity.  u32 conn, LINK_TAG_LENGTH bytes
	 */
	LINK_IDENTITY = 36,

	/* Close after what is queued.  u32 conn, u16 code, bytes reason */
	LINK_CLOSE = 37,

	/*
	 * A transaction follows.  u64 number, u8 flags (LINK_TX_*), bytes before,
	 * bytes after.  A connection's frame is
	 *
	 *	{"type":"transaction","seq":<its counter>,<before><its tag><after>
	 *	<fragment>,<fragment>...]}
	 *
	 * where <before> begins behind seq's comma and ends with the position's
	 * first 32 characters, and <after> runs to the opening bracket of
	 * "changes".  A frame above max_frame is split between fragments into
	 * parts with the same seq, each a whole object, with
	 * "part":<1..>,"last":<true|false>, before <before>.
	 */
	LINK_TX_BEGIN = 38,

	/* u32 n, n x u32 conn, rest: one change, as JSON */
	LINK_TX_FRAGMENT = 39,

	/* no payload: send what the connections have now */
	LINK_TX_END = 40,

	/* The feed worker goes on from where the connection was. u32 conn */
	LINK_RESUME = 41,

	/*
	 * u32 n, n x u32 conn, bytes before, bytes after: sends
	 * <before><its tag><after> to each.  It names a position, so it is dropped
	 * like a transaction while a connection is behind.  Without <before> it names
	 * none, and <after> is all.
	 */
	LINK_PING = 42,

	/*
	 * Pages of a snapshot from the file that comes along, at this
	 * connection's own speed; whatever is queued for it later goes out before
	 * or between pages.  u32 conn, u32 sub, u32 n, n x bytes prefix.  The
	 * file holds pages: u32 length, u32 index of prefix, text.  Each becomes a
	 * message <prefix><text>}.  Answered by LINK_SNAPSHOT_DONE.
	 */
	LINK_SNAPSHOT = 43,

	/* Answered by LINK_FLUSHED.  u32 conn, u32 mark */
	LINK_MARK = 44,

	/* Stop sending the pages of this subscription. u32 conn, u32 sub */
	LINK_SNAPSHOT_STOP = 45,

	/* no payload; answered by LINK_STATS */
	LINK_STATS_ASK = 46,

	/*
	 * Tell every client {"type":"closing","reason":<reason>,
	 * "retry_after_ms":<differs>} with a value between the two, close all
	 * within a second, then exit with 0.  bytes reason, u32 least ms, u32 most
	 * ms
	 */
	LINK_SHUTDOWN = 47,

	/*
	 * The connection has said who it is, and waits for us: for a minute it is
	 * not closed for not having connected.  u32 conn
	 */
	LINK_WAITING = 48,

	/*
	 * As LINK_SEND, but it names a position, so it is dropped like a
	 * transaction while the connection is behind.  u32 conn, rest: JSON
	 */
	LINK_SYNCED = 49,

	/*
	 * The paths whose requests are handed on, replacing earlier ones.  u32 n, n
	 * x (u8 methods, a mask of LINK_METHOD_*; bytes path, where a "/" at the end
	 * stands for all that follows)
	 */
	LINK_PATHS = 50,

	/*
	 * The whole answer to a LINK_REQUEST; the connection ends when it has gone
	 * out.  u32 conn, u16 status, bytes content type, bytes further header
	 * lines (each with its line end), rest: the body
	 */
	LINK_RESPONSE = 51,

	/*
	 * The answer to a LINK_REQUEST is made of what is sent to its connection
	 * from now on; what it was sent before does not count any more.  An event
	 * stream is held back until LINK_BEGIN, a poll is collected until it can be
	 * answered: when all its channels are ready or have ended, and something
	 * came that says more than that, or `wait` is over.  u32 conn, u8
	 * LinkStreamKind, u8 flags (LINK_STREAM_*), u32 wait (ms, since now), u32
	 * limit (bytes of a poll's answer), bytes position for the ETag of an
	 * answer that says that nothing has come, bytes header lines, u16 n + n x
	 * bytes position where each channel of the request is to go on, empty if it
	 * needs a snapshot
	 */
	LINK_STREAM = 52,

	/* u32 conn */
	LINK_BEGIN = 53,

	/*
	 * From the next message or frame on (its last part), a channel of the
	 * stream is where this says.  u32 conn, u16 index of the channel, u8
	 * LinkPart, u8 quiet (the message tells nothing that a poll waits for),
	 * bytes position
	 */
	LINK_EVENT_ID = 54,

	/*
	 * Connections over TCP that come from now on speak TLS, with this pair;
	 * those that are there go on.  bytes certificates (PEM, the server's own
	 * first); the private key (PEM) is in the file that comes along.  Empty
	 * and without a file: no TLS from now on.
	 */
	LINK_TLS = 65,

	/*
	 * Of the transaction that begins next: u64 microseconds since 1970 of its
	 * commit.  What the gateway makes of it is in LINK_STATS.
	 */
	LINK_TX_TIME = 75,

	/* u32 n, n x u32 conn; answered by LINK_CONNECTIONS */
	LINK_CONNECTIONS_ASK = 76,

	/* u64 number; answered by LINK_PROBED when all before it was dealt with */
	LINK_PROBE = 77,

	/*
	 * One JSON message for several connections, in order with everything else.
	 * It is left out for those whose queue is full of such messages.  u32 n, n
	 * x u32 conn, rest
	 */
	LINK_CAST = 60,

	/*
	 * Within a transaction, behind its fragments: u32 n, n x u32 conn, u8 flags
	 * (LINK_MESSAGE_*), bytes suffix, rest: an object without its closing
	 * brace.  What a connection gets of a transaction is one thing, which is
	 * dropped as a whole: first the frame, if it has fragments, then each
	 * message as an object
	 *
	 *	<rest>,"position":"<first 32 characters><its tag><suffix>"}
	 *
	 * The last of them has no suffix, and the frame of a connection that gets
	 * messages, too, has ".0" behind its tag.
	 */
	LINK_TX_MESSAGE = 61,

	/*
	 * As LINK_CAST, but it is never left out: the feed worker sends a window of
	 * it and waits for LINK_FLUSHED.
	 */
	LINK_SHARE = 79,

	/*
	 * With several gateways: u32 how many, u32 which of them this is, from 0 on.
	 * The file that comes along is memory that they share, a u32 for each: how
	 * many sockets it has.
	 */
	LINK_BALANCE = 80,

	/*
	 * Within a transaction: u32 n, n x u32 conn, for LINK_TX_SHARED.  The first
	 * one of a transaction is number 0, and so on.
	 */
	LINK_TX_AUDIENCE = 81,

	/* As LINK_TX_FRAGMENT.  u32 number of an audience, rest: one change, as JSON */
	LINK_TX_SHARED = 82
} LinkType;

/* Its position is left out. */
#define LINK_MESSAGE_NO_POSITION 1

/* Upper bounds in microseconds; the last bucket is for what is above them. */
#define LINK_LAG_BOUNDS                                                                           \
	{                                                                                             \
		1000, 2500, 5000, 10000, 25000, 50000, 100000, 250000, 500000, 1000000, 2500000, 5000000, \
			10000000, 30000000, 60000000                                                          \
	}
#define LINK_LAG_BUCKETS 16

static inline int
LinkLagBucket(uint64_t us)
{
	static const uint64_t bounds[] = LINK_LAG_BOUNDS;
	int i = 0;

	while (i < LINK_LAG_BUCKETS - 1 && us > bounds[i])
		i++;
	return i;
}

/*
 * Frames for a subscription that catches up: not dropped when the connection
 * is behind (the feed worker paces them by LINK_MARK), not counted as its
 * last transaction.
 */
#define LINK_TX_STREAM 1

#define LINK_METHOD_GET	 1
#define LINK_METHOD_POST 2

#define LINK_REQUEST_HEAD	  1 /* HEAD: answer as to GET, the body is left out */
#define LINK_REQUEST_LOOPBACK 2 /* it came from this machine */
#define LINK_REQUEST_PROXIED  4 /* it came through a proxy, or for a page of another origin */

typedef enum LinkStreamKind
{
	LINK_STREAM_EVENTS = 1,
	LINK_STREAM_POLL = 2
} LinkStreamKind;

#define LINK_STREAM_WAITS 1 /* a poll waits until something comes */
#define LINK_STREAM_PROBE 2 /* and says LINK_COLLECTED instead of that */

/* Where a channel of a stream is. */
typedef enum LinkPart
{
	LINK_PART_SAME = 0,	 /* as before */
	LINK_PART_NONE = 1,	 /* it needs a snapshot */
	LINK_PART_OWN = 2,	 /* at the position, not ready */
	LINK_PART_READY = 3, /* at the position; from the next frame on at that of the connection */
	LINK_PART_ENDED = 4,
	LINK_PART_PACED = 5 /* ready, but only what is its own, and pings, move it */
} LinkPart;

/* Positions are texts up to this long, of [A-Za-z0-9_.-]. */
#define LINK_POSITION_MAX 64

/* A Unix socket: its clients never speak TLS. */
#define LINK_LISTEN_LOCAL 1

typedef enum LinkTransport
{
	LINK_TRANSPORT_WEBSOCKET = 1
} LinkTransport;

typedef enum LinkCause
{
	LINK_CAUSE_CLIENT = 1,	  /* closed by the client or the network */
	LINK_CAUSE_SERVER = 2,	  /* LINK_CLOSE or LINK_SHUTDOWN */
	LINK_CAUSE_HEARTBEAT = 3, /* no answer to a ping */
	LINK_CAUSE_CONNECT_TIMEOUT = 4,
	LINK_CAUSE_TOO_BIG = 5,	 /* a message above max_message */
	LINK_CAUSE_PROTOCOL = 6, /* a broken or binary frame */
	LINK_CAUSE_TOO_SLOW = 7, /* it does not take what it has asked for */
	LINK_CAUSE_FLOOD = 8,	 /* it sent more than it may */
	LINK_CAUSE_ADDRESS = 9	 /* its address is not allowed any more */
} LinkCause;

/* WebSocket close codes of our own; see doc/protocol.md. */
#define LINK_CLOSE_TRY_LATER	   1013 /* registered, not ours */
#define LINK_CLOSE_HEARTBEAT	   4000
#define LINK_CLOSE_CONNECT_TIMEOUT 4001
#define LINK_CLOSE_UNAUTHORIZED	   4003
#define LINK_CLOSE_TOKEN_EXPIRED   4004
#define LINK_CLOSE_FLOOD		   4005
#define LINK_CLOSE_ADDRESS		   4006
#define LINK_CLOSE_USER_LIMIT	   4007

/*
 * Header lines of documents.  The console may connect to another server than
 * its own, so any WebSocket is allowed, but code and data only come from here.
 */
#define LINK_PAGE_HEADERS           \
	"Cache-Control: no-cache\r\n"   \
	"X-Frame-Options: DENY\r\n"     \
	"Content-Security-Policy: "     \
	"default-src 'self'; "          \
	"connect-src 'self' ws: wss:; " \
	"img-src 'self' data:; "        \
	"style-src 'self'; "            \
	"object-src 'none'; "           \
	"base-uri 'none'; "             \
	"form-action 'none'; "          \
	"frame-ancestors 'none'\r\n"

#endif /* CHANGEFEED_LINK_FORMAT_H */
