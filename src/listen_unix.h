/*-------------------------------------------------------------------------
 *
 * listen_unix.h
 *		The Unix socket that the gateways accept from.
 *
 * Process: feed worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_LISTEN_UNIX_H
#define CHANGEFEED_LISTEN_UNIX_H

/*
 * Binds changefeed.unix_socket, which is set.  -1: it cannot be had, and the
 * log says why; if `quiet`, only when it is another reason than before.  The file is removed when the process ends.
 */
extern int ListenUnix(bool quiet);

/* Gives the name back; the descriptor is the caller's. */
extern void ListenUnixEnd(void);

#endif /* CHANGEFEED_LISTEN_UNIX_H */
