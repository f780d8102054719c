/*-------------------------------------------------------------------------
 *
 * query_narrow.c
 *		Which changes of the tables that a policy reads can make a difference
 *		to it.
 *
 * This is read off the plan, not the query.  A scan hands on only rows that
 * fulfil its conditions, so a row that fails one of them, before and after a
 * change, cannot make a difference to anything above the scan: whatever that
 * is (outer joins, NOT EXISTS, aggregates, recursion), the planner has already
 * decided which conditions may be checked so early.  And what is true of the
 * result of one plan is true of all plans of the query, as long as the query
 * has one result.  Where it has not (LIMIT, aggregates that depend on the
 * order of rows), any change of a row counts as a change of all its columns;
 * where volatile functions are called, nothing is narrowed at all.
 *
 * The plan is read in query_plan.c, conditions are in query_conditions.c; here
 * are SQL functions, and what is told to the feed worker.
 *
 * SQL functions that were not inlined have their bodies planned and read in
 * the same way.  Other functions that are not declared IMMUTABLE might read
 * anything: then the policy is opaque, and nothing is narrowed.
 *
 * Process: query worker, in a transaction and as the identity.  Locks: those
 * of planning.  Memory: CurrentMemoryContext, which is the policy's when
 * planning and the transaction's when describing.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "query_narrow.h"

#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_proc.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "tcop/tcopprot.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

/* More values, or larger ones, than these are not worth comparing with. */
#define MAX_VALUES	   100
#define MAX_VALUE_SIZE 2000

/* SQL functions whose bodies are planned for one policy. */
#define MAX_FUNCTIONS 50

/* ----------------------------------------------------------------------
 * SQL functions
 * ----------------------------------------------------------------------
 */

/* Plans and reads a function's body, as its caller or its owner. */
static void
ReadFunction(Narrowing *narrowing, Oid function, List **relids, List **functions, bool *opaque)
{
	HeapTuple tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Form_pg_proc form;
	Datum config;
	bool isnull;
	int nestlevel = 0;
	Oid user;
	int sec_context;
	List *called = NIL;
	ListCell *cell;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);
	form = (Form_pg_proc) GETSTRUCT(tuple);
	if (FunctionIsPolymorphic(form))
	{
		*opaque = true;
		ReleaseSysCache(tuple);
		return;
	}

	GetUserIdAndSecContext(&user, &sec_context);
	if (form->prosecdef)
		SetUserIdAndSecContext(form->proowner, sec_context | SECURITY_LOCAL_USERID_CHANGE);
	config = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_proconfig, &isnull);
	if (!isnull)
	{
		nestlevel = NewGUCNestLevel();
		ProcessGUCArray(DatumGetArrayTypeP(config), PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE);
	}

	foreach(cell, FunctionBody(tuple, NULL))
	{
		Query *query = lfirst_node(Query, cell);
		PlannedStmt *plan;

		if (query->commandType != CMD_SELECT)
		{
			*opaque = true;
			continue;
		}
		plan = pg_plan_query(query, "", 0, NULL);
		*relids = list_concat_unique_oid(*relids, plan->relationOids);
		PlanReadStatement(narrowing, plan, 0, form->prosecdef, &called, opaque);
	}

	/*
	 * What it calls runs as its owner and with its settings, but would be planned
	 * without them.
	 */
	if (called != NIL && (form->prosecdef || nestlevel > 0))
		*opaque = true;
	*functions = list_concat_unique_oid(*functions, called);

	if (nestlevel > 0)
		AtEOXact_GUC(true, nestlevel);
	SetUserIdAndSecContext(user, sec_context);
	ReleaseSysCache(tuple);
}

/* ----------------------------------------------------------------------
 * Others' code may fail without harm to the transaction
 * ----------------------------------------------------------------------
 */

typedef void (*Attempt)(void *arg);

static bool
Succeeds(Attempt attempt, void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool ok = true;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		attempt(arg);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;

		/* Somebody's lock and our own limits are not the code's fault. */
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED ||
			error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE ||
			ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_TRANSACTION_ROLLBACK ||
			ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_OPERATOR_INTERVENTION)
			ReThrowError(error);
		FreeErrorData(error);
		ok = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return ok;
}

typedef struct FunctionsAttempt
{
	Narrowing *narrowing;
	List *todo;
	List **relids;
	bool *opaque;
} FunctionsAttempt;

static void
ReadFunctions(void *arg)
{
	FunctionsAttempt *attempt = arg;
	ListCell *cell;

	/* The list grows while it is walked through. */
	foreach(cell, attempt->todo)
	{
		if (foreach_current_index(cell) >= MAX_FUNCTIONS)
		{
			*attempt->opaque = true;
			return;
		}
		ReadFunction(attempt->narrowing, lfirst_oid(cell), attempt->relids, &attempt->todo,
					 attempt->opaque);
	}
}

/* ----------------------------------------------------------------------
 * Interface
 * ----------------------------------------------------------------------
 */

Narrowing *
NarrowPlan(PlannedStmt *plan, int nparams, List **relids, List **functions, bool *opaque)
{
	Narrowing *narrowing = palloc0(sizeof(Narrowing));
	FunctionsAttempt attempt = {narrowing, NIL, relids, opaque};

	PlanReadStatement(narrowing, plan, nparams, false, &attempt.todo, opaque);
	if (attempt.todo != NIL && !Succeeds(ReadFunctions, &attempt))
		*opaque = true;
	*functions = list_concat_unique_oid(*functions, attempt.todo);
	if (*opaque)
		narrowing->nothing = true;
	return narrowing;
}

typedef struct ValuesAttempt
{
	Narrowing *narrowing;
	MemoryContext context;
	Datum **values; /* by statement */
	bool **isnull;
} ValuesAttempt;

static void
FindValues(void *arg)
{
	ValuesAttempt *attempt = arg;
	ListCell *cell;

	foreach(cell, attempt->narrowing->values)
	{
		PlannedStmt *plan = lfirst(cell);
		int index = foreach_current_index(cell);
		QueryDesc *query;
		TupleTableSlot *slot;
		MemoryContext old;
		int natts;
		int i;

		if (plan == NULL)
			continue;
		query = CreateQueryDesc(plan, "", GetActiveSnapshot(), InvalidSnapshot, None_Receiver, NULL,
								NULL, 0);
		ExecutorStart(query, 0);
		old = MemoryContextSwitchTo(query->estate->es_query_cxt);
		slot = ExecProcNode(query->planstate);
		slot_getallattrs(slot);
		natts = slot->tts_tupleDescriptor->natts;
		MemoryContextSwitchTo(attempt->context);
		attempt->values[index] = palloc(sizeof(Datum) * natts);
		attempt->isnull[index] = palloc(sizeof(bool) * natts);
		for (i = 0; i < natts; i++)
		{
			Form_pg_attribute att = TupleDescAttr(slot->tts_tupleDescriptor, i);

			attempt->isnull[index][i] = slot->tts_isnull[i];
			if (slot->tts_isnull[i])
				attempt->values[index][i] = (Datum) 0;
			else if (att->attlen == -1)
				attempt->values[index][i] = PointerGetDatum(
					PG_DETOAST_DATUM_COPY(slot->tts_values[i]));
			else
				attempt->values[index][i] = datumCopy(slot->tts_values[i], att->attbyval,
													  att->attlen);
		}
		MemoryContextSwitchTo(old);
		ExecutorFinish(query);
		ExecutorEnd(query);
		FreeQueryDesc(query);
		MemoryContextSwitchTo(attempt->context);
	}
}

static Size
ValueSize(Datum value, Oid type)
{
	int16 length;
	bool byval;

	get_typlenbyval(type, &length, &byval);
	return byval ? sizeof(Datum) : datumGetSize(value, byval, length);
}

static void
PutValue(StringInfo out, Datum value, Oid type)
{
	int16 length;
	bool byval;

	get_typlenbyval(type, &length, &byval);
	if (byval)
		WirePutBytes(out, (char *) &value, sizeof(Datum));
	else
		WirePutBytes(out, DatumGetPointer(value), datumGetSize(value, byval, length));
}

/* Appends the condition; false: too many or too large values. */
static bool
PutCondition(StringInfo out, const Condition *condition, Datum value, bool isnull)
{
	Datum *elements = &value;
	bool *nulls = &isnull;
	int n = 1;
	int kept = 0;
	int16 length;
	bool byval;
	int i;

	if (condition->row_column == 0 && condition->is_array && !isnull)
	{
		char align;

		get_typlenbyvalalign(condition->type, &length, &byval, &align);
		deconstruct_array(DatumGetArrayTypeP(value), condition->type, length, byval, align,
						  &elements, &nulls, &n);
	}
	if (condition->row_column == 0)
	{
		/* Equality is strict: what is null equals nothing. */
		for (i = 0; i < n; i++)
		{
			if (nulls[i])
				continue;
			if (ValueSize(elements[i], condition->type) > MAX_VALUE_SIZE)
				return false;
			kept++;
		}
		if (kept > MAX_VALUES)
			return false;
	}

	WirePutU16(out, (uint16) condition->column);
	WirePutU32(out, condition->column_type);
	WirePutU32(out, condition->equality);
	WirePutU32(out, condition->column_hash);
	WirePutU32(out, condition->value_hash);
	WirePutU32(out, condition->collation);
	WirePutU16(out, (uint16) condition->row_column);
	WirePutU32(out, condition->type);
	if (condition->row_column != 0)
		return true;
	get_typlenbyval(condition->type, &length, &byval);
	WirePutU16(out, (uint16) length);
	WirePutU8(out, byval);
	WirePutU16(out, (uint16) kept);
	for (i = 0; i < n; i++)
		if (!nulls[i])
			PutValue(out, elements[i], condition->type);
	return true;
}

static void
PutScan(StringInfo out, const TableScan *scan, Datum *values, bool *isnull)
{
	StringInfoData list;
	int n = 0;
	ListCell *cell;

	initStringInfo(&list);
	foreach(cell, scan->conditions)
	{
		Condition *condition = lfirst(cell);
		bool fixed = condition->row_column == 0;

		if (PutCondition(&list, condition, fixed ? values[condition->value] : (Datum) 0,
						 fixed && isnull[condition->value]))
			n++;
	}
	WirePutU16(out, (uint16) n);
	appendBinaryStringInfo(out, list.data, list.len);
	pfree(list.data);
}

/* What of one table matters; `attempt` NULL: all of it. */
static void
PutDependency(StringInfo out, Oid relid, const ValuesAttempt *attempt)
{
	char relkind = get_rel_relkind(relid);
	Narrowing *narrowing;
	Bitmapset *columns = NULL;
	bool whole;
	int nscans = 0;
	int column = -1;
	ListCell *cell;

	/* A change of a partition is one of the partitioned table, too. */
	if (relkind == RELKIND_PARTITIONED_TABLE || relkind == RELKIND_VIEW)
	{
		WirePutU8(out, attempt != NULL ? NARROW_NONE : NARROW_ANY);
		return;
	}
	if (attempt == NULL || list_member_oid(attempt->narrowing->anyhow, relid))
	{
		WirePutU8(out, NARROW_ANY);
		return;
	}

	narrowing = attempt->narrowing;
	whole = narrowing->all_columns;
	foreach(cell, narrowing->scans)
	{
		TableScan *scan = lfirst(cell);

		if (scan->relid != relid)
			continue;
		nscans++;
		whole = whole || scan->whole;
		columns = bms_add_members(columns, scan->columns);
	}

	/* It is no part of a plan, but was declared. */
	if (nscans == 0)
	{
		WirePutU8(out, NARROW_ANY);
		return;
	}
	WirePutU8(out, NARROW_SCANS);
	if (whole)
		WirePutU16(out, 0xFFFF);
	else
	{
		WirePutU16(out, (uint16) bms_num_members(columns));
		while ((column = bms_next_member(columns, column)) >= 0)
			WirePutU16(out, (uint16) (column + FirstLowInvalidHeapAttributeNumber));
	}
	WirePutU16(out, (uint16) nscans);
	foreach(cell, narrowing->scans)
	{
		TableScan *scan = lfirst(cell);

		if (scan->relid == relid)
			PutScan(out, scan, attempt->values[scan->statement], attempt->isnull[scan->statement]);
	}
}

static bool
HasValues(const Narrowing *narrowing)
{
	ListCell *cell;

	foreach(cell, narrowing->values)
		if (lfirst(cell) != NULL)
			return true;
	return false;
}

void
NarrowDescribe(Policy *policy, List *others, StringInfo out)
{
	Narrowing *narrowing = policy->narrowing;
	ValuesAttempt attempt = {narrowing, CurrentMemoryContext, NULL, NULL};
	bool known = narrowing != NULL && !narrowing->nothing;
	StringInfoData list;
	int i;

	if (known)
	{
		int n = list_length(narrowing->values);

		attempt.values = palloc0(sizeof(Datum *) * Max(n, 1));
		attempt.isnull = palloc0(sizeof(bool *) * Max(n, 1));
		known = !HasValues(narrowing) || Succeeds(FindValues, &attempt);
	}

	initStringInfo(&list);
	WirePutU8(&list, policy->opaque);
	for (i = 0; i < policy->ndependencies; i++)
		PutDependency(&list, policy->dependencies[i], known ? &attempt : NULL);
	for (i = 0; i < list_length(others); i++)
		WirePutU8(&list, NARROW_ANY);
	WirePutBytes(out, list.data, list.len);
	pfree(list.data);
}
