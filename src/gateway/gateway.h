/*-------------------------------------------------------------------------
 *
 * gateway.h
 *		State and functions shared by the files of the gateway program.
 *
 * The gateway holds the clients' sockets, the private key of TLS where it is
 * used, and nothing else: no other credential, no open files, no JSON parser,
 * no SQL.  It is one thread around one libuv loop
 * that libwebsockets (lws) shares.  What it is told comes over the link from
 * the feed worker (link_format.h); if that ends, so does the gateway.
 *
 * Rules that hold everywhere:
 * - Memory is malloc'ed by GatewayAlloc, which logs and aborts when there is
 *	 none: a gateway that dies costs its clients a reconnect, one that goes
 *	 on with half a frame costs them their data.
 * - A Connection belongs to its lws connection and is freed in lws' CLOSED
 *	 callback, nowhere else.  Whoever wants one gone asks for it (ConnClose,
 *	 ConnKill); lws calls back later, so no loop over connections ever loses
 *	 the one it stands on.
 * - Everything that a connection gets goes through its queue; a write that
 *	 bypasses a non-empty queue would be a bug.
 *
 * Process: gateway.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_GATEWAY_H
#define CHANGEFEED_GATEWAY_H

#include <libwebsockets.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "linkframe.h"
#include "network.h"
#include "wire.h"

#define GATEWAY_NAME		"pg_changefeed_gateway"
#define GATEWAY_SUBPROTOCOL "changefeed.v1"
#define GATEWAY_SOCKET_PATH "/v1/socket"

/* Below it are the paths of clients, which a pause closes; others are of operators. */
#define GATEWAY_CLIENT_PATHS "/v1/"
#define PAUSE_HINT			 "Come back later; changefeed.resume() ends the pause."

/* Exit codes; anything else is a signal. */
#define EXIT_DONE	  0 /* shut down, or the feed worker is gone */
#define EXIT_FAILED	  1 /* could not start */
#define EXIT_PROTOCOL 2 /* the link said something that makes no sense */

/* ---- lists through a member of their elements ---- */

typedef struct ListNode
{
	struct ListNode *prev; /* NULL while in no list */
	struct ListNode *next;
} ListNode;

#define ListElement(node, type, member) ((type *) ((char *) (node) -offsetof(type, member)))

static inline void
ListInit(ListNode *list)
{
	list->prev = list->next = list;
}

static inline bool
ListIsEmpty(const ListNode *list)
{
	return list->next == list;
}

static inline bool
ListContains(const ListNode *node)
{
	return node->prev != NULL;
}

static inline void
ListAppend(ListNode *list, ListNode *node)
{
	node->prev = list->prev;
	node->next = list;
	list->prev->next = node;
	list->prev = node;
}

static inline void
ListRemove(ListNode *node)
{
	if (node->prev == NULL)
		return;
	node->prev->next = node->next;
	node->next->prev = node->prev;
	node->prev = node->next = NULL;
}

/* Moves all of `from` to the end of `to`. */
static inline void
ListAppendAll(ListNode *to, ListNode *from)
{
	if (ListIsEmpty(from))
		return;
	from->next->prev = to->prev;
	to->prev->next = from->next;
	from->prev->next = to;
	to->prev = from->prev;
	ListInit(from);
}

/* ---- what a connection is sent ---- */

/* One change, several, or a message: kept once for all who get it. */
typedef struct Fragment
{
	uint32_t references;
	uint32_t length;
	char *packed;			/* see compress.c */
	uint32_t n_packed;		/* 0: it is sent as it is */
	uint32_t suffix_length; /* of a message of a transaction: of the position */
	bool tried;				/* to compress it */
	bool message;
	bool no_position;
	char data[]; /* the suffix comes first */
} Fragment;

typedef struct Transaction
{
	uint32_t references; /* queued frames, and fanout.c while it builds */
	bool complete;		 /* LINK_TX_END came: may be sent */
	bool stream;		 /* LINK_TX_STREAM */
	uint64_t number;
	uint64_t committed_us; /* since 1970; 0: not known */
	uint32_t before_length;
	uint32_t after_length;
	struct Body *root; /* of frames that are empty yet; one reference until then */
	char text[];	   /* before, then after */
} Transaction;

/* A part of a frame as it is sent, but for what differs; see join.c. */
typedef struct Image Image;

/*
 * What some connections get of a transaction, kept once for all of them: what
 * another body has, and some fragments more.  It does not change any more when
 * it has several references.
 */
typedef struct Body
{
	uint32_t references; /* frames, and bodies that begin with this one */
	uint32_t n;			 /* pieces, without those of the base */
	uint32_t capacity;
	uint32_t n_fragments; /* with those of the base */
	uint32_t n_messages;
	bool has_positions;		  /* some of the messages */
	Transaction *transaction; /* one reference */
	struct Body *base;		  /* likewise; NULL: the root */
	struct Body *next;		  /* the last one that was made of this; no reference */
	Fragment **pieces;		  /* one reference each; `one` while that is enough */
	Fragment *one;
	Fragment **all; /* fragments, then messages: made when it is joined */
	Image **images; /* of parts */
	uint32_t n_images;
} Body;

typedef enum ItemKind
{
	ITEM_FRAME,	 /* FrameItem: a transaction */
	ITEM_TEXT,	 /* TextItem: one JSON message */
	ITEM_PING,	 /* TextItem; at most one in a queue */
	ITEM_SYNCED, /* TextItem; dropped with the frames before it */
	ITEM_CAST,	 /* CastItem */
	ITEM_SHARE,	 /* likewise; it is never left out */
	ITEM_MARK,	 /* MarkItem */
	ITEM_PART,	 /* PartItem: counts from the next message on */
	ITEM_CLOSE	 /* CloseItem; always the last */
} ItemKind;

/* Head of every element of a connection's queue; owned by the queue. */
typedef struct Item
{
	struct Item *next;
	size_t size;  /* bytes accounted and not yet sent */
	uint8_t kind; /* ItemKind */
	bool feed;	  /* counts as feed, may be dropped */
} Item;

/* One for each connection and transaction: so it is small. */
typedef struct FrameItem
{
	Item item;
	Body *body; /* one reference */
} FrameItem;

/* How far the first frame of a queue is: only that one can have begun. */
typedef struct Progress
{
	uint64_t seq;			/* given when the first part is joined */
	uint32_t part;			/* parts that are joined already */
	uint32_t n_sent;		/* fragments of these */
	uint32_t messages_sent; /* they follow the fragments */
} Progress;

typedef struct TextItem
{
	Item item;
	size_t length;
	size_t position; /* of a ping: where in it the connection's position is */
	char data[];
} TextItem;

typedef struct CastItem
{
	Item item;
	Fragment *text; /* one reference */
} CastItem;

typedef struct MarkItem
{
	Item item;
	uint32_t mark;
} MarkItem;

/* LINK_EVENT_ID */
typedef struct PartItem
{
	Item item;
	uint16_t index;
	uint8_t part; /* LinkPart */
	bool quiet;
	char position[LINK_POSITION_MAX + 1];
} PartItem;

/* A control frame holds 125 bytes, two of which are the code. */
#define CLOSE_REASON_MAX 123
#define CLOSE_FRAME_MAX	 (4 + CLOSE_REASON_MAX)

typedef struct CloseItem
{
	Item item;
	uint16_t code;
	uint8_t length;
	char reason[CLOSE_REASON_MAX];
} CloseItem;

/* A socket with its address; see visitor.h. */
typedef struct Visitor Visitor;

/* Pages of a snapshot that are still to be sent; see snapshot.c. */
typedef struct SnapshotStream SnapshotStream;

/* An HTTP request that the feed worker answers; see request.c. */
typedef struct Exchange Exchange;

/* ---- timers of the heartbeat wheel ---- */

typedef struct WheelTimer
{
	ListNode node;	 /* in a slot of the wheel, or in no list */
	uint32_t due;	 /* in ticks of a second of loop time */
	bool is_ping;	 /* Connection.ping; else Connection.deadline */
	bool is_visitor; /* neither: Visitor.late */
} WheelTimer;

/* ---- a WebSocket, or an HTTP request ---- */

/*
 * What every frame needs comes first, in the order in which it is needed: with
 * many connections each line of the cache that is touched has to be fetched.
 */
typedef struct Connection
{
	uint32_t number;   /* never reused in the life of a gateway */
	int fd;			   /* -1: what is written has to go through lws */
	bool behind;	   /* feed is dropped until LINK_RESUME */
	bool close_queued; /* nothing more may be queued */
	bool closing;	   /* nothing more may be written */
	bool compressed;   /* permessage-deflate was negotiated */
	bool drained_due;  /* LINK_DRAINED has to be said */
	bool ping_queued;
	bool ping_dropped;		/* one was left out while behind */
	uint8_t cause;			/* LinkCause for LINK_CLOSED */
	uint32_t queued_frames; /* items that count as feed */
	bool identified;		/* LINK_IDENTITY came */
	bool close_sent;		/* our close frame was written */
	bool killed;			/* lws was told to drop it */
	bool unread;			/* lws was told not to read it */
	Item *head;				/* the queue */
	Item *tail;
	FrameItem *open_frame; /* last frame, if its transaction is open */
	size_t queued_feed;	   /* sum of sizes */
	size_t pending_feed;   /* of the last write, if lws holds a part of it */

	uint32_t listed_at; /* where in walk.c's array */
	uint8_t listed;		/* in which of them; 0: none */
	struct lws *wsi;
	Exchange *http; /* NULL for a WebSocket */
	char tag[LINK_TAG_LENGTH];
	uint64_t seq;		  /* transaction frames joined so far */
	uint64_t last_number; /* last transaction that is not STREAM */
	uint64_t sent_frames;

	Progress progress; /* of the first item, if that is a frame */
	uint64_t sent_bytes;
	size_t queued_other;
	size_t queued_stream; /* of queued_other: frames of replays */
	size_t queued_casts;  /* likewise: casts */
	size_t pending_other;
	SnapshotStream *snapshots; /* oldest first */
	SnapshotStream *snapshots_tail;

	/* the message that is being received, if it comes in pieces */
	uint64_t heard_ms; /* loop time of the last received data */
	char *message;
	size_t message_length;
	size_t message_capacity;
	bool in_message;  /* it has begun */
	bool in_packed;	  /* it is compressed */
	bool frame_ended; /* its next piece begins a frame */
	ListNode stopped; /* in a list of conn.c: reading is stopped, or it is to be dropped */

	/* throttle.c */
	ListNode paused;	   /* reading is paused: in its list */
	uint64_t paused_until; /* ns of loop time, as all of these */
	uint64_t excess_since; /* a bucket was empty, and not half full since; 0: no */
	uint64_t bytes_used;   /* Bucket */
	uint64_t messages_used;
	uint64_t wire;		   /* bytes that TCP had brought at the last check */
	uint64_t wire_checked; /* 0: never yet */

	/* heartbeat.c: bytes that the client had taken when it was found choked, and when that was */
	uint32_t taken;
	uint32_t choked_since; /* tick; 0: it was not */

	WheelTimer ping;
	WheelTimer deadline; /* connect time-out, liveness, or close */
} Connection;

/* Networks from LINK_CONFIG. */
typedef struct NetworkList
{
	uint32_t n;
	Network *networks;
} NetworkList;

/* A list of strings from LINK_CONFIG. */
typedef struct StringList
{
	uint32_t n;
	char **strings;
} StringList;

typedef struct Gateway
{
	uv_loop_t loop;
	struct lws_context *lws;
	struct lws_vhost *vhost;
	LinkFrame *link;

	/* LINK_CONFIG */
	bool configured;
	uint32_t max_connections;
	uint32_t send_buffer;
	uint32_t heartbeat_ms;
	uint32_t connect_timeout_ms;
	uint32_t max_message;
	uint32_t max_frame;
	uint16_t port;
	bool compression;
	StringList allowed_origins;
	StringList allowed_hosts;
	char *token_cookie;					  /* name of a cookie with a token; "": none */
	uint32_t max_connections_per_address; /* 0: no limit, as in all that follow */
	uint32_t max_handshake_rate;
	uint32_t max_handshake_rate_per_address;
	uint32_t max_message_rate;
	uint64_t max_receive_rate;
	uint32_t handshake_timeout_ms;
	bool forwarded_header; /* Forwarded; else X-Forwarded-For */
	bool trust_unix;	   /* what comes through Unix sockets comes from proxies */
	NetworkList trusted_proxies;
	NetworkList allowed_addresses; /* empty: all */
	NetworkList denied_addresses;
	bool paused; /* no clients are let in */

	size_t max_sockets;	 /* from RLIMIT_NOFILE */
	size_t open_sockets; /* accepted ones, whatever they speak */
	bool ending;		 /* LINK_SHUTDOWN or SIGTERM */
	int exit_code;

	/* LINK_STATS */
	uint64_t accepted; /* WebSockets and requests */
	uint64_t open;
	uint64_t frames;
	uint64_t bytes;
	uint64_t queued_bytes;
	uint64_t behind_events;
	uint64_t refused;
	uint64_t received_bytes; /* of messages */
	uint64_t throttled;		 /* times that a connection was not read for its rate */
} Gateway;

extern Gateway gateway;

/* ---- util.c ---- */

typedef enum LogLevel
{
	LEVEL_LOG,
	LEVEL_WARNING,
	LEVEL_FATAL
} LogLevel;

extern void
GatewayLog(LogLevel level, const char *format, ...) __attribute__((format(printf, 2, 3)));
extern void GatewayFatal(int exit_code, const char *format, ...)
	__attribute__((format(printf, 2, 3), noreturn));
extern void *GatewayAlloc(size_t size);
extern void *GatewayAllocZero(size_t size);
extern void *GatewayRealloc(void *p, size_t size);
extern bool Utf8IsValid(const char *data, size_t length);

/* Of a WebSocket frame that is not masked. */
#define FRAME_HEADER_MAX 10

/* A growing buffer of bytes. */
typedef struct Buffer
{
	char *data;
	size_t length;
	size_t capacity;
} Buffer;

extern void BufferReserve(Buffer *buffer, size_t n);
extern void BufferAppend(Buffer *buffer, const void *data, size_t n);
extern void BufferAppendString(Buffer *buffer, const char *string);
extern void BufferAppendJson(Buffer *buffer, const char *string);
extern void BufferAppendFrameHeader(Buffer *buffer, size_t length, bool compressed);
extern size_t BuildFrameHeader(unsigned char *header, size_t length, bool compressed);
extern size_t
BuildCloseFrame(unsigned char *frame, uint16_t code, const char *reason, size_t length);
extern void BufferReset(Buffer *buffer, size_t keep);

/* ---- pool.c ---- */

typedef struct PoolRegion PoolRegion;

/* Zero but for the size is an empty one. */
typedef struct Pool
{
	size_t size;		/* of an element */
	ListNode with_room; /* regions */
	PoolRegion *spares; /* empty ones, linked by their nodes */
	uint32_t n_spares;
	uint32_t least_spares; /* since the last PoolTrim */
} Pool;

extern void *PoolTake(Pool *pool);
extern void PoolGive(Pool *pool, void *element);
extern void PoolTrim(Pool *pool);

/* ---- main.c ---- */

extern void
GatewayShutdown(const char *reason, size_t reason_length, uint32_t least_ms, uint32_t most_ms);

/* Tells all clients and closes; only requests that are about to be answered go on. */
extern void GatewayPause(void);
extern void GatewayConnectionGone(void);
extern void GatewayExit(int exit_code);

/* ---- turn.c ---- */

extern bool TurnWasFull(void);

/* ---- server.c ---- */

extern void ServerCreate(void);
extern struct lws_vhost *ServerMakeVhost(const char *name, uint64_t options);
extern void ServerDestroy(void);

/* ---- link.c ---- */

extern void LinkStart(int fd);
extern void LinkStop(void);
extern void LinkLook(void);
extern void LinkEndTurn(void);
extern bool LinkIsOverloaded(void);
extern void LinkEndMessage(void);
extern void LinkSayProbed(uint64_t number);
extern void LinkSay(LinkType type, const uint32_t *numbers, int n);
extern void LinkSayPingDue(const uint32_t *numbers, uint32_t n);
extern void
LinkSayOpen(const Connection *conn, const char *peer, const char *token, size_t token_length);
extern void LinkSayMessage(const Connection *conn, const void *data, size_t length);
extern void LinkSayClosed(const Connection *conn);
extern void LinkSayBehind(const Connection *conn, uint64_t last);
extern void LinkSayRequest(const Connection *conn, const void *payload, size_t length);
extern void LinkSaySnapshotDone(uint32_t conn, uint32_t sub, bool ok);

/* ---- stats.c ---- */

extern void StatsNoteRefusal(const char *code);
extern void StatsNoteCommitTime(uint64_t us);
extern uint64_t StatsTakeCommitTime(void);
extern void StatsNoteFrame(const FrameItem *frame);
extern void StatsForgetClock(void);
extern void StatsSay(void);
extern void StatsSayConnections(WireReader *r);

/* ---- conn.c ---- */

/* By number; open addressing, linear probing. */
typedef struct ConnTable
{
	Connection **slots;
	uint32_t mask; /* their number, a power of two, less one */
	uint32_t used;
} ConnTable;

extern ConnTable conn_table;

static inline Connection *
ConnFind(uint32_t number)
{
	uint32_t i;

	for (i = number & conn_table.mask; conn_table.slots[i] != NULL; i = (i + 1) & conn_table.mask)
	{
		if (conn_table.slots[i]->number == number)
			return conn_table.slots[i];
	}
	return NULL;
}

/* It will be looked up soon: its first two lines, which most likely are these. */
static inline void
ConnPrefetch(uint32_t number)
{
	const char *conn = (const char *) conn_table.slots[number & conn_table.mask];

	__builtin_prefetch(conn);
	__builtin_prefetch(conn + 64);
}

extern Connection *ConnNext(uint32_t *position);
extern void ConnStart(void);
extern void ConnTrim(void);
extern Connection *ConnCreate(struct lws *wsi);
extern Connection *ConnOpen(struct lws *wsi, const char *token, size_t length);
extern void ConnGone(Connection *conn);
extern void ConnReceive(Connection *conn, const void *data, size_t length);
extern void ConnHeard(Connection *conn);
extern void ConnIdentify(Connection *conn, const char *tag);
extern void ConnWaits(Connection *conn);
extern void ConnClose(Connection *conn, LinkCause cause, uint16_t code, const char *reason);
extern void ConnCloseAfterQueue(Connection *conn, uint16_t code, const char *reason, size_t length);
extern void ConnBeginClose(Connection *conn, uint16_t code, const char *reason, size_t length);
extern void ConnRefuse(Connection *conn, LinkCause cause, uint16_t code, const char *sqlstate,
					   const char *message, const char *hint);
extern void ConnKill(Connection *conn, LinkCause cause);
extern void ConnKillSocket(struct lws *wsi);
extern void ConnSetReading(Connection *conn);
extern int ConnPeerCloses(Connection *conn);
extern void ConnResumeReading(void);
extern void ConnEndTurn(void);

/* ---- queue.c ---- */

typedef enum FlushResult
{
	FLUSH_DONE,	  /* nothing is left that could be sent */
	FLUSH_CHOKED, /* lws will call WRITEABLE */
	FLUSH_MORE,	  /* the budget of this turn is used up */
	FLUSH_CLOSING /* no more writes: the connection closes */
} FlushResult;

extern void QueueAdd(Connection *conn, Item *item);
extern void QueueAddText(Connection *conn, ItemKind kind, const char *a, size_t a_length,
						 const char *b, size_t b_length, const char *c, size_t c_length);
extern void QueueAddPart(Connection *conn, WireReader *r);
extern void QueueAddMark(Connection *conn, uint32_t mark);
extern void QueueAddCast(Connection *conn, Fragment *text);
extern void QueueAddShare(Connection *conn, Fragment *text);
extern void QueueAddClose(Connection *conn, uint16_t code, const char *reason, size_t length);
extern FrameItem *QueueNewFrame(void);
extern void QueueGrew(Connection *conn, Item *item, size_t n);
extern bool QueueHasRoomForFeed(Connection *conn, uint64_t number);
extern void QueueResume(Connection *conn);
extern void QueueDropAll(Connection *conn);
extern void QueueTrim(void);
extern FlushResult QueueSend(Connection *conn);
extern bool ConnIsChoked(const Connection *conn);

/* ---- walk.c ---- */

extern void WalkStart(void);
extern void WalkForget(Connection *conn);
extern void WalkExpect(uint32_t n);
extern void QueueMarkDirty(Connection *conn);
extern void QueueTransactionEnded(void);
extern FlushResult QueueFlush(Connection *conn);
extern void QueueFlushDirty(void);

/* ---- fanout.c ---- */

extern void FanoutBegin(WireReader *r);
extern void FanoutFragment(WireReader *r);
extern void FanoutAudience(WireReader *r);
extern void FanoutShared(WireReader *r);
extern void FanoutPassMerged(void);
extern void FanoutMessage(WireReader *r);
extern void FanoutCast(WireReader *r, void (*add)(Connection *conn, Fragment *text));
extern void FanoutEnd(void);

/* ---- body.c ---- */

extern void FragmentRelease(Fragment *fragment);
extern void TransactionRelease(Transaction *transaction);
extern size_t FragmentSize(const Fragment *fragment);
extern Body *BodyNew(Transaction *transaction);
extern Body *BodyWith(Body *base, Fragment *piece);
extern void BodyRelease(Body *body);
extern Fragment **BodyPieces(Body *body);

/* ---- join.c ---- */

/* Accounted for a frame beside the pieces that the link gave us. */
#define ENVELOPE_BYTES 96

extern size_t JoinNext(Connection *conn, FrameItem *frame, Buffer *buffer);
extern const char *JoinInPlace(Connection *conn, FrameItem *frame, size_t *length);
extern size_t JoinNextSize(const Connection *conn, const FrameItem *frame);
extern void ImageFree(Image *image);

/* The connection's first frame. */
static inline bool
FrameIsSent(const Connection *conn, const Body *body)
{
	return conn->progress.n_sent == body->n_fragments &&
		   conn->progress.messages_sent == body->n_messages;
}

/* ---- compress.c ---- */

typedef enum InflateResult
{
	INFLATE_OK,
	INFLATE_DAMAGED,
	INFLATE_TOO_BIG /* larger than max_message */
} InflateResult;

extern const struct lws_extension compress_extensions[];
extern void CompressForget(void);
extern bool CompressIsNegotiated(struct lws *wsi);
extern bool CompressIsWanted(struct lws *wsi);
extern bool CompressAnswer(struct lws *wsi, struct lws_process_html_args *args);
extern bool CompressPiece(const char *data, size_t length, Buffer *out);
extern void CompressText(const void *data, size_t length);
extern void CompressAppend(const char *piece, size_t length);
extern void CompressFinish(Buffer *buffer);
extern void CompressWhole(const char *data, size_t length, Buffer *buffer);
extern InflateResult
CompressInflate(const char *data, size_t length, const char **text, size_t *text_length);

/* ---- snapshot.c ---- */

extern void SnapshotAdd(Connection *conn, WireReader *r, int fd);
extern void SnapshotStop(Connection *conn, uint32_t sub);
extern void SnapshotStopAll(Connection *conn);
extern bool SnapshotNextPage(Connection *conn, Buffer *buffer);

/* ---- http.c, checks.c, assets.c ---- */

extern int HttpRequest(struct lws *wsi, const char *path, size_t length);
extern int HttpCheckUpgrade(struct lws *wsi);
extern char *HttpToken(struct lws *wsi, size_t *length, bool *is_cookie);
extern void HttpSetAsset(WireReader *r);

/* ---- request.c ---- */

extern void RequestStart(void);
extern void RequestSetPaths(WireReader *r);
extern int RequestBody(Connection *conn, const void *data, size_t length);
extern void RequestRespond(Connection *conn, WireReader *r);
extern void RequestDeadline(Connection *conn);
extern void
RequestFail(Connection *conn, int status, const char *code, const char *message, const char *hint);
extern void RequestChoked(Connection *conn);
extern void RequestWriteable(Connection *conn);
extern void RequestFree(Connection *conn);

/* ---- tls.c ---- */

extern void TlsTake(WireReader *r, int fd);
extern struct lws_vhost *TlsVhost(void);
extern bool TlsSetUp(void *context);

/* ---- peer.c ---- */

extern bool PeerWasForwarded(struct lws *wsi);
extern bool PeerIsThisMachine(struct lws *wsi);

/* ---- stream.c ---- */

/* What was written, for those who have to be told where to go on. */
typedef struct MessageInfo
{
	bool whole;			  /* an object, or the last part of a frame */
	bool last;			  /* no object of the same transaction follows */
	bool quiet;			  /* it tells nothing that a poll waits for */
	const char *position; /* LINK_TX_POSITION characters of that of all channels
						   * that are ready, or NULL */
	const char *suffix;	  /* what follows the tag in it */
	size_t suffix_length;
} MessageInfo;

extern void StreamOpen(Connection *conn, WireReader *r);
extern void StreamBegin(Connection *conn);
extern void StreamNotePart(Connection *conn, const PartItem *item);
extern size_t MessageBegin(Connection *conn, Buffer *buffer, size_t length);
extern void MessageEnd(Connection *conn, Buffer *buffer, size_t start, const MessageInfo *info);
extern bool StreamWrite(Connection *conn, Buffer *buffer);
extern void StreamFlushed(Connection *conn);
extern void StreamClosing(Connection *conn, uint32_t retry_ms);
extern bool StreamIsBegun(const Connection *conn);
extern bool StreamIsAsked(const Connection *conn);
extern void StreamDropped(Connection *conn);
extern bool StreamIsChoked(const Connection *conn);

/* ---- heartbeat.c ---- */

extern void HeartbeatStart(void);
extern void HeartbeatStop(void);
extern void HeartbeatBegin(Connection *conn);
extern void HeartbeatSetDeadline(Connection *conn, uint64_t ms);
extern void HeartbeatForget(Connection *conn);
extern void WheelSet(WheelTimer *timer, uint64_t ms);
extern void WheelRemove(WheelTimer *timer);

/* ---- listener.c ---- */

extern void ListenerTake(int fd, uint8_t flags);
extern bool ListenerIsTaken(void);
extern void ListenerStart(void);
extern void ListenerLook(void);
extern void ListenerUpdate(void);
extern void ListenerStop(void);

/* ---- balance.c ---- */

extern void BalanceTake(WireReader *r, int fd);
extern void BalanceUpdate(void);
extern bool BalanceIsShared(void);
extern bool BalanceIsAhead(void);

/* ---- visitor.c ---- */

extern void VisitorStart(void);
extern Visitor *VisitorAccept(const struct sockaddr *peer, bool tls);
extern void VisitorBegin(Visitor *visitor, struct lws *wsi);
extern void VisitorForget(Visitor *visitor);
extern void VisitorGone(struct lws *wsi);
extern void VisitorServed(struct lws *wsi);
extern void VisitorLate(Visitor *visitor);
extern void VisitorText(struct lws *wsi, char *text, size_t size);
extern bool VisitorIsLoopback(struct lws *wsi);
extern void VisitorCheckAll(void);

/* ---- throttle.c ---- */

extern void ThrottleStart(void);
extern bool ThrottleReceived(Connection *conn, size_t length, bool frame);
extern void ThrottleCheckWire(Connection *conn);
extern void ThrottleForget(Connection *conn);

/* ---- sandbox.c ---- */

extern void SandboxPrepare(void); /* before the loop is made */
extern void SandboxEnter(void);

#endif /* CHANGEFEED_GATEWAY_H */
