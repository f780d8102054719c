/*-------------------------------------------------------------------------
 *
 * relation_state.h
 *		The state of a relation's catalogs, as far as it decides who sees what.
 *
 * Process: feed worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_RELATION_STATE_H
#define CHANGEFEED_RELATION_STATE_H

#include "nodes/pg_list.h"

typedef struct ColumnState
{
	NameData name;
	Oid type;
	Oid collation;
	char generated;
	bool notnull;
	bool dropped;
	TransactionId xmin; /* of its catalog row */
	uint64 added;		/* the transaction that brought it; 0: before */
} ColumnState;

typedef struct PartState
{
	Oid relid;
	Oid filenode;
	TransactionId made; /* by which transaction */
} PartState;

/* A label of an enum, an attribute of a composite type, a cast to json. */
typedef struct LabelState
{
	uint64 id;
	uint64 hash;
} LabelState;

typedef struct RelationState
{
	bool exists;
	char kind;
	char persistence;
	Oid filenode;
	uint64 privileges;
	uint64 policies;
	Oid owner;
	uint64 owner_roles; /* of a view: the roles that its owner has */
	uint32 schema;		/* the hash that barriers name it by */
	int ncolumns;
	ColumnState *columns;
	int nparts; /* of all levels, sorted */
	PartState *parts;
	int nlabels; /* sorted */
	LabelState *labels;
	int maxlabels;
	List *types; /* pg_class OIDs of composite types */
} RelationState;

/* Reads that of now, into CurrentMemoryContext.  `exists` tells whether there is one. */
extern void RelationReadState(Oid relid, RelationState *state);

#endif /* CHANGEFEED_RELATION_STATE_H */
