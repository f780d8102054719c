/*-------------------------------------------------------------------------
 *
 * heartbeat.c
 *		Time-outs of connections: one wheel, one timer, one second a tick.
 *
 * A connection has two timers: when the next ping is due, and a deadline.  The
 * deadline is the connect time-out until the connection has its identity, then
 * the limit of silence, and the end of patience while it closes.  What a ping
 * says is the feed worker's business: we collect who is due in a tick and ask
 * for the pings in one message.
 *
 * Silence costs nothing to keep: hearing something only stores the time, and
 * when the deadline comes it is put off by what is left.  With nobody connected
 * the timer stops, and the gateway sleeps.  Who speaks but takes nothing is no
 * better than who is silent: that is looked at with each ping.
 *
 * Not lws' own validity checks: they keep all connections in one sorted list.
 *
 * Process: gateway.  Memory: timers are part of their connections.
 *
 *-------------------------------------------------------------------------
 */
#include "tcp.h"
#include "visitor.h"

#define SLOTS 256 /* a power of two */

/* How long a client may be silent beyond the time between two pings. */
#define SILENCE_GRACE_MS 10000

static ListNode slots[SLOTS];
static uv_timer_t timer;
static uint32_t n_timers;
static uint32_t current; /* the last tick that was served */

/* Who is due in this tick, as u32s. */
static Buffer due;

static uint32_t
TickOf(uint64_t ms)
{
	return (uint32_t) (ms / 1000);
}

static void OnTick(uv_timer_t *handle);

void
WheelRemove(WheelTimer *t)
{
	if (!ListContains(&t->node))
		return;
	ListRemove(&t->node);
	n_timers--;
}

/* Sets the timer to the first tick that is not before `ms` from now. */
void
WheelSet(WheelTimer *t, uint64_t ms)
{
	uint64_t now = uv_now(&gateway.loop);

	WheelRemove(t);
	if (n_timers == 0 && !uv_is_active((uv_handle_t *) &timer))
	{
		current = TickOf(now);
		uv_timer_start(&timer, OnTick, 1000 - now % 1000, 1000);
	}
	t->due = TickOf(now + ms + 999);
	if ((int32_t) (t->due - current) <= 0)
		t->due = current + 1;
	ListAppend(&slots[t->due % SLOTS], &t->node);
	n_timers++;
}

static uint32_t
PeriodTicks(void)
{
	uint32_t ticks = (gateway.heartbeat_ms + 500) / 1000;

	return ticks > 0 ? ticks : 1;
}

/* The connection was silent too long, or has overstayed in some other way. */
static void
OnDeadline(Connection *conn)
{
	uint64_t limit = (uint64_t) gateway.heartbeat_ms + SILENCE_GRACE_MS;
	uint64_t silent = uv_now(&gateway.loop) - conn->heard_ms;

	if (conn->close_queued)
		ConnKill(conn, LINK_CAUSE_SERVER);
	else if (conn->http != NULL)
		RequestDeadline(conn);
	else if (!conn->identified)
		ConnClose(conn, LINK_CAUSE_CONNECT_TIMEOUT, LINK_CLOSE_CONNECT_TIMEOUT,
				  "no connect message in time");
	else if (gateway.heartbeat_ms == 0)
		return;
	else if (silent >= limit)
		ConnClose(conn, LINK_CAUSE_HEARTBEAT, LINK_CLOSE_HEARTBEAT, "no answer to a ping");
	else
		WheelSet(&conn->deadline, limit - silent);
}

/*
 * Has the client taken nothing of what waits for it, for as long as it may be
 * silent?  Who reads hears the pings and answers them; who only sends would keep
 * its queue, and files of snapshots, for ever.  Event streams have a deadline for it.
 */
static bool
TakesNothing(Connection *conn)
{
	uint32_t now = TickOf(uv_now(&gateway.loop));
	uint64_t taken;

	if (conn->http != NULL || !ConnIsChoked(conn) ||
		!TcpBytesTaken(lws_get_socket_fd(conn->wsi), &taken))
	{
		conn->choked_since = 0;
		return false;
	}
	if (conn->choked_since == 0 || conn->taken != (uint32_t) taken)
	{
		conn->taken = (uint32_t) taken;
		conn->choked_since = now > 0 ? now : 1;
		return false;
	}
	return now - conn->choked_since >= TickOf((uint64_t) gateway.heartbeat_ms + SILENCE_GRACE_MS);
}

static void
Fire(WheelTimer *t)
{
	Connection *conn;

	if (t->is_visitor)
	{
		VisitorLate(ListElement(t, Visitor, late));
		return;
	}
	if (!t->is_ping)
	{
		OnDeadline(ListElement(t, Connection, deadline));
		return;
	}
	conn = ListElement(t, Connection, ping);
	if (gateway.heartbeat_ms == 0)
		return;
	ThrottleCheckWire(conn);
	if (!conn->close_queued && TakesNothing(conn))
		ConnClose(conn, LINK_CAUSE_TOO_SLOW, LINK_CLOSE_TRY_LATER, "too slow");
	if (conn->close_queued)
		return;
	BufferAppend(&due, &conn->number, sizeof(conn->number));
	WheelSet(t, (uint64_t) PeriodTicks() * 1000 - 999);
}

static void
OnTick(uv_timer_t *handle)
{
	uint32_t now = TickOf(uv_now(&gateway.loop));
	uint32_t n = now - current;
	uint32_t first = current + 1;
	uint32_t i;

	(void) handle;
	if (n > SLOTS)
	{
		/* We were stopped for minutes: every slot once is enough. */
		n = SLOTS;
		first = now - SLOTS + 1;
	}
	current = now;
	for (i = 0; i < n; i++)
	{
		ListNode *slot = &slots[(first + i) % SLOTS];
		ListNode ripe;

		/* Take the list away: timers that are set again may come here. */
		ListInit(&ripe);
		ListAppendAll(&ripe, slot);
		while (!ListIsEmpty(&ripe))
		{
			WheelTimer *t = ListElement(ripe.next, WheelTimer, node);

			if ((int32_t) (t->due - now) > 0)
			{
				/* Not in this round of the wheel. */
				ListRemove(&t->node);
				ListAppend(slot, &t->node);
				continue;
			}
			WheelRemove(t);
			Fire(t);
		}
	}
	if (due.length > 0)
	{
		LinkSayPingDue((const uint32_t *) (const void *) due.data,
					   (uint32_t) (due.length / sizeof(uint32_t)));
		BufferReset(&due, 64 * 1024);
	}
	QueueTrim();
	ConnTrim();
	if (n_timers == 0)
		uv_timer_stop(&timer);
}

void
HeartbeatStart(void)
{
	int i;

	for (i = 0; i < SLOTS; i++)
		ListInit(&slots[i]);
	uv_timer_init(&gateway.loop, &timer);
}

void
HeartbeatStop(void)
{
	uv_timer_stop(&timer);
	BufferReset(&due, 0);
}

/*
 * The connection has its identity: pings begin, at a place in the period that
 * differs from its neighbours', and silence is limited.
 */
void
HeartbeatBegin(Connection *conn)
{
	static uint32_t turn;

	WheelRemove(&conn->deadline);
	if (gateway.heartbeat_ms == 0)
		return;
	WheelSet(&conn->ping, (uint64_t) (turn++ % PeriodTicks()) * 1000 + 1);
	HeartbeatSetDeadline(conn, (uint64_t) gateway.heartbeat_ms + SILENCE_GRACE_MS);
}

void
HeartbeatSetDeadline(Connection *conn, uint64_t ms)
{
	WheelSet(&conn->deadline, ms);
}

void
HeartbeatForget(Connection *conn)
{
	WheelRemove(&conn->ping);
	WheelRemove(&conn->deadline);
}
