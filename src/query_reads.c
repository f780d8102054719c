/*-------------------------------------------------------------------------
 *
 * query_reads.c
 *		What else than the row and the claims does an expression depend on?
 *
 * The planner names the tables that an expression reads in subqueries, but not
 * those that are read in functions that it calls.  Bodies of functions in
 * language SQL are looked into here, as deep as they call each other.  Others
 * (other languages, SECURITY DEFINER, polymorphic ones) say nothing of
 * themselves: their tables are those of changefeed.declare_dependency, and when
 * there is no such declaration they are unknown.
 *
 * A function that is marked IMMUTABLE is taken at its word.  What comes with the
 * server and is not immutable depends on time, on catalogs, or on settings; the
 * settings are pinned, and the functions that depend on nothing else are known
 * here.  The rest changes without a trace in the WAL, as do temporary, unlogged
 * and foreign tables: what depends on that has to be looked at now and then.
 *
 * Process: query worker, and backends that declare or explain.  Nothing is
 * executed.  Memory: CurrentMemoryContext.  Locks: AccessShareLock on what is
 * found, until the transaction's end.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "query_internal.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "executor/functions.h"
#include "miscadmin.h"
#include "parser/parse_coerce.h"
#include "nodes/nodeFuncs.h"
#include "nodes/makefuncs.h"
#include "rewrite/rewriteHandler.h"
#include "storage/lmgr.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

/* STABLE because of settings that are pinned, or of the role. */
static const char *const steady_functions[] = {
	"array_to_json",	  "array_to_string",  "concat",			  "concat_ws",
	"current_database",	  "current_schema",	  "current_schemas",  "current_user",
	"date_out",			  "float4out",		  "float8out",		  "format",
	"getpgusername",	  "interval_out",	  "json_build_array", "json_build_object",
	"json_object_agg",	  "jsonb_agg",		  "json_agg",		  "jsonb_build_array",
	"jsonb_build_object", "jsonb_object_agg", "quote_literal",	  "quote_nullable",
	"row_to_json",		  "session_user",	  "string_to_array",  "timestamp_out",
	"timestamptz_out",	  "to_json",		  "to_jsonb",		  "array_out",
	"record_out",		  "enum_out",		  "enum_in",		  "bpcharin",
	"varcharin",		  "numeric_in",		  "interval_in",
};

typedef struct ReadsContext
{
	Reads *reads;
	Node *node; /* at hand */
} ReadsContext;

static bool ReadsWalker(Node *node, ReadsContext *context);

/* ---- What was declared ---- */

/*
 * Tables that the function was declared to read; false when nothing was.  The
 * newest rows, as for catalogs: what is found out is kept until the function
 * is invalidated, by declare_dependency for one.
 */
static bool
Declared(Oid function, List **relids)
{
	Oid namespace = get_namespace_oid(CHANGEFEED_SCHEMA, true);
	Oid relid = OidIsValid(namespace) ? get_relname_relid("dependency", namespace) : InvalidOid;
	Relation rel;
	Snapshot snapshot;
	TableScanDesc scan;
	HeapTuple tuple;
	char *signature;
	bool found = false;

	if (!OidIsValid(relid) || !SearchSysCacheExists1(PROCOID, ObjectIdGetDatum(function)))
		return false;
	signature = format_procedure_qualified(function);
	rel = table_open(relid, AccessShareLock);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan = table_beginscan(rel, snapshot, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		bool isnull;
		Datum value = heap_getattr(tuple, 1, RelationGetDescr(rel), &isnull);

		if (isnull || strcmp(TextDatumGetCString(value), signature) != 0)
			continue;
		found = true;
		value = heap_getattr(tuple, 2, RelationGetDescr(rel), &isnull);
		if (!isnull && SearchSysCacheExists1(RELOID, value))
			*relids = list_append_unique_oid(*relids, DatumGetObjectId(value));
	}
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
	return found;
}

/* ---- Bodies of functions ---- */

bool
FunctionIsPolymorphic(const FormData_pg_proc *form)
{
	int i;

	if (IsPolymorphicType(form->prorettype))
		return true;
	for (i = 0; i < form->proargtypes.dim1; i++)
		if (IsPolymorphicType(form->proargtypes.values[i]))
			return true;
	return false;
}

List *
FunctionBody(HeapTuple tuple, Node *call)
{
	List *queries = NIL;
	ListCell *lc;
	bool isnull;
	Datum value = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_prosqlbody, &isnull);

	if (!isnull)
	{
		Node *body = stringToNode(TextDatumGetCString(value));
		List *list = IsA(body, List) ? linitial_node(List, (List *) body) : list_make1(body);

		foreach(lc, list)
		{
			Query *query = lfirst_node(Query, lc);

			AcquireRewriteLocks(query, true, false);
			queries = list_concat(queries, pg_rewrite_query(query));
		}
		return queries;
	}

	value = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_prosrc, &isnull);
	if (!isnull)
	{
		char *source = TextDatumGetCString(value);
		SQLFunctionParseInfoPtr info = prepare_sql_fn_parse_info(tuple, call, InvalidOid);

		foreach(lc, pg_parse_query(source))
			queries = list_concat(queries, pg_analyze_and_rewrite_withcb(
											   lfirst_node(RawStmt, lc), source,
											   (ParserSetupHook) sql_fn_parser_setup, info, NULL));
	}
	return queries;
}

/* False: nobody can look into the function. */
static bool
LookIntoFunction(Oid function, HeapTuple tuple, ReadsContext *context)
{
	Form_pg_proc form = (Form_pg_proc) GETSTRUCT(tuple);
	Node *call = context->node;
	int nestlevel;
	bool known = true;
	bool isnull;
	Datum config;
	List *queries;
	ListCell *lc;

	if (form->prolang != SQLlanguageId || form->prosecdef || form->prokind != PROKIND_FUNCTION ||
		FunctionIsPolymorphic(form))
		return false;

	nestlevel = NewGUCNestLevel();
	config = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_proconfig, &isnull);
	if (!isnull)
		ProcessGUCArray(DatumGetArrayTypeP(config), superuser() ? PGC_SUSET : PGC_USERSET,
						PGC_S_SESSION, GUC_ACTION_SAVE);
	queries = FunctionBody(tuple, call);
	foreach(lc, queries)
	{
		Query *query = lfirst_node(Query, lc);

		if (query->commandType != CMD_SELECT || query->utilityStmt != NULL)
			known = false;
		else
			(void) ReadsWalker((Node *) query, context);
	}
	AtEOXact_GUC(true, nestlevel);
	context->node = call;
	return known;
}

/* ---- Functions ---- */

/* Of a setting that is the identity's, or pinned? */
static bool
IsSteadySetting(Node *node)
{
	Const *name;
	char *setting;

	if (!IsA(node, FuncExpr) || ((FuncExpr *) node)->args == NIL)
		return false;
	name = (Const *) linitial(((FuncExpr *) node)->args);
	if (!IsA(name, Const) || name->constisnull || name->consttype != TEXTOID)
		return false;
	setting = TextDatumGetCString(name->constvalue);
	return pg_strncasecmp(setting, "request.jwt.", 12) == 0 ||
		   pg_strcasecmp(setting, "role") == 0 || pg_strcasecmp(setting, "search_path") == 0;
}

/* Text to an array; of times it may be 'now'. */
static bool
IsSteadyArray(Node *node)
{
	Oid element;

	if (!IsA(node, CoerceViaIO))
		return false;
	element = get_base_element_type(((CoerceViaIO *) node)->resulttype);
	return OidIsValid(element) && element < FirstNormalObjectId && !type_is_rowtype(element) &&
		   TypeCategory(element) != TYPCATEGORY_DATETIME;
}

static bool
IsSteady(Oid function, Node *node)
{
	char *name;
	int i;

	if (func_volatile(function) == PROVOLATILE_IMMUTABLE)
		return true;
	if (function == F_CURRENT_SETTING_TEXT || function == F_CURRENT_SETTING_TEXT_BOOL)
		return IsSteadySetting(node);
	if (function == F_ARRAY_IN)
		return IsSteadyArray(node);
	name = get_func_name(function);
	for (i = 0; name != NULL && i < lengthof(steady_functions); i++)
		if (strcmp(name, steady_functions[i]) == 0)
			return true;
	return false;
}

static void
Unsteady(Reads *reads, char *what)
{
	ListCell *lc;

	foreach(lc, reads->unsteady)
		if (strcmp(lfirst(lc), what) == 0)
			return;
	reads->unsteady = lappend(reads->unsteady, what);
}

static bool
NoteFunction(Oid function, void *arg)
{
	ReadsContext *context = arg;
	Reads *reads = context->reads;
	HeapTuple tuple;

	if (function < FirstNormalObjectId)
	{
		if (!IsSteady(function, context->node))
			Unsteady(reads, psprintf("function %s", format_procedure(function)));
		return false;
	}
	if (list_member_oid(reads->functions, function))
		return false;
	reads->functions = lappend_oid(reads->functions, function);
	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	if (!HeapTupleIsValid(tuple))
		return false;
	if (((Form_pg_proc) GETSTRUCT(tuple))->provolatile == PROVOLATILE_IMMUTABLE)
		;
	else if (Declared(function, &reads->relids))
		reads->declared = lappend_oid(reads->declared, function);
	else if (!LookIntoFunction(function, tuple, context))
		reads->unknown = list_append_unique_oid(reads->unknown, function);
	ReleaseSysCache(tuple);
	return false; /* go on */
}

/* ---- Tables ---- */

static void
NoteTable(Reads *reads, const RangeTblEntry *rte)
{
	const char *what = NULL;

	/* What is behind a view comes as well; but it can be defined anew. */
	if (rte->relkind == RELKIND_VIEW)
		;
	else if (rte->relkind == RELKIND_FOREIGN_TABLE)
		what = "foreign table";
	else if (rte->relid < FirstNormalObjectId ||
			 get_rel_namespace(rte->relid) == get_namespace_oid(CHANGEFEED_SCHEMA, true))
		what = "system table";
	else if (get_rel_persistence(rte->relid) != RELPERSISTENCE_PERMANENT)
		what = "unlogged table";
	if (what != NULL)
		Unsteady(reads, psprintf("%s %s", what, get_rel_name(rte->relid)));
	reads->relids = list_append_unique_oid(reads->relids, rte->relid);
}

static bool
ReadsWalker(Node *node, ReadsContext *context)
{
	if (node == NULL)
		return false;
	switch (nodeTag(node))
	{
		case T_Query:
			return query_tree_walker((Query *) node, ReadsWalker, (void *) context,
									 QTW_EXAMINE_RTES_BEFORE);
		case T_RangeTblEntry:
			/* A view that was rewritten leaves its OID behind since 16. */
			if (OidIsValid(((RangeTblEntry *) node)->relid))
				NoteTable(context->reads, (RangeTblEntry *) node);
			return false; /* its parts come as well */
		case T_SQLValueFunction:
			switch (((SQLValueFunction *) node)->op)
			{
				case SVFOP_CURRENT_ROLE:
				case SVFOP_CURRENT_USER:
				case SVFOP_USER:
				case SVFOP_SESSION_USER:
				case SVFOP_CURRENT_CATALOG:
				case SVFOP_CURRENT_SCHEMA:
					break;
				default:
					Unsteady(context->reads, "the current time");
					break;
			}
			break;
		case T_CoerceToDomain:
			context->reads->domains = true;
			break;
		case T_FuncExpr:
			if (get_typtype(exprType(node)) == TYPTYPE_DOMAIN)
				context->reads->domains = true;
			break;
		case T_NextValueExpr:
			Unsteady(context->reads, "a sequence");
			break;
		default:
			break;
	}
	context->node = node;
	(void) check_functions_in_node(node, NoteFunction, context);
	return expression_tree_walker(node, ReadsWalker, (void *) context);
}

void
ReadsOfQuery(Query *query, Reads *reads)
{
	ReadsContext context = {reads, NULL};

	(void) ReadsWalker((Node *) query, &context);
}

void
ReadsOfExpression(Node *expression, Reads *reads)
{
	Query *query = makeNode(Query);
	ListCell *lc;

	/* Views in it, and row security of what it reads, come in by rewriting. */
	query->commandType = CMD_SELECT;
	query->querySource = QSRC_ORIGINAL;
	query->canSetTag = true;
	query->targetList = list_make1(
		makeTargetEntry((Expr *) copyObject(expression), 1, pstrdup("visible"), false));
	query->jointree = makeFromExpr(NIL, NULL);
	query->hasSubLinks = true;
	AcquireRewriteLocks(query, true, false);
	foreach(lc, pg_rewrite_query(query))
		ReadsOfQuery(lfirst_node(Query, lc), reads);
	foreach(lc, reads->relids)
		LockRelationOid(lfirst_oid(lc), AccessShareLock);
}

char *
ReadsRecheckReason(const Reads *reads)
{
	StringInfoData reason;
	const char *separator = "";
	ListCell *lc;

	if (reads->unknown == NIL && reads->unsteady == NIL)
		return NULL;
	initStringInfo(&reason);
	foreach(lc, reads->unsteady)
	{
		appendStringInfo(&reason, "%s%s", separator, (char *) lfirst(lc));
		separator = ", ";
	}
	foreach(lc, reads->unknown)
	{
		appendStringInfo(&reason, "%sfunction %s, which reads nobody knows what", separator,
						 format_procedure(lfirst_oid(lc)));
		separator = ", ";
	}
	return reason.data;
}
