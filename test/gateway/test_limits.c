/*-------------------------------------------------------------------------
 *
 * test_limits.c
 *		Tests of address lists, proxies, and limits by address and in time.
 *
 *-------------------------------------------------------------------------
 */
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests.h"

static void
Say(Client *client, const char *text)
{
	SendRaw(client, text, strlen(text));
}

/* Sends the settings, and waits until the gateway has them. */
static void
Configure(const Settings *settings)
{
	SendConfig(settings);
	SendPlain(LINK_STATS_ASK, NULL, 0);
	Take(LINK_STATS, 0);
}

/* The address that the feed worker is told of a handshake with these headers; the client stays. */
static const char *
PeerOf(Client *client, const char *headers)
{
	static char text[64];
	const char *answer = Handshake(client, "/v1/socket", headers);
	WireReader r;
	WireBytes peer;
	Kept *kept;

	if (strncmp(answer, "HTTP/1.1 101", 12) != 0)
	{
		snprintf(text, sizeof(text), "%.12s", answer);
		return text;
	}
	kept = Take(LINK_OPEN, 0);
	r = WireReaderInit(kept->data, kept->length);
	client->conn = WireGetU32(&r);
	WireGetU8(&r);
	peer = WireGetBytes(&r);
	snprintf(text, sizeof(text), "%.*s", (int) peer.length, peer.data);
	return text;
}

static void
PeerIs(const char *headers, const char *expected)
{
	Client *client = Connect();

	IsText(PeerOf(client, headers), expected, "%.*s", (int) strcspn(headers, "\r"), headers);
	Disconnect(client);
}

/* The status of a handshake with these headers, 0: dropped; and what is left of it is closed. */
static int
StatusOf(const char *headers, const char **answer)
{
	static char kept[4096];
	Client *client = Connect();
	const char *text = Handshake(client, "/v1/socket", headers);
	int status = 0;

	snprintf(kept, sizeof(kept), "%s", text);
	sscanf(kept, "HTTP/1.1 %d", &status);
	if (answer != NULL)
		*answer = kept;
	Disconnect(client);
	if (status == 101)
	{
		Take(LINK_OPEN, 0);
		Take(LINK_CLOSED, 0);
	}
	return status;
}

void
TestProxies(void)
{
	Settings settings = DefaultSettings();
	const char *answer;
	char many[3000] = "X-Forwarded-For: 192.0.2.9";
	int i;

	StartGateway(&settings);
	Configure(&settings);
	PeerIs("X-Forwarded-For: 192.0.2.1\r\n", "127.0.0.1");
	PeerIs("Forwarded: for=192.0.2.1\r\n", "127.0.0.1");

	settings.proxies[0] = "127.0.0.0/8";
	settings.proxies[1] = "10.0.0.0/8";
	settings.proxies[2] = "2001:db8:1::/48";
	Configure(&settings);
	PeerIs("", "127.0.0.1");
	PeerIs("X-Forwarded-For: 192.0.2.1\r\n", "192.0.2.1");
	PeerIs("X-Forwarded-For: 198.51.100.7, 192.0.2.1\r\n", "192.0.2.1");
	PeerIs("X-Forwarded-For: 192.0.2.1, 10.1.2.3, 2001:db8:1::5\r\n", "192.0.2.1");
	PeerIs("X-Forwarded-For: 192.0.2.1:4711\r\n", "192.0.2.1");
	PeerIs("X-Forwarded-For: [2001:db8:2::1]:4711\r\n", "2001:db8:2::1");
	PeerIs("X-Forwarded-For: 2001:DB8:2::1\r\n", "2001:db8:2::1");
	PeerIs("X-Forwarded-For: ::ffff:192.0.2.1\r\n", "192.0.2.1");
	PeerIs("X-Forwarded-For: 198.51.100.7\r\nX-Forwarded-For: 192.0.2.1\r\n", "192.0.2.1");
	PeerIs("X-Forwarded-For: 10.1.2.3, 10.1.2.4\r\n", "10.1.2.3");
	PeerIs("X-Forwarded-For: rubbish, 192.0.2.1\r\n", "192.0.2.1");
	PeerIs("X-Forwarded-For: unknown\r\n", "127.0.0.1");
	PeerIs("X-Forwarded-For:  ,, 192.0.2.1 , \r\n", "192.0.2.1");
	PeerIs("Forwarded: for=192.0.2.1\r\n", "127.0.0.1");
	for (i = 0; i < 200; i++)
		strcat(many, ", 10.0.0.1");
	strcat(many, "\r\n");
	PeerIs(many, "192.0.2.9");

	Is((uint64_t) StatusOf("X-Forwarded-For: rubbish\r\n", &answer), 400, "what is no address");
	Ok(Contains(answer, "\"code\":\"bad_request\"") &&
		   Contains(answer, "changefeed.forwarded_header"),
	   "is refused, and it is told where to look");
	Is((uint64_t) StatusOf("X-Forwarded-For: 192.0.2.1, 192.0.2.256\r\n", NULL), 400,
	   "nor is that one");
	Is((uint64_t) StatusOf("X-Forwarded-For: [192.0.2.1\r\n", NULL), 400, "nor this");

	settings.forwarded = true;
	Configure(&settings);
	PeerIs("X-Forwarded-For: 192.0.2.1\r\n", "127.0.0.1");
	PeerIs("Forwarded: for=192.0.2.1\r\n", "192.0.2.1");
	PeerIs("Forwarded: for=198.51.100.7, proto=http;For=\"[2001:db8:2::1]:80\";by=10.0.0.1\r\n",
		   "2001:db8:2::1");
	PeerIs("Forwarded: for=192.0.2.1;proto=https, for=10.1.1.1\r\n", "192.0.2.1");
	PeerIs("Forwarded: for=_hidden\r\n", "127.0.0.1");
	PeerIs("Forwarded: proto=https\r\n", "127.0.0.1");
	Is((uint64_t) StatusOf("Forwarded: for=\"192.0.2\"\r\n", NULL), 400,
	   "a Forwarded that names no address is refused");

	Is((uint64_t) StopGateway(), 0, "the gateway ends in order");
}

void
TestAddresses(void)
{
	Settings settings = DefaultSettings();
	Client *clients[3];
	Client *half;
	const char *answer;
	Frame frame;
	int i;

	settings.denied[0] = "127.0.0.0/8";
	StartGateway(&settings);
	Configure(&settings);
	Is((uint64_t) StatusOf("", NULL), 0, "a denied address is dropped without a word");

	/* The proxy is not denied, whoever is. */
	settings.denied[0] = "192.0.2.0/24";
	settings.denied[1] = "2001:db8::/32";
	settings.proxies[0] = "127.0.0.1";
	Configure(&settings);
	Is((uint64_t) StatusOf("X-Forwarded-For: 192.0.2.255\r\n", &answer), 403,
	   "behind a proxy it is told");
	Ok(Contains(answer, "\"code\":\"address_not_allowed\"") &&
		   Contains(answer, "changefeed.denied_addresses"),
	   "with the setting's name");
	Is((uint64_t) StatusOf("X-Forwarded-For: 192.0.3.0\r\n", NULL), 101, "its neighbour comes in");
	Is((uint64_t) StatusOf("X-Forwarded-For: 2001:db8:1::1\r\n", NULL), 403, "IPv6 is denied");
	Is((uint64_t) StatusOf("X-Forwarded-For: 2001:db9::1\r\n", NULL), 101, "or not");
	Ok(StatusIs(Request("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Forwarded-For: 192.0.2.1\r\n"),
				403),
	   "a page is denied, too");

	settings.allowed[0] = "198.51.100.0/24";
	settings.allowed[1] = "::/0";
	settings.denied[1] = NULL;
	Configure(&settings);
	Is((uint64_t) StatusOf("X-Forwarded-For: 198.51.100.1\r\n", NULL), 101, "who is allowed");
	Is((uint64_t) StatusOf("X-Forwarded-For: 2001:db8::1\r\n", NULL), 101, "comes in");
	Is((uint64_t) StatusOf("X-Forwarded-For: 203.0.113.1\r\n", NULL), 403, "others do not");
	Is((uint64_t) StatusOf("", NULL), 403, "nor does the proxy itself");

	/* Lists that come later close what is there. */
	settings.allowed[0] = NULL;
	settings.denied[0] = NULL;
	Configure(&settings);
	for (i = 0; i < 3; i++)
	{
		char header[64];

		snprintf(header, sizeof(header), "X-Forwarded-For: 192.0.2.%d\r\n", i + 1);
		clients[i] = Connect();
		PeerOf(clients[i], header);
		SendIdentity(clients[i]->conn, "abcdefgh");
	}
	half = Connect();
	Say(half, "GET / HT");
	settings.denied[0] = "192.0.2.2";
	Configure(&settings);
	frame = ReadFrame(clients[1]);
	Ok(frame.opcode == OPCODE_TEXT && Contains(frame.text, "\"code\":\"42501\"") &&
		   Contains(frame.text, "changefeed.denied_addresses"),
	   "who is denied from now on is told");
	frame = ReadFrame(clients[1]);
	Is(frame.close_code, 4006, "and closed");
	Is((uint64_t) (unsigned char) Take(LINK_CLOSED, clients[1]->conn)->data[4], LINK_CAUSE_ADDRESS,
	   "for that reason");
	SendText(clients[0]->conn, "{}");
	frame = ReadFrame(clients[0]);
	Is(frame.opcode, OPCODE_TEXT, "others are not");
	SendText(clients[2]->conn, "{}");
	frame = ReadFrame(clients[2]);
	Is(frame.opcode, OPCODE_TEXT, "nor this one");
	Say(half, "TP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
	Ok(StatusIs(ReadHttp(half), 404), "nor a request of which it is not known yet whose it is");

	for (i = 0; i < 3; i++)
		Disconnect(clients[i]);
	Disconnect(half);
	Is((uint64_t) StopGateway(), 0, "the gateway ends in order");
}

void
TestPerAddress(void)
{
	Settings settings = DefaultSettings();
	Client *clients[60];
	const char *answer;
	int n = 0;
	int dropped = 0;
	int i;

	settings.max_connections_per_address = 5;
	settings.proxies[0] = "127.0.0.1";
	StartGateway(&settings);
	Configure(&settings);
	for (n = 0; n < 5; n++)
	{
		clients[n] = Connect();
		PeerOf(clients[n], "X-Forwarded-For: 192.0.2.1\r\n");
		Ok(clients[n]->conn != 0, "connection %d of an address", n + 1);
	}
	Is((uint64_t) StatusOf("X-Forwarded-For: 192.0.2.1\r\n", &answer), 429, "the sixth");
	Ok(Contains(answer, "\"code\":\"too_many_connections_of_address\"") &&
		   Contains(answer, "Retry-After: 5") &&
		   Contains(answer, "changefeed.max_connections_per_address"),
	   "is refused, and told when and why");
	Is((uint64_t) StatusOf("X-Forwarded-For: 192.0.2.2\r\n", NULL), 101, "another address is not");
	Disconnect(clients[0]);
	Take(LINK_CLOSED, clients[0]->conn);
	Is((uint64_t) StatusOf("X-Forwarded-For: 192.0.2.1\r\n", NULL), 101, "nor the next one");

	/* A network of IPv6 is one address. */
	for (i = 0; i < 5; i++)
	{
		char header[64];

		snprintf(header, sizeof(header), "X-Forwarded-For: 2001:db8::%d:1\r\n", i);
		clients[n] = Connect();
		PeerOf(clients[n++], header);
	}
	Is((uint64_t) StatusOf("X-Forwarded-For: 2001:db8::ffff\r\n", NULL), 429,
	   "IPv6 addresses count by their first 64 bits");
	Is((uint64_t) StatusOf("X-Forwarded-For: 2001:db8:0:1::ffff\r\n", NULL), 101,
	   "the next network does not");
	for (i = 1; i < n; i++)
		Disconnect(clients[i]);
	Is((uint64_t) StopGateway(), 0, "the gateway ends in order");

	/* Handshakes that never end are connections of their address. */
	settings.proxies[0] = NULL;
	StartGateway(&settings);
	Configure(&settings);
	for (i = 0; i < 60; i++)
	{
		clients[i] = Connect();
		Say(clients[i], "GET /v1/socket HTTP/1.1\r\n");
	}
	for (i = 0; i < 60; i++)
	{
		struct pollfd p = {.fd = clients[i]->fd, .events = POLLIN};

		/* The dropped ones are the last: wait for them. */
		if (poll(&p, 1, i >= 37 ? LIMIT_MS : 0) > 0)
			dropped++;
	}
	Is((uint64_t) dropped, 23, "beyond the limit and 32 more they are dropped");
	for (i = 0; i < 60; i++)
		Disconnect(clients[i]);
	Is((uint64_t) StopGateway(), 0, "the gateway ends in order");
}

void
TestHandshakeRates(void)
{
	Settings settings = DefaultSettings();
	const char *answer;
	int ok = 0;
	int refused = 0;
	int i;

	/* Ten seconds' worth at once, then one a second. */
	settings.max_handshake_rate_per_address = 1;
	settings.proxies[0] = "127.0.0.1";
	StartGateway(&settings);
	Configure(&settings);
	for (i = 0; i < 10; i++)
		ok += StatusOf("X-Forwarded-For: 192.0.2.1\r\n", NULL) == 101;
	Is((uint64_t) ok, 10, "a burst of handshakes of an address");
	for (i = 0; i < 20; i++)
		refused += StatusOf("X-Forwarded-For: 192.0.2.1\r\n", &answer) == 429;
	Ok(refused >= 17, "then it is refused: %d", refused);
	while (StatusOf("X-Forwarded-For: 192.0.2.1\r\n", &answer) == 101)
		;
	Ok(Contains(answer, "\"code\":\"too_many_handshakes\"") &&
		   Contains(answer, "Retry-After: 1\r\n") &&
		   Contains(answer, "changefeed.max_handshake_rate_per_address"),
	   "and told when and why");
	Is((uint64_t) StatusOf("X-Forwarded-For: 192.0.2.2\r\n", NULL), 101, "others are not");
	poll(NULL, 0, 1100);
	Is((uint64_t) StatusOf("X-Forwarded-For: 192.0.2.1\r\n", NULL), 101, "a second later it is heard");

	/* All addresses together. */
	settings.max_handshake_rate_per_address = 0;
	settings.max_handshake_rate = 2;
	Configure(&settings);
	ok = refused = 0;
	for (i = 0; i < 60; i++)
	{
		char header[64];
		int status;

		snprintf(header, sizeof(header), "X-Forwarded-For: 198.51.100.%d\r\n", i);
		status = StatusOf(header, &answer);
		ok += status == 101;
		refused += status == 503;
	}
	Ok(ok >= 20 && ok < 30, "a burst of twenty of all addresses: %d", ok);
	Is((uint64_t) refused, 60 - (uint64_t) ok, "the rest is refused");
	Ok(Contains(answer, "Retry-After: 1\r\n") && Contains(answer, "changefeed.max_handshake_rate."),
	   "and told when and why");
	Is((uint64_t) StopGateway(), 0, "the gateway ends in order");
}

void
TestSlowRequests(void)
{
	static const char *const paths[] = {"/v1/say"};
	static const uint8_t methods[] = {LINK_METHOD_POST};
	Settings settings = DefaultSettings();
	Client *silent;
	Client *half;
	Client *drip;
	Client *body;
	uint64_t start;
	bool dropped = false;

	settings.handshake_timeout_ms = 1000;
	StartGateway(&settings);
	SendPaths(paths, methods, 1);
	Configure(&settings);
	start = NowMs();
	silent = Connect();
	half = Connect();
	Say(half, "GET /v1/socket HTTP/1.1\r\nHost: 127.0.0.1\r\nX-");
	drip = Connect();
	Say(drip, "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n");
	body = Connect();
	Say(body, "POST /v1/say HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
			"Content-Length: 100\r\n\r\n{\"a\":");
	while (!dropped && NowMs() - start < LIMIT_MS)
	{
		struct pollfd p = {.fd = drip->fd, .events = POLLIN};

		dropped = poll(&p, 1, 100) > 0 || !TrySendRaw(drip, "X", 1);
	}
	Ok(dropped, "a drop now and then does not help");
	Ok(StatusIs(ReadHttp(drip), 408), "the request that drips is ended");
	Ok(StatusIs(ReadHttp(half), 408), "so is half a one");
	Ok(StatusIs(ReadHttp(silent), 408), "and none");
	Ok(StatusIs(ReadHttp(body), 408), "and one whose body does not come");
	Ok(NowMs() - start < 8000, "all in time");

	/* Who has sent its request is not late. */
	settings.handshake_timeout_ms = 1000;
	Disconnect(silent);
	silent = OpenIdentified();
	start = NowMs();
	while (NowMs() - start < 2500)
		Step(100);
	SendText(silent->conn, "{}");
	Is(ReadFrame(silent).opcode, OPCODE_TEXT, "a connection is not late");
	Disconnect(silent);
	Disconnect(half);
	Disconnect(drip);
	Disconnect(body);
	Is((uint64_t) StopGateway(), 0, "the gateway ends in order");
}

/* Goes on sending the same thing over and over, as far as the socket takes it. */
static void
Pour(Client *client, const char *data, size_t length, size_t *at)
{
	ssize_t n = 0;
	int i;

	for (i = 0; i < 100 && n >= 0; i++)
	{
		n = send(client->fd, data + *at, length - *at, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n > 0)
			*at = (*at + (size_t) n) % length;
	}
}

void
TestFloods(void)
{
	Settings settings = DefaultSettings();
	static char texts[64 * 16];
	static char pings[64 * 8];
	static char large[70000];
	static char payload[60000];
	size_t n_texts = 0;
	size_t n_pings = 0;
	size_t n_large;
	size_t at[3] = {0, 0, 0};
	Client *flood;
	Client *bytes;
	Client *pinger;
	Client *busy;
	Client *burst;
	uint64_t start;
	uint64_t next = 0;
	int sent = 0;
	int i;
	Frame frame;

	settings.max_message_rate = 20;
	settings.max_receive_rate = 16384;
	settings.heartbeat_ms = 4000;
	StartGateway(&settings);
	Configure(&settings);
	for (i = 0; i < 64; i++)
	{
		n_texts += BuildFrame(texts + n_texts, 0x81, "{\"a\":1}", 7);
		n_pings += BuildFrame(pings + n_pings, 0x80 | OPCODE_PING, "", 0);
	}
	memset(payload, ' ', sizeof(payload));
	n_large = BuildFrame(large, 0x81, payload, sizeof(payload));

	flood = OpenIdentified();
	bytes = OpenIdentified();
	pinger = OpenIdentified();
	busy = OpenIdentified();
	burst = OpenIdentified();

	/* Ten seconds' worth at once is no flood, nor is half the rate for ever. */
	for (i = 0; i < 200; i++)
		SendMessage(burst, "{\"b\":1}");
	for (i = 0; i < 200; i++)
		Take(LINK_MESSAGE, burst->conn);
	Ok(!Has(LINK_CLOSED, burst->conn), "a burst arrives");

	/* More than that arrives, too, but in its time. */
	start = NowMs();
	for (i = 0; i < 40; i++)
		SendMessage(burst, "{\"b\":2}");
	for (i = 0; i < 40; i++)
		Take(LINK_MESSAGE, burst->conn);
	Ok(NowMs() - start >= 1000, "what is above it arrives at the rate: 40 in %d ms",
	   (int) (NowMs() - start));

	start = NowMs();
	while (NowMs() - start < 16000)
	{
		Pour(flood, texts, n_texts, &at[0]);
		Pour(bytes, large, n_large, &at[1]);
		Pour(pinger, pings, n_pings, &at[2]);
		if (NowMs() - start >= next)
		{
			SendMessage(busy, "{\"c\":1}");
			SendMessage(burst, "{\"c\":1}");
			sent++;
			next += 100;
		}
		Step(5);
		if (Has(LINK_CLOSED, flood->conn) && Has(LINK_CLOSED, bytes->conn) &&
			Has(LINK_CLOSED, pinger->conn))
			break;
	}
	frame = ReadFrame(flood);
	Ok(frame.opcode == OPCODE_TEXT && Contains(frame.text, "\"code\":\"53400\"") &&
		   Contains(frame.text, "changefeed.max_message_rate"),
	   "who floods is told");
	Is(ReadFrame(flood).close_code, 4005, "and closed");
	Is((uint64_t) (unsigned char) Take(LINK_CLOSED, flood->conn)->data[4], LINK_CAUSE_FLOOD,
	   "for that reason");
	Ok(NowMs() - start >= 10000, "not before it has gone on for ten seconds");
	Is((uint64_t) (unsigned char) Take(LINK_CLOSED, bytes->conn)->data[4], LINK_CAUSE_FLOOD,
	   "so with a flood of bytes");
	Is((uint64_t) (unsigned char) Take(LINK_CLOSED, pinger->conn)->data[4], LINK_CAUSE_FLOOD,
	   "and one of pings");
	for (i = 0; i < sent; i++)
		Take(LINK_MESSAGE, busy->conn);
	Ok(!Has(LINK_CLOSED, busy->conn), "who sends half of what it may is heard all the time");
	SendText(burst->conn, "{}");
	Is(ReadFrame(burst).opcode, OPCODE_TEXT, "and the burst is forgotten");
	Disconnect(flood);
	Disconnect(bytes);
	Disconnect(pinger);
	Disconnect(busy);
	Disconnect(burst);
	Is((uint64_t) StopGateway(), 0, "the gateway ends in order");
}

/* Many who come in one moment wait in the gateway for their turn. */
void
TestArrivals(void)
{
	enum
	{
		N = 300
	};
	static Client *clients[N];
	Settings settings = DefaultSettings();
	char text[512];
	Client *live;
	Frame frame;
	int n = 0;
	int i;

	settings.max_connections = 2 * N;
	StartGateway(&settings);
	snprintf(text, sizeof(text),
			 "GET /v1/socket HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\n"
			 "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
			 "Sec-WebSocket-Version: 13\r\n\r\n",
			 worker.port);
	live = OpenIdentified();
	kill(worker.pid, SIGSTOP);
	for (i = 0; i < N; i++)
	{
		clients[i] = Connect();
		SendRaw(clients[i], text, strlen(text));
	}
	SendTransaction(1, 0, &live->conn, 1, "{\"n\":1}");
	kill(worker.pid, SIGCONT);
	frame = ReadFrame(live);
	Ok(frame.opcode == OPCODE_TEXT, "a frame comes while %d clients arrive", N);
	for (i = 0; i < N; i++)
		n += StatusIs(ReadHttp(clients[i]), 101);
	Is((uint64_t) n, N, "and all of them are served");
	for (i = 0; i < N; i++)
		Take(LINK_OPEN, 0);
	Ok(SpentTicks(500) < 15, "nothing is spent behind that");

	/* Those who wait when it ends. */
	kill(worker.pid, SIGSTOP);
	for (i = 0; i < N; i++)
	{
		Disconnect(clients[i]);
		clients[i] = Connect();
	}
	SendShutdown("shutdown", 1000, 3000);
	kill(worker.pid, SIGCONT);
	for (i = n = 0; i < N; i++)
	{
		while (!clients[i]->ended)
			ReceiveSome(clients[i]);
		n++;
	}
	Is((uint64_t) n, N, "who waits at the end is let go");
	Disconnect(live);
	Is((uint64_t) WaitExit(), 0, "and the gateway ends in order");
}

/* How many kept messages of one type came before the first of the other. */
static int
CountBefore(LinkType type, LinkType until)
{
	Kept *kept;
	int n = 0;

	for (kept = worker.first; kept != NULL && kept->type != until; kept = kept->next)
		n += kept->type == type;
	return n;
}

static void
DropClient(Client *client)
{
	struct linger linger = {1, 0};

	setsockopt(client->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
	Disconnect(client);
}

/* What was sent to it meanwhile is there when it goes on. */
static void
ContinueGateway(void)
{
	Step(0);
	kill(worker.pid, SIGCONT);
}

/* When the first of what there is to read came, in ns; 0: the kernel does not say. */
static uint64_t
ArrivedAt(Client *client)
{
	union
	{
		char bytes[CMSG_SPACE(sizeof(struct timespec))];
		struct cmsghdr align;
	} control;
	struct pollfd p = {.fd = client->fd, .events = POLLIN};
	char byte;
	struct iovec part = {&byte, 1};
	struct msghdr message = {.msg_iov = &part,
							 .msg_iovlen = 1,
							 .msg_control = &control,
							 .msg_controllen = sizeof(control)};
	struct cmsghdr *h;
	struct timespec t;

	while (poll(&p, 1, 100) == 0)
		Step(0);
	if (recvmsg(client->fd, &message, MSG_PEEK) != 1)
		Die("nothing came");
	h = CMSG_FIRSTHDR(&message);
	if (h == NULL || h->cmsg_type != SCM_TIMESTAMPNS)
		return 0;
	memcpy(&t, CMSG_DATA(h), sizeof(t));
	return (uint64_t) t.tv_sec * 1000000000 + (uint64_t) t.tv_nsec;
}

/* The kernel does so from some time after it was asked on. */
static void
AskArrival(Client *client)
{
	int one = 1;
	bool told;

	if (setsockopt(client->fd, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof(one)) != 0)
		Die("the kernel tells no times");
	do
	{
		SendText(client->conn, "{\"n\":7}");
		told = ArrivedAt(client) != 0;
		(void) ReadFrame(client);
	} while (!told);
}

/* Much for as many others is not waited for by many who get little. */
static void
TestLargeForMany(uint64_t number, const uint32_t *numbers, Client **clients, uint32_t n)
{
	static char large[32 * 1024];
	static uint32_t small[300];
	static Client *readers[300];
	uint64_t arrived;
	uint32_t i;

	for (i = 0; i < n; i++)
	{
		readers[i] = OpenIdentified();
		small[i] = readers[i]->conn;
	}
	AskArrival(readers[n - 1]);
	AskArrival(clients[n - 1]);
	memset(large, '1', sizeof(large) - 1);
	HoldGateway();
	SendTransaction(number, 0, numbers, n, large);
	SendTransaction(number + 1, 0, small, n, "{\"n\":8}");
	ContinueGateway();
	arrived = ArrivedAt(readers[n - 1]);
	Ok(arrived > 0 && arrived < ArrivedAt(clients[n - 1]), "%u that get little do not wait for %u that get much",
	   n, n);
	for (i = 0; i < n && Contains(ReadFrame(readers[i]).text, "{\"n\":8}"); i++)
		DropClient(readers[i]);
	Is(i, n, "and have it");
	for (i = 0; i < n; i++)
		Take(LINK_CLOSED, small[i]);
	for (i = 0; i < n && Contains(ReadFrame(clients[i]).text, large); i++)
		;
	Is(i, n, "as those have what is theirs");
}

/* What many others cause at the same time is not waited for. */
void
TestTurns(void)
{
	enum
	{
		N = 300
	};
	static Client *clients[N];
	static uint32_t numbers[N];
	Settings settings = DefaultSettings();
	Client *live;
	Frame frame;
	Kept *kept;
	uint32_t first;
	int i;

	settings.max_connections = 3 * N;
	StartGateway(&settings);
	live = OpenIdentified();
	for (i = 0; i < N; i++)
	{
		clients[i] = OpenIdentified();
		numbers[i] = clients[i]->conn;
	}

	/* Something for all, then something for one; who is written to first? */
	HoldGateway();
	SendTransaction(1, 0, numbers, N, "{\"n\":1}");
	SendTransaction(2, 0, &live->conn, 1, "{\"n\":2}");
	SendMark(live->conn, 1);
	SendMark(numbers[N - 1], 2);
	ContinueGateway();
	kept = Take(LINK_FLUSHED, 0);
	memcpy(&first, kept->data, sizeof(first));
	Is(first, live->conn, "one does not wait until %d others are written to", N);
	Take(LINK_FLUSHED, 0);
	frame = ReadFrame(live);
	Ok(Contains(frame.text, "{\"n\":2}"), "and has it");
	for (i = 0; i < N; i++)
	{
		frame = ReadFrame(clients[i]);
		if (!Contains(frame.text, "{\"n\":1}"))
			break;
	}
	Is((uint64_t) i, N, "as all the others have theirs");
	TestLargeForMany(3, numbers, clients, N);

	/* All but one are cut, and are ready in epoll before the link is. */
	HoldGateway();
	for (i = 0; i < N; i++)
		DropClient(clients[i]);
	SendTransaction(5, 0, &live->conn, 1, "{\"n\":5}");
	SendMark(live->conn, 3);
	ContinueGateway();
	while (!Has(LINK_FLUSHED, live->conn))
		Step(100);
	Ok(CountBefore(LINK_CLOSED, LINK_FLUSHED) < N / 2,
	   "a frame goes out when %d of %d ends were told",
	   CountBefore(LINK_CLOSED, LINK_FLUSHED), N);
	frame = ReadFrame(live);
	Ok(Contains(frame.text, "{\"n\":5}"), "it is the right one");
	for (i = 0; i < N; i++)
		Take(LINK_CLOSED, numbers[i]);
	Is((uint64_t) CountKept(LINK_CLOSED), 0, "and all the ends are told, each once");

	/* Those who are gone are written to before their end is noticed. */
	for (i = 0; i < N; i++)
	{
		clients[i] = OpenIdentified();
		numbers[i] = clients[i]->conn;
	}
	DropKept();
	HoldGateway();
	SendTransaction(6, 0, numbers, N, "{\"n\":6}");
	SendTransaction(7, 0, numbers, N, "{\"n\":7}");
	for (i = 0; i < N; i++)
		DropClient(clients[i]);
	SendTransaction(8, 0, &live->conn, 1, "{\"n\":8}");
	ContinueGateway();
	frame = ReadFrame(live);
	Ok(Contains(frame.text, "{\"n\":8}"), "a frame comes while %d writes fail", N);
	for (i = 0; i < N; i++)
		Take(LINK_CLOSED, numbers[i]);
	Ok(SpentTicks(300) < 15, "nothing is spent behind that");
	Disconnect(live);
	Is((uint64_t) StopGateway(), 0, "and the gateway ends in order");
}
