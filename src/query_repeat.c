/*-------------------------------------------------------------------------
 *
 * query_repeat.c
 *		Plans of policies that are begun once and run for many rows and many
 *		identities.
 *
 * To begin a plan costs more than to run it.  When it is run again the executor
 * keeps what does not depend on a parameter that has changed: hash tables,
 * results of InitPlans, sorted rows.  It does not know of the row, which is
 * external parameters, nor of the claims, which are a setting.  So two
 * parameters of the executor's own kind are put into the plan: all of it depends
 * on "identity", and what reads the row also on "row".  Nothing ever reads them;
 * that one has changed makes the executor find everything out again.
 *
 * That is done only to plans that consist of what is known here, and that call
 * nothing but functions of the server that neither change anything nor can call
 * somebody else's: so there is nothing in the transaction that one identity can
 * leave behind for the next.  All others are begun for each row, in a
 * transaction of each identity (query_verdicts.c).
 *
 * Policies often say "room IN (SELECT ... of the user)".  As such it is a hash
 * table of all rooms of the user; for a few rows it is cheaper to look for
 * these, so there is a second plan with EXISTS, and the costs decide.
 *
 * Process: query worker.  Locks: none but the planner's.  Memory: plans in the
 * policy's context; what was begun ends with the transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "query_internal.h"
#include "query_narrow.h"

#include "access/transam.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "rewrite/rewriteManip.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

struct RepeatedRun
{
	const RepeatedPlan *plan;
	QueryDesc *query;
	bool begun;
};

/* What is found out about one tree of a plan. */
typedef struct TreeFacts
{
	bool reads_row;
	Bitmapset *subplans; /* plan_id of those that it uses */
	Bitmapset **hashed;	 /* and of those with hash tables, in all trees */
} TreeFacts;

/* ----------------------------------------------------------------------
 * What may be repeated
 * ----------------------------------------------------------------------
 */

/* Values of other types may have code of their own: domains, casts to json. */
static bool
TypeIsPlain(Oid type)
{
	Oid element;

	if (type < FirstNormalObjectId)
		return true;
	element = get_element_type(type);
	return get_typtype(OidIsValid(element) ? element : type) == TYPTYPE_ENUM;
}

static bool
FunctionIsForeign(Oid function, void *arg)
{
	char *name;

	if (function >= FirstNormalObjectId || func_volatile(function) == PROVOLATILE_VOLATILE)
		return true;
	/* These run queries of their own. */
	name = get_func_name(function);
	return name == NULL || strstr(name, "_to_xml") != NULL;
}

/* True: there is something that may not be repeated. */
static bool
FindForeign(Node *node, TreeFacts *facts)
{
	if (node == NULL)
		return false;
	switch (nodeTag(node))
	{
		case T_List:
		case T_TargetEntry:
		case T_BoolExpr:
		case T_NullTest:
		case T_BooleanTest:
		case T_CaseWhen:
		case T_RowCompareExpr:
		case T_ScalarArrayOpExpr:
			break;
		case T_Param:
			if (((Param *) node)->paramkind == PARAM_EXTERN)
				facts->reads_row = true;
			/* FALLTHROUGH */
		case T_Var:
		case T_Const:
		case T_FuncExpr:
		case T_OpExpr:
		case T_DistinctExpr:
		case T_NullIfExpr:
		case T_RelabelType:
		case T_CoerceViaIO:
		case T_ArrayCoerceExpr:
		case T_ArrayExpr:
		case T_RowExpr:
		case T_FieldSelect:
		case T_SubscriptingRef:
		case T_CaseExpr:
		case T_CaseTestExpr:
		case T_CoalesceExpr:
		case T_MinMaxExpr:
		case T_Aggref:
		case T_SQLValueFunction:
			if (!TypeIsPlain(exprType(node)))
				return true;
			break;
		case T_SubPlan:
		{
			SubPlan *subplan = (SubPlan *) node;

			/*
			 * Each partition's scan has a copy of its table's conditions, with a hash
			 * table of its own, but there is one plan below all of them: the first
			 * that looks takes back that it has changed, and the others would keep
			 * what they have.
			 */
			if (subplan->useHashTable && bms_is_member(subplan->plan_id, *facts->hashed))
				return true;
			if (subplan->useHashTable)
				*facts->hashed = bms_add_member(*facts->hashed, subplan->plan_id);
			facts->subplans = bms_add_member(facts->subplans, subplan->plan_id);
		}
		break;
		case T_RangeTblFunction:
		{
			ListCell *lc;

			foreach(lc, ((RangeTblFunction *) node)->funccoltypes)
				if (!TypeIsPlain(lfirst_oid(lc)))
					return true;
		}
		break;
		default:
			return true;
	}
	if (check_functions_in_node(node, FunctionIsForeign, NULL))
		return true;
	return expression_tree_walker(node, FindForeign, (void *) facts);
}

/* False: the tree may not be repeated. */
static bool
ExamineTree(Plan *plan, TreeFacts *facts)
{
	NodeParts parts;
	ListCell *lc;

	if (plan == NULL)
		return true;
	check_stack_depth();
	PlanExamineNode(plan, &parts);
	if (parts.unknown || compat_plan_prunes(plan))
		return false;
	switch (nodeTag(plan))
	{
		case T_CteScan:
		case T_WorkTableScan:
		case T_RecursiveUnion:
		case T_WindowAgg:
		case T_TableFuncScan:
		case T_TidScan:
		case T_TidRangeScan:
			/* Rare, and so not worth a thought. */
			return false;
		case T_IndexScan:
			/* Also what the executor has twice. */
			if (FindForeign((Node *) ((IndexScan *) plan)->indexqual, facts))
				return false;
			break;
		case T_IndexOnlyScan:
			if (FindForeign((Node *) ((IndexOnlyScan *) plan)->recheckqual, facts))
				return false;
			break;
		default:
			break;
	}
	if (FindForeign((Node *) plan->targetlist, facts) || FindForeign((Node *) plan->qual, facts) ||
		FindForeign((Node *) parts.expressions, facts) ||
		FindForeign((Node *) plan->initPlan, facts))
		return false;
	if (IsA(plan, SubqueryScan) && !ExamineTree(((SubqueryScan *) plan)->subplan, facts))
		return false;
	foreach(lc, parts.children)
		if (!ExamineTree(lfirst(lc), facts))
			return false;
	return ExamineTree(outerPlan(plan), facts) && ExamineTree(innerPlan(plan), facts);
}

/* ----------------------------------------------------------------------
 * Making it depend on our parameters
 * ----------------------------------------------------------------------
 */

static void
AddParam(Plan *plan, int param)
{
	NodeParts parts;
	ListCell *lc;

	if (plan == NULL)
		return;
	plan->extParam = bms_add_member(plan->extParam, param);
	plan->allParam = bms_add_member(plan->allParam, param);
	if (IsA(plan, FunctionScan))
		foreach(lc, ((FunctionScan *) plan)->functions)
		{
			RangeTblFunction *function = lfirst(lc);

			function->funcparams = bms_add_member(function->funcparams, param);
		}
	if (IsA(plan, SubqueryScan))
		AddParam(((SubqueryScan *) plan)->subplan, param);
	PlanExamineNode(plan, &parts);
	foreach(lc, parts.children)
		AddParam(lfirst(lc), param);
	AddParam(outerPlan(plan), param);
	AddParam(innerPlan(plan), param);
}

/* Which trees read the row, themselves or in one that they use? */
static void
SpreadRow(TreeFacts *facts, int n)
{
	bool more = true;
	int i;

	while (more)
	{
		more = false;
		for (i = 0; i < n; i++)
		{
			int id = -1;

			while (!facts[i].reads_row && (id = bms_next_member(facts[i].subplans, id)) >= 0)
				if (facts[id].reads_row)
					facts[i].reads_row = more = true;
		}
	}
}

/* NULL: it may not be repeated.  The result is in CurrentMemoryContext. */
static RepeatedPlan *
MakeRepeated(PlannedStmt *original)
{
	PlannedStmt *plan = copyObject(original);
	RepeatedPlan *repeated = palloc0(sizeof(RepeatedPlan));
	int n = list_length(plan->subplans) + 1;
	TreeFacts *facts = palloc0(sizeof(TreeFacts) * n);
	Bitmapset *hashed = NULL;
	ListCell *lc;
	int i;

	for (i = 0; i < n; i++)
		facts[i].hashed = &hashed;

	/* The first is the main tree; plan_id counts from one. */
	i = 1;
	if (plan->commandType != CMD_SELECT || plan->rowMarks != NIL ||
		!ExamineTree(plan->planTree, &facts[0]))
		return NULL;
	foreach(lc, plan->subplans)
		if (!ExamineTree(lfirst(lc), &facts[i++]))
			return NULL;
	SpreadRow(facts, n);

	repeated->row_param = list_length(plan->paramExecTypes);
	repeated->identity_param = repeated->row_param + 1;
	plan->paramExecTypes = lappend_oid(plan->paramExecTypes, BOOLOID);
	plan->paramExecTypes = lappend_oid(plan->paramExecTypes, BOOLOID);
	AddParam(plan->planTree, repeated->row_param);
	AddParam(plan->planTree, repeated->identity_param);
	i = 1;
	foreach(lc, plan->subplans)
	{
		AddParam(lfirst(lc), repeated->identity_param);
		if (facts[i++].reads_row)
			AddParam(lfirst(lc), repeated->row_param);
	}
	repeated->plan = plan;
	repeated->cost = plan->planTree->total_cost;
	return repeated;
}

/* ----------------------------------------------------------------------
 * From IN to EXISTS
 * ----------------------------------------------------------------------
 */

typedef struct ResultColumn
{
	Expr *column;
	int found;
} ResultColumn;

static Node *
ReplaceResult(Node *node, ResultColumn *context)
{
	if (node == NULL)
		return NULL;
	if (IsA(node, Param) && ((Param *) node)->paramkind == PARAM_SUBLINK)
	{
		context->found++;
		return (Node *) copyObject(context->column);
	}
	return expression_tree_mutator(node, ReplaceResult, (void *) context);
}

/*
 * `value = ANY (SELECT column ...)` as EXISTS (SELECT ... AND value = column),
 * which differs in what is null, not in what is true.  NULL: it is not of that
 * form.
 */
static Node *
AsExists(SubLink *link)
{
	Query *query = castNode(Query, link->subselect);
	ResultColumn context = {NULL, 0};
	SubLink *result;
	Node *test;

	if (link->subLinkType != ANY_SUBLINK || link->testexpr == NULL || !IsA(link->testexpr, OpExpr))
		return NULL;
	if (query->commandType != CMD_SELECT || query->hasAggs || query->hasWindowFuncs ||
		query->hasTargetSRFs || query->hasDistinctOn || query->hasRecursive ||
		query->hasForUpdate || query->cteList != NIL || query->groupClause != NIL ||
		query->groupingSets != NIL || query->havingQual != NULL || query->distinctClause != NIL ||
		query->limitOffset != NULL || query->limitCount != NULL || query->setOperations != NULL ||
		query->jointree == NULL || list_length(query->targetList) != 1)
		return NULL;
	/* What is compared comes to another level there. */
	if (checkExprHasSubLink(link->testexpr) || contain_vars_of_level(link->testexpr, 0))
		return NULL;

	context.column = linitial_node(TargetEntry, query->targetList)->expr;
	if (checkExprHasSubLink((Node *) context.column))
		return NULL;
	test = ReplaceResult(link->testexpr, &context);
	if (context.found != 1)
		return NULL;

	result = copyObject(link);
	result->subLinkType = EXISTS_SUBLINK;
	result->testexpr = NULL;
	result->operName = NIL;
	query = castNode(Query, result->subselect);
	query->jointree->quals = (Node *) make_ands_explicit(
		query->jointree->quals != NULL ? list_make2(query->jointree->quals, test)
									   : list_make1(test));
	return (Node *) result;
}

/* Where null is the same as false.  `changed`: something was. */
static Node *
WithExists(Node *node, bool *changed)
{
	if (node != NULL && IsA(node, BoolExpr) && ((BoolExpr *) node)->boolop != NOT_EXPR)
	{
		ListCell *lc;

		foreach(lc, ((BoolExpr *) node)->args)
			lfirst(lc) = WithExists(lfirst(lc), changed);
	}
	else if (node != NULL && IsA(node, SubLink))
	{
		Node *exists = AsExists((SubLink *) node);

		if (exists != NULL)
		{
			*changed = true;
			return exists;
		}
	}
	return node;
}

/* ----------------------------------------------------------------------
 * Interface
 * ----------------------------------------------------------------------
 */

RepeatedPlans *
RepeatedPlansGet(Policy *policy)
{
	MemoryContext old;
	RepeatedPlans *plans;

	if (policy->repeated != NULL)
		return policy->repeated;
	old = MemoryContextSwitchTo(policy->context);
	plans = palloc0(sizeof(RepeatedPlans));
	plans->whole = MakeRepeated(policy->plan);
	if (plans->whole != NULL)
	{
		bool changed = false;
		Node *expression = WithExists(copyObject(policy->expression), &changed);

		if (changed)
		{
			MemoryContext work = AllocSetContextCreate(old, "changefeed policy planning",
													   ALLOCSET_DEFAULT_SIZES);
			PlannedStmt *plan;

			MemoryContextSwitchTo(work);
			plan = PolicyPlanExpression(expression);
			MemoryContextSwitchTo(policy->context);
			plans->probe = MakeRepeated(plan);
			MemoryContextDelete(work);
		}
	}
	MemoryContextSwitchTo(old);
	policy->repeated = plans;
	return plans;
}

RepeatedRun *
RepeatedBegin(const RepeatedPlan *plan, ParamListInfo params)
{
	RepeatedRun *run = palloc0(sizeof(RepeatedRun));

	run->plan = plan;
	run->query = CreateQueryDesc(plan->plan, "", GetActiveSnapshot(), InvalidSnapshot,
								 None_Receiver, params, NULL, 0);
	ExecutorStart(run->query, 0);
	return run;
}

static void
ParamHasChanged(RepeatedRun *run, int param)
{
	PlanState *state = run->query->planstate;
	MemoryContext old = MemoryContextSwitchTo(run->query->estate->es_query_cxt);

	state->chgParam = bms_add_member(state->chgParam, param);
	MemoryContextSwitchTo(old);
}

void
RepeatedNextIdentity(RepeatedRun *run)
{
	if (run->begun)
		ParamHasChanged(run, run->plan->identity_param);
}

bool
RepeatedRow(RepeatedRun *run)
{
	MemoryContext old;
	TupleTableSlot *slot;
	bool visible = false;

	if (run->begun)
		ParamHasChanged(run, run->plan->row_param);
	run->begun = true;
	old = MemoryContextSwitchTo(run->query->estate->es_query_cxt);
	slot = ExecProcNode(run->query->planstate);
	if (!TupIsNull(slot))
	{
		bool isnull;
		Datum value = slot_getattr(slot, 1, &isnull);

		visible = !isnull && DatumGetBool(value);
	}
	MemoryContextSwitchTo(old);
	return visible;
}
