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
#include "relation_state.h"
#include "relations.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

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
	bool is_type; /* of columns of some */
	List *owners;
} MemberEntry;

static HTAB *states;
static HTAB *members;

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
AddMember(Oid member, Oid owner, bool is_type)
{
	bool found;
	MemberEntry *entry = hash_search(members, &member, HASH_ENTER, &found);
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	entry->is_type = is_type || (found && entry->is_type);
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
		if (add)
			AddMember(entry->state.parts[i].relid, entry->relid, false);
		else
			RemoveMember(entry->state.parts[i].relid, entry->relid);
	foreach(lc, entry->state.types)
		if (add)
			AddMember(lfirst_oid(lc), entry->relid, true);
		else
			RemoveMember(lfirst_oid(lc), entry->relid);
}

/* Reads the state of now; `before` gets what was remembered, in `old`. */
static void
Remember(StateEntry *entry, RelationState *before, MemoryContext *old)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "changefeed relation",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext caller = MemoryContextSwitchTo(context);
	RelationState state;

	RelationReadState(entry->relid, &state);
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

bool
RelationIsType(Oid relid)
{
	MemberEntry *entry = states != NULL ? hash_search(members, &relid, HASH_FIND, NULL) : NULL;

	return entry != NULL && entry->is_type;
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
	change->labels = now->nlabels > 0;
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
RelationLabelsAhead(Oid relid)
{
	StateEntry *entry = hash_search(states, &relid, HASH_FIND, NULL);
	MemoryContext context;
	MemoryContext old;
	RelationState now;
	bool ahead;

	if (entry == NULL || entry->state.nlabels == 0)
		return false;
	context = AllocSetContextCreate(CurrentMemoryContext, "changefeed labels",
									ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	RelationReadState(relid, &now);
	MemoryContextSwitchTo(old);
	ahead = now.exists && LabelsChanged(&entry->state, &now);
	MemoryContextDelete(context);
	return ahead;
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
