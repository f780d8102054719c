/*-------------------------------------------------------------------------
 *
 * function_names.c
 *		Functions by name and argument types.  See function_names.h.
 *
 * A signature is compared as text with what the server writes, and never parsed
 * but for its schema and name: no search path and no type that is gone can make
 * it mean something else.
 *
 * Process: any; FunctionNamesBefore and FunctionNamesAfter in the backend that
 * renames.  Memory: the caller's context.  Locks: those of ddl.h.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "ddl.h"
#include "function_names.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/catcache.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/syscache.h"

PG_FUNCTION_INFO_V1(changefeed_function);

typedef struct Named
{
	Oid function;
	char *signature;
} Named;

/*
 * The name at *text, which moves behind it; NULL if there is none.  What
 * quote_identifier has written is read back, nothing else.
 */
static char *
NextName(const char **text)
{
	StringInfoData name;
	const char *p = *text;

	initStringInfo(&name);
	if (*p != '"')
	{
		Size length = strcspn(p, ".(");

		appendBinaryStringInfo(&name, p, (int) length);
		*text = p + length;
	}
	else
	{
		for (p++; *p != '"' || p[1] == '"'; p++)
		{
			if (*p == '\0')
				return NULL;
			if (*p == '"')
				p++;
			appendStringInfoChar(&name, *p);
		}
		*text = p + 1;
	}
	return name.len > 0 ? name.data : NULL;
}

Oid
FunctionOfSignature(const char *signature)
{
	const char *rest = signature;
	char *schema = NextName(&rest);
	char *name = *rest == '.' ? (rest++, NextName(&rest)) : NULL;
	Oid namespace;
	Oid found = InvalidOid;
	CatCList *list;
	int i;

	if (schema == NULL || name == NULL || *rest != '(')
		return InvalidOid;
	namespace = get_namespace_oid(schema, true);
	if (!OidIsValid(namespace))
		return InvalidOid;

	list = SearchSysCacheList1(PROCNAMEARGSNSP, CStringGetDatum(name));
	for (i = 0; i < list->n_members && !OidIsValid(found); i++)
	{
		Form_pg_proc form = (Form_pg_proc) GETSTRUCT(&list->members[i]->tuple);

		if (form->pronamespace == namespace &&
			strcmp(format_procedure_qualified(form->oid), signature) == 0)
			found = form->oid;
	}
	ReleaseCatCacheList(list);
	return found;
}

/* _function(signature) */
Datum
changefeed_function(PG_FUNCTION_ARGS)
{
	Oid function = FunctionOfSignature(text_to_cstring(PG_GETARG_TEXT_PP(0)));

	if (!OidIsValid(function))
		PG_RETURN_NULL();
	PG_RETURN_OID(function);
}

/* ---- Functions that are renamed ---- */

/* The extension's tables may be about to go, or not be there yet. */
static bool
HaveTables(void)
{
	Oid namespace = get_namespace_oid(CHANGEFEED_SCHEMA, true);

	return OidIsValid(namespace) && OidIsValid(get_relname_relid("function", namespace)) &&
		   OidIsValid(get_relname_relid("dependency", namespace)) &&
		   OidIsValid(get_relname_relid("source", namespace));
}

List *
FunctionNamesBefore(void)
{
	MemoryContext context = CurrentMemoryContext;
	List *names = NIL; /* of Named */
	DdlAccess access;
	uint64 i;
	uint64 n;

	if (!HaveTables())
		return NIL;
	DdlBegin(&access);
	n = DdlRead("SELECT function FROM changefeed.function"
				" UNION SELECT function FROM changefeed.dependency",
				0, NULL, NULL);
	for (i = 0; i < n; i++)
	{
		char *signature = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1);
		Oid function = FunctionOfSignature(signature);

		if (OidIsValid(function))
		{
			MemoryContext old = MemoryContextSwitchTo(context);
			Named *named = palloc(sizeof(Named));

			named->function = function;
			named->signature = pstrdup(signature);
			names = lappend(names, named);
			MemoryContextSwitchTo(old);
		}
	}
	DdlEnd(&access);
	return names;
}

void
FunctionNamesAfter(List *names)
{
	DdlAccess access;
	ListCell *lc;

	if (names == NIL)
		return;
	CommandCounterIncrement();
	if (!HaveTables())
		return;
	DdlBegin(&access);
	foreach(lc, names)
	{
		Named *named = lfirst(lc);
		Oid types[2] = {TEXTOID, TEXTOID};
		Datum values[2];
		char *signature;

		if (!SearchSysCacheExists1(PROCOID, ObjectIdGetDatum(named->function)))
			continue;
		signature = format_procedure_qualified(named->function);
		if (strcmp(signature, named->signature) == 0)
			continue;
		values[0] = CStringGetTextDatum(named->signature);
		values[1] = CStringGetTextDatum(signature);
		(void) DdlWrite("UPDATE changefeed.function SET function = $2"
						" WHERE function OPERATOR(pg_catalog.=) $1",
						2, types, values, NULL);
		(void) DdlWrite("UPDATE changefeed.dependency SET function = $2"
						" WHERE function OPERATOR(pg_catalog.=) $1",
						2, types, values, NULL);
	}
	DdlEnd(&access);
}
