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
extern bool listener_local[MAX_LISTENERS]; /* a Unix socket */
extern int listener_count;

/*
 * Binds changefeed.port on changefeed.listen_addresses, and
 * changefeed.unix_socket, if that is not done.
 * Returns -1, or the milliseconds after which to try again.
 */
extern long Listen(void);

/* Something may be better now: does not wait for the next try. */
extern void ListenAgain(void);

#endif /* CHANGEFEED_LISTEN_H */
