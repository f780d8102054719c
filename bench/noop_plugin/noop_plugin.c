/*-------------------------------------------------------------------------
 *
 * noop_plugin.c
 *		An output plugin that does nothing: what the server itself needs for
 *		decoding, as the reference for the decoder's rate.
 *
 * The comparison that is fair: one piece of WAL, read by both in the same server,
 * one after the other, each in a process of the server:
 *
 * - reference: SELECT count(*) FROM pg_logical_slot_get_binary_changes(slot,
 *   NULL, NULL), CPU time of that backend;
 * - ours: the decoder is stopped (SIGSTOP) while the WAL is written and goes on
 *   (SIGCONT) when it is there; CPU time of the decoder until decoded_lsn has
 *   come to the end, and beside it that of the feed worker, which takes what the
 *   decoder sends.
 *
 * Both read the WAL from the system's page cache, run the same reorder buffer,
 * and start and abort a transaction for each that they replay.  What differs
 * is what is done for a change.  CPU times, not seconds: the decoder may wait
 * for the feed worker, and shares the machine with it.
 *
 * Process: any that decodes.  Memory: none.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "replication/logical.h"
#include "replication/output_plugin.h"
#include "replication/reorderbuffer.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_output_plugin_init(OutputPluginCallbacks *cb);

static void
Startup(LogicalDecodingContext *ctx, OutputPluginOptions *options, bool is_init)
{
	options->output_type = OUTPUT_PLUGIN_BINARY_OUTPUT;
	options->receive_rewrites = false;
}

static void
Begin(LogicalDecodingContext *ctx, ReorderBufferTXN *txn)
{
}

static void
Change(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, Relation relation,
	   ReorderBufferChange *change)
{
}

static void
Commit(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr commit_lsn)
{
}

void
_PG_output_plugin_init(OutputPluginCallbacks *cb)
{
	cb->startup_cb = Startup;
	cb->begin_cb = Begin;
	cb->change_cb = Change;
	cb->commit_cb = Commit;
}
