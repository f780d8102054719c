/*-------------------------------------------------------------------------
 *
 * listener.c
 *		Accepting connections on the sockets that the feed worker has bound.
 *
 * The feed worker binds the port and gives us the listening socket (or
 * several, one per address); several gateways may accept from the same one.
 * We accept ourselves and let lws adopt the connection: so limits apply before
 * anything is allocated, and when there is no room the rest waits in the
 * kernel's queue, where another gateway may take it.
 *
 * When thousands come at once, serving them has to leave room for everybody
 * else, so only a few are adopted in a turn of the loop.  The others are taken
 * out of the kernel's queue all the same, and wait here: the queue is short, and
 * whoever finds it full tries again after one second, then two, four, and more.
 *
 * Process: gateway.  Memory: listening sockets live as long as the program.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "gateway.h"

#define MAX_LISTENERS 16

/* Adopted in one turn of the loop, so that a storm leaves room for the rest. */
#define ADOPTED_PER_TURN 8

/* Accepted in one turn, some 8 us each. */
#define ACCEPTED_PER_TURN 32

/* Accepted and not yet adopted.  With other gateways, who could, none. */
#define MAX_ARRIVALS 16384

/* Sockets beyond max_connections: HTTP, handshakes, refusals. */
#define SPARE_SOCKETS 1024

/* After the system could not give us a socket. */
#define PAUSE_MS 250

/* So long a client is left to gateways that have fewer. */
#define YIELD_MS 5

/*
 * Unsent bytes that the kernel keeps before it calls a socket full.  Without
 * it a slow client's buffer grows to megabytes of stale feed.  It is what a client
 * that reads nothing costs: so much is copied for each of them.
 */
#define NOTSENT_LOWAT (64 * 1024)

static struct
{
	int fd;
	bool local; /* a Unix socket */
	uv_poll_t poll;
} listeners[MAX_LISTENERS];
static int n_listeners;

/* Those who wait to be adopted, in their order: a ring, allocated when there are any. */
typedef struct Arrival
{
	int fd;
	bool local;
	union
	{
		struct sockaddr any;
		struct sockaddr_in v4;
		struct sockaddr_in6 v6;
	} peer;
} Arrival;

static Arrival *arrivals;
static size_t first_arrival;
static size_t n_arrivals;
static uv_idle_t idle; /* runs while there are some */

static uv_timer_t pause_timer;
static bool running; /* ListenerStart was called */
static bool paused;
static bool watching;

static void OnAcceptable(uv_poll_t *handle, int status, int events);
static void OnPauseOver(uv_timer_t *handle);
static void OnIdle(uv_idle_t *handle);

static bool
HasRoom(void)
{
	size_t limit = (size_t) gateway.max_connections + SPARE_SOCKETS;

	if (limit > gateway.max_sockets)
		limit = gateway.max_sockets;
	return gateway.open_sockets + n_arrivals < limit;
}

/*
 * Watches the listening sockets if there is room for more, else not; and goes on
 * with those who wait here, unless the feed worker is behind.
 */
void
ListenerUpdate(void)
{
	bool watch = running && !paused && !gateway.ending && HasRoom() && !LinkIsOverloaded();
	int i;

	if (n_arrivals > 0 && running && !LinkIsOverloaded())
		uv_idle_start(&idle, OnIdle);
	else
		uv_idle_stop(&idle);
	if (watch == watching)
		return;
	watching = watch;
	for (i = 0; i < n_listeners; i++)
	{
		if (watch)
			uv_poll_start(&listeners[i].poll, UV_READABLE, OnAcceptable);
		else
			uv_poll_stop(&listeners[i].poll);
	}
}

/* TLS is for the network: who may open a Unix socket is on this machine. */
static void
Adopt(int fd, bool local, struct lws_vhost *vhost, Visitor *visitor)
{
	int one = 1;
	int lowat = NOTSENT_LOWAT;
	struct lws *wsi;

	if (!local)
	{
		/* Best effort. */
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &lowat, sizeof(lowat));
	}

	/* It closes fd when it fails; open_sockets is kept by server.c. */
	wsi = lws_adopt_socket_vhost(vhost, fd);
	if (wsi != NULL)
		VisitorBegin(visitor, wsi);
	else
	{
		gateway.refused++;
		VisitorForget(visitor);
	}
}

static void
Pause(uint64_t ms)
{
	paused = true;
	uv_timer_start(&pause_timer, OnPauseOver, ms, 0);
}

/* A few of those who wait here, the first ones first. */
static void
AdoptSome(void)
{
	int i;

	for (i = 0; i < ADOPTED_PER_TURN && n_arrivals > 0; i++)
	{
		Arrival *arrival = &arrivals[first_arrival];
		struct lws_vhost *vhost = arrival->local ? gateway.vhost : TlsVhost();
		Visitor *visitor = VisitorAccept(&arrival->peer.any, vhost != gateway.vhost);

		first_arrival = (first_arrival + 1) % MAX_ARRIVALS;
		n_arrivals--;
		if (visitor != NULL)
			Adopt(arrival->fd, arrival->local, vhost, visitor);
		else
			close(arrival->fd);
	}
	if (n_arrivals == 0)
	{
		free(arrivals);
		arrivals = NULL;
	}
}

static void
OnIdle(uv_idle_t *handle)
{
	(void) handle;
	AdoptSome();
	ListenerUpdate();
}

/* Takes those who wait at that listening socket. */
static void
AcceptSome(int listening, bool local)
{
	size_t limit = BalanceIsShared() ? ADOPTED_PER_TURN : MAX_ARRIVALS;
	int i;

	for (i = 0; i < ACCEPTED_PER_TURN && n_arrivals < limit && HasRoom(); i++)
	{
		Arrival *arrival;
		Arrival came = {.local = local, .peer.any.sa_family = AF_UNSPEC};
		socklen_t length = sizeof(came.peer);

		came.fd = accept4(listening, &came.peer.any, &length, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (came.fd >= 0)
		{
			if (arrivals == NULL)
			{
				arrivals = calloc(MAX_ARRIVALS, sizeof(Arrival));
				if (arrivals == NULL)
				{
					close(came.fd);
					break;
				}
			}
			arrival = &arrivals[(first_arrival + n_arrivals++) % MAX_ARRIVALS];
			*arrival = came;
			continue;
		}
		if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
		{
			/* The connection stays in the queue and would wake us for ever. */
			GatewayLog(LEVEL_WARNING, "could not accept a connection: %s", strerror(errno));
			Pause(PAUSE_MS);
			break;
		}
		if (errno == EAGAIN || errno == EWOULDBLOCK)
			break; /* another gateway was faster */
		if (errno != EINTR && errno != ECONNABORTED)
			break;
	}
}

static void
OnAcceptable(uv_poll_t *handle, int status, int events)
{
	intptr_t i = (intptr_t) handle->data;

	(void) status;
	(void) events;
	if (BalanceIsAhead())
		Pause(YIELD_MS);
	else
		AcceptSome(listeners[i].fd, listeners[i].local);
	ListenerUpdate();
}

/* Their turn is late, because many others are ready: the queues are short. */
void
ListenerLook(void)
{
	int i;

	if (!watching || BalanceIsAhead())
		return;
	for (i = 0; i < n_listeners; i++)
		AcceptSome(listeners[i].fd, listeners[i].local);
	ListenerUpdate();
}

/* Who still waits has found nobody else. */
static void
OnPauseOver(uv_timer_t *handle)
{
	int i;

	(void) handle;
	paused = false;
	for (i = 0; i < n_listeners && !paused && !LinkIsOverloaded(); i++)
		AcceptSome(listeners[i].fd, listeners[i].local);
	ListenerUpdate();
}

void
ListenerTake(int fd, uint8_t flags)
{
	uv_poll_t *poll;

	if (n_listeners == MAX_LISTENERS)
		GatewayFatal(EXIT_PROTOCOL, "too many listening sockets");
	poll = &listeners[n_listeners].poll;
	listeners[n_listeners].fd = fd;
	listeners[n_listeners].local = (flags & LINK_LISTEN_LOCAL) != 0;
	if (uv_poll_init(&gateway.loop, poll, fd) != 0)
		GatewayFatal(EXIT_FAILED, "could not watch the listening socket");
	poll->data = (void *) (intptr_t) n_listeners;
	n_listeners++;
	if (watching)
		uv_poll_start(poll, UV_READABLE, OnAcceptable);
}

bool
ListenerIsTaken(void)
{
	return n_listeners > 0;
}

void
ListenerStart(void)
{
	uv_timer_init(&gateway.loop, &pause_timer);
	uv_idle_init(&gateway.loop, &idle);
	running = true;
	ListenerUpdate();
}

/* No more connections; what waits in the queue is for another gateway. */
void
ListenerStop(void)
{
	int i;

	running = false;
	ListenerUpdate();
	for (i = 0; i < n_listeners; i++)
		close(listeners[i].fd);
	n_listeners = 0;

	/* Nobody has told them anything: they may try another one. */
	for (; n_arrivals > 0; n_arrivals--)
	{
		close(arrivals[first_arrival].fd);
		first_arrival = (first_arrival + 1) % MAX_ARRIVALS;
	}
	free(arrivals);
	arrivals = NULL;
}
