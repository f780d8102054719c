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
 * Process: gateway.  Memory: listening sockets live as long as the program.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "gateway.h"

#define MAX_LISTENERS 16

/* Accepted in one turn of the loop, so that a storm leaves room for the rest. */
#define ACCEPTS_PER_TURN 8

/* Sockets beyond max_connections: HTTP, handshakes, refusals. */
#define SPARE_SOCKETS 1024

/* After the system could not give us a socket. */
#define PAUSE_MS 250

/* So long a client is left to gateways that have fewer. */
#define YIELD_MS 5

/*
 * Unsent bytes that the kernel keeps before it calls a socket full.  Without
 * it a slow client's buffer grows to megabytes of stale feed.
 */
#define NOTSENT_LOWAT (256 * 1024)

static struct
{
	int fd;
	bool local; /* a Unix socket */
	uv_poll_t poll;
} listeners[MAX_LISTENERS];
static int n_listeners;

static uv_timer_t pause_timer;
static bool running; /* ListenerStart was called */
static bool paused;
static bool watching;

static void OnAcceptable(uv_poll_t *handle, int status, int events);
static void OnPauseOver(uv_timer_t *handle);

static bool
HasRoom(void)
{
	size_t limit = (size_t) gateway.max_connections + SPARE_SOCKETS;

	if (limit > gateway.max_sockets)
		limit = gateway.max_sockets;
	return gateway.open_sockets < limit;
}

/* Watches the listening sockets if there is room for more, else not. */
void
ListenerUpdate(void)
{
	bool watch = running && !paused && !gateway.ending && HasRoom() && !LinkIsOverloaded();
	int i;

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

/* Takes some of those who wait at that listening socket. */
static void
AcceptSome(int listening, bool local)
{
	int i;

	for (i = 0; i < ACCEPTS_PER_TURN && HasRoom(); i++)
	{
		union
		{
			struct sockaddr any;
			struct sockaddr_storage storage;
		} peer = {.any.sa_family = AF_UNSPEC};
		socklen_t length = sizeof(peer);
		int fd = accept4(listening, &peer.any, &length, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd >= 0)
		{
			struct lws_vhost *vhost = local ? gateway.vhost : TlsVhost();
			Visitor *visitor = VisitorAccept(&peer.any, vhost != gateway.vhost);

			if (visitor != NULL)
				Adopt(fd, local, vhost, visitor);
			else
				close(fd);
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
}
