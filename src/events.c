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
 * invalidation that changed nothing that matters (ANALYZE, VACUUM, a new
 * index) disturbs nobody.
 *
 * Process: feed worker.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "feed.h"
#include "gateways.h"

bool events_catalog_stale = false;

/* The identity's role is still allowed; its hash may have changed. */
static uint64 seen_role_changes;

typedef struct Concern
{
	Oid source;			/* subscriptions fed by this table (0: all) */
	Oid dependency;		/* whose policies read this table */
	bool judged;		/* that have any judged source */
	Identity *identity; /* only this one's */
	const char *reason;
} Concern;

static bool
HasSource(Subscription *s, Oid relid)
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
	for (i = 0; i < s->instance->channel->nsources; i++)
		for (k = 0; s->views[i] != NULL && k < s->views[i]->ndependencies; k++)
			if (s->views[i]->dependencies[k] == relid)
				return true;
	return false;
}

static bool
IsJudged(Subscription *s)
{
	int i;

	if (s->views == NULL)
		return false;
	for (i = 0; i < s->instance->channel->nsources; i++)
		if (s->views[i] != NULL && s->views[i]->rls == 1)
			return true;
	return false;
}

static void
ResyncIfConcerned(Subscription *s, void *arg)
{
	Concern *c = arg;

	if (s->state != SUB_READY)
		return; /* looks at the log itself */
	if (c->identity != NULL && s->connection->identity != c->identity)
		return;
	if (c->source != InvalidOid && !HasSource(s, c->source) &&
		(c->dependency == InvalidOid || !HasDependency(s, c->dependency)))
		return;
	if (c->source == InvalidOid && c->dependency != InvalidOid && !HasDependency(s, c->dependency))
		return;
	if (c->judged && !IsJudged(s))
		return;
	SubscribeResync(s, c->reason);
}

static void
Resync(Oid source, Oid dependency, bool judged, Identity *identity, const char *reason)
{
	Concern c = {source, dependency, judged, identity, reason};

	SubscriptionForEach(NULL, ResyncIfConcerned, &c);
}

bool
EventsReloadCatalog(void)
{
	bool roles_changed = false;

	/* Maps point to sources. */
	MapFreeAll();
	DeliverForgetWaiting();
	if (!ChannelsReload(SubscribeChannelChanged, &roles_changed))
	{
		events_catalog_stale = true;
		return false;
	}
	events_catalog_stale = false;
	if (roles_changed)
		EventsRolesChanged();
	return true;
}

void
EventsRolesChanged(void)
{
	dlist_mutable_iter iter;

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
		dlist_foreach_modify(iter2, &identity->connections)
		{
			Connection *connection = dlist_container(Connection, identity_node, iter2.cur);

			ProtocolChangeIdentity(connection, changed);
		}
		IdentityRelease(changed);
	}
	seen_role_changes = pg_atomic_read_u64(&feed_shared->role_changes);
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
ApplyBarrier(const LogTransaction *transaction, LogBarrier *barrier)
{
	ListCell *lc;
	List *changed;

	switch (barrier->kind)
	{
		case BARRIER_RELATION:
			changed = RelationTypeChanged(barrier->relid, transaction->commit.lsn);
			if (changed != NIL)
			{
				foreach(lc, changed)
					Resync(lfirst_oid(lc), lfirst_oid(lc), false, NULL, "schema_changed");
				/* Who is not ready yet does not know which those are. */
				barrier->kind = BARRIER_ALL;
				return;
			}
			if (!RelationChanged(barrier->relid, transaction->commit.lsn))
			{
				/* Nobody has to look at it again. */
				barrier->relid = InvalidOid;
				return;
			}
			if (ChannelsSourcesOf(barrier->relid) != NIL || ViewsDependOn(barrier->relid))
				Resync(barrier->relid, barrier->relid, false, NULL, "schema_changed");
			break;
		case BARRIER_CATALOG:
			(void) EventsReloadCatalog();
			break;
		case BARRIER_ROLES:
			EventsRolesChanged();
			break;
		case BARRIER_ALL:
			foreach(lc, RelationsChanged(transaction->commit.lsn))
				Resync(lfirst_oid(lc), lfirst_oid(lc), false, NULL, "schema_changed");

			/* A function or operator that a policy uses may be another now. */
			Resync(InvalidOid, InvalidOid, true, NULL, "schema_changed");
			break;
	}
}

void
EventsApply(LogTransaction *transaction)
{
	int i;

	/* The more telling reason first: TRUNCATE is a barrier, too. */
	for (i = 0; i < transaction->nlost; i++)
		Resync(transaction->lost[i], InvalidOid, false, NULL, transaction->lost_reason);
	for (i = 0; i < transaction->nbarriers; i++)
		ApplyBarrier(transaction, &transaction->barriers[i]);
	for (i = 0; i < transaction->ntouched; i++)
		if (ViewsDependOn(transaction->touched[i]))
			Resync(InvalidOid, transaction->touched[i], false, NULL, "dependency_changed");
}

void
EventsMapFailed(TransactionMap *map)
{
	ListCell *lc;

	foreach(lc, map->failed)
		Resync(lfirst_oid(lc), InvalidOid, false, NULL, "change_not_readable");
}

void
EventsResyncIdentity(Identity *identity, Oid relid, const char *reason)
{
	Resync(relid, InvalidOid, false, identity, reason);
}

const char *
EventConcerns(Subscription *s, LogTransaction *transaction, bool barriers_only)
{
	int i;

	for (i = 0; i < transaction->nbarriers; i++)
	{
		LogBarrier *barrier = &transaction->barriers[i];

		if (barrier->kind == BARRIER_ALL)
			return "schema_changed";
		if (barrier->kind == BARRIER_RELATION && barrier->relid != InvalidOid &&
			(HasSource(s, barrier->relid) || HasDependency(s, barrier->relid)))
			return "schema_changed";
	}
	if (barriers_only)
		return NULL;
	for (i = 0; i < transaction->nlost; i++)
		if (transaction->lost[i] == InvalidOid || HasSource(s, transaction->lost[i]))
			return transaction->lost_reason;
	for (i = 0; i < transaction->ntouched; i++)
		if (ViewsDependOn(transaction->touched[i]) && HasDependency(s, transaction->touched[i]))
			return "dependency_changed";
	return NULL;
}
