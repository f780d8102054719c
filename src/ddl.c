/*-------------------------------------------------------------------------
 *
 * ddl.c
 *		How the SQL functions get at the extension's tables.  See ddl.h.
 *
 * Process: any backend.  Memory and locks: see ddl.h.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ddl.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "fmgr.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"


static Oid
CatalogTable(const char *name)
{
	Oid relid = get_relname_relid(name, get_namespace_oid(CHANGEFEED_SCHEMA, false));

	if (!OidIsValid(relid))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE),
						errmsg("table \"%s.%s\" does not exist", CHANGEFEED_SCHEMA, name)));
	return relid;
}

/*
 * An error on the way needs no clean-up here: the end of the (sub)transaction
 * restores the user and ends SPI.
 */
void
DdlBegin(DdlAccess *access)
{
	Oid relid = CatalogTable("source");
	HeapTuple tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Oid owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", relid);
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);

	GetUserIdAndSecContext(&access->user, &access->security_context);
	SetUserIdAndSecContext(owner, access->security_context | SECURITY_LOCAL_USERID_CHANGE);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
}

void
DdlEnd(DdlAccess *access)
{
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
	SetUserIdAndSecContext(access->user, access->security_context);
}

void
DdlLock(void)
{
	LockRelationOid(CatalogTable("channel"), ShareRowExclusiveLock);
}

uint64
DdlRead(const char *sql, int nargs, Oid *types, Datum *values)
{
	int result;

	PushActiveSnapshot(GetLatestSnapshot());
	result = SPI_execute_with_args(sql, nargs, types, values, NULL, true, 0);
	PopActiveSnapshot();
	if (result != SPI_OK_SELECT)
		elog(ERROR, "could not read the channel catalog: %s", SPI_result_code_string(result));
	return SPI_processed;
}

uint64
DdlWrite(const char *sql, int nargs, Oid *types, Datum *values, const char *nulls)
{
	int result = SPI_execute_with_args(sql, nargs, types, values, nulls, false, 0);

	if (result < 0)
		elog(ERROR, "could not write the channel catalog: %s", SPI_result_code_string(result));
	return SPI_processed;
}

void
DdlRequireArgument(FunctionCallInfo fcinfo, int argno, const char *name)
{
	if (PG_ARGISNULL(argno))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("argument \"%s\" must not be null", name)));
}

bool
DdlOwnsDatabase(void)
{
	HeapTuple tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(MyDatabaseId));
	Oid owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for database %u", MyDatabaseId);
	owner = ((Form_pg_database) GETSTRUCT(tuple))->datdba;
	ReleaseSysCache(tuple);
	return has_privs_of_role(GetUserId(), owner);
}
