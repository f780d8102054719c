/*-------------------------------------------------------------------------
 *
 * test_request.c
 *		Tests of HTTP requests that the feed worker answers.
 *
 *-------------------------------------------------------------------------
 */
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests.h"

/* How often the gateway looks whether clients of held requests are there still. */
#define HELD_SWEEP_MS 1000

/* A LINK_REQUEST, taken apart. */
typedef struct Told
{
	uint32_t conn;
	uint8_t method;
	uint8_t flags;
	char text[6][256]; /* path, peer, token, last id, etag, key */
	uint32_t n;
	char arguments[8][256];
	char body[256];
	bool whole;
} Told;

static void
Text(char *to, const char *data, size_t length)
{
	if (data == NULL || length > 255)
		length = 0;
	if (length > 0)
		memcpy(to, data, length);
	to[length] = '\0';
}

static void
Bytes(WireReader *r, char *to)
{
	WireBytes bytes = WireGetBytes(r);

	Text(to, bytes.data, bytes.length);
}

static Told
TakeRequest(void)
{
	static Told told;
	Kept *kept = Take(LINK_REQUEST, 0);
	WireReader r = WireReaderInit(kept->data, kept->length);
	int i;

	memset(&told, 0, sizeof(told));
	told.conn = WireGetU32(&r);
	told.method = WireGetU8(&r);
	told.flags = WireGetU8(&r);
	for (i = 0; i < 6; i++)
		Bytes(&r, told.text[i]);
	told.n = WireGetU32(&r);
	for (i = 0; i < (int) told.n && i < 8; i++)
		Bytes(&r, told.arguments[i]);
	told.whole = !r.failed;
	if (told.whole)
		Text(told.body, r.data + r.offset, r.length - r.offset);
	return told;
}

static Client *
Ask(const char *text)
{
	Client *client = Connect();

	SendRaw(client, text, strlen(text));
	return client;
}

static void
TestForwarding(void)
{
	Client *client;
	Told told;
	const char *answer;

	client = Ask("GET /page?channel=a%26b%3Fc%3D%31&token=s%2Ec&x&channel=d+e HTTP/1.1\r\n"
				 "Host: localhost\r\nLast-Event-ID: p1,-\r\nIf-None-Match: \"p2\"\r\n\r\n");
	told = TakeRequest();
	Ok(told.whole && told.method == LINK_METHOD_GET && told.flags == LINK_REQUEST_LOOPBACK,
	   "a request is handed on");
	IsText(told.text[0], "/page", "with its path");
	IsText(told.text[1], "127.0.0.1", "the peer");
	IsText(told.text[2], "s.c", "the token");
	IsText(told.text[3], "p1,-", "Last-Event-ID");
	IsText(told.text[4], "\"p2\"", "If-None-Match");
	Is(told.n, 3, "and the arguments without the token");
	IsText(told.arguments[0], "channel=a&b?c=1", "decoded");
	IsText(told.arguments[1], "x", "one without a value");
	IsText(told.arguments[2], "channel=d e", "and one more of the same name");
	SendResponse(told.conn, 200, "text/plain", "Cache-Control: no-store\r\n", "hello", 5);
	answer = ReadHttp(client);
	Ok(StatusIs(answer, 200) && Contains(answer, "\r\n\r\nhello") &&
		   Contains(answer, "Content-Type: text/plain\r\n") &&
		   Contains(answer, "Content-Length: 5\r\n") &&
		   Contains(answer, "Cache-Control: no-store\r\n"),
	   "and answered");
	Take(LINK_CLOSED, told.conn);
	IsText(ReadHttp(client), "", "then the connection ends");
	Disconnect(client);

	client = Ask("HEAD /page HTTP/1.1\r\nHost: localhost\r\n\r\n");
	told = TakeRequest();
	Ok((told.flags & LINK_REQUEST_HEAD) != 0 && told.method == LINK_METHOD_GET,
	   "HEAD is handed on as GET");
	SendResponse(told.conn, 200, "text/plain", "", "hello", 5);
	answer = ReadHttp(client);
	Ok(Contains(answer, "Content-Length: 5\r\n") && strstr(answer, "hello") == NULL,
	   "and its answer has no body");
	Disconnect(client);
}

static void
TestBodies(void)
{
	Client *client;
	Told told;
	const char *answer;

	client = Ask("POST /do/it HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer t\r\n"
				 "Content-Type: application/json; charset=utf-8\r\nIdempotency-Key: k-1\r\n"
				 "Content-Length: 12\r\n\r\n{\"a\":");
	SendPlain(LINK_STATS_ASK, NULL, 0);
	Take(LINK_STATS, 0);
	Ok(!Has(LINK_REQUEST, 0), "half a body is not handed on");
	SendRaw(client, "\"b\"}  x", 7);
	told = TakeRequest();
	Ok(told.whole && told.method == LINK_METHOD_POST, "a whole one is");
	IsText(told.text[0], "/do/it", "for a path that begins like the one that is known");
	IsText(told.text[2], "t", "with the token");
	IsText(told.text[5], "k-1", "and its key");
	IsText(told.body, "{\"a\":\"b\"}  x", "the body is whole");
	SendResponse(told.conn, 201, "application/json", "", "{}", 2);
	Ok(Contains(ReadHttp(client), "\r\n\r\n{}"), "it is answered");
	Disconnect(client);

	client = Ask("POST /do/it HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
				 "Content-Length: 2\r\n\r\n{}POST /do/it HTTP/1.1\r\n\r\n");
	told = TakeRequest();
	IsText(told.body, "{}", "what follows a body is no part of it");
	SendResponse(told.conn, 200, "application/json", "", "{}", 2);
	Ok(StatusIs(ReadHttp(client), 200), "and does not spoil the answer");
	IsText(ReadHttp(client), "", "nor is it served");
	Disconnect(client);

	client = Ask("POST /do/it HTTP/1.1\r\nHost: localhost\r\n\r\n");
	told = TakeRequest();
	IsText(told.body, "", "a POST may have no body");
	SendResponse(told.conn, 200, "application/json", "", "{}", 2);
	Ok(StatusIs(ReadHttp(client), 200), "and is answered");
	Disconnect(client);

	answer = Request("POST /do/it HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
					 "Content-Length: 2\r\n");
	Ok(StatusIs(answer, 415), "another type of body is 415");
	answer = Request("POST /do/it HTTP/1.1\r\nHost: localhost\r\n"
					 "Content-Type: application/json\r\nContent-Length: 99999999999999999999\r\n");
	Ok(StatusIs(answer, 413) && Contains(answer, "changefeed.max_message"),
	   "a large body is 413, before it has come");
	answer = Request("POST /do/it HTTP/1.1\r\nHost: localhost\r\n"
					 "Content-Type: application/json\r\nContent-Length: -1\r\n");
	Ok(StatusIs(answer, 400), "a negative length is 400");
	answer = Request("POST /do/it HTTP/1.1\r\nHost: localhost\r\n"
					 "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n");
	Ok(StatusIs(answer, 411), "a chunked body is 411");
	answer = Request("GET /do/it HTTP/1.1\r\nHost: localhost\r\n");
	Ok(StatusIs(answer, 405) && Contains(answer, "Allow: POST, OPTIONS\r\n"), "GET is 405 there");
	answer = Request("PUT /page HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n");
	Ok(StatusIs(answer, 405) && Contains(answer, "Allow: GET, HEAD, OPTIONS\r\n"),
	   "PUT is 405 anywhere");
	answer = Request("POST /do/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n");
	Ok(StatusIs(answer, 404) && !Has(LINK_REQUEST, 0), "the beginning alone is no path");
}

static void
TestOrigins(void)
{
	Client *client;
	Told told;
	const char *answer;

	answer = Request("GET /page HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example\r\n");
	Ok(StatusIs(answer, 403) && Contains(answer, "forbidden_origin") &&
		   strstr(answer, "Access-Control") == NULL,
	   "a foreign page is refused");
	answer = Request("OPTIONS /do/it HTTP/1.1\r\nHost: localhost\r\n"
					 "Origin: https://app.example.com\r\n"
					 "Access-Control-Request-Method: POST\r\n");
	Ok(StatusIs(answer, 204) &&
		   Contains(answer, "Access-Control-Allow-Origin: https://app.example.com\r\n") &&
		   Contains(answer, "Access-Control-Allow-Credentials: true\r\n") &&
		   Contains(answer, "Access-Control-Allow-Headers: Authorization, Content-Type") &&
		   Contains(answer, "Access-Control-Allow-Methods: GET, HEAD, POST\r\n"),
	   "a listed one may ask what is allowed");
	answer = Request("OPTIONS /do/it HTTP/1.1\r\nHost: localhost\r\n"
					 "Origin: https://evil.example\r\n");
	Ok(StatusIs(answer, 403), "a foreign one may not");
	client = Ask("GET /page HTTP/1.1\r\nHost: localhost\r\nOrigin: https://app.example.com\r\n\r\n");
	told = TakeRequest();
	SendResponse(told.conn, 403, "application/json", "", "{}", 2);
	answer = ReadHttp(client);
	Ok(StatusIs(answer, 403) &&
		   Contains(answer, "Access-Control-Allow-Origin: https://app.example.com\r\n"),
	   "and can read the answer, whatever it is");
	Disconnect(client);
}

static void
TestLeaving(void)
{
	static char large[6000000];
	Client *client;
	Told told;

	client = Ask("GET /page HTTP/1.1\r\nHost: localhost\r\n\r\n");
	told = TakeRequest();
	Ok(SpentTicks(300) < 15, "a request that is held costs no time");
	Disconnect(client);
	Ok(Take(LINK_CLOSED, told.conn) != NULL, "its client is missed when it has gone");

	client = Ask("GET /page HTTP/1.1\r\nHost: localhost\r\n\r\nGET /page HTTP/1.1\r\n");
	told = TakeRequest();
	shutdown(client->fd, SHUT_WR);
	Ok(SpentTicks(300) < 15, "nor does one whose client has said more, and its end");
	Take(LINK_CLOSED, told.conn);
	Disconnect(client);

	client = ConnectSmall(4096);
	SendRaw(client, "GET /page HTTP/1.1\r\nHost: localhost\r\n\r\n", 39);
	told = TakeRequest();
	memset(large, 'x', sizeof(large));
	SendResponse(told.conn, 200, "text/plain", "", large, sizeof(large));
	Ok(SpentTicks(500) < 15, "nor an answer that is not read");
	Ok(strlen(ReadHttp(client)) > sizeof(large), "which is there in the end");
	Disconnect(client);
	Take(LINK_CLOSED, told.conn);
}

/* They are dropped some at a time, and looked after meanwhile: none is forgotten. */
static void
TestLeavingTogether(void)
{
	enum
	{
		N = 1000
	};
	Client *clients[N];
	int i;

	for (i = 0; i < N; i++)
	{
		clients[i] = Ask("GET /page HTTP/1.1\r\nHost: localhost\r\n\r\n");
		clients[i]->conn = TakeRequest().conn;
	}
	for (i = 0; i < N; i++)
		Disconnect(clients[i]);
	DropKept();

	/* It stands still in the midst of that, and looks after all first when it goes on. */
	while (!Has(LINK_CLOSED, 0))
		Step(20);
	HoldGateway();
	usleep(HELD_SWEEP_MS * 1000);
	kill(worker.pid, SIGCONT);
	for (i = 0; i < N; i++)
		Take(LINK_CLOSED, clients[i]->conn);
	Is((uint64_t) CountKept(LINK_CLOSED), 0, "%d who leave together are missed, each once", N);
}

/* lws has headers for 4096 at a time: who is held must not keep them. */
static void
TestHeld(void)
{
	enum
	{
		N = 4200
	};
	static Client *clients[N];
	struct rlimit limit;
	long memory = 0;
	int i;

	getrlimit(RLIMIT_NOFILE, &limit);
	if (limit.rlim_cur < N + 100)
	{
		limit.rlim_cur = N + 100;
		if (limit.rlim_max < N + 100 || setrlimit(RLIMIT_NOFILE, &limit) < 0)
		{
			Note("too few descriptors to hold %d requests", N);
			return;
		}
	}
	DropKept();
	for (i = 0; i < N; i++)
	{
		/* Some of them come slowly. */
		clients[i] = Ask(i % 8 == 0 ? "POST /do/it HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
									  "application/json\r\nContent-Length: 2\r\n\r\n{"
									: "GET /page HTTP/1.1\r\nHost: localhost\r\n\r\n");
		if (i % 8 != 0)
			clients[i]->conn = TakeRequest().conn;
		if (i == 99)
			memory = StatusField("VmRSS:");
	}
	Is((uint64_t) CountKept(LINK_CLOSED), 0, "%d requests can be held", N);
	Note("%ld bytes of memory for each", (StatusField("VmRSS:") - memory) * 1024 / (N - 100));
	Ok(SpentTicks(1000) < 20, "which costs little");
	for (i = 0; i < N; i += 8)
	{
		SendRaw(clients[i], "}", 1);
		clients[i]->conn = TakeRequest().conn;
	}
	for (i = 0; i < N; i++)
		SendResponse(clients[i]->conn, 200, "text/plain", "", "x", 1);
	for (i = 0; i < N; i++)
	{
		if (!StatusIs(ReadHttp(clients[i]), 200))
			break;
		Disconnect(clients[i]);
	}
	Is((uint64_t) i, N, "and all are answered");
	for (i = 0; i < N; i++)
		Take(LINK_CLOSED, clients[i]->conn);
	DropKept();
}

void
TestRequests(void)
{
	static const char *const paths[] = {"/page", "/do/"};
	static const uint8_t methods[] = {LINK_METHOD_GET, LINK_METHOD_POST};
	Settings settings = DefaultSettings();
	Client *client;
	Told told;
	const char *answer;

	settings.origins[0] = "https://app.example.com";
	settings.max_connections = 5000;
	StartGateway(&settings);
	SendPaths(paths, methods, 2);
	SendPlain(LINK_STATS_ASK, NULL, 0);
	Take(LINK_STATS, 0);

	TestForwarding();
	TestBodies();
	TestOrigins();
	TestLeaving();
	TestLeavingTogether();
	TestHeld();

	client = Ask("GET /page HTTP/1.1\r\nHost: localhost\r\n\r\n");
	told = TakeRequest();
	SendShutdown("shutdown", 500, 600);
	answer = ReadHttp(client);
	Ok(StatusIs(answer, 503) && Contains(answer, "Retry-After: 5\r\n"),
	   "a shutdown answers what is held");
	Take(LINK_CLOSED, told.conn);
	Disconnect(client);
	Is((uint64_t) WaitExit(), 0, "and ends with 0");
}
