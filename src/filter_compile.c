/*-------------------------------------------------------------------------
 *
 * filter_compile.c
 *		Filters as expressions that the feed worker evaluates on images.
 *
 * The text is canonical: it was checked, resolved and written by the server,
 * for a source by create_channel and for a client's conditions by a query
 * worker (channel_filter.c).  That it uses immutable built-in functions only is
 * checked again here, because a dump can be edited.
 *
 * Process: feed worker.  Memory: an expression lives in the context that is
 * current when it is compiled; what an evaluation needs in one that is reset
 * with the next.  Needs a transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "filter_compile.h"

#include "access/transam.h"
#include "catalog/pg_proc.h"
#include "executor/executor.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "nodes/parsenodes.h"
#include "optimizer/optimizer.h"
#include "parser/parse_coerce.h"
#include "parser/parse_collate.h"
#include "parser/parse_expr.h"
#include "parser/parse_node.h"
#include "parser/parser.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

static Node *
ResolveColumn(ParseState *pstate, ColumnRef *ref)
{
	TupleDesc tupdesc = pstate->p_ref_hook_state;
	int i;

	if (!IsA(llast(ref->fields), String) || list_length(ref->fields) > 2)
		return NULL;
	for (i = 0; i < tupdesc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(tupdesc, i);

		if (!att->attisdropped && strcmp(NameStr(att->attname), strVal(llast(ref->fields))) == 0)
			return (Node *) makeVar(1, (AttrNumber) (i + 1), att->atttypid, att->atttypmod,
									att->attcollation, 0);
	}
	return NULL;
}

static bool
FunctionUnsafe(Oid function, void *context)
{
	return function >= FirstNormalObjectId || func_volatile(function) != PROVOLATILE_IMMUTABLE;
}

static bool
Unsafe(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, SubLink) || IsA(node, Aggref) || IsA(node, WindowFunc) || IsA(node, Param))
		return true;
	if (check_functions_in_node(node, FunctionUnsafe, context))
		return true;
	return expression_tree_walker(node, Unsafe, context);
}

bool
FilterIsRegex(Oid function, void *context)
{
	switch (function)
	{
		case F_TEXTREGEXEQ:
		case F_TEXTICREGEXEQ:
		case F_NAMEREGEXEQ:
		case F_NAMEICREGEXEQ:
		case F_BPCHARREGEXEQ:
		case F_BPCHARICREGEXEQ:
			return true;
		default:
			return false;
	}
}

static bool
HasRegex(Node *node, void *context)
{
	if (node == NULL)
		return false;
	return check_functions_in_node(node, FilterIsRegex, context) ||
		   expression_tree_walker(node, HasRegex, context);
}

ExprState *
FilterCompile(TupleDesc tupdesc, const char *text, bool *costly)
{
	MemoryContext result = CurrentMemoryContext;
	MemoryContext work = AllocSetContextCreate(result, "changefeed filter", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(work);
	ParseState *pstate = make_parsestate(NULL);
	ExprState *state;
	List *raw;
	SelectStmt *stmt;
	Node *expr;

	/* The text was deparsed by the server: SELECT <text> is one target. */
	raw = raw_parser(psprintf("SELECT %s", text), RAW_PARSE_DEFAULT);
	stmt = (SelectStmt *) linitial_node(RawStmt, raw)->stmt;
	if (list_length(raw) != 1 || !IsA(stmt, SelectStmt) || list_length(stmt->targetList) != 1)
		ereport(ERROR, (errcode(ERRCODE_SYNTAX_ERROR), errmsg("filter is not one expression")));

	pstate->p_sourcetext = text;
	pstate->p_pre_columnref_hook = ResolveColumn;
	pstate->p_ref_hook_state = tupdesc;
	expr = transformExpr(pstate, linitial_node(ResTarget, stmt->targetList)->val, EXPR_KIND_POLICY);
	expr = coerce_to_boolean(pstate, expr, "WHERE");
	assign_expr_collations(pstate, expr);
	if (Unsafe(expr, NULL))
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("filter uses something else than immutable built-in functions")));
	expr = eval_const_expressions(NULL, expr);
	fix_opfuncids(expr);
	*costly = HasRegex(expr, NULL);

	MemoryContextSwitchTo(result);
	state = ExecInitExpr((Expr *) copyObject(expr), NULL);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(work);
	return state;
}

bool
FilterEvaluate(ExprState *filter, TupleTableSlot *slot, const Datum *values, const bool *isnull)
{
	static ExprContext *econtext;
	int natts = slot->tts_tupleDescriptor->natts;
	Datum result;
	bool null;

	if (econtext == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		econtext = CreateStandaloneExprContext();
		MemoryContextSwitchTo(old);
	}
	ExecClearTuple(slot);
	memcpy(slot->tts_values, values, sizeof(Datum) * natts);
	memcpy(slot->tts_isnull, isnull, sizeof(bool) * natts);
	ExecStoreVirtualTuple(slot);
	ResetExprContext(econtext);
	econtext->ecxt_scantuple = slot;
	result = ExecEvalExprSwitchContext(filter, econtext, &null);
	return !null && DatumGetBool(result);
}
