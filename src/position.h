/*-------------------------------------------------------------------------
 *
 * position.h
 *		Positions: where in the stream of commits a client's cache is.
 *
 * A position is 40 characters of URL-safe base64, opaque to clients.  The
 * first 32 (24 bytes) name a transaction: epoch, LSN of its commit record, low
 * 32 bits of its xid, low 32 bits of its commit time in microseconds.  The
 * last 8 (6 bytes) are the tag of the identity to which it was given.  The
 * first part is the same for everybody and is written once per transaction;
 * the gateway appends each connection's tag.  A position within a transaction
 * has a suffix: ".0" behind its changes, or the place of a message
 * (message_deliver.c).
 *
 * xid and time distinguish a commit from another one that later got the same
 * LSN on a diverged timeline (restore, promotion).  Two copies of a server that
 * do the same work give the same xid at the same LSN, and differ by the
 * microsecond only.
 *
 * Process: feed worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_POSITION_H
#define CHANGEFEED_POSITION_H

#include "pg_changefeed.h"

#include "access/xlogdefs.h"
#include "datatype/timestamp.h"

#define POSITION_COMMON 32 /* characters that name the transaction */
#define POSITION_TAG	8  /* characters that name the identity */
#define POSITION_LENGTH (POSITION_COMMON + POSITION_TAG)

/* Within a transaction; see message_deliver.c. */
#define MESSAGE_PLACE_PARTS 3
typedef struct MessagePlace
{
	uint32 parts[MESSAGE_PLACE_PARTS];
} MessagePlace;

typedef struct Position
{
	uint64 epoch;
	XLogRecPtr lsn;
	uint32 xid;
	uint32 time;
	char tag[POSITION_TAG];
	bool partial; /* only what comes up to `place` was delivered of it */
	MessagePlace place;
} Position;

extern uint32 PositionTime(TimestampTz time);

/* Writes POSITION_COMMON characters, no terminator. */
extern void PositionWrite(char *out, uint64 epoch, XLogRecPtr lsn, uint64 xid, TimestampTz time);

/* Writes POSITION_TAG characters, no terminator. */
extern void PositionTag(char *out, uint64 identity_hash);

/* False when the text is no position. */
extern bool PositionParse(const char *text, Size length, Position *position);

#endif /* CHANGEFEED_POSITION_H */
