/*-------------------------------------------------------------------------
 *
 * expression.c
 *		Reading what has to be one SQL expression: filters, checks, conditions
 *		and payloads of events.
 *
 * The server's grammar for expressions takes whatever may follow SELECT, so
 * that everything else in there has to be refused: it would be run as well.
 *
 * Process: see expression.h.  Memory: CurrentMemoryContext.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "expression.h"

#include "nodes/parsenodes.h"
#include "parser/parser.h"

static void
Refuse(const char *what, const char *kind, const char *hint)
{
	ereport(ERROR, (errcode(ERRCODE_SYNTAX_ERROR), errmsg("%s must be one %s", what, kind),
					errhint("%s", hint)));
}

Node *
ExpressionParse(const char *what, const char *kind, const char *hint, const char *text)
{
	List *list = raw_parser(text, RAW_PARSE_PLPGSQL_EXPR);
	SelectStmt *stmt;
	ResTarget *target;

	if (list_length(list) != 1)
		Refuse(what, kind, hint);
	stmt = (SelectStmt *) linitial_node(RawStmt, list)->stmt;
	if (!IsA(stmt, SelectStmt) || list_length(stmt->targetList) != 1 ||
		stmt->distinctClause != NIL || stmt->intoClause != NULL || stmt->fromClause != NIL ||
		stmt->whereClause != NULL || stmt->groupClause != NIL || stmt->havingClause != NULL ||
		stmt->windowClause != NIL || stmt->valuesLists != NIL || stmt->sortClause != NIL ||
		stmt->limitOffset != NULL || stmt->limitCount != NULL || stmt->lockingClause != NIL ||
		stmt->withClause != NULL || stmt->op != SETOP_NONE)
		Refuse(what, kind, hint);
	target = linitial_node(ResTarget, stmt->targetList);
	if (target->name != NULL || target->indirection != NIL)
		Refuse(what, kind, hint);
	if (IsA(target->val, ColumnRef) && IsA(llast(((ColumnRef *) target->val)->fields), A_Star))
		Refuse(what, kind, hint);
	return target->val;
}

void
ExpressionErrorCallback(void *text)
{
	int position = geterrposition();

	if (position > 0)
	{
		errposition(0);
		internalerrposition(position);
		internalerrquery(text);
	}
}
