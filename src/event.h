/*-------------------------------------------------------------------------
 *
 * event.h
 *		Events of sources: what a changed row says under a name.
 *
 * Process: event_expression.c any; event_deliver.c the feed worker;
 * event_ddl.c backends.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_EVENT_H
#define CHANGEFEED_EVENT_H

#include "pg_changefeed.h"

#include "access/tupdesc.h"
#include "nodes/bitmapset.h"
#include "nodes/primnodes.h"

#define EVENT_INSERT 1
#define EVENT_UPDATE 2
#define EVENT_DELETE 4

/* Which columns an expression reads, by attribute number. */
typedef struct EventColumns
{
	Bitmapset *of_old;
	Bitmapset *of_new;
} EventColumns;

/*
 * Parses and checks a condition or a payload, for rows of that type; `what`
 * names it in messages.  Columns are written old.c and new.c, and are Vars of
 * OUTER_VAR and INNER_VAR.  A condition is boolean, a payload json or jsonb.
 */
extern Node *EventAnalyze(const char *what, const char *text, TupleDesc tupdesc, bool condition,
						  EventColumns *columns);

#endif /* CHANGEFEED_EVENT_H */
