/*-------------------------------------------------------------------------
 *
 * output_catalog.c
 *		Which channels did a transaction define anew?
 *
 * The extension's tables are decoded like others.  What changes in them has a
 * place in the order of commits, and where a row tells of which channel it is,
 * the others can be left alone.
 *
 * Process: decoder.  Memory: none.  Locks: none.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "output_plugin.h"
#include "output_relations.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"

CatalogChanges catalog_changes;

static void
NoteChannel(int id)
{
	for (int i = 0; i < catalog_changes.nchannels; i++)
		if (catalog_changes.channels[i] == id)
			return;
	if (catalog_changes.nchannels >= 0 && catalog_changes.nchannels < CATALOG_CHANNELS)
		catalog_changes.channels[catalog_changes.nchannels++] = id;
	else
		catalog_changes.nchannels = -1;
}

/* Of which channel is the row?  False: it does not say. */
static bool
NoteChannelOf(Relation relation, HeapTuple tuple, const char *column)
{
	TupleDesc tupdesc = RelationGetDescr(relation);

	for (int i = 0; tuple != NULL && i < tupdesc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(tupdesc, i);
		bool isnull;
		Datum value;

		if (att->attisdropped || att->atttypid != INT4OID ||
			strcmp(NameStr(att->attname), column) != 0)
			continue;
		value = heap_getattr(tuple, i + 1, tupdesc, &isnull);
		if (isnull || DatumGetInt32(value) <= 0)
			return false;
		NoteChannel(DatumGetInt32(value));
		return true;
	}
	return false;
}

/*
 * A row of one of our tables was changed.  Those of channels and of sources
 * name the channel, also in their keys, which is what is left of an old row;
 * an update that leaves the key alone has none.
 */
void
CatalogNote(KnownRelation *known, Relation relation, ReorderBufferChange *change)
{
	const char *name = RelationGetRelationName(relation);
	const char *column = NULL;
	HeapTuple old_tuple = compat_change_tuple(change->data.tp.oldtuple);
	HeapTuple new_tuple = compat_change_tuple(change->data.tp.newtuple);

	/* Often written, and no channel is another for it. */
	if (strcmp(name, "revocation") == 0)
	{
		catalog_changes.revocations = known->relid;
		return;
	}
	catalog_changes.any = true;
	if (strcmp(name, "role") == 0 || strcmp(name, "pause") == 0)
		return; /* nor for these */
	if (strcmp(name, "channel") == 0)
		column = "id";
	else if (strcmp(name, "source") == 0 || strcmp(name, "event") == 0)
		column = "channel";
	if (column == NULL || (old_tuple == NULL && new_tuple == NULL) ||
		(old_tuple != NULL && !NoteChannelOf(relation, old_tuple, column)) ||
		(new_tuple != NULL && !NoteChannelOf(relation, new_tuple, column)))
		catalog_changes.nchannels = -1;
}
