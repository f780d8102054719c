/*-------------------------------------------------------------------------
 *
 * query_fingerprint.c
 *		One number for everything in the catalogs that decides which rows and
 *		columns of a table a role sees.
 *
 * Two equal fingerprints mean that the same policies, privileges and
 * memberships were in force.  What ordinary upkeep changes must not be in it:
 * of pg_class and pg_attribute, which ANALYZE, VACUUM FULL, CLUSTER and
 * TRUNCATE write to, the columns that matter are hashed.  Of policies, views,
 * functions and memberships it is the row's xmin, which changes with every
 * ALTER and survives freezing.
 *
 * Of the table itself only what decides about rows is in it: which columns
 * there are and may be read a subscription is told beside it.  Of its policies
 * those count that apply to the role.  Tables that policies read may be read
 * as somebody else (views), so it is all of theirs.
 *
 * Not covered, since nothing in the catalogs leads there: functions that
 * policies call indirectly.
 *
 * Process: query worker, in a transaction.  Locks: AccessShareLock on catalogs
 * and, already taken by the caller, on the tables.  Memory: garbage in
 * CurrentMemoryContext.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "query_internal.h"
#include "relations.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/transam.h"
#include "catalog/indexing.h"
#include "catalog/pg_attrdef.h"
#include "catalog/pg_class.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_policy.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_rewrite.h"
#include "common/hashfn.h"
#include "nodes/nodeFuncs.h"
#include "rewrite/rowsecurity.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/syscache.h"

typedef struct Entry
{
	Oid a;
	Oid b;
	TransactionId xmin;
} Entry;

static int
CompareEntries(const void *x, const void *y)
{
	const Entry *a = (const Entry *) x;
	const Entry *b = (const Entry *) y;

	if (a->a != b->a)
		return a->a < b->a ? -1 : 1;
	if (a->b != b->b)
		return a->b < b->b ? -1 : 1;
	if (a->xmin != b->xmin)
		return a->xmin < b->xmin ? -1 : 1;
	return 0;
}

static TransactionId
TupleXmin(HeapTuple tuple)
{
	return HeapTupleHeaderGetRawXmin(tuple->t_data);
}

/* The contents of a column with an ACL or options, or nothing. */
static void
AddArray(StringInfo out, int cacheid, HeapTuple tuple, AttrNumber attno)
{
	bool isnull;
	Datum datum = SysCacheGetAttr(cacheid, tuple, attno, &isnull);

	WirePutU8(out, !isnull);
	if (!isnull)
	{
		struct varlena *array = PG_DETOAST_DATUM(datum);

		WirePutBytes(out, (char *) array, VARSIZE(array));
	}
}

/* ---- Functions ---- */

static bool
CollectFunction(Oid function, void *arg)
{
	List **functions = (List **) arg;

	if (function >= FirstNormalObjectId)
		*functions = list_append_unique_oid(*functions, function);
	return false; /* go on */
}

static bool
CollectWalker(Node *node, void *arg)
{
	if (node == NULL)
		return false;
	(void) check_functions_in_node(node, CollectFunction, arg);
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, CollectWalker, arg, 0);
	return expression_tree_walker(node, CollectWalker, arg);
}

List *
FingerprintFunctions(List *functions, Node *expression)
{
	(void) CollectWalker(expression, &functions);
	return functions;
}

static void
AddFunctions(StringInfo out, List *functions)
{
	ListCell *cell;

	list_sort(functions, list_oid_cmp);
	foreach(cell, functions)
	{
		HeapTuple tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(lfirst_oid(cell)));

		WirePutU32(out, lfirst_oid(cell));
		if (!HeapTupleIsValid(tuple))
			continue;
		WirePutU32(out, TupleXmin(tuple));
		ReleaseSysCache(tuple);
	}
}

/* ---- Tables ---- */

static void
AddNamespace(StringInfo out, Oid namespace)
{
	HeapTuple tuple = SearchSysCache1(NAMESPACEOID, ObjectIdGetDatum(namespace));

	WirePutU32(out, namespace);
	if (!HeapTupleIsValid(tuple))
		return;
	WirePutU32(out, ((Form_pg_namespace) GETSTRUCT(tuple))->nspowner);
	AddArray(out, NAMESPACEOID, tuple, Anum_pg_namespace_nspacl);
	ReleaseSysCache(tuple);
}

/* `reader`: the columns are a row of his, and privileges no matter. */
static void
AddColumns(StringInfo out, Relation rel, Oid reader)
{
	Oid relid = RelationGetRelid(rel);
	int attno;

	for (attno = 1; attno <= RelationGetNumberOfAttributes(rel); attno++)
	{
		HeapTuple tuple = SearchSysCache2(ATTNUM, ObjectIdGetDatum(relid), Int16GetDatum(attno));
		Form_pg_attribute form;

		if (!HeapTupleIsValid(tuple))
			continue;
		form = (Form_pg_attribute) GETSTRUCT(tuple);
		WirePutU16(out, (uint16) attno);
		WirePutU8(out, form->attisdropped);
		if (!form->attisdropped)
		{
			WirePutString(out, NameStr(form->attname));
			WirePutU32(out, form->atttypid);
			WirePutU32(out, (uint32) form->atttypmod);
			WirePutU32(out, form->attcollation);
			WirePutU8(out, (uint8) form->attgenerated);
			if (!OidIsValid(reader))
				AddArray(out, ATTNUM, tuple, Anum_pg_attribute_attacl);
		}
		ReleaseSysCache(tuple);
	}
}

/* OID and xmin of the rows of a catalog that belong to the table. */
static void
AddCatalogRows(StringInfo out, Oid relid, Oid catalog, Oid index, AttrNumber column)
{
	Relation rel = table_open(catalog, AccessShareLock);
	Entry *entries = palloc(sizeof(Entry) * 16);
	int nentries = 0;
	int capacity = 16;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple tuple;
	int i;

	ScanKeyInit(&key, column, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(relid));
	scan = systable_beginscan(rel, index, true, NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool isnull;

		if (nentries == capacity)
		{
			capacity *= 2;
			entries = repalloc(entries, sizeof(Entry) * capacity);
		}
		/* The first column of all these catalogs is the OID. */
		entries[nentries].a = DatumGetObjectId(
			heap_getattr(tuple, 1, RelationGetDescr(rel), &isnull));
		entries[nentries].b = relid;
		entries[nentries].xmin = TupleXmin(tuple);
		nentries++;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);

	qsort(entries, nentries, sizeof(Entry), CompareEntries);
	for (i = 0; i < nentries; i++)
	{
		WirePutU32(out, entries[i].a);
		WirePutU32(out, entries[i].xmin);
	}
}

static void
AddPolicyRow(StringInfo out, Oid relid, const char *name)
{
	Relation rel = table_open(PolicyRelationId, AccessShareLock);
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple tuple;

	ScanKeyInit(&keys[0], Anum_pg_policy_polrelid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(relid));
	ScanKeyInit(&keys[1], Anum_pg_policy_polname, BTEqualStrategyNumber, F_NAMEEQ,
				CStringGetDatum(name));
	scan = systable_beginscan(rel, PolicyPolrelidPolnameIndexId, true, NULL, 2, keys);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		WirePutU32(out, ((Form_pg_policy) GETSTRUCT(tuple))->oid);
		WirePutU32(out, TupleXmin(tuple));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
}

/* Is it one of the policies that decide which rows the reader sees? */
static bool
PolicyConcerns(const RowSecurityPolicy *policy, Oid reader)
{
	Oid *roles = (Oid *) ARR_DATA_PTR(policy->roles);
	int n = ARR_DIMS(policy->roles)[0];
	int i;

	if (!OidIsValid(reader))
		return true;
	if (policy->polcmd != '*' && policy->polcmd != ACL_SELECT_CHR)
		return false;
	for (i = 0; i < n; i++)
		if (roles[i] == ACL_ID_PUBLIC || has_privs_of_role(reader, roles[i]))
			return true;
	return false;
}

/* The policies of a table, by OID and xmin of their rows. */
static void
AddPolicies(StringInfo out, Relation rel, Oid reader, List **functions)
{
	ListCell *cell;

	foreach(cell, rel->rd_rsdesc->policies)
	{
		RowSecurityPolicy *policy = (RowSecurityPolicy *) lfirst(cell);

		if (!PolicyConcerns(policy, reader))
			continue;
		AddPolicyRow(out, RelationGetRelid(rel), policy->policy_name);
		*functions = FingerprintFunctions(*functions, (Node *) policy->qual);
	}
}

/* What a virtual generated column means can be changed in place. */
static void
AddVirtualColumns(StringInfo out, Relation rel)
{
	int attno;

	for (attno = 1; attno <= RelationGetNumberOfAttributes(rel); attno++)
	{
		if (TupleDescAttr(RelationGetDescr(rel), attno - 1)->attgenerated ==
			COMPAT_GENERATED_VIRTUAL)
		{
			AddCatalogRows(out, RelationGetRelid(rel), AttrDefaultRelationId, AttrDefaultIndexId,
						   Anum_pg_attrdef_adrelid);
			break;
		}
	}
}

/*
 * The table itself: what decides about its rows.  About its columns the
 * subscription is told by themselves, so neither they nor privileges are in
 * it, unless policies read the row as a whole.
 */
static void
AddSource(StringInfo out, Oid relid, Oid reader, bool whole_row, List **functions)
{
	Relation rel = try_relation_open(relid, NoLock);
	bool enabled;

	WirePutU32(out, relid);
	if (rel == NULL)
		return;
	enabled = check_enable_rls(relid, reader, true) == RLS_ENABLED;
	WirePutU8(out, (uint8) rel->rd_rel->relkind);
	WirePutU8(out, enabled);
	if (whole_row)
		AddColumns(out, rel, reader);
	AddVirtualColumns(out, rel);
	if (enabled && rel->rd_rsdesc != NULL)
		AddPolicies(out, rel, reader, functions);
	relation_close(rel, NoLock);
}

/* A table that policies read, perhaps as somebody else. */
static void
AddDependency(StringInfo out, Oid relid, List **functions)
{
	Relation rel = try_relation_open(relid, NoLock);
	HeapTuple tuple;

	WirePutU32(out, relid);
	if (rel == NULL)
		return;

	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	if (HeapTupleIsValid(tuple))
	{
		Form_pg_class form = (Form_pg_class) GETSTRUCT(tuple);

		WirePutU32(out, form->relowner);
		WirePutU8(out, (uint8) form->relkind);
		WirePutU8(out, form->relrowsecurity);
		WirePutU8(out, form->relforcerowsecurity);
		AddArray(out, RELOID, tuple, Anum_pg_class_relacl);
		AddNamespace(out, form->relnamespace);

		/* Whose rights the tables behind it are read with. */
		if (form->relkind == RELKIND_VIEW)
		{
			AddArray(out, RELOID, tuple, Anum_pg_class_reloptions); /* security_invoker */
			WirePutU64(out, RelationMixRole(0, form->relowner));
		}
		ReleaseSysCache(tuple);
	}
	AddColumns(out, rel, InvalidOid);
	AddVirtualColumns(out, rel);
	if (rel->rd_rules != NULL)
		AddCatalogRows(out, relid, RewriteRelationId, RewriteRelRulenameIndexId,
					   Anum_pg_rewrite_ev_class);
	if (rel->rd_rsdesc != NULL)
		AddPolicies(out, rel, InvalidOid, functions);
	relation_close(rel, NoLock);
}

uint64
FingerprintCompute(Oid relid, Oid role, bool whole_row, const Oid *dependencies, int ndependencies,
				   List **functions)
{
	StringInfoData out;
	uint64 hash;
	int i;

	initStringInfo(&out);
	WirePutU64(&out, RelationMixRole(0, role));
	AddSource(&out, relid, role, whole_row, functions);
	for (i = 0; i < ndependencies; i++)
		if (dependencies[i] != relid)
			AddDependency(&out, dependencies[i], functions);
	AddFunctions(&out, *functions);

	hash = hash_bytes_extended((unsigned char *) out.data, out.len, 0);
	pfree(out.data);
	return hash;
}
