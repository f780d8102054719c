/*-------------------------------------------------------------------------
 *
 * dependencies.c
 *		Which changes of tables that policies read matter to whom.
 *
 * A query worker has found out for each view (query_narrow.c) which columns of
 * a dependency its policies use, and what rows fulfil that they read.  Whether
 * a change makes a difference then is found out in dependency_rows.c.
 *
 * A transaction must not be compared with every view that there is.  So views
 * are found by hash: each scan of a table contributes one condition with fixed
 * values, and the changed row's column is looked up in the hash of its group,
 * which are all conditions of the same column by the same operator.  Views with
 * a scan that has no such condition are looked at one by one.
 *
 * For rows of dependencies to be in the log, the decoder has to know which
 * tables these are.  What it decoded before it knew is marked as untold, and
 * then every change concerns everybody.
 *
 * Process: feed worker.  Only functions of built-in types are called.  Locks:
 * that of shared memory, when the list for the decoder changes.  Memory: a
 * context per view for what was read from its narrowing, one for the index, and
 * one for what a look at a transaction needs, which is reset each time.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "dependencies.h"

#include "storage/lwlock.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

/* A table that nobody depends on any more is wanted for a while (ms). */
#define KEEP_WANTED 300000

/* Comparisons that one transaction may cost; beyond, it concerns all. */
#define MAX_COMPARISONS 2000000

static MemoryContext dependencies_context;
static MemoryContext scratch;
static HTAB *tables;
static bool wanted_changed;
static TimestampTz swept;
static uint64 last_look;

static void
Initialize(void)
{
	HASHCTL ctl;

	dependencies_context = AllocSetContextCreate(TopMemoryContext, "changefeed dependencies",
												 ALLOCSET_DEFAULT_SIZES);
	scratch = AllocSetContextCreate(TopMemoryContext, "changefeed changes of dependencies",
									ALLOCSET_DEFAULT_SIZES);
	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(DependedTable);
	ctl.hcxt = dependencies_context;
	tables = hash_create("changefeed dependencies", 32, &ctl,
						 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

static DependedTable *
FindTable(Oid relid)
{
	DependedTable *table;

	if (tables == NULL)
		return NULL;
	table = hash_search(tables, &relid, HASH_FIND, NULL);
	return table != NULL && table->nviews > 0 ? table : NULL;
}

bool
ViewsDependOn(Oid relid)
{
	return FindTable(relid) != NULL;
}

/* ---- the index ---- */

/* The condition by which a scan is found: the first with fixed values. */
static Condition *
IndexCondition(DependencyScan *scan)
{
	int i;

	for (i = 0; i < scan->nconditions; i++)
		if (scan->conditions[i].row_column == 0)
			return &scan->conditions[i];
	return NULL;
}

static ValueGroup *
FindGroup(DependedTable *table, Condition *condition)
{
	ListCell *lc;
	ValueGroup *group;
	HASHCTL ctl;
	MemoryContext old;

	foreach(lc, table->groups)
	{
		group = lfirst(lc);
		if (group->column == condition->column && group->column_type == condition->column_type &&
			group->equality == condition->equality.fn_oid &&
			group->collation == condition->collation)
			return group;
	}
	old = MemoryContextSwitchTo(dependencies_context);
	group = palloc0(sizeof(ValueGroup));
	group->column = condition->column;
	group->column_type = condition->column_type;
	group->equality = condition->equality.fn_oid;
	group->collation = condition->collation;
	fmgr_info_cxt(condition->column_hash.fn_oid, &group->column_hash, dependencies_context);
	ctl.keysize = sizeof(uint32);
	ctl.entrysize = sizeof(Bucket);
	ctl.hcxt = dependencies_context;
	group->buckets = hash_create("changefeed dependencies by value", 32, &ctl,
								 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	table->groups = lappend(table->groups, group);
	MemoryContextSwitchTo(old);
	return group;
}

/* Puts the details into the index or takes them out. */
static void
IndexDetails(DependencyDetails *details, bool add)
{
	int i;
	int k;

	for (i = 0; i < details->nscans; i++)
	{
		Condition *condition = IndexCondition(&details->scans[i]);
		ValueGroup *group = FindGroup(details->table, condition);

		for (k = 0; k < condition->nvalues; k++)
		{
			uint32 hash = DatumGetUInt32(FunctionCall1Coll(
				&condition->value_hash, condition->collation, condition->values[k]));
			bool found;
			Bucket *bucket = hash_search(group->buckets, &hash, HASH_ENTER, &found);
			MemoryContext old = MemoryContextSwitchTo(dependencies_context);

			if (!found)
				bucket->details = NIL;
			if (add)
				bucket->details = lappend(bucket->details, details);
			else
				bucket->details = list_delete_ptr(bucket->details, details);
			MemoryContextSwitchTo(old);
			if (bucket->details == NIL)
				hash_search(group->buckets, &hash, HASH_REMOVE, NULL);
		}
	}
}

static bool
CanBeIndexed(DependencyDetails *details)
{
	int i;

	if (details->kind != NARROW_SCANS)
		return false;
	for (i = 0; i < details->nscans; i++)
		if (IndexCondition(&details->scans[i]) == NULL)
			return false;
	return true;
}

static DependedTable *
EnterTable(Oid relid)
{
	bool found;
	DependedTable *table = hash_search(tables, &relid, HASH_ENTER, &found);

	if (!found)
	{
		memset(table, 0, sizeof(DependedTable));
		table->relid = relid;
		dlist_init(&table->details);
		dlist_init(&table->unindexed);
	}
	return table;
}

void
DependencyAdd(Identity *identity, View *view)
{
	WireReader r = WireReaderInit(view->narrowing, view->narrowing_length);
	MemoryContext old;
	int i;

	view->details_context = NULL;
	view->details = NULL;
	if (view->ndependencies == 0)
		return;
	if (tables == NULL)
		Initialize();
	view->details_context = AllocSetContextCreate(dependencies_context, "changefeed narrowing",
												  ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(view->details_context);
	view->details = palloc0(sizeof(DependencyDetails) * view->ndependencies);
	(void) WireGetU8(&r);
	for (i = 0; i < view->ndependencies && !r.failed; i++)
		DependencyReadDetails(&view->details[i], &r);
	MemoryContextSwitchTo(old);
	if (!WireAtEnd(&r))
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
						errmsg("malformed description from a query worker")));

	for (i = 0; i < view->ndependencies; i++)
	{
		DependencyDetails *details = &view->details[i];

		details->identity = identity;
		details->view = view;
		details->table = EnterTable(view->dependencies[i]);
		details->table->nviews++;
		dlist_push_tail(&details->table->details, &details->node);
		details->indexed = CanBeIndexed(details);
		if (details->indexed)
			IndexDetails(details, true);
		else if (details->kind != NARROW_NONE)
		{
			dlist_push_tail(&details->table->unindexed, &details->unindexed_node);
			details->table->nunindexed++;
		}
		if (details->kind == NARROW_SCANS && !details->table->narrowed)
		{
			details->table->narrowed = true;
			wanted_changed = true;
		}
	}
}

void
DependencyRemove(View *view)
{
	int i;

	if (view->details == NULL)
		return;
	for (i = 0; i < view->ndependencies; i++)
	{
		DependencyDetails *details = &view->details[i];
		DependedTable *table = details->table;

		if (details->indexed)
			IndexDetails(details, false);
		else if (details->kind != NARROW_NONE)
		{
			dlist_delete(&details->unindexed_node);
			table->nunindexed--;
		}
		dlist_delete(&details->node);
		if (--table->nviews == 0)
			table->unused = feed_now;
	}
	MemoryContextDelete(view->details_context);
}

/* ---- the decoder's list ---- */

static void
Sweep(void)
{
	HASH_SEQ_STATUS status;
	DependedTable *table;
	ListCell *lc;

	hash_seq_init(&status, tables);
	while ((table = hash_seq_search(&status)) != NULL)
	{
		/* One that resyncs comes back at once, and must not miss anything. */
		if (table->nviews > 0 || !TimestampDifferenceExceeds(table->unused, feed_now, KEEP_WANTED))
			continue;
		if (table->narrowed)
			wanted_changed = true;
		foreach(lc, table->groups)
			hash_destroy(((ValueGroup *) lfirst(lc))->buckets);
		list_free_deep(table->groups);
		hash_search(tables, &table->relid, HASH_REMOVE, NULL);
	}
}

void
DependencyMaintain(void)
{
	HASH_SEQ_STATUS status;
	DependedTable *table;

	if (tables == NULL)
		return;
	if (TimestampDifferenceExceeds(swept, feed_now, 10000))
	{
		swept = feed_now;
		Sweep();
	}
	if (!wanted_changed)
		return;

	/* What has no place is told as touched only, which concerns everybody. */
	wanted_changed = false;
	LWLockAcquire(shared_feeds->lock, LW_EXCLUSIVE);
	feed_shared->nwanted = 0;
	hash_seq_init(&status, tables);
	while ((table = hash_seq_search(&status)) != NULL)
		if (table->narrowed && feed_shared->nwanted < MAX_WANTED)
			feed_shared->wanted[feed_shared->nwanted++] = table->relid;
	pg_atomic_fetch_add_u32(&feed_shared->wanted_version, 1);
	LWLockRelease(shared_feeds->lock);
}

/* ---- everybody who is ready ---- */

typedef struct Look
{
	LogTransaction *transaction;
	List *concerned;
	RowChange *change; /* NULL: it is not known what was done */
} Look;

/* The subscriptions that have this view, if the change concerns them. */
static void
LookAtView(Look *look, DependencyDetails *details)
{
	dlist_iter iter;
	dlist_iter iter2;
	int i;

	if (details->kind == NARROW_NONE || details->found == last_look)
		return;
	if (look->change == NULL || details->kind == NARROW_ANY || !details->compares_row)
	{
		JudgedRow row = {NULL, NULL};

		if (look->change != NULL && !DependencyChangeConcerns(look->change, details, &row))
			return;
		details->found = last_look;
	}
	dlist_foreach(iter, &details->identity->connections)
	{
		Connection *connection = dlist_container(Connection, identity_node, iter.cur);

		dlist_foreach(iter2, &connection->subscriptions)
		{
			Subscription *s = dlist_container(Subscription, connection_node, iter2.cur);
			JudgedRow row = {s, NULL};

			if (s->state != SUB_READY || s->concerned == last_look)
				continue;
			for (i = 0; i < s->instance->channel->nviews; i++)
				if (s->views[i] == details->view)
					break;
			if (i == s->instance->channel->nviews)
				continue;
			if (details->found != last_look &&
				!DependencyChangeConcerns(look->change, details, &row))
				continue;
			s->concerned = last_look;
			look->concerned = lappend(look->concerned, s);
		}
	}
}

static void
LookAtBucket(Look *look, Bucket *bucket)
{
	ListCell *lc;

	if (bucket != NULL)
		foreach(lc, bucket->details)
			LookAtView(look, lfirst(lc));
}

static void
LookUp(Look *look, ValueGroup *group, const Image *image)
{
	int index = group->column - 1;
	TupleDesc tupdesc = look->change->desc->tupdesc;

	if (!image->exists)
		return;
	if (index >= tupdesc->natts || !image->known[index] ||
		TupleDescAttr(tupdesc, index)->atttypid != group->column_type)
	{
		HASH_SEQ_STATUS status;
		Bucket *bucket;

		hash_seq_init(&status, group->buckets);
		while ((bucket = hash_seq_search(&status)) != NULL)
			LookAtBucket(look, bucket);
	}
	else if (!image->isnull[index])
	{
		uint32 hash = DatumGetUInt32(
			FunctionCall1Coll(&group->column_hash, group->collation, image->values[index]));

		LookAtBucket(look, hash_search(group->buckets, &hash, HASH_FIND, NULL));
	}
}

static void
LookAtAll(Look *look, DependedTable *table)
{
	dlist_iter iter;

	look->change = NULL;
	dlist_foreach(iter, &table->details)
		LookAtView(look, dlist_container(DependencyDetails, node, iter.cur));
}

static void
LookAtTable(Look *look, DependedTable *table)
{
	LogTransaction *transaction = look->transaction;
	int nchanges = 0;
	int i;

	for (i = 0; i < transaction->nchanges; i++)
		if (transaction->changes[i].desc->relid == table->relid)
			nchanges++;
	if (!DependencyIsTold(transaction, table->relid) ||
		(uint64) nchanges * table->nunindexed > MAX_COMPARISONS)
	{
		LookAtAll(look, table);
		return;
	}
	for (i = 0; i < transaction->nchanges; i++)
	{
		RowChange change;
		dlist_iter iter;
		ListCell *lc;

		if (transaction->changes[i].desc->relid != table->relid)
			continue;
		DependencyMakeChange(&change, &transaction->changes[i]);
		look->change = &change;
		dlist_foreach(iter, &table->unindexed)
			LookAtView(look, dlist_container(DependencyDetails, unindexed_node, iter.cur));
		foreach(lc, table->groups)
		{
			LookUp(look, lfirst(lc), &change.old_row);
			LookUp(look, lfirst(lc), &change.new_row);
		}
		look->change = NULL;
	}
}

/* Type functions may raise errors; then nothing is known of the changes. */
static void
LookSafely(Look *look, DependedTable *table)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		LookAtTable(look, table);
	}
	PG_CATCH();
	{
		if (geterrcode() == ERRCODE_ADMIN_SHUTDOWN)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		FlushErrorState();
		LookAtAll(look, table);
	}
	PG_END_TRY();
}

List *
DependencyConcerned(LogTransaction *transaction)
{
	Look look = {transaction, NIL, NULL};
	List *result;
	MemoryContext old;
	int i;

	if (tables == NULL)
		return NIL;
	old = MemoryContextSwitchTo(scratch);
	last_look++;
	for (i = 0; i < transaction->ntouched; i++)
	{
		DependedTable *table = FindTable(transaction->touched[i]);

		if (table != NULL)
			LookSafely(&look, table);
	}
	MemoryContextSwitchTo(old);
	result = list_copy(look.concerned);
	MemoryContextReset(scratch);
	return result;
}
