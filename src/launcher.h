/*-------------------------------------------------------------------------
 *
 * launcher.h
 *		The launcher's parts: what it looks up in shared catalogs and among the
 *		replication slots, and its scans of databases.
 *
 * Process: launcher.  Memory: results are in the context that is current at
 * the call, and stay current, which transaction commands do not see to by
 * themselves.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_LAUNCHER_H
#define CHANGEFEED_LAUNCHER_H

#include "pg_changefeed.h"

#include "access/xlogdefs.h"
#include "datatype/timestamp.h"
#include "nodes/pg_list.h"

typedef struct DatabaseInfo
{
	Oid oid;
	char *name;
	bool is_template;
	bool allows_connections;
} DatabaseInfo;

typedef struct SlotInfo
{
	NameData name;
	Oid database;
	bool active;
	XLogRecPtr restart_lsn;
} SlotInfo;

/* All databases (DatabaseInfo) but those that are half dropped. */
extern List *ListDatabases(void);

/* NULL: there is no such database. */
extern DatabaseInfo *LookUpDatabase(Oid database);

/* For messages: the OID as text when there is no such database. */
extern const char *DatabaseName(Oid database);

/* Not so for template databases and those that nobody may connect to. */
extern bool CanHaveFeed(const DatabaseInfo *info);

/* Our slots (SlotInfo), of one database or of all (InvalidOid). */
extern List *ListSlots(Oid database);

/*
 * launcher.c, for launcher_scan.c.  An entry's index, or -1; whether workers
 * are to run for the database; a worker that is never restarted, or NULL; how
 * many worker slots are missing for those that wait, less `started`.
 */
struct BackgroundWorkerHandle;
extern MemoryContext LauncherContext; /* as long as the process */
extern int LauncherFindEntry(Oid database);
extern bool LauncherIsWanted(Oid database);
extern struct BackgroundWorkerHandle *
LauncherStartWorker(const char *type, const char *function, Datum main_arg, uint32 generation,
					const char *database_name);
extern bool LauncherHasEnded(struct BackgroundWorkerHandle *handle);
extern int LauncherMissingWorkers(int started);
extern void LauncherTakeRequests(void);

/* launcher_scan.c: looking into databases for the extension */
extern void ScanQueue(Oid database);
extern void ScanQueueAll(void);

/* It is known whether that database has it. */
extern void ScanReported(Oid database);

/* Starts the next one if none runs; looks after the one that does. */
extern void ScanTend(void);

/* When ScanTend has to be called at the latest; 0: no time. */
extern TimestampTz ScanNextDue(void);

/* Drops our slots of a database; false: not all of them could be, try again. */
extern bool DropSlots(Oid database);

#endif /* CHANGEFEED_LAUNCHER_H */
