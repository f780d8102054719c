/*-------------------------------------------------------------------------
 *
 * pause_ddl.c
 *		SQL functions that operate the feed of a database: pause, resume, reset.
 *
 * All of them take effect with the commit.  What concerns the slot is asked of
 * the launcher then (HooksFeedRequest), the rest is read by the feed worker.
 *
 * Process: any backend.  Memory: CurrentMemoryContext of the call.  Locks: as
 * in ddl.h.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ddl.h"
#include "pause.h"
#include "shared.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(changefeed_pause);
PG_FUNCTION_INFO_V1(changefeed_resume);
PG_FUNCTION_INFO_V1(changefeed_reset);

static void
RequireOperator(const char *function)
{
	PreventCommandIfReadOnly(function);
	RequirePreload();
	if (!DdlOwnsDatabase())
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("must be owner of the database to use changefeed.%s", function)));
}

/* pause(keep_slot) */
Datum
changefeed_pause(PG_FUNCTION_ARGS)
{
	DdlAccess access;
	Oid types[2] = {TIMESTAMPTZOID, BOOLOID};
	Datum values[2];
	bool changed;

	RequireOperator("pause()");
	DdlRequireArgument(fcinfo, 0, "keep_slot");
	values[0] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[1] = PG_GETARG_DATUM(0);
	DdlBegin(&access);
	/* A slot that is gone does not come back by being paused once more. */
	changed = DdlWrite("INSERT INTO changefeed.pause AS p (paused_at, keep_slot) VALUES ($1, $2)"
					   " ON CONFLICT (one) DO UPDATE SET keep_slot = false"
					   " WHERE p.keep_slot AND NOT excluded.keep_slot",
					   2, types, values, NULL) > 0;
	DdlEnd(&access);
	if (!changed)
		ereport(NOTICE, (errmsg("the change feed is paused already")));
	else if (!PG_GETARG_BOOL(0))
		HooksFeedRequest(REQUEST_STOP);
	PG_RETURN_VOID();
}

/* resume() */
Datum
changefeed_resume(PG_FUNCTION_ARGS)
{
	DdlAccess access;
	bool without_slot;

	RequireOperator("resume()");
	DdlBegin(&access);
	without_slot = DdlWrite("DELETE FROM changefeed.pause WHERE NOT keep_slot", 0, NULL, NULL,
							NULL) > 0;
	if (!without_slot && DdlWrite("DELETE FROM changefeed.pause", 0, NULL, NULL, NULL) == 0)
		ereport(NOTICE, (errmsg("the change feed is not paused")));
	DdlEnd(&access);
	if (without_slot)
		HooksFeedRequest(REQUEST_START);
	PG_RETURN_VOID();
}

/* reset() */
Datum
changefeed_reset(PG_FUNCTION_ARGS)
{
	PauseState pause;

	RequireOperator("reset()");
	if (SharedStateOfDatabase(MyDatabaseId) != FEED_WANTED)
	{
		bool paused = PauseRead(&pause) && pause.paused;

		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("this database has no change feed that could be reset"),
			 paused
				 ? errhint("It is paused without its slot: SELECT changefeed.resume() begins anew.")
				 : errhint("None runs in a template database, or while one is being dropped.")));
	}
	HooksFeedRequest(REQUEST_RESTART);
	PG_RETURN_VOID();
}
