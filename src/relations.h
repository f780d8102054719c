/*-------------------------------------------------------------------------
 *
 * relations.h
 *		What decoder, feed worker and query workers ask about rights.
 *
 * Process: all of these, each with the catalogs that it sees.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_RELATIONS_H
#define CHANGEFEED_RELATIONS_H

#include "access/attnum.h"
#include "access/htup.h"

/* The hash with these bytes, with that column of privileges or options, added. */
extern uint64 RelationMixBytes(uint64 state, const void *data, Size length);
extern uint64 RelationMixArray(uint64 state, int cacheid, HeapTuple tuple, AttrNumber attno);

/* With the role, and through which memberships it has which other roles. */
extern uint64 RelationMixRole(uint64 state, Oid role);

/*
 * A hash of what of a relation can be changed and changed back without a
 * trace: privileges, whether it has row security, names of columns.  0: there
 * is no such relation.
 */
extern uint64 RelationRights(Oid relid);

#endif /* CHANGEFEED_RELATIONS_H */
