/*-------------------------------------------------------------------------
 *
 * output_relations.c
 *		What the output plugin knows of relations: which are sources, what they
 *		look like, which are their partitioned ancestors.
 *
 * It is kept by OID until a cache invalidation says that something changed.
 * Invalidations are part of what is decoded, so the knowledge always belongs
 * to the place in WAL.
 *
 * Process: decoder, inside the transaction that the reorder buffer has started
 * and with its historic snapshot.
 *
 * Memory: cache_context (whole life of the process) holds the two hashes, each
 * entry has a context of its own for what it points to.  What is allocated on
 * the way is left in the caller's context.
 *
 * Locks: none, of our own; see MarkSources.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "decoder.h"
#include "output_relations.h"
#include "pg_changefeed.h"
#include "record.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/transam.h"
#include "catalog/catalog.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

/* Known relations beyond which those that have become invalid are forgotten. */
#define MAX_RELATIONS 8192

static MemoryContext cache_context = NULL;
static HTAB *relations = NULL;					   /* of KnownRelation */
static HTAB *sources = NULL;					   /* of Source; never removed, so that targets
								 * may point to them */
KnownRelation *relations_recent[RELATIONS_RECENT]; /* found by the last look-ups */
static uint32 last_version = 0;					   /* of a description */
static long relations_limit = MAX_RELATIONS;

/* What the feed worker wants to see besides sources, sorted; its version. */
static Oid wanted[MAX_WANTED];
static int nwanted = 0;
static uint32 wanted_version = 0;

/* changefeed.source, as far as it exists at this place in WAL. */
static bool catalog_known = false;
static Oid catalog_schema = InvalidOid;
static Oid catalog_source = InvalidOid;
static uint32 catalog_source_hash = 0; /* in the syscache RELNAMENSP */

/* ----------------------------------------------------------------------
 * Invalidation.  The callbacks only set flags: live messages, too, come at any
 * time that a lock is taken, and what they make us look up again is still read
 * as of the place in WAL.
 * ----------------------------------------------------------------------
 */

static void
ForgetAll(void)
{
	HASH_SEQ_STATUS status;
	KnownRelation *known;
	Source *source;

	hash_seq_init(&status, relations);
	while ((known = hash_seq_search(&status)) != NULL)
		known->valid = false;
	hash_seq_init(&status, sources);
	while ((source = hash_seq_search(&status)) != NULL)
		source->valid = false;
	catalog_known = false;
}

static void
RelationInvalidated(Datum arg, Oid relid)
{
	KnownRelation *known;
	Source *source;

	if (!OidIsValid(relid) || relid == catalog_source)
	{
		ForgetAll();
		return;
	}

	source = hash_search(sources, &relid, HASH_FIND, NULL);
	if (source != NULL)
		source->valid = false;

	known = hash_search(relations, &relid, HASH_FIND, NULL);
	if (known == NULL)
		return;
	known->valid = false;
	if (known->is_ancestor)
	{
		/* Rare enough not to keep lists of who depends on whom. */
		HASH_SEQ_STATUS status;

		hash_seq_init(&status, relations);
		while ((known = hash_seq_search(&status)) != NULL)
		{
			if (known->nancestors > 0)
				known->valid = false;
		}
	}
}

static void
CatalogInvalidated(Datum arg, int cacheid, uint32 hashvalue)
{
	/* A schema came, went or was renamed: descriptions carry its name. */
	if (cacheid == NAMESPACEOID || hashvalue == 0 || hashvalue == catalog_source_hash)
		ForgetAll();
}

/* ----------------------------------------------------------------------
 * What is known of a relation
 * ----------------------------------------------------------------------
 */

/* Finds changefeed.source at this place in WAL. */
static void
FindCatalog(void)
{
	if (catalog_known)
		return;

	/* First, so that an invalidation meanwhile is not forgotten. */
	catalog_known = true;
	catalog_source = InvalidOid;
	catalog_source_hash = 0;
	catalog_schema = get_namespace_oid(CHANGEFEED_SCHEMA, true);
	if (OidIsValid(catalog_schema))
	{
		catalog_source = get_relname_relid("source", catalog_schema);
		catalog_source_hash = GetSysCacheHashValue2(RELNAMENSP, CStringGetDatum("source"),
													ObjectIdGetDatum(catalog_schema));
	}
}

/*
 * Does the table exist now?  The storage of one that was dropped since is
 * gone, and with it what it held at our place in WAL.
 */
static bool
RelationStillExists(Oid relid)
{
	Relation pg_class = table_open(RelationRelationId, AccessShareLock);
	Snapshot snapshot = RegisterSnapshot(GetNonHistoricCatalogSnapshot(RelationRelationId));
	ScanKeyData key;
	SysScanDesc scan;
	bool found;

	ScanKeyInit(&key, Anum_pg_class_oid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(relid));
	scan = systable_beginscan(pg_class, ClassOidIndexId, true, snapshot, 1, &key);
	found = HeapTupleIsValid(systable_getnext(scan));
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(pg_class, AccessShareLock);
	return found;
}

/*
 * Finds out which of the relations are sources at this place in WAL.
 *
 * The table is opened like any relation during decoding, without a lock: one
 * would let a session that upgrades the extension stop us.  Its index would
 * be locked by the scan, so it is read from one end to the other; it is small,
 * and this happens once per relation and invalidation.
 */
static void
MarkSources(const Oid *relids, bool *is_source, int nrelids)
{
	Relation catalog;
	TupleDesc tupdesc;
	AttrNumber attno = InvalidAttrNumber;
	SysScanDesc scan;
	HeapTuple tuple;

	if (!OidIsValid(catalog_source) || !RelationStillExists(catalog_source))
		return;
	catalog = RelationIdGetRelation(catalog_source);
	if (!RelationIsValid(catalog))
		return;

	tupdesc = RelationGetDescr(catalog);
	for (int i = 0; i < tupdesc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(tupdesc, i);

		if (!att->attisdropped && strcmp(NameStr(att->attname), "relid") == 0)
			attno = att->attnum;
	}

	/* Somebody else's table of that name, or ours has been tampered with. */
	if (attno == InvalidAttrNumber || !RelationIsAccessibleInLogicalDecoding(catalog))
	{
		RelationClose(catalog);
		return;
	}

	scan = systable_beginscan(catalog, InvalidOid, false, NULL, 0, NULL);
	while ((tuple = systable_getnext(scan)) != NULL)
	{
		bool isnull;
		Datum relid = heap_getattr(tuple, attno, tupdesc, &isnull);

		for (int i = 0; i < nrelids && !isnull; i++)
		{
			if (relids[i] == DatumGetObjectId(relid))
				is_source[i] = true;
		}
	}
	systable_endscan(scan);
	RelationClose(catalog);
}

static int
CompareOids(const void *a, const void *b)
{
	return *(const Oid *) a < *(const Oid *) b ? -1 : *(const Oid *) a > *(const Oid *) b;
}

static bool
IsWanted(Oid relid)
{
	return bsearch(&relid, wanted, nwanted, sizeof(Oid), CompareOids) != NULL;
}

static Source *
FindSource(Oid relid)
{
	bool found;
	Source *source = hash_search(sources, &relid, HASH_ENTER, &found);

	if (!found)
	{
		memset(source, 0, sizeof(*source));
		source->relid = relid;
	}
	return source;
}

KnownRelation *
RelationsFind(Oid relid)
{
	bool found;
	KnownRelation *known = hash_search(relations, &relid, HASH_ENTER, &found);

	if (!found)
	{
		memset(known, 0, sizeof(*known));
		known->relid = relid;
	}
	return known;
}

/* Fills an entry that is new or has become invalid. */
void
RelationsLearn(KnownRelation *known, Relation relation)
{
	List *ancestors = NIL;
	Oid *relids;
	bool *is_source;
	int nrelids = 1;
	int ntargets = 0;
	ListCell *cell;

	if (known->context != NULL)
		MemoryContextDelete(known->context);
	known->context = NULL;
	known->nancestors = 0;
	known->ancestors = NULL;
	known->ntargets = 0;
	known->targets = NULL;

	/* First, so that an invalidation meanwhile is not forgotten. */
	known->valid = true;
	FindCatalog();

	/* Below are the tables of information_schema and the like. */
	if (known->relid < FirstNormalObjectId || IsToastRelation(relation))
	{
		known->class = CLASS_IGNORED;
		return;
	}
	if (OidIsValid(catalog_schema) && RelationGetNamespace(relation) == catalog_schema)
	{
		known->class = CLASS_CATALOG;
		return;
	}
	known->class = CLASS_USER;

	if (relation->rd_rel->relispartition)
		ancestors = get_partition_ancestors(known->relid);
	relids = palloc((list_length(ancestors) + 1) * sizeof(Oid));
	is_source = palloc0((list_length(ancestors) + 1) * sizeof(bool));
	relids[0] = known->relid;
	foreach(cell, ancestors)
		relids[nrelids++] = lfirst_oid(cell);
	MarkSources(relids, is_source, nrelids);

	/* Of a partition that policies read, not what it is part of. */
	if (IsWanted(known->relid))
		is_source[0] = true;

	for (int i = 0; i < nrelids; i++)
		ntargets += is_source[i] ? 1 : 0;
	if (nrelids == 1 && ntargets == 0)
		return;

	known->context = AllocSetContextCreate(cache_context, "changefeed relation",
										   ALLOCSET_SMALL_SIZES);
	known->ancestors = MemoryContextAlloc(known->context, nrelids * sizeof(Oid));
	known->targets = MemoryContextAllocZero(known->context, (ntargets + 1) * sizeof(Target));
	for (int i = 0; i < nrelids; i++)
	{
		if (i > 0)
		{
			known->ancestors[known->nancestors++] = relids[i];
			RelationsFind(relids[i])->is_ancestor = true;
		}
		if (is_source[i])
		{
			Target *target = &known->targets[known->ntargets++];

			target->source = FindSource(relids[i]);
			target->is_ancestor = i > 0;
		}
	}
}

static void
TakeWanted(void)
{
	uint32 version = pg_atomic_read_u32(&decoder_feed->wanted_version);

	if (version == wanted_version)
		return;
	LWLockAcquire(shared_feeds->lock, LW_SHARED);
	wanted_version = pg_atomic_read_u32(&decoder_feed->wanted_version);
	nwanted = decoder_feed->nwanted;
	memcpy(wanted, decoder_feed->wanted, sizeof(Oid) * nwanted);
	LWLockRelease(shared_feeds->lock);
	qsort(wanted, nwanted, sizeof(Oid), CompareOids);
	ForgetAll();
}

/*
 * Tables are forgotten if there are many: somebody may create and drop tables
 * all day.  Between transactions only, since the entries are pointed to while
 * one is replayed, and what is said of a table's changes has to be true for
 * all of them.
 */
void
RelationsRefresh(void)
{
	HASH_SEQ_STATUS status;
	KnownRelation *known;

	TakeWanted();
	if (hash_get_num_entries(relations) <= relations_limit)
		return;

	memset(relations_recent, 0, sizeof(relations_recent));
	hash_seq_init(&status, relations);
	while ((known = hash_seq_search(&status)) != NULL)
	{
		/* An ancestor's mark is what makes its partitions invalid. */
		if (known->valid || known->is_ancestor)
			continue;
		if (known->context != NULL)
			MemoryContextDelete(known->context);
		hash_search(relations, &known->relid, HASH_REMOVE, NULL);
	}
	relations_limit = Max(MAX_RELATIONS, 2 * hash_get_num_entries(relations));
}

/* ----------------------------------------------------------------------
 * Descriptions
 * ----------------------------------------------------------------------
 */

static uint8 *
DescriptionFlags(Relation relation)
{
	TupleDesc tupdesc = RelationGetDescr(relation);
	uint8 *flags = palloc0(Max(tupdesc->natts, 1));
	Bitmapset *identity = RelationGetIdentityKeyBitmap(relation);

	for (int i = 0; i < tupdesc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(tupdesc, i);

		if (att->attisdropped)
			flags[i] |= RECORD_ATT_DROPPED;
		if (att->attgenerated == 's')
			flags[i] |= RECORD_ATT_GENERATED;
		if (att->attgenerated == 'v')
			flags[i] |= RECORD_ATT_VIRTUAL;
		if (bms_is_member(att->attnum - FirstLowInvalidHeapAttributeNumber, identity))
			flags[i] |= RECORD_ATT_IDENTITY;
	}
	return flags;
}

bool
SourceDescribe(Source *source, Relation relation, StringInfo record)
{
	/* Behind the header and the version comes what is compared. */
	const Size ignored = sizeof(RecordHeader) + sizeof(uint32);
	bool opened = relation == NULL;
	bool differs;
	char *schema;
	MemoryContext old_context;

	if (opened)
		relation = RelationIdGetRelation(source->relid);
	if (!RelationIsValid(relation))
		elog(ERROR, "could not open relation with OID %u", source->relid);
	source->valid = true;

	schema = get_namespace_name(RelationGetNamespace(relation));
	RecordWriteDescription(record, last_version + 1, source->relid, relation->rd_rel->relreplident,
						   schema ? schema : "", RelationGetRelationName(relation),
						   RelationGetDescr(relation), DescriptionFlags(relation));
	differs = source->version == 0 || record->len != source->length ||
			  memcmp(record->data + ignored, source->bytes + ignored, record->len - ignored) != 0;
	if (differs)
	{
		if (source->context != NULL)
			MemoryContextReset(source->context);
		else
			source->context = AllocSetContextCreate(cache_context, "changefeed source",
													ALLOCSET_SMALL_SIZES);
		old_context = MemoryContextSwitchTo(source->context);
		source->bytes = palloc(record->len);
		memcpy(source->bytes, record->data, record->len);
		source->length = record->len;
		source->tupdesc = CreateTupleDescCopyConstr(RelationGetDescr(relation));
		MemoryContextSwitchTo(old_context);

		source->version = ++last_version;
	}

	if (opened)
		RelationClose(relation);
	return differs;
}

/* ----------------------------------------------------------------------
 * Set-up
 * ----------------------------------------------------------------------
 */

void
RelationsInitialize(void)
{
	HASHCTL control;

	if (cache_context != NULL)
		return; /* when the slot was created */

	cache_context = AllocSetContextCreate(TopMemoryContext, "changefeed relations",
										  ALLOCSET_DEFAULT_SIZES);
	control.keysize = sizeof(Oid);
	control.entrysize = sizeof(KnownRelation);
	control.hcxt = cache_context;
	relations = hash_create("changefeed relations", 256, &control,
							HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	control.entrysize = sizeof(Source);
	sources = hash_create("changefeed sources", 64, &control,
						  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);

	CacheRegisterRelcacheCallback(RelationInvalidated, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, CatalogInvalidated, (Datum) 0);
	CacheRegisterSyscacheCallback(RELNAMENSP, CatalogInvalidated, (Datum) 0);
}
