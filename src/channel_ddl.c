/*-------------------------------------------------------------------------
 *
 * channel_ddl.c
 *		SQL functions that declare channels and their sources.
 *
 * Who may do what:
 *	- a table is published by its owner, and by nobody else;
 *	- a source is dropped by the owner of its table or of the database;
 *	- a channel belongs to whoever owns all of its sources, and to the owner of
 *	  the database; it takes that to drop it and to add a source, and only the
 *	  owner of the database makes a channel without a source.
 *
 * Process: any backend.  Memory: CurrentMemoryContext of the call.
 *
 * Locks: first the table and its partitions, so that no transaction is under
 * way that has changed them before the source was there: its changes would be
 * fed in part.  Then the catalog (ddl.h).  All are held until the end of the
 * transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "channel_check.h"
#include "ddl.h"
#include "presence.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/objectaddress.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "commands/event_trigger.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "storage/lmgr.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

PG_FUNCTION_INFO_V1(changefeed_create_channel);
PG_FUNCTION_INFO_V1(changefeed_add_source);
PG_FUNCTION_INFO_V1(changefeed_drop_source);
PG_FUNCTION_INFO_V1(changefeed_drop_channel);
PG_FUNCTION_INFO_V1(changefeed_source_changed);
PG_FUNCTION_INFO_V1(changefeed_tables_dropped);

/* ---- Arguments ---- */

/* A name[] argument as a list of strings; NIL when it is null. */
static List *
NamesArgument(FunctionCallInfo fcinfo, int argno, const char *name)
{
	List *result = NIL;
	ArrayType *array;
	Datum *elements;
	bool *nulls;
	int n;
	int i;

	if (PG_ARGISNULL(argno))
		return NIL;
	array = PG_GETARG_ARRAYTYPE_P(argno);
	if (ARR_NDIM(array) > 1)
		ereport(ERROR, (errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
						errmsg("argument \"%s\" must be a one-dimensional array", name)));
	deconstruct_array(array, NAMEOID, NAMEDATALEN, false, TYPALIGN_CHAR, &elements, &nulls, &n);
	if (n == 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("argument \"%s\" must not be empty", name),
						errhint("Leave it out or pass null to use the default.")));
	for (i = 0; i < n; i++)
	{
		if (nulls[i])
			ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
							errmsg("argument \"%s\" must not contain null", name)));
		result = lappend(result, pstrdup(NameStr(*DatumGetName(elements[i]))));
	}
	return result;
}

/* One of the words in `allowed`, which is a list with commas as shown to users. */
static char *
ActionArgument(FunctionCallInfo fcinfo, int argno, const char *name, const char *const *allowed,
			   const char *hint)
{
	char *value;

	DdlRequireArgument(fcinfo, argno, name);
	value = text_to_cstring(PG_GETARG_TEXT_PP(argno));
	for (; *allowed != NULL; allowed++)
		if (strcmp(value, *allowed) == 0)
			return value;
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("invalid value for argument \"%s\": \"%s\"", name, value),
					errhint("Available values: %s.", hint)));
	return NULL;
}

/*
 * What create_channel and add_source have in common: the source and all that
 * follows it, at the same argument numbers.
 */
static void
SourceArguments(FunctionCallInfo fcinfo, SourceDefinition *definition)
{
	static const char *const on_insert[] = {"append", "replace", "merge", "ignore", NULL};
	static const char *const on_update[] = {"merge", "replace", "append", "remove", "ignore", NULL};
	static const char *const on_delete[] = {"remove", "ignore", NULL};

	DdlRequireArgument(fcinfo, 1, "source");
	definition->relid = PG_GETARG_OID(1);
	if (!PG_ARGISNULL(2))
	{
		definition->entity = pstrdup(NameStr(*PG_GETARG_NAME(2)));
		if (definition->entity[0] == '\0')
			ereport(ERROR, (errcode(ERRCODE_INVALID_NAME), errmsg("entity must not be empty")));
	}
	definition->key = NamesArgument(fcinfo, 3, "key");
	if (!PG_ARGISNULL(4))
		definition->filter = text_to_cstring(PG_GETARG_TEXT_PP(4));
	definition->columns = NamesArgument(fcinfo, 5, "columns");
	definition->on_insert = ActionArgument(fcinfo, 6, "on_insert", on_insert,
										   "append, replace, merge, ignore");
	definition->on_update = ActionArgument(fcinfo, 7, "on_update", on_update,
										   "merge, replace, append, remove, ignore");
	definition->on_delete = ActionArgument(fcinfo, 8, "on_delete", on_delete, "remove, ignore");
	DdlRequireArgument(fcinfo, 9, "set_replica_identity");
	definition->set_replica_identity = PG_GETARG_BOOL(9);
}

/* ---- Looking into the catalog; between DdlBegin and DdlEnd ---- */

static int
FindChannel(const char *name)
{
	Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(name)};
	bool isnull;

	if (DdlRead("SELECT id FROM changefeed.channel WHERE name OPERATOR(pg_catalog.=) $1", 1, types,
				values) == 0)
		ereport(
			ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("channel \"%s\" does not exist", name),
			 errhint(
				 "The view changefeed.channels lists all channels; a template is named as it was created, with its braces.")));
	return DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
}

/* FindChannel on its own, for a check before locks are taken. */
static int
ChannelId(const char *name)
{
	DdlAccess access;
	int id;

	DdlBegin(&access);
	id = FindChannel(name);
	DdlEnd(&access);
	return id;
}

/*
 * Most names differ before their first parameter, and that is soon seen: there may
 * be thousands.
 */
static bool
BeginDifferently(const char *a, const char *b)
{
	size_t a_length = strcspn(a, "{");
	size_t b_length = strcspn(b, "{");

	if (memcmp(a, b, Min(a_length, b_length)) != 0)
		return true;
	return a_length != b_length && a[a_length] == '\0' && b[b_length] == '\0';
}

static void
CheckNameIsFree(const char *name, const ChannelTemplate *template)
{
	uint64 n = DdlRead("SELECT name FROM changefeed.channel ORDER BY id", 0, NULL, NULL);
	uint64 i;

	for (i = 0; i < n; i++)
	{
		char *other = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1);

		if (strcmp(name, other) == 0)
			ereport(ERROR, (errcode(ERRCODE_DUPLICATE_OBJECT),
							errmsg("channel \"%s\" already exists", name)));
		if (!BeginDifferently(name, other) && TemplatesOverlap(template, TemplateParse(other)))
			ereport(
				ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("channel \"%s\" overlaps with channel \"%s\"", name, other),
				 errdetail("A client could subscribe to a name that belongs to both."),
				 errhint(
					 "Let the fixed parts of the names differ, or add the source to the other channel.")));
	}
}

/*
 * The user has to own all sources of the channel, or the database.  `user` is
 * the caller: between DdlBegin and DdlEnd the current user is somebody else.
 */
static void
RequireChannelOwner(int channel, const char *name, Oid user, bool owns_database)
{
	Oid types[1] = {INT4OID};
	Datum values[1] = {Int32GetDatum(channel)};
	bool owns = false;
	char *other = NULL;
	uint64 n;
	uint64 i;

	if (owns_database)
		return;
	n = DdlRead("SELECT relid::pg_catalog.oid FROM changefeed.source"
				" WHERE channel OPERATOR(pg_catalog.=) $1 ORDER BY id",
				1, types, values);
	for (i = 0; i < n; i++)
	{
		bool isnull;
		Oid relid = DatumGetObjectId(
			SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));

		if (!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relid)))
			continue;
		if (compat_relation_ownercheck(relid, user))
			owns = true;
		else if (other == NULL)
			other = ChannelTableName(relid);
	}
	if (!owns || other != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of all sources of channel \"%s\", or of the database", name),
				 other != NULL ? errdetail("Table \"%s\" belongs to another role.", other)
							   : errdetail("The channel has no source.")));
}

static Datum
NamesDatum(const List *names)
{
	Datum *elements = palloc(sizeof(Datum) * list_length(names));
	int n = 0;
	ListCell *lc;

	foreach(lc, names)
	{
		Name name = palloc(NAMEDATALEN);

		namestrcpy(name, lfirst(lc));
		elements[n++] = NameGetDatum(name);
	}
	return PointerGetDatum(
		construct_array(elements, n, NAMEOID, NAMEDATALEN, false, TYPALIGN_CHAR));
}

static void
InsertSource(int channel, const SourceDefinition *definition)
{
	Oid types[9] = {INT4OID,	  OIDOID,  TEXTOID, NAMEARRAYOID, TEXTOID,
					NAMEARRAYOID, TEXTOID, TEXTOID, TEXTOID};
	Datum values[9];
	char nulls[10] = "         ";

	values[0] = Int32GetDatum(channel);
	values[1] = ObjectIdGetDatum(definition->relid);
	values[2] = CStringGetTextDatum(definition->entity);

	/* Say it in the user's words, not in those of a unique constraint. */
	if (DdlRead("SELECT 1 FROM changefeed.source WHERE channel OPERATOR(pg_catalog.=) $1"
				" AND relid::pg_catalog.oid OPERATOR(pg_catalog.=) $2",
				2, types, values) > 0)
		ereport(ERROR, (errcode(ERRCODE_DUPLICATE_OBJECT),
						errmsg("table \"%s\" is already a source of channel \"%s\"",
							   ChannelTableName(definition->relid), definition->channel)));
	if (DdlRead("SELECT 1 FROM changefeed.source WHERE channel OPERATOR(pg_catalog.=) $1"
				" AND entity::pg_catalog.text OPERATOR(pg_catalog.=) $3 AND $2 IS NOT NULL",
				3, types, values) > 0)
		ereport(ERROR, (errcode(ERRCODE_DUPLICATE_OBJECT),
						errmsg("channel \"%s\" already has an entity \"%s\"", definition->channel,
							   definition->entity),
						errhint("Give the source another name with entity =>.")));

	values[3] = NamesDatum(definition->key);
	if (definition->filter != NULL)
		values[4] = CStringGetTextDatum(definition->filter);
	else
		nulls[4] = 'n';
	if (definition->columns != NIL)
		values[5] = NamesDatum(definition->columns);
	else
		nulls[5] = 'n';
	values[6] = CStringGetTextDatum(definition->on_insert);
	values[7] = CStringGetTextDatum(definition->on_update);
	values[8] = CStringGetTextDatum(definition->on_delete);
	(void) DdlWrite("INSERT INTO changefeed.source (channel, relid, entity, key, filter, columns,"
					" on_insert, on_update, on_delete)"
					" VALUES ($1, $2, $3::pg_catalog.name, $4, $5, $6, $7, $8, $9)",
					9, types, values, nulls);
}

/* Events go with their source. */
static void
DropEventsOfNone(void)
{
	(void) DdlWrite("DELETE FROM changefeed.event e WHERE NOT EXISTS"
					" (SELECT FROM changefeed.source s WHERE s.id OPERATOR(pg_catalog.=) e.source)",
					0, NULL, NULL, NULL);
}

/* ---- The table ---- */

/* Raises an error unless the caller owns the table. */
static void
RequireTableOwner(Oid relid)
{
	if (!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relid)))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE),
						errmsg("relation with OID %u does not exist", relid)));
	if (!compat_relation_ownercheck(relid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, get_relkind_objtype(get_rel_relkind(relid)),
					   get_rel_name(relid));
}

static List *
NotFullRelations(const List *relations)
{
	List *result = NIL;
	ListCell *lc;

	foreach(lc, relations)
		if (!ChannelIdentityIsFull(lfirst_oid(lc)))
			result = lappend_oid(result, lfirst_oid(lc));
	return result;
}

/*
 * Locks the table with its partitions and checks everything that can be
 * checked without the catalog of channels.
 */
static void
PrepareSource(SourceDefinition *definition)
{
	LOCKMODE lockmode = ShareRowExclusiveLock;

	/* Nobody should be able to lock what he does not own. */
	RequireTableOwner(definition->relid);
	ChannelCheckTable(definition->relid);

	/*
	 * ALTER TABLE will want more than ShareRowExclusiveLock.  Waiting for it
	 * while holding the weaker lock would deadlock with whoever has read the
	 * table and is about to write it.
	 */
	if (definition->set_replica_identity &&
		NotFullRelations(find_all_inheritors(definition->relid, NoLock, NULL)) != NIL)
		lockmode = AccessExclusiveLock;
	LockRelationOid(definition->relid, lockmode);

	/* The wait may have been long. */
	RequireTableOwner(definition->relid);
	ChannelCheckTable(definition->relid);
	definition->relations = find_all_inheritors(definition->relid, lockmode, NULL);

	ChannelCheckSource(definition);
}

static void
SetReplicaIdentity(const SourceDefinition *definition)
{
	List *relations = NotFullRelations(definition->relations);
	char *table = ChannelTableName(definition->relid);
	int i;

	if (!definition->set_replica_identity || relations == NIL)
		return;

	ereport(
		NOTICE,
		(list_length(definition->relations) == 1
			 ? errmsg("setting REPLICA IDENTITY FULL for table \"%s\"", table)
			 : errmsg("setting REPLICA IDENTITY FULL for table \"%s\" and its partitions", table),
		 errdetail("From now on every UPDATE and DELETE writes the whole old row to the WAL."),
		 errhint(
			 "With set_replica_identity => false the replica identity is left alone; it then has to be an index that has all columns of the key, the channel's name, the filter and the policies of the table.")));

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");

	/* Partitions first: what they lack is otherwise set by the event trigger. */
	for (i = list_length(relations) - 1; i >= 0; i--)
	{
		Oid relid = list_nth_oid(relations, i);
		char *name = quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)),
												get_rel_name(relid));
		int result = SPI_execute(psprintf("ALTER TABLE %s REPLICA IDENTITY FULL", name), false, 0);

		if (result != SPI_OK_UTILITY)
			elog(ERROR, "could not set the replica identity: %s", SPI_result_code_string(result));
	}
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
}

/* Shorter is not worth a timer, longer is not live any more. */
static void
CheckMinInterval(const Interval *interval)
{
	if (interval->month != 0 || interval->day != 0 || interval->time < 10000 ||
		interval->time > USECS_PER_HOUR)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("min_interval is out of range"),
				 errdetail("It has to be from 10 milliseconds to 1 hour."),
				 errhint("Leave it out to have each transaction sent at once.")));
}

static void
CheckPresence(Jsonb *value)
{
	PresenceOptions options;
	const char *hint;
	const char *problem = PresenceOptionsParse(value, &options, &hint);

	if (problem != NULL)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg_internal("%s", problem),
						hint != NULL ? errhint("%s", hint) : 0));
}

/* ---- The functions ---- */

/*
 * create_channel(name, source, entity, key, filter, columns, on_insert,
 * on_update, on_delete, set_replica_identity, join_check, min_interval,
 * publish_check, presence)
 */
Datum
changefeed_create_channel(PG_FUNCTION_ARGS)
{
	SourceDefinition definition = {0};
	ChannelTemplate *template;
	DdlAccess access;
	char *name;
	bool has_source = !PG_ARGISNULL(1);
	static const char *const checks[] = {"join_check", "publish_check"};
	bool isnull;
	Oid types[5] = {TEXTOID, TEXTOID, TEXTOID, INTERVALOID, JSONBOID};
	Datum values[5] = {0};
	char nulls[] = " nnnn";
	int id;
	int i;

	PreventCommandIfReadOnly("create_channel()");
	DdlRequireArgument(fcinfo, 0, "name");
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	template = TemplateParse(name);

	if (has_source)
	{
		SourceArguments(fcinfo, &definition);
		definition.channel = name;
		definition.template = template;
		PrepareSource(&definition);
	}
	else
	{
		if (!PG_ARGISNULL(2) || !PG_ARGISNULL(3) || !PG_ARGISNULL(4) || !PG_ARGISNULL(5))
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("entity, key, filter and columns are properties of a source"),
							errhint("Give a source, or add it later with changefeed.add_source.")));
		if (!DdlOwnsDatabase())
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("must be owner of the database to create a channel without a source"),
					 errhint("Give a table that you own as the channel's source.")));
	}

	for (i = 0; i < lengthof(checks); i++)
	{
		int argno = 10 + 2 * i;

		if (PG_ARGISNULL(argno))
			continue;
		values[1 + i] = CStringGetTextDatum(
			ChannelCheckJoin(checks[i], text_to_cstring(PG_GETARG_TEXT_PP(argno)), template,
							 has_source ? definition.relid : InvalidOid));
		nulls[1 + i] = ' ';
	}

	if (!PG_ARGISNULL(11))
		CheckMinInterval(PG_GETARG_INTERVAL_P(11));
	if (!PG_ARGISNULL(13))
		CheckPresence(PG_GETARG_JSONB_P(13));

	DdlLock();
	DdlBegin(&access);
	CheckNameIsFree(name, template);
	values[0] = CStringGetTextDatum(name);
	if (!PG_ARGISNULL(11))
	{
		values[3] = PG_GETARG_DATUM(11);
		nulls[3] = ' ';
	}
	if (!PG_ARGISNULL(13))
	{
		values[4] = PG_GETARG_DATUM(13);
		nulls[4] = ' ';
	}
	(void) DdlWrite("INSERT INTO changefeed.channel (name, join_check, publish_check, min_interval,"
					" presence) VALUES ($1, $2, $3, $4, $5) RETURNING id",
					5, types, values, nulls);
	id = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	if (has_source)
		InsertSource(id, &definition);
	DdlEnd(&access);

	if (has_source)
	{
		SetReplicaIdentity(&definition);
		ChannelWarnOfPolicies(definition.relid);
	}
	PG_RETURN_VOID();
}

/*
 * add_source(channel, source, entity, key, filter, columns, on_insert,
 * on_update, on_delete, set_replica_identity)
 */
Datum
changefeed_add_source(PG_FUNCTION_ARGS)
{
	SourceDefinition definition = {0};
	DdlAccess access;
	char *name;
	bool owns_database = DdlOwnsDatabase();
	int id;

	PreventCommandIfReadOnly("add_source()");
	DdlRequireArgument(fcinfo, 0, "channel");
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	(void) ChannelId(name);

	SourceArguments(fcinfo, &definition);
	definition.channel = name;
	definition.template = TemplateParse(name);
	PrepareSource(&definition);

	DdlLock();
	DdlBegin(&access);
	id = FindChannel(name);
	RequireChannelOwner(id, name, access.user, owns_database);
	InsertSource(id, &definition);
	DdlEnd(&access);

	SetReplicaIdentity(&definition);
	ChannelWarnOfPolicies(definition.relid);
	PG_RETURN_VOID();
}

/* drop_source(channel, source) */
Datum
changefeed_drop_source(PG_FUNCTION_ARGS)
{
	DdlAccess access;
	Oid types[2] = {INT4OID, OIDOID};
	Datum values[2];
	char *name;
	Oid relid;

	PreventCommandIfReadOnly("drop_source()");
	DdlRequireArgument(fcinfo, 0, "channel");
	DdlRequireArgument(fcinfo, 1, "source");
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	relid = PG_GETARG_OID(1);
	(void) ChannelId(name);

	/* The owner of the database may clean up, also what is left of a table. */
	if (!DdlOwnsDatabase())
		RequireTableOwner(relid);

	DdlLock();
	DdlBegin(&access);
	values[0] = Int32GetDatum(FindChannel(name));
	values[1] = ObjectIdGetDatum(relid);
	if (DdlWrite("DELETE FROM changefeed.source WHERE channel OPERATOR(pg_catalog.=) $1"
				 " AND relid::pg_catalog.oid OPERATOR(pg_catalog.=) $2",
				 2, types, values, NULL) == 0)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
						errmsg("table \"%s\" is not a source of channel \"%s\"",
							   ChannelTableName(relid), name)));
	DropEventsOfNone();
	DdlEnd(&access);
	PG_RETURN_VOID();
}

/* drop_channel(name) */
Datum
changefeed_drop_channel(PG_FUNCTION_ARGS)
{
	DdlAccess access;
	Oid types[1] = {INT4OID};
	Datum values[1];
	char *name;
	bool owns_database = DdlOwnsDatabase();
	int id;

	PreventCommandIfReadOnly("drop_channel()");
	DdlRequireArgument(fcinfo, 0, "name");
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	(void) ChannelId(name);

	DdlLock();
	DdlBegin(&access);
	id = FindChannel(name);
	RequireChannelOwner(id, name, access.user, owns_database);
	values[0] = Int32GetDatum(id);
	(void) DdlWrite("DELETE FROM changefeed.source WHERE channel OPERATOR(pg_catalog.=) $1", 1,
					types, values, NULL);
	DropEventsOfNone();
	if (DdlWrite("DELETE FROM changefeed.channel WHERE id OPERATOR(pg_catalog.=) $1", 1, types,
				 values, NULL) == 0)
		ereport(ERROR, (errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
						errmsg("could not drop channel \"%s\" because it was created concurrently",
							   name)));
	DdlEnd(&access);
	PG_RETURN_VOID();
}

/* ---- Triggers ---- */

/*
 * Tells decoder and workers that a table became, or is no longer, a source:
 * by invalidating what they have cached about it, which also goes through the
 * WAL.  Changes of a partitioned table are found at its partitions.
 */
static void
InvalidateSource(Oid relid)
{
	ListCell *lc;

	if (get_rel_relkind(relid) != RELKIND_PARTITIONED_TABLE)
	{
		if (SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relid)))
			CacheInvalidateRelcacheByRelid(relid);
		return;
	}
	foreach(lc, find_all_inheritors(relid, NoLock, NULL))
		if (SearchSysCacheExists1(RELOID, ObjectIdGetDatum(lfirst_oid(lc))))
			CacheInvalidateRelcacheByRelid(lfirst_oid(lc));
}

/* Row trigger of changefeed.source, after INSERT, UPDATE and DELETE. */
Datum
changefeed_source_changed(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	TupleDesc tupdesc;
	int attno;
	bool isnull;
	Oid relid;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_AFTER(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
		ereport(ERROR, (errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
						errmsg("function must be called as an AFTER ... FOR EACH ROW trigger")));

	tupdesc = RelationGetDescr(trigger->tg_relation);
	attno = SPI_fnumber(tupdesc, "relid");
	if (attno <= 0)
		elog(ERROR, "table \"%s\" has no column \"relid\"",
			 RelationGetRelationName(trigger->tg_relation));

	relid = DatumGetObjectId(heap_getattr(trigger->tg_trigtuple, attno, tupdesc, &isnull));
	if (!isnull)
		InvalidateSource(relid);
	if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
	{
		relid = DatumGetObjectId(heap_getattr(trigger->tg_newtuple, attno, tupdesc, &isnull));
		if (!isnull)
			InvalidateSource(relid);
	}
	return PointerGetDatum(NULL);
}

/*
 * What was said of functions goes with them, or it would be said of those that
 * get their names.
 */
static void
DropFunctions(void)
{
	static const char *const tables[] = {"function", "dependency"};
	int i;

	for (i = 0; i < lengthof(tables); i++)
	{
		char *which = psprintf(
			"FROM changefeed.%s f WHERE f.function OPERATOR(pg_catalog.=) ANY"
			" (SELECT d.object_identity FROM pg_catalog.pg_event_trigger_dropped_objects() d"
			" WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass)",
			tables[i]);

		if (DdlRead(psprintf("SELECT 1 %s LIMIT 1", which), 0, NULL, NULL) > 0)
			(void) DdlWrite(psprintf("DELETE %s", which), 0, NULL, NULL, NULL);
	}
}

/* Event trigger on sql_drop: sources go with their tables, channels stay. */
Datum
changefeed_tables_dropped(PG_FUNCTION_ARGS)
{
	static const char *const dropped =
		"FROM pg_catalog.pg_event_trigger_dropped_objects() d"
		" WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass"
		" AND d.objsubid OPERATOR(pg_catalog.=) 0"
		" AND d.objid OPERATOR(pg_catalog.=) s.relid::pg_catalog.oid";
	Oid namespace = get_namespace_oid(CHANGEFEED_SCHEMA, true);
	DdlAccess access;

	if (!CALLED_AS_EVENT_TRIGGER(fcinfo))
		ereport(ERROR, (errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
						errmsg("function must be called as an event trigger")));

	/* The extension itself may be what is dropped. */
	if (!OidIsValid(namespace) || !OidIsValid(get_relname_relid("source", namespace)))
		PG_RETURN_NULL();

	/*
	 * Look before writing: most commands drop something else, and should not
	 * wait for a create_channel under way.  Nobody can be about to make a
	 * source of a table that we have dropped: he would hold a lock on it.
	 */
	DdlBegin(&access);
	if (DdlRead(
			psprintf("SELECT 1 FROM changefeed.source s WHERE EXISTS (SELECT %s) LIMIT 1", dropped),
			0, NULL, NULL) > 0)
	{
		DdlLock();
		if (DdlWrite(psprintf("DELETE FROM changefeed.source s WHERE EXISTS (SELECT %s)", dropped),
					 0, NULL, NULL, NULL) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
					 errmsg("could not drop a table because it was made a source concurrently")));
		DropEventsOfNone();
	}
	DropFunctions();
	DdlEnd(&access);
	PG_RETURN_NULL();
}
