/*-------------------------------------------------------------------------
 *
 * message_wal.h
 *		Messages in WAL: their format, and how they are known to be ours.
 *
 * Process: backends (write), decoder (reads).
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_MESSAGE_WAL_H
#define CHANGEFEED_MESSAGE_WAL_H

#include "pg_changefeed.h"

#include "datatype/timestamp.h"
#include "lib/stringinfo.h"
#include "wire.h"

#define MESSAGE_PREFIX "pg_changefeed"

typedef struct WalMessage
{
	bool transactional;
	uint64 xid;		/* of the top-level transaction, with its epoch */
	uint32 counter; /* within that: grows, from 1 */
	TimestampTz time;
	WireBytes channel; /* concrete name */
	WireBytes event;
	WireBytes payload; /* JSON */
} WalMessage;

extern void MessageWrite(StringInfo out, const WalMessage *message);

/*
 * False: it was not written by MessageWrite in this database of this cluster,
 * or was changed since.  What was read points into `data`.
 */
extern bool MessageRead(const char *data, Size size, WalMessage *message);

#endif /* CHANGEFEED_MESSAGE_WAL_H */
