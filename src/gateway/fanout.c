/*-------------------------------------------------------------------------
 *
 * fanout.c
 *		Transactions: fragments kept once, joined into a frame per connection.
 *
 * Between LINK_TX_BEGIN and LINK_TX_END every fragment is kept once; each
 * connection of its audience gets a reference in a frame at the end of its
 * queue.  A frame is put together when it is written, into the scratch buffer
 * of queue.c: copying is not measurable beside the system call, and only then
 * is its `seq` known for sure.  Messages of a transaction hang on the same frame
 * and follow it as objects of their own.
 *
 * Process: gateway.  Memory: transactions and fragments are reference-counted
 * by frames, and by this file while they are being built; a frame belongs to
 * the queue that it is in.
 *
 *-------------------------------------------------------------------------
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gateway.h"

/* What a stored block and its neighbours cost in a compressed message. */
#define BLOCK_BYTES 9

/* A message that gets smaller by no more than this is sent as it is. */
#define LEAST_SAVINGS 32

/* Accounted for a frame beside the pieces that the link gave us. */
#define ENVELOPE_BYTES 96

/*
 * With compression, fragments of a transaction for the same audience become one,
 * up to this size: what rows have in common is then there to be found.  Less
 * than half of the smallest changefeed.max_frame, so that it can be kept to.
 */
#define MERGE_BYTES ((size_t) 6 * 1024)

static struct
{
	Buffer text;
	Buffer audience;
} merged;

/* The transaction between BEGIN and END; one reference. */
static Transaction *building;

static void
ReleaseTransaction(Transaction *transaction)
{
	if (--transaction->references == 0)
		free(transaction);
}

void
FanoutRelease(Fragment *fragment)
{
	if (--fragment->references > 0)
		return;
	free(fragment->packed);
	free(fragment);
}

void
FanoutBegin(WireReader *r)
{
	uint64_t number = WireGetU64(r);
	uint8_t flags = WireGetU8(r);
	WireBytes before = WireGetBytes(r);
	WireBytes after = WireGetBytes(r);

	if (building != NULL)
		GatewayFatal(EXIT_PROTOCOL, "a transaction began inside another one");
	if (!WireAtEnd(r))
	{
		r->failed = true;
		return;
	}
	building = GatewayAlloc(sizeof(Transaction) + before.length + after.length);
	building->references = 1;
	building->complete = false;
	building->stream = (flags & LINK_TX_STREAM) != 0;
	building->number = number;
	building->committed_us = StatsTakeCommitTime();
	building->before_length = (uint32_t) before.length;
	building->after_length = (uint32_t) after.length;
	memcpy(building->text, before.data, before.length);
	memcpy(building->text + before.length, after.data, after.length);
}

static FrameItem *
NewFrame(Connection *conn)
{
	FrameItem *frame = GatewayAllocZero(sizeof(FrameItem));

	frame->item.kind = ITEM_FRAME;
	frame->item.feed = !building->stream;
	frame->item.size = building->before_length + building->after_length + ENVELOPE_BYTES;
	frame->transaction = building;
	building->references++;
	frame->fragments = frame->few;
	frame->capacity = FRAME_INLINE_FRAGMENTS;
	conn->open_frame = frame;
	return frame;
}

/* The connection's frame of this transaction, or NULL when it gets none. */
static FrameItem *
FindFrame(Connection *conn, bool *fresh)
{
	FrameItem *frame;

	if (conn->close_queued)
		return NULL;
	if (!building->stream && !QueueHasRoomForFeed(conn, building->number))
		return NULL;

	frame = conn->open_frame;
	*fresh = frame == NULL || frame->transaction != building;
	return *fresh ? NewFrame(conn) : frame;
}

/* This may close the connection and free the frame, so it comes last. */
static void
FrameGrew(Connection *conn, FrameItem *frame, bool fresh, size_t n)
{
	if (fresh)
	{
		frame->item.size += n;
		QueueAdd(conn, &frame->item);
	}
	else
		QueueGrew(conn, &frame->item, n);
}

static void
AddFragment(Connection *conn, Fragment *fragment)
{
	bool fresh;
	FrameItem *frame = FindFrame(conn, &fresh);

	if (frame == NULL)
		return;
	if (frame->n_fragments == frame->capacity)
	{
		uint32_t capacity = frame->capacity * 4;
		Fragment **grown;

		grown = GatewayRealloc(frame->fragments == frame->few ? NULL : frame->fragments,
							   capacity * sizeof(Fragment *));
		if (frame->fragments == frame->few)
			memcpy(grown, frame->few, sizeof(frame->few));
		frame->fragments = grown;
		frame->capacity = capacity;
	}
	frame->fragments[frame->n_fragments++] = fragment;
	fragment->references++;
	FrameGrew(conn, frame, fresh, (size_t) fragment->length + 1);
}

/* What a message is accounted as: with its position. */
static size_t
MessageSize(const Fragment *message)
{
	return (size_t) message->length + message->suffix_length + ENVELOPE_BYTES;
}

static void
AddMessage(Connection *conn, Fragment *message)
{
	bool fresh;
	FrameItem *frame = FindFrame(conn, &fresh);

	if (frame == NULL)
		return;
	if (frame->n_messages == frame->messages_capacity)
	{
		frame->messages_capacity = frame->messages_capacity == 0 ? 2 : frame->messages_capacity * 2;
		frame->messages = GatewayRealloc(frame->messages,
										 frame->messages_capacity * sizeof(Fragment *));
	}
	frame->messages[frame->n_messages++] = message;
	message->references++;
	if (!message->no_position)
		frame->has_positions = true;
	FrameGrew(conn, frame, fresh, MessageSize(message));
}

/* Hands `fragment`, whose reference it takes, to each of the connections. */
static void
ForAudience(const char *audience, uint32_t n, Fragment *fragment,
			void (*add)(Connection *conn, Fragment *fragment))
{
	uint32_t i;

	for (i = 0; i < n; i++)
	{
		Connection *conn;
		uint32_t number;

		memcpy(&number, audience + (size_t) i * sizeof(number), sizeof(number));
		conn = ConnFind(number);
		if (conn != NULL)
			add(conn, fragment);
	}
	FanoutRelease(fragment);
}

static Fragment *
NewFragment(WireBytes suffix, const char *data, size_t length)
{
	Fragment *fragment = GatewayAllocZero(sizeof(Fragment) + suffix.length + length);

	fragment->references = 1;
	fragment->length = (uint32_t) length;
	fragment->suffix_length = (uint32_t) suffix.length;
	if (suffix.length > 0)
		memcpy(fragment->data, suffix.data, suffix.length);
	if (length > 0)
		memcpy(fragment->data + suffix.length, data, length);
	return fragment;
}

/* One of all that is left of the message. */
static Fragment *
ReadFragment(WireBytes suffix, WireReader *r)
{
	size_t length = r->length - r->offset;

	return NewFragment(suffix, WireTake(r, length), length);
}

void
FanoutMessage(WireReader *r)
{
	uint32_t n = WireGetU32(r);
	const char *audience = WireTake(r, (size_t) n * sizeof(uint32_t));
	uint8_t flags = WireGetU8(r);
	WireBytes suffix = WireGetBytes(r);
	Fragment *message;

	if (r->failed)
		return;
	if (building == NULL)
		GatewayFatal(EXIT_PROTOCOL, "a message came outside a transaction");
	if (building->before_length < LINK_TX_POSITION)
		GatewayFatal(EXIT_PROTOCOL, "a transaction with messages has no position");
	message = ReadFragment(suffix, r);
	message->no_position = (flags & LINK_MESSAGE_NO_POSITION) != 0;
	ForAudience(audience, n, message, AddMessage);
}

void
FanoutCast(WireReader *r, void (*add)(Connection *conn, Fragment *text))
{
	uint32_t n = WireGetU32(r);
	const char *audience = WireTake(r, (size_t) n * sizeof(uint32_t));
	WireBytes nothing = {NULL, 0};

	if (r->failed)
		return;
	ForAudience(audience, n, ReadFragment(nothing, r), add);
}

/* Queues a change for its audience, n numbers of connections. */
static void
Pass(const char *audience, uint32_t n, const char *data, size_t length)
{
	WireBytes nothing = {NULL, 0};

	ForAudience(audience, n, NewFragment(nothing, data, length), AddFragment);
}

static void
PassMerged(void)
{
	if (merged.text.length > 0)
		Pass(merged.audience.data, (uint32_t) (merged.audience.length / sizeof(uint32_t)),
			 merged.text.data, merged.text.length);
	BufferReset(&merged.text, MERGE_BYTES * 2);
	BufferReset(&merged.audience, 256 * 1024);
}

void
FanoutFragment(WireReader *r)
{
	uint32_t n = WireGetU32(r);
	size_t audience_length = (size_t) n * sizeof(uint32_t);
	const char *audience = WireTake(r, audience_length);
	size_t length = r->length - r->offset;
	const char *data = WireTake(r, length);

	if (r->failed)
		return;
	if (building == NULL)
		GatewayFatal(EXIT_PROTOCOL, "a fragment came outside a transaction");
	if (!gateway.compression)
	{
		Pass(audience, n, data, length);
		return;
	}
	if (merged.text.length > 0 && merged.text.length + 1 + length <= MERGE_BYTES &&
		merged.audience.length == audience_length &&
		memcmp(merged.audience.data, audience, audience_length) == 0)
		BufferAppend(&merged.text, ",", 1);
	else
	{
		PassMerged();
		BufferAppend(&merged.audience, audience, audience_length);
	}
	BufferAppend(&merged.text, data, length);
	if (length > MERGE_BYTES)
		PassMerged();
}

void
FanoutEnd(void)
{
	if (building == NULL)
		GatewayFatal(EXIT_PROTOCOL, "a transaction ended that had not begun");
	PassMerged();
	building->complete = true;
	ReleaseTransaction(building);
	building = NULL;
	QueueTransactionEnded();
}

void
FanoutFreeFrame(FrameItem *frame)
{
	uint32_t i;

	for (i = 0; i < frame->n_fragments; i++)
		FanoutRelease(frame->fragments[i]);
	for (i = 0; i < frame->n_messages; i++)
		FanoutRelease(frame->messages[i]);
	free(frame->messages);
	if (frame->fragments != frame->few)
		free(frame->fragments);
	ReleaseTransaction(frame->transaction);
	free(frame);
}

/* About how long the next frame or part is: for gathering, so no promise. */
size_t
FanoutNextSize(const FrameItem *frame)
{
	if (frame->n_sent == frame->n_fragments && frame->messages_sent < frame->n_messages)
		return MessageSize(frame->messages[frame->messages_sent]);
	if (gateway.max_frame > 0 && frame->item.size > gateway.max_frame)
		return gateway.max_frame;
	return frame->item.size;
}

bool
FanoutIsSent(const FrameItem *frame)
{
	return frame->n_sent == frame->n_fragments && frame->messages_sent == frame->n_messages;
}

/* Where the connection is with the transaction, without its tag. */
static const char *
PositionOf(const Transaction *transaction)
{
	return transaction->stream || transaction->before_length < LINK_TX_POSITION
			   ? NULL
			   : transaction->text + transaction->before_length - LINK_TX_POSITION;
}

/* Appends the frame's next message to the buffer. */
static size_t
JoinMessage(Connection *conn, FrameItem *frame, Buffer *buffer)
{
	static const char label[] = ",\"position\":\"";
	Transaction *transaction = frame->transaction;
	Fragment *message = frame->messages[frame->messages_sent++];
	size_t suffix = frame->messages_sent < frame->n_messages ? message->suffix_length : 0;
	const char *text = message->data + message->suffix_length;
	MessageInfo info = {.whole = true};
	size_t start;

	info.last = FanoutIsSent(frame);
	if (message->no_position)
	{
		start = MessageBegin(conn, buffer, (size_t) message->length + 1);
		BufferAppend(buffer, text, message->length);
		BufferAppend(buffer, "}", 1);
		MessageEnd(conn, buffer, start, &info);
		return MessageSize(message);
	}
	start = MessageBegin(conn, buffer,
						 message->length + sizeof(label) - 1 + LINK_TX_POSITION + LINK_TAG_LENGTH +
							 suffix + 2);
	BufferAppend(buffer, text, message->length);
	BufferAppend(buffer, label, sizeof(label) - 1);
	BufferAppend(buffer, transaction->text + transaction->before_length - LINK_TX_POSITION,
				 LINK_TX_POSITION);
	BufferAppend(buffer, conn->tag, LINK_TAG_LENGTH);
	BufferAppend(buffer, message->data, suffix);
	BufferAppend(buffer, "\"}", 2);
	info.position = PositionOf(transaction);
	info.suffix = message->data;
	info.suffix_length = suffix;
	MessageEnd(conn, buffer, start, &info);
	return MessageSize(message);
}

/*
 * What the fragments save when they are compressed, beyond what the blocks
 * between them cost.
 */
static size_t
Savings(const FrameItem *frame, uint32_t end)
{
	static Buffer piece;
	size_t saved = 0;
	uint32_t i;

	for (i = frame->n_sent; i < end; i++)
	{
		Fragment *fragment = frame->fragments[i];

		if (!fragment->tried && CompressPiece(fragment->data, fragment->length, &piece))
		{
			fragment->packed = GatewayAlloc(piece.length);
			fragment->n_packed = (uint32_t) piece.length;
			memcpy(fragment->packed, piece.data, piece.length);
			BufferReset(&piece, 64 * 1024);
		}
		fragment->tried = true;
		if (fragment->n_packed > 0 && fragment->n_packed + BLOCK_BYTES < fragment->length)
			saved += fragment->length - fragment->n_packed - BLOCK_BYTES;
	}
	return saved;
}

/*
 * Puts a message together from the head and the fragments up to `end`, which
 * are `fragments` bytes with a comma behind each.
 */
static void
JoinParts(Connection *conn, const FrameItem *frame, uint32_t end, const char *head,
		  size_t head_length, size_t fragments, size_t suffix, Buffer *buffer)
{
	const Transaction *transaction = frame->transaction;
	MessageInfo info = {0};
	size_t start;
	uint32_t i;

	if (conn->compressed && Savings(frame, end) > LEAST_SAVINGS)
	{
		CompressText(head, head_length);
		CompressText(transaction->text, transaction->before_length);
		CompressText(conn->tag, LINK_TAG_LENGTH);
		CompressText(".0", suffix);
		CompressText(transaction->text + transaction->before_length, transaction->after_length);
		for (i = frame->n_sent; i < end; i++)
		{
			const Fragment *fragment = frame->fragments[i];

			if (i > frame->n_sent)
				CompressText(",", 1);
			if (fragment->n_packed > 0)
				CompressAppend(fragment->packed, fragment->n_packed);
			else
				CompressText(fragment->data, fragment->length);
		}
		CompressText("]}", 2);
		CompressFinish(buffer);
		return;
	}

	/* Each fragment has a comma behind it but the last; then comes "]}". */
	start = MessageBegin(conn, buffer,
						 head_length + transaction->before_length + LINK_TAG_LENGTH + suffix +
							 transaction->after_length + fragments - 1 + 2);
	BufferAppend(buffer, head, head_length);
	BufferAppend(buffer, transaction->text, transaction->before_length);
	BufferAppend(buffer, conn->tag, LINK_TAG_LENGTH);
	BufferAppend(buffer, ".0", suffix);
	BufferAppend(buffer, transaction->text + transaction->before_length, transaction->after_length);
	for (i = frame->n_sent; i < end; i++)
	{
		if (i > frame->n_sent)
			BufferAppend(buffer, ",", 1);
		BufferAppend(buffer, frame->fragments[i]->data, frame->fragments[i]->length);
	}
	BufferAppend(buffer, "]}", 2);
	info.whole = end == frame->n_fragments;
	info.last = info.whole && frame->n_messages == 0;
	info.position = PositionOf(transaction);
	info.suffix = ".0";
	info.suffix_length = suffix;
	MessageEnd(conn, buffer, start, &info);
}

/*
 * Appends the frame, or its next part, to the buffer as one message.
 * Returns how much of the accounted size that was; the frame is done when all
 * its fragments are sent.
 */
size_t
FanoutJoin(Connection *conn, FrameItem *frame, Buffer *buffer)
{
	Transaction *transaction = frame->transaction;
	size_t fixed;
	size_t fragments = 0;
	uint32_t end = frame->n_sent;
	size_t suffix = frame->has_positions ? 2 : 0;
	char head[ENVELOPE_BYTES];
	int head_length;

	if (frame->part == 0)
	{
		if (frame->n_fragments > 0)
			frame->seq = ++conn->seq;
		if (!transaction->stream)
			conn->last_number = transaction->number;
	}
	if (frame->n_sent == frame->n_fragments)
	{
		frame->part++;
		return JoinMessage(conn, frame, buffer);
	}

	/* As many fragments as fit; at least one, however large it is. */
	fixed = (size_t) transaction->before_length + LINK_TAG_LENGTH + transaction->after_length +
			ENVELOPE_BYTES;
	while (end < frame->n_fragments)
	{
		size_t more = (size_t) frame->fragments[end]->length + 1;

		if (gateway.max_frame > 0 && end > frame->n_sent &&
			fixed + fragments + more > gateway.max_frame)
			break;
		fragments += more;
		end++;
	}

	head_length = snprintf(head, sizeof(head), "{\"type\":\"transaction\",\"seq\":%" PRIu64 ",",
						   frame->seq);
	if (frame->part > 0 || end < frame->n_fragments)
		head_length += snprintf(head + head_length, sizeof(head) - (size_t) head_length,
								"\"part\":%u,\"last\":%s,", frame->part + 1,
								end < frame->n_fragments ? "false" : "true");
	frame->part++;

	JoinParts(conn, frame, end, head, (size_t) head_length, fragments, suffix, buffer);
	frame->n_sent = end;
	return fragments;
}
