/*-------------------------------------------------------------------------
 *
 * explain.c
 *		changefeed.explain: what decides about what an identity sees.
 *
 * The same code as in the query workers finds it out, in the caller's backend,
 * as the role and with the claims that are asked about.  Policies and the
 * channel's join_check are planned, and functions that they call may run, so it
 * takes what SET ROLE would take, besides the right to see the definition.
 * Whatever fails is what a subscriber would be told, and becomes a row of the
 * result: each part runs in a subtransaction of its own that writes nothing.
 *
 * Process: any backend.  Memory: CurrentMemoryContext of the call; the policies
 * stay in the backend (query_policy.c).  Locks: AccessShareLock on the sources
 * and on what their policies read.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "channel_check.h"
#include "ddl.h"
#include "identity.h"
#include "query_internal.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/syscache.h"

PG_FUNCTION_INFO_V1(changefeed_explain);

typedef struct Explain
{
	ReturnSetInfo *result;
	MemoryContext context;
	IdentityInfo identity;
	ChannelTemplate *template;
	char *values[CHANNEL_PARAMS_MAX]; /* of the parameters; NULL: any */
	JoinCheck check;
	JoinCheck publish;
	int channel;
	int nsources;
	SourceQuery *sources;
	int index; /* of the source at hand */
} Explain;

static void
Say(Explain *e, Oid source, const char *aspect, const char *name, const char *detail)
{
	Datum values[4];
	bool nulls[4] = {!OidIsValid(source), false, name == NULL, detail == NULL};

	values[0] = ObjectIdGetDatum(source);
	values[1] = CStringGetTextDatum(aspect);
	values[2] = name != NULL ? CStringGetTextDatum(name) : (Datum) 0;
	values[3] = detail != NULL ? CStringGetTextDatum(detail) : (Datum) 0;
	tuplestore_putvalues(e->result->setResult, e->result->setDesc, values, nulls);
}

/* ---- Being somebody else ---- */

static void
SetForNow(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_SUSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
							 false);
}

/* As QueryEnterIdentity, but to be taken back. */
static int
Enter(Explain *e)
{
	int nestlevel = NewGUCNestLevel();
	Oid user;
	int sec_context;

	SetForNow("search_path", QuerySearchPath(e->identity.role));
	SetForNow("row_security", "on");
	SetForNow("request.jwt.claims", e->identity.claims);
	SetForNow("role", e->identity.role_name);
	QueryNoteIdentity(e->identity.role, e->identity.claims);
	XactReadOnly = true;
	GetUserIdAndSecContext(&user, &sec_context);
	SetUserIdAndSecContext(e->identity.role, sec_context | SECURITY_LOCAL_USERID_CHANGE |
												 SECURITY_RESTRICTED_OPERATION);
	return nestlevel;
}

/* Runs `part` as the identity; an error becomes a row, and false. */
static bool
AsIdentity(Explain *e, Oid source, void (*part)(Explain *e))
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData *volatile error = NULL;
	Oid user;
	int sec_context;

	GetUserIdAndSecContext(&user, &sec_context);
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		int nestlevel = Enter(e);

		part(e);

		/*
		 * What functions have set goes as well: the caller's session is his.  "role"
		 * is one of the settings, and sets the user when it comes back, which may
		 * not happen where operations are restricted.
		 */
		SetUserIdAndSecContext(user, sec_context);
		AtEOXact_GUC(false, nestlevel);
		SetUserIdAndSecContext(user, sec_context);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();

		/* Settings come back after the user did, and "role" is one of them. */
		SetUserIdAndSecContext(user, sec_context);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;

	if (error == NULL)
		return true;
	Say(e, source, "error", unpack_sql_state(error->sqlerrcode),
		error->hint != NULL ? psprintf("%s (%s)", error->message, error->hint) : error->message);
	return false;
}

/* ---- The channel ---- */

static char *
SpiText(int row, int column)
{
	return SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column);
}

static char **
SpiNames(int row, int column, int *count)
{
	bool isnull;
	Datum value = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, &isnull);
	Datum *elements;
	char **names;
	int i;

	*count = 0;
	if (isnull)
		return NULL;
	deconstruct_array(DatumGetArrayTypeP(value), NAMEOID, NAMEDATALEN, false, TYPALIGN_CHAR,
					  &elements, NULL, count);
	names = palloc(sizeof(char *) * Max(*count, 1));
	for (i = 0; i < *count; i++)
		names[i] = pstrdup(NameStr(*DatumGetName(elements[i])));
	return names;
}

/* The filter as subscribe_query.c puts it. */
static char *
FilterOf(Explain *e, char *filter)
{
	StringInfoData text;
	int k;

	initStringInfo(&text);
	if (filter != NULL)
		appendStringInfo(&text, "(%s)", filter);
	for (k = 0; k < e->template->nparams; k++)
	{
		if (e->values[k] != NULL)
			continue;
		appendStringInfo(&text, "%s%s IS NOT NULL", text.len > 0 ? " AND " : "",
						 quote_identifier(e->template->params[k]));
	}
	return text.data;
}

static void
ReadSource(Explain *e, int row)
{
	SourceQuery *source = &e->sources[row];
	bool isnull;
	int k;

	source->relid = DatumGetObjectId(
		SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, 1, &isnull));
	source->keys = SpiNames(row, 2, &source->nkeys);
	source->filter = FilterOf(e, SpiText(row, 3));
	source->published = SpiNames(row, 4, &source->npublished);
	source->params = palloc0(sizeof(SourceParameter) * Max(e->template->nparams, 1));
	for (k = 0; k < e->template->nparams; k++)
	{
		if (e->values[k] == NULL)
			continue;
		source->params[source->nparams].column = e->template->params[k];
		source->params[source->nparams++].text = e->values[k];
	}
}

/* Finds the channel's definition; errors when there is none. */
static void
ReadChannel(Explain *e, const char *name)
{
	Oid types[1] = {INT4OID};
	Datum values[1] = {0};
	char *parameters[CHANNEL_PARAMS_MAX] = {0};
	DdlAccess access;
	uint64 n;
	uint64 i;

	DdlBegin(&access);
	n = DdlRead("SELECT id, name, join_check, publish_check FROM changefeed.channel", 0, NULL,
				NULL);
	for (i = 0; i < n; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(e->context);
		ChannelTemplate *template = TemplateParse(SpiText(i, 2));

		if (TemplateMatch(template, name, strlen(name), parameters))
		{
			bool isnull;

			memcpy(e->values, parameters, sizeof(parameters));

			e->template = template;
			e->check.text = SpiText(i, 3);
			e->publish.text = SpiText(i, 4);
			values[0] = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull);
		}
		MemoryContextSwitchTo(old);
	}
	if (e->template == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("channel \"%s\" does not exist", name),
				 errhint("Give a name that a client could subscribe to, such as orders:42.")));
	e->channel = DatumGetInt32(values[0]);
	n = DdlRead("SELECT relid::pg_catalog.oid, key, filter, columns FROM changefeed.source"
				" WHERE channel OPERATOR(pg_catalog.=) $1 ORDER BY id",
				1, types, values);
	{
		MemoryContext old = MemoryContextSwitchTo(e->context);

		if (e->check.text == NULL)
			e->check.text = pstrdup("");
		e->check.nparams = e->template->nparams;
		e->check.params = e->values;
		e->publish.nparams = e->template->nparams;
		e->publish.params = e->values;
		e->nsources = (int) n;
		e->sources = palloc0(sizeof(SourceQuery) * Max(n, 1));
		for (i = 0; i < n; i++)
			ReadSource(e, (int) i);
		MemoryContextSwitchTo(old);
	}
	DdlEnd(&access);
}

static void
RequireRights(Explain *e, const char *name)
{
	bool owns = DdlOwnsDatabase();
	int i;

	for (i = 0; !owns && i < e->nsources; i++)
	{
		if (SearchSysCacheExists1(RELOID, ObjectIdGetDatum(e->sources[i].relid)) &&
			!compat_relation_ownercheck(e->sources[i].relid, GetUserId()))
			break;
	}
	if (!owns && (i < e->nsources || e->nsources == 0))
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("must be owner of all sources of channel \"%s\", or of the database",
							   name)));
}

static void
RequireIdentity(Explain *e, Jsonb *claims)
{
	JwtResult error;

	if (!IdentityFromClaims(claims, IdentityRoleAllowed, &e->identity, &error))
		ereport(ERROR,
				(errcode(MAKE_SQLSTATE(error.sqlstate[0], error.sqlstate[1], error.sqlstate[2],
									   error.sqlstate[3], error.sqlstate[4])),
				 errmsg("%s", error.message), error.hint != NULL ? errhint("%s", error.hint) : 0));
	if (!compat_can_set_role(GetUserId(), e->identity.role))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to act as role \"%s\"", e->identity.role_name),
				 errdetail("It takes the right to SET ROLE, since policies are evaluated.")));
}

/* ---- Parts that run as the identity ---- */

static void
Rechecked(Explain *e, Oid source, const char *reason)
{
	if (reason == NULL)
		Say(e, source, "recheck", NULL, "not needed");
	else if (setting_recheck_interval == 0)
		Say(e, source, "recheck", "never", reason);
	else
		Say(e, source, "recheck", psprintf("%d s", setting_recheck_interval), reason);
}

static void
ExplainOne(Explain *e, JoinCheck *check, const char *aspect)
{
	JoinCheckResult result = JoinCheckEvaluate(check, true, e->context);
	ListCell *lc;

	Say(e, InvalidOid, aspect, result == JOIN_ALLOWED ? "admitted" : "denied", check->text);
	foreach(lc, check->relids)
		Say(e, InvalidOid, "dependency", ChannelTableName(lfirst_oid(lc)), aspect);
	Rechecked(e, InvalidOid, check->recheck);
}

static void
ExplainCheck(Explain *e)
{
	ExplainOne(e, &e->check, "join_check");
}

static void
ExplainPublish(Explain *e)
{
	ExplainOne(e, &e->publish, "publish_check");
}

static void
ExplainColumns(Explain *e, SourceQuery *source, Relation rel)
{
	int i;
	int k;

	for (i = 0; i < RelationGetNumberOfAttributes(rel); i++)
	{
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), i);
		const char *why = NULL;
		bool key = false;

		if (att->attisdropped)
			continue;
		for (k = 0; k < source->ncolumns && source->columns[k] != att->attnum; k++)
			;
		if (k == source->ncolumns)
		{
			if (att->attgenerated == COMPAT_GENERATED_VIRTUAL)
				why = "not sent: a virtual generated column";
			else if (pg_class_aclcheck(source->relid, e->identity.role, ACL_SELECT) !=
						 ACLCHECK_OK &&
					 pg_attribute_aclcheck(source->relid, att->attnum, e->identity.role,
										   ACL_SELECT) != ACLCHECK_OK)
				why = "not sent: no privilege SELECT";
			else
				why = "not sent: not among the columns of the source";
		}
		for (k = 0; k < source->nkeys; k++)
			if (strcmp(source->keys[k], NameStr(att->attname)) == 0)
				key = true;
		Say(e, source->relid, "column", NameStr(att->attname),
			why != NULL ? why : (key ? "sent: part of the key" : "sent"));
	}
}

/* The events of each source, before anything runs as the identity. */
static void
ExplainEvents(Explain *e)
{
	static const char *const sql =
		"SELECT s.relid::pg_catalog.oid, e.name, pg_catalog.array_to_string(e.on_change, ', ') ||"
		" COALESCE(' if ' || e.condition, '') || COALESCE(': ' || e.payload, '')"
		" FROM changefeed.event e JOIN changefeed.source s ON s.id OPERATOR(pg_catalog.=) e.source"
		" WHERE e.channel OPERATOR(pg_catalog.=) $1 ORDER BY s.id, e.id";
	Oid types[1] = {INT4OID};
	Datum values[1] = {Int32GetDatum(e->channel)};
	DdlAccess access;
	uint64 n;
	uint64 i;

	DdlBegin(&access);
	n = DdlRead(sql, 1, types, values);
	for (i = 0; i < n; i++)
	{
		bool isnull;

		Say(e,
			DatumGetObjectId(
				SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull)),
			"event", SpiText(i, 2), SpiText(i, 3));
	}
	DdlEnd(&access);
}

/* Who evaluates the policies, and why it is not the feed worker. */
static void
ExplainJudged(Explain *e, const SourceQuery *source, const Policy *policy, Relation rel)
{
	StringInfoData rule;
	char *reason;

	initStringInfo(&rule);
	reason = InlineRule(policy, &rule);
	if (reason == NULL && source->ncasts > 0)
		reason = "user-defined casts make the JSON of columns, in query workers";
	Say(e, source->relid, "rows", "judged",
		reason == NULL ? "by policies, in the feed worker, before and after each change"
					   : "by policies, in query workers, before and after each change");
	if (reason == NULL)
		Say(e, source->relid, "inline", "yes", InlineText(policy, rel));
	else
		Say(e, source->relid, "inline", "no", reason);
}

static void
ExplainSource(Explain *e)
{
	SourceQuery *source = &e->sources[e->index];
	Relation rel = table_open(source->relid, NoLock);
	StringInfoData message;
	Policy *policy;
	Oid *types = palloc(sizeof(Oid) * (source->nparams + 1));
	ParamListInfo params;
	char *sql;
	ListCell *lc;
	int i;

	SourceQueryDescribe(source, e->index, e->identity.role, &message);
	Say(e, source->relid, "privilege", "SELECT",
		pg_class_aclcheck(source->relid, e->identity.role, ACL_SELECT) == ACLCHECK_OK
			? "on the table"
			: "on columns");
	ExplainColumns(e, source, rel);

	policy = PolicyGet(source->relid, e->identity.role);
	switch (policy->state)
	{
		case POLICY_NONE:
			Say(e, source->relid, "rows", "all", "no policy applies");
			break;
		case POLICY_JUDGED:
			ExplainJudged(e, source, policy, rel);
			break;
		case POLICY_NOTHING:
			Say(e, source->relid, "rows", "none", "the policies are never true");
			break;
	}
	for (i = 0; i < policy->ndependencies; i++)
		Say(e, source->relid, "dependency", ChannelTableName(policy->dependencies[i]), "policies");
	foreach(lc, policy->declared)
		Say(e, source->relid, "function", format_procedure_qualified(lfirst_oid(lc)),
			"reads the tables that were declared");
	foreach(lc, policy->unknown)
		Say(e, source->relid, "function", format_procedure_qualified(lfirst_oid(lc)),
			"nobody knows what it reads");
	Rechecked(e, source->relid, policy->recheck);

	/* What else a subscriber would be refused for. */
	params = SourceQueryParameters(source, rel, types);
	sql = SourceQueryText(source, rel);
	(void) SourceQueryPlan(source, rel, e->identity.role, sql, types, params);
	Say(e, source->relid, "query", NULL, sql);
	table_close(rel, NoLock);
}

/* ---- The function ---- */

static void
ExplainPolicies(Explain *e, Oid relid)
{
	static const char *const sql =
		"SELECT p.polname::pg_catalog.text,"
		" CASE WHEN p.polpermissive THEN 'permissive' ELSE 'restrictive' END || ': ' ||"
		" pg_catalog.pg_get_expr(p.polqual, p.polrelid)"
		" FROM pg_catalog.pg_policy p"
		" WHERE p.polrelid OPERATOR(pg_catalog.=) $1 AND p.polcmd IN ('r', '*')"
		" AND EXISTS (SELECT FROM pg_catalog.unnest(p.polroles) r(oid)"
		" WHERE r.oid OPERATOR(pg_catalog.=) 0 OR pg_catalog.pg_has_role($2, r.oid, 'USAGE'))"
		" ORDER BY p.polpermissive DESC, p.polname";
	Oid types[2] = {OIDOID, OIDOID};
	Datum values[2] = {ObjectIdGetDatum(relid), ObjectIdGetDatum(e->identity.role)};
	uint64 i;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute_with_args(sql, 2, types, values, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read the policies");
	for (i = 0; i < SPI_processed; i++)
		Say(e, relid, "policy", SpiText(i, 1), SpiText(i, 2));
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
}

/* explain(channel, claims) */
Datum
changefeed_explain(PG_FUNCTION_ARGS)
{
	Explain e = {0};
	char *name;
	int i;

	DdlRequireArgument(fcinfo, 0, "channel");
	DdlRequireArgument(fcinfo, 1, "claims");
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	if (!JB_ROOT_IS_OBJECT(PG_GETARG_JSONB_P(1)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("claims must be a JSON object")));
	e.context = CurrentMemoryContext;
	ReadChannel(&e, name);
	RequireRights(&e, name);
	RequireIdentity(&e, PG_GETARG_JSONB_P(1));

	compat_materialize(fcinfo);
	e.result = (ReturnSetInfo *) fcinfo->resultinfo;
	QueryInitBackend(e.context);

	Say(&e, InvalidOid, "identity", e.identity.role_name, e.identity.claims);
	for (i = 0; i < e.template->nparams; i++)
		Say(&e, InvalidOid, "parameter", e.template->params[i],
			e.values[i] != NULL ? e.values[i] : "any");
	if (e.check.text[0] == '\0')
		Say(&e, InvalidOid, "join_check", "admitted", "there is none");
	else
		(void) AsIdentity(&e, InvalidOid, ExplainCheck);
	if (e.publish.text == NULL)
		Say(&e, InvalidOid, "publish_check", "denied", "there is none");
	else
		(void) AsIdentity(&e, InvalidOid, ExplainPublish);

	ExplainEvents(&e);

	for (e.index = 0; e.index < e.nsources; e.index++)
	{
		Oid relid = e.sources[e.index].relid;

		LockRelationOid(relid, AccessShareLock);
		if (!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relid)))
		{
			Say(&e, InvalidOid, "error", "42P01", "table of the channel does not exist any more");
			continue;
		}
		if (e.sources[e.index].filter[0] != '\0')
			Say(&e, relid, "filter", NULL, e.sources[e.index].filter);
		ExplainPolicies(&e, relid);
		(void) AsIdentity(&e, relid, ExplainSource);
	}
	return (Datum) 0;
}
