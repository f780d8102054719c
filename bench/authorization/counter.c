/*-------------------------------------------------------------------------
 *
 * counter.c
 *		Stands in the place of the gateway: counts what the feed worker delivers,
 *		and discards it.
 *
 * So what is measured ends at the link: decoding, authorization and encoding,
 * without sockets and clients.  The feed worker starts it as it starts a
 * gateway (with --link-fd 3), in a tree of PostgreSQL's programs of its own
 * (bench/authorization/tree).  It speaks src/link_format.h and makes
 * connections up, each with a token of its own.
 *
 * It is told what to do on the port that the feed worker hands to it, by plain
 * HTTP/1.0, one request at a time:
 *
 *	GET /					200
 *	POST /connect			body: a line for each connection, its token and
 *							behind blanks the channels that it subscribes to,
 *							as many in each line.  Answers when all are ready:
 *							{"ready":N,"us":N}
 *	POST /disconnect		ends them all
 *	POST /reset				forgets what was counted
 *	GET /counts				what was counted, as one JSON object
 *	GET /deliveries			a line for each connection: how many changes it was
 *							sent, and the sum of their "serial"
 *
 * A change that is sent to n connections counts as n deliveries.  Its row has
 * a column "serial", which the writer numbers, so that count and sum say
 * whether each connection got what it may see and nothing else.
 *
 * What it does not know it counts as unknown: the benchmark refuses figures
 * that were measured with such messages.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "link_format.h"
#include "linkframe.h"
#include "wire.h"

/* Connections that are on their way at a time. */
#define WINDOW 256

#define MAX_LISTENERS 8
#define MAX_AUDIENCES 65536

#define READ_BUDGET ((size_t) 256 * 1024)

typedef struct Seat
{
	bool open;
	uint64_t deliveries;
	uint64_t sum;
} Seat;

static LinkFrame *link_frame;
static int listeners[MAX_LISTENERS];
static int nlisteners;

/* Seat i is connection i + 1 of this round; numbers are never used again. */
static Seat *seats;
static uint32_t nseats;
static uint32_t base;

/* The round of /connect that is under way. */
static int asker = -1;
static char *orders; /* what is left of its body */
static uint32_t asked;
static uint32_t ready; /* of channels */
static uint32_t nchannels;
static int64_t asked_at;

static uint64_t transactions;
static uint64_t fragments;
static uint64_t deliveries;
static uint64_t bytes;
static uint64_t strays; /* for connections that there are not */
static uint64_t errors;
static uint64_t resyncs;
static uint64_t closed;
static uint64_t unknown;
static int64_t first_us;
static int64_t last_us;
static char *last_error;

static void
Die(const char *what)
{
	fprintf(stderr, "counter: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int64_t
Now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return (int64_t) t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void *
Allocate(size_t size)
{
	void *p = calloc(1, size);

	if (p == NULL)
		Die("out of memory");
	return p;
}

/* ---- HTTP ---- */

static void
WriteAll(int fd, const char *data, size_t length)
{
	while (length > 0)
	{
		ssize_t n = send(fd, data, length, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return;
		data += n;
		length -= (size_t) n;
	}
}

static void
Answer(int fd, int status, const char *body)
{
	char head[128];
	int n = snprintf(head, sizeof(head),
					 "HTTP/1.0 %d %s\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n", status,
					 status == 200 ? "OK" : "Error", strlen(body));

	WriteAll(fd, head, (size_t) n);
	WriteAll(fd, body, strlen(body));
	close(fd);
}

static void
AnswerCounts(int fd)
{
	char body[1024];

	snprintf(body, sizeof(body),
			 "{\"ready\":%u,\"transactions\":%" PRIu64 ",\"fragments\":%" PRIu64
			 ",\"deliveries\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"strays\":%" PRIu64
			 ",\"errors\":%" PRIu64 ",\"resyncs\":%" PRIu64 ",\"closed\":%" PRIu64
			 ",\"unknown\":%" PRIu64 ",\"first_us\":%" PRId64 ",\"last_us\":%" PRId64 "}\n",
			 ready, transactions, fragments, deliveries, bytes, strays, errors, resyncs, closed,
			 unknown, first_us, last_us);
	Answer(fd, 200, body);
}

static void
AnswerDeliveries(int fd)
{
	char *body = Allocate((size_t) nseats * 44 + 1);
	size_t length = 0;
	uint32_t i;

	for (i = 0; i < nseats; i++)
		length += (size_t) sprintf(body + length, "%" PRIu64 " %" PRIu64 "\n", seats[i].deliveries,
								   seats[i].sum);
	Answer(fd, 200, body);
	free(body);
}

static void
Reset(void)
{
	uint32_t i;

	transactions = fragments = deliveries = bytes = strays = errors = resyncs = closed = unknown =
		0;
	first_us = last_us = 0;
	for (i = 0; i < nseats; i++)
		seats[i].deliveries = seats[i].sum = 0;
}

/* ---- connections ---- */

static void
Disconnect(void)
{
	uint32_t i;

	for (i = 0; i < nseats; i++)
	{
		if (!seats[i].open)
			continue;
		LinkFrameBegin(link_frame, LINK_CLOSED);
		LinkFramePutU32(link_frame, base + i);
		LinkFramePutU8(link_frame, LINK_CAUSE_CLIENT);
		LinkFrameEnd(link_frame);
	}
	base += nseats;
	free(seats);
	seats = NULL;
	nseats = asked = ready = 0;
}

/* Opens some more, as long as few enough are on their way. */
static void
Ask(void)
{
	while (asker >= 0 && asked < nseats && asked * nchannels - ready < WINDOW)
	{
		char *end = strchr(orders, '\n');
		size_t token = strcspn(orders, " \n");
		char *channel = orders + token;

		LinkFrameBegin(link_frame, LINK_OPEN);
		LinkFramePutU32(link_frame, base + asked);
		LinkFramePutU8(link_frame, LINK_TRANSPORT_WEBSOCKET);
		LinkFramePutBytes(link_frame, "127.0.0.1", 9);
		LinkFramePutBytes(link_frame, orders, token);
		LinkFrameEnd(link_frame);
		while (channel < end)
		{
			size_t length = strcspn(++channel, " \n");
			char subscribe[256];
			int n = snprintf(
				subscribe, sizeof(subscribe),
				"{\"type\":\"subscribe\",\"id\":1,\"channel\":\"%.*s\",\"snapshot\":false}",
				(int) length, channel);

			LinkFrameBegin(link_frame, LINK_MESSAGE);
			LinkFramePutU32(link_frame, base + asked);
			LinkFramePutRaw(link_frame, subscribe, (size_t) n);
			LinkFrameEnd(link_frame);
			channel += length;
		}
		seats[asked++].open = true;
		orders = end + 1;
	}
	if (asker >= 0 && ready == nseats * nchannels)
	{
		char body[64];

		snprintf(body, sizeof(body), "{\"ready\":%u,\"us\":%" PRId64 "}\n", nseats,
				 Now() - asked_at);
		Answer(asker, 200, body);
		asker = -1;
	}
}

static void
Connect(int fd, const char *body)
{
	static char *kept;
	const char *p;

	Disconnect();
	for (p = body; (p = strchr(p, '\n')) != NULL; p++)
		nseats++;
	for (p = body, nchannels = 0; *p != '\0' && *p != '\n'; p++)
		nchannels += *p == ' ';
	seats = Allocate(sizeof(Seat) * (nseats + 1));
	free(kept);
	orders = kept = strdup(body);
	asker = fd;
	asked_at = Now();
	Ask();
}

static Seat *
SeatOf(uint32_t number)
{
	return number >= base && number - base < nseats ? &seats[number - base] : NULL;
}

/* ---- the link ---- */

static void
Closed(uint32_t number)
{
	Seat *seat = SeatOf(number);

	if (seat == NULL || !seat->open)
		return;
	seat->open = false;
	closed++;
	LinkFrameBegin(link_frame, LINK_CLOSED);
	LinkFramePutU32(link_frame, number);
	LinkFramePutU8(link_frame, LINK_CAUSE_SERVER);
	LinkFrameEnd(link_frame);
}

static bool
Has(const char *data, size_t length, const char *text)
{
	return memmem(data, length, text, strlen(text)) != NULL;
}

static void
Failed(const char *data, size_t length)
{
	errors++;
	free(last_error);
	last_error = strndup(data, length);
	if (asker >= 0)
	{
		Answer(asker, 500, last_error);
		asker = -1;
	}
}

static void
Message(uint32_t number, const char *data, size_t length)
{
	Seat *seat = SeatOf(number);

	if (seat == NULL)
		return;
	if (Has(data, length, "\"type\":\"ready\""))
		ready++;
	else if (Has(data, length, "\"type\":\"resync\""))
		resyncs++;
	else if (Has(data, length, "\"type\":\"error\"") || Has(data, length, "\"type\":\"revoked\""))
		Failed(data, length);
}

/* Of the transaction, as LINK_TX_AUDIENCE tells them. */
static WireBytes audiences[MAX_AUDIENCES];
static uint32_t naudiences;

static void
Audience(WireReader *r)
{
	size_t length = (size_t) WireGetU32(r) * sizeof(uint32_t);
	const char *numbers = WireTake(r, length);
	char *copy = numbers != NULL && naudiences < MAX_AUDIENCES ? malloc(length) : NULL;

	if (copy == NULL)
	{
		unknown++;
		return;
	}
	memcpy(copy, numbers, length);
	audiences[naudiences++] = (WireBytes){copy, length};
}

static void
TransactionEnds(void)
{
	while (naudiences > 0)
		free((char *) audiences[--naudiences].data);
	transactions++;
}

static void
Fragment(WireReader *r, bool shared)
{
	static const char name[] = "\"serial\":";
	uint32_t n = WireGetU32(r);
	const char *numbers = NULL;
	const char *data;
	size_t length;
	const char *at;
	uint64_t serial = 0;
	uint32_t i;

	if (!shared)
		numbers = WireTake(r, (size_t) n * sizeof(uint32_t));
	else if (n < naudiences)
	{
		numbers = audiences[n].data;
		n = (uint32_t) (audiences[n].length / sizeof(uint32_t));
	}
	data = r->data + r->offset;
	length = r->length - r->offset;
	if (numbers == NULL)
	{
		unknown++;
		return;
	}
	at = memmem(data, length, name, sizeof(name) - 1);
	if (at != NULL)
		serial = strtoull(at + sizeof(name) - 1, NULL, 10);
	fragments++;
	bytes += length;
	last_us = Now();
	if (first_us == 0)
		first_us = last_us;
	for (i = 0; i < n; i++)
	{
		uint32_t number;
		Seat *seat;

		memcpy(&number, numbers + (size_t) i * sizeof(number), sizeof(number));
		seat = SeatOf(number);
		if (seat == NULL || !seat->open)
		{
			strays++;
			continue;
		}
		deliveries++;
		seat->deliveries++;
		seat->sum += serial;
	}
}

/* All counters are zero: nothing was sent to anybody. */
static void
SayStats(void)
{
	int i;

	LinkFrameBegin(link_frame, LINK_STATS);
	for (i = 0; i < 8 + LINK_LAG_BUCKETS + 1; i++)
		LinkFramePutU64(link_frame, 0);
	LinkFramePutU32(link_frame, 0);
	LinkFramePutU64(link_frame, 0);
	LinkFrameEnd(link_frame);
}

static void
Handle(const LinkMessage *message)
{
	WireReader r = WireReaderInit(message->payload, message->length);

	switch (message->type)
	{
		case LINK_CONFIG:
		case LINK_ASSET:
		case LINK_PATHS:
		case LINK_TLS:
		case LINK_IDENTITY:
		case LINK_WAITING:
		case LINK_RESUME:
		case LINK_TX_TIME:
		case LINK_TX_BEGIN:
		case LINK_PING:
		case LINK_SNAPSHOT_STOP:
			break;
		case LINK_LISTEN:
			if (message->descriptor >= 0 && nlisteners < MAX_LISTENERS)
				listeners[nlisteners++] = dup(message->descriptor);
			break;
		case LINK_SEND:
		case LINK_SYNCED:
		{
			uint32_t number = WireGetU32(&r);

			Message(number, r.data + r.offset, r.length - r.offset);
		}
		break;
		case LINK_TX_FRAGMENT:
			Fragment(&r, false);
			break;
		case LINK_TX_AUDIENCE:
			Audience(&r);
			break;
		case LINK_TX_SHARED:
			Fragment(&r, true);
			break;
		case LINK_TX_END:
			TransactionEnds();
			break;
		case LINK_CLOSE:
			Closed(WireGetU32(&r));
			break;
		case LINK_MARK:
		{
			uint32_t number = WireGetU32(&r);
			uint32_t mark = WireGetU32(&r);

			LinkFrameBegin(link_frame, LINK_FLUSHED);
			LinkFramePutU32(link_frame, number);
			LinkFramePutU32(link_frame, mark);
			LinkFrameEnd(link_frame);
		}
		break;
		case LINK_SNAPSHOT:
		{
			uint32_t number = WireGetU32(&r);
			uint32_t sub = WireGetU32(&r);

			LinkFrameBegin(link_frame, LINK_SNAPSHOT_DONE);
			LinkFramePutU32(link_frame, number);
			LinkFramePutU32(link_frame, sub);
			LinkFramePutU8(link_frame, 1);
			LinkFrameEnd(link_frame);
		}
		break;
		case LINK_STATS_ASK:
			SayStats();
			break;
		case LINK_CONNECTIONS_ASK:
			LinkFrameBegin(link_frame, LINK_CONNECTIONS);
			LinkFramePutU32(link_frame, 0);
			LinkFrameEnd(link_frame);
			break;
		case LINK_PROBE:
			LinkFrameBegin(link_frame, LINK_PROBED);
			LinkFramePutU64(link_frame, WireGetU64(&r));
			LinkFrameEnd(link_frame);
			break;
		case LINK_SHUTDOWN:
			exit(0);
		default:
			unknown++;
	}
}

static void
ReadLink(void)
{
	LinkMessage message;
	LinkStatus status = LinkFrameFill(link_frame, READ_BUDGET);
	LinkStatus next;

	while ((next = LinkFrameNext(link_frame, &message)) == LINK_OK)
	{
		Handle(&message);
		if (message.descriptor >= 0)
			close(message.descriptor);
	}
	if (status == LINK_EOF || status == LINK_ERROR || next == LINK_ERROR)
		exit(0);
	Ask();
}

/* ---- requests ---- */

static char *
ReadRequest(int fd)
{
	size_t room = 65536;
	size_t length = 0;
	char *text = Allocate(room + 1);

	for (;;)
	{
		char *body;
		char *header;
		ssize_t n;

		if (length == room && (text = realloc(text, (room *= 2) + 1)) == NULL)
			Die("out of memory");
		n = recv(fd, text + length, room - length, 0);
		if (n <= 0)
			break;
		length += (size_t) n;
		text[length] = '\0';
		body = strstr(text, "\r\n\r\n");
		if (body == NULL)
			continue;
		header = strcasestr(text, "\r\nContent-Length:");
		if (header == NULL || header > body ||
			length - (size_t) (body + 4 - text) >= strtoull(header + 17, NULL, 10))
			return text;
	}
	free(text);
	return NULL;
}

static void
Request(int listener)
{
	struct timeval limit = {.tv_sec = 10};
	int fd = accept(listener, NULL, NULL);
	char *text;
	char *body;

	if (fd < 0)
		return;
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	text = ReadRequest(fd);
	if (text == NULL)
	{
		close(fd);
		return;
	}
	body = strstr(text, "\r\n\r\n") + 4;
	if (strncmp(text, "POST /connect ", 14) == 0 && asker < 0)
		Connect(fd, body);
	else if (strncmp(text, "POST /disconnect ", 17) == 0)
	{
		Disconnect();
		Answer(fd, 200, "");
	}
	else if (strncmp(text, "POST /reset ", 12) == 0)
	{
		Reset();
		Answer(fd, 200, "");
	}
	else if (strncmp(text, "GET /counts ", 12) == 0)
		AnswerCounts(fd);
	else if (strncmp(text, "GET /deliveries ", 16) == 0)
		AnswerDeliveries(fd);
	else if (strncmp(text, "GET / ", 6) == 0)
		Answer(fd, 200, "");
	else
		Answer(fd, 404, "");
	free(text);
}

int
main(int argc, char **argv)
{
	static const char library[] = "none: deliveries are counted and discarded";

	if (argc != 3 || strcmp(argv[1], "--link-fd") != 0)
	{
		fputs("counter: the feed worker starts it; the head of counter.c says how\n", stderr);
		return 2;
	}
	base = 1;
	link_frame = LinkFrameCreate(atoi(argv[2]));
	if (link_frame == NULL)
		Die("no link");
	LinkFrameBegin(link_frame, LINK_HELLO);
	LinkFramePutU32(link_frame, LINK_VERSION);
	LinkFramePutU32(link_frame, (uint32_t) getpid());
	LinkFramePutBytes(link_frame, library, sizeof(library) - 1);
	LinkFrameEnd(link_frame);

	for (;;)
	{
		struct pollfd fds[1 + MAX_LISTENERS];
		int i;

		if (LinkFrameFlush(link_frame) > LINK_AGAIN)
			return 0;
		fds[0].fd = LinkFrameSocket(link_frame);
		fds[0].events = POLLIN;
		if (LinkFramePending(link_frame) > 0)
			fds[0].events |= POLLOUT;
		for (i = 0; i < nlisteners; i++)
		{
			fds[1 + i].fd = listeners[i];
			fds[1 + i].events = POLLIN;
		}
		if (poll(fds, (nfds_t) (1 + nlisteners), -1) < 0 && errno != EINTR)
			Die("poll");
		if (fds[0].revents != 0)
			ReadLink();
		for (i = 1; i <= nlisteners; i++)
			if (fds[i].revents != 0)
				Request(fds[i].fd);
	}
}
