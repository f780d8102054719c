/*-------------------------------------------------------------------------
 *
 * call_function.c
 *		A function that clients may call: its arguments and its result.
 *
 * Arguments come as members of a JSON object, so each needs a name, and a type
 * that is known without looking at the values.  What was checked when the
 * function was exposed is checked again with every call: the function may have
 * been replaced since.
 *
 * Process, memory and locks: see call_function.h.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "call_function.h"

#include "access/htup_details.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/syscache.h"

static void
RequireFunction(const CallFunction *function, char kind)
{
	const char *what;

	switch (kind)
	{
		case PROKIND_FUNCTION:
			return;
		case PROKIND_PROCEDURE:
			what = "a procedure";
			break;
		case PROKIND_AGGREGATE:
			what = "an aggregate function";
			break;
		default:
			what = "a window function";
	}
	ereport(ERROR,
			(errcode(ERRCODE_WRONG_OBJECT_TYPE),
			 errmsg("%s is %s, which clients cannot call", format_procedure(function->oid), what),
			 errhint("Call it in an ordinary function, and expose that.")));
}

static void
RequireArgument(const CallFunction *function, const CallArgument *argument, int number)
{
	if (argument->name[0] == '\0')
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("argument %d of function %s has no name", number + 1,
							   format_procedure(function->oid)),
						errdetail("Clients give arguments by name."),
						errhint("Create the function with names for all its arguments.")));
	if (get_typtype(argument->type) == TYPTYPE_PSEUDO)
		ereport(
			ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("argument \"%s\" of function %s has the pseudo-type %s", argument->name,
					format_procedure(function->oid), format_type_be(argument->type)),
			 errhint(
				 "Expose a function with arguments of ordinary types, such as text or jsonb.")));
}

static void
RequireResult(const CallFunction *function)
{
	if (get_typtype(function->result) == TYPTYPE_PSEUDO && function->result != VOIDOID &&
		function->result != RECORDOID)
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("function %s returns the pseudo-type %s",
							   format_procedure(function->oid), format_type_be(function->result)),
						errhint("Expose a function that returns a value, a row, a set, or void.")));
}

static void
ReadArguments(CallFunction *function, HeapTuple tuple)
{
	Form_pg_proc form = (Form_pg_proc) GETSTRUCT(tuple);
	Oid *types;
	char **names;
	char *modes;
	int n = get_func_arg_info(tuple, &types, &names, &modes);
	int i;

	function->args = palloc0(sizeof(CallArgument) * Max(n, 1));
	for (i = 0; i < n; i++)
	{
		CallArgument *argument = &function->args[function->nargs];

		if (modes != NULL && modes[i] != FUNC_PARAM_IN && modes[i] != FUNC_PARAM_INOUT &&
			modes[i] != FUNC_PARAM_VARIADIC)
			continue;
		argument->name = names != NULL && names[i] != NULL ? names[i] : pstrdup("");
		argument->type = types[i];
		RequireArgument(function, argument, function->nargs);
		function->nargs++;
	}
	/* Defaults are those of the last arguments. */
	for (i = 0; i < form->pronargdefaults && i < function->nargs; i++)
		function->args[function->nargs - 1 - i].has_default = true;
}

CallFunction *
CallFunctionGet(Oid oid)
{
	HeapTuple tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(oid));
	CallFunction *function;
	Form_pg_proc form;

	if (!HeapTupleIsValid(tuple))
		return NULL;
	form = (Form_pg_proc) GETSTRUCT(tuple);
	function = palloc0(sizeof(CallFunction));
	function->oid = oid;
	function->schema = form->pronamespace;
	function->name = pstrdup(NameStr(form->proname));
	function->result = form->prorettype;
	function->set = form->proretset;
	function->variadic = OidIsValid(form->provariadic);
	RequireFunction(function, form->prokind);
	ReadArguments(function, tuple);
	RequireResult(function);
	ReleaseSysCache(tuple);
	return function;
}
