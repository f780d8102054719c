/*-------------------------------------------------------------------------
 *
 * query_conditions.c
 *		Conditions of scans that the feed worker can check.
 *
 * These are equalities of a column with something that is fixed for an
 * identity (constants, claims, current_user) or with a column of the judged
 * row; of built-in types only, since the feed worker runs nobody's code.  What
 * is fixed is found out by running it, subqueries that read no tables
 * included, as a plan made of parts of the statement's.
 *
 * Process: query worker.  Locks: none.  Memory: CurrentMemoryContext, whose
 * life is that of the plan.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "query_narrow.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"

/* ----------------------------------------------------------------------
 * What is fixed for an identity
 * ----------------------------------------------------------------------
 */

typedef struct FixedContext
{
	Statement *statement;
	bool in_plan; /* columns are those of nodes below, likewise fixed */
} FixedContext;

/* The claims, and nothing that ALTER ROLE or ALTER DATABASE can set. */
static bool
IsClaim(FuncExpr *call)
{
	Node *first;
	char *name;

	if (call->funcid != F_CURRENT_SETTING_TEXT && call->funcid != F_CURRENT_SETTING_TEXT_BOOL)
		return false;
	first = linitial(call->args);
	if (!IsA(first, Const) || ((Const *) first)->constisnull)
		return false;
	if (list_length(call->args) > 1 && !IsA(lsecond(call->args), Const))
		return false;
	name = TextDatumGetCString(((Const *) first)->constvalue);
	return strncmp(name, "request.", 8) == 0;
}

static bool
FunctionVaries(Oid function, void *arg)
{
	return func_volatile(function) != PROVOLATILE_IMMUTABLE;
}

/* A subquery that runs once and reads no tables. */
static bool
ParamIsFixed(Statement *statement, Param *param)
{
	ListCell *cell;

	if (param->paramkind != PARAM_EXEC)
		return false;
	foreach(cell, statement->init_plans)
	{
		SubPlan *init = lfirst(cell);

		if (list_member_int(init->setParam, param->paramid))
			return (init->subLinkType == EXPR_SUBLINK || init->subLinkType == ARRAY_SUBLINK) &&
				   init->parParam == NIL &&
				   ConditionsPlanIsFixed(statement,
										 list_nth(statement->plan->subplans, init->plan_id - 1));
	}
	return false;
}

/* Does the expression have anything in it that may differ from time to time? */
static bool
Varies(Node *node, void *arg)
{
	FixedContext *context = arg;

	if (node == NULL)
		return false;
	switch (nodeTag(node))
	{
		case T_Var:
		case T_Aggref:
		case T_WindowFunc:
			if (!context->in_plan)
				return true;
			break;
		case T_Param:
			return !ParamIsFixed(context->statement, (Param *) node);
		case T_FuncExpr:
			if (IsClaim((FuncExpr *) node))
				return false;
			break;
		case T_SQLValueFunction:
			switch (((SQLValueFunction *) node)->op)
			{
				case SVFOP_CURRENT_ROLE:
				case SVFOP_CURRENT_USER:
				case SVFOP_USER:
					return context->statement->as_somebody;
				default:
					return true;
			}
		case T_SubPlan:
		case T_AlternativeSubPlan:
		case T_CoerceToDomain:
		case T_CurrentOfExpr:
		case T_NextValueExpr:
			return true;
		default:
			break;
	}
	if (!IsA(node, Aggref) && check_functions_in_node(node, FunctionVaries, NULL))
		return true;
	return expression_tree_walker(node, Varies, arg);
}

bool
ConditionsPlanIsFixed(Statement *statement, Plan *plan)
{
	FixedContext context = {statement, true};
	NodeParts parts;

	if (plan == NULL)
		return true;
	check_stack_depth();
	switch (nodeTag(plan))
	{
		case T_Result:
		case T_ProjectSet:
		case T_FunctionScan:
		case T_ValuesScan:
		case T_SubqueryScan:
		case T_Material:
		case T_Sort:
		case T_Unique:
		case T_Agg:
			break;
		default:
			return false;
	}
	PlanExamineNode(plan, &parts);
	if (Varies((Node *) plan->targetlist, &context) || Varies((Node *) plan->qual, &context) ||
		Varies((Node *) parts.expressions, &context))
		return false;
	return ConditionsPlanIsFixed(statement, plan->lefttree) &&
		   ConditionsPlanIsFixed(statement, plan->righttree) &&
		   (!IsA(plan, SubqueryScan) ||
			ConditionsPlanIsFixed(statement, ((SubqueryScan *) plan)->subplan));
}

/* ----------------------------------------------------------------------
 * Conditions
 * ----------------------------------------------------------------------
 */

static Node *
Unlabel(Node *node)
{
	while (node != NULL && IsA(node, RelabelType))
		node = (Node *) ((RelabelType *) node)->arg;
	return node;
}

/* The column of the scanned table that the expression is, or NULL. */
static Var *
ColumnOf(Statement *statement, Index scan, Node *node)
{
	Var *var = (Var *) Unlabel(node);

	if (var == NULL || !IsA(var, Var))
		return NULL;
	if (var->varno == INDEX_VAR)
	{
		List *tlist = statement->index_tlists[scan];

		if (var->varattno <= 0 || var->varattno > list_length(tlist))
			return NULL;
		var = (Var *) Unlabel((Node *) ((TargetEntry *) list_nth(tlist, var->varattno - 1))->expr);
		if (!IsA(var, Var))
			return NULL;
	}
	return var->varno == scan && var->varattno > 0 ? var : NULL;
}

/* Types whose texts the feed worker may read. */
static bool
TextIsReadable(Oid type)
{
	switch (type)
	{
		case BOOLOID:
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case OIDOID:
		case NUMERICOID:
		case UUIDOID:
		case TEXTOID:
		case VARCHAROID:
		case NAMEOID:
		case DATEOID:
			return true;
		default:
			return false;
	}
}

static int
ValueIndex(Statement *statement, Node *value)
{
	int index = 0;
	ListCell *cell;

	foreach(cell, statement->values)
	{
		if (equal(lfirst(cell), value))
			return index;
		index++;
	}
	statement->values = lappend(statement->values, value);
	return index;
}

/* `column` = `other` (or any of it), by that operator. */
static Condition *
MakeCondition(Statement *statement, Var *column, Node *other, Oid operator, Oid collation,
			  bool is_array)
{
	FixedContext context = {statement, false};
	Condition *condition;
	Oid left;
	Oid right;
	Oid column_hash;
	Oid value_hash;
	Oid type = exprType(other);
	Param *param = (Param *) Unlabel(other);

	op_input_types(operator, & left, &right);
	if (operator>=
		FirstNormalObjectId ||(column->vartype >= FirstNormalObjectId && left != ANYENUMOID &&
							   getBaseType(column->vartype) >= FirstNormalObjectId))
		return NULL;

	/* Of the polymorphic ones only enums compare without looking anything up. */
	if ((IsPolymorphicType(left) && left != ANYENUMOID) || left == RECORDOID ||
		!op_hashjoinable(operator, left) ||
		!get_op_hash_functions(operator, & column_hash, &value_hash))
		return NULL;

	condition = palloc0(sizeof(Condition));
	condition->column = column->varattno;
	condition->column_type = column->vartype;
	condition->equality = get_opcode(operator);
	condition->column_hash = column_hash;
	condition->value_hash = value_hash;
	condition->collation = collation;
	condition->is_array = is_array;
	if (!is_array && IsA(param, Param) && param->paramkind == PARAM_EXTERN)
	{
		condition->type = getBaseType(param->paramtype);
		if (param->paramid > statement->nparams || !TextIsReadable(condition->type))
			return NULL;
		condition->row_column = param->paramid;
		return condition;
	}
	if (Varies(other, &context))
		return NULL;
	condition->type = is_array ? get_base_element_type(type) : type;
	if (!OidIsValid(condition->type))
		return NULL;
	condition->value = ValueIndex(statement, other);
	return condition;
}

static Condition *
ConditionOf(Statement *statement, Index scan, Node *qual)
{
	Var *column;

	/* A boolean column by itself, or not it. */
	column = ColumnOf(statement, scan, qual);
	if (column != NULL && column->vartype == BOOLOID)
		return MakeCondition(statement, column, makeBoolConst(true, false), BooleanEqualOperator,
							 InvalidOid, false);
	if (IsA(qual, BoolExpr) && ((BoolExpr *) qual)->boolop == NOT_EXPR)
	{
		column = ColumnOf(statement, scan, linitial(((BoolExpr *) qual)->args));
		if (column != NULL && column->vartype == BOOLOID)
			return MakeCondition(statement, column, makeBoolConst(false, false),
								 BooleanEqualOperator, InvalidOid, false);
		return NULL;
	}
	if (IsA(qual, OpExpr) && list_length(((OpExpr *) qual)->args) == 2)
	{
		OpExpr *expr = (OpExpr *) qual;
		Node *left = linitial(expr->args);
		Node *right = lsecond(expr->args);

		column = ColumnOf(statement, scan, left);
		if (column != NULL)
			return MakeCondition(statement, column, right, expr->opno, expr->inputcollid, false);
		column = ColumnOf(statement, scan, right);
		if (column != NULL && OidIsValid(get_commutator(expr->opno)))
			return MakeCondition(statement, column, left, get_commutator(expr->opno),
								 expr->inputcollid, false);
	}
	if (IsA(qual, ScalarArrayOpExpr) && ((ScalarArrayOpExpr *) qual)->useOr)
	{
		ScalarArrayOpExpr *expr = (ScalarArrayOpExpr *) qual;

		column = ColumnOf(statement, scan, linitial(expr->args));
		if (column != NULL)
			return MakeCondition(statement, column, lsecond(expr->args), expr->opno,
								 expr->inputcollid, true);
	}
	return NULL;
}

List *
ConditionsOf(Statement *statement, Index scan)
{
	List *conditions = NIL;
	ListCell *cell;
	ListCell *cell2;

	foreach(cell, statement->conditions[scan])
	{
		foreach(cell2, (List *) lfirst(cell))
		{
			Condition *condition = ConditionOf(statement, scan, lfirst(cell2));

			if (condition != NULL)
				conditions = lappend(conditions, condition);
		}
	}
	return conditions;
}

PlannedStmt *
ConditionsValues(Statement *statement)
{
	PlannedStmt *from = statement->plan;
	PlannedStmt *plan;
	Result *result;
	ListCell *cell;
	int number = 1;

	if (statement->values == NIL)
		return NULL;
	result = makeNode(Result);
	foreach(cell, statement->values)
	{
		result->plan.targetlist = lappend(result->plan.targetlist,
										  makeTargetEntry(lfirst(cell), number++, "value", false));
	}

	plan = makeNode(PlannedStmt);
	plan->commandType = CMD_SELECT;
	plan->canSetTag = true;
	plan->planTree = (Plan *) result;
	plan->rtable = copyObject(from->rtable);
	foreach(cell, plan->rtable)
		compat_require_nothing(lfirst_node(RangeTblEntry, cell));
	plan->paramExecTypes = from->paramExecTypes;
	foreach(cell, from->subplans)
		plan->subplans = lappend(plan->subplans, NULL);
	foreach(cell, statement->init_plans)
	{
		SubPlan *init = lfirst(cell);
		Plan *below = list_nth(from->subplans, init->plan_id - 1);

		if (init->setParam == NIL || init->parParam != NIL ||
			!ConditionsPlanIsFixed(statement, below))
			continue;
		lfirst(list_nth_cell(plan->subplans, init->plan_id - 1)) = below;
		result->plan.initPlan = lappend(result->plan.initPlan, init);
	}
	return plan;
}
