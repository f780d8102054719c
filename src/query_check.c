/*-------------------------------------------------------------------------
 *
 * query_check.c
 *		A channel's join_check: may this identity subscribe at all?  And its
 *		publish_check: may it publish?
 *
 * It is planned and evaluated under the subscriber's role and claims, on the
 * snapshot that the rows are read on.  The tables that it reads are locked
 * before that snapshot is taken, which takes a second attempt, as they are
 * known only when it has been planned.
 *
 * Process: query worker, and backends that explain.  Locks: AccessShareLock on
 * the tables that it reads, until the transaction's end.  Memory: what is known
 * of the tables stays in the context of the call.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "query_internal.h"

#include "encode.h"

#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "nodes/params.h"
#include "storage/lmgr.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"

static PlannedStmt *
PlanCheck(JoinCheck *check, ParamListInfo params, MemoryContext context)
{
	/* Names mean what they meant at creation, whatever the role's search_path. */
	int nestlevel = EncodePinnedBegin();
	char *sql = psprintf("SELECT (%s\n)", check->text);
	List *raw = pg_parse_query(sql);
	Oid *types = palloc(sizeof(Oid) * Max(check->nparams, 1));
	List *queries;
	Query *query;
	Reads reads = {0};
	PlannedStmt *plan;
	List *relids;
	MemoryContext old;
	int i;

	for (i = 0; i < check->nparams; i++)
		types[i] = TEXTOID;
	if (list_length(raw) != 1)
		ereport(ERROR, (errcode(ERRCODE_SYNTAX_ERROR), errmsg("join_check is not one expression")));
	queries = pg_analyze_and_rewrite_fixedparams(linitial_node(RawStmt, raw), sql, types,
												 check->nparams, NULL);
	EncodePinnedEnd(nestlevel);
	query = list_length(queries) == 1 ? linitial_node(Query, queries) : NULL;
	if (query == NULL || query->commandType != CMD_SELECT || query->utilityStmt != NULL ||
		list_length(query->targetList) != 1)
		ereport(ERROR, (errcode(ERRCODE_SYNTAX_ERROR), errmsg("join_check is not one expression")));

	ReadsOfQuery(query, &reads);
	plan = pg_plan_query(query, sql, 0, params);
	relids = list_concat_unique_oid(list_copy(reads.relids), plan->relationOids);
	list_sort(relids, list_oid_cmp);

	old = MemoryContextSwitchTo(context);
	check->relids = list_copy(relids);
	check->recheck = ReadsRecheckReason(&reads);
	MemoryContextSwitchTo(old);
	return plan;
}

void
JoinCheckRead(JoinCheck *check, WireReader *body)
{
	int i;

	check->text = QueryCopyBytes(WireGetBytes(body));
	check->nparams = WireGetU16(body);
	check->params = palloc0(sizeof(char *) * Max(check->nparams, 1));
	for (i = 0; i < check->nparams && !body->failed; i++)
	{
		bool given = WireGetU8(body) != 0;
		char *text = QueryCopyBytes(WireGetBytes(body));

		check->params[i] = given ? text : NULL;
	}
}

static bool
RunCheck(PlannedStmt *plan, ParamListInfo params)
{
	QueryDesc *query = CreateQueryDesc(plan, "", GetActiveSnapshot(), InvalidSnapshot,
									   None_Receiver, params, NULL, 0);
	MemoryContext old;
	TupleTableSlot *slot;
	bool passed = false;

	ExecutorStart(query, 0);
	old = MemoryContextSwitchTo(query->estate->es_query_cxt);
	slot = ExecProcNode(query->planstate);
	if (!TupIsNull(slot))
	{
		bool isnull;
		Datum value = slot_getattr(slot, 1, &isnull);

		passed = !isnull && DatumGetBool(value);
	}
	MemoryContextSwitchTo(old);
	ExecutorFinish(query);
	ExecutorEnd(query);
	FreeQueryDesc(query);
	return passed;
}

void
JoinCheckLock(const JoinCheck *check)
{
	ListCell *lc;

	foreach(lc, check->relids)
		LockRelationOid(lfirst_oid(lc), AccessShareLock);
}

JoinCheckResult
JoinCheckEvaluate(JoinCheck *check, bool last_attempt, MemoryContext context)
{
	ParamListInfo params;
	PlannedStmt *plan;
	List *locked = check->relids;
	JoinCheckResult result = JOIN_UNKNOWN;
	int nestlevel;
	int i;

	if (check->text[0] == '\0')
		return JOIN_ALLOWED;
	params = makeParamList(check->nparams);
	for (i = 0; i < check->nparams; i++)
	{
		params->params[i].isnull = check->params[i] == NULL;
		params->params[i].value = check->params[i] == NULL ? (Datum) 0
														   : CStringGetTextDatum(check->params[i]);
		params->params[i].pflags = PARAM_FLAG_CONST;
		params->params[i].ptype = TEXTOID;
	}

	/* What its functions set, claims for one, is not to decide about rows. */
	nestlevel = NewGUCNestLevel();
	plan = PlanCheck(check, params, context);
	if (last_attempt || list_difference_oid(check->relids, locked) == NIL)
		result = RunCheck(plan, params) ? JOIN_ALLOWED : JOIN_DENIED;
	AtEOXact_GUC(false, nestlevel);
	return result;
}

void
JoinCheckRefuse(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE), errmsg("permission denied for channel"),
			 errhint("The channel's join_check does not admit this identity.")));
}
