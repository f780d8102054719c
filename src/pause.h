/*-------------------------------------------------------------------------
 *
 * pause.h
 *		A feed that is paused: changefeed.pause, resume and reset.
 *
 * A pause is a row of changefeed.pause, so it survives restarts and crashes, and
 * takes effect at its place in the order of commits: what was committed before
 * is delivered, then every client is told and disconnected, and nobody comes in
 * until the row is gone.  Meanwhile transactions are decoded as ever and go into
 * the log, from which clients resume if it is still long enough.
 *
 * Without its slot a paused feed does not run at all (shared.c, launcher.c).
 *
 * Process: backends and the scan (PauseRead), feed worker (the rest).
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_PAUSE_H
#define CHANGEFEED_PAUSE_H

#include "postgres.h"

#include "datatype/timestamp.h"

typedef struct PauseState
{
	bool paused;
	bool keeps_slot;
	TimestampTz since;
} PauseState;

/* In a transaction.  False: the table cannot be read now, without waiting. */
extern bool PauseRead(PauseState *state);

/* Nobody is let in, as far as the log has been published. */
extern bool feed_paused;

/* When the last pause ended; 0: there was none since the worker's start. */
extern TimestampTz feed_resumed;

/* Finds out and tells the gateways.  False: try again later. */
extern bool PauseReload(void);

#endif /* CHANGEFEED_PAUSE_H */
