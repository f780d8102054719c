/*-------------------------------------------------------------------------
 *
 * decoder.h
 *		What the parts of the decoder process use of each other: the process
 *		itself (decoder.c), its slot (decoder_slot.c), the output plugin.
 *
 * Process: decoder only.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_DECODER_H
#define CHANGEFEED_DECODER_H

#include "shared.h"

#include "access/xlogreader.h"
#include "storage/shm_mq.h"

/* The entry of our database; NULL in every process that is no decoder. */
extern DatabaseFeed *decoder_feed;
extern char *decoder_database;		  /* its name */
extern MemoryContext decoder_context; /* lives as long as the process */

/* CHECK_FOR_INTERRUPTS and re-reading of the configuration file. */
extern void DecoderHandleInterrupts(void);

/* The read_page callback of the WAL reader: waits until the page is there. */
extern int DecoderReadPage(XLogReaderState *state, XLogRecPtr target_page, int length,
						   XLogRecPtr target_record, char *page);

/* The reader's callbacks; a macro because it makes a compound literal. */
#define DECODER_READER()                                                       \
	XL_ROUTINE(.page_read = DecoderReadPage, .segment_open = wal_segment_open, \
			   .segment_close = wal_segment_close)

/*
 * Acquires the slot of this database and returns its epoch, or 0 if there is
 * none that can be used.  Slots that are of no use are dropped.  Settings
 * without which there can be no slot are an error that tells what to do.
 */
extern uint64 DecoderAcquireSlot(void);

/* The slot keeps so many bytes of WAL: warns, once, if a bound is near. */
extern void DecoderWarnOfWal(uint64 held);

/* Creates the slot of this database, under a new epoch, which is returned. */
extern uint64 DecoderCreateSlot(void);

/* Of how many parts a record may be gathered. */
#define DECODER_MAX_PARTS 4

/*
 * Puts one record into the queue, gathered from `iov`, and waits while there
 * is no room.  Does not return when the feed worker is gone.
 *
 * Records are collected and shown to the feed worker together: while there is
 * more WAL at hand, waking it for each small transaction would cost more than
 * decoding that.
 */
extern void DecoderSend(shm_mq_iovec *iov, int iovcnt);

/* Shows everything that was sent to the feed worker. */
extern void DecoderFlush(void);

#endif /* CHANGEFEED_DECODER_H */
