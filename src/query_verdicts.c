/*-------------------------------------------------------------------------
 *
 * query_verdicts.c
 *		Which of these rows may these identities see?
 *
 * Each identity has a transaction of its own: what one of them sets, locks or
 * breaks does not reach the next one, and an error costs only its own verdict.
 * All rows of an identity are judged on one snapshot.  Its verdict is sent as
 * soon as it is found; when that takes long, the pool gives the identities
 * behind it to another worker (QueryNextIdentity).
 *
 * Columns whose JSON is made by user-defined casts are encoded here as well, for
 * visible rows, under the identity and within its time limit.
 *
 * A row comes as the description of its time has it and is judged by the
 * policies of now.  What the change did not carry is missing, which is not the
 * same as null: a policy that needs it gets an error.
 *
 * Process: query worker.  Locks: AccessShareLock on the table and on what the
 * policies read, until the transaction's end.  Memory: the batch's rows and
 * results are in query_job_context; what one row needs is in a context that is
 * reset for each.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "query_batch.h"

#include "encode.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "executor/executor.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/params.h"
#include "pgstat.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/*
 * A verdict waits that long for a lock (ms), and hardly at all while one was
 * busy a moment ago: others will meet the same lock.
 */
#define VERDICT_LOCK_TIMEOUT	  200
#define VERDICT_LOCK_TIMEOUT_BUSY 5
#define LOCKS_BUSY_MS			  1000

/* Of one identity's answer. */
#define MAX_ANSWER (64 * 1024 * 1024)

/* Until then locks are expected to be busy. */
static TimestampTz locks_busy_until;


bool
VerdictDescriptionFits(const RecordDescription *desc, TupleDesc now)
{
	int natts = Min(desc->tupdesc->natts, now->natts);
	int i;

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

void
VerdictRowToParams(const VerdictJob *job, const VerdictRow *row, const Policy *policy,
				   Bitmapset *needed, Relation rel, ParamListInfo params)
{
	TupleDesc now = RelationGetDescr(rel);
	int natts = now->natts;
	int then = job->desc->tupdesc->natts;
	Datum *values = palloc(sizeof(Datum) * (Max(natts, then) + 1));
	bool *isnull = palloc(sizeof(bool) * (Max(natts, then) + 1));
	int i;

	RecordDeform(job->desc, row->data, row->length, values, isnull);
	for (i = 0; i < natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(now, i);
		bool wanted = policy->whole_row || bms_is_member(i + 1, needed);
		bool missing = false;

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
				ereport(
					ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg(
						 "policy of table \"%s\" needs column \"%s\", which the change does not carry",
						 RelationGetRelationName(rel), NameStr(att->attname)),
					 errhint("Use ALTER TABLE ... REPLICA IDENTITY FULL.")));
			isnull[i] = true;
			values[i] = (Datum) 0;
		}
	}

	if (policy->whole_row)
	{
		HeapTuple tuple = heap_form_tuple(now, values, isnull);

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
	QueryDesc *query = CreateQueryDesc(policy->plan, "", GetActiveSnapshot(), InvalidSnapshot,
									   None_Receiver, params, NULL, 0);
	MemoryContext old;
	TupleTableSlot *slot;
	bool visible = false;

	ExecutorStart(query, 0);
	old = MemoryContextSwitchTo(query->estate->es_query_cxt);
	slot = ExecProcNode(query->planstate);
	if (!TupIsNull(slot))
	{
		bool isnull;
		Datum value = slot_getattr(slot, 1, &isnull);

		visible = !isnull && DatumGetBool(value);
	}
	MemoryContextSwitchTo(old);
	ExecutorFinish(query);
	ExecutorEnd(query);
	FreeQueryDesc(query);
	return visible;
}

void
VerdictJudgeRows(const VerdictJob *job, const VerdictIdentity *identity, const Policy *policy,
				 Relation rel, uint8 *bitmap)
{
	MemoryContext row_context = AllocSetContextCreate(CurrentMemoryContext, "changefeed row",
													  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = CurrentMemoryContext;
	ParamListInfo params = makeParamList(policy->natts + 1);
	uint32 i;

	for (i = 0; i < identity->nrows; i++)
	{
		bool visible;

		CHECK_FOR_INTERRUPTS();
		if (policy->state == POLICY_NONE)
			visible = true;
		else
		{
			MemoryContextSwitchTo(row_context);
			VerdictRowToParams(job, &job->rows[identity->rows[i]], policy, policy->needed, rel,
							   params);
			visible = RowIsVisible(policy, params);
			MemoryContextSwitchTo(old);
			MemoryContextReset(row_context);
		}
		if (visible)
			bitmap[i / 8] |= 1 << (i % 8);
	}
	MemoryContextDelete(row_context);
}

/*
 * What casts make of the columns asked for, for each visible row.  All policies
 * have been run: only casts can change settings now, and these are undone.
 */
static void
CastRows(const VerdictJob *job, const VerdictIdentity *identity, const Policy *policy, Relation rel,
		 const uint8 *bitmap, StringInfo out)
{
	MemoryContext row_context = AllocSetContextCreate(CurrentMemoryContext, "changefeed row",
													  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = CurrentMemoryContext;
	ParamListInfo params = makeParamList(policy->natts + 1);
	RowEncoder *encoder = EncoderCreate(RelationGetDescr(rel), old);
	Bitmapset *needed = NULL;
	StringInfoData text;
	int nestlevel = EncodePinnedBegin();
	uint32 i;
	int k;

	for (k = 0; k < identity->ncasts; k++)
	{
		if (identity->casts[k] <= 0 || identity->casts[k] > RelationGetNumberOfAttributes(rel) ||
			TupleDescAttr(RelationGetDescr(rel), identity->casts[k] - 1)->attisdropped)
			elog(ERROR, "column %d of a cast does not exist", identity->casts[k]);
		EncoderUseCasts(encoder, identity->casts[k]);
		needed = bms_add_member(needed, identity->casts[k]);
	}
	initStringInfo(&text);
	for (i = 0; i < identity->nrows; i++)
	{
		CHECK_FOR_INTERRUPTS();
		if ((bitmap[i / 8] & (1 << (i % 8))) == 0)
			continue;
		MemoryContextSwitchTo(row_context);
		VerdictRowToParams(job, &job->rows[identity->rows[i]], policy, needed, rel, params);
		for (k = 0; k < identity->ncasts; k++)
		{
			ParamExternData *value = &params->params[identity->casts[k] - 1];

			resetStringInfo(&text);
			EncodeValue(encoder, &text, identity->casts[k], value->value, value->isnull);
			if ((Size) out->len + text.len > MAX_ANSWER)
				ereport(ERROR,
						(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						 errmsg("casts to json gave more than %d MB for the changes of a moment",
								MAX_ANSWER / (1024 * 1024))));
			WirePutBytes(out, text.data, text.len);
		}
		MemoryContextSwitchTo(old);
		MemoryContextReset(row_context);
	}
	EncodePinnedEnd(nestlevel);
	MemoryContextDelete(row_context);
}

Relation
VerdictsBegin(const VerdictJob *job)
{
	int lock_timeout = GetCurrentTimestamp() < locks_busy_until ? VERDICT_LOCK_TIMEOUT_BUSY
																: VERDICT_LOCK_TIMEOUT;

	/* Less than the time limit: who waits for a lock has done nothing wrong. */
	QueryTransactionBegin(Min(lock_timeout, setting_policy_timeout / 2), setting_policy_timeout);
	return try_table_open(job->relid, AccessShareLock);
}

/* What is found by name counts from when it was found, not from the snapshot. */
void
VerdictNotePosition(VerdictJob *job, const Policy *policy)
{
	if (policy->named)
		job->lsn = Max(job->lsn, SharedInsertLsn());
}

void
VerdictPut(StringInfo out, const VerdictIdentity *identity, const Policy *policy,
		   const uint8 *bitmap)
{
	int i;

	WirePutU8(out, QUERY_VERDICT_OK);
	WirePutU64(out, identity->fingerprint);
	WirePutU8(out, policy->named);
	WirePutU32(out, policy->ndependencies);
	for (i = 0; i < policy->ndependencies; i++)
		WirePutU32(out, policy->dependencies[i]);
	WirePutBytes(out, (const char *) bitmap, (identity->nrows + 7) / 8);
}

void
VerdictAppend(StringInfo message, uint32 index, TimestampTz since, XLogRecPtr lsn,
			  const StringInfoData *answer)
{
	/* All of it or nothing, should there be no memory. */
	enlargeStringInfo(message, answer->len + 64);
	if (message->len == 0)
		QueryMessage(message, QUERY_VERDICT);
	WirePutU32(message, sizeof(uint32) * 2 + sizeof(uint64) + answer->len);
	WirePutU32(message, index);
	WirePutU32(message, (uint32) Min(GetCurrentTimestamp() - since, PG_INT32_MAX));
	WirePutU64(message, lsn);
	appendBinaryStringInfo(message, answer->data, answer->len);
}

/* Judges in a transaction that the caller ends.  Appends to `out` when OK. */
static int
JudgeInTransaction(VerdictJob *job, const VerdictIdentity *identity, bool trial, bool last_attempt,
				   StringInfo out, bool *again)
{
	Relation rel;
	Policy *policy;
	bool known;
	uint8 *bitmap;
	uint32 nbytes = (identity->nrows + 7) / 8;

	*again = false;
	rel = VerdictsBegin(job);
	if (trial)
		QueryTrialLimit(VERDICT_TRIAL_MS);
	if (rel == NULL)
		return QUERY_VERDICT_OUTDATED;
	known = PolicyLockDependencies(job->relid, identity->role);

	QueryEnterIdentity(identity->role, identity->claims);
	PushActiveSnapshot(GetTransactionSnapshot());
	job->lsn = Max(job->lsn, SharedInsertLsn());
	policy = PolicyGet(job->relid, identity->role);
	if (PolicyFingerprint(policy) != identity->fingerprint ||
		!VerdictDescriptionFits(job->desc, RelationGetDescr(rel)))
		return QUERY_VERDICT_OUTDATED;

	/* Its tables have been locked after the snapshot was taken. */
	if (!known && policy->ndependencies > 0 && !last_attempt)
	{
		*again = true;
		return QUERY_VERDICT_OK;
	}

	bitmap = palloc0(Max(nbytes, 1));
	if (policy->may_select && policy->state != POLICY_NOTHING)
		VerdictJudgeRows(job, identity, policy, rel, bitmap);

	VerdictPut(out, identity, policy, bitmap);
	if (identity->ncasts > 0)
		CastRows(job, identity, policy, rel, bitmap, out);
	VerdictNotePosition(job, policy);
	return QUERY_VERDICT_OK;
}

static void
PutVerdictError(StringInfo out, const ErrorData *error)
{
	const char *text = error->message != NULL ? error->message : "missing error text";

	WirePutU8(out, QUERY_VERDICT_ERROR);
	WirePutString(out, unpack_sql_state(error->sqlerrcode));
	if (error->sqlerrcode == ERRCODE_QUERY_CANCELED && QueryTimedOut())
		WirePutString(
			out, psprintf("policies and casts took longer than changefeed.policy_timeout (%d ms)",
						  setting_policy_timeout));
	else
		WirePutBytes(out, text, pg_mbcliplen(text, strlen(text), QUERY_ERROR_LENGTH));
}

/*
 * Judges an identity alone.  On `trial` others' answers wait meanwhile, so it has only
 * a moment; false: that was not enough.
 */
static bool
JudgeIdentity(VerdictJob *job, const VerdictIdentity *identity, bool trial, StringInfo out)
{
	volatile bool undone = false;
	volatile int start = out->len;
	volatile int attempt = 0;
	volatile bool again = true;

	while (again)
	{
		PG_TRY();
		{
			bool once_more;
			int status;

			out->len = start;
			status = JudgeInTransaction(job, identity, trial, attempt++ >= 2, out, &once_more);
			/* Whoever catches the cancel has not been judged, either. */
			undone = trial && QueryTimedOut();
			QueryTransactionEnd();
			if (status != QUERY_VERDICT_OK)
			{
				out->len = start;
				WirePutU8(out, (uint8) status);
			}
			again = once_more && !undone;
		}
		PG_CATCH();
		{
			ErrorData *error;

			HOLD_CANCEL_INTERRUPTS();
			MemoryContextSwitchTo(query_job_context);
			error = CopyErrorData();
			FlushErrorState();
			QueryTransactionEnd();
			RESUME_CANCEL_INTERRUPTS();

			out->len = start;
			undone = trial && QueryTimedOut();
			if (error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE ||
				error->sqlerrcode == ERRCODE_T_R_DEADLOCK_DETECTED)
			{
				WirePutU8(out, QUERY_VERDICT_LOCKED);
				locks_busy_until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
															   LOCKS_BUSY_MS);
			}
			else
				PutVerdictError(out, error);
			FreeErrorData(error);
			again = false;
		}
		PG_END_TRY();
	}
	return !undone;
}

static void
ReadVerdictRows(VerdictJob *job, WireReader *body)
{
	uint32 i;

	job->nrows = WireGetU32(body);
	if (job->nrows > body->length)
		body->failed = true;
	if (body->failed)
		return;
	job->rows = palloc0(sizeof(VerdictRow) * Max(job->nrows, 1));
	for (i = 0; i < job->nrows && !body->failed; i++)
	{
		WireBytes bytes = WireGetBytes(body);

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
	uint32 i;
	int k;

	identity->role = WireGetU32(body);
	identity->claims = QueryCopyBytes(WireGetBytes(body));
	identity->fingerprint = WireGetU64(body);
	identity->ncasts = WireGetU16(body);
	identity->casts = palloc(sizeof(int16) * Max(identity->ncasts, 1));
	for (k = 0; k < identity->ncasts; k++)
		identity->casts[k] = (int16) WireGetU16(body);
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

static void
Flush(StringInfo message)
{
	if (message->len > 0)
		QuerySend(message);
	resetStringInfo(message);
}

void
QueryRunVerdicts(WireReader *body)
{
	VerdictJob job = {0};
	WireBytes bytes;
	char *description;
	uint32 i;
	StringInfoData verdict;
	StringInfoData message; /* answers that are not sent yet */
	TimestampTz since = 0;	/* the first of them */

	job.nidentities = WireGetU32(body);
	job.relid = WireGetU32(body);
	bytes = WireGetBytes(body);
	if (!body->failed)
	{
		description = palloc(Max(bytes.length, 1));
		memcpy(description, bytes.data, bytes.length);
		job.desc = RecordReadDescription(description, bytes.length, query_job_context);
	}
	ReadVerdictRows(&job, body);
	if (job.nidentities > body->length)
		body->failed = true;
	if (!body->failed)
		job.identities = palloc0(sizeof(VerdictIdentity) * Max(job.nidentities, 1));
	for (i = 0; i < job.nidentities && !body->failed; i++)
		ReadVerdictIdentity(&job, body, &job.identities[i]);

	/* Optional. */
	if (!body->failed && body->offset < body->length)
	{
		uint32 n = WireGetU32(body);

		while (n-- > 0 && !body->failed)
		{
			uint32 row = WireGetU32(body);

			if (row >= job.nrows)
				body->failed = true;
			else
				job.rows[row].identity_only = true;
		}
	}
	if (!WireAtEnd(body))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED), errmsg("malformed job for a query worker")));

	pgstat_report_activity(STATE_RUNNING,
						   psprintf("judging changes of %s.%s", job.desc->schema, job.desc->name));
	initStringInfo(&verdict);
	initStringInfo(&message);
	i = QueryNextIdentity();
	while (i < job.nidentities)
	{
		uint32 first = i;
		TimestampTz start;
		bool alone;

		i = VerdictsBatch(&job, i, &message, &alone);
		if (alone)
		{
			/* It has failed once. */
			if (i != first)
				Flush(&message);
			start = GetCurrentTimestamp();
			resetStringInfo(&verdict);
			job.lsn = InvalidXLogRecPtr;
			if (!JudgeIdentity(&job, &job.identities[i], message.len > 0, &verdict))
			{
				Flush(&message);
				resetStringInfo(&verdict);
				(void) JudgeIdentity(&job, &job.identities[i], false, &verdict);
			}
			if (message.len == 0)
				since = start;
			VerdictAppend(&message, i, start, job.lsn, &verdict);
			i = QueryNextIdentity();
		}
		if (!alone || QueryOneByOne() || message.len >= VERDICT_BATCH_BYTES ||
			GetCurrentTimestamp() - since >= VERDICT_BATCH_US)
			Flush(&message);
	}
	Flush(&message);
}
