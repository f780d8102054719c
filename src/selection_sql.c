/*-------------------------------------------------------------------------
 *
 * selection_sql.c
 *		A client's selection as SQL.
 *
 * Values are unknown literals, so they are read as values of the column's own
 * type.  Everything is quoted; nothing that a client wrote gets into the text
 * in any other way.
 *
 * Process: feed worker, query workers, any backend (tests).  Memory:
 * CurrentMemoryContext.  No locks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "selection.h"

#include "fmgr.h"
#include "utils/builtins.h"

static void
AppendLiteral(StringInfo out, const char *value)
{
	appendStringInfoString(out, quote_literal_cstr(value));
}

void
SelectionAppendField(StringInfo out, const SelectionField *field)
{
	ListCell *lc;

	if (field->path != NIL)
		appendStringInfoChar(out, '(');
	appendStringInfoString(out, quote_identifier(field->column));
	foreach(lc, field->path)
	{
		SelectionStep *step = lfirst(lc);

		appendStringInfoString(out, step->text ? " ->> " : " -> ");
		AppendLiteral(out, step->key);
		appendStringInfoString(out, step->index ? "::int4" : "::text");
	}
	if (field->path != NIL)
		appendStringInfoChar(out, ')');
}

/* An array of these values, whatever their type. */
static char *
ArrayLiteral(const List *values)
{
	StringInfoData array;
	const char *separator = "";
	ListCell *lc;

	initStringInfo(&array);
	appendStringInfoChar(&array, '{');
	foreach(lc, values)
	{
		const char *c;

		appendStringInfo(&array, "%s\"", separator);
		for (c = lfirst(lc); *c != '\0'; c++)
		{
			if (*c == '"' || *c == '\\')
				appendStringInfoChar(&array, '\\');
			appendStringInfoChar(&array, *c);
		}
		appendStringInfoChar(&array, '"');
		separator = ",";
	}
	appendStringInfoChar(&array, '}');
	return array.data;
}

char *
SelectionNodeSql(const SelectionNode *node)
{
	StringInfoData sql;
	const char *separator = "";
	ListCell *lc;

	initStringInfo(&sql);
	appendStringInfoString(&sql, node->negated ? "(NOT (" : "(");
	switch (node->kind)
	{
		case SELECTION_AND:
		case SELECTION_OR:
			foreach(lc, node->children)
			{
				appendStringInfo(&sql, "%s%s", separator, ((SelectionNode *) lfirst(lc))->sql);
				separator = node->kind == SELECTION_AND ? " AND " : " OR ";
			}
			break;
		case SELECTION_COMPARE:
			SelectionAppendField(&sql, &node->field);
			appendStringInfo(&sql, " %s ", node->operator);
			if (node->quantifier != NULL)
				appendStringInfo(&sql, "%s (", node->quantifier);
			AppendLiteral(&sql, node->value);
			if (node->quantifier != NULL)
				appendStringInfoChar(&sql, ')');
			break;
		case SELECTION_IN:
			SelectionAppendField(&sql, &node->field);
			appendStringInfoString(&sql, " = ANY (");
			AppendLiteral(&sql, ArrayLiteral(node->values));
			appendStringInfoChar(&sql, ')');
			break;
		case SELECTION_IS:
			SelectionAppendField(&sql, &node->field);
			appendStringInfo(&sql, " IS %s", node->operator);
			break;
		case SELECTION_DISTINCT:
			SelectionAppendField(&sql, &node->field);
			appendStringInfoString(&sql, " IS DISTINCT FROM ");
			AppendLiteral(&sql, node->value);
			break;
	}
	appendStringInfoString(&sql, node->negated ? "))" : ")");
	return sql.data;
}

char *
SelectionJoin(const List *conditions)
{
	StringInfoData sql;
	ListCell *lc;

	initStringInfo(&sql);
	foreach(lc, conditions)
	{
		if (sql.len > 0)
			appendStringInfoString(&sql, " AND ");
		appendStringInfoString(&sql, ((SelectionNode *) lfirst(lc))->sql);
	}
	return sql.data;
}

/* ---- For SQL ---- */

PG_FUNCTION_INFO_V1(changefeed_selection);

/* _selection(text) returns text: how it is understood */
Datum
changefeed_selection(PG_FUNCTION_ARGS)
{
	text *given = PG_GETARG_TEXT_PP(0);
	SelectionError error = {0};
	Selection *selection = SelectionParse(VARDATA_ANY(given), VARSIZE_ANY_EXHDR(given), &error);
	const char *separator = "";
	StringInfoData out;
	ListCell *lc;

	if (selection == NULL)
		ereport(ERROR,
				(errcode(MAKE_SQLSTATE(error.sqlstate[0], error.sqlstate[1], error.sqlstate[2],
									   error.sqlstate[3], error.sqlstate[4])),
				 errmsg("%s", error.message), error.hint != NULL ? errhint("%s", error.hint) : 0));

	initStringInfo(&out);
	appendStringInfoString(&out, selection->columns == NIL ? "SELECT *" : "SELECT ");
	foreach(lc, selection->columns)
	{
		appendStringInfo(&out, "%s%s", separator, quote_identifier(lfirst(lc)));
		separator = ", ";
	}
	if (selection->sql[0] != '\0')
		appendStringInfo(&out, " WHERE %s", selection->sql);
	separator = " ORDER BY ";
	foreach(lc, selection->order)
	{
		SelectionOrder *order = lfirst(lc);

		appendStringInfoString(&out, separator);
		SelectionAppendField(&out, &order->field);
		appendStringInfoString(&out, order->direction);
		separator = ", ";
	}
	if (selection->limit > 0)
		appendStringInfo(&out, " LIMIT %d", selection->limit);
	PG_RETURN_TEXT_P(cstring_to_text_with_len(out.data, out.len));
}
