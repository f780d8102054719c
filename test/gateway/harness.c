/*-------------------------------------------------------------------------
 *
 * harness.c
 *		TAP, the feed worker's side of the link, and raw WebSocket clients.
 *
 * One thread: whoever waits for something turns the link as well, so that the
 * gateway never waits for us by accident (only when a test wants it to).
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <zlib.h>

#include "harness.h"

Worker worker;

static int n_tests;
static int n_failed;
static pid_t spawned;
static Client *gone; /* disconnected clients */

/* ---- TAP ---- */

static void
Report(bool ok, const char *format, va_list args)
{
	char name[300];

	vsnprintf(name, sizeof(name), format, args);
	n_tests++;
	if (!ok)
		n_failed++;
	printf("%sok %d - %s\n", ok ? "" : "not ", n_tests, name);
	fflush(stdout);
}

void
Ok(bool condition, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	Report(condition, format, args);
	va_end(args);
}

void
Is(uint64_t got, uint64_t expected, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	Report(got == expected, format, args);
	va_end(args);
	if (got != expected)
		Note("got %llu, expected %llu", (unsigned long long) got, (unsigned long long) expected);
}

void
IsText(const char *got, const char *expected, const char *format, ...)
{
	va_list args;
	bool same = got != NULL && strcmp(got, expected) == 0;

	va_start(args, format);
	Report(same, format, args);
	va_end(args);
	if (!same)
		Note("got \"%.300s\", expected \"%.300s\"", got != NULL ? got : "(nothing)", expected);
}

void
Note(const char *format, ...)
{
	va_list args;

	printf("# ");
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	fflush(stdout);
}

void
Die(const char *format, ...)
{
	va_list args;

	printf("Bail out! ");
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf(" (%s)\n", strerror(errno));
	fflush(stdout);
	if (spawned > 0)
		kill(spawned, SIGKILL);
	exit(1);
}

int
FinishTests(void)
{
	while (gone != NULL)
	{
		Client *client = gone;

		gone = client->next_gone;
		free(client);
	}
	printf("1..%d\n", n_tests);
	if (n_failed > 0)
		printf("# %d of %d tests failed\n", n_failed, n_tests);
	return n_failed > 0 ? 1 : 0;
}

uint64_t
NowMs(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t) t.tv_sec * 1000 + (uint64_t) t.tv_nsec / 1000000;
}

/* ---- the gateway ---- */

Settings
DefaultSettings(void)
{
	Settings settings;

	memset(&settings, 0, sizeof(settings));
	settings.max_connections = 2000;
	settings.send_buffer = 1024 * 1024;
	settings.heartbeat_ms = 60000;
	settings.connect_timeout_ms = 60000;
	settings.max_message = 65536;
	settings.max_frame = 1024 * 1024;
	settings.handshake_timeout_ms = 10000;
	return settings;
}

static void
PutStrings(const char *const *strings)
{
	uint32_t n = 0;
	uint32_t i;

	while (n < 4 && strings[n] != NULL)
		n++;
	LinkFramePutU32(worker.link, n);
	for (i = 0; i < n; i++)
		LinkFramePutBytes(worker.link, strings[i], strlen(strings[i]));
}

void
SendConfig(const Settings *settings)
{
	LinkFrameBegin(worker.link, LINK_CONFIG);
	LinkFramePutU32(worker.link, settings->max_connections);
	LinkFramePutU32(worker.link, settings->send_buffer);
	LinkFramePutU32(worker.link, settings->heartbeat_ms);
	LinkFramePutU32(worker.link, settings->connect_timeout_ms);
	LinkFramePutU32(worker.link, settings->max_message);
	LinkFramePutU32(worker.link, settings->max_frame);
	LinkFramePutU16(worker.link, worker.port);
	PutStrings(settings->origins);
	PutStrings(settings->hosts);
	LinkFramePutBytes(worker.link, settings->cookie != NULL ? settings->cookie : "",
					  settings->cookie != NULL ? strlen(settings->cookie) : 0);
	LinkFramePutU8(worker.link, settings->compression);
	LinkFramePutU32(worker.link, settings->max_connections_per_address);
	LinkFramePutU32(worker.link, settings->max_handshake_rate);
	LinkFramePutU32(worker.link, settings->max_handshake_rate_per_address);
	LinkFramePutU32(worker.link, settings->max_message_rate);
	LinkFramePutU64(worker.link, settings->max_receive_rate);
	LinkFramePutU32(worker.link, settings->handshake_timeout_ms);
	LinkFramePutU8(worker.link, settings->forwarded ? 1 : 0);
	PutStrings(settings->proxies);
	PutStrings(settings->allowed);
	PutStrings(settings->denied);
	LinkFramePutU8(worker.link, settings->paused ? 1 : 0);
	LinkFrameEnd(worker.link);
}

static int
Listen(void)
{
	struct sockaddr_in address;
	socklen_t length = sizeof(address);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	memset(&address, 0, sizeof(address));
	address.sin_family = AF_INET;
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (fd < 0 || bind(fd, (struct sockaddr *) &address, sizeof(address)) < 0 ||
		listen(fd, 1024) < 0 || getsockname(fd, (struct sockaddr *) &address, &length) < 0)
		Die("could not listen");
	worker.port = ntohs(address.sin_port);
	return fd;
}

void
StartGateway(const Settings *settings)
{
	const char *program = getenv("GATEWAY");
	const char *sandbox = getenv("PG_CHANGEFEED_NO_SANDBOX");
	char *argv[4];
	char *envp[4] = {NULL, NULL, NULL, NULL};
	int n = 0;
	char number[] = "3";
	int pair[2];
	int listening;
	posix_spawn_file_actions_t actions;

	if (program == NULL)
		Die("GATEWAY names no program");
	if (sandbox != NULL)
		envp[n++] = (char *) "PG_CHANGEFEED_NO_SANDBOX=1";
	if (getenv("ASAN_OPTIONS") != NULL)
	{
		static char asan[256];

		snprintf(asan, sizeof(asan), "ASAN_OPTIONS=%s", getenv("ASAN_OPTIONS"));
		envp[n++] = asan;
	}
	memset(&worker, 0, sizeof(worker));
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
		Die("socketpair");

	argv[0] = (char *) program;
	argv[1] = (char *) "--link-fd";
	argv[2] = number;
	argv[3] = NULL;
	posix_spawn_file_actions_init(&actions);
	/* dup2 to itself would keep FD_CLOEXEC; so by way of a high number */
	posix_spawn_file_actions_adddup2(&actions, pair[1], 100);
	posix_spawn_file_actions_adddup2(&actions, 100, 3);
	if (posix_spawn(&worker.pid, program, &actions, NULL, argv, envp) != 0)
		Die("could not start %s", program);
	posix_spawn_file_actions_destroy(&actions);
	spawned = worker.pid;
	close(pair[1]);
	worker.link = LinkFrameCreate(pair[0]);

	listening = Listen();
	SendConfig(settings);
	LinkFrameBegin(worker.link, LINK_LISTEN);
	LinkFramePutU8(worker.link, 0);
	if (!LinkFrameEndWithDescriptor(worker.link, listening))
		Die("could not pass the listening socket");
	close(listening);
}

int
WaitExit(void)
{
	uint64_t end = NowMs() + LIMIT_MS;
	int status;

	while (waitpid(worker.pid, &status, WNOHANG) == 0)
	{
		if (NowMs() > end)
			Die("the gateway does not end");
		if (worker.link != NULL && !worker.link_ended)
			Step(10);
		else
			poll(NULL, 0, 10);
	}
	spawned = 0;
	if (worker.link != NULL)
		LinkFrameDestroy(worker.link);
	worker.link = NULL;
	DropKept();
	return status;
}

int
StopGateway(void)
{
	LinkFrameFlush(worker.link);
	LinkFrameDestroy(worker.link);
	worker.link = NULL;
	return WaitExit();
}

/* ---- the link ---- */

/* Writes and reads the link; waits for something to read up to timeout_ms. */
void
Step(int timeout_ms)
{
	struct pollfd p;
	LinkMessage message;
	LinkStatus status;

	if (worker.link == NULL)
		return;
	status = LinkFrameFlush(worker.link);
	p.fd = LinkFrameSocket(worker.link);
	p.events = (short) ((worker.deaf ? 0 : POLLIN) | (status == LINK_AGAIN ? POLLOUT : 0));
	p.revents = 0;
	poll(&p, 1, timeout_ms);
	LinkFrameFlush(worker.link);
	if (worker.deaf)
		return;
	status = LinkFrameFill(worker.link, 1024 * 1024);
	if (status == LINK_EOF || status == LINK_ERROR)
	{
		worker.link_ended = true;
		return;
	}
	while ((status = LinkFrameNext(worker.link, &message)) == LINK_OK)
	{
		Kept *kept = malloc(sizeof(Kept) + message.length + 1);

		kept->next = NULL;
		kept->type = message.type;
		kept->length = message.length;
		memcpy(kept->data, message.payload, message.length);
		kept->data[message.length] = '\0';
		if (worker.last != NULL)
			worker.last->next = kept;
		else
			worker.first = kept;
		worker.last = kept;
	}
	if (status == LINK_ERROR)
		Die("the gateway broke the link");
}

static bool
Matches(const Kept *kept, LinkType type, uint32_t conn)
{
	uint32_t number = 0;

	if (kept->type != type)
		return false;
	if (conn == 0)
		return true;
	if (kept->length < sizeof(number))
		return false;
	memcpy(&number, kept->data, sizeof(number));
	return number == conn;
}

bool
Has(LinkType type, uint32_t conn)
{
	Kept *kept;

	for (kept = worker.first; kept != NULL; kept = kept->next)
	{
		if (Matches(kept, type, conn))
			return true;
	}
	return false;
}

int
CountKept(LinkType type)
{
	Kept *kept;
	int n = 0;

	for (kept = worker.first; kept != NULL; kept = kept->next)
		n += kept->type == type;
	return n;
}

/*
 * The first kept message of the type (and connection); waits for it.  It is
 * valid until the next Take.
 */
Kept *
Take(LinkType type, uint32_t conn)
{
	static Kept *taken;
	uint64_t end = NowMs() + LIMIT_MS;

	free(taken);
	taken = NULL;
	for (;;)
	{
		Kept **link = &worker.first;
		Kept *before = NULL;

		while (*link != NULL)
		{
			Kept *kept = *link;

			if (Matches(kept, type, conn))
			{
				*link = kept->next;
				if (worker.last == kept)
					worker.last = before;
				taken = kept;
				return kept;
			}
			before = kept;
			link = &kept->next;
		}
		if (worker.link_ended || NowMs() > end)
			Die("message %d of connection %u does not come%s", (int) type, conn,
				worker.link_ended ? ": the link has ended" : "");
		Step(20);
	}
}

void
HoldGateway(void)
{
	siginfo_t info;

	kill(worker.pid, SIGSTOP);
	if (waitid(P_PID, (id_t) worker.pid, &info, WSTOPPED) != 0)
		Die("the gateway cannot be held");
}

void
DropKept(void)
{
	while (worker.first != NULL)
	{
		Kept *kept = worker.first;

		worker.first = kept->next;
		free(kept);
	}
	worker.last = NULL;
}

/* ---- what the feed worker says ---- */

void
SendPlain(LinkType type, const uint32_t *numbers, int n)
{
	int i;

	LinkFrameBegin(worker.link, type);
	for (i = 0; i < n; i++)
		LinkFramePutU32(worker.link, numbers[i]);
	LinkFrameEnd(worker.link);
}

static void
SendJson(LinkType type, uint32_t conn, const char *text)
{
	LinkFrameBegin(worker.link, type);
	LinkFramePutU32(worker.link, conn);
	LinkFramePutRaw(worker.link, text, strlen(text));
	LinkFrameEnd(worker.link);
}

void
SendText(uint32_t conn, const char *text)
{
	SendJson(LINK_SEND, conn, text);
}

void
SendSynced(uint32_t conn, const char *text)
{
	SendJson(LINK_SYNCED, conn, text);
}

void
SendIdentity(uint32_t conn, const char *tag)
{
	LinkFrameBegin(worker.link, LINK_IDENTITY);
	LinkFramePutU32(worker.link, conn);
	LinkFramePutRaw(worker.link, tag, LINK_TAG_LENGTH);
	LinkFrameEnd(worker.link);
}

void
SendClose(uint32_t conn, uint16_t code, const char *reason)
{
	LinkFrameBegin(worker.link, LINK_CLOSE);
	LinkFramePutU32(worker.link, conn);
	LinkFramePutU16(worker.link, code);
	LinkFramePutBytes(worker.link, reason, strlen(reason));
	LinkFrameEnd(worker.link);
}

void
SendMark(uint32_t conn, uint32_t mark)
{
	uint32_t numbers[2];

	numbers[0] = conn;
	numbers[1] = mark;
	SendPlain(LINK_MARK, numbers, 2);
}

void
SendPing(const uint32_t *conns, uint32_t n, const char *before, const char *after)
{
	LinkFrameBegin(worker.link, LINK_PING);
	LinkFramePutU32(worker.link, n);
	LinkFramePutRaw(worker.link, conns, n * sizeof(uint32_t));
	LinkFramePutBytes(worker.link, before, strlen(before));
	LinkFramePutBytes(worker.link, after, strlen(after));
	LinkFrameEnd(worker.link);
}

/* Positions are the number in 32 digits, then the tag. */
void
TxBegin(uint64_t number, uint8_t flags)
{
	char before[80];
	static const char after[] = "\",\"changes\":[";

	snprintf(before, sizeof(before), "\"position\":\"%032llu", (unsigned long long) number);
	LinkFrameBegin(worker.link, LINK_TX_BEGIN);
	LinkFramePutU64(worker.link, number);
	LinkFramePutU8(worker.link, flags);
	LinkFramePutBytes(worker.link, before, strlen(before));
	LinkFramePutBytes(worker.link, after, strlen(after));
	LinkFrameEnd(worker.link);
}

void
TxFragment(const uint32_t *conns, uint32_t n, const char *json)
{
	LinkFrameBegin(worker.link, LINK_TX_FRAGMENT);
	LinkFramePutU32(worker.link, n);
	LinkFramePutRaw(worker.link, conns, n * sizeof(uint32_t));
	LinkFramePutRaw(worker.link, json, strlen(json));
	LinkFrameEnd(worker.link);
}

/* The first one of a transaction is number 0. */
void
TxAudience(const uint32_t *conns, uint32_t n)
{
	LinkFrameBegin(worker.link, LINK_TX_AUDIENCE);
	LinkFramePutU32(worker.link, n);
	LinkFramePutRaw(worker.link, conns, n * sizeof(uint32_t));
	LinkFrameEnd(worker.link);
}

void
TxShared(uint32_t audience, const char *json)
{
	LinkFrameBegin(worker.link, LINK_TX_SHARED);
	LinkFramePutU32(worker.link, audience);
	LinkFramePutRaw(worker.link, json, strlen(json));
	LinkFrameEnd(worker.link);
}

void
TxEnd(void)
{
	SendPlain(LINK_TX_END, NULL, 0);
}

void
SendTransaction(uint64_t number, uint8_t flags, const uint32_t *conns, uint32_t n, const char *json)
{
	TxBegin(number, flags);
	TxFragment(conns, n, json);
	TxEnd();
}

void
SendAsset(const char *path, const char *type, const char *etag,
		  const char *body, size_t length)
{
	LinkFrameBegin(worker.link, LINK_ASSET);
	LinkFramePutBytes(worker.link, path, strlen(path));
	LinkFramePutBytes(worker.link, type, strlen(type));
	LinkFramePutBytes(worker.link, etag, strlen(etag));
	LinkFramePutRaw(worker.link, body, length);
	LinkFrameEnd(worker.link);
}

void
SendPaths(const char *const *texts, const uint8_t *methods, uint32_t n)
{
	uint32_t i;

	LinkFrameBegin(worker.link, LINK_PATHS);
	LinkFramePutU32(worker.link, n);
	for (i = 0; i < n; i++)
	{
		LinkFramePutU8(worker.link, methods[i]);
		LinkFramePutBytes(worker.link, texts[i], strlen(texts[i]));
	}
	LinkFrameEnd(worker.link);
}

void
SendResponse(uint32_t conn, uint16_t status, const char *type, const char *headers,
			 const char *body, size_t length)
{
	LinkFrameBegin(worker.link, LINK_RESPONSE);
	LinkFramePutU32(worker.link, conn);
	LinkFramePutU16(worker.link, status);
	LinkFramePutBytes(worker.link, type, strlen(type));
	LinkFramePutBytes(worker.link, headers, strlen(headers));
	LinkFramePutRaw(worker.link, body, length);
	LinkFrameEnd(worker.link);
}

void
SendSnapshot(uint32_t conn, uint32_t sub, int fd, const char *const *prefixes, uint32_t n)
{
	uint32_t i;

	LinkFrameBegin(worker.link, LINK_SNAPSHOT);
	LinkFramePutU32(worker.link, conn);
	LinkFramePutU32(worker.link, sub);
	LinkFramePutU32(worker.link, n);
	for (i = 0; i < n; i++)
		LinkFramePutBytes(worker.link, prefixes[i], strlen(prefixes[i]));
	if (!LinkFrameEndWithDescriptor(worker.link, fd))
		Die("could not pass a file");
}

void
SendShutdown(const char *reason, uint32_t least, uint32_t most)
{
	LinkFrameBegin(worker.link, LINK_SHUTDOWN);
	LinkFramePutBytes(worker.link, reason, strlen(reason));
	LinkFramePutU32(worker.link, least);
	LinkFramePutU32(worker.link, most);
	LinkFrameEnd(worker.link);
}

/* ---- clients ---- */

Client *
ConnectSmall(int receive_buffer)
{
	struct sockaddr_in address;
	Client *client = calloc(1, sizeof(Client));
	int one = 1;

	client->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (client->fd < 0)
		Die("socket");
	if (receive_buffer > 0)
		setsockopt(client->fd, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
	setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	memset(&address, 0, sizeof(address));
	address.sin_family = AF_INET;
	address.sin_port = htons(worker.port);
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (connect(client->fd, (struct sockaddr *) &address, sizeof(address)) < 0)
		Die("could not connect");
	fcntl(client->fd, F_SETFL, O_NONBLOCK);
	return client;
}

Client *
Connect(void)
{
	return ConnectSmall(0);
}

void
Disconnect(Client *client)
{
	if (client->fd < 0)
		return;
	close(client->fd);
	client->fd = -1;
	free(client->in);
	client->in = NULL;
	client->length = 0;
	client->next_gone = gone;
	gone = client;
}

bool
TrySendRaw(Client *client, const void *data, size_t length)
{
	const char *p = data;
	uint64_t end = NowMs() + LIMIT_MS;

	while (length > 0)
	{
		ssize_t n = send(client->fd, p, length, MSG_NOSIGNAL);

		if (n >= 0)
		{
			p += n;
			length -= (size_t) n;
			continue;
		}
		if (errno != EAGAIN && errno != EINTR)
			return false;
		if (NowMs() > end)
			return false;
		Step(1);
	}
	return true;
}

void
SendRaw(Client *client, const void *data, size_t length)
{
	if (!TrySendRaw(client, data, length))
		Die("could not send to the gateway");
}

/* Reads what is there; waits for something, turning the link meanwhile. */
void
ReceiveSome(Client *client)
{
	uint64_t end = NowMs() + LIMIT_MS;

	for (;;)
	{
		struct pollfd p[2];
		ssize_t n;
		int m = 1;

		if (client->capacity - client->length < 65536)
		{
			client->capacity = client->capacity * 2 + 131072;
			client->in = realloc(client->in, client->capacity);
		}
		n = recv(client->fd, client->in + client->length, client->capacity - client->length - 1, 0);
		if (n > 0)
		{
			client->length += (size_t) n;
			return;
		}
		if (n == 0 || (errno != EAGAIN && errno != EINTR))
		{
			client->ended = true;
			return;
		}
		if (NowMs() > end)
			Die("nothing comes from the gateway");
		p[0].fd = client->fd;
		p[0].events = POLLIN;
		if (worker.link != NULL && !worker.deaf && !worker.link_ended)
		{
			p[1].fd = LinkFrameSocket(worker.link);
			p[1].events = (short) (POLLIN | (LinkFramePending(worker.link) > 0 ? POLLOUT : 0));
			m = 2;
		}
		poll(p, (nfds_t) m, 100);
		Step(0);
	}
}

bool
HasData(Client *client)
{
	struct pollfd p;

	if (client->length > 0)
		return true;
	p.fd = client->fd;
	p.events = POLLIN;
	return poll(&p, 1, 0) > 0;
}

static void
Consume(Client *client, size_t n)
{
	memmove(client->in, client->in + n, client->length - n);
	client->length -= n;
}

/*
 * Reads one HTTP answer, headers and body (by Content-Length).  Valid until
 * the next one; empty if the connection ended without an answer.
 */
const char *
ReadHttp(Client *client)
{
	static char *text;
	char *end;
	char *field;
	size_t head;
	size_t body = 0;

	free(text);
	text = strdup("");
	for (;;)
	{
		if (client->length > 0)
		{
			client->in[client->length] = '\0';
			end = strstr(client->in, "\r\n\r\n");
			if (end != NULL)
				break;
		}
		if (client->ended)
			return text;
		ReceiveSome(client);
	}
	head = (size_t) (end - client->in) + 4;
	*end = '\0';
	field = strstr(client->in, "Content-Length: ");
	if (field != NULL)
		body = strtoul(field + 16, NULL, 10);
	*end = '\r';
	/* No body comes for HEAD: then the caller closes anyway. */
	while (client->length < head + body && !client->ended)
		ReceiveSome(client);
	if (client->length < head + body)
		body = client->length - head;
	free(text);
	text = malloc(head + body + 1);
	memcpy(text, client->in, head + body);
	text[head + body] = '\0';
	Consume(client, head + body);
	return text;
}

/* Sends a request on a connection of its own; "\r\n" is added at the end. */
const char *
Request(const char *format, ...)
{
	Client *client = Connect();
	char text[8192];
	const char *answer;
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text) - 2, format, args);
	va_end(args);
	strcat(text, "\r\n");
	TrySendRaw(client, text, strlen(text));
	if (strncmp(text, "HEAD", 4) == 0)
		shutdown(client->fd, SHUT_WR);
	answer = ReadHttp(client);
	Disconnect(client);
	return answer;
}

/* `headers` may be NULL, or lines with their ends, with a Host if it has "Host:". */
const char *
Handshake(Client *client, const char *path, const char *headers)
{
	char text[8192];
	char host[64];

	snprintf(host, sizeof(host), "Host: 127.0.0.1:%d\r\n", worker.port);
	snprintf(text, sizeof(text),
			 "GET %s HTTP/1.1\r\n%sUpgrade: websocket\r\n"
			 "Connection: Upgrade\r\n"
			 "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
			 "Sec-WebSocket-Version: 13\r\n%s\r\n",
			 path, headers != NULL && strstr(headers, "Host:") ? "" : host,
			 headers != NULL ? headers : "");
	SendRaw(client, text, strlen(text));
	return ReadHttp(client);
}

static void
TakeOpen(Client *client)
{
	Kept *kept = Take(LINK_OPEN, 0);

	memcpy(&client->conn, kept->data, sizeof(client->conn));
}

Client *
OpenSocket(void)
{
	Client *client = Connect();
	const char *answer = Handshake(client, "/v1/socket", NULL);

	if (strncmp(answer, "HTTP/1.1 101", 12) != 0)
		Die("no upgrade: %s", answer);
	TakeOpen(client);
	return client;
}

Client *
OpenPacking(void)
{
	Client *client = Connect();
	const char *answer =
		Handshake(client, "/v1/socket", "Sec-WebSocket-Extensions: permessage-deflate\r\n");

	if (strstr(answer, "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; "
					   "client_no_context_takeover\r\n") == NULL)
		Die("no compression: %s", answer);
	client->packs = true;
	TakeOpen(client);
	SendIdentity(client->conn, "abcdefgh");
	return client;
}

Client *
OpenIdentified(void)
{
	Client *client = OpenSocket();

	SendIdentity(client->conn, "abcdefgh");
	return client;
}

/* A client's frame, masked.  Returns its length. */
size_t
BuildFrame(char *buffer, uint8_t first_byte, const void *data, size_t length)
{
	static const unsigned char mask[4] = {0x11, 0xa2, 0x53, 0xe4};
	unsigned char *out = (unsigned char *) buffer;
	const unsigned char *in = data;
	size_t n = 0;
	size_t i;

	out[n++] = first_byte;
	if (length < 126)
		out[n++] = (unsigned char) (0x80 | length);
	else if (length < 65536)
	{
		out[n++] = 0x80 | 126;
		out[n++] = (unsigned char) (length >> 8);
		out[n++] = (unsigned char) length;
	}
	else
	{
		out[n++] = 0x80 | 127;
		for (i = 0; i < 8; i++)
			out[n++] = (unsigned char) ((uint64_t) length >> (56 - 8 * i));
	}
	memcpy(out + n, mask, 4);
	n += 4;
	for (i = 0; i < length; i++)
		out[n++] = in[i] ^ mask[i & 3];
	return n;
}

void
SendFrame(Client *client, uint8_t first_byte, const void *data, size_t length)
{
	char *buffer = malloc(length + 16);
	size_t n = BuildFrame(buffer, first_byte, data, length);

	SendRaw(client, buffer, n);
	free(buffer);
}

void
SendMessage(Client *client, const char *text)
{
	SendFrame(client, 0x81, text, strlen(text));
}

/*
 * The next frame of the gateway, which has to be whole, unmasked and without
 * extension bits; opcode 0 if the connection ended.
 */
/* What a message without context takeover says. */
static void
Inflate(char **text, uint64_t *length)
{
	z_stream stream;
	size_t size = *length * 1100 + 1024;
	char *out = malloc(size);

	memset(&stream, 0, sizeof(stream));
	if (inflateInit2(&stream, -15) != Z_OK)
		Die("no inflater");
	stream.next_in = (unsigned char *) *text;
	stream.avail_in = (unsigned int) *length;
	stream.next_out = (unsigned char *) out;
	stream.avail_out = (unsigned int) size - 1;
	if (inflate(&stream, Z_SYNC_FLUSH) != Z_OK || stream.avail_in > 0)
		Die("a message that does not inflate");
	stream.next_in = (unsigned char *) "\0\0\xff\xff";
	stream.avail_in = 4;
	if (inflate(&stream, Z_SYNC_FLUSH) != Z_OK || stream.avail_in > 0)
		Die("a message that does not end at a block");
	*length = size - 1 - stream.avail_out;
	out[*length] = '\0';
	inflateEnd(&stream);
	free(*text);
	*text = out;
}

Frame
ReadFrame(Client *client)
{
	static char *text;
	Frame frame;
	size_t head = 2;
	uint64_t length;
	const unsigned char *in;
	int i;

	memset(&frame, 0, sizeof(frame));
	for (;;)
	{
		in = (const unsigned char *) client->in;
		if (client->length >= 2)
		{
			if ((in[0] & (client->packs ? 0x30 : 0x70)) != 0 || (in[0] & 0x80) == 0 || (in[1] & 0x80) != 0)
				Die("damaged frame %02x %02x", in[0], in[1]);
			length = in[1];
			head = length == 126 ? 4 : length == 127 ? 10 : 2;
			if (client->length >= head)
			{
				if (head > 2)
				{
					length = 0;
					for (i = 2; i < (int) head; i++)
						length = length << 8 | in[i];
				}
				if (client->length - head >= length)
					break;
			}
		}
		if (client->ended)
			return frame;
		ReceiveSome(client);
	}
	frame.opcode = in[0] & 0x0f;
	if (frame.opcode != OPCODE_TEXT && frame.opcode != OPCODE_CLOSE && frame.opcode != OPCODE_PONG)
		Die("a frame with opcode %d", frame.opcode);
	free(text);
	text = malloc(length + 1);
	memcpy(text, client->in + head, length);
	text[length] = '\0';
	frame.packed = (in[0] & 0x40) != 0;
	Consume(client, head + length);
	if (frame.packed)
		Inflate(&text, &length);
	frame.length = length;
	frame.text = text;
	if (frame.opcode == OPCODE_CLOSE && length >= 2)
		frame.close_code = (uint16_t) ((unsigned char) text[0] << 8 | (unsigned char) text[1]);
	return frame;
}
