/*-------------------------------------------------------------------------
 *
 * fanout.c
 *		Transactions as the link brings them: who gets which fragments.
 *
 * Between LINK_TX_BEGIN and LINK_TX_END every fragment is kept once; each
 * connection of its audience gets a frame at the end of its queue, which refers
 * to what it gets (body.c).  A frame is put together when it is written
 * (join.c), as only then its `seq` is known for sure.  Messages of a transaction
 * hang on the same frame and follow it as objects of their own.
 *
 * Process: gateway.  Memory: this file has a reference to what is being built; a
 * frame belongs to the queue that it is in.
 *
 *-------------------------------------------------------------------------
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gateway.h"

/*
 * Fragments of a transaction for the same audience become one, up to this size:
 * then its connections are gone through once for all of them, and what rows have
 * in common is there to be found by compression.  It is less than half of
 * changefeed.max_frame, too, so that this can be kept to.
 */
#define MERGE_BYTES ((size_t) 6 * 1024)

/* So far ahead the connections of an audience are fetched. */
#define PREFETCH 8

static struct
{
	Buffer text;
	const char *audience;
	size_t audience_length;
	Buffer copy; /* of the audience, if it does not last */
} merged;

/* Of LINK_TX_AUDIENCE. */
typedef struct Audience
{
	size_t length; /* in bytes */
	char numbers[];
} Audience;

static struct
{
	uint32_t n;
	uint32_t capacity;
	Audience **list;
} audiences;

/* The transaction between BEGIN and END; one reference. */
static Transaction *building;

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
	building->root = BodyNew(building);
}

/* One more fragment or message for the connection's frame, which may have to be made. */
static void
AddPiece(Connection *conn, Fragment *piece)
{
	size_t size = FragmentSize(piece);
	FrameItem *frame;

	if (conn->close_queued)
		return;
	if (!building->stream && !QueueHasRoomForFeed(conn, building->number))
		return;

	/* What is queued may close the connection and free the frame: so at the end. */
	frame = conn->open_frame;
	if (frame != NULL && frame->body->transaction == building)
	{
		frame->body = BodyWith(frame->body, piece);
		QueueGrew(conn, &frame->item, size);
		return;
	}
	frame = QueueNewFrame();
	frame->item.feed = !building->stream;
	frame->item.size = building->before_length + building->after_length + ENVELOPE_BYTES + size;
	building->root->references++;
	frame->body = BodyWith(building->root, piece);
	conn->open_frame = frame;
	QueueAdd(conn, &frame->item);
}

/* Hands `fragment`, whose reference it takes, to each of the connections. */
static void
ForAudience(const char *audience, uint32_t n, Fragment *fragment,
			void (*add)(Connection *conn, Fragment *fragment))
{
	uint32_t i;

	WalkExpect(n);
	for (i = 0; i < n; i++)
	{
		Connection *conn;
		uint32_t number;

		if (i + PREFETCH < n)
		{
			memcpy(&number, audience + (size_t) (i + PREFETCH) * sizeof(number), sizeof(number));
			ConnPrefetch(number);
		}
		memcpy(&number, audience + (size_t) i * sizeof(number), sizeof(number));
		conn = ConnFind(number);
		if (conn != NULL)
			add(conn, fragment);
	}
	WalkExpect(0);
	FragmentRelease(fragment);
}

static Fragment *
NewFragment(WireBytes suffix, const char *data, size_t length)
{
	Fragment *fragment = GatewayAlloc(sizeof(Fragment) + suffix.length + length);

	memset(fragment, 0, sizeof(Fragment));
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
	message->message = true;
	message->no_position = (flags & LINK_MESSAGE_NO_POSITION) != 0;
	ForAudience(audience, n, message, AddPiece);
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

	ForAudience(audience, n, NewFragment(nothing, data, length), AddPiece);
}

/*
 * Queues the fragments that wait for others to become one with them: in front of
 * every other message of the link, so that nothing overtakes them.
 */
void
FanoutPassMerged(void)
{
	if (merged.text.length == 0)
		return;
	Pass(merged.audience, (uint32_t) (merged.audience_length / sizeof(uint32_t)), merged.text.data,
		 merged.text.length);
	BufferReset(&merged.text, MERGE_BYTES * 2);
	BufferReset(&merged.copy, 256 * 1024);
}

/* `lasts`: the audience is there until the transaction's end. */
static void
Merge(const char *audience, size_t audience_length, bool lasts, WireReader *r)
{
	size_t length = r->length - r->offset;
	const char *data = WireTake(r, length);
	size_t limit = MERGE_BYTES;

	if (gateway.max_frame > 0 && gateway.max_frame / 3 < limit)
		limit = gateway.max_frame / 3;
	if (merged.text.length > 0 && merged.text.length + 1 + length <= limit &&
		merged.audience_length == audience_length &&
		(audience_length == 0 || merged.audience == audience ||
		 memcmp(merged.audience, audience, audience_length) == 0))
		BufferAppend(&merged.text, ",", 1);
	else
	{
		FanoutPassMerged();
		if (length > limit || length == 0)
		{
			Pass(audience, (uint32_t) (audience_length / sizeof(uint32_t)), data, length);
			return;
		}
		if (!lasts)
		{
			BufferAppend(&merged.copy, audience, audience_length);
			audience = merged.copy.data;
		}
		merged.audience = audience;
		merged.audience_length = audience_length;
	}
	BufferAppend(&merged.text, data, length);
}

void
FanoutFragment(WireReader *r)
{
	uint32_t n = WireGetU32(r);
	size_t length = (size_t) n * sizeof(uint32_t);
	const char *audience = WireTake(r, length);

	if (r->failed)
		return;
	if (building == NULL)
		GatewayFatal(EXIT_PROTOCOL, "a fragment came outside a transaction");
	Merge(audience, length, false, r);
}

void
FanoutAudience(WireReader *r)
{
	uint32_t n = WireGetU32(r);
	size_t length = (size_t) n * sizeof(uint32_t);
	const char *numbers = WireTake(r, length);
	Audience *audience;

	if (!WireAtEnd(r))
	{
		r->failed = true;
		return;
	}
	if (building == NULL)
		GatewayFatal(EXIT_PROTOCOL, "an audience came outside a transaction");
	audience = GatewayAlloc(sizeof(Audience) + length);
	audience->length = length;
	memcpy(audience->numbers, numbers, length);
	if (audiences.n == audiences.capacity)
	{
		audiences.capacity = audiences.capacity > 0 ? audiences.capacity * 2 : 16;
		audiences.list = GatewayRealloc(audiences.list, audiences.capacity * sizeof(Audience *));
	}
	audiences.list[audiences.n++] = audience;
}

void
FanoutShared(WireReader *r)
{
	uint32_t number = WireGetU32(r);

	if (r->failed)
		return;
	if (building == NULL)
		GatewayFatal(EXIT_PROTOCOL, "a fragment came outside a transaction");
	if (number >= audiences.n)
		GatewayFatal(EXIT_PROTOCOL, "a fragment has an audience that there is not");
	Merge(audiences.list[number]->numbers, audiences.list[number]->length, true, r);
}

static void
ForgetAudiences(void)
{
	if (audiences.capacity == 0)
		return;
	while (audiences.n > 0)
		free(audiences.list[--audiences.n]);
	free(audiences.list);
	audiences.list = NULL;
	audiences.capacity = 0;
}

void
FanoutEnd(void)
{
	if (building == NULL)
		GatewayFatal(EXIT_PROTOCOL, "a transaction ended that had not begun");
	building->complete = true;
	BodyRelease(building->root);
	building->root = NULL;
	TransactionRelease(building);
	building = NULL;
	ForgetAudiences();
	QueueTransactionEnded();
}
