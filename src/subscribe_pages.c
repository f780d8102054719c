/*-------------------------------------------------------------------------
 *
 * subscribe_pages.c
 *		Snapshots on their way to clients: how many there may be, and who goes
 *		when there are too many.
 *
 * A client that asks for rows and does not read them costs a descriptor of its
 * gateway for each file of pages, and the file's disk space, for as long as it
 * likes.  So there are three bounds:
 *
 * - A connection has a few questions for rows at a time.  The others wait here
 *	 (`parked`), and are not asked before one of those has reached the client: its
 *	 pages go out one snapshot after the other anyway.  Small ones, which need no
 *	 file, have a window instead.
 * - A gateway has places for so many files as its descriptors permit.
 * - All files together have changefeed.snapshot_space.
 *
 * Where a place or space is missing, whoever waits for it goes on waiting, and
 * the connection whose snapshot has been on its way for the longest is closed, if
 * that is longer than a client with a slow line can be expected to need.
 *
 * Process: feed worker.  Memory: part of subscriptions' loads and of answers.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "subscribe.h"
#include "gateways.h"
#include "http.h"

#include <sys/resource.h>

/* Questions for rows of a connection that are on their way. */
#define MAX_FETCHES 16

/* So many bytes of small pages, then the client has to have taken them. */
#define PAGES_WINDOW (512 * 1024)

/* For so long (ms) nobody is closed, however many wait. */
#define PATIENCE 60000

/* Between two that are closed, as the next look may find room (ms). */
#define CLOSE_INTERVAL 10

/* Whoever waits for room looks again after this time (ms). */
#define RETRY 50

/* The same as in gateway/main.c, which keeps this part for files. */
#define MAX_DESCRIPTORS 1048576

static dlist_head on_their_way = DLIST_STATIC_INIT(on_their_way); /* SubscriptionLoad.pages_node */
static uint64 space_used;

/* ---- questions of a connection ---- */

static void
Unpark(SubscriptionLoad *load)
{
	dlist_delete(&load->parked_node);
	load->parked = false;
	SubscribePlace(load->subscription);
	subscribe_again = true;
}

/* Who comes too early is parked again. */
static void
LetGoOn(Connection *connection)
{
	int n;

	if (connection->mark != 0)
		return;
	for (n = connection->nfetches; n < MAX_FETCHES && !dlist_is_empty(&connection->parked); n++)
		Unpark(dlist_head_element(SubscriptionLoad, parked_node, &connection->parked));
}

void
SubscribeFetchBegin(Subscription *s)
{
	Assert(!s->load->fetches);
	s->load->fetches = true;
	s->connection->nfetches++;
}

void
SubscribeFetchEnd(Subscription *s)
{
	if (s->load == NULL || !s->load->fetches)
		return;
	s->load->fetches = false;
	s->connection->nfetches--;
	LetGoOn(s->connection);
}

void
SubscribePagesLoadEnd(Subscription *s)
{
	if (s->load->parked)
		Unpark(s->load);
	SubscribeFetchEnd(s);

	/* It may have been the one whose turn it was. */
	LetGoOn(s->connection);
}

void
SubscribePagesFlushed(Connection *connection)
{
	LetGoOn(connection);
}

/*
 * They are in the gateway's memory now.  Who subscribes to a thousand channels at
 * once is sent no more of them than he takes.
 */
void
SubscribePagesSent(Subscription *s, Size bytes)
{
	Connection *connection = s->connection;

	connection->paged += bytes;
	if (connection->paged < PAGES_WINDOW || connection->mark != 0)
		return;
	connection->paged = 0;
	connection->mark = MARK_REPLAY;
	GatewayMark(connection, MARK_REPLAY);
}

/* ---- files ---- */

int
SubscribePagesPlaces(void)
{
	struct rlimit limit;
	rlim_t n = 1024;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
		n = Min(limit.rlim_max, MAX_DESCRIPTORS);
	return n > 128 ? (int) (n / 4) : 16;
}

/*
 * Whose snapshot has been on its way for the longest makes room for others; NULL: with
 * any gateway.
 */
static void
MakeRoom(const Gateway *gateway, const char *what)
{
	static TimestampTz closed_at;
	SubscriptionLoad *load;
	dlist_iter iter;

	if (!TimestampDifferenceExceeds(closed_at, feed_now, CLOSE_INTERVAL))
		return;
	dlist_foreach(iter, &on_their_way)
	{
		load = dlist_container(SubscriptionLoad, pages_node, iter.cur);
		if (!TimestampDifferenceExceeds(load->pages_since, feed_now, PATIENCE))
			return;
		if (load->subscription->connection->closing ||
			(gateway != NULL && load->subscription->connection->gateway != gateway))
			continue;
		closed_at = feed_now;
		ereport(LOG,
				(errmsg("connection " UINT64_FORMAT
						" is closed because others wait for %s that its snapshot takes",
						load->subscription->connection->id, what),
				 errdetail("The snapshot has been on its way to the client for %ld seconds.",
						   TimestampDifferenceMilliseconds(load->pages_since, feed_now) / 1000)));
		GatewayClose(load->subscription->connection, LINK_CLOSE_TRY_LATER,
					 "reads a snapshot too slowly");
		return;
	}
}

static uint64
SpaceLimit(void)
{
	return (uint64) setting_snapshot_space * 1024 * 1024;
}

static void
Sooner(long *wait)
{
	*wait = *wait < 0 ? RETRY : Min(*wait, RETRY);
}

/* An event stream begins without it: the room may be taken by the stream's other snapshots. */
static void
LacksRoom(Subscription *s, long *wait)
{
	if (!s->load->lacks_room)
	{
		s->load->lacks_room = true;
		HttpMayBegin(s->connection);
	}
	Sooner(wait);
}

bool
SubscribePagesMayAsk(Subscription *s, long *wait)
{
	Connection *connection = s->connection;
	SubscriptionLoad *load = s->load;

	if (s->no_snapshot || load->from_position)
		return true;
	if (connection->nfetches >= MAX_FETCHES || connection->mark != 0)
	{
		load->parked = true;
		dlist_push_tail(&connection->parked, &load->parked_node);
		SubscribePlace(s);
		HttpMayBegin(connection);
		return false;
	}
	if (space_used < SpaceLimit())
	{
		load->lacks_room = false;
		return true;
	}
	MakeRoom(NULL, "disk space");
	LacksRoom(s, wait);
	return false;
}

bool
SubscribePagesMaySend(Subscription *s, long *wait)
{
	const Gateway *gateway = s->connection->gateway;

	if (!s->load->has_snapshot || s->load->answer->file == NULL)
		return true;
	if (gateway->nfiles < gateway->places)
	{
		s->load->lacks_room = false;
		return true;
	}
	MakeRoom(gateway, "a descriptor");
	LacksRoom(s, wait);
	return false;
}

int
SubscribePagesWaiting(Connection *connection)
{
	int n = 0;
	dlist_iter iter;

	dlist_foreach(iter, &connection->subscriptions)
	{
		Subscription *s = dlist_container(Subscription, connection_node, iter.cur);

		if (!s->announced && s->load != NULL && (s->load->parked || s->load->lacks_room))
			n++;
	}
	return n;
}

void
SubscribePagesBegin(Subscription *s)
{
	SubscriptionLoad *load = s->load;

	Assert(!load->has_pages);
	load->has_pages = true;
	load->pages_of = load->answer;
	load->pages_of->loading++;
	load->pages_of->refcount++;
	load->pages_since = feed_now;
	dlist_push_tail(&on_their_way, &load->pages_node);
	s->connection->gateway->nfiles++;
}

void
SubscribePagesEnd(Subscription *s)
{
	SubscriptionLoad *load = s->load;
	SubscribeAnswer *answer;

	if (load == NULL || !load->has_pages)
		return;
	load->has_pages = false;
	dlist_delete(&load->pages_node);
	s->connection->gateway->nfiles--;
	answer = load->pages_of;
	load->pages_of = NULL;
	answer->loading--;
	SubscribeAnswerRelease(answer);
}

void
SubscribePagesFile(SubscribeAnswer *answer, uint64 size)
{
	answer->file_size = size;
	space_used += size;
	pg_atomic_write_u64(&feed_shared->feed_snapshot_bytes, space_used);
}

/* Nobody has it open, and nobody will. */
void
SubscribePagesFileGone(SubscribeAnswer *answer)
{
	if (answer->file_size == 0)
		return;
	space_used -= answer->file_size;
	answer->file_size = 0;
	pg_atomic_write_u64(&feed_shared->feed_snapshot_bytes, space_used);
}
