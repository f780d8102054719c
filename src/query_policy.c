/*-------------------------------------------------------------------------
 *
 * query_policy.c
 *		Row security of a role, for rows that need not be in the table.
 *
 * The server itself says which policies apply (get_row_security_policies).
 * The columns in them are replaced by parameters, and what comes out is planned
 * once for each table and role as a query without a table of its own, "SELECT
 * <policies>", and run once for each row.  Tables that policies read in
 * subqueries are read as usual, row security of theirs included.
 *
 * Plans are kept over transactions.  Invalidations only mark them; a plan is
 * dropped when it is looked for.  The locks of its tables are taken anew in
 * each transaction, before the snapshot.
 *
 * A plan may have constants in it that functions marked IMMUTABLE have given.
 * User-defined ones may lie about that and read the claims, so policies that
 * call such functions directly are planned anew for each identity.
 *
 * Process: query worker.  Locks: AccessShareLock on the table and on what the
 * plan reads, until the transaction's end.  Memory: a context per policy below
 * TopMemoryContext; a batch's rows and results are in query_job_context, what
 * one row needs is in a context that is reset for each.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "query_internal.h"

#include "record.h"

#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/executor.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "pgstat.h"
#include "rewrite/rewriteHandler.h"
#include "rewrite/rewriteManip.h"
#include "rewrite/rowsecurity.h"
#include "storage/lmgr.h"
#include "tcop/tcopprot.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

/* A verdict waits that long for a lock, and hardly at all once one was busy. */
#define VERDICT_LOCK_TIMEOUT		200
#define VERDICT_LOCK_TIMEOUT_BUSY	5

typedef struct ReplaceContext
{
	Relation	rel;
	int			sublevels_up;
	Bitmapset  *needed;
	bool		whole_row;
} ReplaceContext;

static HTAB *policies;

/* ---- Invalidation ---- */

static bool
PolicyReads(const Policy *policy, Oid relid)
{
	int			i;

	if (policy->key.relid == relid)
		return true;
	for (i = 0; i < policy->ndependencies; i++)
		if (policy->dependencies[i] == relid)
			return true;
	return false;
}

static void
InvalidatePolicies(Oid relid)
{
	HASH_SEQ_STATUS status;
	Policy	   *policy;

	hash_seq_init(&status, policies);
	while ((policy = hash_seq_search(&status)) != NULL)
		if (policy->valid && (!OidIsValid(relid) || PolicyReads(policy, relid)))
			policy->valid = false;
}

static void
RelationInvalidated(Datum arg, Oid relid)
{
	InvalidatePolicies(relid);
}

static void
CatalogInvalidated(Datum arg, int cacheid, uint32 hashvalue)
{
	InvalidatePolicies(InvalidOid);
}

void
PolicyInit(void)
{
	HASHCTL		ctl = {0};

	ctl.keysize = sizeof(((Policy *) NULL)->key);
	ctl.entrysize = sizeof(Policy);
	ctl.hcxt = TopMemoryContext;
	policies = hash_create("changefeed policies", 64, &ctl,
						   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);

	/* Policies and privileges of tables invalidate their relcache entries. */
	CacheRegisterRelcacheCallback(RelationInvalidated, (Datum) 0);
	CacheRegisterSyscacheCallback(AUTHOID, CatalogInvalidated, (Datum) 0);
	CacheRegisterSyscacheCallback(AUTHMEMROLEMEM, CatalogInvalidated, (Datum) 0);
	CacheRegisterSyscacheCallback(PROCOID, CatalogInvalidated, (Datum) 0);
	CacheRegisterSyscacheCallback(TYPEOID, CatalogInvalidated, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, CatalogInvalidated, (Datum) 0);
	CacheRegisterSyscacheCallback(OPEROID, CatalogInvalidated, (Datum) 0);
}

/* ---- Planning ---- */

static Node *
ReplaceColumn(Var *var, ReplaceContext *context)
{
	Param	   *param;

	if (var->varattno == TableOidAttributeNumber &&
		context->rel->rd_rel->relkind == RELKIND_RELATION)
		return (Node *) makeConst(OIDOID, -1, InvalidOid, sizeof(Oid),
								  ObjectIdGetDatum(RelationGetRelid(context->rel)), false, true);
	if (var->varattno < 0)
	{
		char	   *column = get_attname(RelationGetRelid(context->rel), var->varattno, true);

		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("policy of table \"%s\" uses system column \"%s\"",
						RelationGetRelationName(context->rel), column != NULL ? column : "?"),
				 errhint("Changes are judged apart from the table, where rows have no system columns.")));
	}

	param = makeNode(Param);
	param->paramkind = PARAM_EXTERN;
	param->paramtype = var->vartype;
	param->paramtypmod = var->vartypmod;
	param->paramcollid = var->varcollid;
	param->location = -1;
	if (var->varattno == InvalidAttrNumber)
	{
		context->whole_row = true;
		param->paramid = RelationGetNumberOfAttributes(context->rel) + 1;
	}
	else
	{
		context->needed = bms_add_member(context->needed, var->varattno);
		param->paramid = var->varattno;
	}
	return (Node *) param;
}

static Node *
ReplaceMutator(Node *node, ReplaceContext *context)
{
	if (node == NULL)
		return NULL;
	if (IsA(node, Var))
	{
		Var		   *var = (Var *) node;
		Form_pg_attribute att;

		if (var->varno != 1 || var->varlevelsup != context->sublevels_up)
			return (Node *) copyObject(var);
		att = var->varattno > 0 ?
			TupleDescAttr(RelationGetDescr(context->rel), var->varattno - 1) : NULL;
		if (att != NULL && att->attgenerated == COMPAT_GENERATED_VIRTUAL)
		{
			int			save = context->sublevels_up;
			Node	   *result;

			/* Its columns become parameters at once, so its level is no matter. */
			context->sublevels_up = 0;
			result = ReplaceMutator(compat_generation_expression(context->rel, var->varattno),
									context);
			context->sublevels_up = save;
			return result;
		}
		return ReplaceColumn(var, context);
	}
	if (IsA(node, Query))
	{
		Query	   *query;

		context->sublevels_up++;
		query = query_tree_mutator((Query *) node, ReplaceMutator, (void *) context, 0);
		context->sublevels_up--;
		return (Node *) query;
	}
	return expression_tree_mutator(node, ReplaceMutator, (void *) context);
}

/* A stored, or since 18 virtual, generated column in a whole row is unknown. */
static void
CheckWholeRow(Relation rel)
{
	int			i;

	for (i = 0; i < RelationGetNumberOfAttributes(rel); i++)
		if (TupleDescAttr(RelationGetDescr(rel), i)->attgenerated == COMPAT_GENERATED_VIRTUAL)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("policy of table \"%s\" uses the whole row, which has a virtual generated column",
							RelationGetRelationName(rel)),
					 errhint("Name the columns in the policy.")));
}

/* What the server would add to a query of the current role on the table. */
static Node *
PolicyExpression(Relation rel)
{
	Query	   *query = makeNode(Query);
	RangeTblEntry *rte = makeNode(RangeTblEntry);
	List	   *quals;
	List	   *checks;
	bool		has_rls;
	bool		has_sublinks;

	rte->rtekind = RTE_RELATION;
	rte->relid = RelationGetRelid(rel);
	rte->relkind = rel->rd_rel->relkind;
	rte->rellockmode = AccessShareLock;
	rte->inh = rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE;
	rte->inFromCl = true;
	rte->eref = makeAlias(RelationGetRelationName(rel), NIL);
	query->commandType = CMD_SELECT;
	query->rtable = list_make1(rte);
	compat_require_select(query, rte);

	get_row_security_policies(query, rte, 1, &quals, &checks, &has_rls, &has_sublinks);
	if (quals == NIL)
		return NULL;
	return (Node *) make_ands_explicit((List *) copyObject(quals));
}

static PlannedStmt *
PlanExpression(Node *expression)
{
	Query	   *query = makeNode(Query);

	query->commandType = CMD_SELECT;
	query->querySource = QSRC_ORIGINAL;
	query->canSetTag = true;
	query->targetList = list_make1(makeTargetEntry((Expr *) expression, 1, pstrdup("visible"),
												   false));
	query->jointree = makeFromExpr(NIL, NULL);
	query->hasSubLinks = checkExprHasSubLink(expression);

	AcquireRewriteLocks(query, true, false);
	return pg_plan_query(linitial_node(Query, pg_rewrite_query(query)), "", 0, NULL);
}

static int
CompareOids(const void *a, const void *b)
{
	return oid_cmp(a, b);
}

static void
KeepDependencies(Policy *policy, List *relids)
{
	ListCell   *cell;
	int			i;
	int			n = 0;

	policy->dependencies = MemoryContextAlloc(policy->context, sizeof(Oid) * Max(list_length(relids), 1));
	foreach(cell, relids)
		policy->dependencies[n++] = lfirst_oid(cell);
	qsort(policy->dependencies, n, sizeof(Oid), CompareOids);
	policy->ndependencies = 0;
	for (i = 0; i < n; i++)
		if (i == 0 || policy->dependencies[i] != policy->dependencies[i - 1])
			policy->dependencies[policy->ndependencies++] = policy->dependencies[i];
}

static bool
MaySelect(Relation rel, Oid role)
{
	if (compat_namespace_aclcheck(RelationGetNamespace(rel), role, ACL_USAGE) != ACLCHECK_OK)
		return false;
	return pg_class_aclcheck(RelationGetRelid(rel), role, ACL_SELECT) == ACLCHECK_OK ||
		pg_attribute_aclcheck_all(RelationGetRelid(rel), role, ACL_SELECT,
								  ACLMASK_ANY) == ACLCHECK_OK;
}

/*
 * Fills the policy for the current user.  It may raise errors, of functions
 * that the planner calls, too: then the policy stays invalid.
 */
static void
BuildPolicy(Policy *policy, Relation rel)
{
	MemoryContext work = AllocSetContextCreate(CurrentMemoryContext, "changefeed policy planning",
											   ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(work);
	Node	   *expression;
	List	   *functions = NIL;
	List	   *relids = NIL;
	PlannedStmt *plan = NULL;
	ReplaceContext replace = {0};
	ListCell   *cell;
	int			i;

	policy->reusable = true;
	policy->may_select = MaySelect(rel, policy->key.role);
	policy->state = POLICY_NONE;

	expression = PolicyExpression(rel);
	if (expression != NULL)
	{
		Node	   *folded;

		functions = FingerprintFunctions(NIL, expression);
		foreach(cell, functions)
			if (func_volatile(lfirst_oid(cell)) == PROVOLATILE_IMMUTABLE)
				policy->reusable = false;

		replace.rel = rel;
		expression = ReplaceMutator(expression, &replace);
		if (replace.whole_row)
			CheckWholeRow(rel);

		folded = eval_const_expressions(NULL, (Node *) copyObject(expression));
		if (IsA(folded, Const))
		{
			Const	   *value = (Const *) folded;

			policy->state = !value->constisnull && DatumGetBool(value->constvalue) ?
				POLICY_NONE : POLICY_NOTHING;
		}
		else
		{
			policy->state = POLICY_JUDGED;
			plan = PlanExpression(expression);
			relids = plan->relationOids;
		}
	}

	KeepDependencies(policy, relids);
	policy->fingerprint = FingerprintCompute(RelationGetRelid(rel), policy->key.role,
											 policy->dependencies, policy->ndependencies,
											 functions);

	MemoryContextSwitchTo(policy->context);
	policy->natts = RelationGetNumberOfAttributes(rel);
	policy->param_types = palloc(sizeof(Oid) * (policy->natts + 1));
	for (i = 0; i < policy->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), i);

		policy->param_types[i] = att->attisdropped ? INT4OID : att->atttypid;
	}
	policy->param_types[policy->natts] = rel->rd_rel->reltype;
	policy->needed = bms_copy(replace.needed);
	policy->whole_row = replace.whole_row;
	policy->plan = plan != NULL ? copyObject(plan) : NULL;

	MemoryContextSwitchTo(old);
	MemoryContextDelete(work);
}

bool
PolicyLockDependencies(Oid relid, Oid role)
{
	Policy	   *policy;
	Policy		key;
	int			i;

	memset(&key, 0, sizeof(key));
	key.key.relid = relid;
	key.key.role = role;
	policy = hash_search(policies, &key.key, HASH_FIND, NULL);
	if (policy == NULL || !policy->valid)
		return false;
	for (i = 0; i < policy->ndependencies; i++)
		LockRelationOid(policy->dependencies[i], AccessShareLock);

	/* Taking the locks has let in what happened before we had them. */
	return policy->valid;
}

Policy *
PolicyGet(Oid relid, Oid role)
{
	Policy		key;
	Policy	   *policy;
	bool		found;
	Relation	rel;
	int			attempt;

	memset(&key, 0, sizeof(key));
	key.key.relid = relid;
	key.key.role = role;
	policy = hash_search(policies, &key.key, HASH_ENTER, &found);
	if (!found)
	{
		memset((char *) policy + sizeof(key.key), 0, sizeof(Policy) - sizeof(key.key));
		policy->valid = false;
	}
	if (policy->valid && policy->reusable)
		return policy;

	rel = table_open(relid, NoLock);
	for (attempt = 0;; attempt++)
	{
		if (policy->context != NULL)
			MemoryContextDelete(policy->context);
		policy->ndependencies = 0;
		policy->context = AllocSetContextCreate(TopMemoryContext, "changefeed policy",
												ALLOCSET_SMALL_SIZES);

		/* Invalidations that come while we plan are to be seen afterwards. */
		policy->valid = true;
		PG_TRY();
		{
			BuildPolicy(policy, rel);
		}
		PG_CATCH();
		{
			policy->valid = false;
			PG_RE_THROW();
		}
		PG_END_TRY();

		/*
		 * Planning takes the locks of tables, and with them invalidations that
		 * may concern the plan.  What changes again and again is used as it
		 * is, its fingerprint tells, but not kept.
		 */
		if (policy->valid || attempt >= 3)
			break;
	}
	table_close(rel, NoLock);
	return policy;
}

uint64
PolicyFingerprint(Policy *policy)
{
	const char *path = QuerySearchPath(policy->key.role);

	/* Decides which functions the policies' functions find. */
	return hash_combine64(policy->fingerprint,
						  hash_bytes_extended((const unsigned char *) path, strlen(path), 0));
}

/* ---- Judging rows ---- */

/* The rows of a job, and the identities that ask about them. */
typedef struct VerdictRow
{
	char	   *data;
	uint32		length;
	bool		identity_only;	/* other columns are missing, not null */
} VerdictRow;

typedef struct VerdictJob
{
	Oid			relid;
	RecordDescription *desc;
	uint32		nrows;
	VerdictRow *rows;
	XLogRecPtr	lsn;			/* noted after the last snapshot */
	int			lock_timeout;
} VerdictJob;

typedef struct VerdictIdentity
{
	Oid			role;
	char	   *claims;
	uint64		fingerprint;
	uint32		nrows;
	uint32	   *rows;
} VerdictIdentity;

#define VERDICT_OK			0
#define VERDICT_ERROR		1
#define VERDICT_OUTDATED	2
#define VERDICT_LOCKED		3

/*
 * Can rows of the description be given to the table as it is now?  Columns
 * added since have their missing value, dropped ones are not asked for.
 */
static bool
DescriptionFits(const RecordDescription *desc, TupleDesc now)
{
	int			natts = Min(desc->tupdesc->natts, now->natts);
	int			i;

	if (desc->tupdesc->natts > now->natts)
		return false;
	for (i = 0; i < natts; i++)
	{
		Form_pg_attribute then = TupleDescAttr(desc->tupdesc, i);
		Form_pg_attribute att = TupleDescAttr(now, i);

		if (att->attisdropped)
			continue;
		if ((desc->flags[i] & RECORD_ATT_DROPPED) != 0 || then->atttypid != att->atttypid)
			return false;
	}
	return true;
}

static void
RowToParams(const VerdictJob *job, const VerdictRow *row, const Policy *policy,
			Relation rel, ParamListInfo params)
{
	TupleDesc	now = RelationGetDescr(rel);
	int			natts = now->natts;
	int			then = job->desc->tupdesc->natts;
	Datum	   *values = palloc(sizeof(Datum) * (Max(natts, then) + 1));
	bool	   *isnull = palloc(sizeof(bool) * (Max(natts, then) + 1));
	int			i;

	RecordDeform(job->desc, row->data, row->length, values, isnull);
	for (i = 0; i < natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(now, i);
		bool		wanted = policy->whole_row || bms_is_member(i + 1, policy->needed);
		bool		missing = false;

		if (att->attisdropped)
		{
			isnull[i] = true;
			values[i] = (Datum) 0;
		}
		else if (i >= then)
		{
			isnull[i] = true;
			values[i] = (Datum) 0;
			if (wanted && att->atthasmissing)
				values[i] = getmissingattr(now, i + 1, &isnull[i]);
		}
		else if (row->identity_only && (job->desc->flags[i] & RECORD_ATT_IDENTITY) == 0)
			missing = true;
		else if (!isnull[i] && RecordValueIsUnchanged(job->desc, i + 1, values[i]))
			missing = true;

		if (missing)
		{
			if (wanted)
				ereport(ERROR,
						(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						 errmsg("policy of table \"%s\" needs column \"%s\", which the change does not carry",
								RelationGetRelationName(rel), NameStr(att->attname)),
						 errhint("Use ALTER TABLE ... REPLICA IDENTITY FULL.")));
			isnull[i] = true;
			values[i] = (Datum) 0;
		}
	}

	if (policy->whole_row)
	{
		HeapTuple	tuple = heap_form_tuple(now, values, isnull);

		values[natts] = heap_copy_tuple_as_datum(tuple, now);
		isnull[natts] = false;
	}
	else
	{
		values[natts] = (Datum) 0;
		isnull[natts] = true;
	}
	for (i = 0; i <= natts; i++)
	{
		params->params[i].value = values[i];
		params->params[i].isnull = isnull[i];
		params->params[i].pflags = 0;
		params->params[i].ptype = policy->param_types[i];
	}
}

static bool
RowIsVisible(const Policy *policy, ParamListInfo params)
{
	QueryDesc  *query = CreateQueryDesc(policy->plan, "", GetActiveSnapshot(), InvalidSnapshot,
										None_Receiver, params, NULL, 0);
	MemoryContext old;
	TupleTableSlot *slot;
	bool		visible = false;

	ExecutorStart(query, 0);
	old = MemoryContextSwitchTo(query->estate->es_query_cxt);
	slot = ExecProcNode(query->planstate);
	if (!TupIsNull(slot))
	{
		bool		isnull;
		Datum		value = slot_getattr(slot, 1, &isnull);

		visible = !isnull && DatumGetBool(value);
	}
	MemoryContextSwitchTo(old);
	ExecutorFinish(query);
	ExecutorEnd(query);
	FreeQueryDesc(query);
	return visible;
}

static void
JudgeRows(const VerdictJob *job, const VerdictIdentity *identity, Policy *policy, Relation rel,
		  uint8 *bitmap)
{
	MemoryContext row_context = AllocSetContextCreate(CurrentMemoryContext, "changefeed row",
													  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = CurrentMemoryContext;
	ParamListInfo params = makeParamList(policy->natts + 1);
	uint32		i;

	for (i = 0; i < identity->nrows; i++)
	{
		bool		visible;

		CHECK_FOR_INTERRUPTS();
		if (policy->state == POLICY_NONE)
			visible = true;
		else
		{
			MemoryContextSwitchTo(row_context);
			RowToParams(job, &job->rows[identity->rows[i]], policy, rel, params);
			visible = RowIsVisible(policy, params);
			MemoryContextSwitchTo(old);
			MemoryContextReset(row_context);
		}
		if (visible)
			bitmap[i / 8] |= 1 << (i % 8);
	}
	MemoryContextDelete(row_context);
}

/* Judges in a transaction that the caller ends.  Appends to `out` when OK. */
static int
JudgeInTransaction(VerdictJob *job, const VerdictIdentity *identity, bool last_attempt,
				   StringInfo out, bool *again)
{
	Relation	rel;
	Policy	   *policy;
	bool		known;
	uint8	   *bitmap;
	uint32		nbytes = (identity->nrows + 7) / 8;
	int			i;

	*again = false;
	QueryTransactionBegin(job->lock_timeout, setting_policy_timeout);
	rel = try_table_open(job->relid, AccessShareLock);
	if (rel == NULL)
		return VERDICT_OUTDATED;
	known = PolicyLockDependencies(job->relid, identity->role);

	QueryEnterIdentity(identity->role, identity->claims);
	PushActiveSnapshot(GetTransactionSnapshot());
	job->lsn = Max(job->lsn, SharedInsertLsn());
	policy = PolicyGet(job->relid, identity->role);
	if (PolicyFingerprint(policy) != identity->fingerprint ||
		!DescriptionFits(job->desc, RelationGetDescr(rel)))
		return VERDICT_OUTDATED;

	/* Its tables have been locked after the snapshot was taken. */
	if (!known && policy->ndependencies > 0 && !last_attempt)
	{
		*again = true;
		return VERDICT_OK;
	}

	bitmap = palloc0(Max(nbytes, 1));
	if (policy->may_select && policy->state != POLICY_NOTHING)
		JudgeRows(job, identity, policy, rel, bitmap);

	QueryPutU8(out, VERDICT_OK);
	QueryPutU64(out, identity->fingerprint);
	QueryPutU32(out, policy->ndependencies);
	for (i = 0; i < policy->ndependencies; i++)
		QueryPutU32(out, policy->dependencies[i]);
	QueryPutBytes(out, (char *) bitmap, nbytes);
	return VERDICT_OK;
}

static void
PutVerdictError(StringInfo out, const ErrorData *error)
{
	const char *text = error->message != NULL ? error->message : "missing error text";

	QueryPutU8(out, VERDICT_ERROR);
	QueryPutString(out, unpack_sql_state(error->sqlerrcode));
	if (error->sqlerrcode == ERRCODE_QUERY_CANCELED && QueryTimedOut())
		QueryPutString(out, psprintf("policies took longer than changefeed.policy_timeout (%d ms)",
									 setting_policy_timeout));
	else
		QueryPutBytes(out, text, pg_mbcliplen(text, strlen(text), QUERY_ERROR_LENGTH));
}

static void
JudgeIdentity(VerdictJob *job, const VerdictIdentity *identity, StringInfo out)
{
	volatile int start = out->len;
	volatile int attempt = 0;
	volatile bool again = true;

	while (again)
	{
		PG_TRY();
		{
			bool		once_more;
			int			status;

			out->len = start;
			status = JudgeInTransaction(job, identity, attempt++ >= 2, out, &once_more);
			QueryTransactionEnd();
			if (status != VERDICT_OK)
			{
				out->len = start;
				QueryPutU8(out, (uint8) status);
			}
			again = once_more;
		}
		PG_CATCH();
		{
			ErrorData  *error;

			HOLD_CANCEL_INTERRUPTS();
			MemoryContextSwitchTo(query_job_context);
			error = CopyErrorData();
			FlushErrorState();
			QueryTransactionEnd();
			RESUME_CANCEL_INTERRUPTS();

			out->len = start;
			if (error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE ||
				error->sqlerrcode == ERRCODE_T_R_DEADLOCK_DETECTED)
			{
				/* Others of the batch will meet the same lock. */
				QueryPutU8(out, VERDICT_LOCKED);
				job->lock_timeout = VERDICT_LOCK_TIMEOUT_BUSY;
			}
			else
				PutVerdictError(out, error);
			FreeErrorData(error);
			again = false;
		}
		PG_END_TRY();
	}
}

static void
ReadVerdictRows(VerdictJob *job, WireReader *body)
{
	uint32		i;

	job->nrows = WireGetU32(body);
	if (job->nrows > body->length)
		body->failed = true;
	if (body->failed)
		return;
	job->rows = palloc0(sizeof(VerdictRow) * Max(job->nrows, 1));
	for (i = 0; i < job->nrows && !body->failed; i++)
	{
		WireBytes	bytes = WireGetBytes(body);

		/* Tuples want to be aligned. */
		job->rows[i].data = palloc(Max(bytes.length, 1));
		job->rows[i].length = (uint32) bytes.length;
		if (bytes.data != NULL)
			memcpy(job->rows[i].data, bytes.data, bytes.length);
	}
}

static void
ReadVerdictIdentity(const VerdictJob *job, WireReader *body, VerdictIdentity *identity)
{
	uint32		i;

	identity->role = WireGetU32(body);
	identity->claims = QueryCopyBytes(WireGetBytes(body));
	identity->fingerprint = WireGetU64(body);
	identity->nrows = WireGetU32(body);
	if (identity->nrows > body->length / sizeof(uint32))
		body->failed = true;
	if (body->failed)
		return;
	identity->rows = palloc(sizeof(uint32) * Max(identity->nrows, 1));
	for (i = 0; i < identity->nrows; i++)
	{
		identity->rows[i] = WireGetU32(body);
		if (identity->rows[i] >= job->nrows)
			body->failed = true;
	}
}

void
QueryRunVerdicts(WireReader *body)
{
	VerdictJob	job = {0};
	WireBytes	bytes;
	char	   *description;
	VerdictIdentity *identities = NULL;
	uint32		nidentities;
	uint32		i;
	StringInfoData list;
	StringInfoData message;

	job.relid = WireGetU32(body);
	job.lock_timeout = VERDICT_LOCK_TIMEOUT;
	bytes = WireGetBytes(body);
	if (!body->failed)
	{
		description = palloc(Max(bytes.length, 1));
		memcpy(description, bytes.data, bytes.length);
		job.desc = RecordReadDescription(description, bytes.length, query_job_context);
	}
	ReadVerdictRows(&job, body);
	nidentities = WireGetU32(body);
	if (nidentities > body->length)
		body->failed = true;
	if (!body->failed)
		identities = palloc0(sizeof(VerdictIdentity) * Max(nidentities, 1));
	for (i = 0; i < nidentities && !body->failed; i++)
		ReadVerdictIdentity(&job, body, &identities[i]);

	/* Optional. */
	if (!body->failed && body->offset < body->length)
	{
		uint32		n = WireGetU32(body);

		while (n-- > 0 && !body->failed)
		{
			uint32		row = WireGetU32(body);

			if (row >= job.nrows)
				body->failed = true;
			else
				job.rows[row].identity_only = true;
		}
	}
	if (!WireAtEnd(body))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("malformed job for a query worker")));

	pgstat_report_activity(STATE_RUNNING,
						   psprintf("judging changes of %s.%s", job.desc->schema, job.desc->name));
	initStringInfo(&list);
	for (i = 0; i < nidentities; i++)
		JudgeIdentity(&job, &identities[i], &list);

	initStringInfo(&message);
	QueryMessage(&message, QUERY_VERDICT_LIST);
	QueryPutU64(&message, job.lsn);
	appendBinaryStringInfo(&message, list.data, list.len);
	QuerySend(&message);
}
