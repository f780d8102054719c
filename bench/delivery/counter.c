/*-------------------------------------------------------------------------
 *
 * counter.c
 *		Takes the place of the gateway on the link, and counts.
 *
 * What delivery costs the feed worker is measured without sockets, frames and
 * clients: this program says what they would say, and reads what they would be
 * sent.  It is installed as pg_changefeed_gateway of a private copy of
 * PostgreSQL (bench/delivery/run).
 *
 * It reads <its own path>.clients: the path of a file for its counters, which
 * has to be there, then one line for each connection: a token, a tab, a name
 * of a channel.  A few connections at a time are opened and subscribed, until
 * all are ready.
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "linkframe.h"
#include "wire.h"

#define AT_A_TIME	  100
#define MAX_AUDIENCES 65536

typedef struct Counters
{
	uint64_t clients;
	uint64_t ready;
	uint64_t transactions;
	uint64_t fragments;
	uint64_t deliveries;
	uint64_t bytes; /* of the link */
	uint64_t errors;
	uint64_t resyncs;
} Counters;

typedef struct Client
{
	char *token;
	char *channel;
	bool ready;
} Client;

static Counters *counters;
static Client *clients;
static uint32_t nclients;
static uint32_t opened;
static LinkFrame *link_frame;

/* Of the transaction: how many each of them is. */
static uint32_t audiences[MAX_AUDIENCES];
static uint32_t naudiences;

static void
Die(const char *what)
{
	fprintf(stderr, "counter: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void
ReadClients(void)
{
	char path[4096];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 16);
	char *line = NULL;
	size_t room = 0;
	FILE *f;
	int fd;

	if (n < 0)
		Die("readlink");
	strcpy(path + n, ".clients");
	f = fopen(path, "r");
	if (f == NULL || (n = getline(&line, &room, f)) <= 1)
		Die(path);
	line[n - 1] = '\0';
	fd = open(line, O_RDWR);
	if (fd < 0)
		Die(line);
	counters = mmap(NULL, sizeof(Counters), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (counters == MAP_FAILED)
		Die("mmap");
	while ((n = getline(&line, &room, f)) > 0)
	{
		char *tab = strchr(line, '\t');

		if (line[n - 1] == '\n')
			line[n - 1] = '\0';
		if (tab == NULL)
			Die("line without a tab");
		*tab = '\0';
		clients = realloc(clients, sizeof(Client) * (nclients + 1));
		clients[nclients].token = strdup(line);
		clients[nclients].channel = strdup(tab + 1);
		clients[nclients++].ready = false;
	}
	fclose(f);
	memset(counters, 0, sizeof(Counters));
	counters->clients = nclients;
}

static void
Open(void)
{
	while (opened < nclients && opened < counters->ready + AT_A_TIME)
	{
		Client *client = &clients[opened];
		char message[8192];
		int n;

		LinkFrameBegin(link_frame, LINK_OPEN);
		LinkFramePutU32(link_frame, opened + 1);
		LinkFramePutU8(link_frame, LINK_TRANSPORT_WEBSOCKET);
		LinkFramePutBytes(link_frame, "counter", 7);
		LinkFramePutBytes(link_frame, client->token, strlen(client->token));
		LinkFrameEnd(link_frame);
		n = snprintf(message, sizeof(message), "{\"type\":\"subscribe\",\"id\":1,\"channel\":\"%s\"}",
					 client->channel);
		LinkFrameBegin(link_frame, LINK_MESSAGE);
		LinkFramePutU32(link_frame, opened + 1);
		LinkFramePutRaw(link_frame, message, (size_t) n);
		LinkFrameEnd(link_frame);
		opened++;
	}
}

static bool
Begins(const char *data, size_t length, const char *with)
{
	return length >= strlen(with) && memcmp(data, with, strlen(with)) == 0;
}

static void
Handle(const LinkMessage *m)
{
	WireReader r = WireReaderInit(m->payload, m->length);
	const char *text;
	size_t length;
	uint32_t n;

	counters->bytes += m->length + sizeof(LinkHeader);
	switch (m->type)
	{
		case LINK_SEND:
			n = WireGetU32(&r);
			text = r.data + r.offset;
			length = r.length - r.offset;
			if (Begins(text, length, "{\"type\":\"ready\"") && !clients[n - 1].ready)
			{
				clients[n - 1].ready = true;
				counters->ready++;
			}
			else if (Begins(text, length, "{\"type\":\"resync\""))
				counters->resyncs++;
			else if (Begins(text, length, "{\"type\":\"error\""))
			{
				if (counters->errors++ == 0)
					fprintf(stderr, "counter: %.*s\n", (int) length, text);
			}
			break;
		case LINK_SNAPSHOT:
			n = WireGetU32(&r);
			LinkFrameBegin(link_frame, LINK_SNAPSHOT_DONE);
			LinkFramePutU32(link_frame, n);
			LinkFramePutU32(link_frame, WireGetU32(&r));
			LinkFramePutU8(link_frame, 1);
			LinkFrameEnd(link_frame);
			break;
		case LINK_MARK:
			n = WireGetU32(&r);
			LinkFrameBegin(link_frame, LINK_FLUSHED);
			LinkFramePutU32(link_frame, n);
			LinkFramePutU32(link_frame, WireGetU32(&r));
			LinkFrameEnd(link_frame);
			break;
		case LINK_TX_FRAGMENT:
			counters->fragments++;
			counters->deliveries += WireGetU32(&r);
			break;
		case LINK_TX_AUDIENCE:
			if (naudiences < MAX_AUDIENCES)
				audiences[naudiences++] = WireGetU32(&r);
			break;
		case LINK_TX_SHARED:
			counters->fragments++;
			n = WireGetU32(&r);
			counters->deliveries += n < naudiences ? audiences[n] : 0;
			break;
		case LINK_TX_END:
			naudiences = 0;
			counters->transactions++;
			break;
		case LINK_SHUTDOWN:
			exit(0);
		default:
			break;
	}
	if (m->descriptor >= 0)
		close(m->descriptor);
}

int
main(void)
{
	LinkMessage message;

	ReadClients();
	if (fcntl(3, F_SETFL, O_NONBLOCK) < 0 || (link_frame = LinkFrameCreate(3)) == NULL)
		Die("link");
	LinkFrameBegin(link_frame, LINK_HELLO);
	LinkFramePutU32(link_frame, LINK_VERSION);
	LinkFramePutU32(link_frame, (uint32_t) getpid());
	LinkFramePutBytes(link_frame, "none", 4);
	LinkFrameEnd(link_frame);
	for (;;)
	{
		struct pollfd p = {3, POLLIN, 0};

		Open();
		if (LinkFrameFlush(link_frame) == LINK_AGAIN)
			p.events |= POLLOUT;
		if (poll(&p, 1, -1) < 0 && errno != EINTR)
			Die("poll");
		switch (LinkFrameFill(link_frame, 1024 * 1024))
		{
			case LINK_OK:
			case LINK_AGAIN:
				break;
			default:
				return 0;
		}
		while (LinkFrameNext(link_frame, &message) == LINK_OK)
			Handle(&message);
	}
}
