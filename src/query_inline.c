/*-------------------------------------------------------------------------
 *
 * query_inline.c
 *		Policies as rules that the feed worker evaluates itself.
 *
 * Once for each table and role (query_policy.c) the policies' expression is
 * brought into a form that the feed worker can evaluate, if there is one: SQL
 * functions are inlined as the planner does it, sub-selects without a FROM are
 * replaced by what they select, and each largest part without a column of the
 * row, which must depend on the claims and the role alone, becomes a parameter.
 * What remains has to be safe to evaluate anywhere (policy_safe.c).
 *
 * For each identity the values of these parameters are found out, as the
 * identity.  Those that are true, false or null shorten the expression
 * (query_reduce.c).  What comes out is a *rule*: the expression and its constants.
 *
 * A rule gives what the policies give when they are run: parts that do not
 * depend on the row have the same value whenever they are evaluated, so it is
 * no matter when they are; if evaluating one raises an error, which AND, OR or
 * CASE might have left out, there is no rule.
 *
 * What a rule depends on is what the fingerprint covers, and labels of enums: of
 * those in the table's columns only, which the feed worker looks at.
 *
 * Process: query worker, and backends that explain.  Memory: what is found out
 * of the policies in the current context, a rule in that of the job.  Locks:
 * none.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "query_internal.h"

#include "channel_check.h"
#include "policy_safe.h"

#include "access/sysattr.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "rewrite/rewriteManip.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/regproc.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/ruleutils.h"
#include "utils/syscache.h"

/* More of them, or longer ones, are not worth to be copied for each identity. */
#define MAX_PARTS	   64
#define MAX_RULE_BYTES (64 * 1024)

struct InlinePolicy
{
	Node *template; /* NULL: there is none, for `reason` */
	char *reason;
	int nparts;
	Node **parts; /* Param N of the template is parts[N - 1] */
};

typedef struct PrepareContext
{
	Relation rel;
	Oid type; /* of the part at hand, or of its elements */
	List *parts;
	char *reason;
} PrepareContext;

/* ---- Sub-selects ---- */

/* What a sub-select without a FROM selects, one level further up, or NULL. */
static Node *
SelectedExpression(const SubLink *link)
{
	Query *query = (Query *) link->subselect;
	Node *result;

	if (link->subLinkType != EXPR_SUBLINK || !IsA(query, Query) ||
		query->commandType != CMD_SELECT || query->rtable != NIL || query->cteList != NIL ||
		query->jointree == NULL || query->jointree->fromlist != NIL ||
		query->jointree->quals != NULL || query->hasAggs || query->hasWindowFuncs ||
		query->hasTargetSRFs || query->groupClause != NIL || query->groupingSets != NIL ||
		query->havingQual != NULL || query->distinctClause != NIL || query->limitOffset != NULL ||
		query->limitCount != NULL || query->setOperations != NULL ||
		list_length(query->targetList) != 1)
		return NULL;
	result = copyObject((Node *) linitial_node(TargetEntry, query->targetList)->expr);
	IncrementVarSublevelsUp(result, -1, 1);
	return result;
}

/*
 * `x = ANY (SELECT ...)` as `x = ANY (ARRAY(SELECT ...))`, which is the same,
 * nulls included.
 */
static Node *
AnyAsArray(const SubLink *link)
{
	OpExpr *test = (OpExpr *) link->testexpr;
	Param *param;
	ScalarArrayOpExpr *result;
	SubLink *array;
	Oid element;

	if (link->subLinkType != ANY_SUBLINK || !IsA(test, OpExpr) || list_length(test->args) != 2)
		return NULL;
	param = lsecond(test->args);
	element = exprType((Node *) param);
	if (!IsA(param, Param) || param->paramkind != PARAM_SUBLINK || param->paramid != 1 ||
		contain_vars_of_level(link->subselect, 1) || !OidIsValid(get_array_type(element)))
		return NULL;

	array = makeNode(SubLink);
	array->subLinkType = ARRAY_SUBLINK;
	array->subselect = copyObject(link->subselect);
	array->location = -1;
	result = makeNode(ScalarArrayOpExpr);
	result->opno = test->opno;
	result->opfuncid = get_opcode(test->opno);
	result->useOr = true;
	result->inputcollid = test->inputcollid;
	result->args = list_make2(copyObject(linitial(test->args)), array);
	result->location = -1;
	return (Node *) result;
}

static Node *FoldMutator(Node *node, void *context);

static Node *
FlattenMutator(Node *node, void *context)
{
	if (node == NULL)
		return NULL;
	if (IsA(node, SubLink))
	{
		SubLink *link = copyObject((SubLink *) node);
		Node *inner = SelectedExpression(link);

		if (inner != NULL)
			return FoldMutator(inner, context);
		inner = AnyAsArray(link);
		if (inner != NULL)
			return expression_tree_mutator(inner, FlattenMutator, context);
		link->subselect = FoldMutator(link->subselect, context);
		return (Node *) link;
	}
	return expression_tree_mutator(node, FlattenMutator, context);
}

/*
 * The planner folds and inlines sub-selects one by one, and so do we: what is
 * constant in one must not shorten what is around it.
 */
static Node *
FoldMutator(Node *node, void *context)
{
	if (node == NULL)
		return NULL;
	if (IsA(node, Query))
		return (Node *) query_tree_mutator((Query *) node, FoldMutator, context, 0);
	return FlattenMutator(eval_const_expressions(NULL, node), context);
}

/* ---- Parts without columns ---- */

/* `bound`: constructs around the node that a CaseTestExpr may be of. */
typedef struct ColumnContext
{
	int bound;
} ColumnContext;

static bool
HasColumn(Node *node, ColumnContext *context)
{
	bool found;

	if (node == NULL)
		return false;
	switch (nodeTag(node))
	{
		case T_Var:
		case T_Param:
			return true;
		case T_CaseTestExpr:
			return context->bound == 0;
		case T_SubLink:
			return ((SubLink *) node)->testexpr != NULL || contain_vars_of_level(node, 0) ||
				   contain_vars_of_level(((SubLink *) node)->subselect, 1);
		case T_CaseExpr:
			if (((CaseExpr *) node)->arg == NULL)
				break;
			if (HasColumn((Node *) ((CaseExpr *) node)->arg, context))
				return true;
			context->bound++;
			found = HasColumn((Node *) ((CaseExpr *) node)->args, context) ||
					HasColumn((Node *) ((CaseExpr *) node)->defresult, context);
			context->bound--;
			return found;
		case T_ArrayCoerceExpr:
			if (HasColumn((Node *) ((ArrayCoerceExpr *) node)->arg, context))
				return true;
			context->bound++;
			found = HasColumn((Node *) ((ArrayCoerceExpr *) node)->elemexpr, context);
			context->bound--;
			return found;
		default:
			break;
	}
	return expression_tree_walker(node, HasColumn, (void *) context);
}

static bool
IsColumnsType(PrepareContext *context, Oid type)
{
	TupleDesc tupdesc = RelationGetDescr(context->rel);
	int i;

	for (i = 0; i < tupdesc->natts; i++)
		if (!TupleDescAttr(tupdesc, i)->attisdropped &&
			getBaseType(TupleDescAttr(tupdesc, i)->atttypid) == type)
			return true;
	return false;
}

static Oid
PlainType(Oid type)
{
	Oid element = get_element_type(type);

	return OidIsValid(element) ? element : type;
}

/*
 * Types of users may change, or be made of code of theirs.  Labels of an enum are
 * looked at as long as it is a column's, which such a part is compared with.
 */
static bool
TypeIsSteady(PrepareContext *context, Oid type)
{
	type = PlainType(type);
	return type < FirstNormalObjectId || (get_typtype(type) == TYPTYPE_ENUM &&
										  type == context->type && IsColumnsType(context, type));
}

/* That what is not immutable is steady has been found out for the whole. */
static bool
IsUnsteady(Oid function, void *arg)
{
	PrepareContext *context = arg;

	if (function >= FirstNormalObjectId)
		context->reason = psprintf("they call function %s, which cannot be inlined",
								   format_procedure(function));
	else
	{
		switch (func_volatile(function))
		{
			case PROVOLATILE_IMMUTABLE:
				return false;
			case PROVOLATILE_STABLE:
				if (function == F_CURRENT_SETTING_TEXT || function == F_CURRENT_SETTING_TEXT_BOOL ||
					function == F_ARRAY_IN || function == F_ENUM_IN || function == F_TO_JSONB ||
					function == F_ARRAY_TO_STRING_ANYARRAY_TEXT)
					return false;
				break;
			default:
				break;
		}
		context->reason = psprintf("they use function %s", format_procedure(function));
	}
	return true;
}

static bool
PartWalker(Node *node, PrepareContext *context)
{
	if (node == NULL)
		return false;
	switch (nodeTag(node))
	{
		case T_Query:
			if (((Query *) node)->commandType != CMD_SELECT || ((Query *) node)->cteList != NIL ||
				((Query *) node)->rowMarks != NIL)
				break;
			return query_tree_walker((Query *) node, PartWalker, (void *) context,
									 QTW_EXAMINE_RTES_BEFORE);
		case T_RangeTblEntry:
			switch (((RangeTblEntry *) node)->rtekind)
			{
				case RTE_FUNCTION:
				case RTE_VALUES:
				case RTE_SUBQUERY:
				case RTE_JOIN:
				case RTE_RESULT:
					return false; /* its parts come as well */
				default:
					context->reason = "they read tables";
					return true;
			}
		case T_SQLValueFunction:
			switch (((SQLValueFunction *) node)->op)
			{
				case SVFOP_CURRENT_ROLE:
				case SVFOP_CURRENT_USER:
				case SVFOP_USER:
				case SVFOP_SESSION_USER:
					return false;
				default:
					break;
			}
			break;
		case T_List:
		case T_TargetEntry:
		case T_RangeTblFunction:
		case T_RangeTblRef:
		case T_FromExpr:
		case T_JoinExpr:
		case T_SortGroupClause:
		case T_CaseWhen:
			return expression_tree_walker(node, PartWalker, (void *) context);
		case T_Const:
		case T_Var:
		case T_Param:
		case T_CaseTestExpr:
		case T_FuncExpr:
		case T_OpExpr:
		case T_DistinctExpr:
		case T_NullIfExpr:
		case T_ScalarArrayOpExpr:
		case T_BoolExpr:
		case T_BooleanTest:
		case T_NullTest:
		case T_CaseExpr:
		case T_CoalesceExpr:
		case T_MinMaxExpr:
		case T_RelabelType:
		case T_CoerceViaIO:
		case T_ArrayExpr:
		case T_ArrayCoerceExpr:
		case T_SubscriptingRef:
		case T_SubLink:
		case T_Aggref:
			if (!TypeIsSteady(context, exprType(node)))
			{
				context->reason = psprintf("they use type %s", format_type_be(exprType(node)));
				return true;
			}
			if (check_functions_in_node(node, IsUnsteady, context))
				return true;
			return expression_tree_walker(node, PartWalker, (void *) context);
		default:
			break;
	}
	context->reason = "they have a part of a kind that is not evaluated ahead";
	return true;
}

/* From 1. */
static int
PlaceOf(const List *parts, const Node *part)
{
	int i = 0;

	while (!equal(list_nth(parts, i), part))
		i++;
	return i + 1;
}

static Node *
PartsMutator(Node *node, PrepareContext *context)
{
	ColumnContext column = {0};
	Param *param;

	if (node == NULL || context->reason != NULL)
		return node;
	if (IsA(node, List) || IsA(node, CaseWhen) || IsA(node, Const))
		return expression_tree_mutator(node, PartsMutator, (void *) context);
	if (HasColumn(node, &column))
	{
		if (IsA(node, SubLink))
		{
			context->reason = "they have a subquery that depends on the row, or on tables";
			return node;
		}
		return expression_tree_mutator(node, PartsMutator, (void *) context);
	}
	context->type = PlainType(exprType(node));
	if (PartWalker(node, context))
		return node;

	if (!list_member(context->parts, node))
		context->parts = lappend(context->parts, node);
	param = makeNode(Param);
	param->paramkind = PARAM_EXTERN;
	param->paramid = PlaceOf(context->parts, node);
	param->paramtype = exprType(node);
	param->paramtypmod = exprTypmod(node);
	param->paramcollid = exprCollation(node);
	param->location = -1;
	return (Node *) param;
}

/* ---- Preparing ---- */

/* What is known of the policies without looking at them. */
static char *
KnownReason(const Policy *policy)
{
	if (policy->ndependencies > 0)
		return psprintf("they depend on table %s", ChannelTableName(policy->dependencies[0]));
	if (policy->recheck != NULL)
		return psprintf("they depend on %s", policy->recheck);
	if (policy->declared != NIL)
		return psprintf("they call function %s", format_procedure(linitial_oid(policy->declared)));
	/* A domain without constraints, of which nothing is left here, may get one. */
	if (policy->domains)
		return "they convert to a domain";
	if (!policy->reusable)
		return "they call a function of a user's that is declared IMMUTABLE";
	if (policy->whole_row)
		return "they use the row as a whole";
	if (policy->virtual_column)
		return "they use a virtual generated column";
	return NULL;
}

InlinePolicy *
InlinePrepare(const Policy *policy, Relation rel, Node *expression)
{
	InlinePolicy *result = palloc0(sizeof(InlinePolicy));
	MemoryContext keep = CurrentMemoryContext;
	MemoryContext work = AllocSetContextCreate(keep, "changefeed inlining", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(work);
	PrepareContext context = {rel};
	Node *template = NULL;
	char *problem;
	bool can_fail;

	context.reason = KnownReason(policy);
	if (context.reason == NULL)
	{
		template = FoldMutator((Node *) copyObject(expression), NULL);
		template = PartsMutator(template, &context);
	}
	if (context.reason == NULL)
	{
		fix_opfuncids(template);
		problem = PolicyUnsafe(template, &can_fail);
		if (problem != NULL)
			context.reason = psprintf("they use %s", problem);
		else if (list_length(context.parts) > MAX_PARTS)
			context.reason = "they are too long";
	}

	MemoryContextSwitchTo(keep);
	if (context.reason != NULL)
		result->reason = pstrdup(context.reason);
	else
	{
		ListCell *lc;

		result->template = copyObject(template);
		result->parts = palloc(sizeof(Node *) * Max(list_length(context.parts), 1));
		foreach(lc, context.parts)
			result->parts[result->nparts++] = copyObject(lfirst(lc));
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(work);
	return result;
}

/* ---- Values of an identity ---- */

static Datum
EvaluatePart(Node *part, bool *isnull)
{
	EState *estate;
	ExprState *state;
	Datum value;

	if (checkExprHasSubLink(part))
		return PolicyEvaluate(part, isnull);
	estate = CreateExecutorState();
	state = ExecPrepareExpr((Expr *) part, estate);
	value = ExecEvalExprSwitchContext(state, GetPerTupleExprContext(estate), isnull);
	if (!*isnull)
	{
		int16 typlen;
		bool typbyval;

		get_typlenbyval(exprType(part), &typlen, &typbyval);
		if (typlen == -1)
			value = PointerGetDatum(PG_DETOAST_DATUM_COPY(value));
		else
			value = datumCopy(value, typbyval, typlen);
	}
	return value;
}

/*
 * The values of all parts, in the current context; an error is returned.  The
 * transaction goes on.
 */
static PartValue *
EvaluateParts(const InlinePolicy *policy, char **error)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	PartValue *values = palloc0(sizeof(PartValue) * Max(policy->nparts, 1));
	ErrorData *volatile data = NULL;
	Oid user;
	int sec_context;

	*error = NULL;
	if (policy->nparts == 0)
		return values;
	GetUserIdAndSecContext(&user, &sec_context);
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		int i;

		for (i = 0; i < policy->nparts; i++)
		{
			bool isnull;
			Datum value = EvaluatePart(policy->parts[i], &isnull);

			MemoryContextSwitchTo(context);
			values[i].isnull = isnull;
			if (!isnull)
			{
				int16 typlen;
				bool typbyval;

				get_typlenbyval(exprType(policy->parts[i]), &typlen, &typbyval);
				values[i].value = datumCopy(value, typbyval, typlen);
			}
		}
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		data = CopyErrorData();
		FlushErrorState();
	}
	PG_END_TRY();

	/* Nothing of it is to stay, and everything that was opened is closed. */
	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	SetUserIdAndSecContext(user, sec_context);
	if (data != NULL)
	{
		int class = ERRCODE_TO_CATEGORY(data->sqlerrcode);

		if (class == ERRCODE_TO_CATEGORY(ERRCODE_QUERY_CANCELED) ||
			class == ERRCODE_TO_CATEGORY(ERRCODE_OUT_OF_MEMORY) ||
			class == ERRCODE_TO_CATEGORY(ERRCODE_T_R_SERIALIZATION_FAILURE))
			ReThrowError(data);
		*error = data->message;
	}
	return values;
}

/* ---- Writing ---- */

typedef struct NumberContext
{
	int n;
	int *numbers; /* of each part, 0: not used */
} NumberContext;

/* Those that are left count from 1, in the order in which they come. */
static bool
NumberWalker(Node *node, NumberContext *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, Param))
	{
		Param *param = (Param *) node;

		/* The same Param node is not met twice: mutators have copied it. */
		if (context->numbers[param->paramid - 1] == 0)
			context->numbers[param->paramid - 1] = ++context->n;
		param->paramid = context->numbers[param->paramid - 1];
		return false;
	}
	return expression_tree_walker(node, NumberWalker, (void *) context);
}

static void
PutValue(StringInfo out, Oid type, const PartValue *value)
{
	int16 typlen;
	bool typbyval;

	get_typlenbyval(type, &typlen, &typbyval);
	WirePutU32(out, type);
	if (typbyval)
		WirePutBytes(out, (const char *) &value->value, sizeof(Datum));
	else
		WirePutBytes(out, DatumGetPointer(value->value),
					 datumGetSize(value->value, typbyval, typlen));
}

char *
InlineRule(const Policy *policy, StringInfo out)
{
	InlinePolicy *inlined = policy->inlined;
	PartValue *values;
	NumberContext number = {0};
	char *error;
	Node *rule;
	int i;

	resetStringInfo(out);
	if (policy->state != POLICY_JUDGED)
		return NULL;
	if (!setting_inline_policies)
		return "changefeed.inline_policies is off";
	if (inlined->template == NULL)
		return inlined->reason;
	if (!QueryIdentityIsIntact())
		return "the claims were changed meanwhile";
	values = EvaluateParts(inlined, &error);
	if (error != NULL)
		return psprintf("a part that depends on the claims fails: %s", error);

	rule = InlineReduce(inlined->template, values);
	number.numbers = palloc0(sizeof(int) * Max(inlined->nparts, 1));
	(void) NumberWalker(rule, &number);
	WirePutString(out, nodeToString(rule));
	WirePutU16(out, (uint16) number.n);
	for (i = 1; i <= number.n; i++)
	{
		int part;

		for (part = 0; number.numbers[part] != i; part++)
			;
		PutValue(out, exprType(inlined->parts[part]), &values[part]);
	}
	if (out->len > MAX_RULE_BYTES)
	{
		resetStringInfo(out);
		return "what they compare with is too long";
	}
	return NULL;
}

char *
InlineText(const Policy *policy, Relation rel)
{
	return deparse_expression(
		policy->inlined->template,
		deparse_context_for(RelationGetRelationName(rel), RelationGetRelid(rel)), false, false);
}
