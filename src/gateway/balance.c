/*-------------------------------------------------------------------------
 *
 * balance.c
 *		Several gateways on one port: about as many connections for each.
 *
 * All of them watch the same listening sockets, and the kernel wakes all for
 * each client; who is first takes it, which on a busy machine is mostly the
 * same one.  So each tells the others how many connections it has, in a page of
 * memory that they share, and whoever has clearly more than another one leaves a
 * client to the others for a moment.  If nobody has come by then, it takes the
 * client after all: no gateway can keep others from working by being stuck.
 *
 * Process: gateway.  Memory: a shared mapping of one u32 for each gateway, from
 * the feed worker.  It is nothing but advice.
 *
 *-------------------------------------------------------------------------
 */
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

#include "gateway.h"

/* Who has so many more than another one, and a sixteenth, is ahead. */
#define SLACK 8

static _Atomic uint32_t *counts;
static uint32_t n_counts;
static uint32_t mine;

/* LINK_BALANCE; takes the descriptor. */
void
BalanceTake(WireReader *r, int fd)
{
	void *page = MAP_FAILED;
	uint32_t n = WireGetU32(r);
	uint32_t place = WireGetU32(r);
	size_t size = n * sizeof(uint32_t);

	if (place >= n || fd < 0)
		r->failed = true;
	/* Not fstat(), which may become a call that can look at any file. */
	else if (lseek(fd, 0, SEEK_END) >= (off_t) size)
		page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (fd >= 0)
		close(fd);
	if (page == MAP_FAILED)
		return;
	if (counts != NULL)
		munmap(counts, n_counts * sizeof(uint32_t));
	counts = page;
	n_counts = n;
	mine = place;
	BalanceUpdate();
}

/* The number of sockets has changed. */
void
BalanceUpdate(void)
{
	if (counts != NULL)
		atomic_store_explicit(&counts[mine], (uint32_t) gateway.open_sockets, memory_order_relaxed);
}

/* Are there others who accept from the same sockets? */
bool
BalanceIsShared(void)
{
	return counts != NULL && n_counts > 1;
}

bool
BalanceIsAhead(void)
{
	uint32_t i;

	for (i = 0; counts != NULL && i < n_counts; i++)
	{
		uint64_t other = atomic_load_explicit(&counts[i], memory_order_relaxed);

		if (gateway.open_sockets > other + other / 16 + SLACK)
			return true;
	}
	return false;
}
