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
 * If the conditions demand that a column equals a constant or one of several,
 * that is known here as well: it is how a row finds whom it concerns (demand.c).
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
#include "receivers.h"

#include "access/detoast.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/timeout.h"

/* Milliseconds that a condition with a regular expression may take for a row. */
#define COSTLY_LIMIT 50

/*
 * What takes long is evaluated as long as all of it together takes no more than
 * this share of the time (percent), and this much at once (us).  Beyond it whatever
 * is known to take longer than CHEAP for a row (us), or not known at all, is an error.
 */
#define COSTLY_SHARE 20
#define COSTLY_BURST 1000000
#define CHEAP		 500

/* Values of more bytes in all take long, whatever the conditions are. */
#define LARGE_VALUES (32 * 1024)

/* Descriptions of a table that conditions are kept compiled for. */
#define MAX_COMPILED 2

typedef struct Compiled
{
	uint32 version;	   /* of the description */
	ExprState *filter; /* NULL: it does not fit the description */
	bool costly;
	MemoryContext context;
} Compiled;

/* The conditions of an audience on one source. */
typedef struct AudienceSource
{
	Audience *audience;
	bool described; /* otherwise nobody is ready, and it hangs nowhere */
	char *text;		/* canonical */
	int nneeded;
	int16 *needed;
	Demand demand;	/* what rows that pass have; without a column: not known */
	List *compiled; /* of Compiled, newest first */
	uint64 run;		/* of what was matched last */
	const MapEntry *entry;
	bool has_before;
	bool has_after;
	AudienceMatch match;
	int cost;		  /* us that the last evaluation took, if it may take long; 0: there was none */
	char sqlstate[6]; /* of the last error */
	char message[256];
} AudienceSource;

typedef struct AudienceEntry
{
	uint64 hash;
	List *audiences; /* with that hash: nearly always one */
} AudienceEntry;

static HTAB *audiences;
static TimeoutId costly_timeout;

/* When what takes long would have been paid off, at its share of the time. */
static TimestampTz costly_paid;

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
	AudienceEntry *entry = NULL;
	Audience *audience;
	ListCell *lc;
	MemoryContext old;
	int nsources = instance->channel->nsources;
	int i;

	if (sql[0] == '\0' && instance->everything != NULL)
		return instance->everything;
	if (sql[0] != '\0')
	{
		uint64 hash = HashOf(instance, sql);
		bool found;

		entry = hash_search(audiences, &hash, HASH_ENTER, &found);
		if (!found)
			entry->audiences = NIL;
		foreach(lc, entry->audiences)
		{
			audience = lfirst(lc);
			if (audience->instance == instance && strcmp(audience->sql, sql) == 0)
				return audience;
		}
	}

	old = MemoryContextSwitchTo(registry_context);
	audience = palloc0(sizeof(Audience));
	audience->instance = instance;
	audience->sql = sql[0] != '\0' ? pstrdup(sql) : "";
	dlist_init(&audience->subscriptions);
	if (sql[0] == '\0')
		instance->everything = audience;
	else
	{
		audience->sources = palloc0(sizeof(AudienceSource) * Max(nsources, 1));
		for (i = 0; i < nsources; i++)
			audience->sources[i].audience = audience;
	}
	instance->naudiences++;
	if (entry != NULL)
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

static void
ForgetDescription(AudienceSource *as, int source)
{
	if (!as->described)
		return;
	as->described = false;
	as->entry = NULL;
	ForgetCompiled(as, 0);
	if (as->demand.column != NULL)
	{
		DemandColumnRelease(as->audience->instance, source, as->demand.column);
		pfree(unconstify(uint32 *, as->demand.hashes));
		as->demand.column = NULL;
	}
	pfree(as->text);
	pfree(as->needed);
}

static void
Free(Audience *audience)
{
	Instance *instance = audience->instance;
	int i;

	if (instance->everything == audience)
		instance->everything = NULL;
	else
	{
		uint64 hash = HashOf(instance, audience->sql);
		AudienceEntry *entry = hash_search(audiences, &hash, HASH_FIND, NULL);

		entry->audiences = list_delete_ptr(entry->audiences, audience);
		if (entry->audiences == NIL)
			hash_search(audiences, &hash, HASH_REMOVE, NULL);
		pfree(unconstify(char *, audience->sql));
	}
	if (audience->sources != NULL)
	{
		for (i = 0; i < instance->channel->nsources; i++)
			ForgetDescription(&audience->sources[i], i);
		pfree(audience->sources);
	}
	Assert(audience->spellings == NULL);
	pfree(audience);
	if (--instance->naudiences == 0)
		DemandFree(instance);
}

/* ---- Members ---- */

static Spelling *
SpellingIntern(Audience *audience, const char *name, Size length, bool is_json)
{
	StringInfoData json;
	Spelling *spelling;

	initStringInfo(&json);
	if (is_json)
		appendBinaryStringInfo(&json, name, (int) length);
	else
		EncodeString(&json, name, length);
	for (spelling = audience->spellings; spelling != NULL; spelling = spelling->next)
		if (spelling->length == json.len && memcmp(spelling->json, json.data, json.len) == 0)
			break;
	if (spelling == NULL)
	{
		spelling = MemoryContextAllocZero(registry_context,
										  offsetof(Spelling, json) + json.len + 1);
		memcpy(spelling->json, json.data, json.len);
		spelling->length = json.len;
		spelling->next = audience->spellings;
		audience->spellings = spelling;
	}
	spelling->refcount++;
	pfree(json.data);
	return spelling;
}

static void
SpellingRelease(Audience *audience, Spelling *spelling)
{
	Spelling **link;

	if (--spelling->refcount > 0)
		return;
	for (link = &audience->spellings; *link != spelling; link = &(*link)->next)
		;
	*link = spelling->next;
	pfree(spelling);
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
	SpellingRelease(audience, s->name);
	s->name = NULL;
	if (dlist_is_empty(&audience->subscriptions))
		Free(audience);
	return instance->naudiences == 0;
}

/* ---- Descriptions ---- */

/*
 * The same text may demand something else: of a column with another collation, or
 * of an enum whose labels have changed.
 */
static bool
SameDemand(const AudienceSource *as, int16 attno, Oid column_type, Oid type, Oid collation,
		   int nhashes, const uint32 *hashes)
{
	if (as->demand.column == NULL || attno == 0)
		return as->demand.column == NULL && attno == 0;
	return DemandColumnIs(as->demand.column, attno, column_type, type, collation) &&
		   as->demand.nhashes == nhashes &&
		   memcmp(as->demand.hashes, hashes, sizeof(uint32) * nhashes) == 0;
}

void
AudiencesForgetCompiled(Oid relid)
{
	HASH_SEQ_STATUS status;
	AudienceEntry *entry;
	ListCell *lc;
	int i;

	hash_seq_init(&status, audiences);
	while ((entry = hash_seq_search(&status)) != NULL)
		foreach(lc, entry->audiences)
		{
			Audience *audience = lfirst(lc);
			Channel *channel = audience->instance->channel;

			for (i = 0; i < channel->nsources; i++)
				if (channel->sources[i]->relid == relid)
				{
					ForgetCompiled(&audience->sources[i], 0);
					audience->sources[i].entry = NULL;
				}
		}
}

/*
 * An answer from before the table changed may come behind one from later: whoever
 * is ready has the later one.  They ask again, and so does who has the early one.
 */
static void
ResyncReady(Audience *audience)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &audience->subscriptions)
	{
		Subscription *s = dlist_container(Subscription, audience_node, iter.cur);

		if (s->state == SUB_READY)
			SubscribeResync(s, "schema_changed");
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
	bool same_text;
	bool changed = false;
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
	same_text = as != NULL && as->described && strlen(as->text) == text.length &&
				memcmp(as->text, text.data, text.length) == 0 && as->nneeded == nneeded &&
				memcmp(as->needed, needed, sizeof(int16) * nneeded) == 0;
	if (as == NULL ||
		(same_text && SameDemand(as, attno, column_type, type, collation, nhashes, hashes)))
	{
		pfree(needed);
		pfree(hashes);
	}
	else
	{
		/* Which of several columns is looked up is a matter of statistics. */
		changed = as->described && (!same_text || (as->demand.column != NULL &&
												   DemandColumnNumber(as->demand.column) == attno));
		ForgetDescription(as, source);
		as->described = true;
		as->text = pnstrdup(text.data, text.length);
		as->nneeded = nneeded;
		as->needed = needed;
		if (attno == 0)
			pfree(hashes);
		else
		{
			as->demand.column = DemandColumnIntern(audience->instance, source, attno, column_type,
												   type, collation);
			as->demand.nhashes = nhashes;
			as->demand.hashes = hashes;
		}
		ReceiversDemandsChanged(audience, source);
	}
	MemoryContextSwitchTo(old);
	if (changed)
		ResyncReady(audience);
}

Demand
AudienceDemand(const Audience *audience, int source)
{
	Demand none = {NULL, 0, NULL};

	return audience->sources != NULL ? audience->sources[source].demand : none;
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

/* Of the processor, in us: nothing is known to take long because the machine was busy. */
static int64
TimeUsed(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return t.tv_sec * USECS_PER_SEC + t.tv_nsec / 1000;
}

/*
 * The feed worker serves everybody, so a thousand conditions that each take just
 * less than the limit must not have all of its time.
 */
static void
Pay(AudienceSource *as, TimestampTz begun, int64 used)
{
	as->cost = (int) Min(Max(TimeUsed() - used, 1), PG_INT32_MAX);
	costly_paid = Max(costly_paid, begun) + (GetCurrentTimestamp() - begun) * 100 / COSTLY_SHARE;
}

static bool
HasCredit(const AudienceSource *as, TimestampTz now)
{
	return costly_paid - now < (TimestampTz) COSTLY_BURST * 100 / COSTLY_SHARE ||
		   (as->cost > 0 && as->cost < CHEAP);
}

/* Those that are read, unpacked, wherever they were taken from. */
static bool
IsLarge(const AudienceSource *as, const MapImage *image)
{
	Size size = 0;
	int i;

	for (i = 0; i < as->nneeded; i++)
	{
		int at = as->needed[i] - 1;

		if (TupleDescAttr(image->desc->tupdesc, at)->attlen == -1 && !image->isnull[at])
			size += toast_raw_datum_size(image->values[at]);
	}
	return size > LARGE_VALUES;
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
	volatile TimestampTz begun = 0;
	volatile int64 used = 0;
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
			if (compiled->costly || IsLarge(as, image))
			{
				begun = GetCurrentTimestamp();
				if (!HasCredit(as, begun))
				{
					begun = 0;
					ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_RESOURCES),
									errmsg("conditions of clients take too long to evaluate")));
				}
				used = TimeUsed();
			}
			pg_atomic_fetch_add_u64(&feed_shared->feed_evaluations, 1);
			result = Run(compiled, layout, image) ? MATCH_YES : MATCH_NO;
			if (begun != 0)
				Pay(as, begun, used);
		}
	}
	PG_CATCH();
	{
		ErrorData *error;

		MemoryContextSwitchTo(context);
		disable_timeout(costly_timeout, false);
		QueryCancelPending = false;
		if (begun != 0)
			Pay(as, begun, used);
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
MatchImage(AudienceSource *as, TransactionMap *map, MapEntry *entry, uint64 run, bool is_new)
{
	int number = is_new ? entry->new_image : entry->old_image;
	MatchResult result;

	/* What the demand excludes need not be evaluated. */
	if (as->demand.column != NULL && !DemandMayMeet(&as->demand, map, entry, run, is_new))
		return MATCH_NO;
	result = TryImage(as, map, entry->source, number);

	/* The machine may have been busy with something else. */
	if (result == MATCH_ERROR && strcmp(as->sqlstate, "57014") == 0)
		result = TryImage(as, map, entry->source, number);
	return result;
}

AudienceMatch
AudienceMatches(Audience *audience, TransactionMap *map, MapEntry *entry, uint64 run, bool before,
				bool after)
{
	AudienceMatch everything = {MATCH_YES, MATCH_YES};
	AudienceSource *as;

	if (audience->sources == NULL)
		return everything;
	as = &audience->sources[entry->source->index];
	if (as->run != run || as->entry != entry)
	{
		as->run = run;
		as->entry = entry;
		as->has_before = false;
		as->has_after = false;
		as->match.before = MATCH_NO;
		as->match.after = MATCH_NO;
	}
	if (before && !as->has_before)
		as->match.before = MatchImage(as, map, entry, run, false);
	if (after && !as->has_after)
		as->match.after = MatchImage(as, map, entry, run, true);
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
