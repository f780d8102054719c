/*-------------------------------------------------------------------------
 *
 * intrude.h
 *		Makes the gateway's process do system calls, as somebody would who has
 *		taken it over.  See intrude.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GATEWAY_INTRUDE_H
#define GATEWAY_INTRUDE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* Stops the process; false if this machine does not let us (errno). */
extern bool IntrudeBegin(pid_t pid);

/* Lets it go on from where it was. */
extern void IntrudeEnd(void);

/* Its memory for arguments: the address there of `length` bytes that are put into it. */
extern long IntrudePut(const void *data, size_t length);

/* What it got: the result, or -errno. */
extern long IntrudeCall(long number, long a, long b, long c, long d, long e, long f);

/* Of the process that ended instead: the signal; 0: it is there. */
extern int IntrudeEnded(void);

#endif /* GATEWAY_INTRUDE_H */
