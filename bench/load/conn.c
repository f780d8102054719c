/*-------------------------------------------------------------------------
 *
 * conn.c
 *		Groups of connections: opening, WebSocket framing, verifying.
 *
 * A connection verifies that the numbers in what it receives ("n":N, followed
 * by "sent_us":T) go up by one each time. They begin at what the snapshot had,
 * at what was published last when it subscribed, or, if neither is known, at
 * the first one that comes.
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "load.h"

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

#define READ_SIZE	(256 * 1024)
#define PONG_US		2000000
#define STALL_BYTES 4096 /* receive buffer of who reads nothing */
#define STAMP_EVERY 64

static int64_t next_time; /* of a retry */
static int64_t pong_time; /* when those who read nothing say that they live; 0: there are none */
static Group *graves;	  /* closed in this turn */

static void Connect(Conn *c);

/* ---- one connection ---- */

static void
Wait(Conn *c)
{
	Group *g = c->group;

	c->next_waiting = NULL;
	if (g->waiting == NULL)
		g->waiting = c;
	else
		g->waiting_tail->next_waiting = c;
	g->waiting_tail = c;
}

static void
Drop(Conn *c, bool at_once)
{
	struct linger linger = {1, 0};
	Group *g = c->group;

	if (c->fd < 0)
		return;
	if (at_once)
		setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
	close(c->fd);
	c->fd = -1;
	BufferFree(&c->in);
	BufferFree(&c->message);
	if (c->state == CONN_READY)
	{
		g->nready--;
		if (g->subscriptions == 1)
			ChannelCount(c->channel, -1);
	}
	else if (c->state != CONN_NONE)
		g->nconnecting--;
	c->state = CONN_NONE;
	c->nready = 0;
}

void
ConnFail(Conn *c, const char *format, ...)
{
	char text[512];
	Group *g = c->group;
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	if (g->retry_ms < 0)
	{
		Wrong("%s, connection %u: %s", g->name, c->index, text);
		Drop(c, true);
		return;
	}
	if (!g->is_opening)
	{
		g->is_opening = true;
		g->opened_us = Now();
		memset(&g->ready_us, 0, sizeof(Histogram));
	}
	g->retries++;
	Drop(c, true);
	if (next_time == 0)
		next_time = Now() + (int64_t) g->retry_ms * 1000;
	Wait(c);
}

/* Masked with zeros, which is a valid mask. Small messages on an idle socket: a short write is an error. */
void
ConnSend(Conn *c, int opcode, const char *data, size_t length)
{
	unsigned char frame[8192];
	size_t n = 0;

	if (length > sizeof(frame) - 8)
		Die("message to send is too long");
	frame[n++] = (unsigned char) (0x80 | opcode);
	if (length < 126)
		frame[n++] = (unsigned char) (0x80 | length);
	else
	{
		frame[n++] = 0x80 | 126;
		frame[n++] = (unsigned char) (length >> 8);
		frame[n++] = (unsigned char) length;
	}
	memset(frame + n, 0, 4);
	n += 4;
	memcpy(frame + n, data, length);
	n += length;
	if (c->fd >= 0 && send(c->fd, frame, n, MSG_NOSIGNAL) != (ssize_t) n && errno == EAGAIN)
		Wrong("%s, connection %u: it takes nothing more", c->group->name, c->index);
}

/*
 * From now on it reads nothing, and says that it lives without having been asked,
 * as the worst of clients would.
 */
static void
Stall(Conn *c)
{
	epoll_ctl(poll_fd, EPOLL_CTL_DEL, c->fd, NULL);
	if (pong_time == 0)
		pong_time = Now() + PONG_US;
}

static void
Pong(Group *g)
{
	static const unsigned char frame[] = "\x81\x8f\0\0\0\0{\"type\":\"pong\"}";
	static char bytes[READ_SIZE];
	uint32_t i;

	for (i = 0; i < g->nconns; i++)
	{
		Conn *c = &g->conns[i];

		if (c->state != CONN_READY)
			continue;
		if ((send(c->fd, frame, sizeof(frame) - 1, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 &&
			 errno != EAGAIN) ||
			(g->sip > 0 &&
			 recv(c->fd, bytes, g->sip < READ_SIZE ? g->sip : READ_SIZE, MSG_DONTWAIT) == 0))
		{
			g->nlost++;
			Drop(c, true);
		}
	}
}

void
ConnReady(Conn *c)
{
	Group *g = c->group;

	if (c->state == CONN_READY || ++c->nready < g->subscriptions)
		return;
	c->state = CONN_READY;
	if (g->stalls)
		Stall(c);
	g->nconnecting--;
	g->nready++;
	if (g->subscriptions == 1)
		ChannelCount(c->channel, 1);
	if (!c->knows_n && ChannelLast(c->channel) > 0)
	{
		c->knows_n = true;
		c->next_n = ChannelLast(c->channel) + 1;
	}
	HistogramAdd(&g->ready_us,
				 Now() - (g->says_lost || g->window == 0 ? g->opened_us : c->began_us));
	if (g->nready == g->nconns && g->is_opening)
	{
		g->is_opening = false;
		g->says_lost = false;
		Tell(json_pack("{ss ss sI sI si si si si sI so}", "event", "open", "group", g->name,
					   "ready", (json_int_t) g->nready, "us", (json_int_t) (Now() - g->opened_us),
					   "retries", g->retries, "recovered", g->recovered, "snapshots", g->snapshots,
					   "resyncs", g->resyncs, "snapshot_bytes", (json_int_t) g->snapshot_bytes,
					   "ready_us", HistogramJson(&g->ready_us)));
	}
}

/* Finds "n":N,"sent_us":T; returns where to look for the next one, or NULL. */
static const char *
FindNumbers(const char *data, const char *end, uint64_t *n, int64_t *sent_us)
{
	static const char name[] = ",\"sent_us\":";
	const char *at = memmem(data, (size_t) (end - data), name, sizeof(name) - 1);
	const char *digits = at;
	uint64_t value = 0;
	uint64_t power = 1;

	if (at == NULL)
		return NULL;
	while (digits > data && digits[-1] >= '0' && digits[-1] <= '9')
	{
		value += power * (uint64_t) (*--digits - '0');
		power *= 10;
	}
	*n = value;
	*sent_us = 0;
	for (at += sizeof(name) - 1; at < end && *at >= '0' && *at <= '9'; at++)
		*sent_us = *sent_us * 10 + (*at - '0');
	return at;
}

void
ConnTake(Conn *c, const char *data, size_t length)
{
	const char *end = data + length;
	const char *at = data;
	uint64_t n;
	int64_t sent_us;

	delivered_bytes += length;
	while ((at = FindNumbers(at, end, &n, &sent_us)) != NULL)
	{
		c->received++;
		deliveries++;
		if (c->group->subscriptions == 1)
		{
			if (c->knows_n && n != c->next_n)
				Wrong("%s, connection %u: number %llu came, %llu was expected", c->group->name,
					  c->index, (unsigned long long) n, (unsigned long long) c->next_n);
			c->knows_n = true;
			c->next_n = n + 1;
		}
		HistogramAdd(&latency_us, now_us - sent_us);
		if (keep_samples)
			SampleAdd(sent_us, now_us - sent_us);
	}
}

void
ConnLearn(Conn *c, const char *data, size_t length)
{
	const char *end = data + length;
	const char *at = data;
	uint64_t n;
	int64_t sent_us;

	while ((at = FindNumbers(at, end, &n, &sent_us)) != NULL)
	{
		c->knows_n = true;
		c->next_n = n + 1;
	}
}

/* ---- receiving ---- */

static void
TakePayload(Conn *c, bool is_final, const char *data, size_t length)
{
	const Protocol *p = c->group->protocol;

	if (p->is_stream)
	{
		size_t used;

		if (c->message.length > 0)
		{
			BufferAppend(&c->message, data, length);
			used = p->take(c, c->message.data, c->message.length);
			if (c->fd < 0)
				return;
			memmove(c->message.data, c->message.data + used, c->message.length - used);
			c->message.length -= used;
			if (c->message.length == 0)
				BufferFree(&c->message);
			return;
		}
		used = p->take(c, data, length);
		if (c->fd >= 0 && used < length)
			BufferAppend(&c->message, data + used, length - used);
		return;
	}
	if (is_final && c->message.length == 0)
	{
		p->take(c, data, length);
		return;
	}
	BufferAppend(&c->message, data, length);
	if (is_final)
	{
		Buffer whole = c->message;

		memset(&c->message, 0, sizeof(Buffer));
		p->take(c, whole.data, whole.length);
		BufferFree(&whole);
	}
}

/* Takes one frame out of the bytes; 0: it is not whole. */
static size_t
TakeFrame(Conn *c, const unsigned char *p, size_t available)
{
	uint64_t length;
	size_t head = 2;
	int i;

	if (available < 2)
		return 0;
	length = p[1] & 0x7f;
	if ((p[1] & 0x80) != 0 || (p[0] & 0x70) != 0)
	{
		ConnFail(c, "the server sent a frame that is masked or compressed");
		return 0;
	}
	if (length >= 126)
	{
		int n = length == 126 ? 2 : 8;

		if (available < 2 + (size_t) n)
			return 0;
		length = 0;
		for (i = 0; i < n; i++)
			length = length << 8 | p[head++];
	}
	if (available - head < length)
		return 0;
	switch (p[0] & 0x0f)
	{
		case 0:
		case 1:
		case 2:
			TakePayload(c, (p[0] & 0x80) != 0, (const char *) p + head, length);
			break;
		case 8:
			ConnFail(c, "the server closed the connection, code %d",
					 length >= 2 ? p[head] << 8 | p[head + 1] : 0);
			return 0;
		case 9:
			ConnSend(c, 10, (const char *) p + head, length);
			break;
	}
	return head + length;
}

static ssize_t
Receive(Conn *c, char *bytes, size_t size)
{
	union
	{
		char bytes[CMSG_SPACE(sizeof(struct timespec))];
		struct cmsghdr align;
	} control;
	struct iovec part = {bytes, size};
	struct msghdr message = {.msg_iov = &part,
							 .msg_iovlen = 1,
							 .msg_control = &control,
							 .msg_controllen = sizeof(control)};
	struct cmsghdr *h;
	ssize_t n;

	if (!c->is_stamped)
	{
		n = recv(c->fd, bytes, size, 0);
		now_us = Now();
		return n;
	}
	n = recvmsg(c->fd, &message, 0);
	now_us = Now();
	for (h = CMSG_FIRSTHDR(&message); n > 0 && h != NULL; h = CMSG_NXTHDR(&message, h))
	{
		if (h->cmsg_level == SOL_SOCKET && h->cmsg_type == SCM_TIMESTAMPNS)
		{
			struct timespec t;

			memcpy(&t, CMSG_DATA(h), sizeof(t));
			HistogramAdd(&lag_us, now_us - ((int64_t) t.tv_sec * 1000000 + t.tv_nsec / 1000));
		}
	}
	return n;
}

static void
Readable(Conn *c)
{
	static char bytes[READ_SIZE];
	ssize_t n = Receive(c, bytes, sizeof(bytes));
	char *data = bytes;
	size_t length;
	size_t done = 0;
	size_t used;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0)
	{
		ConnFail(c, "the connection is lost%s%s", n < 0 ? ": " : "", n < 0 ? strerror(errno) : "");
		return;
	}
	length = (size_t) n;
	if (c->in.length > 0)
	{
		BufferAppend(&c->in, bytes, length);
		data = c->in.data;
		length = c->in.length;
	}
	if (c->state == CONN_UPGRADING)
	{
		char *end = memmem(data, length, "\r\n\r\n", 4);

		if (end != NULL)
		{
			if (length < 12 || memcmp(data, "HTTP/1.1 101", 12) != 0)
			{
				ConnFail(c, "no upgrade: %.*s", (int) length, data);
				return;
			}
			done = (size_t) (end - data) + 4;
			c->state = CONN_OPEN;
			c->group->protocol->opened(c);
		}
	}
	if (c->state != CONN_UPGRADING)
	{
		while (c->fd >= 0 &&
			   (used = TakeFrame(c, (unsigned char *) data + done, length - done)) > 0)
			done += used;
		if (c->fd < 0)
			return;
	}
	if (c->in.length > 0)
	{
		memmove(c->in.data, c->in.data + done, length - done);
		c->in.length = length - done;
		if (c->in.length == 0)
			BufferFree(&c->in);
	}
	else if (done < length)
		BufferAppend(&c->in, data + done, length - done);
}

/* ---- connecting ---- */

static void
Connect(Conn *c)
{
	Group *g = c->group;
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t) g->port)};
	struct epoll_event event = {.events = EPOLLOUT, .data.ptr = c};
	int one = 1;

	c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (c->fd < 0)
		Die("could not make a socket");
	if (g->stalls)
	{
		int bytes = STALL_BYTES;

		setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes));
	}
	if (inet_pton(AF_INET, g->host, &to.sin_addr) != 1)
		Die("host has to be an IPv4 address");
	if (g->sources > 1)
	{
		struct sockaddr_in from = {.sin_family = AF_INET};

		from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + c->index % g->sources);
		setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one));
		if (bind(c->fd, (struct sockaddr *) &from, sizeof(from)) != 0)
			Die("could not bind to a source address");
	}
	setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	c->is_stamped = c->index % STAMP_EVERY == 0 &&
					setsockopt(c->fd, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof(one)) == 0;
	c->began_us = Now();
	c->state = CONN_CONNECTING;
	g->nconnecting++;
	if (connect(c->fd, (struct sockaddr *) &to, sizeof(to)) != 0 && errno != EINPROGRESS)
	{
		ConnFail(c, "could not connect: %s", strerror(errno));
		return;
	}
	if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->fd, &event) != 0)
		Die("epoll_ctl");
}

static void
Connected(Conn *c)
{
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
	Group *g = c->group;
	char request[2048];
	char path[512];
	socklen_t size = sizeof(int);
	int error = 0;
	int n;

	getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
	if (error != 0)
	{
		ConnFail(c, "could not connect: %s", strerror(error));
		return;
	}
	n = snprintf(
		request, sizeof(request),
		"GET %s HTTP/1.1\r\nHost: %s:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
		"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n%s%s%s\r\n",
		Expand(g->path, c->channel, path, sizeof(path)), g->host, g->port,
		g->protocol->subprotocol ? "Sec-WebSocket-Protocol: " : "",
		g->protocol->subprotocol ? g->protocol->subprotocol : "",
		g->protocol->subprotocol ? "\r\n" : "");
	epoll_ctl(poll_fd, EPOLL_CTL_MOD, c->fd, &event);
	c->state = CONN_UPGRADING;
	if (send(c->fd, request, (size_t) n, MSG_NOSIGNAL) != (ssize_t) n)
		ConnFail(c, "could not send the request: %s", strerror(errno));
}

void
ConnEvent(Conn *c, uint32_t events)
{
	if (c->fd < 0)
		return;
	if (c->state == CONN_CONNECTING)
		Connected(c);
	else
		Readable(c);
}

/* ---- groups ---- */

static Group *
Find(const char *name)
{
	Group *g;

	for (g = groups; g != NULL; g = g->next)
		if (strcmp(g->name, name) == 0)
			return g;
	return NULL;
}

static Group *
Require(json_t *command)
{
	Group *g = Find(Text(command, "group", ""));

	if (g == NULL)
	{
		errno = 0;
		Die("there is no such group");
	}
	return g;
}

static void
Bury(Group *g)
{
	uint32_t i;

	for (i = 0; i < g->ntokens; i++)
		free(g->tokens[i]);
	free(g->tokens);
	free(g->conns);
	free(g->name);
	free(g->host);
	free(g->path);
	free(g->channel);
	free(g);
}

void
GroupsAdvance(void)
{
	Group *g;

	while ((g = graves) != NULL)
	{
		graves = g->next;
		Bury(g);
	}
	if (pong_time != 0 && Now() >= pong_time)
	{
		pong_time = Now() + PONG_US;
		for (g = groups; g != NULL; g = g->next)
			if (g->stalls)
				Pong(g);
	}
	if (next_time != 0 && Now() < next_time)
		return;
	next_time = 0;
	for (g = groups; g != NULL; g = g->next)
	{
		while (g->waiting != NULL && (g->window == 0 || g->nconnecting < g->window) &&
			   next_time == 0)
		{
			Conn *c = g->waiting;

			if (g->spread_us > 0 && g->nreleased < g->nconns)
			{
				int64_t now = Now();

				if (now < g->opened_us + g->spread_us * g->nreleased / g->nconns)
				{
					next_time = now + 1000;
					break;
				}
				g->nreleased++;
			}
			g->waiting = c->next_waiting;
			Connect(c);
		}
	}
}

int64_t
GroupsNextTime(void)
{
	return next_time == 0 || (pong_time != 0 && pong_time < next_time) ? pong_time : next_time;
}

static char **
ReadTokens(const char *file, uint32_t *count)
{
	FILE *in = fopen(file, "r");
	char **tokens = NULL;
	char *line = NULL;
	size_t room = 0;
	ssize_t n;

	*count = 0;
	if (in == NULL)
		Die(file);
	while ((n = getline(&line, &room, in)) > 0)
	{
		if (line[n - 1] == '\n')
			line[n - 1] = '\0';
		tokens = Allocate(tokens, (*count + 1) * sizeof(char *));
		tokens[(*count)++] = strdup(line);
	}
	fclose(in);
	free(line);
	return tokens;
}

void
GroupOpen(json_t *command)
{
	static const Protocol *const protocols[] = {&protocol_changefeed, &protocol_text,
												&protocol_nats, &protocol_mqtt};
	const char *protocol = Text(command, "protocol", "");
	const char *token = Text(command, "token", NULL);
	const char *tokens = Text(command, "tokens", NULL);
	Group *g = Allocate(NULL, sizeof(Group));
	uint32_t i;

	memset(g, 0, sizeof(Group));
	for (i = 0; i < sizeof(protocols) / sizeof(protocols[0]); i++)
		if (strcmp(protocols[i]->name, protocol) == 0)
			g->protocol = protocols[i];
	g->name = strdup(Text(command, "group", "clients"));
	errno = 0;
	if (g->protocol == NULL)
		Die("protocol has to be changefeed, text, nats or mqtt");
	if (Find(g->name) != NULL)
		Die("there is a group of that name");
	g->host = strdup(Text(command, "host", "127.0.0.1"));
	g->port = (int) Number(command, "port", 0);
	g->path = strdup(Text(command, "path", g->protocol->path));
	g->channel = strdup(Text(command, "channel", "{i}"));
	g->nconns = (uint32_t) Number(command, "connections", 1);
	g->subscriptions = (uint32_t) Number(command, "subscriptions", 1);
	g->first = (uint32_t) Number(command, "first", 1);
	g->channels = (uint32_t) Number(command, "channels", 1);
	g->sources = (uint32_t) Number(command, "sources", 1);
	g->window = (uint32_t) Number(command, "window", 64);
	g->retry_ms = (int) Number(command, "retry_ms", -1);
	g->snapshot = Flag(command, "snapshot", true);
	g->stalls = Flag(command, "stalls", false);
	g->sip = (uint32_t) Number(command, "sip", 0);
	g->keeps_positions = Flag(command, "positions", false);
	if (g->nconns < 1 || g->channels < 1 || g->sources < 1)
		Die("connections, channels and sources have to be at least 1");
	if (tokens != NULL)
		g->tokens = ReadTokens(tokens, &g->ntokens);
	else if (token != NULL)
	{
		g->tokens = Allocate(NULL, sizeof(char *));
		g->tokens[0] = strdup(token);
		g->ntokens = 1;
	}
	g->conns = Allocate(NULL, g->nconns * sizeof(Conn));
	memset(g->conns, 0, g->nconns * sizeof(Conn));
	g->is_opening = true;
	g->opened_us = Now();
	g->next = groups;
	groups = g;
	for (i = 0; i < g->nconns; i++)
	{
		Conn *c = &g->conns[i];

		c->fd = -1;
		c->group = g;
		c->index = i;
		c->channel = g->first + i % g->channels;
		Wait(c);
	}
}

/*
 * With "how":"drop" all connections are closed and opened again at once, with
 * "lost" they are opened again when the server has gone. "from": they resume
 * from the last position that they have seen. "spread_ms": they come within that
 * time rather than all in one moment.
 */
void
GroupReopen(json_t *command)
{
	Group *g = Require(command);
	bool from = Flag(command, "from", false);
	uint32_t i;

	if (from && !g->keeps_positions)
	{
		errno = 0;
		Die("the group does not keep positions");
	}
	g->uses_positions = from;
	g->window = (uint32_t) Number(command, "window", 0);
	g->retry_ms = (int) Number(command, "retry_ms", 100);
	g->spread_us = Number(command, "spread_ms", 0) * 1000;
	g->nreleased = 0;
	g->retries = g->recovered = g->snapshots = g->resyncs = 0;
	g->snapshot_bytes = 0;
	memset(&g->ready_us, 0, sizeof(Histogram));
	if (strcmp(Text(command, "how", "drop"), "lost") == 0)
	{
		g->says_lost = true;
		return;
	}
	g->is_opening = true;
	g->opened_us = Now();
	for (i = 0; i < g->nconns; i++)
	{
		Drop(&g->conns[i], Flag(command, "reset", true));
		if (!from)
			g->conns[i].knows_n = false;
		Wait(&g->conns[i]);
	}
}

void
GroupClose(json_t *command)
{
	Group *g = Require(command);
	Group **at;
	uint32_t i;

	for (i = 0; i < g->nconns; i++)
		Drop(&g->conns[i], Flag(command, "reset", true));
	for (at = &groups; *at != g; at = &(*at)->next)
		;
	*at = g->next;
	Tell(json_pack("{ss ss si}", "event", "closed", "group", g->name, "lost", g->nlost));
	/* Events of this turn may still point to its connections. */
	g->next = graves;
	graves = g;
}
