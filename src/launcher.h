/*-------------------------------------------------------------------------
 *
 * launcher.h
 *		What the launcher looks up in shared catalogs and among the replication
 *		slots.
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

/* Drops our slots of a database; false: not all of them could be, try again. */
extern bool DropSlots(Oid database);

#endif /* CHANGEFEED_LAUNCHER_H */
