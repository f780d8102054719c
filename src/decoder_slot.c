/*-------------------------------------------------------------------------
 *
 * decoder_slot.c
 *		The decoder's replication slot: finding the one of the database, or
 *		creating it.
 *
 * The slot's name is pg_changefeed_<database OID>_<epoch>.  That is the only
 * place where the epoch is kept: neither a dump nor a base backup carries it
 * along, so what was restored from one has a slot, and an epoch, of its own.
 *
 * Process: decoder, outside any transaction.
 *
 * Memory: decoder_context.
 *
 * Locks: ReplicationSlotControlLock, for copying.  While a slot is created the
 * ends of the running transactions are waited for.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "decoder.h"
#include "stat.h"
#include "wal2json.h"

#include "access/xlog.h"
#include "access/xlogutils.h"
#include "replication/decode.h"
#include "replication/logical.h"
#include "replication/slot.h"
#include "storage/proc.h"
#include "storage/spin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"

/* How long (ms) the lock of a running transaction is waited for. */
#define LOCK_WAIT 10000

/*
 * Settings without which no slot can exist.  Said here, in one line that tells
 * what to write where, rather than by the first function that fails.
 */
static void
CheckSettings(void)
{
	if (wal_level < WAL_LEVEL_LOGICAL)
		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("change feed of database \"%s\" needs \"wal_level\" to be \"logical\"",
					decoder_database),
			 errhint("Put \"wal_level = logical\" into postgresql.conf and restart the server.")));
	if (max_replication_slots == 0)
		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg(
				 "change feed of database \"%s\" needs a replication slot, and the server has none",
				 decoder_database),
			 errhint(
				 "Put \"max_replication_slots = 10\" into postgresql.conf and restart the server.")));
	if (StatWalLimit() != setting_history_wal_size)
		ereport(
			LOG,
			(errmsg(
				 "\"max_slot_wal_keep_size\" is smaller than \"changefeed.history_wal_size\" of database \"%s\"",
				 decoder_database),
			 errdetail(
				 "So the server drops the WAL that the change feed needs, before the feed lets go of it."),
			 errhint("Increase \"max_slot_wal_keep_size\", or set it to -1.")));
}

/*
 * Says that a bound is near, ours or the server's, while there is time to do
 * something about it.  Once, until it has been far away again.
 */
void
DecoderWarnOfWal(uint64 held)
{
	static bool warned = false;
	int limit = StatWalLimit();
	bool servers = limit != setting_history_wal_size;
	uint64 share = (uint64) limit * 1024 * 1024 / 4;

	if (held <= share * 2)
		warned = false;
	if (held <= share * 3 || warned)
		return;
	warned = true;
	ereport(
		WARNING,
		(errmsg("replication slot of the change feed of database \"%s\" keeps %llu MB of WAL",
				decoder_database, (unsigned long long) (held / (1024 * 1024))),
		 errdetail(
			 "At %d MB (\"%s\") it is lost, a new one is made, and every client gets a fresh snapshot.",
			 limit, servers ? "max_slot_wal_keep_size" : "changefeed.history_wal_size"),
		 errhint(
			 "Look in pg_stat_activity for a transaction that stays open, in pg_prepared_xacts, and for a synchronous standby that is missing; or increase the setting.")));
}

/* The output plugin of our slot. */
static const char *
PluginName(void)
{
	return setting_decoder == DECODER_WAL2JSON ? WAL2JSON_PLUGIN : CHANGEFEED_LIBRARY;
}

/*
 * From the minor releases of August 2026 on the server loads only the output
 * plugins that a setting names.  Ours is one for our own process alone.
 */
static void
AllowOutputPlugin(void)
{
	if (GetConfigOption("output_plugin_libraries", true, false) != NULL)
		SetConfigOption("output_plugin_libraries", PluginName(), PGC_SUSET, PGC_S_OVERRIDE);
}

/* The epoch that a slot's name carries; 0: it is none of this database's. */
static uint64
EpochOfSlot(const char *name)
{
	char prefix[NAMEDATALEN];
	const char *digits;

	snprintf(prefix, sizeof(prefix), "pg_changefeed_%u_", MyDatabaseId);
	if (strncmp(name, prefix, strlen(prefix)) != 0)
		return 0;
	digits = name + strlen(prefix);
	if (strlen(digits) != 16 || strspn(digits, "0123456789abcdef") != 16)
		return 0;
	return strtou64(digits, NULL, 16);
}

/* A slot can be read only with the plugin that it was made for. */
static bool
IsOfOtherDecoder(const ReplicationSlot *slot)
{
	return strcmp(NameStr(slot->data.plugin), PluginName()) != 0;
}

/* Whether standbys keep a copy of our slot, which they go on from when promoted. */
static void
SetFailover(bool failover)
{
	ReplicationSlot *slot = MyReplicationSlot;

	if (compat_slot_is_failover(slot) == failover)
		return;
	SpinLockAcquire(&slot->mutex);
	compat_slot_set_failover(slot, failover);
	SpinLockRelease(&slot->mutex);
	ReplicationSlotMarkDirty();
	ReplicationSlotSave();
}

uint64
DecoderAcquireSlot(void)
{
	ReplicationSlot *found = palloc0_array(ReplicationSlot, Max(max_replication_slots, 1));
	int nfound = 0;
	int best = -1;
	uint64 epoch = 0;

	CheckSettings();
	AllowOutputPlugin();

	/* Before a slot of the other decoder is dropped. */
	if (setting_decoder == DECODER_WAL2JSON)
		Wal2jsonPrepare();

	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	for (int i = 0; i < max_replication_slots; i++)
	{
		ReplicationSlot *slot = &ReplicationSlotCtl->replication_slots[i];

		if (!slot->in_use)
			continue;
		SpinLockAcquire(&slot->mutex);
		found[nfound].data = slot->data;
		SpinLockRelease(&slot->mutex);
		if (found[nfound].data.database == MyDatabaseId &&
			(strcmp(NameStr(found[nfound].data.plugin), CHANGEFEED_LIBRARY) == 0 ||
			 strcmp(NameStr(found[nfound].data.plugin), WAL2JSON_PLUGIN) == 0) &&
			EpochOfSlot(NameStr(found[nfound].data.name)) != 0 &&
			!compat_slot_is_foreign(&found[nfound]))
			nfound++;
	}
	LWLockRelease(ReplicationSlotControlLock);

	for (int i = 0; i < nfound; i++)
	{
		if (compat_slot_is_invalid(&found[i]) || IsOfOtherDecoder(&found[i]))
			continue;
		if (best < 0 || found[i].data.restart_lsn > found[best].data.restart_lsn)
			best = i;
	}

	for (int i = 0; i < nfound; i++)
	{
		if (i == best)
			continue;
		if (compat_slot_is_invalid(&found[i]))
		{
			pg_atomic_fetch_add_u64(&decoder_feed->slots_invalidated, 1);
			ereport(
				LOG,
				(errmsg(
					 "change feed of database \"%s\" drops replication slot \"%s\" because the server has invalidated it",
					 decoder_database, NameStr(found[i].data.name)),
				 errdetail(
					 "WAL that it needs may have been removed.  Every client gets a fresh snapshot."),
				 errhint(
					 "\"max_slot_wal_keep_size\" should be greater than \"changefeed.history_wal_size\".")));
		}
		else if (IsOfOtherDecoder(&found[i]))
			ereport(
				LOG,
				(errmsg(
					 "change feed of database \"%s\" drops replication slot \"%s\" because it is of another decoder",
					 decoder_database, NameStr(found[i].data.name)),
				 errdetail(
					 "Its output plugin is \"%s\", \"changefeed.decoder\" asks for \"%s\".  Every client gets a fresh snapshot.",
					 NameStr(found[i].data.plugin), PluginName())));
		else
			ereport(
				LOG,
				(errmsg(
					"change feed of database \"%s\" drops replication slot \"%s\" because another one is further ahead",
					decoder_database, NameStr(found[i].data.name))));
		ReplicationSlotDrop(NameStr(found[i].data.name), false);
	}

	if (best >= 0)
	{
		/* Its last owner may be about to end: this waits for it. */
		compat_slot_acquire(NameStr(found[best].data.name));
		if (compat_slot_is_invalid(MyReplicationSlot))
			ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
							errmsg("replication slot \"%s\" has just been invalidated",
								   NameStr(MyReplicationSlot->data.name))));
		epoch = EpochOfSlot(NameStr(MyReplicationSlot->data.name));
		SetFailover(setting_failover_slot);
	}
	pfree(found);
	return epoch;
}

/*
 * Reads WAL until decoding can begin, which is when every transaction that
 * runs now has ended.
 *
 * This is DecodingContextFindStartpoint but for one thing: there the wait is
 * for the locks of those transactions, without end, and meanwhile the slot
 * holds WAL that nobody bounds.  We limit the wait for a lock, and when that
 * runs out go on to wait for WAL: we write the running transactions down now
 * and then, and the snapshot builder goes by those records alone.
 */
static void
FindStartpoint(LogicalDecodingContext *ctx)
{
	ReplicationSlot *slot = MyReplicationSlot;
	int old_lock_timeout = LockTimeout;

	LockTimeout = LOCK_WAIT;
	XLogBeginRead(ctx->reader, slot->data.restart_lsn);
	do
	{
		char *message = NULL;
		XLogRecord *record;

		MemoryContextSwitchTo(decoder_context);
		DecoderHandleInterrupts();

		record = XLogReadRecord(ctx->reader, &message);
		if (record == NULL)
			elog(ERROR, "could not find a starting point for decoding: %s",
				 message ? message : "end of WAL");

		PG_TRY();
		{
			LogicalDecodingProcessRecord(ctx, ctx->reader);
		}
		PG_CATCH();
		{
			static bool said = false;

			if (geterrcode() != ERRCODE_LOCK_NOT_AVAILABLE)
				PG_RE_THROW();

			/* The lock manager has cleaned up already (see ProcessInterrupts), unless it was granted just then. */
			LockReleaseAll(DEFAULT_LOCKMETHOD, true);
			MemoryContextSwitchTo(decoder_context);
			FlushErrorState();
			if (!said)
				ereport(
					LOG,
					(errmsg(
						 "change feed of database \"%s\" waits for transactions to end before it can begin",
						 decoder_database),
					 errdetail(
						 "Its replication slot can be created only when every transaction that was running has ended."),
					 errhint(
						 "Look in pg_stat_activity for sessions that are \"idle in transaction\", and in pg_prepared_xacts.")));
			said = true;
		}
		PG_END_TRY();
	} while (!DecodingContextReady(ctx));
	LockTimeout = old_lock_timeout;

	SpinLockAcquire(&slot->mutex);
	slot->data.confirmed_flush = ctx->reader->EndRecPtr;
	SpinLockRelease(&slot->mutex);
}

/* Until it is ready the slot is ephemeral: whatever fails removes it. */
uint64
DecoderCreateSlot(void)
{
	LogicalDecodingContext *ctx;
	char name[NAMEDATALEN];
	uint64 epoch;
	int used = 0;

	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	for (int i = 0; i < max_replication_slots; i++)
		used += ReplicationSlotCtl->replication_slots[i].in_use ? 1 : 0;
	LWLockRelease(ReplicationSlotControlLock);
	if (used >= max_replication_slots)
		ereport(
			ERROR,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg(
				 "change feed of database \"%s\" needs a replication slot, and all %d are in use",
				 decoder_database, max_replication_slots),
			 errhint(
				 "Put \"max_replication_slots = %d\" into postgresql.conf and restart the server, or drop a slot that is not needed.",
				 max_replication_slots + 1)));

	do
	{
		if (!pg_strong_random(&epoch, sizeof(epoch)))
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not generate a random epoch")));
	} while (epoch == 0);
	snprintf(name, sizeof(name), "pg_changefeed_%u_%016llx", MyDatabaseId,
			 (unsigned long long) epoch);

	CheckLogicalDecodingRequirements();
	compat_slot_create(name, setting_failover_slot);
	ctx = CreateInitDecodingContext(PluginName(), NIL, false, InvalidXLogRecPtr, DECODER_READER(),
									NULL, NULL, NULL);
	FindStartpoint(ctx);
	MemoryContextSwitchTo(decoder_context);
	FreeDecodingContext(ctx);
	ReplicationSlotPersist();

	ereport(LOG, (errmsg("change feed of database \"%s\" created replication slot \"%s\"",
						 decoder_database, name)));
	return epoch;
}
