/*-------------------------------------------------------------------------
 *
 * relation_types.c
 *		What decides how values of user-defined types look as JSON.
 *
 * Labels of enums, attributes of composite types and casts to json can change
 * without any change to the tables that use them.  They are part of a
 * relation's state (relations.c), as the oid and xmin of their catalog rows.
 *
 * Process: feed worker.  Memory: the list of composite types in use, for ever.
 * Needs a transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "feed.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/transam.h"
#include "catalog/indexing.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_cast.h"
#include "catalog/pg_class.h"
#include "catalog/pg_enum.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

/* Relations whose columns are the attributes of types in use. */
static List *type_relations;

static uint64
MixTuple(uint64 state, HeapTuple tuple)
{
	TransactionId xmin = HeapTupleHeaderGetRawXmin(tuple->t_data);

	return hash_combine64(state, hash_bytes_extended((unsigned char *) &xmin, sizeof(xmin), 0));
}

static int
CountAttributes(Oid relid)
{
	HeapTuple tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	int natts;

	if (!HeapTupleIsValid(tuple))
		return 0;
	natts = ((Form_pg_class) GETSTRUCT(tuple))->relnatts;
	ReleaseSysCache(tuple);
	return natts;
}

static uint64
MixLabels(uint64 state, Oid typid)
{
	Relation rel = table_open(EnumRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple tuple;

	ScanKeyInit(&key, Anum_pg_enum_enumtypid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(typid));
	scan = systable_beginscan(rel, EnumTypIdLabelIndexId, true, NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
		state = MixTuple(state, tuple);
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return state;
}

static uint64
MixCast(uint64 state, Oid typid)
{
	HeapTuple cast = SearchSysCache2(CASTSOURCETARGET, ObjectIdGetDatum(typid),
									 ObjectIdGetDatum(JSONOID));
	HeapTuple function;

	if (!HeapTupleIsValid(cast))
		return state;
	state = MixTuple(state, cast);
	function = SearchSysCache1(PROCOID,
							   ObjectIdGetDatum(((Form_pg_cast) GETSTRUCT(cast))->castfunc));
	if (HeapTupleIsValid(function))
	{
		state = MixTuple(state, function);
		ReleaseSysCache(function);
	}
	ReleaseSysCache(cast);
	return state;
}

static uint64 MixAttributes(uint64 state, Oid relid);

static uint64
MixType(uint64 state, Oid typid)
{
	Oid base = getBaseType(typid);
	Oid element;

	check_stack_depth();
	if (base < FirstNormalObjectId)
		return state;
	element = get_element_type(base);
	if (OidIsValid(element))
		return MixType(state, element);
	if (type_is_rowtype(base))
	{
		Oid relid = get_typ_typrelid(base);
		MemoryContext old = MemoryContextSwitchTo(feed_context);

		type_relations = list_append_unique_oid(type_relations, relid);
		MemoryContextSwitchTo(old);
		return MixAttributes(state, relid);
	}
	if (get_typtype(base) == TYPTYPE_ENUM)
		state = MixLabels(state, base);
	return MixCast(state, base);
}

/* The attributes of a composite type, and their types. */
static uint64
MixAttributes(uint64 state, Oid relid)
{
	int natts = CountAttributes(relid);
	int attno;

	for (attno = 1; attno <= natts; attno++)
	{
		HeapTuple tuple = SearchSysCache2(ATTNUM, ObjectIdGetDatum(relid), Int16GetDatum(attno));

		if (!HeapTupleIsValid(tuple))
			continue;
		state = MixTuple(state, tuple);
		if (!((Form_pg_attribute) GETSTRUCT(tuple))->attisdropped)
			state = MixType(state, ((Form_pg_attribute) GETSTRUCT(tuple))->atttypid);
		ReleaseSysCache(tuple);
	}
	return state;
}

uint64
RelationTypesState(uint64 state, Oid relid)
{
	int natts = CountAttributes(relid);
	int attno;

	for (attno = 1; attno <= natts; attno++)
	{
		Oid typid = get_atttype(relid, attno);

		if (OidIsValid(typid))
			state = MixType(state, typid);
	}
	return state;
}

List *
RelationTypeChanged(Oid relid, XLogRecPtr lsn)
{
	return list_member_oid(type_relations, relid) ? RelationsChanged(lsn) : NIL;
}
