/*-------------------------------------------------------------------------
 *
 * identity.c
 *		From a token to an identity: a database role and reduced claims.
 *
 * The role has to exist, to be admitted by allow_role, and to have no way to
 * rights that row level security does not bind: it must not be, and must not
 * be a direct or indirect member of, a role with SUPERUSER, BYPASSRLS or
 * REPLICATION or one of the predefined roles in forbidden_roles.  Memberships
 * count whatever their options say (NOINHERIT; INHERIT, SET and ADMIN from 16
 * on): with each of them the rights are at most a SET ROLE or a GRANT away.
 *
 * The hash of an identity changes with everything in pg_authid and
 * pg_auth_members that can change what the role may do, so it tells whether
 * verdicts that were found for an identity still hold.  Rows go in with their
 * xmin, and in sorted order: the same catalogs give the same hash in every
 * process and after a restart.
 *
 * Process: feed worker, and backends for SQL functions.  A transaction is
 * needed.  Memory: results in CurrentMemoryContext.  Locks: those of catalog
 * look-ups.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include <openssl/err.h>
#include <openssl/evp.h>

#include "access/htup_details.h"
#include "catalog/pg_auth_members.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/catcache.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/syscache.h"

#include "identity.h"
#include "query_internal.h"
#include "revocations.h"

/*
 * Longest text of claims.  A token of 16 kB can stand for much more: numbers
 * such as 1e-16000 are written out.
 */
#define MAX_CLAIMS (64 * 1024)

/* Predefined roles that see all data, or that get at the server itself. */
static const Oid forbidden_roles[] = {
	ROLE_PG_READ_ALL_DATA,			/* SELECT on everything */
	ROLE_PG_WRITE_ALL_DATA,			/* and the rest */
	ROLE_PG_READ_SERVER_FILES,		/* the files of all tables, and our keys */
	ROLE_PG_WRITE_SERVER_FILES,		/* pg_hba.conf */
	ROLE_PG_EXECUTE_SERVER_PROGRAM, /* a shell as the server's user */
};

/*
 * A row of pg_authid (roleid and grantor are zero) or of pg_auth_members, as
 * far as it matters to the hash.  No padding: rows are hashed as bytes.
 */
typedef struct RoleRow
{
	Oid member;
	Oid roleid;
	Oid grantor;
	TransactionId xmin;
	uint64 attributes;
} RoleRow;

StaticAssertDecl(sizeof(RoleRow) == 4 * sizeof(uint32) + sizeof(uint64),
				 "RoleRow must not have padding");

PG_FUNCTION_INFO_V1(changefeed_identify);

/* ----------------------------------------------------------------------
 * Errors
 * ---------------------------------------------------------------------- */

static bool
Refuse(JwtResult *error, const char *sqlstate, const char *message, const char *hint)
{
	memset(error, 0, sizeof(*error));
	error->sqlstate = sqlstate;
	error->message = message;
	error->hint = hint;
	return false;
}

/*
 * One message for every reason, so that a client does not learn which roles
 * exist.  `reason` is for the log of an administrator who wonders.
 */
static bool
RefuseRole(JwtResult *error, const char *name, const char *reason)
{
	int length = pg_mbcliplen(name, strlen(name), NAMEDATALEN - 1);
	char *shown = pnstrdup(name, length);

	ereport(DEBUG1, (errmsg_internal("changefeed: role \"%s\" is refused: %s", shown, reason)));
	return Refuse(error, "42501", psprintf("role \"%s\" is not allowed to subscribe", shown),
				  psprintf("An administrator can admit it: SELECT changefeed.allow_role(%s).",
						   quote_literal_cstr(shown)));
}

/* ----------------------------------------------------------------------
 * Roles
 * ---------------------------------------------------------------------- */

static void
AppendRow(StringInfo rows, Oid member, Oid roleid, Oid grantor, HeapTuple tuple, uint64 attributes)
{
	RoleRow row;

	row.member = member;
	row.roleid = roleid;
	row.grantor = grantor;
	/* The raw one: VACUUM's freezing is not a change. */
	row.xmin = tuple != NULL ? HeapTupleHeaderGetRawXmin(tuple->t_data) : InvalidTransactionId;
	row.attributes = attributes;
	appendBinaryStringInfo(rows, (char *) &row, sizeof(row));
}

static int
CompareRows(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(RoleRow));
}

/*
 * Appends a role's own row.  Returns NULL, or why nobody with this role may
 * subscribe.
 */
static const char *
CollectRole(Oid role, StringInfo rows)
{
	HeapTuple tuple;
	Form_pg_authid form;
	const char *problem = NULL;

	for (int i = 0; i < lengthof(forbidden_roles); i++)
	{
		if (role == forbidden_roles[i])
			return "it has the rights of a predefined role that row level security does not bind";
	}

	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(role));
	if (!HeapTupleIsValid(tuple))
		return "it does not exist";
	form = (Form_pg_authid) GETSTRUCT(tuple);
	if (form->rolsuper)
		problem = "it is a superuser or a member of one";
	else if (form->rolbypassrls)
		problem = "it has BYPASSRLS or is a member of a role that has";
	else if (form->rolreplication)
		problem = "it has REPLICATION or is a member of a role that has";
	else
		AppendRow(rows, role, InvalidOid, InvalidOid, tuple,
				  (form->rolinherit ? 1 : 0) | (form->rolcreaterole ? 2 : 0) |
					  (form->rolcreatedb ? 4 : 0) | (form->rolcanlogin ? 8 : 0));
	ReleaseSysCache(tuple);
	return problem;
}

/* Appends the rows that make `member` a member, and what it is a member of. */
static List *
CollectMemberships(Oid member, List *roles, StringInfo rows)
{
	/* The options are what comes behind the grantor; their number differs. */
	const Size fixed = offsetof(FormData_pg_auth_members, admin_option);
	CatCList *list = SearchSysCacheList1(AUTHMEMMEMROLE, ObjectIdGetDatum(member));

	for (int i = 0; i < list->n_members; i++)
	{
		HeapTuple tuple = &list->members[i]->tuple;
		Form_pg_auth_members form = (Form_pg_auth_members) GETSTRUCT(tuple);
		Size size = tuple->t_len - tuple->t_data->t_hoff - fixed;
		uint64 options = 0;

		memcpy(&options, (char *) form + fixed, Min(size, sizeof(options)));
		AppendRow(rows, member, form->roleid, form->grantor, tuple, options);
		roles = list_append_unique_oid(roles, form->roleid);
	}
	ReleaseSysCacheList(list);
	return roles;
}

/*
 * Collects the rows of a role and of all roles that it is a member of.
 * Returns NULL, or why nobody with this role may subscribe.
 */
static const char *
CollectRoles(Oid role, StringInfo rows)
{
	List *roles = list_make1_oid(role);
	const char *problem = NULL;
	char *path;
	HeapTuple database;
	ListCell *lc;

	/* The list grows while we go through it, as in roles_is_member_of. */
	foreach(lc, roles)
	{
		problem = CollectRole(lfirst_oid(lc), rows);
		if (problem != NULL)
			return problem;
		roles = CollectMemberships(lfirst_oid(lc), roles, rows);
	}

	/* The database's owner is a member of pg_database_owner by no row. */
	database = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(MyDatabaseId));
	if (HeapTupleIsValid(database))
	{
		Oid owner = ((Form_pg_database) GETSTRUCT(database))->datdba;

		if (list_member_oid(roles, owner))
			AppendRow(rows, owner, ROLE_PG_DATABASE_OWNER, InvalidOid, NULL, 0);
		ReleaseSysCache(database);
	}

	qsort(rows->data, rows->len / sizeof(RoleRow), sizeof(RoleRow), CompareRows);

	/* Decides what the functions of policies find; see QueryEnterIdentity. */
	path = QueryRoleSetting(role, "search_path");
	if (path != NULL)
		appendStringInfoString(rows, path);
	list_free(roles);
	return NULL;
}

/*
 * The first 64 bits of SHA-256.  A user may choose part of the claims, and a
 * hash that is easy to collide with would make one's identity another's.
 */
static uint64
HashIdentity(Oid role, StringInfo rows, const char *claims)
{
	StringInfoData all;
	unsigned char digest[32];
	uint64 hash;
	int done;

	initStringInfo(&all);
	appendBinaryStringInfo(&all, (char *) &role, sizeof(role));
	appendBinaryStringInfo(&all, (char *) &rows->len, sizeof(rows->len));
	appendBinaryStringInfo(&all, rows->data, rows->len);
	appendBinaryStringInfo(&all, claims, strlen(claims));
	done = EVP_Digest(all.data, all.len, digest, NULL, EVP_sha256(), NULL);
	ERR_clear_error();
	if (done != 1)
		ereport(ERROR, (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
						errmsg("could not compute a SHA-256 hash")));
	pfree(all.data);
	memcpy(&hash, digest, sizeof(hash));
	return hash;
}

/* The claims are there: is the role allowed, and what is the hash? */
static bool
CheckRole(IdentityInfo *identity, bool (*role_allowed)(Oid role), JwtResult *error)
{
	StringInfoData rows;
	const char *problem;

	initStringInfo(&rows);
	problem = CollectRoles(identity->role, &rows);
	if (problem == NULL && !role_allowed(identity->role))
		problem = "allow_role has not admitted it";
	if (problem != NULL)
		return RefuseRole(error, identity->role_name, problem);
	identity->hash = HashIdentity(identity->role, &rows, identity->claims);
	pfree(rows.data);
	return true;
}

/* ----------------------------------------------------------------------
 * Claims
 * ---------------------------------------------------------------------- */

/*
 * A token's payload as jsonb, or NULL.
 *
 * Text that jansson takes for JSON may still be none for us: a character that
 * the database's encoding does not have, a number with too many digits.  That
 * is the client's fault.  Errors of these kinds come from functions that only
 * compute, so nothing has to be rolled back.
 */
static Jsonb *
ParseClaims(const char *payload)
{
	MemoryContext context = CurrentMemoryContext;
	Jsonb *volatile claims = NULL;

	PG_TRY();
	{
		char *text = pg_any_to_server(payload, strlen(payload), PG_UTF8);

		claims = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(text)));
	}
	PG_CATCH();
	{
		int category = ERRCODE_TO_CATEGORY(geterrcode());

		if (category != ERRCODE_TO_CATEGORY(ERRCODE_DATA_EXCEPTION) &&
			category != ERRCODE_TO_CATEGORY(ERRCODE_PROGRAM_LIMIT_EXCEEDED))
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		FlushErrorState();
	}
	PG_END_TRY();
	return claims;
}

/* A member of an object, or NULL. */
static JsonbValue *
FindMember(JsonbContainer *container, const char *name, int length)
{
	if (container == NULL || !JsonContainerIsObject(container))
		return NULL;
	return getKeyJsonValueFromContainer(container, name, length, NULL);
}

/*
 * Reads the next step of a path like  .app."my.key"[0]  and moves `path`
 * behind it.  `name` is NULL for an element of an array, else it and `number`
 * are a member's name and its length.  False: this is no path.
 */
static bool
NextStep(const char **path, const char **name, int *number)
{
	const char *at = *path;
	const char *end;

	*name = NULL;
	if (*at == '[')
	{
		long element;

		if (!isdigit((unsigned char) at[1]))
			return false;
		element = strtol(at + 1, (char **) &end, 10);
		if (*end != ']' || element > MAX_CLAIMS)
			return false;
		*number = element;
		*path = end + 1;
		return true;
	}
	if (*at++ != '.')
		return false;
	if (*at == '"')
	{
		*name = at + 1;
		end = strchr(*name, '"');
		if (end == NULL)
			return false;
		*path = end + 1;
	}
	else
	{
		*name = at;
		end = at + strcspn(at, ".[\"");
		*path = end;
	}
	*number = end - *name;
	return *number > 0;
}

/*
 * Finds what `setting` names: a top-level claim, or with a dot in front a
 * path.  NULL: there is none.  False: the setting makes no sense.
 */
static bool
FindClaim(Jsonb *claims, const char *setting, JsonbValue **found)
{
	JsonbContainer *container = &claims->root;
	const char *path = setting;
	JsonbValue *value = NULL;

	*found = NULL;
	if (setting[0] != '.')
	{
		*found = FindMember(container, setting, strlen(setting));
		return true;
	}

	/* To its end in any case: a wrong setting is one for every token. */
	while (*path != '\0')
	{
		const char *name;
		int number;

		if (!NextStep(&path, &name, &number))
			return false;
		if (name != NULL)
			value = FindMember(container, name, number);
		else if (container != NULL && JsonContainerIsArray(container))
			value = getIthJsonbValueFromContainer(container, number);
		else
			value = NULL;
		container = value != NULL && value->type == jbvBinary ? value->val.binary.data : NULL;
	}
	*found = value;
	return true;
}

/* The role that a token names, or NULL; false: `error` says what is wrong. */
static bool
ReadRole(Jsonb *claims, char **role, JwtResult *error)
{
	const char *setting = setting_jwt_role_claim;
	JsonbValue *value;

	*role = NULL;
	if (setting == NULL || setting[0] == '\0')
		setting = "role";
	if (!FindClaim(claims, setting, &value))
		return Refuse(error, "28000", "the claim for the role is not configured correctly",
					  "Set changefeed.jwt_role_claim to a claim's name, or to a path such as "
					  "\".app.role\".");
	if (value == NULL || value->type == jbvNull)
		return true;
	if (value->type != jbvString)
		return Refuse(error, "28000", "the token's claim for the role is not a string", NULL);
	*role = pnstrdup(value->val.string.val, value->val.string.len);
	return true;
}

static char *
ReadSubject(Jsonb *claims)
{
	JsonbValue *value = FindMember(&claims->root, "sub", 3);

	if (value != NULL && value->type == jbvString)
		return pnstrdup(value->val.string.val, value->val.string.len);
	if (value != NULL && value->type == jbvNumeric)
		return DatumGetCString(
			DirectFunctionCall1(numeric_out, NumericGetDatum(value->val.numeric)));
	return NULL;
}

/* Claim "iat" in whole seconds; what is no time is as good as missing. */
static int64
ReadIssued(Jsonb *claims)
{
	JsonbValue *value = FindMember(&claims->root, "iat", 3);
	double seconds;

	if (value == NULL || value->type != jbvNumeric)
		return 0;
	seconds = DatumGetFloat8(
		DirectFunctionCall1(numeric_float8_no_overflow, NumericGetDatum(value->val.numeric)));
	return seconds > 0 && seconds < 1e15 ? (int64) seconds : 0;
}

/*
 * The claims without those of identity_claims, and with the role.  `removed`
 * gets the others, or NULL.
 */
static char *
ReduceClaims(Jsonb *claims, const char *role, char **removed)
{
	Datum reduced = JsonbPGetDatum(claims);
	JsonbParseState *state = NULL;
	bool any = false;
	const char *at = setting_identity_claims != NULL ? setting_identity_claims : "";
	StringInfoData addition;
	JsonbValue key;
	Jsonb *result;

	while (*at != '\0')
	{
		Size length = strcspn(at, ",");
		const char *start = at;
		const char *end = at + length;

		at = *end != '\0' ? end + 1 : end;
		while (start < end && isspace((unsigned char) *start))
			start++;
		while (start < end && isspace((unsigned char) end[-1]))
			end--;
		if (start < end)
		{
			JsonbValue *value = FindMember(&claims->root, start, end - start);

			if (value == NULL)
				continue;
			if (!any)
				(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
			any = true;
			key.type = jbvString;
			key.val.string.val = unconstify(char *, start);
			key.val.string.len = end - start;
			(void) pushJsonbValue(&state, WJB_KEY, &key);
			(void) pushJsonbValue(&state, WJB_VALUE, value);
			reduced = DirectFunctionCall2(
				jsonb_delete, reduced,
				PointerGetDatum(cstring_to_text_with_len(start, end - start)));
		}
	}
	*removed = NULL;
	if (any)
	{
		result = JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
		*removed = JsonbToCString(NULL, &result->root, VARSIZE(result));
	}

	initStringInfo(&addition);
	appendStringInfoString(&addition, "{\"role\": ");
	escape_json(&addition, role);
	appendStringInfoChar(&addition, '}');
	reduced = DirectFunctionCall2(jsonb_concat, reduced,
								  DirectFunctionCall1(jsonb_in, CStringGetDatum(addition.data)));
	result = DatumGetJsonbP(reduced);
	return JsonbToCString(NULL, &result->root, VARSIZE(result));
}

/* ----------------------------------------------------------------------
 * Interface
 * ---------------------------------------------------------------------- */

bool
IdentityResolve(const char *token, Size length, bool (*role_allowed)(Oid role),
				IdentityInfo *identity, JwtResult *error)
{
	const char *payload = "{}";
	int64 expires = 0;
	bool has_token = token != NULL && length > 0;
	Jsonb *claims;

	memset(identity, 0, sizeof(*identity));
	memset(error, 0, sizeof(*error));

	if (token != NULL && length > 0)
	{
		JwtVerify(token, length, error);
		if (!error->valid)
			return false;
		payload = error->payload;
		expires = error->expires;
	}

	claims = ParseClaims(payload);
	if (claims == NULL || !JB_ROOT_IS_OBJECT(claims))
		return Refuse(error, "28000", "token claims cannot be represented in the database", NULL);
	if (!has_token && (setting_anon_role == NULL || setting_anon_role[0] == '\0'))
		return Refuse(error, "28000", "a token is required",
					  "Send a token. Clients without one are admitted by changefeed.anon_role.");
	if (!IdentityFromClaims(claims, role_allowed, identity, error))
		return false;
	identity->expires = expires;

	/* There is nothing to revoke of who has no token. */
	if (!has_token)
		identity->issued = PG_INT64_MAX;
	return true;
}

bool
IdentityFromClaims(Jsonb *claims, bool (*role_allowed)(Oid role), IdentityInfo *identity,
				   JwtResult *error)
{
	char *name = NULL;
	HeapTuple tuple;

	memset(identity, 0, sizeof(*identity));
	memset(error, 0, sizeof(*error));
	if (!ReadRole(claims, &name, error))
		return false;
	if (name == NULL)
	{
		/* As PostgREST does: a token that names no role is an anonymous one. */
		if (setting_anon_role == NULL || setting_anon_role[0] == '\0')
			return Refuse(error, "28000", "the token names no role",
						  "The claim with the role's name is set by changefeed.jwt_role_claim.");
		name = pstrdup(setting_anon_role);
	}

	/* A longer name would be cut, and be that of another role. */
	tuple = strlen(name) < NAMEDATALEN ? SearchSysCache1(AUTHNAME, CStringGetDatum(name)) : NULL;
	if (!HeapTupleIsValid(tuple))
		return RefuseRole(error, name, "it does not exist");
	identity->role = ((Form_pg_authid) GETSTRUCT(tuple))->oid;
	ReleaseSysCache(tuple);
	identity->role_name = name;

	identity->issued = ReadIssued(claims);
	identity->claims = ReduceClaims(claims, name, &identity->token_claims);
	if (strlen(identity->claims) > MAX_CLAIMS)
		return Refuse(error, "28000", "token claims are too long", NULL);
	identity->subject = ReadSubject(claims);
	return CheckRole(identity, role_allowed, error);
}

bool
IdentityRefresh(IdentityInfo *identity, bool (*role_allowed)(Oid role), JwtResult *error)
{
	HeapTuple tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(identity->role));
	bool same_name;

	memset(error, 0, sizeof(*error));
	if (!HeapTupleIsValid(tuple))
		return RefuseRole(error, identity->role_name, "it does not exist");
	same_name = strcmp(NameStr(((Form_pg_authid) GETSTRUCT(tuple))->rolname),
					   identity->role_name) == 0;
	ReleaseSysCache(tuple);

	/* The token names another role now, or none. */
	if (!same_name)
		return RefuseRole(error, identity->role_name, "it was renamed");
	return CheckRole(identity, role_allowed, error);
}

/* ----------------------------------------------------------------------
 * SQL
 * ---------------------------------------------------------------------- */

bool
IdentityRoleAllowed(Oid role)
{
	Oid types[] = {OIDOID};
	Datum values[] = {ObjectIdGetDatum(role)};
	bool allowed;

	SPI_connect();
	if (SPI_execute_with_args("SELECT FROM " CHANGEFEED_SCHEMA
							  ".roles WHERE role OPERATOR(pg_catalog.=) $1",
							  1, types, values, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read the table of admitted roles");
	allowed = SPI_processed > 0;
	SPI_finish();
	return allowed;
}

/*
 * changefeed._identify(token text) returns jsonb
 *
 * Shows what the server makes of a token, or raises the error that a client
 * would get.  For administrators and tests.
 */
Datum
changefeed_identify(PG_FUNCTION_ARGS)
{
	text *token = PG_ARGISNULL(0) ? NULL : PG_GETARG_TEXT_PP(0);
	IdentityInfo identity;
	JwtResult error;
	StringInfoData s;

	if (!superuser())
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("must be superuser to identify tokens")));

	if (!IdentityResolve(token != NULL ? VARDATA_ANY(token) : NULL,
						 token != NULL ? VARSIZE_ANY_EXHDR(token) : 0, IdentityRoleAllowed,
						 &identity, &error) ||
		(RevocationsReload(NULL) && !RevocationsAllow(&identity, &error)))
		ereport(ERROR,
				(errcode(MAKE_SQLSTATE(error.sqlstate[0], error.sqlstate[1], error.sqlstate[2],
									   error.sqlstate[3], error.sqlstate[4])),
				 errmsg("%s", error.message), error.hint != NULL ? errhint("%s", error.hint) : 0));

	initStringInfo(&s);
	appendStringInfoString(&s, "{\"role\": ");
	escape_json(&s, identity.role_name);
	appendStringInfo(&s, ", \"claims\": %s, \"subject\": ", identity.claims);
	if (identity.subject != NULL)
		escape_json(&s, identity.subject);
	else
		appendStringInfoString(&s, "null");
	if (identity.expires != 0)
		appendStringInfo(&s, ", \"expires\": " INT64_FORMAT, identity.expires);
	else
		appendStringInfoString(&s, ", \"expires\": null");
	appendStringInfo(&s, ", \"hash\": \"%08x%08x\"}", (uint32) (identity.hash >> 32),
					 (uint32) identity.hash);
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(s.data));
}
