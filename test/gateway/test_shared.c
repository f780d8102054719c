/*-------------------------------------------------------------------------
 *
 * test_shared.c
 *		What several connections get is kept once for all of them: does each
 *		still get its own?
 *
 * Transactions of random fragments go to random groups of clients that read at
 * once, do not read, have other tags, are ahead by some frames, compress, or
 * leave while much is queued for them.  A model keeps what each one has to get.
 *
 *-------------------------------------------------------------------------
 */
#include "tests.h"

#define CLIENTS		 7
#define TRANSACTIONS 400
#define MOST_CHANGES 9

typedef struct Expected
{
	uint64_t number;
	char *changes; /* with a comma behind each */
} Expected;

static struct
{
	Client *client;
	const char *tag;
	bool reads; /* at once */
	bool left;
	uint64_t ahead; /* frames that only it got */
	uint32_t n;		/* frames that it has to get */
	uint32_t n_read;
	Expected frames[TRANSACTIONS];
} readers[CLIENTS];

static uint32_t random_state;

static uint32_t
Random(uint32_t below)
{
	random_state = random_state * 1664525 + 1013904223;
	return (random_state >> 8) % below;
}

static void
AppendChange(uint32_t i, uint64_t number, const char *change)
{
	Expected *frame;
	size_t old = 0;

	if (readers[i].n == 0 || readers[i].frames[readers[i].n - 1].number != number)
	{
		frame = &readers[i].frames[readers[i].n++];
		frame->number = number;
		frame->changes = NULL;
	}
	frame = &readers[i].frames[readers[i].n - 1];
	if (frame->changes != NULL)
		old = strlen(frame->changes);
	frame->changes = realloc(frame->changes, old + strlen(change) + 2);
	sprintf(frame->changes + old, "%s,", change);
}

static void
SendRandom(uint64_t number)
{
	static uint32_t id;
	static char change[3000];
	uint32_t n_changes = 1 + Random(MOST_CHANGES);
	uint32_t same = Random(1 << CLIENTS);
	uint32_t i;
	uint32_t j;

	TxBegin(number, 0);
	for (i = 0; i < n_changes; i++)
	{
		/* Groups that stay together, that part, and that meet again. */
		uint32_t group = Random(3) == 0 ? Random(1 << CLIENTS) : same;
		uint32_t conns[CLIENTS];
		uint32_t n = 0;
		int length = sprintf(change, "{\"id\":%u,\"pad\":\"", ++id);
		int pad = (int) Random(Random(4) == 0 ? 2900 : 60);

		memset(change + length, 'a' + (int) (id % 26), (size_t) pad);
		strcpy(change + length + pad, "\"}");
		for (j = 0; j < CLIENTS; j++)
		{
			if ((group & (1u << j)) == 0)
				continue;
			conns[n++] = readers[j].client->conn;
			if (!readers[j].left)
				AppendChange(j, number, change);
		}
		if (n > 0)
			TxFragment(conns, n, change);
	}
	TxEnd();
}

/* Reads one frame with all of its parts; false if it is not what it should be. */
static bool
ReadOne(uint32_t i)
{
	const Expected *expected = &readers[i].frames[readers[i].n_read++];
	uint64_t seq = readers[i].ahead + readers[i].n_read;
	const char *rest = expected->changes;
	int part = 0;

	for (;;)
	{
		Frame frame = ReadFrame(readers[i].client);
		char head[200];
		size_t n;
		bool last;

		if (frame.opcode != OPCODE_TEXT)
			return false;
		last = strstr(frame.text, "\"last\":false") == NULL;
		n = (size_t) sprintf(head, "{\"type\":\"transaction\",\"seq\":%llu,",
							 (unsigned long long) seq);
		if (part++ > 0 || !last)
			n += (size_t) sprintf(head + n, "\"part\":%d,\"last\":%s,", part,
								  last ? "true" : "false");
		n += (size_t) sprintf(head + n, "\"position\":\"%032llu%s\",\"changes\":[",
							  (unsigned long long) expected->number, readers[i].tag);
		if (strncmp(frame.text, head, n) != 0 || frame.length < n + 2 ||
			strcmp(frame.text + frame.length - 2, "]}") != 0 ||
			strncmp(frame.text + n, rest, frame.length - n - 2) != 0)
		{
			Note("client %u got %.200s", i, frame.text);
			Note("expected %.120s%.200s", head, rest);
			return false;
		}
		rest += frame.length - n - 2;
		if (*rest++ != ',')
			return false;
		if (last)
			return *rest == '\0';
	}
}

static bool
ReadAll(uint32_t i)
{
	while (readers[i].n_read < readers[i].n)
		if (!ReadOne(i))
			return false;
	return true;
}

void
TestShared(void)
{
	static const char *const tags[CLIENTS] = {"abcdefgh", "abcdefgh", "tagtwo__", "stalled_",
											  "othertag", "abcdefgh", "stalled_"};
	Settings settings = DefaultSettings();
	uint64_t number = 0;
	bool right = true;
	uint32_t i;
	uint32_t j;

	settings.send_buffer = 64 * 1024 * 1024;
	settings.compression = true;
	settings.max_frame = 0;
	StartGateway(&settings);
	random_state = 1;
	for (i = 0; i < CLIENTS; i++)
	{
		readers[i].tag = tags[i];
		readers[i].reads = i < 3 || i == 5;
		if (i == 5)
			readers[i].client = OpenPacking();
		else if (readers[i].reads)
			readers[i].client = OpenIdentified();
		else
			readers[i].client = OpenStalled();
		SendIdentity(readers[i].client->conn, tags[i]);
	}
	/* Frames have other numbers for some. */
	readers[1].ahead = 9;
	readers[3].ahead = 99;
	for (i = 0; i < CLIENTS; i++)
		for (j = 0; j < readers[i].ahead; j++)
		{
			SendTransaction(++number, 0, &readers[i].client->conn, 1, "{}");
			ReadFrame(readers[i].client);
		}

	for (i = 0; i < TRANSACTIONS; i++)
	{
		SendRandom(++number);
		if (i == TRANSACTIONS / 2)
		{
			/* Queued bodies lose one of those who refer to them. */
			Disconnect(readers[6].client);
			readers[6].left = true;
			Take(LINK_CLOSED, readers[6].client->conn);

			/* From here on most are sent in parts, which those who wait get, too. */
			settings.max_frame = 2000;
			SendConfig(&settings);
		}
		if (Random(5) > 0)
			continue;
		Step(0);
		for (j = 0; j < CLIENTS; j++)
			right = right && (!readers[j].reads || ReadAll(j));
	}
	for (j = 0; j < CLIENTS; j++)
		right = right && (!readers[j].reads || ReadAll(j));
	Ok(right, "those who read get what is theirs, and under their own name");
	Ok(readers[3].n_read == 0 && readers[4].n > 150, "much waits for those who do not");
	Ok(ReadAll(4), "one of them gets all of it when it reads");
	Ok(ReadAll(3), "and another one, when all others have gone on");

	/* With what was kept for them gone, the same goes on. */
	SendTransaction(++number, 0, &readers[3].client->conn, 1, "{}");
	Ok(strstr(ReadFrame(readers[3].client).text, "\"changes\":[{}]}") != NULL, "and on");
	SendPlain(LINK_STATS_ASK, NULL, 0);
	{
		Kept *kept = Take(LINK_STATS, 0);
		WireReader r = WireReaderInit(kept->data, kept->length);

		WireTake(&r, 32);
		Is(WireGetU64(&r), 0, "nothing is accounted for any more");
	}
	for (i = 0; i < CLIENTS; i++)
	{
		if (i != 6)
			Disconnect(readers[i].client);
		for (j = 0; j < readers[i].n; j++)
			free(readers[i].frames[j].changes);
	}
	Is((uint64_t) StopGateway(), 0, "it ends with 0");
}

/* Waits until the gateway has taken all that was sent to it; its memory in kB. */
static long
MemoryNow(void)
{
	SendPlain(LINK_STATS_ASK, NULL, 0);
	(void) Take(LINK_STATS, 0);
	return StatusField("VmRSS:");
}

#ifdef GATEWAY_DEBUG
/* What is free is kept by the sanitizer. */
#define MEMORY_FACTOR 1000
#else
#define MEMORY_FACTOR 1
#endif

/*
 * Pairs of clients that share nearly all with all others, but not everything; of
 * each pair one reads and one does not.  What is put together for a pair must not
 * stay until the second one reads, or memory would grow by all of it for each.
 */
static void
TestPairs(void)
{
	enum
	{
		PAIRS = 24,
		PIECES = 100
	};
	static char piece[60000];
	Settings settings = DefaultSettings();
	Client *fast[PAIRS];
	Client *slow[PAIRS];
	uint32_t conns[2 * PAIRS];
	long before;
	bool right = true;
	int i;

	settings.send_buffer = 64 * 1024 * 1024;
	settings.max_frame = 64 * 1024;
	StartGateway(&settings);
	for (i = 0; i < PAIRS; i++)
	{
		fast[i] = OpenIdentified();
		slow[i] = OpenStalled();
		conns[2 * i] = fast[i]->conn;
		conns[2 * i + 1] = slow[i]->conn;
	}
	before = MemoryNow();
	memset(piece, 'p', sizeof(piece) - 1);
	TxBegin(1, 0);
	for (i = 0; i < PIECES; i++)
		TxFragment(conns, 2 * PAIRS, piece);
	for (i = 0; i < PAIRS; i++)
	{
		char own[40];

		sprintf(own, "{\"pair\":%d}", i);
		TxFragment(&conns[2 * i], 2, own);
	}
	TxEnd();
	for (i = 0; i < PAIRS; i++)
	{
		char end[40];
		size_t pieces = 0;
		Frame frame;

		sprintf(end, "{\"pair\":%d}]}", i);
		do
		{
			frame = ReadFrame(fast[i]);
			pieces += frame.length / (sizeof(piece) - 1);
		} while (frame.opcode == OPCODE_TEXT && strstr(frame.text, "\"last\":false") != NULL);
		right = right && frame.opcode == OPCODE_TEXT && pieces == PIECES &&
				strcmp(frame.text + frame.length - strlen(end), end) == 0;
	}
	Ok(right, "pairs of which one does not read: the other one gets all");
	Ok(MemoryNow() - before < 64 * 1024L * MEMORY_FACTOR,
	   "and what it was sent does not stay for each pair: %ld kB", MemoryNow() - before);
	for (i = 0; i < PAIRS; i++)
	{
		Disconnect(fast[i]);
		Disconnect(slow[i]);
	}
	Is((uint64_t) StopGateway(), 0, "it ends with 0");
}

/* A transaction of many fragments, for connections whose buffers are full of it. */
static void
TestOpen(void)
{
	enum
	{
		N = 100,
		PIECES = 40000
	};
	Settings settings = DefaultSettings();
	Client *clients[N];
	uint32_t conns[N];
	long before;
	bool right = true;
	int i;

	settings.send_buffer = 64 * 1024;
	StartGateway(&settings);
	for (i = 0; i < N; i++)
	{
		clients[i] = OpenIdentified();
		conns[i] = clients[i]->conn;
	}
	before = MemoryNow();
	TxBegin(1, 0);
	for (i = 0; i < PIECES; i++)
	{
		/* Another audience each time, so that they do not become one. */
		TxFragment(conns, i % 2 == 0 ? N : N - 1, "{\"id\":1}");
		if (i % 100 == 0)
			Step(0);
	}
	Ok(MemoryNow() - before < 24 * 1024L * MEMORY_FACTOR,
	   "an open transaction costs nothing for each fragment and receiver: %ld kB",
	   MemoryNow() - before);
	TxEnd();
	for (i = 0; i < N; i++)
	{
		right = right && ReadFrame(clients[i]).opcode == OPCODE_TEXT;
		Disconnect(clients[i]);
	}
	Ok(right, "and comes in the end");
	Is((uint64_t) StopGateway(), 0, "it ends with 0");
}

void
TestSharedMemory(void)
{
	TestPairs();
	TestOpen();
}
