/*-------------------------------------------------------------------------
 *
 * wire.h
 *		Bounds-checked reading and writing of small binary messages.
 *
 * Used wherever two of our processes talk: decoder, feed worker and query
 * workers (through shm_mq) and feed worker and gateway (through the link).
 * Everything runs on one machine, so numbers are in host order, unaligned.
 *
 * A reader never reads past its end: after the first short read `failed` is
 * set, every further read gives zero, and the caller checks once at the end.
 * This header must stay free of Postgres headers: the gateway includes it.
 *
 * Process: any.  Memory: a reader borrows the caller's bytes; a writer grows
 * a malloc'ed buffer in the gateway.  Server code writes with StringInfo
 * (see record.h); the byte layout is the same.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_WIRE_H
#define CHANGEFEED_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct WireReader
{
	const char *data;
	size_t length;
	size_t offset;
	bool failed; /* a read went past the end */
} WireReader;

/* A string inside a message: not NUL-terminated. */
typedef struct WireBytes
{
	const char *data;
	size_t length;
} WireBytes;

static inline WireReader
WireReaderInit(const void *data, size_t length)
{
	WireReader r = {(const char *) data, length, 0, false};

	return r;
}

static inline const char *
WireTake(WireReader *r, size_t n)
{
	const char *p;

	if (r->failed || n > r->length - r->offset)
	{
		r->failed = true;
		return NULL;
	}
	p = r->data + r->offset;
	r->offset += n;
	return p;
}

#define WIRE_GETTER(name, type)                    \
	static inline type name(WireReader *r)         \
	{                                              \
		type v = 0;                                \
		const char *p = WireTake(r, sizeof(type)); \
		if (p != NULL)                             \
			memcpy(&v, p, sizeof(type));           \
		return v;                                  \
	}

WIRE_GETTER(WireGetU8, uint8_t)
WIRE_GETTER(WireGetU16, uint16_t)
WIRE_GETTER(WireGetU32, uint32_t)
WIRE_GETTER(WireGetU64, uint64_t)

/* A string: u32 length, bytes. */
static inline WireBytes
WireGetBytes(WireReader *r)
{
	WireBytes b = {NULL, 0};
	uint32_t n = WireGetU32(r);
	const char *p = WireTake(r, n);

	if (p != NULL)
	{
		b.data = p;
		b.length = n;
	}
	return b;
}

static inline bool
WireAtEnd(const WireReader *r)
{
	return !r->failed && r->offset == r->length;
}

#endif /* CHANGEFEED_WIRE_H */
