/*-------------------------------------------------------------------------
 *
 * query_policy.c
 *		Row security of a role, for rows that need not be in the table.
 *
 * The server itself says which policies apply (get_row_security_policies).
 * The columns in them are replaced by parameters, and what comes out is planned
 * once for each table and role as a query without a table of its own, "SELECT
 * <policies>", to be run once for each row (query_verdicts.c).  Tables that policies read in
 * subqueries are read as usual, row security of theirs included.
 *
 * Plans are kept over transactions.  Invalidations only mark them; a plan is
 * dropped when it is looked for.  The locks of its tables are taken anew in
 * each transaction, before the snapshot.
 *
 * A plan may have constants in it that functions marked IMMUTABLE have given.
 * User-defined ones may lie about that and read the claims, so policies that
 * call such functions, or read tables whose policies do, are planned anew for
 * each identity.
 *
 * Process: query worker.  Locks: AccessShareLock on the table and on what the
 * plan reads, until the transaction's end.  Memory: a context per policy below
 * TopMemoryContext.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "query_internal.h"

#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "rewrite/rewriteHandler.h"
#include "rewrite/rewriteManip.h"
#include "rewrite/rowsecurity.h"
#include "storage/lmgr.h"
#include "tcop/tcopprot.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

typedef struct ReplaceContext
{
	Relation rel;
	int sublevels_up;
	Bitmapset *needed;
	bool whole_row;
	bool virtual_column;
} ReplaceContext;

static HTAB *policies;

/* ---- Invalidation ---- */

static bool
PolicyReads(const Policy *policy, Oid relid)
{
	int i;

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
	Policy *policy;

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
	HASHCTL ctl = {0};

	ctl.keysize = sizeof(((Policy *) NULL)->key);
	ctl.entrysize = sizeof(Policy);
	ctl.hcxt = TopMemoryContext;
	policies = hash_create("changefeed policies", 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);

	/* Policies and privileges of tables invalidate their relcache entries. */
	CacheRegisterRelcacheCallback(RelationInvalidated, (Datum) 0);
	CacheRegisterSyscacheCallback(AUTHOID, CatalogInvalidated, (Datum) 0);
	CacheRegisterSyscacheCallback(AUTHMEMROLEMEM, CatalogInvalidated, (Datum) 0);
	CacheRegisterSyscacheCallback(DATABASEOID, CatalogInvalidated, (Datum) 0); /* its owner */
	CacheRegisterSyscacheCallback(PROCOID, CatalogInvalidated, (Datum) 0);
	CacheRegisterSyscacheCallback(TYPEOID, CatalogInvalidated, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, CatalogInvalidated, (Datum) 0);
	CacheRegisterSyscacheCallback(OPEROID, CatalogInvalidated, (Datum) 0);

	/* What the text of a function's body means, which is in plans that it was inlined into. */
	CacheRegisterSyscacheCallback(ENUMOID, CatalogInvalidated, (Datum) 0);
	CacheRegisterSyscacheCallback(CASTSOURCETARGET, CatalogInvalidated, (Datum) 0);
}

/* ---- Planning ---- */

static Node *
ReplaceColumn(Var *var, ReplaceContext *context)
{
	Param *param;

	if (var->varattno == TableOidAttributeNumber &&
		context->rel->rd_rel->relkind == RELKIND_RELATION)
		return (Node *) makeConst(OIDOID, -1, InvalidOid, sizeof(Oid),
								  ObjectIdGetDatum(RelationGetRelid(context->rel)), false, true);
	if (var->varattno < 0)
	{
		char *column = get_attname(RelationGetRelid(context->rel), var->varattno, true);

		ereport(
			ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("policy of table \"%s\" uses system column \"%s\"",
					RelationGetRelationName(context->rel), column != NULL ? column : "?"),
			 errhint(
				 "Changes are judged apart from the table, where rows have no system columns.")));
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
		Var *var = (Var *) node;
		Form_pg_attribute att;

		if (var->varno != 1 || var->varlevelsup != context->sublevels_up)
			return (Node *) copyObject(var);
		att = var->varattno > 0 ? TupleDescAttr(RelationGetDescr(context->rel), var->varattno - 1)
								: NULL;
		if (att != NULL && att->attgenerated == COMPAT_GENERATED_VIRTUAL)
		{
			int save = context->sublevels_up;
			Node *result;

			/* Its columns become parameters at once, so its level is no matter. */
			context->virtual_column = true;
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
		Query *query;

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
	int i;

	for (i = 0; i < RelationGetNumberOfAttributes(rel); i++)
		if (TupleDescAttr(RelationGetDescr(rel), i)->attgenerated == COMPAT_GENERATED_VIRTUAL)
			ereport(
				ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg(
					 "policy of table \"%s\" uses the whole row, which has a virtual generated column",
					 RelationGetRelationName(rel)),
				 errhint("Name the columns in the policy.")));
}

/* What the server would add to a query of the current role on the table. */
static Node *
PolicyExpression(Relation rel)
{
	Query *query = makeNode(Query);
	RangeTblEntry *rte = makeNode(RangeTblEntry);
	List *quals;
	List *checks;
	bool has_rls;
	bool has_sublinks;

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

PlannedStmt *
PolicyPlanExpression(Node *expression)
{
	Query *query = makeNode(Query);

	query->commandType = CMD_SELECT;
	query->querySource = QSRC_ORIGINAL;
	query->canSetTag = true;
	query->targetList = list_make1(
		makeTargetEntry((Expr *) expression, 1, pstrdup("visible"), false));
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
	ListCell *cell;
	int i;
	int n = 0;

	policy->dependencies = MemoryContextAlloc(policy->context,
											  sizeof(Oid) * Max(list_length(relids), 1));
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
		   pg_attribute_aclcheck_all(RelationGetRelid(rel), role, ACL_SELECT, ACLMASK_ANY) ==
			   ACLCHECK_OK;
}

/* Values of such types are made of labels, and of what their domains call. */
static bool
HasUserTypes(Relation rel)
{
	TupleDesc tupdesc = RelationGetDescr(rel);
	int i;

	for (i = 0; i < tupdesc->natts; i++)
		if (!TupleDescAttr(tupdesc, i)->attisdropped &&
			TupleDescAttr(tupdesc, i)->atttypid >= FirstNormalObjectId)
			return true;
	return false;
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
	Node *expression;
	Node *original = NULL;
	List *functions = NIL;
	List *relids = NIL;
	PlannedStmt *plan = NULL;
	ReplaceContext replace = {0};
	Reads reads = {0};
	ListCell *cell;
	int i;

	policy->reusable = true;
	policy->opaque = false;
	policy->narrowing = NULL;
	policy->expression = NULL;
	policy->repeated = NULL;
	policy->may_select = MaySelect(rel, policy->key.role);
	policy->state = POLICY_NONE;

	expression = PolicyExpression(rel);
	if (expression != NULL)
	{
		Node *folded;

		functions = FingerprintFunctions(NIL, expression);
		replace.rel = rel;
		original = expression;
		expression = ReplaceMutator(expression, &replace);
		if (replace.whole_row)
			CheckWholeRow(rel);

		folded = eval_const_expressions(NULL, (Node *) copyObject(expression));

		/*
		 * What a user's function makes constant is another constant once the
		 * function was replaced, and only who is judged is asked again then.
		 */
		if (IsA(folded, Const) && functions == NIL)
		{
			Const *value = (Const *) folded;

			policy->state = !value->constisnull && DatumGetBool(value->constvalue) ? POLICY_NONE
																				   : POLICY_NOTHING;
		}
		else
		{
			policy->state = POLICY_JUDGED;
			ReadsOfExpression(expression, &reads);
			functions = list_concat_unique_oid(functions, reads.functions);
			MemoryContextSwitchTo(policy->context);
			policy->expression = copyObject(expression);
			MemoryContextSwitchTo(work);
			plan = PolicyPlanExpression(expression);
			relids = list_copy(plan->relationOids);

			/* What it says points into the plan, so both are copied first. */
			MemoryContextSwitchTo(policy->context);
			plan = copyObject(plan);
			policy->narrowing = NarrowPlan(plan, RelationGetNumberOfAttributes(rel), &relids,
										   &functions, &policy->opaque);
			MemoryContextSwitchTo(work);
			relids = list_concat_unique_oid(relids, reads.relids);

			/* What a function reads has no conditions that are known. */
			if (reads.declared != NIL || reads.unknown != NIL)
				policy->opaque = true;
		}
	}

	KeepDependencies(policy, relids);
	policy->fingerprint = FingerprintCompute(RelationGetRelid(rel), policy->key.role,
											 replace.whole_row, policy->dependencies,
											 policy->ndependencies, &functions);
	policy->functions = functions != NIL;
	policy->named = policy->functions || HasUserTypes(rel);
	foreach(cell, functions)
		if (func_volatile(lfirst_oid(cell)) == PROVOLATILE_IMMUTABLE)
			policy->reusable = false;

	MemoryContextSwitchTo(policy->context);
	policy->natts = RelationGetNumberOfAttributes(rel);
	policy->param_types = palloc(sizeof(Oid) * (policy->natts + 1));
	for (i = 0; i < policy->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), i);

		policy->param_types[i] = att->attisdropped ? INT4OID : att->atttypid;
	}
	policy->param_types[policy->natts] = rel->rd_rel->reltype;
	policy->search_path = pstrdup(QuerySearchPath(policy->key.role));
	policy->needed = bms_copy(replace.needed);
	policy->whole_row = replace.whole_row;
	policy->virtual_column = replace.virtual_column;
	policy->plan = plan;
	policy->declared = list_copy(reads.declared);
	policy->unknown = list_copy(reads.unknown);
	policy->recheck = ReadsRecheckReason(&reads);
	policy->domains = reads.domains;
	policy->inlined = policy->state == POLICY_JUDGED ? InlinePrepare(policy, rel, original) : NULL;

	MemoryContextSwitchTo(old);
	MemoryContextDelete(work);
}

Datum
PolicyEvaluate(Node *expression, bool *isnull)
{
	QueryDesc *query = CreateQueryDesc(PolicyPlanExpression((Node *) copyObject(expression)), "",
									   GetActiveSnapshot(), InvalidSnapshot, None_Receiver, NULL,
									   NULL, 0);
	TupleTableSlot *slot;
	Datum value = (Datum) 0;
	MemoryContext old = CurrentMemoryContext;

	*isnull = true;
	ExecutorStart(query, 0);
	MemoryContextSwitchTo(query->estate->es_query_cxt);
	slot = ExecProcNode(query->planstate);
	if (!TupIsNull(slot))
	{
		value = slot_getattr(slot, 1, isnull);
		if (!*isnull)
		{
			Form_pg_attribute att = TupleDescAttr(slot->tts_tupleDescriptor, 0);

			MemoryContextSwitchTo(old);
			if (att->attlen == -1)
				value = PointerGetDatum(PG_DETOAST_DATUM_COPY(value));
			else
				value = datumCopy(value, att->attbyval, att->attlen);
		}
	}
	MemoryContextSwitchTo(old);
	ExecutorFinish(query);
	ExecutorEnd(query);
	FreeQueryDesc(query);
	return value;
}

/* Functions that were inlined have found their names with the path of then. */
static bool
IsCurrent(const Policy *policy)
{
	return policy->valid && strcmp(policy->search_path, QuerySearchPath(policy->key.role)) == 0;
}

bool
PolicyLockDependencies(Oid relid, Oid role)
{
	Policy *policy;
	Policy key;
	int i;

	memset(&key, 0, sizeof(key));
	key.key.relid = relid;
	key.key.role = role;
	policy = hash_search(policies, &key.key, HASH_FIND, NULL);
	if (policy == NULL || !IsCurrent(policy))
		return false;
	for (i = 0; i < policy->ndependencies; i++)
		LockRelationOid(policy->dependencies[i], AccessShareLock);

	/* Taking the locks has let in what happened before we had them. */
	return policy->valid;
}

Policy *
PolicyKept(Oid relid, Oid role)
{
	Policy key;
	Policy *policy;

	memset(&key, 0, sizeof(key));
	key.key.relid = relid;
	key.key.role = role;
	policy = hash_search(policies, &key.key, HASH_FIND, NULL);
	return policy != NULL && policy->reusable && IsCurrent(policy) ? policy : NULL;
}

Policy *
PolicyGet(Oid relid, Oid role)
{
	Policy key;
	Policy *policy;
	bool found;
	Relation rel;
	int attempt;

	memset(&key, 0, sizeof(key));
	key.key.relid = relid;
	key.key.role = role;
	policy = hash_search(policies, &key.key, HASH_ENTER, &found);
	if (!found)
	{
		memset((char *) policy + sizeof(key.key), 0, sizeof(Policy) - sizeof(key.key));
		policy->valid = false;
	}
	if (policy->reusable && IsCurrent(policy))
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
			/* Functions that the planner calls may set something. */
			int nestlevel = NewGUCNestLevel();

			BuildPolicy(policy, rel);
			AtEOXact_GUC(false, nestlevel);
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

	/*
	 * The path decides which functions the policies' functions find.  Without
	 * SELECT no row is visible, which is not to be taken for a verdict.
	 */
	return hash_combine64(policy->fingerprint + policy->may_select,
						  hash_bytes_extended((const unsigned char *) path, strlen(path), 0));
}
