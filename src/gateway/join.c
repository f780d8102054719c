/*-------------------------------------------------------------------------
 *
 * join.c
 *		What a connection is sent of a transaction, put together.
 *
 * Of a frame only the head with `seq` and the identity's tag in the position
 * differ between connections that get the same.  So what all of them get is put
 * together once, as an image with room in front of it and a hole for the tag.
 * A connection's frame is then a copy of it, or, when nothing else is to be
 * written with it, the image itself with the head and the tag put into it: it
 * is in the socket, or copied by lws, before the next connection's turn.
 *
 * Whoever is alone with what it gets has no use for an image, and compressed
 * messages and those of HTTP have forms of their own.
 *
 * Process: gateway.  Memory: images belong to bodies.
 *
 *-------------------------------------------------------------------------
 */
#include <stdlib.h>
#include <string.h>

#include "gateway.h"

/* What a stored block and its neighbours cost in a compressed message. */
#define BLOCK_BYTES 9

/* A message that gets smaller by no more than this is sent as it is. */
#define LEAST_SAVINGS 32

/* A part of a frame: fragments from `first` up to `end`. */
typedef struct Part
{
	uint32_t first;
	uint32_t end;
	uint32_t number; /* from 0 on */
	bool last;
	size_t fragments; /* their bytes, with a comma behind each */
} Part;

/*
 * All images together.  A body has its images until the last one of those who get
 * it has read them, which may be never, and is not accounted for them: what two
 * connections share would be kept once more for each such pair.  Beyond this
 * every frame is put together by itself.
 */
#define IMAGES_BYTES ((size_t) 32 * 1024 * 1024)

/* In front of an image: a WebSocket frame's header, and HEAD_MAX. */
#define HEAD_MAX   ((size_t) ENVELOPE_BYTES)
#define IMAGE_ROOM (FRAME_HEADER_MAX + HEAD_MAX)

struct Image
{
	Part part;
	uint64_t seq;	/* in the head that is there; 0: none is */
	uint32_t start; /* where that begins */
	uint32_t tag;	/* the place of the tag */
	size_t end;
	char data[]; /* room of IMAGE_ROOM bytes, then the text */
};

static size_t images_bytes;

void
ImageFree(Image *image)
{
	if (image == NULL)
		return;
	images_bytes -= image->end;
	free(image);
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
JoinMessage(Connection *conn, Body *body, Buffer *buffer)
{
	static const char label[] = ",\"position\":\"";
	const Transaction *transaction = body->transaction;
	const Fragment *message = BodyPieces(body)[body->n_fragments + conn->progress.messages_sent++];
	size_t suffix = conn->progress.messages_sent < body->n_messages ? message->suffix_length : 0;
	const char *text = message->data + message->suffix_length;
	MessageInfo info = {.whole = true};
	size_t start;

	info.last = FrameIsSent(conn, body);
	if (message->no_position)
	{
		start = MessageBegin(conn, buffer, (size_t) message->length + 1);
		BufferAppend(buffer, text, message->length);
		BufferAppend(buffer, "}", 1);
		MessageEnd(conn, buffer, start, &info);
		return FragmentSize(message);
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
	return FragmentSize(message);
}

/*
 * What the fragments save when they are compressed, beyond what the blocks
 * between them cost.
 */
static size_t
Savings(Fragment **pieces, const Part *part)
{
	static Buffer piece;
	size_t saved = 0;
	uint32_t i;

	for (i = part->first; i < part->end; i++)
	{
		Fragment *fragment = pieces[i];

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

/* As many fragments as fit; at least one, however large it is. */
static void
NextPart(const Progress *progress, Body *body, Part *part)
{
	Fragment **pieces = BodyPieces(body);
	const Transaction *transaction = body->transaction;
	size_t fixed = (size_t) transaction->before_length + LINK_TAG_LENGTH +
				   transaction->after_length + ENVELOPE_BYTES;

	part->first = progress->n_sent;
	part->end = progress->n_sent;
	part->number = progress->part;
	part->fragments = 0;
	while (part->end < body->n_fragments)
	{
		size_t more = (size_t) pieces[part->end]->length + 1;

		if (gateway.max_frame > 0 && part->end > part->first &&
			fixed + part->fragments + more > gateway.max_frame)
			break;
		part->fragments += more;
		part->end++;
	}
	part->last = part->end == body->n_fragments;
}

/* ---- the head ---- */

static char *
Put(char *p, const void *data, size_t n)
{
	return n > 0 ? (char *) memcpy(p, data, n) + n : p;
}

#define PUT_LITERAL(p, literal) Put(p, literal, sizeof(literal) - 1)

static char *
PutNumber(char *p, uint64_t n)
{
	char digits[20];
	size_t i = sizeof(digits);

	do
	{
		digits[--i] = (char) ('0' + n % 10);
		n /= 10;
	} while (n > 0);
	return Put(p, digits + i, sizeof(digits) - i);
}

/* What precedes what the link gave us; at most HEAD_MAX bytes. */
static size_t
PutHead(char *head, uint64_t seq, const Part *part)
{
	char *p = PUT_LITERAL(head, "{\"type\":\"transaction\",\"seq\":");

	p = PutNumber(p, seq);
	if (part->number > 0 || !part->last)
	{
		p = PUT_LITERAL(p, ",\"part\":");
		p = PutNumber(p, (uint64_t) part->number + 1);
		p = part->last ? PUT_LITERAL(p, ",\"last\":true") : PUT_LITERAL(p, ",\"last\":false");
	}
	return (size_t) (PUT_LITERAL(p, ",") - head);
}

/* ---- the text ---- */

static size_t
SuffixLength(const Body *body)
{
	return body->has_positions ? 2 : 0;
}

static size_t
TextLength(const Body *body, const Part *part)
{
	/* Each fragment has a comma behind it but the last; then comes "]}". */
	return (size_t) body->transaction->before_length + LINK_TAG_LENGTH + SuffixLength(body) +
		   body->transaction->after_length + part->fragments - 1 + 2;
}

static char *
PutText(char *p, Body *body, const char *tag, const Part *part)
{
	const Transaction *transaction = body->transaction;
	Fragment **pieces = BodyPieces(body);
	uint32_t i;

	p = Put(p, transaction->text, transaction->before_length);
	p = Put(p, tag, LINK_TAG_LENGTH);
	p = Put(p, ".0", SuffixLength(body));
	p = Put(p, transaction->text + transaction->before_length, transaction->after_length);
	for (i = part->first; i < part->end; i++)
	{
		if (i > part->first)
			*p++ = ',';
		p = Put(p, pieces[i]->data, pieces[i]->length);
	}
	return PUT_LITERAL(p, "]}");
}

static void
JoinCompressed(Connection *conn, Body *body, const Part *part, const char *head, size_t head_length,
			   Buffer *buffer)
{
	const Transaction *transaction = body->transaction;
	Fragment **pieces = BodyPieces(body);
	uint32_t i;

	CompressText(head, head_length);
	CompressText(transaction->text, transaction->before_length);
	CompressText(conn->tag, LINK_TAG_LENGTH);
	CompressText(".0", SuffixLength(body));
	CompressText(transaction->text + transaction->before_length, transaction->after_length);
	for (i = part->first; i < part->end; i++)
	{
		if (i > part->first)
			CompressText(",", 1);
		if (pieces[i]->n_packed > 0)
			CompressAppend(pieces[i]->packed, pieces[i]->n_packed);
		else
			CompressText(pieces[i]->data, pieces[i]->length);
	}
	CompressText("]}", 2);
	CompressFinish(buffer);
}

/* As it is. */
static void
JoinObject(Connection *conn, Body *body, const Part *part, const char *head, size_t head_length,
		   Buffer *buffer)
{
	size_t length = TextLength(body, part);
	MessageInfo info = {0};
	size_t start = MessageBegin(conn, buffer, head_length + length);

	BufferAppend(buffer, head, head_length);
	BufferReserve(buffer, length);
	PutText(buffer->data + buffer->length, body, conn->tag, part);
	buffer->length += length;
	info.whole = part->last;
	info.last = info.whole && body->n_messages == 0;
	info.position = PositionOf(body->transaction);
	info.suffix = ".0";
	info.suffix_length = SuffixLength(body);
	MessageEnd(conn, buffer, start, &info);
}

/* ---- images ---- */

/* The image of the frame's next part; NULL if nobody else would use it, or there are too many. */
static Image *
FindImage(const Progress *progress, Body *body)
{
	static const char no_tag[LINK_TAG_LENGTH + 1] = "--------";
	Image *image = progress->part < body->n_images ? body->images[progress->part] : NULL;
	Part part;
	size_t length;

	/* With another changefeed.max_frame parts may begin elsewhere. */
	if (image != NULL && image->part.first == progress->n_sent)
		return image;
	if (body->references == 1 || progress->part > body->n_images)
		return NULL;
	if (image != NULL)
	{
		body->images[progress->part] = NULL;
		ImageFree(image);
	}
	NextPart(progress, body, &part);
	length = TextLength(body, &part);
	if (images_bytes + IMAGE_ROOM + length > IMAGES_BYTES)
		return NULL;
	image = GatewayAlloc(sizeof(Image) + IMAGE_ROOM + length);
	image->part = part;
	image->seq = 0;
	image->tag = (uint32_t) IMAGE_ROOM + body->transaction->before_length;
	image->end = IMAGE_ROOM + length;
	images_bytes += image->end;
	PutText(image->data + IMAGE_ROOM, body, no_tag, &part);
	if (progress->part == body->n_images)
		body->images = GatewayRealloc(body->images, ++body->n_images * sizeof(Image *));
	body->images[progress->part] = image;
	return image;
}

/* Makes the image that connection's message: from `start` to `end`. */
static void
Personalize(Image *image, const Connection *conn)
{
	uint64_t seq = conn->progress.seq;

	memcpy(image->data + image->tag, conn->tag, LINK_TAG_LENGTH);
	if (image->seq != seq)
	{
		unsigned char header[FRAME_HEADER_MAX];
		char head[HEAD_MAX];
		size_t length = PutHead(head, seq, &image->part);
		size_t n = BuildFrameHeader(header, length + image->end - IMAGE_ROOM, false);

		image->seq = seq;
		image->start = (uint32_t) (IMAGE_ROOM - length - n);
		memcpy(image->data + image->start, header, n);
		memcpy(image->data + image->start + n, head, length);
	}
}

static void
Advance(Progress *progress, const Part *part)
{
	progress->part++;
	progress->n_sent = part->end;
}

/* The first part is joined. */
static void
BeginFrame(Connection *conn, const Body *body)
{
	if (body->n_fragments > 0)
		conn->progress.seq = ++conn->seq;
	if (!body->transaction->stream)
		conn->last_number = body->transaction->number;
}

/*
 * Appends the frame's next part or message to the buffer as one message.
 * Returns how much of the accounted size that was.
 */
size_t
JoinNext(Connection *conn, FrameItem *frame, Buffer *buffer)
{
	Progress *progress = &conn->progress;
	Body *body = frame->body;
	Image *image = NULL;
	Part part;
	char head[HEAD_MAX];
	size_t n;

	if (progress->part == 0)
		BeginFrame(conn, body);
	if (progress->n_sent == body->n_fragments)
	{
		progress->part++;
		return JoinMessage(conn, body, buffer);
	}
	if (!conn->compressed && conn->http == NULL)
		image = FindImage(progress, body);
	if (image != NULL)
	{
		Personalize(image, conn);
		BufferAppend(buffer, image->data + image->start, image->end - image->start);
		Advance(progress, &image->part);
		return image->part.fragments;
	}
	NextPart(progress, body, &part);
	n = PutHead(head, progress->seq, &part);
	if (conn->compressed && Savings(BodyPieces(body), &part) > LEAST_SAVINGS)
		JoinCompressed(conn, body, &part, head, n, buffer);
	else
		JoinObject(conn, body, &part, head, n, buffer);
	Advance(progress, &part);
	return part.fragments;
}

/*
 * As JoinNext for a frame that has one part and nothing more, but without a copy:
 * returns what is to be written, which is good until anything else is joined, or
 * NULL if this cannot be done.
 */
const char *
JoinInPlace(Connection *conn, FrameItem *frame, size_t *length)
{
	Progress *progress = &conn->progress;
	Body *body = frame->body;
	Image *image;

	/* The last one frees it before it is written. */
	if (body->references == 1 || body->n_messages > 0 || progress->part > 0)
		return NULL;
	image = FindImage(progress, body);
	if (image == NULL || !image->part.last)
		return NULL;
	BeginFrame(conn, body);
	Personalize(image, conn);
	Advance(progress, &image->part);
	*length = image->end - image->start;
	return image->data + image->start;
}

/* About how long the next frame or part is: for gathering, so no promise. */
size_t
JoinNextSize(const Connection *conn, const FrameItem *frame)
{
	const Progress *progress = &conn->progress;
	Body *body = frame->body;

	if (progress->n_sent == body->n_fragments && progress->messages_sent < body->n_messages)
		return FragmentSize(BodyPieces(body)[body->n_fragments + progress->messages_sent]);
	if (gateway.max_frame > 0 && frame->item.size > gateway.max_frame)
		return gateway.max_frame;
	return frame->item.size;
}
