/*-------------------------------------------------------------------------
 *
 * client.c
 *		A WebSocket client that measures how old a change is when it comes.
 *
 * Opens connections, sends each the messages of --send, and waits until each
 * has received a message that contains the text of --ready; then it prints
 * a line with "ready".  From then on it looks into every message for "sent_us":<number>,
 * the microseconds since 1970 at which the writer sent the row, and keeps the
 * difference to its own clock.  Knows nothing of the protocols above WebSocket
 * but these two texts, so it is the same program for every server.
 *
 * The clock is read once after each read() that brought bytes, before they are
 * looked at.  Nothing is written while samples are taken; when stdin ends it
 * waits until --expect samples have come, at most --drain milliseconds, writes the samples to --out, one line with
 * the row's sent_us and the latency in microseconds, and ends.
 *
 *	client --port N [--host 127.0.0.1] [--path /] [--connections 1]
 *		--send MESSAGE ... --ready TEXT --out FILE [--drain MS] [--expect N]
 *		[--pong MESSAGE] [--tokens FILE]
 *
 * --pong is the answer to messages that begin with {"type":"ping".  In the
 * messages of --send, %n stands for the number of the connection, from 1 on,
 * and %t for the line of that number in the file of --tokens.
 * "ready" is followed by the microseconds since the first message was sent, and
 * by the bytes that came.
 *
 * One thread, epoll, no allocation but for growing buffers.
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
#include <time.h>
#include <unistd.h>

#define MAX_SENDS	64
#define READ_SIZE	(64 * 1024)
#define MAX_MESSAGE (64 * 1024 * 1024)

typedef struct Buffer
{
	char *data;
	size_t length;
	size_t room;
} Buffer;

typedef enum State
{
	HANDSHAKE,
	WAITING,
	READY
} State;

typedef struct Client
{
	int fd;
	State state;
	Buffer in;		/* bytes that are not a whole frame yet */
	Buffer message; /* frames of a message that is not whole yet */
} Client;

typedef struct Sample
{
	int64_t sent_us;
	int64_t latency_us;
} Sample;

static const char *host = "127.0.0.1";
static const char *path = "/";
static const char *ready_text;
static const char *pong;
static const char *out_file;
static const char *sends[MAX_SENDS];
static int nsends;
static int port;
static int nclients = 1;
static int drain_ms = 500;
static size_t expected;
static int64_t first_sent_us;
static char **tokens;
static int ntokens;
static long long nbytes;

static Client *clients;
static int nready;
static Sample *samples;
static size_t nsamples;
static size_t samples_room;
static int64_t now_us; /* when the bytes at hand were there */

static void
Die(const char *what)
{
	fprintf(stderr, "client: %s%s%s\n", what, errno != 0 ? ": " : "",
			errno != 0 ? strerror(errno) : "");
	exit(1);
}

static int64_t
Now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return (int64_t) t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void
Append(Buffer *b, const char *data, size_t length)
{
	if (b->length + length > b->room)
	{
		b->room = (b->length + length) * 2;
		b->data = realloc(b->data, b->room);
		if (b->data == NULL)
			Die("out of memory");
	}
	memcpy(b->data + b->length, data, length);
	b->length += length;
}

/* Small messages on an idle socket: a short write is an error. */
static void
WriteAll(Client *c, const char *data, size_t length)
{
	if (send(c->fd, data, length, MSG_NOSIGNAL) != (ssize_t) length)
		Die("could not send");
}

/* Masked with zeros, which is a valid mask. */
static void
SendFrame(Client *c, int opcode, const char *data, size_t length)
{
	Buffer frame = {NULL, 0, 0};
	unsigned char head[8];
	size_t n = 0;

	head[n++] = (unsigned char) (0x80 | opcode);
	if (length < 126)
		head[n++] = (unsigned char) (0x80 | length);
	else if (length < 65536)
	{
		head[n++] = 0x80 | 126;
		head[n++] = (unsigned char) (length >> 8);
		head[n++] = (unsigned char) length;
	}
	else
		Die("message to send is too long");
	Append(&frame, (char *) head, n);
	Append(&frame, "\0\0\0\0", 4);
	Append(&frame, data, length);
	WriteAll(c, frame.data, frame.length);
	free(frame.data);
}

/* Sends a message of --send, with what stands for the connection put in. */
static void
Say(Client *c, const char *message)
{
	int number = (int) (c - clients);
	char text[4096];
	size_t length = 0;

	for (; *message != '\0'; message++)
	{
		char put[16];
		const char *piece = put;

		snprintf(put, sizeof(put), "%c", *message);
		if (strncmp(message, "%n", 2) == 0)
			snprintf(put, sizeof(put), "%d", number + 1);
		else if (strncmp(message, "%t", 2) == 0 && number < ntokens)
			piece = tokens[number];
		message += *message == '%' && piece[0] != '%';
		if (length + strlen(piece) >= sizeof(text))
			Die("message to send is too long");
		memcpy(text + length, piece, strlen(piece));
		length += strlen(piece);
	}
	if (first_sent_us == 0)
		first_sent_us = Now();
	SendFrame(c, 1, text, length);
}

static void
TakeSamples(const char *data, size_t length)
{
	static const char name[] = "\"sent_us\":";
	const char *end = data + length;
	const char *at = data;

	while ((at = memmem(at, end - at, name, sizeof(name) - 1)) != NULL)
	{
		int64_t sent = 0;

		at += sizeof(name) - 1;
		if (at < end && *at == '"')
			at++;
		for (; at < end && *at >= '0' && *at <= '9'; at++)
			sent = sent * 10 + (*at - '0');
		if (nsamples == samples_room)
		{
			samples_room = samples_room == 0 ? 65536 : samples_room * 2;
			samples = realloc(samples, samples_room * sizeof(Sample));
			if (samples == NULL)
				Die("out of memory");
		}
		samples[nsamples].sent_us = sent;
		samples[nsamples++].latency_us = now_us - sent;
	}
}

static void
OnMessage(Client *c, const char *data, size_t length)
{
	static const char ping[] = "{\"type\":\"ping\"";
	static const char error[] = "{\"type\":\"error\"";

	if (c->state == READY)
		TakeSamples(data, length);
	else if (memmem(data, length, ready_text, strlen(ready_text)) != NULL)
	{
		c->state = READY;
		if (++nready == nclients)
		{
			printf("ready %lld %lld\n", (long long) (now_us - first_sent_us), nbytes);
			fflush(stdout);
		}
	}
	if (pong != NULL && length >= sizeof(ping) - 1 && memcmp(data, ping, sizeof(ping) - 1) == 0)
		SendFrame(c, 1, pong, strlen(pong));
	if (length >= sizeof(error) - 1 && memcmp(data, error, sizeof(error) - 1) == 0)
	{
		fprintf(stderr, "client: %.*s\n", (int) length, data);
		exit(1);
	}
}

/* Takes one frame out of the bytes; 0: it is not whole. */
static size_t
TakeFrame(Client *c, const unsigned char *p, size_t available)
{
	uint64_t length;
	size_t head = 2;
	bool final;
	int opcode;
	int i;

	if (available < 2)
		return 0;
	final = (p[0] & 0x80) != 0;
	opcode = p[0] & 0x0f;
	length = p[1] & 0x7f;
	if ((p[1] & 0x80) != 0 || (p[0] & 0x70) != 0)
		Die("the server sent a frame that is masked or compressed");
	if (length >= 126)
	{
		int n = length == 126 ? 2 : 8;

		if (available < 2 + (size_t) n)
			return 0;
		length = 0;
		for (i = 0; i < n; i++)
			length = length << 8 | p[head++];
	}
	if (length > MAX_MESSAGE)
		Die("the server sent a frame that is too long");
	if (available < head + length)
		return 0;

	switch (opcode)
	{
		case 0:
		case 1:
		case 2:
			if (final && c->message.length == 0)
				OnMessage(c, (const char *) p + head, length);
			else
			{
				Append(&c->message, (const char *) p + head, length);
				if (final)
				{
					OnMessage(c, c->message.data, c->message.length);
					c->message.length = 0;
				}
			}
			break;
		case 8:
			fprintf(stderr, "client: the server closed the connection, code %d\n",
					length >= 2 ? p[head] << 8 | p[head + 1] : 0);
			exit(1);
		case 9:
			SendFrame(c, 10, (const char *) p + head, length);
			break;
	}
	return head + length;
}

static void
Readable(Client *c)
{
	static char bytes[READ_SIZE];
	ssize_t n = read(c->fd, bytes, sizeof(bytes));
	size_t done = 0;
	size_t used;
	char *end;
	int i;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n == 0)
		errno = 0;
	if (n <= 0)
		Die("connection lost");
	now_us = Now();
	nbytes += n;
	Append(&c->in, bytes, (size_t) n);

	if (c->state == HANDSHAKE)
	{
		end = memmem(c->in.data, c->in.length, "\r\n\r\n", 4);
		if (end == NULL)
			return;
		if (c->in.length < 12 || memcmp(c->in.data, "HTTP/1.1 101", 12) != 0)
		{
			fprintf(stderr, "client: no upgrade: %.*s\n", (int) c->in.length, c->in.data);
			exit(1);
		}
		done = (size_t) (end - c->in.data) + 4;
		c->state = WAITING;
		for (i = 0; i < nsends; i++)
			Say(c, sends[i]);
	}
	while ((used = TakeFrame(c, (unsigned char *) c->in.data + done, c->in.length - done)) > 0)
		done += used;
	if (done > 0)
	{
		memmove(c->in.data, c->in.data + done, c->in.length - done);
		c->in.length -= done;
	}
}

static void
Open(Client *c, int poll)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t) port)};
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
	char request[512];
	int one = 1;
	int n;

	c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (c->fd < 0)
		Die("could not make a socket");
	if (inet_pton(AF_INET, host, &address.sin_addr) != 1)
		Die("--host has to be an IPv4 address");
	if (connect(c->fd, (struct sockaddr *) &address, sizeof(address)) != 0)
		Die("could not connect");
	setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	n = snprintf(request, sizeof(request),
				 "GET %s HTTP/1.1\r\nHost: %s:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
				 "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n",
				 path, host, port);
	WriteAll(c, request, (size_t) n);
	fcntl(c->fd, F_SETFL, fcntl(c->fd, F_GETFL) | O_NONBLOCK);
	if (epoll_ctl(poll, EPOLL_CTL_ADD, c->fd, &event) != 0)
		Die("epoll_ctl");
}

static void
WriteSamples(void)
{
	FILE *out = fopen(out_file, "w");
	size_t i;

	if (out == NULL)
		Die(out_file);
	for (i = 0; i < nsamples; i++)
		fprintf(out, "%lld %lld\n", (long long) samples[i].sent_us,
				(long long) samples[i].latency_us);
	if (fclose(out) != 0)
		Die(out_file);
}

static void
ReadTokens(const char *name)
{
	FILE *file = fopen(name, "r");
	char line[4096];

	if (file == NULL)
		Die(name);
	while (fgets(line, sizeof(line), file) != NULL)
	{
		line[strcspn(line, "\n")] = '\0';
		tokens = realloc(tokens, sizeof(char *) * (size_t) (ntokens + 1));
		if (tokens == NULL || (tokens[ntokens++] = strdup(line)) == NULL)
			Die("out of memory");
	}
	fclose(file);
}

static void
Arguments(int argc, char **argv)
{
	int i;

	for (i = 1; i + 1 < argc; i += 2)
	{
		const char *name = argv[i];
		const char *value = argv[i + 1];

		if (strcmp(name, "--host") == 0)
			host = value;
		else if (strcmp(name, "--port") == 0)
			port = atoi(value);
		else if (strcmp(name, "--path") == 0)
			path = value;
		else if (strcmp(name, "--connections") == 0)
			nclients = atoi(value);
		else if (strcmp(name, "--send") == 0 && nsends < MAX_SENDS)
			sends[nsends++] = value;
		else if (strcmp(name, "--ready") == 0)
			ready_text = value;
		else if (strcmp(name, "--pong") == 0)
			pong = value;
		else if (strcmp(name, "--out") == 0)
			out_file = value;
		else if (strcmp(name, "--drain") == 0)
			drain_ms = atoi(value);
		else if (strcmp(name, "--tokens") == 0)
			ReadTokens(value);
		else if (strcmp(name, "--expect") == 0)
			expected = strtoul(value, NULL, 10);
		else
			break;
	}
	if (i != argc || port == 0 || ready_text == NULL || out_file == NULL || nclients < 1)
	{
		fputs("client: bad arguments; the head of client.c lists them\n", stderr);
		exit(2);
	}
}

int
main(int argc, char **argv)
{
	struct epoll_event events[256];
	struct epoll_event input = {.events = EPOLLIN, .data.ptr = NULL};
	struct rlimit files;
	int64_t end = 0;
	int poll;
	int i;

	Arguments(argc, argv);
	if (getrlimit(RLIMIT_NOFILE, &files) == 0)
	{
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	poll = epoll_create1(EPOLL_CLOEXEC);
	clients = calloc((size_t) nclients, sizeof(Client));
	if (poll < 0 || clients == NULL)
		Die("could not start");
	for (i = 0; i < nclients; i++)
		Open(&clients[i], poll);
	if (epoll_ctl(poll, EPOLL_CTL_ADD, 0, &input) != 0)
		Die("stdin cannot be polled: use a pipe");

	for (;;)
	{
		int timeout = -1;
		int n;

		if (end != 0)
		{
			int64_t left = end - Now();

			if (left <= 0 || (expected > 0 && nsamples >= expected))
				break;
			timeout = (int) (left / 1000) + 1;
		}
		n = epoll_wait(poll, events, 256, timeout);
		if (n < 0 && errno != EINTR)
			Die("epoll_wait");
		for (i = 0; i < n; i++)
		{
			char ignored[64];

			if (events[i].data.ptr != NULL)
				Readable(events[i].data.ptr);
			else if (read(0, ignored, sizeof(ignored)) <= 0)
			{
				epoll_ctl(poll, EPOLL_CTL_DEL, 0, NULL);
				end = Now() + (int64_t) drain_ms * 1000;
			}
		}
	}
	WriteSamples();
	return nready == nclients ? 0 : 1;
}
