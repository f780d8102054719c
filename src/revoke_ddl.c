/*-------------------------------------------------------------------------
 *
 * revoke_ddl.c
 *		SQL functions that take rights away from clients, and that say what
 *		cannot be found out about these rights.
 *
 * A revocation takes effect with the commit, where the feed worker finds it
 * (revocations.c).  A declared dependency is as if the function had changed:
 * whatever has been found out about policies that call it is found out anew.
 *
 * Process: any backend.  Memory: CurrentMemoryContext of the call.  Locks: as
 * in ddl.h.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "ddl.h"

#include <ctype.h>

#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(changefeed_revoke);
PG_FUNCTION_INFO_V1(changefeed_declare_dependency);
PG_FUNCTION_INFO_V1(changefeed_undeclare_dependency);

/* ---- Revocations ---- */

/* Eight hexadecimal digits and a number, see RevocationsSession. */
static bool
IsSession(const char *session)
{
	Size length = strlen(session);

	return length > 8 && length <= 28 && strspn(session, "0123456789abcdef") >= 8 &&
		   strspn(session + 8, "0123456789") == length - 8;
}

/* revoke(role, claim, value, session, keep) */
Datum
changefeed_revoke(PG_FUNCTION_ARGS)
{
	DdlAccess access;
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz ends;
	Oid types[6] = {OIDOID, TEXTOID, TEXTOID, TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID};
	Datum values[6];
	char nulls[7] = "      ";
	int i;

	PreventCommandIfReadOnly("revoke()");
	if (!DdlOwnsDatabase())
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("must be owner of the database to revoke tokens")));
	if (!PG_ARGISNULL(0) + !PG_ARGISNULL(1) + !PG_ARGISNULL(3) != 1 ||
		PG_ARGISNULL(1) != PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("revoke needs a role, or a claim and its value, or a session"),
				 errhint("Use revoke(role => 'web'), revoke(claim => 'sub', value => 'u1') or "
						 "revoke(session => '...').")));
	DdlRequireArgument(fcinfo, 4, "keep");
	ends = DatumGetTimestampTz(
		DirectFunctionCall2(timestamptz_pl_interval, TimestampTzGetDatum(now), PG_GETARG_DATUM(4)));
	if (ends <= now)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("argument \"keep\" must be a positive interval"),
						errhint("Give the longest time that a token lives.")));
	if (!PG_ARGISNULL(0) && GetUserNameFromId(PG_GETARG_OID(0), true) == NULL)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
						errmsg("role with OID %u does not exist", PG_GETARG_OID(0))));
	if (!PG_ARGISNULL(3) && !IsSession(text_to_cstring(PG_GETARG_TEXT_PP(3))))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("\"%s\" is not a session", text_to_cstring(PG_GETARG_TEXT_PP(3))),
						errhint("Clients get theirs in the message \"connected\".")));

	for (i = 0; i < 4; i++)
	{
		values[i] = PG_ARGISNULL(i) ? (Datum) 0 : PG_GETARG_DATUM(i);
		if (PG_ARGISNULL(i))
			nulls[i] = 'n';
	}
	values[4] = TimestampTzGetDatum(now);
	values[5] = TimestampTzGetDatum(ends);
	DdlBegin(&access);
	(void) DdlWrite("DELETE FROM changefeed.revocation"
					" WHERE expires_at OPERATOR(pg_catalog.<=) pg_catalog.now()",
					0, NULL, NULL, NULL);
	(void) DdlWrite("INSERT INTO changefeed.revocation"
					" (role, claim, value, session, revoked_at, expires_at)"
					" VALUES ($1, $2, $3, $4, $5, $6)",
					6, types, values, nulls);
	DdlEnd(&access);
	PG_RETURN_VOID();
}

/* ---- Dependencies ---- */

static void
RequireOwner(Oid function, Oid relation)
{
	if (!SearchSysCacheExists1(PROCOID, ObjectIdGetDatum(function)))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_FUNCTION),
						errmsg("function with OID %u does not exist", function)));
	if (OidIsValid(relation) && !SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relation)))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE),
						errmsg("relation with OID %u does not exist", relation)));
	if (DdlOwnsDatabase())
		return;
	if (!compat_proc_ownercheck(function, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_FUNCTION, get_func_name(function));
	if (OidIsValid(relation) && !compat_relation_ownercheck(relation, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, get_relkind_objtype(get_rel_relkind(relation)),
					   get_rel_name(relation));
}

/* Only what is in the WAL can be noticed. */
static void
RequireTable(Oid relation)
{
	char relkind = get_rel_relkind(relation);

	if ((relkind != RELKIND_RELATION && relkind != RELKIND_PARTITIONED_TABLE &&
		 relkind != RELKIND_MATVIEW) ||
		get_rel_persistence(relation) != RELPERSISTENCE_PERMANENT || relation < FirstNormalObjectId)
		ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE),
						errmsg("\"%s\" is not a table whose changes can be noticed",
							   get_rel_name(relation)),
						errdetail("It has to be a permanent table, and not one of the system."),
						errhint("Declare the tables that are behind it.")));
}

/* Whatever depends on the function is looked at again after the commit. */
static void
TouchFunction(Oid function)
{
	Relation rel = table_open(ProcedureRelationId, AccessShareLock);
	HeapTuple tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));

	if (HeapTupleIsValid(tuple))
	{
		CacheInvalidateHeapTuple(rel, tuple, NULL);
		ReleaseSysCache(tuple);
	}
	table_close(rel, AccessShareLock);
}

/* declare_dependency(function, relation) */
Datum
changefeed_declare_dependency(PG_FUNCTION_ARGS)
{
	DdlAccess access;
	Oid types[2] = {TEXTOID, OIDOID};
	Datum values[2];
	char nulls[3] = "  ";
	Oid function;
	Oid relation = PG_ARGISNULL(1) ? InvalidOid : PG_GETARG_OID(1);

	PreventCommandIfReadOnly("declare_dependency()");
	DdlRequireArgument(fcinfo, 0, "function");
	function = PG_GETARG_OID(0);
	RequireOwner(function, relation);
	if (OidIsValid(relation))
		RequireTable(relation);

	values[0] = CStringGetTextDatum(format_procedure_qualified(function));
	values[1] = ObjectIdGetDatum(relation);
	if (!OidIsValid(relation))
		nulls[1] = 'n';
	DdlBegin(&access);
	/* Functions that are gone, whose names may come again. */
	(void) DdlWrite("DELETE FROM changefeed.dependency"
					" WHERE changefeed._function(function) IS NULL",
					0, NULL, NULL, NULL);
	(void) DdlWrite("INSERT INTO changefeed.dependency (function, relation) VALUES ($1, $2)"
					" ON CONFLICT DO NOTHING",
					2, types, values, nulls);
	DdlEnd(&access);
	TouchFunction(function);
	PG_RETURN_VOID();
}

/* undeclare_dependency(function, relation) */
Datum
changefeed_undeclare_dependency(PG_FUNCTION_ARGS)
{
	DdlAccess access;
	Oid types[2] = {TEXTOID, OIDOID};
	Datum values[2];
	char nulls[3] = "  ";
	Oid function;
	Oid relation = PG_ARGISNULL(1) ? InvalidOid : PG_GETARG_OID(1);

	PreventCommandIfReadOnly("undeclare_dependency()");
	DdlRequireArgument(fcinfo, 0, "function");
	function = PG_GETARG_OID(0);
	RequireOwner(function, relation);

	values[0] = CStringGetTextDatum(format_procedure_qualified(function));
	values[1] = ObjectIdGetDatum(relation);
	if (!OidIsValid(relation))
		nulls[1] = 'n';
	DdlBegin(&access);
	if (DdlWrite("DELETE FROM changefeed.dependency"
				 " WHERE function OPERATOR(pg_catalog.=) $1"
				 " AND relation::pg_catalog.oid IS NOT DISTINCT FROM $2",
				 2, types, values, nulls) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("dependency of function %s is not declared", format_procedure(function))));
	DdlEnd(&access);
	TouchFunction(function);
	PG_RETURN_VOID();
}
