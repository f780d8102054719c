/*-------------------------------------------------------------------------
 *
 * query_source.c
 *		One source of a channel as an identity may read it: its columns, the
 *		parameters of the channel's name, and the query for its rows.
 *
 * What is described to the feed worker and what the query reads are found out
 * here together, so that a snapshot has exactly the columns that live changes
 * will have.  Whoever resumes is checked like whoever begins.
 *
 * Process: query worker.  Locks: the caller has locked the table.  Memory:
 * what outlives the transaction in query_job_context, the rest in the
 * transaction's.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "query_internal.h"

#include "encode.h"
#include "wal2json.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "nodes/params.h"
#include "optimizer/optimizer.h"
#include "tcop/tcopprot.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

/* ---- The job ---- */

static char **
ReadNames(WireReader *body, int *n)
{
	char **names;
	int i;

	*n = WireGetU16(body);
	names = palloc(sizeof(char *) * Max(*n, 1));
	for (i = 0; i < *n; i++)
		names[i] = QueryCopyBytes(WireGetBytes(body));
	return names;
}

void
SourceQueryRead(SourceQuery *source, WireReader *body)
{
	int i;

	source->relid = WireGetU32(body);
	source->filter = QueryCopyBytes(WireGetBytes(body));
	source->keys = ReadNames(body, &source->nkeys);
	source->published = ReadNames(body, &source->npublished);
	source->nparams = WireGetU16(body);
	/* Room for the key, for who looks for one row. */
	source->params = palloc0(sizeof(SourceParameter) * (source->nparams + source->nkeys + 1));
	for (i = 0; i < source->nparams; i++)
	{
		source->params[i].column = QueryCopyBytes(WireGetBytes(body));
		source->params[i].text = QueryCopyBytes(WireGetBytes(body));
	}
}

Selection *
SourceQueryReadSelection(WireReader *body)
{
	WireBytes text = WireGetBytes(body);
	Selection *selection;
	SelectionError error;

	if (text.length == 0)
		return NULL;
	selection = SelectionParse(text.data, text.length, &error);
	if (selection == NULL)
		ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED), errmsg("%s", error.message)));
	return selection;
}

/* ---- What the identity may read ---- */

static bool
MayRead(Oid relid, int16 attno, Oid role)
{
	return pg_class_aclcheck(relid, role, ACL_SELECT) == ACLCHECK_OK ||
		   pg_attribute_aclcheck(relid, attno, role, ACL_SELECT) == ACLCHECK_OK;
}

/* The table's name as one would write it. */
static char *
QualifiedName(Relation rel)
{
	return quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
									  RelationGetRelationName(rel));
}

static int16
RequireColumn(Relation rel, const char *name)
{
	AttrNumber attno = get_attnum(RelationGetRelid(rel), name);

	if (attno <= 0)
		ereport(
			ERROR,
			(errcode(ERRCODE_UNDEFINED_COLUMN),
			 errmsg("column \"%s\" of table \"%s.%s\" does not exist", name,
					get_namespace_name(RelationGetNamespace(rel)), RelationGetRelationName(rel)),
			 errhint(
				 "The table has changed since the channel was created: create the channel again.")));
	return attno;
}

/* `what` is a key column, or one that names the channel or filters rows. */
static void
RequireReadable(Relation rel, int16 attno, Oid role, const char *what)
{
	if (MayRead(RelationGetRelid(rel), attno, role))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied for %s \"%s\" of table \"%s.%s\"", what,
					NameStr(TupleDescAttr(RelationGetDescr(rel), attno - 1)->attname),
					get_namespace_name(RelationGetNamespace(rel)), RelationGetRelationName(rel)),
			 errhint("Use GRANT SELECT (%s) ON %s TO %s.",
					 quote_identifier(
						 NameStr(TupleDescAttr(RelationGetDescr(rel), attno - 1)->attname)),
					 QualifiedName(rel), quote_identifier(GetUserNameFromId(role, false)))));
}

/* The cast may have been made since the channel was. */
static void
RequireNoCast(Relation rel, int16 attno, const char *what)
{
	Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), attno - 1);

	if (EncodeTypeUsesCast(att->atttypid))
		ereport(
			ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("type %s of %s \"%s\" of table \"%s.%s\" has a cast to json",
					format_type_be(att->atttypid), what, NameStr(att->attname),
					get_namespace_name(RelationGetNamespace(rel)), RelationGetRelationName(rel)),
			 errhint(
				 "Keys and names of channels are made without user-defined code: drop the cast.")));
}

static bool
IsPublished(const SourceQuery *source, const char *column)
{
	int i;

	for (i = 0; i < source->npublished; i++)
		if (strcmp(source->published[i], column) == 0)
			return true;
	return source->npublished == 0;
}

int16
SourceQueryRequire(const SourceQuery *source, Relation rel, const char *column, Oid role,
				   const char *what)
{
	AttrNumber attno = get_attnum(RelationGetRelid(rel), column);

	if (attno <= 0)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_COLUMN),
						errmsg("%s \"%s\" of table \"%s.%s\" does not exist", what, column,
							   get_namespace_name(RelationGetNamespace(rel)),
							   RelationGetRelationName(rel)),
						errhint("Name a column that all tables of the channel have.")));
	RequireReadable(rel, attno, role, what);
	if (!IsPublished(source, column))
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("permission denied for %s \"%s\" of table \"%s.%s\"", what, column,
							   get_namespace_name(RelationGetNamespace(rel)),
							   RelationGetRelationName(rel)),
						errhint("The channel does not publish it.")));
	if (TupleDescAttr(RelationGetDescr(rel), attno - 1)->attgenerated == COMPAT_GENERATED_VIRTUAL)
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("%s \"%s\" is a virtual generated column", what, column),
						errhint("Make it a stored generated column.")));
	return attno;
}

static bool
HasColumn(const int16 *columns, int n, int16 attno)
{
	int i;

	for (i = 0; i < n; i++)
		if (columns[i] == attno)
			return true;
	return false;
}

/* The source's columns, in job memory. */
static void
FindColumns(SourceQuery *source, Relation rel, Oid role)
{
	TupleDesc tupdesc = RelationGetDescr(rel);
	Oid relid = RelationGetRelid(rel);
	bool readable = false;
	int i;

	if (compat_namespace_aclcheck(RelationGetNamespace(rel), role, ACL_USAGE) != ACLCHECK_OK)
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("permission denied for table %s", RelationGetRelationName(rel)),
						errhint("Use GRANT USAGE ON SCHEMA %s TO %s.",
								quote_identifier(get_namespace_name(RelationGetNamespace(rel))),
								quote_identifier(GetUserNameFromId(role, false)))));

	source->columns = palloc(sizeof(int16) * tupdesc->natts);
	source->ncolumns = 0;
	source->casts = palloc(sizeof(int16) * tupdesc->natts);
	source->ncasts = 0;
	for (i = 0; i < tupdesc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(tupdesc, i);

		if (att->attisdropped || !MayRead(relid, att->attnum, role))
			continue;
		readable = true;
		/* Virtual columns are not in the WAL. */
		if (att->attgenerated != COMPAT_GENERATED_VIRTUAL &&
			IsPublished(source, NameStr(att->attname)))
		{
			source->columns[source->ncolumns++] = att->attnum;
			if (EncodeTypeUsesCast(att->atttypid))
				source->casts[source->ncasts++] = att->attnum;
		}
	}
	if (!readable)
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("permission denied for table %s", RelationGetRelationName(rel)),
						errhint("Use GRANT SELECT ON %s TO %s.", QualifiedName(rel),
								quote_identifier(GetUserNameFromId(role, false)))));

	/* No change of the table would ever come. */
	if (Wal2jsonInUse())
		Wal2jsonCheckTable(rel);
	if (source->selection != NULL)
		SelectionQueryCheck(source, rel, role);

	source->extra = palloc(sizeof(int16) * Max(source->nparams, 1));
	source->nextra = 0;
	for (i = 0; i < source->nparams; i++)
	{
		SourceParameter *param = &source->params[i];

		param->attno = RequireColumn(rel, param->column);
		RequireReadable(rel, param->attno, role, "channel column");
		RequireNoCast(rel, param->attno, "channel column");
		if (!HasColumn(source->columns, source->ncolumns, param->attno) &&
			!HasColumn(source->extra, source->nextra, param->attno))
			source->extra[source->nextra++] = param->attno;
	}
}

void
SourceQueryDescribe(SourceQuery *source, int index, Oid role, StringInfo out)
{
	MemoryContext old = MemoryContextSwitchTo(query_job_context);
	Relation rel = table_open(source->relid, NoLock);
	Policy *policy;
	StringInfoData rule;
	ListCell *lc;
	int i;

	FindColumns(source, rel, role);
	initStringInfo(out);
	QueryMessage(out, QUERY_DESCRIBE);
	WirePutU16(out, (uint16) index);
	WirePutU16(out, (uint16) source->ncolumns);
	for (i = 0; i < source->ncolumns; i++)
		WirePutU16(out, (uint16) source->columns[i]);
	for (i = 0; i < source->ncolumns; i++)
		WirePutString(
			out, NameStr(TupleDescAttr(RelationGetDescr(rel), source->columns[i] - 1)->attname));
	WirePutU16(out, (uint16) source->nkeys);
	source->key = palloc(sizeof(int16) * Max(source->nkeys, 1));
	for (i = 0; i < source->nkeys; i++)
	{
		int16 attno = RequireColumn(rel, source->keys[i]);

		source->key[i] = attno;

		RequireReadable(rel, attno, role, "key column");
		RequireNoCast(rel, attno, "key column");
		WirePutU16(out, (uint16) attno);
	}
	MemoryContextSwitchTo(old);

	policy = PolicyGet(source->relid, role);
	source->nothing = policy->state == POLICY_NOTHING;
	WirePutU8(out, (uint8) policy->state);
	WirePutU64(out, PolicyFingerprint(policy));
	if (policy->recheck != NULL)
		source->recheck |= RECHECK_ROWS;
	WirePutU32(out, policy->ndependencies + list_length(source->more));
	for (i = 0; i < policy->ndependencies; i++)
		WirePutU32(out, policy->dependencies[i]);
	foreach(lc, source->more)
		WirePutU32(out, lfirst_oid(lc));
	WirePutU16(out, (uint16) source->ncasts);
	for (i = 0; i < source->ncasts; i++)
		WirePutU16(out, (uint16) source->casts[i]);
	NarrowDescribe(policy, source->more, out);
	WirePutU8(out, policy->functions);
	WirePutU8(out, source->recheck);
	initStringInfo(&rule);
	(void) InlineRule(policy, &rule);
	WirePutBytes(out, rule.data, rule.len);
	SelectionQueryDescribe(source, rel, out);
	table_close(rel, NoLock);
}

void
SourceQueryKeysOnly(SourceQuery *source)
{
	int i;

	source->columns = source->key;
	source->ncolumns = source->nkeys;
	source->nextra = 0;
	for (i = 0; i < source->nparams; i++)
		if (!HasColumn(source->columns, source->ncolumns, source->params[i].attno) &&
			!HasColumn(source->extra, source->nextra, source->params[i].attno))
			source->extra[source->nextra++] = source->params[i].attno;
}

/* ---- Parameters ---- */

/* Are values of the type that are equal also equal as text? */
static bool
EqualityIsIdentity(Oid type, Oid collation)
{
	switch (type)
	{
		case BOOLOID:
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case OIDOID:
		case UUIDOID:
		case DATEOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			return true;
		case TEXTOID:
		case VARCHAROID:
			return OidIsValid(collation) && get_collation_isdeterministic(collation);
		default:
			return false;
	}
}

/* The text as a value of the column; user code may run (domains). */
static Datum
ParameterInput(const SourceParameter *param)
{
	MemoryContext context = CurrentMemoryContext;
	Oid function;
	Oid ioparam;
	Datum value;

	getTypeInputInfo(param->column_type, &function, &ioparam);
	PG_TRY();
	{
		value = OidInputFunctionCall(function, param->text, ioparam, param->typmod);
	}
	PG_CATCH();
	{
		ErrorData *error;
		int class;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		class = ERRCODE_TO_CATEGORY(error->sqlerrcode);
		if (class != ERRCODE_DATA_EXCEPTION && class != ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION)
			PG_RE_THROW();
		/* The transaction ends by the error that takes the place of this one. */
		FlushErrorState();
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TEXT_REPRESENTATION),
				 errmsg("channel parameter \"%s\" is not a valid %s for column \"%s\"", param->text,
						format_type_with_typemod(param->column_type, param->typmod), param->column),
				 errhint("%s", error->message)));
	}
	PG_END_TRY();
	return value;
}

static void
PrepareParameter(SourceParameter *param, Relation rel)
{
	Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), param->attno - 1);
	int nestlevel;
	Oid function;
	bool varlena;
	char *text;

	param->column_type = att->atttypid;
	param->typmod = att->atttypmod;
	param->type = getBaseType(att->atttypid);
	param->recheck = !EqualityIsIdentity(param->type, att->attcollation);
	param->value = ParameterInput(param);

	nestlevel = EncodePinnedBegin();
	getTypeOutputInfo(param->type, &function, &varlena);
	fmgr_info(function, &param->output);
	text = OutputFunctionCall(&param->output, param->value);
	EncodePinnedEnd(nestlevel);
	if (strcmp(text, param->text) != 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("channel parameter \"%s\" is not in canonical form", param->text),
						errhint("Use \"%s\".", text)));
}

ParamListInfo
SourceQueryParameters(SourceQuery *source, Relation rel, Oid *types)
{
	ParamListInfo params = makeParamList(source->nparams);
	int i;
	int j;

	for (i = 0; i < source->nparams; i++)
	{
		SourceParameter *param = &source->params[i];

		PrepareParameter(param, rel);
		for (j = 0; j < source->ncolumns; j++)
			if (source->columns[j] == param->attno)
				param->output_index = j;
		for (j = 0; j < source->nextra; j++)
			if (source->extra[j] == param->attno)
				param->output_index = source->ncolumns + j;

		types[i] = param->type;
		params->params[i].value = param->value;
		params->params[i].isnull = false;
		params->params[i].pflags = PARAM_FLAG_CONST;
		params->params[i].ptype = param->type;
	}
	return params;
}

/* ---- The query ---- */

static void
AppendColumn(StringInfo sql, Relation rel, int16 attno)
{
	appendStringInfoString(
		sql, quote_identifier(NameStr(TupleDescAttr(RelationGetDescr(rel), attno - 1)->attname)));
}

/* The operator that indexes on the column support. */
static char *
EqualityOperator(const SourceParameter *param)
{
	TypeCacheEntry *entry = lookup_type_cache(param->type, TYPECACHE_EQ_OPR);
	HeapTuple tuple = NULL;
	Form_pg_operator form;
	char *name;

	if (OidIsValid(entry->eq_opr))
		tuple = SearchSysCache1(OPEROID, ObjectIdGetDatum(entry->eq_opr));
	if (!HeapTupleIsValid(tuple))
		ereport(
			ERROR,
			(errcode(ERRCODE_UNDEFINED_FUNCTION),
			 errmsg("column \"%s\" cannot name channels because type %s has no equality operator",
					param->column, format_type_be(param->column_type))));
	form = (Form_pg_operator) GETSTRUCT(tuple);
	name = psprintf("OPERATOR(%s.%s)", quote_identifier(get_namespace_name(form->oprnamespace)),
					NameStr(form->oprname));
	ReleaseSysCache(tuple);
	return name;
}

char *
SourceQueryText(const SourceQuery *source, Relation rel)
{
	StringInfoData sql;
	const char *separator = "";
	int i;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT ");
	for (i = 0; i < source->ncolumns + source->nextra; i++)
	{
		appendStringInfoString(&sql, separator);
		AppendColumn(&sql, rel,
					 i < source->ncolumns ? source->columns[i]
										  : source->extra[i - source->ncolumns]);
		separator = ", ";
	}
	if (source->system != SOURCE_PLAIN)
		appendStringInfoString(&sql, ", xmin");
	if (source->system == SOURCE_PLACE)
		appendStringInfoString(&sql, ", ctid, tableoid");
	appendStringInfo(&sql, " FROM %s%s",
					 rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE ? "" : "ONLY ",
					 QualifiedName(rel));

	/* The line break ends a comment at the filter's end. */
	separator = " WHERE ";
	if (source->filter[0] != '\0')
	{
		appendStringInfo(&sql, "%s(%s\n)", separator, source->filter);
		separator = " AND ";
	}
	if (source->conditions[0] != '\0')
	{
		appendStringInfo(&sql, "%s(%s)", separator, source->conditions);
		separator = " AND ";
	}
	for (i = 0; i < source->nparams; i++)
	{
		appendStringInfoString(&sql, separator);
		AppendColumn(&sql, rel, source->params[i].attno);
		appendStringInfo(&sql, " %s $%d", EqualityOperator(&source->params[i]), i + 1);
		separator = " AND ";
	}
	SelectionQueryAppendOrder(&sql, source);
	return sql.data;
}

/* The filter was checked when the source was declared: what is wrong is new. */
static void
FilterHint(void *arg)
{
	errhint(
		"The table has changed since the channel was created: create the channel again, with another filter.");
}

/*
 * Names in the filter mean what they meant when it was checked, whatever the
 * role's search_path is; functions find their way in the role's.
 */
PlannedStmt *
SourceQueryPlan(const SourceQuery *source, Relation rel, Oid role, const char *sql,
				const Oid *types, ParamListInfo params)
{
	int nestlevel = EncodePinnedBegin();
	List *raw = pg_parse_query(sql);
	List *queries;
	Query *query;
	ErrorContextCallback context;
	Bitmapset *attnos = NULL;
	int attno = -1;

	if (list_length(raw) != 1)
		ereport(ERROR, (errcode(ERRCODE_SYNTAX_ERROR), errmsg("filter is not one expression")));
	context.callback = FilterHint;
	context.arg = NULL;
	context.previous = error_context_stack;
	error_context_stack = &context;
	queries = pg_analyze_and_rewrite_fixedparams(linitial_node(RawStmt, raw), sql, types,
												 source->nparams, NULL);
	error_context_stack = context.previous;
	EncodePinnedEnd(nestlevel);

	query = list_length(queries) == 1 ? linitial_node(Query, queries) : NULL;
	if (query == NULL || query->commandType != CMD_SELECT || query->utilityStmt != NULL)
		ereport(ERROR, (errcode(ERRCODE_SYNTAX_ERROR), errmsg("filter is not one expression")));

	/* Rights on columns do not cover these, which say nothing of the contents. */
	if (source->system != SOURCE_PLAIN)
	{
		RangeTblEntry *rte = linitial_node(RangeTblEntry, query->rtable);
		Bitmapset **selected = &compat_selected_columns(query, rte);
		int i;

		for (i = TableOidAttributeNumber; i < 0; i++)
			*selected = bms_del_member(*selected, i - FirstLowInvalidHeapAttributeNumber);
	}

	/* The executor would say no as well, but not why. */
	pull_varattnos(query->jointree->quals, 1, &attnos);
	while ((attno = bms_next_member(attnos, attno)) >= 0)
	{
		AttrNumber column = attno + FirstLowInvalidHeapAttributeNumber;

		if (column > 0)
			RequireReadable(rel, column, role, "filter column");
	}
	return pg_plan_query(query, sql, 0, params);
}

/* Does the row belong to the channel to the letter? */
bool
SourceQueryMatches(SourceQuery *source, const Datum *values, const bool *isnull)
{
	int i;

	for (i = 0; i < source->nparams; i++)
	{
		SourceParameter *param = &source->params[i];

		if (param->recheck &&
			(isnull[param->output_index] ||
			 strcmp(OutputFunctionCall(&param->output, values[param->output_index]), param->text) !=
				 0))
			return false;
	}
	return true;
}
