/*-------------------------------------------------------------------------
 *
 * stream.c
 *		What a message looks like on the wire: WebSocket, event stream, poll.
 *
 * Event streams and polls have the same queue as WebSockets.  An event is one
 * `data:` line with the JSON object; the messages of a poll are collected and
 * sent as one answer.
 *
 * Both have to say where to go on.  Each channel of the request has a part in
 * that: "-" while it has no rows that count, a position of its own while it
 * catches up, and that of the connection from the first frame on that follows
 * its `ready`.  A paced one is where its own frames and pings have left it: the
 * frames of others say nothing of what is put off.  LINK_EVENT_ID changes a part, and counts with the end of the
 * message behind it, so that a client that saw half of a frame gets it again.
 * If all parts are at the same position, that is the id; else it is the list of
 * all, in the order of the request's channels.  An event has an `id:` when it
 * differs from the last one that the client was told.
 *
 * A frame that is dropped because the client is slow cannot make the id wrong:
 * only what is written moves the connection's position.
 *
 * Process: gateway.  Memory: a Stream is part of its Exchange.
 *
 *-------------------------------------------------------------------------
 */
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "http.h"

/* How long the feed worker may take until all channels are ready. */
#define HELD_MS 60000

/*
 * Whoever asks for the largest answer on a thousand connections and reads none of
 * them would have a thousand times its memory: all have so many times.
 */
#define MAX_ANSWERS 32

/* Bytes of answers to polls that have not gone yet. */
static uint64_t answers;

/* When a browser comes back by itself, if it is not told otherwise. */
#define RETRY_LEAST 500
#define RETRY_RANGE 2500

/* ---- where to go on ---- */

static void
Compose(const Stream *stream, Buffer *id)
{
	const char *first = NULL;
	bool same = true;
	uint32_t i;

	id->length = 0;
	for (i = 0; i < stream->n; i++)
	{
		const StreamPart *part = &stream->parts[i];
		const char *text = part->common ? stream->position : part->position;

		if (first == NULL)
			first = text;
		else
		{
			BufferAppend(id, ",", 1);
			same = same && strcmp(first, text) == 0;
		}
		BufferAppendString(id, text);
	}
	if (same && first != NULL)
	{
		id->length = 0;
		BufferAppendString(id, first);
	}
}

static void
SetPosition(StreamPart *part, const char *position)
{
	part->common = false;
	memcpy(part->position, position, sizeof(part->position));
	if (part->position[0] == '\0')
		strcpy(part->position, "-");
}

static void
SetPart(Stream *stream, const PartItem *item)
{
	StreamPart *part;

	if (item->index >= stream->n || item->part == LINK_PART_SAME)
		return;
	part = &stream->parts[item->index];
	part->part = item->part;
	SetPosition(part, item->position);
}

/* ITEM_PART has come to the head of the queue. */
void
StreamNotePart(Connection *conn, const PartItem *item)
{
	Stream *stream = &conn->http->stream;

	if (stream->has_pending)
		SetPart(stream, &stream->pending);
	stream->pending = *item;
	stream->has_pending = true;
	stream->quiet = item->quiet;
}

/* ---- messages ---- */

/* Returns what MessageEnd wants to know. */
size_t
MessageBegin(Connection *conn, Buffer *buffer, size_t length)
{
	if (conn->http == NULL)
		BufferAppendFrameHeader(buffer, length, false);
	else if (conn->http->stream.kind == LINK_STREAM_EVENTS)
		BufferAppendString(buffer, "data: ");
	return buffer->length;
}

/* JSON of user-defined casts may have line ends between its tokens. */
static void
MakeOneLine(Buffer *buffer, size_t start)
{
	size_t i;

	for (i = start; i < buffer->length; i++)
	{
		if (buffer->data[i] == '\n' || buffer->data[i] == '\r')
			buffer->data[i] = ' ';
	}
}

/*
 * What precedes this message has a part in the list of its own.  Of a
 * transaction that is several objects each one but the last moves it to a
 * place within that transaction.
 */
static void
TakePending(Stream *stream, const MessageInfo *info)
{
	PartItem item = stream->pending;
	size_t length = strlen(item.position);

	stream->quiet = false;
	if (stream->has_pending && (info->last || info->suffix_length > 0))
	{
		if (length > 0 && length + info->suffix_length <= LINK_POSITION_MAX)
		{
			if (info->suffix_length > 0)
				memcpy(item.position + length, info->suffix, info->suffix_length);
			item.position[length + info->suffix_length] = '\0';
		}
		SetPart(stream, &item);
	}
	if (info->last)
		stream->has_pending = false;
}

/* All channels that are ready are there, but paced ones only if it is a ping's. */
static void
MoveAll(Stream *stream, const Connection *conn, const MessageInfo *info)
{
	size_t length = LINK_TX_POSITION + LINK_TAG_LENGTH;
	uint32_t i;

	memcpy(stream->position, info->position, LINK_TX_POSITION);
	memcpy(stream->position + LINK_TX_POSITION, conn->tag, LINK_TAG_LENGTH);
	if (length + info->suffix_length <= LINK_POSITION_MAX)
	{
		if (info->suffix_length > 0)
			memcpy(stream->position + length, info->suffix, info->suffix_length);
		length += info->suffix_length;
	}
	stream->position[length] = '\0';
	for (i = 0; i < stream->n; i++)
	{
		StreamPart *part = &stream->parts[i];

		if (part->part == LINK_PART_READY)
			part->common = true;
		else if (part->part == LINK_PART_PACED && info->quiet)
			SetPosition(part, stream->position);
	}
}

/* The message, or a part of a frame, is in the buffer. */
void
MessageEnd(Connection *conn, Buffer *buffer, size_t start, const MessageInfo *info)
{
	Stream *stream;

	if (conn->http == NULL)
		return;
	stream = &conn->http->stream;
	if (!info->quiet && !stream->quiet)
		stream->collected = true;
	if (info->whole)
		TakePending(stream, info);
	if (info->whole && info->position != NULL)
		MoveAll(stream, conn, info);

	if (stream->kind == LINK_STREAM_POLL)
	{
		/* A ping only says where we are. */
		if (info->quiet)
		{
			buffer->length = start;
			stream->pinged = true;
		}
		else
			BufferAppend(buffer, ",", 1);
		return;
	}

	MakeOneLine(buffer, start);
	BufferAppend(buffer, "\n", 1);
	if (info->whole)
	{
		Buffer id = {NULL, 0, 0};

		Compose(stream, &id);
		if (id.length != stream->id.length ||
			(id.length > 0 && memcmp(id.data, stream->id.data, id.length) != 0))
		{
			BufferAppendString(buffer, "id: ");
			BufferAppend(buffer, id.data, id.length);
			BufferAppend(buffer, "\n", 1);
			BufferReset(&stream->id, 0);
			stream->id = id;
		}
		else
			BufferReset(&id, 0);
	}
	if (stream->retry_ms > 0)
	{
		char line[32];

		snprintf(line, sizeof(line), "retry: %u\n", stream->retry_ms);
		BufferAppendString(buffer, line);
		stream->retry_ms = 0;
	}
	BufferAppend(buffer, "\n", 1);
}

/* ---- streams ---- */

void
StreamFree(Stream *stream)
{
	free(stream->parts);
	free(stream->unchanged);
	free(stream->headers);
	BufferReset(&stream->id, 0);
	BufferReset(&stream->body, 0);
	answers -= stream->held;
	memset(stream, 0, sizeof(*stream));
}

static char *
CopyText(WireBytes bytes)
{
	char *copy = GatewayAlloc(bytes.length + 1);

	if (bytes.length > 0)
		memcpy(copy, bytes.data, bytes.length);
	copy[bytes.length] = '\0';
	return copy;
}

/* LINK_STREAM */
void
StreamOpen(Connection *conn, WireReader *r)
{
	Stream *stream = &conn->http->stream;
	uint32_t wait;
	uint32_t i;

	QueueDropAll(conn);
	SnapshotStopAll(conn);
	StreamFree(stream);
	stream->kind = WireGetU8(r);
	stream->flags = WireGetU8(r);
	wait = WireGetU32(r);
	stream->limit = WireGetU32(r);
	stream->unchanged = CopyText(WireGetBytes(r));
	stream->headers = CopyText(WireGetBytes(r));
	stream->n = WireGetU16(r);
	stream->parts = GatewayAllocZero((stream->n + 1) * sizeof(StreamPart));
	for (i = 0; i < stream->n; i++)
	{
		WireBytes position = WireGetBytes(r);
		StreamPart *part = &stream->parts[i];

		if (r->failed || position.length > LINK_POSITION_MAX)
		{
			r->failed = true;
			return;
		}
		part->part = position.length > 0 ? LINK_PART_OWN : LINK_PART_NONE;
		strcpy(part->position, "-");
		if (position.length > 0)
			memcpy(part->position, position.data, position.length);
	}
	Compose(stream, &stream->id);
	HeartbeatSetDeadline(conn, (stream->flags & LINK_STREAM_WAITS) != 0 ? wait : HELD_MS);
}

static uint32_t
NextRetry(void)
{
	static uint32_t value;

	/* Steps of the golden ratio spread any number of values evenly. */
	value += UINT32_C(2654435769);
	return RETRY_LEAST + (uint32_t) (((uint64_t) RETRY_RANGE * value) >> 32);
}

/* LINK_BEGIN: an event stream is one from now on. */
void
StreamBegin(Connection *conn)
{
	Stream *stream = &conn->http->stream;
	unsigned int limit = gateway.heartbeat_ms + 10000;
	Buffer out = {NULL, 0, 0};
	Reply reply;
	char *lines;

	if (stream->kind != LINK_STREAM_EVENTS || stream->begun || conn->http->answered || conn->killed)
		return;
	stream->begun = true;
	stream->retry_ms = NextRetry();

	/* There is no answer to a ping: TCP has to notice who is gone. */
	setsockopt(lws_get_socket_fd(conn->wsi), IPPROTO_TCP, TCP_USER_TIMEOUT, &limit, sizeof(limit));

	memset(&reply, 0, sizeof(reply));
	reply.status = 200;
	reply.endless = true;
	reply.content_type = "text/event-stream";
	lines = RequestLines(conn->http, stream->headers, strlen(stream->headers));
	reply.extra = lines;
	HttpAppendReply(&out, &reply);
	free(lines);
	ConnHeard(conn);
	HeartbeatBegin(conn);
	if (!StreamWrite(conn, &out))
		ConnKill(conn, LINK_CAUSE_CLIENT);
	BufferReset(&out, 0);
	QueueMarkDirty(conn);
}

bool
StreamIsBegun(const Connection *conn)
{
	return conn->http->stream.begun;
}

/* It is a stream or a poll, of which nothing was sent yet. */
bool
StreamIsAsked(const Connection *conn)
{
	return conn->http->stream.kind != 0 && !conn->http->stream.begun;
}

/* While this is so nothing can be taken from the queue. */
bool
StreamIsChoked(const Connection *conn)
{
	const Exchange *http = conn->http;

	if (http->answered)
		return true;
	if (http->stream.kind == LINK_STREAM_POLL)
		return false;
	if (http->stream.kind == LINK_STREAM_EVENTS && !http->stream.begun)
		return true;
	return lws_partial_buffered(conn->wsi) != 0;
}

/* Sends what MessageEnd has finished; false: the connection is lost. */
bool
StreamWrite(Connection *conn, Buffer *buffer)
{
	Stream *stream = &conn->http->stream;

	if (stream->kind != LINK_STREAM_POLL)
	{
		if (lws_write(conn->wsi, (unsigned char *) buffer->data, buffer->length, LWS_WRITE_HTTP) <
			0)
			return false;
		if (lws_partial_buffered(conn->wsi))
			RequestChoked(conn);
		return true;
	}
	if (stream->body.length + buffer->length > stream->limit)
		RequestFail(conn, 422, "54000", "the answer is larger than changefeed.max_response",
					"Ask for fewer rows with conditions or limit in the channel's name, or use "
					"a WebSocket or /v1/events, which have no such limit.");
	else if (answers + buffer->length > MAX_ANSWERS * (uint64_t) stream->limit)
		RequestFail(conn, 503, "too_many_answers", "answers to polls take too much memory",
					"Try again later, or use a WebSocket or /v1/events.");
	else
	{
		BufferAppend(&stream->body, buffer->data, buffer->length);
		stream->held += buffer->length;
		answers += buffer->length;
	}
	return true;
}

/* ---- polls ---- */

static bool
IsSettled(const Stream *stream)
{
	uint32_t i;

	if (stream->has_pending)
		return false;
	for (i = 0; i < stream->n; i++)
	{
		uint8_t part = stream->parts[i].part;

		if (part != LINK_PART_READY && part != LINK_PART_PACED && part != LINK_PART_ENDED)
			return false;
	}
	return true;
}

static void
FinishPoll(Connection *conn)
{
	Stream *stream = &conn->http->stream;
	Buffer id = {NULL, 0, 0};
	Buffer etag = {NULL, 0, 0};
	Buffer body = {NULL, 0, 0};
	Buffer extra = {NULL, 0, 0};
	Reply reply;
	char *lines;

	Compose(stream, &id);
	BufferAppend(&id, "", 1);
	BufferAppendString(&etag, "\"");
	BufferAppendString(&etag, stream->collected ? id.data : stream->unchanged);
	BufferAppend(&etag, "\"", 2);

	memset(&reply, 0, sizeof(reply));
	BufferAppendString(&extra, "ETag: ");
	BufferAppendString(&extra, etag.data);
	BufferAppendString(&extra, "\r\nChangefeed-Position: ");
	BufferAppendString(&extra, id.data);
	BufferAppendString(&extra, "\r\n");
	BufferAppendString(&extra, stream->headers);
	lines = RequestLines(conn->http, extra.data, extra.length);
	reply.extra = lines;
	reply.head = conn->http->head;
	if (!stream->collected || HttpEtagMatches(conn->http->none_match, etag.data))
		reply.status = 304;
	else
	{
		BufferAppendString(&body, "{\"messages\":[");
		if (stream->body.length > 0)
			BufferAppend(&body, stream->body.data, stream->body.length - 1);
		BufferAppendString(&body, "],\"position\":\"");
		BufferAppendString(&body, id.data);
		BufferAppendString(&body, "\"}\n");
		BufferReset(&stream->body, 0);
		reply.status = 200;
		reply.content_type = "application/json";
		reply.body = body.data;
		reply.length = body.length;
	}
	RequestAnswer(conn, &reply);
	free(lines);
	BufferReset(&id, 0);
	BufferReset(&etag, 0);
	BufferReset(&body, 0);
	BufferReset(&extra, 0);
}

/* The queue is empty: can a poll be answered? */
void
StreamFlushed(Connection *conn)
{
	Stream *stream = &conn->http->stream;

	if (stream->kind != LINK_STREAM_POLL || conn->http->answered || conn->snapshots != NULL ||
		!IsSettled(stream))
		return;
	if (stream->collected && (stream->flags & LINK_STREAM_PROBE) != 0)
	{
		/* What came is not wanted, only that something did. */
		if (!stream->told)
			LinkSay(LINK_COLLECTED, &conn->number, 1);
		stream->told = true;
	}
	else if (stream->collected || stream->pinged)
		FinishPoll(conn);
	else if (!stream->asked && (stream->over || (stream->flags & LINK_STREAM_WAITS) == 0))
	{
		/* A ping says how far we have come meanwhile. */
		stream->asked = true;
		LinkSayPingDue(&conn->number, 1);
	}
}

/* ---- ends ---- */

void
StreamDeadline(Connection *conn)
{
	Stream *stream = &conn->http->stream;
	uint64_t limit = (uint64_t) gateway.heartbeat_ms + 10000;
	uint64_t silent = uv_now(&gateway.loop) - conn->heard_ms;

	if (stream->begun)
	{
		/* It cannot be choked for so long; that it takes nothing is silence. */
		if (!ConnIsChoked(conn))
			silent = 0;
		if (silent >= limit)
			ConnKill(conn, LINK_CAUSE_HEARTBEAT);
		else
			HeartbeatSetDeadline(conn, limit - silent);
		return;
	}
	if (stream->kind == LINK_STREAM_POLL && (stream->flags & LINK_STREAM_WAITS) != 0 &&
		!stream->over)
	{
		stream->over = true;
		HeartbeatSetDeadline(conn, HELD_MS);
		QueueFlush(conn);
		return;
	}
	RequestFail(conn, 504, "timeout", "the feed did not answer in time", NULL);
}

/* LINK_CLOSE, when all before it has gone out. */
void
StreamEnd(Connection *conn)
{
	Stream *stream = &conn->http->stream;

	if (stream->kind == LINK_STREAM_POLL && stream->body.length > 0 && stream->collected)
		FinishPoll(conn);
	else if (stream->begun)
		RequestEnd(conn);
	else
		RequestFail(conn, 503, "shutting_down", "the feed has closed the connection", NULL);
}

/* The client shall come back in so many ms. */
void
StreamClosing(Connection *conn, uint32_t retry_ms)
{
	conn->http->stream.retry_ms = retry_ms;
}

/* The queue was dropped, so what the pending part belongs to is gone. */
void
StreamDropped(Connection *conn)
{
	conn->http->stream.has_pending = false;
}
