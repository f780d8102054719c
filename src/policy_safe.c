/*-------------------------------------------------------------------------
 *
 * policy_safe.c
 *		What the feed worker may evaluate of policies.
 *
 * It is a list, and what is not on it is left to query workers: built-in
 * functions that are immutable, take memory in proportion to what they are given
 * and time at most to the product of two of it (large values are left to query
 * workers then: policy_rule.c), and look at no catalog and no setting.  Not on it are, for
 * example, regular expressions, what makes long values of short ones (repeat,
 * lpad), and what depends on the time zone.  Types are those that such functions
 * are safe for whatever they call through the type: an array of a user's type
 * would be compared by the user's function.
 *
 * A query worker asks before it offers a rule, and the feed worker asks again.
 *
 * Process: feed worker, query workers, and backends that explain.  Memory:
 * CurrentMemoryContext.  Needs a transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "policy_safe.h"

#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "nodes/nodeFuncs.h"
#include "nodes/primnodes.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"

/* They do not raise errors, whatever the values. */
static const Oid never_fail[] = {F_BOOLLT,
								 F_BOOLGT,
								 F_BOOLEQ,
								 F_BOOLNE,
								 F_BOOLLE,
								 F_BOOLGE,
								 F_INT2EQ,
								 F_INT2LT,
								 F_INT2NE,
								 F_INT2GT,
								 F_INT2LE,
								 F_INT2GE,
								 F_INT24EQ,
								 F_INT24LT,
								 F_INT24GT,
								 F_INT24NE,
								 F_INT24LE,
								 F_INT24GE,
								 F_INT28EQ,
								 F_INT28NE,
								 F_INT28LT,
								 F_INT28GT,
								 F_INT28LE,
								 F_INT28GE,
								 F_INT42EQ,
								 F_INT42LT,
								 F_INT42GT,
								 F_INT42NE,
								 F_INT42LE,
								 F_INT42GE,
								 F_INT4EQ,
								 F_INT4LT,
								 F_INT4NE,
								 F_INT4GT,
								 F_INT4LE,
								 F_INT4GE,
								 F_INT48EQ,
								 F_INT48NE,
								 F_INT48LT,
								 F_INT48GT,
								 F_INT48LE,
								 F_INT48GE,
								 F_INT82EQ,
								 F_INT82NE,
								 F_INT82LT,
								 F_INT82GT,
								 F_INT82LE,
								 F_INT82GE,
								 F_INT84EQ,
								 F_INT84NE,
								 F_INT84LT,
								 F_INT84GT,
								 F_INT84LE,
								 F_INT84GE,
								 F_INT8EQ,
								 F_INT8NE,
								 F_INT8LT,
								 F_INT8GT,
								 F_INT8LE,
								 F_INT8GE,
								 F_FLOAT4EQ,
								 F_FLOAT4NE,
								 F_FLOAT4LT,
								 F_FLOAT4LE,
								 F_FLOAT4GT,
								 F_FLOAT4GE,
								 F_FLOAT48EQ,
								 F_FLOAT48NE,
								 F_FLOAT48LT,
								 F_FLOAT48LE,
								 F_FLOAT48GT,
								 F_FLOAT48GE,
								 F_FLOAT84EQ,
								 F_FLOAT84NE,
								 F_FLOAT84LT,
								 F_FLOAT84LE,
								 F_FLOAT84GT,
								 F_FLOAT84GE,
								 F_FLOAT8EQ,
								 F_FLOAT8NE,
								 F_FLOAT8LT,
								 F_FLOAT8LE,
								 F_FLOAT8GT,
								 F_FLOAT8GE,
								 F_NUMERIC_EQ,
								 F_NUMERIC_NE,
								 F_NUMERIC_GT,
								 F_NUMERIC_GE,
								 F_NUMERIC_LT,
								 F_NUMERIC_LE,
								 F_TEXTEQ,
								 F_TEXTNE,
								 F_TEXT_LT,
								 F_TEXT_LE,
								 F_TEXT_GT,
								 F_TEXT_GE,
								 F_TEXTEQNAME,
								 F_TEXTLTNAME,
								 F_TEXTLENAME,
								 F_TEXTGENAME,
								 F_TEXTGTNAME,
								 F_TEXTNENAME,
								 F_BPCHAREQ,
								 F_BPCHARLT,
								 F_BPCHARLE,
								 F_BPCHARGT,
								 F_BPCHARGE,
								 F_BPCHARNE,
								 F_NAMEEQTEXT,
								 F_NAMELTTEXT,
								 F_NAMELETEXT,
								 F_NAMEGETEXT,
								 F_NAMEGTTEXT,
								 F_NAMENETEXT,
								 F_NAMEEQ,
								 F_NAMELT,
								 F_NAMELE,
								 F_NAMEGT,
								 F_NAMEGE,
								 F_NAMENE,
								 F_CHAREQ,
								 F_CHARNE,
								 F_CHARLE,
								 F_CHARGT,
								 F_CHARGE,
								 F_CHARLT,
								 F_UUID_LT,
								 F_UUID_LE,
								 F_UUID_EQ,
								 F_UUID_GE,
								 F_UUID_GT,
								 F_UUID_NE,
								 F_DATE_EQ,
								 F_DATE_LT,
								 F_DATE_LE,
								 F_DATE_GT,
								 F_DATE_GE,
								 F_DATE_NE,
								 F_DATE_LT_TIMESTAMP,
								 F_DATE_LE_TIMESTAMP,
								 F_DATE_EQ_TIMESTAMP,
								 F_DATE_GT_TIMESTAMP,
								 F_DATE_GE_TIMESTAMP,
								 F_DATE_NE_TIMESTAMP,
								 F_TIME_LT,
								 F_TIME_LE,
								 F_TIME_GT,
								 F_TIME_GE,
								 F_TIME_NE,
								 F_TIME_EQ,
								 F_TIMETZ_EQ,
								 F_TIMETZ_NE,
								 F_TIMETZ_LT,
								 F_TIMETZ_LE,
								 F_TIMETZ_GE,
								 F_TIMETZ_GT,
								 F_TIMESTAMP_LT_DATE,
								 F_TIMESTAMP_LE_DATE,
								 F_TIMESTAMP_EQ_DATE,
								 F_TIMESTAMP_GT_DATE,
								 F_TIMESTAMP_GE_DATE,
								 F_TIMESTAMP_NE_DATE,
								 F_TIMESTAMP_EQ,
								 F_TIMESTAMP_NE,
								 F_TIMESTAMP_LT,
								 F_TIMESTAMP_LE,
								 F_TIMESTAMP_GE,
								 F_TIMESTAMP_GT,
								 F_TIMESTAMPTZ_EQ,
								 F_TIMESTAMPTZ_NE,
								 F_TIMESTAMPTZ_LT,
								 F_TIMESTAMPTZ_LE,
								 F_TIMESTAMPTZ_GE,
								 F_TIMESTAMPTZ_GT,
								 F_INTERVAL_EQ,
								 F_INTERVAL_NE,
								 F_INTERVAL_LT,
								 F_INTERVAL_LE,
								 F_INTERVAL_GE,
								 F_INTERVAL_GT,
								 F_OIDEQ,
								 F_OIDNE,
								 F_OIDLT,
								 F_OIDLE,
								 F_OIDGT,
								 F_OIDGE,
								 F_JSONB_NE,
								 F_JSONB_LT,
								 F_JSONB_GT,
								 F_JSONB_LE,
								 F_JSONB_GE,
								 F_JSONB_EQ,
								 F_BYTEAEQ,
								 F_BYTEALT,
								 F_BYTEALE,
								 F_BYTEAGT,
								 F_BYTEAGE,
								 F_BYTEANE,
								 F_NETWORK_EQ,
								 F_NETWORK_LT,
								 F_NETWORK_LE,
								 F_NETWORK_GT,
								 F_NETWORK_GE,
								 F_NETWORK_NE,
								 F_MACADDR_EQ,
								 F_MACADDR_LT,
								 F_MACADDR_LE,
								 F_MACADDR_GT,
								 F_MACADDR_GE,
								 F_MACADDR_NE,
								 F_MACADDR8_EQ,
								 F_MACADDR8_LT,
								 F_MACADDR8_LE,
								 F_MACADDR8_GT,
								 F_MACADDR8_GE,
								 F_MACADDR8_NE,
								 F_ARRAY_NE,
								 F_ARRAY_LT,
								 F_ARRAY_GT,
								 F_ARRAY_LE,
								 F_ARRAY_GE,
								 F_ARRAY_EQ,
								 F_ENUM_EQ,
								 F_ENUM_NE,
								 F_ARRAYCONTAINS,
								 F_ARRAYCONTAINED,
								 F_ARRAYOVERLAP,
								 F_CARDINALITY,
								 F_ARRAY_LENGTH,
								 F_JSONB_OBJECT_FIELD,
								 F_JSONB_OBJECT_FIELD_TEXT,
								 F_JSONB_ARRAY_ELEMENT,
								 F_JSONB_ARRAY_ELEMENT_TEXT,
								 F_JSONB_EXTRACT_PATH,
								 F_JSONB_EXTRACT_PATH_TEXT,
								 F_JSONB_EXISTS,
								 F_JSONB_EXISTS_ANY,
								 F_JSONB_EXISTS_ALL,
								 F_JSONB_CONTAINS,
								 F_JSONB_CONTAINED,
								 F_JSONB_TYPEOF,
								 F_NETWORK_SUB,
								 F_NETWORK_SUBEQ,
								 F_NETWORK_SUP,
								 F_NETWORK_SUPEQ,
								 F_NETWORK_OVERLAP,
								 F_FAMILY,
								 F_MASKLEN,
								 F_LENGTH_TEXT,
								 F_CHAR_LENGTH_TEXT,
								 F_OCTET_LENGTH_TEXT,
								 F_OCTET_LENGTH_BYTEA,
								 F_LENGTH_BYTEA,
								 F_LENGTH_BPCHAR,
								 F_CHAR_LENGTH_BPCHAR,
								 F_LOWER_TEXT,
								 F_UPPER_TEXT,
								 F_BTRIM_TEXT,
								 F_LTRIM_TEXT,
								 F_RTRIM_TEXT,
								 F_BTRIM_TEXT_TEXT,
								 F_LTRIM_TEXT_TEXT,
								 F_RTRIM_TEXT_TEXT,
								 F_LEFT,
								 F_RIGHT,
								 F_STRPOS,
								 F_STARTS_WITH,
								 F_TEXT_BPCHAR,
								 F_TEXT_NAME,
								 F_TEXT_BOOL,
								 F_TEXT_CHAR,
								 F_NAME_TEXT,
								 F_NAME_VARCHAR,
								 F_NAME_BPCHAR,
								 F_VARCHAR_NAME,
								 F_BPCHAR_NAME,
								 F_BPCHAR_CHAR,
								 F_INT4_INT2,
								 F_INT8_INT2,
								 F_INT8_INT4,
								 F_INT8_OID,
								 F_INT4_BOOL,
								 F_BOOL_INT4,
								 F_NUMERIC_INT2,
								 F_NUMERIC_INT4,
								 F_NUMERIC_INT8,
								 F_FLOAT4_INT2,
								 F_FLOAT4_INT4,
								 F_FLOAT4_INT8,
								 F_FLOAT8_INT2,
								 F_FLOAT8_INT4,
								 F_FLOAT8_INT8,
								 F_FLOAT8_FLOAT4,
								 F_INT2AND,
								 F_INT2OR,
								 F_INT4AND,
								 F_INT4OR,
								 F_INT8AND,
								 F_INT8OR,
								 F_ISFINITE_DATE,
								 F_ISFINITE_TIMESTAMP,
								 F_ISFINITE_TIMESTAMPTZ};

static const Oid may_fail[] = {F_INT2PL,
							   F_INT2MI,
							   F_INT2MUL,
							   F_INT2DIV,
							   F_INT2MOD,
							   F_INT4PL,
							   F_INT4MI,
							   F_INT4MUL,
							   F_INT4DIV,
							   F_INT4MOD,
							   F_INT8PL,
							   F_INT8MI,
							   F_INT8MUL,
							   F_INT8DIV,
							   F_INT8MOD,
							   F_INT24PL,
							   F_INT24MI,
							   F_INT24MUL,
							   F_INT24DIV,
							   F_INT28PL,
							   F_INT28MI,
							   F_INT28MUL,
							   F_INT28DIV,
							   F_INT42PL,
							   F_INT42MI,
							   F_INT42MUL,
							   F_INT42DIV,
							   F_INT48PL,
							   F_INT48MI,
							   F_INT48MUL,
							   F_INT48DIV,
							   F_INT82PL,
							   F_INT82MI,
							   F_INT82MUL,
							   F_INT82DIV,
							   F_INT84PL,
							   F_INT84MI,
							   F_INT84MUL,
							   F_INT84DIV,
							   F_INT2UM,
							   F_INT4UM,
							   F_INT8UM,
							   F_MOD_INT2_INT2,
							   F_MOD_INT4_INT4,
							   F_MOD_INT8_INT8,
							   F_ABS_INT2,
							   F_ABS_INT4,
							   F_ABS_INT8,
							   F_INT2ABS,
							   F_INT4ABS,
							   F_INT8ABS,
							   F_FLOAT4PL,
							   F_FLOAT4MI,
							   F_FLOAT4MUL,
							   F_FLOAT4DIV,
							   F_FLOAT8PL,
							   F_FLOAT8MI,
							   F_FLOAT8MUL,
							   F_FLOAT8DIV,
							   F_FLOAT48PL,
							   F_FLOAT48MI,
							   F_FLOAT48MUL,
							   F_FLOAT48DIV,
							   F_FLOAT84PL,
							   F_FLOAT84MI,
							   F_FLOAT84MUL,
							   F_FLOAT84DIV,
							   F_NUMERIC_ADD,
							   F_NUMERIC_SUB,
							   F_NUMERIC_MUL,
							   F_NUMERIC_DIV,
							   F_NUMERIC_MOD,
							   F_NUMERIC_UMINUS,
							   F_NUMERIC_ABS,
							   F_ABS_NUMERIC,
							   F_NUMERIC_NUMERIC_INT4,
							   F_INT2_INT4,
							   F_INT2_INT8,
							   F_INT2_NUMERIC,
							   F_INT2_FLOAT4,
							   F_INT2_FLOAT8,
							   F_INT4_INT8,
							   F_INT4_NUMERIC,
							   F_INT4_FLOAT4,
							   F_INT4_FLOAT8,
							   F_INT8_NUMERIC,
							   F_INT8_FLOAT4,
							   F_INT8_FLOAT8,
							   F_FLOAT4_FLOAT8,
							   F_FLOAT4_NUMERIC,
							   F_FLOAT8_NUMERIC,
							   F_NUMERIC_FLOAT4,
							   F_NUMERIC_FLOAT8,
							   F_OID,
							   F_BOOL_JSONB,
							   F_INT2_JSONB,
							   F_INT4_JSONB,
							   F_INT8_JSONB,
							   F_NUMERIC_JSONB,
							   F_FLOAT4_JSONB,
							   F_FLOAT8_JSONB,
							   F_JSONB_ARRAY_LENGTH,
							   F_TEXTLIKE,
							   F_TEXTNLIKE,
							   F_TEXTICLIKE,
							   F_TEXTICNLIKE,
							   F_BPCHARLIKE,
							   F_BPCHARNLIKE,
							   F_BPCHARICLIKE,
							   F_BPCHARICNLIKE,
							   F_NAMELIKE,
							   F_NAMENLIKE,
							   F_TEXTCAT,
							   F_SUBSTR_TEXT_INT4,
							   F_SUBSTR_TEXT_INT4_INT4,
							   F_SUBSTRING_TEXT_INT4,
							   F_SUBSTRING_TEXT_INT4_INT4,
							   F_SPLIT_PART,
							   F_VARCHAR_VARCHAR_INT4_BOOL,
							   F_BPCHAR_BPCHAR_INT4_BOOL,
							   F_DATE_MI,
							   F_DATE_PLI,
							   F_DATE_MII,
							   F_DATE_PL_INTERVAL,
							   F_DATE_MI_INTERVAL,
							   F_TIMESTAMP_MI,
							   F_TIMESTAMPTZ_MI,
							   F_TIMESTAMP_PL_INTERVAL,
							   F_TIMESTAMP_MI_INTERVAL,
							   F_DATE_TIMESTAMP,
							   F_TIMESTAMP_DATE,
							   F_TIME_TIMESTAMP,
							   F_EXTRACT_TEXT_DATE,
							   F_EXTRACT_TEXT_TIMESTAMP,
							   F_DATE_PART_TEXT_TIMESTAMP,
							   F_DATE_TRUNC_TEXT_TIMESTAMP};

/* Of these, they take time in proportion to the product of two values. */
static const Oid slow[] = {
	F_ARRAYCONTAINS,  F_ARRAYCONTAINED,	 F_ARRAYOVERLAP,	F_JSONB_EXISTS_ANY, F_JSONB_EXISTS_ALL,
	F_JSONB_CONTAINS, F_JSONB_CONTAINED, F_BTRIM_TEXT_TEXT, F_LTRIM_TEXT_TEXT,	F_RTRIM_TEXT_TEXT,
	F_STRPOS,		  F_SPLIT_PART,		 F_TEXTLIKE,		F_TEXTNLIKE,		F_TEXTICLIKE,
	F_TEXTICNLIKE,	  F_BPCHARLIKE,		 F_BPCHARNLIKE,		F_BPCHARICLIKE,		F_BPCHARICNLIKE,
	F_NAMELIKE,		  F_NAMENLIKE,		 F_NUMERIC_MUL,		F_NUMERIC_DIV,		F_NUMERIC_MOD};

/* They look at a text's length first, so that many of them are no trouble. */
static const Oid quick[] = {F_TEXTEQ, F_TEXTNE, F_BPCHAREQ, F_BPCHARNE};

static const Oid types[] = {
	BOOLOID,  INT2OID,	  INT4OID,		INT8OID,		FLOAT4OID,	 FLOAT8OID, NUMERICOID,
	TEXTOID,  VARCHAROID, BPCHAROID,	NAMEOID,		CHAROID,	 UUIDOID,	DATEOID,
	TIMEOID,  TIMETZOID,  TIMESTAMPOID, TIMESTAMPTZOID, INTERVALOID, OIDOID,	JSONBOID,
	BYTEAOID, INETOID,	  CIDROID,		MACADDROID,		MACADDR8OID,
};

/* Those whose texts are the same whatever the settings. */
static const Oid text_types[] = {
	BOOLOID, INT2OID, INT4OID, INT8OID,	 NUMERICOID, TEXTOID, VARCHAROID, BPCHAROID,   NAMEOID,
	CHAROID, UUIDOID, OIDOID,  JSONBOID, INETOID,	 CIDROID, MACADDROID, MACADDR8OID,
};

typedef struct SafeContext
{
	Node *node; /* at hand */
	bool can_fail;
	char *problem;
} SafeContext;

static bool
IsOneOf(Oid oid, const Oid *oids, int n)
{
	int i;

	for (i = 0; i < n; i++)
		if (oids[i] == oid)
			return true;
	return false;
}

/* Of an array: its elements' type. */
static Oid
PlainType(Oid type)
{
	Oid element;

	type = getBaseType(type);
	element = get_element_type(type);
	return OidIsValid(element) ? element : type;
}

bool
PolicyTypeIsSafe(Oid type)
{
	type = PlainType(type);
	return IsOneOf(type, types, lengthof(types)) || get_typtype(type) == TYPTYPE_ENUM;
}

static bool
Refuse(SafeContext *context, char *problem)
{
	context->problem = problem;
	return true;
}

/* The order of an enum's values is in the catalogs. */
static bool
HasEnum(List *args)
{
	ListCell *lc;

	foreach(lc, args)
		if (get_typtype(PlainType(exprType(lfirst(lc)))) == TYPTYPE_ENUM)
			return true;
	return false;
}

static bool
HasCollatable(List *args)
{
	ListCell *lc;

	foreach(lc, args)
		if (OidIsValid(get_typcollation(exprType(lfirst(lc)))))
			return true;
	return false;
}

static bool
CheckFunction(SafeContext *context, Oid function, Oid collation, List *args)
{
	if (!IsOneOf(function, never_fail, lengthof(never_fail)))
	{
		if (!IsOneOf(function, may_fail, lengthof(may_fail)))
			return Refuse(context, psprintf("function %s", format_procedure(function)));
		context->can_fail = true;
	}
	if (func_volatile(function) != PROVOLATILE_IMMUTABLE)
		return Refuse(context, psprintf("function %s", format_procedure(function)));
	if (function != F_ENUM_EQ && function != F_ENUM_NE && HasEnum(args))
		return Refuse(context, psprintf("function %s on an enum", format_procedure(function)));

	/* Without one, some raise an error and others do not. */
	if (OidIsValid(collation) ? !get_collation_isdeterministic(collation) : HasCollatable(args))
		return Refuse(context, psprintf("function %s with a collation that is not deterministic",
										format_procedure(function)));
	return false;
}

static bool
CheckConversion(SafeContext *context, const CoerceViaIO *conversion)
{
	Oid from = getBaseType(exprType((Node *) conversion->arg));

	if (!IsOneOf(from, text_types, lengthof(text_types)))
		return Refuse(context, psprintf("the text of a value of type %s", format_type_be(from)));
	if (!IsOneOf(conversion->resulttype, text_types, lengthof(text_types)))
		return Refuse(context, psprintf("a conversion from text to type %s",
										format_type_be(conversion->resulttype)));
	if (conversion->resulttype != TEXTOID && conversion->resulttype != VARCHAROID)
		context->can_fail = true;
	return false;
}

static bool
CheckNode(SafeContext *context, Node *node)
{
	switch (nodeTag(node))
	{
		case T_List:
		case T_CaseWhen:
			return false; /* they have no type */
		case T_Const:
		case T_CaseTestExpr:
		case T_BoolExpr:
		case T_BooleanTest:
		case T_CaseExpr:
		case T_CoalesceExpr:
		case T_RelabelType:
			break;
		case T_Var:
			if (((Var *) node)->varno != 1 || ((Var *) node)->varlevelsup != 0 ||
				((Var *) node)->varattno <= 0)
				return Refuse(context, "a row as a whole, or a system column");
			break;
		case T_Param:
			if (((Param *) node)->paramkind != PARAM_EXTERN)
				return Refuse(context, "a subquery");
			break;
		case T_NullTest:
			if (((NullTest *) node)->argisrow)
				return Refuse(context, "a row as a whole");
			break;
		case T_FuncExpr:
		{
			FuncExpr *call = (FuncExpr *) node;

			if (CheckFunction(context, call->funcid, call->inputcollid, call->args))
				return true;
			break;
		}
		case T_OpExpr:
		case T_DistinctExpr:
		case T_NullIfExpr:
		{
			OpExpr *op = (OpExpr *) node;

			if (CheckFunction(context, op->opfuncid, op->inputcollid, op->args))
				return true;
			break;
		}
		case T_ScalarArrayOpExpr:
		{
			ScalarArrayOpExpr *op = (ScalarArrayOpExpr *) node;

			if (CheckFunction(context, op->opfuncid, op->inputcollid, op->args))
				return true;
			break;
		}
		case T_MinMaxExpr:
			if (HasEnum(((MinMaxExpr *) node)->args) || HasCollatable(((MinMaxExpr *) node)->args))
				return Refuse(context, "greatest or least");
			break;
		case T_ArrayExpr:
			if (((ArrayExpr *) node)->multidims)
				context->can_fail = true;
			break;
		case T_ArrayCoerceExpr:
			context->can_fail = true;
			break;
		case T_SubscriptingRef:
			if (((SubscriptingRef *) node)->refassgnexpr != NULL)
				return Refuse(context, "an assignment to a part of a value");
			context->can_fail = true;
			break;
		case T_CoerceViaIO:
			if (CheckConversion(context, (CoerceViaIO *) node))
				return true;
			break;
		case T_SubLink:
			return Refuse(context, "a subquery");
		case T_CoerceToDomain:
			return Refuse(context, "a conversion to a domain");
		case T_SQLValueFunction:
			return Refuse(context, "the role or the time");
		default:
			return Refuse(context, "an expression of a kind that only query workers evaluate");
	}
	if (!PolicyTypeIsSafe(exprType(node)))
		return Refuse(context, psprintf("type %s", format_type_be(exprType(node))));
	return false;
}

static bool
IsSlow(Oid function, void *context)
{
	return IsOneOf(function, slow, lengthof(slow));
}

static bool
SlowWalker(Node *node, void *context)
{
	if (node == NULL)
		return false;

	/* A value against each of many. */
	if (IsA(node, ScalarArrayOpExpr) &&
		!IsOneOf(((ScalarArrayOpExpr *) node)->opfuncid, quick, lengthof(quick)) &&
		get_typlen(exprType(linitial(((ScalarArrayOpExpr *) node)->args))) == -1)
		return true;
	return check_functions_in_node(node, IsSlow, context) ||
		   expression_tree_walker(node, SlowWalker, context);
}

bool
PolicyTakesLong(Node *expression)
{
	return SlowWalker(expression, NULL);
}

static bool
Walker(Node *node, SafeContext *context)
{
	if (node == NULL)
		return false;
	return CheckNode(context, node) || expression_tree_walker(node, Walker, (void *) context);
}

char *
PolicyUnsafe(Node *expression, bool *can_fail)
{
	SafeContext context = {0};

	(void) Walker(expression, &context);
	*can_fail = context.can_fail;
	return context.problem;
}
