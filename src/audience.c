/*-------------------------------------------------------------------------
 *
 * audience.c
 *		Subscriptions with the same conditions, and which rows concern them.
 *
 * Whoever has the same conditions on the same instance of a channel shares
 * one audience, so that a row is matched once for all.  A query worker has
 * checked the conditions and written them in canonical form (query_selection.c);
 * they are compiled here for each description of the table when they are first
 * needed.
 *
 * Matching does not try all audiences.  If one demands that a column equals a
 * constant or one of several, it hangs in an index of its instance under the
 * hashes of these values, and a row finds it by the hash of its own value.  The
 * hash function is that of the type's equality, so what is not found by it
 * cannot pass.
 *
 * An evaluation may fail, and one with a regular expression may take long.
 * Neither is the feed's trouble: the first is caught, the second limited.
 *
 * Process: feed worker.  Memory: registry_context; compiled conditions in
 * contexts of their own below it.  Needs a transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "audience.h"
#include "filter_compile.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/timeout.h"
#include "utils/typcache.h"

/* Milliseconds that a condition with a regular expression may take for a row. */
#define COSTLY_LIMIT 50

/* Descriptions of a table that conditions are kept compiled for. */
#define MAX_COMPILED 2

typedef struct Compiled
{
	uint32 version;	   /* of the description */
	ExprState *filter; /* NULL: it does not fit the description */
	bool costly;
	MemoryContext context;
} Compiled;

/* The value of an index's column in an image. */
typedef enum LookupState
{
	LOOKUP_NONE, /* no image, or null: equals nothing */
	LOOKUP_HASH,
	LOOKUP_ALL /* not known, or of another type: try everybody */
} LookupState;

typedef struct Lookup
{
	LookupState state;
	uint32 hash;
} Lookup;

/* Audiences of an instance that demand a value of the same column. */
typedef struct AudienceIndex
{
	int16 attno;
	Oid column_type;
	Oid type;
	Oid collation;
	TypeCacheEntry *cache;
	HTAB *buckets; /* of IndexBucket */
	int members;
	uint64 run; /* of what was looked up last */
	const MapEntry *entry;
	bool has_before;
	bool has_after;
	Lookup before;
	Lookup after;
} AudienceIndex;

typedef struct IndexBucket
{
	uint32 hash;
	List *members; /* of AudienceSource */
} IndexBucket;

typedef struct InstanceSource
{
	List *tried; /* of AudienceSource that no index has */
	List *indexes;
} InstanceSource;

/* The conditions of an audience on one source. */
typedef struct AudienceSource
{
	Audience *audience;
	bool described; /* otherwise nobody is ready, and it hangs nowhere */
	char *text;		/* canonical */
	int nneeded;
	int16 *needed;
	AudienceIndex *index;
	int nhashes;
	uint32 *hashes;
	List *compiled; /* of Compiled, newest first */
	uint64 visited;
	uint64 run; /* of what was matched last */
	const MapEntry *entry;
	bool has_before;
	bool has_after;
	AudienceMatch match;
	char sqlstate[6]; /* of the last error */
	char message[256];
} AudienceSource;

typedef struct AudienceEntry
{
	uint64 hash;
	List *audiences; /* with that hash: nearly always one */
} AudienceEntry;

static HTAB *audiences;
static uint64 last_visit;
static TimeoutId costly_timeout;

static void
TimeIsUp(void)
{
	/* As if somebody had cancelled a query: what takes long looks at this. */
	InterruptPending = true;
	QueryCancelPending = true;
	SetLatch(MyLatch);
}

void
AudienceInit(void)
{
	HASHCTL ctl;

	ctl.hcxt = registry_context;
	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(AudienceEntry);
	audiences = hash_create("changefeed audiences", 256, &ctl,
							HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	costly_timeout = RegisterTimeout(USER_TIMEOUT, TimeIsUp);
}

/* ---- Audiences as objects ---- */

static uint64
HashOf(const Instance *instance, const char *sql)
{
	return hash_bytes_extended(
		(const unsigned char *) sql, (int) strlen(sql),
		hash_bytes_extended((const unsigned char *) instance->key, instance->key_length, 0));
}

Audience *
AudienceIntern(Instance *instance, const char *sql)
{
	uint64 hash = HashOf(instance, sql);
	bool found;
	AudienceEntry *entry = hash_search(audiences, &hash, HASH_ENTER, &found);
	Audience *audience;
	ListCell *lc;
	MemoryContext old;
	int nsources = instance->channel->nsources;
	int i;

	if (!found)
		entry->audiences = NIL;
	foreach(lc, entry->audiences)
	{
		audience = lfirst(lc);
		if (audience->instance == instance && strcmp(audience->sql, sql) == 0)
			return audience;
	}

	old = MemoryContextSwitchTo(registry_context);
	audience = palloc0(sizeof(Audience));
	audience->instance = instance;
	audience->sql = pstrdup(sql);
	dlist_init(&audience->subscriptions);
	if (sql[0] == '\0')
		instance->everything = audience;
	else
	{
		audience->sources = palloc0(sizeof(AudienceSource) * Max(nsources, 1));
		for (i = 0; i < nsources; i++)
			audience->sources[i].audience = audience;
		if (instance->conditions == NULL)
			instance->conditions = palloc0(sizeof(InstanceSource) * Max(nsources, 1));
	}
	instance->naudiences++;
	entry->audiences = lappend(entry->audiences, audience);
	MemoryContextSwitchTo(old);
	return audience;
}

static void
ForgetCompiled(AudienceSource *as, int keep)
{
	while (list_length(as->compiled) > keep)
	{
		Compiled *compiled = llast(as->compiled);

		as->compiled = list_delete_last(as->compiled);
		MemoryContextDelete(compiled->context);
	}
}

/* Out of the index or list that it hangs in. */
static void
Unlink(AudienceSource *as, int source)
{
	InstanceSource *is = &as->audience->instance->conditions[source];
	AudienceIndex *index = as->index;
	int i;

	if (!as->described)
		return;
	as->described = false;
	as->entry = NULL;
	ForgetCompiled(as, 0);
	if (index == NULL)
		is->tried = list_delete_ptr(is->tried, as);
	else
	{
		for (i = 0; i < as->nhashes; i++)
		{
			IndexBucket *bucket = hash_search(index->buckets, &as->hashes[i], HASH_FIND, NULL);

			if (bucket == NULL)
				continue; /* two values with one hash */
			bucket->members = list_delete_ptr(bucket->members, as);
			if (bucket->members == NIL)
				hash_search(index->buckets, &as->hashes[i], HASH_REMOVE, NULL);
		}
		pfree(as->hashes);
		if (--index->members == 0)
		{
			is->indexes = list_delete_ptr(is->indexes, index);
			hash_destroy(index->buckets);
			pfree(index);
		}
	}
	as->index = NULL;
	pfree(as->text);
	pfree(as->needed);
}

static void
Free(Audience *audience)
{
	Instance *instance = audience->instance;
	uint64 hash = HashOf(instance, audience->sql);
	AudienceEntry *entry = hash_search(audiences, &hash, HASH_FIND, NULL);
	int i;

	entry->audiences = list_delete_ptr(entry->audiences, audience);
	if (entry->audiences == NIL)
		hash_search(audiences, &hash, HASH_REMOVE, NULL);
	if (audience->sources != NULL)
	{
		for (i = 0; i < instance->channel->nsources; i++)
			Unlink(&audience->sources[i], i);
		pfree(audience->sources);
	}
	if (instance->everything == audience)
		instance->everything = NULL;
	Assert(audience->spellings == NIL);
	pfree(audience->sql);
	pfree(audience);
	if (--instance->naudiences == 0 && instance->conditions != NULL)
	{
		pfree(instance->conditions);
		instance->conditions = NULL;
	}
}

/* ---- Members ---- */

static Spelling *
SpellingIntern(Audience *audience, const char *name, Size length, bool is_json)
{
	MemoryContext old = MemoryContextSwitchTo(registry_context);
	StringInfoData json;
	ListCell *lc;
	Spelling *spelling;

	initStringInfo(&json);
	if (is_json)
		appendBinaryStringInfo(&json, name, (int) length);
	else
		EncodeString(&json, name, length);
	foreach(lc, audience->spellings)
	{
		spelling = lfirst(lc);
		if (spelling->length == json.len && memcmp(spelling->json, json.data, json.len) == 0)
		{
			pfree(json.data);
			spelling->refcount++;
			MemoryContextSwitchTo(old);
			return spelling;
		}
	}
	spelling = palloc(sizeof(Spelling));
	spelling->json = json.data;
	spelling->length = json.len;
	spelling->refcount = 1;
	audience->spellings = lappend(audience->spellings, spelling);
	MemoryContextSwitchTo(old);
	return spelling;
}

void
AudienceJoin(Subscription *s, Audience *audience, const char *name, Size length, bool json)
{
	s->instance = audience->instance;
	s->audience = audience;
	s->name = SpellingIntern(audience, name, length, json);
	dlist_push_tail(&s->instance->subscriptions, &s->instance_node);
	dlist_push_tail(&audience->subscriptions, &s->audience_node);
}

bool
AudienceLeave(Subscription *s)
{
	Audience *audience = s->audience;
	Instance *instance = s->instance;

	dlist_delete(&s->instance_node);
	dlist_delete(&s->audience_node);
	if (--s->name->refcount == 0)
	{
		audience->spellings = list_delete_ptr(audience->spellings, s->name);
		pfree(s->name->json);
		pfree(s->name);
	}
	s->name = NULL;
	if (dlist_is_empty(&audience->subscriptions))
		Free(audience);
	return instance->naudiences == 0;
}

/* ---- Indexes ---- */

static AudienceIndex *
IndexIntern(InstanceSource *is, int16 attno, Oid column_type, Oid type, Oid collation)
{
	AudienceIndex *index;
	ListCell *lc;
	HASHCTL ctl;

	foreach(lc, is->indexes)
	{
		index = lfirst(lc);
		if (index->attno == attno && index->column_type == column_type && index->type == type &&
			index->collation == collation)
			return index;
	}
	index = palloc0(sizeof(AudienceIndex));
	index->attno = attno;
	index->column_type = column_type;
	index->type = type;
	index->collation = collation;
	index->cache = lookup_type_cache(type, TYPECACHE_HASH_PROC_FINFO);
	ctl.keysize = sizeof(uint32);
	ctl.entrysize = sizeof(IndexBucket);
	ctl.hcxt = registry_context;
	index->buckets = hash_create("changefeed conditions", 16, &ctl,
								 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	is->indexes = lappend(is->indexes, index);
	return index;
}

static void
Link(AudienceSource *as, int source, int16 attno, Oid column_type, Oid type, Oid collation)
{
	InstanceSource *is = &as->audience->instance->conditions[source];
	int i;

	as->described = true;
	if (attno == 0)
	{
		is->tried = lappend(is->tried, as);
		return;
	}
	as->index = IndexIntern(is, attno, column_type, type, collation);
	as->index->members++;
	for (i = 0; i < as->nhashes; i++)
	{
		bool found;
		IndexBucket *bucket = hash_search(as->index->buckets, &as->hashes[i], HASH_ENTER, &found);

		if (!found)
			bucket->members = NIL;
		bucket->members = list_append_unique_ptr(bucket->members, as);
	}
}

void
AudienceDescribe(Audience *audience, int source, WireReader *r)
{
	WireBytes text = WireGetBytes(r);
	AudienceSource *as = audience != NULL && audience->sources != NULL ? &audience->sources[source]
																	   : NULL;
	MemoryContext old = MemoryContextSwitchTo(registry_context);
	int nneeded = WireGetU16(r);
	int16 *needed = palloc(sizeof(int16) * Max(nneeded, 1));
	int16 attno;
	Oid column_type;
	Oid type;
	Oid collation;
	int nhashes;
	uint32 *hashes;
	int i;

	for (i = 0; i < nneeded; i++)
		needed[i] = (int16) WireGetU16(r);
	attno = (int16) WireGetU16(r);
	column_type = WireGetU32(r);
	type = WireGetU32(r);
	collation = WireGetU32(r);
	nhashes = (int) WireGetU32(r);
	if (r->failed || nhashes > r->length || (audience != NULL && (as != NULL) != (text.length > 0)))
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
						errmsg("malformed conditions from a query worker")));
	hashes = palloc(sizeof(uint32) * Max(nhashes, 1));
	for (i = 0; i < nhashes; i++)
		hashes[i] = WireGetU32(r);

	/*
	 * It was the same for everybody so far.  If it is not, the table has
	 * changed, and those who had the old one are about to hear of it.
	 */
	if (as == NULL || (as->described && strlen(as->text) == text.length &&
					   memcmp(as->text, text.data, text.length) == 0 && as->nneeded == nneeded &&
					   memcmp(as->needed, needed, sizeof(int16) * nneeded) == 0))
	{
		pfree(needed);
		pfree(hashes);
	}
	else
	{
		Unlink(as, source);
		as->text = pnstrdup(text.data, text.length);
		as->nneeded = nneeded;
		as->needed = needed;
		as->nhashes = nhashes;
		as->hashes = hashes;
		Link(as, source, attno, column_type, type, collation);
		if (as->index == NULL)
			pfree(hashes);
	}
	MemoryContextSwitchTo(old);
}

static Lookup
LookUpImage(AudienceIndex *index, TransactionMap *map, int number)
{
	MapImage *image = &map->images[number];
	Lookup lookup = {LOOKUP_ALL, 0};
	int attno = index->attno;

	if (attno > image->desc->tupdesc->natts ||
		TupleDescAttr(image->desc->tupdesc, attno - 1)->atttypid != index->column_type ||
		!MapKnows(map, number, (int16) attno))
		return lookup;
	lookup.state = LOOKUP_NONE;
	if (image->isnull[attno - 1])
		return lookup;
	lookup.state = LOOKUP_HASH;
	lookup.hash = DatumGetUInt32(FunctionCall1Coll(&index->cache->hash_proc_finfo, index->collation,
												   image->values[attno - 1]));
	return lookup;
}

/* Hashes of both images, found out once for each entry of a run. */
static void
LookUp(AudienceIndex *index, TransactionMap *map, MapEntry *entry, uint64 run, bool before,
	   bool after)
{
	if (index->run != run || index->entry != entry)
	{
		index->run = run;
		index->entry = entry;
		index->has_before = false;
		index->has_after = false;
	}
	if (before && !index->has_before)
		index->before = LookUpImage(index, map, entry->old_image);
	if (after && !index->has_after)
		index->after = LookUpImage(index, map, entry->new_image);
	index->has_before = index->has_before || before;
	index->has_after = index->has_after || after;
}

static List *
AddCandidates(List *result, List *members)
{
	ListCell *lc;

	foreach(lc, members)
	{
		AudienceSource *as = lfirst(lc);

		if (as->visited == last_visit)
			continue;
		as->visited = last_visit;
		result = lappend(result, as->audience);
	}
	return result;
}

static List *
AddFound(List *result, AudienceIndex *index, const Lookup *lookup)
{
	IndexBucket *bucket;
	HASH_SEQ_STATUS status;

	switch (lookup->state)
	{
		case LOOKUP_NONE:
			break;
		case LOOKUP_HASH:
			bucket = hash_search(index->buckets, &lookup->hash, HASH_FIND, NULL);
			if (bucket != NULL)
				result = AddCandidates(result, bucket->members);
			break;
		case LOOKUP_ALL:
			hash_seq_init(&status, index->buckets);
			while ((bucket = hash_seq_search(&status)) != NULL)
				result = AddCandidates(result, bucket->members);
			break;
	}
	return result;
}

List *
AudienceCandidates(Instance *instance, TransactionMap *map, MapEntry *entry, uint64 run,
				   bool before, bool after)
{
	InstanceSource *is;
	List *result;
	ListCell *lc;

	if (instance->conditions == NULL)
		return NIL;
	is = &instance->conditions[entry->source->index];
	last_visit++;
	result = AddCandidates(NIL, is->tried);
	foreach(lc, is->indexes)
	{
		AudienceIndex *index = lfirst(lc);

		LookUp(index, map, entry, run, before, after);
		if (before)
			result = AddFound(result, index, &index->before);
		if (after)
			result = AddFound(result, index, &index->after);
	}
	return result;
}

/* ---- Matching ---- */

static void
NoteError(AudienceSource *as, const char *sqlstate, const char *message)
{
	strlcpy(as->sqlstate, sqlstate, sizeof(as->sqlstate));
	strlcpy(as->message, message, sizeof(as->message));
}

/* Raises an error when the conditions do not fit the description. */
static Compiled *
Compile(AudienceSource *as, const RecordDescription *desc)
{
	Compiled *compiled;
	MemoryContext context;
	MemoryContext old;
	ListCell *lc;

	foreach(lc, as->compiled)
	{
		compiled = lfirst(lc);
		if (compiled->version == desc->version)
			return compiled;
	}

	context = AllocSetContextCreate(registry_context, "changefeed conditions",
									ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(registry_context);
	compiled = MemoryContextAllocZero(context, sizeof(Compiled));
	compiled->version = desc->version;
	compiled->context = context;
	as->compiled = lcons(compiled, as->compiled);
	ForgetCompiled(as, MAX_COMPILED);
	MemoryContextSwitchTo(context);
	compiled->filter = FilterCompile(desc->tupdesc, as->text, &compiled->costly);
	MemoryContextSwitchTo(old);
	return compiled;
}

static bool
Run(const Compiled *compiled, Layout *layout, const MapImage *image)
{
	bool result;

	if (!compiled->costly)
		return FilterEvaluate(compiled->filter, layout->slot, image->values, image->isnull);
	enable_timeout_after(costly_timeout, COSTLY_LIMIT);
	result = FilterEvaluate(compiled->filter, layout->slot, image->values, image->isnull);
	disable_timeout(costly_timeout, false);
	QueryCancelPending = false;
	return result;
}

/*
 * An error of the evaluation holds nothing that an abort would have to
 * release: built-in functions on values at hand.
 */
static MatchResult
TryImage(AudienceSource *as, TransactionMap *map, Source *source, int number)
{
	MapImage *image = &map->images[number];
	MemoryContext context = CurrentMemoryContext;
	Layout *layout = ChannelsLayout(source, image->desc);
	Compiled *volatile compiled = NULL;
	volatile MatchResult result = MATCH_STALE;
	int i;

	if (!layout->usable)
		return MATCH_STALE;
	for (i = 0; i < as->nneeded; i++)
	{
		if (as->needed[i] > image->desc->tupdesc->natts)
			return MATCH_STALE;
		if (!MapKnows(map, number, as->needed[i]))
			return MATCH_UNKNOWN;
	}

	PG_TRY();
	{
		compiled = Compile(as, image->desc);
		if (compiled->filter != NULL)
		{
			pg_atomic_fetch_add_u64(&feed_shared->feed_evaluations, 1);
			result = Run(compiled, layout, image) ? MATCH_YES : MATCH_NO;
		}
	}
	PG_CATCH();
	{
		ErrorData *error;

		MemoryContextSwitchTo(context);
		disable_timeout(costly_timeout, false);
		QueryCancelPending = false;
		error = CopyErrorData();
		if (error->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN ||
			error->sqlerrcode == ERRCODE_OUT_OF_MEMORY)
			PG_RE_THROW();
		FlushErrorState();
		if (compiled == NULL)
			result = MATCH_STALE;
		else
		{
			result = MATCH_ERROR;
			NoteError(as, unpack_sql_state(error->sqlerrcode),
					  error->sqlerrcode == ERRCODE_QUERY_CANCELED
						  ? "conditions take too long to evaluate for a row"
						  : error->message);
		}
	}
	PG_END_TRY();
	return result;
}

static MatchResult
MatchImage(AudienceSource *as, TransactionMap *map, Source *source, int number,
		   const Lookup *lookup)
{
	MatchResult result;
	int i;

	/* What the index excludes need not be evaluated. */
	if (lookup != NULL && lookup->state == LOOKUP_NONE)
		return MATCH_NO;
	if (lookup != NULL && lookup->state == LOOKUP_HASH)
	{
		for (i = 0; i < as->nhashes && as->hashes[i] != lookup->hash; i++)
			;
		if (i == as->nhashes)
			return MATCH_NO;
	}
	result = TryImage(as, map, source, number);

	/* The machine may have been busy with something else. */
	if (result == MATCH_ERROR && strcmp(as->sqlstate, "57014") == 0)
		result = TryImage(as, map, source, number);
	return result;
}

AudienceMatch
AudienceMatches(Audience *audience, TransactionMap *map, MapEntry *entry, uint64 run, bool before,
				bool after)
{
	Source *source = entry->source;
	AudienceMatch everything = {MATCH_YES, MATCH_YES};
	AudienceSource *as;

	if (audience->sources == NULL)
		return everything;
	as = &audience->sources[source->index];
	if (as->run != run || as->entry != entry)
	{
		as->run = run;
		as->entry = entry;
		as->has_before = false;
		as->has_after = false;
		as->match.before = MATCH_NO;
		as->match.after = MATCH_NO;
	}
	before = before && !as->has_before;
	after = after && !as->has_after;
	if (as->index != NULL)
		LookUp(as->index, map, entry, run, before, after);
	if (before)
		as->match.before = MatchImage(as, map, source, entry->old_image,
									  as->index != NULL ? &as->index->before : NULL);
	if (after)
		as->match.after = MatchImage(as, map, source, entry->new_image,
									 as->index != NULL ? &as->index->after : NULL);
	as->has_before = as->has_before || before;
	as->has_after = as->has_after || after;
	return as->match;
}

void
AudienceError(Audience *audience, int source, const char **sqlstate, const char **message)
{
	*sqlstate = audience->sources[source].sqlstate;
	*message = audience->sources[source].message;
}
