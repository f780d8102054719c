/*-------------------------------------------------------------------------
 *
 * typescript.c
 *		What typescript_types() cannot find in catalogs: which columns a filter
 *		reads, and what the payload of an event looks like.
 *
 * Both expressions are texts that were checked when they were declared.  They
 * are read again here, by the same functions, and never evaluated.  What is not
 * understood is an error of these, and SQL goes on without.
 *
 * Process: backends.  Memory: CurrentMemoryContext.  Locks: AccessShareLock on
 * the table, for as long as the expression is read.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "channel_check.h"
#include "event.h"

#include "access/table.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

PG_FUNCTION_INFO_V1(changefeed_filter_columns);
PG_FUNCTION_INFO_V1(changefeed_payload_shape);

/* _ts_filter(source, filter): the columns that a filter reads. */
Datum
changefeed_filter_columns(PG_FUNCTION_ARGS)
{
	Relation rel = table_open(PG_GETARG_OID(0), AccessShareLock);
	List *columns = NIL;
	ListCell *lc;
	Datum *names;
	int count = 0;

	(void) ChannelCheckFilter(rel, text_to_cstring(PG_GETARG_TEXT_PP(1)), &columns);
	table_close(rel, AccessShareLock);
	names = palloc(sizeof(Datum) * Max(list_length(columns), 1));
	foreach(lc, columns)
		names[count++] = DirectFunctionCall1(namein, CStringGetDatum(lfirst(lc)));
	PG_RETURN_ARRAYTYPE_P(
		construct_array(names, count, NAMEOID, NAMEDATALEN, false, TYPALIGN_CHAR));
}

typedef struct Shape
{
	StringInfo out;
	TupleDesc tupdesc;
} Shape;

/* The text of a constant that is one, or NULL. */
static char *
ConstantText(Node *node)
{
	Const *constant = (Const *) node;

	if (!IsA(node, Const) || constant->constisnull)
		return NULL;
	if (constant->consttype == UNKNOWNOID)
		return DatumGetCString(constant->constvalue);
	if (constant->consttype == TEXTOID)
		return TextDatumGetCString(constant->constvalue);
	return NULL;
}

static void Describe(Shape *shape, Node *node);

static void
DescribeType(Shape *shape, Oid type, int dimensions)
{
	appendStringInfo(shape->out, "\"type\":%u,\"dimensions\":%d", getBaseType(type), dimensions);
}

static void
DescribeColumn(Shape *shape, Var *var)
{
	Form_pg_attribute att = TupleDescAttr(shape->tupdesc, var->varattno - 1);

	DescribeType(shape, att->atttypid, att->attndims);
	appendStringInfo(shape->out, ",\"%s\":", var->varno == OUTER_VAR ? "old" : "new");
	escape_json(shape->out, NameStr(att->attname));
}

/* False: which members it has is not known before it is evaluated. */
static bool
DescribeObject(Shape *shape, List *args)
{
	ListCell *lc;
	const char *separator = "";
	int i;

	for (i = 0; i < list_length(args); i += 2)
		if (ConstantText(list_nth(args, i)) == NULL)
			return false;
	appendStringInfoString(shape->out, "\"object\":[");
	for (lc = list_head(args); lc != NULL && lnext(args, lc) != NULL; lc = lnext(args, lc))
	{
		appendStringInfo(shape->out, "%s[", separator);
		escape_json(shape->out, ConstantText(lfirst(lc)));
		appendStringInfoChar(shape->out, ',');
		lc = lnext(args, lc);
		Describe(shape, lfirst(lc));
		appendStringInfoChar(shape->out, ']');
		separator = ",";
	}
	appendStringInfoChar(shape->out, ']');
	return true;
}

static void
DescribeArray(Shape *shape, List *args)
{
	ListCell *lc;

	appendStringInfoString(shape->out, "\"array\":[");
	foreach(lc, args)
	{
		if (lc != list_head(args))
			appendStringInfoChar(shape->out, ',');
		Describe(shape, lfirst(lc));
	}
	appendStringInfoChar(shape->out, ']');
}

static bool
DescribeFunction(Shape *shape, FuncExpr *function)
{
	if (function->funcvariadic)
		return false;
	switch (function->funcid)
	{
		case F_JSON_BUILD_OBJECT_:
		case F_JSON_BUILD_OBJECT_ANY:
		case F_JSONB_BUILD_OBJECT_:
		case F_JSONB_BUILD_OBJECT_ANY:
			return DescribeObject(shape, function->args);
		case F_JSON_BUILD_ARRAY_:
		case F_JSON_BUILD_ARRAY_ANY:
		case F_JSONB_BUILD_ARRAY_:
		case F_JSONB_BUILD_ARRAY_ANY:
			DescribeArray(shape, function->args);
			return true;
		default:
			return false;
	}
}

/* Without what makes json of a value, or of an enum its label. */
static Node *
Bare(Node *node)
{
	for (;;)
	{
		FuncExpr *function = (FuncExpr *) node;
		Node *arg;

		if (IsA(node, FuncExpr) && !function->funcvariadic &&
			(function->funcid == F_TO_JSON || function->funcid == F_TO_JSONB))
			node = linitial(function->args);
		else if (IsA(node, RelabelType) &&
				 (arg = (Node *) ((RelabelType *) node)->arg,
				  getBaseType(exprType(arg)) == ((RelabelType *) node)->resulttype))
			node = arg;
		else if (IsA(node, CoerceViaIO) && ((CoerceViaIO *) node)->resulttype == TEXTOID &&
				 (arg = (Node *) ((CoerceViaIO *) node)->arg,
				  get_typtype(getBaseType(exprType(arg))) == TYPTYPE_ENUM))
			node = arg;
		else
			return node;
	}
}

static void
Describe(Shape *shape, Node *node)
{
	check_stack_depth();
	node = Bare(node);
	appendStringInfoChar(shape->out, '{');
	if (IsA(node, Const) && ((Const *) node)->constisnull)
		appendStringInfoString(shape->out, "\"null\":true");
	else if (ConstantText(node) != NULL)
	{
		appendStringInfoString(shape->out, "\"string\":");
		escape_json(shape->out, ConstantText(node));
	}
	else if (IsA(node, Var))
		DescribeColumn(shape, (Var *) node);
	else if (!IsA(node, FuncExpr) || !DescribeFunction(shape, (FuncExpr *) node))
	{
		DescribeType(shape, exprType(node), 0);
		if (IsA(node, Const))
			appendStringInfoString(shape->out, ",\"known\":true");
	}
	appendStringInfoChar(shape->out, '}');
}

/* _ts_payload(source, payload): a description of what an event sends. */
Datum
changefeed_payload_shape(PG_FUNCTION_ARGS)
{
	Relation rel = table_open(PG_GETARG_OID(0), AccessShareLock);
	EventColumns columns = {0};
	StringInfoData out;
	Shape shape = {&out, RelationGetDescr(rel)};

	initStringInfo(&out);
	Describe(&shape, EventAnalyze("payload", text_to_cstring(PG_GETARG_TEXT_PP(1)), shape.tupdesc,
								  false, &columns));
	table_close(rel, AccessShareLock);
	PG_RETURN_TEXT_P(cstring_to_text(out.data));
}
