/*-------------------------------------------------------------------------
 *
 * output_wal2json.c
 *		Rows from the text of wal2json, for the output plugin.
 *
 * wal2json is the plugin of the slot, but only its change callback is ever
 * called, by ours, for changes of sources.  What it writes is caught, parsed
 * as JSON, and each value read by the input function of its column's type
 * (domains: of the type below, since a domain's constraints are somebody's
 * code).  What is not in the text comes from where the native decoder has it:
 * barriers, touches, truncation, commits.
 *
 * The text does not say everything, so it is held against the row in the WAL:
 *
 * - A number that is not finite is printed as null.  Where the row has no null
 *   the value is taken from the row.
 * - A large value that did not change is left out.  The row has a pointer
 *   there, which is kept, as the records want it.
 * - Without an old row an identity is printed that is made of the new one; it
 *   is ignored.
 *
 * Any other difference between the two is a reason not to believe the text:
 * the source then gets a snapshot.  Tables with columns whose text is not
 * enough (wal2json_subset.c) are not decoded at all, and nobody can subscribe
 * to them.
 *
 * wal2json locks the indexes of a table for a moment (ACCESS SHARE), so a
 * session that keeps one locked exclusively delays this decoder.
 *
 * Process: decoder.
 *
 * Memory: callback_context of the output plugin, current when we are called,
 * for text and rows; what is known of a table in a context of its entry, for
 * the process's life.
 *
 * Locks: none, of our own.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "wal2json.h"

#include "decoder.h"
#include "output_plugin.h"

#include <math.h>

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "common/jsonapi.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "nodes/makefuncs.h"
#include "storage/lwlock.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/syscache.h"

/* A buffer that a large row has left behind is not kept beyond this. */
#define LARGE_TEXT (1024 * 1024)

/* Settings on which the text of values, or reading it, depends. */
static const struct
{
	const char *name;
	const char *value;
} pinned[] = {
	{"array_nulls", "on"},		 {"bytea_output", "hex"},		{"datestyle", "ISO, YMD"},
	{"extra_float_digits", "1"}, {"intervalstyle", "postgres"}, {"lc_monetary", "C"},
	{"timezone", "UTC"},
};

/* How the columns of a table are read. */
typedef struct TextRelation
{
	Oid relid;		   /* hash key */
	uint64 generation; /* of the catalogs that it was made from */
	char *problem;	   /* why it cannot be decoded, or NULL */
	FmgrInfo *inputs;  /* by column; fn_oid 0: dropped */
	Oid *ioparams;
	MemoryContext context;
} TextRelation;

/* A column, as printed. */
typedef struct TextColumn
{
	char *name;
	char *value; /* NULL: null */
} TextColumn;

typedef struct TextRow
{
	bool present;
	int ncolumns;
	int space;
	TextColumn *columns;
} TextRow;

typedef struct TextChange
{
	int depth;
	char *field; /* of the outermost object */
	char *member;
	char *action;
	char *table;
	TextRow *row; /* that is being read, or NULL */
	TextColumn column;
	TextRow identity;
	TextRow columns;
} TextChange;

static LogicalDecodeChangeCB change_callback = NULL;
static LogicalDecodeShutdownCB shutdown_callback = NULL;
static int messages = 0; /* written by the callback */

static HTAB *relations = NULL;
static uint64 generation = 1; /* of the catalogs, as far as types go */

/* ----------------------------------------------------------------------
 * What is known of tables
 * ----------------------------------------------------------------------
 */

static void
RelationInvalidated(Datum arg, Oid relid)
{
	generation++;
}

static void
TypeInvalidated(Datum arg, int cacheid, uint32 hashvalue)
{
	generation++;
}

static void
Initialize(void)
{
	HASHCTL control;

	if (relations != NULL)
		return;
	control.keysize = sizeof(Oid);
	control.entrysize = sizeof(TextRelation);
	control.hcxt = TopMemoryContext;
	relations = hash_create("changefeed wal2json relations", 64, &control,
							HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);

	/* A composite type that gets another attribute is a relation, too. */
	CacheRegisterRelcacheCallback(RelationInvalidated, (Datum) 0);
	CacheRegisterSyscacheCallback(TYPEOID, TypeInvalidated, (Datum) 0);
}

static TextRelation *
LookUp(Relation relation)
{
	Oid relid = RelationGetRelid(relation);
	TupleDesc tupdesc = RelationGetDescr(relation);
	bool found;
	TextRelation *known = hash_search(relations, &relid, HASH_ENTER, &found);
	Form_pg_attribute att;
	char *problem;
	MemoryContext old_context;

	if (!found)
	{
		known->generation = 0;
		known->context = NULL;
	}
	if (known->generation == generation)
		return known;

	if (known->context == NULL)
		known->context = AllocSetContextCreate(TopMemoryContext, "changefeed wal2json relation",
											   ALLOCSET_SMALL_SIZES);
	MemoryContextReset(known->context);
	known->generation = 0; /* should this fail */
	known->problem = NULL;
	known->inputs = MemoryContextAllocZero(known->context,
										   Max(tupdesc->natts, 1) * sizeof(FmgrInfo));
	known->ioparams = MemoryContextAllocZero(known->context, Max(tupdesc->natts, 1) * sizeof(Oid));

	att = Wal2jsonFindProblem(tupdesc, &problem);
	if (att != NULL)
	{
		old_context = MemoryContextSwitchTo(known->context);
		known->problem = psprintf("Column \"%s\" cannot be decoded with wal2json.  %s",
								  NameStr(att->attname), problem);
		MemoryContextSwitchTo(old_context);
	}
	else
	{
		for (int i = 0; i < tupdesc->natts; i++)
		{
			Oid input;

			att = TupleDescAttr(tupdesc, i);
			if (att->attisdropped)
				continue;
			getTypeInputInfo(getBaseType(att->atttypid), &input, &known->ioparams[i]);
			fmgr_info_cxt(input, &known->inputs[i], known->context);
		}
	}

	/* An invalidation meanwhile is of this place in WAL: nothing new. */
	known->generation = generation;
	return known;
}

/* ----------------------------------------------------------------------
 * The text
 *
 * {"action":"U","table":"t","columns":[{"name":"a","value":1}, ...],
 *  "identity":[...]}
 *
 * No value is ever an object or an array: whatever is no number, truth value
 * or null is printed as a string.
 * ----------------------------------------------------------------------
 */

static compat_json_result
OnObjectStart(void *arg)
{
	TextChange *text = arg;

	if (++text->depth == 3)
		memset(&text->column, 0, sizeof(text->column));
	return compat_json_success;
}

static compat_json_result
OnObjectEnd(void *arg)
{
	TextChange *text = arg;

	if (text->depth-- == 3 && text->row != NULL)
	{
		TextRow *row = text->row;

		if (row->ncolumns == row->space)
		{
			row->space = row->space == 0 ? 16 : row->space * 2;
			row->columns = row->columns == NULL
							   ? palloc(row->space * sizeof(TextColumn))
							   : repalloc(row->columns, row->space * sizeof(TextColumn));
		}
		row->columns[row->ncolumns++] = text->column;
	}
	return compat_json_success;
}

static compat_json_result
OnArrayStart(void *arg)
{
	TextChange *text = arg;

	if (++text->depth == 2)
	{
		text->row = NULL;
		if (text->field != NULL && strcmp(text->field, "columns") == 0)
			text->row = &text->columns;
		else if (text->field != NULL && strcmp(text->field, "identity") == 0)
			text->row = &text->identity;
		if (text->row != NULL)
			text->row->present = true;
	}
	return compat_json_success;
}

static compat_json_result
OnArrayEnd(void *arg)
{
	TextChange *text = arg;

	if (text->depth-- == 2)
		text->row = NULL;
	return compat_json_success;
}

static compat_json_result
OnField(void *arg, char *name, bool isnull)
{
	TextChange *text = arg;

	if (text->depth == 1)
		text->field = name;
	else if (text->depth == 3)
		text->member = name;
	return compat_json_success;
}

static compat_json_result
OnScalar(void *arg, char *token, JsonTokenType type)
{
	TextChange *text = arg;
	char *value = type == JSON_TOKEN_NULL ? NULL : token;

	/* Nothing has a name in an array, where a change has none. */
	if (text->depth == 1 && text->field != NULL)
	{
		if (strcmp(text->field, "action") == 0)
			text->action = value;
		else if (strcmp(text->field, "table") == 0)
			text->table = value;
	}
	else if (text->depth == 3 && text->member != NULL)
	{
		if (strcmp(text->member, "name") == 0)
			text->column.name = value;
		else if (strcmp(text->member, "value") == 0)
			text->column.value = value;
	}
	return compat_json_success;
}

static void
ParseText(StringInfo json, TextChange *text)
{
	JsonLexContext *lex = compat_json_lexer_encoded(json->data, json->len, GetDatabaseEncoding());
	JsonSemAction actions = {0};
	JsonParseErrorType result;

	memset(text, 0, sizeof(*text));
	actions.semstate = text;
	actions.object_start = OnObjectStart;
	actions.object_end = OnObjectEnd;
	actions.array_start = OnArrayStart;
	actions.array_end = OnArrayEnd;
	actions.object_field_start = OnField;
	actions.scalar = OnScalar;
	result = pg_parse_json(lex, &actions);
	if (result != JSON_SUCCESS)
		elog(ERROR, "text of wal2json is not valid JSON: %s", compat_json_error(result, lex));
}

/* ----------------------------------------------------------------------
 * Rows
 * ----------------------------------------------------------------------
 */

/* Is that what is printed as null although it is none? */
static bool
IsNotFinite(Oid type, Datum value)
{
	switch (type)
	{
		case FLOAT4OID:
			return !isfinite(DatumGetFloat4(value));
		case FLOAT8OID:
			return !isfinite(DatumGetFloat8(value));
		case NUMERICOID:
			return numeric_is_nan(DatumGetNumeric(value)) || numeric_is_inf(DatumGetNumeric(value));
		default:
			return false;
	}
}

static Datum
ReadValue(TextRelation *known, int i, Form_pg_attribute att, char *value)
{
	/* Only the prefix of the type's own text is left out, not of a domain's. */
	if (att->atttypid == BYTEAOID)
		value = psprintf("\\x%s", value);

	/* Length and precision were applied when the value was stored. */
	return InputFunctionCall(&known->inputs[i], value, known->ioparams[i], -1);
}

/* `key`: of the row in the WAL only the columns of a key are set. */
static HeapTuple
MakeRow(TextRelation *known, Relation relation, TextRow *row, HeapTuple tuple, bool key)
{
	TupleDesc tupdesc = RelationGetDescr(relation);
	Datum *values = palloc(Max(tupdesc->natts, 1) * sizeof(Datum));
	bool *isnull = palloc(Max(tupdesc->natts, 1) * sizeof(bool));
	int next = 0;

	if (!row->present)
		elog(ERROR, "wal2json has left out a row");

	heap_deform_tuple(tuple, tupdesc, values, isnull);
	for (int i = 0; i < tupdesc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(tupdesc, i);
		TextColumn *column = NULL;

		if (att->attisdropped)
		{
			isnull[i] = true;
			continue;
		}

		/* They come in the order of the table. */
		if (next < row->ncolumns && row->columns[next].name != NULL &&
			strcmp(row->columns[next].name, NameStr(att->attname)) == 0)
			column = &row->columns[next++];

		if (column == NULL)
		{
			bool unchanged = !isnull[i] && att->attlen == -1 &&
							 VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(values[i]));

			if (!unchanged && !(key && isnull[i]))
				elog(ERROR, "wal2json has left out column \"%s\"", NameStr(att->attname));
		}
		else if (column->value == NULL)
		{
			if (!isnull[i] && !IsNotFinite(att->atttypid, values[i]))
				elog(ERROR, "wal2json has lost the value of column \"%s\"", NameStr(att->attname));
		}
		else if (isnull[i])
			elog(ERROR, "wal2json has a value for column \"%s\", which is null",
				 NameStr(att->attname));
		else
			values[i] = ReadValue(known, i, att, column->value);
	}
	if (next != row->ncolumns)
		elog(ERROR, "wal2json has an unexpected column \"%s\"",
			 row->columns[next].name ? row->columns[next].name : "");
	return heap_form_tuple(tupdesc, values, isnull);
}

static void
PrepareWrite(LogicalDecodingContext *ctx, XLogRecPtr lsn, TransactionId xid, bool last)
{
	resetStringInfo(ctx->out);
}

static void
Write(LogicalDecodingContext *ctx, XLogRecPtr lsn, TransactionId xid, bool last)
{
	messages++;
}

/* Reads the rows that the WAL has; raises errors. */
static char *
ReadText(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, Relation relation,
		 ReorderBufferChange *change, HeapTuple *old_tuple, HeapTuple *new_tuple)
{
	bool full = relation->rd_rel->relreplident == REPLICA_IDENTITY_FULL;
	char action = change->action == REORDER_BUFFER_CHANGE_INSERT
					  ? 'I'
					  : (change->action == REORDER_BUFFER_CHANGE_UPDATE ? 'U' : 'D');
	TextRelation *known = LookUp(relation);
	TextChange text;

	if (known->problem != NULL)
		return known->problem;
	if (action != 'I' && *old_tuple == NULL && !full &&
		!OidIsValid(RelationGetReplicaIndex(relation)))
		return "wal2json does not tell of a change without a replica identity";

	messages = 0;
	change_callback(ctx, txn, relation, change);
	if (messages != 1)
		elog(ERROR, "wal2json has written %d messages for a change", messages);

	ParseText(ctx->out, &text);
	if (text.action == NULL || text.action[0] != action || text.table == NULL ||
		strcmp(text.table, RelationGetRelationName(relation)) != 0)
		elog(ERROR, "wal2json has written another change than it was given");

	if (*new_tuple != NULL)
		*new_tuple = MakeRow(known, relation, &text.columns, *new_tuple, false);
	if (*old_tuple != NULL)
		*old_tuple = MakeRow(known, relation, &text.identity, *old_tuple, !full);
	return NULL;
}

static char *
ReadRows(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, Relation relation,
		 ReorderBufferChange *change, HeapTuple *old_tuple, HeapTuple *new_tuple)
{
	MemoryContext context = CurrentMemoryContext;
	char *volatile why = NULL;

	*old_tuple = compat_change_tuple(change->data.tp.oldtuple);
	*new_tuple = compat_change_tuple(change->data.tp.newtuple);

	PG_TRY();
	{
		why = ReadText(ctx, txn, relation, change, old_tuple, new_tuple);
	}
	PG_CATCH();
	{
		/*
		 * It may have come from catalog look-ups, in the midst of anything.
		 * Pins and locks go with the transaction of the replay; lightweight
		 * locks are held by nobody around us.
		 */
		LWLockReleaseAll();
		why = PluginCatch(context);
	}
	PG_END_TRY();

	if (ctx->out->maxlen > LARGE_TEXT)
	{
		MemoryContextSwitchTo(ctx->context);
		pfree(ctx->out->data);
		initStringInfo(ctx->out);
		MemoryContextSwitchTo(context);
	}
	return why;
}

/* ----------------------------------------------------------------------
 * Set-up
 * ----------------------------------------------------------------------
 */

static void
Shutdown(LogicalDecodingContext *ctx)
{
	OutputPluginCallbacks ours = {0};

	PluginFillCallbacks(&ours);
	ours.shutdown_cb(ctx);
	shutdown_callback(ctx);
}

void
Wal2jsonPrepare(void)
{
	MemoryContext context = CurrentMemoryContext;

	for (int i = 0; i < lengthof(pinned); i++)
		SetConfigOption(pinned[i].name, pinned[i].value, PGC_SUSET, PGC_S_OVERRIDE);

	PG_TRY();
	{
		(void) load_external_function(WAL2JSON_PLUGIN, "_PG_output_plugin_init", true, NULL);
	}
	PG_CATCH();
	{
		ErrorData *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		ereport(
			ERROR,
			(errcode(error->sqlerrcode),
			 errmsg(
				 "change feed of database \"%s\" cannot be decoded with wal2json, which cannot be loaded",
				 decoder_database),
			 errdetail_internal("%s", error->message),
			 errhint(
				 "Install it (on Debian: package postgresql-%s-wal2json), or set \"changefeed.decoder\" to \"native\".",
				 PG_MAJORVERSION)));
	}
	PG_END_TRY();
}

List *
Wal2jsonOptions(void)
{
	return list_make4(makeDefElem("format-version", (Node *) makeString("2"), -1),
					  makeDefElem("include-types", (Node *) makeString("false"), -1),
					  makeDefElem("include-schemas", (Node *) makeString("false"), -1),
					  makeDefElem("include-transaction", (Node *) makeString("false"), -1));
}

void
Wal2jsonAttach(LogicalDecodingContext *ctx)
{
	Initialize();
	change_callback = ctx->callbacks.change_cb;
	shutdown_callback = ctx->callbacks.shutdown_cb;

	/* What we do not have, wal2json need not have either. */
	memset(&ctx->callbacks, 0, sizeof(ctx->callbacks));
	PluginFillCallbacks(&ctx->callbacks);
	ctx->callbacks.shutdown_cb = Shutdown;
	ctx->prepare_write = PrepareWrite;
	ctx->write = Write;
	PluginAttach(ctx, ReadRows);
}
