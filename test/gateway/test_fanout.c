/*-------------------------------------------------------------------------
 *
 * test_fanout.c
 *		Tests of transactions, slow clients and snapshots.
 *
 *-------------------------------------------------------------------------
 */
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <time.h>

#include "tests.h"

/* The number after `name` in a JSON text; UINT64_MAX if it is not there. */
static uint64_t
Number(const char *text, const char *name)
{
	const char *field = text != NULL ? strstr(text, name) : NULL;

	return field != NULL ? strtoull(field + strlen(name), NULL, 10) : UINT64_MAX;
}

static uint64_t
Seq(const char *text)
{
	return Number(text, "\"seq\":");
}

static uint64_t
Position(const char *text)
{
	return Number(text, "\"position\":\"");
}

void
TestFanout(void)
{
	Settings settings = DefaultSettings();
	Client *clients[3];
	uint32_t c[3];
	uint32_t pair[2];
	Frame frame;
	char expected[400];
	int i;

	StartGateway(&settings);
	for (i = 0; i < 3; i++)
	{
		clients[i] = OpenSocket();
		c[i] = clients[i]->conn;
	}
	SendIdentity(c[0], "aaaaaaaa");
	SendIdentity(c[1], "bbbbbbbb");
	SendIdentity(c[2], "cccccccc");

	TxBegin(5, 0);
	TxFragment(c, 2, "{\"f\":1}");
	TxFragment(c + 1, 2, "{\"f\":2}");
	TxFragment(c, 1, "{\"f\":3}");
	TxFragment(NULL, 0, "{\"f\":4}");
	TxEnd();
	frame = ReadFrame(clients[0]);
	IsText(frame.text,
		   "{\"type\":\"transaction\",\"seq\":1,"
		   "\"position\":\"00000000000000000000000000000005aaaaaaaa\","
		   "\"changes\":[{\"f\":1},{\"f\":3}]}",
		   "each gets its own fragments");
	frame = ReadFrame(clients[1]);
	IsText(frame.text,
		   "{\"type\":\"transaction\",\"seq\":1,"
		   "\"position\":\"00000000000000000000000000000005bbbbbbbb\","
		   "\"changes\":[{\"f\":1},{\"f\":2}]}",
		   "in order, with its own tag");
	frame = ReadFrame(clients[2]);
	IsText(frame.text,
		   "{\"type\":\"transaction\",\"seq\":1,"
		   "\"position\":\"00000000000000000000000000000005cccccccc\","
		   "\"changes\":[{\"f\":2}]}",
		   "and its own count");

	/* A transaction without a fragment for a connection is no frame for it. */
	SendTransaction(6, 0, c, 1, "{\"g\":1}");
	SendTransaction(7, LINK_TX_STREAM, c, 3, "{\"g\":2}");
	SendTransaction(8, 0, c + 2, 1, "{\"g\":3}");
	frame = ReadFrame(clients[0]);
	Ok(Seq(frame.text) == 2 && Position(frame.text) == 6, "next for the first");
	frame = ReadFrame(clients[0]);
	Ok(Seq(frame.text) == 3 && Position(frame.text) == 7, "streams count too");
	frame = ReadFrame(clients[1]);
	Ok(Seq(frame.text) == 2 && Position(frame.text) == 7, "what it did not get leaves no hole");
	frame = ReadFrame(clients[2]);
	Ok(Seq(frame.text) == 2 && Position(frame.text) == 7, "nor for the third");
	frame = ReadFrame(clients[2]);
	Ok(Seq(frame.text) == 3 && Position(frame.text) == 8, "which gets one more");

	/* Everything of a connection is in one order. */
	SendText(c[0], "first");
	SendTransaction(9, 0, c, 1, "{}");
	SendPing(c, 1, "ping ", "");
	SendText(c[0], "second");
	SendMark(c[0], 42);
	SendTransaction(10, LINK_TX_STREAM, c, 1, "{}");
	SendText(c[0], "third");
	IsText(ReadFrame(clients[0]).text, "first", "order: a message");
	Is(Position(ReadFrame(clients[0]).text), 9, "order: a transaction");
	IsText(ReadFrame(clients[0]).text, "ping aaaaaaaa", "order: a ping");
	IsText(ReadFrame(clients[0]).text, "second", "order: a message");
	Is(Position(ReadFrame(clients[0]).text), 10, "order: a stream");
	IsText(ReadFrame(clients[0]).text, "third", "order: a message");
	{
		Kept *kept = Take(LINK_FLUSHED, c[0]);
		uint32_t mark;

		memcpy(&mark, kept->data + 4, 4);
		Is(mark, 42, "the mark is told");
	}

	/* A message in the middle of a transaction does not split it. */
	TxBegin(11, 0);
	TxFragment(c, 2, "1");
	SendText(c[0], "between");
	SendMark(c[1], 1);
	TxFragment(c, 2, "2");
	SendText(c[2], "meanwhile");
	SendPlain(LINK_STATS_ASK, NULL, 0);
	Take(LINK_STATS, 0);
	IsText(ReadFrame(clients[2]).text, "meanwhile", "others go on while a transaction is open");
	Ok(!HasData(clients[0]), "nothing of an open transaction is sent");
	TxEnd();
	snprintf(expected, sizeof(expected), "\"changes\":[1,2]}");
	frame = ReadFrame(clients[0]);
	Ok(frame.text != NULL && strstr(frame.text, expected) != NULL, "it is one frame in the end");
	IsText(ReadFrame(clients[0]).text, "between", "and then the message");
	Ok(strstr(ReadFrame(clients[1]).text, expected) != NULL, "the other member gets it too");
	Take(LINK_FLUSHED, c[1]);

	/* Many fragments. */
	TxBegin(12, 0);
	for (i = 0; i < 1000; i++)
	{
		snprintf(expected, sizeof(expected), "{\"n\":%d}", i);
		TxFragment(c, i % 2 == 0 ? 3 : 1, expected);
	}
	TxEnd();
	for (i = 0; i < 3; i++)
	{
		const char *p;
		int n = 0;

		frame = ReadFrame(clients[i]);
		for (p = frame.text; (p = strstr(p, "{\"n\":")) != NULL; p++)
			n++;
		Is((uint64_t) n, i == 0 ? 1000 : 500, "many fragments for client %d", i);
	}

	/* Audiences that are told once; texts of different ones are not mixed. */
	TxBegin(12, 0);
	TxAudience(c, 2);
	TxShared(0, "1");
	TxAudience(c + 1, 2);
	TxShared(0, "2");
	TxShared(1, "3");
	TxShared(0, "4");
	TxFragment(c, 2, "5");
	TxAudience(NULL, 0);
	TxShared(2, "6");
	TxShared(1, "7");
	SendText(c[2], "meanwhile");
	TxShared(1, "8");
	TxEnd();
	Ok(strstr(ReadFrame(clients[0]).text, "[1,2,4,5]}") != NULL, "shared audiences: one");
	Ok(strstr(ReadFrame(clients[1]).text, "[1,2,3,4,5,7,8]}") != NULL, "shared audiences: both");
	Ok(strstr(ReadFrame(clients[2]).text, "[3,7,8]}") != NULL, "shared audiences: the other");
	IsText(ReadFrame(clients[2]).text, "meanwhile", "shared audiences: a message");

	/* They are numbered anew in each. */
	TxBegin(12, 0);
	TxAudience(c + 2, 1);
	TxShared(0, "1");
	TxEnd();
	Ok(strstr(ReadFrame(clients[2]).text, "[1]}") != NULL, "shared audiences of another");
	Ok(!HasData(clients[0]) && !HasData(clients[1]), "shared audiences: for nobody else");

	/* Gone members, in the audience and while a transaction is open. */
	TxBegin(13, 0);
	TxFragment(c, 2, "{}");
	SendPlain(LINK_STATS_ASK, NULL, 0);
	Take(LINK_STATS, 0);
	Disconnect(clients[1]);
	Take(LINK_CLOSED, c[1]);
	TxFragment(c, 2, "{}");
	TxEnd();
	pair[0] = c[1];
	pair[1] = c[2];
	SendTransaction(14, 0, pair, 2, "{}");
	Is(Position(ReadFrame(clients[0]).text), 13,
	   "a member that leaves does not disturb the others");
	Is(Position(ReadFrame(clients[2]).text), 14, "nor does one that has left");

	SendPlain(LINK_STATS_ASK, NULL, 0);
	{
		Kept *kept = Take(LINK_STATS, 0);
		WireReader r = WireReaderInit(kept->data, kept->length);

		Is(WireGetU64(&r), 3, "stats: accepted");
		Is(WireGetU64(&r), 2, "stats: open");
		Ok(WireGetU64(&r) >= 20, "stats: frames");
		Ok(WireGetU64(&r) > 1000, "stats: bytes");
		Is(WireGetU64(&r), 0, "stats: nothing is queued");
		Is(WireGetU64(&r), 0, "stats: nobody was behind");
		Is(WireGetU64(&r), 0, "stats: nobody was refused");
		Ok(WireGetU64(&r) == 0, "stats: nothing was received");
		for (int i = 0; i < LINK_LAG_BUCKETS; i++)
			Is(WireGetU64(&r), 0, "stats: no commit's time was told");
		Is(WireGetU64(&r), 0, "stats: nor a sum");
		Is(WireGetU32(&r), 0, "stats: no refusals");
		Is(WireGetU64(&r), 0, "stats: nobody was throttled");
		Ok(WireAtEnd(&r), "stats: no more");
	}

	/* A commit of three seconds ago; a replay and one without time do not count. */
	{
		uint64_t committed = (uint64_t) (time(NULL) - 3) * 1000000;
		uint32_t halves[2];

		memcpy(halves, &committed, sizeof(halves));
		SendPlain(LINK_TX_TIME, halves, 2);
		pair[0] = c[0];
		pair[1] = c[2];
		SendTransaction(15, 0, pair, 2, "{}");
		SendTransaction(16, 0, pair, 2, "{}");
		SendPlain(LINK_TX_TIME, halves, 2);
		SendTransaction(17, LINK_TX_STREAM, pair, 2, "{}");
		for (uint64_t number = 15; number < 18; number++)
		{
			Is(Position(ReadFrame(clients[0]).text), number, "a transaction");
			Is(Position(ReadFrame(clients[2]).text), number, "the same");
		}
	}
	SendPlain(LINK_STATS_ASK, NULL, 0);
	{
		Kept *kept = Take(LINK_STATS, 0);
		WireReader r = WireReaderInit(kept->data, kept->length);
		uint64_t lags = 0;

		WireTake(&r, 64);
		for (int i = 0; i < LINK_LAG_BUCKETS; i++)
		{
			uint64_t n = WireGetU64(&r);

			lags += n;
			if (i == LinkLagBucket(3500000))
				Is(n, 2, "stats: the lag of both frames");
		}
		Is(lags, 2, "stats: and of no other");
		Ok(WireGetU64(&r) >= 6000000, "stats: at least three seconds each");
	}

	/* What is known of connections; and whether messages come through. */
	{
		uint32_t ask[4] = {3, c[0], 999999, c[2]};
		uint32_t probe[2] = {7, 0};
		Kept *kept;
		WireReader r;

		SendPlain(LINK_CONNECTIONS_ASK, ask, 4);
		kept = Take(LINK_CONNECTIONS, 0);
		r = WireReaderInit(kept->data, kept->length);
		Is(WireGetU32(&r), 2, "connections: those that there are");
		Is(WireGetU32(&r), c[0], "connections: the first");
		Is(WireGetU64(&r), 0, "connections: nothing queued");
		Ok(WireGetU64(&r) >= 10, "connections: frames");
		Ok(WireGetU64(&r) > 500, "connections: bytes");
		Ok(WireGetU64(&r) < 60000, "connections: heard");
		Is(WireGetU32(&r), c[2], "connections: the other");
		WireTake(&r, 32);
		Ok(WireAtEnd(&r), "connections: no more");

		SendPlain(LINK_PROBE, probe, 2);
		kept = Take(LINK_PROBED, 0);
		r = WireReaderInit(kept->data, kept->length);
		Is(WireGetU64(&r), 7, "a probe comes back");
	}
	Disconnect(clients[0]);
	Disconnect(clients[2]);
	Is((uint64_t) StopGateway(), 0, "it ends with 0");
}

void
TestParts(void)
{
	Settings settings = DefaultSettings();
	Client *client;
	Frame frame;
	char text[3000];
	int parts = 0;
	int fragments = 0;
	bool right = true;
	bool last = false;
	int i;

	settings.max_frame = 2000;
	StartGateway(&settings);
	client = OpenIdentified();

	TxBegin(1, 0);
	for (i = 0; i < 20; i++)
	{
		memset(text, 'x', 400);
		snprintf(text + 400, 100, "%d", i);
		TxFragment(&client->conn, 1, text);
	}
	/* One that is too large for any part. */
	memset(text, 'y', 2500);
	text[2500] = '\0';
	TxFragment(&client->conn, 1, text);
	TxFragment(&client->conn, 1, "\"end\"");
	TxEnd();
	SendTransaction(2, 0, &client->conn, 1, "{}");

	while (!last && parts < 100)
	{
		const char *p;

		frame = ReadFrame(client);
		parts++;
		last = strstr(frame.text, "\"last\":true") != NULL;
		snprintf(text, sizeof(text),
				 "{\"type\":\"transaction\",\"seq\":1,\"part\":%d,\"last\":%s,"
				 "\"position\":\"00000000000000000000000000000001abcdefgh\","
				 "\"changes\":[",
				 parts, last ? "true" : "false");
		right = right && strncmp(frame.text, text, strlen(text)) == 0 &&
				strcmp(frame.text + frame.length - 2, "]}") == 0 &&
				(frame.length <= 2000 || strstr(frame.text, "yyyy") != NULL);
		for (p = frame.text + strlen(text); p < frame.text + frame.length; p++)
			fragments += *p == ',' || *p == ']';
	}
	Ok(right, "a large transaction comes in parts, each a whole object");
	Ok(parts >= 6 && parts <= 10, "of about max_frame");
	Is((uint64_t) fragments, 22, "with all fragments");
	frame = ReadFrame(client);
	IsText(frame.text,
		   "{\"type\":\"transaction\",\"seq\":2,"
		   "\"position\":\"00000000000000000000000000000002abcdefgh\","
		   "\"changes\":[{}]}",
		   "the next one is whole and has the next number");
	Disconnect(client);
	Is((uint64_t) StopGateway(), 0, "it ends with 0");
}

/* A client with a small window, which then does not read. */
Client *
OpenStalled(void)
{
	Client *client = ConnectSmall(4096);
	const char *answer = Handshake(client, "/v1/socket", NULL);
	Kept *kept;

	if (strncmp(answer, "HTTP/1.1 101", 12) != 0)
		Die("no upgrade: %s", answer);
	kept = Take(LINK_OPEN, 0);
	memcpy(&client->conn, kept->data, sizeof(client->conn));
	SendIdentity(client->conn, "stalled_");
	return client;
}

/* Sends transactions of 20 kB until the connection is behind. */
static uint64_t
FillUntilBehind(uint32_t conn, uint64_t *number)
{
	static char text[20000];
	Kept *kept;
	uint64_t last;
	uint64_t first = *number;

	memset(text, 'f', sizeof(text) - 1);
	while (!Has(LINK_BEHIND, conn) && *number - first < 3000)
	{
		SendTransaction(++*number, 0, &conn, 1, text);
		Step(1);
	}
	kept = Take(LINK_BEHIND, conn);
	memcpy(&last, kept->data + 4, sizeof(last));
	return last;
}

void
TestPressure(void)
{
	Settings settings = DefaultSettings();
	Client *slow;
	Client *fast;
	uint64_t number = 0;
	uint64_t seq = 0;
	uint64_t position = 0;
	uint64_t last;
	uint64_t sent_last;
	bool right = true;
	int round;
	int pings = 0;
	char text[100];

	settings.send_buffer = 200000;
	StartGateway(&settings);
	slow = OpenStalled();
	fast = OpenIdentified();

	for (round = 0; round < 3; round++)
	{
		last = FillUntilBehind(slow->conn, &number);
		sent_last = number;
		Ok(last > position && last < number, "round %d: a client that does not read is behind",
		   round);

		/*
		 * Dropped until it is resumed, and so are pings and answers to sync,
		 * whose positions would lie behind what was dropped; messages and
		 * streams are not.
		 */
		SendTransaction(++number, 0, &slow->conn, 1, "\"dropped\"");
		SendTransaction(number, LINK_TX_STREAM, &slow->conn, 1, "\"stream\"");
		SendSynced(slow->conn, "untrue");
		snprintf(text, sizeof(text), "message %d", round);
		SendText(slow->conn, text);
		SendPing(&slow->conn, 1, "ping ", "");
		SendPing(&slow->conn, 1, "ping ", "");
		SendTransaction(number, 0, &fast->conn, 1, "{}");
		Is(Position(ReadFrame(fast).text), number, "round %d: others are served", round);
		Ok(!Has(LINK_DRAINED, slow->conn), "round %d: it has not drained", round);

		/* It reads what had been written, and no more of the feed. */
		for (;;)
		{
			Frame frame = ReadFrame(slow);

			if (strcmp(frame.text, text) == 0)
				break;
			seq++;
			right = right && Seq(frame.text) == seq;
			if (strstr(frame.text, "\"stream\"") != NULL)
				continue;
			right = right && strstr(frame.text, "\"dropped\"") == NULL &&
					Position(frame.text) == position + 1;
			position++;
		}
		Ok(right, "round %d: whole frames, and seq has no hole", round);
		Is(position, last, "round %d: up to where the gateway said", round);
		Take(LINK_DRAINED, slow->conn);
		Ok(!Has(LINK_BEHIND, slow->conn) && !HasData(slow),
		   "round %d: drained is told, and nothing else comes", round);

		/* The feed worker goes on from there. */
		SendPlain(LINK_RESUME, &slow->conn, 1);
		Ok(Take(LINK_PING_DUE, 0) != NULL, "round %d: a ping that was left out is asked for", round);
		SendPing(&slow->conn, 1, "ping ", "");
		IsText(ReadFrame(slow).text, "ping stalled_", "round %d: and sent", round);
		for (number = last; number < sent_last;)
		{
			SendTransaction(++number, 0, &slow->conn, 1, "{}");
			seq++;
			position++;
			right = right && Seq(ReadFrame(slow).text) == seq;
		}
		Ok(right, "round %d: it goes on without a hole", round);
		SendPing(&slow->conn, 1, "ping ", "");
		IsText(ReadFrame(slow).text, "ping stalled_", "round %d: pings come again", round);
		SendSynced(slow->conn, "synced");
		IsText(ReadFrame(slow).text, "synced", "round %d: and answers to sync", round);
		pings++;
	}
	Is((uint64_t) pings, 3, "three rounds were made");

	/* One transaction larger than send_buffer still gets through. */
	{
		static char large[600000];

		memset(large, 'L', sizeof(large) - 1);
		SendTransaction(++number, 0, &fast->conn, 1, large);
		Is(Position(ReadFrame(fast).text), number,
		   "a transaction larger than send_buffer gets through");
		SendTransaction(number, 0, &slow->conn, 1, large);
		SendPlain(LINK_STATS_ASK, NULL, 0);
		Take(LINK_STATS, 0);
		Is(Position(ReadFrame(slow).text), number, "to a slow client too");
		Ok(!Has(LINK_BEHIND, 0), "and nobody is behind for it");
	}

	/* Parts of a transaction that has begun to go out are not dropped. */
	settings.max_frame = 30000;
	SendConfig(&settings);
	{
		static char text2[20000];
		Kept *kept;
		uint64_t first = number + 1;
		int parts = 0;
		int i;
		bool ended = false;

		memset(text2, 'p', sizeof(text2) - 1);
		TxBegin(++number, 0);
		for (i = 0; i < 100; i++)
			TxFragment(&slow->conn, 1, text2);
		TxEnd();
		/* Behind with the next ones, while parts of the first wait. */
		while (!Has(LINK_BEHIND, slow->conn))
		{
			SendTransaction(++number, 0, &slow->conn, 1, text2);
			Step(1);
		}
		kept = Take(LINK_BEHIND, slow->conn);
		memcpy(&last, kept->data + 4, sizeof(last));
		Is(last, first, "behind in the middle of a transaction of parts");
		while (!ended)
		{
			Frame frame = ReadFrame(slow);

			parts++;
			ended = strstr(frame.text, "\"last\":true") != NULL;
			if (Position(frame.text) != first)
				break;
		}
		Ok(ended && parts == 100, "all of its parts come");
		Take(LINK_DRAINED, slow->conn);
	}

	/* Behind for ever: the connection is dropped like any other. */
	SendPlain(LINK_RESUME, &slow->conn, 1);
	FillUntilBehind(slow->conn, &number);
	SendClose(slow->conn, 4004, "x");
	{
		uint64_t start = NowMs();

		Take(LINK_CLOSED, slow->conn);
		Ok(NowMs() - start < 9000, "a stalled connection can be closed");
	}
	SendPlain(LINK_STATS_ASK, NULL, 0);
	{
		Kept *kept = Take(LINK_STATS, 0);
		WireReader r = WireReaderInit(kept->data, kept->length);

		WireTake(&r, 32);
		Is(WireGetU64(&r), 0, "stats: nothing is queued");
		Is(WireGetU64(&r), 5, "stats: it was behind five times");
	}
	Disconnect(slow);
	Disconnect(fast);
	Is((uint64_t) StopGateway(), 0, "it ends with 0");
}

void
TestPacing(void)
{
	Settings settings = DefaultSettings();
	Client *client;
	static char text[50000];
	Kept *kept;
	uint32_t mark;
	int sent = 0;
	int i;

	settings.send_buffer = 100000;
	StartGateway(&settings);
	memset(text, 't', sizeof(text) - 1);

	/* Marks tell when a stalled client has taken something. */
	client = OpenStalled();
	for (i = 0; i < 8; i++)
	{
		SendText(client->conn, text);
		SendMark(client->conn, (uint32_t) i);
	}
	SendPlain(LINK_STATS_ASK, NULL, 0);
	Take(LINK_STATS, 0);
	Ok(CountKept(LINK_FLUSHED) < 8, "marks wait for the socket");
	for (i = 0; i < 8; i++)
		Is(ReadFrame(client).length, sizeof(text) - 1, "message %d comes", i);
	for (i = 0; i < 8; i++)
	{
		kept = Take(LINK_FLUSHED, client->conn);
		memcpy(&mark, kept->data + 4, 4);
		if (mark != (uint32_t) i)
			break;
	}
	Is((uint64_t) i, 8, "then all marks, in order");

	/* Who does not keep the pacing is dropped. */
	while (!Has(LINK_CLOSED, client->conn) && sent < 2000)
	{
		SendText(client->conn, text);
		SendTransaction((uint64_t) sent, LINK_TX_STREAM, &client->conn, 1, text);
		Step(1);
		sent += 2;
	}
	kept = Take(LINK_CLOSED, client->conn);
	Is((uint8_t) kept->data[4], LINK_CAUSE_TOO_SLOW,
	   "messages and streams without end cost the connection");
	Note("after %d kB", sent * 50);
	Ok(sent * 50000 > 4 * 100000 + 1024 * 1024, "but not before their bound");
	Ok(!Has(LINK_BEHIND, 0), "it is not called behind");
	Disconnect(client);
	Is((uint64_t) StopGateway(), 0, "it ends with 0");
}

/* ---- snapshots ---- */

static void
WritePage(int fd, const char *text, uint32_t length, uint32_t prefix)
{
	uint32_t header[2];

	header[0] = length;
	header[1] = prefix;
	if (write(fd, header, sizeof(header)) < 0 ||
		(length > 0 && write(fd, text, length) != (ssize_t) length))
		Die("could not write a page");
}

static int
NewFile(void)
{
	char path[] = "/tmp/gateway_test.XXXXXX";
	int fd = mkstemp(path);

	if (fd < 0)
		Die("mkstemp");
	unlink(path);
	return fd;
}

static void
ExpectDone(uint32_t conn, uint32_t sub, uint8_t ok, const char *what)
{
	Kept *kept = Take(LINK_SNAPSHOT_DONE, conn);
	uint32_t got;

	memcpy(&got, kept->data + 4, 4);
	Ok(got == sub && (uint8_t) kept->data[8] == ok, "%s", what);
}

static const char *const prefixes[] = {"{\"type\":\"snapshot\",\"entity\":\"a\",\"rows\":",
									   "{\"type\":\"snapshot\",\"entity\":\"b\",\"rows\":"};

/* Files that end or are damaged in all ways. */
static void
TestBrokenFiles(Client *client)
{
	uint32_t header[2];
	int pair[2];
	int fd;

	fd = NewFile();
	SendSnapshot(client->conn, 20, fd, prefixes, 2);
	close(fd);
	ExpectDone(client->conn, 20, 1, "an empty file is an empty snapshot");

	fd = NewFile();
	WritePage(fd, "[1]", 3, 0);
	WritePage(fd, "[2]", 3, 0);
	if (ftruncate(fd, 8 + 3 + 8 + 2) < 0)
		Die("ftruncate");
	SendSnapshot(client->conn, 21, fd, prefixes, 2);
	close(fd);
	IsText(ReadFrame(client).text, "{\"type\":\"snapshot\",\"entity\":\"a\",\"rows\":[1]}",
		   "the good pages of a cut file come");
	ExpectDone(client->conn, 21, 0, "a cut file is reported");

	fd = NewFile();
	if (write(fd, "abc", 3) < 0)
		Die("write");
	SendSnapshot(client->conn, 22, fd, prefixes, 2);
	close(fd);
	ExpectDone(client->conn, 22, 0, "so is one with half a header");

	fd = NewFile();
	WritePage(fd, "[1]", 3, 2);
	SendSnapshot(client->conn, 23, fd, prefixes, 2);
	close(fd);
	ExpectDone(client->conn, 23, 0, "and one with an unknown prefix");

	fd = NewFile();
	header[0] = 16 * 1024 * 1024 + 1;
	header[1] = 0;
	if (write(fd, header, sizeof(header)) < 0)
		Die("write");
	if (ftruncate(fd, 20 * 1024 * 1024) < 0)
		Die("ftruncate");
	SendSnapshot(client->conn, 24, fd, prefixes, 2);
	close(fd);
	ExpectDone(client->conn, 24, 0, "and one with a page that is too large");

	if (pipe(pair) < 0)
		Die("pipe");
	SendSnapshot(client->conn, 25, pair[0], prefixes, 2);
	close(pair[0]);
	close(pair[1]);
	ExpectDone(client->conn, 25, 0, "and what is no file");
}

void
TestSnapshots(void)
{
	enum
	{
		PAGES = 100,
		PAGE = 60000
	};
	Settings settings = DefaultSettings();
	Client *client;
	Client *slow;
	static char page[PAGE];
	char *huge;
	Frame frame;
	int fd;
	int i;
	int pages;
	int others;
	bool right = true;

	settings.send_buffer = 2000000;
	StartGateway(&settings);
	client = OpenIdentified();

	fd = NewFile();
	WritePage(fd, "[1]", 3, 0);
	WritePage(fd, "[2]", 3, 1);
	WritePage(fd, "", 0, 1);
	SendSnapshot(client->conn, 1, fd, prefixes, 2);
	close(fd);
	IsText(ReadFrame(client).text, "{\"type\":\"snapshot\",\"entity\":\"a\",\"rows\":[1]}",
		   "a page");
	IsText(ReadFrame(client).text, "{\"type\":\"snapshot\",\"entity\":\"b\",\"rows\":[2]}",
		   "a page with another prefix");
	IsText(ReadFrame(client).text, "{\"type\":\"snapshot\",\"entity\":\"b\",\"rows\":}",
		   "an empty page");
	ExpectDone(client->conn, 1, 1, "the end is told");

	/* Two connections share a file, and a connection has several. */
	fd = NewFile();
	for (i = 0; i < PAGES; i++)
	{
		memset(page, 'a' + i % 26, sizeof(page));
		WritePage(fd, page, PAGE, (uint32_t) i % 2);
	}
	slow = OpenStalled();
	SendSnapshot(slow->conn, 2, fd, prefixes, 2);
	SendSnapshot(slow->conn, 3, fd, prefixes, 2);
	SendSnapshot(client->conn, 2, fd, prefixes, 2);
	for (i = 0; i < PAGES; i++)
	{
		frame = ReadFrame(client);
		right = right && frame.length == PAGE + strlen(prefixes[0]) + 1 &&
				frame.text[100] == 'a' + i % 26 && frame.text[PAGE] == 'a' + i % 26;
	}
	Ok(right, "a fast client gets its snapshot while a slow one waits");
	ExpectDone(client->conn, 2, 1, "and its end is told");
	Ok(!Has(LINK_SNAPSHOT_DONE, slow->conn), "the slow one's is not");

	/* Frames that are queued later go before the pages that are left. */
	for (i = 0; i < 10; i++)
		SendTransaction((uint64_t) i + 1, 0, &slow->conn, 1, "{}");
	SendText(slow->conn, "message");
	SendPlain(LINK_STATS_ASK, NULL, 0);
	Take(LINK_STATS, 0);
	pages = 0;
	others = 0;
	while (others < 11)
	{
		frame = ReadFrame(slow);
		if (strstr(frame.text, "\"snapshot\"") != NULL)
			pages++;
		else
			others++;
	}
	Ok(pages < PAGES / 2, "live frames go before the pages that are left");
	Note("%d of %d pages came before", pages, 2 * PAGES);
	while (pages < 2 * PAGES)
	{
		frame = ReadFrame(slow);
		right = right && strstr(frame.text, "\"snapshot\"") != NULL &&
				frame.text[100] == 'a' + (pages % PAGES) % 26;
		pages++;
		/* Some while they are being sent. */
		if (pages % 50 == 0)
		{
			SendText(slow->conn, "between");
			do
			{
				frame = ReadFrame(slow);
				if (strcmp(frame.text, "between") != 0)
					pages++;
			} while (strcmp(frame.text, "between") != 0);
		}
	}
	Ok(right, "all pages of both snapshots come, in order");
	ExpectDone(slow->conn, 2, 1, "the first ends");
	ExpectDone(slow->conn, 3, 1, "and the second");

	/* Stopping one of two. */
	SendSnapshot(slow->conn, 4, fd, prefixes, 2);
	SendSnapshot(slow->conn, 5, fd, prefixes, 2);
	SendSnapshot(slow->conn, 6, fd, prefixes, 2);
	{
		uint32_t numbers[2];

		numbers[0] = slow->conn;
		numbers[1] = 4;
		SendPlain(LINK_SNAPSHOT_STOP, numbers, 2);
		numbers[1] = 6;
		SendPlain(LINK_SNAPSHOT_STOP, numbers, 2);
		numbers[1] = 77;
		SendPlain(LINK_SNAPSHOT_STOP, numbers, 2);
	}
	pages = 0;
	while (!Has(LINK_SNAPSHOT_DONE, slow->conn))
	{
		if (!HasData(slow))
			Step(20);
		else if (ReadFrame(slow).opcode == OPCODE_TEXT)
			pages++;
		else
			Die("the connection has ended");
		Step(0);
	}
	ExpectDone(slow->conn, 5, 1, "a snapshot beside stopped ones ends");
	/* The first of them had begun; what it sent before the stop counts, too. */
	SendText(slow->conn, "end");
	while (strcmp(ReadFrame(slow).text, "end") != 0)
		pages++;
	Ok(pages < PAGES + PAGES / 2, "the stopped ones sent no more");
	Ok(!Has(LINK_SNAPSHOT_DONE, slow->conn), "and have no end");

	/* Closing in the middle. */
	SendSnapshot(slow->conn, 7, fd, prefixes, 2);
	SendSnapshot(slow->conn, 8, fd, prefixes, 2);
	ReadFrame(slow);
	Disconnect(slow);
	Take(LINK_CLOSED, slow->conn);
	SendSnapshot(slow->conn, 9, fd, prefixes, 2);
	close(fd);

	TestBrokenFiles(client);

	/* A page of many megabytes. */
	huge = malloc(15000000);
	memset(huge, 'h', 15000000);
	fd = NewFile();
	WritePage(fd, huge, 15000000, 0);
	WritePage(fd, "[]", 2, 0);
	SendSnapshot(client->conn, 30, fd, prefixes, 2);
	close(fd);
	frame = ReadFrame(client);
	Ok(frame.length == 15000001 + strlen(prefixes[0]) && frame.text[14000000] == 'h',
	   "a page of 15 MB comes");
	Is(ReadFrame(client).length, 3 + strlen(prefixes[0]), "and the next one");
	ExpectDone(client->conn, 30, 1, "and the end");
	free(huge);
	Disconnect(client);
	Is((uint64_t) StopGateway(), 0, "it ends with 0");
}

/* Many connections: each has to get its own frames, all, in order. */
void
TestMany(void)
{
	enum
	{
		N = 1000,
		ROUNDS = 60
	};
	Settings settings = DefaultSettings();
	static Client *clients[N];
	static uint32_t all[N];
	static uint32_t some[N];
	struct rlimit limit;
	uint64_t start;
	uint64_t number = 0;
	int bad = 0;
	long memory = 0;
	int i;
	int round;

	getrlimit(RLIMIT_NOFILE, &limit);
	if (limit.rlim_cur < N + 100)
	{
		limit.rlim_cur = limit.rlim_max < N + 100 ? limit.rlim_max : N + 100;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
	StartGateway(&settings);
	start = NowMs();
	for (i = 0; i < N; i++)
	{
		clients[i] = OpenIdentified();
		all[i] = clients[i]->conn;
		if (i == 99)
			memory = StatusField("VmRSS:");
	}
	Note("%d connections in %llu ms", N, (unsigned long long) (NowMs() - start));
	Note("%ld bytes of memory for each", (StatusField("VmRSS:") - memory) * 1024 / (N - 100));

	start = NowMs();
	for (round = 0; round < ROUNDS; round++)
	{
		uint32_t n = 0;

		SendTransaction(++number, 0, all, N, "{\"to\":\"all\"}");
		for (i = round % 7; i < N; i += 7)
			some[n++] = all[i];
		TxBegin(++number, 0);
		TxFragment(some, n, "{\"to\":\"some\"}");
		TxFragment(some, n / 2, "{\"to\":\"half\"}");
		TxEnd();
		if (round % 10 == 0)
			SendPing(all, N, "ping ", "");
		Step(0);
	}
	for (i = 0; i < N; i++)
		SendText(all[i], "end");
	for (i = 0; i < N; i++)
	{
		uint64_t last = 0;
		int pings = 0; /* one may be left out while another waits */
		int frames = 0;
		int want = ROUNDS;

		for (round = 0; round < ROUNDS; round++)
			want += i % 7 == round % 7;
		for (;;)
		{
			Frame frame = ReadFrame(clients[i]);

			if (frame.opcode != OPCODE_TEXT)
			{
				bad++;
				break;
			}
			if (strcmp(frame.text, "end") == 0)
				break;
			if (strcmp(frame.text, "ping abcdefgh") == 0)
			{
				pings++;
				continue;
			}
			frames++;
			if (Seq(frame.text) != (uint64_t) frames || Position(frame.text) <= last)
				bad++;
			last = Position(frame.text);
		}
		if (frames != want || pings < 1 || pings > 6)
			bad++;
	}
	Is((uint64_t) bad, 0, "%d connections get all their frames in order", N);
	Note("%d transactions in %llu ms", 2 * ROUNDS, (unsigned long long) (NowMs() - start));

	/* All leave at once, while things are sent to them. */
	SendTransaction(++number, 0, all, N, "{\"to\":\"all\"}");
	Step(0);
	for (i = 0; i < N; i++)
	{
		if (i % 2 == 0)
			Disconnect(clients[i]);
		else
			SendClose(all[i], 4003, "enough");
	}
	SendTransaction(++number, 0, all, N, "{\"to\":\"all\"}");
	for (i = 1; i < N; i += 2)
	{
		Frame frame;

		do
			frame = ReadFrame(clients[i]);
		while (frame.opcode == OPCODE_TEXT);
		if (frame.opcode != OPCODE_CLOSE || frame.close_code != 4003)
			bad++;
		Disconnect(clients[i]);
	}
	for (i = 0; i < N; i++)
		Take(LINK_CLOSED, all[i]);
	Is((uint64_t) bad, 0, "half of them leave, the others are closed in order");

	/* A storm of new ones, none of which waits for the other. */
	for (i = 0; i < 300; i++)
	{
		char text[300];

		clients[i] = Connect();
		snprintf(text, sizeof(text),
				 "GET /v1/socket HTTP/1.1\r\n"
				 "Host: localhost\r\nUpgrade: websocket\r\n"
				 "Connection: Upgrade\r\n"
				 "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
				 "Sec-WebSocket-Version: 13\r\n\r\n");
		SendRaw(clients[i], text, strlen(text));
	}
	for (i = 0; i < 300; i++)
	{
		if (strncmp(ReadHttp(clients[i]), "HTTP/1.1 101", 12) != 0)
			bad++;
	}
	for (i = 0; i < 300; i++)
	{
		Take(LINK_OPEN, 0);
		Disconnect(clients[i]);
	}
	Is((uint64_t) bad, 0, "300 at once are accepted");
	Is((uint64_t) StopGateway(), 0, "it ends with 0");
}
