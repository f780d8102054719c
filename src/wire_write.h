/*-------------------------------------------------------------------------
 *
 * wire_write.h
 *		Writing what wire.h reads, into a StringInfo: host order, unaligned.
 *
 * Process: decoder, feed worker, query workers.  (The gateway and the link
 * write with linkframe.c, which has no Postgres headers.)
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_WIRE_WRITE_H
#define CHANGEFEED_WIRE_WRITE_H

#include "lib/stringinfo.h"

static inline void
WirePutU8(StringInfo out, uint8 value)
{
	appendStringInfoCharMacro(out, (char) value);
}

static inline void
WirePutU16(StringInfo out, uint16 value)
{
	appendBinaryStringInfo(out, (char *) &value, sizeof(value));
}

static inline void
WirePutU32(StringInfo out, uint32 value)
{
	appendBinaryStringInfo(out, (char *) &value, sizeof(value));
}

static inline void
WirePutU64(StringInfo out, uint64 value)
{
	appendBinaryStringInfo(out, (char *) &value, sizeof(value));
}

/* u32 length, bytes. */
static inline void
WirePutBytes(StringInfo out, const char *data, Size length)
{
	WirePutU32(out, (uint32) length);
	appendBinaryStringInfo(out, data, (int) length);
}

static inline void
WirePutString(StringInfo out, const char *text)
{
	WirePutBytes(out, text, strlen(text));
}

#endif /* CHANGEFEED_WIRE_WRITE_H */
