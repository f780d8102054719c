/*-------------------------------------------------------------------------
 *
 * partition_ddl.c
 *		Partitions that a source gets later have its replica identity.
 *
 * A new partition comes with the default replica identity, whatever its parent
 * has, and its old rows would be missing from the WAL.  create_channel sets
 * REPLICA IDENTITY FULL for the partitions that there are; this event trigger
 * does it for those that come, as whoever makes or attaches them.  A source
 * whose own replica identity is not FULL was declared so, and is left alone.
 *
 * Process: any backend.  Memory: CurrentMemoryContext of the call.  Locks: what
 * ALTER TABLE takes on a table that the command has just made or attached.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "channel_check.h"
#include "compat.h"
#include "ddl.h"

#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "commands/event_trigger.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

PG_FUNCTION_INFO_V1(changefeed_tables_altered);

/* The first column of the result, outside of SPI's memory. */
static List *
ReadOids(const char *sql, MemoryContext context)
{
	uint64 n = DdlRead(sql, 0, NULL, NULL);
	MemoryContext old = MemoryContextSwitchTo(context);
	List *result = NIL;
	uint64 i;

	for (i = 0; i < n; i++)
	{
		bool isnull;
		Datum oid = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull);

		if (!isnull)
			result = lappend_oid(result, DatumGetObjectId(oid));
	}
	MemoryContextSwitchTo(old);
	return result;
}

/* Is it, or is something above it, a source with whole old rows? */
static bool
FeedsWholeRows(Oid relid, const List *sources)
{
	List *above = get_rel_relispartition(relid) ? get_partition_ancestors(relid) : NIL;
	ListCell *lc;

	foreach(lc, lcons_oid(relid, above))
		if (list_member_oid(sources, lfirst_oid(lc)) && ChannelIdentityIsFull(lfirst_oid(lc)))
			return true;
	return false;
}

static void
SetFull(Oid relid)
{
	char *name = ChannelTableName(relid);

	if (!compat_relation_ownercheck(relid, GetUserId()))
	{
		ereport(WARNING,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("partition \"%s\" feeds a channel without REPLICA IDENTITY FULL", name),
				 errhint("Its owner has to use ALTER TABLE %s REPLICA IDENTITY FULL.", name)));
		return;
	}
	ereport(NOTICE, (errmsg("setting REPLICA IDENTITY FULL for partition \"%s\"", name),
					 errdetail("The table that it is a partition of feeds a channel.")));
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute(
			psprintf("ALTER TABLE %s REPLICA IDENTITY FULL",
					 quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)),
												get_rel_name(relid))),
			false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not set the replica identity of table \"%s\"", name);
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
}

/* Event trigger on ddl_command_end. */
Datum
changefeed_tables_altered(PG_FUNCTION_ARGS)
{
	Oid namespace = get_namespace_oid(CHANGEFEED_SCHEMA, true);
	MemoryContext context = CurrentMemoryContext;
	DdlAccess access;
	List *sources;
	List *altered = NIL;
	ListCell *lc;
	ListCell *lc2;

	if (!CALLED_AS_EVENT_TRIGGER(fcinfo))
		ereport(ERROR, (errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
						errmsg("function must be called as an event trigger")));

	/* The extension itself may be what is made. */
	if (!OidIsValid(namespace) || !OidIsValid(get_relname_relid("source", namespace)))
		PG_RETURN_NULL();

	DdlBegin(&access);
	sources = ReadOids("SELECT relid::pg_catalog.oid FROM changefeed.source", context);
	if (sources != NIL)
		altered = ReadOids(
			"SELECT DISTINCT c.objid FROM pg_catalog.pg_event_trigger_ddl_commands() c"
			" WHERE c.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass"
			" AND c.object_type OPERATOR(pg_catalog.=) 'table'",
			context);
	DdlEnd(&access);

	foreach(lc, altered)
	{
		Oid relid = lfirst_oid(lc);

		if ((!get_rel_relispartition(relid) &&
			 get_rel_relkind(relid) != RELKIND_PARTITIONED_TABLE) ||
			!FeedsWholeRows(relid, sources))
			continue;
		foreach(lc2, find_all_inheritors(relid, NoLock, NULL))
			if (get_rel_relispartition(lfirst_oid(lc2)) && !ChannelIdentityIsFull(lfirst_oid(lc2)))
				SetFull(lfirst_oid(lc2));
	}
	PG_RETURN_NULL();
}
