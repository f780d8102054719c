/*-------------------------------------------------------------------------
 *
 * relation_state.c
 *		Reading the state of a relation from the catalogs of now.
 *
 * Partitions and composite types are read with the table that they belong to.
 * The tables themselves are neither opened nor locked.
 *
 * Process: feed worker.  Memory: CurrentMemoryContext.  Needs a transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "relation_state.h"
#include "relations.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "access/transam.h"
#include "catalog/indexing.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_cast.h"
#include "catalog/pg_class.h"
#include "catalog/pg_enum.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_policy.h"
#include "catalog/pg_rewrite.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "utils/array.h"
#include "utils/catcache.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

/* Types in types, and partitions of partitions, beyond which we give up. */
#define MAX_DEPTH 16

static void
AddLabel(RelationState *state, uint64 id, uint64 hash)
{
	if (state->nlabels == state->maxlabels)
	{
		state->maxlabels = Max(16, state->maxlabels * 2);
		state->labels = state->labels == NULL
							? palloc(sizeof(LabelState) * state->maxlabels)
							: repalloc(state->labels, sizeof(LabelState) * state->maxlabels);
	}
	state->labels[state->nlabels].id = id;
	state->labels[state->nlabels++].hash = hash;
}

/* The cast to json that makes JSON of the type's values, if there is one. */
static void
ReadCast(RelationState *state, Oid type)
{
	HeapTuple cast = SearchSysCache2(CASTSOURCETARGET, ObjectIdGetDatum(type),
									 ObjectIdGetDatum(JSONOID));
	HeapTuple function;
	uint32 xmins[2] = {0, 0};

	if (HeapTupleIsValid(cast))
	{
		xmins[0] = HeapTupleHeaderGetRawXmin(cast->t_data);
		function = SearchSysCache1(PROCOID,
								   ObjectIdGetDatum(((Form_pg_cast) GETSTRUCT(cast))->castfunc));
		if (HeapTupleIsValid(function))
		{
			xmins[1] = HeapTupleHeaderGetRawXmin(function->t_data);
			ReleaseSysCache(function);
		}
		ReleaseSysCache(cast);
	}
	AddLabel(state, ((uint64) 1 << 60) | type, RelationMixBytes(0, xmins, sizeof(xmins)));
}

/* What texts of values of a type of users consist of. */
static void
ReadType(RelationState *state, Oid type, int depth)
{
	Oid base = getBaseType(type);
	Oid relid;
	int i;

	if (base < FirstNormalObjectId || depth > MAX_DEPTH)
		return;
	ReadCast(state, base);
	if (OidIsValid(get_element_type(base)))
		ReadType(state, get_element_type(base), depth + 1);
	else if (get_typtype(base) == TYPTYPE_RANGE)
		ReadType(state, get_range_subtype(base), depth + 1);
	else if (get_typtype(base) == TYPTYPE_MULTIRANGE)
		ReadType(state, get_multirange_range(base), depth + 1);
	else if (get_typtype(base) == TYPTYPE_ENUM)
	{
		CatCList *list = SearchSysCacheList1(ENUMTYPOIDNAME, ObjectIdGetDatum(base));

		for (i = 0; i < list->n_members; i++)
		{
			Form_pg_enum form = (Form_pg_enum) GETSTRUCT(&list->members[i]->tuple);

			AddLabel(state, form->oid, RelationMixBytes(0, NameStr(form->enumlabel), NAMEDATALEN));
		}
		ReleaseSysCacheList(list);
	}
	else if (OidIsValid(relid = get_typ_typrelid(base)) && !list_member_oid(state->types, relid))
	{
		HeapTuple class = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
		int natts = 0;

		if (HeapTupleIsValid(class))
		{
			natts = ((Form_pg_class) GETSTRUCT(class))->relnatts;
			ReleaseSysCache(class);
		}
		state->types = lappend_oid(state->types, relid);
		AddLabel(state, (uint64) relid << 16, (uint64) natts);
		for (i = 1; i <= natts; i++)
		{
			HeapTuple tuple = SearchSysCache2(ATTNUM, ObjectIdGetDatum(relid), Int16GetDatum(i));
			Form_pg_attribute att;
			Oid column = InvalidOid;
			uint64 hash = 0;

			if (!HeapTupleIsValid(tuple))
				continue;
			att = (Form_pg_attribute) GETSTRUCT(tuple);
			if (!att->attisdropped)
			{
				column = att->atttypid;
				hash = RelationMixBytes((uint64) column, NameStr(att->attname), NAMEDATALEN);
			}
			AddLabel(state, ((uint64) relid << 16) + i, hash);
			ReleaseSysCache(tuple);
			if (OidIsValid(column))
				ReadType(state, column, depth + 1);
		}
	}
}

static void
ReadColumns(RelationState *state, Oid relid, int natts)
{
	int i;

	state->ncolumns = natts;
	state->columns = palloc0(sizeof(ColumnState) * Max(natts, 1));
	for (i = 0; i < natts; i++)
	{
		HeapTuple tuple = SearchSysCache2(ATTNUM, ObjectIdGetDatum(relid), Int16GetDatum(i + 1));
		ColumnState *column = &state->columns[i];
		Form_pg_attribute att;

		column->dropped = true;
		if (!HeapTupleIsValid(tuple))
			continue;
		att = (Form_pg_attribute) GETSTRUCT(tuple);
		column->xmin = HeapTupleHeaderGetRawXmin(tuple->t_data);
		column->dropped = att->attisdropped;
		if (!att->attisdropped)
		{
			column->name = att->attname;
			column->type = att->atttypid;
			column->collation = att->attcollation;
			column->generated = att->attgenerated;
			column->notnull = att->attnotnull;
			if (!heap_attisnull(tuple, Anum_pg_attribute_attacl, NULL))
				state->privileges = RelationMixArray(hash_combine64(state->privileges, i), ATTNUM,
													 tuple, Anum_pg_attribute_attacl);
		}
		ReleaseSysCache(tuple);
		if (!column->dropped)
			ReadType(state, column->type, 0);
	}
}

static void
ReadPolicies(RelationState *state, Oid relid)
{
	Relation rel = table_open(PolicyRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple tuple;

	ScanKeyInit(&key, Anum_pg_policy_polrelid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(relid));
	scan = systable_beginscan(rel, PolicyPolrelidPolnameIndexId, true, NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		uint32 row[2] = {((Form_pg_policy) GETSTRUCT(tuple))->oid,
						 HeapTupleHeaderGetRawXmin(tuple->t_data)};

		state->policies = RelationMixBytes(state->policies, row, sizeof(row));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
}

/* What a view selects is a rule of it. */
static void
ReadRules(RelationState *state, Oid relid)
{
	Relation rel = table_open(RewriteRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple tuple;

	ScanKeyInit(&key, Anum_pg_rewrite_ev_class, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(relid));
	scan = systable_beginscan(rel, RewriteRelRulenameIndexId, true, NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		uint32 row[2] = {((Form_pg_rewrite) GETSTRUCT(tuple))->oid,
						 HeapTupleHeaderGetRawXmin(tuple->t_data)};

		state->policies = RelationMixBytes(state->policies, row, sizeof(row));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
}

/* Partitions that are about to be detached are no longer read. */
static List *
ReadChildren(Relation inherits, Oid relid)
{
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple tuple;
	List *children = NIL;

	ScanKeyInit(&key, Anum_pg_inherits_inhparent, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(relid));
	scan = systable_beginscan(inherits, InheritsParentIndexId, true, NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_inherits form = (Form_pg_inherits) GETSTRUCT(tuple);

		if (!form->inhdetachpending)
			children = lappend_oid(children, form->inhrelid);
	}
	systable_endscan(scan);
	return children;
}

static int
CompareParts(const void *a, const void *b)
{
	Oid x = ((const PartState *) a)->relid;
	Oid y = ((const PartState *) b)->relid;

	return x < y ? -1 : x > y;
}

/*
 * The transaction that has made the table: the rows of its system columns are
 * never changed.
 */
static TransactionId
MadeBy(Oid relid)
{
	HeapTuple tuple = SearchSysCache2(ATTNUM, ObjectIdGetDatum(relid),
									  Int16GetDatum(SelfItemPointerAttributeNumber));
	TransactionId xid = InvalidTransactionId;

	if (!HeapTupleIsValid(tuple))
		return xid;
	if (!HeapTupleHeaderXminFrozen(tuple->t_data))
		xid = HeapTupleHeaderGetRawXmin(tuple->t_data);
	ReleaseSysCache(tuple);
	return xid;
}

static void
ReadParts(RelationState *state, Oid relid)
{
	Relation inherits = table_open(InheritsRelationId, AccessShareLock);
	List *all = ReadChildren(inherits, relid);
	ListCell *lc;

	/* The list grows while it is walked through. */
	foreach(lc, all)
		if (get_rel_relkind(lfirst_oid(lc)) == RELKIND_PARTITIONED_TABLE)
			all = list_concat_unique_oid(all, ReadChildren(inherits, lfirst_oid(lc)));
	table_close(inherits, AccessShareLock);

	state->parts = palloc0(sizeof(PartState) * Max(list_length(all), 1));
	foreach(lc, all)
	{
		HeapTuple tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(lfirst_oid(lc)));
		PartState *part;

		if (!HeapTupleIsValid(tuple))
			continue;
		part = &state->parts[state->nparts++];
		part->relid = lfirst_oid(lc);
		part->filenode = ((Form_pg_class) GETSTRUCT(tuple))->relfilenode;
		ReleaseSysCache(tuple);
		part->made = MadeBy(part->relid);
	}
	qsort(state->parts, state->nparts, sizeof(PartState), CompareParts);
}

static int
CompareLabels(const void *a, const void *b)
{
	uint64 x = ((const LabelState *) a)->id;
	uint64 y = ((const LabelState *) b)->id;

	return x < y ? -1 : x > y;
}

void
RelationReadState(Oid relid, RelationState *state)
{
	HeapTuple tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	HeapTuple namespace;
	Form_pg_class form;
	int natts;

	memset(state, 0, sizeof(RelationState));
	if (!HeapTupleIsValid(tuple))
		return;
	form = (Form_pg_class) GETSTRUCT(tuple);
	state->exists = true;
	state->kind = form->relkind;
	state->persistence = form->relpersistence;
	state->filenode = form->relfilenode;
	state->policies = RelationMixBytes(form->relrowsecurity, &form->relforcerowsecurity,
									   sizeof(bool));
	state->privileges = RelationMixBytes(0, &form->relowner, sizeof(Oid));
	state->privileges = RelationMixArray(state->privileges, RELOID, tuple, Anum_pg_class_relacl);

	/* Whose rights it reads with: its owner's, or not (security_invoker). */
	state->owner = form->relowner;
	if (state->kind == RELKIND_VIEW)
	{
		state->policies = RelationMixArray(state->policies, RELOID, tuple,
										   Anum_pg_class_reloptions);
		state->owner_roles = RelationMixRole(0, form->relowner);
	}
	natts = form->relnatts;
	state->schema = GetSysCacheHashValue1(NAMESPACEOID, ObjectIdGetDatum(form->relnamespace));
	namespace = SearchSysCache1(NAMESPACEOID, ObjectIdGetDatum(form->relnamespace));
	if (HeapTupleIsValid(namespace))
	{
		state->privileges = RelationMixBytes(
			state->privileges, &((Form_pg_namespace) GETSTRUCT(namespace))->nspowner, sizeof(Oid));
		state->privileges = RelationMixArray(state->privileges, NAMESPACEOID, namespace,
											 Anum_pg_namespace_nspacl);
		ReleaseSysCache(namespace);
	}
	ReleaseSysCache(tuple);

	ReadColumns(state, relid, natts);
	ReadPolicies(state, relid);
	if (state->kind == RELKIND_VIEW || state->kind == RELKIND_MATVIEW)
		ReadRules(state, relid);
	if (state->kind == RELKIND_PARTITIONED_TABLE || state->kind == RELKIND_RELATION)
		ReadParts(state, relid);
	if (state->nlabels > 0)
		qsort(state->labels, state->nlabels, sizeof(LabelState), CompareLabels);
}
