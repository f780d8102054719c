/*-------------------------------------------------------------------------
 *
 * conn.c
 *		Connections, WebSockets and requests: their table, receiving, closing.
 *
 * The table finds a connection by the number that the feed worker uses.
 * Numbers count up, so a plain modulus spreads them perfectly and neighbours in
 * an audience are neighbours in memory.
 *
 * Closing has three forms.  ConnCloseAfterQueue lets everything out that is
 * queued; ConnClose starts the closing handshake at once; ConnKill drops the
 * TCP connection.  All of them only ask lws, which calls back later, and all
 * end in ConnGone, from lws' CLOSED callback.  A connection that is choked
 * cannot send a close frame and is killed instead; one that does not finish
 * its closing handshake is killed by its deadline.
 *
 * Process: gateway.  Memory: a Connection is made in ConnOpen and freed in
 * ConnGone; nothing else may free it.
 *
 *-------------------------------------------------------------------------
 */
#include <stdlib.h>
#include <string.h>

#include "http.h"

/* How long the feed worker may take to find out who it is. */
#define WAITING_MS 60000

/* A closing handshake, or a queue before a close, may take this long. */
#define CLOSE_MS 5000

/* So many are dropped in a turn, some 30 us each; the loop goes on with others. */
#define DROPPED_PER_TURN 16

static const char too_big[] = "message larger than changefeed.max_message";
static const char pong[] = "{\"type\":\"pong\"}";

ConnTable conn_table;

static Pool connections = {.size = (sizeof(Connection) + 63) / 64 * 64};

static uint32_t last_number;

/* Connections that we do not read from because the link is full. */
static ListNode stopped_list;

/* Those that were killed and that lws has yet to drop. */
static ListNode doomed_list;
static uv_idle_t idle; /* runs while there are some */

/* Somebody was killed: lws has to be woken once, at the end of the turn. */
static bool wake_lws;

static void
OnIdle(uv_idle_t *handle)
{
	(void) handle; /* it only keeps the loop from sleeping */
}

void
ConnStart(void)
{
	ListInit(&stopped_list);
	ListInit(&doomed_list);
	uv_idle_init(&gateway.loop, &idle);
	conn_table.mask = 63;
	conn_table.slots = GatewayAllocZero(64 * sizeof(Connection *));
}

/* ---- the table ---- */

/* Iterates in no particular order; *position starts at 0. */
Connection *
ConnNext(uint32_t *position)
{
	while (*position <= conn_table.mask)
	{
		Connection *conn = conn_table.slots[(*position)++];

		if (conn != NULL)
			return conn;
	}
	return NULL;
}

static void
TablePut(Connection *conn)
{
	uint32_t i = conn->number & conn_table.mask;

	while (conn_table.slots[i] != NULL)
		i = (i + 1) & conn_table.mask;
	conn_table.slots[i] = conn;
}

static void
TableInsert(Connection *conn)
{
	if (conn_table.used > conn_table.mask / 2)
	{
		Connection **old = conn_table.slots;
		uint32_t old_mask = conn_table.mask;
		uint32_t i;

		conn_table.mask = old_mask * 2 + 1;
		conn_table.slots = GatewayAllocZero(((size_t) conn_table.mask + 1) * sizeof(Connection *));
		for (i = 0; i <= old_mask; i++)
		{
			if (old[i] != NULL)
				TablePut(old[i]);
		}
		free(old);
	}
	TablePut(conn);
	conn_table.used++;
}

/* Removes, and closes the gap so that probing needs no tombstones. */
static void
TableRemove(const Connection *conn)
{
	Connection **slots = conn_table.slots;
	uint32_t mask = conn_table.mask;
	uint32_t hole = conn->number & mask;
	uint32_t i;

	while (slots[hole] != conn)
		hole = (hole + 1) & mask;
	for (i = (hole + 1) & mask; slots[i] != NULL; i = (i + 1) & mask)
	{
		uint32_t home = slots[i]->number & mask;

		/* Does the hole lie between this one's home and its place? */
		if (((i - home) & mask) >= ((i - hole) & mask))
		{
			slots[hole] = slots[i];
			hole = i;
		}
	}
	slots[hole] = NULL;
	conn_table.used--;
}

/* Once a second. */
void
ConnTrim(void)
{
	PoolTrim(&connections);
}

/* ---- opening ---- */

Connection *
ConnCreate(struct lws *wsi)
{
	Connection *conn = memset(PoolTake(&connections), 0, sizeof(Connection));

	/* Four thousand million connections take a while; still, never reuse. */
	if (last_number == UINT32_MAX)
		GatewayFatal(EXIT_DONE, "connection numbers are used up");

	conn->wsi = wsi;
	conn->fd = -1;
	conn->number = ++last_number;
	conn->cause = LINK_CAUSE_CLIENT;
	memset(conn->tag, '0', sizeof(conn->tag));
	conn->heard_ms = uv_now(&gateway.loop);
	conn->ping.is_ping = true;
	TableInsert(conn);
	VisitorServed(wsi);
	gateway.accepted++;
	gateway.open++;
	return conn;
}

Connection *
ConnOpen(struct lws *wsi, const char *token, size_t length)
{
	Connection *conn = ConnCreate(wsi);
	char peer[64];

	if (lws_get_ssl(wsi) == NULL)
		conn->fd = lws_get_socket_fd(wsi);
	conn->compressed = CompressIsNegotiated(wsi);
	CompressForget();
	VisitorText(wsi, peer, sizeof(peer));
	LinkSayOpen(conn, peer, token, length);
	if (gateway.connect_timeout_ms > 0)
		HeartbeatSetDeadline(conn, gateway.connect_timeout_ms);
	return conn;
}

/* It has told who it is; that it is not identified yet is not its fault. */
void
ConnWaits(Connection *conn)
{
	if (!conn->identified && !conn->close_queued && conn->http == NULL)
		HeartbeatSetDeadline(conn, WAITING_MS);
}

/* The connection has its identity, or another one. */
void
ConnIdentify(Connection *conn, const char *tag)
{
	memcpy(conn->tag, tag, LINK_TAG_LENGTH);
	if (conn->identified || conn->close_queued || conn->http != NULL)
		return; /* an event stream has its heartbeat from its beginning on */
	conn->identified = true;
	HeartbeatBegin(conn);
}

/* ---- receiving ---- */

void
ConnHeard(Connection *conn)
{
	conn->heard_ms = uv_now(&gateway.loop);
}

static void
FreeMessage(Connection *conn)
{
	free(conn->message);
	conn->message = NULL;
	conn->message_length = 0;
	conn->message_capacity = 0;
	conn->in_message = false;
}

/*
 * From now on nothing is written to or taken from the connection, and what
 * waits for it is dropped.
 */
static void
StopUsing(Connection *conn)
{
	conn->closing = true;
	conn->close_queued = true;
	QueueDropAll(conn);
	SnapshotStopAll(conn);
	FreeMessage(conn);
	HeartbeatForget(conn);
	ThrottleForget(conn);
	ConnSetReading(conn);
}

/* Hands a whole message on. */
static void
Deliver(Connection *conn, const char *data, size_t length)
{
	if (conn->in_packed)
	{
		switch (CompressInflate(data, length, &data, &length))
		{
			case INFLATE_OK:
				break;
			case INFLATE_TOO_BIG:
				ConnClose(conn, LINK_CAUSE_TOO_BIG, 1009, too_big);
				return;
			case INFLATE_DAMAGED:
				ConnClose(conn, LINK_CAUSE_PROTOCOL, 1007, "not deflated as it should be");
				return;
		}
	}
	if (!Utf8IsValid(data, length))
		ConnClose(conn, LINK_CAUSE_PROTOCOL, 1007, "not UTF-8");
	/* The answer to a ping says that the client lives; that is all. */
	else if (length != sizeof(pong) - 1 || memcmp(data, pong, length) != 0)
		LinkSayMessage(conn, data, length);
}

/*
 * lws' RECEIVE: a piece of a message, at most rx_buffer_size bytes.  Most
 * messages are one piece and never copied here.
 */
void
ConnReceive(Connection *conn, const void *data, size_t length)
{
	bool final = lws_is_final_fragment(conn->wsi) != 0;
	size_t rest;

	if (conn->close_queued)
		return;
	ConnHeard(conn);
	gateway.received_bytes += length;

	if (lws_frame_is_binary(conn->wsi))
	{
		ConnClose(conn, LINK_CAUSE_PROTOCOL, 1003, "text messages only");
		return;
	}

	/* Only the first frame of a message says whether it is compressed. */
	if (!conn->in_message)
		conn->in_packed = conn->compressed && (lws_get_reserved_bits(conn->wsi) & 0x40) != 0;
	else if (conn->frame_ended && lws_get_reserved_bits(conn->wsi) != 0)
	{
		ConnClose(conn, LINK_CAUSE_PROTOCOL, 1002, "reserved bit in a continuation");
		return;
	}

	/* A frame says how long it is: refuse it before it has come. */
	rest = lws_remaining_packet_payload(conn->wsi);
	conn->frame_ended = rest == 0;
	if (gateway.max_message > 0 &&
		(rest > gateway.max_message || conn->message_length + length + rest > gateway.max_message))
	{
		ConnClose(conn, LINK_CAUSE_TOO_BIG, 1009, too_big);
		return;
	}

	/*
	 * The feed worker does not read: let TCP tell the clients.  Only those who
	 * send are stopped, so that this costs nothing with many silent ones.
	 */
	if (LinkIsOverloaded() && !ListContains(&conn->stopped))
	{
		ListAppend(&stopped_list, &conn->stopped);
		ConnSetReading(conn);
	}
	if (!ThrottleReceived(conn, length, rest == 0))
		return;

	if (final && !conn->in_message)
	{
		Deliver(conn, data, length);
		return;
	}

	conn->in_message = true;
	if (conn->message_length + length > conn->message_capacity)
	{
		size_t capacity = conn->message_capacity * 2;

		if (capacity < conn->message_length + length)
			capacity = conn->message_length + length + 256;
		conn->message = GatewayRealloc(conn->message, capacity);
		conn->message_capacity = capacity;
	}
	if (length > 0)
		memcpy(conn->message + conn->message_length, data, length);
	conn->message_length += length;
	if (!final)
		return;
	Deliver(conn, conn->message, conn->message_length);
	FreeMessage(conn);
}

/* The link has room again. */
void
ConnResumeReading(void)
{
	while (!ListIsEmpty(&stopped_list))
	{
		Connection *conn = ListElement(stopped_list.next, Connection, stopped);

		ListRemove(&conn->stopped);
		ConnSetReading(conn);
	}
}

/* It is read unless somebody has a reason that it is not. */
void
ConnSetReading(Connection *conn)
{
	bool read = !ListContains(&conn->stopped) && !ListContains(&conn->paused);

	if (conn->killed || read == !conn->unread)
		return;
	conn->unread = !read;
	lws_rx_flow_control(conn->wsi, read ? 1 : 0);

	/*
	 * lws has kept what it had read already; the writable event makes it look
	 * there, even if the client sends nothing more.
	 */
	if (read)
		lws_callback_on_writable(conn->wsi);
}

/* ---- closing ---- */

/*
 * The client closes.  If it answers our close frame, that was all and the
 * connection can be dropped (-1); else lws answers it.
 */
int
ConnPeerCloses(Connection *conn)
{
	if (conn->close_sent)
		return -1;
	StopUsing(conn);
	HeartbeatSetDeadline(conn, CLOSE_MS);
	return 0;
}

/* LINK_CLOSE: after all that is queued. */
void
ConnCloseAfterQueue(Connection *conn, uint16_t code, const char *reason, size_t length)
{
	if (conn->close_queued)
		return;
	conn->cause = LINK_CAUSE_SERVER;
	HeartbeatForget(conn);
	HeartbeatSetDeadline(conn, CLOSE_MS);
	QueueAddClose(conn, code, reason, length);
}

/*
 * Starts the closing handshake; the connection must not be choked.  We write
 * the close frame ourselves like every other one.  lws could do it, but in
 * the builds of Debian 12 it closes a connection twice when its WRITEABLE
 * callback asks for it, and then the frame is never sent.
 */
void
ConnBeginClose(Connection *conn, uint16_t code, const char *reason, size_t length)
{
	unsigned char frame[CLOSE_FRAME_MAX];
	size_t n = BuildCloseFrame(frame, code, reason, length);

	if (conn->http != NULL)
	{
		StreamEnd(conn);
		return;
	}

	/* From here on `reason` may be gone: it can be an item of the queue. */
	StopUsing(conn);
	conn->close_sent = true;
	HeartbeatSetDeadline(conn, CLOSE_MS);
	if (lws_write(conn->wsi, frame, n, LWS_WRITE_RAW) < 0)
		ConnKill(conn, LINK_CAUSE_CLIENT);
	gateway.bytes += n;
}

/* Closes at once, for a reason of ours. */
void
ConnClose(Connection *conn, LinkCause cause, uint16_t code, const char *reason)
{
	if (conn->closing)
		return;
	if (ConnIsChoked(conn))
	{
		ConnKill(conn, cause);
		return;
	}
	conn->cause = (uint8_t) cause;
	ConnBeginClose(conn, code, reason, strlen(reason));
}

/* Tells the client why, and closes. */
void
ConnRefuse(Connection *conn, LinkCause cause, uint16_t code, const char *sqlstate,
		   const char *message, const char *hint)
{
	Buffer text = {NULL, 0, 0};

	if (conn->close_queued)
		return;
	if (conn->http != NULL)
	{
		if (StreamIsBegun(conn))
			ConnKill(conn, cause);
		else
			RequestFail(conn, 403, "address_not_allowed", message, hint);
		return;
	}
	BufferAppendString(&text, "{\"type\":\"error\",\"code\":\"");
	BufferAppendString(&text, sqlstate);
	BufferAppendString(&text, "\",\"message\":");
	BufferAppendJson(&text, message);
	BufferAppendString(&text, ",\"hint\":");
	BufferAppendJson(&text, hint);
	BufferAppendString(&text, "}");
	QueueAddText(conn, ITEM_TEXT, text.data, text.length, NULL, 0, NULL, 0);
	BufferReset(&text, 0);
	ConnCloseAfterQueue(conn, code, message, strlen(message));
	conn->cause = (uint8_t) cause;
}

/* Drops the TCP connection, soon: many may end at once. */
void
ConnKill(Connection *conn, LinkCause cause)
{
	if (conn->killed)
		return;
	if (!conn->close_queued)
		conn->cause = (uint8_t) cause;
	StopUsing(conn);
	conn->killed = true;
	ListRemove(&conn->stopped);
	ListAppend(&doomed_list, &conn->stopped);
}

/* The same for one that is no connection yet. */
void
ConnKillSocket(struct lws *wsi)
{
	lws_set_timeout(wsi, PENDING_TIMEOUT_KILLED_BY_PARENT, LWS_TO_KILL_ASYNC);
	wake_lws = true;
}

/*
 * A time-out that is set outside lws' callbacks is not armed under libuv until
 * lws serves something; so make it serve something, once for all.
 */
void
ConnEndTurn(void)
{
	int i;

	/* A shutdown has its time, and nobody who would wait for it. */
	for (i = 0; (i < DROPPED_PER_TURN || gateway.ending) && !ListIsEmpty(&doomed_list); i++)
	{
		Connection *conn = ListElement(doomed_list.next, Connection, stopped);

		ListRemove(&conn->stopped);
		ConnKillSocket(conn->wsi);
	}
	if (ListIsEmpty(&doomed_list))
		uv_idle_stop(&idle);
	else
		uv_idle_start(&idle, OnIdle);
	if (!wake_lws)
		return;
	wake_lws = false;
	lws_cancel_service(gateway.lws);
}

/* lws' CLOSED: the only place where a connection ends. */
void
ConnGone(Connection *conn)
{
	conn->killed = true;
	StopUsing(conn);
	if (conn->http != NULL)
		RequestFree(conn);
	LinkSayClosed(conn);
	ListRemove(&conn->stopped);
	TableRemove(conn);
	PoolGive(&connections, conn);
	gateway.open--;
	GatewayConnectionGone();
}
