/*-------------------------------------------------------------------------
 *
 * turn.c
 *		How much one turn of the loop may take on.
 *
 * libuv takes up to 1024 events from epoll, up to 48 times, before it looks at
 * anything else, and what was closed meanwhile it closes in one go.  When a proxy
 * dies, ten thousand connections end in one moment; for a quarter of a second
 * nobody else would hear anything.  Nothing in libuv's interface bounds that, but
 * it asks the C library's epoll_wait(), and a program's own function of that name
 * comes first: ours hands out few events at a time.  The rest stays ready in the
 * kernel, which gives everybody a turn.
 *
 * As those are many, the link and the listening sockets do not wait for theirs:
 * main.c looks at them between turns that were full.
 *
 * If a libuv asks in another way, all of this has no effect, and nothing breaks.
 *
 * Process: gateway.
 *
 *-------------------------------------------------------------------------
 */
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "gateway.h"

/* Ending a connection takes some 30 us, a handshake 40: half a millisecond. */
#define EVENTS_PER_TURN 16

static bool full;

int
epoll_pwait(int fd, struct epoll_event *events, int max_events, int timeout, const sigset_t *mask)
{
	int n;

	if (max_events > EVENTS_PER_TURN)
		max_events = EVENTS_PER_TURN;
	/* The kernel's set of signals is smaller than the C library's. */
	n = (int) syscall(SYS_epoll_pwait, fd, events, max_events, timeout, mask, _NSIG / 8);
	full = n == EVENTS_PER_TURN;
	return n;
}

int
epoll_wait(int fd, struct epoll_event *events, int max_events, int timeout)
{
	return epoll_pwait(fd, events, max_events, timeout, NULL);
}

/* Did the last turn leave events for the next one, as far as we know? */
bool
TurnWasFull(void)
{
	return full;
}
