/*-------------------------------------------------------------------------
 *
 * query_explain.c
 *		changefeed.explain for the console.
 *
 * The function runs as if its caller had a session: as the role of the token
 * that asks, whose rights it checks.  It becomes the identity that is asked
 * about itself, which is why the means to become somebody else cannot be
 * disabled before; nothing of the caller's runs here, only our statement, and
 * what is the identity's runs where explain.c has disabled them.
 *
 * Process: query worker.  Locks: AccessShareLock, those of explain.c.  Memory:
 * query_job_context.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "query_internal.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#define LOCK_TIMEOUT_MS 1000

/* Rows of many policies; more would not be read by anybody. */
#define ANSWER_MAX (1024 * 1024)

static const char statement[] =
	"SELECT coalesce(pg_catalog.json_agg(pg_catalog.json_build_object("
	"'source', e.source::pg_catalog.text, 'aspect', e.aspect, 'name', e.name, 'detail', e.detail)),"
	" '[]')::pg_catalog.text FROM changefeed.explain($1, $2::pg_catalog.jsonb) e";

void
QueryRunExplain(WireReader *body)
{
	Oid role = WireGetU32(body);
	char *claims = QueryCopyBytes(WireGetBytes(body));
	Datum values[2];
	Oid types[2] = {TEXTOID, TEXTOID};
	StringInfoData message;
	char *rows;
	bool isnull;

	values[0] = CStringGetTextDatum(QueryCopyBytes(WireGetBytes(body)));
	values[1] = CStringGetTextDatum(QueryCopyBytes(WireGetBytes(body)));
	QueryTransactionBegin(LOCK_TIMEOUT_MS, setting_policy_timeout);
	QueryEnterOperator(role, claims);

	PushActiveSnapshot(GetTransactionSnapshot());
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute_with_args(statement, 2, types, values, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not explain the channel");
	rows = TextDatumGetCString(
		SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	if (strlen(rows) > ANSWER_MAX)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("the answer of explain is larger than %d kB", ANSWER_MAX / 1024),
						errhint("Call changefeed.explain in a session.")));
	rows = MemoryContextStrdup(query_job_context, rows);
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
	PopActiveSnapshot();
	QueryTransactionEnd();

	initStringInfo(&message);
	QueryMessage(&message, QUERY_RESULT);
	WirePutString(&message, rows);
	WirePutU64(&message, 0);
	QuerySend(&message);
}
