/*-------------------------------------------------------------------------
 *
 * registry.c
 *		Connections, identities, instances and subscriptions as objects.
 *
 * Creation, look-up and freeing; what they do is in subscribe.c, deliver.c and
 * protocol.c.  Freeing an object takes it out of every list it is in, so no
 * other module has to know where it hangs.
 *
 * Process: feed worker.  Memory: objects in registry_context, freed one by
 * one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "audience.h"
#include "feed.h"
#include "http.h"
#include "policy_rule.h"
#include "receivers.h"
#include "presence.h"
#include "gateways.h"
#include "users.h"

#include "common/hashfn.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

/* Bytes of a block of objects: some hundred of them. */
#define OBJECT_BLOCK (64 * 1024)

typedef struct ConnectionKey
{
	uint32 gateway; /* Gateway's serial number */
	uint32 number;
} ConnectionKey;

typedef struct ConnectionEntry
{
	ConnectionKey key;
	Connection *connection;
} ConnectionEntry;

typedef struct ConnectionIdEntry
{
	uint64 id;
	Connection *connection;
} ConnectionIdEntry;

typedef struct IdentityEntry
{
	uint64 hash;
	Identity *first;
} IdentityEntry;

typedef struct InstanceEntry
{
	uint64 hash;
	Instance *first; /* with that hash: nearly always the only one */
} InstanceEntry;

dlist_head all_connections_behind = DLIST_STATIC_INIT(all_connections_behind);
dlist_head all_identities = DLIST_STATIC_INIT(all_identities);

MemoryContext registry_context;

/* Connections and subscriptions: of exactly their size. */
static MemoryContext connection_context;
static MemoryContext subscription_context;
static HTAB *connections;
static HTAB *connection_ids;
static HTAB *identities;
static HTAB *instances;
static List *column_names; /* of ColumnNames: there are few */
static List *starred;	   /* instances with a "*" */
static uint64 next_connection_id;
static uint32 next_subscription_id;
static uint64 next_identity_serial;
static int connection_count;
static int subscription_count;

void
RegistryInit(void)
{
	HASHCTL ctl;

	registry_context = AllocSetContextCreate(TopMemoryContext, "changefeed registry",
											 ALLOCSET_DEFAULT_SIZES);
	connection_context = SlabContextCreate(registry_context, "changefeed connection objects",
										   OBJECT_BLOCK, sizeof(Connection));
	subscription_context = SlabContextCreate(registry_context, "changefeed subscriptions",
											 OBJECT_BLOCK, sizeof(Subscription));
	ctl.hcxt = registry_context;
	ctl.keysize = sizeof(ConnectionKey);
	ctl.entrysize = sizeof(ConnectionEntry);
	connections = hash_create("changefeed connections", 256, &ctl,
							  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(ConnectionIdEntry);
	connection_ids = hash_create("changefeed connection ids", 256, &ctl,
								 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(IdentityEntry);
	identities = hash_create("changefeed identities", 256, &ctl,
							 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(InstanceEntry);
	instances = hash_create("changefeed instances", 256, &ctl,
							HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	AudienceInit();
}

/* ---- connections ---- */

Connection *
ConnectionCreate(struct Gateway *gateway, uint32 number, uint8 transport, const char *peer)
{
	ConnectionKey key = {gateway->serial, number};
	Connection *connection;
	ConnectionEntry *entry;
	ConnectionIdEntry *by_id;
	bool found;

	entry = hash_search(connections, &key, HASH_ENTER, &found);
	if (found)
		elog(ERROR, "gateway opened connection %u twice", number);
	connection = MemoryContextAllocZero(connection_context, sizeof(Connection));
	entry->connection = connection;
	connection->id = ++next_connection_id;
	connection->number = number;
	connection->gateway = gateway;
	connection->live = true;
	connection->transport = transport;
	connection->peer = MemoryContextStrdup(registry_context, peer);
	CountOpened(transport);
	connection->opened = feed_now;
	dlist_init(&connection->subscriptions);
	dlist_init(&connection->parked);
	elog(DEBUG1, "connection " UINT64_FORMAT " opened from \"%s\"", connection->id, peer);
	by_id = hash_search(connection_ids, &connection->id, HASH_ENTER, &found);
	by_id->connection = connection;
	connection_count++;
	gateway->connections++;
	return connection;
}

Connection *
ConnectionFind(struct Gateway *gateway, uint32 number)
{
	ConnectionKey key = {gateway->serial, number};
	ConnectionEntry *entry = hash_search(connections, &key, HASH_FIND, NULL);

	return entry != NULL ? entry->connection : NULL;
}

Connection *
ConnectionById(uint64 id)
{
	ConnectionIdEntry *entry = hash_search(connection_ids, &id, HASH_FIND, NULL);

	return entry != NULL ? entry->connection : NULL;
}

void
ConnectionForEach(void (*callback)(Connection *connection))
{
	HASH_SEQ_STATUS status;
	ConnectionEntry *entry;

	hash_seq_init(&status, connections);
	while ((entry = hash_seq_search(&status)) != NULL)
		callback(entry->connection);
}

void
ConnectionFree(Connection *connection)
{
	ConnectionKey key = {connection->gateway->serial, connection->number};

	elog(DEBUG1, "connection " UINT64_FORMAT " ended", connection->id);
	PresenceConnectionLost(connection);
	while (!dlist_is_empty(&connection->subscriptions))
		SubscriptionFree(
			dlist_head_element(Subscription, connection_node, &connection->subscriptions));
	ConnectionSetLive(connection);
	ConnectionSetIdentity(connection, NULL);
	UsersDrop(connection);
	hash_search(connections, &key, HASH_REMOVE, NULL);
	hash_search(connection_ids, &connection->id, HASH_REMOVE, NULL);
	if (connection->open_token != NULL)
		pfree(connection->open_token);
	if (connection->token_claims != NULL)
		pfree(connection->token_claims);
	if (connection->stats != NULL)
		pfree(connection->stats);
	pfree(connection->peer);
	list_free_deep(connection->syncs);
	HttpForget(connection);
	connection->gateway->connections--;
	pfree(connection);
	connection_count--;
}

void
ConnectionSetPeer(Connection *connection, const char *peer)
{
	pfree(connection->peer);
	connection->peer = MemoryContextStrdup(registry_context, peer);
}

/* The subscriptions hold no views of the old identity any more. */
void
ConnectionSetIdentity(Connection *connection, Identity *identity)
{
	Identity *before = connection->identity;

	if (identity == before)
		return;
	if (before != NULL)
		dlist_delete(&connection->identity_node);
	connection->identity = identity;
	if (identity != NULL)
	{
		identity->refcount++;
		dlist_push_tail(&identity->connections, &connection->identity_node);
	}
	if (before != NULL)
		IdentityRelease(before);
}

void
ConnectionSetBehind(Connection *connection, uint64 cursor)
{
	if (connection->live)
	{
		connection->live = false;
		ReceiversExit(connection);
		dlist_push_tail(&all_connections_behind, &connection->behind_node);
	}
	connection->cursor = cursor;
}

void
ConnectionSetLive(Connection *connection)
{
	if (connection->live)
		return;
	connection->live = true;
	connection->waits_verdict = false;
	dlist_delete(&connection->behind_node);
	ReceiversEnter(connection);
}

void
ConnectionSetClosing(Connection *connection)
{
	connection->closing = true;
	ReceiversExit(connection);
}

int
ConnectionCount(void)
{
	return connection_count;
}

int
SubscriptionCount(void)
{
	return subscription_count;
}

/* ---- identities and views ---- */

Identity *
IdentityIntern(const IdentityInfo *info)
{
	Identity *identity;
	IdentityEntry *entry;
	bool found;
	MemoryContext old;

	/* The hash is a cryptographic one, but claims decide about rows. */
	entry = hash_search(identities, &info->hash, HASH_ENTER, &found);
	if (!found)
		entry->first = NULL;
	for (identity = entry->first; identity != NULL; identity = identity->next)
		if (identity->info.role == info->role && strcmp(identity->info.claims, info->claims) == 0)
			return identity;

	old = MemoryContextSwitchTo(registry_context);
	identity = palloc0(sizeof(Identity));
	identity->serial = ++next_identity_serial;
	identity->info = *info;
	identity->info.role_name = pstrdup(info->role_name);
	identity->info.claims = pstrdup(info->claims);
	identity->info.subject = info->subject != NULL ? pstrdup(info->subject) : NULL;

	/* A token's, not the identity's. */
	identity->info.expires = 0;
	identity->info.issued = 0;
	identity->info.token_claims = NULL;
	PositionTag(identity->tag, info->hash);
	dlist_init(&identity->connections);
	dlist_push_head(&all_identities, &identity->node);
	identity->next = entry->first;
	entry->first = identity;
	MemoryContextSwitchTo(old);
	return identity;
}

void
IdentityRelease(Identity *identity)
{
	IdentityEntry *entry;
	Identity **link;

	if (--identity->refcount > 0)
		return;
	entry = hash_search(identities, &identity->info.hash, HASH_FIND, NULL);
	for (link = &entry->first; *link != identity; link = &(*link)->next)
		;
	*link = identity->next;
	if (entry->first == NULL)
		hash_search(identities, &identity->info.hash, HASH_REMOVE, NULL);
	dlist_delete(&identity->node);
	pfree(identity->info.role_name);
	pfree(identity->info.claims);
	if (identity->info.subject != NULL)
		pfree(identity->info.subject);
	Assert(identity->views == NIL);
	pfree(identity);
}

ColumnNames *
ColumnNamesIntern(const char *data, int length)
{
	ColumnNames *names;
	ListCell *lc;
	MemoryContext old;

	foreach(lc, column_names)
	{
		names = lfirst(lc);
		if (names->length == length && memcmp(names->data, data, length) == 0)
		{
			names->refcount++;
			return names;
		}
	}
	old = MemoryContextSwitchTo(registry_context);
	names = palloc(offsetof(ColumnNames, data) + length);
	names->refcount = 1;
	names->length = length;
	memcpy(names->data, data, length);
	column_names = lcons(names, column_names);
	MemoryContextSwitchTo(old);
	return names;
}

void
ColumnNamesRelease(ColumnNames *names)
{
	if (--names->refcount > 0)
		return;
	column_names = list_delete_ptr(column_names, names);
	pfree(names);
}

static bool
SameView(const View *a, const View *b)
{
	return a->source_id == b->source_id && a->relid == b->relid && a->rls == b->rls &&
		   a->recheck == b->recheck && a->fingerprint == b->fingerprint &&
		   a->ncolumns == b->ncolumns && a->names == b->names && a->nkey == b->nkey &&
		   a->ndependencies == b->ndependencies && a->casts == b->casts &&
		   a->functions == b->functions && a->rule == b->rule &&
		   memcmp(a->columns, b->columns, sizeof(int16) * a->ncolumns) == 0 &&
		   memcmp(a->key, b->key, sizeof(int16) * a->nkey) == 0 &&
		   memcmp(a->dependencies, b->dependencies, sizeof(Oid) * a->ndependencies) == 0 &&
		   a->narrowing_length == b->narrowing_length &&
		   memcmp(a->narrowing, b->narrowing, a->narrowing_length) == 0;
}

static void *
Copy(const void *data, Size size)
{
	void *copy = palloc(Max(size, 1));

	if (size > 0)
		memcpy(copy, data, size);
	return copy;
}

/* An equal view of the identity, or a copy of this one; referenced once more. */
View *
ViewIntern(Identity *identity, const View *view)
{
	ListCell *lc;
	View *copy;
	MemoryContext old;

	foreach(lc, identity->views)
	{
		View *other = lfirst(lc);

		if (SameView(other, view))
		{
			ViewKeep(identity, other);
			return other;
		}
	}

	old = MemoryContextSwitchTo(registry_context);
	copy = palloc(sizeof(View));
	*copy = *view;
	copy->columns = Copy(view->columns, sizeof(int16) * view->ncolumns);
	copy->key = Copy(view->key, sizeof(int16) * view->nkey);
	copy->dependencies = Copy(view->dependencies, sizeof(Oid) * view->ndependencies);
	copy->narrowing = Copy(view->narrowing, view->narrowing_length);
	copy->refcount = 1;
	PolicyRuleKeep(copy->rule);
	copy->names->refcount++;
	DependencyAdd(identity, copy);
	identity->refcount++;
	identity->views = lcons(copy, identity->views);
	MemoryContextSwitchTo(old);
	return copy;
}

void
ViewKeep(Identity *identity, View *view)
{
	view->refcount++;
	identity->refcount++;
}

void
ViewRelease(Identity *identity, View *view)
{
	if (--view->refcount == 0)
	{
		DependencyRemove(view);
		identity->views = list_delete_ptr(identity->views, view);
		pfree(view->columns);
		pfree(view->key);
		pfree(view->dependencies);
		pfree(view->narrowing);
		PolicyRuleRelease(view->rule);
		ColumnNamesRelease(view->names);
		pfree(view);
	}
	IdentityRelease(identity);
}

/* ---- instances ---- */

/* In a key "*" differs from every text by its first byte. */
#define ANY_PARAM  '\001'
#define TEXT_PARAM '\002'

static char *
InstanceKey(Channel *channel, char *const *params, int *length)
{
	StringInfoData s;
	int i;

	initStringInfo(&s);
	appendBinaryStringInfo(&s, (char *) &channel->serial, sizeof(channel->serial));
	for (i = 0; i < channel->template->nparams; i++)
	{
		if (params[i] == NULL)
			appendStringInfoChar(&s, ANY_PARAM);
		else
		{
			appendStringInfoChar(&s, TEXT_PARAM);
			appendStringInfoString(&s, params[i]);
		}
		appendStringInfoChar(&s, '\0');
	}
	*length = s.len;
	return s.data;
}

static Instance *
Lookup(Channel *channel, const char *key, int length, uint64 *hash)
{
	InstanceEntry *entry;
	Instance *instance;

	*hash = hash_bytes_extended((const unsigned char *) key, length, 0);
	entry = hash_search(instances, hash, HASH_FIND, NULL);
	for (instance = entry != NULL ? entry->first : NULL; instance != NULL;
		 instance = instance->next)
		/* While a definition takes the place of another, both have instances. */
		if (instance->channel == channel && instance->key_length == length &&
			memcmp(instance->key, key, length) == 0)
			break;
	return instance;
}

Instance *
InstanceFind(Channel *channel, char *const *params)
{
	uint64 hash;
	int length;
	char *key = InstanceKey(channel, params, &length);
	Instance *instance = Lookup(channel, key, length, &hash);

	pfree(key);
	return instance;
}

/* The parameters are in the key, each behind a byte that says which kind it is. */
static void
SetParams(Instance *instance)
{
	char *at = instance->key + sizeof(instance->channel->serial);
	int i;

	for (i = 0; i < instance->channel->template->nparams; i++)
	{
		if (*at == ANY_PARAM)
			instance->starred = true;
		else
			instance->params[i] = at + 1;
		at += strlen(at) + 1;
	}
}

Instance *
InstanceIntern(Channel *channel, char *const *params)
{
	InstanceEntry *entry;
	uint64 hash;
	int length;
	char *key = InstanceKey(channel, params, &length);
	Instance *instance = Lookup(channel, key, length, &hash);
	Size pointers = sizeof(char *) * channel->template->nparams;
	bool found;

	if (instance != NULL)
		return instance;

	instance = MemoryContextAllocZero(registry_context, sizeof(Instance) + pointers + length);
	instance->params = (char **) (instance + 1);
	instance->key = (char *) (instance + 1) + pointers;
	memcpy(instance->key, key, length);
	instance->key_length = length;
	instance->hash = hash;
	instance->channel = channel;
	SetParams(instance);
	channel->counters->instances++;
	dlist_init(&instance->subscriptions);
	entry = hash_search(instances, &hash, HASH_ENTER, &found);
	instance->next = found ? entry->first : NULL;
	entry->first = instance;
	if (instance->starred)
	{
		MemoryContext old = MemoryContextSwitchTo(registry_context);

		starred = lappend(starred, instance);
		MemoryContextSwitchTo(old);
	}
	return instance;
}

static void
InstanceFree(Instance *instance)
{
	InstanceEntry *entry = hash_search(instances, &instance->hash, HASH_FIND, NULL);
	Instance **link;

	for (link = &entry->first; *link != instance; link = &(*link)->next)
		;
	*link = instance->next;
	if (entry->first == NULL)
		hash_search(instances, &instance->hash, HASH_REMOVE, NULL);
	if (instance->starred)
		starred = list_delete_ptr(starred, instance);
	instance->channel->counters->instances--;
	pfree(instance);
}

List *
InstancesStarred(Channel *channel)
{
	List *result = NIL;
	ListCell *lc;

	foreach(lc, starred)
		if (((Instance *) lfirst(lc))->channel == channel)
			result = lappend(result, lfirst(lc));
	return result;
}

bool
InstanceMatches(const Instance *instance, char *const *params)
{
	int i;

	for (i = 0; i < instance->channel->template->nparams; i++)
		if (instance->params[i] != NULL && strcmp(instance->params[i], params[i]) != 0)
			return false;
	return true;
}

/* ---- subscriptions ---- */

/* An instance goes with its last subscription. */
static void
Leave(Subscription *s)
{
	Instance *instance = s->instance;

	if (AudienceLeave(s))
		InstanceFree(instance);
}

/* Into, or out of, what its channel's counters say of the state it is in. */
static void
Count(Subscription *s, int n)
{
	s->instance->channel->counters->subscriptions[s->state] += n;
}

Subscription *
SubscriptionCreate(Connection *connection, Instance *instance, const char *sql, const char *name,
				   Size length)
{
	Subscription *s = MemoryContextAllocZero(subscription_context, sizeof(Subscription));

	s->id = ++next_subscription_id;
	s->connection = connection;
	AudienceJoin(s, AudienceIntern(instance, sql), name, length, false);
	s->state = SUB_QUERYING;
	s->subscribed_at = feed_now;
	Count(s, 1);
	dlist_push_tail(&connection->subscriptions, &s->connection_node);
	SubscribeLoadBegin(s);
	SubscribePlace(s);
	connection->nsubscriptions++;
	subscription_count++;
	elog(DEBUG1, "connection " UINT64_FORMAT " subscribes to %.*s", connection->id,
		 (int) s->name->length, s->name->json);
	return s;
}

Subscription *
SubscriptionFind(Connection *connection, const char *name, Size length)
{
	StringInfoData json;
	dlist_iter iter;

	initStringInfo(&json);
	EncodeString(&json, name, length);
	dlist_foreach(iter, &connection->subscriptions)
	{
		Subscription *s = dlist_container(Subscription, connection_node, iter.cur);

		if (s->name->length == json.len && memcmp(s->name->json, json.data, json.len) == 0)
			return s;
	}
	return NULL;
}

void
SubscriptionRenumber(Subscription *subscription)
{
	subscription->id = ++next_subscription_id;
}

Subscription *
SubscriptionById(Connection *connection, uint32 id)
{
	dlist_iter iter;

	dlist_foreach(iter, &connection->subscriptions)
	{
		Subscription *s = dlist_container(Subscription, connection_node, iter.cur);

		if (s->id == id)
			return s;
	}
	return NULL;
}

void
SubscriptionSetState(Subscription *s, SubscriptionState state)
{
	bool was_working = s->state != SUB_READY;
	bool works = state != SUB_READY;

	if (state != SUB_CATCHUP)
		SubscriptionHolds(s, false);
	if (was_working && !works)
	{
		SubscribeLoadEnd(s);
		s->connection->nready++;
	}
	else if (!was_working && works)
	{
		SubscribeLoadBegin(s);
		s->connection->nready--;
	}
	if (works)
		ReceiversLeave(s);
	else
		ReceiversJoin(s);
	Count(s, -1);
	if (s->state == SUB_LOADING)
		SubscribePagesEnd(s);
	s->state = state;
	if (state == SUB_CATCHUP)
		SubscribeFetchEnd(s);
	Count(s, 1);
	SubscribePlace(s);
}

/* Its channel has a new definition with the same template. */
void
SubscriptionMove(Subscription *s, Instance *instance)
{
	Audience *audience = AudienceIntern(instance, s->audience->sql);
	char *name = pnstrdup(s->name->json, s->name->length);
	int length = s->name->length;

	Count(s, -1);
	Leave(s);
	AudienceJoin(s, audience, name, length, true);
	Count(s, 1);
	PresenceMoved(s);
}

void
SubscriptionFree(Subscription *s)
{
	Connection *connection = s->connection;

	PresenceUnsubscribed(s);
	SubscribeForget(s);
	SubscriptionHolds(s, false);
	SubscribeLoadEnd(s);
	if (s->state == SUB_READY)
		connection->nready--;
	dlist_delete(&s->connection_node);
	Count(s, -1);
	Leave(s);
	if (s->selection != NULL)
		pfree(s->selection);
	connection->nsubscriptions--;
	subscription_count--;
	pfree(s);
}

void
SubscriptionForEach(Channel *channel, void (*callback)(Subscription *s, void *arg), void *arg)
{
	HASH_SEQ_STATUS status;
	InstanceEntry *entry;
	List *found = NIL;
	ListCell *lc;

	/* Collected first: the callback may free subscriptions and instances. */
	hash_seq_init(&status, instances);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		Instance *instance;

		for (instance = entry->first; instance != NULL; instance = instance->next)
		{
			dlist_iter iter;

			if (channel != NULL && instance->channel != channel)
				continue;
			dlist_foreach(iter, &instance->subscriptions)
				found = lappend(found, dlist_container(Subscription, instance_node, iter.cur));
		}
	}
	foreach(lc, found)
		callback(lfirst(lc), arg);
	list_free(found);
}
