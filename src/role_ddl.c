/*-------------------------------------------------------------------------
 *
 * role_ddl.c
 *		SQL functions about roles of clients, and tokens for development.
 *
 * A token's signature proves that its issuer wanted the client to be a role,
 * and allow_role says which roles an issuer may name at all.  Roles to which
 * row level security does not apply are never among them; that is checked
 * here, where a person can read the reason, and again for every token, since
 * roles change.
 *
 * Process: any backend.  Memory: CurrentMemoryContext of the call.  Locks: as
 * in ddl.h; pg_authid is read under AccessShareLock.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ddl.h"
#include "identity.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/jsonb.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(changefeed_allow_role);
PG_FUNCTION_INFO_V1(changefeed_disallow_role);
PG_FUNCTION_INFO_V1(changefeed_make_token);

/* What makes a role unfit for clients, or NULL. */
static const char *
RoleDanger(const FormData_pg_authid *role)
{
	if (role->rolsuper)
		return "SUPERUSER";
	if (role->rolbypassrls)
		return "BYPASSRLS";
	if (role->rolreplication)
		return "REPLICATION";
	switch (role->oid)
	{
		case ROLE_PG_READ_ALL_DATA:
		case ROLE_PG_WRITE_ALL_DATA:
		case ROLE_PG_READ_SERVER_FILES:
		case ROLE_PG_WRITE_SERVER_FILES:
		case ROLE_PG_EXECUTE_SERVER_PROGRAM:
			return "";
		default:
			return NULL;
	}
}

static void
RequireHarmlessRole(Oid role, const char *name)
{
	Relation rel = table_open(AuthIdRelationId, AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	HeapTuple tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		const FormData_pg_authid *form = (Form_pg_authid) GETSTRUCT(tuple);
		const char *danger = RoleDanger(form);

		/*
		 * Members count whether or not they inherit: what a client runs could
		 * SET ROLE.  The role itself counts as its member.
		 */
		if (danger == NULL || !is_member_of_role_nosuper(role, form->oid))
			continue;
		ereport(
			ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("role \"%s\" cannot be allowed for clients", name),
			 *danger == '\0'
				 ? (form->oid == role
						? errdetail("It may access all data or the server itself.")
						: errdetail(
							  "It is a member of \"%s\", which may access all data or the server itself.",
							  NameStr(form->rolname)))
				 : (form->oid == role
						? errdetail("It has the attribute %s.", danger)
						: errdetail("It is a member of \"%s\", which has the attribute %s.",
									NameStr(form->rolname), danger)),
			 errhint("Create a role for clients that has only the privileges that they need.")));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
}

static void
RequireSuperuser(const char *what)
{
	if (!superuser())
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("permission denied to call %s", what),
						errdetail("Only superusers may say which roles clients can have.")));
}

/* Rows of roles that were dropped, whose numbers may come again. */
static void
ForgetDroppedRoles(void)
{
	(void) DdlWrite("DELETE FROM changefeed.role r WHERE NOT EXISTS"
					" (SELECT FROM pg_catalog.pg_roles p"
					" WHERE p.oid OPERATOR(pg_catalog.=) r.role::pg_catalog.oid)",
					0, NULL, NULL, NULL);
}

/* allow_role(role) */
Datum
changefeed_allow_role(PG_FUNCTION_ARGS)
{
	DdlAccess access;
	Oid types[1] = {OIDOID};
	Datum values[1];
	char *name;
	Oid role;

	PreventCommandIfReadOnly("allow_role()");
	RequireSuperuser("allow_role");
	DdlRequireArgument(fcinfo, 0, "role");
	role = PG_GETARG_OID(0);
	name = GetUserNameFromId(role, true);
	if (name == NULL)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
						errmsg("role with OID %u does not exist", role)));
	RequireHarmlessRole(role, name);

	DdlLock();
	DdlBegin(&access);
	ForgetDroppedRoles();
	values[0] = ObjectIdGetDatum(role);
	(void) DdlWrite("INSERT INTO changefeed.role (role) VALUES ($1) ON CONFLICT DO NOTHING", 1,
					types, values, NULL);
	DdlEnd(&access);
	PG_RETURN_VOID();
}

/* disallow_role(role) */
Datum
changefeed_disallow_role(PG_FUNCTION_ARGS)
{
	DdlAccess access;
	Oid types[1] = {OIDOID};
	Datum values[1];
	Oid role;

	PreventCommandIfReadOnly("disallow_role()");
	RequireSuperuser("disallow_role");
	DdlRequireArgument(fcinfo, 0, "role");
	role = PG_GETARG_OID(0);

	DdlLock();
	DdlBegin(&access);
	values[0] = ObjectIdGetDatum(role);
	if (DdlWrite("DELETE FROM changefeed.role WHERE role::pg_catalog.oid OPERATOR(pg_catalog.=) $1",
				 1, types, values, NULL) == 0)
	{
		char *name = GetUserNameFromId(role, true);

		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("role \"%s\" is not allowed for clients",
														   name ? name : psprintf("%u", role))));
	}
	ForgetDroppedRoles();
	DdlEnd(&access);
	PG_RETURN_VOID();
}

/* Whole seconds since 1970, as in the claims of a token. */
static int64
EpochSeconds(TimestampTz time)
{
	if (TIMESTAMP_NOT_FINITE(time))
		ereport(ERROR, (errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
						errmsg("the time of expiry is out of range")));
	return (time - SetEpochTimestamp()) / USECS_PER_SEC;
}

/* make_token(claims, expires_in); who may execute it is left to its privileges. */
Datum
changefeed_make_token(PG_FUNCTION_ARGS)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz expires;
	Jsonb *claims;
	Datum defaults;
	char *token;

	DdlRequireArgument(fcinfo, 0, "claims");
	DdlRequireArgument(fcinfo, 1, "expires_in");
	claims = PG_GETARG_JSONB_P(0);
	if (!JB_ROOT_IS_OBJECT(claims))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("claims must be a JSON object")));

	expires = DatumGetTimestampTz(
		DirectFunctionCall2(timestamptz_pl_interval, TimestampTzGetDatum(now), PG_GETARG_DATUM(1)));
	defaults = DirectFunctionCall1(
		jsonb_in, CStringGetDatum(psprintf("{\"iat\": " INT64_FORMAT ", \"exp\": " INT64_FORMAT "}",
										   EpochSeconds(now), EpochSeconds(expires))));

	/* What the caller gave wins. */
	claims = DatumGetJsonbP(DirectFunctionCall2(jsonb_concat, defaults, JsonbPGetDatum(claims)));
	token = JwtSign(JsonbToCString(NULL, &claims->root, VARSIZE(claims)));
	PG_RETURN_TEXT_P(cstring_to_text(token));
}
