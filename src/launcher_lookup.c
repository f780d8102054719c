/*-------------------------------------------------------------------------
 *
 * launcher_lookup.c
 *		The launcher's looks at shared catalogs and replication slots.
 *
 * The launcher is connected to no database, so it scans pg_database as it
 * stands; that is rare and the table is small.
 *
 * Process: launcher.  Locks: AccessShareLock on pg_database within short
 * transactions; ReplicationSlotControlLock and the slots' spinlocks while
 * copying.  Memory: see launcher.h.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "launcher.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "replication/slot.h"
#include "storage/lwlock.h"
#include "storage/spin.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

List *
ListDatabases(void)
{
	MemoryContext result_context = CurrentMemoryContext;
	List *list = NIL;
	Relation rel;
	TableScanDesc scan;
	HeapTuple tuple;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);
		DatabaseInfo *info;
		MemoryContext old_context;

		/* Half dropped (-2 is DATCONNLIMIT_INVALID_DB of newer minors). */
		if (form->datconnlimit == -2)
			continue;

		old_context = MemoryContextSwitchTo(result_context);
		info = palloc(sizeof(DatabaseInfo));
		info->oid = form->oid;
		info->name = pstrdup(NameStr(form->datname));
		info->is_template = form->datistemplate;
		info->allows_connections = form->datallowconn;
		list = lappend(list, info);
		MemoryContextSwitchTo(old_context);
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(result_context);
	return list;
}

DatabaseInfo *
LookUpDatabase(Oid database)
{
	ListCell *lc;

	foreach(lc, ListDatabases())
	{
		DatabaseInfo *info = (DatabaseInfo *) lfirst(lc);

		if (info->oid == database)
			return info;
	}
	return NULL;
}

bool
CanHaveFeed(const DatabaseInfo *info)
{
	return info != NULL && info->allows_connections && !info->is_template;
}

const char *
DatabaseName(Oid database)
{
	DatabaseInfo *info = LookUpDatabase(database);

	return info != NULL ? info->name : psprintf("%u", database);
}

static char *
SlotPrefix(Oid database)
{
	return psprintf("%s_%u_", CHANGEFEED_LIBRARY, database);
}

List *
ListSlots(Oid database)
{
	SlotInfo *found = palloc0(sizeof(SlotInfo) * Max(max_replication_slots, 1));
	int nfound = 0;
	List *list = NIL;

	/* Only copying under the locks. */
	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	for (int i = 0; i < max_replication_slots; i++)
	{
		ReplicationSlot *slot = &ReplicationSlotCtl->replication_slots[i];

		if (!slot->in_use)
			continue;
		SpinLockAcquire(&slot->mutex);
		found[nfound].name = slot->data.name;
		found[nfound].database = slot->data.database;
		found[nfound].active = slot->active_pid != 0;
		found[nfound].restart_lsn = slot->data.restart_lsn;
		SpinLockRelease(&slot->mutex);
		nfound++;
	}
	LWLockRelease(ReplicationSlotControlLock);

	for (int i = 0; i < nfound; i++)
	{
		char *prefix = SlotPrefix(found[i].database);

		if (OidIsValid(found[i].database) &&
			(!OidIsValid(database) || found[i].database == database) &&
			strncmp(NameStr(found[i].name), prefix, strlen(prefix)) == 0)
			list = lappend(list, &found[i]);
	}
	return list;
}

bool
DropSlots(Oid database)
{
	MemoryContext old_context = CurrentMemoryContext;
	volatile bool complete = true;
	ListCell *lc;

	foreach(lc, ListSlots(database))
	{
		SlotInfo *slot = (SlotInfo *) lfirst(lc);

		/* Somebody may be looking at it with pg_logical_slot_peek_changes(). */
		if (slot->active)
		{
			complete = false;
			continue;
		}

		PG_TRY();
		{
			StartTransactionCommand();
			ReplicationSlotDrop(NameStr(slot->name), true);
			CommitTransactionCommand();
		}
		PG_CATCH();
		{
			/* Taken or dropped in the meantime. */
			MemoryContextSwitchTo(old_context);
			HOLD_INTERRUPTS();
			EmitErrorReport();
			if (MyReplicationSlot != NULL)
				ReplicationSlotRelease();
			AbortCurrentTransaction();
			FlushErrorState();
			RESUME_INTERRUPTS();
			complete = false;
		}
		PG_END_TRY();
		MemoryContextSwitchTo(old_context);
	}
	return complete;
}
