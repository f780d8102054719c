/*-------------------------------------------------------------------------
 *
 * log_open.h
 *		The transaction that the decoder is sending, for log.c alone.
 *
 * Process: feed worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_LOG_OPEN_H
#define CHANGEFEED_LOG_OPEN_H

#include "log.h"

/* Transactions are allocated in `context`, each as one chunk. */
extern void LogOpenInit(MemoryContext context);

/* One record.  Returns the transaction that it completes, without a number, or NULL. */
extern LogTransaction *LogOpenReceive(const char *data, Size length);

#endif
