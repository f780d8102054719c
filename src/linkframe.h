/*-------------------------------------------------------------------------
 *
 * linkframe.h
 *		Framing of the link on a non-blocking stream socket.
 *
 * One module for both ends (feed worker, gateway) and for the fuzzers:
 * cutting the incoming stream into messages, collecting descriptors, and
 * queueing what the socket does not take.  What the messages mean is in
 * link_format.h.
 *
 * Process: feed worker and gateway.  Memory: malloc, because the gateway has
 * no Postgres code; the feed worker frees a link explicitly when a gateway
 * ends.  No function of this module calls back, longjmps or blocks.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_LINKFRAME_H
#define CHANGEFEED_LINKFRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "link_format.h"

typedef struct LinkFrame LinkFrame;

/* A received message; `payload` is valid until the next LinkFrameNext. */
typedef struct LinkMessage
{
	LinkType type;
	const char *payload;
	size_t length;
	int descriptor; /* owned by the caller from now on, or -1 */
} LinkMessage;

typedef enum LinkStatus
{
	LINK_OK,	/* a message / all was written */
	LINK_AGAIN, /* nothing more now / some bytes are left */
	LINK_EOF,	/* the other side is gone */
	LINK_ERROR	/* errno or a broken header: give up */
} LinkStatus;

/* Takes over the non-blocking socket `fd`.  NULL when memory is short. */
extern LinkFrame *LinkFrameCreate(int fd);

/* Messages with a longer payload are errors, instead of those above LINK_MAX_PAYLOAD. */
extern void LinkFrameLimit(LinkFrame *link, uint32_t payload);

/* Closes the socket and received descriptors nobody took. */
extern void LinkFrameDestroy(LinkFrame *link);
extern int LinkFrameSocket(const LinkFrame *link);

/*
 * Reads at most `budget` bytes from the socket into the buffer.  LINK_OK:
 * something came (call LinkFrameNext until LINK_AGAIN); LINK_AGAIN: nothing.
 */
extern LinkStatus LinkFrameFill(LinkFrame *link, size_t budget);

/* Bytes that were read and not yet taken as messages. */
extern size_t LinkFrameWaiting(const LinkFrame *link);

/* The next whole message in the buffer, or LINK_AGAIN. */
extern LinkStatus LinkFrameNext(LinkFrame *link, LinkMessage *message);

/*
 * Sending: begin a message, add its payload in pieces, end it.  Bytes are
 * only queued; LinkFrameFlush writes.  False when memory is short (then the
 * link is broken and has to be destroyed).
 */
extern void LinkFrameBegin(LinkFrame *link, LinkType type);
extern void LinkFramePutU8(LinkFrame *link, uint8_t v);
extern void LinkFramePutU16(LinkFrame *link, uint16_t v);
extern void LinkFramePutU32(LinkFrame *link, uint32_t v);
extern void LinkFramePutU64(LinkFrame *link, uint64_t v);
extern void LinkFramePutBytes(LinkFrame *link, const void *data, size_t length); /* u32 + data */
extern void LinkFramePutRaw(LinkFrame *link, const void *data, size_t length);	 /* "rest" */
extern bool LinkFrameEnd(LinkFrame *link);

/* As LinkFrameEnd; `fd` goes along (a duplicate: the caller keeps its own). */
extern bool LinkFrameEndWithDescriptor(LinkFrame *link, int fd);

/* Writes queued bytes until the socket is full. */
extern LinkStatus LinkFrameFlush(LinkFrame *link);

/* Bytes that are queued and not written. */
extern size_t LinkFramePending(const LinkFrame *link);

/* Descriptors among them. */
extern size_t LinkFrameDescriptors(const LinkFrame *link);

#endif /* CHANGEFEED_LINKFRAME_H */
