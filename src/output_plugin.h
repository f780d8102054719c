/*-------------------------------------------------------------------------
 *
 * output_plugin.h
 *		What the output plugin shares with the decoder that reads another
 *		plugin's text (output_wal2json.c).
 *
 * Process: decoder only.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CHANGEFEED_OUTPUT_PLUGIN_H
#define CHANGEFEED_OUTPUT_PLUGIN_H

#include "postgres.h"

#include "replication/logical.h"
#include "replication/output_plugin.h"
#include "replication/reorderbuffer.h"
#include "utils/rel.h"

/*
 * Gives the rows of a change, of the relation's row type; no old row: NULL.
 * Returns NULL, or the reason why they could not be read.  What it allocates
 * may be left in the current context.
 */
typedef char *(*RowsReader)(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, Relation relation,
							ReorderBufferChange *change, HeapTuple *old_tuple,
							HeapTuple *new_tuple);

/* Our callbacks. */
extern void PluginFillCallbacks(OutputPluginCallbacks *cb);

/* Makes them ready for a context; NULL: rows are those in the WAL. */
extern void PluginAttach(LogicalDecodingContext *ctx, RowsReader reader);

/*
 * In a PG_CATCH block: the message of an error that comes of the data, so that
 * it would come again.  Other errors are thrown on.
 */
extern char *PluginCatch(MemoryContext context);

/* Sends a record of the transaction that is being replayed. */
extern void PluginSend(const char *data, Size length);

/* output_barriers.c: at the beginning and at the end of a transaction */
extern void BarriersBegin(LogicalDecodingContext *ctx, ReorderBufferTXN *txn);
extern void BarriersSend(ReorderBufferTXN *txn);

/* output_messages.c: a transaction begins to be replayed */
extern void OutputMessagesBegin(void);

/*
 * Reads a message of the transaction (0: none).  False: it is forged, repeated
 * or damaged, which is counted and logged now and then.
 */
struct WalMessage;
extern bool OutputReadMessage(uint64 xid, bool transactional, const char *data, Size size,
							  struct WalMessage *message);

/* output_catalog.c: what the transaction at hand did to our own tables */
#define CATALOG_CHANNELS 64

struct KnownRelation;

typedef struct CatalogChanges
{
	bool any;
	int nchannels; /* -1: all may be others */
	int channels[CATALOG_CHANNELS];
	Oid revocations; /* the table, if it was changed */
} CatalogChanges;

extern CatalogChanges catalog_changes;

extern void
CatalogNote(struct KnownRelation *known, Relation relation, ReorderBufferChange *change);

#endif /* CHANGEFEED_OUTPUT_PLUGIN_H */
