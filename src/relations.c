/*-------------------------------------------------------------------------
 *
 * relations.c
 *		What has changed of a table that decides who sees what of it?
 *
 * Of each table that feeds channels, or that policies read, the state of the
 * catalogs is remembered aspect by aspect: columns, privileges, policies,
 * storage, partitions, types.  A barrier (events.c) makes it be compared with
 * the catalogs of now.  What no client can see is no aspect at all: names of
 * tables and schemas, statistics, defaults, constraints, indexes, triggers,
 * comments, and the storage as long as no column was changed with it (VACUUM
 * FULL, CLUSTER, SET TABLESPACE).
 *
 * Partitions and composite types have barriers of their own; they lead to the
 * tables that they belong to.  The tables themselves are neither opened nor
 * locked.
 *
 * Process: feed worker.  Memory: a context for each table that was ever
 * noted, below TopMemoryContext.  Needs a transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "feed.h"
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
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

/* Types in types, and partitions of partitions, beyond which we give up. */
#define MAX_DEPTH 16

typedef struct ColumnState
{
	NameData name;
	Oid type;
	Oid collation;
	char generated;
	bool notnull;
	bool dropped;
	TransactionId xmin; /* of its catalog row */
	uint64 added;		/* the transaction that brought it; 0: before */
} ColumnState;

typedef struct PartState
{
	Oid relid;
	Oid filenode;
	TransactionId made; /* by which transaction */
} PartState;

/* A label of an enum, an attribute of a composite type, a cast to json. */
typedef struct LabelState
{
	uint64 id;
	uint64 hash;
} LabelState;

typedef struct RelationState
{
	bool exists;
	char kind;
	char persistence;
	Oid filenode;
	uint64 privileges;
	uint64 policies;
	Oid owner;
	uint64 owner_roles; /* of a view: the roles that its owner has */
	uint32 schema;		/* the hash that barriers name it by */
	int ncolumns;
	ColumnState *columns;
	int nparts; /* of all levels, sorted */
	PartState *parts;
	int nlabels; /* sorted */
	LabelState *labels;
	int maxlabels;
	List *types; /* pg_class OIDs of composite types */
} RelationState;

typedef struct StateEntry
{
	Oid relid;
	MemoryContext context;
	RelationState state;
	uint64 rights;		/* at the last barrier: RelationRights */
	bool owner_changed; /* its owner's roles have, with a barrier that is to come */
	XLogRecPtr first;	/* where WAL ended when it was first looked at */
	uint64 changed;		/* the transaction that last changed it */
	const char *reason;
} StateEntry;

/* A partition or composite type, and which tables it is part of. */
typedef struct MemberEntry
{
	Oid relid;
	List *owners;
} MemberEntry;

static HTAB *states;
static HTAB *members;

/* ---- reading the catalogs ---- */

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

static void
ReadState(Oid relid, RelationState *state)
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

/* ---- what is remembered ---- */

static void
Init(void)
{
	HASHCTL ctl;

	if (states != NULL)
		return;
	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(StateEntry);
	states = hash_create("changefeed relation states", 64, &ctl, HASH_ELEM | HASH_BLOBS);
	ctl.entrysize = sizeof(MemberEntry);
	members = hash_create("changefeed relation members", 64, &ctl, HASH_ELEM | HASH_BLOBS);
}

static void
AddMember(Oid member, Oid owner)
{
	bool found;
	MemberEntry *entry = hash_search(members, &member, HASH_ENTER, &found);
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	entry->owners = list_append_unique_oid(found ? entry->owners : NIL, owner);
	MemoryContextSwitchTo(old);
}

static void
RemoveMember(Oid member, Oid owner)
{
	MemberEntry *entry = hash_search(members, &member, HASH_FIND, NULL);

	if (entry == NULL)
		return;
	entry->owners = list_delete_oid(entry->owners, owner);
	if (entry->owners == NIL)
		hash_search(members, &member, HASH_REMOVE, NULL);
}

static void
SetMembers(StateEntry *entry, bool add)
{
	ListCell *lc;
	int i;

	for (i = 0; i < entry->state.nparts; i++)
		(add ? AddMember : RemoveMember)(entry->state.parts[i].relid, entry->relid);
	foreach(lc, entry->state.types)
		(add ? AddMember : RemoveMember)(lfirst_oid(lc), entry->relid);
}

/* Reads the state of now; `before` gets what was remembered, in `old`. */
static void
Remember(StateEntry *entry, RelationState *before, MemoryContext *old)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "changefeed relation",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext caller = MemoryContextSwitchTo(context);
	RelationState state;

	ReadState(entry->relid, &state);
	MemoryContextSwitchTo(caller);
	if (entry->context != NULL)
		SetMembers(entry, false);
	*before = entry->state;
	*old = entry->context;
	entry->state = state;
	entry->context = context;
	SetMembers(entry, true);
}

static StateEntry *
Find(Oid relid, bool *found)
{
	StateEntry *entry;

	Init();
	entry = hash_search(states, &relid, HASH_ENTER, found);
	if (!*found)
		memset((char *) entry + sizeof(Oid), 0, sizeof(StateEntry) - sizeof(Oid));
	return entry;
}

void
RelationNote(Oid relid)
{
	bool found;
	StateEntry *entry = Find(relid, &found);
	RelationState before;
	MemoryContext old;

	if (!found)
	{
		entry->first = SharedInsertLsn();
		Remember(entry, &before, &old);
		entry->rights = RelationRights(relid);
	}
}

List *
RelationsOf(Oid relid)
{
	MemberEntry *entry;
	List *result = NIL;

	if (states == NULL)
		return NIL;
	if (hash_search(states, &relid, HASH_FIND, NULL) != NULL)
		result = list_make1_oid(relid);
	entry = hash_search(members, &relid, HASH_FIND, NULL);
	if (entry != NULL)
		result = list_concat(result, entry->owners);
	return result;
}

List *
RelationsAll(void)
{
	HASH_SEQ_STATUS status;
	StateEntry *entry;
	List *result = NIL;

	if (states == NULL)
		return NIL;
	hash_seq_init(&status, states);
	while ((entry = hash_seq_search(&status)) != NULL)
		result = lappend_oid(result, entry->relid);
	return result;
}

/* ---- rights of a view's owner ---- */

List *
RelationsOwnersChanged(void)
{
	HASH_SEQ_STATUS status;
	StateEntry *entry;
	List *result = NIL;

	if (states == NULL)
		return NIL;
	hash_seq_init(&status, states);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		uint64 roles;

		if (!RelationIsView(entry->relid))
			continue;
		roles = RelationMixRole(0, entry->state.owner);
		if (roles == entry->state.owner_roles)
			continue;
		entry->state.owner_roles = roles;
		entry->owner_changed = true;
		result = lappend_oid(result, entry->relid);
	}
	return result;
}

void
RelationsNoteRoles(uint64 number)
{
	HASH_SEQ_STATUS status;
	StateEntry *entry;

	if (states == NULL)
		return;
	hash_seq_init(&status, states);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		if (!entry->owner_changed)
			continue;
		entry->owner_changed = false;
		entry->changed = number;
		entry->reason = RelationReason(RELATION_PRIVILEGES);
	}
}

bool
RelationIsView(Oid relid)
{
	StateEntry *entry = states != NULL ? hash_search(states, &relid, HASH_FIND, NULL) : NULL;

	return entry != NULL && entry->state.kind == RELKIND_VIEW;
}

/* ---- comparing ---- */

static void
CompareColumns(const RelationState *before, RelationState *now, uint64 number,
			   RelationChange *change)
{
	bool touched = false;
	int i;

	for (i = 0; i < now->ncolumns; i++)
	{
		const ColumnState *b = &now->columns[i];
		const ColumnState *a = &before->columns[i];

		if (i >= before->ncolumns)
		{
			touched = true;
			now->columns[i].added = number;
			if (!b->dropped)
				change->added = bms_add_member(change->added, i + 1);
			continue;
		}
		now->columns[i].added = a->added;
		if (a->xmin != b->xmin)
		{
			touched = true;

			/* Its expression may be another one, which only policies read. */
			if (b->generated == COMPAT_GENERATED_VIRTUAL)
				change->aspects |= RELATION_POLICIES;
		}
		if (a->dropped)
			continue;

		/*
		 * As long as it cannot be null, planners since 17 leave out the question,
		 * and no one has told that policies depend on the column.
		 */
		if (a->notnull && !b->notnull && !b->dropped)
			change->aspects |= RELATION_POLICIES;
		if (b->dropped || a->type != b->type || a->collation != b->collation ||
			strcmp(NameStr(a->name), NameStr(b->name)) != 0 ||
			(a->generated == COMPAT_GENERATED_VIRTUAL) !=
				(b->generated == COMPAT_GENERATED_VIRTUAL))
		{
			change->altered = bms_add_member(change->altered, i + 1);
			change->names = lappend(change->names, pstrdup(NameStr(a->name)));
		}
	}
	if (change->added != NULL)
		change->aspects |= RELATION_COLUMNS_ADDED;
	if (change->altered != NULL)
		change->aspects |= RELATION_COLUMNS;

	/*
	 * New storage and a changed column: values may be others.  REFRESH changes
	 * no column.
	 */
	if ((touched || now->kind == RELKIND_MATVIEW) && before->filenode != now->filenode)
		change->aspects |= RELATION_REWRITTEN;
	change->touched = touched;
}

static void
ComparePartitions(const RelationState *before, const RelationState *now, TransactionId xid,
				  RelationChange *change)
{
	int i = 0;
	int k = 0;

	while (i < before->nparts || k < now->nparts)
	{
		const PartState *a = i < before->nparts ? &before->parts[i] : NULL;
		const PartState *b = k < now->nparts ? &now->parts[k] : NULL;

		if (a != NULL && b != NULL && a->relid == b->relid)
		{
			if (change->touched && a->filenode != b->filenode)
				change->aspects |= RELATION_REWRITTEN;
			i++;
			k++;
		}
		else if (b == NULL || (a != NULL && a->relid < b->relid))
		{
			change->aspects |= RELATION_PARTITIONS;
			i++;
		}
		else
		{
			/*
			 * A partition that the transaction itself has made may be empty.
			 * Other children end the subscription: see query_snapshot.c.
			 */
			if (now->kind == RELKIND_PARTITIONED_TABLE && b->made == xid)
				change->made = lappend_oid(change->made, b->relid);
			else
				change->aspects |= RELATION_PARTITIONS;
			k++;
		}
	}
}

/* A new label or attribute is no change of those that were there. */
static bool
LabelsChanged(const RelationState *before, const RelationState *now)
{
	int i;
	int k = 0;

	for (i = 0; i < before->nlabels; i++)
	{
		while (k < now->nlabels && now->labels[k].id < before->labels[i].id)
			k++;
		if (k < now->nlabels && now->labels[k].id == before->labels[i].id &&
			now->labels[k].hash != before->labels[i].hash)
			return true;
	}
	return false;
}

/*
 * May a transaction from before the first look at the table have changed it?
 * What else the table uses now it used then, too: other columns, or another
 * schema, would be a change of the relation, with its own barrier.
 */
static bool
MayConcern(const StateEntry *entry, const LogBarrier *barrier)
{
	switch (barrier->kind)
	{
		case BARRIER_RELATION:
			return barrier->relid == entry->relid ||
				   list_member_oid(RelationsOf(barrier->relid), entry->relid);
		case BARRIER_SAME:
			return false;
		case BARRIER_TYPES:
		case BARRIER_FUNCTIONS:
			return entry->state.nlabels > 0 || !entry->state.exists;
		case BARRIER_SCHEMA:
			return (uint32) barrier->state == entry->state.schema || !entry->state.exists;
		default:
			return true;
	}
}

void
RelationCompare(Oid relid, const LogTransaction *transaction, const LogBarrier *barrier,
				RelationChange *change)
{
	uint64 rights = barrier->relid == relid ? barrier->state : 0;
	bool found;
	StateEntry *entry = Find(relid, &found);
	RelationState before;
	RelationState *now = &entry->state;
	MemoryContext old;
	ListCell *lc;
	int i;

	memset(change, 0, sizeof(RelationChange));
	if (!found)
		entry->first = SharedInsertLsn();
	Remember(entry, &before, &old);
	change->before = before.ncolumns;
	if (!found)
		change->aspects = RELATION_PRIVILEGES | RELATION_POLICIES; /* who knows */
	else if (!now->exists)
		change->aspects = before.exists ? RELATION_GONE : 0;
	else
	{
		CompareColumns(&before, now, transaction->number, change);
		ComparePartitions(
			&before, now,
			XidFromFullTransactionId(FullTransactionIdFromU64(transaction->commit.xid)), change);
		if (before.persistence != now->persistence && now->persistence != RELPERSISTENCE_PERMANENT)
			change->aspects |= RELATION_UNLOGGED;
		if (before.privileges != now->privileges || before.owner_roles != now->owner_roles)
			change->aspects |= RELATION_PRIVILEGES;
		if (before.policies != now->policies)
			change->aspects |= RELATION_POLICIES;
		if (LabelsChanged(&before, now))
			change->aspects |= RELATION_TYPES;

		/* It was there, or was filled, before it became a partition. */
		foreach(lc, change->made)
			for (i = 0; i < transaction->ntouched; i++)
				if (transaction->touched[i] == lfirst_oid(lc))
					change->aspects |= RELATION_PARTITIONS;
	}

	/*
	 * The catalogs of now may be further than the transaction: what it has
	 * changed may have been changed back.
	 */
	if (rights != 0)
	{
		if (change->aspects == 0 && entry->rights != rights)
			change->aspects = RELATION_PRIVILEGES;
		entry->rights = rights;
	}
	if (old != NULL)
		MemoryContextDelete(old);

	/*
	 * What was committed before the first look may be in that state already:
	 * behind a restart, the log is replayed with the catalogs of now.  Nothing
	 * says that it was no change.
	 */
	change->unknown = transaction->commit.lsn < entry->first && MayConcern(entry, barrier);
	if (change->aspects != 0 || change->unknown)
	{
		entry->changed = transaction->number;
		entry->reason = RelationReason(change->aspects);
	}
}

/* The most telling one. */
const char *
RelationReason(uint32 aspects)
{
	static const struct
	{
		uint32 aspect;
		const char *reason;
	} reasons[] = {
		{RELATION_GONE, "table_dropped"},
		{RELATION_UNLOGGED, "table_unlogged"},
		{RELATION_REWRITTEN, "table_rewritten"},
		{RELATION_COLUMNS, "columns_changed"},
		{RELATION_TYPES, "type_changed"},
		{RELATION_PARTITIONS, "partitions_changed"},
		{RELATION_POLICIES, "policy_changed"},
		{RELATION_PRIVILEGES, "privileges_changed"},
		{RELATION_COLUMNS_ADDED, "columns_changed"},
	};
	int i;

	for (i = 0; i < (int) lengthof(reasons); i++)
		if ((aspects & reasons[i].aspect) != 0)
			return reasons[i].reason;
	return "schema_changed";
}

const char *
RelationChangedSince(Oid relid, uint64 number, const LogBarrier *barrier)
{
	StateEntry *entry = states != NULL ? hash_search(states, &relid, HASH_FIND, NULL) : NULL;
	LogTransaction *transaction = LogGet(number);

	if (entry != NULL && entry->changed >= number)
		return entry->reason;
	if (entry != NULL && transaction != NULL && transaction->commit.lsn >= entry->first)
		return NULL;
	if (entry != NULL ? MayConcern(entry, barrier)
					  : barrier->kind != BARRIER_SAME &&
							(barrier->kind != BARRIER_RELATION || barrier->relid == relid))
		return "schema_changed";
	return NULL;
}

bool
RelationColumnIsNew(Oid relid, int16 attno, uint64 number)
{
	StateEntry *entry = states != NULL ? hash_search(states, &relid, HASH_FIND, NULL) : NULL;

	return entry != NULL && attno <= entry->state.ncolumns &&
		   entry->state.columns[attno - 1].added == number;
}

Oid
RelationLeaf(Oid relid)
{
	StateEntry *entry = states != NULL ? hash_search(states, &relid, HASH_FIND, NULL) : NULL;
	int i;

	for (i = 0; entry != NULL && i < entry->state.nparts; i++)
		if (OidIsValid(entry->state.parts[i].filenode))
			return entry->state.parts[i].relid;
	return InvalidOid;
}

char *
RelationColumnName(Oid relid, int16 attno)
{
	char *name = get_attname(relid, attno, true);

	return name != NULL ? name : "";
}
