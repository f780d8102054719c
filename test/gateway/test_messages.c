/*-------------------------------------------------------------------------
 *
 * test_messages.c
 *		Tests of single connections: messages, pings, time-outs, closing.
 *
 *-------------------------------------------------------------------------
 */
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests.h"

/* Waits for a message of the client and compares it. */
static void
ExpectMessage(Client *client, const char *text, const char *what)
{
	Kept *kept = Take(LINK_MESSAGE, client->conn);

	IsText(kept->data + 4, text, "%s", what);
}

/* Waits for the end of a connection and compares its cause. */
static void
ExpectClosed(uint32_t conn, LinkCause cause, const char *what)
{
	Kept *kept = Take(LINK_CLOSED, conn);

	Ok(kept->length == 5 && (uint8_t) kept->data[4] == cause, "%s", what);
	if ((uint8_t) kept->data[4] != cause)
		Note("the cause was %d", (uint8_t) kept->data[4]);
}

static void
ExpectCloseFrame(Client *client, uint16_t code, const char *what)
{
	Frame frame = ReadFrame(client);

	Ok(frame.opcode == OPCODE_CLOSE && frame.close_code == code, "%s", what);
	if (frame.opcode != OPCODE_CLOSE || frame.close_code != code)
		Note("opcode %d, code %d", frame.opcode, frame.close_code);
}

/* Sends a frame that has to be refused. */
static void
ExpectRefused(uint8_t first_byte, const void *data, size_t length, uint16_t code, LinkCause cause,
			  const char *what)
{
	Client *client = OpenSocket();

	SendFrame(client, first_byte, data, length);
	ExpectCloseFrame(client, code, what);
	SendFrame(client, 0x88, "\x03\xe8", 2);
	ExpectClosed(client->conn, cause, "and its cause is told");
	Disconnect(client);
}

void
TestMessages(void)
{
	Settings settings = DefaultSettings();
	Client *client;
	Client *other;
	Frame frame;
	char text[70000];
	char frames[4096];
	size_t length = 0;
	bool right = true;
	int i;

	settings.max_message = 60000;
	StartGateway(&settings);
	client = OpenSocket();
	other = OpenSocket();
	Ok(client->conn != other->conn, "connections have different numbers");

	SendMessage(client, "{\"type\":\"connect\"}");
	SendMessage(other, "{\"type\":\"sync\"}");
	ExpectMessage(client, "{\"type\":\"connect\"}", "a message is passed on");
	ExpectMessage(other, "{\"type\":\"sync\"}", "another one too");
	SendMessage(client, "h\xc3\xa9llo \xe2\x82\xac \xf0\x9f\x98\x80");
	ExpectMessage(client, "h\xc3\xa9llo \xe2\x82\xac \xf0\x9f\x98\x80", "UTF-8 is passed on");
	SendMessage(client, "");
	ExpectMessage(client, "", "an empty message too");

	memset(text, 'm', 60000);
	text[60000] = '\0';
	SendMessage(client, text);
	ExpectMessage(client, text, "so is one of the largest size");

	/* Fragments, cut inside a character, with a ping in between. */
	SendFrame(client, 0x01, "one \xe2\x82", 6);
	SendFrame(client, 0x89, "are you there", 13);
	SendFrame(client, 0x00, "\xac two", 5);
	SendFrame(client, 0x80, "", 0);
	ExpectMessage(client, "one \xe2\x82\xac two", "fragments are put together");
	frame = ReadFrame(client);
	Ok(frame.opcode == OPCODE_PONG && strcmp(frame.text, "are you there") == 0,
	   "a ping in between is answered");

	/* Many messages in one piece, and a frame in single bytes. */
	for (i = 0; i < 50; i++)
	{
		snprintf(text, sizeof(text), "message %d", i);
		length += BuildFrame(frames + length, 0x81, text, strlen(text));
	}
	SendRaw(client, frames, length);
	for (i = 0; i < 50; i++)
	{
		snprintf(text, sizeof(text), "message %d", i);
		right = right && strcmp(Take(LINK_MESSAGE, client->conn)->data + 4, text) == 0;
	}
	Ok(right, "50 messages in one piece arrive in order");
	length = BuildFrame(frames, 0x81, "byte by byte", 12);
	for (i = 0; i < (int) length; i++)
		SendRaw(client, frames + i, 1);
	ExpectMessage(client, "byte by byte", "a message in single bytes arrives");

	/* The answer to a ping stays here; anything like it does not. */
	SendMessage(client, "{\"type\":\"pong\"}");
	SendMessage(client, "{\"type\":\"pong\" }");
	ExpectMessage(client, "{\"type\":\"pong\" }",
				  "a pong is not passed on, what is not exactly one is");
	Ok(!Has(LINK_MESSAGE, client->conn), "and nothing else");

	/* The other direction. */
	SendText(client->conn, "{\"type\":\"connected\"}");
	SendText(other->conn, "");
	SendText(client->conn, "{\"type\":\"ok\"}");
	frame = ReadFrame(client);
	IsText(frame.text, "{\"type\":\"connected\"}", "a message is sent");
	frame = ReadFrame(client);
	IsText(frame.text, "{\"type\":\"ok\"}", "and a second one");
	frame = ReadFrame(other);
	Ok(frame.opcode == OPCODE_TEXT && frame.length == 0, "an empty one too");
	SendText(99999, "to nobody");
	for (i = 0; i < 3; i++)
	{
		static const size_t lengths[] = {125, 126, 65536};

		memset(text, 'a' + i, lengths[i]);
		text[lengths[i]] = '\0';
		SendText(client->conn, text);
		frame = ReadFrame(client);
		IsText(frame.text, text, "a message of %zu bytes is sent", lengths[i]);
	}
	Disconnect(other);
	ExpectClosed(other->conn, LINK_CAUSE_CLIENT, "the end of a client is told");

	memset(text, 'x', sizeof(text));
	ExpectRefused(0x81, text, 60001, 1009, LINK_CAUSE_TOO_BIG,
				  "a message above max_message is refused");
	ExpectRefused(0x82, "binary", 6, 1003, LINK_CAUSE_PROTOCOL, "a binary message is refused");
	ExpectRefused(0x81, "bad \xff", 5, 1007, LINK_CAUSE_PROTOCOL,
				  "text that is not UTF-8 is refused");
	ExpectRefused(0x81, "cut \xe2\x82", 6, 1007, LINK_CAUSE_PROTOCOL,
				  "text that ends inside a character is refused");
	ExpectRefused(0x81, "\xed\xa0\x80", 3, 1007, LINK_CAUSE_PROTOCOL, "a surrogate is refused");
	ExpectRefused(0x81, "\xc0\x80", 2, 1007, LINK_CAUSE_PROTOCOL, "an overlong form is refused");

	/* Too large in fragments, each of which would be fine. */
	{
		Client *third = OpenSocket();

		SendFrame(third, 0x01, text, 40000);
		SendFrame(third, 0x00, text, 30000);
		ExpectCloseFrame(third, 1009,
						 "fragments that are too large together "
						 "are refused");
		Disconnect(third);
		ExpectClosed(third->conn, LINK_CAUSE_TOO_BIG, "and the cause is told");
	}

	/* A character cut by an empty last fragment. */
	{
		Client *third = OpenSocket();

		SendFrame(third, 0x01, "\xe2\x82", 2);
		SendFrame(third, 0x80, "", 0);
		ExpectCloseFrame(third, 1007,
						 "half a character before an empty last "
						 "fragment is refused");
		Disconnect(third);
	}
	/* Frames that break the protocol itself; libwebsockets refuses them. */
	{
		Client *third = OpenSocket();

		SendFrame(third, 0x80, "x", 1);
		frame = ReadFrame(third);
		Ok(frame.opcode == 0 || frame.opcode == OPCODE_CLOSE,
		   "a continuation of nothing is refused");
		Disconnect(third);
		Take(LINK_CLOSED, third->conn);
		third = OpenSocket();
		SendFrame(third, 0xc1, "x", 1);
		frame = ReadFrame(third);
		Ok(frame.opcode == 0 || frame.opcode == OPCODE_CLOSE, "extension bits are refused");
		Disconnect(third);
		Take(LINK_CLOSED, third->conn);
	}

	SendMessage(client, "still here");
	ExpectMessage(client, "still here", "nobody else is disturbed");
	Disconnect(client);
	Is((uint64_t) StopGateway(), 0, "it ends with 0");
}

void
TestPings(void)
{
	Settings settings = DefaultSettings();
	Client *clients[3];
	uint32_t conns[3];
	uint32_t due = 0;
	Frame frame;
	Kept *kept;
	int i;

	settings.heartbeat_ms = 2000;
	StartGateway(&settings);
	for (i = 0; i < 3; i++)
	{
		clients[i] = OpenSocket();
		conns[i] = clients[i]->conn;
	}
	SendIdentity(conns[0], "tag-zero");
	SendIdentity(conns[1], "tag-one_");
	SendIdentity(conns[0], "tag-next");

	while (due != 3)
	{
		WireReader r;
		uint32_t n;

		kept = Take(LINK_PING_DUE, 0);
		r = WireReaderInit(kept->data, kept->length);
		n = WireGetU32(&r);
		while (n-- > 0)
		{
			uint32_t conn = WireGetU32(&r);

			if (conn == conns[0])
				due |= 1;
			else if (conn == conns[1])
				due |= 2;
			else
				due |= 4;
		}
		if (r.failed)
			due |= 8;
	}
	Is(due, 3, "pings are due for those that have an identity, and no others");

	SendPing(conns, 2, "{\"type\":\"ping\",\"position\":\"p", "\",\"x\":1}");
	frame = ReadFrame(clients[0]);
	IsText(frame.text, "{\"type\":\"ping\",\"position\":\"ptag-next\",\"x\":1}",
		   "a ping has the latest tag of its connection");
	frame = ReadFrame(clients[1]);
	IsText(frame.text, "{\"type\":\"ping\",\"position\":\"ptag-one_\",\"x\":1}", "each its own");
	for (i = 0; i < 3; i++)
		Disconnect(clients[i]);
	Is((uint64_t) StopGateway(), 0, "it ends with 0");
}

void
TestTimeouts(void)
{
	Settings settings = DefaultSettings();
	Client *silent;
	Client *alive;
	Client *nobody;
	Client *slow;
	static char text[50000];
	uint64_t start;
	uint64_t took;
	bool closed = false;
	int i;

	settings.heartbeat_ms = 1000;
	settings.connect_timeout_ms = 1500;
	StartGateway(&settings);
	start = NowMs();
	silent = OpenIdentified();
	alive = OpenIdentified();
	nobody = OpenSocket();

	/* It never sends anything, but reads a little all the time. */
	slow = ConnectSmall(4096);
	Handshake(slow, "/v1/socket", NULL);
	memcpy(&slow->conn, Take(LINK_OPEN, 0)->data, 4);
	SendIdentity(slow->conn, "slow____");
	memset(text, 's', sizeof(text) - 1);
	for (i = 0; i < 80; i++)
		SendText(slow->conn, text);

	ExpectCloseFrame(nobody, 4001, "without an identity it is closed by 4001");
	took = NowMs() - start;
	Ok(took >= 1400 && took < 20000, "after connect_timeout_ms");
	SendFrame(nobody, 0x88, "\x0f\xa1", 2);
	ExpectClosed(nobody->conn, LINK_CAUSE_CONNECT_TIMEOUT, "and the cause is told");

	/* One answers, the other does not. */
	while (!closed && NowMs() - start < 30000)
	{
		if (Has(LINK_PING_DUE, 0))
		{
			Take(LINK_PING_DUE, 0);
			SendMessage(alive, "{\"type\":\"pong\"}");
		}
		if (recv(slow->fd, text, 20000, 0) == 0)
			Die("the slow client was dropped");
		Step(100);
		closed = HasData(silent);
	}
	took = NowMs() - start;
	ExpectCloseFrame(silent, 4000, "a silent connection is closed by 4000");
	Ok(took >= 10900 && took < 25000, "after heartbeat_ms + 10 s");
	if (took < 10900 || took >= 25000)
		Note("after %llu ms", (unsigned long long) took);
	Disconnect(silent);
	ExpectClosed(silent->conn, LINK_CAUSE_HEARTBEAT, "and the cause is told");
	Ok(!Has(LINK_CLOSED, slow->conn), "one that reads slowly is not silent");
	SendMessage(alive, "alive");
	ExpectMessage(alive, "alive", "the one that answers is still there");
	Disconnect(alive);
	Disconnect(nobody);
	Disconnect(slow);
	Is((uint64_t) StopGateway(), 0, "it ends with 0");
}

void
TestClosing(void)
{
	Settings settings = DefaultSettings();
	Client *client;
	Client *other;
	Frame frame;
	uint64_t start;

	StartGateway(&settings);

	client = OpenIdentified();
	SendText(client->conn, "last words");
	SendClose(client->conn, 4004, "token expired");
	SendText(client->conn, "too late");
	frame = ReadFrame(client);
	IsText(frame.text, "last words", "what is queued before a close is sent");
	frame = ReadFrame(client);
	Ok(frame.opcode == OPCODE_CLOSE && frame.close_code == 4004 &&
		   strcmp(frame.text + 2, "token expired") == 0,
	   "the close has its code and reason, and nothing comes behind");
	SendFrame(client, 0x88, "\x0f\xa4", 2);
	ExpectClosed(client->conn, LINK_CAUSE_SERVER, "the cause is the server");
	Disconnect(client);

	/* A client that does not answer the close. */
	client = OpenIdentified();
	SendClose(client->conn, 4003, "");
	frame = ReadFrame(client);
	Is(frame.close_code, 4003, "a close without a reason is sent");
	start = NowMs();
	ExpectClosed(client->conn, LINK_CAUSE_SERVER, "one that does not answer is dropped");
	Ok(NowMs() - start < 8000, "in a few seconds");
	Disconnect(client);

	/* The client closes. */
	client = OpenIdentified();
	SendFrame(client, 0x88,
			  "\x03\xe8"
			  "bye",
			  5);
	ExpectCloseFrame(client, 1000, "a client's close is answered");
	ExpectClosed(client->conn, LINK_CAUSE_CLIENT, "and told");
	Disconnect(client);

	/* Things said to a connection that has gone are ignored. */
	SendText(client->conn, "nobody hears");
	SendClose(client->conn, 1000, "");
	SendMark(client->conn, 7);
	SendIdentity(client->conn, "12345678");
	SendPlain(LINK_RESUME, &client->conn, 1);

	/* Both at once. */
	client = OpenIdentified();
	other = OpenIdentified();
	SendFrame(client, 0x88, "\x03\xe8", 2);
	SendClose(client->conn, 4003, "x");
	frame = ReadFrame(client);
	Ok(frame.opcode == OPCODE_CLOSE, "a close that crosses another does no harm");
	Take(LINK_CLOSED, client->conn);
	SendText(other->conn, "still here");
	frame = ReadFrame(other);
	IsText(frame.text, "still here", "nobody else is disturbed");
	Disconnect(client);

	/* The feed worker goes while somebody is connected. */
	Is((uint64_t) StopGateway(), 0, "the end of the link is its end, with 0");
	Is(ReadFrame(other).opcode, 0, "and that of its connections");
	Disconnect(other);
}

/*
 * The feed worker does not read the link, and clients send all they can: the
 * gateway has to stop reading them, and to lose nothing.
 */
void
TestDeafWorker(void)
{
	enum
	{
		SENDERS = 4
	};
	Settings settings = DefaultSettings();
	Client *clients[SENDERS];
	static char text[16000];
	static char frame[16100];
	uint64_t sent[SENDERS] = {0};
	uint64_t got[SENDERS] = {0};
	size_t offset[SENDERS] = {0};
	size_t length;
	uint64_t total = 0;
	uint64_t last_progress;
	bool right = true;
	int i;

	StartGateway(&settings);
	for (i = 0; i < SENDERS; i++)
		clients[i] = OpenSocket();
	memset(text, 's', sizeof(text));
	length = BuildFrame(frame, 0x81, text, sizeof(text));

	worker.deaf = true;
	last_progress = NowMs();
	while (NowMs() - last_progress < 1500 && total < 200 * 1024 * 1024)
	{
		for (i = 0; i < SENDERS; i++)
		{
			ssize_t n = write(clients[i]->fd, frame + offset[i], length - offset[i]);

			if (n <= 0)
				continue;
			last_progress = NowMs();
			total += (uint64_t) n;
			offset[i] += (size_t) n;
			if (offset[i] == length)
			{
				offset[i] = 0;
				sent[i]++;
			}
		}
	}
	Ok(total < 100 * 1024 * 1024, "clients are not read while the link is full");
	Note("%llu kB were taken", (unsigned long long) total / 1024);

	/* It can still be told things, and clients get them. */
	SendText(clients[0]->conn, "hello");
	{
		Frame f = ReadFrame(clients[0]);

		IsText(f.text, "hello", "the other direction works meanwhile");
	}

	worker.deaf = false;
	for (i = 0; i < SENDERS; i++)
	{
		SendRaw(clients[i], frame + offset[i], length - offset[i]);
		sent[i]++;
	}
	for (i = 0; i < SENDERS; i++)
	{
		while (got[i] < sent[i])
		{
			Kept *kept = Take(LINK_MESSAGE, clients[i]->conn);

			right = right && kept->length == sizeof(text) + 4 &&
					memcmp(kept->data + 4, text, sizeof(text)) == 0;
			got[i]++;
		}
	}
	Ok(right, "afterwards every message arrives whole");
	SendMessage(clients[1], "the end");
	ExpectMessage(clients[1], "the end", "and reading goes on");
	for (i = 0; i < SENDERS; i++)
		Disconnect(clients[i]);
	Is((uint64_t) StopGateway(), 0, "it ends with 0");
}

static uint32_t
RetryAfter(const char *text)
{
	const char *field = strstr(text, "\"retry_after_ms\":");

	return field != NULL ? (uint32_t) strtoul(field + 17, NULL, 10) : 0;
}

void
TestShutdown(void)
{
	enum
	{
		N = 20
	};
	Settings settings = DefaultSettings();
	Client *clients[N];
	uint32_t values[N];
	uint64_t start;
	bool right = true;
	bool differ = true;
	int status;
	int i;
	int j;

	StartGateway(&settings);
	for (i = 0; i < N; i++)
		clients[i] = OpenIdentified();
	start = NowMs();
	SendShutdown("restart", 1000, 3000);
	for (i = 0; i < N; i++)
	{
		Frame frame = ReadFrame(clients[i]);

		values[i] = RetryAfter(frame.text != NULL ? frame.text : "");
		right = right && frame.opcode == OPCODE_TEXT &&
				strstr(frame.text, "{\"type\":\"closing\",\"reason\":\"restart\","
								   "\"retry_after_ms\":") == frame.text &&
				values[i] >= 1000 && values[i] <= 3000;
		frame = ReadFrame(clients[i]);
		right = right && frame.opcode == OPCODE_CLOSE && frame.close_code == 1001;
		/* Half of them answer. */
		if (i % 2 == 0)
			SendFrame(clients[i], 0x88, "\x03\xe9", 2);
	}
	Ok(right, "every client is told to come back, and closed by 1001");
	for (i = 0; i < N; i++)
	{
		for (j = 0; j < i; j++)
			differ = differ && values[i] != values[j];
	}
	Ok(differ, "each at another time");
	for (i = 0; i < N; i++)
		Take(LINK_CLOSED, clients[i]->conn);
	status = WaitExit();
	Is((uint64_t) status, 0, "the exit code is 0");
	Ok(NowMs() - start < 20000, "within its time");
	for (i = 0; i < N; i++)
		Disconnect(clients[i]);

	StartGateway(&settings);
	Take(LINK_HELLO, 0);
	SendShutdown("none", 1, 2);
	Is((uint64_t) WaitExit(), 0, "with nobody connected it ends at once");

	StartGateway(&settings);
	clients[0] = OpenIdentified();
	kill(worker.pid, SIGINT);
	kill(worker.pid, SIGHUP);
	SendText(clients[0]->conn, "still here");
	IsText(ReadFrame(clients[0]).text, "still here", "SIGINT and SIGHUP do nothing");
	kill(worker.pid, SIGTERM);
	{
		Frame frame = ReadFrame(clients[0]);

		values[0] = frame.text != NULL ? RetryAfter(frame.text) : 0;
		Ok(frame.text != NULL && strstr(frame.text, "\"reason\":\"shutdown\"") &&
			   values[0] >= 500 && values[0] <= 5000,
		   "SIGTERM shuts down");
	}
	Is((uint64_t) WaitExit(), 0, "and the exit code is 0");
	Disconnect(clients[0]);

	/* A stalled client must not hold it up. */
	StartGateway(&settings);
	clients[0] = ConnectSmall(4096);
	Handshake(clients[0], "/v1/socket", NULL);
	clients[0]->conn = 1;
	Take(LINK_OPEN, 1);
	for (i = 0; i < 100; i++)
	{
		static char text[50000];

		memset(text, 'x', sizeof(text) - 1);
		SendText(1, text);
	}
	start = NowMs();
	SendShutdown("restart", 1, 1);
	Is((uint64_t) WaitExit(), 0, "a stalled client does not hold it up");
	Ok(NowMs() - start < 20000, "within its time");
	Disconnect(clients[0]);

	/* Nonsense on the link. */
	StartGateway(&settings);
	Take(LINK_HELLO, 0);
	SendPlain((LinkType) 999, NULL, 0);
	status = WaitExit();
	Ok(WIFEXITED(status) && WEXITSTATUS(status) == 2, "an unknown message on the link is an error");
}
