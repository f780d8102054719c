/*-------------------------------------------------------------------------
 *
 * websocket.c
 *		What a client may send as a WebSocket.
 *
 * Input: a byte of settings (harness.h), then frames: their first byte as it is
 * on the wire, a byte of length and so much payload (252: the length is in two
 * bytes; 253: the clock goes on by the next byte's seconds; 254: the frame comes
 * in pieces of the next byte's size; 255: the payload is sent as it is, without
 * a frame).  The harness masks them.
 *
 * Property: a reader of the protocol in twenty lines says which messages there
 * are, and exactly those go over the link, in their order, and none behind what
 * breaks the protocol.
 *
 *-------------------------------------------------------------------------
 */
#include <zlib.h>

#include "harness.h"

#define INFLATED_MAX 65536

static Buffer expected; /* u32 length, text */
static Buffer received;

/* The model. */
static bool known;	/* false: what comes is not predicted any more */
static bool broken; /* the protocol: nothing may come any more */
static bool compression;
static Buffer text; /* of the message that has begun */
static bool begun;
static bool packed;
static bool binary;

static void
Append(Buffer *list, const void *data, size_t length)
{
	uint32_t n = (uint32_t) length;

	BufferAppend(list, &n, sizeof(n));
	BufferAppend(list, data, length);
}

static void
OnMessage(const LinkMessage *message, uint32_t conn)
{
	(void) conn;
	if (message->type == LINK_MESSAGE)
		Append(&received, message->payload + 4, message->length - 4);
}

/* False: not known, or damaged. */
static bool
Inflate(Buffer *out)
{
	static const unsigned char tail[4] = {0, 0, 0xff, 0xff};
	z_stream stream;
	int result;

	BufferAppend(&text, tail, sizeof(tail));
	memset(&stream, 0, sizeof(stream));
	if (inflateInit2(&stream, -15) != Z_OK)
		Fail("no inflater");
	BufferReserve(out, INFLATED_MAX + 1);
	stream.next_in = (unsigned char *) text.data;
	stream.avail_in = (unsigned int) text.length;
	stream.next_out = (unsigned char *) out->data;
	stream.avail_out = INFLATED_MAX + 1;
	result = inflate(&stream, Z_SYNC_FLUSH);
	out->length = INFLATED_MAX + 1 - stream.avail_out;
	inflateEnd(&stream);
	return (result == Z_OK || result == Z_BUF_ERROR) && stream.avail_in == 0 &&
		   out->length <= fuzz_max_message;
}

static void
Whole(void)
{
	static const char pong[] = "{\"type\":\"pong\"}";
	static Buffer inflated;
	const char *data = text.data;
	size_t length = text.length;

	if (packed)
	{
		inflated.length = 0;
		if (!Inflate(&inflated))
		{
			known = false;
			return;
		}
		data = inflated.data;
		length = inflated.length;
	}
	if (!Utf8IsValid(data, length))
		broken = true;
	else if (length != sizeof(pong) - 1 || memcmp(data, pong, length) != 0)
		Append(&expected, data, length);
}

/* What the frame means. */
static void
Model(uint8_t first, const uint8_t *data, size_t length)
{
	uint8_t opcode = first & 15;
	bool final = (first & 0x80) != 0;
	bool rsv1 = (first & 0x40) != 0;

	if (broken || !known)
		return;
	if ((first & 0x30) != 0 || (opcode > 2 && opcode < 8) || opcode > 10)
		broken = true;
	else if (opcode >= 8)
	{
		/* A close frame ends it, whether it is good or not. */
		if (!final || length > 125 || opcode == 8 || rsv1)
			broken = true;
	}
	else if ((opcode == 0) != begun || (opcode == 0 && rsv1) || (rsv1 && !compression))
		broken = true;
	else
	{
		if (opcode != 0)
		{
			text.length = 0;
			packed = rsv1;
			binary = opcode == 2;
		}
		if (binary || text.length + length > fuzz_max_message)
		{
			/* A binary message may have no frame that lws tells of. */
			if (binary && length == 0)
				known = false;
			broken = true;
			return;
		}
		BufferAppend(&text, data, length);
		begun = !final;
		if (final)
			Whole();
	}
}

static void
SendFrame(Peer *peer, uint8_t first, const uint8_t *data, size_t length, size_t piece)
{
	static const uint8_t mask[4] = {0x37, 0xfa, 0x21, 0x3d};
	static Buffer frame;
	uint8_t head[8];
	size_t n = 0;
	size_t i;

	head[n++] = first;
	if (length < 126)
		head[n++] = (uint8_t) (0x80 | length);
	else
	{
		head[n++] = 0x80 | 126;
		head[n++] = (uint8_t) (length >> 8);
		head[n++] = (uint8_t) length;
	}
	frame.length = 0;
	BufferAppend(&frame, head, n);
	BufferAppend(&frame, mask, 4);
	BufferAppend(&frame, data, length);
	for (i = 0; i < length; i++)
		frame.data[n + 4 + i] ^= (char) mask[i & 3];
	for (i = 0; i < frame.length; i += piece)
		HarnessSend(peer, frame.data + i, frame.length - i < piece ? frame.length - i : piece);
}

static void
Shake(Peer *peer, uint8_t bits)
{
	static const char request[] = "GET /v1/socket HTTP/1.1\r\n"
								  "Host: localhost\r\n"
								  "X-Forwarded-For: 192.0.2.1\r\n"
								  "Forwarded: for=192.0.2.1\r\n"
								  "Upgrade: websocket\r\n"
								  "Connection: Upgrade\r\n"
								  "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
								  "Sec-WebSocket-Version: 13\r\n";

	HarnessSend(peer, request, sizeof(request) - 1);
	if ((bits & WITH_COMPRESSION) != 0)
		HarnessSend(peer, "Sec-WebSocket-Extensions: permessage-deflate\r\n", 46);
	HarnessSend(peer, "\r\n", 2);
	HarnessTurn();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	Input in = {data, size};
	uint8_t bits;
	size_t piece = 65536;
	Peer *peer;
	const char *end;

	HarnessStart();
	on_message = OnMessage;
	expected.length = received.length = text.length = 0;
	known = true;
	broken = begun = packed = binary = false;
	bits = TakeU8(&in);
	compression = (bits & WITH_COMPRESSION) != 0;
	HarnessConfigure(bits);
	peer = HarnessConnect();
	Shake(peer, bits);
	if (peer->in.length < 12 || memcmp(peer->in.data, "HTTP/1.1 101", 12) != 0 ||
		(end = memmem(peer->in.data, peer->in.length, "\r\n\r\n", 4)) == NULL)
		Fail("no WebSocket: %.*s", (int) peer->in.length, peer->in.data);

	while (in.left > 0)
	{
		uint8_t first = TakeU8(&in);
		size_t length = TakeU8(&in);
		const uint8_t *bytes;

		if (length == 253)
		{
			HarnessAdvance((uint32_t) TakeU8(&in) * 1000);

			/* It has not said who it is. */
			known = false;
			continue;
		}
		if (length == 254)
		{
			piece = (size_t) TakeU8(&in) + 1;
			continue;
		}
		if (length == 255)
		{
			length = TakeU8(&in);
			bytes = TakeBytes(&in, &length);
			known = false;
			HarnessSend(peer, bytes, length);
			continue;
		}
		if (length == 252)
			length = TakeU16(&in);
		bytes = TakeBytes(&in, &length);
		Model(first, bytes, length);
		SendFrame(peer, first, bytes, length, piece);
	}
	HarnessTurn();
	if ((bits & WITH_RATES) != 0)
		known = false;
	CheckFrames(peer, (size_t) (end + 4 - peer->in.data), compression, NULL);
	HarnessFinish();

	if (known &&
		(received.length != expected.length ||
		 (received.length > 0 && memcmp(received.data, expected.data, received.length) != 0)))
		Fail("%zu bytes of messages went over the link, %zu were sent", received.length,
			 expected.length);
	return 0;
}
