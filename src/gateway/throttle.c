/*-------------------------------------------------------------------------
 *
 * throttle.c
 *		How much a connection may send, in messages and in bytes.
 *
 * Each connection has two buckets, which hold ten seconds' worth of the rates.
 * Whoever has used them up is not read for a moment: then TCP tells the client,
 * and a program that only has much to say at once notices nothing.  Who is
 * still at the limit after FLOOD_NS, in which the bucket was never half full again,
 * is told so and closed.
 *
 * A frame counts as a message, whether it is a whole one or not.  Pings and what
 * else lws deals with by itself are never seen here; so with each heartbeat we ask
 * the kernel how much the client has sent in all.
 *
 * Process: gateway.  Memory: part of the connections.
 *
 *-------------------------------------------------------------------------
 */
#include "tcp.h"
#include "visitor.h"

/* How long somebody may be at the limit. */
#define FLOOD_NS UINT64_C(10000000000)

/* For so long at least a connection is not read. */
#define PAUSE_NS UINT64_C(100000000)
#define TICK_MS	 50

/* Connections that are not read. */
static ListNode paused_list;
static uv_timer_t timer;

static void
Flood(Connection *conn)
{
	ConnRefuse(conn, LINK_CAUSE_FLOOD, LINK_CLOSE_FLOOD, "53400",
			   "connection sends more than it may",
			   "Send less, or raise changefeed.max_message_rate and changefeed.max_receive_rate.");
}

static void
OnTimer(uv_timer_t *handle)
{
	uint64_t now = NowNs();
	ListNode *node;
	ListNode *next;

	(void) handle;
	for (node = paused_list.next; node != &paused_list; node = next)
	{
		Connection *conn = ListElement(node, Connection, paused);

		next = node->next;
		if (conn->paused_until > now)
			continue;
		ListRemove(&conn->paused);
		ConnSetReading(conn);
	}
	if (ListIsEmpty(&paused_list))
		uv_timer_stop(&timer);
}

void
ThrottleStart(void)
{
	ListInit(&paused_list);
	uv_timer_init(&gateway.loop, &timer);
}

/* It is read whatever it sends: it ends. */
void
ThrottleForget(Connection *conn)
{
	ListRemove(&conn->paused);
}

static void
Pause(Connection *conn, uint64_t until)
{
	conn->paused_until = until;
	if (ListContains(&conn->paused))
		return;
	if (ListIsEmpty(&paused_list))
		uv_timer_start(&timer, OnTimer, TICK_MS, TICK_MS);
	ListAppend(&paused_list, &conn->paused);
	gateway.throttled++;
	ConnSetReading(conn);
}

/* What is used, in ns. */
static uint64_t
Used(Bucket bucket, uint64_t now)
{
	return bucket > now ? bucket - now : 0;
}

/*
 * The client has sent these bytes of a message; `frame`: a frame ends with them.
 * False: the connection closes for it.
 */
bool
ThrottleReceived(Connection *conn, size_t length, bool frame)
{
	uint64_t now = NowNs();
	uint64_t rate = gateway.max_receive_rate;
	uint64_t burst = BURST_NS; /* of bytes */
	uint64_t bytes;
	uint64_t messages;
	uint64_t pause;

	if (rate > 0)
	{
		/* One message is never too much. */
		if (gateway.max_message > rate * (BURST_NS / 1000000000))
			burst = (uint64_t) gateway.max_message * 1000000000 / rate;
		BucketTake(&conn->bytes_used, now, length * UINT64_C(1000000000) / rate);
	}
	if (gateway.max_message_rate > 0 && frame)
		BucketTake(&conn->messages_used, now, 1000000000 / gateway.max_message_rate);

	bytes = Used(conn->bytes_used, now);
	messages = Used(conn->messages_used, now);
	if (bytes <= burst && messages <= BURST_NS)
	{
		if (bytes <= burst / 2 && messages <= BURST_NS / 2)
			conn->excess_since = 0;
		return true;
	}
	if (conn->excess_since == 0)
		conn->excess_since = now;
	else if (now - conn->excess_since > FLOOD_NS)
	{
		Flood(conn);
		return false;
	}
	pause = bytes > burst ? bytes - burst : 0;
	if (messages > BURST_NS && messages - BURST_NS > pause)
		pause = messages - BURST_NS;
	Pause(conn, now + pause + PAUSE_NS);
	return true;
}

/* With each heartbeat: what came in that no message accounts for? */
void
ThrottleCheckWire(Connection *conn)
{
	uint64_t now = NowNs();
	uint64_t rate = gateway.max_receive_rate;
	uint64_t wire;
	uint64_t came;
	uint64_t seconds;

	if (rate == 0 || conn->close_queued || !TcpBytesRead(lws_get_socket_fd(conn->wsi), &wire))
		return;
	came = wire - conn->wire;
	seconds = (now - conn->wire_checked) / 1000000000;
	conn->wire = wire;
	if (conn->wire_checked == 0)
	{
		conn->wire_checked = now;
		return;
	}
	conn->wire_checked = now;

	/* Twice, as frames have heads, and what was let go by the last check may come now. */
	if (came > 2 * (rate * (seconds + BURST_NS / 1000000000) + gateway.max_message))
		Flood(conn);
}
