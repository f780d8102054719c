/*-------------------------------------------------------------------------
 *
 * query_snapshot.c
 *		What may an identity read of some tables, and what is in them now?
 *
 * Locks come before the snapshot, since a table that is rewritten in between
 * looks empty, and the tables that policies read count among them.  The rows
 * are read under the role and its claims, as any SELECT of the role would read
 * them, and encoded in batches under pinned settings.
 *
 * Rows leave the transaction as pages (query_pages.c).  Nothing is sent before
 * the transaction has ended: however long the receiver takes, no snapshot is
 * held for it.
 *
 * Process: query worker.  Locks: AccessShareLock on sources, partitions and
 * dependencies until the transaction's end.  Memory: the request and what is
 * to be sent in query_job_context, a batch of rows in a context of its own.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "query_internal.h"

#include "encode.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/params.h"
#include "optimizer/optimizer.h"
#include "pgstat.h"
#include "storage/lmgr.h"
#include "tcop/tcopprot.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#define SNAPSHOT_LOCK_TIMEOUT 1000 /* ms */
#define SNAPSHOT_TIME_FACTOR  60   /* times changefeed.policy_timeout */

#define PAGE_BYTES	(64 * 1024)
#define PAGE_ROWS	1000
#define BATCH_ROWS	1000
#define BATCH_BYTES (256 * 1024)

typedef struct Parameter
{
	char *column;
	char *text;
	int16 attno;
	int output_index; /* of the column in the query's result */
	Oid type;		  /* base type */
	int32 typmod;
	Oid column_type;
	Datum value;
	bool recheck; /* equal values may have different texts */
	FmgrInfo output;
} Parameter;

typedef struct Source
{
	Oid relid;
	char *filter; /* empty: none */
	int nkeys;
	char **keys;
	int npublished; /* 0: all */
	char **published;
	int nparams;
	Parameter *params;
	/* found out: */
	int ncolumns;
	int16 *columns;
	int nextra; /* columns of parameters that are not sent */
	int16 *extra;
	bool nothing; /* no row may be read */
} Source;

typedef struct Request
{
	Oid role;
	char *claims;
	uint8 flags;
	int nsources;
	Source *sources;
	StringInfoData *describes; /* one message each */
	StringInfoData snapshot;   /* the message */
} Request;

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

static bool
IsPublished(const Source *source, const char *column)
{
	int i;

	for (i = 0; i < source->npublished; i++)
		if (strcmp(source->published[i], column) == 0)
			return true;
	return source->npublished == 0;
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
FindColumns(Source *source, Relation rel, Oid role)
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
	for (i = 0; i < tupdesc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(tupdesc, i);

		if (att->attisdropped || !MayRead(relid, att->attnum, role))
			continue;
		readable = true;
		/* Virtual columns are not in the WAL. */
		if (att->attgenerated != COMPAT_GENERATED_VIRTUAL &&
			IsPublished(source, NameStr(att->attname)))
			source->columns[source->ncolumns++] = att->attnum;
	}
	if (!readable)
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("permission denied for table %s", RelationGetRelationName(rel)),
						errhint("Use GRANT SELECT ON %s TO %s.", QualifiedName(rel),
								quote_identifier(GetUserNameFromId(role, false)))));

	source->extra = palloc(sizeof(int16) * Max(source->nparams, 1));
	source->nextra = 0;
	for (i = 0; i < source->nparams; i++)
	{
		Parameter *param = &source->params[i];

		param->attno = RequireColumn(rel, param->column);
		RequireReadable(rel, param->attno, role, "channel column");
		if (!HasColumn(source->columns, source->ncolumns, param->attno) &&
			!HasColumn(source->extra, source->nextra, param->attno))
			source->extra[source->nextra++] = param->attno;
	}
}

static void
DescribeSource(Request *request, int index)
{
	Source *source = &request->sources[index];
	StringInfo out = &request->describes[index];
	MemoryContext old = MemoryContextSwitchTo(query_job_context);
	Relation rel = table_open(source->relid, NoLock);
	Policy *policy;
	int i;

	FindColumns(source, rel, request->role);
	initStringInfo(out);
	QueryMessage(out, QUERY_DESCRIBE);
	WirePutU16(out, (uint16) index);
	WirePutU16(out, (uint16) source->ncolumns);
	for (i = 0; i < source->ncolumns; i++)
		WirePutU16(out, (uint16) source->columns[i]);
	WirePutU16(out, (uint16) source->nkeys);
	for (i = 0; i < source->nkeys; i++)
	{
		int16 attno = RequireColumn(rel, source->keys[i]);

		RequireReadable(rel, attno, request->role, "key column");
		WirePutU16(out, (uint16) attno);
	}
	MemoryContextSwitchTo(old);

	policy = PolicyGet(source->relid, request->role);
	source->nothing = policy->state == POLICY_NOTHING;
	WirePutU8(out, (uint8) policy->state);
	WirePutU64(out, PolicyFingerprint(policy));
	WirePutU32(out, policy->ndependencies);
	for (i = 0; i < policy->ndependencies; i++)
		WirePutU32(out, policy->dependencies[i]);
	table_close(rel, NoLock);
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
ParameterInput(const Parameter *param)
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
PrepareParameter(Parameter *param, Relation rel)
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

static ParamListInfo
PrepareParameters(Source *source, Relation rel, Oid *types)
{
	ParamListInfo params = makeParamList(source->nparams);
	int i;
	int j;

	for (i = 0; i < source->nparams; i++)
	{
		Parameter *param = &source->params[i];

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
EqualityOperator(const Parameter *param)
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

static char *
BuildQuery(const Source *source, Relation rel)
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
	for (i = 0; i < source->nparams; i++)
	{
		appendStringInfoString(&sql, separator);
		AppendColumn(&sql, rel, source->params[i].attno);
		appendStringInfo(&sql, " %s $%d", EqualityOperator(&source->params[i]), i + 1);
		separator = " AND ";
	}
	return sql.data;
}

/*
 * Names in the filter mean what they meant when it was checked, whatever the
 * role's search_path is; functions find their way in the role's.
 */
static PlannedStmt *
PlanQuery(const Source *source, Relation rel, Oid role, const char *sql, const Oid *types,
		  ParamListInfo params)
{
	int nestlevel = EncodePinnedBegin();
	List *raw = pg_parse_query(sql);
	List *queries;
	Query *query;
	Bitmapset *attnos = NULL;
	int attno = -1;

	if (list_length(raw) != 1)
		ereport(ERROR, (errcode(ERRCODE_SYNTAX_ERROR), errmsg("filter is not one expression")));
	queries = pg_analyze_and_rewrite_fixedparams(linitial_node(RawStmt, raw), sql, types,
												 source->nparams, NULL);
	EncodePinnedEnd(nestlevel);

	query = list_length(queries) == 1 ? linitial_node(Query, queries) : NULL;
	if (query == NULL || query->commandType != CMD_SELECT || query->utilityStmt != NULL)
		ereport(ERROR, (errcode(ERRCODE_SYNTAX_ERROR), errmsg("filter is not one expression")));

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
static bool
TextsMatch(Source *source, const Datum *values, const bool *isnull)
{
	int i;

	for (i = 0; i < source->nparams; i++)
	{
		Parameter *param = &source->params[i];

		if (param->recheck &&
			(isnull[param->output_index] ||
			 strcmp(OutputFunctionCall(&param->output, values[param->output_index]), param->text) !=
				 0))
			return false;
	}
	return true;
}

/* Encodes a batch; calls of others' code are over, settings are pinned. */
static void
EncodeBatch(Source *source, int index, RowEncoder *encoder, TupleDesc tupdesc, HeapTuple *tuples,
			int ntuples, QueryPages *pages)
{
	int nestlevel = EncodePinnedBegin();
	MemoryContext row_context = AllocSetContextCreate(CurrentMemoryContext, "changefeed row",
													  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(row_context);
	Datum *values = MemoryContextAlloc(old, sizeof(Datum) * tupdesc->natts);
	bool *isnull = MemoryContextAlloc(old, sizeof(bool) * tupdesc->natts);
	int16 *attnos = MemoryContextAlloc(old, sizeof(int16) * (source->ncolumns + 1));
	int i;

	for (i = 0; i < source->ncolumns; i++)
		attnos[i] = i + 1;
	for (i = 0; i < ntuples; i++)
	{
		CHECK_FOR_INTERRUPTS();
		heap_deform_tuple(tuples[i], tupdesc, values, isnull);
		if (TextsMatch(source, values, isnull))
		{
			if (pages->rows > 0)
				appendStringInfoChar(&pages->page, ',');
			EncodeRow(encoder, &pages->page, attnos, source->ncolumns, values, isnull);
			if (++pages->rows >= PAGE_ROWS || pages->page.len >= PAGE_BYTES)
			{
				QueryPageEnd(pages);
				QueryPageBegin(pages, index);
			}
		}
		MemoryContextReset(row_context);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(row_context);
	EncodePinnedEnd(nestlevel);
}

static void
ReadRows(Source *source, int index, PlannedStmt *plan, const char *sql, ParamListInfo params,
		 QueryPages *pages)
{
	QueryDesc *query = CreateQueryDesc(plan, sql, GetActiveSnapshot(), InvalidSnapshot,
									   None_Receiver, params, NULL, 0);
	MemoryContext batch_context = AllocSetContextCreate(CurrentMemoryContext, "changefeed batch",
														ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = CurrentMemoryContext;
	HeapTuple *tuples = palloc(sizeof(HeapTuple) * BATCH_ROWS);
	RowEncoder *encoder;
	bool end = false;

	ExecutorStart(query, 0);
	encoder = EncoderCreate(query->tupDesc, old);
	while (!end)
	{
		int n = 0;
		Size bytes = 0;

		while (n < BATCH_ROWS && bytes < BATCH_BYTES)
		{
			TupleTableSlot *slot;

			CHECK_FOR_INTERRUPTS();
			MemoryContextSwitchTo(query->estate->es_query_cxt);
			ResetPerTupleExprContext(query->estate);
			slot = ExecProcNode(query->planstate);
			MemoryContextSwitchTo(batch_context);
			if (TupIsNull(slot))
			{
				end = true;
				break;
			}
			tuples[n] = ExecCopySlotHeapTuple(slot);
			bytes += tuples[n++]->t_len;
		}
		MemoryContextSwitchTo(batch_context);
		EncodeBatch(source, index, encoder, query->tupDesc, tuples, n, pages);
		MemoryContextSwitchTo(old);
		MemoryContextReset(batch_context);
		QueryCheckPeer();
	}
	ExecutorFinish(query);
	ExecutorEnd(query);
	FreeQueryDesc(query);
}

/*
 * Without `pages` nothing is read, but everything is checked that can be
 * refused: whoever resumes is treated like whoever begins.
 */
static void
SnapshotSource(Request *request, int index, QueryPages *pages)
{
	Source *source = &request->sources[index];
	Relation rel = table_open(source->relid, NoLock);
	Oid *types = palloc(sizeof(Oid) * (source->nparams + 1));
	ParamListInfo params = PrepareParameters(source, rel, types);
	char *sql = BuildQuery(source, rel);
	PlannedStmt *plan = PlanQuery(source, rel, request->role, sql, types, params);

	if (pages != NULL)
	{
		QueryPageBegin(pages, index);
		if (!source->nothing)
			ReadRows(source, index, plan, sql, params, pages);
		/* Every source has a page. */
		QueryPageEnd(pages);
	}
	table_close(rel, NoLock);
}

/* ---- The job ---- */

static int
CompareSources(const void *a, const void *b)
{
	return oid_cmp(&(*(Source *const *) a)->relid, &(*(Source *const *) b)->relid);
}

/* In the order of their OIDs, so that two of us cannot wait for each other. */
static void
LockSources(Request *request)
{
	Source **order = palloc(sizeof(Source *) * Max(request->nsources, 1));
	int i;

	for (i = 0; i < request->nsources; i++)
		order[i] = &request->sources[i];
	qsort(order, request->nsources, sizeof(Source *), CompareSources);
	for (i = 0; i < request->nsources; i++)
	{
		Oid relid = order[i]->relid;
		char relkind;

		LockRelationOid(relid, AccessShareLock);
		relkind = get_rel_relkind(relid);
		if (relkind != RELKIND_RELATION && relkind != RELKIND_PARTITIONED_TABLE)
			ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE),
							errmsg("table of the channel does not exist any more"),
							errdetail_internal("relation with OID %u", relid)));
		if (relkind == RELKIND_PARTITIONED_TABLE)
			(void) find_all_inheritors(relid, AccessShareLock, NULL);
	}
}

static void
PutSnapshot(Request *request, Snapshot snapshot, XLogRecPtr lsn)
{
	uint32 i;

	if (snapshot->takenDuringRecovery)
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("snapshots are not supported on a standby server")));
	initStringInfo(&request->snapshot);
	QueryMessage(&request->snapshot, QUERY_SNAPSHOT);
	WirePutU32(&request->snapshot, snapshot->xmin);
	WirePutU32(&request->snapshot, snapshot->xmax);
	WirePutU32(&request->snapshot, snapshot->xcnt);
	for (i = 0; i < snapshot->xcnt; i++)
		WirePutU32(&request->snapshot, snapshot->xip[i]);
	WirePutU64(&request->snapshot, lsn);
}

/*
 * Begins the transaction, with everything locked before the snapshot, and
 * finds out about the sources.  What policies read is known only when they
 * have been planned: then the transaction begins once more.
 */
static void
BeginSnapshot(Request *request)
{
	int attempt;

	for (attempt = 0;; attempt++)
	{
		bool known = true;
		XLogRecPtr lsn;
		MemoryContext old;
		int i;

		QueryTransactionBegin(SNAPSHOT_LOCK_TIMEOUT,
							  (int64) setting_policy_timeout * SNAPSHOT_TIME_FACTOR);
		LockSources(request);
		for (i = 0; i < request->nsources; i++)
			if (!PolicyLockDependencies(request->sources[i].relid, request->role))
				known = false;

		QueryEnterIdentity(request->role, request->claims);
		PushActiveSnapshot(GetTransactionSnapshot());
		lsn = SharedInsertLsn();
		for (i = 0; i < request->nsources; i++)
			DescribeSource(request, i);
		if ((request->flags & QUERY_WITH_ROWS) == 0)
			return;
		if (known || attempt >= 2)
		{
			old = MemoryContextSwitchTo(query_job_context);
			PutSnapshot(request, GetActiveSnapshot(), lsn);
			MemoryContextSwitchTo(old);
			return;
		}
		QueryTransactionEnd();
	}
}

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

static void
ReadRequest(Request *request, WireReader *body)
{
	int i;
	int j;

	memset(request, 0, sizeof(Request));
	request->role = WireGetU32(body);
	request->claims = QueryCopyBytes(WireGetBytes(body));
	request->flags = WireGetU8(body);
	request->nsources = WireGetU16(body);
	request->sources = palloc0(sizeof(Source) * Max(request->nsources, 1));
	request->describes = palloc0(sizeof(StringInfoData) * Max(request->nsources, 1));
	for (i = 0; i < request->nsources && !body->failed; i++)
	{
		Source *source = &request->sources[i];

		source->relid = WireGetU32(body);
		source->filter = QueryCopyBytes(WireGetBytes(body));
		source->keys = ReadNames(body, &source->nkeys);
		source->published = ReadNames(body, &source->npublished);
		source->nparams = WireGetU16(body);
		source->params = palloc0(sizeof(Parameter) * Max(source->nparams, 1));
		for (j = 0; j < source->nparams; j++)
		{
			source->params[j].column = QueryCopyBytes(WireGetBytes(body));
			source->params[j].text = QueryCopyBytes(WireGetBytes(body));
		}
	}
	if (!WireAtEnd(body))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED), errmsg("malformed job for a query worker")));
}

void
QueryRunSubscribe(WireReader *body)
{
	Request request;
	QueryPages pages;
	bool with_rows;
	int i;

	ReadRequest(&request, body);
	with_rows = (request.flags & QUERY_WITH_ROWS) != 0;
	pgstat_report_activity(STATE_RUNNING,
						   with_rows ? "reading a snapshot" : "checking a subscription");

	BeginSnapshot(&request);
	if (with_rows)
		QueryPagesInit(&pages, request.role);
	for (i = 0; i < request.nsources; i++)
		SnapshotSource(&request, i, with_rows ? &pages : NULL);
	QueryTransactionEnd();

	for (i = 0; i < request.nsources; i++)
		QuerySend(&request.describes[i]);
	if (with_rows)
	{
		QuerySend(&request.snapshot);
		QueryPagesSend(&pages);
	}
}
