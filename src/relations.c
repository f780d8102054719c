/*-------------------------------------------------------------------------
 *
 * relations.c
 *		Has anything changed that decides who sees what of a table?
 *
 * A relation's state is a hash of the catalog rows that matter, by their oid
 * and xmin: any real change writes a new row version, while ANALYZE and VACUUM
 * update pg_class in place.  Read from the catalogs of now; the table itself
 * is neither opened nor locked.
 *
 * Process: feed worker.  Memory: a hash table for ever, one entry a table.
 * Needs a transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "feed.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_policy.h"
#include "common/hashfn.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

typedef struct StateEntry
{
	Oid relid;
	uint64 state;
	XLogRecPtr first; /* where WAL ended when it was first looked at */
} StateEntry;

static HTAB *states;

static uint64
Mix(uint64 state, uint32 oid, HeapTuple tuple)
{
	uint32 key[2] = {oid, HeapTupleHeaderGetRawXmin(tuple->t_data)};

	return hash_combine64(state, hash_bytes_extended((unsigned char *) key, sizeof(key), 0));
}

/* All rows of a catalog whose first key column is the relation. */
static uint64
MixRows(uint64 state, Oid catalog, Oid index, AttrNumber column, Oid relid)
{
	Relation rel = table_open(catalog, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple tuple;

	ScanKeyInit(&key, column, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(relid));
	scan = systable_beginscan(rel, index, true, NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
		state = Mix(state, 0, tuple);
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return state;
}

static uint64
State(Oid relid)
{
	HeapTuple tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	HeapTuple namespace;
	uint64 state = 0;

	if (!HeapTupleIsValid(tuple))
		return 0;
	state = Mix(1, relid, tuple);
	namespace = SearchSysCache1(NAMESPACEOID,
								ObjectIdGetDatum(((Form_pg_class) GETSTRUCT(tuple))->relnamespace));
	if (HeapTupleIsValid(namespace))
	{
		state = Mix(state, 0, namespace);
		ReleaseSysCache(namespace);
	}
	ReleaseSysCache(tuple);
	state = MixRows(state, AttributeRelationId, AttributeRelidNumIndexId,
					Anum_pg_attribute_attrelid, relid);
	state = MixRows(state, PolicyRelationId, PolicyPolrelidPolnameIndexId, Anum_pg_policy_polrelid,
					relid);

	/* Partitions that come or go bring and take rows. */
	state = MixRows(state, InheritsRelationId, InheritsParentIndexId, Anum_pg_inherits_inhparent,
					relid);
	return RelationTypesState(state, relid);
}

static StateEntry *
Find(Oid relid, bool *found)
{
	if (states == NULL)
	{
		HASHCTL ctl;

		ctl.keysize = sizeof(Oid);
		ctl.entrysize = sizeof(StateEntry);
		states = hash_create("changefeed relation states", 64, &ctl, HASH_ELEM | HASH_BLOBS);
	}
	return hash_search(states, &relid, HASH_ENTER, found);
}

void
RelationNote(Oid relid)
{
	bool found;
	StateEntry *entry = Find(relid, &found);

	if (!found)
	{
		entry->first = SharedInsertLsn();
		entry->state = State(relid);
	}
}

/*
 * What was committed before the relation was first looked at may be in that
 * state already: behind a restart, the log is replayed with the catalogs of
 * now.  Nothing says that it was no change.
 */
bool
RelationChanged(Oid relid, XLogRecPtr lsn)
{
	uint64 state;
	bool found;
	StateEntry *entry = Find(relid, &found);
	bool changed;

	if (!found)
		entry->first = SharedInsertLsn();
	state = State(relid);
	changed = !found || entry->state != state || lsn < entry->first;
	entry->state = state;
	return changed;
}

List *
RelationsChanged(XLogRecPtr lsn)
{
	HASH_SEQ_STATUS status;
	StateEntry *entry;
	List *changed = NIL;

	if (states == NULL)
		return NIL;
	hash_seq_init(&status, states);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		uint64 state = State(entry->relid);

		if (state != entry->state || lsn < entry->first)
			changed = lappend_oid(changed, entry->relid);
		entry->state = state;
	}
	return changed;
}

char *
RelationColumnName(Oid relid, int16 attno)
{
	char *name = get_attname(relid, attno, true);

	return name != NULL ? name : "";
}
