/*-------------------------------------------------------------------------
 *
 * event_expression.c
 *		Conditions and payloads of events: parsed and checked.
 *
 * They are evaluated by the feed worker, as nobody in particular, so what holds
 * for filters (channel_filter.c) holds for them: only immutable functions and
 * operators that come with the server, on its own types, or enums, domains and
 * arrays.  In addition there are the constructors of json, whose result depends
 * on settings only, which the worker has pinned.  They would look for casts of
 * user-defined types to json, so what they are given is made a value of a type
 * of the server before: the base type of a domain, the label of an enum.
 *
 * What kind of node is not known here is refused.
 *
 * The text is kept as it was written and read again by the feed worker, through
 * the same function; both have search_path pg_catalog.
 *
 * Process: backends that declare events, and the feed worker.  Memory: results in
 * CurrentMemoryContext.  Locks: none.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "channel_check.h"
#include "event.h"
#include "expression.h"

#include "access/transam.h"
#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "nodes/parsenodes.h"
#include "optimizer/optimizer.h"
#include "parser/parse_coerce.h"
#include "parser/parse_collate.h"
#include "parser/parse_expr.h"
#include "parser/parse_node.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"

typedef struct EventCheck
{
	const char *what;
	ParseState *pstate;
	TupleDesc tupdesc;
	EventColumns *columns;
	Node *node; /* at hand */
} EventCheck;

static Node *
ResolveColumn(ParseState *pstate, ColumnRef *ref)
{
	EventCheck *check = pstate->p_ref_hook_state;
	TupleDesc tupdesc = check->tupdesc;
	bool of_old;
	int i;

	if (list_length(ref->fields) != 2 || !IsA(linitial(ref->fields), String) ||
		!IsA(lsecond(ref->fields), String) ||
		(strcmp(strVal(linitial(ref->fields)), "old") != 0 &&
		 strcmp(strVal(linitial(ref->fields)), "new") != 0))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" does not exist in an event", NameListToString(ref->fields)),
				 errhint("Columns are written old.name and new.name."),
				 parser_errposition(pstate, ref->location)));
	of_old = strcmp(strVal(linitial(ref->fields)), "old") == 0;
	for (i = 0; i < tupdesc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(tupdesc, i);

		if (att->attisdropped || strcmp(NameStr(att->attname), strVal(lsecond(ref->fields))) != 0)
			continue;
		if (of_old)
			check->columns->of_old = bms_add_member(check->columns->of_old, att->attnum);
		else
			check->columns->of_new = bms_add_member(check->columns->of_new, att->attnum);
		return (Node *) makeVar(of_old ? OUTER_VAR : INNER_VAR, att->attnum, att->atttypid,
								att->atttypmod, att->attcollation, 0);
	}
	ereport(ERROR, (errcode(ERRCODE_UNDEFINED_COLUMN),
					errmsg("column \"%s\" does not exist", strVal(lsecond(ref->fields))),
					parser_errposition(pstate, ref->location)));
	return NULL;
}

static bool
IsJsonConstructor(Oid function)
{
	switch (function)
	{
		case F_TO_JSON:
		case F_TO_JSONB:
		case F_JSON_BUILD_OBJECT_:
		case F_JSON_BUILD_OBJECT_ANY:
		case F_JSON_BUILD_ARRAY_:
		case F_JSON_BUILD_ARRAY_ANY:
		case F_JSONB_BUILD_OBJECT_:
		case F_JSONB_BUILD_OBJECT_ANY:
		case F_JSONB_BUILD_ARRAY_:
		case F_JSONB_BUILD_ARRAY_ANY:
			return true;
		default:
			return false;
	}
}

static bool
CheckFunction(Oid function, void *context)
{
	EventCheck *check = context;

	if (function >= FirstNormalObjectId)
		ereport(
			ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("%s must not use the user-defined function %s", check->what,
					format_procedure(function)),
			 errdetail(
				 "Only what comes with PostgreSQL is possible, because events are evaluated by the server itself."),
			 parser_errposition(check->pstate, exprLocation(check->node))));
	if (func_volatile(function) != PROVOLATILE_IMMUTABLE && !IsJsonConstructor(function))
		ereport(
			ERROR,
			(errcode(ERRCODE_INVALID_OBJECT_DEFINITION),
			 errmsg("%s must not use the function %s, which is not immutable", check->what,
					format_procedure(function)),
			 errdetail(
				 "An event may depend on the row only, not on the time, on settings or on other tables."),
			 errhint(
				 "Values become text as they are in JSON, with to_jsonb and jsonb_build_object."),
			 parser_errposition(check->pstate, exprLocation(check->node))));
	return false;
}

static bool
CheckNode(Node *node, void *context)
{
	EventCheck *check = context;

	if (node == NULL)
		return false;
	switch (nodeTag(node))
	{
		case T_List:
		case T_BoolExpr:
		case T_NullTest:
		case T_BooleanTest:
		case T_CaseWhen:
		case T_CaseTestExpr:
		case T_ScalarArrayOpExpr:
		case T_DistinctExpr:
		case T_NullIfExpr:
		case T_RowCompareExpr:
			break;
		case T_Var:
			if (TupleDescAttr(check->tupdesc, ((Var *) node)->varattno - 1)->attgenerated != '\0' &&
				TupleDescAttr(check->tupdesc, ((Var *) node)->varattno - 1)->attgenerated != 's')
				ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
								errmsg("%s must not use a virtual generated column", check->what),
								errdetail("Its values are not in the WAL.")));
			/* FALLTHROUGH */
		case T_Const:
		case T_FuncExpr:
		case T_OpExpr:
		case T_RelabelType:
		case T_CoerceViaIO:
		case T_ArrayCoerceExpr:
		case T_ArrayExpr:
		case T_CaseExpr:
		case T_CoalesceExpr:
		case T_MinMaxExpr:
		case T_SubscriptingRef:
			if (!ChannelFilterTypeAllowed(exprType(node)) ||
				getBaseType(exprType(node)) == RECORDOID)
				ereport(
					ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("%s must not use the type %s", check->what,
							format_type_be(exprType(node))),
					 errdetail(
						 "Only types that come with PostgreSQL, enums, and arrays and domains of these are possible."),
					 parser_errposition(check->pstate, exprLocation(node))));
			break;
		default:
			ereport(
				ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("%s uses something that is not possible in events", check->what),
				 errdetail("Possible are columns, constants, operators and immutable functions of "
						   "PostgreSQL, and json_build_object, jsonb_build_object and the like."),
				 parser_errposition(check->pstate, exprLocation(node))));
	}
	check->node = node;
	(void) check_functions_in_node(node, CheckFunction, check);
	return expression_tree_walker(node, CheckNode, context);
}

/* A value of a type behind which nobody's cast to json can be. */
static Node *
PlainValue(EventCheck *check, Node *arg)
{
	Oid type = exprType(arg);
	Oid base = getBaseType(type);
	Oid element = get_element_type(base);

	if (OidIsValid(element) && element >= FirstNormalObjectId)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("%s must not make JSON of the type %s", check->what, format_type_be(type)),
				 errdetail("Its elements are of a user-defined type."),
				 parser_errposition(check->pstate, exprLocation(arg))));
	if (get_typtype(base) == TYPTYPE_ENUM)
	{
		CoerceViaIO *label = makeNode(CoerceViaIO);

		label->arg = (Expr *) arg;
		label->resulttype = TEXTOID;
		label->resultcollid = get_typcollation(TEXTOID);
		label->coerceformat = COERCE_EXPLICIT_CAST;
		label->location = -1;
		return (Node *) label;
	}
	if (base != type)
		return (Node *) makeRelabelType((Expr *) arg, base, -1, get_typcollation(base),
										COERCE_EXPLICIT_CAST);
	return arg;
}

static Node *
PlainArguments(Node *node, void *context)
{
	ListCell *lc;

	if (node == NULL)
		return NULL;
	node = expression_tree_mutator(node, PlainArguments, context);
	if (IsA(node, FuncExpr) && IsJsonConstructor(((FuncExpr *) node)->funcid))
		foreach(lc, ((FuncExpr *) node)->args)
			lfirst(lc) = PlainValue(context, lfirst(lc));
	return node;
}

/* What is no json becomes it. */
static Node *
AsJson(EventCheck *check, Node *expr)
{
	Oid type = exprType(expr);

	if (type == JSONOID || type == JSONBOID)
		return expr;
	if (type == UNKNOWNOID)
		expr = coerce_to_target_type(check->pstate, expr, type, TEXTOID, -1, COERCION_EXPLICIT,
									 COERCE_EXPLICIT_CAST, -1);
	expr = PlainValue(check, expr);
	return (Node *) makeFuncExpr(F_TO_JSONB, JSONBOID, list_make1(expr), InvalidOid,
								 exprCollation(expr), COERCE_EXPLICIT_CALL);
}

Node *
EventAnalyze(const char *what, const char *text, TupleDesc tupdesc, bool condition,
			 EventColumns *columns)
{
	ErrorContextCallback callback;
	ParseState *pstate = make_parsestate(NULL);
	EventCheck check = {what, pstate, tupdesc, columns, NULL};
	Node *expr;

	callback.callback = ExpressionErrorCallback;
	callback.arg = unconstify(char *, text);
	callback.previous = error_context_stack;
	error_context_stack = &callback;

	pstate->p_sourcetext = text;
	pstate->p_pre_columnref_hook = ResolveColumn;
	pstate->p_ref_hook_state = &check;

	/* As a policy it must have no aggregates, window functions or sets. */
	expr = transformExpr(
		pstate,
		ExpressionParse(what, "expression", "Columns are written old.name and new.name.", text),
		EXPR_KIND_POLICY);
	if (condition)
		expr = coerce_to_boolean(pstate, expr, what);
	assign_expr_collations(pstate, expr);
	(void) CheckNode(expr, &check);
	expr = PlainArguments(expr, &check);
	if (!condition)
		expr = AsJson(&check, expr);

	error_context_stack = callback.previous;
	free_parsestate(pstate);
	return expr;
}
