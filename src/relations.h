/*-------------------------------------------------------------------------
 *
 * relations.h
 *		What decoder and feed worker both ask about a relation.
 *
 * Process: decoder and feed worker, each with the catalogs that it sees.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_RELATIONS_H
#define CHANGEFEED_RELATIONS_H

#include "access/attnum.h"
#include "access/htup.h"

/* The hash with these bytes, with that column of privileges, added. */
extern uint64 RelationMixBytes(uint64 state, const void *data, Size length);
extern uint64 RelationMixAcl(uint64 state, int cacheid, HeapTuple tuple, AttrNumber attno);

/*
 * A hash of what of a relation can be changed and changed back without a
 * trace: privileges, whether it has row security, names of columns.  0: there
 * is no such relation.
 */
extern uint64 RelationRights(Oid relid);

#endif /* CHANGEFEED_RELATIONS_H */
