/*-------------------------------------------------------------------------
 *
 * test_txmessages.c
 *		Tests of messages within transactions, and of casts.
 *
 *-------------------------------------------------------------------------
 */
#include "tests.h"

static void
TxMessage(const uint32_t *conns, uint32_t n, uint8_t flags, const char *suffix, const char *json)
{
	LinkFrameBegin(worker.link, LINK_TX_MESSAGE);
	LinkFramePutU32(worker.link, n);
	LinkFramePutRaw(worker.link, conns, n * sizeof(uint32_t));
	LinkFramePutU8(worker.link, flags);
	LinkFramePutBytes(worker.link, suffix, strlen(suffix));
	LinkFramePutRaw(worker.link, json, strlen(json));
	LinkFrameEnd(worker.link);
}

static void
SendMany(uint16_t type, const uint32_t *conns, uint32_t n, const char *json)
{
	LinkFrameBegin(worker.link, type);
	LinkFramePutU32(worker.link, n);
	LinkFramePutRaw(worker.link, conns, n * sizeof(uint32_t));
	LinkFramePutRaw(worker.link, json, strlen(json));
	LinkFrameEnd(worker.link);
}

#define P5 "00000000000000000000000000000005"
#define P6 "00000000000000000000000000000006"
#define P7 "00000000000000000000000000000007"

void
TestTxMessages(void)
{
	Settings settings = DefaultSettings();
	Client *clients[3];
	uint32_t c[3];
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
	TxMessage(c + 1, 2, 0, ".1", "{\"m\":1");
	TxMessage(c + 1, 1, 0, ".4", "{\"m\":4");
	TxEnd();
	IsText(ReadFrame(clients[0]).text,
		   "{\"type\":\"transaction\",\"seq\":1,\"position\":\"" P5 "aaaaaaaa\",\"changes\":[{\"f\":1}]}",
		   "a frame without messages has the whole position");
	IsText(ReadFrame(clients[1]).text,
		   "{\"type\":\"transaction\",\"seq\":1,\"position\":\"" P5 "bbbbbbbb.0\",\"changes\":[{\"f\":1}]}",
		   "one that messages follow says so");
	IsText(ReadFrame(clients[1]).text, "{\"m\":1,\"position\":\"" P5 "bbbbbbbb.1\"}",
		   "each message says where it is");
	IsText(ReadFrame(clients[1]).text, "{\"m\":4,\"position\":\"" P5 "bbbbbbbb\"}",
		   "and the last one has the whole position");
	IsText(ReadFrame(clients[2]).text, "{\"m\":1,\"position\":\"" P5 "cccccccc\"}",
		   "without changes there is no frame");

	TxBegin(6, LINK_TX_STREAM);
	TxFragment(c + 2, 1, "{}");
	TxMessage(c + 2, 1, LINK_MESSAGE_NO_POSITION, ".1", "{\"m\":1");
	TxEnd();
	IsText(ReadFrame(clients[2]).text,
		   "{\"type\":\"transaction\",\"seq\":1,\"position\":\"" P6 "cccccccc\",\"changes\":[{}]}",
		   "and no seq was used up");
	IsText(ReadFrame(clients[2]).text, "{\"m\":1}", "a position may be left out");

	/* A message of another kind comes behind all of it. */
	TxBegin(7, 0);
	TxFragment(c, 1, "{}");
	SendText(c[0], "behind");
	SendMany(LINK_CAST, c, 2, "{\"cast\":1}");
	TxMessage(c, 1, 0, ".2.3.4", "{\"m\":1");
	TxEnd();
	IsText(ReadFrame(clients[0]).text,
		   "{\"type\":\"transaction\",\"seq\":2,\"position\":\"" P7 "aaaaaaaa.0\",\"changes\":[{}]}",
		   "a transaction is not torn apart");
	IsText(ReadFrame(clients[0]).text, "{\"m\":1,\"position\":\"" P7 "aaaaaaaa\"}", "its message");
	IsText(ReadFrame(clients[0]).text, "behind", "then what came meanwhile");
	IsText(ReadFrame(clients[0]).text, "{\"cast\":1}", "a cast, too");
	IsText(ReadFrame(clients[1]).text, "{\"cast\":1}", "which others got at once");
	for (i = 0; i < 3; i++)
		Disconnect(clients[i]);
	Is((uint64_t) StopGateway(), 0, "it ends with 0");
}

/* The number after `name` in a text. */
static long
Find(const char *text, const char *name)
{
	const char *p = text != NULL ? strstr(text, name) : NULL;

	return p != NULL ? strtol(p + strlen(name), NULL, 10) : -1;
}

void
TestCastPressure(void)
{
	static char text[20001];
	Settings settings = DefaultSettings();
	Client *slow;
	Client *fast;
	uint32_t both[2];
	uint64_t number = 0;
	int sent = 2000;
	int got = 0;
	int messages = 0;
	long last = -1;
	bool ordered = true;
	int i;

	settings.send_buffer = 200000;
	StartGateway(&settings);
	slow = OpenStalled();
	fast = OpenIdentified();
	both[0] = slow->conn;
	both[1] = fast->conn;
	for (i = 0; i < sent; i++)
	{
		int length = snprintf(text, sizeof(text), "{\"cast\":%d,", i);

		memset(text + length, 'x', sizeof(text) - 1 - (size_t) length);
		SendMany(LINK_CAST, both, 2, text);
		if (Find(ReadFrame(fast).text, "\"cast\":") == i)
			got++;
	}
	Is((uint64_t) got, (uint64_t) sent, "who reads gets all casts");
	Ok(!Has(LINK_CLOSED, slow->conn) && !Has(LINK_BEHIND, slow->conn),
	   "who does not read is neither closed nor behind");
	SendMany(LINK_SHARE, both, 2, "{\"cast\":5000}");
	IsText(ReadFrame(fast).text, "{\"cast\":5000}", "what is shared comes in order");
	SendText(slow->conn, "end");
	for (got = 0;; got++)
	{
		const char *frame = ReadFrame(slow).text;
		long n;

		if (frame == NULL || strcmp(frame, "end") == 0)
			break;
		n = Find(frame, "\"cast\":");
		ordered = ordered && n > last;
		last = n;
	}
	Ok(ordered && got > 0 && got < sent, "%d of %d came, in order", got, sent);
	Is((uint64_t) last, 5000, "what is shared is never left out");

	/* What a transaction has for a connection is dropped as a whole. */
	DropKept();
	text[sizeof(text) - 1] = '\0';
	while (!Has(LINK_BEHIND, slow->conn) && number < 3000)
	{
		TxBegin(++number, 0);
		TxFragment(&slow->conn, 1, "{}");
		TxMessage(&slow->conn, 1, 0, ".1", text);
		TxMessage(&slow->conn, 1, 0, ".2", "{\"m\":2");
		TxEnd();
		Step(1);
	}
	{
		Kept *kept = Take(LINK_BEHIND, slow->conn);
		uint64_t behind;

		memcpy(&behind, kept->data + 4, sizeof(behind));
		Ok(behind > 0 && behind < number, "a client that does not read is behind");
		SendMark(slow->conn, 7);
		for (i = 0; i < (int) behind; i++)
		{
			bool frame = Find(ReadFrame(slow).text, "\"seq\":") == i + 1;

			if (frame && strncmp(ReadFrame(slow).text, "{\"cast\":", 8) == 0 &&
				Find(ReadFrame(slow).text, "{\"m\":") == 2)
				messages++;
		}
		Is((uint64_t) messages, behind, "each with its messages");
		Take(LINK_FLUSHED, slow->conn);
		Ok(!HasData(slow), "and nothing of the next one");
	}
	Disconnect(slow);
	Disconnect(fast);
	Is((uint64_t) StopGateway(), 0, "it ends with 0");
}
