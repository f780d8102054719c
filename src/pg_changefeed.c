/*-------------------------------------------------------------------------
 *
 * pg_changefeed.c
 *		Loading of the library, and what the server has to be set to.
 *
 * The library works as a whole only when it is preloaded: it needs shared
 * memory, a launcher, and a callback in every backend.  Loaded later, by a
 * call of one of its functions, it defines its settings and otherwise does
 * nothing; the functions that need more say so (RequirePreload).
 *
 * Process: postmaster (_PG_init while preloading), any backend otherwise.
 * Locks: none.  Memory: messages only, in the caller's context.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "pg_changefeed.h"
#include "shared.h"
#include "version.h"

#include "access/xlog.h"
#include "commands/dbcommands.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "replication/slot.h"
#include "utils/builtins.h"
#include "utils/guc.h"

COMPAT_MODULE_MAGIC(CHANGEFEED_LIBRARY, CHANGEFEED_VERSION);

#define LAUNCHER_RESTART_SECONDS 5

PG_FUNCTION_INFO_V1(changefeed_check_requirements);

static void
RegisterLauncher(void)
{
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = LAUNCHER_RESTART_SECONDS;
	strlcpy(worker.bgw_library_name, CHANGEFEED_LIBRARY, sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "ChangefeedLauncherMain", sizeof(worker.bgw_function_name));
	strlcpy(worker.bgw_name, "changefeed launcher", sizeof(worker.bgw_name));
	strlcpy(worker.bgw_type, "changefeed launcher", sizeof(worker.bgw_type));
	RegisterBackgroundWorker(&worker);
}

extern PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	SettingsDefine();

	/* pg_upgrade wants to be alone in its databases. */
	if (IsBinaryUpgrade || !process_shared_preload_libraries_in_progress)
		return;

	SharedMemoryRequest();
	HooksInstall();
	RegisterLauncher();
}

/* The line that postgresql.conf has to have, with what is loaded now kept. */
static char *
PreloadLine(void)
{
	const char *current = GetConfigOption("shared_preload_libraries", true, false);
	StringInfoData line;

	initStringInfo(&line);
	appendStringInfoString(&line, "shared_preload_libraries = '");
	for (const char *p = current; p != NULL && *p != '\0'; p++)
	{
		if (*p == '\'')
			appendStringInfoChar(&line, '\'');
		appendStringInfoChar(&line, *p);
	}
	if (current != NULL && current[strspn(current, " ")] != '\0')
		appendStringInfoString(&line, ", ");
	appendStringInfoString(&line, CHANGEFEED_LIBRARY "'");
	return line.data;
}

void
RequirePreload(void)
{
	if (shared_feeds == NULL)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("pg_changefeed was not loaded when the server started"),
						errhint("Set this in postgresql.conf, then restart the server: %s",
								PreloadLine())));
}

/*
 * Called first by the install script, so that CREATE EXTENSION fails with
 * everything that is missing at once: each restart of a server counts.  Scripts
 * that update the extension call it first, too.
 */
Datum
changefeed_check_requirements(PG_FUNCTION_ARGS)
{
	StringInfoData detail;
	StringInfoData lines;
	int nmissing = 0;

	VersionCheckScript();
	if (GetDatabaseEncoding() != PG_UTF8)
		ereport(
			ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("pg_changefeed needs a database with encoding UTF8"),
			 errdetail("The encoding of database \"%s\" is %s.", get_database_name(MyDatabaseId),
					   GetDatabaseEncodingName()),
			 errhint(
				 "Create a database with ENCODING 'UTF8' TEMPLATE template0 and move the data there.")));

	initStringInfo(&detail);
	initStringInfo(&lines);
	if (shared_feeds == NULL)
	{
		appendStringInfoString(&detail,
							   "The library pg_changefeed was not loaded when the server started.");
		appendStringInfo(&lines, "\n%s", PreloadLine());
		nmissing++;
	}
	if (wal_level < WAL_LEVEL_LOGICAL)
	{
		appendStringInfo(&detail, "%swal_level is \"%s\".", nmissing > 0 ? "\n" : "",
						 GetConfigOption("wal_level", false, false));
		appendStringInfoString(&lines, "\nwal_level = logical");
		nmissing++;
	}
	if (max_replication_slots == 0)
	{
		appendStringInfo(&detail, "%smax_replication_slots is 0.", nmissing > 0 ? "\n" : "");
		appendStringInfoString(&lines, "\nmax_replication_slots = 10");
		nmissing++;
	}

	if (nmissing > 0)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg_plural("pg_changefeed needs a setting of the server that is missing",
									  "pg_changefeed needs settings of the server that are missing",
									  nmissing),
						errdetail_internal("%s", detail.data),
						errhint("Set in postgresql.conf, then restart the server:%s", lines.data)));

	PG_RETURN_VOID();
}
