/*-------------------------------------------------------------------------
 *
 * channel_check.c
 *		What a table has to be like to feed a channel.  See channel_check.h.
 *
 * Everything here is checked once, when the source is declared.  What ALTER
 * TABLE does to it later is noticed by the feed worker, which has to look at
 * the table as it was at each change anyway.
 *
 * Process: any backend.  Memory: results in CurrentMemoryContext.  Locks: held
 * by the caller, see channel_check.h.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "channel_check.h"
#include "encode.h"
#include "wal2json.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/transam.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

char *
ChannelTableName(Oid relid)
{
	char *name = get_rel_name(relid);

	if (name == NULL)
		return psprintf("%u", relid);
	return psprintf("%s.%s", get_namespace_name(get_rel_namespace(relid)), name);
}

/* ---- The table itself ---- */

/*
 * What may not be published at all, with the reason and what to do instead.
 * `root` is the table that was named, when that is not the reason itself.
 */
static void
RefuseTable(Oid relid, Oid root, const char *detail, const char *hint)
{
	ereport(
		ERROR,
		(errcode(ERRCODE_WRONG_OBJECT_TYPE),
		 root == relid
			 ? errmsg("\"%s\" cannot be the source of a channel", ChannelTableName(relid))
			 : errmsg("\"%s\" cannot be the source of a channel because of its partition \"%s\"",
					  ChannelTableName(root), ChannelTableName(relid)),
		 errdetail_internal("%s", detail), hint ? errhint("%s", hint) : 0));
}

/* Kind and persistence, which a partition has to satisfy, too. */
static void
CheckKind(Oid relid, Oid root, char relkind, char persistence)
{
	const char *detail = NULL;
	const char *hint = NULL;

	switch (relkind)
	{
		case RELKIND_RELATION:
		case RELKIND_PARTITIONED_TABLE:
			break;
		case RELKIND_VIEW:
			detail = _("It is a view.");
			hint = _("Publish the tables that the view reads, each as a source of its own.");
			break;
		case RELKIND_MATVIEW:
			detail = _("It is a materialized view.");
			hint = _("Publish the tables that the view reads, each as a source of its own.");
			break;
		case RELKIND_FOREIGN_TABLE:
			detail = _("It is a foreign table, whose changes are not in this server's WAL.");
			hint = _("Publish the table on the server that owns it.");
			break;
		default:
			detail = _("It is not a table.");
			break;
	}

	if (detail == NULL && persistence == RELPERSISTENCE_TEMP)
		detail = _("It is a temporary table, whose changes are not in the WAL.");
	if (detail == NULL && persistence == RELPERSISTENCE_UNLOGGED)
	{
		detail = _("It is an unlogged table, whose changes are not in the WAL.");
		hint = _("Use ALTER TABLE ... SET LOGGED first.");
	}

	if (detail != NULL)
		RefuseTable(relid, root, detail, hint);
}

void
ChannelCheckTable(Oid relid)
{
	HeapTuple tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Form_pg_class class;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE),
						errmsg("relation with OID %u does not exist", relid)));
	class = (Form_pg_class) GETSTRUCT(tuple);

	/* Also information_schema and all that initdb made. */
	if (relid < FirstNormalObjectId)
		RefuseTable(relid, relid, _("It is a system catalog."), NULL);
	if (class->relnamespace == get_namespace_oid(CHANGEFEED_SCHEMA, true))
		RefuseTable(relid, relid, _("It belongs to pg_changefeed itself."), NULL);

	CheckKind(relid, relid, class->relkind, class->relpersistence);

	if (!class->relispartition && class->relkind == RELKIND_RELATION)
	{
		/*
		 * Children may have rows with the same key, which no index prevents,
		 * and a client could not tell them apart.  (relhassubclass may be
		 * outdated, so look at the children.)  A child on its own is a table
		 * like others.
		 */
		if (find_inheritance_children(relid, NoLock) != NIL)
			RefuseTable(
				relid, relid,
				_("Other tables inherit from it, and keys are not unique over all of them."),
				_("Use partitioning instead of inheritance, or publish the tables without children, each as a source of its own."));
	}
	ReleaseSysCache(tuple);
}

static void
CheckPartitions(const SourceDefinition *definition)
{
	ListCell *lc;

	foreach(lc, definition->relations)
	{
		Oid relid = lfirst_oid(lc);

		if (relid != definition->relid)
			CheckKind(relid, definition->relid, get_rel_relkind(relid), get_rel_persistence(relid));
	}
}

/* ---- Columns by name ---- */

static bool
NameInList(const List *names, const char *name)
{
	ListCell *lc;

	foreach(lc, names)
		if (strcmp(lfirst(lc), name) == 0)
			return true;
	return false;
}

/* "a", "b": quoted as in all messages. */
static char *
JoinNames(const List *names)
{
	StringInfoData s;
	ListCell *lc;

	initStringInfo(&s);
	foreach(lc, names)
		appendStringInfo(&s, "%s\"%s\"", s.len > 0 ? ", " : "", (char *) lfirst(lc));
	return s.data;
}

/*
 * The user column of that name.  `role` says what it is needed for, as in
 * "key column".
 */
static Form_pg_attribute
FindColumn(Relation rel, const char *name, const char *role)
{
	TupleDesc tupdesc = RelationGetDescr(rel);
	int i;

	for (i = 0; i < tupdesc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(tupdesc, i);

		if (!att->attisdropped && strcmp(NameStr(att->attname), name) == 0)
			return att;
	}
	ereport(ERROR, (errcode(ERRCODE_UNDEFINED_COLUMN),
					errmsg("%s \"%s\" does not exist in table \"%s\"", role, name,
						   ChannelTableName(RelationGetRelid(rel)))));
	return NULL;
}

/* Columns that are computed when they are read are in no image of a row. */
static bool
IsVirtual(Form_pg_attribute att)
{
	return att->attgenerated != '\0' && att->attgenerated != ATTRIBUTE_GENERATED_STORED;
}

static void
CheckNotVirtual(Relation rel, Form_pg_attribute att, const char *role)
{
	if (IsVirtual(att))
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("%s \"%s\" of table \"%s\" is a virtual generated column", role,
							   NameStr(att->attname), ChannelTableName(RelationGetRelid(rel))),
						errdetail("Its values are not in the WAL."),
						errhint("Make it a stored generated column.")));
}

static void
CheckNoDuplicates(const List *names, const char *role)
{
	List *seen = NIL;
	ListCell *lc;

	foreach(lc, names)
	{
		if (NameInList(seen, lfirst(lc)))
			ereport(ERROR, (errcode(ERRCODE_DUPLICATE_COLUMN),
							errmsg("%s \"%s\" is listed twice", role, (char *) lfirst(lc))));
		seen = lappend(seen, lfirst(lc));
	}
}

/* ---- The key ---- */

/*
 * The key columns of a unique index, or NIL when it does not make a key: it is
 * partial, on expressions, not (yet) valid, or not unique.  A deferrable one
 * does: at commit it holds.
 */
static List *
IndexKey(Relation rel, Oid index, bool *primary)
{
	HeapTuple tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(index));
	Form_pg_index form;
	List *names = NIL;
	int i;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for index %u", index);
	form = (Form_pg_index) GETSTRUCT(tuple);
	*primary = form->indisprimary;

	if (form->indisunique && form->indisvalid && form->indislive &&
		heap_attisnull(tuple, Anum_pg_index_indpred, NULL) &&
		heap_attisnull(tuple, Anum_pg_index_indexprs, NULL))
	{
		for (i = 0; i < form->indnkeyatts; i++)
		{
			AttrNumber attno = form->indkey.values[i];

			names = lappend(
				names, pstrdup(NameStr(TupleDescAttr(RelationGetDescr(rel), attno - 1)->attname)));
		}
	}
	ReleaseSysCache(tuple);
	return names;
}

static List *
FindPrimaryKey(Relation rel)
{
	ListCell *lc;

	foreach(lc, RelationGetIndexList(rel))
	{
		bool primary;
		List *names = IndexKey(rel, lfirst_oid(lc), &primary);

		if (primary && names != NIL)
			return names;
	}
	return NIL;
}

static bool
HasUniqueIndex(Relation rel, const List *key)
{
	ListCell *lc;

	foreach(lc, RelationGetIndexList(rel))
	{
		bool primary;
		List *names = IndexKey(rel, lfirst_oid(lc), &primary);
		ListCell *lc2;
		bool same = list_length(names) == list_length(key);

		/* Neither has duplicates, so this is equality of sets. */
		foreach(lc2, names)
			same = same && NameInList(key, lfirst(lc2));
		if (same)
			return true;
	}
	return false;
}

/*
 * Whether the column can hold a null.  From 18 on attnotnull also stands for a
 * constraint that is NOT VALID, and says nothing about the rows that were there
 * before; earlier versions have no such rows in pg_constraint.
 */
static bool
IsNullable(Relation rel, Form_pg_attribute att)
{
	Relation constraints;
	SysScanDesc scan;
	ScanKeyData key;
	HeapTuple tuple;
	bool result = !att->attnotnull;

	constraints = table_open(ConstraintRelationId, AccessShareLock);
	ScanKeyInit(&key, Anum_pg_constraint_conrelid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(RelationGetRelid(rel)));
	scan = systable_beginscan(constraints, ConstraintRelidTypidNameIndexId, true, NULL, 1, &key);
	while (!result && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_constraint form = (Form_pg_constraint) GETSTRUCT(tuple);
		bool isnull;
		Datum columns;

		if (form->contype != 'n' || form->convalidated)
			continue;
		columns = heap_getattr(tuple, Anum_pg_constraint_conkey, RelationGetDescr(constraints),
							   &isnull);
		result = !isnull && ((int16 *) ARR_DATA_PTR(DatumGetArrayTypeP(columns)))[0] == att->attnum;
	}
	systable_endscan(scan);
	table_close(constraints, AccessShareLock);
	return result;
}

/*
 * Keys and names of channels are made in the feed worker, where no user-defined
 * cast may run.
 */
static void
CheckNotCast(Relation rel, Form_pg_attribute att, const char *what)
{
	if (EncodeTypeUsesCast(att->atttypid))
		ereport(
			ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("column \"%s\" of table \"%s\" cannot be a %s", NameStr(att->attname),
					ChannelTableName(RelationGetRelid(rel)), what),
			 errdetail("Values of type %s are converted to json by a user-defined cast.",
					   format_type_be(att->atttypid)),
			 errhint(
				 "Such columns can be sent, but they cannot be part of the key or of the channel's name.")));
}

static void
CheckKey(Relation rel, SourceDefinition *definition)
{
	char *table = ChannelTableName(definition->relid);
	List *nullable = NIL;
	ListCell *lc;

	if (definition->key == NIL)
	{
		definition->key = FindPrimaryKey(rel);
		if (definition->key == NIL)
			ereport(
				ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" has no primary key", table),
				 errdetail("Clients need a key to tell which row has changed."),
				 errhint("Add a primary key, or name the columns of a unique index with key =>.")));
	}

	CheckNoDuplicates(definition->key, "key column");
	foreach(lc, definition->key)
	{
		Form_pg_attribute att = FindColumn(rel, lfirst(lc), "key column");

		CheckNotVirtual(rel, att, "key column");
		CheckNotCast(rel, att, "key column");
		if (IsNullable(rel, att))
			nullable = lappend(nullable, lfirst(lc));
	}
	if (nullable != NIL)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("key columns of table \"%s\" must be NOT NULL", table),
						errdetail("These can be null: %s.", JoinNames(nullable)),
						errhint("Use ALTER TABLE ... ALTER COLUMN ... SET NOT NULL.")));
	if (!HasUniqueIndex(rel, definition->key))
		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("table \"%s\" has no unique index on exactly the columns of the key", table),
			 errdetail(
				 "The key is %s. Partial indexes, indexes on expressions and invalid indexes do not count.",
				 JoinNames(definition->key)),
			 errhint("Create a unique index on these columns, or give another key.")));
}

/* ---- Published columns ---- */

static void
CheckColumns(Relation rel, const SourceDefinition *definition)
{
	TupleDesc tupdesc = RelationGetDescr(rel);
	char *table = ChannelTableName(definition->relid);
	ListCell *lc;
	int i;

	CheckNoDuplicates(definition->columns, "column");
	foreach(lc, definition->columns)
		(void) FindColumn(rel, lfirst(lc), "column");

	if (definition->columns != NIL)
		foreach(lc, definition->key)
			if (!NameInList(definition->columns, lfirst(lc)))
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("columns must include the key column \"%s\"", (char *) lfirst(lc)),
						 errdetail("The key is %s.", JoinNames(definition->key))));

	for (i = 0; i < tupdesc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(tupdesc, i);
		const char *hint = _("Leave the column out: name the others with columns =>.");

		if (att->attisdropped ||
			(definition->columns != NIL && !NameInList(definition->columns, NameStr(att->attname))))
			continue;
		if (IsVirtual(att))
			ereport(
				ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("column \"%s\" of table \"%s\" cannot be sent", NameStr(att->attname),
						table),
				 errdetail("It is a virtual generated column, whose values are not in the WAL."),
				 errhint("%s", hint)));
	}
}

/* ---- Template parameters ---- */

/*
 * A parameter's value is compared as text, so its type has to have exactly one
 * text for each value that a client would think of, more or less: scalars.
 */
static bool
ParameterTypeAllowed(Oid typid)
{
	Oid base = getBaseType(typid);
	TypeCacheEntry *entry;

	if (base == JSONOID || base == JSONBOID || type_is_array(base))
		return false;
	if (get_typtype(base) != TYPTYPE_BASE && get_typtype(base) != TYPTYPE_ENUM)
		return false;
	entry = lookup_type_cache(base, TYPECACHE_EQ_OPR);
	return OidIsValid(entry->eq_opr);
}

static void
CheckParameters(Relation rel, const SourceDefinition *definition)
{
	int i;

	for (i = 0; i < definition->template->nparams; i++)
	{
		const char *name = definition->template->params[i];
		Form_pg_attribute att = FindColumn(rel, name, "parameter column");

		CheckNotVirtual(rel, att, "parameter column");
		CheckNotCast(rel, att, "parameter column");
		if (!ParameterTypeAllowed(att->atttypid))
			ereport(
				ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" of type %s cannot be a parameter of a channel's name", name,
						format_type_be(att->atttypid)),
				 errdetail(
					 "Parameters are compared for equality: arrays, composite types, ranges, json and types without an equality operator are not possible.")));
	}
}

/* ---- Replica identity ---- */

bool
ChannelIdentityIsFull(Oid relid)
{
	HeapTuple tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	bool result;

	if (!HeapTupleIsValid(tuple))
		return true; /* dropped since */
	result = ((Form_pg_class) GETSTRUCT(tuple))->relreplident == REPLICA_IDENTITY_FULL;
	ReleaseSysCache(tuple);
	return result;
}

/*
 * Without FULL the old values come from the columns of an index, so those have
 * to be enough to say which row it was, in which channel, and whether it
 * passed the filter.
 */
void
ChannelCheckIdentity(Oid relid, const List *needed)
{
	Relation rel;
	Oid index;
	List *covered = NIL;
	List *missing = NIL;
	bool primary;
	ListCell *lc;

	if (get_rel_relkind(relid) == RELKIND_PARTITIONED_TABLE || ChannelIdentityIsFull(relid))
		return;

	rel = relation_open(relid, NoLock);
	index = RelationGetReplicaIndex(rel);
	if (OidIsValid(index))
		covered = IndexKey(rel, index, &primary);
	foreach(lc, needed)
		if (!NameInList(covered, lfirst(lc)) && !NameInList(missing, lfirst(lc)))
			missing = lappend(missing, lfirst(lc));
	if (missing != NIL)
		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the replica identity of table \"%s\" does not cover what the channel needs",
					ChannelTableName(relid)),
			 errdetail("The old values of these columns would be missing: %s.", JoinNames(missing)),
			 errhint(
				 "Leave set_replica_identity at its default, use ALTER TABLE ... REPLICA IDENTITY FULL, or choose an index that has these columns and those that policies of the table read.")));
	relation_close(rel, NoLock);
}

/* ---- All of it ---- */

void
ChannelCheckSource(SourceDefinition *definition)
{
	Relation rel = relation_open(definition->relid, NoLock);
	List *needed;
	ListCell *lc;
	int i;

	CheckPartitions(definition);
	if (definition->entity == NULL)
		definition->entity = pstrdup(RelationGetRelationName(rel));

	CheckKey(rel, definition);
	CheckColumns(rel, definition);
	CheckParameters(rel, definition);

	needed = list_copy(definition->key);
	for (i = 0; i < definition->template->nparams; i++)
		needed = lappend(needed, definition->template->params[i]);
	if (definition->filter != NULL)
		definition->filter = ChannelCheckFilter(rel, definition->filter, &needed);

	if (!definition->set_replica_identity)
		foreach(lc, definition->relations)
			ChannelCheckIdentity(lfirst_oid(lc), needed);

	/* A partition's columns have the same types. */
	if (setting_decoder == DECODER_WAL2JSON)
		Wal2jsonCheckTable(rel);
	relation_close(rel, NoLock);
}
