/*-------------------------------------------------------------------------
 *
 * map.c
 *		From the changes of a transaction to what it did, net, to each source.
 *
 * Within a transaction a row may be changed many times, and keys may move from
 * row to row (SET id = id + 1).  No SELECT by others ever shows the states in
 * between, so for every source and key only the row before (its first old
 * image) and the row after (its last new image) count.  From these follow, per
 * subscription, the four cases: into the channel, within it, out of it, not
 * concerned.
 *
 * A map is made when somebody needs it and thrown away when nobody does; it
 * can always be made again from the log.
 *
 * Process: feed worker.  Memory: a context per map.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "feed.h"

#include "access/htup_details.h"
#include "common/hashfn.h"
#include "utils/datum.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

/* A key of a source while the transaction is folded. */
typedef struct Folded
{
	uint64 hash;		 /* of source id and key text */
	struct Folded *next; /* same hash, other key */
	Source *source;
	char *key;
	int key_length;
	int first_old; /* image, -1: the row did not exist before */
	List *news;	   /* images of the key that exist now; more than
								 * one only for a moment, with deferred
								 * uniqueness */
} Folded;

typedef struct FoldedEntry
{
	uint64 hash;
	Folded *first;
} FoldedEntry;

/* Keys of so few changes are found without a hash table. */
#define FEW_CHANGES 4

/* Maps are a cache; a long backlog need not have all of them at once. */
#define MAX_MAPS 5000

static dlist_head all_maps = DLIST_STATIC_INIT(all_maps);
static int map_count;

/*
 * Deforms an image when it is first needed.  What an UPDATE did not carry
 * because it is unchanged is taken from the old image.
 */
static MapImage *
GetImage(TransactionMap *map, int index)
{
	MapImage *image = &map->images[index];
	LogChange *change = &map->transaction->changes[index / 2];
	bool is_new = index % 2 == 1;
	int natts = change->desc->tupdesc->natts;
	int i;

	if (image->used)
		return image;
	image->used = true;
	image->desc = change->desc;

	/*
	 * An UPDATE without an old image did not change any column of the replica
	 * identity: these are known from the new image, the others are not.
	 */
	if (!is_new && !change->has_old)
	{
		MapImage *after = GetImage(map, index + 1);

		image->values = palloc(sizeof(Datum) * natts);
		image->isnull = palloc(sizeof(bool) * natts);
		for (i = 0; i < natts; i++)
		{
			bool known = (change->desc->flags[i] & RECORD_ATT_IDENTITY) != 0;

			image->values[i] = known ? after->values[i] : (Datum) 0;
			image->isnull[i] = known ? after->isnull[i] : true;
		}
		image->incomplete = true;
		image->filled = true;
		return image;
	}
	image->data = is_new ? change->new_data : change->old_data;
	image->length = is_new ? change->new_length : change->old_length;
	image->values = palloc(sizeof(Datum) * natts);
	image->isnull = palloc(sizeof(bool) * natts);
	RecordDeform(change->desc, image->data, image->length, image->values, image->isnull);

	if (!is_new)
	{
		if (change->has_old == 2)
			image->incomplete = true;
		return image;
	}
	for (i = 0; i < natts; i++)
	{
		MapImage *before;

		if (image->isnull[i] || !RecordValueIsUnchanged(change->desc, i + 1, image->values[i]))
			continue;
		if (change->has_old != 1)
		{
			image->incomplete = true;
			continue;
		}
		before = GetImage(map, index - 1);
		image->values[i] = before->values[i];
		image->isnull[i] = before->isnull[i];
		image->filled = true;
	}
	return image;
}

bool
MapKnows(TransactionMap *map, int index, int16 attno)
{
	LogChange *change = &map->transaction->changes[index / 2];
	MapImage *image = &map->images[index];

	if (index % 2 == 0)
		return change->has_old == 1 || (change->desc->flags[attno - 1] & RECORD_ATT_IDENTITY) != 0;
	return image->isnull[attno - 1] ||
		   !RecordValueIsUnchanged(change->desc, attno, image->values[attno - 1]);
}

static bool
HasValues(TransactionMap *map, int index, const int16 *attnos, int n)
{
	int i;

	for (i = 0; i < n; i++)
		if (!MapKnows(map, index, attnos[i]))
			return false;
	return true;
}

static char *
KeyOf(TransactionMap *map, Layout *layout, int index, int *length)
{
	MapImage *image = GetImage(map, index);
	StringInfoData key;
	char *exact;

	initStringInfo(&key);
	EncodeRow(layout->encoder, &key, layout->key, layout->nkey, image->values, image->isnull);

	/* There may be hundreds of thousands, and a StringInfo has a kilobyte. */
	exact = pnstrdup(key.data, key.len);
	*length = key.len;
	pfree(key.data);
	return exact;
}

static bool
IsFolded(const Folded *folded, const Source *source, const char *key, int key_length)
{
	return folded->source == source && folded->key_length == key_length &&
		   memcmp(folded->key, key, key_length) == 0;
}

/* `table` is NULL when there are few. */
static Folded *
FindFolded(HTAB *table, Source *source, char *key, int key_length, List **order)
{
	FoldedEntry *entry = NULL;
	Folded *folded;

	if (table == NULL)
	{
		ListCell *lc;

		foreach(lc, *order)
			if (IsFolded(lfirst(lc), source, key, key_length))
				return lfirst(lc);
	}
	else
	{
		uint64 hash = hash_bytes_extended((const unsigned char *) key, key_length, source->id);
		bool found;

		entry = hash_search(table, &hash, HASH_ENTER, &found);
		if (!found)
			entry->first = NULL;
		for (folded = entry->first; folded != NULL; folded = folded->next)
			if (IsFolded(folded, source, key, key_length))
				return folded;
	}
	folded = palloc0(sizeof(Folded));
	folded->source = source;
	folded->key = key;
	folded->key_length = key_length;
	folded->first_old = -1;
	if (entry != NULL)
	{
		folded->next = entry->first;
		entry->first = folded;
	}
	*order = lappend(*order, folded);
	return folded;
}

/* The table may have been altered between the two: what both have counts. */
static bool
SameBytes(TransactionMap *map, int a, int b)
{
	MapImage *x = GetImage(map, a);
	MapImage *y = GetImage(map, b);
	int natts = Min(x->desc->tupdesc->natts, y->desc->tupdesc->natts);
	int i;

	for (i = 0; i < natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(x->desc->tupdesc, i);
		Form_pg_attribute other = TupleDescAttr(y->desc->tupdesc, i);

		if (att->attisdropped || other->attisdropped || att->atttypid != other->atttypid)
			continue;
		if (x->isnull[i] != y->isnull[i])
			return false;
		if (!x->isnull[i] &&
			!datum_image_eq(x->values[i], y->values[i], att->attbyval, att->attlen))
			return false;
	}
	return true;
}

/* The row with that key goes: which one, the original or one made just now? */
static void
FoldOld(TransactionMap *map, Folded *folded, int image)
{
	ListCell *lc;
	bool whole = map->transaction->changes[image / 2].has_old == 1;

	if (folded->news == NIL)
	{
		if (folded->first_old < 0)
			folded->first_old = image;
		return;
	}

	/*
	 * With a key that is unique at every moment it is the one made just now.
	 * With a deferrable key both may exist; whole old rows tell them apart,
	 * and if they are equal it makes no difference.
	 */
	if (whole)
	{
		foreach(lc, folded->news)
		{
			if (SameBytes(map, lfirst_int(lc), image))
			{
				folded->news = foreach_delete_current(folded->news, lc);
				return;
			}
		}
		if (folded->first_old < 0)
		{
			folded->first_old = image;
			return;
		}
	}
	folded->news = list_delete_last(folded->news);
}

static void
FoldChange(TransactionMap *map, HTAB *table, Source *source, int index, List **order)
{
	LogChange *change = &map->transaction->changes[index];
	Layout *layout = ChannelsLayout(source, change->desc);
	char *old_key = NULL;
	char *new_key = NULL;
	int old_length = 0;
	int new_length = 0;

	if (!layout->usable)
	{
		map->failed = list_append_unique_oid(map->failed, source->relid);
		return;
	}
	if (change->has_new)
	{
		GetImage(map, index * 2 + 1);
		if (!HasValues(map, index * 2 + 1, layout->key, layout->nkey))
			goto unknown;
		new_key = KeyOf(map, layout, index * 2 + 1, &new_length);
	}
	if (change->has_old || change->operation == 'U')
	{
		GetImage(map, index * 2);
		if (!HasValues(map, index * 2, layout->key, layout->nkey))
			goto unknown;
		old_key = KeyOf(map, layout, index * 2, &old_length);
	}
	else if (change->operation == 'D')
		goto unknown; /* the replica identity was taken away */

	if (old_key != NULL)
		FoldOld(map, FindFolded(table, source, old_key, old_length, order), index * 2);
	if (new_key != NULL)
	{
		Folded *folded = FindFolded(table, source, new_key, new_length, order);

		folded->news = lappend_int(folded->news, index * 2 + 1);
	}
	return;

unknown:
	map->failed = list_append_unique_oid(map->failed, source->relid);
}

/* Filter and parameters of an image. */
static bool
Locate(TransactionMap *map, Source *source, int index, char ***params)
{
	MapImage *image = GetImage(map, index);
	Layout *layout = ChannelsLayout(source, image->desc);

	*params = palloc(sizeof(char *) * Max(layout->nparams, 1));
	if (!HasValues(map, index, layout->params, layout->nparams) ||
		(layout->filter != NULL && image->incomplete))
	{
		map->failed = list_append_unique_oid(map->failed, source->relid);
		return false;
	}
	return LayoutFilter(layout, image->values, image->isnull) &&
		   LayoutParams(layout, image->values, image->isnull, *params);
}

static void
FinishEntry(TransactionMap *map, Folded *folded)
{
	MapEntry *entry = &map->entries[map->nentries];

	memset(entry, 0, sizeof(MapEntry));
	entry->source = folded->source;
	entry->key = folded->key;
	entry->key_length = folded->key_length;
	entry->old_image = folded->first_old;
	entry->new_image = folded->news != NIL ? llast_int(folded->news) : -1;
	if (entry->old_image < 0 && entry->new_image < 0)
		return; /* came and went */

	if (entry->old_image >= 0)
	{
		entry->layout = ChannelsLayout(entry->source, map->images[entry->old_image].desc);
		entry->old_in = Locate(map, entry->source, entry->old_image, &entry->old_params);
	}
	if (entry->new_image >= 0)
	{
		entry->layout = ChannelsLayout(entry->source, map->images[entry->new_image].desc);
		entry->new_in = Locate(map, entry->source, entry->new_image, &entry->new_params);
	}
	if (entry->old_in || entry->new_in)
		map->nentries++;
}

static void
Build(TransactionMap *map)
{
	LogTransaction *transaction = map->transaction;
	HTAB *table = NULL;
	List *order = NIL;
	ListCell *lc;
	int i;

	map->working = InvalidOid;
	if (transaction->nchanges > FEW_CHANGES)
	{
		HASHCTL ctl;

		ctl.keysize = sizeof(uint64);
		ctl.entrysize = sizeof(FoldedEntry);
		ctl.hcxt = map->context;
		table = hash_create("changefeed fold", 16, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	for (i = 0; i < transaction->nchanges; i++)
	{
		map->working = transaction->changes[i].desc->relid;
		if (list_member_oid(map->failed, map->working))
			continue;
		foreach(lc, ChannelsSourcesOf(map->working))
			FoldChange(map, table, lfirst(lc), i, &order);
	}
	map->working = InvalidOid;
	map->entries = palloc(sizeof(MapEntry) * Max(list_length(order), 1));
	foreach(lc, order)
	{
		map->working = ((Folded *) lfirst(lc))->source->relid;
		if (!list_member_oid(map->failed, map->working))
			FinishEntry(map, lfirst(lc));
	}
	if (table != NULL)
		hash_destroy(table);
}

/*
 * An error here is one of a source's filter or of a type's output function.  It
 * must cost the subscriptions to that table a snapshot, not the others, and not
 * the feed: nothing is held that an abort would have to release.  False: there
 * was one, and the rest can be built without that table.
 */
static bool
TryBuild(TransactionMap *map)
{
	volatile bool good = true;

	PG_TRY();
	{
		Build(map);
	}
	PG_CATCH();
	{
		ErrorData *error;
		int i;

		MemoryContextSwitchTo(map->context);
		error = CopyErrorData();
		if (error->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN)
			PG_RE_THROW();
		FlushErrorState();
		ereport(LOG, (errcode(error->sqlerrcode),
					  errmsg("could not map a transaction to its channels: %s", error->message),
					  errdetail("The subscriptions concerned get fresh snapshots.")));
		map->nentries = 0;
		if (OidIsValid(map->working))
		{
			map->failed = list_append_unique_oid(map->failed, map->working);
			good = false;
		}
		else
			for (i = 0; i < map->transaction->nchanges; i++)
				map->failed = list_append_unique_oid(map->failed,
													 map->transaction->changes[i].desc->relid);
	}
	PG_END_TRY();
	return good;
}

static TransactionMap *
Make(LogTransaction *transaction)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "changefeed map",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	TransactionMap *map = palloc0(sizeof(TransactionMap));

	map->context = context;
	map->transaction = transaction;
	map->nimages = transaction->nchanges * 2;
	map->images = palloc0(sizeof(MapImage) * Max(map->nimages, 1));

	/* Each time with a table less. */
	while (!TryBuild(map))
		;
	MemoryContextSwitchTo(old);
	return map;
}

TransactionMap *
MapGet(LogTransaction *transaction)
{
	static uint64 last_serial = 0;

	if (transaction->map == NULL)
	{
		transaction->map = transaction->step != NULL ? PaceMap(transaction) : Make(transaction);
		transaction->map->serial = ++last_serial;
		dlist_push_tail(&all_maps, &transaction->map->node);
		map_count++;
	}
	return transaction->map;
}

void
MapFree(TransactionMap *map)
{
	map->transaction->map = NULL;
	dlist_delete(&map->node);
	map_count--;
	MemoryContextDelete(map->context);
}

void
MapTrim(void)
{
	bool any = false;

	while (map_count > MAX_MAPS)
	{
		MapFree(dlist_head_element(TransactionMap, node, &all_maps));
		any = true;
	}
	if (any)
		DeliverForgetWaiting();
}

void
MapFreeAll(void)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &all_maps)
		MapFree(dlist_container(TransactionMap, node, iter.cur));
}

void
MapImageTuple(const MapImage *image, const char **data, uint32 *length)
{
	HeapTuple tuple;

	if (!image->filled)
	{
		*data = image->data;
		*length = image->length;
		return;
	}
	tuple = heap_form_tuple(image->desc->tupdesc, image->values, image->isnull);
	*data = (const char *) tuple->t_data;
	*length = tuple->t_len;
}
