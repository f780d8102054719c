/*-------------------------------------------------------------------------
 *
 * selection.h
 *		What follows "?" in a channel's name, as clients write it.
 *
 * The syntax and the meaning are PostgREST's: conditions on columns, "select",
 * "order" and "limit".  A selection is read by the feed worker, which refuses
 * what is malformed and finds those who want the same, and once more by the
 * query worker, which knows the tables.
 *
 * Process: feed worker, query workers, and any backend for tests.  Memory:
 * results in CurrentMemoryContext.  No locks, no catalogs.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_SELECTION_H
#define CHANGEFEED_SELECTION_H

#include "pg_changefeed.h"

#include "lib/stringinfo.h"
#include "nodes/pg_list.h"

#define SELECTION_MAX			 4096 /* bytes */
#define SELECTION_MAX_DEPTH		 10	  /* of and(), or() */
#define SELECTION_MAX_CONDITIONS 100
#define SELECTION_MAX_VALUES	 500 /* of one in.() */
#define SELECTION_MAX_ORDER		 8
#define SELECTION_MAX_LIMIT		 10000

typedef struct SelectionStep
{
	bool text;	/* ->> */
	bool index; /* the key is a number */
	char *key;
} SelectionStep;

/* A column, or a path into one. */
typedef struct SelectionField
{
	char *column;
	List *path; /* of SelectionStep */
} SelectionField;

typedef enum SelectionNodeKind
{
	SELECTION_AND,
	SELECTION_OR,
	SELECTION_COMPARE, /* field operator value */
	SELECTION_IN,	   /* field = any of the values */
	SELECTION_IS,	   /* field IS value (a keyword) */
	SELECTION_DISTINCT /* field IS DISTINCT FROM value */
} SelectionNodeKind;

typedef struct SelectionNode
{
	SelectionNodeKind kind;
	bool negated;
	List *children; /* of SelectionNode */
	SelectionField field;
	const char *operator;	/* in SQL */
	const char *quantifier; /* "ANY", "ALL" or NULL */
	char *value;
	List *values; /* of char * */
	char *sql;	  /* the condition, without names of tables */
} SelectionNode;

typedef struct SelectionOrder
{
	SelectionField field;
	const char *direction; /* in SQL, with a space before it */
} SelectionOrder;

typedef struct Selection
{
	List *conditions; /* of SelectionNode: all of them, sorted */
	char *sql;		  /* they as one expression, "" for none: the same for
						 * selections that mean the same */
	List *columns;	  /* of char *; NIL: all */
	List *order;	  /* of SelectionOrder */
	int limit;		  /* 0: none */
} Selection;

typedef struct SelectionError
{
	const char *sqlstate;
	char *message;
	char *hint; /* or NULL */
} SelectionError;

/* selection_parse.c: NULL with `error` filled in when it is malformed. */
extern Selection *SelectionParse(const char *text, Size length, SelectionError *error);

/* selection_decode.c: NULL, with the rest filled in, when it is malformed. */
extern char *SelectionDecode(const char *from, Size length, const char **sqlstate, char **problem,
							 const char **hint);

/* selection_sql.c */
extern void SelectionAppendField(StringInfo out, const SelectionField *field);

/* Writes the SQL of a condition, whose children have theirs. */
extern char *SelectionNodeSql(const SelectionNode *node);

/* The conditions as one expression, "" when there is none. */
extern char *SelectionJoin(const List *conditions);

#endif /* CHANGEFEED_SELECTION_H */
