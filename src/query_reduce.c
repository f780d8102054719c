/*-------------------------------------------------------------------------
 *
 * query_reduce.c
 *		What is left of a policy for one identity.
 *
 * The parts that depend on the claims alone are known by then: those that are
 * true, false or null shorten the expression.  It keeps giving what the whole
 * one gives, errors included: nothing is left out that may fail, and that is
 * whatever is not known not to.
 *
 * Process: query worker, and backends that explain.  Memory: the current
 * context.  Locks: none.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "query_internal.h"

#include "policy_safe.h"

#include "catalog/pg_type.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "utils/lsyscache.h"

typedef struct ReduceContext
{
	const PartValue *values;
} ReduceContext;

static bool
IsBool(Node *node, bool value)
{
	Const *constant = (Const *) node;

	return IsA(node, Const) && constant->consttype == BOOLOID && !constant->constisnull &&
		   DatumGetBool(constant->constvalue) == value;
}

static bool
IsNull(Node *node)
{
	return IsA(node, Const) && ((Const *) node)->constisnull;
}

static bool
CanFail(Node *node)
{
	bool can_fail;

	(void) PolicyUnsafe(node, &can_fail);
	return can_fail;
}

static bool
AnyCanFail(List *args, int from)
{
	int i;

	for (i = from; i < list_length(args); i++)
		if (CanFail(list_nth(args, i)))
			return true;
	return false;
}

static Node *Reduce(Node *node, ReduceContext *context, bool qual);

static Node *
ReduceMutator(Node *node, ReduceContext *context)
{
	return Reduce(node, context, false);
}

/*
 * AND, of which `decisive` is false, or OR, of which it is true.  What stands
 * before a decisive argument is evaluated and may fail; what stands behind is not.
 * Behind null, evaluation goes on.
 */
static Node *
ReduceList(BoolExpr *expr, ReduceContext *context, bool qual)
{
	bool decisive = expr->boolop == OR_EXPR;
	bool can_fail = false;
	bool null = false;
	List *args = NIL;
	ListCell *lc;

	foreach(lc, expr->args)
	{
		/* Instead of null, false would end AND. */
		bool arg_qual = qual &&
						(decisive || !AnyCanFail(expr->args, foreach_current_index(lc) + 1));
		Node *arg = Reduce(lfirst(lc), context, arg_qual);

		if (IsBool(arg, !decisive) || (qual && decisive && IsNull(arg)))
			continue;
		null = null || IsNull(arg);
		if (IsBool(arg, decisive) && !can_fail)
			return makeBoolConst(decisive, false);
		args = lappend(args, arg);
		if (IsBool(arg, decisive))
			break;
		can_fail = can_fail || CanFail(arg);
	}
	if (args == NIL)
		return makeBoolConst(!decisive, false);
	if (qual && !decisive && null && !can_fail)
		return makeBoolConst(false, false);
	if (list_length(args) == 1)
		return linitial(args);
	return (Node *) makeBoolExpr(expr->boolop, args, -1);
}

static Node *
ReduceCase(CaseExpr *expr, ReduceContext *context)
{
	List *whens = NIL;
	ListCell *lc;

	foreach(lc, expr->args)
	{
		CaseWhen *when = lfirst_node(CaseWhen, lc);
		Node *condition = Reduce((Node *) when->expr, context, false);

		if (IsNull(condition) || IsBool(condition, false))
			continue;
		if (IsBool(condition, true))
		{
			expr->defresult = when->result;
			break;
		}
		when->expr = (Expr *) condition;
		when->result = (Expr *) Reduce((Node *) when->result, context, false);
		whens = lappend(whens, when);
	}
	expr->defresult = (Expr *) Reduce((Node *) expr->defresult, context, false);
	expr->args = whens;
	return whens == NIL ? (Node *) expr->defresult : (Node *) expr;
}

/* A strict function of null and of what cannot fail. */
static Node *
NullIfStrict(Node *node, Oid function, List *args)
{
	bool null = false;
	ListCell *lc;

	foreach(lc, args)
	{
		null = null || IsNull(lfirst(lc));
		if (CanFail(lfirst(lc)))
			return node;
	}
	if (null && exprType(node) == BOOLOID && func_strict(function))
		return makeBoolConst(false, true);
	return node;
}

/* `qual`: the result may be false instead of null. */
static Node *
Reduce(Node *node, ReduceContext *context, bool qual)
{
	if (node == NULL)
		return NULL;
	switch (nodeTag(node))
	{
		case T_Param:
		{
			Param *param = (Param *) node;
			const PartValue *value = &context->values[param->paramid - 1];

			if (value->isnull || param->paramtype == BOOLOID)
			{
				int16 typlen;
				bool typbyval;

				get_typlenbyval(param->paramtype, &typlen, &typbyval);
				node = (Node *) makeConst(param->paramtype, param->paramtypmod, param->paramcollid,
										  typlen, value->isnull ? (Datum) 0 : value->value,
										  value->isnull, typbyval);
			}
			else
				node = (Node *) copyObject(param);
			break;
		}
		case T_BoolExpr:
		{
			BoolExpr *expr = (BoolExpr *) node;

			if (expr->boolop != NOT_EXPR)
				node = ReduceList(expr, context, qual);
			else
			{
				Node *arg = Reduce(linitial(expr->args), context, false);

				if (IsNull(arg))
					node = arg;
				else if (IsBool(arg, true) || IsBool(arg, false))
					node = makeBoolConst(IsBool(arg, false), false);
				else
					node = (Node *) makeBoolExpr(NOT_EXPR, list_make1(arg), -1);
			}
			break;
		}
		case T_CaseExpr:
			if (((CaseExpr *) node)->arg == NULL)
				node = ReduceCase(copyObject((CaseExpr *) node), context);
			else
				node = expression_tree_mutator(node, ReduceMutator, (void *) context);
			break;
		case T_OpExpr:
			node = expression_tree_mutator(node, ReduceMutator, (void *) context);
			node = NullIfStrict(node, ((OpExpr *) node)->opfuncid, ((OpExpr *) node)->args);
			break;
		case T_ScalarArrayOpExpr:
		{
			ScalarArrayOpExpr *op;

			node = expression_tree_mutator(node, ReduceMutator, (void *) context);
			op = (ScalarArrayOpExpr *) node;
			if (IsNull(lsecond(op->args)) && !CanFail(linitial(op->args)))
				node = makeBoolConst(false, true);
			break;
		}
		default:
			node = expression_tree_mutator(node, ReduceMutator, (void *) context);
			break;
	}
	return node;
}

Node *
InlineReduce(Node *node, const PartValue *values)
{
	ReduceContext context = {values};

	return Reduce(node, &context, true);
}
