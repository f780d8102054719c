/*-------------------------------------------------------------------------
 *
 * query_call.c
 *		A client calls a function.
 *
 * One transaction: the key of the call is taken, the identity entered, what the
 * caller expects of rows is looked at, the function is run as any statement of
 * that role would run it, and the result is stored with the key, all or nothing.
 * What the session keeps of it is described at QueryLeaveIdentity.
 *
 * The key is inserted first.  Whoever has the same one at the same time waits at
 * the unique index, and then finds the result, or takes its turn if we failed.
 *
 * A transaction that fails because of others (serialization failure, deadlock)
 * is run again, a few times within the time limit of the call: as it was rolled
 * back, the client cannot tell.
 *
 * Process: query worker.  Locks: those of the function.  Memory: the request
 * and the result in query_job_context, the rest in the transaction's.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "call_function.h"
#include "query_internal.h"

#include "encode.h"
#include "function_names.h"

#include "access/transam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define ATTEMPTS	   4
#define RETRY_PAUSE_MS 20
#define EXPIRE_BATCH   1000

typedef struct Call
{
	Oid role;
	char *claims;
	char *name; /* of the function, as exposed */
	char *args; /* JSON */
	char *key;	/* empty: none */
	int nexpectations;
	Expectation *expectations;
	Datum identity; /* bytea: who has the key */
	Datum content;	/* bytea: and what for */

	StringInfoData result; /* JSON */
	uint64 xid;			   /* 0: none */
	int conflict;		   /* index of an expectation, -1: none */
} Call;

/* ---- Our own tables ---- */

static void
Connect(void)
{
	PushActiveSnapshot(GetTransactionSnapshot());
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
}

static void
Finish(void)
{
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
	PopActiveSnapshot();
}

static uint64
Execute(const char *sql, int nargs, Oid *types, Datum *values, const char *nulls)
{
	int result = SPI_execute_with_args(sql, nargs, types, values, nulls, false, 0);

	if (result < 0)
		elog(ERROR, "could not execute \"%s\": %s", sql, SPI_result_code_string(result));
	return SPI_processed;
}

static Datum
Value(int column, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, column, isnull);
}

static CallFunction *
FindFunction(const Call *call)
{
	MemoryContext context = CurrentMemoryContext;
	Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(call->name)};
	CallFunction *function = NULL;
	bool isnull;

	Connect();
	if (Execute("SELECT function FROM changefeed.function"
				" WHERE name OPERATOR(pg_catalog.=) $1",
				1, types, values, NULL) > 0)
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		function = CallFunctionGet(FunctionOfSignature(TextDatumGetCString(Value(1, &isnull))));
		MemoryContextSwitchTo(old);
	}
	Finish();
	if (function == NULL)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_FUNCTION),
						errmsg("function \"%s\" is not exposed", call->name),
						errhint("Use changefeed.expose_function.")));
	return function;
}

/* Hash of two texts. */
static Datum
HashOf(const char *a, const char *b)
{
	Size length = strlen(a) + 1 + strlen(b);
	bytea *data = palloc(VARHDRSZ + length);

	SET_VARSIZE(data, VARHDRSZ + length);
	memcpy(VARDATA(data), a, strlen(a) + 1);
	memcpy(VARDATA(data) + strlen(a) + 1, b, strlen(b));
	return DirectFunctionCall1(sha256_bytea, PointerGetDatum(data));
}

/* True: the call was made before, and its result is known. */
static bool
TakeKey(Call *call)
{
	Oid types[3] = {BYTEAOID, TEXTOID, BYTEAOID};
	Datum values[3] = {call->identity, CStringGetTextDatum(call->key), call->content};
	bool known = false;
	bool isnull;

	Connect();
	if (Execute("INSERT INTO changefeed.call_result (identity, key, call, txid, created_at)"
				" VALUES ($1, $2, $3, pg_catalog.pg_current_xact_id(), pg_catalog.now())"
				" ON CONFLICT (identity, key) DO NOTHING",
				3, types, values, NULL) == 0)
	{
		if (Execute("SELECT call OPERATOR(pg_catalog.=) $3, result,"
					" txid::pg_catalog.text::pg_catalog.int8 FROM changefeed.call_result"
					" WHERE identity OPERATOR(pg_catalog.=) $1 AND key OPERATOR(pg_catalog.=) $2",
					3, types, values, NULL) == 0)
			ereport(ERROR, (errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
							errmsg("the result of the call was removed at this moment")));
		if (!DatumGetBool(Value(1, &isnull)))
			ereport(
				ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("key \"%s\" was used for another call", call->key),
				 errdetail("It had another function or other arguments."),
				 errhint("Repeat a call exactly as it was, and give each new call a new key.")));
		appendStringInfoString(&call->result, TextDatumGetCString(Value(2, &isnull)));
		call->xid = (uint64) DatumGetInt64(Value(3, &isnull));
		known = true;
	}
	Finish();
	return known;
}

static void
StoreResult(const Call *call)
{
	Oid types[3] = {BYTEAOID, TEXTOID, TEXTOID};
	Datum values[3] = {call->identity, CStringGetTextDatum(call->key),
					   CStringGetTextDatum(call->result.data)};

	Connect();
	if (Execute("UPDATE changefeed.call_result SET result = $3"
				" WHERE identity OPERATOR(pg_catalog.=) $1 AND key OPERATOR(pg_catalog.=) $2",
				3, types, values, NULL) != 1)
		ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED), errmsg("the key of the call has gone")));
	Finish();
}

/* ---- The function ---- */

/* As a statement of the role would be refused. */
static void
RequireRights(const Call *call, const CallFunction *function)
{
	AclResult result = compat_namespace_aclcheck(function->schema, call->role, ACL_USAGE);

	if (result != ACLCHECK_OK)
		aclcheck_error(result, OBJECT_SCHEMA, get_namespace_name(function->schema));
	result = compat_proc_aclcheck(function->oid, call->role, ACL_EXECUTE);
	if (result != ACLCHECK_OK)
		aclcheck_error(result, OBJECT_FUNCTION, function->name);
}

static void
AppendRow(Call *call, RowEncoder *encoder, TupleTableSlot *slot, Oid type)
{
	int nestlevel = EncodePinnedBegin();
	bool isnull;
	Datum value = slot_getattr(slot, 1, &isnull);

	EncodeValue(encoder, &call->result, 1, value, isnull || type == VOIDOID);
	EncodePinnedEnd(nestlevel);
	if (call->result.len > (Size) setting_max_frame * 1024)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("the result of the call is larger than %d kB", setting_max_frame),
						errhint("Return less, or raise changefeed.max_frame.")));
}

static void
RunFunction(Call *call, const CallFunction *function)
{
	MemoryContext row_context = AllocSetContextCreate(CurrentMemoryContext, "changefeed result",
													  ALLOCSET_DEFAULT_SIZES);
	ParamListInfo params;
	Query *tree;
	QueryDesc *query;
	RowEncoder *encoder;
	int rows = 0;

	tree = QueryMakeCall(function, QueryJsonObject(call->args, "the arguments of a call"), &params);
	query = CreateQueryDesc(pg_plan_query(tree, "", 0, params), "", GetActiveSnapshot(),
							InvalidSnapshot, None_Receiver, params, NULL, 0);
	ExecutorStart(query, 0);
	encoder = EncoderCreate(query->tupDesc, CurrentMemoryContext);
	if (function->result != VOIDOID && EncodeTypeUsesCast(function->result))
		EncoderUseCasts(encoder, 1);

	if (function->set)
		appendStringInfoChar(&call->result, '[');
	for (;;)
	{
		MemoryContext old = MemoryContextSwitchTo(query->estate->es_query_cxt);
		TupleTableSlot *slot;

		CHECK_FOR_INTERRUPTS();
		ResetPerTupleExprContext(query->estate);
		slot = ExecProcNode(query->planstate);
		MemoryContextSwitchTo(row_context);
		if (TupIsNull(slot))
		{
			MemoryContextSwitchTo(old);
			break;
		}
		if (rows++ > 0)
			appendStringInfoChar(&call->result, ',');
		AppendRow(call, encoder, slot, function->result);
		MemoryContextSwitchTo(old);
		MemoryContextReset(row_context);
	}
	if (function->set)
		appendStringInfoChar(&call->result, ']');
	ExecutorFinish(query);
	ExecutorEnd(query);
	FreeQueryDesc(query);
}

/* ---- The transaction ---- */

/* False: an expectation is not true, and everything is to be rolled back. */
static bool
RunAsIdentity(Call *call, const CallFunction *function)
{
	int i;

	QueryEnterCaller(call->role, call->claims);
	RequireRights(call, function);
	for (i = 0; i < call->nexpectations; i++)
	{
		bool holds;

		PushActiveSnapshot(GetTransactionSnapshot());
		holds = ExpectationHolds(&call->expectations[i], call->role);
		PopActiveSnapshot();
		if (!holds)
		{
			call->conflict = i;
			return false;
		}
	}
	PushActiveSnapshot(GetTransactionSnapshot());
	RunFunction(call, function);
	PopActiveSnapshot();
	QueryLeaveIdentity();
	return true;
}

static void
RunOnce(Call *call, int64 time_limit)
{
	CallFunction *function;

	resetStringInfo(&call->result);
	call->xid = 0;
	call->conflict = -1;
	QueryTransactionBeginWriting(call->role, time_limit);
	function = FindFunction(call);
	if (call->key[0] != '\0' && TakeKey(call))
	{
		QueryTransactionEnd();
		return;
	}
	if (!RunAsIdentity(call, function))
	{
		QueryTransactionEnd();
		return;
	}
	if (call->key[0] != '\0')
		StoreResult(call);
	call->xid = U64FromFullTransactionId(GetTopFullTransactionIdIfAny());
	QueryTransactionCommit();
}

static bool
MayRetry(int sqlerrcode)
{
	return sqlerrcode == ERRCODE_T_R_SERIALIZATION_FAILURE ||
		   sqlerrcode == ERRCODE_T_R_DEADLOCK_DETECTED;
}

/* True: it is done.  False: it is to be tried again. */
static bool
Try(Call *call, int64 time_limit, bool last)
{
	volatile bool done = false;

	PG_TRY();
	{
		RunOnce(call, time_limit);
		done = true;
	}
	PG_CATCH();
	{
		if (last || !MayRetry(geterrcode()) || QueryTimedOut())
			PG_RE_THROW();
		MemoryContextSwitchTo(query_job_context);
		FlushErrorState();
		QueryTransactionEnd();
	}
	PG_END_TRY();
	return done;
}

/* ---- The job ---- */

static void
ReadCall(Call *call, WireReader *body)
{
	memset(call, 0, sizeof(Call));
	call->role = WireGetU32(body);
	call->claims = QueryCopyBytes(WireGetBytes(body));
	call->name = QueryCopyBytes(WireGetBytes(body));
	call->args = QueryCopyBytes(WireGetBytes(body));
	call->key = QueryCopyBytes(WireGetBytes(body));
	call->nexpectations = WireGetU16(body);
	call->expectations = palloc0(sizeof(Expectation) * Max(call->nexpectations, 1));
	initStringInfo(&call->result);
}

/* Behind the header, and anew for each attempt, which leaves its marks. */
static void
ReadExpectations(Call *call, WireReader body)
{
	int i;

	for (i = 0; i < call->nexpectations && !body.failed; i++)
		ExpectationRead(&call->expectations[i], &body);
	if (!WireAtEnd(&body))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED), errmsg("malformed job for a query worker")));
}

static void
SendResult(const Call *call)
{
	StringInfoData message;

	initStringInfo(&message);
	if (call->conflict >= 0)
	{
		const Expectation *expectation = &call->expectations[call->conflict];

		QueryMessage(&message, QUERY_CONFLICT);
		WirePutU16(&message, (uint16) call->conflict);
		WirePutBytes(&message, expectation->row.data, expectation->row.len);
		WirePutU64(&message, expectation->now);
	}
	else
	{
		QueryMessage(&message, QUERY_RESULT);
		WirePutBytes(&message, call->result.data, call->result.len);
		WirePutU64(&message, call->xid);
	}
	QuerySend(&message);
}

/* What may have outlived the commit; the process ends if that fails. */
static void
ForgetTemporary(void)
{
	PG_TRY();
	{
		Oid schema;
		Oid toast_schema;

		StartTransactionCommand();
		PortalHashTableDeleteAll();
		GetTempNamespaceState(&schema, &toast_schema);
		if (OidIsValid(schema))
		{
			/* Values of the catalog may be outside of its rows. */
			PushActiveSnapshot(GetTransactionSnapshot());
			ResetTempTableNamespace();
			PopActiveSnapshot();
		}
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		EmitErrorReport();
		proc_exit(1);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(query_job_context);
}

void
QueryRunCall(WireReader *body)
{
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), setting_call_timeout);
	Call call;
	char role[16];
	int attempt;

	ReadCall(&call, body);
	pgstat_report_activity(STATE_RUNNING, psprintf("calling function %s", call.name));

	/* The arguments in one form, however they were written. */
	if (call.key[0] != '\0')
	{
		Jsonb *args;

		QueryTransactionBeginWriting(InvalidOid, setting_call_timeout);
		args = QueryJsonObject(call.args, "the arguments of a call");
		MemoryContextSwitchTo(query_job_context);
		call.content = HashOf(call.name, JsonbToCString(NULL, &args->root, VARSIZE(args)));
		snprintf(role, sizeof(role), "%u", call.role);
		call.identity = HashOf(role, call.claims);
		QueryTransactionEnd();
	}

	for (attempt = 1;; attempt++)
	{
		long left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);

		ReadExpectations(&call, *body);
		if (Try(&call, Max(left, 1), attempt == ATTEMPTS))
			break;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 RETRY_PAUSE_MS * attempt, compat_wait_event("ChangefeedQueryMain"));
		ResetLatch(MyLatch);
	}
	SendResult(&call);
	if (call.conflict < 0)
		ForgetTemporary();
}

/* ---- Old results ---- */

void
QueryRunExpire(void)
{
	Oid types[1] = {FLOAT8OID};
	Datum values[1] = {Float8GetDatum((double) setting_idempotency_age)};
	StringInfoData message;
	uint64 next = 0;
	bool isnull;

	pgstat_report_activity(STATE_RUNNING, "removing results of calls");
	QueryTransactionBeginWriting(InvalidOid, setting_call_timeout);
	Connect();
	if (Execute("DELETE FROM changefeed.call_result WHERE ctid OPERATOR(pg_catalog.=) ANY (ARRAY("
				"SELECT ctid FROM changefeed.call_result WHERE created_at OPERATOR(pg_catalog.<)"
				" (pg_catalog.now() OPERATOR(pg_catalog.-) pg_catalog.make_interval(secs => $1))"
				" LIMIT " CppAsString2(EXPIRE_BATCH) "))",
				1, types, values, NULL) == EXPIRE_BATCH)
		next = 1;
	else if (Execute("SELECT pg_catalog.ceil(pg_catalog.date_part('epoch',"
					 " pg_catalog.min(created_at) OPERATOR(pg_catalog.-) pg_catalog.now())"
					 " OPERATOR(pg_catalog.+) $1)::pg_catalog.int8 FROM changefeed.call_result",
					 1, types, values, NULL) == 1)
	{
		int64 seconds = DatumGetInt64(Value(1, &isnull));

		next = isnull ? 0 : (uint64) Max(seconds, 1);
	}
	Finish();
	QueryTransactionCommit();

	initStringInfo(&message);
	QueryMessage(&message, QUERY_EXPIRED);
	WirePutU64(&message, next);
	QuerySend(&message);
}
