/*-------------------------------------------------------------------------
 *
 * link.c
 *		What the feed worker says to the gateway.
 *
 * Input: a byte of settings (harness.h), then operations, a byte each with what
 * belongs to it: messages of the link, well-formed (numbers of connections are
 * those of the clients of this input) or of any bytes, what clients send, and
 * time.
 *
 * The feed worker is trusted with what it says, not with memory: what is
 * malformed has to be seen (the gateway ends), and nothing else may break.
 *
 * Properties: what clients get is frames with consecutive `seq`, compressed
 * ones can be inflated; an event stream's lines are ours; and nobody is left
 * behind.
 *
 *-------------------------------------------------------------------------
 */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zlib.h>

#include "harness.h"

/* A WebSocket, one that compresses, an event stream and a poll. */
#define CLIENTS 4

static Peer *clients[CLIENTS];
static bool open_transaction;
static uint64_t last_number;
static Peer *waiting; /* for its number */

static void
OnMessage(const LinkMessage *message, uint32_t conn)
{
	if ((message->type == LINK_OPEN || message->type == LINK_REQUEST) && waiting != NULL)
		waiting->conn = conn;
}

static Peer *
Open(const char *request)
{
	Peer *peer = HarnessConnect();

	waiting = peer;
	HarnessSend(peer, request, strlen(request));
	HarnessTurn();
	waiting = NULL;
	if (peer->conn == 0)
		Fail("a client does not come in: %.*s", (int) peer->in.length, peer->in.data);
	return peer;
}

#define SOCKET                                        \
	"GET /v1/socket HTTP/1.1\r\nHost: localhost\r\n"  \
	"X-Forwarded-For: 192.0.2.1\r\n"                  \
	"Forwarded: for=192.0.2.1\r\n"                    \
	"Upgrade: websocket\r\nConnection: Upgrade\r\n"   \
	"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" \
	"Sec-WebSocket-Version: 13\r\n"
#define REQUEST(path)                              \
	"GET " path " HTTP/1.1\r\nHost: localhost\r\n" \
	"X-Forwarded-For: 192.0.2.1\r\n"               \
	"Forwarded: for=192.0.2.1\r\n\r\n"

/* ---- messages ---- */

static uint32_t
TakeConn(Input *in)
{
	uint8_t i = TakeU8(in);

	return i < CLIENTS ? clients[i]->conn : i;
}

/* Bytes, behind a byte that is their number. */
static const uint8_t *
TakeText(Input *in, size_t *length)
{
	*length = TakeU8(in);
	if (*length == 255)
		*length = TakeU16(in);
	return TakeBytes(in, length);
}

static void
PutText(Input *in, bool rest)
{
	size_t length;
	const uint8_t *text = TakeText(in, &length);

	if (rest)
		LinkFramePutRaw(worker, text, length);
	else
		LinkFramePutBytes(worker, text, length);
}

/* A bit for each client. */
static void
PutAudience(Input *in)
{
	uint8_t bits = TakeU8(in);
	uint32_t n = 0;
	int i;

	for (i = 0; i < CLIENTS; i++)
		n += (bits >> i) & 1;
	LinkFramePutU32(worker, n);
	for (i = 0; i < CLIENTS; i++)
		if ((bits >> i & 1) != 0)
			LinkFramePutU32(worker, clients[i]->conn);
}

static void
PutBegin(Input *in)
{
	static const char position[] = "\"position\":\"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
	static const char after[] = "\",\"changes\":[";

	LinkFrameBegin(worker, LINK_TX_BEGIN);
	LinkFramePutU64(worker, ++last_number);
	LinkFramePutU8(worker, TakeU8(in) & LINK_TX_STREAM);
	LinkFramePutBytes(worker, position, sizeof(position) - 1);
	LinkFramePutBytes(worker, after, sizeof(after) - 1);
	LinkFrameEnd(worker);
}

static int
File(Input *in)
{
	size_t length;
	const uint8_t *bytes = TakeText(in, &length);
	int fd = memfd_create("fuzz", MFD_CLOEXEC);

	if (fd < 0 || write(fd, bytes, length) < 0)
		Fail("could not make a file");
	return fd;
}

/* Pages as query_pages.c writes them, or any bytes. */
static int
PagesFile(Input *in)
{
	uint8_t n = TakeU8(in);
	int fd;
	int i;

	if (n > 8)
		return File(in);
	fd = memfd_create("fuzz", MFD_CLOEXEC);
	for (i = 0; i < n; i++)
	{
		uint32_t head[2];
		size_t length;
		const uint8_t *bytes;

		head[1] = TakeU8(in) & 3;
		bytes = TakeText(in, &length);
		head[0] = (uint32_t) length;
		if (fd < 0 || write(fd, head, sizeof(head)) < 0 || write(fd, bytes, length) < 0)
			Fail("could not make a file");
	}
	return fd;
}

static void
EndWith(int fd)
{
	LinkFrameEndWithDescriptor(worker, fd);
	close(fd);
}

static void
PutStream(Input *in)
{
	uint8_t client = TakeU8(in);
	uint8_t kind;
	uint8_t n;

	LinkFrameBegin(worker, LINK_STREAM);
	LinkFramePutU32(worker, clients[client % CLIENTS]->conn);
	kind = TakeU8(in);
	LinkFramePutU8(worker, kind);
	LinkFramePutU8(worker, TakeU8(in));
	LinkFramePutU32(worker, TakeU16(in));
	LinkFramePutU32(worker, TakeU16(in));
	LinkFramePutBytes(worker, "AAAA", 4);
	LinkFramePutBytes(worker, "Cache-Control: no-store\r\n", 25);
	n = TakeU8(in) & 7;
	LinkFramePutU16(worker, n);
	while (n-- > 0)
		PutText(in, false);
	LinkFrameEnd(worker);
}

static void
Operation(Input *in)
{
	uint8_t what = TakeU8(in);
	uint32_t n;
	uint8_t type;
	size_t length;
	const uint8_t *bytes;
	Peer *peer;

	/* The last are for what came later than many inputs. */
	switch (what < 244 ? what % 28 : 28 + what % 2)
	{
		case 0:
			LinkFrameBegin(worker, LINK_SEND);
			LinkFramePutU32(worker, TakeConn(in));
			PutText(in, true);
			LinkFrameEnd(worker);
			break;
		case 1:
			LinkFrameBegin(worker, LINK_SYNCED);
			LinkFramePutU32(worker, TakeConn(in));
			PutText(in, true);
			LinkFrameEnd(worker);
			break;
		case 2:
			LinkFrameBegin(worker, LINK_IDENTITY);
			LinkFramePutU32(worker, TakeConn(in));
			LinkFramePutRaw(worker, "abcdefgh", LINK_TAG_LENGTH);
			LinkFrameEnd(worker);
			break;
		case 3:
			PutBegin(in);
			open_transaction = true;
			break;
		case 4:
			LinkFrameBegin(worker, LINK_TX_FRAGMENT);
			PutAudience(in);
			PutText(in, true);
			LinkFrameEnd(worker);
			break;
		case 5:
			LinkFrameBegin(worker, LINK_TX_MESSAGE);
			PutAudience(in);
			LinkFramePutU8(worker, TakeU8(in) & 1);
			PutText(in, false);
			PutText(in, true);
			LinkFrameEnd(worker);
			break;
		case 6:
			LinkFrameBegin(worker, LINK_TX_END);
			LinkFrameEnd(worker);
			open_transaction = false;
			break;
		case 7:
			/* A whole one. */
			if (open_transaction)
				break;
			PutBegin(in);
			LinkFrameBegin(worker, LINK_TX_FRAGMENT);
			PutAudience(in);
			PutText(in, true);
			LinkFrameEnd(worker);
			LinkFrameBegin(worker, LINK_TX_END);
			LinkFrameEnd(worker);
			break;
		case 8:
			LinkFrameBegin(worker, LINK_CAST);
			PutAudience(in);
			PutText(in, true);
			LinkFrameEnd(worker);
			break;
		case 9:
			LinkFrameBegin(worker, LINK_SHARE);
			PutAudience(in);
			PutText(in, true);
			LinkFrameEnd(worker);
			break;
		case 10:
			LinkFrameBegin(worker, LINK_PING);
			PutAudience(in);
			PutText(in, false);
			PutText(in, false);
			LinkFrameEnd(worker);
			break;
		case 11:
			LinkFrameBegin(worker, LINK_MARK);
			LinkFramePutU32(worker, TakeConn(in));
			LinkFramePutU32(worker, TakeU8(in));
			LinkFrameEnd(worker);
			break;
		case 12:
			LinkFrameBegin(worker, LINK_SNAPSHOT);
			LinkFramePutU32(worker, TakeConn(in));
			LinkFramePutU32(worker, TakeU8(in));
			n = TakeU8(in) & 3;
			LinkFramePutU32(worker, n);
			while (n-- > 0)
				PutText(in, false);
			EndWith(PagesFile(in));
			break;
		case 13:
			LinkFrameBegin(worker, LINK_SNAPSHOT_STOP);
			LinkFramePutU32(worker, TakeConn(in));
			LinkFramePutU32(worker, TakeU8(in));
			LinkFrameEnd(worker);
			break;
		case 14:
			LinkFrameBegin(worker, LINK_CLOSE);
			LinkFramePutU32(worker, TakeConn(in));
			LinkFramePutU16(worker, TakeU16(in));
			PutText(in, false);
			LinkFrameEnd(worker);
			break;
		case 15:
			LinkFrameBegin(worker, TakeU8(in) & 1 ? LINK_RESUME : LINK_WAITING);
			LinkFramePutU32(worker, TakeConn(in));
			LinkFrameEnd(worker);
			break;
		case 16:
			PutStream(in);
			break;
		case 17:
			LinkFrameBegin(worker, LINK_BEGIN);
			LinkFramePutU32(worker, TakeConn(in));
			LinkFrameEnd(worker);
			break;
		case 18:
			LinkFrameBegin(worker, LINK_EVENT_ID);
			LinkFramePutU32(worker, TakeConn(in));
			LinkFramePutU16(worker, TakeU8(in));
			LinkFramePutU8(worker, TakeU8(in));
			LinkFramePutU8(worker, TakeU8(in));
			PutText(in, false);
			LinkFrameEnd(worker);
			break;
		case 19:
			LinkFrameBegin(worker, LINK_RESPONSE);
			LinkFramePutU32(worker, TakeConn(in));
			LinkFramePutU16(worker, TakeU16(in));
			LinkFramePutBytes(worker, "application/json", 16);
			LinkFramePutBytes(worker, "Cache-Control: no-store\r\n", 25);
			PutText(in, true);
			LinkFrameEnd(worker);
			break;
		case 20:
			LinkFrameBegin(worker, TakeU8(in) & 1 ? LINK_STATS_ASK : LINK_CONNECTIONS_ASK);
			PutAudience(in);
			LinkFrameEnd(worker);
			break;
		case 21:
			LinkFrameBegin(worker, TakeU8(in) & 1 ? LINK_PROBE : LINK_TX_TIME);
			LinkFramePutU64(worker, (uint64_t) TakeU16(in) << 40);
			LinkFrameEnd(worker);
			break;
		case 22:
			LinkFrameBegin(worker, LINK_TLS);
			PutText(in, false);
			if (TakeU8(in) & 1)
				EndWith(File(in));
			else
				LinkFrameEnd(worker);
			break;
		case 23:
			LinkFrameBegin(worker, LINK_BALANCE);
			LinkFramePutU32(worker, TakeU8(in));
			LinkFramePutU32(worker, TakeU8(in));
			EndWith(File(in));
			break;
		case 24:
			/* Any bytes; without a type the link itself would be damaged, see frames.c. */
			type = TakeU8(in);
			bytes = TakeText(in, &length);
			if (type == 0 || type == LINK_SHUTDOWN || type == LINK_LISTEN || type == LINK_CONFIG ||
				type == LINK_PATHS)
				break;
			LinkFrameBegin(worker, (LinkType) type);
			open_transaction = open_transaction || type == LINK_TX_BEGIN;
			if (TakeU8(in) & 1)
				LinkFramePutU32(worker, clients[0]->conn);
			LinkFramePutRaw(worker, bytes, length);
			if (TakeU8(in) & 1)
				EndWith(File(in));
			else
				LinkFrameEnd(worker);
			break;
		case 25:
			HarnessAdvance((uint32_t) TakeU8(in) * 250);
			break;
		case 26:
			peer = clients[TakeU8(in) % CLIENTS];
			bytes = TakeText(in, &length);
			if (peer->fd >= 0)
				HarnessSend(peer, bytes, length);
			break;
		case 27:
			peer = clients[TakeU8(in) % CLIENTS];
			HarnessDisconnect(peer);
			HarnessTurn();
			break;
		case 28:
			LinkFrameBegin(worker, LINK_TX_AUDIENCE);
			PutAudience(in);
			LinkFrameEnd(worker);
			break;
		case 29:
			LinkFrameBegin(worker, LINK_TX_SHARED);
			LinkFramePutU32(worker, TakeU8(in) & 7);
			PutText(in, true);
			LinkFrameEnd(worker);
			break;
	}
}

/* ---- what clients get ---- */

static void
CheckInflates(const unsigned char *data, size_t length)
{
	static unsigned char out[1024 * 1024];
	z_stream stream;

	memset(&stream, 0, sizeof(stream));
	if (inflateInit2(&stream, -15) != Z_OK)
		Fail("no inflater");
	stream.next_in = (unsigned char *) data;
	stream.avail_in = (unsigned int) length;
	do
	{
		int result;

		stream.next_out = out;
		stream.avail_out = sizeof(out);
		result = inflate(&stream, Z_SYNC_FLUSH);
		if (result != Z_OK && result != Z_BUF_ERROR)
			Fail("a message does not inflate");
	} while (stream.avail_out == 0);
	if (stream.avail_in > 0)
		Fail("a message does not inflate to its end");
	inflateEnd(&stream);
}

static unsigned long last_seq;

static void
CheckPacked(const unsigned char *payload, size_t length, bool packed)
{
	if (packed)
		CheckInflates(payload, length);
}

static void
CheckSeq(const unsigned char *payload, size_t length, bool packed)
{
	unsigned long seq;

	if (length <= 30 || memcmp(payload, "{\"type\":\"transaction\",\"seq\":", 28) != 0)
		return;
	seq = strtoul((const char *) payload + 28, NULL, 10);

	/* Parts of a frame have the same; a text of the input may say anything. */
	if (seq != last_seq && seq != last_seq + 1)
		Fail("seq %lu follows %lu", seq, last_seq);
	last_seq = seq;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	Input in = {data, size};
	uint8_t bits;
	size_t start[2];
	int i;
	bool good = true;

	HarnessStart();
	on_message = OnMessage;
	open_transaction = false;
	last_number = 0;
	last_seq = 0;
	bits = TakeU8(&in) & (uint8_t) ~WITH_RATES;
	HarnessConfigure(bits | WITH_COMPRESSION);
	clients[0] = Open(SOCKET "\r\n");
	clients[1] = Open(SOCKET "Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n");
	clients[2] = Open(REQUEST("/v1/events?channel=a"));
	clients[3] = Open(REQUEST("/v1/poll?channel=a"));
	for (i = 0; i < 2; i++)
		start[i] = clients[i]->in.length;

	while (in.left > 0 && good)
	{
		Operation(&in);
		if (LinkFramePending(worker) > 0)
			good = HarnessLink();
		if (good)
			HarnessTurn();
	}
	if (good)
	{
		/* Where the fuzzer speaks of a transaction by itself, seq is its own. */
		for (i = 0; i < 2; i++)
			if (clients[i]->fd >= 0 && memmem(data, size, "transaction", 11) == NULL)
				CheckFrames(clients[i], start[i], i == 1, i == 1 ? CheckPacked : CheckSeq);
	}
	HarnessSettle(!good || open_transaction);
	HarnessFinish();
	return 0;
}
