/*-------------------------------------------------------------------------
 *
 * version.h
 *		The version of the extension in a database, and that of the library.
 *
 * The library is as new as the server's start, the extension as new as its last
 * ALTER EXTENSION UPDATE in that database.  A library serves the extension of its
 * own version and older ones back to CHANGEFEED_OLDEST_VERSION; of others it
 * runs no feed, as it does not know their tables.
 *
 * Process: any that is connected to a database, in a transaction.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_VERSION_H
#define CHANGEFEED_VERSION_H

#include "postgres.h"

/* As in pg_extension, palloced; NULL: the database does not have the extension. */
extern char *VersionOfExtension(void);

/* < 0, 0, > 0, as strcmp; by numbers that points are between. */
extern int VersionCompare(const char *a, const char *b);

/* May the library serve it?  `version` (or NULL) gets the extension's. */
extern bool VersionMatches(char **version);

/* For the feed worker at its start: an error if not, a line in the log if it is old. */
extern void VersionCheck(const char *database);

/* For scripts of the extension: an error if they are of a newer version. */
extern void VersionCheckScript(void);

#endif /* CHANGEFEED_VERSION_H */
