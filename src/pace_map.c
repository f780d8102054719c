/*-------------------------------------------------------------------------
 *
 * pace_map.c
 *		What a step of a paced channel does, net: a map made of the maps of
 *		several transactions.
 *
 * Of each key the first old row and the last new row count, as within one
 * transaction (map.c).  The step refers to entries of the transactions' maps,
 * which can be made again; if definitions have changed since, it is collected
 * anew.
 *
 * Process: feed worker.  Memory: a context per map, freed by map.c; values stay
 * where the log has them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "pace.h"

#include "common/hashfn.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

/* A key while references are folded. */
typedef struct Folded
{
	struct Folded *next; /* with the same hash */
	TransactionMap *old_map;
	MapEntry *old_entry; /* the first */
	TransactionMap *new_map;
	MapEntry *new_entry; /* the last */
	Datum *values;		 /* of its new row, with what earlier ones knew */
	bool *isnull;
} Folded;

typedef struct FoldedEntry
{
	uint64 hash;
	Folded *first;
} FoldedEntry;

void
PaceAddReference(PaceStep *step, uint64 number, int entry)
{
	Reference *last = step->nreferences > 0 ? &step->references[step->nreferences - 1] : NULL;

	if (last != NULL && last->number == number && last->entry == entry)
		return;
	if (step->nreferences == step->maxreferences)
	{
		step->maxreferences = Max(8, step->maxreferences * 2);
		if (step->references == NULL)
			step->references = MemoryContextAlloc(step->context,
												  sizeof(Reference) * step->maxreferences);
		else
			step->references = repalloc_huge(step->references,
											 sizeof(Reference) * step->maxreferences);
	}
	step->references[step->nreferences].number = number;
	step->references[step->nreferences].entry = entry;
	step->nreferences++;
}

bool
PaceConcerns(const MapEntry *entry, const Instance *instance)
{
	return entry->source->channel == instance->channel &&
		   ((entry->old_in && InstanceMatches(instance, entry->old_params)) ||
			(entry->new_in && InstanceMatches(instance, entry->new_params)));
}

bool
PaceTouches(const LogTransaction *transaction, const Channel *channel)
{
	int i;
	int k;

	for (i = 0; i < transaction->nchanges; i++)
		for (k = 0; k < channel->nsources; k++)
			if (transaction->changes[i].desc->relid == channel->sources[k]->relid)
				return true;
	return false;
}

bool
PaceHasFailed(const TransactionMap *map, const Channel *channel)
{
	int i;

	for (i = 0; map->failed != NIL && i < channel->nsources; i++)
		if (list_member_oid(map->failed, channel->sources[i]->relid))
			return true;
	return false;
}

bool
PaceCollect(PaceStep *step)
{
	Channel *channel = step->channel;
	int transactions = 0;
	uint64 number;

	step->nreferences = 0;
	step->generation = channels_generation;
	for (number = step->from + 1; number <= step->transaction.number; number++)
	{
		LogTransaction *transaction = LogGet(number);
		TransactionMap *map;
		int i;

		if (transaction == NULL)
			return false;
		if (!PaceTouches(transaction, channel))
			continue;
		map = MapGet(transaction);
		if (PaceHasFailed(map, channel))
			return false;
		for (i = 0; i < map->nentries; i++)
			if (PaceConcerns(&map->entries[i], step->instance))
				PaceAddReference(step, number, i);
		if (++transactions >= STEP_LIMIT)
			step->transaction.number = number;
	}
	if (step->nreferences > 0)
		step->transaction.commit = LogGet(step->references[step->nreferences - 1].number)->commit;
	return true;
}

static Folded *
Find(HTAB *table, const MapEntry *entry, List **order)
{
	uint64 hash = hash_bytes_extended((const unsigned char *) entry->key, entry->key_length,
									  entry->source->id);
	bool found;
	FoldedEntry *slot = hash_search(table, &hash, HASH_ENTER, &found);
	Folded *folded;

	if (!found)
		slot->first = NULL;
	for (folded = slot->first; folded != NULL; folded = folded->next)
		if (folded->new_entry->source == entry->source &&
			folded->new_entry->key_length == entry->key_length &&
			memcmp(folded->new_entry->key, entry->key, entry->key_length) == 0)
			return folded;
	folded = palloc0(sizeof(Folded));
	folded->next = slot->first;
	slot->first = folded;
	*order = lappend(*order, folded);
	return folded;
}

/*
 * A value that a change does not carry because it left it alone is that of the
 * change before; with the first one, it is what the client has.  False: it was
 * left alone while the row was elsewhere, and is not known.
 */
static bool
Resolve(Folded *folded, TransactionMap *from, MapEntry *entry)
{
	MapImage *image;
	Datum *values;
	bool *isnull;
	int natts;
	int i;

	if (entry->new_image < 0)
	{
		folded->values = NULL;
		return true;
	}
	image = &from->images[entry->new_image];
	natts = image->desc->tupdesc->natts;
	values = palloc(sizeof(Datum) * natts);
	isnull = palloc(sizeof(bool) * natts);
	memcpy(values, image->values, sizeof(Datum) * natts);
	memcpy(isnull, image->isnull, sizeof(bool) * natts);
	for (i = 0; image->incomplete && folded->old_entry != NULL && i < natts; i++)
	{
		if (isnull[i] || !RecordValueIsUnchanged(image->desc, i + 1, values[i]))
			continue;
		if (folded->values == NULL || !folded->new_entry->new_in ||
			folded->new_map->images[folded->new_entry->new_image].desc != image->desc)
			return false;
		values[i] = folded->values[i];
		isnull[i] = folded->isnull[i];
	}
	folded->values = values;
	folded->isnull = isnull;
	return true;
}

/* An image of a transaction as one of the step; its values stay where they are. */
static int
CopyImage(TransactionMap *to, int change, TransactionMap *from, int index)
{
	int copy = 2 * change + index % 2;
	MapImage *image = &to->images[copy];
	int natts;

	*image = from->images[index];
	natts = image->desc->tupdesc->natts;
	image->values = palloc(sizeof(Datum) * natts);
	image->isnull = palloc(sizeof(bool) * natts);
	memcpy(image->values, from->images[index].values, sizeof(Datum) * natts);
	memcpy(image->isnull, from->images[index].isnull, sizeof(bool) * natts);
	to->transaction->changes[change] = from->transaction->changes[index / 2];
	return copy;
}

static void
TakeValues(MapImage *image, const Folded *folded)
{
	int i;

	for (i = 0; image->incomplete && i < image->desc->tupdesc->natts; i++)
	{
		if (image->isnull[i] || !RecordValueIsUnchanged(image->desc, i + 1, image->values[i]))
			continue;
		image->values[i] = folded->values[i];
		image->isnull[i] = folded->isnull[i];
		image->filled = true;
	}
}

static char **
CopyParams(char **params, int n)
{
	char **copy = palloc(sizeof(char *) * Max(n, 1));
	int i;

	for (i = 0; i < n; i++)
		copy[i] = pstrdup(params[i]);
	return copy;
}

/*
 * The key's first old row and its last new row.  What happened to it while it
 * was out of the instance is in no reference and makes no difference.
 */
static void
AddEntry(TransactionMap *map, const Folded *folded, int *change, int nparams)
{
	MapEntry *entry = &map->entries[map->nentries];

	*entry = *folded->new_entry;
	entry->key = pnstrdup(folded->new_entry->key, folded->new_entry->key_length);
	entry->old_image = -1;
	entry->new_image = -1;
	entry->old_in = folded->old_entry->old_in;
	if (folded->old_entry->old_image >= 0)
	{
		entry->old_image = CopyImage(map, (*change)++, folded->old_map,
									 folded->old_entry->old_image);
		entry->layout = ChannelsLayout(entry->source, map->images[entry->old_image].desc);
	}
	if (folded->new_entry->new_image >= 0)
	{
		entry->new_image = CopyImage(map, (*change)++, folded->new_map,
									 folded->new_entry->new_image);
		TakeValues(&map->images[entry->new_image], folded);
		entry->layout = ChannelsLayout(entry->source, map->images[entry->new_image].desc);
	}
	if (entry->old_in)
		entry->old_params = CopyParams(folded->old_entry->old_params, nparams);
	if (entry->new_in)
		entry->new_params = CopyParams(folded->new_entry->new_params, nparams);
	if (entry->old_in || entry->new_in)
		map->nentries++;
}

TransactionMap *
PaceMap(LogTransaction *transaction)
{
	PaceStep *step = transaction->step;
	Channel *channel = step->channel;
	bool complete = step->generation == channels_generation || PaceCollect(step);
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "changefeed map",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	TransactionMap *map = palloc0(sizeof(TransactionMap));
	HTAB *table;
	HASHCTL ctl;
	List *order = NIL;
	ListCell *lc;
	int change = 0;
	int i;

	map->context = context;
	map->transaction = transaction;
	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(FoldedEntry);
	ctl.hcxt = context;
	table = hash_create("changefeed step", 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	for (i = 0; complete && i < step->nreferences; i++)
	{
		Reference *reference = &step->references[i];
		TransactionMap *from = MapGet(LogGet(reference->number));
		MapEntry *entry = &from->entries[reference->entry];
		Folded *folded = Find(table, entry, &order);

		complete = Resolve(folded, from, entry);
		if (folded->old_entry == NULL)
		{
			folded->old_map = from;
			folded->old_entry = entry;
		}
		folded->new_map = from;
		folded->new_entry = entry;
	}
	transaction->nchanges = 2 * list_length(order);
	transaction->changes = palloc0(sizeof(LogChange) * Max(transaction->nchanges, 1));
	map->nimages = 2 * transaction->nchanges;
	map->images = palloc0(sizeof(MapImage) * Max(map->nimages, 1));
	map->entries = palloc0(sizeof(MapEntry) * Max(list_length(order), 1));
	foreach(lc, order)
		AddEntry(map, lfirst(lc), &change, channel->template->nparams);
	hash_destroy(table);
	if (!complete)
		for (i = 0; i < channel->nsources; i++)
			map->failed = lappend_oid(map->failed, channel->sources[i]->relid);
	MemoryContextSwitchTo(old);
	return map;
}
