/*-------------------------------------------------------------------------
 *
 * fanout.c
 *		What the gateway costs: CPU per message beside a bare loop, memory per
 *		connection.
 *
 * It plays both neighbours of the gateway: the feed worker on the link, and the
 * clients.  Beside it runs a bare loop: a process that waits with epoll and then
 * send()s bytes of the same length, made before, to as many sockets.  Rounds of
 * the two alternate, and what counts is the ratio of their CPU time
 * (/proc/PID/schedstat): the machine is not ours alone.
 *
 * Processes: this one (feed worker), the gateway, the bare loop, and one for the
 * clients of each of the two, which read and count.
 *
 *-------------------------------------------------------------------------
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "linkframe.h"
#include "wire.h"

#define MAX_CONNECTIONS 65536
#define MAX_REPEATS		200

/* What the client processes tell, one of the gateway's and one of the bare loop's. */
typedef struct Shared
{
	_Atomic uint64_t received; /* bytes, without answers to handshakes */
	_Atomic uint32_t open;
} Shared;

static Shared *shared; /* three: the last one is of those who come in a storm */

static struct
{
	uint32_t connections;
	uint32_t size;	 /* bytes of a change */
	uint32_t burst;	 /* transactions at once */
	uint32_t parts;	 /* changes of a transaction */
	uint32_t rounds; /* of a repeat */
	uint32_t repeats;
	bool channels;	/* each transaction has one receiver */
	bool only;		/* no bare loop */
	uint32_t idle;	/* seconds to look at while nothing happens */
	uint32_t storm; /* connections that come at once */
} options = {1000, 60, 1, 1, 10, 15, false, false, 0, 0};

static LinkFrame *feed_link;
static pid_t gateway_pid;
static pid_t bare_pid;
static uint32_t *numbers;
static uint32_t n_numbers;

static void __attribute__((format(printf, 1, 2), noreturn)) Die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr, ": %s\n", strerror(errno));
	if (gateway_pid > 0)
		kill(gateway_pid, SIGKILL);
	exit(1);
}

static uint64_t
NowNs(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t) t.tv_sec * 1000000000 + (uint64_t) t.tv_nsec;
}

/* ns on a processor so far */
static uint64_t
CpuOf(pid_t pid)
{
	char path[64];
	char text[128];
	int fd;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/schedstat", (int) pid);
	fd = open(path, O_RDONLY);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	if (n <= 0)
		Die("could not read %s", path);
	close(fd);
	text[n] = '\0';
	return strtoull(text, NULL, 10);
}

static long
PssOf(pid_t pid)
{
	char path[64];
	char line[256];
	FILE *file;
	long kb = -1;

	snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", (int) pid);
	file = fopen(path, "r");
	if (file == NULL)
		Die("could not read %s", path);
	while (fgets(line, sizeof(line), file) != NULL)
	{
		if (strncmp(line, "Pss:", 4) == 0)
			kb = atol(line + 4);
	}
	fclose(file);
	return kb;
}

static int
Listen(uint16_t *port)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	socklen_t length = sizeof(address);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (fd < 0 || bind(fd, (struct sockaddr *) &address, sizeof(address)) < 0 ||
		listen(fd, 4096) < 0 || getsockname(fd, (struct sockaddr *) &address, &length) < 0)
		Die("could not listen");
	*port = ntohs(address.sin_port);
	return fd;
}

/* ---- clients ---- */

typedef struct Client
{
	int fd;
	bool asked;
	bool open;
} Client;

static const char handshake[] = "GET /v1/socket HTTP/1.1\r\n"
								"Host: localhost\r\n"
								"Upgrade: websocket\r\n"
								"Connection: Upgrade\r\n"
								"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
								"Sec-WebSocket-Version: 13\r\n\r\n";

static void
ClientReadable(Client *client, Shared *mine)
{
	static char buffer[256 * 1024];
	ssize_t n;

	n = recv(client->fd, buffer, sizeof(buffer), MSG_DONTWAIT);
	if (n < 0 && errno == EAGAIN)
		return;
	if (n <= 0)
		exit(0); /* the other side ends */
	if (!client->open)
	{
		char *end = memmem(buffer, (size_t) n, "\r\n\r\n", 4);

		if (end == NULL || memcmp(buffer, "HTTP/1.1 101", 12) != 0)
		{
			fprintf(stderr, "handshake refused: %.*s\n", (int) n, buffer);
			exit(1);
		}
		n -= end + 4 - buffer;
		client->open = true;
		atomic_fetch_add(&mine->open, 1);
	}
	atomic_fetch_add(&mine->received, (uint64_t) n);
}

/* Connects, 200 at a time, and then reads for ever. */
static void
RunClients(uint16_t port, bool websocket, uint32_t n_clients, Shared *mine)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
	Client *clients = calloc(n_clients, sizeof(Client));
	int epoll = epoll_create1(0);
	uint32_t made = 0;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	for (;;)
	{
		struct epoll_event events[256];
		int n;
		int i;

		while (made < n_clients && made < atomic_load(&mine->open) + 200)
		{
			Client *client = &clients[made++];
			struct epoll_event event = {.events = EPOLLIN, .data.ptr = client};
			int one = 1;

			client->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
			if (client->fd < 0 ||
				connect(client->fd, (struct sockaddr *) &address, sizeof(address)) < 0)
				Die("client %u could not connect", made);
			setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
			if (!websocket)
			{
				client->open = true;
				atomic_fetch_add(&mine->open, 1);
			}
			else if (send(client->fd, handshake, sizeof(handshake) - 1, 0) < 0)
				Die("client could not send");
			epoll_ctl(epoll, EPOLL_CTL_ADD, client->fd, &event);
		}
		n = epoll_wait(epoll, events, 256, 1000);
		for (i = 0; i < n; i++)
			ClientReadable(events[i].data.ptr, mine);
	}
}

/* ---- the bare loop ---- */

typedef struct Order
{
	uint32_t length; /* of a write */
	uint32_t writes; /* to each connection */
} Order;

static void
RunBare(int listening, int orders)
{
	static char bytes[8 * 1024 * 1024];
	int *fds = calloc(options.connections, sizeof(int));
	uint32_t n_fds = 0;
	int epoll = epoll_create1(0);
	struct epoll_event event = {.events = EPOLLIN, .data.fd = listening};

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	memset(bytes, 'b', sizeof(bytes));
	epoll_ctl(epoll, EPOLL_CTL_ADD, listening, &event);
	event.data.fd = orders;
	epoll_ctl(epoll, EPOLL_CTL_ADD, orders, &event);
	for (;;)
	{
		struct epoll_event events[64];
		int n = epoll_wait(epoll, events, 64, -1);
		int i;

		for (i = 0; i < n; i++)
		{
			Order order;
			int one = 1;
			uint32_t j;
			uint32_t k;

			if (events[i].data.fd == listening)
			{
				int fd = accept4(listening, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

				if (fd < 0)
					continue;
				setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
				event.data.fd = fd;
				epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
				fds[n_fds++] = fd;
				continue;
			}
			if (events[i].data.fd != orders)
				continue;
			if (read(orders, &order, sizeof(order)) != sizeof(order))
				exit(0);
			for (k = 0; k < order.writes; k++)
				for (j = 0; j < n_fds; j++)
				{
					ssize_t sent = send(fds[j], bytes, order.length, MSG_NOSIGNAL);

					if (sent != (ssize_t) order.length)
						Die("the bare loop could not send");
				}
		}
	}
}

/* ---- the feed worker ---- */

static void
StartGateway(const char *program, int listening, uint16_t port)
{
	char number[] = "3";
	char *argv[16];
	char *envp[] = {NULL};
	int n = 0;
	int pair[2];
	posix_spawn_file_actions_t actions;
	char *wrapper = getenv("WRAPPER"); /* valgrind, strace */
	char *word;

	for (word = wrapper != NULL ? strtok(strdup(wrapper), " ") : NULL; word != NULL && n < 10;
		 word = strtok(NULL, " "))
		argv[n++] = word;
	argv[n++] = (char *) program;
	argv[n++] = (char *) "--link-fd";
	argv[n++] = number;
	argv[n] = NULL;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
		Die("socketpair");
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, pair[1], 100);
	posix_spawn_file_actions_adddup2(&actions, 100, 3);
	if (posix_spawnp(&gateway_pid, argv[0], &actions, NULL, argv,
					 wrapper != NULL ? environ : envp) != 0)
		Die("could not start %s", argv[0]);
	close(pair[1]);
	feed_link = LinkFrameCreate(pair[0]);

	LinkFrameBegin(feed_link, LINK_CONFIG);
	LinkFramePutU32(feed_link, MAX_CONNECTIONS);
	LinkFramePutU32(feed_link, 1024 * 1024);
	LinkFramePutU32(feed_link, options.idle > 0 ? 25000 : 0);
	LinkFramePutU32(feed_link, 60000);
	LinkFramePutU32(feed_link, 65536);
	LinkFramePutU32(feed_link, 1024 * 1024);
	LinkFramePutU16(feed_link, port);
	LinkFramePutU32(feed_link, 0);
	LinkFramePutU32(feed_link, 0);
	LinkFramePutBytes(feed_link, "", 0);
	LinkFramePutU8(feed_link, 0);
	LinkFramePutU32(feed_link, 0);
	LinkFramePutU32(feed_link, 0);
	LinkFramePutU32(feed_link, 0);
	LinkFramePutU32(feed_link, 100);
	LinkFramePutU64(feed_link, 1024 * 1024);
	LinkFramePutU32(feed_link, 10000);
	LinkFramePutU8(feed_link, 0);
	LinkFramePutU32(feed_link, 0);
	LinkFramePutU32(feed_link, 0);
	LinkFramePutU32(feed_link, 0);
	LinkFrameEnd(feed_link);
	LinkFrameBegin(feed_link, LINK_LISTEN);
	LinkFramePutU8(feed_link, 0);
	if (!LinkFrameEndWithDescriptor(feed_link, listening))
		Die("could not pass the listening socket");
}

static void
SendPing(const char *audience, uint32_t n)
{
	static const char before[] =
		"{\"type\":\"ping\",\"position\":\"0123456789abcdef0123456789abcdef";

	LinkFrameBegin(feed_link, LINK_PING);
	LinkFramePutU32(feed_link, n);
	LinkFramePutRaw(feed_link, audience, (size_t) n * 4);
	LinkFramePutBytes(feed_link, before, sizeof(before) - 1);
	LinkFramePutBytes(feed_link, "\"}", 2);
	LinkFrameEnd(feed_link);
}

/* Writes and reads the link: connections that open get an identity and an answer. */
static void
Step(int timeout_ms)
{
	struct pollfd p = {.fd = LinkFrameSocket(feed_link)};
	LinkMessage message;
	LinkStatus status;

	status = LinkFrameFlush(feed_link);
	p.events = (short) (POLLIN | (status == LINK_AGAIN ? POLLOUT : 0));
	poll(&p, 1, timeout_ms);
	status = LinkFrameFill(feed_link, 1024 * 1024);
	if (status == LINK_EOF || status == LINK_ERROR)
		Die("the gateway is gone");
	while (LinkFrameNext(feed_link, &message) == LINK_OK)
	{
		WireReader r = WireReaderInit(message.payload, message.length);
		uint32_t number = WireGetU32(&r);

		if (message.type == LINK_OPEN)
		{
			static const char text[] = "{\"type\":\"welcome\"}";

			if (n_numbers < options.connections)
				numbers[n_numbers++] = number;
			LinkFrameBegin(feed_link, LINK_IDENTITY);
			LinkFramePutU32(feed_link, number);
			LinkFramePutRaw(feed_link, "abcdefgh", LINK_TAG_LENGTH);
			LinkFrameEnd(feed_link);
			LinkFrameBegin(feed_link, LINK_SEND);
			LinkFramePutU32(feed_link, number);
			LinkFramePutRaw(feed_link, text, sizeof(text) - 1);
			LinkFrameEnd(feed_link);
		}
		else if (message.type == LINK_PING_DUE)
			SendPing(r.data + r.offset, number);
	}
	LinkFrameFlush(feed_link);
}

static void
SendTransaction(uint64_t number, const uint32_t *audience, uint32_t n)
{
	static const char before[] = "\"position\":\"0123456789abcdef0123456789abcdef";
	static const char after[] = "\",\"time\":\"2026-01-01T00:00:00.000000Z\",\"changes\":[";
	static char change[1024 * 1024];
	struct timespec now;
	uint32_t i;

	if (change[0] == '\0')
		memset(change, 'c', sizeof(change));
	clock_gettime(CLOCK_REALTIME, &now);
	LinkFrameBegin(feed_link, LINK_TX_TIME);
	LinkFramePutU64(feed_link, (uint64_t) now.tv_sec * 1000000 + (uint64_t) now.tv_nsec / 1000);
	LinkFrameEnd(feed_link);
	LinkFrameBegin(feed_link, LINK_TX_BEGIN);
	LinkFramePutU64(feed_link, number);
	LinkFramePutU8(feed_link, 0);
	LinkFramePutBytes(feed_link, before, sizeof(before) - 1);
	LinkFramePutBytes(feed_link, after, sizeof(after) - 1);
	LinkFrameEnd(feed_link);
	for (i = 0; i < options.parts; i++)
	{
		LinkFrameBegin(feed_link, LINK_TX_FRAGMENT);
		LinkFramePutU32(feed_link, n);
		LinkFramePutRaw(feed_link, audience, (size_t) n * 4);
		LinkFramePutRaw(feed_link, change, options.size);
		LinkFrameEnd(feed_link);
	}
	LinkFrameBegin(feed_link, LINK_TX_END);
	LinkFrameEnd(feed_link);
}

/* ---- measuring ---- */

/* Waits until so many bytes have come, with a look at the link now and then. */
static void
WaitReceived(Shared *where, uint64_t bytes)
{
	uint64_t limit = NowNs() + UINT64_C(60000000000);

	while (atomic_load(&where->received) < bytes)
	{
		if (NowNs() > limit)
			Die("%" PRIu64 " of %" PRIu64 " bytes have come", atomic_load(&where->received), bytes);
		if (LinkFramePending(feed_link) > 0 || options.connections > 2000)
			Step(1);
		else
			usleep(200);
	}
}

static uint64_t
QuietBytes(Shared *where)
{
	uint64_t last;

	do
	{
		last = atomic_load(&where->received);
		Step(20);
		usleep(50000);
	} while (atomic_load(&where->received) != last);
	return last;
}

static int
Compare(const void *a, const void *b)
{
	double x = *(const double *) a;
	double y = *(const double *) b;

	return x < y ? -1 : x > y;
}

/* Of `repeats` values. */
static double
Quantile(const double *values, double q)
{
	double sorted[MAX_REPEATS];

	memcpy(sorted, values, options.repeats * sizeof(double));
	qsort(sorted, options.repeats, sizeof(double), Compare);
	return sorted[(uint32_t) (q * (options.repeats - 1))];
}

/* Frames that each connection got so far, and the bytes of the next ones without their `seq`. */
static uint64_t seq;
static uint64_t frame_bytes;

static uint32_t
Digits(uint64_t n)
{
	return n < 10 ? 1 : 1 + Digits(n / 10);
}

/* One round of the gateway; returns how much that is for each connection. */
static uint64_t
GatewayRound(uint32_t burst)
{
	static uint64_t number;
	uint64_t expected = atomic_load(&shared[0].received);
	uint64_t bytes = 0;
	uint32_t i;
	uint32_t j;

	for (i = 0; i < burst; i++)
	{
		bytes += frame_bytes + Digits(++seq);
		if (!options.channels)
			SendTransaction(++number, numbers, n_numbers);
		for (j = 0; options.channels && j < n_numbers; j++)
			SendTransaction(++number, &numbers[j], 1);
	}
	Step(0);
	if (frame_bytes > 0)
		WaitReceived(&shared[0], expected + bytes * n_numbers);
	return bytes;
}

/* How long is a frame? */
static void
LearnFrame(uint64_t start)
{
	GatewayRound(1);
	while (atomic_load(&shared[0].received) == start ||
		   (QuietBytes(&shared[0]) - start) % n_numbers != 0)
		Step(1);
	frame_bytes = (QuietBytes(&shared[0]) - start) / n_numbers - 1;
}

/* Frames for those who are there, one after the other, until `until` have come. */
static void
Live(const char *what, uint32_t until, uint32_t least)
{
	static double ms[100000];
	uint32_t n = 0;
	uint32_t n_live = options.connections;

	while (n < 100000 && (n < least || atomic_load(&shared[2].open) < until))
	{
		uint64_t expected = atomic_load(&shared[0].received) +
							(frame_bytes + Digits(++seq)) * n_live;
		uint64_t start = NowNs();

		SendTransaction(1000000 + n, numbers, n_live);
		while (atomic_load(&shared[0].received) < expected)
			Step(0);
		ms[n++] = (double) (NowNs() - start) / 1e6;
		start = NowNs();
		while (NowNs() - start < 2000000)
			Step(1);
	}
	qsort(ms, n, sizeof(double), Compare);
	printf("%s: %u frames to %u, ms until all had it: p50 %.2f, p90 %.2f, p99 %.2f, most %.2f\n",
		   what, n, n_live, ms[n / 2], ms[n * 9 / 10], ms[n * 99 / 100], ms[n - 1]);
}

static pid_t Fork(void);

static void
Storm(uint16_t port)
{
	uint64_t start = QuietBytes(&shared[0]);
	uint64_t cpu;
	uint32_t i;

	LearnFrame(start);
	for (i = 0; i < 3; i++)
	{
		Live("quiet", 0, 1000);
		atomic_store(&shared[2].open, 0);
		cpu = CpuOf(gateway_pid);
		start = NowNs();
		if (Fork() == 0)
			RunClients(port, true, options.storm, &shared[2]);
		Live("storm", options.storm, 0);
		printf("%u came in %.2f s, %.2f s of CPU of the gateway\n", options.storm,
			   (double) (NowNs() - start) / 1e9, (double) (CpuOf(gateway_pid) - cpu) / 1e9);
	}
}

static void
Measure(int orders)
{
	double gateway_us[MAX_REPEATS];
	double bare_us[MAX_REPEATS];
	double ratio[MAX_REPEATS];
	uint64_t start = QuietBytes(&shared[0]);
	uint64_t bare_bytes = 0;
	Order order = {0, 1};
	uint32_t i;
	uint32_t j;

	LearnFrame(start);
	for (i = 0; i < 2; i++)
		order.length = (uint32_t) GatewayRound(options.burst);
	for (i = 0; i < options.repeats; i++)
	{
		uint64_t cpu = CpuOf(gateway_pid);
		double n = (double) options.rounds * n_numbers * options.burst;

		for (j = 0; j < options.rounds; j++)
			order.length = (uint32_t) GatewayRound(options.burst);
		gateway_us[i] = (double) (CpuOf(gateway_pid) - cpu) / 1000 / n;
		if (options.only)
		{
			bare_us[i] = ratio[i] = 0;
			continue;
		}
		cpu = CpuOf(bare_pid);
		for (j = 0; j < options.rounds; j++)
		{
			if (write(orders, &order, sizeof(order)) != sizeof(order))
				Die("order");
			bare_bytes += (uint64_t) order.length * options.connections;
			while (atomic_load(&shared[1].received) < bare_bytes)
				usleep(200);
		}
		bare_us[i] = (double) (CpuOf(bare_pid) - cpu) / 1000 / n;
		ratio[i] = gateway_us[i] / bare_us[i];
	}
	printf("%u bytes to each of %u at once, us of CPU per message: gateway %.3f (quartiles "
		   "%.3f-%.3f), bare %.3f (%.3f-%.3f), ratio %.3f (%.3f-%.3f)\n",
		   order.length, n_numbers, Quantile(gateway_us, 0.5), Quantile(gateway_us, 0.25),
		   Quantile(gateway_us, 0.75), Quantile(bare_us, 0.5), Quantile(bare_us, 0.25),
		   Quantile(bare_us, 0.75), Quantile(ratio, 0.5), Quantile(ratio, 0.25),
		   Quantile(ratio, 0.75));
}

static pid_t
Fork(void)
{
	pid_t pid = fork();

	if (pid < 0)
		Die("fork");
	if (pid == 0)
		close(LinkFrameSocket(feed_link));
	return pid;
}

static void
ReadOptions(int argc, char **argv)
{
	int c;

	while ((c = getopt(argc, argv, "c:s:b:p:r:n:i:S:mo")) != -1)
	{
		switch (c)
		{
			case 'c':
				options.connections = (uint32_t) atoi(optarg);
				break;
			case 's':
				options.size = (uint32_t) atoi(optarg);
				break;
			case 'b':
				options.burst = (uint32_t) atoi(optarg);
				break;
			case 'p':
				options.parts = (uint32_t) atoi(optarg);
				break;
			case 'r':
				options.rounds = (uint32_t) atoi(optarg);
				break;
			case 'n':
				options.repeats = (uint32_t) atoi(optarg);
				break;
			case 'i':
				options.idle = (uint32_t) atoi(optarg);
				break;
			case 'S':
				options.storm = (uint32_t) atoi(optarg);
				break;
			case 'm':
				options.channels = true;
				break;
			case 'o':
				options.only = true;
				break;
			default:
				fprintf(stderr, "usage: fanout [-c connections] [-s bytes of a change] "
								"[-b transactions at once] [-p changes of a transaction] "
								"[-r rounds] [-n repeats] [-i idle seconds] [-S storm] "
								"[-m (many channels)] [-o (no bare loop)] gateway\n");
				exit(2);
		}
	}
	if (optind != argc - 1 || options.repeats > MAX_REPEATS || options.size > 1024 * 1024)
		Die("wrong arguments");
}

int
main(int argc, char **argv)
{
	uint16_t port;
	uint16_t bare_port;
	int listening;
	int bare_listening;
	int orders[2];
	uint64_t start;
	uint64_t cpu;
	long pss;

	ReadOptions(argc, argv);
	signal(SIGPIPE, SIG_IGN);
	numbers = calloc(MAX_CONNECTIONS, sizeof(uint32_t));
	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	listening = Listen(&port);
	bare_listening = Listen(&bare_port);
	if (pipe(orders) < 0)
		Die("pipe");
	StartGateway(argv[optind], listening, port);
	Step(500);
	usleep(200000);
	pss = PssOf(gateway_pid);
	cpu = CpuOf(gateway_pid);
	start = NowNs();
	if (!options.only && (bare_pid = Fork()) == 0)
		RunBare(bare_listening, orders[0]);
	if (Fork() == 0)
		RunClients(port, true, options.connections, &shared[0]);
	while (n_numbers < options.connections)
		Step(10);
	while (atomic_load(&shared[0].open) < options.connections)
		Step(10);
	QuietBytes(&shared[0]);
	printf(
		"%u connections in %.2f s, %.1f us of CPU each; %.0f bytes of PSS each (%ld kB before)\n",
		n_numbers, (double) (NowNs() - start) / 1e9,
		(double) (CpuOf(gateway_pid) - cpu) / 1e3 / n_numbers,
		(double) (PssOf(gateway_pid) - pss) * 1024 / n_numbers, pss);
	fflush(stdout);
	if (options.idle > 0)
	{
		cpu = CpuOf(gateway_pid);
		start = NowNs();
		while (NowNs() - start < (uint64_t) options.idle * 1000000000)
			Step(100);
		printf("idle: %.3f %% of a core\n",
			   (double) (CpuOf(gateway_pid) - cpu) * 100 / (double) (NowNs() - start));
	}
	if (options.storm > 0)
	{
		Storm(port);
		return 0;
	}
	if (!options.only && Fork() == 0)
		RunClients(bare_port, false, options.connections, &shared[1]);
	while (!options.only && atomic_load(&shared[1].open) < options.connections)
		usleep(10000);
	if (options.rounds > 0)
	{
		Measure(orders[1]);
		QuietBytes(&shared[0]);
		printf("%.0f bytes of PSS each behind it\n",
			   (double) (PssOf(gateway_pid) - pss) * 1024 / n_numbers);
	}
	LinkFrameDestroy(feed_link);
	waitpid(gateway_pid, NULL, 0);
	return 0;
}
