/*-------------------------------------------------------------------------
 *
 * test_http.c
 *		Tests of start-up, static pages and the checks before an upgrade.
 *
 *-------------------------------------------------------------------------
 */
#include <sys/socket.h>
#include <unistd.h>

#include "tests.h"

bool
StatusIs(const char *answer, int status)
{
	char line[32];

	snprintf(line, sizeof(line), "HTTP/1.1 %d ", status);
	if (strncmp(answer, line, strlen(line)) == 0)
		return true;
	Note("the answer was: %.200s", answer);
	return false;
}

bool
Contains(const char *answer, const char *text)
{
	if (strstr(answer, text) != NULL)
		return true;
	Note("no \"%s\" in: %.1500s", text, answer);
	return false;
}

/* A field of /proc/PID/status; -1 if there is none. */
long
StatusField(const char *name)
{
	char path[64];
	char line[256];
	long value = -1;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/status", (int) worker.pid);
	file = fopen(path, "r");
	if (file == NULL)
		return -1;
	while (fgets(line, sizeof(line), file) != NULL)
	{
		if (strncmp(line, name, strlen(name)) == 0)
			value = strtol(line + strlen(name), NULL, 10);
	}
	fclose(file);
	return value;
}

/* Hundredths of a second of processor time that the gateway takes in `ms`. */
long
SpentTicks(uint64_t ms)
{
	char path[64];
	uint64_t end = NowMs() + ms;
	long ticks[2] = {0, 0};
	int i;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int) worker.pid);
	for (i = 0; i < 2; i++)
	{
		FILE *file = fopen(path, "r");
		long user = 0;
		long kernel = 0;

		if (file == NULL || fscanf(file,
								   "%*d %*s %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u "
								   "%ld %ld",
								   &user, &kernel) != 2)
			Die("could not read %s", path);
		fclose(file);
		ticks[i] = user + kernel;
		while (i == 0 && NowMs() < end)
			Step(50);
	}
	return ticks[1] - ticks[0];
}

void
TestStart(void)
{
	Settings settings = DefaultSettings();
	Kept *hello;
	WireReader r;
	Client *client;
	int status;

	StartGateway(&settings);
	hello = Take(LINK_HELLO, 0);
	r = WireReaderInit(hello->data, hello->length);
	Is(WireGetU32(&r), LINK_VERSION, "hello has the version of the link");
	Is(WireGetU32(&r), (uint64_t) worker.pid, "and the process");
	Ok(WireGetBytes(&r).length > 0 && WireAtEnd(&r), "and the version of libwebsockets");

	client = OpenSocket();
	if (getenv("PG_CHANGEFEED_NO_SANDBOX") == NULL)
	{
		Is((uint64_t) StatusField("Seccomp:"), 2, "a seccomp filter is on");
		Is((uint64_t) StatusField("NoNewPrivs:"), 1, "no_new_privs is on");
	}
	Disconnect(client);
	Take(LINK_CLOSED, 0);

	/* With nobody connected nothing may wake it. */
	{
		long before;
		long after;
		uint64_t end;
		int turns = 0;

		/* The wheel's last tick may be on its way. */
		do
		{
			before = StatusField("voluntary_ctxt_switches:");
			end = NowMs() + 1500;
			while (NowMs() < end)
				Step(100);
			after = StatusField("voluntary_ctxt_switches:");
		} while (after != before && turns++ < 3);
		Ok(after == before, "an idle gateway sleeps");
	}

	status = StopGateway();
	Is((uint64_t) status, 0, "it ends with 0 when the link ends");
}

void
TestHttp(void)
{
	Settings settings = DefaultSettings();
	static const char page[] = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
	static char large[600000];
	char both[200];
	const char *answer;
	Client *client;
	size_t length;

	settings.hosts[0] = "feeds.example.com";
	StartGateway(&settings);
	memset(large, 'x', sizeof(large));
	SendAsset("/", "text/html; charset=utf-8", "\"v1\"", "<p>console</p>", 14);
	SendAsset("/app.js", "text/javascript", "\"a1\"", "let a;", 6);
	SendAsset("/large", "text/plain", "", large, sizeof(large));
	SendPlain(LINK_STATS_ASK, NULL, 0);
	Take(LINK_STATS, 0);

	answer = Request("GET / HTTP/1.1\r\nHost: localhost:%d\r\n", worker.port);
	Ok(StatusIs(answer, 200), "a page is served");
	Ok(Contains(answer, "\r\n\r\n<p>console</p>"), "with its body");
	Ok(Contains(answer, "Content-Type: text/html; charset=utf-8\r\n"), "with its type");
	Ok(Contains(answer, "ETag: \"v1\"\r\n"), "with its ETag");
	Ok(Contains(answer, "Cache-Control: no-cache\r\n") &&
		   Contains(answer, "X-Content-Type-Options: nosniff\r\n") &&
		   Contains(answer, "Content-Security-Policy: default-src 'self'; "
							"connect-src 'self' ws: wss:;"),
	   "with the headers that protect it");

	answer = Request("GET / HTTP/1.1\r\nHost: localhost\r\n"
					 "If-None-Match: \"v0\", W/\"v1\"\r\n");
	Ok(StatusIs(answer, 304), "If-None-Match with the ETag gives 304");
	Ok(strstr(answer, "console") == NULL && Contains(answer, "ETag: \"v1\""), "without a body");
	answer = Request("GET / HTTP/1.1\r\nHost: localhost\r\n"
					 "If-None-Match: \"v10\"\r\n");
	Ok(StatusIs(answer, 200), "another ETag does not");

	answer = Request("HEAD / HTTP/1.1\r\nHost: localhost\r\n");
	Ok(StatusIs(answer, 200) && Contains(answer, "Content-Length: 14\r\n") &&
		   strstr(answer, "console") == NULL,
	   "HEAD gives the headers only");

	answer = Request("GET /app.js HTTP/1.1\r\nHost: 127.0.0.1\r\n");
	Ok(StatusIs(answer, 200), "another file as well");

	answer = Request("GET /large HTTP/1.1\r\nHost: localhost\r\n");
	length = strlen(answer);
	Ok(StatusIs(answer, 200) && length > sizeof(large) &&
		   strspn(answer + length - sizeof(large), "x") == sizeof(large),
	   "a large page comes whole");

	answer = Request("GET /nothing HTTP/1.1\r\nHost: localhost\r\n");
	Ok(StatusIs(answer, 404) && Contains(answer, "{\"type\":\"error\",\"code\":\"not_found\""),
	   "anything else is 404, as JSON");
	answer = Request("GET /v1/socket HTTP/1.1\r\nHost: localhost\r\n");
	Ok(StatusIs(answer, 426), "the socket's path without an upgrade is 426");

	answer = Request("POST / HTTP/1.1\r\nHost: localhost\r\n"
					 "Content-Length: 5\r\n");
	Ok(StatusIs(answer, 405) && Contains(answer, "Allow: GET, HEAD\r\n") &&
		   Contains(answer, "Connection: close\r\n"),
	   "POST is 405 and closes");
	answer = Request("DELETE / HTTP/1.1\r\nHost: localhost\r\n");
	Ok(StatusIs(answer, 405), "DELETE is 405");
	answer = Request("OPTIONS / HTTP/1.1\r\nHost: localhost\r\n");
	Ok(StatusIs(answer, 405), "OPTIONS is 405");
	answer = Request("GET / HTTP/1.1\r\nHost: localhost\r\n"
					 "Content-Length: 5\r\n");
	Ok(StatusIs(answer, 400), "GET with a body is refused");
	answer = Request("GET / HTTP/1.1\r\nHost: localhost\r\n"
					 "Transfer-Encoding: chunked\r\n");
	Ok(StatusIs(answer, 400), "GET with a chunked body is refused");

	answer = Request("GET / HTTP/1.1\r\nHost: evil.example.com\r\n");
	Ok(StatusIs(answer, 403) && Contains(answer, "evil.example.com") &&
		   Contains(answer, "changefeed.allowed_hosts"),
	   "an unknown host is refused, with the setting to change");
	answer = Request("GET / HTTP/1.1\r\nHost: Feeds.Example.com:80\r\n");
	Ok(StatusIs(answer, 200), "a listed host is served");
	answer = Request("GET / HTTP/1.1\r\nHost: [::1]:8040\r\n");
	Ok(StatusIs(answer, 200), "[::1] is a name of this machine");
	answer = Request("GET / HTTP/1.1\r\nHost: localhost.evil.com\r\n");
	Ok(StatusIs(answer, 403), "a name that begins like ours is not ours");
	answer = Request("GET / HTTP/1.1\r\n");
	Ok(StatusIs(answer, 400), "a request without a host is refused");

	client = Connect();
	snprintf(both, sizeof(both), "%s%s", page, page);
	SendRaw(client, both, strlen(both));
	Ok(StatusIs(ReadHttp(client), 200), "a connection serves a request");
	IsText(ReadHttp(client), "", "and no second one");
	Disconnect(client);

	/* One that asks, sends its end and does not read. */
	client = ConnectSmall(4096);
	snprintf(both, sizeof(both), "GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n%s", page);
	SendRaw(client, both, strlen(both));
	shutdown(client->fd, SHUT_WR);
	Ok(SpentTicks(1000) < 30, "a client that does not read costs no time");
	Disconnect(client);

	SendAsset("/", "text/html", "\"v2\"", "new", 3);
	SendPlain(LINK_STATS_ASK, NULL, 0);
	Take(LINK_STATS, 0);
	answer = Request("GET / HTTP/1.1\r\nHost: localhost\r\n"
					 "If-None-Match: \"v1\"\r\n");
	Ok(StatusIs(answer, 200) && Contains(answer, "\r\n\r\nnew"), "a page can be replaced");
	Is((uint64_t) StopGateway(), 0, "it ends with 0");
}

/* Expects an upgrade with these headers, and the token that is told. */
static void
ExpectToken(const char *path, const char *headers, const char *token, const char *what)
{
	Client *client = Connect();
	const char *answer = Handshake(client, path, headers);
	Kept *open;
	WireReader r;
	WireBytes peer;
	WireBytes got;

	Ok(StatusIs(answer, 101), "%s: upgraded", what);
	Ok(Contains(answer, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "%s: accepted", what);
	open = Take(LINK_OPEN, 0);
	r = WireReaderInit(open->data, open->length);
	WireGetU32(&r);
	Is(WireGetU8(&r), LINK_TRANSPORT_WEBSOCKET, "%s: is a WebSocket", what);
	peer = WireGetBytes(&r);
	got = WireGetBytes(&r);
	Ok(WireAtEnd(&r) && peer.length == 9 && memcmp(peer.data, "127.0.0.1", 9) == 0,
	   "%s: the peer is told", what);
	Ok(got.length == strlen(token) && memcmp(got.data, token, got.length) == 0,
	   "%s: the token is told", what);
	Disconnect(client);
}

static void
ExpectRefusal(const char *path, const char *headers, int status, const char *text, const char *what)
{
	Client *client = Connect();
	const char *answer = Handshake(client, path, headers);

	Ok(StatusIs(answer, status) && Contains(answer, text), "%s", what);
	Disconnect(client);
}

void
TestUpgrade(void)
{
	Settings settings = DefaultSettings();
	char same[160];
	Client *client;
	const char *answer;

	settings.origins[0] = "https://App.example.com";
	StartGateway(&settings);

	ExpectToken("/v1/socket", NULL, "", "no token");
	ExpectToken("/v1/socket", "Authorization: Bearer abc.DEF-_123\r\n", "abc.DEF-_123", "bearer");
	ExpectToken("/v1/socket", "authorization: bearer x\r\n", "x", "bearer in lower case");
	ExpectToken("/v1/socket", "Authorization: Basic abc\r\n", "", "another scheme");
	ExpectToken("/v1/socket?token=abc%2Edef%3D&x=1", NULL, "abc.def=", "token in the address");
	ExpectToken("/v1/socket?x=1&token=q", "Authorization: Bearer h\r\n", "h",
				"the header goes first");
	ExpectToken("/v1/socket", "Origin: https://app.EXAMPLE.com\r\n", "", "a listed origin");
	snprintf(same, sizeof(same), "Origin: http://127.0.0.1:%d\r\n", worker.port);
	ExpectToken("/v1/socket", same, "", "the same origin");
	snprintf(same, sizeof(same), "Host: localhost:%d\r\nOrigin: http://LOCALHOST:%d\r\n",
			 worker.port, worker.port);
	ExpectToken("/v1/socket", same, "", "the same origin, in capitals");

	client = Connect();
	answer = Handshake(client, "/v1/socket", "Sec-WebSocket-Protocol: other, changefeed.v1\r\n");
	Ok(StatusIs(answer, 101) && Contains(answer, "Sec-WebSocket-Protocol: changefeed.v1\r\n"),
	   "the subprotocol is chosen from an offer");
	Disconnect(client);
	client = Connect();
	answer = Handshake(client, "/v1/socket", NULL);
	Ok(StatusIs(answer, 101) && strstr(answer, "Sec-WebSocket-Protocol") == NULL,
	   "no subprotocol is named when none was offered");
	Disconnect(client);
	client = Connect();
	answer = Handshake(client, "/v1/socket",
					   "Sec-WebSocket-Extensions: "
					   "permessage-deflate; client_max_window_bits\r\n");
	Ok(StatusIs(answer, 101) && strstr(answer, "Sec-WebSocket-Extensions") == NULL,
	   "compression is declined");
	Disconnect(client);

	ExpectRefusal("/v1/socket", "Sec-WebSocket-Protocol: other\r\n", 400, "changefeed.v1",
				  "an unknown subprotocol is refused");
	ExpectRefusal("/v1/socket", "Origin: https://evil.example.com\r\n", 403,
				  "changefeed.allowed_origins", "a foreign origin is refused");
	ExpectRefusal("/v1/socket", "Origin: https://evil.example.com\r\n", 403,
				  "https://evil.example.com", "by its name");
	ExpectRefusal("/v1/socket", "Origin: null\r\n", 403, "forbidden_origin",
				  "the origin \"null\" is refused");
	ExpectRefusal("/v1/socket",
				  "Host: evil.example.com\r\n"
				  "Origin: http://evil.example.com\r\n",
				  403, "forbidden_host", "a foreign host is refused, even with its own origin");
	ExpectRefusal("/v1/socket",
				  "Sec-WebSocket-Extensions: permessage-deflate, "
				  "x; y=0123456789012345678901234567890123456789012345678901234567890123456789, "
				  "x; y=0123456789012345678901234567890123456789012345678901234567890123456789, "
				  "x; y=0123456789012345678901234567890123456789012345678901234567890123456789, "
				  "x; y=0123456789012345678901234567890123456789012345678901234567890123456789\r\n",
				  400, "permessage-deflate", "extensions that lws cannot take are refused");
	snprintf(same, sizeof(same), "Host: localhost:%d\r\nOrigin: x; y://localhost:%d\r\n",
			 worker.port, worker.port);
	ExpectRefusal("/v1/socket", same, 403, "forbidden_origin",
				  "an origin that no page of ours has is refused");
	ExpectRefusal("/v1/other", NULL, 404, "/v1/socket", "another path is refused");
	ExpectRefusal("/", NULL, 404, "not_found", "the console's path is refused");

	answer = Request("GET /v1/socket HTTP/1.1\r\nHost: localhost\r\n"
					 "Upgrade: websocket\r\nConnection: Upgrade\r\n"
					 "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
					 "Sec-WebSocket-Version: 8\r\n");
	Ok(StatusIs(answer, 426) && Contains(answer, "Sec-WebSocket-Version: 13"),
	   "another version is refused");
	answer = Request("GET /v1/socket HTTP/1.1\r\nHost: localhost\r\n"
					 "Upgrade: websocket\r\nConnection: Upgrade\r\n"
					 "Sec-WebSocket-Version: 13\r\n");
	Ok(StatusIs(answer, 400), "a handshake without a key is refused");
	answer = Request("GET /v1/socket HTTP/1.1\r\nHost: localhost\r\n"
					 "Upgrade: websocket\r\nConnection: keep-alive\r\n"
					 "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
					 "Sec-WebSocket-Version: 13\r\n");
	Ok(StatusIs(answer, 400), "one without Connection: Upgrade too");
	answer = Request("POST /v1/socket HTTP/1.1\r\nHost: localhost\r\n"
					 "Upgrade: websocket\r\nConnection: Upgrade\r\n"
					 "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
					 "Sec-WebSocket-Version: 13\r\n");
	Ok(strncmp(answer, "HTTP/1.1 4", 10) == 0, "one by POST too");

	settings.origins[0] = "*";
	settings.hosts[0] = "*";
	SendConfig(&settings);
	SendPlain(LINK_STATS_ASK, NULL, 0);
	{
		Kept *kept = Take(LINK_STATS, 0);
		WireReader r = WireReaderInit(kept->data, kept->length);
		uint64_t refused;
		uint64_t sum = 0;
		uint32_t n;

		WireTake(&r, 48);
		refused = WireGetU64(&r);
		WireTake(&r, 16 + 8 * LINK_LAG_BUCKETS);
		n = WireGetU32(&r);
		Ok(n >= 3 && n < 12, "refusals have codes: %u", n);
		while (n-- > 0)
		{
			WireGetBytes(&r);
			sum += WireGetU64(&r);
		}
		Is(WireGetU64(&r), 0, "nobody was throttled");
		Ok(WireAtEnd(&r), "and that is all");
		Is(sum, refused, "each is counted with its code");
	}
	ExpectToken("/v1/socket",
				"Host: any.example.com\r\n"
				"Origin: https://evil.example.com\r\n",
				"", "with * any host and origin");
	Is((uint64_t) StopGateway(), 0, "it ends with 0");
}

/* Sends something that is not worth an answer; the gateway must live on. */
static void
SendOddity(const char *text, size_t length, bool wait)
{
	Client *client = Connect();

	TrySendRaw(client, text, length);
	if (wait)
		ReadHttp(client);
	Disconnect(client);
}

void
TestOddities(void)
{
	static const char *const oddities[] = {
		"CONNECT example.com:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: foo\r\n"
		"Connection: Upgrade\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\n"
		"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
		"\r\n\r\n\r\n\r\n",
		"garbage\r\n\r\n",
		"GET /%zz HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"GET /\x01\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: localhost\r\nGET: x\r\n\r\n",
		"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello \r\n\r\n",
	};
	Settings settings = DefaultSettings();
	char text[40000];
	char frame[64];
	size_t length;
	size_t i;
	Client *client;
	Kept *kept;
	const char *answer;

	StartGateway(&settings);
	for (i = 0; i < sizeof(oddities) / sizeof(oddities[0]); i++)
		SendOddity(oddities[i], strlen(oddities[i]), i < 4);
	/* A NUL behind a request: libwebsockets answers that itself. */
	SendOddity("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 36, true);
	SendOddity("GET / HT", 8, false);

	/* Headers above the limit. */
	strcpy(text, "GET / HTTP/1.1\r\nHost: localhost\r\nX: ");
	memset(text + strlen(text), 'x', 30000);
	text[30020] = '\0';
	strcat(text, "\r\n\r\n");
	SendOddity(text, strlen(text), true);

	/* A handshake and a message in one piece. */
	client = Connect();
	snprintf(text, sizeof(text),
			 "GET /v1/socket HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
			 "Connection: keep-alive, Upgrade\r\n"
			 "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
			 "Sec-WebSocket-Version: 13\r\n\r\n");
	length = BuildFrame(frame, 0x81, "early", 5);
	i = strlen(text);
	memcpy(text + i, frame, length);
	SendRaw(client, text, i + length);
	answer = ReadHttp(client);
	Ok(strncmp(answer, "HTTP/1.1 101", 12) == 0,
	   "a handshake with a message behind it is accepted");
	kept = Take(LINK_MESSAGE, 0);
	IsText(kept->data + 4, "early", "and the message is heard");
	Disconnect(client);

	/* The same, one byte at a time. */
	client = Connect();
	for (length = 0; length < i; length++)
		SendRaw(client, text + length, 1);
	Ok(strncmp(ReadHttp(client), "HTTP/1.1 101", 12) == 0,
	   "a handshake in single bytes is accepted");
	Disconnect(client);

	client = OpenSocket();
	Ok(client != NULL, "the gateway has survived all oddities");
	Disconnect(client);
	Is((uint64_t) StopGateway(), 0, "it ends with 0");
}

/* The same numbers in every run. */
static uint32_t
Random(uint32_t below)
{
	static uint64_t state = 42;

	state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t) ((state >> 33) % below);
}

/*
 * Requests and frames with errors in them, cut and put together at random.
 * Whatever comes back, the gateway has to live.
 */
void
TestNoise(void)
{
	static const char *const pieces[] = {
		"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"HEAD /x HTTP/1.0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n0123",
		"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
		"GET /v1/socket HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
		"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
		"Sec-WebSocket-Version: 13\r\n\r\n",
		"GET /v1/socket?token=%41%&x HTTP/1.1\r\nHost: localhost\r\n"
		"Upgrade: websocket\r\nConnection: Upgrade\r\n"
		"Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: foo\r\n\r\n",
		"\x81\x85\x01\x02\x03\x04iggof",
		"\x01\x83\x01\x02\x03\x04iii",
		"\x80\x80\x01\x02\x03\x04",
		"\x89\x84\x01\x02\x03\x04ping",
		"\x88\x82\x01\x02\x03\x04\x02\xea",
		"\x81\xfe\xff\xff\x01\x02\x03\x04 too large",
		"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x02\x03\x04",
		"\x82\x81\x01\x02\x03\x04"
		"b",
	};
	enum
	{
		STREAMS = 3000,
		LARGE = 300000
	};
	Settings settings = DefaultSettings();
	Client *client;
	Client *witness;
	char *large = malloc(LARGE);
	char text[4096];
	int i;

	StartGateway(&settings);
	memset(large, 'l', LARGE);
	SendAsset("/large", "text/plain", "\"l\"", large, LARGE);
	witness = OpenSocket();
	for (i = 0; i < STREAMS && !worker.link_ended; i++)
	{
		uint32_t n = Random(6) + 1;
		size_t length = 0;
		uint32_t j;

		/* Half of them are WebSockets first. */
		if (Random(2) == 0)
		{
			length = strlen(pieces[5]);
			memcpy(text, pieces[5], length);
		}
		for (j = 0; j < n; j++)
		{
			const char *piece = pieces[Random(sizeof(pieces) / sizeof(pieces[0]))];
			size_t m = strlen(piece);

			memcpy(text + length, piece, m);
			length += m;
		}
		if (Random(3) == 0)
			length = Random((uint32_t) length) + 1;
		for (j = Random(4); j > 0; j--)
			text[Random((uint32_t) length)] = (char) Random(256);

		client = Connect();
		if (Random(2) == 0)
			TrySendRaw(client, text, length);
		else
		{
			size_t cut = Random((uint32_t) length);

			TrySendRaw(client, text, cut);
			Step(0);
			TrySendRaw(client, text + cut, length - cut);
		}
		if (Random(3) == 0)
		{
			/* Wait for an answer of any kind, if there is one. */
			uint64_t end = NowMs() + 3;

			while (NowMs() < end && !HasData(client))
				Step(1);
		}
		Disconnect(client);
		if (i % 50 == 0)
			Step(0);
	}
	Ok(!worker.link_ended, "%d streams of noise do no harm", STREAMS);
	SendMessage(witness, "witness");
	IsText(Take(LINK_MESSAGE, witness->conn)->data + 4, "witness",
		   "a connection beside them goes on");
	Disconnect(witness);
	free(large);
	Is((uint64_t) StopGateway(), 0, "it ends with 0");
}

void
TestLimit(void)
{
	Settings settings = DefaultSettings();
	Client *clients[3];
	Client *client;
	const char *answer;
	int i;

	settings.max_connections = 3;
	StartGateway(&settings);
	for (i = 0; i < 3; i++)
		clients[i] = OpenSocket();
	client = Connect();
	answer = Handshake(client, "/v1/socket", NULL);
	Ok(StatusIs(answer, 503) && Contains(answer, "Retry-After: ") &&
		   Contains(answer, "changefeed.max_connections"),
	   "above max_connections it is 503");
	Disconnect(client);
	answer = Request("GET / HTTP/1.1\r\nHost: localhost\r\n");
	Ok(StatusIs(answer, 404), "HTTP is still served");
	Disconnect(clients[0]);
	Take(LINK_CLOSED, 0);
	clients[0] = OpenSocket();
	Ok(clients[0] != NULL, "when one has left, one may come");
	settings.max_connections = 4;
	SendConfig(&settings);
	SendPlain(LINK_STATS_ASK, NULL, 0);
	Take(LINK_STATS, 0);
	client = OpenSocket();
	Ok(client != NULL, "the limit can be raised");
	Disconnect(client);
	for (i = 0; i < 3; i++)
		Disconnect(clients[i]);
	Is((uint64_t) StopGateway(), 0, "it ends with 0");
}
