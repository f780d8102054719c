/*-------------------------------------------------------------------------
 *
 * query_expect.c
 *		Rows that a caller has seen: are they still what he saw?
 *
 * The row is looked up as the snapshot of its channel would find it: under the
 * caller's role and claims, with the channel's filter, parameters and check and
 * the conditions of the subscription.  What the caller gets of a row that has
 * changed is what a subscription would give him of it.
 *
 * If the version is the right one, that very version of the row is locked, as
 * FOR NO KEY UPDATE would: an UPDATE or another expectation of the row waits
 * until our transaction's end.  A weaker lock would let two callers come this
 * far, each waiting for the other then.  SELECT ... FOR NO KEY UPDATE needs the
 * right to UPDATE, so that nobody can keep others from writing for as long as he
 * likes; here it is for the time of a call, whose function the owner of the
 * database or its owner has exposed, so being able to see the row is enough.
 *
 * Process: query worker.  Locks: RowShareLock on the table, and the row.
 * Memory: what is found out in query_job_context.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "query_internal.h"

#include "encode.h"
#include "log.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "executor/executor.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

void
ExpectationRead(Expectation *expectation, WireReader *body)
{
	memset(expectation, 0, sizeof(Expectation));
	expectation->key = QueryCopyBytes(WireGetBytes(body));
	expectation->version = WireGetU64(body);
	JoinCheckRead(&expectation->check, body);
	SourceQueryRead(&expectation->source, body);
	expectation->source.selection = SourceQueryReadSelection(body);
	expectation->source.system = SOURCE_PLACE;
}

/* The key's columns, as further parameters. */
static void
AddKey(Expectation *expectation, Relation rel)
{
	SourceQuery *source = &expectation->source;
	Jsonb *key = QueryJsonObject(expectation->key, "the columns of a key");
	int i;

	for (i = 0; i < source->nkeys; i++)
	{
		AttrNumber attno = get_attnum(RelationGetRelid(rel), source->keys[i]);
		SourceParameter *param = &source->params[source->nparams];
		Form_pg_attribute att;
		Oid output;
		bool varlena;
		bool isnull;
		Datum value;
		int nestlevel;

		if (attno <= 0)
			ereport(ERROR, (errcode(ERRCODE_UNDEFINED_COLUMN),
							errmsg("column \"%s\" of table \"%s\" does not exist", source->keys[i],
								   RelationGetRelationName(rel))));
		if (!QueryJsonHas(key, source->keys[i]))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("the key of an expected row lacks column \"%s\"", source->keys[i])));
		att = TupleDescAttr(RelationGetDescr(rel), attno - 1);
		value = QueryJsonValue(key, source->keys[i], "key column", att->atttypid, att->atttypmod,
							   &isnull);
		if (isnull)
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("key column \"%s\" of an expected row is null", source->keys[i])));
		nestlevel = EncodePinnedBegin();
		getTypeOutputInfo(getBaseType(att->atttypid), &output, &varlena);
		param->column = source->keys[i];
		param->text = OidOutputFunctionCall(output, value);
		EncodePinnedEnd(nestlevel);
		source->nparams++;
	}
}

/* The only row, or NULL. */
static TupleTableSlot *
FindRow(Expectation *expectation, QueryDesc *query, RowEncoder *encoder)
{
	SourceQuery *source = &expectation->source;

	for (;;)
	{
		MemoryContext old = MemoryContextSwitchTo(query->estate->es_query_cxt);
		TupleTableSlot *slot = ExecProcNode(query->planstate);
		int nestlevel;
		bool matches;

		MemoryContextSwitchTo(old);
		if (TupIsNull(slot))
			return NULL;
		slot_getallattrs(slot);
		nestlevel = EncodePinnedBegin();
		matches = SourceQueryMatches(source, slot->tts_values, slot->tts_isnull);
		if (matches)
		{
			int16 *attnos = palloc(sizeof(int16) * (source->ncolumns + 1));
			int i;

			for (i = 0; i < source->ncolumns; i++)
				attnos[i] = i + 1;
			resetStringInfo(&expectation->row);
			EncodeRow(encoder, &expectation->row, attnos, source->ncolumns, slot->tts_values,
					  slot->tts_isnull);
		}
		EncodePinnedEnd(nestlevel);
		if (matches)
			return slot;
	}
}

/*
 * Nobody else has changed it since our snapshot?  Otherwise everything begins
 * again, with another one.
 */
static void
LockRow(Oid relid, ItemPointer tid, Snapshot snapshot)
{
	Relation rel = table_open(relid, RowShareLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	TM_FailureData failure;
	TM_Result result = table_tuple_lock(rel, tid, snapshot, slot, GetCurrentCommandId(false),
										LockTupleNoKeyExclusive, LockWaitBlock, 0, &failure);

	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, NoLock);
	if (result != TM_Ok)
		ereport(ERROR, (errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
						errmsg("could not serialize access due to concurrent update")));
}

static void
LockTable(Oid relid)
{
	char relkind;

	LockRelationOid(relid, RowShareLock);
	relkind = get_rel_relkind(relid);
	if (relkind != RELKIND_RELATION && relkind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE),
						errmsg("table of the channel does not exist any more")));
}

bool
ExpectationHolds(Expectation *expectation, Oid role)
{
	SourceQuery *source = &expectation->source;
	MemoryContext old = CurrentMemoryContext;
	StringInfoData describe;
	Relation rel;
	Oid *types;
	ParamListInfo params;
	char *sql;
	PlannedStmt *plan;
	QueryDesc *query;
	RowEncoder *encoder;
	TupleTableSlot *slot;
	bool holds = false;
	int i;
	int k;

	MemoryContextSwitchTo(query_job_context);
	initStringInfo(&expectation->row);
	MemoryContextSwitchTo(old);

	if (expectation->check.text[0] != '\0' &&
		JoinCheckEvaluate(&expectation->check, true, query_job_context) != JOIN_ALLOWED)
		JoinCheckRefuse();
	LockTable(source->relid);
	rel = table_open(source->relid, NoLock);
	AddKey(expectation, rel);
	initStringInfo(&describe);
	SourceQueryDescribe(source, 0, role, &describe);
	if (!source->nothing)
	{
		types = palloc(sizeof(Oid) * (source->nparams + 1));
		params = SourceQueryParameters(source, rel, types);
		sql = SourceQueryText(source, rel);
		plan = SourceQueryPlan(source, rel, role, sql, types, params);
		query = CreateQueryDesc(plan, sql, GetActiveSnapshot(), InvalidSnapshot, None_Receiver,
								params, NULL, 0);
		ExecutorStart(query, 0);
		encoder = EncoderCreate(query->tupDesc, CurrentMemoryContext);
		for (i = 0; i < source->ncasts; i++)
			for (k = 0; k < source->ncolumns; k++)
				if (source->columns[k] == source->casts[i])
					EncoderUseCasts(encoder, k + 1);
		slot = FindRow(expectation, query, encoder);
		if (slot != NULL)
		{
			/* Behind the columns: xmin, ctid, tableoid. */
			Datum *system = slot->tts_values + source->ncolumns + source->nextra;

			expectation->now = LogFullXid(DatumGetTransactionId(system[0]));
			holds = expectation->now == expectation->version;
			if (holds)
				LockRow(DatumGetObjectId(system[2]), (ItemPointer) DatumGetPointer(system[1]),
						GetActiveSnapshot());
		}
		ExecutorFinish(query);
		ExecutorEnd(query);
		FreeQueryDesc(query);
	}
	table_close(rel, NoLock);
	return holds;
}
