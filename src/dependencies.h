/*-------------------------------------------------------------------------
 *
 * dependencies.h
 *		What dependencies.c and dependency_rows.c share.
 *
 * Process: feed worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_DEPENDENCIES_H
#define CHANGEFEED_DEPENDENCIES_H

#include "feed.h"

#include "fmgr.h"

typedef struct Condition
{
	int16 column;
	Oid column_type;
	FmgrInfo equality;
	FmgrInfo column_hash;
	FmgrInfo value_hash;
	Oid collation;
	int16 row_column; /* of the judged row; 0: fixed values */
	Oid type;		  /* of the row's column */
	int row_param;	  /* which parameter of the channel's name that is, -1:
					   * none, -2: not looked for yet */
	FmgrInfo input;	  /* of `type` */
	Oid ioparam;
	int nvalues;
	Datum *values;
} Condition;

typedef struct DependencyScan
{
	int nconditions;
	Condition *conditions;
} DependencyScan;

/* What of one table matters to a view. */
typedef struct DependencyDetails
{
	dlist_node node;		   /* in the table's list of all */
	dlist_node unindexed_node; /* likewise, of those that are not indexed */
	struct DependedTable *table;
	Identity *identity;
	View *view;
	uint8 kind; /* NARROW_* */
	bool indexed;
	bool compares_row; /* there are conditions on the judged row */
	bool all_columns;
	int ncolumns;
	int16 *columns;
	int nscans;
	DependencyScan *scans;
	uint64 found; /* scratch: the look at a transaction that found it */
} DependencyDetails;

/* Conditions of the same column by the same operator, by hash of the value. */
typedef struct ValueGroup
{
	int16 column;
	Oid column_type;
	Oid equality;
	Oid collation;
	FmgrInfo column_hash;
	HTAB *buckets; /* of Bucket */
} ValueGroup;

typedef struct Bucket
{
	uint32 hash;
	List *details;
} Bucket;

typedef struct DependedTable
{
	Oid relid;
	int nviews;
	bool narrowed;		/* for some view: its rows are wanted */
	TimestampTz unused; /* since then there are no views */
	dlist_head details;
	dlist_head unindexed;
	int nunindexed;
	List *groups;
} DependedTable;

/* A changed row, deformed. */
typedef struct Image
{
	bool exists;
	Datum *values;
	bool *isnull;
	bool *known;
} Image;

typedef struct RowChange
{
	const RecordDescription *desc;
	Image old_row;
	Image new_row;
	bool *unchanged; /* columns that the WAL says are */
} RowChange;

/* What the judged row is known to be like. */
typedef struct JudgedRow
{
	Subscription *subscription; /* a row of its channel */
	MapImage *image;			/* this row */
} JudgedRow;

/* ---- dependency_rows.c ---- */

/* Reads what a query worker has found out, in CurrentMemoryContext. */
extern void DependencyReadDetails(DependencyDetails *details, WireReader *r);

/* In CurrentMemoryContext. */
extern void DependencyMakeChange(RowChange *change, const LogChange *from);

/*
 * Does the change make a difference for the judged row, or to any row?  May
 * raise an error of a type's function.
 */
extern bool
DependencyChangeConcerns(const RowChange *change, DependencyDetails *details, const JudgedRow *row);

/* Are all changes that the transaction made to the table in the log? */
extern bool DependencyIsTold(const LogTransaction *transaction, Oid relid);

#endif /* CHANGEFEED_DEPENDENCIES_H */
