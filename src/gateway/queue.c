/*-------------------------------------------------------------------------
 *
 * queue.c
 *		What waits to be sent to a connection, and sending it.
 *
 * A connection has one queue for everything: messages, transactions, pings,
 * marks and its close, in the order in which the feed worker sent them.  While
 * the link is read, items are only queued; afterwards walk.c goes over those that
 * have something, and each connection gets all it has in as few writes as
 * possible: the system call is what costs, not the message.  What a message looks like on the wire is stream.c's business for
 * event streams and polls.  Frames are written with LWS_WRITE_RAW, header included, outside
 * lws' WRITEABLE callback.  That is safe as long as
 * - the connection is established and not closing,
 * - a write consists of whole frames, so that lws' own control frames only
 *	 ever come between frames,
 * - nothing is written while lws still holds a part of an earlier write
 *	 (lws_partial_buffered).
 * Then, and only then, we wait for WRITEABLE.
 *
 * Back-pressure.  Two sums are bounded: the feed (transactions) and the rest.
 * Too much feed makes the connection "behind": whole queued frames are dropped
 * and the feed worker goes on from its log later.  Too much of the rest means
 * that the client does not keep up with what is paced by its own answers: it
 * is dropped.  A frame gets its `seq` when it is joined, so dropped ones leave
 * no hole.  A single transaction is never refused for its size alone; else a
 * connection could ask for it for ever.
 *
 * Process: gateway.  Memory: items belong to the queue that they are in.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "gateway.h"

/* A write gathers frames up to this size, or is one larger frame. */
#define GATHER_BYTES ((size_t) 64 * 1024)

/* What one connection may write before others get their turn. */
#define FLUSH_BUDGET ((size_t) 256 * 1024)
#define PAGE_BUDGET	 ((size_t) 128 * 1024)

/* Shorter messages for one client alone are not worth the work. */
#define COMPRESS_BYTES 1024

#define SCRATCH_KEEP ((size_t) 512 * 1024)

/* What is an object by itself. */
static const MessageInfo whole_message = {.whole = true, .last = true};

/* Where writes are put together; lws copies what it cannot send. */
static Buffer scratch;

/* What is written next: most often that buffer. */
static struct
{
	const char *data;
	size_t length;
	size_t feed;   /* so much of it is feed */
	size_t stream; /* and so much are replays */
} outgoing;

/* Items of a known size. */
#define ITEM_BYTES 32
static Pool items = {.size = ITEM_BYTES};

_Static_assert(sizeof(FrameItem) <= ITEM_BYTES, "frames do not fit");
_Static_assert(sizeof(CastItem) <= ITEM_BYTES, "casts do not fit");
_Static_assert(sizeof(MarkItem) <= ITEM_BYTES, "marks do not fit");

/* Does lws still hold a part of what we wrote? */
bool
ConnIsChoked(const Connection *conn)
{
	if (conn->http != NULL)
		return StreamIsChoked(conn);
	return lws_partial_buffered(conn->wsi) != 0;
}

/* Once a second: what a burst has needed goes back to the system. */
void
QueueTrim(void)
{
	PoolTrim(&items);
}

/* Its body and its size are still to be set. */
FrameItem *
QueueNewFrame(void)
{
	FrameItem *frame = PoolTake(&items);

	memset(frame, 0, sizeof(FrameItem));
	frame->item.kind = ITEM_FRAME;
	return frame;
}

static void
FreeItem(Item *item)
{
	switch ((ItemKind) item->kind)
	{
		case ITEM_FRAME:
			BodyRelease(((FrameItem *) item)->body);
			PoolGive(&items, item);
			break;
		case ITEM_CAST:
		case ITEM_SHARE:
			FragmentRelease(((CastItem *) item)->text);
			PoolGive(&items, item);
			break;
		case ITEM_MARK:
			PoolGive(&items, item);
			break;
		case ITEM_TEXT:
		case ITEM_PING:
		case ITEM_SYNCED:
		case ITEM_PART:
		case ITEM_CLOSE:
			free(item);
			break;
	}
}

/* A replay's frame: see CheckOther. */
static bool
IsStream(const Item *item)
{
	return item->kind == ITEM_FRAME && !item->feed;
}

/* Takes n bytes off the accounts. */
static void
Account(Connection *conn, Item *item, size_t n)
{
	if (n > item->size)
		n = item->size;
	item->size -= n;
	if (item->feed)
		conn->queued_feed -= n;
	else
		conn->queued_other -= n;
	if (IsStream(item))
		conn->queued_stream -= n;
	if (item->kind == ITEM_CAST)
		conn->queued_casts -= n;
	gateway.queued_bytes -= n;
}

/* The item is out of the list: takes it off the accounts and frees it. */
static void
Forget(Connection *conn, Item *item)
{
	Account(conn, item, item->size);
	if (item->feed)
		conn->queued_frames--;
	if (item->kind == ITEM_PING)
		conn->ping_queued = false;
	if (conn->open_frame == (FrameItem *) item)
		conn->open_frame = NULL;
	FreeItem(item);
}

static void
Pop(Connection *conn)
{
	Item *item = conn->head;

	conn->head = item->next;
	if (conn->head == NULL)
		conn->tail = NULL;
	memset(&conn->progress, 0, sizeof(conn->progress));
	Forget(conn, item);
}

/*
 * Removes what can be dropped: of the feed every frame of which nothing was
 * sent yet, pings and answers to sync, or everything.  These say how far the
 * client has come, which is not true any more when frames before them are
 * dropped.  Returns the number of the first transaction of the feed among them,
 * or `number`.
 */
static uint64_t
Drop(Connection *conn, bool everything, uint64_t number)
{
	Item **link = &conn->head;
	Item *last = NULL;

	while (*link != NULL)
	{
		Item *item = *link;

		if ((item->feed && (item != conn->head || conn->progress.part == 0)) ||
			item->kind == ITEM_PING || item->kind == ITEM_SYNCED || everything)
		{
			*link = item->next;
			if (item->kind == ITEM_PING)
				conn->ping_dropped = true;
			if (item->feed && ((FrameItem *) item)->body->transaction->number < number)
				number = ((FrameItem *) item)->body->transaction->number;
			Forget(conn, item);
		}
		else
		{
			last = item;
			link = &item->next;
		}
	}
	conn->tail = last;
	return number;
}

void
QueueDropAll(Connection *conn)
{
	(void) Drop(conn, true, 0);
	memset(&conn->progress, 0, sizeof(conn->progress));
	conn->drained_due = false;
	WalkForget(conn);
}

/* How much of the last write may still be with lws. */
static size_t
Pending(const Connection *conn, size_t written)
{
	return written > 0 && ConnIsChoked(conn) ? written : 0;
}

static size_t
OtherBound(void)
{
	return 4 * (size_t) gateway.send_buffer + 1024 * 1024;
}

/*
 * Keeps the rest (messages, pings) within its bound.  What looks like too much
 * may only be what this turn has gathered, so try to send it first.
 *
 * Frames of replays do not count.  The feed worker sends a window of them and
 * waits, but the last one may be of any size, and who is closed because of it
 * would come back to the same one.
 */
static void
CheckOther(Connection *conn)
{
	if (conn->queued_other - conn->queued_stream - conn->queued_casts +
			Pending(conn, conn->pending_other) <=
		OtherBound())
		return;
	if (conn->http != NULL)
		StreamBegin(conn);
	while (QueueFlush(conn) == FLUSH_MORE)
		;
	if (conn->closing || !ConnIsChoked(conn))
		return;
	if (conn->queued_other - conn->queued_stream - conn->queued_casts + conn->pending_other >
		OtherBound())
		ConnClose(conn, LINK_CAUSE_TOO_SLOW, 1013, "too slow");
}

/* An item that is in the queue has become larger. */
void
QueueGrew(Connection *conn, Item *item, size_t n)
{
	item->size += n;
	if (item->feed)
		conn->queued_feed += n;
	else
		conn->queued_other += n;
	if (IsStream(item))
		conn->queued_stream += n;
	if (item->kind == ITEM_CAST)
		conn->queued_casts += n;
	gateway.queued_bytes += n;
	QueueMarkDirty(conn);
	if (!item->feed)
		CheckOther(conn);
}

/* Queues an item, of which nothing is accounted yet. */
void
QueueAdd(Connection *conn, Item *item)
{
	size_t size = item->size;

	if (conn->close_queued)
	{
		FreeItem(item);
		return;
	}
	item->next = NULL;
	item->size = 0;
	if (conn->tail != NULL)
		conn->tail->next = item;
	else
		conn->head = item;
	conn->tail = item;
	if (item->feed)
		conn->queued_frames++;
	QueueGrew(conn, item, size);
}

/* Queues a message of up to three pieces. */
void
QueueAddText(Connection *conn, ItemKind kind, const char *a, size_t a_length, const char *b,
			 size_t b_length, const char *c, size_t c_length)
{
	size_t length = a_length + b_length + c_length;
	TextItem *text;

	if (conn->close_queued)
		return;

	/* Not true any more; the feed worker learns that we are behind. */
	if (kind == ITEM_SYNCED && conn->behind)
		return;
	if (kind == ITEM_PING)
	{
		/*
		 * One ping in the queue says as much as two; and while frames are
		 * dropped its position would promise what the client does not have.
		 */
		if (conn->behind)
			conn->ping_dropped = true;
		if (conn->ping_queued || conn->behind)
			return;
		conn->ping_queued = true;
	}
	text = GatewayAlloc(sizeof(TextItem) + length);
	text->item.kind = (uint8_t) kind;
	text->item.feed = false;
	text->item.size = length;
	text->length = length;
	text->position = kind == ITEM_PING && a_length >= LINK_TX_POSITION ? a_length - LINK_TX_POSITION
																	   : 0;
	memcpy(text->data, a, a_length);
	if (b_length > 0)
		memcpy(text->data + a_length, b, b_length);
	if (c_length > 0)
		memcpy(text->data + a_length + b_length, c, c_length);
	QueueAdd(conn, &text->item);
}

/* LINK_EVENT_ID, behind the connection's number. */
void
QueueAddPart(Connection *conn, WireReader *r)
{
	PartItem *item = GatewayAllocZero(sizeof(PartItem));
	WireBytes position;

	item->item.kind = ITEM_PART;
	item->item.size = sizeof(PartItem);
	item->index = WireGetU16(r);
	item->part = WireGetU8(r);
	item->quiet = WireGetU8(r) != 0;
	position = WireGetBytes(r);
	if (r->failed || position.length > LINK_POSITION_MAX)
	{
		r->failed = true;
		free(item);
		return;
	}
	memcpy(item->position, position.data, position.length);
	QueueAdd(conn, &item->item);
}

void
QueueAddMark(Connection *conn, uint32_t mark)
{
	MarkItem *item = PoolTake(&items);

	memset(item, 0, sizeof(MarkItem));
	item->item.kind = ITEM_MARK;
	item->item.size = sizeof(MarkItem);
	item->mark = mark;
	QueueAdd(conn, &item->item);
}

static void
AddShared(Connection *conn, ItemKind kind, Fragment *text)
{
	CastItem *item = PoolTake(&items);

	memset(item, 0, sizeof(CastItem));
	item->item.kind = (uint8_t) kind;
	item->item.size = text->length;
	item->text = text;
	text->references++;
	QueueAdd(conn, &item->item);
}

/*
 * What others say to a client who does not read must not cost him his
 * connection: it is left out.
 */
void
QueueAddCast(Connection *conn, Fragment *text)
{
	if (conn->close_queued)
		return;
	if (conn->queued_casts + text->length > gateway.send_buffer)
	{
		while (QueueFlush(conn) == FLUSH_MORE)
			;
		if (conn->closing ||
			(conn->queued_casts > 0 && conn->queued_casts + text->length > gateway.send_buffer))
			return;
	}
	AddShared(conn, ITEM_CAST, text);
}

void
QueueAddShare(Connection *conn, Fragment *text)
{
	if (!conn->close_queued)
		AddShared(conn, ITEM_SHARE, text);
}

void
QueueAddClose(Connection *conn, uint16_t code, const char *reason, size_t length)
{
	CloseItem *item;

	if (conn->close_queued)
		return;
	item = GatewayAllocZero(sizeof(CloseItem));
	if (length > sizeof(item->reason))
		length = sizeof(item->reason);
	item->item.kind = ITEM_CLOSE;
	item->code = code;
	item->length = (uint8_t) length;
	memcpy(item->reason, reason, length);
	QueueAdd(conn, &item->item);
	conn->close_queued = true;
}

/*
 * May this transaction of the feed be queued?  If not, the connection is behind
 * from now on: what is queued of the feed is dropped, and the feed worker is
 * told up to where it came.  That is in front of the first one that it does not
 * get, and may be well behind the last one that it got: others did not concern
 * it, and a `ready` that it was told between the two is as good as before.
 */
bool
QueueHasRoomForFeed(Connection *conn, uint64_t number)
{
	uint64_t first;

	if (conn->behind)
		return false;
	if (conn->queued_feed + Pending(conn, conn->pending_feed) <= gateway.send_buffer)
		return true;

	/* Perhaps it is only the batch of this turn that is so large. */
	while (QueueFlush(conn) == FLUSH_MORE)
		;
	if (conn->closing)
		return false;
	if (!ConnIsChoked(conn) || conn->queued_feed + conn->pending_feed <= gateway.send_buffer)
		return true;
	if (conn->pending_feed == 0 && conn->queued_frames <= 1)
		return true;

	conn->behind = true;
	conn->drained_due = true;
	first = Drop(conn, false, number);
	gateway.behind_events++;
	LinkSayBehind(conn, conn->last_number < first ? first - 1 : conn->last_number);
	return false;
}

/*
 * The feed worker goes on from where the connection was.  A ping that was left
 * out meanwhile is asked for again: the client may have to prove that it lives
 * before its next turn.
 */
void
QueueResume(Connection *conn)
{
	conn->behind = false;
	conn->drained_due = false;
	if (conn->ping_dropped && !conn->close_queued)
		LinkSayPingDue(&conn->number, 1);
	conn->ping_dropped = false;
}

/* A frame that has one part, and is all there is to write: it needs no copy. */
static bool
GatherInPlace(Connection *conn, FrameItem *frame)
{
	if (conn->fd < 0 || conn->compressed ||
		(frame->item.next != NULL && frame->item.size <= GATHER_BYTES))
		return false;
	outgoing.data = JoinInPlace(conn, frame, &outgoing.length);
	return outgoing.data != NULL;
}

/*
 * Finds out what to write next: whole frames from the queue, put together in the
 * scratch buffer.  Stops before an item that is not a message.
 */
static void
Gather(Connection *conn)
{
	memset(&outgoing, 0, sizeof(outgoing));
	while (conn->head != NULL)
	{
		Item *item = conn->head;
		size_t before = scratch.length;

		if (item->kind == ITEM_FRAME)
		{
			FrameItem *frame = (FrameItem *) item;
			size_t *sum = item->feed ? &outgoing.feed : &outgoing.stream;
			size_t n = 0;

			if (!frame->body->transaction->complete)
				break;
			if (before > 0 && before + JoinNextSize(conn, frame) > GATHER_BYTES)
				break;
			if (before == 0 && GatherInPlace(conn, frame))
				*sum = outgoing.length;
			else
			{
				n = JoinNext(conn, frame, &scratch);
				*sum += scratch.length - before;
			}
			if (conn->progress.n_sent == frame->body->n_fragments)
				StatsNoteFrame(frame);
			if (FrameIsSent(conn, frame->body))
				Pop(conn);
			else
				Account(conn, item, n);
			if (outgoing.data != NULL)
			{
				gateway.frames++;
				conn->sent_frames++;
				return;
			}
		}
		else if (item->kind == ITEM_TEXT || item->kind == ITEM_PING || item->kind == ITEM_SYNCED)
		{
			TextItem *text = (TextItem *) item;

			if (before > 0 && before + text->length > GATHER_BYTES)
				break;
			if (conn->compressed && text->length >= COMPRESS_BYTES)
				CompressWhole(text->data, text->length, &scratch);
			else
			{
				MessageInfo info = whole_message;
				size_t start = MessageBegin(conn, &scratch, text->length);

				BufferAppend(&scratch, text->data, text->length);
				info.quiet = item->kind == ITEM_PING;
				info.position = text->position > 0 ? text->data + text->position : NULL;
				MessageEnd(conn, &scratch, start, &info);
			}
			Pop(conn);
		}
		else if (item->kind == ITEM_CAST || item->kind == ITEM_SHARE)
		{
			Fragment *text = ((CastItem *) item)->text;
			size_t start;

			if (before > 0 && before + text->length > GATHER_BYTES)
				break;
			start = MessageBegin(conn, &scratch, text->length);
			BufferAppend(&scratch, text->data, text->length);
			MessageEnd(conn, &scratch, start, &whole_message);
			Pop(conn);
		}
		else if (item->kind == ITEM_PART)
		{
			StreamNotePart(conn, (PartItem *) item);
			Pop(conn);
			continue;
		}
		else
			break;
		gateway.frames++;
		conn->sent_frames++;
	}
	outgoing.data = scratch.data;
	outgoing.length = scratch.length;
}

/*
 * Writes to a WebSocket; false if the connection is lost.  A plain one is written
 * to directly, on the way that lws would take, too; what the socket does not take
 * is lws' business, which copies it and calls back when it is gone.
 */
static bool
WriteFrames(Connection *conn, const char *data, size_t length)
{
	if (conn->fd >= 0)
	{
		ssize_t n = send(conn->fd, data, length, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n == (ssize_t) length)
			return true;
		if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
			return false;
		if (n > 0)
		{
			data += n;
			length -= (size_t) n;
		}
	}
	return lws_write(conn->wsi, (unsigned char *) data, length, LWS_WRITE_RAW) >= 0;
}

/* Writes what is outgoing; false if the connection is lost. */
static bool
Write(Connection *conn)
{
	size_t length = outgoing.length;
	bool written;

	if (conn->http != NULL)
		written = StreamWrite(conn, &scratch);
	else
		written = WriteFrames(conn, outgoing.data, length);
	BufferReset(&scratch, SCRATCH_KEEP);
	if (!written)
	{
		ConnKill(conn, LINK_CAUSE_CLIENT);
		return false;
	}
	gateway.bytes += length;
	conn->sent_bytes += length;
	conn->pending_feed = outgoing.feed;
	conn->pending_other = length - outgoing.feed - outgoing.stream;
	return true;
}

/*
 * Sends what the connection has, as far as its socket and this turn's budget
 * allow.  Only for walk.c: everybody else wants QueueFlush.
 */
FlushResult
QueueSend(Connection *conn)
{
	size_t budget = FLUSH_BUDGET;
	size_t pages = PAGE_BUDGET;

	for (;;)
	{
		size_t length;

		if (conn->closing)
			return FLUSH_CLOSING;
		if (ConnIsChoked(conn))
			return FLUSH_CHOKED;
		if (budget == 0 || pages == 0)
			return FLUSH_MORE;

		if (conn->head != NULL && conn->head->kind == ITEM_MARK)
		{
			/* All before it has left lws: that is what the mark asks for. */
			uint32_t numbers[2];

			numbers[0] = conn->number;
			numbers[1] = ((MarkItem *) conn->head)->mark;
			LinkSay(LINK_FLUSHED, numbers, 2);
			Pop(conn);
			continue;
		}
		if (conn->head != NULL && conn->head->kind == ITEM_CLOSE)
		{
			CloseItem *item = (CloseItem *) conn->head;

			ConnBeginClose(conn, item->code, item->reason, item->length);
			return FLUSH_CLOSING;
		}

		Gather(conn);
		length = outgoing.length;
		if (length > 0)
		{
			budget -= length < budget ? length : budget;
			if (!Write(conn))
				return FLUSH_CLOSING;
			continue;
		}
		if (conn->head != NULL && conn->head->kind == ITEM_FRAME)
			return FLUSH_DONE; /* waits for the end of its transaction */
		if (conn->head != NULL)
			continue; /* a mark or the close */

		/* Pages do not count: live frames go on between them. */
		if (conn->drained_due)
		{
			conn->drained_due = false;
			LinkSay(LINK_DRAINED, &conn->number, 1);
		}
		if (conn->snapshots == NULL)
			return FLUSH_DONE;
		if (!SnapshotNextPage(conn, &scratch))
			continue; /* that stream was at its end */
		outgoing.data = scratch.data;
		outgoing.length = scratch.length;
		pages -= outgoing.length < pages ? outgoing.length : pages;
		if (!Write(conn))
			return FLUSH_CLOSING;
		/* A page is paced by the socket; it has no bound to count to. */
		conn->pending_other = 0;
		gateway.frames++;
		conn->sent_frames++;
	}
}
