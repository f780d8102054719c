/*-------------------------------------------------------------------------
 *
 * policy_shape.h
 *		The expression that the rules of many identities share.
 *
 * Process: feed worker.  Memory: a context of the shape's own.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_POLICY_SHAPE_H
#define CHANGEFEED_POLICY_SHAPE_H

#include "policy_rule.h"

#include "nodes/execnodes.h"
#include "nodes/params.h"
#include "nodes/primnodes.h"
#include "utils/typcache.h"

/* Descriptions of a table that a shape is kept compiled for. */
#define MAX_COMPILED 2

typedef struct CompiledShape
{
	uint32 version;	  /* of the description */
	ExprState *state; /* NULL: the shape does not fit it */
	TupleTableSlot *slot;
	ExprContext *econtext; /* what an evaluation keeps goes with `context` */
	MemoryContext context;
} CompiledShape;

/* A demand, and where its values are. */
typedef struct ShapeDemand
{
	PolicyDemand demand;
	int param;			   /* from 1; 0: `value` */
	Const *value;		   /* a constant of the expression */
	bool is_array;		   /* of values, one of which it is */
	TypeCacheEntry *cache; /* of its type, which may be gone by now */
} ShapeDemand;

typedef struct Shape
{
	struct Shape *next; /* with the same hash */
	uint64 hash;
	int refcount;
	MemoryContext context;
	Oid relid;
	char *text;
	int length;
	bool refused;	/* it is not evaluated here */
	Verdict always; /* VERDICT_UNKNOWN: it depends on the row */
	bool can_fail;
	Size limit; /* of what it reads of a row */
	Node *expr;
	int ncolumns;
	Var **columns; /* one of each */
	int nconstants;
	Oid *types; /* of constants */
	int16 *typlens;
	bool *byvals;
	ParamListInfo params;
	int ndemands;
	ShapeDemand *demands;
	CompiledShape compiled[MAX_COMPILED];
	int ncompiled;
} Shape;

/*
 * Reads `text`, in the current context, which is the shape's.  Returns false if
 * the expression cannot be evaluated in the feed worker; an error if a type or
 * a collation of it is not there any more.
 */
extern bool PolicyShapeRead(Shape *shape);

#endif
