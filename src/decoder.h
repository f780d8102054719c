/*-------------------------------------------------------------------------
 *
 * decoder.h
 *		What the output plugin uses of the decoder process.
 *
 * Process: decoder only.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_DECODER_H
#define CHANGEFEED_DECODER_H

#include "shared.h"

#include "storage/shm_mq.h"

/* The entry of our database; NULL in every process that is no decoder. */
extern DatabaseFeed *decoder_feed;

/*
 * Puts one record into the queue, gathered from `iov`, and waits while there
 * is no room.  Does not return when the feed worker is gone.
 */
extern void DecoderSend(shm_mq_iovec *iov, int iovcnt);

/*
 * The same for the last record of a transaction, a short one.  It may be held
 * back for a moment: while there is more WAL at hand, waking the feed worker
 * for each small transaction would cost more than decoding it.
 */
extern void DecoderSendLast(const char *data, Size length);

/* Shows everything that was sent to the feed worker. */
extern void DecoderFlush(void);

#endif							/* CHANGEFEED_DECODER_H */
