/*-------------------------------------------------------------------------
 *
 * policy_shape.c
 *		Reads the expression of a rule: is it safe, what does it read, and which
 *		values do rows need for it to be true?
 *
 * The last are its *demands*: equalities of a column with one of some values, one
 * of which has to hold.  By them those whom a row may concern are found without
 * asking everybody (demand.c).
 *
 * Process: feed worker.  Memory: the shape's context.  Locks: none of ours;
 * needs a transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "policy_shape.h"
#include "policy_safe.h"

#include "catalog/pg_type.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "utils/array.h"
#include "utils/lsyscache.h"

/* Columns of which one has to have a value: more are not worth looking at. */
#define MAX_DEMANDS 8

/*
 * Bytes of a row that a shape may read, in all, and if what it does with them
 * takes time in proportion to their product.  More is left to query workers.
 */
#define MAX_VALUES		(1024 * 1024)
#define MAX_SLOW_VALUES (8 * 1024)

/* ---- Shapes: demands ---- */

static bool AddDemands(Shape *shape, Node *node, bool *with_param);

/* Column = value, or = ANY (values). */
static bool
AddEquality(Shape *shape, Oid operator, Oid collation, List *args, bool is_array, bool *with_param)
{
	Node *left;
	Node *right;
	Oid type;
	TypeCacheEntry *cache;
	ShapeDemand *demand;

	if (list_length(args) != 2)
		return false;
	left = linitial(args);
	right = lsecond(args);
	if (!is_array && (IsA(left, Const) || IsA(left, Param)))
	{
		left = lsecond(args);
		right = linitial(args);
	}
	type = exprType(left);
	if (IsA(left, RelabelType))
		left = (Node *) ((RelabelType *) left)->arg;
	if (!IsA(left, Var) || !(IsA(right, Const) || IsA(right, Param)) ||
		(is_array ? get_element_type(exprType(right)) : exprType(right)) != type)
		return false;

	/* Types with parts are hashed by functions of the parts' types. */
	cache = lookup_type_cache(type, TYPECACHE_EQ_OPR | TYPECACHE_HASH_PROC_FINFO);
	if (cache->eq_opr != operator|| !OidIsValid(cache->hash_proc) ||
		cache->hash_proc >= FirstNormalObjectId || OidIsValid(get_element_type(type)) ||
		(cache->typtype != TYPTYPE_BASE && cache->typtype != TYPTYPE_ENUM))
		return false;
	if (shape->ndemands == MAX_DEMANDS)
		return false;
	demand = &shape->demands[shape->ndemands++];
	memset(demand, 0, sizeof(ShapeDemand));
	demand->demand.attno = ((Var *) left)->varattno;
	demand->demand.column_type = ((Var *) left)->vartype;
	demand->demand.type = type;
	demand->demand.collation = collation;
	demand->is_array = is_array;
	demand->cache = cache;
	if (IsA(right, Param))
	{
		demand->param = ((Param *) right)->paramid;
		*with_param = true;
	}
	else
		demand->value = (Const *) right;
	return true;
}

static bool
AddBoolean(Shape *shape, Var *var, bool value)
{
	ShapeDemand *demand;

	if (shape->ndemands == MAX_DEMANDS || var->vartype != BOOLOID)
		return false;
	demand = &shape->demands[shape->ndemands++];
	memset(demand, 0, sizeof(ShapeDemand));
	demand->demand.attno = var->varattno;
	demand->demand.column_type = BOOLOID;
	demand->demand.type = BOOLOID;
	demand->cache = lookup_type_cache(BOOLOID, TYPECACHE_HASH_PROC_FINFO);
	demand->value = (Const *) makeBoolConst(value, false);
	return true;
}

/*
 * Of AND one argument's demands do: the fewest, and rather values that tell
 * identities apart.
 */
static bool
AddAnd(Shape *shape, List *args, bool *with_param)
{
	ShapeDemand best[MAX_DEMANDS];
	int nbest = 0;
	bool found = false;
	bool best_with_param = false;
	int before = shape->ndemands;
	ListCell *lc;

	foreach(lc, args)
	{
		bool param = false;
		int n;

		if (AddDemands(shape, lfirst(lc), &param))
		{
			n = shape->ndemands - before;
			if (!found || param > best_with_param || (param == best_with_param && n < nbest))
			{
				memcpy(best, &shape->demands[before], sizeof(ShapeDemand) * n);
				nbest = n;
				best_with_param = param;
				found = true;
			}
		}
		shape->ndemands = before;
	}
	if (!found)
		return false;
	memcpy(&shape->demands[before], best, sizeof(ShapeDemand) * nbest);
	shape->ndemands += nbest;
	*with_param = *with_param || best_with_param;
	return true;
}

/* What has to hold for `node` to be true; false: that is not known. */
static bool
AddDemands(Shape *shape, Node *node, bool *with_param)
{
	ListCell *lc;

	switch (nodeTag(node))
	{
		case T_Const:
			/* Never true, for which nothing would do. */
			return ((Const *) node)->constisnull || !DatumGetBool(((Const *) node)->constvalue);
		case T_Var:
			return AddBoolean(shape, (Var *) node, true);
		case T_OpExpr:
			return AddEquality(shape, ((OpExpr *) node)->opno, ((OpExpr *) node)->inputcollid,
							   ((OpExpr *) node)->args, false, with_param);
		case T_ScalarArrayOpExpr:
			return ((ScalarArrayOpExpr *) node)->useOr &&
				   AddEquality(shape, ((ScalarArrayOpExpr *) node)->opno,
							   ((ScalarArrayOpExpr *) node)->inputcollid,
							   ((ScalarArrayOpExpr *) node)->args, true, with_param);
		case T_BooleanTest:
			if (!IsA(((BooleanTest *) node)->arg, Var))
				return false;
			switch (((BooleanTest *) node)->booltesttype)
			{
				case IS_TRUE:
					return AddBoolean(shape, (Var *) ((BooleanTest *) node)->arg, true);
				case IS_FALSE:
					return AddBoolean(shape, (Var *) ((BooleanTest *) node)->arg, false);
				default:
					return false;
			}
		case T_BoolExpr:
			switch (((BoolExpr *) node)->boolop)
			{
				case AND_EXPR:
					return AddAnd(shape, ((BoolExpr *) node)->args, with_param);
				case OR_EXPR:
					foreach(lc, ((BoolExpr *) node)->args)
						if (!AddDemands(shape, lfirst(lc), with_param))
							return false;
					return true;
				case NOT_EXPR:
					return IsA(linitial(((BoolExpr *) node)->args), Var) &&
						   AddBoolean(shape, linitial(((BoolExpr *) node)->args), false);
			}
			return false;
		default:
			return false;
	}
}

/* ---- Shapes: reading and checking ---- */

/* What functions operators have is for the catalogs to say. */
static bool
ResetFunctions(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, OpExpr) || IsA(node, DistinctExpr) || IsA(node, NullIfExpr))
		((OpExpr *) node)->opfuncid = InvalidOid;
	else if (IsA(node, ScalarArrayOpExpr))
	{
		((ScalarArrayOpExpr *) node)->opfuncid = InvalidOid;
		((ScalarArrayOpExpr *) node)->hashfuncid = InvalidOid;
		((ScalarArrayOpExpr *) node)->negfuncid = InvalidOid;
	}
	return expression_tree_walker(node, ResetFunctions, context);
}

typedef struct CollectContext
{
	List *columns; /* of Var, one of each */
	int nparams;
	Oid types[PG_UINT8_MAX];
	bool good;
} CollectContext;

static bool
Collect(Node *node, CollectContext *context)
{
	ListCell *lc;

	if (node == NULL)
		return false;
	if (IsA(node, Var))
	{
		foreach(lc, context->columns)
			if (((Var *) lfirst(lc))->varattno == ((Var *) node)->varattno)
				return false;
		context->columns = lappend(context->columns, node);
	}
	else if (IsA(node, Param))
	{
		Param *param = (Param *) node;

		if (param->paramid < 1 || param->paramid > lengthof(context->types))
			context->good = false;
		else
		{
			context->types[param->paramid - 1] = param->paramtype;
			context->nparams = Max(context->nparams, param->paramid);
		}
		return false;
	}
	return expression_tree_walker(node, Collect, (void *) context);
}

bool
PolicyShapeRead(Shape *shape)
{
	CollectContext collect = {0};
	bool with_param = false;
	ListCell *lc;
	int i;

	shape->expr = stringToNode(shape->text);
	(void) ResetFunctions(shape->expr, NULL);
	fix_opfuncids(shape->expr);
	collect.good = true;
	(void) Collect(shape->expr, &collect);
	if (PolicyUnsafe(shape->expr, &shape->can_fail) != NULL || !collect.good ||
		exprType(shape->expr) != BOOLOID)
		return false;

	shape->limit = PolicyTakesLong(shape->expr) ? MAX_SLOW_VALUES : MAX_VALUES;
	shape->columns = palloc(sizeof(Var *) * Max(list_length(collect.columns), 1));
	foreach(lc, collect.columns)
		shape->columns[shape->ncolumns++] = lfirst(lc);
	shape->nconstants = collect.nparams;
	shape->types = palloc(sizeof(Oid) * Max(collect.nparams, 1));
	shape->typlens = palloc(sizeof(int16) * Max(collect.nparams, 1));
	shape->byvals = palloc(sizeof(bool) * Max(collect.nparams, 1));
	shape->params = makeParamList(collect.nparams);
	for (i = 0; i < collect.nparams; i++)
	{
		if (!OidIsValid(collect.types[i]))
			return false;
		shape->types[i] = collect.types[i];
		get_typlenbyval(collect.types[i], &shape->typlens[i], &shape->byvals[i]);
		shape->params->params[i].isnull = false;
		shape->params->params[i].pflags = 0;
		shape->params->params[i].ptype = collect.types[i];
	}

	if (IsA(shape->expr, Const))
	{
		Const *value = (Const *) shape->expr;

		shape->always = !value->constisnull && DatumGetBool(value->constvalue) ? VERDICT_VISIBLE
																			   : VERDICT_HIDDEN;
	}
	/* Whose evaluation may fail has to be evaluated for every row. */
	else if (!shape->can_fail)
	{
		shape->demands = palloc(sizeof(ShapeDemand) * MAX_DEMANDS);
		if (!AddDemands(shape, shape->expr, &with_param))
			shape->ndemands = 0;
	}
	return true;
}
