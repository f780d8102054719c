/*-------------------------------------------------------------------------
 *
 * channels_find.c
 *		Finding the channel that a name belongs to.
 *
 * A template begins with a literal, and the names that belong to it begin with the
 * same bytes.  So for each length that such literals have there is one look-up,
 * however many channels there are.
 *
 * Process: feed worker.  Memory: a context of its own, filled anew behind a change
 * of the catalog.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "channels.h"

#include "common/hashfn.h"
#include "nodes/bitmapset.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

/* Channels whose first literal has that hash; nearly always one. */
typedef struct LiteralEntry
{
	uint64 hash;
	List *channels;
} LiteralEntry;

static MemoryContext context;
static HTAB *literals;
static Bitmapset *lengths;

uint32
ChannelsHashName(const void *key, Size keysize)
{
	const char *name = *(const char *const *) key;

	return hash_bytes((const unsigned char *) name, (int) strlen(name));
}

int
ChannelsMatchName(const void *a, const void *b, Size keysize)
{
	return strcmp(*(const char *const *) a, *(const char *const *) b);
}

static uint64
HashOf(const char *text, Size length)
{
	return hash_bytes_extended((const unsigned char *) text, (int) length, length);
}

static void
MakeIndex(void)
{
	HASHCTL ctl;
	MemoryContext old;
	ListCell *lc;

	if (context == NULL)
		context = AllocSetContextCreate(TopMemoryContext, "changefeed channel names",
										ALLOCSET_SMALL_SIZES);
	MemoryContextReset(context);
	old = MemoryContextSwitchTo(context);
	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(LiteralEntry);
	ctl.hcxt = context;
	literals = hash_create("changefeed channel names", 64, &ctl,
						   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	lengths = NULL;
	foreach(lc, ChannelsAll())
	{
		Channel *channel = lfirst(lc);
		const char *literal = channel->template->literals[0];
		uint64 hash = HashOf(literal, strlen(literal));
		bool found;
		LiteralEntry *entry = hash_search(literals, &hash, HASH_ENTER, &found);

		entry->channels = lappend(found ? entry->channels : NIL, channel);
		lengths = bms_add_member(lengths, (int) strlen(literal));
	}
	MemoryContextSwitchTo(old);
}

Channel *
ChannelsFind(const char *name, Size length, char **values)
{
	static uint64 generation; /* of the index */
	int n = -1;

	if (generation != channels_generation)
	{
		MakeIndex();
		generation = channels_generation;
	}
	while ((n = bms_next_member(lengths, n)) >= 0 && n <= length)
	{
		uint64 hash = HashOf(name, n);
		LiteralEntry *entry = hash_search(literals, &hash, HASH_FIND, NULL);
		ListCell *lc;

		if (entry == NULL)
			continue;

		/* Templates cannot overlap, so the first match is the only one. */
		foreach(lc, entry->channels)
		{
			Channel *channel = lfirst(lc);

			if (TemplateMatch(channel->template, name, length, values))
				return channel;
		}
	}
	return NULL;
}
