/*-------------------------------------------------------------------------
 *
 * call_function.h
 *		A function that clients may call: its arguments and its result.
 *
 * Process: any backend (changefeed.expose_function) and query workers (calls).
 * Memory: CurrentMemoryContext.  Locks: none.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_CALL_FUNCTION_H
#define CHANGEFEED_CALL_FUNCTION_H

#include "pg_changefeed.h"

typedef struct CallArgument
{
	char *name;
	Oid type;
	bool has_default;
} CallArgument;

typedef struct CallFunction
{
	Oid oid;
	Oid schema;
	char *name;
	Oid result;	   /* type; of each row, if it returns a set */
	bool set;	   /* it returns a set */
	bool variadic; /* the last argument is an array of what is repeated */
	int nargs;	   /* that a caller gives: IN, INOUT and VARIADIC */
	CallArgument *args;
} CallFunction;

/*
 * What the function is like now.  An error (ERRCODE_WRONG_OBJECT_TYPE,
 * ERRCODE_FEATURE_NOT_SUPPORTED) when it cannot be called with arguments from a
 * JSON object; NULL when there is no such function.
 */
extern CallFunction *CallFunctionGet(Oid oid);

#endif /* CHANGEFEED_CALL_FUNCTION_H */
