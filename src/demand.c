/*-------------------------------------------------------------------------
 *
 * demand.c
 *		Who may be concerned by a row, by values that its columns have to have.
 *
 * Conditions of clients (audience.c) and policies (policy_rule.c) often demand
 * that a column equals a constant or one of several.  Receivers (receivers.c)
 * of which such a thing is known hang in an index of their instance and source
 * under the hashes of these values, and a row finds them by the hash of its
 * own value.  The hash function is that of the type's equality, so what is not
 * found by it cannot pass.  Where both the conditions and the policy demand
 * something the key is made of both, so that a row finds only those whose both
 * it may meet.
 *
 * Of a value that is not known, or of another type than it was, everybody may
 * be concerned.  With changefeed.audience_index off that is so for all values.
 *
 * Process: feed worker.  Memory: registry_context.  Needs a transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "demand.h"

#include "common/hashfn.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

/* Values of two demands together: beyond that the second one alone is used. */
#define MAX_PAIRS 4096

/*
 * So many places are looked through.  A hash table takes kilobytes, and there may
 * be very many instances of which each has one reader.
 */
#define FEW_PLACES 8

typedef enum LookupState
{
	LOOKUP_NONE, /* no image, or null: equals nothing */
	LOOKUP_HASH,
	LOOKUP_ALL /* not known, or of another type: try everybody */
} LookupState;

typedef struct Lookup
{
	LookupState state;
	uint32 hash;
} Lookup;

struct DemandColumn
{
	int refcount;
	int16 attno;
	Oid column_type;
	Oid type;
	Oid collation;
	TypeCacheEntry *cache; /* NULL: the type is gone */
	uint64 run;			   /* of what was looked up last */
	const MapEntry *entry;
	bool has[2]; /* before, after */
	Lookup lookups[2];
};

/* Members that demand values of the same columns. */
typedef struct DemandIndex
{
	DemandColumn *first; /* NULL: only `second` */
	DemandColumn *second;
	HTAB *buckets;	/* of Bucket; NULL: */
	dlist_head few; /* DemandPlace.node */
	int places;
} DemandIndex;

typedef struct Bucket
{
	uint32 hash;
	dlist_head places; /* DemandPlace.node */
} Bucket;

typedef struct InstanceSource
{
	/* Those that no index has: each once, and nowhere else. */
	int ntried;
	int tried_room;
	DemandMember **tried;
	void **owners; /* of them, side by side */
	List *indexes;
	List *columns;
} InstanceSource;

static uint64 last_visit;

/* What was found; grows, and is used again. */
static void **found;
static int found_room;

static InstanceSource *
GetSource(Instance *instance, int source)
{
	if (instance->sources == NULL)
	{
		int n = Max(instance->channel->nsources, 1);

		instance->sources = MemoryContextAllocZero(registry_context, sizeof(InstanceSource) * n);
	}
	return &instance->sources[source];
}

void
DemandFree(Instance *instance)
{
	int i;

	if (instance->sources == NULL)
		return;
	for (i = 0; i < instance->channel->nsources; i++)
	{
		InstanceSource *is = &instance->sources[i];

		Assert(is->ntried == 0 && is->indexes == NIL && is->columns == NIL);
		if (is->tried != NULL)
		{
			pfree(is->tried);
			pfree(is->owners);
		}
	}
	pfree(instance->sources);
	instance->sources = NULL;
}

/* ---- Columns ---- */

int16
DemandColumnNumber(const DemandColumn *column)
{
	return column->attno;
}

bool
DemandColumnIs(const DemandColumn *column, int16 attno, Oid column_type, Oid type, Oid collation)
{
	return column->attno == attno && column->column_type == column_type && column->type == type &&
		   column->collation == collation;
}

DemandColumn *
DemandColumnIntern(Instance *instance, int source, int16 attno, Oid column_type, Oid type,
				   Oid collation)
{
	InstanceSource *is = GetSource(instance, source);
	MemoryContext old;
	DemandColumn *column;
	ListCell *lc;

	foreach(lc, is->columns)
	{
		column = lfirst(lc);
		if (DemandColumnIs(column, attno, column_type, type, collation))
		{
			column->refcount++;
			return column;
		}
	}
	old = MemoryContextSwitchTo(registry_context);
	column = palloc0(sizeof(DemandColumn));
	column->refcount = 1;
	column->attno = attno;
	column->column_type = column_type;
	column->type = type;
	column->collation = collation;

	/* An enum may have been dropped since: an error would cost all clients. */
	if (SearchSysCacheExists1(TYPEOID, ObjectIdGetDatum(type)))
		column->cache = lookup_type_cache(type, TYPECACHE_HASH_PROC_FINFO);
	is->columns = lappend(is->columns, column);
	MemoryContextSwitchTo(old);
	return column;
}

void
DemandColumnRelease(Instance *instance, int source, DemandColumn *column)
{
	InstanceSource *is = &instance->sources[source];

	if (--column->refcount > 0)
		return;
	is->columns = list_delete_ptr(is->columns, column);
	pfree(column);
}

static Lookup
LookUpImage(const DemandColumn *column, TransactionMap *map, int number)
{
	MapImage *image = &map->images[number];
	Lookup lookup = {LOOKUP_ALL, 0};
	int attno = column->attno;

	if (!setting_audience_index || attno > image->desc->tupdesc->natts ||
		TupleDescAttr(image->desc->tupdesc, attno - 1)->atttypid != column->column_type ||
		column->cache == NULL || !OidIsValid(column->cache->hash_proc_finfo.fn_oid) ||
		!MapKnows(map, number, (int16) attno))
		return lookup;
	lookup.state = LOOKUP_NONE;
	if (image->isnull[attno - 1])
		return lookup;
	lookup.state = LOOKUP_HASH;
	lookup.hash = DatumGetUInt32(FunctionCall1Coll(&column->cache->hash_proc_finfo,
												   column->collation, image->values[attno - 1]));
	return lookup;
}

static const Lookup *
LookUp(DemandColumn *column, TransactionMap *map, MapEntry *entry, uint64 run, bool is_new)
{
	if (column->run != run || column->entry != entry)
	{
		column->run = run;
		column->entry = entry;
		column->has[0] = column->has[1] = false;
	}
	if (!column->has[is_new])
	{
		column->lookups[is_new] = LookUpImage(column, map,
											  is_new ? entry->new_image : entry->old_image);
		column->has[is_new] = true;
	}
	return &column->lookups[is_new];
}

bool
DemandMayMeet(const Demand *demand, TransactionMap *map, MapEntry *entry, uint64 run, bool is_new)
{
	const Lookup *lookup = LookUp(demand->column, map, entry, run, is_new);
	int i;

	if (lookup->state != LOOKUP_HASH)
		return lookup->state == LOOKUP_ALL;
	for (i = 0; i < demand->nhashes; i++)
		if (demand->hashes[i] == lookup->hash)
			return true;
	return false;
}

/* ---- Members ---- */

static DemandIndex *
IndexIntern(InstanceSource *is, DemandColumn *first, DemandColumn *second)
{
	DemandIndex *index;
	ListCell *lc;

	foreach(lc, is->indexes)
	{
		index = lfirst(lc);
		if (index->first == first && index->second == second)
			return index;
	}
	index = palloc0(sizeof(DemandIndex));
	index->first = first;
	index->second = second;
	if (first != NULL)
		first->refcount++;
	second->refcount++;
	dlist_init(&index->few);
	is->indexes = lappend(is->indexes, index);
	return index;
}

static void
IndexFree(Instance *instance, int source, DemandIndex *index)
{
	InstanceSource *is = &instance->sources[source];

	is->indexes = list_delete_ptr(is->indexes, index);
	if (index->buckets != NULL)
		hash_destroy(index->buckets);
	if (index->first != NULL)
		DemandColumnRelease(instance, source, index->first);
	DemandColumnRelease(instance, source, index->second);
	pfree(index);
}

static void
Try(InstanceSource *is, DemandMember *member)
{
	if (is->ntried == is->tried_room)
	{
		is->tried_room = Max(2, is->tried_room * 2);
		if (is->tried == NULL)
		{
			is->tried = palloc(sizeof(DemandMember *) * is->tried_room);
			is->owners = palloc(sizeof(void *) * is->tried_room);
		}
		else
		{
			is->tried = repalloc_huge(is->tried, sizeof(DemandMember *) * is->tried_room);
			is->owners = repalloc_huge(is->owners, sizeof(void *) * is->tried_room);
		}
	}
	Assert(member->nplaces == 0);
	member->places[member->nplaces].member = member;
	member->places[member->nplaces].index = NULL;
	member->places[member->nplaces++].hash = (uint32) is->ntried;
	is->tried[is->ntried] = member;
	is->owners[is->ntried++] = member->owner;
}

/* The last one takes its place. */
static void
TryNoMore(InstanceSource *is, const DemandPlace *place)
{
	uint32 at = place->hash;

	is->ntried--;
	is->tried[at] = is->tried[is->ntried];
	is->owners[at] = is->owners[is->ntried];
	is->tried[at]->places[0].hash = at;
}

static void
PutIntoBucket(DemandIndex *index, DemandPlace *place)
{
	bool exists;
	Bucket *bucket = hash_search(index->buckets, &place->hash, HASH_ENTER, &exists);

	if (!exists)
		dlist_init(&bucket->places);
	dlist_push_tail(&bucket->places, &place->node);
}

/* There are not few any more. */
static void
MakeBuckets(DemandIndex *index)
{
	HASHCTL ctl;

	ctl.keysize = sizeof(uint32);
	ctl.entrysize = sizeof(Bucket);
	ctl.hcxt = registry_context;
	index->buckets = hash_create("changefeed demands", 16, &ctl,
								 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	while (!dlist_is_empty(&index->few))
		PutIntoBucket(index, dlist_container(DemandPlace, node, dlist_pop_head_node(&index->few)));
}

static void
Place(DemandMember *member, DemandIndex *index, uint32 hash)
{
	DemandPlace *place = &member->places[member->nplaces++];

	Assert(member->nplaces <= member->room);
	place->member = member;
	place->index = index;
	place->hash = hash;
	if (index->buckets == NULL && index->places == FEW_PLACES)
		MakeBuckets(index);
	index->places++;
	if (index->buckets != NULL)
		PutIntoBucket(index, place);
	else
		dlist_push_tail(&index->few, &place->node);
}

/* Room for so many more places; those that hang are moved with their lists. */
static void
Reserve(DemandMember *member, int n)
{
	DemandPlace *places;
	int i;

	if (member->nplaces + n <= member->room)
		return;
	places = palloc(sizeof(DemandPlace) * (member->nplaces + n));
	for (i = 0; i < member->nplaces; i++)
	{
		places[i] = member->places[i];
		places[i].node.prev->next = &places[i].node;
		places[i].node.next->prev = &places[i].node;
	}
	if (member->places != NULL)
		pfree(member->places);
	member->places = places;
	member->room = member->nplaces + n;
}

void
DemandEnter(Instance *instance, int source, DemandMember *member, const Demand *first,
			const Demand *second)
{
	MemoryContext old = MemoryContextSwitchTo(registry_context);
	InstanceSource *is = GetSource(instance, source);
	bool both = first->column != NULL && second->column != NULL &&
				first->nhashes * (int64) second->nhashes <= MAX_PAIRS;
	const Demand *last = second->column != NULL ? second : first;
	int n = both ? first->nhashes * second->nhashes : last->column != NULL ? last->nhashes : 1;
	DemandIndex *index = NULL;
	int i;
	int k;

	/* Nothing equals one of no values. */
	if (n > 0)
	{
		Reserve(member, n);
		if (last->column != NULL)
			index = IndexIntern(is, both ? first->column : NULL, last->column);
		if (index == NULL)
			Try(is, member);
		for (i = 0; i < (both ? first->nhashes : 1); i++)
			for (k = 0; k < (index != NULL ? last->nhashes : 0); k++)
				Place(member, index,
					  both ? hash_combine(first->hashes[i], last->hashes[k]) : last->hashes[k]);
	}
	MemoryContextSwitchTo(old);
}

void
DemandLeave(Instance *instance, int source, DemandMember *member)
{
	int i;

	for (i = 0; i < member->nplaces; i++)
	{
		DemandPlace *place = &member->places[i];
		DemandIndex *index = place->index;

		if (index == NULL)
		{
			TryNoMore(&instance->sources[source], place);
			continue;
		}
		dlist_delete(&place->node);
		if (index->buckets != NULL)
		{
			Bucket *bucket = hash_search(index->buckets, &place->hash, HASH_FIND, NULL);

			if (dlist_is_empty(&bucket->places))
				hash_search(index->buckets, &place->hash, HASH_REMOVE, NULL);
		}
		if (--index->places == 0)
			IndexFree(instance, source, index);
	}
	if (member->places != NULL)
		pfree(member->places);
	member->places = NULL;
	member->nplaces = member->room = 0;
}

/* ---- Looking for them ---- */

static void
MakeRoom(int n)
{
	if (n <= found_room)
		return;
	found_room = Max(256, n * 2);
	found = found == NULL ? MemoryContextAllocHuge(feed_context, sizeof(void *) * found_room)
						  : repalloc_huge(found, sizeof(void *) * found_room);
}

/* Those that have that hash; NULL: all. */
static int
Add(int n, dlist_head *places, const uint32 *hash)
{
	dlist_iter iter;

	dlist_foreach(iter, places)
	{
		DemandPlace *place = dlist_container(DemandPlace, node, iter.cur);
		DemandMember *member = place->member;

		if (member->visited == last_visit || (hash != NULL && place->hash != *hash))
			continue;
		member->visited = last_visit;
		MakeRoom(n + 1);
		found[n++] = member->owner;
	}
	return n;
}

static int
AddFound(int n, DemandIndex *index, TransactionMap *map, MapEntry *entry, uint64 run, bool is_new)
{
	Bucket *bucket;
	HASH_SEQ_STATUS status;
	const Lookup *second = LookUp(index->second, map, entry, run, is_new);
	Lookup lookup = *second;

	if (index->first != NULL && lookup.state != LOOKUP_NONE)
	{
		const Lookup *first = LookUp(index->first, map, entry, run, is_new);

		if (first->state != LOOKUP_HASH)
			lookup.state = first->state;
		else if (lookup.state == LOOKUP_HASH)
			lookup.hash = hash_combine(first->hash, second->hash);
	}
	if (index->buckets == NULL && lookup.state != LOOKUP_NONE)
		return Add(n, &index->few, lookup.state == LOOKUP_HASH ? &lookup.hash : NULL);
	switch (lookup.state)
	{
		case LOOKUP_NONE:
			break;
		case LOOKUP_HASH:
			bucket = hash_search(index->buckets, &lookup.hash, HASH_FIND, NULL);
			if (bucket != NULL)
				n = Add(n, &bucket->places, NULL);
			break;
		case LOOKUP_ALL:
			hash_seq_init(&status, index->buckets);
			while ((bucket = hash_seq_search(&status)) != NULL)
				n = Add(n, &bucket->places, NULL);
			break;
	}
	return n;
}

void **
DemandCandidates(Instance *instance, TransactionMap *map, MapEntry *entry, uint64 run, bool before,
				 bool after, int *n)
{
	InstanceSource *is;
	ListCell *lc;

	*n = 0;
	if (instance->sources == NULL)
		return NULL;
	is = &instance->sources[entry->source->index];
	last_visit++;
	if (is->ntried > 0)
	{
		MakeRoom(is->ntried);
		memcpy(found, is->owners, sizeof(void *) * is->ntried);
		*n = is->ntried;
	}
	foreach(lc, is->indexes)
	{
		DemandIndex *index = lfirst(lc);

		if (before)
			*n = AddFound(*n, index, map, entry, run, false);
		if (after)
			*n = AddFound(*n, index, map, entry, run, true);
	}
	return found;
}
