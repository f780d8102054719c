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

/*
 * A hash of what of a relation can be changed and changed back without a
 * trace: privileges, whether it has row security, names of columns.  0: there
 * is no such relation.
 */
extern uint64 RelationRights(Oid relid);

#endif /* CHANGEFEED_RELATIONS_H */
