/*-------------------------------------------------------------------------
 *
 * query_plan.c
 *		Reading plans: which columns of which tables they use, and what the
 *		rows fulfil that their scans hand on.
 *
 * The columns that are used are found by following from the top what each node
 * takes of the one below, because scans hand on whole rows where this costs
 * nothing.  A kind of node that is not known here narrows nothing.
 *
 * Process: query worker, in the transaction that has planned.  Locks: none.  Memory: CurrentMemoryContext, whose
 * life is that of the plan.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "query_narrow.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/transam.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "parser/parsetree.h"
#include "rewrite/rewriteManip.h"
#include "utils/lsyscache.h"
#include "utils/relcache.h"
#include "utils/syscache.h"

/* ----------------------------------------------------------------------
 * Plan nodes
 * ----------------------------------------------------------------------
 */

void
PlanExamineNode(Plan *plan, NodeParts *parts)
{
	ListCell *cell;

	memset(parts, 0, sizeof(NodeParts));
	switch (nodeTag(plan))
	{
		case T_Result:
			parts->expressions = list_make1(((Result *) plan)->resconstantqual);
			break;
		case T_ProjectSet:
			parts->all_targets = true;
			break;
		case T_Append:
			parts->children = ((Append *) plan)->appendplans;
			break;
		case T_MergeAppend:
			parts->children = ((MergeAppend *) plan)->mergeplans;
			break;
		case T_BitmapAnd:
			parts->children = ((BitmapAnd *) plan)->bitmapplans;
			break;
		case T_BitmapOr:
			parts->children = ((BitmapOr *) plan)->bitmapplans;
			break;
		case T_RecursiveUnion:
		case T_SetOp:
		case T_Group:
			parts->all_targets = parts->all_inputs = true;
			break;
		case T_Unique:
			/* Of equal keys it takes the first. */
			parts->all_targets = parts->all_inputs = parts->order = true;
			break;
		case T_SeqScan:
			parts->conditions = list_make1(plan->qual);
			break;
		case T_IndexScan:
		{
			IndexScan *scan = (IndexScan *) plan;

			parts->expressions = list_make2(scan->indexqualorig, scan->indexorderbyorig);
			parts->conditions = list_make2(plan->qual, scan->indexqualorig);
		}
		break;
		case T_IndexOnlyScan:
		{
			IndexOnlyScan *scan = (IndexOnlyScan *) plan;

			parts->expressions = list_make2(scan->indexqual, scan->indexorderby);
			parts->conditions = list_make2(plan->qual, scan->indexqual);
			parts->index_tlist = scan->indextlist;
		}
		break;
		case T_BitmapIndexScan:
			parts->expressions = list_make1(((BitmapIndexScan *) plan)->indexqualorig);
			break;
		case T_BitmapHeapScan:
		{
			BitmapHeapScan *scan = (BitmapHeapScan *) plan;

			parts->expressions = list_make1(scan->bitmapqualorig);
			parts->conditions = list_make2(plan->qual, scan->bitmapqualorig);
		}
		break;
		case T_TidScan:
			parts->expressions = list_make1(((TidScan *) plan)->tidquals);
			parts->conditions = list_make1(plan->qual);
			break;
		case T_TidRangeScan:
			parts->expressions = list_make1(((TidRangeScan *) plan)->tidrangequals);
			parts->conditions = list_make1(plan->qual);
			break;
		case T_SubqueryScan:
		case T_CteScan:
		case T_WorkTableScan:
		case T_Material:
			break;
		case T_FunctionScan:
			parts->expressions = list_make1(((FunctionScan *) plan)->functions);
			break;
		case T_ValuesScan:
			parts->expressions = list_make1(((ValuesScan *) plan)->values_lists);
			break;
		case T_TableFuncScan:
			parts->expressions = list_make1(((TableFuncScan *) plan)->tablefunc);
			break;
		case T_NestLoop:
			parts->expressions = list_make1(((Join *) plan)->joinqual);
			foreach(cell, ((NestLoop *) plan)->nestParams)
				parts->expressions = lappend(parts->expressions,
											 ((NestLoopParam *) lfirst(cell))->paramval);
			break;
		case T_MergeJoin:
			parts->expressions = list_make2(((Join *) plan)->joinqual,
											((MergeJoin *) plan)->mergeclauses);
			break;
		case T_HashJoin:
			parts->expressions = list_make3(((Join *) plan)->joinqual,
											((HashJoin *) plan)->hashclauses,
											((HashJoin *) plan)->hashkeys);
			break;
		case T_Hash:
			parts->expressions = list_make1(((Hash *) plan)->hashkeys);
			break;
		case T_Memoize:
			parts->expressions = list_make1(((Memoize *) plan)->param_exprs);
			break;
		case T_Sort:
		case T_IncrementalSort:
			parts->ninputs = ((Sort *) plan)->numCols;
			parts->inputs = ((Sort *) plan)->sortColIdx;
			break;
		case T_Agg:
			parts->ninputs = ((Agg *) plan)->numCols;
			parts->inputs = ((Agg *) plan)->grpColIdx;
			parts->all_inputs = ((Agg *) plan)->chain != NIL;
			break;
		case T_WindowAgg:
		{
			WindowAgg *agg = (WindowAgg *) plan;

			parts->all_inputs = parts->order = true;
			parts->expressions = list_make3(agg->startOffset, agg->endOffset, agg->runCondition);
		}
		break;
		case T_Limit:
			parts->all_inputs = parts->order = true;
			parts->expressions = list_make2(((Limit *) plan)->limitOffset,
											((Limit *) plan)->limitCount);
			break;
		default:
			/* Foreign tables, TABLESAMPLE, locked rows, other extensions'. */
			parts->unknown = true;
			break;
	}
}

/* ----------------------------------------------------------------------
 * Functions
 * ----------------------------------------------------------------------
 */

/* Do the order of rows, or how sums are rounded, make no difference to it? */
static bool
OrderIsNoMatter(Oid aggregate)
{
	static const char *const names[] = {"count", "min", "max", "bool_and", "bool_or", "every"};
	char *name = aggregate < FirstNormalObjectId ? get_func_name(aggregate) : NULL;
	int i;

	for (i = 0; name != NULL && i < lengthof(names); i++)
		if (strcmp(name, names[i]) == 0)
			return true;
	return false;
}

static bool
NoteFunction(Oid function, void *arg)
{
	Statement *statement = arg;
	HeapTuple tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Form_pg_proc form;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);
	form = (Form_pg_proc) GETSTRUCT(tuple);
	if (form->prokind == PROKIND_AGGREGATE)
	{
		if (!OrderIsNoMatter(function))
			statement->narrowing->all_columns = true;
	}
	else if (form->provolatile == PROVOLATILE_VOLATILE && function < FirstNormalObjectId)
		statement->narrowing->nothing = true;
	else if (function >= FirstNormalObjectId && form->prolang == SQLlanguageId)
		*statement->functions = list_append_unique_oid(*statement->functions, function);
	else if (function >= FirstNormalObjectId && form->provolatile != PROVOLATILE_IMMUTABLE)
		*statement->opaque = true;
	ReleaseSysCache(tuple);
	return false; /* go on */
}

static bool
NoteFunctions(Node *node, void *arg)
{
	Statement *statement = arg;

	if (node == NULL)
		return false;
	(void) check_functions_in_node(node, NoteFunction, arg);
	if (IsA(node, NextValueExpr))
		statement->narrowing->nothing = true;
	if (IsA(node, SubPlan))
		statement->subplans = lappend(statement->subplans, node);
	return expression_tree_walker(node, NoteFunctions, arg);
}

/* ----------------------------------------------------------------------
 * Columns
 * ----------------------------------------------------------------------
 */

typedef struct UsedColumns
{
	Statement *statement;
	List *index_tlist;
	Bitmapset *left;  /* columns of the trees below */
	Bitmapset *right; /* likewise */
	Index subquery;	  /* a SubqueryScan's number */
	Bitmapset *below; /* columns of its plan */
	bool all_below;
} UsedColumns;

static bool
CollectColumns(Node *node, void *arg)
{
	UsedColumns *used = arg;

	if (node == NULL)
		return false;
	if (IsA(node, Var))
	{
		Var *var = (Var *) node;
		Statement *statement = used->statement;
		RangeTblEntry *rte;

		if (var->varno == OUTER_VAR)
			used->left = bms_add_member(used->left, var->varattno);
		else if (var->varno == INNER_VAR)
			used->right = bms_add_member(used->right, var->varattno);
		else if (var->varno == INDEX_VAR)
		{
			if (var->varattno > 0 && var->varattno <= list_length(used->index_tlist))
				return CollectColumns(
					(Node *) ((TargetEntry *) list_nth(used->index_tlist, var->varattno - 1))->expr,
					arg);
			statement->narrowing->nothing = true;
		}
		else if (IS_SPECIAL_VARNO(var->varno) || var->varno > list_length(statement->plan->rtable))
			statement->narrowing->nothing = true;
		else if (var->varno == used->subquery)
		{
			if (var->varattno > 0)
				used->below = bms_add_member(used->below, var->varattno);
			else
				used->all_below = true;
		}
		else
		{
			rte = rt_fetch(var->varno, statement->plan->rtable);
			if (rte->rtekind == RTE_RELATION)
				statement->columns[var->varno] = bms_add_member(
					statement->columns[var->varno],
					var->varattno - FirstLowInvalidHeapAttributeNumber);
		}
		return false;
	}
	return expression_tree_walker(node, CollectColumns, arg);
}

/* What the rows fulfil that the scanned index has; NIL unless it is partial. */
static List *
IndexPredicate(Plan *plan)
{
	Index scan = ((Scan *) plan)->scanrelid;
	Oid indexid = IsA(plan, IndexScan) ? ((IndexScan *) plan)->indexid
									   : ((IndexOnlyScan *) plan)->indexid;
	Relation index = index_open(indexid, NoLock); /* locked by the planner */
	List *predicate = RelationGetIndexPredicate(index);

	index_close(index, NoLock);
	ChangeVarNodes((Node *) predicate, 1, scan, 0);
	return predicate;
}

/*
 * Reads a node and what is below it.  Of its columns those in `needed` are used
 * above, or all.
 */
static void
ReadNode(Statement *statement, Plan *plan, bool all, Bitmapset *needed)
{
	UsedColumns used = {0};
	NodeParts parts;
	ListCell *cell;
	int i;

	if (plan == NULL)
		return;
	check_stack_depth();
	PlanExamineNode(plan, &parts);
	if (parts.unknown)
	{
		statement->narrowing->nothing = true;
		return;
	}
	if (parts.order)
		statement->narrowing->all_columns = true;

	/* What is computed and not used above may still call functions. */
	(void) NoteFunctions((Node *) plan->targetlist, statement);
	(void) NoteFunctions((Node *) plan->qual, statement);
	(void) NoteFunctions((Node *) parts.expressions, statement);

	/*
	 * What the predicate of a partial index implies is checked nowhere else, and
	 * its columns are used nowhere else.  Bitmap scans recheck it.
	 */
	if (IsA(plan, IndexScan) || IsA(plan, IndexOnlyScan))
	{
		List *predicate = IndexPredicate(plan);

		parts.expressions = lappend(parts.expressions, predicate);
		parts.conditions = lappend(parts.conditions, predicate);
	}

	used.statement = statement;
	used.index_tlist = parts.index_tlist;
	if (IsA(plan, SubqueryScan))
		used.subquery = ((Scan *) plan)->scanrelid;
	foreach(cell, plan->targetlist)
	{
		TargetEntry *target = lfirst(cell);

		if (all || parts.all_targets || bms_is_member(target->resno, needed))
			(void) CollectColumns((Node *) target->expr, &used);
	}
	(void) CollectColumns((Node *) plan->qual, &used);
	(void) CollectColumns((Node *) parts.expressions, &used);
	(void) CollectColumns((Node *) plan->initPlan, &used);
	statement->init_plans = list_concat(statement->init_plans, plan->initPlan);
	for (i = 0; i < parts.ninputs; i++)
		used.left = bms_add_member(used.left, parts.inputs[i]);

	if (parts.conditions != NIL)
	{
		Index scan = ((Scan *) plan)->scanrelid;

		if (statement->scanned[scan])
			statement->narrowing->nothing = true;
		statement->scanned[scan] = true;
		statement->conditions[scan] = parts.conditions;
		statement->index_tlists[scan] = parts.index_tlist;
	}

	ReadNode(statement, plan->lefttree, parts.all_inputs, used.left);
	ReadNode(statement, plan->righttree, parts.all_inputs, used.right);
	foreach(cell, parts.children)
		ReadNode(statement, lfirst(cell), true, NULL);
	if (IsA(plan, SubqueryScan))
		ReadNode(statement, ((SubqueryScan *) plan)->subplan, used.all_below, used.below);
}

/* ----------------------------------------------------------------------
 * Statements
 * ----------------------------------------------------------------------
 */

static TableScan *
MakeScan(Statement *statement, Index index, Oid relid)
{
	TableScan *scan = palloc0(sizeof(TableScan));
	int column = -1;

	scan->relid = relid;
	scan->statement = list_length(statement->narrowing->values);
	scan->columns = statement->columns[index];
	while ((column = bms_next_member(scan->columns, column)) >= 0)
		if (column + FirstLowInvalidHeapAttributeNumber <= 0)
			scan->whole = true; /* the row itself, or where and when it was written */
	scan->conditions = ConditionsOf(statement, index);
	return scan;
}

void
PlanReadStatement(Narrowing *narrowing, PlannedStmt *plan, int nparams, bool as_somebody,
				  List **functions, bool *opaque)
{
	Statement statement = {0};
	int size = list_length(plan->rtable) + 1;
	bool alternatives = false;
	List *scanned = NIL;
	ListCell *cell;
	Index index;

	statement.narrowing = narrowing;
	statement.plan = plan;
	statement.nparams = nparams;
	statement.as_somebody = as_somebody;
	statement.functions = functions;
	statement.opaque = opaque;
	statement.columns = palloc0(sizeof(Bitmapset *) * size);
	statement.conditions = palloc0(sizeof(List *) * size);
	statement.index_tlists = palloc0(sizeof(List *) * size);
	statement.scanned = palloc0(sizeof(bool) * size);

	if (plan->rowMarks != NIL || plan->hasModifyingCTE)
		narrowing->nothing = true;
	ReadNode(&statement, plan->planTree, true, NULL);
	foreach(cell, plan->subplans)
	{
		if (lfirst(cell) == NULL)
			alternatives = true;
		ReadNode(&statement, lfirst(cell), true, NULL);
	}

	/* An array has its elements in the order in which they came. */
	foreach(cell, list_concat_copy(statement.init_plans, statement.subplans))
	{
		SubPlan *subplan = lfirst(cell);

		if (subplan->subLinkType == ARRAY_SUBLINK &&
			!ConditionsPlanIsFixed(&statement, list_nth(plan->subplans, subplan->plan_id - 1)))
			narrowing->all_columns = true;
	}

	for (index = 1; index < size; index++)
		if (statement.scanned[index])
		{
			RangeTblEntry *rte = rt_fetch(index, plan->rtable);

			if (rte->rtekind != RTE_RELATION)
				continue;
			scanned = lappend_oid(scanned, rte->relid);
			narrowing->scans = lappend(narrowing->scans, MakeScan(&statement, index, rte->relid));
		}

	/*
	 * A table that is nowhere scanned was found to make no difference, by
	 * reasoning that we do not repeat; but a subplan for which there was an
	 * alternative leaves its tables behind, too.
	 */
	for (index = 1; index < size; index++)
	{
		RangeTblEntry *rte = rt_fetch(index, plan->rtable);

		if (rte->rtekind == RTE_RELATION && !statement.scanned[index] && !rte->inh &&
			!(alternatives && list_member_oid(scanned, rte->relid)))
			narrowing->anyhow = list_append_unique_oid(narrowing->anyhow, rte->relid);
	}
	narrowing->values = lappend(narrowing->values, ConditionsValues(&statement));
}
