/*-------------------------------------------------------------------------
 *
 * driver.c
 *		From the server to libFuzzer and back.  See fuzz.h.
 *
 * fuzz() never returns: libFuzzer ends the process.  So the statement that
 * called it is given up first, and each input has a transaction of its own.
 *
 *-------------------------------------------------------------------------
 */
#include "fuzz.h"

#include <stdlib.h>
#include <unistd.h>

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

extern int
LLVMFuzzerRunDriver(int *argc, char ***argv, int (*callback)(const uint8_t *data, size_t size));
extern int __llvm_profile_write_file(void) pg_attribute_unused() __attribute__((weak));

PG_FUNCTION_INFO_V1(fuzz);

static const FuzzTarget *const targets[] = {
	&target_json, &target_selection, &target_names,	  &target_jwt,	&target_jwks,
	&target_feed, &target_wal2json,	 &target_message, &target_call,
};

static const FuzzTarget *target;
static MemoryContext input_context;

/* ---- what the server says ---- */

static Datum
Input1(PGFunction function, const char *text, Size length, bool *good)
{
	MemoryContext context = CurrentMemoryContext;
	char *volatile copy = pnstrdup(text, length);
	volatile Datum result = (Datum) 0;

	*good = false;
	if (memchr(text, '\0', length) != NULL || !pg_verify_mbstr(PG_UTF8, text, (int) length, true))
		return result;
	PG_TRY();
	{
		result = DirectFunctionCall1(function, CStringGetDatum(copy));
		*good = true;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		FlushErrorState();
	}
	PG_END_TRY();
	return result;
}

bool
FuzzJsonIsValid(const char *text, Size length)
{
	bool good;

	(void) Input1(json_in, text, length, &good);
	return good;
}

Jsonb *
FuzzJsonb(const char *text, Size length)
{
	bool good;
	Datum datum = Input1(jsonb_in, text, length, &good);

	return good ? DatumGetJsonbP(datum) : NULL;
}

Jsonb *
FuzzJsonMember(Jsonb *object, const char *name)
{
	JsonbValue key;
	JsonbValue *value;

	key.type = jbvString;
	key.val.string.val = unconstify(char *, name);
	key.val.string.len = (int) strlen(name);
	value = findJsonbValueFromContainer(&object->root, JB_FOBJECT, &key);
	return value != NULL ? JsonbValueToJsonb(value) : NULL;
}

/* ---- the driver ---- */

static int
Run(const uint8_t *data, size_t size)
{
	char *volatile copy = malloc(size);
	volatile bool failed = false;

	if (size > 0)
		memcpy(copy, data, size);
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(input_context);
	PG_TRY();
	{
		target->run(copy, size);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(input_context);
		if (getenv("FUZZ_LOG") != NULL)
		{
			ErrorData *error = CopyErrorData();

			fprintf(stderr, "error: %s\n", error->message);
		}
		failed = true;
	}
	PG_END_TRY();
	if (failed)
	{
		if (target->failed != NULL)
			target->failed();
		FlushErrorState();
		AbortCurrentTransaction();
	}
	else
	{
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	MemoryContextSwitchTo(input_context);
	MemoryContextReset(input_context);
	free(copy);
	return 0;
}

/* The cluster is made to be thrown away; nothing is worth being shut down. */
static void
Leave(void)
{
	if (__llvm_profile_write_file)
		(void) __llvm_profile_write_file();
	_exit(0);
}

Datum
fuzz(PG_FUNCTION_ARGS)
{
	char *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Datum *items;
	int n;
	static char **argv; /* for LeakSanitizer: they are kept */
	int argc = 0;
	int i;

	for (i = 0; i < lengthof(targets); i++)
		if (strcmp(targets[i]->name, name) == 0)
			target = targets[i];
	if (target == NULL)
		elog(ERROR, "no target \"%s\"", name);
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), TEXTOID, -1, false, TYPALIGN_INT, &items, NULL, &n);
	argv = malloc(sizeof(char *) * (n + 1));
	for (i = 0; i < n; i++)
		argv[argc++] = strdup(TextDatumGetCString(items[i]));
	argv[argc] = NULL;

	AbortCurrentTransaction();
	input_context = FuzzContextCreate(TopMemoryContext, "fuzz input", 0, 0, 0);
	if (target->start != NULL)
	{
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		PG_TRY();
		{
			target->start();
		}
		PG_CATCH();
		{
			MemoryContextSwitchTo(TopMemoryContext);
			Fail("could not start: %s", CopyErrorData()->message);
		}
		PG_END_TRY();
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	atexit(Leave);
	exit(LLVMFuzzerRunDriver(&argc, &argv, Run));
}
