/*-------------------------------------------------------------------------
 *
 * launcher_scan.c
 *		Looking into databases for the extension: one short-lived worker after
 *		the other, so that one worker slot is enough.
 *
 * A scan reports by a request to the launcher (SharedReportExtension).  One
 * that ends without having done so, because it was stuck behind a lock and
 * was terminated or because something failed, is repeated later: nobody else
 * would ever notice that the database has the extension.
 *
 * Process: launcher; ChangefeedScanMain in a worker of its own.
 *
 * Locks: none.  Memory: the queues are in LauncherContext.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "launcher.h"
#include "shared.h"

#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "tcop/tcopprot.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define SCAN_LONGEST_MS	   60000
#define RETRY_RESOURCES_MS 5000
#define RETRY_FIRST_MS	   1000 /* it did not report: 1 s, 2 s, 4 s, ... */
#define RETRY_MOST_MS	   30000

static List *queue = NIL; /* of Oid */
static List *again = NIL; /* of Oid: those that did not report */
static TimestampTz again_at = 0;
static int failures = 0; /* since one reported */

/* The one that runs, and what it looks into. */
static BackgroundWorkerHandle *handle = NULL;
static Oid current = InvalidOid;
static bool reported = false;
static TimestampTz started = 0;

static TimestampTz next_try = 0; /* when a worker slot may be free */
static bool complained = false;

void
ScanQueue(Oid database)
{
	MemoryContext old_context = MemoryContextSwitchTo(LauncherContext);

	queue = list_append_unique_oid(queue, database);
	MemoryContextSwitchTo(old_context);
}

void
ScanQueueAll(void)
{
	ListCell *lc;

	foreach(lc, ListDatabases())
	{
		DatabaseInfo *info = (DatabaseInfo *) lfirst(lc);

		if (CanHaveFeed(info) && LauncherFindEntry(info->oid) < 0)
			ScanQueue(info->oid);
	}
}

void
ScanReported(Oid database)
{
	if (database == current)
		reported = true;
}

static void
TendCurrent(TimestampTz now)
{
	MemoryContext old_context;

	if (!LauncherHasEnded(handle))
	{
		/* Stuck, behind a lock perhaps: it must not hold up the others. */
		if (now >= TimestampTzPlusMilliseconds(started, SCAN_LONGEST_MS))
		{
			TerminateBackgroundWorker(handle);
			started = now;
		}
		return;
	}
	pfree(handle);
	handle = NULL;

	/* Its report, if it made one, was there before it ended. */
	LauncherTakeRequests();
	if (reported)
		failures = 0;
	else
	{
		old_context = MemoryContextSwitchTo(LauncherContext);
		again = list_append_unique_oid(again, current);
		MemoryContextSwitchTo(old_context);
		again_at = TimestampTzPlusMilliseconds(
			now, Min(RETRY_FIRST_MS << Min(failures, 10), RETRY_MOST_MS));
		failures++;
	}
	current = InvalidOid;
}

void
ScanTend(void)
{
	TimestampTz now = MonotonicTime();

	if (handle != NULL)
		TendCurrent(now);
	if (handle != NULL)
		return;

	if (again != NIL && now >= again_at)
	{
		ListCell *lc;

		foreach(lc, again)
			ScanQueue(lfirst_oid(lc));
		list_free(again);
		again = NIL;
	}

	while (queue != NIL && handle == NULL && now >= next_try)
	{
		Oid database = linitial_oid(queue);
		DatabaseInfo *info = LookUpDatabase(database);

		if (CanHaveFeed(info) && !LauncherIsWanted(database))
		{
			handle = LauncherStartWorker("changefeed scan", "ChangefeedScanMain",
										 ObjectIdGetDatum(database), 0, info->name);
			if (handle == NULL)
			{
				if (!complained)
					ereport(
						LOG,
						(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
						 errmsg(
							 "could not look for change feeds in database \"%s\": all background worker slots are in use",
							 info->name),
						 errhint(
							 "Set max_worker_processes (now %d) to at least %d in postgresql.conf and restart the server.",
							 max_worker_processes,
							 max_worker_processes + 1 + LauncherMissingWorkers(0))));
				complained = true;
				next_try = TimestampTzPlusMilliseconds(now, RETRY_RESOURCES_MS);
				return;
			}
			current = database;
			reported = false;
			started = now;
			complained = false;
		}
		queue = list_delete_first(queue);
	}
}

TimestampTz
ScanNextDue(void)
{
	TimestampTz due = 0;

	/* The end of a worker is said by the postmaster. */
	if (handle != NULL)
		return TimestampTzPlusMilliseconds(started, SCAN_LONGEST_MS);
	if (queue != NIL)
		due = next_try;
	if (again != NIL && (due == 0 || again_at < due))
		due = again_at;
	return due;
}

/* Looks whether one database has the extension, and ends. */
void
ChangefeedScanMain(Datum main_arg)
{
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();

	BackgroundWorkerInitializeConnectionByOid(DatumGetObjectId(main_arg), InvalidOid, 0);
	(void) SharedReportExtension();
	proc_exit(0);
}
