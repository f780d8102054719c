/*-------------------------------------------------------------------------
 *
 * query_batch.c
 *		Verdicts for many identities in one transaction.
 *
 * A transaction, a role and the begin of a plan cost many times what it takes
 * to judge a row.  So identities of a role share the transaction and the role, and
 * only the claims are exchanged.  They share the snapshot as well, which is as good
 * for all of them as one of their own, since it was taken after they asked.  Where a
 * policy calls nothing that could leave something behind (query_repeat.c), they
 * share the begun plan, too; otherwise each has a subtransaction, which is rolled
 * back.
 *
 * Whatever goes wrong concerns the identity at hand alone: the transaction ends,
 * the answers of those before it go out, and it is judged once more in a
 * transaction of its own (query_verdicts.c), where it gets its error, and as
 * much time as it may take.  So that the answers of others do not wait for one that
 * is slow, it is let go after a moment in the same way.
 *
 * Process: query worker.  Locks: as query_verdicts.c.  Memory: the transaction's;
 * answers in the caller's message.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "query_batch.h"

#include "access/xact.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* A policy that is not known yet is planned for the first who is judged alone. */
#define REFUSALS 2

typedef struct BatchState
{
	VerdictJob *job;
	Relation rel;
	Policy *policy;
	RepeatedPlans *plans;
	ParamListInfo params;
	int nneeded; /* parameters that the plan reads, by index */
	int *needed;
	ParamListInfo *rows; /* of the job, as parameters; NULL: not yet */
	RepeatedRun *whole;	 /* NULL: not begun */
	RepeatedRun *probe;
} BatchState;

/*
 * Begins the transaction for an identity and others of its role.  False: it
 * has to be judged alone, be it to plan its policy.
 */
static bool
BeginBatch(BatchState *state, VerdictJob *job, const VerdictIdentity *identity)
{
	Policy *policy;
	int attno = -1;

	memset(state, 0, sizeof(BatchState));
	state->job = job;
	state->rel = VerdictsBegin(job);
	if (state->rel == NULL || !PolicyLockDependencies(job->relid, identity->role))
		return false;
	QueryEnterIdentity(identity->role, identity->claims);
	PushActiveSnapshot(GetTransactionSnapshot());
	job->lsn = SharedInsertLsn();

	policy = PolicyKept(job->relid, identity->role);
	if (policy == NULL || policy->state != POLICY_JUDGED || !policy->may_select ||
		!VerdictDescriptionFits(job->desc, RelationGetDescr(state->rel)))
		return false;
	state->policy = policy;
	state->plans = RepeatedPlansGet(policy);
	if (state->plans->whole == NULL)
		return true;

	state->params = makeParamList(policy->natts + 1);
	state->rows = palloc0(sizeof(ParamListInfo) * Max(job->nrows, 1));
	state->needed = palloc(sizeof(int) * (policy->natts + 1));
	while ((attno = bms_next_member(policy->needed, attno)) >= 0)
		state->needed[state->nneeded++] = attno - 1;
	if (policy->whole_row)
		state->needed[state->nneeded++] = policy->natts;
	return true;
}

static void
SetRow(BatchState *state, uint32 index)
{
	ParamListInfo row = state->rows[index];
	int i;

	if (row == NULL)
	{
		row = state->rows[index] = makeParamList(state->policy->natts + 1);
		VerdictRowToParams(state->job, &state->job->rows[index], state->policy,
						   state->policy->needed, state->rel, row);
	}
	for (i = 0; i < state->nneeded; i++)
		state->params->params[state->needed[i]] = row->params[state->needed[i]];
}

/* The run that is cheaper for that many rows. */
static RepeatedRun *
ChooseRun(BatchState *state, uint32 nrows)
{
	const RepeatedPlan *whole = state->plans->whole;
	const RepeatedPlan *probe = state->plans->probe;
	RepeatedRun **run = &state->whole;
	const RepeatedPlan *plan = whole;

	if (probe != NULL && probe->cost * nrows < whole->cost)
	{
		run = &state->probe;
		plan = probe;
	}
	/* It looks at the first row when it begins. */
	if (*run == NULL)
		*run = RepeatedBegin(plan, state->params);
	return *run;
}

/*
 * Somebody's code runs: whatever it sets, opens and locks ends with a
 * transaction within ours, or is taken back behind it.
 */
static void
JudgeApart(BatchState *state, const VerdictIdentity *identity, uint8 *bitmap)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	BeginInternalSubTransaction(NULL);
	VerdictJudgeRows(state->job, identity, state->policy, state->rel, bitmap);
	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	QueryForgetSession();

	/* Whoever catches the cancel has not been judged. */
	if (QueryTimedOut())
		ereport(ERROR, (errcode(ERRCODE_QUERY_CANCELED), errmsg("policies took too long")));
}

static void
JudgeOne(BatchState *state, const VerdictIdentity *identity, StringInfo answer)
{
	uint32 nbytes = (identity->nrows + 7) / 8;
	uint8 few[16] = {0};
	uint8 *bitmap = nbytes <= sizeof(few) ? few : palloc0(nbytes);
	RepeatedRun *run;
	uint32 i;

	if (PolicyFingerprint(state->policy) != identity->fingerprint)
	{
		WirePutU8(answer, QUERY_VERDICT_OUTDATED);
		return;
	}
	if (state->plans->whole == NULL)
		JudgeApart(state, identity, bitmap);
	else
	{
		run = ChooseRun(state, identity->nrows);
		RepeatedNextIdentity(run);
		for (i = 0; i < identity->nrows; i++)
		{
			CHECK_FOR_INTERRUPTS();
			SetRow(state, identity->rows[i]);
			if (RepeatedRow(run))
				bitmap[i / 8] |= 1 << (i % 8);
		}
	}
	CHECK_FOR_INTERRUPTS();
	VerdictNotePosition(state->job, state->policy);
	VerdictPut(answer, identity, state->policy, bitmap);
	if (bitmap != few)
		pfree(bitmap);
}

uint32
VerdictsBatch(VerdictJob *job, uint32 first, StringInfo message, bool *alone)
{
	volatile uint32 index = first;
	volatile bool failed = false;
	StringInfoData answer;

	*alone = true;
	if (QueryOneByOne() || job->identities[first].ncasts > 0 || job->refused >= REFUSALS)
		return first;

	initStringInfo(&answer);
	PG_TRY();
	{
		TimestampTz start = GetCurrentTimestamp();
		TimestampTz since = start;
		BatchState state;
		bool limited = false;

		failed = !BeginBatch(&state, job, &job->identities[index]);
		if (failed)
			job->refused++;
		else if (message->len > 0)
			QueryTrialLimit(VERDICT_TRIAL_MS);
		while (!failed)
		{
			const VerdictIdentity *identity = &job->identities[index];

			resetStringInfo(&answer);
			JudgeOne(&state, identity, &answer);
			VerdictAppend(message, index, since, job->lsn, &answer);
			since = GetCurrentTimestamp();
			if (!limited)
				QueryTrialLimit(VERDICT_TRIAL_MS);
			limited = true;

			index = QueryNextIdentity();
			if (index >= job->nidentities || job->identities[index].ncasts > 0 ||
				job->identities[index].role != identity->role || !state.policy->valid ||
				since - start >= VERDICT_BATCH_US || message->len >= VERDICT_BATCH_BYTES)
				break;
			QueryChangeClaims(job->identities[index].claims);
		}
		QueryTransactionEnd();
	}
	PG_CATCH();
	{
		HOLD_CANCEL_INTERRUPTS();
		MemoryContextSwitchTo(query_job_context);
		FlushErrorState();
		QueryTransactionEnd();
		RESUME_CANCEL_INTERRUPTS();
		failed = true;
	}
	PG_END_TRY();
	pfree(answer.data);
	*alone = failed && index < job->nidentities;
	return index;
}
