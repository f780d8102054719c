/*-------------------------------------------------------------------------
 *
 * publish.h
 *		Messages that clients publish.  See publish.c.
 *
 * Process: feed worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_PUBLISH_H
#define CHANGEFEED_PUBLISH_H

#include "feed.h"
#include "json_message.h"

/* A client's `publish`; `data` is the whole message, which may have to wait. */
extern void PublishMessage(Connection *connection, JsonMessage *message, const char *id,
						   const char *data, Size length);

/* What is known of rights may have changed with that transaction. */
extern void PublishApply(LogTransaction *transaction);

/* Something changed that is not in the WAL. */
extern void PublishForgetRights(void);

/* Answers that came; the messages that waited for them are sent. */
extern void PublishAdvance(void);

#endif /* CHANGEFEED_PUBLISH_H */
