/*-------------------------------------------------------------------------
 *
 * encode_nested.c
 *		Values of user-defined types as JSON, without to_jsonb.
 *
 * For a type that is not built in to_jsonb looks for a cast to json and calls
 * its function, whoever wrote it, as the current user.  Where that must not
 * happen, arrays and rows of user-defined types are taken apart here, down to
 * values whose types are built in, which to_jsonb can be trusted with, and
 * values that are written by their type's output function.  The text is that
 * of jsonb: fields sorted as jsonb sorts them, blanks behind commas and colons.
 *
 * Nothing is kept between calls: types may be altered at any time.
 *
 * Process: feed worker, query workers.  Memory: garbage in
 * CurrentMemoryContext.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "encode.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parse_coerce.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/typcache.h"

/*
 * The order of the questions is that of the server's json_categorize_type
 * (before 17: jsonb_categorize_type): a cast from an array or a row type is
 * never looked for.
 */
bool
EncodeTypeUsesCast(Oid typid)
{
	Oid base = getBaseType(typid);
	Oid element = get_element_type(base);
	Oid function;

	check_stack_depth();
	if (base < FirstNormalObjectId)
		return false;
	if (OidIsValid(element))
		return EncodeTypeUsesCast(element);
	if (type_is_rowtype(base))
	{
		TupleDesc tupdesc = lookup_rowtype_tupdesc_copy(base, -1);
		bool found = false;
		int i;

		for (i = 0; i < tupdesc->natts && !found; i++)
			if (!TupleDescAttr(tupdesc, i)->attisdropped)
				found = EncodeTypeUsesCast(TupleDescAttr(tupdesc, i)->atttypid);
		FreeTupleDesc(tupdesc);
		return found;
	}
	return find_coercion_pathway(JSONOID, base, COERCION_EXPLICIT, &function) ==
			   COERCION_PATH_FUNC &&
		   OidIsValid(function);
}

void
EncodeToJsonb(FmgrInfo *function, Oid typid, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);

	/* to_jsonb learns its argument's type from the call expression. */
	fmgr_info_cxt(F_TO_JSONB, function, context);
	fmgr_info_set_expr((Node *) makeFuncExpr(F_TO_JSONB, JSONBOID,
											 list_make1(makeNullConst(typid, -1, InvalidOid)),
											 InvalidOid, InvalidOid, COERCE_EXPLICIT_CALL),
					   function);
	MemoryContextSwitchTo(old);
}

static void
EncodeBuiltIn(StringInfo out, Oid typid, Datum value)
{
	FmgrInfo function;
	Jsonb *json;

	EncodeToJsonb(&function, typid, CurrentMemoryContext);
	json = DatumGetJsonbP(FunctionCall1(&function, value));
	(void) JsonbToCString(out, &json->root, VARSIZE(json));
}

/* One dimension of an array; `next` is the element that comes next. */
static void
EncodeDimension(StringInfo out, Oid element, int ndims, const int *dims, const Datum *values,
				const bool *isnull, int *next)
{
	int i;

	appendStringInfoChar(out, '[');
	for (i = 0; i < dims[0]; i++)
	{
		if (i > 0)
			appendStringInfoString(out, ", ");
		if (ndims > 1)
			EncodeDimension(out, element, ndims - 1, dims + 1, values, isnull, next);
		else
		{
			EncodeNested(out, element, values[*next], isnull[*next]);
			(*next)++;
		}
	}
	appendStringInfoChar(out, ']');
}

static void
EncodeArray(StringInfo out, Oid element, Datum value)
{
	ArrayType *array = DatumGetArrayTypeP(value);
	Datum *values;
	bool *isnull;
	int16 length;
	bool byval;
	char align;
	int n;
	int next = 0;

	if (ARR_NDIM(array) == 0)
	{
		appendStringInfoString(out, "[]");
		return;
	}
	get_typlenbyvalalign(element, &length, &byval, &align);
	deconstruct_array(array, element, length, byval, align, &values, &isnull, &n);
	EncodeDimension(out, element, ARR_NDIM(array), ARR_DIMS(array), values, isnull, &next);
}

typedef struct Field
{
	const char *name;
	Size length;
	int index;
} Field;

/* As jsonb sorts keys: short ones first. */
static int
CompareFields(const void *a, const void *b)
{
	const Field *x = a;
	const Field *y = b;

	if (x->length != y->length)
		return x->length < y->length ? -1 : 1;
	return memcmp(x->name, y->name, x->length);
}

static void
EncodeComposite(StringInfo out, Datum value)
{
	HeapTupleHeader header = DatumGetHeapTupleHeader(value);
	TupleDesc tupdesc = lookup_rowtype_tupdesc_copy(HeapTupleHeaderGetTypeId(header),
													HeapTupleHeaderGetTypMod(header));
	HeapTupleData tuple = {0};
	Field *fields = palloc(sizeof(Field) * Max(tupdesc->natts, 1));
	Datum *values = palloc(sizeof(Datum) * Max(tupdesc->natts, 1));
	bool *isnull = palloc(sizeof(bool) * Max(tupdesc->natts, 1));
	int n = 0;
	int i;

	tuple.t_len = HeapTupleHeaderGetDatumLength(header);
	tuple.t_data = header;
	heap_deform_tuple(&tuple, tupdesc, values, isnull);
	for (i = 0; i < tupdesc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(tupdesc, i);

		if (att->attisdropped)
			continue;
		fields[n].name = NameStr(att->attname);
		fields[n].length = strlen(NameStr(att->attname));
		fields[n++].index = i;
	}
	qsort(fields, n, sizeof(Field), CompareFields);

	appendStringInfoChar(out, '{');
	for (i = 0; i < n; i++)
	{
		int index = fields[i].index;

		if (i > 0)
			appendStringInfoString(out, ", ");
		EncodeString(out, fields[i].name, fields[i].length);
		appendStringInfoString(out, ": ");
		EncodeNested(out, TupleDescAttr(tupdesc, index)->atttypid, values[index], isnull[index]);
	}
	appendStringInfoChar(out, '}');
}

void
EncodeNested(StringInfo out, Oid typid, Datum value, bool isnull)
{
	Oid base = getBaseType(typid);
	Oid element;

	check_stack_depth();
	CHECK_FOR_INTERRUPTS();
	if (isnull)
		appendStringInfoString(out, "null");
	else if (base < FirstNormalObjectId)
		EncodeBuiltIn(out, base, value);
	else if (OidIsValid(element = get_element_type(base)))
		EncodeArray(out, element, value);
	else if (type_is_rowtype(base))
		EncodeComposite(out, value);
	else
	{
		Oid output;
		bool varlena;
		char *text;

		getTypeOutputInfo(base, &output, &varlena);
		text = OidOutputFunctionCall(output, value);
		EncodeString(out, text, strlen(text));
	}
}
