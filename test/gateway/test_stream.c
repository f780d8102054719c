/*-------------------------------------------------------------------------
 *
 * test_stream.c
 *		Tests of event streams and polls: framing, ids, slow clients.
 *
 *-------------------------------------------------------------------------
 */
#include <sys/socket.h>
#include <unistd.h>

#include "tests.h"

/* 32 letters and a tag. */
static char *
Position(char letter, const char *tag)
{
	static char text[4][64];
	static int turn;
	char *out = text[turn++ % 4];

	memset(out, letter, 32);
	strcpy(out + 32, tag);
	return out;
}

/* So many answers of 3500 bytes are more than 32 times 4000. */
#define MANY_POLLS 37

static void
OpenStream(uint32_t conn, uint8_t kind, uint8_t flags, uint32_t wait, const char *unchanged,
		   const char *first, const char *second)
{
	LinkFrameBegin(worker.link, LINK_STREAM);
	LinkFramePutU32(worker.link, conn);
	LinkFramePutU8(worker.link, kind);
	LinkFramePutU8(worker.link, flags);
	LinkFramePutU32(worker.link, wait);
	LinkFramePutU32(worker.link, 4000);
	LinkFramePutBytes(worker.link, unchanged, strlen(unchanged));
	LinkFramePutBytes(worker.link, "Cache-Control: x\r\n", 18);
	LinkFramePutU16(worker.link, second != NULL ? 2 : 1);
	LinkFramePutBytes(worker.link, first, strlen(first));
	if (second != NULL)
		LinkFramePutBytes(worker.link, second, strlen(second));
	LinkFrameEnd(worker.link);
}

static void
Part(uint32_t conn, uint16_t index, uint8_t part, bool quiet, const char *position)
{
	LinkFrameBegin(worker.link, LINK_EVENT_ID);
	LinkFramePutU32(worker.link, conn);
	LinkFramePutU16(worker.link, index);
	LinkFramePutU8(worker.link, part);
	LinkFramePutU8(worker.link, quiet);
	LinkFramePutBytes(worker.link, position, strlen(position));
	LinkFrameEnd(worker.link);
}

/* A frame whose position is of these letters. */
static void
SendFrameAt(uint32_t conn, uint64_t number, uint8_t flags, char letter, const char *json)
{
	char before[80];

	snprintf(before, sizeof(before), "\"position\":\"%.32s", Position(letter, ""));
	LinkFrameBegin(worker.link, LINK_TX_BEGIN);
	LinkFramePutU64(worker.link, number);
	LinkFramePutU8(worker.link, flags);
	LinkFramePutBytes(worker.link, before, strlen(before));
	LinkFramePutBytes(worker.link, "\",\"changes\":[", 13);
	LinkFrameEnd(worker.link);
	TxFragment(&conn, 1, json);
	TxEnd();
}

static uint32_t
TakeNumber(LinkType type)
{
	Kept *kept = Take(type, 0);
	WireReader r = WireReaderInit(kept->data, kept->length);

	return WireGetU32(&r);
}

static Client *
Ask(const char *path, uint32_t *conn)
{
	char text[200];
	Client *client = Connect();

	snprintf(text, sizeof(text), "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", path);
	SendRaw(client, text, strlen(text));
	*conn = TakeNumber(LINK_REQUEST);
	return client;
}

/* All that has come when `text` has. */
static const char *
Until(Client *client, const char *text)
{
	uint64_t end = NowMs() + LIMIT_MS;

	for (;;)
	{
		if (client->length > 0)
		{
			client->in[client->length] = '\0';
			if (strstr(client->in, text) != NULL)
				return client->in;
		}
		if (client->ended || NowMs() > end)
			Die("no \"%s\" in: %.2000s", text, client->length > 0 ? client->in : "");
		ReceiveSome(client);
	}
}

/* The last id before the text. */
static const char *
LastId(const char *all, const char *text)
{
	static char id[200];
	const char *end = strstr(all, text);
	const char *p;

	strcpy(id, "none");
	if (end == NULL)
		return "no such event";
	end = strstr(end, "\n\n");
	for (p = strstr(all, "\nid: "); p != NULL && p < end; p = strstr(p + 1, "\nid: "))
	{
		memcpy(id, p + 5, strcspn(p + 5, "\n"));
		id[strcspn(p + 5, "\n")] = '\0';
	}
	return id;
}

static void
TestEvents(void)
{
	uint32_t conn;
	Client *client = Ask("/stream", &conn);
	const char *all;
	char two[200];

	OpenStream(conn, LINK_STREAM_EVENTS, 0, 0, "", Position('a', "tag00001"), "");
	SendIdentity(conn, "tag00001");
	SendText(conn, "{\"n\":1}");
	SendPlain(LINK_STATS_ASK, NULL, 0);
	Take(LINK_STATS, 0);
	Ok(!HasData(client), "a stream that has not begun is silent");
	SendPlain(LINK_BEGIN, &conn, 1);
	all = Until(client, "{\"n\":1}");
	Ok(StatusIs(all, 200) && Contains(all, "Content-Type: text/event-stream\r\n") &&
		   Contains(all, "Cache-Control: x\r\n") && strstr(all, "Content-Length") == NULL,
	   "it has a head without a length");
	all = Until(client, "\nretry: ");
	Ok(Contains(all, "\r\n\r\ndata: {\"n\":1}\n"), "each message is one line");

	/* The first goes on from where it was, the second needs a snapshot. */
	SendFrameAt(conn, 7, LINK_TX_STREAM, 'b', "{\"n\":2}");
	all = Until(client, "{\"n\":2}]}\n\n");
	IsText(LastId(all, "{\"n\":2}"), "none", "a frame that says nothing of itself has no id");
	Part(conn, 0, LINK_PART_OWN, false, Position('c', "tag00001"));
	SendFrameAt(conn, 8, LINK_TX_STREAM, 'c', "{\"n\":3}");
	snprintf(two, sizeof(two), "%s,-", Position('c', "tag00001"));
	all = Until(client, "{\"n\":3}]}\nid: ");
	all = Until(client, "tag00001,-\n\n");
	IsText(LastId(all, "{\"n\":3}"), two, "one that does has the list");
	Part(conn, 0, LINK_PART_READY, true, Position('d', "tag00001"));
	SendText(conn, "{\"n\":4}");
	SendFrameAt(conn, 9, 0, 'e', "{\"n\":5}");
	snprintf(two, sizeof(two), "%s,-", Position('e', "tag00001"));
	all = Until(client, "{\"n\":5}]}\nid: e");
	all = Until(client, two);
	IsText(LastId(all, "{\"n\":5}"), two, "a frame moves those that are ready");
	Part(conn, 1, LINK_PART_READY, true, Position('f', "tag00001"));
	SendText(conn, "{\"n\":6,\n \"more\":\r\n1}");
	snprintf(two, sizeof(two), "%s,%s", Position('e', "tag00001"), Position('f', "tag00001"));
	all = Until(client, two);
	IsText(LastId(all, "{\"n\":6"), two, "a channel is ready at a place of its own");
	Ok(Contains(all, "data: {\"n\":6,  \"more\":  1}\n"), "line ends between tokens are blanks");
	{
		char before[64];

		snprintf(before, sizeof(before), "{\"p\":\"%.32s", Position('g', ""));
		SendPing(&conn, 1, before, "\"}");
	}
	all = Until(client, "id: g");
	all = Until(client, "gtag00001\n\n");
	IsText(LastId(all, "{\"p\":\"g"), Position('g', "tag00001"), "a ping moves all, to one id");
	Part(conn, 1, LINK_PART_NONE, false, "");
	SendText(conn, "{\"n\":7}");
	snprintf(two, sizeof(two), "%s,-", Position('g', "tag00001"));
	all = Until(client, two);
	IsText(LastId(all, "{\"n\":7}"), two, "what is lost is said at once");

	Part(conn, 0, LINK_PART_OWN, false, Position('h', "tag00001"));
	SendText(conn, "{\"n\":8}");
	Part(conn, 1, LINK_PART_READY, true, Position('i', "tag00001"));
	SendText(conn, "{\"n\":9}");
	SendFrameAt(conn, 10, 0, 'j', "{\"n\":10}");
	snprintf(two, sizeof(two), "%s,%s\n\n", Position('h', "tag00001"), Position('j', "tag00001"));
	Ok(strstr(Until(client, two), two) != NULL, "a frame does not move what catches up");

	SendClose(conn, 4004, "token expired");
	while (!client->ended)
		ReceiveSome(client);
	Take(LINK_CLOSED, conn);
	Disconnect(client);
}

/* What a paced channel has put off may be older than others' frames. */
static void
TestPaced(void)
{
	uint32_t conn;
	Client *client = Ask("/stream", &conn);
	char before[64];
	char two[200];

	OpenStream(conn, LINK_STREAM_EVENTS, 0, 0, "", "", "");
	SendIdentity(conn, "tag00001");
	Part(conn, 0, LINK_PART_PACED, true, Position('a', "tag00001"));
	SendText(conn, "{\"n\":1}");
	Part(conn, 1, LINK_PART_READY, true, Position('a', "tag00001"));
	SendText(conn, "{\"n\":2}");
	SendPlain(LINK_BEGIN, &conn, 1);
	Until(client, "id: aaaa");
	SendFrameAt(conn, 20, 0, 'c', "{\"n\":3}");
	snprintf(two, sizeof(two), "%s,%s\n\n", Position('a', "tag00001"), Position('c', "tag00001"));
	Until(client, two);
	Part(conn, 0, LINK_PART_PACED, false, Position('b', "tag00001"));
	SendFrameAt(conn, 21, LINK_TX_STREAM, 'b', "{\"n\":4}");
	snprintf(two, sizeof(two), "%s,%s\n\n", Position('b', "tag00001"), Position('c', "tag00001"));
	Until(client, two);
	SendPing(&conn, 1, "", "{\"type\":\"ping\"}");
	Ok(strstr(Until(client, "data: {\"type\":\"ping\"}\n\n"), "c\n\ndata") == NULL,
	   "frames of others do not move a paced channel, its own do");
	snprintf(before, sizeof(before), "{\"p\":\"%.32s", Position('d', ""));
	SendPing(&conn, 1, before, "\"}");
	Until(client, "id: dddd");
	SendFrameAt(conn, 22, 0, 'e', "{\"n\":5}");
	snprintf(two, sizeof(two), "%s,%s\n\n", Position('d', "tag00001"), Position('e', "tag00001"));
	Ok(strstr(Until(client, two), two) != NULL, "pings do, too");
	Disconnect(client);
	Take(LINK_CLOSED, conn);

	/* All that a poll is told is that something was put off. */
	client = Ask("/stream", &conn);
	OpenStream(conn, LINK_STREAM_POLL, 0, 0, "P", Position('a', "tag00001"), NULL);
	SendIdentity(conn, "tag00001");
	Part(conn, 0, LINK_PART_SAME, true, "");
	SendText(conn, "{\"n\":1}");
	Part(conn, 0, LINK_PART_PACED, true, Position('a', "tag00001"));
	SendText(conn, "{\"n\":2}");
	Take(LINK_PING_DUE, 0);
	SendPing(&conn, 1, "", "{\"type\":\"ping\"}");
	Ok(StatusIs(Until(client, "\r\n\r\n"), 304), "a ping without a position is no answer");
	Take(LINK_CLOSED, conn);
	Disconnect(client);
}

static void
TestSlow(void)
{
	static char large[40000];
	uint32_t conn;
	Client *client = ConnectSmall(4096);
	const char *all;
	uint64_t number = 100;
	Kept *kept;
	WireReader r;
	uint64_t last;
	int i;

	SendRaw(client, "GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n", 41);
	conn = TakeNumber(LINK_REQUEST);
	OpenStream(conn, LINK_STREAM_EVENTS, 0, 0, "", "", "");
	SendIdentity(conn, "tag00001");
	Part(conn, 0, LINK_PART_READY, true, Position('a', "tag00001"));
	SendText(conn, "{\"n\":1}");
	SendPlain(LINK_BEGIN, &conn, 1);
	Until(client, "{\"n\":1}");

	memset(large, 'x', sizeof(large));
	large[0] = large[sizeof(large) - 2] = '"';
	large[sizeof(large) - 1] = '\0';
	for (i = 0; i < 400 && !Has(LINK_BEHIND, conn); i++)
	{
		SendFrameAt(conn, number++, 0, 'b', large);
		SendPlain(LINK_STATS_ASK, NULL, 0);
		Take(LINK_STATS, 0);
	}
	kept = Take(LINK_BEHIND, conn);
	r = WireReaderInit(kept->data, kept->length);
	WireGetU32(&r);
	last = WireGetU64(&r);
	Ok(last >= 100 && last < number - 1, "who does not read is behind");
	Ok(SpentTicks(500) < 15, "which costs no time");

	/* Told behind frames that were dropped. */
	Part(conn, 1, LINK_PART_READY, true, Position('y', "tag00001"));
	SendText(conn, "{\"n\":2}");
	SendFrameAt(conn, number, 0, 'z', "{\"lost\":1}");
	all = Until(client, "{\"n\":2}");
	all = Until(client, "ytag00001\n\n");
	Ok(strncmp(LastId(all, "{\"n\":2}"), "bbb", 3) == 0 &&
		   strstr(LastId(all, "{\"n\":2}"), ",yyy") != NULL && strstr(all, "lost") == NULL,
	   "what is dropped moves no id");
	Take(LINK_DRAINED, conn);
	SendPlain(LINK_RESUME, &conn, 1);
	SendFrameAt(conn, last + 1, 0, 'c', "{\"n\":3}");
	Ok(strstr(Until(client, "id: cc"), "{\"n\":3}") != NULL, "it goes on");
	Ok(SpentTicks(300) < 15, "and costs no time then");
	Disconnect(client);
	Ok(Take(LINK_CLOSED, conn) != NULL, "that it has gone is noticed");
}

static void
TestPolls(void)
{
	static char large[5000];
	static uint32_t conns[MANY_POLLS];
	static Client *many[MANY_POLLS];
	int i;
	uint32_t conn;
	Client *client;
	const char *all;
	const char *place;
	char before[64];

	/* With rows. */
	client = Ask("/stream", &conn);
	OpenStream(conn, LINK_STREAM_POLL, 0, 0, "", "", NULL);
	SendText(conn, "{\"n\":1}");
	SendText(conn, "{\"n\":2}");
	SendPlain(LINK_STATS_ASK, NULL, 0);
	Take(LINK_STATS, 0);
	Ok(!HasData(client), "a poll collects until it is ready");
	Part(conn, 0, LINK_PART_READY, true, Position('a', "tag00001"));
	SendText(conn, "{\"n\":3}");
	all = ReadHttp(client);
	place = Position('a', "tag00001");
	Ok(StatusIs(all, 200) && Contains(all, "{\"messages\":[{\"n\":1},{\"n\":2},{\"n\":3}],") &&
		   Contains(all, "\"position\":\"aaaaaaaa") && Contains(all, "ETag: \"aaaaaa") &&
		   Contains(all, place) && Contains(all, "Changefeed-Position: aaaaaa"),
	   "and is answered then");
	Take(LINK_CLOSED, conn);
	Disconnect(client);

	/* Waits for what comes. */
	client = Ask("/stream", &conn);
	OpenStream(conn, LINK_STREAM_POLL, LINK_STREAM_WAITS, 10000, "from", "from", NULL);
	SendIdentity(conn, "tag00001");
	Part(conn, 0, LINK_PART_READY, true, Position('a', "tag00001"));
	SendText(conn, "{\"n\":3}");
	SendPlain(LINK_STATS_ASK, NULL, 0);
	Take(LINK_STATS, 0);
	Ok(!HasData(client), "one that goes on waits");
	SendFrameAt(conn, 1, 0, 'b', "{\"n\":4}");
	all = ReadHttp(client);
	Ok(StatusIs(all, 200) && Contains(all, "{\"n\":4}]}],\"position\":\"bbbb"),
	   "for what it is answered with");
	Disconnect(client);
	Take(LINK_CLOSED, conn);

	/* Nothing comes. */
	client = Ask("/stream", &conn);
	OpenStream(conn, LINK_STREAM_POLL, LINK_STREAM_WAITS, 900, "from", "from", NULL);
	SendIdentity(conn, "tag00001");
	Part(conn, 0, LINK_PART_READY, true, Position('a', "tag00001"));
	SendText(conn, "{\"n\":3}");
	Take(LINK_PING_DUE, 0);
	snprintf(before, sizeof(before), "{\"p\":\"%.32s", Position('d', ""));
	SendPing(&conn, 1, before, "\"}");
	all = ReadHttp(client);
	Ok(StatusIs(all, 304) && Contains(all, "ETag: \"from\"\r\n") &&
		   Contains(all, "Changefeed-Position: dddd"),
	   "with nothing it is 304, and says how far it came");
	Disconnect(client);
	Take(LINK_CLOSED, conn);

	/* Asks only whether something came. */
	client = Ask("/stream", &conn);
	OpenStream(conn, LINK_STREAM_POLL, LINK_STREAM_PROBE, 0, "from", "from", NULL);
	SendText(conn, "{\"n\":5}");
	Part(conn, 0, LINK_PART_READY, true, Position('a', "tag00001"));
	SendText(conn, "{\"n\":6}");
	Is(TakeNumber(LINK_COLLECTED), conn, "a probe only says that something came");
	OpenStream(conn, LINK_STREAM_POLL, 0, 0, "", "", NULL);
	Part(conn, 0, LINK_PART_READY, true, Position('b', "tag00001"));
	SendText(conn, "{\"n\":7}");
	SendText(conn, "{\"n\":8}");
	all = ReadHttp(client);
	Ok(StatusIs(all, 200) && strstr(all, "{\"n\":5}") == NULL && Contains(all, "{\"n\":8}"),
	   "and begins anew");
	Disconnect(client);
	Take(LINK_CLOSED, conn);

	/* What comes while it waits for a ping. */
	client = Ask("/stream", &conn);
	OpenStream(conn, LINK_STREAM_POLL, LINK_STREAM_PROBE, 0, "from", "from", NULL);
	Part(conn, 0, LINK_PART_READY, true, Position('a', "tag00001"));
	SendText(conn, "{\"n\":9}");
	Take(LINK_PING_DUE, 0);
	SendText(conn, "{\"n\":10}");
	Is(TakeNumber(LINK_COLLECTED), conn, "also behind the question for a ping");
	Disconnect(client);
	Take(LINK_CLOSED, conn);

	/* Too much. */
	memset(large, 'x', sizeof(large));
	large[0] = large[sizeof(large) - 2] = '"';
	large[sizeof(large) - 1] = '\0';
	client = Ask("/stream", &conn);
	OpenStream(conn, LINK_STREAM_POLL, 0, 0, "", "", NULL);
	SendText(conn, large);
	all = ReadHttp(client);
	Ok(StatusIs(all, 422) && Contains(all, "\"54000\"") && Contains(all, "/v1/events"),
	   "an answer has a limit");
	Disconnect(client);
	Take(LINK_CLOSED, conn);

	/* Too much of all together. */
	large[3500] = '"';
	large[3501] = '\0';
	for (i = 0; i < MANY_POLLS; i++)
	{
		many[i] = Ask("/stream", &conns[i]);
		OpenStream(conns[i], LINK_STREAM_POLL, 0, 0, "", "", NULL);
		SendText(conns[i], large);
	}
	all = ReadHttp(many[MANY_POLLS - 1]);
	Ok(StatusIs(all, 503) && Contains(all, "\"too_many_answers\"") &&
		   Contains(all, "Retry-After: 5\r\n"),
	   "all answers together have a limit");
	Ok(!HasData(many[MANY_POLLS - 2]), "those within it go on");
	for (i = 0; i < MANY_POLLS; i++)
		Disconnect(many[i]);
	for (i = 0; i < MANY_POLLS; i++)
		Take(LINK_CLOSED, conns[i]);
	client = Ask("/stream", &conn);
	OpenStream(conn, LINK_STREAM_POLL, 0, 0, "", "", NULL);
	SendText(conn, large);
	Part(conn, 0, LINK_PART_READY, true, Position('b', "tag00001"));
	SendText(conn, "{}");
	Ok(StatusIs(ReadHttp(client), 200), "later there is room again");
	Disconnect(client);
	Take(LINK_CLOSED, conn);

	/* An error instead. */
	client = Ask("/stream", &conn);
	OpenStream(conn, LINK_STREAM_POLL, 0, 0, "", "", NULL);
	SendText(conn, "{\"n\":1}");
	SendResponse(conn, 403, "application/json", "", "{\"no\":1}", 8);
	all = ReadHttp(client);
	Ok(StatusIs(all, 403) && Contains(all, "\r\n\r\n{\"no\":1}"), "an error takes its place");
	Disconnect(client);
	Take(LINK_CLOSED, conn);
}

void
TestStreams(void)
{
	static const char *const paths[] = {"/stream"};
	static const uint8_t methods[] = {LINK_METHOD_GET};
	Settings settings = DefaultSettings();
	uint32_t conn;
	Client *client;
	const char *all;

	settings.send_buffer = 200000;
	StartGateway(&settings);
	SendPaths(paths, methods, 1);
	SendPlain(LINK_STATS_ASK, NULL, 0);
	Take(LINK_STATS, 0);
	TestEvents();
	TestPaced();
	TestSlow();
	TestPolls();

	client = Ask("/stream", &conn);
	OpenStream(conn, LINK_STREAM_EVENTS, 0, 0, "", Position('a', "tag00001"), NULL);
	SendPlain(LINK_BEGIN, &conn, 1);
	SendText(conn, "{\"n\":1}");
	Until(client, "{\"n\":1}");
	SendShutdown("restart", 2000, 2000);
	all = Until(client, "\"retry_after_ms\":2000}\nretry: 2000\n\n");
	Ok(Contains(all, "data: {\"type\":\"closing\",\"reason\":\"restart\""),
	   "a shutdown says when to come back");
	Disconnect(client);
	Is((uint64_t) WaitExit(), 0, "and ends with 0");
}

/* LINK_CONFIG with "paused": who is told what, and what goes on. */
void
TestPause(void)
{
	static const char *const paths[] = {"/v1/stream", "/page"};
	static const uint8_t methods[] = {LINK_METHOD_GET, LINK_METHOD_GET};
	Settings settings = DefaultSettings();
	uint32_t stream_conn;
	uint32_t poll_conn;
	uint32_t asked_conn;
	uint32_t page_conn;
	Client *socket;
	Client *stream;
	Client *held;
	Client *asked;
	Client *page;
	Client *client;
	const char *answer;
	Frame frame;

	StartGateway(&settings);
	SendPaths(paths, methods, 2);
	SendPlain(LINK_STATS_ASK, NULL, 0);
	Take(LINK_STATS, 0);
	socket = OpenIdentified();
	stream = Ask("/v1/stream", &stream_conn);
	OpenStream(stream_conn, LINK_STREAM_EVENTS, 0, 0, "", Position('a', "tag00001"), NULL);
	SendPlain(LINK_BEGIN, &stream_conn, 1);
	held = Ask("/v1/stream", &poll_conn);
	OpenStream(poll_conn, LINK_STREAM_POLL, LINK_STREAM_WAITS, 20000, "from", "from", NULL);
	asked = Ask("/v1/stream", &asked_conn); /* what it is has not been said */
	page = Ask("/page", &page_conn);

	SendText(socket->conn, "before");
	SendText(stream_conn, "{\"before\":1}");
	settings.paused = true;
	SendConfig(&settings);
	SendText(socket->conn, "behind");

	IsText(ReadFrame(socket).text, "before", "pause: what was sent before arrives");
	frame = ReadFrame(socket);
	Ok(frame.text != NULL && Contains(frame.text, "{\"type\":\"closing\",\"reason\":\"paused\","
												  "\"retry_after_ms\":"),
	   "pause: then the client is told");
	frame = ReadFrame(socket);
	Ok(frame.opcode == OPCODE_CLOSE && frame.close_code == 1001, "pause: and closed, by 1001");
	Take(LINK_CLOSED, socket->conn);
	Disconnect(socket);

	answer = Until(stream, "\nretry: ");
	Ok(Contains(answer, "{\"before\":1}") && Contains(answer, "\"reason\":\"paused\""),
	   "pause: so is an event stream");
	Take(LINK_CLOSED, stream_conn);
	Disconnect(stream);
	answer = ReadHttp(held);
	Ok(StatusIs(answer, 503) && Contains(answer, "\"code\":\"paused\"") &&
		   Contains(answer, "Retry-After: 5\r\n"),
	   "pause: and a poll that is held");
	Take(LINK_CLOSED, poll_conn);
	Disconnect(held);

	SendResponse(asked_conn, 503, "text/plain", "", "worker", 6);
	Ok(StatusIs(ReadHttp(asked), 503), "pause: the feed worker answers what it was asked before");
	Disconnect(asked);
	SendResponse(page_conn, 200, "text/plain", "", "page", 4);
	Ok(StatusIs(ReadHttp(page), 200), "pause: and what is not of clients goes on");
	Disconnect(page);

	client = Connect();
	answer = Handshake(client, "/v1/socket", NULL);
	Ok(StatusIs(answer, 503) && Contains(answer, "\"code\":\"paused\"") &&
		   Contains(answer, "Retry-After: 5\r\n"),
	   "paused: no socket is opened");
	Disconnect(client);
	Ok(StatusIs(Request("GET /v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n"), 503),
	   "paused: nor a stream");
	page = Ask("/page", &page_conn);
	SendConfig(&settings);
	SendResponse(page_conn, 200, "text/plain", "", "page", 4);
	Ok(StatusIs(ReadHttp(page), 200), "paused: other requests are passed on");
	Disconnect(page);

	settings.paused = false;
	SendConfig(&settings);
	SendPlain(LINK_STATS_ASK, NULL, 0);
	Take(LINK_STATS, 0);
	socket = OpenIdentified();
	SendText(socket->conn, "again");
	IsText(ReadFrame(socket).text, "again", "resumed: clients come in");
	Disconnect(socket);
	Is((uint64_t) StopGateway(), 0, "the gateway ends in order");
}
