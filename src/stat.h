/*-------------------------------------------------------------------------
 *
 * stat.h
 *		Rows of the statistics views, from the feed worker to a backend.
 *
 * An answer (feed_request.h) is a sequence of rows, each a sequence of values:
 * u8 StatTag and, unless null, u64 or bytes.  The backend makes of them what
 * the columns of its function are declared as.
 *
 * Process: feed worker (writing, stat_collect.c), backends (reading, stat.c).
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_STAT_H
#define CHANGEFEED_STAT_H

#include "wire_write.h"

#include "access/xlogdefs.h"
#include "port/atomics.h"

typedef enum StatTag
{
	STAT_NULL = 0,
	STAT_NUMBER = 1, /* u64: whatever is passed by value */
	STAT_TEXT = 2,	 /* bytes */
	STAT_JSON = 3	 /* bytes: what the view casts from text */
} StatTag;

static inline void
StatPutNull(StringInfo row)
{
	WirePutU8(row, STAT_NULL);
}

static inline void
StatPutNumber(StringInfo row, uint64 value)
{
	WirePutU8(row, STAT_NUMBER);
	WirePutU64(row, value);
}

static inline void
StatPutTagged(StringInfo row, StatTag tag, const char *text)
{
	if (text == NULL)
	{
		StatPutNull(row);
		return;
	}
	WirePutU8(row, (uint8) tag);
	WirePutString(row, text);
}

/* A NULL text is null. */
static inline void
StatPutText(StringInfo row, const char *text)
{
	StatPutTagged(row, STAT_TEXT, text);
}

static inline void
StatPutJson(StringInfo row, const char *text)
{
	StatPutTagged(row, STAT_JSON, text);
}

/* The arguments of a question for a list; without any it is the whole list. */
typedef struct StatRange
{
	uint64 connection; /* only this one's, 0: all */
	uint32 limit;	   /* so many of the newest connections, 0: all */
} StatRange;

/* stat.c: WAL that the slot keeps from being recycled; -1: there is no such slot */
extern int64 StatWalHeld(const char *slot_name);
extern XLogRecPtr StatWalEnd(void);

/* MB of WAL at which the slot is lost: our bound, or the server's if that is less. */
extern int StatWalLimit(void);

/* stat_collect.c */
typedef struct ProcessUsage
{
	double cpu_seconds;
	uint64 memory; /* resident bytes */
} ProcessUsage;

/* False: there is no such process. */
extern bool StatProcess(int pid, ProcessUsage *usage);
extern const char *StatTransport(uint8 transport);
extern int StatPid(pg_atomic_uint32 *procno);

/* metrics.c: everything, in Prometheus' text format */
extern void MetricsWrite(StringInfo out);

#endif /* CHANGEFEED_STAT_H */
