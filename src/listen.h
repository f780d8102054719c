/*-------------------------------------------------------------------------
 *
 * listen.h
 *		The sockets that the gateways accept from.
 *
 * Process: feed worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_LISTEN_H
#define CHANGEFEED_LISTEN_H

#define MAX_LISTENERS 8

extern int listener_sockets[MAX_LISTENERS];
extern int listener_count;

/*
 * Binds changefeed.port on changefeed.listen_addresses, if that is not done.
 * Returns -1, or the milliseconds after which to try again.
 */
extern long Listen(void);

#endif /* CHANGEFEED_LISTEN_H */
