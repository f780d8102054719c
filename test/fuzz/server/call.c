/*-------------------------------------------------------------------------
 *
 * call.c
 *		Arguments of calls, and the rows that a caller expects
 *		(src/query_arguments.c, src/query_expect.c).
 *
 * Input: the arguments of fuzz_add (setup.sql) and, behind a line end, the key of
 * a row of fuzz_items.
 *
 * Properties: what the function is called with is what jsonb has of the
 * arguments, and nothing else; the row that is found is the one of the key, as
 * JSON for the server.
 *
 *-------------------------------------------------------------------------
 */
#include "fuzz.h"

#include "call_function.h"
#include "query_internal.h"
#include "wire_write.h"

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "parser/parse_func.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

static Oid items;
static CallFunction *function;

static void
Start(void)
{
	List *name = list_make1(makeString("fuzz_add"));
	Oid types[3] = {INT4OID, TEXTOID, JSONBOID};
	MemoryContext old;

	items = RelnameGetRelid("fuzz_items");
	old = MemoryContextSwitchTo(TopMemoryContext);
	function = CallFunctionGet(LookupFuncName(name, 3, types, false));
	MemoryContextSwitchTo(old);
	FuzzQueryStart();
}

static void
CheckCall(const char *text)
{
	Jsonb *object = QueryJsonObject(text, "arguments");
	ParamListInfo params;
	Query *query = QueryMakeCall(function, object, &params);
	int i;

	if (list_length(query->targetList) != 1 || params->numParams != function->nargs)
		Fail("it is another call");
	for (i = 0; i < function->nargs; i++)
	{
		Jsonb *member = FuzzJsonMember(object, function->args[i].name);
		ParamExternData *param = &params->params[i];
		bool null = member == NULL ||
					strcmp(JsonbToCString(NULL, &member->root, VARSIZE(member)), "null") == 0;

		/* As jsonb_populate_record has it. */
		if (param->isnull != null)
			Fail("argument \"%s\" is and is not null", function->args[i].name);
		if (!param->isnull && param->ptype == JSONBOID &&
			compareJsonbContainers(&DatumGetJsonbP(param->value)->root, &member->root) != 0)
			Fail("argument \"%s\" is another value", function->args[i].name);
	}
}

static void
CheckExpectation(const char *key)
{
	StringInfoData body;
	Expectation expectation;
	WireReader r;

	initStringInfo(&body);
	WirePutString(&body, key);
	WirePutU64(&body, 1);
	WirePutString(&body, ""); /* no join_check, no parameters */
	WirePutU16(&body, 0);
	WirePutU32(&body, items);
	WirePutString(&body, "");
	WirePutU16(&body, 1);
	WirePutString(&body, "id");
	WirePutU16(&body, 0);
	WirePutU16(&body, 0);
	WirePutString(&body, "");
	r = WireReaderInit(body.data, body.len);
	ExpectationRead(&expectation, &r);
	if (!WireAtEnd(&r))
		Fail("the job is not as it should be");
	if (ExpectationHolds(&expectation, GetUserId()))
		Fail("the row has the version of nobody");
	if (expectation.row.len > 0)
	{
		Jsonb *row = FuzzJsonb(expectation.row.data, expectation.row.len);
		Jsonb *wanted = FuzzJsonMember(QueryJsonObject(key, "key"), "id");

		if (row == NULL || FuzzJsonMember(row, "id") == NULL)
			Fail("the row is no JSON: %s", expectation.row.data);
		if (wanted == NULL)
			Fail("a row is found without a key");
	}
}

static void
Run(const char *data, Size size)
{
	const char *end = memchr(data, '\n', size);

	/* It is a part of a client's message. */
	if (memchr(data, '\0', size) != NULL || !pg_verify_mbstr(PG_UTF8, data, (int) size, true))
		return;
	MemoryContextReset(query_job_context);
	if (end != NULL)
		CheckExpectation(pnstrdup(end + 1, data + size - end - 1));
	CheckCall(pnstrdup(data, end != NULL ? (Size) (end - data) : size));
}

const FuzzTarget target_call = {"call", Start, Run, NULL};
