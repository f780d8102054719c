/*-------------------------------------------------------------------------
 *
 * walk.c
 *		Connections that have something to send, and going over them.
 *
 * While the link is read, connections that get something are noted; afterwards
 * they are gone over, and each is sent all it has.  With many receivers that
 * takes long, and meanwhile nobody is accepted or heard: so a walk is bounded and
 * goes on in the next turn of the loop.
 *
 * Who gets something together with many others is in an array of its own, of which
 * each walk does a part, too: one for ten thousand takes a tenth of a second,
 * for which the hundred of another channel should not wait.  Nor should a small
 * one wait until a large one is copied into as many sockets, or until it is found
 * that nobody reads there: who has much to be sent is in a third array.
 *
 * With thousands of connections none of what a connection needs is in the
 * processor's caches, and the memory's answer would be waited for several times
 * with each.  Hence arrays rather than linked lists: it is known who comes next,
 * and what those need is asked for while others are written to.
 *
 * Process: gateway.
 *
 *-------------------------------------------------------------------------
 */
#include <stdlib.h>
#include <string.h>

#include "gateway.h"

/* Bounds of one walk, and what each array may take of it when others wait for the loop. */
#define WALK_CONNECTIONS 256
#define WALK_BUSY		 64
#define WALK_BYTES		 ((uint64_t) 4 * 1024 * 1024)

/* Beyond this it is the bytes that cost, not the system call; so much of them while others wait. */
#define LARGE_BYTES		 ((size_t) 16 * 1024)
#define WALK_LARGE_BYTES ((uint64_t) 512 * 1024)

/* So many connections are looked at together before they are written to. */
#define BLOCK 8

/* An empty array keeps room for so many. */
#define KEEP_SLOTS 4096

/* Those between `first` and `end`; NULL: not any more. */
typedef struct ConnArray
{
	Connection **slots;
	uint32_t first;
	uint32_t end;
	uint32_t capacity;
} ConnArray;

/* Connection.listed is the place in here. */
typedef enum ArrayName
{
	IN_NONE,
	IN_FEW,	  /* they have something to send */
	IN_MANY,  /* likewise, and so have many others at the same time */
	IN_LARGE, /* likewise, and it is much */
	IN_OPEN	  /* their next item is a transaction that is still being built */
} ArrayName;

static ConnArray arrays[5];

/* Those who get something now are many. */
static bool for_many;

/* Runs while there were too many for one turn. */
static uv_idle_t idle;

static void
OnIdle(uv_idle_t *handle)
{
	(void) handle;
	QueueFlushDirty();
}

void
WalkStart(void)
{
	uv_idle_init(&gateway.loop, &idle);
}

/* Forgets empty slots at the front, and at last the memory. */
static void
Tidy(ConnArray *array)
{
	while (array->first < array->end && array->slots[array->first] == NULL)
		array->first++;
	if (array->first < array->end)
		return;
	array->first = array->end = 0;
	if (array->capacity > KEEP_SLOTS)
	{
		free(array->slots);
		array->slots = NULL;
		array->capacity = 0;
	}
}

static void
Enter(Connection *conn, ArrayName name)
{
	ConnArray *array = &arrays[name];

	if (array->end == array->capacity && array->first > array->capacity / 2)
	{
		uint32_t i;

		array->end -= array->first;
		memmove(array->slots, array->slots + array->first, array->end * sizeof(Connection *));
		array->first = 0;
		for (i = 0; i < array->end; i++)
			if (array->slots[i] != NULL)
				array->slots[i]->listed_at = i;
	}
	else if (array->end == array->capacity)
	{
		array->capacity = array->capacity > 0 ? array->capacity * 2 : 64;
		array->slots = GatewayRealloc(array->slots, array->capacity * sizeof(Connection *));
	}
	conn->listed = (uint8_t) name;
	conn->listed_at = array->end;
	array->slots[array->end++] = conn;
}

/* It has nothing to send any more. */
void
WalkForget(Connection *conn)
{
	if (conn->listed == IN_NONE)
		return;
	arrays[conn->listed].slots[conn->listed_at] = NULL;
	conn->listed = IN_NONE;
}

/* Are those who get something from now on many? */
void
WalkExpect(uint32_t n)
{
	for_many = n > WALK_CONNECTIONS;
}

static bool
NobodyIsDirty(void)
{
	return arrays[IN_FEW].end == 0 && arrays[IN_MANY].end == 0 && arrays[IN_LARGE].end == 0;
}

static void
EnterDirty(Connection *conn, ArrayName name)
{
	if (NobodyIsDirty())
		uv_idle_start(&idle, OnIdle);
	Enter(conn, name);
}

void
QueueMarkDirty(Connection *conn)
{
	ArrayName name = IN_FEW;

	if (for_many)
		name = conn->queued_feed + conn->queued_other > LARGE_BYTES ? IN_LARGE : IN_MANY;
	/* What is for few goes first; what has become large can wait. */
	if (conn->closing || conn->listed == IN_FEW || conn->listed == IN_OPEN ||
		conn->listed == (uint8_t) name || (conn->listed == IN_LARGE && name == IN_MANY))
		return;
	WalkForget(conn);
	EnterDirty(conn, name);
}

/* A transaction is complete: those who waited for it can be sent to. */
void
QueueTransactionEnded(void)
{
	ConnArray *open = &arrays[IN_OPEN];

	WalkExpect(open->end - open->first);
	for (; open->first < open->end; open->first++)
	{
		Connection *conn = open->slots[open->first];

		if (conn == NULL)
			continue;
		conn->listed = IN_NONE;
		QueueMarkDirty(conn);
	}
	Tidy(open);
	WalkExpect(0);
}

static FlushResult
Flush(Connection *conn)
{
	FlushResult result = QueueSend(conn);

	/* It may be asked for with each fragment: the array must not grow by that. */
	if (result == FLUSH_DONE && conn->head != NULL && conn->listed == IN_OPEN)
		return result;
	WalkForget(conn);
	if (result == FLUSH_MORE)
		EnterDirty(conn, IN_LARGE); /* it has had its share */
	else if (result == FLUSH_DONE && conn->head != NULL)
		Enter(conn, IN_OPEN);
	else if (result == FLUSH_DONE && conn->http != NULL)
		StreamFlushed(conn);
	return result;
}

/*
 * Sends what the connection has, as far as its socket and this turn's budget
 * allow, and notes it again if it is not done.
 */
FlushResult
QueueFlush(Connection *conn)
{
	StatsForgetClock();
	return Flush(conn);
}

/*
 * Asks for what the next connections need, first for the connections, then for
 * what they point to.  Only the processor could do better with lws' part: what we
 * know of it is a function, so that is called for all of them in a row, where the
 * waiting times overlap.
 */
static void
PrefetchBlock(const ConnArray *array)
{
	Connection *const *slot = array->slots + array->first;
	uint32_t n = array->end - array->first;
	uint32_t i;

	for (i = 0; i < 2 * BLOCK && i < n; i++)
	{
		/* No pointer: it may be none. */
		uintptr_t conn = (uintptr_t) slot[i];

		__builtin_prefetch((const void *) conn);
		__builtin_prefetch((const void *) (conn + 64));
		__builtin_prefetch((const void *) (conn + 128));
	}
	for (i = 0; i < BLOCK && i < n; i++)
	{
		if (slot[i] == NULL)
			continue;
		__builtin_prefetch(slot[i]->head);
		(void) ConnIsChoked(slot[i]);
	}
}

static void
FlushSome(ConnArray *dirty, uint64_t bytes)
{
	uint32_t bound = TurnWasFull() ? WALK_BUSY : WALK_CONNECTIONS;
	uint64_t start = gateway.bytes;
	uint32_t i;

	for (i = 0; i < bound && gateway.bytes - start < bytes; i++)
	{
		Tidy(dirty);
		if (dirty->first == dirty->end)
			break;
		if (i % BLOCK == 0)
		{
			/* So few writes take no time that matters. */
			StatsForgetClock();
			PrefetchBlock(dirty);
		}
		Flush(dirty->slots[dirty->first]);
	}
	Tidy(dirty);
}

/* Sends to all that have something, up to the bounds of one walk. */
void
QueueFlushDirty(void)
{
	bool others;

	FlushSome(&arrays[IN_FEW], WALK_BYTES);
	FlushSome(&arrays[IN_MANY], WALK_BYTES);
	others = arrays[IN_FEW].end > 0 || arrays[IN_MANY].end > 0;
	FlushSome(&arrays[IN_LARGE], others ? WALK_LARGE_BYTES : WALK_BYTES);
	if (NobodyIsDirty())
		uv_idle_stop(&idle);
}
