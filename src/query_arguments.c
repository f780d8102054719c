/*-------------------------------------------------------------------------
 *
 * query_arguments.c
 *		From a JSON object to the arguments of a function.
 *
 * Each member becomes a value in the way that jsonb_populate_record makes
 * columns of them: it is asked for a record with that one column, so that an
 * error can name the argument.  Input functions and the checks of domains may
 * be a user's, so the identity has to have been entered.
 *
 * The call is made as a tree rather than as text: the function is that with the
 * OID that was looked up, whatever else has its name.
 *
 * Process: query worker.  Locks: none.  Memory: CurrentMemoryContext; the types
 * of the one-column records stay in the process, as all anonymous types do.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "call_function.h"
#include "query_internal.h"

#include "access/htup_details.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "nodes/makefuncs.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"

Jsonb *
QueryJsonObject(const char *text, const char *what)
{
	Jsonb *object = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(text)));

	if (!JB_ROOT_IS_OBJECT(object))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("%s have to be a JSON object", what)));
	return object;
}

static JsonbValue *
Find(Jsonb *object, const char *name, JsonbValue *result)
{
	return getKeyJsonValueFromContainer(&object->root, name, strlen(name), result);
}

bool
QueryJsonHas(Jsonb *object, const char *name)
{
	JsonbValue value;

	return Find(object, name, &value) != NULL;
}

static Datum
Populate(Jsonb *object, const char *name, Oid type, int32 typmod, bool *isnull)
{
	LOCAL_FCINFO(fcinfo, 2);
	TupleDesc desc = CreateTemplateTupleDesc(1);
	Datum nothing = (Datum) 0;
	bool null = true;
	FmgrInfo flinfo;
	HeapTuple base;
	HeapTupleData row;
	HeapTupleHeader header;

	TupleDescInitEntry(desc, 1, name, type, typmod, 0);
	desc = BlessTupleDesc(desc);
	base = heap_form_tuple(desc, &nothing, &null);

	fmgr_info(F_JSONB_POPULATE_RECORD, &flinfo);
	fmgr_info_set_expr((Node *) makeFuncExpr(F_JSONB_POPULATE_RECORD, RECORDOID,
											 list_make2(makeNullConst(RECORDOID, -1, InvalidOid),
														makeNullConst(JSONBOID, -1, InvalidOid)),
											 InvalidOid, InvalidOid, COERCE_EXPLICIT_CALL),
					   &flinfo);
	InitFunctionCallInfoData(*fcinfo, &flinfo, 2, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = HeapTupleGetDatum(base);
	fcinfo->args[0].isnull = false;
	fcinfo->args[1].value = JsonbPGetDatum(object);
	fcinfo->args[1].isnull = false;
	header = DatumGetHeapTupleHeader(FunctionCallInvoke(fcinfo));

	row.t_len = HeapTupleHeaderGetDatumLength(header);
	ItemPointerSetInvalid(&row.t_self);
	row.t_tableOid = InvalidOid;
	row.t_data = header;
	return heap_getattr(&row, 1, desc, isnull);
}

Datum
QueryJsonValue(Jsonb *object, const char *name, const char *what, Oid type, int32 typmod,
			   bool *isnull)
{
	MemoryContext context = CurrentMemoryContext;
	Datum value = (Datum) 0;

	PG_TRY();
	{
		value = Populate(object, name, type, typmod, isnull);
	}
	PG_CATCH();
	{
		ErrorData *error;
		int class;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		class = ERRCODE_TO_CATEGORY(error->sqlerrcode);
		if (class != ERRCODE_DATA_EXCEPTION && class != ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION)
			PG_RE_THROW();
		/* The transaction ends by the error that takes the place of this one. */
		FlushErrorState();
		ereport(ERROR,
				(errcode(error->sqlerrcode), errmsg("%s \"%s\": %s", what, name, error->message),
				 errdetail("It has to be a value of type %s.", format_type_be(type)),
				 error->hint != NULL ? errhint("%s", error->hint) : 0));
	}
	PG_END_TRY();
	return value;
}

/* ---- The call ---- */

static void
RequireKnown(const CallFunction *function, Jsonb *object)
{
	JsonbIterator *it = JsonbIteratorInit(&object->root);
	JsonbIteratorToken token;
	JsonbValue value;
	StringInfoData names;
	int i;

	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		char *name;

		if (token != WJB_KEY)
			continue;
		name = pnstrdup(value.val.string.val, value.val.string.len);
		for (i = 0; i < function->nargs; i++)
			if (strcmp(function->args[i].name, name) == 0)
				break;
		if (i < function->nargs)
			continue;
		initStringInfo(&names);
		for (i = 0; i < function->nargs; i++)
			appendStringInfo(&names, "%s\"%s\"", i > 0 ? ", " : "", function->args[i].name);
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("the function has no argument \"%s\"", name),
						function->nargs > 0 ? errhint("Its arguments are %s.", names.data)
											: errhint("It has no arguments.")));
	}
}

Query *
QueryMakeCall(const CallFunction *function, Jsonb *object, ParamListInfo *params)
{
	Query *query = makeNode(Query);
	FuncExpr *call;
	List *args = NIL;
	int i;

	RequireKnown(function, object);
	*params = makeParamList(function->nargs);
	for (i = 0; i < function->nargs; i++)
	{
		const CallArgument *argument = &function->args[i];
		ParamExternData *data = &(*params)->params[i];
		NamedArgExpr *named;
		Param *param;

		data->ptype = argument->type;
		data->pflags = 0; /* not set by makeParamList, and read by the planner */
		data->isnull = true;
		if (!QueryJsonHas(object, argument->name))
		{
			if (argument->has_default)
				continue;
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("argument \"%s\" is missing", argument->name),
							errdetail("It has to be a value of type %s.",
									  format_type_be(argument->type))));
		}
		data->value = QueryJsonValue(object, argument->name, "argument", argument->type, -1,
									 &data->isnull);
		param = makeNode(Param);
		param->paramkind = PARAM_EXTERN;
		param->paramid = i + 1;
		param->paramtype = argument->type;
		param->paramtypmod = -1;
		param->paramcollid = get_typcollation(argument->type);
		param->location = -1;
		named = makeNode(NamedArgExpr);
		named->arg = (Expr *) param;
		named->name = argument->name;
		named->argnumber = i;
		named->location = -1;
		args = lappend(args, named);
	}

	call = makeFuncExpr(function->oid, function->result, args, get_typcollation(function->result),
						DEFAULT_COLLATION_OID, COERCE_EXPLICIT_CALL);
	call->funcretset = function->set;
	/* What is repeated comes as one array. */
	call->funcvariadic = function->variadic;

	query->commandType = CMD_SELECT;
	query->querySource = QSRC_ORIGINAL;
	query->canSetTag = true;
	query->hasTargetSRFs = function->set;
	query->jointree = makeFromExpr(NIL, NULL);
	query->targetList = list_make1(makeTargetEntry((Expr *) call, 1, pstrdup("result"), false));
	return query;
}
