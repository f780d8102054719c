/*-------------------------------------------------------------------------
 *
 * version.c
 *		The version of the extension in a database, and that of the library.
 *		See version.h.
 *
 * Process: any.  Memory: the current context.  Locks: AccessShareLock on
 * pg_extension.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "pg_changefeed.h"
#include "version.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_extension.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"

char *
VersionOfExtension(void)
{
	Relation rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple tuple;
	char *version = NULL;

	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber, F_NAMEEQ,
				CStringGetDatum(CHANGEFEED_EXTENSION));
	scan = systable_beginscan(rel, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool isnull;
		Datum value = heap_getattr(tuple, Anum_pg_extension_extversion, RelationGetDescr(rel),
								   &isnull);

		version = isnull ? pstrdup("") : TextDatumGetCString(value);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return version;
}

int
VersionCompare(const char *a, const char *b)
{
	while (*a != '\0' || *b != '\0')
	{
		char *a_end;
		char *b_end;
		unsigned long x = strtoul(a, &a_end, 10);
		unsigned long y = strtoul(b, &b_end, 10);

		if (x != y)
			return x < y ? -1 : 1;

		/* What is no number counts as text. */
		if ((a_end == a && *a != '\0') || (b_end == b && *b != '\0'))
			return strcmp(a, b);
		a = *a_end == '.' ? a_end + 1 : a_end;
		b = *b_end == '.' ? b_end + 1 : b_end;
	}
	return 0;
}

bool
VersionMatches(char **version)
{
	char *found = VersionOfExtension();

	if (version != NULL)
		*version = found;
	return found == NULL || (VersionCompare(found, CHANGEFEED_VERSION) <= 0 &&
							 VersionCompare(found, CHANGEFEED_OLDEST_VERSION) >= 0);
}

void
VersionCheck(const char *database)
{
	char *version;

	if (!VersionMatches(&version))
	{
		bool newer = VersionCompare(version, CHANGEFEED_VERSION) > 0;

		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg(
				 "change feed of database \"%s\" does not start: extension and library do not fit",
				 database),
			 errdetail("The extension is of version %s, the library of version %s.", version,
					   CHANGEFEED_VERSION),
			 newer
				 ? errhint(
					   "Install pg_changefeed %s or newer, and restart the server, so that it loads the library.",
					   version)
				 : errhint("Run ALTER EXTENSION pg_changefeed UPDATE in that database.")));
	}
	if (version != NULL && VersionCompare(version, CHANGEFEED_VERSION) < 0)
		ereport(
			LOG,
			(errmsg(
				 "extension pg_changefeed of database \"%s\" is of version %s, the library of version %s",
				 database, version, CHANGEFEED_VERSION),
			 errhint("Run ALTER EXTENSION pg_changefeed UPDATE in that database.")));
}

void
VersionCheckScript(void)
{
	char *version = VersionOfExtension();

	if (version != NULL && VersionCompare(version, CHANGEFEED_VERSION) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("extension pg_changefeed %s needs a newer library", version),
				 errdetail("The server has loaded the library of version %s.", CHANGEFEED_VERSION),
				 errhint("Restart the server, so that it loads the installed library.")));
}
