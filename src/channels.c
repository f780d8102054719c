/*-------------------------------------------------------------------------
 *
 * channels.c
 *		The channel catalog as the feed worker keeps it.  See channels.h.
 *
 * The tables are read directly (no SPI, nothing that could run a user's code)
 * under a conditional lock: the feed worker never waits for one.
 *
 * Process: feed worker.  Memory: one context per channel, which holds the
 * channel, its sources and their layouts.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "channels.h"
#include "event.h"
#include "counters.h"
#include "filter_compile.h"
#include "presence.h"
#include "shared.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

uint64 channels_generation = 1; /* the index by table starts at 0 */

uint64 channels_unknown_until;

static List *channels;		/* of Channel, in TopMemoryContext */
static List *allowed_roles; /* of Oid, sorted, in TopMemoryContext */

Datum
CatalogRowGet(CatalogRow *row, const char *name, bool *isnull)
{
	int i;

	for (i = 0; i < row->tupdesc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(row->tupdesc, i);

		if (!att->attisdropped && strcmp(NameStr(att->attname), name) == 0)
		{
			*isnull = row->isnull[i];
			return row->values[i];
		}
	}

	/* An older version of the extension's SQL lacks it. */
	*isnull = true;
	return (Datum) 0;
}

char *
CatalogRowText(CatalogRow *row, const char *name)
{
	bool isnull;
	Datum value = CatalogRowGet(row, name, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

static char **
RowNames(CatalogRow *row, const char *name, int *count)
{
	bool isnull;
	Datum value = CatalogRowGet(row, name, &isnull);
	Datum *elements;
	char **names;
	int i;

	*count = 0;
	if (isnull)
		return NULL;
	deconstruct_array(DatumGetArrayTypeP(value), NAMEOID, NAMEDATALEN, false, TYPALIGN_CHAR,
					  &elements, NULL, count);
	names = palloc(sizeof(char *) * Max(*count, 1));
	for (i = 0; i < *count; i++)
		names[i] = pstrdup(NameStr(*DatumGetName(elements[i])));
	return names;
}

bool
CatalogScan(const char *name, CatalogRowCallback callback, void *arg)
{
	Oid namespace = get_namespace_oid(CHANGEFEED_SCHEMA, true);
	Oid relid;
	Relation rel;
	TableScanDesc scan;
	Snapshot snapshot;
	HeapTuple tuple;
	CatalogRow row;

	relid = OidIsValid(namespace) ? get_relname_relid(name, namespace) : InvalidOid;
	if (!OidIsValid(relid))
		return true; /* DROP EXTENSION is on its way */
	if (!ConditionalLockRelationOid(relid, AccessShareLock))
		return false;
	rel = try_relation_open(relid, NoLock);
	if (rel == NULL)
		return true;

	row.tupdesc = RelationGetDescr(rel);
	row.values = palloc(sizeof(Datum) * row.tupdesc->natts);
	row.isnull = palloc(sizeof(bool) * row.tupdesc->natts);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan = table_beginscan(rel, snapshot, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		heap_deform_tuple(tuple, row.tupdesc, row.values, row.isnull);
		callback(&row, arg);
	}
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
	relation_close(rel, AccessShareLock);
	return true;
}

/* An interval of less than a day, as create_channel lets in; 0 for null. */
static int
CatalogRowMilliseconds(CatalogRow *row, const char *name)
{
	bool isnull;
	Datum value = CatalogRowGet(row, name, &isnull);

	return isnull ? 0 : (int) (DatumGetIntervalP(value)->time / 1000);
}

/* All that CatalogScan is asked for, until the end of the turn. */
bool
CatalogLock(void)
{
	static const char *const names[] = {"channel", "source", "role", "revocation", "pause"};
	Oid namespace = get_namespace_oid(CHANGEFEED_SCHEMA, true);
	int i;

	for (i = 0; OidIsValid(namespace) && i < lengthof(names); i++)
	{
		Oid relid = get_relname_relid(names[i], namespace);

		if (OidIsValid(relid) && !ConditionalLockRelationOid(relid, AccessShareLock))
			return false;
	}
	return true;
}

static SourceAction
ParseAction(const char *text)
{
	if (text == NULL || strcmp(text, "ignore") == 0)
		return ACTION_IGNORE;
	if (strcmp(text, "append") == 0)
		return ACTION_APPEND;
	if (strcmp(text, "merge") == 0)
		return ACTION_MERGE;
	if (strcmp(text, "replace") == 0)
		return ACTION_REPLACE;
	return ACTION_REMOVE;
}

/* create_channel has checked it; what is no use all the same is as if it were not there. */
static void
ReadPresence(Channel *channel, CatalogRow *row)
{
	PresenceOptions *options;
	const char *problem;
	const char *hint;
	Jsonb *value;
	bool isnull;
	Datum datum = CatalogRowGet(row, "presence", &isnull);

	if (isnull)
		return;
	value = DatumGetJsonbPCopy(datum);
	options = palloc(sizeof(PresenceOptions));
	problem = PresenceOptionsParse(value, options, &hint);
	if (problem != NULL)
	{
		ereport(LOG, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					  errmsg("channel \"%s\" is without presence: %s", channel->name, problem)));
		return;
	}
	channel->presence = options;
	channel->presence_text = JsonbToCString(NULL, &value->root, VARSIZE(value));
}

/* What is read of the catalog: there may be ten thousand channels. */
typedef struct Fresh
{
	List *list;	 /* of Channel */
	HTAB *by_id; /* NumberEntry */
} Fresh;

typedef struct NumberEntry
{
	int id;
	Channel *channel;
} NumberEntry;

typedef struct NameEntry
{
	const char *name; /* the channel's */
	Channel *channel;
} NameEntry;

static HTAB *
MakeIndex(const char *name, Size keysize, Size entrysize, bool names)
{
	HASHCTL ctl;
	int flags = HASH_ELEM | HASH_CONTEXT;

	ctl.keysize = keysize;
	ctl.entrysize = entrysize;
	ctl.hcxt = CurrentMemoryContext;
	if (names)
	{
		ctl.hash = ChannelsHashName;
		ctl.match = ChannelsMatchName;
		flags |= HASH_FUNCTION | HASH_COMPARE;
	}
	else
		flags |= HASH_BLOBS;
	return hash_create(name, 64, &ctl, flags);
}

static Channel *
FindNumber(HTAB *index, int id)
{
	NumberEntry *entry = hash_search(index, &id, HASH_FIND, NULL);

	return entry != NULL ? entry->channel : NULL;
}

static void
AddNumber(HTAB *index, Channel *channel)
{
	bool found;
	NumberEntry *entry = hash_search(index, &channel->id, HASH_ENTER, &found);

	entry->channel = channel;
}

static void
ReadChannel(CatalogRow *row, void *arg)
{
	Fresh *fresh = arg;
	MemoryContext context;
	MemoryContext old;
	Channel *channel;
	bool isnull;
	static uint64 last_serial;

	context = AllocSetContextCreate(TopMemoryContext, "changefeed channel", ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	channel = palloc0(sizeof(Channel));
	channel->context = context;
	channel->serial = ++last_serial;
	channel->id = DatumGetInt32(CatalogRowGet(row, "id", &isnull));
	channel->name = CatalogRowText(row, "name");
	channel->template = TemplateParse(channel->name);
	channel->join_check = CatalogRowText(row, "join_check");
	ReadPresence(channel, row);
	channel->publish_check = CatalogRowText(row, "publish_check");
	channel->nviews = 1;
	channel->min_interval = CatalogRowMilliseconds(row, "min_interval");
	MemoryContextSwitchTo(old);
	fresh->list = lappend(fresh->list, channel);
	AddNumber(fresh->by_id, channel);
}

static void
ReadSource(CatalogRow *row, void *arg)
{
	bool isnull;
	Channel *channel = FindNumber(((Fresh *) arg)->by_id,
								  DatumGetInt32(CatalogRowGet(row, "channel", &isnull)));
	Source *source;
	MemoryContext old;

	if (channel == NULL)
		return;
	old = MemoryContextSwitchTo(channel->context);
	source = palloc0(sizeof(Source));
	source->channel = channel;
	source->id = DatumGetInt32(CatalogRowGet(row, "id", &isnull));
	source->relid = DatumGetObjectId(CatalogRowGet(row, "relid", &isnull));
	source->entity = pstrdup(NameStr(*DatumGetName(CatalogRowGet(row, "entity", &isnull))));
	source->key = RowNames(row, "key", &source->nkey);
	source->filter = CatalogRowText(row, "filter");
	source->columns = RowNames(row, "columns", &source->ncolumns);
	source->on_insert = ParseAction(CatalogRowText(row, "on_insert"));
	source->on_update = ParseAction(CatalogRowText(row, "on_update"));
	source->on_delete = ParseAction(CatalogRowText(row, "on_delete"));
	if (channel->sources == NULL)
		channel->sources = palloc(sizeof(Source *));
	else
		channel->sources = repalloc(channel->sources, sizeof(Source *) * (channel->nsources + 1));
	channel->sources[channel->nsources++] = source;
	channel->nviews = channel->nsources;
	MemoryContextSwitchTo(old);
}

static uint8
ParseChanges(CatalogRow *row)
{
	bool isnull;
	Datum value = CatalogRowGet(row, "on_change", &isnull);
	Datum *elements;
	bool *nulls;
	uint8 changes = 0;
	int n;
	int i;

	if (isnull)
		return 0;
	deconstruct_array(DatumGetArrayTypeP(value), TEXTOID, -1, false, TYPALIGN_INT, &elements,
					  &nulls, &n);
	for (i = 0; i < n; i++)
	{
		char *word = nulls[i] ? "" : TextDatumGetCString(elements[i]);

		if (strcmp(word, "insert") == 0)
			changes |= EVENT_INSERT;
		else if (strcmp(word, "update") == 0)
			changes |= EVENT_UPDATE;
		else if (strcmp(word, "delete") == 0)
			changes |= EVENT_DELETE;
	}
	return changes;
}

static void
ReadEvent(CatalogRow *row, void *arg)
{
	bool isnull;
	Channel *channel = FindNumber(((Fresh *) arg)->by_id,
								  DatumGetInt32(CatalogRowGet(row, "channel", &isnull)));
	int source_id = DatumGetInt32(CatalogRowGet(row, "source", &isnull));
	int i;

	for (i = 0; channel != NULL && i < channel->nsources; i++)
	{
		Source *source = channel->sources[i];
		MemoryContext old;
		SourceEvent *event;

		if (source->id != source_id)
			continue;
		old = MemoryContextSwitchTo(channel->context);
		if (source->events == NULL)
			source->events = palloc(sizeof(SourceEvent));
		else
			source->events = repalloc(source->events, sizeof(SourceEvent) * (source->nevents + 1));
		event = &source->events[source->nevents++];
		event->id = DatumGetInt32(CatalogRowGet(row, "id", &isnull));
		event->name = CatalogRowText(row, "name");
		event->condition = CatalogRowText(row, "condition");
		event->payload = CatalogRowText(row, "payload");
		event->changes = ParseChanges(row);
		MemoryContextSwitchTo(old);
	}
}

static int
CompareEvents(const void *a, const void *b)
{
	return ((const SourceEvent *) a)->id - ((const SourceEvent *) b)->id;
}

static int
CompareSources(const void *a, const void *b)
{
	return (*(Source *const *) a)->id - (*(Source *const *) b)->id;
}

/* Text of everything that makes a definition, to see whether it changed. */
static void
Sign(Channel *channel)
{
	MemoryContext old = MemoryContextSwitchTo(channel->context);
	StringInfoData s;
	int i;
	int k;

	if (channel->nsources > 1)
		qsort(channel->sources, channel->nsources, sizeof(Source *), CompareSources);
	initStringInfo(&s);
	appendStringInfo(&s, "%s (%s) %d %s%s(%s)", channel->name,
					 channel->join_check != NULL ? channel->join_check : "", channel->min_interval,
					 channel->presence_text != NULL ? channel->presence_text : "",
					 channel->publish_check != NULL ? " publish " : "",
					 channel->publish_check != NULL ? channel->publish_check : "");
	for (i = 0; i < channel->nsources; i++)
	{
		Source *source = channel->sources[i];

		source->index = i;
		appendStringInfo(&s, "\n%d %u %s %d%d%d (%s)", source->id, source->relid, source->entity,
						 source->on_insert, source->on_update, source->on_delete,
						 source->filter ? source->filter : "");
		for (k = 0; k < source->nkey; k++)
			appendStringInfo(&s, " k:%s", source->key[k]);
		for (k = 0; k < source->ncolumns; k++)
			appendStringInfo(&s, " c:%s", source->columns[k]);
		if (source->nevents > 1)
			qsort(source->events, source->nevents, sizeof(SourceEvent), CompareEvents);
		for (k = 0; k < source->nevents; k++)
		{
			const SourceEvent *event = &source->events[k];

			appendStringInfo(&s, "\n e:%d %d %s (%s) (%s)", event->id, event->changes, event->name,
							 event->condition ? event->condition : "",
							 event->payload ? event->payload : "");
		}
	}
	channel->signature = s.data;
	MemoryContextSwitchTo(old);
}

static void
ReadRole(CatalogRow *row, void *arg)
{
	List **list = arg;
	bool isnull;
	Oid role = DatumGetObjectId(CatalogRowGet(row, "role", &isnull));

	if (!isnull)
		*list = list_append_unique_oid(*list, role);
}

bool
ChannelsReload(uint64 number, void (*changed)(Channel *old), bool *roles_changed)
{
	Fresh fresh = {NIL, MakeIndex("changefeed numbers", sizeof(int), sizeof(NumberEntry), false)};
	HTAB *numbers = MakeIndex("changefeed numbers before", sizeof(int), sizeof(NumberEntry), false);
	HTAB *names = MakeIndex("changefeed names before", sizeof(char *), sizeof(NameEntry), true);
	List *roles = NIL;
	List *kept = NIL;
	List *previous = channels;
	ListCell *lc;
	MemoryContext old;

	if (!CatalogScan("channel", ReadChannel, &fresh) ||
		!CatalogScan("source", ReadSource, &fresh) || !CatalogScan("event", ReadEvent, &fresh) ||
		!CatalogScan("role", ReadRole, &roles))
	{
		foreach(lc, fresh.list)
			MemoryContextDelete(((Channel *) lfirst(lc))->context);
		return false;
	}

	list_sort(roles, list_oid_cmp);
	*roles_changed = !equal(roles, allowed_roles);
	if (*roles_changed)
	{
		old = MemoryContextSwitchTo(TopMemoryContext);
		list_free(allowed_roles);
		allowed_roles = list_copy(roles);
		MemoryContextSwitchTo(old);
	}

	old = MemoryContextSwitchTo(TopMemoryContext);
	foreach(lc, previous)
	{
		Channel *before = lfirst(lc);
		NameEntry *entry = hash_search(names, &before->name, HASH_ENTER, NULL);

		before->seen = false;
		entry->channel = before;
		AddNumber(numbers, before);
	}
	foreach(lc, fresh.list)
	{
		Channel *channel = lfirst(lc);
		Channel *before = FindNumber(numbers, channel->id);
		NameEntry *entry;
		Channel *same = NULL;

		Sign(channel);
		channel->changed = number;

		/* Dropped and created again, in one transaction, it has another number. */
		if (before != NULL && strcmp(before->signature, channel->signature) == 0)
		{
			before->seen = true;
			same = before;
		}
		else if (before != NULL)
			before->replacement = channel;
		else if ((entry = hash_search(names, &channel->name, HASH_FIND, NULL)) != NULL)
			entry->channel->replacement = channel;
		if (same != NULL)
		{
			MemoryContextDelete(channel->context);
			kept = lappend(kept, same);
		}
		else
			kept = lappend(kept, channel);
	}
	MemoryContextSwitchTo(old);

	foreach(lc, previous)
	{
		Channel *before = lfirst(lc);

		if (before->replacement != NULL && before->replacement->counters == NULL)
		{
			before->replacement->counters = before->counters;
			before->counters->refcount++;
		}
	}
	foreach(lc, kept)
		if (((Channel *) lfirst(lc))->counters == NULL)
			((Channel *) lfirst(lc))->counters = ChannelCountersMake();

	channels = kept;
	if (list_length(kept) != list_length(previous))
		channels_generation++;
	foreach(lc, previous)
	{
		Channel *before = lfirst(lc);

		if (!before->seen)
		{
			channels_generation++;
			changed(before);
			ChannelCountersRelease(before->counters);
			MemoryContextDelete(before->context);
		}
	}
	list_free(previous);
	return true;
}

List *
ChannelsAll(void)
{
	return channels;
}

/* By table, made anew after every change of the catalog. */
typedef struct SourcesEntry
{
	Oid relid;
	List *sources;
} SourcesEntry;

List *
ChannelsSourcesOf(Oid relid)
{
	static HTAB *by_relid;
	static MemoryContext context;
	static uint64 generation;
	SourcesEntry *entry;

	if (generation != channels_generation)
	{
		HASHCTL ctl;
		ListCell *lc;
		int i;
		MemoryContext old;

		if (context == NULL)
			context = AllocSetContextCreate(TopMemoryContext, "changefeed sources",
											ALLOCSET_SMALL_SIZES);
		MemoryContextReset(context);
		ctl.keysize = sizeof(Oid);
		ctl.entrysize = sizeof(SourcesEntry);
		ctl.hcxt = context;
		by_relid = hash_create("changefeed sources", 64, &ctl,
							   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
		old = MemoryContextSwitchTo(context);
		foreach(lc, channels)
		{
			Channel *channel = lfirst(lc);

			for (i = 0; i < channel->nsources; i++)
			{
				bool found;

				entry = hash_search(by_relid, &channel->sources[i]->relid, HASH_ENTER, &found);
				entry->sources = lappend(found ? entry->sources : NIL, channel->sources[i]);
			}
		}
		MemoryContextSwitchTo(old);
		generation = channels_generation;
	}
	entry = hash_search(by_relid, &relid, HASH_FIND, NULL);
	return entry != NULL ? entry->sources : NIL;
}

bool
ChannelsRoleAllowed(Oid role)
{
	return list_member_oid(allowed_roles, role);
}

static int16
FindColumn(const RecordDescription *desc, const char *name)
{
	int i;

	for (i = 0; i < desc->tupdesc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc->tupdesc, i);

		if (!att->attisdropped && strcmp(NameStr(att->attname), name) == 0)
			return (int16) (i + 1);
	}
	return 0;
}

static void
BuildLayout(Source *source, Layout *layout)
{
	ChannelTemplate *template = source->channel->template;
	int i;

	layout->nkey = source->nkey;
	layout->key = palloc(sizeof(int16) * Max(source->nkey, 1));
	for (i = 0; i < source->nkey; i++)
	{
		layout->key[i] = FindColumn(layout->desc, source->key[i]);
		if (layout->key[i] == 0)
		{
			layout->problem = psprintf("key column \"%s\" is gone", source->key[i]);
			return;
		}
	}
	layout->nparams = template->nparams;
	layout->params = palloc(sizeof(int16) * Max(template->nparams, 1));
	layout->param_output = palloc0(sizeof(FmgrInfo) * Max(template->nparams, 1));
	for (i = 0; i < template->nparams; i++)
	{
		Oid output;
		bool varlena;

		layout->params[i] = FindColumn(layout->desc, template->params[i]);
		if (layout->params[i] == 0)
		{
			layout->problem = psprintf("column \"%s\" of the channel's name is gone",
									   template->params[i]);
			return;
		}
		getTypeOutputInfo(TupleDescAttr(layout->desc->tupdesc, layout->params[i] - 1)->atttypid,
						  &output, &varlena);
		fmgr_info(output, &layout->param_output[i]);
	}
	layout->slot = MakeSingleTupleTableSlot(layout->desc->tupdesc, &TTSOpsVirtual);
	layout->encoder = EncoderCreate(layout->desc->tupdesc, CurrentMemoryContext);
}

static void
CompileFilter(Source *source, Layout *layout)
{
	MemoryContext old;
	bool costly;

	layout->filter_context = AllocSetContextCreate(CurrentMemoryContext, "changefeed source filter",
												   ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(layout->filter_context);
	layout->filter = FilterCompile(layout->desc->tupdesc, source->filter, &costly);
	MemoryContextSwitchTo(old);
}

/*
 * A filter need not fit the table any more.  That is found out once for each
 * description, and when what its constants mean has changed; it costs the source's
 * subscriptions a snapshot for each change, nobody else anything.
 */
static void
TryBuildLayout(Source *source, Layout *layout)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		if (layout->encoder == NULL)
			BuildLayout(source, layout);
		if (source->filter != NULL && layout->problem == NULL)
			CompileFilter(source, layout);
		layout->usable = layout->problem == NULL;
	}
	PG_CATCH();
	{
		ErrorData *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (error->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN ||
			error->sqlerrcode == ERRCODE_OUT_OF_MEMORY)
			PG_RE_THROW();
		FlushErrorState();
		layout->problem = error->message;
	}
	PG_END_TRY();
	if (!layout->usable)
		ereport(LOG, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					  errmsg("changes of table \"%s.%s\" cannot be sent to channel \"%s\": %s",
							 layout->desc->schema, layout->desc->name, source->channel->name,
							 layout->problem),
					  errdetail("The subscriptions concerned get fresh snapshots instead."),
					  errhint("Take changefeed.drop_source and changefeed.add_source.")));
}

Layout *
ChannelsLayout(Source *source, const RecordDescription *desc)
{
	ListCell *lc;
	Layout *layout;
	MemoryContext old;

	foreach(lc, source->layouts)
	{
		layout = lfirst(lc);
		if (layout->version != desc->version)
			continue;
		if (source->filter != NULL && layout->filter_context == NULL && layout->encoder != NULL)
		{
			old = MemoryContextSwitchTo(source->channel->context);
			TryBuildLayout(source, layout);
			MemoryContextSwitchTo(old);
		}
		return layout;
	}

	old = MemoryContextSwitchTo(source->channel->context);
	layout = palloc0(sizeof(Layout));
	layout->version = desc->version;
	layout->desc = desc;
	TryBuildLayout(source, layout);
	source->layouts = lcons(layout, source->layouts);
	MemoryContextSwitchTo(old);
	return layout;
}

void
ChannelsForgetCompiled(Oid relid)
{
	ListCell *lc;
	ListCell *lc2;

	foreach(lc, ChannelsSourcesOf(relid))
		foreach(lc2, ((Source *) lfirst(lc))->layouts)
		{
			Layout *layout = lfirst(lc2);

			if (layout->filter_context != NULL)
			{
				MemoryContextDelete(layout->filter_context);
				layout->filter_context = NULL;
				layout->filter = NULL;
				layout->usable = false;
				layout->problem = NULL;
			}
			if (layout->events_context != NULL)
			{
				MemoryContextDelete(layout->events_context);
				layout->events_context = NULL;
				layout->events = NULL;
			}
		}
}

bool
LayoutFilter(Layout *layout, const Datum *values, const bool *isnull)
{
	return layout->filter == NULL || FilterEvaluate(layout->filter, layout->slot, values, isnull);
}

bool
LayoutParams(Layout *layout, const Datum *values, const bool *isnull, char **params)
{
	int i;

	for (i = 0; i < layout->nparams; i++)
	{
		int attno = layout->params[i];

		if (isnull[attno - 1])
			return false;
		params[i] = OutputFunctionCall(&layout->param_output[i], values[attno - 1]);
	}
	return true;
}
