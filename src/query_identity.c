/*-------------------------------------------------------------------------
 *
 * query_identity.c
 *		Becoming the subscriber: which roles may be entered, what a session of
 *		theirs would have been set to, and the way in and out.
 *
 * Between QueryEnterIdentity and the end of the transaction (of calls:
 * QueryLeaveIdentity) the process is that role, with its claims, and with the
 * means to become somebody else disabled.  Roles that row security does not
 * apply to are refused; that is checked again whenever a role or a membership
 * changes.
 *
 * Process: query workers, and backends that explain.  Locks: AccessShareLock
 * on pg_authid and pg_db_role_setting while they are read.  Memory: claims and
 * search_path live as long as the transaction, what is known of roles as long
 * as the process.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "query_internal.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_db_role_setting.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/rel.h"
#include "utils/syscache.h"

/* What may become of a role, as long as no role changes. */
typedef struct RoleCheck
{
	Oid role; /* hash key */
	bool allowed;
} RoleCheck;

static bool in_worker;
static char *default_search_path;
static HTAB *role_checks;
static bool role_checks_valid;

/* What QueryLeaveIdentity goes back to. */
static const char *identity_claims; /* in the transaction's memory */
static Oid identity_role;
static Oid identity_left;
static int identity_left_context;
static int identity_nestlevel;

/* The search_path of one role, for the transaction that it was read in. */
static Oid search_path_role;
static char *search_path_value;

/* ---- Roles ---- */

static void
RolesChanged(Datum arg, int cacheid, uint32 hashvalue)
{
	role_checks_valid = false;
}

/*
 * Is the role, or one that it can become, free of row security or able to
 * change what others see?
 */
static bool
RoleIsPowerful(Oid role)
{
	Relation rel = table_open(AuthIdRelationId, AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	HeapTuple tuple;
	bool found = false;

	while (!found && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_authid form = (Form_pg_authid) GETSTRUCT(tuple);

		if (form->rolsuper || form->rolbypassrls || form->rolreplication)
			found = is_member_of_role_nosuper(role, form->oid);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}

static void
CheckRole(Oid role)
{
	RoleCheck *check;
	bool found;

	if (!role_checks_valid)
	{
		HASHCTL ctl = {0};

		if (role_checks != NULL)
			hash_destroy(role_checks);
		ctl.keysize = sizeof(Oid);
		ctl.entrysize = sizeof(RoleCheck);
		ctl.hcxt = TopMemoryContext;
		role_checks = hash_create("changefeed role checks", 32, &ctl,
								  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
		role_checks_valid = true;
	}

	check = hash_search(role_checks, &role, HASH_FIND, NULL);
	if (check == NULL)
	{
		bool allowed;

		if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(role)))
			ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
							errmsg("role with OID %u does not exist", role)));
		allowed = !RoleIsPowerful(role);
		check = hash_search(role_checks, &role, HASH_ENTER, &found);
		check->allowed = allowed;
	}
	if (!check->allowed)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\" must not read feeds", GetUserNameFromId(role, true)),
				 errdetail(
					 "It is, or is a member of, a role with SUPERUSER, BYPASSRLS or REPLICATION."),
				 errhint("Use a role that row security applies to.")));
}

/* ---- Settings ---- */

/* The setting in one row of pg_db_role_setting, or NULL. */
static char *
StoredSetting(Relation rel, Oid database, Oid role, const char *name)
{
	Size length = strlen(name);
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple tuple;
	char *value = NULL;

	ScanKeyInit(&keys[0], Anum_pg_db_role_setting_setdatabase, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(database));
	ScanKeyInit(&keys[1], Anum_pg_db_role_setting_setrole, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(role));
	scan = systable_beginscan(rel, DbRoleSettingDatidRolidIndexId, true, NULL, 2, keys);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool isnull;
		Datum datum = heap_getattr(tuple, Anum_pg_db_role_setting_setconfig, RelationGetDescr(rel),
								   &isnull);

		if (!isnull)
		{
			Datum *elements;
			bool *nulls;
			int n;
			int i;

			deconstruct_array(DatumGetArrayTypeP(datum), TEXTOID, -1, false, TYPALIGN_INT,
							  &elements, &nulls, &n);
			for (i = 0; i < n && value == NULL; i++)
			{
				char *item;

				if (nulls[i])
					continue;
				item = TextDatumGetCString(elements[i]);
				if (pg_strncasecmp(item, name, length) == 0 && item[length] == '=')
					value = item + length + 1;
			}
		}
	}
	systable_endscan(scan);
	return value;
}

/*
 * The order is that of process_settings, which a session of the role would
 * have gone through.  There is no cache and no invalidation for this catalog.
 */
char *
QueryRoleSetting(Oid role, const char *name)
{
	Relation rel = table_open(DbRoleSettingRelationId, AccessShareLock);
	char *value = StoredSetting(rel, MyDatabaseId, role, name);

	if (value == NULL)
		value = StoredSetting(rel, InvalidOid, role, name);
	if (value == NULL)
		value = StoredSetting(rel, MyDatabaseId, InvalidOid, name);
	if (value == NULL)
		value = StoredSetting(rel, InvalidOid, InvalidOid, name);
	table_close(rel, AccessShareLock);
	return value;
}

void
QuerySetLocal(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_SUSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0,
							 false);
}
void
QueryForgetSearchPath(void)
{
	search_path_role = InvalidOid;
}

const char *
QuerySearchPath(Oid role)
{
	if (search_path_role != role)
	{
		MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
		char *value = QueryRoleSetting(role, "search_path");

		search_path_value = value != NULL ? value : default_search_path;
		search_path_role = role;
		MemoryContextSwitchTo(old);
	}
	return search_path_value;
}

/*
 * What sessions have whose role and database say nothing: the value of the
 * configuration file.  The worker's session user may hide it by a setting of
 * his own; then it is the built-in one.
 */
static void
FindDefaultSearchPath(void)
{
	Relation rel;
	Oid user = GetSessionUserId();
	const char *value = GetConfigOption("search_path", false, false);

	StartTransactionCommand();
	rel = table_open(DbRoleSettingRelationId, AccessShareLock);
	if (StoredSetting(rel, MyDatabaseId, user, "search_path") != NULL ||
		StoredSetting(rel, InvalidOid, user, "search_path") != NULL)
		value = "\"$user\", public";
	default_search_path = MemoryContextStrdup(TopMemoryContext, value);
	table_close(rel, AccessShareLock);

	/*
	 * In a background worker it has no value that the end of a transaction
	 * could go back to: whose identity was entered would be ours from then on.
	 */
	SetConfigOption("session_authorization", GetUserNameFromId(user, false), PGC_BACKEND,
					PGC_S_OVERRIDE);
	CommitTransactionCommand();
	MemoryContextSwitchTo(TopMemoryContext);
}

/* ---- In and out ---- */

void
QueryIdentityInit(void)
{
	in_worker = true;
	FindDefaultSearchPath();
	CacheRegisterSyscacheCallback(AUTHOID, RolesChanged, (Datum) 0);
	CacheRegisterSyscacheCallback(AUTHMEMROLEMEM, RolesChanged, (Datum) 0);
}

void
QueryInitBackend(MemoryContext context)
{
	static bool initialized = false;

	/* A query worker has all of it, and the context of its job. */
	if (in_worker)
		return;
	if (!initialized)
	{
		const char *value = GetConfigOptionResetString("search_path");

		/* What the session began with, unless it was the user's own. */
		if (QueryRoleSetting(GetSessionUserId(), "search_path") != NULL)
			value = "\"$user\", public";
		default_search_path = MemoryContextStrdup(TopMemoryContext, value);
		PolicyInit();
		initialized = true;
	}
	QueryForgetSearchPath();
	query_job_context = context;
}

void
QueryNoteIdentity(Oid role, const char *claims)
{
	identity_claims = MemoryContextStrdup(TopTransactionContext, claims);
	identity_role = role;
}

void
QueryChangeClaims(const char *claims)
{
	/* Policies may cast this to json, which an empty text does not survive. */
	QueryNoteIdentity(identity_role, claims[0] != '\0' ? claims : "{}");
	QuerySetLocal("request.jwt.claims", identity_claims);
}

/*
 * The worker's pinned output settings hold in here too, as they are settings
 * of its session and roles' own settings are not applied, search_path apart.
 * Whoever writes output forces them again (EncodePinnedBegin).
 */
void
QueryEnterIdentity(Oid role, const char *claims)
{
	CheckRole(role);

	/* The setting "role" changes the user, too. */
	GetUserIdAndSecContext(&identity_left, &identity_left_context);
	QuerySetLocal("search_path", QuerySearchPath(role));
	QuerySetLocal("row_security", "on");
	identity_role = role;
	QueryChangeClaims(claims);
	/* For those who ask session_user or current_setting('role'). */
	QuerySetLocal("session_authorization", GetUserNameFromId(role, false));
	QuerySetLocal("role", GetUserNameFromId(role, false));

	/*
	 * From here on nothing can become another role again: SET ROLE and SET
	 * SESSION AUTHORIZATION are refused while the user ID was changed locally.
	 */
	SetUserIdAndSecContext(role, identity_left_context | SECURITY_LOCAL_USERID_CHANGE |
									 SECURITY_RESTRICTED_OPERATION);
	identity_nestlevel = NewGUCNestLevel();
}

bool
QueryIdentityIsIntact(void)
{
	const char *claims = GetConfigOption("request.jwt.claims", true, false);
	const char *role = GetConfigOption("role", true, false);

	return GetUserId() == identity_role && claims != NULL && strcmp(claims, identity_claims) == 0 &&
		   role != NULL && strcmp(role, GetUserNameFromId(identity_role, false)) == 0;
}

/*
 * Deferred triggers, and temporary tables, are not to be had where operations
 * are restricted; what that keeps from outliving the transaction is seen to by
 * ForgetTemporary in query_call.c.
 */
void
QueryEnterCaller(Oid role, const char *claims)
{
	QueryEnterIdentity(role, claims);
	SetUserIdAndSecContext(role, identity_left_context | SECURITY_LOCAL_USERID_CHANGE);
}

/* As a session of the role, which can become what it is a member of. */
void
QueryEnterOperator(Oid role, const char *claims)
{
	QueryEnterIdentity(role, claims);
	SetUserIdAndSecContext(role, identity_left_context);
}

/*
 * The order is that of CommitTransaction, and the reason is its: each may make
 * work for the other.
 */
void
QueryLeaveIdentity(void)
{
	do
		AfterTriggerFireDeferred();
	while (PreCommit_Portals(false));
	AtEOXact_GUC(false, identity_nestlevel);
	SetUserIdAndSecContext(identity_left, identity_left_context);

	/* Whoever was cancelled and went on has nothing to show for it. */
	CHECK_FOR_INTERRUPTS();
	if (QueryTimedOut())
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED), errmsg("canceling call due to its time limit")));
}
