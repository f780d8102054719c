/*-------------------------------------------------------------------------
 *
 * function_names.h
 *		Functions by name and argument types, as the extension's tables keep them.
 *
 * pg_upgrade gives functions other OIDs, and refuses tables with columns of type
 * regprocedure.  So changefeed.function and changefeed.dependency have
 * signatures, each with its schema and that of its types.  A function that is
 * renamed, or whose schema or types are, is followed (hooks.c); the rows of one
 * that is dropped go with it (changefeed_tables_dropped).  Where neither could be
 * done, because the library was not loaded, the row stands for no function.
 *
 * Process: any.  Memory: results in the current context.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_FUNCTION_NAMES_H
#define CHANGEFEED_FUNCTION_NAMES_H

#include "postgres.h"

#include "nodes/pg_list.h"

/* The function with exactly that signature, or InvalidOid. */
extern Oid FunctionOfSignature(const char *signature);

/*
 * Around a command that may rename functions: the tables are written in the second,
 * which gets what the first one has found.
 */
extern List *FunctionNamesBefore(void);
extern void FunctionNamesAfter(List *names);

#endif /* CHANGEFEED_FUNCTION_NAMES_H */
