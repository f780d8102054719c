/*-------------------------------------------------------------------------
 *
 * channel_join.c
 *		A channel's join_check or publish_check: parsed, and written in canonical
 *		form.
 *
 * The expression is evaluated in query workers as the subscriber, with the
 * subscriber's privileges, so it may do what the subscriber could do anyway.
 * Parameters of the channel's name are written as if they were columns.  In the
 * canonical text they are $1 and so on, which are always given as text, and
 * converted to the type that the first source's column has; so the text is all
 * that is needed to evaluate it, whatever becomes of the sources.
 *
 * As in filters nothing depends on the search_path of a session: names outside
 * of pg_catalog have to be qualified.  A name that is both a parameter and a
 * column in a subquery is refused, since one would be taken for the other.
 *
 * Process: any backend.  Memory: results in CurrentMemoryContext.  Locks:
 * AccessShareLock on the tables that it names, until the transaction's end.
 * The caller pins search_path.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "channel_check.h"
#include "expression.h"
#include "encode.h"

#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "nodes/makefuncs.h"
#include "nodes/parsenodes.h"
#include "nodes/primnodes.h"
#include "parser/parse_coerce.h"
#include "parser/parse_collate.h"
#include "parser/parse_expr.h"
#include "parser/parse_node.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/ruleutils.h"

typedef struct JoinScope
{
	const ChannelTemplate *template;
	Oid relid; /* InvalidOid: parameters are text */
} JoinScope;

static void
JoinErrorCallback(void *arg)
{
	ExpressionErrorCallback(arg);
	if (geterrcode() == ERRCODE_UNDEFINED_TABLE)
		errhint("Write tables with their schema, such as public.members.");
}

static Oid
ParameterType(const JoinScope *scope, const char *name)
{
	AttrNumber attno;

	if (!OidIsValid(scope->relid))
		return TEXTOID;
	attno = get_attnum(scope->relid, name);
	return attno > 0 ? getBaseType(get_atttype(scope->relid, attno)) : TEXTOID;
}

static Node *
ResolveParameter(ParseState *pstate, ColumnRef *ref, Node *column)
{
	JoinScope *scope = pstate->p_ref_hook_state;
	const char *name;
	Oid type;
	Param *param;
	Node *result;
	int i;

	if (list_length(ref->fields) != 1 || !IsA(linitial(ref->fields), String))
		return NULL;
	name = strVal(linitial(ref->fields));
	for (i = 0; i < scope->template->nparams; i++)
		if (strcmp(scope->template->params[i], name) == 0)
			break;
	if (i == scope->template->nparams)
		return NULL;
	if (column != NULL)
		ereport(ERROR, (errcode(ERRCODE_AMBIGUOUS_COLUMN),
						errmsg("column reference \"%s\" is ambiguous", name),
						errdetail("It could be the parameter of the channel's name or a column."),
						errhint("Write the column with the name or alias of its table. If the "
								"parameter is meant, give the subquery no such column."),
						parser_errposition(pstate, ref->location)));

	param = makeNode(Param);
	param->paramkind = PARAM_EXTERN;
	param->paramid = i + 1;
	param->paramtype = TEXTOID;
	param->paramtypmod = -1;
	param->paramcollid = DEFAULT_COLLATION_OID;
	param->location = ref->location;
	type = ParameterType(scope, name);
	result = coerce_to_target_type(pstate, (Node *) param, TEXTOID, type, -1, COERCION_EXPLICIT,
								   COERCE_EXPLICIT_CAST, ref->location);
	if (result == NULL)
		ereport(ERROR, (errcode(ERRCODE_CANNOT_COERCE),
						errmsg("parameter \"%s\" cannot be converted to type %s", name,
							   format_type_be(type)),
						parser_errposition(pstate, ref->location)));
	return result;
}

char *
ChannelCheckJoin(const char *what, const char *check, const ChannelTemplate *template, Oid relid)
{
	ErrorContextCallback callback;
	ParseState *pstate = make_parsestate(NULL);
	JoinScope scope = {template, relid};
	Node *expr;
	char *text;
	int nestlevel;

	callback.callback = JoinErrorCallback;
	callback.arg = unconstify(char *, check);
	callback.previous = error_context_stack;
	error_context_stack = &callback;

	pstate->p_sourcetext = check;
	pstate->p_post_columnref_hook = ResolveParameter;
	pstate->p_ref_hook_state = &scope;
	expr = transformExpr(pstate,
						 ExpressionParse(what, "boolean expression",
										 "Write it as after WHERE, without WHERE.", check),
						 EXPR_KIND_WHERE);
	expr = coerce_to_boolean(pstate, expr, what);
	assign_expr_collations(pstate, expr);

	nestlevel = EncodePinnedBegin();
	text = deparse_expression(expr, NIL, false, false);
	EncodePinnedEnd(nestlevel);

	error_context_stack = callback.previous;
	free_parsestate(pstate);
	return text;
}
