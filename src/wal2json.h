/*-------------------------------------------------------------------------
 *
 * wal2json.h
 *		The second decoder: wal2json as the plugin of the replication slot, its
 *		text turned back into rows.
 *
 * Process: see each part.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_WAL2JSON_H
#define CHANGEFEED_WAL2JSON_H

#include "pg_changefeed.h"

#include "nodes/pg_list.h"
#include "replication/logical.h"
#include "utils/rel.h"

#define WAL2JSON_PLUGIN "wal2json"

/* ---- wal2json_subset.c: any process, in a transaction ---- */

/*
 * Is this database decoded with wal2json?  What counts is the slot; the
 * setting only while there is none.
 */
extern bool Wal2jsonInUse(void);

/*
 * NULL if text and value of a type are the same thing, or a sentence that
 * tells why not.
 */
extern char *Wal2jsonTypeProblem(Oid type);

/* The first column whose values cannot be turned back, or NULL. */
extern Form_pg_attribute Wal2jsonFindProblem(TupleDesc tupdesc, char **problem);

/* Raises an error if the rows of the table cannot be turned back. */
extern void Wal2jsonCheckTable(Relation relation);

/* ---- output_wal2json.c: decoder ---- */

/*
 * Makes wal2json ready to be loaded, settings on which its text depends
 * included; an error that tells what to do if it is not there.
 */
extern void Wal2jsonPrepare(void);

/* For CreateDecodingContext. */
extern List *Wal2jsonOptions(void);

/*
 * Puts our callbacks before those of wal2json, whose context this is: rows come
 * from its text, everything else from us.
 */
extern void Wal2jsonAttach(LogicalDecodingContext *ctx);

#endif /* CHANGEFEED_WAL2JSON_H */
