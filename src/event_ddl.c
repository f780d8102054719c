/*-------------------------------------------------------------------------
 *
 * event_ddl.c
 *		SQL functions that declare events of sources.
 *
 * The owner of a table says which events it has; dropping one takes him or the
 * owner of the database.
 *
 * Process: any backend.  Memory: CurrentMemoryContext of the call.  Locks: the
 * table's AccessShareLock, then the catalog's (ddl.h).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "channel_check.h"
#include "compat.h"
#include "ddl.h"
#include "event.h"
#include "message.h"

#include "access/table.h"
#include "catalog/objectaddress.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

PG_FUNCTION_INFO_V1(changefeed_add_event);
PG_FUNCTION_INFO_V1(changefeed_drop_event);

typedef struct EventSource
{
	int channel;
	int id;
	bool paced;
	List *columns; /* that are published, of char *; NIL: all */
} EventSource;

static void
RequireOwner(Oid relid)
{
	if (get_rel_name(relid) == NULL)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE),
						errmsg("relation with OID %u does not exist", relid)));
	if (!compat_relation_ownercheck(relid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, get_relkind_objtype(get_rel_relkind(relid)),
					   get_rel_name(relid));
}

/* Between DdlBegin and DdlEnd; what is found is in `context`. */
static void
FindSource(const char *channel, Oid relid, EventSource *source, MemoryContext context)
{
	Oid types[2] = {TEXTOID, OIDOID};
	Datum values[2] = {CStringGetTextDatum(channel), ObjectIdGetDatum(relid)};
	MemoryContext old;
	bool isnull;
	Datum columns;

	if (DdlRead("SELECT 1 FROM changefeed.channel WHERE name OPERATOR(pg_catalog.=) $1", 1, types,
				values) == 0)
		ereport(
			ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("channel \"%s\" does not exist", channel),
			 errhint("The view changefeed.channels lists all channels; a template is named as it "
					 "was created, with its braces.")));
	if (DdlRead("SELECT c.id, s.id, s.columns, c.min_interval IS NOT NULL FROM changefeed.channel c"
				" JOIN changefeed.source s ON s.channel OPERATOR(pg_catalog.=) c.id"
				" WHERE c.name OPERATOR(pg_catalog.=) $1"
				" AND s.relid::pg_catalog.oid OPERATOR(pg_catalog.=) $2",
				2, types, values) == 0)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
						errmsg("table \"%s\" is not a source of channel \"%s\"",
							   ChannelTableName(relid), channel)));
	source->channel = DatumGetInt32(
		SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	source->id = DatumGetInt32(
		SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
	source->paced = DatumGetBool(
		SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 4, &isnull));
	columns = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 3, &isnull);
	if (!isnull)
	{
		Datum *elements;
		int n;
		int i;

		old = MemoryContextSwitchTo(context);
		deconstruct_array(DatumGetArrayTypeP(columns), NAMEOID, NAMEDATALEN, false, TYPALIGN_CHAR,
						  &elements, NULL, &n);
		for (i = 0; i < n; i++)
			source->columns = lappend(source->columns,
									  pstrdup(NameStr(*DatumGetName(elements[i]))));
		MemoryContextSwitchTo(old);
	}
}

/* Whoever gets the event may read them, which is known of published columns only. */
static List *
PublishedNames(Relation rel, Bitmapset *attnos, const List *published, List *names)
{
	int attno = -1;
	ListCell *lc;

	while ((attno = bms_next_member(attnos, attno)) >= 0)
	{
		char *name = NameStr(TupleDescAttr(RelationGetDescr(rel), attno - 1)->attname);
		bool found = published == NIL;

		foreach(lc, published)
			if (strcmp(lfirst(lc), name) == 0)
				found = true;
		if (!found)
			ereport(ERROR, (errcode(ERRCODE_INVALID_COLUMN_REFERENCE),
							errmsg("column \"%s\" is not among the columns of the source", name),
							errhint("An event may use only columns that the channel publishes.")));
		names = lappend(names, pstrdup(name));
	}
	return names;
}

static Datum
ChangesArgument(FunctionCallInfo fcinfo, int argno)
{
	static const char *const all[] = {"insert", "update", "delete"};
	Datum *elements;
	Datum result[lengthof(all)];
	bool *nulls;
	int n;
	int count = 0;
	int i;
	int k;

	DdlRequireArgument(fcinfo, argno, "on_change");
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(argno), TEXTOID, -1, false, TYPALIGN_INT, &elements,
					  &nulls, &n);
	for (i = 0; i < n; i++)
	{
		for (k = 0; k < lengthof(all); k++)
			if (!nulls[i] && strcmp(TextDatumGetCString(elements[i]), all[k]) == 0)
				break;
		if (k == lengthof(all))
			n = 0;
	}
	if (n == 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("invalid value for argument \"%s\"", "on_change"),
						errhint("Give one or more of insert, update, delete.")));

	/* In one order, each once. */
	for (k = 0; k < lengthof(all); k++)
		for (i = 0; i < n; i++)
			if (strcmp(TextDatumGetCString(elements[i]), all[k]) == 0)
			{
				result[count++] = CStringGetTextDatum(all[k]);
				break;
			}
	return PointerGetDatum(construct_array(result, count, TEXTOID, -1, false, TYPALIGN_INT));
}

/* add_event(channel, source, event, condition, payload, on_change) */
Datum
changefeed_add_event(PG_FUNCTION_ARGS)
{
	static const char *const whats[] = {"condition", "payload"};
	EventSource source = {0};
	EventColumns columns = {0};
	DdlAccess access;
	Oid types[6] = {INT4OID, INT4OID, TEXTOID, TEXTOID, TEXTOID, TEXTARRAYOID};
	Datum values[6] = {0};
	char nulls[7] = "      ";
	char *channel;
	char *event;
	const char *problem;
	Oid relid;
	Relation rel;
	List *names;
	ListCell *lc;
	int i;

	PreventCommandIfReadOnly("add_event()");
	DdlRequireArgument(fcinfo, 0, "channel");
	DdlRequireArgument(fcinfo, 1, "source");
	DdlRequireArgument(fcinfo, 2, "event");
	channel = text_to_cstring(PG_GETARG_TEXT_PP(0));
	relid = PG_GETARG_OID(1);
	event = text_to_cstring(PG_GETARG_TEXT_PP(2));
	problem = MessageEventProblem(event, strlen(event));
	if (problem != NULL)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s", problem)));
	values[5] = ChangesArgument(fcinfo, 5);
	RequireOwner(relid);
	LockRelationOid(relid, AccessShareLock);
	RequireOwner(relid);

	DdlLock();
	DdlBegin(&access);
	FindSource(channel, relid, &source, fcinfo->flinfo->fn_mcxt);
	DdlEnd(&access);
	if (source.paced)
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("channel \"%s\" has a min_interval, so it has no events", channel),
						errhint("Declare the event in a channel of its own.")));

	rel = table_open(relid, NoLock);
	for (i = 0; i < lengthof(whats); i++)
	{
		if (PG_ARGISNULL(3 + i))
		{
			nulls[3 + i] = 'n';
			continue;
		}
		(void) EventAnalyze(whats[i], text_to_cstring(PG_GETARG_TEXT_PP(3 + i)),
							RelationGetDescr(rel), i == 0, &columns);
		values[3 + i] = PG_GETARG_DATUM(3 + i);
	}
	names = PublishedNames(rel, columns.of_old, source.columns, NIL);
	names = PublishedNames(rel, columns.of_new, source.columns, names);
	foreach(lc, find_all_inheritors(relid, AccessShareLock, NULL))
		ChannelCheckIdentity(lfirst_oid(lc), names);
	table_close(rel, NoLock);

	DdlBegin(&access);
	values[0] = Int32GetDatum(source.channel);
	values[1] = Int32GetDatum(source.id);
	values[2] = CStringGetTextDatum(event);
	if (DdlRead("SELECT 1 FROM changefeed.event WHERE source OPERATOR(pg_catalog.=) $2"
				" AND name OPERATOR(pg_catalog.=) $3 AND $1 IS NOT NULL",
				3, types, values) > 0)
		ereport(ERROR, (errcode(ERRCODE_DUPLICATE_OBJECT),
						errmsg("table \"%s\" already has an event \"%s\" in channel \"%s\"",
							   ChannelTableName(relid), event, channel)));
	(void) DdlWrite(
		"INSERT INTO changefeed.event (channel, source, name, condition, payload, on_change)"
		" VALUES ($1, $2, $3, $4, $5, $6)",
		6, types, values, nulls);
	DdlEnd(&access);
	PG_RETURN_VOID();
}

/* drop_event(channel, source, event) */
Datum
changefeed_drop_event(PG_FUNCTION_ARGS)
{
	EventSource source = {0};
	DdlAccess access;
	Oid types[2] = {INT4OID, TEXTOID};
	Datum values[2];
	char *channel;
	char *event;
	Oid relid;

	PreventCommandIfReadOnly("drop_event()");
	DdlRequireArgument(fcinfo, 0, "channel");
	DdlRequireArgument(fcinfo, 1, "source");
	DdlRequireArgument(fcinfo, 2, "event");
	channel = text_to_cstring(PG_GETARG_TEXT_PP(0));
	relid = PG_GETARG_OID(1);
	event = text_to_cstring(PG_GETARG_TEXT_PP(2));
	if (!DdlOwnsDatabase())
		RequireOwner(relid);

	DdlLock();
	DdlBegin(&access);
	FindSource(channel, relid, &source, fcinfo->flinfo->fn_mcxt);
	values[0] = Int32GetDatum(source.id);
	values[1] = CStringGetTextDatum(event);
	if (DdlWrite("DELETE FROM changefeed.event WHERE source OPERATOR(pg_catalog.=) $1"
				 " AND name OPERATOR(pg_catalog.=) $2",
				 2, types, values, NULL) == 0)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
						errmsg("table \"%s\" has no event \"%s\" in channel \"%s\"",
							   ChannelTableName(relid), event, channel)));
	DdlEnd(&access);
	PG_RETURN_VOID();
}
