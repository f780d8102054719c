/*-------------------------------------------------------------------------
 *
 * events.c
 *		What a transaction does to subscriptions as a whole.
 *
 * Changes of rows are deliver.c's.  Here is what cannot be expressed as
 * operations on single rows: TRUNCATE, transactions too large, changed
 * policies, privileges, definitions or roles, and changes of tables that
 * policies read.  All of them end in the one repair, a fresh snapshot, for
 * exactly the subscriptions that they can concern.
 *
 * Barriers are judged by the state of the catalogs (relations.c): an
 * invalidation that changed nothing that clients can see (ANALYZE, a new
 * index, another name) disturbs nobody.  Where only some identities may be
 * concerned it is found out which (check.c).
 *
 * Process: feed worker.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "audience.h"
#include "feed.h"
#include "gateways.h"
#include "pause.h"
#include "publish.h"
#include "presence.h"
#include "revocations.h"

#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

bool events_catalog_stale = false;

/* Of feed_shared->role_changes, when the identities were looked at last. */
static uint64 seen_role_changes;

/* Some may have other names than those that were compared last. */
static bool labels_invalidated;

/* Tables whose labels have, until those who are subscribed are told. */
static List *labels_ahead;

typedef struct Concern
{
	Oid source; /* subscriptions fed by this table (0: all) */
	const char *reason;
} Concern;

bool
EventsHasSource(const Subscription *s, Oid relid)
{
	int i;

	for (i = 0; i < s->instance->channel->nsources; i++)
		if (s->instance->channel->sources[i]->relid == relid)
			return true;
	return false;
}

static bool
HasDependency(Subscription *s, Oid relid)
{
	int i;
	int k;

	if (s->views == NULL)
		return false;
	for (i = 0; i < s->instance->channel->nviews; i++)
		for (k = 0; s->views[i] != NULL && k < s->views[i]->ndependencies; k++)
			if (s->views[i]->dependencies[k] == relid)
				return true;
	return false;
}

/* Do policies of it call functions of users? */
static bool
UsesFunctions(Subscription *s)
{
	int i;

	if (s->instance->channel->join_check != NULL)
		return true;
	if (s->views == NULL)
		return false;
	for (i = 0; i < s->instance->channel->nsources; i++)
		if (s->views[i] != NULL && s->views[i]->functions)
			return true;
	return false;
}

static void
ResyncIfConcerned(Subscription *s, void *arg)
{
	Concern *c = arg;

	if (s->state != SUB_READY)
		return; /* looks at the log itself */
	if (c->source != InvalidOid && !EventsHasSource(s, c->source))
		return;
	SubscribeResync(s, c->reason);
}

static void
Resync(Oid source, const char *reason)
{
	Concern c = {source, reason};

	SubscriptionForEach(NULL, ResyncIfConcerned, &c);
}

bool
EventsReloadCatalog(void)
{
	bool roles_changed = false;

	/* Maps point to sources. */
	MapFreeAll();
	DeliverForgetWaiting();

	/* All or nothing: what has changed is noticed once. */
	if (!CatalogLock() ||
		!ChannelsReload(LogPublished(), SubscribeChannelChanged, &roles_changed) ||
		!RevocationsReload(RevocationsApply) || !PauseReload())
	{
		events_catalog_stale = true;
		return false;
	}
	events_catalog_stale = false;
	if (roles_changed)
		EventsRolesChanged();
	return true;
}

/* A view reads with the rights of its owner, who has other ones now. */
static void
ResyncDependent(Subscription *s, void *arg)
{
	if (HasDependency(s, *(Oid *) arg))
		SubscribeResync(s, "policy_changed");
}

void
EventsRolesChanged(void)
{
	uint64 changes = pg_atomic_read_u64(&feed_shared->role_changes);
	dlist_mutable_iter iter;
	ListCell *lc;

	PublishForgetRights();

	/* Whoever raised the counter has sent what invalidates our caches. */
	pg_read_barrier();
	AcceptInvalidationMessages();
	InvalidateCatalogSnapshot();
	dlist_foreach_modify(iter, &all_identities)
	{
		Identity *identity = dlist_container(Identity, node, iter.cur);
		IdentityInfo info = identity->info;
		JwtResult error = {0};
		dlist_mutable_iter iter2;
		Identity *changed;

		if (!IdentityRefresh(&info, ChannelsRoleAllowed, &error))
		{
			dlist_foreach_modify(iter2, &identity->connections)
			{
				Connection *connection = dlist_container(Connection, identity_node, iter2.cur);

				ProtocolRevokeAll(connection, "permission_denied");
				ProtocolError(connection, NULL, NULL, error.sqlstate, error.message, error.hint);
				GatewayClose(connection, LINK_CLOSE_UNAUTHORIZED, "unauthorized");
			}
			continue;
		}
		if (info.hash == identity->info.hash)
			continue;

		/* Another set of memberships is another identity. */
		changed = IdentityIntern(&info);
		changed->refcount++;
		identity->refcount++; /* its list is walked through */
		dlist_foreach_modify(iter2, &identity->connections)
		{
			Connection *connection = dlist_container(Connection, identity_node, iter2.cur);

			ProtocolChangeIdentity(connection, changed);
		}
		IdentityRelease(changed);
		IdentityRelease(identity);
	}
	foreach(lc, RelationsOwnersChanged())
		SubscriptionForEach(NULL, ResyncDependent, &lfirst_oid(lc));
	PresenceCheckAway(NIL);
	seen_role_changes = changes;
}

bool
EventsCheckRoles(void)
{
	if (pg_atomic_read_u64(&feed_shared->role_changes) == seen_role_changes)
		return false;
	EventsRolesChanged();
	return true;
}

static void
LabelsInvalidated(Datum arg, int cacheid, uint32 hashvalue)
{
	labels_invalidated = true;
}

/* Attributes of composite types. */
static void
RelationInvalidated(Datum arg, Oid relid)
{
	if (!OidIsValid(relid) || RelationIsType(relid))
		labels_invalidated = true;
}

static void
ResyncSource(Subscription *s, void *arg)
{
	if (EventsHasSource(s, *(Oid *) arg))
		SubscribeResync(s, "type_changed");
}

List *
EventsLabelsAhead(void)
{
	static bool registered = false;
	ListCell *lc;

	if (!registered)
	{
		CacheRegisterSyscacheCallback(ENUMOID, LabelsInvalidated, (Datum) 0);
		CacheRegisterRelcacheCallback(RelationInvalidated, (Datum) 0);
	}
	registered = true;
	if (!labels_invalidated)
		return labels_ahead;
	labels_invalidated = false;
	foreach(lc, RelationsAll())
	{
		MemoryContext old;

		if (!RelationLabelsAhead(lfirst_oid(lc)))
			continue;
		old = MemoryContextSwitchTo(feed_context);
		labels_ahead = list_append_unique_oid(labels_ahead, lfirst_oid(lc));
		MemoryContextSwitchTo(old);
	}
	return labels_ahead;
}

void
EventsCheckLabels(void)
{
	ListCell *lc;

	foreach(lc, EventsLabelsAhead())
	{
		ChannelsForgetCompiled(lfirst_oid(lc));
		AudiencesForgetCompiled(lfirst_oid(lc));
		SubscriptionForEach(NULL, ResyncSource, &lfirst_oid(lc));
	}
	list_free(labels_ahead);
	labels_ahead = NIL;
}

/* One subscription and one table of which something has changed. */
typedef struct RelationEvent
{
	LogTransaction *transaction;
	Oid relid;
	RelationChange change;
} RelationEvent;

static bool
NameIn(const List *names, const char *name)
{
	ListCell *lc;

	foreach(lc, names)
		if (strcmp(lfirst(lc), name) == 0)
			return true;
	return false;
}

/*
 * Is any of the columns one that the source needs?  Which a filter reads is not
 * looked at.
 */
static bool
ColumnsConcern(Subscription *s, Oid relid, const RelationChange *change)
{
	Channel *channel = s->instance->channel;
	int i;
	int k;

	for (i = 0; i < channel->nsources; i++)
	{
		Source *source = channel->sources[i];

		if (source->relid != relid)
			continue;
		if (source->filter != NULL || s->selection != NULL || s->views == NULL ||
			s->views[i] == NULL)
			return true;
		for (k = 0; k < s->views[i]->ncolumns; k++)
			if (bms_is_member(s->views[i]->columns[k], change->altered))
				return true;
		for (k = 0; k < channel->template->nparams; k++)
			if (NameIn(change->names, channel->template->params[k]))
				return true;
	}
	return false;
}

static void
ApplyRelation(Subscription *s, void *arg)
{
	RelationEvent *event = arg;
	const RelationChange *change = &event->change;
	uint32 aspects = change->aspects;
	bool source = EventsHasSource(s, event->relid);

	if (s->state != SUB_READY)
		return; /* looks at the log itself */

	/* What is read by policies is judged anew. */
	if (!source)
	{
		if (HasDependency(s, event->relid))
		{
			/* Of a new partition, which is empty yet, nothing is known either. */
			if ((aspects & (RELATION_REWRITTEN | RELATION_PARTITIONS | RELATION_GONE)) != 0 ||
				change->made != NIL)
				SubscribeResync(s, "dependency_changed");
			else
				CheckSubscription(s, event->transaction, "policy_changed", false, false);
		}
		return;
	}
	if ((aspects & RELATION_COLUMNS) != 0 && !ColumnsConcern(s, event->relid, change))
		aspects &= ~RELATION_COLUMNS;
	if ((aspects & (RELATION_GONE | RELATION_UNLOGGED | RELATION_REWRITTEN | RELATION_COLUMNS |
					RELATION_TYPES | RELATION_PARTITIONS)) != 0)
		SubscribeResync(s, RelationReason(aspects));
	else if (aspects != 0)
		CheckSubscription(s, event->transaction, RelationReason(aspects),
						  (aspects & (RELATION_PRIVILEGES | RELATION_COLUMNS_ADDED)) == 0, false);
}

/* False: nothing that a client could see has changed. */
static bool
ApplyRelationBarrier(LogTransaction *transaction, Oid relid, const LogBarrier *barrier)
{
	RelationEvent event = {transaction, relid};

	RelationCompare(relid, transaction, barrier, &event.change);

	/* Something may have been compiled meanwhile, even if they are as they were. */
	if ((event.change.aspects & RELATION_TYPES) != 0 ||
		(event.change.labels && (barrier->kind == BARRIER_TYPES || barrier->kind == BARRIER_ALL)))
	{
		ChannelsForgetCompiled(relid);
		AudiencesForgetCompiled(relid);
	}
	if (event.change.aspects == 0 && event.change.made == NIL)
		return event.change.unknown;
	SubscriptionForEach(NULL, ApplyRelation, &event);
	return true;
}

/*
 * A function or operator that a policy uses may be another now.  One that is
 * called by such a function is in no fingerprint, as nobody knows which these
 * are: then the rows themselves are looked at.
 */
static void
ApplyFunctions(Subscription *s, void *arg)
{
	LogTransaction *transaction = arg;

	if (s->state == SUB_READY && UsesFunctions(s))
		CheckSubscription(s, transaction, "policy_changed", true, true);
}

static void
ApplyBarrier(LogTransaction *transaction, LogBarrier *barrier)
{
	List *relids;
	ListCell *lc;
	bool changed;

	switch (barrier->kind)
	{
		case BARRIER_RELATION:
		case BARRIER_SAME:
			/* What is remembered of it follows in any case: where its rows lie. */
			relids = RelationsOf(barrier->relid);
			if (ViewsDependOn(barrier->relid))
				relids = list_append_unique_oid(relids, barrier->relid);
			changed = relids == NIL && barrier->kind == BARRIER_RELATION;
			foreach(lc, relids)
				if (ApplyRelationBarrier(transaction, lfirst_oid(lc), barrier))
					changed = true;

			/* Nobody has to look at it again. */
			if (!changed)
				barrier->relid = InvalidOid;
			break;
		case BARRIER_CATALOG:
			/* One for each channel, one after the other. */
			if (barrier->relid == InvalidOid && barrier > transaction->barriers &&
				barrier[-1].kind == BARRIER_CATALOG)
				break;

			/* It can be read: LogPublish has waited for that. */
			if (barrier->relid == InvalidOid || events_catalog_stale ||
				!RevocationsReload(RevocationsApply))
				(void) EventsReloadCatalog();
			break;
		case BARRIER_ROLES:
			EventsRolesChanged();
			RelationsNoteRoles(transaction->number);
			break;
		case BARRIER_TYPES:
		case BARRIER_ALL:
		case BARRIER_FUNCTIONS:
		case BARRIER_SCHEMA:
			foreach(lc, RelationsAll())
				(void) ApplyRelationBarrier(transaction, lfirst_oid(lc), barrier);
			if (barrier->kind != BARRIER_TYPES)
				SubscriptionForEach(NULL, ApplyFunctions, transaction);
			break;
	}
}

void
EventsApply(LogTransaction *transaction)
{
	ListCell *lc;
	int i;

	/* The more telling reason first: TRUNCATE is a barrier, too. */
	for (i = 0; i < transaction->nlost; i++)
		Resync(transaction->lost[i], transaction->lost_reason);
	for (i = 0; i < transaction->nbarriers; i++)
		ApplyBarrier(transaction, &transaction->barriers[i]);
	foreach(lc, DependencyConcerned(transaction))
		SubscribeResync(lfirst(lc), "dependency_changed");
}

void
EventsMapFailed(TransactionMap *map)
{
	ListCell *lc;

	foreach(lc, map->failed)
		Resync(lfirst_oid(lc), "change_not_readable");
}

/* Has the owner of a view got other roles with that transaction, or since? */
static bool
OwnersConcern(Subscription *s, uint64 number, const LogBarrier *barrier)
{
	int i;
	int k;

	for (i = 0; s->views != NULL && i < s->instance->channel->nsources; i++)
		for (k = 0; s->views[i] != NULL && k < s->views[i]->ndependencies; k++)
			if (RelationIsView(s->views[i]->dependencies[k]) &&
				RelationChangedSince(s->views[i]->dependencies[k], number, barrier) != NULL)
				return true;
	return false;
}

/* Has a table of the subscription changed with that transaction, or since? */
static const char *
RelationConcerns(Subscription *s, uint64 number, const LogBarrier *barrier)
{
	Channel *channel = s->instance->channel;
	const char *reason;
	int i;
	int k;

	for (i = 0; i < channel->nviews; i++)
	{
		View *view = s->views != NULL ? s->views[i] : NULL;

		reason = i < channel->nsources
					 ? RelationChangedSince(channel->sources[i]->relid, number, barrier)
					 : NULL;
		if (reason != NULL)
			return reason;
		for (k = 0; view != NULL && k < view->ndependencies; k++)
			if (RelationChangedSince(view->dependencies[k], number, barrier) != NULL)
				return "policy_changed";
	}
	return NULL;
}

/* Barriers and tables that policies read. */
static const char *
RightsConcern(Subscription *s, LogTransaction *transaction, bool barriers_only)
{
	const char *reason;
	int i;

	for (i = 0; i < transaction->nbarriers; i++)
	{
		LogBarrier *barrier = &transaction->barriers[i];

		switch (barrier->kind)
		{
			case BARRIER_CATALOG:
				continue;
			case BARRIER_ROLES:
				if (OwnersConcern(s, transaction->number, barrier))
					return "policy_changed";
				continue;
			case BARRIER_RELATION:
			case BARRIER_SAME:
				if (barrier->relid == InvalidOid)
					continue;
				if (HasDependency(s, barrier->relid))
					return "policy_changed";
				break;
			case BARRIER_TYPES:
				break;
			case BARRIER_ALL:
			case BARRIER_FUNCTIONS:
			case BARRIER_SCHEMA:
				if (UsesFunctions(s))
					return "policy_changed";
				break;
		}
		if ((reason = RelationConcerns(s, transaction->number, barrier)) != NULL)
			return reason;
	}
	if (barriers_only)
		return NULL;
	return DependencyConcerns(s, transaction) ? "dependency_changed" : NULL;
}

const char *
EventConcerns(Subscription *s, LogTransaction *transaction, bool barriers_only)
{
	int i;

	/* The more telling reason first, as above. */
	for (i = 0; i < transaction->nlost && !barriers_only; i++)
		if (transaction->lost[i] == InvalidOid || EventsHasSource(s, transaction->lost[i]))
			return transaction->lost_reason;
	return RightsConcern(s, transaction, barriers_only);
}

bool
EventConcernsRights(Subscription *s, LogTransaction *transaction)
{
	return RightsConcern(s, transaction, false) != NULL;
}
