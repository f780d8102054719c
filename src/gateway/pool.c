/*-------------------------------------------------------------------------
 *
 * pool.c
 *		Memory for many things of one size: connections, items of queues.
 *
 * A burst queues a few items for each of many connections and is gone a moment
 * later.  From malloc they would lie between what stays, and their memory would
 * never be given back; and who goes over ten thousand connections should find
 * them side by side, not spread over as many pages.  So they have regions of
 * their own, and a region without anything in it goes back to the system when
 * nobody has needed it for a second or two.
 *
 * With GATEWAY_DEBUG everything comes from malloc: then a sanitizer sees what is
 * used after its end.
 *
 * Process: gateway.  Memory: mmap'ed regions, never more than what was in use at
 * some time, rounded up.
 *
 *-------------------------------------------------------------------------
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "gateway.h"

/* A power of two; regions begin at multiples of it. */
#define REGION_BYTES ((size_t) 128 * 1024)

typedef struct FreeElement
{
	struct FreeElement *next;
} FreeElement;

struct PoolRegion
{
	ListNode node; /* in the pool's list of those with room, or in none */
	uint32_t used; /* elements */
	uint32_t made; /* elements that were ever used: the rest was never touched */
	FreeElement *free;
};

/* A cache line, so that elements of whole lines do not share any. */
#define FIRST_ELEMENT 64

#ifndef GATEWAY_DEBUG

static uint32_t
ElementsOf(const Pool *pool)
{
	return (uint32_t) ((REGION_BYTES - FIRST_ELEMENT) / pool->size);
}

static PoolRegion *
MakeRegion(void)
{
	char *data = mmap(NULL, 2 * REGION_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
					  -1, 0);
	size_t before;

	if (data == MAP_FAILED)
		GatewayFatal(EXIT_FAILED, "out of memory: %zu bytes", REGION_BYTES);
	before = (REGION_BYTES - (uintptr_t) data % REGION_BYTES) % REGION_BYTES;
	if (before > 0)
		munmap(data, before);
	munmap(data + before + REGION_BYTES, REGION_BYTES - before);
	return (PoolRegion *) (void *) (data + before);
}

static PoolRegion *
TakeSpare(Pool *pool)
{
	PoolRegion *region = pool->spares;

	if (region == NULL)
		return NULL;
	pool->spares = (PoolRegion *) region->node.next;
	region->node.next = NULL;
	if (--pool->n_spares < pool->least_spares)
		pool->least_spares = pool->n_spares;
	return region;
}

void *
PoolTake(Pool *pool)
{
	PoolRegion *region;
	void *element;

	if (pool->with_room.next == NULL)
		ListInit(&pool->with_room);
	if (ListIsEmpty(&pool->with_room))
	{
		region = TakeSpare(pool);
		if (region == NULL)
			region = MakeRegion();
		ListAppend(&pool->with_room, &region->node);
	}
	region = ListElement(pool->with_room.next, PoolRegion, node);
	if (region->free != NULL)
	{
		element = region->free;
		region->free = region->free->next;
	}
	else
		element = (char *) region + FIRST_ELEMENT + (size_t) region->made++ * pool->size;
	region->used++;
	if (region->free == NULL && region->made == ElementsOf(pool))
		ListRemove(&region->node);
	return element;
}

void
PoolGive(Pool *pool, void *element)
{
	PoolRegion *region = (PoolRegion *) ((uintptr_t) element & ~(REGION_BYTES - 1));
	FreeElement *freed = element;

	freed->next = region->free;
	region->free = freed;
	if (!ListContains(&region->node))
		ListAppend(&pool->with_room, &region->node);
	if (--region->used > 0)
		return;

	/* Its elements are all free: from now on they are taken in order again. */
	region->free = NULL;
	region->made = 0;
	ListRemove(&region->node);
	region->node.next = (ListNode *) pool->spares;
	pool->spares = region;
	pool->n_spares++;
}

/* Once a second: gives back what was not needed since the last time. */
void
PoolTrim(Pool *pool)
{
	uint32_t n = pool->least_spares;

	while (n-- > 0)
		munmap(TakeSpare(pool), REGION_BYTES);
	pool->least_spares = pool->n_spares;
}

#else

void *
PoolTake(Pool *pool)
{
	return GatewayAlloc(pool->size);
}

void
PoolGive(Pool *pool, void *element)
{
	(void) pool;
	free(element);
}

void
PoolTrim(Pool *pool)
{
	(void) pool;
}

#endif
