/*-------------------------------------------------------------------------
 *
 * harness.c
 *		The gateway in the fuzzer's own process.  See harness.h.
 *
 * main.c and conn.c are included, not linked: their static functions start the
 * loop, and the last connection's number has to begin anew with each input.
 *
 * GatewayFatal() is replaced (ld --wrap).  Where it is called because the link
 * said nonsense it jumps back to HarnessLink(): that is the end that the gateway
 * is meant to come to.  Anything else is a finding.
 *
 *-------------------------------------------------------------------------
 */
#define main gateway_main
#include "../../../src/gateway/main.c"
#undef main
#include "../../../src/gateway/conn.c"

#include <arpa/inet.h>
#include <dirent.h>
#include <jansson.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include "harness.h"

LinkFrame *worker;
Peer peers[MAX_PEERS];
uint32_t fuzz_max_message;
void (*on_message)(const LinkMessage *message, uint32_t conn);

static struct sockaddr_un address;
static socklen_t address_length;

static jmp_buf *fatal;
static bool was_fatal;
static char open_before[1024]; /* descriptors that were open */
static bool activity;

/* ---- time ---- */

static bool time_is_virtual;
static struct timespec virtual_time;

/* Takes the place of libc's, for libuv and libwebsockets as well. */
int
clock_gettime(clockid_t clock, struct timespec *t)
{
	if (time_is_virtual && (clock == CLOCK_MONOTONIC || clock == CLOCK_MONOTONIC_COARSE))
	{
		*t = virtual_time;
		return 0;
	}
	return (int) syscall(SYS_clock_gettime, clock, t);
}

static void
Forward(uint32_t ms)
{
	uint64_t ns = (uint64_t) virtual_time.tv_nsec + (uint64_t) ms * 1000000;

	virtual_time.tv_sec += (time_t) (ns / 1000000000);
	virtual_time.tv_nsec = (long) (ns % 1000000000);
}

/* ---- inputs ---- */

uint8_t
TakeU8(Input *in)
{
	if (in->left == 0)
		return 0;
	in->left--;
	return *in->data++;
}

uint16_t
TakeU16(Input *in)
{
	uint16_t high = TakeU8(in);

	return (uint16_t) (high << 8 | TakeU8(in));
}

const uint8_t *
TakeBytes(Input *in, size_t *length)
{
	const uint8_t *data = in->data;

	if (*length > in->left)
		*length = in->left;
	in->data += *length;
	in->left -= *length;
	return data;
}

/* ---- the gateway's own functions that are replaced ---- */

extern void
__wrap_GatewayLog(LogLevel level, const char *format, ...) __attribute__((format(printf, 2, 3)));
extern void __wrap_GatewayFatal(int exit_code, const char *format, ...)
	__attribute__((format(printf, 2, 3), noreturn));

/* The line is made, and nobody reads it. */
void
__wrap_GatewayLog(LogLevel level, const char *format, ...)
{
	char line[1024];
	va_list args;

	(void) level;
	va_start(args, format);
	vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	if (getenv("FUZZ_LOG") != NULL)
		fprintf(stderr, "%s\n", line);
}

void
__wrap_GatewayFatal(int exit_code, const char *format, ...)
{
	char line[1024];
	va_list args;

	va_start(args, format);
	vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	if (exit_code == EXIT_PROTOCOL && fatal != NULL)
	{
		was_fatal = true;
		longjmp(*fatal, 1);
	}
	Fail("the gateway gives up: %s", line);
}

/* ---- what the gateway says ---- */

/* Every message has to be exactly what link_format.h says. */
static void
CheckMessage(const LinkMessage *message)
{
	WireReader r = WireReaderInit(message->payload, message->length);
	uint32_t conn = 0;
	uint32_t n;
	uint32_t i;
	char text[64];
	WireBytes bytes;
	unsigned char binary[16];

	if (message->descriptor >= 0)
		Fail("the gateway sends a descriptor");
	switch (message->type)
	{
		case LINK_HELLO:
			(void) WireGetU32(&r);
			(void) WireGetU32(&r);
			(void) WireGetBytes(&r);
			break;
		case LINK_OPEN:
			conn = WireGetU32(&r);
			if (WireGetU8(&r) != LINK_TRANSPORT_WEBSOCKET)
				Fail("unknown transport");
			bytes = WireGetBytes(&r);
			if (r.failed || bytes.length >= sizeof(text))
				Fail("the peer's address is too long");
			memcpy(text, bytes.data, bytes.length);
			text[bytes.length] = '\0';
			if (strcmp(text, "local") != 0 && inet_pton(AF_INET, text, binary) != 1 &&
				inet_pton(AF_INET6, text, binary) != 1)
				Fail("\"%s\" is no address", text);
			bytes = WireGetBytes(&r);
			if (bytes.length > HTTP_MAX_HEADER)
				Fail("the token is too long");
			break;
		case LINK_MESSAGE:
			conn = WireGetU32(&r);
			if (message->length - 4 > fuzz_max_message)
				Fail("a message is larger than max_message");
			if (!Utf8IsValid(message->payload + 4, message->length - 4))
				Fail("a message is not UTF-8");
			r.offset = r.length;
			break;
		case LINK_CLOSED:
			conn = WireGetU32(&r);
			i = WireGetU8(&r);
			if (i < LINK_CAUSE_CLIENT || i > LINK_CAUSE_ADDRESS)
				Fail("unknown cause %u", i);
			break;
		case LINK_BEHIND:
			conn = WireGetU32(&r);
			(void) WireGetU64(&r);
			break;
		case LINK_DRAINED:
		case LINK_COLLECTED:
			conn = WireGetU32(&r);
			break;
		case LINK_SNAPSHOT_DONE:
			conn = WireGetU32(&r);
			(void) WireGetU32(&r);
			(void) WireGetU8(&r);
			break;
		case LINK_FLUSHED:
			conn = WireGetU32(&r);
			(void) WireGetU32(&r);
			break;
		case LINK_PING_DUE:
			n = WireGetU32(&r);
			for (i = 0; i < n; i++)
				(void) WireGetU32(&r);
			break;
		case LINK_STATS:
			for (i = 0; i < 8 + LINK_LAG_BUCKETS + 1; i++)
				(void) WireGetU64(&r);
			n = WireGetU32(&r);
			for (i = 0; i < n; i++)
			{
				(void) WireGetBytes(&r);
				(void) WireGetU64(&r);
			}
			(void) WireGetU64(&r);
			break;
		case LINK_REQUEST:
			conn = WireGetU32(&r);
			i = WireGetU8(&r);
			if (i != LINK_METHOD_GET && i != LINK_METHOD_POST)
				Fail("unknown method %u", i);
			(void) WireGetU8(&r);
			bytes = WireGetBytes(&r);
			if (r.failed || bytes.length == 0 || bytes.data[0] != '/')
				Fail("a path does not begin with a slash");
			for (i = 0; i < 5; i++)
				(void) WireGetBytes(&r);
			n = WireGetU32(&r);
			for (i = 0; i < n && !r.failed; i++)
			{
				bytes = WireGetBytes(&r);
				if (bytes.length >= 6 && memcmp(bytes.data, "token=", 6) == 0)
					Fail("a token is among the arguments");
			}
			if (!r.failed && r.length - r.offset > fuzz_max_message)
				Fail("a body is larger than max_message");
			if (!r.failed)
				r.offset = r.length;
			break;
		case LINK_CONNECTIONS:
			n = WireGetU32(&r);
			for (i = 0; i < n && !r.failed; i++)
			{
				(void) WireGetU32(&r);
				(void) WireGetU64(&r);
				(void) WireGetU64(&r);
				(void) WireGetU64(&r);
				(void) WireGetU64(&r);
			}
			break;
		case LINK_PROBED:
			(void) WireGetU64(&r);
			break;
		default:
			Fail("the gateway says %d", (int) message->type);
	}
	if (!WireAtEnd(&r))
		Fail("message %d of the gateway is not as it should be", (int) message->type);
	if (on_message != NULL)
		on_message(message, conn);
}

static void
ReadLink(void)
{
	LinkMessage message;
	LinkStatus status;

	for (;;)
	{
		status = LinkFrameFill(worker, 1024 * 1024);
		if (status == LINK_EOF || status == LINK_ERROR)
			Fail("the gateway has closed the link");
		if (status == LINK_AGAIN)
			return;
		activity = true;
		while ((status = LinkFrameNext(worker, &message)) == LINK_OK)
			CheckMessage(&message);
		if (status == LINK_ERROR)
			Fail("the gateway's link is damaged");
	}
}

static void
ReadPeers(void)
{
	int i;

	for (i = 0; i < MAX_PEERS; i++)
	{
		Peer *peer = &peers[i];

		while (peer->fd >= 0 && !peer->ended)
		{
			ssize_t n;

			BufferReserve(&peer->in, 65536);
			n = recv(peer->fd, peer->in.data + peer->in.length, 65536, MSG_DONTWAIT);
			if (n < 0 && errno == EAGAIN)
				break;
			activity = true;
			if (n <= 0)
				peer->ended = true;
			else
				peer->in.length += (size_t) n;
		}
	}
}

void
HarnessTurn(void)
{
	int quiet = 0;
	int i;

	for (i = 0; i < 200 && quiet < 3; i++)
	{
		activity = false;
		Forward(1);
		uv_run(&gateway.loop, UV_RUN_NOWAIT);
		if (gateway.exit_code != 0)
			Fail("the gateway wants to end");
		ReadLink();
		ReadPeers();
		quiet = activity || !ListIsEmpty(&doomed_list) ? 0 : quiet + 1;
	}
}

void
HarnessAdvance(uint32_t ms)
{
	Forward(ms);
	HarnessTurn();
}

/* ---- what the feed worker says ---- */

bool
HarnessLink(void)
{
	jmp_buf here;
	bool good = false;

	/* Not from within libuv's loop, which nobody may jump out of. */
	fatal = &here;
	if (setjmp(here) == 0)
	{
		int i;

		for (i = 0; i < 64 && (LinkFramePending(worker) > 0 || i == 0); i++)
		{
			if (LinkFrameFlush(worker) == LINK_ERROR)
				Fail("could not write to the link");
			LinkLook();
		}
		good = true;
	}
	fatal = NULL;
	return good;
}

void
HarnessSettle(bool open_transaction)
{
	bool before;
	int i;

	for (i = 0; i < 100 && !HarnessLink(); i++)
		;
	before = was_fatal;
	if (open_transaction)
	{
		/* If there is none, it is a fault to end it. */
		LinkFrameBegin(worker, LINK_TX_END);
		LinkFrameEnd(worker);
		(void) HarnessLink();
	}
	was_fatal = before;
	LinkFrameBegin(worker, LINK_TLS);
	LinkFramePutBytes(worker, "", 0);
	LinkFrameEnd(worker);
	if (!HarnessLink())
		Fail("the gateway does not turn off TLS");
}

static void
PutList(const char *const *strings)
{
	uint32_t n = 0;
	uint32_t i;

	while (strings[n] != NULL)
		n++;
	LinkFramePutU32(worker, n);
	for (i = 0; i < n; i++)
		LinkFramePutBytes(worker, strings[i], strlen(strings[i]));
}

void
HarnessConfigure(uint8_t bits)
{
	static const char *const none[] = {NULL};
	static const char *const any[] = {"*", NULL};
	static const char *const origins[] = {ALLOWED_ORIGIN, NULL};
	static const char *const hosts[] = {ALLOWED_HOST, NULL};
	static const char *const proxies[] = {"unix", "10.0.0.0/8", "fd00::/8", NULL};
	static const char *const allowed[] = {"192.0.2.0/24", "2001:db8::/32", NULL};
	static const char *const denied[] = {"192.0.2.66", "2001:db8:66::/48", NULL};
	bool small = (bits & WITH_SMALL_SIZES) != 0;
	bool rates = (bits & WITH_RATES) != 0;
	bool lists = (bits & WITH_LISTS) != 0;

	fuzz_max_message = small ? 300 : 65536;
	LinkFrameBegin(worker, LINK_CONFIG);
	LinkFramePutU32(worker, 100);
	LinkFramePutU32(worker, small ? 4096 : 1024 * 1024);
	LinkFramePutU32(worker, 30000);
	LinkFramePutU32(worker, 10000);
	LinkFramePutU32(worker, fuzz_max_message);
	LinkFramePutU32(worker, small ? 600 : 1024 * 1024);
	LinkFramePutU16(worker, 8040);
	PutList((bits & WITH_ANY_ORIGIN) != 0 ? any : origins);
	PutList(hosts);
	if ((bits & WITH_COOKIE) != 0)
		LinkFramePutBytes(worker, "session", 7);
	else
		LinkFramePutBytes(worker, "", 0);
	LinkFramePutU8(worker, (bits & WITH_COMPRESSION) != 0);
	LinkFramePutU32(worker, rates ? 2 : 0);
	LinkFramePutU32(worker, rates ? 1000 : 0);
	LinkFramePutU32(worker, rates ? 100 : 0);
	LinkFramePutU32(worker, rates ? 2 : 0);
	LinkFramePutU64(worker, rates ? 1024 : 0);
	LinkFramePutU32(worker, 10000);
	LinkFramePutU8(worker, (bits & WITH_FORWARDED) != 0);
	PutList((bits & WITH_PROXY) != 0 ? proxies : none);
	PutList(lists ? allowed : none);
	PutList(lists ? denied : none);
	LinkFramePutU8(worker, 0);
	LinkFrameEnd(worker);
	if (!HarnessLink())
		Fail("the gateway does not take its settings");
}

static void
PutPath(uint8_t methods, const char *text)
{
	LinkFramePutU8(worker, methods);
	LinkFramePutBytes(worker, text, strlen(text));
}

static void
SendPathsAndAssets(void)
{
	LinkFrameBegin(worker, LINK_PATHS);
	LinkFramePutU32(worker, 7);
	PutPath(LINK_METHOD_GET, "/v1/events");
	PutPath(LINK_METHOD_GET, "/v1/poll");
	PutPath(LINK_METHOD_POST, "/v1/publish");
	PutPath(LINK_METHOD_POST, "/v1/call/");
	PutPath(LINK_METHOD_GET, "/metrics");
	PutPath(LINK_METHOD_GET, "/");
	PutPath(LINK_METHOD_GET | LINK_METHOD_POST, "/admin/");
	LinkFrameEnd(worker);
	LinkFrameBegin(worker, LINK_ASSET);
	LinkFramePutBytes(worker, "/console.js", 11);
	LinkFramePutBytes(worker, "text/javascript", 15);
	LinkFramePutBytes(worker, "\"0123\"", 6);
	LinkFramePutRaw(worker, "let a = 1;\n", 11);
	LinkFrameEnd(worker);
}

/* ---- clients ---- */

Peer *
HarnessConnect(void)
{
	int i;

	for (i = 0; i < MAX_PEERS; i++)
	{
		Peer *peer = &peers[i];

		if (peer->fd >= 0)
			continue;
		peer->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
		peer->ended = false;
		peer->conn = 0;
		peer->in.length = 0;
		if (peer->fd < 0 || connect(peer->fd, (struct sockaddr *) &address, address_length) < 0)
			Fail("could not connect: %s", strerror(errno));
		HarnessTurn();
		return peer;
	}
	Fail("too many clients");
}

void
HarnessSend(Peer *peer, const void *data, size_t length)
{
	const char *p = data;
	int tries = 0;

	while (length > 0 && !peer->ended && tries < 1000)
	{
		ssize_t n = send(peer->fd, p, length, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n > 0)
		{
			p += n;
			length -= (size_t) n;
		}
		else if (errno != EAGAIN)
			return;
		HarnessTurn();
		tries++;
	}
}

void
HarnessDisconnect(Peer *peer)
{
	if (peer->fd >= 0)
		close(peer->fd);
	peer->fd = -1;
	BufferReset(&peer->in, 65536);
}

/* ---- descriptors ---- */

static void
ListDescriptors(char *open)
{
	DIR *dir = opendir("/proc/self/fd");
	struct dirent *entry;

	memset(open, 0, sizeof(open_before));
	while (dir != NULL && (entry = readdir(dir)) != NULL)
	{
		int fd = atoi(entry->d_name);

		if (fd != dirfd(dir) && fd >= 0 && fd < (int) sizeof(open_before))
			open[fd] = 1;
	}
	if (dir != NULL)
		closedir(dir);
}

static void
CheckDescriptors(void)
{
	char now[sizeof(open_before)];
	int fd;

	ListDescriptors(now);
	for (fd = 0; fd < (int) sizeof(now); fd++)
	{
		if (!now[fd] || open_before[fd])
			continue;

		/* The end of the process would close it. */
		if (!was_fatal)
			Fail("descriptor %d is left open", fd);
		close(fd);
	}
}

void
HarnessFinish(void)
{
	int i;

	for (i = 0; i < MAX_PEERS; i++)
		HarnessDisconnect(&peers[i]);
	for (i = 0; i < 200 && gateway.open_sockets > 0; i++)
		HarnessAdvance(500);
	HarnessTurn();
	if (gateway.open_sockets > 0 || gateway.open > 0 || conn_table.used > 0)
		Fail("connections are left: %zu sockets, %lu connections", gateway.open_sockets,
			 (unsigned long) gateway.open);
	if (gateway.queued_bytes != 0)
		Fail("%lu bytes are counted as queued for nobody", (unsigned long) gateway.queued_bytes);

	CheckDescriptors();
	was_fatal = false;
	last_number = 0;
	time_is_virtual = false;
}

/* ---- the start ---- */

static void
Listen(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	socklen_t length = sizeof(address);

	/* A name of its own, in the kernel's name space, by itself. */
	address.sun_family = AF_UNIX;
	if (fd < 0 || bind(fd, (struct sockaddr *) &address, sizeof(sa_family_t)) < 0 ||
		listen(fd, 64) < 0 || getsockname(fd, (struct sockaddr *) &address, &length) < 0)
		Fail("could not listen: %s", strerror(errno));
	address_length = length;
	LinkFrameBegin(worker, LINK_LISTEN);
	LinkFramePutU8(worker, LINK_LISTEN_LOCAL);
	LinkFrameEndWithDescriptor(worker, fd);
	close(fd);
}

void
HarnessStart(void)
{
	static bool started;
	struct rlimit limit = {sizeof(open_before), sizeof(open_before)};
	int pair[2];
	int i;

	if (started)
	{
		time_is_virtual = true;
		ListDescriptors(open_before);
		return;
	}
	started = true;
	memset(open_before, 1, sizeof(open_before));
	for (i = 0; i < MAX_PEERS; i++)
		peers[i].fd = -1;
	setenv("PG_CHANGEFEED_NO_SANDBOX", "1", 1);
	setrlimit(RLIMIT_NOFILE, &limit);
	signal(SIGPIPE, SIG_IGN);
	gateway.max_sockets = 500;
	clock_gettime(CLOCK_MONOTONIC, &virtual_time);
	time_is_virtual = true;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
		Fail("socketpair: %s", strerror(errno));
	worker = LinkFrameCreate(pair[0]);
	StartLoop();
	ServerCreate();
	LinkStart(pair[1]);
	HarnessConfigure(0);
	Listen();
	SendPathsAndAssets();
	if (!HarnessLink())
		Fail("the gateway does not start");
	HarnessTurn();

	/* What is made when it is first needed. */
	HarnessConnect();
	HarnessFinish();
	time_is_virtual = true;
	ListDescriptors(open_before);
}

/* ---- answers ---- */

void
CheckFrames(const Peer *peer, size_t at, bool compression, FrameLook each)
{
	const unsigned char *p = (const unsigned char *) peer->in.data;

	while (at + 2 <= peer->in.length)
	{
		size_t length = p[at + 1];
		size_t head = length == 126 ? 4 : length == 127 ? 10 : 2;
		size_t i;

		if ((p[at] & (compression ? 0x30 : 0x70)) != 0 || (p[at] & 0x80) == 0 || length > 127)
			Fail("damaged frame %02x %02x", p[at], p[at + 1]);
		if (at + head > peer->in.length)
			return;
		if (head > 2)
		{
			for (i = 2, length = 0; i < head; i++)
				length = length << 8 | p[at + i];
		}
		if (length > peer->in.length - at - head)
			return;
		if (each != NULL)
			each(p + at + head, length, (p[at] & 0x40) != 0);
		at += head + length;
	}
}

bool
IsJson(const char *text, size_t length)
{
	json_t *root = json_loadb(text, length, JSON_DECODE_ANY, NULL);

	json_decref(root);
	return root != NULL;
}

static bool
IsOneOf(const char *text, size_t length, const char *const *list)
{
	for (; *list != NULL; list++)
	{
		if (strlen(*list) == length && strncasecmp(*list, text, length) == 0)
			return true;
	}
	return false;
}

/*
 * Nothing that a client has sent may become a header line, and no page may read
 * an answer with its visitor's cookies that is not allowed to.
 */
void
CheckAnswer(const char *text, size_t length)
{
	static const char *const known[] = {"Content-Type",
										"Content-Length",
										"Cache-Control",
										"Connection",
										"X-Content-Type-Options",
										"Referrer-Policy",
										"Cross-Origin-Resource-Policy",
										"Retry-After",
										"Vary",
										"ETag",
										"Allow",
										"Access-Control-Allow-Origin",
										"Access-Control-Allow-Credentials",
										"Access-Control-Expose-Headers",
										"Access-Control-Allow-Methods",
										"Access-Control-Allow-Headers",
										"Access-Control-Max-Age",
										"Upgrade",
										"Sec-WebSocket-Version",
										"Sec-WebSocket-Accept",
										"Sec-WebSocket-Protocol",
										"Sec-WebSocket-Extensions",
										"X-Frame-Options",
										"Content-Security-Policy",
										"Changefeed-Position",
										"X-Accel-Buffering",
										"WWW-Authenticate",
										"Server",
										"Date",
										"Transfer-Encoding",
										NULL};
	const char *end = memmem(text, length, "\r\n\r\n", 4);
	const char *line;
	char origin[256] = "";
	bool credentials = false;
	bool json = false;
	long body = -1;

	if (length == 0)
		return;
	if (length < 13 || memcmp(text, "HTTP/1.", 7) != 0 || end == NULL)
		Fail("an answer is not HTTP: %.*s", (int) (length < 200 ? length : 200), text);
	for (line = memmem(text, length, "\r\n", 2) + 2; line < end;
		 line = memmem(line, length, "\r\n", 2) + 2)
	{
		const char *stop = memmem(line, (size_t) (end + 2 - line), "\r\n", 2);
		const char *colon = memchr(line, ':', (size_t) (stop - line));

		if (memchr(line, '\n', (size_t) (stop - line)) != NULL ||
			memchr(line, '\r', (size_t) (stop - line)) != NULL ||
			memchr(line, '\0', (size_t) (stop - line)) != NULL)
			Fail("a header has a line end in it: %.*s", (int) (stop - line), line);
		if (colon == NULL || !IsOneOf(line, (size_t) (colon - line), known))
			Fail("unknown header: %.*s", (int) (stop - line), line);
		if (strncasecmp(line, "Access-Control-Allow-Origin: ", 29) == 0)
			snprintf(origin, sizeof(origin), "%.*s", (int) (stop - line - 29), line + 29);
		if (strncasecmp(line, "Access-Control-Allow-Credentials: true", 38) == 0)
			credentials = true;
		if (strncasecmp(line, "Content-Type: application/json", 30) == 0)
			json = true;
		if (strncasecmp(line, "Content-Length: ", 16) == 0)
			body = strtol(line + 16, NULL, 10);
	}
	if (credentials && strcasecmp(origin, ALLOWED_ORIGIN) != 0)
	{
		const char *host = strstr(origin, "://");
		size_t n;
		unsigned char binary[16];
		char copy[64];

		/* Its own page: of a name that is this server's, or of an address. */
		host = host != NULL ? host + 3 : "";
		n = host[0] == '[' ? strcspn(host, "]") : strcspn(host, ":");
		snprintf(copy, sizeof(copy), "%.*s", (int) n, host + (host[0] == '[' ? 1 : 0));
		if (host[0] == '[')
			copy[strcspn(copy, "]")] = '\0';
		if (strcasecmp(copy, "localhost") != 0 && strcasecmp(copy, ALLOWED_HOST) != 0 &&
			inet_pton(AF_INET, copy, binary) != 1 && inet_pton(AF_INET6, copy, binary) != 1)
			Fail("a page of \"%s\" may read answers with cookies", origin);
	}
	end += 4;
	if (body >= 0 && (size_t) body < length - (size_t) (end - text))
		Fail("there is more than one answer");
	if (json && body > 0 && (size_t) body == length - (size_t) (end - text) &&
		!IsJson(end, (size_t) body))
		Fail("the answer's body is not JSON: %s", end);
}
