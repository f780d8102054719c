/*-------------------------------------------------------------------------
 *
 * output_state.h
 *		Has a transaction changed anything of a relation that matters?
 *
 * Process: decoder only.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_OUTPUT_STATE_H
#define CHANGEFEED_OUTPUT_STATE_H

#include "postgres.h"

#include "replication/logical.h"
#include "replication/reorderbuffer.h"

/* Decoding begins, at a place of its own: nothing is known. */
extern void StatesBegin(void);

/*
 * At the begin of a transaction: takes note of the state of these relations,
 * which it has invalidated (`all`: and of others), in front of it.
 */
extern void StatesBefore(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, const Oid *relids,
						 int nrelids, bool all);

/*
 * At the commit of that transaction: is the relation certain to be as it was
 * in front of it?  To be asked for each of them, unless it was `all`.
 */
extern bool StateUnchanged(Oid relid);

#endif /* CHANGEFEED_OUTPUT_STATE_H */
