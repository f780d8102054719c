/*-------------------------------------------------------------------------
 *
 * pause.c
 *		A feed that is paused.  See pause.h.
 *
 * Process: feed worker; PauseRead also in backends and in the scan.  Memory:
 * none.  Locks: that of CatalogScan.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "feed.h"
#include "gateways.h"
#include "pause.h"

#include "commands/dbcommands.h"

bool feed_paused = false;
TimestampTz feed_resumed = 0;

static void
ReadPause(CatalogRow *row, void *arg)
{
	PauseState *state = arg;
	bool isnull;

	state->paused = true;
	state->since = DatumGetTimestampTz(CatalogRowGet(row, "paused_at", &isnull));
	state->keeps_slot = DatumGetBool(CatalogRowGet(row, "keep_slot", &isnull));
}

bool
PauseRead(PauseState *state)
{
	memset(state, 0, sizeof(*state));
	state->keeps_slot = true;
	return CatalogScan("pause", ReadPause, state);
}

bool
PauseReload(void)
{
	PauseState state;
	const char *database;

	if (!PauseRead(&state))
		return false;
	if (state.paused == feed_paused)
		return true;
	feed_paused = state.paused;
	pg_atomic_write_u32(&feed_shared->paused, feed_paused ? 1 : 0);
	database = get_database_name(feed_shared->database);
	if (feed_paused)
		ereport(LOG, (errmsg("change feed of database \"%s\" is paused", database),
					  errdetail("Its clients are disconnected, and none are let in."),
					  errhint("SELECT changefeed.resume() in that database lets them come back.")));
	else
	{
		feed_resumed = feed_now;
		ereport(LOG, (errmsg("change feed of database \"%s\" is resumed", database)));
	}
	GatewaysPause();
	return true;
}
