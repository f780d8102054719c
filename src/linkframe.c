/*-------------------------------------------------------------------------
 *
 * linkframe.c
 *		Framing of the link on a non-blocking stream socket.
 *
 * Two linear buffers.  The incoming one holds what was read and not yet taken
 * as messages; it grows with the bytes that really came, never by what a
 * header announces, so a broken length cannot make us allocate.  The outgoing
 * one holds finished messages and at most one that is being written; only
 * finished ones are ever sent.
 *
 * A descriptor travels with the first byte of its message.  The kernel keeps
 * the order, so the descriptors that were received form a plain queue, and a
 * message whose header announces one takes the oldest.  Whoever is on the
 * other side could send more than it announces; as our descriptors are a
 * limited resource this is an error as soon as it shows.
 *
 * Process: feed worker and gateway.  Memory: malloc.  Nothing here calls
 * back, longjmps or blocks; after a failed allocation the link only answers
 * LINK_ERROR.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "linkframe.h"

/* Room that a read finds at least, and what an empty buffer may keep. */
#define READ_CHUNK	  ((size_t) 64 * 1024)
#define KEEP_CAPACITY ((size_t) 512 * 1024)

/* Received descriptors that no message has taken yet. */
#define MAX_RECEIVED 32

/* A buffer whose bytes from `start` to `end` are in use. */
typedef struct LinkBuffer
{
	char *data;
	size_t start;
	size_t end;
	size_t capacity;
} LinkBuffer;

/* A descriptor that goes out with the byte at `at` of the outgoing buffer. */
typedef struct LinkOutgoing
{
	size_t at; /* as an offset from the buffer's start */
	int fd;	   /* ours: closed when it is sent */
} LinkOutgoing;

struct LinkFrame
{
	int fd;
	bool broken; /* memory was short, or a header made no sense */
	uint32_t max_payload;

	LinkBuffer in;
	int received[MAX_RECEIVED]; /* oldest first */
	int n_received;

	LinkBuffer out;
	size_t committed;		/* end of the last finished message in out */
	LinkOutgoing *outgoing; /* in the order of their offsets */
	size_t n_outgoing;
	size_t outgoing_capacity;
};

/*
 * Makes room for n more bytes behind `end`.  Moves the used bytes to the front
 * when at least half of the buffer is behind us, which keeps the cost of
 * moving in proportion to what was consumed; else grows.  Returns how far
 * bytes were moved in *moved (may be NULL).
 */
static bool
BufferReserve(LinkBuffer *buffer, size_t n, size_t *moved)
{
	size_t used = buffer->end - buffer->start;
	size_t capacity;
	char *data;

	if (moved != NULL)
		*moved = 0;
	if (n <= buffer->capacity - buffer->end)
		return true;

	if (buffer->start > 0 && (used == 0 || buffer->start >= used) && n <= buffer->capacity - used)
	{
		memmove(buffer->data, buffer->data + buffer->start, used);
		if (moved != NULL)
			*moved = buffer->start;
		buffer->start = 0;
		buffer->end = used;
		return true;
	}

	if (n > SIZE_MAX / 4 - used)
		return false;
	capacity = buffer->capacity > 0 ? buffer->capacity : 4096;
	while (capacity < used + n)
		capacity *= 2;
	data = malloc(capacity);
	if (data == NULL)
		return false;
	if (used > 0)
		memcpy(data, buffer->data + buffer->start, used);
	free(buffer->data);
	if (moved != NULL)
		*moved = buffer->start;
	buffer->data = data;
	buffer->capacity = capacity;
	buffer->start = 0;
	buffer->end = used;
	return true;
}

/* Gives back the memory of a buffer that one large message has blown up. */
static void
BufferShrinkIfEmpty(LinkBuffer *buffer)
{
	if (buffer->start != buffer->end)
		return;
	buffer->start = 0;
	buffer->end = 0;
	if (buffer->capacity > KEEP_CAPACITY)
	{
		free(buffer->data);
		buffer->data = NULL;
		buffer->capacity = 0;
	}
}

LinkFrame *
LinkFrameCreate(int fd)
{
	LinkFrame *link = calloc(1, sizeof(LinkFrame));

	if (link != NULL)
	{
		link->fd = fd;
		link->max_payload = LINK_MAX_PAYLOAD;
	}
	return link;
}

void
LinkFrameLimit(LinkFrame *link, uint32_t payload)
{
	link->max_payload = payload;
}

void
LinkFrameDestroy(LinkFrame *link)
{
	size_t i;

	if (link == NULL)
		return;
	for (i = 0; i < (size_t) link->n_received; i++)
		close(link->received[i]);
	for (i = 0; i < link->n_outgoing; i++)
		close(link->outgoing[i].fd);
	if (link->fd >= 0)
		close(link->fd);
	free(link->outgoing);
	free(link->in.data);
	free(link->out.data);
	free(link);
}

int
LinkFrameSocket(const LinkFrame *link)
{
	return link->fd;
}

/*
 * Takes the descriptors of a received control message into the queue.  False
 * when there are more than any honest sender would have on the way; those are
 * closed.
 */
static bool
TakeDescriptors(LinkFrame *link, struct msghdr *header)
{
	struct cmsghdr *c;
	bool fits = true;

	for (c = CMSG_FIRSTHDR(header); c != NULL; c = CMSG_NXTHDR(header, c))
	{
		size_t n;
		size_t i;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (i = 0; i < n; i++)
		{
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			if (link->n_received < MAX_RECEIVED)
				link->received[link->n_received++] = fd;
			else
			{
				close(fd);
				fits = false;
			}
		}
	}
	return fits && (header->msg_flags & MSG_CTRUNC) == 0;
}

/*
 * A read that ends a message may be followed by end-of-file.  We report what
 * came first; the next call finds the end again.
 */
LinkStatus
LinkFrameFill(LinkFrame *link, size_t budget)
{
	size_t taken = 0;

	if (link->broken)
		return LINK_ERROR;
	if (budget == 0)
		budget = 1;

	/* There is room for what comes with one more; the messages take them first. */
	while (taken < budget && (taken == 0 || link->n_received < MAX_RECEIVED - 8))
	{
		union
		{
			char space[CMSG_SPACE(8 * sizeof(int))];
			struct cmsghdr align;
		} control;
		struct iovec part;
		struct msghdr header;
		size_t want = budget - taken;
		ssize_t n;

		if (want > READ_CHUNK)
			want = READ_CHUNK;
		if (!BufferReserve(&link->in, want, NULL))
		{
			link->broken = true;
			return LINK_ERROR;
		}
		part.iov_base = link->in.data + link->in.end;
		part.iov_len = want;
		memset(&header, 0, sizeof(header));
		header.msg_iov = &part;
		header.msg_iovlen = 1;
		header.msg_control = control.space;
		header.msg_controllen = sizeof(control.space);

		n = recvmsg(link->fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		if (n < 0)
		{
			if (errno == EINTR)
				continue;
			if (errno == EAGAIN || errno == EWOULDBLOCK)
				break;
			if (taken > 0)
				break;
			/* The other side died with bytes of ours unread. */
			return errno == ECONNRESET ? LINK_EOF : LINK_ERROR;
		}
		if (!TakeDescriptors(link, &header))
		{
			link->broken = true;
			return LINK_ERROR;
		}
		if (n == 0)
		{
			if (taken > 0)
				break;
			return LINK_EOF;
		}
		link->in.end += (size_t) n;
		taken += (size_t) n;
	}
	return taken > 0 ? LINK_OK : LINK_AGAIN;
}

size_t
LinkFrameWaiting(const LinkFrame *link)
{
	return link->in.end - link->in.start;
}

LinkStatus
LinkFrameNext(LinkFrame *link, LinkMessage *message)
{
	LinkHeader header;
	size_t used = link->in.end - link->in.start;

	message->payload = NULL;
	message->length = 0;
	message->descriptor = -1;

	if (link->broken)
		return LINK_ERROR;
	if (used == 0)
	{
		/* Every descriptor comes with a byte of the message it belongs to. */
		if (link->n_received > 0)
		{
			link->broken = true;
			return LINK_ERROR;
		}
		BufferShrinkIfEmpty(&link->in);
		return LINK_AGAIN;
	}
	if (used < sizeof(header))
		return LINK_AGAIN;
	memcpy(&header, link->in.data + link->in.start, sizeof(header));
	if (header.length > link->max_payload || header.descriptors > 1 || header.type == 0 ||
		header.descriptors > link->n_received)
	{
		link->broken = true;
		return LINK_ERROR;
	}
	if (used - sizeof(header) < header.length)
		return LINK_AGAIN;

	message->type = (LinkType) header.type;
	message->payload = link->in.data + link->in.start + sizeof(header);
	message->length = header.length;
	if (header.descriptors > 0)
	{
		message->descriptor = link->received[0];
		link->n_received--;
		memmove(link->received, link->received + 1, sizeof(int) * (size_t) link->n_received);
	}
	link->in.start += sizeof(header) + header.length;
	return LINK_OK;
}

void
LinkFrameBegin(LinkFrame *link, LinkType type)
{
	LinkHeader header;

	memset(&header, 0, sizeof(header));
	header.type = (uint16_t) type;
	/* An unfinished message is given up: its owner took an error exit. */
	link->out.end = link->committed;
	LinkFramePutRaw(link, &header, sizeof(header));
}

void
LinkFramePutRaw(LinkFrame *link, const void *data, size_t length)
{
	size_t moved;

	if (link->broken || length == 0)
		return;
	if (!BufferReserve(&link->out, length, &moved))
	{
		link->broken = true;
		return;
	}
	link->committed -= moved;
	memcpy(link->out.data + link->out.end, data, length);
	link->out.end += length;
}

void
LinkFramePutU8(LinkFrame *link, uint8_t v)
{
	LinkFramePutRaw(link, &v, sizeof(v));
}

void
LinkFramePutU16(LinkFrame *link, uint16_t v)
{
	LinkFramePutRaw(link, &v, sizeof(v));
}

void
LinkFramePutU32(LinkFrame *link, uint32_t v)
{
	LinkFramePutRaw(link, &v, sizeof(v));
}

void
LinkFramePutU64(LinkFrame *link, uint64_t v)
{
	LinkFramePutRaw(link, &v, sizeof(v));
}

void
LinkFramePutBytes(LinkFrame *link, const void *data, size_t length)
{
	if (length > LINK_MAX_PAYLOAD)
	{
		link->broken = true;
		return;
	}
	LinkFramePutU32(link, (uint32_t) length);
	LinkFramePutRaw(link, data, length);
}

/* Fills in the header of the message that is being written. */
static bool
FinishMessage(LinkFrame *link, uint16_t descriptors)
{
	LinkHeader header;
	size_t length;

	if (link->broken)
		return false;
	if (link->out.end - link->committed < sizeof(header))
		return false; /* no LinkFrameBegin */
	length = link->out.end - link->committed - sizeof(header);
	if (length > LINK_MAX_PAYLOAD)
	{
		link->broken = true;
		return false;
	}
	memcpy(&header, link->out.data + link->committed, sizeof(header));
	header.length = (uint32_t) length;
	header.descriptors = descriptors;
	memcpy(link->out.data + link->committed, &header, sizeof(header));
	link->committed = link->out.end;
	return true;
}

bool
LinkFrameEnd(LinkFrame *link)
{
	return FinishMessage(link, 0);
}

bool
LinkFrameEndWithDescriptor(LinkFrame *link, int fd)
{
	size_t at;
	int copy;

	if (link->broken)
		return false;
	if (link->n_outgoing == link->outgoing_capacity)
	{
		size_t capacity = link->outgoing_capacity * 2 + 4;
		LinkOutgoing *grown = realloc(link->outgoing, capacity * sizeof(LinkOutgoing));

		if (grown == NULL)
		{
			link->broken = true;
			return false;
		}
		link->outgoing = grown;
		link->outgoing_capacity = capacity;
	}
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (copy < 0)
	{
		link->broken = true;
		return false;
	}
	at = link->committed - link->out.start;
	if (!FinishMessage(link, 1))
	{
		close(copy);
		return false;
	}
	link->outgoing[link->n_outgoing].at = at;
	link->outgoing[link->n_outgoing].fd = copy;
	link->n_outgoing++;
	return true;
}

/*
 * Sends up to n bytes from the buffer's start, with `fd` if it is not -1.
 * Returns what sendmsg returns.
 */
static ssize_t
SendPiece(LinkFrame *link, size_t n, int fd)
{
	union
	{
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec part;
	struct msghdr header;

	part.iov_base = link->out.data + link->out.start;
	part.iov_len = n;
	memset(&header, 0, sizeof(header));
	header.msg_iov = &part;
	header.msg_iovlen = 1;
	if (fd >= 0)
	{
		struct cmsghdr *c;

		memset(&control, 0, sizeof(control));
		header.msg_control = control.space;
		header.msg_controllen = sizeof(control.space);
		c = CMSG_FIRSTHDR(&header);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(int));
	}
	return sendmsg(link->fd, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
}

LinkStatus
LinkFrameFlush(LinkFrame *link)
{
	if (link->broken)
		return LINK_ERROR;

	while (link->out.start < link->committed)
	{
		size_t n = link->committed - link->out.start;
		int fd = -1;
		size_t i;
		ssize_t sent;

		/*
		 * A piece begins or ends where a descriptor's message begins, so that
		 * the descriptor goes with exactly that byte.
		 */
		for (i = 0; i < link->n_outgoing; i++)
		{
			if (link->outgoing[i].at == 0)
				fd = link->outgoing[i].fd;
			else
			{
				n = link->outgoing[i].at;
				break;
			}
		}

		sent = SendPiece(link, n, fd);
		if (sent < 0)
		{
			if (errno == EINTR)
				continue;
			/* The last: the receiver has yet to take descriptors. */
			if (errno == EAGAIN || errno == EWOULDBLOCK || errno == ETOOMANYREFS)
				return LINK_AGAIN;
			return (errno == EPIPE || errno == ECONNRESET) ? LINK_EOF : LINK_ERROR;
		}
		if (fd >= 0 && sent > 0)
		{
			close(fd);
			link->n_outgoing--;
			memmove(link->outgoing, link->outgoing + 1, sizeof(LinkOutgoing) * link->n_outgoing);
		}
		for (i = 0; i < link->n_outgoing; i++)
			link->outgoing[i].at -= (size_t) sent;
		link->out.start += (size_t) sent;
	}

	/* A message that is being written keeps its place. */
	if (link->out.start == link->out.end)
	{
		BufferShrinkIfEmpty(&link->out);
		link->committed = link->out.end;
	}
	return LINK_OK;
}

size_t
LinkFramePending(const LinkFrame *link)
{
	return link->committed - link->out.start;
}

size_t
LinkFrameDescriptors(const LinkFrame *link)
{
	return link->n_outgoing;
}
