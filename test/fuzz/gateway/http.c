/*-------------------------------------------------------------------------
 *
 * http.c
 *		What a client may send before it is a WebSocket.
 *
 * Input: a byte of settings (harness.h), a byte that says in how large pieces
 * the rest comes (0: at once), and what the client sends.
 *
 * A request that is handed on is answered as the feed worker would: an event
 * stream begins, a poll gets a message, everything else a whole answer.
 *
 * Properties: what goes over the link is well-formed, the answer is HTTP with
 * none but our header lines, and nobody is left behind.
 *
 *-------------------------------------------------------------------------
 */
#include "harness.h"

static uint32_t requests[64];
static char paths[64][32];
static int n_requests;

static void
OnMessage(const LinkMessage *message, uint32_t conn)
{
	WireReader r = WireReaderInit(message->payload, message->length);
	WireBytes path;

	if (message->type != LINK_REQUEST || n_requests == 64)
		return;
	(void) WireGetU32(&r);
	(void) WireGetU16(&r);
	path = WireGetBytes(&r);
	snprintf(paths[n_requests], sizeof(paths[0]), "%.*s", (int) path.length, path.data);
	requests[n_requests++] = conn;
}

static void
PutText(const char *text)
{
	LinkFramePutBytes(worker, text, strlen(text));
}

static void
Send(uint32_t conn, const char *text)
{
	LinkFrameBegin(worker, LINK_SEND);
	LinkFramePutU32(worker, conn);
	LinkFramePutRaw(worker, text, strlen(text));
	LinkFrameEnd(worker);
}

static void
AnswerOne(uint32_t conn, const char *path)
{
	bool events = strcmp(path, "/v1/events") == 0;

	if (!events && strcmp(path, "/v1/poll") != 0)
	{
		LinkFrameBegin(worker, LINK_RESPONSE);
		LinkFramePutU32(worker, conn);
		LinkFramePutU16(worker, 200);
		PutText("application/json");
		PutText("Cache-Control: no-store\r\n");
		LinkFramePutRaw(worker, "{}\n", 3);
		LinkFrameEnd(worker);
		return;
	}
	LinkFrameBegin(worker, LINK_STREAM);
	LinkFramePutU32(worker, conn);
	LinkFramePutU8(worker, events ? LINK_STREAM_EVENTS : LINK_STREAM_POLL);
	LinkFramePutU8(worker, events ? 0 : LINK_STREAM_WAITS);
	LinkFramePutU32(worker, 1000);
	LinkFramePutU32(worker, 1024 * 1024);
	PutText("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAabcdefgh");
	PutText("Cache-Control: no-store\r\n");
	LinkFramePutU16(worker, 1);
	PutText("");
	LinkFrameEnd(worker);
	Send(conn, "{\"type\":\"subscribed\"}");
	if (events)
	{
		LinkFrameBegin(worker, LINK_BEGIN);
		LinkFramePutU32(worker, conn);
		LinkFrameEnd(worker);
	}
	LinkFrameBegin(worker, LINK_EVENT_ID);
	LinkFramePutU32(worker, conn);
	LinkFramePutU16(worker, 0);
	LinkFramePutU8(worker, LINK_PART_READY);
	LinkFramePutU8(worker, 0);
	PutText("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAabcdefgh");
	LinkFrameEnd(worker);
	Send(conn, "{\"type\":\"ready\"}");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	Input in = {data, size};
	uint8_t bits;
	size_t piece;
	Peer *peer;
	int i;

	HarnessStart();
	on_message = OnMessage;
	n_requests = 0;
	bits = TakeU8(&in);
	piece = TakeU8(&in);
	HarnessConfigure(bits);
	peer = HarnessConnect();
	while (in.left > 0)
	{
		size_t n = piece == 0 ? in.left : piece;
		const uint8_t *bytes = TakeBytes(&in, &n);

		HarnessSend(peer, bytes, n);
		if (piece == 0 || in.left == 0)
			HarnessTurn();
	}
	for (i = 0; i < n_requests; i++)
		AnswerOne(requests[i], paths[i]);
	if (n_requests > 0 && !HarnessLink())
		Fail("the gateway does not understand an answer");
	HarnessTurn();

	/* Time-outs: of a poll, of a request, of its body. */
	HarnessAdvance(1500);
	HarnessAdvance(12000);
	if (peer->in.length > 0 &&
		memmem(peer->in.data, peer->in.length, "text/event-stream", 17) == NULL &&
		memcmp(peer->in.data, "HTTP/1.1 101", peer->in.length < 12 ? peer->in.length : 12) != 0)
		CheckAnswer(peer->in.data, peer->in.length);
	HarnessFinish();
	return 0;
}
