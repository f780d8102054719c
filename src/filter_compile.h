/*-------------------------------------------------------------------------
 *
 * filter_compile.h
 *		Filters as expressions.  See filter_compile.c.
 *
 * Process: feed worker (FilterIsRegex: any).
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_FILTER_COMPILE_H
#define CHANGEFEED_FILTER_COMPILE_H

#include "pg_changefeed.h"

#include "executor/tuptable.h"
#include "nodes/execnodes.h"

/*
 * The canonical text as an expression on rows of that type, in the current
 * context.  `costly`: it has regular expressions, so time needs a limit.
 */
extern ExprState *FilterCompile(TupleDesc tupdesc, const char *text, bool *costly);

/* Null counts as false.  May raise an error of a function in the filter. */
extern bool
FilterEvaluate(ExprState *filter, TupleTableSlot *slot, const Datum *values, const bool *isnull);

/* Does the function match a regular expression? */
extern bool FilterIsRegex(Oid function, void *context);

#endif /* CHANGEFEED_FILTER_COMPILE_H */
