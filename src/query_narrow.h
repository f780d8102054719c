/*-------------------------------------------------------------------------
 *
 * query_narrow.h
 *		What the parts that narrow a policy's dependencies share; see
 *		query_narrow.c.
 *
 * Process: query worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_QUERY_NARROW_H
#define CHANGEFEED_QUERY_NARROW_H

#include "query_internal.h"

/* A condition on a column of a scanned table. */
typedef struct Condition
{
	AttrNumber column;
	Oid column_type;
	Oid equality; /* function */
	Oid column_hash;
	Oid value_hash;
	Oid collation;
	AttrNumber row_column; /* of the judged row, or 0: */
	int value;			   /* index among the statement's values */
	bool is_array;		   /* the value is an array, any element will do */
	Oid type;			   /* of the value (its elements), or the row's column */
} Condition;

/* A scan, by one of the statements. */
typedef struct TableScan
{
	Oid relid;
	bool whole;			/* all columns are used */
	Bitmapset *columns; /* offset by FirstLowInvalidHeapAttributeNumber */
	List *conditions;	/* of Condition */
	int statement;		/* its values belong to */
} TableScan;

struct Narrowing
{
	bool nothing;	  /* every change concerns */
	bool all_columns; /* the order of rows may matter */
	List *scans;	  /* of TableScan */
	List *anyhow;	  /* Oid of tables of which every change concerns */
	List *values;	  /* of PlannedStmt, or NULL: the statements' values, as
					   * columns of one row */
};

/* What is known while a statement is read. */
typedef struct Statement
{
	Narrowing *narrowing;
	PlannedStmt *plan;
	int nparams;		 /* parameters up to here are the judged row's */
	bool as_somebody;	 /* runs as the owner of a function */
	Bitmapset **columns; /* by index into the range table */
	List **conditions;	 /* lists of conditions, likewise */
	bool *scanned;		 /* likewise */
	List **index_tlists; /* likewise */
	List *init_plans;	 /* of SubPlan */
	List *subplans;		 /* likewise, the others */
	List *values;		 /* of expressions */
	List **functions;	 /* SQL functions that are called, by Oid */
	bool *opaque;
} Statement;

/* What a node has besides target list, qual, left and right tree. */
typedef struct NodeParts
{
	bool unknown;
	bool order;		   /* its result may depend on the order of rows */
	bool all_targets;  /* every column counts, used above or not */
	bool all_inputs;   /* it uses every column from below */
	List *expressions; /* or lists of them */
	List *children;	   /* further ones, all of whose columns are used */
	List *conditions;  /* of lists: what a scan checks */
	List *index_tlist; /* what INDEX_VAR refers to */
	int ninputs;
	AttrNumber *inputs; /* columns of the left tree that it uses */
} NodeParts;

/* query_plan.c */
extern void PlanExamineNode(Plan *plan, NodeParts *parts);

/*
 * Reads the plan of a statement and adds what it finds.  `nparams`: its
 * parameters up to there are the columns of the judged row.  `functions` gets
 * SQL functions that it calls.
 */
extern void PlanReadStatement(Narrowing *narrowing, PlannedStmt *plan, int nparams,
							  bool as_somebody, List **functions, bool *opaque);

/* query_conditions.c */

/* What rows of a scan fulfil, as far as it can be made use of. */
extern List *ConditionsOf(Statement *statement, Index scan);

/* Does the plan read no tables, and give the same to an identity always? */
extern bool ConditionsPlanIsFixed(Statement *statement, Plan *plan);

/* The statement's values as one row of a query of their own, or NULL. */
extern PlannedStmt *ConditionsValues(Statement *statement);

#endif /* CHANGEFEED_QUERY_NARROW_H */
