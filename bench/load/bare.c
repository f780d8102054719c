/*-------------------------------------------------------------------------
 *
 * bare.c
 *		The kernel's limit: a loop that does nothing but send().
 *
 *	bare --port N --publish-port N [--together]
 *
 * Takes connections that ask for a WebSocket at /CHANNEL, a number, without
 * looking at anything else of the request, and lines "CHANNEL MESSAGE" on the
 * other port. A message becomes a frame once, and is sent to all connections of
 * the channel: one send() for each frame and connection. --together: all
 * messages of a channel that have come go to a connection in one send(). No
 * server can do less work for a message and a connection than one of these.
 *
 * What a socket does not take is kept and sent later; nobody is dropped.
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define BACKLOG 4096

typedef enum Kind
{
	LISTENER,
	PUBLISH_LISTENER,
	CLIENT,
	PUBLISHER
} Kind;

typedef struct Peer
{
	Kind kind;
	int fd;
	uint32_t channel;
	uint32_t slot; /* in its channel */
	bool is_subscribed;
	char *data; /* CLIENT: what is to be sent; PUBLISHER: a line that is not whole */
	size_t length;
	size_t room;
} Peer;

typedef struct Channel
{
	Peer **peers;
	uint32_t count;
	uint32_t room;
	char *frames; /* --together: what has come in this turn */
	size_t length;
	size_t size;
} Channel;

static int poll_fd;
static bool together;
static Channel *channels;
static uint32_t nchannels;
static uint32_t *touched;
static size_t ntouched;
static size_t touched_room;

static void
Die(const char *what)
{
	fprintf(stderr, "bare: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void *
Grow(void *old, size_t size)
{
	void *memory = realloc(old, size);

	if (memory == NULL)
		Die("realloc");
	return memory;
}

static void
Append(char **data, size_t *length, size_t *room, const void *bytes, size_t n)
{
	if (*length + n > *room)
	{
		*room = (*length + n) * 2;
		*data = Grow(*data, *room);
	}
	memcpy(*data + *length, bytes, n);
	*length += n;
}

static Channel *
ChannelOf(uint32_t number)
{
	if (number >= nchannels)
	{
		channels = Grow(channels, (number + 1024) * sizeof(Channel));
		memset(channels + nchannels, 0, (number + 1024 - nchannels) * sizeof(Channel));
		nchannels = number + 1024;
	}
	return &channels[number];
}

static void
Add(Peer *p, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.ptr = p};

	if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, p->fd, &event) != 0)
		Die("epoll_ctl");
}

static void
Interest(Peer *p, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.ptr = p};

	epoll_ctl(poll_fd, EPOLL_CTL_MOD, p->fd, &event);
}

static void
Listen(Kind kind, int port)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
								  .sin_port = htons((uint16_t) port),
								  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	Peer *p = calloc(1, sizeof(Peer));
	int one = 1;

	p->kind = kind;
	p->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	setsockopt(p->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(p->fd, (struct sockaddr *) &address, sizeof(address)) != 0 ||
		listen(p->fd, BACKLOG) != 0)
		Die("could not listen");
	Add(p, EPOLLIN);
}

static void
Accept(Peer *listener)
{
	int one = 1;
	int fd;

	while ((fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0)
	{
		Peer *p = calloc(1, sizeof(Peer));

		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		p->kind = listener->kind == LISTENER ? CLIENT : PUBLISHER;
		p->fd = fd;
		Add(p, EPOLLIN);
	}
}

static void
Close(Peer *p)
{
	if (p->is_subscribed)
	{
		Channel *c = ChannelOf(p->channel);

		c->peers[p->slot] = c->peers[--c->count];
		c->peers[p->slot]->slot = p->slot;
	}
	close(p->fd);
	free(p->data);
	free(p);
}

/* What has to wait goes behind what waits already. */
static void
SendTo(Peer *p, const char *data, size_t length)
{
	ssize_t n = 0;

	if (p->length == 0)
	{
		n = send(p->fd, data, length, MSG_NOSIGNAL);
		if (n == (ssize_t) length)
			return;
		if (n < 0)
			n = 0; /* its end comes as an event */
		Interest(p, EPOLLIN | EPOLLOUT);
	}
	Append(&p->data, &p->length, &p->room, data + n, length - (size_t) n);
}

static void
Writable(Peer *p)
{
	ssize_t n = send(p->fd, p->data, p->length, MSG_NOSIGNAL);

	if (n <= 0)
		return;
	memmove(p->data, p->data + n, p->length - (size_t) n);
	p->length -= (size_t) n;
	if (p->length == 0)
		Interest(p, EPOLLIN);
}

static void
SendToAll(Channel *c, const char *data, size_t length)
{
	uint32_t i;

	for (i = 0; i < c->count; i++)
		SendTo(c->peers[i], data, length);
}

static void
Message(const char *line, size_t length)
{
	char *text;
	uint32_t number = (uint32_t) strtoul(line, &text, 10);
	Channel *c = ChannelOf(number);
	unsigned char frame[65536 + 4];
	size_t n = 0;

	text++;
	length -= (size_t) (text - line);
	if (length > 65535)
		length = 65535;
	frame[n++] = 0x81;
	if (length < 126)
		frame[n++] = (unsigned char) length;
	else
	{
		frame[n++] = 126;
		frame[n++] = (unsigned char) (length >> 8);
		frame[n++] = (unsigned char) length;
	}
	memcpy(frame + n, text, length);
	n += length;
	if (!together)
	{
		SendToAll(c, (char *) frame, n);
		return;
	}
	if (c->length == 0)
	{
		if (ntouched == touched_room)
		{
			touched_room = touched_room * 2 + 64;
			touched = Grow(touched, touched_room * sizeof(*touched));
		}
		touched[ntouched++] = number;
	}
	Append(&c->frames, &c->length, &c->size, frame, n);
}

static void
ReadPublisher(Peer *p)
{
	char bytes[65536];
	ssize_t n;
	size_t i;

	/* All that is there, so that --together has it together */
	while ((n = recv(p->fd, bytes, sizeof(bytes), 0)) > 0)
	{
		char *end;
		size_t done = 0;

		Append(&p->data, &p->length, &p->room, bytes, (size_t) n);
		while ((end = memchr(p->data + done, '\n', p->length - done)) != NULL)
		{
			Message(p->data + done, (size_t) (end - p->data) - done);
			done = (size_t) (end - p->data) + 1;
		}
		memmove(p->data, p->data + done, p->length - done);
		p->length -= done;
		if (n < (ssize_t) sizeof(bytes))
			break;
	}
	for (i = 0; i < ntouched; i++)
	{
		Channel *c = &channels[touched[i]];

		SendToAll(c, c->frames, c->length);
		c->length = 0;
	}
	ntouched = 0;
	if (n == 0)
		Close(p);
}

static void
ReadClient(Peer *p)
{
	static const char answer[] =
		"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
		"Sec-WebSocket-Accept: ICX+Yqv66kxgM0FcWaLWlFLwTAI=\r\n\r\n";
	char bytes[4096];
	ssize_t n = recv(p->fd, bytes, sizeof(bytes) - 1, 0);
	Channel *c;

	if (n < 0 && errno == EAGAIN)
		return;
	if (n <= 0)
	{
		Close(p);
		return;
	}
	if (p->is_subscribed)
		return;
	bytes[n] = '\0';
	if (strncmp(bytes, "GET /", 5) != 0)
	{
		Close(p);
		return;
	}
	p->channel = (uint32_t) strtoul(bytes + 5, NULL, 10);
	c = ChannelOf(p->channel);
	if (c->count == c->room)
	{
		c->room = c->room * 2 + 1;
		c->peers = Grow(c->peers, c->room * sizeof(Peer *));
	}
	p->slot = c->count;
	c->peers[c->count++] = p;
	p->is_subscribed = true;
	SendTo(p, answer, sizeof(answer) - 1);
}

int
main(int argc, char **argv)
{
	struct epoll_event events[1024];
	struct rlimit files;
	int port = 0;
	int publish_port = 0;
	int i;

	for (i = 1; i < argc; i++)
	{
		if (strcmp(argv[i], "--together") == 0)
			together = true;
		else if (strcmp(argv[i], "--port") == 0 && i + 1 < argc)
			port = atoi(argv[++i]);
		else if (strcmp(argv[i], "--publish-port") == 0 && i + 1 < argc)
			publish_port = atoi(argv[++i]);
		else
			port = -1;
	}
	if (port <= 0 || publish_port <= 0)
	{
		fputs("usage: bare --port N --publish-port N [--together]\n", stderr);
		return 2;
	}
	if (getrlimit(RLIMIT_NOFILE, &files) == 0)
	{
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	poll_fd = epoll_create1(EPOLL_CLOEXEC);
	Listen(LISTENER, port);
	Listen(PUBLISH_LISTENER, publish_port);
	for (;;)
	{
		int n = epoll_wait(poll_fd, events, 1024, -1);

		for (i = 0; i < n; i++)
		{
			Peer *p = events[i].data.ptr;

			switch (p->kind)
			{
				case LISTENER:
				case PUBLISH_LISTENER:
					Accept(p);
					break;
				case PUBLISHER:
					ReadPublisher(p);
					break;
				case CLIENT:
					if (events[i].events & EPOLLOUT)
						Writable(p);
					if (events[i].events & ~(uint32_t) EPOLLOUT)
						ReadClient(p);
					break;
			}
		}
	}
}
