/*-------------------------------------------------------------------------
 *
 * publish.c
 *		Publishes messages, and waits until everybody has received them.
 *
 *	{"do":"publish","via":"pg","conninfo":TEXT,"table":NAME, "messages":N, ...}
 *	{"do":"publish","via":"line|nats|mqtt|http","port":N,"channel":"feed:{i}",...}
 *
 * pg: UPDATE table SET n = , sent_us = , body = WHERE id = <channel>, one
 * transaction for each, in pipeline mode. line: "CHANNEL MESSAGE\n" over TCP, to
 * our servers for Node's ws and for the bare loop. http: POST to nchan, "path".
 *
 *	messages	how many in all
 *	size		bytes of each message; of pg, of the column body
 *	channels, first, order "round" | "random", seed
 *				to which channels; each has numbers of its own
 *	rate		per second, on an absolute schedule; 0: when "window" allows
 *	burst		so many are published together (1)
 *	window		so many bursts may be on their way (1)
 *	hold		process IDs: stopped with SIGSTOP while a burst is published, and
 *				continued when it lies in front of them; burst by burst
 *	hold_query	pg: a count that goes up by one for each transaction that has
 *				come as far as it can while they are held
 *	await		false: ends when all is sent, there are no receivers here
 *	timeout_ms	so long nothing may come while something is expected (20000)
 *
 *	-> {"event":"published","messages":N,"expected":N,...statistics}, which count
 *	from the command on.
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE

#include <arpa/inet.h>
#include <errno.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <libpq-fe.h>

#include "load.h"

#define MAX_HELD 16

typedef enum Via
{
	VIA_PG,
	VIA_LINE,
	VIA_NATS,
	VIA_MQTT,
	VIA_HTTP
} Via;

typedef struct Channel
{
	uint64_t n;
	uint32_t subscribers;
} Channel;

static Channel *channels;
static uint32_t nchannels;

static bool is_running;
static Via via;
static PGconn *connection;
static PGconn *watcher;
static int fd = -1;
static Buffer out;
static Buffer in;
static bool wants_write;
static char *channel_pattern;
static char *path;
static char *hold_query;
static char *filler;
static char host[64];
static int port;
static uint64_t total;
static uint64_t sent;
static uint64_t answers; /* of those sent */
static uint64_t expected;
static uint32_t size;
static uint32_t first;
static uint32_t count;
static bool random_order;
static uint64_t seed;
static double rate;
static uint32_t burst;
static uint32_t window;
static bool awaits;
static int64_t timeout_us;
static pid_t held[MAX_HELD];
static int nheld;
static int64_t began_us;
static int64_t progress_us;
static uint64_t progress_deliveries;
static Histogram late_us;
static Histogram answer_us;
static int64_t *sent_at; /* ring: when it was sent, for the time until its answer */
static uint64_t ring;

/* ---- channels ---- */

static Channel *
ChannelOf(uint32_t number)
{
	if (number >= nchannels)
	{
		uint32_t room = number + 1024;

		channels = Allocate(channels, room * sizeof(Channel));
		memset(channels + nchannels, 0, (room - nchannels) * sizeof(Channel));
		nchannels = room;
	}
	return &channels[number];
}

void
ChannelCount(uint32_t number, int difference)
{
	ChannelOf(number)->subscribers += (uint32_t) difference;
}

uint64_t
ChannelLast(uint32_t number)
{
	return ChannelOf(number)->n;
}

void
PublishFinish(void)
{
	if (is_running)
		total = sent;
}

/* ---- the connection to the server ---- */

static void
DieOfPostgres(PGconn *of)
{
	fprintf(stderr, "load: %s", PQerrorMessage(of));
	exit(1);
}

static PGconn *
ConnectPostgres(const char *conninfo)
{
	PGconn *c = PQconnectdb(conninfo);

	if (PQstatus(c) != CONNECTION_OK)
		DieOfPostgres(c);
	return c;
}

static void
Watch(uint32_t events, bool is_new)
{
	struct epoll_event event = {.events = events, .data.ptr = publisher_event};

	if (epoll_ctl(poll_fd, is_new ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, &event) != 0)
		Die("epoll_ctl");
}

static void
OpenPostgres(json_t *command)
{
	const char *conninfo = Text(command, "conninfo", "");
	char sql[256];

	connection = ConnectPostgres(conninfo);
	snprintf(sql, sizeof(sql),
			 "UPDATE %s SET n = $2::bigint, sent_us = $3::bigint, body = $4 WHERE id = $1::int",
			 Text(command, "table", "feed"));
	PQclear(PQprepare(connection, "change", sql, 0, NULL));
	/* The numbers go on where the table is. */
	if (count > 0)
	{
		PGresult *result;
		int i;

		snprintf(sql, sizeof(sql), "SELECT id, n FROM %s WHERE id BETWEEN %u AND %u",
				 Text(command, "table", "feed"), first, first + count - 1);
		result = PQexec(connection, sql);
		if (PQresultStatus(result) != PGRES_TUPLES_OK || PQntuples(result) != (int) count)
		{
			fprintf(stderr, "load: the table has not all rows: %s\n", PQerrorMessage(connection));
			exit(1);
		}
		for (i = 0; i < PQntuples(result); i++)
			ChannelOf((uint32_t) atoi(PQgetvalue(result, i, 0)))->n = strtoull(
				PQgetvalue(result, i, 1), NULL, 10);
		PQclear(result);
	}
	if (nheld > 0)
		watcher = ConnectPostgres(conninfo);
	if (!PQenterPipelineMode(connection) || PQsetnonblocking(connection, 1) != 0)
		DieOfPostgres(connection);
	fd = PQsocket(connection);
}

static void
OpenSocket(void)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t) port)};
	int one = 1;

	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (inet_pton(AF_INET, host, &to.sin_addr) != 1 ||
		connect(fd, (struct sockaddr *) &to, sizeof(to)) != 0)
		Die("could not connect to publish");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	ioctl(fd, FIONBIO, &one);
	if (via == VIA_NATS)
		BufferAppend(&out, "CONNECT {\"verbose\":false,\"pedantic\":false}\r\n", 44);
	else if (via == VIA_MQTT)
		BufferAppend(&out, "\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00", 14);
}

static void
Answered(void)
{
	HistogramAdd(&answer_us, Now() - sent_at[answers % ring]);
	answers++;
}

static void
TakeAnswers(void)
{
	if (via == VIA_PG)
	{
		PGresult *result;
		int empty = 0;

		if (!PQconsumeInput(connection))
			DieOfPostgres(connection);
		/* A transaction has its result, the end of its results, and the sync. */
		while (empty < 2 && !PQisBusy(connection) && answers < sent)
		{
			result = PQgetResult(connection);
			if (result == NULL)
			{
				empty++;
				continue;
			}
			empty = 0;
			if (PQresultStatus(result) == PGRES_PIPELINE_SYNC)
				Answered();
			else if (PQresultStatus(result) != PGRES_COMMAND_OK ||
					 strcmp(PQcmdTuples(result), "1") != 0)
				DieOfPostgres(connection);
			PQclear(result);
		}
		return;
	}
	for (;;)
	{
		char bytes[16384];
		ssize_t n = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT);
		char *at;

		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n <= 0)
			Die("the server has closed the publisher's connection");
		if (via == VIA_NATS)
		{
			BufferAppend(&in, bytes, (size_t) n);
			if (memmem(in.data, in.length, "-ERR", 4) != NULL)
				Wrong("nats: %.*s", (int) in.length, in.data);
			if (memmem(in.data, in.length, "PING\r\n", 6) != NULL)
				BufferAppend(&out, "PONG\r\n", 6);
			BufferFree(&in);
		}
		else if (via == VIA_HTTP)
		{
			size_t done = 0;

			BufferAppend(&in, bytes, (size_t) n);
			while ((at = memmem(in.data + done, in.length - done, "\r\n\r\n", 4)) != NULL)
			{
				char *head = in.data + done;
				char *length = memmem(head, (size_t) (at - head), "Content-Length: ", 16);
				size_t body = length == NULL ? 0 : strtoul(length + 16, NULL, 10);

				if ((size_t) (at - head) + 4 + body > in.length - done)
					break;
				if (memcmp(head, "HTTP/1.1 2", 10) != 0)
					Wrong("nchan: %.*s", (int) (at - head), head);
				Answered();
				done += (size_t) (at - head) + 4 + body;
			}
			memmove(in.data, in.data + done, in.length - done);
			in.length -= done;
		}
	}
}

static void
Flush(void)
{
	bool left;

	if (via == VIA_PG)
		left = PQflush(connection) == 1;
	else
	{
		while (out.length > 0)
		{
			ssize_t n = send(fd, out.data, out.length, MSG_NOSIGNAL);

			if (n < 0 && (errno == EAGAIN || errno == EINTR))
				break;
			if (n < 0)
				Die("could not publish");
			memmove(out.data, out.data + n, out.length - (size_t) n);
			out.length -= (size_t) n;
		}
		left = out.length > 0;
	}
	if (left != wants_write)
	{
		wants_write = left;
		Watch(EPOLLIN | (left ? EPOLLOUT : 0), false);
	}
}

static void
Send(uint32_t number, uint64_t n)
{
	char message[65536];
	char name[256];
	int64_t at = Now();
	int length;

	sent_at[sent % ring] = at;
	if (via == VIA_PG)
	{
		char values[3][32];
		const char *all[4] = {values[0], values[1], values[2], filler};

		snprintf(values[0], 32, "%u", number);
		snprintf(values[1], 32, "%llu", (unsigned long long) n);
		snprintf(values[2], 32, "%lld", (long long) at);
		/* Changed each time, so that it is part of the change */
		filler[0] = (char) ('a' + n % 26);
		if (!PQsendQueryPrepared(connection, "change", 4, all, NULL, NULL, 0) ||
			!PQpipelineSync(connection))
			DieOfPostgres(connection);
		return;
	}
	length = snprintf(message, sizeof(message), "{\"n\":%llu,\"sent_us\":%lld,\"body\":\"",
					  (unsigned long long) n, (long long) at);
	while (length + 2 < (int) size)
		message[length++] = 'x';
	message[length++] = '"';
	message[length++] = '}';
	if (via == VIA_LINE)
	{
		BufferAppend(&out, name, (size_t) snprintf(name, sizeof(name), "%u ", number));
		BufferAppend(&out, message, (size_t) length);
		BufferAppend(&out, "\n", 1);
	}
	else if (via == VIA_NATS)
	{
		char head[512];

		BufferAppend(&out, head,
					 (size_t) snprintf(head, sizeof(head), "PUB %s %d\r\n",
									   Expand(channel_pattern, number, name, sizeof(name)),
									   length));
		BufferAppend(&out, message, (size_t) length);
		BufferAppend(&out, "\r\n", 2);
	}
	else if (via == VIA_MQTT)
	{
		char head[512];
		char topic[300];
		size_t ntopic = MqttString(topic, Expand(channel_pattern, number, name, sizeof(name)));
		size_t nhead = 1;

		head[0] = 0x30;
		nhead += MqttLength(head + 1, ntopic + (size_t) length);
		BufferAppend(&out, head, nhead);
		BufferAppend(&out, topic, ntopic);
		BufferAppend(&out, message, (size_t) length);
	}
	else
	{
		char head[1024];

		BufferAppend(
			&out, head,
			(size_t) snprintf(head, sizeof(head),
							  "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n",
							  Expand(path, number, name, sizeof(name)), length));
		BufferAppend(&out, message, (size_t) length);
	}
}

static void
SendOne(void)
{
	uint32_t number = first;
	Channel *c;

	if (count > 1)
	{
		if (random_order)
		{
			seed ^= seed << 13;
			seed ^= seed >> 7;
			seed ^= seed << 17;
			number += (uint32_t) (seed % count);
		}
		else
			number += (uint32_t) (sent % count);
	}
	c = ChannelOf(number);
	Send(number, ++c->n);
	expected += c->subscribers;
	sent++;
}

/* ---- holding servers ---- */

static char
StateOf(pid_t pid)
{
	char file[64];
	char text[512];
	FILE *f;
	size_t n;
	char *at;

	snprintf(file, sizeof(file), "/proc/%d/stat", (int) pid);
	f = fopen(file, "r");
	if (f == NULL)
		Die("a process that is to be held is not there");
	n = fread(text, 1, sizeof(text) - 1, f);
	fclose(f);
	text[n] = '\0';
	at = strrchr(text, ')');
	return at == NULL ? '?' : at[2];
}

static uint64_t
Watched(void)
{
	PGresult *result = PQexec(watcher, hold_query);
	uint64_t value;

	if (PQresultStatus(result) != PGRES_TUPLES_OK)
		DieOfPostgres(watcher);
	value = strtoull(PQgetvalue(result, 0, 0), NULL, 10);
	PQclear(result);
	return value;
}

/* Nothing comes to us meanwhile, so it may block. */
static void
PublishHeld(void)
{
	int64_t end = Now() + timeout_us;
	uint64_t before = 0;
	uint64_t until = sent + burst < total ? sent + burst : total;
	uint64_t had = sent;
	int i;

	if (via == VIA_PG)
		before = Watched();
	for (i = 0; i < nheld; i++)
		if (kill(held[i], SIGSTOP) != 0)
			Die("could not hold a process");
	for (i = 0; i < nheld; i++)
		while (StateOf(held[i]) != 'T')
			usleep(50);
	while (sent < until)
		SendOne();
	for (;;)
	{
		int queued = 0;

		Flush();
		if (via == VIA_PG)
		{
			TakeAnswers();
			if (answers == sent && Watched() >= before + (sent - had))
				break;
		}
		else if (out.length == 0 && ioctl(fd, SIOCOUTQNSD, &queued) == 0 && queued == 0)
			break;
		if (Now() > end)
		{
			Wrong("a burst did not come as far as the processes that are held");
			break;
		}
		usleep(200);
	}
	/* What was handed on by others is on its last steps. */
	usleep(1000);
	for (i = 0; i < nheld; i++)
		kill(held[i], SIGCONT);
}

/* ---- running ---- */

void
Publish(json_t *command)
{
	const char *name = Text(command, "via", "");
	json_t *pids = json_object_get(command, "hold");
	size_t i;

	errno = 0;
	if (is_running)
		Die("a publisher is running already");
	if (strcmp(name, "pg") == 0)
		via = VIA_PG;
	else if (strcmp(name, "line") == 0)
		via = VIA_LINE;
	else if (strcmp(name, "nats") == 0)
		via = VIA_NATS;
	else if (strcmp(name, "mqtt") == 0)
		via = VIA_MQTT;
	else if (strcmp(name, "http") == 0)
		via = VIA_HTTP;
	else
		Die("via has to be pg, line, nats, mqtt or http");
	snprintf(host, sizeof(host), "%s", Text(command, "host", "127.0.0.1"));
	port = (int) Number(command, "port", 0);
	channel_pattern = strdup(Text(command, "channel", "{i}"));
	path = strdup(Text(command, "path", "/pub/{i}"));
	hold_query = strdup(
		Text(command, "hold_query", "SELECT transactions FROM changefeed.stat_feed"));
	total = (uint64_t) Number(command, "messages", 1);
	size = (uint32_t) Number(command, "size", 128);
	first = (uint32_t) Number(command, "first", 1);
	count = (uint32_t) Number(command, "channels", 1);
	random_order = strcmp(Text(command, "order", "round"), "random") == 0;
	seed = (uint64_t) Number(command, "seed", 1) * 0x9e3779b97f4a7c15ull | 1;
	rate = json_number_value(json_object_get(command, "rate"));
	burst = (uint32_t) Number(command, "burst", 1);
	window = (uint32_t) Number(command, "window", 1);
	awaits = Flag(command, "await", true);
	timeout_us = Number(command, "timeout_ms", 20000) * 1000;
	if (size > 60000 || burst < 1 || window < 1)
		Die("size may be 60000 at most, burst and window have to be 1 at least");
	nheld = 0;
	for (i = 0; i < json_array_size(pids) && i < MAX_HELD; i++)
		held[nheld++] = (pid_t) json_integer_value(json_array_get(pids, i));
	sent = answers = expected = 0;
	filler = Allocate(NULL, size + 1);
	memset(filler, 'x', size);
	filler[size] = '\0';
	ring = total < 65536 ? total + 1 : 65536;
	sent_at = Allocate(NULL, ring * sizeof(int64_t));
	memset(&late_us, 0, sizeof(Histogram));
	memset(&answer_us, 0, sizeof(Histogram));
	if (via == VIA_PG)
		OpenPostgres(command);
	else
		OpenSocket();
	Watch(EPOLLIN, true);
	wants_write = false;
	is_running = true;
	StatsReset();
	began_us = progress_us = Now();
	progress_deliveries = 0;
}

static void
End(void)
{
	json_t *stats = StatsJson();

	json_object_update_new(stats, json_pack("{ss sI sI so so}", "event", "published", "messages",
											(json_int_t) sent, "expected", (json_int_t) expected,
											"answer_us", HistogramJson(&answer_us), "late_us",
											HistogramJson(&late_us)));
	is_running = false;
	/* What is closed here goes out of epoll by itself. */
	if (via == VIA_PG)
	{
		PQfinish(connection);
		if (watcher != NULL)
			PQfinish(watcher);
		connection = watcher = NULL;
	}
	else
		close(fd);
	fd = -1;
	BufferFree(&out);
	BufferFree(&in);
	free(filler);
	free(sent_at);
	free(channel_pattern);
	free(path);
	free(hold_query);
	Tell(stats);
}

static bool
IsAnswered(void)
{
	return (via != VIA_PG && via != VIA_HTTP) || answers == sent;
}

void
PublishAdvance(void)
{
	uint64_t subscribers;

	if (!is_running)
		return;
	if (rate > 0)
	{
		int64_t now = Now();

		while (sent < total)
		{
			int64_t due = began_us + (int64_t) ((double) sent * 1e6 / rate);

			if (due > now)
				break;
			HistogramAdd(&late_us, now - due);
			SendOne();
			now = Now();
		}
	}
	else
	{
		/* Bursts are equal but for the last one, and for channels' subscribers. */
		for (;;)
		{
			uint32_t i;

			subscribers = sent == 0 ? 0 : expected * burst / sent;
			if (sent >= total || (awaits && deliveries + (window - 1) * subscribers < expected) ||
				sent - (via == VIA_PG || via == VIA_HTTP ? answers : sent) >
					(uint64_t) (window - 1) * burst)
				break;
			if (nheld > 0)
				PublishHeld();
			else
				for (i = 0; i < burst && sent < total; i++)
					SendOne();
			Flush();
			if (!awaits && via != VIA_PG && via != VIA_HTTP && out.length > 0)
				break;
		}
	}
	Flush();
	if (deliveries != progress_deliveries)
	{
		progress_deliveries = deliveries;
		progress_us = Now();
	}
	if (sent == total && IsAnswered() && out.length == 0 && (!awaits || deliveries >= expected))
	{
		if (awaits && deliveries > expected)
			Wrong("%llu messages came, %llu were expected", (unsigned long long) deliveries,
				  (unsigned long long) expected);
		End();
	}
	else if ((awaits || sent == total) && Now() - progress_us > timeout_us)
	{
		Wrong(
			"%llu messages came, %llu were expected, of %llu that were published, and nothing happens any more",
			(unsigned long long) deliveries, (unsigned long long) expected,
			(unsigned long long) sent);
		End();
	}
}

void
PublishEvent(uint32_t events)
{
	if (!is_running)
		return;
	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
		TakeAnswers();
}

/* Without a rate it wakes up now and then to see whether nothing happens. */
int64_t
PublishNextTime(void)
{
	int64_t due;

	if (!is_running)
		return 0;
	if (rate > 0 && sent < total)
	{
		due = began_us + (int64_t) ((double) sent * 1e6 / rate);
		return due;
	}
	return (Now() / 1000000 + 1) * 1000000;
}
