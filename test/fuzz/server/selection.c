/*-------------------------------------------------------------------------
 *
 * selection.c
 *		What follows "?" in a channel's name: from the parser to the plan.
 *
 * Input: the text.  It is read as the feed worker reads it, and then as a query
 * worker does, for the table fuzz_items (setup.sql), which has columns of many
 * types and some rows.
 *
 * Properties: the SQL that is made of it is one SELECT of the shape that was
 * meant, whatever the text; conditions in canonical form are read as the same
 * conditions again; the feed worker's evaluation of them says of each row what
 * the server's says; percent-encoding makes no difference.
 *
 *-------------------------------------------------------------------------
 */
#include "fuzz.h"

#include "channel_check.h"
#include "encode.h"
#include "filter_compile.h"
#include "query_internal.h"

#include "access/relation.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/parsenodes.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#define MAX_ROWS 16

static Oid items;

void
FuzzQueryStart(void)
{
	query_job_context = AllocSetContextCreate(TopMemoryContext, "fuzz job", ALLOCSET_DEFAULT_SIZES);

	/* As ChangefeedQueryMain does it, outside of a transaction. */
	PopActiveSnapshot();
	CommitTransactionCommand();
	QueryIdentityInit();
	EncodePinSettings();
	SetConfigOption("jit", "off", PGC_SUSET, PGC_S_SESSION);
	PolicyInit();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
}

static void
Start(void)
{
	items = RelnameGetRelid("fuzz_items");
	if (!OidIsValid(items))
		elog(ERROR, "there is no table fuzz_items");
	FuzzQueryStart();
}

/* One SELECT from one table, with no more than what is asked for. */
static void
CheckShape(const char *sql, bool limit)
{
	List *statements = pg_parse_query(sql);
	SelectStmt *select;
	RangeVar *from;

	if (list_length(statements) != 1)
		Fail("it is %d statements: %s", list_length(statements), sql);
	select = (SelectStmt *) linitial_node(RawStmt, statements)->stmt;
	if (!IsA(select, SelectStmt) || select->op != SETOP_NONE || select->withClause != NULL ||
		select->groupClause != NIL || select->havingClause != NULL ||
		select->lockingClause != NIL || select->intoClause != NULL || select->valuesLists != NIL ||
		select->distinctClause != NIL || list_length(select->fromClause) != 1 ||
		!IsA(linitial(select->fromClause), RangeVar))
		Fail("it is another statement: %s", sql);
	from = linitial(select->fromClause);
	if (strcmp(from->relname, "fuzz_items") != 0)
		Fail("it reads another table: %s", sql);
	if (!limit && (select->limitCount != NULL || select->limitOffset != NULL))
		Fail("it has a limit: %s", sql);
}

static char *
Encoded(const char *data, Size size)
{
	StringInfoData out;
	Size i;

	initStringInfo(&out);
	for (i = 0; i < size; i++)
	{
		unsigned char c = (unsigned char) data[i];

		/* What divides it is not encoded, nor what is already. */
		if (c == '&' || c == '=' || c == '%' || c == ';' || c == '+' ||
			(i > 0 && data[i - 1] == '%') || (i > 1 && data[i - 2] == '%'))
			appendStringInfoChar(&out, (char) c);
		else
			appendStringInfo(&out, "%%%02X", c);
	}
	return out.data;
}

static void
CheckRows(Relation rel, const char *conditions)
{
	StringInfoData sql;
	bool costly;
	ExprState *filter = FilterCompile(RelationGetDescr(rel), conditions, &costly);
	TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(rel), &TTSOpsVirtual);
	TupleDesc desc;
	int natts = RelationGetDescr(rel)->natts;
	uint64 i;

	/* A regular expression may take its time, in both of them. */
	if (costly)
		return;
	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT coalesce((%s), false), i.* FROM public.fuzz_items AS i",
					 conditions);
	SPI_connect();
	if (SPI_execute(sql.data, true, MAX_ROWS) != SPI_OK_SELECT)
		Fail("the server does not run it: %s", sql.data);
	desc = SPI_tuptable->tupdesc;
	for (i = 0; i < SPI_processed; i++)
	{
		Datum values[64];
		bool nulls[64];
		bool expected;

		heap_deform_tuple(SPI_tuptable->vals[i], desc, values, nulls);
		expected = DatumGetBool(values[0]);
		if (FilterEvaluate(filter, slot, values + 1, nulls + 1) != expected)
			Fail("the server says %s of row %d: %s", expected ? "true" : "false", (int) i,
				 conditions);
	}
	SPI_finish();
	if (natts > 63)
		Fail("too many columns");
}

static void
RunOnTable(Selection *selection)
{
	static char *keys[] = {"id"};
	SourceQuery source = {0};
	StringInfoData out;
	Relation rel;
	Oid *types = NULL;
	char *sql;

	MemoryContextReset(query_job_context);
	source.relid = items;
	source.filter = "";
	source.nkeys = 1;
	source.keys = keys;
	source.selection = selection;
	initStringInfo(&out);
	SourceQueryDescribe(&source, 0, GetUserId(), &out);
	if (source.nothing)
		return;
	rel = table_open(items, AccessShareLock);
	if (source.conditions != NULL && source.conditions[0] != '\0')
	{
		char *again = ChannelFilterText(rel, ChannelAnalyzeFilter(rel, source.conditions));

		if (strcmp(again, source.conditions) != 0)
			Fail("\"%s\" is read as \"%s\"", source.conditions, again);
		CheckRows(rel, source.conditions);
	}
	sql = SourceQueryText(&source, rel);
	CheckShape(sql, selection->limit > 0);
	(void) SourceQueryPlan(&source, rel, GetUserId(), sql, types, NULL);
	table_close(rel, NoLock);
}

static void
Run(const char *data, Size size)
{
	SelectionError error = {0};
	SelectionError other_error = {0};
	Selection *selection;
	Selection *other;
	char *encoded;
	char *text;

	/* It is a part of a string of JSON. */
	if (memchr(data, '\0', size) != NULL || !pg_verify_mbstr(PG_UTF8, data, (int) size, true))
		return;
	text = pnstrdup(data, size);
	selection = SelectionParse(text, size, &error);
	if (selection == NULL)
	{
		if (error.message == NULL || strlen(error.sqlstate) != 5 ||
			!pg_verifymbstr(error.message, (int) strlen(error.message), true))
			Fail("it is not said what is wrong");
		return;
	}
	encoded = Encoded(text, size);
	if (strlen(encoded) <= SELECTION_MAX)
	{
		other = SelectionParse(encoded, strlen(encoded), &other_error);
		if (other == NULL || strcmp(other->sql, selection->sql) != 0)
			Fail("encoded it is something else: %s: %s, %s", encoded,
				 other == NULL ? other_error.message : other->sql, selection->sql);
	}
	if (selection->sql[0] != '\0')
		CheckShape(psprintf("SELECT FROM fuzz_items WHERE %s", selection->sql), false);
	RunOnTable(selection);
}

const FuzzTarget target_selection = {"selection", Start, Run, NULL};
