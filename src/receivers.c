/*-------------------------------------------------------------------------
 *
 * receivers.c
 *		Ready subscriptions that get the same bytes.
 *
 * What a subscription is sent of a changed row follows from its channel and
 * conditions (audience.c), the name that its client wrote, which columns its
 * identity may see, and which rows.  Ready ones for which all of that is the
 * same are the *receivers* of whatever one of them gets: delivery decides once
 * for all, and copies the numbers of their connections, which are kept ready.
 * Which rows: all, those that one rule lets pass (policy_rule.c), or what query
 * workers say for one identity.
 *
 * They are found by what their conditions and their rule demand of a row
 * (demand.c), so that a change costs nothing for those whom it cannot concern.
 *
 * A subscription belongs to its receivers from the moment it is ready until it
 * is not, or gets other views.  It takes part only while its connection is at
 * the log's end; who is behind is moved one by one (behind.c).  Paced channels
 * have no receivers (pace.c).
 *
 * Process: feed worker.  Memory: registry_context.  Needs a transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "audience.h"
#include "gateways.h"
#include "policy_rule.h"
#include "receivers.h"

#include "common/hashfn.h"
#include "utils/memutils.h"

typedef struct ReceiversEntry
{
	uint64 hash;
	Receivers *first;
} ReceiversEntry;

/* What many identities may see in the same way. */
typedef struct Shape
{
	View view; /* first, so that a view is its shape */
	int refcount;
	struct Shape *next; /* with the same hash */
} Shape;

typedef struct ShapeEntry
{
	uint64 hash;
	Shape *first;
} ShapeEntry;

static HTAB *all_receivers;
static HTAB *shapes;

static HTAB *
MakeTable(const char *name, Size size)
{
	HASHCTL ctl;

	ctl.hcxt = registry_context;
	ctl.keysize = sizeof(uint64);
	ctl.entrysize = size;
	return hash_create(name, 256, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/* ---- Shapes ---- */

static uint64
ShapeHash(const View *view)
{
	return hash_bytes_extended((const unsigned char *) view->columns,
							   (int) sizeof(int16) * view->ncolumns,
							   ((uint64) view->relid << 8) + (uint64) view->rls);
}

static View *
ShapeIntern(const View *view)
{
	uint64 hash = ShapeHash(view);
	bool found;
	ShapeEntry *entry;
	Shape *shape;

	if (shapes == NULL)
		shapes = MakeTable("changefeed shapes", sizeof(ShapeEntry));
	entry = hash_search(shapes, &hash, HASH_ENTER, &found);
	if (!found)
		entry->first = NULL;
	for (shape = entry->first; shape != NULL; shape = shape->next)
	{
		if (shape->view.relid == view->relid && shape->view.rls == view->rls &&
			shape->view.recheck == view->recheck && shape->view.ncolumns == view->ncolumns &&
			memcmp(shape->view.columns, view->columns, sizeof(int16) * view->ncolumns) == 0)
		{
			shape->refcount++;
			return &shape->view;
		}
	}
	shape = MemoryContextAllocZero(registry_context, sizeof(Shape));
	shape->refcount = 1;
	shape->view.relid = view->relid;
	shape->view.rls = view->rls;
	shape->view.recheck = view->recheck;
	shape->view.ncolumns = view->ncolumns;
	shape->view.columns = MemoryContextAlloc(registry_context,
											 sizeof(int16) * Max(view->ncolumns, 1));
	memcpy(shape->view.columns, view->columns, sizeof(int16) * view->ncolumns);
	shape->next = entry->first;
	entry->first = shape;
	return &shape->view;
}

static void
ShapeRelease(View *view)
{
	Shape *shape = (Shape *) view;
	uint64 hash = ShapeHash(view);
	ShapeEntry *entry;
	Shape **link;

	if (--shape->refcount > 0)
		return;
	entry = hash_search(shapes, &hash, HASH_FIND, NULL);
	for (link = &entry->first; *link != shape; link = &(*link)->next)
		;
	*link = shape->next;
	if (entry->first == NULL)
		hash_search(shapes, &hash, HASH_REMOVE, NULL);
	pfree(view->columns);
	pfree(shape);
}

/* ---- Who gets the same ---- */

/* Is it query workers who say which rows these are? */
static bool
IsJudged(const View *view)
{
	return view->rls == 1 && (view->rule == NULL || view->casts != NULL);
}

static int
SourcesOf(const Audience *audience)
{
	return audience->instance->channel->nsources;
}

static uint64
HashOf(Subscription *s, bool judged, View **views)
{
	struct
	{
		void *audience;
		void *name;
		void *identity;
		uint64 replaces;
	} key = {s->audience, s->name, judged ? s->connection->identity : NULL,
			 s->no_snapshot || s->window};
	uint64 hash = hash_bytes_extended((const unsigned char *) &key, sizeof(key), 0);
	int i;

	for (i = 0; i < SourcesOf(s->audience); i++)
	{
		hash = hash_combine64(hash, hash_bytes_uint32_extended((uint32) (uintptr_t) views[i], 0));
		hash = hash_combine64(
			hash, hash_bytes_uint32_extended((uint32) (uintptr_t) s->views[i]->rule, 1));
	}
	return hash;
}

static bool
IsSame(const Receivers *r, Subscription *s, bool judged, View **views)
{
	int i;

	if (r->audience != s->audience || r->name != s->name ||
		r->identity != (judged ? s->connection->identity : NULL) ||
		r->replaces != (s->no_snapshot || s->window))
		return false;
	for (i = 0; i < SourcesOf(r->audience); i++)
		if (r->sources[i].view != views[i] || r->sources[i].rule != s->views[i]->rule)
			return false;
	return true;
}

/* ---- Being found ---- */

/* No row of the source is for them. */
static bool
SeeNothing(const ReceiversSource *source)
{
	return source->view->rls == 2 ||
		   (source->rule != NULL && PolicyRuleAlways(source->rule) == VERDICT_HIDDEN);
}

static void
Link(Receivers *r, int i)
{
	ReceiversSource *source = &r->sources[i];
	Instance *instance = r->audience->instance;
	Demand conditions = AudienceDemand(r->audience, i);
	int n = source->rule != NULL ? PolicyRuleDemands(source->rule) : 0;
	Demand none = {NULL, 0, NULL};
	int k;

	if (SeeNothing(source))
		return;
	if (n == 0)
		DemandEnter(instance, i, &source->member, &conditions, &none);
	for (k = 0; k < n; k++)
	{
		Demand demand;
		const PolicyDemand *from = PolicyRuleDemand(source->rule, k, &demand.hashes,
													&demand.nhashes);

		demand.column = DemandColumnIntern(instance, i, from->attno, from->column_type, from->type,
										   from->collation);
		DemandEnter(instance, i, &source->member, &conditions, &demand);
		DemandColumnRelease(instance, i, demand.column);
	}
}

void
ReceiversDemandsChanged(Audience *audience, int i)
{
	static uint64 linked = 0;
	dlist_iter iter;

	linked++;
	dlist_foreach(iter, &audience->subscriptions)
	{
		Receivers *r = dlist_container(Subscription, audience_node, iter.cur)->receivers;

		if (r == NULL || r->linked == linked)
			continue;
		r->linked = linked;
		DemandLeave(audience->instance, i, &r->sources[i].member);
		Link(r, i);
	}
}

/* ---- As objects ---- */

static Receivers *
Create(Subscription *s, uint64 hash, bool judged, View **views)
{
	Receivers *r = MemoryContextAllocZero(registry_context,
										  offsetof(Receivers, parts) +
											  sizeof(ReceiversPart) * Max(gateway_count, 1));
	int n = SourcesOf(s->audience);
	int i;

	r->hash = hash;
	r->audience = s->audience;
	r->name = s->name;
	r->identity = judged ? s->connection->identity : NULL;
	r->replaces = s->no_snapshot || s->window;
	r->sources = MemoryContextAllocZero(registry_context, sizeof(ReceiversSource) * Max(n, 1));
	for (i = 0; i < n; i++)
	{
		ReceiversSource *source = &r->sources[i];

		source->view = views[i];
		source->judged = IsJudged(s->views[i]);
		if (!source->judged)
			source->view = ShapeIntern(s->views[i]);
		source->rule = s->views[i]->rule;
		PolicyRuleKeep(source->rule);
		source->member.owner = r;
		Link(r, i);
	}
	return r;
}

static void
Free(Receivers *r)
{
	ReceiversEntry *entry = hash_search(all_receivers, &r->hash, HASH_FIND, NULL);
	Receivers **link;
	int i;

	for (link = &entry->first; *link != r; link = &(*link)->next)
		;
	*link = r->next;
	if (entry->first == NULL)
		hash_search(all_receivers, &r->hash, HASH_REMOVE, NULL);
	for (i = 0; i < SourcesOf(r->audience); i++)
	{
		ReceiversSource *source = &r->sources[i];

		DemandLeave(r->audience->instance, i, &source->member);

		/* A view of the identity is its subscriptions'. */
		if (!source->judged)
			ShapeRelease(source->view);
		PolicyRuleRelease(source->rule);
	}
	for (i = 0; i < gateway_count; i++)
		if (r->parts[i].subscriptions != NULL)
			pfree(r->parts[i].subscriptions);
	pfree(r->sources);
	pfree(r);
}

/* ---- Those that are live ---- */

static void
Add(Receivers *r, Subscription *s)
{
	ReceiversPart *part = &r->parts[s->connection->gateway->index];

	if (part->n == part->room)
	{
		int room = Max(part->room * 2, 1);
		Subscription **subscriptions = MemoryContextAllocHuge(
			registry_context, (sizeof(Subscription *) + sizeof(uint32)) * room);
		uint32 *numbers = (uint32 *) (subscriptions + room);

		if (part->n > 0)
		{
			memcpy(subscriptions, part->subscriptions, sizeof(Subscription *) * part->n);
			memcpy(numbers, part->numbers, sizeof(uint32) * part->n);
			pfree(part->subscriptions);
		}
		part->room = room;
		part->subscriptions = subscriptions;
		part->numbers = numbers;
	}
	s->receivers_place = part->n;
	part->subscriptions[part->n] = s;
	part->numbers[part->n++] = s->connection->number;
	r->nlive++;
}

static void
Remove(Receivers *r, Subscription *s)
{
	ReceiversPart *part = &r->parts[s->connection->gateway->index];
	int place = s->receivers_place;

	part->n--;
	part->subscriptions[place] = part->subscriptions[part->n];
	part->numbers[place] = part->numbers[part->n];
	part->subscriptions[place]->receivers_place = place;
	s->receivers_place = -1;
	r->nlive--;
}

static bool
TakesPart(const Connection *connection)
{
	return connection->live && !connection->closing;
}

void
ReceiversJoin(Subscription *s)
{
	int n = SourcesOf(s->audience);
	View **views;
	bool judged = false;
	uint64 hash;
	bool found;
	ReceiversEntry *entry;
	Receivers *r;
	int i;

	ReceiversLeave(s);
	if (s->instance->channel->min_interval > 0)
		return;
	views = palloc(sizeof(View *) * Max(n, 1));
	for (i = 0; i < n; i++)
	{
		bool one = IsJudged(s->views[i]);

		judged = judged || one;
		views[i] = one ? s->views[i] : ShapeIntern(s->views[i]);
	}
	hash = HashOf(s, judged, views);
	if (all_receivers == NULL)
		all_receivers = MakeTable("changefeed receivers", sizeof(ReceiversEntry));
	entry = hash_search(all_receivers, &hash, HASH_ENTER, &found);
	if (!found)
		entry->first = NULL;
	for (r = entry->first; r != NULL && !IsSame(r, s, judged, views); r = r->next)
		;
	if (r == NULL)
	{
		r = Create(s, hash, judged, views);
		r->next = entry->first;
		entry->first = r;
	}
	for (i = 0; i < n; i++)
		if (views[i] != s->views[i])
			ShapeRelease(views[i]);
	pfree(views);
	r->nsubscriptions++;
	s->receivers = r;
	s->receivers_place = -1;
	if (TakesPart(s->connection))
		Add(r, s);
}

void
ReceiversLeave(Subscription *s)
{
	Receivers *r = s->receivers;

	if (r == NULL)
		return;
	if (s->receivers_place >= 0)
		Remove(r, s);
	s->receivers = NULL;
	if (--r->nsubscriptions == 0)
		Free(r);
}

void
ReceiversEnter(Connection *connection)
{
	dlist_iter iter;

	if (!TakesPart(connection))
		return;
	dlist_foreach(iter, &connection->subscriptions)
	{
		Subscription *s = dlist_container(Subscription, connection_node, iter.cur);

		if (s->receivers != NULL && s->receivers_place < 0)
			Add(s->receivers, s);
	}
}

void
ReceiversExit(Connection *connection)
{
	dlist_iter iter;

	dlist_foreach(iter, &connection->subscriptions)
	{
		Subscription *s = dlist_container(Subscription, connection_node, iter.cur);

		if (s->receivers != NULL && s->receivers_place >= 0)
			Remove(s->receivers, s);
	}
}
