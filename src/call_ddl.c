/*-------------------------------------------------------------------------
 *
 * call_ddl.c
 *		SQL functions that say which functions clients may call.
 *
 * A function is exposed under one name, by whom it belongs to.  Whether a
 * client may execute it is asked with each call (query_call.c), so grants need
 * nothing from here.
 *
 * Process: any backend.  Memory: CurrentMemoryContext of the call.  Locks: as
 * in ddl.h.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "call_function.h"
#include "compat.h"
#include "ddl.h"
#include "function_names.h"

#include "access/xact.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/syscache.h"

PG_FUNCTION_INFO_V1(changefeed_expose_function);
PG_FUNCTION_INFO_V1(changefeed_unexpose_function);
PG_FUNCTION_INFO_V1(changefeed_unexpose_name);

static void
RequireOwner(Oid function)
{
	if (!DdlOwnsDatabase() && !compat_proc_ownercheck(function, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_FUNCTION, get_func_name(function));
}

/* It is part of a path over HTTP. */
static void
RequireName(const char *name)
{
	const char *p;

	if (name[0] == '\0' || strlen(name) >= NAMEDATALEN)
		ereport(ERROR, (errcode(ERRCODE_INVALID_NAME),
						errmsg("name of a function must have 1 to %d bytes", NAMEDATALEN - 1)));
	for (p = name; *p != '\0'; p++)
		if ((unsigned char) *p < 0x20 || strchr("/?#%\x7f", *p) != NULL)
			ereport(
				ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("\"%s\" is no name that clients can call", name),
				 errdetail("It must not have control characters, \"/\", \"?\", \"#\" or \"%%\"."),
				 errhint("Give another one with the argument \"name\".")));
}

/* The function that has that name, or InvalidOid; the name of a function, or NULL. */
static Oid
FunctionOf(const char *name)
{
	Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(name)};

	if (DdlRead("SELECT function FROM changefeed.function"
				" WHERE name OPERATOR(pg_catalog.=) $1",
				1, types, values) == 0)
		return InvalidOid;
	return FunctionOfSignature(SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1));
}

static char *
NameOf(Oid function)
{
	Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(format_procedure_qualified(function))};

	if (DdlRead("SELECT name FROM changefeed.function"
				" WHERE function OPERATOR(pg_catalog.=) $1",
				1, types, values) == 0)
		return NULL;
	return SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
}

/* expose_function(function, name) */
Datum
changefeed_expose_function(PG_FUNCTION_ARGS)
{
	DdlAccess access;
	CallFunction *function;
	Oid types[2] = {TEXTOID, TEXTOID};
	Datum values[2];
	char *name;
	char *old_name;
	Oid other;

	PreventCommandIfReadOnly("expose_function()");
	DdlRequireArgument(fcinfo, 0, "function");
	if (!SearchSysCacheExists1(PROCOID, ObjectIdGetDatum(PG_GETARG_OID(0))))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_FUNCTION),
						errmsg("function with OID %u does not exist", PG_GETARG_OID(0))));
	RequireOwner(PG_GETARG_OID(0));
	function = CallFunctionGet(PG_GETARG_OID(0));
	name = PG_ARGISNULL(1) ? function->name : text_to_cstring(PG_GETARG_TEXT_PP(1));
	RequireName(name);

	DdlBegin(&access);
	DdlLock();
	/* Functions that are gone, whose names may come again. */
	(void) DdlWrite("DELETE FROM changefeed.function WHERE changefeed._function(function) IS NULL",
					0, NULL, NULL, NULL);
	CommandCounterIncrement();
	old_name = NameOf(function->oid);
	if (old_name != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("function %s is already exposed as \"%s\"", format_procedure(function->oid),
						old_name),
				 errhint("Use changefeed.unexpose_function first to give it another name.")));
	other = FunctionOf(name);
	if (OidIsValid(other))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("function %s is already exposed as \"%s\"", format_procedure(other), name),
				 errhint("Give this one another name with the argument \"name\".")));
	values[0] = CStringGetTextDatum(name);
	values[1] = CStringGetTextDatum(format_procedure_qualified(function->oid));
	(void) DdlWrite("INSERT INTO changefeed.function (name, function) VALUES ($1, $2)", 2, types,
					values, NULL);
	DdlEnd(&access);
	PG_RETURN_VOID();
}

/* `name` says what was asked for. */
static void
Unexpose(Oid function, const char *name)
{
	DdlAccess access;
	Oid types[1] = {TEXTOID};
	Datum values[1];

	DdlBegin(&access);
	DdlLock();
	values[0] = CStringGetTextDatum(
		OidIsValid(function) && SearchSysCacheExists1(PROCOID, ObjectIdGetDatum(function))
			? format_procedure_qualified(function)
			: "");
	if (DdlWrite("DELETE FROM changefeed.function"
				 " WHERE function OPERATOR(pg_catalog.=) $1",
				 1, types, values, NULL) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("function %s is not exposed", name),
				 errhint("The view changefeed.functions lists those that are.")));
	DdlEnd(&access);
}

/* unexpose_function(function) */
Datum
changefeed_unexpose_function(PG_FUNCTION_ARGS)
{
	Oid function;

	PreventCommandIfReadOnly("unexpose_function()");
	DdlRequireArgument(fcinfo, 0, "function");
	function = PG_GETARG_OID(0);
	RequireOwner(function);
	Unexpose(function, format_procedure(function));
	PG_RETURN_VOID();
}

/* unexpose_function(name): what clients call it, or the function as text */
Datum
changefeed_unexpose_name(PG_FUNCTION_ARGS)
{
	DdlAccess access;
	char *name;
	Oid function;

	PreventCommandIfReadOnly("unexpose_function()");
	DdlRequireArgument(fcinfo, 0, "name");
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	DdlBegin(&access);
	function = FunctionOf(name);
	DdlEnd(&access);
	if (!OidIsValid(function) && strchr(name, '(') != NULL)
		function = DatumGetObjectId(DirectFunctionCall1(regprocedurein, CStringGetDatum(name)));
	if (!OidIsValid(function))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("function \"%s\" is not exposed", name),
				 errhint("The view changefeed.functions lists those that are.")));
	if (SearchSysCacheExists1(PROCOID, ObjectIdGetDatum(function)))
		RequireOwner(function);
	else if (!DdlOwnsDatabase())
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("must be owner of function \"%s\"", name)));
	Unexpose(function, quote_literal_cstr(name));
	PG_RETURN_VOID();
}
