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

/* Accounted for a frame beside the pieces that the link gave us. */
#define ENVELOPE_BYTES 96

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
	if (--fragment->references == 0)
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
NewFragment(WireBytes suffix, WireReader *r)
{
	size_t length = r->length - r->offset;
	const char *data = WireTake(r, length);
	Fragment *fragment = GatewayAlloc(sizeof(Fragment) + suffix.length + length);

	fragment->references = 1;
	fragment->length = (uint32_t) length;
	fragment->suffix_length = (uint32_t) suffix.length;
	fragment->no_position = false;
	if (suffix.length > 0)
		memcpy(fragment->data, suffix.data, suffix.length);
	if (length > 0)
		memcpy(fragment->data + suffix.length, data, length);
	return fragment;
}

void
FanoutFragment(WireReader *r)
{
	uint32_t n = WireGetU32(r);
	const char *audience = WireTake(r, (size_t) n * sizeof(uint32_t));
	WireBytes nothing = {NULL, 0};

	if (r->failed)
		return;
	if (building == NULL)
		GatewayFatal(EXIT_PROTOCOL, "a fragment came outside a transaction");
	ForAudience(audience, n, NewFragment(nothing, r), AddFragment);
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
	message = NewFragment(suffix, r);
	message->no_position = (flags & LINK_MESSAGE_NO_POSITION) != 0;
	ForAudience(audience, n, message, AddMessage);
}

void
FanoutCast(WireReader *r)
{
	uint32_t n = WireGetU32(r);
	const char *audience = WireTake(r, (size_t) n * sizeof(uint32_t));
	WireBytes nothing = {NULL, 0};

	if (r->failed)
		return;
	ForAudience(audience, n, NewFragment(nothing, r), QueueAddCast);
}

void
FanoutEnd(void)
{
	if (building == NULL)
		GatewayFatal(EXIT_PROTOCOL, "a transaction ended that had not begun");
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

/* Appends the frame's next message to the buffer. */
static size_t
JoinMessage(Connection *conn, FrameItem *frame, Buffer *buffer)
{
	static const char label[] = ",\"position\":\"";
	Transaction *transaction = frame->transaction;
	Fragment *message = frame->messages[frame->messages_sent++];
	size_t suffix = frame->messages_sent < frame->n_messages ? message->suffix_length : 0;
	const char *text = message->data + message->suffix_length;
	size_t start;

	if (message->no_position)
	{
		start = MessageBegin(conn, buffer, (size_t) message->length + 1);
		BufferAppend(buffer, text, message->length);
		BufferAppend(buffer, "}", 1);
		MessageEnd(conn, buffer, start, FanoutIsSent(frame), false, NULL);
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

	/* In an event stream the id is that of the whole transaction. */
	MessageEnd(conn, buffer, start, FanoutIsSent(frame), false,
			   transaction->stream
				   ? NULL
				   : transaction->text + transaction->before_length - LINK_TX_POSITION);
	return MessageSize(message);
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
	uint32_t i;
	size_t suffix = frame->has_positions ? 2 : 0;
	char head[ENVELOPE_BYTES];
	int head_length;
	size_t start;

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

	/* Each fragment has a comma behind it but the last; then comes "]}". */
	start = MessageBegin(conn, buffer,
						 (size_t) head_length + transaction->before_length + LINK_TAG_LENGTH +
							 suffix + transaction->after_length + fragments - 1 + 2);
	BufferAppend(buffer, head, (size_t) head_length);
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
	frame->n_sent = end;
	MessageEnd(conn, buffer, start, FanoutIsSent(frame), false,
			   transaction->stream || transaction->before_length < LINK_TX_POSITION
				   ? NULL
				   : transaction->text + transaction->before_length - LINK_TX_POSITION);
	return fragments;
}
