/*-------------------------------------------------------------------------
 *
 * snapshot.c
 *		Pages of snapshots, sent at the speed of each connection.
 *
 * A snapshot comes as a file of pages, written before we get it, so that
 * neither the query's transaction nor the link waits for a slow client.  The
 * file is read by pread: several connections may share one open file.  A page
 * is read only when it can be written, so what a stream costs while it waits
 * is its descriptor and its prefixes.
 *
 * Streams of one connection are served one after the other.  Anything in the
 * connection's queue goes first (queue.c).
 *
 * Process: gateway.  Memory: a stream belongs to its connection.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gateway.h"

/* What a page to be compressed is put together in. */
static Buffer page;

#define PAGE_KEEP ((size_t) 512 * 1024)

struct SnapshotStream
{
	SnapshotStream *next;
	uint32_t sub;
	int fd;		  /* owned */
	off_t offset; /* of the next page */
	uint32_t n_prefixes;
	WireBytes *prefixes; /* pointing into text */
	char *text;
};

typedef enum ReadResult
{
	READ_OK,
	READ_END, /* nothing at that offset */
	READ_BROKEN
} ReadResult;

static void
FreeStream(SnapshotStream *stream)
{
	close(stream->fd);
	free(stream->prefixes);
	free(stream->text);
	free(stream);
}

void
SnapshotAdd(Connection *conn, WireReader *r, int fd)
{
	uint32_t sub = WireGetU32(r);
	uint32_t n = WireGetU32(r);
	SnapshotStream *stream;
	WireReader again;
	size_t total = r->length - r->offset;
	uint32_t i;

	/* Count before allocating: n is only a claim. */
	again = *r;
	for (i = 0; i < n && !r->failed; i++)
		(void) WireGetBytes(r);
	if (!WireAtEnd(r) || fd < 0)
	{
		r->failed = true;
		if (fd >= 0)
			close(fd);
		return;
	}
	if (conn == NULL || conn->close_queued)
	{
		close(fd);
		return;
	}

	stream = GatewayAllocZero(sizeof(SnapshotStream));
	stream->sub = sub;
	stream->fd = fd;
	stream->n_prefixes = n;
	stream->prefixes = GatewayAlloc(n * sizeof(WireBytes));
	stream->text = GatewayAlloc(total);
	memcpy(stream->text, again.data + again.offset, total);
	again = WireReaderInit(stream->text, total);
	for (i = 0; i < n; i++)
		stream->prefixes[i] = WireGetBytes(&again);

	if (conn->snapshots_tail != NULL)
		conn->snapshots_tail->next = stream;
	else
		conn->snapshots = stream;
	conn->snapshots_tail = stream;
	QueueMarkDirty(conn);
}

/* The first stream is at its end or cannot go on. */
static void
FinishFirst(Connection *conn, bool ok)
{
	SnapshotStream *stream = conn->snapshots;

	conn->snapshots = stream->next;
	if (conn->snapshots == NULL)
		conn->snapshots_tail = NULL;
	LinkSaySnapshotDone(conn->number, stream->sub, ok);
	FreeStream(stream);
}

/*
 * The feed worker is not interested any more.  No LINK_SNAPSHOT_DONE follows,
 * though one may be on its way already.
 */
void
SnapshotStop(Connection *conn, uint32_t sub)
{
	SnapshotStream **link = &conn->snapshots;
	SnapshotStream *last = NULL;

	while (*link != NULL)
	{
		SnapshotStream *stream = *link;

		if (stream->sub == sub)
		{
			*link = stream->next;
			FreeStream(stream);
		}
		else
		{
			last = stream;
			link = &stream->next;
		}
	}
	conn->snapshots_tail = last;
}

void
SnapshotStopAll(Connection *conn)
{
	while (conn->snapshots != NULL)
	{
		SnapshotStream *stream = conn->snapshots;

		conn->snapshots = stream->next;
		FreeStream(stream);
	}
	conn->snapshots_tail = NULL;
}

/* Reads exactly n bytes at the offset. */
static ReadResult
ReadAt(int fd, void *data, size_t n, off_t offset)
{
	size_t done = 0;

	while (done < n)
	{
		ssize_t r = pread(fd, (char *) data + done, n - done, offset + (off_t) done);

		if (r < 0)
		{
			if (errno == EINTR)
				continue;
			GatewayLog(LEVEL_WARNING, "could not read a snapshot: %s", strerror(errno));
			return READ_BROKEN;
		}
		if (r == 0)
			return done == 0 ? READ_END : READ_BROKEN;
		done += (size_t) r;
	}
	return READ_OK;
}

/*
 * Appends the next page of the first stream to the buffer as one
 * message.  False when there was none: then that stream is gone, and the next
 * one, if any, is the first.
 */
bool
SnapshotNextPage(Connection *conn, Buffer *buffer)
{
	SnapshotStream *stream = conn->snapshots;
	uint32_t header[2]; /* length, index of the prefix */
	WireBytes *prefix;
	Buffer *target = conn->compressed ? &page : buffer;
	size_t start = target->length;
	size_t message = start;
	MessageInfo info = {.whole = true, .last = true};
	ReadResult result;

	result = ReadAt(stream->fd, header, sizeof(header), stream->offset);
	if (result == READ_END)
	{
		FinishFirst(conn, true);
		return false;
	}
	if (result == READ_OK && (header[0] > LINK_MAX_PAGE || header[1] >= stream->n_prefixes))
	{
		GatewayLog(LEVEL_WARNING, "a snapshot's file is damaged");
		result = READ_BROKEN;
	}
	if (result == READ_OK)
	{
		prefix = &stream->prefixes[header[1]];
		if (!conn->compressed)
			message = MessageBegin(conn, buffer, prefix->length + header[0] + 1);
		BufferAppend(target, prefix->data, prefix->length);
		BufferReserve(target, (size_t) header[0] + 1);
		result = ReadAt(stream->fd, target->data + target->length, header[0],
						stream->offset + (off_t) sizeof(header));
		if (result == READ_END)
			result = READ_BROKEN;
	}
	if (result != READ_OK)
	{
		target->length = start;
		FinishFirst(conn, false);
		return false;
	}
	target->length += header[0];
	BufferAppend(target, "}", 1);
	if (conn->compressed)
	{
		CompressWhole(page.data, page.length, buffer);
		BufferReset(&page, PAGE_KEEP);
	}
	else
		MessageEnd(conn, buffer, message, &info);
	stream->offset += (off_t) (sizeof(header) + header[0]);
	return true;
}
