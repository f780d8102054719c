/*-------------------------------------------------------------------------
 *
 * channel_filter.c
 *		A filter, a source's or a client's: parsed, checked and written in
 *		canonical form.
 *
 * The feed worker evaluates filters on images of rows, as nobody in
 * particular, in a process that must not run anybody's code.  Hence only
 * immutable functions and operators that come with the server, on types that
 * come with the server (or enums, domains and arrays of them, which have no
 * code of their own).
 *
 * The canonical text does not depend on the session that reads it: everything
 * outside of pg_catalog is qualified, and constants are in the styles that the
 * workers use.  Literals, though, are read with the settings of the session
 * that declares the source, as in any other SQL.
 *
 * Process: any backend, query workers.  Memory: results in CurrentMemoryContext.  Locks: the
 * caller's lock on the table.  The caller pins search_path.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "channel_check.h"
#include "encode.h"
#include "expression.h"

#include "access/sysattr.h"
#include "access/transam.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "nodes/bitmapset.h"
#include "nodes/nodeFuncs.h"
#include "nodes/parsenodes.h"
#include "nodes/primnodes.h"
#include "optimizer/optimizer.h"
#include "parser/parse_coerce.h"
#include "parser/parse_collate.h"
#include "parser/parse_expr.h"
#include "parser/parse_node.h"
#include "parser/parse_relation.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/rel.h"
#include "utils/ruleutils.h"

typedef struct FilterCheck
{
	ParseState *pstate;
	Relation rel;
	Node *node; /* at hand, for the position in messages */
} FilterCheck;

static bool
RefuseSubqueries(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, SubLink))
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("filter must not contain a subquery"),
						errdetail("A filter sees only the row itself."),
						parser_errposition(context, ((SubLink *) node)->location)));
	return raw_expression_tree_walker(node, RefuseSubqueries, context);
}

static Node *
ParseFilter(ParseState *pstate, const char *filter)
{
	Node *node = ExpressionParse("filter", "boolean expression",
								 "Write it as after WHERE, without WHERE.", filter);

	RefuseSubqueries(node, pstate);
	return node;
}

bool
ChannelFilterTypeAllowed(Oid typid)
{
	Oid base = getBaseType(typid);
	Oid element;

	if (base == RECORDOID)
		return true; /* ROW(a, b) = ROW(1, 2) */
	element = get_base_element_type(base);
	if (OidIsValid(element))
		return ChannelFilterTypeAllowed(element);
	switch (get_typtype(base))
	{
		case TYPTYPE_ENUM:
			return true;
		case TYPTYPE_COMPOSITE:
			return false;
		default:
			return base < FirstNormalObjectId;
	}
}

static void
CheckFilterType(FilterCheck *check, Node *node)
{
	Oid typid = exprType(node);

	if (!ChannelFilterTypeAllowed(typid))
		ereport(
			ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("filter must not use the type %s", format_type_be(typid)),
			 errdetail(
				 "Only types that come with PostgreSQL, enums, and arrays and domains of these are possible."),
			 parser_errposition(check->pstate, exprLocation(node))));
}

static bool
CheckFilterFunction(Oid function, void *context)
{
	FilterCheck *check = context;
	Oid operator= InvalidOid;
	const char *name;

	/* People wrote an operator, not the function behind it. */
	if (IsA(check->node, OpExpr) || IsA(check->node, DistinctExpr) || IsA(check->node, NullIfExpr))
		operator=((OpExpr *) check->node)->opno;
	else if (IsA(check->node, ScalarArrayOpExpr))
		operator=((ScalarArrayOpExpr *) check->node)->opno;
	name = OidIsValid(operator) ? format_operator(operator) : format_procedure(function);

	if (function >= FirstNormalObjectId || operator>= FirstNormalObjectId)
		ereport(
			ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 OidIsValid(operator)
				 ? errmsg("filter must not use the user-defined operator %s", name)
				 : errmsg("filter must not use the user-defined function %s", name),
			 errdetail(
				 "Only what comes with PostgreSQL is possible, because filters are evaluated by the server itself."),
			 errhint("Let a stored generated column hold the result, and filter by that."),
			 parser_errposition(check->pstate, exprLocation(check->node))));

	if (func_volatile(function) != PROVOLATILE_IMMUTABLE)
		ereport(
			ERROR,
			(errcode(ERRCODE_INVALID_OBJECT_DEFINITION),
			 OidIsValid(operator)
				 ? errmsg("filter must not use the operator %s, which is not immutable", name)
				 : errmsg("filter must not use the function %s, which is not immutable", name),
			 errdetail(
				 "Whether a row belongs to the channel may depend on the row only, not on the time, on settings or on other tables."),
			 parser_errposition(check->pstate, exprLocation(check->node))));
	return false;
}

static void
CheckFilterColumn(FilterCheck *check, Var *var)
{
	Form_pg_attribute att;

	if (var->varattno == InvalidAttrNumber)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("filter must not refer to the whole row"), errhint("Name the columns."),
				 parser_errposition(check->pstate, var->location)));
	if (var->varattno < 0)
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("filter must not use the system column \"%s\"",
							   get_attname(RelationGetRelid(check->rel), var->varattno, false)),
						parser_errposition(check->pstate, var->location)));

	att = TupleDescAttr(RelationGetDescr(check->rel), var->varattno - 1);
	if (att->attgenerated != '\0' && att->attgenerated != ATTRIBUTE_GENERATED_STORED)
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("filter must not use the virtual generated column \"%s\"",
							   NameStr(att->attname)),
						errdetail("Its values are not in the WAL."),
						errhint("Make it a stored generated column."),
						parser_errposition(check->pstate, var->location)));
}

static bool
CheckFilterNode(Node *node, void *context)
{
	FilterCheck *check = context;

	if (node == NULL)
		return false;

	switch (nodeTag(node))
	{
		case T_Var:
			CheckFilterColumn(check, (Var *) node);
			CheckFilterType(check, node);
			break;

			/* Made by other means than a function that would be looked at. */
		case T_CoerceToDomain:
			ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
							errmsg("filter must not convert to the domain %s",
								   format_type_be(((CoerceToDomain *) node)->resulttype)),
							errdetail("That would evaluate the domain's constraints."),
							errhint("Convert to the domain's base type."),
							parser_errposition(check->pstate, exprLocation(node))));
			break;
		case T_SQLValueFunction:
			ereport(
				ERROR,
				(errcode(ERRCODE_INVALID_OBJECT_DEFINITION),
				 errmsg("filter must not use the current time, user or schema"),
				 errdetail(
					 "Whether a row belongs to the channel may depend on the row only, not on the time, on settings or on other tables."),
				 parser_errposition(check->pstate, exprLocation(node))));
			break;

		case T_XmlExpr:
			ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
							errmsg("filter must not use XML expressions"),
							parser_errposition(check->pstate, exprLocation(node))));
			break;

		case T_Const:
		case T_FuncExpr:
		case T_OpExpr:
		case T_RelabelType:
		case T_CoerceViaIO:
		case T_ArrayCoerceExpr:
		case T_ConvertRowtypeExpr:
		case T_ArrayExpr:
		case T_CaseExpr:
		case T_CoalesceExpr:
		case T_MinMaxExpr:
			CheckFilterType(check, node);
			break;
		default:
			break;
	}

	check->node = node;
	(void) check_functions_in_node(node, CheckFilterFunction, check);
	return expression_tree_walker(node, CheckFilterNode, context);
}

/* The filter as a checked expression; the relation is number 1 in it. */
Node *
ChannelAnalyzeFilter(Relation rel, const char *filter)
{
	ErrorContextCallback callback;
	ParseState *pstate = make_parsestate(NULL);
	ParseNamespaceItem *nsitem;
	Node *expr;
	FilterCheck check;

	callback.callback = ExpressionErrorCallback;
	callback.arg = unconstify(char *, filter);
	callback.previous = error_context_stack;
	error_context_stack = &callback;

	pstate->p_sourcetext = filter;
	expr = ParseFilter(pstate, filter);
	nsitem = addRangeTableEntryForRelation(pstate, rel, AccessShareLock, NULL, false, true);
	addNSItemToQuery(pstate, nsitem, false, true, true);
	expr = transformExpr(pstate, expr, EXPR_KIND_WHERE);
	expr = coerce_to_boolean(pstate, expr, "filter");
	assign_expr_collations(pstate, expr);

	check.pstate = pstate;
	check.rel = rel;
	check.node = NULL;
	(void) CheckFilterNode(expr, &check);

	/* A second opinion on nodes that have no function of their own. */
	if (contain_mutable_functions(expr))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_OBJECT_DEFINITION), errmsg("filter must be immutable")));

	error_context_stack = callback.previous;
	free_parsestate(pstate);
	return expr;
}

/* The same text for every session. */
char *
ChannelFilterText(Relation rel, Node *expr)
{
	int nestlevel = EncodePinnedBegin();
	char *text = deparse_expression(
		expr, deparse_context_for(RelationGetRelationName(rel), RelationGetRelid(rel)), false,
		false);

	EncodePinnedEnd(nestlevel);
	return text;
}

/*
 * Returns the canonical text, and appends the names of the columns that the
 * filter reads to `columns`.
 */
char *
ChannelCheckFilter(Relation rel, const char *filter, List **columns)
{
	Node *expr = ChannelAnalyzeFilter(rel, filter);
	Bitmapset *attnos = NULL;
	int i = -1;

	pull_varattnos(expr, 1, &attnos);
	while ((i = bms_next_member(attnos, i)) >= 0)
		*columns = lappend(*columns, get_attname(RelationGetRelid(rel),
												 i + FirstLowInvalidHeapAttributeNumber, false));
	return ChannelFilterText(rel, expr);
}
