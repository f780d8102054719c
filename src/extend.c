/*-------------------------------------------------------------------------
 *
 * extend.c
 *		New columns for subscriptions that go on.
 *
 * ALTER TABLE ... ADD COLUMN changes no row: all rows get one value, which is
 * in the catalog.  A client must have it nevertheless, so with the transaction
 * T of the ALTER it gets a `merge` of the new columns for every row that it
 * holds and that T itself does not change; a row that T changes has the new
 * columns in its own operation.
 *
 * Nobody keeps what a client holds.  It is found out backwards: a query worker
 * reads the keys of the rows that are visible now, and the transactions behind
 * T that its snapshot contains are taken back.  Of a key that one of them
 * touches, the first row that it touched tells whether the client held it at
 * T; of the others, that they are there now.  The subscription's connection is
 * held in front of T meanwhile (check.c).
 *
 * Process: feed worker.  Memory: an Extension has a context of its own, and
 * belongs to the subscriptions that it was given to.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "audience.h"
#include "extend.h"
#include "receivers.h"

#include "access/htup_details.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_class.h"
#include "common/hashfn.h"
#include "utils/array.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

/* Operations that are sent together: frames are cut between them. */
#define CHUNK_BYTES (8 * 1024)

/* The new columns of one source. */
typedef struct ExtendedSource
{
	char *set; /* {"c":5}, or NULL: no new columns */
	int nkeys;
	KeyText *keys; /* of the rows that get it */
} ExtendedSource;

struct Extension
{
	MemoryContext context;
	int refcount;
	uint64 number;
	int nviews;
	Identity *identity;
	View **before;
	View **after;
	ExtendedSource *sources;
	dlist_head subscriptions; /* Subscription.extension_node */
};

/* ---- is it possible? ---- */

/* What the client holds has to be what the table has. */
static bool
IsCache(const Source *source)
{
	return (source->on_insert == ACTION_APPEND || source->on_insert == ACTION_REPLACE ||
			source->on_insert == ACTION_MERGE) &&
		   (source->on_update == ACTION_MERGE || source->on_update == ACTION_REPLACE) &&
		   source->on_delete == ACTION_REMOVE;
}

bool
ExtensionPossible(Check *check, Subscription *s)
{
	Channel *channel = check->instance->channel;
	Subscription *first = dlist_head_element(Subscription, check_node, &check->subscriptions);
	int i;

	/* The connection is to be sent the transaction alone, by its cursor. */
	if (s->connection->live || s->connection->cursor >= check->number || s->since >= check->number)
		return false;

	/* What a window holds is not known from the keys that are in it now. */
	if (s->window)
		return false;
	for (i = 0; i < check->nviews; i++)
	{
		int k;

		/* Views are interned: equal ones are the same. */
		if (s->views[i] != first->views[i])
			return false;
		if (check->views[i]->ncolumns == s->views[i]->ncolumns)
			continue;
		if (!IsCache(channel->sources[i]))
			return false;

		/* A column that was there before has values of its own. */
		for (k = s->views[i]->ncolumns; k < check->views[i]->ncolumns; k++)
			if (!RelationColumnIsNew(channel->sources[i]->relid, check->views[i]->columns[k],
									 check->number))
				return false;
	}
	return true;
}

/* ---- keys ---- */

/* Splits a JSON array of objects, which our own encoder has written. */
void
ExtensionReadKeys(Check *check, int source, const char *data, Size length)
{
	Size start = 0;
	Size i;
	int depth = 0;
	bool quoted = false;

	check->key_bytes += length;
	if (check->key_bytes > (Size) setting_max_transaction * 1024)
		check->too_large = true;
	if (check->too_large)
		return;
	for (i = 0; i < length; i++)
	{
		char c = data[i];

		if (quoted)
		{
			if (c == '\\')
				i++;
			else if (c == '"')
				quoted = false;
		}
		else if (c == '"')
			quoted = true;
		else if (c == '{' || c == '[')
		{
			if (++depth == 2)
				start = i;
		}
		else if ((c == '}' || c == ']') && depth-- == 2)
		{
			KeyText *key = palloc(sizeof(KeyText));

			key->length = (int) (i + 1 - start);
			key->json = pnstrdup(data + start, key->length);
			check->keys[source] = lappend(check->keys[source], key);
		}
	}
}

/* What is known of the keys that were touched. */
typedef struct Touched
{
	struct Touched *next; /* same hash, other key */
	int source;
	const char *key;
	int length;
} Touched;

typedef struct TouchedEntry
{
	uint64 hash;
	Touched *first;
} TouchedEntry;

/* False: it was there.  Only looked for when `add` is false. */
static bool
Touch(HTAB *table, int source, const char *key, int length, bool add)
{
	uint64 hash = hash_bytes_extended((const unsigned char *) key, length, source);
	bool found;
	TouchedEntry *entry = hash_search(table, &hash, add ? HASH_ENTER : HASH_FIND, &found);
	Touched *touched;

	if (found)
		for (touched = entry->first; touched != NULL; touched = touched->next)
			if (touched->source == source && touched->length == length &&
				memcmp(touched->key, key, length) == 0)
				return false;
	if (!add)
		return true;
	touched = palloc(sizeof(Touched));
	touched->next = found ? entry->first : NULL;
	touched->source = source;
	touched->key = key;
	touched->length = length;
	entry->first = touched;
	return true;
}

static bool
WasNew(Check *check, Subscription *s, int source)
{
	return check->views[source]->ncolumns > s->views[source]->ncolumns;
}

/*
 * Takes back what happened behind T; `held` gets, by source, the keys touched
 * since then that the client held.  In `touched` are all of them, and those
 * that T touches itself.
 */
static ExtensionState
TakeBack(Check *check, uint64 until, HTAB *touched, List **held)
{
	Subscription *first = dlist_head_element(Subscription, check_node, &check->subscriptions);
	ExtensionState state = EXTENSION_READY;
	uint64 run = DeliverNewRun();
	uint64 number;
	int i;

	for (number = check->number; number <= until; number++)
	{
		LogTransaction *transaction = LogGet(number);
		bool is_first = number == check->number;
		TransactionMap *map;

		if (transaction == NULL)
			return EXTENSION_IMPOSSIBLE;
		if (transaction->nchanges == 0 ||
			(!is_first &&
			 !SubscribeSnapshotContains(&check->snapshot, (TransactionId) transaction->commit.xid)))
			continue;
		map = MapGet(transaction);
		for (i = 0; i < map->nentries; i++)
		{
			MapEntry *entry = &map->entries[i];
			int source = entry->source->index;
			View *view;
			bool before;
			bool after;
			AudienceMatch match;
			Verdict verdict = VERDICT_VISIBLE;

			if (entry->source->channel != check->instance->channel || !WasNew(check, first, source))
				continue;
			before = entry->old_in && InstanceMatches(check->instance, entry->old_params);
			after = entry->new_in && InstanceMatches(check->instance, entry->new_params);
			if (!before && !after)
				continue;
			match = AudienceMatches(first->audience, map, entry, run, before, after);
			if ((before && match.before > MATCH_YES) || (after && match.after > MATCH_YES))
				return EXTENSION_IMPOSSIBLE;
			before = before && match.before == MATCH_YES;
			after = after && match.after == MATCH_YES;
			if ((!before && !after) || !Touch(touched, source, entry->key, entry->key_length, true))
				continue;
			if (is_first || !before)
				continue;

			view = check->views[source];
			if (view->rls == 2)
				continue;
			if (view->rls == 1)
			{
				if (map->images[entry->old_image].incomplete)
					return EXTENSION_IMPOSSIBLE;
				verdict = VerdictInline(map, view, entry->old_image);
				if (verdict == VERDICT_UNKNOWN)
					verdict = VerdictGet(map, check->identity, view, entry->old_image, true);
				if (verdict <= VERDICT_ASKED)
					state = EXTENSION_WAITS; /* ask for the others, too */
			}
			if (verdict == VERDICT_VISIBLE)
			{
				KeyText *key = palloc(sizeof(KeyText));

				key->json = entry->key;
				key->length = entry->key_length;
				held[source] = lappend(held[source], key);
			}
		}
	}
	return state;
}

/* ---- values ---- */

/* The value that all rows have which were there before the column. */
static bool
AppendMissing(StringInfo out, Oid relid, int16 attno)
{
	HeapTuple tuple;
	Form_pg_attribute att;
	TupleDesc tupdesc;
	RowEncoder *encoder;
	Datum value;
	bool isnull;
	bool known;

	/* A partitioned table has no rows, and no such value; ask a partition. */
	if (get_rel_relkind(relid) == RELKIND_PARTITIONED_TABLE)
	{
		Oid part = RelationLeaf(relid);

		if (!OidIsValid(part))
			return true; /* so there are no keys */
		attno = get_attnum(part, RelationColumnName(relid, attno));
		relid = part;
	}
	tuple = SearchSysCache2(ATTNUM, ObjectIdGetDatum(relid), Int16GetDatum(attno));
	if (!HeapTupleIsValid(tuple))
		return false;
	att = (Form_pg_attribute) GETSTRUCT(tuple);

	/* VACUUM FULL takes the value away: what there is no word of need not be null. */
	known = !att->attisdropped && att->attgenerated == '\0' &&
			(att->atthasmissing || !att->atthasdef) && !EncodeTypeUsesCast(att->atttypid);
	if (known)
	{
		tupdesc = CreateTemplateTupleDesc(1);
		TupleDescInitEntry(tupdesc, 1, NameStr(att->attname), att->atttypid, att->atttypmod,
						   att->attndims);
		encoder = EncoderCreate(tupdesc, CurrentMemoryContext);
		value = SysCacheGetAttr(ATTNUM, tuple, Anum_pg_attribute_attmissingval, &isnull);
		if (!isnull)
		{
			int one = 1;

			value = array_get_element(value, 1, &one, -1, att->attlen, att->attbyval, att->attalign,
									  &isnull);
		}
		EncodeColumn(encoder, out, 1, value, isnull);
	}
	ReleaseSysCache(tuple);
	return known;
}

/* `{"c":5}`, or NULL when the values are not known. */
static char *
MissingValues(const View *before, const View *after)
{
	StringInfoData out;
	int i;

	initStringInfo(&out);
	for (i = before->ncolumns; i < after->ncolumns; i++)
	{
		appendStringInfoChar(&out, i == before->ncolumns ? '{' : ',');
		if (!AppendMissing(&out, before->relid, after->columns[i]))
			return NULL;
	}
	appendStringInfoChar(&out, '}');
	return out.data;
}

/* ---- making it ---- */

static void
CopyKeys(Extension *e, int source, List *keys)
{
	ExtendedSource *to = &e->sources[source];
	ListCell *lc;

	foreach(lc, keys)
	{
		KeyText *key = lfirst(lc);

		to->keys[to->nkeys].json = pnstrdup(key->json, key->length);
		to->keys[to->nkeys++].length = key->length;
	}
}

ExtensionState
ExtensionPrepare(Check *check, uint64 until)
{
	Subscription *first = dlist_head_element(Subscription, check_node, &check->subscriptions);
	List **held = palloc0(sizeof(List *) * Max(check->nviews, 1));
	char **sets = palloc0(sizeof(char *) * Max(check->nviews, 1));
	HTAB *touched;
	HASHCTL ctl;
	ExtensionState state;
	Extension *e;
	MemoryContext context;
	MemoryContext old;
	Size bytes = 0;
	int i;

	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(TouchedEntry);
	ctl.hcxt = CurrentMemoryContext;
	touched = hash_create("changefeed touched keys", 64, &ctl,
						  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	state = TakeBack(check, until, touched, held);
	if (state != EXTENSION_READY)
		return state;

	for (i = 0; i < check->nviews; i++)
	{
		ListCell *lc;

		if (!WasNew(check, first, i))
			continue;
		sets[i] = MissingValues(first->views[i], check->views[i]);
		if (sets[i] == NULL)
			return EXTENSION_IMPOSSIBLE;
		foreach(lc, check->keys[i])
		{
			KeyText *key = lfirst(lc);

			if (Touch(touched, i, key->json, key->length, false))
				held[i] = lappend(held[i], key);
		}
		foreach(lc, held[i])
			bytes += ((KeyText *) lfirst(lc))->length + strlen(sets[i]);
	}
	if (bytes > (Size) setting_max_transaction * 1024)
		return EXTENSION_IMPOSSIBLE;

	context = AllocSetContextCreate(feed_context, "changefeed extension", ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	e = palloc0(sizeof(Extension));
	e->context = context;
	e->number = check->number;
	e->nviews = check->nviews;
	e->identity = check->identity;
	e->identity->refcount++;
	e->before = palloc(sizeof(View *) * Max(e->nviews, 1));
	e->after = palloc(sizeof(View *) * Max(e->nviews, 1));
	e->sources = palloc0(sizeof(ExtendedSource) * Max(e->nviews, 1));
	dlist_init(&e->subscriptions);
	for (i = 0; i < e->nviews; i++)
	{
		e->before[i] = ViewIntern(e->identity, first->views[i]);
		e->after[i] = ViewIntern(e->identity, check->views[i]);
		if (sets[i] == NULL)
			continue;
		e->sources[i].set = pstrdup(sets[i]);
		e->sources[i].keys = MemoryContextAllocHuge(context,
													sizeof(KeyText) * Max(list_length(held[i]), 1));
		CopyKeys(e, i, held[i]);
	}
	MemoryContextSwitchTo(old);
	check->extension = e;
	return EXTENSION_READY;
}

void
ExtensionGive(Check *check, Subscription *s)
{
	Extension *e = check->extension;

	s->extension = e;
	dlist_push_tail(&e->subscriptions, &s->extension_node);
	e->refcount++;
}

void
ExtensionForget(Subscription *s)
{
	Extension *e = s->extension;
	int i;

	if (e == NULL)
		return;
	s->extension = NULL;
	dlist_delete(&s->extension_node);
	if (--e->refcount > 0)
		return;
	for (i = 0; i < e->nviews; i++)
	{
		ViewRelease(e->identity, e->before[i]);
		ViewRelease(e->identity, e->after[i]);
	}
	IdentityRelease(e->identity);
	MemoryContextDelete(e->context);
}

/* ---- with the transaction ---- */

static bool
IsDue(Subscription *s, uint64 number)
{
	return s->state == SUB_READY && s->extension != NULL && s->extension->number == number;
}

bool
ExtensionsAt(List *connections, uint64 number)
{
	ListCell *lc;
	dlist_iter iter;

	foreach(lc, connections)
		dlist_foreach(iter, &((Connection *) lfirst(lc))->subscriptions)
			if (IsDue(dlist_container(Subscription, connection_node, iter.cur), number))
				return true;
	return false;
}

static void
SetViews(Subscription *s, View **views)
{
	int i;

	ReceiversLeave(s);
	for (i = 0; i < s->extension->nviews; i++)
	{
		ViewRelease(s->connection->identity, s->views[i]);
		s->views[i] = ViewIntern(s->connection->identity, views[i]);
	}
	ReceiversJoin(s);
}

/* From here on the new views count. */
void
ExtensionsBegin(Delivery *d)
{
	ListCell *lc;
	dlist_iter iter;

	foreach(lc, d->members)
	{
		dlist_foreach(iter, &((Connection *) lfirst(lc))->subscriptions)
		{
			Subscription *s = dlist_container(Subscription, connection_node, iter.cur);

			if (IsDue(s, d->transaction->number))
				SetViews(s, s->extension->after);
		}
	}
}

View *
ExtensionBefore(Subscription *s, uint64 number, int source)
{
	return IsDue(s, number) ? s->extension->before[source] : NULL;
}

static void
AddMerges(Delivery *d, Subscription *s)
{
	Extension *e = s->extension;
	StringInfoData json;
	int i;
	int k;

	for (i = 0; i < e->nviews; i++)
	{
		ExtendedSource *source = &e->sources[i];

		initStringInfo(&json);
		for (k = 0; k < source->nkeys; k++)
		{
			const char *entity = s->instance->channel->sources[i]->entity;

			if (json.len > 0)
				appendStringInfoChar(&json, ',');
			appendStringInfoString(&json, "{\"channel\":");
			appendBinaryStringInfo(&json, s->name->json, s->name->length);
			appendStringInfoString(&json, ",\"entity\":");
			EncodeString(&json, entity, strlen(entity));
			appendStringInfoString(&json, ",\"op\":\"merge\",\"key\":");
			appendBinaryStringInfo(&json, source->keys[k].json, source->keys[k].length);
			appendStringInfoString(&json, ",\"set\":");
			appendStringInfoString(&json, source->set);
			/* The rows are the versions that they were. */
			appendStringInfoString(&json, s->versions ? ",\"version\":null}" : "}");
			if (json.len < CHUNK_BYTES && k + 1 < source->nkeys)
				continue;
			FragmentAddText(d, s, json.data, json.len);
			initStringInfo(&json);
		}
	}
}

/* The rows that the transaction itself does not change. */
void
ExtensionsAdd(Delivery *d)
{
	ListCell *lc;
	dlist_iter iter;

	foreach(lc, d->members)
	{
		Connection *connection = lfirst(lc);

		if (connection->group != d->group)
			continue; /* waits for a verdict */
		dlist_foreach(iter, &connection->subscriptions)
		{
			Subscription *s = dlist_container(Subscription, connection_node, iter.cur);

			if (!IsDue(s, d->transaction->number))
				continue;
			SubscribeTellColumns(s);
			if (!s->no_snapshot)
				AddMerges(d, s);
		}
	}
}

void
ExtensionsEnd(Delivery *d)
{
	ListCell *lc;
	dlist_iter iter;

	foreach(lc, d->members)
	{
		Connection *connection = lfirst(lc);

		dlist_foreach(iter, &connection->subscriptions)
		{
			Subscription *s = dlist_container(Subscription, connection_node, iter.cur);

			if (!IsDue(s, d->transaction->number))
				continue;
			if (connection->group != d->group)
			{
				/*
				 * It waits for a verdict, and may be thrown back meanwhile to
				 * rows that have no such columns.
				 */
				SetViews(s, s->extension->before);
				continue;
			}
			s->extended = d->transaction->number;
			RecheckLost(s);
			ExtensionForget(s);
		}
	}
}
