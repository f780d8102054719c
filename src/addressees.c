/*-------------------------------------------------------------------------
 *
 * addressees.c
 *		Whom fragments are for, kept once for all that are for the same.
 *
 * Of a transaction of very many rows nearly all go to the same connections, or
 * to one of a few such sets.  So the numbers of a fragment's connections are
 * compared with those of fragments before it, as soon as no more can be added,
 * and are only kept when they are others; on the link they are said once, too.
 *
 * What cannot be shared, and who gets which message, has a bound (Delivery.held):
 * whoever would get more of a transaction gets a snapshot.
 *
 * Process: feed worker.  Memory: the turn's.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "deliver.h"

#include "utils/hsearch.h"
#include "utils/memutils.h"

/*
 * What a transaction takes beyond a fragment for each of its rows, each for one
 * connection, has this part of changefeed.worker_memory.  As many connections as
 * fit into that are a small part of it, however often they are told once.
 */
#define HELD_PART 4

Addressees *
AddresseesNew(void)
{
	Addressees *a = palloc0(offsetof(Addressees, parts) +
							sizeof(AddresseesPart) * Max(gateway_count, 1));
	int g;

	a->uses = 1;
	for (g = 0; g < gateway_count; g++)
		a->parts[g].place = -1;
	return a;
}

void
AddresseesAdd(Addressees *a, const void *whom, int g, const uint32 *numbers, int n)
{
	AddresseesPart *part = &a->parts[g];

	if (part->room - part->count < n)
	{
		part->room = Max(part->count + n, part->room * 2);
		if (part->numbers == NULL)
			part->numbers = MemoryContextAllocHuge(CurrentMemoryContext,
												   sizeof(uint32) * part->room);
		else
			part->numbers = repalloc_huge(part->numbers, sizeof(uint32) * part->room);
	}
	memcpy(part->numbers + part->count, numbers, sizeof(uint32) * n);
	part->count += n;
	a->hash = (a->hash ^ (uint64) (uintptr_t) whom) * UINT64CONST(0x9E3779B97F4A7C15);
	a->hash ^= a->hash >> 32;
}

static bool
IsSame(const Addressees *a, const Addressees *b)
{
	int g;

	if (a->hash != b->hash)
		return false;
	for (g = 0; g < gateway_count; g++)
	{
		const AddresseesPart *x = &a->parts[g];
		const AddresseesPart *y = &b->parts[g];

		if (x->count != y->count ||
			(x->count > 0 && memcmp(x->numbers, y->numbers, sizeof(uint32) * x->count) != 0))
			return false;
	}
	return true;
}

static void
Free(Addressees *a)
{
	int g;

	for (g = 0; g < gateway_count; g++)
		if (a->parts[g].numbers != NULL)
			pfree(a->parts[g].numbers);
	pfree(a);
}

typedef struct SharedKey
{
	Spelling *name;
	uint64 hash;
} SharedKey;

typedef struct SharedEntry
{
	SharedKey key;
	Addressees *addressees;
} SharedEntry;

/* Those with its name and hash, which may be itself from now on. */
static Addressees *
Enter(Delivery *d, Spelling *name, Addressees *a)
{
	SharedKey key = {name, a->hash};
	SharedEntry *entry;
	bool found;

	if (d->shared == NULL)
	{
		HASHCTL ctl;

		ctl.keysize = sizeof(SharedKey);
		ctl.entrysize = sizeof(SharedEntry);
		ctl.hcxt = CurrentMemoryContext;
		d->shared = hash_create("changefeed addressees", 64, &ctl,
								HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	entry = hash_search(d->shared, &key, HASH_ENTER, &found);
	if (!found)
		entry->addressees = a;
	return entry->addressees;
}

/* Those of another fragment of the run that are the same; NULL: there are none. */
static Addressees *
Find(Delivery *d, Spelling *name, Addressees *a)
{
	Addressees *last = name->addressees;
	Addressees *found;

	if (name->addressees_run != d->run || last == NULL)
		return NULL;

	/* Mostly they are, and most names have no others. */
	if (IsSame(last, a))
		return last;
	(void) Enter(d, name, last);
	found = Enter(d, name, a);
	return found != a && IsSame(found, a) ? found : NULL;
}

Addressees *
AddresseesShare(Delivery *d, Spelling *name, Addressees *a)
{
	Addressees *found = Find(d, name, a);
	int n = 0;
	int g;

	if (found != NULL)
	{
		Free(a);
		found->uses++;
	}
	else
	{
		for (g = 0; g < gateway_count; g++)
			n += a->parts[g].count;

		/* Here and in the link's buffer; whom a row concerns alone is counted with the row. */
		AddresseesHold(d, sizeof(uint32) * 2 * (Size) Max(n - 1, 0));
		found = a;
	}
	name->addressees = found;
	name->addressees_run = d->run;
	return found;
}

void
AddresseesHold(Delivery *d, Size bytes)
{
	d->held += bytes;
	if (d->held > (Size) setting_worker_memory * 1024 / HELD_PART)
		d->full = true;
}
