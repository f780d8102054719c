/*-------------------------------------------------------------------------
 *
 * context.c
 *		A memory context in which each chunk is malloc'ed by itself.
 *
 * In the server's contexts many chunks share a block, and ASan sees nothing of
 * what goes on within it.  Here each has redzones, and what was freed stays
 * unusable.  The extension's files are compiled with AllocSetContextCreateInternal
 * being this function, so this is what all their contexts are, as well as the one
 * that is current while an input is worked on.
 *
 * It relies on how a chunk of PostgreSQL 15 names its context: by the pointer in
 * front of it.  With later ones these are the server's contexts.
 *
 *-------------------------------------------------------------------------
 */
#include "fuzz.h"

#undef AllocSetContextCreateInternal

#include <stdlib.h>

#include "lib/ilist.h"
#include "nodes/memnodes.h"
#include "utils/memutils.h"

#if PG_VERSION_NUM < 160000

typedef struct FuzzContext
{
	MemoryContextData header;
	dlist_head chunks;
} FuzzContext;

typedef struct Chunk
{
	dlist_node node;
	Size size;
	MemoryContext context; /* right in front of what the caller gets */
} Chunk;

#define ChunkOf(pointer) ((Chunk *) ((char *) (pointer) - sizeof(Chunk)))
#define PointerOf(chunk) ((char *) (chunk) + sizeof(Chunk))

StaticAssertDecl(sizeof(Chunk) % MAXIMUM_ALIGNOF == 0, "chunks have to be aligned");

static void *
Alloc(MemoryContext context, Size size)
{
	Chunk *chunk = malloc(sizeof(Chunk) + size);

	if (chunk == NULL)
		return NULL;
	chunk->size = size;
	chunk->context = context;
	dlist_push_tail(&((FuzzContext *) context)->chunks, &chunk->node);
	context->mem_allocated += sizeof(Chunk) + size;
	return PointerOf(chunk);
}

static void
Free(MemoryContext context, void *pointer)
{
	Chunk *chunk = ChunkOf(pointer);

	dlist_delete(&chunk->node);
	context->mem_allocated -= sizeof(Chunk) + chunk->size;
	free(chunk);
}

/* It always moves, so that nobody gets used to what realloc does mostly. */
static void *
Realloc(MemoryContext context, void *pointer, Size size)
{
	void *copy = Alloc(context, size);

	if (copy == NULL)
		return NULL;
	memcpy(copy, pointer, Min(size, ChunkOf(pointer)->size));
	Free(context, pointer);
	return copy;
}

static void
Reset(MemoryContext context)
{
	FuzzContext *fuzz = (FuzzContext *) context;

	while (!dlist_is_empty(&fuzz->chunks))
		Free(context, PointerOf(dlist_head_element(Chunk, node, &fuzz->chunks)));
}

static void
Delete(MemoryContext context)
{
	Reset(context);
	free(context);
}

static Size
ChunkSpace(MemoryContext context, void *pointer)
{
	return sizeof(Chunk) + ChunkOf(pointer)->size;
}

static bool
IsEmpty(MemoryContext context)
{
	return dlist_is_empty(&((FuzzContext *) context)->chunks);
}

static void
Stats(MemoryContext context, MemoryStatsPrintFunc print, void *passthru,
	  MemoryContextCounters *totals, bool print_to_stderr)
{
}

static const MemoryContextMethods methods = {Alloc,	 Free,		 Realloc, Reset,
											 Delete, ChunkSpace, IsEmpty, Stats};

MemoryContext
FuzzContextCreate(MemoryContext parent, const char *name, Size min, Size init, Size max)
{
	FuzzContext *context = malloc(sizeof(FuzzContext));

	dlist_init(&context->chunks);
	MemoryContextCreate(&context->header, T_AllocSetContext, &methods, parent, name);
	return &context->header;
}

#else

MemoryContext
FuzzContextCreate(MemoryContext parent, const char *name, Size min, Size init, Size max)
{
	return AllocSetContextCreateInternal(parent, name, min, init, max);
}

#endif
